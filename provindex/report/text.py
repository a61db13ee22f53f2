"""Documents as text for a terminal: the answer only, fitted to its width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Document = dict[str, Any]

SIGNALS = ("WVC", "EAS", "LEP", "NLF", "END", "VOA", "TFV", "MFI")
PLAIN_WIDTH = 200  # when the output is not a terminal


def render(document: Document, *, width: int = PLAIN_WIDTH, color: bool = False) -> str:
    """The text of a document of any kind. width: columns to fit tables into. color: bold headings and verdicts."""
    kind = document["schema"].split("/")[0].removeprefix("provindex.")
    renderers = {"query": _query, "compare": _compare, "fingerprint": _fingerprint, "index": _index}
    return "\n".join(renderers[kind](document, width, color)) + "\n"


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text


# --- query ---


def _query(d: Document, width: int, color: bool) -> list[str]:
    lines: list[str] = []
    if d["matches"]:
        lines += [*_table(_match_columns(d["matches"], width), width, color), ""]
    lines += [_bold(line, color and i == 0) for i, line in enumerate(_headline(d))]
    lines += [_family(f) for f in d["families"]]
    return lines + _wrapped(_closing(d), width)


def _headline(d: Document) -> list[str]:
    """What the matches say, one sentence each for ancestors, copies and relatives."""
    query = d["query"]
    ancestors = [m for m in d["matches"] if m["direction"] == "ancestor"]
    same = [m for m in d["matches"] if m["relation"] == "identical"]
    lines = [f"Identical weights: {_label(m)}." for m in same[:1]]
    if ancestors:
        dressed = ancestors[0]["model_id"] == query["model_id"]
        verb = "The same model in another dress: made from" if dressed else "Descends from"
        lines.append(f"{verb} {_label(ancestors[0])} ({ancestors[0]['relation']}).")
    if not lines and d["matches"]:
        best = d["matches"][0]
        if best["direction"] == "descendant":
            lines.append(f"No ancestor in this index, but a descendant: {_label(best)} ({best['relation']}).")
        else:
            lines.append(
                f"Shares weights with {_label(best)} ({best['relation']}); the weights do not say which came first."
            )
    return lines


def _label(m: Document) -> str:
    return f"{m['model_id']} [{m['variant']}]" if m["variant"] else str(m["model_id"])


def _family(f: Document) -> str:
    return f"Family: {f['family']} ({f['matches']} of its {f['models']} model{'s' * (f['models'] != 1)} in this index matched)."


def _closing(d: Document) -> str:
    """How many candidates were looked at, and what the next one is."""
    total = len(d["matches"]) + len(d["candidates"])
    untested = [c for c in d["candidates"] if c["verdict"] == "inconclusive"]
    tested = total - len(untested)
    models = d["index"]["models"]
    if d["status"] == "inconclusive":
        reasons = dict.fromkeys(reason for c in untested for reason in c["reasons"])
        listed = "; ".join(list(reasons)[:4]) or "the index has nothing to compare with"
        return f"Inconclusive: none of {total} candidates could be tested. {listed}."
    could_not = f" {len(untested)} of {total} could not be tested: {_why(untested)}." if untested else ""
    if d["status"] == "none":
        return (
            f"No ancestor in this index: {tested} candidate{'s' * (tested != 1)} re-verified, none above chance. Trained from "
            f"scratch, or its base is not among the {models:,} models indexed.{could_not}"
        )
    unrelated = [c for c in d["candidates"] if c["verdict"] == "unrelated"]
    following = f"; the next candidate, {_label(unrelated[0])}, is at chance level" if unrelated else ""
    matched = f"{len(d['matches'])} match{'es' * (len(d['matches']) != 1)} of {total} candidates"
    return f"{matched}{following}.{could_not}"


def _why(untested: Sequence[Document]) -> str:
    """Reasons without their numbers, each once."""
    return (
        "; ".join(dict.fromkeys(reason.split(" (")[0] for c in untested for reason in c["reasons"]))
        or "no reason given"
    )


def _match_columns(matches: Sequence[Document], width: int) -> list[tuple[str, list[str], int, bool]]:
    """(heading, cells, priority, right-aligned): columns of the lowest priority number survive a narrow terminal."""
    columns = [
        ("MODEL", [_label(m) for m in matches], 0, False),
        ("RELATION", [m["relation"] or "-" for m in matches], 1, False),
        ("DIRECTION", [m["direction"] or "-" for m in matches], 1, False),
        ("E-VALUE", [_e_value(m) for m in matches], 1, True),
    ]
    for rank, name in enumerate(SIGNALS):
        columns.append((name, [_number(m["signals"][name]["value"]) for m in matches], 2 + rank + (rank > 1), True))
    columns.append(("LICENSE", [m["license"] or "-" for m in matches], 4, False))
    return columns


def _e_value(m: Document) -> str:
    if m["log10_e"] is None:
        return "-"
    if m["log10_e"] < -300:
        return "<1e-300"
    return f"{10 ** m['log10_e']:.0e}" if m["log10_e"] < 0 else f"{10 ** m['log10_e']:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(columns: Sequence[tuple[str, list[str], int, bool]], width: int, color: bool) -> list[str]:
    """A table of the columns that fit, the first one cut if even the most needed do not."""
    kept = list(columns)
    while len(kept) > 1 and sum(_wide(c) + 2 for c in kept) > width:
        worst = max(kept, key=lambda c: c[2])
        if worst[2] <= 1:
            break
        kept.remove(worst)
    room = max(16, width - sum(_wide(c) + 2 for c in kept[1:]) - 2)
    heading, cells, priority, right = kept[0]
    kept[0] = (heading, [_cut(cell, room) for cell in cells], priority, right)
    lines = []
    for number in range(-1, len(columns[0][1])):
        texts = [(c[0] if number < 0 else c[1][number]) for c in kept]
        padded = [t.rjust(_wide(c)) if c[3] else t.ljust(_wide(c)) for t, c in zip(texts, kept, strict=True)]
        line = ("  " + "  ".join(padded)).rstrip()
        lines.append(_bold(line, color and number < 0))
    return lines


def _wide(column: tuple[str, list[str], int, bool]) -> int:
    return max(len(column[0]), *(len(cell) for cell in column[1]))


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width=width, break_long_words=False, break_on_hyphens=False)


# --- compare ---


def _compare(d: Document, width: int, color: bool) -> list[str]:
    signals = [
        (name, _number(s["value"]), "-", str(s["n"])) if s["value"] is not None else (name, "absent", "", s["reason"])
        for name, s in d["signals"].items()
    ]
    evidence = [
        (name, f"{e['value']:.3f}", f"{e['chance']:.3f}", f"{e['n']}", f"{e['log10_p']:.1f}")
        if e["value"] is not None
        else (name, "absent", "", e["reason"], "")
        for name, e in d["evidence"].items()
    ]
    lines = [*_rows([("EVIDENCE", "VALUE", "CHANCE", "N", "LOG10 P"), *evidence], width, color), ""]
    lines += [*_rows([("SIGNAL", "VALUE", "CHANCE", "N"), *signals], width, color), ""]
    for run in d["layer_map"]:
        lines.append(
            f"{run['stack']} layers {_span(run['from'])} of A are layers {_span(run['to'])} of B (log10 p {run['log10_p']:.1f})"
        )
    lines += [""] if d["layer_map"] else []
    score = d["pipeline_score"]
    value = "absent" if score["value"] is None else f"{score['value']:.4f}"
    lines.append(f"Peer-compatible pipeline score: {value} ({score['decision']}); it decides nothing.")
    head, *rest = _verdict(d)
    return [*lines, _bold(head, color), *(line for text in rest for line in _wrapped(text, width))]


def _rows(rows: Sequence[tuple[str, ...]], width: int, color: bool) -> list[str]:
    """Aligned columns; a reason in place of numbers runs on to the end of the line, and is wrapped under itself."""
    plain = [r for r in rows if r[1] != "absent"]
    first = max(len(r[0]) for r in rows)
    widths = [max([len(r[i]) for r in plain] + [6]) for i in range(1, len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        start = "  " + row[0].ljust(first)
        if row[1] == "absent":
            wrapped = _wrapped("absent: " + row[3], max(30, width - first - 4))
            lines += [f"{start}  {wrapped[0]}", *(" " * (first + 4) + more for more in wrapped[1:])]
            continue
        line = start + "".join("  " + cell.rjust(w) for cell, w in zip(row[1:], widths, strict=True))
        lines.append(_bold(line, color and number == 0))
    return lines


def _span(ends: Sequence[int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def _verdict(d: Document) -> list[str]:
    a, b = _label(d["a"]), _label(d["b"])
    if d["verdict"] == "inconclusive":
        return [f"Inconclusive: {a} and {b} could not be tested.", *(f"  {reason}" for reason in d["reasons"])]
    if d["verdict"] == "unrelated":
        aligned = d["evidence"]["hidden_alignment"]
        smallest = aligned.get("smallest_cosine")
        seen = f" A cosine of {smallest:.2f} between matched hidden units would have been seen." if smallest else ""
        return [f"Unrelated: no evidence that {a} and {b} share weights (log10 p {d['log10_p']:.1f}).{seen}"]
    said = {
        "ancestor": f"{b} descends from {a}",
        "descendant": f"{a} descends from {b}",
    }.get(d["direction"], f"{a} and {b} share weights")
    direction = "" if d["direction"] in ("ancestor", "descendant") else "; the weights do not say which came first"
    if d["relation"] == "identical":
        return [f"Linked: {a} and {b} have identical weights (log10 p {d['log10_p']:.1f})."]
    return [f"Linked: {said} ({d['relation']}, log10 p {d['log10_p']:.1f}){direction}."]


# --- fingerprint and index ---


def _fingerprint(d: Document, width: int, color: bool) -> list[str]:
    m = d["model"]
    lines = [
        _bold(
            f"{m['model_id']}: {m['architecture']}, {m['parameters']:,} parameters, {m['precision'] or m['mode']}",
            color,
        ),
        f"content  {m['content_sha256'] or 'not hashed in sampled mode'}",
        f"row      {d['row_sha256']}",
        f"version  {d['fingerprint_version']}, {m['mode']}",
        f"read     {m['bytes_read']:,} of {m['bytes_total']:,} bytes",
    ]
    lines += [f"absent   {name}: {reason}" for name, reason in d["absences"].items()]
    return lines + ([f"written  {d['output']}"] if d["output"] else [])


def _index(d: Document, width: int, color: bool) -> list[str]:
    info = d["index"]
    lines = [
        _bold(f"{info['id']}@{info['revision']}: {info['models']:,} models, {len(d['families']):,} families", color),
        f"built {info['built'] or 'not yet saved'}, fingerprint version {info['fingerprint_version']}, {d['bytes'] / 1e6:.1f} MB",
    ]
    if "added" in d:
        lines += [f"added {name}" for name in d["added"]] or ["nothing to add: every model is already in the index"]
        return lines
    if "problems" in d:
        return lines + (
            [f"damaged: {p['where']}: {p['what']}" for p in d["problems"]] or ["every digest, row and vector is right"]
        )
    rows = d["models"]
    columns = [
        ("MODEL", [_label(m) for m in rows], 0, False),
        ("FAMILY", [m["family"] for m in rows], 1, False),
        ("ARCHITECTURE", [m["architecture"] for m in rows], 2, False),
        ("PARAMETERS", [f"{m['parameters']:,}" for m in rows], 3, True),
        ("LICENSE", [m["license"] or "-" for m in rows], 1, False),
    ]
    return [*lines, "", *_table(columns, width, color)] if rows else lines
