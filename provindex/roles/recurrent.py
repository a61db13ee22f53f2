"""Naming tables of models with state-space layers, linear attention or short convolutions, alone or beside attention.

Written in the words of architectures.py, with more fused tensors:

    "ssm_xz"          x, then z                                       (Mamba; "/alternate": by turns, Zamba)
    "ssm_zxbcdt"      z, x, B, C, the time steps                      (Mamba 2)
    "ssm_rank_bc"     what the time steps are made of, B, C: these read channels, not the residual   (Mamba)
    "ssm_bcx"         B, C, x in three equal parts                    (LFM2)
    "lin_qkv"         q, k, v                                         (Qwen 3.5)
    "lin_qkvz"        q, k, v, z of key head 0, then of key head 1 ...   (Qwen3-Next); "lin_ba" likewise
    "qg"              the query of head 0, its gate, then of head 1 ...
"""

from __future__ import annotations

from collections.abc import Mapping

from provindex.roles.templates import (
    SHARED_GATE,
    Kind,
    Scheme,
    Table,
    attention,
    experts,
    under,
)

STATE_NORM = "- state-space norm"
TIME_MIX = "- time mixing"
GATES = "- recurrence gate"

_MLP: Table = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "gate_up_proj": "gate_up"}
_CORE: Table = {"A_log": "ssm_a", "D": "ssm_d", "conv1d": "ssm_conv", "out_proj": "ssm_out"}
_MAMBA: Table = {
    **_CORE,
    "in_proj": "ssm_xz",
    "x_proj": "ssm_rank_bc",
    "dt_proj": "ssm_dt",
    "dt_layernorm": STATE_NORM,
    "b_layernorm": STATE_NORM,
    "c_layernorm": STATE_NORM,
}
_MAMBA2: Table = {**_CORE, "in_proj": "ssm_zxbcdt", "dt_bias": "ssm_dt bias", "norm": "ssm_norm"}
_BACKBONE: Table = {
    "embeddings": "embed",
    "embedding": "embed",
    "norm_f": "norm_final",
    "lm_head": "head",
    "layers.{l}.norm": "norm_attn",
}
_TOP: Table = {
    "embed_tokens": "embed",
    "norm": "norm_final",
    "final_layernorm": "norm_final",
    "lm_head": "head",
}
_ATTENTION: Table = {
    **attention("self_attn"),
    "self_attn.q_norm": "norm_q",
    "self_attn.k_norm": "norm_k",
    "input_layernorm": "norm_attn",
}

_JAMBA: Table = {
    **_TOP,
    **under("layers.{l}.", _ATTENTION),
    **under("layers.{l}.mamba.", _MAMBA),
    **under("layers.{l}.feed_forward.", _MLP),
    "layers.{l}.pre_ff_layernorm": "norm_mlp",
    "layers.{l}.feed_forward.router": "router",
    "layers.{l}.feed_forward.experts.gate_up_proj": "gate_up stacked",
    "layers.{l}.feed_forward.experts.down_proj": "down stacked",
    **under("layers.{l}.", experts("feed_forward", "gate_proj", "up_proj", "down_proj")),
}
_BAMBA: Table = {
    **{name: what for name, what in _JAMBA.items() if not name.startswith("layers.{l}.mamba.")},
    **under("layers.{l}.mamba.", _MAMBA2),
}

_SHARED_LAYER: Table = {  # Zamba: one or two transformer layers that many places call
    **attention("self_attn"),
    "input_layernorm": "norm_attn",
    "pre_ff_layernorm": "norm_mlp",
    **under("feed_forward.", _MLP),
    "feed_forward.gate_up_proj_adapter_list.{n}.0": "- adapter of a shared layer",
    "feed_forward.gate_up_proj_adapter_list.{n}.1": "- adapter of a shared layer",
    "self_attn.linear_q_adapter_list.{n}.0": "- adapter of a shared layer",
    "self_attn.linear_q_adapter_list.{n}.1": "- adapter of a shared layer",
    "self_attn.linear_k_adapter_list.{n}.0": "- adapter of a shared layer",
    "self_attn.linear_k_adapter_list.{n}.1": "- adapter of a shared layer",
    "self_attn.linear_v_adapter_list.{n}.0": "- adapter of a shared layer",
    "self_attn.linear_v_adapter_list.{n}.1": "- adapter of a shared layer",
}
_BRIDGE = "- projection of a shared layer"
_ZAMBA_MAMBA: Table = {  # two heads of channels, each with its own x_proj and dt_proj
    "in_proj": "ssm_xz/alternate",
    "conv1d": "ssm_conv",
    "out_proj": "ssm_out",
    "x_proj_weight": "- state-space input of one head",
    "dt_proj_weight": "- state-space input of one head",
    "dt_proj_bias": "- state-space input of one head",
    "A_log": "- state-space decay of one head",
    "D": "- state-space decay of one head",
}


