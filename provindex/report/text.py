"""Documents as text for a terminal: the answer only, fitted to its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from provindex.audit.gate import STATES
from provindex.common.errors import printable
from provindex.common.reasons import MAX_DEPTH, Code, Reason
from provindex.report.words import CERTAINTIES, ROLES, without_tests
from provindex.signals.table import SIGNALS

Document = dict[str, Any]
Column = tuple[str, list[str], int, bool]  # heading, cells, priority, right-aligned
NEEDED = 3  # columns of a higher priority number are left out where the terminal is too narrow

ORDER = {signal.name: signal.order for signal in SIGNALS}  # of the columns of signals
MIN_WIDTH = 60  # narrower than that the tables of `compare` say nothing
PLAIN_WIDTH = 200  # when the output is not a terminal
NOTHING_ELSE = "That is all: no weights that could be used as a model, no text, no paths, no host names."
NEAREST = 10  # candidates that are shown where none could be tested
NOTHING_ALIKE = (
    "No model of the catalogue looks like an ancestor. Next: `provindex compare` it with what it may be made of."
)
KINDS = 3  # reasons why candidates could not be tested that are given
NAMED = 3  # models of the catalogue that are named with their sizes
FETCHED = 8  # models that --fetch is advised for
MOST_ROWS = 100  # models that `index status` lists
UNRELATED = "unrelated pairs, 99.9 %"
EVIDENCE_HEAD = ("EVIDENCE", "VALUE", "CHANCE", "N", "LOG10 P")
SIGNAL_HEAD = ("SIGNAL", "VALUE", "CHANCE", "ABOVE", "N")


def render(document: Document, *, width: int = PLAIN_WIDTH, color: bool = False) -> str:
    """The text of a document of any kind. width: columns to fit into, 60 at least. color: bold headings."""
    kind = document["schema"].split("/")[0].removeprefix("provindex.")
    renderers = {
        "query": _query, "compare": _compare, "fingerprint": _fingerprint, "index": _index, "push": _push,
        "explain": _explain,
    }  # fmt: skip
    return "\n".join(renderers[kind](_printable(document), max(width, MIN_WIDTH), color)) + "\n"


def _printable(value: Any) -> Any:
    """A document whose texts are fit for a terminal: licenses, types and names come from files of strangers."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text


def _heading(text: str, width: int, color: bool) -> list[str]:
    return [_bold(line, color) for line in _wrapped(text, width)]


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}{ending * (count != 1)}"


# --- query ---


def cells(matches: Sequence[Document]) -> list[tuple[str, list[str]]]:
    """The columns of the default table: heading and cells."""
    return [(name, column) for name, column, _, _ in _match_columns(matches)]


def sentences(document: Document) -> list[str]:
    """What the text of a query or a comparison says besides its tables, not wrapped."""
    return _judged(document) if "verdict" in document else _said(document)


def _query(d: Document, width: int, color: bool) -> list[str]:
    lines: list[str] = []
    if d["matches"]:
        lines += [*_table(_match_columns(d["matches"]), width, color), ""]
        if "signals" in _besides(d):
            lines += [*_table(_signal_columns(d["matches"]), width, color), ""]
    first, *more = _said(d)
    lines += _heading(first, width, color)
    lines += [line for sentence in more for line in _wrapped(sentence, width)]
    return lines + _nearest(d, width, color)


def _said(d: Document) -> list[str]:
    own = [f"The index has these very weights as {d['own_row']['model_id']}; that row is left out."] if _copy(d) else []
    families = (_family(f, d["own_row"]) for f in d["families"])
    return [*own, *headline(d), *families, *_closing(d), *_left_out(d), *_gate(d), *_read(d["query"])]


