"""Fingerprints on disk: Parquet shards that are written once, a manifest with digests, and the checks that both hold.

Layout of an index folder (and of the Hub dataset): `data/models/*.parquet` (small columns and the retrieval vector),
`data/panels/*.parquet` (arrays, one row a row group, so that one model can be read alone), `manifest.json`. Shards
are named by their content and never rewritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
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
from provindex.rows import COLUMNS, NULLABLE, Row, from_row, row_hash, to_row

SCHEMA = 1
MANIFEST = "manifest.json"
MODELS, PANELS = "data/models", "data/panels"
MODELS_PER_GROUP = 1000
MAX_MANIFEST = 64 << 20
MAX_READ = 1 << 30  # uncompressed bytes of one read; a model's panels are 2 to 30 MB
MAX_VALUES = 1 << 27  # values of one column in one read: a run-length bomb has few bytes and many values
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

    def complaint(self, document: Mapping[str, Any]) -> str | None:
        """What a manifest says about its shards that does not follow from them; None if all does."""
        if document.get("revision") != self.revision:
            return f"its revision should be {self.revision}"
        if document.get("models") != self.models:
            return f"its number of models should be {self.models}"
        return None


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


_AGAIN = "Check the index with `provindex index verify`, or get it again."


def _read(path: Path, table: str, groups: Sequence[int] | None = None) -> list[Row]:
    """Rows of a Parquet file, of some row groups or of all, as plain columns.

    Sizes are checked before anything is read. Raises IndexFormatError if the file is not a whole "models", "panels" or
    "both" table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = schema(table)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            _check_columns(file.schema_arrow.names, wanted.names, path.name)
            chosen = range(file.metadata.num_row_groups) if groups is None else groups
            _check_size(file.metadata, chosen, path.name)
            read = file.read_row_groups(list(chosen), columns=wanted.names)
        return _rows(read, wanted, path.name)
    except (pa.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
        raise IndexFormatError(f"{path.name} is not a readable Parquet file: {_reason(error)}.", _AGAIN) from error


def _reason(error: Exception) -> str:
    """What went wrong in a line, without the path that Arrow puts into it."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _check_columns(names: Sequence[str], wanted: Sequence[str], name: str) -> None:
    missing = [column for column in wanted if names.count(column) != 1]
    if missing:
        raise IndexFormatError(
            f"{name} is a Parquet file, but {len(missing)} of the {len(wanted)} columns are missing or double, "
            f"{missing[0]} among them.",
            "`provindex fingerprint MODEL -o FILE.parquet` writes fingerprints, `provindex index build` indexes.",
        )


def _check_size(metadata: Any, groups: Iterable[int], name: str) -> None:
    """Refuse what would not fit: the sizes that a file states, before anything is unpacked."""
    chosen = [metadata.row_group(group) for group in groups]
    size = sum(group.total_byte_size for group in chosen)
    values = max((group.column(i).num_values for group in chosen for i in range(group.num_columns)), default=0)
    if not 0 <= size <= MAX_READ or not 0 <= values <= MAX_VALUES:
        raise IndexFormatError(
            f"{name} states {size:,} bytes and {values:,} values in one column, more than is read at once.", _AGAIN
        )


def _rows(read: Any, wanted: Any, name: str) -> list[Row]:
    """Arrow columns to plain values: strings, ints, lists of strings, numpy arrays."""
    import pyarrow as pa

    rows: list[Row] = [{} for _ in range(read.num_rows)]
    for expected in wanted:
        array = read.column(expected.name).combine_chunks()
        if array.type != expected.type:
            raise IndexFormatError(
                f"{name}: column {expected.name} has type {array.type}, expected {expected.type}.", _AGAIN
            )
        nested = pa.types.is_list(expected.type) or pa.types.is_fixed_size_list(expected.type)
        holes = array.null_count + (array.values.null_count if nested else 0)
        if holes and expected.name not in NULLABLE:
            raise IndexFormatError(f"{name}: column {expected.name} has empty cells.", _AGAIN)
        numeric = nested and expected.type.value_type != pa.string()
        for i, row in enumerate(rows):
            row[expected.name] = _numbers(array[i].values) if numeric else array[i].as_py()
    return rows


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    """A flat Arrow array without nulls as numpy; its own `to_numpy` imports pandas, which costs more than a query."""
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

    Raises ModelError if there is none in it, IndexFormatError if it is damaged, of another version or something else.
    """
    rows = _read(path, "both")
    if not rows:
        raise ModelError(
            f"{path.name} has no rows.", "Fingerprints are written by `provindex fingerprint MODEL -o FILE.parquet`."
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
    rows.sort(key=_identity)
    name = hashlib.sha256(json.dumps([_identity(r) for r in rows]).encode()).hexdigest()[:8]
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


def _identity(row: Row) -> tuple[str, str, str, str]:
    return (row["model_id"], row["revision"] or "", row["variant"], row["row_sha256"])


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


def manifest_document(folder: Path) -> Any:
    """What manifest.json says, unchecked; IndexFormatError if there is none or it is no JSON."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise IndexFormatError(f"{path.name} is larger than {MAX_MANIFEST >> 20} MB.", _AGAIN)
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexFormatError(
            f"{_name(folder)} is not an index: it has no {MANIFEST}.",
            "Build one with `provindex index build MODEL... -o DIR`.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFormatError(f"The manifest of {_name(folder)} cannot be read: {_said(error)}.", _AGAIN) from error


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _said(error: Exception) -> str:
    """An error in a few words; a KeyError is a name that is missing."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".") or type(error).__name__


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder; IndexFormatError if there is none that this version can use."""
    document = manifest_document(folder)
    try:
        manifest = _manifest(document)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise IndexFormatError(f"The manifest of {_name(folder)} cannot be read: {_said(error)}.", _AGAIN) from error
    if manifest.schema != SCHEMA or manifest.fingerprint_version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"{_name(folder)} has index schema {manifest.schema} and fingerprint version "
            f"{manifest.fingerprint_version}; this provindex reads {SCHEMA} and {FINGERPRINT_VERSION}.",
            "Use the provindex release that it was built with, or build it again.",
        )
    return manifest


def _manifest(document: Mapping[str, Any]) -> Manifest:
    shards = tuple(_shard(entry) for entry in document["shards"])
    return Manifest(
        id=str(document["id"]),
        built=str(document["built"]),
        shards=shards,
        fingerprint_version=int(document["fingerprint_version"]),
        schema=int(document["schema"]),
        calibration=document.get("calibration"),
    )


def _shard(entry: Mapping[str, Any]) -> Shard:
    models, panels = _inside(entry["models"]), _inside(entry["panels"])
    names, digests, sizes = (models, panels), entry["sha256"], entry["bytes"]
    if not all(isinstance(digests[n], str) and re.fullmatch("[0-9a-f]{64}", digests[n]) for n in names):
        raise ValueError(f"a digest of {models} is no sha256")
    if not isinstance(entry["rows"], int) or entry["rows"] < 0:
        raise ValueError(f"{entry['rows']!r} is no number of rows")
    return Shard(models, panels, entry["rows"], {n: digests[n] for n in names}, {n: int(sizes[n]) for n in names})


def _inside(name: Any) -> str:
    """A shard's path, which must stay inside the index folder."""
    path = Path(str(name))
    odd = len(str(name)) > 255 or any(letter in str(name) for letter in "\0\\")
    if path.is_absolute() or ".." in path.parts or path.suffix != ".parquet" or odd:
        raise ValueError(f"shard path {str(name)[:200]!r} is no .parquet file inside the index")
    return str(name)


def read_models(folder: Path, shard: Shard) -> list[Row]:
    """The small columns of a shard; IndexFormatError if it has another number of rows than the manifest says."""
    rows = _read(folder / shard.models, "models")
    if len(rows) != shard.rows:
        raise IndexFormatError(f"{shard.models} has {len(rows)} rows, the manifest says {shard.rows}.", _AGAIN)
    return rows


def read_panels(folder: Path, shard: Shard, number: int) -> Row:
    """The arrays of one row of a shard: its row group, nothing else is read."""
    rows = _read(folder / shard.panels, "panels", [number])
    if len(rows) != 1:
        raise IndexFormatError(f"{shard.panels} has {len(rows)} rows in row group {number}, expected 1.", _AGAIN)
    return rows[0]


def vectors(rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The retrieval vectors of rows, (len(rows), 2368) float32."""
    return np.stack([r[VECTOR] for r in rows]) if rows else np.zeros((0, DIMENSIONS), np.float32)
