"""Units at the same place in weights of which only the peer's samples are known, by fixed points and by ranks.

A row that was imported from the peer's database has, of each layer, samples of the projection matrices without names
(`sampled_places`, `sampled_layouts`). The statistics are those of E1, E1z and E2, between an imported row and one made
here (or another imported one): for each unit of an axis its samples over all matrices of the test, centred over the
units that are compared and normalised; of one or two values the product instead, because a cosine of them says only
signs. Units are compared inside of blocks of one signature.

Null: in a model that was trained apart, the units of an axis are exchangeable given the other model, and so are those
with one signature: a subgroup of the permutations fixes the signatures. So of k fixed points in G blocks P <= G^k / k!,
and ranks have the variance of `exact.rank_alignment`. Units whose samples are all zero in either model have a place by
design and are left out before anything is centred. The other model may be anything, so its vector may be cut wrongly.

Costs, in one place, `log10_cost`: two statistics and two directions of each order of each axis that was tried.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason, distinct
from provindex.common.score import Outcome, absent
from provindex.common.tables import Test
from provindex.evidence.exact import F64, log10_alignment, log10_fixed_points, ranked, smallest_cosine
from provindex.evidence.pairing import Pairing
from provindex.evidence.sampled_layouts import Layout, layouts, named
from provindex.evidence.sampled_places import (
    HIDDEN,
    MIN_GROUP,
    MIN_UNITS,
    RESIDUAL,
    Matrix,
    Pattern,
    Plan,
    places,
    plan,
    size_of,
)
from provindex.evidence.vectors import LAGS, mean_ranks
from provindex.roles.architectures import ALIASES, KINDS
from provindex.signals.imported import IMPORTED, apart, differences, how_taken
from provindex.signals.wvc import Samples

F32 = NDArray[np.float32]
AXES = (RESIDUAL, HIDDEN)
MOST_MATRICES = 16  # of a layer: more are experts or a stranger's
MAX_LAYERS = 256  # that are compared; the deepest published models have about 200
MANY_UNITS = 20  # units a block from which on fixed points count
ORDERED = 4.5  # standard deviations at which an axis is in an order
IDENTITY = 6.0  # standard deviations at which a diagonal stands out
REPEATED = 8.0  # standard deviations at which a layer repeats another
FEW = 2  # values of a unit up to which products are taken
PIECE = 1 << 21  # similarities at a time
# Model types whose layers are named as Llama's, so that the facts of the config give all shapes.
LIKE_LLAMA = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text olmo2 granite smollm3 cohere ministral".split()
)


@dataclass(frozen=True)
class Matrices:
    """The sampled matrices of a model whose order is known, by layer in the order of their names.

    patterns: by layer. values: by layer, (samples,) float32 of each matrix; None of what was not read.
    """

    patterns: Mapping[int, Pattern]
    values: Mapping[int, Sequence[F32 | None]]


@dataclass(frozen=True)
class Slices:
    """The samples that the peer takes of a model, read from its weights: what no stored row has.

    sliced: of 32 rows of each matrix, else of whole ones.
    """

    sliced: bool
    matrices: Matrices


@dataclass(frozen=True)
class Compared:
    """How alike the samples are that were compared under the chosen order.

    median, overall: cosine of the samples of a matrix, and of all together. equal: whether all are. n: how many.
    """

    median: float
    overall: float
    equal: bool
    n: int


class _Absent(Exception):  # noqa: N818 - it is no error: it says why there is no outcome
    def __init__(self, *reasons: Reason) -> None:
        self.reasons = reasons


# --- the two sides ---


@dataclass(frozen=True)
class _Sides:
    """Layers of one pattern. vectors: (layers, samples) of the imported row; known: of each matrix of the other one."""

    pattern: Pattern
    vectors: F32
    known: Sequence[F32 | None]
    sliced: bool
    only_names: bool = False

    def known_of(self, matrices: Sequence[int]) -> list[F32]:
        found = [self.known[i] for i in matrices]
        return [values for values in found if values is not None]


def matrices_of(samples: Samples) -> Matrices | None:
    """The matrices of a row that was made here; None where it does not say what they are."""
    if not samples.roles:
        return None
    patterns: dict[int, list[Matrix]] = {}
    values: dict[int, list[F32 | None]] = {}
    ends = np.cumsum(samples.sizes, dtype=np.int64).tolist()
    columns = (samples.layers, samples.rows, samples.columns, samples.sizes)
    for role, end, layer, r, c, size in zip(samples.roles, ends, *(x.tolist() for x in columns), strict=True):
        patterns.setdefault(layer, []).append(Matrix(role, r, c, size))
        values.setdefault(layer, []).append(samples.values[end - size : end])
    return Matrices({layer: tuple(found) for layer, found in patterns.items()}, values)


def _sides(a: Any, b: Any) -> _Sides:
    """What is compared of two fingerprints; `_Absent` with the reasons if nothing is."""
    if IMPORTED not in (a.mode, b.mode):
        raise _Absent(Reason.of(Code.SAMPLED_OWN))
    guest, host = (a, b) if a.mode == IMPORTED else (b, a)
    way = _way(guest)
    if a.mode == b.mode:
        return _two_imported(guest, host, way)
    _check_shapes(guest, host)
    sliced = "sliced" in differences(way)
    vectors, known = guest.wvc.by_layer(), _known(host, sliced)
    layers = [
        layer
        for layer, pattern in known.patterns.items()
        if layer in vectors and len(pattern) <= MOST_MATRICES and vectors[layer].size == sum(m.size for m in pattern)
    ]
    return _commonest(layers, vectors, known, sliced)


def _way(guest: Any) -> str | None:
    """How the samples of an imported row were taken; `_Absent` if there are none, or of several towers."""
    way = None if guest.wvc is None else how_taken(guest.wvc.names)
    if guest.wvc is None or way is None:
        why = guest.absences.get("WVC", Reason.of(Code.FINGERPRINT_LACKS))
        raise _Absent(why.about(guest.model_id))
    if "towers" in differences(way):
        raise _Absent(Reason.of(Code.SAMPLED_TOWERS).about(guest.model_id))
    return way


def _check_shapes(a: Any, b: Any) -> None:
    """`_Absent` if config or weights say that two models have other shapes: samples lie elsewhere then."""
    if a.facts.hidden and b.facts.hidden and a.facts.hidden != b.facts.hidden:
        raise _Absent(Reason.of(Code.WIDTHS_DIFFER, a=a.facts.hidden, b=b.facts.hidden))
    for name in ("intermediate_size", "num_attention_heads"):
        ours, theirs = (getattr(fp.mfi, name) for fp in (a, b))
        if ours and theirs and ours != theirs:
            raise _Absent(Reason.of(Code.SAMPLED_SHAPES_DIFFER, what=name, a=ours, b=theirs))


def _known(host: Any, sliced: bool) -> Matrices:
    """The samples of a model that was read here, as the imported row has them."""
    read = host.more.get("slices", ())
    for one in read:
        if isinstance(one, Slices) and one.sliced == sliced:
            return one.matrices
    if sliced or host.wvc is None:
        absence = Reason.of(Code.SAMPLED_SLICES) if sliced else host.absences.get("WVC")
        why = next((one for one in read if isinstance(one, Reason)), absence)
        raise _Absent((why or Reason.of(Code.FINGERPRINT_LACKS)).about(host.model_id))
    found = matrices_of(host.wvc)
    if found is None:
        raise _Absent(Reason.of(Code.SAMPLED_NO_ROLES).about(host.model_id))
    return found


def _commonest(layers: Sequence[int], vectors: Mapping[int, F32], known: Matrices, sliced: bool) -> _Sides:
    """The layers whose matrices have the shapes that most layers have."""
    usual = Counter(known.patterns[layer] for layer in layers).most_common(1)
    if not usual:
        raise _Absent(Reason.of(Code.SAMPLED_OTHER_TENSORS))
    pattern = usual[0][0]
    if not any(m.role for m in pattern):
        raise _Absent(Reason.of(Code.SAMPLED_NO_UNITS, needed=MIN_UNITS))
    alike = sorted(layer for layer in layers if known.patterns[layer] == pattern)
    if len(alike) > MAX_LAYERS:
        raise _Absent(Reason.of(Code.LAYERS_MANY, limit=MAX_LAYERS))
    own: list[F32 | None] = []
    for i in range(len(pattern)):
        values = [known.values[layer][i] for layer in alike]
        there = [v for v in values if v is not None]
        own.append(np.stack(there) if len(there) == len(values) else None)
    found = np.stack([vectors[layer] for layer in alike])
    if not all(np.isfinite(v).all() for v in (found, *own) if v is not None):
        raise _Absent(Reason.of(Code.SAMPLES_NOT_FINITE))
    return _Sides(pattern, found, own, sliced)


def _two_imported(a: Any, b: Any, way: str | None) -> _Sides:
    """Two imported rows: both in the order of names, which is what writers of safetensors make.

    No other order is tried: which units are exchangeable rests on the row whose order is known, and here that order is
    taken on trust. In another order the test compares rows of other matrices, whose signs say nothing.
    """
    _way(b)
    if reason := apart(a.wvc.names, b.wvc.names):
        raise _Absent(reason)
    _check_shapes(a, b)
    sliced = "sliced" in differences(way)
    pattern = _from_facts(a, sliced)
    if pattern is None or pattern != _from_facts(b, sliced):
        raise _Absent(Reason.of(Code.SAMPLED_SHAPES_UNKNOWN))
    vectors, others = a.wvc.by_layer(), b.wvc.by_layer()
    total = sum(m.size for m in pattern)
    layers = [layer for layer in vectors if layer in others and vectors[layer].size == others[layer].size == total]
    cuts = np.cumsum([m.size for m in pattern])[:-1]
    values = {layer: list(np.split(others[layer], cuts)) for layer in layers}
    known = Matrices(dict.fromkeys(layers, pattern), values)
    return replace(_commonest(layers, vectors, known, sliced), only_names=True)


def _from_facts(fp: Any, sliced: bool) -> Pattern | None:
    """The matrices of a layer in the order of names, from the config of a model whose layers are like Llama's."""
    mfi = fp.mfi
    d, hidden, heads = mfi.hidden_size, mfi.intermediate_size, mfi.num_attention_heads
    if ALIASES.get(mfi.model_type, mfi.model_type) not in LIKE_LLAMA or not (d and hidden and heads):
        return None
    size = mfi.head_dim or d // heads
    kv = (mfi.num_key_value_heads or heads) * size
    shapes = {
        "down": (d, hidden), "gate": (hidden, d), "up": (hidden, d),
        "k": (kv, d), "o": (d, heads * size), "q": (heads * size, d), "v": (kv, d),
    }  # fmt: skip
    if not all(0 < n < 1 << 22 for shape in shapes.values() for n in shape):
        return None
    return tuple(Matrix(role, r, c, size_of(r, c, sliced)) for role, (r, c) in shapes.items())


