"""Fingerprints that were made before, found again by content.

A changed file, a changed config or another version is another key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from provindex import dataset
from provindex.errors import ProvindexError
from provindex.fingerprint import FINGERPRINT_VERSION, Fingerprint
from provindex.source import Model


def folder() -> Path:
    """PROVINDEX_CACHE, else `provindex` in the user's cache folder."""
    chosen = os.environ.get("PROVINDEX_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "provindex"


def content_key(model: Model, mode: str) -> str:
    """sha256 over everything that the fingerprint of a model is made from.

    Tensors, config, tokenizer files, version and mode.
    """

    def tensor_line(name: str) -> str:
        tensor = model.tensors[name]
        digest = hashlib.sha256(tensor.raw(0, tensor.nbytes)).hexdigest()
        return f"{name} {tensor.dtype} {tensor.shape} {digest}\n"

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        lines = list(pool.map(tensor_line, sorted(model.tensors)))
    lines += [f"{name} {dataset.file_sha256(path)}\n" for name, path in sorted(model.tokenizer_files.items())]
    lines.append(f"{sorted_json(model.config)} {model.config_reason} {mode} {FINGERPRINT_VERSION}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sorted_json(value: object) -> str:
    """JSON with sorted keys, so that the order of keys in a config says nothing."""
    return json.dumps(value, sort_keys=True, default=str)


def through(model: Model, mode: str, make: Callable[[], Fingerprint]) -> Fingerprint:
    """The fingerprint of a model from the cache, else made and kept there.

    What is about this copy (id, revision, files, license, warnings) is always this copy's own. Sampled mode reads
    little and is not cached: its key would cost a read of the whole file.
    """
    if mode != "exact":
        return make()
    path = folder() / "fingerprints" / f"v{FINGERPRINT_VERSION}" / f"{content_key(model, mode)}.parquet"
    if path.exists():
        try:
            kept = dataset.read_fingerprints(path)[0]
        except ProvindexError:  # damaged: made again below, and replaced
            kept = None
        if kept is not None:
            return replace(
                kept, model_id=model.model_id, revision=model.revision, license=model.license, files=model.files
            )
    fresh = make()
    try:
        dataset.write_fingerprint(fresh, path)
    except OSError as error:  # a full or read-only disk costs the next run its shortcut, nothing else
        return replace(fresh, warnings=(*fresh.warnings, f"the fingerprint was not cached: {error.strerror}"))
    return fresh
