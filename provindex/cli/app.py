"""The command line: the table of verbs, and what is said before any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from provindex.cli.audit import audit
from provindex.cli.compare import compare
from provindex.cli.explain import explain
from provindex.cli.fingerprint import fingerprint
from provindex.cli.hook import hook
from provindex.cli.index_add import index_add
from provindex.cli.index_build import index_build
from provindex.cli.index_export import index_export
from provindex.cli.index_import import index_import
from provindex.cli.index_list import index_list
from provindex.cli.index_pull import index_pull
from provindex.cli.index_remove import index_remove
from provindex.cli.index_status import index_status
from provindex.cli.index_sync import index_sync
from provindex.cli.index_verify import index_verify
from provindex.cli.options import with_common
from provindex.cli.push import push
from provindex.cli.query import query
from provindex.common import places
from provindex.common.version import __version__

PURPOSE = (
    "Which published models do these weights descend from? Answered from the weights, with chance levels, offline."
)

app = typer.Typer(
    name="provindex",
    help=PURPOSE,
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
index_app = typer.Typer(help="Build, extend and check indexes.", no_args_is_help=True, rich_markup_mode=None)

VERBS: tuple[tuple[str, Callable[..., None], typer.Typer], ...] = (  # name, function, group; in the order of --help
    ("query", query, app),
    ("compare", compare, app),
    ("audit", audit, app),
    ("fingerprint", fingerprint, app),
    ("push", push, app),
    ("hook", hook, app),
    ("explain", explain, app),
    ("pull", index_pull, index_app),
    ("status", index_status, index_app),
    ("list", index_list, index_app),
    ("verify", index_verify, index_app),
    ("build", index_build, index_app),
    ("add", index_add, index_app),
    ("sync", index_sync, index_app),
    ("remove", index_remove, index_app),
    ("export", index_export, index_app),
    ("import", index_import, index_app),
)
for name, verb, group in VERBS:
    group.command(name)(with_common(verb))
app.add_typer(index_app, name="index")


@app.callback(invoke_without_command=True, help=PURPOSE)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    # BLAS threads spin for longer than our small comparisons take. Where other processes ran, that cost up to a factor
    # of seven. The limit works only if it is set before numpy is imported.
    places.limit_blas_threads()
    if version:
        typer.echo(f"provindex {__version__}")
        raise typer.Exit
