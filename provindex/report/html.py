"""Documents as one HTML page: no network, no script, light and dark, for a screen of any width and for paper.

What strangers wrote is escaped, and the page's own policy forbids that anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from provindex.common.errors import printable
from provindex.report import audit_text, facts, pictures, text

Document = dict[str, Any]
PAGES = ("https://", "http://")
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ --ink:#1b1f24; --soft:#57606a; --page:#fff; --panel:#f6f8fa; --line:#d0d7de; --link:#0757b8;
  --error:#b3261e; --warning:#8a5a00; --note:#57606a; --good:#1a7f37; --band:#b6c3d1; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink:#e6edf3; --soft:#9aa5b1; --page:#0d1117; --panel:#161b22;
  --line:#30363d; --link:#78b2ff; --error:#ff8a80; --warning:#e3b341; --note:#9aa5b1; --good:#56d364;
  --band:#3d4b5c; }} }}
@media print {{ :root {{ --ink:#000; --soft:#444; --page:#fff; --panel:#fff; --line:#999; --link:#000; --error:#8c1d18;
  --warning:#6b4600; --note:#444; --good:#116329; --band:#ccc; }} section, figure, tr {{ break-inside:avoid; }} }}
* {{ box-sizing:border-box; }}
body {{ margin:0 auto; padding:1.5rem 1rem 3rem; max-width:60rem; background:var(--page); color:var(--ink);
  font:16px/1.5 system-ui, sans-serif; overflow-wrap:anywhere; }}
h1 {{ font-size:1.5rem; line-height:1.25; margin:0 0 .75rem; }}
h2 {{ font-size:1.1rem; margin:2rem 0 .5rem; }}
.verdict {{ font-size:1.15rem; padding:.75rem 1rem; background:var(--panel); border-left:.3rem solid var(--soft); }}
.scroll {{ overflow-x:auto; }}
table {{ border-collapse:collapse; width:100%; font-size:.92rem; }}
th, td {{ text-align:left; vertical-align:top; padding:.35rem .6rem; border-bottom:1px solid var(--line); }}
td {{ overflow-wrap:break-word; }} td a {{ overflow-wrap:anywhere; }}
th {{ color:var(--soft); font-weight:600; white-space:nowrap; }}
td.n {{ text-align:right; font-variant-numeric:tabular-nums; min-width:0; }}
.error {{ color:var(--error); font-weight:600; }} .warning {{ color:var(--warning); font-weight:600; }}
.note {{ color:var(--note); }} .good {{ color:var(--good); font-weight:600; }}
a {{ color:var(--link); }}
figure {{ margin:.5rem 0; }} figcaption {{ color:var(--soft); font-size:.9rem; }}
svg {{ max-width:100%; height:auto; }} svg text {{ fill:var(--ink); font:13px system-ui, sans-serif; }}
svg .soft {{ fill:var(--soft); }} svg .box {{ fill:var(--panel); stroke:var(--line); }} svg .own {{ stroke:var(--ink);
  stroke-width:2; }} svg .edge {{ stroke:var(--soft); fill:none; }} svg .band {{ fill:var(--band); }}
svg .dot {{ fill:var(--link); }} svg .head {{ fill:var(--soft); }} svg .map {{ fill:var(--link); fill-opacity:.25;
  stroke:var(--link); }}
dl {{ display:grid; grid-template-columns:max-content 1fr; gap:.2rem 1rem; font-size:.92rem; }}
dt {{ color:var(--soft); }} dd {{ margin:0; }}
pre {{ white-space:pre-wrap; background:var(--panel); padding:.75rem 1rem; }}
@media (max-width:34rem) {{ dl {{ grid-template-columns:1fr; }} }}
</style>
</head>
<body>
"""
LEVEL_CLASS = {"error": "error", "warning": "warning", "note": "note"}
STATUS_CLASS = {"confirmed": "good", "contradicted": "error", "incomplete": "error", "not_testable": "note"}
Cell = tuple[str, str]  # a class, and what is HTML already


def render(document: Document) -> str:
    """The page of a document of any kind."""
    kind = facts.kind_of(document)
    title = _title(kind, document)
    body = {"audit": _audit, "query": _query, "compare": _compare}.get(kind, _plain)(document)
    lines = [HEAD.format(title=shown(title)), f"<h1>{shown(title)}</h1>", *body, *_basis(document)]
    if document.get("note"):
        lines.append(f'<p class="note">{shown(document["note"])}</p>')
    return "\n".join([*lines, "</body>", "</html>", ""])


def shown(value: Any) -> str:
    """A text as HTML shows it, without what a terminal or a reader would take for something else."""
    return escape(printable(str(value)))


def _title(kind: str, document: Document) -> str:
    from provindex.report.markdown import TITLES

    named = [facts.label(model) for model in facts.models_of(document)[:2]] + ["", ""]
    index = (document.get("index") or {"id": ""})["id"]
    return TITLES[kind].format(model=named[0], other=named[1], index=index)


# --- the parts of a page ---


def _audit(d: Document) -> list[str]:
    claims = [
        (
            ("", shown(c["value"])), ("", shown(c["kind"].replace("_", " "))), ("", _page(c["source"])),
            (STATUS_CLASS[c["status"]], shown(c["status"].replace("_", " "))),
            ("", shown("; ".join(c["reasons"]))), ("", shown(c["next_step"] or "")),
        )
        for c in d["claims"]
    ]  # fmt: skip
    chain = [
        (
            ("", shown(r["model_id"])), ("", shown(r["role"])), ("", shown(r["license"] or "not known")),
            ("", _page(r["source"])),
        )
        for r in d["license_chain"]
    ]  # fmt: skip
    return [
        _verdict(audit_text.verdict(d), *(facts.linked(link) for link in facts.links_of(d)[:1])),
        *_found(d),
        *_table("Claims", ("Claim", "Kind", "Said by", "Status", "Why", "Next step"), claims),
        *_table("License chain", ("Model", "Role", "License", "Said by"), chain),
        *_evidence(d),
        *_left_out(d),
    ]


