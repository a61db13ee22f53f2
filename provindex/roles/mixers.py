"""Layers without attention: how the fused matrices of state-space and linear-attention mixers lie.

Their sizes come from the other tensors of the same layer: what writes the residual stream has a column for each
channel, the decay a value for each head, or a row for each channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Split = tuple[int, int] | NDArray[np.int64] | None

MIXED = frozenset({"ssm_bcx", "ssm_zxbcdt", "ssm_rank_bc", "lin_qkv", "lin_qkvz", "lin_ba"})
KEY_HEADS = ("linear_num_key_heads",)


@dataclass(frozen=True, slots=True)
class Mixer:
    """Sizes of a mixer; 0 for what its tensors do not tell.

    inner: channels that are written back. heads: of them (Mamba 2, linear attention). state: numbers that a channel
    keeps (Mamba). key_heads: of linear attention, which only a config tells.
    """

    inner: int = 0
    heads: int = 0
    state: int = 0
    key_heads: int = 0


def mixers_of(shapes: Mapping[str, tuple[int, ...]], sources: Iterable[Mapping[str, Any]]) -> Mixer:
    """The sizes of one layer's mixer. shapes: of its tensors that are one part each, by role. sources: configs."""
    out = shapes.get("ssm_out") or shapes.get("lin_out") or ()
    decay = shapes.get("ssm_a") or shapes.get("lin_decay") or ()
    told = [source[key] for source in sources for key in KEY_HEADS if isinstance(source.get(key), int)]
    return Mixer(
        inner=out[1] if len(out) == 2 else 0,
        heads=decay[0] if len(decay) == 1 else 0,
        state=decay[1] if len(decay) == 2 else 0,
        key_heads=int(told[0]) if told and 0 < told[0] <= 1 << 16 else 0,
    )


def channels(usual: Mapping[str, tuple[int, ...]]) -> int:
    """Channels of one head of a state-space stack, from the shapes that its layers have by role; 0 without heads."""
    out, decay = usual.get("ssm_out", ()), usual.get("ssm_a", ())
    if len(out) != 2 or len(decay) != 1 or out[1] % decay[0] or out[1] == decay[0]:
        return 0
    return out[1] // decay[0]


def split_mixer(fused: str, rows: int, mixer: Mixer | None) -> tuple[Split, ...] | str:
    """Rows of each part of a mixer's fused tensor, or what they do not fit."""
    if fused == "ssm_bcx":
        return _in_turn(rows, [rows // 3] * 3)
    if mixer is None:
        return "a mixer of unknown size"
    if fused == "ssm_zxbcdt":
        groups = rows - 2 * mixer.inner - mixer.heads
        sizes = [mixer.inner, mixer.inner, groups // 2, groups // 2, mixer.heads]
        return _in_turn(rows, sizes if mixer.heads and mixer.inner else [])
    if fused == "ssm_rank_bc":
        return _in_turn(rows, [rows - 2 * mixer.state, mixer.state, mixer.state] if mixer.state else [])
    if fused == "lin_qkv":
        keys = (rows - mixer.inner) // 2
        return _in_turn(rows, [keys, keys, mixer.inner] if mixer.inner else [])
    if not mixer.key_heads or not mixer.heads or mixer.heads % mixer.key_heads or mixer.inner % mixer.heads:
        return "an unknown number of key heads"
    if fused == "lin_ba":
        return _by_key_head(rows, mixer, [1, 1], values=mixer.heads)
    keys = (rows - 2 * mixer.inner) // 2
    return _by_key_head(rows, mixer, [0, 0, 1, 1], values=mixer.inner, keys=keys)


def _in_turn(rows: int, sizes: list[int]) -> tuple[Split, ...] | str:
    """Parts one after the other."""
    if not sizes or min(sizes) < 1 or sum(sizes) != rows:
        return "the sizes of its mixer"
    stops = np.cumsum(sizes).tolist()
    return tuple(zip([0, *stops[:-1]], stops, strict=True))


def _by_key_head(rows: int, mixer: Mixer, kinds: list[int], *, values: int, keys: int = 0) -> tuple[Split, ...] | str:
    """Parts of the first key head, then of the next. kinds: of each part 1 if its rows are values', 0 if keys'."""
    sizes = [(values if kind else keys) // mixer.key_heads for kind in kinds]
    if min(sizes) < 1 or mixer.key_heads * sum(sizes) != rows:
        return "the sizes of its mixer"
    at = np.arange(rows, dtype=np.int64).reshape(mixer.key_heads, -1)
    stops = np.cumsum(sizes).tolist()
    return tuple(at[:, start:stop].reshape(-1) for start, stop in zip([0, *stops[:-1]], stops, strict=True))
