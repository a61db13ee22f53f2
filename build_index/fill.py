"""Fill an index from many models, in parallel processes, so that it can be interrupted at any time.

Each finished fingerprint is kept at once in DIR/.work, one file a source. They are merged into shards in the order of
their names, ROWS_PER_SHARD at a time: the same models give the same bytes, whatever the number of processes and the
order in which they finish. What failed is listed with its reason in DIR/.work/failures.json and tried again by the next
run. A row takes the place of rows of its name that say less, so that an index can be built in stages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from build_index.budget import MB, MBIT, Purse, cost, is_remote, needs_of, repository
from provindex import api
from provindex.api import Index
from provindex.common.errors import BudgetError, ProvindexError, UsageError
from provindex.common.files import replacing
from provindex.evidence.panels import PANELS_VERSION
from provindex.fingerprint import parquet
from provindex.fingerprint.panels import LAYOUT
from provindex.fingerprint.record import FINGERPRINT_VERSION, MODES, Fingerprint
from provindex.formats import local_files
from provindex.hub.client import metered
from provindex.index import dataset
from provindex.index.collection import ROWS_PER_SHARD
from provindex.index.entries import Key
from provindex.index.fill import CLASH
from provindex.index.replace import READS, TAKEN, Choice, Name, Said, Standing, replace_rows
from provindex.models.listing import expand

WORK, FAILURES = ".work", "failures.json"
WHO = "index"  # the origin in the names of shards
Say = Callable[[str], None]
DEFAULT_READS = READS["sampled"]  # of rows that are there where no mode is asked for
NAMED = ("model_id", "revision", "variant", "mode", "content_sha256", "row_sha256")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a fingerprint file: its name (id, revision, variant), and what it says."""

    name: Name
    said: Said


@dataclass(frozen=True, slots=True)
class Share:
    """The models that one of `world_size` machines makes: those whose id falls to `rank`.

    Raises UsageError unless 0 <= rank < world_size.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"--rank {self.rank} of --world-size {self.world_size} does not exist.",
                "Ranks begin at 0 and are smaller than the world size.",
            )

    def has(self, model_id: str) -> bool:
        """Whether a model falls to this rank. The answer is the same on every machine and in every list."""
        digest = hashlib.sha256(model_id.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.world_size == self.rank


@dataclass(frozen=True, slots=True)
class Facts:
    """What a catalogue knows about a model; empty where it knows nothing, then the model's own card stands."""

    license: str = ""
    family: str = ""
    parents: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One source. name: the id that its row will have, or the file's name of a fingerprint file. mode: how it is read;
    None: "sampled" for a model on the Hub of more than 1 GB that is not in its cache, else "exact". most: bytes that it
    may fetch; None for as many as it takes.
    """

    source: str
    name: str
    mode: str | None
    offline: bool
    work: Path
    most: int | None = None

    @property
    def key(self) -> str:
        """Names the file of its fingerprint: another mode or another version of fingerprints is another file."""
        place = str(Path(self.source).resolve()) if Path(self.source).exists() else self.source
        text = f"{place}\n{self.mode or 'default'}\n{FINGERPRINT_VERSION}.{PANELS_VERSION}.{LAYOUT}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def done(self) -> Path:
        return self.work / f"{self.key}.parquet"

    @property
    def running(self) -> Path:
        """There while a process works on it, or died of it."""
        return self.work / f"{self.key}.running"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. reason: why it failed, None if it did not. fetched: bytes of files that came from the Hub. over:
    whether it failed because it may not fetch more.
    """

    reason: str | None = None
    fetched: int = 0
    over: bool = False


