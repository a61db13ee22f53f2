"""Which writing systems a vocabulary uses: shares of its alphabetic characters by script."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

import numpy as np

# Script, and words of which one is in the Unicode name of its characters; first hit wins, ASCII is Latin.
SCRIPTS = (
    ("CJK", ("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "BOPOMOFO")),
    ("Cyrillic", ("CYRILLIC",)),
    ("Arabic", ("ARABIC",)),
    ("Devanagari", ("DEVANAGARI",)),
    ("Latin", ("LATIN",)),
)
_BATCH = 1 << 16  # tokens counted at a time


@lru_cache(1 << 16)
def script(char: str) -> str:
    """Script of one character: "Latin", "CJK", "Cyrillic", "Arabic", "Devanagari" or "Other".

    >>> script("a"), script("я"), script("中"), script("Ω")
    ('Latin', 'Cyrillic', 'CJK', 'Other')
    """
    if char.isascii():
        return "Latin"
    name = unicodedata.name(char, "")
    return next((label for label, words in SCRIPTS if any(word in name for word in words)), "Other")


def shares(tokens: Iterable[str]) -> dict[str, float]:
    """Share of each script over all alphabetic characters of all tokens, rounded to 4 decimals, largest first.

    Byte-level BPE pieces count as they are written, so as Latin. Equal counts are ordered by name (the peer's order
    of ties depends on a hash map). {} when there is no alphabetic character.
    """
    by_code = np.zeros(sys.maxunicode + 1, np.int64)
    remaining = iter(tokens)
    while batch := list(islice(remaining, _BATCH)):
        codes = np.frombuffer("".join(batch).encode("utf-32-le", "surrogatepass"), "<u4")
        by_code += np.bincount(codes, minlength=by_code.size)
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(by_code).tolist():
        if chr(code).isalpha():
            counts[script(chr(code))] += int(by_code[code])
    total = counts.total()
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {label: round(count / total, 4) for label, count in ordered}
