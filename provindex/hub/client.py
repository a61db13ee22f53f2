"""The only module that talks to the Hub, through huggingface_hub (imported where it is needed: it is slow to load).

Models are looked for in the Hub cache first, by reading its folders; only then is the Hub asked, and only for the
files that a fingerprint needs: config, card, tokenizer, weights (safetensors; where there are none, torch's or ONNX,
which are read as data and never executed). Never code. Datasets are read at
a commit, file by file, and written in one commit each time. What the client raises is told in our own words, so that
no request header, and no token, reaches the screen.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from provindex.common.errors import (
    AccessError,
    BudgetError,
    ConflictError,
    DatasetNotFoundError,
    IndexFormatError,
    ModelError,
    ModelNotFoundError,
    NetworkError,
    ProvindexError,
    StorageError,
    UnansweredError,
)
from provindex.common.files import FULL
from provindex.formats import folder as layout
from provindex.formats import local_files

_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_MAX_COMPANION = 64 << 20  # bytes of one tokenizer file; the largest public ones are about 35 MB
MAX_FILES = 200_000  # of a repository that are listed
DOWNLOAD_TRIES, DOWNLOAD_WAIT = 3, 1.0  # without a byte coming; seconds between them
CONNECTIONS = 8  # at once, for ranges
BLOCK = 1 << 16  # bytes that a ranged reader fetches at a time: a Parquet footer and small columns need little more


@dataclass(frozen=True, slots=True)
class _Task:
    """What the Hub is asked for. name: of the repository, with its revision. absent, denied: the way on, where there is
    no such repository, and where access is refused."""

    name: str
    kind: str = "model"
    doing: str = "fetching"
    absent: str = "Check the spelling; for a private model set HF_TOKEN or run `hf auth login`."
    denied: str = "Set HF_TOKEN to a token that may read it."


_PULLING = _Task(
    "",
    "dataset",
    "reading",
    "Check the name, and set HF_TOKEN if it is private; or make an index of your own with `provindex index build "
    "MODEL... -o DIR` (the embedded index answers meanwhile).",
)
_PUSHING = _Task(
    "",
    "dataset",
    "writing to",
    "Check the name after --to; a new dataset is made with `python -m build_index publish`.",
    "Sign in with a token that may write to it; without --direct a contribution is a pull request, which everybody may "
    "open.",
)


def endpoint() -> str:
    """Address of the Hub that is asked."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def offline_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE (or the client's other switches) forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


class Meter:
    """Counts what is fetched from the Hub: bytes of files, and HTTP requests of any kind. For several threads.

    limit: bytes that may be fetched; None for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.bytes, self.requests = limit, 0, 0
        self._lock = Lock()

    def take(self, count: int, name: str) -> None:
        """Note that bytes are about to be fetched; BudgetError, and nothing is noted, if they are too many."""
        with self._lock:
            if self.limit is not None and self.bytes + count > self.limit:
                left = (self.limit - self.bytes) / 1e6
                raise BudgetError(
                    f"{name} needs {count / 1e6:,.1f} MB more, and {left:,.1f} MB are left of what may be fetched.",
                    "Allow more with --max-mb.",
                )
            self.bytes += count

    def count(self, _: object) -> None:
        """Note a request that was answered."""
        with self._lock:
            self.requests += 1


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metered(limit: int | None = None) -> Iterator[Meter]:
    """Count, and bound, what is fetched of models that are opened inside. What is here already is not counted."""
    from huggingface_hub import get_session

    meter, session = Meter(limit), get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "response": [*before["response"], meter.count]}
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
        session.event_hooks = before


def _take(remote: Remote, names: Iterable[str]) -> None:
    """Note files of a model that are about to be downloaded and are not in the Hub cache."""
    meter = _METER.get()
    if meter is not None:
        snapshot = _storage(remote.repo) / "snapshots" / remote.commit
        listed = remote.files or {}
        meter.take(sum(listed[name].size for name in names if not (snapshot / name).is_file()), remote.named)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at a commit. blob: its git id; sha256: of its content, None if it is not a large file."""

    path: str
    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """A dataset or model at a commit. asked: the branch, tag or commit that was asked for. changed: date of the commit
    in ISO format, "" if the Hub did not say. file: the one weight file that was asked for, "" if none was named."""

    repo: str
    asked: str
    commit: str
    changed: str = ""
    files: Mapping[str, RemoteFile] | None = None
    kind: str = "dataset"
    file: str = ""

    @property
    def label(self) -> str:
        """As people write it."""
        return f"{self.repo}@{self.commit[:12]}"

    @property
    def named(self) -> str:
        """As it was asked for."""
        return self.repo if self.asked == "main" else f"{self.repo}@{self.asked}"


