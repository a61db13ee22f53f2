"""Every name of every architecture has its place; fused tensors split as their forward passes read them."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from provindex.report.words import texts
from provindex.roles.architectures import KINDS, SCHEMES
from provindex.roles.names import GLOBAL_ROLES, LAYER_ROLES, Layout, Part, part_shape, resolve

DATA = Path(__file__).parent / "data" / "architectures"
NAMES = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))
F32 = NDArray[np.float32]

# Why a tensor of a real model may have no role. Nothing else is accepted.
REASONS = {
    "attention pooling head",
    "attention sinks",
    "audio convolution",
    "buffer",
    "causal mask",
    "class token",
    "classification head",
    "convolution beside the first layer",
    "fixed positions",
    "head projection",
    "key norm of one head",
    "language-model head transform",
    "latent attention factor (no head has rows of its own in the residual width)",
    "logit scale",
    "multimodal projector",
    "patch embedding",
    "pooler",
    "projection head",
    "query norm of one head",
    "relative position bias",
    "relative position embedding",
    "relative position norm",
    "relative position projection",
    "rotary frequencies",
    "router score correction",
    "shared expert gate",
    "token type embedding",
}

# Weights of the last layer of the main stack, by hand: "gate*8" stands for 8 experts, "q'" for cross-attention.
GATED = "q k v o gate up down norm_attn norm_mlp"
PLAIN = "q k v o up down norm_attn norm_mlp"
POST = "q k v o up down norm_attn_out norm_mlp_out"
PARALLEL = "q k v o gate up down norm_attn"
CROSS = " q' k' v' o' norm_attn'"
POST_CROSS = " q' k' v' o' norm_attn_out'"
SANDWICH = "q k v o gate up down norm_attn norm_attn_out norm_mlp norm_mlp_out"
QK = " norm_q norm_k"
EXPERTS = "q k v o router gate*8 up*8 down*8 norm_attn norm_mlp"
SHARED = EXPERTS.replace("*8", "*9")
LAYERS = {
    **dict.fromkeys("llama mistral qwen qwen2 gemma phi3 internlm2 chatglm baichuan glm granite".split(), GATED),
    **dict.fromkeys("smollm3 stablelm llava llava_older qwen2_vl qwen2_vl_older qwen2_5_vl".split(), GATED),
    **dict.fromkeys("qwen2_audio idefics3 paligemma mistral3".split(), GATED),
    "qwen3": GATED + QK,
    "phi": "q k v o up down norm_attn" + QK,
    "stablelm_2_12b": PARALLEL,
    "olmo": "q k v o gate up down",
    "olmo2": "q k v o gate up down norm_attn_out norm_mlp_out" + QK,
    "cohere": PARALLEL + QK,
    "cohere2": PARALLEL,
    "gemma2": SANDWICH,
    "glm4": SANDWICH,
    "nemotron": PLAIN,
    **dict.fromkeys(("gemma3_text", "gemma3", "gemma3_older"), SANDWICH + QK),
    **dict.fromkeys(("mixtral", "mixtral_older", "gpt_oss"), EXPERTS),
    **dict.fromkeys(("qwen2_moe", "qwen2_moe_older"), SHARED),
    **dict.fromkeys(("qwen3_moe", "qwen3_moe_older"), EXPERTS + QK),
    **dict.fromkeys(("deepseek_v2_lite", "deepseek_v2_lite_older"), SHARED.replace("k v ", "")),
    **dict.fromkeys(("deepseek_v3", "deepseek_v3_older"), SHARED.replace("q k v ", "")),
    **dict.fromkeys("gpt_neox gpt_neo gpt_bigcode gpt_bigcode_mha falcon_40b falcon_rw bloom opt".split(), PLAIN),
    **dict.fromkeys("starcoder2 mpt clip clip_text_model clip_vision_model siglip vit".split(), PLAIN),
    "gptj": "q k v o up down norm_attn",
    "falcon_7b": "q k v o up down norm_attn",
    "gpt2": PLAIN + CROSS,
    "opt_350m": POST,
    **dict.fromkeys("bert bert_older bert_classifier roberta roberta_classifier xlm-roberta camembert".split(), POST),
    **dict.fromkeys("distilbert distilbert_classifier mpnet albert albert_groups electra".split(), POST),
    **dict.fromkeys("electra_generator deberta deberta-v2".split(), POST),
    "bert_decoder": POST + POST_CROSS,
    "modernbert": GATED,
    "t5": PLAIN + CROSS,
    "t5_encoder": PLAIN,
    "mt5": GATED + CROSS,
    "umt5": GATED + CROSS,
    **dict.fromkeys("bart bart_classifier marian marian_two_vocabularies".split(), POST + POST_CROSS),
    **dict.fromkeys("mbart m2m_100 pegasus whisper".split(), PLAIN + CROSS),
}

# (heads, key heads, head width) of the main stack, by hand, where the layout depends on them.
HEADS = {
    "llama": (32, 8, 128),
    "qwen2": (32, 32, 128),
    "gemma2": (8, 4, 256),
    "gemma3": (8, 4, 256),
    "phi3": (32, 8, 96),
    "gpt2": (12, 12, 64),
    "gpt_neox": (64, 64, 96),
    "gpt_bigcode": (12, 1, 64),
    "falcon_7b": (71, 1, 64),
    "falcon_40b": (128, 8, 64),
    "falcon_rw": (32, 32, 64),
    "internlm2": (32, 8, 128),
    "chatglm": (32, 2, 128),
    "qwen3_moe": (32, 4, 64),
    "deepseek_v2_lite": (16, 16, 192),
    "t5": (8, 8, 64),
    "mt5": (6, 6, 64),
    "whisper": (6, 6, 64),
    "bart": (16, 16, 64),
    "albert": (64, 64, 64),
    "mpt": (16, 16, 128),
    "modernbert": (12, 12, 64),
    "vit": (12, 12, 64),
}


def record(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    return loaded


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    stored = record(name)
    return {tensor: tuple(shape) for tensor, shape in (stored["tensors"] | stored["buffers"]).items()}


def layout_of(name: str) -> Layout:
    return resolve(shapes_of(name), record(name)["config"])


def plain(part: Part) -> tuple[object, ...]:
    """A part as something that compares: arrays of rows become bytes."""
    rows = part.rows.tobytes() if isinstance(part.rows, np.ndarray) else part.rows
    return (
        part.role, part.stack, part.layer, part.expert, part.cross, part.param, part.lead, part.transposed, rows,
    )  # fmt: skip


def table(layout: Layout, *, by: str = "name") -> dict[str, tuple[object, ...]]:
    return {
        getattr(p, by): (tuple(plain(part) for part in p.parts), p.reason, p.stack, p.layer, p.weight, p.canonical)
        for p in layout.placements.values()
    }


# --- every type of the table -----------------------------------------------------------------------------------


def test_every_model_type_of_the_issue_has_data() -> None:
    asked = (
        "llama mistral mixtral qwen qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text gemma3 phi phi3 gpt2 "
        "gpt_neox gptj falcon bloom opt starcoder2 gpt_bigcode stablelm olmo olmo2 cohere cohere2 internlm2 mpt "
        "chatglm deepseek_v2 deepseek_v3 bert roberta xlm-roberta camembert distilbert mpnet albert electra deberta "
        "deberta-v2 modernbert t5 mt5 umt5 bart mbart marian m2m_100 pegasus whisper clip siglip vit llava"
    )
    assert set(asked.split()) <= {record(name)["type"] for name in NAMES}
    assert set(NAMES) == set(LAYERS), "each file has its expected roles below"


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_a_role_or_a_listed_reason(name: str) -> None:
    layout = layout_of(name)
    assert layout.unknown == ()
    assert set(layout.placements) == set(shapes_of(name))
    for placement in layout.placements.values():
        if placement.parts:
            assert placement.reason is None and placement.weight
            assert {part.role for part in placement.parts} <= {*LAYER_ROLES, *GLOBAL_ROLES}
        else:
            assert placement.reason in REASONS or str(placement.reason).startswith("second copy of "), placement


@pytest.mark.parametrize("name", NAMES)
def test_buffers_and_fixed_tables_are_no_weights(name: str) -> None:
    stored = record(name)
    for tensor, placement in layout_of(name).placements.items():
        fixed = placement.reason in {"buffer", "causal mask", "rotary frequencies", "fixed positions"}
        assert placement.weight is not fixed
        assert fixed or tensor not in stored["buffers"]


def layer_roles(layout: Layout, stack: str, layer: int) -> Counter[str]:
    parts = [part for p in layout.placements.values() for part in p.parts if part.param == "weight"]
    return Counter(part.role + "'" * part.cross for part in parts if (part.stack, part.layer) == (stack, layer))


@pytest.mark.parametrize("name", NAMES)
def test_roles_of_a_layer(name: str) -> None:
    layout = layout_of(name)
    last = max(p.layer for p in layout.placements.values() if p.layer is not None and p.stack == layout.main)
    wanted = (word.partition("*") for word in LAYERS[name].split())
    assert layer_roles(layout, layout.main, last) == Counter({role: int(n or 1) for role, _, n in wanted})


@pytest.mark.parametrize("name", NAMES)
def test_each_stack_has_alike_layers(name: str) -> None:
    """No layer of a tower misses what another has (first layers without an MoE or a first norm excepted)."""
    layout = layout_of(name)
    for stack in layout.archs:
        layers = {p.layer for p in layout.placements.values() if p.stack == stack and p.layer is not None}
        assert layers == set(range(len(layers)))
        roles = [layer_roles(layout, stack, layer) for layer in sorted(layers)]
        assert all(r == roles[-1] for r in roles[1:])


@pytest.mark.parametrize("name", NAMES)
def test_parts_cover_their_tensor_once(name: str) -> None:
    shapes = shapes_of(name)
    for tensor, placement in layout_of(name).placements.items():
        if placement.parts:
            sizes = [int(np.prod(part_shape(part, shapes[tensor]))) for part in placement.parts]
            assert sum(sizes) == int(np.prod(shapes[tensor])), tensor
        seen: Counter[tuple[int | None, int]] = Counter()
        for part in placement.parts:
            if part.rows is not None and part.layer in (0, None) and (part.lead or 0) == 0:
                rows = range(*part.rows) if isinstance(part.rows, tuple) else part.rows.tolist()
                seen.update((part.lead, row) for row in rows)
        assert set(seen.values()) <= {1}


@pytest.mark.parametrize("name", NAMES)
def test_biases_go_with_their_weights(name: str) -> None:
    placements = layout_of(name).placements
    for tensor, placement in placements.items():
        weight = placements.get(tensor.removesuffix("bias") + "weight") if tensor.endswith(".bias") else None
        if weight and weight.parts and placement.parts:
            assert [p.role for p in placement.parts] == [p.role for p in weight.parts]
            assert {p.param for p in placement.parts} == {"bias"} and {p.param for p in weight.parts} == {"weight"}


@pytest.mark.parametrize("name", NAMES)
def test_widths_and_heads(name: str) -> None:
    layout, config = layout_of(name), record(name)["config"]
    for arch in layout.archs.values():
        assert arch.hidden > 0 and arch.heads > 0 and arch.kv_heads > 0 and arch.head_dim > 0
        assert arch.heads % arch.kv_heads == 0
    if name in HEADS:
        arch = layout.archs[layout.main]
        assert (arch.heads, arch.kv_heads, arch.head_dim) == HEADS[name]
    text = config.get("text_config", config)
    width = next(text[key] for key in ("hidden_size", "d_model", "n_embd", "dim", "encoder_hidden") if key in text)
    assert layout.archs[layout.main].hidden == width


@pytest.mark.parametrize("name", NAMES)
def test_embedding_and_final_norm(name: str) -> None:
    layout = layout_of(name)
    if layout.main == "vision":
        return
    roles = Counter(p.role for q in layout.placements.values() for p in q.parts if p.stack == layout.main)
    assert roles["embed"] == 1
    post = layout.archs[layout.main].norm_place == "post"
    no_gain = record(name)["type"] == "olmo"
    assert bool(roles["norm_final"]) is not (post or no_gain) or name == "opt_350m"


GLOBALS = {
    "llama": "embed head norm_final",
    "gpt2": "embed pos head norm_final",
    "bloom": "embed head norm_embed norm_final",
    "opt_350m": "embed embed_map pos head",
    "albert": "embed embed_map pos head norm_embed",
    "electra": "embed embed_map pos norm_embed",
    "deberta": "embed embed_map pos head norm_embed",
    "bert_classifier": "embed pos norm_embed",
    "modernbert": "embed head norm_embed norm_final",
    "t5": "embed head norm_final",
    "bart": "embed pos head norm_embed",
    "mbart": "embed pos head norm_embed norm_final",
    "marian": "embed head",
    "whisper": "embed pos head norm_final",
    "clip": "embed pos norm_final",
    "vit": "pos norm_final",
    "clip_vision_model": "pos norm_embed norm_final",
    "chatglm": "embed head norm_final",
}


@pytest.mark.parametrize("name", GLOBALS)
def test_roles_outside_the_layers(name: str) -> None:
    layout = layout_of(name)
    parts = [part for p in layout.placements.values() for part in p.parts if part.param == "weight"]
    roles = [part.role for part in parts if part.layer is None and part.stack == layout.main]
    assert sorted(roles) == sorted(GLOBALS[name].split())


def test_facts_that_names_do_not_tell() -> None:
    def fact(name: str, field: str) -> object:
        layout = layout_of(name)
        return getattr(layout.archs[layout.main], field)

    assert [fact(n, "norm_offset") for n in ("gemma", "gemma2", "gemma3", "llama")] == [1.0, 1.0, 1.0, 0.0]
    assert [fact(n, "norm_place") for n in ("bert", "olmo2", "mbart", "bart", "opt", "opt_350m")] == [
        "post", "branch_out", "pre", "post", "pre", "post",
    ]  # fmt: skip
    parallel = {"gptj", "falcon_7b", "phi", "cohere", "cohere2", "stablelm_2_12b"}
    assert {name for name in NAMES if fact(name, "parallel")} == parallel
    assert [fact(n, "norm") for n in ("llama", "olmo", "cohere", "mpt", "modernbert", "t5", "bert")] == [
        "rms", "layer", "layer", "layer", "layer", "rms", "layer",
    ]  # fmt: skip
    assert {n for n in NAMES if fact(n, "fixed_positions")} == {
        "marian", "marian_two_vocabularies", "m2m_100", "pegasus",
    }  # fmt: skip
    assert [fact(n, "activation") for n in ("t5", "mt5", "gpt2", "llama")] == ["relu", "gelu_new", "gelu_new", "silu"]
    whisper = layout_of("whisper").archs
    assert (whisper["audio"].fixed_positions, whisper["decoder"].fixed_positions) == (True, False)


def test_multimodal_models_give_their_text_tower() -> None:
    layout = layout_of("llava")
    assert (layout.model_type, layout.main) == ("llama", "decoder")
    assert texts(layout.notes) == ("text tower of llava (llama)", "vision tower kept apart")
    assert set(layout.archs) == {"decoder", "vision"}
    alone = resolve(
        {
            name.replace("model.language_model.", "model."): shape
            for name, shape in shapes_of("llava").items()
            if "language_model" in name or "lm_head" in name
        },
        record("llava")["config"]["text_config"],
    )
    text = {p.canonical for p in layout.placements.values() if p.parts and p.stack == "decoder"}
    assert text == {p.canonical for p in alone.placements.values() if p.parts}


def test_a_flat_multimodal_config_is_said_to_be_one() -> None:
    """Qwen2-VL as first published has the text tower's numbers at the top level."""
    config = record("qwen2_vl")["config"]
    flat = config["text_config"] | {"model_type": "qwen2_vl", "vision_config": config["vision_config"]}
    layout = resolve(shapes_of("qwen2_vl_older"), flat)
    assert texts(layout.notes) == ("text tower of qwen2_vl", "vision tower kept apart")
    assert layout.archs == layout_of("qwen2_vl").archs


