"""E1 and E1z: hidden units whose best match stands at the same place, by fixed points and by ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Panel, Row, Test, array, number, split
from provindex.evidence.exact import (
    F64,
    LOG10_THRESHOLD,
    MIN_UNITS,
    Places,
    log10_alignment,
    log10_binomial,
    log10_places,
    monotone_matching,
    ranked,
    smallest_cosine,
)
from provindex.evidence.pairing import Pairing
from provindex.evidence.panels import (
    ALONE,
    PROJECTION,
    UNNAMED,
    HiddenPanels,
    PanelKey,
    hidden_panel,
    panel_height,
    repeated,
    stack_panels,
    without_means,
)
from provindex.evidence.unnamed_units import has_inferred, unnamed_units
from provindex.roles import canonical
from provindex.roles.names import Arch, Part, Placement
from provindex.roles.structure import Structure
from provindex.roles.weights import Weights

MAX_LAYERS = 1024  # of one stack; the deepest published models have about 200
NO_PANELS = Reason.of(Code.SIDE_WITHOUT_UNITS)
NO_BLOCKS = Reason.of(Code.NO_COMMON_BLOCK)
Numbers = dict[tuple[str, int], int]  # (kind, expert) -> panel number
Layers = dict[tuple[str, int], Numbers]  # (stack, layer) -> its panels


@dataclass(frozen=True)
class LayerPair:
    """Two layers of one stack, laid side by side: a of A, b of B."""

    stack: str
    a: int
    b: int


@dataclass(frozen=True)
class HiddenResult:
    """Both hidden tests, the layer pairs of the better map, and the cosine of each pair's matched units."""

    fixed: Outcome
    aligned: Outcome
    pairs: tuple[LayerPair, ...] = ()
    cosines: tuple[float, ...] = ()

    @property
    def log10_p(self) -> float:
        return min(self.fixed.log10_p or 0.0, self.aligned.log10_p or 0.0)


@dataclass(frozen=True)
class _Side:
    """One model's panels as the tests see them.

    layers: (stack, layer) -> its panels. repeats: blocks (panel, first row) that repeat an earlier block of the same
    model: copied layers, upcycled experts, repeated value heads. They share one permutation, so only one may count.
    """

    panels: HiddenPanels
    layers: Layers
    repeats: frozenset[tuple[int, int]] = frozenset()

    @cached_property
    def wide(self) -> F64:
        """All panels in double precision."""
        return self.panels.values.astype(np.float64)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """(T, R): which units are not zero."""
        return np.asarray(self.panels.values.any(axis=2))


def hidden_tests(a: HiddenPanels | None, b: HiddenPanels | None, stacks: frozenset[str] | None = None) -> HiddenResult:
    """E1 (fixed points) and E1z (rank alignment) over layer maps.

    Two kinds of map are tried: layer l to layer l, and the best order-preserving partial matching. The second pays
    for every such matching that could have been chosen (a union bound), and both pay for there being two. stacks: which
    stacks count, all if None.
    """
    reason = _incomparable(a, b)
    if reason or a is None or b is None:
        return HiddenResult(absent(reason or NO_PANELS), absent(reason or NO_PANELS))
    left, right = _distinct(a, stacks), _distinct(b, stacks)
    identity = [LayerPair(s, layer, layer) for s, layer in sorted(left.layers.keys() & right.layers.keys())]
    matched, log10_maps = _best_map(left, right)
    results = [
        _test_map(left, right, pairs, _measured(left, right, pairs), cost + math.log10(2))
        for pairs, cost in ((identity, 0.0), (matched, log10_maps))
        if pairs
    ]
    if not results:
        return HiddenResult(absent(NO_BLOCKS), absent(NO_BLOCKS))
    return min(results, key=lambda r: (r.log10_p, -sum(r.cosines)))


def _incomparable(a: HiddenPanels | None, b: HiddenPanels | None) -> Reason | None:
    if a is None or b is None:
        return NO_PANELS
    if a.width != b.width:
        return Reason.of(Code.WIDTHS_DIFFER, a=a.width, b=b.width)
    if max(len({key.layer for key in side.keys}) for side in (a, b)) > MAX_LAYERS:
        return Reason.of(Code.LAYERS_MANY, limit=MAX_LAYERS)
    return None


