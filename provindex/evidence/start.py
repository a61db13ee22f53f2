"""Do two linked models share only their random start? Same seed, trained apart: no provenance, and no copying.

Exact tests see a shared start as they see descent: units stand at the same places. What tells them apart is how much
of what is common was *trained*. Rows of the embedding that no training touched show the start itself; with a, b the
touched rows, their mean inner product <a, b> is, in units of the untouched rows', about 1 when only the start is
common, and at least <a, a> when a is the ancestor of b: training adds to what is there, it does not take it away.
`position` puts the pair on that scale. A low branch sketch alone shows nothing: noise at cosine .5 gives it too, but
noise hits untouched rows as well.

A short training leaves much of the start in all weights, so that branch sketches, neurons and hidden weights are far
above chance (.33, .17 and .78 measured): they speak against a shared start only where they are more alike than that.
Norm gains tell instead: they start as ones, so what they have in common was trained.

A head that is the embedding moves all rows, so there gains alone tell. On a calibration set of 16 families that were
trained for this (six architectures, tied and untied, 60 to 480 steps; neither the benchmark nor a test), the median
rank correlation of the gains was .04 to .26 between shared starts (62 pairs, also of unequal training), .60 to 1
between ancestors and descendants (78) and .58 to .96 between siblings (62): the limits below stand inside of that gap.
Gains say nothing where layers were moved, norms folded or scales changed, and never against weights that are alike:
gains can be exchanged for other ones without changing the function, so a pair with both is left open.

Rows were measured with heads of their own: shared starts, common .94 to 2.6, position -.25 to .37 (.53 where one
training was a third of the other); parents and children, also continued to 2.5 times the training in another language
at twice the rate, position at least .94; siblings that were both continued, common 9 to 28 at a position of .23 to .49:
of those rows say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.evidence.token_rows import MIN_TOUCHED, MIN_UNTOUCHED, SharedRows, TokenRows, shared_rows

F64 = NDArray[np.float64]
SHARED, NOT_SHARED, CANNOT_TELL = "shared", "not shared", "cannot tell"
GROWTH = 1.1  # touched over untouched rows' mean square: less, and training left too little in the rows to look for
COMMON = (0.7, 3.0)  # <a, b> of touched rows that a shared start explains; about 0 where tokens were renumbered
POSITION_SHARED, POSITION_DESCENT = 0.5, 0.75  # with two standard errors to spare
AGREEMENT, SKETCH, HIDDEN = 0.25, 0.45, 0.85  # E3, VABS and cosine: more, and more than a start is common
AT_CHANCE = 0.1  # E3, evidence.md
GAINS_APART, GAINS_TOGETHER = 0.35, 0.5  # correlation of norm gains up to which, and from which on, training tells
IN_PLACE = 0.1  # least cosine of hidden weights that have a start in common


@dataclass(frozen=True, slots=True)
class Start:
    """What the start of a linked pair is. answer: "shared", "not shared" or "cannot tell"; reasons: what tells.

    untouched, touched: rows of both kinds. common: mean <a, b> of touched over that of untouched rows. position: 0
    where that is a start's, 1 where it is what a descendant keeps. None without enough rows.
    """

    answer: str
    reasons: tuple[Reason, ...]
    untouched: int = 0
    touched: int = 0
    common: float | None = None
    position: float | None = None


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Touched rows, centered, in units of untouched ones: common <a, b>, and growth <a, a> and <b, b> of each model.

    error: standard error of the position.
    """

    common: float
    growth_a: float
    growth_b: float
    error: float

    @property
    def position(self) -> float:
        """0 for a shared start, 1 or more for descent."""
        return (self.common - 1.0) / max(min(self.growth_a, self.growth_b) - 1.0, 1e-9)


def row_statistics(rows: SharedRows | None) -> RowStatistics | None:
    """None without 8 untouched and 16 touched rows.

    A decay that untouched rows went through has hit the touched ones too: each product is in units of its own.
    """
    if rows is None or not rows.told:
        return None
    still = rows.untouched
    a, b = (x[~still] - x[~still].mean(axis=0) for x in (rows.a, rows.b))
    u, v = rows.a[still], rows.b[still]

    def ratio(x: F64, y: F64, z: F64, w: F64) -> float:
        return float((x * y).sum(axis=1).mean() / (z * w).sum(axis=1).mean())

    common, growths = ratio(a, b, u, v), (ratio(a, a, u, u), ratio(b, b, v, v))
    products, still_products = (a * b).sum(axis=1), (u * v).sum(axis=1)
    unit = float(still_products.mean())
    error = np.hypot(
        products.std() / unit / np.sqrt(len(a)), common * still_products.std() / unit / np.sqrt(len(u))
    ) / max(min(growths) - 1.0, 1e-9)
    return RowStatistics(common, *growths, float(error))


