"""What an ONNX file says: its initializers, wherever their bytes are, and its nodes. Nothing is inferred here.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Of an If the larger branch is read as a part of the graph
(optimum merges two decoders that share their weights into one). Tensors in other subgraphs, in functions and in sparse
initializers are counted, not read, and so is what is large where no weight belongs: attributes, notes, training.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.formats.dtypes import BITS, STORED
from provindex.formats.protobuf import BYTES, FIXED32, VARINT, Field, ProtobufError, Reader, signed, varints
from provindex.formats.tensors import ByteTensor, Extent

MAX_NODES = 1 << 17
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 20  # of all nodes together
MAX_RANK = 8
MAX_DEPTH = 8  # subgraphs in subgraphs
MAX_NOTE = 1 << 14  # bytes of a note on a node that are looked at
SCOPES = "pkg.torch.onnx.name_scopes"
_SCOPE = re.compile(r"'([^']*)'")
LEAST_BYTES = 256  # of a tensor in a subgraph that counts as a weight
LEAST_OTHER = 1 << 12  # bytes of an attribute, a text or an unknown field that count as one
MAX_BESIDE = 1 << 10  # bytes that a node or a tensor has in a graph, beside its data, notes and attributes
MAX_NUMBERS = 16 << 20  # bytes of one tensor's numbers that are not stored as raw data and have to be decoded at once
MAX_DECODED = 64 << 20  # bytes of all such tensors of a file, decoded: they are kept in memory
_MAX_ELEMENTS = 1 << 60
_MERGED = re.compile(r"(?P<name>.+)_merged_\d+(?P<end>_quantized|_scale|_zero_point)?")
_AGAIN = "Download it again, or export it anew."

# Field numbers of the messages in onnx.proto.
_MODEL_GRAPH, _TRAINING = 7, 20
_NODE, _INITIALIZER = 1, 5
_INPUT, _OUTPUT, _NAME, _OP, _ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS = 1, 2, 3, 5, 8
_ATTRIBUTE_TENSORS = (5, 10, 22, 23)  # one, several, sparse ones
_ATTRIBUTE_INNER = (5, 6, 10, 11, 22, 23)  # these and graphs
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS, _SPARSE, _FUNCTION, _FUNCTION_NODE, _METADATA = 6, 11, 15, 25, 7, 9
_DIMS, _TYPE, _FLOATS, _INT32S, _INT64S, _TENSOR_NAME, _RAW, _DOUBLES, _UINT64S = 1, 2, 4, 5, 7, 8, 9, 10, 11
_EXTERNAL, _LOCATION = 13, 14

DTYPES: Mapping[int, str] = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ", 24: "F8_E8M0",
}  # fmt: skip
_BITS_OF = {8: "<u1", 16: "<u2", 32: "<u4", 64: "<u8"}  # floats that are written as integers: their bits


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. numbers: its integer attributes by name, single ones as tuples of one. floats: likewise, raw.

    module: of the model that it was exported from, as torch's exporter notes it ("model.layers.0.mlp.up_proj"), or "".
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    floats: Mapping[str, bytes] = field(default_factory=dict)
    module: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """nodes: in order. stored: initializers, and values of Constant nodes, by name. skipped: initializers whose type
    is not read (4-bit numbers, strings). unread: how many tensors there are elsewhere: in subgraphs, sparse. stray:
    how many large values there are where no weight belongs. outside: the files of data."""

    nodes: tuple[Node, ...]
    stored: Mapping[str, ByteTensor]
    skipped: tuple[str, ...]
    unread: int = 0
    stray: int = 0
    outside: tuple[Extent, ...] = ()


def read_graph(file: Extent, label: str, beside: Callable[[str], Extent | None]) -> Graph:
    """Parse a model file. beside: another file of the model's folder, for tensors that are stored outside.

    ModelError if it is no ONNX file, is damaged, or lacks a file that it refers to.
    """
    try:
        return _Parser(file, label, beside).graph()
    except ProtobufError as fault:
        raise ModelError(f"{label} is no ONNX file, or damaged: {fault}.", _AGAIN) from None


def _own_names(names: Collection[str]) -> dict[str, str]:
    """Names without what optimum put behind them where it merged two decoders, unless two would have one name."""
    found = ((name, _MERGED.fullmatch(name)) for name in names)
    without = {name: match["name"] + (match["end"] or "") for name, match in found if match}
    often = Counter(without.values())
    return {name: own for name, own in without.items() if often[own] == 1 and own not in names}


class _Parser:
    def __init__(self, file: Extent, label: str, beside: Callable[[str], Extent | None]) -> None:
        self._file, self._label, self._beside = file, label, beside
        self._reader = Reader(file)
        self._outside: dict[PurePosixPath, Extent] = {}
        self._strings, self._decoded = MAX_STRINGS, MAX_DECODED
        self._stored: dict[str, ByteTensor] = {}
        self._skipped: list[str] = []
        self._branches: list[Field] = []  # of the node that was read last
        self._inner = False
        self._unread = 0  # tensors that are passed over
        self._stray = 0  # large values where no weight belongs

    def graph(self) -> Graph:
        whole = [f for f in self._reader.fields(0, self._file.size) if f.wire == BYTES]
        graphs = [f for f in whole if f.number == _MODEL_GRAPH]
        for function in whole:
            if function.number == _FUNCTION:
                self._count(function, _FUNCTION_NODE)
            elif function.number != _MODEL_GRAPH:
                self._stray += _size(function) >= (LEAST_BYTES if function.number == _TRAINING else MAX_NOTE)
        if len(graphs) != 1:
            raise ProtobufError("it has no graph, or several")
        nodes: list[Node] = []
        others = 0
        for part in self._parts(graphs[0]):
            if part.number == _NODE:
                nodes.append(self._node(part))
            elif part.number == _INITIALIZER:
                self._keep(*self._tensor(part))
            elif part.number == _SPARSE:
                self._unread += 1
            else:
                others += _size(part)
            if len(nodes) > MAX_NODES or len(self._stored) + len(self._skipped) > MAX_TENSORS:
                raise ProtobufError("it has more nodes or tensors than any we know")
        self._stray += others > LEAST_OTHER + MAX_BESIDE * (len(nodes) + len(self._stored))
        own = _own_names(self._stored)
        if own:
            nodes = [replace(node, inputs=tuple(own.get(name, name) for name in node.inputs)) for node in nodes]
            self._stored = {(to := own.get(n, n)): replace(tensor, name=to) for n, tensor in self._stored.items()}
        outside = tuple(self._outside.values())
        return Graph(tuple(nodes), self._stored, tuple(self._skipped), self._unread, self._stray, outside)

    def _parts(self, graph: Field) -> Iterator[Field]:
        """Nodes and initializers of a graph, and behind each node those of its larger branch."""
        for part in self._inside(graph):
            yield part
            if part.number == _NODE and self._branches:
                branch, *others = sorted(self._branches, key=lambda one: one.start - one.stop)
                self._branches.clear()
                for other in others:
                    self._count(other)
                self._inner = True  # what is inside of it is counted
                yield from self._inside(branch)
                self._inner = False

    def _count(self, graph: Field, node: int = _NODE, depth: int = 0) -> None:
        """Count the tensors of a subgraph that is not read, of its nodes and of the subgraphs of these."""
        if depth > MAX_DEPTH:
            raise ProtobufError(f"it has subgraphs in each other, more than {MAX_DEPTH} deep")
        for part in self._inside(graph):
            if part.wire != BYTES:
                continue
            self._unread += part.number in (_INITIALIZER, _SPARSE) and node == _NODE and _is_large(part)
            for attribute in self._inside(part) if part.number == node else ():
                if attribute.number == _ATTRIBUTE and attribute.wire == BYTES:
                    self._count_attribute(attribute, depth)

    def _count_attribute(self, attribute: Field, depth: int) -> None:
        others = 0
        for value in self._inside(attribute):
            self._unread += value.number in _ATTRIBUTE_TENSORS and _is_large(value)
            others += _size(value) if value.number not in _ATTRIBUTE_INNER else 0
            if value.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and value.wire == BYTES:
                self._count(value, depth=depth + 1)
        self._stray += others >= LEAST_OTHER

    def _keep(self, name: str, tensor: ByteTensor | None) -> None:
        if name in self._stored:
            raise ProtobufError(f"it has two tensors {shown(name)}")
        if tensor is None:
            self._skipped.append(name)
        else:
            self._stored[name] = tensor

    def _text(self, part: Field) -> str:
        self._strings -= 1
        if self._strings < 0:
            raise ProtobufError(f"it has more than {MAX_STRINGS:,} names")
        return self._reader.text(part)

    def _inside(self, part: Field) -> Iterator[Field]:
        if part.wire != BYTES:
            raise ProtobufError("it has a number where something larger belongs")
        return self._reader.fields(part.start, part.stop)

    def _node(self, message: Field) -> Node:
        texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _NAME: [], _OP: []}
        numbers: dict[str, tuple[int, ...]] = {}
        floats: dict[str, bytes] = {}
        values: list[Field] = []
        module, others = "", 0
        for part in self._inside(message):
            if part.number in texts:
                texts[part.number].append(self._text(part))
            elif part.number == _METADATA and part.wire == BYTES and part.stop - part.start <= MAX_NOTE:
                module = self._module(part) or module
            elif part.number == _ATTRIBUTE:
                values += self._attribute(part, numbers, floats)
            else:
                others += _size(part)
        self._stray += others > MAX_NOTE
        op, name = "".join(texts[_OP][-1:]), "".join(texts[_NAME][-1:])
        if op != "If" or self._inner:
            for branch in self._branches:
                self._count(branch)
            self._branches.clear()
        if op == "Constant" and texts[_OUTPUT] and values:
            made, tensor = texts[_OUTPUT][0], self._tensor(values[0])[1]
            self._keep(made, replace(tensor, name=made) if tensor else None)
            values = values[1:]
        self._stray += sum(map(_is_large, values))
        return Node(op, name, tuple(texts[_INPUT]), tuple(texts[_OUTPUT]), numbers, floats, module)

    def _module(self, note: Field) -> str:
        """The module that a node's note tells: the last but one of its scopes, the last is the node itself."""
        entry = self._entry(note)
        scopes = _SCOPE.findall(entry.get(SCOPES, ""))
        return scopes[-2] if len(scopes) > 1 else ""

    def _attribute(
        self, message: Field, numbers: dict[str, tuple[int, ...]], floats: dict[str, bytes]
    ) -> Iterator[Field]:
        """Note an attribute's integers or float; yield its tensor."""
        name, found, others = "", [], 0
        for part in self._inside(message):
            others += _size(part) if part.number not in _ATTRIBUTE_INNER else 0
            if part.number == _ATTRIBUTE_NAME:
                name = self._text(part)
            elif part.number == _ATTRIBUTE_INT and part.wire == VARINT:
                found.append(signed(part.value))
            elif part.number == _ATTRIBUTE_INTS and len(found) <= MAX_RANK:
                found += self._reader.integers(part, 1 << 16)[: MAX_RANK + 1]
            elif part.number == _ATTRIBUTE_FLOAT:
                if part.wire != FIXED32:
                    raise ProtobufError("it has an attribute that should be a float and is none")
                floats[name] = self._file.now(part.start, part.stop)
            elif part.number == _ATTRIBUTE_TENSOR:
                yield part
            elif part.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and part.wire == BYTES:
                self._branches.append(part)
            elif part.number in _ATTRIBUTE_TENSORS:
                self._stray += _is_large(part)
        self._stray += others >= LEAST_OTHER
        if found:
            numbers[name] = tuple(found)

    def _tensor(self, message: Field) -> tuple[str, ByteTensor | None]:
        """A tensor's name and, unless its type is not read, where it is."""
        name, dims, kind, outside, others = "", [], 0, False, 0
        data: list[Field] = []
        entries: dict[str, str] = {}
        for part in self._inside(message):
            if part.number == _DIMS:
                dims += self._reader.integers(part, MAX_RANK)
                if len(dims) > MAX_RANK:
                    raise ProtobufError(f"it has a tensor of more than {MAX_RANK} dimensions")
            elif part.number == _TYPE:
                kind = part.value
            elif part.number == _TENSOR_NAME:
                name = self._text(part)
            elif part.number in (_FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES, _UINT64S):
                data = [*data[-1:], part]  # more than one is an error below
            elif part.number == _EXTERNAL and len(entries) < 16:
                entries.update(self._entry(part))
            elif part.number == _LOCATION:
                outside = part.value == 1
            else:
                others += _size(part)
        if kind not in DTYPES:
            self._stray += outside or _is_large(message)
            return name, None
        self._stray += others >= LEAST_OTHER or (outside and any(map(_is_large, data)))
        elements = math.prod(dims)
        if min(dims, default=0) < 0 or math.prod(max(1, extent) for extent in dims) > _MAX_ELEMENTS:
            raise self._broken(f"gives {shown(name)} an absurd shape")
        size = elements * BITS[DTYPES[kind]] // 8
        extent = self._external(name, entries, size) if outside else self._inline(name, data, DTYPES[kind], size)
        if extent.size != size:
            raise self._broken(f"gives {shown(name)} {extent.size} bytes, which do not fit {DTYPES[kind]} of {dims}")
        return name, ByteTensor(name, DTYPES[kind], tuple(dims), extent)

    def _entry(self, message: Field) -> dict[str, str]:
        texts = [self._text(part) for part in self._inside(message) if part.number in (1, 2)]
        return {texts[0]: texts[1]} if len(texts) == 2 else {}

    def _inline(self, name: str, data: list[Field], dtype: str, size: int) -> Extent:
        """The bytes of a tensor, of which there should be `size`: raw data as it lies in the file, numbers decoded."""
        if not data:
            return self._file.part(0, 0)
        part = data[0]
        if len(data) > 1 or part.wire != BYTES:
            raise self._broken(f"stores {shown(name)} in pieces, which is not read")
        if {_RAW: dtype, _FLOATS: "F32", _DOUBLES: "F64"}.get(part.number) == dtype:
            return self._file.part(part.start, part.stop)
        if part.number in (_RAW, _FLOATS, _DOUBLES) or part.stop - part.start > MAX_NUMBERS:
            raise self._broken(f"stores {shown(name)} as numbers of another type, or as too many")
        self._decoded -= size
        if self._decoded < 0:
            raise self._broken(f"stores more than {MAX_DECODED >> 20} MB as single numbers, {shown(name)} among them")
        numbers = varints(self._file.now(part.start, part.stop))
        return Extent(numbers.astype(STORED[dtype] if dtype[0] != "F" else _BITS_OF[BITS[dtype]]).view(np.uint8))

    def _external(self, name: str, entries: Mapping[str, str], size: int) -> Extent:
        """The bytes of a tensor that lies in another file of the folder."""
        location = entries.get("location", "")
        path = PurePosixPath(location)  # a file is opened once, however it is spelt
        if path not in self._outside:
            found = self._beside(location)
            if found is None:
                what = f"{self._label} has its weights in {shown(location)}, which is not there."
                raise ModelError(what, "Put that file beside it.")
            self._outside[path] = found
        file = self._outside[path]
        offset = self._number(name, entries.get("offset", "0"))
        length = self._number(name, entries.get("length", str(size)))
        if offset + length > file.size:
            raise self._broken(f"puts {shown(name)} behind the end of {shown(location)}")
        return file.part(offset, offset + length)

    def _number(self, name: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise self._broken(f"says where {shown(name)} lies in a way that is no number")
        return int(text)

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"{self._label} {what}.", _AGAIN)


def _is_large(tensor: Field) -> bool:
    """Whether a tensor is more than one of the few numbers (shapes, axes, constants) that every subgraph has."""
    return tensor.wire == BYTES and tensor.stop - tensor.start >= LEAST_BYTES


def _size(part: Field) -> int:
    return part.stop - part.start if part.stop > part.start else 1
