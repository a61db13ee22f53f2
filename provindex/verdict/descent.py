"""Descent beyond a link: is it more than a random start, which side is older, and is it a merge of several?

What the pure functions of evidence/ (start, direction, merge) need, taken from fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence

from provindex.common.reasons import Code, Reason
from provindex.evidence import merge
from provindex.evidence.direction import Direction, Item, Structure, direction, later_items, made_of_grid, structure
from provindex.evidence.effects import ON_GRID
from provindex.evidence.merge import Merge
from provindex.evidence.panels import BlockDigests
from provindex.evidence.start import NOT_SHARED, Start, shared_start
from provindex.fingerprint.record import Fingerprint
from provindex.signals.wvc import Samples
from provindex.verdict.relation import LOG10_P_LINKED, Linked

Sampled = tuple[BlockDigests | None, Samples | None]

TRAINED_ON = frozenset({"finetune", "continued", "adapter", "related"})  # relations that training made


def start_of(linked: Linked) -> Start:
    """Whether a linked pair shares its random start only (relation `shared-init`, verdict unrelated)."""
    evidence = linked.evidence
    if (evidence["bit_reuse"].log10_p or 0.0) <= LOG10_P_LINKED:
        return Start(NOT_SHARED, (Reason.of(Code.BLOCKS_REUSED),))
    e3, e4 = evidence["triple_agreement"], evidence["branch_sketch"]
    sketch = None if e4.value is None else (e4.value, e4.null.p999 if e4.null is not None else None)
    return shared_start(
        linked.a.token_rows,
        linked.b.token_rows,
        hidden_cosine=linked.sizes.cosine,
        sketch=sketch,
        agreement=e3.value,
        gains=linked.gains if linked.in_place else None,
    )


def role_of(linked: Linked, relation: str, start: Start, more: Sequence[Item] = ()) -> Direction:
    """The role of A in a linked pair. more: items from elsewhere, such as direction.witness.

    Embedding rows and the path are asked where all layers stand where they stood, and only of pairs that are known to
    have more than a random start in common; not where one of them was quantized: rounding moved more than training.
    """
    a, b = linked.a, linked.b
    rounded = "" if linked.dequantized else linked.sizes.around
    sides = [_structure(fp, rounded == side, n) for fp, side, n in zip((a, b), "AB", linked.widths, strict=True)]
    shape = structure(sides[0], sides[1], relation)
    items = [shape] if shape else []
    if relation in TRAINED_ON and (child := linked.made_of_grid):
        items.append(made_of_grid(child))
    quantized = max(linked.sizes.grid_a, linked.sizes.grid_b) >= ON_GRID
    if relation in TRAINED_ON and start.answer == NOT_SHARED and linked.in_place and not quantized:
        kept = [merge.samples(fp.blocks, fp.wvc) for fp in (a, b)]
        items += later_items(a.token_rows, b.token_rows, *kept)
    return direction([*items, *more])


def _structure(fp: Fingerprint, quantized: bool, neurons: int) -> Structure:
    ids = None if fp.residual is None else fp.residual.ids
    return Structure(fp.facts.layers, fp.facts.vocabulary, fp.facts.precision, quantized, ids, neurons)


def sampled(fp: Fingerprint) -> Sampled:
    """What `parents_of` needs of a model: a small part of its fingerprint."""
    return fp.blocks, fp.wvc


def parents_of(query: Sampled, relatives: Sequence[Sampled]) -> Merge | None:
    """The merge that a query is, of its linked relatives (closest first, at most ten are looked at); or None.

    `candidate` and `base` of the answer are places in `relatives`.
    """
    if len(relatives) < 2:
        return None
    kept = [merge.samples(*relative) for relative in relatives[: merge.MAX_CANDIDATES]]
    return merge.merge_of(merge.samples(*query), kept)
