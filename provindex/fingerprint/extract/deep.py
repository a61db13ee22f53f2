"""Deep comparison: from two open models to the neurons that E5 compares (evidence/deep.py).

A few layers of each model are read, their strongest neurons only, piece by piece; at most half a gigabyte of each model
is held, and once more in principal coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.threads import workers
from provindex.evidence import deep
from provindex.evidence.aligned import OTHER_KIND
from provindex.evidence.deep import Neurons
from provindex.models.source import Model
from provindex.roles import canonical
from provindex.roles.canonical import F32, F64
from provindex.roles.names import Arch, Part, Placement, resolve
from provindex.roles.weights import Found, Weights

MAX_LAYERS = 8  # read in full; half of them fit the rotation
MAX_NEURONS = 1_536  # of a layer
MAX_ELEMENTS = 1 << 27  # of all vectors of a model: 512 MB of float32
MAX_WIDTH = 8_192
NARROW = 512  # widths up to which one thread is as fast as several
PIECE = 1 << 22  # elements read at a time
ROLES = ("gate", "up", "down")


def deep_agreement(a: Model, b: Model) -> Outcome:
    """E5 of two models whose weights are at hand: value F3/n on held-out layers, log10_p, chance; or why not.

    Reads the MLPs of at most 8 layers of each, of mixtures of experts those of four experts, and of models of
    different depth the MLPs of all layers once more, to see which correspond. ModelError for matrices that no model
    has.
    """
    sides = [_Tower.of(model) for model in (a, b)]
    for side in sides:
        if isinstance(side, Reason):
            return absent(side)
    ours, theirs = (side for side in sides if isinstance(side, _Tower))
    if ours.width != theirs.width:
        return absent(Reason.of(Code.DEEP_WIDTHS_DIFFER, a=ours.width, b=theirs.width))
    if ours.roles != theirs.roles:
        return absent(OTHER_KIND)
    with _blas_threads(ours.width):
        return _compared(ours, theirs)


def _compared(a: _Tower, b: _Tower) -> Outcome:
    pairs, log10_maps = [(i, i) for i in range(len(a.layers))], 0.0
    if len(a.layers) != len(b.layers):
        pairs, log10_maps = deep.pair_layers(a.signatures(), b.signatures())
    chosen = _evenly(pairs, MAX_LAYERS)
    ours, theirs = a.read([a.layers[i] for i, _ in chosen]), b.read([b.layers[j] for _, j in chosen])
    return deep.deep_test(ours, theirs, log10_maps)


def _blas_threads(width: int) -> AbstractContextManager[object]:
    """One thread for small matrices, where several would wait for each other longer than they compute."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(workers() if width > NARROW else 1, user_api="blas")
    return limits


