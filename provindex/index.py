"""An index of fingerprints: load, build, add, query, save, verify. Several indexes act as one.

Retrieval brings candidates (FAISS searches over every vector, exact or, of many, by codes, see `nearest`; nothing is
filtered; the first few hundred are ranked again by their layers); each is then compared in full, from its stored
fingerprint alone. A candidate is not a claim. An open index holds who its rows are, and their vectors; all
else stays on disk until a row is a candidate.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from provindex import dataset, nearest, segments, store
from provindex.calibration import Calibration
from provindex.calibration import load as load_calibration
from provindex.descent import TRAINED_ON, Sampled, parents_of, sampled
from provindex.errors import IndexFormatError, ModelNotFoundError, UsageError
from provindex.evidence.merge import MAX_CANDIDATES
from provindex.evidence.sketch import LAYER, BranchSketches
from provindex.fingerprint import FINGERPRINT_VERSION, NEEDS_STAGE_2, Fingerprint
from provindex.quantized import source_among
from provindex.retrieval import DIMENSIONS, RERANKED, Sketches, in_turn, rerank, searches, vector
from provindex.rows import Row, context, row_hash, to_row
from provindex.signals import mfi, tfv
from provindex.verdict import Pair, compare
from provindex.weights import one_blas_thread

SEED = Path(__file__).parent / "seed"
EMBEDDED = "embedded"  # what --index calls it
THREADS = 4  # that read and compare candidates: more would wait for the interpreter
SKETCHES = ("sketch_layers", "sketch_id_layers")  # at anchor strings, at fixed token ids
ROWS_PER_SHARD = 256  # so that copying a large index holds about 1 GB of fingerprints at a time
Progress = Callable[[int, int], None]
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

    def files(self) -> Sequence[str]:
        """Of each row, the files that it was made from: JSON."""


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One model of an index: who it is, and where the rest is."""

    model_id: str
    revision: str | None
    variant: str
    stated_family: str | None
    row_sha256: str
    rows: Rows = field(repr=False)
    number: int = 0

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
        return self.rows.load(self.number)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two rows the same row: id, revision, variant and content."""
        return (self.model_id, self.revision or "", self.variant, self.row_sha256)

    @property
    def family(self) -> str:
        """Root of the weight lineage; a model whose family nobody stated is its own."""
        return self.stated_family or self.model_id

    @property
    def label(self) -> str:
        """The id, with the variant in brackets."""
        return f"{self.model_id} [{self.variant}]" if self.variant else self.model_id


@dataclass(frozen=True, eq=False)
class _Held:
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

    def files(self) -> Sequence[str]:
        return [self.small["files"]]


@dataclass(frozen=True, eq=False)
class _Unread:
    """The vectors of a shard, which are read whenever some are looked up: of a large index that is checked."""

    folder: Path
    shard: dataset.Shard

    def __getitem__(self, rows: int | Sequence[int]) -> F32:
        return np.asarray(_all_vectors(self.folder, self.shard)[rows])


Vectors = F32 | segments.Mapped | _Unread


@dataclass(frozen=True, eq=False)
class _Stored:
    """The rows of a shard. segment: of a large index, the one that has them, from its row `first` on."""

    folder: Path
    shard: dataset.Shard
    vectors: Vectors
    segment: nearest.Segment | None = None
    first: int = 0

    def files(self) -> Sequence[str]:
        return dataset.read_files(self.folder, self.shard)

    def row(self, number: int) -> Row:
        return dataset.read_model(self.folder, self.shard, number)

    def load(self, number: int) -> Fingerprint:
        row, panels = self.row(number), dataset.read_panels(self.folder, self.shard, number)
        if panels["row_sha256"] != row["row_sha256"]:
            raise IndexFormatError(
                f"The panels of {row['model_id']} belong to another row.",
                dataset.AGAIN,
            )
        return replace(dataset.checked({**panels, **row}), indexed=True)

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
class Match:
    """A candidate after re-verification. pair: A is the query, B the candidate; direction is the candidate's role."""

    entry: Entry
    pair: Pair
    rank: int
    score: float

    @property
    def direction(self) -> str | None:
        """The candidate's role: "ancestor" means that the query descends from it.

        A variant (the same id in another dress) is never called an ancestor of its source.
        """
        flipped = {"ancestor": "descendant", "descendant": "ancestor"}
        return flipped.get(self.pair.direction or "", self.pair.direction)


