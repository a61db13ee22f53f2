"""Which of two linked models is the older one? A sum of log-odds over what each piece of evidence says.

Positive log-odds: A is the descendant. Below 2 in size (odds of 7 to 1) the answer is "unknown". Structure alone
decides where it says anything. The others need each other: decay of untouched embedding rows, in which siblings of
unequal training differ too; the path from one model to the other, on which a sibling that moved little, or grew more,
looks like a parent; and witnesses, which cannot tell A -> B, A -> W from B -> A -> W. The tails of the weights
(kurtosis) are not asked: on small models trained for real they were wrong as often as right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.evidence.token_rows import MIN_UNTOUCHED, TokenRows, shared_rows

F64 = NDArray[np.float64]
DECIDES = 2.0
STRUCTURE, PATH, DECAY, WITNESS = 6.0, 1.5, 1.5, 1.5
MIN_ANCHORS = 16
IN_ORDER = 0.95
SPREAD = 1e-4  # of the ratio of untouched rows
ROUNDED_SPREAD = 2e-3  # the same where values are bfloat16
BETWEEN = (0.2, 0.8)  # g of models of which neither descends from the other
PLAUSIBLE = (-1.0, 2.0)  # g outside of it: the factor is not decay, the residual stream was rescaled
PATH_ERROR = 0.08  # largest standard error of g
ON_PATH, OFF_PATH = 0.05, 0.2  # cosines at the model that the witness branches from, and at the other one
MIN_MATRICES = 8


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of evidence. name: what it rests on; log_odds: that A is the descendant; reason: why."""

    name: str
    log_odds: float
    reason: Reason


@dataclass(frozen=True, slots=True)
class Direction:
    """The role of A: "ancestor", "descendant" or "unknown"; the sum of log-odds; and what it is the sum of."""

    role: str
    log_odds: float
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Structure:
    """What structure says about one model.

    layers, vocabulary: counts. neurons: of one MLP, 0 if unknown. precision: "bf16", "f16", "f32" or "". quantized: it
    has the other one's values, rounded to a quantization grid. anchor_ids: (512,) ids of the anchor strings, -1 if
    missing, None without them.
    """

    layers: int
    vocabulary: int
    precision: str
    quantized: bool
    anchor_ids: NDArray[np.int32] | None = None
    neurons: int = 0


def direction(items: Sequence[Item]) -> Direction:
    """The role of A from all items."""
    total = math.fsum(item.log_odds for item in items)
    if abs(total) < DECIDES:
        return Direction("unknown", total, tuple(items))
    return Direction("descendant" if total > 0 else "ancestor", total, tuple(items))


# --- D1: structure ---


def structure(a: Structure, b: Structure, relation: str) -> Item | None:
    """What the relation's own structure says; None where it says nothing.

    Repeated layers (upscaled), values on a quantization grid or at a lower precision on which the other is not, rows of
    the vocabulary cut out or added: each makes its owner the descendant, unless another one says the opposite: then
    both were changed, as siblings are. Fewer layers or neurons say nothing: a model that was grown looks the same, with
    the roles exchanged.
    """
    found: tuple[bool, Code] | None = None
    if relation == "upscaled" and a.layers != b.layers:
        found = a.layers > b.layers, Code.LAYERS_REPEATED
    elif relation == "quantized" and a.quantized != b.quantized:
        found = a.quantized, Code.ON_GRID
    elif relation == "recast":
        found = _precision(a, b)
    elif relation == "vocabulary":
        found = _vocabulary(a, b)
    if found is None:
        return None
    descendant, why = found
    if any(other is not None and other[0] != descendant for other in _changes(a, b, relation)):
        return None
    return Item("structure", STRUCTURE if descendant else -STRUCTURE, Reason.of(why, side="A" if descendant else "B"))


def _changes(a: Structure, b: Structure, relation: str) -> list[tuple[bool, Code] | None]:
    """What else says which of the two was changed; precision says nothing of quantized values, often stored wider."""
    precise = None if relation == "quantized" else _precision(a, b)
    grid = (a.quantized, Code.ON_GRID) if a.quantized != b.quantized else None
    return [precise, grid, _vocabulary(a, b)]


def _precision(a: Structure, b: Structure) -> tuple[bool, Code] | None:
    if "" in (a.precision, b.precision) or (a.precision == "f32") == (b.precision == "f32"):
        return None
    return b.precision == "f32", Code.HALF_PRECISION


def made_of_grid(child: str) -> Item:
    """Values that lie close to another model's quantization grid, and off it, were made of its dequantized ones."""
    return Item("structure", STRUCTURE if child == "A" else -STRUCTURE, Reason.of(Code.MADE_OF_GRID, side=child))


def _vocabulary(a: Structure, b: Structure) -> tuple[bool, Code] | None:
    """Rows appended make the larger one the child; rows cut out and renumbered in their old order the smaller one."""
    if a.anchor_ids is None or b.anchor_ids is None or a.vocabulary == b.vocabulary:
        return None
    both = (a.anchor_ids >= 0) & (b.anchor_ids >= 0)
    ours, theirs = a.anchor_ids[both], b.anchor_ids[both]
    if ours.size < MIN_ANCHORS:
        return None
    smaller_is_a = a.vocabulary < b.vocabulary
    if (ours == theirs).all():
        return not smaller_is_a, Code.TOKENS_ADDED
    small, large = (ours, theirs) if smaller_is_a else (theirs, ours)
    order = large.argsort()
    in_order = float((small[order][1:] > small[order][:-1]).mean())
    # ids of unrelated orders ascend half of the time; special tokens may have moved
    if (small <= large).mean() < IN_ORDER or in_order < IN_ORDER:
        return None
    return smaller_is_a, Code.VOCABULARY_CUT


