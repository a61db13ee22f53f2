"""The options and arguments that several verbs have, each written once.

A verb gets the options that all verbs have as one value, `common`. `with_common` shows them to Typer one by one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from provindex.cli import output as printing
from provindex.common.progress import Bar
from provindex.report.renderers import RENDERERS

INTERRUPTED = "provindex: Interrupted."
Mode = Literal["exact", "sampled", "norms"]
if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(RENDERERS)]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a weight file, org/name[/file][@revision], a fingerprint file, or the id of an indexed model.",
    ),
]
ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="A folder, a weight file, org/name[/file][@revision], a fingerprint file, or the id of an indexed model; "
        "several, or - for a list on standard input.",
    ),
]
JsonlOption = Annotated[bool, typer.Option("--jsonl", help="Print one line of JSON a model, with its exit status.")]
SignalsOption = Annotated[
    bool, typer.Option("--signals", help="Also show the eight signals and what unrelated models reach; JSON has them.")
]
IndexOption = Annotated[
    list[str] | None,
    typer.Option(
        "--index",
        metavar="PATH|REPO[@REV]",
        help="An index folder or a pulled dataset; repeat it to use several as one. "
        "[default: the one pulled last, else embedded, with other tools' databases that were pulled]",
    ),
]
ModeOption = Annotated[
    Mode,
    typer.Option("--mode", help="Read every byte; headers, fixed blocks and panels; or headers, norms and biases."),
]
AutoModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="Read every byte; headers, fixed blocks and panels; or headers, norms and biases. [default: sampled for a "
        "model on the Hub of more than 1 GB, which is then not downloaded; else exact]",
    ),
]
FetchOption = Annotated[
    int | None,
    typer.Option(
        "--fetch",
        metavar="N",
        min=1,
        help="First read a few MB of each of the N models of the catalogue that look most like ancestors from the Hub, "
        "and keep them in the index `fetched`.",
    ),
]
MaxMbOption = Annotated[
    float | None,
    typer.Option("--max-mb", metavar="MB", help="Most megabytes that --fetch may read. [default: 500]"),
]
NewIndexOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="The index folder; rows in it stay, or make place for rows that say more."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every verb has, in the order of `--help`."""

    offline: Annotated[bool, typer.Option("--offline", help="Never ask the Hub; use its cache.")] = False
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print the answer.")] = "text"
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the answer to a file.")
    ] = None
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors and failed gates on standard error.")
    ] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more, on standard error too.")] = False

    def answer(self, document: dict[str, Any]) -> None:
        """Print a document in the format, and to the place, that the options name."""
        printing.print_answer(document, "json" if self.json else self.format, self.output)

    def say(self, line: str, *, even_if_quiet: bool = False) -> None:
        """Print a line on standard error; with --quiet only if it is an error or a failed gate."""
        if even_if_quiet or not self.quiet:
            printing.say(line)

    def bar(self, label: str, unit: str) -> Bar:
        """A progress line on standard error, unless --quiet."""
        return Bar(label, unit, quiet=self.quiet)


def with_common(verb: Callable[..., None]) -> Callable[..., None]:
    """The function that Typer registers for a verb: the options of `Common` take the place of its parameter `common`.

    An option that the verb declares itself (`--output DIR` of `index build`) is not added a second time; that field of
    `common` then has its default. UsageError, before the verb starts, if the answer's file cannot be written.
    """
    own = inspect.signature(verb, eval_str=True).parameters
    added = [option for option in _common_options() if option.name not in own]

    @functools.wraps(verb)
    def run(**values: Any) -> None:
        common = Common(**{option.name: values.pop(option.name) for option in added})
        printing.check_writable(common.output)
        try:
            verb(**values, common=common)
        except KeyboardInterrupt as interrupt:
            printing.say(INTERRUPTED)
            raise typer.Exit(130) from interrupt

    shown = [*(parameter for name, parameter in own.items() if name != "common"), *added]
    run.__dict__["__signature__"] = inspect.Signature(shown)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def _common_options() -> list[inspect.Parameter]:
    """The fields of `Common` as keyword parameters."""
    types = get_type_hints(Common, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, keyword, default=f.default, annotation=types[f.name]) for f in fields(Common)]
