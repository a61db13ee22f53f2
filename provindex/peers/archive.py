"""Reading a zip file that nobody vouches for: digest first, every name checked, bytes counted as they are unpacked.

Only what lies below a directory of one name is taken. Files are read one by one; nothing is written to the disk.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO

from provindex.common.bounded_json import shown
from provindex.common.errors import IndexFormatError, UsageError

MAX_ENTRIES = 50_000
MAX_UNPACKED = 10 << 30  # bytes of all files that are read
MAX_DIRECTORY = 16 << 20  # bytes that the list of entries may have: it is held in memory
MAX_DEPTH = 12  # folders in folders
MAX_NAME = 512
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may take gigabytes to unpack a few bytes
CHUNK = 1 << 20
AGAIN = "Download it again."
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError)


class Opened:
    """The files of an open archive, by their path below the directory."""

    def __init__(self, archive: zipfile.ZipFile, chosen: Mapping[str, zipfile.ZipInfo]) -> None:
        self.names = tuple(chosen)
        self._archive, self._chosen, self._left = archive, chosen, MAX_UNPACKED

    def read(self, path: str, limit: int) -> bytearray | None:
        """A whole file; None if there is none of that path. ValueError if it is damaged or has more than `limit` bytes.

        All files together may have MAX_UNPACKED bytes.
        """
        entry, data = self._chosen.get(path), bytearray()
        if entry is None:
            return None
        name = shown(PurePosixPath(path).name)
        try:
            with self._archive.open(entry) as source:
                while piece := source.read(CHUNK):
                    data += piece
                    self._left -= len(piece)
                    if len(data) > limit or self._left < 0:
                        break
        except (*DAMAGED, OSError) as error:
            raise ValueError(f"{name} cannot be unpacked: {_said(error)}") from error
        if len(data) > limit:
            raise ValueError(f"{name} is larger than {limit >> 20} MB, which no such file needs")
        if self._left < 0:
            raise ValueError(f"{name} cannot be unpacked: the archive has more than {MAX_UNPACKED:,} bytes")
        return data


@contextmanager
def opened(archive: Path, *, below: str, sha256: str) -> Iterator[Opened]:
    """Open the files of an archive that lie below a directory.

    below: the name of that directory, at any depth; what is above it is dropped. sha256: of the archive, hex. Raises
    IndexFormatError for another digest, or for an entry that does not belong into an archive of data files; UsageError
    if the archive is no file.
    """
    if not archive.is_file():
        raise UsageError(f"{archive} is no file.", "Name the zip file.")
    with ExitStack() as held:
        with _refusals(archive.name):
            file = held.enter_context(archive.open("rb"))
            _check_digest(file, archive.name, sha256)
            entries = held.enter_context(zipfile.ZipFile(_Limited(file)))
            chosen = _chosen(entries.infolist(), below)
        yield Opened(entries, chosen)


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
    """Whatever is wrong with an archive as a whole, as one sentence."""
    try:
        yield
    except DAMAGED as error:
        raise IndexFormatError(f"{name} cannot be unpacked: {_said(error)}.", AGAIN) from error
    except OSError as error:
        raise IndexFormatError(f"{name} cannot be unpacked: {_said(error)}.", "Check the file.") from error


def _said(error: Exception) -> str:
    """What went wrong, without the full stop."""
    said = (error.strerror if isinstance(error, OSError) else str(error)) or ""
    return said.rstrip(".") or ("it ends too early" if isinstance(error, EOFError) else type(error).__name__)


def _chosen(entries: list[zipfile.ZipInfo], below: str) -> dict[str, zipfile.ZipInfo]:
    """Entries by their path below the directory. BadZipFile if any entry at all is odd."""
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