# --- D2: rows that training never touched, and what they say about all others ---


def later_items(
    rows_a: TokenRows | None, rows_b: TokenRows | None, a: Mapping[str, F64], b: Mapping[str, F64]
) -> tuple[Item, ...]:
    """Decay of untouched rows, and growth of everything else. a, b: samples as merge.samples makes them.

    An untouched row only shrinks, by the same factor as all others: the model that has less of it was trained longer.
    Of a sibling that is true as well. But what a child adds to its parent is unlike the parent, up to that factor: with
    b in units of the decay, g = <a, a - b> / |a - b|^2 is 0 or less for a parent a of b, 1 or more for a child, and .5
    between equal siblings. Measured: -.5 to .11 from a parent to its child, up to .54 where a light fine-tune undoes
    noise of the last steps; .43 to .61 between siblings, but .08 where one of two light fine-tunes grew more, and -.01
    to .06 where one sibling moved much further than the other. It mistakes these two kinds of siblings for parent and
    child. Only for pairs that
    have more than a random start in common.
    """
    rows = shared_rows(rows_a, rows_b)
    if rows is None or int(rows.untouched.sum()) < MIN_UNTOUCHED:
        return ()
    factor, decay = _decay(rows.a[rows.untouched], rows.b[rows.untouched])
    path = _path(a, b, factor) if factor is not None else None
    if path is None:
        return (decay,) if decay else ()
    if BETWEEN[0] < path < BETWEEN[1] or not PLAUSIBLE[0] <= path <= PLAUSIBLE[1]:
        return ()
    older, g = ("A", path) if path < 0.5 else ("B", 1 - path)
    why = Reason.of(Code.PATH, older=older, g=g)
    return (*((decay,) if decay else ()), Item("path", -PATH if older == "A" else PATH, why))


def _decay(x: F64, y: F64) -> tuple[float | None, Item | None]:
    """Factor from untouched rows of A to those of B (None if it is not one), and what it says. x, y: (n, c)."""
    ratio = (x * y).sum(axis=1) / (x * x).sum(axis=1)
    middle = float(np.median(ratio))
    spread = float(np.median(np.abs(ratio / middle - 1.0))) * 1.4826 if middle > 0 else math.inf
    in_bf16 = not ((x.astype(np.float32).view(np.uint32) | y.astype(np.float32).view(np.uint32)) & 0xFFFF).any()
    if spread > (ROUNDED_SPREAD if in_bf16 else SPREAD):
        return None, None
    if abs(middle - 1.0) < 10 * max(spread, 1e-7) / math.sqrt(ratio.size):
        return middle, None
    later, factor = ("B", middle) if middle < 1 else ("A", 1 / middle)
    why = Reason.of(Code.ROWS_DECAYED, n=int(ratio.size), factor=factor, side=later)
    return middle, Item("untouched_rows", -DECAY if later == "B" else DECAY, why)


def _path(a: Mapping[str, F64], b: Mapping[str, F64], factor: float) -> float | None:
    """g of `later_items`, over all matrices, each counted alike; None where chance would move it by a tenth or more."""
    along, apart, count, matrices = 0.0, 0.0, 0, 0
    for key in sorted(a.keys() & b.keys()):
        x, y = a[key], b[key] / factor if factor > 0 else b[key]
        if x.size == y.size and (size := float(x @ x)) > 0:
            along += float(x @ (x - y)) / size
            apart += float((x - y) @ (x - y)) / size
            count, matrices = count + x.size, matrices + 1
    if matrices < MIN_MATRICES or apart <= 0 or math.sqrt(matrices / (apart * count)) > PATH_ERROR:
        return None
    return along / apart


# --- D3: a third relative ---


def witness(a: Mapping[str, F64], b: Mapping[str, F64], others: Sequence[Mapping[str, F64]]) -> Item | None:
    """Which of A and B do other relatives branch from? Samples as merge.samples makes them.

    If W branches from A, W - A and B - A are unlike each other, while W - B and A - B have A's branch in common. None
    where no witness stands on the path from A to B, or two of them stand at different ends. It never decides alone,
    however many they are: for B -> A -> W, a model that has been fine-tuned and its own children, the answer is wrong.
    """
    votes = [vote for w in others if (vote := _vote(a, b, w)) is not None]
    if len(set(votes)) != 1:
        return None
    why = Reason.of(Code.WITNESSES, n=len(votes), side="A" if votes[0] < 0 else "B")
    return Item("witness", WITNESS * votes[0], why)


def _vote(a: Mapping[str, F64], b: Mapping[str, F64], w: Mapping[str, F64]) -> int | None:
    """-1 if W branches from A, 1 if from B, None if that cannot be said."""
    keys = [k for k in sorted(a) if k in b and k in w and a[k].size == b[k].size == w[k].size]
    if len(keys) < MIN_MATRICES:
        return None
    at_a = _median_cosine([(b[k] - a[k], w[k] - a[k]) for k in keys])
    at_b = _median_cosine([(a[k] - b[k], w[k] - b[k]) for k in keys])
    if at_a is None or at_b is None:
        return None
    if abs(at_a) <= ON_PATH and at_b >= OFF_PATH:
        return -1
    return 1 if abs(at_b) <= ON_PATH and at_a >= OFF_PATH else None


def _median_cosine(pairs: Sequence[tuple[F64, F64]]) -> float | None:
    found = []
    for x, y in pairs:
        product = float(np.sqrt((x @ x) * (y @ y)))
        if product > 0:
            found.append(float(x @ y) / product)
    return float(np.median(found)) if len(found) >= MIN_MATRICES else None
