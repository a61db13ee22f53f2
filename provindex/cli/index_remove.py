"""`provindex index remove`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provindex.cli.index_build import finish_build
from provindex.cli.options import Common


def index_remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the index: model_id[@revision][#variant].")],
    index: Annotated[Path, typer.Option("--index", metavar="DIR", help="The index folder to remove rows from.")],
    *,
    common: Common,
) -> None:
    """Remove rows from an index by their ids; all of them, or none if one is wrong."""
    from provindex.api import remove_rows

    finish_build(remove_rows(index, ids), common)
