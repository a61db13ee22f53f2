"""Meta's and Mistral's own files (consolidated*.pth, .safetensors with params.json): whole, in parts, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zoo
from torch_writer import checkpoint
from zoo import container

from provindex.common.errors import ModelError
from provindex.models.source import Model, open_model
from provindex.roles.names import resolve

ORIGINAL = zoo.llama(5, hidden=64, intermediate=96, layers=2)
WORDS = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": -1,
    "norm_eps": 1e-5,
    "multiple_of": 32,
}
ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
COLUMNS = ("wo", "w2")


def renamed(name: str) -> str:
    for theirs, metas in WORDS.items():
        name = name.replace(theirs, metas)
    return name


STATE = {renamed(name): np.asarray(value, np.float32) for name, value in ORIGINAL.tensors.items()}
STATE |= {name: value[: len(value) // 4 * 4] for name, value in STATE.items() if name[:3] in ("tok", "out")}


def split(state: dict[str, np.ndarray], count: int, table_axis: int) -> list[dict[str, np.ndarray]]:
    """What each of several GPUs has."""
    axes = dict.fromkeys(ROWS, 0) | dict.fromkeys(COLUMNS, 1) | {"tok_embeddings": table_axis}
    pieces = {
        name: np.split(value, count, axes[module]) if (module := name.split(".")[-2]) in axes else [value] * count
        for name, value in state.items()
    }
    return [{name: np.ascontiguousarray(pieces[name][i]) for name in state} for i in range(count)]


def folder(path: Path, parts: list[dict[str, np.ndarray]], params: dict[str, object] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        (path / f"consolidated.{number:02}.pth").write_bytes(checkpoint(part))
    (path / "params.json").write_text(json.dumps(PARAMS if params is None else params))
    return path


def check(model: Model) -> None:
    assert {n: t.shape for n, t in model.tensors.items()} == {n: v.shape for n, v in STATE.items()}
    for name, value in STATE.items():
        assert np.array_equal(model.tensors[name].flat().reshape(value.shape), value), name
    rows = model.tensors["layers.1.feed_forward.w1.weight"].rows([50, 3])
    assert np.array_equal(rows, STATE["layers.1.feed_forward.w1.weight"][[50, 3]])
    config = model.config
    assert (config["model_type"], config["num_key_value_heads"], config["intermediate_size"]) == ("llama", 2, 96)
    assert (config["vocab_size"], config["rms_norm_eps"]) == (len(STATE["tok_embeddings.weight"]), 1e-5)
    assert not resolve({n: t.shape for n, t in model.tensors.items()}, config).unknown


@pytest.mark.parametrize("table_axis", [0, 1])  # Llama 3 splits the rows of the embedding, Llama 2 its columns
@pytest.mark.parametrize("count", [1, 2])
def test_a_model_in_parts_is_joined(count: int, table_axis: int, tmp_path: Path) -> None:
    place = folder(tmp_path / "m", split(STATE, count, table_axis))
    check(open_model(place))
    check(open_model(place / "consolidated.00.pth"))


def test_one_part_of_two_is_refused(tmp_path: Path) -> None:
    parts = split(STATE, 4, 1)
    place = folder(tmp_path / "first", parts[:1])
    with pytest.raises(ModelError, match=r"consolidated\.00\.pth is 1 of 4 parts of a model"):
        open_model(place)
    (place / "params.json").unlink()
    with pytest.raises(ModelError, match="is 1 of 4 parts of a model") as caught:  # as its embedding shows
        open_model(place / "consolidated.00.pth")
    assert "consolidated.03" in (caught.value.next_step or "")
    with pytest.raises(ModelError, match="and its 2 like are 3 of 4 parts"):
        open_model(folder(tmp_path / "last", split(STATE, 4, 0)[:3]))
    gap = folder(tmp_path / "gap", parts)
    (gap / "consolidated.01.pth").unlink()
    with pytest.raises(
        ModelError, match=r"only consolidated\.00\.pth, consolidated\.02\.pth, consolidated\.03\.pth are"
    ):
        open_model(gap)


def test_parts_that_are_not_of_one_model_are_refused(tmp_path: Path) -> None:
    one, two = split(STATE, 2, 1)
    place = folder(tmp_path / "norms", [one, two | {"norm.weight": two["norm.weight"] + 1}])
    with pytest.raises(ModelError, match=r"different values of 'norm\.weight'"):
        open_model(place)
    with pytest.raises(ModelError, match=r"do not both have 'norm\.weight'"):
        open_model(folder(tmp_path / "lacks", [one, {n: v for n, v in two.items() if n != "norm.weight"}]))
    odd = {"vision.weight": np.ones((4, 4), np.float32)}
    with pytest.raises(ModelError, match=r"a part of 'vision\.weight', and how its parts go together is not known"):
        open_model(folder(tmp_path / "unknown", [one | odd, two | odd]))
    with pytest.raises(ModelError, match=r"params\.json beside .* cannot be used"):
        place = folder(tmp_path / "params", [STATE])
        (place / "params.json").write_text("[1]")
        open_model(place)


def test_mistral_s_file_has_its_config_in_params_json(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.safetensors"
    container.save(path, STATE, dict.fromkeys(STATE, "F32"), list(STATE))
    said = {"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2}
    (tmp_path / "params.json").write_text(json.dumps(said | {"norm_eps": 1e-5, "vocab_size": 320, "rope_theta": 1e6}))
    model = open_model(tmp_path)
    assert model.config["model_type"] == "mistral" and model.config["rope_theta"] == 1e6
    assert model.config["head_dim"] == 16 and model.tensors.keys() == STATE.keys()
    said["moe"] = {"num_experts_per_tok": 2, "num_experts": 8}  # type: ignore[assignment]
    (tmp_path / "params.json").write_text(json.dumps(said))
    assert open_model(tmp_path).config["num_local_experts"] == 8
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "hidden_size": 64}))
    assert "num_local_experts" not in open_model(tmp_path).config, "what lies beside it wins, as everywhere"


def test_params_that_do_not_fit_the_matrices(tmp_path: Path) -> None:
    said = PARAMS | {"dim": 64 << 20}
    with pytest.raises(ModelError, match=r"params\.json beside .* does not fit its matrices"):
        open_model(folder(tmp_path / "one", [STATE], said))
    with pytest.raises(ModelError, match="are 2 of another number of parts"):
        open_model(folder(tmp_path / "two", split(STATE, 2, 0), said))
