"""A model being fingerprinted: its tensors by role, and what was read of them so far."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.common.tokens import Tokenizer
from provindex.roles import canonical
from provindex.roles.canonical import F32
from provindex.roles.names import Arch, Layout, Part, Placement

CHUNK = 1 << 18  # elements decoded at a time: 1 MB of float32 and 2 MB of float64, which stay in cache
MAX_PANEL = 1 << 26  # elements of one panel that is read at once; the largest models need 1/16 of that
MAX_EMBEDDING_ROWS = 1_000_000  # the peer's limit for EAS and END
MAX_VECTOR = 1 << 22  # elements of a norm: far more than the width of any model
EXPERTS = 4  # of each MoE layer
NORMS = ("norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out", "norm_embed", "norm_q", "norm_k")
ATTENTION = ("q", "k", "v", "o")
WRITERS = ("o", "down")
MIXER = {"up": "ssm_x", "gate": "ssm_z", "down": "ssm_out"}  # what hidden units are where a stack has no MLP at all

Found = list[tuple[Placement, Part]]


@dataclass(frozen=True)
class Scan:
    """What one pass over a tensor's elements gives. samples: WVC's, where it takes some of this tensor. parts: digests
    of its parts, where it is not one part as it is stored."""

    sum_of_squares: float
    nonfinite: int
    precision: str
    digest: str
    row_norms: F32 | None
    stored: bool  # whether the digest is that of the stored bytes
    samples: F32 | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """A model being fingerprinted, as the extractors see it.

    tensors: by name. layout, places: their roles, and weight tensors in canonical order. scans: by tensor name, what
    one pass over all elements gave. absences: why something could not be extracted, by panel or signal. exact: whether
    every element is read. config, tokenizer: of the model, {} and None if it has none. made: what was made of whole
    layers in the pass, by panel.
    """

    tensors: Mapping[str, Tensor]
    layout: Layout
    places: tuple[Placement, ...]
    scans: dict[str, Scan]
    absences: dict[str, Reason]
    exact: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def arch(self) -> Arch | None:
        return self.layout.archs.get(self.layout.main)

    def embedding(self, note: str) -> tuple[Placement, Part] | None:
        """The token embedding, a matrix; None if there is none that can be used, with the reason under `note`."""
        found = [(place, part) for place, part in self.parts("embed") if len(self.tensors[place.name].shape) == 2]
        if not found:
            self.absences[note] = Reason.of(Code.NO_EMBEDDING)
            return None
        if self.tensors[found[0][0].name].shape[0] > MAX_EMBEDDING_ROWS:
            self.absences[note] = Reason.of(Code.EMBEDDING_TALL, limit=MAX_EMBEDDING_ROWS)
            return None
        return found[0]

    @cached_property
    def gains(self) -> dict[tuple[str, str, int | None], F32]:
        """Norm gains by (stack, role, layer); cross-attention's under canonical.CROSS + role."""
        found: dict[tuple[str, str, int | None], F32] = {}
        for role in NORMS:
            for place, part in self.parts(role):
                if self.tensors[place.name].size <= MAX_VECTOR:
                    at = canonical.CROSS + role if part.cross else role
                    found[part.stack, at, part.layer] = self.tensors[place.name].flat()
        return found

    @cached_property
    def experts(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """The experts kept of each MoE layer: the four whose folded router rows are longest."""
        chosen: dict[tuple[str, int], tuple[int, ...]] = {}
        for place, part in self.parts("router"):
            shape, arch = self.tensors[place.name].shape, self.layout.archs.get(part.stack)
            if part.layer is not None and len(shape) == 2 and arch is not None:
                rows = self.rows(place, part, 0, self.shape(place, part)[0])
                gain = self.gain("router", part.stack, part.layer)
                energy = np.square(canonical.fold(rows, arch, gain)).sum(axis=1)
                order = np.argsort(-energy, kind="stable")
                chosen[part.stack, part.layer] = tuple(sorted(int(i) for i in order[:EXPERTS]))
        return chosen

    def kept(self, part: Part) -> bool:
        """Whether a part is dense, or belongs to one of the experts that are kept."""
        if part.expert is None or part.layer is None:
            return True
        return part.expert in self.experts.get((part.stack, part.layer), range(EXPERTS))

    def gain(self, role: str, stack: str, layer: int) -> F32 | None:
        """Of the norm between a matrix and the residual stream: the one that it reads, or that closes its branch."""
        arch, branch = self.layout.archs[stack], "attn" if role in ATTENTION else "mlp"
        if role not in WRITERS:
            return canonical.find_gain(self.gains, stack, arch, branch, layer)
        closes = arch.norm_place != "post"  # else that norm closes the whole residual
        return self.gains.get((stack, f"norm_{branch}_out", layer)) if closes else None

    def layers(self, roles: Sequence[str], stacks: Collection[str]) -> dict[tuple[str, int], dict[str, Found]]:
        """The parts of some stacks by layer and role, several where a layer has experts; none of cross-attention."""
        layers: dict[tuple[str, int], dict[str, Found]] = {}
        for role in roles:
            for place, part in self.parts(role):
                if part.stack in stacks and part.layer is not None and not part.cross and self.kept(part):
                    layers.setdefault((part.stack, part.layer), {}).setdefault(role, []).append((place, part))
        return layers

    def shape(self, place: Placement, part: Part) -> tuple[int, int]:
        """Rows and columns of a part."""
        return canonical.part_shape(self.tensors[place.name].shape, part)

    @cached_property
    def mixers(self) -> frozenset[str]:
        """Stacks without any MLP, whose state-space channels are their hidden units."""
        having = {role: {p.stack for q in self.places for p in q.parts if p.role == role} for role in ("up", "ssm_x")}
        return frozenset(having["ssm_x"] - having["up"])

    def parts(self, role: str, param: str = "weight") -> Found:
        """Every part with a role, in canonical order; a second part at one address is left out.

        In stacks of `mixers` the rows of x, of z and the columns of the output are asked for as up, gate and down.
        """
        found: dict[canonical.PartKey, tuple[Placement, Part]] = {}
        for place in self.places:
            for part in place.parts:
                name = MIXER.get(role, role) if part.stack in self.mixers else role
                if part.role == name and part.param == param:
                    part = part if name == role else replace(part, role=role)
                    found.setdefault(canonical.key_of(part), (place, part))
        return [found[key] for key in sorted(found, key=str)]

    def rows(self, place: Placement, part: Part, start: int, stop: int) -> F32:
        """Rows of a part. Raises ModelError for rows that no model has."""
        tensor = self.tensors[place.name]
        height, columns = self.shape(place, part)
        if max((min(stop, height) - start) * columns, *tensor.shape) > MAX_PANEL:
            shape = "x".join(map(str, tensor.shape))
            raise ModelError(f"Tensor {place.name} is {shape}; no weight matrix is that large.", "Check its shape.")
        return canonical.read_rows(tensor, part, start, stop)


def element_width(tensor: Tensor) -> int:
    return tensor.nbytes // tensor.size if tensor.size else 0
