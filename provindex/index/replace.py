"""Put rows into an index folder in place of rows that say less, and keep a folder that grows quick to open.

A model is read in steps, norms first and every byte last. The row of a later step takes the place of the earlier one;
the reverse changes nothing. Shards that lose no row stay as they are. Another process may have opened the index
before, so files that the manifest no longer names stay for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from provindex.common.files import locked, now
from provindex.fingerprint.record import IMPORTED, NORMS, Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.index import dataset
from provindex.index.collection import ROWS_PER_SHARD, check_version
from provindex.index.entries import Entry, Key, rows_of

READS = {IMPORTED: 0, NORMS: 1, "sampled": 2, "exact": 3}  # modes by how much of the weights they read
MOST_SMALL = 16  # shards with fewer than ROWS_PER_SHARD rows, beyond which they are put together
STAYS = 3600  # seconds that a file stays after the manifest stopped naming it
Name = tuple[str, str, str]  # id, revision, variant


class Standing(StrEnum):
    """What becomes of a row in an index.

    NEW: no row has its name (id, revision, variant). MORE: it takes the place of those that have it. PRESENT: it is
    there, or one that says more. CLASH: other weights have its name, and both were read whole.
    """

    NEW = "new"
    MORE = "more"
    PRESENT = "present"
    CLASH = "clash"


TAKEN = (Standing.NEW, Standing.MORE)


@dataclass(frozen=True, slots=True)
class Said:
    """What decides between two rows of one name: how much was read, a digest of the weights, the row's hash."""

    mode: str
    content: str | None
    digest: str

    @property
    def reads(self) -> int:
        """How much was read, as a number; a mode that nobody knows read nothing."""
        return READS.get(self.mode, 0)

    @classmethod
    def of(cls, fp: Fingerprint) -> Said:
        return cls(fp.mode, fp.content_sha256, to_row(fp)["row_sha256"])

    @classmethod
    def by(cls, entry: Entry) -> Said:
        return cls(entry.row["mode"], entry.row["content_sha256"], entry.row_sha256)


def standing(one: Said, there: Iterable[Said]) -> Standing:
    """What becomes of a row where an index has others of its name.

    Rows of equal mode that did not read every byte have no digest of the weights: the later one is taken.
    """
    others = list(there)
    if not others:
        return Standing.NEW
    if one.reads < max(other.reads for other in others) or any(other.digest == one.digest for other in others):
        return Standing.PRESENT
    whole = {other.content for other in others if other.reads == one.reads} - {None}
    return Standing.CLASH if one.content is not None and whole - {one.content} else Standing.MORE


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows an index takes of those that a run makes. there: what rows say, by name; ours: names of this run's."""

    there: dict[Name, list[Said]]
    ours: set[Name]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Choice:
        there: dict[Name, list[Said]] = {}
        for entry in entries:
            there.setdefault(name_of(entry), []).append(Said.by(entry))
        return cls(there, set())

    def take(self, name: Name, one: Said) -> Standing:
        """What becomes of the next row. Of two sources of a run that have one name and read as much, the second is a
        CLASH: it takes the place of the first without a word otherwise."""
        others = self.there.setdefault(name, [])
        what = standing(one, others)
        if what is Standing.MORE and name in self.ours and any(other.reads == one.reads for other in others):
            return Standing.CLASH
        if what in TAKEN:
            others[:] = [one]
            self.ours.add(name)
        return what


