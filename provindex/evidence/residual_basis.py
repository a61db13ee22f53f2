"""E2 and E2g: residual coordinates at the same place, and alike."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Panel, Test, array, number
from provindex.evidence.anchors import ANCHORS, BY_ID, BY_STRING, AnchorRows, fixed_ids
from provindex.evidence.exact import F64, MIN_UNITS, log10_alignment, log10_places, ranked, smallest_cosine
from provindex.evidence.panels import MIN_ANCHORS, RESIDUAL_COORDINATES, VIRTUAL_ANCHORS, ResidualPanel, residual_panel
from provindex.roles.weights import Weights


def residual_test(a: ResidualPanel | None, b: ResidualPanel | None) -> Outcome:
    """E2: do residual coordinates keep their positions?

    It finds an ancestor even where no layer is shared, because every layer of a model is written in one basis. One
    block, so one test; fixed points of rows, those of columns, and rank alignment are tried, and pay for it.
    """
    if a is None or b is None:
        return absent(Reason.of(Code.SIDE_WITHOUT_COORDINATES, needed=MIN_ANCHORS))
    if a.width != b.width:
        return absent(Reason.of(Code.WIDTHS_DIFFER, a=a.width, b=b.width))
    shared = int(((a.ids >= 0) & (b.ids >= 0)).sum())
    if shared < MIN_ANCHORS:
        return absent(Reason.of(Code.COMMON_ANCHOR_TOKENS_FEW, n=shared, needed=MIN_ANCHORS))
    ours, theirs = _unit_columns(a.values), _unit_columns(b.values)
    live = ours.any(axis=0) & theirs.any(axis=0)
    m = int(live.sum())
    if m < MIN_UNITS:
        return absent(Reason.of(Code.COMMON_COORDINATES_FEW, n=m, total=int(live.size), needed=MIN_UNITS))
    similarity = ours[:, live].T @ theirs[:, live]
    found = ranked(similarity[None])
    excess, bound = float(found.excess[0]), m * m * (m + 1) / 12
    by_ranks = log10_alignment(excess, max(bound, float(found.squares[0]))) + math.log10(3)
    log10_p = min(log10_places(found.places, 1) + math.log10(3 / 2), by_ranks)
    smallest = smallest_cosine(bound, m * (m - 1) / 2, math.log10(3), 1 / min(shared, VIRTUAL_ANCHORS))
    return Outcome(found.places.most / m, m, min(0.0, log10_p), 1 / m, smallest=smallest)


def better(by_string: Outcome, by_id: Outcome) -> Outcome:
    """The more significant of E2 at the anchor strings and at fixed token ids, paying for both; one, if one could run.

    What would have been seen is the string test's word where it ran: ids mean something only in one vocabulary.
    """
    if by_string.log10_p is None or by_id.log10_p is None:
        return by_id if by_string.log10_p is None and by_id.log10_p is not None else by_string
    best = min((by_string, by_id), key=lambda o: (o.log10_p or 0.0, -(o.value or 0.0)))
    return replace(best, log10_p=min(0.0, (best.log10_p or 0.0) + math.log10(2)), smallest=by_string.smallest)


def residual_gram(a: ResidualPanel | None, b: ResidualPanel | None) -> Outcome:
    """E2g: unbiased CKA of the coordinates' Gram matrices, reported only; 0 on average for unrelated models.

    The estimator of Song et al. (HSIC without diagonal terms), as in Nguyen et al. (arXiv 2010.15327).
    """
    if a is None or b is None:
        return absent(Reason.of(Code.SIDE_WITHOUT_COORDINATES, needed=MIN_ANCHORS))
    if a.width != b.width:
        return absent(Reason.of(Code.WIDTHS_DIFFER, a=a.width, b=b.width))
    x, y = (panel.values.astype(np.float64) for panel in (a, b))
    scale = math.sqrt(max(_hsic(x, x), 0.0)) * math.sqrt(max(_hsic(y, y), 0.0))
    if not scale > 0:
        return absent(Reason.of(Code.RESIDUAL_NOT_FINITE))
    return Outcome(_hsic(x, y) / scale, x.shape[1], None, 0.0)


def _hsic(x: F64, y: F64) -> float:
    """Unbiased HSIC, up to a factor, of the linear kernels x'x and y'y with zero diagonals; x, y: (features, n)."""
    n = x.shape[1]
    own_x, own_y = (x**2).sum(axis=0), (y**2).sum(axis=0)
    sums_x, sums_y = x.T @ x.sum(axis=1) - own_x, y.T @ y.sum(axis=1) - own_y
    trace = float(((x @ y.T) ** 2).sum() - own_x @ own_y)
    total = float(sums_x.sum() * sums_y.sum()) / ((n - 1) * (n - 2))
    return float(trace + total - 2 * float(sums_x @ sums_y) / (n - 2))


def _unit_columns(values: NDArray[np.float16]) -> F64:
    wide = values.astype(np.float64)
    norms = np.sqrt((wide**2).sum(axis=0))
    return np.asarray(wide / np.where(norms > 0, norms, 1.0), np.float64)


# --- from a model's weights, and the table rows ---


def _of_weights(w: Weights, note: str) -> ResidualPanel | None:
    at: AnchorRows | None = w.made.get(note)
    if at is None or w.arch is None:
        return None
    if w.arch.fixed_positions:
        w.absences[note] = Reason.of(Code.FIXED_POSITIONS)
        return None
    made = residual_panel(at.rows, at.ids, centered=w.arch.norm == "layer", labels=at.labels)
    if made is None:
        w.absences[note] = Reason.of(Code.ANCHORS_FEW_OR_NOT_FINITE, needed=MIN_ANCHORS)
    return made


def _panel(values: NDArray[np.float16], ids: NDArray[np.int32], width: int) -> ResidualPanel | None:
    if not width:
        return None
    if values.size != VIRTUAL_ANCHORS * min(width, RESIDUAL_COORDINATES):
        raise ValueError(f"a residual panel of {values.size} values for a width of {width}")
    if ids.size != len(ANCHORS):
        raise ValueError(f"the ids of {ids.size} anchors, {len(ANCHORS)} expected")
    return ResidualPanel(values.reshape(VIRTUAL_ANCHORS, -1), ids, width)


MOST = VIRTUAL_ANCHORS * RESIDUAL_COORDINATES
PANEL = Panel(
    BY_STRING,
    (
        number("residual_width", "residual panel: residual width; 0 if there is none"),
        array("residual_ids", "int32", "residual panel: ids of the 512 anchors, -1 if missing", len(ANCHORS)),
        array("residual_panel", "float16", "residual panel: 64 virtual anchors by coordinates", MOST),
    ),
    to_row=lambda r: {"residual_width": r.width, "residual_ids": r.ids, "residual_panel": r.values},
    from_row=lambda row: _panel(row["residual_panel"], row["residual_ids"], row["residual_width"]),
    extract=lambda w: _of_weights(w, BY_STRING),
)
PANEL_BY_ID = Panel(
    BY_ID,
    (
        array("residual_by_id", "float16", "the same at 512 fixed token ids", MOST),
        number("residual_by_id_width", "its residual width; 0 if there is none"),
    ),
    to_row=lambda r: {"residual_by_id": r.values, "residual_by_id_width": r.width},
    from_row=lambda row: _panel(
        row["residual_by_id"], fixed_ids(row["vocabulary"]).astype(np.int32), row["residual_by_id_width"]
    ),
    extract=lambda w: _of_weights(w, BY_ID),
)
FIXED = Test(
    "residual_fixed_points",
    lambda pair: better(
        residual_test(pair.a.residual, pair.b.residual), residual_test(pair.a.residual_by_id, pair.b.residual_by_id)
    ),
    "exact",
    "residual",
    (PANEL, PANEL_BY_ID),
    sees="residual coordinates",
)
GRAM = Test("residual_gram", lambda pair: residual_gram(pair.a.residual, pair.b.residual), "reported", "residual")
