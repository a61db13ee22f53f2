"""Try hostile files on the command: `python tests/hostile/run.py --count 1300`. Linux only."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import pkgutil
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hostile.kinds import Kind  # noqa: E402
from hostile.limits import Outcome, run  # noqa: E402
from hostile.place import Place, secrets  # noqa: E402


@dataclass(frozen=True)
class Tried:
    """An input that was tried."""

    kind: str
    number: int
    outcome: Outcome


def prepare(cache: Path) -> None:
    """Import all of provindex and what it imports late, once: each input gets a copy of this process. No thread may
    have been started when a process is copied.
    """
    os.environ.update(PROVINDEX_CACHE=str(cache / "ours"), HF_HOME=str(cache / "hub"), HF_HUB_OFFLINE="1")
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", RUST_BACKTRACE="0", COLUMNS="120")
    for name in ("SOURCE_DATE_EPOCH", "PROVINDEX_INDEX", "PROVINDEX_DEBUG", "PROVINDEX_DATASET"):
        os.environ.pop(name, None)
    import provindex

    for module in pkgutil.walk_packages(provindex.__path__, "provindex."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for late in ("tokenizers", "pyarrow.parquet", "faiss", "filelock", "threadpoolctl", "huggingface_hub"):
        importlib.import_module(late)


def tries(kinds: Sequence[Kind], count: int, start: int = 0) -> Iterator[tuple[Kind, int]]:
    """`count` inputs, the same number of each kind, more of those with a larger share."""
    total = sum(kind.share for kind in kinds)
    for kind in kinds:
        for number in range(start, start + math.ceil(count * kind.share / total)):
            yield kind, number


def attempt(kind: Kind, number: int, scratch: Path) -> Outcome:
    """Make one input, in a child of its own, and run the command on it."""
    home = scratch / "input"
    home.mkdir()
    place = Place(home / "model", home / "outside", random.Random(f"{kind.name} {number}"), number)
    place.folder.mkdir()
    secrets(place.outside)
    kind.make(place)
    arguments = _arguments(place, number, home)
    try:
        return run(place, arguments, seconds=kind.seconds, megabytes=kind.megabytes)
    finally:
        for path in home.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(home)


def _arguments(place: Place, number: int, home: Path) -> list[str]:
    """The command line: verbs and formats take turns."""
    asked = str(place.asked or place.folder)
    if place.output:
        return ["fingerprint", asked, "--offline", "-o", str(home / "made.parquet")]
    verbs: tuple[list[str], ...] = (
        ["fingerprint", asked, "--json"],
        ["query", asked],
        ["fingerprint", asked, "--verbose"],
        ["compare", asked, asked, "--json"],
        ["fingerprint", asked, "--mode", "sampled"],
        ["query", asked, "--json", "--deny", "sentence-transformers/all-MiniLM-L6-v2"],
        ["fingerprint", asked, "--mode", "norms"],
    )
    return [*verbs[number % len(verbs)], "--offline"]


def table(tried: Sequence[Tried]) -> str:
    """What was tried, as Markdown."""
    lines = [
        "| kind | inputs | worst s | worst MB | status 0 | 1 | 2 | 3 | faults |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in [*dict.fromkeys(one.kind for one in tried), "all"]:
        found = [one.outcome for one in tried if name in (one.kind, "all")]
        counts = " | ".join(str(sum(one.status == status for one in found)) for status in range(4))
        worst, most = max(one.seconds for one in found), max(one.megabytes for one in found)
        lines.append(
            f"| {name} | {len(found):,} | {worst:.1f} | {most:,.0f} | {counts} | {sum(bool(o.faults) for o in found)} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, tell what was at fault, print the table; 1 if anything was."""
    parser = argparse.ArgumentParser(prog="hostile", description=__doc__)
    parser.add_argument("--registry", default="hostile.kinds", help="module with the kinds")
    parser.add_argument("--count", type=int, default=100, help="inputs of all kinds together")
    parser.add_argument("--start", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--kind", nargs="+", help="only these")
    parser.add_argument("--say", action="store_true", help="print each input, how it ended, and its last sentence")
    chosen = parser.parse_args(arguments)
    known: Sequence[Kind] = importlib.import_module(chosen.registry).KINDS
    kinds = [kind for kind in known if not chosen.kind or kind.name in chosen.kind]
    tried, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="provindex-hostile-") as folder:
        prepare(Path(folder) / "cache")
        for kind, number in tries(kinds, chosen.count, chosen.start):
            outcome = attempt(kind, number, Path(folder))
            tried.append(Tried(kind.name, number, outcome))
            if outcome.faults or chosen.say:
                last = outcome.said.strip().splitlines()[-1:] or [""]
                cost = f"{outcome.seconds:.1f} s, {outcome.megabytes:.0f} MB, status {outcome.status}"
                print(f"{kind.name} {number}: {cost}; {'; '.join(outcome.faults)} [{last[0][:300]}]", flush=True)
    print(table(tried))
    print(f"{len(tried):,} inputs in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(any(one.outcome.faults for one in tried))


if __name__ == "__main__":
    sys.exit(main())
