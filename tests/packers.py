"""Quantizers for tests, by the documented layouts: a matrix to the stored tensors, and the values that these stand for.

Codes are packed one bit after another with Python's integers, and values are taken from the codes before packing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zoo import Checkpoint, container

Array = NDArray[np.float32]
Integers = NDArray[np.int64]
# (dtype, shape, bytes) of a stored tensor
Stored = tuple[str, tuple[int, ...], bytes]

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Quantized:
    """stored: tensors by the end of their names. values: (out, in), or as the layout's own reader returns them."""

    stored: Mapping[str, Stored]
    values: Array
    settings: Mapping[str, Any]


def stored(array: NDArray[Any], dtype: str | None = None) -> Stored:
    """An array as it is kept in a file; dtype: a float format to round to."""
    if dtype is not None and array.dtype.kind == "f":
        return dtype, array.shape, container.encode(array, dtype)
    names = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64"}
    return dtype or names[array.dtype.name], array.shape, np.ascontiguousarray(array).tobytes()


def pack(codes: Integers, bits: int) -> NDArray[np.int32]:
    """Rows of codes to int32 words, the first code in the lowest bits, without gaps."""
    words = -(-codes.shape[1] * bits // 32)
    rows = [sum(int(c) << (bits * i) for i, c in enumerate(row)).to_bytes(4 * words, "little") for row in codes]
    return np.frombuffer(b"".join(rows), "<i4").reshape(len(codes), words).astype(np.int32)


def _asymmetric(w: Array, bits: int, of: Integers) -> tuple[Integers, NDArray[np.float16], Integers]:
    """Codes (out, in), scales and zero points (out, groups); of: the group of each column."""
    groups = int(of.max()) + 1
    low = np.stack([np.minimum(w[:, of == g].min(axis=1), 0) for g in range(groups)], axis=1)
    high = np.stack([np.maximum(w[:, of == g].max(axis=1), 0) for g in range(groups)], axis=1)
    scale = ((high - low) / (2**bits - 1)).astype(np.float16)
    zero = np.clip(np.rint(-low / scale.astype(np.float32)), 1, 2**bits - 1).astype(np.int64)
    codes = np.rint(w / scale.astype(np.float32)[:, of]) + zero[:, of]
    return np.clip(codes, 0, 2**bits - 1).astype(np.int64), scale, zero


def _linear(codes: Integers, scale: Array, zero: Integers, of: Integers) -> Array:
    values: Array = scale.astype(np.float32)[:, of] * (codes - zero[:, of]).astype(np.float32)
    return values


def gptq(w: Array, bits: int = 4, group: int = 32, *, act_order: bool = False, v2: bool = False) -> Quantized:
    of = np.arange(w.shape[1]) // group
    of = np.random.default_rng(5).permutation(of) if act_order else of
    codes, scale, zero = _asymmetric(w, bits, of)
    kept = {
        "qweight": stored(np.ascontiguousarray(pack(codes, bits).T)),
        "qzeros": stored(pack(zero.T - (0 if v2 else 1), bits)),
        "scales": stored(np.ascontiguousarray(scale.T)),
        "g_idx": stored(of.astype(np.int32)),
    }
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order}
    settings |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    return Quantized(kept, _linear(codes, scale, zero, of), settings)


def awq(w: Array, group: int = 32) -> Quantized:
    of = np.arange(w.shape[1]) // group
    codes, scale, zero = _asymmetric(w, 4, of)

    def words(table: Integers) -> NDArray[np.int32]:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        shuffled = table.reshape(len(table), -1, 8)[:, :, order]
        return pack(shuffled.reshape(len(table), -1), 4)

    kept = {"qweight": stored(words(codes.T)), "qzeros": stored(words(zero.T)), "scales": stored(scale.T.copy())}
    return Quantized(kept, _linear(codes, scale, zero, of), {"quant_method": "awq", "bits": 4, "version": "gemm"})


def mlx(w: Array, bits: int = 4, group: int = 64) -> Quantized:
    """mx.quantize, affine: code * scale + bias, the bias being the smallest value of the group."""
    of = np.arange(w.shape[1]) // group
    grouped = w.reshape(len(w), -1, group)
    bias = grouped.min(axis=2).astype(np.float16)
    scale = ((grouped.max(axis=2) - bias.astype(np.float32)) / (2**bits - 1)).astype(np.float16)
    offset, step = bias.astype(np.float32)[:, of], scale.astype(np.float32)[:, of]
    codes = np.clip(np.rint((w - offset) / step), 0, 2**bits - 1).astype(np.int64)
    packed = pack(codes, bits)
    kept = {"weight": ("U32", packed.shape, packed.tobytes()), "scales": stored(scale), "biases": stored(bias)}
    return Quantized(kept, codes.astype(np.float32) * step + offset, {"bits": bits, "group_size": group})


