"""Small valid files of every format, always the same bytes."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peer_files
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizer_files
import tokenizers
import zoo
from prints import fingerprint
from tokenizers import models, pre_tokenizers

from provindex.fingerprint import parquet
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import COLUMNS, to_row
from provindex.index import dataset

CORPUS = Path(__file__).parents[1] / "data" / "fuzz"
PART = b"\n@@%b@@\n"  # before each file of an input that is several


def kept(target: str) -> list[bytes]:
    """The corpus of a target: inputs that failed once, and valid files that are not made here."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def joined(files: Mapping[str, bytes | str | dict[str, Any]]) -> bytes:
    """Several files as one input."""
    raw = {
        n: d if isinstance(d, bytes) else (d if isinstance(d, str) else dumped(d)).encode() for n, d in files.items()
    }
    return b"".join(PART % name.encode() + data for name, data in raw.items())


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- weights ---


def safetensors_file(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Any = None) -> bytes:
    """A file of tensors by name: dtype, shape, bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = dumped(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(256)) * (at // 256) + bytes(at % 256)


def safetensors() -> list[bytes]:
    layer = "model.layers.0.self_attn.q_proj.weight"
    return [
        safetensors_file({"a": ("F32", (2, 3), 24), layer: ("BF16", (4, 8), 64), "empty": ("F16", (0, 7), 0)}),
        safetensors_file({"scalar": ("F64", (), 8), "b": ("I8", (2, 2, 2), 8)}, {"format": "pt", "x": "ä"}),
        safetensors_file({"8": ("F8_E4M3", (5, 5), 25), "4": ("F4", (2, 4), 4), "m": ("BOOL", (3,), 3)}),
        safetensors_file({f"n.{i}": ("U8", (1,), 1) for i in range(40)}),
        safetensors_file({}),
    ]


def shards_index() -> list[bytes]:
    weights = {f"model.layers.{i}.w": f"model-0000{i % 2 + 1}-of-00002.safetensors" for i in range(6)}
    whole = {"metadata": {"total_size": 123}, "weight_map": weights}
    return [dumped(whole).encode(), dumped({"weight_map": {"a": "x/y.safetensors"}}).encode("utf-8-sig")]


def file_names() -> list[bytes]:
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    return [
        "\n".join(names).encode()
        for names in (
            ["config.json", "model.safetensors", "consolidated.safetensors", "README.md"],
            [*shards, "model.safetensors.index.json", "tokenizer.json"], shards, ["pytorch_model.bin", "config.json"],
            ["adapter_model.safetensors", "adapter_config.json"], ["sub/model.safetensors", "x.gguf"], [""],
        )
    ]  # fmt: skip


def model() -> list[bytes]:
    """Whole models: config, tokenizer, the header's JSON and the weights, each by itself."""
    found = []
    for make in (zoo.llama, zoo.gpt2, zoo.bert, zoo.t5):
        with tempfile.TemporaryDirectory() as name:
            checkpoint = make(1, hidden=16, layers=1)
            zoo.write(checkpoint, Path(name))
            raw = (Path(name) / "model.safetensors").read_bytes()
            end = 8 + int.from_bytes(raw[:8], "little")
            files = {"config.json": checkpoint.config, "tokenizer.json": checkpoint.tokenizer or ""}
            found.append(joined({**files, "header": raw[8:end], "weights": raw[end:]}))
    return found


# --- config and card ---