def test_one_embedding_under_three_names() -> None:
    whole = layout_of("t5").placements
    assert whole["shared.weight"].parts[0].role == "embed"
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        assert whole[copy].reason == "second copy of shared.weight" and whole[copy].weight
    shapes = {n: s for n, s in shapes_of("t5").items() if not n.startswith(("shared", "lm_head"))}
    config = record("t5")["config"]
    both = resolve(shapes, config).placements
    assert both["decoder.embed_tokens.weight"].parts[0].stack == "decoder"
    assert both["encoder.embed_tokens.weight"].parts[0].stack == "encoder"
    del shapes["decoder.embed_tokens.weight"]
    alone = resolve(shapes, config).placements["encoder.embed_tokens.weight"]
    assert (alone.parts[0].role, alone.parts[0].stack, alone.stack) == ("embed", "decoder", "decoder")


# --- names alone, order, prefixes ------------------------------------------------------------------------------

# Two types share their names, and the config alone tells these apart.
SAME_NAMES = {"marian", "marian_two_vocabularies", "pegasus", "opt_350m", "gpt_bigcode"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAME_NAMES])
def test_without_a_config_the_names_tell_the_roles(name: str) -> None:
    shapes, told = shapes_of(name), layout_of(name)
    guessed = resolve(shapes, {})
    assert guessed.unknown == ()
    assert any("told from the tensor names" in note for note in texts(guessed.notes)) or told.main == "vision"
    for tensor, placement in guessed.placements.items():
        roles = [(p.role, p.stack, p.layer) for p in placement.parts]
        if "unknown number of heads" not in str(placement.reason):
            assert roles == [(p.role, p.stack, p.layer) for p in told.placements[tensor].parts], tensor
        else:
            assert told.placements[tensor].parts[0].rows is not None