@dataclass(frozen=True, slots=True)
class Cached:
    """A snapshot in the Hub cache with all its weights.

    whole: config and tokenizer are there too, as far as one can tell. Another program may have fetched the weights
    alone, and what is read must not depend on that.
    """

    folder: Path
    whole: bool


def cached_model(repo: str, revision: str | None, file: str = "") -> Cached | None:
    """The snapshot of a model in the Hub cache if its weights are complete, without any network.

    revision: branch, tag or commit; None for "main" as it was last seen. file: the one weight file that is meant.
    """
    storage = _storage(repo)
    wanted = revision or "main"
    if _COMMIT.fullmatch(wanted):
        commit = wanted
    else:
        reference = storage / "refs" / wanted
        if not reference.is_file():
            return None
        commit = local_files.read_bounded(reference, 1 << 10).decode("ascii", "replace").strip()
    snapshot = storage / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    if file:
        return Cached(snapshot, True) if (snapshot / file).is_file() else None
    if not _has_weights(snapshot):
        return None
    tokenizer = layout.tokenizer_files(item.name for item in snapshot.iterdir() if item.is_file())
    return Cached(snapshot, bool(tokenizer) and (snapshot / layout.CONFIG).is_file())


def commits_of(repo: str) -> list[str]:
    """The commits of a model that are in the Hub cache with their weights, the last one first."""
    storage = _storage(repo)
    return [commit for commit in local_files.commits_of(storage) if _has_weights(storage / "snapshots" / commit)]


