"""An audit as text for a terminal: claims, license chain, findings, and what they rest on."""

from __future__ import annotations

from typing import Any

from provindex.common.errors import printable
from provindex.report import text as texts
from provindex.report.facts import basis, label, links_of

Document = dict[str, Any]
ORDER = ("error", "warning", "note")  # of severities
INDENT = "    "


def render(document: Document, *, width: int, color: bool) -> str:
    """The text of a document provindex.audit/1, in lines of at most `width`. color: bold headings."""
    return "\n".join(_audit(texts._printable(document), max(width, texts.MIN_WIDTH), color)) + "\n"


def _audit(d: Document, width: int, color: bool) -> list[str]:
    lines = texts._heading(verdict(d), width, color)
    lines += ["", *_claims(d, width, color), *_links(d, width, color), *_chain(d, width, color)]
    for finding in d["findings"]:
        lines += texts._wrapped(f"{finding['severity']}: {finding['code']}: {finding['text']}.", width)
        lines += [INDENT + finding["clause_url"]] if finding["clause_url"] else []
    ahead = dict.fromkeys(claim["next_step"] for claim in d["claims"] if claim["next_step"])
    after = [*(f"Next: {step}." for step in ahead), *texts._left_out(d), *texts._read(d["model"])]
    lines += [line for sentence in after for line in texts._wrapped(sentence, width)]
    return [*lines, rests_on(d, width).rstrip("\n"), d["note"]]


def rests_on(document: Document, width: int) -> str:
    """What an answer rests on, in lines of at most `width`: index, tool, digests, day."""
    rests = "; ".join(f"{name} {printable(value)}" for name, value in basis(document).items())
    return "\n".join(texts._wrapped(f"Rests on: {rests}.", width)) + "\n"


def verdict(d: Document) -> str:
    """What was found, in one line: how many findings of each severity, and how many claims were tested."""
    counts = [(sum(f["severity"] == one for f in d["findings"]), one) for one in ORDER]
    found = ", ".join(texts._plural(count, one) for count, one in counts if count) or "nothing found"
    tested = sum(claim["status"] != "not_testable" for claim in d["claims"])
    said = f"{tested} of {texts._plural(len(d['claims']), 'claim')} tested" if d["claims"] else "it claims nothing"
    return f"{texts._label(d['model'])}: {found}; {said}."


def _claims(d: Document, width: int, color: bool) -> list[str]:
    rows = d["claims"]
    if not rows:
        return []
    columns: list[texts.Column] = [
        ("CLAIM", [row["value"] for row in rows], 0, False),
        ("KIND", [row["kind"].replace("_", " ") for row in rows], 1, False),
        ("SAID BY", [row["source"] for row in rows], 3, False),
        ("STATUS", [row["status"].replace("_", " ") for row in rows], 0, False),
    ]
    lines = texts._table(columns, width, color)
    shown = [row for row in rows if row["status"] in ("confirmed", "incomplete") and row["reasons"]]
    for row in shown:
        lines += texts._wrapped(f"  {row['value']}: {row['reasons'][0]}.", width)
    return [*lines, ""]


def _links(d: Document, width: int, color: bool) -> list[str]:
    """The linked models: what the findings rest on."""
    rows = links_of(d)
    if not rows:
        return []
    columns: list[texts.Column] = [
        ("LINKED BY WEIGHTS", [label(row) for row in rows], 0, False),
        ("RELATION", [row["relation"] or "" for row in rows], 1, False),
        ("ROLE", [row["direction"] or "" for row in rows], 2, False),
        ("LOG10 E", [f"{row['log10_e']:.0f}" for row in rows], 4, True),
    ]
    return [*texts._table(columns, width, color), ""]


def _chain(d: Document, width: int, color: bool) -> list[str]:
    rows = d["license_chain"]
    columns: list[texts.Column] = [
        ("LICENSE CHAIN", [row["model_id"] for row in rows], 0, False),
        ("ROLE", [row["role"] for row in rows], 1, False),
        ("BY", [row["by"] or "" for row in rows], 3, False),
        ("LICENSE", [row["license"] or "not known" for row in rows], 0, False),
        ("SAID BY", [_said_by(row["source"]) for row in rows], 5, False),
    ]
    return [*texts._table(columns, width, color), ""]


def _said_by(source: str | None) -> str:
    """Who says a license; pages of the catalogue are in the other formats."""
    return "catalogue" if source and "://" in source else source or ""
