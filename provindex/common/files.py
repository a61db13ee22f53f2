"""Files that appear whole or not at all: atomic replacement, locks, digests."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from provindex.common import places
from provindex.common.errors import BusyError, IndexFormatError, StorageError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file that was read: name relative to the model, size in bytes, sha256 or None when it was not hashed."""

    name: str
    size: int
    sha256: str | None = None


LOCK = ".lock"
LOCK_SAID = 1.0  # seconds after which it is said who holds a lock
LOCK_LIMIT = 600.0  # seconds after which we give up: the largest pull on a slow line takes less
_OURS = ".provindex-"  # how the names of temporary files begin
_LONGEST = 200  # characters of a file's name in the name of its temporary one; file systems allow 255 bytes
_SETTLED = 2.0  # seconds after which a file that is being written has been locked
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # what the system says of a full disk


def is_there(name: str) -> bool:
    """Whether a path exists; False too of a text that can be no path: longer than names may be, or with a zero byte."""
    return os.path.exists(name)  # noqa: PTH110  Path.exists raises there


def now() -> datetime:
    """The time that goes into names and manifests; SOURCE_DATE_EPOCH fixes it, for builds that repeat byte for byte."""
    epoch = places.epoch()
    return datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside a path: it takes the path's place when the block ends well, and vanishes when not.

    What writers that were killed left in the folder is removed first. StorageError, with a way out, if there is no
    space.
    """
    _sweep(path.parent)
    with full_disk_told(path), _held_temporary(path) as temporary:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """That there is no space to write a file, as a StorageError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path} could not be written: {os.strerror(error.errno)}.",
            "Free some space there, or choose another place (--output, PROVINDEX_CACHE, HF_HOME).",
            error,
        ) from error


@contextmanager
def _held_temporary(path: Path) -> Iterator[Path]:
    """A new file beside a path, locked while it is written: the system unlocks it when the writer is killed, which
    tells the next one that it was left.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_OURS}{path.name[:_LONGEST]}.", suffix=".tmp")
    try:
        _lock(handle)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file without waiting; False if another process has it, or the system has no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(folder: Path) -> None:
    """Remove temporary files of ours that nobody writes any more."""
    for left in folder.glob(f"{_OURS}*.tmp"):
        with suppress(OSError):  # somebody else removed it, or it is not ours to remove
            if left.stat().st_mtime > time.time() - _SETTLED:  # made, and perhaps not locked yet
                continue
            handle = os.open(left, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(handle):
                    left.unlink()
            finally:
                os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an index folder; the system frees it if we are killed.

    Where somebody else holds it, who that is is said after a second on standard error. BusyError after LOCK_LIMIT
    seconds.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    if path.is_symlink():  # older releases of filelock empty the file that it leads to
        raise IndexFormatError(
            f"The lock file {LOCK} of {folder.resolve().name} is a link, which is not followed.", "Remove it."
        )
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=min(LOCK_SAID, LOCK_LIMIT))
        except Timeout:
            sys.stderr.write(printable(f"waiting for {_holder(path)}, which writes to {folder}") + "\n")
            lock.acquire(timeout=max(0.0, LOCK_LIMIT - LOCK_SAID))
    except Timeout:
        raise BusyError(
            f"{folder} is locked by {_holder(path)}, for {LOCK_LIMIT:.0f} seconds and more.",
            "Wait until it has ended, or end it, and run the command again.",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds a lock, as far as the system tells: Linux lists locks by process and file."""
    try:
        listed, facts = Path("/proc/locks").read_text().splitlines(), path.stat()
    except OSError:
        return "another process"
    for fields in map(str.split, listed):
        if len(fields) == 8 and fields[5].endswith(f":{facts.st_ino}") and fields[4].isdigit():
            with suppress(OSError):
                command = Path(f"/proc/{fields[4]}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                return f"process {fields[4]} ({' '.join(command).strip()[:100]})"
            return f"process {fields[4]}"
    return "another process"


def allow_most() -> bool:
    """Let this process open as many files at once as the system allows it; False if that is no more than before."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


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
