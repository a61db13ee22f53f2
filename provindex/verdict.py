"""Two fingerprints in, a verdict out: the eight signals, the evidence, relation, direction and layer map.

The weights decide. `linked` needs an exact p-value of at most 1e-6, after Bonferroni over the tests and layer maps
tried, and an E-value of at most 1e-3. Without it the pair is `unrelated` if a test with power ran, else `inconclusive`;
the reasons say what would have been seen, or what could not be computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provindex.evidence import exact
from provindex.evidence.effects import Effects, effects
from provindex.evidence.exact import LayerPair, Outcome
from provindex.evidence.panels import MIN_ANCHORS
from provindex.fingerprint import Fingerprint
from provindex.signals import eas, end, lep, mfi, nlf, pipeline, tfv, voa, wvc
from provindex.signals.score import Score

LOG10_P_LINKED = -6.0
LOG10_E_LINKED = -3.0
LOG10_SHA256 = -77.0  # two different models with one hash of their weights: 2^-256
TEXT_STACKS = frozenset({"decoder", "encoder"})  # with the main stack of either model, the ones that decide
TOWERS = frozenset({"vision", "audio"})
EQUAL = 0.999  # share of blocks from which on two models count as equal
GRID = 0.9  # share of matrices on a grid from which on a model counts as quantized
APART = 0.1  # median cosine of the samples of a role, below which that role does not correspond
FINETUNE = 0.9  # median cosine from which on a child counts as fine-tuned rather than continued
SIGNALS = ("MFI", "TFV", "VOA", "EAS", "NLF", "LEP", "END", "WVC")
LATER = "not computed by this version: "
POWERFUL = {"hidden_alignment": "hidden units", "residual_fixed_points": "residual coordinates"}
UNSEEN = "not seen by this version: a copy whose neurons, value channels and residual coordinates were all reordered"
SAME_START = "a merge, or separate training from one random start, would look the same to these tests"
SIBLING = "any checkpoint within half a step of the one that was quantized would look the same"
PARTLY = "only some layers or roles correspond: the others are new, pruned, or have their neurons reordered"
ELSEWHERE = "every compared block is equal; any difference is outside them (a head, or elements between the blocks)"
TABLE_ONLY = "only the token embedding is the same, bit for bit: other layers of one ancestor, or a reused table"
NO_BASIS = "a common ancestor whose layers are not shared could not be looked for"
BASIS_ONLY = "only the residual basis is shared: other layers of one ancestor, or layers whose neurons were reordered"


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers a[0] to a[1] of A correspond to layers b[0] to b[1] of B (inclusive), each pair significant on its own."""

    stack: str
    a: tuple[int, int]
    b: tuple[int, int]
    log10_p: float


