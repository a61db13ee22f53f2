"""The record: all that provindex keeps of a model, and nothing about how it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import printable
from provindex.common.files import FileFact
from provindex.common.reasons import Code, Reason, left_out
from provindex.evidence import aligned, panels, sketch
from provindex.evidence.token_rows import TokenRows
from provindex.signals import mfi, nlf, tfv, wvc
from provindex.signals.imported import IMPORTED as IMPORTED

FINGERPRINT_VERSION = 5
UNNAMED = "unnamed"  # the absence that says how much has no role
NORMS = "norms"  # the mode of config, norms and biases alone
MODES = ("exact", "sampled", NORMS)

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of the weights that a reader wants to see; none of them decides anything.

    architecture: model type of the text tower. main: its stack ("decoder" or "encoder"). parameters: elements of all
    weight tensors, a tied head counted once. hidden, layers, vocabulary: width, depth and embedding rows of the text
    tower (0 if unknown). precision: narrowest of "bf16", "f16", "f32" that holds most parameters exactly ("" in
    sampled mode). nonfinite: NaNs and infinities found.
    """

    architecture: str
    main: str
    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    precision: str
    nonfinite: int


@dataclass(frozen=True, repr=False)
class Fingerprint:
    """All that provindex keeps of a model.

    The first group says whose it is and is not hashed. `content_sha256` is over the weights alone, `core_sha256` over
    those of no head or pooler; None in sampled mode. A signal or panel that is None is explained in `absences` under
    its name (EAS, hidden, ...). `indexed`: loaded from a row of an index. `more`: values of panels without a field.
    """

    model_id: str
    facts: Facts
    mode: str
    content_sha256: str | None
    core_sha256: str | None = field(default=None, kw_only=True)
    mfi: mfi.MfiFeatures
    revision: str | None = None
    variant: str = ""
    family: str | None = None
    license: str | None = None
    parents: tuple[str, ...] = ()
    source: str | None = None
    id_certainty: str | None = None
    version: int = FINGERPRINT_VERSION
    tfv: tfv.TfvFeatures | None = None
    vocabulary_sketch: NDArray[np.uint64] | None = None
    vocabulary_size: int = 0
    eas: F32 | None = None
    eas_by_id: F32 | None = None
    end: NDArray[np.float64] | None = None
    nlf: nlf.NormTensors | None = None
    lep: Mapping[str, F32] = field(default_factory=dict)
    wvc: wvc.Samples | None = None
    hidden: panels.HiddenPanels | None = None
    residual: panels.ResidualPanel | None = None
    residual_by_id: panels.ResidualPanel | None = None
    sketches: sketch.BranchSketches | None = None
    sketches_by_id: sketch.BranchSketches | None = None
    neurons: aligned.NeuronPanels | None = None
    token_rows: TokenRows | None = None
    blocks: panels.BlockDigests | None = None
    absences: Mapping[str, Reason] = field(default_factory=dict)
    warnings: tuple[Reason, ...] = ()
    files: tuple[FileFact, ...] = ()
    bytes_read: int = 0
    bytes_total: int = 0
    indexed: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = self.facts.architecture or "unknown architecture"
        return printable(f"<Fingerprint {self.label}: {kind}, {self.facts.parameters:,} parameters, {self.mode}>")

    def value(self, panel: str) -> Any:
        """What is kept under the name of a panel, None if there is nothing."""
        return self.more[panel] if panel in self.more else getattr(self, panel, None)

    @property
    def layers_unread(self) -> bool:
        """Whether stage 1 of sampled reading left whole layers unread, which stage 2 reads."""
        unread = self.absences.get("branches")
        return unread is not None and unread.code is Code.NEEDS_STAGE_2

    @property
    def left_out(self) -> tuple[Reason, ...]:
        """Weights of the model's files that were not read, or not compared: with any of them nothing is cleared."""
        return left_out(self.warnings)

    @property
    def roles(self) -> str:
        """ "named" where a naming scheme says what each matrix is, "inferred" where only shapes do."""
        return "inferred" if ROLES in self.absences else "named"

    @property
    def label(self) -> str:
        """The id, with the variant in brackets, as people write it."""
        return f"{self.model_id} [{self.variant}]" if self.variant else self.model_id


ROLES = "roles"  # under this name a fingerprint says that its roles are inferred

_FIELDS = frozenset(f.name for f in fields(Fingerprint))


def kept_as(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of panels as arguments of Fingerprint: fields, and `more` for panels that have none."""
    more = {name: value for name, value in values.items() if name not in _FIELDS and value is not None}
    return {**{name: value for name, value in values.items() if name in _FIELDS}, "more": more}
