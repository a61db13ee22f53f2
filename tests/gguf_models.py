"""Small models of each family with transformers' names, and what llama.cpp's converter makes of them.

Names come from the gguf package's own map, changes of rows and values from what convert_hf_to_gguf.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Changed = Iterator[tuple[str, F32]]
Change = Callable[[str, F32], Changed]

LAYERS, HEADS, KEYS, DIM, WIDTH, INNER, ROWS, EXPERTS = 2, 4, 2, 16, 64, 96, 120, 3
Q, KV = HEADS * DIM, KEYS * DIM


@dataclass(frozen=True)
class Made:
    """arch: GGUF's. config: config.json. shapes: by transformers' name, layers filled in. change: the converter."""

    arch: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    change: Change = lambda name, array: iter([(name, array)])
    metadata: Mapping[str, Any] = field(default_factory=dict)
    gains: bool = False


def layers(table: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Rows with {l} for every layer and with {e} for every expert."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in table.items():
        for layer in range(LAYERS if "{l}" in name else 1):
            for expert in range(EXPERTS if "{e}" in name else 1):
                found[name.replace("{l}", str(layer)).replace("{e}", str(expert))] = shape
    return found


def biased(table: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A bias for each weight with rows."""
    more = {name.replace(".weight", ".bias"): shape[:1] for name, shape in table.items()}
    return {**table, **more}


def under(prefix: str, table: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}.weight": shape for name, shape in table.items()}


P = "model.layers.{l}."
TOP = {"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}
ATTENTION = under(P + "self_attn.", {"q_proj": (Q, WIDTH), "k_proj": (KV, WIDTH), "v_proj": (KV, WIDTH)})
OUT = under(P + "self_attn.", {"o_proj": (WIDTH, Q)})
NORMS = under(P, {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)})
MLP = under(P + "mlp.", {"gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)})
QK_NORM = under(P + "self_attn.", {"q_norm": (DIM,), "k_norm": (DIM,)})
MOE = under(P + "mlp.experts.{e}.", {"gate_proj": (32, WIDTH), "up_proj": (32, WIDTH), "down_proj": (WIDTH, 32)})
SHARED = under(P + "mlp.shared_expert.", {"gate_proj": (32, WIDTH), "up_proj": (32, WIDTH), "down_proj": (WIDTH, 32)})
BOTH_NORMS = {**NORMS, **under(P, {"pre_feedforward_layernorm": (WIDTH,), "post_feedforward_layernorm": (WIDTH,)})}
LLAMA = {**TOP, **ATTENTION, **OUT, **NORMS, **MLP}
HEAD = {"lm_head.weight": (ROWS, WIDTH)}
CONFIG = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KEYS,
    "intermediate_size": INNER, "vocab_size": ROWS, "max_position_embeddings": 256,
}  # fmt: skip


def config(model_type: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, **CONFIG, **more}


def in_pairs(array: F32, heads: int) -> F32:
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def paired(name: str, array: F32) -> Changed:
    """LlamaModel.permute."""
    if ".q_proj." in name:
        array = in_pairs(array, HEADS)
    if ".k_proj." in name:
        array = in_pairs(array, KEYS)
    yield name, array


def stacked(inner: Change = lambda name, array: iter([(name, array)])) -> Change:
    """Experts (or heads' norms) into one tensor, once all of them came."""
    waiting: dict[str, list[F32]] = {}

    def change(name: str, array: F32) -> Changed:
        before, mark, rest = name.partition(".experts." if ".experts." in name else ".norms.")
        if not mark:
            yield from inner(name, array)
            return
        after = rest.partition(".")[2]
        group = waiting.setdefault(before + mark + after, [])
        group.append(array)
        whole = EXPERTS if mark == ".experts." else HEADS if ".q_" in before else KEYS
        if len(group) == whole:
            yield (before + mark + after if mark == ".experts." else before + "." + after), np.stack(group)

    return change


def thirds(name: str, array: F32) -> Changed:
    if "query_key_value" in name:
        array = array.reshape(HEADS, 3, DIM, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    yield name, array


def groups(name: str, array: F32) -> Changed:
    if "query_key_value" in name:
        grouped = array.reshape(KEYS, HEADS // KEYS + 2, DIM, -1)
        parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
        array = np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])
    yield name, array


def grouped_apart(name: str, array: F32) -> Changed:
    """InternLM2: wqkv into three, the first two in pairs."""
    if "wqkv" not in name:
        yield name, array
        return
    grouped = array.reshape(KEYS, HEADS // KEYS + 2, DIM, -1)
    q, k, v = (part.reshape(-1, array.shape[1]) for part in (grouped[:, :-2], grouped[:, -2], grouped[:, -1]))
    yield name.replace("wqkv", "wq"), in_pairs(q, HEADS)
    yield name.replace("wqkv", "wk"), in_pairs(k, KEYS)
    yield name.replace("wqkv", "wv"), v


def turned(name: str, array: F32) -> Changed:
    """GPT-2's Conv1D."""
    yield name, array.T if array.ndim == 2 and ".h." in name else array


def latent(name: str, array: F32) -> Changed:
    """DeepSeek's kv_b_proj into the two that absorbed attention needs."""
    if "kv_b_proj" not in name:
        yield name, array
        return
    both = array.reshape(HEADS, 12 + 20, -1)
    yield name.replace("kv_b_proj", "k_b_proj"), both[:, :12].swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), both[:, 12:]


def gpt2_shapes() -> dict[str, tuple[int, ...]]:
    names = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH), "mlp.c_fc": (WIDTH, INNER),
             "mlp.c_proj": (INNER, WIDTH), "ln_1": (WIDTH,), "ln_2": (WIDTH,)}  # fmt: skip
    weights = under("transformer.h.{l}.", names)
    biases = {name.replace(".weight", ".bias"): shape[-1:] for name, shape in weights.items()}
    top = {"transformer.wte.weight": (ROWS, WIDTH), "transformer.wpe.weight": (32, WIDTH)}
    return {**top, **biased({"transformer.ln_f.weight": (WIDTH,)}), **weights, **biases}


