"""Forward passes of small language models over plain dictionaries of tensors, under Hugging Face names and layouts.

A model is its config (as transformers reads it) and a dictionary from tensor name to tensor: what is trained is what
is saved, so no conversion stands between them. Checked against transformers' own forward pass: see README.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Config = Mapping[str, Any]
Weights = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


# --- shapes ----------------------------------------------------------------------------------------------------


def _rope_shapes(c: Config) -> Shapes:
    """Llama, Qwen 3 and Gemma 3: one set of names."""
    d, f, hd = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    shapes: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        sizes = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        shapes |= {f"{at}.self_attn.{n}_proj.weight": s for n, s in sizes.items()}
        shapes |= {f"{at}.mlp.{n}_proj.weight": s for n, s in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f)))}
        norms = ["input_layernorm", "post_attention_layernorm"]
        if c["model_type"] == "gemma3_text":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{at}.{norm}.weight": (d,) for norm in norms}
        if c["model_type"] != "llama":
            shapes |= {f"{at}.self_attn.{n}_norm.weight": (hd,) for n in "qk"}
    shapes["model.norm.weight"] = (d,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    return shapes


def _pairs(shapes: Shapes) -> Shapes:
    """Each `name` with its weight, and a bias as long as the first number of the shape."""
    return {f"{n}.{p}": s if p == "weight" else s[:1] for n, s in shapes.items() for p in ("weight", "bias")}


def _gpt2_shapes(c: Config) -> Shapes:
    d, f = c["n_embd"], c["n_inner"]
    shapes: Shapes = {"transformer.wte.weight": (c["vocab_size"], d), "transformer.wpe.weight": (c["n_positions"], d)}
    for i in range(c["n_layer"]):
        at = f"transformer.h.{i}"
        shapes |= _pairs({f"{at}.ln_1": (d,), f"{at}.ln_2": (d,)})
        wide = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, f), "mlp.c_proj": (f, d)}
        for name, shape in wide.items():  # Conv1D: stored as (in, out)
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[1:]}
    return shapes | _pairs({"transformer.ln_f": (d,)})


def _neox_shapes(c: Config) -> Shapes:
    d, f = c["hidden_size"], c["intermediate_size"]
    shapes: Shapes = {"gpt_neox.embed_in.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        parts: Shapes = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,), "attention.query_key_value": (3 * d, d),
            "attention.dense": (d, d), "mlp.dense_h_to_4h": (f, d), "mlp.dense_4h_to_h": (d, f),
        }  # fmt: skip
        shapes |= _pairs({f"gpt_neox.layers.{i}.{name}": shape for name, shape in parts.items()})
    shapes |= _pairs({"gpt_neox.final_layer_norm": (d,)})
    return shapes | {"embed_out.weight": (c["vocab_size"], d)}


def _bert_shapes(c: Config) -> Shapes:
    d, f = c["hidden_size"], c["intermediate_size"]
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (c["vocab_size"], d),
        "bert.embeddings.position_embeddings.weight": (c["max_position_embeddings"], d),
        "bert.embeddings.token_type_embeddings.weight": (c["type_vocab_size"], d),
    }
    shapes |= _pairs({"bert.embeddings.LayerNorm": (d,)})
    for i in range(c["num_hidden_layers"]):
        parts: Shapes = {f"attention.self.{n}": (d, d) for n in ("query", "key", "value")}
        parts |= {"attention.output.dense": (d, d), "attention.output.LayerNorm": (d,)}
        parts |= {"intermediate.dense": (f, d), "output.dense": (d, f), "output.LayerNorm": (d,)}
        shapes |= _pairs({f"bert.encoder.layer.{i}.{name}": shape for name, shape in parts.items()})
    shapes |= _pairs({"cls.predictions.transform.dense": (d, d), "cls.predictions.transform.LayerNorm": (d,)})
    return shapes | {"cls.predictions.bias": (c["vocab_size"],)}


# --- forward passes --------------------------------------------------------------------------------------------


def _split(x: Tensor, heads: int) -> Tensor:
    """(batch, time, heads * width) -> (batch, heads, time, width)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


