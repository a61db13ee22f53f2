"""The benchmark's zoo without its training: text, tokenizers, the plan, descendants made by numpy, and their truth."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from zoo import models

from build_index.zoo import __main__ as command
from build_index.zoo import descendants, make, plan, store
from build_index.zoo.data import Language, train_tokenizer, vocabulary_of
from build_index.zoo.descendants import NAMES, Truth, layers_of
from build_index.zoo.plan import Job
from build_index.zoo.snapshot import Snapshot
from provindex.evidence.anchors import anchor_ids

LAYERS = 6
RELATIONS = {"recast", "quantized", "finetune", "continued", "adapter", "pruned", "upscaled", "merge", "vocabulary"}
CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "llama": lambda: models.llama_config(hidden=32, layers=LAYERS, heads=2, kv_heads=1, intermediate=48),
    "gpt2": lambda: models.gpt2_config(hidden=32, layers=LAYERS, heads=2) | {"n_inner": 48},
    "gpt_neox": lambda: models.neox_config(hidden=32, layers=LAYERS, heads=2) | {"intermediate_size": 48},
    "bert": lambda: models.bert_config(hidden=32, layers=LAYERS, heads=2, intermediate=48),
}


def random_model(kind: str, seed: int = 0, **settings: int) -> Snapshot:
    """A model of six layers, all of whose tensors are noise. settings: other keys of its config."""
    config, rng = CONFIGS[kind]() | settings, np.random.default_rng((seed, 77))
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in models.shapes(config).items()}
    tokenizer = {"llama": "unigram", "bert": "wordpiece"}.get(kind, "bpe")
    return Snapshot(f"{kind}-{seed}", tensors, config, zoo.vocabulary.tokenizer_json(tokenizer))


def layer_tensors(snapshot: Snapshot, layer: int) -> dict[str, np.ndarray]:
    """A layer's tensors by their names inside the layer."""
    start = f"{NAMES[snapshot.config['model_type']].prefix}{layer}."
    return {n.removeprefix(start): t for n, t in snapshot.tensors.items() if n.startswith(start)}


def is_equal(a: Snapshot, b: Snapshot) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(np.array_equal(a.tensors[n], b.tensors[n]) for n in a.tensors)


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_a_snapshot_comes_back_from_its_folder(tmp_path: Path, dtype: str) -> None:
    model = random_model("gpt2")
    if dtype == "F16":
        model = descendants.recast(model)
    back = Snapshot.read(model.write(tmp_path / model.name))
    assert is_equal(model, back)
    assert back == replace(model, tensors=back.tensors)
    assert all(tensor.dtype == np.float32 for tensor in back.tensors.values())


# --- text and tokenizers ---------------------------------------------------------------------------------------


def test_text_depends_on_lexicon_dialect_and_seed_alone() -> None:
    said = [tuple(Language(*who).documents(2, 60, seed)) for *who, seed in ((1, 0, 0), (1, 0, 1), (1, 2, 0), (2, 0, 0))]
    assert len(set(said)) == 4
    assert said[0] == tuple(Language(1, 0).documents(2, 60, 0))


def test_dialects_share_words_and_languages_share_anchors() -> None:
    assert Language(1, 0).words == Language(1, 5).words
    assert set(Language(1).words) != set(Language(2).words)
    assert np.corrcoef(Language(1).frequency[:512], Language(2).frequency[:512])[0, 1] < 0.9


def test_text_is_learnable_from_the_word_before() -> None:
    """The habitual next words take far more of the text than chance gives them."""
    language = Language(3)
    drawn = language._draw(40, 200, np.random.default_rng(0))
    habits = language.pairs[drawn[:, :-1]]
    kept = np.mean((habits == drawn[:, 1:, None]).any(-1))
    moved = np.mean((habits == np.roll(drawn[:, 1:], 7, axis=0)[..., None]).any(-1))
    assert kept > 0.5 > 0.2 > moved


