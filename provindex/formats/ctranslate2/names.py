"""What transformers calls the layers of a CTranslate2 model, and which kind of model has them.

A table gives for each layer, by its path in the file, the modules that it was made of. Several modules are fused row
by row, in that order. "t" behind them: transformers stores the matrix as (in, out).

Sources: the loaders of CTranslate2's `converters/transformers.py` (names and orders are facts; no code was taken).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Table = Mapping[str, str]
_LAYER = re.compile(r"(?P<stack>encoder|decoder)/layer_(?P<number>0|[1-9]\d{0,4})/(?P<rest>.+)")


@dataclass(frozen=True, slots=True)
class Family:
    """model_type, architecture: as config.json has them. layers: of each stack, where its layers are in transformers
    (with {l}) and what they hold; rest: what is outside of layers.
    """

    model_type: str
    architecture: str
    layers: Mapping[str, tuple[str, Table]]
    rest: Table

    def modules(self, path: str) -> tuple[str, ...]:
        """The modules of transformers in a layer of the file, with "t" behind them if it is turned; () if unknown."""
        match = _LAYER.fullmatch(path)
        if match is None:
            return tuple(self.rest.get(path, "").split())
        place, table = self.layers.get(match["stack"], ("", {}))
        place = place.replace("{l}", match["number"])
        return tuple(part if part == "t" else place + part for part in table.get(match["rest"], "").split())


def _attention(into: str, out: str, norm: str, prefix: str = "self_attention") -> Table:
    return {f"{prefix}/linear_0": into, f"{prefix}/linear_1": out, f"{prefix}/layer_norm": norm}


_LLAMA_LAYER: Table = {
    **_attention("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.o_proj", "input_layernorm"),
    "self_attention/q_norm": "self_attn.q_norm",
    "self_attention/k_norm": "self_attn.k_norm",
    "ffn/layer_norm": "post_attention_layernorm",
    "ffn/linear_0": "mlp.gate_proj",
    "ffn/linear_0_noact": "mlp.up_proj",
    "ffn/linear_1": "mlp.down_proj",
}
_LLAMA: Table = {
    "decoder/embeddings": "model.embed_tokens",
    "decoder/layer_norm": "model.norm",
    "decoder/projection": "lm_head",
}


def _llama(model_type: str, architecture: str) -> Family:
    return Family(model_type, architecture, {"decoder": ("model.layers.{l}.", _LLAMA_LAYER)}, _LLAMA)


def _gpt2(model_type: str, architecture: str, turned: str) -> Family:
    layer = {
        **_attention(f"attn.c_attn{turned}", f"attn.c_proj{turned}", "ln_1"),
        "ffn/layer_norm": "ln_2",
        "ffn/linear_0": f"mlp.c_fc{turned}",
        "ffn/linear_1": f"mlp.c_proj{turned}",
    }
    rest = {
        "decoder/embeddings": "transformer.wte",
        "decoder/position_encodings": "transformer.wpe",
        "decoder/layer_norm": "transformer.ln_f",
        "decoder/projection": "lm_head",
    }
    return Family(model_type, architecture, {"decoder": ("transformer.h.{l}.", layer)}, rest)


_BART_LAYER: Table = {
    **_attention("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.out_proj", "self_attn_layer_norm"),
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.k_proj encoder_attn.v_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}


def _bart_stack(stack: str) -> Table:
    return {
        f"{stack}/position_encodings": f"model.{stack}.embed_positions",
        f"{stack}/layernorm_embedding": f"model.{stack}.layernorm_embedding",
        f"{stack}/layer_norm": f"model.{stack}.layer_norm",
    }


def _bart(model_type: str, architecture: str) -> Family:
    rest = {
        **_bart_stack("encoder"),
        **_bart_stack("decoder"),
        "encoder/embeddings_0": "model.shared",
        "decoder/embeddings": "model.decoder.embed_tokens",
        "decoder/projection": "lm_head",
        "decoder/projection/bias": "final_logits_bias",
    }
    layers = {stack: (f"model.{stack}.layers.{{l}}.", _BART_LAYER) for stack in ("encoder", "decoder")}
    return Family(model_type, architecture, layers, rest)


def _opt() -> Family:
    rest = {
        "decoder/embeddings": "model.decoder.embed_tokens",
        "decoder/position_encodings": "model.decoder.embed_positions",
        "decoder/layer_norm": "model.decoder.final_layer_norm",
        "decoder/project_in": "model.decoder.project_in",
        "decoder/project_out": "model.decoder.project_out",
        "decoder/projection": "lm_head",
    }
    return Family("opt", "OPTForCausalLM", {"decoder": ("model.decoder.layers.{l}.", _BART_LAYER)}, rest)


def _whisper() -> Family:
    rest = {
        **_bart_stack("encoder"),
        **_bart_stack("decoder"),
        "encoder/conv1": "model.encoder.conv1",
        "encoder/conv2": "model.encoder.conv2",
        "decoder/embeddings": "model.decoder.embed_tokens",
        "decoder/projection": "proj_out",
    }
    layers = {stack: (f"model.{stack}.layers.{{l}}.", _BART_LAYER) for stack in ("encoder", "decoder")}
    return Family("whisper", "WhisperForConditionalGeneration", layers, rest)


def _t5_layer(mlp: int, gated: bool) -> Table:
    at = "layer.0.SelfAttention."
    cross, dense = "layer.1.EncDecAttention.", f"layer.{mlp}.DenseReluDense."
    return {
        **_attention(f"{at}q {at}k {at}v", f"{at}o", "layer.0.layer_norm"),
        "self_attention/relative_attention_bias": f"{at}relative_attention_bias",
        "attention/linear_0": f"{cross}q",
        "attention/linear_1": f"{cross}k {cross}v",
        "attention/linear_2": f"{cross}o",
        "attention/layer_norm": "layer.1.layer_norm",
        "ffn/layer_norm": f"layer.{mlp}.layer_norm",
        "ffn/linear_0": f"{dense}wi_0" if gated else f"{dense}wi",
        "ffn/linear_0_noact": f"{dense}wi_1",
        "ffn/linear_1": f"{dense}wo",
    }


def _t5(gated: bool) -> Family:
    rest = {
        "encoder/embeddings_0": "shared",
        "decoder/embeddings": "decoder.embed_tokens",
        "encoder/layer_norm": "encoder.final_layer_norm",
        "decoder/layer_norm": "decoder.final_layer_norm",
        "decoder/projection": "lm_head",
    }
    layers = {
        "encoder": ("encoder.block.{l}.", _t5_layer(1, gated)),
        "decoder": ("decoder.block.{l}.", _t5_layer(2, gated)),
    }
    return Family("t5", "T5ForConditionalGeneration", layers, rest)


def _bert(model_type: str, architecture: str) -> Family:
    at = "attention.self."
    layer = {
        **_attention(f"{at}query {at}key {at}value", "attention.output.dense", "attention.output.LayerNorm"),
        "ffn/linear_0": "intermediate.dense",
        "ffn/linear_1": "output.dense",
        "ffn/layer_norm": "output.LayerNorm",
    }
    rest = {
        "encoder/embeddings_0": "embeddings.word_embeddings",
        "encoder/embeddings_1": "embeddings.token_type_embeddings",
        "encoder/position_encodings": "embeddings.position_embeddings",
        "encoder/layernorm_embedding": "embeddings.LayerNorm",
        "pooler_dense": "pooler.dense",
    }
    return Family(model_type, architecture, {"encoder": ("encoder.layer.{l}.", layer)}, rest)


def _distilbert() -> Family:
    at = "attention."
    layer = {
        **_attention(f"{at}q_lin {at}k_lin {at}v_lin", "attention.out_lin", "sa_layer_norm"),
        "ffn/linear_0": "ffn.lin1",
        "ffn/linear_1": "ffn.lin2",
        "ffn/layer_norm": "output_layer_norm",
    }
    rest = {
        "encoder/embeddings_0": "embeddings.word_embeddings",
        "encoder/position_encodings": "embeddings.position_embeddings",
        "encoder/layernorm_embedding": "embeddings.LayerNorm",
    }
    return Family("distilbert", "DistilBertModel", {"encoder": ("transformer.layer.{l}.", layer)}, rest)


@dataclass(frozen=True, slots=True)
class Traits:
    """What tells the families apart."""

    spec: str
    paths: frozenset[str]  # of all layers of the file
    pre_norm: bool
    activation: int
    biased: frozenset[str]  # paths that have a bias (a norm: a beta)
    rows: Mapping[str, int]  # of the matrices


RELU = 0
_FIRST = "layer_0/self_attention"


def family_of(t: Traits) -> Family | None:
    """The family of a file; None for those without a table, whose layers keep their names."""
    if t.spec == "WhisperSpec":
        return _whisper()
    if t.spec == "TransformerEncoderSpec":
        return _encoder(t)
    if t.spec == "TransformerDecoderSpec":
        return _decoder(t)
    return _both(t) if t.spec == "TransformerSpec" else None


def _encoder(t: Traits) -> Family | None:
    if t.pre_norm or "encoder/layernorm_embedding" not in t.paths or "encoder/position_encodings" not in t.paths:
        return None
    if "encoder/embeddings_1" not in t.paths:
        return _distilbert()
    if t.rows.get("encoder/embeddings_1") == 1:
        return _bert("roberta", "RobertaModel")
    return _bert("bert", "BertModel")


def _decoder(t: Traits) -> Family | None:
    first = f"decoder/{_FIRST}"
    apart = "decoder/layer_0/input_layer_norm" in t.paths or "decoder/layer_0/shared_layer_norm" in t.paths
    if apart or not t.pre_norm or "decoder/layernorm_embedding" in t.paths:
        return None
    if "decoder/layer_norm" not in t.biased and "decoder/layer_0/ffn/linear_0_noact" in t.paths:
        if f"{first}/layer_norm/layer_norm_use_residual" in t.paths:
            return _llama("gemma", "GemmaForCausalLM")
        if f"{first}/q_norm" in t.paths:
            return _llama("qwen3", "Qwen3ForCausalLM")
        if f"{first}/linear_0" in t.biased:
            return _llama("qwen2", "Qwen2ForCausalLM")
        return _llama("llama", "LlamaForCausalLM")
    if "decoder/position_encodings" not in t.paths or "decoder/layer_0/ffn/linear_0_noact" in t.paths:
        return None
    if t.activation == RELU:
        return _opt()
    if t.rows.get(f"{first}/linear_0", 0) != 3 * t.rows.get(f"{first}/linear_1", 0):
        return _gpt2("gpt_bigcode", "GPTBigCodeForCausalLM", "")
    return _gpt2("gpt2", "GPT2LMHeadModel", " t")


def _both(t: Traits) -> Family | None:
    if f"encoder/{_FIRST}/relative_attention_bias" in t.paths and "encoder/layer_norm" not in t.biased:
        return _t5("encoder/layer_0/ffn/linear_0_noact" in t.paths)
    if "encoder/position_encodings" not in t.paths or "encoder/layer_0/ffn/linear_0_noact" in t.paths:
        return None
    if "encoder/layernorm_embedding" in t.paths:
        if t.pre_norm:
            return _bart("mbart", "MBartForConditionalGeneration")
        return _bart("bart", "BartForConditionalGeneration")
    if t.pre_norm:
        return _bart("m2m_100", "M2M100ForConditionalGeneration")
    return _bart("marian", "MarianMTModel")


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes of a model, None or 0 for what its file does not tell. keys: key heads. head: width of one. inner: of the
    MLPs. positions: rows of the tables of both stacks.
    """

    vocabulary: int | None
    width: int | None
    heads: int
    keys: int
    head: int
    encoder: int
    decoder: int
    encoder_inner: int | None
    decoder_inner: int | None
    positions: tuple[int | None, int | None]
    activation: str | None
    rotary: int | float | None
    mels: int | None
    tied: bool


