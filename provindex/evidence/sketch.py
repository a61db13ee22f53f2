"""VABS, the virtual-anchor branch sketch: what the branches of each layer do, seen from a few fixed tokens.

Virtual anchors A (k x d) are mixtures of the embedding rows of fixed tokens. A change of the residual basis turns them
along with every matrix, so A W' does not change; and products over the hidden units of a branch, such as
(A Wup') (A Wdown)', do not change when units or heads are reordered, rotated inside a head, or rescaled in pairs.
Branch products after centred basis changes: CRS (arXiv 2608.14929), invariant products: HuRef (arXiv 2312.04828).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Panel, Row, Test, array
from provindex.evidence.pairing import Pairing
from provindex.evidence.panels import anchor_table, signs
from provindex.roles.canonical import F32, F64

ANCHORS_KEPT = 64  # virtual anchors in which neurons are described
SKETCHED = 32  # the first of them, from which sketches are made
DROPPED = 8  # leading components of the anchor rows: they hold what all language models share
PRODUCTS = ("qk", "vo", "ud", "gg")
FULL = len(PRODUCTS) * SKETCHED * SKETCHED
LAYER = 128
MODEL = 256
EPSILON = 1e-10  # components of less relative energy are rounding
LEAST_REST = 1e-6  # of a product, beside its identity part: less is rounding

LayerKey = tuple[str, int]  # (stack, layer)


def virtual_anchors(rows: F32, ids: NDArray[np.int64], labels: Sequence[str], *, centered: bool) -> F64 | None:
    """The virtual anchors of a model, (64, d), Frobenius norm squared 64; None where they cannot be made.

    rows: (present anchors, d) float32 embedding rows, in the order of the anchors. ids: (512,) token ids, -1 where
    missing. labels: what seeds the signs of each anchor. centered: the model's norms are LayerNorms, which do not see
    the mean over coordinates. None with fewer than 16 anchors, or if a row is not finite, or without variation.
    """
    table = anchor_table(rows, ids, centered=centered)
    if table is None:
        return None
    present = np.flatnonzero(ids >= 0)
    mixing = np.concatenate([signs(f"virtual/{labels[int(i)]}", 1, ANCHORS_KEPT) for i in present]).astype(np.float64)
    mixed = mixing.T @ flattened(table)
    norm = float(np.sqrt((mixed**2).sum()))
    return mixed * (np.sqrt(ANCHORS_KEPT) / norm) if norm > 0 else None


def flattened(table: F64) -> F64:
    """Rows with square roots for singular values and without the 8 largest components, (p, d) as given.

    X = U diag(s) V' becomes U diag(s^1/2) V': with raw rows the few frequent directions that unrelated models share
    would outweigh the rest.
    """
    wide = table.shape[1] > table.shape[0]
    energies, basis = np.linalg.eigh(table @ table.T if wide else table.T @ table)
    kept = np.flatnonzero(energies > EPSILON * max(float(energies[-1]), 0.0))[:-DROPPED]
    chosen = basis[:, kept]
    scaled = chosen * energies[kept] ** -0.25
    return np.asarray(scaled @ (chosen.T @ table) if wide else (table @ chosen) @ scaled.T, np.float64)


@dataclass(frozen=True)
class Branches:
    """One layer in anchor coordinates: canonical reader rows and writer columns times the anchors, each (k, units).

    Roles that the layer lacks are missing. head_dim: units of one head; 0 if heads are not known. gains: of q and k,
    (units,) each, where the model normalizes them per head: then every head counts alike. rescalable: the activation
    lets gate rows be rescaled (ReLU), so they are not compared by length.
    """

    units: Mapping[str, F64]
    head_dim: int
    gains: Mapping[str, F32]
    rescalable: bool = False


def full_sketch(layer: Branches, anchors: F64) -> F64:
    """The branch products of a layer, flattened and joined: (4096,); a product that cannot be made is zero.

    anchors: (k, d), k at least 32; only the first 32 count.
    """
    units = {role: np.asarray(values[:SKETCHED]) for role, values in layer.units.items()}
    gram = anchors[:SKETCHED] @ anchors[:SKETCHED].T
    gate = units.get("gate", units.get("up"))
    if gate is not None and layer.rescalable:
        gate = _unit_columns(gate)
    with np.errstate(invalid="ignore", over="ignore"):  # a product that is not finite becomes zeros
        made = {
            "qk": _over_heads(units.get("q"), units.get("k"), layer.head_dim, layer.gains),
            "vo": _over_heads(units.get("o"), units.get("v"), layer.head_dim, {}),
            "ud": _product(units.get("up"), units.get("down")),
            "gg": _product(gate, gate),
        }
    return np.concatenate([_normalized(made[name], gram) for name in PRODUCTS])


def _product(x: F64 | None, y: F64 | None) -> F64 | None:
    return x @ y.T if x is not None and y is not None and x.shape == y.shape else None


def _unit_columns(x: F64) -> F64:
    lengths = np.sqrt((x**2).sum(axis=0))
    return np.asarray(x / np.where(lengths > 0, lengths, 1.0), np.float64)


def _over_heads(x: F64 | None, y: F64 | None, head_dim: int, gains: Mapping[str, F32]) -> F64 | None:
    """Sum over heads of x_h y_g(h)': x has the query heads, y the (fewer or as many) key-value heads."""
    if x is None or y is None:
        return None
    if gains:
        x, y = _gained(x, gains.get("q")), _gained(y, gains.get("k"))
    size = head_dim if head_dim > 0 and not (x.shape[1] % head_dim or y.shape[1] % head_dim) else x.shape[1]
    many, few = (x.shape[1] // size, y.shape[1] // size) if size else (0, 0)
    if not few or many % few or y.shape[1] % size:
        return None
    if not gains:  # the query heads of one key-value head may be added up first
        return np.asarray(x.reshape(len(x), few, many // few, size).sum(axis=2).reshape(len(x), -1) @ y.T, np.float64)
    total = np.zeros((len(x), len(y)))
    for head in range(many):
        other = head // (many // few)
        product = x[:, head * size : (head + 1) * size] @ y[:, other * size : (other + 1) * size].T
        length = float(np.sqrt((product**2).sum()))
        total += product / length if length > 0 else product
    return total


def _gained(x: F64, gain: F32 | None) -> F64:
    if gain is None or not gain.size or x.shape[1] % gain.size:
        return x
    return np.asarray(x * np.tile(gain.astype(np.float64), x.shape[1] // gain.size), np.float64)


def _normalized(product: F64 | None, gram: F64) -> F64:
    """A product without its identity part and of length one; zeros if there is none, or it is not finite."""
    if product is None or not np.isfinite(product).all():
        return np.zeros(SKETCHED * SKETCHED)
    rest = product - gram * ((product * gram).sum() / max(float((gram * gram).sum()), 1e-300))
    length = float(np.sqrt((rest**2).sum()))
    told = length > LEAST_REST * float(np.sqrt((product**2).sum()))
    return np.asarray(rest / length if told else np.zeros_like(rest), np.float64).reshape(-1)


@lru_cache(maxsize=2)
def _signs(label: str, width: int) -> F64:
    return signs(f"sketch/{label}", FULL, width).astype(np.float64)


def _unit(values: F64) -> F64:
    lengths = np.sqrt((values**2).sum(axis=-1, keepdims=True))
    return np.asarray(values / np.where(lengths > 0, lengths, 1.0), np.float64)


@dataclass(frozen=True)
class BranchSketches:
    """The sketches of a model's layers, and of the whole.

    keys: (stack, layer) of each. layers: (L, 128) float16 unit rows. whole: (256,) float16 unit vector, the projected
    mean over layers. What was projected has 4,096 values, so an inner product of layers carries noise of 1/sqrt(128).
    """

    keys: tuple[LayerKey, ...]
    layers: NDArray[np.float16]
    whole: NDArray[np.float16]


def projected(full: Mapping[LayerKey, F64]) -> BranchSketches | None:
    """Sketches from the full ones by (stack, layer); None if none has anything in it."""
    kept = {key: full[key] for key in sorted(full) if full[key].any()}
    if not kept:
        return None
    table = _unit(np.stack(list(kept.values())))
    layers = _unit(table @ _signs("layer", LAYER)).astype(np.float16)
    whole = _unit(table.mean(axis=0) @ _signs("model", MODEL)).astype(np.float16)
    return BranchSketches(tuple(kept), layers, whole)


def similarities(a: BranchSketches, b: BranchSketches) -> F64:
    """Inner products of the layers of two models, (layers of A, layers of B), from -1 to 1."""
    products = a.layers.astype(np.float64) @ b.layers.astype(np.float64).T
    return np.asarray(np.clip(products, -1.0, 1.0), np.float64)  # rows of float16 can be a little longer than one


def late_interaction(similarity: F64) -> float:
    """For each layer of the shallower model take its best match, then average; at equal depth average both directions.

    The best of n layers is above chance by the expected largest of n normals / sqrt(128): that is taken off, so that 0
    is chance and 1 a copy at any depth.
    """
    rows, columns = similarity.shape
    down, across = _above_chance(similarity.max(axis=0), rows), _above_chance(similarity.max(axis=1), columns)
    return across if rows < columns else down if columns < rows else (across + down) / 2


def _above_chance(best: F64, among: int) -> float:
    floor = NormalDist().inv_cdf((among - 0.375) / (among + 0.25)) / LAYER**0.5 if among > 1 else 0.0  # Blom (1958)
    return float((best.mean() - floor) / (1 - floor))


# --- the table rows ---


def layer_keys(texts: Sequence[str]) -> tuple[LayerKey, ...]:
    """(stack, layer) of "stack/layer"; ValueError if a layer is named twice."""
    keys = tuple((stack, int(layer)) for stack, _, layer in (text.partition("/") for text in texts))
    if len(set(keys)) != len(keys):
        raise ValueError("a layer that is named twice")
    return keys


def of_row(row: Mapping[str, Any], prefix: str) -> BranchSketches | None:
    """The sketches of a row at anchor strings (prefix "sketch") or at fixed ids ("sketch_id").

    Raises ValueError if the columns do not fit together.
    """
    keys = layer_keys(row[f"{prefix}_keys"])
    if not keys:
        return None
    layers, whole = row[f"{prefix}_layers"], row[f"{prefix}_whole"]
    if whole.size != MODEL:
        raise ValueError(f"{whole.size} values in a model sketch, {MODEL} expected")
    if not (np.isfinite(layers).all() and np.isfinite(whole).all()):
        raise ValueError("a branch sketch that is not finite")
    return BranchSketches(keys, layers.reshape(len(keys), LAYER), whole)


MOST = 1 << 13  # layers of a model


def _panel(name: str, prefix: str, meanings: tuple[str, str, str]) -> Panel:
    def to_row(s: BranchSketches) -> Row:
        keys = [f"{stack}/{layer}" for stack, layer in s.keys]
        return {f"{prefix}_keys": keys, f"{prefix}_layers": s.layers, f"{prefix}_whole": s.whole}

    columns = (
        array(f"{prefix}_keys", "string", meanings[0], MOST),
        array(f"{prefix}_layers", "float16", meanings[1], MOST * LAYER),
        array(f"{prefix}_whole", "float16", meanings[2], MODEL),
    )
    return Panel(name, columns, to_row, lambda row: of_row(row, prefix), lambda w: w.made.get(name))


PANEL = _panel(
    "sketches",
    "sketch",
    (
        "branch sketches at anchor strings: stack/layer",
        "branch sketches: unit rows of 128, layer after layer",
        "branch sketches: the whole model, 256 values",
    ),
)
PANEL_BY_ID = _panel(
    "sketches_by_id",
    "sketch_id",
    (
        "branch sketches at fixed token ids: stack/layer",
        "the same as sketch_layers at fixed token ids",
        "the same as sketch_whole at fixed token ids",
    ),
)


def _run(pair: Pairing) -> Outcome:
    """E4: the better of both namings."""
    both = [(x, y) for x, y in pair.namings.values() if x is not None and y is not None]
    if not both:
        return absent(Reason.of(Code.NO_COMMON_SKETCHES))
    score, x, y = max(((late_interaction(similarities(x, y)), x, y) for x, y in both), key=lambda found: found[0])
    return Outcome(score, min(len(x.keys), len(y.keys)))


TEST = Test("branch_sketch", _run, "aligned", "branches", (PANEL, PANEL_BY_ID))
