"""E5, deep mode: does a model descend from another if its vocabulary was replaced and its residual stream rotated?

Nothing names the coordinates of a rotated model, and nothing names its neurons. What a rotation keeps are angles: those
between the gate, up and down vectors of one neuron, and between them and all neurons of other layers, which are written
in the same basis. So:

1. Neurons of the *training* half of the layers are described by moments of these angles. Close descriptions make a soft
   assignment of neurons to neurons, the assignment gives the rotation (orthogonal Procrustes), the rotation a sharper
   assignment, and so on.
2. Under that rotation the neurons of the *held-out* half are matched three times: by gate, by up and by down. The
   statistic is the number of neurons on which the three matchings agree, as in E3 (evidence/README.md). The rotation
   was fitted without these layers: however well it fits where it was fitted, independent models agree here by chance.

Sources: Schoenemann, Psychometrika 31 (1966), for the orthogonal Procrustes problem; Grave, Joulin and Berthet,
"Unsupervised Alignment of Embeddings with Wasserstein Procrustes" (AISTATS 2019), for alternating it with a soft
assignment; Sinkhorn and Knopp (1967) for the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.evidence.aligned import OTHER_KIND, log10_poisson_tail
from provindex.evidence.exact import F64

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

COMMON = 8  # principal directions that are left out: they hold what all neurons of a model share
COORDINATES = 1_024  # principal directions that are kept: they bound the cost for wide models
SWEEPS = 6  # of the subspace iteration that finds them
SPREAD = 25.0  # neurons over which the first assignment of a neuron spreads, on average
PRIOR = 0.5  # weight of the descriptions beside the angles under the rotation, falling to zero
SOFT_ROUNDS, HARD_ROUNDS = 15, 8
STABLE = 0.95  # share of neurons that keep their match from one round to the next, where rounds may stop
FLOOR = 2.0  # of the variances that descriptions are divided by, in units of their mean
MIN_NEURONS = 32  # of a layer
SIGNATURE_NEURONS = 256
QUANTILES = np.linspace(0.05, 0.95, 10)
TAIL = np.array([0.5, 0.9, 0.99, 0.999])


@dataclass(frozen=True)
class Neurons:
    """Hidden units of the MLP of one layer.

    layer: its index in the stack. roles: unit rows (n, d) float32 of gate, up and down in canonical form, or of up and
    down where there is no gate. strength: (n,) products of their lengths, which no rescaling of units changes.
    """

    layer: int
    roles: tuple[F32, ...]
    strength: F64

    @property
    def count(self) -> int:
        """How many neurons."""
        return len(self.strength)


def deep_test(a: Sequence[Neurons], b: Sequence[Neurons], log10_maps: float = 0.0) -> Outcome:
    """E5: the share of held-out neurons on which matchings by gate, up and down agree, and its chance level.

    a, b: layers that are thought to correspond, in the same order; those at even places fit the rotation, those at odd
    places are held out. log10_maps: log10 of the number of layer maps that this one had to compete with. The p-value
    is Poisson with the larger of two means: what the in-degrees of the matchings give, and what the worst of the
    held-out layers that do *not* correspond show, plus one neuron. Absent with a reason if the models cannot be
    compared. (A, B) and (B, A) get one answer up to rounding.
    """
    reason = _incomparable(a, b)
    if reason:
        return absent(reason)
    ours, theirs = principal(a), principal(b)
    turn = fit(ours[::2], theirs[::2])
    held_a, held_b = ours[1::2], theirs[1::2]
    found = [agreement(x, y, turn) for x, y in zip(held_a, held_b, strict=True)]
    apart = [(x, y) for x in held_a for y in held_b if held_a.index(x) != held_b.index(y)]
    wrong = [agreement(x, y, turn) for x, y in apart or [(held_a[0], y) for y in theirs[::2]]]
    f3, n = sum(f.agreeing for f in found), sum(f.neurons for f in found)
    mean = max(sum(f.expected for f in found), n * max((f.agreeing + 1) / f.neurons for f in wrong))
    log10_p = min(0.0, log10_poisson_tail(f3, mean) + log10_maps)
    return Outcome(f3 / n, n, log10_p, mean / n)


def _incomparable(a: Sequence[Neurons], b: Sequence[Neurons]) -> Reason | None:
    if min(len(a), len(b)) < 2:
        return Reason.of(Code.DEEP_LAYERS_FEW)
    if len({len(x.roles) for x in chain(a, b)}) > 1:
        return OTHER_KIND
    widths = [x[0].roles[0].shape[1] for x in (a, b)]
    if widths[0] != widths[1]:
        return Reason.of(Code.DEEP_WIDTHS_DIFFER, a=widths[0], b=widths[1])
    fewest = min(x.count for x in chain(a, b))
    return Reason.of(Code.DEEP_NEURONS_FEW, n=fewest, needed=MIN_NEURONS) if fewest < MIN_NEURONS else None


# --- coordinates ---


def principal(layers: Sequence[Neurons]) -> list[Neurons]:
    """The same neurons in at most 1,024 principal coordinates of all their vectors, without the 8 leading ones.

    The leading directions are those of all neurons at once: matchings that look at them agree between unrelated models.
    """
    axes = _leading_axes([rows for layer in layers for rows in layer.roles])[:, COMMON:]
    return [Neurons(x.layer, tuple(unit(r @ axes) for r in x.roles), x.strength) for x in layers]


def unit(rows: F32) -> F32:
    """Rows divided by their length; zero rows stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.asarray(rows / np.where(norms > 0, norms, np.float32(1.0))[:, None], np.float32)


