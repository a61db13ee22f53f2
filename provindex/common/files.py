"""Files that appear whole or not at all: atomic replacement, locks, digests."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from provindex.common import places
from provindex.common.errors import IndexFormatError


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file that was read: name relative to the model, size in bytes, sha256 or None when it was not hashed."""

    name: str
    size: int
    sha256: str | None = None


LOCK = ".lock"


def is_there(name: str) -> bool:
    """Whether a path exists; False too of a text that can be no path: longer than names may be, or with a zero byte."""
    return os.path.exists(name)  # noqa: PTH110  Path.exists raises there


def now() -> datetime:
    """The time that goes into names and manifests; SOURCE_DATE_EPOCH fixes it, for builds that repeat byte for byte."""
    epoch = places.epoch()
    return datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside a path: it takes the path's place when the block ends well, and vanishes when not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else holds this lock on an index folder, and hold it; the system frees it if we are killed."""
    from filelock import FileLock

    if (folder / LOCK).is_symlink():  # older releases of filelock empty the file that it leads to
        raise IndexFormatError(
            f"The lock file {LOCK} of {folder.resolve().name} is a link, which is not followed.", "Remove it."
        )
    with FileLock(folder / LOCK):
        yield


def without_path(text: str, path: str | Path, name: str) -> str:
    """An error's text for others' eyes: a path of this machine in it becomes the name that others know."""
    return re.sub(rf"(?<![\w./-]){re.escape(str(path))}(?![\w-])", lambda _: name, text)


def is_plain_path(name: str) -> bool:
    """Whether a path with "/" is relative, has at most 255 characters, and cannot leave its folder on any system."""
    parts = PurePosixPath(name).parts
    forbidden = name.startswith("/") or ".." in parts or any(c in '\\:*?"<>|' or ord(c) < 32 for c in name)
    return bool(parts) and not forbidden and len(name) <= 255


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
