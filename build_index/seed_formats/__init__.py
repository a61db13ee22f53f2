"""Readers of weights in containers that provindex does not read, from bytes to named arrays; tokenizers rebuilt.

They are for building the seed index only; what provindex reads is read by its own readers, in provindex/formats.
"""

from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
