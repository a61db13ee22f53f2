"""The registry of formats: one table decides what a file is, who reads it, and what a refusal says."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import run
from hub_server import Hub
from safetensors.numpy import save

from build_index import formats as page
from provindex.common.errors import ModelError, UnreadFormatError
from provindex.formats import folder, registry
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.registry import FORMATS, Format, Magic, Refusal
from provindex.formats.tensors import Contents, tensor_from_array
from provindex.models.listing import expand
from provindex.models.source import open_model

TORCH_FILES = Path(__file__).parent / "data" / "torch"
WEIGHTS = {"layers.0.w": np.arange(12, dtype=np.float32).reshape(3, 4), "norm": np.ones(4, np.float32)}
REFUSED = [(row, row.read) for row in FORMATS if isinstance(row.read, Refusal)]
READ_MAGIC = [magic for row in FORMATS if not isinstance(row.read, Refusal) for magic in row.magic]
BY_SUFFIX = [(row, refusal, f"model{suffix}") for row, refusal in REFUSED for suffix in row.suffixes]
BY_SUFFIX += [(row, refusal, name.replace("*", "1")) for row, refusal in REFUSED for name in row.names]
BY_MAGIC = [(row, refusal, magic) for row, refusal in REFUSED for magic in row.magic if magic not in READ_MAGIC]


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def begun(magic: Magic) -> bytes:
    """A file with a signature, and zeros elsewhere."""
    return bytes(magic.offset) + magic.content + bytes(600)


def check_weights(path: Path) -> None:
    """Opening a path gives WEIGHTS."""
    tensors = open_model(path).tensors
    assert tensors.keys() == WEIGHTS.keys()
    assert all(np.array_equal(tensors[name].flat(), WEIGHTS[name].reshape(-1)) for name in WEIGHTS)


# --- the table ---


def test_the_table_is_unambiguous() -> None:
    suffixes = [suffix for row in FORMATS for suffix in row.suffixes]
    assert len(set(suffixes)) == len(suffixes) and all(suffix == suffix.lower() for suffix in suffixes)
    assert len({row.name for row in FORMATS}) == len(FORMATS)
    for row in FORMATS:
        assert row.suffixes or row.magic or row.names, row.name
        assert all(m.offset + len(m.content) <= registry.BEGINNING and len(m.content) >= 3 for m in row.magic), row.name
        assert all(registry.by_name(f"model{suffix}".upper()) is row for suffix in row.suffixes)


def test_the_readme_shows_the_table_as_it_is() -> None:
    text = page.README.read_text(encoding="utf-8")
    assert page.renewed(text) == text, "python -m build_index.formats"
    with pytest.raises(ValueError, match="no <!-- formats:begin"):
        page.renewed("# no markers")


# --- refusals ---


@pytest.mark.parametrize(("row", "refusal", "name"), BY_SUFFIX, ids=[name for *_, name in BY_SUFFIX])
def test_a_refusal_by_name_says_what_it_is_and_the_way_out(
    row: Format, refusal: Refusal, name: str, tmp_path: Path
) -> None:
    path = put(tmp_path / "m" / name, b"something")
    for reference in (path,) if row.name == registry.NOTES else (path, path.parent):
        with pytest.raises(UnreadFormatError) as caught:
            open_model(reference)
        assert row.what in caught.value.message and refusal.why in caught.value.message
        assert path.name in caught.value.message and caught.value.next_step == refusal.way_out
    with pytest.raises(UnreadFormatError, match=row.what):
        folder.named_files(path.name, [path.name], "org/model")


@pytest.mark.parametrize(
    ("row", "refusal", "magic"), BY_MAGIC, ids=[f"{row.name} {magic.content!r}" for row, _, magic in BY_MAGIC]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "blob"])
def test_a_refusal_by_content_says_what_it_is(
    name: str, row: Format, refusal: Refusal, magic: Magic, tmp_path: Path
) -> None:
    with pytest.raises(UnreadFormatError) as caught:
        open_model(put(tmp_path / name, begun(magic)))
    first = next(other for other in FORMATS if magic in other.magic)
    assert first.what in caught.value.message and isinstance(first.read, Refusal)
    assert caught.value.next_step == first.read.way_out


def test_a_file_of_no_known_format_names_the_known_endings(tmp_path: Path) -> None:
    with pytest.raises(UnreadFormatError, match=r"of no format that is known") as caught:
        open_model(put(tmp_path / "weights.xyz", b"something else"))
    assert ".gguf" in (caught.value.next_step or "")


def test_a_zip_archive_of_another_kind_is_called_one(tmp_path: Path) -> None:
    with (tmp_path / "arrays.bin").open("wb") as file:
        np.savez(file, **WEIGHTS)
    with pytest.raises(ModelError, match="a zip archive, but not one of torch"):
        open_model(tmp_path / "arrays.bin")


def test_a_folder_is_refused_for_the_file_that_can_only_be_a_model(tmp_path: Path) -> None:
    for name in ("embeddings.npy", "tf_model.h5", "optimizer.pkl"):
        put(tmp_path / name, b"x")
    with pytest.raises(UnreadFormatError, match=r"tf_model\.h5 is a Keras HDF5 file"):
        open_model(tmp_path)


def test_a_refused_file_beside_is_not_chosen(tmp_path: Path) -> None:
    put(tmp_path / "openvino_model.bin", b"x")
    put(tmp_path / "model.bin", (TORCH_FILES / "zip.pt").read_bytes())
    assert [fact.name for fact in open_model(tmp_path).files] == ["model.bin"]


def test_the_command_refuses_with_status_2(tmp_path: Path) -> None:
    path = put(tmp_path / "tf_model.h5", b"x")
    ran = run("query", str(path))
    assert ran.status == 2 and "is a Keras HDF5 file" in ran.err.splitlines()[-1]


def test_a_named_file_of_the_hub_is_refused_before_it_is_fetched(hub: Hub) -> None:
    hub.publish("org/keras", {"config.json": b"{}", "tf_model.h5": b"x", "model.safetensors": save(WEIGHTS)})
    with pytest.raises(UnreadFormatError, match=r"org/keras/tf_model\.h5 is a Keras HDF5 file"):
        open_model("org/keras/tf_model.h5")
    assert not any(path.endswith(".h5") for _, path, *_ in hub.log)


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_a_refusal_by_content_keeps_its_way_out_on_the_hub(mode: str, hub: Hub) -> None:
    repo = f"org/tflite-{mode}"
    hub.publish(repo, {"config.json": b"{}", "model.bin": begun(Magic(4, b"TFL3"))})
    with pytest.raises(UnreadFormatError, match="is a TFLite model") as caught:
        open_model(repo, mode=mode)
    assert caught.value.next_step == "Name the model that it was made from."


# --- content before the name ---


@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.gguf", "m.onnx", "m.h5", "m.pkl", "m.safetensors", "blob"])
def test_safetensors_under_any_name(name: str, tmp_path: Path) -> None:
    check_weights(put(tmp_path / name, save(WEIGHTS)))


@pytest.mark.parametrize("opcode", [b"\x80\x02", b"\x80\x04", b"PK"])
def test_a_header_whose_length_looks_like_the_beginning_of_another_format(opcode: bytes, tmp_path: Path) -> None:
    size = int.from_bytes(opcode, "little")
    plain = save(WEIGHTS)
    header = plain[8 : 8 + int.from_bytes(plain[:8], "little")].rstrip().ljust(size)
    assert len(header) == size
    content = size.to_bytes(8, "little") + header + plain[8 + int.from_bytes(plain[:8], "little") :]
    for name in ("model.safetensors", "blob", "model.bin"):
        check_weights(put(tmp_path / name, content))


@pytest.mark.parametrize("stored", ["zip.pt", "legacy.bin"])
@pytest.mark.parametrize("name", ["m.bin", "m.onnx", "m.safetensors", "m.pkl", "blob"])
def test_torch_checkpoints_under_any_name(stored: str, name: str, tmp_path: Path) -> None:
    wanted = open_model(TORCH_FILES / stored)
    found = open_model(put(tmp_path / name, (TORCH_FILES / stored).read_bytes()))
    assert found.tensors.keys() == wanted.tensors.keys()
    assert all(np.array_equal(found.tensors[key].flat(), wanted.tensors[key].flat()) for key in wanted.tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_magic_number_of_the_older_layout_in_every_protocol(protocol: int) -> None:
    beginning = pickle.dumps(0x1950A86A20F9469CFC6C, protocol).ljust(64, b"\0")
    assert registry.by_content(beginning, "blob") is registry.TORCH


def test_a_gguf_file_under_another_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ends inside its header"):
        open_model(put(tmp_path / "model.bin", b"GGUF"))


# --- a new format is one row ---


def _read_numbers(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The dummy format: a signature of 5 bytes, then float32 numbers; a file beside may hold their name."""
    values = np.frombuffer(files[0].extent.now(5, files[0].extent.size), "<f4")
    named = beside("name.txt")
    name = named.now(0, 100).decode() if named else "numbers"
    return Contents((tensor_from_array(name, values),))


