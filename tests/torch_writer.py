"""torch checkpoints for tests, written by hand: opcodes, zips and the older layout; torch is not needed."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Any
    args: Any


class Outside(NamedTuple):
    reference: Any


def op(value: Any) -> bytes:
    """Opcodes that make a value, without the STOP."""
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return op(value.function) + op(value.args) + b"R"
        case Outside():
            return op(value.reference) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(op, value)) + b"t"
        case dict():
            return b"}(" + b"".join(op(key) + op(item) for key, item in value.items()) + b"u"
    return bytes(value)


def storage(key: str, count: Any, kind: str = "FloatStorage") -> Outside:
    return Outside(("storage", Global("torch", kind), key, "cpu", count))


def tensor(key: str, shape: Any, stride: Any, offset: Any = 0, count: Any = None, kind: str = "FloatStorage") -> Call:
    elements = int(np.prod(shape)) if count is None else count
    args = (storage(key, elements, kind), offset, shape, stride, False, Call(Global("collections", "OrderedDict"), ()))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def archive(program: bytes, storages: dict[str, bytes], **changes: Any) -> bytes:
    """A zip as torch writes it. changes: other entries by name."""
    file = io.BytesIO()
    entries = {"data.pkl": b"\x80\x02" + program + b".", "byteorder": b"little", **changes}
    with zipfile.ZipFile(file, "w") as made:
        for name, content in {**entries, **{f"data/{key}": data for key, data in storages.items()}}.items():
            made.writestr(f"root/{name}", content)
    return file.getvalue()


def legacy(program: bytes, storages: dict[str, np.ndarray] | None = None) -> bytes:
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in (storages or {}).values())
    return head + b"\x80\x02" + program + b"." + pickle.dumps([*(storages or {})], 2) + data


def checkpoint(entries: Mapping[Any, Any]) -> bytes:
    """A checkpoint of a dictionary, whose arrays (float32) become tensors, at any depth."""
    storages: dict[str, bytes] = {}

    def made(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: made(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        key = str(len(storages))
        storages[key] = value.astype("<f4").tobytes()
        strides = tuple(int(np.prod(value.shape[i + 1 :])) for i in range(value.ndim))
        return tensor(key, value.shape, strides)

    return archive(op(made(entries)), storages)
