"""Checkpoints of a sharded training in which matrices lie flat, as vectors: pieces of a model, and no shapes.

FSDP joins the parameters of a module to one `_flat_param`, or keeps their names and saves the flat piece that one GPU
has. What is compared as if it were a vector would be compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from provindex.common.bounded_json import shown
from provindex.common.errors import UnreadFormatError
from provindex.common.tensor import Tensor

# Weights that are matrices in every model that has such names.
_MATRIX = re.compile(
    r"(.+\.)?(\w*_proj|embed_tokens|word_embeddings|wte|lm_head|query|key|value|c_attn|c_fc|w[qkvo]|w[123]"
    r"|wi(_[01])?|fc[12])\.weight"
)
_FLAT = re.compile(r"(.+\.)?_?flat_param(_\d+)?")


def refuse(tensors: Mapping[str, Tensor]) -> None:
    """UnreadFormatError if a matrix is stored as a vector. Empty tensors are no vectors: others tell of them."""
    for name, tensor in tensors.items():
        if len(tensor.shape) == 1 and tensor.size > 1 and (_MATRIX.fullmatch(name) or _FLAT.fullmatch(name)):
            raise UnreadFormatError(
                f"Tensor {shown(name)} is a vector of {tensor.size:,} numbers, a flat piece of matrices as FSDP has.",
                "Save the whole model (FullStateDictConfig, or `accelerate merge-weights`), and name that.",
            )