def _storage(repo: str) -> Path:
    """The folder of a model in the Hub cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / ("models--" + repo.replace("/", "--"))


def model_at(repo: str, revision: str | None, file: str = "") -> Remote:
    """A model at the commit of a branch, tag or commit (None: main) with the list of its files; one request.

    file: the one weight file that is meant.

    ModelNotFoundError if there is no such repository or revision, NetworkError for everything that the network or the
    Hub refuses.
    """
    from huggingface_hub import HfApi

    with _asking(_Task(f"{repo}@{revision}" if revision else repo)):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        found = [
            RemoteFile(f.rfilename, int(f.size or 0), str(f.blob_id or ""), f.lfs.sha256 if f.lfs else None)
            for f in info.siblings or ()
        ]
    if not _COMMIT.fullmatch(str(info.sha)):  # folders are named by it
        raise NetworkError(f"The Hub named no commit of {repo}.", "Try again later.")
    if len(found) > MAX_FILES:
        raise ModelError(f"{repo} has more than {MAX_FILES:,} files.", "Name one of its weight files.")
    files = {one.path: one for one in found if _is_sound(one)}
    return Remote(repo, revision or "main", str(info.sha), files=files, kind="model", file=file)


def weights_at(remote: Remote) -> dict[str, tuple[str, ...] | None]:
    """The weight files of a model, with the tensors that an index promises of each (None: whatever it has).

    The index is fetched into the Hub cache. ModelError if the model holds nothing that we read.
    """
    from huggingface_hub import hf_hub_download

    sizes = _sizes(remote)
    if remote.file:
        return dict.fromkeys(layout.named_files(remote.file, sizes, remote.repo))
    chosen = layout.weight_files(sizes, remote.repo)
    if not chosen.index:
        return dict.fromkeys(chosen.files)
    _check_size(remote.repo, chosen.index, sizes, layout.MAX_INDEX)
    _take(remote, [chosen.index])
    with _asking(_Task(remote.named)):
        index = Path(hf_hub_download(remote.repo, chosen.index, revision=remote.commit))
    shards = layout.shards_of(local_files.read_bounded(index, layout.MAX_INDEX), chosen.index, remote.repo)
    return dict(_present(shards, sizes, remote.repo))


def fetch_model(remote: Remote, weights: Collection[str], *, tokenizer: bool = True) -> Path:
    """Download what a fingerprint needs of a model into the Hub cache: the weight files that are named, config, card,
    and the tokenizer if it is wanted. The snapshot folder, named by the commit; it may be absent if nothing was needed.

    ModelError for a file of absurd size, NetworkError for everything that the network or the Hub refuses.
    """
    from huggingface_hub import snapshot_download

    sizes = _sizes(remote)
    configs = (layout.CONFIG, layout.ADAPTER_CONFIG)
    companions = [n for n in (*configs, layout.CARD) if n in sizes]
    companions += layout.tokenizer_files(sizes) if tokenizer else []
    for name in companions:
        _check_size(remote.repo, name, sizes, local_files.MAX_CONFIG if name in configs else _MAX_COMPANION)
    indexes = [n for n in sizes if n.endswith(layout.INDEX_SUFFIXES) and weights]
    wanted = [*companions, *indexes, *weights, *layout.data_files(sizes, weights)]
    if not wanted:
        return _storage(remote.repo) / "snapshots" / remote.commit
    _take(remote, wanted)
    with _asking(_Task(remote.named)):
        # The name of the branch, not the commit, so that the client notes which commit the branch was at.
        patterns = [glob.escape(name) for name in wanted]
        return Path(snapshot_download(remote.repo, revision=remote.asked, allow_patterns=patterns))


def ranges_of(remote: Remote, name: str) -> Callable[[Sequence[tuple[int, int]], Callable[[int, bytes], None]], None]:
    """A function that fetches byte ranges of a file of a model, several at once, and hands over what comes.

    It goes on where a connection was cut. Addresses that the Hub signs for a while are asked for again when they have
    expired. NetworkError if ranges could not be had.
    """
    file = (remote.files or {})[name]
    task = _Task(remote.named, doing="reading parts of")
    place, meter = _Location(remote, file), _METER.get()

    def fetch(ranges: Sequence[tuple[int, int]], keep: Callable[[int, bytes], None]) -> None:
        if meter is not None:
            meter.take(sum(stop - start for start, stop in ranges), remote.named)
        with _own_words(task), quiet_client(bars=False), ThreadPoolExecutor(CONNECTIONS) as pool:
            running = [pool.submit(_fetch_range, place, start, stop, keep) for start, stop in ranges]
            try:
                for done in running:
                    done.result()
            finally:
                for waiting in running:
                    waiting.cancel()

    return fetch


class _Location:
    """Where the bytes of a file are, as the Hub says; asked for once, and again when that has expired."""

    def __init__(self, remote: Remote, file: RemoteFile) -> None:
        self.remote, self.file = remote, file
        self._lock = Lock()
        self._known = ""

    def url(self, stale: str = "") -> str:
        """An address that is not the stale one."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        with self._lock:
            if not self._known or self._known == stale:
                asked = hf_hub_url(self.remote.repo, self.file.path, revision=self.remote.commit)
                found = get_hf_file_metadata(asked, retry_on_errors=True)
                if found.size is not None and found.size != self.file.size:
                    raise NetworkError(
                        f"{self.file.path} of {self.remote.named} has another size than the Hub announced.",
                        "Run the command again.",
                    )
                self._known = found.location
            return self._known

    def headers(self, url: str) -> dict[str, str]:
        """What a request for bytes is sent with; the token goes to the Hub itself and to nobody else."""
        from huggingface_hub.utils import build_hf_headers

        ours = urlsplit(url)[:2] == urlsplit(endpoint())[:2]  # scheme too: a token is no matter for plain http
        return {**build_hf_headers(token=None if ours else False), "Accept-Encoding": "identity"}


def _fetch_range(place: _Location, start: int, stop: int, keep: Callable[[int, bytes], None]) -> None:
    """Bytes [start, stop) of a file; what came before a connection was cut is not asked for again."""
    from huggingface_hub.errors import HTTPError

    tries, url = DOWNLOAD_TRIES, place.url()
    while start < stop:
        failure: Exception | None = None
        before = start
        try:
            for piece in _pieces(url, place, start, stop):
                keep(start, piece)
                start += len(piece)
        except HTTPError as error:
            failure = error
        if start > before:
            tries = DOWNLOAD_TRIES
            continue
        tries -= 1
        status = _status(failure) if failure is not None else None
        if status in (400, 401, 403, 404) and tries == DOWNLOAD_TRIES - 1:  # a signed address may have expired
            url = place.url(stale=url)
            continue
        if failure is not None and (not tries or (status or 500) < 500):
            raise failure
        if not tries:
            raise NetworkError(f"{place.file.path} of {place.remote.named} comes shorter than asked.", "Try again.")
        time.sleep(DOWNLOAD_WAIT)


