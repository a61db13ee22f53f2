"""Naming tables: how each family of models names its tensors, and what each name is. Data only; names.py reads it.

A table maps a template to what the tensor is. A template is a stored name without wrapper prefix and without its
last ``.weight`` or ``.bias``; ``{l}`` stands for the layer, ``{e}`` for the expert, ``{i}`` for a place inside a
shared group, ``{n}`` for any other number; a plain number stands for itself. A template matches whole names only.

What a tensor is, in words:

    "q"               that role
    "qkv", "kv"       q, k and v one after the other along the rows; k and v
    "qkv/full"        the same, of as many keys as queries, whatever the config says
    "qkv/head"        q, k, v of head 0, then of head 1, ...                 (GPT-NeoX, BLOOM)
    "qkv/group"       the queries of group 0, its key, its value, then of group 1, ...   (Falcon-40B, InternLM2)
    "qkv/falcon", "qkv/chatglm", "qkv/bigcode"     one of the three above, told by the config
    "q/pairs", "k/pairs"     rotary channels in pairs, where transformers has halves
    "gate_up"         gate, then up; "gate_up/alternate": gate and up rows by turns
    "- reason"        a weight without a role; "~ reason" a buffer or a fixed table, which is no weight at all
    flags             "t" stored as (in, out); "cross" cross-attention; "bias" the tensor itself is a bias;
                      "stacked" experts on the leading axis

Sources: the published checkpoints' headers, and the module names and forward passes in transformers (names of
tensors and orders of axes are facts; no code was taken).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from provindex.roles import decoders, encoders, libraries, llamas, recurrent, towers
from provindex.roles.llamas import GEMMA2, GPT_OSS, LLAMA, OLMO2
from provindex.roles.templates import (
    BUFFER,
    CLASSIFIER,
    FIXED,
    MAIN,
    MASK,
    POOLER,
    PROJECTION,
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

_INTERNLM2: Table = {
    "tok_embeddings": "embed",
    "rope.freqs": ROTARY,
    "norm": "norm_final",
    "output": "head",
    "layers.{l}.attention_norm": "norm_attn",
    "layers.{l}.ffn_norm": "norm_mlp",
    "layers.{l}.attention.wqkv": "qkv/group",
    "layers.{l}.attention.wq": "q/pairs",  # Meta's and Mistral's own releases
    "layers.{l}.attention.wk": "k/pairs",
    "layers.{l}.attention.wv": "v",
    "layers.{l}.attention.wo": "o",
    "layers.{l}.attention.rotary_emb.inv_freq": ROTARY,
    "layers.{l}.feed_forward.w1": "gate",
    "layers.{l}.feed_forward.w3": "up",
    "layers.{l}.feed_forward.w2": "down",
}

# --- decoders of the GPT manner --------------------------------------------------------------------------------

_GPT_TOP: Table = {
    "wte": "embed",
    "wpe": "pos",
    "ln_f": "norm_final",
    "lm_head": "head",
    "h.{l}.ln_1": "norm_attn",
    "h.{l}.ln_2": "norm_mlp",
    "h.{l}.attn": MASK,
    "h.{l}.attn.masked_bias": MASK,
}

_GPT2: Table = {
    **_GPT_TOP,
    "h.{l}.attn.c_attn": "qkv/full t",
    "h.{l}.attn.c_proj": "o t",
    "h.{l}.mlp.c_fc": "up t",
    "h.{l}.mlp.c_proj": "down t",
    "h.{l}.crossattention": MASK,
    "h.{l}.crossattention.masked_bias": MASK,
    "h.{l}.crossattention.c_attn": "kv t cross",
    "h.{l}.crossattention.q_attn": "q t cross",
    "h.{l}.crossattention.c_proj": "o t cross",
    "h.{l}.ln_cross_attn": "norm_attn cross",
}

_BIGCODE: Table = {
    **_GPT_TOP,
    "h.{l}.attn.c_attn": "qkv/bigcode",
    "h.{l}.attn.c_proj": "o",
    "h.{l}.mlp.c_fc": "up",
    "h.{l}.mlp.c_proj": "down",
}

_GPT_NEO: Table = {
    **_GPT_TOP,
    **attention("h.{l}.attn.attention", "out_proj"),
    "h.{l}.attn.attention": MASK,
    "h.{l}.attn.attention.masked_bias": MASK,
    "h.{l}.mlp.c_fc": "up",
    "h.{l}.mlp.c_proj": "down",
}

_GPTJ: Table = {
    **_GPT_TOP,
    **attention("h.{l}.attn", "out_proj"),
    "h.{l}.attn.embed_positions": FIXED,
    "h.{l}.mlp.fc_in": "up",
    "h.{l}.mlp.fc_out": "down",
}

_QWEN: Table = {
    **_GPT_TOP,
    "h.{l}.attn.c_attn": "qkv",
    "h.{l}.attn.c_proj": "o",
    "h.{l}.mlp.w1": "up",
    "h.{l}.mlp.w2": "gate",  # the forward pass is w1(x) * silu(w2(x))
    "h.{l}.mlp.c_proj": "down",
    "h.{l}.attn.rotary_emb.inv_freq": ROTARY,
    "rotary_emb.inv_freq": ROTARY,
}

_NEOX_LAYER: Table = {
    "input_layernorm": "norm_attn",
    "post_attention_layernorm": "norm_mlp",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
}

_NEOX: Table = {
    "embed_in": "embed",
    "final_layer_norm": "norm_final",
    "embed_out": "head",
    "lm_head": "head",
    "rotary_emb.inv_freq": ROTARY,
    **under("layers.{l}.", _NEOX_LAYER),
    "layers.{l}.attention": MASK,
    "layers.{l}.attention.masked_bias": MASK,
    "layers.{l}.attention.rotary_emb.inv_freq": ROTARY,
    "layers.{l}.attention.query_key_value": "qkv/head",
    "layers.{l}.attention.dense": "o",
}

_FALCON: Table = {
    "word_embeddings": "embed",
    "ln_f": "norm_final",
    "lm_head": "head",
    **under("h.{l}.", _NEOX_LAYER),
    "h.{l}.ln_attn": "norm_attn",
    "h.{l}.ln_mlp": "norm_mlp",
    "h.{l}.self_attention.query_key_value": "qkv/falcon",
    "h.{l}.self_attention.dense": "o",
    "h.{l}.self_attention.rotary_emb.inv_freq": ROTARY,
    "h.{l}.self_attention.maybe_rotary.inv_freq": ROTARY,
    "rotary_emb.inv_freq": ROTARY,
}

_BLOOM: Table = {
    **_FALCON,
    "word_embeddings_layernorm": "norm_embed",
    "h.{l}.self_attention.query_key_value": "qkv/head",
}

_CHATGLM: Table = {
    "embedding.word_embeddings": "embed",
    "encoder.final_layernorm": "norm_final",
    "output_layer": "head",
    "rotary_pos_emb.inv_freq": ROTARY,
    "prefix_encoder.embedding": "- prompt prefix",
    **under("encoder.layers.{l}.", {**_NEOX_LAYER, "mlp.dense_h_to_4h": "gate_up"}),
    "encoder.layers.{l}.self_attention.query_key_value": "qkv/chatglm",
    "encoder.layers.{l}.self_attention.dense": "o",
}

_MPT: Table = {
    "wte": "embed",
    "wpe": "pos",
    "norm_f": "norm_final",
    "lm_head": "head",
    "blocks.{l}.norm_1": "norm_attn",
    "blocks.{l}.norm_2": "norm_mlp",
    "blocks.{l}.attn.Wqkv": "qkv",
    "blocks.{l}.attn.out_proj": "o",
    "blocks.{l}.attn.q_ln": "norm_q",
    "blocks.{l}.attn.k_ln": "norm_k",
    "blocks.{l}.ffn.up_proj": "up",
    "blocks.{l}.ffn.down_proj": "down",
}

# --- encoders --------------------------------------------------------------------------------------------------

_BERT_EMBEDDINGS: Table = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "pos",
    "embeddings.token_type_embeddings": "- token type embedding",
    "embeddings.LayerNorm": "norm_embed",
    "embeddings.position_ids": BUFFER,
    "embeddings.token_type_ids": BUFFER,
}

_BERT_HEADS: Table = {
    "cls.predictions.decoder": "head",
    "cls.predictions": "head",
    "cls.predictions.transform.dense": TRANSFORM,
    "cls.predictions.transform.LayerNorm": TRANSFORM,
    "cls.seq_relationship": CLASSIFIER,
    "lm_head.decoder": "head",
    "lm_head": "head",
    "lm_head.dense": TRANSFORM,
    "lm_head.layer_norm": TRANSFORM,
    "lm_head.LayerNorm": TRANSFORM,
    "pooler.dense": POOLER,
}

_BERT_ATTENTION: Table = {
    "self.query": "q",
    "self.key": "k",
    "self.value": "v",
    "self.distance_embedding": RELATIVE_TABLE,
    "output.dense": "o",
    "output.LayerNorm": "norm_attn_out",
}

_BERT_LAYER: Table = {
    **under("attention.", _BERT_ATTENTION),
    **{f"crossattention.{name}": f"{what} cross" for name, what in _BERT_ATTENTION.items() if what[0] != "-"},
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_mlp_out",
}

_MPNET_LAYER: Table = {
    "attention.attn.q": "q",
    "attention.attn.k": "k",
    "attention.attn.v": "v",
    "attention.attn.o": "o",
    "attention.LayerNorm": "norm_attn_out",
}

_DEBERTA_LAYER: Table = {
    "attention.self.query_proj": "q",
    "attention.self.key_proj": "k",
    "attention.self.value_proj": "v",
    "attention.self.in_proj": "qkv/head",
    "attention.self.q_bias": "q bias",
    "attention.self.v_bias": "v bias",
    "attention.self.pos_proj": "- relative position projection",
    "attention.self.pos_q_proj": "- relative position projection",
    "attention.self.pos_key_proj": "- relative position projection",
    "attention.self.pos_query_proj": "- relative position projection",
}

_BERT: Table = {
    **_BERT_EMBEDDINGS,
    **_BERT_HEADS,
    **under("encoder.layer.{l}.", {**_BERT_LAYER, **_MPNET_LAYER, **_DEBERTA_LAYER}),
    "encoder.relative_attention_bias": RELATIVE,
    "encoder.rel_embeddings": RELATIVE_TABLE,
    "encoder.LayerNorm": "- relative position norm",
    "encoder.conv.conv": "- convolution beside the first layer",
    "encoder.conv.LayerNorm": "- convolution beside the first layer",
    "embeddings.embed_proj": "embed_map",
    "embeddings_project": "embed_map",
    "generator_predictions.LayerNorm": TRANSFORM,
    "generator_predictions.dense": TRANSFORM,
    "generator_lm_head": "head",
    "discriminator_predictions.dense": CLASSIFIER,
    "discriminator_predictions.dense_prediction": CLASSIFIER,
    "lm_predictions.lm_head.dense": TRANSFORM,
    "lm_predictions.lm_head.LayerNorm": TRANSFORM,
    "lm_predictions.lm_head": "head",
    "mask_predictions.dense": CLASSIFIER,
    "mask_predictions.LayerNorm": CLASSIFIER,
    "mask_predictions.classifier": CLASSIFIER,
    "pooler": POOLER,
    **encoders.BESIDE_BERT,
}

_ALBERT_LAYER: Table = {
    "attention.query": "q",
    "attention.key": "k",
    "attention.value": "v",
    "attention.dense": "o",
    "attention.LayerNorm": "norm_attn_out",
    "ffn": "up",
    "ffn_output": "down",
    "full_layer_layer_norm": "norm_mlp_out",
}

_ALBERT: Table = {
    **_BERT_EMBEDDINGS,
    "encoder.embedding_hidden_mapping_in": "embed_map",
    **under("encoder.albert_layer_groups.{l}.albert_layers.{i}.", _ALBERT_LAYER),
    "predictions.decoder": "head",
    "predictions": "head",
    "predictions.dense": TRANSFORM,
    "predictions.LayerNorm": TRANSFORM,
    "sop_classifier.classifier": CLASSIFIER,
    "pooler": POOLER,
}

_DISTILBERT: Table = {
    **_BERT_EMBEDDINGS,
    **under(
        "layer.{l}.",
        {
            "attention.q_lin": "q",
            "attention.k_lin": "k",
            "attention.v_lin": "v",
            "attention.out_lin": "o",
            "sa_layer_norm": "norm_attn_out",
            "ffn.lin1": "up",
            "ffn.lin2": "down",
            "output_layer_norm": "norm_mlp_out",
        },
    ),
    "vocab_transform": TRANSFORM,
    "vocab_layer_norm": TRANSFORM,
    "vocab_projector": "head",
}

_MODERNBERT: Table = {
    "embeddings.tok_embeddings": "embed",
    "embeddings.norm": "norm_embed",
    "final_norm": "norm_final",
    "layers.{l}.attn_norm": "norm_attn",
    "layers.{l}.attn.Wqkv": "qkv",
    "layers.{l}.attn.Wo": "o",
    "layers.{l}.mlp_norm": "norm_mlp",
    "layers.{l}.mlp.Wi": "gate_up",  # the first half goes through the activation
    "layers.{l}.mlp.Wo": "down",
    "layers.{l}.attn.rotary_emb.inv_freq": ROTARY,
    "head.dense": TRANSFORM,
    "head.norm": TRANSFORM,
    "projection_head.dense": TRANSFORM,
    "projection_head.norm": TRANSFORM,
    "lm_head": "head",
    "decoder": "head",
}

# --- encoder and decoder ---------------------------------------------------------------------------------------

_T5_SELF: Table = {
    "layer.0.SelfAttention.q": "q",
    "layer.0.SelfAttention.k": "k",
    "layer.0.SelfAttention.v": "v",
    "layer.0.SelfAttention.o": "o",
    "layer.0.SelfAttention.relative_attention_bias": RELATIVE,
    "layer.0.layer_norm": "norm_attn",
}
_T5_MLP: Table = {
    "DenseReluDense.wi": "up",
    "DenseReluDense.wi_0": "gate",
    "DenseReluDense.wi_1": "up",
    "DenseReluDense.wo": "down",
    "layer_norm": "norm_mlp",
}
_T5_CROSS: Table = {
    "layer.1.EncDecAttention.q": "q cross",
    "layer.1.EncDecAttention.k": "k cross",
    "layer.1.EncDecAttention.v": "v cross",
    "layer.1.EncDecAttention.o": "o cross",
    "layer.1.EncDecAttention.relative_attention_bias": RELATIVE,
    "layer.1.layer_norm": "norm_attn cross",
}
_T5_ENCODER: Table = {
    "embed_tokens": "embed",
    **under("block.{l}.", {**_T5_SELF, **under("layer.1.", _T5_MLP)}),
    "final_layer_norm": "norm_final",
}
_T5_DECODER: Table = {
    "embed_tokens": "embed",
    **under("block.{l}.", {**_T5_SELF, **_T5_CROSS, **under("layer.2.", _T5_MLP)}),
    "final_layer_norm": "norm_final",
}

_BART_LAYER: Table = {
    **attention("self_attn", "out_proj"),
    "self_attn_layer_norm": "norm_attn",
    "fc1": "up",
    "fc2": "down",
    "final_layer_norm": "norm_mlp",
    **attention("encoder_attn", "out_proj", " cross"),
    "encoder_attn_layer_norm": "norm_attn cross",
}
_BART_STACK: Table = {
    "embed_tokens": "embed",
    "embed_positions": "pos",
    "layernorm_embedding": "norm_embed",
    "layer_norm": "norm_final",
    **under("layers.{l}.", _BART_LAYER),
}
_SINUSOID: Table = {
    "embed_positions": FIXED,
    "embed_positions.weights": FIXED,
    "embed_positions._float_tensor": BUFFER,
}
_MARIAN_STACK: Table = {**_BART_STACK, **_SINUSOID, "conv.conv_layers.{n}": "- audio convolution"}  # Speech2Text
_BART_TOP: Table = {
    "shared": "embed",
    "lm_head": "head",
    "final_logits_bias": BUFFER,
}
_WHISPER_ENCODER: Table = {
    **_MARIAN_STACK,
    "conv1": "- audio convolution",
    "conv2": "- audio convolution",
    "ln_post": "norm_final",
}

_OPT: Table = {
    "embed_tokens": "embed",
    "embed_positions": "pos",
    "project_in": "embed_map",
    "project_out": "- head projection",
    "final_layer_norm": "norm_final",
    **under("layers.{l}.", _BART_LAYER),
}

# --- towers of CLIP and of multimodal models -------------------------------------------------------------------

_CLIP_LAYER: Table = {
    **attention("self_attn", "out_proj"),
    "layer_norm1": "norm_attn",
    "layer_norm2": "norm_mlp",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
_CLIP_TEXT: Table = {
    "embeddings.token_embedding": "embed",
    "embeddings.position_embedding": "pos",
    "embeddings.position_ids": BUFFER,
    **under("encoder.layers.{l}.", _CLIP_LAYER),
    "final_layer_norm": "norm_final",
    "head": PROJECTION,
    "text_projection": PROJECTION,
    "visual_projection": PROJECTION,
    "logit_scale": "- logit scale",
    "logit_bias": "- logit scale",
}
_VIT_ATTENTION: Table = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
    "layernorm_before": "norm_attn",
    "layernorm_after": "norm_mlp",
}
_QWEN_VISION_LAYER: Table = {
    "norm1": "norm_attn",
    "norm2": "norm_mlp",
    "attn.qkv": "qkv",
    "attn.proj": "o",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "mlp.linear_fc1": "up",
    "mlp.linear_fc2": "down",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_PIXTRAL_LAYER: Table = {
    **attention("attention"),
    "attention_norm": "norm_attn",
    "ffn_norm": "norm_mlp",
    "feed_forward.gate_proj": "gate",
    "feed_forward.up_proj": "up",
    "feed_forward.down_proj": "down",
}
_POOLING_HEAD = (
    "probe", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj", "layernorm",
    "mlp.fc1", "mlp.fc2",
)  # fmt: skip
_VISION: Table = {
    "embeddings.class_embedding": "- class token",
    "embeddings.cls_token": "- class token",
    "embeddings.mask_token": "- mask token",
    "embeddings.patch_embedding": "- patch embedding",
    "embeddings.patch_embeddings.projection": "- patch embedding",
    "embeddings.position_embedding": "pos",
    "embeddings.position_embeddings": "pos",
    "embeddings.position_ids": BUFFER,
    "patch_embed.proj": "- patch embedding",
    "patch_conv": "- patch embedding",
    "pos_embed": "pos",
    "ln_pre": "norm_embed",
    "pre_layrnorm": "norm_embed",
    "post_layernorm": "norm_final",
    "layernorm": "norm_final",
    "pooler.dense": POOLER,
    "classifier": CLASSIFIER,
    **under("head.", dict.fromkeys(_POOLING_HEAD, "- attention pooling head")),
    **under("encoder.layers.{l}.", _CLIP_LAYER),
    **under("encoder.layer.{l}.", _VIT_ATTENTION),
    **under("blocks.{l}.", _QWEN_VISION_LAYER),
    **under("layers.{l}.", _PIXTRAL_LAYER),
    **towers.VISION,
}


def _seq2seq(encoder: Table, decoder: Table, audio: bool = False) -> tuple[tuple[str, str, Table], ...]:
    return (
        (MAIN, "", {**_BART_TOP, "proj_out": "head"}),
        ("audio" if audio else "encoder", "encoder.", encoder),
        ("decoder", "decoder.", decoder),
    )


def _decoder(table: Table, default: str) -> Scheme:
    return Scheme((("decoder", "", table),), default)


# Order matters when the names alone must tell: of two schemes that know equally many names, the first is taken.
SCHEMES: Mapping[str, Scheme] = {
    "llama": _decoder(LLAMA, "llama"),
    "olmo2": _decoder(OLMO2, "olmo2"),
    "gemma2": _decoder(GEMMA2, "gemma2"),
    "gpt_oss": _decoder(GPT_OSS, "gpt_oss"),
    "internlm2": _decoder(_INTERNLM2, "internlm2"),
    "gpt2": _decoder(_GPT2, "gpt2"),
    "gpt_bigcode": _decoder(_BIGCODE, "gpt_bigcode"),
    "gpt_neo": _decoder(_GPT_NEO, "gpt_neo"),
    "gptj": _decoder(_GPTJ, "gptj"),
    "qwen": _decoder(_QWEN, "qwen"),
    "gpt_neox": _decoder(_NEOX, "gpt_neox"),
    "falcon": _decoder(_FALCON, "falcon"),
    "bloom": _decoder(_BLOOM, "bloom"),
    "chatglm": _decoder(_CHATGLM, "chatglm"),
    "mpt": _decoder(_MPT, "mpt"),
    "opt": Scheme((("decoder", "decoder.", _OPT), ("decoder", "", {"lm_head": "head"})), "opt"),
    "bert": Scheme((("encoder", "", _BERT),), "bert"),
    "albert": Scheme((("encoder", "", _ALBERT),), "albert"),
    "distilbert": Scheme((("encoder", "", _DISTILBERT),), "distilbert"),
    "modernbert": Scheme((("encoder", "", _MODERNBERT),), "modernbert"),
    "t5": Scheme(_seq2seq(_T5_ENCODER, _T5_DECODER), "t5"),
    "bart": Scheme(_seq2seq(_BART_STACK, _BART_STACK), "bart"),
    "marian": Scheme(_seq2seq(_MARIAN_STACK, _MARIAN_STACK), "marian"),
    "whisper": Scheme(_seq2seq(_WHISPER_ENCODER, _BART_STACK, audio=True), "whisper"),
    "clip_text": Scheme((("encoder", "", _CLIP_TEXT),), "clip_text_model"),
    "vision": Scheme((("vision", "", _VISION),), "vit"),
    "audio": Scheme((("audio", "", _WHISPER_ENCODER),), "whisper_encoder"),
    "litgpt": _decoder(libraries.LITGPT, "litgpt"),
    "megatron": _decoder(libraries.MEGATRON, "megatron"),
    "megatron_plain": _decoder(libraries.MEGATRON_PLAIN, "megatron_plain"),
    "transformer_lens": _decoder(libraries.TRANSFORMER_LENS, "transformer_lens"),
    "torchtune": _decoder(libraries.TORCHTUNE, "torchtune"),
    "openai_whisper": Scheme(
        (("audio", "encoder.", libraries.OPENAI_AUDIO), ("decoder", "decoder.", libraries.OPENAI_TEXT)),
        "openai_whisper",
    ),
    "llama4": _decoder(llamas.LLAMA4, "llama4_text"),
    "afmoe": _decoder(llamas.AFMOE, "afmoe"),
    "gemma4": _decoder(llamas.GEMMA4, "gemma4_text"),
    "aria": _decoder(llamas.ARIA, "aria_text"),
    "ernie4_5_vl_moe": _decoder(llamas.ERNIE_VL, "ernie4_5_vl_moe"),
    "longcat_flash": _decoder(llamas.LONGCAT, "longcat_flash"),
    "moshi": _decoder(llamas.MOSHI, "moshi"),
    "audio_tokens": _decoder(llamas.AUDIO_TOKENS, "csm"),
    "dbrx": _decoder(llamas.DBRX, "dbrx"),
    "t5gemma": Scheme(
        ((MAIN, "", {"lm_head.out_proj": "head"}), ("encoder", "encoder.", llamas.T5GEMMA),
         ("encoder", "encoder.text_model.", llamas.T5GEMMA),
         ("decoder", "decoder.", llamas.T5GEMMA)),
        "t5gemma",
    ),
    **recurrent.SCHEMES,
    **decoders.SCHEMES,
    **encoders.SCHEMES,
    **towers.SCHEMES,
}  # fmt: skip

# Schemes that serve models of many types: what the declared type says of norms and activations holds.
LIBRARIES = frozenset({"litgpt", "megatron", "megatron_plain", "transformer_lens", "torchtune"})

# Model types: facts that the names do not tell. Numbers are the class defaults of transformers 5.5.0.
_L: Literal["layer"] = "layer"
KINDS: Mapping[str, Kind] = {
    "llama": Kind("llama", heads=32),
    "mistral": Kind("llama", heads=32, kv_heads=8),
    "mixtral": Kind("llama", heads=32, kv_heads=8),
    "qwen2": Kind("llama", heads=32),
    "qwen2_moe": Kind("llama", heads=16),
    "qwen3": Kind("llama", heads=32, head_dim=128),
    "qwen3_moe": Kind("llama", heads=32),
    "phi3": Kind("llama", heads=32),
    "phi": Kind("llama", _L, activation="gelu_new", heads=32),
    "gemma": Kind("llama", norm_offset=1.0, activation="gelu_pytorch_tanh", heads=16, head_dim=256),
    "gemma2": Kind("gemma2", norm_offset=1.0, activation="gelu_pytorch_tanh", heads=8, head_dim=256),
    "gemma3_text": Kind("gemma2", norm_offset=1.0, activation="gelu_pytorch_tanh", heads=8, head_dim=256),
    "starcoder2": Kind("llama", _L, activation="gelu_pytorch_tanh", heads=24),
    "stablelm": Kind("llama", _L, heads=32),
    "olmo": Kind("llama", _L, heads=32),
    "olmo2": Kind("olmo2", norm_place="branch_out", heads=32),
    "cohere": Kind("llama", _L, heads=64),
    "cohere2": Kind("llama", _L, heads=64),
    "deepseek_v2": Kind("llama", heads=32),
    "deepseek_v3": Kind("llama", heads=128),
    "granite": Kind("llama", heads=32),
    "glm4": Kind("llama", heads=32, head_dim=128),
    "nemotron": Kind("llama", _L, norm_offset=1.0, activation="relu2", heads=48),
    "smollm3": Kind("llama", heads=16),
    "internlm": Kind("llama"),
    "baichuan": Kind("llama"),
    "gpt_oss": Kind("gpt_oss", heads=64, head_dim=64),
    "internlm2": Kind("internlm2"),
    "gpt2": Kind("gpt2", _L, activation="gelu_new", heads=12),
    "gpt_bigcode": Kind("gpt_bigcode", _L, activation="gelu_pytorch_tanh", heads=12),
    "gpt_neo": Kind("gpt_neo", _L, activation="gelu_new", heads=16),
    "gptj": Kind("gptj", _L, activation="gelu_new", heads=16),
    "qwen": Kind("qwen"),
    "gpt_neox": Kind("gpt_neox", _L, activation="gelu", heads=64),
    "falcon": Kind("falcon", _L, activation="gelu", heads=71),
    "bloom": Kind("bloom", _L, activation="gelu", heads=8),
    "chatglm": Kind("chatglm"),
    "mpt": Kind("mpt", _L, activation="gelu", heads=16),
    "opt": Kind("opt", _L, activation="relu", heads=12),
    "bert": Kind("bert", _L, norm_place="post", activation="gelu", heads=12),
    "roberta": Kind("bert", _L, norm_place="post", activation="gelu", heads=12),
    "xlm-roberta": Kind("bert", _L, norm_place="post", activation="gelu", heads=12),
    "camembert": Kind("bert", _L, norm_place="post", activation="gelu", heads=12),
    "mpnet": Kind("bert", _L, norm_place="post", activation="gelu", heads=12),
    "electra": Kind("bert", _L, norm_place="post", activation="gelu", heads=4),
    "deberta": Kind("bert", _L, norm_place="post", activation="gelu", heads=12),
    "deberta-v2": Kind("bert", _L, norm_place="post", activation="gelu", heads=24),
    "albert": Kind("albert", _L, norm_place="post", activation="gelu_new", heads=64),
    "distilbert": Kind("distilbert", _L, norm_place="post", activation="gelu", heads=12),
    "modernbert": Kind("modernbert", _L, activation="gelu", heads=12),
    "t5": Kind("t5", activation="relu", heads=8, head_dim=64),
    "mt5": Kind("t5", activation="gelu_new", heads=6, head_dim=64),
    "umt5": Kind("t5", activation="gelu_new", heads=6, head_dim=64),
    "bart": Kind("bart", _L, norm_place="post", activation="gelu", heads=16),
    "mbart": Kind("bart", _L, activation="gelu", heads=16),
    "marian": Kind("marian", _L, norm_place="post", activation="gelu", fixed_positions=True, heads=16),
    "m2m_100": Kind("marian", _L, activation="relu", fixed_positions=True, heads=16),
    "pegasus": Kind("marian", _L, activation="gelu", fixed_positions=True, heads=16),
    "whisper": Kind("whisper", _L, activation="gelu", heads=6),
    "whisper_encoder": Kind("audio", _L, activation="gelu", fixed_positions=True, heads=20),
    "clip_text_model": Kind("clip_text", _L, activation="quick_gelu", heads=8),
    "siglip_text_model": Kind("clip_text", _L, activation="gelu_pytorch_tanh", heads=12),
    "vit": Kind("vision", _L, activation="gelu", heads=12),
    "clip_vision_model": Kind("vision", _L, activation="quick_gelu", heads=12),
    "siglip_vision_model": Kind("vision", _L, activation="gelu_pytorch_tanh", heads=12),
    "pixtral": Kind("vision", heads=16),
    "litgpt": Kind("litgpt"),
    "megatron": Kind("megatron"),
    "megatron_plain": Kind("megatron_plain", activation="gelu"),
    "transformer_lens": Kind("transformer_lens"),
    "torchtune": Kind("torchtune"),
    "openai_whisper": Kind("openai_whisper", _L, activation="gelu"),
    "afmoe": Kind("afmoe", heads=16, head_dim=128),
    "llama4_text": Kind("llama4", heads=40, kv_heads=8, head_dim=128),
    "gemma3n_text": Kind("gemma4", activation="gelu_pytorch_tanh", heads=8, kv_heads=2, head_dim=256),
    "gemma4_text": Kind("gemma4", activation="gelu_pytorch_tanh", heads=8, kv_heads=4, head_dim=256),
    "vaultgemma": Kind("gemma2", norm_offset=1.0, activation="gelu_pytorch_tanh", heads=8, kv_heads=4, head_dim=256),
    "t5gemma": Kind("t5gemma", norm_offset=1.0, activation="gelu_pytorch_tanh", heads=8, kv_heads=4, head_dim=256),
    "aria_text": Kind("aria", heads=32),
    "ernie4_5_vl_moe": Kind("ernie4_5_vl_moe", heads=20, kv_heads=4),
    "longcat_flash": Kind("longcat_flash", heads=64),
    "moshi": Kind("moshi", heads=32),
    "csm": Kind("audio_tokens", heads=32, kv_heads=8, head_dim=64),
    "higgs_audio_v2": Kind("audio_tokens", heads=24, kv_heads=8, head_dim=128),
    "imagegpt": Kind("gpt2", activation="quick_gelu", heads=8),
    "timesfm2_5": Kind("gemma2"),
    "dbrx": Kind("dbrx", _L, heads=16),
    **recurrent.KINDS,
    **decoders.KINDS,
    **encoders.KINDS,
    **towers.KINDS,
}

# Other spellings of a model type.
ALIASES: Mapping[str, str] = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "xlm_roberta": "xlm-roberta",
    "deberta_v2": "deberta-v2",
    "m2m100": "m2m_100",
    "clip": "clip_text_model",
    "siglip": "siglip_text_model",
    "siglip2": "siglip_text_model",
    "gemma3": "gemma3_text",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl_text": "qwen3",
    "ministral": "mistral",
    "glm": "phi3",
    "phi-msft": "phi",
    "gpt-neox": "gpt_neox",
    "llama4": "llama4_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "t5gemma2": "t5gemma",
    "pi0": "gemma",
    "aria": "aria_text",
    "ernie4_5_vl_moe_text": "ernie4_5_vl_moe",
    "kyutai_speech_to_text": "moshi",
    "phi4_multimodal": "phi3",
    **recurrent.ALIASES,
    **decoders.ALIASES,
    **encoders.ALIASES,
    **towers.ALIASES,
}

# Segments in front of a name that only say which class saved it.
WRAPPERS = frozenset(
    "model transformer base_model module _orig_mod auto_model pretrained_model bert roberta distilbert albert "
    "electra deberta mpnet gpt_neox vit camembert xlm_roberta".split()
) | encoders.WRAPPERS | towers.WRAPPERS  # fmt: skip

# Segments that wrap a module wherever it stands: training and adapter libraries add them.
MIDDLES = frozenset(
    "base_layer original_module module _module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module "
    "_forward_module".split()
)
SAVED = "modules_to_save"
# Words of a prefix that make it another tower than the text's.
VISION_WORDS = re.compile(r"vision|visual|image|img|\bvit\b|vpm|clip|dino|\beva\b", re.IGNORECASE)
SPEECH_WORDS = re.compile(r"audio|speech|whisper|wav2", re.IGNORECASE)

# First segment after the wrappers -> tower. "text" names are looked up in the text scheme.
TOWERS: Mapping[str, str] = {
    "language_model": "text",
    "text_model": "text",
    "vision_tower": "vision",
    "vision_model": "vision",
    "vision_encoder": "vision",
    "visual": "vision",
    "vision_embed_tokens": "vision",
    "audio_tower": "audio",
    "audio_encoder": "audio",
    "multi_modal_projector": "projector",
    "mm_projector": "projector",
    "connector": "projector",
    "mlp1": "projector",
    "image_newline": "projector",
    "embed_vision": "projector",
    "embed_audio": "projector",
    **towers.TOWERS,
}
BESIDE = towers.BESIDE
PROJECTOR_SEGMENTS = frozenset({"merger", "deepstack_merger_list"})  # inside a vision tower

# Last segment -> (kind of parameter, canonical spelling). None: the tensor is a companion of the weight, with a reason.
PARAMETERS: Mapping[str, str] = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
COMPANIONS: Mapping[str, str] = {
    **dict.fromkeys(
        ("weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale", "output_scale", "scales", "SCB"),
        "quantization scale",
    ),
    **dict.fromkeys(("absmax", "quant_map", "nested_absmax", "nested_quant_map"), "quantization scale"),
    **dict.fromkeys(("qzeros", "weight_zero_point", "g_idx", "weight_shape"), "quantization table"),
    **dict.fromkeys(("qweight", "weight_packed"), "packed quantized weight"),
}

# First segment after the wrappers, any scheme.
HEADS: Mapping[str, str] = {
    **dict.fromkeys(
        "classifier score qa_outputs pre_classifier classification_head cls sequence_summary summary "
        "multiple_choice_head logits_proj v_head value_head nsp_cls sop_classifier projector".split(),
        "classification head",
    ),
    "pooler": "pooler",
    **dict.fromkeys(
        "text_projection visual_projection audio_projection embedding_proj_layer".split(), "projection head"
    ),
    "logit_scale": "logit scale",
}
# Last segment, any scheme.
BUFFERS: Mapping[str, str] = {
    "inv_freq": "rotary frequencies",
    "original_inv_freq": "rotary frequencies",
    "position_ids": "buffer",
    "token_type_ids": "buffer",
    "masked_bias": "causal mask",
    "num_batches_tracked": "buffer",
    "version": "buffer",
    "embed_scale": "buffer",
    "_float_tensor": "buffer",
    "_extra_state": "buffer",
}
ADAPTERS: Mapping[str, str] = {
    **dict.fromkeys(
        "lora_A lora_B lora_embedding_A lora_embedding_B lora_magnitude_vector lora_down lora_up lora_mid".split(),
        "LoRA adapter",
    ),
    **dict.fromkeys(
        "ia3_l hada_w1_a hada_w1_b hada_w2_a hada_w2_b lokr_w1 lokr_w2 lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b lokr_t2 "
        "hada_t1 hada_t2 oft_r oft_R boft_R boft_s vera_lambda_b vera_lambda_d prompt_embeddings".split(),
        "adapter",
    ),
}

# Config keys, first hit wins; nested ones are searched after the top level.
HEAD_KEYS: Mapping[str, tuple[str, ...]] = {
    "decoder": ("decoder_attention_heads", "decoder_num_attention_heads"),
    "encoder": ("encoder_attention_heads", "encoder_num_attention_heads"),
    "audio": ("encoder_attention_heads", "encoder_num_attention_heads"),
    "vision": (),
}
COMMON_HEAD_KEYS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
KV_KEYS = (
    "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_query_groups", "kv_n_heads",
)  # fmt: skip
HEAD_DIM_KEYS = ("attention_head_dim", "head_dim", "d_kv", "kv_channels")
ACTIVATION_KEYS = (
    "hidden_act", "activation_function", "hidden_activation", "activation", "dense_act_fn", "feed_forward_proj",
    "afn",
)  # fmt: skip
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
VISION_CONFIGS = ("vision_config", "vision_tower_config")
AUDIO_CONFIGS = ("audio_config",)
