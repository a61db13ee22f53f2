"""ONNX files: names and orientation from the graph, quantized matrices, data in every place that it may be in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provindex.common.errors import ModelError
from provindex.common.tensor import Tensor
from provindex.formats import protobuf
from provindex.formats.onnx import graph as onnx_graph
from provindex.formats.onnx.files import read_onnx
from provindex.formats.tensors import Contents, Extent
from provindex.models.source import open_model
from provindex.report.words import texts

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

RANDOM = np.random.default_rng(5)
W = RANDOM.standard_normal((3, 4), np.float32)  # a layer from 3 to 4, as MatMul takes it
B = RANDOM.standard_normal(4, np.float32)
Q = RANDOM.integers(-128, 128, (3, 4), np.int8)
LAYER = "encoder.layer.0.attention.self.query"
PATH = "/encoder/layer.0/attention/self/query/MatMul"


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), name, **attributes)


def model(nodes: Sequence[Any], arrays: dict[str, Any]) -> bytes:
    tensors = [
        a if isinstance(a, TensorProto) else numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return bytes(helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors)).SerializeToString())


def read(data: bytes, beside: Any = lambda name: None) -> Contents:
    return read_onnx(Extent(np.frombuffer(data, np.uint8)), "file", beside)


def names(data: bytes) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in read(data).tensors}


def same(tensor: Tensor, values: np.ndarray) -> None:
    """A tensor has these values, whichever way it is asked for them."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    assert tensor.shape == values.shape
    assert np.array_equal(tensor.flat(), flat) and np.array_equal(tensor.flat(2, 7), flat[2:7])
    assert np.array_equal(tensor.strided(3, 2), flat[::3][:2])
    last = values.shape[0] - 1
    assert np.array_equal(tensor.rows([last, 0]), flat.reshape(values.shape)[[last, 0]])
    assert np.array_equal(np.concatenate([*tensor.chunks(3)]), flat)


# --- names and orientation ---

