"""E8, neurons by their signs: of all neurons of two layers, how many does the other model have, in any order and scale?

Each part of a neuron (gate, up, down) is matched to the other model on its own, by the signs of its 64 anchor
coordinates; a neuron is found again if all matchings name one neuron. Nobody chose which neurons are kept, so neurons
that do nothing cannot push others out; and the larger of both directions counts, so neither neurons that were split nor
neurons that were dropped hide the others. Residual and MLP may have any width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Test
from provindex.evidence.aligned import MIN_NEURONS, WORTH_ROTATING, log10_poisson_tail, turns
from provindex.evidence.exact import LOG10_THRESHOLD
from provindex.evidence.pairing import Pairing
from provindex.evidence.sketch import LayerKey
from provindex.evidence.whole_layers import (
    F32,
    PANEL,
    WholeLayers,
    elsewhere_pairs,
    layer_pairs,
    picked,
    sides_of,
    unpacked,
)

MATCHED = 256  # neurons of a layer that are looked for: a tenth of them is far above chance
KEPT = 1 << 15  # neurons of a model whose signs are kept unpacked: 50 MB at either naming
BLOCK = 1 << 13  # neurons of the other layer at a time: 25 MB of inner products
FIRST = 48  # so many in every pair of layers; 256 in the pair in which most are found


def signs_of(w: WholeLayers, naming: str, key: LayerKey) -> F32:
    """The neurons of a layer under a naming that the model has, (P, n, 64) of -1 and 1."""
    made = w.seen.get((naming, key))
    if made is None:
        made = unpacked(getattr(w, naming)[w.places[key]])
        if int(w.heights.sum()) <= KEPT:
            w.seen[naming, key] = made
    return made  # type: ignore[return-value]


def found_again(a: F32, b: F32, most: int = MATCHED) -> tuple[int, int, float]:
    """How many of at most so many neurons of A are found again in B, of how many, and how many would be by chance.

    a, b: (P, n, 64) of -1 and 1. A gate has a sign; up and down may both have been negated. By chance: the sum over
    targets of the product of in-degrees / n^(P - 1).
    """
    chosen = a[:, picked(a.shape[1], most)]
    best = _nearest(chosen, b)
    agree = (best == best[0]).all(axis=0)
    degrees = np.prod([np.bincount(one, minlength=b.shape[1]).astype(np.float64) for one in best], axis=0)
    n = chosen.shape[1]
    return int(np.unique(best[0][agree]).size), n, float(degrees.sum()) / n ** (len(best) - 1)


def _nearest(a: F32, b: F32) -> NDArray[np.int64]:
    """The neuron of B that each part of each neuron of A is most like, (P, n); a block of B at a time."""
    best, at = np.full(a.shape[:2], -np.inf, np.float32), np.zeros(a.shape[:2], np.int64)
    for start in range(0, b.shape[1], BLOCK):
        scores = a @ b[:, start : start + BLOCK].transpose(0, 2, 1)
        scores[-2:] = np.abs(scores[-2:])
        here = scores.argmax(axis=2)
        top = np.take_along_axis(scores, here[..., None], axis=2)[..., 0]
        at = np.where(top > best, here + start, at)
        best = np.maximum(best, top)
    return at


def _by_chance(a: F32, b: F32, expected: float) -> float:
    """The mean to test against: that of the in-degrees, or the largest count after one side's coordinates were rotated.

    A rotation keeps what neurons are like among themselves (parts that are alike, a common direction) and takes away
    which is which.
    """
    return max(expected, *(found_again(a[..., order] * own, b)[0] for order, own in turns()))


def _run(pair: Pairing) -> Outcome:
    """The pair of layers and naming of the anchors in which most are found; all of them, both ways, are paid for."""
    sides = sides_of(pair)
    if isinstance(sides, Reason):
        return absent(sides)
    a, b = sides
    namings = [n for n in ("by_string", "by_id") if getattr(a, n) is not None and getattr(b, n) is not None]
    if not namings:
        return absent(Reason.of(Code.NO_COMMON_ANCHORS))
    heights = [{key: at.stop - at.start for key, at in side.places.items()} for side in (a, b)]
    pairs = [(x, y) for x, y in layer_pairs(pair) if min(heights[0][x], heights[1][y]) >= MIN_NEURONS]
    if not pairs:
        return absent(Reason.of(Code.COMMON_NEURONS_FEW, needed=MIN_NEURONS))

    def both_ways(naming: str, x: LayerKey, y: LayerKey) -> list[tuple[F32, F32]]:
        ours, theirs = signs_of(a, naming, x), signs_of(b, naming, y)
        return [(ours, theirs), (theirs, ours)]

    def at_first(naming: str, x: LayerKey, y: LayerKey) -> tuple[float, str, LayerKey, LayerKey]:
        return -max(_share(*way) for way in both_ways(naming, x, y)), naming, min(x, y), max(x, y)

    tried = [(naming, x, y) for naming in namings for x, y in pairs]
    cost = math.log10(2 * len(tried))
    naming, x, y = min(tried, key=lambda one: at_first(*one))
    others = [(naming, *one) for one in elsewhere_pairs(a, b, x, y)]

    def elsewhere(way: int) -> float:
        counted = [found_again(*both_ways(*other)[way]) for other in others]
        return max((count / n for count, n, _ in counted), default=0.0)

    outcomes = [_outcome(*p, cost, partial(elsewhere, way)) for way, p in enumerate(both_ways(naming, x, y))]
    return max(outcomes, key=lambda o: (o.value or 0.0, -(o.log10_p or 0.0), o.smallest or math.inf))


def _share(a: F32, b: F32) -> float:
    count, n, _ = found_again(a, b, FIRST)
    return count / n


def _outcome(a: F32, b: F32, cost: float, elsewhere: Callable[[], float]) -> Outcome:
    """Of the neurons of one layer in another. cost: log10 of what was tried. elsewhere: the share that layers have in
    common which do not correspond.
    """
    count, n, expected = found_again(a, b)
    if log10_poisson_tail(count, expected) + cost <= WORTH_ROTATING:
        expected = max(_by_chance(a, b, expected), elsewhere() * n)
    log10_p = min(0.0, log10_poisson_tail(count, expected) + cost)
    return Outcome(count / n, n, log10_p, min(1.0, expected / n), smallest=_least(n, expected, cost))


def _least(n: int, expected: float, cost: float) -> float | None:
    """The smallest share of n neurons that would be significant; None if all of them would not be."""
    enough = (k for k in range(1, n + 1) if log10_poisson_tail(k, expected) + cost <= LOG10_THRESHOLD)
    return next((k / n for k in enough), None)


TEST = Test("neuron_signs", _run, "aligned", "whole_layers", (PANEL,))
