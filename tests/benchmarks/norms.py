"""E6 measured: `python tests/benchmarks/norms.py --zoo FOLDER [--real FOLDER] [--rows 100000]`.

Reads every model below the folders in mode "norms" and compares all pairs of equal residual width: real ones against
../shared/data/real_lineage.tsv, trained small ones (`python -m build_index.zoo`) against their own truth: strangers
(different random starts), twins (one start, trained apart), descendants that keep weights. Then exact copies under each
disguise, and the search by gains alone among strangers of the query's width, which are the hardest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import provindex as pv
from build_index.zoo.disguises import DISGUISES, Refusal
from build_index.zoo.snapshot import Snapshot
from provindex.common.threads import one_blas_thread
from provindex.evidence.norm_alignment import bias_alignment, norm_alignment
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.formats.tensors import tensor_from_array
from provindex.index import codes
from provindex.index.entries import center
from provindex.index.search import BLOCKS, DIMENSIONS, _sketch, vector
from provindex.models.source import Model

LINEAGE = Path(__file__).resolve().parents[1] / "data" / "real_lineage.tsv"
TESTS = ("E6", "E6b")
LINKED = -6.0
Row = tuple[float | None, float | None]  # log10 p of both tests


def read(root: Path) -> dict[str, Fingerprint]:
    """Every model below a folder, by the name of its own."""
    folders = sorted({path.parent for path in root.rglob("*.safetensors")})
    return {folder.name: pv.fingerprint(folder, mode="norms") for folder in folders}


def tested(a: Fingerprint, b: Fingerprint) -> Row:
    """Both tests of a pair."""
    stacks, sides = frozenset({"decoder", "encoder"}), [fp.value("vectors") for fp in (a, b)]
    first = norm_alignment(*sides, (a.facts.hidden, b.facts.hidden), stacks)
    return first.log10_p, bias_alignment(*sides, stacks).log10_p


def pairs(models: Mapping[str, Fingerprint]) -> Iterator[tuple[str, str, Row]]:
    """All pairs of one residual width."""
    for a, b in itertools.combinations(sorted(models), 2):
        if 0 != models[a].facts.hidden == models[b].facts.hidden:
            yield a, b, tested(models[a], models[b])


def line(label: str, rows: Sequence[Row]) -> None:
    """One line a test: how many pairs, how many at the levels .05 and .01 with their standard errors, how many link."""
    for number, test in enumerate(TESTS):
        found = np.array([row[number] for row in rows if row[number] is not None])
        if not found.size:
            continue
        levels = []
        for level in (0.05, 0.01):
            share, error = float((found <= math.log10(level)).mean()), math.sqrt(level * (1 - level) / found.size)
            levels.append(f"{share:.4f} ({(share - level) / error:+.1f} se)")
        shown = [label, test, f"{found.size} of {len(rows)}", *levels, f"{found.min():.1f}", f"{found.max():.1f}"]
        print("| " + " | ".join([*shown, f"{int((found <= LINKED).sum())}"]) + " |")


def head(first: str) -> None:
    print(f"\n| {first} | test | ran | p <= .05 | p <= .01 | least log10 p | largest | linked |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")


# --- small models with their truth ---


def truths(root: Path) -> dict[str, Mapping[str, Any]]:
    return {p.parent.name: json.loads(p.read_text("utf-8"))["truth"] for p in root.rglob("zoo.json")}


def trained(root: Path, models: Mapping[str, Fingerprint]) -> None:
    truth = truths(root)

    def origin(name: str) -> str:
        while truth[name]["ancestor"]:
            name = truth[name]["ancestor"]
        return name

    groups: dict[str, list[Row]] = defaultdict(list)
    for a, b, row in pairs(models):
        roots = [origin(name) for name in (a, b)]
        starts = [truth[name]["start"] or name for name in roots]
        based = all(truth[name]["kind"] == "base" for name in (a, b))
        if roots[0] == roots[1]:
            kinds = {truth[name]["kind"] for name in (a, b)} - {"base"}
            groups["linked, all"].append(row)
            groups[f"linked, base and {kinds.pop()}"] += [row] if len(kinds) == 1 else []
        elif starts[0] == starts[1]:
            groups["twins"].append(row)
        else:
            groups["strangers, all"].append(row)
            groups["strangers, each start once"] += [row] if based else []
    head("trained small models")
    for label, rows in sorted(groups.items()):
        line(label, rows)


def in_memory(made: Snapshot) -> Fingerprint:
    tensors = {name: tensor_from_array(name, value) for name, value in made.tensors.items()}
    model = Model(made.name, None, made.config, None, tensors, {}, ())
    return fingerprint_model(model, mode="norms")


def disguised(root: Path) -> None:
    """Exact copies of every base: linked, absent, or compared without a link."""
    print("\n| disguise of an exact copy | test | linked | absent | compared, no link |\n|---|---|--:|--:|--:|")
    bases = [Snapshot.read(root / n) for n, t in sorted(truths(root).items()) if t["kind"] == "base"]
    for name, disguise in DISGUISES.items():
        found = [(base, made) for base in bases if not isinstance(made := disguise(base, 1), Refusal)]
        rows = [tested(in_memory(base), in_memory(made)) for base, made in found]
        for number, test in enumerate(TESTS):
            values = [row[number] for row in rows]
            linked = sum(v is not None and v <= LINKED for v in values)
            absent = sum(v is None for v in values)
            if len(values) > absent:
                print(f"| {name} | {test} | {linked} | {absent} | {len(values) - linked - absent} |")


def searched(root: Path, models: Mapping[str, Fingerprint], count: int) -> None:
    """Descendants by their gains alone among `count` strangers of their width: is their base found?"""
    truth = truths(root)
    width = next(iter(models.values())).facts.hidden
    size, weight = BLOCKS["norms"]
    start = DIMENSIONS - size
    rng = np.random.default_rng(1)
    signs = np.array([_sketch(row, f"retrieval/norms/{width}", size) for row in np.eye(width)])
    strangers = rng.standard_normal((count, width)) @ signs
    strangers *= math.sqrt(weight) / np.linalg.norm(strangers, axis=1, keepdims=True)
    bases = sorted(n for n, t in truth.items() if t["kind"] == "base" and models[n].facts.hidden == width)
    vectors = np.zeros((count + len(bases), DIMENSIONS), np.float32)
    vectors[:count, start:] = strangers
    vectors[count:, start:] = [vector(models[name])[start:] for name in bases]
    searcher = codes.Coded([codes.Segment.of(vectors, center())], center())
    asked = [n for n, t in sorted(truth.items()) if t["ancestor"] in bases and models[n].facts.hidden == width]
    ranks, seconds = [], []
    for name in asked:
        query = np.zeros((1, DIMENSIONS), np.float32)
        query[0, start:] = vector(models[name])[start:]
        began = time.perf_counter()
        _, found = searcher.search(query, 50)
        seconds.append(time.perf_counter() - began)
        place = np.flatnonzero(found[0] == count + bases.index(truth[name]["ancestor"]))
        ranks.append(int(place[0]) + 1 if place.size else 51)
    tops = ", ".join(f"first {top}: {sum(r <= top for r in ranks)} of {len(ranks)}" for top in (1, 10, 50))
    print(f"\nAmong {count:,} strangers of width {width}: {tops}; {1e3 * float(np.median(seconds)):.1f} ms a search")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="a folder of small models with zoo.json")
    parser.add_argument("--real", type=Path, help="a folder of real snapshots")
    parser.add_argument("--rows", type=int, default=100_000)
    chosen = parser.parse_args()
    with one_blas_thread():
        if chosen.real:
            said = [row.split("\t") for row in LINEAGE.read_text("utf-8").splitlines()[1:]]
            labels = {frozenset(row[2:4]): row[0] for row in said}
            groups: dict[str, list[Row]] = defaultdict(list)
            for a, b, row in pairs(read(chosen.real)):
                groups[labels.get(frozenset((a, b)), "unlabelled")].append(row)
            head("real models of one width")
            for label, rows in sorted(groups.items()):
                line(label, rows)
        models = read(chosen.zoo)
        trained(chosen.zoo, models)
        disguised(chosen.zoo)
        searched(chosen.zoo, models, chosen.rows)


if __name__ == "__main__":
    main()
