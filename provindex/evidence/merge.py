"""Is a model a merge, and of what? Least squares over the kept samples of its relatives.

A merge is a combination of other checkpoints: y = x0 + sum of c_i (x_i - x0), matrix by matrix. Written from the
nearest candidate n, y - x_n is regressed on x_i - x_n, and on x_n itself, which takes up a shrinking by weight decay.
Two coefficients that stand out are not enough: a model between two others (child of one, parent of the other) has them
too, and so has the common parent of several. But its neighbors explain at most half of what sets the first apart from
the nearest of them, and k children at most 1 - 1/k of the second. So a merge must leave a tenth at most, beyond
rounding; or, if it was quantized, stay within half a step of the combination. Changes that were trimmed or dropped
element by element (TIES, DARE) leave more, and are known by the elements that changed by one parent's change times one
number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.grids import grid_of, residual
from provindex.evidence.panels import SAMPLE, BlockDigests
from provindex.signals.wvc import Samples

F64 = NDArray[np.float64]
Values = Mapping[str, F64]  # what `samples` makes: kept values by the name of their matrix
MAX_CANDIDATES = 10
MAX_PARENTS = 5  # more are not told apart from the children of a common parent
MIN_MATRICES = 4
MIN_SAMPLES = 64
SHARED_KEYS = 0.8  # of the query's matrices: a candidate with fewer has another shape
T_VALUE = 10.0
EXPLAINED = 0.9  # of y - x_n, without rounding: five children explain their common parent to .8
ALIKE = 0.35  # cosine of two parents' changes, up to which they are unlike
MIN_SHARE = 0.2  # of matrices in which a parent must have |t| > 10
CLEAR_STEPS = 64
FARTHEST = 1.5  # square of the distance from a base to a parent, over that of two parents
LEAST_WEIGHT = 0.15  # of a parent whose change was trimmed: from a wrong base, dropped elements look like one
LEAST_RATIO, MOST_RATIO = 0.05, 40.0  # a change dropped with probability .95 is written 20 times as large
MIN_RATIOS, MAX_RATIOS = 400, 200_000  # elements looked at
MAX_PROBED = 64  # matrices looked at for a grid
NARROW = 0.01
SPIKE = 0.4  # a tenth of this, where the distribution is smooth
GRID = 0.9  # share of matrices that must be the mixture rounded
OUTSIDE = 0.02  # share of a matrix's values beyond half a step of a mixture whose weights are not exact
ABOVE_ROUNDING = 20.0  # variance of a difference over that of rounding, below which it is left out
PLAIN = 0.05  # coefficients nearer to 0 or 1 than this: the matrix was copied


@dataclass(frozen=True, slots=True)
class Parent:
    """One part of a merge.

    candidate: its place among the candidates. coefficient: median over matrices of its weight (over all matrices the
    mean, if layers were copied one by one). share: of matrices where it has |t| > 10. layers: (layer, coefficient),
    the median over the layer's matrices, as in ("decoder.3", 0.5).
    """

    candidate: int
    coefficient: float
    share: float
    layers: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """How a model was put together.

    kind: "weights" (every matrix is a mixture) or "layers" (most are a copy from one parent). base: place of the
    candidate that the parents' changes are counted from, None if none is needed. explained: share of the difference to
    the nearest candidate (from a base: to the base) that the parents explain, rounding left out. matrices: how many
    were used.
    """

    parents: tuple[Parent, ...]
    base: int | None
    kind: str
    explained: float
    matrices: int


def samples(blocks: BlockDigests | None, wvc: Samples | None) -> dict[str, F64]:
    """Kept values of every layer matrix: the 256 of its first block, and up to 4,096 spread over it, by its name.

    Only names with a layer number: rows of embeddings move when a vocabulary is renumbered.
    """
    found: dict[str, F64] = {}
    if blocks is not None:
        for key, values, scale, count in zip(blocks.keys, blocks.samples, blocks.scales, blocks.counts, strict=True):
            if count >= MIN_SAMPLES and _layer(key):
                found[key] = values[:count].astype(np.float64) * float(scale)
    if wvc is not None:
        ends = np.cumsum(wvc.sizes, dtype=np.int64)
        for name, layer, end, size in zip(wvc.names, wvc.layers, ends, wvc.sizes, strict=True):
            if size >= MIN_SAMPLES:
                found[f"strided.{layer}.{name}"] = wvc.values[end - size : end].astype(np.float64)
    return found


def _layer(key: str) -> str | None:
    """ "decoder.3" of "decoder.3.q.weight"; None for a matrix outside the layers. Strided samples: "strided.3"."""
    parts = key.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else None


@dataclass(frozen=True)
class _Matrix:
    """Samples of one matrix: y of the query (n,), x of the candidates (n, k), noise: variance of their rounding (k+1,).

    All divided by the root mean square of y, so that every matrix counts alike. The last noise is that of y.
    """

    key: str
    y: F64
    x: F64
    noise: F64


@dataclass(frozen=True)
class _Problem:
    """Inner products of all matrices, from which every least-squares fit follows without the samples.

    matrices: M of them. origin: the candidate that the others are counted from. gram: (M, k + 2, k + 2) of the columns
    x_i - x_o (zero for the origin itself), x_o, and y - x_o, each divided by the number of samples. sizes: (M,) those.
    """

    matrices: tuple[_Matrix, ...]
    origin: int
    gram: F64
    sizes: F64

    @property
    def noise(self) -> F64:
        """(M, k + 1)."""
        return np.array([m.noise for m in self.matrices])

    def seen_from(self, origin: int) -> _Problem:
        """The same with another origin."""
        if origin == self.origin:
            return self
        k = self.gram.shape[1] - 2
        turn = np.eye(k + 2)
        turn[origin, :k] -= 1.0  # x_i - x_p = (x_i - x_o) - (x_p - x_o)
        turn[origin, k] += 1.0
        turn[origin, k + 1] -= 1.0
        return _Problem(self.matrices, origin, np.asarray(turn.T @ self.gram @ turn), self.sizes)


def _problem(matrices: Sequence[_Matrix], origin: int) -> _Problem:
    grams = []
    for m in matrices:
        base = m.x[:, [origin]]
        columns = np.concatenate([m.x - base, base, m.y[:, None] - base], axis=1)
        grams.append(columns.T @ columns / m.y.size)
    return _Problem(tuple(matrices), origin, np.array(grams), np.array([float(m.y.size) for m in matrices]))


def merge_of(query: Values, candidates: Sequence[Values]) -> Merge | None:
    """The merge that a query is, of some of the candidates; None if it is none, or none that can be told.

    Arguments as `samples` makes them; at most ten candidates are looked at, in their order. Candidates of another
    shape, copies of another candidate, and those that rounding cannot be told from are left out.
    """
    kept = [i for i, c in enumerate(candidates[:MAX_CANDIDATES]) if _same_shape(query, c)]
    matrices = _matrices(query, [candidates[i] for i in kept])
    if len(kept) < 2 or len(matrices) < MIN_MATRICES:
        return None
    nearest = int(np.argmin([sum(_power(m.y - m.x[:, i]) for m in matrices) for i in range(len(kept))]))
    problem = _problem(matrices, nearest)
    distinct = _distinct(problem)
    parents = _chosen(problem, distinct)
    if not parents:
        return None
    return _explained(problem, parents, kept) or _sparse(problem, [nearest, *distinct], [nearest, *parents], kept)


def _same_shape(query: Values, candidate: Values) -> bool:
    there = sum(k in candidate and candidate[k].size == v.size for k, v in query.items())
    return bool(query) and there >= SHARED_KEYS * len(query)


def _matrices(query: Values, candidates: Sequence[Values]) -> list[_Matrix]:
    """The matrices that all have and that are finite, in the order of their names."""
    out = []
    for key in sorted(query):
        y = query[key]
        others = [c.get(key) for c in candidates]
        if any(o is None or o.size != y.size for o in others):
            continue
        x = np.stack([o for o in others if o is not None], axis=1) if others else np.zeros((y.size, 0))
        scale = float(np.sqrt(_power(y)))
        if scale > 0 and np.isfinite(x).all() and np.isfinite(y).all():
            noise = np.array([*(_rounding(column) for column in x.T), _rounding(y, exact_bf16=False)])
            out.append(_Matrix(key, y / scale, x / scale, noise / scale**2))
    return out


def _power(values: F64) -> float:
    return float(values @ values) / max(values.size, 1)


def _rounding(values: F64, exact_bf16: bool = True) -> float:
    """Variance of what rounding may have added to values that are kept as float16.

    exact_bf16: values that bfloat16 holds are a bfloat16 model's, and are what they were. For the query that is no
    excuse: a merge is rounded when it is written.
    """
    values = values[:SAMPLE]
    if not (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF)).any():
        steps = 0.0 if exact_bf16 else 8 * np.spacing(np.abs(values).astype(np.float16)).astype(np.float64)
    else:
        steps = np.spacing(np.abs(values).astype(np.float16)).astype(np.float64)
    return float(np.mean(np.square(steps))) / 12


def _distinct(problem: _Problem) -> list[int]:
    """Candidates whose difference to the nearest one, and to those before them, is more than rounding."""
    kept = [problem.origin]
    for i in range(problem.gram.shape[1] - 2):
        if i != problem.origin and all(_apart(problem, i, j) for j in kept):
            kept.append(i)
    return kept[1:]


def _apart(problem: _Problem, i: int, j: int) -> bool:
    gram = problem.gram.sum(axis=0)
    difference = gram[i, i] + gram[j, j] - 2 * gram[i, j]
    noise = float(problem.noise[:, [i, j]].sum())
    return bool(difference > max(ABOVE_ROUNDING * noise, 1e-9 * len(problem.matrices)))


@dataclass(frozen=True)
class _Weighed:
    """Least squares of every matrix: weights of the columns (origin first), (M, 1 + p), and their t.

    explained: share of the mean square that is left without the parents (the origin alone, scaled), rounding left out.
    """

    columns: tuple[int, ...]
    weights: F64
    t: F64
    explained: float

    @property
    def medians(self) -> F64:
        return np.asarray(np.median(self.weights, axis=0))

    def share(self, at: int) -> float:
        """Share of the matrices in which this column's weight has |t| > 10."""
        return float((np.abs(self.t[:, at]) > T_VALUE).mean())

    def stands_out(self, at: int) -> bool:
        """Whether a column's weight is certain in many matrices, and not next to nothing in most."""
        sizes = np.abs(self.weights[:, at])
        return self.share(at) >= MIN_SHARE and float(np.mean(np.minimum(sizes, 1.0))) >= PLAIN


