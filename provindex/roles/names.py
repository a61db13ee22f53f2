"""Tensor names to roles, as data: which tensor (or part of a tensor) plays which part in which layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.roles.architectures import (
    ACTIVATION_KEYS,
    ADAPTERS,
    ALIASES,
    AUDIO_CONFIGS,
    BESIDE,
    BUFFERS,
    COMMON_HEAD_KEYS,
    COMPANIONS,
    HEAD_DIM_KEYS,
    HEAD_KEYS,
    HEADS,
    KINDS,
    KV_KEYS,
    LIBRARIES,
    MIDDLES,
    PARAMETERS,
    PROJECTOR_SEGMENTS,
    SAVED,
    SCHEMES,
    TEXT_CONFIGS,
    TOWERS,
    VISION_CONFIGS,
    WRAPPERS,
)
from provindex.roles.mixers import MIXED, Mixer, Split, channels, mixers_of, split_mixer
from provindex.roles.prefixes import is_number, text_tower
from provindex.roles.structure import Structure, infer
from provindex.roles.templates import CLASSIFIER, MAIN, POOLER, TRANSFORM, Kind

LAYER_ROLES = (
    "q", "k", "v", "o", "gate", "up", "down", "router",
    "norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out", "norm_q", "norm_k", "gate_attn",
)  # fmt: skip
SSM_ROLES = (  # of state-space layers and short convolutions; README.md says which axes are exchangeable
    "ssm_x", "ssm_z", "ssm_b", "ssm_c", "ssm_dt", "ssm_rank", "ssm_a", "ssm_d", "ssm_conv", "ssm_norm", "ssm_out",
)  # fmt: skip
LIN_ROLES = (  # of linear attention
    "lin_q", "lin_k", "lin_v", "lin_z", "lin_b", "lin_a", "lin_decay", "lin_conv", "lin_norm", "lin_out",
)  # fmt: skip
_WIDE = frozenset({"q", "k", "v", "o", "gate", "up", "down", "ssm_x", "ssm_z", "ssm_out"})  # matrices of a layer
_WRITE = frozenset({"o", "down", "ssm_out", "lin_out"})  # of these the ones that write the residual stream
_UNITS = frozenset({"gate", "up", "down", "ssm_x", "ssm_z", "ssm_out"})
RANKS = {  # how many axes weights have that are no matrix; norms have one
    "ssm_a": (1, 2), "ssm_d": (1, 2), "ssm_conv": (2, 3), "ssm_norm": (1, 2), "norm_q": (1, 2), "norm_k": (1, 2),
    "lin_decay": (1, 2), "lin_conv": (2, 3), "lin_norm": (1, 2),
}  # fmt: skip
GLOBAL_ROLES = ("embed", "embed_map", "pos", "head", "norm_embed", "norm_final")

STACKS = ("decoder", "encoder", "vision", "audio")  # the first that a model has is its main stack
UNKNOWN = "unknown name"
PROJECTOR = "multimodal projector"
NO_ROLE = {tower: f"{tower} tower, no role" for tower in ("vision", "audio")}
HEAD_REASONS = frozenset((*HEADS.values(), TRANSFORM[2:], CLASSIFIER[2:], POOLER[2:]))
# What the first segment of a name says alone: anything may stand behind it.
FREE = frozenset((UNKNOWN, PROJECTOR, *NO_ROLE.values(), *HEADS.values(), *BESIDE.values()))
ELSEWHERE = "elsewhere"  # the tower of names beside the prefix under which the text tower was found
FITTING = 0.9  # share of a tower's matrices whose shapes must fit, where its prefix was found by their names
POST_ROLES = {"norm_attn": "norm_attn_out", "norm_mlp": "norm_mlp_out"}  # one table serves pre-norm and post-norm
LISTS = frozenset({"layers", "layer", "h", "block", "blocks", "albert_layer_groups"})
SHARDS = 4  # in which CodeGen's q, k and v lie
OWN_TOWERS = frozenset(
    {"vision", "whisper", "openai_whisper", "audio", "moonshine", "cohere_asr", "wav2vec2"}
)  # schemes that say it
MAX_EXPERTS = 4096  # bounds on what a hostile header can make us build: experts in one stacked tensor,
MAX_STACKED = 1 << 19  # experts over all of them,
MAX_INDEXED = 1 << 17  # and rows of a tensor that is split row by row


@dataclass(frozen=True, slots=True)
class Part:
    """One canonical tensor, and where its elements are inside a stored tensor.

    role: one of LAYER_ROLES, SSM_ROLES, LIN_ROLES or GLOBAL_ROLES. stack: "decoder", "encoder", "vision" or "audio".
    layer: index in the stack, None for GLOBAL_ROLES. expert: index, or None for a dense MLP
    ("shared" experts have expert None and role gate/up/down only where no dense MLP exists in that layer).
    cross: cross-attention (decoder reading an encoder). param: "weight" or "bias".
    lead: index on the leading axis of a stacked tensor (experts in one 3-D tensor), None otherwise.
    transposed: stored as (in, out), as GPT-2's Conv1D does; the canonical orientation is (out, in). Axes behind the
    second count as one with it.
    heads: stored with one matrix a head on the leading axis (TransformerLens): (heads, in, width) of q, k and v,
    (heads, width, out) of o with `transposed`, (heads, width) of biases.
    rows: which rows of the tensor *in canonical orientation* are this part: None for all, a (start, stop) pair,
    or an int64 array of row numbers (interleaved QKV).
    """

    role: str
    stack: str = "decoder"
    layer: int | None = None
    expert: int | None = None
    cross: bool = False
    param: Literal["weight", "bias"] = "weight"
    lead: int | None = None
    transposed: bool = False
    rows: tuple[int, int] | NDArray[np.int64] | None = None
    heads: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """What one stored tensor is.

    name: as stored. canonical: the name without wrapper prefixes ("bert.", "model.", "base_model.model." ...),
    equal for one model saved with and without its head. parts: its canonical tensors; empty when it has none, and then
    reason says why ("buffer", "pooler", "classification head", "unknown name" ...).
    stack and layer: the tower and layer that the tensor belongs to, also when it has no role (None outside layers).
    weight: False for buffers and fixed tables (rotary frequencies, causal masks, position ids): never hashed.
    copy_of: canonical name of the tensor that this one repeats, "" if it repeats none.
    """

    name: str
    canonical: str
    parts: tuple[Part, ...] = ()
    reason: str | None = None
    stack: str = "decoder"
    layer: int | None = None
    weight: bool = True
    copy_of: str = ""


@dataclass(frozen=True, slots=True)
class Arch:
    """Facts about one stack that the canonical form needs. Widths come from shapes, heads from the config."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: Literal["rms", "layer", "none"] = "rms"
    norm_offset: float = 0.0  # Gemma: the gain is 1 + g
    norm_place: Literal["pre", "post", "branch_out"] = (
        "pre"  # post: BERT; branch_out: OLMo 2 (norm on the branch's output only)
    )
    parallel: bool = False  # attention and MLP read one norm (GPT-J, Falcon-7B, Phi, Cohere)
    activation: str = "silu"
    fixed_positions: bool = False  # sinusoidal positions added to the residual: its coordinates are not exchangeable
    channels: int = 0  # state-space channels that share one head, and with it one permutation; 0: all of a layer


