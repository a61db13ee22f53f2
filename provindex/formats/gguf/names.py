"""What llama.cpp calls each tensor, and what transformers does: tables by architecture. Data only; gguf.py reads it.

A row maps a name in the file, without its last ``.weight`` or ``.bias``, to transformers' name, and after a space says
how the converter changed the tensor. ``{l}`` is the layer, ``{e}`` an expert: a stacked tensor is one for each expert.
A name that ends with ``!`` is whole: no ``.weight`` follows.

    "q", "k"        rows of each head in pairs of rotary channels (i, i + half), where transformers has two halves
    "thirds"        fused q, k, v one after the other, where transformers has them head by head
    "groups"        the same for groups of queries that share a key and a value (Falcon)
    "wq", "wk", "wv"  the three parts of a tensor that transformers has fused in groups (InternLM2), q and k in pairs
    "t"             transposed: transformers keeps GPT-2's weights as (in, out)
    "row"           a vector that transformers keeps as a matrix of one row
    "k_b", "v_b"    the two parts of DeepSeek's kv_b_proj, head by head, the first one transposed

Sources: `gguf.TensorNameMap` of the gguf package and convert_hf_to_gguf.py of llama.cpp (names and orders of axes are
facts; no code was taken): https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Table = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture. model_type, class_name: as config.json says them. table: the rows above. gains: the converter
    added 1 to the norms' weights. config: what every model of this type has. keys: config.json's names for metadata,
    where they differ from gguf_config.KEYS.
    """

    model_type: str
    class_name: str
    table: Table
    gains: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)


def _layers(prefix: str, table: Table, own: str = "blk.{l}.") -> dict[str, str]:
    return {own + name: prefix + what for name, what in table.items()}


_TOP: Table = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": "model.rotary_emb.inv_freq!",  # factors of the frequencies: a buffer that transformers computes
    "rope_factors_long": "model.rotary_emb.long.inv_freq!",
    "rope_factors_short": "model.rotary_emb.short.inv_freq!",
}
_ATTENTION: Table = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_rot_embd": "self_attn.rotary_emb.inv_freq!",
    "attn_sinks": "self_attn.sinks",
}
_PAIRS: Table = {**_ATTENTION, "attn_q": "self_attn.q_proj q", "attn_k": "self_attn.k_proj k"}
_MLP: Table = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS: Table = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_EXPERTS: Table = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj",
    "ffn_down_exps": "mlp.experts.{e}.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate row",
}
_LAYER: Table = {**_NORMS, **_ATTENTION, **_MLP, **_EXPERTS}


def _llama(*tables: Table, top: Table = _TOP) -> Table:
    """Names of the Llama manner, with what differs from them."""
    return {**top, **_layers("model.layers.{l}.", {name: what for table in tables for name, what in table.items()})}


