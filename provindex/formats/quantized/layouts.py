"""How each quantization format lays a weight out in several stored tensors, and the one tensor that they make.

Every builder checks the shapes of a group against each other before anything is read, and returns a ComputedTensor that
decodes only the rows that are asked for, some PIECE elements at a time. Values are those of the reference
implementation in float32: where it multiplies in bfloat16 or float16 (GPTQ, AWQ, compressed-tensors, gpt-oss), it
rounds each value once more, and we do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from provindex.common.bounded_json import JsonError, load_object, shown
from provindex.common.errors import ModelError
from provindex.common.tensor import Tensor
from provindex.formats.dtypes import STORED, decode
from provindex.formats.quantized.decode import (
    AWQ_NIBBLE,
    E2M1,
    F32,
    INT8_STEP,
    U8,
    awq_columns,
    nibbles,
    spread,
    unpack,
)
from provindex.formats.ranged import GAP, RangedFile
from provindex.formats.tensors import ByteTensor, ComputedTensor

PIECE = 1 << 18  # elements decoded at a time: what is made on the way stays in the processor's cache
MAX_WIDTH = 1 << 18  # inputs of one matrix; the widest published has about 1/4 of that
MAX_STATE = 1 << 14  # bytes of bitsandbytes' JSON; about 200 are usual
WORD = 32  # bits
FLOATS = ("F32", "F16", "BF16", "F64")
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
EXPONENTS = ("F8_E8M0", "U8")  # both spellings of a power of two
INSTEAD = "Fingerprint the model that was quantized, or a copy that the quantizer's own tool saved in 16 bits."

Make = Callable[[int, int], F32]


@dataclass(frozen=True)
class Group:
    """The stored tensors of one weight.

    name: of the weight. parts: by what they are ("weight", "scale", "qzeros" ...). settings: the model's
    quantization_config, a claim that decides only where shapes leave a choice. taken: which parts a builder asked for;
    the others lie beside the weight and are none of it.
    """

    name: str
    parts: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    taken: set[str] = field(default_factory=set, compare=False)

    def find(self, kind: str) -> Tensor | None:
        """A part that may be missing, and that the weight is made of."""
        self.taken.update({kind} & self.parts.keys())
        return self.parts.get(kind)

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The parts that the weight is made of."""
        return tuple(part for kind, part in self.parts.items() if kind in self.taken)

    def need(self, *kinds: str) -> list[Tensor]:
        """The named parts. ModelError if one is not there."""
        missing = next((kind for kind in kinds if kind not in self.parts), None)
        if missing is not None:
            here = ", ".join(shown(part.name) for part in self.parts.values())
            raise ModelError(
                f"The quantized weight {shown(self.name)} has no {missing} beside {here}.", "Download the model again."
            )
        self.taken.update(kinds)
        return [self.parts[kind] for kind in kinds]

    def misfit(self, *kinds: str) -> NoReturn:
        """Say that the shapes of some parts do not fit each other."""
        parts = [self.parts[kind] for kind in kinds if kind in self.parts]
        sizes = ", ".join(
            f"{shown(p.name)} ({p.dtype}) is {'x'.join(map(str, p.shape)) or 'one number'}" for p in parts
        )
        raise ModelError(
            f"The tensors of the quantized weight {shown(self.name)} do not fit each other: {sizes}.",
            INSTEAD,
        )

    def computed(self, dtype: str, shape: tuple[int, ...], make: Make, at_once: int = 1) -> ComputedTensor:
        """The tensor that `make` makes, a bounded number of elements at a time."""
        if not 0 < shape[-1] <= MAX_WIDTH:
            size = "x".join(map(str, shape))
            raise ModelError(f"Tensor {shown(self.name)} is {size}; no weight matrix is that wide.", "Check its shape.")
        return ComputedTensor(self.name, dtype, shape, _by_pieces(make, shape[-1], at_once), self.sources, at_once)


