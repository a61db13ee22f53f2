"""What a build will fetch, before anything is fetched, and how much it may: estimates, their sentence, the budget.

Estimates follow from the shapes of the catalogue that comes with provindex, and nobody is asked for them. Only models
on the Hub cost something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provindex.catalogue.cost import UNKNOWN, estimate
from provindex.catalogue.table import Shape, known
from provindex.models.source import DOWNLOADED

MB = 1_000_000
MBIT = 100.0  # what is assumed of a line, in Mbit/s
STAGE = {"norms": "norms", "sampled": "stage 2", "exact": "exact"}


def is_remote(source: str) -> bool:
    """Whether a source is an id of the Hub: neither a path that is there nor a fingerprint file."""
    return not source.endswith(".parquet") and not Path(source).exists()


def repository(source: str) -> str:
    """org/name of `org/name[/file][@revision]`."""
    return "/".join(source.partition("@")[0].split("/")[:2])


def shape_of(source: str) -> Shape | None:
    """The shape of a model on the Hub as the catalogue has it; None where it has none."""
    found = known(repository(source))
    return found.shape if found is not None and found.shape.hidden and found.shape.layers else None


def estimated(source: str, mode: str | None) -> int:
    """Bytes that a model on the Hub is expected to cost; one of unknown shape as much as a model of 8B.

    mode: how it will be read; None: "sampled" above 1 GB, else "exact".
    """
    shape = shape_of(source) or UNKNOWN
    whole = estimate(shape, "exact")
    mode = mode or ("sampled" if whole > DOWNLOADED else "exact")
    return whole if mode == "exact" else estimate(shape, STAGE[mode])


@dataclass(frozen=True, slots=True)
class Cost:
    """What is to be fetched. models: on the Hub; unknown: those of them whose shape nobody knows."""

    models: int
    bytes: int
    unknown: int

    def line(self, mbit: float) -> str:
        """The sentence of a plan. mbit: of the line, in Mbit/s."""
        hours = self.bytes * 8 / (mbit * 1e6) / 3600
        said = f"about {mb(self.bytes)} to fetch, {hours:,.1f} hours at {mbit:,g} Mbit/s"
        return f"{said}; {self.unknown} of unknown shape are taken for models of 8B" if self.unknown else said


def cost(needs: Mapping[str, int]) -> Cost:
    """The cost of sources, by the bytes that each is expected to need; paths need none."""
    remote = [source for source in needs if is_remote(source)]
    return Cost(
        len(remote), sum(needs[source] for source in remote), sum(shape_of(source) is None for source in remote)
    )


def needs_of(sources: Iterable[tuple[str, str | None]], *, offline: bool) -> dict[str, int]:
    """Bytes that each source, with the mode it is read in, is expected to need; offline, and for paths, none."""
    return {s: estimated(s, mode) if is_remote(s) and not offline else 0 for s, mode in sources}


def mb(size: float) -> str:
    """Bytes as people write them: at least two digits that count."""
    value = size / MB
    return (
        f"{value:,.1f} MB" if value >= 10 or not value else f"{value:.{max(1, 1 - math.floor(math.log10(value)))}f} MB"
    )


@dataclass
class Purse:
    """The byte budget of a run. limit: bytes, None for as many as it takes. needs: estimates, by source.

    fetched: bytes that came. models: that came from the Hub. held: estimates of what is being fetched. left: sources
    that the budget would not hold.
    """

    limit: float | None
    needs: Mapping[str, int]
    fetched: int = 0
    models: int = 0
    held: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def holds(self, source: str) -> bool:
        """Whether one more can be fetched: what came, what is on its way, and its own estimate fit together."""
        need = self.needs.get(source, 0)
        return self.limit is None or not need or self.fetched + sum(self.held.values()) + need <= self.limit

    def rest(self, source: str) -> int | None:
        """Bytes that a source may fetch: what is left beside what is on its way; None for no limit."""
        held = sum(need for other, need in self.held.items() if other != source)
        return None if self.limit is None else max(0, int(self.limit - self.fetched - held))

    def begin(self, source: str) -> None:
        self.held[source] = self.needs.get(source, 0)

    def end(self, source: str, fetched: int, made: bool) -> None:
        self.held.pop(source, None)
        self.fetched += fetched
        self.models += made and is_remote(source)

    def leave(self, source: str) -> None:
        self.left.append(source)

    def line(self) -> str:
        """What a run fetched."""
        mean = f", {mb(self.fetched / self.models)} a model" if self.models else ""
        return f"fetched {mb(self.fetched)} for {self.models} models of the Hub{mean}"
