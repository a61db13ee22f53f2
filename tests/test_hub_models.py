"""Models from a Hub on 127.0.0.1 with the real client: fetched, cached, offline, refused, cut, hostile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub
from hub_server.xet import XetHub
from safetensors.numpy import save

from provindex.common.errors import ModelError, ModelNotFoundError, NetworkError
from provindex.models.source import Model, open_model
from provindex.report.words import texts

RNG = np.random.default_rng(1)
WEIGHTS = {f"layers.{i}.w": RNG.standard_normal((64, 16)).astype(np.float32) for i in range(6)}
OTHER = {name: array + 1 for name, array in WEIGHTS.items()}
CARD = b"---\nlicense: mit\nbase_model: org/parent\n---\n"
TOKEN = "hf_contrib"  # of a user who is let in nowhere


def files(weights: dict[str, Any] = WEIGHTS) -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "toy"}',
        "tokenizer.json": b"{}",
        "README.md": CARD,
        "model.safetensors": save(weights),
    }


def shards() -> dict[str, bytes]:
    names = list(WEIGHTS)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    index = json.dumps({"weight_map": {n: part for part, ns in parts.items() for n in ns}}).encode()
    whole = files()
    del whole["model.safetensors"]
    saved = {part: save({n: WEIGHTS[n] for n in ns}) for part, ns in parts.items()}
    return {**whole, **saved, "model.safetensors.index.json": index}


def first(model: Model) -> float:
    return float(model.tensors["layers.0.w"].flat(0, 1)[0])


def fetched(hub: Hub) -> set[str]:
    """File names whose bytes went over the wire, by the names of resolve requests."""
    return {path.split("/resolve/")[1].split("/", 1)[1] for method, path, *_ in hub.log if "/resolve/" in path}


def forget(repo: str) -> None:
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "hub" / ("models--" + repo.replace("/", "--")), ignore_errors=True)


def apart(reference: str, **environment: str) -> dict[str, Any]:
    """Open a model in a process of its own: the client reads its environment once."""
    program = f"""
import json, sys
from provindex.common.errors import ProvindexError
from provindex.models.source import open_model
from provindex.report.words import texts
try:
    model = open_model({reference!r})
    said = dict(revision=model.revision, warnings=texts(model.warnings), names=sorted(model.tensors))
except ProvindexError as error:
    said = dict(error=type(error).__name__, message=error.message, next_step=error.next_step)
print(json.dumps(said))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def test_only_what_a_fingerprint_needs_is_fetched(hub: Hub) -> None:
    unwanted = dict.fromkeys(("pytorch_model.bin", "modeling_toy.py", "model.onnx", "consolidated.safetensors"), b"x")
    commit = hub.publish("org/public", {**files(), **unwanted})
    model = open_model("org/public")
    assert fetched(hub) == set(files())
    assert (model.model_id, model.revision, model.config) == ("org/public", commit, {"model_type": "toy"})
    assert (model.license, model.base_models) == ("mit", ("org/parent",))
    assert {warning.subject for warning in model.warnings} == unwanted.keys() - {"modeling_toy.py"}
    assert list(model.tokenizer_files) == ["tokenizer.json"]


def test_sharded_single_cached_local_and_remote_are_identical(hub: Hub, tmp_path: Path) -> None:
    hub.publish("org/whole", files())
    hub.publish("org/parts", {**shards(), "consolidated.safetensors": b"never fetched"})
    for name, content in files().items():
        (tmp_path / name).write_bytes(content)
    references = (
        "org/whole",
        "org/whole",
        "org/parts",
        "org/parts",
        str(tmp_path),
        str(tmp_path / "model.safetensors"),
    )
    for reference in references:
        model = open_model(reference)
        assert model.tensors.keys() == WEIGHTS.keys()
        for name, tensor in model.tensors.items():
            assert bytes(tensor.raw()) == WEIGHTS[name].tobytes()
    assert "consolidated.safetensors" not in fetched(hub)


def test_revisions_by_branch_tag_and_commit(hub: Hub) -> None:
    old = hub.publish("org/moving", files(), tag="v1")
    new = hub.publish("org/moving", files(OTHER), tag="v2")
    opened = {name: open_model(f"org/moving@{name}") for name in ("main", "v1", "v2", old, new)}
    assert {name: model.revision for name, model in opened.items()} == {
        "main": new, "v1": old, "v2": new, old: old, new: new,
    }  # fmt: skip
    assert first(opened["v2"]) == pytest.approx(first(opened["v1"]) + 1)


