"""Layers without attention: fused tensors split as forward passes read them, and channels stand in for hidden units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint

from provindex.common.reasons import Code
from provindex.common.threads import one_blas_thread
from provindex.evidence.hidden_units import hidden_tests
from provindex.evidence.pairing import Pairing
from provindex.evidence.table import TESTS
from provindex.fingerprint.record import Fingerprint
from provindex.roles.names import Part, part_shape, resolve

F32 = NDArray[np.float32]
Tensors = dict[str, F32]
D, INNER, STATE, HEADS, WIDE = 32, 64, 4, 4, 16  # residual, channels, state, heads, channels of a head
VOCABULARY = 1100

# --- fused tensors ---------------------------------------------------------------------------------------------
# Each function reads y, (batch, rows), as the published forward() does; the answer is one array a role. Written from
# the forward passes, without a look at names.py.

Read = Callable[[F32], dict[str, F32]]


def in_turn(y: F32, **sizes: int) -> dict[str, F32]:
    stops = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(y, stops, axis=1), strict=True))


def zamba(y: F32) -> dict[str, F32]:
    """view(batch, -1, 2).chunk(2, dim=2): a row of x, a row of z, by turns."""
    both = y.reshape(len(y), -1, 2)
    return {"ssm_x": both[..., 0], "ssm_z": both[..., 1]}


def qwen3_next(y: F32) -> dict[str, F32]:
    """view(batch, key heads, 2 * dk + 2 * r * dv), then split([dk, dk, r * dv, r * dv]); 2 key heads, r = 2."""
    fused = y.reshape(len(y), 2, -1)
    q, k, v, z = np.split(fused, np.cumsum([6, 6, 2 * WIDE]), axis=2)
    return {f"lin_{n}": part.reshape(len(y), -1) for n, part in (("q", q), ("k", k), ("v", v), ("z", z))}


def beta_and_decay(y: F32) -> dict[str, F32]:
    fused = y.reshape(len(y), 2, 4)
    return {"lin_b": fused[:, :, :2].reshape(len(y), -1), "lin_a": fused[:, :, 2:].reshape(len(y), -1)}


def query_and_gate(y: F32) -> dict[str, F32]:
    """view(batch, heads, 2 * dim).chunk(2, dim=-1)."""
    q, gate = np.split(y.reshape(len(y), HEADS, -1), 2, axis=2)
    return {"q": q.reshape(len(y), -1), "gate_attn": gate.reshape(len(y), -1)}


def codegen(y: F32) -> dict[str, F32]:
    """reshape(batch, 4, -1), in each of four: query, value, key."""
    q, v, k = np.split(y.reshape(len(y), 4, -1), 3, axis=2)
    return {n: part.reshape(len(y), -1) for n, part in (("q", q), ("k", k), ("v", v))}


def by_head(y: F32) -> dict[str, F32]:
    fused = y.reshape(len(y), HEADS, 3, -1)
    return {n: fused[:, :, i].reshape(len(y), -1) for i, n in enumerate("qkv")}


MAMBA = {"A_log": (INNER, STATE), "D": (INNER,), "out_proj.weight": (D, INNER), "x_proj.weight": (3 + 2 * STATE, INNER)}
MAMBA2 = {"A_log": (HEADS,), "D": (HEADS,), "dt_bias": (HEADS,), "norm.weight": (INNER,), "out_proj.weight": (D, INNER)}
DELTA = {"A_log": (HEADS,), "dt_bias": (HEADS,), "norm.weight": (WIDE,), "out_proj.weight": (D, INNER)}
ATTENTION = {f"{n}_proj.weight": (D, D) for n in "kvo"} | {"q_proj.weight": (2 * D, D)}
PLAIN = {"h.0.ln_1.weight": (D,), "h.0.mlp.fc_in.weight": (9, D), "h.0.mlp.fc_out.weight": (D, 9)}
HEADED = {"num_attention_heads": HEADS, "head_dim": D // HEADS, "linear_num_key_heads": 2}
LAYER = "model.layers.0."
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any], str, Read, int]] = {
    # test: (where, the other tensors there, config, fused tensor, forward, rows)
    "mamba": (
        "backbone.layers.0.mixer.", MAMBA, {"model_type": "mamba"}, "in_proj",
        lambda y: in_turn(y, ssm_x=INNER, ssm_z=INNER), 2 * INNER,
    ),
    "mamba_without_a_config": (
        "backbone.layers.0.mixer.", MAMBA, {}, "in_proj", lambda y: in_turn(y, ssm_x=INNER, ssm_z=INNER), 2 * INNER,
    ),
    "mamba2": (
        "backbone.layers.0.mixer.", MAMBA2, {"model_type": "mamba2"}, "in_proj",
        lambda y: in_turn(y, ssm_z=INNER, ssm_x=INNER, ssm_b=8, ssm_c=8, ssm_dt=HEADS), 2 * INNER + 16 + HEADS,
    ),
    "jamba": (
        LAYER + "mamba.", MAMBA, {"model_type": "jamba"}, "in_proj",
        lambda y: in_turn(y, ssm_x=INNER, ssm_z=INNER), 2 * INNER,
    ),
    "falcon_h1": (
        LAYER + "mamba.", MAMBA2, {"model_type": "falcon_h1"}, "in_proj",
        lambda y: in_turn(y, ssm_z=INNER, ssm_x=INNER, ssm_b=8, ssm_c=8, ssm_dt=HEADS), 2 * INNER + 16 + HEADS,
    ),
    "zamba": (LAYER + "mamba.", {"out_proj.weight": (D, INNER)}, {"model_type": "zamba"}, "in_proj", zamba, 2 * INNER),
    "lfm2": (
        LAYER + "conv.", {"conv.weight": (D, 1, 3), "out_proj.weight": (D, D)}, {"model_type": "lfm2"}, "in_proj",
        lambda y: in_turn(y, ssm_b=D, ssm_c=D, ssm_x=D), 3 * D,
    ),
    "qwen3_next": (
        LAYER + "linear_attn.", DELTA, {"model_type": "qwen3_next", **HEADED}, "in_proj_qkvz", qwen3_next,
        2 * (12 + 4 * WIDE),
    ),
    "qwen3_next_gates": (
        LAYER + "linear_attn.", DELTA, {"model_type": "qwen3_next", **HEADED}, "in_proj_ba", beta_and_decay, 8,
    ),
    "qwen3_next_queries": (
        LAYER + "self_attn.", ATTENTION, {"model_type": "qwen3_next", **HEADED}, "q_proj", query_and_gate, 2 * D,
    ),
    "qwen3_5": (
        LAYER + "linear_attn.", DELTA, {"model_type": "qwen3_5_text", **HEADED}, "in_proj_qkv",
        lambda y: in_turn(y, lin_q=12, lin_k=12, lin_v=INNER), 24 + INNER,
    ),
    "minimax": (LAYER + "self_attn.", {}, {"model_type": "minimax", **HEADED}, "qkv_proj", by_head, 3 * D),
    "persimmon": (LAYER + "self_attn.", {}, {"model_type": "persimmon", **HEADED}, "query_key_value", by_head, 3 * D),
    "codegen": ("transformer.h.0.attn.", {}, {"model_type": "codegen", "n_head": HEADS}, "qkv_proj", codegen, 3 * D),
}  # fmt: skip


def beside(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Enough tensors of a layer for its scheme to be known."""
    kind = str(config.get("model_type", "mamba"))
    if kind == "codegen":
        return {"transformer." + name: shape for name, shape in PLAIN.items()}
    if kind.startswith("mamba"):
        return {"backbone.embeddings.weight": (50, D), "backbone.layers.0.norm.weight": (D,)}
    return {"model.embed_tokens.weight": (50, D), "model.layers.0.input_layernorm.weight": (D,)}


