"""A model's tensors in, its Fingerprint out: one streaming pass, bounded memory, the same for every file layout.

What is hashed and compared depends on the weights (and, for the context signals, on config and tokenizer) only; what
is about files is kept beside it, unhashed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from provindex.errors import ModelError
from provindex.evidence import canonical, panels
from provindex.evidence.anchors import ANCHORS, anchor_ids
from provindex.names import Arch, Layout, Part, Placement, resolve
from provindex.signals import anchors, eas, end, lep, mfi, nlf, tfv, voa, wvc
from provindex.source import FileFact, Model, Tensor
from provindex.tokenizer import Tokenizer, TokenizerAbsence, read_tokenizer

if TYPE_CHECKING:
    from provindex.index import Index

FINGERPRINT_VERSION = 1
CHUNK = 1 << 18  # elements decoded at a time: 1 MB of float32 and 2 MB of float64, which stay in cache
RUN = 1 << 12  # elements squared and added by one call of BLAS, which starts threads of its own for longer ones
MAX_WORKERS = 16  # each holds about 5 MB
MAX_PANEL = 1 << 26  # elements of one panel that is read at once; the largest models need 1/16 of that
MAX_UNKNOWN = 4096  # matrices with names that no table knows, of which blocks are digested
MAX_VECTOR = 1 << 22  # elements of a norm: far more than the width of any model
MAX_EMBEDDING_ROWS = 1_000_000  # the peer's limit for EAS and END
MODES = ("exact", "sampled")
NO_UNITS = "no MLP or value rows with a known role in the text tower"
PLACED = "its positions are the initializer's and say nothing"
NEEDS_EXACT = "needs exact mode: its samples touch the whole file"

F32 = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of the weights that a reader wants to see; none of them decides anything.

    architecture: model type of the text tower. main: its stack ("decoder" or "encoder"). parameters: elements of all
    weight tensors, a tied head counted once. hidden, layers, vocabulary: width, depth and embedding rows of the text
    tower (0 if unknown). precision: narrowest of "bf16", "f16", "f32" that holds most parameters exactly ("" in
    sampled mode). nonfinite: NaNs and infinities found.
    """

    architecture: str
    main: str
    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    precision: str
    nonfinite: int


@dataclass(frozen=True)
class Fingerprint:
    """All that provindex keeps of a model.

    The first group says whose it is and is not hashed. `content_sha256` is over the weights alone, None in sampled
    mode. A signal or panel that is None is explained in `absences` under its name (EAS, hidden, ...). `indexed`: loaded
    from a row of an index.
    """

    model_id: str
    facts: Facts
    mode: str
    content_sha256: str | None
    mfi: mfi.MfiFeatures
    revision: str | None = None
    variant: str = ""
    family: str | None = None
    license: str | None = None
    parents: tuple[str, ...] = ()
    source: str | None = None
    id_certainty: str | None = None
    version: int = FINGERPRINT_VERSION
    tfv: tfv.TfvFeatures | None = None
    vocabulary_sketch: NDArray[np.uint64] | None = None
    vocabulary_size: int = 0
    eas: F32 | None = None
    eas_by_id: F32 | None = None
    end: NDArray[np.float64] | None = None
    nlf: nlf.NormTensors | None = None
    lep: Mapping[str, F32] = field(default_factory=dict)
    wvc: wvc.Samples | None = None
    hidden: panels.HiddenPanels | None = None
    residual: panels.ResidualPanel | None = None
    residual_by_id: panels.ResidualPanel | None = None
    blocks: panels.BlockDigests | None = None
    absences: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: tuple[FileFact, ...] = ()
    bytes_read: int = 0
    bytes_total: int = 0
    indexed: bool = False


@dataclass(frozen=True)
class _Scan:
    """What one pass over a tensor's elements gives."""

    sum_of_squares: float
    nonfinite: int
    precision: str
    digest: str
    row_norms: F32 | None
    stored: bool  # whether the digest is that of the stored bytes