def _weighed(problem: _Problem, parents: Sequence[int]) -> _Weighed:
    """y - x_o on x_i - x_o of the parents and, as a nuisance, x_o; matrix by matrix."""
    k = problem.gram.shape[1] - 2
    used = [*parents, k]
    inner = problem.gram[:, used][:, :, used]
    with_y = problem.gram[:, used, k + 1]
    scale = np.sqrt(np.maximum(np.einsum("mii->mi", inner), 1e-300))
    inverse = np.linalg.pinv(inner / (scale[:, :, None] * scale[:, None, :]), rcond=1e-10, hermitian=True)
    inverse = inverse / (scale[:, :, None] * scale[:, None, :])
    found = np.einsum("mij,mj->mi", inverse, with_y)
    square = problem.gram[:, k + 1, k + 1]
    left = np.maximum(square - np.einsum("mi,mi->m", found, with_y), 0.0)
    freedom = np.maximum(problem.sizes - len(used), 1.0)
    floor = problem.noise.max(axis=1) + 1e-12  # an exact fit has no scatter to count in; rounding is what is left
    spread = np.maximum(left * problem.sizes / freedom, floor) / problem.sizes
    covariance = inverse[:, :-1, :-1] * spread[:, None, None]
    values = found[:, :-1]
    rest = 1.0 - values.sum(axis=1)
    t = values / np.sqrt(np.maximum(np.einsum("mii->mi", covariance), 1e-300))
    t_rest = rest / np.sqrt(np.maximum(covariance.sum(axis=(1, 2)), 1e-300))
    weights = np.concatenate([rest[:, None], values], axis=1)
    columns = (problem.origin, *parents)
    alone = square - problem.gram[:, k, k + 1] ** 2 / np.maximum(problem.gram[:, k, k], 1e-300)
    rounding = problem.noise[:, -1] + np.einsum("mi,mi->m", weights**2, problem.noise[:, columns])
    start = float((alone - problem.noise[:, -1] - problem.noise[:, problem.origin]).sum())
    explained = max(1.0 - max(float((left - rounding).sum()), 0.0) / start, 0.0) if start > 0 else 0.0
    return _Weighed(columns, weights, np.concatenate([t_rest[:, None], t], axis=1), explained)


