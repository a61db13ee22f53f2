"""A small panel of single embedding rows, for what sums over tokens cannot show: rows that training never touched.

Rows of tokens that never occur keep the random start, up to weight decay, if the head has a table of its own. Two
models that agree on them and on little else had one random start (start.py); where one has decayed more, it was trained
later (direction.py). Values stay float32: whether a cosine is above 1 - 1e-6 must be decidable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.tables import Panel, array, number
from provindex.roles.weights import MAX_PANEL, Weights

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ROWS = 512
COORDINATES = 32
END, END_GRID, REACH = 128, 16, 1024  # the last 128 ids, and every 16th of the last 1,024
UNTOUCHED = 1e-6  # 1 - cosine, up to which two rows are one row, rescaled
ROUNDED = 1e-5  # the same where one of the models is rounded to bfloat16, whose steps are 2^-8 wide
MIN_UNTOUCHED = 8
MIN_TOUCHED = 16


@dataclass(frozen=True)
class TokenRows:
    """Rows of the token embedding as they are stored, neither folded nor centered.

    ids: (r,) int32 token ids, ascending. values: (r, c) float32 at the fixed coordinates. width: of the whole row.
    """

    ids: NDArray[np.int32]
    values: F32
    width: int


def chosen_ids(vocabulary: int) -> NDArray[np.int64]:
    """At most 512 ids for a vocabulary of that many rows, ascending: all, if it is that small.

    Every second of the first 256 (bytes: many never occur), every twelfth up to 1,024 (BERT's [unused] ids), then ids
    at multiples of a power of two, and the end, where added and reserved tokens are. Multiples, so that vocabularies of
    nearly one size meet at the same ids.
    """
    if vocabulary <= ROWS:
        return np.arange(vocabulary, dtype=np.int64)
    step = 16
    while (vocabulary - REACH) // step > 128:
        step *= 2
    parts = (
        np.arange(0, 256, 2),
        np.arange(256, REACH, 12),
        np.arange(REACH, vocabulary, step),
        np.arange(-(-max(vocabulary - REACH, 0) // END_GRID) * END_GRID, vocabulary, END_GRID),
        np.arange(vocabulary - END, vocabulary),
    )
    ids = np.unique(np.concatenate(parts)).astype(np.int64)
    return ids[ids < vocabulary][-ROWS:]


def coordinates(width: int) -> NDArray[np.int64]:
    """The coordinates kept of a row: 32 evenly spaced ones, all if the row is that short."""
    count = min(width, COORDINATES)
    return np.arange(count, dtype=np.int64) * width // count


def token_rows(rows: F32, ids: NDArray[np.int64]) -> TokenRows:
    """The panel from whole rows (r, d) of the embedding, d >= 1, in the order of `ids`."""
    width = int(rows.shape[1])
    kept = np.ascontiguousarray(rows[:, coordinates(width)], np.float32)
    return TokenRows(ids.astype(np.int32), kept, width)


@dataclass(frozen=True)
class SharedRows:
    """Rows that two models have under the same ids, float64, without rows that are zero, constant or not finite.

    a, b: (n, c). untouched: (n,) whether they are one row up to a factor.
    """

    a: F64
    b: F64
    untouched: NDArray[np.bool_]

    @property
    def told(self) -> bool:
        """Whether there are enough rows of both kinds."""
        return int(self.untouched.sum()) >= MIN_UNTOUCHED and int((~self.untouched).sum()) >= MIN_TOUCHED


def shared_rows(a: TokenRows | None, b: TokenRows | None) -> SharedRows | None:
    """Rows under the same ids; None where one has no panel, or the widths differ."""
    if a is None or b is None or a.width != b.width:
        return None
    _, ours, theirs = np.intersect1d(a.ids, b.ids, return_indices=True)
    x, y = a.values[ours].astype(np.float64), b.values[theirs].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        good &= (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0) if x.shape[1] else False
    x, y = x[good], y[good]
    limit = ROUNDED if _in_bf16(x) or _in_bf16(y) else UNTOUCHED
    cosine = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return SharedRows(x, y, cosine > 1 - limit)


def _in_bf16(values: F64) -> bool:
    return not (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF)).any()


# --- from a model's weights, and the table row ---


def of_weights(w: Weights) -> TokenRows | None:
    """Some rows of a model's embedding."""
    found = w.embedding("token_rows")
    if found is None:
        return None
    tensor = w.tensors[found[0].name]
    height, width = tensor.shape
    ids = chosen_ids(height)
    if not width or ids.size * width > MAX_PANEL:
        w.absences["token_rows"] = Reason.of(Code.ROWS_WIDE, width=width)
        return None
    return token_rows(tensor.rows(ids), ids)


def _of_row(row: Mapping[str, Any]) -> TokenRows | None:
    ids, width = row["token_row_ids"], row["token_row_width"]
    if not ids.size:
        return None
    if width < 1 or (np.diff(ids) <= 0).any():
        raise ValueError("embedding rows of no width, or with ids that do not ascend")
    return TokenRows(ids, row["token_rows"].reshape(ids.size, min(width, COORDINATES)), width)


PANEL = Panel(
    "token_rows",
    (
        array("token_row_ids", "int32", "embedding rows kept one by one: their token ids", ROWS),
        number("token_row_width", "embedding rows: width of the whole row; 0 if there are none"),
        array("token_rows", "float32", "embedding rows at 32 fixed coordinates, row after row", ROWS * COORDINATES),
    ),
    to_row=lambda t: {"token_row_ids": t.ids, "token_row_width": t.width, "token_rows": t.values},
    from_row=_of_row,
    extract=of_weights,
)
