"""Disguises: what someone may do to a checkpoint that changes the weights and not the function.

Each disguise takes a snapshot and a seed and returns another snapshot of the same function, to the rounding of its
number format, or a Refusal that says why this architecture does not allow it. All of them go through the roles of
`provindex.names`, so one implementation serves every architecture. `tests/test_disguises.py` compares the answers of
small models before and after; `tests/parity/disguises_forward.py` does so with transformers.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from provindex.architectures import RELATIVE, RELATIVE_TABLE
from provindex.evidence.canonical import PartKey
from provindex.names import Arch

from .parts import READERS, WRITERS, Block, Change, Parts
from .snapshot import Snapshot
from .vocabulary import renumber_vocabulary, renumbering

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Refusal:
    """A disguise that would change the function of this architecture, and why."""

    reason: str


Disguise = Callable[[Snapshot, int], "Snapshot | Refusal"]


def _rng(seed: int, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(what.encode())])


def _ordered(order: I64) -> Change:
    return lambda a: a[order]


def _scaled(scale: F64) -> Change:
    return lambda a: (a.T * scale).T


# ---- order ------------------------------------------------------------------------------------------------------


def permute_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the hidden units of every MLP and expert anew."""
    parts, rng = Parts(snapshot), _rng(seed, "neurons")
    for block, _ in parts.mlps():
        order = rng.permutation(parts.shape(block.key("down"))[1])
        _units(parts, block, _ordered(order))
    return parts.snapshot("neurons")


def _units(parts: Parts, block: Block, change: Change) -> None:
    for role in ("gate", "up"):
        parts.rows(block.key(role), change)
    parts.columns(block.key("down"), change)


