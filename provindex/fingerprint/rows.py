"""A Fingerprint as one row of plain columns, and back; the row's own hash.

The column table is the schema of the dataset: `models` columns are small and answer every question of compatibility,
`panels` columns hold the arrays. Every array is one-dimensional here; its shape follows from the counts beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import IndexFormatError
from provindex.common.files import FileFact
from provindex.evidence import aligned, panels, sketch
from provindex.evidence.anchors import ANCHORS
from provindex.evidence.token_rows import COORDINATES, ROWS, TokenRows
from provindex.fingerprint.record import FINGERPRINT_VERSION, Facts, Fingerprint
from provindex.signals import mfi, nlf, tfv, wvc
from provindex.signals.peer_rows import mfi_of, tfv_of


class Column(NamedTuple):
    """name; type: "string", "int", "list<string>" or "list<float16|float32|float64|int8|int32|uint64>"; table: "models"
    or "panels"; content: whether the row's hash covers it; meaning: one line for the column reference."""

    name: str
    type: str
    table: str
    content: bool
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column("row_sha256", "string", "both", False, "sha256 over the content columns; joins models and panels"),
    Column("model_id", "string", "models", False, "Hub id, or the name of a file that has none"),
    Column("revision", "string", "models", False, "Hub commit that was read, if known"),
    Column("variant", "string", "models", False, "the dress of these weights (int8-dequantized ...), or empty"),
    Column("family", "string", "models", False, "root model of the weight lineage"),
    Column("license", "string", "models", False, "license tag of the model"),
    Column("parents", "list<string>", "models", False, "claimed parents"),
    Column("id_certainty", "string", "models", False, "certain, likely or none (no Hub id of its own); null if unsaid"),
    Column("source", "string", "models", False, "where license, lineage and id come from"),
    Column("fingerprint_version", "int", "models", True, "rows of different versions are not compared"),
    Column("mode", "string", "models", True, "exact, sampled or imported"),
    Column("content_sha256", "string", "models", True, "hash of the canonical weights; null in sampled mode"),
    Column("architecture", "string", "models", True, "model type of the text tower"),
    Column("main_stack", "string", "models", True, "decoder or encoder: the stack that is the text tower"),
    Column("parameters", "int", "models", True, "elements of all weight tensors"),
    Column("hidden", "int", "models", True, "residual width of the text tower"),
    Column("layers", "int", "models", True, "layers of the text tower"),
    Column("vocabulary", "int", "models", True, "rows of the token embedding"),
    Column("precision", "string", "models", True, "narrowest of bf16, f16, f32 that holds most weights exactly"),
    Column("nonfinite", "int", "models", True, "NaN and infinite values found"),
    Column("mfi", "string", "models", True, "MFI features, JSON"),
    Column("tfv", "string", "models", True, "TFV features, JSON; null without a tokenizer"),
    Column("vocabulary_size", "int", "models", True, "token strings of the tokenizer"),
    Column("end", "list<float64>", "models", True, "END: histogram of embedding row norms, 20 bins"),
    Column("lep_stacks", "list<string>", "models", True, "LEP: stack of each profile"),
    Column("lep_sizes", "list<int32>", "models", True, "LEP: length of each profile"),
    Column("lep", "list<float32>", "models", True, "LEP: relative energy by layer, profile after profile"),
    Column("absences", "string", "models", True, "why a signal or panel is missing, JSON object"),
    Column("warnings", "list<string>", "models", False, "sentences about this fingerprint"),
    Column("files", "string", "models", False, "files that were read: name, size, sha256; JSON"),
    Column("bytes_read", "int", "models", False, "bytes the fingerprint was made from"),
    Column("bytes_total", "int", "models", False, "bytes of all tensors"),
    Column("vocabulary_sketch", "list<uint64>", "panels", True, "VOA: MinHash of the token strings, 1,024 values"),
    Column("eas", "list<float32>", "panels", True, "EAS: upper triangle of the anchors' cosine matrix, row by row"),
    Column("eas_by_id", "list<float16>", "panels", True, "the same at fixed ids, for retrieval without a tokenizer"),
    Column("nlf_names", "list<string>", "panels", True, "NLF: norm tensors"),
    Column("nlf_sizes", "list<int32>", "panels", True, "NLF: their sizes"),
    Column("nlf", "list<float32>", "panels", True, "NLF: their values, tensor after tensor"),
    Column("wvc_names", "list<string>", "panels", True, "WVC: sampled tensors"),
    Column("wvc_layers", "list<int32>", "panels", True, "WVC: their layers"),
    Column("wvc_sizes", "list<int32>", "panels", True, "WVC: how many samples of each"),
    Column("wvc_scales", "list<float32>", "panels", True, "WVC: power of two that its samples were divided by"),
    Column("wvc", "list<float16>", "panels", True, "WVC: samples, tensor after tensor"),
    Column("hidden_width", "int", "panels", True, "hidden panels: residual width; 0 if there are none"),
    Column("hidden_keys", "list<string>", "panels", True, "hidden panels: kind/stack/layer/expert/group"),
    Column("hidden_heights", "list<int32>", "panels", True, "hidden panels: rows of each"),
    Column("hidden_panels", "list<float16>", "panels", True, "hidden panels: projected unit rows of 128"),
    Column("residual_width", "int", "panels", True, "residual panel: residual width; 0 if there is none"),
    Column("residual_ids", "list<int32>", "panels", True, "residual panel: ids of the 512 anchors, -1 if missing"),
    Column("residual_panel", "list<float16>", "panels", True, "residual panel: 64 virtual anchors by coordinates"),
    Column("residual_by_id", "list<float16>", "panels", True, "the same at 512 fixed token ids"),
    Column("residual_by_id_width", "int", "panels", True, "its residual width; 0 if there is none"),
    Column("sketch_keys", "list<string>", "panels", True, "branch sketches at anchor strings: stack/layer"),
    Column("sketch_layers", "list<float16>", "panels", True, "branch sketches: unit rows of 128, layer after layer"),
    Column("sketch_whole", "list<float16>", "panels", True, "branch sketches: the whole model, 256 values"),
    Column("sketch_id_keys", "list<string>", "panels", True, "branch sketches at fixed token ids: stack/layer"),
    Column("sketch_id_layers", "list<float16>", "panels", True, "the same as sketch_layers at fixed token ids"),
    Column("sketch_id_whole", "list<float16>", "panels", True, "the same as sketch_whole at fixed token ids"),
    Column("neuron_keys", "list<string>", "panels", True, "neuron panels: stack/layer"),
    Column("neuron_heights", "list<int32>", "panels", True, "neuron panels: neurons of each layer"),
    Column("neuron_widths", "list<int32>", "panels", True, "neuron panels: neurons that each layer has"),
    Column("neuron_parts", "int", "panels", True, "neuron panels: 3 (gate, up, down) or 2 (up, down); 0 without any"),
    Column("neuron_units", "list<int32>", "panels", True, "neuron panels: where each neuron stands in its layer"),
    Column("neuron_lengths", "list<float32>", "panels", True, "neuron panels: lengths of its parts"),
    Column("neurons", "list<int8>", "panels", True, "neuron panels: parts by 64 anchor coordinates at strings"),
    Column("neurons_by_id", "list<int8>", "panels", True, "the same at fixed token ids"),
    Column("token_row_ids", "list<int32>", "panels", True, "embedding rows kept one by one: their token ids"),
    Column("token_row_width", "int", "panels", True, "embedding rows: width of the whole row; 0 if there are none"),
    Column("token_rows", "list<float32>", "panels", True, "embedding rows at 32 fixed coordinates, row after row"),
    Column("block_keys", "list<string>", "panels", True, "blocks: canonical addresses of the matrices"),
    Column("block_exact", "list<uint64>", "panels", True, "blocks: two digests a matrix"),
    Column("block_bf16", "list<uint64>", "panels", True, "blocks: the same after rounding to bfloat16"),
    Column("block_f16", "list<uint64>", "panels", True, "blocks: the same after rounding to float16"),
    Column("block_samples", "list<float16>", "panels", True, "blocks: first 256 values of each, divided by its scale"),
    Column("block_scales", "list<float32>", "panels", True, "blocks: powers of two"),
    Column("block_counts", "list<int32>", "panels", True, "blocks: how many of the 256 values are in use"),
)  # fmt: skip

