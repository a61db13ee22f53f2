"""Models in folders and files: every layout gives the same tensors, every hostile one a sentence."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from provindex.common.errors import ModelError, ModelNotFoundError
from provindex.formats.tensors import tensor_from_array
from provindex.models.source import Model, open_model
from provindex.report.words import texts

RNG = np.random.default_rng(0)
WEIGHTS = {
    "embed.weight": RNG.standard_normal((40, 8)).astype(np.float16),
    "layers.0.q.weight": RNG.standard_normal((8, 8)).astype(np.float32),
    "layers.1.q.weight": RNG.standard_normal((8, 8)).astype(np.float32),
    "norm.weight": RNG.standard_normal(8).astype(np.float32),
    "ids": np.arange(10, dtype=np.int64),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Files by name: bytes as they are, dicts of arrays as safetensors, other dicts as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict) and name.endswith(".safetensors"):
            content = save(content)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def sharded(weights: dict[str, np.ndarray[Any, Any]] = WEIGHTS) -> dict[str, Any]:
    names = list(weights)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    index = {"metadata": {"total_size": 1}, "weight_map": {n: part for part, ns in parts.items() for n in ns}}
    files = {part: {name: weights[name] for name in ns} for part, ns in parts.items()}
    return {**files, "model.safetensors.index.json": index, "config.json": {"model_type": "toy"}}


def in_cache(root: Path, files: dict[str, Any], shared: bool = False) -> Path:
    """A snapshot as the Hub cache stores it: names are links to blobs, and those to blobs of the whole cache or not."""
    repo = root / "hub" / "models--org--toy"
    blobs = write(repo / "blobs", {})
    common = write(root / "hub" / "blobs", {})
    snapshot = write(repo / "snapshots" / COMMIT, {})
    for number, (name, content) in enumerate(files.items()):
        write(snapshot, {name: content})
        (snapshot / name).rename((common if shared else blobs) / str(number))
        if shared:
            (blobs / str(number)).symlink_to(Path("../../blobs") / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def values(model: Model) -> dict[str, Any]:
    return {
        name: model.tensors[name].flat().reshape(model.tensors[name].shape).tolist() for name in sorted(model.tensors)
    }


EXPECTED = {name: WEIGHTS[name].astype(np.float32).tolist() for name in sorted(WEIGHTS)}
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "one file": lambda root: write(root / "m", {"model.safetensors": WEIGHTS}),
    "another name": lambda root: write(root / "m", {"weights.safetensors": WEIGHTS}),
    "a file itself": lambda root: write(root / "m", {"model.safetensors": WEIGHTS}) / "model.safetensors",
    "sharded": lambda root: write(root / "m", sharded()),
    "shards without index": lambda root: write(
        root / "m", {n: c for n, c in sharded().items() if n.endswith(".safetensors")}
    ),
    "consolidated only": lambda root: write(root / "m", {"consolidated.safetensors": WEIGHTS}),
    "consolidated too": lambda root: write(root / "m", {**sharded(), "consolidated.safetensors": WEIGHTS}),
    "adapter too": lambda root: write(
        root / "m", {"model.safetensors": WEIGHTS, "adapter_model.safetensors": {"lora": WEIGHTS["ids"]}}
    ),
    "one file and shards": lambda root: write(root / "m", {**sharded(), "model.safetensors": WEIGHTS}),
    "pickle too": lambda root: write(root / "m", {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"\x80\x02."}),
    "cache": lambda root: in_cache(root, {"model.safetensors": WEIGHTS}),
    "sharded in the cache": lambda root: in_cache(root, sharded()),
    "blobs shared in the cache": lambda root: in_cache(root, sharded(), shared=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(layout: str, tmp_path: Path) -> None:
    model = open_model(str(LAYOUTS[layout](tmp_path)))
    assert values(model) == EXPECTED
    assert {name: (t.dtype, t.shape, t.nbytes) for name, t in model.tensors.items()} == {
        name: ({"f2": "F16", "f4": "F32", "i8": "I64"}[a.dtype.str[1:]], a.shape, a.nbytes)
        for name, a in WEIGHTS.items()
    }


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    files = {"model.safetensors": WEIGHTS, "adapter_model.safetensors": {"lora": WEIGHTS["ids"]}}
    assert texts(open_model(str(write(tmp_path, files))).warnings) == (
        "adapter_model.safetensors: not read (a safetensors file)",
    )
    adapter = write(tmp_path / "a", {"adapter_model.safetensors": {"lora": WEIGHTS["ids"]}})
    assert "only adapter weights" in texts(open_model(str(adapter)).warnings)[0]
    shard = write(tmp_path / "s", sharded()) / "model-00001-of-00002.safetensors"
    assert "one shard of 2" in texts(open_model(str(shard)).warnings)[0]


def test_identity_files_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "---",
        "language: en",
        "license: 'mit'  # free",
        "base_model:",
        "- org/a",
        '- "org/b"',
        "tags: [x]",
        "---",
        "# T",
    ]
    card = "\r\n".join(lines).encode()
    extra = {"README.md": card, "tokenizer.json": {}, "vocab.txt": b"a\n", "config.json": {"model_type": "toy"}}
    folder = write(tmp_path / "toy", {"model.safetensors": WEIGHTS, **extra})
    model = open_model(str(folder))
    assert (model.model_id, model.revision, model.config, model.config_reason) == (
        "toy",
        None,
        {"model_type": "toy"},
        None,
    )
    assert (model.license, model.base_models) == ("mit", ("org/a", "org/b"))
    assert list(model.tokenizer_files) == ["tokenizer.json", "vocab.txt"]
    assert [(f.name, f.size) for f in model.files] == [
        ("model.safetensors", (folder / "model.safetensors").stat().st_size)
    ]
    monkeypatch.chdir(folder)
    assert open_model(".").model_id == "toy"
    single = open_model("model.safetensors")
    assert (single.model_id, single.config) == ("model.safetensors", {"model_type": "toy"})


def test_a_snapshot_in_the_cache_has_its_id_and_commit(tmp_path: Path) -> None:
    snapshot = in_cache(tmp_path, {**sharded(), "tokenizer.json": {}})
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    for path in (snapshot, link):
        model = open_model(str(path))
        assert (model.model_id, model.revision, model.config) == ("org/toy", COMMIT, {"model_type": "toy"})
        assert "tokenizer.json" in model.tokenizer_files
    shard = open_model(str(snapshot / "model-00001-of-00002.safetensors"))
    assert (shard.model_id, shard.revision, shard.config) == ("org/toy", COMMIT, {"model_type": "toy"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\nlicense: apache-2.0\nbase_model: org/a\n---\n", ("apache-2.0", ("org/a",))),
        ("---\nbase_model: [org/a, 'org/b']\n---", (None, ("org/a", "org/b"))),
        ("---\nlicense:\n- mit\n- other\n---", ("mit", ())),
        ("---\nlicense: mit\n", (None, ())),
        ("# no front matter\nlicense: mit\n", (None, ())),
        ("---\nx:\n  license: nested\nlicense_name: y\n---\n", (None, ())),
        ("", (None, ())),
        ("---\nlicense: " + "x" * 10_000 + "\n---\n", ("x" * 200, ())),
    ],
)  # fmt: skip
def test_card_front_matter(text: str, said: tuple[Any, Any], tmp_path: Path) -> None:
    model = open_model(str(write(tmp_path, {"model.safetensors": WEIGHTS, "README.md": text.encode()})))
    assert (model.license, model.base_models) == said


def test_reading_parts_of_a_tensor(tmp_path: Path) -> None:
    model = open_model(str(write(tmp_path, {"model.safetensors": WEIGHTS})))
    tensor, array = model.tensors["embed.weight"], WEIGHTS["embed.weight"].astype(np.float32)
    flat = array.reshape(-1)
    assert tensor.size == 320 and np.array_equal(tensor.flat(10, 20), flat[10:20])
    assert np.array_equal(tensor.strided(7, 40), flat[::7][:40]) and tensor.strided(7, 0).size == 0
    assert np.array_equal(tensor.rows([3, 0, 39, 3]), array[[3, 0, 39, 3]])
    assert np.array_equal(tensor.rows(np.array([], np.int64)), array[:0])
    assert [chunk.size for chunk in tensor.chunks(100)] == [100, 100, 100, 20]
    assert np.array_equal(np.concatenate(list(tensor.chunks(100))), flat)
    assert bytes(tensor.raw(2, 6)) == WEIGHTS["embed.weight"].tobytes()[2:6]
    for beyond in (lambda: tensor.rows([40]), lambda: tensor.rows([-1]), lambda: tensor.strided(8, 41)):
        with pytest.raises(IndexError):
            beyond()


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    weights = {
        "none": np.zeros((0, 4), np.float32),
        "wide": np.zeros((3, 0), np.float32),
        "one": np.array(7, np.float32),
    }
    tensors = open_model(str(write(tmp_path, {"model.safetensors": weights}))).tensors
    assert list(tensors["none"].chunks()) == [] and tensors["none"].rows([]).shape == (0, 0)
    assert tensors["wide"].rows([2, 0]).shape == (2, 0)
    assert tensors["one"].flat().tolist() == [7.0] and tensors["one"].size == 1


@pytest.mark.parametrize("code", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ">f4"])
def test_tensors_from_arrays(code: str) -> None:
    array = np.array([[1, 0, 1], [0, 1, 0]], code)
    tensor = tensor_from_array("w", array[:, ::2])
    assert tensor.flat().tolist() == [1, 1, 0, 0] and tensor.shape == (2, 2) and tensor.nbytes == 4 * array.itemsize


def test_a_format_without_decoder_opens_and_says_so_when_read(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    write(tmp_path, {"model.safetensors": len(header).to_bytes(8, "little") + header + b"\0"})
    tensor = open_model(str(tmp_path)).tensors["w"]
    with pytest.raises(ModelError, match="F4"):
        tensor.flat()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's maps in /proc")
def test_mappings_go_with_the_last_tensor(tmp_path: Path) -> None:
    def held() -> int:
        maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return maps + sum(
            str(fd.readlink()).startswith(str(tmp_path)) for fd in Path("/proc/self/fd").iterdir() if fd.exists()
        )

    model = open_model(str(write(tmp_path, sharded())))
    assert held() > 0
    del model
    assert held() == 0


def link_out(root: Path) -> Path:
    outside = write(root / "outside", {"secret.safetensors": WEIGHTS})
    folder = write(root / "m", {"config.json": {}})
    (folder / "model.safetensors").symlink_to(outside / "secret.safetensors")
    return folder


def pipe(root: Path) -> Path:
    folder = write(root / "m", {"model.safetensors": WEIGHTS})
    os.mkfifo(folder / "config.json")
    return folder


def without(name: str) -> dict[str, Any]:
    return {n: c for n, c in sharded().items() if n != name}


def remapped(**changes: str) -> dict[str, Any]:
    files = sharded()
    weight_map = {**files["model.safetensors.index.json"]["weight_map"], **changes}
    return {**files, "model.safetensors.index.json": {"weight_map": weight_map}}


def indexed(text: bytes) -> dict[str, Any]:
    return {**sharded(), "model.safetensors.index.json": text}


ONE = {"model.safetensors": WEIGHTS}
WHOLE = save(WEIGHTS)
SECOND = "model-00002-of-00002.safetensors"
# what is wrong, files, words of the sentence
HOSTILE: dict[str, tuple[Any, str]] = {
    "empty folder": ({}, "is empty"),
    "no weights": ({"config.json": {}}, "no weight file"),
    "pickle only": ({"pytorch_model.bin": b"x"}, "pytorch_model.bin is no torch checkpoint"),
    "broken gguf": ({"model-q4.gguf": b"GGUF"}, "ends inside its header"),
    "onnx only": ({"model.onnx": b"x"}, "ONNX"),
    "weights one folder down": ({"config.json": {}, "sub/model.safetensors": WEIGHTS}, "its folder sub has"),
    "truncated": ({"model.safetensors": WHOLE[:-1]}, "truncated"),
    "header cut": ({"model.safetensors": WHOLE[:40]}, "announces a header"),
    "empty file": ({"model.safetensors": b""}, "is empty"),
    "a text": ({"model.safetensors": b"the weights are elsewhere\n"}, "announces a header"),
    "a Git LFS pointer": ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "a Git LFS pointer"),
    "missing shard": (without(SECOND), f"lacks {SECOND}"),
    "missing shard, no index": ({SECOND: sharded()[SECOND]}, "1 of the 2 shards"),
    "path escape": (remapped(ids="../../etc/passwd.safetensors"), "no file inside the model"),
    "absolute path": (remapped(ids="/etc/passwd.safetensors"), "no file inside the model"),
    "backslashes": (remapped(ids="..\\..\\x.safetensors"), "no file inside the model"),
    "drive": (remapped(ids="C:x.safetensors"), "no file inside the model"),
    "shard that is no safetensors": (remapped(ids="pytorch_model.bin"), "no file inside the model"),
    "tensor in the index only": (remapped(ghost=SECOND), "lacks tensor 'ghost'"),
    "tensor in the file only": (
        indexed(json.dumps({"weight_map": {"ids": "model-00001-of-00002.safetensors"}}).encode()),
        "which the index does not list",
    ),
    "tensor in two files": ({"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS}, "in two files"),
    "index is no JSON": (indexed(b"{"), "bad model.safetensors.index.json"),
    "index is a list": (indexed(b"[]"), "bad model.safetensors.index.json"),
    "index without map": (indexed(b"{}"), "no weight_map"),
    "index of numbers": (indexed(b'{"weight_map":{"a":1}}'), "bad model.safetensors.index.json"),
    "index with a name twice": (indexed(b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}'), "twice"),
    "index nested": (indexed(b'{"a":' + b"[" * 3000), "bad model.safetensors.index.json"),
    "config is no JSON": ({**ONE, "config.json": b"model_type: bert"}, "it is not JSON"),
    "config is a list": ({**ONE, "config.json": b"[1]"}, "not a JSON object"),
    "config is binary": ({**ONE, "config.json": b"\xff\xfe\x00"}, "not UTF-8"),
    "config nested": ({**ONE, "config.json": b'{"a":' * 100_000}, "nested too deeply"),
    "config huge": ({**ONE, "config.json": b" " * (4 << 20) + b"{}"}, "larger than 4 MiB"),
    "config with an endless number": ({**ONE, "config.json": b'{"a":' + b"9" * 5000 + b"}"}, "not JSON"),
    "link out of the folder": (link_out, "a link to a place outside"),
    "a pipe": (pipe, "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_each_fault_is_one_sentence_with_a_next_step(name: str, tmp_path: Path) -> None:
    made, words = HOSTILE[name]
    folder = made(tmp_path) if callable(made) else write(tmp_path / "m", made)
    with pytest.raises(ModelError) as caught:
        open_model(str(folder))
    assert words in caught.value.message and "\n" not in caught.value.message and caught.value.next_step


def test_a_link_out_of_a_cached_snapshot_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"secret.safetensors": WEIGHTS})
    snapshot = in_cache(tmp_path, {"config.json": {}})
    (snapshot / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ModelError, match="outside"):
        open_model(str(snapshot))


@pytest.mark.parametrize("name", ["model.bin", "model.gguf", "model.onnx", "notes.txt"])
def test_a_file_that_is_no_safetensors(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: b"something else"})
    with pytest.raises(ModelError) as caught:
        open_model(str(tmp_path / name))
    assert name in caught.value.message and caught.value.next_step


@pytest.mark.parametrize(
    "reference",
    ["", "nothing", "./nothing", "a/b/c", "../x/y", "/nothing/here", "a\0b", "x" * 5000, "o/" + "x" * 300, "a/b@"],
)
def test_a_reference_that_names_nothing(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "empty", {}))
    with pytest.raises(ModelNotFoundError) as caught:
        open_model(reference)
    assert caught.value.next_step and len(caught.value.message) < 400


@pytest.fixture
def not_root() -> Iterator[None]:
    """Root may read everything: be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    if user == 0:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work otherwise there")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "."])
def test_no_permission(name: str, not_root: None) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write(Path(root) / "m", {**ONE, "config.json": {}})
        (folder / name).chmod(0)
        with pytest.raises(ModelError, match="permission denied") as caught:
            open_model(str(folder))
        (folder / name).chmod(0o700)
    assert caught.value.next_step