@pytest.mark.parametrize("name", NAMES)
def test_order_of_names_does_not_matter(name: str) -> None:
    shapes, config = shapes_of(name), record(name)["config"]
    shuffled = list(shapes.items())
    random.Random(name).shuffle(shuffled)
    first, second = resolve(shapes, config), resolve(dict(shuffled), config)
    assert table(first) == table(second)
    assert list(first.placements) == list(second.placements)
    assert (first.archs, texts(first.notes), first.unknown) == (second.archs, texts(second.notes), second.unknown)


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "model.", "_orig_mod.model."])
@pytest.mark.parametrize("name", NAMES)
def test_wrapper_prefixes_change_nothing(name: str, prefix: str) -> None:
    shapes, config = shapes_of(name), record(name)["config"]
    wrapped = resolve({prefix + tensor: shape for tensor, shape in shapes.items()}, config)
    assert table(wrapped, by="canonical") == table(resolve(shapes, config), by="canonical")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("bert", "bert."), ("roberta", "roberta."), ("distilbert", "distilbert."), ("albert", "albert."),
     ("mpnet", "mpnet."), ("electra", "electra."), ("deberta-v2", "deberta."), ("gpt2", "transformer."),
     ("gpt_neox", "gpt_neox."), ("bloom", "transformer."), ("llama", "model."), ("opt", "model."),
     ("bart", "model."), ("whisper", "model."), ("mpt", "transformer."), ("modernbert", "model."), ("vit", "vit.")],
)  # fmt: skip
def test_the_same_body_without_its_head(name: str, prefix: str) -> None:
    shapes, config = shapes_of(name), record(name)["config"]
    body = {tensor.removeprefix(prefix): shape for tensor, shape in shapes.items() if tensor.startswith(prefix)}
    assert body and len(body) < len(shapes)
    bare, full = table(resolve(body, config), by="canonical"), table(resolve(shapes, config), by="canonical")
    assert bare == {canonical: full[canonical] for canonical in bare}


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2_lite", "deepseek_v3", "bert"])
def test_older_names_give_the_same_canonical_tensors(name: str) -> None:
    def tensors(of: str) -> dict[tuple[object, ...], tuple[int, ...]]:
        shapes = shapes_of(of)
        return {
            plain(part)[:6]: part_shape(part, shapes[p.name])
            for p in layout_of(of).placements.values()
            for part in p.parts
        }

    assert tensors(name) == tensors(f"{name}_older")


