"""Tests whose p-values hold for any pair of independently initialized models: E0, E1, E1z and E2 of evidence/README.md.

If the hidden units of A are exchangeable given B (independent random start, an optimizer that treats units alike), the
position of a unit says nothing about B. The number F of rows of A whose best match in B stands at the same position then has
P(F >= k) <= 1/k!, whatever the similarity, and L independently permuted blocks have P(sum F >= k) <= L^k / k!
(Zhu et al., "Independence Tests for Language Models", ICML 2025, arXiv 2502.12292).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.panels import (
    MIN_ANCHORS,
    PROJECTION,
    BlockDigests,
    HiddenPanels,
    PanelKey,
    ResidualPanel,
)

F64 = NDArray[np.float64]
LOG10_COLLISION = -19.0  # two different blocks with one 64-bit digest: 2^-64
LOG10_THRESHOLD = -6.0

Numbers = dict[tuple[str, int], int]  # (kind, expert) -> panel number
Layers = dict[tuple[str, int], Numbers]  # (stack, layer) -> its panels


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of one pair.

    value: the effect, in [-1, 1]; n: how many things were compared; log10_p: at most 0; chance: the value that unrelated
    models take on average. Absent tests have only a reason. smallest: the smallest cosine between matched hidden units
    that this test would have called linked, where that can be said.
    """

    value: float | None = None
    n: int | None = None
    log10_p: float | None = None
    chance: float | None = None
    reason: str | None = None
    smallest: float | None = None


def absent(reason: str) -> Outcome:
    """A test that could not run."""
    return Outcome(reason=reason)


def log10_fixed_points(k: int, blocks: int) -> float:
    """log10 of the bound blocks^k / k! on the chance of k or more fixed points in that many blocks, at most 0."""
    if k == 0 or blocks == 0:
        return 0.0
    return min(0.0, k * math.log10(blocks) - math.lgamma(k + 1) / math.log(10))


def log10_normal_tail(z: float) -> float:
    """log10 of P(Z >= z) for a standard normal; the asymptotic series where the tail leaves the floating-point range."""
    if z < 30:
        return math.log10(0.5 * math.erfc(z / math.sqrt(2)))
    return -(z * z / 2 + math.log(z * math.sqrt(2 * math.pi))) / math.log(10)


def fixed_points(similarity: NDArray[np.float32]) -> int:
    """Rows whose largest entry stands on the diagonal, summed over leading axes; similarity: (..., m, m)."""
    m = similarity.shape[-1]
    return int((similarity.argmax(axis=-1) == np.arange(m)).sum())


def rank_alignment(similarity: NDArray[np.float32]) -> tuple[float, float]:
    """How far the diagonal ranks above chance inside its rows: (sum of excess ranks, its variance under the null).

    similarity: (..., m, m). Ranks, because heavy-tailed rows make the normal tail wrong by orders of magnitude. Within-row
    ranks of a random permutation have mean (m - 1) / 2; their variance is at most that of rows without ties whose columns
    are alike, which is used here: it makes the z smaller, never larger.
    """
    m = similarity.shape[-1]
    diagonal = np.diagonal(similarity, axis1=-2, axis2=-1)[..., None]
    below = (similarity < diagonal).sum(axis=-1)
    ties = (similarity == diagonal).sum(axis=-1) - 1
    excess = float((below + 0.5 * ties - (m - 1) / 2).sum())
    blocks = similarity.size // (m * m)
    return excess, blocks * m * m * (m + 1) / 12


# --- E0 ---


