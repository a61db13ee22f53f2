"""The header of a GGUF file, read with nothing trusted. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

A file is a magic, a version, two counts, metadata (typed values by name), a description of each tensor, and the
tensors' bytes, each at a multiple of an alignment. Of a remote file only what is needed is fetched, in few steps.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.formats.gguf.blocks import FORMATS, Format
from provindex.formats.tensors import Extent

MAX_HEADER = 1 << 26  # bytes; that of a vocabulary of 262,144 tokens with merges is about 15 MB
MAX_ENTRIES = 1 << 16  # metadata values, and tensors
MAX_STRINGS = 1 << 20  # tokens or merges
MAX_NAME = 256  # bytes of a name of a tensor; the format's own limit is 64
MAX_KEY = (1 << 16) - 1
MAX_KEPT = 4096  # bytes of a text that is kept: longer ones (chat templates) are passed over
MAX_GAP = 1 << 12  # bytes between tensors, which alignment makes: it is 32 nearly always
MAX_OTHERS = 1 << 17  # bytes of all metadata that are no tokenizer's; chat templates are the largest
MAX_RANK = 4
_MAX_ELEMENTS = 1 << 60
_FIRST_STEP, _LARGEST_STEP = 1 << 20, 1 << 24  # bytes fetched at once

STRING, ARRAY = 8, 9
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_TEXT_LISTS = frozenset({"tokenizer.ggml.tokens", "tokenizer.ggml.merges"})
_OF_TOKENIZERS = _TEXT_LISTS | {
    "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.huggingface.json",
}  # fmt: skip

Value = bool | int | float | str | NDArray[Any] | list[str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: shape outermost axis first (the file has it reversed); its bytes are [start, stop) of the file."""

    name: str
    format: Format
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """metadata: numbers, texts of up to MAX_KEPT bytes, arrays of numbers, tokens and merges. entries: by position.
    unread: bytes that are in neither, where they are more than a header and an alignment need.
    """

    metadata: Mapping[str, Value]
    entries: tuple[Entry, ...]
    unread: int = 0


def read_header(file: Extent, label: str) -> Header:
    """Read and check the header of a whole file. ModelError says in one sentence what is wrong."""
    cursor = _Cursor(file, label)
    if cursor.take(4) != b"GGUF":
        cursor.fail("does not begin with 'GGUF'")
    version = cursor.number("<u4")
    if version & 0xFFFF == 0:
        raise ModelError(f"{label} is a GGUF file in big-endian order, which is not read.", "Convert it again.")
    if version not in (2, 3):
        raise ModelError(f"{label} is GGUF version {version}; 2 and 3 are read.", "Convert it with a newer llama.cpp.")
    tensors, values = cursor.number("<u8"), cursor.number("<u8")
    for count, what in ((tensors, "tensors"), (values, "metadata values")):
        if count > MAX_ENTRIES:
            cursor.fail(f"announces {count} {what}, more than {MAX_ENTRIES}")
    metadata, others = _read_metadata(cursor, values)
    described: dict[str, Described] = {}
    for _ in range(tensors):
        entry = _read_entry(cursor)
        if entry[0] in described:
            cursor.fail(f"names the tensor {shown(entry[0])} twice")
        described[entry[0]] = entry
    begin = cursor.position
    entries = _place(cursor, described.values(), metadata.get("general.alignment", 32))
    ends = [begin, *(entry.stop for entry in entries)]
    gaps = (start - end for end, start in zip(ends, [*(entry.start for entry in entries), file.size], strict=True))
    unread = sum(gap for gap in gaps if gap > MAX_GAP) + (others if others > MAX_OTHERS else 0)
    return Header(metadata, entries, unread)


