"""Tests whose p-values hold for any pair of independently initialized models: E0, E1, E1z and E2 of evidence/README.md.

If the hidden units of A are exchangeable given B (independent random start, an optimizer that treats units alike),
the position of a unit says nothing about B. The number F of rows of A whose best match in B stands at the same
position then has P(F >= k) <= 1/k!, whatever the similarity, and L independently permuted blocks have P(sum F >= k)
<= L^k / k! (Zhu et al., "Independence Tests for Language Models", ICML 2025, arXiv 2502.12292).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.panels import (
    MIN_ANCHORS,
    PROJECTION,
    VIRTUAL_ANCHORS,
    BlockDigests,
    HiddenPanels,
    ResidualPanel,
)
from provindex.signals.score import Chance

F64 = NDArray[np.float64]
LOG10_COLLISION = -19.0  # two different blocks with one 64-bit digest: 2^-64
LOG10_THRESHOLD = -6.0
MAX_LAYERS = 1024  # of one stack; the deepest published models have about 200
NO_PANELS = "no hidden units with a known role in one of the models"
NO_BLOCKS = "no block of hidden units in common (other stacks, experts or head sizes, or only zeros)"
MIN_UNITS = 8  # fewer comparable units can never reach the threshold by fixed points

Numbers = dict[tuple[str, int], int]  # (kind, expert) -> panel number
Layers = dict[tuple[str, int], Numbers]  # (stack, layer) -> its panels


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of one pair.

    value: the effect, in [-1, 1]; n: how many things were compared; log10_p: at most 0; chance: the value that
    unrelated models take on average. Absent tests have only a reason. smallest: about the smallest cosine between
    matched hidden units (residual coordinates) that this test would have called linked, where that can be said. null:
    of a conformal test, the scores of unrelated pairs that its value was ranked among; conformal: log10 of that rank.
    """

    value: float | None = None
    n: int | None = None
    log10_p: float | None = None
    chance: float | None = None
    reason: str | None = None
    smallest: float | None = None
    null: Chance | None = None
    conformal: float | None = None


def absent(reason: str) -> Outcome:
    """A test that could not run."""
    return Outcome(reason=reason)


def log10_fixed_points(k: int, blocks: int) -> float:
    """log10 of the bound blocks^k / k! on the chance of k or more fixed points in that many blocks, at most 0."""
    if k == 0 or blocks == 0:
        return 0.0
    return min(0.0, k * math.log10(blocks) - math.lgamma(k + 1) / math.log(10))


def log10_normal_tail(z: float) -> float:
    """log10 of P(Z >= z) for a standard normal; an asymptotic series where the tail leaves the floating-point range."""
    if z < 30:
        return math.log10(0.5 * math.erfc(z / math.sqrt(2)))
    return -(z * z / 2 + math.log(z * math.sqrt(2 * math.pi))) / math.log(10)


def fixed_points(similarity: F64) -> tuple[int, int]:
    """Rows, and columns, whose largest entry stands on the diagonal, summed over leading axes; similarity: (..., m, m).

    The bound holds for either count. Both are taken so that (A, B) and (B, A) get one answer; a test that uses the
    larger one pays for two.
    """
    places = np.arange(similarity.shape[-1])
    return int((similarity.argmax(axis=-1) == places).sum()), int((similarity.argmax(axis=-2) == places).sum())


def rank_alignment(similarity: F64) -> tuple[float, float]:
    """How far the diagonal ranks above chance in its rows and columns: (sum of excess ranks, bound on its variance).

    similarity: (..., m, m). Ranks, because heavy-tailed rows make the normal tail wrong by orders of magnitude. The
    ranks within rows have mean (m - 1) / 2 under a random permutation, and the variance of their sum is at most m^2
    (m + 1) / 12, reached without ties when all columns rank alike. The same holds within columns, and so for the mean
    of both sums, which is used: it is the same for (A, B) and (B, A).
    """
    m = similarity.shape[-1]
    blocks = similarity.reshape(-1, m, m)
    return float(ranked(blocks).excess.sum()), len(blocks) * m * m * (m + 1) / 12


