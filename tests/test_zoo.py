"""The zoo is what other tests believe in, so it is tested: training, files, and the stated truth of each child."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from safetensors import deserialize
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from zoo import models, trainer, vocabulary
from zoo.family import Family, _move

KINDS: dict[str, Callable[[int], zoo.Checkpoint]] = {
    "llama": zoo.llama, "qwen2": zoo.qwen2, "gpt2": zoo.gpt2, "bert": zoo.bert, "t5": zoo.t5, "neox": zoo.neox,
}  # fmt: skip
CODES = {"F8_E4M3": (448.0, 2.0**-9), "F8_E5M2": (57344.0, 2.0**-16)}  # largest and smallest positive value


@pytest.fixture(scope="module")
def family(pytestconfig: pytest.Config) -> Family:
    return zoo.trained_family(pytestconfig.cache.mkdir("zoo"))


def load(family: Family, name: str) -> zoo.Checkpoint:
    """A member of the family, read back by the safetensors package."""
    folder = family.folders[name]
    config = json.loads((folder / "config.json").read_text())
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return zoo.Checkpoint(config, load_file(folder / "model.safetensors"), text)


def matrices(checkpoint: zoo.Checkpoint) -> list[str]:
    return [name for name, value in checkpoint.tensors.items() if value.ndim == 2]


# ---- training ---------------------------------------------------------------------------------------------------


TINY = {
    "tied": models.llama_config(hidden=16, layers=2, heads=4, kv_heads=2, intermediate=24),
    "untied": models.llama_config(hidden=16, layers=2, heads=4, kv_heads=4, intermediate=24, tied=False),
    "bert": models.bert_config(hidden=16, layers=2, heads=4, intermediate=24, act="gelu_new"),
}


@pytest.mark.parametrize("kind", TINY)
def test_gradient_is_that_of_finite_differences(kind: str) -> None:
    config = TINY[kind]
    checkpoint = models.independent(config, 3)
    flat = trainer.pack(checkpoint.tensors, config, np.float64)
    flat *= 4  # far from the linear regime, so that a wrong second factor shows
    batch = next(trainer.sentences(config["vocab_size"], 0, 0))[:2, :9]
    gradient = trainer._views(trainer.loss_and_gradient(flat, config, batch)[1], config)
    rng, step = np.random.default_rng(0), 1e-6
    for name, value in trainer._views(flat, config).items():
        direction = rng.standard_normal(value.shape)
        kept, losses = value.copy(), []
        for sign in (1, -1):
            value[:] = kept + sign * step * direction
            losses.append(trainer.loss_and_gradient(flat, config, batch)[0])
        value[:] = kept
        expected = (losses[0] - losses[1]) / (2 * step)
        assert np.vdot(gradient[name], direction) == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def test_loss_falls_and_continued_training_starts_where_it_ended() -> None:
    first, losses = trainer.train_with_losses(5, 60)
    assert losses[0] == pytest.approx(np.log(first.config["vocab_size"]), abs=0.3)
    assert np.mean(losses[-10:]) < losses[0] - 0.6
    more = trainer.train_with_losses(0, 5, 3, first, rate=1e-4)[1]
    assert abs(np.mean(more) - np.mean(losses[-10:])) < 0.3


def test_encoder_learns_too() -> None:
    first, losses = trainer.train_with_losses(5, 60, config=models.bert_config(act="gelu_new"))
    assert np.mean(losses[-10:]) < losses[0] - 0.6
    assert zoo.logits(first, np.arange(24).reshape(2, 12)).shape == (2, 12, first.config["vocab_size"])
    with pytest.raises(ValueError, match="gelu_new"):
        zoo.train(0, 1, config=models.bert_config())


def test_training_is_reproducible_and_depends_on_seed_data_and_language() -> None:
    base = trainer.train(5, 3)
    same = trainer.train(5, 3)
    assert all(np.array_equal(base.tensors[name], same.tensors[name]) for name in base.tensors)
    for other in (trainer.train(6, 3), trainer.train(5, 3, 1), trainer.train(5, 3, language=1)):
        assert not any(np.array_equal(base.tensors[name], other.tensors[name]) for name in matrices(base))


def test_training_commutes_with_permutations_of_hidden_units() -> None:
    """The assumption of the exact tests: nothing but the random start tells one hidden unit from another."""
    config = models.llama_config()
    begin = zoo.Checkpoint(config, trainer.unpack(trainer.start(config, 4), config))
    straight = zoo.permute_neurons(zoo.train(0, 12, init=begin), seed=2)
    permuted = zoo.train(0, 12, init=zoo.permute_neurons(begin, seed=2))
    for name, value in straight.tensors.items():
        np.testing.assert_allclose(permuted.tensors[name], value, atol=2e-3)
    assert min(zoo.cosines(straight, permuted).values()) > 0.99999


def test_pack_and_unpack_are_inverse() -> None:
    checkpoint = zoo.llama(2, tied=False)
    back = trainer.unpack(trainer.pack(checkpoint.tensors, checkpoint.config), checkpoint.config)
    assert list(back) == list(models.shapes(checkpoint.config))
    assert all(np.array_equal(back[name], value) for name, value in checkpoint.tensors.items())


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_reads_what_was_written(kind: str, tmp_path: Path) -> None:
    checkpoint = KINDS[kind](1)
    folder = zoo.write(checkpoint, tmp_path / kind, order=7)
    back = load_file(folder / "model.safetensors")
    assert back.keys() == checkpoint.tensors.keys()
    assert all(np.array_equal(back[name], value) for name, value in checkpoint.tensors.items())
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == len(vocabulary.tokens((folder / "tokenizer.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8"])
def test_every_dtype_is_stored_as_cast_says(dtype: str, tmp_path: Path) -> None:
    checkpoint = zoo.llama(1, layers=1)
    expected = zoo.cast(checkpoint, dtype)
    folder = zoo.write(checkpoint, tmp_path / "m", dtype=dtype)
    for name, entry in deserialize((folder / "model.safetensors").read_bytes()):
        assert entry["dtype"] == dtype
        stored = zoo.decode(bytes(entry["data"]), dtype).reshape(entry["shape"])
        assert np.array_equal(stored, expected.tensors[name])


@pytest.mark.parametrize("dtype", CODES)
def test_all_codes_of_eight_bit_floats_survive(dtype: str) -> None:
    values = zoo.decode(bytes(range(256)), dtype)
    finite = values[np.isfinite(values)]
    assert finite.max() == CODES[dtype][0]
    assert finite[finite > 0].min() == CODES[dtype][1]
    codes = np.arange(256, dtype=np.uint8)[np.isfinite(values)]
    assert zoo.encode(finite, dtype) == codes.tobytes()


def test_rounding_is_to_nearest_with_ties_to_even() -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    assert zoo.decode(zoo.encode(ties, "BF16"), "BF16").tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    ties = np.array([1.0625, 1.1875, -1.07, 1000.0], np.float32)
    assert zoo.decode(zoo.encode(ties, "F8_E4M3"), "F8_E4M3").tolist() == [1.0, 1.25, -1.125, 448.0]


@pytest.mark.parametrize("shards", [2, 5, 11])
def test_shards_hold_every_tensor_once_as_the_index_says(shards: int, tmp_path: Path) -> None:
    checkpoint = zoo.llama(1, layers=1)
    folder = zoo.write(checkpoint, tmp_path / "m", shards=shards, prefix="base_model.")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    back = {(name, file): value for file in files for name, value in load_file(folder / file).items()}
    assert len(files) == shards
    assert set(back) == set(index["weight_map"].items())
    assert {f"base_model.{name}" for name in checkpoint.tensors} == {name for name, _ in back}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in back.values())


def test_order_moves_bytes_and_dtypes_may_differ_by_tensor(tmp_path: Path) -> None:
    checkpoint = zoo.gpt2(1)
    names = list(reversed(checkpoint.tensors))
    one = zoo.write(checkpoint, tmp_path / "a", order=names) / "model.safetensors"
    two = zoo.write(checkpoint, tmp_path / "b", dtype=lambda name: "F32" if "ln_" in name else "BF16")
    assert one.read_bytes()[8:].startswith(b'{"__metadata__"')
    stored = deserialize(one.read_bytes())
    assert {name for name, _ in stored} == set(names)
    header = json.loads(one.read_bytes()[8 : 8 + int.from_bytes(one.read_bytes()[:8], "little")])
    assert [name for name in header if name != "__metadata__"] == names
    kinds = {name: entry["dtype"] for name, entry in deserialize((two / "model.safetensors").read_bytes())}
    assert kinds["transformer.h.0.ln_1.weight"] == "F32" and kinds["transformer.wte.weight"] == "BF16"


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "bpe"])
def test_tokenizers_know_the_words(kind: str) -> None:
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json(kind))
    text = "the people of the world went home, and 7 more came."
    encoding = tokenizer.encode(text, add_special_tokens=False)
    pieces = encoding.tokens
    assert tokenizer.decode(encoding.ids).replace(" ", "") == text.replace(" ", "")
    assert len(pieces) <= 15
    assert {piece.lstrip("\u0120\u2581") for piece in pieces} >= {"the", "people", "world", "home", "more"}


# ---- children ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [0.5, 0.2, 0.1])
def test_noise_has_the_stated_cosine_and_norm(cosine: float) -> None:
    parent = zoo.gpt2(1)
    child = zoo.finetune_noise(parent, cosine, seed=1)
    found = zoo.cosines(parent, child)
    for name in matrices(parent):
        assert found[name] == pytest.approx(cosine, abs=1e-6)
        assert np.linalg.norm(child.tensors[name]) == pytest.approx(np.linalg.norm(parent.tensors[name]), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_models_of_one_config_share_nothing(kind: str) -> None:
    a, b = KINDS[kind](1), KINDS[kind](2)
    shuffled = zoo.shuffle(a, 1)
    assert a.config == b.config == shuffled.config
    tables = models.TABLE
    for name in (name for name in matrices(a) if a.tensors[name].size > 1000 and not tables.search(name)):
        bound = 6 * np.sqrt(a.tensors[name].shape[0] ** -1 * a.tensors[name].shape[1] ** -1) * 2
        assert abs(zoo.cosines(a, b)[name]) < bound
        assert abs(zoo.cosines(a, shuffled)[name]) < bound
        assert np.array_equal(np.sort(a.tensors[name], axis=None), np.sort(shuffled.tensors[name], axis=None))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_dropped_and_repeated(kind: str) -> None:
    parent = KINDS[kind](1)
    last = 1 if kind == "t5" else 2
    for order in ((last,), (0, last, 0, last)):
        child = zoo.repeat_layers(parent, order)
        assert {n: v.shape for n, v in child.tensors.items()} == models.shapes(child.config)
        for name, value in child.tensors.items():
            found = models.LAYER.match(name)
            if found and "relative_attention_bias" not in name:
                name = f"{found.group(1)}{order[int(found.group(2))]}{found.group(3)}"
            assert value is parent.tensors[name]
    assert zoo.drop_layers(parent, (last, 0)).tensors.keys() == zoo.repeat_layers(parent, (0, last)).tensors.keys()
    with pytest.raises(KeyError):
        zoo.drop_layers(parent, (0, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_units_are_permuted_and_pruned_together(kind: str) -> None:
    parent = KINDS[kind](1)
    permuted, pruned = zoo.permute_neurons(parent, 1), zoo.prune_width(parent, 0.75, 1)
    assert permuted.config | {"n_inner": None} == parent.config | {"n_inner": None}
    assert {n: v.shape for n, v in pruned.tensors.items()} == models.shapes(pruned.config)
    changed = {n for n, v in parent.tensors.items() if not np.array_equal(v, permuted.tensors[n])}
    layers = 4 if kind == "t5" else 3
    assert len(changed) == layers * len(zoo.children.UNIT_AXES[parent.config["model_type"]])
    for name in changed:
        assert np.array_equal(np.sort(parent.tensors[name], axis=None), np.sort(permuted.tensors[name], axis=None))


def test_permuted_neurons_leave_the_function_unchanged_and_pruned_ones_do_not(family: Family) -> None:
    parent = load(family, "founder-00")
    tokens = np.arange(24).reshape(2, 12)
    expected = zoo.logits(parent, tokens)
    np.testing.assert_allclose(zoo.logits(zoo.permute_neurons(parent, 1), tokens), expected, atol=1e-4)
    assert np.abs(zoo.logits(zoo.prune_width(parent, 0.5, 1), tokens) - expected).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_and_extended_vocabularies_keep_rows_by_string(kind: str) -> None:
    parent = KINDS[kind](1)
    old = vocabulary.tokens(parent.tokenizer or "")
    child = zoo.prune_vocabulary(parent, old[1::2])
    grown = zoo.extend_vocabulary(child, ["zebra", "quux"], seed=1)
    new, newest = (vocabulary.tokens(c.tokenizer or "") for c in (child, grown))
    assert set(old[1::2]) <= set(new) and len(old) // 2 <= len(new) < len(old) // 2 + 8
    assert newest == (*new, "zebra", "quux") and grown.config["vocab_size"] == len(newest)
    tables = [name for name in parent.tensors if zoo.children.TOKEN_ROWS.search(name)]
    assert tables and {n: v.shape for n, v in grown.tensors.items()} == models.shapes(grown.config)
    for name in tables:
        for i, token in enumerate(new):
            assert np.array_equal(child.tensors[name][i], parent.tensors[name][old.index(token)])
        assert np.array_equal(grown.tensors[name][:-2], child.tensors[name])
    marks = {key: old[value] for key, value in parent.config.items() if key.endswith("_token_id")}
    assert marks == {key: new[child.config[key]] for key in marks}


@pytest.mark.parametrize(("bits", "per", "block"), [(8, "row", 64), (4, "row", 64), (4, "block32", 32)])
def test_quantized_values_are_few_and_stay(bits: int, per: str, block: int) -> None:
    parent = zoo.llama(1)
    child = zoo.quantize(parent, bits, per)
    name = "model.layers.0.mlp.up_proj.weight"
    blocks = child.tensors[name].reshape(-1, block)
    assert max(len(np.unique(row)) for row in blocks) <= 2**bits - 1
    step = np.abs(parent.tensors[name].reshape(-1, block)).max(axis=1) / (2 ** (bits - 1) - 1)
    assert (np.abs(blocks - parent.tensors[name].reshape(-1, block)).max(axis=1) <= 0.501 * step).all()
    np.testing.assert_allclose(zoo.quantize(child, bits, per).tensors[name], child.tensors[name], rtol=1e-6)
    assert np.array_equal(child.tensors["model.norm.weight"], parent.tensors["model.norm.weight"])


def test_merge_prefix_and_missing_tokenizer() -> None:
    a, b = zoo.llama(1), zoo.llama(2)
    middle = zoo.merge(a, b, 0.25)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_allclose(middle.tensors[name], 0.75 * a.tensors[name] + 0.25 * b.tensors[name], atol=1e-7)
    bare = zoo.rename_prefix(a, "model.", "")
    assert bare.tensors["layers.1.mlp.down_proj.weight"] is a.tensors[name] and len(bare.tensors) == len(a.tensors)
    with pytest.raises(ValueError, match="no tokenizer"):
        zoo.prune_vocabulary(replace(a, tokenizer=None), ["the"])


# ---- the trained family -----------------------------------------------------------------------------------------


def test_family_on_disk_is_what_the_tree_says(family: Family, pytestconfig: pytest.Config) -> None:
    weights = [folder / "model.safetensors" for folder in family.folders.values()]
    stamps = [path.stat().st_mtime_ns for path in weights]
    again = zoo.trained_family(pytestconfig.cache.mkdir("zoo"))
    assert again == family and [path.stat().st_mtime_ns for path in weights] == stamps
    assert len(family.founders) == 12 and set(family.parents) == set(family.relations)
    assert family.root("grandchild-00") == "founder-00" and family.root("founder-03") == "founder-03"


def test_a_lost_race_keeps_the_folder_that_is_there(tmp_path: Path) -> None:
    draft, home = tmp_path / "draft", tmp_path / "home"
    for folder in (draft, home):
        folder.mkdir()
        (folder / "from").write_text(folder.name)
    _move(draft, home)
    assert (home / "from").read_text() == "home"
    with pytest.raises(OSError):
        _move(tmp_path / "missing", tmp_path / "nowhere")


def test_founders_are_independent_and_children_are_not(family: Family) -> None:
    for names in (family.founders[:4], family.encoders):
        independents = [load(family, name) for name in names]
        for a, b in itertools.combinations(independents, 2):
            found = zoo.cosines(a, b)
            assert max(abs(found[name]) for name in matrices(a) if "token_type" not in name) < 0.15
    parent = load(family, "founder-00")
    for child in ("finetune-00", "continued-00", "q4-00"):
        found = zoo.cosines(load(family, child), parent)
        assert min(found[name] for name in matrices(parent)) > 0.3
        assert max(found[name] for name in matrices(parent)) < 1 - 1e-6
    assert min(zoo.cosines(load(family, "twin-00"), parent).values()) > 0.3