@dataclass(frozen=True)
class Pair:
    """The verdict on two models, and everything that it rests on.

    direction: the role of A ("ancestor": A is the ancestor); None when unrelated. log10_p: at most 0, after
    Bonferroni; None when no exact test could run. closeness: median cosine of matched weight samples, 0 if no layer
    matches. reasons: why the verdict is not `linked`, or what to keep in mind.
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
    reasons: tuple[str, ...] = ()

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
    vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
    common_blocks: frozenset[int] = frozenset(),
) -> Pair:
    """The verdict on a pair.

    models: how many models B was picked from, for the E-value. vocabularies: both vocabularies when they are at hand,
    so that VOA is exact; else it is estimated from the sketches. common_blocks: digests that unrelated families
    share.
    """
    stacks = TEXT_STACKS | {a.facts.main, b.facts.main}
    hidden = exact.hidden_tests(a.hidden, b.hidden, stacks)
    reuse, _ = exact.bit_reuse(a.blocks, b.blocks, stacks, common_blocks)
    residual = exact.better(
        exact.residual_test(a.residual, b.residual), exact.residual_test(a.residual_by_id, b.residual_by_id)
    )
    same = a.content_sha256 is not None and a.content_sha256 == b.content_sha256
    evidence = _evidence(a, b, _whole(reuse) if same else reuse, hidden, residual)
    log10_p = combined(list(evidence.values()))
    log10_e = None if log10_p is None else log10_p + math.log10(max(models, 1))
    linked = log10_p is not None and log10_e is not None and log10_p <= LOG10_P_LINKED and log10_e <= LOG10_E_LINKED
    signals, tier = compare_signals(a, b, vocabularies)
    shared = {
        "log10_p": log10_p,
        "log10_e": log10_e,
        "signals": signals,
        "evidence": evidence,
        "pipeline": pipeline.score(signals, tier),
        "mfi_tier": tier,
    }
    towers = _shared_towers(a, b, stacks)
    if not linked:
        verdict, reasons = _not_linked(evidence)
        return Pair(verdict, None, None, None, reasons=reasons + towers, **shared)  # type: ignore[arg-type]
    comparable = a.hidden is not None and b.hidden is not None and a.hidden.width == b.hidden.width
    matches = exact.layer_matches(a.hidden, b.hidden, stacks) if comparable else []  # type: ignore[arg-type]
    mapped = [(p.stack, p.a, p.b) for p in ([p for p, _ in matches] or hidden.pairs)]
    sizes = effects(a.blocks, b.blocks, mapped)
    relation = _relation(a, b, sizes, matches, evidence)
    return Pair(
        "linked",
        relation,
        _direction(a, b, relation, sizes, matches),
        1.0 - min(1.0, 10.0**log10_e) if log10_e is not None else None,
        layer_map=ranges(matches),
        closeness=sizes.cosine,
        reasons=_caveats(a, b, relation, sizes) + towers,
        **shared,  # type: ignore[arg-type]
    )


def _whole(reuse: Outcome) -> Outcome:
    """E0 for models whose canonical weights have one hash: all is reused, whether or not blocks could be told."""
    n = reuse.n or 1
    return Outcome(1.0, n, min(reuse.log10_p or 0.0, LOG10_SHA256), 0.0)


def _shared_towers(a: Fingerprint, b: Fingerprint, stacks: frozenset[str]) -> tuple[str, ...]:
    """Vision and audio towers that both models have from one place: a fact, but no link between the models."""
    if a.blocks is None or b.blocks is None:
        return ()
    others = sorted({key.split(".", 1)[0] for key in a.blocks.keys} & TOWERS - stacks)
    found = [(stack, exact.bit_reuse(a.blocks, b.blocks, frozenset({stack}))[0]) for stack in others]
    return tuple(
        f"the {stack} tower is shared ({o.value:.0%} of its {o.n} blocks are equal); by itself that links no text tower"
        for stack, o in found
        if o.log10_p is not None and o.value is not None and o.log10_p <= LOG10_P_LINKED
    )


def combined(outcomes: Sequence[Outcome]) -> float | None:
    """log10 of the smallest p-value, times the number of tests that ran (Bonferroni); None if none ran."""
    ran = [o.log10_p for o in outcomes if o.log10_p is not None]
    return min(0.0, min(ran) + math.log10(len(ran))) if ran else None


def _evidence(
    a: Fingerprint, b: Fingerprint, reuse: Outcome, hidden: exact.HiddenResult, residual: Outcome
) -> dict[str, Outcome]:
    """Every evidence name of the contract; where a fingerprint says why it lacks something, that reason is given."""
    notes = {"blocks": reuse, "hidden": hidden.fixed, "residual": residual}
    for name, outcome in notes.items():
        why = [f"{fp.model_id}: {fp.absences[name]}" for fp in (a, b) if name in fp.absences]
        if outcome.reason and why:
            notes[name] = Outcome(reason="; ".join(why))
    aligned = hidden.aligned if hidden.aligned.reason is None else notes["hidden"]
    return {
        "bit_reuse": notes["blocks"],
        "hidden_fixed_points": notes["hidden"],
        "hidden_alignment": aligned,
        "residual_fixed_points": notes["residual"],
        "residual_gram": Outcome(reason=LATER + "unbiased CKA over residual coordinates"),
        "triple_agreement": Outcome(reason=LATER + "needs neuron panels in anchor coordinates"),
        "branch_sketch": Outcome(reason=LATER + "needs branch sketches and their conformal null"),
    }


def _not_linked(evidence: Mapping[str, Outcome]) -> tuple[str, tuple[str, ...]]:
    """`unrelated` if a test that sees a changed copy ran and could have seen one, with what it would have seen.

    Block reuse alone does not do: it sees untouched blocks only.
    """
    could = {name: evidence[name].smallest for name in POWERFUL if evidence[name].smallest is not None}
    if could:
        missing = evidence["residual_fixed_points"].reason
        partly = (f"{NO_BASIS}: {missing}",) if missing else ()
        seen = "; ".join(f"{POWERFUL[name]} with a cosine of {least:.2g} ({name})" for name, least in could.items())
        return "unrelated", (f"would have been linked: {seen}", UNSEEN, *partly)
    weak = "too few hidden units or coordinates in common for a test with power"
    reasons = dict.fromkeys(evidence[name].reason or weak for name in ("hidden_fixed_points", *POWERFUL))
    return "inconclusive", tuple(reasons)


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
    left, right = a.lep.get(a.facts.main), b.lep.get(b.facts.main)
    return lep.compare(left, right) if left is not None and right is not None else _absent(a, b, "LEP")


# --- relation and direction: labels of a linked pair, from effect sizes ---


def _relation(
    a: Fingerprint,
    b: Fingerprint,
    sizes: Effects,
    matches: Sequence[tuple[LayerPair, float]],
    evidence: Mapping[str, Outcome],
) -> str:
    if a.content_sha256 is not None and a.content_sha256 == b.content_sha256:
        return "identical"
    depth = _depth_relation(a, b, matches)
    if depth:
        return depth
    whole = _covers(a, b, matches)
    if whole and sizes.matrices and max(sizes.equal, sizes.rounded) >= EQUAL:
        if a.facts.vocabulary != b.facts.vocabulary:
            return "vocabulary"
        if sizes.equal >= EQUAL:
            return "identical" if sizes.embedding_equal and not _changed(a, b) else "finetune"
        return "finetune" if "" != a.facts.precision == b.facts.precision else "recast"
    if whole and (sizes.grid_a >= GRID) != (sizes.grid_b >= GRID) and sizes.half_step >= GRID:
        return "quantized"
    hidden = min(evidence[name].log10_p or 0.0 for name in ("hidden_fixed_points", "hidden_alignment"))
    if hidden <= LOG10_P_LINKED and sizes.matrices:
        if not whole or sizes.worst < APART <= sizes.cosine:
            return "related"
        return "finetune" if sizes.cosine >= FINETUNE else "continued"
    reused = (evidence["bit_reuse"].log10_p or 0.0) <= LOG10_P_LINKED
    only_residual = (evidence["residual_fixed_points"].log10_p or 0.0) <= LOG10_P_LINKED and not reused
    return "shared-ancestor" if only_residual else "related"


def _caveats(a: Fingerprint, b: Fingerprint, relation: str, sizes: Effects) -> tuple[str, ...]:
    """What else a linked pair could be, where its label says more than the evidence does."""
    if relation == "shared-ancestor":
        return (TABLE_ONLY if sizes.embedding_equal else BASIS_ONLY), SAME_START
    if relation == "identical" and a.content_sha256 != b.content_sha256:
        return (ELSEWHERE,)
    caveats = {"continued": (SAME_START,), "related": (PARTLY, SAME_START), "quantized": (SIBLING,)}
    return caveats.get(relation, ())


def _covers(a: Fingerprint, b: Fingerprint, matches: Sequence[tuple[LayerPair, float]]) -> bool:
    """Whether every layer of one model's text tower has its match in the other; True if no layer was matched alone."""
    ours, theirs = ({getattr(p, side) for p, _ in matches if p.stack == a.facts.main} for side in "ab")
    return not matches or len(ours) >= a.facts.layers or len(theirs) >= b.facts.layers


