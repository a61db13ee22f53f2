"""Fingerprints on disk: Parquet shards that are written once, a manifest with digests, and the checks that both hold.

Layout of an index folder (and of the Hub dataset): `data/models/*.parquet` (small columns and the retrieval vector),
`data/panels/*.parquet` (arrays, one row a row group, so that one model can be read alone), `manifest.json`. Shards
are named by their content and never rewritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from provindex.errors import IndexFormatError, ModelError
from provindex.fingerprint import FINGERPRINT_VERSION, Fingerprint
from provindex.retrieval import DIMENSIONS, vector
from provindex.rows import COLUMNS, Row, from_row, row_hash, to_row

SCHEMA = 1
MANIFEST = "manifest.json"
MODELS, PANELS = "data/models", "data/panels"
MODELS_PER_GROUP = 1000
MAX_MANIFEST = 64 << 20
VECTOR = "vector"


@dataclass(frozen=True, slots=True)
class Shard:
    """One pair of Parquet files: paths relative to the index folder, digests and sizes by path, number of rows."""

    models: str
    panels: str
    rows: int
    sha256: Mapping[str, str]
    bytes: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """What an index consists of.

    Built: ISO date and time, UTC. revision: first 12 hex digits of a hash over the shards.
    """

    id: str
    built: str
    shards: tuple[Shard, ...]
    fingerprint_version: int = FINGERPRINT_VERSION
    schema: int = SCHEMA
    calibration: str | None = None

    @property
    def revision(self) -> str:
        digests = sorted(digest for shard in self.shards for digest in shard.sha256.values())
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]

    @property
    def models(self) -> int:
        return sum(shard.rows for shard in self.shards)


def now() -> datetime:
    """The time that goes into names and manifests; SOURCE_DATE_EPOCH fixes it, for builds that repeat byte for byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch and epoch.isdigit() else datetime.now(UTC)


# --- Parquet ---


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    plain = {
        "string": pa.string(), "int": pa.int64(), "int32": pa.int32(), "uint64": pa.uint64(),
        "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    }  # fmt: skip
    return pa.list_(plain[name[5:-1]]) if name.startswith("list<") else plain[name]


def schema(table: str) -> Any:
    """The Arrow schema of "models", "panels", or "both" (a fingerprint file)."""
    import pyarrow as pa

    fields = [pa.field(c.name, _arrow_type(c.type)) for c in COLUMNS if table == "both" or c.table in (table, "both")]
    if table == "models":
        fields.append(pa.field(VECTOR, pa.list_(pa.float32(), DIMENSIONS)))
    return pa.schema(fields)


def _write(path: Path, rows: Sequence[Row], table: str, group: int) -> None:
    """One Parquet file: zstd; floats as byte streams without a dictionary, which would make them larger than raw."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = schema(table)
    columns = {f.name: pa.array([_plain(r[f.name]) for r in rows], type=f.type) for f in wanted}
    strings = [f.name for f in wanted if f.type == pa.string()]
    split = {
        f"{f.name}.list.element": "BYTE_STREAM_SPLIT"
        for f in wanted
        if pa.types.is_floating(getattr(f.type, "value_type", f.type))
    }
    pq.write_table(
        pa.table(columns, schema=wanted), path, compression="zstd", compression_level=9,
        row_group_size=group, use_dictionary=strings, column_encoding=split, store_schema=True,
    )  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read(path: Path, groups: Sequence[int] | None = None) -> list[Row]:
    """Rows of a Parquet file, of some row groups or of all, as plain columns.

    Raises IndexFormatError if it is not ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            table = file.read() if groups is None else file.read_row_groups(list(groups))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise IndexFormatError(f"{path.name} is not a readable Parquet file: {error}.", _AGAIN) from error
    return _rows(table, path.name)


_AGAIN = "Check the index with `provindex index verify`, or get it again."


def _rows(table: Any, name: str) -> list[Row]:
    """Arrow columns to plain values: strings, ints, lists of strings, numpy arrays."""
    import pyarrow as pa

    types = {c.name: c.type for c in COLUMNS}
    rows: list[Row] = [{} for _ in range(table.num_rows)]
    for column in table.column_names:
        expected = pa.list_(pa.float32(), DIMENSIONS) if column == VECTOR else _arrow_type(types.get(column, "string"))
        if column not in types and column != VECTOR:
            continue
        array = table.column(column).combine_chunks()
        if array.type != expected:
            raise IndexFormatError(f"{name}: column {column} has type {array.type}, expected {expected}.", _AGAIN)
        if array.null_count and types.get(column, "").startswith("list<"):
            raise IndexFormatError(f"{name}: column {column} has empty cells where lists belong.", _AGAIN)
        numeric = column == VECTOR or (types[column].startswith("list<") and types[column] != "list<string>")
        for i, row in enumerate(rows):
            row[column] = _numbers(array[i].values) if numeric else array[i].as_py()
    return rows


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    """A flat Arrow array without nulls as numpy; its own `to_numpy` imports pandas, which costs more than a query."""
    if values.null_count:
        raise IndexFormatError("A list of numbers has empty cells.", _AGAIN)
    dtype = np.dtype(values.type.to_pandas_dtype())
    buffer = values.buffers()[1]
    if buffer is None:
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype, len(values), values.offset * dtype.itemsize)


# --- fingerprint files ---


