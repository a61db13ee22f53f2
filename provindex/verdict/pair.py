"""Two fingerprints in, a verdict out: the eight signals, the evidence, relation, direction and layer map.

The weights decide. `linked` needs an exact p-value of at most 1e-6, after Bonferroni over the tests and layer maps
tried, and an E-value of at most 1e-3 (the exact tier); or, where order and basis were destroyed, neurons that are found
again in anchor coordinates and layers that do the same, or neurons with the same signs or invariants, above all but 1
in 1,000 unrelated pairs (the aligned tier). Without it the pair is `unrelated` if a test with power ran, else
`inconclusive`; the reasons say what would have been seen, or what could not be computed. Two models that share only
their random start are `unrelated` (shared-init).
A pair with roles that were inferred from shapes is `linked` or `inconclusive`, never `unrelated`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from provindex.common.reasons import BESIDE, INCOMPLETE, SPOILED, UNCOMPARED, Code, Reason, distinct, left_out
from provindex.common.score import Outcome, Score
from provindex.common.tables import Signal
from provindex.evidence import bit_reuse, exact, hidden_units, layers, sampled
from provindex.evidence.effects import effects
from provindex.evidence.grids import Residual
from provindex.evidence.layers import LayerRange
from provindex.evidence.norm_alignment import gains_of_pair
from provindex.evidence.pairing import Pairing
from provindex.evidence.sketch import LAYER
from provindex.evidence.start import CANNOT_TELL, NOT_SHARED, SHARED, Start
from provindex.evidence.table import TESTS
from provindex.fingerprint.record import IMPORTED, NORMS, ROLES, UNNAMED, Fingerprint
from provindex.signals import mfi, pipeline
from provindex.signals.table import SIGNALS
from provindex.verdict import adapters
from provindex.verdict.calibration import NO_CALIBRATION, Calibration, stratum_of_pair
from provindex.verdict.descent import role_of, start_of
from provindex.verdict.outcomes import Outcomes, why_absent
from provindex.verdict.relation import LOG10_P_LINKED, Linked

LOG10_E_LINKED = -3.0
LOG10_CONFORMAL = -3.0  # rank among unrelated pairs that E3 and E4 both need
FOUND_AGAIN = 0.5  # branch sketch of a pair that is no stranger, whatever its neurons say
LEAST_AGREEMENT = 0.1  # share of neurons found again, or correlation, that the aligned tier needs
LEAST_POWER = 0.5  # share of neurons, or correlation, that E8 and E7 must be able to see: of a copy it is near 1
TIERS = 5  # the exact one, E3, E5, E7 and E8: what a p-value of the aligned tier pays for
TEXT_STACKS = frozenset({"decoder", "encoder"})  # with the main stack of either model, the ones that decide
UNLESS_TWINS = frozenset({"finetune", "continued", "adapter"})  # what twins of one random start look like
TOWERS = frozenset({"vision", "audio"})
ANCHORS = Reason.of(Code.ANCHORS_NEED_TOKENIZER)


@dataclass(frozen=True, repr=False)
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
    undone: tuple[Code, ...] = ()
    direction_reasons: tuple[Reason, ...] = ()
    reasons: tuple[Reason, ...] = ()
    half_step: Residual | None = None
    around: str = ""

    def __repr__(self) -> str:
        p = "" if self.log10_p is None else f", log10 p {self.log10_p:.1f}"
        return f"<Pair {', '.join(filter(None, (self.verdict, self.relation, self.direction)))}{p}>"

    @property
    def plain_order_only(self) -> bool:
        """Whether it is `unrelated` by tests that would not have seen a reordered copy: no gate passes on that."""
        return self.verdict == "unrelated" and any(r.code is Code.REORDERED_NOT_SEEN for r in self.reasons)

    @property
    def is_open(self) -> bool:
        """Whether reading more could change it: nothing links, and a disguised copy would not have been seen."""
        return self.verdict == "inconclusive" or self.plain_order_only

    @property
    def kinds_differ(self) -> bool:
        """Whether one has gated MLPs and the other has not, so that no neuron of one can be one of the other."""
        return any(r.code is Code.MLP_KINDS_DIFFER for r in self.evidence["neuron_signs"].reasons)

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
    again: Callable[[], Fingerprint] | None = None,
) -> Pair:
    """The verdict on a pair.

    models: how many models B was picked from, for the E-value. calibration: chance levels; without one the aligned tier
    cannot decide. vocabularies: both vocabularies when they are at hand, so that VOA is exact; else it is estimated
    from the sketches. common_blocks: digests that unrelated families share. deep: E5, if the weights were read for it.
    again: loads B anew; then tests that decide nothing wait until somebody asks for their outcomes.
    """
    stacks = TEXT_STACKS | {a.facts.main, b.facts.main}
    stratum = stratum_of_pair(a, b)
    both = Pairing(a, b, stacks, common_blocks)
    rank = None if calibration is None else partial(_ranked, calibration=calibration, stratum=stratum)
    evidence = Outcomes(both, rank, {} if deep is None else {"deep_agreement": deep}, again)
    log10_p = combined([evidence[test.name] for test in TESTS if test.tier == "exact"])
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
        verdict, reasons = _unlinked(both, evidence)
        return replace(whole, verdict=verdict, reasons=reasons + towers, evidence=evidence.to_keep())
    linked = _linked(both, evidence)
    start = start_of(linked)
    if start.answer == SHARED and not _inferred(a, b):
        reasons = start.reasons + towers
        return replace(whole, relation="shared-init", reasons=reasons, evidence=evidence.to_keep())
    relation, caveats = _named(linked, start)
    role = role_of(linked, relation, start)
    return replace(
        whole,
        verdict="linked",
        relation=relation,
        direction=role.role,
        direction_reasons=tuple(item.reason for item in role.items),
        confidence=1.0 - min(1.0, 10.0 ** (whole.log10_e or 0.0)),
        layer_map=layers.ranges(linked.matches),
        closeness=linked.closeness,
        undone=linked.undone,
        reasons=caveats + _inferred(a, b) + towers,
        half_step=linked.sizes.half_step,
        around=linked.sizes.around,
        evidence=evidence.to_keep(),
    )


def _unlinked(pair: Pairing, evidence: Mapping[str, Outcome]) -> tuple[str, tuple[Reason, ...]]:
    """The verdict on a pair that no test links, and why; `unrelated` only if all of both models was looked at."""
    a, b = pair.a, pair.b
    verdict, reasons = _not_linked(pair, evidence)
    if adapter := adapters.reasons(a, b):
        verdict, reasons = "inconclusive", adapter
    if inferred := _inferred(a, b):  # what was looked at may not be what it was taken for
        verdict, reasons = "inconclusive", (Reason.of(Code.INFERRED_NEVER_CLEAR, because=inferred), *reasons)
    hidden = tuple(fp.absences[UNNAMED].about(fp.model_id) for fp in (a, b) if UNNAMED in fp.absences)
    hidden += _left_out((a, b), INCOMPLETE | UNCOMPARED | SPOILED)
    unnamed = _shared_unnamed(a, b, pair.stacks) + hidden
    if unnamed and verdict == "unrelated":  # a copy may be under names that nobody knows, beside a decoy
        verdict, reasons = "inconclusive", unnamed + reasons
    return verdict, reasons


def _left_out(sides: Sequence[Fingerprint], codes: frozenset[Code]) -> tuple[Reason, ...]:
    """A reason about each model of which something was left out that has one of some codes."""
    found = ((fp.model_id, left_out(fp.warnings, codes)) for fp in sides)
    return tuple(Reason.of(Code.LEFT_OUT, name, because=left) for name, left in found if left)


def beside_left_out(pair: Pair, sides: Sequence[Fingerprint]) -> Pair:
    """The same, no longer `unrelated` if weight files lie beside those that were read of one of the two: another model
    may be in there. A row of an index is of the files that it was made from.
    """
    why = _left_out([fp for fp in sides if not fp.indexed], BESIDE)
    if pair.verdict != "unrelated" or not why:
        return pair
    return replace(pair, verdict="inconclusive", reasons=why + pair.reasons)


def _inferred(a: Fingerprint, b: Fingerprint) -> tuple[Reason, ...]:
    """Which of two models have roles that shapes alone tell, each reason about its model; empty if neither has."""
    return tuple(fp.absences[ROLES].about(fp.model_id) for fp in (a, b) if fp.roles == "inferred")


def _named(linked: Linked, start: Start) -> tuple[str, tuple[Reason, ...]]:
    """The relation of a linked pair, and what else it could be.

    Where training would be the relation, and nothing tells it from a random start in common, it is `related`, and the
    reasons say so first.
    """
    relation = linked.relation
    if start.answer == CANNOT_TELL and relation in UNLESS_TWINS and not linked.imported:
        return "related", (Reason.of(Code.START_NOT_EXCLUDED), *start.reasons)
    caveats = linked.caveats(relation)
    if start.answer == NOT_SHARED:
        caveats = tuple(reason for reason in caveats if reason.code is not Code.START_NOT_EXCLUDED)
    return relation, caveats


def _significant(log10_p: float, models: int) -> bool:
    return log10_p <= LOG10_P_LINKED and log10_p + math.log10(max(models, 1)) <= LOG10_E_LINKED


def _aligned_p(evidence: Mapping[str, Outcome], exact_p: float | None) -> float | None:
    """log10 p of the aligned tier, paying for the exact one before it; what the exact tier says if it cannot decide.

    The p-values of E3, E7 and E8 are from theory; that the values are above all but 1 in 1,000 unrelated pairs is asked
    for besides, and of E4 with E3. E5's p-value stands alone: it is of layers that the fit has not seen.
    """
    e3, e4, e5, e7, e8 = (evidence.get(n, Outcome()) for n in (
        "triple_agreement", "branch_sketch", "deep_agreement", "neuron_invariants", "neuron_signs"
    ))  # fmt: skip
    deciding = [e5] if _agrees(e5) else []
    deciding += [e3] if _agrees(e3) and _outranks(e3) and _outranks(e4) else []
    deciding += [o for o in (e7, e8) if _agrees(o) and _outranks(o)]
    return min((min(0.0, (o.log10_p or 0.0) + math.log10(TIERS)) for o in deciding), default=exact_p)


def _agrees(outcome: Outcome) -> bool:
    return (outcome.value or 0.0) >= LEAST_AGREEMENT


def _outranks(outcome: Outcome) -> bool:
    """Whether a value is above all but 1 in 1,000 unrelated pairs."""
    return outcome.conformal is not None and outcome.conformal <= LOG10_CONFORMAL


def _shared_towers(a: Fingerprint, b: Fingerprint, stacks: frozenset[str]) -> tuple[Reason, ...]:
    """Vision and audio towers that both models have from one place: a fact, but no link between the models."""
    if a.blocks is None or b.blocks is None:
        return ()
    others = sorted({key.split(".", 1)[0] for key in a.blocks.keys} & TOWERS - stacks)
    found = [(stack, bit_reuse.bit_reuse(a.blocks, b.blocks, frozenset({stack}))[0]) for stack in others]
    return tuple(
        Reason.of(Code.TOWER_SHARED, stack=stack, share=o.value, n=o.n or 0)
        for stack, o in found
        if o.log10_p is not None and o.value is not None and o.log10_p <= LOG10_P_LINKED
    )


def _shared_unnamed(a: Fingerprint, b: Fingerprint, stacks: frozenset[str]) -> tuple[Reason, ...]:
    """That matrices without a known role are equal in both: no link between the text towers, and no clearance."""
    found = bit_reuse.elsewhere(a.blocks, b.blocks, stacks)
    if found is None or found.value is None or (found.log10_p or 0.0) > LOG10_P_LINKED:
        return ()
    return (Reason.of(Code.UNNAMED_SHARED, share=found.value, n=found.n or 0),)


def combined(outcomes: Sequence[Outcome]) -> float | None:
    """log10 of the smallest p-value, times the number of tests that ran (Bonferroni); None if none ran."""
    ran = [o.log10_p for o in outcomes if o.log10_p is not None]
    return min(0.0, min(ran) + math.log10(len(ran))) if ran else None


def _ranked(name: str, outcome: Outcome, calibration: Calibration, stratum: str) -> Outcome:
    """An outcome with its rank among unrelated pairs, which is its p-value where it has no other."""
    assert outcome.value is not None  # its only caller looked
    rank, pairs = calibration.conformal(name, outcome.value, stratum)
    if not pairs:
        return outcome  # nobody knows what strangers score
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


def _linked(pair: Pairing, evidence: Mapping[str, Outcome]) -> Linked:
    a, b = pair.a, pair.b
    comparable = a.hidden is not None and b.hidden is not None and a.hidden.width == b.hidden.width
    by_units = hidden_units.layer_matches(a.hidden, b.hidden, pair.stacks) if comparable else []
    by_neurons = layers.neuron_matches(a.neurons, b.neurons, pair.namings)
    matches = layers.together(by_units, by_neurons, a.facts.layers * b.facts.layers)
    mapped = [(p.stack, p.a, p.b) for p in ([p for p, _ in matches] or hidden_units.of_pair(pair).pairs)]
    samples = sampled.compared(pair) if IMPORTED in (a.mode, b.mode) else None
    gains = gains_of_pair(pair)
    return Linked(a, b, effects(a.blocks, b.blocks, mapped), matches, by_neurons, evidence, gains, samples)


def _not_linked(pair: Pairing, evidence: Mapping[str, Outcome]) -> tuple[str, tuple[Reason, ...]]:
    """`unrelated` if a test that sees a changed copy ran and could have seen one, with what it would have seen.

    Block reuse alone does not do: it sees untouched blocks only.
    """
    could = [(test, least) for test in TESTS if test.sees and (least := evidence[test.name].smallest) is not None]
    nameless = _without_strings(pair)
    seen = [Reason.of(Code.SEEN_UNITS, what=test.sees, cosine=least, test=test.name) for test, least in could]
    anywhere = _seen_anywhere(pair, evidence, named=not nameless)
    seen += anywhere
    e3, e4 = evidence["triple_agreement"], evidence["branch_sketch"]
    if not _agrees(e3) and (e4.value or 0.0) >= FOUND_AGAIN and _outranks(e4):
        return "inconclusive", (_layers_unconfirmed(e3, e4),)
    if seen:
        missing = () if sampled.sees_basis(pair) else evidence["residual_fixed_points"].reasons
        partly = (*_half_seen(evidence), *((Reason.of(Code.ANCESTOR_NOT_SOUGHT, because=missing),) if missing else ()))
        unseen = () if anywhere else (Reason.of(Code.REORDERED_NOT_SEEN, because=nameless or _why_unranked(evidence)),)
        return "unrelated", (Reason.of(Code.WOULD_BE_LINKED, because=seen), *unseen, *partly)
    weak = (Reason.of(Code.COMMON_FEW),)
    gains = evidence["norm_alignment"]
    hidden = (Reason.of(Code.GAINS_NEVER_CLEAR),) if gains.value is not None else ()
    if NORMS in (pair.a.mode, pair.b.mode):
        return "inconclusive", (*(hidden or gains.reasons), Reason.of(Code.NORMS_ALONE))
    asked = ("hidden_fixed_points", *(test.name for test in TESTS if test.sees))
    found = [r for name in asked for r in evidence[name].reasons or weak]
    reasons = hidden + distinct([r for r in found if r.code is not Code.SAMPLED_OWN])  # no test that is missing here
    unranked = nameless or _why_unranked(evidence)
    if set(unranked) <= set(reasons):
        return "inconclusive", reasons
    return "inconclusive", (*reasons, Reason.of(Code.NOT_RANKED, because=unranked, test="neuron_signs"))


def _seen_anywhere(pair: Pairing, evidence: Mapping[str, Outcome], *, named: bool) -> list[Reason]:
    """What would have been seen of a copy in any order, basis and scale; empty if nothing would. named: whether both
    models have anchors at their strings.

    E7 alone clears nobody: a tenth of added neurons, or split ones, can hide the others from it. E8 does where the
    layers that were compared can be those of a copy; else E3, which looks at all layers, and E4.
    """
    shares = [_smallest(evidence[name]) for name in ("neuron_signs", "neuron_invariants")]
    if not named or shares[0] is None:
        return []
    if not _correspond(pair):
        looked = all(fp.mode == "exact" for fp in (pair.a, pair.b))
        ranked = looked and all(evidence[n].conformal is not None for n in ("triple_agreement", "branch_sketch"))
        return [Reason.of(Code.SEEN_NEURONS, share=LEAST_AGREEMENT, test="triple_agreement")] if ranked else []
    more = [] if shares[1] is None else [Reason.of(Code.SEEN_INVARIANTS, correlation=shares[1])]
    return [Reason.of(Code.SEEN_NEURONS, share=shares[0], test="neuron_signs"), *more]


def _smallest(outcome: Outcome) -> float | None:
    """The smallest value that would have been linked; None if no copy would be sure to reach it."""
    if outcome.conformal is None or outcome.smallest is None or outcome.smallest > LEAST_POWER:
        return None
    above = outcome.null.p999 if outcome.null is not None else None
    return max(outcome.smallest, LEAST_AGREEMENT, above or 0.0)


def _correspond(pair: Pairing) -> bool:
    """Whether the layers of which all neurons were compared are those of a copy: depths are equal, or one has all."""
    whole = [fp.value("whole_layers") for fp in (pair.a, pair.b)]
    every = (w is not None and len(w.keys) >= fp.facts.layers for w, fp in zip(whole, (pair.a, pair.b), strict=True))
    return pair.a.facts.layers == pair.b.facts.layers or any(every)


def _without_strings(pair: Pairing) -> tuple[Reason, ...]:
    """Why anchors cannot be found by their strings in one of the models; empty if they can in both.

    Fixed token ids name the same tokens only until somebody numbers them anew: a test that rests on them alone links,
    and clears nothing.
    """
    lacking = [fp for fp in (pair.a, pair.b) if fp.sketches is None and fp.sketches_by_id is not None]
    return distinct([fp.absences.get("sketches", ANCHORS).about(fp.model_id) for fp in lacking])


def _layers_unconfirmed(e3: Outcome, e4: Outcome) -> Reason:
    """That E4 sees a link and E3 does not, with E3's share, or why it is absent."""
    if e3.value is None:
        return Reason.of(Code.LAYERS_UNCONFIRMED_ABSENT, sketch=e4.value or 0.0, because=e3.reasons)
    return Reason.of(Code.LAYERS_UNCONFIRMED, sketch=e4.value or 0.0, neurons=e3.value)


