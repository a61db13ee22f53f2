"""Renamings: the same weights under the names, and in the layouts, that other libraries and owners give them.

Each takes a snapshot and a seed and returns another snapshot with the same config and tokenizer, or a Refusal. What is
fused, interleaved or transposed in the other layout is so here. Facts of the layouts: `provindex.roles.libraries`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.roles.canonical import PartKey
from provindex.roles.names import Arch

from .freedoms.draws import Disguise, Refusal, rng_of
from .parts import Parts
from .snapshot import Snapshot

Array = NDArray[Any]
PREFIXES = ("llm.", "thinker.", "student.", "backbone.", "net.llama_model.")
NUMBERED = ("layers", "h", "layer", "block", "blocks")

# Names of single parts by role; "{l}" is the layer. A matrix has a last segment, which the library says.
LITGPT = {
    "embed": "transformer.wte", "pos": "transformer.wpe", "norm_final": "transformer.ln_f", "head": "lm_head",
    "norm_attn": "transformer.h.{l}.norm_1", "norm_mlp": "transformer.h.{l}.norm_2",
    "norm_q": "transformer.h.{l}.attn.norm_q", "norm_k": "transformer.h.{l}.attn.norm_k",
    "o": "transformer.h.{l}.attn.proj", "gate": "transformer.h.{l}.mlp.fc_1", "up": "transformer.h.{l}.mlp.fc_2",
    "down": "transformer.h.{l}.mlp.proj",
}  # fmt: skip
MEGATRON = {
    "embed": "embedding.word_embeddings", "pos": "embedding.position_embeddings", "head": "output_layer",
    "norm_final": "decoder.final_layernorm", "norm_q": "decoder.layers.{l}.self_attention.q_layernorm",
    "norm_k": "decoder.layers.{l}.self_attention.k_layernorm", "o": "decoder.layers.{l}.self_attention.linear_proj",
    "up": "decoder.layers.{l}.mlp.linear_fc1", "down": "decoder.layers.{l}.mlp.linear_fc2",
}  # fmt: skip
TORCHTUNE = {
    "embed": "tok_embeddings", "norm_final": "norm", "head": "output", "norm_attn": "layers.{l}.sa_norm",
    "norm_mlp": "layers.{l}.mlp_norm", "q": "layers.{l}.attn.q_proj", "k": "layers.{l}.attn.k_proj",
    "v": "layers.{l}.attn.v_proj", "o": "layers.{l}.attn.output_proj", "norm_q": "layers.{l}.attn.q_norm",
    "norm_k": "layers.{l}.attn.k_norm", "gate": "layers.{l}.mlp.w1", "up": "layers.{l}.mlp.w3",
    "down": "layers.{l}.mlp.w2",
}  # fmt: skip
FLAX = {
    "embed": "model/embed_tokens", "norm_final": "model/norm", "head": "lm_head",
    "norm_attn": "model/layers/{l}/input_layernorm", "norm_mlp": "model/layers/{l}/post_attention_layernorm",
    "norm_q": "model/layers/{l}/self_attn/q_norm", "norm_k": "model/layers/{l}/self_attn/k_norm",
    **{r: f"model/layers/{{l}}/self_attn/{r}_proj" for r in "qkvo"},
    **{r: f"model/layers/{{l}}/mlp/{r}_proj" for r in ("gate", "up", "down")},
}  # fmt: skip
LENS = {
    "embed": "embed.W_E", "pos": "pos_embed.W_pos", "norm_final": "ln_final.w", "head": "unembed.W_U",
    "norm_attn": "blocks.{l}.ln1.w", "norm_mlp": "blocks.{l}.ln2.w", "norm_q": "blocks.{l}.attn.q_norm.w",
    "norm_k": "blocks.{l}.attn.k_norm.w", "q": "blocks.{l}.attn.W_Q", "k": "blocks.{l}.attn.W_K",
    "v": "blocks.{l}.attn.W_V", "o": "blocks.{l}.attn.W_O", "gate": "blocks.{l}.mlp.W_gate",
    "up": "blocks.{l}.mlp.W_in", "down": "blocks.{l}.mlp.W_out",
}  # fmt: skip
NO_DECODER = Refusal("not a plain decoder")


def prefixed(prefix: str) -> Disguise:
    """Every name under a prefix."""
    return lambda snapshot, seed: _named(snapshot, prefix, lambda name: prefix + name)


def wrapped(snapshot: Snapshot, seed: int) -> Snapshot:
    """FSDP around the model and around every layer."""
    del seed
    return _named(snapshot, "fsdp", lambda name: "_fsdp_wrapped_module." + _in_the_middle(name, "_fsdp_wrapped_module"))


def _in_the_middle(name: str, wrapper: str) -> str:
    """A name with a wrapper behind the number of its layer."""
    segments = name.split(".")
    at = next((i for i, s in enumerate(segments) if s.isdecimal()), None)
    return name if at is None else ".".join([*segments[: at + 1], wrapper, *segments[at + 1 :]])


def scrambled(snapshot: Snapshot, seed: int) -> Snapshot:
    """Names that say nothing but the layer: `x7.b3.k11`."""
    rng = rng_of(seed, "scrambled")
    kinds = sorted({_split(name)[1] for name in snapshot.tensors})
    numbers = dict(zip(kinds, rng.permutation(len(kinds)).tolist(), strict=True))

    def named(name: str) -> str:
        layer, kind = _split(name)
        return f"x7.b{layer}.k{numbers[kind]}" if layer else f"x7.g{numbers[kind]}"

    return _named(snapshot, "scrambled", named)


def _split(name: str) -> tuple[str, str]:
    """The number of the layer, "" outside of layers, and the name without it."""
    segments = name.split(".")
    for i, (segment, after) in enumerate(pairwise(segments)):
        if segment in NUMBERED and after.isdecimal():
            return after, ".".join([*segments[: i + 1], *segments[i + 2 :]])
    return "", name


def random_names(snapshot: Snapshot, seed: int) -> Snapshot:
    """Names of random letters, in another order."""
    rng = rng_of(seed, "random names")
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    names = {name: "".join(rng.choice(letters, 12)) for name in snapshot.tensors}
    renamed = {names[name]: tensor for name, tensor in snapshot.tensors.items()}
    return replace(snapshot, name=f"{snapshot.name}+random", tensors=dict(sorted(renamed.items())))


def _named(snapshot: Snapshot, how: str, name: Callable[[str], str]) -> Snapshot:
    return replace(
        snapshot, name=f"{snapshot.name}+{how}", tensors={name(n): tensor for n, tensor in snapshot.tensors.items()}
    )


# --- layouts of libraries --------------------------------------------------------------------------------------


def litgpt(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """litgpt: q, k and v one after the other."""
    del seed
    return _relaid(snapshot, "litgpt", LITGPT, _plain, lambda q, k, v, arch: np.concatenate([q, k, v]))


def litgpt_older(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """litgpt until 2024: the queries of each group, its key and its value."""
    del seed
    return _relaid(snapshot, "litgpt (older)", LITGPT, _plain, by_group, fused="transformer.h.{l}.attn.attn")


def megatron(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Megatron-core with Transformer Engine: fused norms, q, k and v by group, gate and up in one matrix."""
    del seed

    def named(role: str, param: str, names: Mapping[str, str]) -> str:
        norms = {"norm_attn": "self_attention.linear_qkv", "norm_mlp": "mlp.linear_fc1"}
        if role in norms:
            return f"decoder.layers.{{l}}.{norms[role]}.layer_norm_{param}"
        return f"{names[role]}.{param}"

    fused = "decoder.layers.{l}.self_attention.linear_qkv"
    return _relaid(snapshot, "megatron", MEGATRON, named, by_group, fused=fused, gated=True)