def test_gamma_and_beta_are_weight_and_bias() -> None:
    newer, older = layout_of("bert"), layout_of("bert_older")
    assert {p.canonical for p in newer.placements.values()} == {p.canonical for p in older.placements.values()}


# --- what is not known -----------------------------------------------------------------------------------------


def test_an_unknown_scheme_is_unknown_throughout() -> None:
    shapes = {"core.block.pw.weight": (64, 64), "core.norm.weight": (64,), "head.queries": (48, 64), "pooler.x": (3,)}
    layout = resolve(shapes, {"model_type": "fracast"})
    assert set(layout.unknown) == set(shapes) and layout.archs == {}
    assert {p.reason for p in layout.placements.values()} == {"unknown name"}
    assert layout.model_type == "fracast"


def test_an_unknown_name_in_a_known_scheme_is_reported_with_its_layer() -> None:
    shapes = shapes_of("llama") | {"model.layers.1.self_attn.novelty.weight": (8, 8)}
    layout = resolve(shapes, record("llama")["config"])
    assert layout.unknown == ("model.layers.1.self_attn.novelty.weight",)
    assert layout.placements[layout.unknown[0]].layer == 1


def test_a_config_that_lies_about_its_type_is_overruled_by_the_names() -> None:
    layout = resolve(shapes_of("bert"), record("bert")["config"] | {"model_type": "llama"})
    assert layout.unknown == () and layout.main == "encoder"
    assert layout.archs["encoder"].norm_place == "post"
    assert "config says llama" in texts(layout.notes)[0]