def write_fingerprint(fp: Fingerprint, path: Path) -> str:
    """Write one fingerprint as a one-row Parquet file (to a temporary name, then renamed); returns its row hash."""
    row = to_row(fp)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _write(temporary, [row], "both", 1)
    return str(row["row_sha256"])


def read_fingerprints(path: Path) -> list[Fingerprint]:
    """The fingerprints of a file that `write_fingerprint` wrote.

    Raises ModelError if the file is no fingerprint, IndexFormatError if it is damaged or of another version.
    """
    rows = _read(path)
    missing = [c.name for c in COLUMNS if rows and c.name not in rows[0]]
    if not rows or missing:
        raise ModelError(
            f"{path.name} is a Parquet file but not a fingerprint: {len(missing)} of {len(COLUMNS)} columns are missing.",
            "Fingerprint files are written by `provindex fingerprint MODEL -o FILE.parquet`.",
        )
    return [checked(row) for row in rows]


def checked(row: Row) -> Fingerprint:
    """The fingerprint of a complete row whose hash is right; IndexFormatError otherwise."""
    fp = from_row(row)
    if row_hash(row) != row["row_sha256"]:
        raise IndexFormatError(f"The fingerprint of {row['model_id']} does not match its own hash.", _AGAIN)
    return fp


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside a path: it takes the path's place when the block ends well, and vanishes when not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- shards and manifest ---


def write_shard(folder: Path, fingerprints: Iterable[Fingerprint], who: str) -> Shard:
    """Write fingerprints as one shard, named by month, origin and content; rows sorted by id, revision and variant."""
    rows = [{**to_row(fp), VECTOR: vector(fp)} for fp in fingerprints]
    rows.sort(key=lambda r: (r["model_id"], r["revision"] or "", r["variant"]))
    name = hashlib.sha256("".join(r["row_sha256"] + r["model_id"] + r["variant"] for r in rows).encode()).hexdigest()[
        :8
    ]
    stem = f"{now():%Y-%m}-{who}-{name}.parquet"
    paths = {MODELS: folder / MODELS / stem, PANELS: folder / PANELS / stem}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(paths[MODELS]) as temporary:
        _write(temporary, rows, "models", MODELS_PER_GROUP)
    with replacing(paths[PANELS]) as temporary:
        _write(temporary, rows, "panels", 1)
    relative = [f"{kind}/{stem}" for kind in paths]
    return Shard(
        models=relative[0],
        panels=relative[1],
        rows=len(rows),
        sha256={r: file_sha256(folder / r) for r in relative},
        bytes={r: (folder / r).stat().st_size for r in relative},
    )


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json last: until it is there, the shards it names are not part of the index."""
    document = {
        "schema": manifest.schema, "id": manifest.id, "built": manifest.built, "revision": manifest.revision,
        "fingerprint_version": manifest.fingerprint_version, "models": manifest.models,
        "calibration": manifest.calibration,
        "shards": [
            {"models": s.models, "panels": s.panels, "rows": s.rows, "sha256": dict(s.sha256), "bytes": dict(s.bytes)}
            for s in manifest.shards
        ],
    }  # fmt: skip
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder; IndexFormatError if there is none, or it is not one that this version can use."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise IndexFormatError(f"{path.name} is larger than {MAX_MANIFEST >> 20} MB.", _AGAIN)
        document = json.loads(path.read_text(encoding="utf-8"))
        manifest = _manifest(document)
    except FileNotFoundError as error:
        raise IndexFormatError(
            f"{folder.name or folder} is not an index: it has no {MANIFEST}.",
            "Build one with `provindex index build MODEL... -o DIR`.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexFormatError(f"The manifest of {folder.name} cannot be read: {error}.", _AGAIN) from error
    if manifest.schema != SCHEMA or manifest.fingerprint_version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"{folder.name} has index schema {manifest.schema} and fingerprint version {manifest.fingerprint_version}; this "
            f"provindex reads {SCHEMA} and {FINGERPRINT_VERSION}.",
            "Use the provindex release that it was built with, or build it again.",
        )
    return manifest


def _manifest(document: Mapping[str, Any]) -> Manifest:
    shards = tuple(
        Shard(_inside(s["models"]), _inside(s["panels"]), int(s["rows"]), dict(s["sha256"]), dict(s["bytes"]))
        for s in document["shards"]
    )
    return Manifest(
        id=str(document["id"]),
        built=str(document["built"]),
        shards=shards,
        fingerprint_version=int(document["fingerprint_version"]),
        schema=int(document["schema"]),
        calibration=document.get("calibration"),
    )


def _inside(name: Any) -> str:
    """A shard's path, which must stay inside the index folder."""
    path = Path(str(name))
    if path.is_absolute() or ".." in path.parts or path.suffix != ".parquet":
        raise ValueError(f"shard path {name!r} leaves the index")
    return str(name)


def read_models(folder: Path, shard: Shard) -> list[Row]:
    """The small columns of a shard."""
    return _read(folder / shard.models)


def read_panels(folder: Path, shard: Shard, rows: Sequence[int]) -> list[Row]:
    """The arrays of some rows of a shard: one row group each, nothing else is read."""
    return _read(folder / shard.panels, rows)


def vectors(rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The retrieval vectors of rows, (len(rows), 384) float32."""
    return np.stack([r[VECTOR] for r in rows]) if rows else np.zeros((0, DIMENSIONS), np.float32)
