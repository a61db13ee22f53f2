"""Record every answer on many models, so that two versions of provindex can be held against each other.

    python tests/parity/record.py record MODELS... -o FILE [--pairs N] [--processes 2]
    python tests/parity/record.py differ BEFORE AFTER

MODELS are folders of models, or folders of such folders. `record` uses public names only, so the same script runs with
an old and a new version installed. It writes, as JSON lines: one line a model (the digest of every cell of its row),
one a pair (all that `compare --json` says), one a query against the embedded index. `differ` prints what is not equal
and exits with 1 if anything is. Cells and fields that a new fingerprint version may change are named below.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROW = {"row_sha256", "fingerprint_version", "absences", "warnings"}  # cells of a row that a new version changes
DOCUMENT = {"index", "tool", "reason_codes", "warning_codes", "absence_codes", "because"}  # and parts of a document
CLOSE = 1e-9  # relative difference of numbers that counts as none


def models_in(places: Sequence[str]) -> list[Path]:
    """Every folder with a config.json or weights at or below some places, in the order of their names."""
    found: set[Path] = set()
    for place in map(Path, places):
        for path in (place, *place.rglob("*")):
            if path.is_dir() and any(p.suffix == ".safetensors" for p in path.iterdir()):
                found.add(path)
    return sorted(found)


def fingerprinted(model: Path, folder: Path) -> dict[str, Any]:
    """A model's row as digests of its cells; the row itself is kept in `folder`."""
    import pyarrow.parquet as pq

    out = folder / f"{hashlib.sha256(str(model).encode()).hexdigest()[:16]}.parquet"
    command = [sys.executable, "-m", "provindex", "fingerprint", str(model), "-o", str(out), "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"kind": "model", "name": model.name, "error": done.returncode}
    row = pq.read_table(out).to_pylist()[0]
    cells = {name: hashlib.sha256(repr(value).encode()).hexdigest()[:16] for name, value in row.items()}
    return {"kind": "model", "name": model.name, "cells": cells, "file": str(out)}


def compared(task: tuple[str, str, str, str]) -> dict[str, Any]:
    """One pair of stored rows."""
    import provindex as pv
    from provindex.api import Comparison, calibration_of
    from provindex.report.document import compare_document

    try:
        from provindex.verdict.pair import compare
    except ImportError:  # before the rooms
        from provindex.verdict import compare
    a, b, left, right = task
    x, y = pv.fingerprint(left), pv.fingerprint(right)
    pair = compare(x, y, calibration=calibration_of())
    info = pv.Index.load("embedded").info
    return {"kind": "pair", "name": f"{a} | {b}", "document": compare_document(Comparison(x, y, pair, info, {}))}


def asked(task: tuple[str, str]) -> dict[str, Any]:
    """One query against the embedded index."""
    import provindex as pv

    name, row = task
    return {"kind": "query", "name": name, "document": json.loads(pv.Index.load("embedded").query(row).to_json())}


def record(places: Sequence[str], output: Path, pairs: int, processes: int) -> None:
    """Write all lines, models first."""
    models = models_in(places)
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(processes) as pool,
        output.open("w", encoding="utf-8") as file,
    ):
        rows = list(pool.map(fingerprinted, models, itertools.repeat(Path(scratch))))
        there = [(r["name"], r["file"]) for r in rows if "file" in r]
        wanted = list(itertools.combinations(there, 2))
        if len(wanted) > pairs:
            wanted = sorted(random.Random(0).sample(wanted, pairs))
        tasks = [(a, b, left, right) for (a, left), (b, right) in wanted]
        lines: Iterator[dict[str, Any]] = itertools.chain(
            ({k: v for k, v in row.items() if k != "file"} for row in rows),
            pool.map(compared, tasks, chunksize=8),
            pool.map(asked, there, chunksize=4),
        )
        for line in lines:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Where two values of JSON differ; fields that only the later one has are additions, and no difference."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            if key in DOCUMENT:
                continue
            if key not in after:
                yield f"{where}.{key}: gone"
            else:
                yield from differences(before[key], after[key], f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (x, y) in enumerate(zip(before, after, strict=True)):
            yield from differences(x, y, f"{where}[{number}]")
    elif isinstance(before, float) and isinstance(after, float):
        if abs(before - after) > CLOSE * max(abs(before), abs(after)):
            yield f"{where}: {before!r} -> {after!r}"
    elif before != after:
        yield f"{where}: {before!r} -> {after!r}"


def differ(before: Path, after: Path) -> int:
    """Print the differences and their number by kind; 1 if there are any."""
    sides = []
    for path in (before, after):
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        sides.append({(line["kind"], line["name"]): line for line in lines})
    old, new = sides
    found: Counter[str] = Counter()
    for key, line in old.items():
        if key not in new:
            print(f"{key}: not recorded again")
            found["missing"] += 1
            continue
        line = {**line, "cells": {k: v for k, v in line["cells"].items() if k not in ROW}} if "cells" in line else line
        for said in differences(line, new[key]):
            print(f"{key[0]} {key[1]}{said}")
            found[key[0]] += 1
    counts = Counter(kind for kind, _ in old)
    print(f"{sum(found.values())} differences {dict(found)} in {dict(counts)}")
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("record")
    one.add_argument("models", nargs="+")
    one.add_argument("-o", "--output", type=Path, required=True)
    one.add_argument("--pairs", type=int, default=1 << 30)
    one.add_argument("--processes", type=int, default=2)
    two = verbs.add_parser("differ")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.verb == "differ":
        return differ(options.before, options.after)
    record(options.models, options.output, options.pairs, options.processes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
