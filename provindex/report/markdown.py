"""Documents as Markdown (GitHub's), to attach to a ticket or a pull request. What strangers wrote is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from provindex.common.errors import printable
from provindex.report import audit_text, facts, text

Document = dict[str, Any]
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|!~&$])")
_PAGE = re.compile(r"https://[A-Za-z0-9._~/?=&%#@:+-]+")
_TICKS = re.compile(r"`+")
LIST = re.compile(r"^(\d+)([.)])|^([-+=])")  # what would begin a list or a heading at the beginning of a line
TITLES = {
    "audit": "Audit of {model}", "query": "Ancestors of {model}", "compare": "{model} against {other}",
    "fingerprint": "Fingerprint of {model}", "push": "Contribution of {model}", "index": "Index {index}",
}  # fmt: skip


def render(document: Document) -> str:
    """The Markdown of a document of any kind."""
    kind = facts.kind_of(document)
    body = {"audit": _audit, "query": _query, "compare": _compare}.get(kind, _plain)(document)
    rests = [f"- {escaped(name)}: {escaped(value)}" for name, value in facts.basis(document).items()]
    lines = [f"# {escaped(_title(kind, document))}", "", *body, "## What this rests on", "", *rests]
    if document.get("note"):
        lines += ["", f"*{escaped(document['note'])}*"]
    return "\n".join(lines) + "\n"


def escaped(value: Any) -> str:
    """A text in one line of Markdown that shows it as it is."""
    said = _SPECIAL.sub(r"\\\1", printable(str(value)).replace("\n", " "))
    said = said.replace("://", ":\\//").replace("www.", "www\\.").replace("@", "\\@")
    return LIST.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", said)


def _title(kind: str, document: Document) -> str:
    named = [facts.label(model) for model in facts.models_of(document)[:2]] + ["", ""]
    index = (document.get("index") or {"id": ""})["id"]
    return TITLES[kind].format(model=named[0], other=named[1], index=index)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; the cells are Markdown already."""
    return [
        f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), "",
    ]  # fmt: skip


def _page(url: str | None) -> str:
    """A link if it is a plain address, else the text."""
    return f"<{url}>" if url and _PAGE.fullmatch(url) else escaped(url or "")


def _audit(d: Document) -> list[str]:
    lines = [f"**{escaped(audit_text.verdict(d))}**", ""]
    if d["findings"]:
        head = ("Severity", "Code", "Finding", "Clause")
        rows = [(f["severity"], f["code"], escaped(f["text"]), _page(f["clause_url"])) for f in d["findings"]]
        lines += ["## Findings", "", *_table(head, rows)]
    if d["claims"]:
        said = [
            (
                escaped(c["value"]), c["kind"].replace("_", " "), escaped(c["source"]), c["status"].replace("_", " "),
                escaped("; ".join(c["reasons"])), escaped(c["next_step"] or ""),
            )
            for c in d["claims"]
        ]  # fmt: skip
        lines += ["## Claims", "", *_table(("Claim", "Kind", "Said by", "Status", "Why", "Next step"), said)]
    chain = [
        (
            escaped(r["model_id"]), r["role"], r["by"] or "", escaped(r["license"] or "not known"), _page(r["source"]),
        )
        for r in d["license_chain"]
    ]  # fmt: skip
    lines += ["## License chain", "", *_table(("Model", "Role", "By", "License", "Said by"), chain)]
    return [*lines, *_links(d), *_left_out(d)]


def _query(d: Document) -> list[str]:
    lines = [f"**{escaped(sentence)}**" for sentence in text.headline(d)[:1]] or [f"**Status: {d['status']}.**"]
    return [*lines, "", *_links(d), *_facts(d), *_left_out(d)]


def _compare(d: Document) -> list[str]:
    lines = [f"**Verdict: {d['verdict']}.** {escaped('; '.join(d['reasons']))}".rstrip(), "", *_links(d), *_facts(d)]
    rows = [
        (escaped(name), *(_number(test.get(key)) for key in ("value", "chance", "n", "log10_p")))
        for name, test in d["evidence"].items() if test["value"] is not None
    ]  # fmt: skip
    if rows:
        lines += ["## Evidence", "", *_table(("Test", "Value", "Chance", "n", "log10 p"), rows)]
    rows = [
        (escaped(name), _number(signal["value"]), _number((signal["chance"] or {}).get("p999")), _number(signal["n"]))
        for name, signal in d["signals"].items() if signal["value"] is not None
    ]  # fmt: skip
    if rows:
        lines += ["## Signals", "", *_table(("Signal", "Value", "Chance (99.9 %)", "n"), rows)]
    return [*lines, *_left_out(d)]


def _links(d: Document) -> list[str]:
    rows = [
        (
            escaped(facts.label(link)), escaped(link["relation"] or ""), escaped(link["direction"] or ""),
            _number(link["log10_e"]), _number(link["confidence"]), escaped(link["license"] or "not known"),
        )
        for link in facts.links_of(d)
    ]  # fmt: skip
    head = ("Model", "Relation", "Role", "log10 E", "Confidence", "License")
    return ["## Linked models", "", *_table(head, rows)] if rows else []


def _facts(d: Document) -> list[str]:
    """What a gate makes of the answer, and what else was found besides links and files that were left out."""
    left = {one["code"] for one in d.get("left_out", ())}
    shown = [fact for fact in facts.facts_of(d) if fact.rule != "linked" and fact.rule not in left]
    lines = [f"- {fact.level}: {escaped(fact.rule)}: {escaped(fact.text)}" for fact in shown]
    return ["## Gate", "", *lines, ""] if lines else []


def _left_out(d: Document) -> list[str]:
    lines = [f"- {escaped(left['what'])}: {escaped(left['text'])}" for left in d.get("left_out", ())]
    return ["## Left out", "", *lines, ""] if lines else []


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _plain(d: Document) -> list[str]:
    """A document that is a listing, as text between fences that nothing in it closes."""
    body = text.render(d)
    fence = "`" * (max((len(run) for run in _TICKS.findall(body)), default=0) + 3)
    return [fence + "text", body.rstrip("\n"), fence, ""]
