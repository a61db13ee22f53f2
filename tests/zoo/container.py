"""The safetensors container and its number formats, written by hand: numpy has no BF16 and no FP8."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1"}
MINIFLOATS = {"F8_E4M3": (4, 3, 7), "F8_E5M2": (5, 2, 15)}  # exponent bits, mantissa bits, bias
WIDTH = {name: np.dtype(kind).itemsize for name, kind in NATIVE.items()} | {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def encode(values: Array, dtype: str) -> bytes:
    """Little-endian bytes of an array; floats round to nearest, ties to even; integers round and saturate."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    if dtype in MINIFLOATS:
        return _nearest_code(values, minifloat_table(dtype)).tobytes()
    kind = np.dtype(NATIVE[dtype])
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(kind).tobytes()
    return np.asarray(values).astype(kind).tobytes()


def decode(raw: bytes, dtype: str) -> Array:
    """What the bytes say, as float32."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    if dtype in MINIFLOATS:
        return minifloat_table(dtype)[np.frombuffer(raw, np.uint8)]
    return np.frombuffer(raw, NATIVE[dtype]).astype(np.float32)


@cache
def minifloat_table(dtype: str) -> Array:
    """The value of each of the 256 codes of an 8-bit float (OCP FP8: E4M3 has no infinity, E5M2 is IEEE-like)."""
    exponent_bits, mantissa_bits, bias = MINIFLOATS[dtype]
    code = np.arange(256)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - bias), mantissa * 2.0 ** (1 - bias))
    if dtype == "F8_E5M2":
        magnitude[(exponent == 31) & (mantissa == 0)] = np.inf
        magnitude[(exponent == 31) & (mantissa > 0)] = np.nan
    else:
        magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32)


def _nearest_code(values: Array, table: Array) -> NDArray[np.uint8]:
    """The code whose value is nearest: ties to the even code, saturating, NaN to the last code."""
    grid = table[:128][np.isfinite(table[:128])].astype(np.float64)
    size = np.abs(np.nan_to_num(values.astype(np.float64), nan=0.0))
    below = np.clip(np.searchsorted(grid, size, side="right") - 1, 0, len(grid) - 1)
    above = np.minimum(below + 1, len(grid) - 1)
    down, up = size - grid[below], grid[above] - size
    code = np.where((up < down) | ((up == down) & (below % 2 == 1)), above, below)
    code = np.where(size >= grid[-1], len(grid) - 1, code)
    code = np.where(np.isnan(values), 0x7F, code)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def save(path: Path, tensors: Mapping[str, Array], dtypes: Mapping[str, str], names: Sequence[str]) -> int:
    """Write one safetensors file with its data in the given order of names; returns the bytes of data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    pieces, offset = [], 0
    for name in names:
        raw = encode(tensors[name], dtypes[name])
        shape = list(tensors[name].shape)
        header[name] = {"dtype": dtypes[name], "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        pieces.append(raw)
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(pieces))
    return offset
