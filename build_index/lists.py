"""What a build is given: models, lists, and catalogues with what is known about their models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from build_index.fill import Facts
from build_index.models import load_models

CATALOGUE = ".csv"  # a source with this ending is a catalogue: ids, and what is known about them


def read_lists(named: Sequence[str]) -> tuple[list[str], dict[str, Facts]]:
    """The sources with each catalogue replaced by its ids, and what catalogues say about them, by id.

    Raises CatalogError if a catalogue is wrong.
    """
    sources: list[str] = []
    facts: dict[str, Facts] = {}
    for source in named:
        if source.endswith(CATALOGUE) and Path(source).is_file():
            found = _catalogue(Path(source))
            sources += found
            facts |= found
        else:
            sources.append(source)
    return sources, facts


def _catalogue(path: Path) -> Mapping[str, Facts]:
    facts = {}
    for row in load_models(path):
        said = (("license", row.license_source), ("lineage", row.parent_source), ("note", row.notes))
        facts[row.model_id] = Facts(
            license=row.license,
            family=row.family,
            parents=(row.parent,) if row.parent else (),
            source=" | ".join(f"{name}: {text}" for name, text in said if text),
        )
    return facts
