"""Verdicts on pairs whose truth is known: independents, children of every kind, and the real snapshots."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import zoo
from prints import fingerprint, independent_pairs, trained

from provindex.common.reasons import Code
from provindex.evidence import exact, hidden_units, residual_basis
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.index.collection import calibration_of
from provindex.models.source import open_model
from provindex.report.words import texts
from provindex.verdict.calibration import Calibration
from provindex.verdict.pair import LayerRange, Pair, compare

Trained = tuple[zoo.Family, Mapping[str, Fingerprint]]
MIRROR = {"ancestor": "descendant", "descendant": "ancestor", "unknown": "unknown", None: None}
KINDS: dict[str, Callable[[int], zoo.Checkpoint]] = {
    "llama": zoo.llama,
    "qwen2": zoo.qwen2,
    "gpt2": zoo.gpt2,
    "gpt_neox": zoo.neox,
    "bert": zoo.bert,
    "t5": zoo.t5,
}


@pytest.fixture(scope="module")
def family(pytestconfig: pytest.Config) -> Trained:
    return trained(pytestconfig.cache.mkdir("zoo"))


@pytest.fixture(scope="module")
def same_config(family: Trained) -> list[tuple[Fingerprint, Fingerprint]]:
    """More than 200 pairs of one config each that share nothing: 69 of really trained models, the rest generated."""
    tree, prints = family
    pairs = [(prints[a], prints[b]) for a, b in independent_pairs(tree)]
    assert len(pairs) >= 40
    for make in KINDS.values():
        made = [fingerprint(make(seed), f"seed {seed}") for seed in range(8)]
        pairs += combinations(made, 2)
    assert len(pairs) >= 200
    return pairs


def mirrored(layers: tuple[LayerRange, ...]) -> tuple[tuple[object, ...], ...]:
    return tuple(sorted((r.stack, r.b, r.a) for r in layers))


def compared(a: Fingerprint, b: Fingerprint, calibration: Calibration | None = None) -> Pair:
    """The verdict on (a, b), after checking that (b, a) gets its mirror image."""
    pair, back = compare(a, b, calibration=calibration), compare(b, a, calibration=calibration)
    assert (pair.verdict, pair.relation, pair.direction) == (back.verdict, back.relation, MIRROR[back.direction])
    assert pair.log10_p == pytest.approx(back.log10_p, abs=1e-6)
    assert tuple((r.stack, r.a, r.b) for r in pair.layer_map) == mirrored(back.layer_map)
    return pair


def label(pair: Pair) -> tuple[str, str | None, str | None]:
    return pair.verdict, pair.relation, pair.direction


# ---- independents -------------------------------------------------------------------------------------------


def test_one_config_two_trainings_are_unrelated_whatever_the_config_says(family: Trained) -> None:
    tree, prints = family
    for a, b in independent_pairs(tree):
        pair = compared(prints[a], prints[b])
        assert pair.signals["MFI"].value == 1.0 and pair.mfi_tier == 1
        assert pair.signals["VOA"].value == 1.0
        assert pair.pipeline.decision == "Confirmed Match"
        assert label(pair) == ("unrelated", None, None)


def test_no_pair_of_one_config_is_linked(same_config: list[tuple[Fingerprint, Fingerprint]]) -> None:
    pairs = [compared(a, b) for a, b in same_config]
    assert {pair.verdict for pair in pairs} == {"unrelated"}
    assert all(pair.log10_p is not None and pair.log10_p > -4 for pair in pairs)
    assert all(pair.layer_map == () and pair.confidence is None for pair in pairs)


def log10_p_by_test(a: Fingerprint, b: Fingerprint) -> dict[str, float]:
    """Each test alone, and what the verdict is made of."""
    assert a.hidden is not None and b.hidden is not None and a.residual is not None and b.residual is not None
    left, right = hidden_units._distinct(a.hidden, None), hidden_units._distinct(b.hidden, None)
    identity = [hidden_units.LayerPair(*place, place[1]) for place in sorted(left.layers.keys() & right.layers.keys())]
    matched, cost = hidden_units._best_map(left, right)
    found: dict[str, float | None] = {}
    for name, pairs, price in (("identity", identity, 0.0), ("map", matched, cost)):
        result = hidden_units._test_map(left, right, pairs, hidden_units._measured(left, right, pairs), price)
        found |= {f"E1 {name}": result.fixed.log10_p or 0.0, f"E1z {name}": result.aligned.log10_p or 0.0}
    found["E2"] = residual_basis.residual_test(a.residual, b.residual).log10_p
    unit = [residual_basis._unit_columns(panel.values) for panel in (a.residual, b.residual)]
    similarity = unit[0].T @ unit[1]
    points = max(exact.fixed_points(similarity))
    found["E2 fixed points"] = min(0.0, exact.log10_fixed_points(points, 1) + math.log10(2))
    found["E2 ranks"] = exact.log10_alignment(*exact.rank_alignment(similarity))
    pair = compare(a, b)
    found |= {name: outcome.log10_p for name, outcome in pair.evidence.items()} | {"combined": pair.log10_p}
    return {name: value for name, value in found.items() if value is not None}


def test_p_values_hold_on_every_test(same_config: list[tuple[Fingerprint, Fingerprint]]) -> None:
    """P(p <= a) <= a: no more pairs at .05 and .01 than 3.3 standard deviations above their share."""
    by_test: dict[str, list[float]] = {}
    for a, b in same_config:
        for name, value in log10_p_by_test(a, b).items():
            by_test.setdefault(name, []).append(value)
    assert {"combined", "E1 identity", "E1z identity", "E1 map", "E1z map", "E2 fixed points", "E2 ranks"} <= set(
        by_test
    )
    for name, values in by_test.items():
        for level in (0.05, 0.01):
            n, count = len(values), sum(v <= math.log10(level) for v in values)
            assert n >= (80 if name == "bias_alignment" else 200), name  # few of these models have biases
            assert count <= n * level + 3.3 * math.sqrt(n * level * (1 - level)), (name, level, count)


def test_shuffled_weights_keep_the_distribution_and_lose_the_link() -> None:
    for seed, make in enumerate(KINDS.values()):
        parent = make(100 + seed)
        pair = compared(fingerprint(parent), fingerprint(zoo.shuffle(parent, seed)))
        assert label(pair) == ("unrelated", None, None)


def test_models_of_one_width_and_other_architectures_are_not_linked(family: Trained) -> None:
    models = [fingerprint(make(50 + i)) for i, make in enumerate(KINDS.values())] + [
        family[1][n] for n in ("founder-00", "encoder-00")
    ]
    for a, b in combinations(models, 2):
        pair = compared(a, b)
        assert pair.verdict == "unrelated" and pair.log10_p is not None and pair.log10_p > -3


def test_an_unrelated_verdict_says_what_it_would_have_seen(family: Trained) -> None:
    pair = compare(family[1]["founder-00"], family[1]["founder-01"])
    assert "would have been linked: hidden units with a cosine of 0." in texts(pair.reasons)[0]
    assert any("reordered" in reason for reason in texts(pair.reasons))


# ---- children -----------------------------------------------------------------------------------------------

DIRECTIONS = {"recast", "quantized", "upscaled", "vocabulary"}  # structure tells who is the descendant


def test_every_member_of_the_trained_family_is_linked_to_its_parent(family: Trained) -> None:
    tree, prints = family
    for child, parent in tree.parents.items():
        relation = tree.relations[child]
        pair = compared(prints[parent], prints[child])
        # at a cosine of .1 some role's median may fall below .1, from where on it does not count as corresponding
        labels = {relation, "related"} if child == "noise10-02" else {relation}
        direction = "ancestor" if relation in DIRECTIONS else "unknown"
        assert (pair.verdict, pair.direction) == ("linked", direction) and pair.relation in labels, child
        assert pair.confidence is not None and pair.confidence > 0.999


def test_relatives_are_linked_and_families_are_kept_apart(family: Trained) -> None:
    tree, prints = family
    beyond = {tree.twin[1], "noise10-02"}  # the twin is no relative; siblings at cosine .1 and .2 have .02 in common
    for a, b in combinations([name for name in prints if name not in beyond], 2):
        expected = "linked" if tree.root(a) == tree.root(b) else "unrelated"
        assert compare(prints[a], prints[b]).verdict == expected, (a, b)


def test_a_shared_random_start_is_no_lineage(family: Trained) -> None:
    """The head is the embedding, so no row is untouched: norm gains, which start as ones, have nothing in common."""
    tree, prints = family
    pair = compared(*(prints[name] for name in tree.twin))
    assert (pair.verdict, pair.relation, pair.direction) == ("unrelated", "shared-init", None)
    assert any("trained together" in reason for reason in texts(pair.reasons))


@pytest.fixture(scope="module")
def parent() -> zoo.Checkpoint:
    return zoo.llama(1, layers=4, hidden=64)


CHILDREN: tuple[tuple[str, Callable[[zoo.Checkpoint], zoo.Checkpoint], str, str], ...] = (
    ("itself", lambda p: p, "identical", "unknown"),
    ("bfloat16", lambda p: zoo.cast(p, "BF16"), "recast", "ancestor"),
    ("float16", lambda p: zoo.cast(p, "F16"), "recast", "ancestor"),
    ("int8 per row", lambda p: zoo.quantize(p, 8), "quantized", "ancestor"),
    ("int4 in blocks of 32", lambda p: zoo.quantize(p, 4, "block32"), "quantized", "ancestor"),
    ("a little noise", lambda p: zoo.finetune_noise(p, 0.99, 1), "finetune", "unknown"),
    ("much noise", lambda p: zoo.finetune_noise(p, 0.5, 1), "continued", "unknown"),
    ("first layers dropped", lambda p: zoo.drop_layers(p, (2, 3)), "pruned", "unknown"),
    ("dropped and tuned", lambda p: zoo.finetune_noise(zoo.drop_layers(p, (0, 3)), 0.9, 2), "pruned", "unknown"),
    ("layers repeated", lambda p: zoo.repeat_layers(p, (0, 1, 2, 1, 2, 3)), "upscaled", "ancestor"),
    ("tokens added", lambda p: zoo.extend_vocabulary(p, ["zzzz", "yyyy"], 1), "vocabulary", "ancestor"),
    ("merged with another", lambda p: zoo.merge(p, zoo.llama(2, layers=4, hidden=64), 0.5), "continued", "unknown"),
    ("merged a little", lambda p: zoo.merge(p, zoo.llama(2, layers=4, hidden=64), 0.1), "finetune", "unknown"),
    ("MLP units reordered", lambda p: zoo.permute_neurons(p, 1), "laundered", "unknown"),
    ("MLP units pruned", lambda p: zoo.prune_width(p, 0.75, 1), "pruned", "unknown"),
)


@pytest.mark.parametrize(("change", "relation", "direction"), [c[1:] for c in CHILDREN], ids=[c[0] for c in CHILDREN])
def test_relation_and_direction_of_a_child(
    parent: zoo.Checkpoint, change: Callable[[zoo.Checkpoint], zoo.Checkpoint], relation: str, direction: str
) -> None:
    pair = compared(fingerprint(parent), fingerprint(change(parent)))
    assert label(pair) == ("linked", relation, direction)


def fused(model: zoo.Checkpoint) -> zoo.Checkpoint:
    """The same weights as Phi-3 stores them: q, k and v in one tensor, gate and up in one."""
    tensors = dict(model.tensors)
    for layer in range(model.config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for whole, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            tensors[f"{at}{whole}.weight"] = np.concatenate([tensors.pop(f"{at}{part}.weight") for part in parts])
    return replace(model, tensors=tensors, config=dict(model.config) | {"model_type": "phi3"})


def test_equal_weights_in_another_layout_are_identical(parent: zoo.Checkpoint) -> None:
    ours = fingerprint(parent)
    same, half = (compare(ours, fingerprint(x)) for x in (fused(parent), fused(zoo.cast(parent, "BF16"))))
    assert same.evidence["bit_reuse"].value == 1.0 and label(same) == ("linked", "identical", "unknown")
    assert label(half) == ("linked", "recast", "ancestor")
    tuned = zoo.finetune_noise(parent, 0.9999, 3)
    assert compare(ours, fingerprint(fused(tuned))).relation == "finetune"


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_architecture_links_its_children(make: Callable[[int], zoo.Checkpoint]) -> None:
    parent = make(5)
    ours = fingerprint(parent)
    for child, relation in (
        (zoo.finetune_noise(parent, 0.95, 1), "finetune"),
        (zoo.finetune_noise(parent, 0.3, 2), "continued"),
        (zoo.cast(parent, "BF16"), "recast"),
        # the zoo quantizes along stored rows; GPT-2 stores matrices transposed, so each sampled value has its own scale
        (zoo.quantize(parent, 8), "finetune" if "n_embd" in parent.config else "quantized"),
    ):
        assert compared(ours, fingerprint(child)).relation == relation
    assert compared(ours, fingerprint(zoo.permute_neurons(parent, 3))).verdict == "linked"


def test_the_layer_map_of_depth_up_scaling() -> None:
    """Layers 0-11 and then 4-15 of one parent, as SOLAR was made, tuned on afterwards: steps add to what is there."""
    deep = zoo.llama(3, layers=16, hidden=64)
    repeated = zoo.repeat_layers(deep, (*range(12), *range(4, 16)))
    rng = np.random.default_rng(1)
    steps = {
        n: 0.48 * v.std() * rng.standard_normal(v.shape, np.float32) for n, v in repeated.tensors.items() if v.ndim > 1
    }
    child = repeated.with_tensors({n: v + steps.get(n, 0) for n, v in repeated.tensors.items()})
    pair = compared(fingerprint(deep), fingerprint(child))
    assert label(pair) == ("linked", "upscaled", "ancestor")
    assert [(r.a, r.b) for r in pair.layer_map] == [((0, 11), (0, 11)), ((4, 15), (12, 23))]
    assert all(r.log10_p <= -6 for r in pair.layer_map)


@pytest.mark.parametrize("make", [zoo.llama, zoo.qwen2])
def test_models_that_share_no_layer_are_linked_by_their_residual_basis(make: Callable[..., zoo.Checkpoint]) -> None:
    deep = make(4, layers=6)
    one, other = (fingerprint(zoo.drop_layers(deep, keep)) for keep in ((0, 2, 4), (1, 3, 5)))
    pair = compared(one, other)
    assert label(pair) == ("linked", "shared-ancestor", "unknown")
    assert pair.evidence["hidden_fixed_points"].log10_p == 0.0 and pair.layer_map == ()
    assert any("only the token embedding is the same" in reason for reason in texts(pair.reasons))


def test_overlapping_halves_of_one_parent_are_related_and_not_identical() -> None:
    deep = zoo.llama(4, layers=8, hidden=64)
    one, other = (fingerprint(zoo.drop_layers(deep, keep)) for keep in ((0, 1, 2, 3, 4), (2, 3, 4, 5, 6)))
    pair = compared(one, other)
    assert label(pair) == ("linked", "related", "unknown")
    assert [(r.a, r.b) for r in pair.layer_map] == [((2, 4), (0, 2))]


def reordered(parent: zoo.Checkpoint, seed: int, *, basis: bool) -> zoo.Checkpoint:
    """MLP units and the channels of every value head in another order; with `basis` the residual coordinates too."""
    rng = np.random.default_rng(seed)
    child = zoo.permute_neurons(parent, seed)
    d, head = parent.config["hidden_size"], parent.config["head_dim"]
    tensors = dict(child.tensors)
    for name, value in child.tensors.items():
        if "v_proj" in name:
            order = np.concatenate([h * head + rng.permutation(head) for h in range(value.shape[0] // head)])
            tensors[name] = value[order]
    if basis:
        order = rng.permutation(d)
        for name, value in tensors.items():
            writes = ("o_proj" in name) or ("down_proj" in name) or value.ndim == 1
            tensors[name] = value[order] if writes else value[:, order]
    return child.with_tensors(tensors)


def test_reordered_units_are_found_again(parent: zoo.Checkpoint) -> None:
    child = zoo.finetune_noise(reordered(parent, 1, basis=False), 0.95, 1)
    pair = compared(fingerprint(parent), fingerprint(child))
    assert label(pair) == ("linked", "laundered", "unknown")
    assert Code.NEURONS_REORDERED in pair.undone and [(r.a, r.b) for r in pair.layer_map] == [((0, 3), (0, 3))]


def test_a_wholly_reordered_copy_takes_a_calibration_to_be_linked(parent: zoo.Checkpoint) -> None:
    ours, theirs = fingerprint(parent), fingerprint(reordered(parent, 2, basis=True))
    missed, pair = compared(ours, theirs), compared(ours, theirs, calibration_of())
    assert missed.verdict == "unrelated" and any("no calibration" in reason for reason in texts(missed.reasons))
    assert label(pair) == ("linked", "laundered", "unknown")
    assert {Code.NEURONS_REORDERED, Code.BASIS_MOVED} <= set(pair.undone)


# ---- what decides, and what does not --------------------------------------------------------------------------


def test_other_residual_widths_are_inconclusive(parent: zoo.Checkpoint) -> None:
    ours, theirs = fingerprint(parent), fingerprint(zoo.llama(1, layers=4, hidden=128))
    pair, ranked = compared(ours, theirs), compared(ours, theirs, calibration_of())
    assert (pair.verdict, pair.log10_p) == ("inconclusive", 0.0)
    assert texts(pair.reasons)[0] == "residual widths differ (64 and 128)"
    assert ranked.verdict == "unrelated" and "neurons" in texts(ranked.reasons)[0]


def test_weights_link_without_config_and_tokenizer(parent: zoo.Checkpoint) -> None:
    child = replace(zoo.finetune_noise(parent, 0.95, 1), config={}, tokenizer=None)
    pair = compared(fingerprint(parent), fingerprint(child))
    assert (pair.verdict, pair.relation) == ("linked", "finetune")
    assert pair.signals["TFV"].reasons and pair.signals["VOA"].reasons
    assert pair.evidence["residual_fixed_points"].value == 1.0  # at fixed token ids


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_weights_are_inconclusive_and_not_unrelated(parent: zoo.Checkpoint, bad: float) -> None:
    broken = fingerprint(parent.with_tensors({n: np.full_like(v, bad) for n, v in parent.tensors.items()}))
    pair = compared(broken, fingerprint(parent))
    assert pair.verdict == "inconclusive" and texts(pair.reasons)
    assert compared(broken, broken).relation == "identical"  # byte for byte, whatever the bytes mean


def test_one_broken_tensor_does_not_hide_a_link(parent: zoo.Checkpoint) -> None:
    tensors = {n: v.copy() for n, v in parent.tensors.items()}
    tensors["model.layers.1.mlp.gate_proj.weight"][3, 5] = np.nan
    tensors["model.layers.2.input_layernorm.weight"][7] = -np.inf
    pair = compared(fingerprint(parent), fingerprint(parent.with_tensors(tensors)))
    assert pair.verdict == "linked" and pair.signals["NLF"].reasons and pair.signals["EAS"].value == 1.0


def test_many_models_ask_for_more_evidence(parent: zoo.Checkpoint) -> None:
    a, b = fingerprint(parent), fingerprint(zoo.finetune_noise(parent, 0.06, 3))
    alone = compare(a, b)
    assert alone.verdict == "linked" and alone.log10_p is not None and alone.e_value is not None
    models = 10 ** math.ceil(-alone.log10_p)
    assert compare(a, b, models=models).verdict == "unrelated"


def test_common_blocks_are_no_evidence(parent: zoo.Checkpoint) -> None:
    a = fingerprint(parent)
    assert a.blocks is not None
    common = frozenset(int(d) for table in (a.blocks.exact, a.blocks.bf16, a.blocks.f16) for d in table.ravel())
    b = replace(a, content_sha256=None)
    assert compare(a, b).evidence["bit_reuse"].value == 1.0
    assert compare(a, b, common_blocks=common).evidence["bit_reuse"].reasons


# ---- real models ----------------------------------------------------------------------------------------------

REAL = Path(os.environ.get("PROVINDEX_REAL_MODELS", "~/.cache/provindex-tests/real-models")).expanduser() / "snapshots"
TRUTH = Path(__file__).parent / "data" / "real_lineage.tsv"
NO_TRANSFORMER = {"fracast", "fracast-int8"}  # no role is known in it: inconclusive is the honest answer
RELATIONS = {
    "common-ancestor-disjoint-layers": "shared-ancestor",
    "fine-tuned": "finetune",
    "format-conversion": "identical",
    "identical": "identical",
    "quantized": "quantized",
    "vocab-pruned": "vocabulary",
}


def truth() -> list[dict[str, str]]:
    with TRUTH.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def real() -> dict[str, Fingerprint]:
    names = sorted({row[side] for row in truth() for side in "ab"})
    if not all((REAL / name).is_dir() for name in names):
        pytest.skip(f"no snapshots under {REAL}: make them with build_index/seed_sources.py")
    return {name: fingerprint_model(open_model(str(REAL / name))) for name in names}


@pytest.mark.real
def test_every_pair_of_real_models_gets_an_honest_verdict(real: dict[str, Fingerprint]) -> None:
    rows = {frozenset((row["a"], row["b"])): row for row in truth()}
    for a, b in combinations(real, 2):
        pair = compared(real[a], real[b])
        row = rows.get(frozenset((a, b)))
        if row is None or row["label"] != "linked":
            allowed = {"unrelated", "inconclusive"} if real[a].facts.hidden != real[b].facts.hidden else {"unrelated"}
            assert pair.verdict in allowed, (a, b)
        elif {a, b} <= NO_TRANSFORMER:
            assert label(pair) == ("linked", "quantized", "unknown"), "roles were inferred from shapes, which links"
        else:
            assert label(pair)[:2] == ("linked", RELATIONS[row["relation"]]), (a, b)
            if pair.direction != "unknown":
                assert row["parent"] == (a if pair.direction == "ancestor" else b), (a, b)
        if pair.verdict == "inconclusive":
            assert texts(pair.reasons), (a, b)
