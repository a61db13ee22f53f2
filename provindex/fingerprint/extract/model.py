"""A model's tensors in, its Fingerprint out: one streaming pass, bounded memory, the same for every file layout.

What is hashed and compared depends on the weights (and, for the context signals, on config and tokenizer) only; what
is about files is kept beside it, unhashed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError
from provindex.common.tensor import Tensor
from provindex.common.threads import one_blas_thread, workers
from provindex.common.tokens import Tokenizer, TokenizerAbsence
from provindex.evidence import panels, sketch
from provindex.evidence.anchors import ANCHORS, anchor_ids
from provindex.evidence.token_rows import TokenRows, chosen_ids, token_rows
from provindex.fingerprint.extract.units import Anchors, Branched, branches
from provindex.fingerprint.record import F32, NEEDS_EXACT, NEEDS_STAGE_2, Facts, Fingerprint
from provindex.formats.ranged import settled
from provindex.models.source import Model
from provindex.models.tokenizer import read_tokenizer
from provindex.roles import adapters, canonical
from provindex.roles.architectures import ADAPTERS
from provindex.roles.names import Layout, Part, Placement, resolve
from provindex.roles.weights import MAX_PANEL, MAX_VECTOR, Meter, Progress, Scan, Weights, element_width
from provindex.signals import anchors, eas, end, lep, mfi, nlf, tfv, voa, wvc

if TYPE_CHECKING:
    pass

CHUNK = 1 << 18  # elements decoded at a time: 1 MB of float32 and 2 MB of float64, which stay in cache
RUN = 1 << 12  # elements squared and added by one call of BLAS, which starts threads of its own for longer ones
MAX_UNKNOWN = 4096  # matrices with names that no table knows, of which blocks are digested
MAX_EMBEDDING_ROWS = 1_000_000  # the peer's limit for EAS and END
NO_UNITS = "no MLP or value rows with a known role in the text tower"
NO_LAYER = "no MLP or attention with known roles in the text tower"
PLACED = "its positions are the initializer's and say nothing"


def fingerprint_model(
    model: Model,
    *,
    mode: str = "exact",
    stage: int = 2,
    progress: Progress | None = None,
    digests: dict[str, str] | None = None,
) -> Fingerprint:
    """The fingerprint of an open model.

    mode: "exact" reads every byte; "sampled" reads headers, vectors, fixed blocks and panels, and lacks what needs
    more. stage: of sampled reading; 2 also reads the layers at one and two thirds whole, which sees through disguises.
    progress: called with (bytes done, bytes in all). digests: if given, takes the sha256 of the stored bytes of each
    tensor for which the pass made it anyway, by name. Raises ModelError if the model has no weight tensor.
    """
    with one_blas_thread():
        if mode == "exact":
            return _fingerprint_model(model, mode, 2, progress, digests)
        return settled(model.reads, lambda: _fingerprint_model(model, mode, stage, None, None), progress)


def _fingerprint_model(
    model: Model, mode: str, stage: int, progress: Progress | None, digests: dict[str, str] | None
) -> Fingerprint:
    for file in model.reads:
        file.restart()
    layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
    places = _weights(model, layout)
    tokenizer = read_tokenizer(model.tokenizer_files, model.config)
    known = tokenizer if isinstance(tokenizer, Tokenizer) else None
    total = sum(t.nbytes for t in model.tensors.values())
    scans: dict[str, Scan] = {}
    absences: dict[str, str] = {}
    weights = Weights(model.tensors, layout, places, scans, absences, exact=mode == "exact")
    by_string, by_id = _at_strings(weights, known), _at_ids(weights)
    branched = _pass(weights, (by_string, by_id), stage, Meter(progress, total))
    if digests is not None:
        digests.update((name, scan.digest) for name, scan in scans.items() if scan.stored)
    features = {
        "eas": _eas(weights, known),
        "eas_by_id": _half(_eas(weights, None, note="eas_by_id")),
        "end": _end(weights),
        "nlf": _nlf(weights),
        "lep": _lep(weights),
        "wvc": _wvc(weights),
        "hidden": _hidden(weights),
        "residual": _residual(weights, by_string, "residual"),
        "residual_by_id": _residual(weights, by_id, "residual_by_id"),
        "sketches": branched.by_string,
        "sketches_by_id": branched.by_id,
        "neurons": branched.neurons,
        "token_rows": _token_rows(weights),
        "blocks": _blocks(weights),
    }
    facts = _facts(weights)
    adapter = adapters.alone(layout, {name: t.shape for name, t in model.tensors.items()})
    if adapter is not None:
        features |= {"lep": {}, "wvc": None}
        facts = replace(facts, hidden=adapter.hidden)
        absences |= adapter.absences
    if isinstance(tokenizer, TokenizerAbsence):
        absences["TFV"] = absences["VOA"] = tokenizer.reason
    return Fingerprint(
        model_id=model.model_id,
        revision=model.revision,
        variant=model.variant,
        license=model.license,
        parents=model.base_models,
        facts=facts,
        mode=mode,
        content_sha256=_content_digest(layout, places, model, scans) if weights.exact else None,
        mfi=mfi.extract(model.config, known),
        tfv=tfv.extract(known) if known else None,
        vocabulary_sketch=voa.sketch(known.vocab) if known else None,
        vocabulary_size=len(known.vocab) if known else 0,
        absences=absences,
        warnings=_warnings(model, layout, scans),
        files=model.files,
        bytes_read=total if mode == "exact" else sum(file.seen.total for file in model.reads),
        bytes_total=total,
        **features,  # type: ignore[arg-type]
    )


def _weights(model: Model, layout: Layout) -> tuple[Placement, ...]:
    """Weight tensors in canonical order: the order of their canonical names as strings."""
    places = [p for p in layout.placements.values() if p.weight and model.tensors[p.name].size]
    if not places:
        raise ModelError(
            f"{model.model_id} has no weight tensors: {len(model.tensors)} tensors found, none with weights.",
            "Check that the folder holds the model's own weight files.",
        )
    return tuple(sorted(places, key=lambda p: (p.canonical, p.name)))


# --- one pass over the elements ---


def _pass(w: Weights, at: Sequence[_AnchorRows | None], stage: int, meter: Meter) -> Branched:
    """What the whole tensors give: in exact mode the scans of all, and the branches; in stage 1 of sampled nothing.

    A layer is scanned just before its branches are read, so that a file larger than memory is read once.
    """
    if not w.exact and stage == 1:
        w.absences["branches"] = w.absences["neurons"] = NEEDS_STAGE_2
        return Branched()
    waiting: dict[tuple[str, int | None], list[Placement]] = {}
    for place in w.places if w.exact else ():
        waiting.setdefault((place.stack, place.layer), []).append(place)
    embeddings = {p.name for p in w.places if any(part.role == "embed" for part in p.parts)}
    _ = w.experts, w.gains  # made once, before several threads ask

    def scan(place: Placement) -> None:
        tensor = w.tensors[place.name]
        rows = place.name in embeddings and _has_row_norms(tensor.shape)
        w.scans[place.name] = _scan(tensor, row=tensor.shape[1] if rows else None, sampled=_is_sampled(w, place))
        meter.add(tensor.nbytes)

    def scan_layer(key: tuple[str, int | None]) -> None:
        for place in waiting.pop(key, ()):
            scan(place)

    with ThreadPoolExecutor(workers()) as pool:  # numpy and hashlib release the interpreter lock
        outside = [p for key in list(waiting) if key[1] is None for p in waiting.pop(key)]
        # The largest first, so that no thread is left alone with it at the end.
        running = pool.map(scan, sorted(outside, key=lambda p: w.tensors[p.name].nbytes, reverse=True))
        branched = _branches(w, at, pool, scan_layer)
        list(pool.map(scan_layer, list(waiting)))
        list(running)
    found = {place.name: w.scans[place.name] for place in w.places if w.exact}
    w.scans.clear()
    w.scans.update(found)  # in the order of the places, whichever thread was first
    return branched


def _has_row_norms(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] <= MAX_EMBEDDING_ROWS and shape[1] <= CHUNK


def _scan(tensor: Tensor, *, row: int | None = None, sampled: bool = False) -> Scan:
    """Digest and statistics of a tensor in one pass, the norms of its rows of `row` elements if that is given, and
    WVC's samples if they are wanted.

    What is hashed are the elements in their narrowest precision. Where that is how they are stored, the stored bytes
    are hashed as they are; only float16 with NaNs is written anew, because NaNs have many spellings there.
    """
    precision = _narrowest(tensor)
    as_stored = tensor.plain and _STORED_AS.get(tensor.dtype) == precision
    digest, stored, width = hashlib.sha256(), as_stored, element_width(tensor)
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
    lengths = np.concatenate(norms) if norms else None
    samples = panels.rounded(tensor.strided(*wvc.stride(tensor.size))) if sampled else None
    return Scan(total, bad, precision, digest.hexdigest(), lengths, stored, samples)


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


def _content_digest(layout: Layout, places: tuple[Placement, ...], model: Model, scans: Mapping[str, Scan]) -> str:
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


def _facts(w: Weights) -> Facts:
    sizes: dict[str, int] = {}
    parameters = 0
    seen: set[str] = set()
    for place in w.places:
        size = w.tensors[place.name].size
        scan = w.scans.get(place.name)
        if any(p.role in ("embed", "head") and p.param == "weight" for p in place.parts):
            content = scan.digest if scan else _blocks_digest(w, place)
            if content in seen:
                continue
            seen.add(content)
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
        vocabulary=w.tensors[embed[0][0].name].shape[0] if embed else 0,
        precision=max(sizes, key=lambda p: sizes[p]) if sizes else "",
        nonfinite=sum(s.nonfinite for s in w.scans.values()),
    )


def _blocks_digest(w: Weights, place: Placement) -> str:
    """What tells a head that is the embedding from one that is not, of the little that sampled mode reads of them."""
    digest = hashlib.sha256(str(w.tensors[place.name].shape).encode())
    for part in place.parts:
        for block in _two_blocks(w, place, part):
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _warnings(model: Model, layout: Layout, scans: Mapping[str, Scan]) -> tuple[str, ...]:
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


def _embedding(w: Weights, signal: str) -> tuple[Placement, Part] | None:
    """The token embedding, or None with the reason noted."""
    found = [(place, part) for place, part in w.parts("embed") if len(w.tensors[place.name].shape) == 2]
    if not found:
        w.absences[signal] = "no tensor is known to be the token embedding"
        return None
    if w.tensors[found[0][0].name].shape[0] > MAX_EMBEDDING_ROWS:
        w.absences[signal] = f"the embedding has more than {MAX_EMBEDDING_ROWS:,} rows"
        return None
    return found[0]


def _embedding_rows(w: Weights, place: Placement, ids: NDArray[np.int64]) -> F32:
    return w.tensors[place.name].rows(ids)


def _eas(w: Weights, tokenizer: Tokenizer | None, note: str = "EAS") -> F32 | None:
    """EAS at the peer's anchors; without a tokenizer at fixed ids, for retrieval where a tokenizer is withheld."""
    found = _embedding(w, note)
    if found is None:
        return None
    rows = w.tensors[found[0].name].shape[0]
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


