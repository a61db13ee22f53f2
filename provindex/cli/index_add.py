"""`provindex index add`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provindex.cli.index_build import finish_build
from provindex.cli.options import Common, ModeOption


def index_add(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="As for build.")],
    # Called `output` like that of `build`: the verb writes an index, and its answer is not written to a file.
    output: Annotated[Path, typer.Option("--index", metavar="DIR", help="The index folder to add to.")],
    mode: ModeOption = "exact",
    *,
    common: Common,
) -> None:
    """Add models to an existing index."""
    from provindex.api import fill_index

    built = fill_index(output, sources, create=False, mode=mode, offline=common.offline, report=common.say)
    finish_build(built, common)
