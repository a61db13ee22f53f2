"""Configuration facts of catalogued models: `shapes.csv`, one model a line, with the page that states the numbers.

What a page does not state is empty: nothing is derived from a sibling model or filled in from memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from build_index.catalog import HUB_ID, CatalogError
from build_index.models import lines_of

SHAPES = Path(__file__).with_name("shapes.csv")
LARGEST = 10**7  # more than any dimension or vocabulary of a published model
NUMBERS = ("hidden", "layers", "intermediate", "heads", "kv_heads", "vocabulary")
COUNT = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Shape:
    """What one model's configuration says; None, or "" for model_type, where its source does not say it.

    layers: those of the encoder, where an encoder and a decoder differ. vocabulary: rows of the embedding. source: one
    page, or several with a space between them, on which every value of the line can be read.
    """

    model_id: str
    model_type: str
    hidden: int | None
    layers: int | None
    intermediate: int | None
    heads: int | None
    kv_heads: int | None
    vocabulary: int | None
    source: str


COLUMNS = tuple(field.name for field in fields(Shape))


def load_shapes(path: Path = SHAPES, model_ids: Collection[str] | None = None) -> tuple[Shape, ...]:
    """Read and check a file of shapes; CatalogError names every problem.

    model_ids: the ids of the catalogue; when they are given, every line must be about one of them.
    """
    lines, odd = lines_of(path, COLUMNS)
    rows = [] if odd else [dict(zip(COLUMNS, line, strict=True)) for line in lines]
    problems = odd or [*_values(rows), *_order([row["model_id"] for row in rows], model_ids)]
    if problems:
        raise CatalogError(f"The shapes {path.name} are wrong: {'; '.join(problems)}.")
    return tuple(_shape(row) for row in rows)


def _shape(row: dict[str, str]) -> Shape:
    numbers = {name: int(row[name]) if row[name] else None for name in NUMBERS}
    return Shape(model_id=row["model_id"], model_type=row["model_type"], source=row["source"], **numbers)


def _values(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Malformed ids, numbers that cannot be, lines that say nothing, and sources that are no page."""
    for row in rows:
        name = row["model_id"] or "a model"
        if not HUB_ID.fullmatch(row["model_id"]):
            yield f"{name} has a malformed model_id: {row['model_id'] or 'none'}"
        for column in NUMBERS:
            value = row[column]
            if value and not COUNT.fullmatch(value):
                yield f"{name} has a value of {column} that is no positive integer: {value}"
            elif value and (len(value) > len(str(LARGEST)) or int(value) > LARGEST):
                yield f"{name} has an absurd value of {column}: {value}"
        if not any(row[column] for column in NUMBERS):
            yield f"{name} has no number at all"
        if not row["source"]:
            yield f"{name} has no source"
        elif not all(re.fullmatch(r"https://\S+", page) for page in row["source"].split(" ")):
            yield f"{name} has a source that is no page: {row['source']}"


def _order(ids: Sequence[str], model_ids: Collection[str] | None) -> Iterator[str]:
    """Models that are there twice, that the catalogue lacks, and lines that are not in the order of their ids."""
    yield from (f"{name} is there {count} times" for name, count in Counter(ids).items() if count > 1)
    if ids != sorted(ids, key=str.lower):
        yield "its lines are not sorted by model_id, whatever the case"
    if model_ids is not None:
        yield from (f"{name} is not in the catalogue" for name in ids if name not in model_ids)
