"""Where pulled indexes are kept on this machine, and which of them answers: no network, no Hub client.

One folder a dataset, named as the Hub cache names repositories, and in it one index folder a commit, each whole and
of the format of any index. `current.json` says which commit is in force; replacing it is the switch from one revision
to the next, so a reader sees the old index or the new one. Files that two revisions share are stored once, by hard
links. `default` names the dataset that was pulled last: it answers where no index is named. `added` names those that
answer beside it: datasets of other tools, whose rows were made here from one archive.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provindex.common.errors import IndexFormatError, UsageError
from provindex.common.files import locked, replacing
from provindex.common.places import fetched_index, pulled_indexes
from provindex.index import dataset

CURRENT, DEFAULT, ADDED, FILES = "current.json", "default", "added", "files"
MAX_POINTER = 1 << 20
AGAIN = "Remove the folder `fetched` in the folder of pulled indexes (in PROVINDEX_CACHE, or below HF_HOME)."
MAX_REFERENCE = 200  # characters: a repository is a folder's name here
_REFERENCE = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+(/[\w.-]+)*))?")
_COMMIT = re.compile("[0-9a-f]{7,40}")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A shard of a pulled dataset that is not part of the index: its path, the digest it was seen with, and why."""

    path: str
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """The archive of another tool's dataset that rows were made from: its path there, and its sha256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Current:
    """The revision of a dataset that is in force here.

    commit: of the dataset; where rows were made here, 24 digits of the archive's sha256 and 16 of how they were made.
    asked: the branch, tag or commit that was pulled. pulled: date and time in ISO format, UTC. previous: the commit
    that was in force before, which is kept. left_out: shards, or models of an archive, that were refused. source: what
    rows were made of, None for an index that came as one.
    """

    repo: str
    commit: str
    asked: str
    pulled: str
    previous: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    source: Source | None = None


def parse(reference: str) -> tuple[str, str | None]:
    """(repository, revision or None) of `org/name[@revision]`; UsageError if it is something else."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or ".." in reference or len(reference) > MAX_REFERENCE:
        raise UsageError(f"{reference[:200]!r} names no dataset.", "Write org/name, or org/name@revision.")
    return match["repo"], match["revision"]


def is_reference(text: str) -> bool:
    """Whether a text can only be a dataset: org/name[@revision], and no path that is there."""
    return _REFERENCE.fullmatch(text) is not None and not Path(text).exists()


def place(repo: str) -> Path:
    """The folder of a dataset."""
    return pulled_indexes() / ("datasets--" + repo.replace("/", "--"))


def revision_folder(repo: str, commit: str) -> Path:
    """The index folder of one commit, there or not."""
    return place(repo) / commit


def is_whole(folder: Path) -> bool:
    """Whether a revision has all its files: its folder has its name only then."""
    return (folder / dataset.MANIFEST).is_file()


def current(repo: str) -> Current | None:
    """What is in force of a dataset; None if it was never pulled. IndexFormatError if the note of it is damaged."""
    return _current_in(place(repo))


