"""What the command prints: the answer on standard output or in a file, everything else on standard error."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from provindex.common import places
from provindex.common.errors import UsageError, printable
from provindex.common.files import full_disk_told, replacing

NO_UTF8 = "backslashreplace"  # of names that are none: \udcff, which JSON reads as it was


def say(line: str) -> None:
    """Print a line on standard error, with control characters escaped."""
    with suppress(BrokenPipeError):  # a reader that is gone (`2>&1 | head`) is not an error
        typer.echo(printable(line), err=True)


def print_answer(document: dict[str, Any], format: str, output: Path | None) -> None:
    """Render a document, then print it or write it to a file. The file is replaced as a whole or left as it was."""
    from provindex.report.document import dated
    from provindex.report.renderers import UNDATED, render

    report = format not in UNDATED or (format == "text" and output is not None)
    document = dated(document) if report else document
    terminal = output is None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    written = render(format, document, width=width, color=terminal and places.color())
    if output is None:
        print_text(written)
        return
    write_text(written, output)


def write_text(written: str, output: Path) -> None:
    """Write a file in UTF-8. It is replaced as a whole or left as it was. A device or a pipe is written to: who may
    write to /dev would put a file into the place of /dev/null.
    """
    if is_special(output):
        with full_disk_told(output):
            output.write_text(written, encoding="utf-8", errors=NO_UTF8)
        return
    with replacing(output) as temporary:
        temporary.write_text(written, encoding="utf-8", errors=NO_UTF8)


def part_text(document: dict[str, Any], jsonl: bool, title: str) -> str:
    """One answer of several: a line of JSON, or text under a title."""
    from provindex.report.renderers import line, render

    if jsonl:
        return line(document)
    text = f"{document['error']}\n" if "error" in document else render("text", document)
    return f"== {printable(title)}\n{text}\n"


def print_text(written: str) -> None:
    """Write text in one piece and in UTF-8, whatever the locale. A reader that is gone (`| head`) is not an error."""
    try:
        with full_disk_told(Path("standard output")):
            sys.stdout.buffer.write(written.encode("utf-8", NO_UTF8))
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_special(path: Path) -> bool:
    """Whether a path, or what it is a link to, is there and is no regular file."""
    return path.exists() and not path.is_file()


def check_writable(output: Path | None, option: str = "--output") -> None:
    """Raise UsageError before the work if the file that an option names cannot be written after it."""
    if output is not None and output.is_dir():
        raise UsageError(f"{output} is a folder; {option} needs a file.")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}.", "Make it first.")


def count_text(parameters: int) -> str:
    """A number of parameters in millions or billions: 1.50B, 0.2M."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def size_text(count: int) -> str:
    """A number of bytes in MB or GB of 10^6 or 10^9 bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