# --- one axis ---


@dataclass(frozen=True)
class _Found:
    """What one order of one axis says. mean_root: mean root of a unit's values, by how much its block weighs."""

    axis: str
    layout: Layout
    matrices: tuple[int, ...]
    fits: NDArray[np.bool_]
    across: int
    down: int
    excess: float
    sizes: tuple[int, ...]
    mean_root: float

    @property
    def units(self) -> int:
        return sum(self.sizes)

    @property
    def ceiling(self) -> float:
        return sum(m * (m - 1) / 2 for m in self.sizes)

    @property
    def variance(self) -> float:
        total = 0.0
        for m in self.sizes:  # not with sum, which rounds differently from Python 3.12 on
            total += m * m * (m + 1) / 12
        return total

    @property
    def counts(self) -> bool:
        """Whether fixed points can say something."""
        return self.units > MANY_UNITS * len(self.sizes)


@dataclass(frozen=True)
class Sampled:
    """Both tests of a pair; of each axis the order that says most, and what it was tried on, where they could run."""

    fixed: Outcome
    aligned: Outcome
    chosen: tuple[_Found, ...] = ()
    sides: _Sides | None = None

    @property
    def compared(self) -> Compared | None:
        """How alike the samples are under the chosen order; None where the tests could not run."""
        return None if self.sides is None else _compared(self.chosen, self.sides)