def _across(width: int) -> int:
    """Rows made at once where the codes of a row lie across the file."""
    return max(8, min(64, PIECE // width // 32 * 32))


def _by_pieces(make: Make, width: int, at_once: int) -> Make:
    step = max(at_once, PIECE // width // at_once * at_once)

    def pieces(start: int, stop: int) -> F32:
        with np.errstate(all="ignore"):  # scales of strangers: what is infinite or no number stays so
            if stop - start <= step:
                return make(start, stop)
            out = np.empty((stop - start, width), np.float32)
            for first in range(start, stop, step):
                last = min(first + step, stop)
                out[first - start : last - start] = make(first, last)
            return out

    return pieces


# --- reading ---


def _bytes(tensor: Tensor, start: int, stop: int) -> U8:
    return np.frombuffer(tensor.raw(start, stop), np.uint8)


def _rows(tensor: Tensor, height: int, start: int, stop: int) -> U8:
    """Rows [start, stop) of a tensor of `height` rows, as bytes."""
    width = tensor.nbytes // height
    return _bytes(tensor, start * width, stop * width).reshape(stop - start, width)


def _columns(tensor: Tensor, height: int, start: int, stop: int, first: int = 0, last: int | None = None) -> U8:
    """Bytes [start, stop) of each of the rows [first, last) of a tensor of `height` rows.

    Of a file that is here the rows are one view, of which only the pages that are used are read. Of a file elsewhere
    too, unless what is between two pieces is more than is fetched along with its neighbours.
    """
    width, last = tensor.nbytes // height, height if last is None else last
    if not (_is_elsewhere(tensor) and width - (stop - start) > GAP):
        return _rows(tensor, height, first, last)[:, start:stop]
    out = np.empty((last - first, stop - start), np.uint8)
    for row in range(first, last):
        out[row - first] = _bytes(tensor, row * width + start, row * width + stop)
    return out


def _is_elsewhere(tensor: Tensor) -> bool:
    return isinstance(tensor, ByteTensor) and isinstance(tensor.extent.watch, RangedFile)


def _now(tensor: Tensor) -> bytes:
    """The bytes of a small tensor, needed before any other is read."""
    return tensor.extent.now(0, tensor.nbytes) if isinstance(tensor, ByteTensor) else bytes(tensor.raw())


def _whole_numbers(tensor: Tensor) -> NDArray[np.signedinteger[Any]]:
    return np.frombuffer(_now(tensor), STORED[tensor.dtype])


def _read_group_of_columns(tensor: Tensor, groups: int, group: Group) -> NDArray[np.int64]:
    """The group of each column, checked."""
    kind = "<i8" if tensor.dtype == "I64" else "<i4"
    order = _bytes(tensor, 0, tensor.nbytes).view(kind).astype(np.int64)
    if order.min() < 0 or order.max() >= groups:
        raise ModelError(
            f"{shown(tensor.name)} sends columns of {shown(group.name)} to groups {order.min()} to {order.max()}, "
            f"and there are {groups}.",
            "Download the model again.",
        )
    return order


def _is_matrix(tensor: Tensor, *dtypes: str) -> bool:
    return len(tensor.shape) == 2 and min(tensor.shape) > 0 and tensor.dtype in dtypes and tensor.plain


# --- tables of scales ---


@dataclass(frozen=True)
class Grid:
    """Numbers of blocks of a matrix. rows, columns: how many of the matrix one number is for. count: numbers a row.

    height, out: rows of the grid and of the matrix, where several matrices are stacked. read: rows [start, stop) of
    the grid, (stop - start, count) float32.
    """

    rows: int
    columns: int
    count: int
    height: int
    out: int
    read: Make

    def of(self, start: int, stop: int) -> F32:
        """The numbers of rows [start, stop) of the stacked matrices, (stop - start, count)."""
        if self.rows == 1:
            return self.read(start, stop)
        row = np.arange(start, stop)
        at = row // self.out * self.height + row % self.out // self.rows
        table = self.read(int(at[0]), int(at[-1]) + 1)
        picked: F32 = table[at - at[0]]
        return picked


def _grid(group: Group, kind: str, shape: tuple[int, ...], main: str) -> Grid:
    """The grid of a part for a matrix, or a stack: one number for all, a row, a group of columns, or a block."""
    (part,) = group.need(kind)
    *lead, out, width = shape
    size = part.shape
    if part.size == 1:  # for the whole stack
        size, out = (1, 1), out * math.prod(lead)
    elif len(size) == 1 and not lead:
        size = (*size, 1)
    elif list(size) == lead:
        size = (*size, 1, 1)
    if not part.plain or (part.size != 1 and (len(size) != len(shape) or list(size[:-2]) != lead)):
        group.misfit(main, kind)
    told = _told_blocks(group.settings)
    rows = _block(out, size[-2], [a for a, _ in told])
    columns = _block(width, size[-1], [b for _, b in told])
    if not rows or not columns:
        group.misfit(main, kind)
    return Grid(rows, columns, size[-1], size[-2], out, _reader(part, size[-1]))


def _reader(part: Tensor, count: int) -> Make:
    """Reads rows of `count` numbers; bytes without a type are exponents."""

    def read(start: int, stop: int) -> F32:
        if part.dtype == "U8":
            return decode(_bytes(part, start * count, stop * count), "F8_E8M0").reshape(-1, count)
        return part.flat(start * count, stop * count).reshape(-1, count)

    return read


def _told_blocks(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Blocks (rows, columns) that a quantization_config names: DeepSeek's, and those of compressed-tensors."""
    groups = settings.get("config_groups")
    schemes = (
        [s.get("weights") for s in groups.values() if isinstance(s, Mapping)] if isinstance(groups, Mapping) else []
    )
    inner = [s for s in schemes if isinstance(s, Mapping)]
    blocks = [settings.get("weight_block_size"), *(s.get("block_structure") for s in inner)]
    sizes = [settings.get("group_size"), *(s.get("group_size") for s in inner)]
    found = [(b[0], b[1]) for b in blocks if isinstance(b, list) and len(b) == 2 and all(map(_is_size, b))]
    return found + [(1, size) for size in sizes if _is_size(size)]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_WIDTH


def _block(size: int, count: int, told: list[int]) -> int:
    """Elements of each of `count` blocks of `size` elements, the last may be cut short; 0 if there is no such block."""
    if count in (1, size):
        return size // count
    even = [size // count] if count and size % count == 0 else []
    return next((block for block in (*told, *even, 128) if -(-size // block) == count), 0)


# --- GPTQ and AWQ ---


def gptq_or_awq(group: Group) -> Tensor:
    """Packed int32 words with a table of scales and one of zero points for each group of inputs; shapes tell which."""
    codes, zeros, scales = group.need("qweight", "qzeros", "scales")
    if not (_is_matrix(codes, "I32") and _is_matrix(zeros, "I32") and _is_matrix(scales, *FLOATS)):
        group.misfit("qweight", "qzeros", "scales")
    groups, out = scales.shape
    bits = zeros.shape[1] * WORD // out
    if zeros.shape != (groups, -(-out * bits // WORD)) or not 2 <= bits <= 8 or out * bits % WORD:
        group.misfit("qzeros", "scales")
    if codes.shape[1] == out and codes.shape[0] * WORD % bits == 0:
        return _gptq(group, bits)
    if bits == 4 and codes.shape[1] * 8 == out and "g_idx" not in group.parts:
        return _awq(group)
    group.misfit("qweight", "qzeros", "scales")


def _gptq(group: Group, bits: int) -> Tensor:
    """AutoGPTQ's layout: (in * bits / 32, out) words whose columns are the codes of one output, lowest bits first.

    Zero points are stored less 1, except in checkpoint_format gptq_v2, and do not wrap when the 1 is added.
    """
    codes, zeros, scales = group.need("qweight", "qzeros", "scales")
    (height, out), groups = codes.shape, scales.shape[0]
    width = height * WORD // bits
    offset = np.float32(0 if group.settings.get("checkpoint_format") == "gptq_v2" else 1)
    order = group.find("g_idx")
    if order is not None and (order.shape != (width,) or order.dtype not in ("I32", "I64") or not order.plain):
        group.misfit("qweight", "g_idx")
    size = _block(width, groups, [b for _, b in _told_blocks(group.settings)])
    if not size and order is None:
        group.misfit("qweight", "scales")

    def make(start: int, stop: int) -> F32:
        words = np.ascontiguousarray(_columns(codes, height, 4 * start, 4 * stop).view("<u4").T)
        values = unpack(words.view(np.uint8), bits, width).astype(np.float32)
        first, last = start // WORD * WORD, min(-(-stop // WORD) * WORD, out)
        packed = np.ascontiguousarray(_columns(zeros, groups, first * bits // 8, last * bits // 8))
        zero = unpack(packed, bits, last - first)[:, start - first : stop - first].astype(np.float32) + offset
        at = None if order is None else _read_group_of_columns(order, groups, group)
        if size and at is not None and np.array_equal(at, np.arange(width) // size):
            at = None  # groups are runs of columns: no gathering
        spread(np.subtract, values, zero.T, size, at)
        return spread(np.multiply, values, _scale_columns(scales, start, stop), size, at)

    return group.computed(f"GPTQ_INT{bits}", (out, width), make, _across(width))


def _scale_columns(scales: Tensor, start: int, stop: int) -> F32:
    """Columns [start, stop) of a table of scales, as rows."""
    stored = STORED[scales.dtype]
    found = _columns(scales, scales.shape[0], start * stored.itemsize, stop * stored.itemsize)
    return decode(np.ascontiguousarray(found).view(stored), scales.dtype).T


def _awq(group: Group) -> Tensor:
    """AutoAWQ's GEMM layout: (in, out / 8) words of eight outputs each, in an order of their own."""
    codes, zeros, scales = group.need("qweight", "qzeros", "scales")
    width, (groups, out), per = codes.shape[0], scales.shape, len(AWQ_NIBBLE)
    size = _block(width, groups, [b for _, b in _told_blocks(group.settings)])
    if not size:
        group.misfit("qweight", "scales")

    def make(start: int, stop: int) -> F32:
        first, last = start // per, -(-stop // per)
        picked = slice(start - first * per, stop - first * per)
        words = (_columns(part, part.shape[0], 4 * first, 4 * last) for part in (codes, zeros))
        code, zero = (awq_columns(np.ascontiguousarray(w))[:, picked].T for w in words)
        values = np.ascontiguousarray(code).astype(np.float32)
        spread(np.subtract, values, zero.astype(np.float32), size)
        return spread(np.multiply, values, _scale_columns(scales, start, stop), size)

    return group.computed("AWQ_INT4", (out, width), make, _across(width))


# --- bitsandbytes ---


def bnb_4bit(group: Group) -> Tensor:
    """NF4 or FP4: two codes a byte, the higher first, in the order of the elements; a scale for each block of them.

    The shape is in a JSON text; the scales may be codes themselves, with scales and an offset of their own.
    """
    packed, absmax, table = group.need("weight", "absmax", "quant_map")
    kind = "nf4" if "nf4" in group.parts else "fp4"
    state = _state(group, kind)
    shape, block, size = state.shape, state.block, math.prod(state.shape)
    blocks = -(-size // block)
    if packed.nbytes != -(-size // 2) or absmax.size != blocks or table.size != 16 or not packed.plain:
        group.misfit("weight", "absmax", "quant_map")
    scale = _absmax(group, state, blocks)
    width = shape[-1]

    def make(start: int, stop: int) -> F32:
        first, last = start * width, stop * width
        values = nibbles(_bytes(packed, first // 2, -(-last // 2))[None], tuple(table.flat().tolist()), high_first=True)
        values = values[0, first % 2 :][: last - first]
        here = scale(first // block, -(-last // block))
        lead = first % block
        if not lead and not values.size % block:
            runs = values.reshape(-1, block)
            return np.multiply(runs, here[:, None], out=runs).reshape(-1, width)
        return np.multiply(values, np.repeat(here, block)[lead : lead + values.size], out=values).reshape(-1, width)

    return group.computed(f"BNB_{kind.upper()}", shape, make)


@dataclass(frozen=True, slots=True)
class State:
    """What bitsandbytes' JSON says. block: elements that have one scale. nested_block, offset: of the scales' codes."""

    shape: tuple[int, ...]
    block: int
    nested_block: int
    offset: np.float32


def _state(group: Group, kind: str) -> State:
    (part,) = group.need(kind)
    if part.dtype != "U8" or part.size > MAX_STATE or not part.plain:
        group.misfit(kind)
    try:
        said = load_object(_now(part))
    except JsonError as fault:
        raise ModelError(f"{shown(part.name)} cannot be used: {fault}.", "Download the model again.") from None
    shape, offset = said.get("shape"), said.get("nested_offset", 0.0)
    sizes: list[Any] = [said.get("blocksize"), said.get("nested_blocksize", 1)]
    fits = isinstance(shape, list) and len(shape) == 2 and all(map(_is_dimension, shape)) and all(map(_is_size, sizes))
    if not fits or not isinstance(shape, list) or not isinstance(offset, float) or not abs(offset) < 1e30:
        raise ModelError(
            f"{shown(part.name)} says nothing usable about shape, blocks and offset.", "Download the model again."
        )
    return State((shape[0], shape[1]), int(sizes[0]), int(sizes[1]), np.float32(offset))


def _is_dimension(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _absmax(group: Group, state: State, blocks: int) -> Make:
    """Reads the scales of blocks [start, stop), (stop - start,) float32."""
    (absmax,) = group.need("absmax")
    if absmax.dtype in FLOATS:
        return absmax.flat
    outer, table = group.need("nested_absmax", "nested_quant_map")
    block, offset = state.nested_block, state.offset
    if absmax.dtype != "U8" or outer.size != -(-blocks // block) or table.size != 256:
        group.misfit("absmax", "nested_absmax", "nested_quant_map")

    def nested(start: int, stop: int) -> F32:
        first = start // block
        here = np.repeat(outer.flat(first, -(-stop // block)), block)[start - first * block :][: stop - start]
        return table.flat()[_bytes(absmax, start, stop)] * here + offset

    return nested


def bnb_int8(group: Group) -> Tensor:
    """LLM.int8(): int8 codes, the largest magnitude of each row in SCB. Layouts for one kind of GPU are refused."""
    codes, scale = group.need("weight", "SCB")
    layout = group.find("weight_format")
    if not _is_matrix(codes, "I8") or scale.size != codes.shape[0] or scale.dtype not in FLOATS:
        group.misfit("weight", "SCB")
    if layout is not None and layout.size > 1:
        group.misfit("weight", "weight_format")
    height = codes.shape[0]

    def make(start: int, stop: int) -> F32:
        if layout is not None and any(bytes(layout.raw())):
            raise ModelError(
                f"{shown(codes.name)} is laid out for one kind of GPU ({shown(layout.name)} is not 0).",
                INSTEAD,
            )
        values = decode(_rows(codes, height, start, stop).view(np.int8), "I8")
        values *= scale.flat(start, stop)[:, None]
        values *= INT8_STEP
        return values

    return group.computed("BNB_INT8", codes.shape, make)


# --- one code a byte: FP8 and int8 with scales ---


def scaled(group: Group) -> Tensor:
    """FP8 or int8 codes times a scale: of the tensor, a row, a group of columns or a block (128 x 128: DeepSeek).

    Both `weight_scale` and `weight_scale_inv` multiply. Zero points, of int8 only, are subtracted first.
    """
    (codes,) = group.need("weight")
    kind = "scale_inv" if "scale_inv" in group.parts else "scale"
    (scale,) = group.need(kind)
    allowed = (*FLOATS, *EXPONENTS) if codes.dtype in FP8 else FLOATS
    if len(codes.shape) not in (2, 3) or min(codes.shape) < 1 or scale.dtype not in allowed or not codes.plain:
        group.misfit("weight", kind)
    scales = _grid(group, kind, codes.shape, "weight")
    zero = group.find("zero_point")
    if zero is not None and zero.dtype not in ("I8", *FLOATS, *FP8):
        group.misfit("weight", "zero_point")
    zeros = None if zero is None else _grid(group, "zero_point", codes.shape, "weight")
    width = codes.shape[-1]

    def make(start: int, stop: int) -> F32:
        values = codes.flat(start * width, stop * width).reshape(-1, width)
        if zeros is not None:
            spread(np.subtract, values, zeros.of(start, stop), zeros.columns)
        return spread(np.multiply, values, scales.of(start, stop), scales.columns)

    return group.computed(("SCALED_INT8" if codes.dtype == "I8" else "SCALED_" + codes.dtype), codes.shape, make)


def broadcast_int8(group: Group) -> Tensor:
    """int8 codes of any rank times scales that numpy would spread over them."""
    codes, scale = group.need("int8", "scale")
    spread_out = len(scale.shape) == len(codes.shape) and all(
        n in (1, m) for n, m in zip(scale.shape, codes.shape, strict=True)
    )
    if not codes.shape or min(codes.shape) < 1 or not spread_out or scale.dtype not in FLOATS or not codes.plain:
        group.misfit("int8", "scale")
    width = codes.shape[-1]

    def make(start: int, stop: int) -> F32:
        lead = np.unravel_index(np.arange(start, stop), codes.shape[:-1]) if len(codes.shape) > 1 else ()
        table = scale.flat().reshape(scale.shape)
        at = tuple(i if n > 1 else np.zeros_like(i) for i, n in zip(lead, scale.shape[:-1], strict=True))
        return codes.flat(start * width, stop * width).reshape(-1, width) * (table[at] if at else table)

    return group.computed("SCALED_INT8", codes.shape, make)


# --- compressed-tensors: integers in int32 words ---


def packed_integers(group: Group) -> Tensor:
    """pack-quantized: rows of unsigned codes in int32 words, scales for each row or group, perhaps zero points."""
    packed, scale, size = group.need("packed", "scale", "shape")
    if not _is_matrix(packed, "I32") or size.size != 2 or size.dtype not in ("I64", "I32"):
        group.misfit("packed", "shape")
    out, width = (int(n) for n in _whole_numbers(size))
    bits = _bits(width, packed.shape[1], group.settings)
    if out != packed.shape[0] or not bits or scale.dtype not in FLOATS:
        group.misfit("packed", "scale", "shape")
    scales = _grid(group, "scale", (out, width), "packed")
    zeros = _zero_points(group, bits, scales, (out, width))
    order = group.find("g_idx")
    if order is not None and (order.shape != (width,) or order.dtype not in ("I32", "I64") or not order.plain):
        group.misfit("packed", "g_idx")

    def make(start: int, stop: int) -> F32:
        values = unpack(_rows(packed, out, start, stop), bits, width).astype(np.float32)
        values -= np.float32(1 << (bits - 1))
        at = None if order is None else _assigned(order, scales.count, group)
        if zeros is not None:
            spread(np.subtract, values, zeros.of(start, stop), zeros.columns, at)
        return spread(np.multiply, values, scales.of(start, stop), scales.columns, at)

    return group.computed(f"PACKED_INT{bits}", (out, width), make)


def _assigned(order: Tensor, groups: int, group: Group) -> NDArray[np.int64] | None:
    """The group of each column, None where they are runs: a table of -1 says that no order was chosen."""
    if (order.flat() == -1).any():
        return None
    return _read_group_of_columns(order, groups, group)


def _bits(width: int, words: int, settings: Mapping[str, Any]) -> int:
    """Bits of a code, from the number of words of a row; 0 if none fits. The config chooses where several do."""
    if not 0 < width <= MAX_WIDTH:
        return 0
    fits = [bits for bits in range(1, 9) if -(-width * bits // WORD) == words]
    groups = settings.get("config_groups")
    schemes = (
        [g.get("weights") for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    )
    told = [s.get("num_bits") for s in schemes if isinstance(s, Mapping)]
    return next(
        (bits for bits in fits if bits in told), next((bits for bits in fits if bits in (4, 8, 2)), sum(fits[:1]))
    )


def _zero_points(group: Group, bits: int, like: Grid, shape: tuple[int, int]) -> Grid | None:
    """Zero points as signed numbers: plain int8, or packed like the weight, but along its rows."""
    part = group.find("zero_point")
    if part is None:
        return None
    if part.dtype == "I8":
        signed = _grid(group, "zero_point", shape, "packed")
        return signed if signed.count == like.count else group.misfit("packed", "scale", "zero_point")
    out, count = shape[0], like.count
    if not _is_matrix(part, "I32") or part.shape != (-(-out * bits // WORD), count) or like.rows != 1:
        group.misfit("packed", "zero_point")
    height = part.shape[0]

    def read(start: int, stop: int) -> F32:
        first, last = start // WORD * bits, min(-(-stop // WORD) * bits, height)
        words = np.ascontiguousarray(_rows(part, height, first, last).view("<u4").T)
        codes = unpack(words.view(np.uint8), bits, (last - first) * WORD // bits)
        begin = start // WORD * WORD
        return codes[:, start - begin : stop - begin].T.astype(np.float32) - np.float32(1 << (bits - 1))

    return Grid(1, like.columns, count, out, out, read)


# --- FP4 ---


def fp4(group: Group) -> Tensor:
    """E2M1 codes, two a byte, the lower first: NVFP4 (a scale in FP8 for 16, one for the tensor) and MXFP4 (E8M0, 32).

    The tensor's scale multiplies where ModelOpt writes it (weight_scale_2) and divides where compressed-tensors does
    (weight_global_scale).
    """
    main = "packed" if "packed" in group.parts else "weight"
    codes, scale = group.need(main, "scale")
    if codes.dtype != "U8" or len(codes.shape) not in (2, 3) or min(codes.shape) < 1 or not codes.plain:
        group.misfit(main, "scale")
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    whole = next((kind for kind in ("scale_2", "global_scale") if kind in group.parts), None)
    block = 16 if scale.dtype == "F8_E4M3" else 32 if scale.dtype in EXPONENTS else 0
    if not block or shape[-1] % block or scale.shape != (*codes.shape[:-1], shape[-1] // block):
        group.misfit(main, "scale")
    if whole is None and block == 16:
        group.need("global_scale" if main == "packed" else "scale_2")
    outer = None if whole is None else _grid(group, whole, shape, main)
    if whole is not None and outer is not None and (outer.count != 1 or group.parts[whole].dtype not in FLOATS):
        group.misfit(main, whole)
    combine = np.divide if whole == "global_scale" else np.multiply
    read, height = _reader(scale, scale.shape[-1]), math.prod(shape[:-1])

    def make(start: int, stop: int) -> F32:
        values = nibbles(_rows(codes, height, start, stop), E2M1)
        here = read(start, stop)
        if outer is not None:
            here = combine(here, outer.of(start, stop))
        return spread(np.multiply, values, here, block)

    return group.computed("NVFP4" if block == 16 else "MXFP4", shape, make)


def stacked_mxfp4(group: Group) -> Tensor:
    """gpt-oss: blocks (experts, out, groups, 16) and E8M0 scales (experts, out, groups), to (experts, in, out)."""
    blocks, scales = group.need("blocks", "block_scales")
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != 16 or scales.dtype not in EXPONENTS:
        group.misfit("blocks", "block_scales")
    experts, out, groups, _ = blocks.shape
    height, width = experts * out, groups * 32

    def inputs(expert: int, start: int, stop: int) -> F32:
        """Inputs [start, stop) of an expert, (stop - start, out)."""
        first, last = start // 32, -(-stop // 32)
        rows = (expert * out, (expert + 1) * out)
        codes = np.ascontiguousarray(_columns(blocks, height, first * 16, last * 16, *rows))
        scale = decode(np.ascontiguousarray(_columns(scales, height, first, last, *rows)), "F8_E8M0")
        values = spread(np.multiply, nibbles(codes, E2M1), scale, 32)
        return values[:, start - first * 32 : stop - first * 32].T

    def make(start: int, stop: int) -> F32:
        made = [inputs(expert, a, b) for expert, a, b in _by_matrix(start, stop, width)]
        return np.ascontiguousarray(made[0] if len(made) == 1 else np.concatenate(made))

    return group.computed("MXFP4", (experts, width, out), make, _across(out))


# --- MLX ---

_MLX_SIZES = (32, 64, 128)
_MLX_BITS = (4, 8, 2, 3, 5, 6)
# What mlx-lm and mlx-vlm put before a module, and exchange: the config may name it otherwise than the file.
_MLX_BEGINNINGS = ("model.language_model.", "language_model.model.", "language_model.", "model.")


def mlx(group: Group) -> Tensor:
    """MLX: rows of codes in uint32 words, the lowest bits first and without gaps; a scale and a bias for each group of
    inputs, code * scale + bias. Without biases the codes are FP4 or FP8 (mxfp4, nvfp4, mxfp8). Stacked experts too.

    Bits and groups together follow from the shapes, each alone from config.json.
    """
    codes, scales = group.need("weight", "scales")
    biases = group.find("biases")
    fits = len(codes.shape) in (2, 3) and min(codes.shape) > 0 and codes.dtype == "U32" and codes.plain
    if not fits or not scales.plain or scales.shape[:-1] != codes.shape[:-1] or not scales.shape[-1]:
        group.misfit("weight", "scales")
    words, groups = codes.shape[-1], scales.shape[-1]
    if biases is None:
        return _mlx_floats(group, words, groups)
    if biases.shape != scales.shape or {biases.dtype, scales.dtype} - {*FLOATS} or not biases.plain:
        group.misfit("weight", "scales", "biases")
    bits, size = _mlx_bits(group, words, groups)
    shape = (*codes.shape[:-1], groups * size)
    height, width = math.prod(shape[:-1]), shape[-1]

    def make(start: int, stop: int) -> F32:
        values = unpack(_rows(codes, height, start, stop), bits, width).astype(np.float32)
        spread(np.multiply, values, scales.flat(start * groups, stop * groups).reshape(-1, groups), size)
        return spread(np.add, values, biases.flat(start * groups, stop * groups).reshape(-1, groups), size)

    return group.computed(f"MLX_INT{bits}", shape, make)


def _mlx_bits(group: Group, words: int, groups: int) -> tuple[int, int]:
    """Bits of a code and inputs of a group. ModelError where shapes fit several and the config does not say which."""
    fits = [(bits, size) for bits in _MLX_BITS for size in _MLX_SIZES if groups * size * bits == words * WORD]
    module = group.name.removesuffix(".weight")
    for beginning in _MLX_BEGINNINGS:
        module = module.removeprefix(beginning)
    named = (group.settings.get(beginning + module) for beginning in ("", *_MLX_BEGINNINGS))
    own = next((said for said in named if isinstance(said, Mapping)), {})
    said = [own, group.settings]  # a module may have settings of its own
    told = [(one.get("bits"), one.get("group_size")) for one in said]
    found = next((fit for fit in told if fit in fits), None)
    if found is not None:
        return found
    sized = [fit for fit in fits if fit[1] == told[1][1]]  # the settings of a module that nothing names: other bits
    if len(sized) == 1:
        return sized[0]
    if not fits:
        group.misfit("weight", "scales", "biases")
    if len(fits) > 1:
        ways = " or ".join(f"{bits} bits in groups of {size}" for bits, size in fits)
        raise ModelError(
            f"The quantized weight {shown(group.name)} is stored in {ways}, and no config says which.",
            "Put the model's config.json beside its weights.",
        )
    return fits[0]


def _mlx_floats(group: Group, words: int, groups: int) -> Tensor:
    """The formats without biases: mxfp4 and mxfp8 (a power of two for 32 values), nvfp4 (an FP8 scale for 16)."""
    codes, scales = group.need("weight", "scales")
    per = words * WORD // groups  # bits of a group
    kind = {32 * 4: "MXFP4", 16 * 4: "NVFP4", 32 * 8: "MXFP8"}.get(per, "")
    if scales.dtype != "U8" or not kind or words * WORD % groups:
        group.misfit("weight", "scales")
    size = 16 if kind == "NVFP4" else 32
    shape = (*codes.shape[:-1], groups * size)
    height, scale = math.prod(shape[:-1]), "F8_E4M3" if kind == "NVFP4" else "F8_E8M0"

    def make(start: int, stop: int) -> F32:
        stored = _rows(codes, height, start, stop)
        values = decode(np.ascontiguousarray(stored), "F8_E4M3") if kind == "MXFP8" else nibbles(stored, E2M1)
        return spread(
            np.multiply, values, decode(np.ascontiguousarray(_rows(scales, height, start, stop)), scale), size
        )

    return group.computed(kind, shape, make)


def _by_matrix(start: int, stop: int, height: int) -> Iterator[tuple[int, int, int]]:
    """Rows [start, stop) of stacked matrices of `height` rows: (which, first, one past the last)."""
    while start < stop:
        which, first = divmod(start, height)
        last = min(height, first + stop - start)
        yield which, first, last
        start += last - first
