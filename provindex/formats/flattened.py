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
LEAST = 4  # matrices as vectors that are no model's own: each layer of a transformer has more
MAX_VECTOR = 1 << 18  # elements
_FLAT = re.compile(r"(.+\.)?_?flat_param(_\d+)?")


def refuse(tensors: Mapping[str, Tensor]) -> None:
    """UnreadFormatError if several matrices are stored as vectors, or one that is longer than any vector of a model,
    or a vector says that it is such a piece. A short one may be a vector in its model. Empty tensors are no vectors:
    others tell of them.
    """
    vectors = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 1 and tensor.size > 1}
    matrices = [name for name in vectors if _MATRIX.fullmatch(name)]
    long = [name for name in matrices if vectors[name].size > MAX_VECTOR]
    flat = [*filter(_FLAT.fullmatch, vectors), *(matrices if len(matrices) >= LEAST else long)]
    if flat:
        raise UnreadFormatError(
            f"Tensor {shown(flat[0])} is a vector of {vectors[flat[0]].size:,} numbers, a flat piece of matrices as "
            "FSDP has.",
            "Save the whole model (FullStateDictConfig, or `accelerate merge-weights`), and name that.",
        )
