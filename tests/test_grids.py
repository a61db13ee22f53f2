"""Quantization grids, the half-step test, and which of several relatives was quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint
from quantizers import IN_GGUF, QUANTIZERS, Quantizer, gptq, in_gguf

from provindex.api import Index
from provindex.common.halves import halved
from provindex.evidence import nearest
from provindex.evidence.grids import CODEBOOKS, ROUNDED, Residual, grid_of, residual, together
from provindex.evidence.panels import round_bf16
from provindex.fingerprint.record import Fingerprint
from provindex.index.answer import Match
from provindex.report.words import texts
from provindex.verdict.pair import compare

F32 = NDArray[np.float32]
MATRICES = 8
CHANGES = (0.003, 0.01, 0.03, 0.1)
EIGHT_BITS = {"Q8_0", "int8 per row", "8 bits, groups of 128", "gguf Q8_0"}
STORED: Mapping[str, Callable[[F32], F32]] = {
    "f16": lambda w: w.astype(np.float16).astype(np.float32),
    "bf16": round_bf16,
}


def kept(w: F32) -> NDArray[np.float64]:
    values, scale = halved(w.ravel()[:256].astype(np.float64))
    return values.astype(np.float64) * scale


@cache
def sources() -> Sequence[F32]:
    rng = np.random.default_rng(0)
    return [round_bf16((rng.standard_t(8, (2, 512)) * 0.02).astype(np.float32)) for _ in range(MATRICES)]


@cache
def siblings(change: float) -> Sequence[F32]:
    rng = np.random.default_rng(1)
    return [round_bf16((w + change * 0.02 * rng.standard_normal(w.shape)).astype(np.float32)) for w in sources()]


def around(quantized: Sequence[F32], others: Sequence[F32]) -> Residual:
    """The others' values around the grids, every one of which must be seen."""
    grids = [grid_of(kept(q)) for q in quantized]
    assert all(grids)
    return together([residual(g, kept(x)) for g, x in zip(grids, others, strict=True) if g is not None])


def quantizer(name: str) -> Quantizer:
    if name.startswith("gguf "):
        pytest.importorskip("gguf")
        return in_gguf(name.removeprefix("gguf "))
    return QUANTIZERS[name]


@pytest.mark.parametrize("name", [*QUANTIZERS, *(f"gguf {n}" for n in IN_GGUF)])
def test_the_source_is_within_half_a_step_and_siblings_are_not(name: str) -> None:
    for dtype, store in STORED.items():
        quantized = [store(quantizer(name)(w)) for w in sources()]
        if dtype == "bf16" and name in EIGHT_BITS:  # bfloat16 itself has 8 bits: nothing wrong may be said
            found = [(g, w) for q, w in zip(quantized, sources(), strict=True) if (g := grid_of(kept(q))) is not None]
            assert all(residual(g, kept(w)).share <= 0.01 for g, w in found)
            continue
        source = around(quantized, sources())
        assert source.rounded and 0.45 < source.away / source.n < 0.55 and source.n > 0.6 * MATRICES * 256
        shares = [around(quantized, siblings(change)).share for change in CHANGES]
        assert shares == sorted(shares) and source.share < shares[1] > 2 * ROUNDED and shares[3] > 0.05


def test_bfloat16_hides_eight_bits_in_blocks_of_32() -> None:
    assert not any(grid_of(kept(round_bf16(QUANTIZERS["Q8_0"](w)))) for w in sources())


