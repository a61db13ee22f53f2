"""Which of several checkpoints is nearest to a model that was made of one of them? A sign test over matrices.

Every matrix of the source is rounded, and its siblings are that and their own change away: the source is the nearer one
in more than half of the matrices, whatever the quantizer (also where it compensates errors or rescales channels, and
where a grid is too coarse for siblings to leave their cells). Matrices count as independent, and alike ones as none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from provindex.evidence.panels import BlockDigests

MIN_SAMPLES = 64
LOG10_NEARER = -6.0


def distances(query: BlockDigests, other: BlockDigests) -> dict[str, float]:
    """Sum of squared differences of the kept values of every layer matrix that both have, by its address."""
    there = {key: j for j, key in enumerate(other.keys)}
    found: dict[str, float] = {}
    for i, key in enumerate(query.keys):
        j = there.get(key)
        count = int(query.counts[i])
        if j is None or count < MIN_SAMPLES or int(other.counts[j]) != count or not key.split(".")[1].isdigit():
            continue
        ours = query.samples[i, :count].astype(np.float64) * float(query.scales[i])
        theirs = other.samples[j, :count].astype(np.float64) * float(other.scales[j])
        found[key] = float(np.square(ours - theirs).sum())
    return found


def wins(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[int, int]:
    """In how many matrices A is nearer than B, and of how many in which they are not equally near."""
    both = [(a[key], b[key]) for key in a if key in b and a[key] != b[key]]
    return sum(x < y for x, y in both), len(both)


def log10_chance(won: int, of: int) -> float:
    """log10 of the probability of winning as often, if every matrix were even odds, from above (Chernoff's bound)."""
    if 2 * won <= of:
        return 0.0
    share = won / of
    entropy = share * math.log10(share) + ((1 - share) * math.log10(1 - share) if won < of else 0.0)
    return -of * (math.log10(2) + entropy)


def nearest(found: Sequence[Mapping[str, float]]) -> list[int]:
    """Places of those that none of the others is nearer than, with a p-value of at most 1e-6 times the comparisons."""
    level = LOG10_NEARER - math.log10(max(len(found) * (len(found) - 1), 1))
    beaten = [any(log10_chance(*wins(other, one)) <= level for other in found if other is not one) for one in found]
    return [i for i, lost in enumerate(beaten) if not lost]
