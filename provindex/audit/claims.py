"""Claims against weights: what a model says of itself, and what the weights say of that.

| status | meaning |
|---|---|
| `confirmed` | the weights are linked to the claimed model, and do not say that it came later |
| `contradicted` | the claimed model is indexed, a test that would have seen a changed copy ran: unrelated |
| `incomplete` | what is claimed is not the whole: the weights have an ancestor that is not claimed |
| `not_testable` | none of these; the reasons say why, and `next_step` what to do |

Whether a claimed model was tested with power is decided as a gate decides it (`gate.py`): the same states, rules and
towers. A claim costs nothing, so it confirms nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from provindex.audit.gate import Towers, gate
from provindex.audit.policy import Policy
from provindex.audit.relative import is_relative
from provindex.audit.rules import Rule
from provindex.catalogue.table import known
from provindex.common.claims import BASES, Claim, Stated
from provindex.common.hub_ids import is_hub_id
from provindex.common.reasons import Code, Reason
from provindex.fingerprint.record import Fingerprint
from provindex.index.answer import Match, QueryResult
from provindex.index.collection import Index
from provindex.verdict.pair import compare

CONFIRMED, CONTRADICTED, INCOMPLETE, NOT_TESTABLE = STATUSES = (
    "confirmed", "contradicted", "incomplete", "not_testable",
)  # fmt: skip
# Warnings of a fingerprint that say that names or shapes are not those of the model type which the config states.
OF_ANOTHER_TYPE = frozenset(
    {Code.NO_SCHEME, Code.SCHEME_GUESSED, Code.ROLES_INFERRED, Code.HEADS_DOUBTED, Code.LAYERS_MISSING}
)
COMMON_ORIGIN = frozenset({"shared-ancestor", "related", "shared-init"})  # relations of which neither is the other's
SAME_WEIGHTS = frozenset({"identical", "recast"})  # relations of a pair that is one model
# What tells a direction by the way other relatives lie: right for most pairs, and no ground for an accusation.
BY_RELATIVES = frozenset({Code.BRANCHED, Code.WITNESSES, Code.PATH, Code.SIBLINGS})
HELD = 0.5  # share of a change that a model holds which was made after it: 1, of a model that branched off before: 0
MOST_LINEAGE = 16  # steps up in what rows and the catalogue say


@dataclass(frozen=True)
class Judged:
    """A claim, and what is so of it. next_step: what a reader can do where it is not testable."""

    claim: Claim
    status: str
    reasons: tuple[Reason, ...] = ()
    next_step: Reason | None = None


@dataclass(frozen=True)
class Ancestor:
    """A linked row that counts as an ancestor. presumed: the weights do not say which came first, and the public record
    has it as the root of its family, or the model claims it, or both hold the same weights; or nothing says more, and
    it is the closest. sure: more than the way in which other relatives lie says that it came first, or the record does.
    """

    match: Match
    presumed: bool
    sure: bool


def claimed_rows(stated: Stated, index: Index) -> tuple[str, ...]:
    """Ids of the rows that claims of a base name: they have to be compared whatever the search says."""
    rows = (entry.model_id for value in stated.values(*BASES) for entry in index.spelled(value))
    return tuple(dict.fromkeys(rows))


def judged_bases(
    stated: Stated, result: QueryResult, index: Index, today: date, towers: Towers = ()
) -> tuple[Judged, ...]:
    """The claims of other models. The answer must have compared their rows (`claimed_rows`)."""
    by_value: dict[str, Judged] = {}
    found = []
    for claim in stated.claims:
        if claim.kind not in BASES:
            continue
        if claim.value not in by_value:
            by_value[claim.value] = _base(claim, result, index, today, towers)
        found.append(replace(by_value[claim.value], claim=claim))
    return tuple(found)


def _base(claim: Claim, result: QueryResult, index: Index, today: date, towers: Towers) -> Judged:
    rows = index.spelled(claim.value)
    if not is_hub_id(claim.value):
        return Judged(claim, NOT_TESTABLE, (Reason.of(Code.CLAIM_NO_ID, name=claim.value),), Reason.of(Code.NEXT_ID))
    if not rows:
        reason = Reason.of(Code.DENIED_NOT_INDEXED)
        return Judged(claim, NOT_TESTABLE, (reason,), Reason.of(Code.NEXT_FETCH, n=1, model=claim.value))
    (denial,) = gate(result, Policy(deny=(Rule.of(rows[0].model_id),)), index, today, towers=towers).denied
    if denial.state == "denied":
        return _linked(claim, result, denial.reason)
    if denial.state in ("cleared", "not_comparable"):
        return Judged(claim, CONTRADICTED, (denial.reason,))
    if denial.state == "relative":
        return Judged(claim, INCOMPLETE, (denial.reason,))
    adapter = Code.ADAPTER in {reason.code for reason in result.query.absences.values()}
    ahead = Reason.of(Code.NEXT_MERGE) if adapter else Reason.of(Code.NEXT_COMPARE, model=rows[0].model_id)
    return Judged(claim, NOT_TESTABLE, (denial.reason,), ahead)


def link_reason(match: Match, model: str) -> Reason:
    """How a match is linked to the model, and whether the weights say which came first."""
    if match.pair.relation in SAME_WEIGHTS:
        return Reason.of(Code.CLAIM_SAME_WEIGHTS, model=model, relation=match.pair.relation or "")
    code = Code.CLAIM_LINKED if role(match) == "ancestor" else Code.CLAIM_LINKED_ONLY
    return Reason.of(code, model=model, relation=match.pair.relation or "")


def _linked(claim: Claim, result: QueryResult, reason: Reason) -> Judged:
    """A claim of a linked model: confirmed unless every row of it is said to have come later."""
    value = claim.value
    matches = [m for m in result.linked if m.entry.model_id.lower() == claim.value.lower()]
    matches += [m for m in result.linked if any(e.model_id.lower() == claim.value.lower() for e in m.copies)]
    if not matches:  # a tower alone, or the row of the model itself
        return Judged(claim, CONFIRMED, (reason,))
    for wanted in ("ancestor", "unknown"):
        match = next((m for m in matches if role(m) == wanted), None)
        if match is not None:
            return Judged(claim, CONFIRMED, (link_reason(match, value),))
    later = Reason.of(Code.CLAIM_DESCENDANT, relation=matches[0].pair.relation or "", model=value)
    return Judged(claim, NOT_TESTABLE, (later,), Reason.of(Code.NEXT_COMPARE, model=value))


def role(match: Match) -> str | None:
    """The direction of a match. A variant stands for its model, of which its own grid says nothing."""
    return "unknown" if match.entry.variant and match.direction == "descendant" else match.direction


def ancestors(result: QueryResult, judged: Sequence[Judged]) -> tuple[Ancestor, ...]:
    """Linked rows that count as ancestors, closest first: by direction; or, where the weights do not say which came
    first, those that are claimed, hold the same weights, or are the root of their family by the public record; if there
    are none of these, the closest linked row.
    """
    claimed = {one.claim.value.lower() for one in judged if one.status == CONFIRMED}
    found: dict[str, Ancestor] = {}
    for match in result.linked:
        model_id = match.entry.model_id
        if model_id.lower() == result.query.model_id.lower() or role(match) == "descendant":
            continue
        certain = role(match) == "ancestor"
        names = {model_id.lower(), *(e.model_id.lower() for e in match.copies)}
        known_otherwise = bool(names & claimed) or match.pair.relation in SAME_WEIGHTS or is_root(match)
        if certain or known_otherwise:
            sure = known_otherwise or is_told_apart(match)
            found.setdefault(model_id.lower(), Ancestor(match, not certain, sure))
    if not found and not claimed:  # nothing says which came first: the closest may have, and is not passed over
        found = {m.entry.model_id.lower(): Ancestor(m, presumed=True, sure=False) for m in open_links(result)[:1]}
    return tuple(found.values())


def is_told_apart(match: Match) -> bool:
    """Whether the direction of a match rests on more than the way in which other relatives lie."""
    told = {reason.code for reason in match.pair.direction_reasons}
    return match.pair.relation == "merge" or not told or bool(told - BY_RELATIVES)


def open_links(result: QueryResult) -> tuple[Match, ...]:
    """Linked rows that may be ancestors: closest first, those of which the weights do not say which came first."""
    return tuple(m for m in result.linked if role(m) == "unknown" and m.pair.relation not in COMMON_ORIGIN)


def is_root(match: Match) -> bool:
    """Whether the row, or the catalogue, says of a linked model that it is the root of its family."""
    model_id, record = match.entry.model_id, known(match.entry.model_id)
    return match.entry.stated_family == model_id or (record is not None and record.family == record.model_id)


def unclaimed(
    found: Sequence[Ancestor], judged: Sequence[Judged], query: Fingerprint, index: Index
) -> tuple[Ancestor, ...]:
    """The ancestors that no claim names or explains. A confirmed claim explains what it was itself made of."""
    claimed = {one.claim.value.lower() for one in judged}
    tested = [one.claim.value for one in judged if one.status == CONFIRMED]
    left = []
    for one in found:
        names = {one.match.entry.model_id.lower(), *(e.model_id.lower() for e in one.match.copies)}
        if names & claimed or _is_itself(one, query):
            continue
        if any(_explains(value, one, query, index) for value in dict.fromkeys(tested)):
            continue
        if any(one.match.entry.model_id.lower() in _lineage(value, index) for value in claimed):
            continue
        left.append(one)
    return tuple(left)


def _is_itself(one: Ancestor, query: Fingerprint) -> bool:
    """Whether a row is the model under its own name, which a folder has as its last part."""
    names = (one.match.entry.model_id, query.model_id)
    theirs, ours = ("".join(filter(str.isalnum, name.rpartition("/")[2].lower())) for name in names)
    return one.match.pair.relation in SAME_WEIGHTS and theirs == ours


def _explains(claimed: str, other: Ancestor, query: Fingerprint, index: Index) -> bool:
    """Whether a linked model is above a claimed one, so that naming the claimed one is enough.

    A parent of a merge is not: it has to be named itself. Nor is a model that was made of the claimed one and stands
    between it and the query: then the query holds what training changed from the one to the other. Where neither is
    seen, nothing is held against the claim.
    """
    if other.match.pair.relation == "merge":
        return False
    row = other.match.entry.load()
    for entry in index.spelled(claimed):
        base = entry.load()
        pair = compare(base, row, models=len(index), calibration=index.calibration)
        if pair.verdict != "linked":
            continue
        if pair.relation in SAME_WEIGHTS:
            return True
        if pair.direction == "unknown" and not other.presumed:
            _, share = is_relative(query, base, row)
            return share is None or share < HELD
        return pair.direction != "ancestor"
    return False


def _lineage(model_id: str, index: Index) -> frozenset[str]:
    """Ids that rows and the catalogue have above a model, in small letters; without the model."""
    found: dict[str, None] = {}
    ahead = [model_id]
    while ahead and len(found) < MOST_LINEAGE:
        at = ahead.pop()
        record = known(at)
        above = [parent for entry in index.spelled(at) for parent in entry.row["parents"]]
        above += [name for name in (record.parent, record.family) if name] if record is not None else []
        for name in above:
            if name.lower() not in found and name.lower() != model_id.lower():
                found[name.lower()] = None
                ahead.append(name)
    return frozenset(found)


def incomplete(judged: Sequence[Judged], reason: Reason | None) -> tuple[Judged, ...]:
    """The same claims; confirmed ones are not the whole where a reason says which ancestor is not claimed."""
    if reason is None:
        return tuple(judged)
    return tuple(
        replace(one, status=INCOMPLETE, reasons=(*one.reasons, reason)) if one.status == CONFIRMED else one
        for one in judged
    )


def judged_architecture(claim: Claim, query: Fingerprint) -> Judged:
    """The claim of a model type: confirmed where tensor names and shapes are read as that type."""
    doubts = tuple(reason for reason in query.warnings if reason.code in OF_ANOTHER_TYPE)
    if doubts or not query.facts.architecture:
        open_one = Reason.of(Code.CLAIM_ARCHITECTURE_OPEN, because=doubts or (Reason.of(Code.ARCHITECTURE_UNKNOWN),))
        return Judged(claim, NOT_TESTABLE, (open_one,))
    return Judged(claim, CONFIRMED, (Reason.of(Code.CLAIM_ARCHITECTURE_FITS, architecture=claim.value),))


def by_status(judged: Sequence[Judged]) -> Mapping[str, int]:
    """How many claims have each status."""
    return {status: sum(one.status == status for one in judged) for status in STATUSES}
