"""Which bytes of a file were looked at, and files of which only some ranges are here.

A `RangedFile` looks like a whole one: a sparse file of its size, mapped. What is looked at and not here is fetched.
Fetching byte by byte what a fingerprint looks at would take a thousand requests one after another, so `settled` runs
the reader on what is here (zeros elsewhere), notes what it looked at, fetches that at once, and runs it again until
nothing was missing: the plan is what the reader does, whatever the format, and cannot differ from it.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from provindex.common.errors import ModelError
from provindex.common.files import full_disk_told, replacing
from provindex.formats.tensors import Extent, OpenFile

T = TypeVar("T")
Range = tuple[int, int]
Add = Callable[[int], None]
Progress = Callable[[int, int], None]

GAP = 1 << 16  # bytes between two wanted ranges up to which one request takes both
REQUEST = 1 << 23  # most bytes of one request
HEADER = 1 << 15  # bytes that are fetched at least where a header is read; each time as many as are there already
# What a reader may raise of the zeros that stand for what is not here yet: a file that is refused, and what numpy and
# Python raise of numbers that do not go together.
OF_ZEROS = (ModelError, ArithmeticError, LookupError, ValueError)
ROUNDS = 16  # data-dependent reading (experts by their router) takes two or three
KEPT = 4 << 30  # bytes of ranges of other models that are kept when a model is opened


class Spans:
    """A set of bytes, as disjoint ranges in ascending order."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._starts, self._stops, strict=True))

    @property
    def total(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        if stop <= start:
            return
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last], self._stops[first:last] = [start], [stop]

    def missing(self, start: int, stop: int) -> list[Range]:
        """The parts of [start, stop) that are not in the set."""
        found = []
        for i in range(bisect_right(self._stops, start), len(self._starts)):
            if self._starts[i] >= stop:
                break
            if start < self._starts[i]:
                found.append((start, self._starts[i]))
            start = self._stops[i]
        return [*found, (start, stop)] if start < stop else found


class Reading:
    """Notes which bytes of a file are looked at; for several threads."""

    def __init__(self) -> None:
        self.seen = Spans()
        self._lock = threading.Lock()

    def touch(self, start: int, stop: int) -> None:
        with self._lock:
            self.seen.add(start, stop)

    def restart(self) -> None:
        """Forget what was looked at."""
        with self._lock:
            self.seen = Spans()

    def check(self) -> None:
        """ModelError if the file was changed since it was opened."""


