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

    fitted = text.PLAIN_WIDTH if width is None else width
    if "license_chain" in document:
        return audit_text.render(document, width=fitted, color=color)
    written = text.render(document, width=fitted, color=color)
    return written + audit_text.rests_on(document, fitted) if "date" in document else written


def _json(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report.document import dumps

    return dumps(document)


def _markdown(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report import markdown

    return markdown.render(document)


def _html(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report import html

    return html.render(document)


def _cyclonedx(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report import cyclonedx

    return cyclonedx.render(document)


def _sarif(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report import sarif

    return sarif.render(document)


def _intoto(document: Document, *, width: int | None, color: bool) -> str:
    from provindex.report import intoto

    return intoto.render(document)


RENDERERS: Mapping[str, Renderer] = {
    "text": _text,  # the default of --format
    "json": _json,
    "markdown": _markdown,
    "html": _html,
    "cyclonedx": _cyclonedx,
    "sarif": _sarif,
    "intoto": _intoto,
}
UNDATED = ("text", "json")  # printed without a date and what they rest on: the same input gives the same bytes
SUFFIXES: Mapping[str, str] = {  # of a report's file: its format; the longest that fits
    ".md": "markdown",
    ".html": "html",
    ".json": "json",
    ".cdx.json": "cyclonedx",
    ".sarif": "sarif",
    ".intoto.json": "intoto",
    ".txt": "text",
}


def format_of(name: str) -> str | None:
    """The format that the suffix of a file asks for; None if it is none of ours."""
    fitting = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return SUFFIXES[max(fitting, key=len)] if fitting else None


def line(document: Document) -> str:
    """A document as one line of JSON."""
    from provindex.report.document import line_of

    return line_of(document)


def render(name: str, document: Document, *, width: int | None = None, color: bool = False) -> str:
    """A document in the format of that name; KeyError if the table has no such format."""
    return RENDERERS[name](document, width=width, color=color)
