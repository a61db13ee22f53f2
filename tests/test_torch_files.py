"""torch checkpoints: what torch wrote is read, what an attacker writes does nothing. The files: make_torch_files.py."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Call, Global, Outside, archive, legacy, op, tensor

from provindex.common.errors import ModelError
from provindex.formats.tensors import Contents, Extent
from provindex.formats.torch import pickle_machine
from provindex.formats.torch.files import read_torch
from provindex.models.source import open_model
from provindex.report.words import texts

DATA = Path(__file__).parent / "data" / "torch"
FILES = sorted(path.name for path in DATA.iterdir())
READ = {"zip.pt", "legacy.bin", "protocol5.pt"}


def read(data: bytes, label: str = "file") -> Contents:
    return read_torch(Extent(np.frombuffer(data, np.uint8)), label)


# --- what torch wrote ---


def counted(count: int) -> np.ndarray:
    return np.arange(-6, count - 6, dtype=np.float32)


def expected() -> dict[str, tuple[str, np.ndarray]]:
    table, cube = counted(12).reshape(4, 3), counted(24).reshape(2, 3, 4)
    return {
        "table": ("F32", table),
        "tied": ("F32", table),
        "rows": ("F32", table[1:3]),
        "turned": ("F32", table.T),
        "stepped": ("F32", table[:, ::2]),
        "column": ("F32", table[:, 1]),
        "cube": ("F32", cube.transpose(2, 0, 1)),
        "half": ("F16", counted(12)),
        "bf16": ("BF16", counted(12)),
        "double": ("F64", counted(12)),
        "ids": ("I64", np.arange(5)),
        "flag": ("BOOL", np.array([1, 0])),
        "scalar": ("F32", np.array(2.5)),
        "empty": ("F32", np.zeros((0, 3))),
        "expanded": ("F32", np.full((3, 2), 1.5)),
        "parameter": ("F32", counted(2)),
    }


LATE = {"f8": ("F8_E4M3", counted(12)), "u16": ("U16", np.array([0, 1, 65535])), "noted": ("F32", counted(3))}


@pytest.mark.parametrize("name", sorted(READ))
def test_tensors_as_torch_wrote_them(name: str) -> None:
    found = read((DATA / name).read_bytes())
    wanted = expected() | (LATE if name == "zip.pt" else {})
    assert {one.name for one in found.tensors} == set(wanted) and texts(found.warnings) == ()
    for one in found.tensors:
        dtype, values = wanted[one.name]
        flat = values.astype(np.float32).reshape(-1)
        assert (one.dtype, one.shape) == (dtype, values.shape)
        assert np.array_equal(one.flat(), flat)
        assert np.array_equal(one.flat(1, 3), flat[1:3])
        assert np.array_equal(one.strided(2, (flat.size + 1) // 2), flat[::2])
        assert np.array_equal(np.concatenate([flat[:0], *one.chunks(4)]), flat)
        if values.ndim > 1 and values.size:
            last = values.shape[0] - 1
            assert np.array_equal(one.rows([last, 0]), values.reshape(last + 1, -1)[[last, 0]])
        if one.plain and dtype == "F32":
            assert bytes(one.raw()) == flat.tobytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "lightning.ckpt",
            "refers to code (argparse.Namespace), which was not run|entry state_dict was read|"
            "entry optimizer_states was not read (6 tensors)",
        ),
        ("nested.pth", "entry model.module was read"),
        ("mixed.pt", "1 of its 3 entries are no tensors"),
    ],
)
def test_weights_among_other_things(name: str, said: str) -> None:
    found = read((DATA / name).read_bytes())
    assert {t.name: t.flat().tolist() for t in found.tensors} == {"weight": [-6, -5, -4, -3, -2, -1], "bias": [-6, -5]}
    assert len(texts(found.warnings)) == len(said.split("|"))
    assert all(part in warning for part, warning in zip(said.split("|"), texts(found.warnings), strict=True))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sparse.pt", "stores 'w' in a way that is not read ('_rebuild_sparse_tensor')"),
        ("quantized.pt", "stores 'w' in a way that is not read ('_rebuild_qtensor')"),
        ("script.pt", "is a TorchScript archive"),
        ("whole.pt", "but a pickled object ('torch.nn.modules.linear.Linear')"),
    ],
)
def test_what_is_refused(name: str, why: str) -> None:
    with pytest.raises(ModelError) as error:
        read((DATA / name).read_bytes())
    assert why in error.value.message and "state_dict" in str(error.value.next_step)


class Recorder:
    """Notes what is fetched of a file of which nothing is here."""

    def __init__(self) -> None:
        self.fetched: list[tuple[int, int]] = []

    def touch(self, start: int, stop: int) -> None:
        raise AssertionError("opening a file looks at no tensor")

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.fetched += ranges


def test_of_a_remote_file_only_headers_are_fetched() -> None:
    large = {f"w{i}": tensor(str(i), (1 << 20,), (1,)) for i in range(3)}
    data = archive(op(large), dict.fromkeys("012", bytes(4 << 20)))
    watch = Recorder()
    found = read_torch(Extent(np.frombuffer(data, np.uint8), 0, watch), "file")
    assert [t.nbytes for t in found.tensors] == [4 << 20] * 3
    assert sum(stop - start for start, stop in watch.fetched) < 4000


# --- pickles written by hand ---

ONE = {"0": np.ones(6, np.float32).tobytes()}
GOOD = tensor("0", (2, 3), (3, 1))


def test_the_hand_written_form_is_read() -> None:
    found = read(archive(op({"w": GOOD}), ONE))
    assert found.tensors[0].flat().tolist() == [1.0] * 6


def test_a_part_of_a_storage_as_torch_0_3_wrote_it() -> None:
    def part(*view: int) -> bytes:
        reference = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 12, ("v", *view))
        return op({"w": Call(Global("torch._utils", "_rebuild_tensor"), (Outside(reference), 1, (2, 2), (2, 1)))})

    assert read(legacy(part(3, 6), {"0": counted(12)})).tensors[0].flat().tolist() == [-2, -1, 0, 1]
    with pytest.raises(ModelError, match="outside of its storage"):
        read(legacy(part(3, 4), {"0": counted(12)}))
    with pytest.raises(ModelError, match="uses more of a storage than there is"):
        read(legacy(part(7, 6), {"0": counted(12)}))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (tensor("0", (2, 3), (3, 1), offset=1, count=6), "outside of its storage"),
        (tensor("0", (2, 3), (4, 1), count=6), "outside of its storage"),
        (tensor("0", (2, 3), (3, -1)), "strides that are none"),
        (tensor("0", (-2, 3), (3, 1), count=6), "strides that are none"),
        (tensor("0", (2, 3), (3,)), "strides that are none"),
        (tensor("0", (1,) * 9, (1,) * 9, count=6), "strides that are none"),
        (tensor("0", (1 << 40, 1 << 40), (0, 0), count=6), "outside of its storage"),
        (tensor("0", (1 << 30, 3), (0, 1), count=6), "as a view that is not read"),
        (tensor("0", (1 << 59, 0), (1, 1), count=6, offset=1 << 59), "outside of its storage"),
        (tensor("0", (2, 3), (3, 1), offset=True, count=6), "an offset, a shape and strides"),
        (tensor("0", ("2", 3), (3, 1), count=6), "an offset, a shape and strides"),
        (tensor("0", (2, 3), (3, 1), count=7), "not what its pickle says"),
        (tensor("0", (2, 3), (3, 1), count=1 << 70), "without a key and a size"),
        (tensor("1", (2, 3), (3, 1)), "lacks the storage '1'"),
        (tensor("0", (2, 3), (3, 1), kind="QInt8Storage"), "of a kind that is not read ('QInt8Storage')"),
        (tensor("0", (2, 3), (3, 1), kind="UntypedStorage", count=24), "in a dtype that is not read"),
        (Call(Global("torch._utils", "_rebuild_tensor_v2"), (None, 0, (2,), (1,))), "without a storage"),
        (Call(Global("torch._utils", "_rebuild_tensor_v2"), 3), "in a way that is not read"),
        (Call(Global("torch._utils", "_rebuild_parameter"), (3, True, None)), "in a way that is not read"),
        (Call(Global("torch.storage", "_load_from_bytes"), ("x",)), "no dictionary of named tensors"),
    ],
)
def test_tensors_that_lie(value: Call, why: str) -> None:
    with pytest.raises(ModelError) as error:
        read(archive(op({"w": value}), ONE))
    assert why in error.value.message


# --- nothing runs ---


class Attack:
    """What runs a command where pickle.loads sees it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", [lambda program: archive(program, ONE), legacy], ids=["zip", "legacy"])
