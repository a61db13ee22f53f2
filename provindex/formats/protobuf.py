"""Protocol buffers of untrusted size: the fields of a message, one after another, without reading what they hold.

https://protobuf.dev/programming-guides/encoding/. Only headers are looked at, in small windows, so that a file of 2 GB
costs what its messages need and not what its tensors do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from provindex.common import varint
from provindex.formats.tensors import U8, Extent

WINDOW = 1 << 14  # bytes that are read at a time
MAX_TEXT = 1 << 16  # bytes of a string
MAX_NUMBERS = 1 << 24  # headers and numbers of one file that are read one by one
PIECE = 1 << 18  # bytes of packed numbers that are decoded at a time: what is made on the way is fifty times as much
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1


class ProtobufError(ValueError):
    """What is wrong with a message, as a clause: "it is cut short"."""


class Field(NamedTuple):
    """A field of a message. value: of a number, unsigned. start, stop: of what has bytes, from the file's beginning."""

    number: int
    wire: int
    value: int
    start: int
    stop: int


class Reader:
    """Messages of one file, read through a window that moves forward."""

    def __init__(self, extent: Extent) -> None:
        self.extent = extent
        self._base, self._window = 0, b""
        self._left = MAX_NUMBERS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message in bytes [start, stop). ProtobufError if they do not fill it precisely."""
        at = start
        while at < stop:
            key, at = self._varint(at, stop)
            number, wire = key >> 3, key & 7
            value, end = 0, at
            if wire == VARINT:
                value, end = self._varint(at, stop)
            elif wire == BYTES:
                length, at = self._varint(at, stop)
                end = at + length
            elif wire in (FIXED64, FIXED32):
                end = at + (8 if wire == FIXED64 else 4)
            if number == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32) or end > stop:
                raise ProtobufError("it is cut short, or no protocol buffer")
            yield Field(number, wire, value, at, end)
            at = end

    def text(self, field: Field) -> str:
        if field.wire != BYTES or field.stop - field.start > MAX_TEXT:
            raise ProtobufError("it has a name that is none, or too long")
        try:
            return self._bytes(field.start, field.stop).decode("utf-8")
        except UnicodeDecodeError:
            raise ProtobufError("it has a name that is not UTF-8 text") from None

    def integers(self, field: Field, most: int) -> list[int]:
        """Signed integers of a repeated field, packed or one by one. ProtobufError for more than `most`."""
        if field.wire == VARINT:
            return [signed(field.value)]
        found, at = [], field.start
        while at < field.stop:
            value, at = self._varint(at, field.stop)
            found.append(signed(value))
            if len(found) > most:
                raise ProtobufError("it has a list that is longer than any we know")
        return found

    def _bytes(self, start: int, stop: int) -> bytes:
        if not self._base <= start <= stop <= self._base + len(self._window):
            self._base, self._window = start, self.extent.now(start, max(stop, start + WINDOW))
        return self._window[start - self._base : stop - self._base]

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        self._left -= 1
        if self._left < 0:
            raise ProtobufError("it has more fields than any we know")
        window = self._bytes(at, min(at + varint.MOST, stop))
        try:
            value, length = varint.read(window, 0, len(window))
        except ValueError:
            raise ProtobufError("it is cut short, or no protocol buffer") from None
        return value & _MASK, at + length


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def varints(raw: bytes) -> NDArray[np.int64]:
    """All the integers of a packed field. ProtobufError if the last one does not end, or one has over ten bytes."""
    codes, start, found = np.frombuffer(raw, np.uint8), 0, [np.empty(0, np.int64)]
    while start < codes.size:
        piece = codes[start : start + PIECE]
        ends = np.flatnonzero(piece < 0x80)
        if not ends.size:
            raise ProtobufError("it has a list of numbers that is cut short")
        found.append(_decoded(piece, ends))
        start += int(ends[-1]) + 1
    return np.concatenate(found)


def _decoded(codes: U8, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Integers whose last bytes are at `ends`."""
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ProtobufError("it has a number of more than ten bytes")
    codes = codes[: ends[-1] + 1]
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    parts = (codes & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    sums: NDArray[np.uint64] = np.add.reduceat(parts, starts)
    return sums.view(np.int64)
