"""Disguised models: their sketch and neurons are the original's, and the verdict sees through what was done to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import zoo
from prints import fingerprint, independent_pairs, trained
from zoo.shrunk import shrunk

from build_index.zoo import disguises
from build_index.zoo.snapshot import Snapshot
from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.threads import one_blas_thread
from provindex.evidence import aligned, sketch
from provindex.fingerprint.record import Fingerprint
from provindex.index.collection import Index, calibration_of
from provindex.report.words import joined, text, texts
from provindex.verdict import relation
from provindex.verdict.calibration import NO_CALIBRATION, Calibration
from provindex.verdict.pair import TIERS, Pair, compare

KINDS: dict[str, Callable[[int], zoo.Checkpoint]] = {
    "llama": zoo.llama, "qwen2": zoo.qwen2, "gpt2": zoo.gpt2, "gpt_neox": zoo.neox, "bert": zoo.bert, "t5": zoo.t5,
}  # fmt: skip
FAMILIES = (
    "bart", "modernbert", "gemma3_text", "olmo", "olmo2", "gpt_oss", "qwen3_moe", "cohere", "phi", "opt", "mpnet",
    "stablelm_2_12b", "falcon_40b", "glm4", "opt_350m", "electra_generator",
)  # fmt: skip
ALONE = ("rotate_residual", "redistribute_norms", "shift_readers", "shift_writers", "rescale_residual",
         "permute_experts", "rotate_queries", "rotate_values", "permute_heads", "permute_neurons")  # fmt: skip
SEED = 3


@pytest.fixture(autouse=True, scope="module")
def small_matrices() -> Iterator[None]:
    """On a busy machine several threads of BLAS wait for each other."""
    with one_blas_thread():
        yield


def printed(snapshot: Snapshot) -> Fingerprint:
    tensors = {name: tensor.astype(np.float32) for name, tensor in snapshot.tensors.items()}
    return fingerprint(zoo.Checkpoint(dict(snapshot.config), tensors, snapshot.tokenizer or None))


@cache
def original(kind: str, seed: int) -> Snapshot:
    if kind in KINDS:
        made = KINDS[kind](seed)
        return Snapshot(kind, made.tensors, made.config, made.tokenizer or "")
    return shrunk(kind, seed, vocabulary=600)


@cache
def fingerprint_of(kind: str, seed: int) -> Fingerprint:
    return printed(original(kind, seed))


def layers(a: sketch.BranchSketches | None, b: sketch.BranchSketches | None) -> list[float]:
    """Inner products of the layers at the same place."""
    assert a is not None and b is not None and a.keys == b.keys
    return [float(x) for x in np.diag(sketch.similarities(a, b))]


def agreeing(a: Fingerprint, b: Fingerprint) -> float:
    assert a.neurons is not None and b.neurons is not None and a.sketches is not None
    in_place = {"by_string": [[(key, key) for key in a.sketches.keys]]}
    value = aligned.triple_agreement(a.neurons, b.neurons, in_place).outcome.value
    assert value is not None
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disguise", ["all", "all_int8"])
def test_everything_together_leaves_the_sketch_and_the_neurons(kind: str, disguise: str) -> None:
    changed = disguises.disguise(disguise, original(kind, 1), SEED)
    assert isinstance(changed, Snapshot)
    one, other = fingerprint_of(kind, 1), printed(changed)
    assert min(layers(one.sketches, other.sketches)) > 0.99
    assert agreeing(one, other) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_independent_models_share_neither(kind: str) -> None:
    one, other = fingerprint_of(kind, 1), fingerprint_of(kind, 2)
    assert max(layers(one.sketches, other.sketches)) < 0.4
    assert agreeing(one, other) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_one_disguise_leaves_the_sketch(family: str) -> None:
    """Without a tokenizer: the anchors are tokens by number."""
    one, done = fingerprint_of(family, 1), 0
    for name in ALONE:
        changed = disguises.disguise(name, original(family, 1), SEED)
        if isinstance(changed, Snapshot):
            assert min(layers(one.sketches_by_id, printed(changed).sketches_by_id)) > 0.99, name
            done += 1
    assert done >= 5
    assert max(layers(one.sketches_by_id, fingerprint_of(family, 2).sketches_by_id)) < 0.5


# ---- verdicts ---------------------------------------------------------------------------------------------------

MIRROR = {"ancestor": "descendant", "descendant": "ancestor", "unknown": "unknown", None: None}


@pytest.fixture(scope="module")
def chance() -> Calibration:
    """The chance levels that come with the package."""
    found = calibration_of()
    assert found is not None
    return found


@cache
def disguised(kind: str, disguise: str) -> Fingerprint:
    changed = disguises.disguise(disguise, original(kind, 1), SEED)
    assert isinstance(changed, Snapshot)
    return printed(changed)


def judged(a: Fingerprint, b: Fingerprint, calibration: Calibration | None) -> Pair:
    """The verdict on (a, b), after checking that (b, a) gets its mirror image."""
    pair, back = compare(a, b, calibration=calibration), compare(b, a, calibration=calibration)
    assert (pair.verdict, pair.relation, set(pair.undone)) == (back.verdict, back.relation, set(back.undone))
    assert pair.direction == MIRROR[back.direction]
    assert pair.log10_p == pytest.approx(back.log10_p, abs=1e-6)
    return pair


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disguise", ["all", "all_int8"])
def test_a_laundered_copy_is_linked_where_chance_levels_are_known(
    kind: str, disguise: str, chance: Calibration
) -> None:
    pair = judged(fingerprint_of(kind, 1), disguised(kind, disguise), chance)
    assert (pair.verdict, pair.relation, pair.direction) == ("linked", "laundered", "unknown")
    assert {Code.BASIS_MOVED, Code.NEURONS_REORDERED, Code.IDS_RENUMBERED} <= set(pair.undone)
    assert (Code.GAINS_FOLDED in pair.undone) == (kind != "bert")  # a post-norm gain cannot be folded
    assert (Code.NEURONS_RESCALED in pair.undone) == (kind in ("llama", "qwen2", "t5"))  # no gate: nothing is free
    for name in ("triple_agreement", "branch_sketch"):
        outcome = pair.evidence[name]
        assert outcome.value is not None and outcome.value > 0.99 and outcome.conformal is not None
        assert outcome.conformal <= -3 and outcome.null is not None and outcome.null.n >= 200
    assert pair.log10_p is not None and pair.log10_p < -1000 and pair.confidence == 1.0
    depth = 2 if kind == "t5" else 3
    assert {(r.a, r.b) for r in pair.layer_map} == {((0, depth - 1), (0, depth - 1))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disguise", ["all", "all_int8"])
def test_without_chance_levels_it_is_not_and_the_answer_says_what_was_not_seen(kind: str, disguise: str) -> None:
    pair = judged(fingerprint_of(kind, 1), disguised(kind, disguise), None)
    assert (pair.verdict, pair.relation, pair.layer_map, pair.undone) == ("unrelated", None, (), ())
    assert (pair.evidence["triple_agreement"].value or 0) > 0.99  # it is shown, and does not decide
    assert pair.evidence["triple_agreement"].conformal is None
    assert any(
        "were all reordered or rotated" in reason and text(NO_CALIBRATION) in reason for reason in texts(pair.reasons)
    )


def test_without_chance_levels_and_exact_tests_it_is_inconclusive(chance: Calibration) -> None:
    """Another residual width: nothing for the exact tier. The neurons are found all the same."""
    one, other = fingerprint_of("llama", 1), disguised("llama", "all")
    hidden = replace(other, hidden=None, residual=None, residual_by_id=None, content_sha256=None, blocks=None)
    pair = judged(one, hidden, None)
    assert (pair.verdict, pair.log10_p) == ("inconclusive", None)
    assert any(text(NO_CALIBRATION) in reason for reason in texts(pair.reasons))
    assert judged(one, hidden, chance).verdict == "linked"
    missing = dict.fromkeys(("neurons", "whole_layers"), Reason.of(Code.NO_BRANCHES))
    bare = replace(few_neurons(hidden), neurons=None, sketches=None, sketches_by_id=None, absences=missing)
    pair = judged(one, bare, chance)
    assert pair.verdict == "inconclusive" and any("no MLP" in reason for reason in texts(pair.reasons))


def few_neurons(fp: Fingerprint) -> Fingerprint:
    """Without its whole layers: E7 and E8 cannot run, E3 and E4 can."""
    return replace(fp, more={name: value for name, value in fp.more.items() if name != "whole_layers"})


@pytest.mark.parametrize("kind", KINDS)
def test_independents_of_one_config_are_unrelated_with_and_without_chance_levels(
    kind: str, chance: Calibration
) -> None:
    models = [fingerprint_of(kind, seed) for seed in range(1, 5)]
    for a, b in combinations(models, 2):
        without, pair = compare(a, b), judged(a, b, chance)
        assert (without.verdict, pair.verdict, pair.relation) == ("unrelated", "unrelated", None)
        assert (pair.evidence["triple_agreement"].value or 0) < 0.1
        assert "found again in any order and basis" in texts(pair.reasons)[0]
        assert not any("not seen" in reason for reason in texts(pair.reasons))
        assert any("not seen" in reason and text(NO_CALIBRATION) in reason for reason in texts(without.reasons))


def test_trainings_of_one_config_on_the_same_data_are_unrelated(
    pytestconfig: pytest.Config, chance: Calibration
) -> None:
    family, made = trained(pytestconfig.cache.mkdir("zoo"))
    for a, b in independent_pairs(family):
        pair = compare(made[a], made[b], calibration=chance)
        assert pair.verdict == "unrelated" and (pair.evidence["triple_agreement"].value or 0) < 0.1, (a, b)


def test_a_laundered_child_of_real_training_is_linked(pytestconfig: pytest.Config, chance: Calibration) -> None:
    """Continued on another language, then disguised: a copy of the child, not of the founder."""
    family, made = trained(pytestconfig.cache.mkdir("zoo"))
    child = disguises.disguise("all_int8", Snapshot.read(family.folders["continued-00"]), SEED)
    assert isinstance(child, Snapshot)
    found = printed(child)
    assert judged(made["continued-00"], found, chance).relation == "laundered"
    assert judged(made["founder-00"], found, chance).verdict == "linked"
    assert judged(made["founder-01"], found, chance).verdict == "unrelated"


# ---- what the aligned tier needs --------------------------------------------------------------------------------


def test_both_ranks_are_needed(chance: Calibration) -> None:
    one, copy, stranger = fingerprint_of("llama", 1), few_neurons(disguised("llama", "all")), fingerprint_of("llama", 2)
    other_sketch = replace(copy, sketches=stranger.sketches, sketches_by_id=stranger.sketches_by_id)
    pair = judged(one, other_sketch, chance)
    assert pair.evidence["triple_agreement"].value == 1.0 and (pair.evidence["triple_agreement"].conformal or 0) <= -3
    assert (pair.evidence["branch_sketch"].conformal or 0) > -3 and pair.verdict == "unrelated"
    assert any("100% of the neurons are found again" in reason for reason in texts(pair.reasons))
    other_neurons = replace(copy, neurons=stranger.neurons)
    pair = judged(one, other_neurons, chance)
    assert (pair.evidence["branch_sketch"].conformal or 0) <= -3
    assert (pair.evidence["triple_agreement"].value or 0) < 0.1 and pair.verdict == "inconclusive"
    assert any("the layers do the same" in reason for reason in texts(pair.reasons))


def test_too_few_known_pairs_rank_nobody_high_enough(chance: Calibration) -> None:
    """999 are needed for 1 in 1,000."""

    def thinned(count: int) -> Calibration:
        pooled = chance.strata["pooled"]
        nulls = {name: replace(n, n=count, scores=n.scores[-count:]) for name, n in pooled.nulls.items()}
        return replace(chance, strata={"pooled": replace(pooled, nulls=nulls)})

    one, copy = fingerprint_of("llama", 1), disguised("llama", "all")
    assert compare(one, copy, calibration=thinned(999)).verdict == "linked"
    assert compare(one, copy, calibration=thinned(998)).verdict == "unrelated"


def test_models_that_it_was_picked_from_are_paid_for(chance: Calibration) -> None:
    one, copy = fingerprint_of("llama", 1), disguised("llama", "all")
    alone, crowd = (compare(one, copy, calibration=chance, models=n) for n in (1, 10**6))
    assert alone.log10_p == crowd.log10_p and alone.log10_e == alone.log10_p
    assert crowd.log10_e == pytest.approx((alone.log10_p or 0) + 6) and crowd.verdict == "linked"
    assert alone.e_value == crowd.e_value == 0.0
    everybody = compare(one, copy, calibration=chance, models=10 ** math.ceil(-(alone.log10_p or 0)))
    assert everybody.verdict == "unrelated"


DEEP = Outcome(0.9, 600, -80.0, 0.02)


def test_deep_agreement_alone_links() -> None:
    """A rotated copy with another vocabulary: nothing else has anything to hold on to."""
    one, copy = fingerprint_of("llama", 1), disguised("llama", "all")
    lost = replace(few_neurons(copy), neurons=None, sketches=None, sketches_by_id=None)
    assert compare(one, lost).verdict == "unrelated"
    pair = compare(one, lost, deep=DEEP)
    assert (pair.verdict, pair.evidence["deep_agreement"]) == ("linked", DEEP)
    assert pair.log10_p == pytest.approx(-80 + math.log10(TIERS)) and pair.relation == "laundered"
    assert compare(one, lost, deep=DEEP, models=10**78).verdict == "unrelated"


@pytest.mark.parametrize(
    "deep",
    [Outcome(0.09, 600, -80.0, 0.02), Outcome(0.9, 600, -6.0, 0.02), absent(Reason.of(Code.DEEP_LAYERS_FEW)),
     Outcome(0.0, 600, 0.0, 0.02)],
)  # fmt: skip
def test_a_faint_or_missing_deep_agreement_links_nobody(deep: Outcome) -> None:
    assert compare(fingerprint_of("llama", 1), fingerprint_of("llama", 2), deep=deep).verdict == "unrelated"


def test_ids_that_somebody_numbered_anew_clear_nothing(chance: Calibration) -> None:
    """Without a tokenizer anchors are found at fixed token ids, and a launderer renumbers these."""
    source = original("llama", 1)
    done = disguises.disguise("withhold_tokenizer", all_of(source), SEED)
    assert isinstance(done, Snapshot)
    assert judged(printed(source), printed(done), chance).verdict == "linked", "by what needs no tokens"
    pair = judged(printed(source), few_neurons(printed(done)), chance)
    assert pair.verdict != "linked"  # if it were, this test would say nothing
    assert pair.verdict == "inconclusive" or pair.plain_order_only
    named = judged(printed(source), printed(original("llama", 2)), chance)
    assert named.verdict == "unrelated" and not named.plain_order_only  # with both tokenizers a stranger is cleared


def all_of(snapshot: Snapshot) -> Snapshot:
    done = disguises.disguise("all", snapshot, SEED)
    assert isinstance(done, Snapshot)
    return done


def test_of_laundered_relatives_the_nearest_comes_first() -> None:
    """Samples of a reordered and rotated copy say nothing; how many neurons are found again does."""
    source = parent()
    plain = Snapshot("parent", source.tensors, source.config, source.tokenizer or "")
    family = [replace(fingerprint(zoo.finetune_noise(source, 0.9, n)), model_id=f"org/child{n:02}") for n in range(12)]
    index = Index.build([*family, replace(fingerprint(source), model_id="org/the-parent")])
    for seed in (1, 2, 3):
        done = disguises.disguise("all", plain, seed)
        assert isinstance(done, Snapshot)
        found = index.query(printed(done), candidates=20)
        assert len(found.linked) == 13 and {m.pair.relation for m in found.linked} == {"laundered"}
        assert found.linked[0].entry.model_id == "org/the-parent"


# ---- relations --------------------------------------------------------------------------------------------------

DONE = {
    "permute_neurons": Code.NEURONS_REORDERED,
    "rescale_neurons": Code.NEURONS_RESCALED,
    "permute_values": Code.VALUES_MOVED,
    "rotate_values": Code.VALUES_MOVED,
    "permute_heads": Code.QUERIES_MOVED,
    "rotate_queries": Code.QUERIES_MOVED,
    "permute_residual": Code.BASIS_MOVED,
    "rotate_residual": Code.BASIS_MOVED,
    "fold_norms": Code.GAINS_FOLDED,
    "renumber_vocabulary": Code.IDS_RENUMBERED,
    "redistribute_norms": Code.SCALES_MOVED,
    "rescale_queries": Code.SCALES_MOVED,
}


@cache
def parent() -> zoo.Checkpoint:
    return zoo.llama(1, layers=4, hidden=64)


@pytest.mark.parametrize("disguise", DONE)
def test_what_was_done_is_named(disguise: str, chance: Calibration) -> None:
    plain = Snapshot("parent", parent().tensors, parent().config, parent().tokenizer or "")
    changed = disguises.disguise(disguise, plain, SEED)
    assert isinstance(changed, Snapshot)
    pair = judged(fingerprint(parent()), printed(changed), chance)
    assert (pair.verdict, pair.relation) == ("linked", "laundered")
    extra = {Code.GAINS_FOLDED} if disguise == "rotate_residual" else set()  # gains are folded before it can be rotated
    assert set(pair.undone) == {DONE[disguise]} | extra


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda p: p, "identical"), (lambda p: zoo.finetune_noise(p, 0.95, 1), "finetune"),
     (lambda p: zoo.finetune_noise(p, 0.5, 1), "continued"), (lambda p: zoo.quantize(p, 8), "quantized"),
     (lambda p: zoo.cast(p, "BF16"), "recast"), (lambda p: zoo.drop_layers(p, (0, 2)), "pruned"),
     (lambda p: zoo.repeat_layers(p, (0, 1, 2, 1, 2, 3)), "upscaled"),
     (lambda p: zoo.prune_width(p, 0.75, 1), "pruned"),
     (lambda p: zoo.finetune_noise(zoo.prune_width(p, 0.75, 1), 0.95, 1), "pruned")],
)  # fmt: skip
def test_what_was_done_openly_is_no_laundering(
    change: Callable[[zoo.Checkpoint], zoo.Checkpoint], expected: str, chance: Calibration
) -> None:
    pair = judged(fingerprint(parent()), fingerprint(change(parent())), chance)
    assert (pair.verdict, pair.relation, pair.undone) == ("linked", expected, ())


def test_a_laundered_and_pruned_copy_is_linked(chance: Calibration) -> None:
    plain = Snapshot("parent", parent().tensors, parent().config, parent().tokenizer or "")
    changed = disguises.disguise("all", plain, SEED)
    assert isinstance(changed, Snapshot)
    tensors = {n: t.astype(np.float32) for n, t in changed.tensors.items()}
    copy = zoo.Checkpoint(dict(changed.config), tensors, changed.tokenizer)
    for child in (zoo.drop_layers(copy, (0, 2)), zoo.prune_width(copy, 0.75, 1)):
        pair = judged(fingerprint(parent()), fingerprint(child), chance)
        assert (pair.verdict, pair.relation) == ("linked", "pruned")
        assert Code.BASIS_MOVED in pair.undone and Code.NEURONS_REORDERED in pair.undone


def narrowed(checkpoint: zoo.Checkpoint, width: int) -> zoo.Checkpoint:
    """Only some of the residual coordinates, in their order."""
    old = checkpoint.config["hidden_size"]
    kept = np.sort(np.random.default_rng(0).permutation(old)[:width])
    tensors = {}
    for name, w in checkpoint.tensors.items():
        writes = w.ndim == 1 or "o_proj" in name or "down_proj" in name
        tensors[name] = w[kept] if writes else w[:, kept]
    return checkpoint.with_tensors(tensors, hidden_size=width)


@pytest.mark.parametrize(("old", "width", "cosine"), [(64, 48, 0.0), (256, 192, 0.0), (256, 192, 0.9)])
def test_a_pruned_residual_stream_is_pruned(old: int, width: int, cosine: float, chance: Calibration) -> None:
    """Tokens name the neurons of models that have no coordinate in common."""
    base = zoo.llama(8, layers=2, hidden=old)
    child = narrowed(base, width)
    pair = judged(fingerprint(base), fingerprint(zoo.finetune_noise(child, cosine, 1) if cosine else child), chance)
    assert joined(pair.evidence["residual_fixed_points"].reasons) == f"residual widths differ ({old} and {width})"
    assert (pair.verdict, pair.relation, pair.undone) == ("linked", "pruned", ())
    stranger = fingerprint(narrowed(zoo.llama(9, layers=2, hidden=old), width))
    assert judged(fingerprint(base), stranger, chance).verdict == "unrelated"


def tuned(rank: int) -> Fingerprint:
    """Every matrix of a model of a realistic width plus a change of a fifth of its size; rank 0: of full rank."""
    base, rng = wide(), np.random.default_rng(rank)
    tensors = dict(base.tensors)
    for name, w in base.tensors.items():
        if "_proj" in name:
            full = rng.standard_normal(w.shape)
            low = rng.standard_normal((w.shape[0], max(rank, 1))) @ rng.standard_normal((max(rank, 1), w.shape[1]))
            delta = low if rank else full
            tensors[name] = (w + 0.2 * delta * np.linalg.norm(w) / np.linalg.norm(delta)).astype(np.float32)
    return fingerprint(base.with_tensors(tensors))


@cache
def wide() -> zoo.Checkpoint:
    return zoo.llama(7, layers=2, hidden=256, heads=4, kv_heads=2, intermediate=688)


@pytest.mark.parametrize(("rank", "expected"), [(4, "adapter"), (1, "adapter"), (0, "finetune")])
def test_a_change_of_low_rank_is_an_adapter(rank: int, expected: str) -> None:
    pair = judged(fingerprint(wide()), tuned(rank), None)
    assert (pair.verdict, pair.relation) == ("linked", expected)


def test_a_change_like_rounding_is_no_adapter() -> None:
    """Float16 panels differ by rounding alone: that says nothing about rank."""
    one = fingerprint(wide())
    assert relation.low_rank(one.hidden, one.hidden, []) is None
    unsure = judged(one, fingerprint(zoo.finetune_noise(wide(), 0.99999, 1)), None)
    assert unsure.relation == "finetune" and unsure.reasons[-1].code is Code.OR_ADAPTER
    assert all(reason.code is not Code.OR_ADAPTER for reason in judged(one, tuned(0), None).reasons)


@pytest.mark.parametrize(
    ("rank", "decay", "expected"), [(8, 0.0, "adapter"), (16, 0.0, "adapter"), (64, 0.5, "finetune")]
)
def test_a_spectrum_that_falls_fast_is_no_low_rank(rank: int, decay: float, expected: str) -> None:
    """Short full trainings put nearly all of the difference into a quarter of the components, but not all of it."""
    base, rng = wide(), np.random.default_rng(rank)
    tensors = dict(base.tensors)
    for name, w in tensors.items():
        if "_proj" in name:
            left, right = rng.standard_normal((w.shape[0], rank)), rng.standard_normal((rank, w.shape[1]))
            delta = (left * np.exp(-decay / 4 * np.arange(rank))) @ right
            tensors[name] = (w + 0.1 * delta * np.linalg.norm(w) / np.linalg.norm(delta)).astype(np.float32)
    pair = judged(fingerprint(base), fingerprint(base.with_tensors(tensors)), None)
    assert (pair.verdict, pair.relation) == ("linked", expected)