def test_the_cache_answers_first_and_says_so(hub: Hub) -> None:
    commit = hub.publish("org/again", files())
    open_model("org/again")
    hub.log.clear()
    assert texts(open_model("org/again").warnings) == (
        f"read from the Hub cache at commit {commit}, the Hub was not asked whether it has a newer one",
    )
    assert texts(open_model(f"org/again@{commit}").warnings) == () and hub.log == []


def test_weights_that_another_program_cached_are_completed(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hub.publish("org/partly", files())
    hf_hub_download("org/partly", "model.safetensors")
    model = open_model("org/partly")
    assert model.config == {"model_type": "toy"} and list(model.tokenizer_files) == ["tokenizer.json"]
    forget("org/partly")
    hf_hub_download("org/partly", "model.safetensors")
    hub.faults.append({"match": "/api/models/org/partly", "times": 9, "status": 503})
    model = open_model("org/partly")
    assert (
        model.tensors.keys() == WEIGHTS.keys()
        and "(503)" in texts(model.warnings)[0]
        and "cache" in texts(model.warnings)[0]
    )


def test_half_a_model_in_the_cache_is_no_model(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hub.publish("org/half", shards())
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        hf_hub_download("org/half", name)
    assert "not completely" in apart("org/half", HF_HUB_OFFLINE="1")["message"]
    assert open_model("org/half").tensors.keys() == WEIGHTS.keys()


def test_offline_and_with_the_server_gone(hub: Hub) -> None:
    commit = hub.publish("org/kept", shards())
    open_model("org/kept")
    hub.log.clear()
    offline = apart("org/kept", HF_HUB_OFFLINE="1")
    assert offline["names"] == sorted(WEIGHTS) and offline["revision"] == commit
    assert offline["warnings"] == [f"offline: read from the Hub cache at commit {commit}, the Hub was not asked"]
    assert texts(open_model("org/kept", offline=True).warnings) == tuple(offline["warnings"])
    assert apart("org/kept", HF_ENDPOINT=NOWHERE)["names"] == sorted(WEIGHTS)
    assert hub.log == []


def test_offline_and_not_cached(hub: Hub) -> None:
    hub.publish("org/unseen", files())
    with pytest.raises(NetworkError, match="not in the Hub cache") as caught:
        open_model("org/unseen", offline=True)
    assert caught.value.next_step and hub.log == []
    assert apart("org/unseen", HF_HUB_OFFLINE="1")["message"] == caught.value.message


def test_nobody_listens() -> None:
    said = apart("org/anything", HF_ENDPOINT=NOWHERE)
    assert said["error"] == "NetworkError" and "could not be reached" in said["message"] and said["stderr"] == ""


def test_private_gated_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("org/private", files(), private=True)
    hub.publish("org/gated", files(), gated=True)
    hub.publish("org/there", files())
    for token in (None, TOKEN):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        for reference, kind, words in (
            ("org/private", ModelNotFoundError, "or it is private"),
            ("org/absent", ModelNotFoundError, "has no model org/absent"),
            ("org/gated", NetworkError, "is gated"),
            ("org/there@nope", ModelNotFoundError, "no such revision"),
        ):
            with pytest.raises(kind, match=words) as caught:
                open_model(reference)
            assert caught.value.next_step and "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_admin")
    assert open_model("org/private").tensors.keys() == WEIGHTS.keys()
    monkeypatch.setenv("HF_TOKEN", "hf_expired_secret")
    with pytest.raises(NetworkError, match="did not accept the access token") as refused:
        open_model("org/never-seen")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "refuses access"),
        (429, "slow down"),
        (500, "fault of its own"),
        (503, "fault of its own"),
        (418, "answered 418"),
    ],
)
def test_what_the_hub_answers(status: int, words: str, hub: Hub) -> None:
    hub.publish("org/faulty", files())
    hub.faults.append({"match": "/api/models/org/faulty", "times": 99, "status": status})
    with pytest.raises(NetworkError, match=words) as caught:
        open_model("org/faulty")
    assert "org/faulty" in caught.value.message and caught.value.next_step


def test_a_cut_download_is_taken_up_again(hub: Hub) -> None:
    hub.publish("org/cut", files())
    hub.faults.append({"match": "/_lfs/", "times": 1, "cut": 1000})
    assert first(open_model("org/cut")) == WEIGHTS["layers.0.w"][0, 0]


