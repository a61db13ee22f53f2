"""What a pull of the peer's database costs: `python tests/benchmarks/peer_pull.py [--root FOLDER]`.

The archive has one file for each model of the embedded catalogue, of the real lengths that the catalogue states, in the
peer's long form; the values are random numbers of 16 bits (bfloat16). It is made once, in FOLDER: a minute, 0.9 GB.
It lies on a Hub on 127.0.0.1, so the seconds are those of our side: divide the bytes by the bandwidth of yours. Each
command is a process of its own; MB is the peak of its resident memory.

With --beside INDEX --ask MODEL it also says what the rows cost a query: medians of seven, of INDEX alone and of both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from hub_server import Hub
from hub_server.store import Repo, git_oid, pointer

from provindex.common.files import file_sha256
from provindex.peers import cisco
from provindex.peers.table import PEERS

(PEER,) = PEERS
REPEATED = 7
# Starts a command, and writes its peak of resident memory in kB. What a large process starts would count the memory of
# that one as its own, so a small one starts it.
SMALL = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as note: note.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""
SCHEMA = pa.schema(
    [("signal", pa.string()), ("layer", pa.int32()), ("row", pa.int32()), ("col", pa.int32()), ("value", pa.float32())]
)


# --- the archive ---


def bf16(rng: np.random.Generator, count: int) -> Any:
    """Random numbers that bfloat16 can hold, as weights have them."""
    values = rng.standard_normal(count, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def signals(lengths: Mapping[str, Any], rng: np.random.Generator) -> list[tuple[str, Any, Any, Any, Any]]:
    """(signal, layer, row, col, value) arrays of a model; layer and col None where the form has none."""

    def vector(name: str, values: Any) -> tuple[str, Any, Any, Any, Any]:
        return name, None, np.arange(values.size), None, values

    found = []
    if shape := lengths.get("eas_self_sim_shape"):
        rows = rng.standard_normal((shape[0], 32), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        at = np.arange(shape[0] ** 2)
        found.append(("eas_self_sim", None, at // shape[0], at % shape[0], (rows @ rows.T).reshape(-1)))
    if count := lengths.get("nlf_vector_length"):
        found.append(vector("nlf_vector", 1 + bf16(rng, count)))
    if count := lengths.get("lep_profile_length"):
        found.append(vector("lep_profile", rng.uniform(0.5, 1, count).astype(np.float32)))
    if count := lengths.get("end_histogram_bins"):
        found.append(vector("end_histogram", np.full(count, 1 / count, np.float32)))
    if count := lengths.get("wsp_signature_length"):
        found.append(vector("wsp_signature", bf16(rng, count)))
    if layers := lengths.get("wvc_layer_count"):
        size = lengths["wvc_layer_vector_length"]
        layer, row = np.divmod(np.arange(layers * size), size)
        found.append(("wvc_layer_sigs", layer, row, None, bf16(rng, layers * size)))
    return found


def parquet(parts: list[tuple[str, Any, Any, Any, Any]], path: Path) -> None:
    """One number a row."""
    tables = []
    for name, layer, row, col, value in parts:
        columns = [pa.DictionaryArray.from_arrays(pa.array(np.zeros(value.size, np.int8)), [name]).cast(pa.string())]
        for cells in (layer, row, col):
            whole = pa.nulls(value.size, pa.int32()) if cells is None else pa.array(cells.astype(np.int32))
            columns.append(whole)
        tables.append(pa.table([*columns, pa.array(value.astype(np.float32))], schema=SCHEMA))
    pq.write_table(pa.concat_tables(tables), path, compression="snappy")


def make_archive(path: Path) -> int:
    """Write the archive; how many files it has."""
    count = 0
    documents = cisco.embedded().files
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, zipfile.ZipFile(path, "w") as archive:
        for name, file in documents.items():
            if not name.startswith("features/"):
                continue
            bundle = file["document"]
            seed = int.from_bytes(hashlib.sha256(bundle["asset_id"].encode()).digest()[:8], "little")
            made = Path(scratch) / "made"
            parquet(signals(bundle["signals"], np.random.default_rng(seed)), made)
            inside = bundle["artifact_refs"][0]["path"].removeprefix("features/")
            archive.write(made, inside)
            count += 1
    return count


def publish(hub: Hub, archive: Path) -> str:
    """Put the archive on the Hub without copying it through memory; its digest."""
    digest, size = file_sha256(archive), archive.stat().st_size
    os.link(archive, hub.root / "lfs" / digest)
    tree = {PEER.archive.path: [git_oid("blob", pointer(digest, size)), size, digest]}
    one = hub.repos.setdefault(("dataset", PEER.repo), Repo(hub, "dataset", PEER.repo))
    one.commit("refs/heads/main", list(one.refs.values()), tree, "publish", "", "alice")
    return digest


# --- the commands ---


@dataclass(frozen=True)
class Machine:
    """Where one person works: `provindex ...` in processes of their own."""

    folder: Path
    hub: str

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def start(self, *arguments: str, note: Path | None = None) -> subprocess.Popen[str]:
        places = {"HF_HOME": str(self.folder / "hf"), "PROVINDEX_CACHE": str(self.cache), "HF_ENDPOINT": self.hub}
        command = [sys.executable, "-m", "provindex", *arguments, "--json", "-q"]
        wrapped = command if note is None else [sys.executable, "-c", SMALL, str(note), *command]
        return subprocess.Popen(wrapped, env={**os.environ, **places}, stdout=subprocess.PIPE, text=True)

    def ran(self, *arguments: str) -> tuple[dict[str, Any], float, float]:
        """(document, seconds, peak MB)."""
        self.folder.mkdir(exist_ok=True)
        note, start = self.folder / "peak", time.perf_counter()
        process = self.start(*arguments, note=note)
        said, _ = process.communicate()
        if process.returncode:
            sys.exit(f"exit status {process.returncode}")
        return json.loads(said), time.perf_counter() - start, int(note.read_text()) / 1e3

    def killed_when(self, reached: Callable[[], bool], *arguments: str) -> float:
        """Kill a command as soon as something is true; seconds until then."""
        start = time.perf_counter()
        process = self.start(*arguments)
        while not reached():
            if process.poll() is not None:
                sys.exit("it ended before it could be killed")
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return time.perf_counter() - start


def size_of(folder: Path, pattern: str) -> int:
    return sum(f.stat().st_size for f in folder.rglob(pattern) if f.is_file()) if folder.is_dir() else 0


def line(what: str, seconds: float, mb: float | None, done: Mapping[str, Any] | None) -> None:
    fetched = "" if done is None else f"{done['bytes_fetched'] / 1e6:,.1f}"
    made, kept = ("", "") if done is None else (done["rows_made"], done["rows_kept"])
    memory = "" if mb is None else f"{mb:,.0f}"
    print(f"| {what} | {fetched} | {made} | {kept} | {seconds:.1f} | {memory} |", flush=True)


def measure(hub: Hub, digest: str, size: int, work: Path) -> Machine:
    pull = ("index", "pull", PEER.repo, "--sha256", digest)
    print("| command | MB fetched | rows made | rows kept | s | peak MB |\n|---|--:|--:|--:|--:|--:|")
    whole, cut = Machine(work / "whole", hub.url), Machine(work / "cut", hub.url)
    first, seconds, mb = whole.ran(*pull)
    line("pull", seconds, mb, first["pulled"])
    hub.log.clear()
    again, seconds, mb = whole.ran(*pull)
    line(f"pull again ({len(hub.log)} requests)", seconds, mb, again["pulled"])
    _, seconds, mb = whole.ran("index", "list", "--offline")
    line("list", seconds, mb, None)
    _, seconds, mb = whole.ran("query", "meta-llama/Llama-3.1-8B", "--offline")
    line("query of a row, 50 candidates", seconds, mb, None)
    _, seconds, mb = whole.ran("index", "verify", "--index", PEER.repo, "--offline")
    line("verify", seconds, mb, None)

    def rows() -> int:
        return len(list(cut.cache.rglob("data/panels/*.parquet"))) * cisco.SAVE_EVERY

    spent = cut.killed_when(lambda: size_of(cut.cache, "*.part") > size // 2, *pull)
    part = size_of(cut.cache, "*.part")
    line(f"pull, killed with {part / 1e6:,.1f} MB here", spent, None, None)
    spent = cut.killed_when(lambda: rows() >= 64, *pull)
    line(f"pull, killed with up to {rows()} rows here", spent, None, None)
    rest, seconds, mb = cut.ran(*pull)
    line("pull, to the end", seconds, mb, rest["pulled"])
    served = sum(entry[3] for entry in hub.log if "/_lfs/" in entry[1])  # answers that ended; the killed one did not
    same = {k: v for k, v in first["index"].items() if k != "built"} == {
        k: v for k, v in rest["index"].items() if k != "built"
    }
    print(f"\nfetched again: {(part + served - size) / 1e6:,.1f} of {size / 1e6:,.1f} MB; the same index: {same};")
    print(f"rows on the disk: {first['bytes'] / 1e6:,.1f} MB")
    return whole


def beside(machine: Machine, index: str, model: str) -> None:
    """What a query costs with and without the peer's rows."""
    print("\n| query | models | s | peak MB | linked |\n|---|--:|--:|--:|--:|")
    for name, folders in (("without", (index,)), ("with", (index, PEER.repo))):
        options = [part for folder in folders for part in ("--index", folder)]
        found = [machine.ran("query", model, "--offline", *options) for _ in range(1 + REPEATED)][1:]
        answer, seconds, mb = found[0][0], statistics.median(s for _, s, _ in found), max(m for _, _, m in found)
        print(f"| {name} | {answer['index']['models']:,} | {seconds:.2f} | {mb:,.0f} | {len(answer['matches'])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the archive is kept; a temporary folder if not given")
    parser.add_argument("--beside", help="an index, to query with and without the peer's rows")
    parser.add_argument("--ask", help="the model to query it with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.root) as temporary:
        archive = (options.root or Path(temporary)) / PEER.archive.path
        if not archive.exists():
            draft = archive.with_suffix(".draft")
            make_archive(draft)
            draft.rename(archive)
        with Hub(Path(temporary) / "hub").run() as hub:
            machine = measure(hub, publish(hub, archive), archive.stat().st_size, Path(temporary))
            if options.beside and options.ask:
                beside(machine, options.beside, options.ask)


if __name__ == "__main__":
    main()