def _current_in(folder: Path) -> Current | None:
    path = folder / CURRENT
    if not path.exists():
        return None
    try:
        return _current(json.loads(_small(path)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IndexFormatError(
            f"The note of what was pulled into {folder.name} is damaged.",
            f"Remove its {CURRENT}, then run `provindex index pull` again.",
        ) from error


def _current(said: Mapping[str, Any]) -> Current:
    left_out = tuple(LeftOut(str(o["path"]), str(o["digest"]), str(o["reason"])) for o in said["left_out"])
    commit, previous = str(said["commit"]), said["previous"]
    if not all(_COMMIT.fullmatch(c) for c in (commit, previous or commit)):
        raise ValueError("no commit")
    repo = str(said["repo"])
    if len(repo) > MAX_REFERENCE or _REFERENCE.fullmatch(repo) is None or "@" in repo:
        raise ValueError("no dataset")
    return Current(repo, commit, str(said["asked"]), str(said["pulled"]), previous, left_out, _source(said))


def _source(said: Mapping[str, Any]) -> Source | None:
    found = said.get("source")
    if found is not None and not re.fullmatch("[0-9a-f]{64}", str(found["sha256"])):
        raise ValueError("no digest")
    return None if found is None else Source(str(found["path"]), str(found["sha256"]))


def _small(path: Path) -> str:
    if path.stat().st_size > MAX_POINTER:
        raise ValueError("too large")
    return path.read_text(encoding="utf-8")


def switch(new: Current) -> None:
    """Put a revision in force, in one step, and let it answer where no index is named: alone, or beside another one if
    its rows were made of another tool's archive.
    """
    document = {
        "repo": new.repo, "commit": new.commit, "asked": new.asked, "pulled": new.pulled, "previous": new.previous,
        "left_out": [{"path": o.path, "digest": o.digest, "reason": o.reason} for o in new.left_out],
        **({"source": {"path": new.source.path, "sha256": new.source.sha256}} if new.source else {}),
    }  # fmt: skip
    _replaced(place(new.repo) / CURRENT, json.dumps(document, indent=1) + "\n")
    if new.source is None:
        _replaced(pulled_indexes() / DEFAULT, new.repo + "\n")
        return
    with locked(pulled_indexes()):
        repos = {*_added(), new.repo}
        _replaced(pulled_indexes() / ADDED, "".join(f"{repo}\n" for repo in sorted(repos)))


def _replaced(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _added() -> list[str]:
    """The datasets that answer beside the one that was pulled last. ValueError or UsageError if the note is damaged."""
    note = pulled_indexes() / ADDED
    return [parse(line)[0] for line in _small(note).split()] if note.exists() else []


def prune(kept: Current) -> None:
    """Remove the revisions of a dataset that are neither in force nor the one before it, and what pulls left over."""
    for path in place(kept.repo).iterdir():
        if path.is_dir() and path.name not in (kept.commit, kept.previous, FILES):
            shutil.rmtree(path)


def pulled(reference: str) -> Path:
    """The index folder of `org/name[@revision]`; IndexFormatError if that was not pulled.

    Without a revision the one in force; else the commit (or its first digits), or the branch or tag that was pulled.
    """
    repo, revision = parse(reference)
    now = current(repo)
    if now is not None:
        kept = [now.commit, *([now.previous] if now.previous else [])]
        wanted = [now.commit] if revision in (None, now.asked) else [c for c in kept if c.startswith(str(revision))]
        for commit in wanted if revision is None or len(revision) >= 7 or revision == now.asked else ():
            if is_whole(revision_folder(repo, commit)):
                return revision_folder(repo, commit)
    raise IndexFormatError(
        f"There is no folder {reference}, and no such dataset was pulled.",
        f"Get it with `provindex index pull {reference}`, or build an index with `provindex index build`.",
    )


def default_folder() -> Path | None:
    """The index that was pulled last; None if none was, or it is gone."""
    note = pulled_indexes() / DEFAULT
    if not note.exists():
        return None
    try:
        now = current(parse(_small(note).strip())[0])
    except (OSError, ValueError, UsageError) as error:
        raise IndexFormatError(
            "The note of which index was pulled last is damaged.", "Run `provindex index pull` again."
        ) from error
    if now is None:
        return None
    folder = revision_folder(now.repo, now.commit)
    return folder if is_whole(folder) else None


def added_folders() -> list[Path]:
    """The indexes that answer beside that one; those that are gone are passed over."""
    try:
        found = [current(repo) for repo in _added()]
    except (OSError, ValueError, UsageError) as error:
        raise IndexFormatError(
            "The note of which indexes were added to the default is damaged.",
            f"Remove {ADDED} in the folder of pulled indexes, then run `provindex index pull` again.",
        ) from error
    folders = [revision_folder(now.repo, now.commit) for now in found if now is not None]
    return [folder for folder in folders if is_whole(folder)]


def fetched_folder() -> Path | None:
    """The index of models that were fetched one by one, if it is there and of this version; an older one is filled
    anew by the next fetch. IndexFormatError if it is damaged.
    """
    folder = fetched_index()
    if not is_whole(folder):
        return None
    try:
        return None if dataset.older_manifest(folder) else folder
    except IndexFormatError as error:
        raise IndexFormatError(f"The index of fetched models cannot be used: {error.message}", AGAIN) from error


def origin(folder: Path) -> Current | None:
    """What was pulled into an index folder; None if it was not pulled."""
    now = _current_in(folder.parent) if folder.parent.parent == pulled_indexes() else None
    return now if now is not None and now.commit == folder.name else None
