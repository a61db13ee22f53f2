"""Contribute one fingerprint to the Hub dataset: one new pair of files in one commit, by default as a pull request.

A contribution adds files under names that follow from their content and touches nothing else, so contributions cannot
conflict. What is sent is the row and nothing besides: no weights that could be used, no text, no path, no host name.
"""

from __future__ import annotations

import json
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provindex.common import places
from provindex.common.errors import (
    ConflictError,
    ContributionError,
    IndexFormatError,
    NetworkError,
    UnansweredError,
    UsageError,
)
from provindex.common.reasons import Code, Reason
from provindex.common.version import __version__
from provindex.fingerprint import parquet
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.fingerprint.rows import COLUMNS, Row, to_row
from provindex.hub import client as hub
from provindex.hub.pull import check_version
from provindex.index import dataset
from provindex.index import pulled as store

# Licenses that let anybody publish measurements of a model; every other one has to be acknowledged by its name.
OPEN_LICENSES = frozenset(
    "apache-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear cc-by-4.0 cc0-1.0 isc mit unlicense zlib".split()
)
GATED = "gated"  # how a publisher's gate is acknowledged
ATTEMPTS, FAILURES = 20, 4  # where others' commits come between; where the Hub fails
NOBODY = "contributor"  # in file names, where nobody is signed in
IDENTITY = ("row_sha256", "model_id", "revision", "variant")
# Warnings that are about this machine's copy of a model, not about the model.
OF_THIS_COPY = frozenset({Code.CACHED, Code.CACHED_OFFLINE, Code.CACHED_UNREACHABLE, Code.NOT_CACHED})
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PATH = re.compile(r"(?<![\w./-])(/[\w.-]+){2,}|(?<![\w./-])\.\.?/\w|~\w*/|%\w+%|\b[A-Za-z]:\\|\\\\[\w.-]+\\|file://")

Say = Callable[[str], None]
Wait = Callable[[float], None]


@dataclass(frozen=True)
class Sent:
    """What was contributed, or would be.

    files: (path, bytes, sha256) of what is sent. row: every cell of it. commit, pull_request, url: where it went, None
    in a dry run. objections: why it would be refused, in a dry run.
    """

    repo: str
    fingerprint: Fingerprint
    row: Row
    files: tuple[tuple[str, int, str], ...]
    direct: bool
    commit: str | None = None
    pull_request: int | None = None
    url: str | None = None
    warnings: tuple[Reason, ...] = ()
    objections: tuple[str, ...] = ()


def push(
    fp: Fingerprint,
    repo: str | None = None,
    *,
    direct: bool = False,
    dry_run: bool = False,
    offline: bool = False,
    acknowledged: Collection[str] = (),
    say: Say = lambda _: None,
    wait: Wait = time.sleep,
) -> Sent:
    """Contribute a fingerprint to a dataset, by default the default one.

    direct: as a commit to main instead of a pull request. dry_run: send nothing. acknowledged: licenses, and "gated",
    that the user has read and accepts. Raises ContributionError for a row that may not be sent, NetworkError for what
    the Hub refuses; nothing is half-written then.
    """
    target, revision = store.parse(repo or places.default_dataset())
    if revision is not None:
        raise UsageError(f"--to names a revision of {target}.", "Contributions go to its main branch: leave the @ out.")
    offline = offline or hub.offline_by_environment()
    if offline and not dry_run:
        raise NetworkError("Nothing was sent: offline the Hub is not asked.", "Run it without --offline.")
    fp = cleaned(fp)
    who = None if offline else hub.account(target) if dry_run else hub.signed_in_as(target)
    with written(fp, _slug(who or NOBODY)) as (folder, shard):
        offer = _offer(target, fp, folder, shard, direct)
        told = not_private(offer.row)
        if dry_run:
            return _rehearsed(offer, told, offline, acknowledged)
        if told:
            raise ContributionError(told[0], "Rename the model's folder, or make its fingerprint again elsewhere.")
        warnings = _check_terms(fp, acknowledged)
        return replace(_sent(offer, folder, who or NOBODY, say, wait), warnings=warnings)


def cleaned(fp: Fingerprint) -> Fingerprint:
    """A fingerprint as it is contributed: without what is about this machine's copy."""
    return replace(fp, warnings=tuple(w for w in fp.warnings if w.code not in OF_THIS_COPY and not _tells_a_path(w)))


def _tells_a_path(reason: Reason) -> bool:
    """Whether a reason quotes a path of this machine, as names in a model's files may."""
    return any(map(_PATH.search, _texts_of(reason)))


def _texts_of(reason: Reason) -> list[str]:
    """What a reason quotes of a model's files."""
    figures = [figure for _, figure in reason.figures if isinstance(figure, str)]
    return [reason.subject, *figures, *(text for inner in reason.because for text in _texts_of(inner))]


