"""A gate: does a model descend from something that a policy denies? Five answers, of which one at a time decides.

| state | meaning |
|---|---|
| `denied` | a row that the rule names is linked to the model, and nothing shows that it is no ancestor |
| `inconclusive` | nothing that ran would have seen a reordered, rotated and resized copy, or weights were left out |
| `relative` | linked, but a descendant or a sibling of the model, as an indexed common ancestor shows |
| `not_comparable` | no transform short of retraining leads from one design to the other |
| `cleared` | a test ran that would have seen such a copy, and saw nothing |

They stand in the order in which they decide: of several rows that a rule names, the first state that one of them has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial

import numpy as np

from provindex.audit.policy import Ignored, Policy
from provindex.audit.relative import MOST_ROOTS, is_relative
from provindex.audit.rules import Rule
from provindex.common.errors import UsageError
from provindex.common.reasons import LEFT_OUT, SPOILED, Code, Reason, distinct, left_out
from provindex.evidence.anchors import STRINGS
from provindex.evidence.whole_layers import WholeLayers
from provindex.fingerprint.record import IMPORTED, NORMS, UNNAMED, Fingerprint
from provindex.index.answer import Match, QueryResult
from provindex.index.collection import Index
from provindex.index.entries import Entry, Key
from provindex.verdict.descent import KIN
from provindex.verdict.pair import LOG10_CONFORMAL, Pair, compare

STATES = ("denied", "inconclusive", "relative", "not_comparable", "cleared")
EXIT = {"passed": 0, "failed": 1, "inconclusive": 3}
# Reasons of a pair with MLPs of two kinds that leave no copy unseen: other codes say that something is hidden.
OF_TWO_KINDS = frozenset(
    {
        Code.MLP_KINDS_DIFFER, Code.WIDTHS_DIFFER, Code.NOT_RANKED, Code.WOULD_BE_LINKED, Code.REORDERED_NOT_SEEN,
        Code.ANCESTOR_NOT_SOUGHT, Code.COMMON_FEW, Code.ANCHORS_NEED_TOKENIZER, Code.GAINS_NEVER_CLEAR,
        Code.NO_EMBEDDING, Code.NO_COMMON_BLOCK,
    }
)  # fmt: skip
Towers = Sequence[tuple[str, Sequence[Fingerprint]]]  # parts that may be models of their own: name, readings


@dataclass(frozen=True, slots=True)
class Judged:
    """What is so of one row that a rule names. reason: of the state."""

    entry: Entry
    state: str
    reason: Reason


@dataclass(frozen=True)
class Denial:
    """What is so of one rule. id: the rule as it was written. state, reason: of the row that decides."""

    id: str
    state: str
    reason: Reason
    rows: tuple[Judged, ...] = ()

    @property
    def status(self) -> int:
        """What the command would exit with for it alone, where nothing is waived."""
        return {"denied": 1, "inconclusive": 3}.get(self.state, 0)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many rows have each state."""
        found = Counter(row.state for row in self.rows)
        return {state: found[state] for state in STATES}


@dataclass(frozen=True)
class Gate:
    """The outcome of a policy for one model.

    denied: one entry a rule, and one a linked model that is not on the list of allowed ones. ignored: exceptions, with
    the linked rows that they accept and whether they hold today. own_bytes: whether the model's own weights were read,
    not a row that stands for them. excluded: what the user let be left out.
    """

    policy: Policy
    denied: tuple[Denial, ...]
    ignored: tuple[tuple[Ignored, bool, tuple[Entry, ...]], ...] = ()
    own_bytes: bool = True
    excluded: tuple[Reason, ...] = ()

    @cached_property
    def status(self) -> str:
        """ "passed", "failed" or "inconclusive", whatever the policy makes of the last."""
        states = {one.state for one in self.denied}
        if "denied" in states:
            return "failed"
        open_ones = {"inconclusive"} | ({"not_comparable"} if self.policy.on_not_comparable != "pass" else set())
        return "inconclusive" if states & open_ones else "passed"

    @property
    def exit_status(self) -> int:
        if self.status != "inconclusive":
            return EXIT[self.status]
        effects = {"inconclusive": self.policy.on_inconclusive, "not_comparable": self.policy.on_not_comparable}
        fails = any(effects.get(one.state) == "fail" for one in self.denied)
        return EXIT["inconclusive"] if fails else 0


