"""The benchmark's tables from its rows: `python -m build_index.benchmark_tables ROWS --seed N [--page FILE] [...]`.

ROWS is the folder of JSON lines that `build_index.benchmark` leaves in its --work folder. --page gets everything,
--chapter (provindex/evidence/README.md) the table of what survives what, between its markers.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from provindex import __version__

Row = Mapping[str, Any]
SIGNALS = ("MFI", "TFV", "VOA", "EAS", "NLF", "LEP", "END", "WVC")
TESTS = {
    "bit_reuse": "E0", "hidden_fixed_points": "E1", "hidden_alignment": "E1z", "residual_fixed_points": "E2",
    "triple_agreement": "E3", "branch_sketch": "E4", "norm_alignment": "E6", "bias_alignment": "E6b",
    "neuron_invariants": "E7", "neuron_signs": "E8",
}  # fmt: skip
EXACT_P, RANK, LEAST = -6.0, -3.0, 0.1
UNDER = ("none", "all")
VERDICTS = ("linked", "unrelated", "inconclusive")


def text(rows: Sequence[Row], seed: int) -> str:
    """The whole page."""
    derived = [r for r in rows if r["set"] == "derived" and "refused" not in r]
    kept = [r for r in derived if r["keeps_weights"] and r["kind"] != "copy"]
    strangers = [r for r in rows if r["set"] == "independent"]
    parts = [
        "# Benchmark with truth\n",
        f"Made by `python -m build_index.benchmark`; provindex {__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, seed {seed}. Models, kinds and attacks: `build_index/zoo/README.md`. "
        "Every percentage stands beside the number it is a share of. `first`: the true base is retrieval's first among "
        "all bases and the embedded index; `withheld`: without config and tokenizer. HuRef-style leaves out the gate, "
        "which makes it survive rotation (with the gate it does not).\n",
        "## Verdicts on independents\n",
        independents(strangers),
        "## Descendants that keep weights, by attack\n",
        by(kept, "attack", DESCENDANTS),
        "## Descendants that keep weights, by kind (all attacks together)\n",
        by(kept, "kind", DESCENDANTS),
        "## Same random start, trained apart (not descent)\n",
        by([r for r in derived if r["kind"] == "shared-init"], "attack", STARTS),
        "## What each signal and each test survives\n",
        survival(rows),
        "## Area under the curve: descendants that keep weights against independents\n",
        curves(kept, strangers),
        "## The peer on the same files\n",
        peer([r for r in rows if r["set"] == "peer"]),
        "## Real models\n",
        real([r for r in rows if r["set"] == "real"]),
    ]
    return "\n".join(parts)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left."""
    rule = "|---|" + "--:|" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def share(found: Sequence[bool]) -> str:
    """ "99.2 % of 250" """
    return f"{100 * sum(found) / len(found):.1f} % of {len(found)}" if found else "-"


def known(rows: Sequence[Row], name: str, wanted: Callable[[Any], bool]) -> str:
    return share([wanted(r[name]) for r in rows if r.get(name) is not None])


Columns = Mapping[str, Callable[[Sequence[Row]], str]]
DESCENDANTS: Columns = {
    "linked": lambda rows: share([r["verdict"] == "linked" for r in rows]),
    "relation right": lambda rows: known(rows, "relation_right", bool),
    "first": lambda rows: share([r["rank"] == 1 for r in rows]),
    "first 10": lambda rows: share([r["rank"] is not None for r in rows]),
    "first, withheld": lambda rows: share([r["rank_withheld"] == 1 for r in rows]),
    "first 10, withheld": lambda rows: share([r["rank_withheld"] is not None for r in rows]),
    "layer map right": lambda rows: known(rows, "map_right", bool),
    "direction right or open": lambda rows: known(rows, "direction_right", lambda d: d != "wrong"),
    "direction right": lambda rows: known(rows, "direction_right", lambda d: d == "right"),
    "peer-compatible: confirmed": lambda rows: share([r["peer_decision"] == "Confirmed Match" for r in rows]),
}
STARTS: Columns = {
    "unrelated": lambda rows: share([r["verdict"] == "unrelated" for r in rows]),
    "called shared-init": lambda rows: share([r["relation"] == "shared-init" for r in rows]),
    "linked": lambda rows: share([r["verdict"] == "linked" for r in rows]),
}


