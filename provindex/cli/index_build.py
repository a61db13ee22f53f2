"""`provindex index build`, and how it and its relatives (`add`, `import`) end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from provindex.cli.options import Common, ModeOption, NewIndexOption

if TYPE_CHECKING:
    from provindex.api import Built, Spent

SOURCES_HELP = "Models, folders of models, fingerprint files, a list file, or - for a list on standard input."


def index_build(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCES_HELP)],
    output: NewIndexOption,
    mode: ModeOption = "exact",
    *,
    common: Common,
) -> None:
    """Make an index, or add to it what is missing."""
    from provindex.api import fill_index

    built = fill_index(output, sources, create=True, mode=mode, offline=common.offline, report=common.say)
    finish_build(built, common)


def finish_build(built: Built, common: Common, fetched: Spent | None = None) -> None:
    """Print what was built, then what failed, each once and with its whole path, even if --quiet.

    Exit with status 1 if something failed and the rest was saved, with 2 if all failed.
    """
    from provindex.report.document import index_document

    common.answer(index_document(built.index, built=built, fetched=fetched))
    if not built.failed:
        return
    done = len(built.added) + len(built.replaced) + len(built.present)
    common.say(f"provindex: {len(built.failed)} of {len(built.failed) + done} models failed:", even_if_quiet=True)
    for source, why in built.failed:
        path = built.paths.get(source, source)
        common.say(f"  {path}: {why}", even_if_quiet=True)
    raise typer.Exit(1 if done or built.removed else 2)
