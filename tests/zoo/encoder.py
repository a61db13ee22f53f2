"""The second network that the trainer knows: a BERT (post-norm LayerNorm, biases, GELU) that restores a sentence.

As in trainer.py, weights are views of one flat vector, and a backward pass adds to the gradient's views. The loss
counts all words, hidden or not: with hidden ones alone so small a model learns only word frequencies in 100 steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Tokens = NDArray[np.int64]
Weights = dict[str, Floats]
Config = dict[str, Any]

EVERY = 4  # one word in so many is hidden
MASK = 4  # the id of [MASK]
EMBEDDINGS = "bert.embeddings."
HEAD = "cls.predictions."


# ---- pieces: each forward step returns what its backward step needs -----------------------------------------------


def outer(dy: Floats, x: Floats) -> Floats:
    """Gradient of W in y = x W', summed over all axes but the last."""
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def _total(dy: Floats) -> Floats:
    return dy.reshape(-1, dy.shape[-1]).sum(axis=0)


def _affine(x: Floats, w: Weights, name: str) -> Floats:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def _affine_back(dy: Floats, x: Floats, w: Weights, g: Weights, name: str) -> Floats:
    g[name + ".weight"] += outer(dy, x)
    g[name + ".bias"] += _total(dy)
    return dy @ w[name + ".weight"]


class NormTape(NamedTuple):
    """The normalized input, and one over its standard deviation."""

    unit: Floats
    inverse: Floats


def _norm(x: Floats, w: Weights, name: str, eps: float) -> tuple[Floats, NormTape]:
    centered = x - x.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(np.mean(centered * centered, axis=-1, keepdims=True) + eps)
    unit = centered * inverse
    return unit * w[name + ".weight"] + w[name + ".bias"], NormTape(unit, inverse)


def _norm_back(dy: Floats, tape: NormTape, w: Weights, g: Weights, name: str) -> Floats:
    g[name + ".weight"] += _total(dy * tape.unit)
    g[name + ".bias"] += _total(dy)
    du = dy * w[name + ".weight"]
    along = np.mean(du * tape.unit, axis=-1, keepdims=True)
    return tape.inverse * (du - du.mean(axis=-1, keepdims=True) - tape.unit * along)


def _gelu(x: Floats) -> tuple[Floats, Floats]:
    """The tanh form ("gelu_new"), and its derivative."""
    slope = float(np.sqrt(2 / np.pi))
    bend = np.tanh(slope * (x + 0.044715 * x**3))
    derivative = 0.5 * (1 + bend) + 0.5 * x * (1 - bend * bend) * slope * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + bend), derivative


def _split(x: Floats, heads: int) -> Floats:
    b, t, d = x.shape
    return x.reshape(b, t, heads, d // heads).transpose(0, 2, 1, 3)


def _join(x: Floats) -> Floats:
    b, heads, t, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, heads * size)


# ---- one layer ----------------------------------------------------------------------------------------------------


class LayerTape(NamedTuple):
    """Inputs and intermediate values of one layer."""

    x: Floats
    q: Floats
    k: Floats
    v: Floats
    share: Floats
    context: Floats
    norm1: NormTape
    middle: Floats
    hidden: Floats
    slope: Floats
    norm2: NormTape


