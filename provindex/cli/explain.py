"""`provindex explain`"""

from __future__ import annotations

from typing import Annotated

import typer

from provindex.cli.options import Common

CODES_HELP = "A word of an answer: the code of a reason, a signal, a test, a relation, a role, a verdict or a state."


def explain(codes: Annotated[list[str], typer.Argument(metavar="CODE...", help=CODES_HELP)], *, common: Common) -> None:
    """Say what a word of an answer means."""
    from provindex.report.explain import explain_document

    common.answer(explain_document(codes))
