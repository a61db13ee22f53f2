"""Naming tables of further encoders, in the words of architectures.py; "flat" joins all axes behind the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from provindex.roles.templates import (
    BUFFER,
    CLASSIFIER,
    POOLER,
    PROJECTION,
    RELATIVE,
    ROTARY,
    TRANSFORM,
    Kind,
    Scheme,
    Table,
    attention,
    under,
)

_L: Literal["layer"] = "layer"
_LAYOUT = "- layout embedding"
_GLOBAL = "- global attention"
_ENTITY = "- entity embedding"
_SHAPES = "- embedding of shape and sound"
_IMAGE = "- image embedding"
_BIAS = "- attention bias"
_CONV = "- convolution beside attention"
_SEGMENT = "- token type embedding"
_CHARACTERS = "- characters"
_BOTTLENECK = "- bottleneck"
_AFFINE = "- scale and shift without a norm"
_INTEGERS = "~ integers of a quantized copy"
_POSITION = "- relative position projection"

_LAYOUT_LAYER: Table = {
    **{f"attention.self.layout_{name}": "- layout flow" for name in ("query", "key", "value")},
    **{f"{name}.{end}": "- layout flow" for name in ("attention.layout_output", "layout_output")
       for end in ("dense", "LayerNorm")},
    "layout_intermediate.dense": "- layout flow",
}  # fmt: skip
_QUANTIZED = (
    "embeddings.word_embeddings", "embeddings.token_type_embeddings", "embeddings.position_embeddings",
    *(f"encoder.layer.{{l}}.{name}" for name in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense")),
)  # fmt: skip
BESIDE_BERT: Table = {  # what relatives of BERT have besides its tensors
    **{f"{name}.weight_integer": _INTEGERS for name in _QUANTIZED},
    **{f"{name}.bias_integer": _INTEGERS for name in _QUANTIZED},
    "encoder.layer.{l}.output.adapter_modules.en_XX.dense1": "- adapter of a language",
    "encoder.layer.{l}.output.adapter_modules.en_XX.dense2": "- adapter of a language",
    "output": "head",
    "visual_projection.visual_projection.0": _IMAGE,
    "visual_projection.visual_projection.1": _IMAGE,
    **under("encoder.layer.{l}.", _LAYOUT_LAYER),
    **{f"encoder.layer.{{l}}.attention.self.{name}_global": _GLOBAL for name in ("query", "key", "value")},
    **{f"encoder.layer.{{l}}.attention.self.{name}_query": "- attention between words and entities"
       for name in ("w2e", "e2w", "e2e")},
    "encoder.layer.{l}.attention.self.key_conv_attn_layer.depthwise": _CONV,
    "encoder.layer.{l}.attention.self.key_conv_attn_layer.pointwise": _CONV,
    "encoder.layer.{l}.attention.self.key_conv_attn_layer": _CONV,
    "encoder.layer.{l}.attention.self.conv_kernel_layer": _CONV,
    "encoder.layer.{l}.attention.self.conv_out_layer": _CONV,
    "encoder.layer.{l}.attention.self.conv": _CONV,
    "encoder.embedding_hidden_mapping_in": "embed_map",
    "cls.predictions.dense": TRANSFORM,
    "cls.predictions.LayerNorm": TRANSFORM,
    "cls.predictions.transform.layer_norm": TRANSFORM,
    **{f"embeddings.{name}_position_embeddings": _LAYOUT for name in "xyhw"},
    **{f"layout_embeddings.{name}_position_embeddings": _LAYOUT for name in ("x", "y", "h", "w", "box")},
    "layout_embeddings.box_linear_embeddings": _LAYOUT,
    "layout_embeddings.LayerNorm": _LAYOUT,
    "bbox_embeddings.bbox_projection": _LAYOUT,
    "encoder.rel_pos_bias": RELATIVE,
    "encoder.rel_pos_x_bias": RELATIVE,
    "encoder.rel_pos_y_bias": RELATIVE,
    **{f"embeddings.token_type_embeddings_{i}": _SEGMENT for i in range(7)},
    "embeddings.task_type_embeddings": _SEGMENT,
    "embeddings.shape_embed": _SHAPES,
    "embeddings.pronunciation_embed": _SHAPES,
    "embeddings.map_inputs_layer": "- map of the embeddings",
    "embeddings.xpath_embeddings.xpath_unitseq2_embeddings": _LAYOUT,
    "embeddings.xpath_embeddings.xpath_unitseq2_inner": _LAYOUT,
    "embeddings.xpath_embeddings.inner2emb": _LAYOUT,
    "embeddings.xpath_embeddings.xpath_tag_sub_embeddings.{n}": _LAYOUT,
    "embeddings.xpath_embeddings.xpath_subs_sub_embeddings.{n}": _LAYOUT,
    "embeddings.visual_token_type_embeddings": _IMAGE,
    "embeddings.visual_position_embeddings": _IMAGE,
    "embeddings.visual_projection": _IMAGE,
    **{f"entity_embeddings.{name}": _ENTITY for name in (
        "entity_embeddings", "entity_embedding_dense", "position_embeddings", "token_type_embeddings", "LayerNorm")},
    "entity_predictions": CLASSIFIER,
    "entity_predictions.transform.dense": CLASSIFIER,
    "entity_predictions.transform.LayerNorm": CLASSIFIER,
    "entity_predictions.decoder": CLASSIFIER,
}  # fmt: skip

_BERT_TOP: Table = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "pos",
    "embeddings.token_type_embeddings": _SEGMENT,
    "embeddings.position_ids": BUFFER,
    "cls.predictions.decoder": "head",
    "cls.predictions": "head",
    "cls.predictions.transform.dense": TRANSFORM,
    "cls.predictions.transform.LayerNorm": TRANSFORM,
    "cls.predictions.transform.layer_norm": TRANSFORM,
    "lm_head.decoder": "head",
    "lm_head": "head",
    "lm_head.dense": TRANSFORM,
    "lm_head.layer_norm": TRANSFORM,
    "pooler.dense": POOLER,
}
_SELF: Table = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
}
_PRE_ROBERTA: Table = {
    **_BERT_TOP,
    "embeddings.LayerNorm": "norm_embed",
    "LayerNorm": "norm_final",
    **under("encoder.layer.{l}.", _SELF),
    "encoder.layer.{l}.attention.LayerNorm": "norm_attn",
    "encoder.layer.{l}.intermediate.LayerNorm": "norm_mlp",
}
_XL_ROBERTA: Table = {
    **_BERT_TOP,
    "encoder.LayerNorm": "norm_final",
    **under("encoder.layer.{l}.", _SELF),
    "encoder.layer.{l}.attention.self_attn_layer_norm": "norm_attn",
    "encoder.layer.{l}.LayerNorm": "norm_mlp",
}
_MEGATRON_BERT: Table = {
    **_BERT_TOP,
    "encoder.ln": "norm_final",
    **under("encoder.layer.{l}.", _SELF),
    "encoder.layer.{l}.attention.ln": "norm_attn",
    "encoder.layer.{l}.ln": "norm_mlp",
}
_ESM: Table = {
    **_BERT_TOP,
    "embeddings.layer_norm": "norm_embed",
    "encoder.emb_layer_norm_after": "norm_final",
    "contact_head.regression": CLASSIFIER,
    **under("encoder.layer.{l}.", _SELF),
    "encoder.layer.{l}.attention.LayerNorm": "norm_attn",
    "encoder.layer.{l}.LayerNorm": "norm_mlp",
    "encoder.layer.{l}.attention.self.rotary_embeddings.inv_freq": ROTARY,
}
_FNET: Table = {
    **_BERT_TOP,
    "embeddings.LayerNorm": "norm_embed",
    "embeddings.projection": "- map of the embeddings",  # behind their norm
    "encoder.layer.{l}.fourier.output.LayerNorm": "norm_attn",
    "encoder.layer.{l}.intermediate.dense": "up",
    "encoder.layer.{l}.output.dense": "down",
    "encoder.layer.{l}.output.LayerNorm": "norm_mlp",
}

_NOMIC_LAYER: Table = {  # the first names are those of transformers, the others those of the published files
    **attention("self_attn"),
    "post_attention_layernorm": "norm_attn",
    "post_mlp_layernorm": "norm_mlp",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "attn.Wqkv": "qkv",
    "attn.out_proj": "o",
    "mixer.Wqkv": "qkv",
    "mixer.out_proj": "o",
    "mlp.fc11": "up",
    "mlp.fc12": "gate",
    "norm1": "norm_attn",
    "norm2": "norm_mlp",
}
_NOMIC: Table = {
    **_BERT_TOP,
    "embeddings.LayerNorm": "norm_embed",
    "emb_ln": "norm_embed",
    **under("layers.{l}.", _NOMIC_LAYER),
    **under("encoder.layers.{l}.", _NOMIC_LAYER),
}

_MOBILE_LAYER: Table = {
    **_SELF,
    "attention.output.LayerNorm": _AFFINE,
    "output.LayerNorm": _AFFINE,
    "output.bottleneck.dense": _BOTTLENECK,
    "output.bottleneck.LayerNorm": _AFFINE,
    "bottleneck.input.dense": _BOTTLENECK,
    "bottleneck.input.LayerNorm": _AFFINE,
    "bottleneck.attention.dense": _BOTTLENECK,
    "bottleneck.attention.LayerNorm": _AFFINE,
    "ffn.{e}.intermediate.dense": "up",  # more MLPs of a layer, one after the other
    "ffn.{e}.output.dense": "down",
    "ffn.{e}.output.LayerNorm": _AFFINE,
}
_MOBILEBERT: Table = {
    **_BERT_TOP,
    "embeddings.embedding_transformation": "- map of three embeddings",  # of a token and its neighbors
    "embeddings.LayerNorm": _AFFINE,
    "cls.predictions.dense": TRANSFORM,
    "cls.seq_relationship": CLASSIFIER,
    **under("encoder.layer.{l}.", _MOBILE_LAYER),
}

_XLNET: Table = {
    "word_embedding": "embed",
    "mask_emb": "- mask token",
    "lm_loss": "head",
    "layer.{l}.rel_attn.q": "q t flat",  # (in, heads, width of a head)
    "layer.{l}.rel_attn.k": "k t flat",
    "layer.{l}.rel_attn.v": "v t flat",
    "layer.{l}.rel_attn.o": "o flat",  # (out, heads, width of a head)
    "layer.{l}.rel_attn.r": _POSITION,
    "layer.{l}.rel_attn.seg_embed": _POSITION,
    **{f"layer.{{l}}.rel_attn.r_{name}_bias": _BIAS for name in "rsw"},
    "layer.{l}.rel_attn.layer_norm": "norm_attn",
    "layer.{l}.ff.layer_norm": "norm_mlp",
    "layer.{l}.ff.layer_1": "up",
    "layer.{l}.ff.layer_2": "down",
}

_FUNNEL_LAYER: Table = {
    "attention.q_head": "q",
    "attention.k_head": "k",
    "attention.v_head": "v",
    "attention.post_proj": "o",
    "attention.layer_norm": "norm_attn",
    "attention.r_kernel": _POSITION,
    "attention.seg_embed": _POSITION,
    **{f"attention.r_{name}_bias": _BIAS for name in "rsw"},
    "ffn.linear_1": "up",
    "ffn.linear_2": "down",
    "ffn.layer_norm": "norm_mlp",
}
_FUNNEL: Table = {
    "embeddings.word_embeddings": "embed",
    "embeddings.layer_norm": "norm_embed",
    "lm_head": "head",
    **under("encoder.blocks.{l}.{i}.", _FUNNEL_LAYER),
    **{f"decoder.layers.{{n}}.{name}": "- layer behind the last pooling" for name in _FUNNEL_LAYER},
}

_CANINE_LAYER: Table = {**_SELF, "attention.output.LayerNorm": "norm_attn", "output.LayerNorm": "norm_mlp"}
_CANINE: Table = {
    **{f"char_embeddings.HashBucketCodepointEmbedder_{i}": _CHARACTERS for i in range(8)},
    "char_embeddings.char_position_embeddings": _CHARACTERS,
    "char_embeddings.token_type_embeddings": _CHARACTERS,
    "char_embeddings.LayerNorm": _CHARACTERS,
    **{f"{which}_char_encoder.layer.{{n}}.{name}": _CHARACTERS for which in ("initial", "final")
       for name in _CANINE_LAYER},
    **{f"{module}.{name}": _CHARACTERS for module in ("chars_to_molecules", "projection")
       for name in ("conv", "LayerNorm")},
    **under("encoder.layer.{l}.", _CANINE_LAYER),
    "pooler.dense": POOLER,
}  # fmt: skip

_GROUPED = "- grouped convolution"
_SQUEEZEBERT: Table = {
    **_BERT_TOP,
    "embeddings.LayerNorm": "norm_embed",
    **{f"encoder.layers.{{l}}.attention.{name}": _GROUPED for name in ("query", "key", "value")},
    "encoder.layers.{l}.post_attention.conv1d": "o flat",
    "encoder.layers.{l}.post_attention.layernorm": "norm_attn",
    "encoder.layers.{l}.intermediate.conv1d": _GROUPED,
    "encoder.layers.{l}.output.conv1d": _GROUPED,
    "encoder.layers.{l}.output.layernorm": "norm_mlp",
}

_AIM_TEXT: Table = {
    "embeddings.token_embedding": "embed",
    "embeddings.position_embedding": "pos",
    "rms_norm": "norm_final",
    **attention("encoder.layers.{l}.attention", "out_proj"),
    "encoder.layers.{l}.rms_norm1": "norm_attn",
    "encoder.layers.{l}.rms_norm2": "norm_mlp",
    **{f"encoder.layers.{{l}}.ffn.{role}_proj": role for role in ("gate", "up", "down")},
    "text_projection": PROJECTION,
    "visual_projection": PROJECTION,
    "logit_scale": "- logit scale",
}

_REFORMER: Table = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings.weights.{n}": "- axial position embedding",
    "encoder.layer_norm": "norm_final",
    "lm_head.decoder": "head",
    "lm_head": "head",
    "encoder.layers.{l}.attention.layer_norm": "norm_attn",
    "encoder.layers.{l}.attention.self_attention.query": "q",
    "encoder.layers.{l}.attention.self_attention.key": "k",
    "encoder.layers.{l}.attention.self_attention.value": "v",
    "encoder.layers.{l}.attention.self_attention.query_key": "- query and key in one",
    "encoder.layers.{l}.attention.output.dense": "o",
    "encoder.layers.{l}.feed_forward.layer_norm": "norm_mlp",
    "encoder.layers.{l}.feed_forward.dense.dense": "up",
    "encoder.layers.{l}.feed_forward.output.dense": "down",
}


def _encoder(table: Table, default: str) -> Scheme:
    return Scheme((("encoder", "", table),), default)


SCHEMES: Mapping[str, Scheme] = {
    "roberta-prelayernorm": _encoder(_PRE_ROBERTA, "roberta-prelayernorm"),
    "xlm-roberta-xl": _encoder(_XL_ROBERTA, "xlm-roberta-xl"),
    "megatron-bert": _encoder(_MEGATRON_BERT, "megatron-bert"),
    "esm": _encoder(_ESM, "esm"),
    "fnet": _encoder(_FNET, "fnet"),
    "nomic_bert": _encoder(_NOMIC, "nomic_bert"),
    "mobilebert": _encoder(_MOBILEBERT, "mobilebert"),
    "xlnet": Scheme((("decoder", "", _XLNET),), "xlnet"),
    "funnel": _encoder(_FUNNEL, "funnel"),
    "canine": _encoder(_CANINE, "canine"),
    "squeezebert": _encoder(_SQUEEZEBERT, "squeezebert"),
    "reformer": _encoder(_REFORMER, "reformer"),
    "aimv2_text_model": _encoder(_AIM_TEXT, "aimv2_text_model"),
}
KINDS: Mapping[str, Kind] = {
    "roberta-prelayernorm": Kind("roberta-prelayernorm", _L, activation="gelu", heads=12),
    "xlm-roberta-xl": Kind("xlm-roberta-xl", _L, activation="gelu", heads=32),
    "megatron-bert": Kind("megatron-bert", _L, activation="gelu", heads=16),
    "esm": Kind("esm", _L, activation="gelu", heads=12),
    "fnet": Kind("fnet", _L, norm_place="post", activation="gelu_new"),
    "nomic_bert": Kind("nomic_bert", _L, norm_place="post", heads=12),
    "jina_embeddings_v3": Kind("nomic_bert", _L, norm_place="post", activation="gelu", heads=16),
    "mobilebert": Kind("mobilebert", "none", norm_place="post", activation="relu", heads=4),
    "xlnet": Kind("xlnet", _L, norm_place="post", activation="gelu", heads=16),
    "funnel": Kind("funnel", _L, norm_place="post", activation="gelu_new", heads=12, head_dim=64),
    "canine": Kind("canine", _L, norm_place="post", activation="gelu", heads=12),
    "squeezebert": Kind("squeezebert", _L, norm_place="post", activation="gelu", heads=12),
    "aimv2_text_model": Kind("aimv2_text_model", heads=6),
    "reformer": Kind("reformer", _L, activation="relu", heads=12, head_dim=64),
}
ALIASES: Mapping[str, str] = {
    **dict.fromkeys(
        "longformer layoutlm layoutlmv3 rembert dpr roc_bert tapas luke ibert lilt markuplm convbert big_bird ernie "
        "bert-generation data2vec-text splinter nystromformer mra yoso bros xmod visual_bert git".split(),
        "bert",
    ),
    "nomic-bert": "nomic_bert",
    "aimv2": "aimv2_text_model",
}
WRAPPERS = frozenset(
    "backbone nomic_bert longformer mobilebert layoutlm layoutlmv3 rembert roc_bert tapas luke led biogpt rwkv cpmant "
    "canine funnel convbert ibert lilt fnet reformer esm ernie big_bird data2vec_text splinter nystromformer mra yoso "
    "bros xmod visual_bert roberta_prelayernorm prophetnet markuplm question_encoder ctx_encoder span_predictor "
    "bert_model embed_tokens_extend".split()
)
