"""SentencePiece model files: the pieces, their scores and types, without the sentencepiece package.

The file is one protocol buffer, ModelProto (sentencepiece_model.proto of google/sentencepiece). Read of it: field 1,
the pieces {1: text, 2: score as float32, 3: type}; field 2, trainer_spec {3: model_type}; field 3, normalizer_spec
{3: add_dummy_prefix}. Lengths are checked against the buffer and counts are bounded, so a hostile file costs an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from provindex.common import varint
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.formats.tiktoken import most_merges

UNIGRAM, BPE = 1, 2  # trainer_spec.model_type; 3 (word) and 4 (char) are not used by published models
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # a piece's type
MAX_PIECES = 2_000_000
MAX_PIECE_BYTES = 1 << 16
MAX_SPLITTING = 1 << 32  # characters that are looked at where all pieces are split everywhere


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary. type: NORMAL ... BYTE above; its place in the file is its id."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class Model:
    """A decoded file. kind: UNIGRAM or BPE. dummy_prefix: whether a space is put before the text."""

    kind: int
    pieces: tuple[Piece, ...]
    dummy_prefix: bool = True


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one protobuf message: an int for varints, a slice for everything else.

    Raises ValueError where the bytes are no message: an unknown wire type, or a length past the end.
    """
    at = 0
    while at < len(data):
        key, at = varint.read(data, at, len(data))
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint.read(data, at, len(data))
            yield number, value
            continue
        if wire == 2:
            size, at = varint.read(data, at, len(data))
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > len(data) - at:
            raise ValueError("a length that runs past the end")
        yield number, data[at : at + size]
        at += size


def parse(data: bytes, name: str = "the SentencePiece file") -> Model:
    """Decode a model file. ModelError when it is none, has no pieces, or is of a kind other than Unigram and BPE."""
    try:
        model = _parse(memoryview(data))
    except (ValueError, struct.error) as error:  # UnicodeDecodeError is a ValueError
        raise ModelError(
            f"{name} is not a SentencePiece model ({error}).", reason=Reason.of(Code.NOT_SENTENCEPIECE, name)
        ) from error
    if not model.pieces:
        raise ModelError(
            f"{name} is not a SentencePiece model (it has no pieces).", reason=Reason.of(Code.SENTENCEPIECE_EMPTY, name)
        )
    if model.kind not in (UNIGRAM, BPE):
        raise ModelError(
            f"{name} is a SentencePiece model of type {model.kind}; Unigram (1) and BPE (2) are read.",
            reason=Reason.of(Code.SENTENCEPIECE_TYPE, name, kind=model.kind),
        )
    return model


def _parse(data: memoryview) -> Model:
    pieces: list[Piece] = []
    kind, dummy_prefix = UNIGRAM, True
    for number, value in fields(data):
        if number not in (1, 2, 3):
            continue
        if not isinstance(value, memoryview):
            raise ValueError(f"field {number} is a number")
        if number == 1:
            pieces.append(_piece(value))
            if len(pieces) > MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES:,} pieces")
        elif number == 2:
            kind = next((item for key, item in fields(value) if key == 3 and isinstance(item, int)), kind)
        else:
            flag = next((item for key, item in fields(value) if key == 3), 1)
            dummy_prefix = flag != 0
    return Model(kind, tuple(pieces), dummy_prefix)


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in fields(data):
        if number == 1 and isinstance(value, memoryview):
            if len(value) > MAX_PIECE_BYTES:
                raise ValueError("a piece of more than 65,536 bytes")
            text = str(value, "utf-8")
        elif number == 2 and isinstance(value, memoryview):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def merges(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """BPE merges that lead to these pieces, best first: a piece of rank r is made from any two pieces it splits into.

    The file keeps scores (minus the rank of the merge) instead of merges. Ties are broken by the ids of the parts.
    ModelError where pieces split into more pieces, or are longer, than those of any vocabulary.
    """
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.type in (NORMAL, USER_DEFINED)}
    ranked: list[tuple[float, int, int, str, str]] = []
    most, work = most_merges(len(pieces)), sum(len(text) ** 2 for text in ids)
    for text, index in ids.items() if work <= MAX_SPLITTING else ():
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-pieces[index].score, left, right, text[:cut], text[cut:]))
        if len(ranked) > most:
            break
    if work > MAX_SPLITTING or len(ranked) > most:
        raise ModelError(
            "The pieces of the vocabulary split into more pieces, or are longer, than those of any model.",
            reason=Reason.of(Code.NOT_SENTENCEPIECE, "the vocabulary"),
        )
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def backend(model: Model, name: str) -> Any:
    """A `tokenizers.Tokenizer` that encodes as the file says (text normalization aside). ModelError if it cannot be."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN), None)
    fallback = any(piece.type == BYTE for piece in model.pieces)
    if len({piece.text for piece in model.pieces}) != len(model.pieces):
        raise ModelError(f"{name} has the same piece twice.", reason=Reason.of(Code.SENTENCEPIECE_TWICE, name))
    built: Any
    if model.kind == UNIGRAM:
        built = models.Unigram([(p.text, p.score) for p in model.pieces], unk_id=unknown, byte_fallback=fallback)
    else:
        vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
        unk = None if unknown is None else model.pieces[unknown].text
        built = models.BPE(vocab, merges(model.pieces), unk_token=unk, fuse_unk=True, byte_fallback=fallback)
    tokenizer = Tokenizer(built)
    scheme = "always" if model.dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=model.kind == UNIGRAM)
    kinds = (UNKNOWN, CONTROL, USER_DEFINED)
    added = [
        AddedToken(p.text, special=p.type != USER_DEFINED, normalized=False) for p in model.pieces if p.type in kinds
    ]
    tokenizer.add_tokens([token for token in added if token.content])
    return tokenizer