def check_rules(policy: Policy, index: Index) -> None:
    """UsageError for a rule that names nothing: no row, and no model that the catalogue knows."""
    for rule in (*policy.deny, *policy.allow, *(one.rule for one in policy.ignore)):
        if not rule.rows(index) and not rule.is_published:
            alike = rule.suggestions(index)
            hint = f"Did you mean {' or '.join(alike)}?" if alike else "`provindex index list` lists what it has."
            what = "model or family" if rule.kind == "id" else rule.kind
            raise UsageError(f"The index and the catalogue have no {what} {rule.pattern}.", hint)


def gate(
    result: QueryResult,
    policy: Policy,
    index: Index,
    today: date,
    *,
    towers: Towers = (),
    own_bytes: bool = True,
    excluded: Sequence[Reason] = (),
) -> Gate:
    """What a query's answer says of a policy.

    The answer must have compared the rows that are denied: `Index.query(..., also=policy.asked_for(index))`. today: for
    exceptions that expire. towers: parts of the model that the query did not compare with the rows. own_bytes,
    excluded: as in `Gate`.
    """
    judge = _Judge(result, policy, index, towers)
    linked_rows = [e for m in result.linked for e in (m.entry, *m.copies)]
    ignored = [(one, one.holds(today), tuple(e for e in linked_rows if one.names(e))) for one in policy.ignore]
    denied = [found for rule in policy.deny if (found := judge.rule(rule, today)) is not None]
    if policy.allow:
        denied += judge.others(today)
    return Gate(policy, tuple(denied), tuple(ignored), own_bytes, tuple(excluded))


def state_of(pair: Pair, query: Fingerprint) -> tuple[str, Reason]:
    """The state of a pair by itself, A being the model in question: `denied` wherever the two are linked."""
    if pair.verdict == "linked":
        return "denied", Reason.of(Code.DENIED_LINKED, relation=pair.relation or "")
    apart = query.absences.get(STRINGS)  # then what rests on the tokenizer would not have seen a copy
    if pair.verdict == "unrelated" and not pair.plain_order_only and apart is None:
        return "cleared", Reason.of(Code.DENIED_UNRELATED, because=pair.reasons)
    if (
        apart is None
        and pair.kinds_differ
        and {reason.code for reason in pair.reasons} <= OF_TWO_KINDS
        and not _may_imitate(query)
    ):
        if alike := _layers_alike(pair):
            return "inconclusive", Reason.of(Code.DENIED_UNTESTED, because=(alike, *pair.reasons))
        return "not_comparable", Reason.of(Code.DENIED_NOT_COMPARABLE)
    code = Code.DENIED_PLAIN_ORDER if pair.plain_order_only else Code.DENIED_UNTESTED
    because = pair.reasons if apart is None else (apart, *pair.reasons)
    return "inconclusive", Reason.of(code, because=because)


def with_towers(
    found: tuple[str, Reason], towers: Towers, row: Fingerprint, compare: Callable[[Fingerprint, Fingerprint], Pair]
) -> tuple[str, Reason]:
    """The state of a pair after the towers of A were compared with B as well: the first state that one of them has.

    A tower is `denied` if one reading of it is; else it has the state of the reading that says most.
    """
    for name, readings in towers:
        states = [state_of(compare(reading, row), reading) for reading in readings]
        linked = [one for one in states if one[0] == "denied"]
        state, reason = linked[0] if linked else max(states, key=lambda one: STATES.index(one[0]))
        if STATES.index(state) < STATES.index(found[0]):
            found = state, Reason.of(Code.DENIED_TOWER, tower=name, because=[reason])
    return found


def _layers_alike(pair: Pair) -> Reason | None:
    """That layers of two models with MLPs of different kinds do more alike than those of strangers: then the kind may
    be a disguise (the gate's rows among the heads of an attention, say). None if they do not.
    """
    found = pair.evidence["branch_sketch"]
    if found.conformal is None or found.conformal > LOG10_CONFORMAL:
        return None
    because = pair.evidence["triple_agreement"].reasons
    return Reason.of(Code.LAYERS_UNCONFIRMED_ABSENT, sketch=found.value or 0.0, because=because)


