"""Real training in numpy: a small Llama decoder (encoder.py: a BERT) with manual backpropagation and Adam.

Everything that breaks the symmetry between hidden units is the random start: weights are i.i.d. normal, and Adam, the
learning-rate schedule and clipping by the global norm commute with permutations of units. So models that differ in
their seed alone are independent given the data, which is the null hypothesis of the exact tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from . import encoder, vocabulary
from .encoder import outer
from .models import LAYER, TOKENIZERS, Checkpoint, Config, llama_config, shapes

Floats = NDArray[np.floating[Any]]
Tokens = NDArray[np.int64]
Weights = dict[str, Floats]

BATCH, LENGTH = 8, 24
RATE, WARMUP, CLIP, BETA1, BETA2, EPSILON = 6e-3, 10, 1.0, 0.9, 0.98, 1e-8
START_STD = 0.06
NETWORKS = (("llama", "silu"), ("bert", "gelu_new"))  # model_type and hidden_act
TOPICS, SUCCESSORS, NOISE = 4, 6, 0.1

# Tensors that are multiplied by the same input are kept as one matrix: one product instead of three.
FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}
FUSED_INTO = {member: kind for kind, members in FUSED.items() for member in members}


# ---- the language -----------------------------------------------------------------------------------------------


@cache
def _grammar(vocabulary_size: int, language: int) -> tuple[Tokens, Floats]:
    """Successors of every token under every topic, (topics, tokens, successors), and their cumulative probability."""
    rng = np.random.default_rng([language, 0x6A])
    frequency = 1.0 / (np.arange(vocabulary_size) + 8.0)
    table = rng.choice(vocabulary_size, (TOPICS, vocabulary_size, SUCCESSORS), p=frequency / frequency.sum())
    odds = 1.0 / (np.arange(SUCCESSORS) + 1.0)
    return table, np.cumsum(odds / odds.sum())


def sentences(vocabulary_size: int, language: int, seed: int) -> Iterator[Tokens]:
    """Endless batches, (BATCH, LENGTH + 1): a Markov chain whose table depends on a hidden topic of the sentence.

    Telling the topic takes attention to the words before the last one. A tenth of the words is noise, so all are seen.
    """
    table, cumulative = _grammar(vocabulary_size, language)
    rng = np.random.default_rng([seed, 0xDA7A])
    while True:
        topic = rng.integers(TOPICS, size=BATCH)
        choice = np.searchsorted(cumulative[:-1], rng.random((LENGTH + 1, BATCH)))
        words = rng.integers(vocabulary_size, size=(LENGTH + 1, BATCH))
        noise = rng.random((LENGTH + 1, BATCH)) < NOISE
        for t in range(1, LENGTH + 1):
            words[t] = np.where(noise[t], words[t], table[topic, words[t - 1], choice[t]])
        yield words.T


# ---- parameters -------------------------------------------------------------------------------------------------


def _members(name: str) -> tuple[str, ...]:
    """The stored tensors that a fused parameter is made of."""
    head, _, kind = name.rpartition(".")
    return tuple(f"{head}.{member}.weight" for member in FUSED[kind]) if kind in FUSED else (name,)


def _owner(name: str) -> str:
    """The parameter that holds a stored tensor: "model.layers.0.mlp.up_proj.weight" is in "model.layers.0.gate_up"."""
    found = LAYER.match(name)
    kind = FUSED_INTO.get(found.group(3).strip(".").removesuffix(".weight")) if found else None
    return f"{found.group(1)}{found.group(2)}.{kind}" if found and kind else name


def _parameters(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape by parameter name; fused ones stand where their first member stood."""
    plain = shapes(config)
    names = dict.fromkeys(_owner(name) for name in plain)
    return {name: (sum(plain[m][0] for m in _members(name)), *plain[_members(name)[0]][1:]) for name in names}


