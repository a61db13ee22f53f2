"""Tokenizer files in every layout, and what hostile ones come to."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import tokenizer_files as made
from hypothesis import given, settings
from hypothesis import strategies as st

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tokens import Tokenizer, TokenizerAbsence
from provindex.formats import sentencepiece as spm
from provindex.models import tokenizer as reading
from provindex.models.tokenizer import read_tokenizer
from provindex.report.words import text, texts
from provindex.roles import config_defaults

BERT = {"model_type": "bert"}
GPT2 = {"model_type": "gpt2"}


def read(folder: Path, config: dict[str, object] | None = None) -> Tokenizer:
    found = read_tokenizer(made.files(folder), config or {})
    assert isinstance(found, Tokenizer), found
    return found


def refused(folder: Path, config: dict[str, object] | None = None) -> str:
    found = read_tokenizer(made.files(folder), config or {})
    assert isinstance(found, TokenizerAbsence), found
    return text(found.reason)


@pytest.mark.parametrize(
    ("build", "kind"),
    [(made.byte_bpe, "BPE"), (made.wordpiece, "WordPiece"), (made.unigram, "Unigram"), (made.word_level, "WordLevel")],
)
def test_tokenizer_json(tmp_path: Path, build, kind: str) -> None:
    built = build()
    made.write_tokenizer(tmp_path, built)
    found = read(tmp_path)
    assert found.kind == kind
    assert found.vocab == built.get_vocab()
    assert (len(found.merges) > 0) == (kind == "BPE")
    assert found.first_id("the") == built.encode("the", add_special_tokens=False).ids[0]
    assert found.class_name == "TokenizersBackend"


def test_merges_are_in_order_of_rank(tmp_path: Path) -> None:
    built = made.byte_bpe()
    made.write_tokenizer(tmp_path, built)
    pairs = json.loads(built.to_str())["model"]["merges"]
    assert read(tmp_path).merges == tuple(" ".join(pair) for pair in pairs)


def test_vocab_txt_reads_as_the_same_wordpiece(tmp_path: Path) -> None:
    built = made.wordpiece()
    made.write_tokenizer(tmp_path / "json", built)
    made.write_vocab_txt(tmp_path / "txt", built)
    whole, bare = read(tmp_path / "json", BERT), read(tmp_path / "txt", BERT)
    assert dict(whole.vocab) == dict(bare.vocab)
    assert whole.special == bare.special
    texts = ["The Nation", "7", "being", "!"]
    assert [whole.first_id(text) for text in texts] == [bare.first_id(text) for text in texts]


def test_vocab_json_and_merges_read_as_the_same_bpe(tmp_path: Path) -> None:
    built = made.byte_bpe()
    made.write_tokenizer(tmp_path / "json", built)
    made.write_vocab_and_merges(tmp_path / "pair", built)
    whole, pair = read(tmp_path / "json", GPT2), read(tmp_path / "pair", GPT2)
    assert (whole.vocab, whole.merges, whole.special) == (pair.vocab, pair.merges, pair.special)
    assert [whole.first_id(text) for text in ("the", "что", "9")] == [
        pair.first_id(text) for text in ("the", "что", "9")
    ]


def test_a_class_assumes_only_tokens_that_are_there(tmp_path: Path) -> None:
    made.write_tokenizer(tmp_path, made.wordpiece())
    as_bert, as_llama = read(tmp_path, BERT), read(tmp_path, {"model_type": "llama"})
    assert (as_bert.class_name, as_bert.special["cls"], as_bert.special["bos"]) == ("BertTokenizer", 2, None)
    assert set(as_llama.special.values()) == {None}  # <s>, </s> and <unk> are not in this vocabulary, and not added
    assert as_llama.vocab == as_bert.vocab


def test_declared_tokens_win_and_are_added(tmp_path: Path) -> None:
    made.write_tokenizer(tmp_path, made.wordpiece())
    count = len(made.wordpiece().get_vocab())
    made.write_json(tmp_path, "special_tokens_map.json", {"bos_token": "[CLS]", "eos_token": "[SEP]"})
    declared = {
        "eos_token": {"content": "<end>", "lstrip": False},
        "unk_token": None,
        "tokenizer_class": "BertTokenizer",
    }
    made.write_json(tmp_path, "tokenizer_config.json", declared)
    made.write_json(tmp_path, "added_tokens.json", {"<two>": count + 1, "<one>": count})
    found = read(tmp_path, BERT)
    assert found.special["bos"] == 2
    assert found.special["unk"] is None
    assert [found.vocab[token] for token in ("<one>", "<two>", "<end>")] == [count, count + 1, count + 2]
    assert found.special["eos"] == count + 2
    assert found.first_id("<end>") == count + 2


def test_padding_and_truncation_do_not_reach_the_first_id(tmp_path: Path) -> None:
    built = made.wordpiece()
    plain = built.encode("the", add_special_tokens=False).ids[0]
    built.enable_padding(direction="left", pad_id=0, pad_token="[PAD]", length=64)
    made.write_tokenizer(tmp_path, built)
    found = read(tmp_path)
    assert found.first_id("the") == plain != 0
    assert found.special["pad"] == 0


def test_a_text_without_an_id(tmp_path: Path) -> None:
    made.write_tokenizer(tmp_path, made.word_level())
    found = read(tmp_path)
    assert [found.first_id(text) for text in ("of", "", "unheard")] == [1, None, None]


@pytest.mark.parametrize(
    ("model_type", "named", "name"),
    [
        ("bert", None, "BertTokenizer"),
        ("bert", "BertTokenizerFast", "BertTokenizer"),
        ("qwen2", "LlamaTokenizerFast", "TokenizersBackend"),  # not the class that the model type expects
        ("llama", "LlamaTokenizerFast", "LlamaTokenizer"),
        ("llama", "PreTrainedTokenizerFast", "TokenizersBackend"),
        ("unheard", None, "TokenizersBackend"),
    ],
)
def test_class_names(model_type: str, named: str | None, name: str) -> None:
    settings = {"tokenizer_class": named} if named else {}
    assert config_defaults.tokenizer_class(settings, {"model_type": model_type}) == name


def test_sentencepiece_unigram(tmp_path: Path) -> None:
    built = made.unigram()
    pieces = made.unigram_pieces()
    (tmp_path / "spiece.model").write_bytes(made.sentencepiece(pieces, kind=1))
    made.write_json(tmp_path, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    found = read(tmp_path, {"model_type": "t5"})
    assert found.kind == "Unigram"
    assert found.vocab == built.get_vocab()
    assert (found.special["pad"], found.special["eos"], found.special["unk"], found.special["bos"]) == (0, 1, 2, None)
    for word in ("the", "nation", "7", "что"):
        assert found.first_id(word) == built.encode(word, add_special_tokens=False).ids[0]


def test_sentencepiece_t5_has_its_sentinels(tmp_path: Path) -> None:
    pieces = made.unigram_pieces()
    (tmp_path / "spiece.model").write_bytes(made.sentencepiece(pieces, kind=1))
    found = read(tmp_path, {"model_type": "t5"})
    assert len(found.vocab) == len(pieces) + 100
    assert found.vocab["<extra_id_99>"] == len(pieces)
    assert found.vocab["<extra_id_0>"] == len(pieces) + 99


def test_sentencepiece_bpe_in_llama_layout(tmp_path: Path) -> None:
    pieces = made.llama_pieces()
    ids = {text: index for index, (text, _, _) in enumerate(pieces)}
    (tmp_path / "tokenizer.model").write_bytes(made.sentencepiece(pieces, kind=2))
    found = read(tmp_path, {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"})
    assert found.kind == "BPE"
    assert found.vocab == ids
    assert found.special["bos"] == 1
    expected = {
        "the": "▁the",
        "and": "▁and",
        "that": "▁that",
        "on": "▁o",
        "7": "▁",
    }  # what the sentencepiece package says
    assert {text: found.first_id(text) for text in expected} == {text: ids[piece] for text, piece in expected.items()}
    assert found.merges[:2] == ("t h", "▁ th")
    (tmp_path / "tokenizer.model").write_bytes(made.sentencepiece(pieces, kind=2, dummy_prefix=False))
    assert read(tmp_path, {"model_type": "llama"}).first_id("and") == ids["an"]


def test_sentencepiece_ids_of_xlm_roberta(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁the", -1.0, 1), ("▁", -2.0, 1), ("a", -3.0, 1)]
    (tmp_path / "sentencepiece.bpe.model").write_bytes(made.sentencepiece(pieces, kind=1))
    found = read(tmp_path, {"model_type": "xlm-roberta"})
    order = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁", "a", "<mask>"]
    assert sorted(found.vocab, key=lambda token: found.vocab[token]) == order
    assert (found.first_id("the"), found.special["mask"]) == (4, 7)
    assert "other ids" in refused(tmp_path, {"model_type": "mbart"})


def test_no_files() -> None:
    assert read_tokenizer({}, {}) == TokenizerAbsence(Reason.of(Code.NO_TOKENIZER))


HOSTILE = {
    "empty": b"",
    "not JSON": b"\x00\xff\xfe",
    "a list": b"[1, 2]",
    "a number": b"7",
    "deeply nested": b'{"a":' * 100_000,
    "no model": b'{"version": "1.0"}',
    "wrong types": b'{"version": "1.0", "added_tokens": 3, "model": {"type": "BPE", "vocab": [], "merges": {}}}',
    "a merge of unknown parts": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}',
    "unigram without pieces": b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 9, "vocab": []}}',
    "no tokens": b'{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{},"unk_token":"x"}}',
}


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "spiece.model"])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_give_a_reason(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "merges.txt").write_bytes(b"a b c\n")
    reason = refused(tmp_path)
    assert name in reason or "tokenizer" in reason
    assert 0 < len(reason) < 300


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("data", [*HOSTILE.values(), b'{"pad_token": 3, "added_tokens_decoder": 3, "x": "y", "": -1}'])
def test_a_broken_side_file_costs_only_itself(tmp_path: Path, name: str, data: bytes) -> None:
    made.write_tokenizer(tmp_path, made.wordpiece())
    whole = read(tmp_path, BERT)
    (tmp_path / name).write_bytes(data)
    found = read(tmp_path, BERT)
    assert found.vocab.items() >= whole.vocab.items()  # what it says may be added, what was there stays
    if not data.startswith(b"{") or data.startswith(b'{"a":{'):
        assert name in texts(found.notes)[0]


def test_the_next_source_is_tried(tmp_path: Path) -> None:
    made.write_vocab_txt(tmp_path, made.wordpiece())
    (tmp_path / "tokenizer.json").write_bytes(b"{")
    found = read(tmp_path, BERT)
    assert found.kind == "WordPiece"
    assert "tokenizer.json" in texts(found.notes)[0]


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write_tokenizer(tmp_path, made.wordpiece())
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    assert "at most 100" in refused(tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (made.chunk(1, b"")[:1] + b"\xff" * 12, "ten bytes"),
        (b"\x0a\xff\xff\xff\x7f", "past the end"),
        (b"\x0a", "inside a number"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01", "field 1 is a number"),
        (made.chunk(1, made.chunk(1, b"\xff\xfe")), "utf-8"),
        (made.chunk(1, made.chunk(1, b"x" * 70_000)), "65,536"),
        (made.chunk(1, made.varint(2 << 3 | 1) + struct.pack("<d", 1.0)), "4 bytes"),
        (made.sentencepiece([], 1), "no pieces"),
        (made.sentencepiece([("a", 0.0, 1)], 4), "type 4"),
    ],
)
def test_sentencepiece_reader_refuses(data: bytes, part: str) -> None:
    with pytest.raises(ModelError, match=part):
        spm.parse(data)


def test_sentencepiece_reader_round_trip() -> None:
    pieces = made.llama_pieces()
    model = spm.parse(made.sentencepiece(pieces, kind=2, dummy_prefix=False))
    assert [(piece.text, piece.score, piece.type) for piece in model.pieces] == pieces
    assert (model.kind, model.dummy_prefix) == (2, False)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_sentencepiece_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(made.sentencepiece([("<unk>", 0.0, 2), ("▁a", -1.0, 1), ("b", -2.0, 1)], kind=1))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        spm.parse(cut)
    except ModelError as error:
        assert "SentencePiece model" in error.message


def test_damaged_tokenizer_json_never_crashes(tmp_path: Path) -> None:
    whole = made.wordpiece(120).to_str().encode()
    generator = random.Random(1)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 5)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "tokenizer.json").write_bytes(bytes(data))
        found = read_tokenizer(made.files(tmp_path), BERT)
        if isinstance(found, Tokenizer):
            assert found.vocab
            found.first_id("the")
        else:
            assert found.reason