def bit_reuse(
    a: BlockDigests | None, b: BlockDigests | None, common: frozenset[int] = frozenset()
) -> tuple[Outcome, str | None]:
    """E0: share of the smaller model's blocks that the other one has too, bit for bit or after rounding.

    common: digests that unrelated families share, which say nothing. Returns the outcome and at which precision the most
    blocks agree ("exact", "bf16" or "f16"; None when none do). Blocks count wherever they stand in either model.
    """
    if a is None or b is None:
        return absent("no weight matrix with a known role in one of the models"), None
    best: tuple[int, str] = (0, "exact")
    n = 0
    for precision in ("exact", "bf16", "f16"):
        left, right = _owners(getattr(a, precision), common), _owners(getattr(b, precision), common)
        shared = left.keys() & right.keys()
        n = max(n, min(len(left), len(right)))
        tensors = min(len({left[d] for d in shared}), len({right[d] for d in shared}))
        if tensors >= 2 and len(shared) > best[0]:
            best = (len(shared), precision)
    if n == 0:
        return absent("no block with at least 64 distinct values in one of the models"), None
    count, precision = best
    log10_p = min(0.0, count * LOG10_COLLISION + math.log10(3)) if count else 0.0
    return Outcome(count / n, n, log10_p, 0.0), precision if count else None


def _owners(digests: NDArray[np.uint64], common: frozenset[int]) -> dict[int, int]:
    """Digest -> number of the tensor it was first seen in."""
    owners: dict[int, int] = {}
    for tensor, pair in enumerate(digests.tolist()):
        for digest in pair:
            if digest and digest not in common:
                owners.setdefault(digest, tensor)
    return owners


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


def hidden_tests(a: HiddenPanels | None, b: HiddenPanels | None) -> HiddenResult:
    """E1 (fixed points) and E1z (rank alignment) over layer maps.

    Two kinds of map are tried: layer l to layer l, and the best order-preserving partial matching. The second pays for every
    such matching that could have been chosen (a union bound), and both pay for there being two.
    """
    reason = _incomparable(a, b)
    if reason or a is None or b is None:
        return HiddenResult(absent(reason or "no panels"), absent(reason or "no panels"))
    left, right = _by_layer(a), _by_layer(b)
    identity = [LayerPair(s, layer, layer) for s, layer in sorted(left.keys() & right.keys())]
    matched, log10_maps = _best_map(a, left, b, right)
    results = [
        _test_map(a, left, b, right, pairs, cost + math.log10(2))
        for pairs, cost in ((identity, 0.0), (matched, log10_maps))
        if pairs
    ]
    if not results:
        why = "no block of hidden units in common (other stacks, experts or head sizes)"
        return HiddenResult(absent(why), absent(why))
    return min(results, key=lambda r: (r.log10_p, -sum(r.cosines)))


def _incomparable(a: HiddenPanels | None, b: HiddenPanels | None) -> str | None:
    if a is None or b is None:
        return "no hidden units with a known role in one of the models"
    if a.width != b.width:
        return f"residual widths differ ({a.width} and {b.width})"
    return None


def _by_layer(panels: HiddenPanels) -> Layers:
    """(stack, layer) -> {(kind, expert): panel number}, without layers that repeat an earlier one of the same model."""
    layers = _all_layers(panels)
    for stack in {s for s, _ in layers}:
        names = sorted(layer for s, layer in layers if s == stack)
        scores, rows = _diagonal(panels, panels, [layers[stack, n] for n in names], [layers[stack, n] for n in names])
        repeats = np.triu(scores > 8 / math.sqrt(PROJECTION * max(rows, 1)), 1).any(axis=0)
        for layer in np.asarray(names)[repeats]:
            del layers[stack, int(layer)]
    return layers


