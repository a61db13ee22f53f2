"""`--report FILE`: the same answer once more, in the format that the file's suffix asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from provindex.cli.options import Common
from provindex.cli.output import check_writable, write_text
from provindex.common.errors import UsageError
from provindex.report.renderers import SUFFIXES, format_of

ReportOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--report", metavar="FILE",
        help=f"Write a report as well, in the format of its suffix ({' '.join(SUFFIXES)}); repeat it for more.",
    ),
]  # fmt: skip


def checked(reports: Sequence[Path] | None, models: int = 1) -> Sequence[Path]:
    """The files to write. UsageError, before the work, for a suffix of no format and a file that cannot be written."""
    for path in reports or ():
        if format_of(path.name) is None:
            raise UsageError(
                f"{path.name} has no suffix that names a format.", f"The suffixes are {', '.join(SUFFIXES)}."
            )
        check_writable(path, "--report")
    if reports and models != 1:
        raise UsageError(f"{models} models are no single report.", "Name one model, or use --jsonl.")
    return reports or ()


def write_reports(document: dict[str, Any], reports: Sequence[Path], common: Common) -> None:
    """Write a document into each file."""
    from provindex.report.document import dated
    from provindex.report.renderers import render

    for path in reports:
        write_text(render(format_of(path.name) or "", dated(document)), path)
        common.say(f"report {path}")
