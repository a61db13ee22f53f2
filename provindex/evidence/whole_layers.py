"""All neurons of a few layers, where nobody chose which: their signs in anchor coordinates, and their invariants.

E3 keeps the strongest neurons of every layer, which an attacker can outnumber. Here every neuron of two layers is kept,
in two ways. *Signs*: of its gate row, up row and down column in 64 anchor coordinates, 8 bytes a part. *Invariants*:
numbers that no rotation, order or paired rescaling changes, and that need no token: with g, u the folded gate and up
rows and d the down column they are log |g|, log |u||d|, |cos(g, u)|, cos(u, d) and sign(cos(g, u)) cos(g, d).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Reason
from provindex.common.tables import Panel, Row, array, number, some
from provindex.evidence.aligned import NO_NEURONS, OTHER_KIND
from provindex.evidence.pairing import Pairing
from provindex.evidence.sketch import ANCHORS_KEPT, LAYER, BranchSketches, LayerKey, layer_keys, similarities

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]

WHOLE = 4_096  # neurons of a model of which every layer is kept
MOST = 1 << 18  # neurons that are kept of a model
MAX_HEIGHT = 1 << 16  # of a layer, its experts together: twice the widest
MAX_LAYERS = 1 << 13
EVERY, MOST_PAIRS = 4, 256  # times as many layers as the other model: then all pairs are compared, if they are no more
ALIKE = 4 / LAYER**0.5  # inner product of sketches: four times the noise of their projection
OTHERS = 2  # layers of each model that do not correspond, to compare with
NUMBERS = {3: 5, 2: 3}  # invariants of a neuron, by its parts


@dataclass(frozen=True)
class WholeLayers:
    """Every neuron of some layers.

    keys: (stack, layer). heights: (T,) int32, neurons of each. by_string, by_id: (N, P) uint64, a bit for each of 64
    anchor coordinates that is positive, of gate, up and down (P = 3) or of up and down (P = 2), in the coordinates of
    the anchors found by their string and of those at fixed token ids; None where the model has no such anchors.
    numbers: (N, 5) float16 invariants (P = 3), or (N, 3): log |u|, log |d|, cos(u, d) (P = 2); NaN where a part is
    zero.
    """

    keys: tuple[LayerKey, ...]
    heights: NDArray[np.int32]
    by_string: U64 | None
    by_id: U64 | None
    numbers: NDArray[np.float16]
    seen: dict[object, object] = field(default_factory=dict, compare=False, repr=False)  # what was made of layers

    @property
    def parts(self) -> int:
        """3 for MLPs with a gate, 2 without."""
        return 3 if self.numbers.shape[1] == NUMBERS[3] else 2

    @cached_property
    def places(self) -> dict[LayerKey, slice]:
        """Where each layer's neurons lie."""
        stops = np.cumsum(self.heights).tolist()
        return {k: slice(start, stop) for k, start, stop in zip(self.keys, [0, *stops[:-1]], stops, strict=True)}


def picked(n: int, most: int) -> NDArray[np.int64]:
    """At most so many of n neurons, evenly spaced."""
    return np.arange(min(n, most), dtype=np.int64) * n // max(min(n, most), 1)


def sides_of(pair: Pairing) -> tuple[WholeLayers, WholeLayers] | Reason:
    """The panels of both models; or why they cannot be compared."""
    a, b = pair.a.value(PANEL.name), pair.b.value(PANEL.name)
    if a is None or b is None:
        return NO_NEURONS
    return (a, b) if a.parts == b.parts else OTHER_KIND