@dataclass(frozen=True, slots=True)
class Layout:
    """Every tensor of a model, placed.

    model_type: the text tower's. main: the stack that is the text tower ("decoder" if there is one, else "encoder").
    archs: facts by stack. placements: one per stored tensor. unknown: names that no table knows.
    notes: what a reader should know ("text tower of llava", "vision tower kept apart"). structure: what the shapes say
    where no scheme knows the names; None where one does.
    """

    model_type: str
    main: str
    archs: Mapping[str, Arch]
    placements: Mapping[str, Placement]
    unknown: tuple[str, ...] = ()
    notes: tuple[Reason, ...] = ()
    structure: Structure | None = None


def resolve(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], *, listed: bool = False) -> Layout:
    """Place every tensor of a model, from names, shapes and config alone.

    shapes: stored shape by tensor name. config: config.json, {} if there is none (the names then tell the type).
    listed: know the prefixes that the tables list and no others. Unknown names are reported in Layout.unknown, never
    guessed. A width that the config does not tell and the shapes do not show is 0 in Arch. Nothing in names, shapes or
    config makes this raise; the order of names does not matter.
    """
    configs = _configs(config)
    tokens = [_tokenize(name) for name in sorted(shapes)]
    model_type, kind, notes = _choose(tokens, shapes, configs)
    if kind is not None:
        return _placed(tokens, shapes, configs, model_type, kind, notes)
    found = None if listed else _below_a_prefix(shapes, configs)
    if found is not None:
        return found
    placements = {t.name: _unknown(t) for t in tokens}
    amends = any(segment in ADAPTERS for name in shapes for segment in name.split("."))
    structure = None if listed or amends else infer(shapes)
    return Layout(model_type, "decoder", {}, placements, tuple(placements), notes, structure)


def _placed(
    tokens: Sequence[_Token],
    shapes: Mapping[str, tuple[int, ...]],
    configs: Mapping[str, Mapping[str, Any]],
    model_type: str,
    kind: Kind,
    notes: tuple[Reason, ...],
) -> Layout:
    hits = [_find(token, kind) for token in tokens]
    model = _model(kind, tokens, hits, shapes, configs)
    placed = [_place(token, hit, shapes[token.name], model) for token, hit in zip(tokens, hits, strict=True)]
    placements = {p.name: p for p in _settle(placed, hits, model.main)}
    archs, doubts = _archs(placements, shapes, model)
    unknown = tuple(p.name for p in placements.values() if p.reason == UNKNOWN)
    notes += _tower_notes(placements, model.main, model_type, configs) + doubts
    return Layout(model_type, model.main, archs, placements, unknown, notes)


def _below_a_prefix(shapes: Mapping[str, tuple[int, ...]], configs: Mapping[str, Mapping[str, Any]]) -> Layout | None:
    """The layout of a model whose names a scheme knows below some prefix; None if none does, or shapes do not fit."""
    tower = text_tower({name: math.prod(shape) for name, shape in shapes.items()})
    if tower is None:
        return None
    tokens = [
        _token(name, own.segments, "text", own.flipped) if (own := tower.names.get(name)) else _beside(name)
        for name in sorted(shapes)
    ]
    model_type, kind, notes = _choose(tokens, shapes, configs)
    if kind is None:
        return None
    notes += (Reason.of(Code.PREFIX_LEFT_OUT, prefix=tower.prefix[:100]),) if tower.prefix else ()
    layout = _placed(tokens, shapes, configs, model_type, kind, notes)
    return layout if _shapes_fit(layout, shapes) else None


