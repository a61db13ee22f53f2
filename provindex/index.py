"""An index of fingerprints: load, build, add, query, save, verify. Several indexes act as one.

Retrieval brings candidates (one FAISS inner-product search, nothing filtered); each is then compared in full, from
its stored fingerprint alone. A candidate is not a claim.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from provindex import dataset
from provindex.errors import IndexFormatError, ModelNotFoundError, UsageError
from provindex.fingerprint import FINGERPRINT_VERSION, Fingerprint
from provindex.retrieval import vector
from provindex.rows import Row, row_hash, to_row
from provindex.verdict import Pair, compare

SEED = Path(__file__).parent / "seed"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """One model of an index: its small columns, and how to get the rest."""

    row: Row
    load: Callable[[], Fingerprint] = field(repr=False)

    @property
    def model_id(self) -> str:
        return str(self.row["model_id"])

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two rows the same row: id, revision, variant and content."""
        return (self.model_id, self.row["revision"] or "", self.row["variant"], self.row["row_sha256"])

    @property
    def family(self) -> str:
        """Root of the weight lineage; a model whose family nobody stated is its own."""
        return str(self.row["family"] or self.model_id)

    @property
    def label(self) -> str:
        """The id, with the variant in parentheses."""
        return f"{self.model_id} ({self.row['variant']})" if self.row["variant"] else self.model_id


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


