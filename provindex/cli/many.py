"""Many models in one run: the list of them, one answer after another, and one exit status for all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from provindex.cli.options import Common
from provindex.cli.output import part_text, print_text, write_text
from provindex.common.errors import ProvindexError, UsageError, printable
from provindex.common.lists import reference_in

WORST = (2, 1, 3, 0)  # which exit status stands for several
STDIN = "-"
MOST_LINES, MOST_BYTES = 1_000_000, 4_096
Work = Callable[[str], tuple[dict[str, Any], int]]  # a reference: its document, and its exit status


def listed(models: Sequence[str]) -> list[str]:
    """The references that were given; `-` stands for the lines of standard input, without blank ones and # comments.

    A line that is a path as it stands is that path: else whoever names a folder `clean #2` has `clean` judged for it.
    """
    found: list[str] = []
    for model in models:
        found += _lines() if model == STDIN else [model]
    if not found:
        raise UsageError("The list of models is empty.", "Write one model a line.")
    return found


def _lines() -> list[str]:
    lines = []
    for number, line in enumerate(iter(lambda: sys.stdin.buffer.readline(MOST_BYTES + 1), b""), 1):
        if number > MOST_LINES or len(line) > MOST_BYTES:
            raise UsageError(f"A list has at most {MOST_LINES:,} lines of {MOST_BYTES:,} bytes.", "Split it.")
        lines.append(reference_in(os.fsdecode(line)))  # as the system decodes arguments
    return [line for line in lines if line]


def answer_each(models: Sequence[str], work: Work, common: Common, *, jsonl: bool) -> None:
    """Answer for every model, and exit with one status: 2 over 1 over 3 over 0.

    With --jsonl each answer is a line, with the model as it was named (`reference`) and its own exit status. A model
    that cannot be read ends nothing: its line says why. One model alone, without --jsonl, is answered as ever.
    """
    if len(models) == 1 and not jsonl:
        document, status = work(models[0])
        common.answer(document)
        raise typer.Exit(status)
    if not jsonl and (common.json or common.format != "text"):
        raise UsageError(f"{len(models)} models are no single document.", "Use --jsonl: one JSON line a model.")
    if jsonl and common.format != "text":
        raise UsageError(f"--jsonl prints JSON, not {common.format}.", "Leave out --format.")
    statuses, written = [], []
    for model in models:
        try:
            document, status = work(model)
        except ProvindexError as error:
            common.say(f"{model}: {error}", even_if_quiet=True)
            document, status = _failed(error.message, error.next_step), 2
        except OSError as error:  # the system refused: a name that is too long, a file that may not be read
            sentence = f"{error.strerror or error}."
            common.say(f"{model}: {sentence}", even_if_quiet=True)
            document, status = _failed(printable(sentence), None), 2
        statuses.append(status)
        part = part_text({"reference": model, "exit_status": status, **document} if jsonl else document, jsonl, model)
        if common.output is None:
            print_text(part)
        else:
            written.append(part)
    if common.output is not None:
        write_text("".join(written), common.output)
    raise typer.Exit(min(statuses, key=WORST.index))


def _failed(error: str, next_step: str | None) -> dict[str, Any]:
    """The document of a model that could not be read."""
    return {"schema": "provindex.error/1", "status": "failed", "error": error, "next_step": next_step}
