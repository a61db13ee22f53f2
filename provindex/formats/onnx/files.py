"""Weights out of ONNX files, under the names and in the orientation that transformers gives them.

Exporters keep the names of biases, norms and tables, but fold a linear layer's matrix into a MatMul, transposed to
(in, out) and renamed ("onnx::MatMul_470"); quantizers replace it by integers, a scale and a zero point. What the graph
does with a matrix tells both back: the path of modules in its node's name ("/encoder/layer.0/attention/self/query/
MatMul"), or the bias that its product is added to. What neither tells keeps its name, and is an unknown one; nothing is
guessed, and a name that two matrices claim goes to none.

A matrix that has to be turned is read across: one row of it looks at every row of what is stored, which for a sampled
read of a remote file is the whole tensor.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.common.files import is_plain_path
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import F32, Tensor
from provindex.formats.dtypes import STORED, decode
from provindex.formats.onnx import pair
from provindex.formats.onnx.graph import Graph, Node, read_graph
from provindex.formats.onnx.unused import unused
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.tensors import PIECE, ByteTensor, ComputedTensor, Contents, Extent
from provindex.formats.together import is_encoder

_FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
_INTEGERS = frozenset(("I8", "U8"))
_TO_FLOAT = (1, 11)  # Cast to float32 or wider, which keeps what integers and halves say
_STEPS = ("Identity", "Cast", "Mul", "DequantizeLinear", "Transpose")
_MOVES = frozenset(("Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice"))  # may stand before a scale
_PRODUCTS = frozenset(("MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul"))
_PACKED = frozenset(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized"))
_PATH = re.compile(r"(?P<path>(?:/[^/]+)+)/(?:MatMul|Gemm)(?:_quant)?")
LOGITS_BIAS = "final_logits_bias"
_DEPTH = 8  # nodes between a stored matrix and where it is used
_MOST = 16  # inputs of a node, and readers of a product, that are looked at


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A stored matrix and what the graph makes of it: (stored - zero) * scale, and turned.

    names: of the values on the way, the last one first. axis: that scale and zero run along, in stored orientation;
    None if they are single numbers.
    """

    stored: ByteTensor
    names: tuple[str, ...]
    scale: ByteTensor | None = None
    zero: ByteTensor | None = None
    axis: int | None = None
    turned: bool = False

    @property
    def is_weight(self) -> bool:
        """Whether it is numbers that mean what they say: floats, or integers with a scale."""
        return self.stored.dtype in (_FLOATS if self.scale is None else _FLOATS | _INTEGERS)


class _Claim(NamedTuple):
    """A name for a matrix, in the orientation that it has there. sure: two things in the graph give it. table: rows are
    looked up in it by a module, whose name goes before that of an output matrix which is the same."""

    name: str
    matrix: _Matrix
    sure: bool
    table: bool = False


