"""WVC, weight value cosine: do the weights, element by element, point the same way as the other model's?

Definition: from every tensor with a layer index, dim >= 2 and a projection name (`is_projection`), flattened
row-major, 4,096 elements at a fixed stride (`stride`); all of it if smaller. Per layer the samples are
concatenated in the order of the sorted names, cut to the shorter of the two models, and compared by cosine
clamped to [0, 1]; layers with fewer than 64 samples or a product of norms below 1e-10 are skipped. The mean
over the layers that both models have, rounded to 4 decimals.
Range: [0, 1]. Chance level: .00 to .004 (independent models of one config): the signal with the least overlap
with chance.
Blind to: a positive scale of a layer. Not to permuted or rotated hidden units, nor to removed or repeated
layers.
Absent: fewer than 2 common layers that can be compared, NaN or infinity.
Source: Cisco model-provenance-kit 1.0.0 (its full path), reimplemented from its definition. The peer
concatenates in the order of the file; equal for files whose tensors are in name order. The peer turns a NaN
into 1.0. An imported row has the samples of a layer without the names of its tensors: against one that was made here
only layers of equal length are compared, since others were taken from other tensors.
The roles and shapes of the sampled matrices are kept too: `evidence/sampled.py` tells by them which unit each sample
belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.halves import halved
from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Panel, Row, Signal, array, split
from provindex.common.tables import field as kept
from provindex.roles.names import Placement
from provindex.roles.weights import Weights
from provindex.signals.imported import apart, how_taken
from provindex.signals.similarity import SIDES, clamped_cosine, not_finite

SAMPLES = 4096
MIN_COMMON_LAYERS = 2
MIN_COMMON_SAMPLES = 64
PROJECTION_WORDS = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "o": ("o_proj", "dense", "out_proj"),
    "gate": ("gate_proj", "gate"),
    "up": ("up_proj", "fc1", "dense_h_to_4h", "wi_0"),
    "down": ("down_proj", "fc2", "dense_4h_to_h", "wi_1", "wo"),
}

ROLES = frozenset(("q", "k", "v", "o", "gate", "up", "down", "q+k+v", "k+v", "gate+up"))  # of a sampled matrix
MAX_SIDE = 1 << 22  # rows or columns of a matrix: more than any model has


F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The sampled elements of a model's projections.

    names: stored names, sorted as strings; layers: (T,) int32 layer of each tensor; sizes: (T,) int32 samples
    of each tensor; values: (sum of sizes,) float32. roles: what each matrix is (`role_of`), () where nobody knows;
    rows, columns: (T,) int32 its shape as stored, 0 where it has no role; empty without roles.
    """

    names: tuple[str, ...]
    layers: NDArray[np.int32]
    sizes: NDArray[np.int32]
    values: F32
    roles: tuple[str, ...] = ()
    rows: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    columns: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        counts = {len(self.names), len(self.layers), len(self.sizes)}
        if len(counts) != 1 or int(self.sizes.sum()) != len(self.values):
            raise ValueError("names, layers, sizes and values of samples do not belong together")
        if list(self.names) != sorted(self.names):
            raise ValueError("samples must be in the order of their tensors' names")
        _check_shapes(self)

    @classmethod
    def collect(cls, tensors: Iterable[tuple[str, int, F32]]) -> Samples:
        """Put (name, layer, samples) of each projection into canonical order."""
        ordered = sorted(tensors, key=lambda item: item[0])
        parts = [np.asarray(values, dtype=np.float32) for _, _, values in ordered]
        return cls(
            names=tuple(name for name, _, _ in ordered),
            layers=np.array([layer for _, layer, _ in ordered], dtype=np.int32),
            sizes=np.array([len(part) for part in parts], dtype=np.int32),
            values=np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32),
        )

    def by_layer(self) -> dict[int, F32]:
        """The concatenated samples of each layer, (samples of the layer,) float32, by ascending layer."""
        pieces: dict[int, list[F32]] = {layer: [] for layer in sorted(set(self.layers.tolist()))}
        ends = np.cumsum(self.sizes, dtype=np.int64)
        for layer, end, size in zip(self.layers.tolist(), ends.tolist(), self.sizes.tolist(), strict=True):
            pieces[layer].append(self.values[end - size : end])
        return {layer: np.concatenate(parts) for layer, parts in pieces.items()}


