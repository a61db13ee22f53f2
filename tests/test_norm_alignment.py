"""E6: ranks of norm gains and biases, the vectors that a row keeps, and mode "norms"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from hub_server import Hub
from numpy.typing import NDArray
from prints import fingerprint

from provindex.api import Index, fill_index, gate, resolve
from provindex.common.errors import IndexFormatError
from provindex.common.reasons import Code
from provindex.common.score import Outcome
from provindex.evidence.norm_alignment import bias_alignment, norm_alignment
from provindex.evidence.vectors import PLACES, Vector, Vectors, mean_ranks, ordered, places
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.verdict.pair import compare

F32 = NDArray[np.float32]
STACKS = frozenset({"decoder"})
D, LAYERS = 96, 12


def gains(seed: int, layers: int = LAYERS, width: int = D, spread: float = 0.1) -> list[F32]:
    return [(1 + spread * v).astype(np.float32) for v in np.random.default_rng(seed).standard_normal((layers, width))]


def moved(vectors: Sequence[F32], seed: int, by: float = 0.1) -> list[F32]:
    rng = np.random.default_rng(seed)
    return [(v + by * rng.standard_normal(v.size)).astype(np.float32) for v in vectors]


def named(vectors: Sequence[F32], names: Sequence[str] = ()) -> Vectors:
    """Vectors of residual width, with roles or without."""
    names = names or [f"decoder.{i // 2}.{'norm_mlp' if i % 2 else 'norm_attn'}.weight" for i in range(len(vectors))]
    return Vectors(tuple(Vector(n, v.size, v, norm=True) for n, v in zip(names, vectors, strict=True)))


def nameless(vectors: Sequence[F32]) -> Vectors:
    return named(vectors, [""] * len(vectors))


def outcome(a: Vectors, b: Vectors, width: int = D) -> Outcome:
    return norm_alignment(a, b, (width, width), STACKS)


def p_of(a: Vectors, b: Vectors) -> float:
    found = outcome(a, b).log10_p
    assert found is not None
    return found


def test_a_child_is_linked_and_a_stranger_is_not() -> None:
    parent = gains(1)
    child, stranger = outcome(named(parent), named(moved(parent, 2))), outcome(named(parent), named(gains(3)))
    assert child.value is not None and child.value > 0.4 and (child.log10_p or 0) < -60 and child.n == D
    assert stranger.log10_p is not None and stranger.log10_p > -3 and stranger.chance == 1 / D


def test_both_directions_say_the_same() -> None:
    a, b = named(gains(1)), named(moved(gains(1), 2, 0.3))
    assert outcome(a, b) == outcome(b, a)


@pytest.mark.parametrize("levels", [0, 40, 16])
def test_p_values_hold_on_strangers(levels: int) -> None:
    """P(p <= a) <= a, also where 16-bit gains repeat: tied values get their mean rank, not an order by index."""

    def one(seed: int) -> Vectors:
        vectors = gains(seed, 6, 64)
        return named([np.round(v * levels) / levels if levels else v for v in vectors])

    found = np.array([norm_alignment(one(2 * i), one(2 * i + 1), (64, 64), STACKS).log10_p for i in range(1000)])
    for level in (0.05, 0.01):
        most = 1000 * level + 3.3 * math.sqrt(1000 * level * (1 - level))
        assert (found <= math.log10(level)).sum() <= most
    assert found.min() > -5


def test_layers_in_another_order_are_paired_by_their_sorted_values() -> None:
    parent = [v * (1 + i / 4) for i, v in enumerate(gains(1))]
    order = np.random.default_rng(4).permutation(LAYERS)
    child = [moved(parent, 2, 0.01)[i] for i in order]
    assert p_of(nameless(parent), nameless(child)) < -60
    stranger = [v * (1 + i / 4) for i, v in enumerate(gains(3))]
    assert p_of(nameless(parent), nameless([stranger[i] for i in order])) > -3


def test_models_without_a_layer_in_common_share_the_basis() -> None:
    """What one coordinate has in all layers is seen where no vector of one model is in the other."""
    base = np.random.default_rng(9).standard_normal(D).astype(np.float32)
    a, b = ([(v + 0.1 * base).astype(np.float32) for v in gains(seed, 8)] for seed in (1, 2))
    assert p_of(named(a), named(b[:6])) < -6


def test_width_is_inferred_where_no_role_is_known() -> None:
    other = [np.linspace(0, 1, 30).astype(np.float32)]
    found = norm_alignment(nameless([*gains(1), *other]), nameless(moved(gains(1), 2)), (0, 0), STACKS)
    assert found.n == D and (found.log10_p or 0) < -60


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: (named([np.ones(D, np.float32)] * 4), named(gains(1))), Code.SIDE_WITHOUT_GAINS),
        (lambda: (named(gains(1)), None), Code.SIDE_WITHOUT_GAINS),
        (lambda: (named([np.sort(v) for v in gains(1)]), named(gains(2))), Code.COORDINATES_ORDERED),
        (lambda: (named([np.sin(np.arange(D) / 5).astype(np.float32) + v for v in gains(1)]), named(gains(2))),
         Code.COORDINATES_ORDERED),
        (lambda: (named([np.repeat(v[:8], 12) for v in gains(1)]), named(gains(2))), Code.COORDINATES_FEW),
    ],
)  # fmt: skip
def test_it_is_absent_with_its_reason(make, code: Code) -> None:  # type: ignore[no-untyped-def]
    a, b = make()
    found = norm_alignment(a, b, (D, D), STACKS)
    assert found.value is None and [reason.code for reason in found.reasons] == [code]


def test_other_widths_are_absent() -> None:
    found = norm_alignment(named(gains(1)), named(gains(2, width=64)), (D, 64), STACKS)
    assert [reason.code for reason in found.reasons] == [Code.WIDTHS_DIFFER]


def test_a_few_ordered_vectors_are_left_out() -> None:
    """Else the order of both would align strangers."""
    order = np.linspace(0, 2, D).astype(np.float32)
    a, b = ([v + order if i < 2 else v for i, v in enumerate(gains(seed))] for seed in (1, 2))
    assert p_of(named(a), named(b)) > -3


def test_padding_counts_on_neither_side() -> None:
    """Equal places of equal coordinates would align strangers."""
    pad = np.zeros(48, np.float32)
    a, b = (named([np.concatenate([v, pad]) for v in gains(seed)]) for seed in (1, 2))
    found = outcome(a, b, D + 48)
    assert found.n == D and (found.log10_p or 0) > -3


def test_one_vector_alone_decides_by_its_ranks() -> None:
    parent = gains(1, 1, 512)
    assert (norm_alignment(named(parent), named(moved(parent, 2)), (512, 512), STACKS).log10_p or 0) < -6
    assert (norm_alignment(named(parent), named(gains(2, 1, 512)), (512, 512), STACKS).log10_p or 0) > -3


def test_norms_of_heads_and_of_other_towers_do_not_count() -> None:
    shared = gains(1)
    roles = [f"decoder.{i}.norm_q.weight" for i in range(6)] + [f"vision.{i}.norm_attn.weight" for i in range(6)]
    own = [f"decoder.{i}.norm_attn.weight" for i in range(LAYERS)]
    a, b = (named([*shared, *gains(seed)], [*roles, *own]) for seed in (2, 3))
    assert p_of(a, b) > -3


def test_mean_ranks_are_those_of_a_slow_reference() -> None:
    values = np.random.default_rng(1).integers(0, 5, (3, 20)).astype(np.float32)
    slow = [[(row < x).sum() + ((row == x).sum() - 1) / 2 for x in row] for row in values]
    assert np.array_equal(mean_ranks(values), slow)


def test_wide_models_are_compared_at_fixed_places() -> None:
    parent = gains(1, 4, 5000)
    found = norm_alignment(named(parent), named(moved(parent, 2)), (5000, 5000), STACKS)
    assert found.n == PLACES and (found.log10_p or 0) < -60
    assert (
        places(3).tolist() == [0, 1, 2]
        and not ordered(np.random.default_rng(1).permutation(500).astype(float)[None]).any()
    )


# --- biases ---


def biases(seed: int, role: str, size: int = 256, layers: int = 4) -> Vectors:
    values = gains(seed, layers, size)
    return Vectors(
        tuple(Vector(f"decoder.{i}.{role}.bias", size, v, norm=False) for i, v in enumerate(values)), head_dim=32
    )


@pytest.mark.parametrize("role", ["up", "v"])
def test_biases_of_units_link_and_do_not(role: str) -> None:
    parent = biases(1, role)
    child = replace(parent, vectors=tuple(replace(v, values=moved([v.values], 3)[0]) for v in parent.vectors))
    assert (bias_alignment(parent, child, STACKS).log10_p or 0) < -40
    assert (bias_alignment(parent, biases(2, role), STACKS).log10_p or 0) > -3
    assert bias_alignment(parent, child, STACKS).n == 4 * 256


def test_p_values_of_biases_hold_on_strangers() -> None:
    found = np.array(
        [bias_alignment(biases(2 * i, "v", 64), biases(2 * i + 1, "v", 64), STACKS).log10_p for i in range(1000)]
    )
    for level in (0.05, 0.01):
        assert (found <= math.log10(level)).sum() <= 1000 * level + 3.3 * math.sqrt(1000 * level * (1 - level))


@pytest.mark.parametrize(("layers", "size", "nonzero"), [(6, 256, 1), (12, 1024, 2), (24, 512, 3), (12, 256, 64)])
def test_biases_that_are_mostly_zero_align_nobody(layers: int, size: int, nonzero: int) -> None:
    """Coincidences of a few units are no evidence: the variance is that of ranks without ties."""

    def sparse(seed: int) -> Vectors:
        rng = np.random.default_rng(seed)
        values = np.zeros((layers, size), np.float32)
        for row in values:
            row[rng.choice(size, nonzero, replace=False)] = rng.standard_normal(nonzero)
        return Vectors(tuple(Vector(f"decoder.{i}.up.bias", size, v, norm=False) for i, v in enumerate(values)))

    found = [bias_alignment(sparse(2 * i), sparse(2 * i + 1), STACKS).log10_p or 0.0 for i in range(200)]
    assert min(found) > -5 and sum(p <= -2 for p in found) <= 8


@pytest.mark.parametrize(("layers", "dead", "shift"), [(48, 64, -1.0), (24, 128, -0.5), (24, 1, -3.0)])
def test_dead_units_at_equal_places_align_nobody(layers: int, dead: int, shift: float) -> None:
    def padded(seed: int) -> Vectors:
        values = np.random.default_rng(seed).standard_normal((layers, 1024)).astype(np.float32) + np.float32(shift)
        values[:, 1024 - dead :] = 0
        return Vectors(tuple(Vector(f"decoder.{i}.up.bias", 1024, v, norm=False) for i, v in enumerate(values)))

    assert (bias_alignment(padded(1), padded(2), STACKS).log10_p or 0.0) > -4


@pytest.mark.parametrize(
    "wave",
    [
        lambda at: 0.3 * np.sin(2 * np.pi * at / 4),
        lambda at: 0.3 * np.sin(2 * np.pi * at / 50),
        lambda at: 0.2 * np.where(at // 64 % 2, 1.0, -1.0),
        lambda at: 0.08 * (at - at.mean()) / at.std(),
    ],
)
def test_an_order_that_is_weak_in_every_vector_is_seen_in_all(wave: Callable[[NDArray[np.float64]], Any]) -> None:
    """It adds up over vectors in the test, so it does in the check of the null."""
    order = wave(np.arange(1024.0))
    a, b = (
        named([(v + order).astype(np.float32) for v in np.random.default_rng(seed).standard_normal((64, 1024))])
        for seed in (1, 2)
    )
    assert a.residual(1024, STACKS).ordered <= 2
    assert [r.code for r in outcome(a, b, 1024).reasons] == [Code.AXIS_ORDERED]


def test_the_check_refuses_few_models_whose_coordinates_are_exchangeable() -> None:
    """Vectors that correlate with each other (a coordinate has a gain of its own in all layers) refuse no more."""
    refused = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        common = rng.standard_normal(256)
        vectors = [(0.8 * common + 0.6 * v).astype(np.float32) for v in rng.standard_normal((24, 256))]
        refused += named(vectors).residual(256, STACKS).together
    assert refused <= 1


def test_heads_that_differ_in_their_mean_align_nobody() -> None:
    """Heads have an order that files keep; only channels within a head are exchanged."""
    level = np.repeat(np.arange(8), 32).astype(np.float32)
    a, b = (
        replace(one, vectors=tuple(replace(v, values=v.values + level) for v in one.vectors))
        for one in (biases(1, "v"), biases(2, "v"))
    )
    assert (bias_alignment(a, b, STACKS).log10_p or 0) > -3


def test_sorted_units_are_left_out() -> None:
    a, b = (
        replace(one, vectors=tuple(replace(v, values=np.sort(v.values)) for v in one.vectors))
        for one in (biases(1, "up"), biases(2, "up"))
    )
    assert [r.code for r in bias_alignment(a, b, STACKS).reasons] == [Code.SIDE_WITHOUT_BIASES]


# --- in fingerprints ---


@pytest.fixture(scope="module")
def models() -> dict[str, zoo.Checkpoint]:
    return {"llama": zoo.llama(1, hidden=64), "gpt2": zoo.gpt2(1), "bert": zoo.bert(1, hidden=64)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_row_keeps_the_vectors(models: dict[str, zoo.Checkpoint], name: str) -> None:
    made = fingerprint(models[name])
    again = from_row(to_row(made))
    ours, theirs = made.value("vectors"), again.value("vectors")
    assert [(v.address, v.size, v.norm) for v in ours.vectors] == [(v.address, v.size, v.norm) for v in theirs.vectors]
    assert all(np.array_equal(x.values, y.values) for x, y in zip(ours.vectors, theirs.vectors, strict=True))
    roles = {v.address.split(".")[-2] for v in ours.vectors if v.address}
    assert roles & {"norm_attn", "norm_attn_out"} and roles & {"norm_mlp", "norm_mlp_out"}
    assert (name != "llama") == ({"o", "down", "up", "v"} <= roles)


@pytest.mark.parametrize(
    "damage",
    [
        {"norm_roles": ["x"]},
        {"vector_sizes": np.array([5], np.int32)},
        {"vector_roles": ["decoder.0.up.bias"]},
        {"vector_roles": ["a"], "vector_sizes": np.array([-1], np.int32)},
        {"vector_roles": ["a"], "vector_sizes": np.array([1 << 30], np.int32)},
        {"vectors": np.array([np.nan], np.float32)},
        {"vectors": np.zeros(7, np.float32)},
        {"vector_head_dim": 1 << 40},
        {"vector_head_dim": -1},
    ],
)
def test_damaged_rows_are_refused(models: dict[str, zoo.Checkpoint], damage: dict[str, object]) -> None:
    with pytest.raises(IndexFormatError):
        from_row({**to_row(fingerprint(models["llama"])), **damage})


def test_mode_norms_reads_vectors_alone(models: dict[str, zoo.Checkpoint]) -> None:
    whole, first = fingerprint(models["gpt2"]), fingerprint(models["gpt2"], mode="norms")
    vectors = sum(v.nbytes for v in models["gpt2"].tensors.values() if v.ndim == 1)
    assert first.bytes_read <= vectors < first.bytes_total / 20
    assert first.facts == replace(whole.facts, precision="")
    assert first.absences["WVC"].code is first.absences["hidden"].code is Code.NEEDS_WEIGHTS
    assert first.absences["TFV"].code is Code.TOKENIZER_UNREAD and not first.layers_unread
    kept, same = first.value("vectors"), whole.value("vectors")
    assert all(np.array_equal(x.values, y.values) for x, y in zip(kept.vectors, same.vectors, strict=True))
    assert from_row(to_row(first)).absences == first.absences


def normed(checkpoint: zoo.Checkpoint, seed: int, scale: float = 0.2) -> zoo.Checkpoint:
    """A model whose norms were trained: the zoo's start at one."""
    rng = np.random.default_rng(seed)
    vectors = {n: 1 + scale * rng.standard_normal(v.shape) for n, v in checkpoint.tensors.items() if "norm" in n}
    return replace(checkpoint, tensors={**checkpoint.tensors, **{n: v.astype(np.float32) for n, v in vectors.items()}})