def _left_out(d: Document) -> list[str]:
    """What was not read, or not compared, of the files of a model; the first three of each kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for left in d["left_out"]:
        kinds.setdefault((left.get("side", ""), left["text"]), []).append(left["what"])
    lines = []
    for (side, said), what in kinds.items():
        more = f" and {len(what) - 3} more" if len(what) > 3 else ""
        of = f" of {side.upper()}" if side else ""
        lines.append(f"Left out{of}: {', '.join(what[:3])}{more}: {said}.")
    return lines


def _gate(d: Document) -> list[str]:
    """What a policy made of the answer: how many models have each state, and which tests cleared them."""
    gate = d.get("gate")
    if gate is None:
        return []
    rows = {(m["model_id"], m["revision"], m["variant"]): m for one in gate["denied"] for m in one["models"]}
    lines = [
        f"Gate {gate['status']}: {_plural(len(gate['denied']), 'rule')}, {_plural(len(rows), 'model')} of the index."
    ]
    for state in STATES:
        of = sorted({_label(m) for m in rows.values() if m["state"] == state})
        if of:
            named = f"{', '.join(of[:NAMED])}{f' and {len(of) - NAMED} more' if len(of) > NAMED else ''}"
            by = _tests_of([m for m in rows.values() if m["state"] == state]) if state == "cleared" else ""
            lines.append(f"{state.replace('_', ' ').capitalize()}{by}: {named}.")
    lines += [f"Accepted: {', '.join(one['models'])} ({one['reason']})." for one in gate["ignored"] if _accepts(one)]
    lines += [f"Excluded: {one['text']}." for one in gate["excluded"]]
    return lines


def _accepts(one: Document) -> bool:
    return bool(one["holds"] and one["models"])


def _tests_of(rows: Sequence[Document]) -> str:
    """Which tests would have seen a copy among some rows that were cleared."""
    codes = (code for row in rows for code in _codes(row["reason_codes"]))
    found = {str(code["figures"]["test"]) for code in codes if code["code"] == Code.SEEN_NEURONS}
    return f" by {', '.join(sorted(found))}" if found else ""


def _codes(reasons: Sequence[Document]) -> Iterator[Document]:
    """Reasons, and those that they rest on."""
    for reason in reasons:
        yield reason
        yield from _codes(reason.get("because", []))


def headline(d: Document) -> list[str]:
    """What the matches say, one sentence each for ancestors, copies and relatives."""
    query = d["query"]
    ancestors = [m for m in d["matches"] if m["direction"] == "ancestor"]
    same = [m for m in d["matches"] if m["relation"] == "identical"]
    lines = [f"Identical weights{_so_far(m)}: {_label(m)}." for m in same[:1]]
    merged = [m for m in ancestors if m["relation"] == "merge"]
    if len(merged) > 1:
        lines.append(f"A merge of {' and '.join(_label(m) for m in merged)}.")
    elif ancestors:
        dressed = ancestors[0]["model_id"] == query["model_id"]
        verb = "The same model in another dress: made from" if dressed else "Descends from"
        lines.append(f"{verb} {_label(ancestors[0])} ({ancestors[0]['relation']}).")
    if not lines and d["matches"]:
        best = d["matches"][0]
        if best["direction"] == "descendant":
            lines.append(f"No ancestor in this index, but a descendant: {_label(best)} ({best['relation']}).")
        else:
            twins = "; separate training from one random start is not excluded" if _perhaps_twins(best) else ""
            lines.append(
                f"Shares weights with {_label(best)} ({best['relation']}{twins}); the weights do not say which came "
                "first."
            )
    if d["matches"] and d["matches"][0]["undone"]:
        lines.append(f"Undone to see it: {', '.join(d['matches'][0]['undone'])}.")
    return lines


def _perhaps_twins(m: Document) -> bool:
    """Whether the first thing to know of a pair is that it may share no more than its random start."""
    return bool(m["reason_codes"]) and m["reason_codes"][0]["code"] == Code.START_NOT_EXCLUDED


def _so_far(m: Document) -> str:
    """That identity was not seen in every element: then the reasons say what was not looked at."""
    return " in all that was compared" if m["reasons"] else ""


def _read(m: Document) -> list[str]:
    """How much of a model was read, if it was not all."""
    read, total = m["bytes_read"], m["bytes_total"]
    if read >= total:
        return []
    return [f"Of {_label(m)}, {read / 1e6:,.1f} of {total / 1e6:,.1f} MB were read ({m['mode']})."]


def _label(m: Document) -> str:
    return f"{m['model_id']} [{m['variant']}]" if m["variant"] else str(m["model_id"])


def _with_copies(m: Document) -> str:
    """Its label, and how many other rows of the same weights there are."""
    count = len(m["copies"])
    return f"{_label(m)} (and {_plural(count, 'copy') if count == 1 else f'{count:,} copies'})" if count else _label(m)


def _copy(d: Document) -> bool:
    """Whether the query is a copy of its row in the index, and not that row itself."""
    return bool(d["own_row"]) and not d["query"]["indexed"]


def _family(f: Document, own: Document | None) -> str:
    itself = "; the query is one more" if own and own["family"] == f["family"] else ""
    return (
        f"Family: {f['family']} ({f['matches']} of its {_plural(f['models'], 'model')} in this index matched{itself})."
    )


def _closing(d: Document) -> list[str]:
    """How many candidates were looked at, what the next one is, and what could not be tested."""
    total = len(d["candidates"]) + sum(f["matches"] for f in d["families"])
    untested = [c for c in d["candidates"] if c["verdict"] == "inconclusive"]
    tested = total - len(untested)
    could_not = _could_not(d, untested, total)
    plain = [f"{w['text']}." for w in d["warning_codes"] if w["code"] == Code.PLAIN_ORDER]
    if d["status"] == "inconclusive":
        if not total:
            return ["Not decided: the index has no other model to compare with.", *_uncompared(d)]
        return [_not_decided(d, total), *plain, *could_not, *_uncompared(d)]
    if d["status"] == "none":
        kind = "No other relative" if _copy(d) else "No ancestor"
        first = f"{kind} in this index: {_plural(tested, 'candidate')} re-verified, none above chance."
        if _copy(d):
            return [first, *plain, *could_not]
        among = f"the {_plural(d['index']['models'], 'model')} indexed"
        return [f"{first} Trained from scratch, or its base is not among {among}.", *plain, *could_not]
    return [_matched(d, total), *could_not, *_uncompared(d)]


def _not_decided(d: Document, total: int) -> str:
    """That an answer without a match clears nothing: how much could be tested, and what the index lacks."""
    c, query = d["coverage"], d["query"]
    said = f"Not decided: {c['tested']} of {_plural(total, 'model')} could be tested"
    said += (
        f", {c['tested_in_plain_order']} more for copies in plain order only." if c["tested_in_plain_order"] else "."
    )
    which = (
        "This index" if c["compared"] == c["models"] else f"What was nearest in this index ({c['compared']:,} models)"
    )
    kind = query["architecture"] or "model of that architecture"
    if not c["same_architecture"]:
        lack = f"{which} has no {kind}" + (" model" if query["architecture"] else "")
    elif not c["alike"]:
        lack = f"{which} has no model of its width that shares its depth, vocabulary or tokenizer"
    elif c["alike_tested"] < c["alike"]:
        lack = f"Of {c['alike']} that look like an ancestor, or are claimed as one, {c['alike_tested']} could be tested"
    elif c["same_width_not_compared"]:
        lack = f"{_plural(c['same_width_not_compared'], 'more model')} of its width were not compared (--candidates)"
    else:
        lack = "More models than these look like an ancestor"
    return f"{said} {lack}; it clears nothing."


def _uncompared(d: Document) -> list[str]:
    """Models that look like ancestors and were not compared, and how to compare them."""
    found, shallow = d["neighbours"], _shallow(d)
    if not found:
        if shallow:
            return [
                f"Next: run it again with --fetch {len(shallow)}, which reads more of {', '.join(shallow[:NAMED])}."
            ]
        return [] if d["matches"] or d["coverage"]["alike"] else [NOTHING_ALIKE]
    tried = {m["model_id"]: m["state"] for m in (d["fetched"] or {"models": []})["models"]}
    claimed = [n["model_id"] for n in found if n["claimed_by"]]
    named = [_described(n, tried.get(n["model_id"])) for n in found[:NAMED]]
    more = f", and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    says = [f"It claims to be made of {', '.join(claimed)}; not compared."] if claimed else []
    alike = f"Most alike in the catalogue, not compared: {', '.join(named)}{more}."
    left = [n for n in found if n["model_id"] not in tried]
    decided = any(m["direction"] == "ancestor" for m in d["matches"]) and not claimed
    if tried and d["fetched"]["over_budget"]:
        return [*says, alike, "Next: run it again with a larger --max-mb."]
    if decided or not left:
        return [*says, alike]
    count = min(len(left), FETCHED) + len(found) - len(left)
    return [*says, alike, f"Next: run it again with --fetch {count}, which reads a few MB of each from the Hub."]


def _shallow(d: Document) -> list[str]:
    """Models of an answer without a match of which only norms, or no whole layers, were read, and that stayed open."""
    candidates = d["candidates"] if not d["matches"] else []
    return [c["model_id"] for c in candidates if c["mode"] in ("norms", "sampled") and c["verdict"] == "inconclusive"]


def _described(n: Document, state: str | None) -> str:
    """A model of the catalogue that was not compared: what it looks like, and why --fetch could not have it."""
    facts = "; ".join(filter(None, (_look(n), f"not had: {state}" if state else "")))
    return f"{n['model_id']} ({facts})" if facts else str(n["model_id"])


def _look(n: Document) -> str:
    """Type, width and depth of a model of the catalogue, as far as they are known."""
    sizes = (f"width {n['hidden']:,}" if n["hidden"] else "", _plural(n["layers"], "layer") if n["layers"] else "")
    return ", ".join(filter(None, (n["architecture"] or "", *sizes)))


def _matched(d: Document, total: int) -> str:
    unrelated = [c for c in d["candidates"] if c["verdict"] == "unrelated"]
    following = f"; the next candidate, {_label(unrelated[0])}, is at chance level" if unrelated else ""
    count = sum(f["matches"] for f in d["families"])
    shown = f" ({len(d['matches'])} shown)" if len(d["matches"]) < count else ""
    return f"{_plural(count, 'match', 'es')} of {_plural(total, 'candidate')}{shown}{following}."


def _could_not(d: Document, untested: Sequence[Document], total: int) -> list[str]:
    """How many candidates could not be tested, and why, in a sentence; each of them, if that is asked for."""
    if not untested:
        return []
    reasons = [Reason.from_json(r, depth=-MAX_DEPTH) for c in untested for r in c["reason_codes"]]
    kinds = without_tests(reasons) or ["no reason given"]
    more = f", and {_plural(len(kinds) - KINDS, 'more reason')}" if len(kinds) > KINDS else ""
    listed = "untested" in _besides(d)
    hint = "" if listed else " (-v lists them)"
    lines = [f"{len(untested)} of {total} could not be tested{hint}: {'; '.join(kinds[:KINDS])}{more}."]
    return lines + [f"  {_label(c)}: {'; '.join(c['reasons'])}" for c in untested if listed]


def _besides(d: Document) -> Sequence[str]:
    """What is asked for besides the default."""
    return list(d["settings"].get("shown", ()))


def _nearest(d: Document, width: int, color: bool) -> list[str]:
    """The first candidates of a query that could test none; with their signals, if these are asked for."""
    shown = [c for c in d["candidates"][:NEAREST] if any(s["value"] is not None for s in c["signals"].values())]
    if d["status"] != "inconclusive" or not shown:
        return []
    said = "Nearest by what could be compared, which is no evidence of descent"
    if "signals" not in _besides(d):
        return ["", *_wrapped(f"{said} (--signals shows it): {', '.join(map(_label, shown[:NAMED]))}.", width)]
    return ["", *_wrapped(f"{said}:", width), *_table(_signal_columns(shown), width, color)]


def _match_columns(matches: Sequence[Document]) -> list[Column]:
    """What a reader wants to know of each match: what it is to the model, how certain that is, and what it claims."""
    return [
        ("MODEL", list(map(_with_copies, matches)), 0, False),
        ("RELATION", [m["relation"] or "-" for m in matches], 1, False),
        ("ROLE", list(map(_role, matches)), 1, False),
        ("CERTAINTY", list(map(_certainty, matches)), 2, False),
        ("E-VALUE", list(map(_e_value, matches)), 3, True),
        ("LICENSE", [m["license"] or "-" for m in matches], 4, False),
        ("CLAIMED PARENT (SOURCE)", list(map(_claimed, matches)), 5, False),
    ]


def _role(m: Document) -> str:
    """What a match is to the model that was asked about."""
    same = m["relation"] == "identical" and m["direction"] not in ("ancestor", "descendant")
    return ROLES.get("identical" if same else str(m["direction"]), "-")


def _certainty(m: Document) -> str:
    return CERTAINTIES[m["certainty"]][0] if m["certainty"] in CERTAINTIES else "-"


def _claimed(m: Document) -> str:
    """The first model that a match claims as its parent, and who says so: its own files, or the catalogue."""
    first = next(iter(m["claimed_parents"]), None)
    return f"{first['model_id']} ({'own files' if first['source'] == 'model' else 'catalogue'})" if first else "-"


def _signal_columns(matches: Sequence[Document]) -> list[Column]:
    """The eight signals of each match, and the level that 99.9 % of unrelated pairs like the first one stay below."""
    chance = matches[0]["signals"] if any(s.get("chance") for s in matches[0]["signals"].values()) else {}
    columns: list[Column] = [("SIGNALS", [*map(_with_copies, matches), *([UNRELATED] if chance else [])], 0, False)]
    names = sorted(matches[0]["signals"], key=lambda name: ORDER.get(name, 99))
    for rank, name in enumerate(names):
        last = [_number((chance[name].get("chance") or {}).get("p999"))] if chance else []
        columns.append((name, [*(_number(m["signals"][name]["value"]) for m in matches), *last], 2 + rank, True))
    return columns


def _e_value(m: Document) -> str:
    if m["log10_e"] is None:
        return "-"
    if m["log10_e"] < -300:
        return "<1e-300"
    return f"{10 ** m['log10_e']:.0e}" if m["log10_e"] < 0 else f"{10 ** m['log10_e']:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(columns: Sequence[Column], width: int, color: bool) -> list[str]:
    """A table of the columns that fit.

    Where not even the needed ones fit beside the first, each first cell gets a line of its own, above the others.
    """
    head, *others = columns
    stacked = _total([head, *(c for c in others if c[2] <= NEEDED)]) > width
    first = 2 if stacked else _wide(head)
    while len(others) > 1 and first + 2 + _total(others) > width:
        others.remove(max(others, key=lambda c: c[2]))
    lines = []
    for number in range(-1, len(head[1])):
        name, *texts = [(c[0] if number < 0 else c[1][number]) for c in (head, *others)]
        padded = [t.rjust(_wide(c)) if c[3] else t.ljust(_wide(c)) for t, c in zip(texts, others, strict=True)]
        above = _wrapped("  " + name, width) if stacked else []
        line = "  ".join(["  " + ("" if stacked else name).ljust(first), *padded]).rstrip()
        lines += [_bold(text, color and number < 0) for text in (*above, line)]
    return lines


def _total(columns: Sequence[Column]) -> int:
    return sum(_wide(c) + 2 for c in columns)


def _wide(column: Column) -> int:
    return max(len(column[0]), *(len(cell) for cell in column[1]))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width`; what is indented stays indented, a name is broken only if it is longer than a line."""
    import textwrap

    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, width=width, subsequent_indent=indent, break_on_hyphens=False)