def torchtune(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """torchtune: Meta's spelling of the MLP, gains called scale."""
    del seed

    def named(role: str, param: str, names: Mapping[str, str]) -> str:
        return f"{names[role]}.{'scale' if role.startswith('norm') and param == 'weight' else param}"

    return _relaid(snapshot, "torchtune", TORCHTUNE, named)


def flax(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """Flax: slashes, kernels stored as (in, out)."""
    del seed

    def named(role: str, param: str, names: Mapping[str, str]) -> str:
        leaf = "embedding" if role == "embed" else "scale" if role.startswith("norm") else "kernel"
        return f"params/{names[role]}/{leaf if param == 'weight' else param}"

    done = _relaid(snapshot, "flax", FLAX, named)
    if isinstance(done, Refusal):
        return done
    turned = {n: t.T.copy() if n.endswith("/kernel") else t for n, t in done.tensors.items()}
    return replace(done, tensors=turned)


def transformer_lens(snapshot: Snapshot, seed: int) -> Snapshot | Refusal:
    """TransformerLens without its processing: one matrix a head, everything stored as (in, out)."""
    del seed

    def named(role: str, param: str, names: Mapping[str, str]) -> str:
        if param == "weight":
            return names[role]
        before, _, last = names[role].rpartition(".")
        return f"{before}.{last.replace('W_', 'b_') if 'W_' in last else 'b'}"

    done = _relaid(snapshot, "transformer lens", LENS, named)
    if isinstance(done, Refusal):
        return done
    width = Parts(snapshot).arch("decoder").head_dim
    return replace(done, tensors={n: _by_head(n, t, width) for n, t in done.tensors.items()})


def _by_head(name: str, tensor: Array, width: int) -> Array:
    """One tensor of TransformerLens from the same in (out, in)."""
    last = name.rpartition(".")[2]
    if last in ("W_Q", "W_K", "W_V"):
        return np.ascontiguousarray(tensor.reshape(-1, width, tensor.shape[1]).transpose(0, 2, 1))
    if last == "W_O":
        return np.ascontiguousarray(tensor.T.reshape(-1, width, tensor.shape[0]))
    if last in ("b_Q", "b_K", "b_V"):
        return tensor.reshape(-1, width)
    return tensor.T.copy() if last in ("W_in", "W_gate", "W_out", "W_U") else tensor


def by_group(q: Array, k: Array, v: Array, arch: Arch) -> Array:
    """q, k and v interleaved: the queries of a group, its key, its value, then of the next group."""
    groups, width = arch.kv_heads, arch.head_dim
    parts = [part.reshape(groups, -1, width, *part.shape[1:]) for part in (q, k, v)]
    return np.concatenate(parts, axis=1).reshape(-1, *q.shape[1:])


def _plain(role: str, param: str, names: Mapping[str, str]) -> str:
    return f"{names[role]}.{param}"


def _relaid(
    snapshot: Snapshot,
    how: str,
    names: Mapping[str, str],
    named: Callable[[str, str, Mapping[str, str]], str],
    fuse: Callable[[Array, Array, Array, Arch], Array] | None = None,
    fused: str = "transformer.h.{l}.attn.qkv",
    gated: bool = False,
) -> Snapshot | Refusal:
    """A decoder's parts under other names.

    names: of roles. named: role, parameter and names to a template. fuse: makes one of q, k and v, stored as `fused`.
    gated: gate and up are one matrix.
    """
    parts = Parts(snapshot)
    if parts.stacks != ("decoder",) or any(place.reason for place in parts.layout.placements.values() if place.weight):
        return NO_DECODER
    arch = parts.arch("decoder")
    if any(key.expert is not None or key.cross for key in parts.at) or not arch.head_dim:
        return NO_DECODER
    fused_away = ({"q", "k", "v"} if fuse else set()) | ({"gate", "norm_attn", "norm_mlp"} if gated else set())
    if any(key.role not in names.keys() | fused_away for key in parts.at):
        return Refusal("a part that this library has no name for")
    plain = not any(key.role == "gate" for key in parts.at)
    names = {**names, "up": names["up"].replace("fc_2", "fc")} if plain else names
    tensors: dict[str, Array] = {}
    for key in parts.at:
        if fuse is not None and key.role in ("q", "k", "v"):
            if key.role == "q":
                q, k, v = (_read(parts, key, role) for role in "qkv")
                tensors[f"{fused}.{key.param}".format(l=key.layer)] = fuse(q, k, v, arch)
        elif gated and key.role == "gate":
            both = np.concatenate([_read(parts, key, "gate"), _read(parts, key, "up")])
            tensors[named("up", key.param, names).format(l=key.layer)] = both
        elif not (gated and not plain and key.role == "up"):
            tensors[named(key.role, key.param, names).format(l=key.layer)] = _read(parts, key, key.role)
    return replace(snapshot, name=f"{snapshot.name}+{how}", tensors=tensors)


def _read(parts: Parts, key: PartKey, role: str) -> Array:
    return parts.read(key._replace(role=role)).astype(np.float32)


# --- together --------------------------------------------------------------------------------------------------

RENAMES: Mapping[str, Disguise] = {
    **{f"prefix {prefix}": prefixed(prefix) for prefix in PREFIXES},
    "fsdp": wrapped,
    "litgpt": litgpt,
    "litgpt_older": litgpt_older,
    "megatron": megatron,
    "transformer_lens": transformer_lens,
    "torchtune": torchtune,
    "flax": flax,
    "scrambled": scrambled,
    "random": random_names,
}
