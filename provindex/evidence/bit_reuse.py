"""E0: blocks of weights that are equal, as they are or after rounding to bf16 or f16.

Tables that a program computes (rotary angles, sinusoids, indices) are equal in models that have nothing to do with each
other, and so is a frozen vision tower. Where names tell what a matrix is these are left out. A matrix without a known
role counts only where that is all there is: if both models have named matrices in their text towers, what is equal
elsewhere is named and decides nothing. And it never counts if it is ordered along its rows, as computed tables are, or
holds whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Panel, Row, Test, array
from provindex.evidence.pairing import Pairing
from provindex.evidence.panels import BLOCK, MIN_DISTINCT, SAMPLE, BlockDigests, stack_blocks
from provindex.evidence.panels import UNNAMED as UNKNOWN
from provindex.roles import canonical
from provindex.roles.architectures import ADAPTERS
from provindex.roles.canonical import F32
from provindex.roles.computed import LEAST_VALUES, is_ordered
from provindex.roles.names import Part, Placement, part_shape
from provindex.roles.weights import Weights

NAMED = 2  # matrices with a role from which a text tower is known
LOG10_COLLISION = -19.0  # two different blocks with one 64-bit digest: 2^-64


def bit_reuse(
    a: BlockDigests | None,
    b: BlockDigests | None,
    stacks: frozenset[str] | None = None,
    common: frozenset[int] = frozenset(),
) -> tuple[Outcome, str | None]:
    """E0: share of the smaller model's blocks that the other one has too, bit for bit or after rounding.

    stacks: which stacks count, all if None; matrices of unknown role do where `counts_unknown` says so. common: digests
    that unrelated families share, which say nothing. Returns the outcome and at which precision the most blocks agree
    ("exact", "bf16" or "f16"; None when none do). Blocks count wherever they stand in either model. The p-value is
    10^-19 for each, as the design prescribes, from at least two matrices; the n^2 ways of meeting would cost a few
    powers of ten of it.
    """
    if a is None or b is None:
        return absent(Reason.of(Code.SIDE_WITHOUT_MATRIX)), None
    if stacks is not None and counts_unknown(a, b, stacks):
        stacks = stacks | {UNKNOWN}
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
        return absent(Reason.of(Code.SIDE_WITHOUT_BLOCK, needed=MIN_DISTINCT)), None
    count, tensors, precision = best
    log10_p = min(0.0, count * LOG10_COLLISION + math.log10(3)) if tensors >= 2 else 0.0
    return Outcome(count / n, n, log10_p, 0.0), precision if count else None


def counts_unknown(a: BlockDigests, b: BlockDigests, stacks: frozenset[str]) -> bool:
    """Whether matrices without a known role decide: unless both models have some with a role in these stacks."""
    return not all(sum(key.split(".", 1)[0] in stacks for key in blocks.keys) >= NAMED for blocks in (a, b))


def elsewhere(a: BlockDigests | None, b: BlockDigests | None, stacks: frozenset[str]) -> Outcome | None:
    """E0 of matrices without a known role, where these do not decide; None where they do, or there are none."""
    if a is None or b is None or counts_unknown(a, b, stacks):
        return None
    return bit_reuse(a, b, frozenset({UNKNOWN}))[0]


def is_computed(values: NDArray[np.float16] | F32, scale: float) -> bool:
    """Whether the beginning of a matrix is ordered along its rows, or consists of whole numbers."""
    row = values.astype(np.float64)
    if row.size < LEAST_VALUES:
        return False
    if np.array_equal(row * scale, np.rint(row * scale)):
        return True
    return is_ordered(row)


def _owners(
    blocks: BlockDigests, precision: str, stacks: frozenset[str] | None, common: frozenset[int]
) -> dict[int, int]:
    """Digest -> number of the tensor it was first seen in."""
    numbers = [i for i in _counting(blocks.keys, stacks) if not _left_out(blocks, i)]
    digests = getattr(blocks, precision)[list(numbers)].ravel().tolist()
    owners = dict(zip(reversed(digests), reversed([i for i in numbers for _ in range(2)]), strict=True))
    for silent in (0, *common):
        owners.pop(silent, None)
    return owners


@lru_cache(maxsize=64)
def _counting(keys: tuple[str, ...], stacks: frozenset[str] | None) -> tuple[int, ...]:
    """Which matrices are of stacks that count."""
    firsts = (key.split(".", 1)[0] for key in keys)
    return tuple(i for i, first in enumerate(firsts) if stacks is None or first in stacks)


def _left_out(blocks: BlockDigests, number: int) -> bool:
    if not blocks.keys[number].startswith(f"{UNKNOWN}."):
        return False
    return is_computed(blocks.samples[number, : blocks.counts[number]], float(blocks.scales[number]))


# --- from a model's weights, and the table row ---

MAX_UNKNOWN = 4096  # matrices with names that no table knows, of which blocks are digested


def of_weights(w: Weights) -> BlockDigests | None:
    """Digests of two blocks of every matrix with a role, and of matrices whose names no table knows.

    No role is needed to see that a matrix is somebody else's.
    """
    entries: dict[str, tuple[F32, F32]] = {}
    changes = tuple(p.name for p in w.places if p.reason in ADAPTERS.values())
    unknown = {n for n in (*w.layout.unknown, *changes)[:MAX_UNKNOWN] if len(w.tensors[n].shape) == 2}
    for place in w.places:
        fixed = w.layout.archs[place.stack].fixed_positions if place.stack in w.layout.archs else False
        shape = w.tensors[place.name].shape
        for part in place.parts:
            matrix = len(part_shape(part, shape)) == 2
            key = str(canonical.key_of(part))
            if matrix and key not in entries and w.kept(part) and not (fixed and part.role == "pos"):
                entries[key] = two_blocks(w, place, part)
        if place.name in unknown:
            entries[f"{UNKNOWN}.{place.canonical}"] = two_blocks(w, place, Part(UNKNOWN))
    made = stack_blocks(sorted(entries.items()))
    if made is None:
        w.absences["blocks"] = Reason.of(Code.NO_MATRIX)
    return made


def two_blocks(w: Weights, place: Placement, part: Part) -> tuple[F32, F32]:
    """The elements at the first row of a matrix, and at its middle row; (16,384,) float32 each, or fewer."""
    rows, cols = w.shape(place, part)
    need = -(-BLOCK // cols)
    first = w.rows(place, part, 0, need).reshape(-1)[:BLOCK]
    second = w.rows(place, part, rows // 2, rows // 2 + need).reshape(-1)[:BLOCK]
    return first, second


def _to_row(b: BlockDigests) -> Row:
    return {
        "block_keys": b.keys, "block_exact": b.exact, "block_bf16": b.bf16, "block_f16": b.f16,
        "block_samples": b.samples, "block_scales": b.scales, "block_counts": b.counts,
    }  # fmt: skip


def _of_row(row: Mapping[str, Any]) -> BlockDigests | None:
    if not row["block_keys"]:
        return None
    count = len(row["block_keys"])
    scales, counts = row["block_scales"], row["block_counts"]
    if scales.size != count or counts.size != count or not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError("block scales that are missing, not finite or not positive")
    if not all("." in key for key in row["block_keys"]):
        raise ValueError("a block without an address")
    if ((counts < 0) | (counts > SAMPLE)).any():
        raise ValueError(f"blocks of more than {SAMPLE} samples")
    return BlockDigests(
        keys=tuple(row["block_keys"]),
        exact=row["block_exact"].reshape(count, 2),
        bf16=row["block_bf16"].reshape(count, 2),
        f16=row["block_f16"].reshape(count, 2),
        samples=row["block_samples"].reshape(count, SAMPLE),
        scales=row["block_scales"],
        counts=row["block_counts"],
    )


def _run(pair: Pairing) -> Outcome:
    reuse, _ = bit_reuse(pair.a.blocks, pair.b.blocks, pair.stacks, pair.common_blocks)
    return whole(reuse) if pair.same_content else reuse


def whole(reuse: Outcome) -> Outcome:
    """E0 for models whose canonical weights have one hash: all is reused, whether or not blocks could be told."""
    n = reuse.n or 1
    return Outcome(1.0, n, min(reuse.log10_p or 0.0, LOG10_SHA256), 0.0)


LOG10_SHA256 = -77.0  # two different models with one hash of their weights: 2^-256
MOST = 1 << 16  # matrices of a model
PANEL = Panel(
    "blocks",
    (
        array("block_keys", "string", "blocks: canonical addresses of the matrices", MOST),
        array("block_exact", "uint64", "blocks: two digests a matrix", 2 * MOST),
        array("block_bf16", "uint64", "blocks: the same after rounding to bfloat16", 2 * MOST),
        array("block_f16", "uint64", "blocks: the same after rounding to float16", 2 * MOST),
        array("block_samples", "float16", "blocks: first 256 values of each, divided by its scale", MOST * SAMPLE),
        array("block_scales", "float32", "blocks: powers of two", MOST),
        array("block_counts", "int32", "blocks: how many of the 256 values are in use", MOST),
    ),
    to_row=_to_row,
    from_row=_of_row,
    extract=of_weights,
)
TEST = Test("bit_reuse", _run, "exact", "blocks", (PANEL,))
