"""Names that look like a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST = 3
MOST_NAMES = 20_000  # that are looked at letter by letter


def alike(asked: str, names: Iterable[str]) -> list[str]:
    """Up to three names with the same last part as what is asked for, else those that are spelled nearly so."""
    by_letters = {name.lower(): name for name in names if name}
    small = asked.lower()
    same = [name for letters, name in by_letters.items() if letters.rpartition("/")[2] == small.rpartition("/")[2]]
    near = get_close_matches(small, list(by_letters)[:MOST_NAMES], MOST)
    return same[:MOST] or [by_letters[letters] for letters in near]


def did_you_mean(names: Sequence[str]) -> str | None:
    """A question that offers names; None if there are none."""
    return f"Did you mean {' or '.join(names)}?" if names else None