def _chosen(problem: _Problem, candidates: Sequence[int]) -> list[int]:
    """Parents beside the nearest one: forward selection, while the best that is left improves the fit for certain."""
    chosen: list[int] = []
    while len(chosen) < MAX_PARENTS - 1:
        rest = [i for i in candidates if i not in chosen]
        gains = {i: _certainty(_weighed(problem, [*chosen, i]).t[:, -1]) for i in rest}
        best = max(gains, key=lambda i: gains[i], default=None)
        if best is None or gains[best] <= T_VALUE:
            break
        chosen.append(best)
    if not chosen:
        return []
    t = _weighed(problem, chosen).t[:, 1:]
    return [i for i, column in zip(chosen, t.T, strict=True) if _certainty(column) > T_VALUE]


def _certainty(t: F64) -> float:
    """How far the squares of t lie above chance, in standard deviations; cut, so that no matrix decides alone."""
    squares = np.minimum(np.square(t), 4 * T_VALUE**2)
    return float((squares.sum() - squares.size) / np.sqrt(2 * squares.size))


def _explained(problem: _Problem, parents: Sequence[int], kept: Sequence[int]) -> Merge | None:
    """The merge of the nearest candidate and these, if they are one: a mixture that leaves (next to) nothing."""
    mixture = _weighed(problem, parents)
    columns = [c for at, c in enumerate(mixture.columns) if mixture.stands_out(at)]
    if len(columns) < 2:
        return None
    if len(columns) < len(mixture.columns):
        mixture = _weighed(problem.seen_from(columns[0]), columns[1:])
    if mixture.explained < EXPLAINED and not _within_steps(problem, mixture):
        return None
    base = _base_of(problem, mixture)
    if base is not None:
        mixture = _weighed(problem.seen_from(base), [c for c in columns if c != base])
    return _merge(problem.matrices, mixture, base, kept)


