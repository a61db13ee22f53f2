"""Two fingerprints in, a verdict out: the eight signals, the evidence, relation, direction and layer map.

The weights decide. `linked` needs an exact p-value of at most 1e-6, after Bonferroni over the tests and layer maps
tried, and an E-value of at most 1e-3 (the exact tier); or, where order and basis were destroyed, neurons that are found
again in anchor coordinates and layers that do the same, both above all but 1 in 1,000 unrelated pairs (the aligned
tier). Without it the pair is `unrelated` if a test with power ran, else `inconclusive`; the reasons say what would have
been seen, or what could not be computed. Two models that share only their random start are `unrelated` (shared-init).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from provindex.common.score import Outcome, Score, absent
from provindex.evidence import aligned, bit_reuse, exact, hidden_units, layers, residual_basis
from provindex.evidence.effects import effects
from provindex.evidence.grids import Residual
from provindex.evidence.layers import LayerRange
from provindex.evidence.sketch import LAYER, late_interaction, similarities
from provindex.evidence.start import SHARED
from provindex.fingerprint.record import Fingerprint
from provindex.signals import eas, end, imported, lep, mfi, nlf, pipeline, tfv, voa, wvc
from provindex.verdict import adapters
from provindex.verdict.calibration import NO_CALIBRATION, Calibration, stratum_of_pair
from provindex.verdict.descent import role_of, start_of
from provindex.verdict.relation import LOG10_P_LINKED, Linked

LOG10_E_LINKED = -3.0
LOG10_CONFORMAL = -3.0  # rank among unrelated pairs that E3 and E4 both need
FOUND_AGAIN = 0.5  # branch sketch of a pair that is no stranger, whatever its neurons say
LEAST_AGREEMENT = 0.1  # share of neurons found again that the aligned tier needs
LOG10_SHA256 = -77.0  # two different models with one hash of their weights: 2^-256
TEXT_STACKS = frozenset({"decoder", "encoder"})  # with the main stack of either model, the ones that decide
TOWERS = frozenset({"vision", "audio"})
SIGNALS = ("MFI", "TFV", "VOA", "EAS", "NLF", "LEP", "END", "WVC")
EXACT = ("bit_reuse", "hidden_fixed_points", "hidden_alignment", "residual_fixed_points")
POWERFUL = {"hidden_alignment": "hidden units", "residual_fixed_points": "residual coordinates"}
REORDERED = "a copy whose neurons, heads and residual coordinates were all reordered or rotated"
NO_BASIS = "a common ancestor whose layers are not shared could not be looked for"


@dataclass(frozen=True)
class Pair:
    """The verdict on two models, and everything that it rests on.

    direction: the role of A ("ancestor": A is the ancestor); None when unrelated. log10_p: at most 0, after
    Bonferroni, of the tier that decided; None when no exact test could run. closeness: median cosine of matched weight
    samples, 0 if no layer matches. undone: what a disguise changed and the tests saw through. direction_reasons: what
    tells which of the two is older. reasons: why the verdict is not `linked`, or what to keep in mind. half_step:
    where one's values lie around the other's quantization grids; around: whose grids ("A" or "B") these are.
    """

    verdict: str
    relation: str | None
    direction: str | None
    confidence: float | None
    log10_p: float | None
    log10_e: float | None
    signals: Mapping[str, Score]
    evidence: Mapping[str, Outcome]
    pipeline: pipeline.PipelineScore
    mfi_tier: int | None
    layer_map: tuple[LayerRange, ...] = ()
    closeness: float = 0.0
    undone: tuple[str, ...] = ()
    direction_reasons: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    half_step: Residual | None = None
    around: str = ""

    @property
    def e_value(self) -> float | None:
        """Expected number of unrelated models that would score as well; 0.0 below 1e-308."""
        if self.log10_e is None:
            return None
        return 10.0**self.log10_e if self.log10_e > -308 else 0.0


def compare(
    a: Fingerprint,
    b: Fingerprint,
    *,
    models: int = 1,
    calibration: Calibration | None = None,
    vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
    common_blocks: frozenset[int] = frozenset(),
    deep: Outcome | None = None,
) -> Pair:
    """The verdict on a pair.

    models: how many models B was picked from, for the E-value. calibration: chance levels; without one the aligned tier
    cannot decide. vocabularies: both vocabularies when they are at hand, so that VOA is exact; else it is estimated
    from the sketches. common_blocks: digests that unrelated families share. deep: E5, if the weights were read for it.
    """
    stacks = TEXT_STACKS | {a.facts.main, b.facts.main}
    stratum = stratum_of_pair(a, b)
    found = _evidence(a, b, stacks, common_blocks)
    evidence = found.evidence | _aligned(a, b, calibration, stratum)
    if deep is not None:
        evidence["deep_agreement"] = deep
    log10_p = combined([evidence[name] for name in EXACT])
    if log10_p is None or not _significant(log10_p, models):
        log10_p = _aligned_p(evidence, log10_p)
    signals, tier = compare_signals(a, b, vocabularies)
    whole = Pair(
        "unrelated", None, None, None, log10_p, None if log10_p is None else log10_p + math.log10(max(models, 1)),
        signals=signals if calibration is None else calibration.with_chance(signals, stratum),
        evidence=evidence, pipeline=pipeline.score(signals, tier), mfi_tier=tier,
    )  # fmt: skip
    towers = _shared_towers(a, b, stacks)
    if log10_p is None or not _significant(log10_p, models):
        verdict, reasons = _not_linked(evidence)
        if adapter := adapters.reasons(a, b):
            verdict, reasons = "inconclusive", adapter
        return replace(whole, verdict=verdict, reasons=reasons + towers)
    linked = _linked(a, b, found, evidence, stacks)
    start = start_of(linked)
    if start.answer == SHARED:
        return replace(whole, relation="shared-init", reasons=start.reasons + towers)
    relation = linked.relation
    told = role_of(linked, relation, start)
    return replace(
        whole,
        verdict="linked",
        relation=relation,
        direction=told.role,
        direction_reasons=tuple(item.text for item in told.items),
        confidence=1.0 - min(1.0, 10.0 ** (whole.log10_e or 0.0)),
        layer_map=layers.ranges(linked.matches),
        closeness=linked.sizes.cosine,
        undone=linked.undone,
        reasons=linked.caveats(relation) + towers,
        half_step=linked.sizes.half_step,
        around=linked.sizes.around,
    )


def _significant(log10_p: float, models: int) -> bool:
    return log10_p <= LOG10_P_LINKED and log10_p + math.log10(max(models, 1)) <= LOG10_E_LINKED


def _aligned_p(evidence: Mapping[str, Outcome], exact_p: float | None) -> float | None:
    """log10 p of the aligned tier, paying for the exact one before it; what the exact tier says if it cannot decide.

    E3's own p-value is from theory; that its share, and E4's score, are above all but 1 in 1,000 unrelated pairs is
    asked for besides. E5's p-value stands alone: it is of layers that the fit has not seen.
    """
    e3, e4, e5 = (evidence.get(n, Outcome()) for n in ("triple_agreement", "branch_sketch", "deep_agreement"))
    ranks = [o.conformal if o.conformal is not None else 0.0 for o in (e3, e4)]
    told = [e5] if (e5.value or 0.0) >= LEAST_AGREEMENT else []
    if (e3.value or 0.0) >= LEAST_AGREEMENT and max(ranks) <= LOG10_CONFORMAL:
        told.append(e3)
    return min((min(0.0, (o.log10_p or 0.0) + math.log10(3)) for o in told), default=exact_p)


def _whole(reuse: Outcome) -> Outcome:
    """E0 for models whose canonical weights have one hash: all is reused, whether or not blocks could be told."""
    n = reuse.n or 1
    return Outcome(1.0, n, min(reuse.log10_p or 0.0, LOG10_SHA256), 0.0)


def _shared_towers(a: Fingerprint, b: Fingerprint, stacks: frozenset[str]) -> tuple[str, ...]:
    """Vision and audio towers that both models have from one place: a fact, but no link between the models."""
    if a.blocks is None or b.blocks is None:
        return ()
    others = sorted({key.split(".", 1)[0] for key in a.blocks.keys} & TOWERS - stacks)
    found = [(stack, bit_reuse.bit_reuse(a.blocks, b.blocks, frozenset({stack}))[0]) for stack in others]
    return tuple(
        f"the {stack} tower is shared ({o.value:.0%} of its {o.n} blocks are equal); by itself that links no text tower"
        for stack, o in found
        if o.log10_p is not None and o.value is not None and o.log10_p <= LOG10_P_LINKED
    )


def combined(outcomes: Sequence[Outcome]) -> float | None:
    """log10 of the smallest p-value, times the number of tests that ran (Bonferroni); None if none ran."""
    ran = [o.log10_p for o in outcomes if o.log10_p is not None]
    return min(0.0, min(ran) + math.log10(len(ran))) if ran else None


@dataclass(frozen=True)
class _Exact:
    """The exact tests, with what the layer map needs of them."""

    evidence: dict[str, Outcome]
    hidden: hidden_units.HiddenResult


def _evidence(a: Fingerprint, b: Fingerprint, stacks: frozenset[str], common: frozenset[int]) -> _Exact:
    """E0 to E2g; where a fingerprint says why it lacks something, that reason is given."""
    hidden = hidden_units.hidden_tests(a.hidden, b.hidden, stacks)
    reuse, _ = bit_reuse.bit_reuse(a.blocks, b.blocks, stacks, common)
    residual = residual_basis.better(
        residual_basis.residual_test(a.residual, b.residual),
        residual_basis.residual_test(a.residual_by_id, b.residual_by_id),
    )
    if a.content_sha256 is not None and a.content_sha256 == b.content_sha256:
        reuse = _whole(reuse)
    fixed = _explained(hidden.fixed, a, b, "hidden")
    evidence = {
        "bit_reuse": _explained(reuse, a, b, "blocks"),
        "hidden_fixed_points": fixed,
        "hidden_alignment": hidden.aligned if hidden.aligned.reason is None else fixed,
        "residual_fixed_points": _explained(residual, a, b, "residual"),
        "residual_gram": _explained(residual_basis.residual_gram(a.residual, b.residual), a, b, "residual"),
    }
    return _Exact(evidence, hidden)


def _explained(outcome: Outcome, a: Fingerprint, b: Fingerprint, name: str) -> Outcome:
    why = [f"{fp.model_id}: {fp.absences[name]}" for fp in (a, b) if name in fp.absences]
    return Outcome(reason="; ".join(dict.fromkeys(why))) if outcome.reason and why else outcome


def _aligned(a: Fingerprint, b: Fingerprint, calibration: Calibration | None, stratum: str) -> dict[str, Outcome]:
    """E3 and E4, ranked among unrelated pairs."""
    sketches = _namings(a, b)
    maps = aligned.layer_maps(a.neurons, b.neurons, sketches)
    agreement = _explained(aligned.triple_agreement(a.neurons, b.neurons, maps).outcome, a, b, "neurons")
    both = [(x, y) for x, y in sketches.values() if x is not None and y is not None]
    scores = [(late_interaction(similarities(x, y)), x, y) for x, y in both]
    if not scores:
        branch = _explained(absent("no anchors under which both models have branch sketches"), a, b, "branches")
    else:
        score, x, y = max(scores, key=lambda s: s[0])
        branch = Outcome(score, min(len(x.keys), len(y.keys)))
    return {
        "triple_agreement": _ranked("triple_agreement", agreement, calibration, stratum),
        "branch_sketch": _ranked("branch_sketch", branch, calibration, stratum),
    }


def _namings(a: Fingerprint, b: Fingerprint) -> dict[str, aligned.Naming]:
    return {"by_string": (a.sketches, b.sketches), "by_id": (a.sketches_by_id, b.sketches_by_id)}


def _ranked(name: str, outcome: Outcome, calibration: Calibration | None, stratum: str) -> Outcome:
    """An outcome with its rank among unrelated pairs, which is its p-value where it has no other."""
    if outcome.value is None or calibration is None:
        return outcome
    rank, _ = calibration.conformal(name, outcome.value, stratum)
    if (
        name == "branch_sketch"
    ):  # of few layers it is noisier than the calibration's: the projection's own noise bounds it
        rank = max(rank, exact.log10_normal_tail(outcome.value * math.sqrt(LAYER * (outcome.n or 1))))
    null = calibration.chance(name, stratum)
    return replace(
        outcome,
        log10_p=rank if outcome.log10_p is None else outcome.log10_p,
        conformal=rank,
        null=null,
        chance=null.median if outcome.chance is None else outcome.chance,
    )


def _linked(
    a: Fingerprint, b: Fingerprint, found: _Exact, evidence: Mapping[str, Outcome], stacks: frozenset[str]
) -> Linked:
    comparable = a.hidden is not None and b.hidden is not None and a.hidden.width == b.hidden.width
    by_units = hidden_units.layer_matches(a.hidden, b.hidden, stacks) if comparable else []  # type: ignore[arg-type]
    by_neurons = layers.neuron_matches(a.neurons, b.neurons, _namings(a, b))
    matches = layers.together(by_units, by_neurons, a.facts.layers * b.facts.layers)
    mapped = [(p.stack, p.a, p.b) for p in ([p for p, _ in matches] or found.hidden.pairs)]
    return Linked(a, b, effects(a.blocks, b.blocks, mapped), matches, by_neurons, evidence)


def _not_linked(evidence: Mapping[str, Outcome]) -> tuple[str, tuple[str, ...]]:
    """`unrelated` if a test that sees a changed copy ran and could have seen one, with what it would have seen.

    Block reuse alone does not do: it sees untouched blocks only.
    """
    could = {name: evidence[name].smallest for name in POWERFUL if evidence[name].smallest is not None}
    ranked = all(evidence[name].conformal is not None for name in ("triple_agreement", "branch_sketch"))
    seen = [f"{POWERFUL[name]} with a cosine of {least:.2g} ({name})" for name, least in could.items()]
    if ranked:
        seen.append(f"{LEAST_AGREEMENT:.0%} of the neurons found again in any order and basis (triple_agreement)")
    e3, e4 = evidence["triple_agreement"], evidence["branch_sketch"]
    confirmed = (e3.value or 0.0) >= LEAST_AGREEMENT
    if not confirmed and (e4.value or 0.0) >= FOUND_AGAIN and (e4.conformal or 0.0) <= LOG10_CONFORMAL:
        neurons = f"absent: {e3.reason}" if e3.value is None else f"{e3.value:.2f}"
        return "inconclusive", (
            f"the layers do the same (branch_sketch {e4.value:.2f}), but neurons do not confirm it (triple_agreement "
            f"{neurons}): experts made of one MLP, or neurons whose parts are tied",
        )
    if seen:
        missing = evidence["residual_fixed_points"].reason
        partly = (*_half_seen(evidence), *((f"{NO_BASIS}: {missing}",) if missing else ()))
        unseen = () if ranked else (f"not seen: {REORDERED}; {_why_unranked(evidence)}",)
        return "unrelated", (f"would have been linked: {'; '.join(seen)}", *unseen, *partly)
    weak = "too few hidden units or coordinates in common for a test with power"
    reasons = dict.fromkeys(evidence[name].reason or weak for name in ("hidden_fixed_points", *POWERFUL))
    unranked = _why_unranked(evidence)
    return "inconclusive", (*reasons, *(() if unranked in reasons else (f"triple_agreement: {unranked}",)))


def _half_seen(evidence: Mapping[str, Outcome]) -> tuple[str, ...]:
    """What to keep in mind if E3 sees a link and E4 does not."""
    e3 = evidence["triple_agreement"]
    if (e3.value or 0.0) < LEAST_AGREEMENT or (e3.conformal or 0.0) > LOG10_CONFORMAL:
        return ()
    return (
        f"{e3.value:.0%} of the neurons are found again, more than in unrelated models, but the branch sketches do not "
        "confirm it (branch_sketch)",
    )


def _why_unranked(evidence: Mapping[str, Outcome]) -> str:
    found = [evidence[name].reason for name in ("triple_agreement", "branch_sketch")]
    return next((reason for reason in found if reason), NO_CALIBRATION)


def compare_signals(
    a: Fingerprint, b: Fingerprint, vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None = None
) -> tuple[dict[str, Score], int | None]:
    """The eight signals of a pair, in the order of SIGNALS, and the MFI tier."""
    match = mfi.compare(a.mfi, b.mfi)
    scores = {
        "MFI": match.score,
        "TFV": tfv.compare(a.tfv, b.tfv) if a.tfv and b.tfv else _absent(a, b, "TFV"),
        "VOA": _voa(a, b, vocabularies),
        "EAS": eas.compare(a.eas, b.eas) if a.eas is not None and b.eas is not None else _absent(a, b, "EAS"),
        "NLF": nlf.compare(a.nlf, b.nlf) if a.nlf and b.nlf else _absent(a, b, "NLF"),
        "LEP": _lep(a, b),
        "END": end.compare(a.end, b.end) if a.end is not None and b.end is not None else _absent(a, b, "END"),
        "WVC": wvc.compare(a.wvc, b.wvc) if a.wvc and b.wvc else _absent(a, b, "WVC"),
    }
    return scores, match.tier


def _absent(a: Fingerprint, b: Fingerprint, signal: str) -> Score:
    why = [f"{fp.model_id}: {fp.absences[signal]}" for fp in (a, b) if signal in fp.absences]
    return Score.absent("; ".join(dict.fromkeys(why)) or "one of the fingerprints lacks it")


def _voa(a: Fingerprint, b: Fingerprint, vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None) -> Score:
    if vocabularies:
        return voa.compare_vocabularies(vocabularies[0].keys(), vocabularies[1].keys())
    if a.vocabulary_sketch is None or b.vocabulary_sketch is None:
        return _absent(a, b, "VOA")
    return voa.compare(a.vocabulary_sketch, a.vocabulary_size, b.vocabulary_sketch, b.vocabulary_size)


def _lep(a: Fingerprint, b: Fingerprint) -> Score:
    """LEP of the main stacks, or of two imported profiles that were taken in the same other way."""
    for one, other in ((a.facts.main, b.facts.main), *((way, way) for way in imported.APART)):
        left, right = a.lep.get(one), b.lep.get(other)
        if left is not None and right is not None:
            return lep.compare(left, right)
    return _absent(a, b, "LEP")
