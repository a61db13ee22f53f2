"""Small models of every architecture in tests/data/architectures: the same names, narrow, with random weights."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_index.zoo.snapshot import Snapshot
from provindex.roles.names import Arch, Layout, Part, Placement, part_shape, resolve

FOLDER = Path(__file__).parents[1] / "data" / "architectures"
VOCABULARY, PLACES, HEADS, UNITS, EXPERT_UNITS, WIDTH, TABLE = 40, 16, 4, 40, 20, 32, 16
BUFFERS = ("buffer", "causal mask", "rotary", "fixed positions")

_WIDTHS = "hidden_size d_model n_embd dim".split()
_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads",
    "decoder_attention_heads",
)  # fmt: skip
_DIMS = "head_dim d_kv kv_channels attention_head_dim".split()
_KV = "num_key_value_heads num_kv_heads n_head_kv multi_query_group_num kv_n_heads".split()
_DROPPED = ("rotary_dim", "rope_parameters", "layer_types")


@cache
def fixture(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any], Layout]:
    """Shapes, config and layout of an architecture as it is published."""
    stored = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    shapes = {key: tuple(shape) for key, shape in stored["tensors"].items()}
    return shapes, stored["config"], resolve(shapes, stored["config"])


def shrunk(name: str, seed: int = 0, *, vocabulary: int = VOCABULARY, tied_copy: bool = False) -> Snapshot:
    """A small model of an architecture: float64 weights with gains and biases that are not trivial.

    tied_copy: also store a head that the config ties to the embedding.
    """
    shapes, config, layout = fixture(name)
    small, sizes = _small_config(config, layout, vocabulary), _sizes(config, layout, vocabulary)
    tied = bool(config.get("tie_word_embeddings"))
    rng, tensors = np.random.default_rng([seed, 7]), {}
    for key, shape in shapes.items():
        place = layout.placements[key]
        if (place.reason or "").startswith(BUFFERS) and not key.endswith("final_logits_bias"):
            continue
        if tied and place.parts and place.parts[0].role == "head" and place.parts[0].param == "weight":
            continue
        tensors[key] = _values(place, _small(place, shape, layout, sizes), layout, rng)
    _copies(tensors, layout, tied_copy)
    return Snapshot(name, tensors, small, "")


def _copies(tensors: dict[str, NDArray[np.float64]], layout: Layout, tied_copy: bool) -> None:
    owners = {p.canonical: p.name for p in layout.placements.values() if p.parts}
    for place in layout.placements.values():
        owner = owners.get(place.copy_of)
        if place.name in tensors and owner:
            if owner in tensors:
                tensors[place.name] = tensors[owner].copy()
            else:
                del tensors[place.name]
        if tied_copy and place.parts and place.parts[0].role == "head" and place.name not in tensors:
            embed = next(p.name for p in layout.placements.values() if p.parts and p.parts[0].role == "embed")
            tensors[place.name] = tensors[embed].copy()


def _head_dim(arch: Arch) -> int:
    """Heads fill the width where they did, and are wider where they did not."""
    return WIDTH // HEADS if arch.heads * arch.head_dim == arch.hidden else 12


def _kv_heads(arch: Arch) -> int:
    return {arch.heads: HEADS, 1: 1}.get(arch.kv_heads, 2)


def _small_config(config: Mapping[str, Any], layout: Layout, vocabulary: int) -> dict[str, Any]:
    arch, out = layout.archs[layout.main], dict(config)
    small = dict.fromkeys(_WIDTHS, WIDTH) | dict.fromkeys(_HEADS, HEADS) | dict.fromkeys(_DIMS, _head_dim(arch))
    small |= dict.fromkeys(_KV, _kv_heads(arch))
    for key, value in config.items():
        if key in small and isinstance(value, int):
            out[key] = small[key]
        elif isinstance(value, int) and key.endswith(("token_id", "vocab_size")):
            out[key] = min(value, 3) if key.endswith("id") else vocabulary
    return {key: value for key, value in out.items() if key not in _DROPPED}


def _sizes(config: Mapping[str, Any], layout: Layout, vocabulary: int) -> dict[int, int]:
    """Small sizes by published ones, for weights without a role."""
    arch = layout.archs[layout.main]
    words = {int(config.get(key) or 0): vocabulary for key in ("vocab_size", "decoder_vocab_size")}
    sizes = {**words, arch.heads: HEADS, arch.hidden: WIDTH}
    for key in ("embedding_size", "word_embed_proj_dim"):
        if config.get(key) not in (None, arch.hidden):
            sizes[int(config[key])] = TABLE
    return sizes


def _small(place: Placement, shape: tuple[int, ...], layout: Layout, sizes: Mapping[int, int]) -> tuple[int, ...]:
    if not place.parts:
        return tuple(sizes.get(size, min(size, 10)) for size in shape)
    first, arch = place.parts[0], layout.archs[place.parts[0].stack]
    mine = [p for p in place.parts if p.lead == first.lead]
    cores = [_core(p, part_shape(p, shape), arch, sizes) for p in mine]
    core = (sum(c[0] for c in cores), *cores[0][1:])
    core = core[::-1] if first.transposed else core
    return core if first.lead is None else (shape[0], *core)


def _core(part: Part, shape: tuple[int, ...], arch: Arch, sizes: Mapping[int, int]) -> tuple[int, ...]:
    """The small shape of a part in canonical orientation."""
    dim, kv = _head_dim(arch), _kv_heads(arch)
    units = UNITS if part.expert is None else EXPERT_UNITS
    heights = {"q": HEADS * dim, "k": kv * dim, "v": kv * dim, "gate": units, "up": units, "o": WIDTH, "down": WIDTH}
    widths = {"o": HEADS * dim, "down": units, "embed_map": TABLE}
    if part.role in ("norm_q", "norm_k"):
        heads = HEADS if part.role == "norm_q" else kv
        if len(shape) == 2:
            return heads, dim
        return (dim if shape[0] == arch.head_dim else heads * dim,)
    table = TABLE if TABLE in sizes.values() else WIDTH
    if part.role in ("embed", "head"):
        return (sizes.get(shape[0], VOCABULARY), table)[: len(shape)]
    if part.role == "pos":
        return PLACES + 4, sizes.get(shape[1], WIDTH)
    if part.role == "router":
        return (shape[0], WIDTH)[: len(shape)]
    if part.role.startswith("norm"):
        return (sizes.get(shape[0], WIDTH),)
    return (heights.get(part.role, WIDTH), widths.get(part.role, WIDTH))[: len(shape)]


def _values(place: Placement, shape: tuple[int, ...], layout: Layout, rng: np.random.Generator) -> NDArray[np.float64]:
    noise = rng.standard_normal(shape)
    part = place.parts[0] if place.parts else None
    gain = part is not None and part.role.startswith("norm") and part.param == "weight"
    gain |= part is None and len(shape) == 1 and place.name.endswith(("orm.weight", "gamma"))
    if gain:
        offset = layout.archs[part.stack].norm_offset if part is not None else 0.0
        return np.exp(0.3 * noise) - offset
    if len(shape) == 1 or (part is not None and part.param == "bias"):
        return 0.3 * noise
    if part is not None and part.role in ("embed", "pos"):
        return noise
    return noise * 1.2 / np.sqrt(WIDTH)