NULLABLE = frozenset({"revision", "family", "license", "id_certainty", "source", "content_sha256", "tfv"})
MAX_WIDTH, MAX_DEPTH = 1 << 24, 1 << 12  # neurons of a layer (experts in all), layers: more than any model has
MAX_ANCHORS, MAX_PANEL, END_BINS = 64, 64, 20  # what the extractors make; a row that claims more is not ours

Row = dict[str, Any]
# Most values of a list in one row: what the extractors make, or far more than any model has.
LIMITS = {
    "end": END_BINS, "vocabulary_sketch": 1024, "eas": MAX_ANCHORS * (MAX_ANCHORS + 1) // 2,
    "eas_by_id": MAX_ANCHORS * (MAX_ANCHORS + 1) // 2, "residual_ids": 512, "residual_panel": 1 << 16,
    "residual_by_id": 1 << 16, "hidden_keys": 1 << 13, "hidden_heights": 1 << 13, "nlf_names": 1 << 16,
    "nlf_sizes": 1 << 16, "wvc_names": 1 << 16, "wvc_layers": 1 << 16, "wvc_sizes": 1 << 16, "wvc_scales": 1 << 16,
    "block_keys": 1 << 16, "lep_stacks": 1 << 10, "parents": 1 << 10, "warnings": 1 << 13,
}  # fmt: skip
_EMPTY = {
    "int8": np.int8,
    "uint64": np.uint64,
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "int32": np.int32,
}


