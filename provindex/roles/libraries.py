"""Naming tables of the training libraries, for checkpoints that were saved without a conversion to transformers.

Written in the words of architectures.py, with one more flag: "heads" for one matrix a head on the leading axis. One
library trains models of many types: names and layouts follow from it, norms and activations from the declared model
type. Templates of norms that are stored under another last segment than `weight` have it written out.

Sources: the module names and forward passes of the libraries (names of tensors and orders of axes are facts; no code
was taken). litgpt: https://github.com/Lightning-AI/litgpt. Megatron-core: https://github.com/NVIDIA/Megatron-LM.
TransformerLens: https://github.com/TransformerLensOrg/TransformerLens. torchtune: https://github.com/pytorch/torchtune.
Whisper: https://github.com/openai/whisper.
"""

from __future__ import annotations

from collections.abc import Mapping

Table = Mapping[str, str]

_BUFFER = "~ buffer"
_ROTARY = "~ rotary frequencies"


def _in_layers(names: str, table: Table) -> dict[str, str]:
    return {f"{names}.{{l}}.{name}": what for name, what in table.items()}


LITGPT: Table = {
    "wte": "embed",
    "wpe": "pos",
    "ln_f": "norm_final",
    "lm_head": "head",
    "cos": _ROTARY,
    "sin": _ROTARY,
    **_in_layers(
        "h",
        {
            "norm_1": "norm_attn",
            "norm_2": "norm_mlp",
            "post_attention_norm": "norm_attn_out",
            "post_mlp_norm": "norm_mlp_out",
            "attn.attn": "qkv/group",  # until 2024: the queries of a group, its key, its value
            "attn.qkv": "qkv",
            "attn.proj": "o",
            "attn.norm_q": "norm_q",
            "attn.norm_k": "norm_k",
            "attn.kv_cache.k": _BUFFER,
            "attn.kv_cache.v": _BUFFER,
            "mlp.fc": "up",
            "mlp.fc_1": "gate",
            "mlp.fc_2": "up",
            "mlp.proj": "down",
            "mlp.gate": "router",
            "mlp.experts.{e}.fc_1": "gate",
            "mlp.experts.{e}.fc_2": "up",
            "mlp.experts.{e}.proj": "down",
        },
    ),
}


def _megatron(widening: str) -> Table:
    """Megatron-core. widening: what linear_fc1 is; gate, then up, where the MLP is gated."""
    layer = {
        "input_layernorm": "norm_attn",
        "pre_mlp_layernorm": "norm_mlp",
        "self_attention.linear_qkv": "qkv/group",
        "self_attention.linear_qkv.layer_norm_weight": "norm_attn",
        "self_attention.linear_qkv.layer_norm_bias": "norm_attn bias",
        "self_attention.linear_proj": "o",
        "self_attention.q_layernorm": "norm_q",
        "self_attention.k_layernorm": "norm_k",
        "mlp.linear_fc1": widening,
        "mlp.linear_fc1.layer_norm_weight": "norm_mlp",
        "mlp.linear_fc1.layer_norm_bias": "norm_mlp bias",
        "mlp.linear_fc2": "down",
        "mlp.router": "router",
        "mlp.experts.local_experts.{e}.linear_fc1": widening,
        "mlp.experts.local_experts.{e}.linear_fc2": "down",
    }
    states = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
    layer |= {f"{module}._extra_state": _BUFFER for module in states}
    return {
        "embedding.word_embeddings": "embed",
        "embedding.position_embeddings": "pos",
        "decoder.final_layernorm": "norm_final",
        "decoder.final_layernorm._extra_state": _BUFFER,
        "output_layer": "head",
        "output_layer._extra_state": _BUFFER,
        "rotary_pos_emb.inv_freq": _ROTARY,
        **_in_layers("decoder.layers", layer),
    }


MEGATRON = _megatron("gate_up")
MEGATRON_PLAIN = _megatron("up")

_LENS_NORMS = {"ln1": "norm_attn", "ln2": "norm_mlp", "ln1_post": "norm_attn_out", "ln2_post": "norm_mlp_out"}
TRANSFORMER_LENS: Table = {
    "embed.W_E": "embed",
    "pos_embed.W_pos": "pos",
    "ln_final.w": "norm_final",
    "ln_final.b": "norm_final bias",
    "unembed.W_U": "head t",
    "unembed.b_U": "head bias",
    **_in_layers(
        "blocks",
        {
            **{f"{name}.w": role for name, role in _LENS_NORMS.items()},
            **{f"{name}.b": f"{role} bias" for name, role in _LENS_NORMS.items()},
            "attn.W_Q": "q heads",
            "attn.W_K": "k heads",
            "attn.W_V": "v heads",
            "attn._W_K": "k heads",  # grouped queries
            "attn._W_V": "v heads",
            "attn.W_O": "o heads t",
            "attn.b_Q": "q bias heads",
            "attn.b_K": "k bias heads",
            "attn.b_V": "v bias heads",
            "attn._b_K": "k bias heads",
            "attn._b_V": "v bias heads",
            "attn.b_O": "o bias",
            "attn.q_norm.w": "norm_q",
            "attn.k_norm.w": "norm_k",
            "attn.mask": "~ causal mask",
            "attn.IGNORE": _BUFFER,
            "attn.rotary_sin": _ROTARY,
            "attn.rotary_cos": _ROTARY,
            "mlp.W_in": "up t",
            "mlp.W_gate": "gate t",
            "mlp.W_out": "down t",
            "mlp.b_in": "up bias",
            "mlp.b_out": "down bias",
        },
    ),
}

TORCHTUNE: Table = {
    "tok_embeddings": "embed",
    "norm": "norm_final",
    "norm.scale": "norm_final",
    "output": "head",
    **_in_layers(
        "layers",
        {
            "sa_norm": "norm_attn",
            "sa_norm.scale": "norm_attn",
            "mlp_norm": "norm_mlp",
            "mlp_norm.scale": "norm_mlp",
            "sa_scale.scale": "norm_attn_out",  # Gemma 2
            "mlp_scale.scale": "norm_mlp_out",
            "attn.q_proj": "q",
            "attn.k_proj": "k",
            "attn.v_proj": "v",
            "attn.output_proj": "o",
            "attn.q_norm": "norm_q",
            "attn.q_norm.scale": "norm_q",
            "attn.k_norm": "norm_k",
            "attn.k_norm.scale": "norm_k",
            "mlp.w1": "gate",
            "mlp.w3": "up",
            "mlp.w2": "down",
        },
    ),
}

_WHISPER_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_WHISPER_LAYER: Table = {
    **{f"attn.{name}": role for name, role in _WHISPER_ATTENTION.items()},
    "attn_ln": "norm_attn",
    "mlp.0": "up",
    "mlp.2": "down",
    "mlp_ln": "norm_mlp",
}
_WHISPER_CROSS: Table = {
    **{f"cross_attn.{name}": f"{role} cross" for name, role in _WHISPER_ATTENTION.items()},
    "cross_attn_ln": "norm_attn cross",
}
OPENAI_AUDIO: Table = {
    "conv1": "- audio convolution",
    "conv2": "- audio convolution",
    "positional_embedding": "~ fixed positions",
    "ln_post": "norm_final",
    **_in_layers("blocks", _WHISPER_LAYER),
}
OPENAI_TEXT: Table = {
    "token_embedding": "embed",
    "positional_embedding": "pos",
    "ln": "norm_final",
    "mask": "~ causal mask",
    **_in_layers("blocks", {**_WHISPER_LAYER, **_WHISPER_CROSS}),
}
