"""Weight files beside the one that is read: which of them hold the same weights, value by value.

A file that holds nothing but what another one holds hides nothing, so it need not be compared with anything. Each of
its tensors must have an equal one at its address; values that are equal after rounding to the narrower of two
precisions are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ProvindexError
from provindex.common.halves import round_bf16
from provindex.common.reasons import Code, Reason, left_out
from provindex.common.tensor import Tensor
from provindex.formats import local_files
from provindex.models.source import Model, open_model
from provindex.roles import canonical
from provindex.roles.computed import with_honest_buffers
from provindex.roles.names import Part, Placement, resolve

PIECE = 1 << 20  # elements compared at a time
ROUNDED = 2.0**-8  # of the length of some values: the most that rounding to bfloat16 moves them
F32 = NDArray[np.float32]
Address = tuple[Tensor, Part]


def without_copies(model: Model, folder: Path) -> Model:
    """The same model; files of its folder that hold the same weights, and nothing besides, are no longer named as not
    read, and those that were looked at and differ say so.
    """
    same: list[str] = []
    kept: list[Reason] = []
    ours: Mapping[str, Address] | None = None
    place = local_files.look_at(folder)
    for reason in model.warnings:
        path = folder / reason.subject
        if reason.code is not Code.FILE_NOT_READ or not path.is_file():
            kept.append(reason)
            continue
        try:
            local_files.find(
                place, reason.subject
            )  # nobody named this file, so a link may not lead it out of the folder
            other = open_model(path, offline=True)
        except ProvindexError:  # its name and its format are told; nothing more can be
            kept.append(reason)
            continue
        ours = dict(reversed(_addresses(model))) if ours is None else ours
        if not left_out(other.warnings) and _within(_addresses(other), ours):
            same.append(reason.subject)
        else:
            kept.append(replace(reason, code=Code.FILE_DIFFERS))
    if same:
        kept.append(Reason.of(Code.FILES_SAME, n=len(same), names=", ".join(same[:3])))
    return replace(model, warnings=tuple(kept))


def _addresses(model: Model) -> list[tuple[str, Address]]:
    """Every tensor of a model with its canonical address: of a copy its owner's, without a role its name. Small buffers
    are left out.
    """
    layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
    placed = with_honest_buffers(layout, model.tensors).placements.values()
    owners = {place.canonical: place for place in placed if not place.copy_of}
    return [
        (key, (model.tensors[place.name], part))
        for place in placed if place.weight and model.tensors[place.name].size
        for key, part in _keys(owners.get(place.copy_of, place))
    ]  # fmt: skip


def _keys(place: Placement) -> list[tuple[str, Part]]:
    return [(str(canonical.key_of(p)), p) for p in place.parts] or [(f"name {place.canonical}", Part("whole"))]


def _within(theirs: Sequence[tuple[str, Address]], ours: Mapping[str, Address]) -> bool:
    """Whether each tensor of a file is here with the same values; a head may be the embedding."""
    pairs = ((address, ours.get(key) or ours.get(key.replace(".head.", ".embed."))) for key, address in theirs)
    return bool(theirs) and all(own is not None and _equal(address, own) for address, own in pairs)


def _equal(a: Address, b: Address) -> bool:
    (x, one), (y, other) = a, b
    shape = canonical.part_shape(x.shape, one)
    if canonical.part_shape(y.shape, other) != shape:
        return False
    step = max(1, PIECE // shape[1])
    return all(
        _same_values(
            canonical.read_rows(x, one, start, start + step), canonical.read_rows(y, other, start, start + step)
        )
        for start in range(0, shape[0], step)
    )  # fmt: skip


def _same_values(x: F32, y: F32) -> bool:
    """Equal bit for bit, or one is the other one rounded to bfloat16 or float16, and is no zero by that."""
    if np.array_equal(x.view(np.uint32), y.view(np.uint32)):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        near = float(np.linalg.norm(x - y)) <= ROUNDED * float(np.linalg.norm(x))
        return near and any(
            np.array_equal(narrow(x), y) or np.array_equal(x, narrow(y)) for narrow in (round_bf16, _round_f16)
        )


def _round_f16(values: F32) -> F32:
    return values.astype(np.float16).astype(np.float32)