def _leading_axes(matrices: Sequence[F32]) -> F32:
    """Orthonormal (d, k) float32: the leading eigenvectors of the summed second moments, the largest first."""
    width = matrices[0].shape[1]
    if width <= COMMON + COORDINATES:
        moments = sum((m.T @ m for m in matrices), np.zeros((width, width), np.float32))
        return np.ascontiguousarray(np.linalg.eigh(moments)[1][:, ::-1])
    axes = np.random.default_rng(0).standard_normal((width, COMMON + COORDINATES)).astype(np.float32)
    for _ in range(SWEEPS):
        axes = np.linalg.qr(sum((m.T @ (m @ axes) for m in matrices), np.zeros_like(axes)))[0]
    small = sum((y.T @ y for y in (m @ axes for m in matrices)), np.zeros((axes.shape[1],) * 2, np.float32))
    return np.asarray(axes @ np.linalg.eigh(small)[1][:, ::-1], np.float32)


# --- descriptions that no rotation changes ---


def describe(layer: Neurons, panorama: Sequence[Neurons]) -> F64:
    """(n, D): moments of the angles between each neuron's vectors and those of all neurons of the given layers.

    Up and down may change sign together, so only what that keeps is used.
    """
    *gate, up, down = layer.roles
    columns: list[F32 | F64] = [_dots(up, down), np.log(layer.strength + 1e-300)]
    for g in gate:
        to_up, to_down = _dots(g, up), _dots(g, down)
        columns += [np.abs(to_up), np.abs(to_down), to_up * to_down]
    for target in (rows for other in panorama for rows in other.roles):
        columns += _moments([x @ target.T for x in layer.roles])
    return np.stack([np.asarray(c, np.float64) for c in columns], axis=1)


def _dots(x: F32, y: F32) -> F32:
    return np.asarray(np.einsum("ij,ij->i", x, y), np.float32)


def _moments(cosines: Sequence[F32]) -> list[F32]:
    """Per neuron: moments of its cosines to the rows of one matrix, by its own roles and across them."""
    out: list[F32] = []
    for x in cosines:
        squares = x * x
        out += [squares.mean(axis=1), np.abs(x).mean(axis=1), (squares * squares).mean(axis=1)]
    *gate, up, down = cosines
    out.append(_dots(up, down))
    return out + [np.abs(_dots(g, x)) for g in gate for x in (up, down)]


def distances(a: F64, b: F64) -> F32:
    """Squared distances (n, m) of two sets of descriptions, by ranks and in the axes of their pooled covariance.

    Ranks, because heavy tails and what shifts all neurons of a model alike say nothing about which is which.
    """
    ranked = [_normal_scores(x) for x in (a, b)]
    pooled = np.concatenate(ranked)
    values, vectors = np.linalg.eigh(pooled.T @ pooled / len(pooled))
    left, right = (x @ (vectors / np.sqrt(np.maximum(values, 0.0) + FLOOR * values.mean())) for x in ranked)
    squared = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1) - 2 * left @ right.T
    return np.asarray(squared, np.float32)


def _normal_scores(columns: F64) -> F64:
    """Each column by its ranks, spread like a logistic variable of variance near one."""
    ranks = columns.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    share = (ranks + 0.5) / len(columns)
    return np.asarray(np.log(share / (1 - share)) / 1.702, np.float64)


# --- assignment and rotation, on the training half ---


