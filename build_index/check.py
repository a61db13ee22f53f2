"""Whether an index holds together and whether its rows find themselves: `python -m build_index check DIR`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from provindex.api import Index
from provindex.index.entries import Entry, Problem

SAMPLED = 1000  # rows that are searched for, evenly spaced in the order of their ids
CLOSE = 1e-5  # of a score: sums of thousands of float32 products that are equal differ so much at most


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found.

    lost: labels of rows whose own vector finds other rows before them. ties: rows that another one scores as high as,
    and comes first; without: rows that have no vector. kind, size (bytes), seconds: of the FAISS index, and how long it
    took to build.
    """

    problems: tuple[Problem, ...]
    models: int
    without: int
    searched: int
    ties: int
    lost: tuple[str, ...]
    kind: str
    size: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not self.lost


def check(folder: Path) -> Checked:
    """Verify an index folder, build the FAISS index over its vectors and search for its rows with their own vectors.

    Raises IndexFormatError if there is no index that can be opened.
    """
    index, problems = Index.check(folder)
    index = index if problems else Index.load(folder)  # of a large index a check keeps no vectors
    begun = time.perf_counter()
    entries, bare, searcher = index._searcher()
    seconds = time.perf_counter() - begun
    asked = np.linspace(0, len(entries) - 1, min(SAMPLED, len(entries))).astype(int)
    ties, lost = _searched(searcher, entries, asked.tolist())
    return Checked(
        problems=tuple(problems),
        models=len(index),
        without=len(bare),
        searched=len(asked),
        ties=ties,
        lost=lost,
        kind=type(searcher).__name__,
        size=searcher.ntotal * searcher.code_size,
        seconds=seconds,
    )


def _searched(searcher: Any, entries: list[Entry], asked: list[int]) -> tuple[int, tuple[str, ...]]:
    """Search for rows with their own vectors: how many a row with the same score came before, and labels of the lost.

    Nothing but rounding may put another row first: where vectors are equal in all that both have, so are the scores.
    """
    ties, lost = 0, []
    for place in asked:
        vector = entries[place].vector
        scores, places = searcher.search(vector[None], 1)
        own, best = float(vector @ vector), float(scores[0, 0])
        if best - own > CLOSE * max(own, 1.0):
            lost.append(entries[place].label)
        elif places[0, 0] != place:
            ties += 1
    return ties, tuple(lost)


def lines(done: Checked) -> list[str]:
    """What a check found, for people."""
    out = [f"{problem.where}: {problem.what}" for problem in done.problems]
    out += [f"{label}: its own vector finds another model first" for label in done.lost]
    found = done.searched - len(done.lost)
    return [
        *out,
        f"{done.models:,} models, {done.without:,} of them without a vector; {len(done.problems)} problems",
        f"FAISS {done.kind}, {done.size:,} bytes, built in {done.seconds:.2f} s",
        f"{found:,} of {done.searched:,} rows that were searched for find themselves ({done.ties:,} tie with another)",
    ]
