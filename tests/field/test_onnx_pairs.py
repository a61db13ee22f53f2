"""Exports of optimum in several files: encoder_model.onnx with decoder_model.onnx, or with both decoders merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provindex.common.errors import ModelError
from provindex.common.reasons import Code
from provindex.models.source import Model, open_model
from provindex.roles.names import resolve

onnx = pytest.importorskip("onnx")
RNG = np.random.default_rng(0)
WIDTH = 8


def matrix(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


TABLE = matrix(20, WIDTH)
LAYER = {"SelfAttention.q": matrix(6, WIDTH), "SelfAttention.k": matrix(6, WIDTH), "SelfAttention.v": matrix(6, WIDTH)}
ENCODER = {f"block.{n}.layer.0.{name}.weight": value + n for n in (0, 1) for name, value in LAYER.items()}
DECODER = {f"decoder.block.0.layer.{place}.{name}.weight": value - 1 for place, name, value in [
    (0, "SelfAttention.q", LAYER["SelfAttention.q"]), (1, "EncDecAttention.k", LAYER["SelfAttention.k"])]}  # fmt: skip
NORMS = {"final_layer_norm.weight": matrix(WIDTH)}


def products(weights: dict[str, np.ndarray], counter: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """A MatMul for each matrix, whose stored name is a counter and whose node's name is the path of its module."""
    nodes, stored = [], {}
    for at, (name, value) in enumerate(weights.items()):
        counted = f"onnx::MatMul_{counter + at}"
        stored[counted] = np.ascontiguousarray(value.T)
        path = "/" + name.removesuffix(".weight").replace(".", "/").replace("block/", "block.").replace(
            "layer/", "layer."
        )
        nodes.append(onnx.helper.make_node("MatMul", ["x", counted], [f"y{counter + at}"], f"{path}/MatMul"))
    return nodes, stored


def save(path: Path, nodes: list[Any], stored: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = onnx.helper.make_graph(nodes, "g", [], [], tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def export(place: Path, table: np.ndarray = TABLE, *, merged: bool = False) -> Path:
    nodes, stored = products(ENCODER, 100)
    save(place / "encoder_model.onnx", nodes, stored | NORMS | {"embed_tokens.weight": table})
    nodes, stored = products(DECODER, 200)
    lone = {"decoder.final_layer_norm.weight": NORMS["final_layer_norm.weight"], "shared.weight": TABLE}
    if merged:  # an If: with the cache, and without it, where the keys of the encoder are made
        for node in nodes:
            node.input[1] += "_merged_0"  # optimum's name for what both decoders have
        stored, lone = ({f"{name}_merged_0": value for name, value in these.items()} for these in (stored, lone))
        branches = {"then_branch": nodes[:1], "else_branch": nodes}
        graphs = {n: onnx.helper.make_graph(part, n, [], []) for n, part in branches.items()}
        nodes = [onnx.helper.make_node("If", ["use_cache_branch"], ["y"], "optimum::if", **graphs)]
    save(place / ("decoder_model_merged.onnx" if merged else "decoder_model.onnx"), nodes, stored | lone)
    return place


def check(model: Model, extra: int = 0) -> None:
    expected = {f"encoder.{name}": value for name, value in {**ENCODER, **NORMS}.items()} | DECODER
    expected |= {"decoder.final_layer_norm.weight": NORMS["final_layer_norm.weight"], "shared.weight": TABLE}
    assert len(model.tensors) == len(expected) + extra
    for name, value in expected.items():
        assert np.array_equal(model.tensors[name].flat().reshape(model.tensors[name].shape), value), name
    assert not resolve({name: t.shape for name, t in model.tensors.items()}, {"model_type": "t5"}).unknown
    assert any(warning.code is Code.ONNX_PAIR for warning in model.warnings)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("below", ["", "onnx"])
def test_encoder_and_decoder_are_one_model(below: str, merged: bool, tmp_path: Path) -> None:
    export(tmp_path / below, merged=merged)
    if not merged:  # repeats the decoder, and is named as not read
        nodes, stored = products(DECODER, 300)
        save(tmp_path / below / "decoder_with_past_model.onnx", nodes, stored)
    model = open_model(tmp_path)
    check(model)
    left = {warning.subject for warning in model.warnings if warning.code is Code.FILE_NOT_READ}
    assert left == (set() if merged else {(Path(below) / "decoder_with_past_model.onnx").as_posix()})


def test_a_table_of_its_own_is_kept(tmp_path: Path) -> None:
    model = open_model(export(tmp_path / "m", TABLE + 1))
    check(model, extra=1)
    assert np.array_equal(model.tensors["encoder.embed_tokens.weight"].flat(), (TABLE + 1).reshape(-1))


def test_another_precision_is_read_where_it_is_the_only_one(tmp_path: Path) -> None:
    place = export(tmp_path / "m")
    for name in ("encoder_model", "decoder_model"):
        (place / f"{name}.onnx").rename(place / f"{name}_fp16.onnx")
    check(open_model(place))
    export(place)  # both: the one without a word
    model = open_model(place)
    assert [fact.name for fact in model.files] == ["encoder_model.onnx", "decoder_model.onnx"]
    for name in ("encoder_model", "decoder_model"):
        (place / f"{name}.onnx").rename(place / f"{name}_q8.onnx")
    with pytest.raises(ModelError, match="several ONNX files"):
        open_model(place)


def test_one_of_both_can_be_named(tmp_path: Path) -> None:
    place = export(tmp_path / "m")
    model = open_model(place / "decoder_model.onnx")
    assert "shared.weight" in model.tensors and not any(name.startswith("encoder.") for name in model.tensors)


@pytest.mark.parametrize("where", ["If", "Loop", "nested", "function"])
def test_weights_in_subgraphs_that_are_not_read_are_counted(where: str, tmp_path: Path) -> None:
    """The larger branch of an If is read; what else has tensors is named, so that no gate passes beside it."""
    make = onnx.helper
    hidden = [onnx.numpy_helper.from_array(matrix(20, 20), "stolen")]
    other = make.make_graph([], "other", [], [], hidden)
    nodes, stored = products(ENCODER, 100)
    inner = [make.make_node("Loop", ["n"], ["z"], "loop", body=other)]
    constant = make.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(matrix(20, 20), "c"))
    if where == "If":
        large = make.make_graph([], "larger", [], [], [onnx.numpy_helper.from_array(matrix(90, 90), "read")])
        nodes.append(make.make_node("If", ["b"], ["z"], "if", then_branch=other, else_branch=large))
    elif where == "Loop":
        nodes += inner
    elif where == "nested":
        nodes.append(make.make_node("If", ["b"], ["z"], "if", then_branch=make.make_graph(inner, "t", [], [])))
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()]
    functions = [make.make_function("d", "f", [], ["c"], [constant], [])] if where == "function" else []
    made = make.make_model(make.make_graph(nodes, "g", [], [], tensors), functions=functions)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    said = [w for w in open_model(tmp_path / "model.onnx").warnings if w.code is Code.ENTRY_NOT_READ]
    assert [dict(w.figures) for w in said] == [{"entry": "subgraphs", "n": 1}]