def _evenly(pairs: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """At most `count` of the pairs, from the middles of equal stretches."""
    count = min(count, len(pairs))
    return [pairs[(2 * i + 1) * len(pairs) // (2 * count)] for i in range(count)]


@dataclass(frozen=True)
class _Tower:
    """The MLPs of a model's main stack. parts: by layer and role, several where a layer has experts."""

    weights: Weights
    arch: Arch
    parts: Mapping[int, Mapping[str, Found]]

    @classmethod
    def of(cls, model: Model) -> _Tower | Reason:
        """The tower of a model, or why it cannot be compared."""
        layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
        places = tuple(p for p in layout.placements.values() if p.weight and model.tensors[p.name].size)
        weights = Weights(model.tensors, layout, places, {}, {})
        arch = weights.arch
        parts = _mlps(weights) if arch else {}
        if arch is None or not parts:
            return Reason.of(Code.DEEP_NO_MLP, model.model_id)
        if arch.hidden > MAX_WIDTH:
            return Reason.of(Code.DEEP_WIDE, model.model_id, width=arch.hidden, limit=MAX_WIDTH)
        return cls(weights, arch, parts)

    @property
    def width(self) -> int:
        return self.arch.hidden

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the MLPs, with or without a gate."""
        return tuple(self.parts[self.layers[0]])

    @cached_property
    def layers(self) -> list[int]:
        return sorted(self.parts)

    def signatures(self) -> F64:
        """Signatures of all layers, (layers, D) float64."""
        return np.stack([deep.signature(self._neurons(layer, deep.SIGNATURE_NEURONS)) for layer in self.layers])

    def read(self, layers: Sequence[int]) -> list[Neurons]:
        """The strongest neurons of some layers, as many of each as memory allows."""
        count = min(MAX_NEURONS, MAX_ELEMENTS // (len(ROLES) * max(len(layers), 1) * self.width))
        return [self._neurons(layer, count) for layer in layers]

    def _neurons(self, layer: int, count: int) -> Neurons:
        """The neurons of a layer with the largest product of lengths, in falling order; dead ones are left out."""
        found = self.parts[layer]
        roles = [role for role in ROLES if role in found]
        lengths = [np.concatenate([self._lengths(layer, role, one) for one in found[role]]) for role in roles]
        with np.errstate(invalid="ignore", over="ignore"):
            strength = np.prod(lengths, axis=0)
        strength[~np.isfinite(strength)] = 0.0
        order = np.argsort(-strength, kind="stable")[:count]
        kept = order[strength[order] > 0]
        rows = tuple(deep.unit(self._vectors(layer, role, found[role], kept)) for role in roles)
        return Neurons(layer, rows, strength[kept])

    def _lengths(self, layer: int, role: str, one: tuple[Placement, Part]) -> F64:
        """(n,) lengths of the folded rows of a reader, or of the folded columns of the writer."""
        rows, columns = self.weights.shape(*one)
        gain, step = self.weights.gain(role, self.weights.layout.main, layer), max(1, PIECE // columns)
        pieces = ((start, self.weights.rows(*one, start, start + step)) for start in range(0, rows, step))
        if role != "down":
            return np.concatenate(
                [np.linalg.norm(canonical.fold(piece, self.arch, gain), axis=1) for _, piece in pieces]
            )
        squares, total = np.zeros(columns), np.zeros(columns)
        for start, piece in pieces:
            folded = self._scaled(piece, gain, start)
            squares += np.square(folded).sum(axis=0)
            total += folded.sum(axis=0)
        centered = squares - np.square(total) / rows if self._centers else squares
        return np.asarray(np.sqrt(np.maximum(centered, 0.0)), np.float64)

    def _vectors(self, layer: int, role: str, found: Found, kept: deep.I64) -> F32:
        """(len(kept), d) float32: folded rows or columns of the neurons kept; experts are counted one after another."""
        gain = self.weights.gain(role, self.weights.layout.main, layer)
        out, first = np.empty((len(kept), self.width), np.float32), 0
        for one in found:
            rows, columns = self.weights.shape(*one)
            size, step = (columns if role == "down" else rows), max(1, PIECE // columns)
            here = np.flatnonzero((kept >= first) & (kept < first + size))
            wanted = kept[here] - first
            for start in range(0, rows, step):
                piece = self.weights.rows(*one, start, start + step)
                if role == "down":
                    out[here, start : start + len(piece)] = self._scaled(piece[:, wanted], gain, start).T
                    continue
                inside = (wanted >= start) & (wanted < start + len(piece))
                out[here[inside]] = canonical.fold(piece[wanted[inside] - start], self.arch, gain)
            first += size
        return out - out.mean(axis=1, keepdims=True) if role == "down" and self._centers else out

    @property
    def _centers(self) -> bool:
        """Whether the norms of this model do not see the mean over residual coordinates."""
        return self.arch.norm == "layer" and self.arch.norm_place != "branch_out"

    def _scaled(self, piece: F32, gain: F32 | None, start: int) -> F64:
        """Rows of the writer, from row `start` on, times the gain of the norm that closes the branch."""
        wide = piece.astype(np.float64)
        if gain is None or gain.size != self.width:
            return wide
        return wide * (self.arch.norm_offset + gain[start : start + len(piece)].astype(np.float64))[:, None]


def _mlps(weights: Weights) -> dict[int, dict[str, Found]]:
    """The MLPs of the main stack whose matrices fit together, by layer and role."""
    width = weights.arch.hidden if weights.arch else 0
    found = weights.layers(ROLES, (weights.layout.main,))
    return {layer: roles for (_, layer), roles in found.items() if _fits(weights, roles, width)}


def _fits(weights: Weights, roles: Mapping[str, Found], width: int) -> bool:
    """Whether up, down and gate (if there is one) have one number of neurons and the width of the residual stream."""
    if "up" not in roles or "down" not in roles:
        return False
    sizes = []
    for role, found in roles.items():
        shapes = [weights.shape(place, part) for place, part in found]
        shapes = [shape[::-1] if role == "down" else shape for shape in shapes]
        if any(shape[1] != width for shape in shapes):
            return False
        sizes.append([(part.expert, shape[0]) for (_, part), shape in zip(found, shapes, strict=True)])
    return all(size == sizes[0] for size in sizes)