def _zamba(mamba: Table, shared: str) -> Table:
    return {
        **_TOP,
        "layers.{l}.linear": _BRIDGE,
        **under("layers.{l}.mamba.", mamba),
        **under("layers.{l}.mamba_decoder.mamba.", mamba),
        "layers.{l}.input_layernorm": "- norm before a mixer",
        "layers.{l}.mamba_decoder.input_layernorm": "- norm before a mixer",
        **under(f"layers.{{l}}.{shared}.", _SHARED_LAYER),
    }


_NEMOTRON_H: Table = {
    **_BACKBONE,
    **under("layers.{l}.mixer.", _MAMBA2),
    **attention("layers.{l}.mixer"),
    **under("layers.{l}.mixer.", _MLP),
    "layers.{l}.mixer.gate": "router",
    "layers.{l}.mixer.gate.e_score_correction_bias": "- router score correction",
    "layers.{l}.mixer.fc1_latent_proj": "- latent of the experts",
    "layers.{l}.mixer.fc2_latent_proj": "- latent of the experts",
    "layers.{l}.mixer.experts.up_proj": "up stacked",
    "layers.{l}.mixer.experts.down_proj": "down stacked",
    "layers.{l}.mixer.experts.{e}.up_proj": "up",
    "layers.{l}.mixer.experts.{e}.down_proj": "down",
    "layers.{l}.mixer.shared_experts.up_proj": "up",
    "layers.{l}.mixer.shared_experts.down_proj": "down",
}
_GRANITE_MOE: Table = {
    **_TOP,
    **under("layers.{l}.", _ATTENTION),
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    "layers.{l}.block_sparse_moe.input_linear": "gate_up stacked",  # the first half goes through the activation
    "layers.{l}.block_sparse_moe.output_linear": "down stacked",
    "layers.{l}.block_sparse_moe.router.layer": "router",
    "layers.{l}.shared_mlp.input_linear": "gate_up",
    "layers.{l}.shared_mlp.output_linear": "down",
    **under("layers.{l}.mamba.", _MAMBA2),
}
_LFM2: Table = {
    **_TOP,
    "embedding_norm": "norm_final",  # which the forward pass applies to the last layer's output
    "layers.{l}.operator_norm": "norm_attn",
    "layers.{l}.ffn_norm": "norm_mlp",
    **attention("layers.{l}.self_attn", "out_proj"),
    "layers.{l}.self_attn.q_layernorm": "norm_q",
    "layers.{l}.self_attn.k_layernorm": "norm_k",
    "layers.{l}.conv.in_proj": "ssm_bcx",
    "layers.{l}.conv.conv": "ssm_conv",
    "layers.{l}.conv.out_proj": "ssm_out",
    "layers.{l}.feed_forward.w1": "gate",
    "layers.{l}.feed_forward.w3": "up",
    "layers.{l}.feed_forward.w2": "down",
    "layers.{l}.feed_forward.gate": "router",
    "layers.{l}.feed_forward.expert_bias": "- router score correction",
    "layers.{l}.feed_forward.experts.gate_up_proj": "gate_up stacked",
    "layers.{l}.feed_forward.experts.down_proj": "down stacked",
    **under("layers.{l}.", experts("feed_forward", "w1", "w3", "w2")),
}
_RECURRENT_GEMMA: Table = {
    **_TOP,
    "final_norm": "norm_final",
    "layers.{l}.temporal_pre_norm": "norm_attn",
    "layers.{l}.channel_pre_norm": "norm_mlp",
    **attention("layers.{l}.temporal_block"),
    "layers.{l}.temporal_block.linear_x": "ssm_x",
    "layers.{l}.temporal_block.linear_y": "ssm_z",
    "layers.{l}.temporal_block.linear_out": "ssm_out",
    "layers.{l}.temporal_block.conv_1d": "ssm_conv",
    "layers.{l}.temporal_block.rg_lru.recurrent_param": "ssm_a",
    "layers.{l}.temporal_block.rg_lru.input_gate_weight": GATES,
    "layers.{l}.temporal_block.rg_lru.input_gate_bias": GATES,
    "layers.{l}.temporal_block.rg_lru.recurrent_gate_weight": GATES,
    "layers.{l}.temporal_block.rg_lru.recurrent_gate_bias": GATES,
    **under("layers.{l}.mlp_block.", _MLP),
}

