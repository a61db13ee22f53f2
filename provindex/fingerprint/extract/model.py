"""A model's tensors in, its Fingerprint out: one streaming pass, bounded memory, the same for every file layout.

What is hashed and compared depends on the weights (and, for the context signals, on config and tokenizer) only; what
is about files is kept beside it, unhashed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.threads import one_blas_thread, workers
from provindex.common.tokens import Tokenizer, TokenizerAbsence
from provindex.evidence import anchors, sketch, token_rows
from provindex.evidence.bit_reuse import two_blocks
from provindex.evidence.table import TESTS
from provindex.fingerprint.extract import completeness
from provindex.fingerprint.extract.scan import Meter, Progress, scan, scan_parts
from provindex.fingerprint.extract.units import Anchors, Branched, branches, every_layer
from provindex.fingerprint.panels import PANELS
from provindex.fingerprint.record import ROLES, UNNAMED, Facts, Fingerprint, kept_as
from provindex.formats.ranged import settled
from provindex.models.source import Model
from provindex.roles import adapters, canonical
from provindex.roles.computed import COMPUTED, SMALL, computed_share, with_honest_buffers
from provindex.roles.names import FREE, HEAD_REASONS, UNKNOWN, Layout, Placement, resolve
from provindex.roles.weights import CHUNK, MAX_EMBEDDING_ROWS, Scan, Weights
from provindex.signals import wvc
from provindex.signals.table import SIGNALS

BEYOND_NORMS = (  # what mode "norms" lacks, by the names under which absences are kept
    *(signal.name for signal in SIGNALS if not any(panel.first for panel in signal.panels)),
    *sorted({test.lacks for test in TESTS} - {panel.name for panel in PANELS if panel.first} - {""}),
    anchors.BY_ID,
    token_rows.PANEL.name,
)
UNNAMED_SHARE = 0.1  # of the elements, above which a model is not cleared: another may be in there
OF_LAYERS = ("sketches", "sketches_by_id", "neurons", "whole_layers")  # panels that stage 2 of sampled reading adds
UNREAD_LAYERS = ("branches", "neurons", "whole_layers")  # under these names stage 1 says that it lacks them
MODEL = 10_000_000  # elements under unknown names, from which on a language model may be in them
SHOWN = 3  # names of tensors that a warning quotes


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
    more; "norms" reads headers and vectors, and no tokenizer. stage: of sampled reading; 2 also reads the layers at one
    and two thirds whole, which sees through disguises. progress: called with (bytes done, bytes in all). digests: if
    given, takes the sha256 of the stored bytes of each tensor for which the pass made it anyway, by name. Raises
    ModelError if the model has no weight tensor.
    """
    with one_blas_thread():
        if mode == "exact":
            return _fingerprint_model(model, mode, 2, progress, digests)
        return settled(model.reads, lambda: _fingerprint_model(model, mode, stage, None, None), progress)


def with_layers(model: Model, first: Fingerprint, progress: Progress | None = None) -> Fingerprint:
    """The fingerprint of stage 2 of sampled reading, from that of stage 1 of the same open model: two layers are read
    whole, and nothing is read again but the anchors' rows. progress: as in `fingerprint_model`.
    """
    read = [tuple(file.seen) for file in model.reads]

    def layers() -> Weights:
        for file in model.reads:
            file.restart()
        w = _opened(model, "sampled")
        w.made.update({anchors.BY_STRING: anchors.at_strings(w), anchors.BY_ID: anchors.at_ids(w)})
        _pass(w, 2, Meter(None, 0))
        return w

    with one_blas_thread():
        w = settled(model.reads, layers, progress)
    for file, spans in zip(model.reads, read, strict=True):
        file.check()
        for start, stop in spans:
            file.seen.add(start, stop)
    noted = {name: reason for name, reason in first.absences.items() if name not in UNREAD_LAYERS}
    made = {panel.name: panel.extract(w) for panel in PANELS if panel.name in OF_LAYERS and panel.extract is not None}
    kept = kept_as(made)
    return replace(
        first,
        absences={**w.absences, **noted},
        bytes_read=sum(file.seen.total for file in model.reads),
        more={**first.more, **kept.pop("more")},
        **kept,
    )


