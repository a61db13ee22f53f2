"""Quantizers of GGUF types that the gguf package only decodes: (n, 256) float32 to (n, bytes of a block) uint8.

Layouts as gguf.quants reads them. Rounding is to the nearest level of scales that are chosen as simply as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import zoo
from gguf_models import in_pairs
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def _half(values: F32) -> tuple[Bytes, F32]:
    """(n,) as the bytes of float16, and what these stand for."""
    kept = values.astype("<f2")
    return kept[:, None].view(np.uint8), kept.astype(np.float32)


def _planes(codes: NDArray[Any], bits: int, width: int) -> Bytes:
    """(n, 256) codes: runs of `width` values share their bytes, the first run in the lowest bits of each."""
    runs = codes.astype(np.uint8).reshape(len(codes), -1, 8 // bits, width)
    shifts = (bits * np.arange(8 // bits, dtype=np.uint8))[:, None]
    return np.bitwise_or.reduce(runs << shifts, axis=2).reshape(len(codes), -1)


def _affine(w: F32, size: int, bits: int, scale_bits: int) -> tuple[Any, ...]:
    """Scales and minima of groups as integers times two float16 of the block, and the nearest codes."""
    groups = w.reshape(len(w), -1, size)
    low = -np.minimum(groups.min(axis=2), 0)
    steps = (groups.max(axis=2) + low) / np.float32(2**bits - 1)
    top = np.float32(2**scale_bits - 1)
    (d, scale), (dmin, lowest) = _half(steps.max(axis=1) / top), _half(low.max(axis=1) / top)
    sc = np.clip(np.rint(steps / scale[:, None]), 1, top).astype(np.uint8)
    mins = np.clip(np.rint(low / lowest[:, None]), 0, top).astype(np.uint8)
    step, offset = (sc * scale[:, None])[:, :, None], (mins * lowest[:, None])[:, :, None]
    codes = np.clip(np.rint((groups + offset) / step), 0, 2**bits - 1)
    return d, dmin, sc, mins, codes.reshape(w.shape)


def _six_bits(sc: Bytes, mins: Bytes) -> Bytes:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    low = [part[:, :4] | (part[:, 4:] >> 4 << 6) for part in (sc, mins)]
    return np.concatenate([*low, (sc[:, 4:] & 15) | (mins[:, 4:] & 15) << 4], axis=1)


def q2_k(w: F32) -> Bytes:
    d, dmin, sc, mins, codes = _affine(w, 16, 2, 4)
    return np.concatenate([sc | mins << 4, _planes(codes, 2, 32), d, dmin], axis=1)


def q4_k(w: F32) -> Bytes:
    d, dmin, sc, mins, codes = _affine(w, 32, 4, 6)
    return np.concatenate([d, dmin, _six_bits(sc, mins), _planes(codes, 4, 32)], axis=1)


def q5_k(w: F32) -> Bytes:
    d, dmin, sc, mins, codes = _affine(w, 32, 5, 6)
    high, low = _planes(codes.astype(np.uint8) >> 4, 1, 32), _planes(codes.astype(np.uint8) & 15, 4, 32)
    return np.concatenate([d, dmin, _six_bits(sc, mins), high, low], axis=1)


def _symmetric(w: F32, bits: int, top: int) -> tuple[Any, ...]:
    """Scales of groups of 16 as integers up to `top` times a float16 of the block, and codes from 0 on."""
    groups, half = w.reshape(len(w), 16, 16), 2 ** (bits - 1)
    steps = np.abs(groups).max(axis=2) / np.float32(half - 0.5)
    d, scale = _half(steps.max(axis=1) / np.float32(top))
    sc = np.clip(np.rint(steps / scale[:, None]), 1, top)
    codes = np.clip(np.rint(groups / (sc * scale[:, None])[:, :, None]), -half, half - 1) + half
    return d, sc.astype(np.uint8), codes.reshape(w.shape).astype(np.uint8)


def q3_k(w: F32) -> Bytes:
    d, sc, codes = _symmetric(w, 3, 31)
    sc = sc + np.uint8(32)
    low, high = sc & 15, sc >> 4
    scales = np.concatenate([low[:, :8] | low[:, 8:] << 4, _planes(high, 2, 4)], axis=1)
    return np.concatenate([_planes(codes >> 2, 1, 32), _planes(codes & 3, 2, 32), scales, d], axis=1)


def q6_k(w: F32) -> Bytes:
    d, sc, codes = _symmetric(w, 6, 127)
    return np.concatenate([_planes(codes & 15, 4, 64), _planes(codes >> 4, 2, 32), sc, d], axis=1)


LEVELS = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)


def _nearest(w: F32) -> Bytes:
    return np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, w).astype(np.uint8)


def iq4_nl(w: F32) -> Bytes:
    blocks = w.reshape(-1, 32)
    d, scale = _half(np.abs(blocks).max(axis=1) / np.float32(127))
    found = np.concatenate([d, _planes(_nearest(blocks / scale[:, None]), 4, 16)], axis=1)
    return found.reshape(len(w), -1)


def iq4_xs(w: F32) -> Bytes:
    groups = w.reshape(len(w), 8, 32)
    steps = np.abs(groups).max(axis=2) / np.float32(127)
    d, scale = _half(steps.max(axis=1) / np.float32(31))
    sc = np.clip(np.rint(steps / scale[:, None]), 1, 31).astype(np.uint8)
    codes = _nearest(groups / (sc * scale[:, None])[:, :, None]).reshape(w.shape)
    sc = sc + np.uint8(32)
    high = np.bitwise_or.reduce((sc >> 4).astype(np.uint16) << (2 * np.arange(8, dtype=np.uint16)), axis=1)
    low = (sc[:, ::2] & 15) | (sc[:, 1::2] & 15) << 4
    return np.concatenate([d, high.astype("<u2")[:, None].view(np.uint8), low, _planes(codes, 4, 16)], axis=1)


PACKERS: Mapping[str, Callable[[F32], Bytes]] = {
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs,
}  # fmt: skip


def packed(w: F32, kind: str) -> Bytes:
    """A matrix, quantized to a GGUF type: (rows, bytes of a row) uint8."""
    if kind in PACKERS:
        return PACKERS[kind](w.reshape(-1, 256)).reshape(len(w), -1)
    return np.asarray(gguf.quants.quantize(w, gguf.GGMLQuantizationType[kind]))


def write_llama(path: Path, model: zoo.Checkpoint, kind: str) -> Path:
    """A Llama as llama.cpp's converter and quantizer write it; the embedding as float16."""
    c, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    for name, value in model.tensors.items():
        part = name.split(".")[-2]
        data = in_pairs(value, heads[part]) if part in heads else value
        to = names.get_name(name, try_suffixes=(".weight",))
        if ".layers." in name and value.ndim == 2:
            writer.add_tensor(to, packed(data, kind), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(to, data.astype(np.float16) if value.ndim == 2 else data)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path