def fingerprint_model(
    model: Model, *, mode: str = "exact", progress: Progress | None = None, digests: dict[str, str] | None = None
) -> Fingerprint:
    """The fingerprint of an open model.

    mode: "exact" reads every byte; "sampled" reads headers, vectors, fixed blocks and panels, and lacks what needs
    more. progress: called with (bytes done, bytes in all). digests: if given, takes the sha256 of the stored bytes of
    each tensor for which the pass made it anyway, by name. Raises ModelError if the model has no weight tensor.
    """
    layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
    places = _weights(model, layout)
    tokenizer = read_tokenizer(model.tokenizer_files, model.config)
    known = tokenizer if isinstance(tokenizer, Tokenizer) else None
    meter = _Meter(progress, sum(t.nbytes for t in model.tensors.values()))
    scans = _scan_all(model, places, meter) if mode == "exact" else {}
    if digests is not None:
        digests.update((name, scan.digest) for name, scan in scans.items() if scan.stored)
    absences: dict[str, str] = {}
    weights = _Weights(model, layout, places, scans, meter, absences)
    features = {
        "eas": _eas(weights, known),
        "eas_by_id": _half(_eas(weights, None, note="eas_by_id")),
        "end": _end(weights),
        "nlf": _nlf(weights),
        "lep": _lep(weights),
        "wvc": _wvc(weights),
        "hidden": _hidden(weights),
        "residual": _residual(weights, known),
        "residual_by_id": _residual_by_id(weights),
        "blocks": _blocks(weights),
    }
    if isinstance(tokenizer, TokenizerAbsence):
        absences["TFV"] = absences["VOA"] = tokenizer.reason
    return Fingerprint(
        model_id=model.model_id,
        revision=model.revision,
        license=model.license,
        parents=model.base_models,
        facts=_facts(weights),
        mode=mode,
        content_sha256=_content_digest(layout, places, model, scans) if scans else None,
        mfi=mfi.extract(model.config, known),
        tfv=tfv.extract(known) if known else None,
        vocabulary_sketch=voa.sketch(known.vocab) if known else None,
        vocabulary_size=len(known.vocab) if known else 0,
        absences=absences,
        warnings=_warnings(model, layout, scans),
        files=model.files,
        bytes_read=meter.total if mode == "exact" else meter.done,
        bytes_total=meter.total,
        **features,  # type: ignore[arg-type]
    )


class _Meter:
    """Counts the bytes that were read, and tells whoever wants to know; for several threads."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self.total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            if self._progress:
                self._progress(min(self.done, self.total), self.total)


@dataclass(frozen=True)
class _Weights:
    """A model being fingerprinted, as the extractors below see it."""

    model: Model
    layout: Layout
    places: tuple[Placement, ...]
    scans: Mapping[str, _Scan]
    meter: _Meter
    absences: dict[str, str]

    @property
    def arch(self) -> Arch | None:
        return self.layout.archs.get(self.layout.main)

    @cached_property
    def experts(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """The experts kept of each MoE layer: the four whose router rows are longest."""
        chosen: dict[tuple[str, int], tuple[int, ...]] = {}
        for place, part in self.parts("router"):
            shape = self.model.tensors[place.name].shape
            if part.layer is not None and len(shape) == 2:
                router = self.rows(place, part, 0, canonical.part_shape(shape, part)[0]).astype(np.float64)
                order = np.argsort(-np.square(router).sum(axis=1), kind="stable")
                chosen[part.stack, part.layer] = tuple(sorted(int(i) for i in order[: panels.EXPERTS]))
        return chosen

    def kept(self, part: Part) -> bool:
        """Whether a part is dense, or belongs to one of the experts that are kept."""
        if part.expert is None or part.layer is None:
            return True
        return part.expert in self.experts.get((part.stack, part.layer), range(panels.EXPERTS))

    def parts(self, role: str, param: str = "weight") -> list[tuple[Placement, Part]]:
        """Every part with a role, in canonical order; a second part at one address is left out."""
        found: dict[canonical.PartKey, tuple[Placement, Part]] = {}
        for place in self.places:
            for part in place.parts:
                if part.role == role and part.param == param:
                    found.setdefault(canonical.key_of(part), (place, part))
        return [found[key] for key in sorted(found, key=str)]

    def rows(self, place: Placement, part: Part, start: int, stop: int) -> F32:
        """Rows of a part, counted as read in sampled mode. Raises ModelError for rows that no model has."""
        tensor = self.model.tensors[place.name]
        height, columns = canonical.part_shape(tensor.shape, part)
        if max((min(stop, height) - start) * columns, *tensor.shape) > MAX_PANEL:
            shape = "x".join(map(str, tensor.shape))
            raise ModelError(f"Tensor {place.name} is {shape}; no weight matrix is that large.", "Check its shape.")
        rows = canonical.read_rows(tensor, part, start, stop)
        if not self.scans:
            self.meter.add(rows.size * _width(tensor))
        return rows


def _width(tensor: Tensor) -> int:
    return tensor.nbytes // tensor.size if tensor.size else 0


def _weights(model: Model, layout: Layout) -> tuple[Placement, ...]:
    """Weight tensors in canonical order: the order of their canonical names as strings."""
    places = [p for p in layout.placements.values() if p.weight and model.tensors[p.name].size]
    if not places:
        raise ModelError(
            f"{model.model_id} has no weight tensors: {len(model.tensors)} tensors found, none with weights.",
            "Check that the folder holds the model's own .safetensors files.",
        )
    return tuple(sorted(places, key=lambda p: (p.canonical, p.name)))


# --- one pass over the elements ---


def workers() -> int:
    """Threads worth starting: processors that this process may use, 16 at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_WORKERS)


