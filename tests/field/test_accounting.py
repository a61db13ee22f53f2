"""Every stored element is a weight, a part that a weight was made of, a small buffer, or named as not read."""

from __future__ import annotations

import zipfile
from io import BytesIO

import numpy as np
import pytest
from torch_writer import archive, checkpoint, op, storage, tensor

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.formats.quantized import assembly
from provindex.formats.tensors import ByteTensor, Contents, Extent, tensor_from_array
from provindex.formats.torch.files import read_torch

RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((96, 64)).astype("f4")


def stored(arrays: dict[str, np.ndarray]) -> dict[str, ByteTensor]:
    return {name: tensor_from_array(name, array) for name, array in arrays.items()}


def extent(data: bytes) -> Extent:
    return Extent(np.frombuffer(data, np.uint8))


def unread(notes: tuple[Reason, ...]) -> list[tuple[object, object]]:
    """Entry and number of tensors of each reason that says so."""
    found = [dict(note.figures) for note in notes if note.code is Code.ENTRY_NOT_READ]
    return [(figures["entry"], figures["n"]) for figures in found]


# --- quantized ---

INT8 = {"a.weight": np.ones((4, 8), "i1"), "a.SCB": np.ones(4, "f4"), "a.weight_format": np.zeros((), "u1")}


@pytest.mark.parametrize(
    "name",
    ["a.biases", "a.qweight", "a.g_idx", "a.qzeros", "a.scales", "a.weight.absmax", "a.weight_packed",
     "a.weight_blocks", "a.weight_scale", "a.weight_global_scale", "a.weight_shape", "a.input_scale"],
)  # fmt: skip
def test_what_no_weight_is_made_of_stays(name: str) -> None:
    found, notes = assembly.assemble(stored(INT8 | {name: HIDDEN}), {})
    assert set(found) == {"a.weight", name} and np.array_equal(found[name].flat(), HIDDEN.reshape(-1))
    assert found["a.weight"].nbytes == 4 * 8 + 4 * 4 + 1
    told = [] if name in ("a.biases", "a.weight_blocks", "a.weight_global_scale") else [(name, 1)]
    assert unread(notes) == told  # the others are of no name that is known, which is said where names are read


def test_small_parts_that_are_not_needed_are_left_out() -> None:
    found, notes = assembly.assemble(
        stored(INT8 | {"a.weight_shape": np.ones(2, "i8"), "a.input_scale": HIDDEN[0]}), {}
    )
    assert set(found) == {"a.weight"} and unread(notes) == []


# --- torch ---

MODEL = {f"layers.{i}.weight": HIDDEN for i in range(3)}
STOLEN = RNG.standard_normal((512, 128)).astype("f4")
PROGRAM = op({"a.weight": tensor("0", (96, 64), (64, 1))})
OWN = {"0": HIDDEN.tobytes()}


def of_torch(data: bytes) -> Contents:
    return read_torch(extent(data), "m.bin")


def of_bytes(data: bytes) -> bytes:
    """Opcodes of a byte string."""
    return b"B" + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    "made",
    [
        archive(PROGRAM, OWN | {"1": STOLEN.tobytes()}),
        archive(PROGRAM, OWN, **{"model.safetensors": STOLEN.tobytes()}),
        archive(PROGRAM[:-1] + op("ema") + of_bytes(STOLEN.tobytes()) + b"u", OWN),
        archive(PROGRAM[:-1] + op("ema") + op({"w": storage("1", STOLEN.size)}) + b"u", OWN | {"1": STOLEN.tobytes()}),
        archive(PROGRAM[:-1] + op(("a", "b")) + op(tensor("1", (512, 128), (128, 1))) + b"u",
                OWN | {"1": STOLEN.tobytes()}),
        checkpoint(MODEL | {"x" * 2000: STOLEN}),
        archive(op({"a.weight": tensor("0", (512, 64), (128, 2), count=STOLEN.size)}), {"0": STOLEN.tobytes()}),
    ],
    ids=["storage", "member", "byte string", "bare storage", "tuple as key", "long key", "between elements"],
)  # fmt: skip
def test_bytes_that_no_tensor_shows_are_named(made: bytes) -> None:
    ((entry, count),) = unread(of_torch(made).warnings)
    left = int(str(entry).partition(" ")[0].replace(",", ""))
    hidden = STOLEN.nbytes if len(made) > STOLEN.nbytes + HIDDEN.nbytes else STOLEN.nbytes // 2
    assert hidden - (1 << 15) < left <= hidden and count == 0


def test_checkpoints_without_more_than_tensors_say_nothing() -> None:
    """Parts of one storage, turned, shared and each beside the other, cover it."""
    views = {
        "turned": tensor("0", (128, 512), (1, 128), count=STOLEN.size),
        "tied": tensor("0", (128, 512), (1, 128), count=STOLEN.size),
        "left": tensor("1", (512, 64), (128, 1), count=STOLEN.size),
        "right": tensor("1", (512, 64), (128, 1), offset=64, count=STOLEN.size),
    }
    for made in (checkpoint(MODEL), archive(op(views), {"0": STOLEN.tobytes(), "1": STOLEN.tobytes()})):
        assert of_torch(made).warnings == ()


def test_an_archive_of_two_checkpoints() -> None:
    file = BytesIO(archive(PROGRAM, OWN))
    with zipfile.ZipFile(file, "a") as both:
        both.writestr("other/data.pkl", b"")
    with pytest.raises(ModelError, match="a zip archive of 2 checkpoints"):
        of_torch(file.getvalue())