def _side(panels: HiddenPanels, stacks: frozenset[str] | None = None) -> _Side:
    layers: Layers = {}
    for place, key in enumerate(panels.keys):
        if (stacks is None or key.stack in stacks) and (key.kind == "mlp" or key.group > 0):
            layers.setdefault((key.stack, key.layer), {})[key.kind, key.expert] = place
    return _Side(panels, layers)


def _distinct(panels: HiddenPanels, stacks: frozenset[str] | None) -> _Side:
    """A side without blocks that repeat an earlier one, and without layers that have no other."""
    whole = _side(panels, stacks)
    numbers = sorted(n for layer in whole.layers.values() for n in layer.values())
    repeats = _repeats(panels, numbers)
    layers = {
        at: layer
        for at, layer in whole.layers.items()
        if any((n, start) not in repeats for n in layer.values() for start, _ in _spans(panels, n))
    }
    return _Side(panels, layers, repeats)


def _spans(panels: HiddenPanels, number: int, height: int | None = None) -> list[tuple[int, int]]:
    """The rows (start, stop) of each permutable block of a panel: all of an MLP, each head of v."""
    rows = int(panels.heights[number]) if height is None else height
    step = panels.keys[number].group or rows
    return [(start, min(start + step, rows)) for start in range(0, rows, max(step, 1))]


def _repeats(panels: HiddenPanels, numbers: Sequence[int]) -> frozenset[tuple[int, int]]:
    """Blocks whose units stand as those of an earlier block."""
    spans = [(place, start, stop) for place in numbers for start, stop in _spans(panels, place)]
    return repeated(panels, spans)


def _scores(left: _Side, right: _Side, stack: str, rows: Sequence[int], cols: Sequence[int]) -> F64:
    """Mean cosine of units at equal positions, centered, for every pair of layers: (len(rows), len(cols)).

    One matrix product a kind, so that choosing a map is cheap; what is chosen is then tested with ranks.
    """
    ours, theirs = [left.layers[stack, i] for i in rows], [right.layers[stack, j] for j in cols]
    height = min(left.panels.values.shape[1], right.panels.values.shape[1])
    kinds = sorted({k for d in ours for k in d} & {k for d in theirs for k in d})
    total = np.zeros((len(rows), len(cols)))
    for kind in kinds:
        x, y = _gather(left.panels, ours, kind, height), _gather(right.panels, theirs, kind, height)
        flat = x.reshape(len(rows), -1) @ y.reshape(len(cols), -1).T
        total += flat / height - x.mean(axis=1) @ y.mean(axis=1).T
    return total / max(1, len(kinds))


def _gather(panels: HiddenPanels, side: Sequence[Numbers], kind: tuple[str, int], height: int) -> NDArray[np.float32]:
    out = np.zeros((len(side), height, PROJECTION), np.float32)
    for i, numbers in enumerate(side):
        if kind in numbers:
            out[i] = panels.values[numbers[kind], :height]
    return out


def _best_map(left: _Side, right: _Side) -> tuple[list[LayerPair], float]:
    """The order-preserving partial matching of layers with the largest sum of cosines, and log10 of their number."""
    pairs: list[LayerPair] = []
    log10_maps = 0.0
    for stack, rows, cols in _common_stacks(left, right):
        scores = _scores(left, right, stack, rows, cols)
        pairs += [LayerPair(stack, rows[i], cols[j]) for i, j in monotone_matching(scores)]
        log10_maps += log10_binomial(len(rows) + len(cols), len(rows))
    return pairs, log10_maps


def _common_stacks(left: _Side, right: _Side) -> Iterator[tuple[str, list[int], list[int]]]:
    """(stack, layers of A, layers of B) of every stack that both have."""
    for stack in sorted({s for s, _ in left.layers} & {s for s, _ in right.layers}):
        rows, cols = (sorted(layer for s, layer in side.layers if s == stack) for side in (left, right))
        yield stack, rows, cols