def fit(a: Sequence[Neurons], b: Sequence[Neurons]) -> F32:
    """The orthogonal matrix that takes vectors of A to those of B, told from these layers alone."""
    prior = [_scaled(-distances(describe(x, a), describe(y, b)), SPREAD) for x, y in zip(a, b, strict=True)]
    turn, before = rotation(a, b, [_assignment(p) for p in prior], None), None
    for step in range(1, SOFT_ROUNDS):
        fade = 1 - step / SOFT_ROUNDS
        angles = [cosines(x, y, turn) for x, y in zip(a, b, strict=True)]
        now = [mutual(s) for s in angles]
        if before is not None and _kept(before, now) >= STABLE:
            break
        soft = [_scaled(s, SPREAD * fade + 1.5) + PRIOR * fade * p for s, p in zip(angles, prior, strict=True)]
        turn, before = rotation(a, b, [_assignment(s) for s in soft], turn), now
    return _hardened(a, b, turn)


def _hardened(a: Sequence[Neurons], b: Sequence[Neurons], turn: F32) -> F32:
    """Rounds in which only mutual best matches count, by their lead over the second best."""
    before: list[F32] | None = None
    for _ in range(HARD_ROUNDS):
        now = [mutual(cosines(x, y, turn)) for x, y in zip(a, b, strict=True)]
        turn = rotation(a, b, now, turn)
        if before is not None and _kept(before, now) >= STABLE:
            break
        before = now
    return turn


def _kept(before: Sequence[F32], now: Sequence[F32]) -> float:
    """The share of neurons, of those that could have a match, that have the same one as before."""
    same = sum(int(((x > 0) & (y > 0)).sum()) for x, y in zip(before, now, strict=True))
    return same / sum(min(len(x), len(x.T)) for x in now)


def cosines(x: Neurons, y: Neurons, turn: F32) -> F32:
    """(n, m): mean cosine of the vectors of two neurons under a rotation; up and down may both be turned around."""
    *gate, up, down = _turned(x, y, turn)
    return np.asarray((gate[0] + np.abs(up + down)) / 3 if gate else (up + down) / 2, np.float32)


def _turned(x: Neurons, y: Neurons, turn: F32) -> list[F32]:
    """Per role, (n, m): cosines of the turned vectors of A with those of B."""
    return [np.asarray(p @ turn @ q.T, np.float32) for p, q in zip(x.roles, y.roles, strict=True)]


def mutual(similarity: F32) -> F32:
    """(n, m): where two neurons are each other's best match, by how much they lead; zero elsewhere."""
    n, m = similarity.shape
    best, across = similarity.argmax(axis=1), similarity.argmax(axis=0)
    rows = np.flatnonzero(across[best] == np.arange(n))
    columns = best[rows]
    top = similarity[rows, columns]
    beside = np.partition(similarity[rows], -2, axis=1)[:, -2]
    second = np.maximum(beside, np.partition(similarity[:, columns], -2, axis=0)[-2])
    out = np.zeros((n, m), np.float32)
    out[rows, columns] = np.maximum(top - second, 1e-6)
    return out


def rotation(a: Sequence[Neurons], b: Sequence[Neurons], weights: Sequence[F32], turn: F32 | None) -> F32:
    """Orthogonal (d, d) with the least sum of squares between turned vectors of A and vectors of B, as weighted.

    weights: (n, m) for each pair of layers. turn: the rotation so far, which tells the signs of up and down; without it
    only the gates of gated MLPs count, which have a sign.
    """
    width = a[0].roles[0].shape[1]
    total = np.zeros((width, width), np.float32)
    for x, y, w in zip(a, b, weights, strict=True):
        gated = len(x.roles) == 3
        if not gated or turn is None:
            signed = w
        else:
            (_, up, down), (_, other_up, other_down) = x.roles, y.roles
            signed = w * np.sign(up @ turn @ other_up.T + down @ turn @ other_down.T)
        for role, (p, q) in enumerate(zip(x.roles, y.roles, strict=True)):
            if not gated or turn is not None or role == 0:
                total += p.T @ ((w if gated and role == 0 else signed) @ q)
    left, _, right = np.linalg.svd(total)
    return np.asarray(left @ right, np.float32)