def test_a_download_that_is_always_cut(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.publish("org/severed", files())
    hub.faults.append({"match": "/_lfs/", "times": 99, "cut": 1000})
    with pytest.raises(NetworkError, match="was cut") as caught:
        open_model("org/severed")
    assert "again" in (caught.value.next_step or "") and capfd.readouterr() == ("", "")
    hub.faults.clear()
    assert first(open_model("org/severed")) == WEIGHTS["layers.0.w"][0, 0]


HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "escape": (
        {"model.safetensors.index.json": b'{"weight_map":{"a":"../../x.safetensors"}}'},
        "no file inside the model",
    ),
    "absolute": ({"model.safetensors.index.json": b'{"weight_map":{"a":"/etc/x.safetensors"}}'}, "no file inside"),
    "no such shard": ({"model.safetensors.index.json": b'{"weight_map":{"a":"x.safetensors"}}'}, "lacks x.safetensors"),
    "keras only": ({"tf_model.h5": b"x"}, "Keras HDF5"),
    "no checkpoint": ({"pytorch_model.bin": b"x"}, "is no torch checkpoint"),
    "nothing": ({"notes.txt": b"x"}, "no weight file"),
    "huge config": ({**files(), "config.json": b" " * ((4 << 20) + 1)}, "which no such file needs"),
    "broken weights": ({**files(), "model.safetensors": save(WEIGHTS)[:-1]}, "truncated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_repositories(name: str, hub: Hub) -> None:
    content, words = HOSTILE[name]
    repo = "org/hostile-" + name.replace(" ", "-")
    hub.publish(repo, {"config.json": b"{}", **content})
    with pytest.raises(ModelError) as caught:
        open_model(repo)
    assert words in caught.value.message and caught.value.next_step
    assert not any(path.endswith(".h5") for _, path, *_ in hub.log)


def test_a_checkpoint_is_fetched_as_data_where_there_is_nothing_better(hub: Hub) -> None:
    checkpoint = (Path(__file__).parent / "data" / "torch" / "zip.pt").read_bytes()
    unwanted = dict.fromkeys(("training_args.bin", "optimizer.pt", "modeling_toy.py", "model.onnx"), b"x")
    hub.publish("org/old", {"config.json": b"{}", "pytorch_model.bin": checkpoint, **unwanted})
    assert open_model("org/old").tensors["table"].shape == (4, 3)
    assert fetched(hub) == {"config.json", "pytorch_model.bin"}
    hub.log.clear()
    assert open_model("org/old").tensors["table"].shape == (4, 3)
    assert fetched(hub) == set()


def test_glob_characters_in_shard_names_are_plain(hub: Hub) -> None:
    index = json.dumps({"weight_map": dict.fromkeys(WEIGHTS, "model[1].safetensors")}).encode()
    content = {**files(), "model[1].safetensors": save(WEIGHTS), "model.safetensors.index.json": index}
    del content["model.safetensors"]
    hub.publish("org/brackets", content)
    assert open_model("org/brackets").tensors.keys() == WEIGHTS.keys()


def test_the_client_is_not_loaded_for_local_models(tmp_path: Path) -> None:
    for name, content in files().items():
        (tmp_path / name).write_bytes(content)
    program = (
        "import sys; from provindex.models.source import open_model; open_model(sys.argv[1]);"
        "sys.exit(any(m in sys.modules for m in ('huggingface_hub', 'safetensors', 'datasets', 'yaml')))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60).returncode == 0


def test_a_model_that_comes_by_xet(tmp_path: Path) -> None:
    """The client's default transport, which keeps blobs elsewhere in the cache: fetched, then offline."""
    (tmp_path / "model.safetensors").write_bytes(files()["model.safetensors"])
    upload = f"""
from huggingface_hub import HfApi
api = HfApi(token="hf_admin")
api.create_repo("org/xet")
name = "model.safetensors"
api.upload_file(path_or_fileobj={str(tmp_path / "model.safetensors")!r}, path_in_repo=name, repo_id="org/xet")
"""
    with XetHub(tmp_path / "hub").run() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "0"}
        subprocess.run([sys.executable, "-c", upload], check=True, timeout=60, env={**os.environ, **environment})
        fetched_once = apart("org/xet", **environment)
        assert fetched_once["names"] == sorted(WEIGHTS) and any(
            "/v1/reconstructions/" in path for _, path, *_ in hub.log
        )
    assert apart("org/xet", HF_HUB_OFFLINE="1", **environment)["names"] == sorted(WEIGHTS)
