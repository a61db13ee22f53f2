"""Where the peer's samples of a matrix lie, and which units of a model they describe: from shapes alone.

The peer takes at most 4,096 values of each projection matrix, at a fixed stride of the flattened matrix; of the largest
models those of a matrix of 32 of its rows. Each value belongs to one unit of an axis: to a residual coordinate (a row
of o and down, a column of q, k, v, gate and up) or to a hidden unit of its layer (a row of gate and up, a column of
down). The signature of a unit says of which matrices and at which other coordinates it was sampled. Units with one
signature form a group, and only they can be compared with each other.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
SAMPLES, SLICE = 4096, 32  # most samples of a matrix; rows that are taken of one that is sliced
MIN_GROUP, MIN_UNITS = 4, 12  # units that a group, and that a test needs
LARGE, SMALL = 256, 16  # most units of a block, of many features and of a few
MANY = 8  # features
EXPECTED_AT = 0.1  # the cosine at which a set of matrices is chosen
RESIDUAL, HIDDEN = "residual", "hidden"
WRITERS, READERS = ("o", "down"), ("q", "k", "v", "q+k+v", "k+v", "gate", "up", "gate+up")
INTO, OUT_OF = ("gate", "up", "gate+up"), ("down",)
SETS = {
    RESIDUAL: (WRITERS, ("o",), ("down",), READERS, WRITERS + READERS),
    HIDDEN: (INTO, OUT_OF, INTO + OUT_OF),
}


class Matrix(NamedTuple):
    """A sampled matrix of a layer. role: "" if it is not known; then rows and columns are 0. size: its samples."""

    role: str
    rows: int
    columns: int
    size: int


Pattern = tuple[Matrix, ...]  # the matrices of a layer, in the order of their names


def places(rows: int, columns: int, sliced: bool = False) -> tuple[I64, I64]:
    """Row and column of each sample of a matrix, in the peer's order."""
    height = min(SLICE, rows) if sliced else rows
    n = height * columns
    flat = np.arange(min(SAMPLES, n), dtype=np.int64) * max(1, n // SAMPLES)
    return flat // columns * (rows // height), flat % columns


def size_of(rows: int, columns: int, sliced: bool = False) -> int:
    """How many samples the peer takes of a matrix."""
    return min(SAMPLES, (min(SLICE, rows) if sliced else rows) * columns)


@dataclass(frozen=True)
class Group:
    """Units with one signature: samples[i] are those of unit i, as places in the samples of the plan's matrices.

    samples: (units, features) int64; units by ascending number.
    """

    samples: I64

    @property
    def units(self) -> int:
        return len(self.samples)

    @property
    def features(self) -> int:
        return int(self.samples.shape[1])


@dataclass(frozen=True)
class Plan:
    """What a test looks at in every layer. matrices: which of the layer's; groups: over their samples, one by one;
    layers: how many the model has, all of which describe a residual coordinate.
    """

    axis: str
    matrices: tuple[int, ...]
    groups: tuple[Group, ...]
    layers: int

    def features(self, group: Group) -> int:
        """By how many values a unit of a group is described."""
        return group.features * (self.layers if self.axis == RESIDUAL else 1)

    @cached_property
    def blocks(self) -> tuple[tuple[int, I64], ...]:
        """(number of the group, samples) of each part of a group whose units are compared with each other.

        Any part of a group that is chosen by place is as exchangeable as the whole. Of parts of m units z is
        (m - 1) / sqrt(m (m + 1)) of what it is of the whole, at a fraction of the work.
        """
        out: list[tuple[int, I64]] = []
        for number, group in enumerate(self.groups):
            most = LARGE if self.features(group) >= MANY else SMALL
            parts = np.array_split(group.samples, math.ceil(group.units / most))
            out += [(number, part) for part in parts]
        return tuple(out)


@lru_cache(maxsize=256)
def plan(axis: str, pattern: Pattern, layers: int, sliced: bool = False) -> Plan | None:
    """The set of matrices with the largest expected z at a cosine of .1, and its groups; None if no set has 12 units.

    Chosen from shapes and the number of layers, before any value is read.
    """
    side = _side(axis, pattern)
    usual = Counter(s for s in side if s).most_common(1)
    if not usual:
        return None
    found: list[tuple[float, Plan]] = []
    for roles in SETS[axis]:
        chosen = tuple(i for i, m in enumerate(pattern) if m.role in roles and side[i] == usual[0][0])
        if chosen and all(chosen != other.matrices for _, other in found):
            made = Plan(axis, chosen, _groups(axis, [pattern[i] for i in chosen], sliced), layers)
            if sum(g.units for g in made.groups) * (layers if axis == HIDDEN else 1) >= MIN_UNITS:
                found.append((expected_z(made), made))
    return max(found, key=lambda item: item[0])[1] if found else None


def expected_z(made: Plan, cosine: float = EXPECTED_AT) -> float:
    """z of the ranks where weights at the same place have this cosine, as `exact.smallest_cosine` has it."""
    excess = variance = 0.0
    for group in made.groups:
        m, times = group.units, made.layers if made.axis == HIDDEN else 1
        excess += times * m * m * min(0.5, cosine * math.sqrt(made.features(group) / (4 * math.pi)))
        variance += times * m * m * (m + 1) / 12
    return excess / math.sqrt(variance) if variance else 0.0


def _side(axis: str, pattern: Pattern) -> list[int]:
    """How many units of the axis each matrix has; 0 if it has nothing to do with it."""
    out = []
    for m in pattern:
        by_rows = m.role in (WRITERS if axis == RESIDUAL else INTO)
        by_columns = m.role in (READERS if axis == RESIDUAL else OUT_OF)
        units = m.rows // (2 if axis == HIDDEN and m.role == "gate+up" else 1)
        out.append(units if by_rows else m.columns if by_columns else 0)
    return out


def _units(axis: str, m: Matrix, sliced: bool) -> tuple[I64, I64]:
    """The unit of each sample of a matrix, and its other coordinate."""
    row, column = places(m.rows, m.columns, sliced)
    if axis == RESIDUAL:
        return (row, column) if m.role in WRITERS else (column, row)
    if m.role in OUT_OF:
        return column, row
    height = max(1, m.rows // 2) if m.role == "gate+up" else m.rows
    return row % height, column + m.columns * (row // height)


def _groups(axis: str, matrices: list[Matrix], sliced: bool) -> tuple[Group, ...]:
    """Groups of at least 4 units, in the order of their first unit."""
    pairs = [_units(axis, m, sliced) for m in matrices]
    unit, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    which = np.repeat(np.arange(len(matrices)), [len(u) for u, _ in pairs])
    order = np.lexsort((other, which, unit))
    starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
    signs = np.stack([which[order], other[order]], axis=1)
    members: dict[bytes, list[I64]] = {}
    for part, sign in zip(np.split(order, starts[1:]), np.split(signs, starts[1:]), strict=True):
        members.setdefault(sign.tobytes(), []).append(part)
    return tuple(Group(np.stack(parts)) for parts in members.values() if len(parts) >= MIN_GROUP)
