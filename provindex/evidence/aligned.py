"""E3, triple agreement: neurons are found again after their order, their basis and their scale were changed.

A neuron is described by its gate row, its up row and its down column in anchor coordinates, which no change of the
residual basis touches. Each of the three is matched to the other model on its own; by chance, three independent
matchings hardly ever name the same neuron. Assignment of units as evidence: AWM (arXiv 2510.06738).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Panel, Row, Test, array, number, some, split
from provindex.evidence.exact import monotone_matching
from provindex.evidence.pairing import Pairing
from provindex.evidence.panels import signs
from provindex.evidence.sketch import ANCHORS_KEPT, BranchSketches, LayerKey, layer_keys, similarities
from provindex.roles.canonical import F64

NEURONS = 512  # at most, of one layer
TOTAL = 1_536  # about, of one model: as many layers share them
FEWEST = 64  # of one layer, however many layers there are
MIN_NEURONS = 32  # fewer in common can hardly tell anything
NO_NEURONS = Reason.of(Code.SIDE_WITHOUT_NEURONS)
TIED = Reason.of(Code.NEURONS_TIED)
# Of a layer's neurons that are their own nearest by another part; in most layers of real models .1 to .4.
TIED_SHARE = 0.6
LEFT_NEURONS, LEFT_LAYERS = 256, 0.25  # neurons, and share of the layers, that must be left without the tied layers
ROTATIONS = 16  # of one side's anchor coordinates, tried where a count is significant
WORTH_ROTATING = -3.0  # log10 p by the in-degrees, above which none is tried
PLAIN = 0.5  # share of neurons, from which on none is tried: tied layers are left out
OTHER_KIND = Reason.of(Code.MLP_KINDS_DIFFER)

I64 = NDArray[np.int64]
LayerKeys = tuple[LayerKey, LayerKey]
Naming = tuple[BranchSketches | None, BranchSketches | None]  # sketches of A and of B under one naming of the anchors
LayerMaps = Mapping[str, Sequence[Sequence[LayerKeys]]]


def neurons_kept(layers: int) -> int:
    """How many neurons of each layer are kept of a model of so many layers."""
    return min(NEURONS, max(FEWEST, TOTAL // max(layers, 1)))


@dataclass(frozen=True)
class NeuronPanels:
    """The largest neurons of each layer, in anchor coordinates.

    keys: (stack, layer). heights: (T,) int32, neurons kept of each, largest first; widths: (T,) int32, neurons that it
    has. units: (N,) int32, where each stands in
    its layer. lengths: (N, P) float32 row (column) lengths: of gate, up and down (P = 3), or of up and down (P = 2).
    by_string, by_id: (N, P, 64) int8 directions (largest coordinate 31) in the coordinates of the anchors found by
    their string, and of those at fixed token ids; None where the model has no such anchors.
    """

    keys: tuple[LayerKey, ...]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    units: NDArray[np.int32]
    lengths: NDArray[np.float32]
    by_string: NDArray[np.int8] | None
    by_id: NDArray[np.int8] | None

    @property
    def parts(self) -> int:
        """3 for MLPs with a gate, 2 without."""
        return int(self.lengths.shape[1])

    @cached_property
    def places(self) -> dict[LayerKey, slice]:
        """Where each layer's neurons lie."""
        stops = np.cumsum(self.heights).tolist()
        starts = [0, *stops[:-1]]
        return {key: slice(start, stop) for key, start, stop in zip(self.keys, starts, stops, strict=True)}

    def turned(self, order: I64, flips: NDArray[np.int8]) -> NeuronPanels:
        """The same neurons in rotated anchor coordinates: another order, (64,), and signs of -1 and 1, (64,)."""
        turned = (None if values is None else values[..., order] * flips for values in (self.by_string, self.by_id))
        by_string, by_id = turned
        return replace(self, by_string=by_string, by_id=by_id)

    @cached_property
    def tied(self) -> frozenset[LayerKey]:
        """Layers in which parts of a neuron are alike (down is up transposed, gate is up): strangers agree there."""
        found = set()
        for seen, live in self._seen.values():
            for key, numbers in live.items():
                units = seen[numbers]
                for i in range(self.parts - 1 if len(units) > 1 else 0):
                    alike = np.abs(units[:, i] @ units[:, i + 1].T).argmax(axis=1)
                    if float((alike == np.arange(len(units))).mean()) > TIED_SHARE:
                        found.add(key)
        return frozenset(found)

    @cached_property
    def too_tied(self) -> bool:
        """Whether so many layers are tied that the others say too little of the model."""
        left = [height for key, height in zip(self.keys, self.heights, strict=True) if key not in self.tied]
        return bool(self.tied) and (sum(left) < LEFT_NEURONS or len(left) < LEFT_LAYERS * len(self.keys))

    def live(self, naming: str, key: LayerKey) -> I64:
        """Numbers of a layer's neurons of which no part is zero."""
        return self._seen[naming][1][key]

    def directions(self, naming: str) -> NDArray[np.float32]:
        """All neurons under a naming that the model has, (N, P, 64) float32 unit vectors; zeros stay zeros."""
        return self._seen[naming][0]

    @cached_property
    def _seen(self) -> dict[str, tuple[NDArray[np.float32], dict[LayerKey, I64]]]:
        seen = {}
        for naming, kept in (("by_string", self.by_string), ("by_id", self.by_id)):
            if kept is not None:
                values = kept.astype(np.float32)
                lengths = np.sqrt((values**2).sum(axis=-1, keepdims=True))
                numbers = np.flatnonzero((lengths > 0).all(axis=(1, 2)))
                live = {key: numbers[(numbers >= at.start) & (numbers < at.stop)] for key, at in self.places.items()}
                seen[naming] = np.asarray(values / np.where(lengths > 0, lengths, 1), np.float32), live
        return seen


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