def _pieces(url: str, place: _Location, start: int, stop: int) -> Iterator[bytes]:
    """What a server sends of a range, never more than was asked for."""
    from huggingface_hub import constants
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    with http_stream_backoff(
        "GET",
        url,
        headers={**place.headers(url), "Range": f"bytes={start}-{stop - 1}"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(408, 429),  # the caller goes on after the others
    ) as response:
        hf_raise_for_status(response)
        said = response.headers.get("Content-Range", "")
        if response.status_code != 206 or not said.startswith(f"bytes {start}-"):
            raise NetworkError(
                f"The Hub does not send parts of {place.file.path} of {place.remote.named}.",
                "Add --mode exact: the whole model is downloaded then.",
            )
        for piece in response.iter_bytes():
            yield piece[: stop - start]
            start += len(piece)
            if start >= stop:
                return


def _has_weights(snapshot: Path) -> bool:
    """Whether a cached snapshot has weights, and every shard that its index lists."""
    place = local_files.look_at(snapshot)
    try:
        chosen = layout.weight_files(local_files.list_sizes(place), str(snapshot))
    except ModelError:  # nothing of ours, or not all numbered shards: the Hub may have the rest
        return False
    if not chosen.index:
        return True
    content = local_files.read_bounded(snapshot / chosen.index, layout.MAX_INDEX)
    return all((snapshot / name).is_file() for name in layout.shards_of(content, chosen.index, str(snapshot)))


def _sizes(remote: Remote) -> dict[str, int]:
    return {name: file.size for name, file in (remote.files or {}).items()}


def _check_size(repo: str, name: str, sizes: Mapping[str, int], limit: int) -> None:
    if sizes[name] > limit:
        raise ModelError(
            f"{repo} has a {name} of {sizes[name]} bytes, which no such file needs.", "Tell its publisher."
        )


def _present(
    shards: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int], repo: str
) -> Mapping[str, tuple[str, ...]]:
    missing = next((name for name in shards if name not in sizes), None)
    if missing is not None:
        raise ModelError(
            f"{repo} lacks {missing}, which its index lists.", "Tell its publisher, or try another revision."
        )
    return shards


@contextmanager
def quiet_client(*, bars: bool = True) -> Iterator[None]:
    """The client's progress bars are for terminals, elsewhere they fill logs; its warnings hold signed addresses.

    bars: False where a bar of our own is shown. It is the whole process that is quiet: not for use in several threads.
    """
    from huggingface_hub import utils

    hide = not utils.are_progress_bars_disabled() and not (bars and sys.stderr.isatty())
    verbosity = utils.logging.get_verbosity()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hide:
            utils.enable_progress_bars()


# --- datasets, read ---


def dataset_at(repo: str, revision: str | None) -> Remote:
    """The commit of a branch, tag or commit of a dataset (None: main); one request, no files are listed."""
    from huggingface_hub import HfApi

    with _asking(_named(_PULLING, repo, revision)):
        info = HfApi().dataset_info(repo, revision=revision)
    if not _COMMIT.fullmatch(info.sha or ""):
        raise IndexFormatError(f"The Hub named no commit of the dataset {repo}.", "Try again later.")
    changed = f"{info.last_modified:%Y-%m-%dT%H:%M:%SZ}" if info.last_modified else ""
    return Remote(repo, revision or "main", str(info.sha), changed)


def with_files(remote: Remote) -> Remote:
    """The same dataset with the list of its files (one request for 1,000).

    IndexFormatError if it has too many, or a list in which a path or a digest is none.
    """
    from huggingface_hub import HfApi

    with _asking(_named(_PULLING, remote.repo, remote.commit)):
        tree = HfApi().list_repo_tree(remote.repo, recursive=True, revision=remote.commit, repo_type="dataset")
        listed = list(islice(tree, MAX_FILES + 1))
    if len(listed) > MAX_FILES:
        raise IndexFormatError(f"{remote.label} has more than {MAX_FILES:,} files.", "Tell its maintainers.")
    files = [
        RemoteFile(item.path, item.size, item.blob_id, item.lfs.sha256 if item.lfs else None)
        for item in listed
        if hasattr(item, "size")  # a folder has none
    ]
    if not all(map(_is_sound, files)):
        raise IndexFormatError(f"The Hub's list of the files of {remote.label} is none.", "Try again later.")
    return replace(remote, files={file.path: file for file in files})


