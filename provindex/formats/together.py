"""Which ONNX files are one model: by their names alone, so that local and remote agree."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

ENCODER = "encoder_model.onnx"
DECODERS = ("decoder_model.onnx", "decoder_model_merged.onnx")  # with_past repeats the first, merged holds both


def pair_in(names: Collection[str]) -> tuple[str, ...]:
    """The encoder and the decoder of a model among the names of files, those of the folder itself first; () if none."""
    for place in ("", "onnx/"):
        decoder = next((place + name for name in DECODERS if place + name in names), None)
        if decoder and place + ENCODER in names:
            return place + ENCODER, decoder
    return ()


def is_pair(names: Collection[str]) -> bool:
    """Whether these files are one encoder and its decoder."""
    paths = [PurePosixPath(name) for name in names]
    last = {path.name for path in paths}
    return len(paths) == 2 and paths[0].parent == paths[1].parent and set(pair_in(last)) == last
