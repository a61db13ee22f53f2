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

CLASH = "Other weights are in the index as {name}. Rename the folder or file."
SAVE_EVERY = 20  # models a shard while a long build runs: what was done stays done
WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".onnx",
    ".h5",
    ".msgpack",
)  # read, or refused by name


@dataclass(frozen=True)
class Built:
    """What a build did: models added, models that were there, and (source, reason) of what failed."""

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
    named = list(expand(sources))
    if not named:
        raise UsageError(
            "No model was named.",
            "Name models, folders of models, fingerprint files, a list file, or - for standard input.",
        )
    index = Index.load(folder) if exists else Index.build((), name=folder.resolve().name)
    added: list[str] = []
    present: list[str] = []
    failed: list[tuple[str, str]] = []
    unsaved = 0
    try:
        for source in named:
            try:
                fingerprints = _read(source, mode, offline)
            except ProvindexError as error:
                failed.append((source, str(error)))
                report(f"failed   {source}: {error}")
                continue
            for fp in fingerprints:
                if _clashes(index, fp):
                    failed.append((source, CLASH.format(name=_label(fp))))
                    report(f"failed   {source}: {CLASH.format(name=_label(fp))}")
                    continue
                new = index.add(fp)
                (added if new else present).append(_label(fp))
                report(f"{'added   ' if new else 'present '} {_label(fp)}")
                unsaved += new
            if unsaved >= SAVE_EVERY:
                index.save(folder)
                index, unsaved = Index.load(folder), 0
    finally:  # also when interrupted: what was done stays done
        if unsaved:
            index.save(folder)
    if not (folder / dataset.MANIFEST).exists():
        return Built(index, (), (), tuple(failed))
    return Built(Index.load(folder), tuple(added), tuple(present), tuple(failed))


def _clashes(index: Index, fp: Fingerprint) -> bool:
    """Whether other weights are in the index under the same name: answers could not tell the two apart."""
    same = [e for e in index.find(fp.model_id) if e.row["variant"] == fp.variant and e.row["revision"] == fp.revision]
    return bool(same) and index.own(fp) is None


def _label(fp: Fingerprint) -> str:
    return f"{fp.model_id} [{fp.variant}]" if fp.variant else fp.model_id


def _read(source: str, mode: str, offline: bool) -> list[Fingerprint]:
    if source.endswith(".parquet") and Path(source).is_file():
        return dataset.read_fingerprints(Path(source))
    return [api.fingerprint(source, mode=mode, offline=offline)]


def expand(sources: Iterable[str]) -> Iterator[str]:
    """Every model that sources name.

    A folder of models gives its subfolders and the fingerprint files in it, a list file its lines, `-` the lines of
    standard input. A line may name whatever an argument may, except another list. Raises UsageError for a folder
    without models and for a file that is no text.
    """
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from _listed(sys.stdin.read())
        elif path.is_dir():
            yield from _in_folder(path)
        elif path.exists() and path.suffix.lower() not in (".parquet", *WEIGHTS):
            yield from _listed(_text(path))
        else:
            yield source


def _in_folder(path: Path) -> Iterator[str]:
    if _is_model(path):
        yield str(path)
        return
    found = [p for p in sorted(path.iterdir()) if (p.is_dir() and _is_model(p)) or p.suffix == ".parquet"]
    if not found:
        raise UsageError(
            f"{path} holds no models: neither a config.json or weights, nor folders that do, nor fingerprint files.",
            "Name a model's own folder, or the folder right above models.",
        )
    yield from map(str, found)


def _is_model(path: Path) -> bool:
    """Whether a folder is one model; one whose weights are in a format that is not read will say so when it is."""
    return any(p.name == "config.json" or p.suffix.lower() in WEIGHTS for p in path.iterdir())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(
            f"{path} is neither a model nor a list of models that can be read.",
            "A list is a text file with one model a line; # starts a comment.",
        ) from error


def _listed(text: str) -> Iterator[str]:
    for line in map(str.strip, text.splitlines()):
        path = Path(line)
        if line.startswith("#") or not line:
            continue
        if line != "-" and path.is_dir():
            yield from _in_folder(path)
        else:
            yield line
