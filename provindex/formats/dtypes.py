"""Stored number formats: raw little-endian bytes in, float32 out. numpy only.

Formats and their spellings are those of safetensors. FP8 follows "FP8 Formats for Deep Learning"
(Micikevicius and others, 2022), the FNUZ variants "8-bit Numerical Formats for Deep Neural Networks" (Noune
and others, 2022), the scale format E8M0 the OCP Microscaling specification 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# Width of one element in bits, for every spelling that safetensors writes. Those without a decoder below
# can be described, hashed and skipped, but not turned into numbers.
BITS: Mapping[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "BOOL": 8, "C64": 64,
}  # fmt: skip

# How the bytes of each decodable format are viewed before decoding.
STORED: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
        "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E4M3FNUZ": "u1", "F8_E5M2FNUZ": "u1", "F8_E8M0": "u1",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
    }.items()
}  # fmt: skip

_BLOCK = 1 << 17  # elements
_SIGN_AND_REST = np.int32(0x8FFFE000 - (1 << 32))
_REBIAS = np.float32(2.0 ** (127 - 15))
_SMALLEST = np.float32(2.0 ** (-24 - (127 - 15)))  # the smallest float16, before the product

# name -> (exponent bits, mantissa bits, exponent bias, special values)
#   "ieee": the top exponent is infinity and NaN. "fn": finite, only all ones is NaN. "fnuz": finite, -0 is NaN.
_FP8: Mapping[str, tuple[int, int, int, str]] = {
    "F8_E4M3": (4, 3, 7, "fn"),
    "F8_E5M2": (5, 2, 15, "ieee"),
    "F8_E4M3FNUZ": (4, 3, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
}


def element_bytes(dtype: str, count: int) -> int | None:
    """Bytes that `count` elements take, or None if they do not fill whole bytes (4 and 6 bit formats)."""
    bits = BITS[dtype] * count
    return None if bits % 8 else bits // 8


def decode(stored: NDArray[Any], dtype: str) -> F32:
    """Stored elements (viewed as `STORED[dtype]`, any shape) as native, aligned float32 of the same shape.

    F32 comes back as a view where it can (read-only if the bytes are): copy before writing. F64 and wide
    integers are rounded; F64 beyond the float32 range becomes infinity. Integers and booleans keep their
    plain values, no scale. KeyError for a format that has no decoder.
    """
    convert = _CONVERT.get(dtype)
    if convert is not None:
        return convert(stored)
    if dtype == "F32" and stored.flags.aligned and stored.dtype.isnative:
        return stored
    if dtype not in STORED:
        raise KeyError(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(np.float32)


def _bfloat16(stored: NDArray[Any]) -> F32:
    """BF16 is the upper half of a float32."""
    return _in_blocks(stored, _move_up)


def _float16(stored: NDArray[Any]) -> F32:
    """Float16 by arithmetic on whole arrays, several times as fast as numpy's conversion and equal to it bit for bit.

    It needs subnormal numbers, which a library that was built for "fast math" can switch off for the whole process:
    then, and in blocks with infinities or NaN, numpy converts.
    """
    if np.float32(2.0**-24) != _SMALLEST * _REBIAS:
        return stored.astype(np.float32)
    return _in_blocks(stored, _widen)


def _in_blocks(stored: NDArray[Any], convert: Callable[[NDArray[np.uint16], F32], None]) -> F32:
    """Convert two-byte codes in blocks that stay in the processor's cache between one step and the next."""
    value = np.empty(stored.shape, np.float32)
    out, codes = value.reshape(-1), stored.reshape(-1).view("<u2")
    for start in range(0, codes.size, _BLOCK):
        convert(codes[start : start + _BLOCK], out[start : start + _BLOCK])
    return value


def _move_up(codes: NDArray[np.uint16], out: F32) -> None:
    bits = out.view(np.uint32)
    bits[:] = codes
    bits <<= 16


def _widen(codes: NDArray[np.uint16], out: F32) -> None:
    """Float16 codes into float32: the bits move to their new places, a product puts the exponent's bias right."""
    signed = codes.view("<i2")
    if signed.max() >= 0x7C00 or codes.max() >= 0xFC00:  # exponent 31: infinity or NaN
        out[:] = codes.view("<f2")
        return
    bits = out.view(np.int32)
    bits[:] = signed  # the sign spreads upwards, and the mask keeps one copy of it
    bits <<= 13
    bits &= _SIGN_AND_REST
    out *= _REBIAS


@cache
def _fp8_table(dtype: str) -> F32:
    """The 256 values of an FP8 format, from its definition: sign, exponent, mantissa, subnormals, special values."""
    exponent_bits, mantissa_bits, bias, special = _FP8[dtype]
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code & 0x7F) >> mantissa_bits
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = exponent > 0
    value = sign * (normal + fraction) * np.exp2(np.maximum(exponent, 1) - float(bias))
    top = exponent == (1 << exponent_bits) - 1
    if special == "ieee":
        value[top] = np.where(fraction[top] == 0, sign[top] * np.inf, np.nan)
    else:
        value[[0x7F, 0xFF] if special == "fn" else [0x80]] = np.nan
    return _fixed(value)


@cache
def _e8m0_table() -> F32:
    """Powers of two from 2**-127 to 2**127; the last code is NaN."""
    value = np.exp2(np.arange(256) - 127.0)
    value[0xFF] = np.nan
    return _fixed(value)


def _fixed(value: NDArray[np.float64]) -> F32:
    with np.errstate(over="ignore"):
        table = value.astype(np.float32)
    table.setflags(write=False)
    return table


def _lookup(dtype: str) -> Callable[[NDArray[Any]], F32]:
    return lambda stored: _fp8_table(dtype)[stored]


_CONVERT: Mapping[str, Callable[[NDArray[Any]], F32]] = {
    "BF16": _bfloat16,
    "F16": _float16,
    "F8_E8M0": lambda stored: _e8m0_table()[stored],
    **{name: _lookup(name) for name in _FP8},
}
