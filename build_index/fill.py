"""Fill an index from many models, in parallel processes, so that it can be interrupted at any time.

Each finished fingerprint is kept at once in DIR/.work, one file a source. They are merged into shards in the order of
their names, ROWS_PER_SHARD at a time: the same models give the same bytes, whatever the number of processes and the
order in which they finish. What failed is listed with its reason in DIR/.work/failures.json and tried again by the next
run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from provindex import api
from provindex.api import Index
from provindex.common.errors import ProvindexError, UsageError
from provindex.common.files import replacing
from provindex.evidence.panels import PANELS_VERSION
from provindex.fingerprint import parquet
from provindex.fingerprint.panels import LAYOUT
from provindex.fingerprint.record import FINGERPRINT_VERSION, MODES, Fingerprint
from provindex.formats import local_files
from provindex.index import dataset
from provindex.index.collection import ROWS_PER_SHARD
from provindex.index.fill import CLASH
from provindex.models.listing import expand

WORK, FAILURES = ".work", "failures.json"
WHO = "index"  # the origin in the names of shards
Say = Callable[[str], None]
Row = tuple[str, str, str, str]  # id, revision, variant, row hash


@dataclass(frozen=True, slots=True)
class Facts:
    """What a catalogue knows about a model; empty where it knows nothing, then the model's own card stands."""

    license: str = ""
    family: str = ""
    parents: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One source. name: the id that its row will have, or the file's name of a fingerprint file."""

    source: str
    name: str
    mode: str
    offline: bool
    work: Path

    @property
    def key(self) -> str:
        """Names the file of its fingerprint: another mode or another version of fingerprints is another file."""
        place = str(Path(self.source).resolve()) if Path(self.source).exists() else self.source
        text = f"{place}\n{self.mode}\n{FINGERPRINT_VERSION}.{PANELS_VERSION}.{LAYOUT}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def done(self) -> Path:
        return self.work / f"{self.key}.parquet"

    @property
    def running(self) -> Path:
        """There while a process works on it, or died of it."""
        return self.work / f"{self.key}.running"


