"""Rows as Parquet files, and the guard that reads files of strangers: sizes first, then cells.

A fingerprint file has one row with all columns; the shards of an index (`index/dataset.py`) keep the same columns in
two files. Footers and page headers are looked at before pyarrow allocates by them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from provindex.common.errors import IndexFormatError, ModelError
from provindex.common.files import replacing
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import COLUMNS, LIMITS, NULLABLE, OPTIONAL, Row, completed, from_row, row_hash, to_row
from provindex.formats.parquet import footer, pages

MAX_SHARD_ROWS = 100_000  # of a shard that no manifest vouches for
MAX_READ = 1 << 28  # bytes that one read may take; by this count a model's row has 2 to 60 MB, and 8,000 small rows fit
PER_VALUE = 8  # a value and its levels in memory: a run-length bomb has few bytes and many values
PHYSICAL: Mapping[str, np.dtype[Any]] = {  # how Parquet stores numbers
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FLOAT": np.dtype("<f4"), "DOUBLE": np.dtype("<f8"),
    "FIXED_LEN_BYTE_ARRAY": np.dtype("<f2"),
}  # fmt: skip
UNPACKED = {"ZSTD": "zstd", "UNCOMPRESSED": ""}
MAX_TEXT = 1 << 22  # bytes of one text; the longest, a model's files and config features, have some 20 KB
AGAIN = "Check the index with `provindex index verify`, or get it again."


def arrow_type(name: str) -> Any:
    import pyarrow as pa

    plain = {
        "string": pa.string(), "int": pa.int64(), "int32": pa.int32(), "int8": pa.int8(), "uint64": pa.uint64(),
        "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    }  # fmt: skip
    return pa.list_(plain[name[5:-1]]) if name.startswith("list<") else plain[name]


def limit(field: Any) -> int:
    """Most values that a column may have in one row."""
    fixed = getattr(field.type, "list_size", None)
    return int(fixed) if fixed is not None else LIMITS.get(field.name, MAX_READ)


@lru_cache(maxsize=4)
def schema(table: str) -> Any:
    """The Arrow schema of the columns of "models", "panels", or "both" (a fingerprint file)."""
    import pyarrow as pa

    return pa.schema(
        pa.field(c.name, arrow_type(c.type)) for c in COLUMNS if table == "both" or c.table in (table, "both")
    )


def write(path: Path, rows: Sequence[Row], wanted: Any, group: int) -> None:
    """Write rows as one Parquet file. wanted: its Arrow schema. group: rows a row group.

    zstd; floats as byte streams without a dictionary, which would make them larger than raw.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f.name: _column([r[f.name] for r in rows], f.type) for f in wanted}
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


def _column(values: Sequence[Any], kind: Any) -> Any:
    """Values as an Arrow array, None as null. `pyarrow.array` would import pandas to ask whether they are a series."""
    import pyarrow as pa

    there = np.ones(0) if isinstance(values, np.ndarray) else np.array([value is not None for value in values])
    valid = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        lists = [() if value is None else value for value in values]
        flat = [one for value in lists for one in value] if pa.types.is_string(kind.value_type) else _joined(lists)
        child = _column(flat, kind.value_type)
        sizes = [] if pa.types.is_fixed_size_list(kind) else [_offsets(list(map(len, lists)))]
        return pa.Array.from_buffers(kind, len(values), [valid, *sizes], children=[child])
    if pa.types.is_string(kind):
        texts = [b"" if value is None else str(value).encode() for value in values]
        return pa.Array.from_buffers(
            kind, len(values), [valid, _offsets(list(map(len, texts))), pa.py_buffer(b"".join(texts))]
        )
    dtype = np.dtype(_NUMBERS[str(kind)])
    numbers = (
        values
        if isinstance(values, np.ndarray)
        else np.array([0 if value is None else value for value in values], None if len(values) else dtype)
    )
    held = np.ascontiguousarray(numbers.astype(dtype, casting="same_kind", copy=False))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(held)])


_NUMBERS = {
    "int64": "<i8", "int32": "<i4", "int8": "i1", "uint64": "<u8", "halffloat": "<f2", "float": "<f4", "double": "<f8",
}  # fmt: skip


def _joined(lists: Sequence[Any]) -> Any:
    """The numbers of some lists, one after another."""
    full = [np.asarray(one) for one in lists if len(one)]
    return np.concatenate(full) if full else []


def _offsets(sizes: Sequence[int]) -> Any:
    """Where values of some sizes begin, and the end of the last, as an Arrow buffer; OverflowError past 2 GB."""
    import pyarrow as pa

    stops = np.cumsum([0, *sizes])
    if stops[-1] >= 1 << 31:
        raise OverflowError(f"{stops[-1]:,} values or bytes in one column")
    return pa.py_buffer(stops.astype("<i4"))