def _query(d: Document) -> list[str]:
    said = text.headline(d)[:3] or [f"Status: {d['status']}."]
    return [_verdict(*said), *_found(d), *_evidence(d), *_left_out(d)]


def _compare(d: Document) -> list[str]:
    said = f"Verdict: {d['verdict']}" + (f" ({d['relation']})" if d["relation"] else "")
    why = f"<p>{shown('; '.join(d['reasons']))}</p>" if d["reasons"] else ""
    tests = [
        (("", shown(name)), *(("n", _number(test.get(key))) for key in ("value", "chance", "n", "log10_p")))
        for name, test in d["evidence"].items() if test["value"] is not None
    ]  # fmt: skip
    measured = _table("Evidence", ("Test", "Value", "Chance", "n", "log10 p"), tests)
    if d["verdict"] == "linked":
        return [_verdict(said), why, *_found(d), *_evidence(d), *measured, *_left_out(d)]
    return [_verdict(said), why, *_found(d), *_signals(d, facts.label(d["b"])), *measured, *_left_out(d)]


def _verdict(*said: str) -> str:
    return f'<p class="verdict">{"<br>".join(map(shown, said))}</p>'


def _found(d: Document) -> list[str]:
    """Findings, and what a gate makes of the answer; links have a table of their own."""
    left = {one["code"] for one in d.get("left_out", ())}
    rows = [
        ((LEVEL_CLASS[f.level], shown(f.level)), ("", shown(f.rule)), ("", shown(f.text)), ("", _page(f.url)))
        for f in facts.facts_of(d) if f.rule != "linked" and f.rule not in left
    ]  # fmt: skip
    return _table("Findings", ("Severity", "Code", "Finding", "Clause"), rows)


def _evidence(d: Document) -> list[str]:
    """Linked models as a picture and a table; of the first one the layers and the signals."""
    links = facts.links_of(d)
    if not links:
        return []
    rows = [
        (
            ("", shown(facts.label(link))), ("", shown(link["relation"] or "")), ("", shown(link["direction"] or "")),
            ("n", _number(link["log10_e"])), ("n", _number(link["confidence"])),
            ("", shown(link["license"] or "not known")),
        )
        for link in links
    ]  # fmt: skip
    own = facts.label(facts.models_of(d)[0])
    head = ("Model", "Relation", "Role", "log10 E", "Confidence", "License")
    caption = "Arrows lead from an ancestor to what descends from it; without one, which came first is open."
    return [
        *_figure("Family", pictures.family(own, links), caption),
        *_table("Linked models", head, rows),
        *_layers(own, links[0]),
        *_signals(links[0], facts.label(links[0])),
    ]


def _layers(own: str, link: Document) -> list[str]:
    if not link["layer_map"]:
        return []
    caption = f"Layers of {own} (left) that correspond to layers of {facts.label(link)} (right)."
    return _figure("Layers", pictures.layers(link["layer_map"]), caption)


def _signals(pair: Document, other: str) -> list[str]:
    drawn = pictures.strips(pair["signals"])
    caption = (
        f"Signals of the pair with {other}. A bar reaches from the median of unrelated pairs to what all but 1 in "
        "1,000 of them stay below; the dot is this pair. Signals are context: they decide nothing."
    )
    return _figure("Signals against chance", drawn, caption) if drawn else []


def _left_out(d: Document) -> list[str]:
    rows = [(("", shown(left["what"])), ("", shown(left["text"]))) for left in d.get("left_out", ())]
    return _table("Left out", ("What", "Why"), rows)


def _basis(d: Document) -> list[str]:
    """How to get the same answer again."""
    said = [f"<dt>{shown(name)}</dt><dd>{shown(value)}</dd>" for name, value in facts.basis(d).items()]
    return ["<section>", "<h2>What this rests on</h2>", "<dl>", *said, "</dl>", "</section>"]


def _plain(d: Document) -> list[str]:
    return [f"<pre>{shown_lines(text.render(d))}</pre>"]


def shown_lines(body: str) -> str:
    """Lines of text as HTML."""
    return "\n".join(map(shown, body.rstrip("\n").split("\n")))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    if not rows:
        return []
    named = "".join(f"<th>{shown(name)}</th>" for name in head)
    lines = [
        "<tr>"
        + "".join(f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>" for kind, cell in row)
        + "</tr>"
        for row in rows
    ]
    table = [f"<table><thead><tr>{named}</tr></thead><tbody>", *lines, "</tbody></table>"]
    return ["<section>", f"<h2>{shown(title)}</h2>", '<div class="scroll">', *table, "</div>", "</section>"]


def _cell(cell: Cell) -> str:
    kind, said = cell
    return f'<td class="{kind}">{said}</td>' if kind else f"<td>{said}</td>"


def _figure(title: str, drawn: str, caption: str) -> list[str]:
    figure = ["<figure>", drawn, f"<figcaption>{shown(caption)}</figcaption>", "</figure>"]
    return ["<section>", f"<h2>{shown(title)}</h2>", *figure, "</section>"]


def _page(url: str | None) -> str:
    """A link for an address of the web, else the text."""
    said = shown(url or "")
    return f'<a href="{said}" rel="noreferrer">{said}</a>' if url and url.startswith(PAGES) else said


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
