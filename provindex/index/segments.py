"""Memory-mapped files of an index's vectors, as codes and values, so that a large index opens at once.

They are made from the shards, can be removed at any time, and are in the user's cache.

A segment is made of neighboring shards, at least SEGMENT rows but for the last one, and named by all that it is made
from; an index that grows by shards keeps all its segments but the last. Layout: a header of 4,096 bytes (the name, the
number of rows), then the arrays of `codes.arrays`, whole: a search reads the first of them, then rows of the others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provindex.common import places
from provindex.common.files import replacing
from provindex.index import dataset
from provindex.index.codes import F32, GROUPS, STEPS, Segment, arrays, widths

LAYOUT = 3
SEGMENT = 50_000  # rows, 576 MB
HEADER = 4096
ROW = sum(width * np.dtype(kind).itemsize for width, kind in widths())  # bytes


@dataclass(frozen=True, eq=False)
class Mapped:
    """The vectors of a shard, a segment's rows from `first` on, which are unpacked when they are looked up."""

    segment: Segment
    first: int

    def __getitem__(self, rows: int | Sequence[int]) -> F32:
        return self.segment.vectors(self.first + np.asarray(rows))


def folder(shards: Sequence[dataset.Shard]) -> Path:
    """The folder of an index's segments. It is named after the index's first shard, so it survives growth."""
    return places.cache() / "nearest" / f"v{LAYOUT}" / shards[0].sha256[shards[0].models][:16]


def groups(shards: Sequence[dataset.Shard]) -> list[list[dataset.Shard]]:
    """The shards of each segment."""
    out: list[list[dataset.Shard]] = []
    rows = SEGMENT
    for shard in shards:
        if rows >= SEGMENT:
            out.append([])
            rows = 0
        out[-1].append(shard)
        rows += shard.rows
    return out


def name(shards: Sequence[dataset.Shard], center: F32) -> str:
    """sha256 of what a segment is made from: layout, center, digests of its shards."""
    parts = [(group.start, group.stop, group.bits, group.more) for group in GROUPS]
    said = hashlib.sha256(f"provindex/segment/{LAYOUT}/{STEPS}/{parts}\n".encode() + center.tobytes())
    for shard in shards:
        said.update(f"{shard.sha256[shard.models]} {shard.rows}\n".encode())
    return said.hexdigest()


def opened(index: Path, shards: Sequence[dataset.Shard], center: F32) -> list[Segment]:
    """The segments of an index folder, those that are missing or damaged made again; others are removed.

    Every shard must have been found to have as many rows as it states. Raises OSError if they cannot be kept,
    IndexFormatError if a shard cannot be read.
    """
    where = folder(shards)
    where.mkdir(parents=True, exist_ok=True)
    named = [(name(group, center), group) for group in groups(shards)]
    wanted = dict(named)
    missing = [key for key, group in wanted.items() if not _is_whole(where / key, key, _rows(group))]
    need = sum(HEADER + ROW * _rows(wanted[key]) for key in missing)
    if need > shutil.disk_usage(where).free:
        raise OSError(f"{need >> 20} MB are needed for the search files")
    for key in missing:
        with replacing(where / key) as temporary:
            write(temporary, key, _rows(wanted[key]), _bands(index, wanted[key]), center)
    for path in where.iterdir():
        if len(path.name) == 64 and path.name not in wanted:  # of the index as it was; not what is being written
            with suppress(OSError):  # somebody else removed it, or has it open where that forbids it
                path.unlink()
    return [mapped(where / key, _rows(group)) for key, group in named]


def _rows(group: Sequence[dataset.Shard]) -> int:
    return sum(shard.rows for shard in group)


def _header(key: str, rows: int) -> bytes:
    return f"provindex segment {LAYOUT} {key} {rows}\n".encode().ljust(HEADER, b"\0")


def _is_whole(path: Path, key: str, rows: int) -> bool:
    """Whether a file is a segment of so many rows; one that was cut off, or is another, is not."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == HEADER + ROW * rows and file.read(HEADER) == _header(key, rows)
    except FileNotFoundError:
        return False


def _starts(rows: int) -> list[int]:
    """Where each array begins."""
    sizes = (rows * width * np.dtype(kind).itemsize for width, kind in widths())
    return [int(end) for end in np.cumsum([HEADER, *sizes])[:-1]]


def write(path: Path, key: str, rows: int, bands: Iterable[F32], center: F32) -> None:
    """A segment's file, in place of one that is there; bands: its vectors, (n, 3520) each, `rows` in all.

    Written, not mapped: a full disk is then an OSError and not the end of the process.
    """
    first, starts = 0, _starts(rows)
    with path.open("wb") as file:
        file.truncate(HEADER + ROW * rows)
        for vectors in bands:
            for made, start in zip(arrays(vectors, center), starts, strict=True):
                file.seek(start + first * (made.nbytes // max(len(made), 1)))
                file.write(made.data)
            first += len(vectors)
        file.seek(0)
        file.write(_header(key, rows))
        file.flush()
        os.fsync(file.fileno())  # before it gets its name, so that a power cut leaves no file of zeros


def _bands(index: Path, group: Sequence[dataset.Shard]) -> Iterator[F32]:
    """The vectors of some shards, a row group at a time."""
    for shard in group:
        yield from dataset.read_vectors(index, shard)


def mapped(path: Path, rows: int) -> Segment:
    """A segment of so many rows, from its file."""
    data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    found = []
    for start, (width, kind) in zip(_starts(rows), widths(), strict=True):
        values = data[start : start + rows * width * np.dtype(kind).itemsize].view(kind)
        found.append(values if width == 1 else values.reshape(rows, width))
    return Segment.split(found)