def _may_imitate(query: Fingerprint) -> bool:
    """Whether the model's MLPs may be those of the other kind: gated ones, of which one factor is held at a constant by
    biases; or something in it has no known role.
    """
    whole = query.value("whole_layers")
    if whole is None or UNNAMED in query.absences or query.roles == "inferred":
        return True
    vectors = query.value("vectors")
    parts = [v.address.split(".") for v in vectors.vectors] if vectors is not None else []
    biases = [p for p in parts if p[-1] == "bias" and (p[-2] == "up" or p[-2].startswith("norm"))]
    return whole.parts == 3 and (bool(biases) or _alike_rows(whole))


def _alike_rows(whole: WholeLayers) -> bool:
    """Whether the gate rows, or the up rows, of most neurons point one way: a factor that hardly depends on the input
    may be a constant. True where no signs tell.
    """
    table = whole.by_string if whole.by_string is not None else whole.by_id
    if table is None:
        return True
    either = np.minimum(table[:, :2], ~table[:, :2])  # a row and its negative read the same
    return any(2 * np.unique(words).size < words.size for words in either.T)


class _Judge:
    """One answer, asked about many rules. Rows are judged once."""

    def __init__(self, result: QueryResult, policy: Policy, index: Index, towers: Towers) -> None:
        self.result, self.policy, self.index, self.towers = result, policy, index, towers
        self.compare = partial(compare, models=len(index), calibration=index.calibration)
        found = [(e, m) for m in (*result.linked, *result.candidates) for e in (m.entry, *m.copies)]
        self.matches: dict[Key, Match] = {e.key: m for e, m in found}
        self.rows = {rule: rule.rows(index) for rule in policy.deny}
        self.denied_keys = {e.key for rows in self.rows.values() for e in rows}
        self.known: dict[Key, Judged] = {}

    def rule(self, rule: Rule, today: date) -> Denial | None:
        """The state of a rule: that of the row which decides; None if nothing is left of it but accepted rows."""
        rows = self.rows[rule]
        if not rows:
            return Denial(rule.text, "inconclusive", Reason.of(Code.DENIED_NOT_INDEXED))
        judged = self._together([self._row(entry) for entry in rows])
        failing = ("denied", "inconclusive")
        judged = [row for row in judged if row.state not in failing or not self.policy.ignored(row.entry, today)]
        if not judged:
            return None
        first = min(judged, key=lambda row: STATES.index(row.state))
        reason = first.reason
        if first.entry.model_id != rule.pattern:
            if reason.code is Code.DENIED_LINKED:
                reason = replace(
                    reason, code=Code.DENIED_MEMBER_LINKED, figures=_with(reason, member=first.entry.label)
                )
            elif reason.code is not Code.DENIED_UNRELATED:
                reason = reason.about(first.entry.label)
        return Denial(rule.text, first.state, reason, tuple(judged))

    def others(self, today: date) -> list[Denial]:
        """What is linked and not allowed; and, where that cannot be told, that it cannot."""
        allowed = {e.key for rule in self.policy.allow for e in rule.rows(self.index)}
        out: list[Denial] = []
        open_ones: list[Judged] = []
        apart: list[Judged] = []
        for key, match in self.matches.items():
            entry = next(e for e in (match.entry, *match.copies) if e.key == key)
            if key in allowed or self.policy.ignored(entry, today) or key in self.denied_keys:
                continue
            row = self._row(entry)
            if row.state == "denied":
                out.append(Denial(entry.label, "denied", Reason.of(Code.NOT_ALLOWED, because=[row.reason]), (row,)))
            elif row.state == "inconclusive":
                open_ones.append(row)
            elif row.state == "not_comparable":
                apart.append(row)
        if apart and self.policy.on_not_comparable != "pass":
            out.append(Denial(OTHERS, "not_comparable", apart[0].reason, tuple(apart)))
        if open_ones:
            why = distinct([row.reason.about("") for row in open_ones])
            reason = Reason.of(Code.OTHERS_UNTESTED, because=why, n=len(open_ones))
            out.append(Denial(OTHERS, "inconclusive", reason, tuple(open_ones)))
        elif left := self.result.coverage.of_width:
            out.append(Denial(OTHERS, "inconclusive", Reason.of(Code.WIDTH_NOT_COMPARED, n=left)))
        elif not self.result.linked and self.result.status != "none" and self.result.own is None:
            out.append(Denial(OTHERS, "inconclusive", Reason.of(Code.NOTHING_FOUND)))
        return out

    def _together(self, rows: Sequence[Judged]) -> list[Judged]:
        """The same rows; a row that says less than a cleared one of the same model decides nothing, and rows of one
        commit that hold different weights cannot both be right.
        """
        cleared = [row.entry for row in rows if row.state == "cleared"]
        kept = [row for row in rows if row.state != "inconclusive" or not _says_less(row.entry, cleared)]
        contents: dict[tuple[str, str | None, str], set[str]] = {}
        for row in rows:
            content = row.entry.row["content_sha256"]
            if content:
                commit = (row.entry.model_id, row.entry.revision, row.entry.variant)
                contents.setdefault(commit, set()).add(content)
        torn = {commit for commit, found in contents.items() if len(found) > 1}
        return [
            replace(row, state="inconclusive", reason=Reason.of(Code.DENIED_ROWS_DISAGREE, model=row.entry.label))
            if (row.entry.model_id, row.entry.revision, row.entry.variant) in torn and row.state != "denied"
            else row for row in kept
        ]  # fmt: skip

    def _row(self, entry: Entry) -> Judged:
        if entry.key not in self.known:
            self.known[entry.key] = Judged(entry, *self._state(entry))
        return self.known[entry.key]

    def _state(self, entry: Entry) -> tuple[str, Reason]:
        own, query = self.result.own, self.result.query
        if own is not None and own.key == entry.key:
            return "denied", Reason.of(Code.DENIED_ITSELF)
        match = self.matches.get(entry.key)
        if match is None:
            return "inconclusive", Reason.of(Code.DENIED_NOT_COMPARED)
        state, reason = state_of(match.pair, query)
        row: Fingerprint | None = None
        if state == "denied":
            row = entry.load()
            state, reason = self._linked(match, row, reason)
            if state == "denied":
                return state, reason
        if self.towers:
            row = row if row is not None else entry.load()
            state, reason = with_towers((state, reason), self.towers, row, self.compare)
        unseen = left_out(query.warnings, LEFT_OUT | SPOILED)
        if state not in ("denied", "inconclusive") and unseen:
            return "inconclusive", Reason.of(Code.DENIED_LEFT_OUT, because=unseen)
        return state, reason

    def _linked(self, match: Match, denied: Fingerprint, reason: Reason) -> tuple[str, Reason]:
        """The state of a linked row: `relative` if a common ancestor shows that the model holds nothing of it."""
        relation = match.pair.relation or ""
        if self.policy.deny_related or match.entry.variant or relation not in KIN or match.pair.undone:
            return "denied", reason
        held: dict[float, str] = {}
        for root in self._roots(match.entry):
            apart, share = is_relative(self.result.query, root, denied)
            if apart:
                return "relative", Reason.of(Code.DENIED_RELATIVE, relation=relation, root=root.label)
            if share is not None:
                held[share] = root.label
        if held:
            share = min(held)
            return "denied", Reason.of(Code.DENIED_HOLDS, relation=relation, root=held[share], share=round(share, 4))
        return "denied", reason

    def _roots(self, denied: Entry) -> Iterable[Fingerprint]:
        """Linked rows that are not denied, the row of the model itself first."""
        own = self.result.own
        linked = [own] if own is not None else []
        linked += [m.entry for m in self.result.linked if not m.pair.undone]
        free = [e for e in linked if e.key not in self.denied_keys and e.model_id != denied.model_id]
        return (entry.load() for entry in free[:MOST_ROOTS])


OTHERS = "*"  # the id of what stands for all that is neither allowed nor named


def _with(reason: Reason, **more: str) -> tuple[tuple[str, int | float | str], ...]:
    return tuple(sorted({**dict(reason.figures), **more}.items()))


def _says_less(entry: Entry, cleared: Sequence[Entry]) -> bool:
    """Whether a row of the same model that says more was cleared: more than an imported row, which has no revision, and
    than norms of the same commit. Two rows without a revision may be of two models that have one name.
    """
    mode = entry.row["mode"]
    same = [other for other in cleared if other.model_id == entry.model_id]
    if mode == NORMS:
        commit = (entry.revision, entry.variant)
        return entry.revision is not None and any((other.revision, other.variant) == commit for other in same)
    return mode == IMPORTED and bool(same)
