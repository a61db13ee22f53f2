"""E6: do the norm gains and biases of two models rank residual coordinates alike?

Definition. The vectors of residual width describe each of the d coordinates by one number each. Every vector is ranked
over its coordinates and standardized; the descriptions of a coordinate, one row in either model over the vectors that
are paired, are compared by cosine. F counts coordinates whose best match is their own (by rows, by columns), z how far
their own ranks above chance.
Null. Coordinates of independently trained models are exchangeable, so P(F >= k) <= G^k/k! for G blocks of at most 512
coordinates, and z is standard normal at most (`evidence.exact`). Three statistics are tried, and each pairing of
vectors: by role and layer (by their number where roles are unknown), and by sorted values, which a permutation of the
coordinates leaves unchanged. All pay.
It needs no tokenizer, no matrix and no layer in common, but folded norms hide from it: it never clears a model.
Absent: no vector that varies, another width, an axis whose order along its index is beyond chance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Test
from provindex.evidence.exact import F64, log10_alignment, log10_fixed_points, ranked
from provindex.evidence.pairing import Pairing
from provindex.evidence.vectors import (
    F32,
    HIDDEN,
    PANEL,
    VALUES,
    Profile,
    Vectors,
    mean_ranks,
    ordered,
    ordered_together,
)

MIN_COORDINATES = 12
FEW = 2  # vectors up to which products are compared: a cosine of one number is 1 or -1
BLOCK = 512  # coordinates that are compared with each other
MOST_ORDERED = 0.25  # share of a model's vectors with an order, above which its axis has one
LOG10_LINKED = -6.0
MIN_HEAD = 4  # channels
MIN_GAINS = 256  # values of gains whose correlation says something
NO_WIDTH = Reason.of(Code.WIDTH_UNKNOWN)
Pairs = list[tuple[int, int]]


def norm_alignment(a: Vectors | None, b: Vectors | None, widths: tuple[int, int], stacks: Collection[str]) -> Outcome:
    """E6 of two models. widths: of their residual streams, 0 if unknown. stacks: whose vectors count.

    value: share of coordinates whose best match is their own; n: coordinates.
    """
    if a is None or b is None:
        return absent(Reason.of(Code.SIDE_WITHOUT_GAINS))
    width = _width(a, b, widths, stacks)
    if width == 0:
        return absent(Reason.of(Code.WIDTHS_DIFFER, a=widths[0], b=widths[1]) if all(widths) else NO_WIDTH)
    sides = [side.residual(width, stacks) for side in (a, b)]
    if reason := _unusable(sides):
        return absent(reason)
    x, y = sides
    alone = x.alone & y.alone
    n = int(alone.sum())
    if n < MIN_COORDINATES:
        return absent(Reason.of(Code.COORDINATES_FEW, n=n, needed=MIN_COORDINATES))
    ways = [_by_place(x, y), _by_values(x, y)]
    if not any(ways):
        return absent(Reason.of(Code.SIDE_WITHOUT_GAINS))
    cost = math.log10(3 * sum(map(bool, ways)))
    best: Outcome | None = None
    for pairs in filter(None, ways):
        found = _of_pairs(x, y, pairs, alone, cost)
        if best is None or (found.log10_p or 0.0) < (best.log10_p or 0.0):
            best = found
        if (best.log10_p or 0.0) <= LOG10_LINKED:
            break
    assert best is not None
    return best


def gain_correlation(
    a: Vectors | None, b: Vectors | None, widths: tuple[int, int], stacks: Collection[str]
) -> float | None:
    """Median rank correlation of the gains of two models, in [-1, 1]; None if fewer than 256 values are paired.

    Gains start as ones, so what they have in common was trained, and is more than a random start. Of fewer values
    chance alone would correlate by more than a sixteenth.
    """
    width = 0 if a is None or b is None else _width(a, b, widths, stacks)
    if a is None or b is None or not width:
        return None
    x, y = (side.residual(width, stacks) for side in (a, b))
    pairs = _by_place(x, y) or _by_values(x, y)
    pairs = [(i, j) for i, j in pairs if not x.addresses[i].endswith(".bias")]
    found = [float(x.ranks[i] @ y.ranks[j]) / x.ranks.shape[1] for i, j in pairs]
    return float(np.median(found)) if len(found) * x.ranks.shape[1] >= MIN_GAINS else None


def _width(a: Vectors, b: Vectors, widths: tuple[int, int], stacks: Collection[str]) -> int:
    """The residual width of both; where one is unknown, the size that most vectors have; 0 if they differ."""
    known = {width for width in widths if width}
    if len(known) > 1:
        return 0
    if known:
        return known.pop()
    ours, theirs = a.widths(stacks), b.widths(stacks)
    return max((min(n, theirs[size]), size) for size, n in ours.items())[1] if ours else 0


def _unusable(sides: Sequence[Profile]) -> Reason | None:
    for side in sides:
        varying = len(side.addresses) + side.ordered
        if not varying:
            return Reason.of(Code.SIDE_WITHOUT_GAINS)
        if side.ordered > MOST_ORDERED * varying:
            return Reason.of(Code.COORDINATES_ORDERED, n=side.ordered, total=varying)
        if side.together:
            return Reason.of(Code.AXIS_ORDERED)
    return None


def _by_place(x: Profile, y: Profile) -> Pairs:
    """Vectors of one role and layer; where a model's roles are unknown, of one number, if both have as many."""
    if all(x.addresses) and all(y.addresses):
        there = {address: j for j, address in enumerate(y.addresses)}
        return [(i, there[address]) for i, address in enumerate(x.addresses) if address in there]
    if x.total != y.total:
        return []
    there_too = {number: j for j, number in enumerate(y.numbers)}
    return [(i, there_too[number]) for i, number in enumerate(x.numbers) if number in there_too]


