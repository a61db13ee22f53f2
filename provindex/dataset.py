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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from provindex.errors import IndexFormatError, ModelError
from provindex.fingerprint import FINGERPRINT_VERSION, Fingerprint
from provindex.formats import parquet_footer, parquet_pages
from provindex.retrieval import DIMENSIONS, vector
from provindex.rows import COLUMNS, END_BINS, MAX_ANCHORS, NULLABLE, Row, from_row, row_hash, to_row

SCHEMA = 1
MANIFEST = "manifest.json"
LOCK = ".lock"
MODELS, PANELS = "data/models", "data/panels"
MODELS_PER_GROUP = 1000
MAX_SHARD_ROWS = 100_000  # of a shard that no manifest vouches for
MAX_MANIFEST = 64 << 20
MAX_READ = 1 << 28  # bytes that one read may take; by this count a model's row has 2 to 60 MB, and 8,000 small rows fit
PER_VALUE = 8  # a value and its levels in memory: a run-length bomb has few bytes and many values
NAMED = ("row_sha256", "model_id", "revision", "variant", "family")  # of every row, when an index is opened
PHYSICAL: Mapping[str, np.dtype[Any]] = {  # how Parquet stores numbers
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FLOAT": np.dtype("<f4"), "DOUBLE": np.dtype("<f8"),
    "FIXED_LEN_BYTE_ARRAY": np.dtype("<f2"),
}  # fmt: skip
UNPACKED = {"ZSTD": "zstd", "UNCOMPRESSED": ""}
MAX_TEXT = 1 << 22  # bytes of one text; the longest, a model's files and config features, have some 20 KB
VECTOR = "vector"

# Most values of a list in one row: what the extractors make, or far more than any model has.
LIMITS = {
    "end": END_BINS, "vocabulary_sketch": 1024, "eas": MAX_ANCHORS * (MAX_ANCHORS + 1) // 2,
    "eas_by_id": MAX_ANCHORS * (MAX_ANCHORS + 1) // 2, "residual_ids": 512, "residual_panel": 1 << 16,
    "residual_by_id": 1 << 16,
    VECTOR: DIMENSIONS, "hidden_keys": 1 << 13, "hidden_heights": 1 << 13, "nlf_names": 1 << 16,
    "nlf_sizes": 1 << 16, "wvc_names": 1 << 16, "wvc_layers": 1 << 16, "wvc_sizes": 1 << 16, "wvc_scales": 1 << 16,
    "block_keys": 1 << 16, "lep_stacks": 1 << 10, "parents": 1 << 10, "warnings": 1 << 13,
}  # fmt: skip


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

    id: the name of the index. built: date and time in ISO format, UTC. calibration: the file of chance levels, or None.
    commit: of the Hub dataset that it was pulled from, None for an index that was made here.
    """

    id: str
    built: str
    shards: tuple[Shard, ...]
    fingerprint_version: int = FINGERPRINT_VERSION
    schema: int = SCHEMA
    calibration: str | None = None
    commit: str | None = None

    @property
    def revision(self) -> str:
        """First 12 hex digits of a hash over the digests of all shards."""
        digests = sorted(digest for shard in self.shards for digest in shard.sha256.values())
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]

    @property
    def models(self) -> int:
        """Rows of all shards."""
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
        "string": pa.string(), "int": pa.int64(), "int32": pa.int32(), "int8": pa.int8(), "uint64": pa.uint64(),
        "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    }  # fmt: skip
    return pa.list_(plain[name[5:-1]]) if name.startswith("list<") else plain[name]


@lru_cache(maxsize=4)
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
        write_statistics=False,  # a third of a footer of many row groups, and nobody filters by them
    )  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


AGAIN = "Check the index with `provindex index verify`, or get it again."


@dataclass(frozen=True)
class _File:
    """A Parquet file, mapped, its footer parsed. leaves: which column of the file holds a name's values."""

    name: str
    metadata: Any
    arrow: Any
    buffer: Any
    leaves: Mapping[str, int]


