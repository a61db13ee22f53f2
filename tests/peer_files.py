"""The peer's published database, written for models of the zoo: its layout, its long form, its definitions.

The signals are made here from the stored names and the definitions alone, without the package's extractors, so that a
comparison of an imported row with one of ours compares two implementations.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zoo
from prints import fingerprint, in_memory

from provindex.common.tokens import Tokenizer
from provindex.models.tokenizer import read_tokenizer
from provindex.signals.anchors import peer_anchors

Rows = list[tuple[str, int | None, int, int | None, float]]
Arrays = dict[str, Any]
LAYER = re.compile(r"(?:layers|layer|h|block)\.(\d+)\.")
TABLES = (
    "model.embed_tokens.weight", "transformer.wte.weight", "bert.embeddings.word_embeddings.weight",
    "gpt_neox.embed_in.weight", "shared.weight",
)  # fmt: skip
PROJECTIONS = (
    "q_proj query k_proj key v_proj value o_proj dense out_proj gate_proj gate up_proj fc1 dense_h_to_4h wi_0 "
    "down_proj fc2 dense_4h_to_h wi_1 wo"
).split()
SCHEMA = pa.schema(
    [("signal", pa.string()), ("layer", pa.int32()), ("row", pa.int32()), ("col", pa.int32()), ("value", pa.float32())]
)


# --- the peer's definitions ---


def deep_signals(checkpoint: zoo.Checkpoint) -> Arrays:
    """Arrays by signal, as the peer's route for one file makes them."""
    tensors = {name: np.asarray(checkpoint.tensors[name], np.float32) for name in sorted(checkpoint.tensors)}
    table = next(tensors[name] for name in TABLES if name in tensors)
    found: Arrays = {"eas_self_sim": _eas(table, checkpoint), "end_histogram": _end(table)}
    norms = [v for n, v in tensors.items() if re.search("norm|ln_|post_attention", n.lower()) and v.ndim == 1]
    found["nlf_vector"], found["nlf_mode"], found["nlf_num_layers"] = _nlf([v for v in norms if v.size >= 64])
    energy: dict[int, np.float32] = {}
    samples: dict[int, list[Any]] = {}
    for name, value in tensors.items():
        match = LAYER.search(name)
        if match is None or value.ndim < 2:
            continue
        layer = int(match[1])
        energy[layer] = energy.get(layer, np.float32(0)) + np.linalg.norm(value)
        if any(word in name.lower() for word in PROJECTIONS):
            flat = value.reshape(-1)
            samples.setdefault(layer, []).append(flat if flat.size <= 4096 else flat[:: flat.size // 4096][:4096])
    profile = np.array([energy.get(i, 0) for i in range(max(energy) + 1)], np.float32)
    found["lep_profile"] = profile / profile.max()
    found["wvc_layer_sigs"] = {layer: np.concatenate(parts) for layer, parts in samples.items()}
    found["wsp_signature"] = np.zeros(2 * profile.size, np.float32)
    return {name: value for name, value in found.items() if not isinstance(value, dict) or value}


def _eas(table: Any, checkpoint: zoo.Checkpoint) -> Any:
    tokenizer = read_tokenizer(in_memory(checkpoint).tokenizer_files, checkpoint.config)
    assert isinstance(tokenizer, Tokenizer)
    rows = table[peer_anchors(tokenizer.first_id, tokenizer.vocab, len(table))]
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
    return (unit @ unit.T).astype(np.float32)


def _end(table: Any) -> Any:
    density, _ = np.histogram(np.linalg.norm(table, axis=1), bins=20, density=True)
    return (density / (density.sum() + 1e-10)).astype(np.float32)


def _nlf(norms: list[Any]) -> tuple[Any, str, int]:
    if len({v.size for v in norms}) == 1:
        return np.concatenate(norms), "direct", len(norms)
    stats = [(v.mean(), v.std(), v.max(), v.min()) for v in norms]
    return np.array(stats, np.float32).reshape(-1), "stats", len(norms)


# --- its files ---


def long_form(arrays: Arrays) -> Rows:
    """One number a row."""
    rows: Rows = []
    for name, value in arrays.items():
        if name == "eas_self_sim":
            rows += [(name, None, r, c, float(v)) for (r, c), v in np.ndenumerate(value)]
        elif name == "wvc_layer_sigs":
            rows += [(name, layer, r, None, float(v)) for layer, s in value.items() for r, v in enumerate(s)]
        elif isinstance(value, np.ndarray):
            rows += [(name, None, r, None, float(v)) for r, v in enumerate(value)]
    return rows


def parquet(rows: Rows, schema: pa.Schema = SCHEMA, **options: Any) -> bytes:
    """A Parquet file of such rows."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **({"compression": "snappy"} | options))
    return bytes(sink.getvalue().to_pybytes())


class Database:
    """A database that grows asset by asset, all of one family."""

    def __init__(self, root: Path, family: str = "org--zoo") -> None:
        self.root, self.family = root, family
        self.entries: list[dict[str, Any]] = []
        self.write_catalog()

    def write_catalog(self) -> None:
        path = f"catalog/by-family/{self.family}.json"
        shards = [{"family_id": self.family, "shard_path": path, "asset_count": len(self.entries)}]
        self.put("catalog/manifest.json", {"updated_at": "2026-04-20", "shard_strategy": "by_family", "shards": shards})
        self.put(path, {"shard_id": "x", "family": {"family_id": self.family}, "assets": self.entries})

    def put(self, name: str, what: Any) -> Path:
        """Write a file: bytes, text, or anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            what if isinstance(what, bytes) else (what if isinstance(what, str) else json.dumps(what)).encode()
        )
        return path

    def features(self, name: str) -> str:
        return f"features/base/by-family/{self.family}/{name}__hf-safetensors_features.json"

    def deep(self, name: str) -> str:
        return f"features/deep-signals/by-family/{self.family}/{name}__hf-safetensors_deep-signals.parquet"

    def add(
        self, name: str, checkpoint: zoo.Checkpoint, *, raw: bytes | None = None, arrays: Arrays | None = None
    ) -> dict[str, Any]:
        """Add an asset with its deep signals; raw: other bytes for their file. Returns its features."""
        found = deep_signals(checkpoint) if arrays is None else arrays
        written = parquet(long_form(found)) if raw is None else raw
        bundle = self._bundle(name, checkpoint, found, hashlib.sha256(written).hexdigest())
        entry = {
            "asset_id": f"{name}__hf-safetensors", "model_id": name, "format": "safetensors",
            "feature_path": self.features(name), "param_bucket": "<=1B", "canonical_name": name,
            "source_uri": f"https://huggingface.co/org/{name}",
        }  # fmt: skip
        self.entries.append(entry)
        self.put(self.features(name), bundle)
        self.put(self.deep(name), written)
        self.write_catalog()
        return bundle

    def _bundle(self, name: str, checkpoint: zoo.Checkpoint, found: Mapping[str, Any], digest: str) -> dict[str, Any]:
        fp = fingerprint(checkpoint, name)
        assert fp.tfv is not None
        tokenizer = {key: value for key, value in fp.tfv.to_json().items() if key != "all_merges_hash"}
        lengths = {"hidden_size": fp.mfi.hidden_size, "num_layers": fp.mfi.num_hidden_layers, "eas_anchor_count": 64}
        lengths |= {key: found[key] for key in ("nlf_mode", "nlf_num_layers") if key in found}
        ref = {"type": "deep_signals", "path": self.deep(name), "checksum": f"sha256:{digest}", "signals": []}
        return {
            "model_id": name, "asset_id": f"{name}__hf-safetensors", "family_id": self.family, "status": "ok",
            "updated_at": "2026-04-16T19:10:30+00:00", "missing_signals": [], "mfi": fp.mfi.to_json(),
            "tfv": tokenizer, "vocab": {"size": fp.tfv.vocab_size}, "signals": lengths, "artifact_refs": [ref],
        }  # fmt: skip


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def zip_entries(folder: Path, prefix: str) -> Iterable[tuple[str, bytes]]:
    """Names and bytes of the files of a folder, for an archive."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{prefix}/{path.relative_to(folder)}", path.read_bytes()
