"""Tokenizers as people have them: each file is read, or named; its tokens are spelled as tokenizer.json spells them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_files as made
from zoo import container

from provindex.common.reasons import Code
from provindex.common.tokens import Tokenizer, TokenizerAbsence
from provindex.formats import folder, tiktoken
from provindex.models import tokenizer as reader
from provindex.models.source import open_model
from provindex.models.tokenizer import read_tokenizer
from provindex.report.words import text
from provindex.signals import tfv
from provindex.signals.anchors import peer_anchors

BYTES = {letter: byte for byte, letter in tiktoken.SPELLING.items()}
WORDS = (" the", "of", "7", " water", "ni", "на", " столе", "\U0001f600")


def original(place: Path) -> Tokenizer:
    made.write_tokenizer(place, made.byte_bpe())
    found = read_tokenizer(made.files(place), {"model_type": "gpt2"})
    assert isinstance(found, Tokenizer)
    return found


def tokens_of(found: Tokenizer) -> list[bytes]:
    """Bytes by rank: the ids after <|endoftext|>, which is 0."""
    ordered = sorted((number, token) for token, number in found.vocab.items() if number)
    assert [number for number, _ in ordered] == list(range(1, len(ordered) + 1))
    return [bytes(BYTES[letter] for letter in token) for _, token in ordered]


def tekken(tokens: list[bytes], **changes: Any) -> dict[str, Any]:
    listed = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {"pattern": r"\s?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+", "default_vocab_size": len(tokens) + 1}
    config |= {"default_num_special_tokens": 1, "version": "v11"}
    special = [{"rank": 0, "token_str": "<|endoftext|>", "is_control": True}]
    return {"config": config, "vocab": listed, "special_tokens": special} | changes


def read(place: Path, files: dict[str, Any], config: dict[str, Any] | None = None) -> Tokenizer | TokenizerAbsence:
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (place / name).write_bytes(raw)
    return read_tokenizer(made.files(place), config or {})


def test_tekken_is_the_byte_level_bpe_that_tokenizer_json_has(tmp_path: Path) -> None:
    known = original(tmp_path / "hub")
    listed = tokens_of(known)
    found = read(tmp_path / "mistral", {"tekken.json": tekken([*listed, b"not used"]) | {
        "config": tekken(listed)["config"]}})  # fmt: skip
    assert isinstance(found, Tokenizer), found
    assert found.vocab == known.vocab and found.kind == "BPE" and set(known.merges) <= set(found.merges)
    assert [found.first_id(word) for word in WORDS] == [known.first_id(word) for word in WORDS]
    assert peer_anchors(found.first_id, found.vocab, 400) == peer_anchors(known.first_id, known.vocab, 400)
    assert (tfv.compare(tfv.extract(found), tfv.extract(known)).value or 0) > 0.5


def test_special_tokens_that_tekken_does_not_list_have_mistral_s_names(tmp_path: Path) -> None:
    listed = tokens_of(original(tmp_path / "hub"))
    document = tekken(listed, special_tokens=None)
    document["config"] |= {"default_num_special_tokens": 30, "default_vocab_size": len(listed) + 30}
    found = read(tmp_path / "m", {"tekken.json": document})
    assert isinstance(found, Tokenizer)
    assert [found.vocab[token] for token in ("<unk>", "<s>", "</s>", "<pad>", "<SPECIAL_29>")] == [0, 1, 2, 11, 29]
    assert found.vocab["a"] == 30 + listed.index(b"a")


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken", "o200k_base.tiktoken", "tiktoken.model"])
def test_tokens_with_ranks(name: str, tmp_path: Path) -> None:
    known = original(tmp_path / "hub")
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens_of(known))]
    place = tmp_path / "m"
    found = read(place, {name: b"\n".join(lines) + b"\n"}, {"model_type": "llama"})
    assert isinstance(found, Tokenizer), found
    assert dict(found.vocab) == {token: number - 1 for token, number in known.vocab.items() if number}
    assert [found.first_id(word) for word in WORDS] == [(known.first_id(word) or 0) - 1 for word in WORDS]
    container.save(place / "model.safetensors", {"w": np.ones((2, 2), np.float32)}, {"w": "F32"}, ["w"])
    assert list(open_model(place).tokenizer_files) == [name]


BROKEN = {
    "a gap": b"YQ== 0\nYg== 2\n",
    "twice": b"YQ== 0\nYQ== 1\n",
    "no base64": b"YQ== 0\nYQ=== 1\n",
    "a word": b"YQ== 0\nthe\n",
    "nothing": b"",
    "too long": base64.b64encode(b"a" * 600) + b" 0\n",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_ranks_that_are_none_give_a_reason(fault: str, tmp_path: Path) -> None:
    found = read(tmp_path / "m", {"x.tiktoken": BROKEN[fault]})
    assert isinstance(found, TokenizerAbsence) and text(found.reason) == "x.tiktoken is no list of tokens with ranks"


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": [1]}, {"vocab": {}}, {"config": {}}, {"special_tokens": [{"token_str": "<s>"}] * 2},
        {"special_tokens": [1]},
        {"config": {"default_vocab_size": 1 << 40, "default_num_special_tokens": 0}},
        {"config": {"default_vocab_size": 3, "default_num_special_tokens": 5}},
        {"config": {"default_vocab_size": 9, "default_num_special_tokens": 3, "pattern": "("}},
    ],
)  # fmt: skip
def test_tekken_that_is_none_gives_a_reason(change: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path / "m", {"tekken.json": tekken([b"a", b"b", b"ab"], **change)})
    assert isinstance(found, TokenizerAbsence) and found.reason.code in (Code.NOT_RANKS, Code.TOKENIZER_REFUSED)


def test_words_with_counts_are_no_wordpieces(tmp_path: Path) -> None:
    """PhoBERT: ids begin after four special tokens, and the counts are no part of the words."""
    words = b"\xc4\x91 100\nth@@ 50\nthe 7\nnh\xc3\xa0 3\n"
    alone = read(tmp_path / "alone", {"vocab.txt": words})
    assert isinstance(alone, TokenizerAbsence)
    assert text(alone.reason) == "vocab.txt counts words, and has no bpe.codes beside it"
    found = read(tmp_path / "m", {"vocab.txt": words, "bpe.codes": b"t h 50\nth e</w> 7\n"}, {"model_type": "roberta"})
    assert isinstance(found, Tokenizer)
    expected = ["<s>", "<pad>", "</s>", "<unk>", "đ", "th@@", "the", "nhà", "<mask>"]
    assert dict(found.vocab) == {token: number for number, token in enumerate(expected)}
    assert (found.first_id("the"), found.first_id("other")) == (6, None)
    assert [note.code for note in found.notes] == [Code.TOKENS_LISTED]


@pytest.mark.parametrize("name", ["spm.model", "sentencepiece.model", "spiece.model", "tokenizer.model.v3"])
def test_sentencepiece_under_any_of_its_names(name: str, tmp_path: Path) -> None:
    place = tmp_path / "m"
    place.mkdir()
    container.save(place / "model.safetensors", {"w": np.ones((2, 2), np.float32)}, {"w": "F32"}, ["w"])
    (place / name).write_bytes(made.sentencepiece(made.unigram_pieces(), 1))
    found = read_tokenizer(open_model(place).tokenizer_files, {})
    assert isinstance(found, Tokenizer) and found.kind == "Unigram"


def test_marian_s_ids_are_those_of_vocab_json(tmp_path: Path) -> None:
    pieces = made.unigram_pieces()
    texts = [piece for piece, _, _ in pieces]
    ids = {token: number for number, token in enumerate(["▁nur-im-Ziel", *reversed(texts)])}
    stored = made.sentencepiece(pieces, 1)
    files = {"source.spm": stored, "target.spm": stored, "vocab.json": ids}
    found = read(tmp_path / "m", files, {"model_type": "marian"})
    assert isinstance(found, Tokenizer) and found.kind == "Unigram" and dict(found.vocab) == ids
    made.write_tokenizer(tmp_path / "own", made.unigram())
    own = read_tokenizer(made.files(tmp_path / "own"), {})
    assert isinstance(own, Tokenizer)
    names = {number: token for token, number in own.vocab.items()}
    assert found.first_id("the") == ids[names[own.first_id("the") or 0]]
    gap = read(tmp_path / "gap", {**files, "vocab.json": ids | {"x": len(ids) + 5}}, {"model_type": "marian"})
    assert isinstance(gap, TokenizerAbsence) and "vocab.json leaves out ids" in text(gap.reason)


@pytest.mark.parametrize("name", ["vocabulary.json", "vocabulary.txt"])
def test_a_plain_list_of_tokens(name: str, tmp_path: Path) -> None:
    """CTranslate2: token strings by id, which is what anchors by token need."""
    known = original(tmp_path / "hub")
    ordered = sorted(known.vocab, key=lambda token: known.vocab[token])
    content = ordered if name.endswith("json") else "\n".join(ordered).encode() + b"\n"
    found = read(tmp_path / "m", {name: content})
    assert isinstance(found, Tokenizer) and found.vocab == known.vocab
    whole = [word for word in (" the", "of", "7") if word.replace(" ", "Ġ") in known.vocab]
    assert len(whole) > 1 and [found.first_id(word) for word in whole] == [known.first_id(word) for word in whole]
    assert text(found.notes[0]).startswith(f"{name} lists tokens without how texts are cut into them")


def test_no_tokenizer_file_is_in_one_list_alone() -> None:
    known = {*reader.SENTENCEPIECE_FILES, *reader.LISTS, "tekken.json", "tiktoken.model", "bpe.codes"}
    assert known <= set(folder.TOKENIZER_FILES)
    assert folder.tokenizer_files(["b/c.tiktoken", "x.tiktoken", "model.safetensors", "spm.model"]) == [
        "spm.model", "x.tiktoken",
    ]  # fmt: skip
