"""GGUF files of llama and qwen2 models, dequantized to float16 under transformers' names. Needs the `gguf` package."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError

from . import Arrays

GLOBALS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


@dataclass(frozen=True)
class Gguf:
    """metadata: the file's key-value section. tensors: float16, by transformers' names. types: count by GGUF type."""

    metadata: dict[str, Any]
    tensors: Arrays
    types: dict[str, int]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])


def read_gguf(path: Path) -> Gguf:
    """The whole file. Raises ModelError for an architecture or a tensor that the tables do not know."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ModelError(f"{path.name} is a GGUF of the architecture {architecture}; llama and qwen2 are read.")
    # llama.cpp interleaves the rows of llama's q and k for its own rotary kernel; qwen2's are left alone.
    heads = (
        {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
        if architecture == "llama"
        else {}
    )
    tensors: Arrays = {}
    for tensor in reader.tensors:
        name, kind = hf_name(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        tensors[name] = unpermute(values, heads[kind]) if kind in heads else values
    return Gguf(metadata, tensors, dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)))


def hf_name(name: str) -> tuple[str, str]:
    """transformers' name of a GGUF tensor, and its kind ("attn_q", "ffn_up" ...; the name itself outside layers)."""
    if name in GLOBALS:
        return GLOBALS[name], name
    match = BLOCK.fullmatch(name)
    if match is None or match[2] not in IN_LAYER:
        raise ModelError(f"The GGUF file has a tensor with an unknown name: {name}.")
    return f"model.layers.{match[1]}.{IN_LAYER[match[2]]}.{match[3]}", match[2]


def unpermute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo llama.cpp's row order of a q or k projection: (heads, half, 2) back to (heads, 2, half)."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_config(file: Gguf) -> dict[str, Any]:
    """config.json from the metadata."""

    def value(key: str) -> Any:
        return file.metadata[f"{file.architecture}.{key}"]

    return {
        "architectures": [ARCHITECTURES[file.architecture]],
        "model_type": file.architecture,
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "intermediate_size": value("feed_forward_length"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("embedding_length") // value("attention.head_count"),
        "max_position_embeddings": value("context_length"),
        "rope_theta": float(value("rope.freq_base")),
        # stored as float32: two significant digits bring back 1e-05 and 1e-06
        "rms_norm_eps": float(f"{value('attention.layer_norm_rms_epsilon'):.1e}"),
        "vocab_size": file.tensors["model.embed_tokens.weight"].shape[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in file.tensors,
        "torch_dtype": "float16",
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
