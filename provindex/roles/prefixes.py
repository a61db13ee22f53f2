"""Names under prefixes that no table lists: which part of each name a naming scheme knows.

A checkpoint may hold a known model under `llm.` or `student.`, wrapped in the middle (`_fsdp_wrapped_module`), or in
Flax's spelling (`kernel`, slashes). Every end of every name is looked up in the tables of all schemes at once; the
prefix under which one scheme explains the most elements is the text tower's. Names elsewhere keep their own, so that
two towers under two prefixes stay apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from provindex.roles.architectures import COMPANIONS, MIDDLES, PARAMETERS, SCHEMES, SPEECH_WORDS, VISION_WORDS

Segments = tuple[str, ...]

MAX_CUTS = 8  # segments that a prefix may have
MAX_SEGMENTS = 32  # names with more belong to no scheme
SPEECH = frozenset(
    {"whisper", "openai_whisper", "audio", "moonshine", "cohere_asr", "wav2vec2"}
)  # schemes that a speech tower's prefix may have
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # Flax's last segments


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A stored name without wrappers, in the dots and last segments of the tables.

    flipped: stored as (in, out) where the table says (out, in), and the other way round: Flax's kernels.
    """

    segments: tuple[str, ...]
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where the text tower of a model is. names: what its tables may know, by stored name; others are elsewhere."""

    prefix: str
    scheme: str
    names: Mapping[str, Cleaned]


def text_tower(sizes: Mapping[str, int]) -> Prefix | None:
    """The prefix under which one scheme knows the most elements, of all prefixes and schemes; None if none does.

    sizes: elements by stored name.
    """
    cleaned = {name: clean(name) for name in sizes}
    explained, tables = _explained(cleaned, sizes)
    best = max(_candidates(explained, tables), default=None)
    if best is None:
        return None
    names = {name: below for name in sizes if (below := _under(cleaned[name], best.prefix, best.scheme))}
    return Prefix(".".join(best.prefix), best.scheme, names)


class _Candidate(NamedTuple):
    """A prefix and a scheme, in the order of what speaks for them.

    text: no speech tower by its words. embeds: an embedding is at or above it. explained: elements. order: of two
    schemes that know as much, the first listed.
    """

    text: bool
    embeds: bool
    explained: int
    order: int
    prefix: Segments
    scheme: str


def _explained(
    cleaned: Mapping[str, Cleaned], sizes: Mapping[str, int]
) -> tuple[Mapping[Segments, Mapping[str, int]], set[Segments]]:
    """Elements of layers that each scheme knows below each prefix, and the prefixes of embeddings."""
    found: dict[Segments, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    tables: set[Segments] = set()
    known: dict[Segments, tuple[tuple[int, frozenset[str]], ...]] = {}
    for name, own in cleaned.items():
        keys = keyed(own.segments)
        if keys not in known:
            known[keys] = _ends(keys)
        for cut, schemes in known[keys]:
            for scheme in schemes:
                found[own.segments[:cut]][scheme] += sizes[name]
        tables |= {own.segments[:cut] for cut in _embedding_cuts(keys)}
    return found, tables


def _candidates(found: Mapping[Segments, Mapping[str, int]], tables: set[Segments]) -> Iterator[_Candidate]:
    order = {scheme: -i for i, scheme in enumerate(SCHEMES)}
    for prefix, votes in found.items():
        embeds = any(prefix[:cut] in tables for cut in range(len(prefix) + 1))
        for scheme, explained in votes.items():
            if _may_be(prefix, scheme):
                yield _Candidate(not _speaks(prefix), embeds, explained, order[scheme], prefix, scheme)


def _may_be(prefix: Sequence[str], scheme: str) -> bool:
    """Whether a prefix may be that of a text tower, or of a speech model's, by its words."""
    return not VISION_WORDS.search(".".join(prefix)) and (scheme in SPEECH or not _speaks(prefix))


def _speaks(prefix: Sequence[str]) -> bool:
    return bool(SPEECH_WORDS.search(".".join(prefix)))


