"""Write tests/data/architectures/: tensor names, shapes and config of real architectures, built on the meta device.

Not part of the test run. Needs torch and transformers (the version is noted in each file):

    python tests/make_architectures.py [NAME ...]

Each file holds {"type", "source", "config", "tensors": {name: shape}, "buffers": {name: shape}}; "buffers" are names
that older releases stored beside the weights and that the model no longer makes. Widths are those of the class
defaults or of the published model named in "source"; only the number of layers and experts is cut.
Types without a class in transformers are written from the published checkpoints' headers and say so.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "data" / "architectures"
CAUSAL, MASKED, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
BASE, IMAGE_TEXT = "AutoModel", "AutoModelForImageTextToText"
L2 = {"num_hidden_layers": 2}
S2 = {"encoder_layers": 2, "decoder_layers": 2}
T2 = {"num_layers": 2, "num_decoder_layers": 2}
ENC = {"num_hidden_layers": 3}


def towers(text: str, vision: str) -> dict[str, Any]:
    return {"text_config": {"model_type": text, **L2}, "vision_config": {"model_type": vision, **L2}}


# name: (model type, auto class, config overrides, where the widths come from)
NATIVE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("llama", CAUSAL, {**L2, "num_key_value_heads": 8, "intermediate_size": 14336}, "Llama-3-8B widths"),
    "mistral": ("mistral", CAUSAL, L2, "class defaults"),
    "mixtral": ("mixtral", CAUSAL, L2, "class defaults"),
    "qwen2": ("qwen2", CAUSAL, L2, "class defaults"),
    "qwen2_moe": ("qwen2_moe", CAUSAL, {**L2, "num_experts": 8}, "class defaults"),
    "qwen3": ("qwen3", CAUSAL, L2, "class defaults"),
    "qwen3_moe": ("qwen3_moe", CAUSAL, {**L2, "num_experts": 8}, "class defaults"),
    "gemma": ("gemma", CAUSAL, L2, "class defaults"),
    "gemma2": ("gemma2", CAUSAL, L2, "class defaults"),
    "gemma3_text": ("gemma3_text", CAUSAL, L2, "class defaults"),
    "gemma3": ("gemma3", IMAGE_TEXT, {"text_config": L2, "vision_config": L2}, "class defaults"),
    "phi": ("phi", CAUSAL, {**L2, "qk_layernorm": True}, "class defaults, with query and key norms"),
    "phi3": ("phi3", CAUSAL, {**L2, "num_key_value_heads": 8}, "class defaults, 8 key heads"),
    "gpt2": ("gpt2", CAUSAL, {**L2, "add_cross_attention": True}, "class defaults, with cross-attention"),
    "gpt_neox": ("gpt_neox", CAUSAL, L2, "class defaults"),
    "gptj": ("gptj", CAUSAL, {"n_layer": 2}, "class defaults"),
    "gpt_neo": ("gpt_neo", CAUSAL, {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}, "class defaults"),
    "gpt_bigcode": ("gpt_bigcode", CAUSAL, L2, "class defaults"),
    "gpt_bigcode_mha": ("gpt_bigcode", CAUSAL, {**L2, "multi_query": False}, "class defaults, full attention"),
    "falcon_7b": ("falcon", CAUSAL, {**L2, "multi_query": True, "bias": False}, "Falcon-7B widths"),
    "falcon_40b": (
        "falcon", CAUSAL,
        {**L2, "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True,
         "bias": False},
        "Falcon-40B widths",
    ),
    "falcon_rw": (
        "falcon", CAUSAL,
        {**L2, "hidden_size": 2048, "num_attention_heads": 32, "multi_query": False, "alibi": True,
         "parallel_attn": False, "bias": True},
        "Falcon-RW-1B widths",
    ),
    "bloom": ("bloom", CAUSAL, {"n_layer": 2, "hidden_size": 1024, "n_head": 16}, "BLOOM-560M widths"),
    "opt": ("opt", CAUSAL, L2, "class defaults"),
    "opt_350m": (
        "opt", CAUSAL,
        {**L2, "hidden_size": 1024, "num_attention_heads": 16, "ffn_dim": 4096, "word_embed_proj_dim": 512,
         "do_layer_norm_before": False},
        "OPT-350M widths",
    ),
    "starcoder2": ("starcoder2", CAUSAL, L2, "class defaults"),
    "stablelm": ("stablelm", CAUSAL, L2, "class defaults"),
    "stablelm_2_12b": (
        "stablelm", CAUSAL,
        {**L2, "hidden_size": 5120, "num_key_value_heads": 8, "qk_layernorm": True, "use_parallel_residual": True},
        "StableLM-2-12B widths",
    ),
    "olmo": ("olmo", CAUSAL, L2, "class defaults"),
    "olmo2": ("olmo2", CAUSAL, L2, "class defaults"),
    "cohere": ("cohere", CAUSAL, {**L2, "use_qk_norm": True, "num_key_value_heads": 8}, "Command R+ manner"),
    "cohere2": ("cohere2", CAUSAL, {**L2, "num_key_value_heads": 8}, "class defaults, 8 key heads"),
    "mpt": ("mpt", CAUSAL, {"n_layers": 2}, "class defaults"),
    "glm": ("glm", CAUSAL, L2, "class defaults"),
    "glm4": ("glm4", CAUSAL, L2, "class defaults"),
    "nemotron": ("nemotron", CAUSAL, {**L2, "num_key_value_heads": 8}, "class defaults, 8 key heads"),
    "granite": ("granite", CAUSAL, L2, "class defaults"),
    "smollm3": ("smollm3", CAUSAL, L2, "class defaults"),
    "gpt_oss": ("gpt_oss", CAUSAL, {**L2, "num_local_experts": 8}, "class defaults, 8 experts"),
    "deepseek_v2_lite": (
        "deepseek_v2", CAUSAL,
        {"num_hidden_layers": 3, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
         "q_lora_rank": None, "n_routed_experts": 8, "first_k_dense_replace": 1},
        "DeepSeek-V2-Lite widths, 8 experts",
    ),
    "deepseek_v3": (
        "deepseek_v3", CAUSAL, {"num_hidden_layers": 3, "n_routed_experts": 8, "first_k_dense_replace": 1},
        "class defaults, 8 experts",
    ),
    "bert": ("bert", "AutoModelForPreTraining", ENC, "class defaults"),
    "bert_decoder": ("bert", CAUSAL, {**L2, "is_decoder": True, "add_cross_attention": True}, "class defaults"),
    "bert_classifier": ("bert", "AutoModelForSequenceClassification", ENC, "class defaults"),
    "roberta": ("roberta", MASKED, ENC, "class defaults"),
    "roberta_classifier": ("roberta", "AutoModelForSequenceClassification", ENC, "class defaults"),
    "xlm-roberta": ("xlm-roberta", MASKED, ENC, "class defaults"),
    "camembert": ("camembert", MASKED, ENC, "class defaults"),
    "distilbert": ("distilbert", MASKED, {"n_layers": 3}, "class defaults"),
    "distilbert_classifier": ("distilbert", "AutoModelForSequenceClassification", {"n_layers": 3}, "class defaults"),
    "mpnet": ("mpnet", MASKED, ENC, "class defaults"),
    "albert": ("albert", "AutoModelForPreTraining", {}, "class defaults"),
    "albert_groups": ("albert", MASKED, {"num_hidden_groups": 2, "inner_group_num": 2}, "class defaults, 2 x 2 layers"),
    "electra": ("electra", "AutoModelForPreTraining", ENC, "class defaults"),
    "electra_generator": ("electra", MASKED, ENC, "class defaults"),
    "deberta": (
        "deberta", MASKED,
        {**ENC, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "embedding_size": 256},
        "class defaults, narrower embedding",
    ),
    "deberta-v2": (
        "deberta-v2", MASKED,
        {**ENC, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm",
         "position_buckets": 256, "share_att_key": True, "conv_kernel_size": 3},
        "class defaults, relative attention as in DeBERTa-v3",
    ),
    "modernbert": ("modernbert", MASKED, ENC, "class defaults"),
    "t5": ("t5", SEQ2SEQ, T2, "class defaults"),
    "t5_encoder": ("t5", "T5EncoderModel", T2, "class defaults"),
    "mt5": ("mt5", SEQ2SEQ, T2, "class defaults"),
    "umt5": ("umt5", SEQ2SEQ, T2, "class defaults"),
    "bart": ("bart", SEQ2SEQ, S2, "class defaults"),
    "bart_classifier": ("bart", "AutoModelForSequenceClassification", S2, "class defaults"),
    "mbart": ("mbart", SEQ2SEQ, S2, "class defaults"),
    "marian": ("marian", SEQ2SEQ, S2, "class defaults"),
    "marian_two_vocabularies": (
        "marian", SEQ2SEQ, {**S2, "share_encoder_decoder_embeddings": False, "tie_word_embeddings": False,
                            "decoder_vocab_size": 60000}, "class defaults, two vocabularies",
    ),
    "m2m_100": ("m2m_100", SEQ2SEQ, S2, "class defaults"),
    "pegasus": ("pegasus", SEQ2SEQ, S2, "class defaults"),
    "whisper": ("whisper", "AutoModelForSpeechSeq2Seq", S2, "class defaults"),
    "clip": ("clip", BASE, {"text_config": L2, "vision_config": L2}, "class defaults"),
    "clip_text_model": ("clip_text_model", "CLIPTextModelWithProjection", L2, "class defaults"),
    "clip_vision_model": ("clip_vision_model", "CLIPVisionModel", L2, "class defaults"),
    "siglip": ("siglip", BASE, {"text_config": L2, "vision_config": L2}, "class defaults"),
    "vit": ("vit", "AutoModelForImageClassification", L2, "class defaults"),
    "llava": ("llava", IMAGE_TEXT, towers("llama", "clip_vision_model"), "class defaults"),
    "qwen2_vl": ("qwen2_vl", IMAGE_TEXT, {"text_config": L2, "vision_config": {"depth": 2}}, "class defaults"),
    "qwen2_5_vl": ("qwen2_5_vl", IMAGE_TEXT, {"text_config": L2, "vision_config": {"depth": 2}}, "class defaults"),
    "qwen2_audio": (
        "qwen2_audio", "Qwen2AudioForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **L2}, "audio_config": {"encoder_layers": 2}}, "class defaults",
    ),
    "idefics3": ("idefics3", IMAGE_TEXT, towers("llama", "idefics3_vision"), "class defaults"),
    "paligemma": ("paligemma", IMAGE_TEXT, towers("gemma", "siglip_vision_model"), "class defaults"),
    "mistral3": ("mistral3", IMAGE_TEXT, towers("mistral", "pixtral"), "class defaults"),
}  # fmt: skip

# Names as published before transformers 5 renamed modules: (renames, how a stacked expert tensor was spelled).
EXPERTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
OLDER: dict[str, tuple[list[tuple[str, str]], dict[str, str] | None]] = {
    "mixtral": ([(r"\.mlp\.", ".block_sparse_moe.")], {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen2_moe": ([], EXPERTS),
    "qwen3_moe": ([], EXPERTS),
    "deepseek_v2_lite": ([], EXPERTS),
    "deepseek_v3": ([], EXPERTS),
    "bert": ([(r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta")], None),
    "llava": (
        [(r"^model\.language_model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head"),
         (r"^model\.(vision_tower|multi_modal_projector)", r"\1")], None,
    ),
    "gemma3": (
        [(r"^model\.language_model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head"),
         (r"^model\.(vision_tower|multi_modal_projector)", r"\1")], None,
    ),
    "qwen2_vl": ([(r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")], None),
}  # fmt: skip

# Buffers that older files carry, per layer ("{l}") or once, with their shapes.
STORED_BUFFERS: dict[str, dict[str, list[int]]] = {
    "llama": {"model.layers.{l}.self_attn.rotary_emb.inv_freq": [64]},
    "gpt2": {"transformer.h.{l}.attn.bias": [1, 1, 1024, 1024], "transformer.h.{l}.attn.masked_bias": []},
    "gpt_neox": {
        "gpt_neox.layers.{l}.attention.bias": [1, 1, 2048, 2048],
        "gpt_neox.layers.{l}.attention.masked_bias": [],
        "gpt_neox.layers.{l}.attention.rotary_emb.inv_freq": [12],
    },
    "gptj": {"transformer.h.{l}.attn.bias": [1, 1, 2048, 2048], "transformer.h.{l}.attn.masked_bias": []},
    "gpt_neo": {
        "transformer.h.{l}.attn.attention.bias": [1, 1, 2048, 2048],
        "transformer.h.{l}.attn.attention.masked_bias": [],
    },
    "bert": {"bert.embeddings.position_ids": [1, 512]},
    "roberta": {"roberta.embeddings.position_ids": [1, 514]},
    "marian": {
        "final_logits_bias": [1, 58101],
        "model.encoder.embed_positions.weight": [1024, 1024],
        "model.decoder.embed_positions.weight": [1024, 1024],
    },
    "m2m_100": {"model.encoder.embed_positions.weights": [1026, 1024]},
    "pegasus": {"model.encoder.embed_positions.weight": [1024, 1024]},
    "falcon_7b": {"transformer.h.{l}.self_attention.rotary_emb.inv_freq": [32]},
    "clip": {"text_model.embeddings.position_ids": [1, 77], "vision_model.embeddings.position_ids": [1, 50]},
}


def qwen() -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Qwen-7B (the first Qwen; remote code): fused q, k, v with a bias, w1 and w2, RMS norms."""
    h, f, v = 4096, 11008, 151936
    tensors = {"transformer.wte.weight": [v, h], "transformer.ln_f.weight": [h], "lm_head.weight": [v, h]}
    for i in range(2):
        at = f"transformer.h.{i}."
        tensors |= {at + "ln_1.weight": [h], at + "ln_2.weight": [h], at + "attn.c_attn.weight": [3 * h, h]}
        tensors |= {at + "attn.c_attn.bias": [3 * h], at + "attn.c_proj.weight": [h, h]}
        tensors |= {at + "mlp.w1.weight": [f, h], at + "mlp.w2.weight": [f, h], at + "mlp.c_proj.weight": [h, f]}
    config = {"model_type": "qwen", "hidden_size": h, "num_attention_heads": 32, "num_hidden_layers": 2}
    return tensors, config | {"intermediate_size": 22016, "kv_channels": 128, "vocab_size": v}