Worker = Callable[[Job], str | None]  # makes a fingerprint and keeps it; returns why it failed, or None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, each in the order of names.

    present: in the index. kept: made by an earlier run, not merged. missing: to be made. later: missing too, beyond the
    limit. failed: cannot be made, reason by source.
    """

    present: tuple[Job, ...]
    kept: tuple[Job, ...]
    missing: tuple[Job, ...]
    later: tuple[Job, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Filled:
    """What a run did: labels of the rows added, names that were there before, reason by source of what failed, and
    sources that are still missing because of the limit.
    """

    added: tuple[str, ...]
    present: tuple[str, ...]
    failed: Mapping[str, str]
    missing: tuple[str, ...]


def plan(
    folder: Path, sources: Sequence[str], *, mode: str = "exact", offline: bool = False, limit: int | None = None
) -> Plan:
    """What of the sources an index folder lacks, without reading weights: a model is there if its id is.

    limit: fingerprints to make at most. Raises UsageError if no model is named or the limit makes no sense.
    """
    if mode not in MODES:
        raise UsageError(f"--mode is one of {', '.join(MODES)}, not {mode}.")
    if limit is not None and limit < 0:
        raise UsageError(f"--limit is at least 0, not {limit}.")
    named = set(expand(sources))
    if not named:
        raise UsageError("No model was named.", "Name a catalogue, a list, a folder of models, ids or files.")
    jobs = sorted((Job(s, _name(s), mode, offline, folder / WORK) for s in named), key=lambda j: (j.name, j.source))
    failed = _namesakes(jobs)
    fit = [job for job in jobs if job.source not in failed]
    kept = [job for job in fit if job.done.exists()]  # merged already, if a run ended between manifest and removal
    known = _Known.of(_opened(folder))
    unmade = [(job, known.has(job)) for job in fit if not job.done.exists()]
    present = [job for job, there in unmade if there]
    missing = [job for job, there in unmade if not there]
    cut = len(missing) if limit is None else limit
    return Plan(tuple(present), tuple(kept), tuple(missing[:cut]), tuple(missing[cut:]), failed)


def _name(source: str) -> str:
    """The id of a model's row, as `open_model` gives it: a path's own name; a Hub reference stays as it is."""
    path = Path(source)
    if path.is_dir():
        return local_files.look_at(path).model_id
    return path.name if path.exists() else source


def _namesakes(jobs: Sequence[Job]) -> dict[str, str]:
    """Why models that have a name in common are refused, by source: answers could not tell them apart."""
    models = [job for job in jobs if not _is_prints(job.source)]
    times = Counter(job.name for job in models)
    why = "{} sources are called {}. Rename the others or leave them out."
    return {job.source: why.format(times[job.name], job.name) for job in models if times[job.name] > 1}


def _is_prints(source: str) -> bool:
    return source.endswith(".parquet")


def _opened(folder: Path) -> Index:
    if (folder / dataset.MANIFEST).exists():
        return Index.load(folder)
    return Index.build((), name=folder.resolve().name)


@dataclass(frozen=True)
class _Known:
    """What an index has: for references of the Hub, for names of folders, for rows of fingerprint files."""

    index: Index
    ids: frozenset[str]
    hashes: frozenset[str]

    @classmethod
    def of(cls, index: Index) -> _Known:
        return cls(index, frozenset(e.model_id for e in index), frozenset(e.row_sha256 for e in index))

    def has(self, job: Job) -> bool:
        """Whether a model, or all rows of a fingerprint file, are there; a file that cannot be read is missing.

        An id of the Hub without a revision is there in any revision.
        """
        if not _is_prints(job.source):
            return job.name in (self.ids if Path(job.source).exists() else self.index)
        try:
            return all(identity[-1] in self.hashes for identity in _identities(Path(job.source)))
        except (ProvindexError, OSError):
            return False


def _identities(path: Path) -> list[Row]:
    """Id, revision, variant and row hash of each row of a fingerprint file."""
    found = parquet.read_texts(path, ("model_id", "revision", "variant", "row_sha256"))
    return [
        (model_id or "", revision or "", variant or "", digest or "") for model_id, revision, variant, digest in found
    ]


def fill(
    folder: Path,
    sources: Sequence[str],
    *,
    facts: Mapping[str, Facts] | None = None,
    processes: int | None = None,
    mode: str = "exact",
    offline: bool = False,
    limit: int | None = None,
    report: Say = lambda _: None,
    worker: Worker | None = None,
) -> Filled:
    """Fingerprint what is missing and merge it; one failed model never stops the rest.

    facts: of a catalogue, by id. processes: at a time, the number of cores if None. report: told each step. worker: in
    place of `run`. When it is interrupted, everything that was finished is kept for the next run.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"--processes is at least 1, not {processes}.")
    planned = plan(folder, sources, mode=mode, offline=offline, limit=limit)
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    report(f"{len(planned.present)} present, {len(planned.kept)} kept from before, {len(planned.missing)} to make")
    waiting = _Waiting.of(folder, planned, facts or {}, report)
    make(planned.missing, processes or os.cpu_count() or 1, worker or run, waiting.settle)
    waiting.finish()
    _sweep(folder / WORK)
    with suppress(OSError):  # not empty: failures, or fingerprints of sources that were not named this time
        (folder / WORK).rmdir()
    return Filled(
        added=tuple(waiting.added),
        present=tuple(job.name for job in planned.present),
        failed=dict(waiting.failed),
        missing=tuple(job.source for job in planned.later),
    )


# --- making fingerprints ---


def make(jobs: Sequence[Job], processes: int, worker: Worker, settle: Callable[[Job, str | None], None]) -> None:
    """Make the fingerprints of jobs; `settle` is told each job that ended, and why it failed if it did.

    If a process dies, every job that was being worked on is run again alone, so that the one which it died of is told
    from those that merely ran beside it; then the rest goes on.
    """
    left = {job.source: job for job in jobs}

    def settled(job: Job, reason: str | None) -> None:
        del left[job.source]
        job.running.unlink(missing_ok=True)
        settle(job, reason)

    for job in jobs:
        job.running.unlink(missing_ok=True)
    while left:
        _sweep(jobs[0].work)
        _in_pool(list(left.values()), processes, worker, settled)
        for job in [job for job in left.values() if job.done.exists()]:  # whose answer was lost with the pool
            settled(job, None)
        suspects = [job for job in left.values() if job.running.exists()] or list(left.values())[:1]
        for job in suspects:
            settled(job, _alone(job, worker))


