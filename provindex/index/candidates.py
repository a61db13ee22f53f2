"""Which rows a query compares, and in which order: uploads of one model once, and on while relatives keep coming.

A popular model is uploaded hundreds of times. If each copy took a place, they would crowd out its ancestor. And a
family of hundreds of members does not end at the fiftieth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from provindex.catalogue.table import known
from provindex.common.reasons import Code, Reason
from provindex.index.answer import Match
from provindex.index.entries import Entry, Key

SEARCHED = 1_000  # rows of the search that are looked at: as many copies of one model hide nobody
MOST_CANDIDATES = 200  # groups that are compared although nobody named them
WEIGHTS = ("exact", "sampled")  # modes of rows that hold enough of the weights to tell copies
LAST = 10  # of a batch: if one of them links, another batch is compared
Ranked = tuple[Entry, int, float]  # row, rank (0: named, and not found by the search), score
Group = tuple[Ranked, ...]  # rows of one hash, the one to name first


def grouped(ranked: Iterable[Ranked]) -> list[Group]:
    """Rows in the order of the search, those that are equal in all but who they are in the place of the nearest.

    A row's hash covers all that is compared, and is checked when a row is read: what a row says of its content does not
    make it a copy. Of a group the model that the catalogue knows is named first.
    """
    alike: dict[str, list[Ranked]] = {}
    for one in ranked:
        alike.setdefault(one[0].row_sha256, []).append(one)
    groups: dict[object, list[Ranked]] = {}
    for digest, ones in alike.items():
        told = len(ones) == 1 or ones[0][0].row["mode"] in WEIGHTS
        for one in ones:
            groups.setdefault(digest if told else one[0].key, []).append(one)
    return [tuple(sorted(group, key=lambda r: (known(r[0].model_id) is None, r[1]))) for group in groups.values()]


@dataclass
class Candidates:
    """groups: of the search. named: rows that are compared in any case. count: groups of a batch.

    Of a group the first is compared; the others are its copies.
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
        return self._further() if self._links_on(found) else []

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
