"""`provindex index export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provindex.cli.index_build import finish_build
from provindex.cli.options import Common, IndexOption

OUTPUT_HELP = "A new folder, which --index takes; or FILE.parquet, which query and `index build` take."


def index_export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR|FILE.parquet", help=OUTPUT_HELP)],
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Only these ids. [default: all]")] = None,
    index: IndexOption = None,
    *,
    common: Common,
) -> None:
    """Write an index, or some of its models, to a folder or file that can be carried to another machine."""
    from provindex.api import export_index

    with common.bar("writing", "models") as bar:
        built = export_index(output, index or (), ids or (), progress=bar)
    finish_build(built, common)