def log10_cost(tried: int) -> float:
    """log10 of what both tests pay: two statistics and two directions of each order of each axis that was tried."""
    return math.log10(4 * max(tried, 1))


def _axis(axis: str, sides: _Sides) -> list[_Found]:
    """What the orders of an axis say; `_Absent` if it has too few units, or its units are in an order of size.

    In the model whose matrices are known that forbids the test. In the other one it forbids the order of the matrices
    under which it shows, which may be a wrong one: rows of queries are in the order of their rotary frequencies.
    """
    made = plan(axis, sides.pattern, len(sides.vectors), sides.sliced)
    known = sides.known_of(made.matrices) if made else []
    if made is None or len(known) < len(made.matrices):
        raise _Absent(Reason.of(Code.SAMPLED_NO_UNITS, needed=MIN_UNITS))
    if in_order(made, np.concatenate(known, axis=1)):
        raise _Absent(Reason.of(Code.SAMPLED_ORDERED, axis=axis))
    if started_as_identity([sides.pattern[i] for i in made.matrices], known, sides.sliced):
        raise _Absent(Reason.of(Code.SAMPLED_IDENTITY, axis=axis))
    kept = np.ones(len(sides.vectors), bool)
    if axis == HIDDEN:
        kept = _distinct(made, np.concatenate(known, axis=1).astype(np.float64))
    tried = layouts(sides.pattern, made.matrices, sides.vectors, known)
    if sides.only_names:
        tried = {layout: tried[layout] for layout in named(sides.pattern, made.matrices)[:1]}
    found: list[_Found] = []
    for layout, fitting in tried.items():
        fits = fitting & kept
        guest = _cut(sides.vectors, layout, [sides.pattern[i].size for i in made.matrices])
        if not in_order(made, guest):
            host = np.concatenate([values[fits] for values in known], axis=1)
            found.append(_measured(made, layout, fits, guest[fits], host))
    if not found:
        raise _Absent(Reason.of(Code.SAMPLED_ORDERED, axis=axis))
    enough = [one for one in found if one.units >= MIN_UNITS]
    if not enough:
        raise _Absent(Reason.of(Code.SAMPLED_NO_UNITS, needed=MIN_UNITS))
    return enough