def _check_shapes(s: Samples) -> None:
    """ValueError if roles and shapes are not those of the sampled matrices."""
    counts = {len(s.roles), len(s.rows), len(s.columns)}
    if counts == {0}:
        return
    if counts != {len(s.names)} or not set(s.roles) <= ROLES | {""}:
        raise ValueError("roles and shapes do not belong to the sampled tensors")
    rows, columns = s.rows.astype(np.int64), s.columns.astype(np.int64)
    known = np.array([bool(role) for role in s.roles], bool)
    if ((rows < 0) | (rows > MAX_SIDE) | (columns < 0) | (columns > MAX_SIDE)).any():
        raise ValueError(f"a sampled matrix with a negative side, or one of more than {MAX_SIDE:,}")
    if ((rows * columns > 0) != known).any() or (rows[~known] | columns[~known]).any():
        raise ValueError("a sampled matrix has a role and no shape, or a shape and no role")
    if (np.minimum(rows * columns, SAMPLES)[known] != s.sizes[known]).any():
        raise ValueError("a sampled matrix has other samples than its shape gives")


def is_projection(name: str) -> bool:
    """True if the name has a word of PROJECTION_WORDS, whatever its case.

    The peer sorts names into classes and takes the first that hits; the projections come before embedding,
    norm and head, so any hit decides. `word_embeddings` is a projection by this rule ("wo"), but has no layer
    index.
    """
    lower = name.lower()
    return any(word in lower for words in PROJECTION_WORDS.values() for word in words)