@dataclass(frozen=True)
class Family:
    """Matches of one weight lineage: the closest of them, how many matched, how many the index has of it."""

    family: str
    best_model_id: str
    matches: int
    models: int
    log10_p: float


@dataclass(frozen=True)
class IndexInfo:
    """What an answer says about the index it came from."""

    id: str
    revision: str
    built: str
    models: int
    fingerprint_version: int = FINGERPRINT_VERSION

    @property
    def label(self) -> str:
        """As people write it: commits are cut to 12 digits."""
        return f"{self.id}@{'+'.join(revision[:12] for revision in self.revision.split('+'))}"


@dataclass(frozen=True)
class QueryResult:
    """The answer to a query.

    linked: every linked candidate, closest first. matches: the first `top` of them. candidates: the others that were
    compared, in order of retrieval. status: "decided" if something is linked, "none" if nothing is and at least one
    candidate could be tested, else "inconclusive".
    """

    query: Fingerprint
    index: IndexInfo
    linked: tuple[Match, ...]
    candidates: tuple[Match, ...]
    families: tuple[Family, ...]
    status: str
    top: int
    own: Entry | None
    settings: Mapping[str, object]
    warnings: tuple[str, ...] = ()

    @property
    def matches(self) -> tuple[Match, ...]:
        return self.linked[: self.top]

    def to_json(self) -> str:
        """The document of the JSON contract (provindex.query/1), as text."""
        from provindex.report import document

        return document.dumps(document.query_document(self))


@dataclass(frozen=True)
class Problem:
    """Something that `verify` found wrong: where, and what."""

    where: str
    what: str


