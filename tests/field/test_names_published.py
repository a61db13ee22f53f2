"""Names as published files have them, where transformers renames while it loads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from provindex.common.reasons import Code
from provindex.roles.names import Layout, resolve

D, F, V, LAYERS = 32, 48, 100, 2
Shapes = dict[str, tuple[int, ...]]


def layers(prefix: str, shapes: Shapes, outside: Shapes) -> Shapes:
    return outside | {f"{prefix}{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}


NOMIC = layers(
    "bert.encoder.layers.",
    {"attn.Wqkv.weight": (3 * D, D), "attn.out_proj.weight": (D, D), "mlp.fc11.weight": (F, D),
     "mlp.fc12.weight": (F, D), "mlp.fc2.weight": (D, F), "norm1.weight": (D,), "norm1.bias": (D,),
     "norm2.weight": (D,), "norm2.bias": (D,)},
    {"bert.embeddings.word_embeddings.weight": (V, D), "bert.emb_ln.weight": (D,), "bert.emb_ln.bias": (D,)},
)  # fmt: skip
JINA = layers(
    "roberta.encoder.layers.",
    {"mixer.Wqkv.weight": (3 * D, D), "mixer.out_proj.weight": (D, D), "mlp.fc1.weight": (F, D),
     "mlp.fc2.weight": (D, F), "norm1.weight": (D,), "norm2.weight": (D,)},
    {"roberta.embeddings.word_embeddings.weight": (V, D), "roberta.emb_ln.weight": (D,)},
)  # fmt: skip
MIXED = {"mixer.in_proj.weight": (2 * 64 + 16 + 4, D), "mixer.out_proj.weight": (D, 64), "mixer.A_log": (4,),
         "mixer.D": (4,), "mixer.dt_bias": (4,), "mixer.conv1d.weight": (80, 1, 4), "mixer.norm.weight": (64,),
         "norm.weight": (D,)}  # fmt: skip
CODESTRAL = layers("backbone.layers.", MIXED, {"backbone.embedding.weight": (V, D), "backbone.norm_f.weight": (D,)})
NEMOTRON = {
    "backbone.embedding.weight": (V, D), "backbone.norm_f.weight": (D,), "lm_head.weight": (V, D),
    **{f"backbone.layers.0.{name}": shape for name, shape in MIXED.items()},
    "backbone.layers.1.norm.weight": (D,), "backbone.layers.2.norm.weight": (D,),
    **{f"backbone.layers.1.mixer.{n}_proj.weight": (D, D) for n in "qkvo"},
    **{f"backbone.layers.2.mixer.experts.{e}.up_proj.weight": (F, D) for e in range(3)},
    **{f"backbone.layers.2.mixer.experts.{e}.down_proj.weight": (D, F) for e in range(3)},
    "backbone.layers.2.mixer.gate.weight": (3, D),
}  # fmt: skip
QWEN_NEXT = layers(
    "model.layers.",
    {"linear_attn.in_proj_qkvz.weight": (152, D), "linear_attn.in_proj_ba.weight": (8, D), "linear_attn.A_log": (4,),
     "linear_attn.dt_bias": (4,), "linear_attn.norm.weight": (16,), "linear_attn.out_proj.weight": (D, 64),
     "linear_attn.conv1d.weight": (88, 1, 4), "mlp.gate.weight": (2, D), "input_layernorm.weight": (D,),
     "post_attention_layernorm.weight": (D,),
     **{f"mlp.experts.{e}.{n}_proj.weight": (F, D) for e in range(2) for n in ("gate", "up")},
     **{f"mlp.experts.{e}.down_proj.weight": (D, F) for e in range(2)}},
    {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D),
     "mtp.fc.weight": (D, 2 * D), "mtp.layers.0.self_attn.q_proj.weight": (D, D), "mtp.norm.weight": (D,)},
)  # fmt: skip
JAMBA = layers(
    "model.layers.",
    {"mamba.in_proj.weight": (128, D), "mamba.out_proj.weight": (D, 64), "mamba.A_log": (64, 4), "mamba.D": (64,),
     "mamba.x_proj.weight": (11, 64), "mamba.dt_proj.weight": (64, 3), "mamba.dt_proj.bias": (64,),
     "mamba.conv1d.weight": (64, 1, 4), "mamba.b_layernorm.weight": (4,), "input_layernorm.weight": (D,),
     "pre_ff_layernorm.weight": (D,), "feed_forward.router.weight": (2, D),
     **{f"feed_forward.experts.{e}.{n}_proj.weight": (F, D) for e in range(2) for n in ("gate", "up")},
     **{f"feed_forward.experts.{e}.down_proj.weight": (D, F) for e in range(2)}},
    {"model.embed_tokens.weight": (V, D), "model.final_layernorm.weight": (D,), "lm_head.weight": (V, D)},
)  # fmt: skip
LFM2 = layers(
    "model.layers.",
    {"conv.in_proj.weight": (3 * D, D), "conv.out_proj.weight": (D, D), "conv.conv.weight": (D, 1, 3),
     "operator_norm.weight": (D,), "ffn_norm.weight": (D,), "feed_forward.gate.weight": (2, D),
     **{f"feed_forward.experts.{e}.{n}.weight": (F, D) for e in range(2) for n in ("w1", "w3")},
     **{f"feed_forward.experts.{e}.w2.weight": (D, F) for e in range(2)}},
    {"model.embed_tokens.weight": (V, D), "model.embedding_norm.weight": (D,)},
)  # fmt: skip

CASES: dict[str, tuple[Shapes, dict[str, Any], str]] = {
    # test: (shapes, config, roles of the last layer's matrices)
    "nomic_bert": (NOMIC, {"model_type": "nomic_bert", "n_head": 4}, "q k v o gate up down"),
    "jina_v3": (JINA, {"model_type": "xlm-roberta", "num_attention_heads": 4}, "q k v o up down"),
    "codestral_mamba": (CODESTRAL, {}, "ssm_x ssm_z ssm_b ssm_c ssm_dt ssm_conv ssm_out"),
    "nemotron_h": (
        NEMOTRON, {"model_type": "nemotron_h", "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
        "up up up down down down router",
    ),
    "qwen3_next": (
        QWEN_NEXT, {"model_type": "qwen3_next", "linear_num_key_heads": 2},
        "lin_q lin_k lin_v lin_z lin_b lin_a lin_conv lin_out router gate gate up up down down",
    ),
    "jamba": (
        JAMBA, {"model_type": "jamba"},
        "ssm_x ssm_z ssm_rank ssm_b ssm_c ssm_dt ssm_a ssm_conv ssm_out router gate gate up up down down",
    ),
    "lfm2_moe": (
        LFM2, {"model_type": "lfm2_moe"}, "ssm_b ssm_c ssm_x ssm_conv ssm_out router gate gate up up down down",
    ),
}  # fmt: skip


def matrices(layout: Layout, shapes: Shapes) -> Counter[str]:
    """Roles of the matrices of the last layer, however often."""
    last = max(p.layer for p in layout.placements.values() if p.layer is not None and p.reason is None)
    places = [p for p in layout.placements.values() if p.layer == last and len(shapes[p.name]) > 1]
    return Counter(part.role for place in places for part in place.parts)


@pytest.mark.parametrize("case", CASES)
def test_published_names_have_their_roles(case: str) -> None:
    shapes, config, roles = CASES[case]
    layout = resolve(shapes, config)
    assert layout.unknown == ()
    assert matrices(layout, shapes) == Counter(roles.split())
    assert Code.NO_SCHEME not in {note.code for note in layout.notes}


def test_jina_keeps_its_weights_beside_the_adapters_of_its_tasks() -> None:
    """`parametrizations.weight.original` is the weight; what is added for a task stands beside it."""
    inside = ".parametrizations.weight"
    shapes = {name.replace(".weight", f"{inside}.original") if ".Wqkv." in name else name: shape
              for name, shape in JINA.items()}  # fmt: skip
    at = f"roberta.encoder.layers.0.mixer.Wqkv{inside}"
    shapes |= {f"{at}.0.lora_A": (5, 4, D), f"{at}.0.lora_B": (5, 3 * D, 4)}
    layout = resolve(shapes, {"model_type": "xlm-roberta", "num_attention_heads": 4})
    assert [part.role for part in layout.placements[f"{at}.original"].parts] == ["q", "k", "v"]
    assert {layout.placements[f"{at}.0.lora_{x}"].reason for x in "AB"} == {"LoRA adapter"}


def test_nomic_gates_with_the_second_of_two_matrices() -> None:
    """fc11 is what is gated, fc12 goes through the activation."""
    layout = resolve(NOMIC, {"model_type": "nomic_bert", "n_head": 4})
    at = "bert.encoder.layers.0.mlp."
    assert [layout.placements[f"{at}fc1{i}.weight"].parts[0].role for i in (1, 2)] == ["up", "gate"]
    assert (layout.archs["encoder"].norm_place, layout.archs["encoder"].norm) == ("post", "layer")


def test_predicted_tokens_stand_beside_the_text_tower() -> None:
    layout = resolve(QWEN_NEXT, {"model_type": "qwen3_next", "linear_num_key_heads": 2})
    assert {p.reason for n, p in layout.placements.items() if n.startswith("mtp.")} == {"multi-token prediction"}
    assert layout.archs["decoder"].norm_offset == 1.0
