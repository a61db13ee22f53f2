"""The peer's deep signals of one model: a Parquet file in long form, one number a row, in bounded memory.

Columns: signal (text), layer (int32, null but for WVC), row (int32), col (int32, null but for EAS), value (float32).
A footer can say anything, so what the page headers say is added up first (`parquet_pages`); then the rows are read in
batches, in whatever order they come, and each number is put in its place: a place that stays empty, or is filled twice,
makes the file unusable. Everything that is wrong is a ValueError that says it in a clause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import printable
from provindex.formats.parquet import pages as parquet_pages
from provindex.formats.parquet.footer import Chunk, Group, groups

MAX_BYTES = 1 << 28  # of a file; the largest that is published has 72 MB
MAX_ROWS = 1 << 25  # numbers of a file; the 15 B experts of the published ones come to 21 million
MAX_LAYERS = 1 << 12
MAX_GROUPS = 1 << 12
MAX_LAYER = 1 << 17  # WVC samples of a layer: 32 matrices; more are experts, of which no row of ours keeps all
PER_ROW, SLACK = 32, 1 << 20  # bytes that a column's pages may unpack to
BATCH = 1 << 18
PHYSICAL = {"signal": "BYTE_ARRAY", "layer": "INT32", "row": "INT32", "col": "INT32", "value": "FLOAT"}
LIMITS = {  # most numbers of a signal; WVC beyond it is passed over, all else is refused
    "eas_self_sim": 64 * 64, "nlf_vector": 1 << 24, "lep_profile": MAX_LAYERS, "end_histogram": 20,
    "wsp_signature": 2 * MAX_LAYERS, "wvc_layer_sigs": 1 << 23,
}  # fmt: skip
SIGNALS = tuple(LIMITS)
WVC, WSP, EAS = "wvc_layer_sigs", "wsp_signature", "eas_self_sim"

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
_Piece = tuple[I32, I32, I32, F32]  # layer, row, col, value


@dataclass(frozen=True)
class DeepSignals:
    """What a file holds, None where it lacks a signal.

    eas: (k, k) float32. nlf, lep, end: vectors, float32. wvc: the samples of each layer. experts: there were more
    samples of a layer than a model without experts has, and they were passed over.
    """

    eas: F32 | None = None
    nlf: F32 | None = None
    lep: F32 | None = None
    end: F32 | None = None
    wvc: Mapping[int, F32] | None = None
    experts: bool = False


def read(raw: bytes | bytearray) -> DeepSignals:
    """The signals in the bytes of a file of at most MAX_BYTES. WSP, which nothing compares, is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = groups(memoryview(raw))
    try:
        metadata = pq.read_metadata(pa.BufferReader(raw))
        _check_columns(metadata, found)
        _check_pages(metadata.num_rows, found, memoryview(raw))
        with pq.ParquetFile(pa.BufferReader(raw), metadata=metadata, read_dictionary=["signal"]) as file:
            pieces = _collected(file)
    except (pa.ArrowException, OSError) as error:
        said = printable((str(error).splitlines() or [type(error).__name__])[0][:200].rstrip("."))
        raise ValueError(f"it is not a readable Parquet file: {said}") from error
    vectors = {name: _vector(name, found) for name, found in pieces.items() if found and name not in (EAS, WVC, WSP)}
    wvc, experts = _layers(pieces[WVC])
    return DeepSignals(
        eas=_square(pieces[EAS]) if pieces[EAS] else None,
        nlf=vectors.get("nlf_vector"),
        lep=vectors.get("lep_profile"),
        end=vectors.get("end_histogram"),
        wvc=wvc,
        experts=experts,
    )


# --- sizes, before anything is unpacked ---


def _check_columns(metadata: Any, found: Sequence[Group]) -> None:
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    names = [leaf.path for leaf in leaves]
    if any([chunk.name for chunk in group.chunks] != names for group in found):  # they are read by their place
        raise ValueError("its row groups have other columns than its schema")
    for name, physical in PHYSICAL.items():
        known = [leaf for leaf in leaves if leaf.path == name]
        if len(known) != 1 or known[0].physical_type != physical or known[0].max_repetition_level:
            raise ValueError(f"it has no column {name} of type {physical}")


def _check_pages(rows: int, found: Sequence[Group], data: memoryview) -> None:
    if not 0 <= rows <= MAX_ROWS or len(found) > MAX_GROUPS:
        raise ValueError(f"it states {rows:,} rows, {MAX_ROWS:,} are the most that is read")
    if sum(group.rows for group in found) != rows:
        raise ValueError(f"it states {rows:,} rows, and its row groups have others")
    for group in found:
        for chunk in group.chunks:
            if chunk.name in PHYSICAL:
                _check_chunk(chunk, group.rows, data)


def _check_chunk(chunk: Chunk, rows: int, data: memoryview) -> None:
    values, size = parquet_pages.totals(data, chunk.start, chunk.stop)
    if not values == chunk.values == rows:
        raise ValueError(f"a column of {rows:,} rows has {values:,} values")
    if size > PER_ROW * rows + SLACK:
        raise ValueError(f"{rows:,} values of {chunk.name} unpack to {size:,} bytes")