class _Cursor:
    """Reads a file from its beginning, in steps that grow, so that a header of any size is few reads."""

    def __init__(self, file: Extent, label: str) -> None:
        self._file, self._label = file, label
        self._data, self._base, self._at = b"", 0, 0  # what is here, where it begins in the file, how far it is read
        self._step = _FIRST_STEP

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def size(self) -> int:
        return self._file.size

    def fail(self, what: str) -> NoReturn:
        raise ModelError(f"{self._label} {what}.", "Download it again, or convert it again with llama.cpp.")

    def need(self, count: int) -> None:
        """Have the next `count` bytes here."""
        if count <= len(self._data) - self._at:
            return
        self._check(count)
        held = self._data[self._at :]
        start = self.position + len(held)
        self._data, self._base, self._at = b"", self.position, 0
        self._data = held + self._file.now(start, start + max(self._step, count - len(held)))
        self._step = min(2 * self._step, _LARGEST_STEP)

    def take(self, count: int) -> bytes:
        self.need(count)
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Pass over bytes without fetching those that are not here."""
        self._check(count)
        self._at += count
        if self._at > len(self._data):
            self._data, self._base, self._at = b"", self.position, 0

    def number(self, code: str) -> Any:
        dtype = np.dtype(code)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def text_size(self, limit: int, what: str) -> int:
        size: int = self.number("<u8")
        if size > limit:
            self.fail(f"has a {what} of {size} bytes, more than {limit}")
        return size

    def name(self, limit: int, what: str) -> str:
        raw = self.take(self.text_size(limit, what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"has a {what} that is not UTF-8 text ({raw[:40]!r})")

    def texts(self, count: int) -> Iterator[bytes]:
        """A list of texts, each with its length in front."""
        for _ in range(count):
            self.need(8)
            (size,) = struct.unpack_from("<Q", self._data, self._at)
            if size > MAX_KEY:
                self.fail(f"has a text of {size} bytes in a list, more than {MAX_KEY}")
            self._at += 8
            yield self.take(size)

    def _check(self, count: int) -> None:
        if self.position + count > self.size:
            self.fail("ends inside its header: it is truncated or corrupt")
        if self.position + count > MAX_HEADER:
            self.fail(f"has a header of more than {MAX_HEADER >> 20} MiB, which no model needs")


def _read_metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Value], int]:
    """The values by name, and the bytes of those that no tokenizer needs."""
    others = 0
    found: dict[str, Value] = {}
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.name(MAX_KEY, "metadata name")
        if key in seen:
            cursor.fail(f"has the metadata {shown(key)} twice")
        seen.add(key)
        start = cursor.position
        value = _read_value(cursor, key)
        others += cursor.position - start if key not in _OF_TOKENIZERS else 0
        if value is not None:
            found[key] = value
    return found, others


def _read_value(cursor: _Cursor, key: str) -> Value | None:
    """One value; None for those that are passed over."""
    kind = cursor.number("<u4")
    if kind == STRING:
        size = cursor.text_size(MAX_HEADER, "text")
        if size <= MAX_KEPT:
            return _text(cursor.take(size))
        cursor.skip(size)
        return None
    if kind == ARRAY:
        return _read_array(cursor, key)
    if kind not in _NUMBERS:
        cursor.fail(f"gives {shown(key)} a value of the unknown type {kind}")
    value: bool | int | float = cursor.number(_NUMBERS[kind])
    return _shortest(value) if kind == 6 else value


def _read_array(cursor: _Cursor, key: str) -> Value | None:
    kind, count = cursor.number("<u4"), cursor.number("<u8")
    if kind == STRING:
        if key not in _TEXT_LISTS:
            for _ in cursor.texts(count):
                pass
            return None
        if count > MAX_STRINGS:
            cursor.fail(f"has {count} texts in {shown(key)}, more than {MAX_STRINGS}")
        return [_text(raw) for raw in cursor.texts(count)]
    if kind == ARRAY:
        cursor.fail(f"nests arrays in {shown(key)}, which no model needs")
    if kind not in _NUMBERS:
        cursor.fail(f"gives {shown(key)} an array of the unknown type {kind}")
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(cursor.take(count * dtype.itemsize), dtype)


def _text(raw: bytes) -> str:
    """Tokens may be any bytes: those that are no UTF-8 are written as \\xff, so that different ones stay different."""
    return raw.decode("utf-8", errors="backslashreplace")


def _shortest(value: float) -> float:
    """A float32 as the number that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


Described = tuple[str, Format, tuple[int, ...], int]  # name, format, shape, offset from the beginning of the data


def _read_entry(cursor: _Cursor) -> Described:
    name = cursor.name(MAX_NAME, "tensor name")
    rank = cursor.number("<u4")
    if rank > MAX_RANK:
        cursor.fail(f"gives {shown(name)} {rank} axes, more than {MAX_RANK}")
    shape = tuple(cursor.number("<u8") for _ in range(rank))[::-1]
    if not shape or 0 in shape or math.prod(shape) > _MAX_ELEMENTS:
        cursor.fail(f"gives {shown(name)} a shape that no tensor has")
    kind = cursor.number("<u4")
    if kind not in FORMATS:
        cursor.fail(f"stores {shown(name)} in the unknown format {kind}")
    if shape[-1] % FORMATS[kind].block:
        cursor.fail(f"stores {shown(name)} as {FORMATS[kind].name} in rows of {shape[-1]} elements")
    return name, FORMATS[kind], shape, cursor.number("<u8")


def _place(cursor: _Cursor, described: Iterable[Described], alignment: Value) -> tuple[Entry, ...]:
    """Where the tensors' bytes are: aligned, inside the file, apart from each other."""
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):  # type: ignore[operator]
        cursor.fail(f"has an alignment that is no power of two between 8 and {1 << 16}")
    assert isinstance(alignment, int)
    data = -(-cursor.position // alignment) * alignment
    entries = []
    for name, form, shape, offset in described:
        start = data + offset
        stop = start + math.prod(shape) // form.block * form.width
        if offset % alignment:
            cursor.fail(f"puts {shown(name)} at byte {offset} of its data, no multiple of {alignment}")
        if stop > cursor.size:
            cursor.fail(f"puts {shown(name)} at bytes {start} to {stop} of {cursor.size}: it is truncated or corrupt")
        entries.append(Entry(name, form, shape, start, stop))
    entries.sort(key=lambda entry: entry.start)
    for before, after in pairwise(entries):
        if after.start < before.stop:
            cursor.fail(f"has {shown(after.name)} overlapping {shown(before.name)}")
    return tuple(entries)
