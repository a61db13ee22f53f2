"""Descent beyond a link: is it more than a random start, which side is older, and is it a merge of several?

What the pure functions of evidence/ (start, direction, merge) need, taken from fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from provindex.common.reasons import Code, Reason
from provindex.evidence import merge
from provindex.evidence.direction import Direction, Item, Structure, direction, later_items, made_of_grid, structure
from provindex.evidence.effects import ON_GRID
from provindex.evidence.kin import OLDER, Kin
from provindex.evidence.layers import LayerRange, ranges
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
    if shape and relation == "upscaled" and not _may_descend(linked, shape.log_odds > 0):
        items = [Item("siblings", 0.0, UNTOLD)]
    if relation in TRAINED_ON and (child := linked.made_of_grid):
        items.append(made_of_grid(child))
    quantized = max(linked.sizes.grid_a, linked.sizes.grid_b) >= ON_GRID
    if relation in TRAINED_ON and start.answer == NOT_SHARED and linked.in_place and not quantized:
        kept = [merge.samples(fp.blocks, fp.wvc) for fp in (a, b)]
        items += later_items(a.token_rows, b.token_rows, *kept)
    return direction([*items, *more])


def _may_descend(linked: Linked, a_descends: bool) -> bool:
    """Whether the model with repeated layers may have been made of the other one, and not of a sibling of it."""
    a, b = linked.a, linked.b
    other = Relative(None, None, (), ranges(linked.matches), sampled(b))
    kin = Kin.of([merge.samples(*sampled(a)), _renamed(other)])
    found = kin.backward(1, 0) if a_descends else kin.backward(0, 1)
    return found is None or found <= OLDER


def _structure(fp: Fingerprint, quantized: bool, neurons: int) -> Structure:
    ids = None if fp.residual is None else fp.residual.ids
    return Structure(fp.facts.layers, fp.facts.vocabulary, fp.facts.precision, quantized, ids, neurons)


KIN = TRAINED_ON | {"pruned", "upscaled", "vocabulary"}  # relations whose direction other relatives can tell
MAX_KIN = 12
UNTOLD = Reason.of(Code.SIBLINGS)


@dataclass(frozen=True)
class Relative:
    """One linked relative of a query: its relation, the role of the query so far and why, and its samples.

    layers: runs of layers of the query, and of the relative.
    """

    relation: str | None
    direction: str | None
    reasons: tuple[Reason, ...]
    layers: Sequence[LayerRange]
    samples: Sampled


def directions(query: Sampled, relatives: Sequence[Relative]) -> list[tuple[str | None, tuple[Reason, ...]]]:
    """The role of the query towards each relative, and why, after all the others have been asked.

    Where they can be, what structure says stands only if they agree.
    """
    asked = [i for i, r in enumerate(relatives) if r.relation in KIN][:MAX_KIN]
    found = [(r.direction, r.reasons) for r in relatives]
    if len(asked) < 2:
        return found
    own = merge.samples(*query)
    kin = Kin.of([own, *(_renamed(relatives[i]) for i in asked)])
    for place, i in enumerate(asked, 1):
        others = [w for w in range(1, len(asked) + 1) if w != place]
        if witnesses := kin.witnesses(place, 0, others):
            found[i] = _by_kin(kin, place, others, witnesses, found[i])
    return found


def _by_kin(
    kin: Kin, place: int, others: Sequence[int], witnesses: int, before: tuple[str | None, tuple[Reason, ...]]
) -> tuple[str | None, tuple[Reason, ...]]:
    up, down = kin.is_ancestor(place, 0, others), kin.is_ancestor(0, place, others)
    if up == down:
        return "unknown", (UNTOLD,)
    role, sides = ("descendant", ("B", "A")) if up else ("ancestor", ("A", "B"))
    if before[0] not in (role, "unknown", None):
        return "unknown", (UNTOLD,)
    why = Reason.of(Code.BRANCHED, n=witnesses, older=sides[0], younger=sides[1])
    return role, (*(before[1] if before[0] == role else ()), why)


def _renamed(relative: Relative) -> merge.Values:
    """A relative's samples under the query's layer numbers; where layers moved, without those spread over a matrix."""
    moved = [(r.stack, b, a) for r in relative.layers for a, b in zip(_run(r.a), _run(r.b), strict=True)]
    if all(a == b for _, b, a in moved):
        return merge.samples(*relative.samples)
    found = merge.samples(relative.samples[0], None)
    to: dict[tuple[str, str], list[int]] = {}
    for stack, theirs, ours in moved:
        to.setdefault((stack, str(theirs)), []).append(ours)
    out = {}
    for key, values in found.items():
        stack, layer, rest = key.split(".", 2)
        out.update({f"{stack}.{ours}.{rest}": values for ours in to.get((stack, layer), ())})
    return out


def _run(ends: tuple[int, int]) -> range:
    return range(ends[0], ends[1] + 1)


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
