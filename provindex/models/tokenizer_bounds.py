"""How much a tokenizer.json may cost, found out before the tokenizers package reads it.

A few KB of normalizers turn one letter into gigabytes, and a short pattern tries its alternatives for minutes. So each
normalizer is run by itself, on the texts that will be asked about and on added tokens, and what it makes must stay
short before the next one gets it. What one can make of a short text is bounded by the lengths in its JSON. Of a
pattern, the ways to match are counted. What grows is refused. Where only the ways of a pattern cannot be counted, the
tokenizer is rehearsed in a process with limits (`rehearsal.py`).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tokens import ASKED, guarded

MAX_GROWN = 1 << 12  # bytes that a text which is asked about may become; 8 in each of 19 published tokenizers
MAX_ADDED_GROWN = 1 << 16  # bytes that one added token may become: the package normalizes each when it loads
MAX_ALL_ADDED = 1 << 25  # and all of them together
MAX_CONTENT = 1 << 10  # bytes that a normalizer puts in place of a letter; T5's table has up to 33
MAX_TOKENS = 1 << 20  # of a vocabulary, as in formats/tiktoken.py
MAX_ADDED = 1 << 17  # added tokens: each is put into a trie
MAX_MERGES = 4 << 20  # four for each token of the largest vocabulary
MAX_VALUES = 4 << 20  # values of a JSON file, which take up to 100 bytes each in Python; Qwen2.5's has 456,000
MAX_WORD = 256  # letters of a word that WordPiece splits, in cubic time; BERT's has 100
MAX_AFFIX = 64  # letters that a model puts before or behind each piece; BERT's has 2
MAX_PATTERN = 4096  # letters of a pattern: a class of letters takes 20 kB when it is compiled
MAX_PATTERNS = 1 << 14  # letters of all patterns together
MAX_STEPS = 64  # normalizers, pre-tokenizers and decoders together
MAX_WAYS = 1 << 22  # ways to match in one text; fewer than 100 texts are encoded, at 10 ns a way
_NEVER = 1 << 62  # ways of a pattern that cannot be counted

Step = Mapping[str, Any]


def loaded(data: bytes, name: str) -> Any:
    """The value of a JSON file whose bytes the caller has bounded. ModelError for too many values, and for no JSON."""
    if max(data.count(b","), data.count(b"[") + data.count(b"{")) > MAX_VALUES:
        raise _many(name, MAX_VALUES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply
        raise ModelError(
            f"{name} is not readable JSON ({type(error).__name__}).", reason=Reason.of(Code.NOT_JSON, name)
        ) from error


def lines(text: str, name: str) -> list[str]:
    """The lines of a text file of tokens or merges. ModelError for more than any has."""
    if text.count("\n") > MAX_MERGES:
        raise _many(name, MAX_MERGES)
    return text.split("\n")


def check(document: Any, name: str) -> bool:
    """ModelError if the tokenizers package would take too much time or memory for a tokenizer.json.

    True if all is bounded; False if only the ways of its patterns are not: then it must be rehearsed.
    """
    if not isinstance(document, Mapping):
        raise ModelError(f"{name} holds no object.", reason=Reason.of(Code.NOT_AN_OBJECT, name))
    added = _check_model(document, name)
    normalizers = list(_steps(document.get("normalizer"), "normalizers", name))
    splitters = list(_steps(document.get("pre_tokenizer"), "pretokenizers", name))
    decoders = list(_steps(document.get("decoder"), "decoders", name))  # never run, but their patterns are compiled
    _check_steps([*normalizers, *splitters, *decoders], name)
    asked = _through(normalizers, ASKED, MAX_GROWN, name)
    more = _through(normalizers, added, MAX_ADDED_GROWN, name)
    if more.total > MAX_ALL_ADDED:
        raise _growing(name, MAX_ALL_ADDED)
    size, ways = asked.longest, max(asked.ways, more.ways)
    for step in splitters:
        ways += _ways(step, size)
        factor, plus = _SPLITTERS.get(str(step.get("type")), (1, 0))
        size = factor * size + plus
        if size > MAX_GROWN:
            raise _growing(name, MAX_GROWN)
    return ways <= MAX_WAYS


def check_pattern(pattern: str, name: str) -> bool:
    """`check` of a pattern by which the texts that are asked about are split as they are."""
    step = {"type": "Split", "pattern": {"Regex": pattern}}
    _check_steps([step], name)
    return _ways(step, max(len(text) for text in ASKED)) <= MAX_WAYS


def _growing(name: str, limit: int) -> ModelError:
    return ModelError(
        f"{name} makes texts longer than {limit:,} bytes.", reason=Reason.of(Code.TOKENIZER_GROWS, name, limit=limit)
    )


def _many(name: str, limit: int) -> ModelError:
    return ModelError(f"{name} has more than {limit:,} values.", reason=Reason.of(Code.FILE_VALUES, name, limit=limit))


# --- what is stated ---


def _check_model(document: Mapping[str, Any], name: str) -> list[str]:
    """Sizes of the model: entries, and what is put to each piece. The added tokens that are normalized come back."""
    stated = document.get("model")
    model: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    added = document.get("added_tokens")
    counted = ((model.get("vocab"), MAX_TOKENS), (model.get("merges"), MAX_MERGES), (added, MAX_ADDED))
    for listed, limit in counted:
        if isinstance(listed, Mapping | list) and len(listed) > limit:
            reason = Reason.of(Code.TOKENIZER_LARGE, name, n=len(listed), limit=limit)
            raise ModelError(f"{name} has a list of {len(listed):,} entries.", reason=reason)
    affixes = (model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))
    word = model.get("max_input_chars_per_word", 0)
    if any(isinstance(affix, str) and len(affix) > MAX_AFFIX for affix in affixes):
        raise _growing(name, MAX_AFFIX)
    if isinstance(word, int | float) and word > MAX_WORD:
        raise _growing(name, MAX_WORD)
    listed = [item for item in added if isinstance(item, Mapping)] if isinstance(added, list) else []
    texts = (item.get("content") for item in listed if item.get("normalized"))
    return [text for text in texts if isinstance(text, str)]


def _steps(node: Any, inner: str, name: str, depth: int = 0) -> Iterator[Step]:
    """The normalizers or pre-tokenizers of a chain, in order; chains in chains are one."""
    if not isinstance(node, Mapping) or node.get("type") != "Sequence":
        yield from [node] if isinstance(node, Mapping) else []
        return
    listed = node.get(inner)
    if depth > MAX_STEPS or (isinstance(listed, list) and len(listed) > MAX_STEPS):
        raise _many(name, MAX_STEPS)
    for item in listed if isinstance(listed, list) else ():
        yield from _steps(item, inner, name, depth + 1)


def _check_steps(steps: Sequence[Step], name: str) -> None:
    """What the steps state: how many they are, what they put in, and patterns that are neither empty nor long."""
    if len(steps) > MAX_STEPS:
        raise _many(name, MAX_STEPS)
    if any(_put_in(step, name) > MAX_CONTENT for step in steps):
        raise _growing(name, MAX_CONTENT)
    texts = [text for step in steps for text in _pattern(step).values() if isinstance(text, str)]
    if any(not text or len(text) > MAX_PATTERN for text in texts) or sum(map(len, texts)) > MAX_PATTERNS:
        reason = Reason.of(Code.TOKENIZER_PATTERN, name)
        raise ModelError(f"{name} has a pattern that is empty or too long.", reason=reason)


def _pattern(step: Step) -> Mapping[str, Any]:
    """How a step says what it looks for: {"String": ...} or {"Regex": ...}."""
    found = step.get("pattern")
    return found if isinstance(found, Mapping) else {}


def _put_in(step: Step, name: str) -> int:
    """Bytes that a step puts in one place. ModelError for a table that is none."""
    stated = (step.get(key) for key in ("content", "prepend", "replacement"))
    longest = max((len(text.encode("utf-8", "replace")) for text in stated if isinstance(text, str)), default=0)
    table = step.get("precompiled_charsmap")
    if not isinstance(table, str):
        return longest
    refused = ModelError(f"{name} has a table that is none.", reason=Reason.of(Code.TOKENIZER_REFUSED, name))
    try:
        packed = base64.b64decode(table)
    except (binascii.Error, ValueError):
        raise refused from None
    trie = int.from_bytes(packed[:4], "little")  # its length stands first: the package allocates as much
    if len(packed) < 4 or trie > len(packed) - 4:
        raise refused
    return max(longest, *map(len, packed[4 + trie :].split(b"\0")))  # texts, with a zero behind each


# --- what becomes of texts ---


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of some texts. longest, total: bytes, of the longest one and of all. ways: that patterns try, in the
    text that takes most; if too many, nothing after them was run.
    """

    longest: int
    total: int
    ways: int


