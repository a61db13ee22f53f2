"""The vectors of a model (norm gains, norm biases, biases of branches) and what E6 reads of them: ranks along an axis.

The axis of a vector is what its elements belong to: residual coordinates (norms, biases of o and down), hidden units of
an MLP (biases of up), or channels of the values (biases of v). Its name says which; a vector without a role
counts as one of residual width if it has that many elements and no vector of the model has a role.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.tables import Panel, Row, array, number, split
from provindex.roles import canonical
from provindex.roles.names import Part, Placement
from provindex.roles.weights import MAX_VECTOR, NORMS, Weights
from provindex.signals.nlf import MIN_ELEMENTS, NormTensors, is_norm

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

PLACES, RUN = 2_048, 16  # coordinates or units of a vector that are compared; neighbors of a run
ORDERED = 4.5  # standard errors of a correlation along the index, above which a vector, or an axis, is ordered
LAGS = tuple(2**i for i in range(8))  # between places whose ranks are compared
MOST_VECTORS = 1 << 10  # of one axis: five for each of 200 layers
HEAD_NORMS = frozenset({"norm_q", "norm_k"})  # their elements are channels of a head
RESIDUAL = (*(role for role in NORMS if role not in HEAD_NORMS), "norm_final", "o", "down")
HIDDEN, VALUES = ("up",), ("v",)
MOST, MOST_VALUES = 1 << 16, 1 << 24  # vectors of a model besides its norms, and their elements


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector. address: "stack.layer.role.param", or "" if its role is unknown. size: elements of the model's own.

    values: float32, all of them for a norm; else at `places`. norm: whether NLF keeps it too.
    """

    address: str
    size: int
    values: F32
    norm: bool


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of a model: those of NLF in its order, then others by address. head_dim: 0 if unknown."""

    vectors: tuple[Vector, ...]
    head_dim: int = 0
    made: dict[tuple[int, frozenset[str]], Profile] = field(default_factory=dict, repr=False)

    def residual(self, width: int, stacks: Collection[str]) -> Profile:
        """What the vectors of residual width say of each coordinate; made once for a width and stacks."""
        key = width, frozenset(stacks)
        if key not in self.made:
            self.made[key] = profile([v for v in self._residual(stacks) if v.size == width])
        return self.made[key]

    def widths(self, stacks: Collection[str]) -> Counter[int]:
        """How many vectors of each size may have residual width."""
        return Counter(v.size for v in self._residual(stacks))

    def _residual(self, stacks: Collection[str]) -> list[Vector]:
        named = any(v.address for v in self.vectors)
        return [v for v in self.vectors if (_role(v, stacks) in RESIDUAL if named else not v.address)]

    def of_roles(self, roles: Sequence[str], stacks: Collection[str]) -> dict[str, Vector]:
        """The biases of some roles, by address."""
        return {v.address: v for v in self.vectors if _role(v, stacks) in roles and not v.norm}


def _role(vector: Vector, stacks: Collection[str]) -> str:
    """The role in an address, "" if it is unknown, of another stack, or of an expert."""
    parts = vector.address.split(".")
    return parts[-2] if len(parts) > 2 and parts[0] in stacks else ""


# --- ranks ---


@dataclass(frozen=True, eq=False)
class Profile:
    """Vectors of one axis, ranked along it.

    addresses: of the vectors that vary and show no order along the axis. numbers: their places among all, which are
    `total`. ranks: (vectors, places) float64, mean ranks, standardized. values: (vectors, places) float64, sorted: what
    a permutation of the axis leaves unchanged. alone: (places,) whether a place has ranks that no other place has.
    ordered: vectors that vary and show an order. together: whether the others show one together.
    """

    addresses: tuple[str, ...]
    numbers: tuple[int, ...]
    total: int
    ranks: F64
    values: F64
    alone: NDArray[np.bool_]
    ordered: int
    together: bool


def profile(vectors: Sequence[Vector]) -> Profile:
    """The profile of vectors of one size."""
    varying = [i for i, v in enumerate(vectors) if np.ptp(v.values) > 0][:MOST_VECTORS]
    taken = np.array([_at_places(vectors[i]) for i in varying], np.float64)
    taken = taken.reshape(len(varying), places(vectors[0].size if vectors else 0).size)
    ranks = mean_ranks(taken)
    alone = _alone(ranks)
    plain = ~ordered(ranks[:, alone])
    kept = [i for i, is_plain in zip(varying, plain, strict=True) if is_plain]
    return Profile(
        addresses=tuple(vectors[i].address for i in kept),
        numbers=tuple(kept),
        total=len(vectors),
        ranks=standardized(ranks[plain]),
        values=np.sort(taken[plain], axis=1),
        alone=alone,
        ordered=len(varying) - len(kept),
        together=ordered_together(ranks[plain][:, alone]),
    )


def places(size: int) -> NDArray[np.int64]:
    """The places of an axis that are compared: all up to 2,048, else that many, in evenly spaced runs of neighbors."""
    if size <= PLACES:
        return np.arange(size, dtype=np.int64)
    at = np.arange(PLACES, dtype=np.int64)
    return at // RUN * size // (PLACES // RUN) + at % RUN


def _at_places(vector: Vector) -> F32:
    return vector.values[places(vector.size)] if vector.values.size == vector.size else vector.values


def mean_ranks(values: NDArray[Any]) -> F64:
    """Ranks of each row of (k, n) from 0; equal values get their mean rank: an order by index would align strangers."""
    order = values.argsort(axis=1)
    along = np.take_along_axis(values, order, axis=1)
    numbers = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    rises = along[:, 1:] > along[:, :-1]
    first, last = numbers.copy(), numbers.copy()  # of each place, where the run of its equals begins and ends
    first[:, 1:][~rises] = 0
    last[:, :-1][~rises] = values.shape[1]
    np.maximum.accumulate(first, axis=1, out=first)
    np.minimum.accumulate(last[:, ::-1], axis=1, out=last[:, ::-1])
    out = np.empty(values.shape)
    np.put_along_axis(out, order, (first + last) / 2, axis=1)
    return out


def standardized(values: F64) -> F64:
    """Rows with mean 0 and standard deviation 1; zeros where a row is constant."""
    if not values.size:
        return values
    centered = values - values.mean(axis=1, keepdims=True)
    spread = centered.std(axis=1, keepdims=True)
    return np.asarray(centered / np.where(spread > 0, spread, 1.0), np.float64)


def ordered(ranks: F64) -> NDArray[np.bool_]:
    """Which rows of (k, n) ranks show an order along their index beyond chance: in neighbors, or as a trend.

    The coordinates of a trained model are exchangeable, so neither does; fixed sinusoidal positions, training that
    prefers the first coordinates (Matryoshka, MatFormer) and tools that sort them do.
    """
    k, n = ranks.shape
    if n < 2 or not k:
        return np.zeros(k, np.bool_)
    unit = standardized(ranks)
    trend = standardized(np.arange(n, dtype=np.float64)[None])[0]
    neighbors = np.einsum("kn,kn->k", unit[:, 1:], unit[:, :-1])
    return np.asarray(np.maximum(abs(neighbors), abs(unit @ trend)) / n > ORDERED / math.sqrt(n))


def ordered_together(ranks: F64) -> bool:
    """Whether the ranks of vectors of one axis, (k, n), show an order along the index together, beyond chance.

    What is weak in each vector adds up over vectors, here as in the test. Sums of products of neighbors at distances of
    1 to 128, and squared correlations with the index. Vectors that correlate with each other count as fewer: under
    exchange of places the sums have the variance of sum(G^2) / n, G the correlations of the vectors.
    """
    k, n = ranks.shape
    if not k or n < 2 * MIN_ELEMENTS // 4:
        return False
    unit = standardized(ranks)
    independent = k * k / float(np.square(unit @ unit.T / n).sum())
    trend = standardized(np.arange(n, dtype=np.float64)[None])[0]
    squares = float(np.square(unit @ trend).sum()) / n / k  # on average 1, as a chi-square over its degrees of freedom
    spread = 2 / (9 * independent)
    found = [(np.cbrt(squares) - 1 + spread) / math.sqrt(spread)]  # Wilson and Hilferty, 1931
    sums = (float((unit[:, lag:] * unit[:, :-lag]).sum()) for lag in LAGS if lag < n // 2)
    found += [abs(total) / k * math.sqrt(independent / n) for total in sums]
    return bool(max(found) > ORDERED)


_MIXERS = np.random.default_rng(0).integers(1 << 62, size=MOST_VECTORS, dtype=np.uint64) * 2 + 1


def _alone(ranks: F64) -> NDArray[np.bool_]:
    """Which columns of (k, n) mean ranks differ from every other column: padding repeats one."""
    if not ranks.size:
        return np.zeros(ranks.shape[1] if ranks.ndim == 2 else 0, np.bool_)
    words = (2 * ranks).astype(np.uint64)  # mean ranks are whole numbers and a half
    with np.errstate(over="ignore"):
        order = np.argsort((words * _MIXERS[: len(words), None]).sum(axis=0, dtype=np.uint64), kind="stable")
    along = words[:, order]
    same = (along[:, 1:] == along[:, :-1]).all(axis=0)
    repeated = np.zeros(ranks.shape[1], np.bool_)
    repeated[order[1:]] |= same
    repeated[order[:-1]] |= same
    return ~repeated


# --- from a model's weights, and the table rows ---


def of_weights(w: Weights) -> Vectors | None:
    """The vectors of a model that are finite; None if it has none. Norms are left out where NLF could not keep them."""
    norms: list[Vector] = []
    others: list[Vector] = []
    for place in w.places:
        tensor = w.tensors[place.name]
        if len(tensor.shape) != 1 or not MIN_ELEMENTS <= tensor.size <= MAX_VECTOR:
            continue
        if is_norm(place.canonical, tensor.shape):
            address = str(canonical.key_of(place.parts[0])) if place.parts else ""
            norms.append(Vector(address, tensor.size, tensor.flat(), norm=True))
        elif not place.parts and w.arch is None:
            others.append(Vector("", tensor.size, tensor.flat()[places(tensor.size)], norm=False))
        else:
            kept = (part for part in place.parts if part.expert is None and part.role in (*RESIDUAL, *HIDDEN, *VALUES))
            others += [_of_part(w, place, part) for part in kept]
    if any(not np.isfinite(v.values).all() for v in norms):
        norms = []
    others = [v for v in sorted(others, key=lambda v: v.address) if np.isfinite(v.values).all()]
    if len(others) > MOST or sum(v.values.size for v in others) > MOST_VALUES:
        w.absences["vectors"] = Reason.of(Code.VECTORS_MANY, n=len(others), limit=MOST)
        return None
    if not norms and not others:
        w.absences["vectors"] = Reason.of(Code.NO_NORMS, needed=MIN_ELEMENTS)
        return None
    return Vectors((*norms, *others), w.arch.head_dim if w.arch else 0)


def _of_part(w: Weights, place: Placement, part: Part) -> Vector:
    """A bias at its places, or of v its first values, which are whole heads."""
    size, _ = w.shape(place, part)
    values = w.rows(place, part, 0, size).reshape(-1)
    kept = values[:PLACES] if part.role in VALUES else values[places(size)]
    return Vector(str(canonical.key_of(part)), size, kept, norm=False)


def of_norms(norms: NormTensors) -> Vectors | None:
    """The vectors of a row that has NLF alone, without roles; None if it has no more than their statistics."""
    if norms.summarized:
        return None
    pieces = np.split(norms.values, np.cumsum(norms.sizes)[:-1])
    return Vectors(tuple(Vector("", values.size, values, norm=True) for values in pieces))


def _to_row(found: Vectors) -> Row:
    others = [v for v in found.vectors if not v.norm]
    return {
        "norm_roles": [v.address for v in found.vectors if v.norm],
        "vector_roles": [v.address for v in others],
        "vector_sizes": np.array([v.size for v in others], np.int32),
        "vectors": np.concatenate([np.zeros(0, np.float32), *(v.values for v in others)]),
        "vector_head_dim": found.head_dim,
    }


def _of_row(row: Mapping[str, Any]) -> Vectors | None:
    names, roles, sizes = row["nlf_names"], row["norm_roles"] or [""] * len(row["nlf_names"]), row["vector_sizes"]
    if len(roles) != len(names):
        raise ValueError(f"the roles of {len(roles)} norm tensors, {len(names)} expected")
    if not 0 <= row["vector_head_dim"] <= MAX_VECTOR:
        raise ValueError(f"heads of {row['vector_head_dim']} channels")
    if len(row["vector_roles"]) != sizes.size or (sizes < 1).any() or (sizes > MAX_VECTOR).any():
        raise ValueError("the roles and sizes of its vectors do not belong together")
    bare = of_norms(NormTensors(tuple(names), row["nlf_sizes"], row["nlf"])) if names else None
    norms = [replace(v, address=role) for v, role in zip(bare.vectors, roles, strict=True)] if bare else []
    pieces = split(row["vectors"], np.minimum(sizes, PLACES))
    others = [
        Vector(role, int(size), values, norm=False)
        for role, size, values in zip(row["vector_roles"], sizes, pieces, strict=True)
    ]
    return Vectors((*norms, *others), row["vector_head_dim"]) if norms or others else None


PANEL = Panel(
    "vectors",
    (
        array("norm_roles", "string", "vectors: role of each norm tensor of NLF, empty if unknown", MOST),
        array("vector_roles", "string", "vectors: biases of o, down, up and v; roles", MOST),
        array("vector_sizes", "int32", "vectors: their sizes", MOST),
        array("vectors", "float32", "vectors: up to 2,048 values of each", MOST_VALUES, finite=True),
        number("vector_head_dim", "vectors: channels of a head; 0 if unknown"),
    ),
    to_row=_to_row,
    from_row=_of_row,
    extract=of_weights,
    first=True,
)
