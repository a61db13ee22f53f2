"""Make or complete a zoo, and say what it has.

    python -m build_index.zoo benchmark|calibration [--root DIR] [--only NAME ...] [--list]

Writes ROOT/<zoo>/<name>/{config.json, tokenizer.json, tokenizer_config.json, model.safetensors, zoo.json}. ROOT is
--root, else $PROVINDEX_ZOO, else ~/.cache/provindex-zoo. A model that is there and was made by these settings is kept.
Needs the extra `zoo` (torch) beside provindex itself, unless nothing is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from provindex.errors import ProvindexError

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
    if options.list:
        results = [(job, facts_of(options.root, job) or "missing") for job in jobs]
    else:
        _use_one_thread()
        results = []
        for job, facts in complete(options.root, jobs):
            results.append((job, facts))
            print(_line(job.name, facts), flush=True)
    made = [facts for _, facts in results if isinstance(facts, dict)]
    seconds = sum(facts["cpu_seconds"] for facts in made)
    print(f"{options.zoo}: {len(made)} of {len(jobs)} models, {seconds / 60:.1f} minutes of one core")
    for job, facts in results:
        if isinstance(facts, str):
            print(f"missing: {job.name}: {facts}")
    return 0 if len(made) == len(jobs) else 1


def _use_one_thread() -> None:
    """Sums depend on the number of threads, and a zoo must not."""
    import torch

    torch.set_num_threads(1)


def _line(name: str, facts: object) -> str:
    if not isinstance(facts, dict):
        return f"{name:<32} failed: {facts}"
    loss = f"{facts['loss_before']:.3f} -> {facts['loss_after']:.3f}"
    return f"{name:<32} {facts['parameters']:>9,} parameters  loss {loss}  {facts['cpu_seconds']:>5.1f} s"


if __name__ == "__main__":
    sys.exit(main())
