"""CTranslate2's model.bin gives the model that it was made from; hostile files give one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import zoo
from ctranslate2_files import in_int8, of_llama, whisper, written
from numpy.typing import NDArray
from prints import fingerprint

from provindex.common.errors import ModelError
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.formats.ctranslate2.files import read_ctranslate2
from provindex.formats.tensors import Contents, Extent
from provindex.models.source import open_model
from provindex.roles.names import resolve
from provindex.verdict.pair import compare

ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}


def read(data: bytes) -> Contents:
    return read_ctranslate2(Extent(np.frombuffer(data, np.uint8)), "model.bin")


def arrays(contents: Contents) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: tensor.flat().reshape(tensor.shape) for tensor in contents.tensors}


@pytest.mark.parametrize("codes", [False, True])
def test_a_llama_is_the_model_that_it_was_made_from(codes: bool, tmp_path: Path) -> None:
    original = zoo.llama(3, hidden=64, intermediate=96, layers=2)
    heads, keys = original.config["num_attention_heads"], original.config["num_key_value_heads"]
    stored = of_llama({name: np.asarray(value, np.float32) for name, value in original.tensors.items()}, heads, keys)
    (tmp_path / "model.bin").write_bytes(written("TransformerDecoderSpec", in_int8(stored) if codes else stored))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token": "<s>", "layer_norm_epsilon": 1e-5}))
    model = open_model(tmp_path)
    assert model.tensors.keys() == original.tensors.keys() and keys < heads
    assert model.config["model_type"] == "llama" and model.config["num_key_value_heads"] == keys
    assert model.config["intermediate_size"] == 96 and model.config["head_dim"] == 64 // heads
    assert "config-of-another" not in {warning.code for warning in model.warnings}
    made, reference = fingerprint_model(model), fingerprint(original, "original")
    pair = compare(reference, made)
    if codes:
        assert pair.verdict == "linked" and pair.relation != "identical" and pair.closeness > 0.97
        name = "model.layers.1.self_attn.v_proj.weight"
        value, found = original.tensors[name], model.tensors[name].flat().reshape(model.tensors[name].shape)
        assert np.abs(value - found).max() <= np.abs(value).max() / 127 / 2 * 1.001
    else:
        assert made.content_sha256 == reference.content_sha256 and pair.relation == "identical"


def test_whisper() -> None:
    stored = whisper()
    found = read(written("WhisperSpec", stored, {"decoder/projection/weight": "decoder/embeddings/weight"}))
    tensors = arrays(found)
    fused = stored["encoder/layer_0/self_attention/linear_0/weight"]
    assert np.array_equal(tensors["model.encoder.layers.0.self_attn.k_proj.weight"], fused[64:128])
    cross = stored["decoder/layer_0/attention/linear_1/weight"]
    assert np.array_equal(tensors["model.decoder.layers.0.encoder_attn.v_proj.weight"], cross[64:])
    assert "model.encoder.layers.0.self_attn.k_proj.bias" not in tensors
    assert "model.decoder.layers.0.encoder_attn.v_proj.bias" in tensors
    assert not any(name.startswith("model.encoder") and "encoder_attn" in name for name in tensors)
    weights = sum(value.size for value in stored.values() if value.ndim)
    assert sum(value.size for value in tensors.values()) == weights - 3 * 64
    config = found.config
    assert config is not None and (config["d_model"], config["encoder_layers"], config["decoder_ffn_dim"]) == (
        64,
        1,
        256,
    )
    assert config["tie_word_embeddings"] and not resolve({n: v.shape for n, v in tensors.items()}, config).unknown


def test_tables_and_biases_that_are_stored_once() -> None:
    """T5: the embedding under its first name of three, the first layer's bias of distances for all."""
    rng = np.random.default_rng(0)
    stored = {
        "decoder/embeddings/weight": rng.normal(size=(20, 8)).astype(np.float32),
        "decoder/layer_norm/gamma": rng.normal(size=8).astype(np.float32),
        "encoder/layer_norm/gamma": rng.normal(size=8).astype(np.float32),
        "encoder/pre_norm": np.array(1, np.int8),
        "encoder/num_heads": np.array(2, np.int16),
        "decoder/num_heads": np.array(2, np.int16),
        "decoder/scale_outputs": np.array(0.3, np.float32),
    }
    aliases = {"encoder/embeddings_0/weight": "decoder/embeddings/weight"} | ALIASES
    for stack in ("decoder", "encoder"):
        for layer in (0, 1):
            at = f"{stack}/layer_{layer}/self_attention"
            stored[f"{at}/linear_0/weight"] = rng.normal(size=(24, 8)).astype(np.float32)
            if layer:
                aliases[f"{at}/relative_attention_bias"] = f"{stack}/layer_0/self_attention/relative_attention_bias"
            else:
                stored[f"{at}/relative_attention_bias"] = rng.normal(size=(4, 2)).astype(np.float32)
    tensors = arrays(read(written("TransformerSpec", stored, aliases)))
    names = {
        f"{s}.block.{layer}.layer.0.SelfAttention.{p}.weight"
        for s in ("encoder", "decoder")
        for layer in (0, 1)
        for p in "qkv"
    }
    names |= {f"{s}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for s in ("encoder", "decoder")}
    assert tensors.keys() == names | {
        "shared.weight",
        "encoder.final_layer_norm.weight",
        "decoder.final_layer_norm.weight",
    }
    assert np.array_equal(tensors["shared.weight"], stored["decoder/embeddings/weight"])


def test_equal_vectors_that_are_stored_once_are_each_there() -> None:
    """The converter makes an alias of every variable that equals another: fresh norms, for example."""
    stored = of_llama({n: np.asarray(v, np.float32) for n, v in zoo.llama(1, layers=1).tensors.items()}, 4, 2)
    same = "decoder/layer_0/self_attention/layer_norm/gamma"
    stored[same] = stored.pop("decoder/layer_0/ffn/layer_norm/gamma")
    tensors = arrays(read(written("TransformerDecoderSpec", stored, {"decoder/layer_0/ffn/layer_norm/gamma": same})))
    norms = [tensors[f"model.layers.0.{name}.weight"] for name in ("input_layernorm", "post_attention_layernorm")]
    assert np.array_equal(*norms)


def test_layers_without_a_table_keep_their_names() -> None:
    stored = {
        "decoder/layer_3/input_layer_norm/gamma": np.ones(4, np.float32),
        "decoder/x": np.ones((2, 2), np.float32),
    }
    contents = read(written("TransformerDecoderSpec", stored))
    assert (
        arrays(contents).keys() == {"decoder.layer.3.input_layer_norm.gamma", "decoder.x"} and contents.config is None
    )


GOOD = written("WhisperSpec", whisper(), {"decoder/projection/weight": "decoder/embeddings/weight"})


@pytest.mark.parametrize("length", [2, 7, 20, 500, len(GOOD) - 10])
def test_a_file_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match="ends inside"):
        read(GOOD[:length])