CONFIGS: tuple[dict[str, Any], ...] = (
    {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160, "vocab_size": 442,
        "rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 512, "head_dim": 16,
    },
    {
        "model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "rope_parameters": {
            "full_attention": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4},
        }},
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "num_attention_heads": 2},
    },
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "activation_function": "gelu_new"},
    {"model_type": "falcon", "multi_query": False, "new_decoder_architecture": True, "num_kv_heads": 2, "n_head": 4},
    {"model_type": "t5", "d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "relu"},
    {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": None, "rope_parameters": None, "bias": True},
    {"model_type": "mpt", "attn_config": {"kv_n_heads": 2, "clip_qkv": 6}, "d_model": 64, "n_heads": 4},
)  # fmt: skip
CARDS = (
    "---\nlicense: apache-2.0\nbase_model: org/base  # a comment\ntags: [a]\n---\n# Title\n",
    "---\nlicense: 'mit'\nbase_model:\n- org/a\n- \"org/b\"\n---\n",
    "---\nbase_model: [org/a, org/b]\nlicense:\n---\n",
)


def config_json() -> list[bytes]:
    return [dumped(config).encode() for config in CONFIGS]


def config_and_card() -> list[bytes]:
    return [joined({"config.json": config, "README.md": CARDS[i % 3]}) for i, config in enumerate(CONFIGS)]


def names() -> list[bytes]:
    """Shapes and config of one model of every kind, and of the tables that need the most care."""
    found = []
    for make in (zoo.llama, zoo.gpt2, zoo.bert, zoo.t5, zoo.neox, zoo.qwen2):
        checkpoint = make(1)
        shapes = {name: list(array.shape) for name, array in checkpoint.tensors.items()}
        found.append({"config": checkpoint.config, "shapes": shapes})
    fused = "transformer.h.0.self_attention.query_key_value.weight"
    found.append(
        {"config": CONFIGS[3], "shapes": {fused: [128, 64], "transformer.h.0.mlp.dense_h_to_4h.weight": [8, 4]}}
    )
    experts = {
        "model.layers.0.mlp.experts.gate_up_proj": [8, 64, 32],
        "model.layers.0.mlp.experts.down_proj": [8, 16, 64],
    }
    found.append(
        {"config": {"model_type": "gpt_oss"}, "shapes": experts | {"model.layers.0.self_attn.q_proj.weight": [64, 64]}}
    )
    vision = {"vision_model.encoder.layers.0.self_attn.q_proj.weight": [8, 8], "0.auto_model.embeddings.x": [2]}
    found.append({"config": CONFIGS[1], "shapes": vision})
    return [dumped(one).encode() for one in found]


# --- tokenizers ---


def _byte_bpe() -> tokenizers.Tokenizer:
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789Ġ")}
    vocab = letters | {"<|endoftext|>": 37, "th": 38, "the": 39, "Ġt": 40}
    made = tokenizers.Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e"), ("Ġ", "t")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|endoftext|>"])
    return made


def _unigram() -> tokenizers.Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁the", -2.0), ("▁", -3.0), ("t", -4.0), ("h", -4.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.enable_padding(pad_token="<pad>", length=16)
    made.enable_truncation(8)
    return made


@cache
def _sentencepieces() -> tuple[bytes, bytes]:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x41>", 0.0, 6), ("user", 0.0, 4)]
    merged = [(text, -float(rank), 1) for rank, text in enumerate(["th", "▁th", "▁the", "▁", "t", "h", "e"])]
    return (
        tokenizer_files.sentencepiece([*pieces, *merged], 2),
        tokenizer_files.sentencepiece([*pieces, *merged], 1, dummy_prefix=False),
    )


def sentencepiece() -> list[bytes]:
    return list(_sentencepieces())