# --- compare ---


def _compare(d: Document, width: int, color: bool) -> list[str]:
    lines = [*_rows([EVIDENCE_HEAD, *map(_evidence_row, d["evidence"].items())], width, color), ""]
    lines += _rows([SIGNAL_HEAD, *map(_signal_row, d["signals"].items())], width, color)
    lines += [*(line for note in _chance_notes(d) for line in _wrapped(f"  {note}", width)), ""]
    for run in d["layer_map"]:
        layers = "layer" if run["from"][0] == run["from"][1] else "layers"
        where = f"{run['stack']} {layers} {_span(run['from'])} of A: {layers} {_span(run['to'])} of B"
        lines += _wrapped(f"{where} (log10 p {run['log10_p']:.1f})", width)
    lines += [""] if d["layer_map"] else []
    score = d["pipeline_score"]
    value = "absent" if score is None else f"{score:.4f}"
    decision = d["pipeline"]["decision"]
    lines += _wrapped(f"Pipeline score: {value} ({decision}); peer-compatible, not decisive.", width)
    head, *rest = [*_verdict(d), *_left_out(d)]
    return [*lines, *_heading(head, width, color), *(line for text in rest for line in _wrapped(text, width))]


def _evidence_row(item: tuple[str, Document]) -> tuple[str, ...]:
    name, e = item
    if e["value"] is None:
        return (name, "absent", "", e["reason"], "")
    chance = _range(e["null"]) if e.get("null") else _number(e["chance"])
    p = "-" if e["log10_p"] is None else f"{e['log10_p'] + 0:.1f}".replace("-0.0", "0.0")
    return (name, f"{e['value']:.3f}", chance, f"{e['n']}", p)


