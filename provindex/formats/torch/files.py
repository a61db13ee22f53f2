"""torch checkpoints (.bin, .pt, .pth, .ckpt) without torch, and without running what is in them.

Nothing can run: the pickle inside is read by `pickle_machine`, which imports nothing and calls nothing. Names that no
tensor needs (an optimizer's, a config object's, an attacker's) stay inert records, so they do no harm and stop nothing;
they are told in the warnings, because who receives such a file may want to know.

Two layouts exist. Since torch 1.6: a zip of `<root>/data.pkl` and one stored entry a storage, `<root>/data/<key>`.
Before: five pickles (a magic number, a protocol, facts of the writer, the object, the keys of its storages), then for
each key the number of elements and the elements.
https://docs.pytorch.org/docs/stable/notes/serialization.html, torch/serialization.py, torch/_utils.py
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import F32, Tensor
from provindex.formats import consolidated
from provindex.formats.dtypes import BITS, STORED, decode
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.tensors import PIECE, ByteTensor, ComputedTensor, Contents, Extent
from provindex.formats.torch.pickle_machine import MAX_PROGRAM, Made, Name, Persistent, PickleError, Value, run
from provindex.formats.torch.settings import whisper_config
from provindex.formats.torch.stored_zip import ZipError, locate, make_ready, read_directory

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older layout
MAX_RANK = 8
MAX_NAME = 1024
MAX_BESIDE = 32  # entries that are named as not read
MAX_ENTRIES = 200_000  # of a dictionary that may be the one of the tensors
_MAX_ELEMENTS = 1 << 60
_MAX_REPEATED = 1 << 24  # elements of a view that shows the same bytes several times
MAX_UNCOVERED = 1 << 16  # bytes beside the tensors that nobody is told of
_PER_TENSOR = 1 << 10  # bytes that the pickle and the zip have for each of them
_CONVERT = "With torch: save model.state_dict(), or a safetensors file of it."
_AGAIN = "Download it again, or save it anew with torch."

_STORAGES: Mapping[str, str | None] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": None,
}  # fmt: skip
_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_DENSE = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
_PLAIN = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")  # subclasses that add nothing
_STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")

# What checkpoints of plain tensors name: not worth a warning.
_EXPECTED = frozenset(
    [*_PARAMETER, *_DENSE, _SUBCLASS, *_PLAIN, "collections.OrderedDict", "torch.Size", "torch.device"]
    + ["torch.serialization._get_layout", "_codecs.encode", "builtins.set", "__builtin__.set"]
    + [f"{module}.{name}" for module in _STORAGE_MODULES for name in (*_STORAGES, "TypedStorage")]
    + [f"torch.{name}" for name in _DTYPES]
)
# Modules by which a pickle takes over a machine: named first in the warning.
_POWERFUL = frozenset(
    "os posix nt ntpath posixpath subprocess sys builtins __builtin__ importlib runpy shutil socket pty ctypes code "
    "webbrowser pickle marshal types operator functools asyncio multiprocessing threading pip requests urllib".split()
)
# Under which names trainers keep the weights in a checkpoint of more than weights.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")


class _Storage(NamedTuple):
    """Elements that tensors are views of. dtype: None where each view has its own."""

    data: Extent
    dtype: str | None


@dataclass(frozen=True, slots=True)
class _File:
    """What a file unpickles to. storage: the bytes of a storage by key, given what the pickle says of it."""

    value: Value
    names: tuple[Name, ...]
    storage: Callable[[Persistent], _Storage]
    label: str

    def broken(self, what: str) -> ModelError:
        return _broken(self.label, what)


def read(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The tensors of one checkpoint, or of all parts of one of Meta's. See `reader.Reader`."""
    found = [read_torch(file.extent, file.label) for file in files]
    return found[0] if len(found) == 1 else consolidated.joined(found, files, beside)


