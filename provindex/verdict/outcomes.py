"""The outcomes of the tests of a pair, each made when it is first asked for.

Where an exact test links two models, the aligned ones decide nothing: they are for whoever reads the answer, and cost
ten times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from provindex.common.reasons import Code, Reason, distinct
from provindex.common.score import Outcome, absent
from provindex.common.tables import Test
from provindex.evidence.pairing import Pairing
from provindex.evidence.table import TESTS
from provindex.fingerprint.record import Fingerprint

Rank = Callable[[str, Outcome], Outcome]
UNREAD = frozenset({Reason.of(Code.NEEDS_WEIGHTS), Reason.of(Code.TOKENIZER_UNREAD)})  # by the mode of reading
_TESTS = {test.name: test for test in TESTS}


class Outcomes(Mapping[str, Outcome]):
    """Outcomes by the names of their tests, in the order of the table.

    pair: what is compared. rank: ranks an aligned outcome that has a value among unrelated pairs; None: they are not
    ranked. more: outcomes of tests that somebody else ran. again: loads the second model anew, so that the fingerprints
    need not be kept until something more is asked for; None: they are kept.
    """

    def __init__(
        self,
        pair: Pairing,
        rank: Rank | None,
        more: Mapping[str, Outcome],
        again: Callable[[], Fingerprint] | None = None,
    ) -> None:
        self._made = dict(more)
        self._names = (*(test.name for test in TESTS), *more)
        self._pair: Pairing | None = pair
        self._kept, self._rank, self._again = (pair.a, pair.stacks, pair.common_blocks), rank, again

    def __getitem__(self, name: str) -> Outcome:
        if name not in self._made:
            self._made[name] = self._outcome(_TESTS[name])
            self._pair = self._pair if len(self._made) < len(self) else None
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(dict(self))

    def to_keep(self) -> Mapping[str, Outcome]:
        """The same without the fingerprints, if the second can be loaded anew; else all outcomes, made now."""
        if self._again is None:
            return dict(self)
        self._pair = None
        return self

    def _outcome(self, test: Test) -> Outcome:
        if self._pair is None:  # whoever asks for one asks for all: it is loaded once
            assert self._again is not None
            a, stacks, common_blocks = self._kept
            self._pair = Pairing(a, self._again(), stacks, common_blocks)
        pair = self._pair
        outcome = _explained(test.run(pair), pair.a, pair.b, test.lacks)
        ranked = test.tier == "aligned" and outcome.value is not None and self._rank is not None
        return self._rank(test.name, outcome) if ranked and self._rank is not None else outcome


def _explained(outcome: Outcome, a: Fingerprint, b: Fingerprint, name: str) -> Outcome:
    why = why_absent(a, b, name)
    return absent(*why) if outcome.reasons and why else outcome


def why_absent(a: Fingerprint, b: Fingerprint, name: str) -> tuple[Reason, ...]:
    """What the fingerprints say of something that they lack, each reason about its model."""
    found = [(fp.model_id, fp.absences[name]) for fp in (a, b) if name in fp.absences]
    if len(found) == 2 and found[0][1] == found[1][1] in UNREAD:
        return (found[0][1],)
    return distinct([reason.about(model_id) for model_id, reason in found])
