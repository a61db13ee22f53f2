"""A checkpoint that is being changed: its parts by role, readable and writable, and who reads and writes what.

One view serves every architecture: a part is an array in canonical (out, in) orientation, whether it is stored
transposed, fused with others, interleaved by heads or stacked with other experts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provindex.roles.architectures import ALIASES
from provindex.roles.canonical import PartKey, key_of
from provindex.roles.names import Arch, Layout, Part, Placement, part_shape, resolve
from provindex.roles.templates import (
    CLASSIFIER,
    LATENT,
    POOLER,
    PREDICTION,
    PROJECTION,
    RELATIVE_TABLE,
    SHARED_GATE,
    TRANSFORM,
)

from .snapshot import Snapshot

F64 = NDArray[np.float64]
Change = Callable[[F64], F64]  # along the first axis: (n, m) -> (n', m), or (n,) -> (n',)

READERS = ("q", "k", "v", "gate", "up", "router")
WRITERS = ("o", "down")
TEXT = ("decoder", "encoder")

SCALED_WHEN_TIED = ("t5", "umt5")  # they multiply by width ** -0.5 before a head that is the embedding

# Where a head that was tied is stored once it is not, by model type.
PLAIN_HEAD = "lm_head.weight"
_HEAD_NAMES = {
    "whisper": "proj_out.weight",
    "gpt_neox": "embed_out.weight",
    "chatglm": "output_layer.weight",
    "internlm2": "output.weight",
    "modernbert": "decoder.weight",
    "bert": "cls.predictions.decoder.weight",
    "deberta": "cls.predictions.decoder.weight",
    "deberta-v2": "cls.predictions.decoder.weight",
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), "lm_head.decoder.weight"),
    "albert": "predictions.decoder.weight",
    "electra": "generator_lm_head.weight",
    "distilbert": "vocab_projector.weight",
}

# Weights without a role: (what their columns read, what their rows write), by the reason that names.py gives.
# "table": coordinates of the embedding; "final": what the head reads; "head": the space of a head's transform.
_EXTRAS: dict[str, tuple[str, str]] = {
    "token type embedding": ("table", ""),
    TRANSFORM[2:]: ("final", "head"),
    POOLER[2:]: ("final", ""),
    CLASSIFIER[2:]: ("final", ""),
    PROJECTION[2:]: ("final", ""),
    "head projection": ("final", ""),
    SHARED_GATE[2:]: ("norm_mlp", ""),
    LATENT[2:]: ("norm_attn", ""),
    RELATIVE_TABLE[2:]: ("residual", ""),
    "relative position projection": ("residual", ""),
    "relative position norm": ("", "residual"),
    "convolution beside the first layer": ("residual", "residual"),
}
_NOT_FINAL = ("out_proj", "seq_relationship", "dense_prediction", "visual_projection")  # they read a pooler or a layer
_LATENT_READERS = ("q_a_proj", "kv_a_proj_with_mqa")


class Block(NamedTuple):
    """One attention, or one MLP or expert."""

    stack: str
    layer: int | None
    cross: bool = False
    expert: int | None = None

    def key(self, role: str, param: str = "weight") -> PartKey:
        return PartKey(self.stack, self.layer, role, self.expert, self.cross, param)


@dataclass(frozen=True)
class Norm:
    """A norm in front of matrices: its gain's address and the addresses and extras that read its output."""

    key: PartKey
    arch: Arch

    @property
    def bias(self) -> PartKey:
        return self.key._replace(param="bias")


@dataclass(frozen=True)
class Extra:
    """A stored weight without a role that meets the residual stream. reads, writes: as in _EXTRAS, "" for neither."""

    name: str
    stack: str
    layer: int | None
    reads: str
    writes: str


@lru_cache(maxsize=64)
def _layout(shapes: tuple[tuple[str, tuple[int, ...]], ...], config: str) -> Layout:
    """`resolve`, once for all disguises of a model."""
    return resolve(dict(shapes), json.loads(config))