def _signal_row(item: tuple[str, Document]) -> tuple[str, ...]:
    name, s = item
    if s["value"] is None:
        return (name, "absent", "", s["reason"])
    if s["chance"] is None:
        return (name, _number(s["value"]), "-", "-", str(s["n"]))
    above = {True: "yes", False: "no", None: "-"}[s["above_chance"]]
    return (name, _number(s["value"]), _range(s["chance"]), above, str(s["n"]))


def _range(chance: Document) -> str:
    """Median and 99.9th percentile; the 99th, marked, where there are too few pairs for that."""
    if chance["median"] is None:
        return "-"
    if chance["p999"] is not None:
        return f"{_number(chance['median'])}..{_number(chance['p999'])}"
    return f"{_number(chance['median'])}..{_number(chance['p99'])}{'*' if chance['p99'] is not None else ''}"


def _chance_notes(d: Document) -> list[str]:
    """What the chance columns are made of: one line for each kind of pairs, and why a level is missing."""
    values = [s for s in d["signals"].values() if s["value"] is not None]
    nulls = [s["chance"] for s in values if s["chance"]]
    nulls += [e["null"] for e in d["evidence"].values() if e["value"] is not None and e.get("null")]
    notes = [f"CHANCE -: {s['chance_reason']}" for s in values if "chance_reason" in s]
    pairs: dict[str, int] = {}
    for null in nulls:
        pairs[null["stratum"]] = max(pairs.get(null["stratum"], 0), null["n"])
    notes += [f"CHANCE: median..99.9 % of {count:,} unrelated pairs ({name})" for name, count in pairs.items() if count]
    starred = [f"*: 99 %, not 99.9 %: {null['reason']}" for null in nulls if null["p999"] is None and null["p99"]]
    missing = [f"CHANCE -: {null['reason']}" for null in nulls if null["p999"] is None and not null["p99"]]
    return list(dict.fromkeys([*notes, *starred, *missing]))


