"""One set of weights has one content hash, however its tensors are cut, fused, turned, paired or named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zoo

from provindex.api import resolve
from provindex.verdict.pair import compare

BASE = zoo.llama(4, kv_heads=2, tied=False)
HEADS, KV = 4, 2


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As Phi-3 stores a Llama: q, k and v in one, gate and up in one."""
    made = {}
    for name, values in tensors.items():
        if name.endswith("q_proj.weight"):
            parts = [tensors[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            made[name.replace("q_proj", "qkv_proj")] = np.concatenate(parts)
        elif name.endswith("gate_proj.weight"):
            both = [values, tensors[name.replace("gate_proj", "up_proj")]]
            made[name.replace("gate_proj", "gate_up_proj")] = np.concatenate(both)
        elif not name.endswith(("k_proj.weight", "v_proj.weight", "up_proj.weight")):
            made[name] = values
    return made


META = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
}  # fmt: skip


def paired(values: np.ndarray, heads: int) -> np.ndarray:
    """Rotary channels in pairs, as Meta and Mistral release them."""
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return halves.transpose(0, 2, 1, 3).reshape(values.shape)


def meta(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made = {}
    for name, values in tensors.items():
        new = name
        for old, short in META.items():
            new = new.replace(old, short)
        heads = HEADS if new.endswith("wq.weight") else KV if new.endswith("wk.weight") else 0
        made[new] = paired(values, heads) if heads else values
    return made


@pytest.mark.parametrize("layout", [fused, meta])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_layouts_of_a_llama(layout, dtype: str, tmp_path: Path) -> None:
    plain = resolve(zoo.write(BASE, tmp_path / "plain", dtype=dtype)).fingerprint
    other = resolve(
        zoo.write(BASE.with_tensors(layout(dict(BASE.tensors))), tmp_path / "other", dtype=dtype)
    ).fingerprint
    assert plain.content_sha256 == other.content_sha256 and compare(plain, other).relation == "identical"


def test_another_order_is_not_identical(tmp_path: Path) -> None:
    """What is paired and says that it is not computes something else."""
    plain = resolve(zoo.write(BASE, tmp_path / "plain")).fingerprint
    wrong = {
        name: paired(values, HEADS) if name.endswith("q_proj.weight") else values
        for name, values in BASE.tensors.items()
    }
    other = resolve(zoo.write(BASE.with_tensors(wrong), tmp_path / "wrong")).fingerprint
    assert plain.content_sha256 != other.content_sha256 and compare(plain, other).relation != "identical"


def test_conv1d_turned_is_the_same_model(tmp_path: Path) -> None:
    """GPT-2 stores (in, out), and queries, keys and values one after the other; GPT-BigCode (out, in), head by head."""
    model = zoo.gpt2(1)
    heads = model.config["n_head"]

    def by_head(values: np.ndarray) -> np.ndarray:
        apart = values.reshape(3, heads, -1, *values.shape[1:])
        return np.ascontiguousarray(apart.swapaxes(0, 1)).reshape(values.shape)

    turned = {}
    for name, values in model.tensors.items():
        straight = values.T.copy() if values.ndim == 2 and ".c_" in name else values
        turned[name] = by_head(straight) if ".c_attn." in name else straight
    plain, other = (
        resolve(zoo.write(model.with_tensors(t, **config), tmp_path / f"{i}")).fingerprint
        for i, (t, config) in enumerate(
            ((model.tensors, {}), (turned, {"model_type": "gpt_bigcode", "multi_query": False}))
        )
    )
    assert plain.content_sha256 == other.content_sha256 and compare(plain, other).relation == "identical"


def test_a_copy_counts_once(tmp_path: Path) -> None:
    """torch files keep each name of a shared tensor, safetensors files one."""
    model = zoo.t5(1)
    shared = next(name for name in model.tensors if "shared" in name)
    more = {**model.tensors, "encoder.embed_tokens.weight": model.tensors[shared]}
    one, two = (
        resolve(zoo.write(model.with_tensors(t), tmp_path / f"{i}")).fingerprint
        for i, t in enumerate((model.tensors, more))
    )
    assert one.content_sha256 == two.content_sha256 and two.left_out == ()


def test_biases_of_zeros_and_tables_of_the_exporter_count_for_nothing(tmp_path: Path) -> None:
    """An exporter folds a rotary table into the file, and leaves out biases that add nothing."""
    angles = np.arange(64)[:, None] / 10_000 ** (np.arange(64) / 64)
    more = {**BASE.tensors, "cos_cached": np.cos(angles * 1e-2).astype("f4")}
    more["model.layers.0.mlp.up_proj.bias"] = np.zeros(len(BASE.tensors["model.layers.0.mlp.up_proj.weight"]), "f4")
    one, two = (
        resolve(zoo.write(BASE.with_tensors(t), tmp_path / f"{i}")).fingerprint
        for i, t in enumerate((BASE.tensors, more))
    )
    assert one.content_sha256 == two.content_sha256
    more["model.layers.0.mlp.up_proj.bias"][0] = 1
    assert (
        resolve(zoo.write(BASE.with_tensors(more), tmp_path / "more")).fingerprint.content_sha256 != one.content_sha256
    )


def test_a_table_that_begins_like_a_computed_one_counts(tmp_path: Path) -> None:
    """Its first row is smooth, and a model lies behind it."""
    hidden = np.random.default_rng(0).standard_normal((256, 256)).astype("f4")
    hidden[:2] = np.cos(np.arange(256) / 50)
    fp = resolve(zoo.write(BASE.with_tensors({**BASE.tensors, "freqs.table": hidden}), tmp_path / "m")).fingerprint
    assert fp.content_sha256 != resolve(zoo.write(BASE, tmp_path / "plain")).fingerprint.content_sha256
    assert "unnamed" in fp.absences


def test_experts_apart_and_stacked(tmp_path: Path) -> None:
    """Mixtral's first releases have a tensor for each expert, transformers 5 writes them stacked."""
    rng = np.random.default_rng(1)
    apart = {name: values for name, values in BASE.tensors.items() if ".mlp." not in name}
    stacked = dict(apart)
    for layer in range(3):
        w1, w3, w2 = (rng.standard_normal((4, *s)).astype("f4") for s in ((96, 64), (96, 64), (64, 96)))
        router = rng.standard_normal((4, 64)).astype("f4")
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        apart[f"{old}gate.weight"] = stacked[f"{new}gate.weight"] = router
        for expert in range(4):
            for name, values in (("w1", w1), ("w2", w2), ("w3", w3)):
                apart[f"{old}experts.{expert}.{name}.weight"] = values[expert]
        stacked[f"{new}experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
        stacked[f"{new}experts.down_proj"] = w2
    config = {"model_type": "mixtral", "num_local_experts": 4}
    one, two = (
        resolve(zoo.write(BASE.with_tensors(t, **config), tmp_path / f"{i}")).fingerprint
        for i, t in enumerate((apart, stacked))
    )
    assert one.content_sha256 == two.content_sha256 and compare(one, two).relation == "identical"