def bnb_4bit(w: Array, kind: str = "nf4", block: int = 64, *, nested: bool = False) -> Quantized:
    table = NF4 if kind == "nf4" else np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 0.5, 1 / 6, 0.25], np.float32)
    table = table if kind == "nf4" else np.concatenate([table, -table])
    flat = np.pad(w.reshape(-1), (0, -w.size % block)).reshape(-1, block)
    absmax = np.abs(flat).max(axis=1).astype(np.float32)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(w.shape)}
    kept: dict[str, Stored] = {}
    if nested:
        inner = np.sort(np.random.default_rng(3).uniform(-1, 1, 256)).astype(np.float32)
        offset = float(absmax.mean())
        parts = np.pad(absmax - offset, (0, -absmax.size % 256)).reshape(-1, 256)
        outer = np.abs(parts).max(axis=1).astype(np.float32)
        distance = np.abs((parts / outer[:, None])[..., None] - inner)
        chosen = distance.argmin(axis=2).astype(np.uint8).reshape(-1)[: absmax.size]
        kept |= {"absmax": stored(chosen), "nested_absmax": stored(outer), "nested_quant_map": stored(inner)}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        absmax = inner[chosen] * np.repeat(outer, 256)[: absmax.size] + np.float32(offset)
    else:
        kept["absmax"] = stored(absmax)
    nearest = np.abs((flat / absmax[:, None])[..., None] - table).argmin(axis=2).reshape(-1)[: w.size]
    even = np.pad(nearest, (0, w.size % 2))
    kept["weight"] = stored(((even[::2] << 4) | even[1::2]).astype(np.uint8)[:, None])
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    kept |= {"quant_map": stored(table), f"quant_state.bitsandbytes__{kind}": stored(text)}
    values = table[nearest] * np.repeat(absmax, block)[: w.size]
    kept = {k if k == "weight" else f"weight.{k}": v for k, v in kept.items()}
    return Quantized(kept, values.reshape(w.shape), {"quant_method": "bitsandbytes", "load_in_4bit": True})