def _with(name: str, value: NDArray[np.generic], aliases: dict[str, str] | None = None) -> bytes:
    stored = of_llama({n: np.asarray(v, np.float32) for n, v in zoo.llama(1, layers=1).tensors.items()}, 4, 2)
    return written("TransformerDecoderSpec", stored | {name: value}, aliases)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD + b"\0", "1 bytes after its end"),
        (struct.pack("<I", 3) + GOOD[4:], "of version 3; versions 4 to 6 are read"),
        (GOOD[:22] + struct.pack("<I", 1 << 31) + GOOD[26:], "announces 2,147,483,648 variables"),
        (written("WhisperSpec", {}, {"a": "b"}), "calls 'a' another name of 'b', which it is not"),
        (_with("decoder/layer_0/self_attention/linear_0/weight", np.ones((7, 64), np.float32)), "of 7 rows"),
        (_with("decoder/layer_0/ffn/linear_0/weight", np.ones((7, 64), np.int32)), r"not decoded \(I32\)"),
        (_with("decoder/layer_0/ffn/linear_0/weight", np.ones((7, 64), np.int8)), r"not decoded \(I8\)"),
        (
            _with("decoder/layer.0/x", np.ones(2, np.float32), {"decoder/layer_0/x": "decoder/layer.0/x"}),
            "two variables",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said) as raised:
        read(data)
    assert raised.value.next_step


def test_a_scale_that_does_not_fit_is_refused() -> None:
    stored = in_int8(of_llama({n: np.asarray(v, np.float32) for n, v in zoo.llama(1, layers=1).tensors.items()}, 4, 2))
    name = "decoder/layer_0/ffn/linear_0/weight_scale"
    with pytest.raises(ModelError, match="a scale for 'decoder/layer_0/ffn/linear_0/weight' that does not fit it"):
        read(written("TransformerDecoderSpec", stored | {name: stored[name][:-1]}))
