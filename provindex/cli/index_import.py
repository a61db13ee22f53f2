"""`provindex index import`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from provindex.cli.index_build import finish_build
from provindex.cli.options import Common, NewIndexOption

PATH_HELP = "The database: the folder that has catalog/ and features/, or a folder above it."
FORMAT_HELP = "Whose database it is: Cisco model-provenance-kit's."
DEEP_HELP = (
    "Also import the weight signals: deep-signals.zip, its unpacked folder, or the dataset that has it "
    "(cisco-ai/model-provenance-kit)."
)
SHA256_HELP = "SHA-256 of the zip file, if it is not the published one."


def index_import(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=PATH_HELP)],
    format: Annotated[Literal["cisco-mpk"], typer.Option("--format", "-f", help=FORMAT_HELP)] = "cisco-mpk",
    output: NewIndexOption = Path("cisco-mpk"),
    deep_signals: Annotated[str | None, typer.Option("--deep-signals", metavar="ZIP|DIR|REPO", help=DEEP_HELP)] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", metavar="HEX", help=SHA256_HELP)] = None,
    *,
    common: Common,
) -> None:
    """Make an index from another tool's published database."""
    from provindex.api import fetch_deep_signals, import_database

    deep = None
    if deep_signals:
        with common.bar("fetching deep-signals.zip", "bytes") as bar:
            deep = fetch_deep_signals(deep_signals, sha256, offline=common.offline, progress=bar)
    finish_build(import_database(path, output, deep=deep, sha256=sha256, report=common.say), common)
