"""The catalogue of models that a public index should hold: `models.csv`, one model a line, with the page of each claim.

Facts come from the peer's catalogue and annotated pairs (which models exist, some lineages; it has no licenses) and
from pages that were looked up. What could not be looked up is empty, never guessed.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from build_index.catalog import HUB_ID, CatalogError

CATALOGUE = Path(__file__).with_name("models.csv")
PEER = "the annotated benchmark pairs of cisco-ai-provenance-kit 1.0.0"  # a source that has no page of its own


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One model; every field is text, "" where nothing is known.

    model_id: Hub id. family: root of its weight lineage, as far as a source reaches. license: Hub tag. parent: the
    model whose weights it was made from. license_source, parent_source: the page that says so.
    """

    model_id: str
    family: str
    license: str
    license_source: str
    parent: str
    parent_source: str
    notes: str


COLUMNS = tuple(field.name for field in fields(CatalogModel))


def load_models(path: Path = CATALOGUE) -> tuple[CatalogModel, ...]:
    """Read and check a catalogue; CatalogError names every problem."""
    lines, odd = lines_of(path, COLUMNS)
    models = () if odd else tuple(CatalogModel(*line) for line in lines)
    problems = odd or [*_claims(models), *_order(models), *_lineages(models)]
    if problems:
        raise CatalogError(f"The catalogue {path.name} is wrong: {'; '.join(problems)}.")
    return models


def lines_of(path: Path, columns: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The lines of a CSV file without its head, and which have another number of fields; CatalogError if it cannot be
    read or has other columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise CatalogError(f"The catalogue {path.name} cannot be read: {error}.") from error
    if head != list(columns):
        raise CatalogError(f"The catalogue {path.name} has other columns than {', '.join(columns)}.")
    odd = [f"line {number} has {len(line)} fields" for number, line in enumerate(lines, 2) if len(line) != len(columns)]
    return lines, odd


def _claims(models: Sequence[CatalogModel]) -> Iterator[str]:
    """Malformed ids, and claims without a source."""
    for model in models:
        for name in ("model_id", "family", "parent"):
            value = getattr(model, name)
            if (value or name == "model_id") and not HUB_ID.fullmatch(value):
                yield f"{model.model_id or 'a model'} has a malformed {name}: {value or 'none'}"
        for name in ("license", "parent"):
            source = getattr(model, f"{name}_source")
            if bool(getattr(model, name)) != bool(source):
                yield f"{model.model_id} has a {name} without a source, or the reverse"
            if source and not source.startswith("https://") and not (name == "parent" and source == PEER):
                yield f"{model.model_id} has a {name}_source that is no page: {source}"


def _order(models: Sequence[CatalogModel]) -> Iterator[str]:
    """Models that are there twice, and lines that are not in the order of their ids."""
    ids = [model.model_id for model in models]
    yield from (f"{name} is there {count} times" for name, count in Counter(ids).items() if count > 1)
    if ids != sorted(ids, key=str.lower):
        yield "its lines are not sorted by model_id, whatever the case"


def _lineages(models: Sequence[CatalogModel]) -> Iterator[str]:
    """Lineages that contradict themselves: circles, and families that are not the parent's."""
    by_id = {model.model_id: model for model in models}
    for model in models:
        if not model.parent:
            continue
        if _in_circle(model, by_id):
            yield f"{model.model_id} descends from itself"
            continue
        parent = by_id.get(model.parent)
        if parent is not None and parent.family and parent.family != model.family:
            yield f"{model.model_id} has the family {model.family or 'none'}, its parent {parent.family}"


def _in_circle(model: CatalogModel, by_id: Mapping[str, CatalogModel]) -> bool:
    seen = {model.model_id}
    while model.parent:
        if model.parent in seen:
            return True
        seen.add(model.parent)
        following = by_id.get(model.parent)
        if following is None:
            return False
        model = following
    return False