def _blocks(left: _Side, right: _Side, pair: LayerPair) -> list[tuple[F64, F64]]:
    """The permutable blocks that two layers have in common: units of both, each (m, 128).

    Units that are zero in either model are left out: they are alike, but stand where a pruning tool or padding put
    them, so counting them would make two classes of units at fixed places.
    """
    ours, theirs = left.layers[pair.stack, pair.a], right.layers[pair.stack, pair.b]
    out: list[tuple[F64, F64]] = []
    for kind in sorted(ours.keys() & theirs.keys()):
        x, y = ours[kind], theirs[kind]
        if left.panels.keys[x].group != right.panels.keys[y].group:  # other head sizes: positions do not correspond
            continue
        height = int(min(left.panels.heights[x], right.panels.heights[y]))
        for start, stop in _spans(left.panels, x, height):
            if (x, start) in left.repeats or (y, start) in right.repeats:
                continue
            a, b = left.wide[x, start:stop], right.wide[y, start:stop]
            live = left.live[x, start:stop] & right.live[y, start:stop]
            if live.all() and stop - start > 1:
                out.append((a, b))
            elif live.sum() > 1:
                out.append((a[live], b[live]))
    return out


_Seen = tuple[int, int, int, int, float, float, F64]  # of a block: the fields of `Ranked`, and its diagonal


@dataclass(frozen=True)
class _Measured:
    """What the blocks of one pair of layers say together, their sizes in order, the mean cosine of matched units."""

    places: Places = field(default_factory=Places)
    excess: float = 0.0
    squares: float = 0.0
    sizes: tuple[int, ...] = ()
    cosine: float = 0.0


def _measured(left: _Side, right: _Side, pairs: Sequence[LayerPair]) -> list[_Measured]:
    """What each pair of layers says. Blocks of one size go through numpy together: they are small and many."""
    blocks = [_blocks(left, right, pair) for pair in pairs]
    places: dict[int, list[tuple[int, int]]] = {}
    for i, own in enumerate(blocks):
        for j, (a, _) in enumerate(own):
            places.setdefault(len(a), []).append((i, j))
    seen: dict[tuple[int, int], _Seen] = {}
    for some in places.values():
        ours, theirs = (np.stack([blocks[i][j][side] for i, j in some]) for side in (0, 1))
        similarity = ours @ theirs.swapaxes(1, 2)
        counts = (column.tolist() for column in ranked(similarity))
        seen.update(zip(some, zip(*counts, np.diagonal(similarity, 0, 1, 2), strict=True), strict=True))
    return [_together([seen[i, j] for j in range(len(own))]) for i, own in enumerate(blocks)]


def _together(found: Sequence[_Seen]) -> _Measured:
    if not found:
        return _Measured()
    *counts, excess, squares, diagonals = zip(*found, strict=True)
    cosine = float(np.mean(np.concatenate(diagonals)))
    return _Measured(Places(*map(sum, counts)), sum(excess), sum(squares), tuple(map(len, diagonals)), cosine)


def _test_map(
    left: _Side, right: _Side, pairs: Sequence[LayerPair], found: Sequence[_Measured], log10_cost: float
) -> HiddenResult:
    """E1 and E1z of one layer map, from what its pairs say.

    log10_cost: log10 of how many maps this one had to compete with.
    """
    sizes = [m for one in found for m in one.sizes]
    points = Places(*(sum(counts) for counts in zip(*(one.places for one in found), strict=True)))
    excess, squares = sum((one.excess for one in found), 0.0), sum((one.squares for one in found), 0.0)
    blocks, rows, ceiling = len(sizes), sum(sizes), sum(m * (m - 1) / 2 for m in sizes)
    variance = 0.0
    for m in sizes:  # not with sum, which rounds differently from Python 3.12 on
        variance += m * m * (m + 1) / 12
    if rows < MIN_UNITS:
        why = Reason.of(Code.COMMON_UNITS_FEW, n=rows, needed=MIN_UNITS) if rows else NO_BLOCKS
        return HiddenResult(absent(why), absent(why))
    fixed_p = min(0.0, log10_places(points, blocks) + log10_cost)
    aligned_p = min(0.0, log10_alignment(excess, max(variance, squares)) + log10_cost)
    noise = 1 / PROJECTION + 1 / max(left.panels.width, 1)
    smallest = smallest_cosine(variance, ceiling, log10_cost, noise)
    return HiddenResult(
        Outcome(points.most / rows, rows, fixed_p, blocks / rows),
        Outcome(excess / ceiling, rows, aligned_p, 0.0, smallest=smallest),
        tuple(pairs),
        tuple(one.cosine for one in found),
    )


