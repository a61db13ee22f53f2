"""`provindex push`"""

from __future__ import annotations

from typing import Annotated

import typer

from provindex.cli.options import Common, IndexOption, ModelArgument, ModeOption
from provindex.cli.reading import open_index_for, read_model

TO_HELP = "The dataset. [default: PROVINDEX_DATASET]"
DIRECT_HELP = "Commit to main instead of opening a pull request: for maintainers."
DRY_HELP = "Show exactly what would be sent, and send nothing."
ACKNOWLEDGE_HELP = "You read these terms of the model, and they let you publish measurements of it; repeat it for more."


def push(
    model: ModelArgument,
    to: Annotated[str | None, typer.Option("--to", metavar="REPO", help=TO_HELP)] = None,
    direct: Annotated[bool, typer.Option("--direct", help=DIRECT_HELP)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_HELP)] = False,
    acknowledge: Annotated[
        list[str] | None, typer.Option("--acknowledge", metavar="LICENSE|gated", help=ACKNOWLEDGE_HELP)
    ] = None,
    index: IndexOption = None,
    mode: ModeOption = "exact",
    *,
    common: Common,
) -> None:
    """Contribute a model's fingerprint to the Hub dataset."""
    from provindex import api
    from provindex.report.document import push_document

    found = read_model(model, open_index_for(model, index, common), mode, common)
    terms = acknowledge or []
    sent = api.push(
        found.fingerprint, to,
        direct=direct, dry_run=dry_run, offline=common.offline, acknowledged=terms, say=common.say,
    )  # fmt: skip
    settings = {"to": sent.repo, "direct": direct, "dry_run": dry_run, "acknowledge": terms, "mode": mode}
    common.answer(push_document(sent, settings))
    if sent.url:
        common.say(f"see    {sent.url}")
