"""Whether a tokenizer is that of the embedding: do tokens whose strings are alike have rows that are alike?

A model whose token ids were numbered anew, under the tokenizer of before, computes what it computed, and no anchor
stands for the token that its string names: tests in anchor coordinates see noise. But tokens that share letters, length
or script share meaning, grammar and frequency in every trained model, in any basis; under the wrong strings nothing is
shared. Needs no other model.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from provindex.roles.canonical import F32, F64

LEAST = 4.0  # standard deviations above tokens at random: 3e-5; real models have 40 to 100, of SMILES strings 5 to 7
MIN_TOKENS = 16
LONGEST = 8  # letters: longer strings count as of one length
PIECES = (1, 2, 3)  # letters of a piece of a string


def fit(rows: F32, texts: Sequence[str]) -> float | None:
    """How much more alike rows of like strings are than those of strings at random, in standard deviations.

    rows: (n, d) float32, the rows of n tokens. texts: their strings, without marks for the beginning of a word. The
    correlation of the cosines of rows with those of strings, both centred over tokens; under exchange of tokens its
    standard deviation is sqrt(2) / n. None for fewer than 16 tokens, for rows that are not finite, and for rows or
    strings that all are one.
    """
    n = len(texts)
    if n < MIN_TOKENS or not np.isfinite(rows).all():
        return None
    ours, theirs = (_centred(unit @ unit.T) for unit in (_unit(rows - rows.mean(axis=0)), _unit(_features(texts))))
    size = float(np.sqrt(np.square(ours).sum() * np.square(theirs).sum()))
    return float((ours * theirs).sum()) / size * n / 2**0.5 if size > 0 else None


def _features(texts: Sequence[str]) -> F32:
    """(n, features) of strings: their pieces, with and without case, length and scripts; rare ones weigh more."""
    found = [_told(text) for text in texts]
    columns = {feature: i for i, feature in enumerate(sorted({f for one in found for f in one}))}
    has = np.zeros((len(texts), len(columns)), np.float32)
    for i, one in enumerate(found):
        has[i, [columns[feature] for feature in one]] = 1
    return np.asarray(has * np.log(len(texts) / has.sum(axis=0)), np.float32)


def _told(text: str) -> set[str]:
    """What is said of a string."""
    ends, small = f"^{text}$", f"^{text.casefold()}$"
    pieces = {f"as is {ends[i : i + k]}" for k in PIECES for i in range(len(ends) - k + 1)}
    pieces |= {f"small {small[i : i + k]}" for k in PIECES for i in range(len(small) - k + 1)}
    kinds = [f"{unicodedata.category(c)} {unicodedata.name(c, '?').split()[0]}" for c in text]
    return pieces | {f"kind {kind}" for kind in kinds} | {f"kinds {kinds[:3]}", f"length {min(len(text), LONGEST)}"}


def _unit(rows: F32) -> F32:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, np.float32(1)), np.float32)


def _centred(products: F32) -> F64:
    """Cosines without the diagonal, and without what one token has in common with all (Szekely and Rizzo, 2014)."""
    n, cosines = len(products), products.astype(np.float64)
    np.fill_diagonal(cosines, 0.0)
    own, total = cosines.sum(axis=1) / (n - 2), cosines.sum() / ((n - 1) * (n - 2))
    centred: F64 = cosines - own[:, None] - own[None] + total
    np.fill_diagonal(centred, 0.0)
    return centred
