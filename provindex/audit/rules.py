"""What a policy names: models by their id or a pattern of ids, families, licenses, publishers.

A rule is one text: `org/name` (also with @revision or #variant; or the id of a family's root), `org/*`,
`family:org/name`, `license:llama3*`, `publisher:org`. `*` stands for any letters, `?` for one; case does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from provindex.catalogue.table import license_of, models
from provindex.common.errors import UsageError
from provindex.index.collection import Index
from provindex.index.entries import Entry

Kind = Literal["id", "family", "license", "publisher"]
KINDS: tuple[Kind, ...] = ("family", "license", "publisher")
MAX_RULE = 200  # characters: an id of the Hub has at most 193
MOST_SUGGESTIONS = 3
LEAST_REVISION = 7  # letters of a commit: fewer name several


@dataclass(frozen=True, slots=True)
class Rule:
    """text: as it was written. pattern: what follows the kind."""

    text: str
    kind: Kind
    pattern: str

    @classmethod
    def of(cls, text: str) -> Rule:
        """The rule that a text is; UsageError if it is empty, too long or of a kind that there is not."""
        before, colon, after = text.strip().partition(":")
        kind: Kind = next((k for k in KINDS if colon and k == before), "id")
        pattern = after.strip() if kind != "id" else text.strip()
        if not pattern or len(text) > MAX_RULE or not pattern.isprintable():
            raise UsageError(
                f"A rule names a model, a family, a license or a publisher in at most {MAX_RULE} letters, not "
                f"{text[:MAX_RULE]!r}.",
                "Write org/name, org/*, family:org/name, license:NAME or publisher:org.",
            )
        if kind == "id" and colon and before.isalpha() and before != "pypi":
            raise UsageError(f"There are no rules of the kind {before}.", f"Write one of {', '.join(KINDS)}, or an id.")
        revision = pattern.partition("#")[0].partition("@")[2]
        if kind == "id" and "@" in pattern and len(revision) < LEAST_REVISION:
            raise UsageError(
                f"{text.strip()} names a revision by fewer than {LEAST_REVISION} letters.", "Write more of the commit."
            )
        return cls(text.strip(), kind, pattern)

    @property
    def is_glob(self) -> bool:
        return "*" in self.pattern or "?" in self.pattern

    def matches(self, name: str | None) -> bool:
        """Whether the pattern is that of a name."""
        pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in self.pattern)
        return name is not None and re.fullmatch(pattern, name, re.IGNORECASE | re.DOTALL) is not None

    def holds(self, entry: Entry) -> bool:
        """Whether a row is one that the rule names by its id, its family, its license or its publisher."""
        if self.kind == "family":
            return self.matches(entry.family)
        if self.kind == "license":
            row = entry.row
            return self.matches(license_of(row["model_id"], row["license"])[0])
        return self.matches(publisher(entry.model_id) if self.kind == "publisher" else entry.model_id)

    def rows(self, index: Index) -> list[Entry]:
        """The rows of an index that the rule names."""
        if self.kind == "id" and not self.is_glob:
            in_any_case = (entry for entry in index if self.matches(entry.stated_family))
            return index.named(self.pattern) or index.spelled(self.pattern) or list(in_any_case)
        return [entry for entry in index if self.holds(entry)]

    @property
    def is_published(self) -> bool:
        """Whether the catalogue has a model that the rule names, whatever an index has."""
        names = {"family": _families, "license": _licenses, "publisher": _publishers}.get(self.kind, _ids)
        return any(self.matches(name) for name in names())

    def suggestions(self, index: Index) -> list[str]:
        """Names that look like the rule's, those of the index first."""
        own: dict[Kind, Iterable[str]] = {
            "id": [e.model_id for e in index] + [e.family for e in index],
            "family": [e.family for e in index],
            "license": [str(license_of(e.model_id, e.row["license"])[0] or "") for e in index],
            "publisher": [publisher(e.model_id) for e in index],
        }
        published = {"family": _families, "license": _licenses, "publisher": _publishers}.get(self.kind, _ids)()
        found: dict[str, None] = {}
        for names in (own[self.kind], published):
            found |= dict.fromkeys(_alike(self.pattern, names))
        return list(found)[:MOST_SUGGESTIONS]


def publisher(model_id: str) -> str:
    """What stands before the slash of an id."""
    return model_id.partition("/")[0]


def _alike(asked: str, names: Iterable[str]) -> list[str]:
    """Names with the same last part as what is asked for, else those that are spelled nearly so."""
    by_letters = {name.lower(): name for name in names if name}
    last = asked.lower().rpartition("/")[2]
    same = [name for small, name in by_letters.items() if small.rpartition("/")[2] == last]
    return same[:MOST_SUGGESTIONS] or [
        by_letters[small] for small in get_close_matches(asked.lower(), list(by_letters), MOST_SUGGESTIONS)
    ]


def _ids() -> list[str]:
    return list(models())


def _families() -> list[str]:
    return sorted({known.family for known in models().values() if known.family})


def _licenses() -> list[str]:
    return sorted({known.license for known in models().values() if known.license})


def _publishers() -> list[str]:
    return sorted({publisher(model_id) for model_id in models()})
