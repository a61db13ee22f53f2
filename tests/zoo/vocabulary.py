"""Small real tokenizers over one word list: SentencePiece-like Unigram, WordPiece, and byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from .words import LETTERS, MARKS, PIECES, SUFFIXES, WORDS

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIALS = {
    "unigram": ("<unk>", "<s>", "</s>"),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "bpe": ("<|endoftext|>",),
}


@cache
def tokenizer_json(kind: str) -> str:
    """tokenizer.json of one kind ("unigram", "wordpiece", "bpe"), as the tokenizers package writes it."""
    tokenizer = {"unigram": _unigram, "wordpiece": _wordpiece, "bpe": _bpe}[kind]()
    tokenizer.add_special_tokens(list(SPECIALS[kind]))
    return str(tokenizer.to_str())


@cache
def tokens(text: str) -> tuple[str, ...]:
    """The token strings of a tokenizer.json in the order of their ids."""
    vocabulary = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__))


def special_ids(text: str) -> dict[str, int]:
    """Ids of the special tokens, by their string."""
    known = {token for kind in SPECIALS.values() for token in kind}
    return {token: i for i, token in enumerate(tokens(text)) if token in known}


def keep_tokens(text: str, kept: Sequence[str]) -> str:
    """A tokenizer.json with only the kept tokens, renumbered in their old order; merges that need others go."""
    order = {token: i for i, token in enumerate(token for token in tokens(text) if token in set(kept))}
    tree: dict[str, Any] = json.loads(text)
    model = tree["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: order[token] for token in model["vocab"] if token in order}
    else:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in order]
        model["unk_id"] = None if model["unk_id"] is None else order[tokens(text)[model["unk_id"]]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= order.keys()]
    tree["added_tokens"] = [
        entry | {"id": order[entry["content"]]} for entry in tree["added_tokens"] if entry["content"] in order
    ]
    return json.dumps(tree, ensure_ascii=False)


def add_tokens(text: str, new: Sequence[str]) -> str:
    """A tokenizer.json with tokens added after the last id, as `add_tokens` and a resized embedding do."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_tokens(list(new))
    return str(tokenizer.to_str())


def _unigram() -> Tokenizer:
    scored = [(token, 0.0) for token in SPECIALS["unigram"]]
    scored += [(f"\u2581{piece}", -3.0 - 0.01 * i) for i, piece in enumerate(PIECES)]
    scored += [(piece, -9.0) for piece in ("\u2581", *MARKS, *SUFFIXES)] + [(letter, -12.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _wordpiece() -> Tokenizer:
    known = [*SPECIALS["wordpiece"], *PIECES, *LETTERS, *(f"##{piece}" for piece in (*SUFFIXES, *LETTERS))]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bpe() -> Tokenizer:
    """Byte-level BPE whose merges spell each word left to right, so every prefix of a word is a token too."""
    merges: dict[tuple[str, str], None] = {}
    for word in PIECES:
        for stop in range(1, len(word) + 1):
            merges[("\u0120" + word[: stop - 1], word[stop - 1])] = None
    for word in (*WORDS[:80], *SUFFIXES):  # also at the start of a text or inside a word; later, so of lower priority
        for stop in range(2, len(word) + 1):
            merges[(word[: stop - 1], word[stop - 1])] = None
    known = [*BYTES, *("".join(pair) for pair in merges), *SPECIALS["bpe"]]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
