"""Tensor names to roles, as data: which tensor (or part of a tensor) plays which part in which layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LAYER_ROLES = (
    "q", "k", "v", "o", "gate", "up", "down", "router",
    "norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out", "norm_q", "norm_k",
)  # fmt: skip
GLOBAL_ROLES = ("embed", "embed_map", "pos", "head", "norm_embed", "norm_final")


@dataclass(frozen=True, slots=True)
class Part:
    """One canonical tensor, and where its elements are inside a stored tensor.

    role: one of LAYER_ROLES or GLOBAL_ROLES. stack: "decoder", "encoder", "vision" or "audio".
    layer: index in the stack, None for GLOBAL_ROLES. expert: index, or None for a dense MLP
    ("shared" experts have expert None and role gate/up/down only where no dense MLP exists in that layer).
    cross: cross-attention (decoder reading an encoder). param: "weight" or "bias".
    lead: index on the leading axis of a stacked tensor (experts in one 3-D tensor), None otherwise.
    transposed: stored as (in, out), as GPT-2's Conv1D does; the canonical orientation is (out, in).
    rows: which rows of the tensor *in canonical orientation* are this part: None for all, a (start, stop) pair,
    or an int64 array of row numbers (interleaved QKV).
    """

    role: str
    stack: str = "decoder"
    layer: int | None = None
    expert: int | None = None
    cross: bool = False
    param: Literal["weight", "bias"] = "weight"
    lead: int | None = None
    transposed: bool = False
    rows: tuple[int, int] | NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """What one stored tensor is.

    name: as stored. canonical: the name without wrapper prefixes ("bert.", "model.", "base_model.model." ...), equal for
    one model saved with and without its head. parts: its canonical tensors; empty when it has none, and then
    reason says why ("buffer", "pooler", "classification head", "unknown name" ...).
    stack and layer: the tower and layer that the tensor belongs to, also when it has no role (None outside layers).
    weight: False for buffers and fixed tables (rotary frequencies, causal masks, position ids): never hashed as weights.
    """

    name: str
    canonical: str
    parts: tuple[Part, ...] = ()
    reason: str | None = None
    stack: str = "decoder"
    layer: int | None = None
    weight: bool = True


@dataclass(frozen=True, slots=True)
class Arch:
    """Facts about one stack that the canonical form needs. Widths come from shapes, heads from the config."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: Literal["rms", "layer", "none"] = "rms"
    norm_offset: float = 0.0  # Gemma: the gain is 1 + g
    norm_place: Literal["pre", "post", "branch_out"] = "pre"  # post: BERT; branch_out: OLMo 2 (norm on the branch's output only)
    parallel: bool = False  # attention and MLP read one norm (GPT-J, Falcon-7B, Phi, Cohere)
    activation: str = "silu"
    fixed_positions: bool = False  # sinusoidal positions added to the residual: its coordinates are not exchangeable


@dataclass(frozen=True, slots=True)
class Layout:
    """Every tensor of a model, placed.

    model_type: the text tower's. main: the stack that is the text tower ("decoder" if there is one, else "encoder").
    archs: facts by stack. placements: one per stored tensor. unknown: names that no table knows.
    notes: what a reader should know ("text tower of llava", "vision tower kept apart").
    """

    model_type: str
    main: str
    archs: Mapping[str, Arch]
    placements: Mapping[str, Placement]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def resolve(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Layout:
    """Place every tensor of a model, from names, shapes and config alone.

    shapes: stored shape by tensor name. config: config.json, {} if there is none (the type is then told from the names).
    Unknown names are reported in Layout.unknown, never guessed.
    """
    raise NotImplementedError
