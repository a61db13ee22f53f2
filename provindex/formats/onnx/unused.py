"""What an ONNX file stores and no weight is made of: counted, but for masks and the numbers that say where to look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from provindex.common.tensor import Tensor
from provindex.formats.dtypes import STORED
from provindex.formats.onnx.graph import LEAST_BYTES, Graph
from provindex.formats.tensors import ByteTensor, ComputedTensor, Extent

MAX_CONSTANTS = 4 << 20  # bytes of all masks and indices of a graph together; a truth value counts as a bit
MAX_INDEX = 1 << 20  # positions and sizes; whatever else is a number of a weight
MAX_GAP = 1 << 16  # bytes of zeros between two tensors in a file of data, which writers leave to align them
_ENDLESS = 1 << 31  # from here on a number says "to the end", as Slice has it
_INTEGERS = frozenset(("I32", "I64"))
MAX_TABLE = 1 << 16  # bytes of positions that are made floats, or that are looked up themselves
_OF_WEIGHTS = frozenset("MatMul Gemm MatMulInteger DequantizeLinear Conv ConvInteger".split())
_OF_TABLES = frozenset((("Cast", 0), ("Gather", 0)))


def unused(graph: Graph, tensors: Iterable[Tensor]) -> int:
    """How many stored tensors of at least LEAST_BYTES are neither among some tensors nor what those are made of, nor
    masks or indices that a node reads; and how many gaps with something in them the files of data have.
    """
    shown = {id(leaf.extent) for tensor in tensors for leaf in _leaves(tensor)}
    left = [t for t in graph.stored.values() if t.nbytes >= LEAST_BYTES and id(t.extent) not in shown]
    readers = _readers(graph, {tensor.name for tensor in left})
    room, count = MAX_CONSTANTS, 0
    for tensor in sorted(left, key=_cost):
        room -= _cost(tensor)
        count += room < 0 or not _is_constant(tensor, readers[tensor.name])
    return count + sum(_gaps(file, graph.stored.values()) for file in graph.outside)


def _leaves(tensor: Tensor) -> list[ByteTensor]:
    parts = tensor.sources if isinstance(tensor, ComputedTensor) else (tensor,)
    return [part for part in parts if isinstance(part, ByteTensor)]


def _readers(graph: Graph, names: set[str]) -> Mapping[str, set[tuple[str, int]]]:
    """Operations that read each of some values, and as which input."""
    found: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if name in names:
                found[name].add((node.op, place))
    return found


def _cost(tensor: ByteTensor) -> int:
    return tensor.nbytes // 8 if tensor.dtype == "BOOL" else tensor.nbytes


def _is_constant(tensor: ByteTensor, readers: set[tuple[str, int]]) -> bool:
    """Whether a tensor is a mask, or positions and sizes: by what reads it and by its numbers."""
    if not readers or tensor.dtype not in _INTEGERS | {"BOOL"}:
        return False
    if any(op in _OF_WEIGHTS for op, _ in readers) or (readers & _OF_TABLES and tensor.nbytes > MAX_TABLE):
        return False
    numbers = np.frombuffer(tensor.extent.now(0, tensor.nbytes), STORED[tensor.dtype])
    if tensor.dtype == "BOOL":
        return bool((numbers.view(np.uint8) <= 1).all())
    ends = np.count_nonzero((numbers <= -MAX_INDEX) | (numbers >= MAX_INDEX))
    return bool(ends <= 8 and (np.abs(numbers[np.abs(numbers) >= MAX_INDEX]) >= _ENDLESS - 1).all())


def _gaps(file: Extent, stored: Iterable[ByteTensor]) -> int:
    """Runs of bytes of a file of data that are in no tensor and hold something."""
    own = (t.extent for t in stored if t.nbytes and np.may_share_memory(t.extent.data, file.data))
    spans = sorted((extent.offset - file.offset, extent.offset - file.offset + extent.size) for extent in own)
    found, end = [], 0
    for start, stop in [*spans, (file.size, file.size)]:
        if start - end >= LEAST_BYTES:
            found.append((end, start))
        end = max(end, stop)
    short = [gap for gap in found if gap[1] - gap[0] <= MAX_GAP]
    file.ready(short)
    return len(found) - len(short) + sum(any(file.now(*gap)) for gap in short)