def test_norms_alone_link_a_child_and_say_what_they_rest_on() -> None:
    parent = normed(zoo.llama(1, hidden=128, layers=4), 1)
    child = zoo.finetune_noise(parent, 0.99, 5)
    pair = compare(fingerprint(child, "child", mode="norms"), fingerprint(parent, "parent"))
    assert (pair.verdict, pair.relation, pair.direction) == ("linked", "related", "unknown")
    assert {r.code for r in pair.reasons} == {Code.GAINS_ONLY}  # gains that started as ones were trained together


def test_folded_gains_are_absent_and_clear_nothing() -> None:
    parent = normed(zoo.llama(1, hidden=128, layers=4), 1)
    folded = replace(parent, tensors={n: np.ones_like(v) if "norm" in n else v for n, v in parent.tensors.items()})
    for other in (folded, normed(zoo.llama(2, hidden=128, layers=4), 2)):
        pair = compare(fingerprint(other, "other", mode="norms"), fingerprint(parent, "parent"))
        assert pair.verdict == "inconclusive"
    assert Code.GAINS_NEVER_CLEAR in {r.code for r in pair.reasons}
    assert pair.evidence["norm_alignment"].value is not None


def test_a_model_on_the_hub_gives_the_same_row_by_ranges(hub: Hub, tmp_path: Path) -> None:
    made = zoo.llama(1, hidden=64)
    zoo.write(made, tmp_path / "model", shards=2)
    hub.publish("org/model", {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()})
    here, there = (resolve(name, mode="norms").fingerprint for name in (str(tmp_path / "model"), "org/model"))
    assert to_row(here)["row_sha256"] == to_row(there)["row_sha256"]
    assert not [path for _, path, *_ in hub.log if "tokenizer.json" in path and "/resolve/" in path]
    assert there.bytes_read == here.bytes_read