Worker = Callable[[Job], Outcome]  # makes a fingerprint and keeps it
Settle = Callable[[Job, Outcome], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, each in the order of names.

    present: in the index. kept: made by an earlier run, not merged. missing: to be made. later: missing too, beyond the
    limit. failed: cannot be made, reason by source. needs: bytes that each of the missing is expected to fetch. older:
    the manifest of an index of an older version, whose rows are made again; lost: ids of those of its rows that no
    source names. listed: a digest of the names and the mode of all models, those of other ranks too.
    """

    present: tuple[Job, ...]
    kept: tuple[Job, ...]
    missing: tuple[Job, ...]
    later: tuple[Job, ...]
    failed: Mapping[str, str]
    needs: Mapping[str, int]
    older: dataset.Manifest | None = None
    lost: tuple[str, ...] = ()
    listed: str = ""


@dataclass(frozen=True, slots=True)
class Filled:
    """What a run did: labels of the rows added, names that were there before, reason by source of what failed, and
    sources that are still missing because of the limit or the budget. purse: what was fetched.
    """

    added: tuple[str, ...]
    present: tuple[str, ...]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    purse: Purse


def plan(
    folder: Path,
    sources: Sequence[str],
    *,
    mode: str | None = None,
    offline: bool = False,
    limit: int | None = None,
    share: Share | None = None,
) -> Plan:
    """What of the sources an index folder lacks, without reading weights: a model is there if its id is, in a row that
    reads as much as the mode; where no mode is asked for, in a sampled or an exact one.

    limit: fingerprints to make at most. share: the rank whose models are planned; None for all of them. Raises
    UsageError if no model is named or the limit makes no sense.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"--mode is one of {', '.join(MODES)}, not {mode}.")
    if limit is not None and limit < 0:
        raise UsageError(f"--limit is at least 0, not {limit}.")
    named = set(expand(sources))
    if not named:
        raise UsageError("No model was named.", "Name a catalogue, a list, a folder of models, ids or files.")
    whole = sorted((Job(s, _name(s), mode, offline, folder / WORK) for s in named), key=lambda j: (j.name, j.source))
    jobs = whole if share is None else [job for job in whole if share.has(_model_id(job))]
    failed = _namesakes(jobs)
    fit = [job for job in jobs if job.source not in failed]
    kept = [job for job in fit if job.done.exists()]  # merged already, if a run ended between manifest and removal
    known = _Known.of(_opened(folder))
    unmade = [(job, known.has(job)) for job in fit if not job.done.exists()]
    present = [job for job, there in unmade if there]
    missing = [job for job, there in unmade if not there]
    cut = len(missing) if limit is None else limit
    needs = needs_of(((job.source, job.mode) for job in missing), offline=offline)
    older = dataset.older_manifest(folder)
    lost = _unnamed(folder, older, jobs) if older is not None else ()
    return Plan(
        tuple(present), tuple(kept), tuple(missing[:cut]), tuple(missing[cut:]), failed, needs, older, lost,
        _listed(whole, mode),
    )  # fmt: skip