def _shapes_fit(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether nearly all matrices of a tower's layers read or write one width, and a layer's MLP matrices another."""
    arch = layout.archs.get(layout.main)
    fits: list[bool] = []
    units: dict[tuple[int | None, int | None], set[int]] = {}
    for place in layout.placements.values():
        for part in place.parts:
            inner = part.stack == layout.main and part.layer is not None and not part.cross
            if arch is None or not inner or part.param == "bias" or part.role not in _WIDE:
                continue
            rows, columns = part_shape(part, shapes[place.name])
            reads = part.role not in _WRITE
            fits.append((columns if reads else rows) == arch.hidden)
            if part.role in _UNITS:
                units.setdefault((part.layer, part.expert), set()).add(rows if reads else columns)
    fits += [len(sizes) == 1 for sizes in units.values()]
    return bool(units) and sum(fits) >= FITTING * len(fits)


# --- names -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    """A name taken apart. stem, whole: the table's key ("#" for numbers) without and with the last segment.

    companion: why the tensor is only a companion of a weight (a quantization scale), None if it is one itself.
    flipped: stored the other way round than the table says.
    """

    name: str
    canonical: str
    tower: str
    stem: str
    whole: str
    numbers: tuple[int, ...]
    param: Literal["weight", "bias"]
    companion: str | None
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line of a table, read."""

    stack: str
    roles: tuple[str, ...]
    split: str
    slots: tuple[str, ...]
    flags: frozenset[str]
    reason: str | None
    weight: bool
    rank: int


@dataclass(frozen=True, slots=True)
class _Hit:
    """The rule that knows a name, with the numbers that it found there."""

    rule: _Rule
    layer: int | None
    inner: int
    expert: int | None


def _tokenize(name: str) -> _Token:
    segments, tower = _unwrap(name.split("."))
    return _token(name, segments, tower)


def _beside(name: str) -> _Token:
    """A name that is not below the text tower's prefix: of another tower, or unknown."""
    token = _tokenize(name)
    return replace(token, tower=ELSEWHERE) if token.tower == "text" else token


def _token(name: str, segments: Sequence[str], tower: str, flipped: bool = False) -> _Token:
    last = segments[-1]
    param = PARAMETERS.get(last)
    if param is not None:
        segments = [*segments[:-1], param]
    segments = [s[7:] if s.startswith("expert_") and is_number(s[7:]) else s for s in segments]
    keys = ["#" if is_number(s) else s for s in segments]
    prefix = "" if tower in ("text", "projector") else tower + "."
    short = param is not None or last in COMPANIONS
    return _Token(
        name=name,
        canonical=prefix + ".".join(segments),
        tower=tower,
        stem=".".join(keys[:-1] if short else keys),
        whole=".".join(keys),
        numbers=tuple(int(s) for s in segments if is_number(s)),
        param="bias" if param == "bias" else "weight",
        companion=COMPANIONS.get(last),
        flipped=flipped,
    )


def _unwrap(segments: list[str]) -> tuple[list[str], str]:
    """Drop wrapper prefixes, and tell the tower of a multimodal model: "text" unless a segment says otherwise."""
    tower, at = "text", 0
    if SAVED in segments[:-2]:  # PEFT: the module that an adapter trained whole, and the adapter's name
        at = segments.index(SAVED)
        segments = segments[:at] + segments[at + 2 :]
    segments, at = [s for s in segments[:-1] if s not in MIDDLES] + segments[-1:], 0
    if segments[-3:-2] == ["parametrizations"] and segments[-1] == "original" and len(segments) > 3:  # of one tensor
        segments = [*segments[:-3], segments[-2]]
    if segments[:2] == ["0", "auto_model"]:  # sentence-transformers' module list
        at = 1
    while at < len(segments) - 1:
        segment = segments[at]
        if tower == "text" and segment in TOWERS:
            tower = TOWERS[segment]
            if tower == "projector":
                break
        elif segment == "encoder" and tower == "text" and TOWERS.get(segments[at + 1]) in ("vision", "projector"):
            pass  # T5Gemma 2: the encoder holds the image tower
        elif segment not in WRAPPERS and TOWERS.get(segment) != tower:
            break
        at += 1
    rest = segments[at:]
    if tower == "text" and len(rest) == 1 and TOWERS.get(rest[0]) == "projector":
        tower = "projector"
    if tower == "vision" and rest[0] in PROJECTOR_SEGMENTS:
        tower = "projector"
    return rest, tower


# --- tables ----------------------------------------------------------------------------------------------------

_FUSED = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    "gate_up": ("gate", "up"),
    "up_gate": ("up", "gate"),
    "qg": ("q", "gate_attn"),
    "ssm_xz": ("ssm_x", "ssm_z"),
    "ssm_bcx": ("ssm_b", "ssm_c", "ssm_x"),
    "ssm_zxbcdt": ("ssm_z", "ssm_x", "ssm_b", "ssm_c", "ssm_dt"),
    "ssm_rank_bc": ("ssm_rank", "ssm_b", "ssm_c"),
    "lin_qkv": ("lin_q", "lin_k", "lin_v"),
    "lin_qkvz": ("lin_q", "lin_k", "lin_v", "lin_z"),
    "lin_ba": ("lin_b", "lin_a"),
}


def _read(what: str, stack: str, slots: tuple[str, ...], rank: int) -> _Rule:
    if what[:2] in ("- ", "~ "):
        return _Rule(stack, (), "", slots, frozenset(), what[2:], what[0] == "-", rank)
    role, *flags = what.split()
    name = role.partition("/")[0]
    roles = _FUSED.get(name, (name,))
    split = role if name in _FUSED or "/" in role else ""
    return _Rule(stack, roles, split, slots, frozenset(flags), None, True, rank)


@cache
def _rules(scheme: str) -> dict[str, tuple[_Rule, ...]]:
    """A scheme's tables by key. Several rules share a key where a plain number in the template tells them apart."""
    rules: dict[str, tuple[_Rule, ...]] = {}
    lines = [(stack, p + t, what) for stack, p, table in SCHEMES[scheme].stacks for t, what in table.items()]
    for rank, (stack, template, what) in enumerate(lines):
        segments = template.split(".")
        slots = tuple(s.strip("{}") for s in segments if s[0] == "{" or is_number(s))
        key = ".".join("#" if s[0] == "{" or is_number(s) else s for s in segments)
        rules[key] = (*rules.get(key, ()), _read(what, stack, slots, rank))
    return rules


def _find(token: _Token, kind: Kind) -> _Hit | None:
    if token.tower in ("projector", ELSEWHERE):
        return None
    rules = _rules(kind.scheme if token.tower == "text" else token.tower)
    for rule in rules.get(token.stem, ()) or rules.get(token.whole, ()):
        slots = dict(zip(rule.slots, token.numbers, strict=True))
        if all(not s.isdecimal() or int(s) == n for s, n in zip(rule.slots, token.numbers, strict=True)):
            return _Hit(rule, slots.get("l"), slots.get("i", 0), slots.get("e"))
    return None


# --- which scheme ----------------------------------------------------------------------------------------------


