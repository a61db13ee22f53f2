"""The basis and the scale of the residual stream."""

from __future__ import annotations

import numpy as np

from provindex.roles.canonical import PartKey

from ..parts import READERS, WRITERS, Change, Parts
from ..snapshot import Snapshot
from .draws import Refusal, rng_of, rotation, rotation_keeping_ones
from .norms import fold


def permute_residual(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the coordinates of the residual stream anew: in every architecture whose ends are known."""
    parts = Parts(snapshot)
    reason = _turn_refusal(parts)
    if reason:
        return Refusal(reason)
    order = rng_of(seed, "coordinates").permutation(_width(parts))
    _turn(parts, lambda a: a[order], gains=lambda a: a[order])
    return parts.snapshot("coordinates")


def rotate_residual(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Turn the residual stream as far as its norms allow: any rotation, one that keeps the all-ones vector
    (LayerNorm), signs and a permutation (an RMSNorm's gain is added to the stream), a permutation (a LayerNorm's is).
    """
    parts, rng = Parts(snapshot), rng_of(seed, "rotation")
    reason = _turn_refusal(parts)
    if reason:
        return Refusal(reason)
    size, freedom = _width(parts), residual_freedom(parts)
    if freedom in ("rotation", "rotation keeping ones"):
        reason = fold(parts, lambda gain: np.ones_like(gain))
        if reason not in (None, "no norm has a gain"):
            return Refusal(str(reason))
        matrix = rotation(size, rng) if freedom == "rotation" else rotation_keeping_ones(size, rng)
        _turn(parts, lambda a: matrix @ a, gains=None)
    else:
        order = rng.permutation(size)
        signs = rng.choice([-1.0, 1.0], size) if freedom == "signed permutation" else np.ones(size)
        _turn(parts, lambda a: (a[order].T * signs).T, gains=lambda a: a[order])
    return parts.snapshot(f"residual {freedom}")


def residual_freedom(parts: Parts) -> str:
    """The widest change of basis that leaves the function alone: "rotation", "rotation keeping ones",
    "signed permutation" or "permutation".
    """
    layer = any(parts.arch(stack).norm == "layer" for stack in parts.stacks)
    added = any(key.role in ("norm_attn_out", "norm_mlp_out") and key.stack in parts.stacks for key in parts.at)
    added |= any(key.role == "norm_embed" and key.stack in parts.stacks for key in parts.at)
    headed = any(extra.writes == "head" for extra in parts.extras) and not parts.mapped()
    end = PartKey(parts.layout.main, None, "norm_final", None, False, "weight")
    answered = end in parts.at and not any(parts.readers(end)) and not parts.tied()  # the stream itself is the answer
    if added or headed or answered:
        return "permutation" if layer else "signed permutation"
    return "rotation keeping ones" if layer else "rotation"


def _turn_refusal(parts: Parts) -> str | None:
    reason = parts.refusal()
    if reason:
        return reason
    widths = {parts.arch(stack).hidden for stack in parts.stacks}
    if len(widths) != 1:
        return "its towers have several widths"
    for stack in parts.stacks:
        stored = any(key.role == "pos" and key.stack == stack for key in parts.at)
        if parts.arch(stack).fixed_positions and not stored:
            return "fixed positions are added to the residual stream"
    return None


def _width(parts: Parts) -> int:
    return parts.arch(parts.layout.main).hidden


def _turn(parts: Parts, change: Change, gains: Change | None) -> None:
    """Change the basis of the residual stream. change: orthogonal. gains: how gains follow, None if they are one."""
    mapped, encoded = parts.mapped(), "encoder" in parts.stacks
    for key in list(parts.at):
        if key.stack not in parts.stacks:
            continue
        weight = key.param == "weight"
        outside = key.cross and key.role in ("k", "v") and not encoded and key.stack == "decoder"
        if key.role in READERS and weight and not outside and not _cross_external(parts, key):
            parts.columns(key, change)
        elif weight and key.role in (*WRITERS, "embed_map"):
            parts.rows(key, change)
        elif _is_table(parts, key, mapped) and weight:
            parts.columns(key, change)
        elif key.role in NORMS and not (key.role == "norm_embed" and _before_map(parts, key, mapped)):
            follow = gains if weight else change
            if follow is not None:
                parts.write(key, follow(parts.read(key)))
    _turn_extras(parts, change, mapped)


NORMS = ("norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out", "norm_final", "norm_embed")


def _before_map(parts: Parts, norm: PartKey, mapped: bool) -> bool:
    """Whether an embedding's norm stands before the map (ALBERT, ELECTRA); DeBERTa's stands behind it."""
    return mapped and parts.shape(norm) == parts.shape(parts.embed_key())[1:]


def _cross_external(parts: Parts, key: PartKey) -> bool:
    """Cross-attention of an encoder that is used as a decoder reads another model."""
    return key.cross and key.role in ("k", "v") and key.stack == parts.layout.main == "encoder"


def _is_table(parts: Parts, key: PartKey, mapped: bool) -> bool:
    """Embedding tables and heads whose columns are coordinates of the residual stream."""
    if key.role == "pos":
        return parts.shape(key)[1] == parts.arch(key.stack).hidden and not (mapped and _pos_before_map(parts))
    return key.role in ("embed", "head") and not mapped


def _pos_before_map(parts: Parts) -> bool:
    """Whether positions are added before the map (ALBERT); OPT adds them after it."""
    return parts.model_type != "opt"


def _turn_extras(parts: Parts, change: Change, mapped: bool) -> None:
    for extra in parts.extras:
        if extra.reads == "table":
            if not mapped:
                parts.axis(extra.name, 1, change)
        elif extra.reads:
            parts.axis(extra.name, 1, change)
        if extra.writes == "residual" or (extra.writes == "head" and not mapped):
            parts.axis(extra.name, 0, change)


EPS_KEYS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon")


def rescale_residual(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Multiply the residual stream by a factor that is no power of two. Every norm sees its input scaled, so its
    epsilon goes into the config times the square: exact, where the config writes the epsilon of every norm.
    """
    parts = Parts(snapshot)
    reason = _turn_refusal(parts) or _rescale_refusal(parts)
    if reason:
        return Refusal(reason)
    factor = float(np.exp(rng_of(seed, "factor").uniform(0.3, 1.0)))
    for key in list(parts.at):
        if key.stack in parts.stacks:
            _rescale_one(parts, key, factor)
    for extra in parts.extras:
        if extra.reads == "table":
            parts.axis(extra.name, 1, lambda a: a * factor)
    for name in EPS_KEYS:
        if isinstance(parts.config.get(name), float):
            parts.config[name] *= factor**2
    return parts.snapshot("residual scale")


def _rescale_one(parts: Parts, key: PartKey, factor: float) -> None:
    offset, raw = parts.arch(key.stack).norm_offset, parts.arch(key.stack).norm_place == "branch_out"
    normed = key._replace(role=f"norm_{key.role}", param="weight") in parts.at
    if key.role in (*WRITERS, "embed", "pos") or (key.role == "embed_map" and key.param == "bias"):
        parts.write(key, factor * parts.read(key))
    elif key.role in ("norm_attn_out", "norm_mlp_out", "norm_embed"):
        parts.write(key, factor * (offset + parts.read(key)) - offset)
    elif key.role in ("q", "k") and normed and not (raw and key.param == "weight"):
        parts.write(key, factor * parts.read(key))  # the epsilon of their own norm was scaled too
    elif key.role in READERS and raw and not normed and key.param == "weight":
        parts.write(key, parts.read(key) / factor)
    elif key.role == "norm_final" and key.stack == parts.layout.main and parts.tied():
        parts.write(key, (offset + parts.read(key)) / factor - offset)


def _rescale_refusal(parts: Parts) -> str | None:
    if any(parts.arch(stack).norm_place == "post" for stack in parts.stacks):
        return "the scale of the stream is that of its norms' gains"
    if not any(isinstance(parts.config.get(key), float) for key in EPS_KEYS):
        return "the config does not write the norms' epsilon"
    if any(extra.writes == "head" for extra in parts.extras) or parts.mapped():
        return "a norm behind the last one has the same epsilon"
    for reason in ("latent attention factor", "query norm of one head"):
        if parts.has(reason):
            return f"{reason}: its norm has the same epsilon"
    if parts.tied() and not any(key.role == "norm_final" for key in parts.at):
        return "the head is tied and no gain stands before it"
    return None
