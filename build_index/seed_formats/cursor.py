"""Reading little-endian records out of bytes, with one clear error where the bytes end too soon."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from provindex.common.errors import ModelError


class Cursor:
    """A position in `data`; every read moves it forward and refuses to leave the data."""

    def __init__(self, data: bytes, what: str, position: int = 0) -> None:
        self.data = data
        self.what = what
        self.position = position

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        piece = self.at(self.position, size)
        self.position += size
        return piece

    def at(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, without moving."""
        if start < 0 or size < 0 or start + size > len(self.data):
            raise ModelError(
                f"The {self.what} asks for bytes {start} to {start + size} but has {len(self.data)}.",
                "Delete the downloaded package and fetch it again.",
            )
        return self.data[start : start + size]

    def number(self, code: str) -> Any:
        """One number in the notation of `struct` ("I", "q", "f" ...), little-endian."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, size: int) -> str:
        """`size` bytes as text, without the zero bytes that some writers end a string with."""
        return self.take(size).rstrip(b"\0").decode()

    def array(self, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """The next `count` elements, shape (count,), read-only."""
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)
