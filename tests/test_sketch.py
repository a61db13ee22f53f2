"""VABS: virtual anchors, branch products and their invariances, sketches and neurons of whole models, retrieval."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prints import fingerprint
from zoo.shrunk import shrunk

from build_index.zoo import disguises
from build_index.zoo.freedoms.draws import rotation, rotation_keeping_ones
from build_index.zoo.snapshot import Snapshot
from provindex.common.threads import one_blas_thread
from provindex.evidence import aligned, sketch
from provindex.evidence.anchors import ANCHORS
from provindex.evidence.sketch import Branches, BranchSketches
from provindex.fingerprint.extract import units as branches
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.formats.tensors import tensor_from_array
from provindex.index import search as retrieval
from provindex.models.source import open_model
from provindex.roles.names import Part, Placement
from provindex.roles.weights import Weights

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
BLOCK = sketch.SKETCHED**2


@pytest.fixture(autouse=True, scope="module")
def small_matrices() -> Iterator[None]:
    """On a busy machine several threads of BLAS wait for each other."""
    with one_blas_thread():
        yield


# ---- virtual anchors --------------------------------------------------------------------------------------------


def table(tokens: int, width: int, seed: int = 0) -> F64:
    """Embedding rows with a few strong directions, as trained ones have."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, width)) * np.exp(0.5 * rng.standard_normal(width)) + rng.standard_normal(width)


def present(count: int) -> NDArray[np.int64]:
    """Ids of the 512 anchors, of which every so-manieth is there."""
    ids = np.full(len(ANCHORS), -1, np.int64)
    ids[np.linspace(0, len(ANCHORS) - 1, count).astype(np.int64)] = np.arange(count)
    return ids


def anchors_of(rows: F64, ids: NDArray[np.int64] | None = None, *, centered: bool = False) -> F64:
    made = sketch.virtual_anchors(
        rows.astype(np.float32), present(len(rows)) if ids is None else ids, ANCHORS, centered=centered
    )
    assert made is not None
    return made


SHAPES = [(300, 48), (100, 160), (200, 200)]  # tall, wide, square


@pytest.mark.parametrize(("tokens", "width"), SHAPES)
@pytest.mark.parametrize("centered", [False, True])
def test_a_rotation_of_the_rows_rotates_the_anchors(tokens: int, width: int, centered: bool) -> None:
    rows, rng = table(tokens, width), np.random.default_rng(1)
    turn = rotation_keeping_ones(width, rng) if centered else rotation(width, rng)
    one, other = anchors_of(rows, centered=centered), anchors_of(rows @ turn, centered=centered)
    assert one.shape == (sketch.ANCHORS_KEPT, width)
    assert np.abs(one @ turn - other).max() < 1e-3 * np.abs(one).max()


@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_anchors_have_one_size_whatever_the_scale(tokens: int, width: int) -> None:
    rows = table(tokens, width)
    one = anchors_of(rows)
    assert (one**2).sum() == pytest.approx(sketch.ANCHORS_KEPT)
    for scale in (1e-6, 0.3, 1e6):
        assert np.abs(anchors_of(scale * rows) - one).max() < 1e-3 * np.abs(one).max()


def test_what_all_tokens_share_is_no_part_of_the_anchors() -> None:
    rows, shift = table(200, 64), np.random.default_rng(2).standard_normal(64)
    assert np.allclose(anchors_of(rows + 3 * shift), anchors_of(rows), atol=1e-4)


def test_layer_norms_do_not_see_the_mean_and_others_do() -> None:
    rows, constants = table(200, 64), np.random.default_rng(2).standard_normal((200, 1))
    one = anchors_of(rows, centered=True)
    assert np.allclose(anchors_of(rows + constants, centered=True), one, atol=1e-4)
    assert np.abs(one.sum(axis=1)).max() < 1e-4
    assert np.abs(anchors_of(rows + constants) - anchors_of(rows)).max() > 0.05


