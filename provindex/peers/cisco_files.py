"""Where the peer's database is read from: its documents in a folder or in provindex, its deep signals in a zip file or
a folder.

Each gives a document, or deep signals, by their path. Paths stay inside, and every size is bounded before anything is
read. What is wrong is a ValueError that says it in a clause.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from provindex.common.bounded_json import load_object, shown
from provindex.common.errors import UsageError
from provindex.common.files import FileFact
from provindex.peers import long_form
from provindex.peers.archive import Opened, opened

BY_FAMILY = "by-family"
DEEP = f"features/deep-signals/{BY_FAMILY}"
Document = Mapping[str, Any]


class Documents(Protocol):
    """The catalogue and the base features."""

    def document(self, name: Any, limit: int) -> tuple[Document, FileFact]:
        """A JSON object, and the file that it was. ValueError or OSError if it is none of bounded size."""


class DeepFiles(Protocol):
    """The deep signals. vouched: somebody compared the digest of all of them together with one that was known."""

    @property
    def vouched(self) -> bool: ...

    def read(self, path: Any) -> bytes | bytearray | None:
        """A whole file by its path in the database; None if it is not there. ValueError, OSError if it is unusable."""


# --- documents ---


@dataclass(frozen=True)
class Folder:
    """A database in a folder: paths stay inside of it."""

    root: Path

    def document(self, name: Any, limit: int) -> tuple[Document, FileFact]:
        path = inside(self.root, name)
        if not path.exists():
            raise ValueError(f"{shown(name)} is missing")
        raw = _bytes(path, limit)
        try:
            found = load_object(raw)
        except ValueError as fault:
            raise ValueError(f"{shown(name)} cannot be used: {fault}") from None
        try:
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # half characters, NaN
        except (ValueError, RecursionError):
            raise ValueError(f"{shown(name)} has values that JSON cannot hold") from None
        return found, FileFact(path.name, len(raw), hashlib.sha256(raw).hexdigest())


@dataclass(frozen=True)
class Embedded:
    """The documents that come with provindex, cut to what is read of them, with size and digest of the whole ones.

    files: by path, {"bytes", "sha256", "document"}, as `python -m build_index.peer_catalogue` writes them.
    """

    files: Mapping[str, Document]

    def document(self, name: Any, limit: int) -> tuple[Document, FileFact]:
        found = self.files.get(name)
        if found is None:
            raise ValueError(f"{shown(name)} is missing")
        return found["document"], FileFact(PurePosixPath(name).name, found["bytes"], found["sha256"])


def inside(root: Path, name: Any) -> Path:
    """The place of a file that the database names. ValueError if it could be outside of the folder."""
    if not isinstance(name, str) or not name or len(name) > 512:
        raise ValueError("it names no path where a file belongs")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or any(c in '\\:*?"<>|' or ord(c) < 32 for c in name):
        raise ValueError(f"it names {shown(name)}, which is no file inside the database")
    path = root / name
    if path.exists() and not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{shown(name)} is a link to a place outside of the database")
    return path


def _bytes(path: Path, limit: int) -> bytes:
    """The whole file. ValueError if it is none, or larger than `limit`."""
    if not path.is_file():  # a pipe or a device would never end
        raise ValueError(f"{shown(path.name)} is no regular file")
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"{shown(path.name)} is larger than {limit >> 20} MB, which no such file needs")
    return raw


# --- deep signals ---


@dataclass(frozen=True)
class Unpacked:
    """Deep signals in a folder whose subfolders are families."""

    root: Path
    vouched: bool = False

    def read(self, path: Any) -> bytes | None:
        place = inside(self.root, path.removeprefix(f"{DEEP}/"))
        return _bytes(place, long_form.MAX_BYTES) if place.exists() else None


@dataclass(frozen=True)
class Zipped:
    """Deep signals in an archive of a known digest."""

    archive: Opened
    vouched: bool = True

    def read(self, path: Any) -> bytearray | None:
        return self.archive.read(path.removeprefix(f"{DEEP}/"), long_form.MAX_BYTES)


@contextmanager
def deep_files(database: Path, deep: Path | None, sha256: str) -> Iterator[DeepFiles | None]:
    """The deep signals in a zip file or a folder, or, if `deep` is None, in the database; None if it has none.

    sha256: of the zip file. Raises IndexFormatError for a zip file that cannot be used, UsageError if there are none in
    `deep`.
    """
    if deep is not None and not deep.is_dir():
        with opened(deep, below=BY_FAMILY, sha256=sha256) as archive:
            yield Zipped(archive)
        return
    folder = deep_folder(database, deep)
    yield None if folder is None else Unpacked(folder)


def deep_folder(database: Path, deep: Path | None) -> Path | None:
    """The folder whose subfolders are families; None if no deep signals are there."""
    if deep is None:
        return database / DEEP if (database / DEEP).is_dir() else None
    places = [deep] if deep.name == BY_FAMILY else []
    places += [deep / below for below in (BY_FAMILY, f"deep-signals/{BY_FAMILY}", DEEP)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UsageError(
            f"{deep.name or deep} has no folder {BY_FAMILY} with deep signals in it.",
            "Name deep-signals.zip, or the folder that it was unpacked to.",
        )
    return found
