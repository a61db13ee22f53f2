"""The canonical form: views of stored tensors by role, and the folding of norms into their readers.

What leaves the model's function unchanged should leave these arrays unchanged: RMSNorm and LayerNorm gains are folded
into the matrices that read them, and what LayerNorm discards (the component along the all-ones vector) is removed
from the rows. Definitions: design notes in `evidence/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from provindex import names
from provindex.names import Arch, Part

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
PIECE = 1 << 20  # elements of a transposed matrix decoded at a time


class Readable(Protocol):
    """What a part is read from: provindex.source.Tensor, or anything like it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def flat(self, start: int = 0, stop: int | None = None) -> F32: ...
    def rows(self, index: NDArray[np.int64]) -> F32: ...


class PartKey(NamedTuple):
    """The canonical address of a part."""

    stack: str
    layer: int | None
    role: str
    expert: int | None
    cross: bool
    param: str

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".{self.layer}"
        expert = "" if self.expert is None else f".e{self.expert}"
        return f"{self.stack}{layer}{'.cross' if self.cross else ''}.{self.role}{expert}.{self.param}"


def key_of(part: Part) -> PartKey:
    """The address of a part; two parts of one model with the same address are a fault of the layout."""
    return PartKey(part.stack, part.layer, part.role, part.expert, part.cross, part.param)


def part_shape(shape: tuple[int, ...], part: Part) -> tuple[int, int]:
    """(rows, columns) of a part in canonical (out, in) orientation; a vector has one column."""
    sizes = names.part_shape(part, shape)
    return (sizes[0], int(np.prod(sizes[1:], dtype=np.int64))) if sizes else (1, 1)


def read_rows(tensor: Readable, part: Part, start: int, stop: int) -> F32:
    """Rows [start, stop) of a part, (stop - start, columns) float32, clipped to the rows that exist.

    Every page of a transposed matrix is touched, because its rows are columns of the file, but memory stays bounded.
    """
    rows, cols = part_shape(tensor.shape, part)
    stop = min(stop, rows)
    index = source_rows(part, start, stop)
    inner = tensor.shape[1:] if part.lead is not None else tensor.shape
    size = int(np.prod(inner, dtype=np.int64))
    base = (part.lead or 0) * size
    if part.transposed and len(inner) > 1:
        return _columns(tensor, base, (cols, size // cols), index)
    if index.size and index[-1] - index[0] == index.size - 1:
        first = base + int(index[0]) * cols
        return tensor.flat(first, first + index.size * cols).reshape(-1, cols)
    if part.lead is None:
        return tensor.rows(index).reshape(-1, cols)
    out = np.empty((index.size, cols), np.float32)
    for i, row in enumerate(index.tolist()):
        out[i] = tensor.flat(base + row * cols, base + (row + 1) * cols)
    return out


def _columns(tensor: Readable, base: int, shape: tuple[int, int], index: NDArray[np.int64]) -> F32:
    """Columns of the stored matrix of a shape that starts at element `base`, as rows; some PIECE elements at a time."""
    height, width = shape
    out = np.empty((index.size, height), np.float32)
    step = max(1, PIECE // width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        stored = tensor.flat(base + start * width, base + stop * width).reshape(stop - start, width)
        out[:, start:stop] = stored[:, index].T
    return out


def source_rows(part: Part, start: int, stop: int) -> NDArray[np.int64]:
    if part.rows is None:
        return np.arange(start, stop, dtype=np.int64)
    if isinstance(part.rows, tuple):
        return np.arange(part.rows[0] + start, part.rows[0] + stop, dtype=np.int64)
    return part.rows[start:stop]


def reader_norm(arch: Arch, branch: str, layer: int) -> list[tuple[str, int | None]]:
    """Where to look for the norm whose output a branch reads, as (role, layer), first found wins.

    branch: "attn" or "mlp". Pre-norm blocks read their own norm; post-norm encoders read the norm that closed the
    branch before; OLMo 2 reads the raw residual, so the list is empty.
    """
    if arch.norm_place == "branch_out" or arch.norm == "none":
        return []
    if arch.norm_place == "post":
        if branch == "mlp":
            return [("norm_attn_out", layer)]
        return [("norm_mlp_out", layer - 1)] if layer else [("norm_embed", None)]
    return [("norm_attn", layer)] if branch == "attn" else [("norm_mlp", layer), ("norm_attn", layer)]


def fold(rows: F32, arch: Arch, gain: F32 | None) -> F64:
    """Reader rows in canonical form: times the gain of the norm they read, and centred if that norm is a LayerNorm.

    rows: (r, d). gain: (d,) or None for a norm without parameters. A LayerNorm's output has no component along the
    all-ones vector, so adding a constant to a reader's row changes nothing: the projection removes it.
    Returns (r, d) float64.
    """
    out = rows.astype(np.float64)
    if gain is not None and gain.size == out.shape[1]:
        out *= arch.norm_offset + gain.astype(np.float64)
    if arch.norm == "layer" and arch.norm_place != "branch_out":
        out -= out.mean(axis=1, keepdims=True)
    return out


def find_gain(
    gains: Mapping[tuple[str, str, int | None], F32], stack: str, arch: Arch, branch: str, layer: int
) -> F32 | None:
    """The gain that a branch of a layer reads, from the 1-D norm tensors by (stack, role, layer)."""
    for role, at in reader_norm(arch, branch, layer):
        found = gains.get((stack, role, at))
        if found is not None:
            return found
    return None


def unit_rows(rows: F64) -> F64:
    """Rows divided by their length; a zero or non-finite row becomes zeros."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    good = np.isfinite(norms) & (norms > 0)
    return np.where(good[:, None], rows, 0.0) / np.where(good, norms, 1.0)[:, None]
