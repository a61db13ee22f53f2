"""What can be said of two models of which at least one is an adapter."""

from __future__ import annotations

from provindex.common.reasons import Code, Reason, distinct
from provindex.fingerprint.record import Fingerprint
from provindex.roles.adapters import ABSENT


def reasons(a: Fingerprint, b: Fingerprint) -> tuple[Reason, ...]:
    """Why nothing was decided about two models of which at least one is an adapter; () if none is."""
    said: list[Reason] = []
    for one, other in ((a, b), (b, a)):
        if ABSENT in one.absences:
            said.append(one.absences[ABSENT].about(one.model_id))
            said += [Reason.of(Code.ADAPTER_NAMES, base=one.parents[0])] if one.parents else []
            said += [_fit(one, other)] if ABSENT not in other.absences else []
    return (*distinct(said), Reason.of(Code.ADAPTER_MERGE)) if said else ()


def _fit(adapter: Fingerprint, model: Fingerprint) -> Reason:
    """Whether an adapter could be of a model at all. That it could is no evidence: widths are shared by many."""
    ours, theirs = adapter.facts, model.facts
    if not theirs.hidden or not ours.hidden:
        return Reason.of(Code.ADAPTER_FIT_UNKNOWN)
    if ours.hidden == theirs.hidden and ours.layers <= theirs.layers:
        return Reason.of(Code.ADAPTER_FITS, hidden=ours.hidden, layers=ours.layers, model=model.model_id)
    return Reason.of(
        Code.ADAPTER_MISFIT,
        hidden=ours.hidden,
        layers=ours.layers,
        model=model.model_id,
        other_hidden=theirs.hidden,
        other_layers=theirs.layers,
    )
