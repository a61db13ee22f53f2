"""What the naming tables are written with: reasons that recur, schemes and kinds, and rows that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Table = Mapping[str, str]

MAIN = "main"  # the text tower's stack, whichever that is: for embeddings shared by an encoder and a decoder

BUFFER = "~ buffer"
ROTARY = "~ rotary frequencies"
MASK = "~ causal mask"
FIXED = "~ fixed positions"
TRANSFORM = "- language-model head transform"
CLASSIFIER = "- classification head"
POOLER = "- pooler"
RELATIVE = "- relative position bias"
RELATIVE_TABLE = "- relative position embedding"
LATENT = "- latent attention factor (no head has rows of its own in the residual width)"
PROJECTION = "- projection head"
PREDICTION = "- multi-token prediction"
SHARED_GATE = "- shared expert gate"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to name tensors: tables with the prefix that their templates have, and the stack that they fill.

    stacks: (stack, prefix, table). default: the model type whose facts hold when only the names are known.
    """

    stacks: tuple[tuple[str, str, Table], ...]
    default: str


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model type implies beyond its names. heads, kv_heads, head_dim: the class defaults that hold when the
    published config leaves the key out (nested configs store differences only); 0 when there is none.
    """

    scheme: str
    norm: Literal["rms", "layer", "none"] = "rms"
    norm_offset: float = 0.0
    norm_place: Literal["pre", "post", "branch_out"] = "pre"
    activation: str = "silu"
    fixed_positions: bool = False
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0


def experts(module: str, gate: str, up: str, down: str) -> dict[str, str]:
    """Routed experts, one tensor each."""
    names = {gate: "gate", up: "up", down: "down"}
    return {f"{module}.experts.{{e}}.{name}": role for name, role in names.items()}


def under(prefix: str, table: Table) -> dict[str, str]:
    return {prefix + name: what for name, what in table.items()}


def attention(module: str, out: str = "o_proj", flags: str = "") -> dict[str, str]:
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", out: "o"}
    return {f"{module}.{name}": role + flags for name, role in names.items()}
