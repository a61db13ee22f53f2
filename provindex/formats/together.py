"""Which ONNX files are one model: by their names alone, so that local and remote agree."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

# What exporters call the parts of a model; one behind them says in which precision ("_fp16", "_quantized").
_ENCODER = re.compile(r"encoder_model(?P<kind>(_[a-z0-9]+)?)\.onnx")
_DECODERS = ("decoder_model{}.onnx", "decoder_model_merged{}.onnx")  # with_past repeats the first, merged holds both


def pair_in(names: Collection[str]) -> tuple[str, ...]:
    """The encoder and the decoder of a model among the names of files, those of the folder itself first; () if none.

    The unquantized ones; else those of the one precision that is there.
    """
    for place in ("", "onnx/"):
        here = [name.removeprefix(place) for name in names if name.startswith(place) and "/" not in name[len(place) :]]
        pairs = {kind: pair for name in here if (kind := _kind(name)) is not None and (pair := _pair(kind, here))}
        chosen = pairs.get("") or (next(iter(pairs.values())) if len(pairs) == 1 else ())
        if chosen:
            return tuple(place + name for name in chosen)
    return ()


def is_encoder(name: str) -> bool:
    """Whether a file has the name of an encoder."""
    return _ENCODER.fullmatch(PurePosixPath(name).name) is not None


def is_pair(names: Collection[str]) -> bool:
    """Whether these files are one encoder and its decoder."""
    paths = [PurePosixPath(name) for name in names]
    last = {path.name for path in paths}
    return len(paths) == 2 and paths[0].parent == paths[1].parent and set(pair_in(last)) == last


def _kind(name: str) -> str | None:
    match = _ENCODER.fullmatch(name)
    return match["kind"] if match else None


def _pair(kind: str, here: Collection[str]) -> tuple[str, ...]:
    decoder = next((made for stem in _DECODERS if (made := stem.format(kind)) in here), None)
    return (f"encoder_model{kind}.onnx", decoder) if decoder else ()