def by(rows: Sequence[Row], name: str, columns: Columns) -> str:
    """One line a value of a field, in order of appearance, and one for all."""
    groups = {value: [r for r in rows if r[name] == value] for value in dict.fromkeys(r[name] for r in rows)}
    lines = [[value, *(made(group) for made in columns.values())] for value, group in groups.items()]
    return table([name, *columns], [*lines, ["total", *(made(rows) for made in columns.values())]])


def independents(rows: Sequence[Row]) -> str:
    """Verdicts by attack; base pairs are counted, because attacked copies of one pair are not independent."""

    def line(name: str, group: Sequence[Row]) -> list[str]:
        linked = [r for r in group if r["verdict"] == "linked"]
        pairs, wrong = (len({(r["base"], r["name"]) for r in found}) for found in (group, linked))
        return [
            name, str(len(group)), str(pairs), str(len(linked)), str(wrong),
            str(sum(r["verdict"] == "unrelated" for r in group)), f"{min(r['log10_p'] for r in group):.1f}",
            f"{max(r['triple_agreement'] or 0.0 for r in group):.4f}",
            f"{max(r['branch_sketch'] or 0.0 for r in group):.3f}",
            share([r["peer_decision"] == "Confirmed Match" for r in group]),
        ]  # fmt: skip

    groups = {a: [r for r in rows if r["attack"] == a] for a in dict.fromkeys(r["attack"] for r in rows)}
    head = ["attack", "pairs", "base pairs", "linked", "base pairs linked", "unrelated", "smallest log10 p"]
    head += ["largest E3", "largest E4", "peer-compatible: confirmed"]
    lines = [line(attack, group) for attack, group in groups.items()]
    return table(head, [*lines, line("total", rows)] if rows else [])


def survives(row: Row, name: str) -> bool | None:
    """Whether a statistic tells the pair from strangers: a signal above their 99.9th percentile, a test by its rule."""
    if name in SIGNALS:
        above = row.get(f"{name} above")
        return above if row.get(name) is not None else None
    if row.get(name) is None:
        return None
    if name in ("triple_agreement", "neuron_invariants", "neuron_signs"):
        ranked = row[name] >= LEAST and (row[f"{name} rank"] or 0.0) <= RANK
        return bool(ranked and (name == "triple_agreement" or row[f"{name} p"] <= EXACT_P))
    if name == "branch_sketch":
        return bool((row[f"{name} rank"] or 0.0) <= RANK)
    return bool((row[f"{name} p"] or 0.0) <= EXACT_P)


def survival(rows: Sequence[Row]) -> str:
    """Each disguise of an exact copy, then each kind of descendant without one: how many each statistic tells."""
    names = [*SIGNALS, *TESTS]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["set"] == "derived" and "refused" not in row and (row["kind"] == "copy" or row["attack"] == "none"):
            label = f"copy, {row['attack']}" if row["kind"] == "copy" else row["kind"]
            groups.setdefault(label, []).append(row)

    def cell(group: Sequence[Row], name: str) -> str:
        told = [s for r in group if (s := survives(r, name)) is not None]
        return f"{sum(told)}/{len(told)}" if told else "-"

    lines = [
        [label, *(cell(group, n) for n in names), share([r["verdict"] == "linked" for r in group])]
        for label, group in sorted(groups.items(), key=lambda g: not g[0].startswith("copy"))
    ]
    head = ["transform", *SIGNALS, *TESTS.values(), "linked"]
    note = (
        "Pairs that the statistic tells from unrelated ones, of those where it has a value: a signal above the 99.9th "
        "percentile of unrelated pairs (none of it in the benchmark), a test at the threshold of the decision.\n\n"
    )
    return note + table(head, lines)