def _diagonal(
    a: HiddenPanels,
    b: HiddenPanels,
    left: Sequence[Numbers],
    right: Sequence[Numbers],
) -> tuple[F64, int]:
    """Mean cosine of units at equal positions, centered, for every pair of layers: (len(left), len(right)), and the rows.

    One matrix product a kind, so that choosing a map is cheap; what is chosen is then tested with ranks.
    """
    height = min(a.values.shape[1], b.values.shape[1])
    total = np.zeros((len(left), len(right)))
    rows = 0
    for kind in sorted({k for d in left for k in d} & {k for d in right for k in d}):
        x, y = (_gather(p, side, kind, height) for p, side in ((a, left), (b, right)))
        flat = x.reshape(len(left), -1) @ y.reshape(len(right), -1).T
        total += flat / height - x.mean(axis=1) @ y.mean(axis=1).T
        rows += height
    return total / max(1, rows // max(height, 1)), rows


def _gather(panels: HiddenPanels, side: Sequence[Numbers], kind: tuple[str, int], height: int) -> NDArray[np.float32]:
    out = np.zeros((len(side), height, PROJECTION), np.float32)
    for i, numbers in enumerate(side):
        if kind in numbers:
            out[i] = panels.values[numbers[kind], :height]
    return out


def _best_map(
    a: HiddenPanels,
    left: Layers,
    b: HiddenPanels,
    right: Layers,
) -> tuple[list[LayerPair], float]:
    """The order-preserving partial matching of layers with the largest sum of cosines, and log10 of how many there are."""
    pairs: list[LayerPair] = []
    log10_maps = 0.0
    for stack in sorted({s for s, _ in left} & {s for s, _ in right}):
        rows, cols = (sorted(layer for s, layer in side if s == stack) for side in (left, right))
        scores, _ = _diagonal(a, b, [left[stack, i] for i in rows], [right[stack, j] for j in cols])
        pairs += [LayerPair(stack, rows[i], cols[j]) for i, j in monotone_matching(scores)]
        log10_maps += _log10_binomial(len(rows) + len(cols), len(rows))
    return pairs, log10_maps


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


def _blocks(
    a: HiddenPanels,
    left: Layers,
    b: HiddenPanels,
    right: Layers,
    pair: LayerPair,
) -> list[NDArray[np.float32]]:
    """Cosine matrices of the permutable blocks that two layers have in common, each (m, m)."""
    ours, theirs = left[pair.stack, pair.a], right[pair.stack, pair.b]
    out: list[NDArray[np.float32]] = []
    for kind in sorted(ours.keys() & theirs.keys()):
        x, y = ours[kind], theirs[kind]
        group = _shared_group(a.keys[x], b.keys[y])
        height = int(min(a.heights[x], b.heights[y]))
        if group is None:
            continue
        for start in range(0, height, group or height):
            rows = slice(start, min(start + (group or height), height))
            if rows.stop - rows.start > 1:
                out.append(a.values[x, rows].astype(np.float32) @ b.values[y, rows].astype(np.float32).T)
    return out


def _shared_group(a: PanelKey, b: PanelKey) -> int | None:
    """Units that share a permutation: 0 for all; None when head sizes differ, so that positions do not correspond."""
    return a.group if a.group == b.group else None


def _test_map(
    a: HiddenPanels,
    left: Layers,
    b: HiddenPanels,
    right: Layers,
    pairs: Sequence[LayerPair],
    log10_cost: float,
) -> HiddenResult:
    """E1 and E1z of one layer map; log10_cost: log10 of how many maps this one had to compete with."""
    points, blocks, rows, excess, variance, ceiling = 0, 0, 0, 0.0, 0.0, 0.0
    cosines: list[float] = []
    for pair in pairs:
        matrices = _blocks(a, left, b, right, pair)
        diagonals = [np.diagonal(m) for m in matrices]
        cosines.append(float(np.mean(np.concatenate(diagonals))) if diagonals else 0.0)
        for matrix in matrices:
            points += fixed_points(matrix)
            gained, spread = rank_alignment(matrix)
            blocks, rows = blocks + 1, rows + len(matrix)
            excess, variance = excess + gained, variance + spread
            ceiling += len(matrix) * (len(matrix) - 1) / 2
    if not blocks:
        return HiddenResult(absent("no block of hidden units in common"), absent("no block of hidden units in common"))
    fixed_p = min(0.0, log10_fixed_points(points, blocks) + log10_cost)
    aligned_p = min(0.0, log10_normal_tail(excess / math.sqrt(variance)) + log10_cost)
    smallest = _smallest_cosine(variance, ceiling, log10_cost)
    return HiddenResult(
        Outcome(points / rows, rows, fixed_p, blocks / rows),
        Outcome(excess / ceiling, rows, aligned_p, 0.0, smallest=smallest),
        tuple(pairs),
        tuple(cosines),
    )


def _smallest_cosine(variance: float, ceiling: float, log10_cost: float) -> float | None:
    """The cosine of matched units at which E1z would reach the threshold, for units whose noise is the projection's."""
    z = math.sqrt(2 * math.log(10) * (log10_cost - LOG10_THRESHOLD))  # a little more than the normal tail asks for
    share = z * math.sqrt(variance) / ceiling
    return share * math.sqrt(math.pi / PROJECTION) if share < 0.5 else None


def layer_matches(a: HiddenPanels, b: HiddenPanels) -> list[tuple[LayerPair, float]]:
    """For each layer of A, its best layer of B if significant at 1e-6 over all pairs: (pair, log10_p).

    Unlike the maps of `hidden_tests`, several layers of A may have one and the same layer of B: that is how repeated
    layers show. Reported for linked pairs only; it decides nothing.
    """
    left, right = _all_layers(a), _all_layers(b)
    out: list[tuple[LayerPair, float]] = []
    for stack in sorted({s for s, _ in left} & {s for s, _ in right}):
        rows, cols = (sorted(layer for s, layer in side if s == stack) for side in (left, right))
        scores, _ = _diagonal(a, b, [left[stack, i] for i in rows], [right[stack, j] for j in cols])
        cost = math.log10(len(rows) * len(cols))
        for i, row in enumerate(scores):
            pair = LayerPair(stack, rows[i], cols[int(row.argmax())])
            found = _test_map(a, left, b, right, [pair], cost + math.log10(2))
            if found.log10_p <= LOG10_THRESHOLD:
                out.append((pair, found.log10_p))
    return out


def _all_layers(panels: HiddenPanels) -> Layers:
    layers: Layers = {}
    for number, key in enumerate(panels.keys):
        if key.kind == "mlp" or key.group > 0:
            layers.setdefault((key.stack, key.layer), {})[key.kind, key.expert] = number
    return layers


# --- E2 ---


def residual_test(a: ResidualPanel | None, b: ResidualPanel | None) -> tuple[Outcome, float]:
    """E2: do residual coordinates keep their positions? Returns the outcome and the median cosine of matched coordinates.

    It finds an ancestor even where no layer is shared, because every layer of a model is written in one basis. One block, so
    one test; fixed points and rank alignment are both tried, and pay for it.
    """
    if a is None or b is None:
        return absent(
            f"fewer than {MIN_ANCHORS} of the 512 anchor tokens, or no exchangeable coordinates, in one model"
        ), 0.0
    if a.width != b.width:
        return absent(f"residual widths differ ({a.width} and {b.width})"), 0.0
    shared = int(((a.ids >= 0) & (b.ids >= 0)).sum())
    if shared < MIN_ANCHORS:
        return absent(f"only {shared} anchor tokens in common, {MIN_ANCHORS} needed"), 0.0
    similarity = _unit_columns(a.values).T @ _unit_columns(b.values)
    points, m = fixed_points(similarity), similarity.shape[0]
    excess, variance = rank_alignment(similarity)
    log10_p = min(log10_fixed_points(points, 1), log10_normal_tail(excess / math.sqrt(variance))) + math.log10(2)
    return Outcome(points / m, m, min(0.0, log10_p), 1 / m), float(np.median(np.diagonal(similarity)))


def _unit_columns(values: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = values.astype(np.float32)
    norms = np.sqrt((wide**2).sum(axis=0))
    return wide / np.where(norms > 0, norms, 1.0)
