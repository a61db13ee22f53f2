"""The peer's weight signals as ours: what compares with a row made here, what only with its like, what not at all.

How the peer took its numbers depends on the size of a model's files, which it does not keep. The size is estimated:
from the config, by the peer's own formula, times 2 bytes if the values that are at hand fit 16 bits, else 4. Above 20e9
bytes the peer takes WVC and LEP from 32 rows of each matrix, and LEP as squares; too near to that limit, both are left
out. Of several towers (a vision model, an encoder and a decoder) it mixes the layers. NLF is in the order of names for
one file and for the largest models, between them in the order of several files, which is not known. Everything that is
not as in a row of ours is marked by its name (`signals.imported`).

The samples of a layer are in the order of the file: for files as the usual writers make them, that of the names, as
here. Where a layer lies in two files, its cosine with a row of ours is near zero, and WVC is too low by the share of
such layers, which are one less than the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.halves import rounded
from provindex.common.reasons import Code, Figure, Reason
from provindex.peers.long_form import DeepSignals
from provindex.roles.architectures import KINDS, SCHEMES
from provindex.signals import eas, end, nlf, wvc
from provindex.signals.imported import differences, how
from provindex.signals.mfi import MfiFeatures

SLICED, WHOLE = 10.5e9, 9.5e9  # parameters of 16 bits: from where on slices are certain, up to where whole matrices are
ONE_FILE = 4.5e9  # bytes up to which nobody shards
MAX_NORMS = 1 << 16  # as in a row
MAX_PIECES = 1 << 16
ASYMMETRY = 1e-3
GATED_ACTS = frozenset(("silu", "swiglu", "gegelu"))
GATED = frozenset(
    "gemma gemma2 gemma3 gemma3_text llama mistral mixtral phi3 phi4 qwen2 qwen2_moe qwen3 qwen3_moe deepseek_v2 "
    "deepseek_v3 cohere cohere2 command-r starcoder2".split()
)
# Where the norms of an encoder's head stand in its file, before or after the body's; in the order of a row's names
# ("cls." "embeddings." "encoder." "lm_head.") it is the other way round.
HEAD_AFTER, HEAD_BEFORE = frozenset({"bert"}), frozenset({"roberta", "xlm-roberta", "camembert"})

F32 = NDArray[np.float32]


class Absent(Exception):  # noqa: N818 - it is no error: it says why there is no value
    """Why a signal is missing."""

    def __init__(self, code: Code, **figures: Figure) -> None:
        self.reason = Reason(code, figures=tuple(sorted(figures.items())))


@dataclass(frozen=True)
class Taken:
    """The weight signals of an imported row. absences: why some are missing. layers: of the profile, 0 if unknown."""

    eas: F32 | None = None
    end: NDArray[np.float64] | None = None
    nlf: nlf.NormTensors | None = None
    lep: Mapping[str, F32] = field(default_factory=dict)
    wvc: wvc.Samples | None = None
    absences: Mapping[str, Reason] = field(default_factory=dict)
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """How the peer took the numbers of a model, as `signals.imported` writes it.

    layers: LEP and WVC; None where that cannot be told. norms: NLF.
    """

    layers: str | None
    norms: str


def take(mfi: MfiFeatures, deep: DeepSignals, lengths: Mapping[str, Any]) -> Taken:
    """Signals as a row has them. lengths: the peer's own facts about them. ValueError if they are impossible."""
    way = way_of(mfi, deep, lengths)
    makers: dict[str, Callable[[], Any]] = {
        "EAS": lambda: _eas(_values(deep.eas)),
        "END": lambda: _end(_values(deep.end)),
        "NLF": lambda: _nlf(_values(deep.nlf), mfi, way.norms, lengths),
        "LEP": lambda: _lep(_values(deep.lep), mfi, way.layers),
        "WVC": lambda: _wvc(deep, way.layers),
    }
    made: dict[str, Any] = {}
    said: dict[str, Reason] = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except Absent as why:
            said[name] = why.reason
    if "LEP" in made and differences(way.layers):
        said["LEP"] = Reason.of(Code.PEER_SAMPLED_OTHERWISE, ways="+".join(differences(way.layers)))
    return Taken(
        eas=made.get("EAS"),
        end=made.get("END"),
        nlf=made.get("NLF"),
        lep=made.get("LEP", {}),
        wvc=made.get("WVC"),
        absences=said,
        layers=0 if deep.lep is None else deep.lep.size,
    )


def main_stack(model_type: str) -> str:
    """The stack that is the text tower."""
    return "encoder" if _text_stacks(model_type) == {"encoder"} else "decoder"


def _text_stacks(model_type: str) -> set[str]:
    """Empty for a model type that is not known."""
    kind = KINDS.get(model_type)
    return {s for s, _, _ in SCHEMES[kind.scheme].stacks} & {"encoder", "decoder"} if kind else set()


# --- how the numbers were taken ---


def way_of(mfi: MfiFeatures, deep: DeepSignals, lengths: Mapping[str, Any]) -> Way:
    """Which of the peer's routes a model went, as far as it can be told."""
    nested = mfi.hidden_size > 0 and not lengths.get("hidden_size")  # the peer looks at the top of the config only
    both = len(_text_stacks(mfi.model_type)) == 2
    streamed = estimate(mfi, deep)
    size = estimate(mfi, deep, stacks=2 if both else 1) * (1 if _half(deep) else 2)  # parameters of 16 bits
    sliced = None if deep.experts else False if size <= WHOLE else True if streamed >= SLICED else None
    ordered = not nested and not deep.experts and (2 * size <= ONE_FILE or streamed >= SLICED)
    differences = [name for name, found in (("sliced", sliced), ("towers", nested or both)) if found]
    return Way(None if sliced is None else how(*differences), how() if ordered else how("files"))


