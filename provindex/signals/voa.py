"""VOA, vocabulary overlap: which share of two vocabularies' token strings do they have in common? Reported only.

Definition: Jaccard index |A and B| / |A or B| of the token strings (added tokens included), rounded to 4 decimals.
Range: [0, 1]. Chance level: unrelated models share vocabularies all the time, so the value says nothing of weights.
Absent: a side without a tokenizer.

A fingerprint keeps a sketch instead of the vocabulary: its 1,024 smallest 64-bit token hashes (bottom-k, k-minimum
values), 8 KB. One hash a token and one partition make it, so 250,000 tokens take a fraction of a second; there are no
empty bins to fill as in one-permutation hashing; and it is exact while both vocabularies together have at most 1,024
tokens (word-level chemistry models have 591). The k smallest hashes of a union are a uniform sample without replacement
of it, so the share of them that both sketches hold is an unbiased estimate with a standard error of at most
sqrt(J (1 - J) / 1024): 0.016 at J = 0.5, 0.010 at 0.9, and 0 at J = 1 (Broder 1997; Beyer et al., SIGMOD 2007).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Panel, Signal, array, number, some

K = 1024
EMPTY = np.iinfo(np.uint64).max  # fills the sketch of a vocabulary of fewer than K tokens

U64 = NDArray[np.uint64]


def compare_vocabularies(a: Collection[str] | None, b: Collection[str] | None) -> Score:
    """Exact VOA. n: size of the union."""
    if not a or not b:
        return Score.absent(Reason.of(Code.SIDE_NO_VOCABULARY, side="second" if a else "first"))
    left, right = set(a), set(b)
    union = len(left | right)
    return Score(round(len(left & right) / union, 4), union)


def sketch(vocabulary: Collection[str]) -> U64:
    """The K smallest token hashes, ascending, (1024,) uint64; the places that stay empty hold 2**64 - 1.

    A hash is the first 8 bytes of BLAKE2b of the token's UTF-8, little-endian: equal on every machine.
    Two different tokens of 250,000 collide with probability 2e-9.
    """
    digests = b"".join(
        hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest() for token in set(vocabulary)
    )
    hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    if len(hashes) > K:
        hashes = np.partition(hashes, K - 1)[:K]
    out = np.full(K, EMPTY, dtype=np.uint64)
    out[: len(hashes)] = np.sort(hashes)
    return out


def compare(a: U64 | None, size_a: int, b: U64 | None, size_b: int) -> Score:
    """VOA estimated from two sketches, rounded to 4 decimals.

    size_a, size_b: numbers of tokens. n: hashes that the estimate rests on (1,024, fewer for small vocabularies).
    """
    if reason := _absent(a, size_a, b, size_b):
        return Score.absent(reason)
    jaccard, n = _estimate(a, b)
    ceiling = min(size_a, size_b) / max(size_a, size_b)  # the union holds the larger one
    return Score(round(min(jaccard, ceiling), 4), n)


def containment(a: U64 | None, size_a: int, b: U64 | None, size_b: int) -> Score:
    """Share of A's tokens that are in B, |A and B| / |A|, estimated from two sketches; in [0, 1], 4 decimals.

    A vocabulary pruned from B has containment 1 however small its Jaccard index is. Follows from the index and the two
    sizes; the standard error grows as A becomes small beside B: for A a fifth of B about 0.05.
    """
    if reason := _absent(a, size_a, b, size_b):
        return Score.absent(reason)
    jaccard, n = _estimate(a, b)
    shared = jaccard / (1.0 + jaccard) * (size_a + size_b)
    return Score(round(min(1.0, shared / size_a), 4), n)


def _absent(a: U64 | None, size_a: int, b: U64 | None, size_b: int) -> Reason | None:
    if a is None or size_a < 1:
        return Reason.of(Code.SIDE_NO_VOCABULARY, side="first")
    return Reason.of(Code.SIDE_NO_VOCABULARY, side="second") if b is None or size_b < 1 else None


def _estimate(a: U64 | None, b: U64 | None) -> tuple[float, int]:
    """(Jaccard estimate, hashes used): of the K smallest hashes of the union, how many are in both sketches."""
    assert a is not None and b is not None  # _absent came first
    left, right = a[a != EMPTY], b[b != EMPTY]
    union = np.union1d(left, right)[:K]
    both = np.intersect1d(left, right, assume_unique=True)
    return float(np.isin(union, both, assume_unique=True).sum()) / len(union), len(union)


# --- the table row ---


def _values(a: Any, b: Any) -> tuple[Any, Any] | None:
    if a.vocabulary_sketch is None or b.vocabulary_sketch is None:
        return None
    return (a.vocabulary_sketch, a.vocabulary_size), (b.vocabulary_sketch, b.vocabulary_size)


SKETCH = Panel(
    "vocabulary_sketch",
    (array("vocabulary_sketch", "uint64", "VOA: MinHash of the token strings, 1,024 values", K),),
    to_row=lambda values: {"vocabulary_sketch": values},
    from_row=lambda row: some(row["vocabulary_sketch"]),
    extract=lambda w: sketch(w.tokenizer.vocab) if w.tokenizer is not None else None,
)
SIZE = Panel(
    "vocabulary_size",
    (number("vocabulary_size", "token strings of the tokenizer", table="models"),),
    to_row=lambda size: {"vocabulary_size": size},
    from_row=lambda row: row["vocabulary_size"],
    extract=lambda w: len(w.tokenizer.vocab) if w.tokenizer is not None else 0,
)
SIGNAL = Signal(
    "VOA", _values, lambda a, b: compare(*a, *b), (SIZE, SKETCH), exact=lambda a, b: compare_vocabularies(a, b), order=5
)
