"""The two similarity measures that the weight signals share, in float64 and exactly symmetric."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provindex.common.reasons import Code, Reason

MIN_NORM_PRODUCT = 1e-10
MIN_STD = 1e-8
SIDES = ("first", "second")


def clamped_cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Cosine of two finite vectors of one length, clamped to [0, 1]; None if either is (close to) zero.

    The peer lets a NaN through its clamp as 1.0; here a caller checks `not_finite` first.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    product = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    if product < MIN_NORM_PRODUCT:
        return None
    return max(0.0, min(1.0, float(x @ y) / product))


def pearson_score(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Pearson correlation r of two finite vectors as (r + 1) / 2, to 4 decimals; None if either std is below
    1e-8.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.std() < MIN_STD or y.std() < MIN_STD:
        return None
    x, y = x - x.mean(), y - y.mean()
    r = float(x @ y) / (math.sqrt(float(x @ x)) * math.sqrt(float(y @ y)))
    return round((max(-1.0, min(1.0, r)) + 1.0) / 2.0, 4)


def not_finite(what: str, a: ArrayLike, b: ArrayLike) -> Reason | None:
    """The reason for an absent signal when either array has a NaN or an infinity, else None."""
    for side, values in zip(SIDES, (a, b), strict=True):
        if not np.isfinite(values).all():
            return Reason.of(Code.SIDE_NOT_FINITE, what=what, side=side)
    return None
