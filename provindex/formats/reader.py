"""What a reader of a format gets and gives: files in, their contents out. The registry names one reader a format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from provindex.formats.tensors import Contents, Extent


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights.

    name: its path inside the model's folder, with "/". label: what errors call it. extent: all its bytes.
    """

    name: str
    label: str
    extent: Extent


# Opens another file of the model by its path inside the folder, with "/"; None if there is none.
Beside = Callable[[str], Extent | None]

# Reads the files of one model (one file, or all parts of one that is split, in order). ModelError, in one sentence with
# a next step, for a file that is damaged, hostile or holds something that is not read.
Reader = Callable[[Sequence[WeightFile], Beside], Contents]
