"""Model references in, tensors out: the only reader of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Tensor(Protocol):
    """One stored tensor: its header facts, and float32 views of its bytes read on demand (elements are row-major)."""

    name: str
    dtype: str  # safetensors spelling: F32, BF16, ...
    shape: tuple[int, ...]
    nbytes: int

    @property
    def size(self) -> int: ...
    def flat(self, start: int = 0, stop: int | None = None) -> F32:
        """Elements [start, stop) of the flattened tensor."""
    def strided(self, step: int, count: int) -> F32:
        """Elements 0, step, 2 step, ... (count of them) of the flattened tensor."""
    def rows(self, index: Sequence[int] | NDArray[np.int64]) -> F32:
        """The named rows (first axis), shape (len(index), size // shape[0])."""
    def chunks(self, elements: int = 1 << 22) -> Iterator[F32]:
        """The flattened tensor in order, a bounded piece at a time."""


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file that was read: name relative to the model, size in bytes, sha256 or None when it was not hashed."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """A model that is open for reading.

    model_id: "org/name" or the folder's or file's name. revision: commit, or None. config: config.json ({} if none, then
    config_reason says why). tokenizer_files: path by file name (tokenizer.json, vocab.txt, spiece.model ...).
    license, base_models: from the card's YAML front matter (None, () if unsaid). warnings: sentences for the reader.
    """

    model_id: str
    revision: str | None
    config: Mapping[str, Any]
    config_reason: str | None
    tensors: Mapping[str, Tensor]
    tokenizer_files: Mapping[str, Path]
    files: tuple[FileFact, ...]
    license: str | None = None
    base_models: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def open_model(reference: str, *, offline: bool = False) -> Model:
    """Open a folder, a weight file, or `org/name[@revision]` (from the Hub cache, else from the Hub)."""
    raise NotImplementedError
