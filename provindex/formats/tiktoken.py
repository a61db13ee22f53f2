"""Bytes with ranks, as tiktoken has them: `*.tiktoken`, Llama 3's tokenizer.model, Mistral's tekken.json.

A token is bytes, and its rank is its id (tekken.json puts its special tokens before). Tokens get the spelling of
tokenizer.json's byte-level BPE: each byte is one printable character. Merges are not written down: a token of rank r
is made of any two tokens that it splits into, as transformers' converter lists them.
https://github.com/openai/tiktoken (load.py), https://github.com/mistralai/mistral-common (tokenizers/tekken.py).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason

MAX_TOKENS = 1 << 20
MAX_TOKEN = 512  # bytes of one token; the longest published ones are runs of spaces, half of that
MAX_BYTES = 8 << 20  # of all tokens together: each of them is a place to split at
LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,7}")
_PATTERN = (  # Llama 3's, cl100k's but for capitals; how texts are split is not in the files, except in tekken.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Special tokens of the first versions of tekken.json, which do not list them.
_TEKKEN = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def _spelling() -> dict[int, str]:
    """The character for each byte that GPT-2 gave it: printable ones stay, others are moved behind the 256th."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(moved)}


SPELLING = _spelling()
_BY_LATIN = str.maketrans({chr(byte): letter for byte, letter in SPELLING.items()})


@dataclass(frozen=True, slots=True)
class Ranks:
    """tokens: bytes by rank, without gaps. special: tokens that are no bytes, with the ids before those of the ranks.
    pattern: how a text is split, a regular expression. name: of the file.
    """

    tokens: tuple[bytes, ...]
    special: tuple[str, ...] = ()
    pattern: str = _PATTERN
    name: str = "the tokenizer"


def is_ranks(data: bytes) -> bool:
    """Whether a file begins as tiktoken's do."""
    return LINE.fullmatch(data[:4096].partition(b"\n")[0].rstrip(b"\r")) is not None


def parse(data: bytes, name: str) -> Ranks:
    """A file of lines "base64 rank". ModelError for anything else, and for ranks with gaps."""
    found: dict[int, bytes] = {}
    for line in data.splitlines():
        if not line:
            continue
        if not LINE.fullmatch(line) or len(found) > MAX_TOKENS:
            raise _broken(name)
        token, rank = line.split(b" ")
        found[int(rank)] = _decoded(token, name)
    return Ranks(_in_order(found, name), name=name)


def parse_tekken(document: Mapping[str, Any], name: str) -> Ranks:
    """tekken.json. ModelError if its parts do not fit each other."""
    config, listed = document.get("config"), document.get("vocab")
    if not isinstance(config, Mapping) or not isinstance(listed, list):
        raise _broken(name)
    size, before = config.get("default_vocab_size"), config.get("default_num_special_tokens")
    pattern = config.get("pattern", _PATTERN)
    if type(size) is not int or type(before) is not int or not 0 <= before <= size <= MAX_TOKENS:
        raise _broken(name)
    if not isinstance(pattern, str) or len(pattern) > 4096:
        raise _broken(name)
    found: dict[int, bytes] = {}
    for item in listed[: size - before]:
        token, rank = (item.get("token_bytes"), item.get("rank")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(token, str) or type(rank) is not int or not 0 <= rank < MAX_TOKENS:
            raise _broken(name)
        found[rank] = _decoded(token.encode("utf-8", "replace"), name)
    return Ranks(_in_order(found, name), _special(document.get("special_tokens"), before, name), pattern, name)


def _special(listed: Any, count: int, name: str) -> tuple[str, ...]:
    """The special tokens by id; those without a name are called by their number, as mistral-common does."""
    told = _TEKKEN[:count] if listed is None else listed if isinstance(listed, list) else []
    texts = [item.get("token_str") if isinstance(item, Mapping) else item for item in told[: count + 1]]
    named = [text for text in texts if isinstance(text, str) and text and text == text.encode(errors="ignore").decode()]
    found = (*named, *(f"<SPECIAL_{number}>" for number in range(len(named), count)))
    if len(named) != len(texts) or len(set(found)) != len(found) or len(found) != count:
        raise _broken(name)
    return found


def _decoded(token: bytes, name: str) -> bytes:
    try:
        found = base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError):
        raise _broken(name) from None
    if not 0 < len(found) <= MAX_TOKEN:
        raise _broken(name)
    return found


def _in_order(found: Mapping[int, bytes], name: str) -> tuple[bytes, ...]:
    tokens = tuple(found[rank] for rank in sorted(found))
    whole = not found or max(found) == len(found) - 1
    if not whole or not found or len(set(tokens)) != len(tokens) or sum(map(len, tokens)) > MAX_BYTES:
        raise _broken(name)
    return tokens


def _broken(name: str) -> ModelError:
    return ModelError(f"{name} is no list of tokens with ranks.", reason=Reason.of(Code.NOT_RANKS, name))


def spelled(token: bytes) -> str:
    """A token in the spelling of byte-level BPE."""
    return token.decode("latin-1").translate(_BY_LATIN)


def merges(tokens: tuple[bytes, ...], name: str) -> list[tuple[str, str]]:
    """BPE merges that lead to these tokens, by rank; ties by the ranks of the parts. ModelError for more than any
    vocabulary has: runs of a byte in every length have one for each place to split at.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    most = most_merges(len(tokens))
    found: list[tuple[int, int]] = []
    for token in tokens:
        ways = ((ranks.get(token[:cut]), ranks.get(token[cut:])) for cut in range(1, len(token)))
        found += sorted((left, right) for left, right in ways if left is not None and right is not None)
        if len(found) > most:
            raise _broken(name)
    texts = [spelled(token) for token in tokens]
    return [(texts[left], texts[right]) for left, right in found]


def most_merges(tokens: int) -> int:
    """How many merges so many tokens may have; published vocabularies have 3 to 6 for each."""
    return 16 * tokens + 1_000_000


def backend(ranks: Ranks) -> Any:
    """A `tokenizers.Tokenizer` that encodes as tiktoken does."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    vocab = {text: number for number, text in enumerate(ranks.special)}
    vocab |= {spelled(token): len(ranks.special) + rank for rank, token in enumerate(ranks.tokens)}
    made = Tokenizer(models.BPE(vocab, merges(ranks.tokens, ranks.name), ignore_merges=True))
    split = pre_tokenizers.Split(Regex(ranks.pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.add_special_tokens([AddedToken(text, special=True) for text in ranks.special if text])
    return made