def test_anchors_depend_on_labels_and_not_on_the_order_of_tokens() -> None:
    rows, order = table(200, 64), np.random.default_rng(3).permutation(200)
    labels = [f"token {i}" for i in range(200)]
    ids = np.arange(200)
    one = sketch.virtual_anchors(rows.astype(np.float32), ids, labels, centered=False)
    same = sketch.virtual_anchors(rows[order].astype(np.float32), ids, [labels[i] for i in order], centered=False)
    other = sketch.virtual_anchors(rows[order].astype(np.float32), ids, labels, centered=False)
    assert one is not None and same is not None and other is not None
    assert np.allclose(one, same, atol=1e-6)
    assert abs(float((one * other).sum())) < 0.3 * sketch.ANCHORS_KEPT


def test_missing_anchors_move_the_others_a_little() -> None:
    rows = table(512, 64)
    whole = anchors_of(rows)
    for missing in (10, 100):
        kept = np.sort(np.random.default_rng(missing).permutation(512)[missing:])
        ids = np.full(512, -1, np.int64)
        ids[kept] = np.arange(kept.size)
        cosine = float((anchors_of(rows[kept], ids) * whole).sum()) / sketch.ANCHORS_KEPT
        assert cosine > {10: 0.95, 100: 0.7}[missing]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_make_no_anchors(bad: float) -> None:
    rows = table(100, 32).astype(np.float32)
    rows[3, 5] = bad
    assert sketch.virtual_anchors(rows, present(100), ANCHORS, centered=False) is None


@pytest.mark.parametrize(("tokens", "made"), [(15, False), (16, True)])
def test_sixteen_anchors_are_needed(tokens: int, made: bool) -> None:
    rows = table(tokens, 32).astype(np.float32)
    assert (sketch.virtual_anchors(rows, present(tokens), ANCHORS, centered=False) is not None) == made


def test_rows_without_variation_make_no_anchors() -> None:
    for rows in (np.zeros((40, 32)), np.ones((40, 32)), np.outer(np.arange(40), np.ones(32))):
        assert sketch.virtual_anchors(rows.astype(np.float32), present(40), ANCHORS, centered=True) is None


def test_flattened_is_the_root_of_the_singular_values_without_the_eight_largest() -> None:
    rows = table(60, 40, 5)
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    expected = (left[:, 8:] * np.sqrt(values[8:])) @ right[8:]
    assert np.allclose(sketch.flattened(rows), expected, atol=1e-8)


def test_wide_and_tall_tables_agree() -> None:
    """Zero rows turn a wide table into a tall one, and change nothing but the branch that is taken."""
    wide = table(50, 90, 6)
    tall = np.vstack([wide, np.zeros((60, 90))])
    assert np.allclose(sketch.flattened(tall)[:50], sketch.flattened(wide), atol=1e-8)
    assert np.abs(sketch.flattened(tall)[50:]).max() < 1e-8


# ---- branch products --------------------------------------------------------------------------------------------

HEADS, KV, DIM, UNITS, WIDTH = 4, 2, 8, 40, 48


def anchors(seed: int = 0) -> F64:
    return np.random.default_rng([seed, 1]).standard_normal((sketch.ANCHORS_KEPT, WIDTH)) / np.sqrt(WIDTH)


def branch(seed: int, **changed: F64) -> Branches:
    """A layer: matrices (units, d) times anchors; `changed` are the matrices to take instead."""
    rng = np.random.default_rng([seed, 2])
    sizes = {"q": HEADS * DIM, "k": KV * DIM, "v": KV * DIM, "o": HEADS * DIM, "gate": UNITS, "up": UNITS}
    units = {role: anchors() @ rng.standard_normal((WIDTH, size)) for role, size in (sizes | {"down": UNITS}).items()}
    return Branches(units | changed, DIM, {})


def same(one: Branches, other: Branches) -> bool:
    return bool(np.allclose(sketch.full_sketch(one, anchors()), sketch.full_sketch(other, anchors()), atol=1e-9))