def replace_rows(
    folder: Path,
    new: Sequence[Fingerprint | Entry],
    *,
    name: str = "private",
    who: str = "local",
    older: bool = False,
    compact: bool = True,
) -> tuple[str, ...]:
    """Add rows to the index in a folder, each in place of rows of its name that say no more; labels of those added.

    The folder is made if there is none; `name` is then the index's. A row that is there, or that says less than one
    that is there, is left out; so are other weights under a name whose weights were read whole (see `standing`). The
    manifest changes in one step, at the end. Writers of one folder wait for each other.

    new: fingerprints, or rows of other folders, which are read as they are written, ROWS_PER_SHARD at a time. who: the
    origin in the names of shards. older: rows of an older fingerprint version, which nothing reads, make place
    for the new ones; IndexFormatError without it. compact: put small shards together where there are many.
    """
    for one in new:
        if isinstance(one, Fingerprint):
            check_version(one)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        outdated = dataset.older_manifest(folder) if older else None
        exists = (folder / dataset.MANIFEST).exists() and outdated is None
        old = dataset.read_manifest(folder) if exists else None
        parts = [_Part.of(folder, shard) for shard in old.shards] if old else []
        said = [Said.of(one) if isinstance(one, Fingerprint) else Said.by(one) for one in new]
        fresh, lost = _chosen(parts, new, said)
        if not fresh:
            return ()
        _rewrite(folder, old, outdated, parts, fresh, lost, name=name, who=who, compact=compact)
    taken = {row.key for row in fresh}
    labels = {(*name_of(row), one.digest): row.label for row, one in zip(new, said, strict=True)}
    return tuple(label for key, label in labels.items() if key in taken)