def ranks() -> list[bytes]:
    """Tokens with ranks: tekken.json, and lines as tiktoken has them."""
    tokens = [b"t", b"h", b"e", b"\xe3\x81", b"th", b"the", b" "]
    listed = [{"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for i, t in enumerate(tokens)]
    config = {"pattern": "\\s?\\w+|\\s", "default_vocab_size": 9, "default_num_special_tokens": 2, "version": "v7"}
    special = [{"rank": 0, "token_str": "<s>", "is_control": True}]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    return [
        dumped({"config": config, "vocab": listed, "special_tokens": special}).encode(),
        b"\n".join(lines) + b"\n",
        dumped({"config": config, "vocab": listed}).encode(),
    ]


def tokenizer() -> list[bytes]:
    """Every layout that models come in, as the files beside each other."""
    bpe, bert = _byte_bpe(), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n##re\nof\na\n"
    model = json.loads(bpe.to_str())["model"]
    settings = {
        "tokenizer_class": "GPT2TokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|endoftext|>"},
        "pad_token": None,
        "added_tokens_decoder": {"41": {"content": "<x>", "special": True}},
        "extra_ids": 3,
    }
    word_level = tokenizers.Tokenizer(models.WordLevel({"the": 0, "of": 1}))
    word_level.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"\w+|[^\w\s]+"), "isolated")
    llama = {"model_type": "llama"}
    return [
        joined(
            {"tokenizer.json": bpe.to_str(), "tokenizer_config.json": settings, "config.json": {"model_type": "gpt2"}}
        ),
        joined({"tokenizer.json": _unigram().to_str(), "special_tokens_map.json": {"eos_token": "</s>"}}),
        joined({"tokenizer.json": word_level.to_str(), "added_tokens.json": {"<new>": 7}}),
        joined(
            {"vocab.txt": bert, "tokenizer_config.json": {"do_lower_case": True}, "config.json": {"model_type": "bert"}}
        ),
        joined(
            {"vocab.json": model["vocab"], "merges.txt": "#version: 0.2\nt h\nth e\nĠ t\n", "config.json": CONFIGS[2]}
        ),
        joined({"tokenizer.model": _sentencepieces()[0], "config.json": llama}),
        joined({"tekken.json": ranks()[0].decode()}),
        joined({"qwen.tiktoken": ranks()[1].decode(), "config.json": {"model_type": "qwen"}}),
        joined(
            {"vocab.txt": "the 9\nth@@ 5\nof 3\n", "bpe.codes": "t h 5\n", "config.json": {"model_type": "roberta"}}
        ),
        joined(
            {
                "source.spm": _sentencepieces()[1],
                "vocab.json": {"</s>": 0, "<unk>": 1, "the": 2},
                "config.json": {"model_type": "marian"},
            }
        ),
        joined({"vocabulary.json": ["<unk>", "Ġthe", "of"], "config.json": {"model_type": "whisper"}}),
        joined({"spiece.model": _sentencepieces()[1], "config.json": {"model_type": "t5"}}),
        joined(
            {
                "sentencepiece.bpe.model": _sentencepieces()[1],
                "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"},
            }
        ),
    ]


# --- Parquet ---


@cache
def print_of_llama() -> Fingerprint:
    """A fingerprint with every panel, as small as they come."""
    return fingerprint(zoo.llama(1, hidden=64, layers=1, intermediate=64), "org/model")


def _fingerprint_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.parquet"
        parquet.write_fingerprint(print_of_llama(), path)
        return path.read_bytes()


def fingerprint_file() -> list[bytes]:
    return [_fingerprint_file()]


def shard() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = dataset.write_shard(folder, [print_of_llama()], "fuzz")
        return [joined({"models": (folder / made.models).read_bytes(), "panels": (folder / made.panels).read_bytes()})]


def row() -> list[bytes]:
    """The columns of a row; of a long array only how many values it has, which the target takes from the real one."""
    found = to_row(print_of_llama())
    short = {}
    for column in COLUMNS:
        value = found[column.name]
        if isinstance(value, np.ndarray):
            value = value.tolist() if value.size <= 64 else {"size": value.size}
        short[column.name] = value
    texts = {name: json.loads(found[name]) for name in ("mfi", "tfv", "absences", "files")}  # JSON in JSON, opened
    return [dumped(short | texts).encode()]


def parquet_column() -> list[bytes]:
    """Column chunks of one list of numbers, not packed: plain, in several pages, as a byte stream split."""
    table = pa.table({"x": pa.array([list(range(300))], pa.list_(pa.float32()))})
    found = []
    for options in (
        {"compression": "none"}, {"compression": "none", "data_page_size": 64},
        {"compression": "none", "column_encoding": {"x.list.element": "BYTE_STREAM_SPLIT"}},
    ):  # fmt: skip
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, use_dictionary=False, write_statistics=False, **options)
        raw = sink.getvalue().to_pybytes()
        column = pq.read_metadata(pa.BufferReader(raw)).row_group(0).column(0)
        found.append(raw[column.data_page_offset : column.data_page_offset + column.total_compressed_size])
    return found


def long_form() -> list[bytes]:
    arrays = {
        "eas_self_sim": np.eye(3, dtype=np.float32), "end_histogram": np.full(20, 0.05, np.float32),
        "nlf_vector": np.ones(128, np.float32), "lep_profile": np.array([1, 0.5], np.float32),
        "wvc_layer_sigs": {0: np.ones(8, np.float32), 1: np.ones(8, np.float32)},
    }  # fmt: skip
    rows = peer_files.long_form(arrays)
    return [
        peer_files.parquet(rows),
        peer_files.parquet(rows, compression="none", use_dictionary=["signal"], row_group_size=100),
        peer_files.parquet(rows[:9], write_statistics=False, version="1.0"),
    ]