def _end(w: Weights) -> NDArray[np.float64] | None:
    if not w.exact:
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


def _nlf(w: Weights) -> nlf.NormTensors | None:
    kept = [(p.canonical, p.name) for p in w.places if nlf.is_norm(p.canonical, w.tensors[p.name].shape)]
    if any(w.tensors[name].size > MAX_VECTOR for _, name in kept):
        w.absences["NLF"] = f"a norm tensor of more than {MAX_VECTOR:,} elements"
        return None
    values = [w.tensors[name].flat() for _, name in kept]
    if not kept:
        w.absences["NLF"] = f"no norm tensor of {nlf.MIN_ELEMENTS} or more elements"
        return None
    if not all(np.isfinite(v).all() for v in values):
        w.absences["NLF"] = "NaN or infinity in a norm tensor"
        return None
    return nlf.NormTensors(
        tuple(name for name, _ in kept), np.array([v.size for v in values], np.int32), np.concatenate(values)
    )


def _layered(w: Weights) -> list[Placement]:
    return [p for p in w.places if p.layer is not None and len(w.tensors[p.name].shape) >= 2]


def _lep(w: Weights) -> dict[str, F32]:
    if not w.exact:
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


def _is_sampled(w: Weights, place: Placement) -> bool:
    """Whether WVC takes samples of a tensor."""
    matrix = place.layer is not None and len(w.tensors[place.name].shape) >= 2
    if not matrix or place.stack != w.layout.main or not wvc.is_projection(place.canonical):
        return False
    return all(part.lead is not None or w.kept(part) for part in place.parts)


