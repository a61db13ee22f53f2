"""`provindex index status`"""

from __future__ import annotations

from provindex.cli.options import Common, IndexOption


def index_status(index: IndexOption = None, *, common: Common) -> None:
    """Show what an index holds, how old it is, and what an update would download."""
    from provindex import api
    from provindex.report.document import index_document

    opened = api.Index.load(*(index or ()))
    common.answer(index_document(opened, origins=api.look(opened.folders, offline=common.offline)))