_DELTA: Table = {  # gated delta net
    "in_proj_qkvz": "lin_qkvz",
    "in_proj_ba": "lin_ba",
    "in_proj_qkv": "lin_qkv",
    "in_proj_z": "lin_z",
    "in_proj_b": "lin_b",
    "in_proj_a": "lin_a",
    "dt_bias": "lin_a bias",
    "A_log": "lin_decay",
    "conv1d": "lin_conv",
    "norm": "lin_norm",
    "out_proj": "lin_out",
}
_QWEN3_NEXT: Table = {
    **_TOP,
    **under("layers.{l}.", _ATTENTION),
    "layers.{l}.self_attn.q_proj": "qg",
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    **under("layers.{l}.linear_attn.", _DELTA),
    **under("layers.{l}.mlp.", _MLP),
    "layers.{l}.mlp.gate": "router",
    "layers.{l}.mlp.experts.gate_up_proj": "gate_up stacked",
    "layers.{l}.mlp.experts.down_proj": "down stacked",
    **under("layers.{l}.", experts("mlp", "gate_proj", "up_proj", "down_proj")),
    **under("layers.{l}.mlp.shared_expert.", _MLP),
    "layers.{l}.mlp.shared_expert_gate": SHARED_GATE,
}
_OLMO_HYBRID: Table = {
    **_TOP,
    **under("layers.{l}.", _ATTENTION),
    # Layers with linear attention normalize what their branches read, the others what these write.
    "layers.{l}.post_attention_layernorm": "norm_mlp lone",
    "layers.{l}.post_feedforward_layernorm": "norm_mlp_out",
    "layers.{l}.attention_layer_norm": "norm_attn",
    "layers.{l}.feedforward_layer_norm": "norm_mlp",
    **under("layers.{l}.mlp.", _MLP),
    "layers.{l}.linear_attn.q_proj": "lin_q",
    "layers.{l}.linear_attn.k_proj": "lin_k",
    "layers.{l}.linear_attn.v_proj": "lin_v",
    "layers.{l}.linear_attn.g_proj": "lin_z",
    "layers.{l}.linear_attn.b_proj": "lin_b",
    "layers.{l}.linear_attn.a_proj": "lin_a",
    "layers.{l}.linear_attn.dt_bias": "lin_a bias",
    "layers.{l}.linear_attn.A_log": "lin_decay",
    "layers.{l}.linear_attn.o_norm": "lin_norm",
    "layers.{l}.linear_attn.o_proj": "lin_out",
    "layers.{l}.linear_attn.q_conv1d": "- convolution of linear attention",
    "layers.{l}.linear_attn.k_conv1d": "- convolution of linear attention",
    "layers.{l}.linear_attn.v_conv1d": "lin_conv",
}
_MINIMAX: Table = {
    **_TOP,
    **under("layers.{l}.", _ATTENTION),
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    "layers.{l}.self_attn.qkv_proj": "qkv/head",  # through an activation, before it is split
    "layers.{l}.self_attn.out_proj": "o",
    "layers.{l}.self_attn.output_gate": "gate_attn",
    "layers.{l}.self_attn.norm": "- norm of linear attention",
    **{
        f"layers.{{l}}.self_attn.{name}": "~ decay by position"
        for name in ("diagonal_decay", "key_decay", "query_decay", "slope_rate")
    },
    "layers.{l}.block_sparse_moe.gate": "router",
    **under("layers.{l}.", experts("block_sparse_moe", "w1", "w3", "w2")),
    "layers.{l}.mlp.gate": "router",
    "layers.{l}.mlp.experts.gate_up_proj": "gate_up stacked",
    "layers.{l}.mlp.experts.down_proj": "down stacked",
}
_RWKV: Table = {
    "embeddings": "embed",
    "ln_out": "norm_final",
    "head": "head",
    "blocks.{l}.pre_ln": "- norm of the embedding",
    "blocks.{l}.ln1": "norm_attn",
    "blocks.{l}.ln2": "norm_mlp",
    "blocks.{l}.attention.receptance": "lin_q",
    "blocks.{l}.attention.key": "lin_k",
    "blocks.{l}.attention.value": "lin_v",
    "blocks.{l}.attention.output": "lin_out",
    "blocks.{l}.attention.time_decay": "lin_decay",
    "blocks.{l}.attention.time_first": TIME_MIX,
    **{f"blocks.{{l}}.attention.time_mix_{name}": TIME_MIX for name in ("key", "value", "receptance")},
    **{f"blocks.{{l}}.feed_forward.time_mix_{name}": TIME_MIX for name in ("key", "receptance")},
    "blocks.{l}.feed_forward.key": "up",
    "blocks.{l}.feed_forward.value": "down",
    "blocks.{l}.feed_forward.receptance": "- gate on the MLP's output",
}
_XLSTM: Table = {
    **_BACKBONE,
    "out_norm": "norm_final",
    "blocks.{l}.norm_mlstm": "norm_attn",
    "blocks.{l}.norm_ffn": "norm_mlp",
    "blocks.{l}.mlstm_layer.q": "lin_q",
    "blocks.{l}.mlstm_layer.k": "lin_k",
    "blocks.{l}.mlstm_layer.v": "lin_v",
    "blocks.{l}.mlstm_layer.ogate_preact": "lin_z",
    "blocks.{l}.mlstm_layer.igate_preact": "lin_b",
    "blocks.{l}.mlstm_layer.fgate_preact": "lin_a",
    "blocks.{l}.mlstm_layer.multihead_norm": "lin_norm",
    "blocks.{l}.mlstm_layer.out_proj": "lin_out",
    "blocks.{l}.ffn.proj_up_gate": "gate",
    "blocks.{l}.ffn.proj_up": "up",
    "blocks.{l}.ffn.proj_down": "down",
}