def _is_sound(file: RemoteFile) -> bool:
    """Whether a file of a list can be one: names of files here are made of its path and digests."""
    path = file.path if isinstance(file.path, str) else ""
    named = all(part not in ("", ".", "..") for part in path.split("/")) and not set(path) & set("\\\0:")
    digests = _COMMIT.fullmatch(str(file.blob)) and (file.sha256 is None or _SHA256.fullmatch(str(file.sha256)))
    return bool(named and digests) and isinstance(file.size, int) and file.size >= 0


def download(remote: Remote, file: RemoteFile, target: Path, add: Callable[[int], None] = lambda _: None) -> None:
    """Write a file of a dataset to `target`, going on where an earlier attempt was cut. add: told how many bytes come.

    What came is as long as it was announced, and not yet trusted. NetworkError if it could not be had. Several threads
    may download at once, inside one `quiet_client`. (The client's own download keeps nothing of a file that was cut in
    another process, and what comes in pieces of less than 10 MB not in its own.)
    """
    from huggingface_hub.errors import HTTPError

    task = _named(_PULLING, remote.repo, remote.commit)
    with _own_words(task), target.open("ab") as opened:
        tries, longest = DOWNLOAD_TRIES, opened.tell()
        while opened.tell() < file.size:
            failure: Exception | None = None
            try:
                _append(remote, file, opened, add)
            except HTTPError as error:
                failure = error
            if opened.tell() > longest:
                tries, longest = DOWNLOAD_TRIES, opened.tell()
                continue
            tries -= 1
            if failure is not None and (not tries or (_status(failure) or 500) < 500):
                raise failure
            if not tries:
                raise NetworkError(
                    f"{file.path} of {task.name} comes shorter than announced.",
                    "Run the command again; if it says so again, tell the dataset's maintainers.",
                )
            time.sleep(DOWNLOAD_WAIT)
        if opened.tell() > file.size:
            opened.truncate(0)
            raise IndexFormatError(
                f"{file.path} of {task.name} is longer than announced.", "Tell the dataset's maintainers."
            )


def _append(remote: Remote, file: RemoteFile, opened: BinaryIO, add: Callable[[int], None]) -> None:
    """Ask for the rest of a file and write what comes, at most one piece more than it should be."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    url = hf_hub_url(remote.repo, file.path, repo_type="dataset", revision=remote.commit)
    start = opened.tell()
    headers = {**build_hf_headers(), **({"Range": f"bytes={start}-"} if start else {})}
    with http_stream_backoff(
        "GET",
        url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(408, 429),  # the caller goes on after the others
    ) as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # the server sends all of it again
            opened.truncate(0)
        for piece in response.iter_bytes():
            add(len(piece))
            opened.write(piece)
            if opened.tell() > file.size:
                return
    opened.flush()


@contextmanager
def opened_remotely(remote: Remote, file: RemoteFile) -> Iterator[Any]:
    """A file of a dataset that is read by ranges, for those who need little of it."""
    from huggingface_hub import HfFileSystem

    path = f"datasets/{remote.repo}@{remote.commit}/{file.path}"
    with (
        _asking(_named(_PULLING, remote.repo, remote.commit)),
        HfFileSystem(skip_instance_cache=True).open(path, block_size=BLOCK) as opened,
    ):
        yield opened


# --- datasets, written ---


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit made. number: of the pull request, None for a commit to the branch. url: where a person sees it."""

    commit: str
    number: int | None
    url: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What the Hub says of a model's terms. gated: whether its publisher decides who may read it."""

    license: str | None
    gated: bool


def terms_of(repo: str, revision: str | None) -> Terms | None:
    """License and gating of a model; None if the Hub has no such public model.

    Those of its main branch if the Hub has no such revision: a gate is the repository's.
    """
    from huggingface_hub import HfApi

    try:
        with _asking(_Task(repo, doing="asking about")):
            info = HfApi().model_info(repo, revision=revision)
    except ModelNotFoundError:
        return None if revision is None else terms_of(repo, None)
    stated = getattr(info.card_data, "license", None)
    return Terms(stated if isinstance(stated, str) else None, bool(info.gated))


