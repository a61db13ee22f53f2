"""END, embedding norm distribution: is the histogram of the row norms shaped like the other model's?

Definition: the V row norms in 20 equal bins over that model's own [min, max], as shares of V. Two models are
compared by the cosine of the histograms, clamped to [0, 1] and rounded to 4 decimals. Row norms all equal:
everything in bin 10.
Range: [0, 1]. Chance level: .85 to .998 (independent models of one config): it says little by itself.
Blind to: the order of the tokens, a rotation of the hidden space, the scale and any offset of the norms.
Absent: no embedding, NaN or infinity.
Source: Cisco model-provenance-kit 1.0.0, reimplemented from its definition. The peer divides a density by
(its sum + 1e-10), which is the same vector up to a factor; the peer computes END only where EAS exists, which
is the caller's choice here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Panel, Signal, array, field
from provindex.roles.weights import CHUNK, Weights
from provindex.signals.similarity import SIDES, clamped_cosine, not_finite

BINS = 20

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def extract(norms: F32) -> F64 | None:
    """Histogram of row norms: (V,) float32 to (20,) float64 that sums to 1.

    None when there are no rows. With a NaN or an infinity every bin is NaN, and `compare` reports it.
    """
    if not len(norms):
        return None
    if not np.isfinite(norms).all():
        return np.full(BINS, np.nan)
    low, high = float(norms.min()), float(norms.max())
    if low == high:
        alone: F64 = np.eye(1, BINS, BINS // 2)[0]
        return alone
    # 20 float32 edges need some room between them; rows of equal length can differ in the last bits only
    narrow = high - low < 4 * BINS * float(np.spacing(np.float32(high)))
    counts, _ = np.histogram(norms.astype(np.float64) if narrow else norms, bins=BINS)
    shares: F64 = counts / float(len(norms))
    return shares


def compare(a: F64 | None, b: F64 | None) -> Score:
    """END of two (20,) histograms, which may be scaled by any positive factor. n: bins compared (20)."""
    if a is None or b is None:
        return Score.absent(Reason.of(Code.SIDE_NO_ROW_NORMS, side=SIDES[a is not None]))
    if reason := not_finite("embedding row norms", a, b):
        return Score.absent(reason)
    value = clamped_cosine(a, b)
    if value is None:
        return Score.absent(Reason.of(Code.HISTOGRAM_EMPTY))
    return Score(round(value, 4), n=len(a))


# --- from a model's weights, and the table row ---


def of_weights(w: Weights) -> F64 | None:
    """END of a model that is read in full."""
    if not w.exact:
        w.absences["END"] = Reason.of(Code.NEEDS_EXACT)
        return None
    found = w.embedding("END")
    if found is None:
        return None
    norms = w.scans[found[0].name].row_norms
    if norms is None:
        w.absences["END"] = Reason.of(Code.EMBEDDING_WIDE, limit=CHUNK)
    elif not np.isfinite(norms).all():
        w.absences["END"] = Reason.of(Code.EMBEDDING_NOT_FINITE)
    elif (histogram := extract(norms)) is None:
        w.absences["END"] = Reason.of(Code.EMBEDDING_EMPTY)
    else:
        return histogram
    return None


def _of_row(row: Mapping[str, Any]) -> F64 | None:
    if row["end"].size not in (0, BINS):
        raise ValueError(f"{row['end'].size} END bins, {BINS} expected")
    return row["end"] if row["end"].size else None


PANEL = Panel(
    "end",
    (array("end", "float64", "END: histogram of embedding row norms, 20 bins", BINS, table="models", finite=True),),
    to_row=lambda shares: {"end": shares},
    from_row=_of_row,
    extract=of_weights,
)
SIGNAL = Signal("END", field("end"), compare, (PANEL,), order=4)