def _rows(rows: Sequence[tuple[str, ...]], width: int, color: bool) -> list[str]:
    """Aligned columns; a reason in place of numbers runs on to the end of the line, and is wrapped under itself."""
    plain = [r for r in rows if r[1] != "absent"]
    first = max(len(r[0]) for r in rows)
    widths = [max(len(r[i]) for r in plain) for i in range(1, len(rows[0]))]
    if 2 + first + sum(2 + max(w, 6) for w in widths) <= width:  # narrow columns are harder to read
        widths = [max(w, 6) for w in widths]
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
    return [*_judged(d), *_read(d["a"]), *_read(d["b"])]


def _judged(d: Document) -> list[str]:
    a, b = _label(d["a"]), _label(d["b"])
    if a == b:
        a, b = f"A ({a})", f"B ({b})"
    if d["verdict"] == "inconclusive":
        return [f"Inconclusive: {a} and {b} could not be tested.", *(f"  {reason}" for reason in d["reasons"])]
    if d["verdict"] == "unrelated":
        said = f"Unrelated: no evidence that {a} and {b} share weights{_p(d, ' (', ')')}."
        if d["relation"] == "shared-init":
            said = f"Unrelated: {a} and {b} share their random start only, and were trained apart (shared-init)."
        return [said, *(f"  {reason}" for reason in d["reasons"])]
    said = {
        "ancestor": f"{b} descends from {a}",
        "descendant": f"{a} descends from {b}",
    }.get(d["direction"], f"{a} and {b} share weights")
    direction = "" if d["direction"] in ("ancestor", "descendant") else "; the weights do not say which came first"
    more = [f"  undone to see it: {', '.join(d['undone'])}"] if d["undone"] else []
    more += [f"  direction: {reason}" for reason in d["direction_reasons"]]
    more += [f"  {reason}" for reason in d["reasons"]]
    if d["relation"] == "identical":
        return [f"Linked: {a} and {b} have identical weights{_so_far(d)}{_p(d, ' (', ')')}.", *more]
    twins = "; separate training from one random start is not excluded" if _perhaps_twins(d) else ""
    return [f"Linked: {said} ({d['relation']}{twins}{_p(d, ', ')}){direction}.", *more]


