"""Rows imported from the peer's own deep signals, against derivatives and strangers, over its three routes.

    python tests/parity/samples.py --peer PYTHON --models FOLDER [--zoo ROOT] --work DIR

PYTHON has the peer installed (`tests/parity/run.py` makes such an environment). Every model below FOLDER that the peer
can read goes through its routes: one file; three files that end inside of layers; slices (its size limit lowered). The
signals are imported, and each derivative made here of the model's weights is compared with that row. --zoo: trained
small models of `python -m build_index.zoo`, with derivatives that were trained, and all pairs of strangers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peer_files
import prints
import zoo as generated
from safetensors.numpy import save_file

from build_index.zoo import store
from provindex.evidence import sampled
from provindex.fingerprint.extract.slices import slices
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.models.source import open_model
from provindex.peers import cisco_signals
from provindex.peers.cisco import read_database
from provindex.verdict.pair import compare

HERE = Path(__file__).resolve().parent
ROUTES = ("file", "files", "sliced")
LIMITS = {"file": {}, "files": {"ONE_FILE": 0.0}, "sliced": {"WHOLE": -1.0, "SLICED": 0.0}}
SHARDS = 3
LINKED = -6.0
Checkpoint = generated.Checkpoint
Tensors = Mapping[str, Any]


# --- derivatives ---


def _matrices(tensors: Tensors, change: Callable[[Any, np.random.Generator], Any]) -> dict[str, Any]:
    g = np.random.default_rng(5)
    return {n: change(v, g).astype(np.float32) if v.ndim == 2 and v.size > 1 else v for n, v in tensors.items()}


def _at_cosine(rho: float) -> Callable[[Any, np.random.Generator], Any]:
    def change(v: Any, g: np.random.Generator) -> Any:
        noise = g.standard_normal(v.shape, np.float32) * np.float32(math.sqrt(float(np.square(v).mean())))
        return rho * v + math.sqrt(1 - rho * rho) * noise

    return change


def _rounded(bits: int) -> Callable[[Any, np.random.Generator], Any]:
    def change(v: Any, g: np.random.Generator) -> Any:
        step = np.maximum(np.abs(v).max(axis=1, keepdims=True), 1e-12) / (2 ** (bits - 1) - 1)
        return np.rint(v / step) * step

    return change


def _sparse(v: Any, g: np.random.Generator) -> Any:
    return np.where(np.abs(v) >= np.median(np.abs(v)), v, 0)


def _lora(v: Any, g: np.random.Generator) -> Any:
    a, b = g.standard_normal((v.shape[0], 8)), g.standard_normal((8, v.shape[1]))
    update = (a @ b).astype(np.float32)
    return v + 0.2 * update * float(np.linalg.norm(v) / max(np.linalg.norm(update), 1e-12))


DERIVATIVES: Mapping[str, Callable[[Any, np.random.Generator], Any]] = {
    "the model itself": lambda v, g: v,
    "fine-tuned (cosine .99)": _at_cosine(0.99),
    "continued (cosine .7)": _at_cosine(0.7),
    "LoRA, rank 8, merged": _lora,
    "int8": _rounded(8),
    "int4": _rounded(4),
    "50 % sparse": _sparse,
    "merged with a child at cosine .5": lambda v, g: 0.5 * v + 0.5 * _at_cosine(0.5)(v, g),
    "noise to cosine .2": _at_cosine(0.2),
}


# --- the peer's rows ---


MODULES = (
    "query",
    "q_proj",
    "key",
    "k_proj",
    "value",
    "v_proj",
    "attention",
    "attn",
    "gate",
    "up_proj",
    "intermediate",
)


def _as_modules(name: str) -> tuple[list[tuple[int, str]], int, str]:
    """A place in the order of modules, in which writers cut a model into files: layer by layer, queries first."""
    numbers = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
    layer = next((i for i, (number, _) in enumerate(numbers) if number >= 0), len(numbers) - 1)
    role = next((i for i, word in enumerate(MODULES) if word in name), len(MODULES))
    return numbers[: layer + 1], role, name


def sharded(model: Path, target: Path) -> Path:
    """The same model in three files, which end inside of layers."""
    opened = open_model(str(model))
    tensors = {n: t.flat().reshape(t.shape) for n, t in opened.tensors.items()}
    target.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    names, total = sorted(tensors, key=_as_modules), sum(v.nbytes for v in tensors.values())
    parts: list[dict[str, Any]] = [{} for _ in range(SHARDS)]
    done = 0
    for name in names:
        parts[min(SHARDS - 1, SHARDS * done // total)][name] = tensors[name]
        done += tensors[name].nbytes
    files = [f"model-{i + 1:05}-of-{SHARDS:05}.safetensors" for i in range(SHARDS)]
    for file, part in zip(files, parts, strict=True):
        save_file(part, target / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, part in zip(files, parts, strict=True) for n in part}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def extracted(python: Path, folders: Mapping[str, Path], work: Path, routes: Sequence[str]) -> None:
    """The peer's arrays of every model and route, in `work/peer`; those that are there are not made again."""
    jobs = []
    for name, folder in folders.items():
        for route in routes:
            if not list((work / "peer").glob(f"{name}.{route}.*")):
                where = sharded(folder, work / "shards" / name) if route == "files" else folder
                jobs.append({"name": name, "folder": str(where), "route": route})
    (work / "job.json").write_text(json.dumps(jobs))
    command = [str(python), str(HERE / "samples_worker.py"), str(work / "job.json"), str(work / "peer")]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL)


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as stored:
        found: dict[str, Any] = {n: stored[n] for n in stored.files if not n.startswith("wvc/")}
        layers = {int(n[4:]): stored[n] for n in stored.files if n.startswith("wvc/")}
    found["nlf_mode"], found["nlf_num_layers"] = str(found["nlf_mode"]), int(found["nlf_num_layers"])
    return found | ({"wvc_layer_sigs": layers} if layers else {})


