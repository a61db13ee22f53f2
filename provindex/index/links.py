"""Which rows of an index are linked: pairs are proposed by its own retrieval and by claims, then compared in full.

A row is compared with the few that are nearest to it and not yet known to be of its family, not with all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from provindex.catalogue.table import family_of
from provindex.common.files import locked
from provindex.common.threads import one_blas_thread
from provindex.fingerprint.record import Fingerprint
from provindex.index import families
from provindex.index.collection import Index
from provindex.index.entries import Entry
from provindex.index.families import Components, Families, Link, Member
from provindex.verdict.pair import compare

NEAREST = 8  # rows that are compared with a row and turn out not to be linked to it
FURTHER = 2  # the same, after one was linked: another family may still be
OF_FAMILY = 2  # of them, members of one other family
HELD = 16  # fingerprints that are kept at hand, up to a few MB each
PROPOSED = 64  # rows that retrieval proposes
Progress = Callable[[int, int], None]


def update_families(folder: Path, progress: Progress = lambda _, __: None) -> Index:
    """Look for links of the rows of an index that are new, and write its families; the index with them comes back."""
    index = Index.load(folder)
    kept = families.read(folder)
    found = families.with_roots(links(index, families.still(kept, _by_hash(index)), progress), _members(index))
    if found != kept:
        with locked(folder):
            families.write(folder, found)
        index = Index.load(folder)
    return index


def links(index: Index, kept: Families, progress: Progress = lambda _, __: None) -> Families:
    """The links that are kept, and those of the rows that were not looked at: one way at least between any two members
    of a family, as far as retrieval proposes it. Roots are left out.
    """
    by_hash = _by_hash(index)
    found: list[Link] = list(kept.links)
    components = Components(found)
    compared: set[frozenset[str]] = set()
    new = [one for one in sorted(by_hash, key=lambda one: by_hash[one][0].key) if one not in kept.looked]
    linked = {end for link in found for end in link[:2]}
    held = lru_cache(HELD)(lambda one: by_hash[one][0].load())
    with one_blas_thread():
        for count, one in enumerate(new, 1):
            left, misses = (FURTHER if one in linked else NEAREST), Counter[str]()
            for other in _proposed(index, by_hash[one]):
                theirs = components.of(other)
                pair = frozenset((one, other))
                if pair in compared or components.of(one) == theirs or misses[theirs] >= OF_FAMILY:
                    continue
                link = _link(index, held(one), one, held(other), other, by_hash[other][0].load)
                compared.add(pair)
                if link is not None:
                    found.append(link)
                    components.join(one, other)
                    linked |= pair
                    left = min(left, FURTHER)
                else:
                    misses[theirs] += 1
                    left -= 1
                if not left:
                    break
            progress(count, len(new))
    return Families(frozenset(by_hash), tuple(sorted(found)), {})


def _proposed(index: Index, rows: list[Entry]) -> list[str]:
    """Hashes of rows that may be relatives: what these claim as parents, then the nearest."""
    claimed = [other for entry in rows for name in entry.row["parents"] for other in index.spelled(name)]
    return list(dict.fromkeys(other.row_sha256 for other in (*claimed, *index.near(rows[0], PROPOSED))))


def _link(
    index: Index, fp: Fingerprint, one: str, against: Fingerprint, other: str, again: Callable[[], Fingerprint]
) -> Link | None:
    """The link of two rows, the ancestor first if it is known which that is; None if they are not linked."""
    pair = compare(fp, against, models=len(index), calibration=index.calibration, again=again)
    if pair.verdict != "linked":
        return None
    if pair.direction == "descendant":
        return other, one, True
    return one, other, pair.direction == "ancestor"


def _by_hash(index: Index) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in sorted(index, key=lambda e: e.key):
        found.setdefault(entry.row_sha256, []).append(entry)
    return found


def _members(index: Index) -> dict[str, Member]:
    return {one: _member(rows) for one, rows in _by_hash(index).items()}


def _member(rows: list[Entry]) -> Member:
    stated = [family_of(entry.model_id, entry.stated_family) for entry in rows]
    parents = tuple(dict.fromkeys(name for entry in rows for name in entry.row["parents"]))
    return Member(tuple(entry.model_id for entry in rows), parents, next(filter(None, stated), None))
