"""Files of public bug reports, made small: what provindex says of each. The links are in README.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import packers
import pytest
import zoo
from hub_server import Hub
from torch_writer import checkpoint
from zoo import container

from provindex.api import resolve
from provindex.common.errors import ModelError, UnreadFormatError
from provindex.common.reasons import Code
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model
from provindex.report.words import text
from provindex.verdict.pair import compare

LLAMA, BERT = zoo.llama(1), zoo.bert(1)
Arrays = dict[str, np.ndarray]
STATE: Arrays = {name: np.asarray(value, np.float32) for name, value in LLAMA.tensors.items()}


def folder(path: Path, tensors: Arrays, config: object = LLAMA.config, file: str = "model.safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    container.save(path / file, tensors, dict.fromkeys(tensors, "F32"), list(tensors))
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fingerprint]:
    place = tmp_path_factory.mktemp("known")
    return {name: resolve(zoo.write(one, place / name)).fingerprint for name, one in (("llama", LLAMA), ("bert", BERT))}


def inside(name: str) -> str:
    """Each block of a layer in a wrapper of its own, as torch.compile and FSDP have them."""
    return name.replace(".self_attn", "._orig_mod.self_attn").replace(".mlp", "._orig_mod.mlp")


RENAMED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "torch.compile under DDP": lambda name: f"module._orig_mod.{name}",
    "torch.compile of blocks": inside,
    "AutoModel's names": lambda name: name.removeprefix("model."),
    "a part of an omni model": lambda name: f"thinker.{name}",
    "TRL's value model": lambda name: f"pretrained_model.{name}",
    "PEFT, merged": lambda name: f"base_model.model.{name}",
}


@pytest.mark.parametrize("case", RENAMED)
def test_wrappers_leave_the_model_what_it_is(case: str, known: dict[str, Fingerprint], tmp_path: Path) -> None:
    made = resolve(folder(tmp_path / "m", {RENAMED[case](name): value for name, value in STATE.items()})).fingerprint
    assert compare(known["llama"], made).relation == "identical"


def test_norms_of_tensorflow_have_other_names(known: dict[str, Fingerprint], tmp_path: Path) -> None:
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    state: Arrays = {}
    for name, value in BERT.tensors.items():
        end = next((end for end in ends if name.endswith(end)), "")
        state[name.removesuffix(end) + ends.get(end, "")] = np.asarray(value, np.float32)
    made = resolve(folder(tmp_path / "m", state, BERT.config)).fingerprint
    assert compare(known["bert"], made).relation == "identical"


def test_a_head_that_a_merge_wrote_out_is_the_table_again(known: dict[str, Fingerprint], tmp_path: Path) -> None:
    more = STATE | {"lm_head.weight": STATE["model.embed_tokens.weight"]}
    made = resolve(folder(tmp_path / "m", more)).fingerprint
    assert LLAMA.config["tie_word_embeddings"] and made.facts.parameters == known["llama"].facts.parameters
    assert compare(known["llama"], made).relation == "identical"


FLAT: dict[str, Arrays] = {
    "FSDP, one piece of each": {n: v if v.ndim == 1 else v.reshape(-1)[: v.size // 2] for n, v in STATE.items()},
    "FSDP, whole and flat": {name: value.reshape(-1) for name, value in STATE.items()},
    "FSDP, joined": {"model._fsdp_wrapped_module._flat_param": np.concatenate([v.reshape(-1) for v in STATE.values()])},
}


@pytest.mark.parametrize("case", FLAT)
def test_flat_pieces_are_no_model(case: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadFormatError, match=r"is a vector of [\d,]+ numbers, a flat piece of matrices") as caught:
        open_model(folder(tmp_path / "m", FLAT[case]))
    assert "merge-weights" in (caught.value.next_step or "")


def test_layers_of_a_pipeline_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "layer_01-model_00-model_states.pt"
    path.write_bytes(checkpoint({"input_layernorm.weight": STATE["model.norm.weight"]}))
    for reference in (path, tmp_path):
        with pytest.raises(UnreadFormatError, match="a model-parallel part of a model"):
            open_model(reference)


def test_a_tensor_without_type_is_named(tmp_path: Path) -> None:
    header = json.dumps({"lm_head.weight": {"dtype": "", "shape": [], "data_offsets": [0, 0]}}).encode()
    folder(tmp_path, STATE, file="model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match=r"lists 'lm_head\.weight' without type and numbers") as caught:
        open_model(tmp_path)
    assert "remove this tensor" in (caught.value.next_step or "")


def test_matrices_of_zeros_are_named(known: dict[str, Fingerprint], tmp_path: Path) -> None:
    """A damaged file whose header and size are whole; the layers of an upscaled model may begin so, too."""
    zero = {name: np.zeros_like(value) if "down_proj" in name else value for name, value in STATE.items()}
    made = resolve(folder(tmp_path / "m", zero)).fingerprint
    said = [text(warning) for warning in made.warnings]
    assert said == ["3 matrices hold nothing but zeros, the first of them model.layers.0.mlp.down_proj.weight"]
    assert compare(known["llama"], made).relation != "identical"
    assert not any("zeros" in text(warning) for warning in known["llama"].warnings)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "mlx"])
def test_a_dequantized_model_still_says_that_it_is_quantized(
    method: str, known: dict[str, Fingerprint], tmp_path: Path
) -> None:
    said = {"bits": 4, "group_size": 64} | ({} if method == "mlx" else {"quant_method": method})
    made = resolve(folder(tmp_path / "m", STATE, {**LLAMA.config, "quantization_config": said})).fingerprint
    assert compare(known["llama"], made).relation == "identical"


@pytest.mark.parametrize(("dtype", "width"), [("BF16", 2), ("F32", 4)])
def test_bytes_of_nf4_that_are_stored_as_floats(
    dtype: str, width: int, known: dict[str, Fingerprint], tmp_path: Path
) -> None:
    """bitsandbytes' `bnb_4bit_quant_storage`, for FSDP: the same bytes under another dtype."""

    def make(matrix: np.ndarray) -> packers.Quantized:
        made = packers.bnb_4bit(matrix)
        raw = made.stored["weight"][2]
        return replace(made, stored={**made.stored, "weight": (dtype, (len(raw) // width, 1), raw)})

    found = resolve(packers.written(LLAMA, tmp_path / "m", make)).fingerprint
    usual = resolve(packers.written(LLAMA, tmp_path / "usual", packers.bnb_4bit)).fingerprint
    assert found.content_sha256 == usual.content_sha256 and compare(known["llama"], found).relation == "quantized"


def test_files_that_are_cut_short_or_empty(tmp_path: Path) -> None:
    raw = (folder(tmp_path / "m", STATE) / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match="it is truncated or corrupt"):
        open_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(bytes(4096) + raw[4096:])
    with pytest.raises(ModelError, match="begins with zeros where its header should be"):
        open_model(tmp_path / "m")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is empty"):
        open_model(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("beside", ["mmproj-F16.gguf", "m-mmproj-f16.gguf", "imatrix.gguf", "m.imatrix.gguf"])
def test_what_lies_beside_a_gguf_file_is_not_the_model(beside: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m-Q8_0.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / beside).write_bytes(b"GGUF")
    model = open_model(tmp_path)
    assert [fact.name for fact in model.files] == ["m-Q8_0.gguf"]
    assert [warning.subject for warning in model.warnings if warning.code is Code.FILE_NOT_READ] == [beside]


def test_gguf_parts_that_cat_joined(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    for part in (0, 1):
        writer = gguf.GGUFWriter(tmp_path / f"{part}.gguf", "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_tensor(f"blk.{part}.attn_norm.weight", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (tmp_path / "m.gguf").write_bytes((tmp_path / "0.gguf").read_bytes() + (tmp_path / "1.gguf").read_bytes())
    with pytest.raises(ModelError, match=r"m\.gguf is part 1 of 2 of a model") as caught:
        open_model(tmp_path / "m.gguf")
    assert "not cat" in (caught.value.next_step or "")


def test_a_layer_behind_the_model_is_not_taken_for_it(known: dict[str, Fingerprint], tmp_path: Path) -> None:
    """2_Dense of sentence-transformers, moved to where the model's own file belongs."""
    dense = {"linear.weight": np.ones((8, 16), np.float32), "linear.bias": np.ones(8, np.float32)}
    made = resolve(folder(tmp_path / "m", dense)).fingerprint
    assert compare(known["llama"], made).verdict == "inconclusive"
    assert any(warning.code == "names-unknown" for warning in made.warnings)


@pytest.mark.parametrize("data", ["160ea76f-918f-11f1-8428-cc15316249d1.data", "model.onnx_data"])
def test_onnx_data_on_the_hub_under_a_name_of_its_own(data: str, hub: Hub) -> None:
    onnx = pytest.importorskip("onnx")
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    stored = onnx.helper.make_tensor("a.weight", 1, values.shape, values.tobytes(), raw=True)
    onnx.external_data_helper.set_external_data(stored, data, 0, values.nbytes)
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [stored]))
    repo = f"org/onnx-{len(data)}"
    hub.publish(repo, {"model.onnx": model.SerializeToString(), data: values.tobytes(), "other.onnx": b"",
                       "other.onnx_data": bytes(64)})  # fmt: skip
    found = open_model(repo, mode="exact")
    assert np.array_equal(found.tensors["a.weight"].flat(), values.reshape(-1))
    assert not any(path.endswith("other.onnx_data") for _, path, *_ in hub.log)