def test_companions_of_quantized_weights_and_adapters_have_reasons() -> None:
    shapes = shapes_of("llama")
    at = "model.layers.0.self_attn.q_proj"
    extra = {
        f"{at}.weight_scale_inv": (32, 32), f"{at}.qweight": (512, 4096), f"{at}.g_idx": (4096,),
        f"{at}.lora_A.weight": (8, 4096), f"{at}.lora_B.weight": (4096, 8),
    }  # fmt: skip
    placements = resolve(shapes | extra, record("llama")["config"]).placements
    assert [placements[name].reason for name in extra] == [
        "quantization scale", "packed quantized weight", "quantization table", "LoRA adapter", "LoRA adapter",
    ]  # fmt: skip
    assert {placements[name].layer for name in extra} == {0}


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"n_head": 7}, "does not fit 7 heads of ?"), ({"n_head": 12, "head_dim": 60}, "does not fit 12 heads of 60")],
)
def test_a_fused_shape_that_does_not_fit_has_a_reason(config: dict[str, int], reason: str) -> None:
    shapes = {n: s for n, s in shapes_of("gpt2").items() if "cross" not in n}
    layout = resolve(shapes, {"model_type": "gpt2"} | config)
    placement = layout.placements["transformer.h.0.attn.c_attn.weight"]
    assert placement.parts == () and reason in str(placement.reason) and "(768, 2304)" in str(placement.reason)
    assert placement.layer == 0 and placement.weight


def test_heads_that_do_not_fit_the_queries_are_zero_and_noted() -> None:
    layout = resolve(shapes_of("llama"), record("llama")["config"] | {"num_attention_heads": 33, "head_dim": 128})
    assert layout.archs["decoder"].heads == 0
    assert texts(layout.notes) == ("decoder: config says 33 heads of 128, the queries have 4096 rows",)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("llama", "model.layers.0.self_attn.q_proj.weight"), ("llama", "model.embed_tokens.weight"),
     ("mixtral", "model.layers.0.mlp.experts.down_proj"), ("gpt2", "transformer.h.0.ln_1.weight")],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (0, 4096), (4096, 0), (2, 2, 2, 2), (10**5000, 4, 4, 4, 4)])
def test_a_shape_of_the_wrong_rank_has_a_reason(name: str, tensor: str, shape: tuple[int, ...]) -> None:
    placement = resolve(shapes_of(name) | {tensor: shape}, record(name)["config"]).placements[tensor]
    assert placement.parts == () and "does not fit" in str(placement.reason)


def test_a_stack_of_absurdly_many_experts_is_not_unrolled() -> None:
    shapes = shapes_of("mixtral") | {"model.layers.0.mlp.experts.gate_up_proj": (10**9, 2, 1)}
    placement = resolve(shapes, record("mixtral")["config"]).placements["model.layers.0.mlp.experts.gate_up_proj"]
    assert placement.parts == ()


def test_a_tensor_under_two_wrappers_counts_once() -> None:
    shapes = shapes_of("llama")
    shapes["embed_tokens.weight"] = shapes["model.embed_tokens.weight"]
    placements = resolve(shapes, record("llama")["config"]).placements
    assert sum(bool(placements[n].parts) for n in ("embed_tokens.weight", "model.embed_tokens.weight")) == 1
    assert len({p.canonical for p in placements.values()}) == len(placements)