def _through(steps: Sequence[Step], texts: Collection[str], limit: int, name: str) -> _Made:
    """Run normalizers one by one. ModelError if one makes a text longer than `limit` bytes."""
    ways = 0
    sizes = [len(text.encode("utf-8", "replace")) for text in texts]
    for step in steps if texts else ():
        ways += _ways(step, max(sizes))
        if ways > MAX_WAYS:
            break
        texts = guarded(partial(_each, _alone(step, name), texts))
        sizes = [len(text.encode("utf-8", "replace")) for text in texts]
        if max(sizes) > limit:
            raise _growing(name, limit)
    return _Made(max(sizes, default=0), sum(sizes), ways)


def _each(normalize: Callable[[str], str], texts: Collection[str]) -> list[str]:
    return [normalize(text) for text in texts]


def _alone(step: Step, name: str) -> Callable[[str], str]:
    """One normalizer of a tokenizer.json, as a function."""
    import tokenizers

    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    text = json.dumps({"version": "1.0", "added_tokens": [], "normalizer": step, "model": model})
    try:
        made = guarded(lambda: tokenizers.Tokenizer.from_str(text).normalizer)
    except ModelError as error:
        raise ModelError(error.message, reason=Reason.of(Code.TOKENIZER_REFUSED, name)) from error
    found: Callable[[str], str] = made.normalize_str
    return found


