"""E3, triple agreement: neurons are found again after their order, their basis and their scale were changed.

A neuron is described by its gate row, its up row and its down column in anchor coordinates, which no change of the
residual basis touches. Each of the three is matched to the other model on its own; by chance, three independent
matchings hardly ever name the same neuron. Assignment of units as evidence: AWM (arXiv 2510.06738).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.canonical import F64
from provindex.evidence.exact import Outcome, absent, monotone_matching
from provindex.evidence.sketch import BranchSketches, LayerKey, similarities

NEURONS = 512  # at most, of one layer
TOTAL = 2_048  # about, of one model: as many layers share them
FEWEST = 64  # of one layer, however many layers there are
MIN_NEURONS = 32  # fewer in common can hardly tell anything
NO_NEURONS = "no MLP neurons in anchor coordinates in one of the models"
OTHER_KIND = "the MLPs are of different kinds (with and without a gate)"

I64 = NDArray[np.int64]


def neurons_kept(layers: int) -> int:
    """How many neurons of each layer are kept of a model of so many layers."""
    return min(NEURONS, max(FEWEST, TOTAL // max(layers, 1)))


@dataclass(frozen=True)
class NeuronPanels:
    """The largest neurons of each layer, in anchor coordinates.

    keys: (stack, layer). heights: (T,) int32, neurons of each, largest first. units: (N,) int32, where each stands in
    its layer. lengths: (N, P) float32 row (column) lengths: of gate, up and down (P = 3), or of up and down (P = 2).
    by_string, by_id: (N, P, 64) int8 directions (largest coordinate 31) in the coordinates of the anchors found by
    their string, and of those at fixed token ids; None where the model has no such anchors.
    """

    keys: tuple[LayerKey, ...]
    heights: NDArray[np.int32]
    units: NDArray[np.int32]
    lengths: NDArray[np.float32]
    by_string: NDArray[np.int8] | None
    by_id: NDArray[np.int8] | None

    @property
    def parts(self) -> int:
        """3 for MLPs with a gate, 2 without."""
        return int(self.lengths.shape[1])

    def span(self, key: LayerKey) -> slice:
        """Where a layer's neurons lie."""
        at = self.keys.index(key)
        start = int(self.heights[:at].sum())
        return slice(start, start + int(self.heights[at]))


@dataclass(frozen=True)
class Agreement:
    """Neurons of one pair of layers on which all matchings agree.

    rows, columns: their numbers among the kept neurons of A and of B; units_a, units_b: where they stand in their
    layers. n: neurons that could have agreed. expected: how many would by chance.
    """

    a: LayerKey
    b: LayerKey
    rows: I64
    columns: I64
    n: int
    expected: float
    units_a: I64
    units_b: I64

    @property
    def share(self) -> float:
        return self.rows.size / self.n if self.n else 0.0

    @property
    def log10_p(self) -> float:
        return log10_poisson_tail(self.rows.size, self.expected)


@dataclass(frozen=True)
class AlignedResult:
    """E3 of a pair, and the agreements of the better layer map under the better naming of the anchors."""

    outcome: Outcome
    agreements: tuple[Agreement, ...] = ()


def namings(a: NeuronPanels, b: NeuronPanels) -> list[str]:
    """The namings of the anchors that both have: "by_string", "by_id"."""
    return [n for n in ("by_string", "by_id") if getattr(a, n) is not None and getattr(b, n) is not None]


def log10_poisson_tail(k: int, mean: float) -> float:
    """log10 of a bound on P(X >= k) for a Poisson variable: its first term times a geometric series; 0 if k <= mean."""
    if k <= mean or k == 0:
        return 0.0
    first = k * math.log(mean) - mean - math.lgamma(k + 1) if mean > 0 else -math.inf
    return min(0.0, (first - math.log1p(-mean / (k + 1))) / math.log(10)) if mean > 0 else -math.inf


def triple_agreement(
    a: NeuronPanels | None, b: NeuronPanels | None, maps: Sequence[Sequence[tuple[LayerKey, LayerKey]]]
) -> AlignedResult:
    """E3 over some layer maps; value: share of neurons on which the matchings agree, of those that could.

    maps: each a list of (layer of A, layer of B). The p-value pays for all maps and for both namings of the anchors.
    """
    if a is None or b is None:
        return AlignedResult(absent(NO_NEURONS))
    if a.parts != b.parts:
        return AlignedResult(absent(OTHER_KIND))
    tried = [found for naming in namings(a, b) for pairs in maps if (found := _agreements(a, b, naming, pairs))]
    results = [_result(found, len(tried)) for found in tried]
    results = [r for r in results if r.outcome.value is not None]
    if not results:
        return AlignedResult(absent("fewer than 32 neurons in common, or no anchors that both models have"))
    return min(results, key=lambda r: (r.outcome.log10_p or 0.0, -(r.outcome.value or 0.0)))