def stride(n: int) -> tuple[int, int]:
    """(step, count) for a flattened tensor of n elements: 0, step, 2 step, ... are taken, count of them."""
    return (1, n) if n <= SAMPLES else (n // SAMPLES, SAMPLES)


def compare(a: Samples, b: Samples) -> Score:
    """WVC of two models by common layer index. n: layers compared."""
    for side, samples in zip(SIDES, (a, b), strict=True):
        if not samples.names:
            return Score.absent(Reason.of(Code.SIDE_NO_PROJECTIONS, side=side))
    if reason := apart(a.names, b.names) or not_finite("projection samples", a.values, b.values):
        return Score.absent(reason)
    first, second = a.by_layer(), b.by_layer()
    common = [layer for layer in first if layer in second]
    if how_taken(a.names) != how_taken(b.names):
        common = [layer for layer in common if len(first[layer]) == len(second[layer])]
        if len(common) < MIN_COMMON_LAYERS:
            return Score.absent(Reason.of(Code.SAMPLED_OTHER_TENSORS))
    if len(common) < MIN_COMMON_LAYERS:
        return Score.absent(Reason.of(Code.COMMON_LAYERS_FEW, needed=MIN_COMMON_LAYERS))
    cosines = [c for layer in common if (c := _layer_cosine(first[layer], second[layer])) is not None]
    if len(cosines) < MIN_COMMON_LAYERS:
        return Score.absent(Reason.of(Code.SAMPLED_LAYERS_FEW, needed=MIN_COMMON_LAYERS))
    return Score(round(float(np.mean(cosines)), 4), n=len(cosines))


def _layer_cosine(a: F32, b: F32) -> float | None:
    shorter = min(len(a), len(b))
    return clamped_cosine(a[:shorter], b[:shorter]) if shorter >= MIN_COMMON_SAMPLES else None


# --- from a model's weights, and the table row ---


def takes(w: Weights, place: Placement) -> bool:
    """Whether WVC takes samples of a tensor: a matrix of the text tower's layers whose parts are kept."""
    matrix = place.layer is not None and len(w.tensors[place.name].shape) >= 2
    if not matrix or place.stack != w.layout.main or not is_projection(place.canonical):
        return False
    return all(part.lead is not None or w.kept(part) for part in place.parts)


def of_weights(w: Weights) -> Samples | None:
    """The samples of a model that is read in full; the pass over its elements took them."""
    if not w.exact:
        w.absences["WVC"] = Reason.of(Code.NEEDS_EXACT)
        return None
    names, layers, values, whats = [], [], [], []
    for place in w.places:
        samples = w.scans[place.name].samples
        if samples is not None and place.layer is not None:
            names.append(place.canonical)
            layers.append(place.layer)
            values.append(samples)
            whats.append(role_of(place, w.tensors[place.name].shape))
    if not names:
        w.absences["WVC"] = Reason.of(Code.NO_PROJECTIONS)
        return None
    if not all(np.isfinite(v).all() for v in values):
        w.absences["WVC"] = Reason.of(Code.SAMPLES_NOT_FINITE)
        return None
    sizes = np.array([v.size for v in values], np.int32)
    roles, rows, columns = zip(*whats, strict=True)
    return Samples(
        tuple(names), np.array(layers, np.int32), sizes, np.concatenate(values),
        roles, np.array(rows, np.int32), np.array(columns, np.int32),
    )  # fmt: skip


def role_of(place: Placement, shape: tuple[int, ...]) -> tuple[str, int, int]:
    """What a stored tensor is, and its rows and columns: ("o", 896, 896); fused ones as "q+k+v".

    ("", 0, 0) for what has no role, or whose rows or columns are not in the order of the units: an expert, a stacked or
    transposed tensor, cross-attention, rows that alternate between gate and up, rows that a format reordered.
    """
    parts = place.parts
    name = "+".join(part.role for part in parts)
    plain = all(p.expert is None and p.lead is None and not p.transposed and not p.cross for p in parts)
    if not plain or name not in ROLES or len(shape) != 2 or max(shape) > MAX_SIDE or min(shape) < 1:
        return "", 0, 0
    reordered = [isinstance(part.rows, np.ndarray) for part in parts]
    if any(reordered) and name != "q+k+v":  # of fused attention only the columns are looked at
        return "", 0, 0
    return name, shape[0], shape[1]


def _to_row(samples: Samples) -> Row:
    pieces = [halved(v) for v in np.split(samples.values, np.cumsum(samples.sizes)[:-1])]
    return {
        "wvc_names": samples.names,
        "wvc_layers": samples.layers,
        "wvc_sizes": samples.sizes,
        "wvc_scales": np.array([scale for _, scale in pieces], np.float32),
        "wvc": np.concatenate([half for half, _ in pieces]),
        "wvc_roles": samples.roles,
        "wvc_rows": samples.rows,
        "wvc_columns": samples.columns,
    }


def _of_row(row: Mapping[str, Any]) -> Samples | None:
    if not row["wvc_names"]:
        return None
    pieces = split(row["wvc"], row["wvc_sizes"])
    if (row["wvc_sizes"] > SAMPLES).any():
        raise ValueError(f"more than {SAMPLES} WVC samples of one tensor")
    values = [p.astype(np.float32) * scale for p, scale in zip(pieces, row["wvc_scales"], strict=True)]
    return Samples(
        tuple(row["wvc_names"]), row["wvc_layers"], row["wvc_sizes"], np.concatenate(values),
        tuple(row["wvc_roles"]), row["wvc_rows"], row["wvc_columns"],
    )  # fmt: skip


MOST = 1 << 16  # sampled tensors of a model
PANEL = Panel(
    "wvc",
    (
        array("wvc_names", "string", "WVC: sampled tensors", MOST),
        array("wvc_layers", "int32", "WVC: their layers", MOST),
        array("wvc_sizes", "int32", "WVC: how many samples of each", MOST),
        array("wvc_scales", "float32", "WVC: power of two that its samples were divided by", MOST, finite=True),
        array("wvc", "float16", "WVC: samples, tensor after tensor", 1 << 27, finite=True),
        array(
            "wvc_roles", "string", "WVC: role of each tensor (q, o, gate+up ...), empty for experts and others", MOST
        ),
        array("wvc_rows", "int32", "WVC: its rows; 0 without a role", MOST),
        array("wvc_columns", "int32", "WVC: its columns; 0 without a role", MOST),
    ),
    to_row=_to_row,
    from_row=_of_row,
    extract=of_weights,
)
SIGNAL = Signal("WVC", kept("wvc"), compare, (PANEL,), order=0)
