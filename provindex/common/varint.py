"""Numbers of variable length, as protocol buffers and Thrift write them: 7 bits a byte, the lowest first.

The high bit of a byte says that another one follows.
"""

from __future__ import annotations

MOST = 10  # bytes of a number of 64 bits


class CutShortError(ValueError):
    """The data ends inside a number."""


class TooLongError(ValueError):
    """A number has more than ten bytes."""


def read(data: bytes | memoryview, at: int, stop: int) -> tuple[int, int]:
    """The unsigned number at position `at` of data[:stop], below 2^70, and the position after it.

    CutShortError or TooLongError (both ValueErrors) if it does not end.
    """
    value = shift = 0
    limit = min(stop, at + MOST)
    while at < limit:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise (
        TooLongError("a number of more than ten bytes")
        if shift == 7 * MOST
        else CutShortError("an end inside a number")
    )
