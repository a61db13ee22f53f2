"""Refusals that mislead nobody: what the file is, where the weights are, which tensor and which shard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub
from zoo import container

from provindex.common.errors import ModelError, NetworkError, UnreadFormatError
from provindex.models.listing import expand
from provindex.models.source import open_model

W = {"layers.0.w": np.arange(12, dtype=np.float32).reshape(3, 4), "norm": np.ones(4, np.float32)}
APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)  # what macOS writes beside files on other disks


def weights(path: Path, names: tuple[str, ...] = tuple(W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    container.save(path, {name: W[name] for name in names}, dict.fromkeys(names, "F32"), list(names))
    return path


def test_notes_of_macos_are_no_weights(tmp_path: Path) -> None:
    weights(tmp_path / "a.safetensors")
    for name in ("._a.safetensors", "._model.safetensors", "._model.safetensors.index.json", "._x.gguf"):
        (tmp_path / name).write_bytes(APPLE)
    model = open_model(tmp_path)
    assert model.tensors.keys() == W.keys() and not model.warnings[1:], "only that there is no config"
    with pytest.raises(UnreadFormatError, match=r"a file that macOS keeps beside another") as caught:
        open_model(tmp_path / "._a.safetensors")
    assert "without ._" in (caught.value.next_step or "")


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("0_Transformer/model.safetensors", "0_Transformer/model.safetensors"),
        ("0_Transformer/pytorch_model.bin", "0_Transformer/pytorch_model.bin"),
        ("gguf/x.gguf", "gguf/x.gguf"),
        ("a/b/model-00001-of-00002.safetensors", "a/b"),
    ],
)
def test_weights_further_down_are_named_with_their_path(file: str, named: str, tmp_path: Path) -> None:
    weights(tmp_path / file)
    if named == "a/b":
        weights(tmp_path / file.replace("00001-of", "00002-of"))
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match="has no weights of its own") as caught:
        open_model(tmp_path)
    assert caught.value.next_step == f"Name {tmp_path}/{named}."


def cached(root: Path, *commits: str, main: str = "") -> Path:
    place = root / "models--org--m"
    for commit in commits:
        weights(place / "snapshots" / commit / "model.safetensors")
    if main:
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(main)
    return place


def test_a_repository_s_folder_of_a_hub_cache_is_read(tmp_path: Path) -> None:
    one, two = "a" * 40, "b" * 40
    model = open_model(cached(tmp_path / "said", one, two, main=two))
    assert (model.model_id, model.revision) == ("org/m", two) and model.tensors.keys() == W.keys()
    assert open_model(cached(tmp_path / "only", one)).revision == one
    several = cached(tmp_path / "several", one, two)
    with pytest.raises(ModelError, match="does not say which of its commits is main") as caught:
        open_model(several)
    assert str(several / "snapshots" / one) in (caught.value.next_step or "")
    (tmp_path / "none/models--org--m/snapshots").mkdir(parents=True)
    with pytest.raises(ModelError, match="without a snapshot"):
        open_model(tmp_path / "none/models--org--m")
    assert list(expand([str(several)])) == [str(several)]


def test_a_hub_cache_without_refs_names_its_commits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from provindex.hub import client

    commit = hub.publish("org/refless", {"config.json": b"{}", "model.safetensors": _bytes()})
    open_model("org/refless")
    storage = client._storage("org/refless")
    (storage / "refs" / "main").unlink()
    with pytest.raises(NetworkError, match="does not say which commit of org/refless is main") as caught:
        open_model("org/refless", offline=True)
    assert f"org/refless@{commit}" in (caught.value.next_step or "")
    assert open_model(f"org/refless@{commit}", offline=True).tensors.keys() == W.keys()


def _bytes() -> bytes:
    from safetensors.numpy import save

    return save(W)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ({**dict.fromkeys(W, 1), "lm_head.weight": 1}, "lacks tensor 'lm_head.weight', which the index says it has"),
        ({"norm": 1}, "has tensor 'layers.0.w', which the index does not list there"),
        ({"norm": 1, "layers.0.w": 2, "x": 2, "y": 2}, "has tensor 'layers.0.w'"),
    ],
)
def test_an_index_that_is_wrong_names_the_tensor_and_the_shard(
    listed: dict[str, int], said: str, tmp_path: Path
) -> None:
    weights(tmp_path / "model-00001-of-00001.safetensors")
    names = {1: "model-00001-of-00001.safetensors", 2: "other.safetensors"}
    container.save(tmp_path / names[2], {"x": W["norm"]}, {"x": "F32"}, ["x"])
    text = json.dumps({"weight_map": {tensor: names[shard] for tensor, shard in listed.items()}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=said) as caught:
        open_model(tmp_path)
    assert "model-00001-of-00001.safetensors" in caught.value.message
    assert "the index is wrong: move it out of the folder" in (caught.value.next_step or "")


@pytest.mark.parametrize(
    ("name", "content", "what", "way_out"),
    [
        ("ggml-base.bin", b"lmgg" + bytes(60), "a GGML file", "openai/whisper-base"),
        ("params_shard_0.bin", bytes(64), "a part of an MLC model", "Name the model that it was made from."),
        ("ndarray-cache.json", b"{}", "a part of an MLC model", "Name the model that it was made from."),
        ("openvino_language_model.bin", bytes(64), "a part of an OpenVINO model", "Name the model"),
        ("m.xml", b'<?xml version="1.0"?>\n<net name="m" version="11">', "a part of an OpenVINO model", "Name the"),
        ("model.ckpt-1000.index", bytes(64), "a part of a TensorFlow checkpoint", "safetensors"),
        ("variables.data-00001-of-00002", bytes(64), "a part of a TensorFlow checkpoint", "safetensors"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", b"PK\3\4", "a DeepSpeed checkpoint", "zero_to_fp32.py"),
        ("bf16_zero_pp_rank_3_mp_rank_00_model_states.pt", b"PK\3\4", "a DeepSpeed checkpoint", "zero_to_fp32.py"),
        ("flax_model-00001-of-00002.msgpack", b"\x82", "a Flax msgpack file", "safetensors"),
        ("m.nemo", bytes(257) + b"ustar\0" + bytes(300), "a NeMo archive", "tar -xf"),
        ("m.llamafile", b"MZqFpD='\n" + bytes(60), "a llamafile", "unzip"),
        ("__0_0.distcp", b"PK\3\4", "a distributed torch checkpoint", "dcp_to_torch"),
        ("rust_model.ot", b"PK\3\4", "a LibTorch archive", "safetensors"),
        ("m.uqff", b"\x40\0\0\0\0\0\0\0{" + bytes(60), "a UQFF file", "Name the model"),
    ],
)
def test_other_formats_are_named_with_the_way_out(
    name: str, content: bytes, what: str, way_out: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for reference in (tmp_path / name, tmp_path):
        if reference == tmp_path and name == "m.xml":
            continue  # a folder with an XML file is no model by its names
        with pytest.raises(UnreadFormatError, match=what) as caught:
            open_model(reference)
        assert name in caught.value.message and way_out in (caught.value.next_step or "")
