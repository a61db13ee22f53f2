"""Ids of the Hub, org/name: what may be one, and which one an address names."""

from __future__ import annotations

import re

MAX_ID = 200  # characters; the Hub allows 96
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_ADDRESS = re.compile(r"https?://(www\.)?(huggingface\.co|hf\.co)/(?P<id>[^/\s]+/[^/\s?#]+)([/?#].*)?", re.ASCII)


_AT = re.compile(
    r"(https?://(www\.)?(huggingface\.co|hf\.co)/|hf://(models/)?)(?P<kind>(datasets|spaces)/)?(?P<id>[^/\s?#@]+/[^/\s?#@]+)"
    r"(@(?P<at>[^/\s?#]+))?(/(tree|blob|resolve)/(?P<revision>[^/\s?#]+))?(/(?P<file>[^\s?#]*))?([?#].*)?",
    re.ASCII,
)


def without_address(text: str) -> str:
    """org/name[/file][@revision] of an address of the Hub (https://huggingface.co/..., hf://...); else the text itself.

    >>> without_address("https://huggingface.co/org/name/blob/main/model.safetensors")
    'org/name/model.safetensors@main'
    """
    found = _AT.fullmatch(text.strip())
    if found is None or found["kind"] == "spaces/":
        return text
    revision = found["at"] or found["revision"]
    file = (found["file"] or "").strip("/")
    return found["id"] + (f"/{file}" if file else "") + (f"@{revision}" if revision else "")


def is_address_of_dataset(text: str) -> bool:
    """Whether a text is the address of a dataset of the Hub."""
    found = _AT.fullmatch(text.strip())
    return found is not None and found["kind"] == "datasets/"


def is_hub_id(text: str) -> bool:
    """Whether a text can be org/name; a path of a file system, a sentence and an address are none."""
    return len(text) <= MAX_ID and ".." not in text and _ID.fullmatch(text) is not None


def id_of(text: str) -> str | None:
    """The id that a text is, or the one in an address of the Hub; None where there is none."""
    address = _ADDRESS.fullmatch(text.strip())
    found = address["id"] if address else text.strip()
    return found if is_hub_id(found) else None