def layer_pairs(pair: Pairing) -> list[tuple[LayerKey, LayerKey]]:
    """Which layers to compare: those of one number, those of one place among the kept, and the nearest by sketch; all,
    where every layer of one model is at hand, and few of the other.

    Stacks are paired by name; where no name is common (an encoder and a decoder) the first of each.
    """
    a, b = pair.a.value(PANEL.name), pair.b.value(PANEL.name)
    common = {s for s, _ in a.keys} & {s for s, _ in b.keys}
    stacks = [(s, s) for s in sorted(common)] or [(min(a.keys)[0], min(b.keys)[0])]
    found: dict[tuple[LayerKey, LayerKey], None] = {}
    for ours, theirs in stacks:
        x, y = ([k for k in p.keys if k[0] == stack] for p, stack in ((a, ours), (b, theirs)))
        few, many = sorted((x, y), key=len)
        ordinal = [(few[i], many[(2 * i + 1) * len(many) // (2 * len(few))]) for i in range(len(few))]
        same = [(key, (theirs, key[1])) for key in x if (theirs, key[1]) in b.places]
        found |= dict.fromkeys(same + [(i, j) if few is x else (j, i) for i, j in ordinal])
        found |= dict.fromkeys(_nearest(x, y, pair.namings.values()))
        if EVERY * len(few) <= len(many) and len(few) * len(many) <= MOST_PAIRS:
            found |= dict.fromkeys(itertools.product(x, y))
    return list(found)


def elsewhere_pairs(a: WholeLayers, b: WholeLayers, x: LayerKey, y: LayerKey) -> list[tuple[LayerKey, LayerKey]]:
    """A few pairs of one of two layers with others of the other model: what those have in common is no descent."""
    ours, theirs = ([key for key in w.keys if key[0] == at[0] and key != at] for w, at in ((a, x), (b, y)))
    chosen = [[keys[i] for i in picked(len(keys), OTHERS).tolist()] for keys in (ours, theirs)]
    return [*((other, y) for other in chosen[0]), *((x, other) for other in chosen[1])]


def _nearest(
    x: list[LayerKey], y: list[LayerKey], sketches: Iterable[tuple[BranchSketches | None, BranchSketches | None]]
) -> list[tuple[LayerKey, LayerKey]]:
    """For each layer of either list the one of the other whose sketch is nearest, if nearer than a stranger is."""
    found = []
    for p, q in sketches:
        if p is None or q is None:
            continue
        ours, theirs = set(x), set(y)
        rows = [i for i, key in enumerate(p.keys) if key in ours]
        columns = [j for j, key in enumerate(q.keys) if key in theirs]
        if rows and columns:
            scores = similarities(p, q)[np.ix_(rows, columns)]
            best = {(i, int(j)) for i, j in enumerate(scores.argmax(axis=1))}
            best |= {(int(i), j) for j, i in enumerate(scores.argmax(axis=0))}
            found += [(p.keys[rows[i]], q.keys[columns[j]]) for i, j in sorted(best) if scores[i, j] >= ALIKE]
    return found


def packed(coordinates: F64) -> U64:
    """(n, P, 64) coordinates as (n, P) words: a bit for each that is positive, the first coordinate lowest."""
    bits = np.packbits(coordinates > 0, axis=-1, bitorder="little")
    return np.ascontiguousarray(bits).view("<u8").reshape(coordinates.shape[:-1]).astype(np.uint64)


def invariants(squares: F64, products: F64) -> NDArray[np.float16]:
    """The numbers of neurons from inner products of their folded parts.

    squares: (n, P) squared lengths of gate, up, down. products: (n, 3): gate with up, gate with down, up with down; of
    two parts (n, 1): up with down. Neurons of which a part is zero or not finite get NaNs.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.sqrt(squares)
        if squares.shape[1] == 2:
            up, down = lengths.T
            columns = [np.log(up), np.log(down), products[:, 0] / (up * down)]
        else:
            gate, up, down = lengths.T
            gu, gd, ud = products[:, 0] / (gate * up), products[:, 1] / (gate * down), products[:, 2] / (up * down)
            columns = [np.log(gate), np.log(up) + np.log(down), np.abs(gu), ud, np.sign(gu) * gd]
        found = np.stack(columns, axis=1)
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found.astype(np.float16)


# --- the table row ---


def _to_row(w: WholeLayers) -> Row:
    return {
        "whole_keys": [f"{stack}/{layer}" for stack, layer in w.keys], "whole_heights": w.heights,
        "whole_parts": w.parts, "whole_signs": w.by_string, "whole_signs_by_id": w.by_id, "whole_numbers": w.numbers,
    }  # fmt: skip


def _of_row(row: Mapping[str, Any]) -> WholeLayers | None:
    keys, heights, parts = layer_keys(row["whole_keys"]), row["whole_heights"], row["whole_parts"]
    if not keys:
        return None
    if parts not in NUMBERS or len(keys) != heights.size or (heights < 1).any() or (heights > MAX_HEIGHT).any():
        raise ValueError("whole layers whose counts do not fit together")
    n = int(heights.astype(np.int64).sum())
    by_string, by_id = (
        None if (words := some(row[name])) is None else words.reshape(n, parts)
        for name in ("whole_signs", "whole_signs_by_id")
    )
    return WholeLayers(keys, heights, by_string, by_id, row["whole_numbers"].reshape(n, NUMBERS[parts]))


PANEL = Panel(
    "whole_layers",
    (
        array("whole_keys", "string", "all neurons of some layers: stack/layer", MAX_LAYERS),
        array("whole_heights", "int32", "whole layers: neurons of each", MAX_LAYERS),
        number("whole_parts", "whole layers: 3 with a gate, 2 without"),
        array("whole_signs", "uint64", "whole layers: signs of gate, up, down in 64 anchor coordinates", 3 * MOST),
        array("whole_signs_by_id", "uint64", "the same at fixed token ids", 3 * MOST),
        array("whole_numbers", "float16", "whole layers: the invariants of each neuron", 5 * MOST),
    ),
    to_row=_to_row,
    from_row=_of_row,
    extract=lambda w: w.made.get("whole_layers"),
)
assert ANCHORS_KEPT == 64  # the bits of a word
