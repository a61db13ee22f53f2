"""Write dataset_card/columns.md, the column reference, from the schema itself.

python -m build_index.columns
"""

from __future__ import annotations

from pathlib import Path

from provindex.fingerprint.record import FINGERPRINT_VERSION
from provindex.fingerprint.rows import COLUMNS
from provindex.index.search import DIMENSIONS

REFERENCE = Path(__file__).parent.parent / "dataset_card" / "columns.md"
TABLES = {
    "models": "Small columns, which answer every question of compatibility (`data/models/*.parquet`).",
    "panels": "Arrays, one row a row group (`data/panels/*.parquet`).",
}


def markdown() -> str:
    """The column reference as Markdown."""
    lines = [
        "# Columns",
        "",
        f"Fingerprint version {FINGERPRINT_VERSION}. Made by `python -m build_index.columns` from "
        "`provindex/fingerprint/panels.py`.",
        "`row_sha256` is over the columns marked *hashed*: names, and values as little-endian bytes or canonical JSON.",
    ]
    for table, meaning in TABLES.items():
        lines += ["", f"## {table}", "", meaning, "", "| column | type | hashed | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{c.name}` | {c.type} | {'yes' if c.content else ''} | {c.meaning} |"
            for c in COLUMNS
            if c.table in (table, "both")
        ]
        if table == "models":
            lines.append(
                f"| `vector` | fixed list of {DIMENSIONS} float32 | | retrieval vector; follows from the rest |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(markdown(), encoding="utf-8")
