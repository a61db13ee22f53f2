"""`provindex index verify`"""

from __future__ import annotations

import typer

from provindex.cli.options import Common, IndexOption


def index_verify(index: IndexOption = None, *, common: Common) -> None:
    """Check every digest, row and vector of an index; status 1 if something is wrong."""
    from provindex.api import Index
    from provindex.report.document import index_document

    with common.bar("verifying", "models") as bar:
        opened, problems = Index.check(*(index or ()), progress=bar)
    common.answer(index_document(opened, problems))
    if problems:
        raise typer.Exit(1)