def _layer(x: Floats, w: Weights, n: str, config: Config) -> tuple[Floats, LayerTape]:
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    q, k, v = (_split(_affine(x, w, f"{n}attention.self.{part}"), heads) for part in ("query", "key", "value"))
    score = q @ k.swapaxes(-1, -2) / float(np.sqrt(q.shape[-1]))
    share = np.exp(score - score.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    context = _join(share @ v)
    out = _affine(context, w, n + "attention.output.dense")
    middle, norm1 = _norm(x + out, w, n + "attention.output.LayerNorm", eps)
    hidden, slope = _gelu(_affine(middle, w, n + "intermediate.dense"))
    y, norm2 = _norm(middle + _affine(hidden, w, n + "output.dense"), w, n + "output.LayerNorm", eps)
    return y, LayerTape(x, q, k, v, share, context, norm1, middle, hidden, slope, norm2)


def _layer_back(dy: Floats, tape: LayerTape, w: Weights, g: Weights, n: str) -> Floats:
    dsum = _norm_back(dy, tape.norm2, w, g, n + "output.LayerNorm")
    dhidden = _affine_back(dsum, tape.hidden, w, g, n + "output.dense") * tape.slope
    dmiddle = dsum + _affine_back(dhidden, tape.middle, w, g, n + "intermediate.dense")
    dsum = _norm_back(dmiddle, tape.norm1, w, g, n + "attention.output.LayerNorm")
    heads, size = tape.q.shape[1], tape.q.shape[-1]
    dcontext = _split(_affine_back(dsum, tape.context, w, g, n + "attention.output.dense"), heads)
    dshare = dcontext @ tape.v.swapaxes(-1, -2)
    dscore = tape.share * (dshare - np.sum(dshare * tape.share, axis=-1, keepdims=True)) / float(np.sqrt(size))
    parts = {
        "query": dscore @ tape.k,
        "key": dscore.swapaxes(-1, -2) @ tape.q,
        "value": tape.share.swapaxes(-1, -2) @ dcontext,
    }
    return dsum + sum(_affine_back(_join(d), tape.x, w, g, f"{n}attention.self.{p}") for p, d in parts.items())


# ---- the network --------------------------------------------------------------------------------------------------


def _names(config: Config) -> list[str]:
    return [f"bert.encoder.layer.{i}." for i in range(config["num_hidden_layers"])]


def encode(w: Weights, config: Config, tokens: Tokens) -> tuple[Floats, NormTape, list[LayerTape]]:
    """Last hidden states, (batch, time, d), and the tapes."""
    x = w[EMBEDDINGS + "word_embeddings.weight"][tokens] + w[EMBEDDINGS + "token_type_embeddings.weight"][0]
    x = x + w[EMBEDDINGS + "position_embeddings.weight"][: tokens.shape[1]]
    x, norm = _norm(x, w, EMBEDDINGS + "LayerNorm", config["layer_norm_eps"])
    tapes = []
    for name in _names(config):
        x, tape = _layer(x, w, name, config)
        tapes.append(tape)
    return x, norm, tapes


def predict(w: Weights, config: Config, hidden: Floats) -> tuple[Floats, tuple[Floats, NormTape, Floats]]:
    """Scores of every token from hidden states (..., d), and what the backward pass needs."""
    bent, slope = _gelu(_affine(hidden, w, HEAD + "transform.dense"))
    x, norm = _norm(bent, w, HEAD + "transform.LayerNorm", config["layer_norm_eps"])
    return x @ w[EMBEDDINGS + "word_embeddings.weight"].T + w[HEAD + "bias"], (slope, norm, x)


def loss_and_gradient(w: Weights, g: Weights, config: Config, batch: Tokens) -> float:
    """Mean cross-entropy of the words of a batch, a quarter of them hidden; adds the gradient to g.

    Which words are hidden depends on the batch alone, so models that see the same data restore the same words.
    """
    hide = (np.arange(batch.shape[1]) + batch[:, :1]) % EVERY == 0
    tokens, targets = np.where(hide, MASK, batch), batch[..., None]
    states, norm, tapes = encode(w, config, tokens)
    scores, (slope, head_norm, x) = predict(w, config, states)
    scores -= scores.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, targets, axis=-1)
    odds = np.exp(scores, out=scores)
    total = odds.sum(axis=-1, keepdims=True)
    loss = float(np.mean(np.log(total) - chosen))
    odds /= total
    np.put_along_axis(odds, targets, np.take_along_axis(odds, targets, axis=-1) - 1, axis=-1)
    odds /= tokens.size
    dstates = _head_back(odds, states, slope, head_norm, x, w, g)
    _body_back(dstates, tokens, norm, tapes, w, g, config)
    return loss


def _head_back(
    dscores: Floats, hidden: Floats, slope: Floats, norm: NormTape, x: Floats, w: Weights, g: Weights
) -> Floats:
    g[EMBEDDINGS + "word_embeddings.weight"] += outer(dscores, x)
    g[HEAD + "bias"] += _total(dscores)
    dx = dscores @ w[EMBEDDINGS + "word_embeddings.weight"]
    dbent = _norm_back(dx, norm, w, g, HEAD + "transform.LayerNorm") * slope
    return _affine_back(dbent, hidden, w, g, HEAD + "transform.dense")


def _body_back(
    dx: Floats, tokens: Tokens, norm: NormTape, tapes: list[LayerTape], w: Weights, g: Weights, config: Config
) -> None:
    for name, tape in zip(reversed(_names(config)), reversed(tapes), strict=True):
        dx = _layer_back(dx, tape, w, g, name)
    dx = _norm_back(dx, norm, w, g, EMBEDDINGS + "LayerNorm")
    np.add.at(g[EMBEDDINGS + "word_embeddings.weight"], tokens.ravel(), dx.reshape(-1, dx.shape[-1]))
    g[EMBEDDINGS + "position_embeddings.weight"][: tokens.shape[1]] += dx.sum(axis=0)
    g[EMBEDDINGS + "token_type_embeddings.weight"][0] += _total(dx)