@dataclass(frozen=True)
class _File:
    """A Parquet file, mapped, its footer parsed. leaves: which column of the file holds a name's values."""

    name: str
    metadata: Any
    arrow: Any
    buffer: Any
    leaves: Mapping[str, int]


def mapped_file(path: Path, *, vouched: bool = False) -> _File:
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
def kept(path: Path, *stamp: int) -> _File:
    """A shard, which many rows are read from: its footer alone takes longer to parse than a row to read.

    Shards are never rewritten; `stamp` is what would change if one were. A footer of 256 rows takes 4 to 7 MB.
    """
    return mapped_file(path, vouched=True)


def _check_footer(data: memoryview, name: str) -> None:
    """Refuse a footer that would end the process: pyarrow throws what nobody catches where one contradicts itself."""
    try:
        footer.groups(data)
    except ValueError as error:
        raise IndexFormatError(f"{name} cannot be used: {error}.", AGAIN) from error


def check_footer(path: Path, title: str = "") -> None:
    """IndexFormatError if a Parquet file, called `title`, has a footer that cannot be read safely."""
    import pyarrow as pa

    with readable(path), pa.memory_map(str(path)) as mapped:
        _check_footer(memoryview(mapped.read_buffer()).cast("B"), title or path.name)


def stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def kept_file(path: Path) -> _File:
    return kept(path, *stamp(path))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a Parquet file is read, as one sentence."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError) as error:
        raise IndexFormatError(f"{path.name} is not a readable Parquet file: {_reason(error)}.", AGAIN) from error


def read_rows(path: Path, wanted: Any) -> list[Row]:
    """Rows of a Parquet file as plain columns.

    Sizes are checked before anything is unpacked. Raises IndexFormatError if the file lacks a column of the
    schema `wanted`.
    """
    with readable(path):
        columns = columns_of(mapped_file(path), list(wanted))
        return [row_of(columns, number) for number in range(len(next(iter(columns.values()))))]


