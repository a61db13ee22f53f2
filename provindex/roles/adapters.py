"""Adapters without the model that they amend, told by the names and shapes of their tensors.

LoRA and its kin (https://huggingface.co/docs/peft) store low-rank changes of matrices, not the matrices. Nothing of a
base follows from them but widths and depth; whole modules that an adapter saves besides (`modules_to_save`: embeddings,
norms) are weights like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from provindex.common.reasons import Code, Reason
from provindex.roles.architectures import ADAPTERS
from provindex.roles.names import Layout

ABSENT = "adapter"  # under this name an adapter's fingerprint says what it lacks
# What a fingerprint cannot have of changes alone.
LACKED = ("hidden", "residual", "residual_by_id", "neurons", "branches", "LEP", "WVC")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is alone. tensors: of changes. hidden: the width that most of them read or write, 0 if none."""

    tensors: int
    hidden: int

    @property
    def absences(self) -> dict[str, Reason]:
        """What its fingerprint lacks, and why."""
        lacking = dict.fromkeys(LACKED, Reason.of(Code.ADAPTER_LACKS))
        return {**lacking, ABSENT: Reason.of(Code.ADAPTER, tensors=self.tensors)}


def alone(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Adapter | None:
    """The adapter that these tensors are; None if they are none, or if matrices of a model's layers are among them."""
    changes = [p for p in layout.placements.values() if p.reason in ADAPTERS.values()]
    matrix = any(
        part.layer is not None and len(shapes[p.name]) >= 2 for p in layout.placements.values() for part in p.parts
    )
    if not changes or matrix:
        return None
    # (rank, in) and (out, rank): the longer side is that of the model
    widths = Counter(max(shapes[p.name]) for p in changes if len(shapes[p.name]) == 2)
    return Adapter(len(changes), max(widths, key=lambda width: (widths[width], width), default=0))