class Parts:
    """A working copy of a snapshot. Tensors are copied when they are first written."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.tensors: dict[str, NDArray[Any]] = dict(snapshot.tensors)
        self.config: dict[str, Any] = dict(snapshot.config)
        self.tokenizer = snapshot.tokenizer
        self._owned: set[str] = set()
        self._resolve()
        self._copied = self.head_key() in self.at and self.tied()  # a tied head that is stored all the same

    def _resolve(self) -> None:
        shapes = tuple((name, tensor.shape) for name, tensor in self.tensors.items())
        self.layout = _layout(shapes, json.dumps(self.config, sort_keys=True))
        self.at: dict[PartKey, tuple[str, Part]] = {
            key_of(part): (place.name, part) for place in self.layout.placements.values() for part in place.parts
        }
        found = (self._extra(place) for place in self.layout.placements.values())
        self.extras = tuple(extra for extra in found if extra is not None)

    @property
    def model_type(self) -> str:
        return ALIASES.get(self.layout.model_type, self.layout.model_type)

    @property
    def stacks(self) -> tuple[str, ...]:
        """The text towers."""
        return tuple(stack for stack in TEXT if stack in self.layout.archs)

    def arch(self, stack: str) -> Arch:
        return self.layout.archs[stack]

    def has(self, reason: str, stack: str | None = None) -> bool:
        """Whether a tensor was given this reason (or one that starts so) for having no role."""
        places = self.layout.placements.values()
        return any((p.reason or "").startswith(reason) and stack in (None, p.stack) for p in places)

    def placed(self, reason: str) -> list[Placement]:
        return [p for p in self.layout.placements.values() if (p.reason or "").startswith(reason)]

    # --- reading and writing -----------------------------------------------------------------------------------

    def _core(self, name: str, part: Part) -> tuple[NDArray[Any], Any]:
        """A view of the stored tensor in canonical orientation, and the index of the part's rows."""
        core = self.tensors[name] if part.lead is None else self.tensors[name][part.lead]
        core = core.T if part.transposed else core
        rows = part.rows
        return core, slice(None) if rows is None else (slice(*rows) if isinstance(rows, tuple) else rows)

    def read(self, key: PartKey) -> F64:
        """A part in canonical orientation, a float64 copy."""
        core, index = self._core(*self.at[key])
        return np.array(core[index], dtype=np.float64)

    def write(self, key: PartKey, values: F64) -> None:
        name, part = self.at[key]
        self._own(name)
        core, index = self._core(name, part)
        core[index] = values

    def _own(self, name: str) -> None:
        if name not in self._owned:
            self.tensors[name] = np.array(self.tensors[name])
            self._owned.add(name)

    def rows(self, key: PartKey, change: Change) -> None:
        """Change the output axis: the weight's rows, and the bias where there is one."""
        for param in ("weight", "bias"):
            one = key._replace(param=param)
            if one in self.at:
                self.write(one, change(self.read(one)))

    def columns(self, key: PartKey, change: Change) -> None:
        """Change the input axis of a weight."""
        if key in self.at:
            self.write(key, change(self.read(key).T).T)

    def axis(self, name: str, axis: int, change: Change) -> None:
        """Change one axis of a stored tensor that has no role."""
        self._own(name)
        moved = np.moveaxis(self.tensors[name].astype(np.float64), axis, 0)
        flat = moved if moved.ndim == 1 else moved.reshape(len(moved), -1)
        self.tensors[name][...] = np.moveaxis(change(flat).reshape(moved.shape), 0, axis)

    # --- structure ---------------------------------------------------------------------------------------------

    def _extra(self, place: Placement) -> Extra | None:
        reads, writes = _EXTRAS.get(place.reason or "", ("", ""))
        if not (reads or writes) or place.stack not in TEXT:
            return None
        shape, segments = self.tensors[place.name].shape, place.canonical.split(".")
        last = segments[-2] if segments[-1] in ("weight", "bias") else segments[-1]
        elsewhere = {
            "norm_attn": last not in _LATENT_READERS,
            "final": last in _NOT_FINAL or (last == "classifier" and self._pooled()),
            "residual": last == "distance_embedding",
        }
        if len(shape) == 1 or elsewhere.get(reads, False):
            reads = ""
        return Extra(place.name, place.stack, place.layer, reads, writes) if reads or writes else None

    def _pooled(self) -> bool:
        """Whether something stands between the last layer and a classifier."""
        return self.has(POOLER[2:]) or any("pre_classifier" in name for name in self.tensors)

    def attentions(self) -> Iterator[tuple[Block, Arch]]:
        """Attention blocks whose q, k, v and o have the widths that their heads need."""
        for key in self._blocks("o"):
            block = Block(key.stack, key.layer, key.cross, key.expert)
            arch = self.arch(key.stack)
            if arch.head_dim and all(block.key(role) in self.at for role in "qkv") and self._fits(block, arch):
                yield block, arch

    def _fits(self, block: Block, arch: Arch) -> bool:
        rows = {role: self.shape(block.key(role))[0] for role in "qkv"}
        kv = arch.kv_heads * arch.head_dim
        return (rows["q"], rows["k"], rows["v"]) == (arch.heads * arch.head_dim, kv, kv)

    def mlps(self) -> Iterator[tuple[Block, Arch]]:
        """MLPs and experts that have both up and down."""
        for key in self._blocks("down"):
            block = Block(key.stack, key.layer, key.cross, key.expert)
            if block.key("up") in self.at:
                yield block, self.arch(key.stack)

    def _blocks(self, role: str) -> list[PartKey]:
        keys = (key for key in self.at if key.role == role and key.param == "weight" and key.layer is not None)
        return sorted(keys, key=lambda k: (k.stack, k.layer or 0, k.cross, -1 if k.expert is None else k.expert))

    def shape(self, key: PartKey) -> tuple[int, ...]:
        """The shape of a part in canonical orientation."""
        name, part = self.at[key]
        return part_shape(part, self.tensors[name].shape)

    def pre_norms(self) -> list[Norm]:
        """Norms of the text towers whose output is read by matrices alone: their gains can be folded."""
        norms = [k for k in self.at if k.role in ("norm_attn", "norm_mlp", "norm_final") and k.param == "weight"]
        kept = [k for k in norms if k.stack in self.stacks and self.arch(k.stack).norm_place != "post"]
        return [Norm(key, self.arch(key.stack)) for key in sorted(kept, key=str)]

    def readers(self, norm: PartKey) -> tuple[list[PartKey], list[str]]:
        """Weights that read a norm's output along their columns: addresses, and names of those without a role."""
        if norm.role == "norm_final":
            return self._final_readers(norm.stack)
        if norm.cross:
            return [k for k in [norm._replace(role="q")] if k in self.at], []
        roles: tuple[str, ...] = ("q", "k", "v") if norm.role == "norm_attn" else ("gate", "up", "router")
        extras = {norm.role}
        if norm.role == "norm_attn" and norm._replace(role="norm_mlp") not in self.at:
            roles, extras = READERS, {"norm_attn", "norm_mlp"}
        keys = [
            k for k in self.at
            if (k.stack, k.layer, k.cross, k.param) == (*norm[:2], False, "weight") and k.role in roles
        ]  # fmt: skip
        names = [e.name for e in self.extras if (e.stack, e.layer) == norm[:2] and e.reads in extras]
        return keys, names

    def _final_readers(self, stack: str) -> tuple[list[PartKey], list[str]]:
        if stack != self.layout.main:
            return [k for k in self.at if k.cross and k.role in ("k", "v") and k.param == "weight"], []
        names = [e.name for e in self.extras if e.reads == "final"]
        transformed = any(e.writes == "head" for e in self.extras)
        head = self.head_key()
        return ([head] if head in self.at and not transformed else []), names

    def head_key(self) -> PartKey:
        return PartKey(self.layout.main, None, "head", None, False, "weight")

    def embed_key(self) -> PartKey:
        return PartKey(self.layout.main, None, "embed", None, False, "weight")

    def mapped(self) -> bool:
        """Whether embedding rows go through a matrix before they meet the residual stream."""
        return any(key.role == "embed_map" for key in self.at)

    def has_head(self) -> bool:
        """Whether the model predicts tokens: it stores a head, or its kind ties one to the embedding."""
        heads = any(key.role == "head" for key in self.at) or self.has(TRANSFORM[2:])
        plain = self.layout.main == "decoder" and not self.has(CLASSIFIER[2:])
        return heads or (plain and self.has_embed())

    def has_embed(self) -> bool:
        return self.embed_key() in self.at

    def tied(self) -> bool:
        """Whether the head is the embedding: not stored, or stored as a copy that the config calls tied."""
        head, embed = self.head_key(), self.embed_key()
        if not self.has_head() or embed not in self.at:
            return False
        if head not in self.at:
            return True
        one, other = (self.tensors[self.at[key][0]] for key in (head, embed))
        return self.tied_by_config() and (self._is_copy(one, other))

    def _is_copy(self, one: NDArray[Any], other: NDArray[Any]) -> bool:
        return self._copied if hasattr(self, "_copied") else one.shape == other.shape and np.array_equal(one, other)

    def tied_by_config(self) -> bool:
        """Whether the config ties the head to the embedding; it does where it says nothing."""
        texts = (self.config.get("text_config"), self.config)
        said = [c["tie_word_embeddings"] for c in texts if isinstance(c, dict) and "tie_word_embeddings" in c]
        return not said or said[0] is not False

    def untie(self) -> bool:
        """Store the head as a tensor of its own; False where no name for it is known."""
        if not self.tied():
            return True
        head = self.head_key()
        if head not in self.at and not self._store_head():
            return False
        if self.model_type in SCALED_WHEN_TIED:
            self.write(head, self.read(head) * self.arch(self.layout.main).hidden ** -0.5)
        self._set(self.config, "tie_word_embeddings", False)
        inner = self.config.get("text_config")
        if isinstance(inner, dict) and "tie_word_embeddings" in inner:
            self._set(inner, "tie_word_embeddings", False)
        return True

    def _store_head(self) -> bool:
        """Add a copy of the embedding under a name that is a head's."""
        name = self.at[self.embed_key()][0]
        shapes = {n: t.shape for n, t in self.tensors.items()}
        for candidate in (_HEAD_NAMES.get(self.model_type, PLAIN_HEAD), PLAIN_HEAD, *_HEAD_NAMES.values()):
            place = resolve({**shapes, candidate: shapes[name]}, self.config).placements[candidate]
            if [part.role for part in place.parts] == ["head"]:
                self.tensors[candidate] = np.array(self.tensors[name])
                self._owned.add(candidate)
                self._resolve()
                return True
        return False

    def _set(self, config: dict[str, Any], key: str, value: Any) -> None:
        if config is self.config:
            config[key] = value
        else:
            self.config["text_config"] = {**config, key: value}

    # --- the result --------------------------------------------------------------------------------------------

    def tie(self) -> None:
        """Bring stored copies of a changed tensor up to date: heads that are tied, embeddings stored twice."""
        head, embed = self.at.get(self.head_key()), self.at.get(self.embed_key())
        if self._copied and head and embed and self.tied_by_config() and embed[0] in self._owned:
            self.tensors[head[0]] = self.tensors[embed[0]].copy()
        owners = {p.canonical: p.name for p in self.layout.placements.values() if p.parts}
        for place in (p for p in self.layout.placements.values() if p.copy_of):
            owner = owners.get(place.copy_of)
            if owner in self._owned and owner and self.tensors[owner].shape == self.tensors[place.name].shape:
                self.tensors[place.name] = self.tensors[owner].copy()

    def snapshot(self, suffix: str) -> Snapshot:
        """What the working copy has become, under the name of the snapshot it was and a suffix."""
        self.tie()
        name = f"{self._snapshot.name}+{suffix}"
        return replace(self._snapshot, name=name, tensors=self.tensors, config=self.config, tokenizer=self.tokenizer)

    def refusal(self) -> str | None:
        """Why the residual stream of this model is out of reach, None where it is known end to end."""
        if not self.stacks or self.layout.main not in TEXT:
            return "no text tower"
        if self.layout.unknown:
            return f"{len(self.layout.unknown)} tensors with unknown names"
        for reason in (PREDICTION[2:], "multimodal projector"):
            if self.has(reason):
                return f"a {reason} meets the residual stream"
        return None


__all__ = ["READERS", "WRITERS", "Block", "Extra", "Norm", "Parts"]