def test_code_beside_weights_is_named_and_not_run(form: Any, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    attack = pickle.dumps(Attack(marker), protocol)
    pickle.loads(attack)
    assert marker.exists()  # it does run where pickles are loaded
    marker.unlink()
    body = attack[2:-1]
    if form is legacy:
        with pytest.raises(ModelError, match="no dictionary of named tensors"):
            read(form(op({"a": body})))
    else:
        others = {name: Global("mine", name) for name in "bcd"}
        found = read(form(op({"w": GOOD, **others, "a": body})))
        named = f"{os.system.__module__}.system, mine.b, mine.c and 1 more"
        assert found.tensors[0].flat().tolist() == [1.0] * 6
        assert texts(found.warnings)[0] == f"it refers to code ({named}), which was not run"
    with pytest.raises(ModelError, match="pickled object"):
        read(form(body))
    assert not marker.exists()


def test_a_stack_of_calls_is_a_stack_of_records(tmp_path: Path) -> None:
    """REDUCE, NEWOBJ, NEWOBJ_EX and BUILD on what was named, and on what that would have returned."""
    marker = tmp_path / "owned"
    getter = Call(Global("builtins", "getattr"), (Call(Global("builtins", "__import__"), ("os",)), "system"))
    call = op(getter) + op((f"touch {marker}",)) + b"R" + op({"x": 1}) + b"b"
    new = op(Global("builtins", "exec")) + op((f"open({str(marker)!r}, 'w')",)) + b"\x81"
    named = op(Global("builtins", "exec")) + op(("1",)) + op({}) + b"\x92"
    found = read(archive(op({"w": GOOD, "a": call, "b": new, "c": named}), ONE))
    assert "builtins.getattr, builtins.__import__, builtins.exec" in texts(found.warnings)[0] and not marker.exists()


# --- nothing grows or hangs ---

LAUGHS = b"](NNe" + b"".join(b"q" + bytes([i]) + b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(100))
TUPLES = b"N" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(100))


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (op({"w": LAUGHS}), "no dictionary"),
        (b"}(" + TUPLES + b"Nu", "no dictionary"),  # a key whose hash would take forever
        (b"(" * 1_000_000, "more or less than its value"),
        (b")" + b"\x85" * 900_000, "no dictionary"),
        (b"]q\0h\0a", "no dictionary"),  # a list that holds itself
        (b"}q\0X\5\0\0\0modelh\0s", "no dictionary"),  # a dict that holds itself
        (b"}" * 1_100_000, "makes more than 1,048,576 objects"),
        (b"}q\0(" + b"X\5\0\0\0modelh\0" * 300_000 + b"u", "dictionary of more than 200,000"),  # itself, often
        (b"N" + b"0N" * 2_200_000, "more than 4,194,304 opcodes"),
        (b"N" + b"\x94" * 1_100_000, "remembers more than"),
        (b"X\xff\xff\xff\xff", "ends too early"),
        (b"\x8d" + b"\xff" * 8, "ends too early"),
        (b"\x8b\xff\xff\xff\x7f", "an integer of 2147483647 bytes"),
        (b"\x8b\xff\xff\xff\xff", "an integer of -1 bytes"),
        (b"c" + b"a" * 600 + b"\nb\n", "no Python module"),
        (b"\x95" + b"\xff" * 8 + b"N", "no dictionary"),
        (b"h\0", "did not remember"),
        (b"0", "empty stack"),
        (b"N(0a", "empty stack"),
        (b"NNa", "no list"),
        (b"}NNNe", "lacks a mark"),
        (b"](Nu", "no dict"),
        (b"\x80\x06", "protocol 6"),
        (b"(i__main__\nX\n", "opcode b'i'"),
        (b"X\1\0\0\0\xff", "not UTF-8"),
        (b"NN\x93", "no Python module"),
    ],
)
def test_programs_out_of_bounds(program: bytes, why: str) -> None:
    with pytest.raises(ModelError) as error:
        read(archive(program, {}))
    assert why in error.value.message