def change_rows(
    folder: Path,
    new: Sequence[Fingerprint] = (),
    gone: Collection[Key] = (),
    *,
    name: str = "private",
    who: str = "local",
    noted: Callable[[], None] = lambda: None,
) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Put rows into the index in a folder in place of all others of their name, and take rows out of it, in one step.

    Whoever calls this knows what the folder shall hold: other weights take the place of rows of their name. What
    another process has done meanwhile is left as it is. noted: is called while nobody else writes here.

    Returns the keys of the rows that were put in, and of those that were taken out and have no successor.
    """
    for one in new:
        check_version(one)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        old = dataset.read_manifest(folder) if (folder / dataset.MANIFEST).exists() else None
        parts = [_Part.of(folder, shard) for shard in old.shards] if old else []
        there = {row.key for part in parts for row in part.rows}
        rows = {(*name_of(fp), to_row(fp)["row_sha256"]): fp for fp in new}
        fresh = sorted((_Row(key, partial(_itself, fp)) for key, fp in rows.items() if key not in there), key=_key)
        names = {key[:3] for key in rows}
        followed = {key for key in there if key[:3] in names and key not in rows}
        lost = followed | {key for key in there & set(gone) if key not in rows}
        if fresh or lost or old is None:
            _rewrite(folder, old, None, parts, fresh, lost, name=name, who=who, compact=True)
        noted()
    return tuple(row.key for row in fresh), tuple(sorted(lost - followed))


def _rewrite(
    folder: Path,
    old: dataset.Manifest | None,
    outdated: dataset.Manifest | None,
    parts: Sequence[_Part],
    fresh: Sequence[_Row],
    lost: Collection[Key],
    *,
    name: str,
    who: str,
    compact: bool,
) -> None:
    """Write the shards that change and the manifest, while nobody else writes here."""
    kept = [part.without(lost) for part in parts]
    kept += [_Part(None, None, tuple(fresh[i : i + ROWS_PER_SHARD])) for i in range(0, len(fresh), ROWS_PER_SHARD)]
    kept = [part for part in kept if part.rows]
    shards = tuple(_written(folder, _together(kept, who) if compact else kept, who))
    named = (old or outdated or dataset.Manifest(name, "", ())).id
    calibration = old.calibration if old else None
    manifest = dataset.Manifest(named, f"{now():%Y-%m-%dT%H:%M:%SZ}", shards, calibration=calibration)
    _note_replaced(folder, _paths((old or outdated or manifest).shards), _paths(shards))
    dataset.write_manifest(folder, manifest)
    _sweep(folder)


def _key(row: _Row) -> Key:
    return row.key


def name_of(of: Fingerprint | Entry) -> Name:
    """What a row is found by; rows of one name describe the same weights."""
    return of.model_id, of.revision or "", of.variant


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that a shard has, or will have. load: its fingerprint."""

    key: Key
    load: Callable[[], Fingerprint]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that become one shard. shard: where they are now, if they have it for themselves; origin: month and origin
    in its name, None for rows of now."""

    shard: dataset.Shard | None
    origin: tuple[str, str] | None
    rows: tuple[_Row, ...]
    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, folder: Path, shard: dataset.Shard) -> _Part:
        entries = tuple(rows_of(folder, shard))
        return cls(shard, dataset.origin_of(shard.models), tuple(_Row(e.key, e.load) for e in entries), entries)

    def without(self, lost: Collection[Key]) -> _Part:
        if not any(row.key in lost for row in self.rows):
            return self
        return _Part(None, self.origin, tuple(row for row in self.rows if row.key not in lost))


def _chosen(
    parts: Sequence[_Part], new: Sequence[Fingerprint | Entry], said: Sequence[Said]
) -> tuple[list[_Row], set[Key]]:
    """The new rows that an index takes, in order, and the keys of rows that make place for them."""
    wanted = {name_of(row) for row in new}
    there: dict[Name, dict[Key, Said]] = {}
    for entry in (entry for part in parts for entry in part.entries if name_of(entry) in wanted):
        there.setdefault(name_of(entry), {})[entry.key] = Said.by(entry)
    fresh: dict[Key, _Row] = {}
    lost: set[Key] = set()
    for source, one in zip(new, said, strict=True):
        others = there.setdefault(name_of(source), {})
        if standing(one, others.values()) not in TAKEN:
            continue
        for key in others:
            if fresh.pop(key, None) is None:
                lost.add(key)
        load = partial(_itself, source) if isinstance(source, Fingerprint) else source.load
        row = _Row((*name_of(source), one.digest), load)
        there[name_of(source)] = {row.key: one}
        fresh[row.key] = row
    return sorted(fresh.values(), key=lambda row: row.key), lost


def _itself(fp: Fingerprint) -> Fingerprint:
    return fp


def _together(parts: Sequence[_Part], who: str) -> list[_Part]:
    """The parts, small ones of one month and origin put together if there are many."""
    small = [part for part in parts if len(part.rows) < ROWS_PER_SHARD]
    if len(small) <= MOST_SMALL:
        return list(parts)
    today = f"{now():%Y-%m}", who
    groups: dict[tuple[str, str], list[_Part]] = {}
    for part in small:
        if part.shard is None or part.origin is not None:  # names that others gave stay
            groups.setdefault(part.origin or today, []).append(part)
    moving = {id(part) for group in groups.values() for part in group}
    out = [part for part in parts if id(part) not in moving]
    for origin, group in groups.items():
        rows = sorted((row for part in group for row in part.rows), key=lambda row: row.key)
        cut = [tuple(rows[i : i + ROWS_PER_SHARD]) for i in range(0, len(rows), ROWS_PER_SHARD)]
        out += group if len(group) == 1 else [_Part(None, origin, part) for part in cut]
    return out


def _written(folder: Path, parts: Iterable[_Part], who: str) -> Iterator[dataset.Shard]:
    """The shards of parts, those that have none written."""
    for part in parts:
        month, origin = part.origin or (None, who)
        yield part.shard or dataset.write_shard(folder, (row.load() for row in part.rows), origin, month)


def _paths(shards: Iterable[dataset.Shard]) -> set[str]:
    return {path for shard in shards for path in (shard.models, shard.panels)}


def _note_replaced(folder: Path, before: set[str], after: set[str]) -> None:
    """Note since when files of shards are in no manifest any more. before, after: what it names now, and will name.

    Files that it never named stay: a clone of a dataset may hold contributions that its manifest does not name yet.
    """
    lying = {f"{kind}/{p.name}" for kind in (dataset.MODELS, dataset.PANELS) for p in (folder / kind).glob("*.parquet")}
    known, present = dataset.replaced(folder), time.time()
    gone = [path for path in lying - after if path in before or path in known]
    times = {path: present if path in before else known[path] for path in gone}
    dataset.write_replaced(folder, times)


def _sweep(folder: Path) -> None:
    """Remove files that have been in no manifest for an hour, and unfinished ones: whoever wrote them held the lock."""
    times = dataset.replaced(folder)
    old = [path for path, since in times.items() if since + STAYS < time.time()]
    for path in old:
        with suppress(PermissionError):  # open elsewhere, where the system forbids it: the next replacement tries again
            (folder / path).unlink(missing_ok=True)
    if old:
        dataset.write_replaced(folder, {path: since for path, since in times.items() if (folder / path).exists()})
    for kind in (dataset.MODELS, dataset.PANELS):
        for unfinished in (folder / kind).glob(".*.parquet.*.tmp"):
            unfinished.unlink(missing_ok=True)