def permute_experts(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the experts of every layer anew, together with the rows of the router."""
    parts, rng, done = Parts(snapshot), _rng(seed, "experts"), 0
    if any(int(parts.config.get(key) or 1) > 1 for key in ("n_group", "topk_group")):
        return Refusal("experts are chosen by groups")
    for router in [key for key in parts.at if key.role == "router" and key.param == "weight"]:
        order = rng.permutation(parts.shape(router)[0])
        parts.rows(router, _ordered(order))
        for place in parts.placed("router score correction"):
            if (place.stack, place.layer) == router[:2]:
                parts.axis(place.name, 0, _ordered(order))
        _move_experts(parts, router, order)
        done += 1
    return parts.snapshot("experts") if done else Refusal("no routed experts")


def _move_experts(parts: Parts, router: PartKey, order: I64) -> None:
    keys = [k for k in parts.at if (k.stack, k.layer) == router[:2] and k.expert is not None]
    held = {key: parts.read(key) for key in keys}
    for key in keys:
        if key.expert is not None:
            parts.write(key, held[key._replace(expert=int(order[key.expert]))])


def permute_heads(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number attention heads anew: key groups as a whole, and the queries inside their group."""
    parts = Parts(snapshot)
    reason = _heads_are_bound(parts)
    if reason:
        return Refusal(reason)
    for block, arch in parts.attentions():
        shared = parts.has(RELATIVE[2:], block.stack) and not block.cross  # one table of biases serves every layer
        rng = _rng(seed, f"heads {block.stack} {block.cross} {-1 if shared else block.layer}")
        _order_heads(parts, block, arch, *_head_order(arch, rng))
    return parts.snapshot("heads")


def _heads_are_bound(parts: Parts) -> str | None:
    if _alibi(parts):
        return "each head has its own position slope (ALiBi)"
    for reason in ("relative position embedding", "relative position projection", "query norm of one head"):
        if parts.has(reason):
            return f"{reason}: it meets the queries and keys of each head"
    return None if any(True for _ in parts.attentions()) else "no attention with query, key and value rows"


def _alibi(parts: Parts) -> bool:
    inner = parts.config.get("attn_config")
    said = [c.get("alibi") for c in (parts.config, inner) if isinstance(c, Mapping) and "alibi" in c]
    deep_baichuan = parts.model_type == "baichuan" and int(parts.config.get("hidden_size") or 0) >= 5120
    return bool(said[0]) if said else parts.model_type in ("bloom", "mpt") or deep_baichuan


def _head_order(arch: Arch, rng: np.random.Generator) -> tuple[I64, I64]:
    """Order of the query heads and of the key heads."""
    group = arch.heads // arch.kv_heads
    keys = rng.permutation(arch.kv_heads)
    queries = np.concatenate([k * group + rng.permutation(group) for k in keys])
    return queries, keys


def _order_heads(parts: Parts, block: Block, arch: Arch, queries: I64, keys: I64) -> None:
    def by(order: I64) -> Change:
        return lambda a: a.reshape(len(order), -1)[order].reshape(a.shape)

    parts.rows(block.key("q"), by(queries))
    parts.columns(block.key("o"), by(queries))
    for role in ("k", "v"):
        parts.rows(block.key(role), by(keys))
    for role, order in (("norm_q", queries), ("norm_k", keys)):
        key = block.key(role)
        if key in parts.at and parts.read(key).size == len(order) * arch.head_dim:  # one gain a channel of every head
            parts.rows(key, by(order))
    for reason in (RELATIVE[2:], "attention sinks"):
        for place in parts.placed(reason):
            if place.stack == block.stack and not block.cross and place.layer in (None, 0, block.layer):
                _order_biases(parts, place.name, block, queries)


def _order_biases(parts: Parts, name: str, block: Block, order: I64) -> None:
    """Columns of a table of relative position biases (once, whichever layer holds it), or a vector of sinks."""
    place = parts.layout.placements[name]
    first = min(
        layer for layer in {b.layer for b, _ in parts.attentions() if b.stack == block.stack} if layer is not None
    )
    if block.layer == (first if place.layer is None else place.layer):
        parts.axis(name, parts.tensors[name].ndim - 1, lambda a: a[order])


# ---- inside a head ----------------------------------------------------------------------------------------------


def permute_values(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the channels of v inside each head anew, and the columns of o that read them."""
    return _mix_values(snapshot, "values", lambda size, rng: np.eye(size)[rng.permutation(size)], seed)


def rotate_values(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Rotate the channels of v inside each head, and turn the columns of o back."""
    return _mix_values(snapshot, "value rotation", _rotation, seed)


def rescale_values(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale each channel of v, sign included, and scale the columns of o back."""
    return _mix_values(snapshot, "value scale", lambda size, rng: np.diag(_scales(size, rng, signs=True)), seed)


def _mix_values(
    snapshot: Snapshot, what: str, draw: Callable[[int, np.random.Generator], F64], seed: int
) -> Snapshot | Refusal:
    parts, rng, done = Parts(snapshot), _rng(seed, what), 0
    for block, arch in parts.attentions():
        mix = np.stack([draw(arch.head_dim, rng) for _ in range(arch.kv_heads)])
        back = np.repeat(_inverse_transposed(mix), arch.heads // arch.kv_heads, axis=0)
        parts.rows(block.key("v"), _per_head(mix))
        parts.columns(block.key("o"), _per_head(back))
        done += 1
    return parts.snapshot(what) if done else Refusal("no attention with value rows of its own")


def rotate_queries(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Rotate q and k alike: inside the rotary planes, and freely where positions do not turn them."""
    return _mix_queries(snapshot, "query rotation", _rotation, seed)


def rescale_queries(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale q and scale k back, by one factor a rotary plane or a channel."""
    return _mix_queries(snapshot, "query scale", lambda size, rng: np.diag(_scales(size, rng, signs=False)), seed)


def _mix_queries(
    snapshot: Snapshot, what: str, draw: Callable[[int, np.random.Generator], F64], seed: int
) -> Snapshot | Refusal:
    parts, rng, done = Parts(snapshot), _rng(seed, what), 0
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


def _rotation(size: int, rng: np.random.Generator) -> F64:
    """A random orthogonal matrix."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)))


def _scales(size: int, rng: np.random.Generator, *, signs: bool) -> F64:
    """Factors around one, log-normal."""
    scales = np.exp(0.7 * rng.standard_normal(size))
    return scales * rng.choice([-1.0, 1.0], size) if signs else scales


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
    if parts.model_type in _NO_ROTARY or _alibi(parts):
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


# ---- paired scales ----------------------------------------------------------------------------------------------


def rescale_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale the rows of up and scale the columns of down back; without a gate, under ReLU and its square only."""
    return _scale_units(snapshot, "neuron scale", "up", seed)


def rescale_gates(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale the rows of gate and scale the columns of down back: ReLU only."""
    return _scale_units(snapshot, "gate scale", "gate", seed)


_POWERS = {"relu": 1, "relu2": 2}


def _scale_units(snapshot: Snapshot, what: str, role: str, seed: int) -> Snapshot | Refusal:
    parts, rng, done = Parts(snapshot), _rng(seed, what), 0
    if parts.model_type == "gpt_oss":
        return Refusal("its MLP adds one to up and bounds both factors")
    for block, arch in parts.mlps():
        gated = block.key("gate") in parts.at
        through = role == "gate" or not gated  # the scaled rows go through the activation
        power = _POWERS.get(activation(parts, arch)) if through else 1
        if power is None or block.key(role) not in parts.at:
            continue
        scale = _scales(parts.shape(block.key("down"))[1], rng, signs=not through)
        parts.rows(block.key(role), _scaled(scale))
        parts.columns(block.key("down"), _scaled(scale ** -float(power)))
        done += 1
    return parts.snapshot(what) if done else Refusal(f"no {role} whose activation is homogeneous")


def activation(parts: Parts, arch: Arch) -> str:
    """The activation of a stack; T5 writes it beside the word "gated"."""
    written = parts.config.get("feed_forward_proj")
    return written.removeprefix("gated-") if isinstance(written, str) else arch.activation


# ---- norms ------------------------------------------------------------------------------------------------------


def fold_norms(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Move every gain that matrices alone read into them: gains become one, biases of LayerNorms go too."""
    del seed
    parts = Parts(snapshot)
    reason = _fold(parts, lambda gain: np.ones_like(gain))
    return Refusal(reason) if reason else parts.snapshot("folded")


def redistribute_norms(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Give every such norm other gains at random, and the matrices that read it what is missing."""
    parts, rng = Parts(snapshot), _rng(seed, "gains")
    reason = _fold(parts, lambda gain: np.exp(0.5 * rng.standard_normal(gain.size)))
    return Refusal(reason) if reason else parts.snapshot("gains")


def _fold(parts: Parts, wanted: Callable[[F64], F64]) -> str | None:
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
        parts.columns(key, _scaled(ratio))
    for name in names:
        parts.axis(name, 1, _scaled(ratio))
    parts.write(norm, target - arch.norm_offset)
    return True


# ---- the residual stream ----------------------------------------------------------------------------------------


def permute_residual(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the coordinates of the residual stream anew: in every architecture whose ends are known."""
    parts = Parts(snapshot)
    reason = _turn_refusal(parts)
    if reason:
        return Refusal(reason)
    order = _rng(seed, "coordinates").permutation(_width(parts))
    _turn(parts, lambda a: a[order], gains=lambda a: a[order])
    return parts.snapshot("coordinates")


def rotate_residual(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Turn the residual stream as far as its norms allow: any rotation, one that keeps the all-ones vector
    (LayerNorm), signs and a permutation (an RMSNorm's gain is added to the stream), a permutation (a LayerNorm's is).
    """
    parts, rng = Parts(snapshot), _rng(seed, "rotation")
    reason = _turn_refusal(parts)
    if reason:
        return Refusal(reason)
    size, freedom = _width(parts), residual_freedom(parts)
    if freedom in ("rotation", "rotation keeping ones"):
        reason = _fold(parts, lambda gain: np.ones_like(gain))
        if reason not in (None, "no norm has a gain"):
            return Refusal(str(reason))
        matrix = _rotation(size, rng) if freedom == "rotation" else _rotation_keeping_ones(size, rng)
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


def _rotation_keeping_ones(size: int, rng: np.random.Generator) -> F64:
    """A random orthogonal matrix with the all-ones vector fixed."""
    ones = np.full(size, size**-0.5)
    axis = ones - np.eye(size)[0]
    mirror = np.eye(size) - 2 * np.outer(axis, axis) / (axis @ axis)  # takes the first basis vector to ones
    inner = np.eye(size)
    inner[1:, 1:] = _rotation(size - 1, rng)
    return np.asarray(mirror @ inner @ mirror)


EPS_KEYS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon")


def rescale_residual(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Multiply the residual stream by a factor that is no power of two. Every norm sees its input scaled, so its
    epsilon goes into the config times the square: exact, where the config writes the epsilon of every norm.
    """
    parts = Parts(snapshot)
    reason = _turn_refusal(parts) or _rescale_refusal(parts)
    if reason:
        return Refusal(reason)
    factor = float(np.exp(_rng(seed, "factor").uniform(0.3, 1.0)))
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


# ---- constants --------------------------------------------------------------------------------------------------

SHIFT = 10.0  # in units of a row's standard deviation


def shift_readers(snapshot: Snapshot, seed: int, strength: float = SHIFT) -> Snapshot | Refusal:
    """Add a multiple of the direction that a LayerNorm cannot produce to every row that reads it; biases make up for
    the constant that its own bias contributes, and rows without one are left where that constant is not zero.
    """
    parts, rng, done = Parts(snapshot), _rng(seed, "reader shift"), 0
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
    parts, rng = Parts(snapshot), _rng(seed, "writer shift")
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
    name = f"acme{_rng(seed, 'name').integers(1000)}"
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

__all__ = ["DISGUISES", "EXACT", "Disguise", "Refusal", "disguise", "renumbering"]


def disguise(name: str, snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """A disguise by its name in DISGUISES."""
    return DISGUISES[name](snapshot, seed)
