"""What leaves a model's function unchanged leaves its hidden panels unchanged; fused and plain layouts are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint, in_memory

from provindex.evidence import panels
from provindex.fingerprint.rows import to_row
from provindex.formats.tensors import tensor_from_array
from provindex.roles import canonical, weights
from provindex.roles.canonical import PartKey
from provindex.roles.names import Arch, Part, resolve

Array = NDArray[np.float32]
Tensors = dict[str, Array]


def hidden(checkpoint: zoo.Checkpoint) -> dict[panels.PanelKey, NDArray[np.float64]]:
    found = fingerprint(checkpoint).hidden
    assert found is not None
    return {k: v[:n].astype(float) for k, v, n in zip(found.keys, found.values, found.heights, strict=True)}


def same_panels(a: zoo.Checkpoint, b: zoo.Checkpoint) -> None:
    """Equal up to the rounding of float16, which the change of scale may turn the other way."""
    one, other = hidden(a), hidden(b)
    assert one.keys() == other.keys() and len(one) >= 2
    for key, panel in one.items():
        assert np.abs(panel - other[key]).max() < 1e-3, key


# ---- transforms that leave the function unchanged -------------------------------------------------------------


def fold_gain(model: zoo.Checkpoint, offset: float = 0.0) -> zoo.Checkpoint:
    """RMSNorm gains moved into the rows that read them: part of each gain, drawn at random."""
    rng = np.random.default_rng(1)
    tensors = dict(model.tensors)
    for layer in range(model.config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            share = rng.uniform(0.2, 5, model.config["hidden_size"]).astype(np.float32)
            gain = tensors[f"{at}{norm}.weight"]
            tensors[f"{at}{norm}.weight"] = (offset + gain) / share - offset
            for reader in readers:
                tensors[f"{at}{reader}.weight"] = tensors[f"{at}{reader}.weight"] * share
    return model.with_tensors(tensors)


def test_gains_folded_into_their_readers_change_nothing_in_llama() -> None:
    model = zoo.llama(1)
    folded = fold_gain(model)
    tokens = np.random.default_rng(2).integers(0, model.config["vocab_size"], (2, 9))
    assert np.abs(zoo.logits(model, tokens) - zoo.logits(folded, tokens)).max() < 1e-3
    same_panels(model, folded)


def test_gains_folded_into_their_readers_change_nothing_in_gemma() -> None:
    """Gemma's gain is one plus what is stored."""
    llama = zoo.llama(2)
    stored = {n: v - 1 if "norm" in n else v for n, v in llama.tensors.items()}
    model = llama.with_tensors(stored, model_type="gemma", architectures=["GemmaForCausalLM"])
    same_panels(model, llama)
    same_panels(model, fold_gain(model, offset=1.0))


def normalized(x: NDArray[np.float64], gain: Array, bias: Array) -> NDArray[np.float64]:
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / centered.std(axis=-1, keepdims=True) * gain + bias


def test_a_constant_added_to_layernorm_readers_changes_nothing_in_gpt2() -> None:
    model, rng = zoo.gpt2(1), np.random.default_rng(3)
    tensors = dict(model.tensors)
    for layer in range(model.config["n_layer"]):
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            at = f"transformer.h.{layer}."
            gain, bias = (tensors[f"{at}{norm}.{p}"] for p in ("weight", "bias"))
            old = tensors[f"{at}{reader}.weight"]  # stored as (in, out)
            share = rng.uniform(0.5, 2, gain.size).astype(np.float32)
            constant = (10 * old.std() * rng.standard_normal(old.shape[1])).astype(np.float32)
            new = old * share[:, None] + constant / (gain / share)[:, None]
            tensors[f"{at}{norm}.weight"], tensors[f"{at}{norm}.bias"] = gain / share, bias / share
            tensors[f"{at}{reader}.weight"] = new
            x = rng.standard_normal((20, gain.size))
            moved = normalized(x, gain / share, bias / share) @ new - normalized(x, gain, bias) @ old
            assert moved.std(axis=0).max() < 1e-4  # what is left is a constant, which the bias takes up
    same_panels(model, model.with_tensors(tensors))


