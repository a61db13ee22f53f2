"""Every copy and cover of real models against `query --deny SOURCE`, by hand:

python tests/covers/run.py --real DIR/snapshots minilm-l6-gt smollm2-135m-instruct qwen2.5-coder-0.5b
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import safe_open

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from build_index.zoo.snapshot import Snapshot  # noqa: E402
from covers.ways import Case, NotHereError, names_of, random_like  # noqa: E402  after the path was set
from provindex import api  # noqa: E402
from provindex.common.errors import ProvindexError  # noqa: E402


def real(folder: Path) -> Snapshot:
    """A snapshot of seed_sources with float32 tensors."""
    with safe_open(folder / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Snapshot(folder.name, tensors, json.loads((folder / "config.json").read_text()), tokenizer)


def status_of(folder: Path, index: api.Index, rule: str) -> tuple[int, str]:
    """What `query FOLDER --deny RULE` exits with, and why."""
    try:
        policy = api.Policy().with_more([rule])
        asked = api.resolve(folder, own_bytes=True)
        read, result = api.query(index, asked, also=policy.asked_for(index))
        gate = api.gate(result, policy, index, read)
    except ProvindexError as error:
        return 2, str(error)
    return gate.exit_status, str(gate.denied[0].reason.code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    wrong = 0
    for name in given.models:
        stolen = real(given.real / name)
        clean = random_like(stolen)
        index = api.Index.load("embedded")
        index.add(replace(api.resolve(given.real / name).fingerprint, model_id="org/stolen"))
        with tempfile.TemporaryDirectory() as scratch:  # else nothing below says anything
            alone = Case(stolen, clean, Path(scratch) / "model")
            alone.main()
            status, why = status_of(alone.folder, index, "org/stolen")
            if status:
                sys.exit(f"{name}: the clean model alone has status {status}: {why}")
        seen: Counter[tuple[str, int]] = Counter()
        for case, make, right in names_of(given.only):
            with tempfile.TemporaryDirectory() as scratch:
                begun = time.perf_counter()
                try:
                    make(Case(stolen, clean, Path(scratch) / "model"))
                except NotHereError as why:
                    print(f"{name:24} {case:44} -  {why}")
                    continue
                written = time.perf_counter()
                status, why = status_of(Path(scratch) / "model", index, "org/stolen")
                shutil.rmtree(scratch, ignore_errors=True)
                Path(scratch).mkdir()
            seen["copies" if right == {1} else "covers", status] += 1
            mark = "" if status in right else "   WRONG"
            wrong += status not in right
            took = f"{time.perf_counter() - written:5.1f} s (made in {written - begun:.1f})"
            print(f"{name:24} {case:44} {status}  {took}  {why[:150]}{mark}", flush=True)
        print(name, dict(seen), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
