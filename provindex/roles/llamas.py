"""Naming tables of decoders of the Llama manner, in the words of architectures.py."""

from __future__ import annotations

from provindex.roles.templates import BUFFER, LATENT, PREDICTION, ROTARY, SHARED_GATE, Table, attention, experts, under

_LATENTS = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")

LLAMA_LAYER: Table = {
    "input_layernorm": "norm_attn",
    "post_attention_layernorm": "norm_mlp",
    "post_self_attn_layernorm": "norm_attn_out",  # GLM-4
    "post_mlp_layernorm": "norm_mlp_out",
    **attention("self_attn"),
    "self_attn.dense": "o",
    "self_attn.qkv_proj": "qkv",
    "self_attn.W_pack": "qkv",
    "self_attn.q_norm": "norm_q",
    "self_attn.k_norm": "norm_k",
    "self_attn.q_layernorm": "norm_q",
    "self_attn.k_layernorm": "norm_k",
    "self_attn.q_layernorm.norms.{n}": "- query norm of one head",
    "self_attn.k_layernorm.norms.{n}": "- key norm of one head",
    "self_attn.q_a_proj": LATENT,
    "self_attn.q_a_layernorm": LATENT,
    "self_attn.q_b_proj": LATENT,
    "self_attn.kv_a_proj_with_mqa": LATENT,
    "self_attn.kv_a_layernorm": LATENT,
    "self_attn.kv_b_proj": LATENT,
    "self_attn.sinks": "- attention sinks",
    **{
        f"self_attn.indexer.{name}": "- indexer of sparse attention"
        for name in ("wq_b", "wk", "weights_proj", "k_norm")
    },
    **attention("cross_attn", flags=" cross"),  # Llama 3.2 Vision
    "cross_attn.q_norm": "norm_q cross",
    "cross_attn.k_norm": "norm_k cross",
    "attention_layernorm": "norm_attn",  # Apertus
    "feedforward_layernorm": "norm_mlp",
    **{f"mlp.act_fn.{name}": "- shape of the activation" for name in ("alpha_p", "alpha_n")},
    **dict.fromkeys(("mlp.act_fn", "mlp.act_fn.eps"), BUFFER),  # "beta" is read as a bias
    "self_attn.attn_sub_norm": "- norm inside attention",  # BitNet
    "mlp.ffn_sub_norm": "- norm inside the MLP",
    "cross_attn_attn_gate": "- gate of cross-attention",
    "cross_attn_mlp_gate": "- gate of cross-attention",
    "self_attn.rotary_emb.inv_freq": ROTARY,
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "mlp.gate_up_proj": "gate_up",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
    "mlp.gate": "router",
    "mlp.gate.e_score_correction_bias": "- router score correction",
    "mlp.router": "router",
    "mlp.experts.gate_up_proj": "gate_up stacked",
    "mlp.experts.down_proj": "down stacked",
    **experts("mlp", "gate_proj", "up_proj", "down_proj"),
    "block_sparse_moe.gate": "router",
    **experts("block_sparse_moe", "w1", "w3", "w2"),
    "mlp.shared_expert.gate_proj": "gate",
    "mlp.shared_expert.up_proj": "up",
    "mlp.shared_expert.down_proj": "down",
    "mlp.shared_experts.gate_proj": "gate",
    "mlp.shared_experts.up_proj": "up",
    "mlp.shared_experts.down_proj": "down",
    "mlp.shared_expert_gate": SHARED_GATE,
    "mlp.shared_mlp.gate_proj": "gate",  # HunYuan
    "mlp.shared_mlp.up_proj": "up",
    "mlp.shared_mlp.down_proj": "down",
    "mlp.gate.wg": "router",
    "self_attn.query_layernorm": "norm_q",
    "self_attn.key_layernorm": "norm_k",
    "enorm": PREDICTION,
    "hnorm": PREDICTION,
    "eh_proj": PREDICTION,
    "embed_tokens": PREDICTION,
    "shared_head.norm": PREDICTION,
    "shared_head.head": PREDICTION,
}

LLAMA_TOP: Table = {
    "embed_tokens": "embed",
    "norm": "norm_final",
    "final_layernorm": "norm_final",
    "lm_head": "head",
    "rotary_emb.inv_freq": ROTARY,
}

LLAMA: Table = {**LLAMA_TOP, **under("layers.{l}.", LLAMA_LAYER)}