def layer_matches(
    a: HiddenPanels, b: HiddenPanels, stacks: frozenset[str] | None = None
) -> list[tuple[LayerPair, float]]:
    """(pair, log10_p): for each layer of either model, its best layer of the other if significant at 1e-6.

    Unlike the maps of `hidden_tests`, one layer may have several layers of the other model: that is how repeated layers
    show, on whichever side they are. Reported for linked pairs only; it decides nothing.
    """
    left, right = _side(a, stacks), _side(b, stacks)
    out: list[tuple[LayerPair, float]] = []
    for stack, rows, cols in _common_stacks(left, right):
        scores = _scores(left, right, stack, rows, cols)
        cost = math.log10(len(rows) * len(cols))
        best = {(i, int(row.argmax())) for i, row in enumerate(scores)}
        best |= {(int(column.argmax()), j) for j, column in enumerate(scores.T)}
        pairs = [LayerPair(stack, rows[i], cols[j]) for i, j in sorted(best)]
        for pair, measured in zip(pairs, _measured(left, right, pairs), strict=True):
            found = _test_map(left, right, [pair], [measured], cost + math.log10(2))
            if found.log10_p <= LOG10_THRESHOLD:
                out.append((pair, found.log10_p))
    return out


# --- from a model's weights, and the table row ---

Entries = list[tuple[PanelKey, NDArray[np.float16]]]


def of_weights(w: Weights) -> HiddenPanels | None:
    """The hidden panels of all stacks that are as wide as the text tower; of a model without names those of MLPs."""
    if w.layout.structure is not None:
        return _of_structure(w, w.layout.structure)
    width = w.arch.hidden if w.arch else 0
    stacks = {stack: arch for stack, arch in w.layout.archs.items() if arch.hidden == width}
    depth = {s: len({p.layer for p in w.places if p.stack == s and p.layer is not None}) for s in stacks}
    entries: Entries = []
    identities, readers = 0, _readers(w, stacks)
    for key, found in readers.items():
        rows = [w.rows(place, part, 0, panel_height(depth[key.stack])) for place, part in found]
        if any(canonical.diagonal_stands_out(r, np.arange(len(r))) for r in rows):
            identities += 1
        elif all(r.shape == (rows[0].shape[0], width) for r in rows):
            arch = stacks[key.stack]
            gain = canonical.find_gain(w.gains, key.stack, arch, "attn" if key.kind == "v" else "mlp", key.layer)
            centered = [canonical.fold(without_means(r), arch, gain) for r in rows]
            entries.append((key, hidden_panel(centered, key.kind)))
    if identities:
        w.absences["hidden_units"] = Reason.of(Code.UNITS_IDENTITY, n=identities, total=len(readers))
    made = stack_panels(entries, width)
    if made is None:
        w.absences["hidden"] = Reason.of(Code.UNITS_ALL_IDENTITY if identities else Code.NO_UNITS)
    return made


