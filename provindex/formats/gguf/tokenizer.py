"""tokenizer.json and tokenizer_config.json from the metadata of a GGUF file.

The file has tokens, their types, and scores or merges; what splits a text before that is only a name. Names that are
not known get GPT-2's rule and a warning: vocabulary and merges do not depend on it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from provindex.common.reasons import Code, Reason
from provindex.formats import sentencepiece as spm
from provindex.formats.gguf.header import Value

PREFIX = "tokenizer.ggml."
SPACE = "\u2581"
# Metadata name of a special token's id -> its name in tokenizer_config.json.
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unknown": "unk", "seperator": "sep", "separator": "sep", "padding": "pad",
    "cls": "cls", "mask": "mask",
}  # fmt: skip
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}

_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    _CASED + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    + _CASED + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
_TEKKEN = (
    _CASED + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|" + _CASED + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, {**_BYTE_LEVEL, "use_regex": False}]


# How texts are split, by the name that llama.cpp gave (tokenizer.ggml.pre); the rules are those of the tokenizer.json
# files that the names stand for.
_Rule = list[dict[str, Any]]
_RULES: Mapping[str, _Rule] = {
    "default gpt-2 olmo phi-2 jais mpt roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code "
    "gigachat modern-bert trillion granite-docling a.x-4.0 mellum": [_BYTE_LEVEL],
    "smollm starcoder refact command-r codeshell exaone minerva-7b": [_DIGITS, _BYTE_LEVEL],
    "qwen2 stablelm2 deepseek-r1-qwen megrez hunyuan": _split(_QWEN),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe glm4 "
    "chatglm-bpe": _split(_LLAMA3),
    "gpt-4o llama4 kanana2": _split(_GPT4O),
    "tekken": _split(_TEKKEN),
    "bloom gpt3-finnish poro-chat viking": _split(_BLOOM),
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        _BYTE_LEVEL,
        {"type": "Digits", "individual_digits": False},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
    ],
}  # fmt: skip
_BY_NAME = {name: rule for names, rule in _RULES.items() for name in names.split()}
_COMPOSED = frozenset({"qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"})  # these normalize to NFC first


def files(metadata: Mapping[str, Value]) -> tuple[dict[str, bytes], tuple[Reason, ...]]:
    """The tokenizer's files by name, and sentences for the reader; ({}, ...) where the file has none that is known."""
    kind, tokens = metadata.get(PREFIX + "model"), metadata.get(PREFIX + "tokens")
    if not isinstance(kind, str) or not isinstance(tokens, list) or not tokens:
        return {}, ()
    if kind not in _MAKERS:
        return {}, (Reason.of(Code.GGUF_TOKENIZER_KIND, kind=repr(kind[:40])),)
    types = _list(metadata, "token_type", len(tokens), spm.NORMAL)
    scores = _list(metadata, "scores", len(tokens), 0.0)
    if types is None or scores is None:
        return {}, (Reason.of(Code.GGUF_TOKENIZER_LEFT_OUT),)
    pieces = [spm.Piece(*of) for of in zip(tokens, scores, types, strict=True)]
    while pieces and _is_filling(pieces[-1], len(pieces) - 1):
        pieces.pop()
    if not pieces:
        return {}, ()
    model, around, notes = _MAKERS[kind](pieces, metadata)
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(model, pieces),
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, **around, "model": model,
    }  # fmt: skip
    found = {"tokenizer.json": document, "tokenizer_config.json": _settings(metadata, model, pieces)}
    return {name: json.dumps(value).encode() for name, value in found.items()}, notes


def _list(metadata: Mapping[str, Value], key: str, count: int, usual: Any) -> Sequence[Any] | None:
    """One number for each token; None where there are more or fewer."""
    value = metadata.get(PREFIX + key)
    if value is None:
        return [usual] * count
    if not isinstance(value, np.ndarray) or value.size != count:
        return None
    return value.tolist()  # type: ignore[no-any-return]


def _is_filling(piece: spm.Piece, index: int) -> bool:
    """An entry that the converter made up, because the embedding has more rows than the vocabulary tokens."""
    return piece.type == spm.UNUSED and piece.text == f"[PAD{index}]"


def _vocabulary(pieces: Sequence[spm.Piece]) -> dict[str, int]:
    """Ids by token, without what was made up; of two tokens with one text the first."""
    found: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        if not _is_filling(piece, index):
            found.setdefault(piece.text, index)
    return found


Made = tuple[dict[str, Any], dict[str, Any], tuple[Reason, ...]]  # model, what is around it, notes


