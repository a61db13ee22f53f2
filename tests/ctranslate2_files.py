"""CTranslate2 files, written as its converters write them, and models in its layout."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def written(spec: str, variables: Mapping[str, Array], aliases: Mapping[str, str] | None = None) -> bytes:
    """A file of version 6; variables in the order of their names, as they are saved."""

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    out = struct.pack("<I", 6) + name(spec) + struct.pack("<II", 3, len(variables))
    for key in sorted(variables):
        value = np.asarray(variables[key])
        shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += name(key) + shape + struct.pack("<BI", TYPES[value.dtype.name], value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    return out + b"".join(name(key) + name(target) for key, target in (aliases or {}).items())


def in_int8(variables: Mapping[str, Array]) -> dict[str, Array]:
    """The matrices as codes with a scale for each row: value = code / scale."""
    out: dict[str, Array] = {}
    for name, value in variables.items():
        if name.endswith("/weight") and value.ndim == 2:
            scale = (127 / np.abs(value).max(axis=1)).astype(np.float32)
            out |= {name: np.rint(value * scale[:, None]).astype(np.int8), f"{name}_scale": scale}
        else:
            out[name] = value
    return out


def of_llama(weights: Mapping[str, Array], heads: int, keys: int) -> dict[str, Array]:
    """The variables of a Llama under transformers' names."""
    number = np.int32(keys)
    out: dict[str, Array] = {
        "decoder/num_heads": np.array(heads, np.int16),
        "decoder/pre_norm": np.array(1, np.int8),
        "decoder/activation": np.array(2, np.int8),
        "decoder/embeddings/weight": weights["model.embed_tokens.weight"],
        "decoder/layer_norm/gamma": weights["model.norm.weight"],
    }
    if "lm_head.weight" in weights:
        out["decoder/projection/weight"] = weights["lm_head.weight"]
    layer = 0
    while f"model.layers.{layer}.self_attn.q_proj.weight" in weights:
        at, to = f"model.layers.{layer}.", f"decoder/layer_{layer}/"
        fused = [weights[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]
        out |= {
            f"{to}self_attention/num_heads_kv": np.array(number),
            f"{to}self_attention/rotary_base": np.array(10000, np.float32),
            f"{to}self_attention/layer_norm/gamma": weights[f"{at}input_layernorm.weight"],
            f"{to}self_attention/linear_0/weight": np.concatenate(fused),
            f"{to}self_attention/linear_1/weight": weights[f"{at}self_attn.o_proj.weight"],
            f"{to}ffn/layer_norm/gamma": weights[f"{at}post_attention_layernorm.weight"],
            f"{to}ffn/linear_0/weight": weights[f"{at}mlp.gate_proj.weight"],
            f"{to}ffn/linear_0_noact/weight": weights[f"{at}mlp.up_proj.weight"],
            f"{to}ffn/linear_1/weight": weights[f"{at}mlp.down_proj.weight"],
        }
        layer += 1
    return out


def whisper(width: int = 64, seed: int = 0) -> dict[str, Array]:
    """One layer a side; the fused key biases are zero, as the converter pads them."""
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float16)

    out: dict[str, Array] = {"decoder/embeddings/weight": values(10, width)}
    out |= {f"{side}/num_heads": np.array(width // 64, np.int16) for side in ("encoder", "decoder")}
    for conv, inputs in (("conv1", 80), ("conv2", width)):
        out |= {f"encoder/{conv}/weight": values(width, inputs, 3), f"encoder/{conv}/bias": values(width)}
    for side, positions in (("encoder", 15), ("decoder", 7)):
        layer = f"{side}/layer_0"
        out[f"{side}/position_encodings/encodings"] = values(positions, width)
        linears = {"self_attention/linear_0": 3, "self_attention/linear_1": 1, "ffn/linear_0": 4, "ffn/linear_1": 1}
        norms = ["self_attention", "ffn"]
        if side == "decoder":
            linears |= {"attention/linear_0": 1, "attention/linear_1": 2, "attention/linear_2": 1}
            norms.append("attention")
        for name, times in linears.items():
            inputs = 4 * width if name == "ffn/linear_1" else width
            out |= {
                f"{layer}/{name}/weight": values(times * width, inputs),
                f"{layer}/{name}/bias": values(times * width),
            }
        out[f"{layer}/self_attention/linear_0/bias"][width : 2 * width] = 0
        for norm in [f"{layer}/{name}/layer_norm" for name in norms] + [f"{side}/layer_norm"]:
            out |= {f"{norm}/gamma": values(width), f"{norm}/beta": values(width)}
    out["decoder/layer_0/attention/linear_1/bias"][:width] = 0
    return out
