"""The samples that the peer takes of a model, from weights on this disk: what no stored row has.

Of files above 20e9 bytes the peer samples 32 rows of each matrix, which rows of ours don't keep; and rows made in
sampled mode have no samples at all. Here they are read, and only of the matrices that the tests of
`evidence/sampled.py` look at. They are kept in `Fingerprint.more`, under a key that no panel has: no row stores them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from provindex.common.halves import rounded
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import F32, Tensor
from provindex.evidence.sampled import AXES, MOST_MATRICES, Matrices, Slices
from provindex.evidence.sampled_places import SLICE, Matrix, Pattern, places, plan, size_of
from provindex.models.source import Model
from provindex.roles.names import Placement, resolve
from provindex.signals import wvc


def slices(model: Model, *, sliced: bool) -> Slices | Reason:
    """The samples of a local model; why there are none, of one that is read by ranges or has no such matrices.

    sliced: of 32 rows of each matrix, as the peer takes them of its largest models; else of whole matrices. At most the
    rows of one matrix are in memory at a time, besides the samples: 16 kB a matrix.
    """
    if model.ranged:
        return Reason.of(Code.SAMPLED_SLICES_ELSEWHERE)
    layers = _layers(model)
    patterns = {layer: tuple(_matrix(model, p, sliced) for p in found) for layer, found in layers.items()}
    few = {layer: pattern for layer, pattern in patterns.items() if len(pattern) <= MOST_MATRICES}
    if not few:
        return Reason.of(Code.NO_PROJECTIONS)
    pattern, times = Counter(few.values()).most_common(1)[0]
    wanted = _wanted(pattern, times, sliced)
    values: dict[int, list[F32 | None]] = {}
    for layer, own in few.items():
        read = wanted if own == pattern else frozenset()
        values[layer] = [
            samples(model.tensors[place.name], sliced) if i in read else None for i, place in enumerate(layers[layer])
        ]
    return Slices(sliced, Matrices(few, values))


def samples(tensor: Tensor, sliced: bool) -> F32:
    """The peer's samples of a matrix, rounded as those of a row are."""
    if not sliced or tensor.shape[0] <= SLICE:
        return rounded(tensor.strided(*wvc.stride(tensor.size)))
    rows, columns = places(tensor.shape[0], tensor.shape[1], sliced=True)
    width = tensor.shape[1]
    out = np.empty(rows.size, np.float32)
    for row in np.unique(rows).tolist():
        here = rows == row
        out[here] = tensor.flat(row * width, (row + 1) * width)[columns[here]]
    return rounded(out)


def _layers(model: Model) -> Mapping[int, list[Placement]]:
    """The projections of the text tower that the peer samples, by layer in the order of their names."""
    layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
    found: dict[int, list[Placement]] = {}
    for place in sorted(layout.placements.values(), key=lambda p: (p.canonical, p.name)):
        matrix = place.weight and len(model.tensors[place.name].shape) >= 2 and model.tensors[place.name].size
        if matrix and place.layer is not None and place.stack == layout.main and wvc.is_projection(place.canonical):
            found.setdefault(place.layer, []).append(place)
    return found


def _matrix(model: Model, place: Placement, sliced: bool) -> Matrix:
    shape = model.tensors[place.name].shape
    role, rows, columns = wvc.role_of(place, shape)
    if role:
        return Matrix(role, rows, columns, size_of(rows, columns, sliced))
    return Matrix("", 0, 0, size_of(shape[0], model.tensors[place.name].size // shape[0], sliced))


def _wanted(pattern: Pattern, layers: int, sliced: bool) -> frozenset[int]:
    """Which matrices of a layer the tests look at."""
    plans = [plan(axis, pattern, layers, sliced) for axis in AXES]
    return frozenset(i for made in plans if made is not None for i in made.matrices)