def test_rows_of_norms_are_found_among_others(tmp_path: Path) -> None:
    parents = [normed(zoo.llama(seed, hidden=128, layers=4), seed) for seed in range(8)]
    rows: list[Fingerprint] = [fingerprint(p, f"org/{i}", mode="norms") for i, p in enumerate(parents)]
    Index.build(rows).save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    found = index.query(fingerprint(zoo.finetune_noise(parents[3], 0.98, 5), "child"), candidates=1)
    assert [match.entry.model_id for match in found.matches] == ["org/3"]


def test_a_row_of_norms_answers_unless_more_is_asked_for(tmp_path: Path) -> None:
    made = normed(zoo.llama(1, hidden=64), 1)
    zoo.write(made, tmp_path / "model")
    built = fill_index(tmp_path / "index", [str(tmp_path / "model")], create=True, mode="norms")
    assert built.added == ("model",) and built.index["model"].mode == "norms"
    index = Index.load(tmp_path / "index")
    assert resolve("model", index=index, offline=True).fingerprint.mode == "norms"
    told: list[str] = []
    for mode, added in (("exact", ("model",)), ("norms", ())):
        again = fill_index(tmp_path / "index", [str(tmp_path / "model")], create=False, mode=mode, report=told.append)
        assert again.added == added and again.index["model"].mode == "exact" and len(again.index) == 1
    assert told == ["replaced model", "present  model"]


def test_a_gate_does_not_pass_on_norms(tmp_path: Path) -> None:
    one, other = (fingerprint(normed(zoo.llama(s, hidden=128), s), f"org/{s}", mode="norms") for s in (1, 2))
    index = Index.build([other])
    (denied,) = gate(index.query(one, also=["org/2"]), ["org/2"], index).denied
    assert denied.status == 3
