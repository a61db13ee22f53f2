"""Effect sizes of a pair.

How much is equal, how much moved, and on what grid. They name a relation; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.grids import Grid, Residual, as_rounded, grid_of, residual, together
from provindex.evidence.panels import BlockDigests

F64 = NDArray[np.float64]
MAX_PROBED = 48  # matrices whose samples are searched for a grid, evenly spread
ON_GRID = 0.9  # share of them on a grid, from which on a model counts as quantized


@dataclass(frozen=True, slots=True)
class Effects:
    """What the matched matrices of two models have in common.

    matrices: layer matrices compared. equal, rounded: shares of them whose blocks are equal bit for bit, and after
    rounding to bf16 or f16. cosine: median cosine of their samples. roles: the same for every role (q, up ...);
    worst: where it is smallest. near: share of sampled values that are equal but for the roundings of half precisions.
    held_a, held_b: the narrowest of "bf16", "f16", "f32" that nine in ten matrices need; "" if they differ. grid_a,
    grid_b: shares (of at most 48 of them) whose samples lie on a quantization grid. half_step: where the other's values
    lie around the grids of `around` ("A" or "B"): the only one on grids, or of two the one that was made by rounding
    the other; None and "" where there is no such one. embedding_equal: the embedding's blocks are equal; None when one
    model has none.
    """

    matrices: int = 0
    equal: float = 0.0
    rounded: float = 0.0
    cosine: float = 0.0
    worst: float = 0.0
    roles: Mapping[str, float] = field(default_factory=dict)
    near: float = 0.0
    held_a: str = ""
    held_b: str = ""
    grid_a: float = 0.0
    grid_b: float = 0.0
    half_step: Residual | None = None
    around: str = ""
    embedding_equal: bool | None = None


def effects(a: BlockDigests | None, b: BlockDigests | None, layers: Sequence[tuple[str, int, int]]) -> Effects:
    """Effect sizes over the matrices that stand at corresponding places.

    layers: (stack, layer of A, layer of B); a layer may stand in several.
    """
    if a is None or b is None:
        return Effects()
    there = {key: j for j, key in enumerate(b.keys)}
    to: dict[tuple[str, str], list[int]] = {}
    for stack, ours, theirs in layers:
        to.setdefault((stack, str(ours)), []).append(theirs)
    matched = [(i, there[k]) for i, key in enumerate(a.keys) for k in _translated(key, to) if k in there]
    if not matched:
        return Effects(embedding_equal=_embedding_equal(a, b))
    rows = np.array(matched)
    equal = _same(a.exact, b.exact, rows)
    rounded = equal | _same(a.bf16, b.bf16, rows) | _same(a.f16, b.f16, rows)
    found = [(a.keys[i], s) for i, j in matched if (s := _samples(a, b, i, j)) is not None]
    cosines = [_cosine(x, y) for _, (x, y) in found]
    by_role: dict[str, list[float]] = {}
    for (key, _), cosine in zip(found, cosines, strict=True):
        by_role.setdefault(key.rsplit(".", 2)[-2], []).append(cosine)
    roles = {role: float(np.median(c)) for role, c in by_role.items()}
    spread = sorted(found, key=lambda f: f[0].split(".")[2:])  # by role, so that a stride takes from every role
    probed = [s for _, s in spread[:: -(-len(spread) // MAX_PROBED) or 1]]
    grid_a, grid_b, half_step, around = _on_grids(probed)
    near = [as_rounded(x, y) for _, (x, y) in found]
    return Effects(
        matrices=len(matched),
        equal=float(equal.mean()),
        rounded=float(rounded.mean()),
        cosine=float(np.median(cosines)) if cosines else 0.0,
        worst=min(roles.values(), default=0.0),
        roles=roles,
        near=float(np.concatenate(near).mean()) if near else 0.0,
        held_a=_held(a, rows[:, 0]),
        held_b=_held(b, rows[:, 1]),
        grid_a=grid_a,
        grid_b=grid_b,
        half_step=half_step,
        around=around,
        embedding_equal=_embedding_equal(a, b),
    )


def _translated(key: str, to: Mapping[tuple[str, str], Sequence[int]]) -> list[str]:
    """The addresses in B of a layer matrix of A: "decoder.3.q.weight" -> "decoder.5.q.weight"."""
    stack, layer, *rest = key.split(".")
    return [".".join([stack, str(at), *rest]) for at in to.get((stack, layer), ())]


def _same(a: NDArray[np.uint64], b: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    left, right = a[rows[:, 0]], b[rows[:, 1]]
    return np.asarray(((left == right) & (left != 0)).all(axis=1))


def _held(d: BlockDigests, rows: NDArray[np.int64]) -> str:
    """The narrowest precision of a model's matrices: rounding to it leaves their digests as they are."""
    known = rows[(d.exact[rows] != 0).all(axis=1)]
    bf16, f16 = ((d.exact[known] == other[known]).all(axis=1) for other in (d.bf16, d.f16))
    kinds = {"bf16": bf16, "f16": f16, "f32": ~(bf16 | f16)}
    return next((name for name, those in kinds.items() if known.size and those.mean() >= ON_GRID), "")


def _embedding_equal(a: BlockDigests, b: BlockDigests) -> bool | None:
    places = [[i for i, key in enumerate(d.keys) if key.endswith(".embed.weight")] for d in (a, b)]
    if not all(places):
        return None
    return bool(_same(a.exact, b.exact, np.array([[places[0][0], places[1][0]]])).all())


def _samples(a: BlockDigests, b: BlockDigests, i: int, j: int) -> tuple[F64, F64] | None:
    count = int(min(a.counts[i], b.counts[j]))
    if count < 32:
        return None
    return (
        a.samples[i, :count].astype(np.float64) * float(a.scales[i]),
        b.samples[j, :count].astype(np.float64) * float(b.scales[j]),
    )


def _cosine(x: F64, y: F64) -> float:
    product = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / product if product > 0 else 0.0


def _on_grids(pairs: Sequence[tuple[F64, F64]]) -> tuple[float, float, Residual | None, str]:
    """Shares of both models' matrices that lie on a grid; where one's values lie around the other's grids, and whose.

    Of two models on grids, the one that was quantized from the other has it within half a step, and not the other way.
    """
    grids = _grids([x for x, _ in pairs]), _grids([y for _, y in pairs])
    a, b = (sum(g is not None for g in found) / max(len(pairs), 1) for found in grids)
    sides = [(name, side) for side, (name, share) in enumerate((("A", a), ("B", b))) if share >= ON_GRID]
    around = [
        (together([residual(g, pair[1 - side]) for g, pair in zip(grids[side], pairs, strict=True) if g]), name)
        for name, side in sides
    ]
    told = around if len(around) < 2 else [(found, name) for found, name in around if found.rounded]
    return (a, b, *told[0]) if len(told) == 1 else (a, b, None, "")


def _grids(samples: Sequence[F64]) -> list[Grid | None]:
    """The grid of each matrix; the rest is not looked at once too many have none."""
    found: list[Grid | None] = []
    for values in samples:
        found.append(grid_of(values))
        if found.count(None) > (1 - ON_GRID) * len(samples):
            break
    return found + [None] * (len(samples) - len(found))
