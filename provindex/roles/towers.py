"""Naming tables of image and speech towers, and the words of prefixes behind which they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from provindex.roles.templates import Kind, Scheme, Table, attention, under

_L: Literal["layer"] = "layer"
_SCALE = "- layer scale"
_RELATIVE = "- relative position embedding"

_NORMS: Table = {"norm1": "norm_attn", "norm2": "norm_mlp"}
_SCALES: Table = {
    "layer_scale1.lambda1": _SCALE,
    "layer_scale2.lambda1": _SCALE,
    "lambda_1": _SCALE,
    "lambda_2": _SCALE,
}
_MLP: Table = {
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "mlp.weights_in": "gate_up",  # the first half goes through the activation
    "mlp.weights_out": "down",
}
_DINO: Table = {
    **_NORMS,
    **_SCALES,
    **_MLP,
    **attention("attention"),
    "attention.projection_layer": "o",  # InternVL
    "attention.q_norm": "norm_q",
    "attention.k_norm": "norm_k",
}
_SAM: Table = {
    "layer_norm1": "norm_attn",
    "layer_norm2": "norm_mlp",
    "attn.qkv": "qkv",
    "attn.proj": "o",
    "attn.rel_pos_h": _RELATIVE,
    "attn.rel_pos_w": _RELATIVE,
    "mlp.lin1": "up",
    "mlp.lin2": "down",
}
_AIM: Table = {
    **attention("attention", "out_proj"),
    "rms_norm1": "norm_attn",
    "rms_norm2": "norm_mlp",
    "ffn.gate_proj": "gate",
    "ffn.up_proj": "up",
    "ffn.down_proj": "down",
}
_MLLAMA: Table = {
    **attention("self_attn"),
    "input_layernorm": "norm_attn",
    "post_attention_layernorm": "norm_mlp",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
VISION: Table = {
    **under("transformer.layers.{l}.", _MLLAMA),
    **{f"global_transformer.layers.{{n}}.{name}": "- global layer of images" for name in _MLLAMA},
    "encoder.layers.{l}.self_attn.qkv": "qkv",  # BLIP
    "encoder.layers.{l}.self_attn.projection": "o",
    **{f"blocks.{{l}}.attn.{name}": name for name in "qkv"},  # Qwen 2.5 Omni
    "embeddings.register_tokens": "- register tokens",
    "embeddings.patch_embeddings": "- patch embedding",
    "embeddings.patch_embed": "- patch embedding",
    "embeddings.rms_norm": "norm_embed",
    "patch_embed.projection": "- patch embedding",
    "embeddings.detection_tokens": "- detection tokens",
    "embeddings.distillation_token": "- class token",
    "encoder.mid_position_embeddings": "- position embedding inside",
    "rms_norm": "norm_final",
    "norm": "norm_final",
    "ln": "norm_final",
    **{f"head.{name}": "- attention pooling head" for name in ("cls_token", "k_proj", "v_proj", "output_proj")},
    **{f"neck.{name}": "- neck" for name in ("conv1", "conv2", "layer_norm1", "layer_norm2")},
    **under("encoder.layer.{l}.", _DINO),
    **under("layer.{l}.", _DINO),
    **under("layers.{l}.", _SAM),
    **under("encoder.layers.{l}.", _AIM),
}

_CONV = "- audio convolution"
_QUANTIZER = "- quantizer"
_WAV_LAYER: Table = {
    **attention("attention", "out_proj"),
    "attention.gru_rel_pos_const": _RELATIVE,
    "attention.gru_rel_pos_linear": _RELATIVE,
    "attention.rel_attn_embed": _RELATIVE,
    "layer_norm": "norm_attn",
    "feed_forward.intermediate_dense": "up",
    "feed_forward.output_dense": "down",
    "final_layer_norm": "norm_mlp",
    **{f"adapter_layer.{name}": "- adapter" for name in ("linear_1", "linear_2", "norm")},
}
_WAV2VEC2: Table = {
    "masked_spec_embed": "- mask token",
    "feature_extractor.conv_layers.{n}.conv": _CONV,
    "feature_extractor.conv_layers.{n}.layer_norm": _CONV,
    "feature_projection.layer_norm": _CONV,
    "feature_projection.projection": _CONV,
    "layer_norm": _CONV,
    "feature_layer_norm": _CONV,
    "encoder.pos_conv_embed.conv": _CONV,
    **{f"encoder.pos_conv_embed.conv.parametrizations.weight.original{i}": _CONV for i in "01"},
    "encoder.pos_conv_embed.conv.weight_g": _CONV,
    "encoder.pos_conv_embed.conv.weight_v": _CONV,
    "encoder.pos_conv_embed.layers.{n}.conv": _CONV,
    "encoder.upsample.projection": _CONV,
    "encoder.layer_norm": "norm_final",
    "encoder.layer_norm_post": "- norm",
    **under("encoder.layers.{l}.", _WAV_LAYER),
    "lm_head": "- classification head",
    "quantizer.codevectors": _QUANTIZER,
    "quantizer.weight_proj": _QUANTIZER,
    "quantizer_proj": _QUANTIZER,
    "project_hid": _QUANTIZER,
    "project_q": _QUANTIZER,
    "speaker_proj": _QUANTIZER,
    "label_embeddings_concat": _QUANTIZER,
}
SCHEMES: Mapping[str, Scheme] = {"wav2vec2": Scheme((("audio", "", _WAV2VEC2),), "wav2vec2")}
KINDS: Mapping[str, Kind] = {"wav2vec2": Kind("wav2vec2", _L, norm_place="post", activation="gelu", heads=12)}
ALIASES: Mapping[str, str] = dict.fromkeys(
    "hubert unispeech unispeech-sat wavlm data2vec-audio sew".split(), "wav2vec2"
)

WRAPPERS = frozenset(
    "vlm thinker wav2vec2 hubert unispeech unispeech_sat wavlm data2vec_audio sew sam vivit deit beit dinov2 "
    "git backbone_model".split()
)
# First segment after the wrappers -> tower.
TOWERS: Mapping[str, str] = {
    **dict.fromkeys(
        "image_encoder image_model image_tower video_tower image_embed img_processor vision_embedder".split(), "vision"
    ),
    **dict.fromkeys("audio_model audio_embed speech_encoder".split(), "audio"),
    **dict.fromkeys(
        "image_to_text_projection qformer resampler resampler_model perceiver_resampler query_tokens "
        "language_projection image_projection vision_adapter aligner".split(),
        "projector",
    ),
}
# First segment after the wrappers -> what stands there beside the text tower.
BESIDE: Mapping[str, str] = {
    "talker": "speech generator",
    "token2wav": "speech generator",
    "code2wav": "speech generator",
    "depth_decoder": "decoder of audio codes",
    "codec_model": "audio codec",
    "acoustic_tokenizer_encoder": "audio codec",
    "semantic_tokenizer_encoder": "audio codec",
    "vqmodel": "image tokenizer",
    "gen_vision": "image generator",
    "generation_head": "image generator",
    "generation_embeddings": "image generator",
    "protein_encoder": "protein encoder",
    "mtp": "multi-token prediction",
}