def _quoted(column: str, cell: str) -> list[str]:
    """The texts in a cell; of reasons what they quote, not their codes and the names of their figures."""
    if column not in ("absences", "warnings"):
        return [cell]
    value = json.loads(cell)
    reasons = value.values() if isinstance(value, dict) else value
    return [text for reason in reasons for text in _texts_of(Reason.from_json(reason))]


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or NOBODY


@contextmanager
def written(fp: Fingerprint, who: str) -> Iterator[tuple[Path, dataset.Shard]]:
    """The fingerprint as a shard of one row in a folder that vanishes."""
    with tempfile.TemporaryDirectory(prefix="provindex-") as folder:
        yield Path(folder), dataset.write_shard(Path(folder), [fp], who)


def _offer(repo: str, fp: Fingerprint, folder: Path, shard: dataset.Shard, direct: bool) -> Sent:
    files = tuple((p, shard.bytes[p], shard.sha256[p]) for p in (shard.models, shard.panels))
    return Sent(repo, fp, to_row(fp), files, direct)


# --- what may not be sent ---


def not_private(row: Mapping[str, Any]) -> list[str]:
    """Sentences about cells of a row that tell where it was made: paths, and the name of this machine."""
    host = socket.gethostname()
    found = []
    for column in COLUMNS:
        cells = row[column.name]
        texts = cells if isinstance(cells, list) else _quoted(column.name, cells) if isinstance(cells, str) else []
        if any(_PATH.search(text) or _names(host, text) for text in texts):
            found.append(f"The column {column.name} would tell a path or the name of this machine.")
    return found


def _names(host: str, text: str) -> bool:
    word = re.compile(rf"(?<!\w){re.escape(host)}(?!\w)", re.IGNORECASE)
    return len(host) > 3 and host != "localhost" and word.search(text) is not None


def _check_terms(fp: Fingerprint, acknowledged: Collection[str]) -> tuple[Reason, ...]:
    """Warnings about a model's terms; ContributionError for terms that nobody acknowledged."""
    objections, warnings = terms(fp, acknowledged)
    if objections:
        raise ContributionError(objections[0][0], objections[0][1])
    return warnings


def terms(fp: Fingerprint, acknowledged: Collection[str]) -> tuple[list[tuple[str, str]], tuple[Reason, ...]]:
    """((objection, next step), ...) and warnings about the license and the gate of a model."""
    named = _HUB_ID.fullmatch(fp.model_id) is not None
    said = hub.terms_of(fp.model_id, fp.revision) if named else None
    licenses = {name: None for name in (fp.license, said.license if said else None) if name}
    objections, warnings = [], []
    if said is not None and said.gated and GATED not in acknowledged:
        objections.append((
            f"{fp.model_id} is gated: its publisher decides who may read it.",
            f"If its terms let you publish measurements of it, add --acknowledge {GATED}.",
        ))  # fmt: skip
    objections += [
        (
            f"{fp.model_id} has the license {name}, which you have not acknowledged.",
            f"If it lets you publish measurements of the model, add --acknowledge {name}.",
        )
        for name in licenses  # the row's and the Hub's, where they differ
        if name.lower() not in OPEN_LICENSES and name not in acknowledged
    ]
    if not licenses:
        warnings.append(Reason.of(Code.NO_LICENSE, model=fp.model_id))
    if not named:
        warnings.append(Reason.of(Code.NO_HUB_ID, model=fp.model_id))
    elif said is None:
        warnings.append(Reason.of(Code.NO_PUBLIC_MODEL, model=fp.model_id))
    return objections, tuple(warnings)


def _rehearsed(offer: Sent, told: Sequence[str], offline: bool, acknowledged: Collection[str]) -> Sent:
    """A dry run: what would be sent, and what would be said against it."""
    if offline:
        warnings: tuple[Reason, ...] = (Reason.of(Code.NOT_LOOKED_OFFLINE),)
        return replace(offer, objections=tuple(told), warnings=warnings)
    objections, warnings = terms(offer.fingerprint, acknowledged)
    remote = hub.with_files(hub.dataset_at(offer.repo, None))
    check_version(remote)
    skipped: list[Reason] = []
    there = _already(offer, remote, {}, lambda line: skipped.append(Reason.of(Code.SHARD_LEFT_OUT, problem=line)))
    warnings = (*warnings, *skipped)
    every = [*told, *(f"{what} {step}" for what, step in objections), *([there] if there else [])]
    return replace(offer, objections=tuple(every), warnings=warnings)


# --- what is there already ---


Known = dict[str, list[tuple[str | None, ...]]]  # identities of the rows of a shard, by its git id


def _already(offer: Sent, remote: hub.Remote, read: Known, say: Say) -> str | None:
    """Why the dataset does not need the row; None if it does. read: shards that were looked at before."""
    path = offer.files[0][0]
    if remote.files is not None and path in remote.files:
        return f"{offer.repo} has this very row already ({path})."
    identity = tuple(offer.row[name] or "" for name in IDENTITY)
    for known, where in _identities(remote, read, say):
        if known == identity:
            return f"{offer.repo} has this very row already, in {where}."
    return None