def cosines(one: Branches, other: Branches) -> dict[str, float]:
    a, b = (sketch.full_sketch(layer, anchors()).reshape(-1, BLOCK) for layer in (one, other))
    return dict(zip(sketch.PRODUCTS, (a * b).sum(axis=1).tolist(), strict=True))


def by_head(values: F64, change: Callable[[F64], F64]) -> F64:
    """Change (k, heads, DIM) instead of (k, units)."""
    return change(values.reshape(len(values), -1, DIM)).reshape(len(values), -1)


def turned(values: F64, turn: F64) -> F64:
    return by_head(values, lambda x: x @ turn)


def test_the_order_of_neurons_does_not_count() -> None:
    layer, order = branch(1), np.random.default_rng(0).permutation(UNITS)
    moved = {role: layer.units[role][:, order] for role in ("gate", "up", "down")}
    assert same(layer, replace(layer, units=layer.units | moved))
    assert not same(layer, replace(layer, units=layer.units | {"up": moved["up"]}))


def test_the_order_of_heads_does_not_count() -> None:
    """Key-value heads in another order, with the query heads that read them, and those in another order among them."""
    layer, kv, group = branch(1), np.array([1, 0]), np.array([1, 0])
    queries = (2 * kv[:, None] + group).ravel()
    moved = {r: by_head(layer.units[r], lambda x: x[:, kv]) for r in ("k", "v")}
    moved |= {r: by_head(layer.units[r], lambda x: x[:, queries]) for r in ("q", "o")}
    assert same(layer, replace(layer, units=layer.units | moved))
    assert not same(layer, replace(layer, units=layer.units | {"k": moved["k"]}))


def test_a_rotation_inside_the_heads_does_not_count() -> None:
    layer, rng = branch(1), np.random.default_rng(4)
    qk, vo = rotation(DIM, rng), rotation(DIM, rng)
    moved = {r: turned(layer.units[r], qk) for r in ("q", "k")} | {r: turned(layer.units[r], vo) for r in ("v", "o")}
    assert same(layer, replace(layer, units=layer.units | moved))
    assert not same(layer, replace(layer, units=layer.units | {"q": moved["q"]}))


