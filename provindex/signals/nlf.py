"""NLF, norm layer fingerprint: are the gains and biases of the normalization layers those of the other model?

Definition: all norm tensors (`is_norm`) as float32. A model whose norm tensors all have one size is compared
*directly*, as the concatenation; otherwise by *stats*, (mean, std, max, min) of each tensor. Two direct
models of equal total length: cosine of the concatenations. Any other pair: cosine of the stats, cut to the
shorter list. Clamped to [0, 1], 4 decimals.
Range: [0, 1]. Chance level: .98 to 1.0 (independent models of one config): gains start at 1 and stay near it.
Blind to: the scale of all norm tensors of a model, and in stats mode to the order inside a tensor.
Absent: no norm tensor, a zero vector, NaN or infinity.
Source: Cisco model-provenance-kit 1.0.0 (its full path), reimplemented from its definition. The peer keeps
the tensors in the order of the file; here the order is that of the sorted names (a head's last), so it cannot
depend on the writer. The two differ only where a stats list is cut, or where two writers ordered equal models
differently. Stats are float64 (float32 in the peer). Of a stats model the peer's database has the stats only: an
imported row has them in place of the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Panel, Signal, array, field
from provindex.roles.weights import MAX_VECTOR, Weights
from provindex.signals.imported import apart
from provindex.signals.similarity import SIDES, clamped_cosine, not_finite

MIN_ELEMENTS = 64
STATS = 4  # of each tensor
_WORDS = ("norm", "ln_", "post_attention")
_HEADS = ("cls.", "head.", "lm_head.", "lm_predictions.", "mlm.", "classifier.", "score.", "qa_outputs.")

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class NormTensors:
    """The norm tensors of a model. names: sorted as strings; sizes: (T,) int32; values: (sum of sizes,)
    float32, or the four stats of each tensor where no more is known (imported rows: no norm tensor is as small as 4).
    """

    names: tuple[str, ...]
    sizes: NDArray[np.int32]
    values: F32

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or int(self.sizes.sum()) != len(self.values):
            raise ValueError("names, sizes and values of norm tensors do not belong together")
        if list(self.names) != sorted(self.names):
            raise ValueError("norm tensors must be in the order of their names")

    @classmethod
    def collect(cls, tensors: Mapping[str, F32]) -> NormTensors:
        """Put norm tensors, read as 1-D float32 arrays by name, into canonical order."""
        names = tuple(sorted(tensors))
        parts = [np.asarray(tensors[name], dtype=np.float32) for name in names]
        values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        return cls(names, np.array([len(part) for part in parts], dtype=np.int32), values)

    @property
    def summarized(self) -> bool:
        """True if the values are stats, (mean, std, max, min) of each tensor."""
        return bool(len(self.sizes)) and bool((self.sizes == STATS).all())

    @property
    def direct(self) -> bool:
        """True if all tensors have one size, so that the values themselves are compared."""
        return bool(len(self.sizes)) and not self.summarized and bool((self.sizes == self.sizes[0]).all())

    def means(self) -> F32:
        """The mean of each tensor, (T,) float32, in order."""
        if self.summarized:
            return self.values[::STATS]
        return np.array([v.mean() for v in np.split(self.values, np.cumsum(self.sizes)[:-1])], np.float32)

    def stats(self) -> NDArray[np.float64]:
        """(mean, std, max, min) of each tensor, (4 T,) float64: in order, but the tensors of a head last.

        So the lists of a model saved with its head and of one saved without it line up, as they do in files whose
        backbone has a name prefix ("bert." sorts before "cls.").
        """
        if self.summarized:
            return self.values.astype(np.float64)
        starts = np.concatenate(([0], np.cumsum(self.sizes)[:-1])).astype(np.intp)
        values = self.values.astype(np.float64)
        mean = np.add.reduceat(values, starts) / self.sizes
        spread = values - np.repeat(mean, self.sizes)
        std = np.sqrt(np.add.reduceat(spread * spread, starts) / self.sizes)
        high, low = np.maximum.reduceat(values, starts), np.minimum.reduceat(values, starts)
        last = sorted(range(len(self.names)), key=lambda i: self.names[i].startswith(_HEADS))
        return np.stack([mean, std, high, low], axis=1)[last].ravel()


def is_norm(name: str, shape: tuple[int, ...]) -> bool:
    """True for a vector of at least 64 elements whose name says norm; biases count, a matrix or a small
    vector does not.
    """
    lower = name.lower()
    return len(shape) == 1 and shape[0] >= MIN_ELEMENTS and any(word in lower for word in _WORDS)


def compare(a: NormTensors, b: NormTensors) -> Score:
    """NLF of two models. n: norm tensors compared, min(T_a, T_b)."""
    for side, tensors in zip(SIDES, (a, b), strict=True):
        if not tensors.names:
            return Score.absent(Reason.of(Code.SIDE_NO_NORMS, side=side, needed=MIN_ELEMENTS))
    if reason := apart(a.names, b.names) or not_finite("norm tensors", a.values, b.values):
        return Score.absent(reason)
    n = min(len(a.names), len(b.names))
    if a.direct and b.direct and len(a.values) == len(b.values):
        value = clamped_cosine(a.values, b.values)
    else:
        value = clamped_cosine(a.stats()[: STATS * n], b.stats()[: STATS * n])
    if value is None:
        return Score.absent(Reason.of(Code.NORMS_ZERO))
    return Score(round(value, 4), n=n)


# --- from a model's weights, and the table row ---


def of_weights(w: Weights) -> NormTensors | None:
    """The norm tensors of a model."""
    kept = [(p.canonical, p.name) for p in w.places if is_norm(p.canonical, w.tensors[p.name].shape)]
    if any(w.tensors[name].size > MAX_VECTOR for _, name in kept):
        w.absences["NLF"] = Reason.of(Code.NORM_LARGE, limit=MAX_VECTOR)
        return None
    values = [w.tensors[name].flat() for _, name in kept]
    if not kept:
        w.absences["NLF"] = Reason.of(Code.NO_NORMS, needed=MIN_ELEMENTS)
        return None
    if not all(np.isfinite(v).all() for v in values):
        w.absences["NLF"] = Reason.of(Code.NORMS_NOT_FINITE)
        return None
    sizes = np.array([v.size for v in values], np.int32)
    return NormTensors(tuple(name for name, _ in kept), sizes, np.concatenate(values))


def _of_row(row: Mapping[str, Any]) -> NormTensors | None:
    return NormTensors(tuple(row["nlf_names"]), row["nlf_sizes"], row["nlf"]) if row["nlf_names"] else None


MOST = 1 << 16  # norm tensors of a model
PANEL = Panel(
    "nlf",
    (
        array("nlf_names", "string", "NLF: norm tensors", MOST),
        array("nlf_sizes", "int32", "NLF: their sizes", MOST),
        array("nlf", "float32", "NLF: their values, tensor after tensor", 1 << 26, finite=True),
    ),
    to_row=lambda norms: {"nlf_names": norms.names, "nlf_sizes": norms.sizes, "nlf": norms.values},
    from_row=_of_row,
    extract=of_weights,
    first=True,
)
SIGNAL = Signal("NLF", field("nlf"), compare, (PANEL,), order=3)
