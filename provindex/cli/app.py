"""The command line: parse, call one function, render, exit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from provindex.api import Index, Resolved
    from provindex.common.progress import Bar
    from provindex.index.fill import Built

Format = Literal["text", "json"]
Mode = Literal["exact", "sampled"]

PURPOSE = (
    "Which published models do these weights descend from? Answered from the weights, with chance levels, offline."
)

app = typer.Typer(
    name="provindex",
    help=PURPOSE,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
index_app = typer.Typer(help="Build, extend and check indexes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(index_app, name="index")

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a weight file, org/name[/file][@revision], a fingerprint file, or an indexed id.",
    ),
]
IndexOption = Annotated[
    list[str] | None,
    typer.Option(
        "--index",
        metavar="PATH|REPO[@REV]",
        help="Index folder, or a pulled dataset; several act as one. [default: the one pulled last, else embedded]",
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never ask the Hub; use its cache.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to print the answer.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the answer to a file.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing on standard error but errors and failed gates.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on standard error.")]
ModeOption = Annotated[Mode, typer.Option("--mode", help="Read every byte, or only headers, fixed blocks and panels.")]
AutoModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="Read every byte, or only headers, fixed blocks and panels. [default: sampled for more than 1 GB on the "
        "Hub, which is not downloaded then; else exact]",
    ),
]


@app.callback(invoke_without_command=True, help=PURPOSE)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    # Before numpy is imported. What is compared is small: BLAS would spin in threads of its own for longer than it
    # computes, which took up to seven times as long where other processes ran.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if version:
        import provindex

        typer.echo(f"provindex {provindex.__version__}")
        raise typer.Exit


@app.command()
def query(
    model: ModelArgument,
    index: IndexOption = None,
    top: Annotated[int, typer.Option(min=1, help="Matches to show.")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to compare in full.")] = 50,
    deny: Annotated[
        list[str] | None,
        typer.Option(
            "--deny", metavar="ID", help="Fail (1) if the model is linked to this id; 3 if that cannot be told."
        ),
    ] = None,
    mode: AutoModeOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """The likely ancestors of a model."""
    from provindex import api
    from provindex.audit.gate import gate
    from provindex.common.progress import Bar
    from provindex.report import document, words

    _writable(output)
    opened = _load(index, quiet)
    found = _resolve(model, opened, mode, offline, quiet, verbose, stage=1)
    with Bar("comparing", "candidates", quiet=quiet) as bar, _reading(model, quiet) as reading:
        asked, result = api.query(opened, found, top, candidates, reading=reading, also=deny or (), progress=bar)
    _further(found, asked, quiet)
    denied = gate(result, deny or [], opened)
    _answer(document.query_document(result, denied), json, format, output)
    for found_one in denied:
        if found_one.status:
            _say(f"denied {found_one.id}: {words.text(found_one.reason)}", False)
    raise typer.Exit(min((d.status for d in denied if d.status), default=0))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, as for query.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A model, as for query.")],
    expect: Annotated[
        Literal["linked", "unrelated"] | None,
        typer.Option("--expect", help="Fail (1) if the verdict is the other one; 3 if inconclusive."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Look for a copy with another vocabulary and a rotated basis; needs both weights."),
    ] = False,
    index: IndexOption = None,
    mode: AutoModeOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """One pair of models, signal by signal."""
    from provindex.api import Comparison, compare_in_stages
    from provindex.report import document
    from provindex.report.words import joined

    _writable(output)
    opened = _load(index, quiet)
    sides = [_resolve(side, opened, mode, offline, quiet, verbose, stage=1) for side in (a, b)]
    with _reading(f"{a}, {b}", quiet) as reading:
        *read, pair = compare_in_stages(*sides, reading=reading, index=opened, deep=deep, offline=offline)
    for before, after in zip(sides, read, strict=True):
        _further(before, after, quiet)
    used = {side.fingerprint.mode for side in read if not side.fingerprint.indexed}
    settings = {
        "mode": mode or ("sampled" if "sampled" in used else "exact"),
        "expect": expect,
        **({"deep": True} if deep else {}),
    }
    answer = Comparison(read[0].fingerprint, read[1].fingerprint, pair, opened.info, settings)
    _answer(document.compare_document(answer), json, format, output)
    if expect and pair.verdict != expect:
        why = f", log10 p {pair.log10_p:.1f}" if pair.verdict != "inconclusive" else f" ({joined(pair.reasons)})"
        _say(f"expected {expect}: {pair.verdict}{why}", False)
        raise typer.Exit(3 if pair.verdict == "inconclusive" else 1)


@app.command()
def fingerprint(
    model: ModelArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.parquet", help="Where to write it.")
    ] = None,
    index: IndexOption = None,
    mode: AutoModeOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a model's fingerprint."""
    from provindex.common.errors import UsageError
    from provindex.fingerprint.parquet import write_fingerprint
    from provindex.report import document

    if output is not None and output.suffix != ".parquet":
        raise UsageError(f"A fingerprint is a Parquet file; {output.name} does not end in .parquet.")
    _writable(output)
    opened = _load(index, quiet) if index or not Path(model).exists() else None
    found = _resolve(model, opened, mode, offline, quiet, verbose)
    if output is not None:
        write_fingerprint(found.fingerprint, output)
    _answer(document.fingerprint_document(found.fingerprint, output.name if output else None), json, format, None)