def _wvc(w: Weights) -> wvc.Samples | None:
    if not w.exact:
        w.absences["WVC"] = NEEDS_EXACT
        return None
    names, layers, values = [], [], []
    for place in w.places:
        samples = w.scans[place.name].samples
        if samples is not None and place.layer is not None:
            names.append(place.canonical)
            layers.append(place.layer)
            values.append(samples)
    if not names:
        w.absences["WVC"] = "no known projection tensor in a numbered layer of the text tower"
        return None
    if not all(np.isfinite(v).all() for v in values):
        w.absences["WVC"] = "NaN or infinity in a sampled weight"
        return None
    sizes = np.array([v.size for v in values], np.int32)
    return wvc.Samples(tuple(names), np.array(layers, np.int32), sizes, np.concatenate(values))


# --- evidence ---


def _hidden(w: Weights) -> panels.HiddenPanels | None:
    width = w.arch.hidden if w.arch else 0
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
        gain = canonical.find_gain(w.gains, key.stack, arch, "attn" if key.kind == "v" else "mlp", key.layer)
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


@dataclass(frozen=True)
class _AnchorRows:
    """Embedding rows of anchor tokens, in the residual stream; ids: (512,), -1 where missing; labels: their signs."""

    rows: F32
    ids: NDArray[np.int64]
    labels: Sequence[str]


