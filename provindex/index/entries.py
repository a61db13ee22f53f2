"""The rows of an index: who each is, its vector, and where the rest is read from when somebody asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from provindex.catalogue.table import family_of
from provindex.common.errors import IndexFormatError
from provindex.evidence.sketch import LAYER, BranchSketches
from provindex.fingerprint import parquet
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.fingerprint.rows import Row
from provindex.index import codes, dataset, families, segments
from provindex.index.search import DIMENSIONS, Sketches

SEED = Path(__file__).parent / "seed"
THREADS = 4  # that read and compare candidates: more would wait for the interpreter
SKETCHES = ("sketch_layers", "sketch_id_layers")  # at anchor strings, at fixed token ids
Key = tuple[str, str, str, str]  # of an entry
F32 = NDArray[np.float32]
Names = Mapping[str, Sequence[str | None]]  # columns of dataset.NAMED


class Rows(Protocol):
    """Where rows are kept: vectors at hand, the rest when it is asked for. Raises IndexFormatError if it is damaged."""

    @property
    def vectors(self) -> Vectors:
        """Retrieval vectors, (rows, DIMENSIONS)."""

    def row(self, number: int) -> Row:
        """The small columns of a row."""

    def load(self, number: int) -> Fingerprint: ...

    def sketches(self, number: int) -> Sketches:
        """The branch sketches alone, unverified: they say which candidates come first, and nothing else."""

    def texts(self, name: str) -> Sequence[str]:
        """A small column of texts, row by row."""

    def numbers(self, name: str) -> Sequence[int]:
        """A small column of whole numbers, row by row."""

    @property
    def made(self) -> str | None:
        """The month in which the shard was written, as its name says; None if it says none."""


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One model of an index: who it is, and where the rest is. linked_family: what the links of the index say."""

    model_id: str
    revision: str | None
    variant: str
    stated_family: str | None
    row_sha256: str
    rows: Rows = field(repr=False)
    number: int = 0
    linked_family: str | None = None

    @property
    def row(self) -> Row:
        """Its small columns."""
        return self.rows.row(self.number)

    @property
    def vector(self) -> F32:
        """Its retrieval vector."""
        return np.asarray(self.rows.vectors[self.number])

    def load(self) -> Fingerprint:
        """The whole fingerprint; IndexFormatError if it does not match its own hash."""
        fp = self.rows.load(self.number)
        return fp if self.linked_family is None or fp.family else replace(fp, family=self.linked_family)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two rows the same row: id, revision, variant and content."""
        return (self.model_id, self.revision or "", self.variant, self.row_sha256)

    @property
    def family(self) -> str:
        """Root of the weight lineage: as stated, else as the catalogue says, else as the index's own links say; else a
        model is its own.
        """
        return family_of(self.model_id, self.stated_family) or self.linked_family or self.model_id

    @property
    def label(self) -> str:
        """The id, with the variant in brackets."""
        return f"{self.model_id} [{self.variant}]" if self.variant else self.model_id


@dataclass(frozen=True, eq=False)
class Held:
    """A fingerprint in memory, as the only row."""

    fingerprint: Fingerprint
    small: Row
    vectors: F32

    def row(self, number: int) -> Row:
        return self.small

    def load(self, number: int) -> Fingerprint:
        return self.fingerprint

    def sketches(self, number: int) -> Sketches:
        return self.fingerprint.sketches, self.fingerprint.sketches_by_id

    def texts(self, name: str) -> Sequence[str]:
        return [str(self.small[name] or "")]

    def numbers(self, name: str) -> Sequence[int]:
        return [int(self.small[name])]

    @property
    def made(self) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Unread:
    """The vectors of a shard, read again at each look-up: while a large index is verified, or rows are replaced."""

    folder: Path
    shard: dataset.Shard

    def __getitem__(self, rows: int | Sequence[int]) -> F32:
        return np.asarray(all_vectors(self.folder, self.shard)[rows])


Vectors = F32 | segments.Mapped | Unread


@dataclass(frozen=True, eq=False)
class Stored:
    """The rows of a shard. segment: of a large index, the one that has them, from its row `first` on."""

    folder: Path
    shard: dataset.Shard
    vectors: Vectors
    segment: codes.Segment | None = None
    first: int = 0

    def texts(self, name: str) -> Sequence[str]:
        return dataset.read_texts(self.folder, self.shard, name)

    def numbers(self, name: str) -> Sequence[int]:
        return dataset.read_numbers(self.folder, self.shard, name)

    @property
    def made(self) -> str | None:
        return dataset.month_of(self.shard)

    def row(self, number: int) -> Row:
        return dataset.read_model(self.folder, self.shard, number)

    def load(self, number: int) -> Fingerprint:
        row, panels = self.row(number), dataset.read_panels(self.folder, self.shard, number)
        if panels["row_sha256"] != row["row_sha256"]:
            raise IndexFormatError(
                f"The panels of {row['model_id']} belong to another row.",
                parquet.AGAIN,
            )
        return replace(parquet.checked({**panels, **row}), indexed=True)

    def sketches(self, number: int) -> Sketches:
        read = dataset.read_columns(self.folder, self.shard, number, SKETCHES)
        by_string, by_id = (_nameless(read[name], f"row {number} of {self.shard.panels}") for name in SKETCHES)
        return by_string, by_id


def _nameless(values: NDArray[np.float16], where: str) -> BranchSketches | None:
    """Layer sketches whose layers need no names, because all that is asked is which are alike."""
    if values.size % LAYER:
        raise IndexFormatError(
            f"The sketches of {where} are damaged.", "Check the index with `provindex index verify`."
        )
    layers = values.reshape(-1, LAYER)
    keys = tuple(("", number) for number in range(len(layers)))
    return BranchSketches(keys, layers, np.zeros(0, np.float16)) if keys else None


@dataclass(frozen=True)
class IndexInfo:
    """What an answer says about the index it came from. parts: of several that answer as one, each of them."""

    id: str
    revision: str
    built: str
    models: int
    fingerprint_version: int = FINGERPRINT_VERSION
    parts: tuple[IndexInfo, ...] = ()

    @property
    def label(self) -> str:
        """As people write it: commits are cut to 12 digits."""
        return f"{self.id}@{'+'.join(revision[:12] for revision in self.revision.split('+'))}"


@cache
def center() -> F32:
    """What codes are centered on: by the seed index, so that it is the same for all indexes of a release."""
    shards = dataset.read_manifest(SEED).shards
    return codes.center_of(np.concatenate([v for shard in shards for v in dataset.read_vectors(SEED, shard)]))


def open_folder(folder: Path, problems: list[Problem] | None = None) -> tuple[IndexInfo, list[Entry]]:
    """An index folder's rows; with a list of problems, a shard that cannot be read goes there and is passed over."""
    manifest = dataset.read_manifest(folder)
    large = manifest.models >= codes.FLAT
    how = all_vectors if not large else _none if problems is None else _unread
    read: list[tuple[dataset.Shard, Names, F32 | Unread | None]] = []
    with ThreadPoolExecutor(threads()) as pool:
        reading = [pool.submit(_read, folder, shard, how) for shard in manifest.shards]
        for shard, result in zip(manifest.shards, reading, strict=True):
            try:
                read.append((shard, *result.result()))
            except IndexFormatError as error:
                if problems is None:
                    pool.shutdown(cancel_futures=True)
                    raise
                problems.append(Problem(shard.models, error.message))
    shards = [shard for shard, _, _ in read]
    mapped = _mapped(folder, shards) if how is _none else None
    stored = mapped or [Stored(folder, s, all_vectors(folder, s) if v is None else v) for s, _, v in read]
    roots = families.read(folder).roots
    found = (entry for (_, names, _), rows in zip(read, stored, strict=True) for entry in _entries(names, rows))
    entries = [replace(e, linked_family=roots[e.row_sha256]) if e.row_sha256 in roots else e for e in found]
    return _info(manifest), entries