def taken(part: Part, stored: F32) -> F32:
    if part.rows is None:
        return stored
    return stored[slice(*part.rows)] if isinstance(part.rows, tuple) else stored[part.rows]


@pytest.mark.parametrize("case", CASES)
def test_fused_tensors_split_as_forward_reads_them(case: str) -> None:
    where, others, config, fused, forward, rows = CASES[case]
    name = f"{where}{fused}.weight"
    shapes = {where + n: shape for n, shape in others.items()} | beside(config) | {name: (rows, D)}
    parts = resolve(shapes, config).placements[name].parts
    stored = np.arange(rows, dtype=np.float32)[:, None] * np.ones((1, D), np.float32)
    wanted = forward(np.arange(rows, dtype=np.float32)[None])
    assert {part.role for part in parts} == set(wanted)
    for part in parts:
        np.testing.assert_array_equal(taken(part, stored)[:, 0], wanted[part.role][0])
        assert part_shape(part, (rows, D)) == (wanted[part.role].shape[1], D)


def test_what_a_mixer_does_not_tell_is_not_guessed() -> None:
    """A size too many, a config without key heads: then the tensor has a reason and no role."""
    where, others, config, fused, _, rows = CASES["mamba2"]
    shapes = {where + n: shape for n, shape in others.items()} | beside(config)
    odd = resolve(shapes | {f"{where}{fused}.weight": (rows + 1, D)}, config).placements[f"{where}{fused}.weight"]
    assert odd.parts == () and "does not fit the sizes of its mixer" in str(odd.reason)
    where, others, _, fused, _, rows = CASES["qwen3_next"]
    shapes = {where + n: shape for n, shape in others.items()} | beside({}) | {f"{where}{fused}.weight": (rows, D)}
    told = resolve(shapes, {"model_type": "qwen3_next"}).placements[f"{where}{fused}.weight"]
    assert told.parts == () and "unknown number of key heads" in str(told.reason)


