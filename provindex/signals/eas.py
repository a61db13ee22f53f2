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

from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Panel, Signal, array, field
from provindex.common.tokens import Tokenizer
from provindex.roles.weights import Weights
from provindex.signals.anchors import ANCHORS, peer_anchors
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
        return Score.absent(Reason.of(Code.SIDE_NO_ANCHORS, side=SIDES[a is not None], needed=MIN_ANCHORS))
    k = min(len(a), len(b))
    if k < MIN_COMMON:
        return Score.absent(Reason.of(Code.COMMON_ANCHORS_FEW, needed=MIN_COMMON))
    triangle = np.triu_indices(k, k=1)
    first, second = a[triangle], b[triangle]
    if reason := not_finite("anchor rows", first, second):
        return Score.absent(reason)
    value = pearson_score(first, second)
    if value is None:
        return Score.absent(Reason.of(Code.ANCHORS_ALIKE))
    return Score(value, n=k)


# --- from a model's weights, and the table row ---


def at_anchors(w: Weights) -> F32 | None:
    """EAS at the peer's anchors; without a tokenizer at fixed ids, for retrieval where a tokenizer is withheld."""
    return _cosines(w, w.tokenizer, "EAS")


def at_ids(w: Weights) -> F32 | None:
    """The same at fixed ids whatever the tokenizer says, as it comes back from storage as float16."""
    values = _cosines(w, None, "eas_by_id")
    return None if values is None else values.astype(np.float16).astype(np.float32)


def _cosines(w: Weights, tokenizer: Tokenizer | None, note: str) -> F32 | None:
    found = w.embedding(note)
    if found is None:
        return None
    tensor = w.tensors[found[0].name]
    first_id = tokenizer.first_id if tokenizer else None
    ids = peer_anchors(first_id, tokenizer.vocab if tokenizer else None, tensor.shape[0])
    if len(ids) < MIN_ANCHORS:
        w.absences[note] = Reason.of(Code.ANCHORS_FEW, n=len(ids), needed=MIN_ANCHORS)
        return None
    similarity = extract(tensor.rows(np.asarray(ids, np.int64)))
    if similarity is None or not np.isfinite(similarity).all():
        w.absences[note] = Reason.of(Code.ANCHORS_NOT_FINITE)
        return None
    return similarity


def _triangle(square: F32) -> F32:
    """The upper triangle of a symmetric matrix, row by row, diagonal included."""
    return square[np.triu_indices(len(square))]


def _square(triangle: F32) -> F32 | None:
    """The symmetric (k, k) matrix of an upper triangle; None for an empty one."""
    if not triangle.size:
        return None
    k = int((np.sqrt(8 * triangle.size + 1) - 1) / 2)
    square = np.zeros((k, k), np.float32)
    square[np.triu_indices(k)] = triangle
    return np.asarray(square + np.triu(square, 1).T, np.float32)


MOST = ANCHORS * (ANCHORS + 1) // 2
PANEL = Panel(
    "eas",
    (array("eas", "float32", "EAS: upper triangle of the anchors' cosine matrix, row by row", MOST),),
    to_row=lambda square: {"eas": _triangle(square)},
    from_row=lambda row: _square(row["eas"]),
    extract=at_anchors,
)
BY_ID = Panel(
    "eas_by_id",
    (array("eas_by_id", "float16", "the same at fixed ids, for retrieval without a tokenizer", MOST),),
    to_row=lambda square: {"eas_by_id": _triangle(square)},
    from_row=lambda row: _square(row["eas_by_id"]),
    extract=at_ids,
)
SIGNAL = Signal("EAS", field("eas"), compare, (PANEL, BY_ID), order=1)
