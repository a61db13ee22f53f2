"""Which of several linked checkpoints was quantized? What each pair says by itself, compared with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from provindex.common.reasons import Code, Reason
from provindex.evidence.grids import MIN_VALUES
from provindex.evidence.nearest import distances, nearest, wins
from provindex.evidence.panels import BlockDigests
from provindex.verdict.pair import Pair
from provindex.verdict.relation import FINETUNE, STEPPED, half_steps

Relative = tuple[str, Pair, BlockDigests | None]  # what people call it, its pair with the query as A, its samples


@dataclass(frozen=True, eq=False)
class _Rival:
    """A relative that may have been quantized: its place, and how far each matrix is from the query's."""

    place: int
    label: str
    pair: Pair
    distances: Mapping[str, float]

    def nearer(self, code: Code, other: _Rival) -> Reason:
        """That this one is nearer to the query than another, in how many of their common matrices."""
        won, total = wins(self.distances, other.distances)
        return Reason.of(code, nearer=self.label, other=other.label, won=won, total=total)


def source_among(query: BlockDigests | None, relatives: Sequence[Relative]) -> list[Pair]:
    """The pairs of a quantized query with its relatives, in their order, after comparing them with each other.

    Several may look like the source by themselves: close siblings, on a coarse grid or after a quantizer that
    compensates errors. Those that another one is nearer than, in more matrices than chance would give, become
    fine-tunes. Where none looks like the source no relation changes, and the reasons say which is nearest.
    """
    pairs = [pair for _, pair, _ in relatives]
    rivals = _rivals(query, relatives) if query is not None else []
    alike = [r for r in rivals if r.pair.relation == "quantized"]
    compared = alike or rivals
    if len(rivals) < 2:
        return pairs
    best = [compared[i] for i in nearest([r.distances for r in compared])]
    for rival in compared:
        twins = [other for other in best if other is not rival]
        if rival not in best:
            pairs[rival.place] = _sibling(rival, best) if alike else rival.pair
        elif alike:
            pairs[rival.place] = _source(rival, [r for r in rivals if r not in best], twins)
        else:
            pairs[rival.place] = _nearest(rival, [r for r in rivals if r is not rival], twins)
    return pairs


def _rivals(query: BlockDigests, relatives: Sequence[Relative]) -> list[_Rival]:
    return [
        _Rival(place, label, pair, distances(query, blocks))
        for place, (label, pair, blocks) in enumerate(relatives)
        if blocks is not None and pair.around == "A" and pair.relation in STEPPED
        and pair.half_step is not None and pair.half_step.n >= MIN_VALUES
        and not (pair.relation == "quantized" and pair.half_step.inside)  # a half-precision copy, not what was rounded
    ]  # fmt: skip


def _source(rival: _Rival, siblings: Sequence[_Rival], twins: Sequence[_Rival]) -> Pair:
    reasons = list(rival.pair.reasons)
    if twins:
        reasons.append(Reason.of(Code.AS_NEAR, others=_labels(twins)))
    if siblings:
        shares = _shares(siblings)
        reasons = [_beside(reason, shares) if reason.code is Code.HALF_STEPS else reason for reason in reasons]
        reasons.append(rival.nearer(Code.NEARER, _closest(rival, siblings)))
    return replace(rival.pair, reasons=tuple(reasons))


def _beside(found: Reason, siblings: str) -> Reason:
    """What the half-step test found of the source, beside what it found of its siblings."""
    return Reason(Code.HALF_STEPS_SIBLINGS, figures=(*found.figures, ("siblings", siblings)))


def _labels(rivals: Sequence[_Rival]) -> str:
    return ", ".join(rival.label for rival in rivals)


def _sibling(rival: _Rival, best: Sequence[_Rival]) -> Pair:
    relation = "finetune" if rival.pair.closeness >= FINETUNE else "continued"
    steps = () if rival.pair.half_step is None else (half_steps(rival.pair.half_step),)
    why = best[0].nearer(Code.SIBLING_OF_SOURCE, rival)
    return replace(rival.pair, relation=relation, direction="unknown", direction_reasons=(), reasons=(*steps, why))


def _nearest(rival: _Rival, others: Sequence[_Rival], twins: Sequence[_Rival]) -> Pair:
    if twins:
        why = Reason.of(Code.AS_NEAR_TO_QUANTIZED, others=_labels(twins))
    else:
        why = rival.nearer(Code.NEARER_UNDECIDED, _closest(rival, others))
    return replace(rival.pair, reasons=(*rival.pair.reasons, why))


def _closest(rival: _Rival, others: Sequence[_Rival]) -> _Rival:
    """The one that is nearer than the rival in the most matrices."""
    return max(others, key=lambda other: wins(other.distances, rival.distances)[0])


def _shares(siblings: Sequence[_Rival]) -> str:
    """Least and largest percentage of the siblings, as "0.3 to 1.2"."""
    found = sorted(r.pair.half_step.share for r in siblings if r.pair.half_step is not None)
    ends = dict.fromkeys(f"{100 * share:.1f}" for share in (found[0], found[-1]))
    return " to ".join(ends)