@app.command()
def push(
    model: ModelArgument,
    to: Annotated[
        str | None, typer.Option("--to", metavar="REPO", help="The dataset. [default: PROVINDEX_DATASET]")
    ] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Commit to main instead of opening a pull request: for maintainers.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show exactly what would be sent, and send nothing.")
    ] = False,
    acknowledge: Annotated[
        list[str] | None,
        typer.Option(
            "--acknowledge",
            metavar="LICENSE|gated",
            help="You read these terms of the model, and they let you publish measurements of it; repeat it.",
        ),
    ] = None,
    index: IndexOption = None,
    mode: ModeOption = "exact",
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Contribute a model's fingerprint to the Hub dataset."""
    from provindex.hub import push as contribution
    from provindex.report import document

    _writable(output)
    opened = _load(index, quiet) if index or not Path(model).exists() else None
    found = _resolve(model, opened, mode, offline, quiet, verbose)
    sent = contribution.push(
        found.fingerprint,
        to,
        direct=direct,
        dry_run=dry_run,
        offline=offline,
        acknowledged=acknowledge or (),
        say=lambda line: _say(line, quiet),
    )
    settings = {"to": sent.repo, "direct": direct, "dry_run": dry_run, "acknowledge": acknowledge or [], "mode": mode}
    _answer(document.push_document(sent, settings), json, format, output)
    if sent.url:
        _say(f"see    {sent.url}", quiet)


@index_app.command("pull")
def index_pull(
    repo: Annotated[
        str | None,
        typer.Argument(metavar="[REPO[@REV]]", help="A dataset of the Hub. [default: PROVINDEX_DATASET]"),
    ] = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Get an index from the Hub, or what is new in it; it then answers where no --index is named."""
    from provindex.api import Index
    from provindex.common.progress import Bar
    from provindex.hub.pull import pull
    from provindex.report import document

    _writable(output)
    with Bar("pulling", "bytes", quiet=quiet) as bar:
        pulled = pull(repo, offline=offline, progress=bar)
    for refused in pulled.current.left_out if json or output else ():  # the text says so itself
        _say(f"left out {refused.path}: {refused.reason}", quiet)
    _answer(document.index_document(Index.load(pulled.folder), pulled=pulled), json, format, output)


@index_app.command("status")
def index_status(
    index: IndexOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """What an index holds, how old it is, and what an update would fetch."""
    from provindex.api import Index
    from provindex.hub.pull import look
    from provindex.report import document

    _writable(output)
    opened = Index.load(*(index or ()))
    _answer(document.index_document(opened, origins=look(opened.folders, offline=offline)), json, format, output)


@index_app.command("verify")
def index_verify(
    index: IndexOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check every digest, row and vector of an index; status 1 if something is wrong."""
    from provindex.api import Index
    from provindex.common.progress import Bar
    from provindex.report import document

    _writable(output)
    with Bar("verifying", "models", quiet=quiet) as bar:
        opened, problems = Index.check(*(index or ()), progress=bar)
    _answer(document.index_document(opened, problems), json, format, output)
    if problems:
        raise typer.Exit(1)


@index_app.command("build")
def index_build(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Models, folders of models, fingerprint files, a list file, or -."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The index folder; what is there already stays.")
    ],
    mode: ModeOption = "exact",
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make an index, or add to it what is missing."""
    _fill(output, sources, True, mode, offline, json, format, quiet)


@index_app.command("add")
def index_add(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="As for build.")],
    index: Annotated[Path, typer.Option("--index", metavar="DIR", help="The index folder to add to.")],
    mode: ModeOption = "exact",
    offline: OfflineOption = False,
    json: JsonOption = False,
    format: FormatOption = "text",
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add models to an index that is there."""
    _fill(index, sources, False, mode, offline, json, format, quiet)


@index_app.command("import")
def index_import(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The database: a folder with catalog/ and features/, or above it.")
    ],
    format: Annotated[
        Literal["cisco-mpk"], typer.Option("--format", "-f", help="Whose database it is: Cisco model-provenance-kit's.")
    ] = "cisco-mpk",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The index folder; what is there already stays.")
    ] = Path("cisco-mpk"),
    deep_signals: Annotated[
        str | None,
        typer.Option(
            "--deep-signals",
            metavar="ZIP|DIR|REPO",
            help="Weight signals besides: deep-signals.zip, the folder of it, or the dataset that has it "
            "(cisco-ai/model-provenance-kit).",
        ),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Digest of the zip, if it is not the known one.")
    ] = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make an ordinary index of another tool's published database."""
    from provindex.peers import cisco

    digest = sha256 or cisco.PINNED
    deep = _archive(deep_signals, digest, offline, quiet) if deep_signals else None
    built = cisco.import_database(path, output, deep=deep, sha256=digest, report=lambda line: _say(line, quiet))
    _built(built, json, "text")


