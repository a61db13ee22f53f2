"""LEP, layer energy profile: does weight energy rise and fall over the depth as in the other model?

Definition: e_l = sum of the Frobenius norms of every tensor of dim >= 2 in layer l (any kind of tensor), 0
for a layer that has none, divided by the largest e_l if that exceeds 1e-8. Two profiles are compared by
Pearson's r as (r + 1) / 2, rounded to 4 decimals; if their lengths differ, both are first interpolated
linearly at min(L_a, L_b) equally spaced depths in [0, 1].
Range: [0, 1]. Chance level: .15 to .98 (independent models of one config): trained networks share the shape.
Blind to: the scale of all weights, permutations inside a tensor, the order of tensors in a layer.
Absent: no layers, the same energy in every layer (a model of one layer is), NaN or infinity.
Source: Cisco model-provenance-kit 1.0.0 (its full path), reimplemented from its definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Panel, Row, Signal, array, split
from provindex.roles.weights import Weights
from provindex.signals.imported import APART
from provindex.signals.similarity import SIDES, not_finite, pearson_score

MAX_LAYERS = 100_000  # a tensor named layers.999999999999.x must not allocate a profile of that length
MIN_PEAK = 1e-8

F32 = NDArray[np.float32]


def profile(norms: Mapping[int, Sequence[float]]) -> F32:
    """Energy by layer, (L,) float32 with L = highest layer index + 1, from the Frobenius norms of each
    layer's tensors.

    The sums are exact (fsum), so the order of the tensors cannot matter. A NaN or an infinity leaves a NaN in
    the profile, and `compare` reports it. Raises ModelError for a layer index of MAX_LAYERS or above.
    """
    if not norms:
        return np.zeros(0, dtype=np.float32)
    if (last := max(norms)) >= MAX_LAYERS:
        raise ModelError(f"A tensor name claims layer {last}.", "Check the tensor names of this model.")
    energy = np.zeros(last + 1)
    for layer, values in norms.items():
        energy[layer] = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
    peak = energy.max()
    return (energy / peak if not peak <= MIN_PEAK else energy).astype(np.float32)


def compare(a: F32, b: F32) -> Score:
    """LEP of two profiles, (L_a,) and (L_b,) float32. n: depths compared, min(L_a, L_b)."""
    for side, values in zip(SIDES, (a, b), strict=True):
        if not len(values):
            return Score.absent(Reason.of(Code.SIDE_NO_LAYERS, side=side))
    if reason := not_finite("layer energies", a, b):
        return Score.absent(reason)
    n = min(len(a), len(b))
    first, second = (_resampled(a, n), _resampled(b, n)) if len(a) != len(b) else (a, b)
    value = pearson_score(first, second)
    if value is None:
        return Score.absent(Reason.of(Code.ENERGY_FLAT))
    return Score(value, n=n)


def _resampled(values: F32, n: int) -> NDArray[np.float64]:
    return np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(values)), values)


# --- from a model's weights, and the table row ---


def of_weights(w: Weights) -> dict[str, F32]:
    """The profile of each stack of a model that is read in full."""
    if not w.exact:
        w.absences["LEP"] = Reason.of(Code.NEEDS_EXACT)
        return {}
    norms: dict[str, dict[int, list[float]]] = {}
    for place in w.places:
        if place.layer is not None and len(w.tensors[place.name].shape) >= 2:
            energy = float(np.sqrt(w.scans[place.name].sum_of_squares))
            norms.setdefault(place.stack, {}).setdefault(place.layer, []).append(energy)
    finite = {stack: layers for stack, layers in norms.items() if np.isfinite(np.concatenate([*layers.values()])).all()}
    if w.layout.main not in norms:
        w.absences["LEP"] = Reason.of(Code.NO_LAYERS)
    elif w.layout.main not in finite:
        w.absences["LEP"] = Reason.of(Code.WEIGHTS_NOT_FINITE)
    return {stack: profile(layers) for stack, layers in sorted(finite.items())}


def _values(a: Any, b: Any) -> tuple[F32, F32] | None:
    """Profiles of the main stacks, or two imported ones that were taken in the same other way."""
    for one, other in ((a.facts.main, b.facts.main), *((way, way) for way in APART)):
        left, right = a.lep.get(one), b.lep.get(other)
        if left is not None and right is not None:
            return left, right
    return None


def _to_row(profiles: Mapping[str, F32]) -> Row:
    if not profiles:
        return {}
    sizes = np.array([len(v) for v in profiles.values()], np.int32)
    return {"lep_stacks": list(profiles), "lep_sizes": sizes, "lep": np.concatenate(list(profiles.values()))}


PANEL = Panel(
    "lep",
    (
        array("lep_stacks", "string", "LEP: stack of each profile", 1 << 10, table="models"),
        array("lep_sizes", "int32", "LEP: length of each profile", 1 << 10, table="models"),
        array("lep", "float32", "LEP: relative energy by layer, profile after profile", MAX_LAYERS, table="models"),
    ),
    to_row=_to_row,
    from_row=lambda row: dict(zip(row["lep_stacks"], split(row["lep"], row["lep_sizes"]), strict=True)),
    extract=of_weights,
)
SIGNAL = Signal("LEP", _values, compare, (PANEL,), order=2)
