"""Unpacking a zip file that nobody vouches for: digest first, every name checked, bytes counted as they are written.

Only what lies below a directory of one name is taken. Nothing is left behind unless all went well.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO

from provindex.common.bounded_json import shown
from provindex.common.errors import IndexFormatError, UsageError

MAX_ENTRIES = 50_000
MAX_UNPACKED = 10 << 30  # bytes
MAX_DIRECTORY = 16 << 20  # bytes that the list of entries may have: it is held in memory
MAX_DEPTH = 12  # folders in folders
MAX_NAME = 512
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may take gigabytes to unpack a few bytes
CHUNK = 1 << 20
AGAIN = "Download it again."


def unpack(archive: Path, target: Path, *, below: str, sha256: str) -> int:
    """Unpack into `target`, which must not exist, the files of an archive that lie below a directory; how many.

    below: the name of that directory, at any depth; what is above it is dropped, so that it is the only thing in the
    target. sha256: of the archive, hex. Raises IndexFormatError for another digest, or for anything in it that does not
    belong into an archive of data files; UsageError if the target exists, or the archive is no file. Then nothing is
    left of what was written.
    """
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists already.", "Name a folder that does not, or remove it.")
    if not archive.is_file():
        raise UsageError(f"{archive} is no file.", "Name the zip file.")
    with _refusals(archive.name), archive.open("rb") as file:
        _check_digest(file, archive.name, sha256)
        with zipfile.ZipFile(_Limited(file)) as entries:
            chosen = _chosen(entries.infolist(), below)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
            try:
                _write(entries, chosen, draft / below)
                draft.chmod(0o755)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return len(chosen)


def _check_digest(file: BufferedReader, name: str, sha256: str) -> None:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256.lower():
        raise IndexFormatError(
            f"{name} is not the archive that was asked for: its sha256 is {digest}, not {sha256}.",
            "Download it again, or state the digest of the release that you mean.",
        )
    file.seek(0)


class _Limited:
    """A file of which no single read may be large: `zipfile` reads the list of entries at once, whatever its size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1))
        if len(data) > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of entries has more than {MAX_DIRECTORY >> 20} MB")
        return data


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Whatever is wrong with an archive, as one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError) as error:
        said = str(error).rstrip(".") or "it ends too early"
        raise IndexFormatError(f"{name} cannot be unpacked: {said}.", AGAIN) from error
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise IndexFormatError(
            f"{name} cannot be unpacked: {said}.", "Check the file, and the room on the disk."
        ) from error


def _chosen(entries: list[zipfile.ZipInfo], below: str) -> dict[str, zipfile.ZipInfo]:
    """Entries to unpack by their path below the directory. BadZipFile if any entry at all is odd."""
    if len(entries) > MAX_ENTRIES:
        raise zipfile.BadZipFile(f"it has {len(entries):,} entries, {MAX_ENTRIES:,} are the most")
    chosen: dict[str, zipfile.ZipInfo] = {}
    taken: set[str] = set()
    for entry in entries:
        parts = _parts(entry)
        junk = "__MACOSX" in parts or parts[-1].startswith("._")
        if junk or entry.is_dir() or below not in parts[:-1]:
            continue
        path = "/".join(parts[parts.index(below) + 1 :])
        if path.casefold() in taken:
            raise zipfile.BadZipFile(f"it has {shown(path)} twice")
        taken.add(path.casefold())
        chosen[path] = entry
    if not chosen:
        raise zipfile.BadZipFile(f"it has no files below a directory {below}")
    return chosen


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """The parts of an entry's name. BadZipFile if it could leave the folder, or is no plain file or directory."""
    name = entry.orig_filename
    parts = PurePosixPath(name).parts
    if any(c in '\\:*?"<>|' or ord(c) < 32 for c in name) or name.startswith("/") or ".." in parts or not parts:
        raise zipfile.BadZipFile(f"it has an entry {shown(name)}, which could leave the folder")
    if len(parts) > MAX_DEPTH or len(name) > MAX_NAME or any(len(part.encode()) > 255 for part in parts):
        raise zipfile.BadZipFile(f"it has an entry with too long a path, {shown(name)}")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise zipfile.BadZipFile(f"it has a link or a device, {shown(name)}")
    if entry.flag_bits & 1 or entry.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"{shown(name)} is encrypted or packed in a way that is not read")
    return parts


def _write(archive: zipfile.ZipFile, chosen: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    """Write the entries, counting what is really unpacked."""
    left = MAX_UNPACKED
    for path, entry in chosen.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, place.open("xb") as written:
            while data := source.read(CHUNK):
                left -= len(data)
                if left < 0:
                    raise zipfile.BadZipFile(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
                written.write(data)
