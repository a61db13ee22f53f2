"""EAS, NLF, LEP, END, WVC under one set of rules, then hand-computed toys and the pipeline score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provindex.common.errors import ModelError
from provindex.common.score import Score
from provindex.report.words import joined
from provindex.signals import eas, end, lep, nlf, pipeline, wvc


@dataclass(frozen=True)
class Toy:
    """What five signals can see of a model: anchor rows, norm tensors by name, and projections by (name, layer)."""

    rows: np.ndarray
    norms: dict[str, np.ndarray]
    weights: dict[str, tuple[int, np.ndarray]]


def toy(seed: int, layers: int = 4, width: int = 64) -> Toy:
    rng = np.random.default_rng(seed)
    names = [f"layers.{layer}.{part}_proj" for layer in range(layers) for part in ("q", "v")]
    return Toy(
        rows=rng.normal(size=(64, width)).astype(np.float32) * rng.uniform(1, 2, (64, 1)).astype(np.float32),
        norms={f"layers.{i}.norm": rng.normal(1, 0.2, width).astype(np.float32) for i in range(layers)},
        weights={
            name: (i // 2, (rng.normal(size=(width, width)) * rng.uniform(1, 3)).astype(np.float32))
            for i, name in enumerate(names)
        },
    )


def wvc_samples(model: Toy) -> wvc.Samples:
    def taken(w: np.ndarray) -> np.ndarray:
        step, count = wvc.stride(w.size)
        return w.ravel()[::step][:count]

    return wvc.Samples.collect((name, layer, taken(w)) for name, (layer, w) in model.weights.items())


def energies(model: Toy) -> np.ndarray:
    norms: dict[int, list[float]] = {}
    for layer, w in model.weights.values():
        norms.setdefault(layer, []).append(float(np.linalg.norm(w.astype(np.float64))))
    return lep.profile(norms)


EXTRACT: dict[str, Callable[[Toy], Any]] = {
    "EAS": lambda m: eas.extract(m.rows),
    "NLF": lambda m: nlf.NormTensors.collect(m.norms),
    "LEP": energies,
    "END": lambda m: end.extract(np.linalg.norm(m.rows, axis=1)),
    "WVC": wvc_samples,
}
COMPARE: dict[str, Callable[[Any, Any], Score]] = {
    "EAS": eas.compare,
    "NLF": nlf.compare,
    "LEP": lep.compare,
    "END": end.compare,
    "WVC": wvc.compare,
}
SIGNALS = sorted(COMPARE)
COUNTED = {"EAS": 64, "NLF": 4, "LEP": 4, "END": 20, "WVC": 4}


def score(signal: str, a: Toy, b: Toy) -> Score:
    return COMPARE[signal](EXTRACT[signal](a), EXTRACT[signal](b))


# ---- rules that every signal keeps


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_model_is_itself(signal: str) -> None:
    for seed in range(20):
        assert score(signal, toy(seed), toy(seed)) == Score(1.0, COUNTED[signal])


@pytest.mark.parametrize("signal", SIGNALS)
@given(seeds=st.tuples(st.integers(0, 50), st.integers(0, 50)), layers=st.tuples(*[st.integers(2, 12)] * 2))
@settings(max_examples=25, deadline=None)
def test_symmetric_in_range_rounded(signal: str, seeds: tuple[int, int], layers: tuple[int, int]) -> None:
    a, b = toy(seeds[0], layers[0]), toy(seeds[1], layers[1])
    forth, back = score(signal, a, b), score(signal, b, a)
    assert forth == back
    assert forth.value is not None and not forth.reasons
    assert 0.0 <= forth.value <= 1.0 and forth.value == round(forth.value, 4)
    assert forth.n is not None and forth.n > 0


POISONS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("signal", SIGNALS)
def test_one_bad_number_makes_a_signal_absent(signal: str, poison: str) -> None:
    good, bad = toy(1), toy(1)
    bad.rows[3, 5] = POISONS[poison]
    bad.norms["layers.2.norm"][0] = POISONS[poison]
    bad.weights["layers.1.q_proj"][1][0, 0] = POISONS[poison]
    for a, b in ((good, bad), (bad, good), (bad, bad)):
        answer = score(signal, a, b)
        assert answer.value is None and answer.n is None
        assert joined(answer.reasons) and "NaN or infinity" in joined(answer.reasons)


EMPTY: dict[str, Any] = {
    "EAS": eas.extract(np.ones((eas.MIN_ANCHORS - 1, 8), np.float32)),
    "NLF": nlf.NormTensors.collect({}),
    "LEP": lep.profile({}),
    "END": end.extract(np.zeros(0, np.float32)),
    "WVC": wvc.Samples.collect([]),
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_nothing_to_compare_has_a_reason_that_names_the_side(signal: str) -> None:
    something = EXTRACT[signal](toy(1))
    for a, b, side in ((EMPTY[signal], something, "first"), (something, EMPTY[signal], "second")):
        answer = COMPARE[signal](a, b)
        assert answer.value is None and answer.n is None
        assert joined(answer.reasons) and side in joined(answer.reasons)


FLAT: dict[str, Any] = {
    "EAS": eas.extract(np.ones((64, 8), np.float32)),
    "NLF": nlf.NormTensors.collect({"norm": np.zeros(64, np.float32)}),
    "LEP": lep.profile({layer: [2.0] for layer in range(4)}),
    "END": np.zeros(20),
    "WVC": wvc.Samples.collect((f"q{i}", i, np.zeros(64, np.float32)) for i in range(4)),
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_arrays_without_variation_are_absent_not_equal(signal: str) -> None:
    answer = COMPARE[signal](FLAT[signal], FLAT[signal])
    assert answer.value is None and joined(answer.reasons)


def _rotated(m: Toy) -> Toy:
    turn, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(64, 64)))
    return replace(
        m,
        rows=(m.rows @ turn).astype(np.float32),
        norms={k: (v @ turn).astype(np.float32) for k, v in m.norms.items()},
        weights={k: (layer, (w @ turn).astype(np.float32)) for k, (layer, w) in m.weights.items()},
    )


def _scaled(m: Toy) -> Toy:
    return Toy(m.rows * 8, {k: v * 8 for k, v in m.norms.items()}, {k: (i, w * 8) for k, (i, w) in m.weights.items()})


def _negated(m: Toy) -> Toy:
    return Toy(-m.rows, {k: -v for k, v in m.norms.items()}, {k: (i, -w) for k, (i, w) in m.weights.items()})


def _tokens_permuted(m: Toy) -> Toy:
    return replace(m, rows=m.rows[::-1])


def _read_backwards(m: Toy) -> Toy:
    return Toy(m.rows, dict(reversed(m.norms.items())), dict(reversed(m.weights.items())))


def _layers_reversed(m: Toy) -> Toy:
    last = max(i for i, _ in m.weights.values())
    norms = list(m.norms.values())[::-1]
    return Toy(
        m.rows,
        dict(zip(m.norms, norms, strict=True)),
        {f"layers.{last - i}.{k.split('.')[-1]}": (last - i, w) for k, (i, w) in m.weights.items()},
    )


def _norm_vectors_permuted(m: Toy) -> Toy:
    return replace(m, norms={k: v[::-1] for k, v in m.norms.items()})


@pytest.mark.parametrize(
    ("change", "blind"),
    [
        (_rotated, {"EAS", "LEP", "END"}),
        (_scaled, {"EAS", "NLF", "LEP", "END", "WVC"}),
        (_negated, {"EAS", "LEP", "END"}),
        (_tokens_permuted, {"NLF", "LEP", "END", "WVC"}),
        (_read_backwards, {"EAS", "NLF", "LEP", "END", "WVC"}),
        (_layers_reversed, {"EAS", "END"}),
        (_norm_vectors_permuted, {"EAS", "LEP", "END", "WVC"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_table_of_invariances(change: Callable[[Toy], Toy], blind: set[str]) -> None:
    """Blind to the change: still 1.0. Not blind: visibly below."""
    m = toy(5, layers=6)
    values = {signal: score(signal, m, change(m)).value for signal in SIGNALS}
    assert {signal for signal in SIGNALS if values[signal] == 1.0} == blind, values
    assert all(value < 0.99 for signal, value in values.items() if signal not in blind), values


def test_wvc_falls_with_the_share_of_foreign_weights() -> None:
    a, b = toy(1, layers=8), toy(2, layers=8)
    mixed = Toy(a.rows, a.norms, {k: (i, 0.6 * w + 0.8 * b.weights[k][1]) for k, (i, w) in a.weights.items()})
    values = [score("WVC", a, x).value for x in (a, mixed, b)]
    assert values[0] == 1.0 and 0.3 < values[1] < 0.9 and values[2] < 0.02


# ---- toys computed by hand


def test_eas_matrix_by_hand() -> None:
    rows = np.zeros((16, 2), np.float32)
    rows[:8, 0] = np.arange(1, 9)
    rows[8:, 1] = 3.0
    rows[15] = 0.0
    matrix = eas.extract(rows)
    assert matrix is not None and matrix.dtype == np.float32 and matrix.shape == (16, 16)
    assert (matrix[:8, :8] == 1).all() and (matrix[:8, 8:] == 0).all()
    assert not matrix[15].any()
    assert (matrix == matrix.T).all()


def test_eas_compares_the_first_anchors_that_both_have() -> None:
    rows = toy(3).rows
    assert eas.compare(eas.extract(rows), eas.extract(rows[:40])) == Score(1.0, 40)
    few = eas.extract(rows)[:7, :7]
    assert joined(eas.compare(few, few).reasons) == "fewer than 8 anchors to compare"


def test_eas_of_opposite_matrices_is_zero() -> None:
    a = eas.extract(toy(3).rows)
    assert eas.compare(a, -a).value == 0.0


@pytest.mark.parametrize(
    ("norms", "filled"),
    [
        ([0, 1, 2, 20], {0: 0.25, 1: 0.25, 2: 0.25, 19: 0.25}),
        ([3, 3, 3], {10: 1.0}),
        ([1e30, 1e30], {10: 1.0}),
        ([0, 0, 0], {10: 1.0}),
        ([1, np.nextafter(np.float32(1), np.float32(2))], {0: 0.5, 19: 0.5}),
        ([0, 3e38], {0: 0.5, 19: 0.5}),
    ],
)
def test_end_histogram_by_hand(norms: list[float], filled: dict[int, float]) -> None:
    histogram = end.extract(np.array(norms, np.float32))
    assert histogram is not None and histogram.dtype == np.float64 and histogram.shape == (20,)
    assert {i: share for i, share in enumerate(histogram) if share} == filled


def test_end_ignores_the_factor_of_an_imported_histogram() -> None:
    a, b = (end.extract(np.linalg.norm(toy(seed).rows, axis=1)) for seed in (1, 2))
    assert end.compare(a, b) == end.compare(a * 7.5, b)


def test_lep_profile_by_hand() -> None:
    assert lep.profile({0: [1.0, 2.0], 2: [6.0]}).tolist() == [0.5, 0.0, 1.0]
    assert lep.profile({0: [1e-9]}).tolist() == [pytest.approx(1e-9)]
    assert lep.profile({1: [0.1, 0.2, 0.3], 0: [1.0]}).dtype == np.float32


def test_lep_sums_do_not_depend_on_order() -> None:
    values = list(np.random.default_rng(0).lognormal(0, 8, 200))
    assert lep.profile({0: values, 1: [1e9]}).tobytes() == lep.profile({0: values[::-1], 1: [1e9]}).tobytes()


def test_lep_of_different_depths_is_interpolated() -> None:
    line = lep.profile({i: [1.0 + i] for i in range(3)})
    assert lep.compare(line, lep.profile({i: [1.0 + i] for i in range(9)})) == Score(1.0, 3)
    assert lep.compare(line, lep.profile({i: [9.0 - i] for i in range(5)})) == Score(0.0, 3)
    peak = lep.profile({0: [1.0], 1: [2.0], 2: [1.0], 3: [2.0], 4: [1.0]})  # at depths 0, .5, 1: all 1
    assert lep.compare(line, peak).value is None


def test_lep_refuses_an_absurd_layer_before_allocating() -> None:
    with pytest.raises(ModelError, match="layer 99999999999999"):
        lep.profile({99999999999999: [1.0]})


def _norms(*sizes: int, start: float = 1.0) -> nlf.NormTensors:
    tensors = {f"{i}.norm": np.linspace(start, start + 1, n, dtype=np.float32) for i, n in enumerate(sizes)}
    return nlf.NormTensors.collect(tensors)


def test_nlf_modes() -> None:
    assert _norms(64, 64).direct and not _norms(64, 65).direct
    stats = _norms(64, 128).stats().reshape(2, 4)
    for row, n in zip(stats, (64, 128), strict=True):
        line = np.linspace(1, 2, n, dtype=np.float32).astype(np.float64)
        np.testing.assert_allclose(row, [line.mean(), line.std(), 2, 1], rtol=1e-12)


def test_nlf_direct_by_hand() -> None:
    a = nlf.NormTensors.collect({"norm": np.repeat(np.float32([1, 0]), 64)})
    b = nlf.NormTensors.collect({"norm": np.ones(128, np.float32)})
    assert nlf.compare(a, b) == Score(round(0.5**0.5, 4), 1)
    assert nlf.compare(a, nlf.NormTensors.collect({"norm": -np.ones(128, np.float32)})).value == 0.0


def test_nlf_stats_when_lengths_or_modes_differ() -> None:
    """Constant tensors have stats (c, 0, c, c), whatever their size, so equal constants give exactly 1."""

    def constant(*pairs: tuple[int, float]) -> nlf.NormTensors:
        return nlf.NormTensors.collect({f"{i}.norm": np.full(n, c, np.float32) for i, (n, c) in enumerate(pairs)})

    narrow, wide = constant((64, 1), (64, 2)), constant((128, 1), (128, 2))
    mixed, longer = constant((64, 1), (128, 2)), constant((64, 1), (64, 2), (64, 9))
    for a, b in ((narrow, wide), (narrow, mixed), (mixed, wide), (narrow, longer)):
        assert nlf.compare(a, b) == Score(1.0, 2)
    cosine = 3 * (1 * 2 + 2 * 1) / (3 * (1 + 4))
    assert nlf.compare(constant((64, 1), (64, 2)), constant((128, 2), (128, 1))).value == cosine
    # direct and of one total length: the raw vectors are compared, though the tensors differ in number
    assert nlf.compare(constant((64, 1), (64, 1)), constant((128, 5))) == Score(1.0, 1)


def test_nlf_lines_up_a_model_with_and_without_its_head() -> None:
    rng = np.random.default_rng(4)
    body = {f"encoder.{i}.LayerNorm": rng.normal(1, 0.3, 64).astype(np.float32) for i in range(6)}
    head = {f"cls.transform.LayerNorm.{x}": rng.normal(3, 1, 64).astype(np.float32) for x in ("bias", "weight")}
    without, with_head = nlf.NormTensors.collect(body), nlf.NormTensors.collect(body | head)
    assert with_head.names[0].startswith("cls.")
    assert nlf.compare(without, with_head) == Score(1.0, 6)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.input_layernorm.weight", (64,), True),
        ("encoder.layer.0.output.LayerNorm.bias", (384,), True),
        ("transformer.h.0.ln_1.weight", (768,), True),
        ("model.layers.0.post_attention_gain", (64,), True),
        ("model.layers.0.input_layernorm.weight", (63,), False),
        ("model.layers.0.self_attn.q_norm.weight", (2, 64), False),
        ("model.layers.0.self_attn.q_proj.bias", (64,), False),
        ("transformer.ln_f.weight", (), False),
    ],
)
def test_nlf_names(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert nlf.is_norm(name, shape) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("bert.encoder.layer.0.attention.self.QUERY.weight", True),
        ("bert.encoder.layer.0.output.dense.weight", True),
        ("transformer.h.0.mlp.dense_h_to_4h.weight", True),
        ("model.layers.0.mlp.gate.weight", True),
        ("model.decoder.layers.0.fc2.weight", True),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", True),
        ("embeddings.word_embeddings.weight", True),
        ("transformer.h.0.attn.c_attn.weight", False),
        ("transformer.h.0.mlp.c_proj.weight", False),
        ("transformer.blocks.0.attn.Wqkv.weight", False),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", False),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", False),
        ("model.layers.0.input_layernorm.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_wvc_names(name: str, expected: bool) -> None:
    assert wvc.is_projection(name) is expected


@given(n=st.integers(1, 3_000_000))
def test_wvc_stride_is_the_slice_it_stands_for(n: int) -> None:
    step, count = wvc.stride(n)
    assert count == min(n, 4096)
    assert step == max(1, n // 4096)
    assert (count - 1) * step < n


def _layer(layer: int, *values: np.ndarray) -> list[tuple[str, int, np.ndarray]]:
    return [(f"layers.{layer}.{i}", layer, value) for i, value in enumerate(values)]


def test_wvc_by_hand() -> None:
    one, two = np.ones(64, np.float32), np.repeat(np.float32([1, 0]), 32)
    a = wvc.Samples.collect(_layer(0, one) + _layer(1, one) + _layer(2, one))
    b = wvc.Samples.collect(_layer(0, one) + _layer(1, two) + _layer(3, one))
    assert wvc.compare(a, b) == Score(round((1 + 0.5**0.5) / 2, 4), 2)
    negative = wvc.Samples.collect(_layer(0, one) + _layer(1, -one))
    assert wvc.compare(a, negative) == Score(0.5, 2)


def test_wvc_cuts_a_layer_to_the_shorter_and_skips_small_or_zero_ones() -> None:
    one, tail = np.ones(64, np.float32), np.full(30, -9, np.float32)
    a = wvc.Samples.collect([x for layer in range(4) for x in _layer(layer, one, tail)])
    b = wvc.Samples.collect([x for layer in range(4) for x in _layer(layer, one)])
    assert wvc.compare(a, b) == Score(1.0, 4)
    c = wvc.Samples.collect(_layer(0, one) + _layer(1, one[:63]) + _layer(2, 0 * one))
    answer = wvc.compare(a, c)
    assert answer.value is None and joined(answer.reasons) and "enough samples" in joined(answer.reasons)
    far = wvc.Samples.collect(_layer(0, one) + _layer(9, one))
    assert joined(wvc.compare(a, far).reasons) == "fewer than 2 common layers"


def test_wvc_keeps_layers_together_when_names_sort_them_apart() -> None:
    names = [f"layers.{i}.q_proj" for i in (10, 2, 1)]
    samples = wvc.Samples.collect(
        (name, int(name.split(".")[1]), np.full(64, i, np.float32)) for i, name in enumerate(names)
    )
    assert samples.names == ("layers.1.q_proj", "layers.10.q_proj", "layers.2.q_proj")
    assert {layer: set(v.tolist()) for layer, v in samples.by_layer().items()} == {1: {2.0}, 2: {1.0}, 10: {0.0}}
    assert list(samples.by_layer()) == [1, 2, 10]


def test_large_weights_do_not_overflow() -> None:
    huge = np.full(64, 3e38, np.float32)
    samples = wvc.Samples.collect(_layer(0, huge) + _layer(1, huge))
    assert wvc.compare(samples, samples).value == 1.0
    norms = nlf.NormTensors.collect({"a.norm": huge, "b.norm": np.tile(huge, 2)})
    assert nlf.compare(norms, norms).value == 1.0


def test_containers_refuse_arrays_that_do_not_belong_together() -> None:
    values, size = np.ones(64, np.float32), np.array([64], np.int32)
    with pytest.raises(ValueError, match="belong together"):
        nlf.NormTensors(("a", "b"), size, values)
    with pytest.raises(ValueError, match="order of their"):
        nlf.NormTensors(("b", "a"), np.array([32, 32], np.int32), values)
    with pytest.raises(ValueError, match="belong together"):
        wvc.Samples(("a",), size, size, values[:10])
    with pytest.raises(ValueError, match="order of their"):
        wvc.Samples(("b", "a"), np.zeros(2, np.int32), np.array([32, 32], np.int32), values)


# ---- the pipeline score


def _scores(**values: float | None) -> dict[str, Score]:
    return {name: Score.absent("test") if v is None else Score(v, 1) for name, v in values.items()}


WEIGHTS = {"EAS": 0.5, "NLF": 1.0, "LEP": 0.25, "END": 0.9, "WVC": 0.0}


def test_identity_by_hand_and_rescaled() -> None:
    assert pipeline.identity_score(WEIGHTS) == round(0.18 + 0.08 + 0.04 + 0.171, 4)
    assert pipeline.identity_score({"EAS": 0.5, "WVC": 1.0}) == round((0.36 * 0.5 + 0.21) / 0.57, 4)
    assert pipeline.identity_score({}) is None
    assert sum(pipeline.IDENTITY_WEIGHTS.values()) == pytest.approx(1.0)


def test_tokenizer_score_needs_both_parts() -> None:
    assert pipeline.tokenizer_score(0.8, 0.4) == 0.5
    assert pipeline.tokenizer_score(None, 1.0) is None and pipeline.tokenizer_score(1.0, None) is None


@pytest.mark.parametrize(
    ("mfi", "tier", "weights", "value", "basis", "decision"),
    [
        (1.0, 1, WEIGHTS, 1.0, "mfi gate", "Confirmed Match"),
        (0.9, 2, WEIGHTS, 0.9, "mfi gate", "Confirmed Match"),
        (0.9, 3, WEIGHTS, 0.471, "identity", "Not Matched"),
        (0.7, 3, {"WVC": 0.9}, 0.9, "identity", "High-Confidence Match"),
        (0.7, 3, {}, 0.7, "metadata only", "Weak Match (metadata only)"),
        (None, None, {"WVC": 0.7}, 0.7, "identity", "Weak Match"),
        (None, None, {}, None, "none", "Insufficient data"),
    ],
)
def test_pipeline_gate(
    mfi: float | None, tier: int | None, weights: dict[str, float], value: float | None, basis: str, decision: str
) -> None:
    result = pipeline.score(_scores(MFI=mfi, **weights), tier)
    assert (result.value, result.basis, result.decision) == (value, basis, decision)
    present = set(weights) | ({"MFI"} if mfi is not None else set())
    assert set(result.missing) == set(pipeline.SIGNALS) - present


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.7501, "High-Confidence Match"),
        (0.75, "Weak Match"),
        (0.65, "Not Matched"),
        (0.0, "Not Matched"),
        (None, "Insufficient data"),
    ],
)
def test_thresholds_are_strict(value: float | None, label: str) -> None:
    assert pipeline.interpret(value) == label


def test_independent_models_of_one_config_are_a_match_for_the_peer() -> None:
    """Why the pipeline score never decides: the gate says 1.0 while the weights have nothing in common."""
    a, b = toy(1), toy(2)
    signals = {signal: score(signal, a, b) for signal in SIGNALS} | _scores(MFI=1.0)
    result = pipeline.score(signals, 1)
    assert result.value == 1.0 and result.decision == "Confirmed Match"
    assert signals["WVC"].value is not None and signals["WVC"].value < 0.02
