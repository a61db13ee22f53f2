"""The order of hidden units, experts and heads, and the scales of hidden units."""

from __future__ import annotations

import numpy as np

from provindex.roles.canonical import PartKey
from provindex.roles.names import Arch
from provindex.roles.templates import RELATIVE

from ..parts import Block, Change, Parts
from ..snapshot import Snapshot
from .draws import I64, Refusal, ordered, rng_of, scaled, scales
from .heads import alibi


def permute_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the hidden units of every MLP and expert anew."""
    parts, rng = Parts(snapshot), rng_of(seed, "neurons")
    for block, _ in parts.mlps():
        order = rng.permutation(parts.shape(block.key("down"))[1])
        _units(parts, block, ordered(order))
    return parts.snapshot("neurons")


def _units(parts: Parts, block: Block, change: Change) -> None:
    for role in ("gate", "up"):
        parts.rows(block.key(role), change)
    parts.columns(block.key("down"), change)


def permute_experts(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Number the experts of every layer anew, together with the rows of the router."""
    parts, rng, done = Parts(snapshot), rng_of(seed, "experts"), 0
    if any(int(parts.config.get(key) or 1) > 1 for key in ("n_group", "topk_group")):
        return Refusal("experts are chosen by groups")
    for router in [key for key in parts.at if key.role == "router" and key.param == "weight"]:
        order = rng.permutation(parts.shape(router)[0])
        parts.rows(router, ordered(order))
        for place in parts.placed("router score correction"):
            if (place.stack, place.layer) == router[:2]:
                parts.axis(place.name, 0, ordered(order))
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
        rng = rng_of(seed, f"heads {block.stack} {block.cross} {-1 if shared else block.layer}")
        _order_heads(parts, block, arch, *_head_order(arch, rng))
    return parts.snapshot("heads")


def _heads_are_bound(parts: Parts) -> str | None:
    if alibi(parts):
        return "each head has its own position slope (ALiBi)"
    for reason in ("relative position embedding", "relative position projection", "query norm of one head"):
        if parts.has(reason):
            return f"{reason}: it meets the queries and keys of each head"
    return None if any(True for _ in parts.attentions()) else "no attention with query, key and value rows"


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


def rescale_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale the rows of up and scale the columns of down back; without a gate, under ReLU and its square only."""
    return _scale_units(snapshot, "neuron scale", "up", seed)


def rescale_gates(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Scale the rows of gate and scale the columns of down back: ReLU only."""
    return _scale_units(snapshot, "gate scale", "gate", seed)


_POWERS = {"relu": 1, "relu2": 2}


def _scale_units(snapshot: Snapshot, what: str, role: str, seed: int) -> Snapshot | Refusal:
    parts, rng, done = Parts(snapshot), rng_of(seed, what), 0
    if parts.model_type == "gpt_oss":
        return Refusal("its MLP adds one to up and bounds both factors")
    for block, arch in parts.mlps():
        gated = block.key("gate") in parts.at
        through = role == "gate" or not gated  # the scaled rows go through the activation
        power = _POWERS.get(activation(parts, arch)) if through else 1
        if power is None or block.key(role) not in parts.at:
            continue
        scale = scales(parts.shape(block.key("down"))[1], rng, signs=not through)
        parts.rows(block.key(role), scaled(scale))
        parts.columns(block.key("down"), scaled(scale ** -float(power)))
        done += 1
    return parts.snapshot(what) if done else Refusal(f"no {role} whose activation is homogeneous")


def activation(parts: Parts, arch: Arch) -> str:
    """The activation of a stack; T5 writes it beside the word "gated"."""
    written = parts.config.get("feed_forward_proj")
    return written.removeprefix("gated-") if isinstance(written, str) else arch.activation
