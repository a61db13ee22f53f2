"""Which grid do the kept values of a quantized matrix lie on, and who is within half a step of them?

Quantizers round the values of a group (16, 32, 64 or 128 elements of a row, or the whole row) to a few levels, each
times the group's own scale, some plus its own offset. Levels are equally spaced (integers of up to 8 bits: GGUF's Q and
K types, GPTQ, AWQ, int8), or of a codebook (NF4, IQ4_NL, FP4 E2M1, FP8). Kept values are float16, and may have been
stored as bfloat16 before: a value counts as on a level within that rounding, and a grid counts as seen if unquantized
values would fit it with a probability of at most 1e-6, times the grids tried. Rounding to nearest puts the source of
every value into the cell of its level: up to half a step away, whatever the group's size or scale.

Levels: NF4 from QLoRA (Dettmers et al. 2023, arXiv 2305.14314, appendix E), FP4 from bitsandbytes' kernels; E2M1 from
the OCP Microscaling Formats Specification 1.0, FP8 from arXiv 2209.05433; IQ4_NL from the GGUF reference implementation
(`gguf.quants`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
WINDOWS = (256, 128, 64, 32, 16)
MAX_LEVELS = 255  # steps of an 8-bit grid
LOG10_CHANCE = -6.0  # that unquantized values fit, from which on a grid counts as seen
SCREENED = 8  # values that every candidate step is tried on, before all are
FLOAT_WINDOW = (
    32  # largest window for float formats: scales that are powers of two hide in larger ones what was clipped
)
ALIKE = 0.8  # of the widest cells: larger windows are preferred down to that
CODED = 0.99  # so that equally spaced levels are not called a codebook's
MIN_VALUES = 256  # from which on a residual says something
ROUNDED = 5e-4  # share of values outside of their cells (or one), up to which all counts as rounded to nearest
NEAR = 0.35  # mean distance in half steps below which values were made of the grid's; rounding leaves .5
COMPENSATED = 0.3  # share outside, up to which it can be an error-compensating quantizer's
DEVIATIONS = 6.0
QUARTERS = 4
F16_ROUNDING, BF16_ROUNDING = 2.0**-11, 2.0**-8  # largest relative error
SMALLEST = 2.0**-24  # of the largest value: what the kept float16 rounds near zero
SUBNORMAL = 2.0**-25  # what float16 rounds near zero in a file

UNIFORM = "uniform"
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(sign * k / 192 for sign in (-1, 1) for k in (0, 1, 32, 48, 64, 96, 128, 192))
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _minifloat(mantissa: int, bias: int, top: float) -> F64:
    """All finite values of a small float format: `mantissa` bits, up to `top`."""
    steps = np.arange(1 << mantissa)
    exponents = np.arange(1, bias + int(np.log2(top)) + 1)
    normal = (1 + steps / (1 << mantissa)) * 2.0 ** (exponents[:, None] - bias)
    positive = np.concatenate([steps * 2.0 ** (1 - bias - mantissa), normal.ravel()])
    positive = positive[positive <= top]
    return np.unique(np.concatenate([-positive, positive]))


CODEBOOKS: Mapping[str, F64] = {
    "E2M1": _minifloat(1, 1, 6.0),
    "NF4": np.array(NF4),
    "FP4": np.unique(FP4),
    "IQ4_NL": np.array(IQ4_NL, np.float64),
    "E4M3": _minifloat(3, 7, 448.0),
    "E5M2": _minifloat(2, 15, 57344.0),
}
FLOATS = frozenset({"E2M1", "E4M3", "E5M2"})


def _edges(levels: F64) -> F64:
    """Between which values are rounded to each level; the outermost cells are as wide as the gap beside them."""
    middles = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([[2 * levels[0] - middles[0]], middles, [2 * levels[-1] - middles[-1]]])


EDGES = {name: _edges(levels) for name, levels in CODEBOOKS.items()}


def _anchors(levels: F64, edges: F64) -> F64:
    """What the largest value of a window (by size) may be, from the smallest on: that gives the widest cells.

    Not a level whose cell reaches to twice its size (FP4's 1/192): any two values would fit it, in huge cells.
    """
    symmetric = bool((levels == -levels[::-1]).all())
    outer = np.where(levels > 0, edges[1:], -edges[:-1])
    fit = (outer <= 2 * np.abs(levels)) & ((levels > 0) | (levels < 0) & (not symmetric))
    return np.array(sorted(levels[fit], key=abs))


ANCHORS = {name: _anchors(levels, EDGES[name]) for name, levels in CODEBOOKS.items()}


@dataclass(frozen=True)
class Grid:
    """The grid that the values of one matrix lie on.

    name: "uniform", or that of a codebook. window: values that share a scale. steps: (n,) width of each value's cell.
    low, high: (n,) where the cells end; infinite at the least and the largest value of each window, which quantizers
    clip. rounding: largest relative error of the values. moved: (n,) how far float16 of a scale, and of an offset, may
    have moved the level since values were rounded to it.
    """

    name: str
    window: int
    values: F64
    steps: F64
    low: F64
    high: F64
    rounding: float
    moved: F64


@dataclass(frozen=True, slots=True)
class Residual:
    """How another model's values lie around grids, quarter by quarter of each matrix's kept values.

    counts: how many lie at cells that are closed. outside: those of them that are outside of the cell. away: sum over
    all of the distance from the level in half steps, at most 1 each.
    """

    counts: tuple[int, ...]
    outside: tuple[int, ...]
    away: float

    @property
    def n(self) -> int:
        return sum(self.counts)

    @property
    def share(self) -> float:
        """Share of values that are outside; 0 without any."""
        return sum(self.outside) / max(self.n, 1)

    @property
    def _within(self) -> bool:
        return self.n >= MIN_VALUES and sum(self.outside) <= max(1.0, ROUNDED * self.n)

    @property
    def rounded(self) -> bool:
        """Whether the grid's values are these, rounded to nearest: at least 256, next to none of them outside."""
        return self._within and not self.inside

    @property
    def inside(self) -> bool:
        """Whether these are the grid's values, moved a little: they lie nearer to the levels than rounding leaves them.

        Values before rounding lie half a half step away, on average.
        """
        return self._within and self.away <= NEAR * self.n

    @property
    def compensated(self) -> bool:
        """Whether more and more values are outside along a row.

        So quantizers that make up for the error of each column in the columns after it (GPTQ) leave it; siblings of the
        source lie outside alike everywhere. The last half of the values against the first quarter, six standard
        deviations.
        """
        early, late = self.counts[0], sum(self.counts[2:])
        if min(early, late) < MIN_VALUES:
            return False
        out_early, out_late = self.outside[0], sum(self.outside[2:])
        both = (out_early + out_late) / (early + late)
        spread = np.sqrt(both * (1 - both) * (1 / early + 1 / late))
        return bool(self.share <= COMPENSATED and out_late / late - out_early / early > DEVIATIONS * max(spread, 1e-9))


def together(found: Sequence[Residual]) -> Residual:
    """The residuals of several matrices as one."""
    counts, outside = (np.array([getattr(r, n) for r in found]).sum(axis=0) for n in ("counts", "outside"))
    return Residual(tuple(counts.tolist()), tuple(outside.tolist()), float(sum(r.away for r in found)))


def residual(grid: Grid, x: F64) -> Residual:
    """How values x, at the places of the grid's, lie around a grid.

    What rounding may have done is allowed for: float16 of both, bfloat16 where that was stored, and that of the levels.
    """
    x = x[: grid.values.size]
    closed = np.isfinite(grid.low) & np.isfinite(grid.high) & (grid.steps > 0)
    slack = np.abs(grid.values) * grid.rounding + grid.moved + np.abs(x) * rounding_of(x) + _floor(grid.values)
    outside = closed & ((x < grid.low - slack) | (x > grid.high + slack))
    half = np.where(x < grid.values, grid.values - grid.low, grid.high - grid.values)[closed]
    away = np.minimum(np.abs(x - grid.values)[closed] / half, 1.0)
    counts, out = (tuple(int(q.sum()) for q in np.array_split(at, QUARTERS)) for at in (closed, outside))
    return Residual(counts, out, float(away.sum()))


def rounding_of(values: F64) -> float:
    """Largest relative error of kept values: that of bfloat16 if all of them are bfloat16 values, else of float16."""
    in_bf16 = not (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF)).any()
    return BF16_ROUNDING if in_bf16 else F16_ROUNDING