def _mapped(path: Path, *, vouched: bool = False) -> _File:
    """A file, mapped. vouched: its footer was looked at before, when the file came; that takes a second for a thousand
    rows of panels, too long for each query."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not vouched:
        check_footer(path)
    with pa.memory_map(str(path)) as mapped:
        buffer = mapped.read_buffer()
    metadata = pq.read_metadata(pa.BufferReader(buffer))
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaves = {place.split(".")[0]: i for i, place in enumerate(paths)}
    return _File(path.name, metadata, metadata.schema.to_arrow_schema(), buffer, leaves)


@lru_cache(maxsize=64)
def _kept(path: Path, *stamp: int) -> _File:
    """A shard, which many rows are read from: its footer alone takes longer to parse than a row to read.

    Shards are never rewritten; `stamp` is what would change if one were. A footer of 256 rows takes 4 to 7 MB.
    """
    return _mapped(path, vouched=True)


def _check_footer(data: memoryview, name: str) -> None:
    """Refuse a footer that would end the process: pyarrow throws what nobody catches where one contradicts itself."""
    try:
        parquet_footer.groups(data)
    except ValueError as error:
        raise IndexFormatError(f"{name} cannot be used: {error}.", AGAIN) from error


def check_footer(path: Path, title: str = "") -> None:
    """IndexFormatError if a Parquet file, called `title`, has a footer that cannot be read safely."""
    import pyarrow as pa

    with _readable(path), pa.memory_map(str(path)) as mapped:
        _check_footer(memoryview(mapped.read_buffer()).cast("B"), title or path.name)


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _shard_file(path: Path) -> _File:
    return _kept(path, *_stamp(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a Parquet file is read, as one sentence."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError) as error:
        raise IndexFormatError(f"{path.name} is not a readable Parquet file: {_reason(error)}.", AGAIN) from error


def _read(path: Path, table: str) -> list[Row]:
    """Rows of a Parquet file as plain columns.

    Sizes are checked before anything is unpacked. Raises IndexFormatError if the file is not a whole "models",
    "panels" or "both" table.
    """
    with _readable(path):
        columns = _columns(_mapped(path), list(schema(table)))
        return [_row(columns, number) for number in range(len(next(iter(columns.values()))))]


def _columns(file: _File, fields: Sequence[Any], groups: Sequence[int] | None = None) -> dict[str, Any]:
    """Columns as Arrow arrays without holes, of some row groups or of all; sizes are checked first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_columns(file.arrow.names, [f.name for f in fields], file.name)
    chosen = list(range(file.metadata.num_row_groups) if groups is None else groups)
    _check_size(file, chosen, [f.name for f in fields])
    texts = [_leaf(f) for f in fields if _is_text(f)]
    with pq.ParquetFile(pa.BufferReader(file.buffer), metadata=file.metadata, read_dictionary=texts) as opened:
        # One thread: a model's columns are small, and handing them out costs more than reading them.
        read = opened.read_row_groups(chosen, columns=[f.name for f in fields], use_threads=False)
    return _checked_columns(read, fields, file.name)


def _one(file: _File, fields: Sequence[Any], group: int) -> Row:
    """Columns of the one row of a row group; IndexFormatError if it has another number of rows.

    Long lists of numbers are taken from their pages directly: unpacking them as a table of lists takes five times as
    long, and reading the candidates would be half of a query.
    """
    names = [f.name for f in fields]
    _check_columns(file.arrow.names, names, file.name)
    rows = file.metadata.row_group(group).num_rows if 0 <= group < file.metadata.num_row_groups else 0
    if rows != 1:
        raise IndexFormatError(f"{file.name} has {rows} rows in row group {group}, expected 1.", AGAIN)
    _check_size(file, [group], names)
    direct = {f.name: values for f in fields if (values := _direct(file, group, f)) is not None}
    others = [f for f in fields if f.name not in direct]
    row = _row(_columns(file, others, [group]), 0) if others else {}
    return {name: direct[name] if name in direct else row[name] for name in names}


