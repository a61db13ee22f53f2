"""Embeddings as training leaves them: tokens whose strings share letters have rows that are alike."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .models import Checkpoint

TABLES = re.compile(r"(?:embed_tokens|wte|word_embeddings|shared|embed_in)\.weight$")
SHARE = 0.6  # of a row's length that its string decides


def spoken(made: Checkpoint, seed: int = 0) -> Checkpoint:
    """The same with rows that know their tokens' strings, in directions of this seed."""
    return replace(made, tensors=with_strings(dict(made.tensors), made.tokenizer or "", seed))


def with_strings(tensors: dict[str, Any], tokenizer: str, seed: int) -> dict[str, Any]:
    """Tensors of a model with that tokenizer.json, the rows of its embedding mixed with what the strings say."""
    name = next(name for name in tensors if TABLES.search(name))
    table = np.array(tensors[name], np.float32)
    told = np.zeros_like(table)
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    ids = (
        vocabulary.items() if isinstance(vocabulary, dict) else ((piece, i) for i, (piece, _) in enumerate(vocabulary))
    )
    for text, index in ids:
        if index < len(table):
            told[index] = sum(_direction(piece, seed, table.shape[1]) for piece in _pieces(text))
    told *= table.std() / max(float(told.std()), 1e-12)
    tensors[name] = (np.sqrt(1 - SHARE**2) * table + SHARE * told).astype(np.float32)
    return tensors


def _pieces(text: str) -> set[str]:
    word = text.strip("\u0120\u2581#").lower()
    return {word[i : i + k] for k in (1, 2) for i in range(len(word) - k + 1)} | {f"{len(word)} letters"}


@lru_cache(maxsize=1 << 16)
def _direction(piece: str, seed: int, width: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(f"{seed} {piece}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(width, np.float32)
