"""Naming tables of further decoders and of encoder-decoders, in the words of architectures.py.

One more manner of q, k and v: "qkv/shards", in each of four shards the queries, the values and the keys (CodeGen).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from provindex.roles.templates import (
    BUFFER,
    FIXED,
    MAIN,
    MASK,
    RELATIVE,
    RELATIVE_TABLE,
    ROTARY,
    TRANSFORM,
    Kind,
    Scheme,
    Table,
    attention,
    under,
)

_L: Literal["layer"] = "layer"

_BART_LAYER: Table = {
    **attention("self_attn", "out_proj"),
    "self_attn_layer_norm": "norm_attn",
    "fc1": "up",
    "fc2": "down",
    "final_layer_norm": "norm_mlp",
    **attention("encoder_attn", "out_proj", " cross"),
    "encoder_attn_layer_norm": "norm_attn cross",
}

_CODEGEN: Table = {
    "wte": "embed",
    "ln_f": "norm_final",
    "lm_head": "head",
    "h.{l}.ln_1": "norm_attn",
    "h.{l}.attn.qkv_proj": "qkv/shards",
    "h.{l}.attn.out_proj": "o",
    "h.{l}.attn.causal_mask": MASK,
    "h.{l}.mlp.fc_in": "up",
    "h.{l}.mlp.fc_out": "down",
}
_XGLM: Table = {
    "embed_tokens": "embed",
    "embed_positions": FIXED,
    "embed_positions.weights": FIXED,
    "layer_norm": "norm_final",
    "lm_head": "head",
    **under("layers.{l}.", _BART_LAYER),
}
_BIOGPT: Table = {**_XGLM, "embed_positions": "pos", "output_projection": "head"}
_TROCR: Table = {
    "decoder.embed_tokens": "embed",
    "decoder.embed_positions": "pos",
    "decoder.layernorm_embedding": "norm_embed",
    "decoder.layer_norm": "norm_final",
    "output_projection": "head",
    **under("decoder.layers.{l}.", _BART_LAYER),
}
_OPENAI_GPT: Table = {
    "tokens_embed": "embed",
    "positions_embed": "pos",
    "lm_head": "head",
    "h.{l}.ln_1": "norm_attn",
    "h.{l}.ln_2": "norm_mlp",
    "h.{l}.attn": MASK,
    "h.{l}.attn.c_attn": "qkv t",
    "h.{l}.attn.c_proj": "o t",
    "h.{l}.mlp.c_fc": "up t",
    "h.{l}.mlp.c_proj": "down t",
}
_PERSIMMON: Table = {
    "embed_tokens": "embed",
    "final_layernorm": "norm_final",
    "lm_head": "head",
    "layers.{l}.input_layernorm": "norm_attn",
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    "layers.{l}.self_attn.query_key_value": "qkv/head",
    "layers.{l}.self_attn.dense": "o",
    "layers.{l}.self_attn.q_layernorm": "norm_q",
    "layers.{l}.self_attn.k_layernorm": "norm_k",
    "layers.{l}.self_attn.rotary_emb.inv_freq": ROTARY,
    "layers.{l}.mlp.dense_h_to_4h": "up",
    "layers.{l}.mlp.dense_4h_to_h": "down",
}
_CTRL: Table = {
    "w": "embed",
    "layernorm": "norm_final",
    "lm_head": "head",
    "h.{l}.layernorm1": "norm_attn",
    "h.{l}.layernorm2": "norm_mlp",
    "h.{l}.multi_head_attention.Wq": "q",
    "h.{l}.multi_head_attention.Wk": "k",
    "h.{l}.multi_head_attention.Wv": "v",
    "h.{l}.multi_head_attention.dense": "o",
    "h.{l}.ffn.0": "up",
    "h.{l}.ffn.2": "down",
}
_XLM: Table = {
    "embeddings": "embed",
    "position_embeddings": "pos",
    "lang_embeddings": "- language embedding",
    "layer_norm_emb": "norm_embed",
    "pred_layer.proj": "head",
    "attentions.{l}.q_lin": "q",
    "attentions.{l}.k_lin": "k",
    "attentions.{l}.v_lin": "v",
    "attentions.{l}.out_lin": "o",
    "layer_norm1.{l}": "norm_attn",
    "layer_norm2.{l}": "norm_mlp",
    "ffns.{l}.lin1": "up",
    "ffns.{l}.lin2": "down",
}
_CPMANT: Table = {
    "input_embedding": "embed",
    "segment_embedding": "- segment embedding",
    "prompt_embedding": "- prompt embedding",
    "position_bias.relative_attention_bias": RELATIVE,
    "encoder.output_layernorm": "norm_final",
    "lm_head": "head",
    **under(
        "encoder.layers.{l}.",
        {
            "self_att.layernorm_before_attention": "norm_attn",
            "self_att.self_attention.project_q": "q",
            "self_att.self_attention.project_k": "k",
            "self_att.self_attention.project_v": "v",
            "self_att.self_attention.attention_out": "o",
            "ffn.layernorm_before_ffn": "norm_mlp",
            "ffn.ffn.w_in.w_0": "gate",
            "ffn.ffn.w_in.w_1": "up",
            "ffn.ffn.w_out": "down",
        },
    ),
}
_MODERNBERT_DECODER: Table = {
    "embeddings.tok_embeddings": "embed",
    "embeddings.norm": "norm_embed",
    "final_norm": "norm_final",
    "layers.{l}.attn_norm": "norm_attn",
    "layers.{l}.attn.q_proj": "q",
    "layers.{l}.attn.k_proj": "k",
    "layers.{l}.attn.v_proj": "v",
    "layers.{l}.attn.Wo": "o",
    "layers.{l}.mlp_norm": "norm_mlp",
    "layers.{l}.mlp.Wi": "gate_up",
    "layers.{l}.mlp.Wo": "down",
    "lm_head.dense": TRANSFORM,
    "lm_head.norm": TRANSFORM,
    "decoder": "head",
}
_CROSS = "- gated cross-attention layer"
_IDEFICS: Table = {
    "embed_tokens": "embed",
    "norm": "norm_final",
    "lm_head": "head",
    **attention("layers.{l}.self_attn"),
    "layers.{l}.input_layernorm": "norm_attn",
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    **{f"layers.{{l}}.mlp.{role}_proj": role for role in ("gate", "up", "down")},
    **{f"gated_cross_attn_layers.{{n}}.mlp.{role}_proj": _CROSS for role in ("gate", "up", "down")},
    **{f"gated_cross_attn_layers.{{n}}.cross_attn.{role}_proj": _CROSS for role in "qkvo"},
    **{f"gated_cross_attn_layers.{{n}}.{name}": _CROSS for name in ("alpha_cross_attn", "alpha_dense")},
    "gated_cross_attn_layers.{n}.cross_attn.q_layer_norm": _CROSS,
    "gated_cross_attn_layers.{n}.cross_attn.k_layer_norm": _CROSS,
    "gated_cross_attn_layers.{n}.input_layernorm": _CROSS,
    "gated_cross_attn_layers.{n}.post_attention_layernorm": _CROSS,
}

_MIXED_EXPERTS = "- experts of attention"
_JETMOE: Table = {
    "embed_tokens": "embed",
    "norm": "norm_final",
    "lm_head": "head",
    "layers.{l}.input_layernorm": "norm_attn",
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    "layers.{l}.mlp.input_linear": "gate_up stacked",  # the first half goes through the activation
    "layers.{l}.mlp.output_linear": "down stacked",
    "layers.{l}.mlp.router.layer": "router",
    "layers.{l}.mlp": "- bias of the experts",
    "layers.{l}.self_attention.kv_proj": "kv",
    **{f"layers.{{l}}.self_attention.experts{name}": _MIXED_EXPERTS
       for name in ("", ".input_linear", ".output_linear", ".router.layer")},
}  # fmt: skip
_KOSMOS: Table = {
    "embed_tokens": "embed",
    "layer_norm": "norm_final",
    "lm_head": "head",
    **attention("layers.{l}.self_attn", "out_proj"),
    "layers.{l}.self_attn.inner_attn_ln": "- norm inside attention",
    "layers.{l}.self_attn_layer_norm": "norm_attn",
    "layers.{l}.ffn.fc1": "up",
    "layers.{l}.ffn.fc2": "down",
    "layers.{l}.ffn.ffn_layernorm": "- norm inside the MLP",
    "layers.{l}.final_layer_norm": "norm_mlp",
}

# --- encoder and decoder ---------------------------------------------------------------------------------------

_SEQ_TOP: Table = {
    "shared": "embed",
    "lm_head": "head",
    "final_logits_bias": BUFFER,
}
_BART_STACK: Table = {
    "embed_tokens": "embed",
    "embed_positions": "pos",
    "layernorm_embedding": "norm_embed",
    "layer_norm": "norm_final",
    "output_projection": "head",
    **under("layers.{l}.", _BART_LAYER),
}
_GLOBAL = "- global attention"
_LED_ATTENTION = "layers.{l}.self_attn.longformer_self_attn"
_LED: Table = {
    **_BART_STACK,
    f"{_LED_ATTENTION}.query": "q",
    f"{_LED_ATTENTION}.key": "k",
    f"{_LED_ATTENTION}.value": "v",
    **{f"{_LED_ATTENTION}.{name}_global": _GLOBAL for name in ("query", "key", "value")},
    "layers.{l}.self_attn.output": "o",
}
_BIGBIRD: Table = {
    **_BART_STACK,
    "layernorm_embedding": "norm_final",
    "layers.{l}.self_attn.self.query": "q",
    "layers.{l}.self_attn.self.key": "k",
    "layers.{l}.self_attn.self.value": "v",
    "layers.{l}.self_attn.output": "o",
}
_EXPERT_LAYER: Table = {
    "ffn.fc1": "up",
    "ffn.fc2": "down",
    "ffn.experts.{e}.fc1": "up",
    "ffn.experts.{e}.fc2": "down",
    "ffn.router.classifier": "router",
    "ff_layer_norm": "norm_mlp",
    "ffn_layer_norm": "norm_mlp",
    **attention("cross_attention", "out_proj", " cross"),
    "cross_attention_layer_norm": "norm_attn cross",
}
_NLLB: Table = {
    **_BART_STACK,
    "embed_positions": FIXED,
    "embed_positions.weights": FIXED,
    **under("layers.{l}.", _EXPERT_LAYER),
}
_PROPHET_ATTENTION: Table = {"query_proj": "q", "key_proj": "k", "value_proj": "v", "out_proj": "o"}
_PROPHET: Table = {
    "word_embeddings": "embed",
    "position_embeddings": "pos",
    "ngram_embeddings": "- n-gram embedding",
    "embeddings_layer_norm": "norm_embed",
    **under("layers.{l}.self_attn.", _PROPHET_ATTENTION),
    "layers.{l}.self_attn.relative_pos_embeddings": RELATIVE_TABLE,
    "layers.{l}.self_attn_layer_norm": "norm_attn",
    **{f"layers.{{l}}.cross_attn.{name}": f"{role} cross" for name, role in _PROPHET_ATTENTION.items()},
    "layers.{l}.cross_attn_layer_norm": "norm_attn cross",
    "layers.{l}.feed_forward.intermediate": "up",
    "layers.{l}.feed_forward.output": "down",
    "layers.{l}.feed_forward_layer_norm": "norm_mlp",
}


def _t5_attention(name: str, at: int, flags: str = "") -> Table:
    names = {role: role + flags for role in "qkvo"}
    return {
        **under(f"layer.{at}.{name}.", names),
        f"layer.{at}.{name}.relative_attention_bias": RELATIVE,
        f"layer.{at}.{name}.global_relative_attention_bias": RELATIVE,
        f"layer.{at}.{name}.global_input_layer_norm": "- norm of the global tokens",
        f"layer.{at}.layer_norm": f"norm_attn{flags}",
    }


def _t5_mlp(at: int) -> Table:
    single = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
    return {
        **under(f"layer.{at}.DenseReluDense.", single),
        **under(f"layer.{at}.mlp.", single),
        **under(f"layer.{at}.mlp.experts.{{e}}.", single),
        f"layer.{at}.mlp.router.classifier": "router",
        f"layer.{at}.layer_norm": "norm_mlp",
    }


def _t5_stack(*parts: Table) -> Table:
    layer = {name: what for part in parts for name, what in part.items()}
    return {"embed_tokens": "embed", "final_layer_norm": "norm_final", **under("block.{l}.", layer)}


_T5_SELF = _t5_attention("SelfAttention", 0)
_T5_CROSS = _t5_attention("EncDecAttention", 1, " cross")
_T5_LONG = {**_t5_attention("LocalSelfAttention", 0), **_t5_attention("TransientGlobalSelfAttention", 0)}

_DIA_STACK: Table = {
    "embedding": "embed",
    "embeddings.embed": "- audio tokens",
    "norm": "norm_final",
    **attention("layers.{l}.self_attention"),
    **attention("layers.{l}.cross_attention", flags=" cross"),
    "layers.{l}.pre_sa_norm": "norm_attn",
    "layers.{l}.pre_ca_norm": "norm_attn cross",
    "layers.{l}.post_sa_norm": "norm_mlp",
    "layers.{l}.pre_mlp_norm": "norm_mlp",
    "layers.{l}.mlp.gate_up_proj": "gate_up",
    "layers.{l}.mlp.down_proj": "down",
}
_SOUND = "- audio convolution"
_MOONSHINE_ENCODER: Table = {
    **dict.fromkeys(("conv1", "conv2", "conv3", "groupnorm"), _SOUND),
    "layer_norm": "norm_final",
    **attention("layers.{l}.self_attn"),
    "layers.{l}.input_layernorm": "norm_attn",
    "layers.{l}.post_attention_layernorm": "norm_mlp",
    "layers.{l}.mlp.fc1": "up",
    "layers.{l}.mlp.fc2": "down",
}
_MOONSHINE_DECODER: Table = {
    "embed_tokens": "embed",
    "norm": "norm_final",
    **attention("layers.{l}.self_attn"),
    **attention("layers.{l}.encoder_attn", flags=" cross"),
    "layers.{l}.input_layernorm": "norm_attn",
    "layers.{l}.post_attention_layernorm": "norm_attn cross",
    "layers.{l}.final_layernorm": "norm_mlp",
    "layers.{l}.mlp.fc1": "up_gate",  # the second half goes through the activation
    "layers.{l}.mlp.fc2": "down",
}

_CONFORMER = "- conformer layer"
_CONFORMER_ENCODER: Table = {
    "subsampling.layers.{n}": _SOUND,
    "subsampling.linear": _SOUND,
    **attention("layers.{l}.self_attn"),
    "layers.{l}.norm_self_att": "norm_attn",
    **{f"layers.{{l}}.{name}": _CONFORMER for name in (
        "self_attn.relative_k_proj", "self_attn.bias_u", "self_attn.bias_v", "conv.pointwise_conv1",
        "conv.depthwise_conv", "conv.norm", "conv.pointwise_conv2", "conv.norm.running_mean", "conv.norm.running_var",
        "feed_forward1.linear1", "feed_forward1.linear2", "feed_forward2.linear1", "feed_forward2.linear2",
        "norm_feed_forward1", "norm_feed_forward2", "norm_conv", "norm_out")},
}  # fmt: skip
_COHERE_ASR_DECODER: Table = {
    **_MOONSHINE_DECODER,
    "layers.{l}.mlp.fc1": "up",
    "pos_emb": "pos",
    "embedding_layernorm": "norm_embed",
    "proj": "- map of the speech tower",
}

_PIX_ATTENTION: Table = {"query": "q", "key": "k", "value": "v", "output": "o"}
_PIX_ENCODER: Table = {
    "embeddings.patch_projection": "- patch embedding",
    "embeddings.row_embedder": "- patch embedding",
    "embeddings.column_embedder": "- patch embedding",
    "layernorm": "norm_final",
    **under("encoder.layer.{l}.attention.", _PIX_ATTENTION),
    "encoder.layer.{l}.pre_attention_layer_norm": "norm_attn",
    "encoder.layer.{l}.pre_mlp_layer_norm": "norm_mlp",
    "encoder.layer.{l}.mlp.wi_0": "gate",
    "encoder.layer.{l}.mlp.wi_1": "up",
    "encoder.layer.{l}.mlp.wo": "down",
}
_PIX_DECODER: Table = {
    "embed_tokens": "embed",
    "final_layer_norm": "norm_final",
    "lm_head": "head",
    **under("layer.{l}.self_attention.attention.", _PIX_ATTENTION),
    "layer.{l}.self_attention.attention.relative_attention_bias": RELATIVE,
    "layer.{l}.self_attention.layer_norm": "norm_attn",
    **{f"layer.{{l}}.encoder_decoder_attention.attention.{n}": f"{r} cross" for n, r in _PIX_ATTENTION.items()},
    "layer.{l}.encoder_decoder_attention.layer_norm": "norm_attn cross",
    "layer.{l}.mlp.DenseReluDense.wi_0": "gate",
    "layer.{l}.mlp.DenseReluDense.wi_1": "up",
    "layer.{l}.mlp.DenseReluDense.wo": "down",
    "layer.{l}.mlp.layer_norm": "norm_mlp",
}


def _decoder(table: Table, default: str) -> Scheme:
    return Scheme((("decoder", "", table),), default)


def _both(encoder: Table, decoder: Table, default: str, top: Table = _SEQ_TOP, text: str = "") -> Scheme:
    return Scheme(
        ((MAIN, "", top), ("encoder", f"{text}encoder.", encoder), ("decoder", f"{text}decoder.", decoder)), default
    )


SCHEMES: Mapping[str, Scheme] = {
    "codegen": _decoder(_CODEGEN, "codegen"),
    "xglm": _decoder(_XGLM, "xglm"),
    "biogpt": _decoder(_BIOGPT, "biogpt"),
    "trocr": _decoder(_TROCR, "trocr"),
    "openai-gpt": _decoder(_OPENAI_GPT, "openai-gpt"),
    "persimmon": _decoder(_PERSIMMON, "persimmon"),
    "ctrl": _decoder(_CTRL, "ctrl"),
    "xlm": Scheme((("encoder", "", _XLM),), "xlm"),
    "cpmant": _decoder(_CPMANT, "cpmant"),
    "modernbert-decoder": _decoder(_MODERNBERT_DECODER, "modernbert-decoder"),
    "idefics": _decoder(_IDEFICS, "idefics"),
    "jetmoe": _decoder(_JETMOE, "jetmoe"),
    "kosmos-2": _decoder(_KOSMOS, "kosmos-2"),
    "dia": _both(_DIA_STACK, _DIA_STACK, "dia", {"logits_dense": "head"}),
    "moonshine": Scheme(
        (
            (MAIN, "", {"proj_out": "head"}),
            ("audio", "encoder.", _MOONSHINE_ENCODER),
            ("decoder", "decoder.", _MOONSHINE_DECODER),
        ),
        "moonshine",
    ),
    "cohere_asr": Scheme(
        (
            (MAIN, "", {"proj_out": "head"}),
            ("audio", "encoder.", _CONFORMER_ENCODER),
            ("decoder", "decoder.", _COHERE_ASR_DECODER),
        ),
        "cohere_asr",
    ),
    "fsmt": _both(_BART_STACK, _BART_STACK, "fsmt"),
    "led": _both(_LED, _BART_STACK, "led"),
    "bigbird_pegasus": _both(_BIGBIRD, _BIGBIRD, "bigbird_pegasus"),
    "nllb-moe": _both(_NLLB, _NLLB, "nllb-moe"),
    "seamless_m4t": _both(_NLLB, _NLLB, "seamless_m4t", text="text_"),
    "prophetnet": _both(_PROPHET, _PROPHET, "prophetnet", {"word_embeddings": "embed", "lm_head": "head"}),
    "longt5": _both(_t5_stack(_T5_LONG, _t5_mlp(1)), _t5_stack(_T5_SELF, _T5_CROSS, _t5_mlp(2)), "longt5"),
    "switch_transformers": _both(
        _t5_stack(_T5_SELF, _t5_mlp(1)), _t5_stack(_T5_SELF, _T5_CROSS, _t5_mlp(2)), "switch_transformers"
    ),
    "pix2struct": Scheme((("vision", "encoder.", _PIX_ENCODER), ("decoder", "decoder.", _PIX_DECODER)), "pix2struct"),
}

KINDS: Mapping[str, Kind] = {
    "codegen": Kind("codegen", _L, activation="gelu_new", heads=16),
    "xglm": Kind("xglm", _L, activation="gelu", fixed_positions=True, heads=16),
    "biogpt": Kind("biogpt", _L, activation="gelu", heads=16),
    "trocr": Kind("trocr", _L, norm_place="post", activation="gelu", heads=16),
    "openai-gpt": Kind("openai-gpt", _L, norm_place="post", activation="gelu", heads=12),
    "persimmon": Kind("persimmon", _L, activation="relu2", heads=64),
    "ctrl": Kind("ctrl", _L, activation="relu", fixed_positions=True, heads=16),
    "xlm": Kind("xlm", _L, norm_place="post", activation="gelu", heads=16),
    "cpmant": Kind("cpmant", activation="gelu", heads=32, head_dim=128),
    "modernbert-decoder": Kind("modernbert-decoder", _L, activation="gelu", heads=12),
    "idefics": Kind("idefics", heads=32),
    "jetmoe": Kind("jetmoe", heads=32, kv_heads=16),
    "kosmos-2": Kind("kosmos-2", _L, activation="gelu", fixed_positions=True, heads=32),
    "dia": Kind("dia", heads=16, head_dim=128),
    "cohere_asr": Kind("cohere_asr", _L, activation="relu", heads=8),
    "moonshine": Kind("moonshine", _L, activation="silu", heads=8),
    "fsmt": Kind("fsmt", _L, norm_place="post", activation="relu", fixed_positions=True, heads=16),
    "led": Kind("led", _L, norm_place="post", activation="gelu", heads=16),
    "bigbird_pegasus": Kind("bigbird_pegasus", _L, activation="gelu_new", heads=16),
    "nllb-moe": Kind("nllb-moe", _L, activation="relu", fixed_positions=True, heads=16),
    "seamless_m4t": Kind("seamless_m4t", _L, activation="relu", fixed_positions=True, heads=16),
    "prophetnet": Kind("prophetnet", _L, norm_place="post", activation="gelu", heads=16),
    "longt5": Kind("longt5", activation="relu", heads=8, head_dim=64),
    "switch_transformers": Kind("switch_transformers", activation="relu", heads=12, head_dim=64),
    "pix2struct": Kind("pix2struct", activation="gelu_new", heads=12, head_dim=64),
}
ALIASES: Mapping[str, str] = {
    "fuyu": "persimmon",
    "kosmos-2.5": "kosmos-2",
    "kosmos_2_text_model": "kosmos-2",
    "kosmos_2_5_text_model": "kosmos-2",
    "flaubert": "xlm",
    "seamless_m4t_v2": "seamless_m4t",
    "nllb_moe": "nllb-moe",
    "openai_gpt": "openai-gpt",
}