def curves(kept: Sequence[Row], strangers: Sequence[Row]) -> str:
    """AUC of every statistic by attack; a value that is missing counts as the lowest."""
    names = ["verdict's p", "pipeline", *SIGNALS, *TESTS, "HuRef-style", "AWM-style"]

    def values(rows: Sequence[Row], name: str) -> np.ndarray[Any, Any]:
        if name == "verdict's p":
            return np.array([-(r["log10_p"] or 0.0) for r in rows])
        key = f"{name} p" if name in ("hidden_fixed_points", "hidden_alignment", "residual_fixed_points") else name
        sign = -1.0 if key.endswith(" p") else 1.0
        return np.array([-np.inf if r.get(key) is None else sign * r[key] for r in rows])

    lines = []
    for name in names:
        cells = []
        for attack in UNDER:
            ours = values([r for r in kept if r["attack"] == attack], name)
            theirs = values([r for r in strangers if r["attack"] == attack], name)
            cells.append(f"{auc(ours, theirs):.4f}" if ours.size and theirs.size else "-")
        lines.append([TESTS.get(name, name), *cells])
    return table(["statistic", *(f"attack: {a}" for a in UNDER)], lines)


def peer(rows: Sequence[Row]) -> str:
    """What the peer decides, by attack, and how far its score is from the peer-compatible one."""
    lines = []
    for of in ("derived", "independent"):
        for attack in UNDER:
            group = [
                r for r in rows if (r["of"], r["attack"]) == (of, attack) and (of != "derived" or r["keeps_weights"])
            ]
            scored = [r for r in group if r["peer"] is not None]
            apart = [abs(r["peer"] - r["ours"]) for r in scored if r["ours"] is not None]
            matched = share([r["peer_decision"] in ("Confirmed Match", "High-Confidence Match") for r in scored])
            identity = [r["peer identity"] for r in scored if r["peer identity"] is not None]
            spread = f"{np.median(identity):.3f}" if identity else "-"
            lines.append([f"{of}, {attack}", str(len(group)), matched, spread, f"{max(apart, default=0.0):.4f}"])
    head = ["pairs", "n", "confirmed or high confidence", "identity, median", "largest difference to provindex's own"]
    return table(head, lines) if rows else "Not run (`--peer PYTHON`).\n"


def real(rows: Sequence[Row]) -> str:
    """Verdicts on pairs of real models."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['truth']}, {row['kind']}", []).append(row)
    lines = []
    for name, group in sorted(groups.items()):
        relations = ", ".join(sorted({r["relation"] for r in group if r["relation"]})) or "-"
        lines.append(
            [name, str(len(group)), *(str(sum(r["verdict"] == v for r in group)) for v in VERDICTS), relations]
        )
    return table(["truth", "pairs", *VERDICTS, "relations"], lines) if rows else "Not run (`--real DIR`).\n"


def auc(positive: np.ndarray[Any, Any], negative: np.ndarray[Any, Any]) -> float:
    """Chance that a positive scores above a negative, ties half."""
    above = (positive[:, None] > negative[None]).sum() + 0.5 * (positive[:, None] == negative[None]).sum()
    return float(above / (positive.size * negative.size))


BEGIN, END = "<!-- survival:begin -->", "<!-- survival:end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tables from rows that were measured."""
    parser = argparse.ArgumentParser(prog="python -m build_index.benchmark_tables", description=__doc__)
    parser.add_argument("rows", type=Path, help="the folder of JSON lines")
    parser.add_argument("--seed", type=int, required=True, help="the seed they were measured with")
    parser.add_argument("--page", type=Path, help="write all tables here")
    parser.add_argument("--chapter", type=Path, help="put the table of what survives what here, between its markers")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for path in sorted(options.rows.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    page = text(rows, options.seed)
    if options.page:
        options.page.write_text(page, encoding="utf-8")
    if options.chapter:
        before, _, rest = options.chapter.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        options.chapter.write_text(f"{before}{BEGIN}\n{survival(rows)}{END}{after}", encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
