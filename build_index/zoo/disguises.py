"""Disguises: what someone may do to a checkpoint that changes the weights and not the function.

Each disguise takes a snapshot and a seed and returns another snapshot of the same function, to the rounding of its
number format, or a Refusal that says why this architecture does not allow it. All of them go through the roles of
`provindex.roles.names`, so one implementation serves every architecture. `tests/test_disguises.py` compares the
answers of small models before and after; `tests/parity/disguises_forward.py` does so with transformers.

What is free, and why:

    order          hidden units, experts, heads and the channels of v may be numbered in any way
    v and o        any invertible matrix M between them: o v = (o M^-1) (M v); so between q and k where no norm is
                   between them, and inside rotary planes where positions turn them
    gains          W diag(g) n = W (g n): a norm's gain may sit in the matrices that read it
    basis          RMSNorm commutes with every rotation, LayerNorm with those that keep the all-ones vector; a gain that
                   is added to the residual stream (post-norm, post-branch norm) allows permutations and signs only
    constants      LayerNorm discards the mean: readers and writers may carry any amount of the all-ones vector
    names          tokens may be numbered in any way; configs and tokenizers can be rewritten or left out
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .freedoms.constants import shift_readers, shift_writers
from .freedoms.draws import Disguise, Refusal, rng_of
from .freedoms.heads import permute_values, rescale_queries, rescale_values, rotate_queries, rotate_values
from .freedoms.norms import fold_norms, redistribute_norms
from .freedoms.stream import EPS_KEYS, permute_residual, rescale_residual, rotate_residual
from .freedoms.units import permute_experts, permute_heads, permute_neurons, rescale_gates, rescale_neurons
from .snapshot import Snapshot
from .vocabulary import renumber_vocabulary, renumbering

# ---- number format and metadata ---------------------------------------------------------------------------------


def int8(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Round every matrix to 8 bits a value with one scale a stored row, and back. Not exact: that is its point."""
    del seed
    tensors = {name: _rounded(t) if t.ndim >= 2 else t for name, t in snapshot.tensors.items()}
    return replace(snapshot, name=f"{snapshot.name}+int8", tensors=tensors)


def _rounded(tensor: NDArray[Any]) -> NDArray[Any]:
    step = np.abs(tensor).max(axis=-1, keepdims=True) / 127
    safe = np.where(step > 0, step, 1)
    return np.asarray(np.rint(tensor / safe) * step, dtype=tensor.dtype)


def rename_metadata(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Another model type, architecture and origin in the config; tensor names stay, so code of its own can load it."""
    name = f"acme{rng_of(seed, 'name').integers(1000)}"
    config = {k: v for k, v in snapshot.config.items() if k not in ("_name_or_path", "auto_map")}
    config |= {"model_type": name, "architectures": [f"{name.title()}ForCausalLM"], "_name_or_path": f"{name}/base"}
    return replace(snapshot, name=f"{snapshot.name}+renamed", config=config)


def withhold_tokenizer(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """No tokenizer."""
    del seed
    return replace(snapshot, name=f"{snapshot.name}+no tokenizer", tokenizer="")


def withhold_config(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Weights alone: no tokenizer and an empty config."""
    del seed
    return replace(snapshot, name=f"{snapshot.name}+weights only", config={}, tokenizer="")


# ---- together ---------------------------------------------------------------------------------------------------

EXACT: Mapping[str, Disguise] = {
    "permute_neurons": permute_neurons,
    "permute_experts": permute_experts,
    "permute_heads": permute_heads,
    "permute_values": permute_values,
    "rotate_values": rotate_values,
    "rotate_queries": rotate_queries,
    "rescale_values": rescale_values,
    "rescale_queries": rescale_queries,
    "rescale_neurons": rescale_neurons,
    "rescale_gates": rescale_gates,
    "fold_norms": fold_norms,
    "redistribute_norms": redistribute_norms,
    "permute_residual": permute_residual,
    "rotate_residual": rotate_residual,
    "rescale_residual": rescale_residual,
    "shift_readers": shift_readers,
    "shift_writers": shift_writers,
    "renumber_vocabulary": renumber_vocabulary,
}
_ALL: tuple[Disguise, ...] = (
    rotate_residual, rescale_residual, permute_experts, permute_neurons, rescale_neurons, rescale_gates, permute_heads,
    rotate_values, rescale_values, rotate_queries, rescale_queries,
    lambda snapshot, seed: shift_readers(snapshot, seed, 1.0),
    lambda snapshot, seed: shift_writers(snapshot, seed, 1.0),
    renumber_vocabulary,
)  # fmt: skip


def everything(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Every exact disguise that the architecture allows, one after the other."""
    done = snapshot
    for disguise in _ALL:
        result = disguise(done, seed)
        done = done if isinstance(result, Refusal) else result
    return Refusal("nothing applies") if done is snapshot else replace(done, name=f"{snapshot.name}+all")


def everything_int8(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """`everything`, then `int8`."""
    done = everything(snapshot, seed)
    return done if isinstance(done, Refusal) else int8(done, seed)


DISGUISES: Mapping[str, Disguise] = {
    **EXACT,
    "all": everything,
    "int8": int8,
    "all_int8": everything_int8,
    "rename_metadata": rename_metadata,
    "withhold_tokenizer": withhold_tokenizer,
    "withhold_config": withhold_config,
}

__all__ = ["DISGUISES", "EPS_KEYS", "EXACT", "Disguise", "Refusal", "disguise", "renumbering"]


def disguise(name: str, snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """A disguise by its name in DISGUISES."""
    return DISGUISES[name](snapshot, seed)