def read_torch(file: Extent, label: str) -> Contents:
    """The tensors of a checkpoint's state dictionary, which errors call `label`; of a remote file, its directory and
    its pickle are fetched, and of each storage the few bytes before it.

    ModelError for TorchScript, quantized and sparse tensors, whole pickled models, and anything damaged or hostile.
    """
    try:
        opened = _read_zip(file, label) if file.now(0, 4) == b"PK\3\4" else _read_legacy(file, label)
        state, notes = _state_dict(opened)
        tensors = [_tensor(name, value, opened) for name, value in state.items() if _is_tensor(value)]
    except (PickleError, ZipError) as fault:
        raise _broken(label, f"cannot be read: {fault}") from None
    left = len(state) - len(tensors)
    notes += (Reason.of(Code.ENTRIES_NOT_READ, n=left, total=len(state)),) if left else ()
    tensors.sort(key=lambda found: (found[0], found[1].name))
    found = tuple(tensor for _, tensor in tensors)
    if not any(note.code is Code.ENTRY_NOT_READ for note in notes):
        notes += _uncovered(file, found)
    return Contents(found, _config(opened.value), warnings=_references(opened) + notes)


def _uncovered(file: Extent, tensors: Sequence[Tensor]) -> tuple[Reason, ...]:
    """What to say of bytes that no tensor shows: storages and members that nothing refers to, and values that are no
    tensors. A view that skips elements covers as many bytes as it has, not all that it reaches over.
    """
    leaves = [(t, t.sources[0] if isinstance(t, ComputedTensor) else t) for t in tensors]
    views = {(leaf.extent.offset, leaf.extent.size, t.shape): _bytes_of(t) for t, leaf in leaves if _has_bytes(leaf)}
    covered = reach = shown_here = end = 0
    for (start, size, _), own in sorted(views.items()):
        if start >= end:
            covered, reach, shown_here, end = covered + min(reach, shown_here), 0, 0, start
        reach += max(0, start + size - end)
        shown_here, end = shown_here + own, max(end, start + size)
    covered += min(reach, shown_here)
    left = file.size - covered - _PER_TENSOR * (len(tensors) + 16)
    return (Reason.of(Code.BYTES_NOT_READ, bytes=left),) if left >= MAX_UNCOVERED else ()


def _bytes_of(tensor: Tensor) -> int:
    return tensor.size * BITS[tensor.dtype] // 8


def _has_bytes(tensor: Tensor) -> TypeGuard[ByteTensor]:
    return isinstance(tensor, ByteTensor) and tensor.nbytes > 0


def _config(value: Value) -> dict[str, Any] | None:
    """What a library says of the model's sizes beside its weights."""
    inside = dict(_named(value)) if isinstance(value, Made) else {}
    dims = inside.get("dims")
    return whisper_config(dict(_named(dims))) if isinstance(dims, Made) and "model_state_dict" in inside else None


def _read_zip(file: Extent, label: str) -> _File:
    entries = read_directory(file)
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if any("/code/" in name or name.endswith("/constants.pkl") for name in entries):
        raise ModelError(f"{label} is a TorchScript archive, a program with its weights, which is not read.", _CONVERT)
    if len(programs) > 1:
        raise ModelError(f"{label} is a zip archive of {len(programs)} checkpoints, it has several data.pkl.", _CONVERT)
    if not programs:
        raise ModelError(
            f"{label} is a zip archive, but not one of torch: it has no data.pkl.",
            "If a model is in it, unpack it, and name the folder; else save model.state_dict() with torch again.",
        )
    root = programs[0].removesuffix("data.pkl")
    if root + "byteorder" in entries and locate(file, entries[root + "byteorder"]).now(0, 8) != b"little":
        raise ModelError(f"{label} was written on a big-endian machine, which is not read.", _CONVERT)
    program = locate(file, entries[programs[0]])
    if program.size > MAX_PROGRAM:
        raise ModelError(f"{label} has {program.size:,} bytes beside its tensors, which is too much.", _CONVERT)
    ran = run(program.file(), program.size)
    make_ready(file, entries.values())
    located: dict[str, Extent] = {}

    def storage(reference: Persistent) -> _Storage:
        dtype, key, count = _storage_facts(reference, label)
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise _broken(label, f"lacks the storage {shown(key)}")
        data = located.get(key) or located.setdefault(key, locate(file, entry))
        if data.size != count * _width(dtype):
            raise _broken(label, f"has a storage {shown(key)} of {data.size} bytes, which is not what its pickle says")
        return _Storage(data, dtype)

    return _File(ran.value, ran.names, storage, label)


