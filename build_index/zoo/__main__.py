"""Make or complete a zoo, and say what it has.

    python -m build_index.zoo benchmark|calibration [--root DIR] [--only NAME ...] [--list]

Writes ROOT/<zoo>/<name>/{config.json, tokenizer.json, tokenizer_config.json, model.safetensors, zoo.json}. ROOT is
--root, else $PROVINDEX_ZOO, else ~/.cache/provindex-zoo. A model that is there and was made by these settings is kept.
Needs the extra `zoo` (torch) beside provindex itself, unless nothing is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from provindex.common.errors import ProvindexError

from .plan import ZOOS
from .store import complete, default_root, facts_of, jobs_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all is there, 1 when something is missing, 2 when it could not run."""
    parser = argparse.ArgumentParser(prog="python -m build_index.zoo", description="Make or complete a zoo.")
    parser.add_argument("zoo", choices=sorted(ZOOS))
    parser.add_argument("--root", type=Path, default=default_root())
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names that begin so, and their bases")
    parser.add_argument("--list", action="store_true", help="make nothing, say what is there")
    options = parser.parse_args(arguments)
    try:
        jobs = jobs_of(options.zoo, options.only)
    except ProvindexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {job.name: facts_of(options.root, job) for job in jobs}
    if not options.list and not all(found.values()) and not _use_one_thread():
        print("error: Models are missing, and torch is not installed. pip install -e '.[zoo]'", file=sys.stderr)
        return 2
    listed = ((name, facts or "missing") for name, facts in found.items())
    results = listed if options.list else complete(options.root, jobs)
    return _tell(options.zoo, results)


def _tell(zoo: str, results: Iterable[tuple[str, dict[str, Any] | str]]) -> int:
    """A line for each model as it is made, and the sum; the exit status."""
    count, made = 0, []
    for name, facts in results:
        count += 1
        print(_line(name, facts), flush=True)
        if isinstance(facts, dict):
            made.append(facts)
    seconds = sum(facts["cpu_seconds"] for facts in made)
    print(f"{zoo}: {len(made)} of {count} models, {seconds / 60:.1f} minutes of one core")
    return 0 if len(made) == count else 1


def _use_one_thread() -> bool:
    """Sums depend on the number of threads, and a zoo must not. False if torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return False
    torch.set_num_threads(1)
    return True


def _line(name: str, facts: dict[str, Any] | str) -> str:
    if isinstance(facts, str):
        return f"{name:<32} {facts}"
    loss = f"{facts['loss_before']:.3f} -> {facts['loss_after']:.3f}"
    return f"{name:<32} {facts['parameters']:>9,} parameters  loss {loss}  {facts['cpu_seconds']:>5.1f} s"


if __name__ == "__main__":
    sys.exit(main())
