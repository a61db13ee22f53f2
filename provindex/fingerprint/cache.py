"""Fingerprints that were made before, found again by content.

A changed file, a changed config or another version is another key. The folder of an entry is named by what
costs little to read (headers, config, tokenizer files, the ends of each tensor). So a model that was never seen is
recognized at once, and its weights are read once, not twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from provindex.common import places
from provindex.common.errors import ProvindexError
from provindex.common.files import file_sha256
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.common.threads import workers
from provindex.evidence.panels import PANELS_VERSION
from provindex.fingerprint import parquet
from provindex.fingerprint.panels import LAYOUT
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.models.source import Model
from provindex.models.tokenizer import MAX_BYTES

ENDS = 4096  # bytes at both ends of a tensor that tell most different models apart
STEP = 1 << 20
MADE = 1 << 14  # values of a tensor that are made, at its beginning and in its middle, where stored bytes do not tell


def content_key(model: Model, mode: str, digests: Mapping[str, str] | None = None) -> str:
    """sha256 over everything that the fingerprint of a model is made from.

    That is tensors, config, tokenizer files, mode, and the versions of fingerprints and of their panels. digests:
    sha256 of the stored bytes of tensors, by name, where they are known; the others are read.
    """
    known = digests or {}

    def digest(tensor: Tensor) -> str:
        stored = (tensor.raw(i, i + STEP) for i in range(0, tensor.nbytes, STEP))
        return known.get(tensor.name) or _sha256(itertools.chain(stored, _made(tensor)))

    return _key(model, mode, digest)


def _made(tensor: Tensor) -> list[memoryview]:
    """Some of the values of a tensor whose stored bytes do not tell them: the same may be transposed, or decoded as
    another format, or as an earlier version of this program decoded them.
    """
    if tensor.plain:
        return []
    return [tensor.flat(start, start + MADE).data.cast("B") for start in (0, tensor.size // 2)]


def quick_key(model: Model, mode: str) -> str:
    """Like `content_key`, over the first and last bytes of each tensor only: equal models have equal ones, and so may
    different models.
    """
    return _key(model, mode, lambda tensor: _sha256([tensor.raw(0, ENDS), tensor.raw(max(0, tensor.nbytes - ENDS))]))


def _key(model: Model, mode: str, digest: Callable[[Tensor], str]) -> str:
    with ThreadPoolExecutor(workers()) as pool:
        found = pool.map(digest, (model.tensors[name] for name in sorted(model.tensors)))
        tensors = (model.tensors[name] for name in sorted(model.tensors))
        lines = [f"{t.name} {t.dtype} {t.shape} {sha256}\n" for t, sha256 in zip(tensors, found, strict=True)]
    lines += [f"{name} {_file_sha256(file)}\n" for name, file in sorted(model.tokenizer_files.items())]
    lines.append(f"{sorted_json(model.config)} {_why(model)} {mode} {FINGERPRINT_VERSION}.{PANELS_VERSION}.{LAYOUT}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _why(model: Model) -> str:
    """Why there is no config, if there is none."""
    return "" if model.config_reason is None else sorted_json(model.config_reason.to_json())


def _file_sha256(file: Path | bytes) -> str:
    if isinstance(file, bytes):
        return _sha256([memoryview(file)])
    size = file.stat().st_size
    return file_sha256(file) if size <= MAX_BYTES else f"{size} bytes"  # which is all that is known of it


def _sha256(pieces: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def sorted_json(value: object) -> str:
    """JSON with sorted keys, so that the order of keys in a config says nothing."""
    return json.dumps(value, sort_keys=True, default=str)


def through(
    model: Model, mode: str, make: Callable[[], Fingerprint], digests: Mapping[str, str] | None = None
) -> Fingerprint:
    """The fingerprint of a model from the cache, else made and kept there.

    What is about this copy (id, revision, files, license, claimed parents, warnings of its reading) is always this
    copy's own. Sampled mode reads little and is not cached: its key would cost a read of the whole file. digests:
    filled by `make` with the sha256 of tensors that it read, see `fingerprint_model`.
    """
    if mode != "exact":
        return make()
    place = places.cache() / "fingerprints" / f"v{FINGERPRINT_VERSION}" / quick_key(model, mode)
    kept = _read(place, model, mode)
    if kept is not None:
        return _as_copy(kept, model)
    fresh = make()
    of_any_copy = replace(fresh, warnings=tuple(w for w in fresh.warnings if w not in model.warnings))
    try:
        parquet.write_fingerprint(of_any_copy, place / f"{content_key(model, mode, digests)}.parquet")
    except OSError as error:  # a full or read-only disk costs the next run its shortcut, nothing else
        warning = Reason.of(Code.NOT_CACHED, problem=str(error.strerror))
        return replace(fresh, warnings=(*fresh.warnings, warning))
    return fresh


def _read(place: Path, model: Model, mode: str) -> Fingerprint | None:
    """The entry of a model; None if there is none, or it cannot be read and must be made again."""
    try:
        if not place.is_dir():
            return None
        path = place / f"{content_key(model, mode)}.parquet"
        return parquet.read_fingerprints(path)[0] if path.exists() else None
    except (ProvindexError, OSError):
        return None


def _as_copy(kept: Fingerprint, model: Model) -> Fingerprint:
    return replace(
        kept,
        model_id=model.model_id,
        revision=model.revision,
        variant=model.variant,
        license=model.license,
        parents=model.base_models,
        files=model.files,
        warnings=(*model.warnings, *kept.warnings),
    )
