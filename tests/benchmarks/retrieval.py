"""What a query costs on a large index: `python tests/benchmarks/retrieval.py [--root FOLDER] [--models 10000]`.

The index is synthetic and kept in `--root`, so that it is built once. Every row's hash is right, and every vector has
its true width. Two hundred rows have the size of a 7B model (32 layers, width 4,096, fingerprinted in exact mode from
noise), in families of 20, and stand all over the index. The others are one small model under other names, each with
another row of its arrays and a vector drawn at random: a query reads the panels of candidates only, and retrieval
brings the large ones for a large query, because they alone have something in common. In-process numbers are the median
of `--repeat` runs in one process whose index is loaded; processes are new ones, with all files in the page cache.
Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from provindex.common.files import file_sha256
from provindex.fingerprint import parquet

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does
sys.path.insert(0, str(Path(__file__).parents[1]))

import zoo
from prints import fingerprint, in_memory

from provindex.api import Index
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import COLUMNS, Row, from_row, row_hash, to_row
from provindex.formats.tensors import tensor_from_array
from provindex.index import dataset
from provindex.index.collection import ROWS_PER_SHARD
from provindex.index.entries import SEED
from provindex.index.search import BLOCKS, DIMENSIONS, vector
from provindex.models.source import Model
from provindex.verdict.pair import compare

HERE = Path(__file__).resolve()
LARGE, FAMILY = 200, 20  # rows of the size of a 7B model, and how many of them have one parent
KIN = 0.9  # cosine of a child with its parent
ALIKE = {  # what large strangers have in common, so that they and not the small ones are candidates
    "eas": 0.7, "eas_by_id": 0.7, "sketch_whole": 0.7, "sketch_id_whole": 0.7, "wvc": 0.5,
    "lep": 0.95, "end": 0.95,
}  # fmt: skip
SEVEN_B = {"hidden": 4096, "intermediate": 11_008, "layers": 32, "vocabulary": 32_000}
Numbers = dict[str, float]


# --- building ---


def large() -> Fingerprint:
    """A model of Llama-2-7B's shape, its weights cut out of one piece of noise."""
    width, inner, layers, rows = SEVEN_B.values()
    small = zoo.llama_config(tied=False)
    config = small | {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": rows,
    }  # fmt: skip
    shapes = {"model.embed_tokens": (rows, width), "lm_head": (rows, width)}
    for layer in range(layers):
        attention = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
        mlp = {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in (attention | mlp).items()}
    noise = 0.02 * np.random.default_rng(0).standard_normal(rows * width + 10_007 * len(shapes), np.float32)
    noise = noise.astype(np.float16)
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):  # an offset that no row length divides
        cut = noise[10_007 * number :][: shape[0] * shape[1]].reshape(shape)
        tensors[f"{name}.weight"] = tensor_from_array(f"{name}.weight", cut)
    norms = [f"model.layers.{i}.{name}_layernorm" for i in range(layers) for name in ("input", "post_attention")]
    for name in (*norms, "model.norm"):
        tensors[f"{name}.weight"] = tensor_from_array(f"{name}.weight", 1 + noise[:width])
        noise = np.roll(noise[: 1 << 20], 4099)
    texts = in_memory(zoo.llama(0)).tokenizer_files
    return fingerprint_model(Model("large", None, config, None, tensors, texts, ()))


def redrawn(template: Row, seed: int, cosine: float | None) -> Row:
    """A row with other numbers: a child's at this cosine to the template, or a stranger's (None)."""
    rng = np.random.default_rng(seed)
    row = dict(template)
    for column in COLUMNS:
        old = template[column.name]
        if not isinstance(old, np.ndarray) or not old.size or not column.content:
            continue
        if old.dtype.kind == "f":
            kept = ALIKE.get(column.name, 0.0) if cosine is None else cosine
            fresh = rng.standard_normal(old.size, np.float32) * (float(old.std(dtype=np.float64)) or 1e-3)
            row[column.name] = (kept * old + (1 - kept**2) ** 0.5 * fresh).astype(old.dtype)
        elif old.dtype == np.uint64 and (cosine is None or column.name.startswith("block")):
            row[column.name] = rng.integers(1, 1 << 63, old.size).astype(np.uint64)
        elif old.dtype == np.int8 and cosine is None:
            row[column.name] = rng.permutation(old)
    return row


def named(row: Row, model_id: str, family: str, like: Row) -> Row:
    """A row under a name of its own, with the facts about files of a real row."""
    digest = hashlib.sha256(model_id.encode()).hexdigest()
    told = {name: like[name] for name in ("files", "source", "license", "warnings")}
    row = row | told | {"model_id": model_id, "family": family, "revision": digest[:40], "content_sha256": digest}
    return row | {"row_sha256": row_hash(row)}


Templates = tuple[list[Row], Row, Row]


def templates() -> Templates:
    """Rows of real models, for what is said about files; of the large model; of the small one."""
    real = [to_row(entry.load()) for entry in Index.load(SEED)]
    return real, to_row(large()), to_row(fingerprint(zoo.llama(1, layers=1, hidden=32)))