def _direct(file: _File, group: int, field: Any) -> np.ndarray[Any, Any] | None:
    """The numbers of a list column of one row, from its pages; None where only Arrow can tell, good or bad."""
    import pyarrow as pa

    if not pa.types.is_list(field.type) or _is_text(field) or file.arrow.field(field.name).type != field.type:
        return None
    leaf = file.metadata.schema.column(file.leaves[field.name])
    column = file.metadata.row_group(group).column(file.leaves[field.name])
    stored = PHYSICAL.get(leaf.physical_type)
    if stored is None or column.compression not in UNPACKED or column.has_dictionary_page:
        return None
    if (leaf.max_definition_level, leaf.max_repetition_level) != (3, 1) or leaf.length not in (0, stored.itemsize):
        return None
    unpack = pa.Codec(UNPACKED[column.compression]).decompress if UNPACKED[column.compression] else None
    start, data = column.data_page_offset, memoryview(file.buffer).cast("B")
    try:
        raw = parquet_pages.one_list(data, start, start + column.total_compressed_size, stored.itemsize, unpack)
    except ValueError:
        return None
    return None if raw is None else _as(raw.view(stored), np.dtype(field.type.value_type.to_pandas_dtype()))


def _as(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """Stored numbers as those of the schema: of one size the same bits, narrower ones only if they fit."""
    if values.dtype.itemsize == dtype.itemsize:
        return values.view(dtype)
    narrow = values.astype(dtype)
    return narrow if np.array_equal(narrow, values) else None


def _is_text(field: Any) -> bool:
    import pyarrow as pa

    return bool(getattr(field.type, "value_type", field.type) == pa.string())


def _leaf(field: Any) -> str:
    """The path of a column's values in the file; a list's values are two levels below its name."""
    return f"{field.name}.list.element" if hasattr(field.type, "value_type") else str(field.name)


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


def _check_size(file: _File, groups: Sequence[int], names: Sequence[str]) -> None:
    """Refuse columns that would not fit or cannot be ours, before anything is unpacked.

    By the footer first, then by the page headers, which must bear the footer out: a reader allocates by them.
    """
    chosen = [file.metadata.row_group(group) for group in groups]
    columns = [(group.num_rows, name, group.column(file.leaves[name])) for group in chosen for name in names]
    if sum(max(column.num_values, 0) * PER_VALUE for _, _, column in columns) > MAX_READ:
        raise IndexFormatError(
            f"{file.name} states more values than {MAX_READ >> 20} MB, the most that is read.", AGAIN
        )
    total, data = 0, memoryview(file.buffer).cast("B")
    for rows, title, column in columns:
        values, size = _pages(column, data, file.name, _start(column))
        if values > rows * LIMITS.get(title, MAX_READ):
            raise IndexFormatError(
                f"{file.name}: {values:,} values of {title}, at most {LIMITS[title]:,} a row.", AGAIN
            )
        total += size + values * PER_VALUE
    if total > MAX_READ:
        raise IndexFormatError(f"{file.name} holds {total:,} bytes, {MAX_READ:,} are the most that is read.", AGAIN)


def _start(column: Any) -> int:
    """Where the pages of a column chunk begin in the file."""
    first = int(column.data_page_offset)
    return min(first, column.dictionary_page_offset or first) if column.has_dictionary_page else first


def _pages(column: Any, data: memoryview, name: str, start: int) -> tuple[int, int]:
    """(values, uncompressed bytes) of a column chunk, from its pages; they must be as many values as it states."""
    try:
        values, size = parquet_pages.totals(data, start, start + column.total_compressed_size)
    except ValueError as error:
        raise IndexFormatError(f"{name} is not a readable Parquet file: {error}.", AGAIN) from error
    if values != column.num_values:
        raise IndexFormatError(
            f"{name} is damaged: {column.path_in_schema} states {column.num_values:,} values and has {values:,}.",
            AGAIN,
        )
    return values, size


def _checked_columns(read: Any, fields: Sequence[Any], name: str) -> dict[str, Any]:
    """Columns of a table as arrays, of the schema's types, without empty cells, with no more text than is read."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    text_bytes = 0
    for expected in fields:
        array = read.column(expected.name).combine_chunks()
        nested = pa.types.is_list(expected.type) or pa.types.is_fixed_size_list(expected.type)
        if _plain_type(array.type) != expected.type:
            raise IndexFormatError(
                f"{name}: column {expected.name} has type {_plain_type(array.type)}, expected {expected.type}.", AGAIN
            )
        holes = array.null_count + (array.values.null_count if nested else 0)
        if holes and expected.name not in NULLABLE:
            raise IndexFormatError(f"{name}: column {expected.name} has empty cells.", AGAIN)
        if _is_text(expected):
            text_bytes += _text_bytes(array.values if nested else array, expected.name, name)
            if text_bytes > MAX_READ:
                raise IndexFormatError(f"{name} has more text than {MAX_READ >> 20} MB.", AGAIN)
        columns[expected.name] = array
    return columns


def _row(columns: Mapping[str, Any], number: int) -> Row:
    """One row of Arrow columns: strings, ints, lists of strings, numpy arrays."""
    return {name: _cell(array, number) for name, array in columns.items()}


def _cell(array: Any, number: int) -> Any:
    import pyarrow as pa

    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    if nested and not pa.types.is_dictionary(array.type.value_type):
        return _numbers(array[number].values)
    return array[number].as_py()


def _plain_type(found: Any) -> Any:
    """A type as the schema has it: text is read as numbers into a list of different texts."""
    import pyarrow as pa

    if pa.types.is_dictionary(found) and found.value_type == pa.string():
        return found.value_type
    return pa.list_(_plain_type(found.value_type)) if pa.types.is_list(found) else found


def _text_bytes(texts: Any, column: str, name: str) -> int:
    """Bytes of all texts of a column when written out: few different ones may be repeated without end."""
    different, places = texts.dictionary, _numbers(texts.indices)
    buffer = different.buffers()[1]
    if not len(different) or buffer is None:
        return 0
    # Not with pyarrow.compute, whose import costs more than reading a model.
    lengths = np.diff(np.frombuffer(buffer, np.int32, len(different) + 1, 4 * different.offset).astype(np.int64))
    if lengths.max() > MAX_TEXT:
        raise IndexFormatError(f"{name}: a text of {column} has more than {MAX_TEXT >> 20} MB.", AGAIN)
    return int(lengths[np.clip(places, 0, lengths.size - 1)].sum())  # the place of an empty cell may be any number


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
        raise IndexFormatError(f"The fingerprint of {row['model_id']} does not match its own hash.", AGAIN)
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else holds this lock on an index folder, and hold it; the system frees it if we are killed."""
    from filelock import FileLock

    if (folder / LOCK).is_symlink():  # older releases of filelock empty the file that it leads to
        raise IndexFormatError(
            f"The lock file {LOCK} of {_name(folder)} is a link, which is not followed.", "Remove it."
        )
    with FileLock(folder / LOCK):
        yield


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


def is_shard(path: str) -> bool:
    """Whether a path of a dataset is that of half a shard; folders below theirs are somebody else's."""
    return path.rpartition("/")[0] in (MODELS, PANELS) and path.endswith(".parquet")


def described(folder: Path, models: str, panels: str) -> Shard:
    """The description of a pair of Parquet files that are there; IndexFormatError if they are no shard."""
    for name in (models, panels):
        with _readable(folder / name):
            rows = _mapped(folder / name).metadata.num_rows
    if not 0 < rows <= MAX_SHARD_ROWS:
        raise IndexFormatError(f"{models} has {rows:,} rows; from 1 to {MAX_SHARD_ROWS:,} are accepted.", AGAIN)
    names = (models, panels)
    return Shard(
        models, panels, rows,
        sha256={name: file_sha256(folder / name) for name in names},
        bytes={name: (folder / name).stat().st_size for name in names},
    )  # fmt: skip


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
        **({"commit": manifest.commit} if manifest.commit else {}),
    }  # fmt: skip
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def manifest_document(folder: Path) -> Any:
    """What manifest.json says, unchecked; IndexFormatError if there is none or it is no JSON."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise IndexFormatError(f"{path.name} is larger than {MAX_MANIFEST >> 20} MB.", AGAIN)
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexFormatError(
            f"{_name(folder)} is not an index: it has no {MANIFEST}.",
            "Build one with `provindex index build MODEL... -o DIR`.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFormatError(f"The manifest of {_name(folder)} cannot be read: {_said(error)}.", AGAIN) from error


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _said(error: Exception) -> str:
    """An error in a few words; a KeyError is a name that is missing."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".") or type(error).__name__


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder; IndexFormatError if there is none that this version can use."""
    return manifest_of(manifest_document(folder), _name(folder))


def manifest_of(document: Any, name: str) -> Manifest:
    """The manifest in a document; IndexFormatError, naming the index, if this version cannot use it."""
    try:
        manifest = _manifest(document)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise IndexFormatError(f"The manifest of {name} cannot be read: {_said(error)}.", AGAIN) from error
    if manifest.schema != SCHEMA or manifest.fingerprint_version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"{name} has index schema {manifest.schema} and fingerprint version "
            f"{manifest.fingerprint_version}; this provindex reads {SCHEMA} and {FINGERPRINT_VERSION}.",
            "Use the provindex release that it was built with, or build it again.",
        )
    return manifest


def _manifest(document: Mapping[str, Any]) -> Manifest:
    shards = tuple(_shard(entry) for entry in document["shards"])
    return Manifest(
        id=str(document["id"]),
        built=_date(document["built"]),
        shards=shards,
        fingerprint_version=int(document["fingerprint_version"]),
        schema=int(document["schema"]),
        calibration=_calibration(document.get("calibration")),
        commit=_commit(document.get("commit")),
    )


def _date(value: object) -> str:
    """The date of a manifest, which is printed; "" where the Hub gave none."""
    if not isinstance(value, str) or (value and not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value)):
        raise ValueError("its date is none")
    return value


def _calibration(value: object) -> str | None:
    """The name of a calibration, which `calibration.load` takes apart."""
    if value is not None and not isinstance(value, str):
        raise ValueError("it names a calibration that is no file")
    return value


def _commit(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{40}", value)):
        raise ValueError("its commit is none")
    return value


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
    """The small columns of a shard, with vectors; IndexFormatError unless it has as many rows as the manifest says."""
    rows = _read(folder / shard.models, "models")
    _check_rows(shard, len(rows))
    return rows


def _check_rows(shard: Shard, rows: int) -> None:
    if rows != shard.rows:
        raise IndexFormatError(f"{shard.models} has {rows} rows, the manifest says {shard.rows}.", AGAIN)


def read_names(folder: Path, shard: Shard) -> dict[str, Sequence[str | None]]:
    """Who the rows of a shard are, the columns of NAMED; the rest is read for candidates only (`read_model`)."""
    path = folder / shard.models
    with _readable(path):
        columns = _columns(_shard_file(path), [f for f in schema("models") if f.name in NAMED])
    _check_rows(shard, len(columns[NAMED[0]]))
    return {name: _texts(columns[name]) for name in NAMED}


def read_vectors(folder: Path, shard: Shard) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """The retrieval vectors of a shard, (rows, 3264) float32, a row group at a time."""
    path, field = folder / shard.models, schema("models").field(VECTOR)
    with _readable(path):
        file = _shard_file(path)
        for group in range(file.metadata.num_row_groups):
            yield _numbers(_columns(file, [field], [group])[VECTOR].flatten()).reshape(-1, DIMENSIONS)


def _texts(array: Any) -> list[str | None]:
    """A column of texts; each different one is made once."""
    try:
        different = array.dictionary.to_pylist()
        if array.null_count:
            return [None if place is None else different[place] for place in array.indices.to_pylist()]
        return [different[place] for place in _numbers(array.indices).tolist()]
    except (UnicodeDecodeError, IndexError) as error:
        raise IndexFormatError(f"A column of texts cannot be read: {_said(error)}.", AGAIN) from error


def read_model(folder: Path, shard: Shard, number: int) -> Row:
    """The small columns of one row of a shard, without the vector."""
    path = folder / shard.models
    with _readable(path):
        columns = _small_columns(path, _stamp(path))
        _check_rows(shard, len(columns["row_sha256"]))
        return _row(columns, number)


def read_files(folder: Path, shard: Shard) -> list[str]:
    """Of each row of a shard, the files that it was made from: JSON."""
    path = folder / shard.models
    with _readable(path):
        files = _texts(_small_columns(path, _stamp(path))["files"])
        _check_rows(shard, len(files))
        return [text or "[]" for text in files]


@lru_cache(maxsize=64)
def _small_columns(path: Path, stamp: tuple[int, int, int]) -> dict[str, Any]:
    """A models shard without its vectors, as Arrow columns: cells are unpacked when somebody asks for their row."""
    return _columns(_kept(path, *stamp), [f for f in schema("models") if f.name != VECTOR])


def read_panels(folder: Path, shard: Shard, number: int) -> Row:
    """The arrays of one row of a shard: its row group, nothing else is read."""
    return read_columns(folder, shard, number, [f.name for f in schema("panels")])


def read_columns(folder: Path, shard: Shard, number: int, names: Sequence[str]) -> Row:
    """A few columns of the panels of one row. The row's hash cannot be checked by them.

    Raises IndexFormatError as the others do.
    """
    path = folder / shard.panels
    with _readable(path):
        return _one(_shard_file(path), [schema("panels").field(name) for name in names], number)


def _tail(source: Any) -> memoryview:
    """The first letters of a Parquet file and its footer, with nothing between."""
    with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        length = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, end - min(length, parquet_footer.MAX_FOOTER + 8)))
        return memoryview(parquet_footer.MAGIC + file.read())


def read_identities(source: Any, names: Sequence[str], title: str = "") -> list[tuple[str | None, ...]]:
    """Text columns of a models shard, row by row; source: a path, or a file that is read by ranges, called `title`.

    IndexFormatError if it is no shard, or larger than is read: nobody may have looked at it before.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, fields = title or Path(source).name, [schema("models").field(n) for n in names]
    try:
        _check_footer(_tail(source), name)
        with pq.ParquetFile(source, read_dictionary=list(names)) as opened:
            _check_columns(opened.schema_arrow.names, names, name)
            if opened.metadata.num_rows > MAX_SHARD_ROWS:
                raise IndexFormatError(
                    f"{name} has {opened.metadata.num_rows:,} rows, at most {MAX_SHARD_ROWS:,} are read.", AGAIN
                )
            _check_chunks(source, opened, names, name)
            columns = _checked_columns(opened.read(columns=list(names), use_threads=False), fields, name)
            return list(zip(*(columns[n].to_pylist() for n in names), strict=True))
    except KeyError as error:
        raise IndexFormatError(f"{name} has no columns of texts called {', '.join(names)}.", AGAIN) from error
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and not _is_of_bytes(error):
            raise
        raise IndexFormatError(f"{name} is not a readable Parquet file: {_reason(error)}.", AGAIN) from error


def _is_of_bytes(error: OSError) -> bool:
    """Whether pyarrow says it of what it read: the system's errors have numbers, the client's are of other kinds."""
    return type(error) is OSError and error.errno is None


def _check_chunks(source: Any, opened: Any, names: Sequence[str], name: str) -> None:
    """Refuse text columns that would not fit, by their page headers, of a file that may be read by ranges."""
    places = [opened.schema_arrow.names.index(n) for n in names]
    groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
    left = MAX_READ
    with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as file:
        for group, column in ((group, group.column(i)) for group in groups for i in places):
            length = column.total_compressed_size
            if not 0 <= length <= left:
                raise IndexFormatError(f"{name} states more text than {MAX_READ >> 20} MB.", AGAIN)
            file.seek(_start(column))
            values, size = _pages(column, memoryview(file.read(length)), name, 0)
            left -= max(size, length) + values * PER_VALUE
            if left < 0 or values > group.num_rows:
                raise IndexFormatError(f"{name} has more text than {MAX_READ >> 20} MB, or than rows.", AGAIN)
