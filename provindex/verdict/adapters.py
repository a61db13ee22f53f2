"""What can be said of two models of which at least one is an adapter."""

from __future__ import annotations

from provindex.fingerprint.record import Fingerprint
from provindex.roles.adapters import ABSENT

MERGE = "for a verdict, merge it into the model that it amends (with peft: merge_and_unload) and name the merged model"


def reasons(a: Fingerprint, b: Fingerprint) -> tuple[str, ...]:
    """Why nothing was decided about two models of which at least one is an adapter; () if none is."""
    said: list[str] = []
    for one, other in ((a, b), (b, a)):
        if ABSENT in one.absences:
            said.append(f"{one.model_id}: {one.absences[ABSENT]}")
            said += [f"its config names {one.parents[0]}, a claim"] if one.parents else []
            said += [_fit(one, other)] if ABSENT not in other.absences else []
    return (*dict.fromkeys(said), MERGE) if said else ()


def _fit(adapter: Fingerprint, model: Fingerprint) -> str:
    """Whether an adapter could be of a model at all. That it could is no evidence: widths are shared by many."""
    ours, theirs = adapter.facts, model.facts
    sizes = f"a width of {ours.hidden} in {ours.layers} layers"
    if not theirs.hidden or not ours.hidden:
        return "whether its shapes fit is not known"
    if ours.hidden == theirs.hidden and ours.layers <= theirs.layers:
        return f"its shapes ({sizes}) fit, as they do every other model of that size ({model.model_id})"
    return f"its shapes ({sizes}) do not fit ({model.model_id}: {theirs.hidden} in {theirs.layers})"
