"""Fuzz the parsers: `python tests/fuzz/run.py --minutes 10`, or `python -m fuzz --minutes 10` from tests/."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from fuzz.guard import Target  # noqa: E402
from fuzz.worker import STATE, input_of, targets  # noqa: E402

REGISTRY = "fuzz.targets:TARGETS"
STUCK = 60.0  # seconds of wall time without a new input: it waits for something, or is in code that no signal ends
DEATHS = 20  # of one target, after which it is left


@dataclass(frozen=True)
class Finding:
    """An input that a target did not take as it should. number: of the input, negative for a seed."""

    target: str
    number: int
    what: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Ran:
    """What was done with a target. seconds: of wall time."""

    target: str
    inputs: int
    seconds: float
    findings: tuple[Finding, ...]


def fuzz(
    names: Sequence[str],
    *,
    seconds: float,
    most: int = 1 << 62,
    start: int = 0,
    jobs: int = 1,
    registry: str = REGISTRY,
) -> Iterator[Ran]:
    """Try targets in processes of their own, each for that many seconds or inputs; in the order in which they end."""
    known = targets(registry)
    with ThreadPoolExecutor(jobs) as pool, tempfile.TemporaryDirectory(prefix="provindex-fuzz-") as folder:
        running = [
            pool.submit(_one, known[name], Path(folder) / name, registry, seconds, most, start) for name in names
        ]
        for one in running:
            yield one.result()


def _one(target: Target, folder: Path, registry: str, seconds: float, most: int, start: int) -> Ran:
    """One target until its time is over: where a process dies, another goes on behind the input that it died of."""
    folder.mkdir()
    state, began, inputs, found, number = folder / "state", time.monotonic(), 0, [], start
    for _ in range(DEATHS):
        left = began + seconds - time.monotonic()
        if left <= 0 or number - start >= most:
            break
        state.write_bytes(STATE.pack(1 << 63, 0))
        command = [sys.executable, "-m", "fuzz.worker", registry, target.name, str(number), str(left)]
        said, died = _watched([*command, str(most - (number - start)), str(state)], state, folder)
        at, done = STATE.unpack(state.read_bytes())
        at = at - (1 << 64) if at > 1 << 63 else at
        inputs += said.pop() if said and isinstance(said[-1], int) else done + 1
        found += [Finding(target.name, n, what, _data(target, n)) for n, what in said]
        if died is None:
            break
        if at == 1 << 63:
            raise RuntimeError(f"the target {target.name} does not start: {died}")
        found.append(Finding(target.name, at, died, _data(target, at)))
        number = max(at + 1, start)
    return Ran(target.name, inputs, time.monotonic() - began, tuple(found))


def _data(target: Target, number: int) -> bytes:
    return target.all_seeds[number] if number < 0 else input_of(target, number)


def _watched(command: Sequence[str], state: Path, folder: Path) -> tuple[list[object], str | None]:
    """What a worker said, and how it died, None if it did not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "TMPDIR": str(folder)}
    environment |= {"PROVINDEX_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONHASHSEED"] = "0"
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, env=environment)
        last, since, stuck = b"", time.monotonic(), False
        while process.poll() is None:
            time.sleep(0.05)
            now = state.read_bytes()
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > STUCK:
                process.kill()
                stuck = True
        error = process.stderr.read().decode(errors="replace") if process.stderr else ""
        said.seek(0)
        lines = [json.loads(line) for line in said if line.endswith("\n")]
    if process.returncode == 0:
        return lines, None
    stack = Path(f"{state}.stack")
    text = stack.read_text() if stack.exists() else ""
    place = next((line.strip() for line in text.splitlines() if "provindex" in line and "fuzz" not in line), "")
    how = f"stuck for {STUCK:.0f} seconds" if stuck else f"the process died with status {process.returncode}"
    return lines, f"{how} {place or error[-300:]}".strip()


def different(findings: Sequence[Finding]) -> list[Finding]:
    """One finding of each kind, the one with the smallest input."""
    best: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = finding.target, "a refusal" if finding.what.startswith("a refusal") else finding.what.split(": ")[0]
        if key not in best or len(finding.data) < len(best[key].data):
            best[key] = finding
    return list(best.values())


def table(ran: Sequence[Ran]) -> str:
    """What was run, as Markdown."""
    rows = [(r.target, r.inputs, r.seconds, len(different(r.findings))) for r in ran]
    rows.append(("all", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    lines = [
        f"| {name} | {inputs:,} | {inputs / max(took, 1e-9):,.0f} | {found} |" for name, inputs, took, found in rows
    ]
    return "\n".join(["| target | inputs | a second | findings |", "|---|--:|--:|--:|", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table and what was found; 1 if something was."""
    known: Mapping[str, Target] = targets(REGISTRY)
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together (wall time)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--target", nargs="+", choices=sorted(known), default=list(known), help="only these")
    parser.add_argument("--start", type=int, default=0, help="number of the first input; another number, other inputs")
    parser.add_argument("--save", type=Path, help="folder to write the inputs of findings to")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="write the input of that number of one target")
    chosen = parser.parse_args(arguments)
    if chosen.show is not None:
        sys.stdout.buffer.write(_data(known[chosen.target[0]], chosen.show))
        return 0
    ran = []
    seconds = chosen.minutes * 60 * chosen.jobs / len(chosen.target)
    for one in fuzz(chosen.target, seconds=seconds, start=chosen.start, jobs=chosen.jobs):
        ran.append(one)
        print(f"{one.target}: {one.inputs:,} inputs in {one.seconds:.0f} s", file=sys.stderr)
        for finding in different(one.findings):
            print(f"  {finding.number}: {finding.what} ({len(finding.data):,} bytes)", file=sys.stderr)
            if chosen.save:
                place = chosen.save / finding.target / f"{finding.number}"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(finding.data)
    print(table(ran))
    return int(any(one.findings for one in ran))


if __name__ == "__main__":
    sys.exit(main())