def to_row(fp: Fingerprint) -> Row:
    """The fingerprint as plain columns: str, int, None, lists of str, one-dimensional arrays."""
    row: Row = {
        "model_id": fp.model_id, "revision": fp.revision, "variant": fp.variant, "family": fp.family,
        "license": fp.license, "parents": list(fp.parents), "source": fp.source,
        "id_certainty": fp.id_certainty,
        "fingerprint_version": fp.version, "mode": fp.mode, "content_sha256": fp.content_sha256,
        "architecture": fp.facts.architecture, "main_stack": fp.facts.main, "parameters": fp.facts.parameters,
        "hidden": fp.facts.hidden, "layers": fp.facts.layers, "vocabulary": fp.facts.vocabulary,
        "precision": fp.facts.precision, "nonfinite": fp.facts.nonfinite,
        "mfi": _json(fp.mfi.to_json()), "tfv": _json(fp.tfv.to_json()) if fp.tfv else None,
        "vocabulary_size": fp.vocabulary_size, "absences": _json(dict(fp.absences)), "warnings": list(fp.warnings),
        "files": _json([dataclasses.asdict(f) for f in fp.files]),
        "bytes_read": fp.bytes_read, "bytes_total": fp.bytes_total,
        "end": fp.end, "vocabulary_sketch": fp.vocabulary_sketch,
        "eas": _triangle(fp.eas), "eas_by_id": _triangle(fp.eas_by_id),
        "lep_stacks": list(fp.lep), "lep_sizes": np.array([len(v) for v in fp.lep.values()], np.int32),
        "lep": np.concatenate(list(fp.lep.values())) if fp.lep else None,
    }  # fmt: skip
    for part in (_nlf_columns(fp.nlf), _wvc_columns(fp.wvc), _hidden_columns(fp.hidden)):
        row |= part
    row |= _residual_columns(fp.residual) | _block_columns(fp.blocks) | _neuron_columns(fp.neurons)
    row |= _token_row_columns(fp.token_rows)
    row |= _sketch_columns(fp.sketches, "sketch") | _sketch_columns(fp.sketches_by_id, "sketch_id")
    if fp.residual_by_id is not None:
        row |= {"residual_by_id": fp.residual_by_id.values, "residual_by_id_width": fp.residual_by_id.width}
    return _complete(row)


