"""E7, neuron invariants: do two models have the same neurons, without tokens, names, a common basis or equal widths?

Each neuron of one model is matched to the nearest of the other by some of its invariants (lengths, and the angle of
gate and up), and tested on those that were held out. A held-out number that the matching ones predict would agree
between strangers, so what they predict is taken off before, and what the next nearest neurons have as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Test
from provindex.evidence.aligned import TIED, WORTH_ROTATING
from provindex.evidence.exact import LOG10_THRESHOLD, log10_normal_tail
from provindex.evidence.pairing import Pairing
from provindex.evidence.sketch import LayerKey
from provindex.evidence.vectors import mean_ranks
from provindex.evidence.whole_layers import F64, WholeLayers, elsewhere_pairs, layer_pairs, picked, sides_of

MATCHED = 512  # neurons of a layer that are matched
MIN_NEURONS = 48  # of a layer; fewer are hardly matched right
AT_ONCE = 1 << 18  # distances at a time: 2 MB, which stay in cache
NEAR = 50  # neurons around one whose held-out numbers are what any neuron like it has
WORTH_LOOKING = -1.0  # log10 p by the nearest neurons alone, above which those around them are not looked at
BUILT_ALIKE = 4.0  # z of layers that do not correspond, above which the numbers follow from each other
ROUNDED = 0.004  # between the quartiles of a held-out number: less, and rounding is what is left of it
MATCHING = {5: 3, 3: 2}  # of so many numbers, how many match; the others are held out

I64 = NDArray[np.int64]
Nearest = tuple[I64, F64 | None]  # the nearest neuron of each, and the mean of the held-out numbers around it
Found = tuple[float, float, int]  # z, mean correlation, neurons


@dataclass(frozen=True)
class Prepared:
    """The neurons of a layer. match: (n, 3 or 2) centred and scaled numbers to match by. held: (n, 2 or 1) held-out
    ranks, without what the matching numbers predict.
    """

    match: F64
    held: F64

    @cached_property
    def columns(self) -> F64:
        """What rows (-2 x, |x|^2, 1) are multiplied by for the squared distances of x from each neuron."""
        squares = np.square(self.match).sum(axis=1)
        return np.ascontiguousarray(np.vstack([self.match.T, np.ones(len(squares)), squares]))

    @cached_property
    def chosen(self) -> I64:
        """Which neurons are looked for in another layer."""
        return picked(len(self.match), MATCHED)

    @cached_property
    def around(self) -> F64:
        """Of each chosen neuron the mean of the held-out ranks of its next nearest in this layer."""
        around = _nearest(self.match[self.chosen], self, self.chosen, local=True)[1]
        assert around is not None  # it was asked for
        return around


def prepared(w: WholeLayers, key: LayerKey) -> Prepared | None:
    """What E7 compares of a layer, made once. None where too few neurons have all numbers."""
    if key not in w.seen:
        w.seen[key] = _prepared(w.numbers[w.places[key]].astype(np.float64))
    return w.seen[key]  # type: ignore[return-value]


def _prepared(numbers: F64) -> Prepared | None:
    whole = numbers[np.isfinite(numbers).all(axis=1)]
    if len(whole) < MIN_NEURONS:
        return None
    count = MATCHING[whole.shape[1]]
    match = whole[:, :count]
    low, middle, high = np.quantile(match, (0.25, 0.5, 0.75), axis=0)  # which a few neurons of any size do not move
    match = (match - middle) / np.where(high > low, high - low, 1.0)
    ranks = (mean_ranks(whole.T).T + 0.5) * 2 / len(whole) - 1  # from -1 to 1
    terms = _terms(ranks[:, :count])
    held = ranks[:, count:] - terms @ np.linalg.lstsq(terms, ranks[:, count:], rcond=None)[0]
    held *= np.ptp(np.quantile(whole[:, count:], (0.25, 0.75), axis=0), axis=0) > ROUNDED
    return Prepared(match, held)


def _terms(ranks: F64) -> F64:
    """Polynomials of the ranks: up to the fourth power of each, up to the third of two together."""
    columns = [np.ones(len(ranks))]
    for r in np.ascontiguousarray(ranks.T):
        columns += [r, r * r, r * r * r, (r * r) * (r * r)]  # a power is twenty times as slow
    for x, y in itertools.combinations(np.ascontiguousarray(ranks.T), 2):
        columns += [x * y, x * x * y, x * y * y]
    return np.stack(columns, axis=1)


def agreement(a: Prepared, b: Prepared, *, local: bool) -> tuple[F64, int]:
    """Correlation of each held-out number between the neurons of A and their nearest in B, and how many these are.

    local: without the mean of the next nearest, of B and of A itself. What all neurons of one length, or of one kind,
    have in common is in those as well; only what one neuron has in common with one other is left.
    """
    best, around = _nearest(a.match[a.chosen], b, None, local=local)
    left, right = a.held[a.chosen], b.held[best]
    if around is not None:
        left, right = left - a.around, right - around
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    spread = np.sqrt(np.square(left).sum(axis=0) * np.square(right).sum(axis=0))
    return (left * right).sum(axis=0) / np.where(spread > 0, spread, 1.0), int(np.unique(best).size)


def _nearest(match: F64, others: Prepared, own: I64 | None, *, local: bool) -> Nearest:
    """Of each row the nearest neuron, (n,), or `own` if that is known; and the mean of the held-out numbers of those
    around it, (n, k), None unless `local`. A few rows at a time.
    """
    near = max(2, min(NEAR, len(others.match) // 8))
    best, around = np.zeros(len(match), np.int64), np.zeros((len(match), others.held.shape[1]))
    rows = np.column_stack([-2 * match, np.square(match).sum(axis=1), np.ones(len(match))])
    step = min(len(match), max(1, AT_ONCE // len(others.match)))
    room = np.empty((step, len(others.match)))  # of its own for each block it would be touched anew
    for start in range(0, len(match), step):
        some = slice(start, start + step)
        distances = room[: len(match[some])]
        np.matmul(rows[some], others.columns, out=distances)  # squares of them
        np.maximum(distances, 0.0, out=distances)
        best[some] = distances.argmin(axis=1) if own is None else own[some]
        if local:
            distances[np.arange(len(distances)), best[some]] = np.inf
            around[some] = others.held[_smallest(distances, near)].mean(axis=1)
    return best, around if local else None


def _smallest(distances: F64, count: int) -> I64:
    """Where the `count` smallest of each row are, (n, count); none is negative.

    The first 16 bits of a positive float64 are in its order. Of so short numbers the smallest are found fast, and then
    the smallest of those few.
    """
    short = np.ascontiguousarray(distances.astype("<f8", copy=False).view("<u2")[:, 3::4])
    limit = np.partition(short, count - 1, axis=1)[:, count - 1, None]
    row, column = np.divmod(np.flatnonzero(short <= limit), distances.shape[1])
    sizes = np.bincount(row, minlength=len(distances))
    place = np.arange(row.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    few, where = np.full((len(distances), sizes.max()), np.inf), np.zeros((len(distances), sizes.max()), np.int64)
    few[row, place], where[row, place] = distances[row, column], column
    if few.shape[1] == count:
        return where
    return np.take_along_axis(where, np.argpartition(few, count - 1, axis=1)[:, :count], axis=1)


def _run(pair: Pairing) -> Outcome:
    """E7 of the pair of layers that agrees most, and of all layers of one number together; both are paid for."""
    sides = sides_of(pair)
    if isinstance(sides, Reason):
        return absent(sides)
    a, b = sides
    both = {(x, y): (prepared(a, x), prepared(b, y)) for x, y in layer_pairs(pair)}
    layers = {at: (p, q) for at, (p, q) in both.items() if p is not None and q is not None}
    if not layers:
        return absent(Reason.of(Code.COMMON_NEURONS_FEW, needed=MIN_NEURONS))
    cost = math.log10(len(layers) + 1)
    same = [at for at in layers if at[0] == at[1]]
    plain = {at: _of_layers(*sides) for at, sides in layers.items()}
    best = max(plain, key=lambda at: (plain[at][0], min(at), max(at)))
    sets = [[best], *([same] if len(same) > 1 else [])]

    def of_sets(found: Mapping[tuple[LayerKey, LayerKey], Found]) -> tuple[float, float, int, int]:
        return max((*_together([found[at] for at in chosen]), len(chosen)) for chosen in sets)

    z, value, n, count = of_sets(plain)
    if log10_normal_tail(z) + cost <= WORTH_LOOKING:
        z, value, n, count = of_sets({at: _of_layers(*layers[at], local=True) for at in {best, *sets[-1]}})
    if log10_normal_tail(z) + cost <= WORTH_ROTATING:
        by_structure = _elsewhere(a, b, *best)
        if by_structure > BUILT_ALIKE:
            return absent(TIED)
        z -= math.sqrt(count) * by_structure
    needed = math.sqrt(2 * math.log(10) * (cost - LOG10_THRESHOLD))  # a little more than the normal tail asks for
    weight = max(min(p.chosen.size, q.chosen.size) * p.held.shape[1] for p, q in layers.values())
    return Outcome(value, n, min(0.0, log10_normal_tail(z) + cost), 0.0, smallest=needed / math.sqrt(weight))


def _elsewhere(a: WholeLayers, b: WholeLayers, x: LayerKey, y: LayerKey) -> float:
    """The largest z, of either sign, of two layers with others that do not correspond: how neurons are built."""
    both = ((prepared(a, p), prepared(b, q)) for p, q in elsewhere_pairs(a, b, x, y))
    found = [_of_layers(p, q, local=True)[0] for p, q in both if p is not None and q is not None]
    return max(map(abs, found), default=0.0)


def _of_layers(a: Prepared, b: Prepared, *, local: bool = False) -> Found:
    """z, mean correlation and neurons of two layers: the mean of both directions, which nearly repeat each other."""
    z, value, count = 0.0, 0.0, 0
    for left, right in ((a, b), (b, a)):
        correlations, distinct = agreement(left, right, local=local)
        z += float(correlations.sum()) * math.sqrt(distinct / correlations.size) / 2
        value += float(correlations.mean()) / 2
        count = max(count, distinct)
    return z, value, count


def _together(found: Sequence[Found]) -> Found:
    """z of some pairs of layers, mean correlation and neurons."""
    z = sum(one for one, _, _ in found) / math.sqrt(len(found))
    return z, sum(value for _, value, _ in found) / len(found), sum(n for _, _, n in found)


TEST = Test("neuron_invariants", _run, "aligned", "whole_layers")