def _within_steps(problem: _Problem, mixture: _Weighed) -> bool:
    """Whether a quantized query is the mixture rounded, and not the nearest candidate rounded.

    Only first blocks of matrices show a grid: strided samples have a value from each of its blocks.
    """
    firsts = [m for m in problem.matrices if not m.key.startswith("strided.")]
    spread = firsts[:: -(-len(firsts) // MAX_PROBED) or 1]
    probed = [(m, grid) for m in spread if (grid := grid_of(m.y)) is not None]
    if len(probed) < MIN_MATRICES:
        return False
    medians = mixture.medians
    inside = [residual(grid, m.x[:, mixture.columns] @ medians).share <= OUTSIDE for m, grid in probed]
    alone = [residual(grid, m.x[:, problem.origin]).share <= OUTSIDE for m, grid in probed]
    return sum(inside) >= GRID * len(probed) and sum(alone) < GRID * len(probed) / 2


def _base_of(problem: _Problem, mixture: _Weighed) -> int | None:
    """The column that changes are counted from: its weight is negative, or from it they are unlike each other."""
    if len(mixture.columns) < 3:
        return None
    negative = [c for c, w in zip(mixture.columns, mixture.medians.tolist(), strict=True) if w < -PLAIN]
    if len(negative) == 1:
        return negative[0]
    likeness = {c: _likeness(problem, c, [o for o in mixture.columns if o != c]) for c in mixture.columns}
    best = min(likeness, key=lambda c: likeness[c])
    return best if likeness[best] <= ALIKE else None


def _likeness(problem: _Problem, origin: int, others: Sequence[int]) -> float:
    """Largest absolute cosine of two of the differences x_i - x_o, over all matrices."""
    gram = problem.seen_from(origin).gram.sum(axis=0)[np.ix_(others, others)]
    lengths = np.sqrt(np.diag(gram))
    cosines = np.abs(gram / np.outer(lengths, lengths))
    return float(cosines[~np.eye(len(others), dtype=bool)].max())


def _sparse(problem: _Problem, bases: Sequence[int], columns: Sequence[int], kept: Sequence[int]) -> Merge | None:
    """A merge of changes that were trimmed or dropped element by element (TIES, DARE).

    Least squares leave much of it, but where one parent's change alone was kept, y - x0 is that change times one
    number: a spike in the distribution of their ratio, which no training makes.
    """
    found: list[tuple[int, _Weighed]] = []
    for base in bases:
        first = _weighed(problem.seen_from(base), [c for c in columns if c != base])
        sizes = zip(first.columns, first.medians.tolist(), strict=True)
        parents = [c for at, (c, w) in enumerate(sizes) if at and w >= LEAST_WEIGHT and first.share(at) >= MIN_SHARE]
        near = len(parents) >= 2 and _near(problem, base, parents)
        if near and all(_spike(problem.matrices, base, c) for c in parents):
            found.append((base, _weighed(problem.seen_from(base), parents)))
    if not found:
        return None
    base, weighed = max(found, key=lambda f: f[1].explained)
    return _merge(problem.matrices, weighed, base, kept)


def _near(problem: _Problem, base: int, parents: Sequence[int]) -> bool:
    """Whether each parent is about as near to the base as to the parent that it is farthest from.

    From a distant base, such as a stranger, all parents lie in one direction, and so does whatever is near them.
    """
    for parent in parents:
        distances = np.diag(problem.seen_from(parent).gram.sum(axis=0))
        if distances[base] > FARTHEST * max(distances[c] for c in parents):
            return False
    return True


def _spike(matrices: Sequence[_Matrix], base: int, parent: int) -> bool:
    """Whether (y - x0) / (x - x0) has a spike: SPIKE of the elements near a value are within a tenth of the distance.

    Only changes of 64 steps of rounding count: ratios of small whole numbers of steps have spikes too.
    """
    found = []
    step_over = -(-sum(m.y.size for m in matrices) // MAX_RATIOS)
    for m in matrices[:: step_over or 1]:
        change = m.x[:, parent] - m.x[:, base]
        step = 2.0**-8 if max(m.noise[parent], m.noise[base]) == 0 else 2.0**-11
        clear = np.abs(change) >= CLEAR_STEPS * step * np.maximum(np.abs(m.x[:, base]), np.abs(m.x[:, parent]))
        found.append((m.y[clear] - m.x[clear, base]) / change[clear])
    ratios = np.sort(np.concatenate(found))
    ratios = ratios[(ratios > LEAST_RATIO) & (ratios < MOST_RATIO)]
    if ratios.size < MIN_RATIOS:
        return False

    def within(reach: float) -> NDArray[np.int64]:
        return np.searchsorted(ratios, ratios * (1 + reach)) - np.searchsorted(ratios, ratios * (1 - reach))

    narrow = within(NARROW)
    at = int(narrow.argmax())
    return bool(narrow[at] >= MIN_RATIOS // 4 and narrow[at] >= SPIKE * within(10 * NARROW)[at])


def _merge(matrices: Sequence[_Matrix], found: _Weighed, base: int | None, kept: Sequence[int]) -> Merge:
    """The answer. The base is the origin of `found`, if there is one."""
    plain = (np.abs(found.weights - np.round(found.weights)) <= PLAIN).all(axis=1)
    plain &= np.abs(found.weights).sum(axis=1) <= 1.0 + 3 * PLAIN
    copied = float(plain.mean()) > 0.5
    parents = tuple(
        _parent(matrices, found, at, kept[column], copied) for at, column in enumerate(found.columns) if column != base
    )
    kind = "layers" if copied else "weights"
    return Merge(parents, None if base is None else kept[base], kind, found.explained, len(matrices))


def _parent(matrices: Sequence[_Matrix], found: _Weighed, at: int, candidate: int, copied: bool) -> Parent:
    values = found.weights[:, at]
    by_layer: dict[str, list[float]] = {}
    for m, value in zip(matrices, values.tolist(), strict=True):
        by_layer.setdefault(_layer(m.key) or m.key, []).append(value)
    layers = tuple((name, float(np.median(v))) for name, v in by_layer.items())
    return Parent(candidate, float(np.mean(values) if copied else np.median(values)), found.share(at), layers)
