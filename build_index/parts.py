"""An index that many machines build: each makes a part, the models that fall to its rank; `merge` joins the parts.

A part is a folder, PARTS/RANK-of-WORLD_SIZE: an index of its own in `index`, and `part.json`, which says what the part
should have and what it lacks. It is written when a run begins and again when it ends, so that the part of a run that
was killed says that it is not finished. Ranks write nothing in common.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from build_index import fill
from build_index.budget import MBIT
from build_index.fill import Facts, Filled, Say, Share
from provindex.common.errors import IndexFormatError, UsageError
from provindex.common.files import locked, replacing
from provindex.index import dataset
from provindex.index.entries import Entry, rows_of
from provindex.index.fill import CLASH
from provindex.index.replace import TAKEN, Choice, Said, Standing, name_of, replace_rows
from provindex.index.verify import verify_file

RECORD, INDEX = "part.json", "index"
SCHEMA = 1
MAX_RECORD = 1 << 28  # bytes
MANY = 5  # names in a sentence
_FOLDER = re.compile(r"\d{5,}-of-\d{5,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Record:
    """What a part says of itself.

    listed: a digest of the mode and the names of all models of the list (see `fill.Plan`). models: how many fall to
    the rank. missing: sources that it has not made yet. failed: the reason by source of what could not be made.
    """

    rank: int
    world_size: int
    listed: str
    models: int
    missing: tuple[str, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is there: its folder, and what it says of itself."""

    folder: Path
    record: Record

    @property
    def index(self) -> Path:
        return self.folder / INDEX

    @property
    def has_index(self) -> bool:
        return (self.index / dataset.MANIFEST).exists()


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: labels of the rows added, how many rows were there before, and reason by source or label of
    models that failed, in their part or because other weights have their name.
    """

    added: tuple[str, ...]
    present: int
    failed: Mapping[str, str]


def folder_of(parts: Path, share: Share) -> Path:
    """The folder of a part."""
    return parts / f"{share.rank:05d}-of-{share.world_size:05d}"


def index_of(parts: Path, share: Share | None) -> Path:
    """The index that a build writes to: that of a part, or the folder itself."""
    return parts if share is None else folder_of(parts, share) / INDEX


# --- making a part ---


def build(
    parts: Path,
    sources: Sequence[str],
    share: Share,
    *,
    facts: Mapping[str, Facts] | None = None,
    processes: int | None = None,
    mode: str | None = None,
    offline: bool = False,
    limit: int | None = None,
    max_mb: float | None = None,
    mbit: float = MBIT,
    report: Say = lambda _: None,
) -> Filled:
    """Make the part of a rank, as far as it is missing; options are those of `fill.fill`.

    A model that fails is listed, and the rest goes on. Raises UsageError for options that make no sense, BusyError if
    another process makes the same part, CatalogError and OSError as `fill.fill` does.
    """
    folder = folder_of(parts, share)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        planned = fill.plan(folder / INDEX, sources, mode=mode, offline=offline, limit=limit, share=share)
        unmade = [job.source for job in (*planned.kept, *planned.missing, *planned.later)]
        models = len(unmade) + len(planned.present) + len(planned.failed)
        begun = Record(share.rank, share.world_size, planned.listed, models, tuple(sorted(unmade)), planned.failed)
        _write(folder, begun)
        done = fill.carry_out(
            planned, folder / INDEX, facts=facts, processes=processes, max_mb=max_mb, mbit=mbit, report=report
        )
        _write(folder, replace(begun, missing=tuple(sorted(done.missing)), failed=done.failed))
    return done


def _write(folder: Path, record: Record) -> None:
    document = {"schema": SCHEMA, **asdict(record)}
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# --- reading parts ---


def read(folder: Path) -> Part:
    """The part in a folder; IndexFormatError if it is none, or another version made it."""
    path = folder / RECORD
    try:
        if path.stat().st_size > MAX_RECORD:
            raise ValueError(f"it is larger than {MAX_RECORD >> 20} MB")
        return Part(folder, _record(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise IndexFormatError(
            f"{folder} is no part of an index: it has no {RECORD}.", "Run its rank again, or leave the folder out."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IndexFormatError(
            f"The {RECORD} of {folder} cannot be read: {str(error)[:200]}.", "Run the rank of this part again."
        ) from error


def _record(said: Mapping[str, Any]) -> Record:
    if said["schema"] != SCHEMA:
        raise ValueError(f"it has schema {str(said['schema'])[:20]}, this provindex reads {SCHEMA}")
    rank, world_size, models = (_count(said[name]) for name in ("rank", "world_size", "models"))
    if rank >= world_size:
        raise ValueError(f"it has rank {rank} of {world_size}")
    missing, failed = said["missing"], said["failed"]
    if not isinstance(missing, list) or not isinstance(failed, dict):
        raise ValueError("its lists of models are none")
    texts = {str(source): str(reason) for source, reason in failed.items()}
    return Record(rank, world_size, str(said["listed"]), models, tuple(map(str, missing)), texts)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{str(value)[:20]} is no count")
    return value


def found(named: Iterable[Path]) -> list[Part]:
    """The parts that folders are or hold, in the order of their ranks. UsageError if there are none."""
    folders = {folder.resolve(): folder for path in named for folder in _folders(path)}
    return sorted(map(read, folders.values()), key=lambda part: (part.record.rank, str(part.folder)))


def _folders(path: Path) -> list[Path]:
    """The part that a folder is, or those in it. One that was killed before it wrote its record counts as absent."""
    if (path / RECORD).exists():
        return [path]
    if not path.is_dir():
        raise UsageError(f"There is no folder {path}.", "Name parts, or the folder that `build --rank` wrote them to.")
    inside = [p for p in sorted(path.iterdir()) if _FOLDER.fullmatch(p.name) and (p / RECORD).exists()]
    if not inside:
        raise UsageError(
            f"{path} holds no parts of an index.",
            "Make them with `python -m build_index build LIST -o PARTS --rank R --world-size W`.",
        )
    return inside


def gaps(parts: Sequence[Part]) -> list[str]:
    """What keeps parts from being the whole index, one sentence each; empty if nothing does."""
    builds = {(part.record.world_size, part.record.listed) for part in parts}
    if len(builds) > 1:
        return [f"The parts are of {len(builds)} different builds: their lists, modes or world sizes differ."]
    ((world_size, _),) = builds
    ranks = {part.record.rank for part in parts}
    told = []
    if len(ranks) < world_size:
        shown = ", ".join(islice((str(rank) for rank in range(world_size) if rank not in ranks), MANY))
        more = world_size - len(ranks) - MANY
        beside = f" and {more:,} more" if more > 0 else ""
        told.append(f"Of {world_size:,} ranks these made no part: {shown}{beside}.")
    for part in parts:
        if part.record.missing:
            told.append(f"Rank {part.record.rank} is not finished: it lacks {len(part.record.missing):,} models.")
        elif part.record.models > len(part.record.failed) and not part.has_index:
            told.append(f"Rank {part.record.rank} has lost its index.")
    return told


# --- joining them ---


def merge(named: Iterable[Path], folder: Path, *, partial: bool = False, report: Say = lambda _: None) -> Merged:
    """Join parts into the index in a folder, which is made if there is none.

    The index does not depend on the number of parts: its rows are sorted, then cut into shards. Its manifest is
    written once, at the end, so a merge that was killed leaves the index as it was. Of rows of one name the one that
    reads more is taken, as everywhere.

    partial: merge what is there, and report what is not. Raises UsageError if parts are absent or not finished and
    `partial` does not allow it, IndexFormatError if a part is damaged.
    """
    parts = found(named)
    lacking = gaps(parts)
    if lacking and not partial:
        more = f" {len(lacking) - MANY:,} more ranks are not finished." if len(lacking) > MANY else ""
        raise UsageError(
            " ".join(lacking[:MANY]) + more, "Run these ranks again, or merge what is there with --partial."
        )
    for sentence in lacking:
        report(f"partial: {sentence}")
    rows = sorted((row for part in parts if part.has_index for row in _rows(part)), key=lambda row: row.key)
    choice = Choice.of(_there(folder))
    standings = [(row, choice.take(name_of(row), Said.by(row))) for row in rows]
    taken = [row for row, what in standings if what in TAKEN]
    report(f"merging {len(taken):,} of {len(rows):,} rows of {len(parts):,} parts")
    added = replace_rows(folder, taken, name=folder.resolve().name, who=fill.WHO) if taken else ()
    failed = {source: reason for part in parts for source, reason in part.record.failed.items()}
    clashes = {row.label: CLASH.format(name=row.label) for row, what in standings if what is Standing.CLASH}
    return Merged(added, sum(what is Standing.PRESENT for _, what in standings), failed | clashes)


def _there(folder: Path) -> Iterator[Entry]:
    """The rows of the index that parts are merged into."""
    if (folder / dataset.MANIFEST).exists():
        for shard in dataset.read_manifest(folder).shards:
            yield from rows_of(folder, shard)


def _rows(part: Part) -> list[Entry]:
    """The rows of a part; IndexFormatError, which names the part, if its files are not those that were written."""
    try:
        return [row for shard in dataset.read_manifest(part.index).shards for row in _rows_of(part.index, shard)]
    except IndexFormatError as error:
        raise IndexFormatError(
            f"The part {part.folder} cannot be merged: {error.message}",
            "Run its rank again; if that does not help, remove its folder first.",
        ) from error


def _rows_of(index: Path, shard: dataset.Shard) -> list[Entry]:
    problems = (verify_file(index, name, shard) for name in (shard.models, shard.panels))
    for problem in filter(None, problems):
        raise IndexFormatError(f"{problem.where}: {problem.what}.")
    return rows_of(index, shard)