def _p(d: Document, before: str, after: str = "") -> str:
    return "" if d["log10_p"] is None else f"{before}log10 p {d['log10_p']:.1f}{after}"


# --- fingerprint and index ---


def _fingerprint(d: Document, width: int, color: bool) -> list[str]:
    m = d["model"]
    kind = ", ".join(filter(None, (m["architecture"], f"{m['parameters']:,} parameters", m["precision"])))
    facts = [
        ("content", m["content_sha256"] or f"not hashed in mode {m['mode']}"),
        ("row", d["row_sha256"]),
        ("version", f"{d['fingerprint_version']}, {m['mode']}"),
        ("read", f"{m['bytes_read']:,} of {m['bytes_total']:,} bytes"),
        *(("left out", said.removeprefix("Left out: ")) for said in _left_out(d)),
        *(("absent", f"{name}: {reason}") for name, reason in d["absences"].items()),
        *([("written", d["output"])] if d["output"] else []),
    ]
    lines = _heading(f"{_label(m)}: {kind}", width, color)
    for name, text in facts:
        first, *more = _wrapped(text, width - 9)
        lines += [f"{name:<9}{first}", *(" " * 9 + line for line in more)]
    return lines


def _index(d: Document, width: int, color: bool) -> list[str]:
    info = d["index"]
    families = len(d["families"])
    counts = f"{_plural(info['models'], 'model')}, {families:,} famil{'y' if families == 1 else 'ies'}"
    built = f"built {info['built']}{_age(info['built'])}" if info["built"] else "not yet saved"
    counts = _plural(info["models"], "model") if "listed" in d else counts  # counted in full below
    lines = _heading(f"{info['id']}@{info['revision'][:12]}: {counts}", width, color)
    said = [f"{built}, fingerprint version {info['fingerprint_version']}, {_amount(d['bytes'])}"]
    said += [line for origin in d.get("origins", ()) for line in _origin(origin)]
    if "listed" in d:
        said = [line for text in said for line in _wrapped(text, width)]
        return [*lines, *said, *_listed(d, width, color)]
    for name, told in (("added", _built), ("problems", _problems), ("pulled", _pulled)):
        if name in d:
            return lines + [line for text in said + told(d) for line in _wrapped(text, width)]
    rows = d["models"][:MOST_ROWS]
    columns: list[Column] = [
        ("MODEL", [_label(m) for m in rows], 0, False),
        ("PARAMETERS", [f"{m['parameters']:,}" if m["parameters"] else "-" for m in rows], 4, True),  # 0: imported
        ("ARCHITECTURE", [m["architecture"] for m in rows], 5, False),
        ("LICENSE", [m["license"] or "-" for m in rows], 2, False),
        ("FAMILY", [m["family"] for m in rows], 6, False),
    ]
    lines += [line for text in said for line in _wrapped(text, width)]
    more = len(d["models"]) - len(rows)
    rest = [f"... and {more:,} more; --json lists them all."] if more else []
    return [*lines, "", *_table(columns, width, color), *rest] if rows else lines