def with_every_layer(model: Model, made: Fingerprint) -> Fingerprint | None:
    """The same fingerprint with all neurons of every layer, for comparing it, not for keeping it; None where it has
    them, or where it was not made of every byte. Without token embeddings neurons have their invariants only.

    model: what it was made of. The MLPs are read once more.
    """
    kept = made.value("whole_layers")
    if made.mode != "exact" or (kept is not None and len(kept.keys) >= made.facts.layers):
        return None
    w = _opened(model, "exact")
    w.made.update({anchors.BY_STRING: anchors.at_strings(w), anchors.BY_ID: anchors.at_ids(w)})
    with one_blas_thread(), ThreadPoolExecutor(workers()) as pool:
        whole = every_layer(w, _virtual(w), pool)
    if whole is None:
        return None
    absences = {name: reason for name, reason in made.absences.items() if name != "whole_layers"}
    return replace(made, absences=absences, more={**made.more, "whole_layers": whole})


def _fingerprint_model(
    model: Model, mode: str, stage: int, progress: Progress | None, digests: dict[str, str] | None
) -> Fingerprint:
    for file in model.reads:
        file.restart()
    norms = mode == "norms"
    unread = TokenizerAbsence(Reason(Code.TOKENIZER_UNREAD))
    read = unread if norms else model.tokenizer
    w = _opened(model, mode, read)
    if (inferred := w.layout.structure) is not None:
        w.absences[ROLES] = Reason.of(Code.ROLES_INFERRED, hidden=inferred.hidden, width=inferred.width)
    elif not norms and (share := _unnamed(w)):
        w.absences[UNNAMED] = Reason.of(Code.UNNAMED_LARGE, percent=round(100 * share, 1))
    total = sum(t.nbytes for t in model.tensors.values())
    if norms:
        w.absences.update(dict.fromkeys(BEYOND_NORMS, Reason(Code.NEEDS_WEIGHTS)))
    else:
        w.made.update({anchors.BY_STRING: anchors.at_strings(w), anchors.BY_ID: anchors.at_ids(w)})
        _pass(w, stage, Meter(progress, total))
    if digests is not None:
        digests.update((name, found.digest) for name, found in w.scans.items() if found.stored)
    values = {p.name: p.extract(w) for p in PANELS if p.extract is not None and (p.first or not norms)}
    if isinstance(read, TokenizerAbsence):
        w.absences["TFV"] = w.absences["VOA"] = read.reason
    for file in model.reads:
        file.check()
    content, core = _content_digests(w) if w.exact else (None, None)
    made = Fingerprint(
        model_id=model.model_id,
        revision=model.revision,
        variant=model.variant,
        license=model.license,
        parents=model.base_models,
        facts=_facts(w, whole=not norms),
        mode=mode,
        content_sha256=content,
        core_sha256=core,
        absences=w.absences,
        warnings=_warnings(model, w, norms=norms),
        files=model.files,
        bytes_read=total if mode == "exact" else sum(file.seen.total for file in model.reads),
        bytes_total=total,
        **kept_as(values),
    )
    return _without_what_it_amends(made, w)


def _without_what_it_amends(made: Fingerprint, w: Weights) -> Fingerprint:
    """Of an adapter alone nothing is kept that needs the weights which it changes."""
    adapter = adapters.alone(w.layout, {name: t.shape for name, t in w.tensors.items()})
    if adapter is None:
        return made
    facts, absences = replace(made.facts, hidden=adapter.hidden), {**made.absences, **adapter.absences}
    return replace(made, lep={}, wvc=None, facts=facts, absences=absences)