def model(number: int, count: int, made: Templates) -> Row:
    """One row of `count`, with its vector; the large ones are evenly spread."""
    real, big, little = made
    like, every = real[number % len(real)], max(1, count // LARGE)
    place = number // every
    if number % every or place >= LARGE:
        vector_like = np.random.default_rng(number).standard_normal(DIMENSIONS, np.float32) / DIMENSIONS**0.5
        start = sum(width for name, (width, _) in list(BLOCKS.items())[: list(BLOCKS).index("digests")])
        vector_like[start : start + BLOCKS["digests"][0]] = 0  # no common block with anybody
        row = named(little, f"org{number % 97}/small{number}", f"org{number % 97}/small{number}", like)
        return row | {dataset.VECTOR: vector_like}
    family, member = divmod(place, FAMILY)
    row = redrawn(big, family, None)
    row = redrawn(row, 1000 + place, KIN) if member else row
    row |= {name: np.ones_like(row[name]) for name in ("block_scales", "wvc_scales")}
    row = to_row(from_row(row | {"row_sha256": ""}))  # as a fingerprint has it: scales of samples are powers of two
    row = named(row, f"large{family}/model{member}", f"large{family}/model0", like)
    return row | {dataset.VECTOR: vector(from_row(row))}


def shard(folder: Path, start: int, count: int, made: Templates) -> dataset.Shard:
    """Rows `start` and on, written as `dataset.write_shard` does, but for vectors that need not follow."""
    rows = [model(number, count, made) for number in range(start, min(start + ROWS_PER_SHARD, count))]
    paths = {table: f"data/{table}/synthetic-{start:05}.parquet" for table in ("models", "panels")}
    for table, path in paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        parquet.write(folder / path, rows, dataset.schema(table), 1 if table == "panels" else dataset.MODELS_PER_GROUP)
    digests = {path: file_sha256(folder / path) for path in paths.values()}
    sizes = {path: (folder / path).stat().st_size for path in paths.values()}
    return dataset.Shard(paths["models"], paths["panels"], len(rows), digests, sizes)


def build(folder: Path, count: int, made: Templates) -> None:
    """An index of that many models; the manifest comes last, so what was cut off is built again."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(shard, folder, start, count, made) for start in range(0, count, ROWS_PER_SHARD)]
        shards = []
        for done in running:
            shards.append(done.result())
            print(f"\rbuilding {folder.name}: {len(shards)} of {len(running)} shards", end="", file=sys.stderr)
    print(file=sys.stderr)
    dataset.write_manifest(folder, dataset.Manifest("synthetic", "2026-01-01T00:00:00Z", tuple(shards)))


# --- measuring ---


def timed(work: Callable[[], Any], repeat: int) -> float:
    """Median seconds of a call."""
    spent = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def resident() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def asked(index: Index) -> Fingerprint:
    """A large model that no row has: 19 of its kin are in the index."""
    return index["large1/model7"]


def parts(folder: Path, repeat: int) -> Numbers:
    """Seconds of each part of a query, in one process."""
    start = time.perf_counter()
    index = Index.load(folder)
    loaded = time.perf_counter() - start
    fp = asked(index)
    start = time.perf_counter()
    nearest = index.nearest(fp, 50)
    first = time.perf_counter() - start
    entries = [entry for entry, _, _ in nearest]
    large_ones = sum(entry.model_id.startswith("large") for entry in entries)
    assert large_ones >= 0.9 * len(entries), f"{large_ones} of {len(entries)} candidates are large"
    others = [entry.load() for entry in entries]
    found: Numbers = {
        "load": loaded,
        "first search": first,
        "search": timed(lambda: index.nearest(fp, 50), repeat),
        "50 candidates": timed(lambda: [entry.load() for entry in entries], repeat),
        "50 compares": timed(lambda: [compare(fp, other, models=len(index)) for other in others], repeat),
        "query": timed(lambda: index.query(fp), repeat),
        "MB": resident(),
    }
    result = index.query(fp)
    assert len(result.linked) == FAMILY - 1, f"{len(result.linked)} linked"
    return found


def process(folder: Path, repeat: int) -> Numbers:
    """Seconds and memory of `provindex query ID --offline` as a process."""
    command = [sys.executable, "-m", "provindex", "query", "large1/model7", "--offline", "--index", str(folder)]
    spent, memory = [], []
    for _ in range(repeat):
        with tempfile.TemporaryFile() as out:
            start = time.perf_counter()
            child = subprocess.Popen(command, stdout=out, stderr=out)
            _, status, usage = os.wait4(child.pid, 0)
            spent.append(time.perf_counter() - start)
            out.seek(0)
            if status:
                sys.exit(out.read().decode())
        memory.append(usage.ru_maxrss / 1024)
    return {"process": statistics.median(spent), "process MB": max(memory)}


MEASURES: dict[str, Callable[[Path, int], Numbers]] = {"parts": parts, "process": process}


def measured(folder: Path, measure: str, repeat: int) -> Numbers:
    """A measurement in a process of its own."""
    command = [sys.executable, str(HERE), "--measure", measure, "--root", str(folder), "--repeat", str(repeat)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{measure} failed: {done.stderr.strip()[-2000:]}")
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def report(root: Path, counts: Sequence[int], repeat: int) -> None:
    """Build what is missing, measure, print a table."""
    missing = [count for count in counts if not (root / f"index-{count}" / dataset.MANIFEST).exists()]
    made = templates() if missing else None
    for number, count in enumerate(counts):
        folder = root / f"index-{count}"
        if made and count in missing:
            build(folder, count, made)
        numbers = {name: value for measure in MEASURES for name, value in measured(folder, measure, repeat).items()}
        if not number:
            print("| models | " + " | ".join(numbers) + " |\n|" + "--:|" * (len(numbers) + 1))
        cells = (f"{value:.0f}" if "MB" in name else f"{value:.3f}" for name, value in numbers.items())
        print(f"| {count:,} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the indexes are kept; a temporary folder if not given")
    parser.add_argument("--models", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.root, options.repeat)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        report(options.root or Path(temporary), options.models, options.repeat)


if __name__ == "__main__":
    main()
