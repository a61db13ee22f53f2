"""The only module that talks to the Hub, through huggingface_hub (imported where it is needed: it is slow to load).

Models are looked for in the Hub cache first, by reading its folders; only then is the Hub asked, and only for the
files that a fingerprint needs: config, card, tokenizer, safetensors. Never a pickle, never code. What the client
raises is told in our own words, so that no request header, and no token, reaches the screen.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provindex.errors import ModelError, ModelNotFoundError, NetworkError, ProvindexError
from provindex.formats import folder as layout
from provindex.formats import local_files

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_COMPANION = 64 << 20  # bytes of one tokenizer file; the largest public ones are about 35 MB


def offline_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE (or the client's other switches) forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@dataclass(frozen=True, slots=True)
class Cached:
    """A snapshot in the Hub cache with all its weights.

    whole: config and tokenizer are there too, as far as one can tell. Another program may have fetched the weights
    alone, and what is read must not depend on that.
    """

    folder: Path
    whole: bool


def cached_model(repo: str, revision: str | None) -> Cached | None:
    """The snapshot of a model in the Hub cache if its weights are complete, without any network.

    revision: branch, tag or commit; None for "main" as it was last seen.
    """
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE).expanduser() / ("models--" + repo.replace("/", "--"))
    wanted = revision or "main"
    if _COMMIT.fullmatch(wanted):
        commit = wanted
    else:
        reference = storage / "refs" / wanted
        if not reference.is_file():
            return None
        commit = local_files.read_bounded(reference, 1 << 10).decode("ascii", "replace").strip()
    snapshot = storage / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir() or not _has_weights(snapshot):
        return None
    tokenizer = any((snapshot / name).is_file() for name in layout.TOKENIZER_FILES)
    return Cached(snapshot, tokenizer and (snapshot / layout.CONFIG).is_file())


def fetch_model(repo: str, revision: str | None) -> Path:
    """Download what a fingerprint needs of a model into the Hub cache; its snapshot folder, named by the commit.

    ModelNotFoundError if there is no such repository or revision, ModelError if it holds nothing that we read,
    NetworkError for everything that the network or the Hub refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with _own_words(repo, revision), _quiet_client():
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
        chosen = layout.weight_files(sizes, repo)
        files = chosen.files
        if chosen.index:
            _check_size(repo, chosen.index, sizes, layout.MAX_INDEX)
            index = Path(hf_hub_download(repo, chosen.index, revision=info.sha))
            content = local_files.read_bounded(index, layout.MAX_INDEX)
            files = (chosen.index, *_present(layout.shards_of(content, chosen.index, repo), sizes, repo))
        companions = [n for n in (layout.CONFIG, layout.CARD, *layout.TOKENIZER_FILES) if n in sizes]
        for name in companions:
            _check_size(repo, name, sizes, local_files.MAX_CONFIG if name == layout.CONFIG else _MAX_COMPANION)
        # The name of the branch, not the commit, so that the client notes which commit the branch was at.
        patterns = [glob.escape(name) for name in (*companions, *files)]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def _has_weights(snapshot: Path) -> bool:
    """Whether a cached snapshot has weights, and every shard that its index lists."""
    place = local_files.look_at(snapshot)
    try:
        chosen = layout.weight_files(local_files.list_names(place), str(snapshot))
    except ModelError:  # nothing of ours, or not all numbered shards: the Hub may have the rest
        return False
    if not chosen.index:
        return True
    content = local_files.read_bounded(snapshot / chosen.index, layout.MAX_INDEX)
    return all((snapshot / name).is_file() for name in layout.shards_of(content, chosen.index, str(snapshot)))


def _check_size(repo: str, name: str, sizes: Mapping[str, int], limit: int) -> None:
    if sizes[name] > limit:
        raise ModelError(
            f"{repo} has a {name} of {sizes[name]} bytes, which no such file needs.", "Tell its publisher."
        )


def _present(shards: Collection[str], sizes: Mapping[str, int], repo: str) -> Collection[str]:
    missing = next((name for name in shards if name not in sizes), None)
    if missing is not None:
        raise ModelError(
            f"{repo} lacks {missing}, which its index lists.", "Tell its publisher, or try another revision."
        )
    return shards


@contextmanager
def _quiet_client() -> Iterator[None]:
    """The client's progress bars are for terminals, elsewhere they fill logs; its warnings hold signed addresses."""
    from huggingface_hub import utils

    hide = not utils.are_progress_bars_disabled() and not sys.stderr.isatty()
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