def _half_seen(evidence: Mapping[str, Outcome]) -> tuple[Reason, ...]:
    """What to keep in mind if E3 sees a link and E4 does not."""
    e3 = evidence["triple_agreement"]
    if e3.value is None or not (_agrees(e3) and _outranks(e3)):
        return ()
    return (Reason.of(Code.NEURONS_UNCONFIRMED, share=e3.value),)


def _why_unranked(evidence: Mapping[str, Outcome]) -> tuple[Reason, ...]:
    found = [evidence[name].reasons for name in ("neuron_signs", "triple_agreement", "branch_sketch")]
    return next((reasons for reasons in found if reasons), (NO_CALIBRATION,))


def compare_signals(
    a: Fingerprint, b: Fingerprint, vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None = None
) -> tuple[dict[str, Score], int | None]:
    """The signals of a pair, in the order of their table, and the MFI tier.

    vocabularies: the token strings of both models, if they are at hand.
    """
    scores = {signal.name: _score(signal, a, b, vocabularies) for signal in SIGNALS}
    return scores, mfi.compare(a.mfi, b.mfi).tier


def _score(
    signal: Signal, a: Fingerprint, b: Fingerprint, vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None
) -> Score:
    if signal.exact is not None and vocabularies is not None:
        return signal.exact(*vocabularies)
    values = signal.values(a, b)
    return _absent(a, b, signal.name) if values is None else signal.compare(*values)


def _absent(a: Fingerprint, b: Fingerprint, signal: str) -> Score:
    return Score.absent(*(why_absent(a, b, signal) or (Reason.of(Code.FINGERPRINT_LACKS),)))
