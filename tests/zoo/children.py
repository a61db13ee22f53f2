"""Descendants of a checkpoint whose relation to it is known because it was made here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from . import container, vocabulary
from .models import LAYER, Array, Checkpoint, independent

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
WIDTHS = {"gpt2": "n_inner", "t5": "d_ff"}  # config key of the hidden width of an MLP; intermediate_size elsewhere

# Tensors with one row for each token.
TOKEN_ROWS = re.compile(
    r"(?:embed_tokens|wte|word_embeddings|shared|embed_in|lm_head|embed_out)\.weight$|cls\.predictions\.bias$"
)
# Along which axis the hidden units of an MLP lie in a stored tensor (GPT-2 stores matrices transposed).
UNIT_AXES: dict[str, tuple[tuple[str, int], ...]] = {
    "llama": (("gate_proj.weight", 0), ("up_proj.weight", 0), ("down_proj.weight", 1)),
    "qwen2": (("gate_proj.weight", 0), ("up_proj.weight", 0), ("down_proj.weight", 1)),
    "gpt2": (("mlp.c_fc.weight", 1), ("mlp.c_fc.bias", 0), ("mlp.c_proj.weight", 0)),
    "bert": (("intermediate.dense.weight", 0), ("intermediate.dense.bias", 0), (".output.dense.weight", 1)),
    "t5": (("wi_0.weight", 0), ("wi_1.weight", 0), ("wo.weight", 1)),
    "gpt_neox": (("dense_h_to_4h.weight", 0), ("dense_h_to_4h.bias", 0), ("dense_4h_to_h.weight", 1)),
}


# ---- values -----------------------------------------------------------------------------------------------------


def finetune_noise(parent: Checkpoint, cosine: float, seed: int) -> Checkpoint:
    """i.i.d. noise added so that every matrix has this cosine to the parent's, and its norm; vectors change by 1 %.

    The noise is made orthogonal to the matrix, so the cosine is exact up to the rounding to float32.
    """
    rng = np.random.default_rng([seed, 0xF17E])
    return parent.with_tensors({name: _turned(value, cosine, rng) for name, value in parent.tensors.items()})


def _turned(value: Array, cosine: float, rng: np.random.Generator) -> Array:
    w, noise = value.astype(np.float64), rng.standard_normal(value.shape)
    if w.ndim < 2:
        return (w + 0.01 * np.sqrt(np.mean(w * w)) * noise).astype(np.float32)
    noise -= w * (np.vdot(w, noise) / np.vdot(w, w))
    noise *= np.linalg.norm(w) / np.linalg.norm(noise)
    return (cosine * w + np.sqrt(1 - cosine**2) * noise).astype(np.float32)


def quantize(parent: Checkpoint, bits: int, per: str = "row") -> Checkpoint:
    """Matrices rounded to 2**bits - 1 symmetric steps of a scale per row or per 32 elements, and dequantized again."""
    return parent.with_tensors({n: _rounded(v, bits, per) if v.ndim > 1 else v for n, v in parent.tensors.items()})


def _rounded(value: Array, bits: int, per: str) -> Array:
    if per not in ("row", "block32"):
        raise ValueError(f'per is "row" or "block32", not {per!r}')
    length = value.shape[-1] if per == "row" else 32
    blocks = np.pad(value.ravel(), (0, -value.size % length)).reshape(-1, length)
    top = 2 ** (bits - 1) - 1
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(top)
    steps = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    return (steps * scale).ravel()[: value.size].reshape(value.shape).astype(np.float32)


def cast(parent: Checkpoint, dtype: str) -> Checkpoint:
    """Values rounded to what a safetensors dtype can hold (kept as float32)."""
    rounded = {
        n: container.decode(container.encode(v, dtype), dtype).reshape(v.shape) for n, v in parent.tensors.items()
    }
    return parent.with_tensors(rounded, torch_dtype={"BF16": "bfloat16", "F16": "float16"}.get(dtype, "float32"))


def merge(a: Checkpoint, b: Checkpoint, t: float) -> Checkpoint:
    """Linear merge, (1 - t) a + t b."""
    return a.with_tensors(
        {name: ((1 - t) * a.tensors[name] + t * b.tensors[name]).astype(np.float32) for name in a.tensors}
    )


def shuffle(parent: Checkpoint, seed: int) -> Checkpoint:
    """No descendant: the elements of every tensor in random order. Same config, same distribution, no lineage left."""
    rng = np.random.default_rng([seed, 0x5B0F])
    return parent.with_tensors({n: rng.permutation(v.ravel()).reshape(v.shape) for n, v in parent.tensors.items()})


# ---- layers -----------------------------------------------------------------------------------------------------


def drop_layers(parent: Checkpoint, keep: Sequence[int]) -> Checkpoint:
    """Only these layers, in their order, renumbered. An encoder-decoder loses them in both stacks."""
    return repeat_layers(parent, sorted(set(keep)))


def repeat_layers(parent: Checkpoint, order: Sequence[int]) -> Checkpoint:
    """Layer i of the child is layer order[i] of the parent: `(0, 1, 2, 1, 2, 3)` is an upscaled child.

    What the parent has in its first layer only (T5's table of relative positions) stays in the first layer.
    """
    tensors: dict[str, Array] = {}
    layers: dict[int, dict[tuple[str, str], Array]] = {}
    for name, value in parent.tensors.items():
        found = LAYER.match(name)
        if found is None or "relative_attention_bias" in name:
            tensors[name] = value
        else:
            layers.setdefault(int(found.group(2)), {})[found.group(1), found.group(3)] = value
    for new, old in enumerate(order):
        tensors |= {f"{before}{new}{after}": value for (before, after), value in layers[old].items()}
    counts = {key: len(order) for key in LAYER_COUNTS if key in parent.config}
    return parent.with_tensors(tensors, **counts)


# ---- units ------------------------------------------------------------------------------------------------------


def permute_neurons(parent: Checkpoint, seed: int) -> Checkpoint:
    """The same function: the hidden units of every MLP in another order."""
    return _select_units(parent, 1.0, np.random.default_rng([seed, 0x9E44]), ordered=False)


def prune_width(parent: Checkpoint, share: float, seed: int) -> Checkpoint:
    """A random share of the hidden units of every MLP, in their order."""
    return _select_units(parent, share, np.random.default_rng([seed, 0x9E45]), ordered=True)


def _select_units(parent: Checkpoint, share: float, rng: np.random.Generator, ordered: bool) -> Checkpoint:
    axes = UNIT_AXES[parent.config["model_type"]]
    tensors, choice = dict(parent.tensors), {}
    for name, value in parent.tensors.items():
        axis = next((axis for suffix, axis in axes if name.endswith(suffix) and "attention.output" not in name), None)
        found = LAYER.match(name)
        if axis is None or found is None:
            continue
        where = found.group(1, 2)
        if where not in choice:
            units = rng.permutation(value.shape[axis])[: round(share * value.shape[axis])]
            choice[where] = np.sort(units) if ordered else units
        tensors[name] = np.take(value, choice[where], axis=axis)
    width = len(next(iter(choice.values())))
    key = WIDTHS.get(parent.config["model_type"], "intermediate_size")
    return parent.with_tensors(tensors, **{key: width})


# ---- vocabulary -------------------------------------------------------------------------------------------------


def prune_vocabulary(parent: Checkpoint, keep_tokens: Sequence[str]) -> Checkpoint:
    """Only these tokens and the special ones: embedding rows removed and renumbered, and the tokenizer with them."""
    text = _tokenizer(parent)
    kept = {*keep_tokens, *vocabulary.special_ids(text)}
    rows = np.array([i for i, token in enumerate(vocabulary.tokens(text)) if token in kept])
    config = {key: int(np.searchsorted(rows, value)) for key, value in parent.config.items()
              if key.endswith("_token_id") and value is not None}  # fmt: skip
    tensors = {n: v[rows] if TOKEN_ROWS.search(n) else v for n, v in parent.tensors.items()}
    child = parent.with_tensors(tensors, vocab_size=len(rows), **config)
    return replace(child, tokenizer=vocabulary.keep_tokens(text, sorted(kept)))


def extend_vocabulary(parent: Checkpoint, new_tokens: Sequence[str], seed: int) -> Checkpoint:
    """New tokens after the old ones, their rows drawn around the mean row as a resized embedding draws them."""
    text, rng = _tokenizer(parent), np.random.default_rng([seed, 0xE47])
    tensors = {
        n: np.concatenate([v, _new_rows(v, len(new_tokens), rng)]) if TOKEN_ROWS.search(n) else v
        for n, v in parent.tensors.items()
    }
    child = parent.with_tensors(tensors, vocab_size=parent.config["vocab_size"] + len(new_tokens))
    return replace(child, tokenizer=vocabulary.add_tokens(text, new_tokens))


def _new_rows(table: Array, count: int, rng: np.random.Generator) -> Array:
    spread = table.std(axis=0)
    return (table.mean(axis=0) + spread * rng.standard_normal((count, *table.shape[1:]))).astype(np.float32)


def _tokenizer(parent: Checkpoint) -> str:
    if parent.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer, so its rows have no names")
    return parent.tokenizer


# ---- names ------------------------------------------------------------------------------------------------------


def rename_prefix(parent: Checkpoint, old: str, new: str) -> Checkpoint:
    """Another wrapper: the prefix `old` of tensor names becomes `new`; names without it stay as they are."""
    swap = {n: new + n.removeprefix(old) if n.startswith(old) else n for n in parent.tensors}
    return parent.with_tensors({swap[n]: v for n, v in parent.tensors.items()})


def cosines(a: Checkpoint, b: Checkpoint) -> dict[str, float]:
    """Cosine of each tensor that two checkpoints have in the same shape, in float64."""
    common = [n for n, v in a.tensors.items() if n in b.tensors and b.tensors[n].shape == v.shape]
    return {n: _cosine(a.tensors[n], b.tensors[n]) for n in common}


def _cosine(a: Array, b: Array) -> float:
    x: NDArray[np.float64] = a.astype(np.float64).ravel()
    y: NDArray[np.float64] = b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


__all__ = [
    "cast", "cosines", "drop_layers", "extend_vocabulary", "finetune_noise", "independent", "merge", "permute_neurons",
    "prune_vocabulary", "prune_width", "quantize", "rename_prefix", "repeat_layers", "shuffle",
]  # fmt: skip