def _rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gain, eps)


def _rotate(x: Tensor, theta: float, width: int) -> Tensor:
    """Rotary positions on the first `width` channels of each head, in two halves."""
    time = torch.arange(x.shape[-2], dtype=torch.float32)
    angles = torch.outer(time, theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width))
    cos, sin = angles.cos(), angles.sin()
    half = width // 2
    a, b, rest = x.split((half, half, x.shape[-1] - width), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def _rope_forward(w: Weights, c: Config, ids: Tensor) -> Tensor:
    gemma, eps, hd = c["model_type"] == "gemma3_text", c["rms_norm_eps"], c["head_dim"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    scale = (c["query_pre_attn_scalar"] if gemma else hd) ** -0.5

    def norm(x: Tensor, name: str) -> Tensor:
        gain = w[f"{name}.weight"]
        return _rms(x, gain + 1.0 if gemma else gain, eps)

    def attention(x: Tensor, at: str) -> Tensor:
        q, k, v = (_split(F.linear(x, w[f"{at}.{n}_proj.weight"]), h) for n, h in (("q", heads), ("k", kv), ("v", kv)))
        if c["model_type"] != "llama":
            q, k = norm(q, f"{at}.q_norm"), norm(k, f"{at}.k_norm")
        q, k = (_rotate(t, c["rope_theta"], hd) for t in (q, k))
        k, v = (t.repeat_interleave(heads // kv, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return F.linear(_merge(mixed), w[f"{at}.o_proj.weight"])

    def mlp(x: Tensor, at: str) -> Tensor:
        gate = F.linear(x, w[f"{at}.gate_proj.weight"])
        gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
        return F.linear(gate * F.linear(x, w[f"{at}.up_proj.weight"]), w[f"{at}.down_proj.weight"])

    embed = w["model.embed_tokens.weight"]
    x = F.embedding(ids, embed)
    if gemma:
        x = x * c["hidden_size"] ** 0.5
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        branch = attention(norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
        x = x + (norm(branch, f"{at}.post_attention_layernorm") if gemma else branch)
        before = f"{at}.pre_feedforward_layernorm" if gemma else f"{at}.post_attention_layernorm"
        branch = mlp(norm(x, before), f"{at}.mlp")
        x = x + (norm(branch, f"{at}.post_feedforward_layernorm") if gemma else branch)
    return F.linear(norm(x, "model.norm"), w.get("lm_head.weight", embed))


def _layer_norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _gpt2_forward(w: Weights, c: Config, ids: Tensor) -> Tensor:
    eps, heads = c["layer_norm_epsilon"], c["n_head"]

    def conv(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    embed = w["transformer.wte.weight"]
    x = F.embedding(ids, embed) + w["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(c["n_layer"]):
        at = f"transformer.h.{i}"
        q, k, v = (
            _split(t, heads) for t in conv(_layer_norm(x, w, f"{at}.ln_1", eps), f"{at}.attn.c_attn").chunk(3, -1)
        )
        x = x + conv(_merge(F.scaled_dot_product_attention(q, k, v, is_causal=True)), f"{at}.attn.c_proj")
        wide = F.gelu(conv(_layer_norm(x, w, f"{at}.ln_2", eps), f"{at}.mlp.c_fc"), approximate="tanh")
        x = x + conv(wide, f"{at}.mlp.c_proj")
    return F.linear(_layer_norm(x, w, "transformer.ln_f", eps), embed)


def _neox_forward(w: Weights, c: Config, ids: Tensor) -> Tensor:
    eps, heads = c["layer_norm_eps"], c["num_attention_heads"]
    rotary = int(c["hidden_size"] // heads * c["rotary_pct"])
    x = F.embedding(ids, w["gpt_neox.embed_in.weight"])
    for i in range(c["num_hidden_layers"]):
        at = f"gpt_neox.layers.{i}"
        fused = _linear(_layer_norm(x, w, f"{at}.input_layernorm", eps), w, f"{at}.attention.query_key_value")
        q, k, v = _split(fused, heads).chunk(3, -1)  # interleaved: each head has its own q, k and v rows
        q, k = (_rotate(t, c["rotary_emb_base"], rotary) for t in (q, k))
        mixed = _linear(_merge(F.scaled_dot_product_attention(q, k, v, is_causal=True)), w, f"{at}.attention.dense")
        wide = F.gelu(_linear(_layer_norm(x, w, f"{at}.post_attention_layernorm", eps), w, f"{at}.mlp.dense_h_to_4h"))
        x = x + mixed + _linear(wide, w, f"{at}.mlp.dense_4h_to_h")  # both branches read the same x
    return F.linear(_layer_norm(x, w, "gpt_neox.final_layer_norm", eps), w["embed_out.weight"])


def _bert_forward(w: Weights, c: Config, ids: Tensor) -> Tensor:
    eps, heads, embed = c["layer_norm_eps"], c["num_attention_heads"], w["bert.embeddings.word_embeddings.weight"]
    places = w["bert.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = F.embedding(ids, embed) + places + w["bert.embeddings.token_type_embeddings.weight"][0]
    x = _layer_norm(x, w, "bert.embeddings.LayerNorm", eps)
    for i in range(c["num_hidden_layers"]):
        at = f"bert.encoder.layer.{i}"
        q, k, v = (_split(_linear(x, w, f"{at}.attention.self.{n}"), heads) for n in ("query", "key", "value"))
        mixed = _linear(_merge(F.scaled_dot_product_attention(q, k, v)), w, f"{at}.attention.output.dense")
        x = _layer_norm(x + mixed, w, f"{at}.attention.output.LayerNorm", eps)
        wide = _linear(F.gelu(_linear(x, w, f"{at}.intermediate.dense")), w, f"{at}.output.dense")
        x = _layer_norm(x + wide, w, f"{at}.output.LayerNorm", eps)
    x = F.gelu(_linear(x, w, "cls.predictions.transform.dense"))
    x = _layer_norm(x, w, "cls.predictions.transform.LayerNorm", eps)
    return F.linear(x, embed, w["cls.predictions.bias"])


# --- one door --------------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "llama": _rope_shapes, "qwen3": _rope_shapes, "gemma3_text": _rope_shapes,
    "gpt2": _gpt2_shapes, "gpt_neox": _neox_shapes, "bert": _bert_shapes,
}  # fmt: skip
FORWARD: dict[str, Callable[[Weights, Config, Tensor], Tensor]] = {
    "llama": _rope_forward, "qwen3": _rope_forward, "gemma3_text": _rope_forward,
    "gpt2": _gpt2_forward, "gpt_neox": _neox_forward, "bert": _bert_forward,
}  # fmt: skip
WRITERS = (
    "o_proj.weight", "down_proj.weight", "c_proj.weight", "attention.dense.weight", "dense_4h_to_h.weight",
    "output.dense.weight",
)  # fmt: skip


def forward(weights: Weights, config: Config, ids: Tensor) -> Tensor:
    """Logits, (batch, time, vocabulary), of token ids (batch, time)."""
    return FORWARD[config["model_type"]](weights, config, ids)


def initial_weights(config: Config, seed: int) -> dict[str, Tensor]:
    """Fresh weights: normal, writers smaller by depth, as GPT-2.

    The spread is the config's initializer_range, else such that rows are as long as those of 0.02 at width 768.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES[config["model_type"]](config)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    spread = config.get("initializer_range", 0.02 * math.sqrt(768 / (config.get("hidden_size") or config["n_embd"])))
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            gain = name.endswith("weight") and config["model_type"] != "gemma3_text"  # Gemma's gain is 1 + g
            weights[name] = torch.full(shape, float(gain))
            continue
        scale = spread / math.sqrt(2 * layers) if name.endswith(WRITERS) else spread
        weights[name] = torch.randn(shape, generator=generator) * scale
    return weights