def _read_legacy(file: Extent, label: str) -> _File:
    if file.now(257, 262) == b"ustar":
        raise ModelError(f"{label} is a tar archive of a torch before 0.1.10, which is not read.", _CONVERT)
    stream = file.file()
    if not file.now(0, 2).startswith(b"\x80") or run(stream, 64).value != MAGIC:
        raise ModelError(f"{label} is no torch checkpoint.", "Name a weight file, or the model's folder.")
    if run(stream, 64).value != PROTOCOL:
        raise _broken(label, "is of an unknown protocol")
    facts = run(stream, 4096).value
    if not isinstance(facts, Made) or dict(_named(facts)).get("little_endian") is not True:
        raise ModelError(f"{label} was written on a big-endian machine, which is not read.", _CONVERT)
    ran = run(stream, file.size - stream.tell())
    keys = run(stream, file.size - stream.tell()).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _broken(label, "has a list of storages that is none")
    at, starts, told = stream.tell(), dict.fromkeys(keys, -1), _facts_by_key(ran.value, label)
    for key in keys:
        count = _count(file.now(at, at + 8), label)
        if key not in told:
            raise _broken(label, f"has a storage {shown(key)} that no tensor uses, and whose size is not told")
        starts[key], at = at + 8, at + 8 + count * _width(told[key][0])
        if count != told[key][1] or at > file.size:
            raise _broken(label, f"has a storage {shown(key)} of {count} elements, which is not what its pickle says")

    def storage(reference: Persistent) -> _Storage:
        dtype, key, count = _storage_facts(reference, label)
        start, width = starts.get(key, -1), _width(dtype)
        if start < 0:
            raise _broken(label, f"lacks the storage {shown(key)}")
        first, elements = _view(reference, count, label)
        return _Storage(file.part(start + first * width, start + (first + elements) * width), dtype)

    return _File(ran.value, ran.names, storage, label)


def _facts_by_key(value: Value, label: str) -> Mapping[str, tuple[str | None, int]]:
    """Type and number of elements of every storage that a value refers to, wherever it is in it."""
    found: dict[str, tuple[str | None, int]] = {}
    for item in _everything(value):
        if isinstance(item, Persistent):
            if isinstance(item.reference, tuple) and item.reference[:1] == ("module",):
                raise ModelError(f"{label} holds a whole pickled model, not its state dictionary.", _CONVERT)
            dtype, key, count = _storage_facts(item, label)
            if found.setdefault(key, (dtype, count)) != (dtype, count):
                raise _broken(label, f"says two things of its storage {shown(key)}")
    return found


def _everything(value: Value) -> list[Value]:
    """Every container, record and reference in a value once, without recursion; it may contain itself."""
    seen: set[int] = set()
    found, ahead = [], [value]
    while ahead:
        item = ahead.pop()
        if not isinstance(item, (tuple, list, Made)) or id(item) in seen:
            continue
        seen.add(id(item))
        found.append(item)
        if isinstance(item, Made):
            ahead += [item.what, item.args, item.state, *item.items]
            for pair in item.pairs:
                ahead += pair
        elif not isinstance(item, Name):
            ahead += item
    return found


def _storage_facts(persistent: Persistent, label: str) -> tuple[str | None, str, int]:
    """Type, key and number of elements that a pickle says of a storage: ("storage", type, key, device, count)."""
    reference = persistent.reference
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise _broken(label, "refers to something that is no storage")
    _, kind, key, _, count = reference[:5]
    if not isinstance(kind, Name) or kind.module not in _STORAGE_MODULES or kind.name not in _STORAGES:
        said = f" ({shown(kind.name)})" if isinstance(kind, Name) else ""
        raise ModelError(f"{label} has a storage of a kind that is not read{said}.", _CONVERT)
    if not isinstance(key, str) or len(key) > MAX_NAME or not _is_size(count):
        raise _broken(label, "describes a storage without a key and a size")
    return _STORAGES[kind.name], key, count


def _view(persistent: Persistent, count: int, label: str) -> tuple[int, int]:
    """Which elements of a storage are meant: torch before 0.4 wrote (key, offset, size) where not all are."""
    view = persistent.reference[5] if len(persistent.reference) > 5 else None
    if view is None:
        return 0, count
    if not isinstance(view, tuple) or len(view) != 3 or not _is_size(view[1]) or not _is_size(view[2]):
        raise _broken(label, "describes a part of a storage without an offset and a size")
    if view[1] + view[2] > count:
        raise _broken(label, "uses more of a storage than there is")
    return view[1], view[2]