def imported(name: str, checkpoint: Checkpoint, route: str, work: Path) -> Fingerprint | None:
    """The row of a model from the peer's arrays, after storage; None where the peer could not read the model."""
    path = work / "peer" / f"{name}.{route}.npz"
    if not path.exists():
        return None
    usual = {limit: getattr(cisco_signals, limit) for limit in LIMITS[route]}
    try:
        for limit, value in LIMITS[route].items():
            setattr(cisco_signals, limit, value)
        with tempfile.TemporaryDirectory() as folder:
            peer_files.Database(Path(folder)).add(name, checkpoint, arrays=arrays(path))
            (row,) = list(read_database(Path(folder)))
    finally:
        for limit, value in usual.items():
            setattr(cisco_signals, limit, value)
    assert isinstance(row, Fingerprint), row
    return from_row(to_row(row))


def ours(checkpoint: Checkpoint, name: str) -> tuple[Fingerprint, Fingerprint]:
    """The row as made here after storage, and the same with the slices that weights at hand give."""
    model = prints.in_memory(checkpoint, name)
    made = from_row(to_row(prints.fingerprint(checkpoint, name)))
    return made, replace(made, more={**made.more, "slices": slices(model, sliced=True)})


def line(label: str, pairs: Sequence[tuple[Fingerprint, Fingerprint]]) -> None:
    """One line: how often the tests ran, how many pairs they link and how many the verdict does."""
    ran, relations = [], defaultdict(int)
    why: dict[str, int] = defaultdict(int)
    for host, guest in pairs:
        found, pair = sampled.sampled_tests(host, guest), compare(host, guest)
        relations[pair.relation or pair.verdict] += 1
        outcomes = [o.log10_p for o in (found.fixed, found.aligned) if o.log10_p is not None]
        ran += [min(outcomes)] if outcomes else []
        for reason in found.aligned.reasons if not outcomes else ():
            why[str(reason.code)] += 1
    linked = sum(p <= LINKED for p in ran)
    worst = f"{min(ran):.1f} to {max(ran):.1f}" if ran else "-"
    said = ", ".join(f"{k} {v}" for k, v in sorted(relations.items())) + "".join(f"; {k} {v}" for k, v in why.items())
    print(f"| {label} | {len(pairs)} | {len(ran)} | {linked} | {worst} | {said} |", flush=True)


HEAD = "| {} | pairs | ran | linked by samples | log10 p | relations and verdicts; absent because |\n|---|" + "--:|" * 5