ADD = node("Add", f"{LAYER}.bias p", "y")
BIAS = {f"{LAYER}.bias": B}
LINEAR = {
    "path and bias": ([node("MatMul", "x w", "p", PATH), ADD], {"w": W, **BIAS}),
    "bias alone": ([node("MatMul", "x w", "p", "node_MatMul_7"), ADD], {"w": W, **BIAS}),
    "path alone": ([node("MatMul", "x w", "y", PATH)], {"w": W}),
    "a list that is called": (
        [node("MatMul", "x w", "y", PATH.replace("/layer.0", "/layer/layer.0"))],
        {"w": W},
    ),
    "behind Identity, the bias behind Cast": (
        [
            node("Identity", "w", "i"),
            node("Cast", f"{LAYER}.bias", "b", to=1),
            node("MatMul", "x i", "p"),
            node("Add", "p b", "y"),
        ],
        {"w": W, f"{LAYER}.bias": B.astype(np.float16)},
    ),
    "Gemm": ([node("Gemm", f"x w {LAYER}.bias", "y", alpha=1.0)], {"w": W, **BIAS}),
    "Gemm, turned": ([node("Gemm", f"x w {LAYER}.bias", "y", transB=1)], {"w": W.T.copy(), **BIAS}),
    "Transpose of a named matrix": (
        [node("Transpose", f"{LAYER}.weight", "t", perm=[1, 0]), node("MatMul", "x t", "y", "node_MatMul_7")],
        {f"{LAYER}.weight": W.T.copy()},
    ),
    "used twice": (
        [node("MatMul", "x w", "p", PATH), ADD, node("MatMul", "x w", "p2", PATH.replace("query", "query_1"))],
        {"w": W, **BIAS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_layer_gets_its_name_and_orientation_back(case: str) -> None:
    found = names(model(*LINEAR[case]))
    assert set(found) - {f"{LAYER}.bias"} == {f"{LAYER}.weight"}
    same(found[f"{LAYER}.weight"], W.T)


OTHER = np.ones((3, 4), np.float32)
ANONYMOUS = {
    "nothing says it": ([node("MatMul", "x w", "y", "node_MatMul_7")], {"w": W}),
    "the second product of a module": ([node("MatMul", "x w", "y", PATH + "_1")], {"w": W}),
    "a bias of another length": (
        [node("MatMul", "x w", "p"), node("Add", f"{LAYER}.bias p", "y")],
        {"w": W, f"{LAYER}.bias": B[:1]},
    ),
    "two claim one name": (
        [node("MatMul", "x w", "p", PATH), node("MatMul", "x v", "y", PATH)],
        {"w": W, "v": OTHER},
    ),
    "the name is another's": ([node("MatMul", "x w", "y", PATH)], {"w": W, f"{LAYER}.weight": OTHER}),
    "scaled": ([node("Gemm", f"x w {LAYER}.bias", "y", alpha=2.0)], {"w": W, **BIAS}),
    "turned otherwise": (
        [node("Reshape", "w s", "r"), node("MatMul", "x r", "p"), ADD],
        {"w": W, "s": np.array([3, 4]), **BIAS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ANONYMOUS)
def test_what_the_graph_does_not_prove_keeps_its_name(case: str) -> None:
    found = names(model(*ANONYMOUS[case]))
    same(found["w"], W)
    assert np.array_equal(found[f"{LAYER}.weight"].flat(), OTHER.reshape(-1)) if f"{LAYER}.weight" in found else True


def test_a_bias_that_two_layers_share_does_not_name_the_matrix() -> None:
    """The masked-language head of BERT and ALBERT: its decoder's bias is stored as the head's own."""
    nodes = [node("MatMul", "x w", "p", "/cls/predictions/decoder/MatMul"), node("Add", "cls.predictions.bias p", "y")]
    found = names(model(nodes, {"w": W, "cls.predictions.bias": B}))
    assert set(found) == {"cls.predictions.bias", "cls.predictions.decoder.weight"}


def test_constants_and_counters_are_no_weights() -> None:
    arrays = {"val_1": np.float32(2), "val_2": np.arange(4), "onnx::Mul_3": np.ones(4, np.float32), "a.b": np.arange(3)}
    constant = helper.make_node("Constant", [], ["/c_output_0"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    weight = helper.make_node("Constant", [], [f"{LAYER}.weight"], value=numpy_helper.from_array(W.T.copy()))
    found = names(model([constant, weight], arrays))
    assert set(found) == {"onnx::Mul_3", "a.b", f"{LAYER}.weight"}
    same(found[f"{LAYER}.weight"], W.T)


# --- quantized ---

SCALE, ZERO = np.float32(0.125), np.int8(-3)
COLUMNS, ROWS = RANDOM.random((1, 4), np.float32), RANDOM.random((3, 1), np.float32)
DYNAMIC = [
    node("DynamicQuantizeLinear", "x", "xq xs xz"),
    node("MatMulInteger", "xq w xz z", "i", PATH + "_quant"),
    node("Cast", "i", "c", to=1),
    node("Mul", "xs s", "both"),
    node("Mul", "c both", "y"),
]
TABLE = "embeddings.word_embeddings.weight"
NEXT = [node("MatMul", "x v", "y", PATH)]
QUANTIZED = {
    "cast and scaled by columns": (
        [node("Cast", "w", "f", to=1), node("Mul", "f s", "v"), *NEXT],
        {"w": Q, "s": COLUMNS},
        (Q * COLUMNS).T,
    ),
    "cast and scaled by rows": (
        [node("Cast", "w", "f", to=1), node("Mul", "s f", "v"), *NEXT],
        {"w": Q, "s": ROWS},
        (Q * ROWS).T,
    ),
    "DequantizeLinear": (
        [node("DequantizeLinear", "w s z", "v"), *NEXT],
        {"w": Q, "s": SCALE, "z": ZERO},
        ((Q - np.float32(ZERO)) * SCALE).T,
    ),
    "DequantizeLinear by columns": (
        [node("DequantizeLinear", "w s z", "v", axis=1), *NEXT],
        {"w": Q, "s": COLUMNS[0], "z": np.arange(4, dtype=np.int8)},
        ((Q - np.arange(4, dtype=np.float32)) * COLUMNS).T,
    ),
    "DequantizeLinear by rows, then turned": (
        [node("DequantizeLinear", "w s", "d", axis=0), node("Transpose", "d", "v"), *NEXT],
        {"w": Q.T.copy(), "s": COLUMNS[0]},
        (Q * COLUMNS).T,
    ),
    "MatMulInteger": (DYNAMIC, {"w": Q, "z": ZERO, "s": SCALE}, ((Q - np.float32(ZERO)) * SCALE).T),
    "MatMulInteger, unsigned by columns": (
        DYNAMIC,
        {"w": Q.view(np.uint8), "z": np.full(4, 128, np.uint8), "s": COLUMNS[0]},
        ((Q.view(np.uint8) - np.float32(128)) * COLUMNS).T,
    ),
    "DynamicQuantizeMatMul": (
        [node("DynamicQuantizeMatMul", "x w s z", "y", PATH)],
        {"w": Q, "z": ZERO, "s": SCALE},
        ((Q - np.float32(ZERO)) * SCALE).T,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_matrices(case: str) -> None:
    nodes, arrays, values = QUANTIZED[case]
    found = names(model(nodes, arrays))
    assert set(found) == {f"{LAYER}.weight"} and values.dtype == np.float32
    same(found[f"{LAYER}.weight"], values)
    assert found[f"{LAYER}.weight"].nbytes == sum(np.asarray(array).nbytes for array in arrays.values())


def test_quantized_tables_keep_their_orientation() -> None:
    rows = [node("Cast", f"{TABLE}_q", "f", to=1), node("Mul", "f s", TABLE), node("Gather", f"{TABLE} x", "y")]
    same(names(model(rows, {f"{TABLE}_q": Q, "s": ROWS}))[TABLE], Q * ROWS)
    after = [
        node("Gather", f"{TABLE}_quantized x", "g"),
        node("Transpose", "g", "t"),
        node("DequantizeLinear", "t s z", "y"),
    ]
    found = names(model(after, {f"{TABLE}_quantized": Q, "s": SCALE, "z": ZERO}))
    assert set(found) == {TABLE}
    same(found[TABLE], (Q - np.float32(ZERO)) * SCALE)


def test_integers_without_a_scale_are_reported_as_they_are() -> None:
    found = names(model([node("MatMulInteger", "x a.w_quantized", "y", PATH)], {"a.w_quantized": Q}))
    assert set(found) == {"a.w_quantized"} and found["a.w_quantized"].dtype == "I8"


def test_blocks_of_4_bits_are_refused() -> None:
    with pytest.raises(ModelError, match="quantized in blocks \\(MatMulNBits\\)"):
        read(model([node("MatMulNBits", "x w s", "y", K=3, N=4)], {"w": Q.view(np.uint8), "s": B}))


def test_a_wrapper_around_the_model_is_taken_off_its_names() -> None:
    layers = (
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    bert = {f"encoder.layer.0.{layer}.weight": W for layer in layers}
    bert |= {"embeddings.word_embeddings.weight": W, "embeddings.LayerNorm.weight": B, f"{LAYER}.bias": B}
    found = read(
        model([node("MatMul", "x w", "y", "/inner" + PATH)], {"w": W, **{f"inner.{n}": a for n, a in bert.items()}})
    )
    assert {tensor.name for tensor in found.tensors} == {*bert, f"{LAYER}.weight"}
    assert texts(found.warnings) == ("the names in it begin with inner., which was left out",)


# --- where the numbers are ---

TYPED = {
    "float_data": (TensorProto.FLOAT, [1.5, -2.0, 3.0], "F32"),
    "int32_data as int8": (TensorProto.INT8, [-128, -1, 127], "I8"),
    "int32_data as uint8": (TensorProto.UINT8, [0, 128, 255], "U8"),
    "int32_data": (TensorProto.INT32, [-(2**31), 0, 2**31 - 1], "I32"),
    "int64_data": (TensorProto.INT64, [-(2**40), 0, 2**40], "I64"),
    "uint64_data": (TensorProto.UINT64, [0, 1, 2**40], "U64"),
    "double_data": (TensorProto.DOUBLE, [1.5, -2.0, 0.25], "F64"),
    "halves as bits": (TensorProto.FLOAT16, [1.5, -2.0, 0.25], "F16"),
    "bfloat16 as bits": (TensorProto.BFLOAT16, [1.5, -2.0, 0.25], "BF16"),
    "float8 as bits": (TensorProto.FLOAT8E4M3FN, [1.5, -2.0, 0.25], "F8_E4M3"),
}


@pytest.mark.parametrize("case", TYPED)
def test_numbers_that_are_not_raw_data(case: str) -> None:
    kind, values, dtype = TYPED[case]
    found = names(model([], {"a.b": helper.make_tensor("a.b", kind, [3], values)}))["a.b"]
    assert found.dtype == dtype and found.flat().tolist() == np.array(values, np.float32).tolist()


def external(location: str, **place: int) -> Any:
    tensor = TensorProto(name=f"{LAYER}.weight", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=1)
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_data_in_a_file_beside(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "onnx"
    folder.mkdir(parents=True)
    (folder / "model.onnx_data").write_bytes(bytes(64) + W.T.tobytes())
    (folder / "model.onnx").write_bytes(model([], {"w": external("model.onnx_data", offset=64, length=48)}))
    for place in (tmp_path / "m", folder, folder / "model.onnx"):
        same(open_model(place).tensors[f"{LAYER}.weight"], W.T)


def test_a_file_beside_is_opened_once_however_it_is_spelt(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for at, location in enumerate(("data", "./data", ".//data", "././data")):
        tensors[str(at)] = external(location, offset=48 * (at % 2))
        tensors[str(at)].name = f"a.{at}"
    (tmp_path / "data").write_bytes(W.T.tobytes() + OTHER.tobytes())
    (tmp_path / "model.onnx").write_bytes(model([], tensors))
    opened = open_model(tmp_path)
    assert [fact.name for fact in opened.files] == ["model.onnx", "data"] and len(opened.reads) == 2
    for at in range(4):
        same(opened.tensors[f"a.{at}"], OTHER.reshape(4, 3) if at % 2 else W.T)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (external("../secret", length=48), "sends to '../secret', which is no file inside the model"),
        (external("/etc/passwd"), "no file inside the model"),
        (external("C:\\x"), "no file inside the model"),
        (external("link"), "a link to a place outside"),
        (external("absent"), "has its weights in 'absent', which is not there"),
        (external(""), "no file inside the model"),
        (external("data", offset=32), "puts 'encoder.layer.0.attention.self.query.weight' behind the end of 'data'"),
        (external("data", offset=-8), "in a way that is no number"),
        (external("data", length=40), "40 bytes, which do not fit F32 of [4, 3]"),
    ],
)
def test_data_beside_that_is_refused(tensor: Any, why: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(48))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "data").write_bytes(bytes(48))
    (folder / "model.onnx").write_bytes(model([], {"w": tensor}))
    with pytest.raises(ModelError) as error:
        open_model(folder)
    assert why in error.value.message


class Recorder:
    def __init__(self) -> None:
        self.fetched = 0

    def touch(self, start: int, stop: int) -> None:
        raise AssertionError("opening a file looks at no tensor")

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.fetched += sum(stop - start for start, stop in ranges)


def test_of_a_remote_file_only_headers_are_fetched() -> None:
    large = np.zeros((1 << 10, 1 << 10), np.float32)
    data = np.frombuffer(model([node("MatMul", "x w", "y", PATH)], {"w": large, "a.weight": large}), np.uint8)
    watch = Recorder()
    found = read_onnx(Extent(data, 0, watch), "file", lambda name: None)
    assert [tensor.size for tensor in found.tensors] == [1 << 20] * 2
    assert watch.fetched < 100_000 < data.size


# --- hostile files ---


def typed(**fields: Any) -> Any:
    return TensorProto(**{"name": "a.b", "data_type": TensorProto.FLOAT, **fields})


def gemm(attribute: bytes) -> bytes:
    """A model with one Gemm, whose attribute is encoded by hand."""

    def field(number: int, value: bytes) -> bytes:
        return bytes([8 * number + 2, len(value)]) + value

    gemm = field(1, b"x") + field(1, b"a.weight") + field(2, b"y") + field(4, b"Gemm") + field(5, attribute)
    tensor = b"\x08\x01\x08\x01\x10\x01" + field(8, b"a.weight") + field(9, bytes(4))  # 1 x 1, float
    return field(7, field(1, gemm) + field(5, tensor))


WHOLE = model(*LINEAR["path and bias"])
HOSTILE = {
    "a text": (b"version https://git-lfs.github.com/spec/v1\n", "no ONNX file"),
    "nothing": (b"", "no graph"),
    "cut": (WHOLE[:-40], "cut short"),
    "two graphs": (WHOLE + WHOLE, "no graph, or several"),
    "too few bytes": (model([], {"a": typed(dims=[3], raw_data=bytes(8))}), "8 bytes, which do not fit F32 of [3]"),
    "a negative size": (model([], {"a": typed(dims=[-1], raw_data=bytes(8))}), "an absurd shape"),
    "an absurd size": (model([], {"a": typed(dims=[1 << 40, 1 << 40, 0])}), "an absurd shape"),
    "a size without bytes": (model([], {"a": typed(dims=[1 << 40])}), "0 bytes, which do not fit"),
    "many dimensions": (model([], {"a": typed(dims=[1] * 9, raw_data=bytes(4))}), "more than 8 dimensions"),
    "two of one name": (model([], {"a": typed(dims=[0]), "b": typed(dims=[0])}), "two tensors 'a.b'"),
    "in pieces": (model([], {"a": typed(dims=[1], raw_data=bytes(4), float_data=[1])}), "in pieces"),
    "numbers of another type": (model([], {"a": typed(dims=[1], double_data=[1])}), "numbers of another type"),
    "a name too long": (model([node("MatMul", "x w", "y", "n" * 70_000)], {}), "a name that is none, or too long"),
    "a float of three bytes": (gemm(b"\x0a\x05alpha\x12\x03abc"), "should be a float and is none"),
    "a float that is a number": (gemm(b"\x0a\x05alpha\x10\x01"), "should be a float and is none"),
    "a group": (b"\x3b" + WHOLE, "no protocol buffer"),
    "a number that does not end": (b"\xff" * 20, "no protocol buffer"),
    "a length beyond the end": (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_are_refused(case: str) -> None:
    data, why = HOSTILE[case]
    with pytest.raises(ModelError) as error:
        read(data)
    assert why in error.value.message


def test_chains_and_circles_of_nodes_end() -> None:
    circle = [node("Identity", "b", "a"), node("Identity", "a", "b"), node("MatMul", "x a", "y", PATH)]
    chain = [node("Identity", f"n{i}", f"n{i + 1}") for i in range(5000)] + [node("MatMul", "x n5000", "y", PATH)]
    lookups = [node("Gather", "q x", "g0")] + [node("Identity", f"g{i}", f"g{(i + 1) % 3}") for i in range(3)]
    assert set(names(model([*circle, *chain, *lookups], {"n0": W, "q": Q}))) == {"n0"}


def test_hubs_of_nodes_end() -> None:
    """Many products of one name that many sums read, and nodes with many inputs that many products read."""
    products = [node("MatMul", "x w", "p", f"n{i}") for i in range(4000)]
    sums = [node("Add", "p b", f"y{i}") for i in range(4000)]
    wide = [node("Mul", "w " * 4000, "v")] + [node("MatMul", "x v", f"z{i}", f"m{i}") for i in range(4000)]
    assert set(names(model([*products, *sums, *wide], {"w": W, "a.bias": B}))) == {"w", "a.bias"}


def test_a_gemm_with_a_proper_float_is_read() -> None:
    """What the two hostile ones differ from."""
    assert set(names(gemm(b"\x0a\x05alpha\x15" + np.float32(1).tobytes()))) == {"a.weight"}


def test_single_numbers_of_a_file_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = helper.make_tensor("a.b", TensorProto.INT64, [1000], range(1000))
    more = helper.make_tensor("a.c", TensorProto.INT64, [1000], range(1000))
    data = model([], {"b": numbers, "c": more})
    monkeypatch.setattr(onnx_graph, "MAX_DECODED", 16_000)
    assert names(data)["a.c"].flat().tolist() == list(range(1000))
    monkeypatch.setattr(onnx_graph, "MAX_DECODED", 15_999)
    with pytest.raises(ModelError, match=r"as single numbers, 'a\.c' among them"):
        read(data)


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    places = range(0, max(number.bit_length(), 1), 7)
    return bytes(number >> place & 127 | (128 if place != places[-1] else 0) for place in places)


@pytest.mark.parametrize("piece", [10, 11, 1 << 18])
def test_packed_numbers_are_decoded_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "PIECE", piece)
    numbers = [0, 1, 127, 128, -1, 2**40, -(2**63), 2**63 - 1] * 3
    packed = b"".join(map(varint, numbers))
    assert protobuf.varints(packed).tolist() == numbers
    for bad in (packed + b"\x80", b"\x80" * 10 + packed, b"\xff" * 40):
        with pytest.raises(protobuf.ProtobufError):
            protobuf.varints(bad)


def test_a_file_of_fields_alone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_NUMBERS", 1000)
    with pytest.raises(ModelError, match="more fields than any we know"):
        read(b"\x08\1" * 1000 + WHOLE)


@pytest.mark.parametrize("case", ["path and bias", "MatMulInteger"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files(case: str, data: st.DataObject) -> None:
    """Whatever the bytes: contents that can be read, or one sentence."""
    raw = bytearray(WHOLE if case in LINEAR else model(*QUANTIZED[case][:2]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.sampled_from((1, 1, 1, 4)))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        found = read(bytes(raw))
    except ModelError as error:
        assert error.message.startswith("file ") and error.message.endswith(".")
    else:
        assert all(tensor.flat(0, 100).size <= 100 for tensor in found.tensors)


# --- as models ---


@pytest.mark.parametrize(
    ("files", "chosen", "left"),
    [
        (["model.onnx"], "model.onnx", ()),
        (["onnx/model.onnx", "onnx/q.onnx"], "onnx/model.onnx", ("onnx/q.onnx: not read (an ONNX file)",)),
        (["onnx/decoder.onnx"], "onnx/decoder.onnx", ()),
        (["a.onnx", "b.onnx"], None, ()),
    ],
)  # fmt: skip
def test_the_file_of_a_folder(files: list[str], chosen: str | None, left: tuple[str, ...], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(WHOLE)
    if chosen is None:
        with pytest.raises(ModelError, match=r"several ONNX files \(a.onnx, b.onnx\).* Name one"):
            open_model(tmp_path)
    else:
        opened = open_model(tmp_path)
        assert [fact.name for fact in opened.files] == [chosen] and texts(opened.warnings) == left
        same(opened.tensors[f"{LAYER}.weight"], W.T)


def test_names_that_the_exporter_of_torch_notes_on_nodes() -> None:
    """torch.onnx.export with dynamo folds transposes into nameless tensors, and notes each node's module."""
    rng = np.random.default_rng(0)
    table, up = rng.standard_normal((30, 8)).astype("f4"), rng.standard_normal((12, 8)).astype("f4")
    nodes = [
        onnx.helper.make_node("Gather", ["lm_head.weight", "ids"], ["x"], "node_embedding"),
        onnx.helper.make_node("MatMul", ["x", "val_7"], ["y"], "node_linear"),
        onnx.helper.make_node("Transpose", ["lm_head.weight"], ["t"], "node_t", perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["x", "t"], ["z"], "node_linear_1"),
    ]
    modules = ["model.embed_tokens", "model.layers.0.mlp.up_proj", "lm_head", "lm_head"]
    for node, module in zip(nodes, modules, strict=True):
        note = node.metadata_props.add()
        note.key, note.value = "pkg.torch.onnx.name_scopes", str(["", "model", module, node.name])
    stored = [onnx.numpy_helper.from_array(a, n) for n, a in (("lm_head.weight", table), ("val_7", up.T.copy()))]
    made = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], stored))
    found = {t.name: t for t in read(made.SerializeToString()).tensors}
    assert {name: t.shape for name, t in found.items()} == {
        "model.embed_tokens.weight": (30, 8), "model.layers.0.mlp.up_proj.weight": (12, 8)
    }  # fmt: skip
    assert np.array_equal(found["model.layers.0.mlp.up_proj.weight"].flat(), up.reshape(-1))
