"""What a Parquet column chunk really holds, from its page headers: a footer can say anything.

A page header is a struct in Thrift's compact protocol (parquet-format, `PageHeader` in parquet.thrift): the kind of
page, its size before and after compression, and in a struct of its own the number of values. Those are the numbers
that a reader allocates by, so adding them up bounds what reading the chunk can take, and nothing is unpacked for it.
"""

from __future__ import annotations

_COUNTED = (5, 8)  # fields of PageHeader: data_page_header and data_page_header_v2; in both, field 1 is num_values
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
    """A number of 7 bits a byte, lowest first; the high bit says that another byte follows."""
    number = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a number in a page header does not end")