def _listed(d: Document, width: int, color: bool) -> list[str]:
    """Every row in a line, then how many there are. A family in brackets is another tool's: a brand and no lineage."""
    rows, counts = d["models"], d["listed"]
    columns: list[Column] = [
        ("MODEL", [_label(m) for m in rows], 0, False),
        ("FAMILY", [_lineage(m) or _brand(m) for m in rows], 2, False),
        ("PUBLISHER", [m["publisher"] or "-" for m in rows], 3, False),
        ("LICENSE", [m["license"] or "-" for m in rows], 4, False),
        ("MODE", [m["mode"] for m in rows], 5, False),
        ("MADE", [m["made"] or "-" for m in rows], 6, False),
    ]
    families = f"{counts['families']:,} famil{'y' if counts['families'] == 1 else 'ies'}"
    total = [f"{_plural(counts['models'], 'model')}, {families}, {_plural(len(counts['publishers']), 'publisher')}."]
    if counts["without_family"]:
        total.append(f"{_plural(counts['without_family'], 'model')} of no stated family.")
    for tool in sorted({b["by"] for b in counts["brands"]}):
        of_tool = [b["models"] for b in counts["brands"] if b["by"] == tool]
        total.append(
            f"[...]: a family as {tool} names it, a brand and no lineage; {len(of_tool)} of them, of "
            f"{_plural(sum(of_tool), 'model')}."
        )
    said = [line for text in total for line in _wrapped(text, width)]
    return ["", *_table(columns, width, color), "", *said] if rows else ["", *said]


def _lineage(m: Document) -> str:
    """The root of a row's family, if anything says one."""
    return str(m["stated_family"] or m["catalogue_family"] or m["linked_family"] or "")


def _brand(m: Document) -> str:
    return f"[{m['brand']['name']}, {m['brand']['id']}]" if m["brand"] else "-"


def _age(date: str) -> str:
    """How long ago a date in ISO format was, in whole days; nothing if it is no date."""
    try:
        days = (datetime.now(UTC) - datetime.fromisoformat(date)).days
    except (ValueError, TypeError):
        return ""
    return f" ({_plural(days, 'day')} ago)" if days > 0 else " (today)" if days == 0 else ""


