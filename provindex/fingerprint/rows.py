"""A Fingerprint as one row of plain columns, and back; the row's own hash.

`models` columns are small and answer every question of compatibility, `panels` columns hold the arrays. Every array is
one-dimensional here; its shape follows from the counts beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from provindex.common.bounded_json import compact
from provindex.common.errors import IndexFormatError
from provindex.common.files import FileFact
from provindex.common.reasons import Reason
from provindex.common.tables import Column, Row
from provindex.fingerprint.panels import COLUMNS, LIMITS, NULLABLE, OPTIONAL, PANELS
from provindex.fingerprint.record import FINGERPRINT_VERSION, Facts, Fingerprint, kept_as
from provindex.signals import mfi, tfv

__all__ = [
    "COLUMNS",
    "LIMITS",
    "NULLABLE",
    "OPTIONAL",
    "Row",
    "completed",
    "context",
    "empty_cell",
    "from_row",
    "row_hash",
    "to_row",
]

MAX_DEPTH = 1 << 12  # layers: more than any model has
MAX_WARNINGS = 1 << 13
AGAIN = "Make the fingerprint again with `provindex fingerprint`, and an index with `provindex index build`."
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
        "fingerprint_version": fp.version, "mode": fp.mode,
        "content_sha256": fp.content_sha256, "core_sha256": fp.core_sha256,
        "architecture": fp.facts.architecture, "main_stack": fp.facts.main, "parameters": fp.facts.parameters,
        "hidden": fp.facts.hidden, "layers": fp.facts.layers, "vocabulary": fp.facts.vocabulary,
        "precision": fp.facts.precision, "nonfinite": fp.facts.nonfinite,
        "absences": compact({name: reason.to_json() for name, reason in fp.absences.items()}),
        "warnings": compact([reason.to_json() for reason in fp.warnings]),
        "files": compact([dataclasses.asdict(f) for f in fp.files]),
        "bytes_read": fp.bytes_read, "bytes_total": fp.bytes_total,
    }  # fmt: skip
    for panel in PANELS:
        value = fp.value(panel.name)
        row |= {} if value is None else panel.to_row(value)
    return _complete(row)


def _complete(row: Row) -> Row:
    """Every column present, absent arrays empty, and the hash filled in."""
    whole = {column.name: _cell(column, row.get(column.name)) for column in COLUMNS}
    return {**whole, "row_sha256": row_hash(whole)}


def completed(row: Row) -> Row:
    """A row that was written before some panel had its columns: those are empty."""
    return row | {name: _cell(column, None) for name, column in _PANEL_COLUMNS.items() if name not in row}


def empty_cell(name: str) -> Any:
    """What a row holds in a column of a panel that it lacks."""
    return _cell(_PANEL_COLUMNS[name], None)


def _cell(column: Column, value: Any) -> Any:
    """A cell as a column has it; what is absent is empty."""
    if column.type == "list<string>":
        return list(value or ())
    if column.type.startswith("list<"):
        dtype = _EMPTY[column.type[5:-1]]
        return np.zeros(0, dtype) if value is None else np.ascontiguousarray(value, dtype).reshape(-1)
    return int(value or 0) if column.type == "int" else value


def row_hash(row: Mapping[str, Any]) -> str:
    """sha256 over the content columns: names, and values as little-endian bytes or canonical JSON.

    Empty columns of panels do not count: a panel that is added later changes no hash of the rows before it.
    """
    digest = hashlib.sha256()
    for column in COLUMNS:
        value = row[column.name]
        if not column.content or (column.name in OPTIONAL and _is_empty(value)):
            continue
        if isinstance(value, np.ndarray):
            data = value.astype(value.dtype.newbyteorder("<")).tobytes()
        else:
            data = compact(value).encode()
        digest.update(f"{column.name} {column.type} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _is_empty(value: Any) -> bool:
    return value.size == 0 if isinstance(value, np.ndarray) else not value


_PANEL_COLUMNS = {column.name: column for column in COLUMNS if column.name in OPTIONAL}


# --- and back ---


def from_row(row: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of a row.

    Raises IndexFormatError if the row is of another fingerprint version, or its parts do not fit together.
    """
    version = row["fingerprint_version"]
    if version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"The fingerprint of {row['model_id']} has version {version}; this provindex reads {FINGERPRINT_VERSION}.",
            AGAIN,
        )
    try:
        return _from_row(completed(dict(row)))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise IndexFormatError(
            f"The fingerprint row of {row['model_id']} is damaged: {error}.",
            "Check the index with `provindex index verify`, or make the fingerprint again.",
        ) from error


def _from_row(row: Mapping[str, Any]) -> Fingerprint:
    if not 0 <= row["layers"] <= MAX_DEPTH:
        raise ValueError(f"{row['layers']} layers, {MAX_DEPTH:,} are the most")
    _check_arrays(row)
    kept = {panel.name: panel.from_row(row) for panel in PANELS}
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
        core_sha256=row["core_sha256"],
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
        absences=_absences(json.loads(row["absences"])),
        warnings=_warnings(json.loads(row["warnings"])),
        files=tuple(FileFact(**f) for f in json.loads(row["files"])),
        bytes_read=row["bytes_read"],
        bytes_total=row["bytes_total"],
        **kept_as(kept),
    )


def _check_arrays(row: Mapping[str, Any]) -> None:
    """ValueError for a list of more values than a row may have, or for numbers that must be finite and are not."""
    for column in COLUMNS:
        if column.limit and len(row[column.name]) > column.limit:
            raise ValueError(
                f"{len(row[column.name]):,} values of {column.name}, at most {column.limit:,} are possible"
            )
        if column.finite and not np.isfinite(row[column.name]).all():
            raise ValueError(f"a value of {column.name} that is not finite")


def _absences(value: Any) -> dict[str, Reason]:
    if not isinstance(value, dict):
        raise ValueError("absences are not names with reasons")
    return {name: Reason.from_json(reason) for name, reason in value.items()}


def _warnings(value: Any) -> tuple[Reason, ...]:
    if not isinstance(value, list) or len(value) > MAX_WARNINGS:
        raise ValueError("warnings are no list of reasons")
    return tuple(map(Reason.from_json, value))


def context(row: Mapping[str, Any]) -> tuple[mfi.MfiFeatures, tfv.TfvFeatures | None]:
    """What a row keeps of config and tokenizer; the small columns do. IndexFormatError if they are damaged."""
    try:
        whole = completed(dict(row))
        return mfi.PANEL.from_row(whole), tfv.PANEL.from_row(whole)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexFormatError(
            f"The fingerprint row of {row['model_id']} is damaged: {error}.",
            "Check the index with `provindex index verify`.",
        ) from error