def _choose(
    tokens: Sequence[_Token], shapes: Mapping[str, tuple[int, ...]], configs: Mapping[str, Mapping[str, Any]]
) -> tuple[str, Kind | None, tuple[Reason, ...]]:
    """The model type, its facts (None when no scheme knows the names), and what to say about the choice."""
    declared = _declared(configs)
    kind = KINDS.get(ALIASES.get(declared, declared))
    keys = {_amended(t) for t in tokens if t.tower == "text" and t.canonical.partition(".")[0] not in BESIDE}
    if not keys and tokens:  # a vision or audio tower alone
        towers = [t.tower for t in tokens if t.tower in ("vision", "audio")]
        keys = {(t.stem, t.whole) for t in tokens}
        default = SCHEMES[towers[0]].default if towers else ""
        if kind is None or kind.scheme != default:
            kind = KINDS.get(default)
    if kind is not None and _known(kind.scheme, keys) * 2 >= len(keys):
        return declared or "unknown", kind, ()
    best = max(SCHEMES, key=lambda scheme: _known(scheme, keys)) if keys else ""
    amends = any((t.stem, t.whole) not in keys for t in tokens if t.tower == "text")
    if not best or _known(best, keys) * 2 < len(keys) or not _has_layers(best, keys, amends):
        return declared or "unknown", None, (Reason.of(Code.NO_SCHEME, declared=declared or "nothing"),)
    default = _variant(best, tokens, shapes)
    facts = replace(kind, scheme=default) if kind is not None and best in LIBRARIES else KINDS[default]
    guessed = Reason.of(Code.SCHEME_GUESSED, scheme=best, declared=declared or "no model type")
    return declared or default, facts, (guessed,)


