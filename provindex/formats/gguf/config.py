"""config.json from the metadata of a GGUF file: the same facts under transformers' keys."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from provindex.common.hub_ids import id_of
from provindex.formats.gguf.header import Value
from provindex.formats.gguf.names import FAMILIES, UNKNOWN_TABLE, Family

KEYS: Mapping[str, str] = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "leading_dense_block_count": "first_k_dense_replace",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "use_parallel_residual": "use_parallel_residual",
}
MAX_BASES = 16  # base models that are looked at
SOURCES = ("source.repo_url", "source.huggingface.repository", "source.url", "repo_url")  # of what was converted
STATED = {
    "license": "license", "license_name": "license.name", "license_link": "license.link", "name": "name",
    "quantized_by": "quantized_by",
}  # fmt: skip
MAX_STATED = 200  # characters
_TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
_ROTARY_SHARE = {"gptneox": "rotary_pct", "phi2": "partial_rotary_factor", "stablelm": "partial_rotary_factor"}


def number(metadata: Mapping[str, Value], key: str, layer: int | None = None) -> int | float | bool | None:
    """A number of the metadata. Where there is one a layer: that layer's, or without a layer the one that all have."""
    value = metadata.get(key)
    if isinstance(value, np.ndarray):
        at = layer or 0
        if at >= value.size or (layer is None and not (value == value[0]).all()):
            return None
        value = value[at].item()
    return value if isinstance(value, (bool, int, float)) and math.isfinite(value) else None


def whole(metadata: Mapping[str, Value], key: str, layer: int | None = None) -> int:
    """A positive whole number of the metadata, 0 where there is none."""
    value = number(metadata, key, layer)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def family(architecture: str, metadata: Mapping[str, Value], names: Collection[str]) -> tuple[str, Family]:
    """The row of FAMILIES for a file, and its key; a row of the Llama manner for an architecture that has none.

    Some architectures of GGUF are several of transformers': metadata and tensor names tell which.
    """
    row = architecture
    if architecture == "llama" and whole(metadata, "llama.expert_count"):
        row = "mixtral"
    elif architecture == "falcon" and "blk.0.attn_norm_2.weight" in names:
        row = "falcon-40b"
    elif architecture == "deepseek2" and number(metadata, "deepseek2.expert_gating_func") == 2:
        row = "deepseek3"
    elif architecture in ("t5", "t5encoder"):
        row = "t5-gated" if "enc.blk.0.ffn_gate.weight" in names else "t5"
    elif architecture == "bert":
        row = {"gpt2": "roberta", "t5": "xlm-roberta"}.get(str(metadata.get("tokenizer.ggml.model")), "bert")
    known = FAMILIES.get(row)
    return row, known or Family(architecture[:100], "", UNKNOWN_TABLE)


def config_of(
    architecture: str, row: Family, metadata: Mapping[str, Value], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """config.json's fields, as far as the file says them. shapes: of the tensors, by their names in the file."""
    found: dict[str, Any] = {"model_type": row.model_type, **row.config}
    if row.class_name:
        found["architectures"] = [row.class_name]
    for key, plain in KEYS.items():
        value = number(metadata, f"{architecture}.{key}")
        if value is not None:
            found[row.keys.get(key, plain)] = value
    for key, plain in _TOKEN_IDS.items():
        value = number(metadata, f"tokenizer.ggml.{key}_token_id")
        if value is not None:
            found[plain] = value
    if "token_embd.weight" in shapes:
        found["vocab_size"] = shapes["token_embd.weight"][0]
    if row.model_type not in ("bert", "roberta", "xlm-roberta", "nomic_bert"):
        found["tie_word_embeddings"] = "output.weight" not in shapes
    return found | _rotary(architecture, metadata) | _special(architecture, row, metadata)


def claims(metadata: Mapping[str, Value]) -> tuple[str, ...]:
    """Hub ids of what the file says that it was made of: base models first, then the model that was converted."""
    bases = [f"general.base_model.{i}" for i in range(min(whole(metadata, "general.base_model.count"), MAX_BASES))]
    named = [_text(metadata, f"{base}.repo_url") for base in bases]
    named += ["/".join(_text(metadata, f"{base}.{part}") for part in ("organization", "name")) for base in bases]
    named += [_text(metadata, f"general.{key}") for key in SOURCES]
    return tuple(dict.fromkeys(found for text in named if (found := id_of(text.replace(" ", "-")))))


def stated(metadata: Mapping[str, Value]) -> dict[str, str]:
    """What the file says of license, name and maker, cut to a line's length; without what it does not say."""
    found = {name: _text(metadata, f"general.{key}").strip()[:MAX_STATED] for name, key in STATED.items()}
    return {name: text for name, text in found.items() if text}


def _text(metadata: Mapping[str, Value], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def _rotary(architecture: str, metadata: Mapping[str, Value]) -> dict[str, Any]:
    """Which share of a head is rotated, and how positions are scaled."""
    found: dict[str, Any] = {}
    width, heads = (whole(metadata, f"{architecture}.{key}") for key in ("embedding_length", "attention.head_count"))
    rotated = whole(metadata, f"{architecture}.rope.dimension_count")
    if architecture in _ROTARY_SHARE and width and heads and rotated:
        found[_ROTARY_SHARE[architecture]] = rotated * heads / width
    kind = metadata.get(f"{architecture}.rope.scaling.type")
    factor = number(metadata, f"{architecture}.rope.scaling.factor")
    if isinstance(kind, str) and kind != "none" and factor is not None:
        found["rope_scaling"] = {"rope_type": kind, "factor": factor}
        original = whole(metadata, f"{architecture}.rope.scaling.original_context_length")
        if original:
            found["rope_scaling"]["original_max_position_embeddings"] = original
    return found


def _special(architecture: str, row: Family, metadata: Mapping[str, Value]) -> dict[str, Any]:
    """What the names' reader needs of single families: how fused rows lie, and the width of a latent head."""
    heads = whole(metadata, f"{architecture}.attention.head_count")
    keys = whole(metadata, f"{architecture}.attention.head_count_kv") or heads
    if row.model_type == "falcon":
        grouped = row is FAMILIES["falcon-40b"] or 1 < keys < heads
        return {"new_decoder_architecture": grouped, "multi_query": keys == 1}
    if row.model_type == "gpt_bigcode":
        return {"multi_query": keys == 1}
    if row.model_type in ("deepseek_v2", "deepseek_v3"):
        rotated, value, key = latent_widths(architecture, metadata)
        widths = {"qk_rope_head_dim": rotated, "v_head_dim": value, "qk_nope_head_dim": key - rotated}
        return {name: width for name, width in widths.items() if width > 0} | {
            "head_dim": rotated,
            "num_key_value_heads": heads,  # newer files describe the one latent head that all of them share
        }
    return {}


def latent_widths(architecture: str, metadata: Mapping[str, Value]) -> tuple[int, int, int]:
    """Of latent attention: width of a head's rotated part, of its value, of its whole query; 0 where nothing says it.

    Newer files have the widths of single heads under names of their own, and those of the shared latent head under the
    usual ones.
    """

    def width(*names: str) -> int:
        return next(filter(None, (whole(metadata, f"{architecture}.{name}") for name in names)), 0)

    return (
        width("rope.dimension_count"),
        width("attention.value_length_mla", "attention.value_length"),
        width("attention.key_length_mla", "attention.key_length"),
    )