def test_rescaling_in_pairs_does_not_count() -> None:
    layer, rng = branch(1), np.random.default_rng(5)
    neurons = np.exp(rng.standard_normal(UNITS)) * rng.choice([-1.0, 1.0], UNITS)
    heads = np.exp(rng.standard_normal(KV))
    repeated = np.repeat(heads, HEADS // KV)
    moved = {"up": layer.units["up"] * neurons, "down": layer.units["down"] / neurons}
    moved |= {r: by_head(layer.units[r], lambda x: x * heads[:, None]) for r in ("k", "v")}
    moved |= {r: by_head(layer.units[r], lambda x: x / repeated[:, None]) for r in ("q", "o")}
    assert same(layer, replace(layer, units=layer.units | moved))
    assert not same(layer, replace(layer, units=layer.units | {"up": moved["up"]}))


def test_the_scale_of_a_branch_does_not_count() -> None:
    layer = branch(1)
    assert same(layer, replace(layer, units={role: (i + 1) * v for i, (role, v) in enumerate(layer.units.items())}))


def test_shared_keys_and_values_are_those_of_every_query_head() -> None:
    layer = branch(1)
    repeated = {r: by_head(layer.units[r], lambda x: np.repeat(x, HEADS // KV, axis=1)) for r in ("k", "v")}
    assert same(layer, replace(layer, units=layer.units | repeated))


def test_query_and_key_gains_are_folded_and_their_heads_count_alike() -> None:
    layer, rng = branch(1), np.random.default_rng(6)
    gains = {role: np.exp(rng.standard_normal(DIM)).astype(np.float32) for role in "qk"}
    ones = {role: np.ones(DIM, np.float32) for role in "qk"}
    by_hand = {r: by_head(layer.units[r], lambda x, g=gains[r]: x * g.astype(np.float64)) for r in "qk"}
    normed = replace(layer, gains=gains)
    assert same(normed, replace(layer, units=layer.units | by_hand, gains=ones))
    louder = by_head(layer.units["q"], lambda x: x * np.array([100.0, 1.0, 0.01, 1.0])[:, None])
    assert same(normed, replace(normed, units=layer.units | {"q": louder}))
    assert not same(layer, replace(layer, units=layer.units | {"q": louder}))
    whole = replace(layer, gains={"q": np.tile(gains["q"], HEADS), "k": np.tile(gains["k"], KV)})
    assert same(normed, whole)  # a gain for all heads at once
    odd = replace(layer, gains={role: np.full(DIM - 1, 3.0, np.float32) for role in "qk"})
    assert same(odd, replace(layer, gains=ones))  # one that does not fit


def test_gates_count_by_direction_where_they_may_be_rescaled() -> None:
    layer, scale = branch(1), np.exp(np.random.default_rng(7).standard_normal(UNITS))
    scaled = {"gate": layer.units["gate"] * scale}
    free = replace(layer, rescalable=True)
    assert same(free, replace(free, units=layer.units | scaled))
    assert not same(layer, replace(layer, units=layer.units | scaled))


def test_the_identity_part_is_removed() -> None:
    """Up and down with a multiple of the identity between them: as a residual connection would add."""
    layer = branch(1)
    more = {
        "up": np.concatenate([layer.units["up"], 7.0 * anchors()], axis=1),
        "down": np.concatenate([layer.units["down"], anchors()], axis=1),
    }
    assert abs(cosines(layer, replace(layer, units=layer.units | more))["ud"] - 1) < 1e-9
    nothing_else = replace(layer, units=layer.units | {"up": anchors(), "down": 3.0 * anchors()})
    assert not sketch.full_sketch(nothing_else, anchors()).reshape(-1, BLOCK)[2].any()


@pytest.mark.parametrize(
    ("missing", "zero"),
    [(("q",), {"qk"}), (("k",), {"qk"}), (("v",), {"vo"}), (("o",), {"vo"}), (("down",), {"ud"}),
     (("gate",), set()), (("up", "gate"), {"ud", "gg"}), (("q", "k", "v", "o"), {"qk", "vo"})],
)  # fmt: skip
def test_a_product_that_cannot_be_made_is_zero(missing: Sequence[str], zero: set[str]) -> None:
    layer = branch(1)
    part = replace(layer, units={role: v for role, v in layer.units.items() if role not in missing})
    found = cosines(part, part)
    assert {name for name, value in found.items() if value == 0} == zero
    assert all(value == pytest.approx(1.0) for name, value in found.items() if name not in zero)


def test_what_is_not_finite_makes_its_product_zero_and_no_other() -> None:
    layer = branch(1)
    for bad in (np.nan, np.inf):
        broken = layer.units["k"].copy()
        broken[3, 3] = bad
        with np.errstate(invalid="ignore"):
            found = cosines(layer, replace(layer, units=layer.units | {"k": broken}))
        assert found == pytest.approx({"qk": 0.0, "vo": 1.0, "ud": 1.0, "gg": 1.0})


def test_strangers_are_at_chance() -> None:
    found = np.array([list(cosines(branch(2 * i), branch(2 * i + 1)).values()) for i in range(100)])
    gg, others = found[:, 3], found[:, :3]
    assert np.abs(others.mean(axis=0)).max() < 3.3 * others.std() / 10 and np.abs(others).max() < 0.35
    assert gg.max() < 0.6  # a Gram matrix against another: both are positive


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.fixed_dictionaries({role: st.integers(0, 20) for role in ("q", "k", "v", "o", "gate", "up", "down")}),
    head_dim=st.integers(0, 9),
    gain=st.integers(0, 12),
)
def test_shapes_that_do_not_fit_are_never_an_error(sizes: dict[str, int], head_dim: int, gain: int) -> None:
    rng = np.random.default_rng(0)
    units = {role: rng.standard_normal((sketch.ANCHORS_KEPT, size)) for role, size in sizes.items()}
    layer = Branches(units, head_dim, {"q": np.ones(gain, np.float32)} if gain else {})
    made = sketch.full_sketch(layer, anchors())
    lengths = np.sqrt((made.reshape(-1, BLOCK) ** 2).sum(axis=1))
    assert made.shape == (sketch.FULL,) and all(n == 0 or abs(n - 1) < 1e-9 for n in lengths)


# ---- projection, late interaction -------------------------------------------------------------------------------


def full(count: int, seed: int) -> dict[tuple[str, int], F64]:
    rng = np.random.default_rng(seed)
    return {("decoder", i): rng.standard_normal(sketch.FULL) for i in range(count)}


def sketches(count: int, seed: int) -> BranchSketches:
    made = sketch.projected(full(count, seed))
    assert made is not None
    return made


def test_projections_are_unit_rows_that_keep_inner_products() -> None:
    one, rng = full(20, 1), np.random.default_rng(2)
    other = {key: 0.8 * v + 0.6 * rng.standard_normal(v.size) for key, v in one.items()}
    a, b = sketch.projected(one), sketch.projected(other)
    assert a is not None and b is not None
    assert (a.layers.shape, a.whole.shape, a.layers.dtype) == ((20, sketch.LAYER), (sketch.MODEL,), np.float16)
    assert np.allclose((a.layers.astype(float) ** 2).sum(axis=1), 1, atol=2e-3)
    found = sketch.similarities(a, b)
    assert np.abs(np.diag(found) - 0.8).max() < 4 / np.sqrt(sketch.LAYER)
    assert abs(found[~np.eye(20, dtype=bool)].mean()) < 0.02
    assert abs(float(a.whole.astype(float) @ b.whole.astype(float)) - 0.8) < 4 / np.sqrt(sketch.MODEL)


def test_layers_without_anything_in_them_are_left_out() -> None:
    made = full(3, 1)
    made["decoder", 1] = np.zeros(sketch.FULL)
    found = sketch.projected(made)
    assert found is not None and found.keys == (("decoder", 0), ("decoder", 2))
    assert sketch.projected({("decoder", 0): np.zeros(sketch.FULL)}) is None and sketch.projected({}) is None


def test_similarities_are_never_above_one() -> None:
    made = sketches(200, 3)
    assert np.diag(sketch.similarities(made, made)).max() <= 1.0


def late(a: BranchSketches, b: BranchSketches) -> float:
    """The score, after checking that it does not depend on the order of the two."""
    found = sketch.late_interaction(sketch.similarities(a, b))
    assert sketch.late_interaction(sketch.similarities(b, a)) == pytest.approx(found, abs=1e-12)
    return found


def test_late_interaction_asks_each_layer_of_the_shallower_model() -> None:
    deep = sketches(8, 1)
    shallow = replace(deep, keys=deep.keys[:3], layers=deep.layers[[1, 4, 6]])
    assert late(deep, deep) == pytest.approx(1.0, abs=2e-3) and late(deep, shallow) == pytest.approx(1.0, abs=2e-3)
    half = replace(deep, layers=np.concatenate([deep.layers[:4], sketches(4, 2).layers]))
    assert late(deep, half) == pytest.approx(0.5, abs=0.1)
    # of two that are as deep, both ask: what B repeats is not the whole of A
    assert 0.4 < late(deep, replace(deep, layers=deep.layers[[0] * 8])) < 0.7


@pytest.mark.parametrize(("one", "other"), [(1, 1), (2, 2), (4, 30), (30, 30), (5, 80)])
def test_late_interaction_of_strangers_is_zero_at_any_depth(one: int, other: int) -> None:
    """The best of many layers is no nearer to a stranger than one layer is."""
    rows = np.random.default_rng([one, other]).standard_normal((100, one + other, sketch.LAYER))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    found = np.array([sketch.late_interaction(x[:one] @ x[one:].T) for x in rows])
    assert abs(found.mean()) < 0.01 + 3.3 * found.std() / 10


# ---- sketches and neurons of models -----------------------------------------------------------------------------


def alike(a: Fingerprint, b: Fingerprint) -> None:
    """Sketches and neurons of two fingerprints are equal to the last bit."""
    assert a.sketches is not None and a.sketches_by_id is not None and a.neurons is not None
    for one, other in ((a.sketches, b.sketches), (a.sketches_by_id, b.sketches_by_id)):
        assert other is not None and one.keys == other.keys
        assert np.array_equal(one.layers, other.layers) and np.array_equal(one.whole, other.whole)
    assert b.neurons is not None and a.neurons.keys == b.neurons.keys
    for name in ("heights", "units", "lengths", "by_string", "by_id"):
        assert np.array_equal(getattr(a.neurons, name), getattr(b.neurons, name)), name


def test_fused_matrices_are_those_they_are_made_of() -> None:
    plain = zoo.llama(1)
    fused = {
        n: v for n, v in plain.tensors.items() if not any(p in n for p in ("q_proj", "k_proj", "v_proj", "gate", "up"))
    }
    for i in range(plain.config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for parts, name in ((("q", "k", "v"), "self_attn.qkv"), (("gate", "up"), "mlp.gate_up")):
            stem = name.split(".")[0]
            fused[f"{at}{name}_proj.weight"] = np.concatenate(
                [plain.tensors[f"{at}{stem}.{p}_proj.weight"] for p in parts]
            )
    alike(fingerprint(plain), fingerprint(plain.with_tensors(fused, model_type="phi3")))


def test_files_do_not_count(tmp_path: Path) -> None:
    checkpoint = zoo.cast(zoo.llama(1), "BF16")
    expected = fingerprint(checkpoint)
    for i, options in enumerate(
        ({"dtype": "BF16"}, {"dtype": "F32", "shards": 3, "order": 1}, {"prefix": "base_model."})
    ):
        alike(expected, fingerprint_model(open_model(str(zoo.write(checkpoint, tmp_path / str(i), **options)))))


def weights_of(tensors: dict[str, F32]) -> Weights:
    return Weights({n: tensor_from_array(n, v) for n, v in tensors.items()}, None, (), {}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["up", "down"])
def test_transposed_matrices_are_plain_ones(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows, so that both ways of going through a matrix take several."""
    monkeypatch.setattr(branches, "PIECE", 7 * 24)
    monkeypatch.setattr(branches, "TURNED", 5 * 24)
    rng = np.random.default_rng(1)
    stored = rng.standard_normal((40, 24) if role == "up" else (24, 40)).astype(np.float32)
    w = weights_of({"plain": stored, "turned": np.ascontiguousarray(stored.T)})
    left, gain = rng.standard_normal((6, 24)), np.exp(rng.standard_normal(24))
    folded, units = left * gain, rng.permutation(40)[:13]
    whole = stored.astype(np.float64) if role == "up" else stored.T.astype(np.float64)
    scaled = whole * gain
    for name in ("plain", "turned"):
        part = Part(role, transposed=name == "turned")
        place = Placement(name, (part,))
        products, lengths = branches._times(w, folded, gain, False, role, place, part)
        assert np.allclose(products, left @ scaled.T) and np.allclose(lengths, np.linalg.norm(scaled, axis=1))
        _, lengths = branches._times(w, folded, gain, True, role, place, part)
        assert np.allclose(lengths, np.linalg.norm(scaled - scaled.mean(axis=1, keepdims=True), axis=1))
        assert np.allclose(branches._some(w, folded, role, place, part, units), scaled[units] @ left.T)


@pytest.mark.parametrize("make", [zoo.llama, zoo.gpt2])
def test_sampled_mode_reads_two_layers_as_exact_mode_does(make: Callable[..., zoo.Checkpoint]) -> None:
    checkpoint = make(1, layers=6)
    exact, sampled = fingerprint(checkpoint), fingerprint(checkpoint, mode="sampled")
    for one, other in ((exact.sketches, sampled.sketches), (exact.sketches_by_id, sampled.sketches_by_id)):
        assert one is not None and other is not None
        assert other.keys == (("decoder", 2), ("decoder", 4))
        assert np.array_equal(other.layers, one.layers[[2, 4]])
    assert exact.neurons is not None and sampled.neurons is not None and sampled.neurons.keys == other.keys
    for key in other.keys:
        ours, theirs = exact.neurons.places[key], sampled.neurons.places[key]
        for name in ("units", "lengths", "by_string", "by_id"):
            assert np.array_equal(getattr(exact.neurons, name)[ours], getattr(sampled.neurons, name)[theirs]), name


def test_large_models_keep_fewer_neurons_of_each_layer_and_those_that_do_the_most() -> None:
    checkpoint = zoo.llama(1, layers=16, intermediate=200)
    made = fingerprint(checkpoint).neurons
    assert made is not None and set(made.heights.tolist()) == {aligned.neurons_kept(16)} == {96}
    gate = checkpoint.tensors["model.layers.3.mlp.gate_proj.weight"].astype(np.float64)
    gain = checkpoint.tensors["model.layers.3.post_attention_layernorm.weight"].astype(np.float64)
    up, down = (checkpoint.tensors[f"model.layers.3.mlp.{n}_proj.weight"].astype(np.float64) for n in ("up", "down"))
    lengths = [np.linalg.norm(rows, axis=1) for rows in (gate * gain, up * gain, down.T)]
    most = np.argsort(-np.prod(lengths, axis=0), kind="stable")[:96]
    assert np.array_equal(made.units[made.places[("decoder", 3)]], most)


def test_the_order_of_experts_does_not_count() -> None:
    plain = shrunk("qwen3_moe", 1, vocabulary=600)
    changed = disguises.disguise("permute_experts", plain, 3)
    assert isinstance(changed, Snapshot)
    a, b = (
        fingerprint(zoo.Checkpoint(dict(s.config), {n: t.astype(np.float32) for n, t in s.tensors.items()}))
        for s in (plain, changed)
    )
    assert a.sketches_by_id is not None and b.sketches_by_id is not None
    assert np.diag(sketch.similarities(a.sketches_by_id, b.sketches_by_id)).min() > 0.999
    assert a.neurons is not None and b.neurons is not None
    found = aligned.triple_agreement(
        a.neurons, b.neurons, {"by_id": [[(key, key) for key in a.neurons.keys]]}
    ).agreements
    assert len(found) == len(a.neurons.keys)
    assert all(f.share == 1.0 for f in found) and any((f.units_a != f.units_b).any() for f in found)


@settings(max_examples=12, deadline=None)
@example(rows=dict.fromkeys(("q", "k", "v", "gate", "up"), 16), width=16)
@given(
    rows=st.fixed_dictionaries({r: st.integers(1, 40) for r in ("q", "k", "v", "gate", "up")}), width=st.integers(1, 70)
)
def test_models_whose_matrices_do_not_fit_have_fingerprints(rows: dict[str, int], width: int) -> None:
    checkpoint = zoo.llama(1, layers=1, hidden=32, intermediate=40)
    tensors, rng = dict(checkpoint.tensors), np.random.default_rng(0)
    for name in tensors:
        for role, count in rows.items():
            if f"{role}_proj" in name:
                tensors[name] = rng.standard_normal((count, 32)).astype(np.float32)
        if "down_proj" in name:
            tensors[name] = rng.standard_normal((32, width)).astype(np.float32)
    made = fingerprint(checkpoint.with_tensors(tensors))
    if made.sketches is not None:
        assert np.isfinite(made.sketches.layers).all()
    fits = rows["gate"] == rows["up"] == width
    assert (made.neurons is not None) == fits and (fits or made.absences["neurons"])


def test_broken_weights_leave_out_what_they_touch() -> None:
    tensors = {n: v.copy() for n, v in zoo.llama(1).tensors.items()}
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    tensors["model.layers.1.self_attn.k_proj.weight"][0, :2] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, broken = fingerprint(zoo.llama(1)), fingerprint(zoo.llama(1).with_tensors(tensors))
    assert whole.sketches is not None and broken.sketches is not None
    similar = np.diag(sketch.similarities(whole.sketches, broken.sketches))
    assert min(similar[[0, 2]]) > 0.999 and 0.3 < similar[1] < 0.9
    assert broken.neurons is not None and np.isfinite(broken.neurons.by_string).all()


def test_without_tokens_there_is_a_reason() -> None:
    tensors = {n: v for n, v in zoo.llama(1).tensors.items() if "embed" not in n}
    made = fingerprint(zoo.llama(1).with_tensors(tensors))
    assert made.sketches is None and made.sketches_by_id is None and made.neurons is None
    assert made.absences["branches"] and made.absences["neurons"]


# ---- retrieval --------------------------------------------------------------------------------------------------


def test_candidates_are_ranked_by_the_better_naming() -> None:
    one, other, stranger = sketches(4, 1), sketches(4, 2), sketches(4, 3)
    found = retrieval.rerank(
        (one, other), [(one, stranger), (stranger, other), (stranger, None), (None, None), (None, other)]
    )
    assert found[[0, 1, 4]] == pytest.approx([1.0] * 3, abs=2e-3)
    assert abs(found[2]) < 0.4 and found[3] == 0.0
    assert retrieval.rerank((None, None), [(one, other)]).tolist() == [0.0]
    assert retrieval.rerank((one, other), []).size == 0


def search(rows: Sequence[int], scores: Sequence[float]) -> tuple[NDArray[np.int64], F64]:
    return np.array(rows, np.int64), np.array(scores, np.float64)


def test_searches_take_turns_and_the_clearest_hit_comes_first() -> None:
    flat = search([1, 2, 3, 4], [0.92, 0.91, 0.9, 0.89])
    clear = search([9, 2, 7, 6], [0.8, 0.1, 0.09, 0.08])
    assert retrieval.in_turn([flat, clear]) == retrieval.in_turn([clear, flat]) == [9, 1, 2, 7, 3, 6, 4]
    short = search([5, 1], [1.0, 0.0])  # too few to have a spread: last
    assert retrieval.in_turn([short, flat]) == [1, 5, 2, 3, 4]
    assert retrieval.in_turn([]) == [] and retrieval.in_turn([search([], [])]) == []


def block(fp: Fingerprint, name: str) -> F32:
    start = 0
    for other, (width, _) in retrieval.BLOCKS.items():
        if other == name:
            return retrieval.vector(fp)[start : start + width]
        start += width
    raise KeyError(name)


def test_the_digest_block_is_about_the_share_of_equal_blocks() -> None:
    parent, stranger = zoo.llama(1, layers=6), zoo.llama(2, layers=6)
    mixed = {n: stranger.tensors[n] if ".layers.0." in n or ".layers.1." in n else v for n, v in parent.tensors.items()}
    made = [fingerprint(c) for c in (parent, parent.with_tensors(mixed), stranger)]
    same, part, none = (float(block(made[0], "digests") @ block(fp, "digests")) for fp in made)
    weight = retrieval.BLOCKS["digests"][1]
    assert same == pytest.approx(weight, rel=1e-4)
    assert 0.45 < part / weight < 0.9 and abs(none) < 0.35 * weight
    assert not block(replace(made[0], blocks=None), "digests").any()


def test_the_vabs_blocks_are_the_model_sketches() -> None:
    made: Any = fingerprint(zoo.llama(1))
    for name, own in (("vabs", made.sketches), ("vabs_by_id", made.sketches_by_id)):
        cosine = float(block(made, name).astype(float) @ own.whole.astype(float))
        assert cosine == pytest.approx(np.sqrt(retrieval.BLOCKS[name][1]), rel=2e-3)
        assert not block(replace(made, sketches=None, sketches_by_id=None), name).any()
    assert len(retrieval.searches(retrieval.vector(made))) == 8