def estimate(mfi: MfiFeatures, deep: DeepSignals, stacks: int = 1) -> float:
    """Parameters by the peer's formula, which counts one stack and no experts."""
    h, heads = mfi.hidden_size, mfi.num_attention_heads or 1
    d = mfi.head_dim or h // heads
    gated = mfi.hidden_act in GATED_ACTS or mfi.model_type in GATED
    attention = h * d * (heads + 2 * (mfi.num_key_value_heads or heads)) + heads * d * h
    layer = attention + (3 if gated else 2) * h * (mfi.intermediate_size or 4 * h)
    layers = mfi.num_hidden_layers or (0 if deep.lep is None else deep.lep.size)
    tables = 2 if mfi.tie_word_embeddings is False else 1
    return float(mfi.vocab_size * h * tables + layers * stacks * layer)


def _half(deep: DeepSignals) -> bool:
    """Whether all samples fit bfloat16 or float16, as those of a file of 16 bits do; not known without samples."""
    samples = list(deep.wvc.values()) if deep.wvc else []
    return bool(samples) and (all(map(_fits_bf16, samples)) or all(map(_fits_f16, samples)))


def _fits_bf16(values: F32) -> bool:
    return not (values.view(np.uint32) & np.uint32(0xFFFF)).any()


def _fits_f16(values: F32) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


# --- signal by signal ---


def _values(found: F32 | None) -> F32:
    if found is None:
        raise Absent(Code.PEER_NOT_OF_THIS)
    if not np.isfinite(found).all():
        raise Absent(Code.PEER_NOT_FINITE)
    return found


def _eas(square: F32) -> F32:
    """Only the upper triangle is kept, as in every row."""
    if len(square) < eas.MIN_ANCHORS:
        raise Absent(Code.ANCHORS_FEW, n=len(square), needed=eas.MIN_ANCHORS)
    if np.abs(square - square.T).max() > ASYMMETRY or np.abs(square).max() > 1 + ASYMMETRY:
        raise ValueError("its EAS is no matrix of cosines")
    return np.asarray(np.triu(square) + np.triu(square, 1).T, np.float32)


def _end(shares: F32) -> NDArray[np.float64]:
    total = float(shares.astype(np.float64).sum())
    if shares.size != end.BINS or (shares < 0).any() or total <= 0:
        raise ValueError(f"its END is no histogram of {end.BINS} bins")
    return np.asarray(shares.astype(np.float64) / total)


def _nlf(values: F32, mfi: MfiFeatures, way: str, lengths: Mapping[str, Any]) -> nlf.NormTensors:
    """The norm tensors, or the four stats of each where the database has no more."""
    mode, count = lengths.get("nlf_mode"), lengths.get("nlf_num_layers")
    if not isinstance(count, int) or not 0 < count <= MAX_NORMS or values.size % count:
        raise ValueError("its NLF does not fit the number of its norm tensors")
    size = values.size // count
    if mode not in ("direct", "stats") or (size != nlf.STATS if mode == "stats" else size < nlf.MIN_ELEMENTS):
        raise ValueError(f"its NLF of {size} values a tensor is not what its mode says")
    table = np.roll(values.reshape(count, size), _head_norms(mfi, count), axis=0)
    names = tuple(f"{way}/{number:05d}" for number in range(count))
    return nlf.NormTensors(names, np.full(count, size, np.int32), np.ascontiguousarray(table).reshape(-1))


def _head_norms(mfi: MfiFeatures, count: int) -> int:
    """By how much to turn the norm tensors of an encoder, so that those of its head stand where a row has them."""
    beyond = max(0, count - 2 - 4 * mfi.num_hidden_layers)  # weight and bias: the embedding's, two of each layer
    return beyond if mfi.model_type in HEAD_AFTER else -beyond if mfi.model_type in HEAD_BEFORE else 0


def _lep(profile: F32, mfi: MfiFeatures, way: str | None) -> dict[str, F32]:
    if (profile < 0).any():
        raise ValueError("its LEP has negative energies")
    if way is None:
        raise Absent(Code.PEER_SAMPLING_UNKNOWN)
    return {way if differences(way) else main_stack(mfi.model_type): profile}


def _wvc(deep: DeepSignals, way: str | None) -> wvc.Samples:
    """The samples of each layer in pieces that a row can hold."""
    if deep.experts:
        raise Absent(Code.PEER_ALL_EXPERTS)
    if not deep.wvc:
        raise Absent(Code.PEER_NOT_OF_THIS)
    pieces = [
        (f"{way}/{layer:05d}/{start // wvc.SAMPLES:03d}", layer, values[start : start + wvc.SAMPLES])
        for layer, values in sorted(deep.wvc.items())
        for start in range(0, values.size, wvc.SAMPLES)
    ]
    if not all(np.isfinite(values).all() for _, _, values in pieces):
        raise Absent(Code.PEER_NOT_FINITE)
    if way is None:
        raise Absent(Code.PEER_SAMPLING_UNKNOWN)
    if len(pieces) > MAX_PIECES:
        raise ValueError("its WVC has more layers than any model")
    return wvc.Samples.collect((name, layer, rounded(values)) for name, layer, values in pieces)
