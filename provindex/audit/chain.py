"""The license chain: the model, its ancestors and the roots above them, each with its license and where that is said.

A row is an ancestor `by` the weights (linked, by `claims.ancestors`), by a claim that no weight contradicts, or by the
catalogue, which knows what published models were made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from provindex.audit.claims import CONTRADICTED, INCOMPLETE, MOST_LINEAGE, SAME_WEIGHTS, Ancestor, Judged
from provindex.audit.licenses import Terms, terms_of
from provindex.catalogue.table import known, license_of
from provindex.common.claims import Stated
from provindex.common.reasons import Code, Reason
from provindex.fingerprint.record import Fingerprint
from provindex.index.collection import Index

By = Literal["", "weights", "claim", "catalogue"]
SHOWN = {"card": "card", "gguf": "gguf", "row": "index"}  # where the license of the model itself is said


@dataclass(frozen=True)
class Link:
    """A row of the chain.

    license: as it is said; None if nobody says one. source: "card", "gguf" or "index", else the page that the catalogue
    has it from, "" if nobody says one. role: "model", "ancestor" or "root". by: what makes it an ancestor. terms: what
    the license means by the table. same_weights: it is the model itself, under another name. basis: `by` in words.
    sure: more than the way in which other relatives lie says that it came first.
    """

    model_id: str
    license: str | None
    source: str
    role: str
    by: By = ""
    terms: Terms = ()
    relation: str = ""
    direction: str = ""
    same_weights: bool = False
    basis: Reason | None = None
    sure: bool = True


def own_link(query: Fingerprint, stated: Stated) -> Link:
    """The row of the model itself: the first license that its files state, else what its row or the catalogue says."""
    said = next((claim for claim in stated.claims if claim.kind == "license"), None)
    if said is not None:
        terms = terms_of(said.value, stated.license_name)
        shown = stated.license_name if stated.license_name and said.value.lower() == "other" else said.value
        return Link(query.model_id, shown, SHOWN.get(said.source, said.source), "model", terms=terms)
    name, page = license_of(query.model_id, query.license)
    source = page or ("index" if name else "")
    return Link(query.model_id, name, source, "model", terms=terms_of(name or ""))


def license_chain(
    query: Fingerprint, stated: Stated, judged: Sequence[Judged], above: Sequence[Ancestor], index: Index
) -> tuple[Link, ...]:
    """The chain: the model first, then ancestors by the weights, by claims and by the catalogue, each id once."""
    found: dict[str, Link] = {query.model_id.lower(): own_link(query, stated)}
    for one in above:
        row, pair = one.match.entry.row, one.match.pair
        relation = pair.relation or ""
        unsure = Code.CLAIM_LINKED_ONLY if one.presumed else Code.BY_RELATIVES
        code = Code.BY_WEIGHTS if one.sure else unsure
        basis = Reason.of(code, model=one.match.entry.label, relation=relation)
        direction = "unknown" if one.presumed else "ancestor"
        name, source = _license(row["model_id"], row["license"])
        link = Link(
            row["model_id"], name, source, "ancestor", "weights", terms_of(name or ""), relation, direction,
            relation in SAME_WEIGHTS, basis, one.sure,
        )  # fmt: skip
        found.setdefault(link.model_id.lower(), link)
    for claim in (one.claim for one in judged if one.status not in (CONTRADICTED, INCOMPLETE)):
        rows = index.spelled(claim.value)
        record = known(claim.value)
        model_id = rows[0].model_id if rows else record.model_id if record is not None else claim.value
        basis = Reason.of(Code.BY_CLAIM, model=model_id, source=claim.source)
        name, source = _license(model_id, rows[0].row["license"] if rows else None)
        link = Link(model_id, name, source, "ancestor", "claim", terms_of(name or ""), basis=basis)
        found.setdefault(link.model_id.lower(), link)
    for link in list(found.values()):
        for higher in _recorded(link, index):
            found.setdefault(higher.model_id.lower(), higher)
    return tuple(_with_root(link) for link in found.values())


def _recorded(below: Link, index: Index) -> list[Link]:
    """What the catalogue has above an ancestor, nearest first; nothing for the model itself, whose files speak."""
    found: list[Link] = []
    at = known(below.model_id) if below.role != "model" else None
    while at is not None and at.parent and len(found) < MOST_LINEAGE:
        child, page = at.model_id, at.parent_source
        at = known(at.parent)
        if at is None or any(link.model_id == at.model_id for link in found):
            break
        rows = index.spelled(at.model_id)
        name, source = _license(at.model_id, rows[0].row["license"] if rows else None)
        basis = Reason.of(Code.BY_CATALOGUE, model=at.model_id, child=child, source=page)
        found.append(Link(at.model_id, name, source, "ancestor", "catalogue", terms_of(name or ""), basis=basis))
    return found


def _license(model_id: str, stated: str | None) -> tuple[str | None, str]:
    name, page = license_of(model_id, stated)
    return name, page or ("index" if name else "")


def _with_root(link: Link) -> Link:
    """An ancestor that the catalogue has at the top of its family is a root."""
    record = known(link.model_id)
    top = record is not None and record.family == record.model_id and link.role == "ancestor"
    return replace(link, role="root") if top else link