MEASURE = """
import io, resource
from provindex.formats.torch import pickle_machine
program = b"\\x80\\x02" + b"}\\x94h\\0h\\0s" * 800_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    pickle_machine.run(io.BytesIO(program), len(program))
except pickle_machine.PickleError as fault:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, fault)
"""


def test_the_worst_programs_stay_small() -> None:
    """What a program has cost that is refused at the end: every other opcode makes something, or remembers it."""
    ran = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    kilobytes, _, why = ran.stdout.partition(" ")
    assert why.startswith("it ") and int(kilobytes) < 400_000


def test_a_large_claim_is_not_allocated() -> None:
    program = b"\x80\x02B" + struct.pack("<I", 60 << 20) + b"x"
    with pytest.raises(pickle_machine.PickleError, match="too early"):
        pickle_machine.run(io.BytesIO(program), len(program))


# --- archives ---


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def zipped(method: int = zipfile.ZIP_STORED, *extra: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("root/data.pkl", b"\x80\x02" + op({"w": GOOD}) + b".")
        for name, content in (("root/data/0", ONE["0"]), *extra):
            made.writestr(name, content)
    return file.getvalue()


WHOLE = zipped()
DIRECTORY = WHOLE.index(b"PK\1\2")
SECOND = WHOLE.index(b"PK\1\2", DIRECTORY + 1)

ARCHIVES = {
    "compressed": (zipped(zipfile.ZIP_DEFLATED), "is compressed"),
    "encrypted": (patched(WHOLE, DIRECTORY + 8, b"\1\0"), "is encrypted"),
    "a header that says another name": (patched(WHOLE, 30, b"toor"), "is not what its directory says"),
    "a header that says another size": (patched(WHOLE, 18, b"\1\0\0\0\1\0\0\0"), "another size than its directory"),
    "overlap": (patched(WHOLE, SECOND + 42, b"\0\0\0\0"), "overlaps"),
    "beyond the end": (patched(WHOLE, SECOND + 42, b"\xff\xff\xff\x7f"), "overlaps"),
    "an extra field over the next entry": (patched(WHOLE, 28, b"\xff\xff"), "reaches into what follows"),
    "appended": (WHOLE + b"x", "something was appended"),
    "cut": (WHOLE[:-1], "cut short"),
    "other counts": (patched(WHOLE, len(WHOLE) - 14, b"\1\0\1\0"), "more bytes than entries"),
    "two of one name": (zipped(zipfile.ZIP_STORED, ("root/data/1", b"")).replace(b"data/1", b"data/0"), "twice"),
    "no data.pkl": (WHOLE.replace(b"data.pkl", b"data.pkk"), "has no data.pkl"),
    "two data.pkl": (zipped(zipfile.ZIP_STORED, ("other/data.pkl", b"")), "has several data.pkl"),
    "big-endian": (archive(op({"w": GOOD}), ONE, byteorder=b"big"), "big-endian"),
    "only a beginning": (b"PK\3\4", "cut short"),
    "a text": (b"version https://git-lfs.github.com/spec/v1\n", "is no torch checkpoint"),
    "a tar archive": (bytes(257) + b"ustar" + bytes(300), "is a tar archive"),
    "legacy, cut": ((DATA / "legacy.bin").read_bytes()[:-1], "is not what its pickle says"),
    "legacy, without storages": ((DATA / "legacy.bin").read_bytes()[:1500], "cannot be read|ends before|is not what"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_refused(name: str) -> None:
    data, why = ARCHIVES[name]
    with pytest.raises(ModelError) as error:
        read(data)
    assert any(part in error.value.message for part in why.split("|"))


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_mutated_files(name: str, data: st.DataObject) -> None:
    """Whatever the bytes: contents that can be read, or one sentence."""
    raw = bytearray((DATA / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.sampled_from((1, 1, 1, 4)))] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        found = read(bytes(raw[: data.draw(st.sampled_from((None, len(raw) - 3)))]))
    except ModelError as error:
        assert error.message.startswith("file ") and error.message.endswith(".")
    else:
        assert all(tensor.flat(0, 100).size <= 100 for tensor in found.tensors)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*pickle_machine._STEPS, b"K\1", b"X\1\0\0\0a", b"q\0", b"h\0"]), max_size=40))