class Ranked(NamedTuple):
    """Of each block: fixed points of rows and of columns (as in `fixed_points`), excess of ranks; (n,) each."""

    across: NDArray[np.int64]
    down: NDArray[np.int64]
    excess: F64


def ranked(blocks: F64) -> Ranked:
    """What `fixed_points` and `rank_alignment` say of each of some similarities, (n, m, m), in one look.

    Only sums are asked for, so entries are counted and none is sorted. Ranks are halves of whole numbers: their sum is
    exact in any order. Where nothing ties with it, an entry is the first largest of its row if it equals the maximum;
    blocks with ties or NaNs on the diagonal are left to argmax.
    """
    m = blocks.shape[-1]
    diagonal = np.diagonal(blocks, 0, 1, 2)
    excess, tied = np.zeros(len(blocks)), np.isnan(diagonal).any(axis=1)
    for own in (diagonal[:, :, None], diagonal[:, None, :]):
        ties = _counted(blocks == own) - m
        tied |= ties != 0
        excess += 0.5 * (_counted(blocks < own) + 0.5 * ties - m * (m - 1) / 2)
    across, down = ((blocks.max(axis=axis) == diagonal).sum(axis=1) for axis in (2, 1))
    for i in np.flatnonzero(tied):
        across[i], down[i] = fixed_points(blocks[i])
    return Ranked(across, down, excess)