class Mapped(Reading):
    """A file that is here, mapped. opened: the same, open."""

    def __init__(self, data: mmap.mmap | bytes, opened: OpenFile | None = None) -> None:
        super().__init__()
        self._data, self._opened = data, opened

    @property
    def extent(self) -> Extent:
        """All bytes of the file; reading them is noted by this object."""
        return Extent(np.frombuffer(self._data, np.uint8), 0, self, self._opened)

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Everything is here."""

    def check(self) -> None:
        if self._opened is not None:
            self._opened.check()


Fetch = Callable[[Sequence[Range], Callable[[int, bytes], None]], None]


class RangedFile(Reading):
    """A file elsewhere. What was fetched of it is kept in a sparse file at `path`; beside it a note says what that is.

    fetch: gets ranges, and calls what it is given with (position, bytes) as they come, from any thread. transferred:
    bytes that this object fetched. ModelError if the sparse file cannot be made.
    """

    def __init__(self, path: Path, size: int, fetch: Fetch) -> None:
        super().__init__()
        self.path, self.size, self.transferred = path, size, 0
        self.planning = False
        self._fetch = fetch
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.stat().st_size != size:
                self._spans.unlink(missing_ok=True)  # first: a note without its file would call zeros weights
            with path.open("ab") as made:
                made.truncate(size)
                self._identity = _identity(made.fileno())
            os.utime(path)  # what was used longest ago is pruned
            self.here = Spans(self._noted())
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path} cannot hold parts of a file of {size:,} bytes: {error}.",
                "Set PROVINDEX_CACHE to a folder on a disk that knows sparse files.",
            ) from error
        if hasattr(mmap, "MADV_RANDOM"):  # what is between the ranges is nothing to read ahead
            self._map.madvise(mmap.MADV_RANDOM)

    @property
    def extent(self) -> Extent:
        """All bytes of the file; reading them is watched by this object."""
        return Extent(np.frombuffer(self._map, np.uint8), 0, self)

    def touch(self, start: int, stop: int) -> None:
        super().touch(start, stop)
        if not self.planning:
            self._take([(start, stop)])

    def fetch(self, ranges: Sequence[Range]) -> None:
        with self._lock:
            gaps = [gap for start, stop in ranges for gap in self.here.missing(start, stop)]
        if len(ranges) == 1 and gaps:  # a header, whose end is told by its beginning
            start = gaps[0][0]
            gaps = [(start, min(max(ranges[0][1], start + max(HEADER, start)), self.size))]
        self._take(gaps)

    def missing(self) -> list[Range]:
        """What was looked at and is not here."""
        with self._lock:
            return [gap for start, stop in self.seen for gap in self.here.missing(start, stop)]

    def _take(self, ranges: Sequence[Range]) -> None:
        with self._lock:
            gaps = [gap for start, stop in ranges for gap in self.here.missing(start, stop)]
        if gaps:
            self.bring(gaps, lambda _: None)

    def bring(self, gaps: Sequence[Range], add: Add) -> None:
        """Fetch ranges, near ones together; what comes is kept, also when the rest does not."""
        with full_disk_told(self.path), self.path.open("r+b", buffering=0) as file:
            if _identity(file.fileno()) != self._identity:
                raise ModelError(f"{self.path} was removed while it was read.", "Run the command again.")
            try:
                self._fetch(requests(gaps), lambda position, data: self._keep(file, position, data, add))
            finally:
                self._note(file)

    def forget(self) -> None:
        """Remove what was fetched: it is not what it should be."""
        self._spans.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _keep(self, file: io.RawIOBase, position: int, data: bytes, add: Add) -> None:
        with self._lock:
            file.seek(position)
            view = memoryview(data)
            while view:
                view = view[file.write(view) or 0 :]
            self.here.add(position, position + len(data))
            self.transferred += len(data)
        add(len(data))

    def _noted(self) -> list[Range]:
        """What an earlier run fetched; nothing if the note cannot be read, or is of another file."""
        try:
            noted = json.loads(self._spans.read_text("ascii"))
            ranges = [(int(start), int(stop)) for start, stop in noted["here"]]
            identity = noted["file"]
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return []
        if identity != self._identity:
            return []
        return [(start, stop) for start, stop in ranges if 0 <= start < stop <= self.size]

    def _note(self, file: io.RawIOBase) -> None:
        """After fsync, record which ranges are present and in which file."""
        os.fsync(file.fileno())
        with self._lock:
            noted = {"file": self._identity, "here": list(self.here)}
        with replacing(self._spans) as temporary:
            temporary.write_text(json.dumps(noted), "ascii")

    @property
    def _spans(self) -> Path:
        return self.path.with_suffix(".spans")


def _identity(file: int) -> list[int]:
    """What tells a file from another one that was made later in its place."""
    facts = os.fstat(file)
    return [facts.st_dev, facts.st_ino]


def requests(ranges: Sequence[Range]) -> list[Range]:
    """Ranges as they are asked for: near ones together, long ones in pieces."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= GAP:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return [(at, min(at + REQUEST, stop)) for start, stop in joined for at in range(start, stop, REQUEST)]


def settled(files: Sequence[Reading], make: Callable[[], T], progress: Progress | None = None) -> T:
    """What `make` makes of files of which some may be elsewhere: run on what is here until nothing was missing."""
    ranged = [file for file in files if isinstance(file, RangedFile)]
    for _ in range(ROUNDS if ranged else 0):
        for file in ranged:
            file.restart()
            file.planning = True
        failure: Exception | None = None
        try:
            made = make()
        except OF_ZEROS as error:  # raised below if nothing was missing
            failure = error
        finally:
            for file in ranged:
                file.planning = False
        gaps = [file.missing() for file in ranged]
        if not any(gaps):
            if failure is not None:
                raise failure
            return made
        _bring(ranged, gaps, progress)
    return make()


def _bring(files: Sequence[RangedFile], gaps: Sequence[Sequence[Range]], progress: Progress | None) -> None:
    total = sum(stop - start for found in gaps for start, stop in requests(found))
    done, lock = 0, threading.Lock()

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress:
                progress(min(done, total), total)

    for file, found in zip(files, gaps, strict=True):
        if found:
            file.bring(found, add)


def prune(folder: Path, keep: Iterable[Path], limit: int = KEPT) -> None:
    """Remove ranges, of models that were asked about longest ago first, until what is kept is below a limit.

    Never those of `keep`.
    """
    kept = set(keep)
    found = []
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):  # another process removed it
            facts = path.stat()
            found.append((facts.st_mtime, getattr(facts, "st_blocks", facts.st_size // 512) * 512, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > limit and path not in kept:
            with contextlib.suppress(OSError):  # in use, where that keeps a file from being removed
                path.with_suffix(".spans").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            total -= size
