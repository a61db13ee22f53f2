"""The layer map of a linked pair: which layer of A is which layer of B, each pair significant on its own.

Where order and basis are intact, hidden units show it (E1, `hidden_units.layer_matches`); elsewhere neurons that are
found again in anchor coordinates do (E3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from provindex.evidence.aligned import Agreement, LayerKeys, Naming, NeuronPanels, agreements, namings
from provindex.evidence.exact import LOG10_THRESHOLD
from provindex.evidence.hidden_units import LayerPair
from provindex.evidence.sketch import BranchSketches, similarities

LEAST_SHARE = 0.1  # of the neurons of two layers, to call them the same layer

Matches = Sequence[tuple[LayerPair, float]]


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers a[0] to a[1] of A correspond to layers b[0] to b[1] of B (inclusive), each pair significant on its own."""

    stack: str
    a: tuple[int, int]
    b: tuple[int, int]
    log10_p: float


def neuron_matches(
    a: NeuronPanels | None, b: NeuronPanels | None, sketches: Mapping[str, Naming]
) -> list[tuple[LayerPair, Agreement]]:
    """For each layer of either model the one of the other whose sketch is nearest, if their neurons agree.

    sketches: of A and of B by naming ("by_string", "by_id"). Significant at 1e-6 after paying for all pairs of layers,
    and at least a tenth of the neurons.
    """
    if a is None or b is None or a.parts != b.parts or a.too_tied or b.too_tied:
        return []
    found: dict[LayerPair, Agreement] = {}
    cost = math.log10(max(len(a.keys) * len(b.keys), 1))
    for naming in namings(a, b):
        for made in agreements(a, b, naming, _nearest(*sketches[naming])):
            pair = LayerPair(made.a[0], made.a[1], made.b[1])
            better = pair not in found or made.rows.size > found[pair].rows.size
            if made.share >= LEAST_SHARE and made.log10_p + cost <= LOG10_THRESHOLD and better:
                found[pair] = made
    return sorted(found.items(), key=lambda f: (f[0].stack, f[0].a, f[0].b))


def _nearest(x: BranchSketches | None, y: BranchSketches | None) -> list[LayerKeys]:
    """For each layer of either model, the layer of the same stack of the other whose sketch is nearest."""
    if x is None or y is None:
        return []
    scores = similarities(x, y)
    for i, (stack, _) in enumerate(x.keys):
        scores[i, [j for j, (other, _) in enumerate(y.keys) if other != stack]] = -np.inf
    best = {(i, int(row.argmax())) for i, row in enumerate(scores)}
    best |= {(int(column.argmax()), j) for j, column in enumerate(scores.T)}
    return [(x.keys[i], y.keys[j]) for i, j in sorted(best) if x.keys[i][0] == y.keys[j][0]]


def together(
    exact: Matches, neurons: Sequence[tuple[LayerPair, Agreement]], pairs: int
) -> list[tuple[LayerPair, float]]:
    """Both kinds of matches, each pair of layers once with its smaller p-value. pairs: how many could have been."""
    cost = math.log10(max(pairs, 1))
    best = {pair: min(0.0, found.log10_p + cost) for pair, found in neurons}
    for pair, log10_p in exact:
        best[pair] = min(log10_p, best.get(pair, 0.0))
    return sorted(best.items(), key=lambda m: (m[0].stack, m[0].a, m[0].b))


def ranges(matches: Matches) -> tuple[LayerRange, ...]:
    """Runs of layers that advance together, with the weakest p-value of each run.

    Runs are sought along one offset at a time, so that a layer may be part of several (a model upscaled by repeating
    layers 4 to 11 has both 0-11 and 4-15), and so that (B, A) gives the mirror image of (A, B).
    """
    runs: list[LayerRange] = []
    for pair, log10_p in sorted(matches, key=lambda m: (m[0].stack, m[0].b - m[0].a, m[0].a)):
        last = runs[-1] if runs else None
        if last and last.stack == pair.stack and (last.a[1] + 1, last.b[1] + 1) == (pair.a, pair.b):
            runs[-1] = LayerRange(pair.stack, (last.a[0], pair.a), (last.b[0], pair.b), max(last.log10_p, log10_p))
        else:
            runs.append(LayerRange(pair.stack, (pair.a, pair.a), (pair.b, pair.b), log10_p))
    return tuple(sorted(runs, key=lambda r: (r.stack, r.a, r.b)))
