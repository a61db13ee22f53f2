"""What the exact tests keep of a model: hidden panels (E1, E1z), the residual panel (E2) and block digests (E0).

Every panel depends on the weights and on fixed, versioned choices only: which rows, which signs, which anchors.
Projections and rounding cost power, never validity: the null of the exact tests holds for any similarity
(evidence/README.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.common.halves import halved, round_bf16
from provindex.evidence.anchors import ANCHORS
from provindex.roles.canonical import F32, F64, unit_rows

PANELS_VERSION = 9  # goes into cache keys: what is kept, and how
PROJECTION = 128
WIDE = (
    1 << 16
)  # columns that are projected at once, 64 MB; no published model is wider, so one product makes its panels
BLOCK = 16_384
SAMPLE = 256
VIRTUAL_ANCHORS = 64
RESIDUAL_COORDINATES = 1_024
MIN_ANCHORS = 16
MIN_DISTINCT = 64
UNNAMED = "unknown"  # the stack of matrices whose names no table knows
ALONE = ("rows", "columns")  # kinds of a panel of one such matrix, whose layer is unknown: what its units are
SPARSE = 0.05  # share of zeros from which on a matrix counts as pruned


def panel_height(layers: int) -> int:
    """Rows of each panel: 64 in stacks of at most 16 layers, else 32."""
    return 64 if layers <= 16 else 32


def signs(label: str, rows: int, columns: int) -> NDArray[np.int8]:
    """A fixed (rows, columns) matrix of +1 and -1; a longer one starts with the shorter one's rows.

    Bits of SHAKE-256 of the label, so that every platform and numpy version has the same matrix. columns: a multiple
    of 8.
    """
    stream = hashlib.shake_256(f"provindex/1/{label}".encode()).digest(rows * columns // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).reshape(rows, columns)
    return (bits.astype(np.int8) << 1) - 1


@dataclass(frozen=True, slots=True)
class PanelKey:
    """Which block of hidden units: kind "mlp" or "v", its stack and layer, the expert (-1 for a dense MLP).

    Of the stack UNNAMED, kind "mlp", "rows" or "columns", the expert is the number of a reading of one block.
    group: units that share one permutation: 0 for an MLP (all of them), the head dimension for v, the channels of a
    head where these are the units of a stack without MLPs (Mamba 2).
    """

    kind: str
    stack: str
    layer: int
    expert: int = -1
    group: int = 0


@dataclass(frozen=True)
class HiddenPanels:
    """Projected reader rows of hidden units.

    keys: one per panel. heights: (T,) int32, rows in use. values: (T, R, 128) float16, unit rows, zeros past heights.
    width: residual width d of the models that these rows read.
    """

    keys: tuple[PanelKey, ...]
    heights: NDArray[np.int32]
    values: NDArray[np.float16]
    width: int


def without_means(rows: F32) -> F32:
    """Rows (r, d) of which a pruning mask left some cells: each column less the mean of its nonzero cells.

    Two strangers that were pruned with one mask would otherwise have each column's mean in common exactly where their
    masks agree, at their own places. Matrices with fewer than one cell in twenty at zero are returned as they are: the
    mean is then the same for every place, and says nothing.
    """
    kept = rows != 0
    if not kept.size or kept.mean() > 1 - SPARSE:
        return rows
    counts = np.maximum(kept.sum(axis=0), 1)
    with np.errstate(invalid="ignore", over="ignore"):
        means = rows.sum(axis=0, dtype=np.float64) / counts
        return np.where(kept, rows - means, 0.0).astype(np.float32)


def hidden_panel(matrices: Sequence[F64], kind: str) -> NDArray[np.float16]:
    """One panel: (r, 128) float16 unit rows, from one (r, d) matrix, or from gate and up of the same units.

    Gate and up share one permutation, so they make one description: each row is normalized, projected by its own sign
    matrix and added; inner products are then the mean of the two cosines plus projection noise of 1/sqrt(128).
    """
    total = np.zeros((matrices[0].shape[0], PROJECTION))
    for i, matrix in enumerate(reversed(matrices)):  # up first: with or without a gate it meets the same signs
        units, mixing = unit_rows(matrix), signs(f"{kind}/{i}", matrix.shape[1], PROJECTION)
        for start in range(0, matrix.shape[1], WIDE):
            total += units[:, start : start + WIDE] @ mixing[start : start + WIDE].astype(np.float64)
    return unit_rows(total).astype(np.float16)


def stack_panels(entries: Sequence[tuple[PanelKey, NDArray[np.float16]]], width: int) -> HiddenPanels | None:
    """Panels of one model, in the order of their keys; None when there are none."""
    if not entries:
        return None
    ordered = sorted(entries, key=lambda e: (e[0].kind, e[0].stack, e[0].layer, e[0].expert))
    tallest = max(panel.shape[0] for _, panel in ordered)
    values = np.zeros((len(ordered), tallest, PROJECTION), np.float16)
    for i, (_, panel) in enumerate(ordered):
        values[i, : panel.shape[0]] = panel
    heights = np.array([panel.shape[0] for _, panel in ordered], np.int32)
    return HiddenPanels(tuple(key for key, _ in ordered), heights, values, width)


def repeated(panels: HiddenPanels, blocks: Sequence[tuple[int, int, int]]) -> frozenset[tuple[int, int]]:
    """Blocks (panel, first row) whose units stand as those of an earlier block, of some (panel, first row, end).

    Mean cosine eight standard deviations above chance.
    """
    alike: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for place, start, stop in blocks:
        alike.setdefault((panels.keys[place].kind, stop - start), []).append((place, start))
    out: set[tuple[int, int]] = set()
    for (_, height), places in alike.items():
        rows = np.stack([panels.values[n, start : start + height] for n, start in places]).astype(np.float32)
        flat = rows.reshape(len(places), -1)
        means = rows.mean(axis=1)
        scores = flat @ flat.T - height * (means @ means.T)
        limit = 8 * math.sqrt(height * (1 / PROJECTION + 1 / max(panels.width, 1)))
        above = np.triu(scores > limit, 1).any(axis=0)
        for j, block in ((int(j), places[j]) for j in np.flatnonzero(above)):
            if any(scores[i, j] > limit and places[i] not in out for i in range(j)):
                out.add(block)
    return frozenset(out)


@dataclass(frozen=True)
class ResidualPanel:
    """Embedding rows of the anchor tokens, mixed into 64 virtual anchors, at up to 1,024 residual coordinates.

    values: (64, m) float16 up to a common scale. ids: (512,) int32 token id of each anchor, -1 if missing. width: d.
    """

    values: NDArray[np.float16]
    ids: NDArray[np.int32]
    width: int

    @property
    def anchors(self) -> int:
        """How many of the 512 anchor strings the vocabulary has."""
        return int((self.ids >= 0).sum())


def residual_coordinates(width: int) -> NDArray[np.int64]:
    """The fixed coordinates of a residual stream: all up to 1,024, else 1,024 evenly spaced ones."""
    count = min(width, RESIDUAL_COORDINATES)
    return np.arange(count, dtype=np.int64) * width // count


def anchor_table(rows: F32, ids: NDArray[np.int64], *, centered: bool) -> F64 | None:
    """Anchor rows centered over tokens, and over coordinates if asked; None with fewer than 16, or not finite ones."""
    if int((ids >= 0).sum()) < MIN_ANCHORS or not np.isfinite(rows).all():
        return None
    table = rows.astype(np.float64)
    if centered:
        table -= table.mean(axis=1, keepdims=True)
    return np.asarray(table - table.mean(axis=0, keepdims=True), np.float64)


def residual_panel(
    rows: F32, ids: NDArray[np.int64], *, centered: bool, labels: Sequence[str] = ANCHORS
) -> ResidualPanel | None:
    """The residual panel; None with fewer than 16 anchors, or if an anchor row is not finite.

    rows: (present anchors, d) float32, in the order of the anchors. ids: (512,) token ids, -1 where missing.
    centered: the model's norms are LayerNorms, which do not see the mean over coordinates. labels: what seeds the signs
    of each anchor: its string, so that renumbered vocabularies meet; or its id, for models without a tokenizer.
    """
    if anchor_table(rows, ids, centered=centered) is None:
        return None
    sparse = without_means(rows.T).T if centered else rows
    table = anchor_table(without_means(sparse), ids, centered=centered)
    assert table is not None
    present = np.flatnonzero(ids >= 0)
    mixing = np.concatenate([signs(f"anchor/{labels[int(i)]}", 1, VIRTUAL_ANCHORS) for i in present]).astype(np.float64)
    mixed = mixing.T @ table[:, residual_coordinates(table.shape[1])]
    return ResidualPanel(halved(mixed)[0], ids.astype(np.int32), int(table.shape[1]))


@dataclass(frozen=True)
class BlockDigests:
    """Fixed blocks of every weight matrix, digested, and a few of their values.

    keys: (T,) canonical addresses as text. exact, bf16, f16: (T, 2) uint64, digests of the first block and of the
    block past the middle row, as they are and rounded to bfloat16 and to float16; 0 where a block says nothing (fewer
    than 64 distinct values, or not finite). samples: (T, 256) float16, the first values of the first block, divided
    by scales: (T,) float32. counts: (T,) int32, how many of the 256 are in use.
    """

    keys: tuple[str, ...]
    exact: NDArray[np.uint64]
    bf16: NDArray[np.uint64]
    f16: NDArray[np.uint64]
    samples: NDArray[np.float16]
    scales: NDArray[np.float32]
    counts: NDArray[np.int32]


def block_digest(block: F32) -> tuple[int, int, int]:
    """64-bit digests of a block as it is, rounded to bf16, and rounded to f16; 0 where it says nothing."""
    if block.size < MIN_DISTINCT or not np.isfinite(block).all():
        return 0, 0, 0
    with np.errstate(over="ignore"):
        versions = (block, round_bf16(block), block.astype(np.float16).astype(np.float32))
    return tuple(_digest(v) for v in versions)  # type: ignore[return-value]


def _digest(block: F32) -> int:
    # -0.0 and 0.0 are one value, and 64 distinct values are asked for after rounding too
    clean = block + np.float32(0.0)
    if np.unique(clean[: 1 << 10]).size < MIN_DISTINCT and np.unique(clean).size < MIN_DISTINCT:
        return 0
    return int.from_bytes(hashlib.blake2b(clean.tobytes(), digest_size=8).digest(), "little")


def stack_blocks(entries: Sequence[tuple[str, tuple[F32, F32]]]) -> BlockDigests | None:
    """Digests and samples of the two blocks of each matrix, in the order of their addresses; None if there are none."""
    if not entries:
        return None
    ordered = sorted(entries, key=lambda e: e[0])
    digests = np.array([[block_digest(block) for block in blocks] for _, blocks in ordered], np.uint64)
    samples = np.zeros((len(ordered), SAMPLE), np.float16)
    scales = np.ones(len(ordered), np.float32)
    counts = np.zeros(len(ordered), np.int32)
    for i, (_, (first, _)) in enumerate(ordered):
        kept = first[:SAMPLE]
        if np.isfinite(kept).all():
            samples[i, : kept.size], scales[i] = halved(kept.astype(np.float64))
            counts[i] = kept.size
    keys = tuple(key for key, _ in ordered)
    return BlockDigests(keys, digests[:, :, 0], digests[:, :, 1], digests[:, :, 2], samples, scales, counts)
