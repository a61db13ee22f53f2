"""Adapters without the model that they amend: what they are for, and what can be said of them.

LoRA and its kin (https://huggingface.co/docs/peft, `adapter_config.json` beside `adapter_model.safetensors`) store
low-rank changes of matrices, not the matrices. Nothing of a base follows from them but widths and depth; whole modules
that an adapter saves besides (`modules_to_save`: embeddings, norms) are weights like any other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provindex.formats import local_files
from provindex.formats.folder import ADAPTER_CONFIG
from provindex.formats.local_files import Folder
from provindex.roles.architectures import ADAPTERS
from provindex.roles.names import Layout

if TYPE_CHECKING:
    from provindex.fingerprint.record import Fingerprint

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
ABSENT = "adapter"  # under this name an adapter's fingerprint says what it lacks
LACKING = "it holds changes of weights, and not the weights"
MERGE = "for a verdict, merge it into the model that it amends (with peft: merge_and_unload) and name the merged model"
MAX_TEXT = 200
# What a fingerprint cannot have of changes alone.
LACKED = ("hidden", "residual", "residual_by_id", "neurons", "branches", "LEP", "WVC")


@dataclass(frozen=True, slots=True)
class Claim:
    """What adapter_config.json says. kind: "LORA" ...; base: id or path of the model that was adapted. Both may lie."""

    kind: str = ""
    base: str = ""

    @property
    def sentence(self) -> str:
        of = f" of {self.base}" if self.base else " of a model that it does not name"
        kind = f" ({self.kind})" if self.kind else ""
        return f"an adapter{kind}{of}: so says {ADAPTER_CONFIG}, which nothing here proves"


def read_claim(place: Folder) -> Claim | None:
    """What the adapter in a folder says of itself, None if it has no adapter_config.json. ModelError if it is bad."""
    said, missing = local_files.read_config(place, ADAPTER_CONFIG)
    return None if missing else Claim(_text(said.get("peft_type")), _id(_text(said.get("base_model_name_or_path"))))


def _id(base: str) -> str:
    """A Hub id as it is; of a path only its end: the folders of whoever trained the adapter are nobody's business."""
    return base if _HUB_ID.fullmatch(base) else re.split(r"[/\\]", base.rstrip("/\\"))[-1]


def _text(value: Any) -> str:
    kept = value[:MAX_TEXT] if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else "?" for c in kept)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is alone. tensors: of changes. hidden: the width that most of them read or write, 0 if none."""

    tensors: int
    hidden: int

    @property
    def absences(self) -> dict[str, str]:
        """What its fingerprint lacks, and why."""
        return {**dict.fromkeys(LACKED, LACKING), ABSENT: f"an adapter of {self.tensors} tensors: {LACKING}"}


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


def reasons(a: Fingerprint, b: Fingerprint) -> tuple[str, ...]:
    """Why nothing was decided about two models of which at least one is an adapter; () if none is."""
    said: list[str] = []
    for one, other in ((a, b), (b, a)):
        if ABSENT in one.absences:
            said.append(f"{one.model_id}: {one.absences[ABSENT]}")
            said += [f"its config names {one.parents[0]}, a claim"] if one.parents else []
            said += [_fit(one, other)] if ABSENT not in other.absences else []
    return (*dict.fromkeys(said), MERGE) if said else ()


def _fit(adapter: Fingerprint, model: Fingerprint) -> str:
    """Whether an adapter could be of a model at all. That it could is no evidence: widths are shared by many."""
    ours, theirs = adapter.facts, model.facts
    sizes = f"a width of {ours.hidden} in {ours.layers} layers"
    if not theirs.hidden or not ours.hidden:
        return "whether its shapes fit is not known"
    if ours.hidden == theirs.hidden and ours.layers <= theirs.layers:
        return f"its shapes ({sizes}) fit, as they do every other model of that size ({model.model_id})"
    return f"its shapes ({sizes}) do not fit ({model.model_id}: {theirs.hidden} in {theirs.layers})"
