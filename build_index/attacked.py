"""The third part of the benchmark: real models under attack. `python -m build_index.attacked --real DIR --work DIR`.

Real models are disguised, and grown by decoys (`zoo/attacks.py`), each under several seeds; every copy is compared with
its source and with all models of other families, and asked for in an index of them and of the embedded models. With
--python, an environment with transformers, the copies answer a text as well. With --zoo, small trained strangers are
given what strangers may share: one pruning mask, tied matrices, computed tables and a frozen vision tower. One file of
JSON lines a copy is kept in DIR, so that the command resumes; the table goes between its markers in benchmark.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from build_index.benchmark import chance_levels, measured
from build_index.zoo.attacks import ATTACKS, KEEP_FUNCTION
from build_index.zoo.freedoms.draws import Refusal, rng_of
from build_index.zoo.parts import Parts
from build_index.zoo.snapshot import Snapshot
from provindex.api import Index, Resolved, query
from provindex.common.threads import one_blas_thread
from provindex.fingerprint.extract.model import fingerprint_model, with_every_layer
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model
from provindex.verdict.pair import compare

Row = dict[str, Any]
# Real models by the name of their snapshot, with the seeds that each is attacked with: large ones take minutes.
SOURCES: Mapping[str, int] = {
    "smollm2-135m-instruct": 1,
    "qwen2.5-coder-0.5b": 1,
    "gemma3-270m": 1,
    "minilm-l6-pyduck": 3,
    "all-mpnet-base-v2": 1,
    "e5-small-q4": 2,
    "whisper-tiny-en": 3,
}
# What descends from what among the snapshots: pairs inside a line are never strangers.
FAMILIES = (
    "minilm", "e5-small", "rxnfp|rxnmapper", "whisper", "sudachi", "qwen2.5", "smollm2", "gemma-?3", "mpnet",
    "t5|traceforge", "fracast", "splade",
)  # fmt: skip
KEPT = 0.1  # share of cells that one pruning mask leaves
PAGE, BEGIN, END = Path(__file__).with_name("benchmark.md"), "<!-- attacked -->", "<!-- /attacked -->"
USABLE = Path(__file__).with_name("usable.py")


def family_of(name: str) -> str:
    """The family of a snapshot, or of a model id, by its name; the name where none is listed."""
    return next((f for f in FAMILIES if re.search(f, name.lower())), name)


def fingerprint_of(folder: Path) -> Fingerprint:
    return fingerprint_model(open_model(str(folder)))


def attacked(source: Path, attack: str, seed: int, folder: Path) -> Path | Refusal:
    """Write a model under an attack into a folder; nothing of it stays in memory."""
    made = ATTACKS[attack](Snapshot.read(source), seed)
    return made if isinstance(made, Refusal) else made.write(folder)


def rows_of(
    source: Path, originals: Mapping[str, Fingerprint], index: Index, rows: Path, seeds: int, python: Path | None
) -> None:
    """Measure every copy of a source that was not measured, and write its rows."""
    for seed, attack in itertools.product(range(1, seeds + 1), ATTACKS):
        path = rows / _name(source.name, attack, seed)
        if path.exists():
            continue
        about: Row = {"source": source.name, "attack": attack, "seed": seed}
        with tempfile.TemporaryDirectory() as scratch:
            folder = attacked(source, attack, seed, Path(scratch) / "copy")
            if isinstance(folder, Refusal):
                found = [{**about, "refused": folder.reason}]
            else:
                found = list(_measured(about, folder, originals, index))
                found[0]["difference"] = _difference(python, source, folder)
        draft = path.with_suffix(".new")
        draft.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        draft.replace(path)
        print(path.name, found[0].get("verdict") or "refused", file=sys.stderr, flush=True)


def _name(source: str, attack: str, seed: int) -> str:
    return f"{source}@{attack.replace(' ', '_')}@{seed}.jsonl"


def _measured(about: Row, folder: Path, originals: Mapping[str, Fingerprint], index: Index) -> Iterator[Row]:
    """The copy against its source, with what a query says, then against all models of other families; by all layers."""
    model, own = open_model(str(folder)), about["source"]
    kept = fingerprint_model(model)
    fp = with_every_layer(model, kept) or kept
    with one_blas_thread():
        pair = compare(fp, originals[own], calibration=index.calibration)
        _, answer = query(index, Resolved(kept, "copy", model))
        first = next((m.entry.model_id for m in answer.linked), None)
        family = first is not None and family_of(first) == family_of(own)
        yield {**about, "stranger": None, "first": first, "first_family": family, **measured(pair)}
        for name, other in originals.items():
            if family_of(name) != family_of(own):
                pair = compare(fp, other, calibration=index.calibration)
                codes = [str(r.code) for r in pair.reasons]
                ran = any(pair.evidence[t].value is not None for t in ("triple_agreement", "branch_sketch"))
                yield {**about, "stranger": name, "codes": codes, "ran": ran, **measured(pair)}


def _difference(python: Path | None, source: Path, folder: Path) -> float | None:
    """How much the answers differ; None without an environment that can run them, or if they cannot be run."""
    if python is None:
        return None
    asked = [str(python), str(USABLE), str(source), str(folder)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return said[0].get("difference") if said else None


# --- strangers with something in common ---


def one_mask(snapshot: Snapshot) -> Snapshot:
    """A tenth of the cells of each matrix, the same in all models of one shape."""
    tensors = {
        name: (values * (rng_of(values.shape[0], name).random(values.shape) < KEPT)).astype(np.float32)
        if values.ndim == 2 and "embed" not in name
        else values
        for name, values in snapshot.tensors.items()
    }
    return replace(snapshot, tensors=tensors)


def tied(snapshot: Snapshot) -> Snapshot:
    """Down is up transposed; and where there is a gate, it is up."""
    parts = Parts(snapshot)
    for block, _ in parts.mlps():
        up = parts.read(block.key("up"))
        parts.write(block.key("down"), up.T)
        if block.key("gate") in parts.at:
            parts.write(block.key("gate"), up)
    return parts.snapshot("tied")


def shared_tensors(snapshot: Snapshot) -> Snapshot:
    """A rotary table, positions and a vision tower under names that no table knows."""
    rng = rng_of(0, "tower")
    angles = np.arange(512)[:, None] / 10_000 ** (np.arange(64) / 64)
    more = {f"image_trunk.blocks.{i}.{n}": rng.standard_normal((96, 96)) for i in range(4) for n in ("attn", "mlp")}
    more |= {
        "freqs_cos": np.cos(angles),
        "freqs_sin": np.sin(angles),
        "table.index": np.arange(64.0 * 64).reshape(64, 64),
    }
    added = {name: values.astype(np.float32) for name, values in more.items()}
    return replace(snapshot, tensors={**snapshot.tensors, **added})


COMMON: Mapping[str, Callable[[Snapshot], Snapshot]] = {
    "one mask of 10 %": one_mask, "tied MLPs": tied, "shared tables and tower": shared_tensors,
}  # fmt: skip


def generated(zoo: Path, rows: Path) -> None:
    """All pairs of small strangers of one shape that have one thing in common."""
    for what, change in COMMON.items():
        path = rows / f"zoo@{what.replace(' ', '_')}.jsonl"
        if path.exists():
            continue
        prints = [(p.name, _in_memory(change(Snapshot.read(p)))) for p in sorted((zoo / "calibration").iterdir())]
        levels = chance_levels()
        found: list[Row] = []
        with one_blas_thread():
            for (a, x), (b, y) in itertools.combinations(prints, 2):
                if a.rpartition("-")[0] == b.rpartition("-")[0]:
                    found.append({"common": what, "a": a, "b": b, **measured(compare(x, y, calibration=levels))})
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        print(path.name, len(found), file=sys.stderr, flush=True)


def _in_memory(snapshot: Snapshot) -> Fingerprint:
    with tempfile.TemporaryDirectory() as scratch:
        return fingerprint_of(snapshot.write(Path(scratch) / "model"))


# --- the table ---


def text(rows: Sequence[Row]) -> str:
    """The part of benchmark.md."""
    small = [r for r in rows if "common" in r]
    copied = [r for r in rows if r.get("stranger", 1) is None]
    strangers = [r for r in rows if r.get("stranger") is not None]
    refused = [r for r in rows if "refused" in r]
    lines = [
        "## Real models under attack\n",
        f"Made by `python -m build_index.attacked`. {len(copied)} copies of {len({r['source'] for r in copied})} real "
        f"models; {len(refused)} attacks do not fit a model and were left out. `difference`: the largest difference of "
        "logits (of encoders: of inner products of states) over their spread, median and largest. `first`: the first "
        "family that a query names is the source's.\n",
        "| attack | copies | linked | first | E3 | E4 | E7 | E8 | difference |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for attack in ATTACKS:
        of = [r for r in copied if r["attack"] == attack]
        if of:
            cells = [_least(of, t) for t in ("triple_agreement", "branch_sketch", "neuron_invariants", "neuron_signs")]
            linked, first = sum(r["verdict"] == "linked" for r in of), sum(r["first_family"] for r in of)
            star = "" if attack in KEEP_FUNCTION else " *"
            lines.append(f"| {attack}{star} | {len(of)} | {linked} | {first} | {' | '.join(cells)} | {_spread(of)} |")
    lines += ["", "E3 to E8: median and smallest value. * changes the function.\n"]
    counts = {v: sum(r["verdict"] == v for r in strangers) for v in ("linked", "unrelated", "inconclusive")}
    ran = [r for r in strangers if r["ran"]]
    clear = sum(r["verdict"] == "unrelated" for r in ran)
    lines.append(
        f"Strangers under the same attacks: {len(strangers):,} pairs ({len(_families(strangers))} pairs of families), "
        f"{counts['linked']} linked, {counts['unrelated']:,} unrelated, {counts['inconclusive']:,} inconclusive; of "
        f"the {len(ran):,} in which E3 or E4 runs {100 * clear / max(len(ran), 1):.1f} % are unrelated. Largest E7 "
        f"{_most(strangers, 'neuron_invariants')}, E8 {_most(strangers, 'neuron_signs')}.\n"
    )
    if small:
        lines.append("Small trained strangers of one shape with something in common:\n")
        lines += ["| in common | pairs | linked | unrelated | inconclusive | smallest p |", "|---|--:|--:|--:|--:|--:|"]
        for what in COMMON:
            of = [r for r in small if r["common"] == what]
            counted = [sum(r["verdict"] == v for r in of) for v in ("linked", "unrelated", "inconclusive")]
            least = min((r["log10_p"] for r in of if r["log10_p"] is not None), default=0.0)
            lines.append(f"| {what} | {len(of):,} | {' | '.join(f'{n:,}' for n in counted)} | 1e{least:.1f} |")
        lines.append("")
    return "\n".join(lines)


def _families(rows: Sequence[Row]) -> set[frozenset[str]]:
    return {frozenset((family_of(r["source"]), family_of(r["stranger"]))) for r in rows}


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return sorted(r[name] for r in rows if r.get(name) is not None)


def _least(rows: Sequence[Row], name: str) -> str:
    found = _values(rows, name)
    return f"{found[len(found) // 2]:.2f}, {found[0]:.2f}" if found else "-"


def _most(rows: Sequence[Row], name: str) -> str:
    return f"{max(_values(rows, name), default=0.0):.3f}"


def _spread(rows: Sequence[Row]) -> str:
    found = _values(rows, "difference")
    return f"{found[len(found) // 2]:.1e}, {found[-1]:.1e}" if found else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and put the table into benchmark.md."""
    parser = argparse.ArgumentParser(prog="python -m build_index.attacked", description=__doc__)
    parser.add_argument("--real", type=Path, nargs="+", required=True, help="folders of snapshots of real models")
    parser.add_argument("--work", type=Path, required=True, help="where measurements are kept")
    parser.add_argument("--python", type=Path, help="a python with torch and transformers, to ask the copies")
    parser.add_argument("--zoo", type=Path, help="where build_index.zoo keeps its models, for strangers in numbers")
    parser.add_argument("--only", nargs="*", help="sources, if not all")
    options = parser.parse_args(arguments)
    rows = options.work / "attacked"
    rows.mkdir(parents=True, exist_ok=True)
    folders = {p.name: p for root in options.real for p in sorted(root.iterdir()) if (p / "config.json").exists()}
    originals = {name: fingerprint_of(folder) for name, folder in folders.items()}
    index = Index.load("embedded")
    for name, fp in originals.items():
        index.add(replace(fp, model_id=name, revision=None))
    for name, seeds in SOURCES.items():
        if name in folders and (options.only is None or name in options.only):
            rows_of(folders[name], originals, index, rows, seeds, options.python)
    if options.zoo:
        generated(options.zoo, rows)
    found = [json.loads(line) for path in sorted(rows.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text(found)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(text(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
