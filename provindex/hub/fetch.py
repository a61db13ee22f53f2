"""Models of the Hub that a query lacks: read a few at a time, in stages, and kept in an index of their own.

What cannot be had of one model does not end the rest. See README.md for the stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from provindex.catalogue.alike import Neighbour
from provindex.catalogue.cost import estimate
from provindex.catalogue.table import Shape
from provindex.common.errors import AccessError, BudgetError, ModelNotFoundError, NetworkError, ProvindexError
from provindex.fingerprint.record import Fingerprint
from provindex.hub.client import Meter, metered
from provindex.index.answer import QueryResult
from provindex.index.replace import replace_rows

LIMIT = 500_000_000  # bytes of one run where nobody says otherwise
NAME = "fetched"  # of the index, and of the origin in its shards
STAGES = ("norms", "sampled: fixed blocks", "sampled: whole layers")
LINKED = 3  # rows that link by their norms and of which more is read, closest first
Answer = TypeVar("Answer", bound=QueryResult)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Planned:
    """A model of which norms and biases (stage 0) will be read. bytes: an estimate of that; first: of fixed blocks too,
    if it links; whole: of whole layers too, if nothing links. depth: the stage up to which a row is here already, which
    costs nothing; None without a row.
    """

    neighbour: Neighbour
    bytes: int
    first: int
    whole: int
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be read, in order. asked: how many models were asked for. limit: bytes of all stages together. over:
    ids that were asked for and do not fit under the limit.
    """

    asked: int
    limit: int
    models: tuple[Planned, ...]
    over: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the norms and biases of all models."""
        return sum(one.bytes for one in self.models)

    @property
    def most(self) -> int:
        """Of everything, if nothing links and all models are read further; the limit if that is less."""
        return min(self.limit, sum(one.whole for one in self.models))


def plan(
    found: Sequence[Neighbour],
    count: int,
    limit: int,
    like: Shape,
    depth: Callable[[str], int | None] = lambda _: None,
    *,
    further: bool = True,
) -> Plan:
    """The first `count` of some neighbours, as far as their stage 0 fits under a limit in bytes.

    like: the shape that is assumed of models that nothing is known of; that of the model that was asked about. depth:
    the stage up to which a row of an id is here already. further: whether more than norms will be read of any.
    """
    models: list[Planned] = []
    over: list[str] = []
    left = limit
    for neighbour in found[:count]:
        shape = neighbour.known.shape if neighbour.known and neighbour.known.shape.hidden else like
        here = depth(neighbour.model_id)
        here = None if here is not None and here < 0 else here  # an imported row cannot be read on
        needs = estimate(shape, "norms") if here is None else 0
        if needs <= left:
            first, whole = (estimate(shape, stage) if further else needs for stage in ("stage 1", "stage 2"))
            models.append(Planned(neighbour, needs, first, whole, here))
            left -= needs
        else:
            over.append(neighbour.model_id)
    return Plan(count, limit, tuple(models), tuple(over))


class State(StrEnum):
    """What became of a model that was asked for."""

    FETCHED = "fetched"
    PRESENT = "present"
    REFUSED = "no-access"
    ABSENT = "not-found"
    NETWORK = "network"
    UNREADABLE = "unreadable"
    BUDGET = "over-budget"


_STATES: tuple[tuple[type[ProvindexError], State], ...] = (  # the first that fits
    (AccessError, State.REFUSED),
    (ModelNotFoundError, State.ABSENT),
    (BudgetError, State.BUDGET),
    (NetworkError, State.NETWORK),
    (ProvindexError, State.UNREADABLE),
)


class Read(Protocol):
    """Reads a model of the Hub in a mode, up to a stage of sampled reading; raises ProvindexError."""

    def __call__(self, model_id: str, *, mode: str, stage: int) -> Fingerprint: ...


@dataclass(frozen=True, slots=True)
class Got:
    """A model that was asked for. state, why: of its last stage; why: one sentence, "" if nothing is wrong. stage: the
    number (of STAGES) up to which its row reaches, None without a row. bytes, requests: of all its stages.
    """

    model_id: str
    state: State
    stage: int | None = None
    bytes: int = 0
    requests: int = 0
    why: str = ""
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spent:
    """What a run read from the Hub. got: each model that was asked for, in order; seconds: of the whole run."""

    plan: Plan
    got: tuple[Got, ...]
    bytes: int
    requests: int
    seconds: float


@dataclass
class Session:
    """One run: its plan, what reads, what counts, where rows are kept, and what came so far, by id.

    read_last: the fingerprint of a model as it was read last.
    """

    plan: Plan
    read: Read
    meter: Meter
    folder: Path
    report: Say
    start: float = field(default_factory=time.perf_counter)
    got: dict[str, Got] = field(default_factory=dict)
    read_last: dict[str, Fingerprint] = field(default_factory=dict)

    def take_planned(self) -> None:
        """Read norms and biases of every model of the plan that has no row yet."""
        for one in self.plan.models:
            name, claims = one.neighbour.model_id, one.neighbour.claims
            if one.depth is None:
                self.take(name, 0, claims)
            else:
                self.adopt(name, one.depth, claims)

    def adopt(self, model_id: str, depth: int | None, claims: tuple[str, ...] = ()) -> None:
        """Note a model whose row is here already; depth: the stage up to which it was read."""
        if depth is not None and 0 <= depth < len(STAGES):
            self.got[model_id] = Got(model_id, State.PRESENT, depth, claims=claims)

    def take(self, model_id: str, stage: int, claims: tuple[str, ...] = ()) -> None:
        """Read a model up to a stage and keep its row; note what became of it."""
        before = self.got.get(model_id, Got(model_id, State.FETCHED, claims=claims))
        start = self.meter.bytes, self.meter.requests
        state, why, reached, fp = State.FETCHED, "", before.stage, None
        try:
            fp = self.read(model_id, mode="sampled" if stage else "norms", stage=max(stage, 1))
        except ProvindexError as error:
            state, why = next(state for kind, state in _STATES if isinstance(error, kind)), str(error)
        if fp is not None:  # what is wrong with the index here is no fault of the model, and ends the run
            replace_rows(self.folder, [fp], name=NAME, who=NAME, older=True)
            reached, self.read_last[model_id] = stage, fp
        got = replace(
            before,
            state=state,
            stage=reached,
            why=why,
            bytes=before.bytes + self.meter.bytes - start[0],
            requests=before.requests + self.meter.requests - start[1],
        )
        self.got[model_id] = got
        cost = f"{(self.meter.bytes - start[0]) / 1e6:,.1f} MB in {self.meter.requests - start[1]} requests"
        self.report(f"{state:<8} {model_id}: {why or f'{STAGES[stage]}, {cost}'}")

    @property
    def spent(self) -> Spent:
        """What was read until now."""
        took = time.perf_counter() - self.start
        return Spent(self.plan, tuple(self.got.values()), self.meter.bytes, self.meter.requests, took)

    @property
    def rows(self) -> list[str]:
        """Ids of the models that have a row."""
        return [one.model_id for one in self.got.values() if one.stage is not None]


@contextmanager
def session(todo: Plan, read: Read, folder: Path, report: Say) -> Iterator[Session]:
    """A run whose bytes are counted and bounded. folder: of the index that keeps the rows. report: told each step."""
    with metered(todo.limit) as meter:
        yield Session(todo, read, meter, folder, report)


def next_targets(result: QueryResult, run: Session, stage: int, asked: Collection[str]) -> list[str]:
    """Ids of fetched models of which the next stage should be read: those that link; if nothing links, the open ones.

    result: the answer with the rows of the stage before. Of what links only norms are not enough: how near it is, and
    which of the two is older, they do not say. asked: ids that somebody wants to know about: they are read on while
    they are open, whatever else links.
    """
    wanted = {name.lower() for name in asked}
    before = [name for name in run.rows if run.got[name].stage == stage - 1]
    linked = [m.entry.model_id for m in result.linked if m.entry.model_id in before][:LINKED]
    open_there = {m.entry.model_id for m in result.candidates if m.pair.is_open}
    open_ones = [name for name in before if name in open_there and (not result.linked or name.lower() in wanted)]
    return (linked if stage == 1 else []) + open_ones


def run_stages(
    run: Session, ask: Callable[[Sequence[str]], Answer], result: Answer, asked: Collection[str] = ()
) -> Answer:
    """Go on from norms to fixed blocks and to whole layers where the answer needs it; the last answer.

    ask: compares again, with the rows of the ids that it is given. asked: as for `next_targets`.
    """
    for stage in (1, 2):
        targets = next_targets(result, run, stage, asked)
        for model_id in targets:
            run.take(model_id, stage)
            if run.got[model_id].state is State.BUDGET:
                break
        if any(run.got[name].stage == stage for name in targets):
            result = ask(run.rows)
    return result
