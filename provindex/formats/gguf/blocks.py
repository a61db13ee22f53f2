"""The number formats of GGUF: what a block of elements takes in bytes, and how it becomes float32. numpy only.

A block has one scale (sometimes a minimum too) and the codes of its elements; the blocks of 256 ("K") hold smaller
groups with scales of their own, which are packed in 4 or 6 bits. The layouts are the structs of ggml-common.h, the
arithmetic is that of ggml-quants.c in single precision, operation by operation, so results are equal bit for bit:
https://github.com/ggml-org/llama.cpp/tree/master/ggml/src. MXFP4: OCP Microscaling specification 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Kernel = Callable[[U8, F32], None]  # (n, width) contiguous bytes into (n, block) numbers

_PIECE = 1 << 16  # elements that are decoded at a time: they stay in the processor's cache between steps


@dataclass(frozen=True, slots=True)
class Format:
    """One number format. block, width: elements and bytes of a block. decode: (n, width) uint8 to (n, block) float32,
    None where elements lie one after another as dtypes.STORED says (block 1), or where nothing is known but the size.
    """

    name: str
    block: int
    width: int
    decode: Callable[[U8], F32] | None = None


def _in_pieces(block: int, kernel: Kernel) -> Callable[[U8], F32]:
    most = _PIECE // block

    def decode(stored: U8) -> F32:
        out = np.empty((len(stored), block), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # scales of any value, infinities among them
            for start in range(0, len(stored), most):
                kernel(np.ascontiguousarray(stored[start : start + most]), out[start : start + most])
        return out

    return decode


def _half(blocks: U8, at: int) -> F32:
    """The float16 at byte `at` of each block, as a column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


# --- blocks of 32 ------------------------------------------------------------------------------------------------


def _q4_0(blocks: U8, out: F32) -> None:
    codes = blocks[:, 2:]
    out[:, :16] = codes & 15
    out[:, 16:] = codes >> 4
    out -= 8
    out *= _half(blocks, 0)


def _q4_1(blocks: U8, out: F32) -> None:
    codes = blocks[:, 4:]
    out[:, :16] = codes & 15
    out[:, 16:] = codes >> 4
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _five_bits(high: U8, low: U8, out: F32) -> None:
    """Codes of 5 bits, the fifth ones together in 4 bytes."""
    codes = np.unpackbits(high, axis=1, bitorder="little")
    codes <<= 4
    codes[:, :16] |= low & 15
    codes[:, 16:] |= low >> 4
    out[:] = codes


def _q5_0(blocks: U8, out: F32) -> None:
    _five_bits(blocks[:, 2:6], blocks[:, 6:], out)
    out -= 16
    out *= _half(blocks, 0)


