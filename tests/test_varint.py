"""Numbers of variable length: what they say, and where they have to end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provindex.common import varint


def written(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(st.integers(0, (1 << 70) - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_a_number_and_where_it_ends(value: int, before: bytes, after: bytes) -> None:
    number = written(value)
    data = before + number + after
    assert varint.read(memoryview(data), len(before), len(data)) == (value, len(before) + len(number))
    with pytest.raises(varint.CutShortError):
        varint.read(data, len(before), len(before) + len(number) - 1)


@pytest.mark.parametrize(
    ("data", "stop", "error"),
    [
        (b"", 0, varint.CutShortError),
        (b"\x80" * 9, 9, varint.CutShortError),
        (b"\x80" * 10, 10, varint.TooLongError),
        (b"\xff" * 99, 99, varint.TooLongError),
        (b"\x80\x01", 1, varint.CutShortError),
    ],
)
def test_a_number_that_does_not_end(data: bytes, stop: int, error: type[ValueError]) -> None:
    with pytest.raises(error):
        varint.read(data, 0, stop)