def test_a_constant_added_to_the_readers_of_a_post_norm_encoder_changes_nothing() -> None:
    """BERT's branches read the norm that closed the branch before; its first reads the embedding's."""
    model, rng = zoo.bert(1), np.random.default_rng(4)
    tensors = dict(model.tensors)
    layer = "bert.encoder.layer.{}."
    for i in range(model.config["num_hidden_layers"]):
        before = layer.format(i - 1) + "output.LayerNorm" if i else "bert.embeddings.LayerNorm"
        for norm, reader in (
            (before, layer.format(i) + "attention.self.value"),
            (layer.format(i) + "attention.output.LayerNorm", layer.format(i) + "intermediate.dense"),
        ):
            gain, bias, old = (tensors[n] for n in (f"{norm}.weight", f"{norm}.bias", f"{reader}.weight"))
            constant = (10 * old.std() * rng.standard_normal(len(old))).astype(np.float32)
            tensors[f"{reader}.weight"] = old + constant[:, None] / gain
            x = normalized(rng.standard_normal((20, gain.size)), gain, bias)
            assert (x @ (tensors[f"{reader}.weight"] - old).T).std(axis=0).max() < 1e-3
    same_panels(model, model.with_tensors(tensors))


def test_a_gain_that_is_not_folded_would_be_seen() -> None:
    """The transforms above are strong enough to tell: without its norm, the reader's panel is another one."""
    model = zoo.llama(1)
    folded = fold_gain(model)
    kept = {n: folded.tensors[n] if "proj" in n else v for n, v in model.tensors.items()}
    with pytest.raises(AssertionError):
        same_panels(model, model.with_tensors(kept))


def test_row_scales_change_nothing() -> None:
    """Unit rows: a hidden unit's scale moves between its readers and writers."""
    model, rng = zoo.llama(3), np.random.default_rng(5)
    scaled = {
        n: v * rng.uniform(0.1, 10, (len(v), 1)).astype(np.float32) if "up_proj" in n or "v_proj" in n else v
        for n, v in model.tensors.items()
    }
    same_panels(model, model.with_tensors(scaled))


# ---- layouts --------------------------------------------------------------------------------------------------


