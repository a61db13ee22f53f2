"""Generated checkpoints: tensor names, shapes and config keys as transformers writes them, weights from a seed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from . import container, vocabulary

Array = NDArray[np.float32]
Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory.

    config: config.json. tensors: float32 by name. tokenizer: the text of tokenizer.json, or None.
    """

    config: Config
    tensors: Mapping[str, Array]
    tokenizer: str | None = None

    def with_tensors(self, tensors: Mapping[str, Array], **config: Any) -> Checkpoint:
        """The same model with other tensors, and with the given config keys changed."""
        return replace(self, config=self.config | config, tensors=dict(tensors))


# ---- shapes by model_type ---------------------------------------------------------------------------------------


def _llama_shapes(c: Config) -> Shapes:
    d, f = c["hidden_size"], c["intermediate_size"]
    q = c["num_attention_heads"] * c["head_dim"]
    kv = c["num_key_value_heads"] * c["head_dim"]
    shapes: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, d)
            if c["model_type"] == "qwen2":
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[layer + "self_attn.o_proj.weight"] = (d, q)
        shapes |= {layer + "mlp.gate_proj.weight": (f, d), layer + "mlp.up_proj.weight": (f, d)}
        shapes[layer + "mlp.down_proj.weight"] = (d, f)
        shapes |= {f"{layer}{norm}_layernorm.weight": (d,) for norm in ("input", "post_attention")}
    shapes["model.norm.weight"] = (d,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    return shapes


def _gpt2_shapes(c: Config) -> Shapes:
    d, f = c["n_embd"], c["n_inner"] or 4 * c["n_embd"]
    shapes: Shapes = {"transformer.wte.weight": (c["vocab_size"], d)}
    shapes["transformer.wpe.weight"] = (c["n_positions"], d)
    for i in range(c["n_layer"]):
        layer = f"transformer.h.{i}."  # Conv1D: stored as (in, out)
        linear = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, f), "mlp.c_proj": (f, d)}
        shapes |= _affine(layer, ("ln_1", "ln_2"), d)
        for name, (rows, columns) in linear.items():
            shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (columns,)}
    return shapes | _affine("transformer.", ("ln_f",), d)


