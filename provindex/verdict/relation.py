"""What a linked pair is to each other: the relation from effect sizes, what a disguise changed, what else it could be.

Labels decide nothing: the verdict is there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import BESIDE, INCOMPLETE, LEFT_OUT, Code, Reason, left_out
from provindex.common.score import Outcome
from provindex.evidence.aligned import Agreement
from provindex.evidence.bit_reuse import bit_reuse
from provindex.evidence.effects import ON_GRID, Effects
from provindex.evidence.grids import MIN_VALUES, Residual
from provindex.evidence.hidden_units import LayerPair
from provindex.evidence.layers import Matches
from provindex.evidence.panels import MIN_ANCHORS, HiddenPanels
from provindex.evidence.sampled import Compared
from provindex.evidence.start import GAINS_TOGETHER
from provindex.fingerprint.record import IMPORTED, Fingerprint

F64 = NDArray[np.float64]
LOG10_P_LINKED = -6.0
EQUAL = 0.999  # share of blocks from which on two models count as equal
APART = 0.1  # median cosine of the samples of a role, below which that role does not correspond
FINETUNE = 0.9  # median cosine from which on a child counts as fine-tuned rather than continued
FOUND_AGAIN = 0.5  # E3, E4: from which on what corresponds element by element can be expected to
IN_ORDER = 0.95  # share of neurons in ascending order, from which on their order counts as kept
BEYOND = 2e-4  # share of a difference's energy beyond its rank: adapters at most 1e-4, full training at least 7e-4
MIN_RANK, MOST_RANK, MOST_PANELS, SCALINGS = 4, 16, 6, 6
PANEL_ROUNDING = 2.0**-24 / 3 * 2  # of two rows stored as float16, in units of their squared length
ROUNDING = {"bf16": 2.0**-18 / 3, "f16": 2.0**-24 / 3}  # of the matrices themselves
HIDDEN_BY_ROUNDING = 5e-4  # share of a difference's energy that rounding may be, if its rank is to be seen
SAME_SKETCH, OTHER_VALUES = 0.999, 0.99  # E4, and a cosine: where noise sets matrices apart, E4 is the cosine squared
SKETCHED = frozenset({"q", "k", "v", "o", "gate", "up", "down"})
STEPPED = frozenset({"quantized", "finetune", "continued", "adapter"})  # relations that leave every value its place
GAINS = frozenset({"norm_alignment", "bias_alignment"})  # E6
WHOLE_LAYERS = ("neuron_signs", "neuron_invariants")  # E8, E7
BY_NEURONS = ("triple_agreement", *WHOLE_LAYERS)
SCALED = 0.05  # spread of the log ratio of lengths, from which on neurons count as rescaled


@dataclass(frozen=True)
class Linked:
    """A linked pair, and what is known of it.

    matches: layers that correspond. neurons: those of them whose neurons were found again. gains: median correlation
    of the norm gains, None without any. samples: how alike the samples are, of a pair with an imported row.
    """

    a: Fingerprint
    b: Fingerprint
    sizes: Effects
    matches: Matches
    neurons: Sequence[tuple[LayerPair, Agreement]]
    evidence: Mapping[str, Outcome]
    gains: float | None = None
    samples: Compared | None = None

    @property
    def imported(self) -> bool:
        """Whether one of the rows holds another tool's numbers: then neither a disguise nor a start can be told."""
        return IMPORTED in (self.a.mode, self.b.mode)

    @property
    def closeness(self) -> float:
        """Median cosine of matched weight samples; 0 if none match."""
        return self.sizes.cosine if self.samples is None else self.samples.median

    @property
    def exact(self) -> bool:
        """Whether hidden units stand where they stood (E1, E1z)."""
        return min(self._log10_p("hidden_fixed_points"), self._log10_p("hidden_alignment")) <= LOG10_P_LINKED

    @property
    def trained_together(self) -> bool:
        """Whether norm gains, which start as ones, have more in common than models of one random start."""
        return self.gains is not None and self.gains >= GAINS_TOGETHER

    @property
    def by_gains(self) -> bool:
        """Whether nothing but norm gains and biases (E6) shows the link."""
        shown = (name for name in self.evidence if self._log10_p(name) <= LOG10_P_LINKED)
        others = (name for name in shown if name not in GAINS)
        return any(self._log10_p(name) <= LOG10_P_LINKED for name in GAINS) and next(others, None) is None

    def _log10_p(self, name: str) -> float:
        return self.evidence[name].log10_p or 0.0

    @cached_property
    def undone(self) -> tuple[Code, ...]:
        """What a disguise changed and the tests saw through; empty where nothing was."""
        found: list[Code] = []
        if self.imported:
            return ()
        if self._basis_moved():
            found.append(Code.BASIS_MOVED)
        if self.neurons and not _kept_order(self.neurons) and self._found_again("triple_agreement"):
            found.append(Code.NEURONS_REORDERED)
        found += self._attention_moved() if Code.BASIS_MOVED not in found else []
        if self.neurons and self._rescaled():
            found.append(Code.NEURONS_RESCALED)
        if {_flat_gains(self.a), _flat_gains(self.b)} == {True, False}:
            found.append(Code.GAINS_FOLDED)
        if self._renumbered() and not self.new_vocabulary:
            found.append(Code.IDS_RENUMBERED)
        if not found and self._scales_moved():
            found.append(Code.SCALES_MOVED)
        return tuple(found)

    def _scales_moved(self) -> bool:
        """Whether layers do the same to three digits with matrices that differ by more than that."""
        cosines = [cosine for role, cosine in self.sizes.roles.items() if role in SKETCHED]
        same = (self.evidence["branch_sketch"].value or 0.0) >= SAME_SKETCH
        return same and self.a.facts.hidden == self.b.facts.hidden and min(cosines, default=1.0) < OTHER_VALUES

    def _found_again(self, name: str) -> bool:
        return (self.evidence[name].value or 0.0) >= FOUND_AGAIN

    def _basis_moved(self) -> bool:
        e2 = self.evidence["residual_fixed_points"]
        ran = e2.value is not None and e2.smallest is not None
        return ran and (e2.log10_p or 0.0) > LOG10_P_LINKED and any(map(self._found_again, BY_NEURONS))

    def _attention_moved(self) -> list[Code]:
        if not (self._found_again("branch_sketch") and self.neurons and self.a.facts.hidden == self.b.facts.hidden):
            return []
        low = {role for role, cosine in self.sizes.roles.items() if cosine < APART}
        return [
            what for what, roles in ((Code.VALUES_MOVED, {"v", "o"}), (Code.QUERIES_MOVED, {"q", "k"})) if roles & low
        ]

    def _rescaled(self) -> bool:
        """Whether up grew where down shrank: neurons that were rescaled in pairs."""
        up, down = [], []
        for ours, theirs in self._lengths():
            ratio = np.log(np.maximum(ours, 1e-30)) - np.log(np.maximum(theirs, 1e-30))
            up.append(ratio[:, 0] - ratio[:, 0].mean())
            down.append(ratio[:, 1] - ratio[:, 1].mean())
        x, y = np.concatenate(up), np.concatenate(down)
        spread = float(np.sqrt((x @ x) * (y @ y)))
        return bool(x.size and np.std(x) > SCALED and np.std(y) > SCALED and x @ y < -0.9 * spread)

    def _lengths(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Lengths of up and down of the neurons that were found again, (n, 2) each, layer by layer."""
        a, b = self.a.neurons, self.b.neurons
        if a is None or b is None:
            return []
        return [
            (a.lengths[a.places[f.a]][f.rows, -2:], b.lengths[b.places[f.b]][f.columns, -2:]) for _, f in self.neurons
        ]

    def _renumbered(self) -> bool:
        """Whether anchor strings that both have stand at other ids."""
        x, y = self.a.residual, self.b.residual
        if x is None or y is None:
            return False
        both = (x.ids >= 0) & (y.ids >= 0)
        return int(both.sum()) >= MIN_ANCHORS and float((x.ids[both] != y.ids[both]).mean()) > 0.5

    @property
    def new_vocabulary(self) -> bool:
        """Whether one has tokens that the other lacks."""
        x, y = self.a.vocabulary_sketch, self.b.vocabulary_sketch
        if self.a.facts.vocabulary != self.b.facts.vocabulary:
            return True
        return x is not None and y is not None and float((x == y).mean()) < 0.99

    @cached_property
    def whole(self) -> bool:
        """Whether every layer of one model's text tower has its match in the other; True if none was matched alone."""
        ours, theirs = ({getattr(p, s) for p, _ in self.matches if p.stack == self.a.facts.main} for s in "ab")
        return not self.matches or len(ours) >= self.a.facts.layers or len(theirs) >= self.b.facts.layers

    @property
    def upcycled(self) -> bool:
        """Whether one is a mixture of experts and the other is not: which was made of which, its layers do not tell."""
        sides = [fp.hidden.keys for fp in (self.a, self.b) if fp.hidden is not None]
        return {any(key.expert >= 0 for key in keys) for keys in sides} == {True, False}

    @cached_property
    def low_rank(self) -> bool | None:
        """Whether the two differ as a model and the same with a merged adapter do; None if that cannot be seen."""
        held = "bf16" if "bf16" in (self.sizes.held_a, self.sizes.held_b) else self.sizes.held_a
        return low_rank(self.a.hidden, self.b.hidden, self.matches, held)

    @property
    def in_place(self) -> bool:
        """Whether every layer of the text tower stands where it stood, and no disguise changed anything."""
        main = [(p.a, p.b) for p, _ in self.matches if p.stack == self.a.facts.main]
        kept = {a for a, b in main if a == b}
        there = all({a, b} <= kept for a, b in main)  # a layer that is its own may resemble another one besides
        return self.a.facts.layers == self.b.facts.layers and self.whole and there and not self.undone

    @property
    def relation(self) -> str:
        """One of the contract's relations."""
        sizes = self.sizes
        if self.imported:
            return self._by_samples()
        if self.upcycled or self.cut:
            return "related"
        special = self._other_shape() or self._equal() or self._on_a_grid()
        if special in ("identical", "related") and self.beside:
            return "adapter" if any(r.code is Code.ADAPTER_UNMERGED for r in self.beside) else "related"
        if special:
            return special
        if self.undone:
            return "laundered"
        if self.exact and sizes.matrices:
            if not self.whole or sizes.worst < APART <= sizes.cosine:
                return "related"
            if self.new_vocabulary and self._renumbered():
                return "vocabulary"
            if self.low_rank:
                return "adapter"
            return "finetune" if sizes.cosine >= FINETUNE else "continued"
        reused = self._log10_p("bit_reuse") <= LOG10_P_LINKED
        if not reused and (self.neurons or any(self._log10_p(name) <= LOG10_P_LINKED for name in WHOLE_LAYERS)):
            return "vocabulary" if self.new_vocabulary else "related"
        only_residual = self._log10_p("residual_fixed_points") <= LOG10_P_LINKED and not reused
        return "shared-ancestor" if only_residual else "related"

    @property
    def cut(self) -> bool:
        """Whether parts of one of them are not here, so that neither sizes nor equality say what was done to it."""
        return any(left_out(fp.warnings, INCOMPLETE) for fp in (self.a, self.b))

    @property
    def beside(self) -> tuple[Reason, ...]:
        """What was left out of either: equal in all that was compared is not identical. A row of an index is of the
        files that it was made from, whatever lay beside them.
        """
        sides = ((fp, LEFT_OUT - BESIDE if fp.indexed else LEFT_OUT) for fp in (self.a, self.b))
        return tuple(reason for fp, codes in sides for reason in left_out(fp.warnings, codes))

    @cached_property
    def tower_apart(self) -> Reason | None:
        """That a vision or audio tower which both have is not the same; None if each is, or only one model has it."""
        if self.a.blocks is None or self.b.blocks is None:
            return None
        for stack in sorted({"vision", "audio"} - {self.a.facts.main, self.b.facts.main}):
            found = bit_reuse(self.a.blocks, self.b.blocks, frozenset({stack}))[0]
            if found.value is not None and found.value < EQUAL:
                return Reason.of(Code.TEXT_EQUAL, stack=stack, share=found.value, n=found.n or 0)
        return None

    def _by_samples(self) -> str:
        """What samples tell; a random start that both may share is told from descent by gains alone."""
        samples = self.samples
        if samples is None or self.by_gains:
            return "related"
        if samples.equal:
            return "identical"
        if not self.trained_together:
            return "related"
        return "finetune" if samples.median >= FINETUNE else "continued"

    def _equal(self) -> str | None:
        sizes = self.sizes
        if self.a.content_sha256 is not None and self.a.content_sha256 == self.b.content_sha256:
            return "identical"
        recast = sizes.near >= EQUAL and "" != sizes.held_a != sizes.held_b != ""
        if not (self.whole and sizes.matrices and (recast or max(sizes.equal, sizes.rounded) >= EQUAL)):
            return None
        if self.a.facts.vocabulary != self.b.facts.vocabulary:
            return "vocabulary"
        if sizes.equal >= EQUAL:
            if Code.IDS_RENUMBERED in self.undone:
                return "laundered"
            if not sizes.embedding_equal:
                return "finetune"
            if not _changed(self.a, self.b):
                return "identical"
            same_size = self.a.facts.parameters == self.b.facts.parameters and not _split_otherwise(self.a, self.b)
            return "finetune" if same_size and not self.tower_apart else "related"
        if self.dequantized:
            return "quantized"
        return "finetune" if "" != self.a.facts.precision == self.b.facts.precision else "recast"

    @property
    def dequantized(self) -> str | None:
        """ "A" or "B" if that model holds the other one's quantized values, rounded to half precision; else None."""
        s = self.sizes
        half = "B" if s.held_a == "f32" else "A"
        full, precision = (s.grid_a, s.held_b) if half == "B" else (s.grid_b, s.held_a)
        wider = "f32" in (s.held_a, s.held_b) and precision in ("f16", "bf16")
        return half if wider and full >= ON_GRID and s.near >= EQUAL else None

    def _on_a_grid(self) -> str | None:
        around = self.sizes.half_step
        if not self.whole or around is None or not (around.rounded or around.compensated):
            return None
        return "quantized"

    @property
    def made_of_grid(self) -> str | None:
        """ "A" or "B" if that model's values are the other one's quantized values, moved a little; else None."""
        if self.sizes.half_step is None or not self.sizes.half_step.inside or not self.whole:
            return None
        return "B" if self.sizes.around == "A" else "A"

    def _other_shape(self) -> str | None:
        """`upscaled` or `pruned`: depths differ and the shallower is in the deeper one; or the widths do."""
        a, b = self.a.facts, self.b.facts
        main = [p for p, _ in self.matches if p.stack == a.main]
        if a.layers == b.layers:
            narrower = a.hidden != b.hidden or self.widths[0] != self.widths[1]
            return "pruned" if self.neurons and narrower else None
        deep, shallow = {p.a for p in main}, {p.b for p in main}
        if a.layers < b.layers:
            deep, shallow = shallow, deep
        fewer, more = sorted((a.layers, b.layers))
        if not main or not fewer or len(shallow) < fewer:
            return None
        return "upscaled" if len(deep) == more and len(deep) > len(shallow) else "pruned"

    @property
    def widths(self) -> tuple[int, int]:
        """Neurons of the widest MLP of each model, from the weights; 0 if unknown."""
        return _width(self.a), _width(self.b)

    def caveats(self, relation: str) -> tuple[Reason, ...]:
        """What else a linked pair could be, where its label says more than the evidence does."""
        if self.imported:
            basis = Reason.of(Code.GAINS_ONLY if self.by_gains else Code.SAMPLES_ONLY)
            return (basis,) if relation == "identical" else (basis, *self._start())
        if self.cut or (self.beside and self.whole and self.sizes.equal >= EQUAL):
            return (Reason.of(Code.LEFT_OUT, because=self.beside),)
        equal = self.sizes.equal >= EQUAL and self.whole and self.sizes.embedding_equal
        if relation == "related" and equal and not self.upcycled:
            return (self.tower_apart or Reason.of(Code.OTHER_WEIGHTS_DIFFER),)
        if relation == "shared-ancestor":
            only = Code.TABLE_ONLY if self.sizes.embedding_equal else Code.BASIS_ONLY
            return Reason.of(only), Reason.of(Code.START_NOT_EXCLUDED)
        if relation == "identical" and None in (self.a.content_sha256, self.b.content_sha256):
            return (Reason.of(Code.READ_IN_PART),)
        if relation == "identical" and self.a.content_sha256 != self.b.content_sha256:
            return (Reason.of(Code.DIFFERENCE_ELSEWHERE),)
        if relation == "pruned" or (relation == "related" and self.upcycled):
            return (Reason.of(Code.GROWN_POSSIBLE),)
        if relation == "related" and self.by_gains:
            return Reason.of(Code.GAINS_ONLY), *self._start()
        if relation == "related" and self.exact and not self.undone:
            return Reason.of(Code.PARTLY), Reason.of(Code.START_NOT_EXCLUDED)
        more = {"continued": (Reason.of(Code.START_NOT_EXCLUDED),), "related": (Reason.of(Code.PARTLY),)}
        adapter = (Reason.of(Code.OR_ADAPTER),) if relation == "finetune" and self.low_rank is None else ()
        return more.get(relation, ()) + self._steps(relation) + adapter

    def _start(self) -> tuple[Reason, ...]:
        return () if self.trained_together else (Reason.of(Code.START_NOT_EXCLUDED),)

    def _steps(self, relation: str) -> tuple[Reason, ...]:
        """What the half-step test found, of pairs that quantization and training alone may have made."""
        sizes, around = self.sizes, self.sizes.half_step
        if relation not in STEPPED:
            return ()
        if relation == "quantized" and (half := self.dequantized):
            return (Reason.of(Code.DEQUANTIZED, full=_other(half), half=half),)
        if around is None:
            return (Reason.of(Code.BOTH_ON_GRIDS),) if min(sizes.grid_a, sizes.grid_b) >= ON_GRID else ()
        if around.n < MIN_VALUES:
            return ()
        if relation == "quantized":
            return half_steps(around), Reason.of(Code.SIBLING_POSSIBLE if around.rounded else Code.COMPENSATED)
        percent, n = 100 * around.share, around.n
        if self.made_of_grid:
            return (Reason.of(Code.NEAR_GRID, percent=percent, n=n),)
        side, other = sizes.around, _other(sizes.around)
        return (Reason.of(Code.OTHER_GRID, side=side, other=other, percent=percent, n=n),)


def _other(side: str) -> str:
    return "B" if side == "A" else "A"


def half_steps(around: Residual) -> Reason:
    """What the half-step test found."""
    return Reason.of(Code.HALF_STEPS, percent=100 * around.share, n=around.n)


def _width(fp: Fingerprint) -> int:
    return int(fp.neurons.widths.max(initial=0)) if fp.neurons is not None else 0


def _changed(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two models are known to differ in more than heads and poolers; one more or less of these is no change.

    Where one was read in part, files of the same sizes with other digests say so.
    """
    if a.content_sha256 is not None and b.content_sha256 is not None:
        one_more = a.facts.parameters != b.facts.parameters and a.core_sha256 == b.core_sha256 is not None
        return a.content_sha256 != b.content_sha256 and not one_more
    ours, theirs = (sorted((f.size, str(f.sha256)) for f in fp.files if f.sha256) for fp in (a, b))
    whole = len(ours) == len(a.files) and len(theirs) == len(b.files)
    return whole and ours != theirs and [size for size, _ in ours] == [size for size, _ in theirs]


def _split_otherwise(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether matrices are known in one of two models that the other one has, if it has them, in fused tensors."""
    return a.blocks is not None and b.blocks is not None and set(a.blocks.keys) != set(b.blocks.keys)


def _kept_order(neurons: Sequence[tuple[LayerPair, Agreement]]) -> bool:
    """Whether neurons that were found again follow each other as before; some may have been taken out."""
    rises, steps = 0, 0
    for _, found in neurons:
        order = np.argsort(found.units_a, kind="stable")
        after = np.diff(found.units_b[order])
        rises, steps = rises + int((after > 0).sum()), steps + after.size
    return rises >= IN_ORDER * steps


def _flat_gains(fp: Fingerprint) -> bool | None:
    """Whether every norm of a layer is constant, as after folding; None without norms."""
    if fp.nlf is None or not fp.nlf.sizes.size:
        return None
    pieces = np.split(fp.nlf.values.astype(np.float64), np.cumsum(fp.nlf.sizes)[:-1])
    inner = [p for p, name in zip(pieces, fp.nlf.names, strict=True) if any(c.isdigit() for c in name)]
    return bool(inner) and all(float(np.ptp(p)) < 1e-3 * max(float(np.abs(p).max()), 1e-9) for p in inner)


def low_rank(a: HiddenPanels | None, b: HiddenPanels | None, matches: Matches, held: str = "") -> bool | None:
    """Whether the differences of units at equal places have low rank, as those of a merged adapter do; None if that
    cannot be seen.

    held: the precision of the changed model's matrices. Only panels of one matrix are asked (values; MLPs without a
    gate), up to six, and only where rounding hides no more than that. Their rows have length one, so each is first
    brought back to the scale that makes the difference most nearly of low rank.
    """
    if a is None or b is None or a.width != b.width:
        return None
    both_ways = [(_beyond_rank(x, y, held), _beyond_rank(y, x, held)) for x, y in _single(a, b, matches)]
    found = [max(there, back) for there, back in both_ways if there is not None and back is not None]
    return float(np.quantile(found, 0.9)) <= 0.0 if found else None


def _single(a: HiddenPanels, b: HiddenPanels, matches: Matches) -> list[tuple[F64, F64]]:
    """Panels at corresponding places that are of one matrix, (rows, 128) of both; up to six, evenly spread."""
    there = {(k.kind, k.stack, k.layer, k.expert): j for j, k in enumerate(b.keys)}
    to = {(p.stack, p.a): p.b for p, _ in matches}
    pairs = []
    for i, key in enumerate(a.keys):
        j = there.get((key.kind, key.stack, to.get((key.stack, key.layer), -1), key.expert))
        if j is not None and key.kind == "v":
            height = int(min(a.heights[i], b.heights[j]))
            pairs.append((a.values[i, :height].astype(np.float64), b.values[j, :height].astype(np.float64)))
    return pairs[:: -(-len(pairs) // MOST_PANELS) or 1]


def _beyond_rank(x: F64, y: F64, held: str) -> float | None:
    """Energy of the difference beyond a quarter of its components, less what rounding explains: above 0 if the rank is
    higher; None where rounding could hide that it is.
    """
    rank = min(MOST_RANK, len(x) // 4)
    noise = (PANEL_ROUNDING + ROUNDING.get(held, 0.0)) * float((x**2).sum())
    scale = np.ones(len(x))
    for _ in range(SCALINGS):
        across = np.linalg.svd(scale[:, None] * y - x, full_matrices=False)[2][:rank]
        left, right = (side - side @ across.T @ across for side in (x, y))
        scale = (left * right).sum(axis=1) / np.maximum((right**2).sum(axis=1), 1e-30)
    energies = np.linalg.svd(scale[:, None] * y - x, compute_uv=False) ** 2
    total = float(energies.sum())
    if rank < MIN_RANK or 2 * noise > HIDDEN_BY_ROUNDING * total:
        return None
    return float(energies[rank:].sum()) - BEYOND * total - 2 * noise
