"""`provindex index pull`"""

from __future__ import annotations

from typing import Annotated

import typer

from provindex.cli.options import Common

REPO_HELP = (
    "A dataset of the Hub, or another tool's database there: cisco-ai/model-provenance-kit. "
    "[default: PROVINDEX_DATASET]"
)
SHA256_HELP = "SHA-256 of another tool's archive, if it is another release than the known one."


def index_pull(
    repo: Annotated[str | None, typer.Argument(metavar="[REPO[@REV]]", help=REPO_HELP)] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", metavar="HEX", help=SHA256_HELP)] = None,
    *,
    common: Common,
) -> None:
    """Download an index from the Hub, or update it; it is then used where no --index is given."""
    from provindex import api
    from provindex.report.document import index_document

    with common.bar("pulling", "bytes") as bar, common.bar("making rows", "models") as making:
        pulled = api.pull(repo, sha256=sha256, offline=common.offline, progress=bar, making=making)
    for refused in pulled.current.left_out if common.json or common.output else ():  # the text lists them itself
        common.say(f"left out {refused.path}: {refused.reason}")
    common.answer(index_document(api.Index.load(pulled.folder), pulled=pulled))