def _counted(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are set in each, (n, ...): one at a time, because numpy counts whole arrays many times as fast."""
    return np.array([np.count_nonzero(block) for block in flags], np.int64)


def log10_alignment(excess: float, variance: float) -> float:
    """log10 of the normal tail at a sum of excess ranks, less a continuity correction.

    The correction is half of the widest lattice that such sums can have: steps of 2, of blocks of two rows. Without an
    excess the value is 1: there a variance that is a bound would make it too small.
    """
    return log10_normal_tail((excess - 1.0) / math.sqrt(variance)) if excess > 1.0 else 0.0


# --- E0 ---


def bit_reuse(
    a: BlockDigests | None,
    b: BlockDigests | None,
    stacks: frozenset[str] | None = None,
    common: frozenset[int] = frozenset(),
) -> tuple[Outcome, str | None]:
    """E0: share of the smaller model's blocks that the other one has too, bit for bit or after rounding.

    stacks: which stacks count, all if None; matrices of unknown role always do. common: digests that unrelated families
    share, which say nothing. Returns the outcome and at which precision the most blocks agree ("exact", "bf16" or
    "f16"; None when none do). Blocks count wherever they stand in either model. The p-value is 10^-19 for each, as the
    design prescribes, from at least two matrices; the n^2 ways of meeting would cost a few powers of ten of it.
    """
    if a is None or b is None:
        return absent("no weight matrix in one of the models"), None
    best: tuple[int, int, str] = (0, 0, "exact")
    n = 0
    for precision in ("exact", "bf16", "f16"):
        left, right = _owners(a, precision, stacks, common), _owners(b, precision, stacks, common)
        shared = left.keys() & right.keys()
        n = max(n, min(len(left), len(right)))
        tensors = min(len({left[d] for d in shared}), len({right[d] for d in shared}))
        if len(shared) > best[0]:
            best = (len(shared), tensors, precision)
    if n == 0:
        return absent("no block with at least 64 distinct values in one of the models"), None
    count, tensors, precision = best
    log10_p = min(0.0, count * LOG10_COLLISION + math.log10(3)) if tensors >= 2 else 0.0
    return Outcome(count / n, n, log10_p, 0.0), precision if count else None


def _owners(
    blocks: BlockDigests, precision: str, stacks: frozenset[str] | None, common: frozenset[int]
) -> dict[int, int]:
    """Digest -> number of the tensor it was first seen in."""
    numbers = _counting(blocks.keys, stacks)
    digests = getattr(blocks, precision)[list(numbers)].ravel().tolist()
    owners = dict(zip(reversed(digests), reversed([i for i in numbers for _ in range(2)]), strict=True))
    for silent in (0, *common):
        owners.pop(silent, None)
    return owners


@lru_cache(maxsize=64)
def _counting(keys: tuple[str, ...], stacks: frozenset[str] | None) -> tuple[int, ...]:
    """Which matrices are of stacks that count, or of none that is known."""
    firsts = (key.split(".", 1)[0] for key in keys)
    return tuple(i for i, first in enumerate(firsts) if stacks is None or first in stacks or first == "unknown")


# --- E1, E1z ---


@dataclass(frozen=True)
class LayerPair:
    """Two layers of one stack, laid side by side: a of A, b of B."""

    stack: str
    a: int
    b: int


@dataclass(frozen=True)
class HiddenResult:
    """Both hidden tests, the layer pairs of the better map, and the cosine of each pair's matched units."""

    fixed: Outcome
    aligned: Outcome
    pairs: tuple[LayerPair, ...] = ()
    cosines: tuple[float, ...] = ()

    @property
    def log10_p(self) -> float:
        return min(self.fixed.log10_p or 0.0, self.aligned.log10_p or 0.0)


@dataclass(frozen=True)
class _Side:
    """One model's panels as the tests see them.

    layers: (stack, layer) -> its panels. repeats: blocks (panel, first row) that repeat an earlier block of the same
    model: copied layers, upcycled experts, repeated value heads. They share one permutation, so only one may count.
    """

    panels: HiddenPanels
    layers: Layers
    repeats: frozenset[tuple[int, int]] = frozenset()

    @cached_property
    def wide(self) -> F64:
        """All panels in double precision."""
        return self.panels.values.astype(np.float64)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """(T, R): which units are not zero."""
        return np.asarray(self.panels.values.any(axis=2))


def hidden_tests(a: HiddenPanels | None, b: HiddenPanels | None, stacks: frozenset[str] | None = None) -> HiddenResult:
    """E1 (fixed points) and E1z (rank alignment) over layer maps.

    Two kinds of map are tried: layer l to layer l, and the best order-preserving partial matching. The second pays
    for every such matching that could have been chosen (a union bound), and both pay for there being two. stacks: which
    stacks count, all if None.
    """
    reason = _incomparable(a, b)
    if reason or a is None or b is None:
        return HiddenResult(absent(reason or NO_PANELS), absent(reason or NO_PANELS))
    left, right = _distinct(a, stacks), _distinct(b, stacks)
    identity = [LayerPair(s, layer, layer) for s, layer in sorted(left.layers.keys() & right.layers.keys())]
    matched, log10_maps = _best_map(left, right)
    results = [
        _test_map(left, right, pairs, _measured(left, right, pairs), cost + math.log10(2))
        for pairs, cost in ((identity, 0.0), (matched, log10_maps))
        if pairs
    ]
    if not results:
        return HiddenResult(absent(NO_BLOCKS), absent(NO_BLOCKS))
    return min(results, key=lambda r: (r.log10_p, -sum(r.cosines)))


def _incomparable(a: HiddenPanels | None, b: HiddenPanels | None) -> str | None:
    if a is None or b is None:
        return NO_PANELS
    if a.width != b.width:
        return f"residual widths differ ({a.width} and {b.width})"
    if max(len({key.layer for key in side.keys}) for side in (a, b)) > MAX_LAYERS:
        return f"more than {MAX_LAYERS:,} layers in one of the models"
    return None


def _side(panels: HiddenPanels, stacks: frozenset[str] | None = None) -> _Side:
    layers: Layers = {}
    for number, key in enumerate(panels.keys):
        if (stacks is None or key.stack in stacks) and (key.kind == "mlp" or key.group > 0):
            layers.setdefault((key.stack, key.layer), {})[key.kind, key.expert] = number
    return _Side(panels, layers)


def _distinct(panels: HiddenPanels, stacks: frozenset[str] | None) -> _Side:
    """A side without blocks that repeat an earlier one, and without layers that have no other."""
    whole = _side(panels, stacks)
    numbers = sorted(n for layer in whole.layers.values() for n in layer.values())
    repeats = _repeats(panels, numbers)
    layers = {
        at: layer
        for at, layer in whole.layers.items()
        if any((n, start) not in repeats for n in layer.values() for start, _ in _spans(panels, n))
    }
    return _Side(panels, layers, repeats)


def _spans(panels: HiddenPanels, number: int, height: int | None = None) -> list[tuple[int, int]]:
    """The rows (start, stop) of each permutable block of a panel: all of an MLP, each head of v."""
    rows = int(panels.heights[number]) if height is None else height
    step = panels.keys[number].group or rows
    return [(start, min(start + step, rows)) for start in range(0, rows, max(step, 1))]


def _repeats(panels: HiddenPanels, numbers: Sequence[int]) -> frozenset[tuple[int, int]]:
    """Blocks whose units stand as those of an earlier block: mean cosine eight standard deviations above chance."""
    alike: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for number in numbers:
        for start, stop in _spans(panels, number):
            alike.setdefault((panels.keys[number].kind, stop - start), []).append((number, start))
    out: set[tuple[int, int]] = set()
    for (_, height), places in alike.items():
        rows = np.stack([panels.values[n, start : start + height] for n, start in places]).astype(np.float32)
        flat = rows.reshape(len(places), -1)
        means = rows.mean(axis=1)
        scores = flat @ flat.T - height * (means @ means.T)
        limit = 8 * math.sqrt(height * (1 / PROJECTION + 1 / max(panels.width, 1)))
        above = np.triu(scores > limit, 1).any(axis=0)
        for j, place in ((int(j), places[j]) for j in np.flatnonzero(above)):
            if any(scores[i, j] > limit and places[i] not in out for i in range(j)):
                out.add(place)
    return frozenset(out)


def _scores(left: _Side, right: _Side, stack: str, rows: Sequence[int], cols: Sequence[int]) -> F64:
    """Mean cosine of units at equal positions, centered, for every pair of layers: (len(rows), len(cols)).

    One matrix product a kind, so that choosing a map is cheap; what is chosen is then tested with ranks.
    """
    ours, theirs = [left.layers[stack, i] for i in rows], [right.layers[stack, j] for j in cols]
    height = min(left.panels.values.shape[1], right.panels.values.shape[1])
    kinds = sorted({k for d in ours for k in d} & {k for d in theirs for k in d})
    total = np.zeros((len(rows), len(cols)))
    for kind in kinds:
        x, y = _gather(left.panels, ours, kind, height), _gather(right.panels, theirs, kind, height)
        flat = x.reshape(len(rows), -1) @ y.reshape(len(cols), -1).T
        total += flat / height - x.mean(axis=1) @ y.mean(axis=1).T
    return total / max(1, len(kinds))


def _gather(panels: HiddenPanels, side: Sequence[Numbers], kind: tuple[str, int], height: int) -> NDArray[np.float32]:
    out = np.zeros((len(side), height, PROJECTION), np.float32)
    for i, numbers in enumerate(side):
        if kind in numbers:
            out[i] = panels.values[numbers[kind], :height]
    return out


def _best_map(left: _Side, right: _Side) -> tuple[list[LayerPair], float]:
    """The order-preserving partial matching of layers with the largest sum of cosines, and log10 of their number."""
    pairs: list[LayerPair] = []
    log10_maps = 0.0
    for stack, rows, cols in _common_stacks(left, right):
        scores = _scores(left, right, stack, rows, cols)
        pairs += [LayerPair(stack, rows[i], cols[j]) for i, j in monotone_matching(scores)]
        log10_maps += _log10_binomial(len(rows) + len(cols), len(rows))
    return pairs, log10_maps


def _common_stacks(left: _Side, right: _Side) -> Iterator[tuple[str, list[int], list[int]]]:
    """(stack, layers of A, layers of B) of every stack that both have."""
    for stack in sorted({s for s, _ in left.layers} & {s for s, _ in right.layers}):
        rows, cols = (sorted(layer for s, layer in side.layers if s == stack) for side in (left, right))
        yield stack, rows, cols


def monotone_matching(scores: F64) -> list[tuple[int, int]]:
    """Pairs (i, j), both increasing, with the largest sum of positive scores (as in sequence alignment, gaps free)."""
    n, m = scores.shape
    best = np.zeros((n + 1, m + 1))
    for i in range(n):
        row = np.maximum(best[i, 1:], best[i, :-1] + np.maximum(scores[i], 0.0))
        best[i + 1, 1:] = np.maximum.accumulate(row)
    pairs: list[tuple[int, int]] = []
    i, j = n, m
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _log10_binomial(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(10)


def _blocks(left: _Side, right: _Side, pair: LayerPair) -> list[tuple[F64, F64]]:
    """The permutable blocks that two layers have in common: units of both, each (m, 128).

    Units that are zero in either model are left out: they are alike, but stand where a pruning tool or padding put
    them, so counting them would make two classes of units at fixed places.
    """
    ours, theirs = left.layers[pair.stack, pair.a], right.layers[pair.stack, pair.b]
    out: list[tuple[F64, F64]] = []
    for kind in sorted(ours.keys() & theirs.keys()):
        x, y = ours[kind], theirs[kind]
        if left.panels.keys[x].group != right.panels.keys[y].group:  # other head sizes: positions do not correspond
            continue
        height = int(min(left.panels.heights[x], right.panels.heights[y]))
        for start, stop in _spans(left.panels, x, height):
            if (x, start) in left.repeats or (y, start) in right.repeats:
                continue
            a, b = left.wide[x, start:stop], right.wide[y, start:stop]
            live = left.live[x, start:stop] & right.live[y, start:stop]
            if live.all() and stop - start > 1:
                out.append((a, b))
            elif live.sum() > 1:
                out.append((a[live], b[live]))
    return out


@dataclass(frozen=True)
class _Measured:
    """What the blocks of one pair of layers say together, their sizes in order, the mean cosine of matched units."""

    across: int = 0
    down: int = 0
    excess: float = 0.0
    sizes: tuple[int, ...] = ()
    cosine: float = 0.0


def _measured(left: _Side, right: _Side, pairs: Sequence[LayerPair]) -> list[_Measured]:
    """What each pair of layers says. Blocks of one size go through numpy together: they are small and many."""
    blocks = [_blocks(left, right, pair) for pair in pairs]
    places: dict[int, list[tuple[int, int]]] = {}
    for i, own in enumerate(blocks):
        for j, (a, _) in enumerate(own):
            places.setdefault(len(a), []).append((i, j))
    seen: dict[tuple[int, int], tuple[int, int, float, F64]] = {}
    for some in places.values():
        ours, theirs = (np.stack([blocks[i][j][side] for i, j in some]) for side in (0, 1))
        similarity = ours @ theirs.swapaxes(1, 2)
        counts = (column.tolist() for column in ranked(similarity))
        seen.update(zip(some, zip(*counts, np.diagonal(similarity, 0, 1, 2), strict=True), strict=True))
    return [_together([seen[i, j] for j in range(len(own))]) for i, own in enumerate(blocks)]


def _together(found: Sequence[tuple[int, int, float, F64]]) -> _Measured:
    if not found:
        return _Measured()
    across, down, excess, diagonals = zip(*found, strict=True)
    cosine = float(np.mean(np.concatenate(diagonals)))
    return _Measured(sum(across), sum(down), sum(excess), tuple(map(len, diagonals)), cosine)


def _test_map(
    left: _Side, right: _Side, pairs: Sequence[LayerPair], found: Sequence[_Measured], log10_cost: float
) -> HiddenResult:
    """E1 and E1z of one layer map, from what its pairs say.

    log10_cost: log10 of how many maps this one had to compete with.
    """
    sizes = [m for one in found for m in one.sizes]
    across, down = sum(one.across for one in found), sum(one.down for one in found)
    excess = sum((one.excess for one in found), 0.0)
    blocks, rows, ceiling = len(sizes), sum(sizes), sum(m * (m - 1) / 2 for m in sizes)
    variance = 0.0
    for m in sizes:  # not with sum, which rounds differently from Python 3.12 on
        variance += m * m * (m + 1) / 12
    if rows < MIN_UNITS:
        why = (
            f"only {rows} hidden units in common that are neither zero nor NaN, {MIN_UNITS} needed"
            if rows
            else NO_BLOCKS
        )
        return HiddenResult(absent(why), absent(why))
    points = max(across, down)
    fixed_p = min(0.0, log10_fixed_points(points, blocks) + math.log10(2) + log10_cost)
    aligned_p = min(0.0, log10_alignment(excess, variance) + log10_cost)
    noise = 1 / PROJECTION + 1 / max(left.panels.width, 1)
    smallest = _smallest_cosine(variance, ceiling, log10_cost, noise)
    return HiddenResult(
        Outcome(points / rows, rows, fixed_p, blocks / rows),
        Outcome(excess / ceiling, rows, aligned_p, 0.0, smallest=smallest),
        tuple(pairs),
        tuple(one.cosine for one in found),
    )


def _smallest_cosine(variance: float, ceiling: float, log10_cost: float, noise: float) -> float | None:
    """The cosine of matched units at which the ranks would reach the threshold; None where they hardly could.

    noise: variance of the cosine of two units that do not match. A cosine c among such noise ranks its unit above
    0.5 + c / sqrt(4 pi noise) of the others, while c is small.
    """
    z = math.sqrt(2 * math.log(10) * (log10_cost - LOG10_THRESHOLD))  # a little more than the normal tail asks for
    share = z * math.sqrt(variance) / ceiling
    return share * math.sqrt(math.pi * noise) if share < 0.5 else None


def layer_matches(
    a: HiddenPanels, b: HiddenPanels, stacks: frozenset[str] | None = None
) -> list[tuple[LayerPair, float]]:
    """(pair, log10_p): for each layer of either model, its best layer of the other if significant at 1e-6.

    Unlike the maps of `hidden_tests`, one layer may have several layers of the other model: that is how repeated layers
    show, on whichever side they are. Reported for linked pairs only; it decides nothing.
    """
    left, right = _side(a, stacks), _side(b, stacks)
    out: list[tuple[LayerPair, float]] = []
    for stack, rows, cols in _common_stacks(left, right):
        scores = _scores(left, right, stack, rows, cols)
        cost = math.log10(len(rows) * len(cols))
        best = {(i, int(row.argmax())) for i, row in enumerate(scores)}
        best |= {(int(column.argmax()), j) for j, column in enumerate(scores.T)}
        pairs = [LayerPair(stack, rows[i], cols[j]) for i, j in sorted(best)]
        for pair, measured in zip(pairs, _measured(left, right, pairs), strict=True):
            found = _test_map(left, right, [pair], [measured], cost + math.log10(2))
            if found.log10_p <= LOG10_THRESHOLD:
                out.append((pair, found.log10_p))
    return out


# --- E2 ---


def residual_test(a: ResidualPanel | None, b: ResidualPanel | None) -> Outcome:
    """E2: do residual coordinates keep their positions?

    It finds an ancestor even where no layer is shared, because every layer of a model is written in one basis. One
    block, so one test; fixed points of rows, those of columns, and rank alignment are tried, and pay for it.
    """
    if a is None or b is None:
        return absent(f"fewer than {MIN_ANCHORS} anchor tokens, or no exchangeable coordinates, in one model")
    if a.width != b.width:
        return absent(f"residual widths differ ({a.width} and {b.width})")
    shared = int(((a.ids >= 0) & (b.ids >= 0)).sum())
    if shared < MIN_ANCHORS:
        return absent(f"only {shared} anchor tokens in common, {MIN_ANCHORS} needed")
    ours, theirs = _unit_columns(a.values), _unit_columns(b.values)
    live = ours.any(axis=0) & theirs.any(axis=0)
    m = int(live.sum())
    if m < MIN_UNITS:
        return absent(f"only {m} of {live.size} residual coordinates are not zero in both models, {MIN_UNITS} needed")
    similarity = ours[:, live].T @ theirs[:, live]
    across, down, gained = ranked(similarity[None])
    points, excess = max(int(across[0]), int(down[0])), float(gained[0])
    variance = m * m * (m + 1) / 12
    cost = math.log10(3)
    log10_p = min(log10_fixed_points(points, 1), log10_alignment(excess, variance)) + cost
    smallest = _smallest_cosine(variance, m * (m - 1) / 2, cost, 1 / min(shared, VIRTUAL_ANCHORS))
    return Outcome(points / m, m, min(0.0, log10_p), 1 / m, smallest=smallest)


def better(by_string: Outcome, by_id: Outcome) -> Outcome:
    """The more significant of E2 at the anchor strings and at fixed token ids, paying for both; one, if one could run.

    What would have been seen is the string test's word where it ran: ids mean something only in one vocabulary.
    """
    if by_string.log10_p is None or by_id.log10_p is None:
        return by_id if by_string.log10_p is None and by_id.log10_p is not None else by_string
    best = min((by_string, by_id), key=lambda o: (o.log10_p or 0.0, -(o.value or 0.0)))
    return replace(best, log10_p=min(0.0, (best.log10_p or 0.0) + math.log10(2)), smallest=by_string.smallest)


def residual_gram(a: ResidualPanel | None, b: ResidualPanel | None) -> Outcome:
    """E2g: unbiased CKA of the coordinates' Gram matrices, reported only; 0 on average for unrelated models.

    The estimator of Song et al. (HSIC without diagonal terms), as in Nguyen et al. (arXiv 2010.15327).
    """
    if a is None or b is None:
        return absent(f"fewer than {MIN_ANCHORS} anchor tokens, or no exchangeable coordinates, in one model")
    if a.width != b.width:
        return absent(f"residual widths differ ({a.width} and {b.width})")
    x, y = (panel.values.astype(np.float64) for panel in (a, b))
    scale = math.sqrt(max(_hsic(x, x), 0.0)) * math.sqrt(max(_hsic(y, y), 0.0))
    if not scale > 0:
        return absent("the residual panel is zero, or not finite")
    return Outcome(_hsic(x, y) / scale, x.shape[1], None, 0.0)


def _hsic(x: F64, y: F64) -> float:
    """Unbiased HSIC, up to a factor, of the linear kernels x'x and y'y with zero diagonals; x, y: (features, n)."""
    n = x.shape[1]
    own_x, own_y = (x**2).sum(axis=0), (y**2).sum(axis=0)
    sums_x, sums_y = x.T @ x.sum(axis=1) - own_x, y.T @ y.sum(axis=1) - own_y
    trace = float(((x @ y.T) ** 2).sum() - own_x @ own_y)
    total = float(sums_x.sum() * sums_y.sum()) / ((n - 1) * (n - 2))
    return float(trace + total - 2 * float(sums_x @ sums_y) / (n - 2))


def _unit_columns(values: NDArray[np.float16]) -> F64:
    wide = values.astype(np.float64)
    norms = np.sqrt((wide**2).sum(axis=0))
    return np.asarray(wide / np.where(norms > 0, norms, 1.0), np.float64)