NORMS_BOTH: Table = {  # Gemma 2 and 3: a norm before and a norm after each branch
    "post_attention_layernorm": "norm_attn_out",
    "pre_feedforward_layernorm": "norm_mlp",
    "post_feedforward_layernorm": "norm_mlp_out",
}
GEMMA2: Table = {**LLAMA_TOP, **under("layers.{l}.", {**LLAMA_LAYER, **NORMS_BOTH})}

NORMS_OUT: Table = {  # OLMo 2: only the branches' outputs are normalized
    "post_attention_layernorm": "norm_attn_out",
    "post_feedforward_layernorm": "norm_mlp_out",
}
OLMO2_LAYER = {k: v for k, v in LLAMA_LAYER.items() if k != "input_layernorm"}
OLMO2: Table = {**LLAMA_TOP, **under("layers.{l}.", {**OLMO2_LAYER, **NORMS_OUT})}

GPT_OSS: Table = {
    **LLAMA_TOP,
    **under(
        "layers.{l}.",
        {
            **LLAMA_LAYER,
            "mlp.experts.gate_up_proj": "gate_up/alternate stacked t",
            "mlp.experts.gate_up_proj_bias": "gate_up/alternate stacked bias",
            "mlp.experts.down_proj": "down stacked t",
            "mlp.experts.down_proj_bias": "down stacked bias",
        },
    ),
}

AFMOE: Table = {  # a norm before and a norm after each branch, and a gate on what attention writes
    **{name: what for name, what in LLAMA.items() if not name.endswith(".mlp.gate")},
    "layers.{l}.post_attention_layernorm": "norm_attn_out",
    "layers.{l}.pre_mlp_layernorm": "norm_mlp",
    "layers.{l}.post_mlp_layernorm": "norm_mlp_out",
    "layers.{l}.self_attn.gate_proj": "gate_attn",
    "layers.{l}.mlp.router.gate": "router",
    "layers.{l}.mlp.expert_bias": "- router score correction",
}

LLAMA4: Table = {
    **LLAMA,
    "layers.{l}.feed_forward.gate_proj": "gate",
    "layers.{l}.feed_forward.up_proj": "up",
    "layers.{l}.feed_forward.down_proj": "down",
    "layers.{l}.feed_forward.router": "router",
    "layers.{l}.feed_forward.experts.gate_up_proj": "gate_up stacked t",
    "layers.{l}.feed_forward.experts.down_proj": "down stacked t",
    "layers.{l}.feed_forward.shared_expert.gate_proj": "gate",
    "layers.{l}.feed_forward.shared_expert.up_proj": "up",
    "layers.{l}.feed_forward.shared_expert.down_proj": "down",
}

PER_LAYER = "- embedding of a layer"
ALTUP = "- alternating updates"
LAUREL = "- low-rank residual branch"
EXPERTS_BESIDE = "- norm beside the experts"
GEMMA4: Table = {  # Gemma 3n and 4
    **GEMMA2,
    "embed_tokens_per_layer": PER_LAYER,
    "per_layer_model_projection": PER_LAYER,
    "per_layer_projection_norm": PER_LAYER,
    "altup_projections.{n}": ALTUP,
    "altup_unembed_projections.{n}": ALTUP,
    **under(
        "layers.{l}.",
        {
            "per_layer_input_gate": PER_LAYER,
            "per_layer_projection": PER_LAYER,
            "post_per_layer_input_norm": PER_LAYER,
            "layer_scalar": "- layer scale",
            "altup.correct_output_scale": ALTUP,
            "altup.correction_coefs": ALTUP,
            "altup.prediction_coefs": ALTUP,
            "altup.modality_router": ALTUP,
            "altup.router_norm": ALTUP,
            "laurel.linear_left": LAUREL,
            "laurel.linear_right": LAUREL,
            "laurel.post_laurel_norm": LAUREL,
            "router.proj": "router",
            "router.scale": "- router scale",
            "router.per_expert_scale": "- router scale",
            "experts.gate_up_proj": "gate_up stacked",
            "experts.down_proj": "down stacked",
            "post_feedforward_layernorm_1": EXPERTS_BESIDE,
            "post_feedforward_layernorm_2": EXPERTS_BESIDE,
            "pre_feedforward_layernorm_2": EXPERTS_BESIDE,
        },
    ),
}

ARIA: Table = {
    **LLAMA,
    "layers.{l}.mlp.experts.fc1": "gate_up stacked t",
    "layers.{l}.mlp.experts.fc2": "down stacked t",
}

