"""Get an index from the Hub: only what is missing, digests before anything counts, one step from old to new.

The manifest of the dataset says which shards it consists of and their digests. Shards that lie beside it, because a
contribution was merged after the manifest was written, are accepted when every row of theirs is what its own hash says:
what was measured, that is; id, family and license are what the contributor says.
Files arrive in `incoming` under the name of their digest, so a pull that was cut goes on where it stopped, also after
the dataset has moved on; the index folder gets its name when all of it is there, and then the switch is one rename.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provindex.common import places
from provindex.common.errors import IndexFormatError, NetworkError, UsageError
from provindex.common.files import LOCK, file_sha256, locked, now
from provindex.fingerprint import parquet
from provindex.hub import client as hub
from provindex.index import dataset
from provindex.index import pulled as store
from provindex.index.fill import Built
from provindex.index.pulled import Current, LeftOut, Source
from provindex.index.verify import verify_rows
from provindex.verdict.calibration import is_name
from provindex.verdict.calibration import load as load_calibration

DOWNLOADS = 8  # at a time: shards are small, and most of the time of each is a round trip
INCOMING = "incoming"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of the dataset that the index needs. sha256: what the manifest says, None for what is not in it."""

    file: hub.RemoteFile
    sha256: str | None = None

    @property
    def digest(self) -> str:
        """By which the file is known before it is here: its sha256, else its git id."""
        return self.sha256 or self.file.sha256 or self.file.blob


@dataclass(frozen=True)
class Plan:
    """What an index at a commit consists of.

    published: the manifest, None if there is none. newer: (models, panels) of shards that it does not list. files: by
    path. missing: those that are not here. left_out: shards that were refused before, or lack a half.
    """

    remote: hub.Remote
    published: dataset.Manifest | None
    newer: tuple[tuple[str, str], ...]
    files: Mapping[str, Wanted]
    missing: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def bytes_missing(self) -> int:
        """Bytes that a pull would fetch, those of an unfinished one included."""
        return sum(self.files[path].file.size for path in self.missing)

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return sum(wanted.file.size for wanted in self.files.values())


@dataclass(frozen=True)
class Pulled:
    """What a pull did. fetched: files; bytes_fetched: that came over the network now; bytes_total: of the index.

    made, kept: rows that were made here of another tool's archive, and those that an interrupted pull had made.
    """

    current: Current
    folder: Path
    fetched: int = 0
    bytes_fetched: int = 0
    bytes_total: int = 0
    changed: bool = True
    made: int = 0
    kept: int = 0


def pull(reference: str | None = None, *, offline: bool = False, progress: Progress | None = None) -> Pulled:
    """Put a dataset, `org/name[@revision]`, in force on this machine; the default one if None.

    offline: only switch to what is here already. Raises UsageError for what names no dataset, NetworkError,
    IndexFormatError if the dataset is missing, of another version or not what its digests say; the index that was in
    force then stays.
    """
    repo, revision = store.parse(reference or places.default_dataset())
    place = store.place(repo)
    if revision is not None and place.is_dir():
        with locked(place):
            old = store.current(repo)
            here = _here(old, revision)
            if here is not None and (offline or (len(revision) == 40 and _is_sound(repo, here))):
                return _switched(Current(repo, here, revision, _now()), old)
    if offline or hub.offline_by_environment():
        raise NetworkError(
            f"{reference or repo} was not pulled: offline the Hub is not asked.",
            "Run it without --offline and HF_HUB_OFFLINE; what was pulled before still answers.",
        )
    remote = hub.dataset_at(repo, revision)
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        new = Current(repo, remote.commit, remote.asked, _now())
        if store.is_whole(store.revision_folder(repo, remote.commit)) and _is_sound(repo, remote.commit):
            return _switched(new, store.current(repo))
        return _fetched(hub.with_files(remote), new, store.current(repo), progress)


