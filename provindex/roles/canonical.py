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

from provindex.roles import names
from provindex.roles.names import Arch, Part

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
    if part.heads and part.param == "weight" and not part.transposed:
        return _of_heads(tensor, index)
    inner = tensor.shape[1:] if part.lead is not None else tensor.shape
    size = int(np.prod(inner, dtype=np.int64))
    base = (part.lead or 0) * size
    if part.transposed and len(inner) > 1:
        return _columns(tensor, base, (cols, size // cols), index)
    if index.size and (np.diff(index) == 1).all():
        first = base + int(index[0]) * cols
        return tensor.flat(first, first + index.size * cols).reshape(-1, cols)
    if part.lead is None:
        return tensor.rows(index).reshape(-1, cols)
    out = np.empty((index.size, cols), np.float32)
    for i, row in enumerate(index.tolist()):
        out[i] = tensor.flat(base + row * cols, base + (row + 1) * cols)
    return out


def _of_heads(tensor: Readable, index: NDArray[np.int64]) -> F32:
    """Rows of q, k or v that are stored as one (in, width) matrix a head: (heads, in, width)."""
    _, cols, width = tensor.shape
    out = np.empty((index.size, cols), np.float32)
    for head in np.unique(index // width).tolist():
        here = index // width == head
        out[here] = _columns(tensor, head * cols * width, (cols, width), index[here] % width)
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


def is_whole(part: Part) -> bool:
    """Whether a part is all of its tensor, as it is stored."""
    return part.rows is None and part.lead is None and not part.transposed and not part.heads


def source_rows(part: Part, start: int, stop: int) -> NDArray[np.int64]:
    """Which rows of the tensor (in canonical orientation) rows [start, stop) of a part are."""
    if part.rows is None:
        return np.arange(start, stop, dtype=np.int64)
    if isinstance(part.rows, tuple):
        return np.arange(part.rows[0] + start, part.rows[0] + stop, dtype=np.int64)
    return part.rows[start:stop]


CROSS = "cross."  # before the role of a norm that belongs to cross-attention, where gains are looked up


def reader_norm(arch: Arch, branch: str, layer: int) -> list[tuple[str, int | None]]:
    """Where to look for the norm whose output a branch reads, as (role, layer), first found wins.

    branch: "attn", "mlp", or "cross" for the queries of cross-attention (its keys and values read another stack's
    end). Pre-norm blocks read their own norm, and a first layer without one the norm of the embedding (ModernBERT);
    post-norm blocks read the norm that closed the branch before; OLMo 2 reads the raw residual, so the list is empty.
    """
    if arch.norm_place == "branch_out" or arch.norm == "none":
        return []
    if arch.norm_place == "post":
        if branch == "mlp":
            return [(CROSS + "norm_attn_out", layer), ("norm_attn_out", layer)]
        if branch == "cross":
            return [("norm_attn_out", layer)]
        return [("norm_mlp_out", layer - 1)] if layer else [("norm_embed", None)]
    if branch == "cross":
        return [(CROSS + "norm_attn", layer)]
    first: list[tuple[str, int | None]] = [("norm_embed", None)] if branch == "attn" and layer == 0 else []
    return [("norm_attn", layer), *first] if branch == "attn" else [("norm_mlp", layer), ("norm_attn", layer)]


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
        with np.errstate(invalid="ignore"):  # of infinite values
            out -= out.mean(axis=1, keepdims=True)
    return out


def find_gain(
    gains: Mapping[tuple[str, str, int | None], F32], stack: str, arch: Arch, branch: str, layer: int
) -> F32 | None:
    """The gain that a branch of a layer reads, from the 1-D norm tensors by (stack, role, layer).

    Norms of cross-attention are looked up under CROSS + role.
    """
    for role, at in reader_norm(arch, branch, layer):
        found = gains.get((stack, role, at))
        if found is not None:
            return found
    return None


def fold_bias(bias: F32, rows: F32, norm_bias: F32 | None) -> F64:
    """A reader's bias in canonical form, (r,): with what the norm's own bias b0 contributes, b + W b0.

    rows: (r, d) as stored, not folded. norm_bias: (d,) or None.
    """
    out = bias.astype(np.float64)
    return out if norm_bias is None else out + rows.astype(np.float64) @ norm_bias.astype(np.float64)


def fold_writer(matrix: F32, arch: Arch, gain: F32 | None) -> F64:
    """A writer (d, n) in canonical form: times the gain of the norm behind the branch (Gemma 2, OLMo 2), and centred
    over the residual coordinates where LayerNorms read what it writes.

    gain: that norm's, (d,); None where there is none and in post-norm blocks, whose norm closes the whole residual.
    Returns (d, n) float64.
    """
    out = matrix.astype(np.float64)
    if gain is not None and gain.size == len(out) and arch.norm_place != "post":
        out *= (arch.norm_offset + gain.astype(np.float64))[:, None]
    return out - out.mean(axis=0) if arch.norm == "layer" else out


def center(rows: F32, arch: Arch) -> F64:
    """Embedding rows or anchors (r, d) as the norms see them: without their mean over coordinates if those are
    LayerNorms, unchanged under RMSNorm. float64.
    """
    out = rows.astype(np.float64)
    return out - out.mean(axis=1, keepdims=True) if arch.norm == "layer" else out


def heads(matrix: F64, head_dim: int) -> F64:
    """A view per head: (heads * head_dim, d) rows as (heads, head_dim, d). The columns of o: pass its transpose.

    Raises ValueError if the rows are no whole number of heads.
    """
    return matrix.reshape(-1, head_dim, *matrix.shape[1:])


def fold_head_norm(rows: F64, arch: Arch, gain: F32 | None) -> F64:
    """Rows of q or k (folded already) behind their own norm: times its gain, each head's rows at Frobenius norm one.

    A norm on the queries undoes their scale, so only directions inside a head are the model's. gain: (head_dim,), one
    gain for every head, or one for every row (OLMo 2, Cohere); None returns the rows as they are.
    """
    if gain is None or not arch.head_dim:
        return rows
    full = arch.norm_offset + gain.astype(np.float64).reshape(-1)
    if len(rows) % full.size:
        return rows
    split = heads(rows * np.tile(full, len(rows) // full.size)[:, None], arch.head_dim)
    lengths = np.sqrt(np.einsum("hij,hij->h", split, split))
    return (split / np.where(lengths > 0, lengths, 1.0)[:, None, None]).reshape(rows.shape)


def scale_free(rows: F64, arch: Arch) -> F64:
    """Rows that go through the activation (gate, or up without a gate): unit rows where ReLU or its square lets
    anyone rescale them, unchanged under SiLU and GELU, whose scale is part of the function.
    """
    return unit_rows(rows) if arch.activation in ("relu", "relu2") else rows


def unit_rows(rows: F64) -> F64:
    """Rows divided by their length; a zero or non-finite row becomes zeros."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    good = np.isfinite(norms) & (norms > 0)
    return np.where(good[:, None], rows, 0.0) / np.where(good, norms, 1.0)[:, None]


def diagonal_stands_out(rows: F32, columns: NDArray[np.int64]) -> bool:
    """Whether row i is unusually large at its own column, as in a matrix that started as the identity.

    Such rows are not exchangeable: their positions are the initializer's, and two strangers share them. Ranks of
    |row[column]| within the row, added up, six standard deviations above chance. rows: (r, d). columns: (r,), those
    past d are left out.
    """
    kept = np.flatnonzero(columns < rows.shape[1])
    sizes = np.abs(rows[kept])
    own = sizes[np.arange(kept.size), columns[kept]][:, None]
    ranks = (sizes < own).sum(axis=1) + ((sizes == own).sum(axis=1) - 1) / 2
    d = rows.shape[1]
    spread = np.sqrt(kept.size * (d * d - 1) / 12)
    return bool(spread > 0 and (ranks - (d - 1) / 2).sum() > 6 * spread)