def internlm2() -> tuple[dict[str, list[int]], dict[str, Any]]:
    """InternLM2-7B (remote code): wqkv by groups of key heads."""
    h, f, v = 4096, 14336, 92544
    tensors = {"model.tok_embeddings.weight": [v, h], "model.norm.weight": [h], "output.weight": [v, h]}
    for i in range(2):
        at = f"model.layers.{i}."
        tensors |= {at + "attention_norm.weight": [h], at + "ffn_norm.weight": [h]}
        tensors |= {at + "attention.wqkv.weight": [6144, h], at + "attention.wo.weight": [h, h]}
        tensors |= {at + f"feed_forward.{w}.weight": [f, h] for w in ("w1", "w3")}
        tensors |= {at + "feed_forward.w2.weight": [h, f]}
    config = {"model_type": "internlm2", "hidden_size": h, "num_attention_heads": 32, "num_key_value_heads": 8}
    return tensors, config | {"num_hidden_layers": 2, "intermediate_size": f, "hidden_act": "silu", "vocab_size": v}


def chatglm() -> tuple[dict[str, list[int]], dict[str, Any]]:
    """ChatGLM3-6B (remote code): two key heads, gate and up in one tensor."""
    h, f, v = 4096, 13696, 65024
    tensors = {
        "transformer.embedding.word_embeddings.weight": [v, h],
        "transformer.encoder.final_layernorm.weight": [h],
        "transformer.output_layer.weight": [v, h],
        "transformer.rotary_pos_emb.inv_freq": [32],
    }
    for i in range(2):
        at = f"transformer.encoder.layers.{i}."
        tensors |= {at + "input_layernorm.weight": [h], at + "post_attention_layernorm.weight": [h]}
        tensors |= {at + "self_attention.query_key_value.weight": [4608, h]}
        tensors |= {at + "self_attention.query_key_value.bias": [4608], at + "self_attention.dense.weight": [h, h]}
        tensors |= {at + "mlp.dense_h_to_4h.weight": [2 * f, h], at + "mlp.dense_4h_to_h.weight": [h, f]}
    config = {"model_type": "chatglm", "hidden_size": h, "num_attention_heads": 32, "kv_channels": 128}
    config |= {"multi_query_attention": True, "multi_query_group_num": 2, "num_layers": 2, "ffn_hidden_size": f}
    return tensors, config | {"padded_vocab_size": v, "rmsnorm": True}