def _in_pool(jobs: Sequence[Job], processes: int, worker: Worker, settled: Callable[[Job, str | None], None]) -> None:
    """Run jobs until all have ended or a process dies; those that it takes with it are not settled."""
    pool = ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn"), _end_with_parent)
    try:
        futures: dict[Future[str | None], Job] = {}
        with suppress(BrokenProcessPool):  # those that were not handed over stay for the next pool
            for job in jobs:
                futures[pool.submit(_marked, worker, job)] = job
        for future in as_completed(futures):
            error = future.exception()
            if not isinstance(error, BrokenProcessPool):
                settled(futures[future], f"{type(error).__name__}: {error}" if error else future.result())
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


def _marked(worker: Worker, job: Job) -> str | None:
    """Run a job; its mark stays only if the process dies."""
    job.running.touch()
    try:
        return worker(job)
    finally:
        job.running.unlink(missing_ok=True)


def run(job: Job) -> str | None:
    """Make one fingerprint and keep it; why it failed, or None."""
    try:
        if _is_prints(job.source):
            parquet.read_fingerprints(Path(job.source))
            with replacing(job.done) as temporary:
                shutil.copyfile(job.source, temporary)
        else:
            made = api.resolve(job.source, mode=job.mode, offline=job.offline)
            parquet.write_fingerprint(made.fingerprint, job.done)
    except (ProvindexError, OSError, MemoryError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _alone(job: Job, worker: Worker) -> str | None:
    """Run one job in a process of its own; why it failed, with the signal that ended the process if one did."""
    context = get_context("spawn")
    reasons = context.SimpleQueue()
    process = context.Process(target=_answer, args=(worker, job, reasons))
    process.start()
    process.join()
    status = process.exitcode or 0
    if status == 0:
        return None if reasons.empty() else str(reasons.get())
    if status == -9:
        return "The process that read it was killed (signal 9), as the system does when memory runs out."
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return f"The process that read it ended {how}."


def _answer(worker: Worker, job: Job, reasons: Any) -> None:
    reason = _marked(worker, job)
    if reason:
        reasons.put(reason[:10_000])  # what fits a pipe that nobody reads yet


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

    def settle(self, job: Job, reason: str | None) -> None:
        """Note that a job ended; merge what comes first in the order of names as soon as it fills a shard."""
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

    At most ROWS_PER_SHARD fingerprints are held at a time. Other weights under a name that is taken are a failure.
    """
    finished = list(jobs)
    rows, failed = _rows(finished)
    index = _opened(folder)
    chosen, clashes = _without_clashes(index, rows)
    added: list[str] = []
    for start in range(0, len(chosen), ROWS_PER_SHARD):
        part = Index.build((), name=index.info.id)
        stating = (stated(fp, facts.get(fp.model_id)) for fp in _loaded(chosen[start : start + ROWS_PER_SHARD]))
        added += [f"{fp.model_id} [{fp.variant}]" if fp.variant else fp.model_id for fp in stating if part.add(fp)]
        part.save(folder, who=WHO)
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
    return sorted(rows, key=lambda row: (row[0], row[1].source)), failed


def _without_clashes(index: Index, rows: Sequence[tuple[Row, Job]]) -> tuple[list[tuple[Row, Job]], dict[str, str]]:
    """The rows that the index lacks, once each, and reason by source of those whose name other weights have."""
    taken = {entry.key[:3]: entry.key[3] for entry in index}
    chosen: list[tuple[Row, Job]] = []
    clashes: dict[str, str] = {}
    for row, job in rows:
        there = taken.setdefault(row[:3], row[3])
        if there != row[3]:
            clashes[job.source] = CLASH.format(name=row[0])
        elif row not in {entry.key for entry in index.find(row[0])} and (not chosen or chosen[-1][0] != row):
            chosen.append((row, job))
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
