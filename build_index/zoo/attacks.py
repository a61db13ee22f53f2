"""Attacks on evidence: what an expert does to a checkpoint, beyond disguises, so that its neurons are not found again.

Most leave the function as it is and change shapes: more neurons, heads, layers or coordinates than there were. Noise
and rounding change it a little. As a disguise, each takes a snapshot and a seed and returns another snapshot, or a
Refusal that says why this architecture does not allow it. Only models whose matrices are stored one by one are grown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from provindex.roles.canonical import PartKey

from .descendants import add_noise
from .disguises import everything, int8
from .freedoms.draws import F64, Disguise, Refusal, rng_of, rotation, scales
from .freedoms.heads import mix_queries, mix_values
from .freedoms.stream import EPS_KEYS
from .parts import Parts
from .snapshot import Snapshot

NOISE = 0.05  # of the root mean square of each matrix
DECOYS, STRENGTH = 128, 4.0  # neurons a layer, and how long their rows are in units of the longest
PAIRED = 1.5  # the same of pairs that cancel: much more, and rounding would not cancel
COPIES = 4  # of each neuron that is split
PADDING = 64  # coordinates, and as many as make the width a multiple of the heads
OWN_HEADS = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"))  # configs say how wide
MLP_WIDTHS: Mapping[str, Any] = dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"))


def noise(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Add noise of 5 % of a matrix's root mean square to each of its values."""
    return replace(add_noise(snapshot, NOISE, seed), name=f"{snapshot.name}+noise")


