"""`provindex index list`"""

from __future__ import annotations

from provindex.cli.options import Common, IndexOption


def index_list(index: IndexOption = None, *, common: Common) -> None:
    """List every row of an index: model, family, publisher, license, mode, and when it was made."""
    from provindex.api import Index
    from provindex.report.document import index_document

    common.answer(index_document(Index.load(*(index or ())), listed=True))