def _state_dict(file: _File) -> tuple[Mapping[str, Value], tuple[Reason, ...]]:
    """The dictionary of tensors in a checkpoint, at its top or under one of the usual names, and what to say of it:
    every other entry that has tensors is named.
    """
    path: list[str] = []
    notes: list[Reason] = []
    at = file.value
    for _ in range(2):
        inside = dict(_named(at)) if isinstance(at, Made) else {}
        below = [name for name in _WRAPPERS if _has_tensors(inside.get(name))]
        if not below:
            break
        notes += _beside(path, {name: item for name, item in inside.items() if name != below[0]})
        path.append(below[0])
        at = inside[below[0]]
    inside = dict(_named(at)) if isinstance(at, Made) else {}
    if not any(map(_is_tensor, inside.values())):
        raise ModelError(f"{file.label} holds no dictionary of named tensors{_holds(file.value)}.", _CONVERT)
    notes += _beside(path, {name: item for name, item in inside.items() if not _is_tensor(item)})
    chosen = (Reason.of(Code.STATE_CHOSEN, entry=".".join(path)),) if path else ()
    return inside, (*chosen, *notes[:MAX_BESIDE])


def _beside(path: Sequence[str], entries: Mapping[str, Value]) -> list[Reason]:
    """Entries that are not read and have tensors in them, at any depth."""
    counts = {name: sum(map(_is_tensor, _everything([item]))) for name, item in entries.items()}
    return [Reason.of(Code.ENTRY_NOT_READ, entry=".".join((*path, name)), n=n) for name, n in counts.items() if n]


def _has_tensors(value: Value, levels: int = 2) -> bool:
    """Whether a dict has tensors in it, or in a dict that it has under one of the usual names."""
    if not levels or not isinstance(value, Made) or _is_tensor(value):
        return False
    inside = dict(_named(value))
    below = (inside.get(name) for name in _WRAPPERS)
    return any(map(_is_tensor, inside.values())) or any(_has_tensors(item, levels - 1) for item in below)


def _named(value: Made) -> list[tuple[str, Value]]:
    """Items of a dict whose key is a name. An OrderedDict may have been given them as pairs."""
    args = value.args if isinstance(value.args, tuple) else ()
    given = args[0] if len(args) == 1 and isinstance(args[0], list) and value.what is not None else []
    if len(given) + len(value.pairs) > MAX_ENTRIES:
        raise PickleError(f"it has a dictionary of more than {MAX_ENTRIES:,} entries")
    pairs = [pair for pair in given if isinstance(pair, (tuple, list)) and len(pair) == 2]
    return [(key, item) for key, item in (*pairs, *value.pairs) if isinstance(key, str) and len(key) <= MAX_NAME]


def _holds(value: Value) -> str:
    if isinstance(value, Made) and isinstance(value.what, Name) and not value.pairs:
        return f", but a pickled object ({shown(_full(value.what))})"
    names = [shown(name) for name, _ in _named(value)][:4] if isinstance(value, Made) else []
    return f"; its entries are {', '.join(names)}" if names else ""


def _is_tensor(value: Value) -> bool:
    """Whether a value would be rebuilt by one of torch's functions for tensors, those that are refused included."""
    if not isinstance(value, Made) or not isinstance(value.what, Name):
        return False
    return value.what.module in ("torch._utils", "torch._tensor") and value.what.name.startswith("_rebuild_")


def _tensor(name: str, value: Value, file: _File) -> tuple[int, Tensor]:
    """A tensor and where it begins in the file."""
    for _ in range(4):  # a parameter of a tensor with attributes
        what, args = _full(value.what), value.args if isinstance(value.args, tuple) else ()
        if what in _PARAMETER and args and _is_tensor(args[0]):
            value = args[0]
        elif what == _SUBCLASS and len(args) >= 3 and isinstance(args[1], Name) and _full(args[1]) in _PLAIN:
            value = Made(args[0], args[2])
        else:
            break
        if not _is_tensor(value):
            raise file.broken(f"makes {shown(name)} of something that is no tensor")
    if what not in _DENSE or len(args) < 4:
        kind = args[1].name if what == _SUBCLASS and len(args) > 1 and isinstance(args[1], Name) else value.what.name
        raise ModelError(f"{file.label} stores {shown(name)} in a way that is not read ({shown(kind)}).", _CONVERT)
    if not isinstance(args[0], Persistent):
        raise file.broken(f"has a tensor {shown(name)} without a storage")
    storage = file.storage(args[0])
    dtype = storage.dtype or _DTYPES.get(args[6].name if len(args) > 6 and isinstance(args[6], Name) else "")
    if dtype is None:
        raise ModelError(f"{file.label} has {shown(name)} in a dtype that is not read.", _CONVERT)
    return _strided(name, dtype, storage.data, args[1:4], file)