def _ways(step: Step, size: int) -> int:
    pattern = _pattern(step).get("Regex")
    return ways_of(pattern, size) if isinstance(pattern, str) else 0


# What a pre-tokenizer makes of n bytes, at most: factor * n + plus. Those that are not here make them no more.
_SPLITTERS: Mapping[str, tuple[int, int]] = {
    "ByteLevel": (2, 2),  # each byte is a letter of up to two bytes
    "Metaspace": (8, 8),  # a letter of up to four bytes in place of each space, and before each piece
}


# --- patterns ---

_ATOM = re.compile(r"\\[pP]\{[^}]*\}|\\x\{[0-9A-Fa-f]*\}|\\[^0-9kgRXpP]|[^\\()\[|]", re.DOTALL)
_GROUP = re.compile(r"\(\?(?:[imsx-]*:|=|!|<=|<!|>)|\((?!\?|\*)")
_TIMES = re.compile(r"(?:[*+?]|\{(?P<least>\d{0,6})(?P<comma>,?)(?P<most>\d{0,6})\})[?+]?")


def ways_of(pattern: str, size: int) -> int:
    """An upper bound of the ways in which a pattern is tried on a text of `size` letters, at all places together.

    Alternatives add, what follows one another multiplies: a repeated atom has as many ways as it has lengths. A
    repeated group with choices inside has too many to count, and so has what this grammar does not know.

    >>> ways_of("a+b*", 4), ways_of("(a|b)?", 4), ways_of("(a+)+", 4) > 1 << 60
    (125, 15, True)
    """
    try:
        ways, at = _alternatives(pattern, 0, size, 0)
    except (_UncountedError, RecursionError):
        return _NEVER
    return min((size + 1) * ways, _NEVER) if at == len(pattern) else _NEVER


class _UncountedError(Exception):
    """A pattern whose ways cannot be counted."""


def _alternatives(pattern: str, at: int, size: int, depth: int) -> tuple[int, int]:
    ways = 0
    while True:
        found, at = _sequence(pattern, at, size, depth)
        ways += found
        if not pattern.startswith("|", at):
            return ways, at
        at += 1


def _sequence(pattern: str, at: int, size: int, depth: int) -> tuple[int, int]:
    ways = 1
    while at < len(pattern) and pattern[at] not in "|)":
        inner, at = _one(pattern, at, size, depth)
        times = _TIMES.match(pattern, at)
        if times:
            at = times.end()
            last = depth == 0 and pattern[at : at + 1] in ("", "|")  # nothing behind it can fail, so it is tried once
            if _TIMES.match(pattern, at) or (times["least"] is not None and times[0].endswith("+") and not last):
                raise _UncountedError  # a repetition that is repeated
            inner = _repeated(inner, times, size)
        ways = min(ways * inner, _NEVER)
    return ways, at


def _one(pattern: str, at: int, size: int, depth: int) -> tuple[int, int]:
    """An atom, a class, or a group: its ways, and where it ends."""
    if pattern[at] == "[":
        return 1, _end_of_class(pattern, at)
    group = _GROUP.match(pattern, at)
    if group:
        if depth > MAX_STEPS:
            raise _UncountedError
        ways, at = _alternatives(pattern, group.end(), size, depth + 1)
        if not pattern.startswith(")", at):
            raise _UncountedError
        return ways, at + 1
    atom = _ATOM.match(pattern, at)
    if not atom:
        raise _UncountedError
    return 1, atom.end()


def _repeated(inner: int, times: re.Match[str], size: int) -> int:
    """Ways of something that is repeated. Of what has one way itself, each number of times is a way."""
    if times[0][0] == "?":
        return inner + 1
    exact = times["most"] is not None and not times["comma"]
    if exact and int(times["least"] or 0) <= 1:
        return inner
    if inner > 1:
        raise _UncountedError
    return 1 if exact else size + 1


def _end_of_class(pattern: str, at: int) -> int:
    """One past the end of a class of letters; classes may stand in classes."""
    depth, start = 0, at
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]" and at > start + 1:
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    raise _UncountedError
