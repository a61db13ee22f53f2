"""The formats of an answer, as one table. To add one: write a module, a function here that imports it, and a row.

This module imports nothing else when it is imported: the command line reads the names for `--help`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Document = dict[str, Any]


class Renderer(Protocol):
    """Turns a document into text. width: columns of the terminal, None if it is not for one. color: may be used."""

    def __call__(self, document: Document, *, width: int | None, color: bool) -> str: ...


def _text(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report import audit_text, text

    if document["schema"].startswith("provindex.audit/"):
        return audit_text.render(document, width=text.PLAIN_WIDTH if width is None else width, color=color)
    return text.render(document, width=text.PLAIN_WIDTH if width is None else width, color=color)


def _json(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report.document import dumps

    return dumps(document)


RENDERERS: Mapping[str, Renderer] = {
    "text": _text,  # the default of --format
    "json": _json,
}


def line(document: Document) -> str:
    """A document as one line of JSON."""
    from provindex.report.document import line_of

    return line_of(document)


def render(name: str, document: Document, *, width: int | None = None, color: bool = False) -> str:
    """A document in the format of that name; KeyError if the table has no such format."""
    return RENDERERS[name](document, width=width, color=color)