def clean(name: str) -> Cleaned:
    """A name without wrappers; one with absurdly many segments stays whole."""
    segments = name.replace("/", ".").split(".", MAX_SEGMENTS + 1)
    if len(segments) > MAX_SEGMENTS:
        return Cleaned((name,))
    inner = tuple(s for s in segments[:-1] if s not in MIDDLES)
    last = segments[-1]
    return Cleaned((*inner, LEAVES.get(last, last)), flipped=last == "kernel")


def keyed(segments: Iterable[str]) -> tuple[str, ...]:
    """Segments with "#" for numbers, as keys of tables have them."""
    return tuple("#" if is_number(s) else s for s in segments)


def is_number(segment: str) -> bool:
    """Short decimal numbers only: a longer run of digits is no layer, and int() of a huge one is slow or fails."""
    return len(segment) <= 6 and segment.isascii() and segment.isdecimal()


def _under(own: Cleaned, prefix: Segments, scheme: str) -> Cleaned | None:
    """The part of a name that the tables may know; None if it is elsewhere.

    All names below the prefix; and of those beside it (`llm.lm_head` beside `llm.model`) the ones that a table has.
    """
    common = 0
    while common < min(len(prefix), len(own.segments) - 1) and own.segments[common] == prefix[common]:
        common += 1
    rest = own.segments[common:]
    if common == len(prefix) and not _another_tower(rest[0]):
        return Cleaned(rest, own.flipped)
    layered, others = _keys(scheme)
    return Cleaned(rest, own.flipped) if _lookup(keyed(rest)) & others - layered else None


def _another_tower(segment: str) -> bool:
    return bool(VISION_WORDS.search(segment) or SPEECH_WORDS.search(segment))


def _ends(keys: tuple[str, ...]) -> tuple[tuple[int, frozenset[str]], ...]:
    """Which ends of a name are a layer's tensor, in which schemes: (segments before it, schemes)."""
    if "#" not in keys:
        return ()
    index = _index()
    found = []
    for cut in range(min(len(keys), MAX_CUTS + 1)):
        schemes = frozenset[str]().union(*(index.get(key, frozenset()) for key in _lookup(keys[cut:])))
        if schemes:
            found.append((cut, schemes))
    return tuple(found)


def _embedding_cuts(keys: tuple[str, ...]) -> list[int]:
    if "#" in keys:
        return []
    tables = _embeddings()
    return [cut for cut in range(min(len(keys), MAX_CUTS + 1)) if _lookup(keys[cut:]) & tables]


def _lookup(keys: tuple[str, ...]) -> frozenset[str]:
    """The keys of tables under which a name may be: without and with its last segment."""
    whole = ".".join(keys)
    short = keys and (keys[-1] in PARAMETERS or keys[-1] in COMPANIONS)
    return frozenset((".".join(keys[:-1]), whole)) if short else frozenset((whole,))


@cache
def _keys(scheme: str) -> tuple[frozenset[str], frozenset[str]]:
    """The keys of a scheme's tables: those of layers, and the others."""
    layered: set[str] = set()
    others: set[str] = set()
    for _, before, table in SCHEMES[scheme].stacks:
        for name in table:
            template = (before + name).split(".")
            key = ".".join("#" if s[0] == "{" or is_number(s) else s for s in template)
            (layered if "{l}" in template else others).add(key)
    return frozenset(layered), frozenset(others)


@cache
def _index() -> Mapping[str, frozenset[str]]:
    """Schemes by key of a layer's tensor. Tables of towers alone are no text."""
    found: dict[str, frozenset[str]] = {}
    for scheme in SCHEMES:
        if scheme != "vision":
            for key in _keys(scheme)[0]:
                found[key] = found.get(key, frozenset()) | {scheme}
    return found


@cache
def _embeddings() -> frozenset[str]:
    tables = (
        before + name
        for scheme in SCHEMES.values()
        for _, before, table in scheme.stacks
        for name, what in table.items()
        if what == "embed"
    )
    return frozenset(tables)