# --- heads under all their names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [("gpt2", {"n_head": 12}), ("gpt2", {"num_attention_heads": 12}), ("bloom", {"n_head": 16}),
     ("bloom", {"num_attention_heads": 16}), ("mpt", {"n_heads": 16}), ("gpt_neo", {"num_heads": 16}),
     ("distilbert", {"n_heads": 12}), ("bart", {"encoder_attention_heads": 16, "decoder_attention_heads": 16}),
     ("falcon_40b", {"n_head": 128, "n_head_kv": 8, "new_decoder_architecture": True}),
     ("falcon_7b", {"n_head": 71, "multi_query": True}), ("falcon_rw", {"n_head": 32, "multi_query": False}),
     ("t5", {"num_heads": 8, "d_kv": 64}), ("gptj", {"n_head": 16}), ("qwen", {"num_attention_heads": 32})],
)  # fmt: skip
def test_heads_under_their_other_names(name: str, config: dict[str, Any]) -> None:
    layout = resolve(shapes_of(name), {"model_type": record(name)["type"]} | config)
    assert layout.archs == layout_of(name).archs or name in {"bart"}
    assert layout.archs[layout.main].heads == layout_of(name).archs[layout.main].heads


@pytest.mark.parametrize("name", ["falcon_7b", "gpt_bigcode"])
def test_multi_query_is_the_default_of_its_classes(name: str) -> None:
    config = {"model_type": record(name)["type"], "num_attention_heads": layout_of(name).archs["decoder"].heads}
    assert resolve(shapes_of(name), config).archs["decoder"].kv_heads == 1


def test_class_defaults_hold_for_nested_configs_that_store_differences() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}}
    arch = resolve(shapes_of("llava"), config).archs["decoder"]
    assert (arch.heads, arch.head_dim) == (32, 128)


def test_every_scheme_and_kind_is_complete() -> None:
    assert {kind.scheme for kind in KINDS.values()} == set(SCHEMES)
    assert all(SCHEMES[KINDS[scheme.default].scheme] is scheme for scheme in SCHEMES.values())


# --- fused tensors ---------------------------------------------------------------------------------------------
# Each function reads the output of the fused layer as the published forward() does: y is (batch, rows); the answer
# is (batch, heads * width) per part. Written from the forward passes, without a look at names.py.

Split = tuple[F32, ...]


def by_head(y: F32, heads: int, dim: int) -> Split:
    """GPT-NeoX, BLOOM, Falcon-RW, DeBERTa: view(batch, heads, 3, dim)."""
    fused = y.reshape(len(y), heads, 3, dim)
    return tuple(fused[:, :, i].reshape(len(y), -1) for i in range(3))


def multi_query(y: F32, heads: int, dim: int) -> Split:
    """Falcon-7B: view(batch, heads + 2, dim): the last but one is the key, the last the value."""
    fused = y.reshape(len(y), heads + 2, dim)
    return fused[:, :-2].reshape(len(y), -1), fused[:, -2], fused[:, -1]


