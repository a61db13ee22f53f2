"""Which of several relatives does a model descend from? Steps of training, told apart by a third model.

A step of training is nearly orthogonal to the weights that it starts from, and to other steps. So of a parent a and its
child b, `backward` <a, a - b> / |a - b|^2 is about 0, and that of b and a about 1; of c, w and a third model q,
`towards` <q - c, w - c> / |w - c|^2 is about 0 if q branches off at c, and about 1 if it branches off at w. Two
children of one parent stand to each other like parent and child where one moved much less than the other: no pair alone
tells them apart, their parent does.

The limits are from a calibration set: 17 families of five models in three generations, trained for this, of other
shapes and languages than the benchmark's and the tests'. `backward` was -.69 to .50 from a parent to its child. With
the base at hand 168 of 170 edges to an ancestor were answered, all right, and none of 170 edges between siblings.
Without it a sibling that hardly moved stands for its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
OLDER = 0.4  # `backward` up to which the first of two models may be the ancestor
BRANCHES = 0.2  # `towards` up to which a model branches off at the first of two others
NEAR = 0.25  # squared distance, relative to the one in question, up to which two relatives are as good as one
IN_PLACE = 0.3  # cosine of a matrix's samples below which they are of other elements (rows were taken out)
MIN_MATRICES = 4


@dataclass(frozen=True)
class Kin:
    """Inner products of some models' samples, matrix by matrix, in units of the first model's.

    products: (matrices, n, n) float64, NaN where two models have no such matrix in common.
    """

    products: F64

    @classmethod
    def of(cls, models: Sequence[Mapping[str, F64]]) -> Kin:
        """models: samples as merge.samples makes them, under the first model's names."""
        first = models[0]
        keys = [key for key in sorted(first) if float(first[key] @ first[key]) > 0]
        products = np.full((len(keys), len(models), len(models)), np.nan)
        for place, key in enumerate(keys):
            size = first[key].size
            there = [i for i, model in enumerate(models) if key in model and model[key].size == size]
            rows = np.stack([models[i][key] for i in there])
            found = rows @ rows.T
            lengths = np.sqrt(np.outer(np.diag(found), np.diag(found)))
            found = np.where(found >= IN_PLACE * lengths, found, np.nan) / found[0, 0]
            products[place][np.ix_(there, there)] = found
        return cls(products)

    def backward(self, a: int, b: int) -> float | None:
        """About 0 if a is the parent of b, about 1 if b is that of a; None with too few matrices in common."""
        p = self._shared(a, b)
        apart = p[:, a, a] + p[:, b, b] - 2 * p[:, a, b]
        return _ratio(p[:, a, a] - p[:, a, b], apart)

    def towards(self, q: int, c: int, w: int) -> float | None:
        """About 0 if q branches off at c, about 1 if it does at w; None with too few matrices in common."""
        p = self._shared(q, c, w)
        along = p[:, q, w] - p[:, q, c] - p[:, c, w] + p[:, c, c]
        return _ratio(along, p[:, w, w] + p[:, c, c] - 2 * p[:, c, w])

    def nearness(self, c: int, w: int, q: int) -> float | None:
        """Squared distance of c and w, over that of c and q."""
        p = self._shared(q, c, w)
        return _ratio(p[:, c, c] + p[:, w, w] - 2 * p[:, c, w], p[:, c, c] + p[:, q, q] - 2 * p[:, c, q])

    def _shared(self, *models: int) -> F64:
        inside = self.products[:, models][:, :, models]
        return self.products[np.isfinite(inside).all(axis=(1, 2))]

    def older(self, a: int, b: int) -> bool:
        """Whether a may be an ancestor of b, as far as the two tell."""
        found = self.backward(a, b)
        return found is not None and found <= OLDER

    def is_ancestor(self, c: int, q: int, others: Sequence[int]) -> bool:
        """Whether c is an ancestor of q by all other relatives: none that is not its own descendant stands between the
        two, or as near to it as makes no difference.
        """
        return self.older(c, q) and not any(self._between(c, q, w) for w in others)

    def _between(self, c: int, q: int, w: int) -> bool:
        towards, near = self.towards(q, c, w), self.nearness(c, w, q)
        if towards is None or near is None or self.older(c, w):
            return False
        return towards > BRANCHES or near < NEAR

    def witnesses(self, c: int, q: int, others: Sequence[int]) -> int:
        """How many other relatives can be compared with both."""
        return sum(self.towards(q, c, w) is not None for w in others)


def _ratio(over: F64, under: F64) -> float | None:
    total = float(under.sum())
    return float(over.sum()) / total if over.size >= MIN_MATRICES and total > 0 else None