def test_programs_of_random_opcodes(codes: list[bytes]) -> None:
    program = b"\x80\x02" + b"".join(codes) + b"." + bytes(16)
    try:
        pickle_machine.run(io.BytesIO(program), len(program))
    except pickle_machine.PickleError as fault:
        assert str(fault).startswith("it ")


# --- as models ---


def folder(root: Path, *names: str, **files: bytes) -> Path:
    root.mkdir()
    for name in names:
        (root / name).write_bytes((DATA / "zip.pt").read_bytes())
    for name, content in files.items():
        (root / name.replace("__", ".")).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("names", "chosen", "left"),
    [
        (("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state_0.pth"), "pytorch_model.bin", ()),
        (("model.pth", "scheduler.pt"), "model.pth", ()),
        (("pytorch_model.bin", "ema.pt"), "pytorch_model.bin", ("ema.pt: not read (a torch checkpoint)",)),
    ],
)
def test_the_checkpoint_of_a_folder(names: tuple[str, ...], chosen: str, left: tuple[str, ...], tmp_path: Path) -> None:
    model = open_model(folder(tmp_path / "m", *names))
    assert [fact.name for fact in model.files] == [chosen] and texts(model.warnings) == left
    assert np.array_equal(model.tensors["turned"].flat(), counted(12).reshape(4, 3).T.reshape(-1))
    assert open_model(tmp_path / "m" / chosen).tensors.keys() == model.tensors.keys()


def test_folders_that_leave_a_choice_or_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"several checkpoints \(a.pt, b.pt\).* Name one"):
        open_model(folder(tmp_path / "two", "a.pt", "b.pt"))
    with pytest.raises(ModelError, match="no weight file"):
        open_model(folder(tmp_path / "training", "training_args.bin", "optimizer.pt"))


def test_shards_with_an_index_and_without(tmp_path: Path) -> None:
    first, second = (archive(op({name: GOOD}), ONE) for name in "ab")
    names = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    root = folder(tmp_path / "m", **{names[0]: first, names[1]: second})
    assert list(open_model(root).tensors) == ["a", "b"]
    index = root / "pytorch_model.bin.index.json"
    index.write_text(f'{{"weight_map": {{"a": "{names[0]}", "b": "{names[1]}"}}}}')
    assert list(open_model(root).tensors) == ["a", "b"]
    index.write_text(f'{{"weight_map": {{"a": "{names[0]}", "b": "../x.bin"}}}}')
    with pytest.raises(ModelError, match="no file inside the model"):
        open_model(root)
    index.unlink()
    (root / names[0]).unlink()
    with pytest.raises(ModelError, match="has 1 of the 2 shards"):
        open_model(root)