def _scaled(scores: F32, spread: float) -> F32:
    """Scores times the factor at which a row's softmax spreads over `spread` columns, in the mean of 128 rows."""
    sample = scores[:: max(1, len(scores) // 128)].astype(np.float64)
    sample -= sample.max(axis=1, keepdims=True)
    low, high = 1e-4, 1e6
    for _ in range(40):
        middle = math.sqrt(low * high)
        logits = sample * middle
        p = np.exp(logits)
        total = p.sum(axis=1)
        entropy = float((np.log(total) - (p * logits).sum(axis=1) / total).mean())
        low, high = (middle, high) if entropy > math.log(spread) else (low, middle)
    return scores * np.float32(low)


def _assignment(logits: F32, rounds: int = 10) -> F32:
    """(n, m) weights whose rows, and nearly columns, have equal sums: Sinkhorn's iteration."""
    out: F32 = np.exp(logits - logits.max(axis=1, keepdims=True)) + np.float32(1e-30)
    n, m = out.shape
    for _ in range(rounds):
        out *= np.float32(n / m) / out.sum(axis=0)
        out /= out.sum(axis=1, keepdims=True)
    return out


# --- the statistic, on the held-out half ---


@dataclass(frozen=True)
class Agreement:
    """Neurons on which the matchings by each role agree, of how many, and how many would by chance."""

    agreeing: int
    neurons: int
    expected: float


def agreement(x: Neurons, y: Neurons, turn: F32) -> Agreement:
    """The agreement of the matchings by gate, |up| and |down| of one pair of layers (by up and down without a gate).

    Every neuron of the smaller layer is matched; of two equal ones both directions are tried and the lower counts.
    expected: sum of the products of in-degrees over n squared (over n for two roles).
    """
    *gate, up, down = _turned(x, y, turn)
    by_role = [*gate, np.abs(up), np.abs(down)] if gate else [up, down]
    n, m = by_role[0].shape
    ways = [*([by_role] if n <= m else []), *([[s.T for s in by_role]] if m <= n else [])]
    return min((_agreement(way) for way in ways), key=lambda f: (f.agreeing, -f.expected))


def _agreement(by_role: Sequence[F32]) -> Agreement:
    n, m = by_role[0].shape
    picks = np.stack([s.argmax(axis=1) for s in by_role])
    degrees = np.prod([np.bincount(p, minlength=m).astype(np.float64) for p in picks], axis=0)
    return Agreement(int((picks == picks[0]).all(axis=0).sum()), n, float(degrees.sum()) / n ** (len(picks) - 1))


# --- which layers correspond ---


def signature(layer: Neurons) -> F64:
    """(D,) quantiles of what no rotation, order or rescaling of neurons changes: a layer's face, cheap to compare."""
    top = np.argsort(-layer.strength, kind="stable")[:SIGNATURE_NEURONS]
    roles = [rows[top] for rows in layer.roles]
    logs = np.log(layer.strength[top] + 1e-300)
    *gate, up, down = roles
    parts = [np.quantile(logs - logs.mean(), QUANTILES), np.quantile(_dots(up, down), QUANTILES)]
    parts += [np.quantile(np.abs(_dots(g, x)), QUANTILES) for g in gate for x in (up, down)]
    corner = np.triu_indices(len(top), 1)
    parts += [np.quantile(np.abs(rows @ rows.T)[corner], TAIL) for rows in roles]
    return np.concatenate(parts).astype(np.float64)


def pair_layers(a: F64, b: F64) -> tuple[list[tuple[int, int]], float]:
    """Every layer of the shallower model with its layer of the deeper one, in order, and log10 of how many maps exist.

    a, b: signatures (L_A, D) and (L_B, D). Of models of one depth, layer i is paired with layer i.
    """
    if len(a) == len(b):
        return [(i, i) for i in range(len(a))], 0.0
    if len(a) > len(b):
        pairs, cost = pair_layers(b, a)
        return [(i, j) for j, i in pairs], cost
    spread = np.concatenate([a, b]).std(axis=0)
    scaled = [x / np.where(spread > 0, spread, 1.0) for x in (a, b)]
    costs = np.abs(scaled[0][:, None] - scaled[1][None]).mean(axis=2)
    maps = math.lgamma(len(b) + 1) - math.lgamma(len(a) + 1) - math.lgamma(len(b) - len(a) + 1)
    return _cheapest_map(costs), maps / math.log(10)


def _cheapest_map(costs: F64) -> list[tuple[int, int]]:
    """The increasing injection of rows into columns with the least sum, for a matrix that is wider than high."""
    n, m = costs.shape
    best = np.full((n + 1, m + 1), np.inf)
    best[0] = 0.0
    for i in range(n):
        best[i + 1, 1:] = np.minimum.accumulate(best[i, :-1] + costs[i])
    pairs: list[tuple[int, int]] = []
    j = m
    for i in range(n, 0, -1):
        while best[i, j] == best[i, j - 1]:
            j -= 1
        j -= 1
        pairs.append((i - 1, j))
    return pairs[::-1]