def fused_as_phi3(model: zoo.Checkpoint) -> zoo.Checkpoint:
    tensors = {n: v for n, v in model.tensors.items() if not any(p in n for p in ("q_", "k_", "v_", "gate_", "up_"))}
    for i in range(model.config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for fused, members in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
            module = fused.split(".")[0]
            parts = [model.tensors[f"{at}{module}.{member}_proj.weight"] for member in members]
            tensors[f"{at}{fused}.weight"] = np.concatenate(parts)
    return model.with_tensors(tensors, model_type="phi3", architectures=["Phi3ForCausalLM"])


def test_fused_matrices_give_the_panels_and_blocks_of_plain_ones() -> None:
    model = zoo.llama(4, kv_heads=2)
    plain, fused = (to_row(fingerprint(m)) for m in (model, fused_as_phi3(model)))
    for name in plain:
        if name.startswith(("hidden", "block", "residual")):
            assert np.array_equal(plain[name], fused[name]), name


def test_experts_in_one_stack_give_the_panels_and_blocks_of_single_ones() -> None:
    rng, d, f, experts = np.random.default_rng(6), 64, 96, 6
    base = zoo.llama(5, layers=2, hidden=d)
    single = {n: v for n, v in base.tensors.items() if ".mlp." not in n}
    stacked = dict(single)
    for i in range(2):
        gate, up = rng.standard_normal((2, experts, f, d)).astype(np.float32)
        down = rng.standard_normal((experts, d, f)).astype(np.float32)
        router = rng.standard_normal((experts, d)).astype(np.float32)
        at = f"model.layers.{i}.mlp."
        stacked |= {
            at + "experts.gate_up_proj": np.concatenate([gate, up], axis=1),
            at + "experts.down_proj": down,
            at + "gate.weight": router,
        }
        single[at + "gate.weight"] = router
        for e in range(experts):
            for name, value in (("gate", gate), ("up", up), ("down", down)):
                single[f"{at}experts.{e}.{name}_proj.weight"] = value[e]
    config = {"model_type": "qwen2_moe", "num_experts": experts, "moe_intermediate_size": f}
    one, other = (to_row(fingerprint(base.with_tensors(t, **config))) for t in (single, stacked))
    assert len([k for k in one["hidden_keys"] if k.startswith("mlp")]) == 2 * weights.EXPERTS
    for name in one:
        if name.startswith(("hidden", "block", "residual")):
            assert np.array_equal(one[name], other[name]), name


def parts_of(model: zoo.Checkpoint) -> dict[str, Array]:
    """Every canonical matrix of a checkpoint by its address."""
    layout = resolve({n: v.shape for n, v in model.tensors.items()}, model.config)
    tensors = in_memory(model).tensors
    found: dict[str, Array] = {}
    for place in layout.placements.values():
        for part in place.parts:
            rows = canonical.part_shape(tensors[place.name].shape, part)[0]
            found[str(canonical.key_of(part))] = canonical.read_rows(tensors[place.name], part, 0, rows)
    return found


def test_interleaved_and_transposed_layouts_are_taken_apart() -> None:
    rng, d, heads = np.random.default_rng(7), 64, 4
    q, k, v = rng.standard_normal((3, d, d)).astype(np.float32)
    neox, gpt2 = zoo.neox(1), zoo.gpt2(1)
    by_head = np.concatenate([x.reshape(heads, 1, -1, d) for x in (q, k, v)], axis=1).reshape(-1, d)
    names: Mapping[str, tuple[zoo.Checkpoint, Array]] = {
        "gpt_neox.layers.1.attention.query_key_value.weight": (neox, by_head),
        "transformer.h.1.attn.c_attn.weight": (gpt2, np.ascontiguousarray(np.concatenate([q, k, v]).T)),
    }
    for name, (model, value) in names.items():
        assert model.tensors[name].shape == value.shape
        parts = parts_of(model.with_tensors({**model.tensors, name: value}))
        for role, expected in (("q", q), ("k", k), ("v", v)):
            assert np.array_equal(parts[f"decoder.1.{role}.weight"], expected), (name, role)


# ---- the pieces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "part", "expected"),
    [
        ((6, 4), Part("q"), lambda w: w),
        ((6, 4), Part("q", transposed=True), lambda w: w.T),
        ((6, 4), Part("k", rows=(2, 5)), lambda w: w[2:5]),
        ((6, 4), Part("k", rows=(1, 3), transposed=True), lambda w: w.T[1:3]),
        ((6, 4), Part("v", rows=np.array([5, 0, 3])), lambda w: w[[5, 0, 3]]),
        ((3, 6, 4), Part("up", lead=2), lambda w: w[2]),
        ((3, 6, 4), Part("up", lead=1, rows=(3, 6)), lambda w: w[1, 3:6]),
        ((3, 6, 4), Part("up", lead=1, rows=np.array([4, 1])), lambda w: w[1, [4, 1]]),
        ((3, 6, 4), Part("down", lead=0, transposed=True), lambda w: w[0].T),
        ((6,), Part("norm_attn"), lambda w: w[:, None]),
    ],
)
def test_rows_of_a_part(shape: tuple[int, ...], part: Part, expected: Callable[[Array], Array]) -> None:
    w = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    tensor, wanted = tensor_from_array("w", w), expected(w)
    assert canonical.part_shape(shape, part) == wanted.shape
    assert np.array_equal(canonical.read_rows(tensor, part, 0, len(wanted)), wanted)
    assert np.array_equal(canonical.read_rows(tensor, part, 1, 2), wanted[1:2])
    assert np.array_equal(canonical.read_rows(tensor, part, 1, 99), wanted[1:])  # clipped to what is there


def test_addresses() -> None:
    assert str(PartKey("decoder", 3, "q", None, False, "weight")) == "decoder.3.q.weight"
    assert str(PartKey("decoder", 0, "up", 5, False, "weight")) == "decoder.0.up.e5.weight"
    assert str(PartKey("decoder", 1, "v", None, True, "bias")) == "decoder.1.cross.v.bias"
    assert str(PartKey("encoder", None, "embed", None, False, "weight")) == "encoder.embed.weight"


PRE, POST = Arch(64, 4, 4, 16), Arch(64, 4, 4, 16, norm="layer", norm_place="post")


def test_which_norm_a_branch_reads() -> None:
    assert canonical.reader_norm(PRE, "attn", 2) == [("norm_attn", 2)]
    assert canonical.reader_norm(PRE, "mlp", 2) == [("norm_mlp", 2), ("norm_attn", 2)]  # parallel blocks share one
    assert canonical.reader_norm(POST, "attn", 0) == [("norm_embed", None)]
    assert canonical.reader_norm(POST, "attn", 2) == [("norm_mlp_out", 1)]
    assert canonical.reader_norm(POST, "mlp", 2) == [("cross.norm_attn_out", 2), ("norm_attn_out", 2)]
    assert canonical.reader_norm(POST, "cross", 2) == [("norm_attn_out", 2)]
    assert canonical.reader_norm(PRE, "attn", 0) == [("norm_attn", 0), ("norm_embed", None)]  # ModernBERT's first
    assert canonical.reader_norm(PRE, "cross", 2) == [("cross.norm_attn", 2)]
    assert canonical.reader_norm(Arch(64, 4, 4, 16, norm_place="branch_out"), "mlp", 2) == []


