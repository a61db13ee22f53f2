"""An index of fingerprints: load, build, add, query, save, verify. Several indexes act as one.

Retrieval brings candidates (FAISS searches over every vector, exact, or by codes for many rows, see `codes`; nothing is
filtered; the first few hundred are ranked again by their layers); each is then compared in full, from its stored
fingerprint alone. A candidate is not a claim. An open index holds who its rows are, and their vectors; all
else stays on disk until a row is a candidate.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from provindex.catalogue.alike import Look, Neighbour, may_descend, neighbours
from provindex.common import places
from provindex.common.errors import IndexFormatError, ModelNotFoundError, UsageError, printable
from provindex.common.files import locked, now
from provindex.common.hub_ids import is_address_of_dataset, is_hub_id, without_address
from provindex.common.threads import one_blas_thread
from provindex.fingerprint.record import FINGERPRINT_VERSION, IMPORTED, NORMS, Fingerprint
from provindex.fingerprint.rows import context, to_row
from provindex.index import codes, dataset
from provindex.index import pulled as store
from provindex.index.answer import (
    Family,
    Match,
    QueryResult,
    closeness,
    coverage_of,
    status_of,
    variant_rule,
    warnings_of,
    with_directions,
    with_parents,
    with_source,
)
from provindex.index.candidates import SEARCHED, Candidates, Ranked, grouped
from provindex.index.entries import (
    F32,
    SEED,
    Entry,
    Held,
    IndexInfo,
    Key,
    Problem,
    Stored,
    center,
    info_of,
    merged,
    open_folder,
    threads,
)
from provindex.index.search import DIMENSIONS, RERANKED, in_turn, rerank, searches, vector
from provindex.index.verify import verify_folder
from provindex.signals import mfi, tfv
from provindex.verdict.calibration import Calibration
from provindex.verdict.calibration import load as load_calibration
from provindex.verdict.descent import KIN, Sampled, sampled
from provindex.verdict.pair import compare

EMBEDDED, FETCHED = "embedded", "fetched"  # what --index calls them
DEEPER = 5  # candidates that are compared by every layer of the query, where two layers of each show no link
ROWS_PER_SHARD = 256  # so that copying a large index holds about 1 GB of fingerprints at a time
Progress = Callable[[int, int], None]


class Index:
    """Fingerprints that can be searched.

    `Index.load()` opens the default index; `index[model_id]` is a Fingerprint; `index.query(fingerprint)` finds its
    relatives; `index.add(fingerprint)` and `index.save(folder)` keep a private one in the same format.
    """

    result_type: type[QueryResult] = QueryResult

    def __init__(self, info: IndexInfo, entries: Iterable[Entry], folders: Sequence[Path] = ()) -> None:
        self.info = info
        self.folders = tuple(folders)
        self._entries = {entry.key: entry for entry in entries}
        self._searched: tuple[list[Entry], list[Entry], Any] | None = None  # made when needed
        self._by_id: dict[str, list[Entry]] = {}
        self._small: tuple[int, Mapping[str, str]] = (0, {})  # how many ids there were; they by their small letters
        for entry in self:
            self._by_id.setdefault(entry.model_id, []).append(entry)

    def __repr__(self) -> str:
        return printable(f"<Index {self.info.label}: {len(self):,} models>")

    @cached_property
    def calibration(self) -> Calibration | None:
        """The chance levels of the first folder that has some; else those of the embedded index."""
        return calibration_of(self.folders)

    # --- opening and filling ---

    @classmethod
    def load(cls, *references: str | os.PathLike[str]) -> Self:
        """Open indexes: folders, or `org/name[@revision]` of a dataset that was pulled; several act as one.

        Without any, PROVINDEX_INDEX if set, else the index that was pulled last, or the seed index that comes with the
        package, and beside it the databases of other tools that were pulled, and models that were fetched. Raises
        IndexFormatError if one is missing, damaged or of another version.
        """
        return cls._loaded(_folders(references), None)

    @classmethod
    def check(cls, *references: str | os.PathLike[str], progress: Progress | None = None) -> tuple[Self, list[Problem]]:
        """Open an index as `load` does and verify it: shards that cannot be read are problems, and are left out.

        Raises IndexFormatError only if there is no manifest that can be read.
        """
        problems: list[Problem] = []
        index = cls._loaded(_folders(references), problems)
        seen = {p.where for p in problems}
        return index, problems + [p for p in index.verify(progress) if p.where not in seen]

    @classmethod
    def _loaded(cls, folders: Sequence[Path], problems: list[Problem] | None) -> Self:
        parts = [_opened(folder, problems) for folder in folders]
        infos = [info for info, _ in parts]
        info = infos[0] if len(infos) == 1 else merged(infos)
        index = cls(info, (entry for _, entries in parts for entry in entries), folders)
        index.info = replace(info, models=len(index))
        return index

    def with_folder(self, folder: Path) -> Self:
        """The same rows and those of one more folder; of a folder that this index has already, its rows of now."""
        _, entries = _opened(folder)
        kept = [e for e in self if not _is_of(e, folder)]
        others = tuple(other for other in self.folders if other != folder)
        whole = bool(others) and self.info.revision != "unsaved"
        infos = [*(map(info_of, others) if whole else [self.info]), info_of(folder)]
        index = type(self)(merged(infos), [*kept, *entries], (*others, folder))
        index.info = replace(index.info, models=len(index))
        return index

    @classmethod
    def build(cls, fingerprints: Iterable[Fingerprint], *, name: str = "private") -> Self:
        """A new index in memory."""
        index = cls(IndexInfo(name, "unsaved", "", 0), ())
        for fp in fingerprints:
            index.add(fp)
        return index

    def add(self, fp: Fingerprint) -> bool:
        """Add a fingerprint; False if the very same row (id, revision, variant, content) is already there."""
        check_version(fp)
        row = to_row(fp)
        held = Held(fp, row, vector(fp)[None])
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
        with locked(target):
            return self._saved(target, who)

    def _saved(self, target: Path, who: str) -> dataset.Manifest:
        """`save`, while nobody else writes the manifest."""
        old = dataset.read_manifest(target) if (target / dataset.MANIFEST).exists() else None
        there = {entry.key for entry in open_folder(target)[1]} if old else set()
        # A row that was read from this folder and is not there any more was replaced by one that says more.
        fresh = sorted((e for e in self if e.key not in there and not _is_of(e, target)), key=lambda e: e.key)
        shards = list(old.shards) if old else []
        for start in range(0, len(fresh), ROWS_PER_SHARD):
            loaded = (entry.load() for entry in fresh[start : start + ROWS_PER_SHARD])
            shards.append(dataset.write_shard(target, loaded, who))
        built = old.built if old and not fresh else f"{now():%Y-%m-%dT%H:%M:%SZ}"
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
        if reference in self._by_id:  # ids of local models may hold "@" and "#"
            return sorted(self._by_id[reference], key=lambda e: (e.variant, e.revision is None, e.key))
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
                held[id(entry.rows)] = entry.rows.texts("files")
            files = held[id(entry.rows)][entry.number]
            if wanted[0] in files and _digests(files) == wanted and entry.row["mode"] == "exact":
                found.append(entry)
        agreed = len({entry.row["content_sha256"] for entry in found}) == 1
        return min(found, key=lambda e: (e.model_id != model_id, e.variant, e.key)) if agreed else None

    def imported(self) -> list[Entry]:
        """The rows that were imported from another tool."""
        modes = {id(entry.rows): entry.rows for entry in self}
        texts = {key: rows.texts("mode") for key, rows in modes.items()}
        return [entry for entry in self if texts[id(entry.rows)][entry.number] == IMPORTED]

    def named(self, reference: str) -> list[Entry]:
        """Rows of an id, or of the family that rows state if no row has that id.

        Not of a family of the catalogue: whoever asks about a model of which there is no row must hear that.
        """
        return self.find(reference) or [e for e in self if (e.stated_family or e.model_id) == reference]

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
        fp: Fingerprint,
        top: int = 10,
        candidates: int = 50,
        *,
        also: Sequence[str] = (),
        claims: Mapping[str, Sequence[str]] | None = None,
        deeper: Callable[[], Fingerprint | None] = lambda: None,
        progress: Progress | None = None,
    ) -> QueryResult:
        """The likely relatives of a model.

        top: how many matches to return. candidates: how many rows retrieval hands on to be compared in full. also: ids
        that are compared whatever retrieval says. claims: who claims which parent, by its id; None: what the
        fingerprint says, whose claims are the card's. deeper: makes the same model with every layer, None if it cannot;
        called where nothing links, or nothing that `also` names.
        The query's own row is left out; another id with equal content is a match.
        """
        if top < 1 or candidates < 1:
            raise UsageError(f"--top and --candidates must be at least 1, not {top} and {candidates}.")
        own, claims = self.own(fp), _claims(fp, claims)
        by_claim = [entry for name in claims for entry in self.spelled(name) if entry is not own]
        claimed = {entry.model_id for entry in by_claim}
        waiting = self._candidates(fp, own, candidates, also, by_claim)
        named = {entry.key for reference in also for entry in self.named(reference)}
        found, weights = self._verified(fp, waiting, progress, deeper, named)
        matches = sorted((m for m in found if m.pair.verdict == "linked"), key=closeness)
        matches = with_directions(fp, with_parents(fp, matches, weights), weights)
        matches = sorted(with_source(fp, matches, weights), key=closeness)
        rest = tuple(m for m in found if m.pair.verdict != "linked")
        look = Look.of(fp)
        neighbours = self.neighbours(fp, claims)
        compared = {e.key for m in found for e in (m.entry, *m.copies)} | ({own.key} if own else set())
        coverage = coverage_of(
            matches,
            rest,
            len(self) - (own is not None),
            lambda e: e.model_id in claimed or may_descend(look, _look(e)),
            look.shape.model_type,
            0 if matches else self._of_width(look.shape.hidden, compared),
        )
        return self.result_type(
            query=fp,
            index=self.info,
            linked=tuple(matches),
            candidates=rest,
            families=self._families(matches),
            own=own,
            status=status_of(fp, matches, coverage, neighbours),
            coverage=coverage,
            neighbours=neighbours,
            top=top,
            settings={"top": top, "candidates": candidates, "mode": fp.mode},
            warnings=(*warnings_of(fp, matches, rest, top, len(self)), *waiting.warnings(found)),
        )

    def _verified(
        self,
        fp: Fingerprint,
        waiting: Candidates,
        progress: Progress | None,
        deeper: Callable[[], Fingerprint | None],
        named: Collection[Key],
    ) -> tuple[list[Match], dict[Key, Sampled]]:
        """Candidates compared in full, in their order; and samples of those that training or rounding may have made.

        Layers that were put between the others may hide the two that a row keeps. So what is named and does not link is
        compared again by every layer of the query, and if nothing links the first candidates are, too.
        """
        calibration, weights = self.calibration, dict[Key, Sampled]()

        def verified(candidate: Ranked, asked: Fingerprint = fp) -> Match:
            entry, rank, score = candidate
            other = entry.load()
            pair = compare(asked, other, models=len(self), calibration=calibration, again=entry.load)
            if pair.relation in KIN or pair.relation == "quantized":
                weights[entry.key] = sampled(other)
            return Match(entry, variant_rule(fp, entry, pair), rank, score)

        found: list[Match] = []
        with one_blas_thread(), ThreadPoolExecutor(threads()) as pool:
            while batch := waiting.next(found):
                total = len(found) + len(batch)
                for match in pool.map(verified, batch):  # in the order of the batch, whichever is done first
                    found.append(match)
                    if progress:
                        progress(len(found), total)
            places = _to_read_deeper(found, named)
            whole = deeper() if places else None
            if whole is not None:
                again = [(found[i].entry, found[i].rank, found[i].score) for i in places]
                for i, match in zip(places, pool.map(partial(verified, asked=whole), again), strict=True):
                    found[i] = match
        return waiting.with_copies(found), weights

    def spelled(self, model_id: str) -> list[Entry]:
        """Rows of an id in any case."""
        if model_id in self._by_id:
            return self._by_id[model_id]
        count = len(self._by_id)
        if self._small[0] != count:
            self._small = count, {name.lower(): name for name in self._by_id}
        return self._by_id.get(self._small[1].get(model_id.lower(), ""), [])

    def _of_width(self, hidden: int, without: Collection[Key]) -> int:
        """How many rows have a residual width and are not among those that are named."""
        shards: dict[int, list[Entry]] = {}
        for entry in self if hidden else ():
            shards.setdefault(id(entry.rows), []).append(entry)
        widths = ((entries[0].rows.numbers("hidden"), entries) for entries in shards.values())
        return sum(read[e.number] == hidden and e.key not in without for read, entries in widths for e in entries)

    def neighbours(
        self, fp: Fingerprint, claims: Mapping[str, Sequence[str]] | None = None, *, shallow: bool = False
    ) -> tuple[Neighbour, ...]:
        """Claimed parents, and models of the catalogue that look like ancestors, of which this index has no row.

        claims: as for `query`. shallow: also those whose rows were not read in full: norms alone, or without the whole
        layers of sampled mode.
        """
        found = neighbours(Look.of(fp), _claims(fp, claims))
        missing = (n for n in found if not self.spelled(n.model_id))
        return tuple(n for n in found if (self.depth(n.model_id) or 0) < READ_ON) if shallow else tuple(missing)

    def depth(self, model_id: str) -> int | None:
        """How far the row of an id that says most was read; None without a row.

        -1: imported; 0: norms; 1: fixed blocks; 2: whole layers; 3: every byte.
        """
        depths = [_depth(entry) for entry in self.spelled(model_id)]
        return max(depths, default=None)

    def nearest(self, fp: Fingerprint, count: int, also: Sequence[str] = ()) -> list[tuple[Entry, int, float]]:
        """(row, rank from 1, score) of the `count` candidates for a fingerprint, then of ids asked for besides.

        score: the inner product of the whole vectors. Rows that have none, or all rows if the query has none (imported
        features without weight signals), come last, with 0.0: the nearest by config and tokenizer first. The query's
        own row is left out.
        """
        return self._nearest(fp, self.own(fp), count, also)

    def near(self, entry: Entry, count: int) -> list[Entry]:
        """The rows whose vectors are most like a row's, not ranked again by layers; [] for a row without a vector."""
        entries, _, searcher = self._searcher()
        asked_with = searches(np.asarray(entry.vector, np.float32))
        if not entry.vector.any():
            return []
        found = []
        for one, scores, places_of in zip(
            asked_with, *searcher.search(asked_with, min(count, len(entries))), strict=True
        ):
            kept = places_of >= 0
            found.append((places_of[kept], scores[kept] / max(float(one @ one), 1e-9)))
        return [entries[i] for i in in_turn(found) if entries[i] is not entry][:count]

    def _candidates(
        self, fp: Fingerprint, own: Entry | None, count: int, also: Sequence[str], claimed: Sequence[Entry]
    ) -> Candidates:
        """What a query compares: `count` rows at first, and those that are named whatever the search says."""
        ranked = self._nearest(fp, own, count, also, SEARCHED)
        asked = {entry.key for reference in also for entry in self.named(reference)}
        there = {entry.key for entry, _, _ in ranked}
        asking = own.vector if own else vector(fp)
        named = [(e, 0, float(asking @ e.vector)) for e in claimed if e.key not in there]
        named += [r for r in ranked if r[0].key in asked or r[0] in claimed]
        kept = {entry.key for entry, _, _ in named}
        return Candidates(grouped([r for r in ranked if r[0].key not in kept]), named, count)

    def _nearest(
        self, fp: Fingerprint, own: Entry | None, count: int, also: Sequence[str], most: int = 0
    ) -> list[tuple[Entry, int, float]]:
        if not len(self) or (own and len(self) == 1):
            return []
        asking = own.vector if own else vector(fp)
        entries, bare, _ = self._searcher()
        wanted = len(entries) if also else min(max(count, RERANKED) + 1, len(entries))  # one may be its own row
        order = self._by_weights(fp, asking, own, wanted) if wanted and asking.any() else []
        limit = max(count, most)
        order = order if also else order[:limit]
        ranked = [(entries[i], float(asking @ entries[i].vector)) for i in order]
        if len(ranked) < count or also:  # what was found by weights comes first
            left = [e for e in (bare if asking.any() else entries + bare) if e is not own]
            ranked += [(entry, 0.0) for entry in _by_context(fp, left)]
        asked = {entry.key for reference in also for entry in self.named(reference)}
        numbered = [(entry, rank, score) for rank, (entry, score) in enumerate(ranked, 1)]
        return [r for r in numbered if r[1] <= limit or r[0].key in asked]

    def _by_weights(self, fp: Fingerprint, asking: F32, own: Entry | None, wanted: int) -> list[int]:
        """The first `wanted` rows of each search, by their number in the searcher, in turn."""
        entries, _, searcher = self._searcher()
        found = []
        asked_with = searches(asking)
        for one, scores, found_at in zip(asked_with, *searcher.search(asked_with, wanted), strict=True):
            kept = np.array([i >= 0 and entries[i] is not own for i in found_at])
            found.append((found_at[kept], scores[kept] / max(float(one @ one), 1e-9)))  # cosines
        again = self._ranked_again(fp, in_turn(found)[:RERANKED], entries)
        return in_turn([*found, again] if again else found)

    def _searcher(self) -> tuple[list[Entry], list[Entry], Any]:
        """Rows with a vector, rows without, and what searches the former, in their order; made when needed.

        Both in the order of their keys, so that ties do not depend on which shard a row is in. A row without any weight
        signal has a vector of zeros.
        """
        if self._searched is None:
            rows = sorted(self, key=lambda entry: entry.key)
            has_vector, searcher = (_flat if len(rows) < codes.FLAT else _coded)(rows)
            split = [
                [row for row, has in zip(rows, has_vector, strict=True) if has == wanted] for wanted in (True, False)
            ]
            self._searched = split[0], split[1], searcher
        return self._searched

    def _ranked_again(
        self, fp: Fingerprint, places: Sequence[int], entries: Sequence[Entry]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Some rows in the order of their layers' sketches, with scores; None for a model without sketches."""
        asking = (fp.sketches, fp.sketches_by_id)
        if asking == (None, None):
            return None
        with ThreadPoolExecutor(threads()) as pool:
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
        groups: dict[str, list[tuple[Entry, float]]] = {}
        for match in matches:
            for entry in (match.entry, *match.copies):
                groups.setdefault(entry.family, []).append((entry, match.pair.log10_p or 0.0))
        sizes = Counter(entry.family for entry in self)
        return tuple(
            Family(name, group[0][0].model_id, len(group), sizes[name], min(log10_p for _, log10_p in group))
            for name, group in groups.items()
        )

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """Check every digest, every row's hash and every vector against its row; an empty list if all is well.

        progress: called with (rows done, rows in all) after each shard.
        """
        problems, done = [], 0
        for folder in self.folders:
            for problem, rows in verify_folder(folder):
                problems += problem
                done += rows
                if progress:
                    progress(done, max(done, len(self)))
        return problems


def _to_read_deeper(found: Sequence[Match], named: Collection[Key]) -> list[int]:
    """Places of what is compared again by every layer of the query. A model with the other kind of MLP is no copy in
    disguise: it takes none of the few places.
    """
    open_ones = [i for i, m in enumerate(found) if m.pair.verdict != "linked"]
    asked = [i for i in open_ones if found[i].entry.key in named]
    if len(open_ones) < len(found):
        return asked
    alike = (i for i in open_ones if found[i].rank and not found[i].pair.kinds_differ)
    return sorted({*asked, *sorted(alike, key=lambda i: found[i].rank)[:DEEPER]})


def check_version(fp: Fingerprint) -> None:
    """IndexFormatError for a fingerprint that another version of provindex made: no index holds both."""
    if fp.version != FINGERPRINT_VERSION:
        raise IndexFormatError(
            f"The fingerprint of {fp.model_id} has version {fp.version}, the index has {FINGERPRINT_VERSION}.",
            "Make the fingerprint again with this provindex.",
        )


def _flat(rows: Sequence[Entry]) -> tuple[NDArray[np.bool_], Any]:
    """Which rows have a vector, and a FAISS index of those."""
    vectors = _vectors(rows)
    has_vector = np.any(vectors, axis=1)
    return has_vector, codes.flat(vectors if has_vector.all() else vectors[has_vector])


def _coded(rows: Sequence[Entry]) -> tuple[NDArray[np.bool_], codes.Coded]:
    """As `_flat`, by codes: those of rows that are in no segment are made in memory."""
    has_vector, loose = np.zeros(len(rows), np.bool_), []
    held: dict[int, tuple[codes.Segment, NDArray[np.int64]]] = {}  # segments, and which row each of theirs is
    for together in _by_shard(rows):
        stored, numbers = rows[together[0]].rows, [rows[i].number for i in together]
        if isinstance(stored, Stored) and stored.segment is not None:
            segment = stored.segment
            inside = np.array(numbers) + stored.first
            held.setdefault(id(segment), (segment, np.full(len(segment), -1)))[1][inside] = together
            has_vector[together] = segment.has_vector[inside]
        else:
            loose += together
    if loose:
        segment = codes.Segment.of(_vectors([rows[i] for i in loose]), center())
        held[id(segment)] = segment, np.array(loose)
        has_vector[loose] = segment.has_vector
    numbered = np.where(has_vector, np.cumsum(has_vector) - 1, -1)
    places = [np.where(which >= 0, numbered[which], -1) for _, which in held.values()]
    return has_vector, codes.Coded([segment for segment, _ in held.values()], center(), places)


def _vectors(rows: Sequence[Entry]) -> F32:
    vectors = np.empty((len(rows), DIMENSIONS), np.float32)
    for together in _by_shard(rows):
        vectors[together] = rows[together[0]].rows.vectors[[rows[i].number for i in together]]
    return vectors


def _opened(folder: Path, problems: list[Problem] | None = None) -> tuple[IndexInfo, list[Entry]]:
    """`open_folder`; of the index of fetched models the error says what to do, because nobody publishes it."""
    try:
        return open_folder(folder, problems)
    except IndexFormatError as error:
        if folder != places.fetched_index():
            raise
        raise IndexFormatError(f"The index of fetched models is damaged: {error.message}", store.AGAIN) from error


MOST_CLAIMS = 64  # claimed parents that are looked at; a row of a stranger may state a thousand


def _claims(fp: Fingerprint, claims: Mapping[str, Sequence[str]] | None) -> dict[str, Sequence[str]]:
    """Who claims which parent, by its id; None: what the fingerprint states, which is the card's word."""
    stated = dict.fromkeys(fp.parents, ("card",)) if claims is None else claims
    return dict([(name, by) for name, by in stated.items() if is_hub_id(name)][:MOST_CLAIMS])


READ_ON = 2  # depth from which reading on in sampled mode says no more


def _depth(entry: Entry) -> int:
    mode = entry.row["mode"]
    if mode != "sampled":
        return {IMPORTED: -1, NORMS: 0}.get(mode, 3)
    return 1 if entry.load().layers_unread else READ_ON


def _is_of(entry: Entry, folder: Path) -> bool:
    """Whether a row was read from a folder."""
    return isinstance(entry.rows, Stored) and entry.rows.folder.resolve() == folder.resolve()


def _look(entry: Entry) -> Look:
    """What a row looks like."""
    row = entry.row
    sizes = int(row["hidden"]), int(row["layers"]), int(row["vocabulary"])
    return Look.seen(entry.model_id, row["architecture"], sizes, *context(row))


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
    """The folders that were named, else those of PROVINDEX_INDEX, else the index that was pulled last, or the seed if
    none was, and with it the databases of other tools that were pulled, and what was fetched.

    IndexFormatError if a dataset of the Hub was named that was not pulled: only `index pull` fetches.
    """
    named = references or places.default_indexes()
    if named:
        return [_folder(os.fspath(reference)) for reference in named]
    fetched = store.fetched_folder()
    return [store.default_folder() or SEED, *store.added_folders(), *([fetched] if fetched else [])]


def _folder(reference: str) -> Path:
    reference = without_address(reference) if is_address_of_dataset(reference) else reference
    if reference in (EMBEDDED, SEED.name) and not Path(reference).exists():
        return SEED
    if reference == FETCHED and not Path(reference).exists():
        return places.fetched_index()
    return store.pulled(reference) if store.is_reference(reference) else Path(reference)


def _by_context(fp: Fingerprint, entries: Iterable[Entry]) -> list[Entry]:
    """Rows in the order of the mean of MFI and TFV with a fingerprint: where no weights tell which are near."""
    features = [(entry, *context(entry.row)) for entry in entries]
    scored = [
        (((mfi.compare(fp.mfi, m).score.value or 0.0) + (tfv.compare(fp.tfv, t).value or 0.0)) / 2, entry)
        for entry, m, t in features
    ]
    return [entry for _, entry in sorted(scored, key=lambda s: (-s[0], s[1].key))]
