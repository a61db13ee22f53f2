"""The vector by which candidates are found: a candidate is not a claim, so the vector only has to bring relatives near.

Blocks, each a unit vector times the square root of its weight, so that an inner product is a weighted mean of
similarities: the embedding's anchor geometry (EAS, at anchor strings and at fixed ids), a sketch of the WVC samples
that does not depend on which layers are left, and, with little weight because unrelated models agree on them, LEP,
END and NLF. Size, config and tokenizer never filter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.panels import signs
from provindex.fingerprint import Fingerprint
from provindex.signals import nlf

F64 = NDArray[np.float64]

BLOCKS: Mapping[str, tuple[int, float]] = {  # name: (dimensions, weight)
    "eas": (64, 0.25),
    "eas_by_id": (64, 0.25),
    "wvc": (192, 0.35),
    "lep": (16, 0.05),
    "end": (20, 0.05),
    "nlf": (28, 0.05),
}
DIMENSIONS = sum(width for width, _ in BLOCKS.values())


def vector(fp: Fingerprint) -> NDArray[np.float32]:
    """The retrieval vector, (384,) float32; the block of a missing signal is zero, so its length is at most 1."""
    made = {
        "eas": _triangle(fp.eas, "eas") if fp.tfv else None,  # without a tokenizer EAS is taken at ids, not at strings
        "eas_by_id": _triangle(fp.eas_by_id, "eas"),
        "wvc": _wvc(fp),
        "lep": _curve(fp.lep.get(fp.facts.main), BLOCKS["lep"][0]),
        "end": fp.end,
        "nlf": _nlf(fp.nlf),
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


def _triangle(similarity: NDArray[np.float32] | None, label: str) -> F64 | None:
    """The off-diagonal cosines, centered, projected by fixed signs."""
    if similarity is None:
        return None
    values = similarity[np.triu_indices(len(similarity), 1)].astype(np.float64)
    return np.asarray((values - values.mean()) @ _signs(f"retrieval/{label}", BLOCKS["eas"][0])[: values.size])


def _wvc(fp: Fingerprint) -> F64 | None:
    """Sum over tensors of their samples as unit vectors, projected by signs that depend on the tensor's place in a
    layer.

    A layer contributes the same wherever it stands, so dropped, repeated and moved layers cost only their share.
    """
    if fp.wvc is None:
        return None
    total = np.zeros(BLOCKS["wvc"][0])
    for name, values in zip(fp.wvc.names, np.split(fp.wvc.values, np.cumsum(fp.wvc.sizes)[:-1]), strict=True):
        wide = values.astype(np.float64)
        length = math.sqrt(float(wide @ wide))
        if length > 0:
            place = re.sub(r"\d+", "#", name, count=1)
            total += wide / length @ _signs(f"retrieval/wvc/{place}", BLOCKS["wvc"][0])[: wide.size]
    return total


@lru_cache(maxsize=256)
def _signs(label: str, columns: int) -> F64:
    return signs(label, 4096, columns).astype(np.float64)


def _curve(values: NDArray[np.float32] | None, points: int) -> F64 | None:
    if values is None or values.size < 2:
        return None
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, values.size), values.astype(np.float64))


def _nlf(norms: nlf.NormTensors | None) -> F64 | None:
    """The mean of each norm tensor along the model, resampled to a fixed number of points."""
    if norms is None or len(norms.sizes) < 2:
        return None
    means = np.array([v.mean() for v in np.split(norms.values, np.cumsum(norms.sizes)[:-1])], np.float32)
    return _curve(means, BLOCKS["nlf"][0])
