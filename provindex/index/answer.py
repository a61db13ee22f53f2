"""What a query answers: candidates after re-verification, families, and what else a reader must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from provindex.catalogue.alike import Neighbour
from provindex.common.errors import printable
from provindex.common.reasons import Code, Reason, distinct
from provindex.evidence.merge import MAX_CANDIDATES
from provindex.fingerprint.record import IMPORTED, Fingerprint
from provindex.index.entries import Entry, IndexInfo, Key
from provindex.verdict.descent import TRAINED_ON, Relative, Sampled, directions, parents_of, sampled
from provindex.verdict.pair import Pair
from provindex.verdict.quantized_source import source_among


@dataclass(frozen=True, repr=False)
class Match:
    """A candidate after re-verification. pair: A is the query, B the candidate; direction is the candidate's role.

    copies: other rows of the same weights, which were not compared on their own.
    """

    entry: Entry
    pair: Pair
    rank: int
    score: float
    copies: tuple[Entry, ...] = ()

    def __repr__(self) -> str:
        pair = ", ".join(filter(None, (self.pair.verdict, self.pair.relation, self.direction)))
        return printable(f"<Match {self.entry.label}: {pair}>")

    @property
    def direction(self) -> str | None:
        """The candidate's role: "ancestor" means that the query descends from it.

        A variant (the same id in another dress) is never called an ancestor of its source.
        """
        flipped = {"ancestor": "descendant", "descendant": "ancestor"}
        return flipped.get(self.pair.direction or "", self.pair.direction)


@dataclass(frozen=True)
class Family:
    """Matches of one weight lineage: the closest of them, how many matched, how many the index has of it."""

    family: str
    best_model_id: str
    matches: int
    models: int
    log10_p: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far an answer reaches; counts of rows, without the query's own.

    models: in the index. tested: compared by a test that sees a changed copy, also in another order and basis.
    plain_order: tested for copies in plain order only. untested: compared, and no such test could run. alike: of those
    that were compared, the ones that look as if the query could descend from them (catalogue/alike.py) or that it
    claims as parents; alike_tested: of these, the tested ones. same_type: of those that were compared, the ones of the
    query's model type. of_width: rows of the query's residual width that were not compared.
    """

    models: int
    tested: int
    plain_order: int
    untested: int
    alike: int
    alike_tested: int
    same_type: int
    of_width: int = 0

    @property
    def compared(self) -> int:
        return self.tested + self.plain_order + self.untested


@dataclass(frozen=True, repr=False)
class QueryResult:
    """The answer to a query.

    linked: every linked candidate, closest first. matches: the first `top` of them. candidates: the others that were
    compared, in order of retrieval. status: "decided" if something is linked; "none" if nothing is, and every model
    that looks like an ancestor or is claimed as one was tested, at least one of them; else "inconclusive". neighbours:
    models of the catalogue that look like ancestors, and claimed parents, of which the index has no row; most alike
    first.
    """

    query: Fingerprint
    index: IndexInfo
    linked: tuple[Match, ...]
    candidates: tuple[Match, ...]
    families: tuple[Family, ...]
    status: str
    top: int
    own: Entry | None
    settings: Mapping[str, object]
    coverage: Coverage
    neighbours: tuple[Neighbour, ...] = ()
    warnings: tuple[Reason, ...] = ()

    def __repr__(self) -> str:
        first = f", first {self.linked[0].entry.label}" if self.linked else ""
        counts = f"{len(self.linked)} linked of {self.coverage.compared}"
        return printable(f"<QueryResult {self.query.label}: {self.status}, {counts}{first}>")

    @property
    def matches(self) -> tuple[Match, ...]:
        return self.linked[: self.top]


def variant_rule(fp: Fingerprint, entry: Entry, pair: Pair) -> Pair:
    """A variant is the same model in another dress: never an ancestor of its source."""
    same_model = fp.model_id == entry.model_id and fp.variant != entry.variant
    wrong = (pair.direction == "descendant" and not fp.variant) or (pair.direction == "ancestor" and not entry.variant)
    return replace(pair, direction="unknown") if same_model and wrong else pair


def with_parents(fp: Fingerprint, matches: list[Match], weights: Mapping[Key, Sampled]) -> list[Match]:
    """The same matches; if the query is a merge of some, those are its ancestors, by `merge`, and so is its base.

    weights: samples of those that training may have made of each other.
    """
    kin = [m for m in matches if m.entry.key in weights and m.pair.relation in TRAINED_ON][:MAX_CANDIDATES]
    merged = parents_of(sampled(fp), [weights[m.entry.key] for m in kin])
    if merged is None:
        return matches
    renamed: dict[Key, Pair] = {}
    for parent in merged.parents:
        code = Code.MERGED_PART if merged.base is None else Code.MERGED_CHANGES
        why = Reason.of(code, parents=len(merged.parents), coefficient=parent.coefficient)
        pair = replace(kin[parent.candidate].pair, relation="merge", direction="descendant")
        renamed[kin[parent.candidate].entry.key] = replace(pair, reasons=(why,))
    if merged.base is not None:
        renamed[kin[merged.base].entry.key] = replace(kin[merged.base].pair, direction="descendant")
    return [replace(m, pair=renamed.get(m.entry.key, m.pair)) for m in matches]


