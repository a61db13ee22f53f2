"""torch checkpoints (.bin, .pt, .pth) without torch, and without running what is in them.

A checkpoint is a pickle, and a pickle is a program: it names callables and calls them. The reader here resolves a few
names to its own harmless code (below, `ALLOWED`) and every other name to `Inert`, a class whose instances accept any
arguments and do nothing. Nothing is imported on behalf of the file, so a hostile pickle yields inert objects.
This is used to build the seed index from known packages; provindex itself reads checkpoints without the pickle module.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError

from . import Arrays
from .cursor import Cursor

STORAGE_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


class Inert:
    """What every name outside `ALLOWED` becomes: it takes anything and does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


@dataclass(frozen=True)
class StorageType:
    """Stands for torch.FloatStorage and its kin: only the dtype matters."""

    dtype: np.dtype[Any]


@dataclass
class Storage:
    """One flat buffer that tensors are views of; `array` is filled when its bytes are read."""

    dtype: np.dtype[Any]
    array: NDArray[Any] | None = None


class StoredTensor:
    """A strided view of a storage, as torch._utils._rebuild_tensor_v2 is asked for it."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any):
        self.storage = storage
        self.offset = offset
        self.size = tuple(size)
        self.stride = tuple(stride)

    def array(self) -> NDArray[Any]:
        """The values, copied; refused when the view would leave its storage."""
        flat = self.storage.array
        if flat is None:
            raise ModelError("The checkpoint has a tensor whose storage is not in the file.")
        reach = sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True)) if 0 not in self.size else -1
        if min((self.offset, *self.size, *self.stride)) < 0 or self.offset + reach >= len(flat):
            raise ModelError("The checkpoint has a tensor that reaches outside its storage.")
        steps = [s * flat.itemsize for s in self.stride]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, steps).copy()


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): StoredTensor,
    **{("torch", name): StorageType(np.dtype(dtype)) for name, dtype in STORAGE_DTYPES.items()},
}

Lookup = Callable[[Any], Any]


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves names in `ALLOWED` only; storages are found by `lookup`, given torch's persistent id."""

    def __init__(self, file: io.BytesIO, lookup: Lookup | None = None) -> None:
        super().__init__(file)
        self.lookup = lookup

    def find_class(self, module: str, name: str) -> Any:
        return ALLOWED.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> Any:
        if self.lookup is None or not isinstance(pid, tuple) or len(pid) < 3 or not isinstance(pid[1], StorageType):
            raise ModelError("The checkpoint refers to something other than a tensor storage.")
        return self.lookup(pid)


def read_checkpoint(blob: bytes) -> Arrays:
    """The tensors of a state dictionary, by name, in the file's order. Raises ModelError for anything else."""
    try:
        state = _read_zip(blob) if blob[:2] == b"PK" else _read_legacy(blob)
    except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"The checkpoint is damaged or is not a plain state dictionary ({error}).") from error
    if not isinstance(state, dict):
        raise ModelError("The checkpoint is not a state dictionary of named tensors.")
    return {name: value.array() for name, value in state.items() if isinstance(value, StoredTensor)}


def _read_zip(blob: bytes) -> Any:
    """torch >= 1.6: a zip of one pickle and one member per storage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(blob))
    except zipfile.BadZipFile as error:
        raise ModelError(f"The checkpoint is damaged ({error}).") from error
    program = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = program.removesuffix("data.pkl") + "data/"
    storages: dict[str, Storage] = {}

    def lookup(pid: Any) -> Storage:
        key, dtype = pid[2], pid[1].dtype
        if key not in storages:
            storages[key] = Storage(dtype, np.frombuffer(archive.read(folder + key), dtype))
        return storages[key]

    return RestrictedUnpickler(io.BytesIO(archive.read(program)), lookup).load()


def _read_legacy(blob: bytes) -> Any:
    """Before torch 1.6: three header pickles, the object, the storage keys, then each storage with its length."""
    file = io.BytesIO(blob)
    storages: dict[str, Storage] = {}
    for _ in range(3):
        RestrictedUnpickler(file).load()
    state = RestrictedUnpickler(file, lambda pid: storages.setdefault(pid[2], Storage(pid[1].dtype))).load()
    keys = RestrictedUnpickler(file).load()
    cursor = Cursor(blob, "checkpoint", file.tell())
    for key in keys:
        storage = storages[key]
        storage.array = cursor.array(storage.dtype, cursor.number("q"))
    return state