def _listed(jobs: Sequence[Job], mode: str | None) -> str:
    """sha256 of the mode and of the names of models, which are the same wherever a list is read."""
    text = "\n".join([mode or "default", *(job.name for job in jobs)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _unnamed(folder: Path, older: dataset.Manifest, jobs: Sequence[Job]) -> tuple[str, ...]:
    """Ids of the rows of an index of an older version that no job makes again, one a row."""
    named = {job.name for job in jobs} | {repository(job.source) for job in jobs if is_remote(job.source)}
    for job in jobs:
        if _is_prints(job.source):
            with suppress(ProvindexError, OSError):  # a file that cannot be read makes no row
                named |= {row.name[0] for row in _identities(Path(job.source))}
    ids = [row[0] or "" for shard in older.shards for row in parquet.read_texts(folder / shard.models, ("model_id",))]
    return tuple(sorted(model_id for model_id in ids if model_id not in named))


def lines(planned: Plan, folder: Path, *, mbit: float, max_mb: float | None = None) -> list[str]:
    """A plan in words: what is there, what will be made, and what that costs."""
    if not mbit > 0:  # nor if it is no number
        raise UsageError(f"--mbit is more than 0, not {mbit:g}.")
    if max_mb is not None and not max_mb >= 0:
        raise UsageError(f"--max-mb is at least 0, not {max_mb:g}.")
    costs = cost({job.source: planned.needs[job.source] for job in planned.missing})
    counts = f"{len(planned.present)} present, {len(planned.kept)} kept from before, {len(planned.missing)} to make"
    told = [f"{counts}, {costs.models} of them from the Hub", costs.line(mbit)]
    if max_mb is not None:
        told.append(f"at most {max_mb:,g} MB are fetched now; what does not fit stays missing")
    return _of_older(planned, folder) + told


def _of_older(planned: Plan, folder: Path) -> list[str]:
    """What becomes of the rows of an index of an older version, and how those that are lost are made again."""
    older, lost = planned.older, planned.lost
    if older is None:
        return []
    versions = f"version {older.fingerprint_version}, this provindex makes version {FINGERPRINT_VERSION}"
    again = f"{older.models - len(lost):,} of its {older.models:,}" if lost else f"its {older.models:,}"
    told = [f"the index in {folder} has {versions}: {again} rows are made again"]
    if lost:
        names = " ".join(dict.fromkeys(lost))
        told.append(
            f"{len(lost):,} of its rows are lost, because no source of this run names them; "
            f"`python -m build_index build {names} -o {folder}` makes them again (of models that are not on the Hub, "
            "name the paths)"
        )
    return told


def _name(source: str) -> str:
    """The id of a model's row, as `open_model` gives it: a path's own name; a Hub reference stays as it is."""
    path = Path(source)
    if path.is_dir():
        return local_files.look_at(path).model_id
    return path.name if path.exists() else source


def _model_id(job: Job) -> str:
    """The id by which a rank is chosen: sources of one id fall to one rank, so that it decides between their rows.

    The id of a fingerprint file is that of its first row; a file that cannot be read has its own name.
    """
    if is_remote(job.source):
        return repository(job.source)
    if _is_prints(job.source):
        with suppress(ProvindexError, OSError):
            return _identities(Path(job.source))[0].name[0]
    return job.name


def _namesakes(jobs: Sequence[Job]) -> dict[str, str]:
    """Why models that have a name in common are refused, by source: answers could not tell them apart."""
    models = [job for job in jobs if not _is_prints(job.source)]
    times = Counter(job.name for job in models)
    why = "{} sources are called {}. Rename the others or leave them out."
    return {job.source: why.format(times[job.name], job.name) for job in models if times[job.name] > 1}


def _is_prints(source: str) -> bool:
    return source.endswith(".parquet")


def _opened(folder: Path) -> Index:
    """The index in a folder, a new one if there is none; of one of an older version the name alone."""
    older = dataset.older_manifest(folder)
    if older is not None:
        return Index.build((), name=older.id)
    if (folder / dataset.MANIFEST).exists():
        return Index.load(folder)
    return Index.build((), name=folder.resolve().name)


@dataclass(frozen=True)
class _Known:
    """What an index has. reads: of each row, how much of the weights was read (`READS`)."""

    index: Index
    reads: Mapping[Key, int]
    ids: Mapping[str, int]
    hashes: frozenset[str]

    @classmethod
    def of(cls, index: Index) -> _Known:
        shards = {id(entry.rows): entry.rows for entry in index}
        modes = {number: rows.texts("mode") for number, rows in shards.items()}
        reads = {entry.key: READS.get(modes[id(entry.rows)][entry.number], 0) for entry in index}
        ids: dict[str, int] = {}
        for entry in index:
            ids[entry.model_id] = max(ids.get(entry.model_id, 0), reads[entry.key])
        return cls(index, reads, ids, frozenset(e.row_sha256 for e in index))

    def has(self, job: Job) -> bool:
        """Whether a model, or all rows of a fingerprint file, are there, or rows that say more; a file that cannot be
        read is missing.

        An id of the Hub without a revision is there in any revision.
        """
        if not _is_prints(job.source):
            wanted = DEFAULT_READS if job.mode is None else READS[job.mode]
            if not is_remote(job.source):
                return self.ids.get(job.name, -1) >= wanted
            return any(self.reads[entry.key] >= wanted for entry in self.index.find(job.name))
        try:
            return all(self._covers(row) for row in _identities(Path(job.source)))
        except (ProvindexError, OSError):
            return False

    def _covers(self, row: Row) -> bool:
        """Whether a row is there, or one of its name that says more."""
        alike = [entry for entry in self.index.find(row.name[0]) if entry.key[:3] == row.name]
        return row.said.digest in self.hashes or any(self.reads[entry.key] > row.said.reads for entry in alike)


def _identities(path: Path) -> list[Row]:
    """Who the rows of a fingerprint file are, and what they say."""
    found = (dict(zip(NAMED, row, strict=True)) for row in parquet.read_texts(path, NAMED))
    return [
        Row(
            (row["model_id"] or "", row["revision"] or "", row["variant"] or ""),
            Said(row["mode"] or "", row["content_sha256"], row["row_sha256"] or ""),
        )
        for row in found
    ]


def fill(
    folder: Path,
    sources: Sequence[str],
    *,
    facts: Mapping[str, Facts] | None = None,
    processes: int | None = None,
    mode: str | None = None,
    offline: bool = False,
    limit: int | None = None,
    max_mb: float | None = None,
    mbit: float = MBIT,
    report: Say = lambda _: None,
    worker: Worker | None = None,
) -> Filled:
    """Fingerprint what is missing and merge it; one failed model never stops the rest.

    facts: of a catalogue, by id. processes: at a time, the number of cores if None. mode, limit: as for `plan`. max_mb:
    MB to fetch at most; models whose estimate does not fit in what is left of it stay missing. mbit: of the line, for
    the plan that is told first. report: told each step. worker: in place of `run`. When it is interrupted, everything
    that was finished is kept for the next run.
    """
    planned = plan(folder, sources, mode=mode, offline=offline, limit=limit)
    return carry_out(
        planned, folder, facts=facts, processes=processes, max_mb=max_mb, mbit=mbit, report=report, worker=worker
    )


def carry_out(
    planned: Plan,
    folder: Path,
    *,
    facts: Mapping[str, Facts] | None = None,
    processes: int | None = None,
    max_mb: float | None = None,
    mbit: float = MBIT,
    report: Say = lambda _: None,
    worker: Worker | None = None,
) -> Filled:
    """Make what a plan of this folder lacks, as `fill` does. UsageError for numbers that make no sense."""
    if processes is not None and processes < 1:
        raise UsageError(f"--processes is at least 1, not {processes}.")
    for line in lines(planned, folder, mbit=mbit, max_mb=max_mb):
        report(line)
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    for job in planned.kept:  # killed after it was done, before its mark was removed
        job.running.unlink(missing_ok=True)
    purse = Purse(None if max_mb is None else max_mb * MB, planned.needs)
    waiting = _Waiting.of(folder, planned, facts or {}, report)
    make(planned.missing, processes or os.cpu_count() or 1, worker or run, waiting.settle, purse)
    waiting.finish()
    _sweep(folder / WORK)
    with suppress(OSError):  # not empty: failures, or fingerprints of sources that were not named this time
        (folder / WORK).rmdir()
    return Filled(
        added=tuple(waiting.added),
        present=tuple(job.name for job in planned.present),
        failed=dict(waiting.failed),
        missing=(*(job.source for job in planned.later), *purse.left),
        purse=purse,
    )


# --- making fingerprints ---


def make(jobs: Sequence[Job], processes: int, worker: Worker, settle: Settle, purse: Purse) -> None:
    """Make the fingerprints of jobs as far as the budget goes; `settle` is told each job that ended, and how.

    If a process dies, every job that was being worked on is run again alone, so that the one which it died of is told
    from those that merely ran beside it; then the rest goes on.
    """
    left = {job.source: job for job in jobs}

    def settled(job: Job, outcome: Outcome) -> None:
        del left[job.source]
        job.running.unlink(missing_ok=True)
        purse.end(job.source, outcome.fetched, outcome.reason is None)
        if outcome.over:
            purse.leave(job.source)
        else:
            settle(job, outcome)

    for job in jobs:
        job.running.unlink(missing_ok=True)
    while left:
        _sweep(jobs[0].work)
        _in_pool(list(left.values()), processes, worker, settled, purse)
        purse.held.clear()
        for job in [job for job in left.values() if job.done.exists()]:  # whose answer was lost with the pool
            settled(job, Outcome())
        for source in purse.left:
            left.pop(source, None)
        suspects = [job for job in left.values() if job.running.exists()] or list(left.values())[:1]
        for job in suspects:
            if purse.holds(job.source):
                settled(job, _alone(replace(job, most=purse.rest(job.source)), worker))


def _in_pool(jobs: Sequence[Job], processes: int, worker: Worker, settled: Settle, purse: Purse) -> None:
    """Run jobs, `processes` at a time, until all have ended or a process dies; those that it takes with it are not
    settled, nor are those that the budget does not hold.
    """
    pool = ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn"), _end_with_parent)
    waiting, running, broken = deque(jobs), dict[Future[Outcome], Job](), False
    try:
        while running or (waiting and not broken):
            while waiting and len(running) < processes and not broken:
                if not purse.holds(waiting[0].source):
                    if running:  # they may need less than they were expected to
                        break
                    purse.leave(waiting.popleft().source)
                    continue
                try:
                    future = pool.submit(_marked, worker, replace(waiting[0], most=purse.rest(waiting[0].source)))
                except BrokenProcessPool:
                    broken = True
                    break
                running[future] = waiting.popleft()
                purse.begin(running[future].source)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken = True
                else:
                    settled(job, Outcome(f"{type(error).__name__}: {error}") if error else future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """In a process of a pool: end it if the process that gives it work is killed; it would wait for more forever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _sweep(work: Path) -> None:
    """Remove what processes that died were writing; nothing may be running."""
    for path in work.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _marked(worker: Worker, job: Job) -> Outcome:
    """Run a job; its mark stays only if the process dies."""
    job.running.touch()
    try:
        return worker(job)
    finally:
        job.running.unlink(missing_ok=True)


def run(job: Job) -> Outcome:
    """Make one fingerprint and keep it."""
    if not is_remote(job.source):
        return Outcome(_made(job))
    with metered(job.most) as meter:
        try:
            return Outcome(_made(job), meter.bytes)
        except BudgetError as error:
            return Outcome(str(error), meter.bytes, over=True)


def _made(job: Job) -> str | None:
    """Make the fingerprint of a job; why it cannot be made, None if it was."""
    try:
        if _is_prints(job.source):
            parquet.read_fingerprints(Path(job.source))
            with replacing(job.done) as temporary:
                shutil.copyfile(job.source, temporary)
        else:
            made = api.resolve(job.source, mode=job.mode, offline=job.offline)
            parquet.write_fingerprint(made.fingerprint, job.done)
    except BudgetError:
        raise
    except (ProvindexError, OSError, MemoryError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _alone(job: Job, worker: Worker) -> Outcome:
    """Run one job in a process of its own; of a process that ended, the reason has the signal or the status."""
    context = get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_answer, args=(worker, job, answers))
    process.start()
    process.join()
    status = process.exitcode or 0
    if status == 0:
        return Outcome(*answers.get())
    if status == -9:
        return Outcome("The process that read it was killed (signal 9), as the system does when memory runs out.")
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return Outcome(f"The process that read it ended {how}.")


def _answer(worker: Worker, job: Job, answers: Any) -> None:
    outcome = _marked(worker, job)
    reason = outcome.reason[:10_000] if outcome.reason else None  # what fits a pipe that nobody reads yet
    answers.put((reason, outcome.fetched, outcome.over))


# --- merging them ---


@dataclass
class _Waiting:
    """Fingerprints on their way into shards.

    jobs: not merged yet, in the order of names. pending: sources that are still being made. failures: what the list of
    failures says, of this run and of earlier ones; failed: of this run.
    """

    folder: Path
    facts: Mapping[str, Facts]
    report: Say
    jobs: list[Job]
    pending: set[str]
    failures: dict[str, str]
    failed: dict[str, str]
    added: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, planned: Plan, facts: Mapping[str, Facts], report: Say) -> _Waiting:
        over = {job.source for job in (*planned.present, *planned.kept)}
        earlier = {source: reason for source, reason in recorded(folder).items() if source not in over}
        jobs = sorted((*planned.kept, *planned.missing), key=lambda job: (job.name, job.source))
        pending = {job.source for job in planned.missing}
        return cls(folder, facts, report, jobs, pending, {**earlier, **planned.failed}, dict(planned.failed))

    def settle(self, job: Job, outcome: Outcome) -> None:
        """Note that a job ended; merge what comes first in the order of names as soon as it fills a shard."""
        reason = outcome.reason
        self.pending.discard(job.source)
        self.report(f"failed   {job.source}: {reason}" if reason else f"made     {job.source}")
        if reason:
            self._fail({job.source: reason})
        else:
            self.failures.pop(job.source, None)
        first = takewhile(lambda j: j.source not in self.pending, self.jobs)
        ready = [j for j in first if j.done.exists()]
        if len(ready) >= ROWS_PER_SHARD:
            self._merge(ready[:ROWS_PER_SHARD])

    def finish(self) -> None:
        """Merge the rest, and write the list of failures."""
        while ready := [job for job in self.jobs if job.done.exists()][:ROWS_PER_SHARD]:
            self._merge(ready)
        record(self.folder, self.failures)

    def _merge(self, ready: Sequence[Job]) -> None:
        added, failed = merge(self.folder, ready, self.facts)
        self.added += added
        self.jobs = self.jobs[self.jobs.index(ready[-1]) + 1 :]
        for source, reason in failed.items():
            self.report(f"failed   {source}: {reason}")
        self._fail(failed)

    def _fail(self, failed: Mapping[str, str]) -> None:
        self.failed |= failed
        self.failures |= failed
        record(self.folder, self.failures)


def merge(folder: Path, jobs: Iterable[Job], facts: Mapping[str, Facts]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Write finished fingerprints as shards and remove their files; labels of what was added, and what cannot be.

    At most ROWS_PER_SHARD fingerprints are held at a time. Other weights under a name that is taken are a failure; a
    row takes the place of one that says less, and of all rows of an older version.
    """
    finished = list(jobs)
    rows, failed = _rows(finished)
    index = _opened(folder)
    chosen, clashes = _chosen(index, rows)
    added: list[str] = []
    for start in range(0, len(chosen), ROWS_PER_SHARD):
        part = [stated(fp, facts.get(fp.model_id)) for fp in _loaded(chosen[start : start + ROWS_PER_SHARD])]
        added += replace_rows(folder, part, name=index.info.id, who=WHO, older=True)
    for job in finished:  # after the manifest names the shards: until then they can be merged again
        job.done.unlink(missing_ok=True)
    return tuple(added), failed | clashes


def _rows(jobs: Iterable[Job]) -> tuple[list[tuple[Row, Job]], dict[str, str]]:
    """The rows of finished fingerprints, in order, and reason by source of files that cannot be read any more."""
    rows: list[tuple[Row, Job]] = []
    failed: dict[str, str] = {}
    for job in jobs:
        try:
            rows += [(identity, job) for identity in _identities(job.done)]
        except (ProvindexError, OSError) as error:
            failed[job.source] = str(error)
    return sorted(rows, key=lambda row: (row[0].name, row[0].said.digest, row[1].source)), failed


def _chosen(index: Index, rows: Sequence[tuple[Row, Job]]) -> tuple[list[tuple[Row, Job]], dict[str, str]]:
    """The rows that the index takes, and reason by source of those whose name other weights have."""
    choice, clashes = Choice.of(index), dict[str, str]()
    chosen: list[tuple[Row, Job]] = []
    for row, job in rows:
        what = choice.take(row.name, row.said)
        if what is Standing.CLASH:
            clashes[job.source] = CLASH.format(name=row.name[0])
        chosen += [(row, job)] if what in TAKEN else []
    return chosen, clashes


def _loaded(rows: Iterable[tuple[Row, Job]]) -> Iterator[Fingerprint]:
    """The fingerprints of rows, each by its hash: a file may have several."""
    for row, job in rows:
        read = zip(_identities(job.done), parquet.read_fingerprints(job.done), strict=True)
        yield from (fp for identity, fp in read if identity == row)


def stated(fp: Fingerprint, facts: Facts | None) -> Fingerprint:
    """A fingerprint with what a catalogue knows of its model; the rest stays as the model's card says."""
    if facts is None:
        return fp
    return replace(
        fp,
        license=facts.license or fp.license,
        family=facts.family or fp.family,
        parents=facts.parents or fp.parents,
        source=facts.source or fp.source,
    )


# --- failures ---


def recorded(folder: Path) -> dict[str, str]:
    """The reason by source of what failed when it was last tried; empty if there is no list that can be read."""
    try:
        kept = json.loads((folder / WORK / FAILURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(source): str(reason) for source, reason in kept.items()} if isinstance(kept, dict) else {}


def record(folder: Path, failed: Mapping[str, str]) -> None:
    """Write the list of failures, or remove it when there is none."""
    path = folder / WORK / FAILURES
    if not failed:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(failed, indent=1, sort_keys=True) + "\n", encoding="utf-8")