def _of_structure(w: Weights, structure: Structure) -> HiddenPanels | None:
    """Panels of MLPs that shapes alone tell, one for each reading.

    Matrices whose units are columns are left out of sampled reading, which would fetch them whole.
    """
    entries: Entries = []
    height = panel_height(structure.layers or len(structure.units) // 2)
    readings: Counter[int] = Counter()
    for units in structure.units:
        if units.columns and not w.exact:
            continue
        part = Part(UNNAMED, UNNAMED, transposed=units.columns)
        stored = [without_means(w.rows(w.layout.placements[name], part, 0, height)) for name in units.names]
        rows = [one.astype(np.float64) for one in stored]
        if any(canonical.diagonal_stands_out(r.astype(np.float32), np.arange(len(r))) for r in rows):
            continue
        kind = "mlp" if structure.layers else ALONE[units.columns]
        tries = [rows, rows[::-1]] if len(rows) > 1 else [rows]
        if not structure.layers and structure.gated:  # alone it is up or gate: the second reading has no up
            tries.append([*rows, np.zeros_like(rows[0])])
        for tried in tries:
            key = PanelKey(kind, UNNAMED, units.layer, readings[units.layer])
            readings[units.layer] += 1
            entries.append((key, hidden_panel(tried, "mlp")))
    made = stack_panels(entries, structure.hidden)
    if made is None:
        w.absences["hidden"] = Reason.of(Code.NO_UNITS)
    return made


def _readers(w: Weights, stacks: Mapping[str, Arch]) -> dict[PanelKey, list[tuple[Placement, Part]]]:
    """The matrices that read the residual stream into hidden units, by block."""
    readers: dict[PanelKey, list[tuple[Placement, Part]]] = {}
    for role, kind in (("gate", "mlp"), ("up", "mlp"), ("v", "v")):
        for place, part in w.parts(role):
            if part.stack in stacks and part.layer is not None and not part.cross and w.kept(part):
                arch = stacks[part.stack]
                group = arch.head_dim if kind == "v" else arch.channels * (part.stack in w.mixers)
                key = PanelKey(kind, part.stack, part.layer, -1 if part.expert is None else part.expert, group)
                readers.setdefault(key, []).append((place, part))
    return readers


def _to_row(h: HiddenPanels) -> Row:
    return {
        "hidden_width": h.width,
        "hidden_keys": [f"{k.kind}/{k.stack}/{k.layer}/{k.expert}/{k.group}" for k in h.keys],
        "hidden_heights": h.heights,
        "hidden_panels": np.concatenate([v[:n] for v, n in zip(h.values, h.heights, strict=True)]),
    }


def _of_row(row: Mapping[str, Any]) -> HiddenPanels | None:
    if not row["hidden_keys"]:
        return None
    if (row["hidden_heights"] > MAX_HEIGHT).any():
        raise ValueError(f"a hidden panel of more than {MAX_HEIGHT} rows")
    keys = []
    for text in row["hidden_keys"]:
        kind, stack, layer, expert, group = text.split("/")
        keys.append(PanelKey(kind, stack, int(layer), int(expert), int(group)))
    pieces = split(row["hidden_panels"], row["hidden_heights"] * PROJECTION)
    entries = [(k, p.reshape(-1, PROJECTION)) for k, p in zip(keys, pieces, strict=True)]
    return stack_panels(entries, row["hidden_width"])


def of_pair(pair: Pairing) -> HiddenResult:
    """Both hidden tests of a pair."""
    a, b = pair.a.hidden, pair.b.hidden
    test = _unnamed_tests if has_inferred(a) or has_inferred(b) else hidden_tests
    found: HiddenResult = pair.once("hidden", lambda: test(a, b, pair.stacks))
    return found


def _unnamed_tests(a: HiddenPanels | None, b: HiddenPanels | None, stacks: frozenset[str]) -> HiddenResult:
    """E1 and E1z where one model's roles are inferred; it says of no cosine that it would have been seen."""
    reason = _incomparable(a, b)
    if reason or a is None or b is None:
        return HiddenResult(absent(reason or NO_PANELS), absent(reason or NO_PANELS))
    found = unnamed_units(a, b, stacks)
    rows = sum(found.sizes) if found else 0
    if found is None or rows < MIN_UNITS:
        return HiddenResult(absent(NO_BLOCKS), absent(NO_BLOCKS))
    ceiling = sum(m * (m - 1) / 2 for m in found.sizes)
    return HiddenResult(
        Outcome(found.points / rows, rows, found.log10_fixed, len(found.sizes) / rows),
        Outcome(found.excess / ceiling, rows, found.log10_aligned, 0.0),
    )


MAX_HEIGHT, MOST = 64, 1 << 13  # rows of a panel, panels of a model
PANEL = Panel(
    "hidden",
    (
        number("hidden_width", "hidden panels: residual width; 0 if there are none"),
        array("hidden_keys", "string", "hidden panels: kind/stack/layer/expert/group", MOST),
        array("hidden_heights", "int32", "hidden panels: rows of each", MOST),
        array("hidden_panels", "float16", "hidden panels: projected unit rows of 128", MOST * MAX_HEIGHT * PROJECTION),
    ),
    to_row=_to_row,
    from_row=_of_row,
    extract=of_weights,
)
FIXED = Test("hidden_fixed_points", lambda pair: of_pair(pair).fixed, "exact", "hidden", (PANEL,))
ALIGNED = Test("hidden_alignment", lambda pair: of_pair(pair).aligned, "exact", "hidden", sees="hidden units")