VOCABULARIES = {
    "benchmark": plan.BENCHMARK_VOCABULARY, "rebuilt": plan.REBUILT_VOCABULARY, **plan.CALIBRATION_VOCABULARIES
}  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_is_full_and_has_the_anchors(name: str) -> None:
    wanted = VOCABULARIES[name]
    vocabulary = vocabulary_of(train_tokenizer(wanted))
    assert sorted(vocabulary.values()) == list(range(wanted.size))
    assert np.count_nonzero(anchor_ids(vocabulary, wanted.size) >= 0) >= 480


@pytest.mark.parametrize("name", ["benchmark", "w"])
def test_a_tokenizer_is_the_same_when_trained_again(name: str) -> None:
    wanted = VOCABULARIES[name]
    assert train_tokenizer.__wrapped__(wanted) == train_tokenizer(wanted)


def test_the_rebuilt_vocabulary_renumbers_shared_tokens() -> None:
    old, new = (vocabulary_of(train_tokenizer(VOCABULARIES[name])) for name in ("benchmark", "rebuilt"))
    shared = old.keys() & new.keys()
    assert len(shared) > 1200
    assert sum(old[token] == new[token] for token in shared) < 20


# --- the plan --------------------------------------------------------------------------------------------------


def test_the_benchmark_has_56_bases_and_ten_trained_children_of_twelve() -> None:
    jobs = plan.benchmark()
    assert len({job.name for job in jobs}) == len(jobs)
    kinds = Counter(job.kind for job in jobs)
    assert kinds.pop("base") == 48 + 8
    assert kinds == dict.fromkeys(plan.RECIPES, 12) | {"shared-init": 12 + 8}
    seen: set[str] = set()
    for job in jobs:  # a base comes before what is made of it
        assert job.base is None or job.base in seen
        seen.add(job.name)


def test_the_calibration_has_a_thousand_pairs_in_every_stratum() -> None:
    """Strata as `provindex.verdict.calibration` has them: tokenizer, shape (width, layers, neurons), kind of MLP."""
    jobs = plan.calibration()
    strata: Counter[tuple[bool, bool, str]] = Counter()
    for a, b in itertools.combinations(jobs, 2):
        sizes = [(j.shape.width, j.shape.layers, j.shape.hidden) for j in (a, b)]
        kinds = {j.shape.gated for j in (a, b)}
        mlp = "mixed" if len(kinds) == 2 else "gated" if kinds == {True} else "two-matrix"
        strata[a.vocabulary == b.vocabulary, sizes[0] == sizes[1], mlp] += 1
    assert len(strata) == 12
    assert min(strata.values()) >= 1_000
    assert sum(strata.values()) == 192 * 191 // 2


def test_the_two_zoos_have_nothing_in_common() -> None:
    here, there = plan.benchmark(), plan.calibration()
    for what in (lambda j: j.name, lambda j: j.shape, lambda j: j.vocabulary, lambda j: j.language.lexicon):
        assert not {what(job) for job in here} & {what(job) for job in there}


# --- descendants -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("order", [descendants.drop_middle(LAYERS), descendants.repeat_span(LAYERS), (0, 2, 4)])
def test_picked_layers_are_those_of_the_base(kind: str, order: tuple[int, ...]) -> None:
    base = random_model(kind)
    child = descendants.pick_layers(base, order)
    assert layers_of(child) == len(order)
    for new, old in enumerate(order):
        here, there = layer_tensors(child, new), layer_tensors(base, old)
        assert here.keys() == there.keys()
        assert all(np.array_equal(here[n], there[n]) for n in here)
    assert child.tensors.keys() == models.shapes(dict(child.config)).keys()


def test_the_orders_are_those_of_the_papers() -> None:
    assert descendants.drop_middle(6) == (0, 1, 4, 5)
    assert descendants.repeat_span(6) == (0, 1, 2, 3, 2, 3, 4, 5)
    assert descendants.repeat_span(32) == (*range(22), *range(10, 32))