def account(repo: str) -> str | None:
    """Name of the account that the token belongs to, None without one; NetworkError if the Hub does not accept it."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        return None
    with _asking(_named(_PUSHING, repo, None)):
        return str(HfApi().whoami()["name"])


def signed_in_as(repo: str) -> str:
    """Name of the account that writes to a dataset; NetworkError if nobody is signed in."""
    name = account(repo)
    if name is None:
        raise NetworkError(f"Writing to {repo} needs an account.", "Set HF_TOKEN or run `hf auth login`.")
    return name


def create_dataset(repo: str, *, private: bool) -> None:
    """Make a dataset repository; nothing happens if it is there."""
    from huggingface_hub import HfApi

    with _asking(_named(_PUSHING, repo, None)):
        HfApi().create_repo(repo, repo_type="dataset", private=private, exist_ok=True)


def open_requests(repo: str, title: str) -> dict[str, Committed]:
    """The open pull requests of that title, by their authors; an earlier attempt may have made one."""
    from huggingface_hub import HfApi

    with _asking(_named(_PUSHING, repo, None)):
        found = HfApi().get_repo_discussions(
            repo, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
        )
        return {d.author: Committed("", d.num, d.url) for d in found if d.title == title}


def commit(
    remote: Remote,
    files: Mapping[str, Path],
    title: str,
    description: str = "",
    *,
    remove: Sequence[str] = (),
    pull_request: bool = False,
) -> Committed:
    """One commit on top of `remote.commit`, or a pull request from there, with everything or nothing in it.

    ConflictError if the branch has moved on, NetworkError if the Hub refused: nothing was written. UnansweredError: the
    commit may have been made, look before trying again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with _asking(_named(_PUSHING, remote.repo, None)):
        operations: list[Any] = [CommitOperationAdd(path, str(source)) for path, source in files.items()]
        operations += [CommitOperationDelete(path) for path in remove]
        made = HfApi().create_commit(
            remote.repo,
            operations,
            commit_message=title,
            commit_description=description,
            repo_type="dataset",
            revision=None if pull_request else remote.asked,
            parent_commit=remote.commit,
            create_pr=pull_request,
        )
    return Committed(made.oid, made.pr_num, made.pr_url or made.commit_url)


def _named(task: _Task, repo: str, revision: str | None) -> _Task:
    return replace(
        task, name=f"{repo}@{revision[:12] if _COMMIT.fullmatch(revision) else revision}" if revision else repo
    )


# --- failures, in our own words ---


@dataclass(frozen=True, slots=True)
class _Case:
    """How one failure of the client is told: if it is of one of the kinds (class names, bases count), or has one of the
    HTTP statuses. The fields of the task, and {status}, are filled in."""

    error: type[ProvindexError]
    message: str
    next_step: str
    kinds: tuple[str, ...] = ()
    statuses: Collection[int] = ()


# From the particular to the general: the first that fits is told.
_CASES = (
    _Case(
        AccessError,
        "The access token for {name} has a character that no token has.",
        "Set HF_TOKEN anew, or unset it for public repositories.",
        ("UnicodeEncodeError", "LocalProtocolError"),
    ),
    _Case(
        AccessError,
        "{name} is gated: its publisher decides who may read it.",
        "Accept its terms on the Hub, then set HF_TOKEN or run `hf auth login`.",
        ("GatedRepoError",),
    ),
    _Case(
        ModelNotFoundError,
        "The Hub has no such revision of {name}.",
        "Name a branch, a tag or a full commit after the @.",
        ("RevisionNotFoundError",),
    ),
    _Case(
        ModelNotFoundError,
        "The Hub has no {kind} {name}, or it is private.",
        "{absent}",
        ("RepositoryNotFoundError",),
    ),
    _Case(
        ModelNotFoundError,
        "{name} is no valid Hub id.",
        "Name a folder, a weight file, or org/name.",
        ("HFValidationError",),
    ),
    _Case(
        NetworkError,
        "{name} was not reached: asking the Hub is switched off.",
        "Unset HF_HUB_OFFLINE, or name a folder.",
        ("OfflineModeIsEnabled",),
    ),
    _Case(
        AccessError,
        "Nobody is signed in, and {doing} {name} needs an account.",
        "Set HF_TOKEN or run `hf auth login`.",
        ("LocalTokenNotFoundError",),
    ),
    _Case(
        AccessError,
        "The Hub did not accept the access token for {name}.",
        "Set HF_TOKEN to a valid token, or unset it for public repositories.",
        statuses=(401,),
    ),
    _Case(AccessError, "The Hub refuses access to {name} (403) while {doing} it.", "{denied}", statuses=(403,)),
    _Case(
        ModelNotFoundError,
        "The Hub has no such file or {kind}: {name} (404).",
        "Check the spelling and the revision.",
        statuses=(404, 410),
    ),
    _Case(
        ConflictError,
        "{name} changed on the Hub while {doing} it ({status}).",
        "Run the command again: nothing was written.",
        statuses=(409, 412),
    ),
    _Case(
        NetworkError,
        "The Hub asks to slow down (429) while {doing} {name}.",
        "Wait some minutes; signed-in requests (HF_TOKEN) have a larger allowance.",
        statuses=(429,),
    ),
    _Case(
        UnansweredError,
        "The Hub has a fault of its own ({status}) while {doing} {name}.",
        "Try again later; what was transferred is kept.",
        statuses=range(500, 600),
    ),
    _Case(
        NetworkError,
        "The Hub answered {status} while {doing} {name}.",
        "Try again later.",
        statuses=range(300, 500),
    ),
    _Case(
        UnansweredError,
        "The Hub did not answer in time while {doing} {name}.",
        "Try again; HF_HUB_DOWNLOAD_TIMEOUT sets a longer wait.",
        ("TimeoutException", "TimeoutError"),
    ),
    _Case(
        NetworkError,
        "The Hub could not be reached for {name}.",
        "Check the network, HF_ENDPOINT and the proxy settings.",
        ("ConnectError", "ProxyError", "ConnectionRefusedError"),
    ),
    _Case(
        UnansweredError,
        "The connection was cut while {doing} {name}.",
        "Run the command again; complete files are kept.",
        ("TransportError", "ConnectionError", "LocalEntryNotFoundError", "FileMetadataError", "RuntimeError"),
    ),
    _Case(
        NetworkError,
        "{name} could not be stored on this disk, or arrived damaged.",
        "Check the free space and the permissions of HF_HOME and PROVINDEX_CACHE, then run the command again.",
        ("OSError",),
    ),
)