def triple_agreement(a: NeuronPanels | None, b: NeuronPanels | None, maps: LayerMaps) -> AlignedResult:
    """E3 over some layer maps; value: share of neurons on which the matchings agree, of those that could.

    maps: by naming of the anchors, each map a list of (layer of A, layer of B). The p-value pays for all of them.
    """
    if a is None or b is None:
        return AlignedResult(absent(NO_NEURONS))
    if a.parts != b.parts:
        return AlignedResult(absent(OTHER_KIND))
    if a.too_tied or b.too_tied:
        return AlignedResult(absent(TIED))
    tried = [(naming, pairs) for naming in namings(a, b) for pairs in maps.get(naming, ()) if pairs]
    results = [(_result(agreements(a, b, *one), len(tried)), one) for one in tried]
    results = [(r, one) for r, one in results if r.outcome.value is not None]
    if not results:
        return AlignedResult(absent(Reason.of(Code.COMMON_NEURONS_FEW, needed=MIN_NEURONS)))
    best, (naming, pairs) = min(results, key=lambda r: (r[0].outcome.log10_p or 0.0, -(r[0].outcome.value or 0.0)))
    if (best.outcome.log10_p or 0.0) > WORTH_ROTATING or (best.outcome.value or 0.0) >= PLAIN:
        return best
    turned = [both for turn in turns() for both in ((a.turned(*turn), b), (a, b.turned(*turn)))]
    return _result(best.agreements, len(tried), max(_count(*both, naming, pairs) for both in turned))


def _count(a: NeuronPanels, b: NeuronPanels, naming: str, pairs: Sequence[LayerKeys]) -> int:
    return sum(f.rows.size for f in agreements(a, b, naming, pairs))


def _result(found: Sequence[Agreement], tried: int, by_chance: int = 0) -> AlignedResult:
    """by_chance: the most neurons that were found after a rotation of the anchor coordinates of one side."""
    n = sum(f.n for f in found)
    if n < MIN_NEURONS:
        return AlignedResult(absent(NO_NEURONS))
    count, expected = sum(f.rows.size for f in found), max(by_chance, sum(f.expected for f in found))
    log10_p = min(0.0, log10_poisson_tail(count, expected) + math.log10(tried))
    return AlignedResult(Outcome(count / n, n, log10_p, min(1.0, expected / n)), tuple(found))


