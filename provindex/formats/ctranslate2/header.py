"""The variables of a CTranslate2 file: names, types and places, read with nothing trusted.

A file is a version, the name and revision of its kind of model, then the variables one after another (name, sizes,
type, length, bytes), and last the aliases: names of variables that are equal to another one.
https://github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.formats.dtypes import BITS
from provindex.formats.tensors import Extent

VERSIONS = range(4, 7)  # since 2020; older ones tell the types of numbers by their size alone
MAX_VARIABLES = 1 << 17  # of a file; a model of 100 layers has about 3,000
MAX_RANK = 8
WINDOW = 512  # bytes that are read at once before a variable: its name and sizes nearly always fit
DTYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Variable:
    """One stored array: its bytes are [start, stop) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """spec: the kind of model, as "TransformerSpec". variables: by name, in the order of their bytes. aliases: names of
    variables that are stored under another name."""

    version: int
    spec: str
    revision: int
    variables: Mapping[str, Variable]
    aliases: Mapping[str, str]


def read_header(file: Extent, label: str) -> Header:
    """Walk through a file, which errors call `label`. ModelError, in one sentence, for what is none or is damaged."""
    cursor = _Cursor(file, label)
    (version,) = cursor.numbers("<I")
    if version not in VERSIONS:
        raise ModelError(
            f"{label} is a CTranslate2 model of version {version}; versions {VERSIONS[0]} to {VERSIONS[-1]} are read.",
            "Convert it again, or name the model that it was made from.",
        )
    spec = cursor.name()
    revision, count = cursor.numbers("<II")
    variables: dict[str, Variable] = {}
    for _ in range(cursor.bounded(count)):
        name = cursor.name()
        if name in variables:
            raise cursor.broken(f"has {shown(name)} twice")
        variables[name] = cursor.variable(name)
    aliases: dict[str, str] = {}
    for _ in range(cursor.bounded(*cursor.numbers("<I"))):
        name, target = cursor.name(), cursor.name()
        if target not in variables or name in variables or name in aliases:
            raise cursor.broken(f"calls {shown(name)} another name of {shown(target)}, which it is not")
        aliases[name] = target
    if cursor.at != file.size:
        raise cursor.broken(f"has {file.size - cursor.at} bytes after its end")
    return Header(version, spec, revision, variables, aliases)


class _Cursor:
    """A position in a file; every read moves it, and refuses to leave the file."""

    def __init__(self, file: Extent, label: str) -> None:
        self.at = 0
        self._file, self._label = file, label
        self._window, self._begin = b"", 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        first = self.at - self._begin
        if not 0 <= first <= len(self._window) - size:
            self._window, self._begin, first = self._file.now(self.at, self.at + max(size, WINDOW)), self.at, 0
        found = self._window[first : first + size]
        if len(found) < size:
            raise self.broken("ends inside its variables: it is truncated or corrupt")
        self.at += size
        return found

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def name(self) -> str:
        """A text with its length before it and a zero byte at its end."""
        raw = self.take(*self.numbers("<H"))
        try:
            return raw.removesuffix(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken("has a name that is not UTF-8 text") from None

    def bounded(self, count: int) -> int:
        if count > min(MAX_VARIABLES, self._file.size):
            raise self.broken(f"announces {count:,} variables, which no model has")
        return count

    def variable(self, name: str) -> Variable:
        (rank,) = self.numbers("<B")
        if rank > MAX_RANK:
            raise self.broken(f"gives {shown(name)} {rank} sizes, {MAX_RANK} are the most")
        shape = self.numbers(f"<{rank}I")
        code, size = self.numbers("<BI")
        if code >= len(DTYPES):
            raise self.broken(f"gives {shown(name)} the unknown type {code}")
        start = self.at
        if math.prod(shape) * BITS[DTYPES[code]] // 8 != size:
            raise self.broken(f"gives {shown(name)} {size} bytes, which do not fit {DTYPES[code]} of shape {[*shape]}")
        if size > self._file.size - start:
            raise self.broken(f"ends inside {shown(name)}: it is truncated or corrupt")
        self.at = start + size
        return Variable(DTYPES[code], shape, start, self.at)

    def broken(self, what: str) -> ModelError:
        return ModelError(f"{self._label} {what}.", "Download it again, or convert it again with CTranslate2.")
