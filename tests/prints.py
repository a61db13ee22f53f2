"""Fingerprints of zoo models, without a detour over the disk where files are not the point."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import zoo

from provindex.common.reasons import Code, Reason
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.formats.ranged import Mapped
from provindex.formats.tensors import tensor_from_array
from provindex.models.source import Model, open_model

_TEXTS = tempfile.TemporaryDirectory(prefix="provindex-tokenizers-")  # goes when the interpreter does


@cache
def _tokenizer_file(text: str) -> Path:
    path = Path(_TEXTS.name) / hashlib.sha256(text.encode()).hexdigest() / "tokenizer.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return path


def in_memory(checkpoint: zoo.Checkpoint, name: str = "model") -> Model:
    """A checkpoint as an open model, its tensors in memory."""
    text = checkpoint.tokenizer
    tensors, reads = {}, []
    for key, value in checkpoint.tensors.items():
        tensor = tensor_from_array(key, value)
        reads.append(Mapped(tensor.extent.data.tobytes()))
        tensors[key] = replace(tensor, extent=reads[-1].extent)
    return Model(
        model_id=name,
        revision=None,
        config=checkpoint.config,
        config_reason=None if checkpoint.config else Reason.of(Code.NO_CONFIG, name="config.json"),
        tensors=tensors,
        tokenizer_files={} if text is None else {"tokenizer.json": _tokenizer_file(text)},
        files=(),
        reads=tuple(reads),
    )


def fingerprint(checkpoint: zoo.Checkpoint, name: str = "model", **options: Any) -> Fingerprint:
    """The fingerprint of a checkpoint."""
    return fingerprint_model(in_memory(checkpoint, name), **options)


@cache
def _family(root: Path) -> tuple[zoo.Family, Mapping[str, Fingerprint]]:
    family = zoo.trained_family(root)
    return family, {name: fingerprint_model(open_model(str(path))) for name, path in family.folders.items()}


def trained(root: Path) -> tuple[zoo.Family, Mapping[str, Fingerprint]]:
    """The trained family and the fingerprints of its members; root: pytest's cache folder for the zoo."""
    return _family(root)


def independent_pairs(family: zoo.Family) -> Iterator[tuple[str, str]]:
    """Pairs of independently trained models of one config."""
    yield from combinations(family.founders, 2)
    yield from combinations(family.encoders, 2)
