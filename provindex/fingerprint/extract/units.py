"""From a model's tensors to what its branches look like in anchor coordinates: sketches (VABS) and neuron panels (E3).

Layer after layer: reader rows and writer columns are multiplied with the virtual anchors while they stream by, so that
no matrix is held as a whole. Norms are folded into the anchors instead of the matrices, which is the same product.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from provindex.evidence import aligned, sketch, whole_layers
from provindex.evidence.sketch import SKETCHED, LayerKey
from provindex.fingerprint.extract.whole_layers import WholeLayer, panel, whole_layer
from provindex.roles import canonical
from provindex.roles.canonical import F64
from provindex.roles.names import Arch, Part, Placement
from provindex.roles.weights import WRITERS, Found, Weights

PIECE = 1 << 18  # elements multiplied at a time: 2 MB of float64, which stay in cache
LEVELS = 31
MAX_UNITS = 1 << 18  # of one matrix: some 130 MB of products; the widest MLPs have a fifth of that
TURNED = 1 << 24  # the same for matrices that are stored transposed, of which every piece touches every page
READERS = ("q", "k", "v", "gate", "up")


@dataclass(frozen=True)
class Anchors:
    """The virtual anchors of a model: (64, d) at the anchor strings, at fixed token ids; None where there are none."""

    by_string: F64 | None
    by_id: F64 | None

    def stacked(self, count: int) -> F64:
        """The first `count` anchors of each naming, one below the other."""
        return np.concatenate([a[:count] for a in (self.by_string, self.by_id) if a is not None])

    def split(self, values: NDArray[np.generic], axis: int = 0) -> tuple[NDArray[np.generic] | None, ...]:
        """What was made with `stacked`, by naming again."""
        there = [a is not None for a in (self.by_string, self.by_id)]
        pieces = iter(np.split(values, sum(there), axis=axis))
        return tuple(next(pieces) if is_there else None for is_there in there)


@dataclass(frozen=True)
class Branched:
    """What is kept of the branches of a model."""

    by_string: sketch.BranchSketches | None = None
    by_id: sketch.BranchSketches | None = None
    neurons: aligned.NeuronPanels | None = None
    whole: whole_layers.WholeLayers | None = None


@dataclass(frozen=True)
class _Neurons:
    """Some of a layer's `width` neurons: positions, lengths (n, P), coordinates (n, P, anchors of both namings)."""

    width: int
    units: NDArray[np.int64]
    lengths: F64
    coordinates: F64


_Sketched = tuple[tuple[F64 | None, F64 | None], _Neurons | None]  # at either naming; neurons


def branches(w: Weights, anchors: Anchors, pool: Executor, before: Callable[[LayerKey], None]) -> Branched:
    """Sketches and neuron panels of the text tower's stacks; in sampled mode of the layers at 1/3 and 2/3 only.

    All neurons are kept of those two layers; of small models of every layer.

    before: what else is to be done with a layer, just before it is read, so that its bytes are fetched once.
    """
    layers = _layers(w)
    whole = _whole(w, layers)
    named = anchors.by_string is not None or anchors.by_id is not None
    if not named:
        layers = {key: layers[key] for key in whole}
    kept = aligned.neurons_kept(len(layers)) if w.exact else aligned.NEURONS

    def read(key: LayerKey) -> tuple[_Sketched, WholeLayer | None]:
        before(key)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is left out afterwards
            sketched = _layer(w, anchors, key, layers[key], kept) if named else ((None, None), None)
            both = (anchors.by_string, anchors.by_id)
            return sketched, whole_layer(w, both, key, layers[key]) if key in whole else None

    made = dict(zip(layers, pool.map(read, layers), strict=True))
    full = {key: found for key, ((found, _), _) in made.items()}
    return Branched(
        sketch.projected({key: s for key, (s, _) in full.items() if s is not None}),
        sketch.projected({key: s for key, (_, s) in full.items() if s is not None}),
        _panels({key: neurons for key, ((_, neurons), _) in made.items() if neurons is not None}, anchors),
        panel({key: found for key, (_, found) in made.items() if found is not None}),
    )


def every_layer(w: Weights, anchors: Anchors, pool: Executor) -> whole_layers.WholeLayers | None:
    """All neurons of all layers of the text tower's stacks, or of the only tower that there is, which no row keeps of a
    large model.
    """
    layers = _layers(w, towers=frozenset({w.layout.main}))
    both = (anchors.by_string, anchors.by_id)

    def read(key: LayerKey) -> WholeLayer | None:
        with np.errstate(invalid="ignore", over="ignore"):
            return whole_layer(w, both, key, layers[key])

    made = zip(layers, pool.map(read, layers), strict=True)
    return panel({key: found for key, found in made if found is not None})


