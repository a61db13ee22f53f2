"""What a comparison of one signal returns, and the chance level that it is read against."""

from __future__ import annotations

from dataclasses import dataclass

from provindex.common.reasons import Reason


@dataclass(frozen=True, slots=True)
class Chance:
    """What pairs of models known to be unrelated score under one statistic.

    median, p99, p999: quantiles of the null, None where there are too few pairs for them. n: how many pairs.
    stratum: which pairs ("same tokenizer, same shape, gated", or "pooled"), "" without a calibration. reason: why p999
    is None, or None.
    """

    median: float | None
    p999: float | None
    n: int
    stratum: str
    reason: Reason | None = None
    p99: float | None = None

    def exceeded_by(self, value: float) -> bool | None:
        """Whether a value is above all but 1 in 1,000 unrelated pairs; None where that is not known."""
        return None if self.p999 is None else value > self.p999


@dataclass(frozen=True, slots=True)
class Score:
    """Similarity of two models under one signal.

    value: in [0, 1], rounded to 4 decimals as the peer does, or None when it could not be computed.
    n: how many things were compared (layers, tensors, anchors, tokens), None when absent.
    reasons: why value is None; empty when there is a value.
    chance: what unrelated pairs score, from the index's calibration; None without one.
    """

    value: float | None
    n: int | None = None
    reasons: tuple[Reason, ...] = ()
    chance: Chance | None = None

    @classmethod
    def absent(cls, *reasons: Reason) -> Score:
        """No value, and why: of either model, if that tells."""
        return cls(None, None, reasons)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of one pair.

    value: the effect, in [-1, 1]; n: how many things were compared; log10_p: at most 0; chance: the value that
    unrelated models take on average. Absent tests have only reasons. smallest: about the smallest cosine between
    matched hidden units (residual coordinates) that this test would have called linked, where that can be said. null:
    of a conformal test, the scores of unrelated pairs that its value was ranked among; conformal: log10 of that rank.
    """

    value: float | None = None
    n: int | None = None
    log10_p: float | None = None
    chance: float | None = None
    reasons: tuple[Reason, ...] = ()
    smallest: float | None = None
    null: Chance | None = None
    conformal: float | None = None


def absent(*reasons: Reason) -> Outcome:
    """A test that could not run, and why."""
    return Outcome(reasons=reasons)