def bnb_int8(w: Array) -> Quantized:
    absmax = np.abs(w).max(axis=1).astype(np.float32)
    codes = np.rint(w * (127 / absmax[:, None])).astype(np.int8)
    kept = {"weight": stored(codes), "SCB": stored(absmax), "weight_format": stored(np.array(0, np.uint8))}
    values = codes.astype(np.float32) * absmax[:, None] * np.float32(7.874015718698502e-3)
    return Quantized(kept, values, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def blocks_of(w: Array, rows: int, columns: int) -> tuple[Array, Array]:
    """The largest magnitude of each block, and the same for each element."""
    grid = np.array(
        [[np.abs(w[r : r + rows, c : c + columns]).max() for c in range(0, w.shape[1], columns)]
         for r in range(0, w.shape[0], rows)], np.float32,
    )  # fmt: skip
    return grid, grid.repeat(rows, axis=0).repeat(columns, axis=1)[: w.shape[0], : w.shape[1]]


def fp8(w: Array, rows: int, columns: int, kind: str = "weight_scale", dtype: str = "F32") -> Quantized:
    grid, each = blocks_of(w, rows, columns)
    scale, per = grid / 448, each / 448
    if dtype in ("U8", "F8_E8M0"):
        exponent = np.ceil(np.log2(scale))
        scale, per = (exponent + 127).astype(np.uint8), np.exp2(np.ceil(np.log2(per)))
        kept_scale = stored(scale, dtype)
    else:
        kept_scale = stored(scale, dtype)
        per = blocks_spread(container.decode(kept_scale[2], dtype).reshape(scale.shape), rows, columns, w.shape)
    raw = container.encode(w / per, "F8_E4M3")
    codes = container.decode(raw, "F8_E4M3").reshape(w.shape)
    settings = {"quant_method": "fp8", "weight_block_size": [rows, columns]} if kind == "weight_scale_inv" else {}
    return Quantized({"weight": ("F8_E4M3", w.shape, raw), kind: kept_scale}, codes * per.astype(np.float32), settings)


def blocks_spread(grid: Array, rows: int, columns: int, shape: tuple[int, ...]) -> Array:
    return grid.repeat(rows, axis=0).repeat(columns, axis=1)[: shape[0], : shape[1]]


def ct_int8(w: Array, group: int, *, zero_points: bool = False) -> Quantized:
    """compressed-tensors int-quantized: one int8 a weight."""
    of = np.arange(w.shape[1]) // group
    _, wide, zero = _asymmetric(w, 8, of)
    if not zero_points:
        wide, zero = blocks_of(w, 1, group)[0] / 127, np.full(wide.shape, 128)
    kept_scale = stored(wide.astype(np.float32), "BF16")
    scale = container.decode(kept_scale[2], "BF16").reshape(wide.shape)
    codes = np.clip(np.rint(w / scale[:, of]) + zero[:, of], 0, 255).astype(np.int64)
    kept = {"weight": stored((codes - 128).astype(np.int8)), "weight_scale": kept_scale}
    if zero_points:
        kept["weight_zero_point"] = stored((zero - 128).astype(np.int8))
    return Quantized(kept, _linear(codes, scale, zero, of), {"quant_method": "compressed-tensors"})


def ct_packed(w: Array, bits: int, group: int, *, zero_points: bool = False, act_order: bool = False) -> Quantized:
    """compressed-tensors pack-quantized: words along the inputs, zero points along the outputs."""
    of = np.arange(w.shape[1]) // group
    of = np.random.default_rng(6).permutation(of) if act_order else of
    codes, scale, zero = _asymmetric(w, bits, of)
    if not zero_points:
        top = np.stack([np.abs(w[:, of == g]).max(axis=1) for g in range(of.max() + 1)], axis=1)
        scale = (top / (2 ** (bits - 1) - 1)).astype(np.float16)
        zero = np.full(scale.shape, 2 ** (bits - 1))
        codes = np.clip(np.rint(w / scale.astype(np.float32)[:, of]) + zero[:, of], 0, 2**bits - 1).astype(np.int64)
    kept = {
        "weight_packed": stored(pack(codes, bits)), "weight_scale": stored(scale),
        "weight_shape": stored(np.array(w.shape, np.int64)),
    }  # fmt: skip
    if zero_points:
        kept["weight_zero_point"] = stored(np.ascontiguousarray(pack(zero.T, bits).T))
    if act_order:
        kept["weight_g_idx"] = stored(of.astype(np.int32))
    scheme = {"num_bits": bits, "type": "int", "group_size": group}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": scheme}}}
    return Quantized(kept, _linear(codes, scale, zero, of), settings)


def _fp4_codes(w: Array) -> tuple[NDArray[np.uint8], Array]:
    """Nearest E2M1 codes, two a byte with the first in the low half, and their values."""
    codes = np.abs(w[..., None] - E2M1).argmin(axis=-1).astype(np.uint8)
    return codes[..., ::2] | (codes[..., 1::2] << 4), E2M1[codes]


def nvfp4(w: Array, writer: str) -> Quantized:
    """writer: "modelopt" (weight_scale_2 multiplies) or "compressed-tensors" (weight_global_scale divides)."""
    whole = np.float32(np.abs(w).max() / (6 * 448))
    outer = whole if writer == "modelopt" else np.float32(1) / whole
    raw = container.encode(blocks_of(w, 1, 16)[0] / 6 / whole, "F8_E4M3")
    inner = container.decode(raw, "F8_E4M3").reshape(w.shape[0], -1)
    scale = inner * outer if writer == "modelopt" else inner / outer
    packed, values = _fp4_codes(w / np.maximum(scale, 1e-30).repeat(16, axis=1))
    main, second = ("weight", "weight_scale_2") if writer == "modelopt" else ("weight_packed", "weight_global_scale")
    kept = {main: stored(packed), "weight_scale": ("F8_E4M3", inner.shape, raw), second: stored(np.array([outer]))}
    settings = {"quant_method": writer, "quant_algo": "NVFP4"}
    return Quantized(kept, values * scale.repeat(16, axis=1), settings)


def mxfp4(w: Array) -> Quantized:
    """compressed-tensors mxfp4-pack-quantized."""
    exponent = np.floor(np.log2(blocks_of(w, 1, 32)[0])) - 2
    packed, values = _fp4_codes(w / np.exp2(exponent).repeat(32, axis=1))
    kept = {"weight_packed": stored(packed), "weight_scale": stored((exponent + 127).astype(np.uint8))}
    return Quantized(kept, values * np.exp2(exponent).astype(np.float32).repeat(32, axis=1), {})


def gpt_oss(w: Array) -> Quantized:
    """Stacked experts (experts, out, in); values are (experts, in, out), as transformers returns them."""
    experts, out, width = w.shape
    one = mxfp4(w.reshape(-1, width))
    blocks = np.frombuffer(one.stored["weight_packed"][2], np.uint8).reshape(experts, out, width // 32, 16)
    scales = np.frombuffer(one.stored["weight_scale"][2], np.uint8).reshape(experts, out, width // 32)
    kept = {"_blocks": stored(blocks), "_scales": stored(scales)}
    values = one.values.reshape(w.shape).transpose(0, 2, 1)
    return Quantized(kept, np.ascontiguousarray(values), {"quant_method": "mxfp4"})


def save(path: Any, tensors: Mapping[str, Stored]) -> None:
    """A safetensors file."""
    header, pieces, at = {}, [], 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        pieces.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(pieces))


LAYOUTS: dict[str, Callable[[Array], Quantized]] = {
    "gptq 2": lambda w: gptq(w, 2),
    "gptq 3": lambda w: gptq(w, 3),
    "gptq 4": gptq,
    "gptq 4 act": lambda w: gptq(w, 4, act_order=True),
    "gptq 4 v2": lambda w: gptq(w, 4, v2=True),
    "gptq 8": lambda w: gptq(w, 8, 64),
    "awq": awq,
    "nf4": bnb_4bit,
    "nf4 nested": lambda w: bnb_4bit(w, nested=True),
    "fp4": lambda w: bnb_4bit(w, "fp4"),
    "int8": bnb_int8,
    "fp8 tensor": lambda w: fp8(w, *w.shape),
    "fp8 row": lambda w: fp8(w, 1, w.shape[1], dtype="BF16"),
    "fp8 block": lambda w: fp8(w, 128, 128, "weight_scale_inv"),
    "fp8 small block": lambda w: fp8(w, 40, 80, "weight_scale_inv"),
    "mxfp8": lambda w: fp8(w, 1, 32, dtype="U8"),
    "fp8 e8m0": lambda w: fp8(w, 128, 128, "weight_scale_inv", dtype="F8_E8M0"),
    "ct int8": lambda w: ct_int8(w, w.shape[1]),
    "ct int8 zeros": lambda w: ct_int8(w, 64, zero_points=True),
    "ct 4": lambda w: ct_packed(w, 4, 32),
    "ct 4 zeros": lambda w: ct_packed(w, 4, 32, zero_points=True),
    "ct 4 act": lambda w: ct_packed(w, 4, 32, zero_points=True, act_order=True),
    "ct 3": lambda w: ct_packed(w, 3, 64, zero_points=True),
    "ct 8 row": lambda w: ct_packed(w, 8, w.shape[1]),
    "nvfp4 ct": lambda w: nvfp4(w, "compressed-tensors"),
    "nvfp4 modelopt": lambda w: nvfp4(w, "modelopt"),
    "mxfp4": mxfp4,
    "mlx 3": lambda w: mlx(w, 3, 32),
    "mlx 4": mlx,
    "mlx 5": lambda w: mlx(w, 5, 32),
    "mlx 6": lambda w: mlx(w, 6, 32),
}


def written(original: Checkpoint, folder: Path, make: Callable[[Array], Quantized]) -> Path:
    """The model with every matrix of its layers quantized, as a folder; input scales beside them."""
    kept: dict[str, Stored] = {}
    settings: Mapping[str, object] = {}
    for name, value in original.tensors.items():
        if ".layers." in name and value.ndim == 2:
            made = make(value)
            module, settings = name.removesuffix(".weight"), made.settings
            kept |= {f"{module}.{end}": one for end, one in made.stored.items()}
            kept[f"{module}.input_scale"] = stored(np.array(1.0, np.float32))
        else:
            kept[name] = stored(value)
    folder.mkdir(exist_ok=True)
    save(folder / "model.safetensors", kept)
    (folder / "config.json").write_text(json.dumps(original.config | {"quantization_config": dict(settings)}))
    (folder / "tokenizer.json").write_text(str(original.tokenizer))
    return folder