def _q5_1(blocks: U8, out: F32) -> None:
    _five_bits(blocks[:, 4:8], blocks[:, 8:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q8_0(blocks: U8, out: F32) -> None:
    out[:] = blocks[:, 2:].view(np.int8)
    out *= _half(blocks, 0)


_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, doubled


def _pairs(values: tuple[int, ...]) -> tuple[bytes, bytes]:
    """For each byte the value of its low and of its high four bits, as signed bytes."""
    table = np.array(values, np.int8)
    byte = np.arange(256)
    return table[byte & 15].tobytes(), table[byte >> 4].tobytes()


_IQ4, _FP4 = _pairs(_IQ4_VALUES), _pairs(_FP4_VALUES)


def _looked_up(codes: U8, table: bytes) -> NDArray[np.int8]:
    """One value a byte: `bytes.translate` is several times as fast as indexing."""
    return np.frombuffer(codes.tobytes().translate(table), np.int8).reshape(codes.shape)


def _iq4_nl(blocks: U8, out: F32) -> None:
    out[:, :16] = _looked_up(blocks[:, 2:], _IQ4[0])
    out[:, 16:] = _looked_up(blocks[:, 2:], _IQ4[1])
    out *= _half(blocks, 0)


def _half_powers() -> F32:
    """E8M0, halved because the values are doubled: 2**(e - 128), the two smallest subnormal."""
    exponent = np.arange(256, dtype=np.uint32)
    bits = np.where(exponent < 2, np.uint32(0x00200000) << (exponent & 1), (exponent - 1) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


_HALF_POWERS = _half_powers()


def _mxfp4(blocks: U8, out: F32) -> None:
    out[:, :16] = _looked_up(blocks[:, 1:], _FP4[0])
    out[:, 16:] = _looked_up(blocks[:, 1:], _FP4[1])
    out *= _HALF_POWERS[blocks[:, :1]]


# --- blocks of 256 -----------------------------------------------------------------------------------------------


def _q2_k(blocks: U8, out: F32) -> None:
    scales = blocks[:, :16]
    step = _half(blocks, 80) * (scales & 15)
    least = _half(blocks, 82) * (scales >> 4)
    _two_bits(blocks[:, 16:80], out)
    groups = out.reshape(-1, 16, 16)
    groups *= step[:, :, None]
    groups -= least[:, :, None]


def _two_bits(codes: U8, out: F32) -> None:
    """64 bytes into 256 codes: two halves of 32 bytes, each byte holding four elements that are 32 apart."""
    halves, places = codes.reshape(-1, 2, 32), out.reshape(-1, 2, 4, 32)
    for quarter in range(4):
        places[:, :, quarter] = (halves >> (2 * quarter)) & 3


def _q3_k(blocks: U8, out: F32) -> None:
    codes, mask = blocks[:, 32:96].reshape(-1, 2, 32), blocks[:, :32]
    packed = blocks[:, 96:108]
    scales = np.empty((len(blocks), 16), np.uint8)
    scales[:, :8] = packed[:, :8] & 15
    scales[:, 8:] = packed[:, :8] >> 4
    for quarter in range(4):
        scales[:, 4 * quarter : 4 * quarter + 4] |= ((packed[:, 8:] >> (2 * quarter)) & 3) << 4
    step = _half(blocks, 108) * (scales.view(np.int8) - np.int8(32))
    places = out.reshape(-1, 2, 4, 32)
    for half in range(2):
        for quarter in range(4):  # the third bit is that of 4, and its absence subtracts 4
            third = (mask >> (4 * half + quarter) & 1) << 2
            places[:, half, quarter] = (codes[:, half] >> (2 * quarter)) & 3 | third
    out -= 4
    groups = out.reshape(-1, 16, 16)
    groups *= step[:, :, None]


def _six_bit_scales(packed: U8) -> tuple[U8, U8]:
    """Eight scales and eight minima of 6 bits each, from 12 bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (rest & 15) | ((first >> 2) & 48)), axis=1)
    minima = np.concatenate((second & 63, (rest >> 4) | ((second >> 2) & 48)), axis=1)
    return scales, minima


def _scale_groups(blocks: U8, out: F32) -> None:
    """Codes to values with the scales that Q4_K and Q5_K begin with."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    groups = out.reshape(-1, 8, 32)
    groups *= (_half(blocks, 0) * scales)[:, :, None]
    groups -= (_half(blocks, 2) * minima)[:, :, None]


def _q4_k(blocks: U8, out: F32) -> None:
    codes, places = blocks[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32)
    places[:, :, 0] = codes & 15
    places[:, :, 1] = codes >> 4
    _scale_groups(blocks, out)


def _q5_k(blocks: U8, out: F32) -> None:
    high, low = blocks[:, 16:48], blocks[:, 48:].reshape(-1, 4, 32)
    places = out.reshape(-1, 4, 2, 32)
    for pair in range(4):
        fifth = high >> (2 * pair)
        places[:, pair, 0] = low[:, pair] & 15 | (fifth & 1) << 4
        places[:, pair, 1] = low[:, pair] >> 4 | (fifth & 2) << 3
    _scale_groups(blocks, out)


def _q6_k(blocks: U8, out: F32) -> None:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 32)
    places = out.reshape(-1, 2, 4, 32)
    for quarter in range(4):
        nibbles = low[:, :, quarter & 1] & 15 if quarter < 2 else low[:, :, quarter & 1] >> 4
        places[:, :, quarter] = nibbles | ((high >> (2 * quarter)) & 3) << 4
    out -= 32
    groups = out.reshape(-1, 16, 16)
    groups *= (_half(blocks, 208) * blocks[:, 192:208].view(np.int8))[:, :, None]


def _iq4_xs(blocks: U8, out: F32) -> None:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    scales = np.empty((len(blocks), 8), np.uint8)
    scales[:, ::2] = blocks[:, 4:8] & 15
    scales[:, 1::2] = blocks[:, 4:8] >> 4
    scales |= ((high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3).astype(np.uint8) << 4
    codes, places = blocks[:, 8:].reshape(-1, 8, 16), out.reshape(-1, 8, 2, 16)
    places[:, :, 0] = _looked_up(codes, _IQ4[0])
    places[:, :, 1] = _looked_up(codes, _IQ4[1])
    groups = out.reshape(-1, 8, 32)
    groups *= (_half(blocks, 0) * (scales.view(np.int8) - np.int8(32)))[:, :, None]


# --- formats whose values are points of large tables -------------------------------------------------------------

BORROWED = frozenset("IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ1_S IQ1_M TQ1_0 TQ2_0".split())


def borrowed(form: Format) -> Callable[[U8], F32] | None:
    """The decoder that the package gguf has for a format of BORROWED; None if that package is not installed.

    It is llama.cpp's own, an extra of provindex (`pip install 'provindex[gguf]'`), and is imported here alone.
    """
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        return None
    kind = GGMLQuantizationType[form.name]

    def kernel(blocks: U8, out: F32) -> None:
        out[:] = quants.dequantize(blocks, kind).reshape(out.shape)

    return _in_pieces(form.block, kernel)


def _blocks(name: str, block: int, width: int, kernel: Kernel) -> Format:
    return Format(name, block, width, _in_pieces(block, kernel))


# By the number that the file writes (enum ggml_type). The last ones are sized, so that a file can be checked, but have
# no decoder here: their values are points of tables of hundreds of vectors, for files of less than 3 bits a weight.
FORMATS: Mapping[int, Format] = {
    0: Format("F32", 1, 4), 1: Format("F16", 1, 2), 30: Format("BF16", 1, 2), 28: Format("F64", 1, 8),
    24: Format("I8", 1, 1), 25: Format("I16", 1, 2), 26: Format("I32", 1, 4), 27: Format("I64", 1, 8),
    2: _blocks("Q4_0", 32, 18, _q4_0), 3: _blocks("Q4_1", 32, 20, _q4_1),
    6: _blocks("Q5_0", 32, 22, _q5_0), 7: _blocks("Q5_1", 32, 24, _q5_1),
    8: _blocks("Q8_0", 32, 34, _q8_0),
    10: _blocks("Q2_K", 256, 84, _q2_k), 11: _blocks("Q3_K", 256, 110, _q3_k),
    12: _blocks("Q4_K", 256, 144, _q4_k), 13: _blocks("Q5_K", 256, 176, _q5_k),
    14: _blocks("Q6_K", 256, 210, _q6_k),
    20: _blocks("IQ4_NL", 32, 18, _iq4_nl), 23: _blocks("IQ4_XS", 256, 136, _iq4_xs),
    39: _blocks("MXFP4", 32, 17, _mxfp4),
    16: Format("IQ2_XXS", 256, 66), 17: Format("IQ2_XS", 256, 74), 22: Format("IQ2_S", 256, 82),
    18: Format("IQ3_XXS", 256, 98), 21: Format("IQ3_S", 256, 110),
    19: Format("IQ1_S", 256, 50), 29: Format("IQ1_M", 256, 56),
    34: Format("TQ1_0", 256, 54), 35: Format("TQ2_0", 256, 66),
    40: Format("NVFP4", 64, 36), 41: Format("Q1_0", 128, 18),
}  # fmt: skip
