"""Measurements of the tests on the peer's samples: power, null, derivatives, permuted real weights, time.

PYTHONPATH=.:tests python tests/benchmarks/sampled.py power
PYTHONPATH=.:tests python tests/benchmarks/sampled.py zoo ZOO          # folder of `python -m build_index zoo`
PYTHONPATH=.:tests python tests/benchmarks/sampled.py permuted FOLDER  # of a snapshot
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peer_files
import prints
import zoo as generated
from sampled_rows import QWEN, SEVEN, SEVENTY, Values, child

from build_index.zoo import store
from provindex.api import open_model
from provindex.evidence import sampled
from provindex.evidence.sampled_places import places
from provindex.fingerprint.extract.slices import slices
from provindex.fingerprint.record import Facts, Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.peers.cisco import read_database
from provindex.signals import mfi, wvc

LINKED = -6.0


def _line(name: str, a: Fingerprint, b: Fingerprint) -> None:
    began = time.process_time()
    found = sampled.sampled_tests(a, b)
    spent = time.process_time() - began
    cells = [name]
    for one in found.chosen:
        z = one.excess / one.variance**0.5
        cells += [f"{max(one.across, one.down)} of {one.units}", str(len(one.sizes)), f"{z:.1f}"]
    fixed, aligned = found.fixed, found.aligned
    cells += [f"{o.log10_p:.1f}" if o.log10_p is not None else "-" for o in (fixed, aligned)]
    cells += [f"{aligned.smallest:.3f}" if aligned.smallest else "-", f"{spent * 1e3:.0f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def power() -> None:
    """Simulated normal samples at the places of three shapes; a child at cosine rho on every matrix."""
    head = "| rho | F residual | blocks | z | F hidden | blocks | z | log10 p fixed | aligned | smallest | ms |"
    for name, shape in (("896, 24 layers", QWEN), ("4096, 32 layers", SEVEN), ("8192, 80 layers, sliced", SEVENTY)):
        print(f"\n{name}\n{head}\n|---|" + "--:|" * 10)
        parent = shape.draw(0)
        guest = shape.imported(parent)
        sampled.sampled_tests(shape.ours(parent), guest)  # the plans are made once a shape
        for rho in (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02):
            _line(str(rho), shape.ours(child(parent, rho, 1)), guest)
        _line("independent", shape.ours(shape.draw(2)), guest)


# --- models that were trained ---


def _checkpoint(snapshot: Any) -> generated.Checkpoint:
    return generated.Checkpoint(dict(snapshot.config), dict(snapshot.tensors), snapshot.tokenizer or None)


def _ours(snapshot: Any) -> Fingerprint:
    """The row as made here, after storage."""
    return from_row(to_row(prints.fingerprint(_checkpoint(snapshot), snapshot.name)))


def _imported(snapshots: list[Any]) -> dict[str, Fingerprint]:
    """The rows as imported from a database that an independent writer made, after storage."""
    rows: dict[str, Fingerprint] = {}
    with tempfile.TemporaryDirectory() as folder:
        database = peer_files.Database(Path(folder))
        for snapshot in snapshots:
            database.add(snapshot.name, _checkpoint(snapshot))
        for row in read_database(Path(folder)):
            assert isinstance(row, Fingerprint), row
            rows[row.model_id.split("/")[-1]] = from_row(to_row(row))
    return rows


def trained(root: Path) -> None:
    """Bases of one shape against each other, and every derivative against the imported row of its base."""
    models = [store.load(root, z, n) for z in ("calibration", "benchmark") for n in store.trained(root, z)]
    alone = [s for s, truth in models if truth.kind == "base" and s.config["model_type"] != "gpt2"]
    guests, hosts = _imported(alone), {s.name: _ours(s) for s in alone}
    scores: dict[str, list[float]] = defaultdict(list)
    names = [s.name for s in alone]
    for i, host in enumerate(names):
        for guest in names[i + 1 :]:
            found = sampled.sampled_tests(hosts[host], guests[guest])
            for test, outcome in (("fixed", found.fixed), ("aligned", found.aligned)):
                if outcome.log10_p is not None:
                    scores[test].append(outcome.log10_p)
            if found.aligned.log10_p is not None:
                both = min(o.log10_p for o in (found.fixed, found.aligned) if o.log10_p is not None)
                scores["either"].append(min(0.0, both + np.log10(2)))
    print("\n| test | pairs | p <= .05 | p <= .01 | smallest log10 p |\n|---|--:|--:|--:|--:|")
    for test, all_p in scores.items():
        p = np.array(all_p)
        shares = [(p <= np.log10(level)).mean() for level in (0.05, 0.01)]
        cells = [f"{share:.4f} +- {np.sqrt(share * (1 - share) / p.size):.4f}" for share in shares]
        print(f"| {test} | {p.size} | {cells[0]} | {cells[1]} | {p.min():.2f} |", flush=True)
    _derivatives(root, [(s, t) for s, t in models if t.kind != "base"], guests)


def _derivatives(root: Path, made: list[tuple[Any, Any]], guests: dict[str, Fingerprint]) -> None:
    for name in guests:
        made += store.free(root, "benchmark", name) if not name.startswith("c-") else []
    found: dict[str, list[float | None]] = defaultdict(list)
    why: dict[str, set[str]] = defaultdict(set)
    cosines: dict[str, list[float]] = defaultdict(list)
    for snapshot, truth in made:
        base = truth.ancestor or truth.start
        if base not in guests:
            continue
        kind = truth.kind
        result = sampled.sampled_tests(_ours(snapshot), guests[base])
        outcomes = [o.log10_p for o in (result.fixed, result.aligned) if o.log10_p is not None]
        found[kind].append(min(outcomes) if outcomes else None)
        why[kind] |= {str(r.code) for r in result.aligned.reasons}
        if result.compared:
            cosines[kind].append(result.compared.median)
    head = "| derivative | models | ran | linked | log10 p, worst of those that ran | median cosine | absent because |"
    print(f"\n{head}\n|---|--:|--:|--:|--:|--:|---|")
    for kind, values in sorted(found.items()):
        ran = [v for v in values if v is not None]
        linked = sum(v <= LINKED for v in ran)
        cosine = f"{np.median(cosines[kind]):.2f}" if cosines[kind] else "-"
        worst = f"{max(ran):.1f}" if ran else "-"
        print(f"| {kind} | {len(values)} | {len(ran)} | {linked} | {worst} | {cosine} | {', '.join(why[kind])} |")


# --- real weights under random permutations ---


def permuted(folder: Path, times: int = 60) -> None:
    """A real model against copies of it whose residual coordinates and hidden units are in a random order.

    Only what is sampled of a permuted matrix is read.
    """
    model = open_model(str(folder))
    read = slices(model, sliced=False)
    assert isinstance(read, sampled.Slices), read
    pattern = max(set(read.matrices.patterns.values()), key=list(read.matrices.patterns.values()).count)
    layers = [n for n, p in read.matrices.patterns.items() if p == pattern]
    whole = _matrices(model, layers)
    heads = {"intermediate_size": next((m.columns for m in pattern if m.role == "down"), 0)}
    width = next(m.rows for m in pattern if m.role in ("o", "down"))
    facts = Facts(str(model.config.get("model_type", "")), "", 0, width, len(layers), 0, "", 0)
    host = Fingerprint("host", facts, "sampled", None, mfi.extract(dict(heads), None), more={"slices": read})
    g = np.random.default_rng(1)
    p: list[float] = []
    z: list[float] = []
    for number in range(times + 1):
        guest: Values = {}
        coordinates = g.permutation(width) if number else np.arange(width)
        for layer in layers:
            hidden = g.permutation(heads["intermediate_size"]) if number else np.arange(heads["intermediate_size"])
            for i, m in enumerate(pattern):
                row, column = places(m.rows, m.columns)
                row = coordinates[row] if m.role in ("o", "down") else hidden[row] if m.role in ("gate", "up") else row
                reads = m.role in ("q", "k", "v", "gate", "up")
                column = coordinates[column] if reads else hidden[column] if m.role == "down" else column
                guest[layer, i] = whole[layer, i](row, column)
        vectors = {n: np.concatenate([guest[n, i] for i in range(len(pattern))]).astype(np.float32) for n in layers}
        pieces = [
            (f"peer/{n:05d}/{k:03d}", n, part)
            for n, v in vectors.items()
            for k, part in enumerate(np.split(v, range(4096, len(v), 4096)))
        ]
        other = replace(host, mode="imported", more={}, wvc=wvc.Samples.collect(pieces))
        if not number:
            print(f"\n{folder.name}, itself and {times} permuted copies")
            print("| | F residual | blocks | z | F hidden | blocks | z | log10 p fixed | aligned | smallest | ms |")
            print("|---|" + "--:|" * 10)
            _line("itself", host, other)
            continue
        found = sampled.sampled_tests(host, other)
        p += [o.log10_p for o in (found.fixed, found.aligned) if o.log10_p is not None]
        z += [f.excess / f.variance**0.5 for f in found.chosen]
    if p:
        print(f"smallest log10 p {min(p):.2f}; z of the orders that say most {min(z):.1f} to {max(z):.1f}", flush=True)


def _matrices(model: Any, layers: list[int]) -> dict[tuple[int, int], Any]:
    """Readers of single values of each projection."""
    from provindex.fingerprint.extract.slices import _layers

    def reader(tensor: Any) -> Any:
        values = tensor.flat().reshape(tensor.shape).astype(np.float16 if tensor.dtype == "F16" else np.float32)
        return lambda row, column: values[row, column]

    found = _layers(model)
    return {(n, i): reader(model.tensors[place.name]) for n in layers for i, place in enumerate(found[n])}


if __name__ == "__main__":
    what, *more = sys.argv[1:]
    {"power": power, "zoo": trained, "permuted": permuted}[what](*map(Path, more))