def with_source(fp: Fingerprint, matches: list[Match], weights: Mapping[Key, Sampled]) -> list[Match]:
    """The same matches; of those that a quantized query may have been made of, only the nearest stay `quantized`.

    weights: samples of those that training or quantization may have made of each other.
    """
    relatives = [(m.entry.label, m.pair, weights.get(m.entry.key, (None, None))[0]) for m in matches]
    return [replace(m, pair=pair) for m, pair in zip(matches, source_among(fp.blocks, relatives), strict=True)]


def with_directions(fp: Fingerprint, matches: list[Match], weights: Mapping[Key, Sampled]) -> list[Match]:
    """The same matches; their directions as far as they agree with what the other ones show.

    Not those of a merge, nor where one of the two lies on quantization grids: rounding moved more than training.
    """
    if any(m.pair.relation == "merge" for m in matches):
        return matches
    known = [m for m in matches if m.entry.key in weights and not m.pair.around]
    found = directions(sampled(fp), [
        Relative(m.pair.relation, m.pair.direction, m.pair.direction_reasons, m.pair.layer_map, weights[m.entry.key])
        for m in known
    ])  # fmt: skip
    roles = {m.entry.key: role for m, role in zip(known, found, strict=True)}
    return [
        replace(m, pair=replace(m.pair, direction=roles[m.entry.key][0], direction_reasons=roles[m.entry.key][1]))
        if m.entry.key in roles else m for m in matches
    ]  # fmt: skip


SAMPLES_SAY = 0.1  # cosine of samples below which a laundered relative's order is another's: noise


IN_DISGUISE = ("triple_agreement", "branch_sketch", "neuron_signs")  # orders laundered relatives, one after another


def closeness(match: Match) -> tuple[bool, bool, float, bool, float, float, float, float, str]:
    """Copies first, then what a quantized query was made of, then by the cosine of the samples; where it is as near,
    a row of ours before an imported one, whose evidence says less. Of laundered relatives samples say nothing: those of
    which most neurons are found again come first, then those whose layers do most nearly the same.
    """
    pair = match.pair
    source = pair.relation == "quantized" and pair.direction != "ancestor"
    imported, near = match.entry.row["mode"] == IMPORTED, pair.closeness
    near = 0.0 if pair.undone and near < SAMPLES_SAY else near
    return (
        pair.relation != "identical",
        not source,
        -round(near, 2),
        imported,
        -round(near, 4),
        *(-_value(pair, test) if pair.undone else 0.0 for test in IN_DISGUISE),
        pair.log10_p or 0.0,
        match.entry.label,
    )


def _value(pair: Pair, test: str) -> float:
    return pair.evidence[test].value or 0.0


def coverage_of(
    linked: Sequence[Match],
    rest: Sequence[Match],
    models: int,
    alike: Callable[[Entry], bool],
    model_type: str,
    of_width: int,
) -> Coverage:
    """What was tested. models: rows besides the query's own. alike: whether a row looks like an ancestor. of_width: of
    all rows, those of the query's width.
    """
    found = [*linked, *rest]
    tested = {m.entry.key for m in found if m.pair.verdict != "inconclusive" and not m.pair.plain_order_only}
    near = [m.entry.key for m in found if alike(m.entry)]
    plain = sum(m.pair.plain_order_only for m in rest)
    return Coverage(
        models, len(tested), plain, len(found) - len(tested) - plain, len(near), len(tested & set(near)),
        sum(m.entry.row["architecture"] == model_type for m in found), of_width,
    )  # fmt: skip


def status_of(fp: Fingerprint, matches: Sequence[Match], coverage: Coverage, neighbours: Sequence[Neighbour]) -> str:
    """An answer without a match says "none" only if all of the model was compared, and all that looks like an ancestor
    was there, and was tested."""
    if matches:
        return "decided"
    whole = not fp.left_out and 0 < coverage.alike == coverage.alike_tested and not coverage.of_width and not neighbours
    return "none" if whole else "inconclusive"


def warnings_of(
    fp: Fingerprint, matches: Sequence[Match], rest: Sequence[Match], top: int, models: int
) -> tuple[Reason, ...]:
    """What a reader of an answer must know besides the matches."""
    out = list(fp.warnings)
    if len(matches) > top:
        out.append(Reason.of(Code.MORE_MATCHES, n=len(matches) - top, top=top))
    undecided = [m for m in rest if m.pair.verdict == "inconclusive"]
    if undecided:
        why = distinct([reason.about("") for m in undecided for reason in m.pair.reasons])
        out.append(Reason.of(Code.UNTESTED, because=why, n=len(undecided), total=len(matches) + len(rest)))
    plain = sum(m.pair.plain_order_only for m in rest)
    if plain:
        out.append(Reason.of(Code.PLAIN_ORDER, n=plain, total=len(matches) + len(rest)))
    if matches and fp.layers_unread:
        out.append(Reason.of(Code.DISGUISES_NOT_SOUGHT))
    started = [m.entry.label for m in rest if m.pair.relation == "shared-init"]
    if started:
        out.append(Reason.of(Code.STARTED_TOGETHER, models=", ".join(started)))
    if models == 0:
        out.append(Reason.of(Code.INDEX_EMPTY))
    return tuple(out)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The answer of `compare`: both sides, the verdict, and the index whose calibration and ids were used."""

    a: Fingerprint
    b: Fingerprint
    pair: Pair
    index: IndexInfo
    settings: Mapping[str, object]

    def __repr__(self) -> str:
        return printable(f"<Comparison {self.a.label} and {self.b.label}: {self.pair!r}>")

    @property
    def status(self) -> str:
        """ "decided" when linked or unrelated, else "inconclusive"."""
        return "inconclusive" if self.pair.verdict == "inconclusive" else "decided"