def _archive(named: str, sha256: str, offline: bool, quiet: bool) -> Path:
    """The archive of deep signals: a path, or fetched from a dataset of the Hub."""
    from provindex.common.progress import Bar
    from provindex.hub.pull import fetch_file
    from provindex.index.pulled import is_reference
    from provindex.peers.cisco import ARCHIVE

    if not is_reference(named):
        return Path(named)
    with Bar(f"fetching {ARCHIVE}", "bytes", quiet=quiet) as bar:
        return fetch_file(named, ARCHIVE, sha256, offline=offline, progress=bar)


def _fill(
    folder: Path, sources: list[str], create: bool, mode: str, offline: bool, json: bool, format: str, quiet: bool
) -> None:
    from provindex.api import fill_index

    built = fill_index(
        folder, sources, create=create, mode=mode, offline=offline, report=lambda line: _say(line, quiet)
    )
    _built(built, json, format)


def _built(built: Built, json: bool, format: str) -> None:
    """Tell what was built, then what failed; status 2 if something did."""
    from provindex.report import document

    _answer(document.index_document(built.index, built=built), json, format, None)
    if built.failed:
        total = len(built.failed) + len(built.added) + len(built.present)
        _say(f"provindex: {len(built.failed)} of {total} models failed:", False)
        for source, why in built.failed:
            _say(f"  {source}: {why}", False)
        raise typer.Exit(2)


# --- shared by the verbs ---


def _load(references: list[str] | None, quiet: bool) -> Index:
    from provindex.api import Index

    opened = Index.load(*(references or ()))
    count = opened.info.models
    _say(f"index  {opened.info.label}, {count:,} model{'s' * (count != 1)}", quiet)
    return opened


def _reading(model: str, quiet: bool) -> Bar:
    from provindex.common.progress import Bar

    return Bar(f"reading {Path(model).name}", "bytes", quiet=quiet)


def _further(before: Resolved, after: Resolved, quiet: bool) -> None:
    """Say that more was read, if it was."""
    if after is not before:
        _say(f"model  {after.label}: more than that was needed, whole layers: {_read(after)}", quiet)


def _read(found: Resolved) -> str:
    """How much was read of how much, and how much was fetched for it: headers and what lies between, too."""
    fp, fetched = found.fingerprint, found.model.transferred if found.model else 0
    more = f" ({_size(fetched)} fetched)" if fetched else ""
    return f"read {_size(fp.bytes_read)} of {_size(fp.bytes_total)}{more}"


def _resolve(
    model: str,
    opened: Index | None,
    mode: str | None,
    offline: bool,
    quiet: bool,
    verbose: bool,
    stage: int = 2,
) -> Resolved:
    from provindex.api import resolve
    from provindex.report.document import notes
    from provindex.report.words import text

    with _reading(model, quiet) as bar:
        found = resolve(model, index=opened, mode=mode, stage=stage, offline=offline, progress=bar)
    _say(_described(found), quiet)
    for warning in notes(found.fingerprint):
        _say(f"note   {text(warning)}", quiet)
    for name, reason in found.fingerprint.absences.items() if verbose else ():
        _say(f"absent {name}: {text(reason)}", quiet)
    return found


def _described(found: Resolved) -> str:
    fp, label, facts = found.fingerprint, found.label, found.fingerprint.facts
    read = _read(found) if fp.bytes_read < fp.bytes_total else _size(fp.bytes_total)
    kind = ", ".join(filter(None, (facts.architecture or "unknown architecture", facts.precision)))
    origin = "; from the index" if fp.indexed else ""
    return f"model  {label}, {_count(facts.parameters)} parameters, {kind}; {fp.mode}, {read}{origin}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _say(line: str, quiet: bool) -> None:
    from provindex.common.errors import printable

    if not quiet:
        typer.echo(printable(line), err=True)


def _writable(output: Path | None) -> None:
    """Complain about an output that cannot be written before the work, not after it."""
    from provindex.common.errors import UsageError

    if output is not None and output.is_dir():
        raise UsageError(f"{output} is a folder; --output needs a file.")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}.", "Make it first.")


def _answer(answer: dict[str, Any], json: bool, format: str, output: Path | None) -> None:
    """Print a document, or write it to a file, whole or not at all."""
    import shutil

    from provindex.report import document, text

    if json or format == "json":
        written = document.dumps(answer)
    else:
        terminal = output is None and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else text.PLAIN_WIDTH
        written = text.render(answer, width=width, color=terminal and not os.environ.get("NO_COLOR"))
    if output is None:
        _print(written)
        return
    from provindex.common.files import replacing

    with replacing(output) as temporary:
        temporary.write_text(written, encoding="utf-8")


def _print(written: str) -> None:
    """Write the answer in one piece, as UTF-8 whatever the locale; a reader that went away (`| head`) is no failure."""
    try:
        sys.stdout.buffer.write(written.encode("utf-8"))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