@dataclass(frozen=True, slots=True)
class _Case:
    """How one failure of the client is told: if it is of one of the kinds (class names, bases count), or has one of the
    HTTP statuses. {model} and {status} are filled in."""

    error: type[ProvindexError]
    message: str
    next_step: str
    kinds: tuple[str, ...] = ()
    statuses: Collection[int] = ()


# From the particular to the general: the first that fits is told.
_CASES = (
    _Case(
        NetworkError,
        "{model} is gated: its publisher decides who may read it.",
        "Accept its terms on the Hub, then set HF_TOKEN or run `hf auth login`.",
        ("GatedRepoError",),
    ),
    _Case(
        ModelNotFoundError,
        "The Hub has no such revision of {model}.",
        "Name a branch, a tag or a full commit after the @.",
        ("RevisionNotFoundError",),
    ),
    _Case(
        ModelNotFoundError,
        "The Hub has no model {model}, or it is private.",
        "Check the spelling; for a private model set HF_TOKEN or run `hf auth login`.",
        ("RepositoryNotFoundError",),
    ),
    _Case(
        ModelNotFoundError,
        "{model} is no valid Hub id.",
        "Name a folder, a .safetensors file, or org/name.",
        ("HFValidationError",),
    ),
    _Case(
        NetworkError,
        "{model} was not fetched: asking the Hub is switched off.",
        "Unset HF_HUB_OFFLINE, or name a folder.",
        ("OfflineModeIsEnabled",),
    ),
    _Case(
        NetworkError,
        "The Hub did not accept the access token for {model}.",
        "Set HF_TOKEN to a valid token, or unset it for public models.",
        statuses=(401,),
    ),
    _Case(
        NetworkError,
        "The Hub refuses access to {model} (403).",
        "Set HF_TOKEN to a token that may read it.",
        statuses=(403,),
    ),
    _Case(
        ModelNotFoundError,
        "The Hub has no such file or model: {model} (404).",
        "Check the spelling and the revision.",
        statuses=(404, 410),
    ),
    _Case(
        NetworkError,
        "The Hub asks to slow down (429) while fetching {model}.",
        "Wait some minutes; signed-in requests (HF_TOKEN) have a larger allowance.",
        statuses=(429,),
    ),
    _Case(
        NetworkError,
        "The Hub has a fault of its own ({status}) while fetching {model}.",
        "Try again later; what was downloaded is kept.",
        statuses=range(500, 600),
    ),
    _Case(
        NetworkError,
        "The Hub answered {status} while fetching {model}.",
        "Try again later.",
        statuses=range(300, 500),
    ),
    _Case(
        NetworkError,
        "The Hub did not answer in time while fetching {model}.",
        "Try again; HF_HUB_DOWNLOAD_TIMEOUT sets a longer wait.",
        ("TimeoutException", "TimeoutError"),
    ),
    _Case(
        NetworkError,
        "The Hub could not be reached for {model}.",
        "Check the network, HF_ENDPOINT and the proxy settings.",
        ("ConnectError", "ProxyError", "ConnectionRefusedError"),
    ),
    _Case(
        NetworkError,
        "The download of {model} was cut.",
        "Run the command again; complete files are kept.",
        ("TransportError", "ConnectionError", "LocalEntryNotFoundError", "FileMetadataError", "RuntimeError"),
    ),
    _Case(
        NetworkError,
        "{model} could not be stored in the Hub cache, or arrived damaged.",
        "Check the free space and the permissions of HF_HOME, then run the command again.",
        ("OSError",),
    ),
)  # fmt: skip


@contextmanager
def _own_words(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub and its transport raise into our errors. Their texts are not repeated: they hold URLs
    and ids of requests, and never a next step."""
    from huggingface_hub import errors

    # hf_xet, the client's native transport, reports network failures as RuntimeError.
    foreign: tuple[type[Exception], ...] = (errors.HTTPError, errors.HFValidationError, OSError, RuntimeError)
    try:
        yield
    except foreign as error:
        raise _told(error, f"{repo}@{revision}" if revision else repo) from error


def _told(error: BaseException, model: str) -> ProvindexError:
    """The first case that fits the error or what caused it: the client wraps network errors in "not found locally"."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    for case in _CASES:
        for link in chain:
            status = _status(link)
            names = {kind.__name__ for kind in type(link).__mro__}
            if names.intersection(case.kinds) or status in case.statuses:
                return case.error(case.message.format(model=model, status=status), case.next_step)
    return NetworkError(f"{model} could not be fetched ({type(error).__name__}).", "Try again later.")


def _status(error: BaseException) -> Any:
    return getattr(getattr(error, "response", None), "status_code", None)