NUMBERS = Format("numbers", "a file of numbers", (".numbers",), (Magic(0, b"NUMB!"),), _read_numbers)
CONTENT = b"NUMB!" + np.arange(4, dtype="<f4").tobytes()


@pytest.mark.parametrize("name", ["model.numbers", "model.bin"])
def test_a_format_is_added_by_one_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FORMATS", (*FORMATS, NUMBERS))
    path = put(tmp_path / "models" / "one" / name, CONTENT)
    for reference in (path, path.parent):
        assert list(open_model(reference).tensors["numbers"].flat()) == [0, 1, 2, 3]
    assert list(expand([str(path)])) == [str(path)]
    assert list(expand([str(path.parent.parent)])) == [str(path.parent)]
    put(path.parent / "name.txt", b"layers.0.w")
    assert list(open_model(path.parent).tensors) == ["layers.0.w"]
    assert [fact.name for fact in open_model(path.parent).files] == [name, "name.txt"]


def test_several_files_of_a_new_format_leave_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FORMATS", (*FORMATS, NUMBERS))
    for name in ("a.numbers", "b.numbers"):
        put(tmp_path / name, CONTENT)
    with pytest.raises(ModelError, match=r"several numbers files \(a.numbers, b.numbers\)"):
        open_model(tmp_path)


def test_readers_are_imported_when_a_file_is_read() -> None:
    """What the registry imports at once knows no format."""
    told = "import sys, provindex.formats.registry; print([m for m in sys.modules if 'provindex.formats.' in m])"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert not any(name in ran.stdout for name in ("safetensors", "gguf", "torch", "onnx"))


# --- folders of models ---


def test_arrays_and_pickles_do_not_make_a_folder_a_model(tmp_path: Path) -> None:
    put(tmp_path / "embeddings.npy", b"x")
    put(tmp_path / "one" / "model.safetensors", save(WEIGHTS))
    put(tmp_path / "two" / "model.tflite", b"x")
    assert list(expand([str(tmp_path)])) == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert list(expand([str(tmp_path / "embeddings.npy")])) == [str(tmp_path / "embeddings.npy")]