@lru_cache(maxsize=1)
def turns() -> list[tuple[I64, NDArray[np.int8]]]:
    """Fixed rotations of the 64 anchor coordinates: an order and signs, (64,) each.

    A rotation of one side keeps what neurons are like among themselves (parts that are alike, a direction that all
    share) and takes away which is which: what is still found is found by chance.
    """
    flips = signs("neurons/signs", ROTATIONS, ANCHORS_KEPT)
    bits = signs("neurons/order", ROTATIONS * ANCHORS_KEPT, 32) > 0
    weights = (bits @ (1 << np.arange(32, dtype=np.int64))).reshape(ROTATIONS, ANCHORS_KEPT)
    return [(np.argsort(row, kind="stable"), own) for row, own in zip(weights, flips, strict=True)]


def agreements(a: NeuronPanels, b: NeuronPanels, naming: str, pairs: Sequence[LayerKeys]) -> list[Agreement]:
    """Match the neurons of each (layer of A, layer of B) by each of their parts, both ways; the smaller count is taken.

    naming: "by_string" or "by_id", which both must have. A gate has a sign; up and down may both have been negated.
    Pairs of layers that one model lacks, or whose neurons have parts that are alike, are left out.
    """
    alike: dict[tuple[int, int], list[LayerKeys]] = {}
    for x, y in pairs:
        if x in a.places and y in b.places and x not in a.tied and y not in b.tied:
            alike.setdefault((len(a.live(naming, x)), len(b.live(naming, y))), []).append((x, y))
    return [found for group in alike.values() for found in _alike(a, b, naming, group)]


def _alike(a: NeuronPanels, b: NeuronPanels, naming: str, pairs: Sequence[LayerKeys]) -> list[Agreement]:
    """Agreements of pairs of layers that all have n live neurons in A and m in B."""
    ours, theirs = (
        [p.live(naming, key) for key in keys] for p, keys in zip((a, b), zip(*pairs, strict=True), strict=True)
    )
    if not ours[0].size or not theirs[0].size:
        empty = np.zeros(0, np.int64)
        return [Agreement(x, y, empty, empty, 0, 0.0, empty, empty) for x, y in pairs]
    left, right = a.directions(naming)[np.stack(ours)], b.directions(naming)[np.stack(theirs)]
    scores = left.transpose(0, 2, 1, 3) @ right.transpose(0, 2, 3, 1)  # (pairs, parts, n, m)
    scores[:, -2:] = np.abs(scores[:, -2:])
    forward, expected = _agreeing(scores.argmax(axis=3), right.shape[1])
    backward, expected_back = _agreeing(scores.argmax(axis=2), left.shape[1])
    out = []
    for i, (x, y) in enumerate(pairs):
        rows = np.flatnonzero(forward[i])
        columns = scores[i, -1, rows].argmax(axis=1) if rows.size else rows
        if backward[i].sum() < rows.size:
            columns = np.flatnonzero(backward[i])
            rows = scores[i, -1][:, columns].argmax(axis=0) if columns.size else columns
        rows, columns = ours[i][rows], theirs[i][columns]
        n, chance = min(left.shape[1], right.shape[1]), float(max(expected[i], expected_back[i]))
        units = a.units[rows].astype(np.int64), b.units[columns].astype(np.int64)
        out.append(Agreement(x, y, rows - a.places[x].start, columns - b.places[y].start, n, chance, *units))
    return out