DRAWS: Mapping[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "normal": lambda rng: rng.standard_normal(256) * 0.02,
    "heavy tails": lambda rng: rng.standard_t(3, 256) * 0.02,
    "uniform": lambda rng: rng.uniform(-0.05, 0.05, 256),
    "tiny": lambda rng: rng.standard_normal(256) * 1e-5,
    "pruned": lambda rng: rng.standard_normal(256) * (rng.random(256) < 0.2),
    "over many octaves": lambda rng: np.exp(2 * rng.standard_normal(256)) * rng.choice([-1, 1], 256),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_ordinary_weights_lie_on_no_grid(draw: Callable[[np.random.Generator], NDArray[np.float64]]) -> None:
    rng = np.random.default_rng(2)
    for store in (lambda w: w, *STORED.values()):
        assert not any(grid_of(kept(store(draw(rng).astype(np.float32)))) for _ in range(40))


def test_nothing_is_seen_in_next_to_nothing() -> None:
    assert grid_of(np.zeros(256)) is None and grid_of(np.full(256, 0.5)) is None and grid_of(np.ones(8)) is None
    assert grid_of(np.array([np.nan, *np.ones(255)])) is None
    few = np.zeros(256)
    few[::16] = np.random.default_rng(0).standard_normal(16)  # one value in each window of 16
    assert grid_of(few) is None


def test_the_grid_says_its_kind_and_its_window() -> None:
    kinds = {"NF4": ("NF4", 64), "IQ4_NL": ("IQ4_NL", 32), "NVFP4": ("E2M1", 16), "Q6_K": ("uniform", 16)}
    kinds |= {"Q4_K": ("uniform", 32), "FP8 E4M3, blocks of 128": ("E4M3", 32), "int8 per row": ("uniform", 256)}
    for name, expected in kinds.items():
        grid = grid_of(kept(QUANTIZERS[name](sources()[0])))
        assert grid is not None and (grid.name, grid.window) == expected


def test_codebooks_are_what_the_formats_say() -> None:
    gguf = pytest.importorskip("gguf")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert CODEBOOKS["IQ4_NL"].tolist() == list(gguf.quants.IQ4_NL.kvalues)
    for name, dtype in (("E4M3", "float8_e4m3fn"), ("E5M2", "float8_e5m2")):
        values = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, dtype)).astype(np.float64)
        assert np.array_equal(np.unique(values[np.isfinite(values)]), CODEBOOKS[name])
    assert CODEBOOKS["E2M1"].tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_values_made_of_quantized_ones_are_told_from_those_before_rounding() -> None:
    rng = np.random.default_rng(3)
    quantized = [QUANTIZERS["Q4_K"](w) for w in sources()]
    tuned = [(q + 0.0003 * rng.standard_normal(q.shape)).astype(np.float32) for q in quantized]
    made = around(quantized, tuned)
    assert made.inside and not made.rounded


def test_compensated_errors_grow_along_a_row() -> None:
    many = [w for model in (sources(), *map(siblings, CHANGES)) for w in model]
    quantized = [gptq(128, 4)(w) for w in many]
    source = around(quantized, many)
    assert source.compensated and not source.rounded and source.share > 0.02
    plain = [QUANTIZERS["4 bits, groups of 128"](w) for w in sources()]
    assert not any(around(plain, siblings(change)).compensated for change in CHANGES)


# --- among relatives ---


@cache
def relatives() -> Mapping[str, zoo.Checkpoint]:
    """A base and four fine-tunes of it, 0.3 to 10 % away."""
    base = zoo.cast(zoo.llama(1, layers=6, hidden=256, intermediate=320), "BF16")
    return {"base": base} | {f"tuned-{change}": moved(base, change, i) for i, change in enumerate(CHANGES)}


def moved(parent: zoo.Checkpoint, change: float, seed: int) -> zoo.Checkpoint:
    rng = np.random.default_rng(seed)
    tensors = dict(parent.tensors)
    for name, value in tensors.items():
        if value.ndim > 1:
            tensors[name] = (value + change * value.std() * rng.standard_normal(value.shape)).astype(np.float32)
    return zoo.cast(parent.with_tensors(tensors), "BF16")


@cache
def indexed() -> Index:
    return Index.build(fingerprint(model, f"org/{name}") for name, model in relatives().items())


def rounded(model: zoo.Checkpoint, by: Quantizer) -> zoo.Checkpoint:
    matrices = {n: by(v) if v.ndim > 1 and "embed" not in n else v for n, v in model.tensors.items()}
    return model.with_tensors(matrices)


