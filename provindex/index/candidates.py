"""Which rows a query compares, and in which order: uploads of one model once, and on while relatives keep coming.

A popular model is uploaded hundreds of times. If each copy took a place, they would crowd out its ancestor. And a
family of hundreds of members does not end at the fiftieth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from provindex.common.reasons import Code, Reason
from provindex.index.answer import Match
from provindex.index.entries import Entry, Key

MOST_CANDIDATES = 500  # rows that are compared although nobody named them
LAST = 10  # of a batch: if one of them links, another batch is compared
Ranked = tuple[Entry, int, float]  # row, rank (0: named, and not found by the search), score


@dataclass
class Candidates:
    """ranked: rows in the order of the search. named: rows that are compared in any case. count: rows of a batch.

    Rows of equal content and equal search vector are one candidate: the first is compared, and if it links the others
    are its copies. If it does not, they are compared as well, because content is what a row says of itself.
    """

    ranked: Sequence[Ranked]
    named: Sequence[Ranked]
    count: int
    copies: dict[Key, list[Ranked]] = field(default_factory=dict)
    _heads: dict[str, list[Entry]] = field(default_factory=dict)
    _seen: int = 0
    _batch: list[Ranked] = field(default_factory=list)
    _begun: bool = False

    def next(self, found: Sequence[Match]) -> list[Ranked]:
        """What is to be compared next; empty at the end. found: what was compared until now."""
        if not self._begun:
            self._begun, self._batch = True, self._further()
            return [*self.named, *self._batch]
        unlinked = [m.entry.key for m in found if m.pair.verdict != "linked" and m.entry.key in self.copies]
        if unlinked:
            return [one for key in unlinked for one in self.copies.pop(key)]
        if not self._links_on(found):
            return []
        batch = self._further()
        self._batch = batch or self._batch
        return batch

    def _further(self) -> list[Ranked]:
        """The next rows of the search that are no copies of those before them, as many as make a batch."""
        batch: list[Ranked] = []
        while len(batch) < self.count and self._seen < len(self.ranked):
            one = self.ranked[self._seen]
            self._seen += 1
            entry, content = one[0], one[0].row["content_sha256"]
            alike = self._heads.setdefault(content, []) if content else []
            head = next((h for h in alike if np.array_equal(h.vector, entry.vector)), None)
            if head is None:
                alike.append(entry)
                batch.append(one)
            else:
                self.copies.setdefault(head.key, []).append(one)
        return batch

    def _links_on(self, found: Sequence[Match]) -> bool:
        """Whether one of the last of the batch links."""
        last = {entry.key for entry, _, _ in self._batch[-LAST:]}
        return any(m.pair.verdict == "linked" and m.entry.key in last for m in found)

    def with_copies(self, found: Sequence[Match]) -> list[Match]:
        """The same, each linked one with the labels of its copies."""
        labels = {key: tuple(entry.label for entry, _, _ in ones) for key, ones in self.copies.items()}
        return [replace(m, copies=labels.get(m.entry.key, ())) for m in found]

    def warnings(self, found: Sequence[Match]) -> list[Reason]:
        """That relatives may be left, where they kept coming until the end of what is compared."""
        over = self._seen >= MOST_CANDIDATES and self._links_on(found)
        return [Reason.of(Code.MORE_RELATIVES, n=len(found))] if over else []