def _layers(w: Weights, towers: frozenset[str] = frozenset()) -> dict[LayerKey, dict[str, Found]]:
    """The parts of every layer by role, of the stacks that are as wide as the text tower; towers: and of these."""
    width = w.arch.hidden if w.arch else 0
    left_out = {"vision", "audio"} - towers
    stacks = {s for s, arch in w.layout.archs.items() if arch.hidden == width and s not in left_out}
    layers = w.layers(READERS + WRITERS, stacks)
    return layers if w.exact else {key: layers[key] for key in _thirds(layers)}


def _whole(w: Weights, layers: dict[LayerKey, dict[str, Found]]) -> list[LayerKey]:
    """Of which layers every neuron is kept: of all where that is little, else of two of each stack."""
    neurons = sum(w.shape(*found)[0] for roles in layers.values() for found in roles.get("up", []))
    return list(layers) if neurons <= whole_layers.WHOLE else _thirds(layers)


def _thirds(layers: dict[LayerKey, dict[str, Found]]) -> list[LayerKey]:
    """Of each stack the layers at one and at two thirds of its depth."""
    chosen = []
    for stack in sorted({stack for stack, _ in layers}):
        depth = sorted(layer for s, layer in layers if s == stack)
        chosen += [(stack, depth[i]) for i in sorted({len(depth) // 3, 2 * len(depth) // 3})]
    return chosen


def _layer(w: Weights, anchors: Anchors, key: LayerKey, roles: dict[str, Found], kept: int) -> _Sketched:
    arch = w.layout.archs[key[0]]
    units: dict[str, F64] = {}
    lengths: dict[str, F64] = {}
    for role, found in roles.items():
        if all(_fits(w, role, place, part, arch.hidden) for place, part in found):
            units[role], lengths[role] = _products(w, anchors.stacked(SKETCHED), arch, key, role, found)
    gains = {r: g for r, n in (("q", "norm_q"), ("k", "norm_k")) if (g := w.gains.get((key[0], n, key[1]))) is not None}
    gains = {role: (arch.norm_offset + gain).astype(np.float32) for role, gain in gains.items()}
    relu = arch.activation.startswith("relu")
    views = {role: anchors.split(values) for role, values in units.items()}

    def seen(naming: int, own: F64 | None) -> F64 | None:
        if own is None:
            return None
        mine = {role: np.asarray(view[naming], np.float64) for role, view in views.items()}
        return sketch.full_sketch(sketch.Branches(mine, arch.head_dim, gains, relu), own)

    return (seen(0, anchors.by_string), seen(1, anchors.by_id)), _neurons(w, anchors, arch, key, roles, lengths, kept)


def _fits(w: Weights, role: str, place: Placement, part: Part, width: int) -> bool:
    """Whether a matrix reads or writes the residual stream, with no more units than a model has."""
    rows, columns = w.shape(place, part)
    inside, outside = (columns, rows) if role in READERS else (rows, columns)
    return inside == width and outside <= MAX_UNITS


def _folded(w: Weights, left: F64, arch: Arch, key: LayerKey, role: str) -> tuple[F64, F64]:
    """The anchors with the norm folded in that stands between them and a matrix, and that norm's gain; (k, d), (d,)."""
    gain = w.gain(role, *key)
    if gain is None or gain.size != left.shape[1]:
        return left, np.ones(left.shape[1])
    full = arch.norm_offset + gain.astype(np.float64)
    return left * full, full


def _products(w: Weights, left: F64, arch: Arch, key: LayerKey, role: str, found: Found) -> tuple[F64, F64]:
    """Anchors times the units of a role, (k, units), and their folded lengths, (units,); experts one after another."""
    folded, gain = _folded(w, left, arch, key, role)
    made = [_times(w, folded, gain, arch.norm == "layer", role, place, part) for place, part in found]
    return np.concatenate([p for p, _ in made], axis=1), np.concatenate([n for _, n in made])


def _times(
    w: Weights, left: F64, gain: F64, centered: bool, role: str, place: Placement, part: Part
) -> tuple[F64, F64]:
    rows, columns = w.shape(place, part)
    reads = role in READERS
    out = np.zeros((len(left) + 1, rows if reads else columns))
    energy = np.zeros(out.shape[1])
    wide = np.concatenate([left, gain[None]])  # the last row gives what LayerNorm takes away
    step = max(1, (TURNED if part.transposed else PIECE) // columns)
    for start in range(0, rows, step):
        piece = w.rows(place, part, start, start + step).astype(np.float64)
        stop = start + len(piece)
        if reads:
            out[:, start:stop] = wide @ piece.T
            energy[start:stop] = np.square(piece) @ np.square(gain)
        else:
            out += wide[:, start:stop] @ piece
            energy += np.square(gain[start:stop]) @ np.square(piece)
    if centered:
        energy -= np.square(out[-1]) / len(gain)
    return out[:-1], np.sqrt(np.maximum(energy, 0.0))


def _neurons(
    w: Weights, anchors: Anchors, arch: Arch, key: LayerKey, roles: dict[str, Found], lengths: dict[str, F64], kept: int
) -> _Neurons | None:
    """The neurons with the largest product of the lengths of gate, up and down: what does nothing is not kept."""
    parts = [role for role in ("gate", "up", "down") if role in lengths]
    if parts[-2:] != ["up", "down"] or len({lengths[p].size for p in parts}) > 1:
        return None
    size = np.prod([lengths[p] for p in parts], axis=0)
    if not np.isfinite(size).all():
        return None
    chosen = np.argsort(-size.astype(np.float32), kind="stable")[:kept].astype(np.int64)
    left = anchors.stacked(sketch.ANCHORS_KEPT)
    coordinates = [_chosen(w, left, arch, key, role, roles[role], chosen) for role in parts]
    return _Neurons(
        size.size, chosen, np.stack([lengths[p][chosen] for p in parts], axis=1), np.stack(coordinates, axis=1)
    )


def _chosen(
    w: Weights, left: F64, arch: Arch, key: LayerKey, role: str, found: Found, chosen: NDArray[np.int64]
) -> F64:
    """Anchors times some units of a role, (units, k)."""
    folded, _ = _folded(w, left, arch, key, role)
    out = np.zeros((chosen.size, len(left)))
    first = 0
    for place, part in found:
        units = w.shape(place, part)[role in WRITERS]
        here = np.flatnonzero((chosen >= first) & (chosen < first + units))
        out[here] = _some(w, folded, role, place, part, chosen[here] - first)
        first += units
    return out


def _some(w: Weights, left: F64, role: str, place: Placement, part: Part, units: NDArray[np.int64]) -> F64:
    rows, columns = w.shape(place, part)
    if role in READERS and not part.transposed:
        sources = canonical.source_rows(part, 0, rows)[units]
        ascending = np.argsort(sources, kind="stable")
        picked = w.rows(place, replace(part, rows=sources[ascending]), 0, units.size).astype(np.float64)
        out = np.empty((units.size, len(left)))
        out[ascending] = picked @ left.T
        return out
    out = np.zeros((units.size, len(left)))
    step = max(1, (TURNED if part.transposed else PIECE) // columns)
    for start in range(0, rows, step):
        piece = w.rows(place, part, start, start + step)
        stop = start + len(piece)
        if role in READERS:
            here = np.flatnonzero((units >= start) & (units < stop))
            out[here] = piece[units[here] - start].astype(np.float64) @ left.T
        else:
            out += piece[:, units].astype(np.float64).T @ left[:, start:stop].T
    return out


def _panels(made: dict[LayerKey, _Neurons], anchors: Anchors) -> aligned.NeuronPanels | None:
    if not made:
        return None
    keys = sorted(made)
    parts = max(made[key].lengths.shape[1] for key in keys)
    keys = [key for key in keys if made[key].lengths.shape[1] == parts]
    coordinates = np.concatenate([made[key].coordinates for key in keys])
    halves = [None if v is None else _directions(v) for v in anchors.split(coordinates, axis=2)]
    return aligned.NeuronPanels(
        keys=tuple(keys),
        heights=np.array([made[key].units.size for key in keys], np.int32),
        widths=np.array([made[key].width for key in keys], np.int32),
        units=np.concatenate([made[key].units for key in keys]).astype(np.int32),
        lengths=np.concatenate([made[key].lengths for key in keys]).astype(np.float32),
        by_string=halves[0],
        by_id=halves[1],
    )


def _directions(values: NDArray[np.generic]) -> NDArray[np.int8]:
    """Vectors as directions, 31 for the largest coordinate: cosines of .9995, in 5 bits when compressed.

    One that is not finite becomes zeros.
    """
    wide = np.asarray(values, np.float64)
    top = np.abs(wide).max(axis=-1, keepdims=True)
    good = np.isfinite(top) & (top > 0)
    return np.round(np.where(good, wide, 0.0) * LEVELS / np.where(good, top, 1.0)).astype(np.int8)
