"""From a model's tensors to all neurons of a few layers (`evidence/whole_layers.py`).

The down columns of a block of neurons are held, and of a few of them at a time the gate and up rows. Down is read once
for each block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from provindex.evidence import whole_layers
from provindex.evidence.sketch import LayerKey
from provindex.evidence.whole_layers import WholeLayers, invariants, packed
from provindex.roles.canonical import F32, F64, fold, fold_writer
from provindex.roles.names import Arch
from provindex.roles.weights import Found, Weights

BLOCK = 1 << 22  # elements of down that are held: 16 MB of float32
AT_ONCE = 1 << 18  # of each part that are worked on: 2 MB of float64
ROLES = ("gate", "up", "down")
STEP = 1 << 18  # elements read at a time


@dataclass(frozen=True)
class WholeLayer:
    """All neurons of a layer: signs (n, P) at either naming, None where there are no anchors; numbers (n, 5 or 3)."""

    by_string: np.ndarray | None
    by_id: np.ndarray | None
    numbers: np.ndarray


def whole_layer(
    w: Weights, anchors: tuple[F64 | None, F64 | None], key: LayerKey, roles: Mapping[str, Found]
) -> WholeLayer | None:
    """One layer; None if it has no MLP with up and down of one width, or one that is not finite or too wide.

    anchors: (64, d) of either naming. roles: its parts; experts count as one MLP.
    """
    arch = w.layout.archs[key[0]]
    parts = [role for role in ROLES if role in roles]
    counts = {role: [w.shape(place, part)[role == "down"] for place, part in roles[role]] for role in parts}
    if parts[-2:] != ["up", "down"] or len({tuple(c) for c in counts.values()}) > 1:
        return None
    if not 0 < sum(counts["up"]) <= whole_layers.MAX_HEIGHT or not all(_fits(w, arch, r, roles[r]) for r in parts):
        return None
    gains = {role: w.gain(role, *key) for role in parts}
    signs: list[list[np.ndarray]] = [[], []]
    numbers = []
    for block in _blocks(w, arch, roles, parts):
        folded = [
            fold_writer(block[r].T, arch, gains[r]).T if r == "down" else fold(block[r], arch, gains[r]) for r in parts
        ]
        for found, own in zip(signs, anchors, strict=True):
            if own is not None:
                found.append(packed(np.stack([part @ own.T for part in folded], axis=1)))
        squares = np.stack([np.einsum("ij,ij->i", part, part) for part in folded], axis=1)
        if len(parts) == 2 and arch.activation.startswith("relu"):  # paired rescaling leaves the product alone
            folded = [x * scale[:, None] for x, scale in zip(folded, _balancing(squares), strict=True)]
            squares = np.sqrt(squares.prod(axis=1, keepdims=True)) * np.ones((1, 2))
        pairs = [(folded[i], folded[j]) for i in range(len(folded)) for j in range(i + 1, len(folded))]
        numbers.append(invariants(squares, np.stack([np.einsum("ij,ij->i", x, y) for x, y in pairs], axis=1)))
    by_string, by_id = (np.concatenate(found) if found else None for found in signs)
    return WholeLayer(by_string, by_id, np.concatenate(numbers))


def _balancing(squares: F64) -> tuple[F64, F64]:
    """Factors that make up and down of each neuron equally long, (n,) each, and leave their product; 1 for zeros."""
    whole = (squares > 0).all(axis=1)
    ratio = np.where(whole, squares[:, 1], 1.0) / np.where(whole, squares[:, 0], 1.0)
    return ratio**0.25, ratio**-0.25


def _fits(w: Weights, arch: Arch, role: str, found: Found) -> bool:
    return all(w.shape(place, part)[role != "down"] == arch.hidden for place, part in found)


def _blocks(w: Weights, arch: Arch, roles: Mapping[str, Found], parts: list[str]) -> Iterator[dict[str, F32]]:
    """A few neurons at a time, in order: (b, d) float32 by role."""
    for expert, (place, part) in enumerate(roles["down"]):
        d, n = w.shape(place, part)
        size = max(1, BLOCK // d)
        for first in range(0, n, size):
            stop = min(first + size, n)
            columns = np.empty((stop - first, d), np.float32)
            step = max(1, STEP // n)
            for start in range(0, d, step):
                piece = w.rows(place, part, start, start + step)
                columns[:, start : start + len(piece)] = piece[:, first:stop].T
            few = max(1, AT_ONCE // d)
            for start in range(first, stop, few):
                end = min(start + few, stop)
                readers = {role: w.rows(*roles[role][expert], start, end) for role in parts[:-1]}
                yield {**readers, "down": columns[start - first : end - first]}


def panel(made: Mapping[LayerKey, WholeLayer]) -> WholeLayers | None:
    """The panel of a model's layers; only those of the kind that the most parts have."""
    widest = max((layer.numbers.shape[1] for layer in made.values()), default=0)
    keys = sorted(key for key, layer in made.items() if layer.numbers.shape[1] == widest)
    while sum(len(made[key].numbers) for key in keys) > whole_layers.MOST:
        keys.pop()
    if not keys:
        return None
    layers = [made[key] for key in keys]
    by_string, by_id = (
        None if any(part is None for part in column) else np.concatenate(column)
        for column in zip(*((layer.by_string, layer.by_id) for layer in layers), strict=True)
    )
    heights = np.array([len(layer.numbers) for layer in layers], np.int32)
    return WholeLayers(tuple(keys), heights, by_string, by_id, np.concatenate([layer.numbers for layer in layers]))
