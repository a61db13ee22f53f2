"""The table of formats in provindex/formats/README.md, from the registry: `python -m build_index.formats` renews it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import provindex
from provindex.formats.registry import FORMATS, Format, Magic, Refusal

README = Path(provindex.__file__).parent / "formats" / "README.md"
BEGIN, END = "<!-- formats:begin -->", "<!-- formats:end -->"


def table() -> str:
    """A Markdown table, one row a format."""
    rows = (f"| {row.name} | {_signs(row)} | {_outcome(row)} |" for row in FORMATS)
    return "\n".join(
        [
            "| format | endings, names, and signatures (at byte) | read, or why not and what to do |",
            "|---|---|---|",
            *rows,
        ]
    )


def renewed(page: str) -> str:
    """A page with the table of today between its markers. ValueError if it has no markers."""
    found = re.fullmatch(f"(?P<head>.*{BEGIN}\n).*(?P<tail>\n{END}.*)", page, re.DOTALL)
    if not found:
        raise ValueError(f"no {BEGIN} ... {END}")
    return found["head"] + table() + found["tail"]


def _signs(row: Format) -> str:
    return ", ".join([*(f"`{name}`" for name in (*row.suffixes, *row.names)), *map(_magic, row.magic)])


def _magic(magic: Magic) -> str:
    text = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"\\`|" else f"\\x{byte:02x}" for byte in magic.content
    )
    return f"`{text}` ({magic.offset})"


def _outcome(row: Format) -> str:
    if isinstance(row.read, Refusal):
        return f"refused: {row.read.why}. {row.read.way_out}"
    return "read, with all parts of a split model" if row.parts else "read"


def main() -> int:
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
