"""Which stored tensors are no weights: small buffers, and tables that a program computes.

Names claim it (`inv_freq`, `position_ids`, an attention mask); values have to bear it out, because anything can be
stored under such a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.tensor import Tensor
from provindex.roles.names import UNKNOWN, Layout

F32 = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
SMALL = 1 << 12  # elements below which a tensor is no place for a model
ORDERED = 0.5  # autocorrelation: of 256 exchangeable values .5 is 8 sd, and rows of trained matrices stay below .2
RUN, PROBES = 256, 64  # values at a place, and places all over a tensor
LEAST_VALUES = 64  # to tell whether a row is ordered
STEPS = 16  # changes of value in a run of a mask
COMPUTED = 0.9  # share of the places of a table that must look computed


def is_ordered(values: Floats, lags: tuple[int, ...] = (1, 2)) -> bool:
    """Whether neighbours are alike, as in tables of angles or indices; sines and cosines may be interleaved."""
    row = values.astype(np.float64)
    centred = row - row.mean()
    energy = float(centred @ centred)
    return energy > 0 and max(abs(float(centred[:-lag] @ centred[lag:])) for lag in lags) > ORDERED * energy


def computed_share(tensor: Tensor) -> float:
    """Share of a tensor that looks computed, from places all over it: ordered along its rows or from row to row, or a
    mask, which seldom changes.
    """
    width = tensor.shape[-1] if tensor.shape else 1
    starts = np.unique(np.linspace(0, max(0, tensor.size - RUN), PROBES).astype(np.int64)).tolist()
    found = 0
    for start in starts:
        values, below = tensor.flat(start, start + RUN), tensor.flat(start + width, start + width + RUN)
        steps = int((values[1:] != values[:-1]).sum())
        finite = bool(np.isfinite(values).all() and np.isfinite(below).all())
        found += steps <= STEPS or (finite and values.size >= LEAST_VALUES and _is_computed(values, below))
    return found / len(starts)


def _is_computed(values: F32, below: F32) -> bool:
    if is_ordered(values):
        return True
    if below.size < LEAST_VALUES:
        return False
    x, y = (side.astype(np.float64) - side.mean(dtype=np.float64) for side in (values[: below.size], below))
    energy = float(np.sqrt((x @ x) * (y @ y)))
    return energy > 0 and float(x @ y) > ORDERED * energy


def with_honest_buffers(layout: Layout, tensors: Mapping[str, Tensor]) -> Layout:
    """The same layout; what is no weight by its name, and neither small nor computed, is a weight under an unknown
    name.
    """
    large = (p for p in layout.placements.values() if not p.weight and tensors[p.name].size > SMALL)
    false = [p.name for p in large if computed_share(tensors[p.name]) < COMPUTED]
    if not false:
        return layout
    placements = {
        name: replace(p, reason=UNKNOWN, weight=True, parts=()) if name in false else p
        for name, p in layout.placements.items()
    }
    return replace(layout, placements=placements, unknown=(*layout.unknown, *false))
