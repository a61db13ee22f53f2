"""The table of signals, in the order of documents. A signal is one file and one row here."""

from __future__ import annotations

from provindex.common.tables import Signal
from provindex.signals import eas, end, lep, mfi, nlf, tfv, voa, wvc

SIGNALS: tuple[Signal, ...] = (
    mfi.SIGNAL,
    tfv.SIGNAL,
    voa.SIGNAL,
    eas.SIGNAL,
    nlf.SIGNAL,
    lep.SIGNAL,
    end.SIGNAL,
    wvc.SIGNAL,
)
