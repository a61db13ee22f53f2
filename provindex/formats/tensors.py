"""Tensors over bytes: what every weight file comes to, whatever its format and wherever its bytes are.

An `Extent` is a run of bytes of a file that is mapped, or of which only some ranges are here; tensors read through it
and never hold more than what they are asked for.
"""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError
from provindex.common.reasons import Reason
from provindex.common.tensor import F32, Index, Tensor
from provindex.formats.dtypes import STORED, decode

U8 = NDArray[np.uint8]

PIECE = 1 << 20  # elements that are decoded at a time where more were asked for than is kept
COLUMNS_AT_ONCE = 256  # of a transposed matrix: each piece of it reads the whole stored one
AT_ONCE = 1 << 25  # bytes that are read, and not looked at in a mapping
MANY = 1 << 14  # tensors: about 8 s at half a millisecond each; models of more have experts one by one, which are large
LEAST = 1 << 12  # bytes that they have on the average where there are more
NEAR = 2  # rows are read as one run if it has at most this many times the rows that are asked for
_NUMPY_DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


class Watch(Protocol):
    """Who is told which bytes of a file are looked at; positions count from the beginning of the file."""

    def touch(self, start: int, stop: int) -> None:
        """Bytes [start, stop) are looked at; where they are not here, zeros are seen."""

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Bytes [start, stop) of each must be here when this returns."""


class OpenFile:
    """A file that stays open, so that its bytes can be read instead of looked at in a mapping: another program that
    cuts the file short would end this process (SIGBUS) when it looks there. ModelError says so instead.
    """

    def __init__(self, file: int, label: str) -> None:
        """file: a descriptor, which is duplicated."""
        self._file, self._label = os.dup(file), label
        self._began = self._facts()
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, stop: int, mapped: U8) -> U8:
        """Bytes [start, stop). More than AT_ONCE of them, of which callers use a few, are the view of the mapping."""
        if stop - start > AT_ONCE or not hasattr(os, "preadv"):  # a system without it does not cut mapped files
            if os.fstat(self._file).st_size < stop:
                raise self._shorter()
            return mapped
        return self.copied(start, stop)

    def copied(self, start: int, stop: int) -> U8:
        """Bytes [start, stop), read from the file."""
        found = np.empty(stop - start, np.uint8)
        at = 0
        while at < found.size:
            count = os.preadv(self._file, [found[at : at + AT_ONCE].data], start + at)
            if not count:
                raise self._shorter()
            at += count
        found.flags.writeable = False
        return found

    def check(self) -> None:
        """ModelError if the file has another size, or was written to, since it was opened."""
        if self._facts() != self._began:
            raise ModelError(f"{self._label} was changed while it was read.", _AGAIN)

    def _facts(self) -> tuple[int, int]:
        facts = os.fstat(self._file)
        return facts.st_size, facts.st_mtime_ns

    def _shorter(self) -> ModelError:
        return ModelError(f"{self._label} became shorter while it was read.", _AGAIN)


_AGAIN = "Run the command again when no other program writes to it."


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """A run of bytes of a file. data: the bytes, mapped. offset: where they begin in the file. opened: the file,
    if it is here.
    """

    data: U8 = field(repr=False)
    offset: int = 0
    watch: Watch | None = field(default=None, repr=False)
    opened: OpenFile | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return self.data.size

    def read(self, start: int = 0, stop: int | None = None) -> U8:
        """Bytes [start, stop), read-only, clipped to what exists. Of a remote file, zeros until they were fetched."""
        begin, end, _ = slice(start, stop).indices(self.size)
        if self.watch is not None and end > begin:
            self.watch.touch(self.offset + begin, self.offset + end)
        if self.opened is None or end <= begin:
            return self.data[begin:end]
        return self.opened.read(self.offset + begin, self.offset + end, self.data[begin:end])

    def now(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), clipped, copied; of a remote file they are fetched first: for headers."""
        begin, end, _ = slice(start, stop).indices(self.size)
        if self.watch is not None and end > begin:
            self.watch.fetch([(self.offset + begin, self.offset + end)])
        if self.opened is None or end <= begin:
            return self.data[begin:end].tobytes()
        return self.opened.copied(self.offset + begin, self.offset + end).tobytes()

    def ready(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch some ranges together which `now` will be asked for one after another; nothing happens to a file that is
        here. The ranges must be in this run of bytes.
        """
        if self.watch is not None and ranges:
            self.watch.fetch([(self.offset + start, self.offset + stop) for start, stop in ranges])

    def part(self, start: int, stop: int) -> Extent:
        """The run of bytes [start, stop) of this one. IndexError if it has no such bytes."""
        if not 0 <= start <= stop <= self.size:
            raise IndexError(f"bytes {start} to {stop} of {self.size}")
        return Extent(self.data[start:stop], self.offset + start, self.watch, self.opened)

    def file(self) -> BinaryIO:
        """A seekable binary file over these bytes, for libraries that ask for one; reads go through `now`."""
        return io.BufferedReader(_ExtentFile(self))


class _ExtentFile(io.RawIOBase):
    def __init__(self, extent: Extent) -> None:
        self._extent, self._at = extent, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, (0, self._at, self._extent.size)[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._extent.now(self._at, self._at + len(buffer))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a weight file holds.

    tensors: in the order of their bytes, under the names that transformers gives them, in canonical orientation where
    the format has another one. config: as config.json has it, where the file carries it, else None. tokenizer: files
    by name (tokenizer.json ...), where the file carries them. warnings: what a reader should know. claims: models that
    the file names as what it was made of. stated: what it says of its license, name and maker, by license,
    license_name, license_link, name, quantized_by.
    """

    tensors: tuple[Tensor, ...]
    config: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)
    warnings: tuple[Reason, ...] = ()
    claims: tuple[str, ...] = ()
    stated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ByteTensor:
    """A tensor whose elements lie one after another, each in a format of dtypes.STORED."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    extent: Extent

    @property
    def nbytes(self) -> int:
        return self.extent.size

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def plain(self) -> bool:
        return True

    def flat(self, start: int = 0, stop: int | None = None) -> F32:
        begin, end, _ = slice(start, stop).indices(self.size)
        return decode(self._stored(begin, max(begin, end)), self.dtype)

    def strided(self, step: int, count: int) -> F32:
        _check_stride(self, step, count)
        return decode(self._stored(0, max(0, (count - 1) * step + 1))[::step], self.dtype)

    def rows(self, index: Index) -> F32:
        chosen, width = _chosen(self, index), _row_width(self)
        pieces = [
            self._stored(first * width, last * width).reshape(last - first, width)[at - first]
            for first, last, at in _row_runs(chosen)
        ]
        empty = np.empty((0, width), STORED.get(self.dtype, np.dtype(np.uint8)))
        return decode(pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [empty]), self.dtype)

    def chunks(self, elements: int = 1 << 22) -> Iterator[F32]:
        return _chunks(self, elements)

    def raw(self, start: int = 0, stop: int | None = None) -> memoryview:
        return self.extent.read(start, stop).data

    def _stored(self, start: int, stop: int) -> NDArray[Any]:
        if self.dtype not in STORED:
            raise ModelError(
                f"Tensor {self.name} is stored as {self.dtype}, which is not decoded.",
                "Convert it to a format with 8 or more bits (with transformers: model.save_pretrained(folder)).",
            )
        stored = STORED[self.dtype]
        return self.extent.read(start * stored.itemsize, stop * stored.itemsize).view(stored)


@dataclass(frozen=True, slots=True, eq=False)
class BlockTensor:
    """A tensor stored in blocks of `block` elements that take `width` bytes each, as GGUF's quantized ones.

    decode: (n, width) uint8 to (n, block) float32. The number of elements is a multiple of `block`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    extent: Extent
    block: int
    width: int
    decode: Callable[[U8], F32]

    @property
    def nbytes(self) -> int:
        return self.extent.size

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def plain(self) -> bool:
        return False

    def flat(self, start: int = 0, stop: int | None = None) -> F32:
        begin, end, _ = slice(start, stop).indices(self.size)
        if end <= begin:
            return np.empty(0, np.float32)
        first, last = begin // self.block, -(-end // self.block)
        return self._blocks(first, last).reshape(-1)[begin - first * self.block : end - first * self.block]

    def strided(self, step: int, count: int) -> F32:
        _check_stride(self, step, count)
        at = np.arange(count, dtype=np.int64) * step
        out = np.empty(count, np.float32)
        most = max(1, PIECE // self.block)  # blocks decoded at a time
        if self.extent.size:
            stored = self.extent.read().reshape(-1, self.width)
            for first in range(0, count, most):
                here = at[first : first + most]
                blocks = self.decode(stored[here // self.block])
                out[first : first + most] = blocks[np.arange(len(here)), here % self.block]
        return out

    def rows(self, index: Index) -> F32:
        chosen, width = _chosen(self, index), _row_width(self)
        if width % self.block:
            found = [self.flat(row * width, (row + 1) * width) for row in chosen.tolist()]
            return np.stack(found) if found else np.empty((0, width), np.float32)
        out, done, per = np.empty((chosen.size, width), np.float32), 0, width // self.block
        for first, last, at in _row_runs(chosen):
            stored = self.extent.read(first * per * self.width, last * per * self.width)
            picked = stored.reshape(last - first, per * self.width)[at - first]
            out[done : done + len(at)] = self.decode(picked.reshape(-1, self.width)).reshape(len(at), width)
            done += len(at)
        return out

    def chunks(self, elements: int = 1 << 22) -> Iterator[F32]:
        return _chunks(self, elements)

    def raw(self, start: int = 0, stop: int | None = None) -> memoryview:
        return self.extent.read(start, stop).data

    def _blocks(self, first: int, last: int) -> F32:
        return self.decode(self.extent.read(first * self.width, last * self.width).reshape(-1, self.width))


@dataclass(frozen=True, slots=True, eq=False)
class ComputedTensor:
    """A tensor that is made from stored ones row by row: dequantized, or with its rows in another order.

    make: rows [start, stop) of the tensor seen as a matrix of shape (size // shape[-1], shape[-1]), float32. sources:
    what they are made from, whose bytes are the stored bytes of this tensor. at_once: fewest rows that are worth
    making, for tensors whose rows lie across the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[int, int], F32]
    sources: tuple[Tensor, ...]
    at_once: int = 1

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.sources)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def plain(self) -> bool:
        return False

    def flat(self, start: int = 0, stop: int | None = None) -> F32:
        begin, end, _ = slice(start, stop).indices(self.size)
        if end <= begin:
            return np.empty(0, np.float32)
        width = self.shape[-1]
        first = begin // width
        made = self.make(first, -(-end // width)).reshape(-1)
        return made[begin - first * width : end - first * width]

    def strided(self, step: int, count: int) -> F32:
        _check_stride(self, step, count)
        out, done, start = np.empty(count, np.float32), 0, 0
        for piece in self.chunks(max(PIECE, self.at_once * self.shape[-1])) if count else ():
            here = piece[-start % step :: step][: count - done]
            out[done : done + here.size] = here
            done, start = done + here.size, start + piece.size
        return out

    def rows(self, index: Index) -> F32:
        chosen, width = _chosen(self, index), _row_width(self)
        out, done = np.empty((chosen.size, width), np.float32), 0
        for first, last, at in _row_runs(chosen):
            out[done : done + len(at)] = self.flat(first * width, last * width).reshape(last - first, width)[at - first]
            done += len(at)
        return out

    def chunks(self, elements: int = 1 << 22) -> Iterator[F32]:
        width = self.shape[-1]
        return _chunks(self, max(elements // width, self.at_once, 1) * width)

    def raw(self, start: int = 0, stop: int | None = None) -> memoryview:
        begin, end, _ = slice(start, stop).indices(self.nbytes)
        pieces, at = [], 0
        for source in self.sources:
            if begin < at + source.nbytes and end > at:
                pieces.append(source.raw(max(0, begin - at), min(source.nbytes, end - at)))
            at += source.nbytes
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


def check_count(count: int, size: int, label: str) -> None:
    """ModelError for more tensors than the files of a model, `size` bytes in all, can sensibly hold: each takes time,
    whatever is in it, and the models that have very many have large ones.
    """
    if count > MANY and size < LEAST * count:
        raise ModelError(
            f"{label} has more than {MANY:,} tensors in {size:,} bytes, where each should have {LEAST:,} on average.",
            "Save the model anew with its layers and experts stacked, if it is one.",
        )


def tensor_from_array(name: str, array: NDArray[Any]) -> ByteTensor:
    """A tensor over a numpy array (copied unless contiguous), for callers that make weights instead of reading them."""
    little = array.dtype.newbyteorder("<")
    dtype = "BOOL" if array.dtype.kind == "b" else next(name for name in _NUMPY_DTYPES if STORED[name] == little)
    data = np.ascontiguousarray(array, dtype=little).reshape(-1).view(np.uint8)
    return ByteTensor(name, dtype, tuple(array.shape), Extent(data))


def rows_moved(name: str, tensor: Tensor, order: NDArray[np.int64]) -> ComputedTensor:
    """A matrix or vector with its rows in another order: row i of it is row order[i] of the stored one."""

    def make(start: int, stop: int) -> F32:
        return tensor.rows(order).reshape(1, -1) if len(tensor.shape) == 1 else tensor.rows(order[start:stop])

    return ComputedTensor(name, tensor.dtype, tensor.shape, make, (tensor,))


def transposed(name: str, tensor: Tensor) -> Tensor:
    """A matrix with its axes exchanged. A piece of its rows reads all of the stored one, in pieces."""
    height, width = tensor.shape

    def make(start: int, stop: int) -> F32:
        out = np.empty((stop - start, height), np.float32)
        step = max(1, (1 << 20) // width)
        for row in range(0, height, step):
            last = min(row + step, height)
            out[:, row:last] = tensor.flat(row * width, last * width).reshape(-1, width)[:, start:stop].T
        return out

    return ComputedTensor(name, tensor.dtype, (width, height), make, (tensor,), COLUMNS_AT_ONCE)


def _check_stride(tensor: Tensor, step: int, count: int) -> None:
    if step < 1 or count < 0 or (count - 1) * step >= tensor.size:
        raise IndexError(f"{count} elements in steps of {step} are not in {tensor.name}, which has {tensor.size}")


def _chosen(tensor: Tensor, index: Index) -> NDArray[np.int64]:
    if not tensor.shape:
        raise IndexError(f"{tensor.name} is a single number and has no rows")
    chosen = np.asarray(index, dtype=np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= tensor.shape[0]):
        raise IndexError(f"{tensor.name} has rows 0 to {tensor.shape[0] - 1}, not {chosen.min()} to {chosen.max()}")
    return chosen


def _row_width(tensor: Tensor) -> int:
    return tensor.size // tensor.shape[0] if tensor.shape[0] else 0


def _row_runs(chosen: NDArray[np.int64]) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Row numbers as runs that are read in one piece: (first, one past the last, the numbers in it)."""
    runs = []
    start = 0
    if chosen.size:
        low, high = int(chosen.min()), int(chosen.max()) + 1
        if high - low <= NEAR * chosen.size:
            return [(low, high, chosen)]
    for stop in [*(np.flatnonzero(np.diff(chosen) != 1) + 1).tolist(), chosen.size]:
        if stop > start:
            runs.append((int(chosen[start]), int(chosen[stop - 1]) + 1, chosen[start:stop]))
        start = stop
    return runs


def _chunks(tensor: Tensor, elements: int) -> Iterator[F32]:
    for start in range(0, tensor.size, elements):
        yield tensor.flat(start, start + elements)
