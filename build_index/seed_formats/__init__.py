"""Readers of the containers that packages ship weights in: each takes bytes or a path and returns named arrays.

They are for building the seed index only; provindex itself has readers of its own, in provindex/formats.
"""

from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
