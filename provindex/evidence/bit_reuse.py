"""E0: blocks of weights that are equal, as they are or after rounding to bf16 or f16."""

from __future__ import annotations

import math
from functools import lru_cache

from provindex.common.score import Outcome, absent
from provindex.evidence.panels import BlockDigests

LOG10_COLLISION = -19.0  # two different blocks with one 64-bit digest: 2^-64


def bit_reuse(
    a: BlockDigests | None,
    b: BlockDigests | None,
    stacks: frozenset[str] | None = None,
    common: frozenset[int] = frozenset(),
) -> tuple[Outcome, str | None]:
    """E0: share of the smaller model's blocks that the other one has too, bit for bit or after rounding.

    stacks: which stacks count, all if None; matrices of unknown role always do. common: digests that unrelated families
    share, which say nothing. Returns the outcome and at which precision the most blocks agree ("exact", "bf16" or
    "f16"; None when none do). Blocks count wherever they stand in either model. The p-value is 10^-19 for each, as the
    design prescribes, from at least two matrices; the n^2 ways of meeting would cost a few powers of ten of it.
    """
    if a is None or b is None:
        return absent("no weight matrix in one of the models"), None
    best: tuple[int, int, str] = (0, 0, "exact")
    n = 0
    for precision in ("exact", "bf16", "f16"):
        left, right = _owners(a, precision, stacks, common), _owners(b, precision, stacks, common)
        shared = left.keys() & right.keys()
        n = max(n, min(len(left), len(right)))
        tensors = min(len({left[d] for d in shared}), len({right[d] for d in shared}))
        if len(shared) > best[0]:
            best = (len(shared), tensors, precision)
    if n == 0:
        return absent("no block with at least 64 distinct values in one of the models"), None
    count, tensors, precision = best
    log10_p = min(0.0, count * LOG10_COLLISION + math.log10(3)) if tensors >= 2 else 0.0
    return Outcome(count / n, n, log10_p, 0.0), precision if count else None


def _owners(
    blocks: BlockDigests, precision: str, stacks: frozenset[str] | None, common: frozenset[int]
) -> dict[int, int]:
    """Digest -> number of the tensor it was first seen in."""
    numbers = _counting(blocks.keys, stacks)
    digests = getattr(blocks, precision)[list(numbers)].ravel().tolist()
    owners = dict(zip(reversed(digests), reversed([i for i in numbers for _ in range(2)]), strict=True))
    for silent in (0, *common):
        owners.pop(silent, None)
    return owners


@lru_cache(maxsize=64)
def _counting(keys: tuple[str, ...], stacks: frozenset[str] | None) -> tuple[int, ...]:
    """Which matrices are of stacks that count, or of none that is known."""
    firsts = (key.split(".", 1)[0] for key in keys)
    return tuple(i for i, first in enumerate(firsts) if stacks is None or first in stacks or first == "unknown")
