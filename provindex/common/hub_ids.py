"""Ids of the Hub, org/name: what may be one, and which one an address names."""

from __future__ import annotations

import re

MAX_ID = 200  # characters; the Hub allows 96
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_ADDRESS = re.compile(r"https?://(www\.)?(huggingface\.co|hf\.co)/(?P<id>[^/\s]+/[^/\s?#]+)([/?#].*)?", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text can be org/name; a path of a file system, a sentence and an address are none."""
    return len(text) <= MAX_ID and ".." not in text and _ID.fullmatch(text) is not None


def id_of(text: str) -> str | None:
    """The id that a text is, or the one in an address of the Hub; None where there is none."""
    address = _ADDRESS.fullmatch(text.strip())
    found = address["id"] if address else text.strip()
    return found if is_hub_id(found) else None