# --- what indexes are described with ---


@cache
def peer_database() -> dict[str, bytes]:
    """The files of a database of one model by their paths: the catalogue's two, the features, the deep signals."""
    with tempfile.TemporaryDirectory() as name:
        made = peer_files.Database(Path(name))
        made.add("model", zoo.llama(1, layers=1))
        return {path: (made.root / path).read_bytes() for path in peer_files.names_below(made.root) if "." in path}


def peer() -> list[bytes]:
    """What is JSON of it; the fourth file is bound to one of them by its digest."""
    return [joined({path.replace("/", "."): raw for path, raw in peer_database().items() if path.endswith(".json")})]


def manifest() -> list[bytes]:
    shard = {
        "models": "data/models/a.parquet", "panels": "data/panels/a.parquet", "rows": 2,
        "sha256": {"data/models/a.parquet": "0" * 64, "data/panels/a.parquet": "1" * 64},
        "bytes": {"data/models/a.parquet": 10, "data/panels/a.parquet": 20},
    }  # fmt: skip
    document = {
        "schema": 1, "id": "x", "built": "2026-01-01T00:00:00Z", "revision": "0" * 12, "models": 2, "shards": [shard],
        "fingerprint_version": dataset.FINGERPRINT_VERSION, "calibration": "calibration/01234567.json",
        "commit": "a" * 40,
    }  # fmt: skip
    return [dumped(document).encode(), dumped(document | {"shards": [], "calibration": None, "commit": None}).encode()]


def calibration() -> list[bytes]:
    null = {"n": 1200, "median": 0.1, "p99": 0.2, "p999": 0.3}
    conformal = null | {"scores": [[0.1, 1000], [0.2, 199], [0.5, 1]]}
    statistics = {"MFI": null, "WVC": null | {"p999": None}, "triple_agreement": conformal, "branch_sketch": conformal}
    strata = [{"name": name, "pairs": 1200, "statistics": statistics} for name in ("pooled", "unknown")]
    document = {
        "schema": 1, "fingerprint_version": dataset.FINGERPRINT_VERSION, "models": 50, "strata": strata, "more": [1],
    }  # fmt: skip
    return [dumped(document).encode()]


def archive() -> list[bytes]:
    """Zip files as `peers.archive` takes them, stored and deflated, with what it passes over and what it refuses."""
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as written:
            for name in ("top/by-family/a/x.parquet", "top/by-family/b/y.parquet", "__MACOSX/._x", "README"):
                written.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), b"some bytes " * 20, method)
        found.append(out.getvalue())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as written, written.open("by-family/big", "w", force_zip64=True) as entry:
        entry.write(b"0" * 100)
    return [*found, out.getvalue()]


def spans() -> list[bytes]:
    some = ("[[0, 10], [20, 4096]]", "[]", "[[0, 65536], [10, 20], [65536, 65537]]")
    return [b'{"file": [7, 7], "here": %s}' % ranges.encode() for ranges in some]


def notes() -> list[bytes]:
    """What a pull leaves on a machine: which commit is in force, and which dataset answers."""
    left_out = [{"path": "data/models/b.parquet", "digest": "2" * 64, "reason": "bad"}]
    current = {"repo": "org/x", "commit": "a" * 40, "asked": "main", "pulled": "2026", "previous": None}
    whole = current | {"left_out": left_out, "previous": "b" * 40}
    return [joined({"current.json": one, "default": "org/x\n"}) for one in (whole, current | {"left_out": []})]


def listing() -> list[bytes]:
    """What the Hub says of the files of a repository."""
    files = [
        {"path": "data/models/a.parquet", "size": 10, "blob": "a" * 40, "sha256": "0" * 64},
        {"path": "data/panels/a.parquet", "size": 20, "blob": "b" * 40, "sha256": None},
        {"path": "README.md", "size": 1, "blob": "c" * 40, "sha256": None},
    ]
    return [dumped(files).encode()]


def json_texts() -> list[bytes]:
    return [b'{"a": 1, "b": [1.5, true, null, "\\u00e4"], "c": {"d": "e"}}', *config_json(), *calibration()]