def _triangle(square: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return None if square is None else square[np.triu_indices(len(square))]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _complete(row: Row) -> Row:
    """Every column present, absent arrays empty, and the hash filled in."""
    for column in COLUMNS:
        value = row.get(column.name)
        if column.type == "list<string>":
            row[column.name] = list(value or ())
        elif column.type.startswith("list<"):
            dtype = _EMPTY[column.type[5:-1]]
            row[column.name] = np.zeros(0, dtype) if value is None else np.ascontiguousarray(value, dtype).reshape(-1)
        elif column.type == "int":
            row[column.name] = int(value or 0)
    row["row_sha256"] = row_hash(row)
    return {column.name: row[column.name] for column in COLUMNS}


def row_hash(row: Mapping[str, Any]) -> str:
    """sha256 over the content columns: names, and values as little-endian bytes or canonical JSON."""
    digest = hashlib.sha256()
    for column in COLUMNS:
        if not column.content:
            continue
        value = row[column.name]
        if isinstance(value, np.ndarray):
            data = value.astype(value.dtype.newbyteorder("<")).tobytes()
        else:
            data = _json(value).encode()
        digest.update(f"{column.name} {column.type} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _nlf_columns(n: nlf.NormTensors | None) -> Row:
    return {} if n is None else {"nlf_names": n.names, "nlf_sizes": n.sizes, "nlf": n.values}


def _wvc_columns(w: wvc.Samples | None) -> Row:
    if w is None:
        return {}
    pieces = [panels.halved(v) for v in np.split(w.values, np.cumsum(w.sizes)[:-1])]
    return {
        "wvc_names": w.names,
        "wvc_layers": w.layers,
        "wvc_sizes": w.sizes,
        "wvc_scales": np.array([scale for _, scale in pieces], np.float32),
        "wvc": np.concatenate([half for half, _ in pieces]),
    }


def _hidden_columns(h: panels.HiddenPanels | None) -> Row:
    if h is None:
        return {}
    return {
        "hidden_width": h.width,
        "hidden_keys": [f"{k.kind}/{k.stack}/{k.layer}/{k.expert}/{k.group}" for k in h.keys],
        "hidden_heights": h.heights,
        "hidden_panels": np.concatenate([v[:n] for v, n in zip(h.values, h.heights, strict=True)]),
    }


def _residual_columns(r: panels.ResidualPanel | None) -> Row:
    return {} if r is None else {"residual_width": r.width, "residual_ids": r.ids, "residual_panel": r.values}


def _sketch_columns(s: sketch.BranchSketches | None, prefix: str) -> Row:
    if s is None:
        return {}
    keys = [f"{stack}/{layer}" for stack, layer in s.keys]
    return {f"{prefix}_keys": keys, f"{prefix}_layers": s.layers, f"{prefix}_whole": s.whole}


def _neuron_columns(n: aligned.NeuronPanels | None) -> Row:
    if n is None:
        return {}
    return {
        "neuron_keys": [f"{stack}/{layer}" for stack, layer in n.keys],
        "neuron_heights": n.heights, "neuron_widths": n.widths, "neuron_parts": n.parts, "neuron_units": n.units,
        "neuron_lengths": n.lengths, "neurons": n.by_string, "neurons_by_id": n.by_id,
    }  # fmt: skip


def _token_row_columns(t: TokenRows | None) -> Row:
    return {} if t is None else {"token_row_ids": t.ids, "token_row_width": t.width, "token_rows": t.values}


def _block_columns(b: panels.BlockDigests | None) -> Row:
    if b is None:
        return {}
    return {
        "block_keys": b.keys, "block_exact": b.exact, "block_bf16": b.bf16, "block_f16": b.f16,
        "block_samples": b.samples, "block_scales": b.scales, "block_counts": b.counts,
    }  # fmt: skip


# --- and back ---


def from_row(row: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of a row.

    Raises IndexFormatError if the row is of another fingerprint version, or its parts do not fit together.
    """
    version = row["fingerprint_version"]
    if version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"The fingerprint of {row['model_id']} has version {version}; this provindex reads {FINGERPRINT_VERSION}.",
            "Make the fingerprint again with `provindex fingerprint`, or use the provindex release it was made with.",
        )
    try:
        return _from_row(row)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise IndexFormatError(
            f"The fingerprint row of {row['model_id']} is damaged: {error}.",
            "Check the index with `provindex index verify`, or make the fingerprint again.",
        ) from error


def _from_row(row: Mapping[str, Any]) -> Fingerprint:
    if not 0 <= row["layers"] <= MAX_DEPTH:
        raise ValueError(f"{row['layers']} layers, {MAX_DEPTH:,} are the most")
    numbers = ("nlf", "wvc", "wvc_scales", "end")
    if not all(np.isfinite(row[name]).all() for name in numbers):
        raise ValueError("a norm, a scale or a share that is not finite")
    return Fingerprint(
        model_id=row["model_id"],
        revision=row["revision"],
        variant=row["variant"] or "",
        family=row["family"],
        license=row["license"],
        parents=tuple(row["parents"]),
        source=row["source"],
        id_certainty=row["id_certainty"],
        version=row["fingerprint_version"],
        mode=row["mode"],
        content_sha256=row["content_sha256"],
        facts=Facts(
            architecture=row["architecture"],
            main=row["main_stack"],
            parameters=row["parameters"],
            hidden=row["hidden"],
            layers=row["layers"],
            vocabulary=row["vocabulary"],
            precision=row["precision"],
            nonfinite=row["nonfinite"],
        ),
        mfi=mfi_of(json.loads(row["mfi"])),
        tfv=tfv_of(json.loads(row["tfv"])) if row["tfv"] else None,
        vocabulary_sketch=_some(row["vocabulary_sketch"]),
        vocabulary_size=row["vocabulary_size"],
        eas=_square(row["eas"]),
        eas_by_id=_square(row["eas_by_id"]),
        end=_histogram(row["end"]),
        nlf=nlf.NormTensors(tuple(row["nlf_names"]), row["nlf_sizes"], row["nlf"]) if row["nlf_names"] else None,
        lep=dict(zip(row["lep_stacks"], _split(row["lep"], row["lep_sizes"]), strict=True)),
        wvc=_wvc(row),
        hidden=_hidden(row),
        residual=_residual(row["residual_panel"], row["residual_ids"], row["residual_width"]),
        residual_by_id=_residual(
            row["residual_by_id"],
            panels.fixed_ids(row["vocabulary"]).astype(np.int32),
            row["residual_by_id_width"],
        ),
        sketches=sketches(row, "sketch"),
        sketches_by_id=sketches(row, "sketch_id"),
        neurons=_neurons(row),
        token_rows=_token_rows(row),
        blocks=_blocks(row),
        absences=_texts(json.loads(row["absences"])),
        warnings=tuple(row["warnings"]),
        files=tuple(FileFact(**f) for f in json.loads(row["files"])),
        bytes_read=row["bytes_read"],
        bytes_total=row["bytes_total"],
    )


def _some(values: NDArray[Any]) -> NDArray[Any] | None:
    return values if values.size else None


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("absences are not names with reasons")
    return value


def _histogram(values: NDArray[Any]) -> NDArray[Any] | None:
    if values.size not in (0, END_BINS):
        raise ValueError(f"{values.size} END bins, {END_BINS} expected")
    return _some(values)


def _at_most(values: NDArray[Any], limit: int, what: str) -> NDArray[Any]:
    if values.size > limit:
        raise ValueError(f"{values.size} {what}, at most {limit} are possible")
    return values


def _split(values: NDArray[Any], sizes: NDArray[np.int32]) -> list[NDArray[Any]]:
    if int(sizes.sum()) != values.size or (sizes < 0).any():
        raise ValueError(f"{values.size} values do not fit sizes that add up to {int(sizes.sum())}")
    return np.split(values, np.cumsum(sizes)[:-1]) if sizes.size else []


def _square(triangle: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The symmetric matrix of an upper triangle (row by row, diagonal included)."""
    if not triangle.size:
        return None
    _at_most(triangle, MAX_ANCHORS * (MAX_ANCHORS + 1) // 2, "anchor cosines")
    k = int((np.sqrt(8 * triangle.size + 1) - 1) / 2)
    square = np.zeros((k, k), np.float32)
    square[np.triu_indices(k)] = triangle
    return np.asarray(square + np.triu(square, 1).T, np.float32)


def _wvc(row: Mapping[str, Any]) -> wvc.Samples | None:
    if not row["wvc_names"]:
        return None
    pieces = _split(row["wvc"], row["wvc_sizes"])
    if (row["wvc_sizes"] > wvc.SAMPLES).any():
        raise ValueError(f"more than {wvc.SAMPLES} WVC samples of one tensor")
    values = [p.astype(np.float32) * scale for p, scale in zip(pieces, row["wvc_scales"], strict=True)]
    return wvc.Samples(tuple(row["wvc_names"]), row["wvc_layers"], row["wvc_sizes"], np.concatenate(values))


def _hidden(row: Mapping[str, Any]) -> panels.HiddenPanels | None:
    if not row["hidden_keys"]:
        return None
    if (row["hidden_heights"] > MAX_PANEL).any():
        raise ValueError(f"a hidden panel of more than {MAX_PANEL} rows")
    keys = []
    for text in row["hidden_keys"]:
        kind, stack, layer, expert, group = text.split("/")
        keys.append(panels.PanelKey(kind, stack, int(layer), int(expert), int(group)))
    pieces = _split(row["hidden_panels"], row["hidden_heights"] * panels.PROJECTION)
    entries = [(k, p.reshape(-1, panels.PROJECTION)) for k, p in zip(keys, pieces, strict=True)]
    return panels.stack_panels(entries, row["hidden_width"])


def _residual(values: NDArray[np.float16], ids: NDArray[np.int32], width: int) -> panels.ResidualPanel | None:
    if not width:
        return None
    if values.size != panels.VIRTUAL_ANCHORS * min(width, panels.RESIDUAL_COORDINATES):
        raise ValueError(f"a residual panel of {values.size} values for a width of {width}")
    if ids.size != len(ANCHORS):
        raise ValueError(f"the ids of {ids.size} anchors, {len(ANCHORS)} expected")
    return panels.ResidualPanel(values.reshape(panels.VIRTUAL_ANCHORS, -1), ids, width)


def sketches(row: Mapping[str, Any], prefix: str) -> sketch.BranchSketches | None:
    """The sketches of a row at anchor strings (prefix "sketch") or at fixed ids ("sketch_id").

    Raises ValueError if the columns do not fit together.
    """
    keys = _layer_keys(row[f"{prefix}_keys"])
    if not keys:
        return None
    layers, whole = row[f"{prefix}_layers"], row[f"{prefix}_whole"]
    if whole.size != sketch.MODEL:
        raise ValueError(f"{whole.size} values in a model sketch, {sketch.MODEL} expected")
    if not (np.isfinite(layers).all() and np.isfinite(whole).all()):
        raise ValueError("a branch sketch that is not finite")
    return sketch.BranchSketches(keys, layers.reshape(len(keys), sketch.LAYER), whole)


def context(row: Mapping[str, Any]) -> tuple[mfi.MfiFeatures, tfv.TfvFeatures | None]:
    """What a row keeps of config and tokenizer; the small columns do. IndexFormatError if they are damaged."""
    try:
        return mfi_of(json.loads(row["mfi"])), tfv_of(json.loads(row["tfv"])) if row["tfv"] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexFormatError(
            f"The fingerprint row of {row['model_id']} is damaged: {error}.",
            "Check the index with `provindex index verify`.",
        ) from error


def _layer_keys(texts: list[str]) -> tuple[tuple[str, int], ...]:
    keys = tuple((stack, int(layer)) for stack, _, layer in (text.partition("/") for text in texts))
    if len(set(keys)) != len(keys):
        raise ValueError("a layer that is named twice")
    return keys


def _neurons(row: Mapping[str, Any]) -> aligned.NeuronPanels | None:
    keys, parts, units = _layer_keys(row["neuron_keys"]), row["neuron_parts"], row["neuron_units"]
    if not keys:
        return None
    if parts not in (2, 3) or len(keys) != row["neuron_heights"].size:
        raise ValueError("neuron panels whose counts do not fit together")
    widths = row["neuron_widths"]
    if widths.size != len(keys) or (widths < row["neuron_heights"]).any() or (widths > MAX_WIDTH).any():
        raise ValueError("neuron panels of more neurons than their layers, or any layer, has")
    for own, width in zip(_split(units, row["neuron_heights"]), widths, strict=True):
        if np.unique(own).size != own.size or ((own < 0) | (own >= width)).any():
            raise ValueError("neurons that stand outside of their layer, or twice in it")
    _at_most(row["neuron_heights"], 1 << 13, "layers of neurons")
    if (row["neuron_heights"] > aligned.NEURONS).any():
        raise ValueError(f"more than {aligned.NEURONS} neurons of a layer")
    shape = (units.size, parts, sketch.ANCHORS_KEPT)
    by_string, by_id = (
        None if (v := _some(row[n])) is None else v.reshape(shape) for n in ("neurons", "neurons_by_id")
    )
    return aligned.NeuronPanels(
        keys=keys,
        heights=row["neuron_heights"],
        widths=row["neuron_widths"],
        units=units,
        lengths=row["neuron_lengths"].reshape(units.size, parts),
        by_string=by_string,
        by_id=by_id,
    )


def _token_rows(row: Mapping[str, Any]) -> TokenRows | None:
    ids, width = row["token_row_ids"], row["token_row_width"]
    if not ids.size:
        return None
    _at_most(ids, ROWS, "embedding rows")
    if width < 1 or (np.diff(ids) <= 0).any():
        raise ValueError("embedding rows of no width, or with ids that do not ascend")
    return TokenRows(ids, row["token_rows"].reshape(ids.size, min(width, COORDINATES)), width)


def _blocks(row: Mapping[str, Any]) -> panels.BlockDigests | None:
    if not row["block_keys"]:
        return None
    count = len(row["block_keys"])
    scales, counts = row["block_scales"], row["block_counts"]
    if scales.size != count or counts.size != count or not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError("block scales that are missing, not finite or not positive")
    if not all("." in key for key in row["block_keys"]):
        raise ValueError("a block without an address")
    if ((counts < 0) | (counts > panels.SAMPLE)).any():
        raise ValueError(f"blocks of more than {panels.SAMPLE} samples")
    return panels.BlockDigests(
        keys=tuple(row["block_keys"]),
        exact=row["block_exact"].reshape(count, 2),
        bf16=row["block_bf16"].reshape(count, 2),
        f16=row["block_f16"].reshape(count, 2),
        samples=row["block_samples"].reshape(count, panels.SAMPLE),
        scales=row["block_scales"],
        counts=row["block_counts"],
    )
