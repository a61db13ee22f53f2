"""A stored tensor, whatever file it lies in: what the readers make and all others read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Index = Sequence[int] | NDArray[np.int64]


class Tensor(Protocol):
    """One stored tensor: its header facts, and float32 copies or views of its elements, row-major, read on demand.

    Arrays may be read-only views of the file: copy before writing. Slices follow Python's rules; rows and strides
    beyond the tensor raise IndexError.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """As the format spells it: F32, BF16, Q4_K, ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int:
        """Stored bytes."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def plain(self) -> bool:
        """Whether `raw` is the elements in order, each as `dtype` says (a key of dtypes.STORED)."""

    def flat(self, start: int = 0, stop: int | None = None) -> F32:
        """Elements [start, stop) of the flattened tensor."""

    def strided(self, step: int, count: int) -> F32:
        """Elements 0, step, 2 step, ... (count of them) of the flattened tensor."""

    def rows(self, index: Index) -> F32:
        """The named rows (first axis), shape (len(index), size // shape[0])."""

    def chunks(self, elements: int = 1 << 22) -> Iterator[F32]:
        """The flattened tensor in order, a bounded piece at a time."""

    def raw(self, start: int = 0, stop: int | None = None) -> memoryview:
        """Stored bytes [start, stop): for hashing."""
