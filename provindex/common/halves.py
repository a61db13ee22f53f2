"""Values as float16 with a scale, as rows store them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def halved(values: F64 | F32) -> tuple[NDArray[np.float16], float]:
    """Values as float16 with largest magnitude in [1, 2), and the power of two that was divided out."""
    top = float(np.abs(values).max(initial=0.0))
    scale = 2.0 ** np.floor(np.log2(top)) if 0 < top < np.inf else 1.0
    with np.errstate(over="ignore"):
        return (values / scale).astype(np.float16), float(scale)


def rounded(values: F32) -> F32:
    """Values as they come back from storage as float16 with a scale: a fresh fingerprint equals a stored one."""
    half, scale = halved(values)
    return half.astype(np.float32) * np.float32(scale)


def round_bf16(values: F32) -> F32:
    """Values rounded to bfloat16 (nearest, ties to even), still float32."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