class Index:
    """Fingerprints that can be searched.

    `Index.load()` opens the default index; `index[model_id]` is a Fingerprint; `index.query(fingerprint)` finds its
    relatives; `index.add(fingerprint)` and `index.save(folder)` keep a private one in the same format.
    """

    def __init__(self, info: IndexInfo, entries: Iterable[Entry], folders: Sequence[Path] = ()) -> None:
        self.info = info
        self.folders = tuple(folders)
        self._entries = {entry.key: entry for entry in entries}
        self._searched: tuple[list[Entry], list[Entry], Any] | None = None  # made when needed
        self._by_id: dict[str, list[Entry]] = {}
        for entry in self:
            self._by_id.setdefault(entry.model_id, []).append(entry)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The chance levels of the first folder that has some; else those of the embedded index."""
        return calibration_of(self.folders)

    # --- opening and filling ---

    @classmethod
    def load(cls, *references: str | os.PathLike[str]) -> Index:
        """Open indexes: folders, or `org/name[@revision]` of a dataset that was pulled; several act as one.

        Without any, PROVINDEX_INDEX if set, else the index that was pulled last, else the seed index that comes with
        the package. Raises IndexFormatError if one is missing, damaged or of another version.
        """
        return cls._loaded(_folders(references), None)

    @classmethod
    def check(
        cls, *references: str | os.PathLike[str], progress: Progress | None = None
    ) -> tuple[Index, list[Problem]]:
        """Open an index as `load` does and verify it: shards that cannot be read are problems, and are left out.

        Raises IndexFormatError only if there is no manifest that can be read.
        """
        problems: list[Problem] = []
        index = cls._loaded(_folders(references), problems)
        seen = {p.where for p in problems}
        return index, problems + [p for p in index.verify(progress) if p.where not in seen]

    @classmethod
    def _loaded(cls, folders: Sequence[Path], problems: list[Problem] | None) -> Index:
        parts = [_open(folder, problems) for folder in folders]
        infos = [info for info, _ in parts]
        merged = infos[0] if len(infos) == 1 else _merged(infos)
        index = cls(merged, (entry for _, entries in parts for entry in entries), folders)
        index.info = replace(merged, models=len(index))
        return index

    @classmethod
    def build(cls, fingerprints: Iterable[Fingerprint], *, name: str = "private") -> Index:
        """A new index in memory."""
        index = cls(IndexInfo(name, "unsaved", "", 0), ())
        for fp in fingerprints:
            index.add(fp)
        return index

    def add(self, fp: Fingerprint) -> bool:
        """Add a fingerprint; False if the very same row (id, revision, variant, content) is already there."""
        if fp.version != FINGERPRINT_VERSION:
            raise IndexFormatError(
                f"The fingerprint of {fp.model_id} has version {fp.version}, the index has {FINGERPRINT_VERSION}.",
                "Make the fingerprint again with this provindex.",
            )
        row = to_row(fp)
        held = _Held(fp, row, vector(fp)[None])
        entry = Entry(fp.model_id, fp.revision, fp.variant, fp.family, row["row_sha256"], held)
        if entry.key in self._entries:
            return False
        self._entries[entry.key] = entry
        self._by_id.setdefault(entry.model_id, []).append(entry)
        self._searched = None
        self.info = replace(self.info, revision="unsaved", models=len(self))
        return True

    def save(self, folder: str | os.PathLike[str], *, who: str = "local") -> dataset.Manifest:
        """Write what is new as one more shard, then the manifest; shards that are there stay as they are.

        Saving to the folder that an index was loaded from appends; saving elsewhere writes everything. Savers of one
        folder wait for each other, and each adds to what the others left there.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with dataset.locked(target):
            return self._saved(target, who)

    def _saved(self, target: Path, who: str) -> dataset.Manifest:
        """`save`, while nobody else writes the manifest."""
        old = dataset.read_manifest(target) if (target / dataset.MANIFEST).exists() else None
        there = {entry.key for entry in _open(target)[1]} if old else set()
        fresh = sorted((e for e in self if e.key not in there), key=lambda e: e.key)
        shards = list(old.shards) if old else []
        for start in range(0, len(fresh), ROWS_PER_SHARD):
            loaded = (entry.load() for entry in fresh[start : start + ROWS_PER_SHARD])
            shards.append(dataset.write_shard(target, loaded, who))
        built = old.built if old and not fresh else f"{dataset.now():%Y-%m-%dT%H:%M:%SZ}"
        calibration = old.calibration if old else None
        manifest = dataset.Manifest(old.id if old else self.info.id, built, tuple(shards), calibration=calibration)
        dataset.write_manifest(target, manifest)
        return manifest

    # --- looking things up ---

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def find(self, reference: str) -> list[Entry]:
        """Rows of `model_id[@revision][#variant]`, originals before variants; empty if the id is not in the index.

        Rows whose commit is known come before others of their id: those that were imported have none.

        The spelling of reports, `model_id [variant]`, is understood too.
        """
        if reference.endswith("]"):
            reference = reference[:-1].replace(" [", "#", 1)
        name, _, variant = reference.partition("#")
        model_id, _, revision = name.partition("@")
        found = [
            entry
            for entry in self._by_id.get(model_id, ())
            if (not revision or (entry.revision or "").startswith(revision))
            and (not variant or entry.variant == variant)
        ]
        return sorted(found, key=lambda e: (e.variant, e.revision is None, e.key))

    def of_files(self, digests: Sequence[str | None], model_id: str) -> Entry | None:
        """A row that was made, reading every byte, from files with these sha256 digests and no others: that of the id
        that is asked for, if it is among them.

        Which files a row was made from is its contributor's word. Rows that say the same of the same files and hold
        different weights cannot all be right: then there is none.
        """
        if not digests or None in digests:
            return None
        found, wanted = [], sorted(map(str, digests))
        held: dict[int, Sequence[str]] = {}
        for entry in self:
            if id(entry.rows) not in held:
                held[id(entry.rows)] = entry.rows.files()
            files = held[id(entry.rows)][entry.number]
            if wanted[0] in files and _digests(files) == wanted and entry.row["mode"] == "exact":
                found.append(entry)
        agreed = len({entry.row["content_sha256"] for entry in found}) == 1
        return min(found, key=lambda e: (e.model_id != model_id, e.variant, e.key)) if agreed else None

    def named(self, reference: str) -> list[Entry]:
        """Rows of an id, or of a family if no row has that id."""
        return self.find(reference) or [entry for entry in self if entry.family == reference]

    def __contains__(self, reference: str) -> bool:
        return bool(self.find(reference))

    def __getitem__(self, reference: str) -> Fingerprint:
        found = self.find(reference)
        if not found:
            raise ModelNotFoundError(
                f"{reference} is not in the index {self.info.id}@{self.info.revision}.",
                "`provindex index status` lists its ids.",
            )
        return found[0].load()

    # --- asking ---

    def query(
        self,
        fp: Fingerprint | str | os.PathLike[str],
        top: int = 10,
        candidates: int = 50,
        *,
        also: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> QueryResult:
        """The likely relatives of a model, given as a fingerprint or as any model reference.

        top: how many matches to return. candidates: how many rows retrieval hands on to be compared in full. also:
        ids that are compared whatever retrieval says. The query's own row is left out; another id with equal content
        is a match.
        """
        if top < 1 or candidates < 1:
            raise UsageError(f"--top and --candidates must be at least 1, not {top} and {candidates}.")
        if not isinstance(fp, Fingerprint):
            from provindex import api

            fp = api.fingerprint(fp, index=self)
        own = self.own(fp)
        ranked, calibration = self._nearest(fp, own, candidates, also), self.calibration

        weights: dict[Key, Sampled] = {}

        def verified(candidate: tuple[Entry, int, float]) -> Match:
            entry, rank, score = candidate
            other = entry.load()
            pair = compare(fp, other, models=len(self), calibration=calibration)
            if pair.relation in TRAINED_ON or pair.relation == "quantized":
                weights[entry.key] = sampled(other)
            return Match(entry, _variant_rule(fp, entry, pair), rank, score)

        found: list[Match] = []
        with one_blas_thread(), ThreadPoolExecutor(_threads()) as pool:
            for match in pool.map(verified, ranked):  # in the order of `ranked`, whichever is done first
                found.append(match)
                if progress:
                    progress(len(found), len(ranked))
        matches = sorted((m for m in found if m.pair.verdict == "linked"), key=_closeness)
        matches = sorted(_with_source(fp, _with_parents(fp, matches, weights), weights), key=_closeness)
        rest = tuple(m for m in found if m.pair.verdict != "linked")
        return QueryResult(
            query=fp,
            index=self.info,
            linked=tuple(matches),
            candidates=rest,
            families=self._families(matches),
            own=own,
            status=_status(matches, rest),
            top=top,
            settings={"top": top, "candidates": candidates, "mode": fp.mode},
            warnings=_warnings(fp, matches, rest, top, len(self)),
        )

    def nearest(self, fp: Fingerprint, count: int, also: Sequence[str] = ()) -> list[tuple[Entry, int, float]]:
        """(row, rank from 1, score) of the `count` candidates for a fingerprint, then of ids asked for besides.

        score: the inner product of the whole vectors. Rows that have none, or all rows if the query has none (imported
        features without weight signals), come last, with 0.0: the nearest by config and tokenizer first. The query's
        own row is left out.
        """
        return self._nearest(fp, self.own(fp), count, also)

    def _nearest(
        self, fp: Fingerprint, own: Entry | None, count: int, also: Sequence[str]
    ) -> list[tuple[Entry, int, float]]:
        if not len(self) or (own and len(self) == 1):
            return []
        asking = own.vector if own else vector(fp)
        entries, bare, _ = self._searcher()
        wanted = len(entries) if also else min(max(count, RERANKED) + 1, len(entries))  # one may be its own row
        order = self._by_weights(fp, asking, own, wanted) if wanted and asking.any() else []
        order = order if also else order[:count]
        ranked = [(entries[i], float(asking @ entries[i].vector)) for i in order]
        if len(ranked) < count or also:
            left = [e for e in (bare if asking.any() else entries + bare) if e is not own]
            ranked += [(entry, 0.0) for entry in _by_context(fp, left)]
        asked = {entry.key for reference in also for entry in self.named(reference)}
        numbered = [(entry, rank, score) for rank, (entry, score) in enumerate(ranked, 1)]
        return [r for r in numbered if r[1] <= count or r[0].key in asked]

    def _by_weights(self, fp: Fingerprint, asking: F32, own: Entry | None, wanted: int) -> list[int]:
        """The first `wanted` rows of each search, by their number in the searcher, in turn."""
        entries, _, searcher = self._searcher()
        found = []
        asked_with = searches(asking)
        for one, scores, places in zip(asked_with, *searcher.search(asked_with, wanted), strict=True):
            kept = np.array([i >= 0 and entries[i] is not own for i in places])
            found.append((places[kept], scores[kept] / max(float(one @ one), 1e-9)))  # cosines
        again = self._ranked_again(fp, in_turn(found)[:RERANKED], entries)
        return in_turn([*found, again] if again else found)

    def _searcher(self) -> tuple[list[Entry], list[Entry], Any]:
        """Rows with a vector, rows without, and what searches the former, in their order; made when needed.

        Both in the order of their keys, so that ties do not depend on which shard a row is in. A row without any weight
        signal has a vector of zeros.
        """
        if self._searched is None:
            rows = sorted(self, key=lambda entry: entry.key)
            told, searcher = (_flat if len(rows) < nearest.FLAT else _coded)(rows)
            split = [[row for row, has in zip(rows, told, strict=True) if has == wanted] for wanted in (True, False)]
            self._searched = split[0], split[1], searcher
        return self._searched

    def _ranked_again(
        self, fp: Fingerprint, places: Sequence[int], entries: Sequence[Entry]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Some rows in the order of their layers' sketches, with scores; None for a model without sketches."""
        asking = (fp.sketches, fp.sketches_by_id)
        if asking == (None, None):
            return None
        with ThreadPoolExecutor(_threads()) as pool:
            sketched = list(pool.map(lambda i: entries[i].rows.sketches(entries[i].number), places))
        scores = rerank(asking, sketched)
        order = np.argsort(-scores, kind="stable")
        return np.array(places, np.int64)[order], scores[order]

    def own(self, fp: Fingerprint) -> Entry | None:
        """The row of the same id, revision, variant and content, which a query leaves out; None if there is none."""
        alike = [e for e in self._by_id.get(fp.model_id, ()) if e.key[1:3] == (fp.revision or "", fp.variant)]
        digest = to_row(fp)["row_sha256"] if alike else ""  # hashing a large fingerprint takes a while
        return next((entry for entry in alike if entry.row_sha256 == digest), None)

    def _families(self, matches: Sequence[Match]) -> tuple[Family, ...]:
        groups: dict[str, list[Match]] = {}
        for match in matches:
            groups.setdefault(match.entry.family, []).append(match)
        sizes = Counter(entry.family for entry in self)
        return tuple(
            Family(name, group[0].entry.model_id, len(group), sizes[name], min(m.pair.log10_p or 0.0 for m in group))
            for name, group in groups.items()
        )

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """Check every digest, every row's hash and every vector against its row; an empty list if all is well.

        progress: called with (rows done, rows in all) after each shard.
        """
        problems, done = [], 0
        for folder in self.folders:
            for problem, rows in _verify(folder):
                problems += problem
                done += rows
                if progress:
                    progress(done, max(done, len(self)))
        return problems


def _flat(rows: Sequence[Entry]) -> tuple[NDArray[np.bool_], Any]:
    """Which rows have a vector, and a FAISS index of those."""
    vectors = _vectors(rows)
    told = np.any(vectors, axis=1)
    return told, nearest.flat(vectors if told.all() else vectors[told])


def _coded(rows: Sequence[Entry]) -> tuple[NDArray[np.bool_], nearest.Coded]:
    """As `_flat`, by codes: those of rows that are in no segment are made in memory."""
    told, loose = np.zeros(len(rows), np.bool_), []
    held: dict[int, tuple[nearest.Segment, NDArray[np.int64]]] = {}  # segments, and which row each of theirs is
    for together in _by_shard(rows):
        stored, numbers = rows[together[0]].rows, [rows[i].number for i in together]
        if isinstance(stored, _Stored) and stored.segment is not None:
            segment = stored.segment
            inside = np.array(numbers) + stored.first
            held.setdefault(id(segment), (segment, np.full(len(segment), -1)))[1][inside] = together
            told[together] = segment.told[inside]
        else:
            loose += together
    if loose:
        segment = nearest.Segment.of(_vectors([rows[i] for i in loose]), _center())
        held[id(segment)] = segment, np.array(loose)
        told[loose] = segment.told
    numbered = np.where(told, np.cumsum(told) - 1, -1)
    places = [np.where(which >= 0, numbered[which], -1) for _, which in held.values()]
    return told, nearest.Coded([segment for segment, _ in held.values()], _center(), places)


def _vectors(rows: Sequence[Entry]) -> F32:
    vectors = np.empty((len(rows), DIMENSIONS), np.float32)
    for together in _by_shard(rows):
        vectors[together] = rows[together[0]].rows.vectors[[rows[i].number for i in together]]
    return vectors


@cache
def _center() -> F32:
    """What codes are centered on: by the seed index, so that it is the same for all indexes of a release."""
    shards = dataset.read_manifest(SEED).shards
    return nearest.center_of(np.concatenate([v for shard in shards for v in dataset.read_vectors(SEED, shard)]))


def _digests(files: str) -> list[str]:
    """sha256 of each file that a row says it was made from; empty if that is no list of files."""
    try:
        return sorted(str(file["sha256"]) for file in json.loads(files))
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


def _by_shard(rows: Sequence[Entry]) -> list[list[int]]:
    """Places of the rows of each shard."""
    places: dict[int, list[int]] = {}
    for place, entry in enumerate(rows):
        places.setdefault(id(entry.rows), []).append(place)
    return list(places.values())


def calibration_of(folders: Sequence[Path] | None = None) -> Calibration | None:
    """The chance levels of the first folder that has some, else those of the embedded index.

    folders: of an index; None for the default one, which is not opened for it.
    """
    for folder in (*(_folders(()) if folders is None else folders), SEED):
        name = dataset.read_manifest(folder).calibration
        if name is not None:
            return load_calibration(folder, name)
    return None


def _folders(references: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The folders that were named, else those of PROVINDEX_INDEX, else the index that was pulled last, else the seed.

    IndexFormatError if a dataset of the Hub was named that was not pulled: only `index pull` fetches.
    """
    named = references or [p for p in os.environ.get("PROVINDEX_INDEX", "").split(os.pathsep) if p]
    if named:
        return [_folder(os.fspath(reference)) for reference in named]
    return [store.default_folder() or SEED]


def _folder(reference: str) -> Path:
    if reference == EMBEDDED and not Path(reference).exists():
        return SEED
    return store.pulled(reference) if store.is_reference(reference) else Path(reference)


def _open(folder: Path, problems: list[Problem] | None = None) -> tuple[IndexInfo, list[Entry]]:
    """An index folder's rows; with a list of problems, a shard that cannot be read goes there and is passed over."""
    manifest = dataset.read_manifest(folder)
    large = manifest.models >= nearest.FLAT
    how = _all_vectors if not large else _none if problems is None else _unread
    read: list[tuple[dataset.Shard, Names, F32 | _Unread | None]] = []
    with ThreadPoolExecutor(_threads()) as pool:
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
    stored = mapped or [_Stored(folder, s, _all_vectors(folder, s) if v is None else v) for s, _, v in read]
    entries = [entry for (_, names, _), rows in zip(read, stored, strict=True) for entry in _entries(names, rows)]
    return IndexInfo(manifest.id, manifest.commit or manifest.revision, manifest.built, manifest.models), entries


def _read(
    folder: Path, shard: dataset.Shard, how: Callable[[Path, dataset.Shard], F32 | _Unread | None]
) -> tuple[Names, F32 | _Unread | None]:
    """Who a shard's rows are, and their vectors."""
    return dataset.read_names(folder, shard), how(folder, shard)


def _none(folder: Path, shard: dataset.Shard) -> None:
    """Of a large index, whose vectors are mapped."""


def _unread(folder: Path, shard: dataset.Shard) -> _Unread:
    """Of a large index that is checked: they can be read, and are not kept."""
    for _ in dataset.read_vectors(folder, shard):
        pass
    return _Unread(folder, shard)


def _all_vectors(folder: Path, shard: dataset.Shard) -> F32:
    return np.concatenate([np.empty((0, DIMENSIONS), np.float32), *dataset.read_vectors(folder, shard)])


def _mapped(folder: Path, shards: Sequence[dataset.Shard]) -> list[_Stored] | None:
    """The rows of each shard of a large index, their vectors mapped; None where those files cannot be kept.

    A full or read-only disk costs memory and time, nothing else.
    """
    try:
        found = segments.opened(folder, shards, _center())
    except OSError:
        return None
    out = []
    for segment, group in zip(found, segments.groups(shards), strict=True):
        first = 0
        for shard in group:
            mapped = segments.Mapped(segment, first)
            out.append(_Stored(folder, shard, mapped, segment, first))
            first += shard.rows
    return out


def _entries(names: Names, rows: _Stored) -> list[Entry]:
    told = zip(*(names[name] for name in dataset.NAMED), strict=True)
    return [
        Entry(str(model_id), revision, str(variant), family, str(digest), rows, number)
        for number, (digest, model_id, revision, variant, family) in enumerate(told)
    ]


def _threads() -> int:
    """How many threads read and compare: pages and hashes are unpacked without the interpreter's lock."""
    return min(THREADS, os.cpu_count() or 1)


def _merged(infos: Sequence[IndexInfo]) -> IndexInfo:
    return IndexInfo(
        "+".join(i.id for i in infos),
        "+".join(i.revision for i in infos),
        max(i.built for i in infos),
        sum(i.models for i in infos),
    )


def _verify(folder: Path) -> Iterator[tuple[list[Problem], int]]:
    """What is wrong with an index folder, part by part, and how many rows each part has."""
    manifest = dataset.read_manifest(folder)
    complaint = manifest.complaint(dataset.manifest_document(folder))
    problems = [Problem(dataset.MANIFEST, complaint)] if complaint else []
    if manifest.calibration is not None:
        try:
            load_calibration(folder, manifest.calibration)
        except IndexFormatError as error:
            problems.append(Problem(manifest.calibration, error.message))
    yield problems, 0
    for shard in manifest.shards:
        files = [p for name in (shard.models, shard.panels) if (p := _verify_file(folder, name, shard)) is not None]
        yield files or verify_rows(folder, shard), shard.rows
    yield _strays(folder, manifest), 0


def _strays(folder: Path, manifest: dataset.Manifest) -> list[Problem]:
    """Shards that lie in the folder and are in no manifest: nothing reads them."""
    known = {name for shard in manifest.shards for name in (shard.models, shard.panels)}
    lying = {f"{kind}/{p.name}" for kind in (dataset.MODELS, dataset.PANELS) for p in (folder / kind).glob("*.parquet")}
    what = "not in the manifest, so not part of the index: left by a save that was cut off; it can be removed"
    return [Problem(name, what) for name in sorted(lying - known)]


def _verify_file(folder: Path, name: str, shard: dataset.Shard) -> Problem | None:
    try:
        digest = dataset.file_sha256(folder / name)
    except FileNotFoundError:
        return Problem(name, "missing")
    except OSError as error:
        return Problem(name, f"cannot be read: {error.strerror}")
    return None if digest == shard.sha256[name] else Problem(name, "its sha256 is not the manifest's")


def verify_rows(folder: Path, shard: dataset.Shard) -> list[Problem]:
    """Check the hash of every row of a shard, and every vector against its row; an empty list if all is well."""
    problems = []
    try:
        for name in (shard.models, shard.panels):
            dataset.check_footer(folder / name)
        for number, row in enumerate(dataset.read_models(folder, shard)):
            what = _verify_row(row, dataset.read_panels(folder, shard, number))
            if what:
                problems.append(Problem(f"{shard.models}#{number} {row['model_id']}", what))
    except IndexFormatError as error:  # files that are what the manifest says, and yet no shard
        problems.append(Problem(shard.models, error.message))
    return problems


def _verify_row(row: Row, panels: Row) -> str | None:
    whole = {**panels, **row}
    if panels["row_sha256"] != row["row_sha256"]:
        return "its panels belong to another row"
    if row_hash(whole) != row["row_sha256"]:
        return "its content does not match its row hash"
    if not np.allclose(vector(dataset.checked(whole)), row[dataset.VECTOR], atol=1e-5):
        return "its retrieval vector does not follow from its content"
    return None


def _by_context(fp: Fingerprint, entries: Iterable[Entry]) -> list[Entry]:
    """Rows in the order of the mean of MFI and TFV with a fingerprint: where no weights tell which are near."""
    features = [(entry, *context(entry.row)) for entry in entries]
    scored = [
        (((mfi.compare(fp.mfi, m).score.value or 0.0) + (tfv.compare(fp.tfv, t).value or 0.0)) / 2, entry)
        for entry, m, t in features
    ]
    return [entry for _, entry in sorted(scored, key=lambda s: (-s[0], s[1].key))]


def _variant_rule(fp: Fingerprint, entry: Entry, pair: Pair) -> Pair:
    """A variant is the same model in another dress: never an ancestor of its source."""
    same_model = fp.model_id == entry.model_id and fp.variant != entry.variant
    wrong = (pair.direction == "descendant" and not fp.variant) or (pair.direction == "ancestor" and not entry.variant)
    return replace(pair, direction="unknown") if same_model and wrong else pair


def _with_parents(fp: Fingerprint, matches: list[Match], weights: Mapping[Key, Sampled]) -> list[Match]:
    """The same matches; if the query is a merge of some, those are its ancestors, by `merge`, and so is its base.

    weights: samples of those that training may have made of each other.
    """
    kin = [m for m in matches if m.entry.key in weights and m.pair.relation in TRAINED_ON][:MAX_CANDIDATES]
    merged = parents_of(sampled(fp), [weights[m.entry.key] for m in kin])
    if merged is None:
        return matches
    told: dict[Key, Pair] = {}
    for parent in merged.parents:
        why = f"{parent.coefficient:.2f} of it" if merged.base is None else f"{parent.coefficient:.2f} of its changes"
        pair = replace(kin[parent.candidate].pair, relation="merge", direction="descendant")
        told[kin[parent.candidate].entry.key] = replace(pair, reasons=(f"merged from {len(merged.parents)}: {why}",))
    if merged.base is not None:
        told[kin[merged.base].entry.key] = replace(kin[merged.base].pair, direction="descendant")
    return [replace(m, pair=told.get(m.entry.key, m.pair)) for m in matches]


def _with_source(fp: Fingerprint, matches: list[Match], weights: Mapping[Key, Sampled]) -> list[Match]:
    """The same matches; of those that a quantized query may have been made of, only the nearest stay `quantized`.

    weights: samples of those that training or quantization may have made of each other.
    """
    relatives = [(m.entry.label, m.pair, weights.get(m.entry.key, (None, None))[0]) for m in matches]
    return [replace(m, pair=pair) for m, pair in zip(matches, source_among(fp.blocks, relatives), strict=True)]


def _closeness(match: Match) -> tuple[bool, bool, float, float, str]:
    """Copies first, then what a quantized query was made of, then by the cosine of the samples."""
    pair = match.pair
    source = pair.relation == "quantized" and pair.direction != "ancestor"
    closeness = -round(pair.closeness, 4)
    return (pair.relation != "identical", not source, closeness, pair.log10_p or 0.0, match.entry.label)


def _status(matches: Sequence[Match], rest: Sequence[Match]) -> str:
    if matches:
        return "decided"
    return "none" if any(m.pair.verdict == "unrelated" for m in rest) else "inconclusive"


def _numberless(reason: str) -> str:
    """A reason without the figures of one pair, which stand in brackets at its end."""
    return reason.rpartition(" (")[0] if reason.endswith(")") and " (" in reason else reason


def _warnings(
    fp: Fingerprint, matches: Sequence[Match], rest: Sequence[Match], top: int, models: int
) -> tuple[str, ...]:
    out = list(fp.warnings)
    if len(matches) > top:
        out.append(f"{len(matches) - top} more matches are not shown (--top {top})")
    open_ones = [m for m in rest if m.pair.verdict == "inconclusive"]
    if open_ones:
        # Without the candidates' names, so that what holds for all of them is said once.
        said = (r.replace(f"{m.entry.model_id}: ", "") for m in open_ones for r in m.pair.reasons)
        why = dict.fromkeys(_numberless(reason) for reason in said)
        out.append(f"{len(open_ones)} of {len(matches) + len(rest)} candidates could not be tested: {'; '.join(why)}")
    if matches and fp.absences.get("branches") == NEEDS_STAGE_2:
        out.append(
            "what was read first showed a link, and no whole layer was read: copies in disguise were not looked for"
        )
    started = [m.entry.label for m in rest if m.pair.relation == "shared-init"]
    if started:
        out.append(f"the same random start, trained apart, which is no descent: {', '.join(started)}")
    if models == 0:
        out.append("the index is empty")
    return tuple(out)