def _opened(model: Model, mode: str, read: Tokenizer | TokenizerAbsence | None = None) -> Weights:
    """A model as the extractors see it. read: its tokenizer, or why there is none; None: not read yet."""
    layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
    layout = layout if mode == "norms" else with_honest_buffers(layout, model.tensors)
    tokenizer = model.tokenizer if read is None else read
    return Weights(
        tensors=model.tensors,
        layout=layout,
        places=_weights(model, layout),
        scans={},
        absences={},
        exact=mode == "exact",
        config=model.config,
        tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else None,
    )


def _unnamed(w: Weights) -> float:
    """Share of the elements without a role, under names that no scheme knows or that say only what stands beside a text
    tower, if a model could be in them: more than a tenth, or than two layers, or more than MODEL under unknown names.
    So are rows of the embedding and the head that no token has, and tables of positions: nothing compares them.
    Computed tables and small tensors do not count.
    """
    sizes = {name: tensor.size for name, tensor in w.tensors.items() if tensor.size > SMALL}
    free = [p for p in w.places if p.reason in FREE and p.name in sizes]
    inner = [p for p in w.places if p.stack == w.layout.main and p.layer is not None and p.parts]
    depth = len({p.layer for p in inner})
    total = sum(sizes.values())
    layers = 2 * sum(w.tensors[p.name].size for p in inner) / depth if depth else total
    limit = min(UNNAMED_SHARE * total, layers)
    spare = {p.name: _spare(w, p) for p in w.places if p.name in sizes}
    if sum(sizes[p.name] for p in free) + sum(spare.values()) <= min(limit, MODEL):
        return 0.0
    counted = {p.name: sizes[p.name] for p in free} | {name: size for name, size in spare.items() if size}
    hidden = {name: size * (1 - computed_share(w.tensors[name])) for name, size in counted.items()}
    unknown, all_of_it = sum(hidden[p.name] for p in free if p.reason == UNKNOWN), sum(hidden.values())
    return all_of_it / total if all_of_it > limit or unknown > MODEL else 0.0


def _spare(w: Weights, place: Placement) -> int:
    """Elements of a table that stand for no token: rows beyond the last one of the tokenizer, and all positions."""
    roles = {part.role for part in place.parts}
    shape = w.tensors[place.name].shape
    if "pos" in roles:
        return w.tensors[place.name].size
    if w.tokenizer is None or not roles & {"embed", "head"} or len(shape) != 2:
        return 0
    tokens = max(w.tokenizer.vocab.values(), default=-1) + 1
    width = next((size for size in shape if w.arch is not None and size == w.arch.hidden), shape[-1])
    return max(w.tensors[place.name].size - tokens * width, 0)


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


def _pass(w: Weights, stage: int, meter: Meter) -> None:
    """Read the whole tensors: in exact mode the scans of all, and the branches; in stage 1 of sampled mode nothing.

    A layer is scanned just before its branches are read, so that a file larger than memory is read once.
    """
    if not w.exact and stage == 1:
        w.absences.update(dict.fromkeys(UNREAD_LAYERS, Reason.of(Code.NEEDS_STAGE_2)))
        return
    waiting: dict[tuple[str, int | None], list[Placement]] = {}
    for place in w.places if w.exact else ():
        waiting.setdefault((place.stack, place.layer), []).append(place)
    embeddings = {p.name for p in w.places if any(part.role == "embed" for part in p.parts)}
    _ = w.experts, w.gains  # made once, before several threads ask

    def scan_one(place: Placement) -> None:
        tensor = w.tensors[place.name]
        rows = place.name in embeddings and _has_row_norms(tensor.shape)
        sampled = wvc.takes(w, place)
        if rows or all(map(canonical.is_whole, place.parts)) or not _covered(tensor.shape, place):
            w.scans[place.name] = scan(tensor, row=tensor.shape[1] if rows else None, sampled=sampled)
        else:
            w.scans[place.name] = scan_parts(tensor, place.parts, sampled=sampled)
        meter.add(tensor.nbytes)

    def scan_layer(key: tuple[str, int | None]) -> None:
        for place in waiting.pop(key, ()):
            scan_one(place)

    with ThreadPoolExecutor(workers()) as pool:  # numpy and hashlib release the interpreter lock
        outside = [p for key in list(waiting) if key[1] is None for p in waiting.pop(key)]
        # The largest first, so that no thread is left alone with it at the end.
        running = pool.map(scan_one, sorted(outside, key=lambda p: w.tensors[p.name].nbytes, reverse=True))
        _branches(w, pool, scan_layer)
        list(pool.map(scan_layer, list(waiting)))
        list(running)
    found = {place.name: w.scans[place.name] for place in w.places if w.exact}
    w.scans.clear()
    w.scans.update(found)  # in the order of the places, whichever thread was first