@dataclass(frozen=True)
class QueryResult:
    """The answer to a query.

    Linked: every candidate that is, closest first; matches: the first `top` of them. candidates: the others that were
    compared, in order of retrieval.

    status: "decided" if something is linked, "none" if nothing is and at least one candidate could be tested, else
    "inconclusive".
    """

    query: Fingerprint
    index: IndexInfo
    linked: tuple[Match, ...]
    candidates: tuple[Match, ...]
    families: tuple[Family, ...]
    status: str
    top: int
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

    # --- opening and filling ---

    @classmethod
    def load(cls, *references: str | os.PathLike[str]) -> Index:
        """Open index folders; without any, PROVINDEX_INDEX if set, else the seed index that comes with the package.

        Raises IndexFormatError if one is missing, damaged or of another version.
        """
        chosen = [Path(r) for r in references] or [
            Path(p) for p in os.environ.get("PROVINDEX_INDEX", "").split(os.pathsep) if p
        ]
        folders = chosen or [SEED]
        parts = [_open(folder) for folder in folders]
        infos = [info for info, _ in parts]
        merged = infos[0] if len(infos) == 1 else _merged(infos)
        index = cls(merged, (entry for _, entries in parts for entry in entries), folders)
        index.info = IndexInfo(merged.id, merged.revision, merged.built, len(index))
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
        row = {**to_row(fp), dataset.VECTOR: vector(fp)}
        entry = Entry(row, lambda: fp)
        new = entry.key not in self._entries
        self._entries[entry.key] = entry
        self.info = IndexInfo(self.info.id, "unsaved" if new else self.info.revision, self.info.built, len(self))
        return new

    def save(self, folder: str | os.PathLike[str], *, who: str = "local") -> dataset.Manifest:
        """Write what is new as one more shard, then the manifest; shards that are there stay as they are.

        Saving to the folder that an index was loaded from appends; saving elsewhere writes everything.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        old = dataset.read_manifest(target) if (target / dataset.MANIFEST).exists() else None
        there = {entry.key for entry in _open(target)[1]} if old else set()
        fresh = [entry.load() for key, entry in self._entries.items() if key not in there]
        shards = list(old.shards) if old else []
        if fresh:
            shards.append(dataset.write_shard(target, fresh, who))
        built = old.built if old and not fresh else f"{dataset.now():%Y-%m-%dT%H:%M:%SZ}"
        manifest = dataset.Manifest(old.id if old else self.info.id, built, tuple(shards))
        dataset.write_manifest(target, manifest)
        return manifest

    # --- looking things up ---

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def find(self, reference: str) -> list[Entry]:
        """Rows of `model_id[@revision][#variant]`, originals before variants; empty if the id is not in the index."""
        name, _, variant = reference.partition("#")
        model_id, _, revision = name.partition("@")
        found = [
            entry
            for entry in self
            if entry.model_id == model_id
            and (not revision or (entry.row["revision"] or "").startswith(revision))
            and (not variant or entry.row["variant"] == variant)
        ]
        return sorted(found, key=lambda e: (e.row["variant"], e.key))

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
        progress: Progress | None = None,
    ) -> QueryResult:
        """The likely relatives of a fingerprint.

        top: how many matches to return. candidates: how many rows retrieval hands on to be compared in full. also:
        ids that are compared whatever retrieval says. The query's own row is left out; another id with equal content
        is a match.
        """
        if top < 1 or candidates < 1:
            raise UsageError(f"--top and --candidates must be at least 1, not {top} and {candidates}.")
        ranked = self._retrieve(fp, candidates, also)
        loaded = [(entry, entry.load(), rank, score) for entry, rank, score in ranked]
        common = _common_blocks([(entry.family, other) for entry, other, _, _ in loaded])
        found: list[Match] = []
        for done, (entry, other, rank, score) in enumerate(loaded):
            pair = compare(fp, other, models=len(self), common_blocks=common)
            found.append(Match(entry, _variant_rule(fp, entry, pair), rank, score))
            if progress:
                progress(done + 1, len(loaded))
        matches = sorted((m for m in found if m.pair.verdict == "linked"), key=_closeness)
        rest = tuple(m for m in found if m.pair.verdict != "linked")
        return QueryResult(
            query=fp,
            index=self.info,
            linked=tuple(matches),
            candidates=rest,
            families=self._families(matches),
            status=_status(matches, rest),
            top=top,
            settings={"top": top, "candidates": candidates, "mode": fp.mode},
            warnings=_warnings(fp, matches, rest, top, len(self)),
        )

    def _retrieve(self, fp: Fingerprint, count: int, also: Sequence[str]) -> list[tuple[Entry, int, float]]:
        """(row, rank from 1, score) of the nearest rows, then of the ids that were asked for besides."""
        import faiss

        own = (fp.model_id, fp.revision or "", fp.variant, to_row(fp)["row_sha256"])
        entries = [entry for entry in self if entry.key != own]
        asking = self._entries[own].row[dataset.VECTOR] if own in self._entries else vector(fp)
        if not entries:
            return []
        searcher = faiss.IndexFlatIP(len(entries[0].row[dataset.VECTOR]))
        searcher.add(np.ascontiguousarray(dataset.vectors([entry.row for entry in entries])))
        scores, order = searcher.search(asking[None, :], len(entries) if also else min(count, len(entries)))
        ranked = [(entries[i], rank, float(s)) for rank, (i, s) in enumerate(zip(order[0], scores[0], strict=True), 1)]
        asked = {entry.key for reference in also for entry in self.find(reference)}
        return [r for r in ranked if r[1] <= count or r[0].key in asked]

    def _families(self, matches: Sequence[Match]) -> tuple[Family, ...]:
        groups: dict[str, list[Match]] = {}
        for match in matches:
            groups.setdefault(match.entry.family, []).append(match)
        sizes: dict[str, int] = {}
        for entry in self:
            sizes[entry.family] = sizes.get(entry.family, 0) + 1
        return tuple(
            Family(name, group[0].entry.model_id, len(group), sizes[name], min(m.pair.log10_p or 0.0 for m in group))
            for name, group in groups.items()
        )

    def verify(self) -> list[Problem]:
        """Check every digest, every row's hash and every vector against its row; an empty list if all is well."""
        return [problem for folder in self.folders for problem in _verify(folder)]


def _open(folder: Path) -> tuple[IndexInfo, list[Entry]]:
    manifest = dataset.read_manifest(folder)
    entries = []
    for shard in manifest.shards:
        rows = dataset.read_models(folder, shard)
        if len(rows) != shard.rows:
            raise IndexFormatError(
                f"{shard.models} has {len(rows)} rows, the manifest says {shard.rows}.",
                "Check it with `provindex index verify`.",
            )
        entries += [Entry(row, _loader(folder, shard, number, row)) for number, row in enumerate(rows)]
    return IndexInfo(manifest.id, manifest.revision, manifest.built, manifest.models), entries


