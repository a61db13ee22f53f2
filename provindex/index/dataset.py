"""Fingerprints on disk: Parquet shards that are written once, a manifest with digests, and the checks that both hold.

Layout of an index folder (and of the Hub dataset): `data/models/*.parquet` (small columns and the retrieval vector),
`data/panels/*.parquet` (arrays, one row a row group, so that one model can be read alone), `manifest.json`. Shards
are named by their content and never rewritten.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from provindex.common.errors import IndexFormatError
from provindex.common.files import file_sha256, now, replacing
from provindex.fingerprint import parquet
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.fingerprint.rows import Row, empty_cell, to_row
from provindex.index.search import DIMENSIONS, vector

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_REPLACED = 1 << 24  # bytes of the list of what was replaced
REPLACED = ".replaced.json"  # shards that the manifest named once: path and the time since when it does not, in seconds
MODELS, PANELS = "data/models", "data/panels"
MODELS_PER_GROUP = 1000
MAX_MANIFEST = 64 << 20
NAMED = ("row_sha256", "model_id", "revision", "variant", "family")  # of every row, when an index is opened
VECTOR = "vector"
_SHARD_NAME = re.compile(r"(?P<month>\d{4}-(0[1-9]|1[0-2]))-(?P<who>.+)-[0-9a-f]{8}\.parquet", re.ASCII)


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
    commit: the revision that was pulled from the Hub (see `index.pulled`), None for an index that was made here.
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


# --- shards and manifest ---


def write_shard(folder: Path, fingerprints: Iterable[Fingerprint], who: str, month: str | None = None) -> Shard:
    """Write fingerprints as one shard, named by month, origin and content; rows sorted by id, revision and variant.

    month: YYYY-MM, in which the rows were made, if that is not now.
    """
    rows = [{**to_row(fp), VECTOR: vector(fp)} for fp in fingerprints]
    rows.sort(key=_identity)
    name = hashlib.sha256(json.dumps([_identity(r) for r in rows]).encode()).hexdigest()[:8]
    stem = f"{month or f'{now():%Y-%m}'}-{who}-{name}.parquet"
    paths = {MODELS: folder / MODELS / stem, PANELS: folder / PANELS / stem}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(paths[MODELS]) as temporary:
        parquet.write(temporary, rows, schema("models"), MODELS_PER_GROUP)
    with replacing(paths[PANELS]) as temporary:
        parquet.write(temporary, rows, schema("panels"), 1)
    relative = [f"{kind}/{stem}" for kind in paths]
    return Shard(
        models=relative[0],
        panels=relative[1],
        rows=len(rows),
        sha256={r: file_sha256(folder / r) for r in relative},
        bytes={r: (folder / r).stat().st_size for r in relative},
    )


def month_of(shard: Shard) -> str | None:
    """The month, YYYY-MM, that the name of a shard begins with, as `write_shard` names them; None if it has none."""
    found = re.match(r"\d{4}-(0[1-9]|1[0-2])(?=-)", shard.models.rpartition("/")[2], re.ASCII)
    return found[0] if found else None


def origin_of(path: str) -> tuple[str, str] | None:
    """(month, origin) in the name of a shard's file; None if `write_shard` did not name it."""
    found = _SHARD_NAME.fullmatch(path.rpartition("/")[2])
    return (found["month"], found["who"]) if found else None


def is_shard(path: str) -> bool:
    """Whether a path of a dataset is that of half a shard; folders below theirs are somebody else's."""
    return path.rpartition("/")[0] in (MODELS, PANELS) and path.endswith(".parquet")


def described(folder: Path, models: str, panels: str) -> Shard:
    """The description of a pair of Parquet files that are there; IndexFormatError if they are no shard."""
    for name in (models, panels):
        with parquet.readable(folder / name):
            rows = parquet.mapped_file(folder / name).metadata.num_rows
    if not 0 < rows <= parquet.MAX_SHARD_ROWS:
        raise IndexFormatError(
            f"{models} has {rows:,} rows; from 1 to {parquet.MAX_SHARD_ROWS:,} are accepted.", parquet.AGAIN
        )
    names = (models, panels)
    return Shard(
        models, panels, rows,
        sha256={name: file_sha256(folder / name) for name in names},
        bytes={name: (folder / name).stat().st_size for name in names},
    )  # fmt: skip


def _identity(row: Row) -> tuple[str, str, str, str]:
    return (row["model_id"], row["revision"] or "", row["variant"], row["row_sha256"])


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
            raise IndexFormatError(f"{path.name} is larger than {MAX_MANIFEST >> 20} MB.", parquet.AGAIN)
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexFormatError(
            f"{_name(folder)} is not an index: it has no {MANIFEST}.",
            "Build one with `provindex index build MODEL... -o DIR`.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFormatError(
            f"The manifest of {_name(folder)} cannot be read: {_said(error)}.", parquet.AGAIN
        ) from error


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _said(error: Exception) -> str:
    """An error in a few words; a KeyError is a name that is missing."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".") or type(error).__name__


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder; IndexFormatError if there is none that this version can use."""
    return manifest_of(manifest_document(folder), _name(folder))


def older_manifest(folder: Path) -> Manifest | None:
    """The manifest of an index folder that an older provindex made; None if there is none, or it is of this version.

    Raises IndexFormatError as `read_manifest` does, of a newer version too.
    """
    return older_of(manifest_document(folder), _name(folder)) if (folder / MANIFEST).exists() else None


def older_of(document: Any, name: str) -> Manifest | None:
    """The manifest in a document if it is of an older fingerprint version; None if this version can use it."""
    manifest = _any_version(document, name)
    if manifest.schema == SCHEMA and manifest.fingerprint_version < FINGERPRINT_VERSION:
        return manifest
    manifest_of(document, name)
    return None


