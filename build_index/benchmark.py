"""The benchmark with truth: `python -m build_index.benchmark --zoo DIR --work DIR`; see benchmark.md for the results.

Descendants of known bases, each under function-preserving disguises; independent models of one config and one
tokenizer, under the same disguises; real models with known lineage. Measured are verdict, relation, direction, layer
map, retrieval (also with config and tokenizer withheld), every statistic, and rival methods on the same weights. What
is measured is kept in DIR as JSON lines, one file a base, so that the command resumes; the tables are made from them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from build_index import benchmark_tables, calibrate, rivals
from build_index.zoo import store
from build_index.zoo.descendants import Truth, layers_of
from build_index.zoo.disguises import EXACT, Refusal, disguise
from build_index.zoo.snapshot import Snapshot
from provindex.api import Index
from provindex.common.errors import ProvindexError, UsageError
from provindex.common.threads import one_blas_thread
from provindex.fingerprint import parquet
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.index.entries import SEED
from provindex.models.source import open_model
from provindex.verdict import calibration
from provindex.verdict.pair import Pair, compare

Row = dict[str, Any]
SEED_NUMBER = 20261123
NONE, COPY = "none", "copy"
ATTACKS = (NONE, "permute_neurons", "permute_heads", "rotate_residual", "fold_norms", "rescale", "all", "all_int8")
ALONE = (
    *EXACT,
    "int8",
    "all",
    "all_int8",
    "all, renumbered",
    "rename_metadata",
    "withhold_tokenizer",
    "withhold_config",
)
RESCALE = ("rescale_neurons", "rescale_values", "rescale_queries")
# Every exact disguise that leaves the token ids alone: with them renumbered, a model without its tokenizer cannot run.
TOGETHER = (
    "rotate_residual", "rescale_residual", "permute_experts", "permute_neurons", "rescale_gates", "permute_heads",
    "rotate_values", "rotate_queries", *RESCALE, "shift_readers", "shift_writers",
)  # fmt: skip
COMBINED = {
    "rescale": RESCALE,
    "all": TOGETHER,
    "all_int8": (*TOGETHER, "int8"),
    "all, renumbered": (*TOGETHER, "renumber_vocabulary"),
}
RIVALS = (NONE, "all")  # under which the slower rival methods are run too
TOP = 10
LINEAGE = Path(__file__).resolve().parents[1] / "tests" / "data" / "real_lineage.tsv"


@dataclass(frozen=True)
class Setting:
    """Where the zoo lies, and where measurements are kept."""

    zoo: Path
    work: Path

    @property
    def rows(self) -> Path:
        return self.work / f"rows-{code_digest()}"


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Eight digits over the code that measures: other code, other files."""
    here = Path(__file__).resolve().parent
    sources = [*sorted((here.parent / "provindex").rglob("*.py")), *sorted((here / "zoo").glob("*.py"))]
    sources += [here / name for name in ("benchmark.py", "rivals.py", "peer_worker.py", "calibration.json")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


# --- fingerprints ----------------------------------------------------------------------------------------------


def fingerprints(snapshot: Snapshot) -> tuple[Fingerprint, Fingerprint]:
    """The fingerprint of a model written to disk, and that of its weights alone: no config, no tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = snapshot.write(Path(scratch) / "model")
        given = fingerprint_model(open_model(str(folder)))
        alone = Path(scratch) / "weights.safetensors"
        (folder / "model.safetensors").rename(alone)
        return replace(given, model_id=snapshot.name), fingerprint_model(open_model(str(alone)))


def base_fingerprint(setting: Setting, name: str) -> Fingerprint:
    """The fingerprint of a base, made once."""
    path = setting.rows / "bases" / f"{name}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = fingerprint_model(open_model(str(setting.zoo / "benchmark" / name)))
        parquet.write_fingerprint(replace(made, model_id=name, family=name), path)
    return parquet.read_fingerprints(path)[0]


@lru_cache(maxsize=1)
def opened(setting: Setting) -> Index:
    """All bases of the zoo and the embedded index's models, as one index."""
    index = Index.build((base_fingerprint(setting, name) for name in bases(setting.zoo)), name="benchmark")
    for entry in Index.load(SEED):
        index.add(entry.load())
    return index


@lru_cache(maxsize=1)
def chance_levels() -> calibration.Calibration:
    """The calibration that the embedded index carries: none of its models is in the benchmark."""
    return calibration.loads(calibrate.OUTPUT.read_bytes())


@lru_cache(maxsize=1)
def bases(zoo: Path) -> list[str]:
    """The independently trained models of the zoo."""
    return [name for name in store.trained(zoo, "benchmark") if store.load(zoo, "benchmark", name)[1].kind == "base"]


def family_of(name: str) -> str:
    """llama-03-finetune-a -> llama-03; llama-03 -> llama."""
    return name.rsplit("-", 1)[0]


def attacked(snapshot: Snapshot, attack: str, seed: int) -> Snapshot | Refusal:
    """A model under an attack; of a combined one, all that the architecture allows."""
    if attack == NONE:
        return snapshot
    done = snapshot
    for name in COMBINED.get(attack, (attack,)):
        result = disguise(name, done, seed)
        if isinstance(result, Refusal) and attack not in COMBINED:
            return result
        done = done if isinstance(result, Refusal) else result
    return Refusal("nothing applies") if done is snapshot else done


# --- what is measured ------------------------------------------------------------------------------------------


def derived(setting: Setting, base: str) -> list[Row]:
    """Every descendant of a base under every attack, and copies of the base under every disguise alone."""
    own = base_fingerprint(setting, base)
    weights = store.load(setting.zoo, "benchmark", base)[0]
    found = []
    for snapshot, truth in family(setting.zoo, base):
        for attack in ALONE if truth.kind == COPY else ATTACKS:
            made = attacked(snapshot, attack, SEED_NUMBER)
            head = {"set": "derived", "arch": base.split("-")[0], "base": base, "name": snapshot.name}
            head |= {"kind": truth.kind, "attack": attack, "keeps_weights": truth.keeps_weights}
            if isinstance(made, Refusal):
                found.append(head | {"refused": made.reason})
                continue
            given, alone = fingerprints(made)
            pair = compare(given, own, models=len(opened(setting)), calibration=chance_levels())
            row = head | measured(pair) | judged(pair, truth, attack)
            row |= {"rank": rank(setting, given, base), "rank_withheld": rank(setting, alone, base)}
            found.append(row | (rival(weights, made) if attack in RIVALS else {}))
    return found


def family(zoo: Path, base: str) -> Iterator[tuple[Snapshot, Truth]]:
    """A base as a copy of itself, its trained descendants, and those that need no training."""
    snapshot, truth = store.load(zoo, "benchmark", base)
    same = tuple((layer, layer) for layer in range(layers_of(snapshot)))
    yield snapshot, replace(truth, kind=COPY, relation="identical", ancestor=base, keeps_weights=True, layer_map=same)
    for name in store.trained(zoo, "benchmark"):
        if name != base and name.startswith(f"{base}-"):
            yield store.load(zoo, "benchmark", name)
    yield from store.free(zoo, "benchmark", base)


def independent(setting: Setting, base: str) -> list[Row]:
    """A base under every attack against every earlier one of its architecture: one config and tokenizer, no lineage."""
    snapshot = store.load(setting.zoo, "benchmark", base)[0]
    others = [name for name in bases(setting.zoo) if family_of(name) == family_of(base) and name < base]
    found = []
    for attack in ATTACKS if others else ():
        made = attacked(snapshot, attack, SEED_NUMBER)
        if isinstance(made, Refusal):
            continue
        given, _ = fingerprints(made)
        for other in others:
            pair = compare(given, base_fingerprint(setting, other), models=1, calibration=chance_levels())
            row = {"set": "independent", "arch": family_of(base), "base": other, "name": base, "attack": attack}
            row |= {"kind": "independent", "keeps_weights": False} | measured(pair)
            weights = store.load(setting.zoo, "benchmark", other)[0]
            found.append(row | (rival(weights, made) if attack in RIVALS else {}))
    return found


def real(setting: Setting, snapshots: Path) -> list[Row]:
    """Pairs of real models with known lineage that are there."""
    with LINEAGE.open(encoding="utf-8", newline="") as file:
        known = list(csv.DictReader(file, delimiter="\t"))
    folders = {path.name: path for path in snapshots.iterdir() if (path / "model.safetensors").exists()}
    known = [line for line in known if {line["a"], line["b"]} <= folders.keys()]
    prints = {
        name: fingerprint_model(open_model(str(folders[name]))) for name in {n for k in known for n in (k["a"], k["b"])}
    }
    return [
        {"set": "real", "truth": line["label"], "kind": line["relation"], "a": line["a"], "b": line["b"]}
        | measured(compare(prints[line["a"]], prints[line["b"]], calibration=chance_levels()))
        for line in known
    ]


def peer(setting: Setting, python: Path, rows: Sequence[Row]) -> list[Row]:
    """The peer on the files of every pair under the attacks that are compared with rivals."""
    wanted = [
        r for r in rows if r["set"] in ("derived", "independent") and r["attack"] in RIVALS and "refused" not in r
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for base in dict.fromkeys(r["base"] for r in wanted):
            there = {(snapshot.name, attack): snapshot for snapshot, attack in _peer_snapshots(setting, base, wanted)}
            for (name, attack), snapshot in there.items():
                folders.setdefault((name, attack), snapshot.write(Path(scratch) / f"{name}+{attack}"))
        asked = [(r["base"], NONE, r["name"], r["attack"]) for r in wanted]
        pairs = [(folders[a, x].name, folders[b, y].name) for a, x, b, y in asked]
        answers = rivals.peer_scores(python, list(folders.values()), pairs, Path(scratch))
    return [
        {"set": "peer", "of": r["set"], "name": r["name"], "base": r["base"], "attack": r["attack"], "kind": r["kind"]}
        | {
            "keeps_weights": r["keeps_weights"],
            "peer": answers[pair]["score"],
            "peer identity": answers[pair]["identity"],
        }
        | {"peer_decision": answers[pair]["decision"], "ours": r["pipeline"]}
        for r, pair in zip(wanted, pairs, strict=True)
    ]


def _peer_snapshots(setting: Setting, base: str, wanted: Sequence[Row]) -> Iterator[tuple[Snapshot, str]]:
    """The models of a base's pairs under their attacks, and the base itself."""
    names = {(r["name"], r["attack"]) for r in wanted if r["base"] == base}
    members = {snapshot.name: snapshot for snapshot, _ in family(setting.zoo, base)}
    for name in dict.fromkeys(name for name, _ in names if name not in members):
        members[name] = store.load(setting.zoo, "benchmark", name)[0]
    for name, attack in sorted(names | {(base, NONE)}):
        made = attacked(members[name], attack, SEED_NUMBER)
        if not isinstance(made, Refusal):
            yield replace(made, name=name), attack


def measured(pair: Pair) -> Row:
    """All numbers of a pair."""
    row: Row = {
        "verdict": pair.verdict, "relation": pair.relation, "direction": pair.direction, "log10_p": pair.log10_p,
        "undone": list(pair.undone), "pipeline": pair.pipeline.value, "peer_decision": pair.pipeline.decision,
    }  # fmt: skip
    for name, score in pair.signals.items():
        known = score.value is not None and score.chance is not None
        row[name] = score.value
        row[f"{name} above"] = score.chance.exceeded_by(score.value) if known else None  # type: ignore[union-attr, arg-type]
    for name, outcome in pair.evidence.items():
        row[name] = outcome.value
        row[f"{name} p"] = outcome.log10_p
        row[f"{name} rank"] = outcome.conformal
    return row


def judged(pair: Pair, truth: Truth, attack: str) -> Row:
    """The pair against its truth: A is the descendant."""
    pairs = {(r.a[0] + i, r.b[0] + i) for r in pair.layer_map for i in range(r.a[1] - r.a[0] + 1)}
    right = {"descendant": "right", "unknown": "abstained"}.get(pair.direction or "unknown", "wrong")
    return {
        "relation_right": pair.relation
        in {truth.relation, *truth.accepted, *(() if attack == NONE else ("laundered",))},
        "direction_right": right if truth.descends and pair.verdict == "linked" else None,
        "map_right": pairs == set(truth.layer_map) if truth.layer_map and pair.verdict == "linked" else None,
        "map": sorted(pairs),
    }


def rank(setting: Setting, fp: Fingerprint, base: str) -> int | None:
    """Where retrieval puts the ancestor, from 1; None below the first ten."""
    found = opened(setting).nearest(fp, TOP)
    return next((at for entry, at, _ in found if entry.model_id == base), None)


def rival(a: Snapshot, b: Snapshot) -> Row:
    """What other methods score on the same weights."""
    return {"HuRef-style": rivals.huref(a, b), "AWM-style": rivals.awm(a, b)}


# --- running ---------------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Setting, str], list[Row]]] = {"derived": derived, "independent": independent}


def run(setting: Setting, what: str, base: str) -> str:
    """One base's measurements into one file, unless it is there; its name."""
    with one_blas_thread():
        return once(setting, f"{what}-{base}", lambda: MEASURES[what](setting, base))


def once(setting: Setting, name: str, measure: Callable[[], list[Row]]) -> str:
    """Measurements into a file, unless it is there; its name."""
    path = setting.rows / f"{name}.jsonl"
    if not path.exists():
        text = "".join(json.dumps(row) + "\n" for row in measure())
        draft = path.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    return path.name


def run_all(setting: Setting, processes: int) -> None:
    """Everything that is missing, in parallel; progress on standard error."""
    setting.rows.mkdir(parents=True, exist_ok=True)
    names = bases(setting.zoo)
    parents = [name for name in names if any(n.startswith(f"{name}-") for n in store.trained(setting.zoo, "benchmark"))]
    for name in names:
        base_fingerprint(setting, name)
    tasks = [("derived", name) for name in parents] + [("independent", name) for name in names]
    with ProcessPoolExecutor(processes) as pool:
        for done, name in enumerate(
            pool.map(run, *zip(*((setting, what, base) for what, base in tasks), strict=True)), 1
        ):
            print(f"{done} of {len(tasks)}: {name}", file=sys.stderr, flush=True)


def read(setting: Setting) -> list[Row]:
    """All rows that were measured."""
    return [json.loads(line) for path in sorted(setting.rows.glob("*.jsonl")) for line in path.open(encoding="utf-8")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the tables (and write them with --output)."""
    parser = argparse.ArgumentParser(prog="python -m build_index.benchmark", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=store.default_root(), help="where build_index.zoo keeps its models")
    parser.add_argument("--work", type=Path, required=True, help="where measurements are kept")
    parser.add_argument("--real", type=Path, help="snapshots of build_index.seed_sources, for the real models")
    parser.add_argument("--peer", type=Path, help="a python that has the peer installed, to run it on the same files")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="write the tables here too")
    options = parser.parse_args(arguments)
    setting = Setting(options.zoo, options.work)
    try:
        if not bases(setting.zoo):
            raise UsageError(
                f"{setting.zoo} has no benchmark zoo.", "Make it with `python -m build_index.zoo benchmark`."
            )
        run_all(setting, options.processes)
        if options.real:
            once(setting, "real", lambda: real(setting, options.real / "snapshots"))
        if options.peer:
            once(setting, "peer", lambda: peer(setting, options.peer, read(setting)))
    except ProvindexError as error:
        print(error, file=sys.stderr)
        return 2
    text = benchmark_tables.text(read(setting), SEED_NUMBER)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