def baichuan() -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Baichuan-7B (remote code): Llama with q, k and v in W_pack."""
    h, f, v = 4096, 11008, 64000
    tensors = {"model.embed_tokens.weight": [v, h], "model.norm.weight": [h], "lm_head.weight": [v, h]}
    for i in range(2):
        at = f"model.layers.{i}."
        tensors |= {at + "input_layernorm.weight": [h], at + "post_attention_layernorm.weight": [h]}
        tensors |= {at + "self_attn.W_pack.weight": [3 * h, h], at + "self_attn.o_proj.weight": [h, h]}
        tensors |= {at + f"mlp.{w}_proj.weight": [f, h] for w in ("gate", "up")}
        tensors |= {at + "mlp.down_proj.weight": [h, f], at + "self_attn.rotary_emb.inv_freq": [64]}
    config = {"model_type": "baichuan", "hidden_size": h, "num_attention_heads": 32, "num_hidden_layers": 2}
    return tensors, config | {"intermediate_size": f, "hidden_act": "silu", "vocab_size": v}


WRITTEN: dict[str, Callable[[], tuple[dict[str, list[int]], dict[str, Any]]]] = {
    "qwen": qwen,
    "internlm2": internlm2,
    "chatglm": chatglm,
    "baichuan": baichuan,
}


def build(model_type: str, auto: str, overrides: dict[str, Any]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    import torch
    import transformers

    if model_type in transformers.CONFIG_MAPPING:
        config = transformers.CONFIG_MAPPING[model_type](**overrides)
    else:
        names = {"clip_text_model": "CLIPTextConfig", "clip_vision_model": "CLIPVisionConfig"}
        config = getattr(transformers, names[model_type])(**overrides)
    cls = getattr(transformers, auto)
    with torch.device("meta"):
        model = cls.from_config(config) if auto.startswith("AutoModel") else cls(config)
    tensors = {name: list(t.shape) for name, t in model.state_dict().items()}
    return tensors, json.loads(config.to_json_string(use_diff=False))


def older_names(tensors: Mapping[str, list[int]], name: str) -> dict[str, list[int]]:
    """The names as published before: experts one by one, modules under their former names."""
    renames, experts = OLDER[name]
    old: dict[str, list[int]] = {}
    for tensor, shape in tensors.items():
        stacked = re.fullmatch(r"(.*\.experts\.)(gate_up_proj|down_proj)", tensor)
        if experts and stacked:
            roles = ("gate", "up") if stacked[2] == "gate_up_proj" else ("down",)
            part = [shape[1] // len(roles), shape[2]]
            for e in range(shape[0]):
                old |= {f"{stacked[1]}{e}.{experts[role]}.weight": part for role in roles}
        else:
            old[tensor] = shape
    for pattern, to in renames:
        old = {re.sub(pattern, to, tensor): shape for tensor, shape in old.items()}
    return old


def trimmed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what no reader of names looks at (label tables, generation settings)."""
    drop = {"id2label", "label2id", "layer_types", "rope_parameters", "problem_type", "dtype", "task_specific_params"}
    return {
        key: trimmed(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in drop and value is not None
    }


def save(name: str, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    (OUT / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def make(name: str) -> None:
    if name in WRITTEN:
        tensors, config = WRITTEN[name]()
        source = f"written from the published checkpoint: {WRITTEN[name].__doc__}"
        save(
            name, {"type": config["model_type"], "source": source, "config": config, "tensors": tensors, "buffers": {}}
        )
        return
    import transformers

    model_type, auto, overrides, widths = NATIVE[name]
    tensors, config = build(model_type, auto, overrides)
    templates = STORED_BUFFERS.get(name, {}).items()
    buffers = {template.replace("{l}", str(i)): shape for template, shape in templates for i in range(2)}
    source = f"transformers {transformers.__version__}, {auto}, {widths}"
    record = {"type": model_type, "source": source, "config": trimmed(config), "tensors": tensors, "buffers": buffers}
    save(name, record)
    if name in OLDER:
        older = {"tensors": older_names(tensors, name), "source": source + "; names as published before version 5"}
        save(f"{name}_older", record | older)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or [*NATIVE, *WRITTEN]:
        make(name)
        print(name)


if __name__ == "__main__":
    main()
