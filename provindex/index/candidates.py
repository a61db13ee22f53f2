"""Which rows a query compares, and in which order: uploads of one model once, and on while relatives keep coming.

A popular model is uploaded hundreds of times. If each copy took a place, they would crowd out its ancestor. And a
family of hundreds of members does not end at the fiftieth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from provindex.catalogue.table import known
from provindex.common.reasons import Code, Reason
from provindex.index.answer import Match
from provindex.index.entries import Entry, Key

SEARCHED = 1_000  # rows of the search that are looked at: as many copies of one model hide nobody
MOST_CANDIDATES = 200  # groups that are compared although nobody named them
LAST = 10  # of a batch: if one of them links, another batch is compared
Ranked = tuple[Entry, int, float]  # row, rank (0: named, and not found by the search), score
Group = tuple[Ranked, ...]  # rows of equal content and equal search vector, the one to name first


def grouped(ranked: Iterable[Ranked]) -> list[Group]:
    """Rows in the order of the search, those that say that they are copies in the place of the nearest.

    Of a group the model that the catalogue knows is named first. Content is looked at only where scores are equal: it
    may have to be read.
    """
    alike: dict[float, list[list[Ranked]]] = {}
    groups: list[list[Ranked]] = []
    for one in ranked:
        there = alike.setdefault(one[2], [])
        group = next((g for g in there if _copies(g[0][0], one[0])), None)
        if group is None:
            group = []
            there.append(group)
            groups.append(group)
        group.append(one)
    return [tuple(sorted(group, key=lambda r: (known(r[0].model_id) is None, r[1]))) for group in groups]


def _copies(a: Entry, b: Entry) -> bool:
    content = a.row["content_sha256"]
    return content is not None and content == b.row["content_sha256"] and np.array_equal(a.vector, b.vector)


@dataclass
class Candidates:
    """groups: of the search. named: rows that are compared in any case. count: groups of a batch.

    Of a group the first is compared, and if it links the others are its copies. If it does not, those whose rows differ
    from it in anything are compared as well, because content is what a row says of itself.
    """

    groups: Sequence[Group]
    named: Sequence[Ranked]
    count: int
    copies: dict[Key, Group] = field(default_factory=dict)
    _seen: int = 0
    _batch: tuple[Ranked, ...] = ()

    def next(self, found: Sequence[Match]) -> list[Ranked]:
        """What is to be compared next; empty at the end. found: what was compared until now."""
        if not found:
            return [*self.named, *self._further()]
        others = [one for m in found if m.pair.verdict != "linked" for one in self._released(m.entry)]
        return others or (self._further() if self._links_on(found) else [])

    def _released(self, head: Entry) -> list[Ranked]:
        """Rows of a group that are no longer taken for copies, since its first does not link."""
        group = self.copies.get(head.key, ())
        self.copies[head.key] = tuple(one for one in group if one[0].row_sha256 == head.row_sha256)
        return [one for one in group if one[0].row_sha256 != head.row_sha256]

    def _further(self) -> list[Ranked]:
        most = max(MOST_CANDIDATES, self.count)
        groups = self.groups[self._seen : min(self._seen + self.count, most)]
        self._seen += len(groups)
        self.copies |= {group[0][0].key: group[1:] for group in groups if len(group) > 1}
        self._batch = tuple(group[0] for group in groups) or self._batch
        return [group[0] for group in groups]

    def _links_on(self, found: Sequence[Match]) -> bool:
        """Whether one of the last of the batch links."""
        last = {entry.key for entry, _, _ in self._batch[-LAST:]}
        return any(m.pair.verdict == "linked" and m.entry.key in last for m in found)

    def with_copies(self, found: Sequence[Match]) -> list[Match]:
        """The same, each with its copies."""
        rows = {key: tuple(entry for entry, _, _ in group) for key, group in self.copies.items()}
        return [replace(m, copies=rows.get(m.entry.key, ())) for m in found]

    def warnings(self, found: Sequence[Match]) -> list[Reason]:
        """That relatives may be left, where they kept coming until the end of what is compared."""
        over = self._seen < len(self.groups) and self._links_on(found)
        return [Reason.of(Code.MORE_RELATIVES, n=len(found))] if over else []