def _loader(folder: Path, shard: dataset.Shard, number: int, row: Row) -> Callable[[], Fingerprint]:
    def load() -> Fingerprint:
        panels = dataset.read_panels(folder, shard, [number])[0]
        if panels["row_sha256"] != row["row_sha256"]:
            raise IndexFormatError(
                f"The panels of {row['model_id']} belong to another row.",
                "Check the index with `provindex index verify`.",
            )
        return dataset.checked({**panels, **row})

    return load


def _merged(infos: Sequence[IndexInfo]) -> IndexInfo:
    return IndexInfo(
        "+".join(i.id for i in infos),
        "+".join(i.revision for i in infos),
        max(i.built for i in infos),
        sum(i.models for i in infos),
    )


def _verify(folder: Path) -> list[Problem]:
    manifest = dataset.read_manifest(folder)
    problems: list[Problem] = []
    for shard in manifest.shards:
        before = len(problems)
        for name, digest in shard.sha256.items():
            path = folder / name
            if not path.exists():
                problems.append(Problem(name, "missing"))
            elif dataset.file_sha256(path) != digest:
                problems.append(Problem(name, "its sha256 is not the manifest's"))
        if len(problems) == before:
            problems += _verify_rows(folder, shard)
    return problems


def _verify_rows(folder: Path, shard: dataset.Shard) -> list[Problem]:
    problems = []
    for number, row in enumerate(dataset.read_models(folder, shard)):
        panels = dataset.read_panels(folder, shard, [number])[0]
        whole = {**panels, **row}
        name = f"{shard.models}#{number} {row['model_id']}"
        if panels["row_sha256"] != row["row_sha256"] or row_hash(whole) != row["row_sha256"]:
            problems.append(Problem(name, "its content does not match its row hash"))
        elif not np.allclose(vector(dataset.checked(whole)), row[dataset.VECTOR], atol=1e-5):
            problems.append(Problem(name, "its retrieval vector does not follow from its content"))
    return problems


def _common_blocks(loaded: Sequence[tuple[str, Fingerprint]]) -> frozenset[int]:
    """Digests that rows of two different families share: constants of a format or an initializer, not lineage."""
    owner: dict[int, str] = {}
    common: set[int] = set()
    for family, fp in loaded:
        if fp.blocks is not None and fp.family:
            for digest in np.concatenate([fp.blocks.exact, fp.blocks.bf16, fp.blocks.f16]).ravel().tolist():
                if owner.setdefault(digest, family) != family:
                    common.add(digest)
    return frozenset(common)


def _variant_rule(fp: Fingerprint, entry: Entry, pair: Pair) -> Pair:
    """A variant is the same model in another dress: never an ancestor of its source."""
    same_model = fp.model_id == entry.model_id and fp.variant != entry.row["variant"]
    wrong = (pair.direction == "descendant" and not fp.variant) or (
        pair.direction == "ancestor" and not entry.row["variant"]
    )
    return replace(pair, direction="unknown") if same_model and wrong else pair


def _closeness(match: Match) -> tuple[bool, float, float, str]:
    pair = match.pair
    return (pair.relation != "identical", -round(pair.closeness, 4), pair.log10_p or 0.0, match.entry.label)


def _status(matches: Sequence[Match], rest: Sequence[Match]) -> str:
    if matches:
        return "decided"
    return "none" if any(m.pair.verdict == "unrelated" for m in rest) else "inconclusive"


def _warnings(
    fp: Fingerprint, matches: Sequence[Match], rest: Sequence[Match], top: int, models: int
) -> tuple[str, ...]:
    out = list(fp.warnings)
    if len(matches) > top:
        out.append(f"{len(matches) - top} more matches are not shown (--top {top})")
    open_ones = [m for m in rest if m.pair.verdict == "inconclusive"]
    if open_ones:
        why = dict.fromkeys(reason.split(" (")[0] for m in open_ones for reason in m.pair.reasons)
        out.append(f"{len(open_ones)} of {len(matches) + len(rest)} candidates could not be tested: {'; '.join(why)}")
    if models == 0:
        out.append("the index is empty")
    return tuple(out)
