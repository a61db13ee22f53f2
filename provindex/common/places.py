"""Every environment variable that provindex reads, and the folders that follow from them; read at each call.

What Hub users know (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) is read by the Hub's own client; HF_HOME here too,
because pulled indexes lie below it.
"""

from __future__ import annotations

import os
from pathlib import Path

from provindex.common.errors import UsageError

LAST = 253_402_300_799  # seconds until the end of the year 9999, the last that Python's dates know
DEFAULT_DATASET = "provindex/fingerprints"  # nobody has published it yet; PROVINDEX_DATASET names another


def cache() -> Path:
    """Our cache: PROVINDEX_CACHE, else `provindex` in the user's cache folder."""
    chosen = os.environ.get("PROVINDEX_CACHE")
    return Path(chosen) if chosen else _user_cache() / "provindex"


def pulled_indexes() -> Path:
    """The folder of all pulled indexes: in PROVINDEX_CACHE if that is set, else beside the Hub's other files."""
    chosen = os.environ.get("PROVINDEX_CACHE")
    if chosen:
        return Path(chosen) / "indexes"
    home = os.environ.get("HF_HOME") or _user_cache() / "huggingface"
    return Path(home).expanduser() / "provindex" / "indexes"


def fetched_index() -> Path:
    """The index of models that were fetched from the Hub one by one."""
    return pulled_indexes() / "fetched"


def default_indexes() -> list[str]:
    """What PROVINDEX_INDEX names: folders or datasets, separated like PATH; empty if it is not set."""
    return [name for name in os.environ.get("PROVINDEX_INDEX", "").split(os.pathsep) if name]


def default_dataset() -> str:
    """The dataset that is meant where none is named: PROVINDEX_DATASET, else the public one."""
    return os.environ.get("PROVINDEX_DATASET") or DEFAULT_DATASET


def default_policy() -> str | None:
    """The policy that is meant where none is named: PROVINDEX_POLICY; "" for none at all, None if it is not set."""
    return os.environ.get("PROVINDEX_POLICY")


def epoch() -> int | None:
    """SOURCE_DATE_EPOCH in seconds, for builds that repeat byte for byte; None if it is not set. UsageError if it is no
    time."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not said:
        return None
    if not (said.isascii() and said.isdigit() and len(said) <= len(str(LAST)) and int(said) <= LAST):
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {said[:40]!r}, which is no time.",
            "Set it to whole seconds since 1970 (date +%s), or unset it.",
        )
    return int(said)


def debug() -> bool:
    """Whether PROVINDEX_DEBUG=1 asks for tracebacks."""
    return os.environ.get("PROVINDEX_DEBUG") == "1"


def color() -> bool:
    """Whether colors are allowed: NO_COLOR is not set."""
    return not os.environ.get("NO_COLOR")


def limit_blas_threads() -> None:
    """Let OpenBLAS start no threads of its own, unless the user said how many; before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) if base else Path.home() / ".cache"
