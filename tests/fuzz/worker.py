"""A process that tries inputs, one after another, and may die of one: who started it knows by the state which."""

from __future__ import annotations

import faulthandler
import importlib
import json
import mmap
import os
import resource
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fuzz.guard import Target, tried
from fuzz.mutate import mutated

STATE = struct.Struct("<QQ")  # number of the input that is being tried, and how many were before it
SPARE = 1 << 30  # bytes of address space beyond what a target's seeds needed


def input_of(target: Target, number: int) -> bytes:
    """The input of that number; three of four are mended."""
    data = mutated(target.all_seeds, number)
    return target.mend(data) if number % 4 else data


def targets(registry: str) -> Mapping[str, Target]:
    """The targets of a registry, `module:name`."""
    module, _, name = registry.partition(":")
    found: Mapping[str, Target] = getattr(importlib.import_module(module), name)
    return found


def main(registry: str, name: str, start: str, seconds: str, most: str, state: str) -> None:
    """Try the seeds, if `start` is 0, then inputs from that number on until the time or the number of inputs is over.

    A line of JSON for each finding on standard output: [number, what]; seeds have negative numbers. At the end: how
    many inputs were tried.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # panics and warnings of libraries, thousands of them
    with Path(state + ".stack").open("w") as stack, Path(state).open("r+b") as file:
        os.dup2(quiet, 2)
        faulthandler.enable(stack)
        with mmap.mmap(file.fileno(), STATE.size) as shared:
            _run(targets(registry)[name], int(start), float(seconds), int(most), shared, out)


def _run(target: Target, start: int, seconds: float, most: int, shared: mmap.mmap, out: object) -> None:
    def attempt(number: int, data: bytes, done: int) -> None:
        shared[:] = STATE.pack(number % (1 << 64), done)
        if (what := tried(target, data)) is not None:
            print(json.dumps([number, what]), file=out)  # type: ignore[call-overload]

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kept = target.all_seeds
    tried(target, kept[0])  # imports and tables
    _limit_memory(SPARE)
    done = 0
    if not start:
        for place, data in enumerate(kept):
            attempt(place - len(kept), data, done)
            done += 1
    end, number = time.monotonic() + seconds, start
    while number - start < most and time.monotonic() < end:
        attempt(number, input_of(target, number), done)
        number, done = number + 1, done + 1
    print(json.dumps(done), file=out)  # type: ignore[call-overload]


def _limit_memory(spare: int) -> None:
    """An allocation beyond all bounds fails, instead of taking the machine with it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE if sys.platform == "linux" else 0
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))


if __name__ == "__main__":
    main(*sys.argv[1:])
