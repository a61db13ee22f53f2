"""E2 and E2g: residual coordinates at the same place, and alike."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from provindex.common.score import Outcome, absent
from provindex.evidence.exact import F64, MIN_UNITS, log10_alignment, log10_fixed_points, ranked, smallest_cosine
from provindex.evidence.panels import MIN_ANCHORS, VIRTUAL_ANCHORS, ResidualPanel


def residual_test(a: ResidualPanel | None, b: ResidualPanel | None) -> Outcome:
    """E2: do residual coordinates keep their positions?

    It finds an ancestor even where no layer is shared, because every layer of a model is written in one basis. One
    block, so one test; fixed points of rows, those of columns, and rank alignment are tried, and pay for it.
    """
    if a is None or b is None:
        return absent(f"fewer than {MIN_ANCHORS} anchor tokens, or no exchangeable coordinates, in one model")
    if a.width != b.width:
        return absent(f"residual widths differ ({a.width} and {b.width})")
    shared = int(((a.ids >= 0) & (b.ids >= 0)).sum())
    if shared < MIN_ANCHORS:
        return absent(f"only {shared} anchor tokens in common, {MIN_ANCHORS} needed")
    ours, theirs = _unit_columns(a.values), _unit_columns(b.values)
    live = ours.any(axis=0) & theirs.any(axis=0)
    m = int(live.sum())
    if m < MIN_UNITS:
        return absent(f"only {m} of {live.size} residual coordinates are not zero in both models, {MIN_UNITS} needed")
    similarity = ours[:, live].T @ theirs[:, live]
    across, down, gained = ranked(similarity[None])
    points, excess = max(int(across[0]), int(down[0])), float(gained[0])
    variance = m * m * (m + 1) / 12
    cost = math.log10(3)
    log10_p = min(log10_fixed_points(points, 1), log10_alignment(excess, variance)) + cost
    smallest = smallest_cosine(variance, m * (m - 1) / 2, cost, 1 / min(shared, VIRTUAL_ANCHORS))
    return Outcome(points / m, m, min(0.0, log10_p), 1 / m, smallest=smallest)


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
        return absent(f"fewer than {MIN_ANCHORS} anchor tokens, or no exchangeable coordinates, in one model")
    if a.width != b.width:
        return absent(f"residual widths differ ({a.width} and {b.width})")
    x, y = (panel.values.astype(np.float64) for panel in (a, b))
    scale = math.sqrt(max(_hsic(x, x), 0.0)) * math.sqrt(max(_hsic(y, y), 0.0))
    if not scale > 0:
        return absent("the residual panel is zero, or not finite")
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
