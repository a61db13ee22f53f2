"""The header of a safetensors file, read with nothing trusted. https://huggingface.co/docs/safetensors

A file is an 8-byte little-endian length, that many bytes of JSON, and the tensors' bytes back to back. We
check at least what the reference checks: the tensors cover the data exactly, in order, without gap or
overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from provindex.common.bounded_json import JsonError, read_object, read_small, read_string, shown, skip_space
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.formats.dtypes import BITS, element_bytes
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.tensors import ByteTensor, Contents, Extent, check_count

MAX_HEADER = 100_000_000  # bytes; the reference's limit
MAX_RANK = 8
MAX_UNCOVERED = (
    1 << 16
)  # bytes of the header beside its tensors that nobody is told of: a model may be in `__metadata__`
_PER_TENSOR = 1 << 9  # bytes of the header that a tensor may take besides its name
_MAX_ELEMENTS = 1 << 60  # a product of dimensions above this is no tensor of this world


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its bytes are [start, stop) counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """entries: in the order of their bytes. metadata: the free `__metadata__` strings. size, length: of the file and of
    the header's text, in bytes.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    length: int = 0


def read(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The tensors of one safetensors file. See `reader.Reader`."""
    file = files[0]
    header = read_header(file.extent, file.label)
    tensors = tuple(ByteTensor(e.name, e.dtype, e.shape, file.extent.part(e.start, e.stop)) for e in header.entries)
    unseen = header.length - sum(_PER_TENSOR + len(e.name) for e in header.entries)
    return Contents(
        tensors, warnings=(Reason.of(Code.BYTES_NOT_READ, bytes=unseen),) if unseen >= MAX_UNCOVERED else ()
    )


def read_header(file: Extent, label: str) -> Header:
    """Read and check the header of a file, which errors call `label`.

    ModelError says in one sentence what is wrong, and with which tensor.
    """
    size = file.size
    prefix = file.now(0, 8)
    if len(prefix) < 8:
        raise _broken(label, f"is {size} bytes long, too short for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if not length:
        raise _broken(label, "begins with zeros where its header should be: an upload or a download ended early")
    if length > MAX_HEADER:
        raise _broken(label, f"announces a header of {length} bytes, which no safetensors file has")
    if length > size - 8:
        raise _broken(label, f"announces a header of {length} bytes but has only {size - 8} after its length")
    return parse_header(file.now(8, 8 + length), size, label)


def parse_header(raw: bytes, size: int, label: str) -> Header:
    """Check header text against the size of its file. See `read_header`."""
    if not raw.startswith(b"{"):
        raise _broken(label, "has a header that does not start with '{'")
    count = itertools.count(1)

    def member(name: str, text: str, position: int) -> tuple[Any, int]:
        check_count(next(count), size, label)
        return _read_member(name, text, position)

    try:
        text = raw.decode("utf-8")
        members, end = read_object(text, 0, member)
        if skip_space(text, end) != len(text):
            raise JsonError(f"it goes on after its end at character {end}")
    except UnicodeDecodeError:
        raise _broken(label, "has a header that is not UTF-8 text") from None
    except JsonError as fault:
        raise _broken(label, f"has a bad header: {fault}") from None
    metadata = members.pop("__metadata__", {})
    data = 8 + len(raw)
    entries = [_entry(name, facts, data, size, label) for name, facts in members.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_cover(entries, data, size, label)
    return Header(tuple(entries), metadata, size, len(raw))


def _read_member(name: str, text: str, position: int) -> tuple[Any, int]:
    if name != "__metadata__" or text.startswith("null", position):
        value, end = read_small(text, position)
        return (value if name != "__metadata__" else {}), end
    return read_object(text, position, lambda _, inner, start: read_string(inner, start))


def _entry(name: str, facts: Any, data: int, size: int, label: str) -> Entry:
    """One member of the header, checked by itself."""
    if not isinstance(facts, dict) or not {"dtype", "shape", "data_offsets"} <= facts.keys():
        raise _broken(label, f"describes {shown(name)} without dtype, shape and data_offsets")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if dtype == "" and offsets == [0, 0]:
        raise ModelError(
            f"{label} lists {shown(name)} without type and numbers: torch.distributed was told of it and never got it.",
            "Save the model anew with save_pretrained, or remove this tensor from the file and from its index.",
        )
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(label, f"gives {shown(name)} an unknown dtype ({shown(str(dtype))})")
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise _broken(label, f"gives {shown(name)} a shape that is no list of at most {MAX_RANK} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(label, f"gives {shown(name)} data_offsets that are no [start, end] pair")
    if offsets[1] > size - data:
        place = f"bytes {offsets[0]} to {offsets[1]} of {size - data}"
        raise _broken(label, f"puts {shown(name)} at {place}: it is truncated or corrupt")
    elements = math.prod(shape)
    absurd = math.prod(max(1, extent) for extent in shape) > _MAX_ELEMENTS  # also where a zero hides it
    if absurd or element_bytes(dtype, elements) != offsets[1] - offsets[0]:
        length = offsets[1] - offsets[0]
        raise _broken(label, f"gives {shown(name)} {length} bytes, which do not fit {dtype} of shape {shape}")
    return Entry(name, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _is_sizes(value: Any) -> bool:
    """A list of non-negative integers (True is an int to Python, not to us)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(entries: list[Entry], data: int, size: int, label: str) -> None:
    """The tensors lie back to back from the end of the header to the end of the file."""
    end = data
    for entry in entries:
        if entry.start < end:
            raise _broken(label, f"has {shown(entry.name)} overlapping the tensor before it")
        if entry.start > end:
            raise _broken(label, f"has {entry.start - end} bytes that belong to no tensor before {shown(entry.name)}")
        end = entry.stop
    if end != size:
        raise _broken(label, f"has {size - end} bytes after its last tensor")


def _broken(label: str, what: str) -> ModelError:
    return ModelError(f"{label} {what}.", "Download it again, or write it anew with the safetensors package.")
