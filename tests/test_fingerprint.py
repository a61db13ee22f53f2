"""One set of weights, one fingerprint: whatever the files look like. And what it says when something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint, in_memory

from provindex.common.errors import IndexFormatError, ModelError
from provindex.common.tensor import Tensor
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import COLUMNS, Row, from_row, to_row
from provindex.models.source import Model, open_model
from provindex.report.words import text, texts
from provindex.verdict.pair import Pair, compare

MAKERS: dict[str, Callable[[int], zoo.Checkpoint]] = {
    "llama": zoo.llama,
    "qwen2": zoo.qwen2,
    "gpt2": zoo.gpt2,
    "gpt_neox": zoo.neox,
    "bert": zoo.bert,
    "t5": zoo.t5,
}


def hashes(fp: Fingerprint) -> tuple[str | None, str]:
    return fp.content_sha256, to_row(fp)["row_sha256"]


def on_disk(checkpoint: zoo.Checkpoint, folder: Path, **options: object) -> Fingerprint:
    return fingerprint_model(open_model(str(zoo.write(checkpoint, folder, **options))))  # type: ignore[arg-type]


def differing(a: Fingerprint, b: Fingerprint) -> list[str]:
    """Names of the content columns in which two rows differ."""
    x, y = to_row(a), to_row(b)
    return [c.name for c in COLUMNS if c.content and not np.array_equal(x[c.name], y[c.name])]


@pytest.fixture(scope="module")
def model() -> zoo.Checkpoint:
    return zoo.llama(1, tied=False)


# ---- the same weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_shards_order_and_folder_do_not_matter(make: Callable[[int], zoo.Checkpoint], tmp_path: Path) -> None:
    model = make(1)
    first = on_disk(model, tmp_path / "first")
    for number, options in enumerate(({"shards": 3}, {"order": 7}, {"shards": 3, "order": 8})):
        fp = on_disk(model, tmp_path / f"copy {number}", **options)
        assert hashes(fp) == hashes(first), differing(fp, first)
    assert first.content_sha256 == fingerprint(model).content_sha256


def test_file_names_do_not_matter(model: zoo.Checkpoint, tmp_path: Path) -> None:
    expected = on_disk(model, tmp_path / "a")
    folder = tmp_path / "a"
    (folder / "model.safetensors").rename(folder / "weights of mine.safetensors")
    named = fingerprint_model(open_model(str(folder / "weights of mine.safetensors")))
    assert hashes(named) == hashes(expected)
    assert named.files[0].name == "weights of mine.safetensors"


@pytest.mark.parametrize(("narrow", "wide"), [("BF16", "F32"), ("F16", "F32"), ("F32", "F64"), ("BF16", "F64")])
@pytest.mark.parametrize("make", [zoo.llama, zoo.gpt2, zoo.bert])
def test_the_stored_width_does_not_matter(
    make: Callable[[int], zoo.Checkpoint], narrow: str, wide: str, tmp_path: Path
) -> None:
    model = zoo.cast(make(1), narrow)
    one, other = (on_disk(model, tmp_path / dtype, dtype=dtype) for dtype in (narrow, wide))
    assert hashes(one) == hashes(other), differing(one, other)
    assert one.facts.precision == {"BF16": "bf16", "F16": "f16", "F32": "f32"}[narrow]


PREFIXES = (
    (zoo.llama, "model.", ""),
    (zoo.llama, "", "base_model.model."),
    (zoo.bert, "bert.", ""),
    (zoo.gpt2, "transformer.", ""),
)


@pytest.mark.parametrize(("make", "old", "new"), PREFIXES)
def test_prefixes_do_not_matter(make: Callable[[int], zoo.Checkpoint], old: str, new: str) -> None:
    model = make(1)
    one, other = fingerprint(model), fingerprint(zoo.rename_prefix(model, old, new))
    assert hashes(one) == hashes(other), differing(one, other)


def test_a_tied_head_written_out_does_not_matter() -> None:
    tied = zoo.llama(1, tied=True)
    table = tied.tensors["model.embed_tokens.weight"]
    written = tied.with_tensors({**tied.tensors, "lm_head.weight": table})
    one, other = fingerprint(tied), fingerprint(written)
    assert one.content_sha256 == other.content_sha256
    assert one.facts == other.facts
    assert compare(one, other).relation == "identical"


def test_the_order_of_config_keys_does_not_matter(model: zoo.Checkpoint) -> None:
    turned = replace(model, config=dict(reversed(model.config.items())))
    assert hashes(fingerprint(turned)) == hashes(fingerprint(model))


def test_the_same_call_twice_gives_the_same_bytes(model: zoo.Checkpoint) -> None:
    one, other = (to_row(fingerprint(model)) for _ in range(2))
    assert all(np.array_equal(one[c.name], other[c.name]) for c in COLUMNS)


# ---- other weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_one_step_in_one_weight_is_another_model(model: zoo.Checkpoint, name: str) -> None:
    tensors = {n: v.copy() for n, v in model.tensors.items()}
    flat = tensors[name].reshape(-1)
    flat[-1] = np.nextafter(flat[-1], np.float32(np.inf))
    one, other = fingerprint(model), fingerprint(model.with_tensors(tensors))
    assert one.content_sha256 != other.content_sha256
    assert to_row(one)["row_sha256"] != to_row(other)["row_sha256"]
    assert compare(one, other).verdict == "linked" and compare(one, other).relation == "finetune"


def test_another_tokenizer_is_another_row_of_the_same_weights(model: zoo.Checkpoint) -> None:
    one, other = fingerprint(model), fingerprint(replace(model, tokenizer=zoo.gpt2(0).tokenizer))
    assert one.content_sha256 == other.content_sha256
    assert to_row(one)["row_sha256"] != to_row(other)["row_sha256"]


def test_tensors_that_change_places_are_another_model(model: zoo.Checkpoint) -> None:
    swap = {"model.layers.0.mlp.up_proj.weight": "model.layers.1.mlp.up_proj.weight"}
    swap |= {b: a for a, b in swap.items()}
    turned = model.with_tensors({n: model.tensors[swap.get(n, n)] for n in model.tensors})
    assert fingerprint(model).content_sha256 != fingerprint(turned).content_sha256


# ---- something is missing -------------------------------------------------------------------------------------


def test_nan_and_infinity_are_counted_and_explained(model: zoo.Checkpoint) -> None:
    tensors = {n: v.copy() for n, v in model.tensors.items()}
    tensors["model.embed_tokens.weight"][5, 3] = np.nan
    tensors["model.layers.0.self_attn.q_proj.weight"][0, :2] = -np.inf
    tensors["model.norm.weight"][0] = np.inf
    fp = fingerprint(model.with_tensors(tensors))
    assert fp.facts.nonfinite == 4 and any("4 NaN or infinite values in 3 tensors" in w for w in texts(fp.warnings))
    for signal in ("NLF", "LEP", "END", "WVC"):
        assert "NaN or infinity" in text(fp.absences[signal]), signal
    assert fp.nlf is None and fp.end is None and fp.wvc is None and fp.hidden is not None
    pair = compare(fp, fingerprint(model))
    assert pair.verdict == "linked" and all(s.value is not None or s.reasons for s in pair.signals.values())
    assert hashes(from_row(to_row(fp))) == hashes(fp)


def test_empty_tensors_say_nothing(model: zoo.Checkpoint) -> None:
    empty = {"model.layers.0.mlp.gate_proj.bias": np.zeros(0, np.float32), "extra": np.zeros((0, 64), np.float32)}
    assert (
        fingerprint(model.with_tensors({**model.tensors, **empty})).content_sha256 == fingerprint(model).content_sha256
    )
    with pytest.raises(ModelError, match="no weight tensors"):
        fingerprint(model.with_tensors({n: v[:0] for n, v in model.tensors.items()}))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_config_and_tokenizer_may_be_withheld(make: Callable[[int], zoo.Checkpoint]) -> None:
    model = make(1)
    bare, whole = fingerprint(replace(model, config={}, tokenizer=None)), fingerprint(model)
    if make is zoo.neox:  # only the config says where the rows of a head end
        assert compare(bare, whole).relation == "related"
    else:
        assert bare.content_sha256 == whole.content_sha256
    assert bare.eas_by_id is not None and bare.residual is None and text(bare.absences["residual"])
    assert text(bare.absences["TFV"]) and text(bare.absences["VOA"])
    child = fingerprint(replace(zoo.finetune_noise(model, 0.95, 1), config={}, tokenizer=None))
    pair = compare(bare, child)
    assert (pair.verdict, pair.relation) == ("linked", "finetune")
    stranger = fingerprint(replace(make(2), config={}, tokenizer=None))
    assert compare(bare, stranger).verdict == "unrelated"


def test_unknown_names_are_reported_and_hashed(model: zoo.Checkpoint) -> None:
    odd = model.with_tensors({**model.tensors, "my.own.thing": np.random.default_rng(0).random((9, 9), np.float32)})
    fp = fingerprint(odd)
    assert (
        any("my.own.thing" in w for w in texts(fp.warnings)) and fp.content_sha256 != fingerprint(model).content_sha256
    )


# ---- sampled mode ---------------------------------------------------------------------------------------------

SAMPLED = ("eas", "eas_by_id", "nlf", "nlf_names", "hidden_panels", "hidden_keys", "residual_panel", "residual_ids",
           "block_keys", "block_exact", "block_bf16", "block_f16", "block_samples", "block_scales")  # fmt: skip


def large() -> zoo.Checkpoint:
    """Matrices of several blocks each, so that a sample is less than the whole."""
    return zoo.llama(1, layers=5, hidden=384, intermediate=1024)


@pytest.mark.parametrize("make", [large, zoo.gpt2, zoo.bert, zoo.t5])
def test_sampled_mode_agrees_bit_for_bit_with_exact_mode(make: Callable[[], zoo.Checkpoint]) -> None:
    model = make()
    exact, sampled = fingerprint(model), fingerprint(model, mode="sampled")
    x, y = to_row(exact), to_row(sampled)
    assert all(np.array_equal(x[name], y[name]) for name in SAMPLED)
    assert sampled.content_sha256 is None and sampled.wvc is None and sampled.end is None and not sampled.lep
    for signal in ("WVC", "LEP", "END"):
        assert "exact mode" in text(sampled.absences[signal])
    assert compare(sampled, exact).verdict == "linked"
    assert compare(sampled, exact).signals["WVC"].reasons


@pytest.mark.parametrize("make", [large, zoo.gpt2, zoo.bert])
def test_the_layers_that_sampled_mode_reads_whole_are_described_as_in_exact_mode(
    make: Callable[[], zoo.Checkpoint],
) -> None:
    exact, sampled = fingerprint(make()), fingerprint(make(), mode="sampled")
    assert exact.sketches and sampled.sketches and exact.neurons and sampled.neurons
    assert 1 <= len(sampled.sketches.keys) <= 2 < len(exact.sketches.keys)
    for i, key in enumerate(sampled.sketches.keys):
        whole = exact.sketches.layers[exact.sketches.keys.index(key)]
        assert np.allclose(sampled.sketches.layers[i], whole, rtol=2**-10, atol=2**-12)
        ours, theirs = sampled.neurons.places[key], exact.neurons.places[key]
        kept = min(ours.stop - ours.start, theirs.stop - theirs.start)
        ours, theirs = slice(ours.start, ours.start + kept), slice(theirs.start, theirs.start + kept)
        assert np.array_equal(sampled.neurons.units[ours], exact.neurons.units[theirs])
        assert np.allclose(sampled.neurons.lengths[ours], exact.neurons.lengths[theirs], rtol=1e-6)
        assert sampled.neurons.by_string is not None and exact.neurons.by_string is not None
        assert int(np.abs(sampled.neurons.by_string[ours] - exact.neurons.by_string[theirs]).max()) <= 1


def test_sampled_mode_reads_less() -> None:
    model = large()
    exact, sampled = fingerprint(model), fingerprint(model, mode="sampled")
    assert exact.bytes_read == exact.bytes_total == sampled.bytes_total == sum(v.nbytes for v in model.tensors.values())
    assert 0 < sampled.bytes_read < sampled.bytes_total


class Counting:
    """A tensor that notes which of its elements it gave away."""

    def __init__(self, tensor: Tensor, seen: dict[str, NDArray[np.bool_]]) -> None:
        self._tensor, self._given = tensor, seen.setdefault(tensor.name, np.zeros(tensor.size, bool))

    def __getattr__(self, name: str) -> object:
        return getattr(self._tensor, name)

    def flat(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        self._given[start:stop] = True
        return self._tensor.flat(start, stop)

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        self._given.reshape(self._tensor.shape[0], -1)[index] = True
        return self._tensor.rows(index)


def test_the_bytes_that_sampled_mode_reports_are_those_it_read() -> None:
    seen: dict[str, NDArray[np.bool_]] = {}
    model = in_memory(large())
    counting: Model = replace(model, tensors={n: Counting(t, seen) for n, t in model.tensors.items()})  # type: ignore[misc]
    fp = fingerprint_model(counting, mode="sampled")
    assert fp.bytes_read == 4 * sum(int(given.sum()) for given in seen.values())


# ---- rows -----------------------------------------------------------------------------------------------------


def numbers(pair: Pair) -> str:
    """All that a verdict says, as text."""
    said = [pair.verdict, pair.relation, pair.direction, pair.confidence, pair.log10_p, pair.log10_e, pair.layer_map]
    return repr([*said, dict(pair.signals), dict(pair.evidence), pair.pipeline, pair.mfi_tier, texts(pair.reasons)])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_stored_fingerprint_gives_the_numbers_of_a_fresh_one(make: Callable[[int], zoo.Checkpoint]) -> None:
    parent = make(1)
    fresh = [
        fingerprint(m)
        for m in (parent, zoo.finetune_noise(parent, 0.8, 1), zoo.quantize(parent, 4, "block32"), make(2))
    ]
    stored = [from_row(to_row(fp)) for fp in fresh]
    assert [hashes(fp) for fp in stored] == [hashes(fp) for fp in fresh]
    for other in range(1, 4):
        expected = numbers(compare(fresh[0], fresh[other]))
        assert numbers(compare(stored[0], stored[other])) == expected
        assert numbers(compare(fresh[0], stored[other])) == expected


def test_a_row_has_every_column_in_its_plain_type(model: zoo.Checkpoint) -> None:
    row = to_row(fingerprint(model))
    assert list(row) == [c.name for c in COLUMNS]
    for column in COLUMNS:
        value = row[column.name]
        if column.type.startswith("list<") and column.type != "list<string>":
            assert value.dtype == column.type[5:-1] and value.ndim == 1, column.name
        elif column.type == "list<string>":
            assert isinstance(value, list) and all(isinstance(v, str) for v in value), column.name
        else:
            assert value is None or isinstance(value, int if column.type == "int" else str), column.name
    assert json.loads(row["mfi"])["model_type"] == "llama"


DAMAGE: dict[str, Callable[[Row], Row]] = {
    "another version": lambda r: r | {"fingerprint_version": 99},
    "values that do not fit their sizes": lambda r: r | {"wvc": r["wvc"][:-1]},
    "a key that is none": lambda r: r | {"hidden_keys": ["mlp/decoder", *r["hidden_keys"][1:]]},
    "text that is no JSON": lambda r: r | {"absences": "{"},
    "blocks cut short": lambda r: r | {"block_exact": r["block_exact"][:-1]},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_row_is_one_clear_error(model: zoo.Checkpoint, damage: Callable[[Row], Row]) -> None:
    with pytest.raises(IndexFormatError, match=r"(version|damaged)"):
        from_row(damage(to_row(fingerprint(model))))


def test_progress_ends_at_the_end(model: zoo.Checkpoint) -> None:
    calls: list[tuple[int, int]] = []
    fp = fingerprint_model(in_memory(model), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (fp.bytes_total, fp.bytes_total) and sorted(calls) == calls