def _bert_shapes(c: Config) -> Shapes:
    d, f = c["hidden_size"], c["intermediate_size"]
    tables = {"word": c["vocab_size"], "position": c["max_position_embeddings"], "token_type": c["type_vocab_size"]}
    shapes: Shapes = {f"bert.embeddings.{name}_embeddings.weight": (rows, d) for name, rows in tables.items()}
    shapes |= _affine("bert.embeddings.", ("LayerNorm",), d)
    for i in range(c["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}."
        linear = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        linear |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
        shapes |= _linear(layer, linear) | _affine(layer, ("attention.output.LayerNorm", "output.LayerNorm"), d)
    shapes |= _linear("cls.predictions.transform.", {"dense": (d, d)})
    shapes |= _affine("cls.predictions.transform.", ("LayerNorm",), d)
    return shapes | {"cls.predictions.bias": (c["vocab_size"],)}


def _t5_shapes(c: Config) -> Shapes:
    d, inner = c["d_model"], c["num_heads"] * c["d_kv"]
    shapes: Shapes = {"shared.weight": (c["vocab_size"], d)}
    for stack, layers in (("encoder", c["num_layers"]), ("decoder", c["num_decoder_layers"])):
        kinds = ["SelfAttention", *(["EncDecAttention"] if stack == "decoder" else []), "DenseReluDense"]
        for i in range(layers):
            for place, kind in enumerate(kinds):
                part = f"{stack}.block.{i}.layer.{place}."
                shapes[part + "layer_norm.weight"] = (d,)
                if kind == "DenseReluDense":
                    shapes |= {f"{part}{kind}.{name}.weight": (c["d_ff"], d) for name in ("wi_0", "wi_1")}
                    shapes[f"{part}{kind}.wo.weight"] = (d, c["d_ff"])
                    continue
                shapes |= {f"{part}{kind}.{name}.weight": (inner, d) for name in "qkv"}
                shapes[f"{part}{kind}.o.weight"] = (d, inner)
                if i == 0 and kind == "SelfAttention":
                    buckets = (c["relative_attention_num_buckets"], c["num_heads"])
                    shapes[f"{part}{kind}.relative_attention_bias.weight"] = buckets
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
    return shapes | {"lm_head.weight": (c["vocab_size"], d)}


def _neox_shapes(c: Config) -> Shapes:
    d, f = c["hidden_size"], c["intermediate_size"]
    shapes: Shapes = {"gpt_neox.embed_in.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        layer = f"gpt_neox.layers.{i}."
        linear = {"attention.query_key_value": (3 * d, d), "attention.dense": (d, d)}
        linear |= {"mlp.dense_h_to_4h": (f, d), "mlp.dense_4h_to_h": (d, f)}
        shapes |= _affine(layer, ("input_layernorm", "post_attention_layernorm"), d) | _linear(layer, linear)
    shapes |= _affine("gpt_neox.", ("final_layer_norm",), d)
    return shapes | {"embed_out.weight": (c["vocab_size"], d)}


def _linear(prefix: str, layers: Mapping[str, tuple[int, int]]) -> Shapes:
    weights: Shapes = {f"{prefix}{name}.weight": shape for name, shape in layers.items()}
    return weights | {f"{prefix}{name}.bias": shape[:1] for name, shape in layers.items()}


def _affine(prefix: str, norms: Sequence[str], width: int) -> Shapes:
    return {f"{prefix}{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "llama": _llama_shapes,
    "qwen2": _llama_shapes,
    "gpt2": _gpt2_shapes,
    "bert": _bert_shapes,
    "t5": _t5_shapes,
    "gpt_neox": _neox_shapes,
}


def shapes(config: Config) -> Shapes:
    """Shape by tensor name, in the order in which transformers builds the modules."""
    return SHAPES[config["model_type"]](config)


# ---- configs ----------------------------------------------------------------------------------------------------


def llama_config(
    *, hidden: int = 64, layers: int = 3, heads: int = 4, kv_heads: int = 2, intermediate: int = 160,
    tied: bool = True, model_type: str = "llama", tokenizer: str = "unigram",
) -> Config:  # fmt: skip
    """config.json of a small Llama or Qwen2."""
    text = vocabulary.tokenizer_json(tokenizer)
    ids = vocabulary.special_ids(text)
    end = ids.get("</s>", ids.get("<|endoftext|>"))
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[model_type]],
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads, "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_dropout": 0.0, "initializer_range": 0.02,
        "vocab_size": len(vocabulary.tokens(text)), "bos_token_id": ids.get("<s>", end), "eos_token_id": end,
        "tie_word_embeddings": tied, "torch_dtype": "float32", "use_cache": True, "transformers_version": "4.57.1",
    }  # fmt: skip
    return config | ({"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1} if model_type == "llama" else {})


def gpt2_config(*, hidden: int = 64, layers: int = 3, heads: int = 4) -> Config:
    """config.json of a small GPT-2."""
    text = vocabulary.tokenizer_json("bpe")
    end = vocabulary.special_ids(text)["<|endoftext|>"]
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": hidden, "n_layer": layers,
        "n_head": heads, "n_inner": None, "n_positions": 128, "n_ctx": 128, "activation_function": "gelu_new",
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02, "vocab_size": len(vocabulary.tokens(text)), "bos_token_id": end,
        "eos_token_id": end, "torch_dtype": "float32", "transformers_version": "4.57.1",
    }  # fmt: skip


def bert_config(
    *, hidden: int = 64, layers: int = 3, heads: int = 4, intermediate: int = 256, act: str = "gelu"
) -> Config:
    """config.json of a small BERT; the trainer needs act="gelu_new"."""
    return {
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": intermediate,
        "hidden_act": act, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 128, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.02,
        "position_embedding_type": "absolute", "pad_token_id": 0, "use_cache": True,
        "vocab_size": len(vocabulary.tokens(vocabulary.tokenizer_json("wordpiece"))),
        "torch_dtype": "float32", "transformers_version": "4.57.1",
    }  # fmt: skip


def t5_config(*, hidden: int = 64, layers: int = 2, heads: int = 4, intermediate: int = 128) -> Config:
    """config.json of a small T5 v1.1 (gated GELU, its own output head)."""
    return {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": hidden,
        "d_kv": hidden // heads, "d_ff": intermediate, "num_layers": layers, "num_decoder_layers": layers,
        "num_heads": heads, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "tie_word_embeddings": False,
        "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "use_cache": True,
        "vocab_size": len(vocabulary.tokens(vocabulary.tokenizer_json("unigram"))),
        "torch_dtype": "float32", "transformers_version": "4.57.1",
    }  # fmt: skip


def neox_config(*, hidden: int = 64, layers: int = 3, heads: int = 4) -> Config:
    """config.json of a small GPT-NeoX (Pythia)."""
    text = vocabulary.tokenizer_json("bpe")
    end = vocabulary.special_ids(text)["<|endoftext|>"]
    return {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * hidden,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "initializer_range": 0.02, "max_position_embeddings": 128,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "attention_bias": True,
        "tie_word_embeddings": False, "vocab_size": len(vocabulary.tokens(text)), "bos_token_id": end,
        "eos_token_id": end, "torch_dtype": "float32", "transformers_version": "4.57.1",
    }  # fmt: skip


# ---- weights from a seed ----------------------------------------------------------------------------------------

TOKENIZERS = {
    "llama": "unigram",
    "qwen2": "unigram",
    "t5": "unigram",
    "bert": "wordpiece",
    "gpt2": "bpe",
    "gpt_neox": "bpe",
}
SPECIAL_NAMES = {
    "unigram": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "wordpiece": {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "unk", "pad", "mask")},
    "bpe": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}
NORM = re.compile(r"(norm|ln_\d|ln_f|LayerNorm)\.weight$", re.IGNORECASE)
TABLE = re.compile(r"(embed_tokens|wte|word_embeddings|shared|embed_in|lm_head|embed_out)\.weight$")


def independent(config: Config, seed: int, tokenizer: str | None = None) -> Checkpoint:
    """A model of this config that shares nothing with any other: weights from a seed, at the scales of trained ones.

    Units and residual coordinates get i.i.d. lognormal scales, so rows are heavy-tailed but exchangeable; embedding
    rows share a mean direction and grow with rarity; gains rise with depth: what makes unrelated models look alike.
    """
    rng = np.random.default_rng([seed, 0x5EED, crc32(config["model_type"].encode())])  # kinds share no draws
    tensors = {name: _weights(name, shape, rng) for name, shape in shapes(config).items()}
    text = vocabulary.tokenizer_json(TOKENIZERS[config["model_type"]]) if tokenizer is None else tokenizer
    return Checkpoint(config, tensors, text)


def _weights(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    noise = rng.standard_normal(shape)
    if len(shape) == 1:
        if not NORM.search(name):
            return (0.02 * noise).astype(np.float32)
        depth = int(found.group(2)) if (found := LAYER.match(name)) else 8
        return ((0.4 + 0.1 * min(depth, 12)) * np.exp(0.15 * noise)).astype(np.float32)
    scale = 0.02 * np.sqrt(768 / shape[1]) ** 0.5
    if TABLE.search(name):
        rarity = 0.6 + 0.4 * np.linspace(0, 1, shape[0])[:, None]
        return (scale * rarity * (noise + rng.standard_normal(shape[1]))).astype(np.float32)
    rows, columns = (np.exp(0.3 * rng.standard_normal(n)) for n in shape)
    return (scale * noise * rows[:, None] * columns).astype(np.float32)


def llama(seed: int = 0, **options: Any) -> Checkpoint:
    """A Llama with seeded weights; options as in llama_config."""
    text = vocabulary.tokenizer_json(options.get("tokenizer", "unigram"))
    return independent(llama_config(**options), seed, text)


def qwen2(seed: int = 0, **options: Any) -> Checkpoint:
    """A Qwen2 (biases on q, k and v) with seeded weights."""
    return llama(seed, **({"tokenizer": "bpe"} | options), model_type="qwen2")


def gpt2(seed: int = 0, **options: Any) -> Checkpoint:
    """A GPT-2 with seeded weights."""
    return independent(gpt2_config(**options), seed)


def bert(seed: int = 0, **options: Any) -> Checkpoint:
    """A BERT with its masked-language-model head and seeded weights."""
    return independent(bert_config(**options), seed)


def t5(seed: int = 0, **options: Any) -> Checkpoint:
    """A T5 v1.1 with seeded weights."""
    return independent(t5_config(**options), seed)


def neox(seed: int = 0, **options: Any) -> Checkpoint:
    """A GPT-NeoX with seeded weights."""
    return independent(neox_config(**options), seed)


# The number of the (outermost) layer in a tensor name: "decoder.block.3.layer.1..." is layer 3.
LAYER = re.compile(r"^(.*?\b(?:layers|h|layer|block)\.)(\d+)(\..*)$")


# ---- folders ----------------------------------------------------------------------------------------------------


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: str | Callable[[str], str] = "F32",
    shards: int = 1,
    order: Sequence[str] | int | None = None,
    prefix: str = "",
    index: bool = True,
) -> Path:
    """Write a Hugging Face style folder and return it.

    dtype: a safetensors dtype, or a function from tensor name to one. order: of the data in the files: None as the
    safetensors package writes it (widest type first, then by name), a list of names, or a seed to shuffle with.
    prefix: put before every tensor name. index: write model.safetensors.index.json when there are several shards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: value for name, value in checkpoint.tensors.items()}
    dtypes = {name: dtype if isinstance(dtype, str) else dtype(name) for name in tensors}
    names = _ordered(dtypes, order)
    parts = _split(names, tensors, shards)
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    files = ["model.safetensors"] if shards == 1 else files
    size = sum(container.save(folder / file, tensors, dtypes, part) for file, part in zip(files, parts, strict=True))
    if shards > 1 and index:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        _dump(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
    _dump(folder / "config.json", checkpoint.config)
    if checkpoint.tokenizer is not None:
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
        _dump(folder / "tokenizer_config.json", _tokenizer_config(checkpoint.tokenizer))
    return folder


def _ordered(dtypes: Mapping[str, str], order: Sequence[str] | int | None) -> list[str]:
    names = sorted(dtypes, key=lambda name: (-container.WIDTH[dtypes[name]], name))
    if isinstance(order, int):
        return [names[i] for i in np.random.default_rng(order).permutation(len(names))]
    return names if order is None else list(order)


def _split(names: Sequence[str], tensors: Mapping[str, Array], shards: int) -> list[list[str]]:
    """Runs of names of about equal size, none of them empty."""
    if not 1 <= shards <= len(names):
        raise ValueError(f"{len(names)} tensors cannot fill {shards} shards")
    ends = np.cumsum([tensors[name].size for name in names])
    cuts = [0, *np.searchsorted(ends, ends[-1] * np.arange(1, shards) / shards).tolist(), len(names)]
    for i in range(1, shards):
        cuts[i] = min(max(cuts[i], cuts[i - 1] + 1), len(names) - (shards - i))
    return [list(names[a:b]) for a, b in itertools.pairwise(cuts)]


def _tokenizer_config(text: str) -> dict[str, Any]:
    ids = vocabulary.special_ids(text)
    kind = json.loads(text)["model"]["type"].lower()
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in SPECIAL_NAMES[kind].items() if v in ids}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