def _any_version(document: Any, name: str) -> Manifest:
    try:
        return _manifest(document)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise IndexFormatError(f"The manifest of {name} cannot be read: {_said(error)}.", parquet.AGAIN) from error


def manifest_of(document: Any, name: str) -> Manifest:
    """The manifest in a document; IndexFormatError, naming the index, if this version cannot use it."""
    manifest = _any_version(document, name)
    if manifest.schema != SCHEMA or manifest.fingerprint_version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"{name} has index schema {manifest.schema} and fingerprint version "
            f"{manifest.fingerprint_version}; this provindex reads schema {SCHEMA} and version {FINGERPRINT_VERSION}.",
            "Build it again with `provindex index build MODEL... -o DIR`, or get it with `provindex index pull`.",
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


def replaced(folder: Path) -> dict[str, float]:
    """Files of shards that the manifest does not name any more, and since when, in seconds; they may still be read."""
    path = folder / REPLACED
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= MAX_REPLACED else {}
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise IndexFormatError(
            f"{REPLACED} of {_name(folder)} cannot be read: {error.strerror}.", "Remove it."
        ) from error
    times = said.items() if isinstance(said, dict) else ()
    return {path: float(time) for path, time in times if is_shard(path) and isinstance(time, int | float)}


def write_replaced(folder: Path, times: Mapping[str, float]) -> None:
    """Write the list that `replaced` reads, or remove it when it is empty."""
    if not times:
        (folder / REPLACED).unlink(missing_ok=True)
        return
    with replacing(folder / REPLACED) as temporary:
        temporary.write_text(json.dumps(times, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_models(folder: Path, shard: Shard) -> list[Row]:
    """The small columns of a shard, with vectors; IndexFormatError unless it has as many rows as the manifest says."""
    rows = parquet.read_rows(folder / shard.models, schema("models"))
    _check_rows(shard, len(rows))
    return rows


def _check_rows(shard: Shard, rows: int) -> None:
    if rows != shard.rows:
        raise IndexFormatError(f"{shard.models} has {rows} rows, the manifest says {shard.rows}.", parquet.AGAIN)


def read_names(folder: Path, shard: Shard) -> dict[str, Sequence[str | None]]:
    """Who the rows of a shard are, the columns of NAMED; the rest is read for candidates only (`read_model`)."""
    path = folder / shard.models
    with parquet.readable(path):
        columns = parquet.columns_of(parquet.kept_file(path), [f for f in schema("models") if f.name in NAMED])
    _check_rows(shard, len(columns[NAMED[0]]))
    return {name: parquet.texts(columns[name]) for name in NAMED}


def read_vectors(folder: Path, shard: Shard) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """The retrieval vectors of a shard, (rows, 3520) float32, a row group at a time."""
    path, field = folder / shard.models, schema("models").field(VECTOR)
    with parquet.readable(path):
        file = parquet.kept_file(path)
        for group in range(file.metadata.num_row_groups):
            yield parquet.numbers(parquet.columns_of(file, [field], [group])[VECTOR].flatten()).reshape(-1, DIMENSIONS)


def read_model(folder: Path, shard: Shard, number: int) -> Row:
    """The small columns of one row of a shard, without the vector."""
    path = folder / shard.models
    with parquet.readable(path):
        columns = _small_columns(path, parquet.stamp(path))
        _check_rows(shard, len(columns["row_sha256"]))
        return parquet.row_of(columns, number)


def read_texts(folder: Path, shard: Shard, name: str) -> list[str]:
    """A small column of texts of a shard, row by row; "" where a row has none."""
    path = folder / shard.models
    with parquet.readable(path):
        found = parquet.texts(_small_columns(path, parquet.stamp(path))[name])
        _check_rows(shard, len(found))
        return [text or "" for text in found]


def read_numbers(folder: Path, shard: Shard, name: str) -> list[int]:
    """A small column of whole numbers of a shard, row by row."""
    path = folder / shard.models
    with parquet.readable(path):
        found = _small_columns(path, parquet.stamp(path))[name].to_pylist()
        _check_rows(shard, len(found))
        return [int(number) for number in found]


@lru_cache(maxsize=2)
def schema(table: str) -> Any:
    """The Arrow schema of a shard: of "panels" that of rows; "models" has the retrieval vectors besides."""
    import pyarrow as pa

    columns = parquet.schema(table)
    return columns.append(pa.field(VECTOR, pa.list_(pa.float32(), DIMENSIONS))) if table == "models" else columns


@lru_cache(maxsize=64)
def _small_columns(path: Path, stamp: tuple[int, int, int]) -> dict[str, Any]:
    """A models shard without its vectors, as Arrow columns: cells are unpacked when somebody asks for their row."""
    return parquet.columns_of(parquet.kept(path, *stamp), [f for f in schema("models") if f.name != VECTOR])


def read_panels(folder: Path, shard: Shard, number: int) -> Row:
    """The arrays of one row of a shard: its row group, nothing else is read."""
    return read_columns(folder, shard, number, [f.name for f in schema("panels")])


def read_columns(folder: Path, shard: Shard, number: int, names: Sequence[str]) -> Row:
    """A few columns of the panels of one row. The row's hash cannot be checked by them.

    Raises IndexFormatError as the others do.
    """
    path = folder / shard.panels
    with parquet.readable(path):
        row = parquet.one_row(parquet.kept_file(path), [schema("panels").field(name) for name in names], number)
        return {name: row[name] if name in row else empty_cell(name) for name in names}