def _has_row_norms(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] <= MAX_EMBEDDING_ROWS and shape[1] <= CHUNK


def _branches(w: Weights, pool: ThreadPoolExecutor, before: Callable[[tuple[str, int]], None]) -> None:
    """Make the sketches and neuron panels, by string and by id."""
    made: Branched = branches(w, _virtual(w), pool, before)
    missing = Reason.of(Code.NO_BRANCHES)
    if made.by_string is None and made.by_id is None:
        noted = (w.absences[n] for n in (anchors.BY_STRING, anchors.BY_ID) if n in w.absences)
        w.absences["branches"] = next(noted, missing)
    if made.neurons is None:
        w.absences["neurons"] = w.absences.get("branches", missing)
    if made.whole is None:
        w.absences["whole_layers"] = missing
    w.made.update(sketches=made.by_string, sketches_by_id=made.by_id, neurons=made.neurons, whole_layers=made.whole)


def _virtual(w: Weights) -> Anchors:
    """The virtual anchors of a model whose anchor rows were read."""
    centered = w.arch is not None and w.arch.norm == "layer"
    rows: list[anchors.AnchorRows | None] = [w.made[anchors.BY_STRING], w.made[anchors.BY_ID]]
    virtual = [None if r is None else sketch.virtual_anchors(r.rows, r.ids, r.labels, centered=centered) for r in rows]
    return Anchors(*virtual)


def _content_digests(w: Weights) -> tuple[str, str]:
    """sha256 over (address, shape, digest) of every weight, in canonical order and orientation: fused or split, the
    same weights have one. What repeats another tensor counts once, and so does a head that repeats the embedding.
    Computed tables under unknown names do not count, nor do biases of zeros. Then the same without heads and poolers.
    """
    scans = w.scans
    embeddings = {scans[p.name].digest for p in w.places if any(part.role == "embed" for part in p.parts)}
    owners = {p.canonical: scans[p.name].digest for p in w.places if not p.copy_of}
    lines: list[str] = []
    core: list[str] = []
    for place in w.places:
        found = scans[place.name]
        head = any(part.role == "head" for part in place.parts)
        constant = place.reason == UNKNOWN and computed_share(w.tensors[place.name]) >= COMPUTED
        no_bias = found.sum_of_squares == 0 and not found.nonfinite and place.canonical.endswith(".bias")
        copied = place.copy_of and owners.get(place.copy_of) == found.digest
        if constant or no_bias or copied or (head and found.digest in embeddings):
            continue
        made = _lines(w, place)
        lines += made
        core += [] if head or place.reason in HEAD_REASONS else made
    both = ("".join(sorted(some)).encode() for some in (lines, core))
    content, without_heads = (hashlib.sha256(text).hexdigest() for text in both)
    return content, without_heads


