"""What a Parquet column chunk really holds, from its page headers: a footer can say anything. And its numbers.

A page header is a struct in Thrift's compact protocol (parquet-format, `PageHeader` in parquet.thrift): the kind of
page, its size before and after compression, and in a struct of its own the number of values. Those are the numbers
that a reader allocates by, so adding them up bounds what reading the chunk can take, and nothing is unpacked for it.

`one_list` unpacks the plainest of chunks: one list of numbers, none of them null, in pages of version 1. It takes a
fifth of the time of a reader for nested columns in general, and leaves everything else to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common import varint

_COUNTED = (5, 8)  # fields of PageHeader: data_page_header and data_page_header_v2; in both, field 1 is num_values
_DATA_PAGE = 0
_PLAIN, _RLE, _SPLIT = 0, 3, 9  # encodings: as in memory; runs, of levels; the first byte of every value, then the next
_VALUE, _EMPTY = 3, 1  # definition levels of a list's value, and of a list without any, where both may be null
_DEEPEST = 4  # a page header, a data page header, its statistics


def totals(data: memoryview, start: int, stop: int) -> tuple[int, int]:
    """(values, uncompressed bytes) of the pages in data[start:stop], a column chunk.

    Raises ValueError if that is not a row of pages.
    """
    if not 0 <= start <= stop <= len(data):
        raise ValueError("a column lies outside the file")
    values = size = 0
    while start < stop:
        header, start = _struct(data, start, stop, 0)
        unpacked, packed = header.get(2), header.get(3)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise ValueError("a page has no size")
        size += unpacked
        for field in _COUNTED:
            counted = header.get(field, {1: 0})
            count = counted.get(1) if isinstance(counted, dict) else None
            if not isinstance(count, int) or count < 0:
                raise ValueError("a page has no number of values")
            values += count
        start += packed
    if start != stop:
        raise ValueError("a page reaches beyond its column")
    return values, size


def one_list(
    data: memoryview, start: int, stop: int, width: int, unpack: Callable[[memoryview, int], Any] | None
) -> NDArray[np.uint8] | None:
    """The bytes, little-endian, of the values in data[start:stop], a chunk that `totals` passed.

    The chunk must hold one list (nullable, of nullable values) of numbers `width` bytes wide; None if it holds anything
    else, a null included, or is encoded in another way. unpack: from packed bytes and the unpacked size to bytes; None
    if the pages are not compressed. Raises ValueError if that is not a row of pages.
    """
    pieces: list[NDArray[np.uint8]] = []
    while start < stop:
        header, start = _struct(data, start, stop, 0)
        page, size, packed = header.get(_COUNTED[0]), header.get(2), header.get(3)
        if header.get(1) != _DATA_PAGE or not isinstance(page, dict):
            return None
        if not isinstance(size, int) or not isinstance(packed, int):
            raise ValueError("a page has no size")
        body = data[start : start + packed]
        unpacked = memoryview(unpack(body, size)).cast("B") if unpack else body
        values = _page_values(unpacked, page, width, first=not pieces)
        if values is None:
            return None
        pieces.append(values)
        start += packed
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else None


def _page_values(page: memoryview, header: dict[Any, Any], width: int, *, first: bool) -> NDArray[np.uint8] | None:
    """The values of a page: repetition levels, definition levels, each with its length before it, then the numbers."""
    count, encoding = header.get(1), header.get(2)
    if not isinstance(count, int) or count < 1 or header.get(3) != _RLE or header.get(4) != _RLE:
        return None
    repeats, at = _piece(page, 0)
    defined, at = _piece(page, at)
    if not _all_levels(repeats, count, 1, 1, 0 if first else 1):  # a list's first value starts it, the others go on
        return None
    if first and count == 1 and at == len(page) and _all_levels(defined, 1, 2, _EMPTY, _EMPTY):
        return np.zeros(0, np.uint8)
    if len(page) - at != count * width or not _all_levels(defined, count, 2, _VALUE, _VALUE):
        return None
    values = np.frombuffer(page, np.uint8, offset=at)
    if encoding == _SPLIT:
        return _joined(values.reshape(width, count))
    return values if encoding == _PLAIN else None


def _joined(parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes of values from (width, n): all first bytes, all second ones ... Shifting beats copying a transpose."""
    out = parts[0].astype(f"<u{len(parts)}")
    for place, part in enumerate(parts[1:], 1):
        out |= part.astype(out.dtype) << np.array(8 * place, out.dtype)
    return np.asarray(out.view(np.uint8))


def _piece(page: memoryview, at: int) -> tuple[memoryview, int]:
    """Levels with their length before them, and where they end."""
    stop = at + 4 + int.from_bytes(page[at : at + 4], "little")
    if stop > len(page):
        raise ValueError("levels reach beyond their page")
    return page[at + 4 : stop], stop


def _all_levels(data: memoryview, count: int, bits: int, level: int, first: int) -> bool:
    """Whether `count` levels, in runs of one level or packed by eights, are `first` and then all `level`."""
    at = done = 0
    while done < count:
        head, at = _unsigned(data, at, len(data))
        runs = head >> 1
        if head & 1:
            packed = np.frombuffer(data[at : at + runs * bits], np.uint8)
            if not runs or packed.size != runs * bits:
                return False
            levels = np.unpackbits(packed, bitorder="little").reshape(-1, bits) @ (1 << np.arange(bits))
            levels = levels[: count - done]
            right = levels[0] == (level if done else first) and bool((levels[1:] == level).all())
            at, done = at + packed.size, done + 8 * runs
        else:
            found = data[at] if at < len(data) else -1
            right = runs > 0 and found == (level if done else first) and (first == level or bool(done) or runs == 1)
            at, done = at + 1, done + runs
        if not right:
            return False
    return True


def _struct(data: memoryview, at: int, stop: int, depth: int) -> tuple[dict[int, object], int]:
    """The numbers and structs of a struct by field number, and where it ends; other kinds of fields are passed over.

    A field that comes twice is refused: readers differ in which of the two they take.
    """
    found: dict[int, object] = {}
    field = 0
    while True:
        if at >= stop or depth >= _DEEPEST:
            raise ValueError("a page header does not end")
        head = data[at]
        at += 1
        if head == 0:
            return found, at
        kind, step = head & 15, head >> 4
        if step:
            field += step
        else:
            field, at = _signed(data, at, stop)
        if field in found:
            raise ValueError("a page header has a field twice")
        found[field], at = _value(data, at, stop, kind, depth)


def _value(data: memoryview, at: int, stop: int, kind: int, depth: int) -> tuple[object, int]:
    """A field's value (None where only its length matters) and where it ends; kinds as the compact protocol counts."""
    if kind in (1, 2):  # true and false have no bytes of their own
        return None, at
    if kind == 3:  # a byte
        return None, at + 1
    if kind in (4, 5, 6):  # numbers of 16, 32 and 64 bits
        return _signed(data, at, stop)
    if kind == 7:  # a double
        return None, at + 8
    if kind == 8:  # bytes, their length before them
        length, at = _unsigned(data, at, stop)
        return None, at + length
    if kind == 12:
        return _struct(data, at, stop, depth + 1)
    raise ValueError("a page header has a field that none has")


def _signed(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    number, at = _unsigned(data, at, stop)
    return (number >> 1) ^ -(number & 1), at


def _unsigned(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    try:
        return varint.read(data, at, stop)
    except ValueError:
        raise ValueError("a number in a page header does not end") from None