# --- rows ---


def _collected(file: Any) -> dict[str, list[_Piece]]:
    """The numbers of each signal, batch by batch; those of WVC end where there are too many."""
    pieces: dict[str, list[_Piece]] = {name: [] for name in SIGNALS}
    counts = dict.fromkeys(SIGNALS, 0)
    for batch in file.iter_batches(batch_size=BATCH, columns=list(PHYSICAL), use_threads=False):
        if not batch.num_rows:
            continue
        codes = _codes(batch.column("signal"))
        layer, col = (_whole(batch.column(name), name, fill=-1) for name in ("layer", "col"))
        row, value = _whole(batch.column("row"), "row"), _real(batch.column("value"))
        for code in np.unique(codes):
            name, here = SIGNALS[code], codes == code
            counts[name] += int(np.count_nonzero(here))
            if counts[name] > LIMITS[name] and name != WVC:
                raise ValueError(f"it has more than {LIMITS[name]:,} values of {name}")
            if counts[name] <= LIMITS[name] + BATCH:  # of WVC: enough to see that there are too many
                pieces[name].append((layer[here], row[here], col[here], value[here]))
    return pieces


def _codes(texts: Any) -> NDArray[np.int64]:
    """Which of SIGNALS each row belongs to."""
    import pyarrow as pa

    if not pa.types.is_dictionary(texts.type) or texts.type.value_type not in (pa.string(), pa.large_string()):
        raise ValueError("its column signal is no text")
    if texts.null_count or texts.dictionary.null_count or len(texts.dictionary) > len(SIGNALS):
        raise ValueError(f"its column signal has empty cells or more than {len(SIGNALS)} names")
    names = texts.dictionary.to_pylist()
    if unknown := set(names) - set(SIGNALS):
        raise ValueError(f"it has a signal that is not known, {min(unknown)[:80]!r}")
    known = np.array([SIGNALS.index(name) for name in names], np.int64)
    places = _whole(texts.indices, "signal")
    if ((places < 0) | (places >= known.size)).any():
        raise ValueError("its column signal is damaged")
    return np.asarray(known[places])


def _whole(array: Any, name: str, fill: int | None = None) -> I32:
    """A column of int32 as numpy; fill: what stands for empty cells, None if there may be none."""
    import pyarrow as pa

    if pa.types.is_null(array.type) and fill is not None:  # how some writers store a column without any value
        return np.full(len(array), fill, np.int32)
    if array.type != pa.int32():
        raise ValueError(f"its column {name} has type {array.type}, not int32")
    if array.null_count:
        if fill is None:
            raise ValueError(f"its column {name} has empty cells")
        array = array.fill_null(fill)
    return np.frombuffer(array.buffers()[1], np.int32, len(array), 4 * array.offset)


def _real(array: Any) -> F32:
    import pyarrow as pa

    if array.type != pa.float32() or array.null_count:
        raise ValueError("its column value has empty cells or is not float32")
    return np.frombuffer(array.buffers()[1], np.float32, len(array), 4 * array.offset)


# --- every number in its place ---


def _joined(pieces: list[_Piece]) -> _Piece:
    layer, row, col, value = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return layer, row, col, value


def _placed(places: NDArray[np.int64], values: F32, name: str) -> F32:
    """The values in order; ValueError unless each place from 0 to n - 1 is named once."""
    inside = (places >= 0) & (places < places.size)
    if not inside.all() or np.bincount(places, minlength=places.size).max(initial=0) > 1:
        raise ValueError(f"the rows of {name} have gaps, or one is there twice")
    out = np.empty(values.size, np.float32)
    out[places] = values
    return out


def _vector(name: str, pieces: list[_Piece]) -> F32:
    _, row, _, value = _joined(pieces)
    return _placed(row.astype(np.int64), value, name)


def _square(pieces: list[_Piece]) -> F32:
    _, row, col, value = _joined(pieces)
    k = round(value.size**0.5)
    if k * k != value.size or ((row < 0) | (row >= k) | (col < 0) | (col >= k)).any():
        raise ValueError(f"the {value.size:,} values of {EAS} are no square matrix")
    return _placed(row.astype(np.int64) * k + col, value, EAS).reshape(k, k)


def _layers(pieces: list[_Piece]) -> tuple[Mapping[int, F32] | None, bool]:
    """The samples of each layer, and whether there were too many to keep."""
    if not pieces:
        return None, False
    layer, row, _, value = _joined(pieces)
    if ((layer < 0) | (layer >= MAX_LAYERS)).any():
        raise ValueError(f"{WVC} has a row without a layer from 0 to {MAX_LAYERS - 1:,}")
    counts = np.bincount(layer)
    if value.size > LIMITS[WVC] or counts.max() > MAX_LAYER:
        return None, True
    starts = np.cumsum(counts) - counts
    if ((row < 0) | (row >= counts[layer])).any():
        raise ValueError(f"the rows of {WVC} have gaps, or one is there twice")
    together = _placed(starts[layer] + row, value, WVC)
    kept = np.flatnonzero(counts).tolist()
    return {i: together[starts[i] : starts[i] + counts[i]] for i in kept}, False
