"""The gate of `query --deny`: is a model linked to something that is not allowed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from provindex.common.reasons import Code, Reason
from provindex.fingerprint.record import IMPORTED, NORMS
from provindex.index.answer import QueryResult
from provindex.index.collection import Index
from provindex.index.entries import Entry


@dataclass(frozen=True, slots=True)
class Denied:
    """One denied id. status: what the command would exit with for it alone: 1 linked, 3 cannot be told, 0 unrelated."""

    id: str
    status: int
    reason: Reason


def gate(result: QueryResult, deny: Sequence[str], index: Index) -> list[Denied]:
    """What a query's answer says of each denied id; an id that no row has may be a family, whose rows all count.

    The answer must have compared these rows: `Index.query(..., also=deny)`. To deny the model that is asked about is to
    deny a linked one.
    """
    return [Denied(reference, *_judged(result, reference, index)) for reference in deny]


def _judged(result: QueryResult, reference: str, index: Index) -> tuple[int, Reason]:
    rows = index.named(reference)
    if not rows:
        return 3, Reason.of(Code.DENIED_UNKNOWN)
    if result.own is not None and any(entry is result.own for entry in rows):
        return 1, Reason.of(Code.DENIED_ITSELF)
    keys = {entry.key for entry in rows}
    linked = [m for m in result.linked if m.entry.key in keys]
    if linked:
        entry, relation = linked[0].entry, linked[0].pair.relation or ""
        if entry.model_id == reference:
            return 1, Reason.of(Code.DENIED_LINKED, relation=relation)
        return 1, Reason.of(Code.DENIED_MEMBER_LINKED, member=entry.label, relation=relation)
    rest = [m for m in result.candidates if m.entry.key in keys]
    cleared = [m.entry for m in rest if m.pair.verdict == "unrelated" and not m.pair.plain_order_only]
    open_ones = [m for m in rest if not _says_less(m.entry, cleared)]
    untested = [m for m in open_ones if m.pair.verdict != "unrelated"]
    if untested:
        return 3, Reason.of(Code.DENIED_UNTESTED, because=untested[0].pair.reasons)
    partly = [m for m in open_ones if m.pair.plain_order_only]
    if partly:
        return 3, Reason.of(Code.DENIED_PLAIN_ORDER, because=partly[0].pair.reasons)
    if result.query.left_out:
        return 3, Reason.of(Code.DENIED_LEFT_OUT, because=result.query.left_out)
    return 0, Reason.of(Code.DENIED_UNRELATED)


def _says_less(entry: Entry, cleared: Sequence[Entry]) -> bool:
    """Whether a row of the same model that says more was cleared: more than an imported row, which has no revision, and
    than norms of the same commit. Two rows without a revision may be of two models that have one name.
    """
    mode = entry.row["mode"]
    same = [other for other in cleared if other.model_id == entry.model_id]
    if mode == NORMS:
        commit = (entry.revision, entry.variant)
        return entry.revision is not None and any((other.revision, other.variant) == commit for other in same)
    return mode == IMPORTED and bool(same)