def _at_strings(w: Weights, tokenizer: Tokenizer | None) -> _AnchorRows | None:
    if tokenizer is None:
        w.absences["residual"] = "no tokenizer, so the anchor tokens cannot be found"
        return None
    return _anchor_rows(w, "residual", lambda rows: anchor_ids(tokenizer.vocab, rows), ANCHORS)


def _at_ids(w: Weights) -> _AnchorRows | None:
    """Fixed token ids, for when a tokenizer is withheld or is not the model's own."""
    labels = [f"id {i}" for i in panels.fixed_ids(1 << 62)]
    return _anchor_rows(w, "residual_by_id", panels.fixed_ids, labels)


def _anchor_rows(
    w: Weights, note: str, choose: Callable[[int], NDArray[np.int64]], labels: Sequence[str]
) -> _AnchorRows | None:
    found = _embedding(w, note)
    if found is None or w.arch is None:
        w.absences.setdefault(note, "the architecture is not known")
        return None
    ids = choose(w.tensors[found[0].name].shape[0])
    rows = _embedding_rows(w, found[0], ids[ids >= 0])
    maps = w.parts("embed_map")
    if maps:
        place, part = maps[0]
        matrix = w.rows(place, part, 0, canonical.part_shape(w.tensors[place.name].shape, part)[0])
        rows = (rows.astype(np.float64) @ matrix.astype(np.float64).T).astype(np.float32)
    elif panels.diagonal_stands_out(rows, ids[ids >= 0]):
        w.absences[note] = f"the embedding started as the identity: {PLACED}"
        return None
    if rows.shape[1] != w.arch.hidden:
        w.absences[note] = "the embedding is not as wide as the residual stream"
        return None
    return _AnchorRows(rows, ids, labels)


def _residual(w: Weights, at: _AnchorRows | None, note: str) -> panels.ResidualPanel | None:
    if at is None or w.arch is None:
        return None
    if w.arch.fixed_positions:
        w.absences[note] = "fixed sinusoidal positions: residual coordinates are not exchangeable"
        return None
    made = panels.residual_panel(at.rows, at.ids, centered=w.arch.norm == "layer", labels=at.labels)
    if made is None:
        w.absences[note] = f"fewer than {panels.MIN_ANCHORS} anchor tokens, or values that are not finite"
    return made


def _token_rows(w: Weights) -> TokenRows | None:
    found = _embedding(w, "token_rows")
    if found is None:
        return None
    height, width = w.tensors[found[0].name].shape
    ids = chosen_ids(height)
    if not width or ids.size * width > MAX_PANEL:
        w.absences["token_rows"] = f"the embedding's rows have {width:,} elements"
        return None
    return token_rows(_embedding_rows(w, found[0], ids), ids)


def _branches(
    w: Weights, at: Sequence[_AnchorRows | None], pool: Executor, before: Callable[[tuple[str, int]], None]
) -> Branched:
    """Sketches and neuron panels, by string and by id."""
    centered = w.arch is not None and w.arch.norm == "layer"
    virtual = [None if a is None else sketch.virtual_anchors(a.rows, a.ids, a.labels, centered=centered) for a in at]
    made = branches(w, Anchors(*virtual), pool, before)
    if made.by_string is None and made.by_id is None:
        w.absences["branches"] = next(
            (w.absences[n] for n in ("residual", "residual_by_id") if n in w.absences), NO_LAYER
        )
    if made.neurons is None:
        w.absences["neurons"] = w.absences.get("branches", NO_LAYER)
    return made


def _blocks(w: Weights) -> panels.BlockDigests | None:
    entries: dict[str, tuple[F32, F32]] = {}
    changes = tuple(p.name for p in w.places if p.reason in ADAPTERS.values())
    unknown = {n for n in (*w.layout.unknown, *changes)[:MAX_UNKNOWN] if len(w.tensors[n].shape) == 2}
    for place in w.places:
        fixed = w.layout.archs[place.stack].fixed_positions if place.stack in w.layout.archs else False
        for part in place.parts:
            shape = w.tensors[place.name].shape
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


def _two_blocks(w: Weights, place: Placement, part: Part) -> tuple[F32, F32]:
    """The elements at the first row of a matrix, and at its middle row."""
    rows, cols = canonical.part_shape(w.tensors[place.name].shape, part)
    need = -(-panels.BLOCK // cols)
    first = w.rows(place, part, 0, need).reshape(-1)[: panels.BLOCK]
    second = w.rows(place, part, rows // 2, rows // 2 + need).reshape(-1)[: panels.BLOCK]
    return first, second