def checkpoint_of(folder: Path) -> Checkpoint:
    opened = open_model(str(folder))
    tensors = {n: np.array(t.flat().reshape(t.shape)) for n, t in opened.tensors.items()}
    text = folder / "tokenizer.json"
    return Checkpoint(dict(opened.config), tensors, text.read_text("utf-8") if text.exists() else None)


def real(python: Path, models: Path, work: Path, routes: Sequence[str]) -> None:
    folders = {p.name: p for p in sorted(models.iterdir()) if list(p.glob("*.safetensors"))}
    extracted(python, folders, work, routes)
    rows: dict[tuple[str, str], list[tuple[Fingerprint, Fingerprint]]] = defaultdict(list)
    for name, folder in folders.items():
        whole = checkpoint_of(folder)
        guests = {}
        try:
            guests = {route: imported(name, whole, route, work) for route in routes}
        except AssertionError as error:  # no tokenizer that the writer of the database could use
            print(f"{name}: {error}", file=sys.stderr)
        for kind, change in DERIVATIVES.items() if any(guests.values()) else ():
            made = ours(replace(whole, tensors=_matrices(whole.tensors, change)), kind)
            for route, guest in guests.items():
                if guest is not None:
                    rows[route, kind].append((made[route == "sliced"], guest))
        print(f"{name}: {[r for r, g in guests.items() if g is not None]}", file=sys.stderr, flush=True)
    for route in routes:
        print(f"\nReal models, the peer's route: {route}\n\n" + HEAD.format("derivative"))
        for kind in DERIVATIVES:
            line(kind, rows[route, kind])


def trained(python: Path, root: Path, work: Path, routes: Sequence[str]) -> None:
    """30 bases: their derivatives against their rows, and all pairs of them."""
    found = [(z, n) for z in ("benchmark", "calibration") for n in store.trained(root, z) if not n.startswith("gpt2")]
    models = {n: (z, *store.load(root, z, n)) for z, n in found}
    bases = [n for n, (_, _, t) in models.items() if t.kind == "base"]
    parents = [n for n in bases if any(t.ancestor == n for _, _, t in models.values())]
    chosen = (parents + [n for n in bases if n not in parents])[:30]
    extracted(python, {n: root / models[n][0] / n for n in chosen}, work, routes)

    def checkpoint(snapshot: Any) -> Checkpoint:
        return Checkpoint(dict(snapshot.config), dict(snapshot.tensors), snapshot.tokenizer or None)

    def kin() -> Iterator[tuple[str, str, Any]]:
        for name, (_, snapshot, truth) in models.items():
            base = truth.ancestor or truth.start
            if base in chosen and name not in chosen:
                yield truth.kind, base, snapshot
        for name in parents:
            yield from ((truth.kind, name, s) for s, truth in store.free(root, "benchmark", name))

    hosts = {n: ours(checkpoint(models[n][1]), n) for n in chosen}
    made = [(kind, base, ours(checkpoint(s), s.name)) for kind, base, s in kin()]
    for route in routes:
        guests = {n: imported(n, checkpoint(models[n][1]), route, work) for n in chosen}
        print(f"\nTrained small models, the peer's route: {route}\n\n" + HEAD.format("pairs"))
        kinds: dict[str, list[tuple[Fingerprint, Fingerprint]]] = defaultdict(list)
        for kind, base, rows in made:
            if (guest := guests[base]) is not None:
                kinds[kind].append((rows[route == "sliced"], guest))
        for kind, pairs in sorted(kinds.items()):
            line(kind, pairs)
        strangers = [
            (hosts[a][route == "sliced"], guests[b])
            for a, b in itertools.permutations(chosen, 2)
            if guests[b] is not None and models[a][1].config["model_type"] == models[b][1].config["model_type"]
        ]
        line("strangers of one architecture", [(host, guest) for host, guest in strangers if guest is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a python that has the peer installed")
    parser.add_argument("--models", type=Path, help="a folder of model folders")
    parser.add_argument("--zoo", type=Path, help="where build_index.zoo keeps its models")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=ROUTES)
    parser.add_argument("--work", type=Path, required=True, help="where the peer's answers are kept")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.models:
        real(chosen.peer, chosen.models, chosen.work, chosen.routes)
    if chosen.zoo:
        trained(chosen.peer, chosen.zoo, chosen.work, chosen.routes)


if __name__ == "__main__":
    main()
