"""What a comparison of one signal returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """Similarity of two models under one signal.

    value: in [0, 1], rounded to 4 decimals as the peer does, or None when it could not be computed.
    n: how many things were compared (layers, tensors, anchors, tokens), None when absent.
    reason: why value is None; None when there is a value.
    """

    value: float | None
    n: int | None = None
    reason: str | None = None

    @classmethod
    def absent(cls, reason: str) -> Score:
        return cls(None, None, reason)
