"""What a model says of itself: records that the room which reads cards shares with the rooms that judge and print them.

A claim costs nothing and may lie. Whether it is so is for the weights to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["base_model", "license", "architecture", "adapter_base", "merge_parent"]
BASES: tuple[Kind, ...] = ("base_model", "adapter_base", "merge_parent")  # kinds whose value is another model


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim. value: an id of the Hub, a license or a model type. source: "card", "config", "adapter", "gguf",
    "mergekit", or "row" of a row of an index that stands for a model.
    """

    kind: Kind
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Stated:
    """All that a model's files say of it; "" and () where they say nothing.

    claims: what can be judged, each once for each source. license_name, license_link: of the license `other`. relation:
    how the card says that it was made of its base. names: what it calls itself. license_files: names of files with a
    license or a notice that lie beside the weights; None where nobody knows which files there are.
    """

    claims: tuple[Claim, ...] = ()
    license_name: str = ""
    license_link: str = ""
    relation: str = ""
    datasets: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    quantized_by: str = ""
    license_files: tuple[str, ...] | None = None

    def values(self, *kinds: Kind) -> tuple[str, ...]:
        """The values of the claims of some kinds, each once."""
        return tuple(dict.fromkeys(claim.value for claim in self.claims if claim.kind in kinds))
