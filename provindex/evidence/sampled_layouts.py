"""Which matrix stands where in the peer's vector of a layer: it has the samples, and not the names.

A layer's vector is the samples of its matrices one after another, in the order of the file that the peer read. Three
orders are tried for the whole model: that of the names (what writers of safetensors make), that of the modules, and the
one that fits best. The last is chosen by sorted values: those of each chunk of the vector, and those of the matrices of
the test in the other row. It costs nothing. The p-value rests on the other row alone, whose order is known: its units
are exchangeable given the vector, whatever the vector is of. Permuting them within groups moves values inside of a
matrix of the test, so its sorted values stay as they are; and so does what was chosen by them, the number of different
orders that are then tried, and the layers that are left out. Matrices outside of the test are not looked at, because a
permutation brings other values of them into the samples. Correlation in place must never choose: the best of 720 orders
gives strangers a z of 15.

Where a file ends inside a layer its matrices stand in another order there. Such a layer fits another order clearly
better than the model's, and is left out. The order of the modules is not tried where it misfits most layers so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.sampled_places import Pattern

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Layout = tuple[int, ...]  # where each matrix of the test begins in a layer's vector
MODULES = ("q", "k", "v", "q+k+v", "k+v", "o", "gate", "up", "gate+up", "down")  # as a layer's modules call each other
MOST_FREE = 7  # matrices of a layer whose orders are all looked at: 5,040
CLEARLY, AT_ALL = 4.0, 0.002  # how many times better another order fits a layer that is left out; what is no misfit


def named(pattern: Pattern, matrices: Sequence[int]) -> list[Layout]:
    """Where the matrices of a test begin in the orders that have a name: by names; by modules, if all are known."""
    orders = [list(range(len(pattern)))]
    if all(m.role for m in pattern):
        orders.append(sorted(orders[0], key=lambda i: (MODULES.index(pattern[i].role), i)))
    return list(dict.fromkeys(offsets(order, pattern, matrices) for order in orders))


def offsets(order: Sequence[int], pattern: Pattern, matrices: Sequence[int]) -> Layout:
    """Where some matrices begin in the vector of a layer whose matrices stand in an order."""
    begin, at = 0, {}
    for i in order:
        at[i], begin = begin, begin + pattern[i].size
    return tuple(at[i] for i in matrices)


@lru_cache(maxsize=64)
def _free(sizes: tuple[int, ...], matrices: tuple[int, ...]) -> tuple[Layout, ...]:
    """Every place that some matrices can have, those by name first."""
    found: dict[Layout, None] = {}
    for order in itertools.permutations(range(len(sizes))):
        begin, at = 0, [0] * len(sizes)
        for i in order:
            at[i], begin = begin, begin + sizes[i]
        found[tuple(at[i] for i in matrices)] = None
    return tuple(found)


def layouts(
    pattern: Pattern, matrices: tuple[int, ...], vectors: F32, known: Sequence[F32]
) -> dict[Layout, NDArray[np.bool_]]:
    """The orders that are tried, the best fitting first, and which layers each of them fits.

    vectors: (layers, samples) of the row without names. known: (layers, samples of a matrix) of each matrix of the
    test, of the other row; only their sorted values are used.
    """
    names = named(pattern, matrices)
    sizes = tuple(m.size for m in pattern)
    candidates = list(dict.fromkeys([*names, *(_free(sizes, matrices) if len(pattern) <= MOST_FREE else ())]))
    misfit = _misfit([sizes[i] for i in matrices], candidates, vectors, known)
    best = misfit.min(axis=1)
    chosen = candidates[int(misfit.sum(axis=0).argmin())]  # the first of equals: by names
    out: dict[Layout, NDArray[np.bool_]] = {}
    for layout in dict.fromkeys([chosen, *names]):
        own = misfit[:, candidates.index(layout)]
        fits = own <= CLEARLY * best + AT_ALL * len(matrices)
        most = 2 * np.count_nonzero(fits) >= fits.size
        if most or layout in (chosen, names[0]):  # what fits few layers is another order; that of names is tried always
            out[layout] = fits if most else np.ones(fits.size, bool)
    return out


def _misfit(sizes: Sequence[int], candidates: Sequence[Layout], vectors: F32, known: Sequence[F32]) -> F64:
    """(layers, candidates): mean square difference of sorted values over their mean squares, added over matrices."""
    chunks: dict[tuple[int, int], F32] = {}
    total = np.zeros((len(vectors), len(candidates)))
    for j, size in enumerate(sizes):
        own = np.sort(known[j], axis=1)
        energy = _mean_square(own)
        begins = sorted({layout[j] for layout in candidates})
        found = np.empty((len(vectors), len(begins)))
        for column, begin in enumerate(begins):
            if (begin, size) not in chunks:
                chunks[begin, size] = np.sort(vectors[:, begin : begin + size], axis=1)
            other = chunks[begin, size]
            found[:, column] = _mean_square(np.subtract(own, other, dtype=np.float64)) / np.maximum(
                energy + _mean_square(other), 1e-300
            )
        total += found[:, [begins.index(layout[j]) for layout in candidates]]
    return total


def _mean_square(values: F32 | F64) -> F64:
    return np.asarray(np.einsum("ij,ij->i", values, values, dtype=np.float64) / max(1, values.shape[1]))