@pytest.mark.parametrize("kind", CONFIGS)
def test_pruned_neurons_are_the_weakest_and_leave_everywhere_at_once(kind: str) -> None:
    base = random_model(kind)
    weak = {layer: np.random.default_rng(layer).choice(48, 12, replace=False) for layer in range(LAYERS)}
    for layer, name in itertools.product(weak, NAMES[kind].neurons):
        axis = NAMES[kind].neurons[name]
        np.moveaxis(base.tensors[f"{NAMES[kind].prefix}{layer}.{name}"], axis, 0)[weak[layer]] *= 0.01
    child, kept = descendants.prune_neurons(base)
    assert {n: t.shape for n, t in child.tensors.items()} == models.shapes(dict(child.config))
    for layer in range(LAYERS):
        assert set(kept[layer]) == set(range(48)) - set(weak[layer])
        for name, axis in NAMES[kind].neurons.items():
            before = layer_tensors(base, layer)[name]
            assert np.array_equal(layer_tensors(child, layer)[name], np.take(before, kept[layer], axis))
    assert len(set(kept)) == LAYERS


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_rebuilt_vocabulary_keeps_the_rows_of_shared_strings(kind: str) -> None:
    before, after = (train_tokenizer(VOCABULARIES[name]) for name in ("benchmark", "rebuilt"))
    old, new = vocabulary_of(before), vocabulary_of(after)
    base = replace(random_model(kind, vocab_size=len(old)), tokenizer=before)
    sizes, shapes = (models.shapes({**base.config, "vocab_size": len(v)}) for v in (old, new))
    child = descendants.rebuild_vocabulary(base, after, {n: np.zeros(s, np.float32) for n, s in shapes.items()})
    assert {n: t.shape for n, t in child.tensors.items()} == shapes
    changed = [n for n in shapes if shapes[n] != sizes[n]]
    assert changed
    for name in changed:
        for token, number in new.items():
            wanted = base.tensors[name][old[token]] if token in old else 0.0
            assert np.array_equal(child.tensors[name][number], np.broadcast_to(wanted, shapes[name][1:]))


def test_merges_of_equal_or_single_models_change_nothing() -> None:
    base, a = random_model("llama"), random_model("llama", 1)
    close = lambda x, y: all(np.allclose(x.tensors[n], y.tensors[n], atol=1e-5) for n in y.tensors)  # noqa: E731
    assert close(descendants.linear(a, a), a)
    assert close(descendants.slerp(a, a), a)
    assert close(descendants.task_arithmetic(base, [a], scale=1.0), a)
    assert close(descendants.ties(base, [a, a], density=1.0), a)
    assert close(descendants.dare(base, [a], seed=0, drop=0.0), a)
    assert is_equal(descendants.passthrough(a, a), a)


def test_each_merge_is_what_its_paper_says() -> None:
    zero = random_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    flat = lambda *v: replace(zero, tensors={name: np.array([v], np.float32)})  # noqa: E731
    base, a, b = flat(1, 1, 1, 1), flat(3, 1, 1.5, 2), flat(2, -4, 1, 0)
    values = lambda model: model.tensors[name][0].tolist()  # noqa: E731
    assert values(descendants.linear(a, b, 0.25)) == [2.75, -0.25, 1.375, 1.5]
    assert values(descendants.task_arithmetic(base, [a, b], 0.5)) == [2.5, -1.5, 1.25, 1.0]
    # Of 2, 0, .5, 1 and 1, -5, 0, -1 the larger half is 2, 1 and -5, 1 (and -1 with it): no sign wins the last one.
    assert values(descendants.ties(base, [a, b], 0.5)) == [2.5, -4.0, 1.0, 1.0]
    unit = descendants.slerp(flat(1, 0, 0, 0), flat(0, 1, 0, 0))
    assert np.allclose(unit.tensors[name], [[0.5**0.5, 0.5**0.5, 0, 0]])


def test_dare_drops_half_of_the_changes_and_doubles_the_rest() -> None:
    base, a = random_model("llama"), random_model("llama", 1)
    child = descendants.dare(base, [a], seed=3)
    name = "model.embed_tokens.weight"
    change, kept = (model.tensors[name] - base.tensors[name] for model in (a, child))
    assert np.all(np.isclose(kept, 0.0, atol=1e-5) | np.isclose(kept, 2.0 * change, atol=1e-5))
    assert abs(np.mean(kept == 0.0) - 0.5) < 0.02


