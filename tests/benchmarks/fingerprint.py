"""How fast a fingerprint is made, and in how much memory: `python tests/benchmarks/fingerprint.py MODEL_FOLDER ...`.

Speeds are bytes of weights a second beside a plain sequential read of the same file from the page cache. Every run is
a process of its own with an empty cache of its own; the best of `--repeat` runs counts. `--peer-python PATH` is the
interpreter of an environment with Cisco's model-provenance-kit 1.0.0: its extraction runs on the same folders.
Linux only: anonymous memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Numbers = dict[str, float]
BLOCK = 1 << 20  # bytes of a plain read
HERE = Path(__file__).resolve()
COLUMNS = (
    *("read GB/s", "sha256", "GB/s", "of read", "GB/cpu s"),
    *("all s", "anon MB", "tokens s", "scan s", "rest s", "again s"),
)


def main() -> None:
    """Measure and print a table; `--measure` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders of a model with safetensors files")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, the best one counts")
    parser.add_argument("--peer-python", type=Path, help="interpreter of the peer's environment")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.models[0])))
        return
    print(f"{'model':28} {'MB':>6} " + " ".join(f"{name:>9}" for name in COLUMNS) + peer_head(options.peer_python))
    for folder in options.models:
        print(row(folder, options.repeat, options.peer_python), flush=True)


def peer_head(peer: Path | None) -> str:
    return f" {'peer s':>9} {'anon MB':>9} {'times':>6}" if peer else ""


def row(folder: Path, repeat: int, peer: Path | None) -> str:
    """One line of the table."""
    size = sum(file.stat().st_size for file in weight_files(folder))
    read = best(folder, "read", repeat)["seconds"]
    ours = best(folder, "fingerprint", repeat)
    parts = best(folder, "parts", repeat)
    rest = ours["seconds"] - parts["tokens"] - parts["scan"]
    speeds = [size / spent / 1e9 for spent in (read, parts["sha256"], ours["seconds"], ours["processor"])]
    values = (*speeds[:3], read / ours["seconds"], speeds[3])
    line = f"{folder.name:28} {size / 1e6:6.0f} " + " ".join(f"{value:9.3f}" for value in values)
    line += f" {ours['seconds']:9.2f} {ours['anonymous']:9.0f}"
    line += "".join(f" {value:9.2f}" for value in (parts["tokens"], parts["scan"], rest, ours["again"]))
    if peer:
        theirs = best(folder, "peer", 1, peer)
        line += f" {theirs['seconds']:9.2f} {theirs['anonymous']:9.0f} {theirs['seconds'] / ours['seconds']:6.1f}"
    return line


def best(folder: Path, measure: str, repeat: int, python: Path | None = None) -> Numbers:
    """The fastest run of a measurement, each in a new process: the least of every number."""
    runs: list[Numbers] = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as cache:
            command = [str(python or sys.executable), str(HERE), "--measure", measure, str(folder)]
            environment = {**os.environ, "PROVINDEX_CACHE": cache, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{measure} of {folder} failed: {done.stderr.strip()[-2000:]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: min(run[key] for run in runs) for key in runs[0]}


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# --- in the measuring process ---


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@contextmanager
def watched() -> Iterator[Numbers]:
    """The largest anonymous resident memory of this process while the block runs, in MB, in "anonymous" at its end."""
    found, done = {"anonymous": 0.0}, threading.Event()

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            found["anonymous"] = max(found["anonymous"], int(status.split("RssAnon:")[1].split()[0]) / 1e3)
            if done.wait(0.005):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def read(folder: Path) -> Numbers:
    """A plain sequential read, the second one: the first fills the page cache."""
    buffer = bytearray(BLOCK)

    def through() -> None:
        for path in weight_files(folder):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return {"seconds": min(seconds(through) for _ in range(2))}


def fingerprint(folder: Path) -> Numbers:
    """All that `provindex fingerprint` does after its imports, with an empty cache, and again with a full one."""
    from provindex.api import fingerprint as make

    begun = time.process_time()
    with watched() as found:
        first = seconds(lambda: make(folder))
    processor = time.process_time() - begun
    again = seconds(lambda: make(folder))
    return {**found, "seconds": first, "processor": processor, "again": again}


def parts(folder: Path) -> Numbers:
    """Where the time goes: the tokenizer and its signals, the pass over the weights; and sha256 alone on one core."""
    import hashlib
    from concurrent.futures import ThreadPoolExecutor

    from provindex.common.threads import workers
    from provindex.common.tokens import Tokenizer
    from provindex.fingerprint.extract.scan import scan
    from provindex.models.source import open_model
    from provindex.models.tokenizer import read_tokenizer
    from provindex.signals import tfv, voa

    model = open_model(str(folder))

    def tokens() -> None:
        tokenizer = read_tokenizer(model.tokenizer_files, model.config)
        if isinstance(tokenizer, Tokenizer):
            tfv.extract(tokenizer)
            voa.sketch(tokenizer.vocab)

    def scanned() -> None:
        with ThreadPoolExecutor(workers()) as pool:
            list(pool.map(scan, model.tensors.values()))

    def hashed() -> None:
        for tensor in model.tensors.values():
            hashlib.sha256(tensor.raw())

    return {
        "tokens": seconds(tokens),
        "scan": seconds(scanned),
        "sha256": seconds(hashed),
    }


def peer(folder: Path) -> Numbers:
    """The peer's extraction of everything that its `compare` needs of one model, after its imports."""
    import logging

    import structlog  # type: ignore[import-not-found]

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    from provenancekit.core.signals import weight_signals  # type: ignore[import-not-found]
    from provenancekit.core.signals.metadata import extract_fingerprint  # type: ignore[import-not-found]
    from provenancekit.core.signals.tokenizer import extract_tokenizer_features  # type: ignore[import-not-found]
    from provenancekit.services.model_loader import load_state_dict  # type: ignore[import-not-found]

    def extract() -> None:
        _, tokenizer = extract_fingerprint(str(folder))
        extract_tokenizer_features(str(folder), tokenizer=tokenizer)
        loaded = load_state_dict(str(folder))
        words = list(tokenizer.get_vocab())
        weight_signals.extract_signals(loaded.state_dict, loaded.config, tokenizer=tokenizer, vocab=words)

    with watched() as found:
        spent = seconds(extract)
    return {**found, "seconds": spent}


MEASURES: dict[str, Callable[[Path], Numbers]] = {
    "read": read,
    "fingerprint": fingerprint,
    "parts": parts,
    "peer": peer,
}

if __name__ == "__main__":
    main()