def _agreeing(matchings: I64, targets: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Where all matchings name one target, (pairs, n), and how many would if they were drawn apart, (pairs,).

    matchings: (pairs, parts, n). lambda = sum over targets of the product of in-degrees / n^(parts - 1).
    """
    pairs, parts, n = matchings.shape
    same = (matchings == matchings[:, :1]).all(axis=1)
    offsets = np.arange(pairs * parts).reshape(pairs, parts, 1) * targets
    counts = np.bincount((matchings + offsets).ravel(), minlength=pairs * parts * targets)
    products = counts.reshape(pairs, parts, targets).astype(np.float64).prod(axis=1)
    return same, products.sum(axis=1) / float(n) ** (parts - 1)


def layer_maps(a: NeuronPanels | None, b: NeuronPanels | None, sketches: Mapping[str, Naming]) -> LayerMaps:
    """Maps worth trying under each naming of the anchors: layer l to layer l, and the best order-preserving one by the
    sketches (of A and of B, by naming), stack by stack.
    """
    if a is None or b is None:
        return {}
    identity = [(key, key) for key in a.keys if key in b.places]
    maps = {}
    for naming, (ours, theirs) in sketches.items():
        best = _by_sketch(ours, theirs) if ours is not None and theirs is not None else []
        maps[naming] = [identity] if best == identity else [identity, best]
    return maps


def _by_sketch(a: BranchSketches, b: BranchSketches) -> list[LayerKeys]:
    scores: F64 = similarities(a, b)
    out: list[LayerKeys] = []
    for stack in sorted({s for s, _ in a.keys} & {s for s, _ in b.keys}):
        rows = [i for i, (s, _) in enumerate(a.keys) if s == stack]
        columns = [j for j, (s, _) in enumerate(b.keys) if s == stack]
        for i, j in monotone_matching(scores[np.ix_(rows, columns)]):
            out.append((a.keys[rows[i]], b.keys[columns[j]]))
    return out


# --- the table row ---

MAX_WIDTH, MAX_LAYERS = 1 << 24, 1 << 13  # neurons of a layer (experts in all), layers: more than any model has


def _to_row(n: NeuronPanels) -> Row:
    return {
        "neuron_keys": [f"{stack}/{layer}" for stack, layer in n.keys],
        "neuron_heights": n.heights, "neuron_widths": n.widths, "neuron_parts": n.parts, "neuron_units": n.units,
        "neuron_lengths": n.lengths, "neurons": n.by_string, "neurons_by_id": n.by_id,
    }  # fmt: skip


def _of_row(row: Mapping[str, Any]) -> NeuronPanels | None:
    keys, parts, units = layer_keys(row["neuron_keys"]), row["neuron_parts"], row["neuron_units"]
    if not keys:
        return None
    if parts not in (2, 3) or len(keys) != row["neuron_heights"].size:
        raise ValueError("neuron panels whose counts do not fit together")
    widths = row["neuron_widths"]
    if widths.size != len(keys) or (widths < row["neuron_heights"]).any() or (widths > MAX_WIDTH).any():
        raise ValueError("neuron panels of more neurons than their layers, or any layer, has")
    for own, width in zip(split(units, row["neuron_heights"]), widths, strict=True):
        if np.unique(own).size != own.size or ((own < 0) | (own >= width)).any():
            raise ValueError("neurons that stand outside of their layer, or twice in it")
    if (row["neuron_heights"] > NEURONS).any():
        raise ValueError(f"more than {NEURONS} neurons of a layer")
    shape = (units.size, parts, ANCHORS_KEPT)
    by_string, by_id = (
        None if (values := some(row[name])) is None else values.reshape(shape) for name in ("neurons", "neurons_by_id")
    )
    return NeuronPanels(
        keys=keys,
        heights=row["neuron_heights"],
        widths=row["neuron_widths"],
        units=units,
        lengths=row["neuron_lengths"].reshape(units.size, parts),
        by_string=by_string,
        by_id=by_id,
    )


def _run(pair: Pairing) -> Outcome:
    """E3 over the layer maps of a pair."""
    a, b = pair.a.neurons, pair.b.neurons
    return triple_agreement(a, b, layer_maps(a, b, pair.namings)).outcome


MOST = 1 << 20  # neurons of a model that are kept: far more than 2,048, or 64 of each layer
PANEL = Panel(
    "neurons",
    (
        array("neuron_keys", "string", "neuron panels: stack/layer", MAX_LAYERS),
        array("neuron_heights", "int32", "neuron panels: neurons of each layer", MAX_LAYERS),
        array("neuron_widths", "int32", "neuron panels: neurons that each layer has", MAX_LAYERS),
        number("neuron_parts", "neuron panels: 3 (gate, up, down) or 2 (up, down); 0 without any"),
        array("neuron_units", "int32", "neuron panels: where each neuron stands in its layer", MOST),
        array("neuron_lengths", "float32", "neuron panels: lengths of its parts", 3 * MOST),
        array("neurons", "int8", "neuron panels: parts by 64 anchor coordinates at strings", 3 * ANCHORS_KEPT * MOST),
        array("neurons_by_id", "int8", "the same at fixed token ids", 3 * ANCHORS_KEPT * MOST),
    ),
    to_row=_to_row,
    from_row=_of_row,
    extract=lambda w: w.made.get("neurons"),
)
TEST = Test("triple_agreement", _run, "aligned", "neurons", (PANEL,))
