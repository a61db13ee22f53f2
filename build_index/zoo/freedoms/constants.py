"""Multiples of the all-ones vector, which LayerNorm discards."""

from __future__ import annotations

import numpy as np

from provindex.roles.canonical import PartKey
from provindex.roles.names import Arch
from provindex.roles.templates import RELATIVE_TABLE

from ..parts import READERS, WRITERS, Parts
from ..snapshot import Snapshot
from .draws import F64, Refusal, rng_of

SHIFT = 10.0  # in units of a row's standard deviation


def shift_readers(snapshot: Snapshot, seed: int, strength: float = SHIFT) -> Snapshot | Refusal:
    """Add a multiple of the direction that a LayerNorm cannot produce to every row that reads it; biases make up for
    the constant that its own bias contributes, and rows without one are left where that constant is not zero.
    """
    parts, rng, done = Parts(snapshot), rng_of(seed, "reader shift"), 0
    related = parts.has(RELATIVE_TABLE[2:])  # DeBERTa's queries and keys also read the positions
    for key in [k for k in parts.at if k.role in READERS and k.param == "weight" and k.layer is not None]:
        source = _read_norm(parts, key)
        if source is None or (key.role in ("q", "k") and related):
            continue
        gain, shift = source
        rows, bias = parts.read(key), key._replace(param="bias")
        direction = gain.mean() / gain
        size = strength * rows.std(axis=1) * rng.standard_normal(len(rows))
        constant = float(direction @ shift)
        if bias not in parts.at and constant != 0:
            continue
        parts.write(key, rows + size[:, None] * direction)
        if bias in parts.at:
            parts.write(bias, parts.read(bias) - size * constant)
        done += 1
    return parts.snapshot("reader shift") if done else Refusal("no row reads a LayerNorm and can be made up for")


def _read_norm(parts: Parts, key: PartKey) -> tuple[F64, F64] | None:
    """Gain and bias of the LayerNorm that a reader reads, None if it reads another thing or a gain is zero."""
    arch = parts.layout.archs[key.stack]
    branch = "mlp" if key.role in ("gate", "up", "router") else "attn"
    if arch.norm != "layer" or (key.cross and key.role != "q") or key.layer is None:
        return None
    norm = _norm_before(parts, arch, key, branch)
    if norm is None:
        return (np.ones(arch.hidden), np.zeros(arch.hidden)) if _bare(parts, key.stack, arch) else None
    gain, bias = arch.norm_offset + parts.read(norm), norm._replace(param="bias")
    if gain.size != parts.shape(key)[1] or np.abs(gain).min() < 0.05 * np.abs(gain).max():
        return None
    return gain, parts.read(bias) if bias in parts.at else np.zeros(gain.size)


def _bare(parts: Parts, stack: str, arch: Arch) -> bool:
    """LayerNorms without parameters (OLMo)."""
    return arch.norm_place == "pre" and not any(k.role.startswith("norm") and k.stack == stack for k in parts.at)


def _norm_before(parts: Parts, arch: Arch, key: PartKey, branch: str) -> PartKey | None:
    """The norm whose output a reader reads."""
    at, cross_out = key._replace(expert=None, cross=False), key._replace(role="norm_attn_out", cross=True, expert=None)
    layer = key.layer or 0
    if arch.norm_place == "post":
        options = (
            [at._replace(role="norm_mlp_out", layer=layer - 1)]
            if layer
            else [at._replace(role="norm_embed", layer=None)]
        )
        if branch == "mlp":
            options = [cross_out, at._replace(role="norm_attn_out")]
        elif key.cross:
            options = [at._replace(role="norm_attn_out")]
    elif key.cross:
        options = [at._replace(role="norm_attn", cross=True)]
    else:
        options = [at._replace(role="norm_attn")]
        if branch == "mlp":
            options = [at._replace(role="norm_mlp"), *options]
        elif layer == 0:
            options += [at._replace(role="norm_embed", layer=None)]
    return next((option for option in options if option in parts.at), None)


def shift_writers(snapshot: Snapshot, seed: int, strength: float = SHIFT) -> Snapshot | Refusal:
    """Add multiples of the all-ones vector to what is written into a residual stream that only LayerNorms read."""
    parts, rng = Parts(snapshot), rng_of(seed, "writer shift")
    stacks = [stack for stack in parts.stacks if parts.arch(stack).norm == "layer"]
    if not stacks:
        return Refusal("no LayerNorm: the mean of the residual stream is read")
    for key in list(parts.at):
        if key.stack in stacks and (key.role in WRITERS or _shiftable(parts, key)):
            axis = 1 if key.role in ("embed", "pos") else 0
            values = parts.read(key)
            scale = strength * values.std(axis=axis)
            shift = np.asarray(scale * rng.standard_normal(scale.shape))
            parts.write(key, values + (shift[:, None] if axis == 1 else shift))
    return parts.snapshot("writer shift")


def _shiftable(parts: Parts, key: PartKey) -> bool:
    """Embedding tables whose rows may get a constant: only a LayerNorm reads them, no tied head does."""
    arch = parts.arch(key.stack)
    normed = any(k.role == "norm_embed" and k.stack == key.stack for k in parts.at)
    if (arch.norm_place == "post" and not normed) or parts.mapped():
        return False
    if key.role == "pos":
        return True
    return key.role == "embed" and (not parts.has_head() or not parts.tied() or parts.untie())