def _variant(scheme: str, tokens: Sequence[_Token], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The model type whose facts hold for a scheme told from the names, where names or shapes show which it is."""
    if scheme in ("bart", "marian") and any(t.stem == "decoder.layer_norm" for t in tokens):
        return {"bart": "mbart", "marian": "m2m_100"}[scheme]  # pre-norm stacks alone have a final norm
    widening = (shapes[t.name] for t in tokens if t.stem == "h.#.mlp.c_fc" and t.param == "weight")
    if scheme == "gpt2" and any(len(shape) == 2 and shape[0] > shape[1] for shape in widening):
        return "gpt_bigcode"  # the same names, stored as (out, in)
    if scheme == "megatron" and not _twice(tokens, shapes):
        return "megatron_plain"
    return SCHEMES[scheme].default


def _twice(tokens: Sequence[_Token], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether Megatron's first MLP matrix holds gate and up: it has two rows for each column of the second."""
    wide = {
        t.stem[-1]: shapes[t.name] for t in tokens if t.whole.endswith((".linear_fc1.weight", ".linear_fc2.weight"))
    }
    up, down = (wide.get(end, ()) for end in "12")
    return len(up) == len(down) == 2 and up[0] == 2 * down[1]


def _known(scheme: str, keys: Set[tuple[str, str]]) -> int:
    rules = _rules(scheme)
    return sum(stem in rules or whole in rules for stem, whole in keys)


def _amended(token: _Token) -> tuple[str, str]:
    """A token's keys; those of the module that it changes, if it is an adapter's."""
    segments = token.whole.split(".")
    at = next((i for i, segment in enumerate(segments) if segment in ADAPTERS), 0)
    return (".".join(segments[:at]),) * 2 if at else (token.stem, token.whole)


def _has_layers(scheme: str, keys: Set[tuple[str, str]], amends: bool) -> bool:
    """Some attention and some MLP: a few chance hits are no scheme. An adapter may amend one of them alone."""
    rules = _rules(scheme)
    roles = {role for stem, _ in keys for rule in rules.get(stem, ()) for role in rule.roles}
    found = (bool(roles & {"q", "o", "ssm_x", "lin_v"}), bool(roles & {"up", "down", "ssm_out"}))
    return any(found) if amends else all(found)


def _main_stack(hits: Sequence[_Hit]) -> str:
    stacks = {hit.rule.stack for hit in hits if hit.layer is not None} or {hit.rule.stack for hit in hits}
    return next((stack for stack in STACKS if stack in stacks), "decoder")


# --- config ----------------------------------------------------------------------------------------------------


def _configs(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The config of each tower: "text" falls back to the top level key by key; "top" is the top level itself."""
    return {
        "top": config,
        "text": _nested(config, TEXT_CONFIGS),
        "vision": _nested(config, VISION_CONFIGS),
        "audio": _nested(config, AUDIO_CONFIGS),
    }


def _nested(config: Mapping[str, Any], keys: Iterable[str]) -> Mapping[str, Any]:
    for key in keys:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            deeper = inner.get("text_config")
            return deeper if isinstance(deeper, Mapping) else inner
    return {}


def _declared(configs: Mapping[str, Mapping[str, Any]]) -> str:
    for config in (configs["text"], configs["top"]):
        model_type = config.get("model_type")
        if isinstance(model_type, str) and model_type:
            return model_type[:100]
    return ""


def _sources(stack: str, configs: Mapping[str, Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Where a stack's numbers may be written, nearest first."""
    if stack in ("vision", "audio") and configs[stack]:
        return (configs[stack],)
    if stack == "vision" and configs["text"]:
        return ()
    places = (configs["text"], configs["top"])
    inner = [c["attn_config"] for c in places if isinstance(c.get("attn_config"), Mapping)]
    return (*places, *inner)


def _number(sources: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> int:
    """The first whole number between 1 and a million under one of the keys; 0 when there is none."""
    sources = tuple(sources)
    for key in keys:
        for source in sources:
            value = source.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000:
                return value
    return 0


def _flag(sources: Iterable[Mapping[str, Any]], key: str, default: bool) -> bool:
    values = [source[key] for source in sources if isinstance(source.get(key), bool)]
    return bool(values[0]) if values else default


@dataclass(frozen=True, slots=True)
class _Heads:
    """Attention heads as the config tells them; 0 for what it does not tell."""

    heads: int
    kv_heads: int
    head_dim: int

    def dim(self, width: int) -> int:
        if self.head_dim or not self.heads:
            return self.head_dim
        return width // self.heads if width % self.heads == 0 else 0


def _kind_of(stack: str, kind: Kind, configs: Mapping[str, Mapping[str, Any]]) -> Kind:
    """The text tower's facts, or those of the tower that has its own type."""
    if stack in ("vision", "audio") and kind.scheme not in OWN_TOWERS:
        declared = configs[stack].get("model_type")
        default = SCHEMES[stack].default
        name = declared if isinstance(declared, str) and declared in KINDS else default
        return KINDS[name]
    if kind.scheme == "wav2vec2" and _flag(_sources(stack, configs), "do_stable_layer_norm", False):
        return replace(kind, norm_place="pre")
    if kind.scheme == "opt" and not _flag(_sources(stack, configs), "do_layer_norm_before", True):
        return replace(kind, norm_place="post")
    return kind


def _heads(stack: str, kind: Kind, configs: Mapping[str, Mapping[str, Any]]) -> _Heads:
    sources = _sources(stack, configs)
    heads = _number(sources, (*HEAD_KEYS[stack], *COMMON_HEAD_KEYS))
    told = any(source.get("model_type") for source in sources)  # a class default holds for a declared type only
    if not heads and told:
        heads = kind.heads
    kv_heads = _number(sources, KV_KEYS) or heads
    head_dim = _number(sources, HEAD_DIM_KEYS)
    latent = _number(sources, ("qk_nope_head_dim",))
    if latent and kind.scheme == "llama":
        return _Heads(heads, heads, latent + _number(sources, ("qk_rope_head_dim",)))
    return _Heads(heads, kv_heads, head_dim or (kind.head_dim if told else 0))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a stack before its tensors are looked at. sources: where its numbers are written."""

    kind: Kind
    heads: _Heads
    sources: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Model:
    """What placing one tensor needs to know of the others.

    experts: how many a stacked tensor may have. inner: layers in a shared group (ALBERT), 1 elsewhere. mixers: of each
    (stack, layer) with a state-space or linear-attention mixer. normed: which have a norm before attention. width: of
    the token embedding; 0 if there is none.
    """

    main: str
    stacks: Mapping[str, _Facts]
    experts: int
    inner: int
    mixers: Mapping[tuple[str, int | None], Mixer]
    normed: Set[tuple[str, int | None]]
    width: int


def _model(
    kind: Kind,
    tokens: Sequence[_Token],
    found: Sequence[_Hit | None],
    shapes: Mapping[str, tuple[int, ...]],
    configs: Mapping[str, Mapping[str, Any]],
) -> _Model:
    hits = [hit for hit in found if hit]
    stacks = {}
    for stack in STACKS:
        own = _kind_of(stack, kind, configs)
        stacks[stack] = _Facts(own, _heads(stack, own, configs), _sources(stack, configs))
    stacked = sum("stacked" in hit.rule.flags for hit in hits)
    experts = min(MAX_EXPERTS, MAX_STACKED // max(1, stacked))
    pairs = [
        (hit, shapes[token.name]) for token, hit in zip(tokens, found, strict=True) if hit and token.param == "weight"
    ]
    sides: dict[tuple[str, int | None], dict[str, tuple[int, ...]]] = {}
    for hit, shape in pairs:
        if hit.rule.roles[:1] and hit.rule.roles[0].startswith(("ssm_", "lin_")) and not hit.rule.split:
            sides.setdefault((hit.rule.stack, hit.layer), {})[hit.rule.roles[0]] = shape
    mixers = {at: mixers_of(found, stacks[at[0]].sources) for at, found in sides.items() if at[0] in stacks}
    normed = {(hit.rule.stack, hit.layer) for hit in hits if hit.rule.roles == ("norm_attn",)}
    inner = 1 + max((hit.inner for hit in hits), default=0)
    widths = [shape[1] for hit, shape in pairs if hit.rule.roles == ("embed",) and len(shape) == 2]
    return _Model(_main_stack(hits), stacks, experts, inner, mixers, normed, max(widths, default=0))


# --- placing ---------------------------------------------------------------------------------------------------


def _unknown(token: _Token) -> Placement:
    return Placement(token.name, token.canonical, (), UNKNOWN, _tower_stack(token), _layer_in(token.name))


def _tower_stack(token: _Token) -> str:
    return token.tower if token.tower in ("vision", "audio") else "decoder"


def _layer_in(name: str) -> int | None:
    """The number after the first segment that names a list of layers."""
    segments = name.split(".")
    for segment, after in pairwise(segments):
        if segment in LISTS and is_number(after):
            return int(after)
    return None


def _place(token: _Token, hit: _Hit | None, shape: tuple[int, ...], model: _Model) -> Placement:
    if hit is None:
        return _without_rule(token, model.main)
    rule = hit.rule
    stack = model.main if rule.stack == MAIN else rule.stack
    layer = hit.layer
    if layer is not None and "i" in rule.slots:
        layer = layer * model.inner + hit.inner
    reason = token.companion or rule.reason
    parts: tuple[Part, ...] = ()
    if reason is None:
        outcome = _parts(token, hit, shape, model, stack, layer)
        parts, reason = (outcome, None) if isinstance(outcome, tuple) else ((), outcome)
    return Placement(token.name, token.canonical, parts, reason, stack, layer, rule.weight)


def _without_rule(token: _Token, main: str) -> Placement:
    """Names outside the scheme's table: buffers, heads and adapters that look alike everywhere; else unknown."""
    segments = token.canonical.split(".")
    stack = token.tower if token.tower in ("vision", "audio") else main
    layer = _layer_in(token.name)
    reason: str | None = None
    if segments[-1] in BUFFERS:
        return Placement(token.name, token.canonical, (), BUFFERS[segments[-1]], stack, layer, False)
    adapter = next((s for s in segments if s in ADAPTERS), None)
    if adapter:
        reason = ADAPTERS[adapter]
    elif token.tower == "projector":
        reason, layer = PROJECTOR, None
    elif beside := _beside_text(segments):
        reason, layer = beside, None
    elif token.tower == ELSEWHERE:
        reason = UNKNOWN
    elif token.tower != "text":
        reason = NO_ROLE[token.tower]
    elif segments[0] in HEADS:
        reason, layer = HEADS[segments[0]], None
    return Placement(token.name, token.canonical, (), reason or UNKNOWN, stack, layer)


def _beside_text(segments: Sequence[str]) -> str | None:
    """What a name belongs to that no text tower has, by its first segment that is no wrapper."""
    first = next((s for s in segments if s not in WRAPPERS), "")
    return BESIDE.get(first)


def _parts(
    token: _Token, hit: _Hit, shape: tuple[int, ...], model: _Model, stack: str, layer: int | None
) -> tuple[Part, ...] | str:
    """The canonical tensors in one stored tensor, or the sentence that says why there are none."""
    rule, facts = hit.rule, model.stacks[stack]
    param: Literal["weight", "bias"] = "bias" if "bias" in rule.flags else token.param
    stacked = "stacked" in rule.flags
    led = stacked or (rule.roles[0] == "pos" and len(shape) == 3 and shape[0] == 1)  # ViT: a batch axis of one
    by_head = "heads" in rule.flags
    core = shape[1:] if led or by_head else shape  # of one head, where a head has a matrix of its own
    core = core if "flat" not in rule.flags or len(core) < 3 else (core[0], math.prod(core[1:]))
    if not _fits(rule.roles[0], param, core) or (stacked and not 0 < shape[0] <= model.experts):
        return f"shape {_show(shape)} does not fit {rule.roles[0]} {param}"
    transposed = ("t" in rule.flags) != token.flipped and param == "weight" and len(core) == 2
    if stacked and len(core) == 2:
        transposed = _experts_turned(transposed, rule.roles[0], core, model.width)
    rows, width = (core[-1], core[0]) if transposed else (core[0], core[-1])
    at = (rule.stack, hit.layer)
    split = _split(rule.split, rows, width if param == "weight" else 0, facts, model.mixers.get(at))
    if isinstance(split, str):
        return f"fused shape {_show(shape)} does not fit {split}"
    post = facts.kind.norm_place == "post"
    roles = tuple(POST_ROLES.get(role, role) if post else role for role in rule.roles)
    if "lone" in rule.flags and at not in model.normed:  # no norm before attention: this one closes it
        roles = ("norm_attn_out",)
    leads: Iterable[int | None] = range(shape[0]) if led else (None,)
    return tuple(
        Part(
            role, stack, None if role in GLOBAL_ROLES else layer, lead if stacked else hit.expert,
            "cross" in rule.flags, param, lead, transposed, part_rows, by_head,
        )
        for lead in leads
        for role, part_rows in zip(roles, split, strict=True)
    )  # fmt: skip


def _experts_turned(usual: bool, role: str, core: Sequence[int], width: int) -> bool:
    """Whether stacked experts are stored as (in, out): some files hold them the other way round than the forward pass.

    The side that is as wide as the embedding tells, where the other is not; else it is as the table says.
    """
    turned = core[1] if role == "down" else core[0]
    straight = core[0] if role == "down" else core[1]
    return usual if (turned == width) == (straight == width) else turned == width


def _show(shape: tuple[int, ...]) -> str:
    """A shape in a sentence. Python refuses to print absurdly long numbers."""
    text = "(" + ", ".join(_say(size) for size in shape[:8]) + (",)" if len(shape) == 1 else ")")
    return text if len(shape) <= 8 else text[:-1] + ", ...)"


def _say(size: int) -> str:
    return str(size) if abs(size) < 10**18 else "huge"


def _fits(role: str, param: str, core: tuple[int, ...]) -> bool:
    """Matrices are matrices and gains are vectors (Cohere's query and key gains are one vector per head)."""
    if not core or min(core) <= 0:
        return False
    if role in RANKS and param == "weight":
        return len(core) in RANKS[role]
    return len(core) == (1 if param == "bias" or role.startswith("norm") else 2)


# --- fused tensors ---------------------------------------------------------------------------------------------


def _split(split: str, rows: int, width: int, facts: _Facts, mixer: Mixer | None) -> tuple[Split, ...] | str:
    """Rows of each part of a fused tensor, or what they do not fit. width: input width, 0 when a bias hides it.

    mixer: of the layer, where it has one.
    """
    if not split:
        return (None,)
    fused, _, manner = split.partition("/")
    if manner == "pairs":
        count = facts.heads.heads if fused == "q" else facts.heads.kv_heads
        return (_paired(count, rows // count) if _pairs_fit(rows, count) else None,)
    if fused in MIXED:
        return split_mixer(fused, rows, mixer) if rows <= MAX_INDEXED else "an index of its rows"
    if fused == "qg":
        return _split_gated(rows, facts.heads)
    if fused in ("gate_up", "up_gate", "kv", "ssm_xz"):
        if rows % 2:
            return "two equal halves"
        if manner == "alternate":
            return _alternate(rows) if rows <= MAX_INDEXED else "an index of its rows"
        return (0, rows // 2), (rows // 2, rows)
    manner, kv_heads = _manner(manner, facts.heads, facts.sources)
    return _split_qkv(manner, rows, width, replace(facts.heads, kv_heads=kv_heads))


def _manner(manner: str, heads: _Heads, sources: tuple[Mapping[str, Any], ...]) -> tuple[str, int]:
    """How q, k and v lie, and the number of key heads, where the config has a say (defaults: the config classes')."""
    if manner == "falcon":
        if _flag(sources, "new_decoder_architecture", False):
            return "group", heads.kv_heads
        return ("", 1) if _flag(sources, "multi_query", True) else ("head", heads.heads)
    if manner == "bigcode":
        return ("", 1) if _flag(sources, "multi_query", True) else ("head", heads.heads)
    if manner == "chatglm":
        return ("", heads.kv_heads) if _flag(sources, "multi_query_attention", False) else ("head", heads.heads)
    if manner == "full":
        return "", heads.heads
    return manner, heads.heads if manner == "head" else heads.kv_heads


def _split_gated(rows: int, heads: _Heads) -> tuple[Split, ...] | str:
    """The query of a head, then its gate, head after head; only the query where there is no gate."""
    count, dim = heads.heads, heads.head_dim
    if not count or not dim or rows != 2 * count * dim or rows > MAX_INDEXED:
        return f"{count or 'an unknown number of'} heads of {_say(dim) if dim else '?'} with a gate"
    at = np.arange(rows, dtype=np.int64).reshape(count, 2, dim)
    return at[:, 0].reshape(-1), at[:, 1].reshape(-1)


def _split_qkv(manner: str, rows: int, width: int, heads: _Heads) -> tuple[Split, ...] | str:
    count, kv = heads.heads, heads.kv_heads
    if not count:
        if manner == "" and rows % 3 == 0 and width in (0, rows // 3):  # full attention: thirds, whatever the heads
            third = rows // 3
            return (0, third), (third, 2 * third), (2 * third, rows)
        return "an unknown number of heads"
    total = count + 2 * kv
    dim = heads.dim(width) or (rows // total if rows % total == 0 else 0)
    if rows != total * dim or count % kv:
        return f"{count} heads of {_say(dim) if dim else '?'}" + (f" and {kv} key heads" if kv != count else "")
    if manner == "":
        q, k = count * dim, (count + kv) * dim
        return (0, q), (q, k), (k, rows)
    if rows > MAX_INDEXED:
        return "an index of its rows"
    if manner == "shards":
        return _sharded(rows) if count % SHARDS == 0 and kv == count else f"{SHARDS} shards"
    return _interleaved(kv, count // kv, dim)


def _pairs_fit(rows: int, heads: int) -> bool:
    return heads > 0 and rows % (2 * heads) == 0 and rows <= MAX_INDEXED


@lru_cache(maxsize=64)
def _paired(heads: int, dim: int) -> Split:
    """Rows of a matrix whose rotary channels lie in pairs, in the order of transformers: first halves, then second."""
    at = np.arange(heads * dim, dtype=np.int64).reshape(heads, dim // 2, 2)
    index: NDArray[np.int64] = at.transpose(0, 2, 1).reshape(-1)
    index.flags.writeable = False
    return index


@cache
def _alternate(rows: int) -> tuple[Split, ...]:
    return np.arange(0, rows, 2, dtype=np.int64), np.arange(1, rows, 2, dtype=np.int64)


def _sharded(rows: int) -> tuple[Split, ...]:
    """CodeGen's rows of q, k, v: in each of four shards the queries, the values, the keys of its heads."""
    at = np.arange(rows, dtype=np.int64).reshape(SHARDS, 3, -1)
    return tuple(at[:, i].reshape(-1) for i in (0, 2, 1))


@lru_cache(maxsize=64)
def _interleaved(groups: int, queries: int, dim: int) -> tuple[Split, ...]:
    """Rows of q, k, v when each group holds its queries, its key and its value (full attention: one query a group)."""
    at = np.arange(groups * (queries + 2) * dim, dtype=np.int64).reshape(groups, queries + 2, dim)
    rows = (at[:, :queries].reshape(-1), at[:, queries].reshape(-1), at[:, queries + 1].reshape(-1))
    for index in rows:
        index.flags.writeable = False
    return rows


# --- one tensor a part -----------------------------------------------------------------------------------------


def _settle(placed: Sequence[Placement], hits: Sequence[_Hit | None], main: str) -> list[Placement]:
    """Give each canonical tensor to one stored tensor, the first in the table; say of the others that they are copies.

    Encoder-decoders store one embedding under up to three names, and heads are stored twice when they are tied.
    """
    ranks = [hit.rule.rank if hit else 0 for hit in hits]
    owners: dict[tuple[object, ...], str] = {}
    settled: dict[str, Placement] = {}
    order = sorted(zip(ranks, _settle_embeddings(placed, main), strict=True), key=lambda pair: (pair[0], pair[1].name))
    for _, placement in order:
        settled[placement.name] = _claim(placement, owners)
    seen: set[str] = set()
    return [_distinct(settled[p.name], seen) for p in placed]


def _settle_embeddings(placed: Sequence[Placement], main: str) -> list[Placement]:
    """The encoder's table: a copy when a shared one is stored, its own beside a decoder's, the main one if alone."""
    tables = [p for p in placed if p.parts and p.parts[0].role == "embed"]
    shared = any(p.canonical.startswith("shared.") for p in tables)
    alone = not any(p.parts[0].stack == main for p in tables)
    settled = []
    for p in placed:
        if p.parts and p.parts[0].role == "embed" and p.parts[0].stack != main:
            if shared:
                p = replace(p, parts=(), reason="second copy of shared.weight", copy_of="shared.weight")
            elif alone:
                p = replace(p, parts=(replace(p.parts[0], stack=main),), stack=main)
        settled.append(p)
    return settled


def _claim(placement: Placement, owners: dict[tuple[object, ...], str]) -> Placement:
    keys = [(p.role, p.stack, p.layer, p.expert, p.cross, p.param) for p in placement.parts]
    taken = next((owners[key] for key in keys if key in owners), None)
    if taken is not None:
        return replace(placement, parts=(), reason=f"second copy of {taken}", copy_of=taken)
    owners.update(dict.fromkeys(keys, placement.canonical))
    return placement


def _distinct(placement: Placement, seen: set[str]) -> Placement:
    """One canonical name for one tensor: of two names that differ by a wrapper only, the later keeps its own."""
    if placement.canonical in seen:
        placement = replace(placement, canonical=placement.name)
    seen.add(placement.canonical)
    return placement


# --- facts -----------------------------------------------------------------------------------------------------


def part_shape(part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a part in canonical orientation, from the shape of the stored tensor that holds it."""
    core = shape[1:] if part.lead is not None else shape
    if part.heads:
        merged = shape[0] * (shape[1] if part.transposed or part.param == "bias" else shape[2])
        core = (merged, *shape[2:]) if part.transposed or part.param == "bias" else (merged, shape[1])
    core = core if len(core) < 3 else (core[0], math.prod(core[1:]))
    core = core[::-1] if part.transposed else core
    if part.rows is None:
        return core
    count = part.rows[1] - part.rows[0] if isinstance(part.rows, tuple) else len(part.rows)
    return (count, *core[1:])


def _archs(
    placements: Mapping[str, Placement], shapes: Mapping[str, tuple[int, ...]], model: _Model
) -> tuple[dict[str, Arch], tuple[Reason, ...]]:
    """Facts of each stack that has layers, and what in the config contradicts the shapes."""
    sizes, biased = _sizes(placements, shapes)
    fixed = {p.stack for p in placements.values() if p.reason == "fixed positions"}
    archs: dict[str, Arch] = {}
    doubts: list[Reason] = []
    for stack in (s for s in STACKS if s in sizes):
        usual = {role: max(c, key=lambda size: (c[size], size)) for role, c in sizes[stack].items()}
        facts = model.stacks[stack]
        kind = facts.kind
        heads, doubt = _count_heads(usual, facts.heads)
        doubts += [doubt.about(stack)] if doubt else []
        apart = (
            kind is not model.stacks[model.main].kind or kind.scheme == "vision"
        )  # no table tells every tower's norm
        archs[stack] = Arch(
            hidden=_hidden(usual),
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.head_dim,
            norm="layer" if stack in biased else ("rms" if apart else kind.norm),
            norm_offset=kind.norm_offset,
            norm_place=kind.norm_place,
            parallel=kind.norm_place == "pre" and {"norm_attn", "up", "o"} <= usual.keys() and "norm_mlp" not in usual,
            activation=_activation(facts),
            fixed_positions=kind.fixed_positions or stack in fixed or _sinusoidal(stack, facts),
            channels=channels(usual),
        )
    return archs, tuple(doubts)


def _sizes(
    placements: Mapping[str, Placement], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, Counter[tuple[int, ...]]]], set[str]]:
    """Shapes of layer weights by stack and role, counted, and the stacks whose norms have biases (LayerNorm)."""
    sizes: dict[str, dict[str, Counter[tuple[int, ...]]]] = {}
    biased: set[str] = set()
    for placement in placements.values():
        for part in placement.parts:
            if part.param == "bias" and part.role.startswith("norm"):
                biased.add(part.stack)
            elif part.param == "weight" and part.layer is not None and not part.cross:
                counter = sizes.setdefault(part.stack, {}).setdefault(part.role, Counter())
                counter[part_shape(part, shapes[placement.name])] += 1
    return sizes, biased


def _hidden(usual: Mapping[str, tuple[int, ...]]) -> int:
    """Residual width: what q, k, up or gate read; else what o or down write; else a gain's length."""
    reads, writes = ("up", "gate", "q", "k", "v", "ssm_x", "lin_v"), ("o", "down", "ssm_out", "lin_out")
    for roles, axis in ((reads, -1), (writes, 0), (("norm_attn", "norm_mlp"), 0)):
        for role in roles:
            if role in usual:
                return usual[role][axis]
    return 0


def _count_heads(usual: Mapping[str, tuple[int, ...]], told: _Heads) -> tuple[_Heads, Reason | None]:
    """Heads as config and shapes agree on them, else zeros and the contradiction. Shapes win where they speak."""
    gain = usual.get("norm_q", (0, 0))
    if "q" not in usual:  # latent attention: only the output matrix has rows per head
        width = usual.get("o", (0, 0))[-1]
        fits = told.heads and width and width % told.heads == 0
        return (_Heads(told.heads, told.kv_heads, width // told.heads) if fits else _Heads(0, 0, 0)), None
    rows = usual["q"][0]
    dim = rows // told.heads if told.heads and rows % told.heads == 0 else 0
    if told.heads and (not dim or (told.head_dim and told.head_dim != dim)):
        size = told.head_dim or "?"
        return _Heads(0, 0, 0), Reason.of(Code.HEADS_DOUBTED, heads=told.heads, head_dim=size, rows=_say(rows))
    if not dim and len(gain) == 1 and 0 < gain[0] < rows and rows % gain[0] == 0:
        dim = gain[0]  # a query gain of one head's length tells what the config does not
    if not dim:
        return _Heads(0, 0, 0), Reason.of(Code.HEADS_UNKNOWN)
    keys = usual.get("k", (told.kv_heads * dim,))[0]
    if keys % dim or keys == 0:
        return _Heads(0, 0, 0), Reason.of(Code.KEYS_MISFIT, rows=_say(keys), head_dim=_say(dim))
    return _Heads(rows // dim, keys // dim, dim), None


def _activation(facts: _Facts) -> str:
    for key in ACTIVATION_KEYS:
        for source in facts.sources:
            value = source.get(key)
            if isinstance(value, str) and value:
                return value[:40].removeprefix("gated-")
    return facts.kind.activation


def _sinusoidal(stack: str, facts: _Facts) -> bool:
    """Audio encoders add sinusoids; DistilBERT may."""
    return stack == "audio" or _flag(facts.sources, "sinusoidal_pos_embds", False)


def _tower_notes(
    placements: Mapping[str, Placement], main: str, model_type: str, configs: Mapping[str, Mapping[str, Any]]
) -> tuple[Reason, ...]:
    stacks = {p.stack for p in placements.values()}
    apart = [stack for stack in ("vision", "audio") if stack in stacks and stack != main]
    notes = [Reason.of(Code.TOWER_APART, stack=stack) for stack in apart]
    top = configs["top"].get("model_type")
    if isinstance(top, str) and ("vision" in apart or configs["text"]) and main in ("decoder", "encoder"):
        whole = top[:100] + (f" ({model_type})" if model_type != top else "")
        notes.insert(0, Reason.of(Code.TEXT_TOWER, model_type=whole))
    groups = {p.layer for p in placements.values() if p.parts and p.layer is not None and "albert_layer" in p.canonical}
    layers = _number((configs["text"], configs["top"]), ("num_hidden_layers",))
    if groups and layers > len(groups):
        notes.append(Reason.of(Code.LAYERS_SHARED, layers=layers, stored=len(groups)))
    return tuple(notes)