def by_group(y: F32, heads: int, kv_heads: int, dim: int) -> Split:
    """Falcon-40B, InternLM2: view(batch, key heads, queries per key head + 2, dim)."""
    fused = y.reshape(len(y), kv_heads, heads // kv_heads + 2, dim)
    return tuple(part.reshape(len(y), -1) for part in (fused[:, :, :-2], fused[:, :, -2], fused[:, :, -1]))


def in_turn(y: F32, *sizes: int) -> Split:
    """GPT-2, Phi-3, Qwen-1, MPT, ChatGLM: split(sizes); ModernBERT's view(3, heads, dim) is the same order."""
    return tuple(np.split(y, np.cumsum(sizes)[:-1], axis=1))


def three_first(y: F32, heads: int, dim: int) -> Split:
    """ModernBERT: view(batch, 3, heads, dim).unbind."""
    fused = y.reshape(len(y), 3, heads, dim)
    return tuple(fused[:, i].reshape(len(y), -1) for i in range(3))


def alternate(y: F32) -> Split:
    """GPT-OSS: gate is y[..., ::2], up is y[..., 1::2]."""
    return y[:, ::2], y[:, 1::2]


H, D, W = 6, 4, 24  # heads, head width, residual width
QKV = ("q", "k", "v")
FUSED: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...], Callable[[F32], Split], int]] = {
    # test: (file whose names are used, fused tensor, config, roles, forward, rows)
    "gpt2": ("gpt2", "h.0.attn.c_attn", {"n_head": H}, QKV, lambda y: in_turn(y, W, W, W), 3 * W),
    "gpt_neox": (
        "gpt_neox", "layers.0.attention.query_key_value", {"num_attention_heads": H}, QKV,
        lambda y: by_head(y, H, D), 3 * W,
    ),
    "bloom": (
        "bloom", "h.0.self_attention.query_key_value", {"n_head": H}, QKV, lambda y: by_head(y, H, D), 3 * W,
    ),
    "falcon_multi_query": (
        "falcon_7b", "h.0.self_attention.query_key_value", {"num_attention_heads": H, "multi_query": True}, QKV,
        lambda y: multi_query(y, H, D), (H + 2) * D,
    ),
    "falcon_groups": (
        "falcon_40b", "h.0.self_attention.query_key_value",
        {"num_attention_heads": H, "num_kv_heads": 2, "new_decoder_architecture": True}, QKV,
        lambda y: by_group(y, H, 2, D), (H + 4) * D,
    ),
    "falcon_heads": (
        "falcon_rw", "h.0.self_attention.query_key_value", {"num_attention_heads": H, "multi_query": False}, QKV,
        lambda y: by_head(y, H, D), 3 * W,
    ),
    "phi3": (
        "phi3", "layers.0.self_attn.qkv_proj", {"num_attention_heads": H, "num_key_value_heads": 2}, QKV,
        lambda y: in_turn(y, H * D, 2 * D, 2 * D), (H + 4) * D,
    ),
    "phi3_mlp": (
        "phi3", "layers.0.mlp.gate_up_proj", {"num_attention_heads": H}, ("gate", "up"),
        lambda y: in_turn(y, 40, 40), 80,
    ),
    "qwen": ("qwen", "h.0.attn.c_attn", {"num_attention_heads": H}, QKV, lambda y: in_turn(y, W, W, W), 3 * W),
    "internlm2": (
        "internlm2", "layers.0.attention.wqkv", {"num_attention_heads": H, "num_key_value_heads": 3}, QKV,
        lambda y: by_group(y, H, 3, D), (H + 6) * D,
    ),
    "mpt": ("mpt", "blocks.0.attn.Wqkv", {"n_heads": H}, QKV, lambda y: in_turn(y, W, W, W), 3 * W),
    "mpt_grouped": (
        "mpt", "blocks.0.attn.Wqkv", {"n_heads": H, "attn_config": {"kv_n_heads": 2}}, QKV,
        lambda y: in_turn(y, H * D, 2 * D, 2 * D), (H + 4) * D,
    ),
    "chatglm": (
        "chatglm", "encoder.layers.0.self_attention.query_key_value",
        {"num_attention_heads": H, "kv_channels": D, "multi_query_attention": True, "multi_query_group_num": 2}, QKV,
        lambda y: in_turn(y, H * D, 2 * D, 2 * D), (H + 4) * D,
    ),
    "chatglm_heads": (
        "chatglm", "encoder.layers.0.self_attention.query_key_value", {"num_attention_heads": H, "kv_channels": D},
        QKV, lambda y: by_head(y, H, D), 3 * W,
    ),
    "chatglm_mlp": (
        "chatglm", "encoder.layers.0.mlp.dense_h_to_4h", {"num_attention_heads": H}, ("gate", "up"),
        lambda y: in_turn(y, 40, 40), 80,
    ),
    "modernbert": (
        "modernbert", "layers.0.attn.Wqkv", {"num_attention_heads": H}, QKV, lambda y: three_first(y, H, D), 3 * W,
    ),
    "modernbert_mlp": (
        "modernbert", "layers.0.mlp.Wi", {"num_attention_heads": H}, ("gate", "up"), lambda y: in_turn(y, 40, 40), 80,
    ),
    "bigcode_multi_query": (
        "gpt_bigcode", "h.0.attn.c_attn", {"n_head": H, "multi_query": True}, QKV,
        lambda y: in_turn(y, W, D, D), W + 2 * D,
    ),
    "bigcode_heads": (
        "gpt_bigcode", "h.0.attn.c_attn", {"n_head": H, "multi_query": False}, QKV, lambda y: by_head(y, H, D), 3 * W,
    ),
    "deberta": (
        "deberta", "encoder.layer.0.attention.self.in_proj", {"num_attention_heads": H}, QKV,
        lambda y: by_head(y, H, D), 3 * W,
    ),
    "baichuan": (
        "baichuan", "layers.0.self_attn.W_pack", {"num_attention_heads": H}, QKV, lambda y: in_turn(y, W, W, W), 3 * W,
    ),
}  # fmt: skip


def extract(part: Part, stored: F32) -> F32:
    core = stored[part.lead] if part.lead is not None else stored
    core = core.T if part.transposed else core
    if part.rows is None:
        return core
    return core[slice(*part.rows)] if isinstance(part.rows, tuple) else core[part.rows]


def fuse(parts: Mapping[str, F32], forward: Callable[[F32], Split], rows: int) -> F32:
    """The fused matrix that forward() takes apart into these parts: it tells where it looks for each of their rows."""
    where = forward(np.arange(rows, dtype=np.float32)[None])
    fused = np.full((rows, *next(iter(parts.values())).shape[1:]), np.nan, np.float32)
    for part, places in zip(parts.values(), where, strict=True):
        fused[places[0].astype(np.int64)] = part
    assert not np.isnan(fused).any()
    return fused


