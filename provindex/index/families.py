"""Families of an index from its own links: `families.json` in its folder, and what follows from it.

Rows are known by their hashes, so rows of the same weights are one. A family is a connected component of links; its
root is the one that the others descend from, else the earliest model that members claim as their parent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provindex.common.errors import IndexFormatError
from provindex.common.files import replacing

FILE = "families.json"
MOST = 1 << 26  # bytes of that file
Link = tuple[str, str, bool]  # two hashes of rows, and whether the first one is the ancestor


@dataclass(frozen=True)
class Families:
    """looked: hashes of rows whose links were looked for. links: what was found. roots: family of each row by its hash;
    none of a row that is linked to no other.
    """

    looked: frozenset[str] = frozenset()
    links: tuple[Link, ...] = ()
    roots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of the rows with one hash: ids, models that they claim as parents, and a family that is stated."""

    ids: tuple[str, ...]
    parents: tuple[str, ...] = ()
    family: str | None = None


class Components:
    """Connected components, as they grow."""

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self._above: dict[str, str] = {}
        for a, b, _ in links:
            self.join(a, b)

    def of(self, one: str) -> str:
        """A name of the component that something is in."""
        path = [one]
        while (above := self._above.get(path[-1], path[-1])) != path[-1]:
            path.append(above)
        for passed in path:
            self._above[passed] = path[-1]
        return path[-1]

    def join(self, a: str, b: str) -> None:
        self._above[self.of(a)] = self.of(b)


def read(folder: Path) -> Families:
    """What an index folder says of its families; nothing if it has no such file."""
    path = folder / FILE
    try:
        if path.stat().st_size > MOST:
            raise ValueError("it is too large")
        return _families(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return Families()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexFormatError(
            f"{FILE} of {folder.resolve().name} is damaged.",
            "Remove it; the next `provindex index sync` makes it again.",
        ) from error


def _families(said: Mapping[str, object]) -> Families:
    looked, links, roots = said["looked"], said["links"], said["roots"]
    if not (isinstance(looked, list) and isinstance(links, list) and isinstance(roots, dict)):
        raise ValueError("it has other fields")
    texts = [*looked, *roots, *roots.values(), *(end for link in links for end in link[:2])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("it has other values")
    return Families(frozenset(looked), tuple((a, b, bool(directed)) for a, b, directed in links), roots)


def write(folder: Path, found: Families) -> None:
    """Write the file that `read` reads, while nobody else writes to the folder."""
    document = {
        "looked": sorted(found.looked),
        "links": sorted(found.links),
        "roots": dict(sorted(found.roots.items())),
    }
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(document, indent=0) + "\n", encoding="utf-8")


def still(kept: Families, there: Collection[str]) -> Families:
    """What still holds when only some rows are there. Links of a component that lost a member are looked for again: two
    of its members may have been linked through that one alone.
    """
    components = Components(kept.links)
    torn = {components.of(end) for link in kept.links for end in link[:2] if end not in there}
    links = tuple(link for link in kept.links if link[0] in there and link[1] in there)
    looked = frozenset(one for one in kept.looked if one in there and components.of(one) not in torn)
    return Families(looked, links, {})


def with_roots(found: Families, members: Mapping[str, Member]) -> Families:
    """The same, with the family of every row that is linked to another one, or that has a copy under another id."""
    components = Components(found.links)
    groups: dict[str, list[str]] = {}
    for one in sorted(members):
        groups.setdefault(components.of(one), []).append(one)
    roots = {}
    for group in groups.values():
        if len(group) > 1 or len(members[group[0]].ids) > 1:
            directed = [(a, b) for a, b, known in found.links if known and a in group]
            root = _root(group, directed, members)
            roots.update(dict.fromkeys(group, root))
    return Families(found.looked, found.links, roots)


def _root(group: Sequence[str], directed: Sequence[tuple[str, str]], members: Mapping[str, Member]) -> str:
    """The name of a family: the root's own family if one is stated, else its id."""
    claimed = _earliest(group, members)
    first = _first(group, directed)
    if first is not None:
        ids = members[first].ids
        return members[first].family or (claimed if claimed in ids else ids[0])
    if claimed is not None:
        owner = next((one for one in group if claimed in members[one].ids), None)
        return (members[owner].family if owner else None) or claimed
    stated = Counter(members[one].family for one in group if members[one].family)
    return str(stated.most_common(1)[0][0]) if stated else min(name for one in group for name in members[one].ids)


def _first(group: Sequence[str], directed: Sequence[tuple[str, str]]) -> str | None:
    """The one from which most others descend, and which descends from none; None if there is none, or two."""
    children: dict[str, set[str]] = {}
    for a, b in directed:
        children.setdefault(a, set()).add(b)
    below = {b for _, b in directed}
    counts = sorted((len(_reached(one, children)), one) for one in group if one in children and one not in below)
    if not counts or (len(counts) > 1 and counts[-1][0] == counts[-2][0]):
        return None
    return counts[-1][1]


def _reached(one: str, children: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [one]
    while ahead:
        new = children.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def _earliest(group: Sequence[str], members: Mapping[str, Member]) -> str | None:
    """Where the claims of most members end. A claim that the index contradicts does not count: the claimed model has a
    row, and it is linked to none of these.
    """
    inside = {name: one for one in group for name in members[one].ids}
    elsewhere = {name for one, member in members.items() for name in member.ids} - set(inside)
    ends: Counter[str] = Counter()
    for one in group:
        seen, parents = {one}, members[one].parents
        end: str | None = None
        while claimed := next((p for p in parents if p not in elsewhere), None):
            end = claimed
            owner = inside.get(claimed)
            if owner is None or owner in seen:
                break
            seen.add(owner)
            parents = members[owner].parents
        if end is not None:
            ends[end] += 1
    return min(ends, key=lambda name: (-ends[name], name), default=None)