def test_passthrough_takes_whole_layers_in_turn() -> None:
    a, b = random_model("gpt2"), random_model("gpt2", 1)
    child = descendants.passthrough(a, b)
    for layer in range(LAYERS):
        source = b if layer in (2, 3) else a
        wanted = layer_tensors(source, layer)
        assert all(np.array_equal(tensor, wanted[n]) for n, tensor in layer_tensors(child, layer).items())
    assert np.array_equal(child.tensors["transformer.wte.weight"], a.tensors["transformer.wte.weight"])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_quantized_values_lie_on_the_grid_of_their_group(kind: str, bits: int) -> None:
    base = random_model(kind)
    child = descendants.quantize(base, bits, dtype="F32")
    for name, after in child.tensors.items():
        before = base.tensors[name]
        if before.ndim != 2 or not name.startswith(NAMES[kind].prefix):
            assert np.array_equal(before, after)
            continue
        rows = (before.T, after.T) if kind == "gpt2" else (before, after)
        width = rows[0].shape[1] if bits == 8 or rows[0].shape[1] % 32 else 32
        old, new = (np.ascontiguousarray(side).reshape(-1, width) for side in rows)
        step = np.abs(old).max(1) / (2 ** (bits - 1) - 1)
        assert np.all(np.abs(old - new) <= 0.5001 * step[:, None])
        assert max(len(np.unique(row)) for row in new[:20]) <= 2**bits - 1


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_noise_has_the_size_that_it_says(share: float) -> None:
    base = random_model("gpt_neox")
    child = descendants.add_noise(base, share, 4)
    name = "gpt_neox.embed_in.weight"
    residue = child.tensors[name] - base.tensors[name]
    assert np.std(residue) / np.std(base.tensors[name]) == pytest.approx(share, rel=0.03)
    assert np.array_equal(
        child.tensors["gpt_neox.final_layer_norm.weight"], base.tensors["gpt_neox.final_layer_norm.weight"]
    )


# --- truth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_training_free_descendant_says_where_it_comes_from(kind: str) -> None:
    base, a, b = (random_model(kind, seed) for seed in range(3))
    made = descendants.free_descendants(base, a, b)
    assert {truth.kind for _, truth in made} == {
        "recast", "int8", "int8-f32", "int4", "int3", "noise-1", "noise-5", "noise-20", "linear", "slerp",
        "task-arithmetic", "ties", "dare", "passthrough", "linear-base", "slerp-base",
    }  # fmt: skip
    for snapshot, truth in made:
        assert snapshot.name == truth.name == f"{base.name}-{truth.kind}"
        assert truth.relation in RELATIONS
        assert truth.relation == truth.accepted[0]
        assert truth.ancestor == base.name
        assert truth.descends and truth.keeps_weights
        assert truth.layer_map == tuple((i, i) for i in range(LAYERS))
        assert set(truth.parents) <= {base.name, a.name, b.name}
        assert len(truth.parents) == (2 if truth.relation == "merge" else 1)
        assert {n: t.shape for n, t in snapshot.tensors.items()} == {n: t.shape for n, t in base.tensors.items()}
        assert all(t.dtype == np.float32 and np.isfinite(t).all() for t in snapshot.tensors.values())
        assert not is_equal(snapshot, base)


WITHOUT_TORCH = [kind for kind in plan.RECIPES if kind not in ("vocabulary", "shared-init")]


@pytest.mark.parametrize("kind", WITHOUT_TORCH)
def test_what_a_training_starts_from_agrees_with_its_truth(kind: str) -> None:
    base = random_model("llama")
    job = next(job for job in plan.benchmark() if job.kind == kind and job.shape.model_type == "llama")
    start, truth = make.begin(job, base)
    assert truth.kind == kind and truth.relation in RELATIONS and truth.ancestor == base.name
    assert [child for child, _ in truth.layer_map] == list(range(layers_of(start)))
    for child, source in truth.layer_map:
        ours, theirs = layer_tensors(start, child), layer_tensors(base, source)
        attention = [n for n in ours if "self_attn" in n]
        assert attention and all(np.array_equal(ours[n], theirs[n]) for n in attention)
    assert bool(truth.kept_neurons) == (kind == "width-pruned")


