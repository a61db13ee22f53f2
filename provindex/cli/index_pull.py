"""`provindex index pull`"""

from __future__ import annotations

from typing import Annotated

import typer

from provindex.cli.options import Common

REPO_HELP = "A dataset of the Hub. [default: PROVINDEX_DATASET]"


def index_pull(
    repo: Annotated[str | None, typer.Argument(metavar="[REPO[@REV]]", help=REPO_HELP)] = None,
    *,
    common: Common,
) -> None:
    """Download an index from the Hub, or update it; it is then used where no --index is given."""
    from provindex import api
    from provindex.report.document import index_document

    with common.bar("pulling", "bytes") as bar:
        pulled = api.pull(repo, offline=common.offline, progress=bar)
    for refused in pulled.current.left_out if common.json or common.output else ():  # the text lists them itself
        common.say(f"left out {refused.path}: {refused.reason}")
    common.answer(index_document(api.Index.load(pulled.folder), pulled=pulled))
