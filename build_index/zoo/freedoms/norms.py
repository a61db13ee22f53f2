"""Gains and biases of norms: they may sit in the norm or in the matrices that read it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from provindex.roles.canonical import PartKey
from provindex.roles.names import Arch

from ..parts import Parts
from ..snapshot import Snapshot
from .draws import F64, Refusal, rng_of, scaled


def fold_norms(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Move every gain that matrices alone read into them: gains become one, biases of LayerNorms go too."""
    del seed
    parts = Parts(snapshot)
    reason = fold(parts, lambda gain: np.ones_like(gain))
    return Refusal(reason) if reason else parts.snapshot("folded")


def redistribute_norms(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Give every such norm other gains at random, and the matrices that read it what is missing."""
    parts, rng = Parts(snapshot), rng_of(seed, "gains")
    reason = fold(parts, lambda gain: np.exp(0.5 * rng.standard_normal(gain.size)))
    return Refusal(reason) if reason else parts.snapshot("gains")


def fold(parts: Parts, wanted: Callable[[F64], F64]) -> str | None:
    """Replace foldable gains, or say why there are none."""
    norms = parts.pre_norms()
    if not norms:
        kinds = {parts.arch(stack).norm_place for stack in parts.stacks}
        return "every norm's output is added to the residual stream" if "post" in kinds else "no norm has a gain"
    reason = parts.refusal()
    if reason:
        return reason
    if any(norm.key.role == "norm_final" and norm.key.stack == parts.layout.main for norm in norms):
        transformed = any(extra.writes == "head" for extra in parts.extras)
        if parts.has_head() and not transformed and not parts.untie():
            return "no name is known for a head of its own"
    done = [_fold_one(parts, norm.key, norm.arch, wanted) for norm in norms]
    return None if any(done) else "no norm is read by matrices alone"


def _fold_one(parts: Parts, norm: PartKey, arch: Arch, wanted: Callable[[F64], F64]) -> bool:
    keys, names = parts.readers(norm)
    if not keys and not names:
        return False
    gain = arch.norm_offset + parts.read(norm)
    target = wanted(gain)
    ratio = gain / target
    bias = norm._replace(param="bias")
    if bias in parts.at:
        shift = parts.read(bias)
        takers = [key._replace(param="bias") for key in keys]
        if names or any(taker not in parts.at for taker in takers):
            if np.any((ratio == 0) & (shift != 0)):
                return False
            shift = np.divide(shift, ratio, out=np.zeros_like(shift), where=ratio != 0)
        else:
            for key, taker in zip(keys, takers, strict=True):
                parts.write(taker, parts.read(taker) + parts.read(key) @ shift)
            shift = np.zeros_like(shift)
        parts.write(bias, shift)
    for key in keys:
        parts.columns(key, scaled(ratio))
    for name in names:
        parts.axis(name, 1, scaled(ratio))
    parts.write(norm, target - arch.norm_offset)
    return True
