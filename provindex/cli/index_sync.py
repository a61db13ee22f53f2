"""`provindex index sync`"""

from __future__ import annotations

from typing import Annotated

import typer

from provindex.cli.index_build import finish_build
from provindex.cli.options import Common, ModeOption, NewIndexOption

SOURCES_HELP = (
    "A folder of models, looked through with all that is below it; or name=path, of a model or such a folder."
)
PRUNE_HELP = "Remove the rows of models that are no longer there."


def index_sync(
    sources: Annotated[list[str], typer.Argument(metavar="DIR...", help=SOURCES_HELP)],
    output: NewIndexOption,
    prune: Annotated[bool, typer.Option("--prune", help=PRUNE_HELP)] = False,
    processes: Annotated[int, typer.Option("--processes", metavar="N", min=1, help="Models to read at once.")] = 1,
    mode: ModeOption = "exact",
    *,
    common: Common,
) -> None:
    """Make an index hold the models of a folder: add, replace and, if asked, remove rows."""
    from provindex.api import sync_index

    def report(line: str) -> None:
        if common.verbose:  # the answer lists them; between the steps of a bar nobody can read them
            common.say(line)

    with common.bar("reading", "models") as reading, common.bar("comparing", "models") as linking:
        built = sync_index(
            output, sources, mode=mode, prune=prune, processes=processes, report=report, reading=reading,
            linking=linking,
        )  # fmt: skip
    finish_build(built, common)
