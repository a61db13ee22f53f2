"""Small reference quantizers: a matrix (rows, columns) float32 in, what its quantized copy holds out (float32)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.grids import CODEBOOKS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Quantizer = Callable[[F32], F32]


def _half(values: F32) -> F32:
    return values.astype(np.float16).astype(np.float32)


def _grouped(w: F32, size: int, quantize: Quantizer) -> F32:
    """Groups of `size` along each row, or the row."""
    return quantize(w.reshape(-1, size or w.shape[1])).reshape(w.shape).astype(np.float32)


def symmetric(size: int, bits: int) -> Quantizer:
    """A scale per group of `size` (0: the row), by the largest value, as Q8_0 and int8 per row."""
    top = 2 ** (bits - 1) - 1

    def groups(g: F32) -> F32:
        scale = np.abs(g).max(axis=1, keepdims=True) / np.float32(top)
        return np.rint(g / scale) * _half(scale)

    return lambda w: _grouped(w, size, groups)


def affine(size: int, bits: int) -> Quantizer:
    """A scale and an integer zero point per group, as GPTQ and AWQ round (without their corrections)."""

    def groups(g: F32) -> F32:
        low, high = np.minimum(g.min(axis=1, keepdims=True), 0), np.maximum(g.max(axis=1, keepdims=True), 0)
        scale = _half((high - low) / np.float32(2**bits - 1))
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(g / scale) + zero, 0, 2**bits - 1) - zero) * scale

    return lambda w: _grouped(w, size, groups)


def k_affine(size: int, bits: int, scale_bits: int) -> Quantizer:
    """Q2_K, Q4_K, Q5_K: scale and minimum of each group are integers times those of 256 values; ends are clipped."""

    def blocks(g: F32) -> F32:
        groups = g.reshape(-1, 256 // size, size)
        low = np.minimum(groups.min(axis=2), 0) * np.float32(0.97)
        scale = (groups.max(axis=2) * np.float32(0.97) - low) / np.float32(2**bits - 1)
        scale, minimum = _integers(scale, scale_bits), _integers(-low, scale_bits)
        level = np.clip(np.rint((groups + minimum[:, :, None]) / scale[:, :, None]), 0, 2**bits - 1)
        return (level * scale[:, :, None] - minimum[:, :, None]).reshape(g.shape)

    return lambda w: _grouped(w, 256, blocks)


def k_symmetric(bits: int) -> Quantizer:
    """Q3_K, Q6_K: groups of 16 whose scales are integers times one of 256 values; ends are clipped."""

    def blocks(g: F32) -> F32:
        groups = g.reshape(-1, 16, 16)
        scale = _integers(np.abs(groups).max(axis=2) / np.float32(2 ** (bits - 1) - 0.4), 6)[:, :, None]
        level = np.clip(np.rint(groups / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return (level * scale).reshape(g.shape)

    return lambda w: _grouped(w, 256, blocks)


def _integers(values: F32, bits: int) -> F32:
    """(blocks, groups) rounded to integers from 1 on, times a float16 scale of each block."""
    top = _half(values.max(axis=1, keepdims=True) / np.float32(2**bits - 1))
    return np.maximum(np.rint(values / top), 1) * top


def coded(name: str, size: int, scales: str = "any") -> Quantizer:
    """A codebook of provindex.evidence.grids, nearest level. scales: "any", "power of two" or "E4M3"; 0: the row."""
    levels = CODEBOOKS[name]
    middles = (levels[1:] + levels[:-1]) / 2

    def groups(g: F32) -> F32:
        scale = np.abs(g).max(axis=1, keepdims=True) / np.float32(np.abs(levels).max())
        if scales == "power of two":
            scale = np.float32(2) ** np.floor(np.log2(scale) + np.float32(0.6))
        elif scales == "E4M3":
            steps = CODEBOOKS["E4M3"]
            scale = steps[np.searchsorted((steps[1:] + steps[:-1]) / 2, scale * 4096)] / 4096
        return levels[np.searchsorted(middles, g / scale)] * scale

    return lambda w: _grouped(w, size, groups)


@cache
def _factor(columns: int) -> F64:
    """What GPTQ makes of the Hessian of inputs that 16 common directions correlate."""
    rng = np.random.default_rng(columns)
    inputs = rng.standard_normal((2 * columns, columns))
    inputs += rng.standard_normal((2 * columns, 16)) @ rng.standard_normal((16, columns))
    hessian = inputs.T @ inputs / inputs.shape[0]
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(columns)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(hessian)).T)


def gptq(size: int, bits: int) -> Quantizer:
    """GPTQ: column after column is rounded, and what that leaves is made up for by the columns after it.

    Frantar et al. 2023, arXiv 2210.17323, algorithm 1. Only the first 4 rows, the others are rounded to nearest.
    """
    top, plain = 2**bits - 1, affine(size, bits)

    def quantize(w: F32) -> F32:
        factor, left, out = _factor(w.shape[1]), w[:4].astype(np.float64), plain(w)
        for j in range(w.shape[1]):
            if j % size == 0:
                group = left[:, j : j + size]
                low, high = np.minimum(group.min(axis=1), 0), np.maximum(group.max(axis=1), 0)
                scale = ((high - low) / top).astype(np.float16).astype(np.float64)
                zero = np.rint(-low / scale)
            out[:4, j] = (np.clip(np.rint(left[:, j] / scale) + zero, 0, top) - zero) * scale
            left[:, j + 1 :] -= np.outer((left[:, j] - out[:4, j]) / factor[j, j], factor[j, j + 1 :])
        return out

    return quantize


def in_gguf(name: str) -> Quantizer:
    """A type that the gguf package quantizes."""
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    return lambda w: gguf.dequantize(gguf.quants.quantize(w, kind), kind).astype(np.float32)


QUANTIZERS: Mapping[str, Quantizer] = {
    "Q8_0": symmetric(32, 8),
    "int8 per row": symmetric(0, 8),
    "4 bits, groups of 128": affine(128, 4),
    "3 bits, groups of 64": affine(64, 3),
    "8 bits, groups of 128": affine(128, 8),
    "Q2_K": k_affine(16, 2, 4),
    "Q3_K": k_symmetric(3),
    "Q4_K": k_affine(32, 4, 6),
    "Q5_K": k_affine(32, 5, 6),
    "Q6_K": k_symmetric(6),
    "IQ4_NL": coded("IQ4_NL", 32),
    "NF4": coded("NF4", 64),
    "FP4": coded("FP4", 64),
    "MXFP4": coded("E2M1", 32, "power of two"),
    "NVFP4": coded("E2M1", 16, "E4M3"),
    "MXFP8": coded("E4M3", 32, "power of two"),
    "FP8 E4M3 per row": coded("E4M3", 0),
    "FP8 E5M2 per row": coded("E5M2", 0),
    "FP8 E4M3, blocks of 128": coded("E4M3", 128),
}
IN_GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