_OTHER_EXPERTS = "- experts of images"
ERNIE_VL: Table = {
    **LLAMA,
    **under(
        "layers.{l}.mlp.",
        {
            "text_moe.gate": "router",
            "text_moe.gate.moe_statics.e_score_correction_bias": "- router score correction",
            "text_moe.experts.gate_up_proj": "gate_up stacked",
            "text_moe.experts.down_proj": "down stacked",
            "vision_moe.gate": _OTHER_EXPERTS,
            "vision_moe.gate.moe_statics.e_score_correction_bias": _OTHER_EXPERTS,
            "vision_moe.experts.gate_up_proj": _OTHER_EXPERTS,
            "vision_moe.experts.down_proj": _OTHER_EXPERTS,
        },
    ),
}

LONGCAT: Table = {  # two attentions and two dense MLPs a layer, which count as two layers
    **LLAMA_TOP,
    "layers.{l}.input_layernorm.{i}": "norm_attn",
    "layers.{l}.post_attention_layernorm.{i}": "norm_mlp",
    **{f"layers.{{l}}.self_attn.{{i}}.{name}": LATENT for name in _LATENTS},
    "layers.{l}.self_attn.{i}.o_proj": "o",
    "layers.{l}.mlps.{i}.gate_proj": "gate",
    "layers.{l}.mlps.{i}.up_proj": "up",
    "layers.{l}.mlps.{i}.down_proj": "down",
    "layers.{l}.mlp.router.classifier": "router",
    "layers.{l}.mlp.router.e_score_correction_bias": "- router score correction",
    "layers.{l}.mlp.experts.gate_up_proj": "gate_up stacked",
    "layers.{l}.mlp.experts.down_proj": "down stacked",
    **under("layers.{l}.", experts("mlp", "gate_proj", "up_proj", "down_proj")),
}

_AUDIO = "- audio tokens"
_AUDIO_NORMS = ("audio_input_layernorm", "audio_post_attention_layernorm")
AUDIO_TOKENS: Table = {  # Higgs Audio, CSM: Llamas that read and write codes of sound
    **LLAMA,
    **{f"layers.{{l}}.audio_mlp.{role}_proj": _AUDIO for role in ("gate", "up", "down")},
    **{f"layers.{{l}}.{name}": _AUDIO for name in _AUDIO_NORMS},
    "embed_audio_tokens.embed_audio_tokens": _AUDIO,
    "embed_tokens.embed_audio_tokens": _AUDIO,
    "embed_text_tokens": "embed",
    "audio_lm_head": _AUDIO,
}

MOSHI: Table = {
    **LLAMA_TOP,
    "embed_tokens.embed_tokens": "embed",
    **under(
        "layers.{l}.", {name: what for name, what in LLAMA_LAYER.items() if name.startswith(("input", "post_att"))}
    ),
    **{f"layers.{{l}}.self_attn.{name}_proj.linear": name for name in "qkvo"},
    "layers.{l}.mlp.fc1": "gate_up",
    "layers.{l}.mlp.fc2": "down",
}

DBRX: Table = {
    "wte": "embed",
    "norm_f": "norm_final",
    "lm_head": "head",
    "blocks.{l}.norm_attn_norm.norm_1": "norm_attn",
    "blocks.{l}.norm_attn_norm.norm_2": "norm_mlp",
    "blocks.{l}.norm_attn_norm.attn.Wqkv": "qkv",
    "blocks.{l}.norm_attn_norm.attn.out_proj": "o",
    "blocks.{l}.ffn.router.layer": "router",
    "blocks.{l}.ffn.experts.mlp.w1": "gate",  # the units of all experts, one expert after the other, as first published
    "blocks.{l}.ffn.experts.mlp.v1": "up",
    "blocks.{l}.ffn.experts.mlp.w2": "down t",
}

_T5GEMMA_LAYER: Table = {
    **attention("self_attn"),
    **attention("cross_attn", flags=" cross"),
    "self_attn.q_norm": "norm_q",
    "self_attn.k_norm": "norm_k",
    "pre_self_attn_layernorm": "norm_attn",
    "post_self_attn_layernorm": "norm_attn_out",
    "pre_cross_attn_layernorm": "norm_attn cross",
    "post_cross_attn_layernorm": "norm_attn_out cross",
    "pre_feedforward_layernorm": "norm_mlp",
    "post_feedforward_layernorm": "norm_mlp_out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
T5GEMMA: Table = {
    "embed_tokens": "embed",
    "embed_tokens.eoi_embedding": "- end of image embedding",
    "norm": "norm_final",
    **under("layers.{l}.", _T5GEMMA_LAYER),
}