def _byte_level(pieces: Sequence[spm.Piece], metadata: Mapping[str, Value]) -> Made:
    """BPE over bytes; merges are "a b"."""
    listed = metadata.get(PREFIX + "merges")
    merges = []
    for text in listed if isinstance(listed, list) else ():
        cut = text.find(" ", 1)
        merges.append((text[:cut], text[cut + 1 :]) if cut > 0 else (text, ""))
    name = str(metadata.get(PREFIX + "pre", "default"))
    rule = _BY_NAME.get(name)
    notes = () if rule else (Reason.of(Code.GGUF_SPLITTING, name=repr(name[:40])),)
    rule = rule or [_BYTE_LEVEL]
    around = {
        "pre_tokenizer": rule[0] if len(rule) == 1 else {"type": "Sequence", "pretokenizers": rule},
        "normalizer": {"type": "NFC"} if name in _COMPOSED else None,
        "decoder": _BYTE_LEVEL,
    }
    return _bpe(_vocabulary(pieces), merges, None, False), around, notes


def _bpe(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], unknown: str | None, fallback: bool) -> Any:
    return {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": unknown is not None, "byte_fallback": fallback,
        "vocab": vocabulary, "merges": merges,
    }  # fmt: skip


def _sentencepiece_bpe(pieces: Sequence[spm.Piece], metadata: Mapping[str, Value]) -> Made:
    """Llama's: pieces with scores, from which the merges follow."""
    unknown = next((piece.text for piece in pieces if piece.type == spm.UNKNOWN), None)
    fallback = any(piece.type == spm.BYTE for piece in pieces)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps: _Rule = [{"type": "Prepend", "prepend": SPACE}, replace]
    if metadata.get(PREFIX + "add_space_prefix") is False:
        del steps[0]
    merges = spm.merges(tuple(pieces))
    return _bpe(_vocabulary(pieces), merges, unknown, fallback), {"normalizer": _sequence(steps)}, ()


def _sequence(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}


def _unigram(pieces: Sequence[spm.Piece], metadata: Mapping[str, Value]) -> Made:
    unknown = next((index for index, piece in enumerate(pieces) if piece.type == spm.UNKNOWN), None)
    scores = [[piece.text, piece.score if math.isfinite(piece.score) else 0.0] for piece in pieces]
    prefix = "never" if metadata.get(PREFIX + "add_space_prefix") is False else "always"
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    around: dict[str, Any] = {
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prefix, "split": True},
    }
    if isinstance(charsmap, np.ndarray) and charsmap.size:
        packed = base64.b64encode(charsmap.astype(np.uint8).tobytes()).decode("ascii")
        around["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": packed}
    fallback = any(piece.type == spm.BYTE for piece in pieces)
    return {"type": "Unigram", "unk_id": unknown, "vocab": scores, "byte_fallback": fallback}, around, ()


def _word_piece(pieces: Sequence[spm.Piece], metadata: Mapping[str, Value]) -> Made:
    """BERT's: the file marks the beginning of a word where vocab.txt marks what continues one."""
    vocabulary: dict[str, int] = {}
    for text, index in _vocabulary(pieces).items():
        vocabulary.setdefault(_as_continuation(text), index)
    words = (token for token in vocabulary if token.isalpha() and token.isascii())
    around = {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": all(token.islower() for token in words)},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }  # fmt: skip
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": vocabulary}  # fmt: skip
    return model, around, ()


def _as_continuation(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return text
    return text[1:] if text.startswith(SPACE) else "##" + text


_MAKERS = {"gpt2": _byte_level, "llama": _sentencepiece_bpe, "bert": _word_piece, "t5": _unigram}


def _added(model: Mapping[str, Any], pieces: Sequence[spm.Piece]) -> list[dict[str, Any]]:
    """Tokens that a text is cut at before anything else."""
    word_piece = model["type"] == "WordPiece"
    found, seen = [], set()
    for index, piece in enumerate(pieces):
        text = _as_continuation(piece.text) if word_piece else piece.text
        if piece.type in (spm.UNKNOWN, spm.CONTROL, spm.USER_DEFINED) and text and text not in seen:
            seen.add(text)
            found.append({"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": piece.type != spm.USER_DEFINED})  # fmt: skip
    return found


def _settings(
    metadata: Mapping[str, Value], model: Mapping[str, Any], pieces: Sequence[spm.Piece]
) -> dict[str, str | bool]:
    """tokenizer_config.json: the special tokens that the file names."""
    found: dict[str, str | bool] = {}
    for key, name in _SPECIAL.items():
        index = metadata.get(f"{PREFIX}{key}_token_id")
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(pieces):
            text = pieces[index].text
            found[f"{name}_token"] = _as_continuation(text) if model["type"] == "WordPiece" else text
    for name in ("bos", "eos"):
        flag = metadata.get(f"{PREFIX}add_{name}_token")
        if isinstance(flag, bool):
            found[f"add_{name}_token"] = flag
    return found