def _amount(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"


def _origin(o: Document) -> list[str]:
    """Where an index came from, and what an update would fetch."""
    update = o["update"]
    lines = [f"pulled {o['pulled']}{_age(o['pulled'])} from {o['repo']}, {o['asked']}"]
    if not update["looked"]:
        lines.append(f"not known whether there is a newer revision: {update['reason']}")
    elif update["available"] and update["sha256"]:
        lines.append(
            f"its publisher has another {o['archive']['path']}, {_amount(update['bytes'])}: "
            f"provindex index pull {o['repo']} --sha256 {update['sha256']}"
        )
    elif update["available"]:
        what = f"{_plural(update['files'], 'file')}, {_amount(update['bytes'])}"
        lines.append(f"an update to {update['commit'][:12]} would fetch {what}: provindex index pull {o['repo']}")
    else:
        lines.append("up to date")
    return lines + [f"left out {left['path']}: {left['reason']}" for left in o["left_out"]]


def _pulled(d: Document) -> list[str]:
    p = d["pulled"]
    of = "" if p["archive"] else f" of {_amount(p['bytes_total'])}"  # of an archive the index is another size
    what = f"{_plural(p['files_fetched'], 'file')}, {_amount(p['bytes_fetched'])}{of}"
    done = "is in force" if p["changed"] else "was in force already"
    done += ", beside the index that answers by default" if p["archive"] else ""
    lines = [f"fetched {what}"]
    if p["archive"] and (p["rows_made"] or p["rows_kept"]):
        before = f", {p['rows_kept']:,} were made before" if p["rows_kept"] else ""
        lines.append(f"made {_plural(p['rows_made'], 'row')} of {p['archive']['path']}{before}")
    lines += [f"{p['repo']}@{p['commit'][:12]} ({p['asked']}) {done}."]
    return lines + [f"left out {left['path']}: {left['reason']}" for left in p["left_out"]]


def _problems(d: Document) -> list[str]:
    found = [f"damaged: {p['where']}: {p['what']}" for p in d["problems"]]
    return found or ["every digest, row and vector is right"]


def _built(d: Document) -> list[str]:
    """What a build did; what failed is named on standard error, with its path and its reason."""
    lines = []
    for kind in ("added", "replaced", "removed"):
        lines += [f"{kind} {name}" for name in d[kind][:MOST_ROWS]]
        more = len(d[kind]) - MOST_ROWS
        lines += [f"{kind} {more:,} more; --json lists them all"] if more > 0 else []
    if d["present"]:
        lines.append(f"{_plural(len(d['present']), 'model')} already there")
    if d["gone"]:
        gone = f"{', '.join(d['gone'][:NAMED])}{_and_more(d['gone'])}"
        lines.append(f"{_plural(len(d['gone']), 'model')} no longer found, rows kept (--prune removes them): {gone}")
    if not lines and not d["failed"]:
        lines.append("nothing to add")
    return [*lines, *([f"{len(d['failed'])} failed"] if d["failed"] else [])]


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - NAMED} more" if len(names) > NAMED else ""


# --- explain ---


def _explain(d: Document, width: int, color: bool) -> list[str]:
    lines = []
    for one in d["explained"]:
        lines += _heading(f"{one['code']} ({one['kind']})", width, color)
        lines += _wrapped(f"  {one['meaning']}", width)
    return lines


# --- push ---


def _push(d: Document, width: int, color: bool) -> list[str]:
    name = _label(d["model"])
    if d["sent"]:
        where = f"pull request {d['pull_request']}" if d["pull_request"] else f"commit {(d['commit'] or '')[:12]}"
        head = f"Sent the fingerprint of {name} to {d['to']}: {where}."
    else:
        head = f"Nothing was sent. This is what {d['to']} would get of {name}:"
    lines = _heading(head, width, color)
    lines += [f"  {f['path']}  {f['bytes']:,} bytes  sha256 {f['sha256']}" for f in d["files"]]
    if not d["sent"]:
        lines += ["", *(line for item in d["row"].items() for line in _wrapped(f"  {_shown(*item)}", width))]
        lines += ["", *([] if d["objections"] else _wrapped(NOTHING_ELSE, width))]
    lines += [line for text in d["warnings"] for line in _wrapped(f"note: {text}", width)]
    return lines + [line for text in d["objections"] for line in _wrapped(f"It would be refused: {text}", width)]


def _shown(name: str, cell: Any) -> str:
    """A cell of a row in a line."""
    if isinstance(cell, dict):
        return f"{name}: {cell['values']:,} values of type {cell['type']}"
    if isinstance(cell, list):
        return f"{name}: {', '.join(map(str, cell)) or 'none'}"
    return f"{name}: {'none' if cell is None else cell}"
