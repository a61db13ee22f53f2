"""The rows of the tables from which columns, limits, extraction, comparison, documents and texts follow.

A signal is a file in `signals/` and a row of `signals/table.py`; a test of evidence a file in `evidence/` and a row of
`evidence/table.py`; what either keeps of a model is one Panel or more. Nothing else names them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from provindex.common.score import Outcome, Score

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the dataset.

    type: "string", "int", "list<string>" or "list<float16|float32|float64|int8|int32|uint64>". table: "models" (small
    columns), "panels" (arrays) or "both". content: whether the row's hash covers it. meaning: one line for the column
    reference. limit: of a list, the most values that a row may have. nullable: whether a cell may be empty. finite:
    whether every number must be finite.
    """

    name: str
    type: str
    table: str
    content: bool
    meaning: str
    limit: int = 0
    nullable: bool = False
    finite: bool = False

    def __post_init__(self) -> None:
        if self.type.startswith("list<") != (self.limit > 0):
            raise ValueError(f"{self.name}: a list has a limit, and nothing else has")


def array(name: str, kind: str, meaning: str, limit: int, *, table: str = "panels", finite: bool = False) -> Column:
    """A column of lists that the row's hash covers. kind: "string", or a dtype."""
    return Column(name, f"list<{kind}>", table, True, meaning, limit, finite=finite)


def number(name: str, meaning: str, *, table: str = "panels") -> Column:
    """A column of whole numbers that the row's hash covers."""
    return Column(name, "int", table, True, meaning)


@dataclass(frozen=True, slots=True)
class Panel:
    """One thing that a fingerprint keeps of a model.

    name: the field of Fingerprint, or a key of `Fingerprint.more` where there is no such field. to_row: cells by column
    of a value that is there. from_row: the value in a row, None if it has none; ValueError if the cells do not fit
    together. extract: the value of a model's weights (`roles.weights.Weights`), None if it has none, and then
    `weights.absences` says why; None for what somebody else makes. first: whether config and vectors suffice for it:
    then mode "norms" makes it.
    """

    name: str
    columns: tuple[Column, ...]
    to_row: Callable[[Any], Row]
    from_row: Callable[[Mapping[str, Any]], Any]
    extract: Callable[[Any], Any] | None = None
    first: bool = False


@dataclass(frozen=True, slots=True)
class Signal:
    """One of the signals that are reported, and what it keeps of a model.

    name: in documents ("EAS"). values: of two fingerprints what is compared, None if one of them lacks it; then
    `absences[name]` says why. compare: the score of two such values. exact: the score of two vocabularies, for a signal
    that is estimated from stored rows. order: its place among the columns of a terminal.
    """

    name: str
    values: Callable[[Any, Any], tuple[Any, Any] | None]
    compare: Callable[[Any, Any], Score]
    panels: tuple[Panel, ...] = ()
    exact: Callable[[Any, Any], Score] | None = None
    order: int = 99


@dataclass(frozen=True, slots=True)
class Test:
    """One test of evidence, and what it keeps of a model.

    name: in documents ("bit_reuse"). run: the outcome of a pair (`evidence.pairing.Pairing`). tier: "exact" (its
    p-value counts for a link, and is paid for), "aligned" (it is ranked among unrelated pairs) or "reported". lacks:
    the panel whose absence explains that it could not run. sees: of an exact test that would have seen a changed copy,
    what it compares.
    """

    __test__ = False  # no test of pytest's

    name: str
    run: Callable[[Any], Outcome]
    tier: str
    lacks: str
    panels: tuple[Panel, ...] = ()
    sees: str = ""


def field(name: str) -> Callable[[Any, Any], tuple[Any, Any] | None]:
    """`Signal.values` for a value that both fingerprints keep under one name."""

    def values(a: Any, b: Any) -> tuple[Any, Any] | None:
        x, y = a.value(name), b.value(name)
        return None if x is None or y is None else (x, y)

    return values


def some(values: Any) -> Any | None:
    """An array that is there, None for an empty one."""
    return values if values.size else None


def split(values: Any, sizes: Any) -> list[Any]:
    """Values that lie one after another, by their sizes; ValueError if these do not add up to them."""
    if int(sizes.sum()) != values.size or (sizes < 0).any():
        raise ValueError(f"{values.size} values do not fit sizes that add up to {int(sizes.sum())}")
    return list(np.split(values, np.cumsum(sizes)[:-1])) if sizes.size else []
