"""The column reference says what the schema says."""

from __future__ import annotations

from build_index.columns import REFERENCE, markdown


def test_the_column_reference_is_the_schema() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == markdown()
