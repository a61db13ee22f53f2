"""Readers of the containers that packages ship weights in: each takes bytes or a path and returns named arrays.

They are for building the seed index only; provindex itself reads safetensors and GGUF and nothing else.
"""

from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
