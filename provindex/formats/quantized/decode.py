"""Packed codes in, float32 out: the arithmetic of quantized weights, on arrays alone.

Layouts, from the packages that write them: GPTQ (AutoGPTQ `qlinear_cuda`), AWQ (AutoAWQ `packing_utils`), bitsandbytes
(`functional.QuantState`, `backends/default/ops`), compressed-tensors (`compressors`), the OCP Microscaling
specification 1.0 for E2M1 and E8M0, NVIDIA's NVFP4 as TensorRT Model Optimizer and compressed-tensors store it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# Four bits as FP4 E2M1: sign, two bits of exponent, one of mantissa.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# Where the eight columns that AWQ packs into one word are: column j is in nibble AWQ_NIBBLE[j].
AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)
INT8_STEP = np.float32(1 / 127)  # bitsandbytes: a row's codes reach from -127 to 127

Combine = Callable[[F32, F32, F32], F32]  # np.multiply or np.subtract, with the array that takes the result


def unpack(data: U8, bits: int, count: int) -> U8:
    """The first `count` codes of each row of bytes: (n, bytes) to (n, count) uint8, 1 to 8 bits, the lowest bits first.

    Codes follow each other without gaps, also across bytes and words; the bytes of a word are little-endian.
    """
    if bits == 8:
        return data[:, :count]
    if bits in (2, 4):
        per = 8 // bits
        codes = np.empty((*data.shape, per), np.uint8)
        for at in range(per):
            np.right_shift(data, at * bits, out=codes[..., at])
        codes &= (1 << bits) - 1
        return codes.reshape(len(data), -1)[:, :count]
    runs = -(-count // 8)  # eight codes are `bits` bytes
    padded = np.zeros((len(data), runs * bits), np.uint8)
    padded[:, : data.shape[1]] = data[:, : runs * bits]
    wide = np.zeros((len(data), runs), np.uint64)
    for at in range(bits):
        wide |= padded[:, at::bits].astype(np.uint64) << np.uint64(8 * at)
    eight = np.empty((len(data), runs, 8), np.uint8)
    for at in range(8):
        eight[..., at] = (wide >> np.uint64(bits * at)) & np.uint64((1 << bits) - 1)
    return eight.reshape(len(data), -1)[:, :count]


def nibbles(data: U8, table: tuple[float, ...], *, high_first: bool = False) -> F32:
    """Both values of each byte, (n, bytes) to (n, 2 bytes) float32; table: the 16 values of a nibble."""
    pairs: NDArray[Any] = _pairs(table, high_first)[data]
    return pairs.view(np.float32)


@lru_cache(maxsize=16)
def _pairs(table: tuple[float, ...], high_first: bool) -> NDArray[np.float64]:
    """For each byte the two float32 of its nibbles, held in one element of eight bytes."""
    values = np.array(table, np.float32)
    byte = np.arange(256)
    order = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    table_of_pairs = np.stack([values[i] for i in order], axis=1).reshape(-1).view(np.float64)
    table_of_pairs.setflags(write=False)
    return table_of_pairs


def awq_columns(words: U8) -> U8:
    """AWQ's packed words, (n, 4 w) bytes, to codes (n, 8 w) uint8 in the order of the columns."""
    codes = unpack(words, 4, 2 * words.shape[1]).reshape(len(words), -1, 8)
    return codes[:, :, AWQ_NIBBLE].reshape(len(words), -1)


def spread(combine: Combine, values: F32, table: F32, block: int, order: NDArray[np.int64] | None = None) -> F32:
    """Combine each value with its group's number, in place.

    values: (n, width). table: (n, groups) or (1, groups). block: columns of a group, the last may be cut short.
    order: the group of each column, (width,), where groups are no runs of columns (activation order).
    """
    groups = table.shape[1]
    if order is not None:
        return combine(values, table[:, order], values)
    if groups == 1:
        return combine(values, table, values)
    if groups * block != values.shape[1]:
        return combine(values, np.repeat(table, block, axis=1)[:, : values.shape[1]], values)
    runs = values.reshape(len(values), groups, block)
    combine(runs, table[:, :, None], runs)
    return values
