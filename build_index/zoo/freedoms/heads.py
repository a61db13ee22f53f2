"""The channels inside a head: any matrix between v and o, and between q and k what positions allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from provindex.roles.names import Arch

from ..parts import Change, Parts
from ..snapshot import Snapshot
from .draws import F64, Refusal, rng_of, rotation, scales


def permute_values(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the channels of v inside each head anew, and the columns of o that read them."""
    return mix_values(snapshot, "values", lambda size, rng: np.eye(size)[rng.permutation(size)], seed)


def rotate_values(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Rotate the channels of v inside each head, and turn the columns of o back."""
    return mix_values(snapshot, "value rotation", rotation, seed)


def rescale_values(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale each channel of v, sign included, and scale the columns of o back."""
    return mix_values(snapshot, "value scale", lambda size, rng: np.diag(scales(size, rng, signs=True)), seed)


def mix_values(
    snapshot: Snapshot, what: str, draw: Callable[[int, np.random.Generator], F64], seed: int
) -> Snapshot | Refusal:
    """Put a drawn matrix between the v and o of each head, and its inverse behind it."""
    parts, rng, done = Parts(snapshot), rng_of(seed, what), 0
    for block, arch in parts.attentions():
        mix = np.stack([draw(arch.head_dim, rng) for _ in range(arch.kv_heads)])
        back = np.repeat(_inverse_transposed(mix), arch.heads // arch.kv_heads, axis=0)
        parts.rows(block.key("v"), _per_head(mix))
        parts.columns(block.key("o"), _per_head(back))
        done += 1
    return parts.snapshot(what) if done else Refusal("no attention with value rows of its own")


def rotate_queries(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Rotate q and k alike: inside the rotary planes, and freely where positions do not turn them."""
    return mix_queries(snapshot, "query rotation", rotation, seed)


def rescale_queries(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale q and scale k back, by one factor a rotary plane or a channel."""
    return mix_queries(snapshot, "query scale", lambda size, rng: np.diag(scales(size, rng, signs=False)), seed)


def mix_queries(
    snapshot: Snapshot, what: str, draw: Callable[[int, np.random.Generator], F64], seed: int
) -> Snapshot | Refusal:
    """Put a drawn matrix between q and k, inside the rotary planes where positions turn them."""
    parts, rng, done = Parts(snapshot), rng_of(seed, what), 0
    reason = _queries_are_bound(parts)
    if reason:
        return Refusal(reason)
    for block, arch in parts.attentions():
        planes = [] if block.cross else rotary_planes(parts, block.stack, arch)
        if planes is None or block.key("norm_q") in parts.at:
            continue
        mix = np.stack([_plane_matrix(arch.head_dim, planes, draw, rng) for _ in range(arch.kv_heads)])
        group = arch.heads // arch.kv_heads
        parts.rows(block.key("q"), _per_head(np.repeat(mix, group, axis=0)))
        parts.rows(block.key("k"), _per_head(_inverse_transposed(mix)))
        done += 1
    return parts.snapshot(what) if done else Refusal("a norm stands on the queries, or their positions are unknown")


def _queries_are_bound(parts: Parts) -> str | None:
    for reason in ("relative position embedding", "relative position projection", "query norm of one head"):
        if parts.has(reason):
            return f"{reason}: it meets the queries and keys"
    return None


def _plane_matrix(
    size: int, planes: list[tuple[int, int]], draw: Callable[[int, np.random.Generator], F64], rng: np.random.Generator
) -> F64:
    """A matrix that commutes with turns of the planes: a turn and a factor in each, anything on the rest."""
    out = np.zeros((size, size))
    for plane in planes:
        one = draw(2, rng)
        scale, angle = np.sqrt(abs(np.linalg.det(one))), np.arctan2(one[1, 0], one[0, 0])
        angle = angle if abs(one[1, 0]) > 0 else 0.0  # a drawn diagonal scales and does not turn
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        out[np.ix_(plane, plane)] = turn
    rest = np.setdiff1d(np.arange(size), np.array(planes, np.int64).ravel())
    if rest.size:
        out[np.ix_(rest, rest)] = draw(rest.size, rng)
    return out


def _per_head(mix: F64) -> Change:
    """Apply one matrix to the channels of each head."""
    return lambda a: np.einsum("hij,hj...->hi...", mix, a.reshape(len(mix), mix.shape[1], -1)).reshape(a.shape)


def _inverse_transposed(mix: F64) -> F64:
    return np.asarray(np.linalg.inv(mix).transpose(0, 2, 1), np.float64)


_NO_ROTARY = frozenset(
    "gpt2 gpt_bigcode gpt_neo opt bloom mpt bert roberta xlm-roberta camembert mpnet electra albert distilbert "
    "t5 mt5 umt5 bart mbart marian m2m_100 pegasus whisper clip_text_model siglip_text_model".split()
)
_PAIRS = frozenset("gptj cohere cohere2 glm4 chatglm".split())  # channels 2i and 2i + 1 turn together
_HALVES = frozenset(  # channels i and i + half
    "llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe phi3 phi gemma gemma2 gemma3_text starcoder2 stablelm olmo "
    "olmo2 granite nemotron smollm3 internlm internlm2 baichuan gpt_oss qwen gpt_neox falcon modernbert".split()
)
_ROTARY_SHARE = {
    "phi": 0.5,
    "stablelm": 0.25,
    "gpt_neox": 0.25,
    "nemotron": 0.5,
    "glm": 0.5,
    "glm4": 0.5,
    "chatglm": 0.5,
}


def rotary_planes(parts: Parts, stack: str, arch: Arch) -> list[tuple[int, int]] | None:
    """Pairs of channels of a head that positions turn together, [] without rotary positions, None if unknown."""
    kind = str(parts.layout.model_type)
    pairs = kind == "glm" or parts.model_type in _PAIRS
    if stack not in parts.stacks:
        return [] if stack == "audio" else None
    if parts.model_type in _NO_ROTARY or alibi(parts):
        return []
    if not pairs and parts.model_type not in _HALVES:
        return None
    width = _rotary_width(parts, kind, arch.head_dim)
    if pairs:
        return [(2 * i, 2 * i + 1) for i in range(width // 2)]
    return [(i, i + width // 2) for i in range(width // 2)]


def _rotary_width(parts: Parts, kind: str, head_dim: int) -> int:
    inner = parts.config.get("rope_parameters")
    sources = [c for c in (parts.config.get("text_config"), parts.config, inner) if isinstance(c, Mapping)]
    for source in sources:
        for key in ("partial_rotary_factor", "rotary_pct"):
            if isinstance(source.get(key), int | float):
                return int(head_dim * source[key])
        if isinstance(source.get("rotary_dim"), int):
            return int(source["rotary_dim"])
    return int(head_dim * _ROTARY_SHARE.get(kind, 1.0))


def alibi(parts: Parts) -> bool:
    inner = parts.config.get("attn_config")
    said = [c.get("alibi") for c in (parts.config, inner) if isinstance(c, Mapping) and "alibi" in c]
    deep_baichuan = parts.model_type == "baichuan" and int(parts.config.get("hidden_size") or 0) >= 5120
    return bool(said[0]) if said else parts.model_type in ("bloom", "mpt") or deep_baichuan