def test_unit_rows_of_rows_that_have_no_length() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [1e200, 0.0]])
    assert np.array_equal(canonical.unit_rows(rows)[:4], [[0.6, 0.8], [0, 0], [0, 0], [0, 0]])


def test_writers_and_tables_lose_what_layernorm_discards() -> None:
    rng = np.random.default_rng(9)
    matrix, gain = rng.standard_normal((64, 5)).astype(np.float32), rng.uniform(0.5, 2, 64).astype(np.float32)
    ones, layer = np.ones((64, 1), np.float32), Arch(64, 4, 4, 16, norm="layer")
    shifted = matrix + ones * np.arange(5, dtype=np.float32)
    assert np.allclose(
        canonical.fold_writer(matrix, layer, None), canonical.fold_writer(shifted, layer, None), atol=1e-6
    )
    assert np.allclose(canonical.center(matrix.T, layer), canonical.center(shifted.T, layer), atol=1e-6)
    assert np.array_equal(canonical.center(shifted.T, PRE), shifted.T)  # RMSNorm sees it
    assert np.allclose(canonical.fold_writer(matrix, PRE, gain), gain[:, None] * matrix.astype(float))
    assert np.array_equal(canonical.fold_writer(matrix, POST, gain), canonical.fold_writer(matrix, POST, None))
    gemma = Arch(64, 4, 4, 16, norm_offset=1.0)
    assert np.allclose(canonical.fold_writer(matrix, gemma, gain - 1), canonical.fold_writer(matrix, PRE, gain))


def test_the_bias_of_a_norm_belongs_to_its_readers() -> None:
    rng = np.random.default_rng(10)
    rows, bias, shift = (rng.standard_normal(n).astype(np.float32) for n in ((3, 64), 3, 64))
    assert np.allclose(canonical.fold_bias(bias, rows, shift), bias + rows.astype(float) @ shift)
    assert np.array_equal(canonical.fold_bias(bias, rows, None), bias)


def test_a_norm_on_queries_leaves_no_scale_of_a_head() -> None:
    rng = np.random.default_rng(11)
    rows, gain = rng.standard_normal((64, 64)), rng.uniform(0.5, 2, 16).astype(np.float32)
    scales = np.repeat(rng.uniform(0.1, 9, 4), 16)[:, None]
    folded = canonical.fold_head_norm(rows, PRE, gain)
    assert np.allclose(folded, canonical.fold_head_norm(scales * rows, PRE, gain))
    assert np.allclose(folded, canonical.fold_head_norm(rows, PRE, np.tile(gain, 4)))  # stored for every row
    assert np.allclose(np.square(canonical.heads(folded, 16)).sum(axis=(1, 2)), 1)
    assert canonical.fold_head_norm(rows, PRE, None) is rows
    with pytest.raises(ValueError):
        canonical.heads(rows, 15)


def test_only_homogeneous_activations_free_the_scale() -> None:
    rows = np.random.default_rng(12).standard_normal((4, 64))
    relu = Arch(64, 4, 4, 16, activation="relu")
    assert np.allclose(canonical.scale_free(3 * rows, relu), canonical.scale_free(rows, relu))
    assert np.array_equal(canonical.scale_free(3 * rows, PRE), 3 * rows)


def test_gate_and_up_are_one_panel() -> None:
    """They share one permutation, so they may not count twice."""
    found = fingerprint(zoo.llama(1, layers=3)).hidden
    assert found is not None
    assert sorted(k.kind for k in found.keys) == ["mlp"] * 3 + ["v"] * 3


def test_the_signs_are_fixed_for_all_time() -> None:
    """Another matrix would be another fingerprint version; a longer one starts with the shorter one's rows."""
    matrix = panels.signs("mlp/0", 8, 16)
    assert np.array_equal(panels.signs("mlp/0", 64, 16)[:8], matrix)
    assert np.packbits(matrix[:4] > 0).tobytes().hex() == "cbf34c5dac44ec8d"
    assert set(np.unique(matrix)) == {-1, 1}
