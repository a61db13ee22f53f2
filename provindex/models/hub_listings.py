"""Which files the Hub has of a model at a commit: kept, so that later runs offline know what was not downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from provindex.common import places
from provindex.common.bounded_json import JsonError, load_object
from provindex.common.errors import ModelError
from provindex.common.files import replacing
from provindex.formats import local_files

MAX_LISTING = 16 << 20  # bytes
Sizes = Mapping[str, int]


def keep(repo: str, commit: str, sizes: Sizes) -> Sizes:
    """The sizes, after writing them down. A disk that takes nothing costs later runs the knowledge, and no more."""
    path = _place(repo, commit)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(sizes), encoding="utf-8")
    return sizes


def kept(repo: str, commit: str | None) -> Sizes:
    """Bytes of the files of a model at a commit, by name; {} where no earlier run wrote it down."""
    path = _place(repo, commit or "")
    if not path.is_file():
        return {}
    try:
        said = load_object(local_files.read_bounded(path, MAX_LISTING))
    except (JsonError, ModelError):
        return {}
    return {name: size for name, size in said.items() if isinstance(size, int)}


def _place(repo: str, commit: str) -> Path:
    return places.cache() / "listings" / f"{hashlib.sha256(f'{repo} {commit}'.encode()).hexdigest()}.json"
