"""E1 and E1z where the roles of a model's matrices are inferred from their shapes: any block may be any other's.

Units are the same as in `hidden_units`: those of MLPs, by their first rows. What names do not say is tried and paid
for: which layer is which (any injection of the smaller model's blocks into the larger's), which of gate and up is
first, whether a matrix is stored as (in, out). A union bound over all of it is what a p-value costs; of two models with
layer numbers the map of equal numbers is tried besides, for less.
Null. As for E1: units of a layer are exchangeable, and each block counts once. Where neither model has layers, gate and
up are blocks of their own and share one permutation, so that fixed points count half and the variance doubles.
It finds links. It never clears a pair: nothing says that the right reading was among those that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from provindex.evidence.exact import F64, Places, log10_alignment, log10_places, ranked
from provindex.evidence.panels import ALONE, UNNAMED, HiddenPanels, repeated

SHARING = 2  # matrices whose units share one permutation, where layers are unknown
Map = list[tuple[int, int]]  # panels of A and of B


@dataclass(frozen=True, slots=True)
class Unnamed:
    """What a map of blocks says. points: fixed points; blocks, rows: compared; values as those of E1 and E1z."""

    points: int
    excess: float
    sizes: tuple[int, ...]
    log10_fixed: float
    log10_aligned: float


@dataclass(frozen=True)
class _Side:
    """blocks: the readings of each, as numbers of panels. layers: their numbers; None if these say nothing."""

    panels: HiddenPanels
    blocks: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...] | None

    @property
    def readings(self) -> int:
        return max(map(len, self.blocks), default=1)


def has_inferred(panels: HiddenPanels | None) -> bool:
    """Whether a model's units were found without names."""
    return panels is not None and any(key.stack == UNNAMED for key in panels.keys)


def unnamed_units(a: HiddenPanels, b: HiddenPanels, stacks: frozenset[str]) -> Unnamed | None:
    """The better of both maps of two models of one width; None where they have no block in common."""
    both = has_inferred(a) and has_inferred(b)
    left, right = (_side(panels, stacks, both) for panels in (a, b))
    if not left.blocks or not right.blocks:
        return None
    scores, readings = _scores(left, right)
    maps = [_any_map(scores, readings, left.readings * right.readings)]
    if left.layers is not None and right.layers is not None:
        maps.append(_same_numbers(left, right, readings))
    shared = SHARING if left.layers is None and right.layers is None else 1
    tried = math.log10(len(maps))
    found = [_measured(left, right, pairs, cost + tried, shared) for pairs, cost in maps if pairs]
    return min(found, key=lambda one: min(one.log10_fixed, one.log10_aligned), default=None)


def _side(panels: HiddenPanels, stacks: frozenset[str], both: bool) -> _Side:
    """The MLPs of a model: every panel of a named one alone, of an inferred one the readings of a block together.

    Blocks that repeat an earlier one share its permutation, and are left out; of an inferred model only if the other is
    inferred too (both), because the permutations of a named one suffice.
    """
    inferred = has_inferred(panels)
    found: dict[tuple[str, int, int], list[int]] = {}
    for number, key in enumerate(panels.keys):
        if inferred and key.stack == UNNAMED:
            found.setdefault((key.stack, key.layer, 0), []).append(number)
        elif not inferred and key.kind == "mlp" and key.stack in stacks:
            found.setdefault((key.stack, key.layer, key.expert), []).append(number)
    first = [(numbers[0], 0, int(panels.heights[numbers[0]])) for numbers in found.values()]
    again = {number for number, _ in repeated(panels, first)} if both or not inferred else set()
    kept = {at: tuple(numbers) for at, numbers in found.items() if numbers[0] not in again}
    layers = tuple(layer for _, layer, _ in kept)
    alone = inferred and any(key.kind in ALONE for key in panels.keys)
    told = not alone and len(set(layers)) == len(layers)
    return _Side(panels, tuple(kept.values()), layers if told else (None if alone else ()))