def shared_start(
    a: TokenRows | None,
    b: TokenRows | None,
    *,
    hidden_cosine: float,
    sketch: tuple[float, float | None] | None,
    agreement: float | None,
    gains: float | None = None,
) -> Start:
    """Whether a linked pair shares only its random start.

    hidden_cosine: median over matched matrices. sketch: VABS score and its 99.9th percentile on unrelated pairs.
    agreement: E3. gains: median correlation of norm gains (`norm_alignment.gain_correlation`). None: could not be
    computed. "shared" is said by rows, all else allowing it, or by gains where rows do not speak against it; "not
    shared" by one piece against it or by gains; "cannot tell" if there is neither, or they contradict each other.
    """
    rows = shared_rows(a, b)
    found = row_statistics(rows)
    untouched = int(rows.untouched.sum()) if rows is not None else 0
    touched = int((~rows.untouched).sum()) if rows is not None else 0
    numbers = (untouched, touched, found.common if found else None, found.position if found else None)
    against = _against(found, hidden_cosine, sketch, agreement)
    apart = gains is not None and gains <= GAINS_APART
    if against:
        unsure = (Reason.of(Code.GAINS_APART, value=gains),) if apart and gains is not None else ()
        return Start(CANNOT_TELL if apart else NOT_SHARED, (*unsure, *against), *numbers)
    missing = _missing(rows, found, sketch, agreement, gains)
    if found is not None and not missing:
        common = Reason.of(
            Code.START_SHARED, untouched=untouched, touched=touched, common=found.common,
            kept=min(found.growth_a, found.growth_b),
        )  # fmt: skip
        return Start(SHARED, (common, _trained_apart(gains)), *numbers)
    if gains is not None and not any(reason.code is Code.ROWS_BEYOND_START for reason in missing):
        if gains >= GAINS_TOGETHER and any(reason.code is not Code.GAINS_CORRELATED for reason in missing):
            return Start(NOT_SHARED, (Reason.of(Code.GAINS_CORRELATED, value=gains),), *numbers)
        if apart and hidden_cosine >= IN_PLACE:
            return Start(SHARED, (_trained_apart(gains),), *numbers)
    return Start(CANNOT_TELL, missing, *numbers)


def _trained_apart(gains: float | None) -> Reason:
    return Reason.of(Code.LAYERS_APART) if gains is None else Reason.of(Code.GAINS_APART, value=gains)


def _against(
    found: RowStatistics | None,
    hidden_cosine: float,
    sketch: tuple[float, float | None] | None,
    agreement: float | None,
) -> tuple[Reason, ...]:
    out = []
    if agreement is not None and agreement >= AGREEMENT:
        out.append(Reason.of(Code.NEURONS_AGREE, share=agreement))
    if sketch is not None and sketch[0] >= max(SKETCH, sketch[1] or 0.0):
        out.append(Reason.of(Code.SKETCHES_AGREE, value=sketch[0]))
    if hidden_cosine >= HIDDEN:
        out.append(Reason.of(Code.HIDDEN_ALIKE, cosine=hidden_cosine))
    if found and _grown(found) and found.position - 2 * found.error >= POSITION_DESCENT:
        out.append(Reason.of(Code.TRAINING_SHARED))
    return tuple(out)


def _grown(found: RowStatistics) -> bool:
    return min(found.growth_a, found.growth_b) >= GROWTH


def _missing(
    rows: SharedRows | None,
    found: RowStatistics | None,
    sketch: tuple[float, float | None] | None,
    agreement: float | None,
    gains: float | None,
) -> tuple[Reason, ...]:
    """What keeps the answer from being "shared"."""
    if rows is None:
        return (Reason.of(Code.NO_COMMON_IDS),)
    if found is None:
        count, other = int(rows.untouched.sum()), int((~rows.untouched).sum())
        return (
            Reason.of(
                Code.UNTOUCHED_FEW,
                untouched=count,
                untouched_needed=MIN_UNTOUCHED,
                touched=other,
                touched_needed=MIN_TOUCHED,
            ),
        )
    out = []
    if not _grown(found):
        growth = min(found.growth_a, found.growth_b)
        out.append(Reason.of(Code.ROWS_NOT_GROWN, growth=growth, needed=GROWTH))
    elif not COMMON[0] <= found.common <= COMMON[1] or found.position + 2 * found.error > POSITION_SHARED:
        out.append(Reason.of(Code.ROWS_BEYOND_START, common=found.common))
    if gains is not None and gains > GAINS_APART:
        out.append(Reason.of(Code.GAINS_CORRELATED, value=gains))
    at_chance = sketch is not None and sketch[1] is not None and sketch[0] <= sketch[1]
    if gains is None and not (at_chance and (agreement is None or agreement < AT_CHANCE)):
        out.append(Reason.of(Code.NO_GAINS))
    return tuple(out)
