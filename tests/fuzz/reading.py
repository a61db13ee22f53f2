"""What targets share: inputs as files, and the reading of whatever tensors a file was said to hold."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.mutate import PART
from provindex.common.errors import ModelError
from provindex.common.tensor import Tensor
from provindex.formats.safetensors import read_header
from provindex.formats.tensors import ByteTensor, Extent
from provindex.report.words import text

MOST = 4096  # elements that are read at a time
TENSORS = 64  # that are looked at of a file


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="provindex-fuzz-")  # goes when the process does


def scratch() -> Path:
    """An empty folder."""
    folder = Path(_kept().name)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return folder


def parts(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """The files that an input consists of; those that it has not are empty."""
    pieces = PART.split(data)
    found = {name.decode(): body for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {name: found.get(name, b"") for name in names}


def given(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Those of the named files that an input has."""
    return {name: body for name, body in parts(data, names).items() if b"\n@@%b@@\n" % name.encode() in data}


def extent(data: bytes) -> Extent:
    return Extent(np.frombuffer(data, np.uint8))


def safetensors_tensors(data: bytes) -> list[Tensor]:
    """The tensors of a safetensors file, as `source` makes them."""
    file = extent(data)
    header = read_header(file, "model.safetensors")
    return [ByteTensor(e.name, e.dtype, e.shape, file.part(e.start, e.stop)) for e in header.entries]


def look(contents: Any) -> None:
    """Read a `Contents`: tensors, and that the rest is of the kind it says."""
    look_at_tensors(contents.tensors)
    assert all(len(text(warning)) < 4096 for warning in contents.warnings)
    assert len({tensor.name for tensor in contents.tensors}) == len(contents.tensors), "a name twice"


def look_at_tensors(tensors: Iterable[Tensor]) -> None:
    """Read the ends, some rows and some steps of tensors; the three ways must agree."""
    for number, tensor in enumerate(tensors):
        if number < TENSORS:
            _look_at(tensor)


def _look_at(tensor: Tensor) -> None:
    assert all(type(size) is int and size >= 0 for size in tensor.shape), tensor.shape
    assert len(tensor.raw(0, 64)) == min(64, tensor.nbytes)
    tensor.raw(max(0, tensor.nbytes - 64))
    try:
        head = tensor.flat(0, MOST)
    except ModelError:  # a dtype that is stored and cannot be decoded
        return
    assert head.dtype == np.float32 and head.size == min(MOST, tensor.size), (head.dtype, head.size, tensor.size)
    tail = tensor.flat(max(0, tensor.size - 100), tensor.size)
    count = min(50, tensor.size)
    step = max(1, (tensor.size - 1) // max(1, count - 1)) if count > 1 else 1
    steps = tensor.strided(step, count)
    _same(steps[:1], head[:1])
    _same(steps[1:2], tensor.flat(step, step + 1))
    if tensor.shape and tensor.size and tensor.size // tensor.shape[0] <= MOST:
        rows = tensor.rows([0, tensor.shape[0] - 1])
        width = tensor.size // tensor.shape[0]
        _same(rows[0], head[:width])
        _same(rows[1][-100:], tail[-min(100, width) :])
    first = next(iter(tensor.chunks(MOST)), head[:0])
    _same(first[:MOST], head[: first.size])


def _same(a: Any, b: Any) -> None:
    assert np.array_equal(a, b[: a.size] if b.size > a.size else b, equal_nan=True), "two ways to read differ"