def pull_made(
    reference: str,
    source: Source,
    recipe: str,
    make: Callable[[Path, Path], Built],
    *,
    offline: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Put a dataset of another tool, `org/name[@revision]`, in force: its archive is fetched, and rows are made of it.

    source: the archive. recipe: a sha256 of what rows follow from besides it. make: adds what is missing to the index
    in a folder, from the archive at a path; an interrupted pull goes on in that folder. Nothing is fetched that is
    here, no row made that is there, and the Hub is not asked if there is nothing to do. Raises as `fetch_file` and
    `make` do, IndexFormatError if no row could be made; the index that was in force then stays.
    """
    repo, revision = store.parse(reference)
    _check_digest(source.sha256)
    commit = source.sha256[:24] + recipe[:16]
    place, folder = store.place(repo), store.revision_folder(repo, commit)
    new = Current(repo, commit, revision or "main", _now(), source=source)
    if offline and not place.is_dir():
        raise _not_here(source.path, repo)
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        old = store.current(repo)
        if store.is_whole(folder) and _is_sound(repo, commit):
            return _switched(new, old)
        archive, received = _file(reference, source.path, source.sha256, offline, progress)
        staged = place / INCOMING / commit
        staged.mkdir(parents=True, exist_ok=True)
        built = make(archive, staged)
        if not store.is_whole(staged):
            what = built.failed[0][1] if built.failed else "it has none"
            raise IndexFormatError(f"No row could be made of {source.path} of {repo}: {what}", "Tell its maintainers.")
        manifest = replace(dataset.read_manifest(staged), id=repo, commit=commit)
        _clear_strays(staged, manifest)
        dataset.write_manifest(staged, manifest)
        if folder.exists():  # damaged, or somebody took a part of it away
            shutil.rmtree(folder)
        staged.rename(folder)
        left_out = tuple(LeftOut(name, source.sha256, why) for name, why in built.failed)
        done = _switched(replace(new, left_out=left_out), old)
    made, kept = len(built.added), len(built.present)
    return replace(done, fetched=int(received > 0), bytes_fetched=received, made=made, kept=kept)


def _clear_strays(folder: Path, manifest: dataset.Manifest) -> None:
    """Remove shards, whole or not, that a killed process left before they came into the manifest."""
    listed = {folder / path for shard in manifest.shards for path in shard.sha256}
    for kind in (dataset.MODELS, dataset.PANELS):
        for path in (folder / kind).iterdir():
            if path not in listed:
                path.unlink()


def _here(old: Current | None, revision: str | None) -> str | None:
    """The commit of a revision that was pulled before and is whole."""
    if old is None or revision is None:
        return None
    kept = [c for c in (old.commit, old.previous) if c and c.startswith(revision)]
    return kept[0] if kept and len(revision) >= 7 and store.is_whole(store.revision_folder(old.repo, kept[0])) else None


def _is_sound(repo: str, commit: str) -> bool:
    """Whether the files of a revision still are what its manifest says: a pull also mends what was damaged here."""
    folder = store.revision_folder(repo, commit)
    listed = _digests_listed(folder)
    return bool(listed) and _digests_here(folder, listed) == listed


def _now() -> str:
    return f"{now():%Y-%m-%dT%H:%M:%SZ}"


def _switched(new: Current, old: Current | None) -> Pulled:
    """Put a revision in force that is here."""
    changed = old is None or old.commit != new.commit
    previous = old.commit if old is not None and changed else old.previous if old else None
    kept = old.left_out if old is not None and not changed and not new.left_out else new.left_out
    new = replace(new, previous=previous, left_out=kept)
    store.switch(new)
    store.prune(new)
    folder = store.revision_folder(new.repo, new.commit)
    return Pulled(new, folder, bytes_total=_size(folder), changed=changed)


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name != LOCK)


# --- what there is to do ---


def update(current: Current) -> Plan:
    """What a pull of the same branch or tag would do, without doing it; NetworkError if the Hub cannot be asked."""
    remote = hub.dataset_at(current.repo, current.asked)
    if current.source is not None:
        wanted = _found(hub.with_files(remote), current.source.path)
        changed = (wanted.file.sha256 or current.source.sha256) != current.source.sha256
        return Plan(remote, None, (), {wanted.file.path: wanted}, (wanted.file.path,) if changed else ())
    if remote.commit == current.commit:
        return Plan(remote, None, (), {}, ())
    with tempfile.TemporaryDirectory(prefix="provindex-") as scratch:
        folder = store.revision_folder(current.repo, current.commit)
        return plan(hub.with_files(remote), Path(scratch), current, _digests_listed(folder))


@dataclass(frozen=True)
class Origin:
    """Where an index folder came from, and what there is to fetch. ahead: the plan of an update, None if nobody looked,
    and then `reason` says why."""

    current: Current
    ahead: Plan | None = None
    reason: str | None = None

    @property
    def changed(self) -> bool:
        """Whether an update would change anything, as far as somebody looked."""
        if self.ahead is None:
            return False
        return bool(self.ahead.missing) if self.current.source else self.ahead.remote.commit != self.current.commit


def look(folders: Iterable[Path], *, offline: bool) -> list[Origin]:
    """Where those folders that were pulled came from, and what an update would fetch, or why that is not known."""
    origins = []
    for current in filter(None, map(store.origin, folders)):
        try:
            if offline or hub.offline_by_environment():
                raise NetworkError("offline: the Hub was not asked")
            origins.append(Origin(current, update(current)))
        except (NetworkError, IndexFormatError) as error:
            origins.append(Origin(current, reason=error.message))
    return origins


def plan(remote: hub.Remote, scratch: Path, old: Current | None, here: Mapping[str, str]) -> Plan:
    """What an index at a commit consists of and what of it is missing here. The manifest is written to `scratch`.

    here: digests of the files of the revision in force, by path.
    """
    published = _published(remote, scratch)
    listed = _listed(remote, published)
    newer, halves = _newer(remote, listed)
    refused = {(o.path, o.digest): o for o in (old.left_out if old else ())}
    known = {pair[0]: o for pair in newer if (o := refused.get((pair[0], _pair_digest(remote, pair))))}
    newer = tuple(pair for pair in newer if pair[0] not in known)
    if published is None and not newer:
        raise IndexFormatError(
            f"{remote.label} is no index of fingerprints: it has neither a {dataset.MANIFEST} nor shards.",
            "Check the name; an index is published with `python -m build_index publish`.",
        )
    files = listed | {path: _found(remote, path) for pair in newer for path in pair}
    missing = tuple(path for path, wanted in files.items() if here.get(path) != wanted.digest)
    return Plan(remote, published, newer, files, missing, (*known.values(), *halves))


def _found(remote: hub.Remote, path: str, sha256: str | None = None) -> Wanted:
    """A file that the index needs; IndexFormatError if the dataset lacks it or says two things about it."""
    file = (remote.files or {}).get(path)
    if file is None:
        raise IndexFormatError(
            f"{remote.label} lacks {path}.", "Check the name; if that is right, tell its maintainers."
        )
    if sha256 and file.sha256 and file.sha256 != sha256:
        raise IndexFormatError(
            f"{remote.label}: the manifest gives another sha256 for {path} than the Hub does.", "Tell its maintainers."
        )
    return Wanted(file, sha256)


def _pair_digest(remote: hub.Remote, pair: tuple[str, str]) -> str:
    """By which a refused shard is known again: both halves may be what was wrong with it."""
    return "+".join(_found(remote, path).digest for path in pair)


def check_version(remote: hub.Remote) -> None:
    """IndexFormatError if the dataset's manifest says that it is of another version than this provindex makes."""
    with tempfile.TemporaryDirectory(prefix="provindex-") as scratch:
        _published(remote, Path(scratch))


def older(remote: hub.Remote) -> dataset.Manifest | None:
    """The manifest of a dataset that an older provindex made; None if there is none, or it is of this version.

    Raises IndexFormatError for one of a newer version.
    """
    with tempfile.TemporaryDirectory(prefix="provindex-") as scratch:
        document = _document(remote, Path(scratch))
    return None if document is None else dataset.older_of(document, remote.label)


def _published(remote: hub.Remote, scratch: Path) -> dataset.Manifest | None:
    """The manifest of the dataset, checked against its git id; None if there is none."""
    document = _document(remote, scratch)
    return None if document is None else dataset.manifest_of(document, remote.label)


def _document(remote: hub.Remote, scratch: Path) -> Any:
    """What the manifest of the dataset says, unchecked but for its git id; None if there is none."""
    file = (remote.files or {}).get(dataset.MANIFEST)
    if file is None:
        return None
    if file.size > dataset.MAX_MANIFEST:
        raise IndexFormatError(f"The manifest of {remote.label} is larger than {dataset.MAX_MANIFEST >> 20} MB.")
    target = scratch / dataset.MANIFEST
    with hub.quiet_client(bars=False):
        hub.download(remote, file, target)
    _check(target, Wanted(file), remote)
    return dataset.manifest_document(scratch)


def _listed(remote: hub.Remote, published: dataset.Manifest | None) -> dict[str, Wanted]:
    """The files that the manifest lists."""
    if published is None:
        return {}
    found = {
        path: _found(remote, path, shard.sha256[path])
        for shard in published.shards
        for path in (shard.models, shard.panels)
    }
    if published.calibration is not None:
        if not is_name(published.calibration):
            raise IndexFormatError(
                f"The manifest of {remote.label} names a calibration that is no file of a calibration folder.",
                "Tell its maintainers.",
            )
        found[published.calibration] = _found(remote, published.calibration)
    return found


def _newer(remote: hub.Remote, listed: Mapping[str, Wanted]) -> tuple[tuple[tuple[str, str], ...], tuple[LeftOut, ...]]:
    """Pairs of shards that no manifest lists, and halves of pairs."""
    names: dict[str, set[str]] = {}
    for path in remote.files or ():
        kind, _, name = path.rpartition("/")
        if dataset.is_shard(path) and path not in listed:
            names.setdefault(name, set()).add(kind)
    whole = tuple(
        (f"{dataset.MODELS}/{name}", f"{dataset.PANELS}/{name}") for name in sorted(names) if len(names[name]) == 2
    )
    halves = [f"{next(iter(kinds))}/{name}" for name, kinds in sorted(names.items()) if len(kinds) == 1]
    return whole, tuple(LeftOut(p, _found(remote, p).digest, "its other half is not there") for p in halves)


def _manifest_of(folder: Path) -> dataset.Manifest | None:
    """The manifest of a revision that is here; None if it is not, or cannot be used: then all of it is fetched."""
    try:
        return dataset.read_manifest(folder) if store.is_whole(folder) else None
    except IndexFormatError:
        return None


def _digests_listed(folder: Path) -> dict[str, str]:
    """Digests of the files of a revision as its manifest says, by path; none if the revision is not here."""
    manifest = _manifest_of(folder)
    if manifest is None:
        return {}
    found = {path: digest for shard in manifest.shards for path, digest in shard.sha256.items()}
    if manifest.calibration and is_name(manifest.calibration) and (folder / manifest.calibration).is_file():
        found[manifest.calibration] = _git_id(folder / manifest.calibration)
    return found


def _digests_here(folder: Path, listed: Mapping[str, str]) -> dict[str, str]:
    """Those of the listed digests that the files themselves bear out."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda path: _digest(folder / path, listed[path]), listed)
    return {path: digest for path, digest in zip(listed, found, strict=True) if digest == listed[path]}


def _digest(path: Path, like: str) -> str | None:
    """The digest of a file, of the kind of another one; None if it is gone."""
    if not path.is_file():
        return None
    return file_sha256(path) if len(like) == 64 else _git_id(path)


# --- doing it ---


def _fetched(remote: hub.Remote, new: Current, old: Current | None, progress: Progress | None) -> Pulled:
    """Fetch, check, put together, and switch; the caller holds the lock."""
    place = store.place(remote.repo)
    with tempfile.TemporaryDirectory(dir=place, prefix=f"{remote.commit}.", ignore_cleanup_errors=True) as scratch:
        staged = Path(scratch) / "index"
        got = assemble(remote, staged, place / INCOMING, old, progress)
        folder = store.revision_folder(remote.repo, remote.commit)
        if folder.exists():  # damaged, or somebody took a part of it away
            folder.rename(Path(scratch) / "replaced")
        staged.rename(folder)
    done = _switched(replace(new, left_out=got.left_out), old)
    return replace(done, fetched=len(got.plan.missing), bytes_fetched=got.received)


@dataclass(frozen=True)
class Assembled:
    """An index folder that was put together. received: bytes that came for it; left_out: shards that were refused."""

    plan: Plan
    received: int
    left_out: tuple[LeftOut, ...]


def assemble(
    remote: hub.Remote, staged: Path, incoming: Path, old: Current | None, progress: Progress | None = None
) -> Assembled:
    """Make an index folder of a dataset at a commit: what is missing from the Hub, the rest from the revision `old`.

    staged: the folder to make. incoming: where files wait, so that another attempt finds them.
    """
    for folder in (staged, incoming):
        folder.mkdir(parents=True, exist_ok=True)
    now = store.revision_folder(old.repo, old.commit) if old is not None else None
    here = _digests_here(now, _digests_listed(now)) if now is not None else {}
    todo = plan(remote, staged, old, here)
    _check_space(todo.bytes_missing, incoming, remote)
    received = _download(remote, [todo.files[path] for path in todo.missing], incoming, progress)
    _put_together(todo, staged, incoming, old)
    return Assembled(todo, received, _finished(todo, staged, old))


def fetch_file(
    reference: str, name: str, sha256: str, *, offline: bool = False, progress: Progress | None = None
) -> Path:
    """One file of a dataset, `org/name[@revision]`, of a digest that the caller knows; kept beside the pulled indexes.

    What was fetched before is not fetched again, nor asked for. Raises IndexFormatError if the dataset has no such file
    or another one, NetworkError.
    """
    return _file(reference, name, sha256, offline, progress)[0]


def _file(reference: str, name: str, sha256: str, offline: bool, progress: Progress | None) -> tuple[Path, int]:
    """`fetch_file`, and how many bytes came for it."""
    repo, revision = store.parse(reference)
    _check_digest(sha256)
    place = store.place(repo) / store.FILES
    kept = place / sha256
    if kept.exists() and file_sha256(kept) == sha256:
        return kept, 0
    if offline or hub.offline_by_environment():
        raise _not_here(name, repo)
    remote = hub.with_files(hub.dataset_at(repo, revision))
    wanted = _found(remote, name)
    if (wanted.file.sha256 or sha256) != sha256:
        raise IndexFormatError(
            f"{name} of {remote.label} has the sha256 {wanted.file.sha256}, expected was {sha256}.",
            "If its publisher says that this is a new version, name the new digest with --sha256.",
        )
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        if kept.exists() and file_sha256(kept) != sha256:
            kept.unlink()
        _check_space(_left(replace(wanted, sha256=sha256), place), place, remote)
        return kept, _download(remote, [replace(wanted, sha256=sha256)], place, progress)


def _not_here(name: str, repo: str) -> NetworkError:
    return NetworkError(f"{name} of {repo} is not here, and offline the Hub is not asked.", "Run it without --offline.")


def _check_digest(sha256: str) -> None:
    """UsageError for what is no sha256: names of folders are made of it."""
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(f"{sha256[:80]!r} is no sha256.", "Write its 64 hexadecimal digits in lower case.")


def _check_space(needed: int, place: Path, remote: hub.Remote) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise IndexFormatError(
            f"{remote.label} needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free.",
            "Make room, or set PROVINDEX_CACHE to a folder on a larger disk.",
        )


def _download(remote: hub.Remote, missing: Sequence[Wanted], incoming: Path, progress: Progress | None) -> int:
    """Bring what is missing into `incoming`, each file under its digest when it has been checked; bytes that came."""
    by_digest = {wanted.digest: wanted for wanted in missing}
    meter = _Meter(sum(_left(wanted, incoming) for wanted in by_digest.values()), progress)
    with hub.quiet_client(bars=False), ThreadPoolExecutor(DOWNLOADS) as pool:
        running = [pool.submit(_receive, remote, wanted, incoming, meter) for wanted in by_digest.values()]
        try:
            for one in as_completed(running):
                one.result()
        finally:  # after a failure those that have not begun shall not
            pool.shutdown(wait=False, cancel_futures=True)
    return meter.done


def _left(wanted: Wanted, incoming: Path) -> int:
    """Bytes of a file that are still to come."""
    here = next((p.stat().st_size for p in _arriving(wanted, incoming) if p.exists()), 0)
    return max(wanted.file.size - here, 0)


def _arriving(wanted: Wanted, incoming: Path) -> tuple[Path, Path]:
    """Where a file is when it has been checked, and before."""
    return incoming / wanted.digest, incoming / f"{wanted.digest}.part"


class _Meter:
    """Bytes that have come, of all downloads together."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self._progress, self._lock = total, 0, progress, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            if self._progress:
                self._progress(self.done, self.total)


def _receive(remote: hub.Remote, wanted: Wanted, incoming: Path, meter: _Meter) -> None:
    checked, part = _arriving(wanted, incoming)
    if checked.exists():
        return
    hub.download(remote, wanted.file, part, meter.add)
    _check(part, wanted, remote)
    if wanted.sha256 is not None and dataset.is_shard(wanted.file.path):  # no query looks at its footer again
        parquet.check_footer(part, wanted.file.path)
    part.replace(checked)


def _check(path: Path, wanted: Wanted, remote: hub.Remote) -> None:
    """Compare what came with every digest that was announced; it is removed if it is something else."""
    other = wanted.sha256 is not None and wanted.file.sha256 is None and file_sha256(path) != wanted.sha256
    if other or not same(path, wanted.file):  # `_found` saw to it that two announced digests are equal
        path.unlink()
        raise IndexFormatError(
            f"{wanted.file.path} of {remote.label} did not arrive as announced: its digest is another one, and nothing "
            "was switched.",
            "Run the command again; if it says so again, tell the dataset's maintainers.",
        )


def same(path: Path, file: hub.RemoteFile) -> bool:
    """Whether a file here is that of the Hub: by sha256 for a large file, else by its git id."""
    return file_sha256(path) == file.sha256 if file.sha256 else _git_id(path) == file.blob


def _git_id(path: Path) -> str:
    """The id that git gives to a file: sha1 of its length and content. Against damage, not against an attacker."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _put_together(todo: Plan, staged: Path, incoming: Path, old: Current | None) -> None:
    """Give every file its place: what came from `incoming`, the others from the revision in force."""
    fresh = set(todo.missing)
    for path, wanted in todo.files.items():
        target = staged / path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = incoming / wanted.digest
        if path not in fresh and old is not None:
            source = store.revision_folder(old.repo, old.commit) / path
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copy2(source, target)


def _finished(todo: Plan, staged: Path, old: Current | None) -> tuple[LeftOut, ...]:
    """Check the shards that no manifest vouches for, and write the manifest of what the index now is."""
    before = _manifest_of(store.revision_folder(old.repo, old.commit)) if old is not None else None
    accepted = {s.models: s for s in before.shards} if before is not None else {}
    shards, left_out = list(todo.published.shards if todo.published else ()), list(todo.left_out)
    for models, panels in todo.newer:
        known = accepted.get(models)
        if known is not None and any(known.sha256.get(p) != todo.files[p].digest for p in (models, panels)):
            known = None  # another content under a name that was accepted before
        shard, why = (known, None) if known else _newcomer(staged, models, panels)
        if shard is not None and why is None:
            shards.append(shard)
            continue
        left_out.append(LeftOut(models, _pair_digest(todo.remote, (models, panels)), why or "it cannot be read"))
        for path in (models, panels):
            (staged / path).unlink()
    calibration = todo.published.calibration if todo.published else None
    if calibration is not None:
        load_calibration(staged, calibration)
    built = todo.published.built if todo.published and not todo.newer else todo.remote.changed
    manifest = dataset.Manifest(
        todo.remote.repo, built, tuple(shards), calibration=calibration, commit=todo.remote.commit
    )
    dataset.write_manifest(staged, manifest)
    return tuple(left_out)


def _newcomer(staged: Path, models: str, panels: str) -> tuple[dataset.Shard | None, str | None]:
    """A shard that was contributed, or why it is not accepted."""
    try:
        shard = dataset.described(staged, models, panels)
    except IndexFormatError as error:
        return None, error.message
    problems = verify_rows(staged, shard)
    return shard, "; ".join(f"{p.where.removeprefix(models)}: {p.what}".lstrip("#: ") for p in problems[:3]) or None