def _lines(w: Weights, place: Placement) -> list[str]:
    """Address, shape and digest of each canonical tensor in a stored one; of the whole where it has no role."""
    found, shape = w.scans[place.name], w.tensors[place.name].shape
    if not place.parts or (not found.parts and not canonical.is_whole(place.parts[0])):
        return [f"name {place.canonical} {'x'.join(map(str, shape))} {found.digest}\n"]
    return [
        f"{canonical.key_of(part)} {'x'.join(map(str, canonical.part_shape(shape, part)))} {digest}\n"
        for part, digest in zip(place.parts, found.parts or (found.digest,), strict=True)
    ]


def _covered(shape: tuple[int, ...], place: Placement) -> bool:
    """Whether the parts of a tensor are all of it."""
    return sum(math.prod(canonical.part_shape(shape, part)) for part in place.parts) == math.prod(shape)


# --- facts and warnings ---


def _facts(w: Weights, *, whole: bool) -> Facts:
    """Facts of the weights. whole: else no matrix is looked at, and a head is the embedding if the config says so."""
    sizes: dict[str, int] = {}
    parameters = 0
    seen: set[str] = set()
    for place in w.places:
        size = w.tensors[place.name].size
        scan = w.scans.get(place.name)
        if any(p.role in ("embed", "head") and p.param == "weight" for p in place.parts):
            content = scan.digest if scan else _blocks_digest(w, place) if whole else _stated_digest(w, place)
            if content in seen:
                continue
            seen.add(content)
        parameters += size
        if scan:
            sizes[scan.precision] = sizes.get(scan.precision, 0) + size
    embed = w.parts("embed")
    layers = {p.layer for p in w.places if p.stack == w.layout.main and p.layer is not None}
    inferred = w.layout.structure
    return Facts(
        architecture=w.layout.model_type,
        main=w.layout.main,
        parameters=parameters,
        hidden=w.arch.hidden if w.arch else (inferred.hidden if inferred else 0),
        layers=max(len(layers), inferred.layers if inferred else 0),
        vocabulary=w.tensors[embed[0][0].name].shape[0] if embed else 0,
        precision=max(sizes, key=lambda p: sizes[p]) if sizes else "",
        nonfinite=sum(s.nonfinite for s in w.scans.values()),
    )


def _blocks_digest(w: Weights, place: Placement) -> str:
    """What tells a head that is the embedding from one that is not, of the little that sampled mode reads of them."""
    digest = hashlib.sha256(str(w.tensors[place.name].shape).encode())
    for part in place.parts:
        for block in two_blocks(w, place, part):
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _stated_digest(w: Weights, place: Placement) -> str:
    return "tied" if w.config.get("tie_word_embeddings") is True else place.name


def _warnings(model: Model, w: Weights, *, norms: bool) -> tuple[Reason, ...]:
    """What a reader of the fingerprint should know."""
    out = [*model.warnings, *w.layout.notes, *([model.config_reason] if model.config_reason else [])]
    out += completeness.left_out(w, norms=norms)
    unknown = w.layout.unknown
    if unknown:
        names = ", ".join(unknown[:SHOWN]) + (" ..." if len(unknown) > SHOWN else "")
        out.append(Reason.of(Code.NAMES_UNKNOWN, n=len(unknown), total=len(w.layout.placements), names=names))
    bad = {name: found.nonfinite for name, found in w.scans.items() if found.nonfinite}
    if bad:
        first = next(iter(bad))
        out.append(Reason.of(Code.NOT_FINITE_VALUES, n=sum(bad.values()), tensors=len(bad), first=first))
    zero = [name for name, found in w.scans.items() if _is_zero(model.tensors[name].shape, found)]
    if zero:
        out.append(Reason.of(Code.ZERO_MATRICES, n=len(zero), first=zero[0]))
    return tuple(out)


def _is_zero(shape: tuple[int, ...], found: Scan) -> bool:
    """Whether a matrix holds nothing but zeros: new layers may begin so, and damaged files have such."""
    return len(shape) > 1 and min(shape) > 1 and not found.sum_of_squares and not found.nonfinite
