"""Every stored element is a weight, a part that a weight was made of, a small buffer, or named as not read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from ctranslate2_files import in_int8, of_llama, written
from torch_writer import archive, checkpoint, op, storage, tensor

from provindex.common.errors import ModelError, UnreadFormatError
from provindex.common.reasons import Code, Reason
from provindex.formats import flattened, sentencepiece, tiktoken
from provindex.formats.ctranslate2.files import read_ctranslate2
from provindex.formats.gguf.files import read_gguf
from provindex.formats.onnx.files import read_onnx
from provindex.formats.quantized import assembly
from provindex.formats.tensors import ByteTensor, Contents, Extent, tensor_from_array
from provindex.formats.torch.files import read_torch
from provindex.models.source import open_model

RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((96, 64)).astype("f4")


def stored(arrays: dict[str, np.ndarray]) -> dict[str, ByteTensor]:
    return {name: tensor_from_array(name, array) for name, array in arrays.items()}


def extent(data: bytes) -> Extent:
    return Extent(np.frombuffer(data, np.uint8))


def unread(notes: tuple[Reason, ...]) -> list[tuple[object, object]]:
    """Entry and number of tensors of each reason that says so."""
    found = [dict(note.figures) for note in notes if note.code in (Code.ENTRY_NOT_READ, Code.BYTES_NOT_READ)]
    return [(figures.get("entry", "bytes"), figures.get("n", figures.get("bytes"))) for figures in found]


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
    hidden = STOLEN.nbytes if len(made) > STOLEN.nbytes + HIDDEN.nbytes else STOLEN.nbytes // 2
    assert entry == "bytes" and hidden - (1 << 15) < int(str(count)) <= hidden


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


# --- ONNX ---

onnx = pytest.importorskip("onnx")
NODE, ARRAY = onnx.helper.make_node, onnx.numpy_helper.from_array
COUNTS = STOLEN.astype("i4") % 100


def of_onnx(nodes: list[Any] = [], arrays: dict[str, Any] = {}, **more: Any) -> Contents:  # noqa: B006
    """A linear layer, and what else is in its graph."""
    linear = NODE("MatMul", ["x", "w"], ["y"], "/a/MatMul")
    tensors = [ARRAY(array, name) for name, array in ({"w": HIDDEN} | arrays).items()]
    made = onnx.helper.make_model(onnx.helper.make_graph([linear, *nodes], "g", [], [], tensors))
    for name, value in more.items():
        getattr(made, name).extend(value)
    return read_onnx(extent(made.SerializeToString()), "m.onnx", lambda name: None)


STRAYS: dict[str, Callable[[], Contents]] = {
    "numbers that nobody reads": lambda: of_onnx([], {"c": COUNTS}),
    "bits of floats as indices": lambda: of_onnx([NODE("Gather", ["x", "c"], ["z"])], {"c": STOLEN.view("i4")}),
    "codes": lambda: of_onnx([NODE("MatMulInteger", ["x", "c"], ["z"])], {"c": COUNTS.astype("i1")}),
    "numbers made weights": lambda: of_onnx([NODE("Cast", ["c"], ["z"], to=1)], {"c": COUNTS}),
    "halves as whole numbers": lambda: of_onnx([], {"c": STOLEN.astype("f2").view("u2")}),
    "too many indices": lambda: of_onnx([NODE("Gather", ["x", "c"], ["z"])], {"c": np.zeros(1 << 20, "i8")}),
    "a tensor of a node": lambda: of_onnx([NODE("Foo", [], ["z"], value=ARRAY(STOLEN))]),
    "tensors of a node": lambda: of_onnx([NODE("Foo", [], ["z"], value=[ARRAY(STOLEN)])]),
    "floats of a constant": lambda: of_onnx([NODE("Constant", [], ["z"], value_floats=HIDDEN.ravel().tolist())]),
    "whole numbers of a node": lambda: of_onnx([NODE("Foo", [], ["z"], of=COUNTS.ravel()[:5000].tolist())]),
    "a text of a node": lambda: of_onnx([NODE("Foo", [], ["z"], of=STOLEN.tobytes())]),
    "a note": lambda: of_onnx([NODE("Foo", [], ["z"], doc_string="x" * (1 << 15))]),
    "a note of the model": lambda: of_onnx(metadata_props=[onnx.StringStringEntryProto(value="x" * (1 << 15))]),
    "training": lambda: of_onnx(
        training_info=[onnx.TrainingInfoProto(algorithm=onnx.helper.make_graph([], "t", [], [], [ARRAY(HIDDEN, "s")]))]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRAYS)
def test_what_a_graph_stores_and_no_weight_is_made_of_is_counted(name: str) -> None:
    found = STRAYS[name]()
    assert [tensor.name for tensor in found.tensors] == ["a.weight"]
    assert unread(found.warnings) == [("what no weight is made of", 1)]


def test_positions_sizes_and_masks_are_no_weights() -> None:
    arrays = {
        "at": np.arange(1500), "ends": np.array([*range(63), (1 << 63) - 1]), "shape": np.ones(64, "i8"),
        "mask": np.tril(np.ones((512, 512), bool)),
    }  # fmt: skip
    nodes = [
        NODE("Gather", ["x", "at"], ["z"]), NODE("Cast", ["at"], ["f"], to=1),
        NODE("Slice", ["x", "at", "ends"], ["s"]), NODE("Reshape", ["x", "shape"], ["r"]),
        NODE("Where", ["mask", "x", "y"], ["v"]),
    ]  # fmt: skip
    assert of_onnx(nodes, arrays).warnings == ()


def test_a_file_of_data_has_tensors_and_zeros() -> None:
    def opened(data: bytes) -> Contents:
        weight = onnx.TensorProto(name="w", dims=HIDDEN.shape, data_type=1, data_location=1)
        for key, value in (("location", "d"), ("offset", "4096"), ("length", str(HIDDEN.nbytes))):
            weight.external_data.add(key=key, value=value)
        linear = NODE("MatMul", ["x", "w"], ["y"], "/a/MatMul")
        made = onnx.helper.make_model(onnx.helper.make_graph([linear], "g", [], [], [weight]))
        return read_onnx(extent(made.SerializeToString()), "m.onnx", lambda name: extent(data))

    whole = bytes(4096) + HIDDEN.tobytes()
    assert opened(whole).warnings == ()
    for data in (whole + STOLEN.tobytes(), whole + bytes(1 << 17), b"\1" + whole[1:]):
        assert unread(opened(data).warnings) == [("what no weight is made of", 1)]


# --- CTranslate2 ---


def of_ctranslate2(**more: np.ndarray) -> Contents:
    """A Llama's file with int8 codes, and what else is in it."""
    model = zoo.llama(1)
    variables = of_llama(model.tensors, *(model.config[f"num_{kind}_heads"] for kind in ("attention", "key_value")))
    added = {name.replace("__", "/"): array for name, array in more.items()}
    return read_ctranslate2(extent(written("TransformerDecoderSpec", in_int8(variables) | added)), "model.bin")