def columns_of(file: _File, fields: Sequence[Any], groups: Sequence[int] | None = None) -> dict[str, Any]:
    """Columns as Arrow arrays without holes, of some row groups or of all; sizes are checked first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = _present(file, fields)
    chosen = list(range(file.metadata.num_row_groups) if groups is None else groups)
    _check_size(file, chosen, fields)
    texts = [_leaf(f) for f in fields if _is_text(f)]
    with pq.ParquetFile(pa.BufferReader(file.buffer), metadata=file.metadata, read_dictionary=texts) as opened:
        # One thread: a model's columns are small, and handing them out costs more than reading them.
        read = opened.read_row_groups(chosen, columns=[f.name for f in fields], use_threads=False)
    return _checked_columns(read, fields, file.name)


def one_row(file: _File, fields: Sequence[Any], group: int) -> Row:
    """Columns of the one row of a row group; IndexFormatError if it has another number of rows.

    Long lists of numbers are taken from their pages directly: unpacking them as a table of lists takes five times as
    long, and reading the candidates would be half of a query.
    """
    fields = _present(file, fields)
    rows = file.metadata.row_group(group).num_rows if 0 <= group < file.metadata.num_row_groups else 0
    if rows != 1:
        raise IndexFormatError(f"{file.name} has {rows} rows in row group {group}, expected 1.", AGAIN)
    _check_size(file, [group], fields)
    direct = {f.name: values for f in fields if (values := direct_numbers(file, group, f)) is not None}
    others = [f for f in fields if f.name not in direct]
    row = row_of(columns_of(file, others, [group]), 0) if others else {}
    return {f.name: direct[f.name] if f.name in direct else row[f.name] for f in fields}


def direct_numbers(file: _File, group: int, field: Any) -> np.ndarray[Any, Any] | None:
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
        raw = pages.one_list(data, start, start + column.total_compressed_size, stored.itemsize, unpack)
    except ValueError:
        return None
    return None if raw is None else as_dtype(raw.view(stored), np.dtype(field.type.value_type.to_pandas_dtype()))


def as_dtype(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
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


def _present(file: _File, fields: Sequence[Any]) -> list[Any]:
    """The columns that a file has; a panel that is newer than the file may have none in it."""
    _check_columns(file.arrow.names, [f.name for f in fields], file.name)
    return [f for f in fields if f.name in file.leaves or f.name not in OPTIONAL]


def _check_columns(names: Sequence[str], wanted: Sequence[str], name: str) -> None:
    missing = [column for column in wanted if names.count(column) != 1 and (column in names or column not in OPTIONAL)]
    if missing:
        raise IndexFormatError(
            f"{name} is a Parquet file, but {len(missing)} of the {len(wanted)} columns are missing or double, "
            f"{missing[0]} among them.",
            "`provindex fingerprint MODEL -o FILE.parquet` writes fingerprints, `provindex index build` indexes.",
        )


def _check_size(file: _File, groups: Sequence[int], fields: Sequence[Any]) -> None:
    """Refuse columns that would not fit or cannot be ours, before anything is unpacked.

    By the footer first, then by the page headers, which must bear the footer out: a reader allocates by them.
    """
    chosen = [file.metadata.row_group(group) for group in groups]
    columns = [(group.num_rows, f, group.column(file.leaves[f.name])) for group in chosen for f in fields]
    if sum(max(column.num_values, 0) * PER_VALUE for _, _, column in columns) > MAX_READ:
        raise IndexFormatError(
            f"{file.name} states more values than {MAX_READ >> 20} MB, the most that is read.", AGAIN
        )
    total, data = 0, memoryview(file.buffer).cast("B")
    for rows, field, column in columns:
        values, size = _pages(column, data, file.name, _start(column))
        if values > rows * limit(field):
            raise IndexFormatError(
                f"{file.name}: {values:,} values of {field.name}, at most {limit(field):,} a row.", AGAIN
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
        values, size = pages.totals(data, start, start + column.total_compressed_size)
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


def row_of(columns: Mapping[str, Any], number: int) -> Row:
    """One row of Arrow columns: strings, ints, lists of strings, numpy arrays."""
    return {name: _cell(array, number) for name, array in columns.items()}


def _cell(array: Any, number: int) -> Any:
    import pyarrow as pa

    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    if nested and not pa.types.is_dictionary(array.type.value_type):
        return numbers(array[number].values)
    return array[number].as_py()


def _plain_type(found: Any) -> Any:
    """A type as the schema has it: text is read as numbers into a list of different texts."""
    import pyarrow as pa

    if pa.types.is_dictionary(found) and found.value_type == pa.string():
        return found.value_type
    return pa.list_(_plain_type(found.value_type)) if pa.types.is_list(found) else found


def _text_bytes(texts: Any, column: str, name: str) -> int:
    """Bytes of all texts of a column when written out: few different ones may be repeated without end."""
    different, places = texts.dictionary, numbers(texts.indices)
    buffer = different.buffers()[1]
    if not len(different) or buffer is None:
        return 0
    # Not with pyarrow.compute, whose import costs more than reading a model.
    lengths = np.diff(np.frombuffer(buffer, np.int32, len(different) + 1, 4 * different.offset).astype(np.int64))
    if lengths.max() > MAX_TEXT:
        raise IndexFormatError(f"{name}: a text of {column} has more than {MAX_TEXT >> 20} MB.", AGAIN)
    return int(lengths[np.clip(places, 0, lengths.size - 1)].sum())  # the place of an empty cell may be any number


def numbers(values: Any) -> np.ndarray[Any, Any]:
    """A flat Arrow array without nulls as numpy; its own `to_numpy` imports pandas, which costs more than a query."""
    dtype = np.dtype(values.type.to_pandas_dtype())
    buffer = values.buffers()[1]
    if buffer is None:
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype, len(values), values.offset * dtype.itemsize)


def write_fingerprint(fp: Fingerprint, path: Path) -> str:
    """Write one fingerprint as a one-row Parquet file (to a temporary name, then renamed); returns its row hash."""
    row = to_row(fp)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary, [row], schema("both"), 1)
    return str(row["row_sha256"])


def read_fingerprints(path: Path) -> list[Fingerprint]:
    """The fingerprints of a file that `write_fingerprint` wrote.

    Raises ModelError if there is none in it, IndexFormatError if it is damaged, of another version or something else.
    """
    rows = read_rows(path, schema("both"))
    if not rows:
        raise ModelError(
            f"{path.name} has no rows.", "Fingerprints are written by `provindex fingerprint MODEL -o FILE.parquet`."
        )
    return [checked(row) for row in rows]


def checked(row: Row) -> Fingerprint:
    """The fingerprint of a complete row whose hash is right; IndexFormatError otherwise."""
    fp = from_row(row)
    if row_hash(completed(row)) != row["row_sha256"]:
        raise IndexFormatError(f"The fingerprint of {row['model_id']} does not match its own hash.", AGAIN)
    return fp


def texts(array: Any) -> list[str | None]:
    """A column of texts; each different one is made once."""
    try:
        different = array.dictionary.to_pylist()
        if array.null_count:
            return [None if place is None else different[place] for place in array.indices.to_pylist()]
        return [different[place] for place in numbers(array.indices).tolist()]
    except (UnicodeDecodeError, IndexError) as error:
        raise IndexFormatError(f"A column of texts cannot be read: {error}.", AGAIN) from error


def _tail(source: Any) -> memoryview:
    """The first letters of a Parquet file and its footer, with nothing between."""
    with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        length = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, end - min(length, footer.MAX_FOOTER + 8)))
        return memoryview(footer.MAGIC + file.read())


def read_texts(source: Any, names: Sequence[str], title: str = "") -> list[tuple[str | None, ...]]:
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
