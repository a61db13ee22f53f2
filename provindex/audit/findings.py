"""An audit: claims, license chain, and what follows from them. Findings are facts to look at, never legal advice.

| code | severity | found where |
|---|---|---|
| `base-model-contradicted` | error | a claimed base is indexed, was tested with power, and is unrelated |
| `base-model-incomplete` | error | every claim of a base was tested, and the weights have an ancestor that none names |
| `license-conflict` | error | a license above the model asks for what the model's license drops |
| `base-model-missing` | warning | the weights have an ancestor; no base is named, or what is named was not tested |
| `license-unknown` | warning | a license of the chain is not stated, or not in the table |
| `obligation-missing` | warning | a license text beside the weights, or a part of the name, that a license asks for |
| `not-testable` | note | a claim that could not be tested |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property

from provindex.audit.chain import Link, license_chain
from provindex.audit.claims import (
    CONFIRMED,
    CONTRADICTED,
    INCOMPLETE,
    NOT_TESTABLE,
    Ancestor,
    Judged,
    ancestors,
    incomplete,
    is_told_apart,
    judged_architecture,
    judged_bases,
    link_reason,
    unclaimed,
)
from provindex.audit.gate import Towers
from provindex.audit.licenses import Cell, Clash, License, asked_by, clashes, terms_of
from provindex.common.claims import BASES, Claim, Stated
from provindex.common.files import FileFact
from provindex.common.reasons import Code, Reason
from provindex.index.answer import QueryResult
from provindex.index.collection import Index

SEVERITIES: Mapping[str, str] = {  # of each code, the errors first
    "base-model-contradicted": "error",
    "base-model-incomplete": "error",
    "license-conflict": "error",
    "base-model-missing": "warning",
    "license-unknown": "warning",
    "obligation-missing": "warning",
    "not-testable": "note",
}
CLASHES = {
    "commercial": Code.CLASH_COMMERCIAL, "share_alike": Code.CLASH_SHARE_ALIKE,
    "restrictions": Code.CLASH_RESTRICTIONS, "derivatives": Code.CLASH_DERIVATIVES,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding. code: of SEVERITIES. model_ids: whom it is about, besides the model. clause_url: where the clause is
    that it rests on, "" for none.
    """

    code: str
    reason: Reason
    model_ids: tuple[str, ...] = ()
    clause_url: str = ""

    @property
    def severity(self) -> str:
        return SEVERITIES[self.code]


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    own_bytes: whether the model's own weights were read, not a row that stands for them. files: what was read, with
    digests where somebody computed them. day: of the audit.
    """

    result: QueryResult
    stated: Stated
    claims: tuple[Judged, ...]
    chain: tuple[Link, ...]
    findings: tuple[Finding, ...]
    files: tuple[FileFact, ...]
    day: date
    own_bytes: bool = True

    @cached_property
    def untested(self) -> bool:
        return any(one.status == NOT_TESTABLE for one in self.claims)

    def exit_status(self, *, strict: bool = False) -> int:
        """1 with an error; with `strict` 3 if a claim could not be tested; else 0."""
        if any(one.severity == "error" for one in self.findings):
            return 1
        return 3 if strict and self.untested else 0


def audit(
    result: QueryResult,
    stated: Stated,
    index: Index,
    day: date,
    *,
    towers: Towers = (),
    own_bytes: bool = True,
    files: Sequence[FileFact] = (),
) -> Audit:
    """What the answer to a query says of the claims of the model that was asked about.

    The answer must have compared the rows that are claimed: `api.query(..., also=claimed_rows(stated, index))`. towers:
    parts of the model that the query did not compare. day: of the audit. The rest is as in `Audit`.
    """
    bases = judged_bases(stated, result, index, day, towers)
    above = ancestors(result, bases)
    left = unclaimed(above, bases, result.query, index)
    hidden = _hidden(bases, left)
    chain = license_chain(result.query, stated, bases, above, index)
    conflicts = list(_conflicts(chain))
    reason = hidden[0].reason if hidden and hidden[0].code == "base-model-incomplete" else None
    others = (_other(claim, result, stated, chain) for claim in stated.claims if claim.kind not in BASES)
    claims = (*incomplete(bases, reason), *others)
    found = [
        *_contradicted(bases), *hidden, *conflicts, *_unknown(chain), *_missing(chain, stated),
        *(_not_tested(one) for one in claims if one.status == NOT_TESTABLE),
    ]  # fmt: skip
    order = list(SEVERITIES)
    found = sorted(dict.fromkeys(found), key=lambda one: order.index(one.code))
    return Audit(result, stated, claims, chain, tuple(found), tuple(files), day, own_bytes)


def _contradicted(bases: Sequence[Judged]) -> Iterator[Finding]:
    """Claims that the weights refute, each model once, with all who claim it."""
    for status, code, name in (
        (CONTRADICTED, Code.BASE_CONTRADICTED, "base-model-contradicted"),
        (INCOMPLETE, Code.BASE_RELATIVE, "base-model-incomplete"),
    ):
        by_model: dict[str, list[Judged]] = {}
        for one in bases:
            if one.status == status:
                by_model.setdefault(one.claim.value, []).append(one)
        for model, said in by_model.items():
            who = ", ".join(one.claim.source for one in said)
            yield Finding(name, Reason.of(code, because=said[0].reasons, model=model, source=who), (model,))


def _hidden(bases: Sequence[Judged], left: Sequence[Ancestor]) -> list[Finding]:
    """The ancestors that are not claimed, as one finding: an error only where every claim could be tested and the
    weights say that they came first.
    """
    if not left:
        return []
    certain = [one for one in left if not one.presumed and is_told_apart(one.match)]
    tested = bool(bases) and all(one.status != NOT_TESTABLE for one in bases)
    shown = certain if certain and tested else list(left)
    ids = tuple(one.match.entry.model_id for one in shown)
    because = [link_reason(one.match, one.match.entry.label) for one in shown]
    named = ", ".join(ids)
    if not bases:
        return [Finding("base-model-missing", Reason.of(Code.BASE_UNNAMED, because=because), ids)]
    if certain and tested:
        return [Finding("base-model-incomplete", Reason.of(Code.BASE_UNCLAIMED, because=because, models=named), ids)]
    named_ones = (one for one in bases if tested or one.status == NOT_TESTABLE)
    claimed = ", ".join(dict.fromkeys(one.claim.value for one in named_ones))
    code = Code.BASE_UNCLAIMED_OPEN if tested else Code.BASE_UNCLAIMED_UNTESTED
    reason = Reason.of(code, because=because, models=named, claimed=claimed)
    return [Finding("base-model-missing", reason, ids)]


def _conflicts(chain: Sequence[Link]) -> Iterator[Finding]:
    """Licenses above the model that ask for what its own drops."""
    own, *above = chain
    for link in above:
        for clash in clashes(link.terms, own.terms, same_weights=link.same_weights) if link.sure else ():
            yield Finding("license-conflict", _clash(clash, link), (link.model_id,), clash.url)


def _clash(clash: Clash, link: Link) -> Reason:
    cell = clash.above.cells[clash.cell]
    because = () if link.basis is None else (link.basis,)
    code = Code.CLASH_LIMITED if cell.value == "limited" else CLASHES[clash.cell]
    return Reason.of(
        code, because=because, above=clash.above.name, below=clash.below.name, model=link.model_id,
        where=_where(cell),
    )  # fmt: skip


def _where(cell: Cell) -> str:
    return f" (clause {cell.clause})" if cell.clause else ""


def _unknown(chain: Sequence[Link]) -> Iterator[Finding]:
    for link in chain:
        if link.terms:
            continue
        if link.license and link.license.lower() != "other":
            reason = Reason.of(Code.LICENSE_NOT_IN_TABLE, model=link.model_id, license=link.license)
        else:
            reason = Reason.of(Code.LICENSE_NOT_STATED, model=link.model_id)
        yield Finding("license-unknown", reason, (link.model_id,))


def _missing(chain: Sequence[Link], stated: Stated) -> Iterator[Finding]:
    """What licenses above the model ask of its files and its name; one finding a license. Where nobody knows which
    files there are, nothing is said of them.
    """
    asking: dict[tuple[str, str], tuple[License, list[str]]] = {}
    for link in chain[1:]:  # a name is asked of what is made of a model, not of its copy
        for cell in ("notice",) if link.same_weights else ("notice", "naming"):
            for one in asked_by(link.terms, cell):
                asking.setdefault((cell, one.id), (one, []))[1].append(link.model_id)
    own = chain[0].model_id.rpartition("/")[2]
    for (cell, _), (one, ids) in asking.items():
        asked = one.cells[cell]
        models = ", ".join(ids)
        if cell == "notice" and stated.license_files == ():
            reason = Reason.of(Code.TEXT_MISSING, license=one.name, models=models, where=_where(asked))
            yield Finding("obligation-missing", reason, tuple(ids), asked.url)
        if cell == "naming" and not any(_begins(name, str(asked.value)) for name in (own, *stated.names)):
            reason = Reason.of(
                Code.NAME_LACKS, name=own, naming=str(asked.value), license=one.name, models=models,
                where=_where(asked),
            )  # fmt: skip
            yield Finding("obligation-missing", reason, tuple(ids), asked.url)


def _begins(name: str, wanted: str) -> bool:
    """Whether a name begins with what a license asks for: case, and what stands between words, do not count."""
    plain, asked = ("".join(c for c in text.lower() if c.isalnum() or c == ".") for text in (name, wanted))
    return plain.startswith(asked)


def _other(claim: Claim, result: QueryResult, stated: Stated, chain: Sequence[Link]) -> Judged:
    if claim.kind == "architecture":
        return judged_architecture(claim, result.query)
    return _license(claim, stated, chain)


def _license(claim: Claim, stated: Stated, chain: Sequence[Link]) -> Judged:
    """The claim of a license, held against the licenses above the model."""
    own, *above = chain
    terms = terms_of(claim.value, stated.license_name)
    against = [
        (link.sure, _clash(clash, link))
        for link in above
        for clash in clashes(link.terms, terms, same_weights=link.same_weights)
    ]
    if any(sure for sure, _ in against):
        return Judged(claim, CONTRADICTED, tuple(reason for sure, reason in against if sure))
    if against:
        reason = Reason.of(Code.CLAIM_LICENSE_OPEN, because=[reason for _, reason in against])
        return Judged(claim, NOT_TESTABLE, (reason,), Reason.of(Code.NEXT_LICENSE, model=above[0].model_id))
    if not above:
        return Judged(claim, NOT_TESTABLE, (Reason.of(Code.CLAIM_LICENSE_ALONE),))
    open_ones = list(_unknown((replace(own, terms=terms), *above)))
    if open_ones:
        reason = Reason.of(Code.CLAIM_LICENSE_OPEN, because=[one.reason for one in open_ones])
        return Judged(claim, NOT_TESTABLE, (reason,), Reason.of(Code.NEXT_LICENSE, model=open_ones[0].model_ids[0]))
    fits = Reason.of(Code.CLAIM_LICENSE_FITS, models=", ".join(link.model_id for link in above))
    return Judged(claim, CONFIRMED, (fits,))


def _not_tested(one: Judged) -> Finding:
    claim = one.claim
    reason = Reason.of(
        Code.CLAIM_UNTESTED, because=one.reasons, kind=claim.kind.replace("_", " "), value=claim.value,
        source=claim.source,
    )  # fmt: skip
    return Finding("not-testable", reason, (claim.value,) if claim.kind in BASES else ())
