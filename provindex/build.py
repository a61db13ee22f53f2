"""Filling an index from models, folders of models, fingerprint files and lists.

What is there already is not made again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from provindex import api, dataset
from provindex.errors import ModelNotFoundError, ProvindexError, UsageError
from provindex.fingerprint import Fingerprint
from provindex.index import Index

SAVE_EVERY = 20  # models a shard while a long build runs: what was done stays done
WEIGHTS = ("*.safetensors", "config.json")
FOREIGN = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".safetensors")


@dataclass(frozen=True)
class Built:
    """What a build did: ids added, ids that were there, and (source, reason) of what failed."""

    index: Index
    added: tuple[str, ...]
    present: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def fill(
    folder: Path,
    sources: Sequence[str],
    *,
    create: bool,
    mode: str = "exact",
    offline: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Add the models that sources name to the index in a folder; one failed model never stops the rest.

    create: make the index if there is none (`index build`); else there must be one (`index add`). report: told each
    step.
    """
    exists = (folder / dataset.MANIFEST).exists()
    if not exists and not create:
        raise ModelNotFoundError(
            f"{folder} has no index to add to.", f"Make one with `provindex index build MODEL... -o {folder}`."
        )
    if not sources:
        raise UsageError(
            "No model was named.",
            "Name models, folders of models, fingerprint files, a list file, or - for standard input.",
        )
    index = Index.load(folder) if exists else Index.build((), name=folder.resolve().name)
    added: list[str] = []
    present: list[str] = []
    failed: list[tuple[str, str]] = []
    unsaved = 0
    for source in expand(sources):
        try:
            fingerprints = _read(source, mode, offline)
        except ProvindexError as error:
            failed.append((source, str(error)))
            report(f"failed  {source}: {error}")
            continue
        for fp in fingerprints:
            new = index.add(fp)
            (added if new else present).append(fp.model_id)
            report(f"{'added' if new else 'present'}  {fp.model_id}")
            unsaved += new
        if unsaved >= SAVE_EVERY:
            index.save(folder)
            index, unsaved = Index.load(folder), 0
    if unsaved or not exists:
        index.save(folder)
    return Built(Index.load(folder), tuple(added), tuple(present), tuple(failed))


def _read(source: str, mode: str, offline: bool) -> list[Fingerprint]:
    if source.endswith(".parquet") and Path(source).is_file():
        return dataset.read_fingerprints(Path(source))
    return [api.fingerprint(source, mode=mode, offline=offline)]


def expand(sources: Iterable[str]) -> Iterator[str]:
    """Every model that sources name: a folder of models gives its subfolders, a list file its lines, - standard input."""
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from expand(_lines(sys.stdin))
        elif path.is_dir() and not _is_model(path):
            yield from (str(p) for p in sorted(path.iterdir()) if p.is_dir() and _is_model(p))
        elif path.is_file() and path.suffix not in (".parquet", *FOREIGN):
            yield from expand(_lines(path.read_text(encoding="utf-8").splitlines()))
        else:
            yield source


def _is_model(path: Path) -> bool:
    return any(next(path.glob(pattern), None) for pattern in WEIGHTS)


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
