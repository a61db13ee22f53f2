"""What names do not say, from shapes: the residual width, the MLP width, and which matrices read or write MLP units.

Where no naming scheme knows a model, tensors whose names differ in one number form the layers, the width that most
tensors share is that of the residual stream, and the side that the most elements have besides is the MLP's. Gate, up
and down are told apart as far as their number goes; what stays ambiguous is left to the tests, which try the few
readings and pay for them. Nothing here reads a weight.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

MAX_NAME, MAX_NUMBERS = 1_000, 16  # of a name in which layers are sought
MAX_LAYERED = 2_048  # matrices, or pairs of gate and up, of MLPs with layers
MAX_MATRICES = 512  # of MLPs without layers, evenly chosen; a panel of each is kept
LEAST = 3  # matrices with an MLP's width: embedding and head are two with the vocabulary's
_NUMBER = re.compile(r"([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Units:
    """Matrices with one MLP's units along their first axis, or the second where `columns` says so.

    names: the readings are their orders where there are several: of gate and up either may be first. layer: its number
    in the names; where names have none, the matrix is alone and this is a number of its own.
    """

    layer: int
    names: tuple[str, ...]
    columns: bool


@dataclass(frozen=True, slots=True)
class Structure:
    """What the shapes of a model say. hidden: residual width. width: of its MLPs. layers: 0 where no names tell them.

    gated: two matrices of each MLP are of one kind, one of the other. units: by layer, then by name.
    """

    hidden: int
    width: int
    layers: int
    gated: bool
    units: tuple[Units, ...]


def infer(shapes: Shapes) -> Structure | None:
    """The structure of a model; None if its shapes are not those of a transformer."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 1}
    hidden = _residual(shapes)
    width = _mlp(matrices.values(), hidden)
    if not width:
        return None
    found = {name: shape[0] == hidden for name, shape in matrices.items() if set(shape) == {hidden, width}}
    columns = Counter(found.values())
    kinds = [is_turned for is_turned in (False, True) if columns[is_turned]]
    gated = len(kinds) == 2 and max(columns.values()) >= 2 * min(columns.values())
    if gated:  # of gate, up and down the two that are alike read the residual stream
        kinds = [columns[True] > columns[False]]
    numbers = layer_numbers(found, shapes)
    units = _by_layer(found, numbers, kinds, 2 if gated else 1)
    layers = len({one.layer for one in units})
    return Structure(hidden, width, layers, gated, units or _alone(found, kinds))


def _residual(shapes: Shapes) -> int:
    """The width that most matrices and vectors share."""
    counts = Counter(side for shape in shapes.values() if len(shape) in (1, 2) for side in set(shape) if side > 1)
    return max(counts, key=lambda side: (counts[side], -side), default=0)


def _mlp(matrices: Iterable[tuple[int, ...]], hidden: int) -> int:
    """The side besides the residual width that the most elements have; 0 if there is none.

    An MLP is read and written: its matrices are stored in both orientations, or gate and up are one matrix.
    """
    counts = Counter(shape for shape in matrices if hidden in shape and shape != (hidden, hidden))
    sides = {side for shape in counts for side in shape if side != hidden}

    def many(side: int) -> int:
        return counts[side, hidden] + counts[hidden, side]

    fitting = [
        side
        for side in sides
        if many(side) >= LEAST
        and ((counts[side, hidden] and counts[hidden, side]) or (side % 2 == 0 and many(side // 2)))
    ]
    return max(fitting, key=lambda side: (many(side) * side, side), default=0)


def _by_layer(
    found: Mapping[str, bool], numbers: Mapping[str, int], kinds: Sequence[bool], many: int
) -> tuple[Units, ...]:
    """The matrices of each kind and layer; none at all unless each layer has as many as an MLP has."""
    layers: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for name, is_turned in sorted(found.items()):
        if is_turned in kinds:
            layers[numbers.get(name, -1), is_turned].append(name)
    regular = len(layers) <= MAX_LAYERED and all(
        len(names) == many and layer >= 0 for (layer, _), names in layers.items()
    )
    return tuple(Units(layer, tuple(names), turned) for (layer, turned), names in sorted(layers.items()) if regular)


def _alone(found: Mapping[str, bool], kinds: Sequence[bool]) -> tuple[Units, ...]:
    names = sorted(name for name, is_turned in found.items() if is_turned in kinds)
    count = min(len(names), MAX_MATRICES)
    chosen = [names[i * len(names) // count] for i in range(count)]
    return tuple(Units(i, (name,), found[name]) for i, name in enumerate(chosen))


def layer_numbers(names: Iterable[str], shapes: Shapes) -> Mapping[str, int]:
    """The layer of each name that has one.

    Of names that differ in numbers alone, the number whose change leaves the shape as it is counts the layers; the
    first of several such (experts are counted behind layers).
    """
    patterns: dict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for name in names:
        pieces = _NUMBER.split(name) if len(name) <= MAX_NAME else []
        if 1 < len(pieces) <= 2 * MAX_NUMBERS:
            patterns[tuple(pieces[::2])].append((name, tuple(pieces[1::2])))
    found: dict[str, int] = {}
    for alike in patterns.values():
        slots = [_numbered(alike, slot, shapes) for slot in range(len(alike[0][1]))]
        best: dict[str, int] = max(slots, key=len)
        found.update(best)
    return found


def _numbered(alike: Sequence[tuple[str, tuple[str, ...]]], slot: int, shapes: Shapes) -> dict[str, int]:
    """The numbers in one slot, of names that are alike but for it and have one shape."""
    families: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, numbers in alike:
        families[numbers[:slot] + numbers[slot + 1 :]].append((name, int(numbers[slot])))
    return {
        name: number
        for family in families.values()
        if len(family) > 1 and len({shapes[name] for name, _ in family}) == 1
        for name, number in family
    }