def quantized(model: zoo.Checkpoint, by: Quantizer) -> Fingerprint:
    return fingerprint(rounded(model, by), "org/quantized")


def asked(fp: Fingerprint) -> dict[str, Match]:
    result = indexed().query(fp)
    assert len(result.linked) == len(relatives())
    return {m.entry.model_id.removeprefix("org/"): m for m in result.linked}


@pytest.mark.parametrize(
    ("by", "source"),
    [
        (QUANTIZERS["Q8_0"], "base"), (QUANTIZERS["Q4_K"], "tuned-0.003"),
        (QUANTIZERS["Q2_K"], "base"), (QUANTIZERS["MXFP4"], "tuned-0.1"), (gptq(128, 8), "tuned-0.003"),
    ],
    ids=["Q8_0", "Q4_K", "Q2_K", "MXFP4", "GPTQ, 8 bits"],
)  # fmt: skip
def test_exactly_the_source_is_quantized(by: Quantizer, source: str) -> None:
    found = asked(quantized(relatives()[source], by))
    assert {name: m.pair.relation for name, m in found.items()} == {
        name: "quantized" if name == source else "finetune" for name in found
    }
    assert next(iter(found)) == source
    assert [m.direction for name, m in found.items() if name == source] == ["ancestor"]
    assert {m.direction for name, m in found.items() if name != source} == {"unknown"}
    reasons = texts(found[source].pair.reasons)
    assert "sampled weights differ by more than half a quantization step; its siblings: " in reasons[0]
    assert any(r.startswith("nearer than org/") for r in reasons)
    assert all(any("half a quantization step" in r for r in texts(m.pair.reasons)) for m in found.values())


def test_relatives_too_close_for_the_quantizer_are_not_guessed_between() -> None:
    found = asked(quantized(relatives()["base"], gptq(128, 3)))
    told = {name for name, m in found.items() if m.pair.relation == "quantized"}
    assert {"base", "tuned-0.003"} <= told and "tuned-0.1" not in told
    assert all(any("too close to be told apart" in r for r in texts(found[name].pair.reasons)) for name in told)


def test_rescaled_channels_name_no_source() -> None:
    """As AWQ: columns are rescaled before rounding; the nearest relative is told, but not called the source."""
    rng = np.random.default_rng(5)
    scales = {columns: np.exp(0.15 * rng.standard_normal(columns)).astype(np.float32) for columns in (256, 320)}
    found = asked(quantized(relatives()["base"], lambda w: QUANTIZERS["4 bits, groups of 128"](w * scales[w.shape[1]])))
    assert "quantized" not in {m.pair.relation for m in found.values()}
    assert any("cannot be told" in r for r in texts(found["base"].pair.reasons))


def test_a_model_trained_from_quantized_values_descends_from_them() -> None:
    model = relatives()["base"]
    source = quantized(model, QUANTIZERS["Q4_K"])
    child = fingerprint(moved(rounded(model, QUANTIZERS["Q4_K"]), 0.01, 9), "org/child")
    pair, back = compare(source, child), compare(child, source)
    assert (pair.relation, pair.direction, back.direction) == ("finetune", "ancestor", "descendant")
    assert any("quantized before" in r for r in texts(pair.reasons))


def test_two_quantized_copies_say_that_nothing_can_be_told_from_the_two() -> None:
    model = small()
    copies = [quantized(model, QUANTIZERS[name]) for name in ("Q4_K", "NF4", "Q8_0")]
    for one, other in combinations(copies, 2):
        pair = compare(one, other)
        assert (pair.relation, pair.direction, pair.around) == ("finetune", "unknown", "")
        assert any("both lie on quantization grids" in r for r in texts(pair.reasons))


@cache
def small() -> zoo.Checkpoint:
    return zoo.cast(zoo.llama(1, layers=2, hidden=256, intermediate=256), "BF16")