@contextmanager
def _asking(task: _Task) -> Iterator[None]:
    """A conversation with the Hub: failures in our own words, the client quiet; its bars are shown for models only."""
    with _own_words(task), quiet_client(bars=task.kind == "model"):
        yield


# What the client raises of an answer that is not what it expects: it takes fields for granted.
_MISUNDERSTOOD: tuple[type[Exception], ...] = (KeyError, TypeError, ValueError, AttributeError)


@contextmanager
def _own_words(task: _Task) -> Iterator[None]:
    """Turn what huggingface_hub and its transport raise into our errors. Their texts are not repeated: they hold URLs
    and ids of requests, and never a next step."""
    from huggingface_hub import errors

    # hf_xet, the client's native transport, reports network failures as RuntimeError.
    foreign: tuple[type[Exception], ...] = (errors.HTTPError, errors.HFValidationError, OSError, RuntimeError)
    foreign += _MISUNDERSTOOD
    try:
        yield
    except ProvindexError:
        raise
    except foreign as error:
        raise _told(error, task) from error


def _told(error: BaseException, task: _Task) -> ProvindexError:
    """The first case that fits the error or what caused it: the client wraps network errors in "not found locally"."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    for link in chain:
        if isinstance(link, OSError) and link.errno in FULL:
            what = f"{link.filename or 'What the Hub sent'} could not be written: {os.strerror(link.errno)}."
            return StorageError(what, "Free some space there, or set HF_HOME to a folder on another disk.", link)
    for case in _CASES:
        for link in chain:
            status = _status(link)
            names = {kind.__name__ for kind in type(link).__mro__}
            if names.intersection(case.kinds) or status in case.statuses:
                return _filled(case, task, status)
    if isinstance(error, _MISUNDERSTOOD):
        what = f"What the Hub answered about {task.name} is not understood ({type(error).__name__})."
        return NetworkError(what, "Try again later, or look at HF_ENDPOINT if it is set.")
    return NetworkError(f"The Hub failed while {task.doing} {task.name} ({type(error).__name__}).", "Try again later.")


def _filled(case: _Case, task: _Task, status: Any) -> ProvindexError:
    kind = DatasetNotFoundError if task.kind == "dataset" and case.error is ModelNotFoundError else case.error
    fields = {"name": task.name, "kind": task.kind, "doing": task.doing, "status": status}
    return kind(case.message.format(**fields), case.next_step.format(absent=task.absent, denied=task.denied))


def _status(error: BaseException) -> Any:
    return getattr(getattr(error, "response", None), "status_code", None)
