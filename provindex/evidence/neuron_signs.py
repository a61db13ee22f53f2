"""E8, neurons by their signs: of all neurons of two layers, how many does the other model have, in any order and scale?

Each part of a neuron (gate, up, down) is matched to the other model on its own, by the signs of its 64 anchor
coordinates, a bit each; a neuron is found again if all matchings name one neuron. Nobody chose which neurons are kept,
so neurons that do nothing cannot push others out; and the larger of both directions counts, so neither neurons that
were split nor neurons that were dropped hide the others. Residual and MLP may have any width.
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
from provindex.evidence.whole_layers import PANEL, U64, WholeLayers, elsewhere_pairs, layer_pairs, picked, sides_of

MATCHED = 256  # neurons of a layer that are looked for: a tenth of them is far above chance
FIRST = 48  # so many in every pair of layers; 256 in the pair in which most are found
AT_ONCE = 1 << 18  # pairs of neurons at a time: 2 MB
PROBED = 512  # neurons of the other layer that rule most wrong ones out before all are looked at
BITS = np.uint8(64)


def signs_of(w: WholeLayers, naming: str, key: LayerKey) -> U64:
    """The neurons of a layer under a naming that the model has, (P, n) words of 64 signs."""
    return np.ascontiguousarray(getattr(w, naming)[w.places[key]].T)


def found_again(a: U64, b: U64, most: int = MATCHED) -> tuple[int, int, float]:
    """How many of at most so many neurons of A are found again in B, of how many, and how many would be by chance.

    a, b: (P, n) words. A gate has a sign; up and down may both have been negated. By chance: the sum over targets of
    the product of in-degrees / n^(P - 1).
    """
    chosen = a[:, picked(a.shape[1], most)]
    best = np.stack([_nearest(*part, _signed(len(a), i)) for i, part in enumerate(zip(chosen, b, strict=True))])
    agree = (best == best[0]).all(axis=0)
    degrees = np.prod([np.bincount(one, minlength=b.shape[1]).astype(np.float64) for one in best], axis=0)
    n = chosen.shape[1]
    return int(np.unique(best[0][agree]).size), n, float(degrees.sum()) / n ** (len(best) - 1)


def count_again(chosen: U64, b: U64) -> int:
    """How many of some neurons, (P, m), `found_again` finds in B: most that are not are ruled out by a few of B."""
    target = _nearest(chosen[0], b[0], _signed(len(b), 0))
    for i in range(1, len(b)):
        signed = _signed(len(b), i)
        here = _apart(chosen[i], b[i][target], signed)
        near = here <= _apart(chosen[i][:, None], b[i][:PROBED], signed).min(axis=1)
        chosen, target = chosen[:, near], target[near]
        same = _nearest(chosen[i], b[i], signed) == target
        chosen, target = chosen[:, same], target[same]
    return int(np.unique(target).size)


def _signed(parts: int, i: int) -> bool:
    """Whether a part has a sign: the gate, which is the first of three."""
    return parts == 3 and i == 0


def _apart(a: U64, b: U64, signed: bool) -> NDArray[np.uint8]:
    """In how many of 64 signs words differ; of words without a sign, from the nearer of the other and its negative."""
    differ: NDArray[np.uint8] = np.bitwise_count(a ^ b)
    return differ if signed else np.minimum(differ, BITS - differ)


def _nearest(a: U64, b: U64, signed: bool) -> NDArray[np.int64]:
    """The word of B, the first of equals, that each of A, (m,), is most like."""
    best = np.zeros(len(a), np.int64)
    step = max(1, AT_ONCE // len(b))
    for start in range(0, len(a), step):
        some = slice(start, start + step)
        best[some] = _apart(a[some, None], b, signed).argmin(axis=1)
    return best


def _by_chance(a: U64, b: U64, expected: float) -> float:
    """The mean to test against: that of the in-degrees, or the largest count after one side's coordinates were rotated.

    A rotation keeps what neurons are like among themselves (parts that are alike, a common direction) and takes away
    which is which.
    """
    chosen = a[:, picked(a.shape[1], MATCHED)]
    return max(expected, *(count_again(turned(chosen, order, own), b) for order, own in turns()))


def turned(words: U64, order: NDArray[np.int64], own: NDArray[np.int8]) -> U64:
    """Words of signs after their 64 coordinates were put in another order, and some of them negated."""
    bits = np.unpackbits(words.astype("<u8")[..., None].view(np.uint8), axis=-1, bitorder="little")
    mixed = np.packbits(bits[..., order] ^ (own < 0), axis=-1, bitorder="little")
    return mixed.view("<u8")[..., 0].astype(np.uint64)


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

    def both_ways(naming: str, x: LayerKey, y: LayerKey) -> list[tuple[U64, U64]]:
        ours, theirs = signs_of(a, naming, x), signs_of(b, naming, y)
        return [(ours, theirs), (theirs, ours)]

    def at_first(naming: str, x: LayerKey, y: LayerKey) -> tuple[float, str, LayerKey, LayerKey]:
        return -max(_share(*way) for way in both_ways(naming, x, y)), naming, min(x, y), max(x, y)

    tried = [(naming, x, y) for naming in namings for x, y in pairs]
    cost = math.log10(2 * len(tried))
    naming, x, y = min(tried, key=lambda one: at_first(*one))
    others = [(naming, *one) for one in elsewhere_pairs(a, b, x, y)]

    def elsewhere(way: int) -> float:
        counted = (both_ways(*other)[way] for other in others)
        return max((_share(*one, MATCHED) for one in counted), default=0.0)

    outcomes = [_outcome(*p, cost, partial(elsewhere, way)) for way, p in enumerate(both_ways(naming, x, y))]
    return max(outcomes, key=lambda o: (o.value or 0.0, -(o.log10_p or 0.0), o.smallest or math.inf))


def _share(a: U64, b: U64, most: int = FIRST) -> float:
    chosen = a[:, picked(a.shape[1], most)]
    return count_again(chosen, b) / int(chosen.shape[1])


def _outcome(a: U64, b: U64, cost: float, elsewhere: Callable[[], float]) -> Outcome:
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
