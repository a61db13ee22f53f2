"""Effect sizes of a pair.

How much is equal, how much moved, and on what grid. They name a relation; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.panels import BlockDigests

F64 = NDArray[np.float64]
MAX_PROBED = 64  # matrices whose samples are searched for a grid, evenly spread
MAX_LEVELS = 255  # an 8-bit grid
GRID_TOLERANCE = 0.06  # of a step: samples are kept as float16, which moves level 127 by 0.03 steps


@dataclass(frozen=True, slots=True)
class Effects:
    """What the matched matrices of two models have in common.

    matrices: layer matrices compared. equal, rounded: shares of them whose blocks are equal bit for bit, and after
    rounding to bf16 or f16. cosine: median cosine of their samples. roles: the same for every role (q, up ...);
    worst: where it is smallest. grid_a, grid_b: shares (of at most 64 of them) whose samples lie on a uniform grid of
    at most 255 levels. half_step: share of those whose difference stays within half a step of the coarser grid.
    embedding_equal: the embedding's blocks are equal; None when one model has none.
    """

    matrices: int = 0
    equal: float = 0.0
    rounded: float = 0.0
    cosine: float = 0.0
    worst: float = 0.0
    roles: Mapping[str, float] = field(default_factory=dict)
    grid_a: float = 0.0
    grid_b: float = 0.0
    half_step: float = 0.0
    embedding_equal: bool | None = None


def effects(a: BlockDigests | None, b: BlockDigests | None, layers: Sequence[tuple[str, int, int]]) -> Effects:
    """Effect sizes over the matrices that stand at corresponding places.

    layers: (stack, layer of A, layer of B); a layer may stand in several.
    """
    if a is None or b is None:
        return Effects()
    there = {key: j for j, key in enumerate(b.keys)}
    to: dict[tuple[str, str], list[int]] = {}
    for stack, ours, theirs in layers:
        to.setdefault((stack, str(ours)), []).append(theirs)
    matched = [(i, there[k]) for i, key in enumerate(a.keys) for k in _translated(key, to) if k in there]
    if not matched:
        return Effects(embedding_equal=_embedding_equal(a, b))
    rows = np.array(matched)
    equal = _same(a.exact, b.exact, rows)
    rounded = equal | _same(a.bf16, b.bf16, rows) | _same(a.f16, b.f16, rows)
    found = [(a.keys[i], s) for i, j in matched if (s := _samples(a, b, i, j)) is not None]
    cosines = [_cosine(x, y) for _, (x, y) in found]
    by_role: dict[str, list[float]] = {}
    for (key, _), cosine in zip(found, cosines, strict=True):
        by_role.setdefault(key.rsplit(".", 2)[-2], []).append(cosine)
    roles = {role: float(np.median(c)) for role, c in by_role.items()}
    spread = sorted(found, key=lambda f: f[0].split(".")[2:])  # by role, so that a stride takes from every role
    probed = [s for _, s in spread[:: -(-len(spread) // MAX_PROBED) or 1]]
    steps = [(_step(x), _step(y)) for x, y in probed]
    count = max(len(probed), 1)
    return Effects(
        matrices=len(matched),
        equal=float(equal.mean()),
        rounded=float(rounded.mean()),
        cosine=float(np.median(cosines)) if cosines else 0.0,
        worst=min(roles.values(), default=0.0),
        roles=roles,
        grid_a=sum(x is not None for x, _ in steps) / count,
        grid_b=sum(y is not None for _, y in steps) / count,
        half_step=sum(s != (None, None) and _within(*xy) for s, xy in zip(steps, probed, strict=True)) / count,
        embedding_equal=_embedding_equal(a, b),
    )


def _translated(key: str, to: Mapping[tuple[str, str], Sequence[int]]) -> list[str]:
    """The addresses in B of a layer matrix of A: "decoder.3.q.weight" -> "decoder.5.q.weight"."""
    stack, layer, *rest = key.split(".")
    return [".".join([stack, str(at), *rest]) for at in to.get((stack, layer), ())]


def _same(a: NDArray[np.uint64], b: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    left, right = a[rows[:, 0]], b[rows[:, 1]]
    return np.asarray(((left == right) & (left != 0)).all(axis=1))


def _embedding_equal(a: BlockDigests, b: BlockDigests) -> bool | None:
    places = [[i for i, key in enumerate(d.keys) if key.endswith(".embed.weight")] for d in (a, b)]
    if not all(places):
        return None
    return bool(_same(a.exact, b.exact, np.array([[places[0][0], places[1][0]]])).all())


def _samples(a: BlockDigests, b: BlockDigests, i: int, j: int) -> tuple[F64, F64] | None:
    count = int(min(a.counts[i], b.counts[j]))
    if count < 32:
        return None
    return (
        a.samples[i, :count].astype(np.float64) * float(a.scales[i]),
        b.samples[j, :count].astype(np.float64) * float(b.scales[j]),
    )


def _cosine(x: F64, y: F64) -> float:
    product = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / product if product > 0 else 0.0


def _step(values: F64) -> float | None:
    """The step of a uniform grid that all values of every window lie on, or None; the largest over windows.

    Windows of all samples (a scale for each row) and of 32 (a scale for each block of 32) are tried.
    """
    for window in (values.size, 32):
        largest = 0.0
        for at in range(0, values.size - window + 1, window):
            step = _window_step(values[at : at + window])
            if step is None:  # most models: told by the first window
                break
            largest = max(largest, step)
        else:
            return largest
    return None


def _window_step(values: F64) -> float | None:
    levels = np.unique(values)
    gaps = np.diff(levels)
    gaps = gaps[gaps > np.abs(values).max(initial=0.0) / (4 * MAX_LEVELS)]  # less is float16's own rounding
    if not gaps.size:
        return None
    step = _refined(values, float(gaps.min()))
    if (levels[-1] - levels[0]) / step > MAX_LEVELS + 1:
        return None
    off = np.abs(values / step - np.round(values / step))
    return step if float(off.max()) <= GRID_TOLERANCE else None


def _refined(values: F64, step: float) -> float:
    """The step by least squares, near levels first: the smallest gap carries the rounding of two values."""
    for reach in (8, 24, 72, MAX_LEVELS):
        near = values[np.abs(values) <= reach * step]
        levels = np.round(near / step)
        if levels @ levels:
            step = float(near @ levels / (levels @ levels))
    return step


def _within(x: F64, y: F64) -> bool:
    """Whether the difference stays within half a step of the coarser grid, window by window."""
    for window in (x.size, 32):
        starts = range(0, x.size - window + 1, window)
        if all(_window_within(x[at : at + window], y[at : at + window]) for at in starts):
            return True
    return False


def _window_within(x: F64, y: F64) -> bool:
    steps = [s for s in (_window_step(x), _window_step(y)) if s is not None]
    return bool(steps) and float(np.abs(x - y).max()) <= (0.5 + GRID_TOLERANCE) * max(steps)
