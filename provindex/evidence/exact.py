"""Statistics of the exact tests E1, E1z and E2, whose p-values hold for any pair of independently initialized models.

If the hidden units of A are exchangeable given B (independent random start, an optimizer that treats units alike),
the position of a unit says nothing about B. The number F of rows of A whose best match in B stands at the same
position then has P(F >= k) <= 1/k!, whatever the similarity, and L independently permuted blocks have P(sum F >= k)
<= L^k / k! (Zhu et al., "Independence Tests for Language Models", ICML 2025, arXiv 2502.12292).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
LOG10_THRESHOLD = -6.0
MIN_UNITS = 8  # fewer comparable units can never reach the threshold by fixed points


def log10_fixed_points(k: int, blocks: int) -> float:
    """log10 of the bound blocks^k / k! on the chance of k or more fixed points in that many blocks, at most 0."""
    if k == 0 or blocks == 0:
        return 0.0
    return min(0.0, k * math.log10(blocks) - math.lgamma(k + 1) / math.log(10))


class Places(NamedTuple):
    """Units whose largest similarity stands at their own place, by rows (across) and by columns (down); and those whose
    smallest one does (against).
    """

    across: int = 0
    down: int = 0
    against_across: int = 0
    against_down: int = 0

    @property
    def most(self) -> int:
        """Fixed points by rows or by columns, whichever are more."""
        return max(self.across, self.down)


def log10_sign_tail(own: int, against: int) -> float:
    """log10 of P(Binomial(own + against, 1/2) >= own).

    own, against: units whose largest, and whose smallest, similarity is the one with their own place. Two models that
    were pruned with one mask have units whose similarity at their own place is far from zero without any descent: but
    it is negative as often as positive, because each unit of a random start may have its sign flipped. What descends
    keeps the sign.
    """
    n = own + against
    if own <= against:
        return 0.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(own, n + 1)]
    largest = max(logs)
    total = largest + math.log(math.fsum(math.exp(one - largest) for one in logs))
    return min(0.0, (total - n * math.log(2)) / math.log(10))


def log10_places(found: Places, blocks: int) -> float:
    """log10 p of fixed points in that many blocks, of rows or of columns, whichever says more: two ways were tried.

    Of each, the larger of the bound for exchangeable units and of what their signs say (`log10_sign_tail`).
    """
    across = max(log10_fixed_points(found.across, blocks), log10_sign_tail(found.across, found.against_across))
    down = max(log10_fixed_points(found.down, blocks), log10_sign_tail(found.down, found.against_down))
    return min(0.0, min(across, down) + math.log10(2))


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
    """Of each block, (n,) each: what its diagonal says.

    across, down: fixed points of rows and of columns (as in `fixed_points`). against_across, against_down: rows and
    columns whose smallest entry stands on the diagonal. excess: sum of the centered ranks of the diagonal; squares: sum
    of their squares.
    """

    across: NDArray[np.int64]
    down: NDArray[np.int64]
    against_across: NDArray[np.int64]
    against_down: NDArray[np.int64]
    excess: F64
    squares: F64

    @property
    def places(self) -> Places:
        """Counts of all blocks together."""
        return Places(*(int(counts.sum()) for counts in self[:4]))


def ranked(blocks: F64) -> Ranked:
    """What `fixed_points` and `rank_alignment` say of each of some similarities, (n, m, m), in one look.

    Entries are counted and none is sorted. Ranks are halves of whole numbers: their sum is exact in any order. Where
    nothing ties with it, an entry is the first largest of its row if it equals the maximum; blocks with ties or NaNs on
    the diagonal are left to argmax.
    """
    m = blocks.shape[-1]
    diagonal = np.diagonal(blocks, 0, 1, 2)
    ranks, tied = np.full(diagonal.shape, (1 - m) / 2), np.isnan(diagonal).any(axis=1)
    for axis, own in ((2, diagonal[:, :, None]), (1, diagonal[:, None, :])):
        ties = _counted(blocks == own, axis) - 1
        tied |= (ties != 0).any(axis=1)
        ranks += 0.5 * (_counted(blocks < own, axis) + 0.5 * ties)
    across, down = ((blocks.max(axis=axis) == diagonal).sum(axis=1) for axis in (2, 1))
    against = [(blocks.min(axis=axis) == diagonal).sum(axis=1) for axis in (2, 1)]
    for i in np.flatnonzero(tied):
        across[i], down[i] = fixed_points(blocks[i])
        against[0][i], against[1][i] = fixed_points(-blocks[i])
    return Ranked(across, down, against[0], against[1], ranks.sum(axis=1), (ranks**2).sum(axis=1))


def _counted(flags: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """How many are set along an axis of (n, m, m); numpy adds int8 many times as fast as it adds flags."""
    short = np.int8 if flags.shape[-1] < 1 << 7 else np.int16
    return np.asarray(flags.view(np.int8).sum(axis=axis, dtype=short).astype(np.int64))


def log10_alignment(excess: float, variance: float) -> float:
    """log10 of the normal tail at a sum of excess ranks, less a continuity correction.

    The correction is half of the widest lattice that such sums can have: steps of 2, of blocks of two rows. Without an
    excess the value is 1: there a variance that is a bound would make it too small.
    """
    return log10_normal_tail((excess - 1.0) / math.sqrt(variance)) if excess > 1.0 else 0.0


# --- E1, E1z ---


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


def log10_binomial(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(10)


def smallest_cosine(variance: float, ceiling: float, log10_cost: float, noise: float) -> float | None:
    """The cosine of matched units at which the ranks would reach the threshold; None where they hardly could.

    noise: variance of the cosine of two units that do not match. A cosine c among such noise ranks its unit above
    0.5 + c / sqrt(4 pi noise) of the others, while c is small.
    """
    z = math.sqrt(2 * math.log(10) * (log10_cost - LOG10_THRESHOLD))  # a little more than the normal tail asks for
    share = z * math.sqrt(variance) / ceiling
    return share * math.sqrt(math.pi * noise) if share < 0.5 else None