def config_of(family: Family, f: Facts) -> dict[str, Any]:
    """config.json in the words of a family."""
    kind, inner, positions = family.model_type, f.decoder_inner or f.encoder_inner, f.positions[1] or f.positions[0]
    said: dict[str, Any] = {
        "model_type": kind,
        "architectures": [family.architecture],
        "vocab_size": f.vocabulary,
        "tie_word_embeddings": f.tied if f.decoder else None,
    }
    if kind in ("gpt2", "gpt_bigcode"):
        said |= {"n_embd": f.width, "n_layer": f.decoder, "n_head": f.heads, "n_positions": positions, "n_inner": inner}
        said |= {"activation_function": f.activation, "multi_query": f.keys == 1 if kind == "gpt_bigcode" else None}
    elif kind == "t5":
        gated = f.activation == "gelu_new"  # T5 1.1 and Flan-T5; the first T5 has a ReLU
        said |= {"d_model": f.width, "d_kv": f.head, "d_ff": inner, "num_layers": f.encoder, "num_heads": f.heads}
        said |= {"num_decoder_layers": f.decoder, "feed_forward_proj": "gated-gelu" if gated else "relu"}
    elif f.encoder and f.decoder:
        said |= {"d_model": f.width, "encoder_layers": f.encoder, "decoder_layers": f.decoder}
        said |= {"encoder_attention_heads": f.heads, "decoder_attention_heads": f.heads}
        said |= {"encoder_ffn_dim": f.encoder_inner, "decoder_ffn_dim": f.decoder_inner}
        said |= {"activation_function": f.activation or "gelu", "num_mel_bins": f.mels}
        if kind == "whisper":
            said |= {"max_source_positions": f.positions[0], "max_target_positions": f.positions[1]}
        else:
            said |= {"max_position_embeddings": positions}
    elif kind == "distilbert":
        said |= {"dim": f.width, "hidden_dim": inner, "n_layers": f.encoder, "n_heads": f.heads}
        said |= {"activation": f.activation, "max_position_embeddings": positions}
    else:
        said |= {"hidden_size": f.width, "num_hidden_layers": f.decoder or f.encoder, "num_attention_heads": f.heads}
        said |= _of_one_stack(kind, f, inner, positions)
    return {name: value for name, value in said.items() if value is not None}


def _of_one_stack(kind: str, f: Facts, inner: int | None, positions: int | None) -> dict[str, Any]:
    if kind == "opt":
        return {"ffn_dim": inner, "activation_function": f.activation, "max_position_embeddings": positions}
    if kind in ("bert", "roberta"):  # of RoBERTa the two rows before the first position were cut off
        cut = 2 if kind == "roberta" and positions else 0
        said = {"intermediate_size": inner, "hidden_act": f.activation}
        return said | {"max_position_embeddings": positions + cut if positions else None}
    act = "gelu_pytorch_tanh" if kind == "gemma" and f.activation == "gelu_new" else f.activation
    said = {"intermediate_size": inner, "hidden_act": act, "num_key_value_heads": f.keys}
    return said | {"head_dim": f.head or None, "rope_theta": f.rotary}