def test_truth_survives_its_file() -> None:
    base = random_model("llama")
    _, kept = descendants.prune_neurons(base)
    truth = Truth("x", "width-pruned", "pruned", ("pruned",), ("y",), "y", ((0, 0), (1, 2)), True, kept)
    assert Truth.from_json(json.loads(json.dumps(asdict(truth)))) == truth


# --- the folder ------------------------------------------------------------------------------------------------


def filed(root: Path, job: Job, model: Snapshot, truth: Truth) -> None:
    """Put a model where the zoo keeps it, as if it had been trained."""
    folder = replace(model, name=job.name).write(root / job.zoo / job.name)
    facts = {"key": store.key_of(job), "truth": asdict(truth), "loss_before": 7.0, "loss_after": 5.0}
    facts |= {"seconds": 1.0, "cpu_seconds": 1.0, "steps": 1, "parameters": model.parameters}
    (folder / store.FACTS).write_text(json.dumps(facts), encoding="utf-8")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A folder with one base and two finetunes of it."""
    jobs = [j for j in store.jobs_of("benchmark", ["llama-00-finetune"]) if j.name.startswith("llama-00")]
    for seed, job in enumerate(jobs):
        truth = Truth(job.name, job.kind, ancestor=job.base)
        filed(tmp_path, job, random_model("llama", seed), truth)
    return tmp_path


def test_everything_that_is_there_is_read_with_its_truth(family: Path) -> None:
    names = [truth.name for snapshot, truth in store.everything(family, "benchmark") if snapshot.name == truth.name]
    assert names[:3] == ["llama-00", "llama-00-finetune-a", "llama-00-finetune-b"]
    assert len(names) == 3 + 16


def test_a_model_of_other_settings_or_unfinished_counts_as_missing(family: Path) -> None:
    job = store.jobs_of("benchmark", ["llama-00"])[0]
    facts = store.facts_of(family, job)
    assert facts is not None and facts["loss_after"] == 5.0
    assert store.facts_of(family, replace(job, run=replace(job.run, steps=1))) is None
    (family / "benchmark" / job.name / store.FACTS).unlink()
    assert store.facts_of(family, job) is None
    assert store.free(family, "benchmark", job.name) == []


def test_a_key_changes_with_every_setting_and_with_its_base() -> None:
    job = store.jobs_of("benchmark", ["llama-00-lora"])[-1]
    others = [
        replace(job, run=replace(job.run, rate=1.0)),
        replace(job, base="llama-01"),
        replace(job, shape=replace(job.shape, width=32)),
        replace(job, language=Language(9)),
    ]
    assert len({store.key_of(j) for j in (job, *others)}) == 5


def test_only_takes_the_bases_along() -> None:
    assert [job.name for job in store.jobs_of("benchmark", ["gpt2-01-upscaled"])] == ["gpt2-01", "gpt2-01-upscaled"]


def test_one_failure_does_not_stop_the_rest(family: Path) -> None:
    """The second job's base is missing; the first and the third are there."""
    a, b = (next(j for j in plan.benchmark() if j.name == f"llama-00-finetune-{x}") for x in "ab")
    orphan = replace(a, base="llama-07")
    told = dict(store.complete(family, [a, replace(orphan, name="llama-07-finetune-a"), b]))
    assert [isinstance(facts, dict) for facts in told.values()] == [True, False, True]
    assert "llama-07 has no model" in str(told["llama-07-finetune-a"])


def test_the_command_lists_what_is_there(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["benchmark", "--root", str(family), "--only", "llama-00-finetune", "--list"]) == 0
    assert "benchmark: 3 of 3 models" in capsys.readouterr().out
    assert command.main(["benchmark", "--root", str(family), "--only", "llama-0", "--list"]) == 1
    assert "missing" in capsys.readouterr().out
    assert command.main(["benchmark", "--root", str(family), "--only", "mistral"]) == 2
    assert "No model of the benchmark zoo is called mistral" in capsys.readouterr().err