def _changed(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two models of one size are known to differ in some element; a head more or less is no change."""
    known = a.content_sha256 is not None and b.content_sha256 is not None
    return known and a.content_sha256 != b.content_sha256 and a.facts.parameters == b.facts.parameters


def _depth_relation(a: Fingerprint, b: Fingerprint, matches: Sequence[tuple[LayerPair, float]]) -> str | None:
    """`upscaled` or `pruned` when the depths differ and the shallower model's layers are in the deeper one."""
    if a.facts.layers == b.facts.layers or not matches:
        return None
    main = [p for p, _ in matches if p.stack == a.facts.main]
    deep, shallow = ({p.a for p in main}, {p.b for p in main})
    if a.facts.layers < b.facts.layers:
        deep, shallow = shallow, deep
    fewer, more = sorted((a.facts.layers, b.facts.layers))
    if len(shallow) < fewer:
        return None
    return "upscaled" if len(deep) == more and len(deep) > len(shallow) else "pruned"


def _direction(
    a: Fingerprint, b: Fingerprint, relation: str, sizes: Effects, matches: Sequence[tuple[LayerPair, float]]
) -> str:
    """The role of A from structure alone; "unknown" where structure does not tell.

    Fewer layers than the other (pruned), more (upscaled), values on a quantization grid or at a lower precision on
    which the other is not, a renumbered part of the other's vocabulary: each makes its owner the descendant.
    """
    descendant: bool | None = None  # is A the descendant?
    if relation == "pruned":
        descendant = a.facts.layers < b.facts.layers
    elif relation == "upscaled":
        descendant = a.facts.layers > b.facts.layers
    elif relation == "quantized":
        descendant = sizes.grid_a > sizes.grid_b
    elif relation == "recast" and "" not in (a.facts.precision, b.facts.precision):
        if (a.facts.precision == "f32") != (b.facts.precision == "f32"):
            descendant = b.facts.precision == "f32"
    elif relation == "vocabulary":
        descendant = _vocabulary_descendant(a, b)
    if descendant is None:
        return "unknown"
    return "descendant" if descendant else "ancestor"


def _vocabulary_descendant(a: Fingerprint, b: Fingerprint) -> bool | None:
    """Is A the descendant? Rows cut out and renumbered make the smaller one the child.

    Rows appended make the larger one.
    """
    if a.residual is None or b.residual is None or a.facts.vocabulary == b.facts.vocabulary:
        return None
    both = (a.residual.ids >= 0) & (b.residual.ids >= 0)
    ours, theirs = a.residual.ids[both], b.residual.ids[both]
    if ours.size < MIN_ANCHORS:
        return None
    smaller_is_a = a.facts.vocabulary < b.facts.vocabulary
    if (ours == theirs).all():
        return not smaller_is_a
    small, large = (ours, theirs) if smaller_is_a else (theirs, ours)
    order = large.argsort()
    kept_in_order = float((small[order][1:] > small[order][:-1]).mean()) if small.size > 1 else 0.0
    # ids of unrelated orders ascend half of the time; special tokens may have moved
    return smaller_is_a if (small <= large).mean() >= 0.95 and kept_in_order >= 0.95 else None


def ranges(matches: Sequence[tuple[LayerPair, float]]) -> tuple[LayerRange, ...]:
    """Runs of layers that advance together, with the weakest p-value of each run.

    Runs are sought along one offset at a time, so that a layer may be part of several (a model upscaled by repeating
    layers 4 to 11 has both 0-11 and 4-15), and so that (B, A) gives the mirror image of (A, B).
    """
    runs: list[LayerRange] = []
    for pair, log10_p in sorted(matches, key=lambda m: (m[0].stack, m[0].b - m[0].a, m[0].a)):
        last = runs[-1] if runs else None
        if last and last.stack == pair.stack and (last.a[1] + 1, last.b[1] + 1) == (pair.a, pair.b):
            runs[-1] = LayerRange(pair.stack, (last.a[0], pair.a), (last.b[0], pair.b), max(last.log10_p, log10_p))
        else:
            runs.append(LayerRange(pair.stack, (pair.a, pair.a), (pair.b, pair.b), log10_p))
    return tuple(sorted(runs, key=lambda r: (r.stack, r.a, r.b)))