def info_of(folder: Path) -> IndexInfo:
    """What an answer says about the index in a folder."""
    return _info(dataset.read_manifest(folder))


def _info(manifest: dataset.Manifest) -> IndexInfo:
    return IndexInfo(manifest.id, manifest.commit or manifest.revision, manifest.built, manifest.models)


def rows_of(folder: Path, shard: dataset.Shard) -> list[Entry]:
    """The rows of a shard for whoever searches nothing: their vectors are read when they are asked for."""
    return _entries(dataset.read_names(folder, shard), Stored(folder, shard, Unread(folder, shard)))


def _read(
    folder: Path, shard: dataset.Shard, how: Callable[[Path, dataset.Shard], F32 | Unread | None]
) -> tuple[Names, F32 | Unread | None]:
    """Who a shard's rows are, and their vectors."""
    return dataset.read_names(folder, shard), how(folder, shard)


def _none(folder: Path, shard: dataset.Shard) -> None:
    """Read nothing: a large index maps its vectors later."""


def _unread(folder: Path, shard: dataset.Shard) -> Unread:
    """Check that the vectors of a large index can be read, without keeping them."""
    for _ in dataset.read_vectors(folder, shard):
        pass
    return Unread(folder, shard)


def all_vectors(folder: Path, shard: dataset.Shard) -> F32:
    return np.concatenate([np.empty((0, DIMENSIONS), np.float32), *dataset.read_vectors(folder, shard)])


def _mapped(folder: Path, shards: Sequence[dataset.Shard]) -> list[Stored] | None:
    """The rows of each shard of a large index, their vectors mapped; None where those files cannot be kept.

    A full or read-only disk costs memory and time, nothing else.
    """
    try:
        found = segments.opened(folder, shards, center())
    except OSError:
        return None
    out = []
    for segment, group in zip(found, segments.groups(shards), strict=True):
        first = 0
        for shard in group:
            mapped = segments.Mapped(segment, first)
            out.append(Stored(folder, shard, mapped, segment, first))
            first += shard.rows
    return out


def _entries(names: Names, rows: Stored) -> list[Entry]:
    columns = zip(*(names[name] for name in dataset.NAMED), strict=True)
    return [
        Entry(str(model_id), revision, str(variant), family, str(digest), rows, number)
        for number, (digest, model_id, revision, variant, family) in enumerate(columns)
    ]


def threads() -> int:
    """How many threads read and compare: pages and hashes are unpacked without the interpreter's lock."""
    return min(THREADS, os.cpu_count() or 1)


def merged(infos: Sequence[IndexInfo]) -> IndexInfo:
    return IndexInfo(
        "+".join(i.id for i in infos),
        "+".join(i.revision for i in infos),
        max(i.built for i in infos),
        sum(i.models for i in infos),
        parts=tuple(part for i in infos for part in i.parts or (i,)),
    )


@dataclass(frozen=True)
class Problem:
    """Something that `verify` found wrong: where, and what."""

    where: str
    what: str
