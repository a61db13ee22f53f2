"""`provindex fingerprint`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provindex.cli.many import answer_each, listed
from provindex.cli.options import AutoModeOption, Common, IndexOption, JsonlOption, ModelsArgument
from provindex.cli.output import check_writable, is_special
from provindex.cli.reading import open_index_for, read_model
from provindex.common.errors import UsageError
from provindex.common.files import is_there

if TYPE_CHECKING:
    from provindex.api import Index


def fingerprint(
    model: ModelsArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.parquet", help="Write the fingerprint to this file."),
    ] = None,
    index: IndexOption = None,
    mode: AutoModeOption = None,
    jsonl: JsonlOption = False,
    *,
    common: Common,
) -> None:
    """Write the fingerprints of models."""
    models = listed(model)
    if output is not None and output.suffix != ".parquet":
        raise UsageError(f"A fingerprint is a Parquet file; {output.name} does not end in .parquet.")
    if output is not None and len(models) > 1:
        raise UsageError(
            f"--output names one file, and these are {len(models)} models.", "Use `index build`, or --jsonl."
        )
    check_writable(output)
    if output is not None and is_special(output):
        raise UsageError(f"{output} is no regular file, and a Parquet file takes the place of what is there.")
    paths = [one for one in models if not is_there(one)]
    opened = open_index_for(paths[0] if paths else models[0], index, common)
    answer_each(models, partial(_made, output=output, opened=opened, mode=mode, common=common), common, jsonl=jsonl)


def _made(
    model: str, output: Path | None, opened: Index | None, mode: str | None, common: Common
) -> tuple[dict[str, Any], int]:
    """The document of one model; its fingerprint is written if a file is named for it."""
    from provindex.api import write_fingerprint
    from provindex.report.document import fingerprint_document

    found = read_model(model, opened, mode, common)
    if output is not None:
        write_fingerprint(found.fingerprint, output)
    return fingerprint_document(found.fingerprint, output.name if output else None), 0