@pytest.mark.parametrize("param", ["weight", "bias"])
@pytest.mark.parametrize("layout_name", FUSED)
def test_fused_tensors_split_as_forward_reads_them(layout_name: str, param: str) -> None:
    name, tensor, config, roles, forward, rows = FUSED[layout_name]
    sizes = [part.shape[1] for part in forward(np.zeros((1, rows), np.float32))]
    rng = np.random.default_rng(len(layout_name))
    width = (W,) if param == "weight" else ()
    unfused = {role: rng.standard_normal((n, *width), np.float32) for role, n in zip(roles, sizes, strict=True)}
    stored = fuse(unfused, forward, rows)
    if layout_name == "gpt2" and param == "weight":
        stored = np.ascontiguousarray(stored.T)  # Conv1D: y = x W
    whole = next(n for n in shapes_of(name) if n.endswith(f"{tensor}.weight")).removesuffix("weight") + param
    config = {"model_type": record(name)["type"]} | config
    placement = resolve(shapes_of(name) | {whole: stored.shape}, config).placements[whole]
    assert [part.role for part in placement.parts] == list(roles), placement.reason
    assert {part.param for part in placement.parts} == {param}
    for part in placement.parts:
        np.testing.assert_array_equal(extract(part, stored), unfused[part.role])
        assert extract(part, stored).shape == part_shape(part, stored.shape)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_stacked_experts_split_as_forward_reads_them(name: str) -> None:
    rng = np.random.default_rng(3)
    gate, up = rng.standard_normal((2, 8, 40, W), np.float32)
    down = rng.standard_normal((8, W, 40), np.float32)
    if name == "mixtral":  # linear(x, W[e]).chunk(2)
        both = np.concatenate([gate, up], axis=1)
    else:  # x @ W[e], then [..., ::2] and [..., 1::2]; down is x @ W[e] too
        both = np.stack([fuse({"gate": g, "up": u}, alternate, 80).T for g, u in zip(gate, up, strict=True)])
        down = down.transpose(0, 2, 1)
    at = "model.layers.0.mlp.experts."
    shapes = shapes_of(name) | {at + "gate_up_proj": both.shape, at + "down_proj": down.shape}
    placements = resolve(shapes, record(name)["config"]).placements
    assert Counter(p.role for p in placements[at + "gate_up_proj"].parts) == {"gate": 8, "up": 8}
    for part in placements[at + "gate_up_proj"].parts:
        truth = {"gate": gate, "up": up}[part.role]
        np.testing.assert_array_equal(extract(part, both), truth[part.expert])
    for part in placements[at + "down_proj"].parts:
        assert extract(part, down).shape == (W, 40)
        np.testing.assert_array_equal(
            extract(part, down), down[part.expert] if name == "mixtral" else down[part.expert].T
        )


def test_qwen_w2_is_the_gate_and_internlm2_w1() -> None:
    qwen, internlm = layout_of("qwen").placements, layout_of("internlm2").placements
    assert [qwen[f"transformer.h.0.mlp.{w}.weight"].parts[0].role for w in ("w1", "w2")] == ["up", "gate"]
    at = "model.layers.0.feed_forward"
    assert [internlm[f"{at}.{w}.weight"].parts[0].role for w in ("w1", "w2", "w3")] == ["gate", "down", "up"]


# --- hostile input ---------------------------------------------------------------------------------------------

SEGMENTS = sorted({s for name in NAMES for tensor in shapes_of(name) for s in tensor.split(".")})
KEYS = sorted(
    "model_type num_attention_heads n_head num_heads num_key_value_heads n_head_kv multi_query head_dim d_kv "
    "new_decoder_architecture multi_query_attention multi_query_group_num kv_channels attn_config text_config "
    "vision_config audio_config hidden_act activation_function qk_nope_head_dim do_layer_norm_before "
    "num_hidden_layers decoder_attention_heads feed_forward_proj sinusoidal_pos_embds".split()
)
segments = st.one_of(st.sampled_from(SEGMENTS), st.text(max_size=4), st.sampled_from(["²", "9" * 5000, "-1", ""]))
names = st.one_of(
    st.lists(segments, max_size=7).map(".".join),
    st.sampled_from([tensor for name in NAMES[::5] for tensor in shapes_of(name)]),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(1, 64), st.floats(), st.text(max_size=5),
    st.sampled_from(sorted(KINDS)), st.lists(st.integers(), max_size=2), st.just(10**400),
)  # fmt: skip
configs = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), scalars, max_size=8),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), st.one_of(scalars, inner), max_size=8),
    max_leaves=3,
)
dims = st.one_of(st.integers(-3, 200), st.sampled_from([64, 192, 2304, 2**40, 10**30, 10**5000]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, st.lists(dims, max_size=4).map(tuple), max_size=25), configs)
def test_hostile_names_shapes_and_configs_never_raise(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any]
) -> None:
    layout = resolve(shapes, config)
    assert list(layout.placements) == sorted(shapes)
    assert set(layout.unknown) <= set(shapes)
    for placement in layout.placements.values():
        assert bool(placement.parts) != bool(placement.reason)
        for part in placement.parts:
            assert all(size > 0 for size in part_shape(part, shapes[placement.name]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NAMES), configs, st.data())
def test_real_names_with_hostile_configs_never_raise(name: str, config: dict[str, Any], data: st.DataObject) -> None:
    shapes = shapes_of(name)
    tensor = data.draw(st.sampled_from(sorted(shapes)))
    shapes[tensor] = data.draw(st.lists(dims, max_size=4).map(tuple))
    layout = resolve(shapes, record(name)["config"] | config)
    assert set(layout.placements) == set(shapes)
    claims = Counter(
        (p.role, p.stack, p.layer, p.expert, p.cross, p.param) for q in layout.placements.values() for p in q.parts
    )
    assert set(claims.values()) <= {1}, "one stored tensor for each canonical tensor"
