"""An encoder and a decoder that were exported as two ONNX files (optimum, transformers.js), as one model.

The encoder's names begin inside of it ("block.0. ..."), the decoder's mostly at the whole model. The encoder's get the
beginning that fits the decoder's; of several, the one with which most names are known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.formats.ranged import RangedFile
from provindex.formats.tensors import ByteTensor, ComputedTensor, Contents

_ENCODERS = ("encoder.", "model.encoder.")
_DECODERS = ("decoder.", "model.decoder.")
_TABLES = ("embed_tokens.weight", "shared.weight")
PIECE = 1 << 20  # elements compared at a time


def joined(encoder: Contents, decoder: Contents) -> Contents:
    """Both as one model. A table of embeddings that both have is read once, where its values can be compared."""
    repeated = {t.name for t in encoder.tensors if t.name.endswith(_TABLES) and _is_in(t, decoder.tensors)}
    own = [tensor for tensor in encoder.tensors if tensor.name not in repeated]
    options = (_under(own, decoder.tensors, *way) for way in _beginnings(own, decoder.tensors))
    best = min((option for option in options if option), key=_unknown, default={})
    if not best:  # names that clash whatever is put before them
        best = {f"encoder.{t.name}": _renamed(t, f"encoder.{t.name}") for t in own}
        best |= {f"decoder.{t.name}": _renamed(t, f"decoder.{t.name}") for t in decoder.tensors}
    said = Reason.of(Code.ONNX_PAIR, n=len(repeated))
    return Contents(tuple(best.values()), warnings=(said, *encoder.warnings, *decoder.warnings))


def _beginnings(own: Collection[Tensor], others: Collection[Tensor]) -> list[tuple[str, str]]:
    """What may have been before the names of each file, the likeliest first: as the other file's names begin."""
    whole = any(tensor.name.startswith(_ENCODERS) for tensor in own)
    said = [d for d in _DECODERS if any(tensor.name.startswith(d) for tensor in others)]
    firsts = [""] if whole else [_ENCODERS[_DECODERS.index(d)] for d in said] or [*_ENCODERS]
    seconds = {e: "" if said else d for e, d in zip(_ENCODERS, _DECODERS, strict=True)}
    return [(first, seconds.get(first, "")) for first in firsts] + [("", "")]


def _under(own: Collection[Tensor], others: Collection[Tensor], first: str, second: str) -> dict[str, Tensor]:
    """All tensors with a beginning before the names of each file; none if two would have one name."""
    named = [(first + t.name, t) for t in own] + [(second + t.name, t) for t in others]
    found = {name: _renamed(tensor, name) for name, tensor in named}
    return found if len(found) == len(named) else {}


def _unknown(tensors: Mapping[str, Tensor]) -> int:
    from provindex.roles.names import resolve

    return len(resolve({name: tensor.shape for name, tensor in tensors.items()}, {}, listed=True).unknown)


def _is_in(table: Tensor, others: Collection[Tensor]) -> bool:
    """Whether a table is one of others, value by value; not where one of them would have to be fetched."""
    alike = (t for t in others if t.shape == table.shape and t.name.endswith(_TABLES) and t.dtype == table.dtype)
    return _is_here(table) and any(_is_here(other) and _are_equal(table, other) for other in alike)


def _are_equal(a: Tensor, b: Tensor) -> bool:
    pieces = range(0, a.size, PIECE)
    return all((a.flat(at, at + PIECE) == b.flat(at, at + PIECE)).all() for at in pieces)


def _is_here(tensor: Tensor) -> bool:
    parts = tensor.sources if isinstance(tensor, ComputedTensor) else (tensor,)
    return all(isinstance(p, ByteTensor) and not isinstance(p.extent.watch, RangedFile) for p in parts)


def _renamed(tensor: Tensor, name: str) -> Tensor:
    return replace(tensor, name=name) if isinstance(tensor, (ByteTensor, ComputedTensor)) else tensor
