"""The vector by which candidates are found: a candidate is not a claim, so the vector only has to bring relatives near.

Blocks, each a unit vector times the square root of its weight, so that an inner product is a weighted mean of
similarities: VABS (what the branches do, at anchor strings and at fixed ids: it survives disguises), the embedding's
anchor geometry (EAS, the same two ways), a sketch of the WVC samples (where faint inheritance shows) and one of the
block digests (for models without tokens), neither of which depends on which layers are left; and, with little weight
because unrelated models agree on them, LEP, END, NLF and the invariants of neurons (which need no token and no basis: a
copy in disguise is found by them where its tokenizer is withheld or its vocabulary another). The ranks of the norm
gains, averaged over the layers, find what has nothing else (rows of mode "norms"). Size, config and tokenizer never
filter.

Relatives may share one thing only: the layers but not the embedding, or the reverse. In the mean the other blocks'
chance agreement would drown that, so candidates are taken in turn from several searches, the one whose best hit stands
out most first. A sketch of n numbers blurs a cosine by 1/sqrt(n): that is why the sketch of the weights is the widest
(2,048: a cosine of .1 is 4.5 deviations). The first few hundred are ranked again by their layers' sketches, which
survives other depths and merges by layer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.evidence import vectors, whole_layers
from provindex.evidence.sketch import BranchSketches, late_interaction, similarities
from provindex.evidence.vectors import Vectors
from provindex.evidence.whole_layers import WholeLayers
from provindex.fingerprint.record import Fingerprint
from provindex.signals import nlf
from provindex.signals.wvc import SAMPLES

F64 = NDArray[np.float64]

BLOCKS: Mapping[str, tuple[int, float]] = {  # name: (dimensions, weight)
    "vabs": (256, 0.15),
    "vabs_by_id": (256, 0.15),
    "eas": (128, 0.15),
    "eas_by_id": (128, 0.15),
    "wvc": (2048, 0.15),
    "digests": (128, 0.05),
    "lep": (16, 0.04),
    "end": (20, 0.03),
    "nlf": (28, 0.03),
    "invariants": (256, 0.05),
    "norms": (256, 0.05),
}
DIMENSIONS = sum(width for width, _ in BLOCKS.values())
SEARCHES: tuple[tuple[str, ...], ...] = (
    tuple(BLOCKS),
    ("vabs",),
    ("vabs_by_id",),
    ("wvc",),
    ("eas", "eas_by_id"),
    ("digests",),
    ("invariants",),
    ("norms",),
)
QUANTILES = np.linspace(0.02, 0.98, 25)  # of the invariants of a layer's neurons
NUMBERS_AT = {3: [0, 1, 2, 3, 4], 2: [0, 1, 3]}  # by parts of a neuron: lengths, lengths, then angles
ANGLES = 3.0  # so that cosines, of which most are small, count beside logarithms of lengths
RERANKED = 300  # candidates whose layers are compared


def vector(fp: Fingerprint) -> NDArray[np.float32]:
    """The retrieval vector, (3520,) float32; the block of a missing signal is zero, so its length is at most 1."""
    whole: WholeLayers | None = fp.value(whole_layers.PANEL.name)
    made = {
        "vabs": None if fp.sketches is None else fp.sketches.whole.astype(np.float64),
        "vabs_by_id": None if fp.sketches_by_id is None else fp.sketches_by_id.whole.astype(np.float64),
        "eas": _triangle(fp.eas) if fp.tfv else None,  # without a tokenizer EAS is taken at ids, not at strings
        "eas_by_id": _triangle(fp.eas_by_id),
        "wvc": _wvc(fp),
        "digests": _digests(fp),
        "lep": _curve(fp.lep.get(fp.facts.main), BLOCKS["lep"][0]),
        "end": fp.end,
        "nlf": _nlf(fp.nlf),
        "invariants": None if whole is None else _invariants(whole, fp.facts.main),
        "norms": _norms(fp),
    }
    out = np.zeros(DIMENSIONS)
    start = 0
    for name, (width, weight) in BLOCKS.items():
        values = made[name]
        if values is not None:
            unit = values - values.mean() if name in ("lep", "end", "nlf") else values
            length = math.sqrt(float(unit @ unit))
            if length > 0:
                out[start : start + width] = unit / length * math.sqrt(weight)
        start += width
    return out.astype(np.float32)


def searches(asking: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors to search with, (up to 8, 3520): the whole one, then its parts alone if it has them."""
    found = [asking]
    for blocks in SEARCHES[1:]:
        kept = np.concatenate([np.full(width, name in blocks) for name, (width, _) in BLOCKS.items()])
        alone = np.where(kept, asking, np.float32(0))
        if alone.any():
            found.append(alone)
    return np.stack(found)


Sketches = tuple[BranchSketches | None, BranchSketches | None]  # at anchor strings, at fixed token ids


def rerank(asking: Sketches, candidates: Sequence[Sketches]) -> NDArray[np.float64]:
    """Late interaction of each candidate's layers with the query's, (n,): the better of both namings; 0 without any."""
    return np.array([max((s for s in layer_scores(asking, other)), default=0.0) for other in candidates])