def _scores(left: _Side, right: _Side) -> tuple[F64, list[list[tuple[int, int]]]]:
    """Mean cosine of units at equal places under the best reading, for all blocks, and that reading's panels."""
    height = min(left.panels.values.shape[1], right.panels.values.shape[1])
    ours, theirs = ([n for block in side.blocks for n in block] for side in (left, right))
    x, y = (side.panels.values[n, :height].astype(np.float32) for side, n in ((left, ours), (right, theirs)))
    flat = x.reshape(len(ours), -1) @ y.reshape(len(theirs), -1).T / height - x.mean(axis=1) @ y.mean(axis=1).T
    rows, columns = _starts(left), _starts(right)
    scores = np.zeros((len(left.blocks), len(right.blocks)))
    readings: list[list[tuple[int, int]]] = []
    for i, (start, stop) in enumerate(rows):
        readings.append([])
        for j, (first, last) in enumerate(columns):
            here = flat[start:stop, first:last]
            at, to = divmod(int(here.argmax()), last - first)
            scores[i, j] = here[at, to]
            readings[-1].append((ours[start + at], theirs[first + to]))
    return scores, readings


def _starts(side: _Side) -> list[tuple[int, int]]:
    ends = np.cumsum([len(block) for block in side.blocks]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def _any_map(scores: F64, readings: Sequence[Sequence[tuple[int, int]]], tries: int) -> tuple[Map, float]:
    """Blocks that are nearest, each once, the nearest first; and log10 of how many maps and readings there are."""
    rows, columns = np.ones(scores.shape[0], np.bool_), np.ones(scores.shape[1], np.bool_)
    pairs: Map = []
    for at in np.argsort(-scores, axis=None, kind="stable").tolist():
        i, j = divmod(at, scores.shape[1])
        if scores[i, j] <= 0:
            break
        if rows[i] and columns[j]:
            rows[i] = columns[j] = False
            pairs.append(readings[i][j])
    fewer, more = sorted(scores.shape)
    return pairs, fewer * math.log10(1 + more * tries)


def _same_numbers(left: _Side, right: _Side, readings: Sequence[Sequence[tuple[int, int]]]) -> tuple[Map, float]:
    there = {layer: j for j, layer in enumerate(right.layers or ())}
    pairs = [readings[i][there[layer]] for i, layer in enumerate(left.layers or ()) if layer in there]
    return pairs, len(pairs) * math.log10(left.readings * right.readings)


def _blocks(left: _Side, right: _Side, pairs: Map) -> Iterator[F64]:
    """Similarities of the units of each pair of panels that are not zero in either."""
    for i, j in pairs:
        height = int(min(left.panels.heights[i], right.panels.heights[j]))
        x, y = (s.panels.values[n, :height].astype(np.float64) for s, n in ((left, i), (right, j)))
        live = np.logical_and(x.any(axis=1), y.any(axis=1))
        if live.sum() > 1:
            yield x[live] @ y[live].T


def _measured(left: _Side, right: _Side, pairs: Map, cost: float, shared: int) -> Unnamed:
    counts = np.zeros(4, np.int64)
    excess = variance = squares = 0.0
    sizes = []
    for similarity in _blocks(left, right, pairs):
        m = len(similarity)
        found = ranked(similarity[None])
        counts += np.array(found.places, np.int64)
        excess, squares = excess + float(found.excess[0]), squares + shared * float(found.squares[0])
        variance += shared * m * m * (m + 1) / 12
        sizes.append(m)
    once = Places(*(-(-counts // shared)).tolist())
    fixed = log10_places(once, len(sizes)) + math.log10(shared) + cost
    aligned = (log10_alignment(excess, max(variance, squares)) if sizes else 0.0) + cost
    return Unnamed(Places(*counts.tolist()).most, excess, tuple(sizes), min(0.0, fixed), min(0.0, aligned))
