"""Retrieval vectors as those of a model zoo, in any number.

Families of all sizes (Pareto, so that the largest has thousands of a million and most have one or two) in a tree: a
member is made from an earlier member, at a distance drawn from 1e-5 to 0.5 of a cosine. Strangers are as far apart as
those of the seed index are, block by block: at random in `vabs`, `vabs_by_id`, `wvc` and `digests`; alike, by a common
mean and a few directions, in the others (median cosines of the seed: .27 in `eas`, .14 in `nlf`, .86 in `invariants`).
Signals that a family lacks (one family in eight has no tokenizer, one in twelve no digests, one in twenty no lengths)
are zero, and so are some that only one member lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.index.search import BLOCKS, DIMENSIONS

F32 = NDArray[np.float32]
ALIKE = {  # median cosine of strangers, and in how many directions they differ most
    "eas": (0.27, 8), "eas_by_id": (0.03, 10), "lep": (0.03, 4), "end": (0.05, 6), "nlf": (0.14, 8),
    "invariants": (0.86, 8),
}  # fmt: skip
ABSENT = {"vabs": 1 / 8, "eas": 1 / 8, "digests": 1 / 12, "invariants": 1 / 20}  # of families
LOST = 0.02  # of members, of each block


PIECE = 4096  # rows that are made together


@dataclass(frozen=True)
class Tree:
    """Which family and which parent, an earlier row or -1, each row has; both (rows,)."""

    family: NDArray[np.int64]
    parent: NDArray[np.int64]
    sizes: NDArray[np.int64]


def tree(rows: int, rng: np.random.Generator) -> Tree:
    """Families of so many rows in all, the rows of each side by side; six of ten members were made from the first."""
    sizes = np.minimum(np.ceil(rng.pareto(0.8, rows) + 1e-9), max(rows // 50, 1)).astype(np.int64)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), rows)) + 1]
    sizes[-1] -= sizes.sum() - rows
    within = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    near = np.minimum(1 + rng.integers(0, 20, rows), within)
    back = np.where(rng.random(rows) < 0.6, within, near)
    return Tree(np.repeat(np.arange(len(sizes)), sizes), np.where(within == 0, -1, np.arange(rows) - back), sizes)


class Zoo:
    """Makes rows in their order. An earlier row that a parent may be is kept, others are not."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.common = {}
        for name, (width, _) in BLOCKS.items():
            mean, directions = self.rng.standard_normal(width), self.rng.standard_normal((12, width))
            self.common[name] = mean / np.linalg.norm(mean), directions / np.linalg.norm(directions, axis=1)[:, None]

    def founders(self, count: int) -> F32:
        """Models that nothing links, (count, 3520)."""
        out = []
        for name, (width, weight) in BLOCKS.items():
            own = self.rng.standard_normal((count, width), np.float32) / width**0.5
            if name in ALIKE:
                share, few = ALIKE[name]
                mean, directions = self.common[name]
                low = self.rng.standard_normal((count, few)) @ directions[:few] / few**0.5
                own = share**0.5 * mean + (1 - share) ** 0.5 * (0.9 * low + 0.436 * own)
            own *= (weight**0.5 / np.linalg.norm(own, axis=1))[:, None]
            own[self.rng.random(count) < ABSENT.get(name, 0.0)] = 0
            out.append(own.astype(np.float32))
        return np.concatenate(out, axis=1)

    def children(self, parents: F32) -> F32:
        """A child of each row."""
        count, out, start = len(parents), [], 0
        far = 10 ** self.rng.uniform(-5, np.log10(0.5), count)
        for width, weight in BLOCKS.values():
            part = parents[:, start : start + width]
            noise = self.rng.standard_normal((count, width), np.float32) * (weight / width) ** 0.5
            cosine = 1 - far * self.rng.uniform(0.2, 1, count)
            child = cosine[:, None] * part + np.sqrt(1 - cosine**2)[:, None] * noise
            lengths = np.maximum(np.linalg.norm(child, axis=1), 1e-9)
            gone = ~np.any(part, axis=1) | (self.rng.random(count) < LOST)
            out.append((child * np.where(gone, 0, weight**0.5 / lengths)[:, None]).astype(np.float32))
            start += width
        return np.concatenate(out, axis=1)

    def rows(self, shape: Tree, first: int, last: int, earlier: Callable[[NDArray[np.int64]], F32]) -> F32:
        """The rows from `first` to `last`; earlier: looks up rows before `first`, which parents may be."""
        out = np.empty((last - first, DIMENSIONS), np.float32)
        parent = shape.parent[first:last] - first
        depth = np.zeros(last - first, np.int64)
        for i, p in enumerate(parent.tolist()):  # rows that have no parent, those whose parent came before, and so on
            depth[i] = 0 if shape.parent[first + i] < 0 else 1 if p < 0 else depth[p] + 1
        out[depth == 0] = self.founders(int(np.count_nonzero(depth == 0)))
        for d in range(1, int(depth.max(initial=0)) + 1):
            at = np.flatnonzero(depth == d)
            inside = parent[at] >= 0
            parents = np.empty((len(at), DIMENSIONS), np.float32)
            parents[inside] = out[parent[at[inside]]]
            if not inside.all():
                parents[~inside] = earlier(parent[at[~inside]] + first)
            out[at] = self.children(parents)
        return out

    def pieces(self, shape: Tree) -> Iterator[F32]:
        """All rows, some at a time."""
        kept: dict[int, F32] = {}  # what parents of the next piece may be: the first of a family, and the last 20
        for first in range(0, len(shape.parent), PIECE):
            last = min(first + PIECE, len(shape.parent))
            made = self.rows(shape, first, last, lambda rows: np.stack([kept[int(i)] for i in rows]))  # noqa: B023
            founder = int(np.searchsorted(shape.family, shape.family[last - 1]))
            near = {i: made[i - first] for i in range(max(first, last - 20), last)}
            kept = {founder: made[founder - first] if founder >= first else kept[founder]} | near
            yield made