def layer_scores(a: Sketches, b: Sketches) -> list[float]:
    """The late-interaction score of two models under each naming that both have."""
    return [late_interaction(similarities(x, y)) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def in_turn(found: Sequence[tuple[NDArray[np.int64], NDArray[np.floating[Any]]]]) -> list[int]:
    """Rows of several searches (row numbers and cosines, best first): one of each in turn, each row once.

    The search whose best hit stands out most comes first: by the spread of its own scores, so that a search in which
    everybody is alike does not decide who is named first.
    """
    ordered = sorted(found, key=lambda f: -_prominence(f[1]))
    length = max((rows.size for rows, _ in ordered), default=0)
    turns = (int(rows[i]) for i in range(length) for rows, _ in ordered if i < rows.size)
    return list(dict.fromkeys(turns))


def _prominence(scores: NDArray[np.floating[Any]]) -> float:
    """How far the best score stands above the median, in median absolute deviations, of -log(1 - cosine).

    On that scale a step from .98 to .998 is as long as one from .8 to .98: what sets copies apart from models that are
    all alike.
    """
    if scores.size < 3:
        return 0.0
    stretched = -np.log(np.maximum(1.0 - scores.astype(np.float64), 1e-4))
    middle = float(np.median(stretched))
    spread = float(np.median(np.abs(stretched - middle)))
    return (float(stretched.max()) - middle) / max(spread, 1e-3)


def _triangle(similarity: NDArray[np.float32] | None) -> F64 | None:
    """A sketch of the off-diagonal cosines, centered."""
    if similarity is None:
        return None
    values = similarity[np.triu_indices(len(similarity), 1)].astype(np.float64)
    return _sketch(values - values.mean(), "retrieval/eas", BLOCKS["eas"][0])


def _wvc(fp: Fingerprint) -> F64 | None:
    """A sketch of the samples: the tensors of one place in a layer, as unit vectors, are added up over the layers.

    A layer contributes the same wherever it stands, so dropped, repeated and moved layers cost only their share.
    """
    if fp.wvc is None:
        return None
    sums: dict[str, F64] = {}
    for name, values in zip(fp.wvc.names, np.split(fp.wvc.values, np.cumsum(fp.wvc.sizes)[:-1]), strict=True):
        wide = values.astype(np.float64)
        length = math.sqrt(float(wide @ wide))
        if length > 0:
            place = sums.setdefault(re.sub(r"\d+", "#", name, count=1), np.zeros(SAMPLES))
            place[: wide.size] += wide / length
    total = np.zeros(BLOCKS["wvc"][0])
    for where, added in sums.items():
        total += _sketch(added, f"retrieval/wvc/{where}", total.size)
    return total


def _digests(fp: Fingerprint) -> F64 | None:
    """A sketch of the set of block digests: inner products are about the share that two models have in common."""
    if fp.blocks is None:
        return None
    found = sorted({int(d) for d in fp.blocks.exact.ravel() if d})
    width = BLOCKS["digests"][0]
    total = np.zeros(width)
    for digest in found:
        stream = hashlib.shake_256(b"provindex/1/retrieval/digests/%d" % digest).digest(width // 8)
        total += np.unpackbits(np.frombuffer(stream, np.uint8)) * 2.0 - 1.0
    return total if found else None


def _sketch(values: F64, label: str, width: int) -> F64:
    """Count sketch: each value goes to one of `width` sums under a random sign; inner products survive on average."""
    sums, signs = _places(label, width)
    summed = np.bincount(sums[: values.size], weights=values * signs[: values.size], minlength=width)
    return np.asarray(summed, np.float64)


@lru_cache(maxsize=1024)
def _places(label: str, width: int) -> tuple[NDArray[np.int64], F64]:
    """Where each of up to 4,096 values goes, and its sign; from a hash, so the same everywhere. width: a power of 2."""
    stream = hashlib.shake_256(f"provindex/1/{label}".encode()).digest(2 * SAMPLES)
    words = np.frombuffer(stream, "<u2").astype(np.int64)
    sums = np.bitwise_and(np.right_shift(words, 1), width - 1)
    return np.asarray(sums, np.int64), np.where(words % 2 == 1, -1.0, 1.0)


def _curve(values: NDArray[np.float32] | None, points: int) -> F64 | None:
    if values is None or values.size < 2:
        return None
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, values.size), values.astype(np.float64))


def _invariants(whole: WholeLayers, main: str) -> F64:
    """Quantiles of the invariants of all neurons, of the layers at one and two thirds of the depth: (256,).

    What needs no token, name or basis; logarithms of lengths count from their median. Numbers that MLPs without a gate
    lack are zeros.
    """
    keys = [key for key in whole.keys if key[0] == main] or list(whole.keys)
    out = np.zeros((2, max(map(len, NUMBERS_AT.values())), QUANTILES.size))
    for layer, key in zip(out, (keys[len(keys) // 3], keys[2 * len(keys) // 3]), strict=True):
        numbers = whole.numbers[whole.places[key]].astype(np.float64)
        numbers = numbers[np.isfinite(numbers).all(axis=1)]
        if len(numbers):
            found = np.quantile(numbers, QUANTILES, axis=0).T
            found[:2] -= np.median(numbers[:, :2], axis=0)[:, None]
            found[2:] *= ANGLES
            layer[NUMBERS_AT[whole.parts]] = found
    return np.concatenate([out.reshape(-1), np.zeros(BLOCKS["invariants"][0] - out.size)])


def _norms(fp: Fingerprint) -> F64 | None:
    """A sketch of the ranks of the residual coordinates, averaged over all gains; models of one width share its signs.

    An average needs no names, so rows of other tools meet rows of ours.
    """
    found: Vectors | None = fp.value(vectors.PANEL.name)
    if found is None or not fp.facts.hidden:
        return None
    along = found.residual(fp.facts.hidden, {fp.facts.main})
    gains = [not address.endswith(".bias") for address in along.addresses]
    if not any(gains):
        return None
    return _sketch(along.ranks[gains].mean(axis=0), f"retrieval/norms/{fp.facts.hidden}", BLOCKS["norms"][0])


def _nlf(norms: nlf.NormTensors | None) -> F64 | None:
    """The mean of each norm tensor along the model, resampled to a fixed number of points."""
    if norms is None or len(norms.sizes) < 2:
        return None
    return _curve(norms.means(), BLOCKS["nlf"][0])
