"""`provindex index add`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from provindex.cli.fetching import bytes_of, say_fetched, say_plan
from provindex.cli.index_build import finish_build
from provindex.cli.options import Common, MaxMbOption, ModeOption

FETCH_HELP = (
    "Also add the N models of the catalogue that look most like ancestors of each, by their norms, from the Hub."
)


def index_add(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="As for build.")],
    # Called `output` like that of `build`: the verb writes an index, and its answer is not written to a file.
    output: Annotated[Path, typer.Option("--index", metavar="DIR", help="The index folder to add to.")],
    mode: ModeOption = "exact",
    fetch: Annotated[int | None, typer.Option("--fetch", metavar="N", min=1, help=FETCH_HELP)] = None,
    max_mb: MaxMbOption = None,
    *,
    common: Common,
) -> None:
    """Add models to an existing index."""
    from provindex.api import add_fetching, fill_index

    limit = bytes_of(fetch, max_mb, common)
    if fetch is None:
        finish_build(
            fill_index(output, sources, create=False, mode=mode, offline=common.offline, report=common.say), common
        )
        return
    planned = partial(say_plan, common=common)
    built, spent = add_fetching(output, sources, fetch, mode=mode, limit=limit, report=common.say, planned=planned)
    say_fetched(spent, common, output.name)
    finish_build(built, common, spent)