def _decoder(table: Table, default: str) -> Scheme:
    return Scheme((("decoder", "", table),), default)


SCHEMES: Mapping[str, Scheme] = {
    "mamba": _decoder({**_BACKBONE, **under("layers.{l}.mixer.", _MAMBA)}, "mamba"),
    "mamba2": _decoder({**_BACKBONE, **under("layers.{l}.mixer.", _MAMBA2)}, "mamba2"),
    "jamba": _decoder(_JAMBA, "jamba"),
    "bamba": _decoder(_BAMBA, "bamba"),
    "zamba": _decoder(_zamba(_ZAMBA_MAMBA, "shared_transf"), "zamba"),
    "zamba2": _decoder(_zamba(_MAMBA2, "shared_transformer"), "zamba2"),
    "nemotron_h": _decoder(_NEMOTRON_H, "nemotron_h"),
    "granitemoe": _decoder(_GRANITE_MOE, "granitemoe"),
    "lfm2": _decoder(_LFM2, "lfm2"),
    "recurrent_gemma": _decoder(_RECURRENT_GEMMA, "recurrent_gemma"),
    "qwen3_next": _decoder(_QWEN3_NEXT, "qwen3_next"),
    "olmo_hybrid": _decoder(_OLMO_HYBRID, "olmo_hybrid"),
    "minimax": _decoder(_MINIMAX, "minimax"),
    "rwkv": _decoder(_RWKV, "rwkv"),
    "xlstm": _decoder(_XLSTM, "xlstm"),
}

# Norms and activations as the forward passes of transformers 5.5.0 have them.
KINDS: Mapping[str, Kind] = {
    "mamba": Kind("mamba"),
    "mamba2": Kind("mamba2"),
    "jamba": Kind("jamba", heads=32, kv_heads=8),
    "bamba": Kind("bamba", heads=32, kv_heads=8),
    "zamba": Kind("zamba", activation="gelu", heads=16),
    "zamba2": Kind("zamba2", activation="gelu", heads=32),
    "nemotron_h": Kind("nemotron_h", activation="relu2", heads=32, kv_heads=8, head_dim=128),
    "granitemoe": Kind("granitemoe", heads=32),
    "lfm2": Kind("lfm2", heads=32, kv_heads=8),
    "recurrent_gemma": Kind(
        "recurrent_gemma", norm_offset=1.0, activation="gelu_pytorch_tanh", heads=10, kv_heads=1, head_dim=256
    ),
    "qwen3_next": Kind("qwen3_next", norm_offset=1.0, heads=16, kv_heads=2, head_dim=256),
    "qwen3_5_text": Kind("qwen3_next", norm_offset=1.0, heads=16, kv_heads=4, head_dim=256),
    "qwen3_5_moe_text": Kind("qwen3_next", norm_offset=1.0, heads=16, kv_heads=2, head_dim=256),
    "olmo_hybrid": Kind("olmo_hybrid", heads=30),
    "minimax": Kind("minimax", heads=32, kv_heads=8),
    "rwkv": Kind("rwkv", "layer", activation="relu2"),
    "xlstm": Kind("xlstm"),
}
ALIASES: Mapping[str, str] = {
    "falcon_mamba": "mamba",
    "falcon_h1": "bamba",
    "granitemoehybrid": "granitemoe",
    "granitemoeshared": "granitemoe",
    "lfm2_moe": "lfm2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