def _scan_all(model: Model, places: tuple[Placement, ...], meter: _Meter) -> dict[str, _Scan]:
    """Scans by tensor name, in the order of the places."""
    embeddings = {p.name for p in places if any(part.role == "embed" for part in p.parts)}

    def scan(tensor: Tensor) -> _Scan:
        rows = tensor.name in embeddings and _has_row_norms(tensor.shape)
        result = _scan(tensor, row=tensor.shape[1] if rows else None)
        meter.add(tensor.nbytes)
        return result

    # The largest first, so that no thread is left alone with it at the end.
    tensors = sorted((model.tensors[p.name] for p in places), key=lambda t: t.nbytes, reverse=True)
    with ThreadPoolExecutor(workers()) as pool:  # numpy and hashlib release the interpreter lock
        found = dict(zip((t.name for t in tensors), pool.map(scan, tensors), strict=True))
    return {p.name: found[p.name] for p in places}


def _has_row_norms(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] <= MAX_EMBEDDING_ROWS and shape[1] <= CHUNK


def _scan(tensor: Tensor, *, row: int | None) -> _Scan:
    """Digest and statistics of a tensor in one pass, and the norms of its rows of `row` elements if that is given.

    What is hashed are the elements in their narrowest precision. Where that is how they are stored, the stored bytes
    are hashed as they are; only float16 with NaNs is written anew, because NaNs have many spellings there.
    """
    precision = _narrowest(tensor)
    as_stored = _STORED_AS.get(tensor.dtype) == precision
    digest, stored, width = hashlib.sha256(), as_stored, _width(tensor)
    run = row or RUN
    step = CHUNK // run * run
    wide = np.empty(min(step, -(-tensor.size // run) * run))
    total, bad, norms = 0.0, 0, []
    for start in range(0, tensor.size, step):
        chunk = tensor.flat(start, start + step)
        squares = _squares(chunk, run, wide)
        part = float(squares.sum())
        finite = bool(np.isfinite(part))  # squares of float32 cannot overflow float64
        if not finite:
            bad += int(chunk.size - np.isfinite(chunk).sum())
        if as_stored and (finite or precision != "f16"):
            digest.update(tensor.raw(start * width, (start + step) * width))
        else:
            digest.update(_narrow(chunk, precision))
            stored = False
        if row:
            norms.append(np.sqrt(squares).astype(np.float32))
        total += part
    return _Scan(total, bad, precision, digest.hexdigest(), np.concatenate(norms) if norms else None, stored)


def _squares(chunk: F32, run: int, wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of squares of each run of `run` elements, the last one may be shorter; in float64, with `wide` to work in."""
    runs = -(-chunk.size // run)
    with np.errstate(invalid="ignore"):
        wide[: chunk.size] = chunk
        wide[chunk.size : runs * run] = 0.0
        block = wide[: runs * run].reshape(runs, run)
        squares: NDArray[np.float64] = np.matmul(block[:, None, :], block[:, :, None])
    return squares.reshape(runs)


# Formats whose values are precisely those of a precision, and formats that bf16 holds whatever the values are.
_STORED_AS = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_FIT_BF16 = frozenset(("BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "BOOL"))


def _narrowest(tensor: Tensor) -> str:
    """The narrowest of bf16, f16 and f32 that holds every element exactly, bit for bit."""
    if tensor.dtype in _FIT_BF16:
        return "bf16"
    candidates, widest = (["bf16"], "f16") if tensor.dtype == "F16" else (["bf16", "f16"], "f32")
    probe = tensor.flat(0, min(tensor.size, 1024))  # most weights are told by their first few values
    for piece in itertools.chain((probe,), tensor.chunks(CHUNK)):
        candidates = [c for c in candidates if _holds(piece, c)]
        if not candidates:
            return widest
    return candidates[0]


def _holds(values: F32, precision: str) -> bool:
    bits = values.view(np.uint32)
    if precision == "bf16":
        return not (bits & np.uint32(0xFFFF)).any()
    if (bits & np.uint32(0x1FFF)).any():  # float16 has 13 bits fewer
        return False
    # Outside of its normal range float16 has fewer bits still, or only infinities: there numpy says.
    odd = values[(bits & np.uint32(0x7FFFFFFF)) - _F16_NORMAL > _F16_LARGEST - _F16_NORMAL]
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((odd.astype(np.float16).astype(np.float32).view(np.uint32) == odd.view(np.uint32)).all())


_F16_NORMAL, _F16_LARGEST = np.array([2.0**-14, 65504.0], np.float32).view(np.uint32)


def _narrow(values: F32, precision: str) -> bytes | memoryview:
    if precision == "bf16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").data
    with np.errstate(invalid="ignore"):
        return values.astype("<f2" if precision == "f16" else "<f4", copy=False).data


def _content_digest(layout: Layout, places: tuple[Placement, ...], model: Model, scans: Mapping[str, _Scan]) -> str:
    """sha256 over (canonical name, shape, digest) of every weight; a head that repeats the embedding counts once."""
    embeddings = {scans[p.name].digest for p in places if any(part.role == "embed" for part in p.parts)}
    lines = []
    for place in places:
        tied = any(part.role == "head" for part in place.parts) and scans[place.name].digest in embeddings
        if not tied:
            shape = "x".join(map(str, model.tensors[place.name].shape))
            lines.append(f"{place.canonical} {shape} {scans[place.name].digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


# --- facts and warnings ---


def _facts(w: _Weights) -> Facts:
    sizes: dict[str, int] = {}
    parameters = 0
    seen: set[str] = set()
    for place in w.places:
        size = w.model.tensors[place.name].size
        scan = w.scans.get(place.name)
        if scan and any(p.role in ("embed", "head") for p in place.parts):
            if scan.digest in seen:
                continue
            seen.add(scan.digest)
        parameters += size
        if scan:
            sizes[scan.precision] = sizes.get(scan.precision, 0) + size
    embed = w.parts("embed")
    layers = {p.layer for p in w.places if p.stack == w.layout.main and p.layer is not None}
    return Facts(
        architecture=w.layout.model_type,
        main=w.layout.main,
        parameters=parameters,
        hidden=w.arch.hidden if w.arch else 0,
        layers=len(layers),
        vocabulary=w.model.tensors[embed[0][0].name].shape[0] if embed else 0,
        precision=max(sizes, key=lambda p: sizes[p]) if sizes else "",
        nonfinite=sum(s.nonfinite for s in w.scans.values()),
    )


def _warnings(model: Model, layout: Layout, scans: Mapping[str, _Scan]) -> tuple[str, ...]:
    out = [*model.warnings, *layout.notes]
    if model.config_reason:
        out.append(model.config_reason)
    if layout.unknown:
        shown = ", ".join(layout.unknown[:3]) + (" ..." if len(layout.unknown) > 3 else "")
        out.append(f"{len(layout.unknown)} of {len(layout.placements)} tensors have names that are not known: {shown}")
    bad = {name: s.nonfinite for name, s in scans.items() if s.nonfinite}
    if bad:
        first = next(iter(bad))
        out.append(f"{sum(bad.values())} NaN or infinite values in {len(bad)} tensors, the first of them {first}")
    return tuple(out)


# --- the eight signals ---


def _embedding(w: _Weights, signal: str) -> tuple[Placement, Part] | None:
    """The token embedding, or None with the reason noted."""
    found = [(place, part) for place, part in w.parts("embed") if len(w.model.tensors[place.name].shape) == 2]
    if not found:
        w.absences[signal] = "no tensor is known to be the token embedding"
        return None
    if w.model.tensors[found[0][0].name].shape[0] > MAX_EMBEDDING_ROWS:
        w.absences[signal] = f"the embedding has more than {MAX_EMBEDDING_ROWS:,} rows"
        return None
    return found[0]


def _embedding_rows(w: _Weights, place: Placement, ids: NDArray[np.int64]) -> F32:
    tensor = w.model.tensors[place.name]
    if not w.scans:
        w.meter.add(ids.size * tensor.shape[1] * _width(tensor))
    return tensor.rows(ids)


def _eas(w: _Weights, tokenizer: Tokenizer | None, note: str = "EAS") -> F32 | None:
    """EAS at the peer's anchors; without a tokenizer at fixed ids, for retrieval where a tokenizer is withheld."""
    found = _embedding(w, note)
    if found is None:
        return None
    rows = w.model.tensors[found[0].name].shape[0]
    first_id = tokenizer.first_id if tokenizer else None
    ids = anchors.peer_anchors(first_id, tokenizer.vocab if tokenizer else None, rows)
    if len(ids) < eas.MIN_ANCHORS:
        w.absences[note] = f"only {len(ids)} anchor tokens, {eas.MIN_ANCHORS} needed"
        return None
    similarity = eas.extract(_embedding_rows(w, found[0], np.asarray(ids, np.int64)))
    if similarity is None or not np.isfinite(similarity).all():
        w.absences[note] = "NaN or infinity in the anchor rows of the embedding"
        return None
    return similarity


def _half(values: F32 | None) -> F32 | None:
    """Values as they come back from storage as float16."""
    return None if values is None else values.astype(np.float16).astype(np.float32)


def _end(w: _Weights) -> NDArray[np.float64] | None:
    if not w.scans:
        w.absences["END"] = NEEDS_EXACT
        return None
    found = _embedding(w, "END")
    if found is None:
        return None
    norms = w.scans[found[0].name].row_norms
    if norms is None:
        w.absences["END"] = f"the embedding's rows have more than {CHUNK:,} elements"
        return None
    if not np.isfinite(norms).all():
        w.absences["END"] = "NaN or infinity in the embedding"
        return None
    histogram = end.extract(norms)
    if histogram is None:
        w.absences["END"] = "the embedding has no rows to count"
    return histogram


def _nlf(w: _Weights) -> nlf.NormTensors | None:
    kept = [(p.canonical, p.name) for p in w.places if nlf.is_norm(p.canonical, w.model.tensors[p.name].shape)]
    if any(w.model.tensors[name].size > MAX_VECTOR for _, name in kept):
        w.absences["NLF"] = f"a norm tensor of more than {MAX_VECTOR:,} elements"
        return None
    values = [w.model.tensors[name].flat() for _, name in kept]
    if not w.scans:
        w.meter.add(sum(w.model.tensors[name].nbytes for _, name in kept))
    if not kept:
        w.absences["NLF"] = f"no norm tensor of {nlf.MIN_ELEMENTS} or more elements"
        return None
    if not all(np.isfinite(v).all() for v in values):
        w.absences["NLF"] = "NaN or infinity in a norm tensor"
        return None
    return nlf.NormTensors(
        tuple(name for name, _ in kept), np.array([v.size for v in values], np.int32), np.concatenate(values)
    )


def _layered(w: _Weights) -> list[Placement]:
    return [p for p in w.places if p.layer is not None and len(w.model.tensors[p.name].shape) >= 2]


def _lep(w: _Weights) -> dict[str, F32]:
    if not w.scans:
        w.absences["LEP"] = NEEDS_EXACT
        return {}
    norms: dict[str, dict[int, list[float]]] = {}
    for place in _layered(w):
        if place.layer is not None:
            energy = float(np.sqrt(w.scans[place.name].sum_of_squares))
            norms.setdefault(place.stack, {}).setdefault(place.layer, []).append(energy)
    if w.layout.main not in norms:
        w.absences["LEP"] = "no matrices in numbered layers of the text tower"
    elif not all(np.isfinite(v) for layer in norms[w.layout.main].values() for v in layer):
        w.absences["LEP"] = "NaN or infinity in a weight matrix"
    return {
        stack: lep.profile(layers)
        for stack, layers in sorted(norms.items())
        if all(np.isfinite(v) for layer in layers.values() for v in layer)
    }


def _wvc(w: _Weights) -> wvc.Samples | None:
    if not w.scans:
        w.absences["WVC"] = NEEDS_EXACT
        return None
    names, layers, values = [], [], []
    for place in _layered(w):
        if place.stack != w.layout.main or place.layer is None or not wvc.is_projection(place.canonical):
            continue
        if not all(part.lead is not None or w.kept(part) for part in place.parts):
            continue
        tensor = w.model.tensors[place.name]
        names.append(place.canonical)
        layers.append(place.layer)
        values.append(panels.rounded(tensor.strided(*wvc.stride(tensor.size))))
    if not names:
        w.absences["WVC"] = "no known projection tensor in a numbered layer of the text tower"
        return None
    if not all(np.isfinite(v).all() for v in values):
        w.absences["WVC"] = "NaN or infinity in a sampled weight"
        return None
    sizes = np.array([v.size for v in values], np.int32)
    return wvc.Samples(tuple(names), np.array(layers, np.int32), sizes, np.concatenate(values))


# --- evidence ---


def _gains(w: _Weights) -> dict[tuple[str, str, int | None], F32]:
    """Norm gains by (stack, role, layer); cross-attention's norms apart."""
    gains: dict[tuple[str, str, int | None], F32] = {}
    for role in ("norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out", "norm_embed"):
        for place, part in w.parts(role):
            if not part.cross and w.model.tensors[place.name].size <= MAX_VECTOR:
                gains[part.stack, role, part.layer] = w.model.tensors[place.name].flat()
    return gains


def _hidden(w: _Weights) -> panels.HiddenPanels | None:
    width = w.arch.hidden if w.arch else 0
    gains = _gains(w)
    entries: list[tuple[panels.PanelKey, NDArray[np.float16]]] = []
    stacks = {stack: arch for stack, arch in w.layout.archs.items() if arch.hidden == width}
    depth = {s: len({p.layer for p in w.places if p.stack == s and p.layer is not None}) for s in stacks}
    readers: dict[panels.PanelKey, list[tuple[Placement, Part]]] = {}
    for role, kind in (("gate", "mlp"), ("up", "mlp"), ("v", "v")):
        for place, part in w.parts(role):
            if part.stack in stacks and part.layer is not None and not part.cross and w.kept(part):
                group = stacks[part.stack].head_dim if kind == "v" else 0
                key = panels.PanelKey(kind, part.stack, part.layer, -1 if part.expert is None else part.expert, group)
                readers.setdefault(key, []).append((place, part))
    identities = 0
    for key, found in readers.items():
        arch, height = stacks[key.stack], panels.panel_height(depth[key.stack])
        gain = canonical.find_gain(gains, key.stack, arch, "attn" if key.kind == "v" else "mlp", key.layer)
        rows = [w.rows(place, part, 0, height) for place, part in found]
        if any(panels.diagonal_stands_out(r, np.arange(len(r))) for r in rows):
            identities += 1
        elif all(r.shape == (rows[0].shape[0], width) for r in rows):
            entries.append((key, panels.hidden_panel([canonical.fold(r, arch, gain) for r in rows], key.kind)))
    if identities:
        w.absences["hidden_units"] = f"{identities} of {len(readers)} blocks started as the identity: {PLACED}"
    made = panels.stack_panels(entries, width)
    if made is None:
        why = f"every block of hidden units started as the identity: {PLACED}" if identities else NO_UNITS
        w.absences["hidden"] = why
    return made


def _residual(w: _Weights, tokenizer: Tokenizer | None) -> panels.ResidualPanel | None:
    """The residual panel at the anchor strings."""
    if tokenizer is None:
        w.absences["residual"] = "no tokenizer, so the anchor tokens cannot be found"
        return None
    return _residual_at(w, "residual", lambda rows: anchor_ids(tokenizer.vocab, rows), ANCHORS)


def _residual_by_id(w: _Weights) -> panels.ResidualPanel | None:
    """The residual panel at fixed token ids, for when a tokenizer is withheld or is not the model's own."""
    labels = [f"id {i}" for i in panels.fixed_ids(1 << 62)]
    return _residual_at(w, "residual_by_id", panels.fixed_ids, labels)


def _residual_at(
    w: _Weights, note: str, choose: Callable[[int], NDArray[np.int64]], labels: Sequence[str]
) -> panels.ResidualPanel | None:
    found = _embedding(w, note)
    if found is None or w.arch is None:
        w.absences.setdefault(note, "the architecture is not known")
        return None
    if w.arch.fixed_positions:
        w.absences[note] = "fixed sinusoidal positions: residual coordinates are not exchangeable"
        return None
    ids = choose(w.model.tensors[found[0].name].shape[0])
    rows = _embedding_rows(w, found[0], ids[ids >= 0])
    maps = w.parts("embed_map")
    if maps:
        place, part = maps[0]
        matrix = w.rows(place, part, 0, canonical.part_shape(w.model.tensors[place.name].shape, part)[0])
        rows = (rows.astype(np.float64) @ matrix.astype(np.float64).T).astype(np.float32)
    elif panels.diagonal_stands_out(rows, ids[ids >= 0]):
        w.absences[note] = f"the embedding started as the identity: {PLACED}"
        return None
    made = panels.residual_panel(rows, ids, centered=w.arch.norm == "layer", labels=labels)
    if made is None:
        w.absences[note] = f"fewer than {panels.MIN_ANCHORS} anchor tokens, or values that are not finite"
    return made


def _blocks(w: _Weights) -> panels.BlockDigests | None:
    entries: dict[str, tuple[F32, F32]] = {}
    unknown = {n for n in w.layout.unknown[:MAX_UNKNOWN] if len(w.model.tensors[n].shape) == 2}
    for place in w.places:
        fixed = w.layout.archs[place.stack].fixed_positions if place.stack in w.layout.archs else False
        for part in place.parts:
            shape = w.model.tensors[place.name].shape
            matrix = len(shape) - (part.lead is not None) == 2
            key = str(canonical.key_of(part))
            if not matrix or key in entries or not w.kept(part) or (fixed and part.role == "pos"):
                continue
            entries[key] = _two_blocks(w, place, part)
        if place.name in unknown:  # no role is needed to see that a matrix is somebody else's
            entries[f"unknown.{place.canonical}"] = _two_blocks(w, place, Part("unknown"))
    made = panels.stack_blocks(sorted(entries.items()))
    if made is None:
        w.absences["blocks"] = "no weight matrix with a known role"
    return made


def _two_blocks(w: _Weights, place: Placement, part: Part) -> tuple[F32, F32]:
    """The elements at the first row of a matrix, and at its middle row."""
    rows, cols = canonical.part_shape(w.model.tensors[place.name].shape, part)
    need = -(-panels.BLOCK // cols)
    first = w.rows(place, part, 0, need).reshape(-1)[: panels.BLOCK]
    second = w.rows(place, part, rows // 2, rows // 2 + need).reshape(-1)[: panels.BLOCK]
    return first, second


# --- `provindex.fingerprint` is this module, and in the Python interface a function: the module can be called ---


class _Callable(ModuleType):
    def __call__(
        self,
        reference: str | os.PathLike[str],
        *,
        index: Index | None = None,
        mode: str = "exact",
        offline: bool = False,
    ) -> Fingerprint:
        """The fingerprint of any model reference; see `provindex.api.fingerprint`."""
        from provindex import api

        return api.fingerprint(reference, index=index, mode=mode, offline=offline)


sys.modules[__name__].__class__ = _Callable