def _by_values(x: Profile, y: Profile) -> Pairs:
    """Vectors whose sorted values are nearest, relative to their variance; each once, the nearest first."""
    a, b = x.values, y.values
    if not len(a) or not len(b):
        return []
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * (a @ b.T)
    distance = squares / (np.minimum(a.var(axis=1)[:, None], b.var(axis=1)[None]) + 1e-12)
    pairs: Pairs = []
    ours, theirs = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)
    for at in np.argsort(distance, axis=None, kind="stable").tolist():
        i, j = divmod(at, len(b))
        if ours[i] and theirs[j]:
            ours[i] = theirs[j] = False
            pairs.append((i, j))
            if len(pairs) == min(len(a), len(b)):
                break
    return pairs


def _of_pairs(x: Profile, y: Profile, pairs: Pairs, alone: Any, cost: float) -> Outcome:
    """The better of fixed points and ranks under one pairing. alone: which coordinates count.

    Coordinates are compared inside of blocks that are chosen by place, whose order is as random as that of all: z loses
    1.5 parts in a block's size, and the work falls with the number of blocks.
    """
    sides = [p.ranks[[pair[s] for pair in pairs]][:, alone].T for s, p in enumerate((x, y))]
    count = -(-len(sides[0]) // BLOCK)
    m = len(sides[0]) // count
    left, right = (rows[: count * m].reshape(m, count, -1).swapaxes(0, 1) for rows in sides)
    left, right = (rows - rows.mean(axis=1, keepdims=True) for rows in (left, right))
    if len(pairs) > FEW:
        left, right = (
            rows / np.maximum(np.sqrt((rows**2).sum(axis=2, keepdims=True)), 1e-12) for rows in (left, right)
        )
    found = ranked(left @ right.swapaxes(1, 2))
    points = found.places.most
    excess, variance = float(found.excess.sum()), count * m * m * (m + 1) / 12
    log10_p = min(log10_fixed_points(points, count), log10_alignment(excess, variance))
    return Outcome(points / (count * m), count * m, min(0.0, log10_p + cost), 1 / m)


# --- biases of hidden units and of values ---


def bias_alignment(a: Vectors | None, b: Vectors | None, stacks: Collection[str]) -> Outcome:
    """Rank correlation of the biases of hidden units, and of value channels within their heads, at equal addresses.

    Units of a layer, and channels of a head, are exchangeable, so under independence the sum over layers is normal; its
    variance is that of a permutation of ranks without ties, the largest there is. Both sums are tried. value: mean rank
    correlation; n: units.
    """
    if a is None or b is None:
        return absent(Reason.of(Code.SIDE_WITHOUT_BIASES))
    head = a.head_dim if a.head_dim == b.head_dim else 0
    found = [f for roles, size in ((HIDDEN, 0), (VALUES, head)) if (f := _of_roles(a, b, roles, size, stacks))]
    if not found:
        return absent(Reason.of(Code.SIDE_WITHOUT_BIASES))
    best = min(found, key=lambda o: o.log10_p or 0.0)
    return Outcome(best.value, best.n, min(0.0, (best.log10_p or 0.0) + math.log10(len(found))), 0.0)


def _of_roles(a: Vectors, b: Vectors, roles: Sequence[str], head: int, stacks: Collection[str]) -> Outcome | None:
    ours, theirs = a.of_roles(roles, stacks), b.of_roles(roles, stacks)
    shared = [(ours[at], theirs[at]) for at in sorted(ours.keys() & theirs.keys()) if ours[at].size == theirs[at].size]
    blocks = [pair for x, y in shared for pair in _blocks(x.values, y.values, head if roles == VALUES else None)]
    if sum(x.size for x, _ in blocks) < MIN_COORDINATES or any(_in_order(side) for side in zip(*blocks, strict=True)):
        return None
    total = variance = weight = 0.0
    for x, y in blocks:
        total += float(x @ y)
        variance += x.size**2 * (x.size + 1) ** 2 * (x.size - 1) / 144
        weight += math.sqrt(float(x @ x) * float(y @ y))
    units = sum(x.size for x, _ in blocks)
    return Outcome(total / weight, units, log10_alignment(total, variance), 0.0) if weight else None


def _blocks(x: F32, y: F32, head: int | None) -> list[tuple[F64, F64]]:
    """Centered ranks of both, of a layer's units or head by head; of units whose value few others have.

    Padding and dead units repeat one value, at places that a tool chose.
    """
    size = x.size if head is None else head
    if not MIN_HEAD <= size <= x.size:
        return []
    found = []
    for start in range(0, x.size - size + 1, size):
        sides = [side[start : start + size] for side in (x, y)]
        alive = ~(_repeated(sides[0]) | _repeated(sides[1]))
        if (n := int(alive.sum())) >= MIN_HEAD:
            left, right = (mean_ranks(side[alive][None])[0] - (n - 1) / 2 for side in sides)
            found.append((left, right))
    return found


def _repeated(values: F32) -> Any:
    """Which values more than two units have, and more than one in fifty."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts > max(2, values.size // 50))[where]


def _in_order(blocks: Sequence[F64]) -> bool:
    """Whether blocks show an order along the index, alone or together with others of their size."""
    by_size: dict[int, list[F64]] = {}
    for ranks in blocks:
        by_size.setdefault(ranks.size, []).append(ranks)
    groups = [np.stack(found) for found in by_size.values()]
    return any(ordered_together(group) or ordered(group).any() for group in groups)


# --- the table rows ---


def _of_pair(pair: Pairing) -> Outcome:
    sides = pair.a, pair.b
    widths = sides[0].facts.hidden, sides[1].facts.hidden
    return norm_alignment(sides[0].value("vectors"), sides[1].value("vectors"), widths, pair.stacks)


def gains_of_pair(pair: Pairing) -> float | None:
    """`gain_correlation` of two fingerprints."""
    a, b = pair.a, pair.b
    return gain_correlation(a.value("vectors"), b.value("vectors"), (a.facts.hidden, b.facts.hidden), pair.stacks)


TEST = Test("norm_alignment", _of_pair, "exact", "vectors", (PANEL,))
BIASES = Test(
    "bias_alignment",
    lambda pair: bias_alignment(pair.a.value("vectors"), pair.b.value("vectors"), pair.stacks),
    "exact",
    "vectors",
)