_LLAMA = _llama(_LAYER)
_LLAMA_PAIRS = _llama(_LAYER, _PAIRS)
_MIXTRAL = _llama(
    _NORMS,
    _PAIRS,
    {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{e}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
        # before February 2024 each expert was a tensor of its own; here {n} is its number
        "ffn_gate.{n}": "block_sparse_moe.experts.{n}.w1",
        "ffn_up.{n}": "block_sparse_moe.experts.{n}.w3",
        "ffn_down.{n}": "block_sparse_moe.experts.{n}.w2",
    },
)
_GEMMA2 = _llama(
    _LAYER,
    {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
)
_OLMO2 = _llama(
    _LAYER, {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
)
_FUSED_MLP: Table = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GLM4 = _llama(
    _LAYER,
    _FUSED_MLP,
    {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
)
_PHI2 = _llama(
    _LAYER,
    {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    top={**_TOP, "output_norm": "model.final_layernorm"},
)
_STABLELM = _llama(
    _LAYER,
    {
        "attn_q_norm": "self_attn.q_layernorm.norms.{e}",
        "attn_k_norm": "self_attn.k_layernorm.norms.{e}",
    },
)
_STARCODER2 = _llama(_LAYER, {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"})
_DEEPSEEK = _llama(
    _LAYER,
    {
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
        "attn_k_b": "self_attn.kv_b_proj k_b",
        "attn_v_b": "self_attn.kv_b_proj v_b",
        "exp_probs_b": "mlp.gate.e_score_correction_bias!",
        "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
        "ffn_up_shexp": "mlp.shared_experts.up_proj",
        "ffn_down_shexp": "mlp.shared_experts.down_proj",
    },
)
_INTERNLM2: Table = {
    **_TOP,
    "token_embd": "model.tok_embeddings",
    "output": "output",
    **_layers(
        "model.layers.{l}.",
        {
            "attn_norm": "attention_norm",
            "ffn_norm": "ffn_norm",
            "attn_q": "attention.wqkv wq",
            "attn_k": "attention.wqkv wk",
            "attn_v": "attention.wqkv wv",
            "attn_output": "attention.wo",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
        },
    ),
}


def _gpt(flag: str) -> Table:
    names = {
        "attn_norm": "ln_1",
        "ffn_norm": "ln_2",
        "attn_qkv": "attn.c_attn" + flag,
        "attn_output": "attn.c_proj" + flag,
        "ffn_up": "mlp.c_fc" + flag,
        "ffn_down": "mlp.c_proj" + flag,
    }
    top = {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f"}
    return {**top, "output": "lm_head", **_layers("transformer.h.{l}.", names)}


_NEOX_LAYER: Table = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_NEOX: Table = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    **_layers(
        "gpt_neox.layers.{l}.",
        {**_NEOX_LAYER, "attn_qkv": "attention.query_key_value thirds", "attn_output": "attention.dense"},
    ),
}
_BLOOM: Table = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **_layers(
        "transformer.h.{l}.",
        {**_NEOX_LAYER, "attn_qkv": "self_attention.query_key_value thirds", "attn_output": "self_attention.dense"},
    ),
}
_FALCON: Table = {**_BLOOM, "blk.{l}.attn_qkv": "transformer.h.{l}.self_attention.query_key_value groups"}
# with two norms side by side the first one is the MLP's
_FALCON_40B: Table = {
    **_FALCON,
    "blk.{l}.attn_norm": "transformer.h.{l}.ln_mlp",
    "blk.{l}.attn_norm_2": "transformer.h.{l}.ln_attn",
}
_MPT: Table = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
    **_layers(
        "transformer.blocks.{l}.",
        {
            "attn_norm": "norm_1",
            "ffn_norm": "norm_2",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "attn_q_norm": "attn.q_ln",
            "attn_k_norm": "attn.k_ln",
            "ffn_up": "ffn.up_proj",
            "ffn_down": "ffn.down_proj",
        },
    ),
}
_BERT: Table = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "cls": "classifier.dense",
    "cls.output": "classifier.out_proj",
    **_layers(
        "encoder.layer.{l}.",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
    ),
}
_NOMIC: Table = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "emb_ln",
    **_layers(
        "encoder.layers.{l}.",
        {
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "attn_output_norm": "norm1",
            "ffn_up": "mlp.fc11",
            "ffn_gate": "mlp.fc12",
            "ffn_down": "mlp.fc2",
            "layer_output_norm": "norm2",
        },
    ),
}


def _t5_stack(own: str, stack: str, mlp: int, gated: bool) -> Table:
    attention, cross = "layer.0.SelfAttention.", "layer.1.EncDecAttention."
    names = {"attn_norm": "layer.0.layer_norm", "ffn_norm": f"layer.{mlp}.layer_norm"}
    names |= {f"attn_{part}": attention + part for part in "qkvo"}
    names["attn_rel_b"] = attention + "relative_attention_bias"
    if mlp == 2:
        names |= {f"cross_attn_{part}": cross + part for part in "qkvo"}
        names |= {"cross_attn_norm": "layer.1.layer_norm", "cross_attn_rel_b": cross + "relative_attention_bias"}
    dense = f"layer.{mlp}.DenseReluDense."
    names |= {"ffn_gate": dense + "wi_0", "ffn_up": dense + ("wi_1" if gated else "wi"), "ffn_down": dense + "wo"}
    return {
        f"{own}.output_norm": f"{stack}.final_layer_norm",
        **_layers(stack + ".block.{l}.", names, own + ".blk.{l}."),
    }


def _t5(gated: bool) -> Table:
    stacks = {**_t5_stack("enc", "encoder", 1, gated), **_t5_stack("dec", "decoder", 2, gated)}
    return {"token_embd": "shared", "output": "lm_head", **stacks}


_SILU: Mapping[str, Any] = {"hidden_act": "silu"}
_GEMMA_CONFIG: Mapping[str, Any] = {"hidden_activation": "gelu_pytorch_tanh"}
_GPT_KEYS: Mapping[str, str] = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "context_length": "n_positions",
    "feed_forward_length": "n_inner",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_DEEPSEEK_KEYS: Mapping[str, str] = {"expert_count": "n_routed_experts"}
_FALCON_KEYS: Mapping[str, str] = {
    "attention.head_count_kv": "num_kv_heads",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_T5_KEYS: Mapping[str, str] = {
    "embedding_length": "d_model",
    "block_count": "num_layers",
    "attention.head_count": "num_heads",
    "attention.key_length": "d_kv",
    "feed_forward_length": "d_ff",
    "context_length": "n_positions",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _LLAMA_PAIRS, config=_SILU),
    "mixtral": Family("mixtral", "MixtralForCausalLM", _MIXTRAL, config=_SILU,
                      keys={"expert_count": "num_local_experts"}),
    "granite": Family("granite", "GraniteForCausalLM", _LLAMA_PAIRS, config=_SILU),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _LLAMA_PAIRS, config=_SILU),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _LLAMA, config=_SILU),
    "qwen2vl": Family("qwen2_vl", "Qwen2VLForConditionalGeneration", _LLAMA, config=_SILU),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", _LLAMA, config=_SILU),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _LLAMA, config=_SILU),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _LLAMA, config=_SILU),
    "gemma": Family("gemma", "GemmaForCausalLM", _LLAMA, gains=True, config=_GEMMA_CONFIG),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _GEMMA2, gains=True, config=_GEMMA_CONFIG),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _GEMMA2, gains=True, config=_GEMMA_CONFIG),
    "phi2": Family("phi", "PhiForCausalLM", _PHI2, config={"hidden_act": "gelu_new"}),
    "phi3": Family("phi3", "Phi3ForCausalLM", _llama(_LAYER, _FUSED_MLP), config=_SILU),
    "glm4": Family("glm4", "Glm4ForCausalLM", _GLM4, config=_SILU),
    "stablelm": Family("stablelm", "StableLmForCausalLM", _STABLELM, config=_SILU),
    "starcoder2": Family("starcoder2", "Starcoder2ForCausalLM", _STARCODER2,
                         config={"hidden_act": "gelu_pytorch_tanh"}),
    "olmo": Family("olmo", "OlmoForCausalLM", _LLAMA_PAIRS, config=_SILU),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _OLMO2, config=_SILU),
    "olmoe": Family("olmoe", "OlmoeForCausalLM", _LLAMA, config=_SILU),
    "command-r": Family("cohere", "CohereForCausalLM", _LLAMA, config=_SILU),
    "cohere2": Family("cohere2", "Cohere2ForCausalLM", _LLAMA, config=_SILU),
    "nemotron": Family("nemotron", "NemotronForCausalLM", _LLAMA, gains=True, config={"hidden_act": "relu2"}),
    "deepseek2": Family("deepseek_v2", "DeepseekV2ForCausalLM", _DEEPSEEK, config=_SILU, keys=_DEEPSEEK_KEYS),
    "deepseek3": Family("deepseek_v3", "DeepseekV3ForCausalLM", _DEEPSEEK, config=_SILU, keys=_DEEPSEEK_KEYS),
    "internlm2": Family("internlm2", "InternLM2ForCausalLM", _INTERNLM2, config=_SILU),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", _gpt(" t"), config={"activation_function": "gelu_new"}, keys=_GPT_KEYS),
    "starcoder": Family("gpt_bigcode", "GPTBigCodeForCausalLM", _gpt(""), keys=_GPT_KEYS),
    "gptneox": Family("gpt_neox", "GPTNeoXForCausalLM", _NEOX, config={"hidden_act": "gelu"}),
    "falcon": Family("falcon", "FalconForCausalLM", _FALCON, keys=_FALCON_KEYS),
    "falcon-40b": Family("falcon", "FalconForCausalLM", _FALCON_40B, keys=_FALCON_KEYS),
    "bloom": Family("bloom", "BloomForCausalLM", _BLOOM, keys={**_FALCON_KEYS, "block_count": "n_layer",
                    "attention.head_count": "n_head", "context_length": "seq_length"}),
    "mpt": Family("mpt", "MPTForCausalLM", _MPT, keys={"embedding_length": "d_model", "block_count": "n_layers",
                  "attention.head_count": "n_heads", "context_length": "max_seq_len"}),
    "bert": Family("bert", "BertModel", _BERT, config={"hidden_act": "gelu"}),
    "roberta": Family("roberta", "RobertaModel", _BERT, config={"hidden_act": "gelu"}),
    "xlm-roberta": Family("xlm-roberta", "XLMRobertaModel", _BERT, config={"hidden_act": "gelu"}),
    "nomic-bert": Family("nomic_bert", "NomicBertModel", _NOMIC),
    "t5": Family("t5", "T5ForConditionalGeneration", _t5(False), config={"feed_forward_proj": "relu"}, keys=_T5_KEYS),
    "t5-gated": Family("t5", "T5ForConditionalGeneration", _t5(True), config={"feed_forward_proj": "gated-gelu"},
                       keys=_T5_KEYS),
}  # fmt: skip

# Of an architecture that has no row the names of the Llama manner are taken: the file says roles, not names.
UNKNOWN_TABLE: Table = _LLAMA