def neox_shapes(prefix: str, attention: str, fused: int) -> dict[str, tuple[int, ...]]:
    names = {f"{attention}.query_key_value": (fused, WIDTH), f"{attention}.dense": (WIDTH, Q),
             "mlp.dense_h_to_4h": (INNER, WIDTH), "mlp.dense_4h_to_h": (WIDTH, INNER),
             "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}  # fmt: skip
    return biased(under(prefix, names))


def bert_shapes() -> dict[str, tuple[int, ...]]:
    names = {"attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
             "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
             "attention.output.LayerNorm": (WIDTH,), "intermediate.dense": (INNER, WIDTH),
             "output.dense": (WIDTH, INNER), "output.LayerNorm": (WIDTH,)}  # fmt: skip
    tables = under("embeddings.", {"word_embeddings": (ROWS, WIDTH), "position_embeddings": (32, WIDTH),
                                   "token_type_embeddings": (2, WIDTH)})  # fmt: skip
    norm = biased(under("embeddings.", {"LayerNorm": (WIDTH,)}))
    return {**tables, **norm, **biased(under("encoder.layer.{l}.", names))}


def t5_shapes(gated: bool) -> dict[str, tuple[int, ...]]:
    found = {"shared.weight": (ROWS, WIDTH)}
    inward = ("wi_0", "wi_1") if gated else ("wi",)
    for stack, mlp in (("encoder", 1), ("decoder", 2)):
        p = stack + ".block.{l}.layer."
        found |= under(p + "0.SelfAttention.", {"q": (Q, WIDTH), "k": (Q, WIDTH), "v": (Q, WIDTH), "o": (WIDTH, Q)})
        found |= under(p, {"0.layer_norm": (WIDTH,), f"{mlp}.layer_norm": (WIDTH,)})
        found |= under(f"{p}{mlp}.DenseReluDense.", {**dict.fromkeys(inward, (INNER, WIDTH)), "wo": (WIDTH, INNER)})
        found |= under(f"{stack}.block.0.layer.0.SelfAttention.", {"relative_attention_bias": (32, HEADS)})
        found |= under(stack + ".", {"final_layer_norm": (WIDTH,)})
    p = "decoder.block.{l}.layer.1."
    found |= under(p + "EncDecAttention.", {"q": (Q, WIDTH), "k": (Q, WIDTH), "v": (Q, WIDTH), "o": (WIDTH, Q)})
    return found | under(p, {"layer_norm": (WIDTH,)})


MLA = {
    **under(P + "self_attn.", {"q_proj": (HEADS * 20, WIDTH), "kv_a_proj_with_mqa": (24 + 8, WIDTH),
                               "kv_a_layernorm": (24,), "kv_b_proj": (HEADS * 32, 24), "o_proj": (WIDTH, HEADS * 20)}),
    **under(P + "mlp.shared_experts.", {"gate_proj": (32, WIDTH), "up_proj": (32, WIDTH), "down_proj": (WIDTH, 32)}),
}  # fmt: skip
INTERNLM2 = {
    "model.tok_embeddings.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,), "output.weight": (ROWS, WIDTH),
    **under(P, {"attention_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attention.wqkv": (Q + 2 * KV, WIDTH),
                "attention.wo": (WIDTH, Q), "feed_forward.w1": (INNER, WIDTH), "feed_forward.w3": (INNER, WIDTH),
                "feed_forward.w2": (WIDTH, INNER)}),
}  # fmt: skip
PHI3 = {**under(P + "self_attn.", {"qkv_proj": (Q + 2 * KV, WIDTH)}),
        **under(P + "mlp.", {"gate_up_proj": (2 * INNER, WIDTH), "down_proj": (WIDTH, INNER)})}  # fmt: skip
FC = under(P + "mlp.", {"fc1": (INNER, WIDTH), "fc2": (WIDTH, INNER)})
DENSE = under(P + "self_attn.", {"dense": (WIDTH, Q)})
C_FC = under(P + "mlp.", {"c_fc": (INNER, WIDTH), "c_proj": (WIDTH, INNER)})
GATE = under(P + "mlp.", {"gate": (EXPERTS, WIDTH)})
W_EXPERTS = under(
    P + "block_sparse_moe.experts.{e}.", {"w1": (INNER, WIDTH), "w2": (WIDTH, INNER), "w3": (INNER, WIDTH)}
)
ONE_NORM = biased(under(P, {"input_layernorm": (WIDTH,)}))
FALCON_TOP = {
    "transformer.word_embeddings.weight": (ROWS, WIDTH),
    **biased({"transformer.ln_f.weight": (WIDTH,)}),
    **HEAD,
}
RMS, LAYER = {"attention.layer_norm_rms_epsilon": 1e-5}, {"attention.layer_norm_epsilon": 1e-5}
EXPERT_COUNT = {"expert_count": EXPERTS}

FAMILIES: dict[str, Made] = {
    "llama": Made("llama", config("llama", rms_norm_eps=1e-5, rope_theta=500000.0), LLAMA, paired,
                  {**RMS, "rope.freq_base": 500000.0}),
    "llama with biases": Made("llama", config("llama"), {**LLAMA, **biased(ATTENTION), **HEAD}, paired),
    "mixtral": Made("llama", config("mixtral", num_local_experts=EXPERTS),
                    {**TOP, **ATTENTION, **OUT, **NORMS, **W_EXPERTS,
                     **under(P + "block_sparse_moe.", {"gate": (EXPERTS, WIDTH)})}, stacked(paired), EXPERT_COUNT),
    "qwen2": Made("qwen2", config("qwen2", rms_norm_eps=1e-5), {**LLAMA, **biased(ATTENTION)}, metadata=RMS),
    "qwen3": Made("qwen3", config("qwen3", head_dim=DIM), {**LLAMA, **QK_NORM}, metadata={"attention.key_length": DIM}),
    "qwen2moe": Made("qwen2moe", config("qwen2_moe", num_experts=EXPERTS),
                     {**TOP, **biased(ATTENTION), **OUT, **NORMS, **GATE, **MOE, **SHARED,
                      **under(P + "mlp.", {"shared_expert_gate": (1, WIDTH)})}, stacked(), EXPERT_COUNT),
    "qwen3moe": Made("qwen3moe", config("qwen3_moe", num_experts=EXPERTS, head_dim=DIM),
                     {**TOP, **ATTENTION, **OUT, **NORMS, **QK_NORM, **GATE, **MOE}, stacked(),
                     {**EXPERT_COUNT, "attention.key_length": DIM}),
    "gemma": Made("gemma", config("gemma", head_dim=DIM), LLAMA, metadata={"attention.key_length": DIM}, gains=True),
    "gemma2": Made("gemma2", config("gemma2"), {**LLAMA, **BOTH_NORMS}, gains=True),
    "gemma3": Made("gemma3", config("gemma3_text"), {**LLAMA, **BOTH_NORMS, **QK_NORM}, gains=True),
    "phi2": Made("phi2", config("phi", partial_rotary_factor=0.5, layer_norm_eps=1e-5),
                 {"model.embed_tokens.weight": (ROWS, WIDTH), **biased({"model.final_layernorm.weight": (WIDTH,)}),
                  **biased(ATTENTION), **biased(DENSE), **ONE_NORM, **biased(FC), **biased(HEAD)},
                 metadata={**LAYER, "rope.dimension_count": DIM // 2}),
    "phi3": Made("phi3", config("phi3"), {**TOP, **PHI3, **OUT, **NORMS, **HEAD}),
    "stablelm": Made("stablelm", config("stablelm"),
                     {**TOP, **ATTENTION, **OUT, **biased(NORMS), **MLP,
                      **{f"model.layers.{layer}.self_attn.{x}_layernorm.norms.{h}.weight": (DIM,)
                         for layer in range(LAYERS) for x, n in (("q", HEADS), ("k", KEYS)) for h in range(n)}},
                     stacked()),
    "starcoder2": Made("starcoder2", config("starcoder2"),
                       {**TOP, **biased(ATTENTION), **biased(OUT), **biased(NORMS), **biased(C_FC)}),
    "olmo": Made("olmo", config("olmo"),
                 {"model.embed_tokens.weight": (ROWS, WIDTH), **ATTENTION, **OUT, **MLP}, paired),
    "olmo2": Made("olmo2", config("olmo2"),
                  {**TOP, **ATTENTION, **OUT, **MLP,
                   **under(P + "self_attn.", {"q_norm": (Q,), "k_norm": (KV,)}),
                   **under(P, {"post_attention_layernorm": (WIDTH,), "post_feedforward_layernorm": (WIDTH,)})}),
    "command-r": Made("command-r", config("cohere"),
                      {**TOP, **ATTENTION, **OUT, **MLP, **under(P, {"input_layernorm": (WIDTH,)}),
                       **under(P + "self_attn.", {"q_norm": (HEADS, DIM), "k_norm": (KEYS, DIM)})}),
    "nemotron": Made("nemotron", config("nemotron"),
                     {**biased({"model.norm.weight": (WIDTH,)}), **TOP, **ATTENTION, **OUT, **biased(NORMS),
                      **under(P + "mlp.", {"up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)})}, gains=True),
    "internlm2": Made("internlm2", config("internlm2"), INTERNLM2, grouped_apart),
    "deepseek2": Made("deepseek2", config("deepseek_v2", num_key_value_heads=HEADS, qk_rope_head_dim=8,
                                          qk_nope_head_dim=12, v_head_dim=20, kv_lora_rank=24,
                                          n_routed_experts=EXPERTS),
                      {**TOP, **MLA, **NORMS, **GATE, **MOE}, stacked(latent),
                      {**EXPERT_COUNT, "attention.head_count_kv": 1, "rope.dimension_count": 8,
                       "attention.kv_lora_rank": 24, "attention.key_length": 32, "attention.value_length": 24,
                       "attention.key_length_mla": 20, "attention.value_length_mla": 20}),
    "gpt2": Made("gpt2", {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER,
                          "n_positions": 256, "vocab_size": ROWS}, gpt2_shapes(), turned),
    "gptneox": Made("gptneox", config("gpt_neox", num_key_value_heads=HEADS, rotary_pct=0.25),
                    {"gpt_neox.embed_in.weight": (ROWS, WIDTH), "embed_out.weight": (ROWS, WIDTH),
                     **biased({"gpt_neox.final_layer_norm.weight": (WIDTH,)}),
                     **neox_shapes("gpt_neox.layers.{l}.", "attention", 3 * Q)}, thirds,
                    {"attention.head_count_kv": HEADS, "rope.dimension_count": DIM // 4}),
    "bloom": Made("bloom", {"model_type": "bloom", "n_layer": LAYERS, "n_head": HEADS, "hidden_size": WIDTH},
                  {**FALCON_TOP, **biased(under("transformer.", {"word_embeddings_layernorm": (WIDTH,)})),
                   **neox_shapes("transformer.h.{l}.", "self_attention", 3 * Q)}, thirds,
                  {"attention.head_count_kv": HEADS}),
    "falcon 40b": Made("falcon", {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": KEYS,
                                  "num_attention_heads": HEADS},
                       {**FALCON_TOP, **under("transformer.h.{l}.", {
                           "self_attention.query_key_value": (Q + 2 * KV, WIDTH), "self_attention.dense": (WIDTH, Q),
                           "mlp.dense_h_to_4h": (INNER, WIDTH), "mlp.dense_4h_to_h": (WIDTH, INNER),
                           "ln_attn": (WIDTH,), "ln_mlp": (WIDTH,)})}, groups),
    "bert": Made("bert", config("bert", num_key_value_heads=HEADS), bert_shapes(),
                 metadata={"attention.head_count_kv": HEADS}),
    "t5": Made("t5", {"model_type": "t5", "d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "d_kv": DIM},
               t5_shapes(False), metadata={"attention.key_length": DIM, "attention.head_count_kv": HEADS}),
    "t5 gated": Made("t5", {"model_type": "t5", "d_model": WIDTH, "feed_forward_proj": "gated-gelu"},
                     {**t5_shapes(True), **HEAD},
                     metadata={"attention.key_length": DIM, "attention.head_count_kv": HEADS}),
}  # fmt: skip


def weights(made: Made) -> dict[str, F32]:
    """Values that bfloat16 and float16 both hold, so that every way to store them is exact."""
    rng = np.random.default_rng(5)
    shapes = layers(made.shapes)
    return {name: rng.integers(-127, 128, shape).astype(np.float32) / 256 for name, shape in shapes.items()}


def gguf_name(name: str, made: Made) -> str:
    if made.arch == "bloom":
        name = name.removeprefix("transformer.")
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == made.arch)
    found = gguf.get_tensor_name_map(arch, LAYERS).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def metadata(made: Made) -> dict[str, Any]:
    general = {"embedding_length": WIDTH, "block_count": LAYERS, "attention.head_count": HEADS,
               "attention.head_count_kv": KEYS, "feed_forward_length": INNER, "context_length": 256}  # fmt: skip
    return general | dict(made.metadata)


def write_gguf(
    path: Path,
    made: Made,
    arrays: Mapping[str, F32],
    dtype: str = "F16",
    more: Mapping[str, str | int] | None = None,
    **writer_options: Any,
) -> None:
    """As the converter does: matrices in `dtype`, vectors in float32. more: other metadata, by whole keys."""
    writer = gguf.GGUFWriter(path, made.arch, **writer_options)
    for key, said in (more or {}).items():
        if isinstance(said, str):
            writer.add_string(key, said)
        else:
            writer.add_uint32(key, said)
    for key, value in metadata(made).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{made.arch}.{key}", value)
    kind = gguf.GGMLQuantizationType[dtype]
    for name, array in arrays.items():
        if made.gains and name.endswith("norm.weight"):
            array = array + np.float32(1)
        for changed, values in made.change(name, array):
            data = np.ascontiguousarray(values)
            if data.ndim > 1:
                writer.add_tensor(gguf_name(changed, made), gguf.quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name(changed, made), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
