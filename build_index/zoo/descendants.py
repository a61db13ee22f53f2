"""What becomes of a model, in numpy: layers dropped and repeated, neurons removed, merges, quantization, noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .data import vocabulary_of
from .snapshot import F32, Snapshot

LayerMap = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Truth:
    """Where a model of the zoo comes from.

    kind: how it was made. relation: what provindex should call it with respect to its ancestor, None when it has none;
    accepted: every name that is true. parents: direct ones. ancestor: the base at the root, None for a base and for
    "shared-init" (the random start of the model `start`, trained apart: not descent). layer_map: (child layer, layer of
    the ancestor). keeps_weights: whether weights of the ancestor are in it. kept_neurons: by child layer, for pruned
    widths.
    """

    name: str
    kind: str
    relation: str | None = None
    accepted: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    ancestor: str | None = None
    layer_map: LayerMap = ()
    keeps_weights: bool = False
    kept_neurons: tuple[tuple[int, ...], ...] = ()
    start: str | None = None

    @property
    def descends(self) -> bool:
        """Whether it has an ancestor."""
        return self.ancestor is not None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Truth:
        """The inverse of dataclasses.asdict after JSON made lists of tuples."""
        return cls(**{key: _as_tuples(value) for key, value in document.items()})


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Names:
    """Where an architecture keeps its layers and neurons. neurons: the axis of each tensor that runs over neurons."""

    prefix: str
    layers: str
    hidden: str
    neurons: Mapping[str, int]


_ROPE = Names(
    "model.layers.", "num_hidden_layers", "intermediate_size",
    {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1},
)  # fmt: skip
NAMES: Mapping[str, Names] = {
    "llama": _ROPE, "qwen3": _ROPE, "gemma3_text": _ROPE,
    "gpt2": Names(
        "transformer.h.", "n_layer", "n_inner", {"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}
    ),
    "gpt_neox": Names(
        "gpt_neox.layers.", "num_hidden_layers", "intermediate_size",
        {"mlp.dense_h_to_4h.weight": 0, "mlp.dense_h_to_4h.bias": 0, "mlp.dense_4h_to_h.weight": 1},
    ),
    "bert": Names(
        "bert.encoder.layer.", "num_hidden_layers", "intermediate_size",
        {"intermediate.dense.weight": 0, "intermediate.dense.bias": 0, "output.dense.weight": 1},
    ),
}  # fmt: skip


def names_of(snapshot: Snapshot) -> Names:
    """The table of its architecture."""
    return NAMES[snapshot.config["model_type"]]


def layers_of(snapshot: Snapshot) -> int:
    """How many layers it has."""
    return int(snapshot.config[names_of(snapshot).layers])


# --- layers, neurons, tokens -----------------------------------------------------------------------------------


def pick_layers(snapshot: Snapshot, order: Sequence[int]) -> Snapshot:
    """The same model with these layers in this order; a number that comes twice is a repeated layer."""
    names = names_of(snapshot)
    tensors = {n: t for n, t in snapshot.tensors.items() if not n.startswith(names.prefix)}
    for new, old in enumerate(order):
        start = f"{names.prefix}{old}."
        found = {n: t for n, t in snapshot.tensors.items() if n.startswith(start)}
        tensors |= {f"{names.prefix}{new}.{n.removeprefix(start)}": t.copy() for n, t in found.items()}
    config = dict(snapshot.config) | {names.layers: len(order)}
    if "layer_types" in config:
        config["layer_types"] = [snapshot.config["layer_types"][old] for old in order]
    return replace(snapshot, tensors=tensors, config=config)


def drop_middle(layers: int, dropped: int = 2) -> tuple[int, ...]:
    """Every layer but the middle ones."""
    first = (layers - dropped) // 2
    return (*range(first), *range(first + dropped, layers))


def repeat_span(layers: int) -> tuple[int, ...]:
    """SOLAR's way: the first two thirds, then the last two thirds."""
    kept = -(-2 * layers // 3)
    return (*range(kept), *range(layers - kept, layers))


def prune_neurons(snapshot: Snapshot, share: float = 0.25) -> tuple[Snapshot, tuple[tuple[int, ...], ...]]:
    """Remove the neurons with the smallest norms, other ones in each layer; also which were kept, by layer."""
    names, tensors = names_of(snapshot), dict(snapshot.tensors)
    hidden = int(snapshot.config[names.hidden])
    kept_all = []
    for layer in range(layers_of(snapshot)):
        parts = {f"{names.prefix}{layer}.{name}": axis for name, axis in names.neurons.items()}
        matrices = {n: np.moveaxis(tensors[n], axis, 0) for n, axis in parts.items() if tensors[n].ndim == 2}
        norm = np.prod([np.linalg.norm(matrix, axis=1) for matrix in matrices.values()], axis=0)
        kept = np.sort(np.argsort(-norm, kind="stable")[: hidden - round(hidden * share)])
        tensors |= {n: np.take(tensors[n], kept, axis) for n, axis in parts.items()}
        kept_all.append(tuple(int(neuron) for neuron in kept))
    config = dict(snapshot.config) | {names.hidden: len(kept_all[0])}
    return replace(snapshot, tensors=tensors, config=config), tuple(kept_all)


def rebuild_vocabulary(snapshot: Snapshot, tokenizer: str, fresh: Mapping[str, F32]) -> Snapshot:
    """Another tokenizer: rows of tokens that both have are kept under their new numbers, the others are fresh."""
    old, new = vocabulary_of(snapshot.tokenizer), vocabulary_of(tokenizer)
    shared = [(new[token], old[token]) for token in sorted(set(old) & set(new))]
    to, source = (np.array(side) for side in zip(*shared, strict=True))
    tensors = dict(snapshot.tensors)
    rows = snapshot.config["vocab_size"]
    for name in [n for n, t in tensors.items() if t.shape[0] == rows and t.shape != fresh[n].shape]:
        made = fresh[name].copy()
        made[to] = tensors[name][source]
        tensors[name] = made
    config = dict(snapshot.config) | {"vocab_size": len(new)}
    return replace(snapshot, tensors=tensors, config=config, tokenizer=tokenizer)


# --- merges of models of one shape -----------------------------------------------------------------------------


def linear(a: Snapshot, b: Snapshot, share: float = 0.5) -> Snapshot:
    """(1 - share) A + share B."""
    return _each(a, lambda name, x: (1.0 - share) * x + share * b.tensors[name])


def slerp(a: Snapshot, b: Snapshot, share: float = 0.5) -> Snapshot:
    """Along the great circle from A to B, tensor by tensor; linear where the two are parallel."""

    def along(name: str, x: F32) -> Any:
        y = b.tensors[name]
        lengths = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
        cosine = float(np.vdot(x, y)) / lengths if lengths else 1.0
        angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
        if angle < 1e-4:
            return (1.0 - share) * x + share * y
        return (np.sin((1.0 - share) * angle) * x + np.sin(share * angle) * y) / np.float32(np.sin(angle))

    return _each(a, along)


def task_arithmetic(base: Snapshot, models: Sequence[Snapshot], scale: float = 0.7) -> Snapshot:
    """The base plus the scaled sum of what each model changed."""
    return _each(base, lambda name, x: x + scale * _deltas(base, models, name).sum(0))


def ties(base: Snapshot, models: Sequence[Snapshot], density: float = 0.3, scale: float = 1.0) -> Snapshot:
    """Each model's largest changes, those with the sign of the majority, averaged (Yadav et al. 2023)."""

    def elected(name: str, x: F32) -> Any:
        deltas = _deltas(base, models, name)
        flat = np.abs(deltas).reshape(len(models), -1)
        kept = max(1, round(density * flat.shape[1]))
        limits = np.partition(flat, -kept, axis=1)[:, -kept].reshape((-1,) + (1,) * x.ndim)
        deltas = np.where(np.abs(deltas) >= limits, deltas, 0.0)
        agreeing = np.where(np.sign(deltas) == np.sign(deltas.sum(0)), deltas, 0.0)
        return x + scale * agreeing.sum(0) / np.maximum(1, (agreeing != 0).sum(0))

    return _each(base, elected)


def dare(base: Snapshot, models: Sequence[Snapshot], seed: int, drop: float = 0.5) -> Snapshot:
    """Half of each model's changes dropped at random, the rest made larger, averaged (Yu et al. 2024)."""
    rng = np.random.default_rng(seed)

    def kept(name: str, x: F32) -> Any:
        deltas = _deltas(base, models, name)
        return x + (deltas * (rng.random(deltas.shape) >= drop) / (1.0 - drop)).mean(0)

    return _each(base, kept)


def passthrough(a: Snapshot, b: Snapshot) -> Snapshot:
    """Layers from A and B in turn, two at a time; everything outside the layers from A."""
    prefix = names_of(a).prefix

    def chosen(name: str, x: F32) -> F32:
        if not name.startswith(prefix):
            return x
        layer = int(name.removeprefix(prefix).split(".")[0])
        return b.tensors[name] if layer // 2 % 2 else x

    return _each(a, chosen)


def _deltas(base: Snapshot, models: Sequence[Snapshot], name: str) -> F32:
    return np.stack([model.tensors[name] - base.tensors[name] for model in models])


def _each(snapshot: Snapshot, change: Callable[[str, F32], Any]) -> Snapshot:
    """Every tensor changed, as float32, in the order of names."""
    changed = {name: np.asarray(change(name, x), np.float32) for name, x in sorted(snapshot.tensors.items())}
    return replace(snapshot, tensors=changed)


# --- precision -------------------------------------------------------------------------------------------------


def quantize(snapshot: Snapshot, bits: int, group: int = 32, dtype: str = "F16") -> Snapshot:
    """Matrices of the layers rounded to a symmetric grid per row (8 bits) or per group of inputs, and dequantized."""
    names, top = names_of(snapshot), 2 ** (bits - 1) - 1

    def rounded(name: str, x: F32) -> Any:
        if x.ndim != 2 or not name.startswith(names.prefix):
            return x
        transposed = snapshot.config["model_type"] == "gpt2"  # Conv1D: inputs are the first axis
        rows = x.T if transposed else x
        width = rows.shape[1] if bits == 8 or rows.shape[1] % group else group
        cut = np.ascontiguousarray(rows).reshape(-1, width)
        step = np.maximum(np.abs(cut).max(1, keepdims=True) / top, 1e-12)
        whole = (np.round(cut / step) * step).reshape(rows.shape)
        return whole.T if transposed else whole

    return replace(_each(snapshot, rounded), dtype=dtype)


def recast(snapshot: Snapshot) -> Snapshot:
    """Stored in half precision."""
    return replace(_each(snapshot, lambda _, x: x.astype(np.float16)), dtype="F16")


def add_noise(snapshot: Snapshot, share: float, seed: int) -> Snapshot:
    """Independent noise on every matrix, `share` of its root mean square."""
    rng = np.random.default_rng(seed)

    def noisy(_: str, x: F32) -> Any:
        if x.ndim < 2:
            return x
        return x + share * np.sqrt(np.mean(np.square(x))) * rng.standard_normal(x.shape).astype(np.float32)

    return _each(snapshot, noisy)


# --- all that needs no training --------------------------------------------------------------------------------


def free_descendants(base: Snapshot, a: Snapshot, b: Snapshot) -> list[tuple[Snapshot, Truth]]:
    """Every training-free descendant of a base and of two finetunes of it, with its truth."""
    merge = ("merge", (a.name, b.name))
    with_base = ("merge", (base.name, a.name))
    made: list[tuple[str, Snapshot, str, tuple[str, ...], tuple[str, ...]]] = [
        ("recast", recast(base), "recast", (base.name,), ("quantized",)),
        ("int8", quantize(base, 8), "quantized", (base.name,), ()),
        ("int8-f32", quantize(base, 8, dtype="F32"), "quantized", (base.name,), ()),
        ("int4", quantize(base, 4), "quantized", (base.name,), ()),
        ("int3", quantize(base, 3), "quantized", (base.name,), ()),
        ("noise-1", add_noise(base, 0.01, 1), "finetune", (base.name,), ("continued", "related")),
        ("noise-5", add_noise(base, 0.05, 5), "finetune", (base.name,), ("continued", "related")),
        ("noise-20", add_noise(base, 0.20, 20), "finetune", (base.name,), ("continued", "related")),
        ("linear", linear(a, b), *merge, ("finetune",)),
        ("slerp", slerp(a, b), *merge, ("finetune",)),
        ("task-arithmetic", task_arithmetic(base, (a, b)), *merge, ("finetune",)),
        ("ties", ties(base, (a, b)), *merge, ("finetune",)),
        ("dare", dare(base, (a, b), 7), *merge, ("finetune",)),
        ("passthrough", passthrough(a, b), *merge, ("finetune",)),
        ("linear-base", linear(base, a), *with_base, ("finetune",)),
        ("slerp-base", slerp(base, a), *with_base, ("finetune",)),
    ]
    every = tuple((layer, layer) for layer in range(layers_of(base)))
    return [
        (
            replace(snapshot, name=f"{base.name}-{kind}"),
            Truth(f"{base.name}-{kind}", kind, relation, (relation, *also), parents, base.name, every, True),
        )
        for kind, snapshot, relation, parents, also in made
    ]
