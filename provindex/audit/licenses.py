"""What licenses ask of models that are made from what they cover: the table `licenses.toml`, and expressions of them.

A license is known by the tag of the Hub, by the `license_name` of a card, or as an SPDX expression ("Apache-2.0 OR
MIT"), which `license-expression` parses. What the table does not say is not known, and nothing follows from it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("licenses.toml")
CELLS = ("commercial", "naming", "notice", "restrictions", "share_alike", "field", "derivatives")
VALUES: Mapping[str, tuple[object, ...]] = {
    "commercial": ("yes", "no", "limited"), "notice": (True, False), "restrictions": (True, False),
    "field": ("research", "monthly-users"), "derivatives": (False,),
}  # fmt: skip
SILENT = frozenset({"", "other", "unknown", "none", "noassertion"})  # tags that name no license
MAX_TEXT = 200  # characters of an expression
MOST_CHOICES = 16  # combinations of licenses that an expression may offer
_SPACE = re.compile(r"[\s_]+")
Words = str | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a license asks in one respect (`is` in the file). clause: its number, "" if none. url: where it is."""

    value: Words
    clause: str
    url: str


@dataclass(frozen=True)
class License:
    """A row of the table. id: the tag of the Hub. spdx: SPDX id, "" if it has none. looked: the day on which its text
    was read. cells: by CELLS.
    """

    id: str
    spdx: str
    name: str
    text: str
    looked: str
    aliases: tuple[str, ...]
    cells: Mapping[str, Cell]

    def says(self, cell: str) -> Words | None:
        """The value of a cell; None if it is not known."""
        found = self.cells.get(cell)
        return None if found is None else found.value


@dataclass(frozen=True, slots=True)
class Clash:
    """Two licenses that do not go together. cell: where the terms of `above` and of `below` part."""

    cell: str
    above: License
    below: License

    @property
    def url(self) -> str:
        return self.above.cells[self.cell].url


Choice = tuple[License, ...]  # licenses that hold together
Terms = tuple[Choice, ...]  # what a statement leaves to choose from


@cache
def table() -> Mapping[str, License]:
    """The licenses by id. ValueError, with the row, if the file is not as it must be."""
    read = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {row["id"]: _license(row) for row in read["license"]}


@cache
def _by_name() -> Mapping[str, License]:
    found: dict[str, License] = {}
    for row in table().values():
        for name in (row.id, *row.aliases):
            if found.setdefault(_plain(name), row) is not row:
                raise ValueError(f"two licenses are called {name}")
    return found


def terms_of(stated: str, name: str = "") -> Terms:
    """What a statement of a license means by the table; () if it means nothing that is known.

    stated: a tag or an expression. name: the `license_name` of the tag `other`.

    >>> [[one.id for one in choice] for choice in terms_of("MIT OR (Apache-2.0 AND cc-by-4.0)")]
    [['mit'], ['apache-2.0', 'cc-by-4.0']]
    """
    said = name if _plain(stated) in SILENT else stated
    if not said or len(said) > MAX_TEXT or _plain(said) in SILENT:
        return ()
    known = _by_name().get(_plain(said))
    return ((known,),) if known is not None else _parsed(said)


def _parsed(said: str) -> Terms:
    from license_expression import AND, OR, ExpressionError, LicenseSymbol, LicenseWithExceptionSymbol, Licensing

    def choices(node: Any) -> Terms:
        if isinstance(node, LicenseWithExceptionSymbol):
            return choices(node.license_symbol)
        if isinstance(node, LicenseSymbol):
            known = _by_name().get(_plain(node.key))
            return ((known,),) if known is not None else ()
        parts = [choices(part) for part in node.args]
        if isinstance(node, OR):
            return tuple(choice for part in parts for choice in part)[:MOST_CHOICES] if all(parts) else ()
        if isinstance(node, AND) and all(parts):
            joined: Terms = parts[0]
            for part in parts[1:]:
                joined = tuple((*a, *b) for a, b in product(joined, part))[:MOST_CHOICES]
            return joined
        return ()

    try:
        parsed = Licensing().parse(said)
    except ExpressionError:
        return ()
    return () if parsed is None else choices(parsed)


def clashes(above: Terms, below: Terms, *, same_weights: bool = False) -> tuple[Clash, ...]:
    """Why a model under `below` cannot stand on one under `above`; () if a choice of both goes together, or one is not
    known. same_weights: it is the very model, so that a license that forbids derivatives allows it.
    """
    found: list[tuple[Clash, ...]] = []
    for over, under in product(above, below):
        clash = tuple(c for one in over if (c := _clash(one, under, same_weights)) is not None)
        if not clash:
            return ()
        found.append(clash)
    return found[0] if found else ()


def _clash(above: License, below: Choice, same_weights: bool) -> Clash | None:
    """What a license asks that none of some licenses, which hold together, asks."""
    if any(one.id == above.id for one in below) and (same_weights or above.says("derivatives") is not False):
        return None
    for cell in ("derivatives", "commercial", "share_alike", "restrictions"):
        lost = [one for one in below if _lost(cell, above, one, same_weights)]
        if len(lost) == len(below) and lost:
            return Clash(cell, above, lost[0])
    return None


def _lost(cell: str, above: License, below: License, same_weights: bool) -> bool:
    asked, given = above.says(cell), below.says(cell)
    if cell == "derivatives":
        return asked is False and not same_weights
    if cell == "commercial":
        return (asked == "no" and given in ("yes", "limited")) or (asked == "limited" and given == "yes")
    if cell == "share_alike":
        return bool(asked) and isinstance(asked, tuple) and below.id not in asked
    return asked is True and given is False


def asked_by(terms: Terms, cell: str) -> Iterator[License]:
    """The licenses that ask for something (a notice, a name) whichever choice is taken; each once."""
    seen: dict[str, License] = {}
    asks = [[one for one in choice if one.says(cell)] for choice in terms]
    if asks and all(asks):
        seen |= {one.id: one for one in asks[0]}
    yield from seen.values()


def _plain(name: str) -> str:
    """A spelling: small letters, one space, no word "license" at the end."""
    return _SPACE.sub(" ", name.strip().lower()).removesuffix(" license")


def _license(row: Mapping[str, Any]) -> License:
    if row.keys() - {"id", "spdx", "name", "text", "looked", "aliases", *CELLS}:
        raise ValueError(f"the license {row['id']} has a key that no license has")
    cells = {name: _cell(row["id"], name, row[name], row["text"]) for name in CELLS if name in row}
    looked, aliases = row["looked"].isoformat(), tuple(row.get("aliases", ()))
    return License(row["id"], row.get("spdx", ""), row["name"], row["text"], looked, aliases, cells)


def _cell(license_id: str, name: str, said: Mapping[str, Any], text: str) -> Cell:
    value = said["is"]
    if isinstance(value, list):
        value = tuple(value)
    if said.keys() - {"is", "clause", "url"} or not _fits(name, value):
        raise ValueError(f"the license {license_id} has a cell {name} that cannot be read")
    return Cell(value, said.get("clause", ""), said.get("url", text))


def _fits(name: str, value: object) -> bool:
    if name in VALUES:
        return value in VALUES[name]
    if name == "share_alike":
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    return isinstance(value, str) and bool(value)


def names(terms: Terms) -> Sequence[str]:
    """The ids that a statement names, each once."""
    return list(dict.fromkeys(one.id for choice in terms for one in choice))