def int4(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Round every matrix to 4 bits a value with one scale for 32 values, and back."""
    del seed
    tensors = {n: _rounded(t) if t.ndim == 2 and not t.shape[1] % 32 else t for n, t in snapshot.tensors.items()}
    return replace(snapshot, name=f"{snapshot.name}+int4", tensors=tensors)


def _rounded(values: Any) -> Any:
    groups = values.reshape(-1, 32)
    step = np.maximum(np.abs(groups).max(axis=1, keepdims=True) / 7, np.float32(1e-12))
    return (np.rint(groups / step) * step).reshape(values.shape).astype(values.dtype)


# --- more neurons ---


def decoy_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Add neurons to every MLP whose rows are four times as long as the longest and whose columns are next to zero."""
    return _with_neurons(snapshot, "decoys", seed, lambda rng, longest, d: _decoys(rng, longest, d, STRENGTH, 1e-4))


def cancelling_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Add pairs of long neurons of equal rows and opposite columns: each contributes much, both together nothing."""
    return _with_neurons(snapshot, "pairs", seed, _pairs)


Neurons = tuple[list[F64], F64]  # rows of gate and up, (n, d) each; columns of down, (n, d)


def _decoys(rng: np.random.Generator, longest: list[float], d: int, strength: float, weight: float) -> Neurons:
    rows = [strength * length * _directions(rng, DECOYS, d) for length in longest[:-1]]
    return rows, weight * longest[-1] * _directions(rng, DECOYS, d)


def _pairs(rng: np.random.Generator, longest: list[float], d: int) -> Neurons:
    rows, columns = _decoys(rng, longest, d, PAIRED, PAIRED)
    opposite = np.repeat(columns, 2, axis=0) * np.tile([[1.0], [-1.0]], (DECOYS, 1))
    return [np.repeat(r, 2, axis=0) for r in rows], opposite


def _directions(rng: np.random.Generator, n: int, d: int) -> F64:
    rows = rng.standard_normal((n, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float64)


def _with_neurons(
    snapshot: Snapshot, what: str, seed: int, make: Callable[[np.random.Generator, list[float], int], Neurons]
) -> Snapshot | Refusal:
    parts, rng = Parts(snapshot), rng_of(seed, what)
    grown = _Grown(parts)
    for block, _ in parts.mlps():
        roles = [role for role in ("gate", "up") if block.key(role) in parts.at]
        down = parts.read(block.key("down"))
        longest = [float(np.linalg.norm(parts.read(block.key(r)), axis=1).max()) for r in roles]
        rows, columns = make(rng, [*longest, float(np.linalg.norm(down, axis=0).max())], len(down))
        order = rng.permutation(down.shape[1] + len(columns))
        for role, added in zip(roles, rows, strict=True):
            grown.rows(block.key(role), lambda a, new=added, o=order: np.concatenate([a, _like(new, a)])[o])
        grown.columns(block.key("down"), lambda a, new=columns, o=order: np.concatenate([a, new])[o])
    return grown.snapshot(what, MLP_WIDTHS)


def _like(new: F64, old: F64) -> F64:
    """Added rows; of a bias, which has one axis, zeros."""
    return new if old.ndim > 1 else np.zeros(len(new))


def split_neurons(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Put four neurons in the place of each: equal but for 5 % noise, with a quarter of its column each."""
    parts, rng = Parts(snapshot), rng_of(seed, "split")
    grown = _Grown(parts)
    for block, _ in parts.mlps():
        order = rng.permutation(COPIES * parts.shape(block.key("down"))[1])

        def split(a: F64, share: float, order: Any = order) -> F64:
            wide = np.repeat(a, COPIES, axis=0)
            return np.asarray((share * (wide + _jitter(wide, rng)))[order], np.float64)

        for role in ("gate", "up"):
            grown.rows(block.key(role), lambda a, f=split: f(a, 1.0))
        grown.columns(block.key("down"), lambda a, f=split: f(a, 1.0 / COPIES))
    return grown.snapshot("split", MLP_WIDTHS)


def _jitter(values: F64, rng: np.random.Generator) -> F64:
    spread = NOISE * values.std() if values.ndim > 1 else 0.0
    return np.asarray(spread * rng.standard_normal(values.shape), np.float64)


# --- more heads, layers and coordinates ---


def decoy_heads(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Add to every attention one group of heads that nothing reads, with long queries and keys."""
    parts, rng = Parts(snapshot), rng_of(seed, "heads")
    grown, arch = _Grown(parts), parts.arch(parts.layout.main)
    if parts.model_type not in OWN_HEADS:
        return Refusal("heads are as wide as the residual stream over their number")
    many, few = arch.heads // arch.kv_heads * arch.head_dim, arch.head_dim
    for block, _ in parts.attentions():
        for role, size in (("q", many), ("k", few), ("v", few)):
            length = float(np.linalg.norm(parts.read(block.key(role)), axis=1).max())
            new = STRENGTH * length * _directions(rng, size, parts.shape(block.key(role))[1])
            grown.rows(block.key(role), lambda a, n=new: np.concatenate([a, _like(n, a)]))
        grown.columns(block.key("o"), lambda a, n=many: np.concatenate([a, np.zeros((n, a.shape[1]))]))
    heads = {"num_attention_heads": arch.heads + many // few, "num_key_value_heads": arch.kv_heads + 1, "head_dim": few}
    return grown.snapshot("decoy heads", heads)


_LAYER = re.compile(r"(.*?\.(?:layers|layer|h|blocks)\.)(\d+)(\..*)")


def decoy_layers(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Put layers that write nothing in front of the first, and one after every third; not in post-norm models.

    They are made of the matrices of other layers.
    """
    parts, rng = Parts(snapshot), rng_of(seed, "layers")
    arch = parts.arch(parts.layout.main)
    if arch.norm_place == "post" or len(parts.stacks) != 1 or "num_hidden_layers" not in parts.config:
        return Refusal("a norm closes every layer, or there are several stacks")
    depth = int(parts.config["num_hidden_layers"])
    drawn = rng.integers(depth, size=2 * depth).tolist()
    sources: list[tuple[int, int | None]] = [(0, drawn.pop()) for _ in range(max(1, depth // 6))]
    for own in range(depth):
        sources += [(own, None), *([(own, drawn.pop())] if own % 3 == 2 else [])]
    silent = {parts.at[b.key("o")][0] for b, _ in parts.attentions()}
    silent |= {parts.at[b.key("down")][0] for b, _ in parts.mlps()}
    tensors = {}
    for name, values in snapshot.tensors.items():
        found = _LAYER.fullmatch(name)
        if found is None:
            tensors[name] = values
            continue
        for place, (own, other) in enumerate(sources):
            if own != int(found[2]):
                continue
            source = found[1] + str(own if other is None else other) + found[3]
            made = snapshot.tensors[source]
            if other is not None:
                made = np.zeros_like(made) if name in silent or name.endswith("bias") else _mirrored(made, rng)
            tensors[f"{found[1]}{place}{found[3]}"] = made
    config = {**snapshot.config, "num_hidden_layers": len(sources)}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [snapshot.config["layer_types"][own] for own, _ in sources]
    return replace(snapshot, name=f"{snapshot.name}+layers", tensors=tensors, config=config)


def _mirrored(values: Any, rng: np.random.Generator) -> Any:
    """A matrix with its columns in another order: of the right size, and of nobody."""
    return values[:, rng.permutation(values.shape[1])] if values.ndim == 2 else values


def pad_width(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Add 64 coordinates that are always zero to the residual stream of a model with RMSNorms."""
    parts = Parts(snapshot)
    arch = parts.arch(parts.layout.main)
    width = arch.hidden
    more = PADDING + -(width + PADDING) % max(arch.heads, 1)
    if arch.norm != "rms" or parts.refusal() or parts.model_type not in OWN_HEADS:
        return Refusal("norms that take away the mean, heads that depend on the width, or weights of unknown roles")
    share = np.sqrt(width / (width + more))
    grown = _Grown(parts)
    for key in list(parts.at):
        if key.role.startswith("norm_") and key.param == "weight" and parts.shape(key)[0] == width:
            grown.rows(key, lambda a, o=arch.norm_offset: _padded_gain(a, o, share, more))
        elif key.role in ("o", "down") and key.param == "weight":
            grown.rows(key, lambda a: _padded(a, more))
        elif key.role in ("q", "k", "v", "gate", "up", "head", "embed") and key.param == "weight":
            scale = share if key.role == "embed" and parts.model_type.startswith("gemma") else 1.0
            grown.columns(key, lambda a, s=scale: s * _padded(a, more))
    if parts.model_type.startswith(
        "gemma"
    ):  # the head is the embedding, which was scaled; the last norm makes up for it
        norm = PartKey(parts.layout.main, None, "norm_final", None, False, "weight")
        grown.rows(norm, lambda a: (a + arch.norm_offset) / share - arch.norm_offset)
    eps = {k: float(parts.config[k]) * share**2 for k in EPS_KEYS if k in parts.config}
    return grown.snapshot("padded", {"hidden_size": width + more, "head_dim": arch.head_dim, **eps})


def _padded(values: F64, more: int) -> F64:
    return np.concatenate([values, np.zeros((more, *values.shape[1:]))])


def _padded_gain(values: F64, offset: float, share: float, more: int) -> F64:
    return np.concatenate([(values + offset) * share - offset, np.full(more, 1.0 - offset)])


# --- any matrix between q and k, v and o ---


def merge_lock(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Any invertible matrix between v and o, and what positions allow between q and k (MergeLock, 2025)."""

    def draw(size: int, rng: np.random.Generator) -> F64:
        return np.asarray(rotation(size, rng) @ np.diag(scales(size, rng, signs=False)) @ rotation(size, rng))

    mixed = mix_values(snapshot, "lock v and o", draw, seed)
    if isinstance(mixed, Refusal):
        return mixed
    both = mix_queries(mixed, "lock q and k", draw, seed)
    return mixed if isinstance(both, Refusal) else both


class _Grown:
    """Matrices that change their shape. Only tensors that hold one part, stored as they are or transposed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tensors: dict[str, Any] = {}
        self._refused: str | None = None

    def rows(self, key: PartKey, change: Callable[[F64], F64]) -> None:
        """Change the output axis, of the weight and of the bias where there is one."""
        for one in (key, key._replace(param="bias")):
            if one in self._parts.at:
                self._change(one, change)

    def columns(self, key: PartKey, change: Callable[[F64], F64]) -> None:
        """Change the input axis of a weight, with which `change` is called first."""
        self._change(key, lambda a: change(a.T).T)

    def _change(self, key: PartKey, change: Callable[[F64], F64]) -> None:
        name, part = self._parts.at[key]
        if part.rows is not None or part.lead is not None:
            self._refused = "matrices that are stored together"
            return
        stored = self._tensors.get(name, self._parts.tensors[name]).astype(np.float64)
        made = change(stored.T if part.transposed else stored)
        self._tensors[name] = np.ascontiguousarray(made.T if part.transposed else made, np.float32)

    def snapshot(self, suffix: str, config: Mapping[str, Any]) -> Snapshot | Refusal:
        """The whole, with entries of the config changed; None as a value: as wide as the MLPs have become."""
        if self._refused:
            return Refusal(self._refused)
        parts = self._parts
        changed = {**parts.tensors, **self._tensors}
        width = (
            {max(changed[parts.at[b.key("up")][0]].shape) for b, _ in parts.mlps()} if None in config.values() else {0}
        )
        said = {k: (max(width) if v is None else v) for k, v in config.items() if v is not None or k in parts.config}
        made = parts.snapshot(suffix)
        return replace(made, tensors={**made.tensors, **self._tensors}, config={**made.config, **said})


def _then(*steps: Disguise) -> Disguise:
    """One attack after the other; of those after the first, what an architecture does not allow is left out."""

    def attack(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
        made = steps[0](snapshot, seed)
        for step in steps[1:]:
            if isinstance(made, Refusal):
                break
            found = step(made, seed)
            made = made if isinstance(found, Refusal) else found
        return made

    return attack


ATTACKS: Mapping[str, Disguise] = {
    "all": everything,
    "all + noise": _then(everything, noise),
    "all + int8": _then(everything, int8),
    "all + int4": _then(everything, int4),
    "decoy neurons": _then(decoy_neurons, everything),
    "cancelling neurons": _then(cancelling_neurons, everything),
    "split neurons": _then(split_neurons, everything),
    "decoy heads": _then(decoy_heads, everything),
    "decoy layers": _then(decoy_layers, everything),
    "padded": _then(pad_width, everything),
    "merge lock": _then(merge_lock, everything),
    "decoys everywhere": _then(cancelling_neurons, decoy_heads, decoy_layers, everything),
}
KEEP_FUNCTION = frozenset(ATTACKS) - {"all + noise", "all + int8", "all + int4", "split neurons"}