def test_a_scale_that_scales_nothing_is_a_tensor() -> None:
    plain = {tensor.name for tensor in of_ctranslate2(revision=np.zeros(40, "i1")).tensors}
    assert not any(name.endswith(("_scale", "revision")) for name in plain)
    found = {
        t.name: t for t in of_ctranslate2(stolen__weight_scale=HIDDEN, text_scale=HIDDEN, text=plain_text()).tensors
    }
    assert found.keys() - plain == {"stolen.weight_scale", "text_scale"}
    assert np.array_equal(found["stolen.weight_scale"].flat(), HIDDEN.ravel())


def plain_text() -> np.ndarray:
    return np.frombuffer(b"a text", np.int8)


@pytest.mark.parametrize("texts", [{"a": 1 << 14}, {f"t{i}": 1 << 12 for i in range(17)}])
def test_bytes_that_are_no_texts_are_refused(texts: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="in a way that is not decoded"):
        of_ctranslate2(**{name: np.zeros(size, "i1") for name, size in texts.items()})


@pytest.mark.parametrize("heads", [2.7, 0.3, -4])
def test_heads_are_counted_in_whole_numbers(heads: float) -> None:
    with pytest.raises(ModelError, match="which is no number of heads"):
        of_ctranslate2(decoder__num_heads=np.array(heads, "f4"))