@pytest.mark.parametrize(("first", "dtype"), [("Q4_K", "BF16"), ("NF4", "F16"), ("Q8_0", "F16"), ("Q8_0", "BF16")])
def test_a_quantized_model_and_its_half_precision_copy(first: str, dtype: str) -> None:
    """Rounded twice where it is bfloat16, so that no digest is equal."""
    full = rounded(small(), QUANTIZERS[first])
    one, other = fingerprint(full), fingerprint(zoo.cast(zoo.cast(full, "F16"), dtype))
    for pair in (compare(one, other), compare(other, one)):
        assert (pair.relation, pair.direction) == ("quantized", "unknown")
        assert len(texts(pair.reasons)) == 1 and "holds quantized values exactly" in texts(pair.reasons)[0]


def test_half_precision_copies_of_one_model_are_recast() -> None:
    plain = zoo.llama(1, layers=2, hidden=256, intermediate=256)
    for model in (rounded(small(), QUANTIZERS["Q4_K"]), plain):
        f16, bf16 = (zoo.cast(model, dtype) for dtype in ("F16", "BF16"))
        one = fingerprint(f16)
        assert compare(one, fingerprint(bf16)).relation == "recast"
        assert compare(one, fingerprint(zoo.cast(f16, "BF16"))).relation == "recast"
    pair = compare(fingerprint(plain), fingerprint(bf16))  # on no grid
    assert (pair.relation, pair.direction) == ("recast", "ancestor")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_dequantized_model_that_was_quantized_again_is_its_source(dtype: str) -> None:
    middle = zoo.cast(rounded(small(), QUANTIZERS["Q4_K"]), dtype)
    one = fingerprint(middle)
    for again in ("Q8_0", "NF4", "int8 per row", "FP8 E4M3 per row", "Q2_K"):
        other = quantized(middle, QUANTIZERS[again])
        pair, back = compare(one, other), compare(other, one)
        assert (pair.relation, pair.direction, pair.around) == ("quantized", "ancestor", "B")
        assert (back.relation, back.direction, back.around) == ("quantized", "descendant", "A")


def test_a_half_precision_copy_does_not_hide_what_was_quantized() -> None:
    """An index with the source, a sibling and a dequantized copy: the first and the last are told, the sibling not."""
    for by in (QUANTIZERS["Q8_0"], QUANTIZERS["Q4_K"]):
        copy = zoo.cast(rounded(small(), by), "BF16")
        kin = {"base": small(), "tuned-0.01": moved(small(), 0.01, 2), "copy": copy}
        index = Index.build(fingerprint(model, f"org/{name}") for name, model in kin.items())
        found = {m.entry.model_id: m for m in index.query(quantized(small(), by)).linked}
        told = {name: (m.pair.relation, m.direction) for name, m in found.items()}
        assert told == {
            "org/base": ("quantized", "ancestor"),
            "org/copy": ("quantized", "unknown"),
            "org/tuned-0.01": ("finetune", "unknown"),
        }
        assert next(iter(reversed(found))) == "org/tuned-0.01"


def test_the_sign_test_is_a_bound_and_leaves_out_ties() -> None:
    for of in (1, 7, 40, 200):
        for won in range(of + 1):
            exact = math.log10(sum(math.comb(of, k) for k in range(won, of + 1))) - of * math.log10(2)
            assert 0.0 >= nearest.log10_chance(won, of) >= exact - 1e-9
    far = {str(i): 2.0 for i in range(40)}
    near = dict.fromkeys(far, 1.0)
    assert nearest.wins(near, far) == (40, 40) and nearest.wins(far, dict(far)) == (0, 0)
    assert nearest.nearest([far, near, dict(near)]) == [1, 2] and nearest.nearest([far, dict(far)]) == [0, 1]


def test_samples_of_another_count_are_not_compared() -> None:
    blocks = fingerprint(relatives()["base"]).blocks
    assert blocks is not None
    cut = replace(blocks, counts=blocks.counts // 2)
    found = nearest.distances(blocks, blocks)
    assert set(found.values()) == {0.0} and not any("embed" in key for key in found)
    assert nearest.distances(blocks, cut) == {}
