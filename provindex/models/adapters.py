"""Adapters without the model that they amend: what they are for, and what can be said of them.

LoRA and its kin (https://huggingface.co/docs/peft, `adapter_config.json` beside `adapter_model.safetensors`) store
low-rank changes of matrices, not the matrices. Nothing of a base follows from them but widths and depth; whole modules
that an adapter saves besides (`modules_to_save`: embeddings, norms) are weights like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provindex.common.reasons import Code, Reason
from provindex.formats import local_files
from provindex.formats.folder import ADAPTER_CONFIG
from provindex.formats.local_files import Folder

if TYPE_CHECKING:
    pass

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Claim:
    """What adapter_config.json says. kind: "LORA" ...; base: id or path of the model that was adapted. Both may lie."""

    kind: str = ""
    base: str = ""

    @property
    def reason(self) -> Reason:
        """The claim, as a warning to the reader."""
        base, kind = self.base or "a model that it does not name", f" ({self.kind})" if self.kind else ""
        return Reason.of(Code.ADAPTER_CLAIM, kind=kind, base=base, file=ADAPTER_CONFIG)


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