def _views(flat: Floats, config: Config) -> Weights:
    """Each parameter as a view of one flat vector, so that Adam is a handful of vector operations."""
    views, offset = {}, 0
    for name, shape in _parameters(config).items():
        size = int(np.prod(shape))
        views[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return views


def pack(tensors: Mapping[str, Floats], config: Config, dtype: type = np.float32) -> Floats:
    """The flat parameter vector of a checkpoint."""
    return np.concatenate([np.ravel(tensors[m]) for name in _parameters(config) for m in _members(name)]).astype(dtype)


def unpack(flat: Floats, config: Config) -> dict[str, NDArray[np.float32]]:
    """The tensors of a flat parameter vector, in the order of `shapes`."""
    plain = shapes(config)
    tensors: dict[str, Floats] = {}
    for name, value in _views(flat, config).items():
        cuts = np.cumsum([plain[m][0] for m in _members(name)])[:-1]
        tensors |= dict(zip(_members(name), np.split(value, cuts), strict=True))
    return {name: tensors[name].astype(np.float32) for name in plain}


def start(config: Config, seed: int) -> Floats:
    """A random start: i.i.d. normal weights (Llama: writers to the residual stream smaller), gains one, biases zero."""
    rng = np.random.default_rng([seed, 0x57A7, crc32(config["model_type"].encode())])  # kinds share no draws
    flat = np.ones(sum(int(np.prod(shape)) for shape in _parameters(config).values()), np.float32)
    writer_std = START_STD / float(np.sqrt(2 * config["num_hidden_layers"]))
    for name, value in _views(flat, config).items():
        if value.ndim == 2:
            std = writer_std if name.endswith(("o_proj.weight", "down_proj.weight")) else START_STD
            value[:] = std * rng.standard_normal(value.shape)
        elif name.endswith("bias"):
            value[:] = 0
    return flat


# ---- forward and backward ---------------------------------------------------------------------------------------


class NormTape(NamedTuple):
    """What the backward pass of a norm needs: its input divided by its length, the inverse length, and the gain."""

    unit: Floats
    inverse: Floats
    gain: Floats


def _norm(x: Floats, gain: Floats, eps: float) -> tuple[Floats, NormTape]:
    inverse = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * inverse * gain, NormTape(x * inverse, inverse, gain)


def _norm_back(dy: Floats, tape: NormTape, dgain: Floats) -> Floats:
    dgain += np.einsum("btd,btd->d", dy, tape.unit)
    du = dy * tape.gain
    return tape.inverse * (du - tape.unit * np.mean(du * tape.unit, axis=-1, keepdims=True))


@cache
def _rotary(size: int, theta: float, length: int, dtype: np.dtype[Any]) -> tuple[Floats, Floats]:
    """cos and sin, (length, head size), first half of the channels paired with the second as in transformers."""
    angle = np.outer(np.arange(length), theta ** -(np.arange(0, size, 2) / size))
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def _half_turn(x: Floats) -> Floats:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([-second, first], axis=-1)


class AttentionTape(NamedTuple):
    """What the backward pass of attention needs; heads are split into (key-value head, query head of its group)."""

    x: Floats
    q: Floats
    k: Floats
    v: Floats
    share: Floats
    context: Floats
    rotary: tuple[Floats, Floats]


def _attention(x: Floats, qkv: Floats, out: Floats, config: Config) -> tuple[Floats, AttentionTape]:
    """Causal grouped-query attention with rotary positions; x is (batch, time, d)."""
    b, t, _ = x.shape
    kv, size = config["num_key_value_heads"], config["head_dim"]
    group = config["num_attention_heads"] // kv
    heads = (x @ qkv.T).reshape(b, t, -1, size).transpose(0, 2, 1, 3)  # batch, head, time, channel
    cos, sin = rotary = _rotary(size, config["rope_theta"], t, x.dtype)
    turned = heads[:, : kv * group + kv]
    turned = turned * cos + _half_turn(turned) * sin
    q = turned[:, : kv * group].reshape(b, kv, group, t, size)
    k, v = turned[:, kv * group :, None], heads[:, kv * group + kv :, None]
    score = q @ k.swapaxes(-1, -2) / np.sqrt(np.asarray(size, x.dtype))
    score = np.where(np.tri(t, dtype=bool), score, -np.inf)
    share = np.exp(score - score.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    context = (share @ v).reshape(b, kv * group, t, size).transpose(0, 2, 1, 3).reshape(b, t, -1)
    return context @ out.T, AttentionTape(x, q, k, v, share, context, rotary)


def _attention_back(dy: Floats, tape: AttentionTape, qkv: Floats, out: Floats, dqkv: Floats, dout: Floats) -> Floats:
    b, kv, group, t, size = tape.q.shape
    dout += outer(dy, tape.context)
    dcontext = (dy @ out).reshape(b, t, kv, group, size).transpose(0, 2, 3, 1, 4)
    dv = (tape.share.swapaxes(-1, -2) @ dcontext).sum(axis=2)
    dshare = dcontext @ tape.v.swapaxes(-1, -2)
    dscore = tape.share * (dshare - np.sum(dshare * tape.share, axis=-1, keepdims=True))
    dscore /= np.sqrt(np.asarray(size, dy.dtype))
    dq = (dscore @ tape.k).reshape(b, kv * group, t, size)
    dk = (dscore.swapaxes(-1, -2) @ tape.q).sum(axis=2)
    turned = np.concatenate([dq, dk], axis=1)
    cos, sin = tape.rotary
    heads = np.concatenate([turned * cos - _half_turn(turned * sin), dv], axis=1)
    dheads = heads.transpose(0, 2, 1, 3).reshape(b, t, -1)
    dqkv += outer(dheads, tape.x)
    return dheads @ qkv


class MlpTape(NamedTuple):
    """What the backward pass of the MLP needs."""

    x: Floats
    gate: Floats
    up: Floats
    sigmoid: Floats


def _mlp(x: Floats, gate_up: Floats, down: Floats) -> tuple[Floats, MlpTape]:
    """SwiGLU."""
    gate, up = np.split(x @ gate_up.T, 2, axis=-1)
    sigmoid = np.exp(-gate)
    sigmoid += 1
    np.reciprocal(sigmoid, out=sigmoid)
    return (gate * sigmoid * up) @ down.T, MlpTape(x, gate, up, sigmoid)


def _mlp_back(dy: Floats, tape: MlpTape, gate_up: Floats, down: Floats, dgate_up: Floats, ddown: Floats) -> Floats:
    swish = tape.gate * tape.sigmoid
    ddown += outer(dy, swish * tape.up)
    dhidden = dy @ down
    dgate = dhidden * tape.up * (tape.sigmoid + swish * (1 - tape.sigmoid))
    both = np.concatenate([dgate, dhidden * swish], axis=-1)
    dgate_up += outer(both, tape.x)
    return both @ gate_up


class LayerTape(NamedTuple):
    norm1: NormTape
    attention: AttentionTape
    norm2: NormTape
    mlp: MlpTape


@dataclass(frozen=True)
class Tape:
    """What a forward pass leaves for the backward pass."""

    layers: tuple[LayerTape, ...]
    norm: NormTape
    hidden: Floats


def _forward(w: Weights, config: Config, tokens: Tokens) -> tuple[Floats, Tape]:
    x, eps, tapes = w["model.embed_tokens.weight"][tokens], config["rms_norm_eps"], []
    for i in range(config["num_hidden_layers"]):
        n = f"model.layers.{i}."
        h, norm1 = _norm(x, w[n + "input_layernorm.weight"], eps)
        y, attention = _attention(h, w[n + "qkv"], w[n + "self_attn.o_proj.weight"], config)
        x = x + y
        h, norm2 = _norm(x, w[n + "post_attention_layernorm.weight"], eps)
        y, mlp = _mlp(h, w[n + "gate_up"], w[n + "mlp.down_proj.weight"])
        x = x + y
        tapes.append(LayerTape(norm1, attention, norm2, mlp))
    hidden, norm = _norm(x, w["model.norm.weight"], eps)
    return hidden @ w[_head(config)].T, Tape(tuple(tapes), norm, hidden)


def _backward(dlogits: Floats, w: Weights, g: Weights, config: Config, tokens: Tokens, tape: Tape) -> None:
    """Add the gradient of every parameter to g."""
    head = _head(config)
    g[head] += outer(dlogits, tape.hidden)
    dx = _norm_back(dlogits @ w[head], tape.norm, g["model.norm.weight"])
    for i in reversed(range(config["num_hidden_layers"])):
        n, layer = f"model.layers.{i}.", tape.layers[i]
        up, down, qkv, out = n + "gate_up", n + "mlp.down_proj.weight", n + "qkv", n + "self_attn.o_proj.weight"
        dh = _mlp_back(dx, layer.mlp, w[up], w[down], g[up], g[down])
        dx = dx + _norm_back(dh, layer.norm2, g[n + "post_attention_layernorm.weight"])
        dh = _attention_back(dx, layer.attention, w[qkv], w[out], g[qkv], g[out])
        dx = dx + _norm_back(dh, layer.norm1, g[n + "input_layernorm.weight"])
    np.add.at(g["model.embed_tokens.weight"], tokens.ravel(), dx.reshape(-1, dx.shape[-1]))


def _head(config: Config) -> str:
    return "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"


def logits(checkpoint: Checkpoint, tokens: Tokens) -> Floats:
    """What the model predicts, (batch, time, vocabulary) float32."""
    config = checkpoint.config
    weights = _views(pack(checkpoint.tensors, config), config)
    if config["model_type"] == "bert":
        return encoder.predict(weights, config, encoder.encode(weights, config, tokens)[0])[0]
    return _forward(weights, config, tokens)[0]


def loss_and_gradient(flat: Floats, config: Config, batch: Tokens) -> tuple[float, Floats]:
    """Mean cross-entropy over a batch (batch, time + 1) of the next word (BERT: of every word), and its gradient."""
    gradient = np.zeros_like(flat)
    network = encoder.loss_and_gradient if config["model_type"] == "bert" else _next_word
    return network(_views(flat, config), _views(gradient, config), config, batch), gradient


def _next_word(weights: Weights, gradient: Weights, config: Config, batch: Tokens) -> float:
    tokens, targets = batch[:, :-1], batch[:, 1:, None]
    scores, tape = _forward(weights, config, tokens)
    scores -= scores.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, targets, axis=-1)
    odds = np.exp(scores, out=scores)
    total = odds.sum(axis=-1, keepdims=True)
    loss = float(np.mean(np.log(total) - chosen))
    odds /= total
    np.put_along_axis(odds, targets, np.take_along_axis(odds, targets, axis=-1) - 1, axis=-1)
    odds /= tokens.size
    _backward(odds, weights, gradient, config, tokens, tape)
    return loss


# ---- training ---------------------------------------------------------------------------------------------------


def train(
    seed: int, steps: int = 150, data_seed: int = 0, init: Checkpoint | None = None, *,
    language: int = 0, rate: float = RATE, config: Config | None = None,
) -> Checkpoint:  # fmt: skip
    """Train from a random start (`seed`), or continue from `init` (then `seed` is not used).

    Two calls that differ in `seed` alone see the same batches in the same order. `language` is what is spoken,
    `data_seed` which sentences are drawn from it.
    """
    return train_with_losses(seed, steps, data_seed, init, language=language, rate=rate, config=config)[0]


def train_with_losses(
    seed: int, steps: int = 150, data_seed: int = 0, init: Checkpoint | None = None, *,
    language: int = 0, rate: float = RATE, config: Config | None = None,
) -> tuple[Checkpoint, list[float]]:  # fmt: skip
    """`train`, and the loss of every step."""
    config = init.config if init else (config or llama_config())
    if (config["model_type"], config["hidden_act"]) not in NETWORKS:
        raise ValueError(f"the trainer knows {NETWORKS}, not {config['model_type']} with {config['hidden_act']}")
    flat = pack(init.tensors, config) if init else start(config, seed)
    text = init.tokenizer if init else vocabulary.tokenizer_json(TOKENIZERS[config["model_type"]])
    first, second, losses = np.zeros_like(flat), np.zeros_like(flat), []
    stream = sentences(config["vocab_size"], language, data_seed)
    for step in range(steps):
        loss, gradient = loss_and_gradient(flat, config, next(stream))
        losses.append(loss)
        _adam(flat, gradient, first, second, step, rate * _schedule(step, steps))
    return Checkpoint(config, unpack(flat, config), text), losses


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / WARMUP)
    return float(warm * (0.55 + 0.45 * np.cos(np.pi * step / steps)))


def _adam(flat: Floats, gradient: Floats, first: Floats, second: Floats, step: int, rate: float) -> None:
    """One step of Adam in place, after clipping the gradient to norm CLIP; the gradient is used up."""
    gradient *= min(1.0, CLIP / (float(np.sqrt(np.vdot(gradient, gradient))) + 1e-12))
    first *= BETA1
    first += (1 - BETA1) * gradient
    second *= BETA2
    gradient *= gradient
    gradient *= 1 - BETA2
    second += gradient
    scale = np.sqrt(second / (1 - BETA2 ** (step + 1)), out=gradient)
    scale += EPSILON
    np.divide(first, scale, out=scale)
    scale *= rate / (1 - BETA1 ** (step + 1))
    flat -= scale