def read(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The weights of one ONNX file, or of an encoder and its decoder, and of the files of data that they name. See
    `reader.Reader`.

    The paths of these are relative to the ONNX file's own folder; ModelError for one that leaves the model's folder.
    """
    found = [_read_one(file, beside) for file in sorted(files, key=lambda file: not is_encoder(file.name))]
    return found[0] if len(found) == 1 else pair.joined(*found)


def _read_one(file: WeightFile, beside: Beside) -> Contents:
    name, label = file.name, file.label

    def data(location: str) -> Extent | None:
        if not is_plain_path(location):
            raise ModelError(
                f"{label} sends to {shown(location)}, which is no file inside the model.", "Export it anew."
            )
        return beside((PurePosixPath(name).parent / location).as_posix())

    return read_onnx(file.extent, label, data)


def read_onnx(file: Extent, label: str, beside: Callable[[str], Extent | None]) -> Contents:
    """The weights of an ONNX file, which errors call `label`.

    beside: another file of the model's folder by its relative path, or None; it is asked for external data, and refuses
    what leaves the folder. ModelError if the file is none of ONNX, is damaged, or has its matrices in packed blocks.
    """
    graph = read_graph(file, label, beside)
    packed = next((node.op for node in graph.nodes if node.op in _PACKED), None)
    if packed:
        raise ModelError(f"{label} is quantized in blocks ({packed}), which is not read.", "Name the original model.")
    weights = _Weights(graph)
    tensors = weights.tensors()
    strays = graph.stray + unused(graph, tensors.values())
    prefix = _wrapper(tensors)
    if prefix:
        shorter = {name: name.removeprefix(prefix) for name in tensors}
        tensors = {shorter[name]: _renamed(tensor, shorter[name]) for name, tensor in tensors.items()}
    notes = [Reason.of(Code.ONNX_PREFIX, prefix=prefix)] if prefix else []
    if graph.unread:
        notes.append(Reason.of(Code.ENTRY_NOT_READ, entry="subgraphs", n=graph.unread))
    if strays:
        notes.append(Reason.of(Code.ENTRY_NOT_READ, entry="what no weight is made of", n=strays))
    if graph.skipped:
        notes.append(Reason.of(Code.ONNX_TYPES, n=len(graph.skipped), first=shown(graph.skipped[0])))
    return Contents(tuple(sorted(tensors.values(), key=_place)), warnings=tuple(notes))


class _Weights:
    """What a graph shows of its stored tensors."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = [node for node in graph.nodes if len(node.inputs) <= _MOST]
        self._producer = {name: node for node in self._nodes for name in node.outputs}
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in self._nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers[name].append(node)

    def tensors(self) -> dict[str, Tensor]:
        """Every weight by name."""
        found: dict[str, tuple[_Matrix, list[_Claim]]] = {}  # by what is stored: the matrix, and its possible names
        for matrix, names in self._uses():
            found.setdefault(matrix.stored.name, (matrix, []))[1].extend(names)
        used = {t.name for matrix, _ in found.values() for t in (matrix.scale, matrix.zero) if t is not None}
        plain = {name: t for name, t in self._graph.stored.items() if name not in found and name not in used}
        tensors: dict[str, Tensor] = {name: t for name, t in plain.items() if _is_parameter(name) or _is_constant(t)}
        for name in [name for name in tensors if self._is_logits_bias(name) and LOGITS_BIAS not in tensors]:
            tensors[LOGITS_BIAS] = replace(plain[name], name=LOGITS_BIAS)
            del tensors[name]
        named = {stored: self._named(matrix, names) for stored, (matrix, names) in found.items()}
        claims = Counter(name for name, _ in named.values())
        for stored, (name, matrix) in named.items():
            own = claims[name] == 1 and name not in tensors
            tensors[name if own else stored] = (
                _made(name, matrix) if own else _made(stored, replace(matrix, turned=False))
            )
        return tensors

    def _is_logits_bias(self, name: str) -> bool:
        """Whether a constant is what BART and its kin add to the product with the output matrix."""
        readers = self._readers.get(name, [])
        if _is_parameter(name) or len(readers) != 1 or readers[0].op != "Add":
            return False
        made = (self._producer.get(other) for other in readers[0].inputs if other != name)
        return any(node is not None and node.op in _PRODUCTS and "/lm_head/" in node.name for node in made)

    def _uses(self) -> Iterator[tuple[_Matrix, list[_Claim]]]:
        """Matrices that the graph multiplies by or looks rows up in, each with the names that this use gives it."""
        for node in self._nodes:
            if node.op == "Gather" or (node.op == "GatherND" and node.module):
                matrix = self._looked_up(node) if node.inputs else None
                if matrix is not None and matrix.is_weight:
                    claim = _Claim(f"{node.module}.weight", replace(matrix, turned=False), True, table=True)
                    yield matrix, [claim] if node.module else []
            elif node.op in _PRODUCTS and len(node.inputs) > 1:
                matrix = self._multiplied(node)
                if matrix is not None and matrix.is_weight:
                    yield matrix, self._names(node, matrix)

    def _matrix(self, name: str) -> _Matrix | None:
        """The stored matrix that a value is made of, if it is made of one, by steps that are known."""
        way: list[Node] = []
        names = [name]
        while (name := names[-1]) not in self._graph.stored:
            node = self._producer.get(name)
            if node is None or node.op not in _STEPS or len(way) == _DEPTH or not node.inputs:
                return None
            way.append(node)
            scaled = node.op == "Mul" and node.inputs[0] in self._graph.stored
            names.append(node.inputs[1 if scaled and len(node.inputs) > 1 else 0])
        stored = self._graph.stored[name]
        matrix: _Matrix | None = _Matrix(stored, tuple(names)) if len(stored.shape) == 2 and stored.size else None
        for node in reversed(way):
            matrix = self._step(matrix, node) if matrix else None
        return matrix

    def _step(self, matrix: _Matrix, node: Node) -> _Matrix | None:
        """A matrix after one more node; None if that does something else to it."""
        if node.op == "Identity":
            return matrix
        if node.op == "Cast":
            return matrix if node.numbers.get("to", (0,))[0] in _TO_FLOAT else None
        if node.op == "Transpose":
            return replace(matrix, turned=not matrix.turned) if node.numbers.get("perm", (1, 0)) == (1, 0) else None
        if node.op == "DequantizeLinear":
            axis = node.numbers.get("axis", (1,))[0]
            return None if node.numbers.get("block_size", (0,))[0] else self._scaled(matrix, node.inputs[1:3], axis)
        others = [name for name in node.inputs if name not in matrix.names]
        return self._scaled(matrix, others, None) if len(others) == 1 else None

    def _scaled(self, matrix: _Matrix, names: Sequence[str], axis: int | None) -> _Matrix | None:
        """A matrix with a scale and, where there are two names, a zero point. axis: None as numpy broadcasts."""
        given = [self._graph.stored.get(name) for name in names if name]
        if not given or matrix.turned or matrix.scale is not None:
            return None
        scale, zero = given[0], given[1] if len(given) > 1 else None
        if scale is None or scale.dtype not in _FLOATS or (len(given) > 1 and zero is None):
            return None
        shape, rows, columns = scale.shape, *matrix.stored.shape
        if axis is None:
            axis = 0 if shape == (rows, 1) != (1, 1) else 1
            fits = shape in ((rows, 1), (1, columns), (columns,))
        else:
            axis %= 2
            fits = shape == ((rows, columns)[axis],)
        if scale.size != 1 and not fits:
            return None
        if zero is not None and (zero.size != scale.size or zero.dtype not in _INTEGERS):
            return None
        return replace(matrix, scale=scale, zero=zero, axis=None if scale.size == 1 else axis)

    def _multiplied(self, node: Node) -> _Matrix | None:
        """The matrix (in, out) by which a node multiplies."""
        matrix = self._matrix(node.inputs[1])
        if matrix is None or node.op == "MatMul":
            return matrix
        if node.op == "Gemm":
            scaled = node.floats.keys() & {"alpha", "beta"}
            if any(np.frombuffer(node.floats[key], "<f4").tolist() != [1.0] for key in scaled):
                return None
            return replace(matrix, turned=not matrix.turned) if node.numbers.get("transB") == (1,) else matrix
        if node.op == "DynamicQuantizeMatMul":
            return self._scaled(matrix, node.inputs[2:4], None)
        product = self._after(node, "Cast")
        scaling = self._after(product, "Mul") if product else None
        scales = [self._producer.get(name) for name in scaling.inputs] if scaling else []
        given = [name for made in scales if made and made.op == "Mul" for name in made.inputs]
        given = [name for name in given if name in self._graph.stored]
        return self._scaled(matrix, [*given, *node.inputs[3:4]], None) if len(given) == 1 else None

    def _looked_up(self, node: Node) -> _Matrix | None:
        """The table in which a Gather looks rows up. Its integers may be scaled afterwards, once they are looked up."""
        matrix = self._matrix(node.inputs[0])
        if matrix is None or matrix.scale is not None or matrix.stored.dtype not in _INTEGERS:
            return matrix
        following: Node | None = node
        for _ in range(_DEPTH):
            following = self._after(following, None) if following else None
            if following and following.op == "DequantizeLinear":
                scaled = self._scaled(matrix, following.inputs[1:3], 1)
                return scaled if scaled and scaled.axis is None else None
            if following is None or following.op not in _MOVES:
                return None
        return None

    def _after(self, node: Node, op: str | None) -> Node | None:
        """The node that reads what a node makes: the only one or, of several, the only one of that operation."""
        readers = [reader for reader in self._reading(node) if op is None or reader.op == op]
        return readers[0] if len(readers) == 1 else None

    def _reading(self, node: Node) -> Sequence[Node]:
        """The nodes that read what a node makes; none if they are more than a layer's product has."""
        readers = self._readers.get(node.outputs[0], []) if node.outputs else []
        return readers if len(readers) <= _MOST else []

    def _names(self, node: Node, matrix: _Matrix) -> list[_Claim]:
        """Names of the weight of the linear layer that a node is. Its path comes before the bias, which may be shared
        and then have another layer's name."""
        match = _PATH.fullmatch(node.name)
        path = node.module or (_dotted(match["path"]) if match else None)
        columns = matrix.stored.shape[0 if matrix.turned else 1]
        weight = replace(matrix, turned=not matrix.turned)
        bias = self._bias(node, columns)
        if path and bias == path:
            return [_Claim(path + ".weight", weight, True)]
        return [_Claim(found + ".weight", weight, False) for found in (path, bias) if found]

    def _bias(self, node: Node, columns: int) -> str | None:
        """The layer whose bias is added to a product, looking through Cast and the scaling of integers."""
        if node.op in ("Gemm", "DynamicQuantizeMatMul"):
            return self._layer(node.inputs[2 if node.op == "Gemm" else 4 :][:1], columns)
        following = node
        for _ in range(4):
            sums = [reader for reader in self._reading(following) if reader.op == "Add"]
            if len(sums) == 1:
                return self._layer(sums[0].inputs, columns)
            scaled = self._after(following, "Cast") or self._after(following, "Mul")
            if scaled is None:
                return None
            following = scaled
        return None

    def _layer(self, names: Sequence[str], columns: int) -> str | None:
        for name in names:
            for _ in range(_DEPTH):
                made = self._producer.get(name)
                if made is None or made.op not in ("Cast", "Identity") or not made.inputs:
                    break
                name = made.inputs[0]
            stored = self._graph.stored.get(name)
            if stored is not None and stored.shape == (columns,) and _is_parameter(name) and name.endswith(".bias"):
                return name.removesuffix(".bias")
        return None

    def _named(self, matrix: _Matrix, claims: Sequence[_Claim]) -> tuple[str, _Matrix]:
        """A matrix's name, and the matrix in the orientation that has this name."""
        table = next((claim for claim in claims if claim.table), None)
        own = None if table else next((name for name in matrix.names if _is_parameter(name)), None)
        if own is not None and own != matrix.stored.name:  # a value of the graph has the name: as it is there
            found = self._matrix(own)
            return own, found if found is not None else matrix
        if own is not None:
            suffix = next((end for end in ("_quantized", "_q") if matrix.scale is not None and own.endswith(end)), "")
            return own.removesuffix(suffix), replace(matrix, turned=False)
        claim = next((claim for claim in claims if claim.sure), next(iter(claims), None))
        if claim is None:
            return matrix.stored.name, replace(matrix, turned=False)
        return claim.name, claim.matrix


def _dotted(path: str) -> str:
    """Modules of a node's path as a parameter's name has them: a list that is called is named again by its members."""
    parts = path[1:].split("/")
    kept = [
        part for part, following in zip(parts, [*parts[1:], ""], strict=True) if not following.startswith(part + ".")
    ]
    return ".".join(kept)


def _is_parameter(name: str) -> bool:
    """Whether a value has a name that a person gave it: modules with dots, not an exporter's counter or path."""
    return "." in name and not name.startswith(("/", "onnx::"))


def _is_constant(tensor: ByteTensor) -> bool:
    """Whether a tensor without a name may still be a weight: it is of floats, and of more than one."""
    return tensor.dtype in _FLOATS and tensor.size > 1


def _made(name: str, matrix: _Matrix) -> Tensor:
    """The tensor of a matrix. It is what is stored where nothing has to be done to it."""
    stored = matrix.stored
    if matrix.scale is None and not matrix.turned:
        return replace(stored, name=name)
    shape = stored.shape[::-1] if matrix.turned else stored.shape
    sources = tuple(part for part in (stored, matrix.scale, matrix.zero) if part is not None)
    at_once = max(1, PIECE // shape[1]) if matrix.turned else 1
    return ComputedTensor(
        name, stored.dtype if matrix.scale is None else "F32", shape, _rows_of(matrix), sources, at_once
    )


def _rows_of(matrix: _Matrix) -> Callable[[int, int], F32]:
    stored, width = matrix.stored, matrix.stored.shape[1]
    run_along_rows = matrix.axis == (1 if matrix.turned else 0)  # one scale for each row of what is made

    def along(tensor: ByteTensor, start: int, stop: int) -> F32:
        values = tensor.flat()
        return values if matrix.axis is None else values[start:stop, None] if run_along_rows else values[None, :]

    def make(start: int, stop: int) -> F32:
        if matrix.turned:
            whole = stored.extent.read().view(STORED[stored.dtype]).reshape(-1, width)
            values = decode(np.ascontiguousarray(whole[:, start:stop].T), stored.dtype)
        else:
            values = stored.flat(start * width, stop * width).reshape(-1, width)
        with np.errstate(over="ignore", invalid="ignore"):  # whatever the scales are
            if matrix.zero is not None:
                values = values - along(matrix.zero, start, stop)
            return values if matrix.scale is None else values * along(matrix.scale, start, stop)

    return make


def _wrapper(tensors: Mapping[str, Tensor]) -> str:
    """What an exporter's own module put before all names: with it the architecture is unknown, without it is not."""
    from provindex.roles.names import resolve

    shapes = {name: tensor.shape for name, tensor in tensors.items() if _is_parameter(name)}
    best, fewest = "", len(resolve(shapes, {}, listed=True).unknown) if shapes else 0
    prefix = ""
    for part in next(iter(shapes), "").split(".")[:3]:
        prefix += part + "."
        if fewest == 0 or not all(name.startswith(prefix) for name in shapes):
            break
        shorter = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        unknown = len(resolve(shorter, {}, listed=True).unknown)
        if unknown < fewest and not shorter.keys() & tensors.keys():
            best, fewest = prefix, unknown
    return best


def _renamed(tensor: Tensor, name: str) -> Tensor:
    return replace(tensor, name=name) if isinstance(tensor, (ByteTensor, ComputedTensor)) else tensor


def _place(tensor: Tensor) -> tuple[int, str]:
    """Where the first byte of a tensor is."""
    first = tensor.sources[0] if isinstance(tensor, ComputedTensor) else tensor
    return first.extent.offset if isinstance(first, ByteTensor) else 0, tensor.name
