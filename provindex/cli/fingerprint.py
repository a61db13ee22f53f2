"""`provindex fingerprint`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provindex.cli.options import AutoModeOption, Common, IndexOption, ModelArgument
from provindex.cli.output import check_writable
from provindex.cli.reading import open_index_for, read_model
from provindex.common.errors import UsageError


def fingerprint(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.parquet", help="Write the fingerprint to this file."),
    ] = None,
    index: IndexOption = None,
    mode: AutoModeOption = None,
    *,
    common: Common,
) -> None:
    """Write a model's fingerprint."""
    from provindex.api import write_fingerprint
    from provindex.report.document import fingerprint_document

    if output is not None and output.suffix != ".parquet":
        raise UsageError(f"A fingerprint is a Parquet file; {output.name} does not end in .parquet.")
    check_writable(output)
    found = read_model(model, open_index_for(model, index, common), mode, common)
    if output is not None:
        write_fingerprint(found.fingerprint, output)
    common.answer(fingerprint_document(found.fingerprint, output.name if output else None))
