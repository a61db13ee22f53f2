"""What a user names as models: a folder, a folder of models, a list file, standard input, one reference each."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from provindex.common.errors import UsageError
from provindex.common.lists import reference_in
from provindex.formats import local_files, registry


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
        elif path.exists() and path.suffix.lower() != ".parquet" and not registry.by_name(path.name):
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
    if (path / "snapshots").is_dir() and local_files.commits_of(path):  # a repository in a Hub cache
        return True
    return any(p.name == "config.json" or registry.may_be_model(p.name) for p in path.iterdir())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(
            f"{path} is neither a model nor a list of models that can be read.",
            "A list is a text file with one model a line; # starts a comment.",
        ) from error


def _listed(text: str) -> Iterator[str]:
    for line in map(reference_in, text.splitlines()):
        path = Path(line)
        if not line:
            continue
        if line != "-" and path.is_dir():
            yield from _in_folder(path)
        else:
            yield line