def _distinct(made: Plan, values: F64) -> NDArray[np.bool_]:
    """Which layers do not repeat an earlier one of the model whose matrices are known; values: (layers, samples).

    Copied layers share one order of their units, so only one of them may count. They show as E1's do: by a cosine in
    place, over the mean of their group, of eight standard deviations above chance.
    """
    for group in made.groups:
        values[:, group.samples] -= values[:, group.samples].mean(axis=1, keepdims=True)
    used = values[:, np.concatenate([group.samples.reshape(-1) for group in made.groups])]
    used /= np.maximum(np.sqrt(np.square(used).sum(axis=1, keepdims=True)), 1e-300)
    alike = used @ used.T > REPEATED / math.sqrt(used.shape[1])
    kept = np.zeros(len(alike), bool)
    for layer in range(len(alike)):
        kept[layer] = not alike[layer, kept].any()
    return kept


def _cut(vectors: F32, layout: Layout, sizes: Sequence[int]) -> F32:
    """The samples of the matrices of a test, one by one, where an order has them; (layers, samples)."""
    return np.concatenate([vectors[:, begin : begin + n] for begin, n in zip(layout, sizes, strict=True)], axis=1)


def _measured(made: Plan, layout: Layout, fits: NDArray[np.bool_], guest: F32, host: F32) -> _Found:
    """The statistics of one order. guest, host: (layers, samples) of the layers that it fits."""
    across = down = 0
    excess = roots = 0.0
    sizes: list[int] = []
    for x, y in _live(made, guest, host):
        result = ranked(similarity(x, y))
        across, down = across + int(result.across.sum()), down + int(result.down.sum())
        excess += float(result.excess.sum())
        sizes += [x.shape[1]] * len(x)
        roots += x.shape[0] * x.shape[1] ** 2 * math.sqrt(x.shape[2])
    weight = sum(m * m for m in sizes)
    mean_root = roots / weight if weight else 0.0
    return _Found(made.axis, layout, made.matrices, fits, across, down, excess, tuple(sizes), mean_root)