def _strided(name: str, dtype: str, data: Extent, view: Sequence[Value], file: _File) -> tuple[int, Tensor]:
    """The tensor that begins at an element of a storage, of a shape, with a stride for each of its dimensions."""
    offset, shape, stride = view
    if not _is_size(offset) or not _are_sizes(shape) or not _are_sizes(stride) or len(shape) != len(stride):
        raise file.broken(f"gives {shown(name)} an offset, a shape and strides that are none")
    width = BITS[dtype] // 8
    elements = math.prod(shape)
    reach = sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if elements else 0
    absurd = math.prod(max(1, extent) for extent in shape) > _MAX_ELEMENTS
    if absurd or (offset + reach) * width > data.size:
        raise file.broken(f"has a tensor {shown(name)} that reaches outside of its storage")
    seen = data.part(offset * width, (offset + reach) * width) if elements else data.part(0, 0)
    if not elements or _is_contiguous(shape, stride):
        return seen.offset, ByteTensor(name, dtype, shape, seen)
    if elements > max(data.size // width, _MAX_REPEATED) or dtype not in STORED:
        raise ModelError(f"{file.label} has {shown(name)} as a view that is not read.", _CONVERT)
    source = ByteTensor(name, dtype, (reach,), seen)
    rows_apart = max(1, PIECE // shape[-1]) if stride[-1] != 1 else 1
    return seen.offset, ComputedTensor(name, dtype, shape, _row_maker(source, shape, stride), (source,), rows_apart)


def _row_maker(source: ByteTensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Callable[[int, int], F32]:
    """Rows of a strided view. Each call looks at all bytes between its first and its last element: of a transposed
    matrix these are nearly all of it, for one row as for many."""
    stored = STORED[source.dtype]

    def make(start: int, stop: int) -> F32:
        rows = np.arange(start, stop)
        lead = np.unravel_index(rows, shape[:-1]) if len(shape) > 1 else (np.zeros_like(rows),)
        steps = stride[:-1] if len(shape) > 1 else (0,)
        begins = np.zeros_like(rows)
        for at, step in zip(lead, steps, strict=True):
            begins += at * step
        low, high = int(begins.min()), int(begins.max()) + (shape[-1] - 1) * stride[-1] + 1
        seen = source.extent.read(low * stored.itemsize, high * stored.itemsize).view(stored)
        if len(shape) == 2:
            apart = (stride[0] * stored.itemsize, stride[1] * stored.itemsize)
            found = np.lib.stride_tricks.as_strided(seen, (len(rows), shape[1]), apart, writeable=False)
        else:
            found = seen[(begins - low)[:, None] + np.arange(shape[-1]) * stride[-1]]
        return decode(np.ascontiguousarray(found), source.dtype)

    return make


def _is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for extent, step in zip(reversed(shape), reversed(stride), strict=True):
        if extent != 1 and step != expected:
            return False
        expected *= extent
    return True


def _references(file: _File) -> tuple[Reason, ...]:
    """What the file names beyond tensors, the most powerful first: nothing of it was run."""
    odd = [name for name in file.names if _full(name) not in _EXPECTED]
    odd.sort(key=lambda name: name.module.partition(".")[0] not in _POWERFUL)
    if not odd:
        return ()
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    named = ", ".join(shown(_full(name))[1:-1] for name in odd[:3])
    return (Reason.of(Code.CODE_NOT_RUN, names=f"{named}{more}"),)


def _full(name: Value) -> str:
    return f"{name.module}.{name.name}" if isinstance(name, Name) else ""


def _is_size(value: Value) -> bool:
    return type(value) is int and 0 <= value < _MAX_ELEMENTS


def _are_sizes(value: Value) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_RANK and all(map(_is_size, value))


def _width(dtype: str | None) -> int:
    return BITS[dtype] // 8 if dtype else 1


def _count(raw: bytes, label: str) -> int:
    if len(raw) < 8 or not 0 <= (count := struct.unpack("<q", raw)[0]) < _MAX_ELEMENTS:
        raise _broken(label, "is truncated or corrupt: it ends before its last storage")
    return int(count)


def _broken(label: str, what: str) -> ModelError:
    return ModelError(f"{label} {what}.", _AGAIN)
