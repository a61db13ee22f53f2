"""Real tokenizer files, made in a second: trained on a few sentences, written in every layout that models come in."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

TEXT = [
    "the quick brown fox jumps over the lazy dog, and that is that for it was on the way.",
    "there are 0 1 2 3 4 5 6 7 8 9 reasons to be here: with the best of all the others; is it? it is!",
    "in the beginning the nation was in motion, being as it was at the edge of the water.",
    "на столе он не видел что я и к ней в дом; what was seen there was not the end of it.",
] * 5


def once(build: Callable[..., tokenizers.Tokenizer]) -> Callable[..., tokenizers.Tokenizer]:
    """Train once a session and hand out copies: training breaks ties differently from run to run."""
    text = cache(lambda *arguments: build(*arguments).to_str())
    return wraps(build)(lambda *arguments: tokenizers.Tokenizer.from_str(text(*arguments)))


@once
def byte_bpe(size: int = 400) -> tokenizers.Tokenizer:
    """Byte-level BPE with one special token, as GPT-2's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@once
def wordpiece(size: int = 200) -> tokenizers.Tokenizer:
    """Lower-case WordPiece, as BERT's."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@once
def unigram(size: int = 150) -> tokenizers.Tokenizer:
    """Unigram over Metaspace, as T5's, with its three first ids."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@once
def word_level() -> tokenizers.Tokenizer:
    """Whole words; a word outside has no id, because there is no unknown token."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"the": 0, "of": 1, "7": 2}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def write_json(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_vocab_txt(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=lambda token: vocab[token])) + "\n", encoding="utf-8")


def write_vocab_and_merges(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    write_json(folder, "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def files(folder: Path) -> dict[str, Path]:
    """Path by file name, as models/source.py hands them over."""
    return {path.name: path for path in folder.iterdir()}


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def chunk(number: int, data: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: str, score: float, kind: int) -> bytes:
    body = chunk(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return chunk(1, body + (varint(3 << 3) + varint(kind) if kind != 1 else b""))


def sentencepiece(pieces: list[tuple[str, float, int]], kind: int, dummy_prefix: bool = True) -> bytes:
    """A SentencePiece ModelProto: pieces of (text, score, type), trainer_spec.model_type, normalizer_spec."""
    trainer = varint(3 << 3) + varint(kind)
    normalizer = chunk(1, b"identity") + varint(3 << 3) + varint(int(dummy_prefix))
    return b"".join(piece(*item) for item in pieces) + chunk(2, trainer) + chunk(3, normalizer)


def unigram_pieces() -> list[tuple[str, float, int]]:
    """The pieces of `unigram`, with SentencePiece's types (control, control, unknown, normal ...)."""
    vocab = json.loads(unigram().to_str())["model"]["vocab"]
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    return [(text, float(score), kinds.get(text, 1)) for text, score in vocab]


def llama_pieces() -> list[tuple[str, float, int]]:
    """Pieces of a SentencePiece BPE in Llama's layout: unknown, two controls, 256 bytes, merges by rank, characters."""
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    special += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    merged = ["th", "▁th", "▁the", "in", "▁i", "▁in", "is", "▁is", "▁o", "▁of", "an", "▁an", "▁and", "at", "▁that"]
    characters = sorted(set("".join(merged) + "abcdefghijklmnopqrstuvwxyz.,"))
    ranked = [*merged, *characters]
    return special + [(text, -float(rank), 1) for rank, text in enumerate(ranked)]
