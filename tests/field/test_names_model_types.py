"""All model types of transformers 5.5: the table that users read, norms as measured, fused tensors whole."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from build_index import model_types
from build_index.model_types import NOT_BUILT, REASONS, TABLE, Coverage
from provindex.roles.names import GLOBAL_ROLES, LAYER_ROLES, LIN_ROLES, SSM_ROLES, Layout, Placement, part_shape

STACKS = ("decoder", "encoder")
INSIDE = ("norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out", "norm_q", "norm_k")


@cache
def records() -> dict[str, dict[str, Any]]:
    return {name: record for name, record in model_types.types().items() if "class" in record}


@cache
def layouts() -> dict[str, Layout]:
    return {name: model_types.layout_of(record) for name, record in records().items()}


@cache
def coverages() -> dict[str, Coverage]:
    return {name: model_types.coverage(name, record, layouts()[name]) for name, record in records().items()}


def place(model_type: str, name: str) -> Placement:
    """A tensor of a type by its stored name; "{l}" stands for the first layer that has it."""
    found = [f"{name.replace('{l}', str(i))}" for i in range(64)]
    return next(p for n in found if (p := layouts()[model_type].placements.get(n)) is not None)


def test_the_table_says_what_the_resolver_does() -> None:
    assert TABLE.read_text(encoding="utf-8") == model_types.markdown([*coverages().values()]), (
        "python -m build_index.model_types"
    )


def test_every_type_has_roles_or_a_reason() -> None:
    found = coverages()
    assert len(found) >= 464 and len(model_types.types()) == 499
    assert [name for name, one in found.items() if not model_types.passes(one) and not model_types.reason(one)] == []
    assert sum(map(model_types.passes, found.values())) >= 294
    assert set(REASONS) <= set(found) and not {name for name in REASONS if model_types.passes(found[name])}
    assert {name for name, record in model_types.types().items() if "error" in record} >= set(NOT_BUILT)


ASKED = (  # text towers that had no roles at all, or few
    "llama4 llama4_text lfm2 lfm2_moe mamba mamba2 falcon_mamba falcon_h1 jamba bamba zamba nemotron_h granitemoe "
    "granitemoehybrid granitemoeshared recurrent_gemma nomic_bert layoutlm rembert dpr jina_embeddings_v3 codegen xglm "
    "qwen3_next qwen3_5 qwen3_5_moe olmo_hybrid minimax aria_text longcat_flash moshi dbrx openai-gpt persimmon xlm "
    "ctrl biogpt t5gemma t5gemma2 longt5 switch_transformers nllb-moe prophetnet seamless_m4t esm cpmant dia moonshine"
)


@pytest.mark.parametrize("name", ASKED.split())
def test_roles_of_the_text_tower(name: str) -> None:
    found = coverages()[name]
    assert found.text is not None and found.text >= 0.95 and found.named >= 0.99
    assert layouts()[name].model_type and not any(n.code.name == "SCHEME_GUESSED" for n in layouts()[name].notes)


def test_roles_of_tensors_are_roles_and_cover_them_once() -> None:
    known = {*LAYER_ROLES, *GLOBAL_ROLES, *SSM_ROLES, *LIN_ROLES}
    for name, layout in layouts().items():
        shapes = {tensor: tuple(shape) for tensor, shape, *_ in records()[name]["tensors"]}
        claims: Counter[object] = Counter()
        for placement in layout.placements.values():
            assert {part.role for part in placement.parts} <= known
            sizes = [int(np.prod(part_shape(part, shapes[placement.name]))) for part in placement.parts]
            assert not sizes or sum(sizes) == int(np.prod(shapes[placement.name])), (name, placement.name)
            claims.update((p.role, p.stack, p.layer, p.expert, p.cross, p.param) for p in placement.parts)
        assert set(claims.values()) <= {1}, name


def test_norms_are_what_they_were_measured_to_be() -> None:
    """Of every norm inside of a text tower: LayerNorm or RMSNorm, and whether one is added to its gain."""
    wrong = []
    for name, record in records().items():
        layout = layouts()[name]
        for tensor, _, _, *norm in record["tensors"]:
            parts = layout.placements[tensor].parts
            if not norm or not parts or parts[0].role not in INSIDE or parts[0].stack not in STACKS:
                continue
            kind, _, added = norm[0].partition("+")
            arch = layout.archs[parts[0].stack]
            of_head = parts[0].role in ("norm_q", "norm_k")
            if arch.norm_offset != float(added or 0) or (arch.norm != kind and not of_head):
                wrong.append((name, tensor, norm[0], arch.norm, arch.norm_offset))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "offset"),
    [("qwen3_next", 1.0), ("qwen3_5", 1.0), ("qwen3_5_moe", 1.0), ("gemma4", 0.0), ("gemma3n_text", 0.0),
     ("olmo_hybrid", 0.0), ("vaultgemma", 1.0), ("t5gemma2", 1.0), ("recurrent_gemma", 1.0), ("gemma3", 1.0)],
)  # fmt: skip
def test_norm_offsets(name: str, offset: float) -> None:
    layout = layouts()[name]
    assert layout.archs[layout.main].norm_offset == offset


@pytest.mark.parametrize(
    ("name", "heads"),
    [("qwen3_next", (16, 2, 256)), ("qwen3_5", (16, 4, 256)), ("mamba2", (0, 0, 0)), ("jamba", (32, 8, 128)),
     ("zamba2", (32, 32, 160)), ("nemotron_h", (32, 8, 128)), ("codegen", (16, 16, 256)), ("xlnet", (16, 16, 64))],
)  # fmt: skip
def test_heads(name: str, heads: tuple[int, int, int]) -> None:
    arch = layouts()[name].archs["decoder"]
    assert (arch.heads, arch.kv_heads, arch.head_dim) == heads


def test_widths_of_stacks_without_attention() -> None:
    found = {name: layouts()[name].archs["decoder"] for name in ("mamba", "mamba2", "zamba", "lfm2", "rwkv")}
    assert {name: arch.hidden for name, arch in found.items()} == {
        "mamba": 768, "mamba2": 4096, "zamba": 3712, "lfm2": 2560, "rwkv": 4096,
    }  # fmt: skip
    assert {name: arch.channels for name, arch in found.items()} == {
        "mamba": 0, "mamba2": 64, "zamba": 0, "lfm2": 0, "rwkv": 0,
    }  # fmt: skip


def test_layers_of_olmo_hybrid_have_their_norms_where_the_forward_pass_has_them() -> None:
    """Layers with linear attention read normed states; the others norm what they write. One name stands for both."""
    layout, at = layouts()["olmo_hybrid"], "model.layers.{}.post_attention_layernorm.weight"
    linear = {p.layer for p in layout.placements.values() if p.parts and p.parts[0].role == "lin_v"}
    for layer in {p.layer for p in layout.placements.values() if p.layer is not None}:
        role = layout.placements[at.format(layer)].parts[0].role
        assert role == ("norm_mlp" if layer in linear else "norm_attn_out")
    assert len(linear) == 2


def test_attention_beside_images_and_speech_is_kept_apart() -> None:
    layout = layouts()["phi4_multimodal"]
    image = "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.self_attn.q_proj.weight"
    assert layout.placements[image].parts[0].stack == "vision"
    assert {p.stack for p in layout.placements.values()} == {"decoder", "vision", "audio"}
    omni = layouts()["qwen2_5_omni"].placements
    assert {p.reason for n, p in omni.items() if n.startswith("talker.")} == {"speech generator"}
    assert all(p.parts for n, p in omni.items() if n.startswith("thinker.model.layers."))


@pytest.mark.parametrize(("told", "place"), [({}, "post"), ({"do_stable_layer_norm": True}, "pre")])
def test_speech_models_say_where_their_norms_are(told: dict[str, bool], place: str) -> None:
    record = records()["hubert"]
    shapes = {name: tuple(shape) for name, shape, *_ in record["tensors"]}
    layout = model_types.resolve(shapes, record["config"] | told)
    assert (layout.main, layout.archs["audio"].norm_place) == ("audio", place)


def test_experts_that_are_stored_the_other_way_round() -> None:
    """Published Qwen3-VL-MoE files hold (in, out), models in memory (out, in); the embedding's width tells."""
    record = records()["qwen3_vl_moe"]
    shapes = {name: tuple(shape) for name, shape, *_ in record["tensors"]}
    turned = {n: (s[0], s[2], s[1]) if ".experts." in n else s for n, s in shapes.items()}
    name = next(n for n in shapes if n.endswith("experts.gate_up_proj"))
    for stored, is_turned in ((shapes, False), (turned, True)):
        parts = model_types.resolve(stored, record["config"]).placements[name].parts
        assert {part.transposed for part in parts} == {is_turned}
        assert {part_shape(part, stored[name])[1] for part in parts} == {shapes["model.language_model.norm.weight"][0]}