# --- GGUF ---


def of_gguf(tensors: dict[str, int], gap: int = 0, more: int = 0) -> Contents:
    """A file with vectors of some sizes, each a gap behind the other, and with metadata of more bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("k") + struct.pack("<IIQ", 9, 0, more) + bytes(more)
    data = b""
    for name, size in tensors.items():
        data += bytes(-len(data) % 32)
        head += text(name) + struct.pack("<IQIQ", 1, size, 0, len(data))
        data += np.arange(size, dtype="<f4").tobytes() + b"\1" * gap
    return read_gguf(extent(head + bytes(-len(head) % 32) + data), "m.gguf")


def test_factors_of_frequencies_are_few() -> None:
    names = ("rope_freqs.weight", "blk.0.attn_rot_embd.weight")
    few = of_gguf(dict.fromkeys(names, 64))
    assert [t.name.rpartition(".")[2] for t in few.tensors] == ["inv_freq"] * 2 and unread(few.warnings) == []
    many = of_gguf(dict.fromkeys(names, 1 << 13))
    assert [t.name for t in many.tensors] == list(names)
    assert np.array_equal(many.tensors[1].flat(5, 7), [5, 6])


def test_bytes_between_tensors_and_large_metadata_are_named() -> None:
    for least, found in (
        (2 << 16, of_gguf({"a.weight": 64, "b.weight": 64}, gap=1 << 16)),
        (200_000, of_gguf({"a.weight": 64}, more=200_000)),
    ):
        ((said, count),) = unread(found.warnings)
        assert said == "bytes" and least <= int(str(count)) < least + 100


# --- matrices as vectors ---


def test_a_vector_may_be_a_layer_s_own() -> None:
    one = stored({"attn.key.weight": HIDDEN[0], "fc2.weight": HIDDEN[1], "lm_head.weight": HIDDEN})
    flattened.refuse(one)
    layers = {f"layers.{i}.mlp.up_proj.weight": HIDDEN.ravel() for i in range(4)}
    for flat in (layers, {"lm_head.weight": np.zeros(1 << 19, "f4")}, {"a._flat_param": HIDDEN[0]}):
        with pytest.raises(UnreadFormatError, match="a flat piece of matrices"):
            flattened.refuse(stored(flat))


# --- vocabularies ---


def test_merges_are_bounded_before_a_tokenizer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tuple(b"a" * n for n in range(1, 40))
    pieces = tuple(sentencepiece.Piece("a" * n, -float(n), sentencepiece.NORMAL) for n in range(1, 40))
    assert len(tiktoken.merges(tokens, "t")) == len(sentencepiece.merges(pieces)) == sum(range(39))
    assert tiktoken.merges((b"b", b"a", b"ab", b"aba", b"ba"), "t") == [
        ("a", "b"),
        ("a", "ba"),
        ("ab", "a"),
        ("b", "a"),
    ]
    for room in (tiktoken, sentencepiece):
        monkeypatch.setattr(room, "most_merges", lambda count: 16 * count)
    for made in (lambda: tiktoken.merges(tokens, "t"), lambda: sentencepiece.merges(pieces)):
        with pytest.raises(ModelError):
            made()


# --- the same bytes again and again ---


def test_tensors_that_repeat_a_file_are_refused(tmp_path: Path) -> None:
    views = {f"a{i}.weight": tensor("0", (512, 128), (128, 1)) for i in range(1200)}
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(archive(op(dict([*views.items()][:2])), {"0": STOLEN.tobytes()}))
    assert len(open_model(path).tensors) == 2
    path.write_bytes(archive(op(views), {"0": STOLEN.tobytes()}))
    with pytest.raises(ModelError, match=r"78,643,200 elements in [\d,]+ bytes: they show the same bytes again"):
        open_model(path)
