"""Files of a folder that nobody vouches for: found without leaving it, opened if regular, read up to a limit."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from provindex.common.bounded_json import JsonError, load_object
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason

MAX_CONFIG = 4 << 20  # bytes
MAX_CARD = 64 << 10  # bytes that are looked at; the front matter stands at the beginning
MAX_NAMES = 100_000  # files of one folder that are listed
MAX_COMMITS = 1000  # of one repository in a Hub cache

_CACHE_REPO = re.compile(r"models--(?P<id>[\w.-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder and what its place says: inside a Hub cache (.../models--org--name/snapshots/<commit>) it has
    an id and a commit, and links into the cache's own blobs are how files are stored there."""

    path: Path
    model_id: str
    revision: str | None
    allowed: tuple[Path, ...]  # resolved folders that a file's real place must be in


def look_at(path: Path) -> Folder:
    """What a folder's place says. The path is taken as given first: a link to a snapshot is a snapshot too."""
    real = path.resolve()
    for place in (path.absolute(), real):
        repository, cache = place.parent.parent, place.parent.parent.parent
        match = _CACHE_REPO.fullmatch(repository.name) if place.parent.name == "snapshots" else None
        if match:
            model_id = match["id"].replace("--", "/")
            # Blobs are the repository's own or, fetched by Xet, shared by the whole cache.
            blobs = (repository.resolve() / "blobs", cache.resolve() / "blobs")
            return Folder(path, model_id, place.name, (real, *blobs))
    name = path.name if path.name not in ("", "..") else real.name
    return Folder(path, name or str(real), None, (real,))


def list_sizes(folder: Folder) -> dict[str, int]:
    """Bytes of the files in a folder and below it, by "sub/name", sorted; dangling links are left out, and nothing
    else: whoever hides a model chooses the folder (`.git`, `.cache`). A name that ends with "/" is a folder that may
    not be listed, or a link to one, which is not followed.
    """
    sizes: dict[str, int] = {}
    ahead = [""]
    while ahead:
        prefix = ahead.pop()
        try:
            with os.scandir(folder.path / prefix) as found:
                for item in itertools.islice(found, MAX_NAMES + 1 - len(sizes)):
                    name = prefix + item.name
                    if item.is_file():
                        sizes[name] = item.stat().st_size
                    elif item.is_dir():
                        if item.is_symlink():
                            sizes[name + "/"] = 0
                        else:
                            ahead.append(name + "/")
        except PermissionError:
            if not prefix:
                raise
            sizes[prefix] = 0
        if len(sizes) + len(ahead) > MAX_NAMES:
            raise ModelError(f"{folder.path} holds more than {MAX_NAMES} files.", "Name the model's own folder.")
    return dict(sorted(sizes.items()))


def names(folder: Folder) -> list[str]:
    """Names of the files in a folder itself, sorted, the first MAX_NAMES; () if it may not be listed."""
    try:
        with os.scandir(folder.path) as found:
            return sorted(item.name for item in itertools.islice(found, MAX_NAMES) if item.is_file())
    except (PermissionError, FileNotFoundError):
        return []


def pieces(folder: Folder, name: str, size: int) -> tuple[bytes, bytes, bytes]:
    """The first bytes of a file, some from its middle, and the last ones; none of one that may not be read, or leaves
    the folder.
    """
    try:
        path = find(folder, name)
        if path is None:
            return b"", b"", b""
        with opened(path) as file:
            length = os.fstat(file.fileno()).st_size
            found = []
            for start in (0, length // 2, max(length - size, 0)):
                file.seek(start)
                found.append(file.read(size))
            return found[0], found[1], found[2]
    except (ModelError, PermissionError):
        return b"", b"", b""


def snapshot_in(path: Path) -> Path:
    """The snapshot of a repository's folder in a Hub cache (models--org--name); any other folder is itself.

    The commit that `main` was last seen at, else the only one. ModelError if it cannot be told which.
    """
    if not _CACHE_REPO.fullmatch(path.absolute().name) or not (path / "snapshots").is_dir():
        return path
    commits = commits_of(path)
    main = path / "refs" / "main"
    said = read_bounded(main, 1 << 10).decode("ascii", "replace").strip() if main.is_file() else ""
    if said in commits or len(commits) == 1:
        return path / "snapshots" / (said if said in commits else commits[0])
    if not commits:
        raise ModelError(f"{path} is a repository in a Hub cache without a snapshot.", "Download the model again.")
    places = " or ".join(str(path / "snapshots" / commit) for commit in commits[:3])
    raise ModelError(
        f"{path} is a repository in a Hub cache that does not say which of its commits is main.", f"Name {places}."
    )


def commits_of(storage: Path) -> list[str]:
    """The commits of which a repository's folder in a Hub cache has a snapshot, the last one first."""
    places = storage / "snapshots"
    listed = itertools.islice(places.iterdir(), MAX_COMMITS) if places.is_dir() else ()
    found = [place for place in listed if _COMMIT.fullmatch(place.name) and place.is_dir()]
    return [place.name for place in sorted(found, key=lambda place: (-place.stat().st_mtime, place.name))]


def find(folder: Folder, name: str) -> Path | None:
    """The file of that name, None if there is none. ModelError if it is a link that leaves the folder."""
    path = folder.path / name
    if not path.exists():
        return None
    real = path.resolve()
    if not any(real.is_relative_to(place) for place in folder.allowed):
        raise ModelError(f"{path} is a link to a place outside the model's folder.", "Copy the file into the folder.")
    return path


def blob_digest(path: Path) -> str | None:
    """sha256 of a large file in a Hub cache, which is what the cache calls it; None for other files, and unchecked."""
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and _SHA256.fullmatch(real.name) else None


@contextmanager
def refusals_told(reference: str) -> Iterator[None]:
    """What the system refuses while a model is opened (permissions, a failing disk), as a ModelError."""
    try:
        yield
    except PermissionError as error:
        what = f"{error.filename or reference} may not be read: permission denied."
        raise ModelError(what, "Change its permissions, or copy the model.") from error
    except OSError as error:
        what = f"{error.filename or reference} could not be read: {error.strerror or type(error).__name__}."
        raise ModelError(what, "Check the disk, or copy the model.") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading: a pipe or a device would never end. Looked at again when it is open, for what
    comes into its place meanwhile; opened without waiting for a writer, for the same reason.
    """
    _check_regular(path, path.stat().st_mode)
    with open(path, "rb", opener=_without_waiting) as file:  # Path.open takes no opener
        _check_regular(path, os.fstat(file.fileno()).st_mode)
        yield file


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ModelError(
            f"{path} is not a regular file.",
            "Name a folder or a weight file.",
            reason=Reason.of(Code.FILE_UNREADABLE, path.name),
        )


def read_bounded(path: Path, limit: int) -> bytes:
    """The whole file. ModelError above `limit` bytes."""
    with opened(path) as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ModelError(f"{path} is larger than {limit >> 20} MiB, which no such file needs.", "Download it again.")
    return raw


def read_config(folder: Folder, name: str) -> tuple[Mapping[str, Any], Reason | None]:
    """The model's configuration, or {} and why there is none. ModelError if there is one that cannot be used."""
    path = find(folder, name)
    if path is None:
        return {}, Reason.of(Code.NO_CONFIG, name=name)
    try:
        return load_object(read_bounded(path, MAX_CONFIG)), None
    except JsonError as fault:
        raise ModelError(f"{path} cannot be used: {fault}.", "Download it again.") from None
