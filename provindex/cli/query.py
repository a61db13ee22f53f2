"""`provindex query`"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from provindex.cli.fetching import bytes_of, say_fetched, say_plan
from provindex.cli.options import AutoModeOption, Common, FetchOption, IndexOption, MaxMbOption, ModelArgument
from provindex.cli.reading import open_index, read_model, reading_bar, say_if_read_further

DENY_HELP = "Exit with status 1 if the model is linked to this id, 3 if that cannot be decided; repeat it for more."


def query(
    model: ModelArgument,
    index: IndexOption = None,
    top: Annotated[int, typer.Option(min=1, help="Matches to show.")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to compare in full.")] = 50,
    deny: Annotated[list[str] | None, typer.Option("--deny", metavar="ID", help=DENY_HELP)] = None,
    mode: AutoModeOption = None,
    fetch: FetchOption = None,
    max_mb: MaxMbOption = None,
    *,
    common: Common,
) -> None:
    """Find the likely ancestors of a model."""
    from provindex import api
    from provindex.report.document import query_document
    from provindex.report.words import text

    limit = bytes_of(fetch, max_mb, common)
    opened = open_index(index, common)
    asked = read_model(model, opened, mode, common, stage=1)
    fetched = None
    with common.bar("comparing", "candidates") as bar, reading_bar(model, common) as reading:
        if fetch is None:
            read, result = api.query(opened, asked, top, candidates, reading=reading, also=deny or (), progress=bar)
        else:
            opened, read, result, fetched = api.query_fetching(
                opened, asked, fetch, limit=limit, say=common.say, planned=partial(say_plan, common=common),
                top=top, candidates=candidates, reading=reading, also=deny or (), progress=bar,
            )  # fmt: skip
    say_if_read_further(asked, read, common)
    if fetched is not None:
        say_fetched(fetched, common)
    denied = api.gate(result, deny or [], opened)
    common.answer(query_document(result, denied, fetched))
    failed = [d for d in denied if d.status]
    for one in failed:
        common.say(f"denied {one.id}: {text(one.reason)}", even_if_quiet=True)
    raise typer.Exit(min((d.status for d in failed), default=0))
