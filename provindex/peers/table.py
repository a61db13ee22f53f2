"""Which datasets of the Hub are databases of other tools, and how rows are made of them. One row a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from provindex.common.hub_ids import is_hub_id
from provindex.index.fill import Built
from provindex.index.pulled import Source
from provindex.peers import cisco


class Make(Protocol):
    """Add what is missing to the index in a folder, from the archive at a path; see `cisco.import_published`."""

    def __call__(
        self, archive: Path, output: Path, *, sha256: str, report: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> Built: ...  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A database. tool: whose it is. archive: the published one. recipe: what rows follow from besides it. brands: the
    tool's family of each model of its catalogue, by the id of the row.
    """

    repo: str
    tool: str
    archive: Source
    make: Make
    recipe: Callable[[], str]
    brands: Callable[[], Mapping[str, cisco.Brand]]


@dataclass(frozen=True, slots=True)
class BrandOf:
    """A family that a tool gives a model: a brand, not a lineage."""

    tool: str
    id: str
    name: str
    publisher: str


PEERS = (
    Peer(
        "cisco-ai/model-provenance-kit", cisco.PEER, Source(cisco.ARCHIVE, cisco.PINNED), cisco.import_published,
        cisco.recipe, cisco.brands,
    ),
)  # fmt: skip


def peer_of(repo: str) -> Peer | None:
    """The database in a dataset, org/name in any case; None for every other dataset."""
    return next((peer for peer in PEERS if peer.repo.lower() == repo.lower()), None)


def brand_of(model_id: str) -> BrandOf | None:
    """The family that the first tool whose catalogue has a model gives it; None if none has."""
    found = ((peer.tool, peer.brands().get(model_id)) for peer in PEERS)
    return next((BrandOf(tool, b.id, b.name, b.publisher) for tool, b in found if b is not None), None)


def organisation(model_id: str) -> str | None:
    """The organisation of a Hub id, org/name; None for every other id."""
    return model_id.split("/")[0] if is_hub_id(model_id) else None