def similarity(x: F64, y: F64) -> F64:
    """Of the units of blocks, (blocks, units, values) each: cosines of centred values, of few values their products."""
    left, right = _centred(x), _centred(y)
    if x.shape[2] > FEW:
        left, right = _unit(left), _unit(right)
    return np.asarray(left @ right.swapaxes(1, 2))


def _centred(values: F64) -> F64:
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def _unit(values: F64) -> F64:
    norms = np.sqrt(np.einsum("ijk,ijk->ij", values, values))
    return np.asarray(values / np.maximum(norms, 1e-300)[:, :, None])


def _live(made: Plan, guest: F32, host: F32) -> Iterator[tuple[F64, F64]]:
    """Blocks of one size, (blocks, units, values) of both models, without the units that are zero in either."""
    waiting: dict[tuple[int, int], list[NDArray[np.int64]]] = {}
    for _, at in made.blocks:
        waiting.setdefault((at.shape[0], at.shape[1]), []).append(at)
    for (units, _), blocks in waiting.items():
        step = max(1, PIECE // units**2 // (len(guest) if made.axis == HIDDEN else 1))
        for first in range(0, len(blocks), step):
            x, y = (_gathered(made.axis, side, np.stack(blocks[first : first + step])) for side in (guest, host))
            live = np.asarray(x.any(axis=2) & y.any(axis=2))
            whole = np.asarray(live.all(axis=1))
            if whole.any():
                yield (x, y) if whole.all() else (x[whole], y[whole])
            for i in np.flatnonzero(~whole):
                if int(live[i].sum()) >= MIN_GROUP:
                    yield x[i : i + 1, live[i]], y[i : i + 1, live[i]]


def _gathered(axis: str, values: F32, at: NDArray[np.int64]) -> F64:
    """Values by unit, (blocks, units, values) float64. values: (layers, samples); at: (blocks, units, features).

    A residual coordinate has its values in all layers, a hidden unit in its own.
    """
    found = np.take(values, at, axis=1)
    if axis == HIDDEN:
        return found.reshape(-1, *at.shape[1:]).astype(np.float64)
    return np.moveaxis(found, 0, 2).astype(np.float64).reshape(*at.shape[:2], -1)


# --- order ---


def in_order(made: Plan, values: F32) -> bool:
    """Whether the samples of the units show an order along the axis, which exchangeable units do not.

    Inside of each group, the ranks of the units' mean magnitudes and of their mean values: their correlation with the
    place, and that of units at distances of 1 to 128, each with a standard deviation of at most 1 / sqrt(n) over n
    units. And the inner products of units at these distances, of which the tests are made, as `vectors` has them. 4.5
    standard deviations of one are chance in 1 of 150,000 models.
    """
    sums: dict[tuple[str, int], F64] = {}
    alike: dict[tuple[int, ...], list[NDArray[np.int64]]] = {}
    for group in made.groups:
        alike.setdefault(group.samples.shape, []).append(group.samples)
    for groups in alike.values():
        step = max(1, PIECE // groups[0].size // len(values))
        for first in range(0, len(groups), step):
            found = _gathered(made.axis, values, np.stack(groups[first : first + step]))
            live = np.asarray(found.any(axis=2))  # units of zeros have their places by design
            whole = np.asarray(live.all(axis=1))
            rest = [found[i : i + 1, live[i]] for i in np.flatnonzero(~whole) if live[i].sum() >= MIN_GROUP]
            for units in (*([found[whole]] if whole.any() else []), *rest):
                for key, terms in _along(units).items():
                    sums[key] = sums.get(key, np.zeros(2)) + terms
    return any(abs(total) > ORDERED * math.sqrt(variance) for total, variance in sums.values())


def _along(units: F64) -> dict[tuple[str, int], F64]:
    """(sum, variance) of what shows an order, by name and distance. units: (groups, m, values)."""
    m = units.shape[1]
    scale = math.sqrt((m * m - 1) / 12)
    place = (np.arange(m) - (m - 1) / 2) / scale
    out: dict[tuple[str, int], F64] = {}
    for name, means in (("size", np.abs(units).mean(axis=2)), ("mean", units.mean(axis=2))):
        ranks = (mean_ranks(means) - (m - 1) / 2) / scale
        out[name, 0] = np.array([float((ranks @ place).sum()), ranks.size])
        for lag in (lag for lag in LAGS if lag < m // 2 or lag == 1):
            products = float((ranks[:, lag:] * ranks[:, :-lag]).sum()) + len(ranks) * (m - lag) / (m - 1)
            out[name, lag] = np.array([products, ranks.size])
    unit = _unit(units - units.mean(axis=1, keepdims=True))
    own, total = np.square(unit).sum(axis=(1, 2)), unit.sum(axis=1)
    chance = (np.square(total).sum(axis=1) - own) / (m * (m - 1))  # mean product of two units of a group
    turned = unit.swapaxes(1, 2)  # the sum of squares is that of either product: the smaller one is made
    products_of = unit @ turned if unit.shape[2] > m else turned @ unit
    spread = float(np.square(products_of).sum()) / m
    for lag in (lag for lag in LAGS if lag < m // 2 or lag == 1):
        products = float(np.einsum("gmf,gmf->", unit[:, lag:], unit[:, :-lag])) - float(chance.sum()) * (m - lag)
        out["product", lag] = np.array([products, spread])
    return out


def started_as_identity(matrices: Sequence[Matrix], known: Sequence[F32], sliced: bool) -> bool:
    """Whether square matrices are unusually large on their diagonal: then their places are the initializer's.

    Ranks of the diagonal's magnitudes among all samples of the matrix, added up, six standard deviations above chance.
    """
    excess, variance = 0.0, 0.0
    for m, values in zip(matrices, known, strict=True):
        row, column = places(m.rows, m.columns, sliced)
        if m.rows == m.columns and (row == column).any():
            sizes, n = np.abs(values), values.shape[1]
            own = sizes[:, row == column]
            below = sum(np.count_nonzero(sizes < own[:, k : k + 1], axis=1) for k in range(own.shape[1]))
            ties = sum(np.count_nonzero(sizes == own[:, k : k + 1], axis=1) - 1 for k in range(own.shape[1]))
            excess += float(np.sum(below + ties / 2)) - own.size * (n - 1) / 2
            variance += own.size * (n * n - 1) / 12
    return excess > IDENTITY * math.sqrt(variance) if variance else False


def _fixed_positions(fp: Any) -> bool:
    kind = KINDS.get(ALIASES.get(fp.facts.architecture, fp.facts.architecture))
    noted = fp.absences.get("residual")
    return (kind is not None and kind.fixed_positions) or (noted is not None and noted.code is Code.FIXED_POSITIONS)


# --- both tests ---


def sampled_tests(a: Any, b: Any) -> Sampled:
    """Both tests of two fingerprints; the same for (a, b) and (b, a)."""
    try:
        sides = _sides(a, b)
    except _Absent as why:
        return Sampled(absent(*why.reasons), absent(*why.reasons))
    found: list[_Found] = []
    reasons: list[Reason] = []
    for axis in AXES:
        placed = [fp.model_id for fp in (a, b) if _fixed_positions(fp)]
        try:
            if axis == RESIDUAL and placed:
                raise _Absent(*(Reason.of(Code.FIXED_POSITIONS).about(name) for name in placed))
            found += _axis(axis, sides)
        except _Absent as why:
            reasons += why.reasons
    if not found:
        return Sampled(absent(*distinct(reasons)), absent(*distinct(reasons)))
    return _together(found, sides)


def _together(found: Sequence[_Found], sides: _Sides) -> Sampled:
    cost = log10_cost(len(found))
    by_points = [(log10_fixed_points(max(f.across, f.down), len(f.sizes)) + cost, f) for f in found if f.counts]
    by_ranks = [(log10_alignment(f.excess, f.variance) + cost, f) for f in found]
    aligned_p, best = min(by_ranks, key=lambda item: (item[0], -item[1].excess / item[1].ceiling))
    seen = [smallest_cosine(f.variance, f.ceiling, cost, 1 / f.mean_root**2) for f in found if f.mean_root]
    aligned = Outcome(
        best.excess / best.ceiling, best.units, min(0.0, aligned_p), 0.0,
        smallest=min((s for s in seen if s is not None), default=None),
    )  # fmt: skip
    fixed = absent(Reason.of(Code.SAMPLED_BLOCKS_SMALL, needed=MANY_UNITS))
    if by_points:
        fixed_p, one = min(by_points, key=lambda item: item[0])
        fixed = Outcome(max(one.across, one.down) / one.units, one.units, min(0.0, fixed_p), len(one.sizes) / one.units)
    return Sampled(fixed, aligned, _chosen(found), sides)


def _chosen(found: Sequence[_Found]) -> tuple[_Found, ...]:
    """Of each axis the order that says most, the first of equals."""
    own = [[f for f in found if f.axis == axis] for axis in AXES]
    return tuple(min(some, key=_log10_p) for some in own if some)


def _log10_p(f: _Found) -> float:
    return min(log10_fixed_points(max(f.across, f.down), len(f.sizes)), log10_alignment(f.excess, f.variance))


def _compared(chosen: Sequence[_Found], sides: _Sides) -> Compared:
    """Cosines of the matrices of the tests, each at the place that was chosen for it; all of the layer by names."""
    at: dict[int, tuple[int, NDArray[np.bool_]]] = {}
    for one in chosen:
        at.update({i: (begin, one.fits) for i, begin in zip(one.matrices, one.layout, strict=True)})
    for one in chosen:
        if one.layout == named(sides.pattern, one.matrices)[0]:
            begins = named(sides.pattern, range(len(sides.pattern)))[0]
            at.update({i: (begin, one.fits) for i, begin in enumerate(begins) if i not in at})
    inner = ours = theirs = 0.0
    cosines: list[F64] = []
    equal, n = True, 0
    for i, (begin, fits) in at.items():
        known = sides.known[i]
        if known is None:
            continue
        x, y = sides.vectors[fits, begin : begin + sides.pattern[i].size].astype(np.float64), known[fits].astype(float)
        equal, n = equal and bool((x == y).all()), n + x.size
        xy, xx, yy = ((u * v).sum(axis=1) for u, v in ((x, y), (x, x), (y, y)))
        cosines.append(xy / np.maximum(np.sqrt(xx * yy), 1e-300))
        inner, ours, theirs = inner + float(xy.sum()), ours + float(xx.sum()), theirs + float(yy.sum())
    overall = inner / max(math.sqrt(ours * theirs), 1e-300)
    return Compared(float(np.median(np.concatenate(cosines))), overall, equal, n)


def of_pair(pair: Pairing) -> Sampled:
    """Both tests of a pair."""
    found: Sampled = pair.once("sampled", lambda: sampled_tests(pair.a, pair.b))
    return found


def sees_basis(pair: Pairing) -> bool:
    """Whether residual coordinates were compared: they are those of a common ancestor too."""
    return any(found.axis == RESIDUAL for found in of_pair(pair).chosen)


def compared(pair: Pairing) -> Compared | None:
    """How alike the samples of a pair are under the chosen order; None where the tests could not run."""
    found: Compared | None = pair.once("sampled_compared", lambda: of_pair(pair).compared)
    return found


FIXED = Test("sampled_fixed_points", lambda pair: of_pair(pair).fixed, "exact", "")
ALIGNED = Test(
    "sampled_alignment", lambda pair: of_pair(pair).aligned, "exact", "", sees="sampled weights in plain order"
)