def test_xlnets_heads_lie_on_axes_of_their_own() -> None:
    """(in, heads, width) of q, (out, heads, width) of o: einsum("ibh,hnd->ibnd") and einsum("ibnd,hnd->ibh")."""
    at = "transformer.layer.0."
    shapes = {f"{at}rel_attn.{n}": (D, HEADS, 8) for n in "qkvor"} | {f"{at}rel_attn.layer_norm.weight": (D,)}
    shapes |= {"transformer.word_embedding.weight": (50, D), f"{at}ff.layer_1.weight": (9, D)}
    placements = resolve(shapes, {"model_type": "xlnet", "n_head": HEADS}).placements
    q, o = placements[f"{at}rel_attn.q"].parts[0], placements[f"{at}rel_attn.o"].parts[0]
    assert (q.role, q.transposed, o.role, o.transposed) == ("q", True, "o", False)
    assert part_shape(q, (D, HEADS, 8)) == part_shape(o, (D, HEADS, 8)) == (32, D)


# --- channels as hidden units ----------------------------------------------------------------------------------


def state_space(seed: int, *, heads: bool) -> zoo.Checkpoint:
    """A generated Mamba (2, with heads)."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> F32:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    tensors: Tensors = {"backbone.embeddings.weight": matrix(VOCABULARY, D), "backbone.norm_f.weight": np.ones(D, "f4")}
    for i in range(3):
        at = f"backbone.layers.{i}."
        mixer = {"out_proj.weight": matrix(D, INNER), "D": matrix(HEADS if heads else INNER)}
        if heads:
            mixer |= {"in_proj.weight": matrix(2 * INNER + 16 + HEADS, D), "A_log": matrix(HEADS)}
            mixer |= {"norm.weight": np.ones(INNER, "f4"), "dt_bias": matrix(HEADS)}
            mixer |= {"conv1d.weight": matrix(INNER + 16, 1, 4)}
        else:
            mixer |= {"in_proj.weight": matrix(2 * INNER, D), "A_log": matrix(INNER, STATE)}
            mixer |= {"x_proj.weight": matrix(3 + 2 * STATE, INNER), "dt_proj.weight": matrix(INNER, 3)}
            mixer |= {"conv1d.weight": matrix(INNER, 1, 4)}
        tensors |= {f"{at}mixer.{n}": value for n, value in mixer.items()}
        tensors[at + "norm.weight"] = 1 + matrix(D) / 10
    return zoo.Checkpoint({"model_type": "mamba2" if heads else "mamba"}, tensors)


def permuted(model: zoo.Checkpoint, seed: int, *, heads: bool) -> zoo.Checkpoint:
    """A copy whose channels have another order, within their heads if there are any, as far as the panels look."""
    rng, tensors = np.random.default_rng(seed), dict(model.tensors)
    for i in range(3):
        at = f"backbone.layers.{i}.mixer."
        order = np.concatenate([h * WIDE + rng.permutation(WIDE) for h in range(HEADS)]) if heads else None
        order = rng.permutation(INNER) if order is None else order
        both = np.concatenate([order, INNER + order, np.arange(2 * INNER, len(tensors[at + "in_proj.weight"]))])
        tensors[at + "in_proj.weight"] = tensors[at + "in_proj.weight"][both]
        tensors[at + "out_proj.weight"] = tensors[at + "out_proj.weight"][:, order]
    return model.with_tensors(tensors)


def outcome(name: str, a: Fingerprint, b: Fingerprint) -> tuple[float, float]:
    test = next(test for test in TESTS if test.name == name)
    with one_blas_thread():
        found = test.run(Pairing(a, b, frozenset({"decoder"})))
    return float(found.value or 0.0), float(found.log10_p or 0.0)


@pytest.fixture(scope="module", params=[False, True], ids=["mamba", "mamba2"])
def family(request: pytest.FixtureRequest) -> tuple[bool, Fingerprint, Fingerprint, Fingerprint, Fingerprint]:
    heads = request.param
    model = state_space(1, heads=heads)
    noisy = model.with_tensors(
        {n: v + np.random.default_rng(3).standard_normal(v.shape, np.float32) * v.std() / 20 * (v.ndim == 2)
         for n, v in model.tensors.items()}
    )  # fmt: skip
    others = (noisy, permuted(model, 2, heads=heads), state_space(9, heads=heads))
    return heads, fingerprint(model), *(fingerprint(one) for one in others)  # type: ignore[return-value]


def test_a_state_space_model_has_panels_of_its_channels(family: Any) -> None:
    heads, model, *_ = family
    assert {key.kind for key in model.hidden.keys} == {"mlp"}
    assert {key.group for key in model.hidden.keys} == {WIDE if heads else 0}, "within a head, where there are heads"
    whole = model.value("whole_layers")
    assert whole.parts == 3 and whole.heights.tolist() == [INNER] * 3
    assert model.neurons is not None and model.sketches_by_id is not None


def test_a_copy_with_noise_is_found_by_the_exact_tests(family: Any) -> None:
    _, model, noisy, _, _ = family
    assert outcome("hidden_fixed_points", model, noisy)[0] == 1.0
    assert outcome("hidden_fixed_points", model, noisy)[1] < -50
    assert outcome("hidden_alignment", model, noisy)[1] < -20


def test_a_copy_with_permuted_channels_is_found_by_their_signs(family: Any) -> None:
    _, model, _, moved, _ = family
    assert outcome("hidden_fixed_points", model, moved)[1] == 0.0
    for name in ("neuron_signs", "triple_agreement", "neuron_invariants"):
        assert outcome(name, model, moved)[0] > 0.99, name
        assert outcome(name, model, moved)[1] < -50, name
    assert outcome("branch_sketch", model, moved)[0] > 0.99


def test_strangers_are_not_found(family: Any) -> None:
    _, model, _, _, stranger = family
    found = {name: outcome(name, model, stranger) for name in ("hidden_fixed_points", "hidden_alignment")}
    assert all(log10_p > -3 for _, log10_p in found.values())
    assert outcome("neuron_signs", model, stranger)[0] < 0.1


def test_heads_are_blocks_of_their_own() -> None:
    """One head of four in its place: within heads these units stand where they stood, and only these count."""
    model = state_space(1, heads=True)
    moved = permuted(model, 2, heads=True)
    tensors = dict(moved.tensors)
    for name, value in model.tensors.items():
        if name.endswith("in_proj.weight"):
            tensors[name] = tensors[name].copy()
            for first in (0, INNER):
                tensors[name][first : first + WIDE] = value[first : first + WIDE]
    found = hidden_tests(fingerprint(model).hidden, fingerprint(model.with_tensors(tensors)).hidden)
    assert found.fixed.n == 3 * INNER and found.fixed.value is not None
    assert 0.25 <= found.fixed.value < 0.4


def test_a_map_of_embeddings_of_another_width_is_said_to_be_one() -> None:
    """MobileBERT maps three embeddings at once; a file may have any shape there."""
    model = zoo.bert(0)
    odd = {"embeddings_project.weight": np.ones((model.config["hidden_size"], 33), np.float32)}
    made = fingerprint(model.with_tensors({**model.tensors, **odd}))
    assert made.residual is None and made.absences["residual"].code is Code.EMBEDDING_OTHER_WIDTH


def test_a_model_with_mlps_keeps_them_as_its_units() -> None:
    """Mixers beside MLPs have roles of their own, and the units are the MLPs'."""
    rng = np.random.default_rng(5)
    tensors: Tensors = {"model.embed_tokens.weight": rng.standard_normal((VOCABULARY, D), np.float32)}
    for name, shape in {f"mamba.{n}": s for n, s in MAMBA2.items()}.items():
        tensors[LAYER + name] = rng.standard_normal(shape, np.float32)
    tensors[LAYER + "mamba.in_proj.weight"] = rng.standard_normal((2 * INNER + 16 + HEADS, D), np.float32)
    tensors[LAYER + "input_layernorm.weight"] = np.ones(D, np.float32)
    for role, shape in (("gate", (40, D)), ("up", (40, D)), ("down", (D, 40))):
        tensors[f"{LAYER}feed_forward.{role}_proj.weight"] = rng.standard_normal(shape, np.float32)
    made = fingerprint(zoo.Checkpoint({"model_type": "bamba"}, tensors))
    assert made.hidden is not None and [key.group for key in made.hidden.keys] == [0]
    whole = made.value("whole_layers")
    assert whole is not None and whole.heights.tolist() == [40]
