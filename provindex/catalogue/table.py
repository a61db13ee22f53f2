"""Published base models that are known without their weights: facts, each with its source.

`models.json` is made by `python -m build_index.catalogue_file` of models.csv, shapes.csv and the features that Cisco
model-provenance-kit publishes (see NOTICE). What no source says is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("models.json")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a config states; 0 where no source says them.

    hidden: residual width. layers: of the text tower; of an encoder with a decoder, the encoder's. intermediate: width
    of an MLP. kv_heads: heads of keys and values. vocabulary: rows of the token embedding.
    """

    model_type: str = ""
    hidden: int = 0
    layers: int = 0
    intermediate: int = 0
    heads: int = 0
    kv_heads: int = 0
    vocabulary: int = 0


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """kind: the class that a tokenizer's config names. tokens: how many it has. merges: sha256 of its first 50 merges,
    one a line; "" without merges.
    """

    kind: str = ""
    tokens: int = 0
    merges: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """A published model: texts are "" and sizes 0 where nothing is known.

    family: root of its weight lineage, as far as a source reaches. license: Hub tag. parent: the model whose weights it
    was made from. Each source is the page, the file or the database that says so.
    """

    model_id: str
    family: str = ""
    license: str = ""
    license_source: str = ""
    parent: str = ""
    parent_source: str = ""
    shape: Shape = Shape()
    shape_source: str = ""
    tokenizer: TokenizerFacts = TokenizerFacts()
    tokenizer_source: str = ""


@cache
def models() -> Mapping[str, Known]:
    """The catalogue, by id."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    sources = found["sources"]
    return {model_id: _known(model_id, said, sources) for model_id, said in found["models"].items()}


@cache
def _by_small_letters() -> Mapping[str, Known]:
    return {model_id.lower(): known for model_id, known in models().items()}


def known(model_id: str) -> Known | None:
    """What the catalogue says of a Hub id, whatever its case; None if it has no such model."""
    return _by_small_letters().get(model_id.lower())


def family_of(model_id: str, stated: str | None) -> str | None:
    """The family that a row states, else the catalogue's; None if neither says one."""
    return stated or ((found := known(model_id)) and found.family) or None


def license_of(model_id: str, stated: str | None) -> tuple[str | None, str | None]:
    """(license, None) as stated, else the catalogue's with its source; (None, None) if neither says one."""
    found = None if stated else known(model_id)
    return (found.license, found.license_source) if found and found.license else (stated, None)


def _known(model_id: str, said: Mapping[str, Any], sources: list[str]) -> Known:
    def source(name: str) -> str:
        return sources[said[name]] if name in said else ""

    return Known(
        model_id,
        said.get("family", ""),
        said.get("license", ""),
        source("license_source"),
        said.get("parent", ""),
        source("parent_source"),
        Shape(*said.get("shape", ())),
        source("shape_source"),
        TokenizerFacts(*said.get("tokenizer", ())),
        source("tokenizer_source"),
    )
