"""What a model's files hold and its fingerprint does not: copies of tensors, changes that are not merged, parts that
are not here. Nothing is cleared, and nothing called identical, that has one of these (`reasons.LEFT_OUT`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from provindex.common.reasons import Code, Reason
from provindex.evidence.bit_reuse import two_blocks
from provindex.roles.architectures import ADAPTERS, TEXT_CONFIGS
from provindex.roles.names import Part, Placement
from provindex.roles.weights import Weights

CHANGES = frozenset(ADAPTERS.values())
DEPTHS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers")


def left_out(w: Weights, *, norms: bool) -> Iterator[Reason]:
    """A reason for each kind of thing that is left out. norms: no matrix may be read."""
    yield from _copies(w, norms)
    changes = [p.name for p in w.places if p.reason in CHANGES]
    if changes and any(part.layer is not None and part.param == "weight" for p in w.places for part in p.parts):
        yield Reason.of(Code.ADAPTER_UNMERGED, n=len(changes), first=changes[0])
    empty = [name for name, tensor in w.tensors.items() if not tensor.size]
    if empty:
        yield Reason.of(Code.EMPTY_TENSORS, n=len(empty), total=len(w.tensors), first=empty[0])
    yield from _layers(w)


def _copies(w: Weights, norms: bool) -> Iterator[Reason]:
    """Tensors with the address of another one: those that hold the same are no loss."""
    owners = {p.canonical: p for p in w.places if not p.copy_of}
    copies = [p for p in w.places if p.copy_of]
    if not copies:
        return
    if norms:
        yield Reason.of(Code.COPIES_UNREAD, n=len(copies), first=copies[0].name)
        return
    other = [p.name for p in copies if not _same(w, p, owners.get(p.copy_of))]
    if other:
        yield Reason.of(Code.SECOND_COPY, n=len(other), first=other[0])


def _same(w: Weights, copy: Placement, owner: Placement | None) -> bool:
    """Whether two tensors hold the same, by their digests, or where these were not made by their first and middle
    rows."""
    if owner is None or w.tensors[copy.name].shape != w.tensors[owner.name].shape:
        return False
    ours, theirs = w.scans.get(copy.name), w.scans.get(owner.name)
    if ours is not None and theirs is not None:
        return ours.digest == theirs.digest
    whole = Part("copy")
    pairs = zip(two_blocks(w, copy, whole), two_blocks(w, owner, whole), strict=True)
    return all((a == b).all() for a, b in pairs)


def _layers(w: Weights) -> Iterator[Reason]:
    """Fewer layers than the config says: a part of a model was taken for the whole."""
    stored = {p.layer for p in w.places if p.stack == w.layout.main and p.layer is not None}
    configs = [c for c in (*map(w.config.get, TEXT_CONFIGS), w.config) if isinstance(c, Mapping)]
    told = next((c[key] for c in configs for key in DEPTHS if type(c.get(key)) is int), 0)
    shared = any(note.code is Code.LAYERS_SHARED for note in w.layout.notes)
    if stored and not shared and len(stored) < told:
        yield Reason.of(Code.LAYERS_MISSING, stored=len(stored), told=told)