def as_rounded(x: F64, y: F64) -> NDArray[np.bool_]:
    """Which of two models' kept values are equal, but for their roundings: what is kept, what was stored, and once more

    where a half precision was made of the other one. x, y: (n,).
    """
    relative = rounding_of(x) + rounding_of(y) + F16_ROUNDING
    return np.asarray(np.abs(x - y) <= relative * np.maximum(np.abs(x), np.abs(y)) + _floor(x) + _floor(y))


def _floor(values: F64) -> float:
    return max(SMALLEST * float(np.abs(values).max(initial=0.0)), SUBNORMAL)


def grid_of(values: F64) -> Grid | None:
    """The grid that all values lie on, or None where none is seen. values: (n,), in the order of the matrix.

    Every window and kind of grid is tried, and the one with the widest cells is taken: the true one always fits, so a
    value's source is never outside by a wrong guess. Measured: 0 of 72,000 unquantized matrices (f32, f16, bf16) and 0
    of 3 times 553 real ones; all quantized ones but 8 bits in blocks that were stored again as bfloat16 (README.md).
    """
    return _grid_of(np.ascontiguousarray(values, np.float64).tobytes())


@lru_cache(maxsize=1024)
def _grid_of(data: bytes) -> Grid | None:
    values = np.frombuffer(data, np.float64)
    if values.size < WINDOWS[-1] or not np.isfinite(values).all() or not values.any():
        return None
    rounding, kinds = rounding_of(values), (UNIFORM, *CODEBOOKS)
    found: list[Grid] = []
    for size in sorted({min(size, values.size) for size in WINDOWS}):
        windows = values[: values.size // size * size].reshape(-1, size)
        fits = {kind: fit for kind in kinds if (fit := _fits(kind, windows, rounding))}
        # what does not fit small windows fits no larger ones
        kinds = tuple(kind for kind in fits if kind not in FLOATS or size < FLOAT_WINDOW)
        found = [grid for kind, fit in fits.items() if (grid := _seen(kind, windows, fit, rounding))] + found
    if not found:
        return None
    widest = max(found, key=_width)
    return next(g for g in found if g.name == widest.name and _width(g) >= ALIKE * _width(widest))


def _width(grid: Grid) -> float:
    return float(grid.steps.mean()) * (1.0 if grid.name == UNIFORM else CODED)


def _fits(kind: str, windows: F64, rounding: float) -> list[_Fit]:
    """Every window on a grid of this kind; empty if one of them is not."""
    fits: list[_Fit] = []
    for window in windows:
        fitted = _fitted(kind, window, rounding)
        if fitted is None:
            return []
        fits.append(fitted)
    return fits


def _seen(kind: str, windows: F64, fits: Sequence[_Fit], rounding: float) -> Grid | None:
    """The grid of all windows; None if other values would fit as well."""
    tried = np.log10(len(WINDOWS) * (1 + len(CODEBOOKS)))
    if sum(f.log10_chance for f in fits) + tried > LOG10_CHANCE:
        return None
    low, high, steps, moved = (np.concatenate([getattr(f, n) for f in fits]) for n in ("low", "high", "steps", "moved"))
    return Grid(kind, windows.shape[1], windows.ravel(), steps, low, high, rounding, moved)


@dataclass(frozen=True)
class _Fit:
    """One window on a grid: its cells, and log10 of the chance that other values would fit as well."""

    steps: F64
    low: F64
    high: F64
    moved: F64
    log10_chance: float


def _fitted(kind: str, window: F64, rounding: float) -> _Fit | None:
    """The widest grid of a kind that all values of a window lie on; None if none is."""
    least, largest = window == window.min(), window == window.max()
    if least.all():  # says nothing, and has no cells
        zero = np.zeros(window.size)
        return _Fit(zero, zero - np.inf, zero + np.inf, zero, 0.0)
    candidates = np.arange(1, MAX_LEVELS + 1) if kind == UNIFORM else np.arange(ANCHORS[kind].size)
    for some in (window[:SCREENED], window):
        cells = _uniform(some, window, candidates) if kind == UNIFORM else _coded(kind, some, window, candidates)
        slack = rounding * cells.error + _floor(window)
        fit = (cells.off <= slack).all(axis=1)
        if not fit.any():
            return None
        candidates = candidates[fit]
    at = int(np.flatnonzero(fit)[0])
    steps = cells.below[at] + cells.above[at]
    chance = np.log10(np.minimum(1.0, 2 * slack[at] / steps))
    chance[window == 0] = 0.0  # pruned
    anchors = [window.argmin(), window.argmax()] if kind == UNIFORM else [np.abs(window).argmax()]
    chance[anchors] = 0.0
    low = np.where(least, -np.inf, window - cells.below[at])
    high = np.where(largest, np.inf, window + cells.above[at])
    moved = F16_ROUNDING * (_span(window, float(steps[0]), rounding) if kind == UNIFORM else np.abs(window))
    return _Fit(steps, low, high, moved, float(chance.sum() + np.log10(1 + candidates[0])))


def _span(window: F64, step: float, rounding: float) -> F64:
    """What the scale of equally spaced levels is multiplied with: each level; or, if none is zero, a level's distance

    from the least one, which is an offset with a rounding of its own (Q4_1, Q5_1, and those of 256 with minima).
    """
    least, size = float(window.min()), np.abs(window)
    off = abs(least - np.rint(least / step) * step)
    return size if off <= 2 * rounding * size.max() + _floor(window) else window - least + abs(least)


@dataclass(frozen=True)
class _Cells:
    """Where values would lie on candidate grids, all (candidates, n).

    off: distance from the nearest level. error: the same, at most, per relative error of 1 of the kept values. below,
    above: how far the level's cell reaches.
    """

    off: F64
    error: F64
    below: F64
    above: F64


def _uniform(values: F64, window: F64, counts: NDArray[np.int64]) -> _Cells:
    """Equally spaced levels, of which a window's least and largest value are `counts` steps apart."""
    least, largest = float(window.min()), float(window.max())
    steps = np.broadcast_to(((largest - least) / counts)[:, None], (counts.size, values.size))
    center = least + np.rint((values - least) / steps) * steps
    part = (values - least) / (largest - least)
    error = np.abs(values) + (1 - part) * abs(least) + part * abs(largest)
    off = np.abs(values - center)
    return _Cells(off, np.broadcast_to(error, off.shape), steps / 2, steps / 2)


def _coded(kind: str, values: F64, window: F64, candidates: NDArray[np.int64]) -> _Cells:
    """A codebook times a scale, with which the largest value of the window (by size) is one of its anchors."""
    levels, edges = CODEBOOKS[kind], EDGES[kind]
    scales = float(window[np.abs(window).argmax()]) / ANCHORS[kind][candidates][:, None]
    nearest = np.searchsorted(edges[1:-1], values / scales)
    off = np.abs(values - scales * levels[nearest])
    error = np.broadcast_to(2 * np.abs(values), off.shape)
    sides = [np.abs(scales) * np.abs(edges[nearest + up] - levels[nearest]) for up in (0, 1)]
    return _Cells(off, error, *(np.where(scales > 0, *pair) for pair in (sides, sides[::-1])))