def _result(found: Sequence[Agreement], tried: int) -> AlignedResult:
    n = sum(f.n for f in found)
    if n < MIN_NEURONS:
        return AlignedResult(absent(NO_NEURONS))
    count, expected = sum(f.rows.size for f in found), sum(f.expected for f in found)
    log10_p = min(0.0, log10_poisson_tail(count, expected) + math.log10(tried))
    return AlignedResult(Outcome(count / n, n, log10_p, min(1.0, expected / n)), tuple(found))


def _agreements(
    a: NeuronPanels, b: NeuronPanels, naming: str, pairs: Sequence[tuple[LayerKey, LayerKey]]
) -> list[Agreement]:
    there, here = set(a.keys), set(b.keys)
    return [agreement(a, b, naming, x, y) for x, y in pairs if x in there and y in here]


def agreement(a: NeuronPanels, b: NeuronPanels, naming: str, x: LayerKey, y: LayerKey) -> Agreement:
    """Match the neurons of layer x of A and y of B by each of their parts, both ways; the smaller count is taken.

    naming: "by_string" or "by_id", which both must have. A gate has a sign; up and down may both have been negated.
    """
    units = [p.units[p.span(key)].astype(np.int64) for p, key in ((a, x), (b, y))]
    values = [getattr(p, naming)[p.span(key)].astype(np.float32) for p, key in ((a, x), (b, y))]
    live = [np.flatnonzero((v != 0).any(axis=2).all(axis=1)) for v in values]
    left, right = (_unit(v[i]) for v, i in zip(values, live, strict=True))
    rows, columns, expected = _found(left, right)
    rows, columns = live[0][rows], live[1][columns]
    n = min(len(left), len(right))
    return Agreement(x, y, rows, columns, n, expected, units[0][rows], units[1][columns])


def _found(left: NDArray[np.float32], right: NDArray[np.float32]) -> tuple[I64, I64, float]:
    """Rows and columns on which all matchings agree, and how many would by chance; (neurons, parts, anchors) each."""
    if not len(left) or not len(right):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0
    parts = left.shape[1]
    scores = [left[:, p] @ right[:, p].T for p in range(parts)]
    scores[-2:] = [np.abs(s) for s in scores[-2:]]
    forward, expected = _agreeing([s.argmax(axis=1) for s in scores], len(right))
    backward, expected_back = _agreeing([s.argmax(axis=0) for s in scores], len(left))
    expected = max(expected, expected_back)
    if backward.size < forward.size:
        return scores[-1][:, backward].argmax(axis=0), backward, expected
    return forward, scores[-1][forward].argmax(axis=1), expected


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(values / np.sqrt((values**2).sum(axis=-1, keepdims=True)), np.float32)


def _agreeing(matchings: Sequence[I64], targets: int) -> tuple[I64, float]:
    """Rows on which all matchings name one target, and how many would if they were drawn apart.

    lambda = sum over targets of the product of in-degrees / n^(matchings - 1).
    """
    same = [i for i, named in enumerate(zip(*(m.tolist() for m in matchings), strict=True)) if len(set(named)) == 1]
    counts = np.ones(targets)
    for matching in matchings:
        counts *= np.bincount(matching, minlength=targets)
    n = matchings[0].size
    return np.array(same, np.int64), float(counts.sum() / n ** (len(matchings) - 1))


def layer_maps(
    a: NeuronPanels, b: NeuronPanels, sketches: Sequence[tuple[BranchSketches | None, BranchSketches | None]]
) -> list[list[tuple[LayerKey, LayerKey]]]:
    """Maps worth trying: layer l to layer l, and for each naming of the anchors the best order-preserving map by the
    sketches, stack by stack.
    """
    maps = [[(key, key) for key in a.keys if key in set(b.keys)]]
    for ours, theirs in sketches:
        if ours is not None and theirs is not None:
            maps.append(_by_sketch(ours, theirs))
    unique: list[list[tuple[LayerKey, LayerKey]]] = []
    for pairs in maps:
        if pairs and pairs not in unique:
            unique.append(pairs)
    return unique


def _by_sketch(a: BranchSketches, b: BranchSketches) -> list[tuple[LayerKey, LayerKey]]:
    scores: F64 = similarities(a, b)
    out: list[tuple[LayerKey, LayerKey]] = []
    for stack in sorted({s for s, _ in a.keys} & {s for s, _ in b.keys}):
        rows = [i for i, (s, _) in enumerate(a.keys) if s == stack]
        columns = [j for j, (s, _) in enumerate(b.keys) if s == stack]
        for i, j in monotone_matching(scores[np.ix_(rows, columns)]):
            out.append((a.keys[rows[i]], b.keys[columns[j]]))
    return out
