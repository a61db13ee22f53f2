"""EAS, embedding anchor similarity: do up to 64 anchor tokens lie to each other as in the other model?

Definition: the anchors' rows of the embedding, each divided by max(norm, 1e-8), give S = Z Z^T. Two models
are compared by the Pearson correlation r of the strict upper triangles of S, as (r + 1) / 2, rounded to 4
decimals.
Range: [0, 1]; 1 is the same geometry, .5 no correlation. Chance level: .50 (independent models, one config).
Blind to: a rotation of the hidden space, the scale of a row, the scale of the embedding.
Absent: fewer than 16 anchors (8 in common when compared), no spread in a triangle, NaN or infinity.
Source: Cisco model-provenance-kit 1.0.0, reimplemented from its definition. The peer works in float32; here
the products are float64 and only the result is float32, so that the stored matrix does not depend on the
machine (difference below 1e-6).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from provindex.common.score import Score
from provindex.signals.similarity import SIDES, not_finite, pearson_score

MIN_ANCHORS = 16
MIN_COMMON = 8
MIN_ROW_NORM = 1e-8

F32 = NDArray[np.float32]


def extract(rows: F32) -> F32 | None:
    """Cosines between the anchors: (k, d) float32 rows of the embedding to a symmetric (k, k) float32 matrix.

    None when there are fewer than MIN_ANCHORS rows. A NaN or an infinity stays visible in the result as NaN,
    and `compare` reports it. A row of zeros gives a row of zeros.
    """
    if len(rows) < MIN_ANCHORS:
        return None
    wide = np.asarray(rows, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        unit = wide / np.maximum(np.sqrt((wide * wide).sum(axis=1, keepdims=True)), MIN_ROW_NORM)
        product = unit @ unit.T
    symmetric: F32 = (np.triu(product) + np.triu(product, 1).T).astype(np.float32)
    return symmetric


def compare(a: F32 | None, b: F32 | None) -> Score:
    """EAS of two (k, k) float32 matrices, or of their first anchors if one has fewer. n: anchors compared."""
    if a is None or b is None:
        return Score.absent(f"no anchor matrix for the {SIDES[a is not None]} model (needs {MIN_ANCHORS} anchors)")
    k = min(len(a), len(b))
    if k < MIN_COMMON:
        return Score.absent(f"fewer than {MIN_COMMON} anchors to compare")
    triangle = np.triu_indices(k, k=1)
    first, second = a[triangle], b[triangle]
    if reason := not_finite("anchor rows", first, second):
        return Score.absent(reason)
    value = pearson_score(first, second)
    if value is None:
        return Score.absent("the anchors of a model are all equally similar to each other")
    return Score(value, n=k)
