"""Weights that training stores in parts: masks, weight norm and spectral norm. The product is the weight.

torch.nn.utils.prune keeps `weight_orig` and `weight_mask`; weight_norm `weight_g` and `weight_v`, or
`parametrizations.weight.original0` and `original1`; spectral_norm `weight_orig`, `weight_u` (and `weight_v`), or
`parametrizations.weight.original` with `parametrizations.weight.0._u` and `_v`.
https://docs.pytorch.org/docs/stable/nn.html#utilities
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.formats.tensors import ComputedTensor

F32 = NDArray[np.float32]
PIECE = 1 << 20  # elements
_MERGE = "Merge its parts first (with torch: prune.remove, remove_weight_norm, parametrize.remove_parametrizations)."
Make = Callable[[int, int], F32]


def assemble(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Reason, ...]]:
    """A model's tensors with the parts of each such weight replaced by the weight, and what to tell the reader.

    Names without "parametrizations" are parts only of what is called weight or bias, and only where their shapes fit:
    others have tensors that end so and are something else (RWKV's time_mix_g). ModelError if a weight is there twice,
    or if parts below "parametrizations" do not fit each other.
    """
    built: dict[str, tuple[str, Tensor]] = {}  # by the stored part that the weight takes the place of
    targets: set[str] = set()
    used: set[str] = set()
    for name in tensors:
        for ends, fits, build in FORMS:
            stem = name.removesuffix(ends[0])
            names = [f"{stem}{end}" for end in ends]
            if stem == name or not all(part in tensors for part in names):
                continue
            parts = [tensors[part] for part in names]
            sure = ends[0][0] == "."
            if not sure and not (stem.rpartition(".")[2] in ("weight", "bias") and fits(*parts)):
                continue
            target = stem.replace("parametrizations.", "", 1) if sure else stem
            if target in tensors:
                raise ModelError(f"{shown(target)} is there twice, in parts and as it is.", "Remove one of them.")
            if target in targets or not used.isdisjoint(names):
                raise ModelError(f"{shown(target)} is there twice, in two kinds of parts.", "Remove one of them.")
            if not fits(*parts):
                raise _misfit(target, *parts)
            built[name] = target, build(target, *parts)
            targets.add(target)
            used.update(names)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in built:
            target, made = built[name]
            out[target] = made
        elif name not in used:
            out[name] = tensor
    return out, (Reason.of(Code.PARTS_JOINED, n=len(built), first=next(iter(built))),) if built else ()


def masked(name: str, values: Tensor, mask: Tensor) -> Tensor:
    """Element by element. ModelError on reading where the mask has other numbers than 0 and 1."""
    width = values.shape[-1]

    def make(start: int, stop: int) -> F32:
        at = start * width, stop * width
        kept = mask.flat(*at)
        if not ((kept == 0) | (kept == 1)).all():
            raise ModelError(f"{shown(mask.name)} is no mask: it has numbers besides 0 and 1.", _MERGE)
        with np.errstate(all="ignore"):  # values of strangers: what is infinite or no number stays so
            product: F32 = values.flat(*at) * kept
        return product.reshape(-1, width)

    return ComputedTensor(name, "MASKED", values.shape, make, (values, mask))


def weight_norm(name: str, gains: Tensor, directions: Tensor) -> Tensor:
    """Each slice of the directions at length one, times its gain; a gain of one number is for the whole tensor."""
    shape = directions.shape
    axes = [i for i, n in enumerate(gains.shape) if n > 1]
    axis = axes[0] if axes else (0 if shape[0] == 1 else None)

    @cache
    def factors() -> F32:
        """Gain over length, in a shape that multiplies the tensor."""
        squares = np.zeros(shape[axis] if axis is not None else 1)
        per = 1 if axis is None else math.prod(shape[axis + 1 :])
        for start, piece in _pieces(directions):
            of = 0 if axis is None else np.arange(start, start + piece.size) // per % shape[axis]
            with np.errstate(all="ignore"):
                squares += np.bincount(np.broadcast_to(of, piece.shape), piece.astype(np.float64) ** 2, squares.size)
        with np.errstate(all="ignore"):
            made: F32 = (gains.flat().astype(np.float64) / np.sqrt(squares)).astype(np.float32)
        return made

    def make(start: int, stop: int) -> F32:
        values = directions.flat(start * shape[-1], stop * shape[-1]).reshape(-1, shape[-1])
        if axis is None or axis == len(shape) - 1:
            factor = factors()
        else:
            factor = factors()[np.arange(start, stop) // math.prod(shape[axis + 1 : -1]) % shape[axis]][:, None]
        with np.errstate(all="ignore"):
            made: F32 = values * factor
        return made

    return ComputedTensor(name, "WEIGHT_NORM", shape, make, (gains, directions))


def spectral_norm(name: str, values: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The matrix over its largest singular value, u^T W v with the vectors that training kept."""
    width = values.shape[-1]

    @cache
    def largest() -> np.float32:
        row, right = v.size, v.flat().astype(np.float64)
        left, total = u.flat().astype(np.float64), 0.0
        for start in range(0, u.size, max(1, PIECE // row)):
            part = left[start : start + max(1, PIECE // row)]
            matrix = values.flat(start * row, (start + part.size) * row).reshape(part.size, row)
            with np.errstate(all="ignore"):
                total += float(part @ (matrix @ right))
        with np.errstate(all="ignore"):
            return np.float32(total)

    def make(start: int, stop: int) -> F32:
        with np.errstate(all="ignore"):
            made: F32 = values.flat(start * width, stop * width).reshape(-1, width) / largest()
        return made

    return ComputedTensor(name, "SPECTRAL_NORM", values.shape, make, (values, u, v))


def _fit_masked(values: Tensor, mask: Tensor) -> bool:
    return values.shape == mask.shape and len(values.shape) > 0


def _fit_norm(gains: Tensor, directions: Tensor) -> bool:
    """A gain for each slice along one axis, or one for all, of a tensor that has slices."""
    shape = directions.shape
    axes = [i for i, n in enumerate(gains.shape) if n > 1]
    fits = len(gains.shape) in (0, len(shape)) and len(axes) <= 1 and all(gains.shape[i] == shape[i] for i in axes)
    return len(shape) > 1 and min(shape) > 0 and fits and gains.size == (shape[axes[0]] if axes else 1)


def _fit_spectral(values: Tensor, u: Tensor, v: Tensor) -> bool:
    fits = len(values.shape) > 1 and values.size > 0 and len(v.shape) == 1
    return fits and u.shape == values.shape[:1] and v.size * u.size == values.size


# Ends of the names of the parts, the one with the shape of the weight or the gains first; whether parts fit each other;
# and what they make.
FORMS: tuple[tuple[tuple[str, ...], Callable[..., bool], Callable[..., Tensor]], ...] = (
    (("_orig", "_mask"), _fit_masked, masked),
    (("_orig", "_u", "_v"), _fit_spectral, spectral_norm),
    (("_g", "_v"), _fit_norm, weight_norm),
    ((".original0", ".original1"), _fit_norm, weight_norm),
    ((".original", ".0._u", ".0._v"), _fit_spectral, spectral_norm),
)


def _pieces(tensor: Tensor) -> Iterator[tuple[int, F32]]:
    return ((start, tensor.flat(start, start + PIECE)) for start in range(0, tensor.size, PIECE))


def _misfit(name: str, *parts: Tensor) -> ModelError:
    sizes = ", ".join(f"{shown(p.name)} is {'x'.join(map(str, p.shape)) or 'one number'}" for p in parts)
    return ModelError(f"The parts of the weight {shown(name)} do not fit each other: {sizes}.", _MERGE)
