"""Publish an index: what the dataset lacks, its card and its manifest, in one commit on top of the one that was read.

    python -m build_index publish DIR --to REPO [--private] [--compact] [--dry-run]

Nothing that others contributed is lost: the dataset is read first, rows that it has are not sent again, and shards that
were merged since its last manifest are checked and enter the new one. If somebody commits in between, it starts again.
Rows take the place of rows of the dataset that say less. Rows of an older fingerprint version, which this provindex
cannot read, leave the dataset in the same commit.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from build_index import calibrate, card, columns
from provindex.api import Index
from provindex.common.errors import ConflictError, DatasetNotFoundError, NetworkError, UnansweredError, UsageError
from provindex.fingerprint.record import FINGERPRINT_VERSION
from provindex.hub import client as hub
from provindex.hub import pull
from provindex.index import dataset
from provindex.index import pulled as store
from provindex.index.collection import ROWS_PER_SHARD
from provindex.index.pulled import LeftOut
from provindex.index.replace import TAKEN, Choice, Said, Standing, name_of, replace_rows

ATTEMPTS = 5
WHO = "index"  # the origin in the names of shards
CARD, REFERENCE = "README.md", "columns.md"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """What was published, or would be: files that are sent and removed, and models of the dataset afterwards.

    commit, url: None in a dry run, and where the dataset had everything already. left_out: shards of the dataset that
    are not what they say, which the manifest does not list.
    """

    repo: str
    models: int
    sent: tuple[tuple[str, int], ...]
    removed: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    commit: str | None = None
    url: str | None = None


def publish(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    compact: bool = False,
    dry_run: bool = False,
    report: Say = lambda _: None,
    wait: Callable[[float], None] = time.sleep,
) -> Published:
    """Bring a dataset up to an index folder; the dataset is made if there is none.

    private: of a new dataset. compact: put small shards together under new names, in the same commit. dry_run: say what
    would be sent. Raises IndexFormatError, NetworkError.
    """
    repo, revision = store.parse(repo)
    if revision is not None:
        raise UsageError(f"--to names a revision of {repo}.", "An index is published on the main branch.")
    Index.load(folder)  # before anything is made on the Hub
    if not dry_run:
        hub.signed_in_as(repo)
        hub.create_dataset(repo, private=private)
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(folder, repo, compact, dry_run, report)
        except (ConflictError, UnansweredError) as error:
            if attempt + 1 == ATTEMPTS:
                raise
            report(f"again: {error.message}")
            wait(0.5 * 2**attempt)
    raise NetworkError(f"{repo} could not be published in {ATTEMPTS} attempts.", "Run the command again.")


def _attempt(folder: Path, repo: str, compact: bool, dry_run: bool, report: Say) -> Published:
    remote = _remote(repo, dry_run)
    outdated = pull.older(remote)
    if outdated is not None:
        report(
            f"{repo} has fingerprint version {outdated.fingerprint_version}, this provindex makes version "
            f"{FINGERPRINT_VERSION}: its {outdated.models:,} rows are not merged, and they are removed"
        )
    with tempfile.TemporaryDirectory(prefix="provindex-publish-") as scratch:
        work, left_out = _merged(folder, remote, Path(scratch), compact, anew=outdated is not None)
        manifest = dataset.read_manifest(work)
        dataset.write_manifest(work, replace(manifest, id=repo, commit=None))
        (work / CARD).write_text(card.render(Index.load(work), repo), encoding="utf-8")
        (work / REFERENCE).write_text(columns.markdown(), encoding="utf-8")
        files = _to_send(work, manifest, remote)
        kept = {path for shard in manifest.shards for path in (shard.models, shard.panels)}
        levels = outdated.calibration if outdated is not None else None
        refused = {o.path for o in left_out} | {o.path.replace(dataset.MODELS, dataset.PANELS) for o in left_out}
        gone = {p for p in remote.files or () if dataset.is_shard(p) or p == levels}
        removed = tuple(sorted(gone - kept - refused - {manifest.calibration}))
        sent = tuple((path, source.stat().st_size) for path, source in files.items())
        done = Published(repo, manifest.models, sent, removed, left_out)
        if dry_run or not (files or removed):
            return done
        report(f"sending {len(files)} files, {sum(size for _, size in sent) / 1e6:,.1f} MB")
        made = hub.commit(remote, files, f"{manifest.models:,} models", _said(manifest), remove=removed)
        return replace(done, commit=made.commit, url=made.url)


def _remote(repo: str, dry_run: bool) -> hub.Remote:
    """The dataset as it is; in a dry run one that is not there yet is empty."""
    try:
        return hub.with_files(hub.dataset_at(repo, None))
    except DatasetNotFoundError:
        if not dry_run:
            raise
        return hub.Remote(repo, "main", "", files={})


def _merged(
    folder: Path, remote: hub.Remote, scratch: Path, compact: bool, *, anew: bool
) -> tuple[Path, tuple[LeftOut, ...]]:
    """An index folder with the rows of the dataset and of the folder, and what of the dataset was refused.

    anew: nothing of the dataset is taken.
    """
    work = scratch / "index"
    left_out: tuple[LeftOut, ...] = ()
    if anew or not any(map(dataset.is_shard, remote.files or ())):
        shutil.copytree(folder, work, ignore=lambda _, names: [n for n in names if n.startswith(".")])
        (work / dataset.MANIFEST).chmod(0o644)
    else:
        got = pull.assemble(remote, work, scratch / "incoming", store.current(remote.repo))
        left_out = got.left_out
        _add(folder, work)
    if compact:
        work = _compacted(work, scratch / "compacted")
    _carry_calibration(folder, work)
    return work, left_out


def _add(folder: Path, work: Path) -> None:
    """Add the rows of a folder that the dataset lacks. They take the place of those that say less; one that says other
    than a row of the dataset that was read whole, too, stands beside it."""
    ours, theirs = Index.load(folder), Index.load(work)
    there, choice = {entry.key for entry in theirs}, Choice.of(theirs)
    lacking = sorted((entry for entry in ours if entry.key not in there), key=lambda entry: entry.key)
    what = [choice.take(name_of(entry), Said.by(entry)) for entry in lacking]
    taken = [entry for entry, one in zip(lacking, what, strict=True) if one in TAKEN]
    for start in range(0, len(taken), ROWS_PER_SHARD):
        replace_rows(work, [e.load() for e in taken[start : start + ROWS_PER_SHARD]], who=WHO, compact=False)
    beside = [entry for entry, one in zip(lacking, what, strict=True) if one is Standing.CLASH]
    if beside:
        Index(ours.info, beside).save(work, who=WHO)


def _compacted(work: Path, target: Path) -> Path:
    """The same rows in as few shards as their size allows."""
    manifest = dataset.read_manifest(work)
    Index.load(work).save(target, who=WHO)
    shards = dataset.read_manifest(target).shards
    if len(shards) >= len(manifest.shards):
        return work
    if manifest.calibration is not None:
        (target / manifest.calibration).parent.mkdir()
        shutil.copy2(work / manifest.calibration, target / manifest.calibration)
    dataset.write_manifest(target, replace(manifest, shards=shards))
    return target


def _carry_calibration(folder: Path, work: Path) -> None:
    """Give the index its chance levels: the folder's, else the dataset's, else those of this repository."""
    ours, there = (dataset.read_manifest(place).calibration for place in (folder, work))
    if ours is not None and ours != there:
        calibrate.attach(work, (folder / ours).read_bytes())
    elif there is None:
        calibrate.attach(work, calibrate.OUTPUT.read_bytes())


def _to_send(work: Path, manifest: dataset.Manifest, remote: hub.Remote) -> dict[str, Path]:
    """Files of the work folder that the dataset lacks or has otherwise."""
    names = [path for shard in manifest.shards for path in (shard.models, shard.panels)]
    names += [dataset.MANIFEST, CARD, REFERENCE, *([manifest.calibration] if manifest.calibration else [])]
    there = remote.files or {}
    return {name: work / name for name in names if name not in there or not pull.same(work / name, there[name])}


def _said(manifest: dataset.Manifest) -> str:
    return f"Fingerprint version {manifest.fingerprint_version}, index revision {manifest.revision}."