def _identities(remote: hub.Remote, read: Known, say: Say) -> Iterator[tuple[tuple[str, ...], str]]:
    """Identity and shard of every row of a dataset. Shards that lack a half, or cannot be read, are in nobody's index;
    the latter are told."""
    files = remote.files or {}
    here = _folder_here(remote.repo)
    for path, file in files.items():
        if not dataset.is_shard(path) or path.replace(dataset.MODELS, dataset.PANELS) not in files:
            continue
        if path.startswith(f"{dataset.MODELS}/") and file.blob not in read:
            try:
                read[file.blob] = _rows_of(remote, file, here)
            except IndexFormatError as error:
                say(f"left out {path} of {remote.repo}: {error.message}")
                read[file.blob] = []
        yield from ((tuple(cell or "" for cell in row), path) for row in read.get(file.blob, ()))


def _rows_of(remote: hub.Remote, file: hub.RemoteFile, here: Path | None) -> list[tuple[str | None, ...]]:
    """Identities of the rows of a shard: read here if it was pulled, else by ranges."""
    kept = here / file.path if here is not None else None
    if kept is not None and kept.is_file() and kept.stat().st_size == file.size:
        return parquet.read_texts(kept, IDENTITY)
    with hub.opened_remotely(remote, file) as opened:
        return parquet.read_texts(opened, IDENTITY, file.path)


def _folder_here(repo: str) -> Path | None:
    now = store.current(repo)
    return None if now is None else store.revision_folder(repo, now.commit)


# --- sending ---


def _title(offer: Sent) -> str:
    fp = offer.fingerprint
    version = f"@{fp.revision[:12]}" if fp.revision else ""
    variant = f" [{fp.variant}]" if fp.variant else ""
    return f"Add {fp.model_id}{version}{variant} ({offer.row['row_sha256'][:12]})"


def _description(offer: Sent) -> str:
    fp = offer.fingerprint
    lines = {
        "model": fp.model_id, "revision": fp.revision or "none", "variant": fp.variant or "none",
        "license": fp.license or "not stated", "mode": fp.mode, "content_sha256": fp.content_sha256 or "none",
        "row_sha256": offer.row["row_sha256"], "fingerprint version": FINGERPRINT_VERSION,
        "made by": f"provindex {__version__}",
    }  # fmt: skip
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _sent(offer: Sent, folder: Path, who: str, say: Say, wait: Wait) -> Sent:
    """Commit, as often as it takes: others' commits come between, and the Hub may fail with or without having done it.

    The row is looked for before each attempt, so a commit whose answer was lost is not made twice.
    """
    files = {path: folder / path for path, _, _ in offer.files}
    lost, read = False, Known()
    for attempt in range(ATTEMPTS):
        try:
            remote = hub.with_files(hub.dataset_at(offer.repo, None))
            if not attempt:
                check_version(remote)
            found = _made_before(offer, remote, lost, _already(offer, remote, read, say), who, say)
            if found is not None:
                return found
            pull_request = not offer.direct
            made = hub.commit(remote, files, _title(offer), _description(offer), pull_request=pull_request)
            return replace(offer, commit=made.commit or None, pull_request=made.number, url=made.url)
        except ConflictError as error:  # nothing was written
            _again(error, attempt, say, wait)
        except UnansweredError as error:
            lost = True
            _again(error, attempt, say, wait)
    raise ConflictError(f"{offer.repo} changed {ATTEMPTS} times while this was sent.", "Run the command again.")


def _again(error: NetworkError, attempt: int, say: Say, wait: Wait) -> None:
    """Wait before the next attempt, about twice as long each time; the last failure is raised."""
    if attempt + 1 >= (ATTEMPTS if isinstance(error, ConflictError) else FAILURES):
        raise error
    say(f"again: {error.message}")
    wait(min(4.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.5))


def _made_before(offer: Sent, remote: hub.Remote, lost: bool, there: str | None, who: str, say: Say) -> Sent | None:
    """What an attempt made whose answer was lost; ContributionError if the row was there before."""
    requests = {} if offer.direct else hub.open_requests(offer.repo, _title(offer))
    request = requests.get(who)
    if lost and there:
        return replace(offer, commit=remote.commit)
    if lost and request is not None:
        return replace(offer, pull_request=request.number, url=request.url)
    if there:
        raise ContributionError(there, "Nothing is left to do; `provindex index pull` brings it here.")
    if request is not None:
        raise ContributionError(
            f"Pull request {request.number} of {offer.repo} has this very row already.", f"See {request.url}."
        )
    for author, other in requests.items():  # anybody may choose a title, so it stops nobody else
        say(f"pull request {other.number} of {author} has the same title: the dataset needs one of them")
    return None
