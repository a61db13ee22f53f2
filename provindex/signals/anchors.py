"""The peer's 64 anchor tokens: the embedding rows from which EAS is made (Cisco model-provenance-kit 1.0.0)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from provindex.common.tokens import MARKS, WORDS
from provindex.signals.scripts import shares

ANCHORS = 64
ACTIVE = 0.05  # a script with at least this share of the vocabulary's letters gets anchors
POOL = 50_000  # the rest is drawn from the first this many rows
SEED = 42


def peer_anchors(
    first_id: Callable[[str], int | None] | None, vocabulary: Collection[str] | None, rows: int
) -> list[int]:
    """Token ids of the anchors, in the peer's order; fewer than 64 only if the embedding has fewer rows.

    first_id: first id of a text without special tokens (`Tokenizer.first_id`), None without a tokenizer: then all are
    drawn at random, the same ones each time. vocabulary: the token strings, for the shares of the scripts.
    rows: rows of the embedding; ids outside are never used. Deterministic: numpy's legacy generator, seed 42.
    """
    ids: list[int] = []
    _take(MARKS, first_id, rows, ids)
    for words, count in _allocate(vocabulary, ANCHORS - len(ids)):
        _take(words[:count], first_id, rows, ids)
    missing = ANCHORS - len(ids)
    if missing > 0:
        taken = set(ids)
        pool = [row for row in range(min(rows, POOL)) if row not in taken]
        if pool:
            generator = np.random.RandomState(SEED)
            ids += generator.choice(pool, size=min(missing, len(pool)), replace=False).tolist()
    return ids[:ANCHORS]


def _take(texts: tuple[str, ...], first_id: Callable[[str], int | None] | None, rows: int, ids: list[int]) -> None:
    """Append the first id of each text, if it is a row and new."""
    if first_id is None:
        return
    for text in texts:
        index = first_id(text)
        if index is not None and 0 <= index < rows and index not in ids:
            ids.append(index)


def _allocate(vocabulary: Collection[str] | None, budget: int) -> list[tuple[tuple[str, ...], int]]:
    """Words and number of anchors for each active script, largest share first.

    Every script gets its share of the budget, at least 2; what the rounding leaves over or short goes to the first of
    the scripts with the most, again not below 2.
    """
    found = {label: share for label, share in shares(vocabulary or ()).items() if share >= ACTIVE and label in WORDS}
    active = found or {"Latin": 1.0}
    total = sum(active.values())
    counts = {label: max(2, round(budget * share / total)) for label, share in active.items()}
    largest = max(counts, key=lambda label: counts[label])
    counts[largest] = max(2, counts[largest] - (sum(counts.values()) - budget))
    order = sorted(active, key=lambda label: -active[label])
    return [(WORDS[label], counts[label]) for label in order]
