"""Answers for notebooks: a small table in HTML, and plain records that pandas takes. Both are made of documents.

The HTML has no script, no style and no address; every text in it is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from provindex.common.errors import printable
from provindex.report import text

Document = Mapping[str, Any]
Record = dict[str, str | int | float | bool | None]
MOST_ROWS = 20
MOST_LINES = 12
MATCH = (
    "model_id", "revision", "variant", "family", "license", "verdict", "relation", "direction", "certainty",
    "confidence", "log10_p", "e_value", "log10_e", "pipeline_score",
)  # fmt: skip
ROW = (
    "model_id", "revision", "variant", "family", "license", "license_source", "publisher", "architecture", "parameters",
    "mode", "made", "row_sha256",
)  # fmt: skip


def query_records(document: Document) -> list[Record]:
    """Matches, then the other candidates, a flat record each: `match` says which, `query` what was asked about."""
    both = [(True, m) for m in document["matches"]] + [(False, m) for m in document["candidates"]]
    asked = document["query"]["model_id"]
    return [{"query": asked, "match": is_match, **_match(m)} for is_match, m in both]


def compare_records(document: Document) -> list[Record]:
    """One record: both sides, the verdict, and the signals."""
    sides: Record = {side: document[side]["model_id"] for side in ("a", "b") if side in document}
    return [{**sides, **_judged(document)}]


def index_records(document: Document) -> list[Record]:
    """A flat record a row of an index."""
    return [{name: row[name] for name in ROW} for row in document["models"]]


def _match(m: Document) -> Record:
    claimed = ", ".join(parent["model_id"] for parent in m["claimed_parents"])
    return {**_judged(m), "claimed_parents": claimed, "rank": m["retrieval"]["rank"], "score": m["retrieval"]["score"]}


def _judged(m: Document) -> Record:
    """What was found of a pair. Columns of signals are called as the signals; None where there is no value."""
    found: Record = {name: m[name] for name in MATCH if name in m}
    return {**found, **{name: signal["value"] for name, signal in m["signals"].items()}}


def html(document: Document) -> str:
    """A document as a small table and the sentences that its text has."""
    rows = document.get("matches") or []
    parts = [_table(text.cells(rows[:MOST_ROWS]))] if rows else []
    sentences = text.sentences(dict(document))[:MOST_LINES]
    parts += [f"<p>{'<br>'.join(map(_shown, sentences))}</p>"] if sentences else []
    return f"<div>{''.join(parts)}</div>"


def _table(columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{_shown(name)}</th>" for name, _ in columns)
    rows = ("".join(f"<td>{_shown(cell)}</td>" for cell in row) for row in zip(*(c for _, c in columns), strict=True))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _shown(value: str) -> str:
    return escape(printable(value))
