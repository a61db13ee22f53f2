"""The step *Ask provindex* of `action.yml`: asks about each model, and says on GitHub what the answers are.

What enters: the action's inputs as INPUT_MODELS, INPUT_DENY, ...; RUNNER_TEMP, GITHUB_OUTPUT and GITHUB_STEP_SUMMARY,
which GitHub sets. What leaves: a file of JSON lines, a table in the summary, annotations, outputs, and the exit status
of `provindex query`. Only the standard library is used, and no shell.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROVINDEX = [sys.executable, "-I", "-m", "provindex"]  # -I: no module of the working directory, which is under test
WORST = ("error", "failed", "inconclusive", "passed", "answered")  # which status stands for several models
MOST_ROWS = 200  # of the table: a summary has at most 1 MiB
MOST_ANNOTATIONS = 10  # of one kind and step, which GitHub shows
MOST_LETTERS = 300  # of a cell or annotation
Answer = dict[str, Any]


def main() -> int:
    """Ask, say, and return the exit status of the step."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that are no UTF-8, or none of the runner's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    on_inconclusive = os.environ.get("INPUT_ON_INCONCLUSIVE", "").strip() or "fail"
    if on_inconclusive not in ("fail", "warn"):
        return refused(f"on-inconclusive is fail or warn, not {on_inconclusive}.")
    models = items("MODELS")
    if not models:
        return refused("The input models is empty.")
    for name in items("PULL"):
        status, said = run(["index", "pull", "--", name])
        if status:
            return refused(said or f"The index {name} could not be pulled.")
    report = Path(tempfile.mkdtemp(prefix="provindex-", dir=os.environ.get("RUNNER_TEMP"))) / "report.jsonl"
    status, said = run(["query", "--jsonl", f"--output={report}", *options(), "--", *models])
    if not report.exists():
        return refused(said or f"provindex ended with status {status} and without a report.")
    answers = [json.loads(line) for line in report.read_text(encoding="utf-8").split("\n") if line]
    worst = min((status_of(answer) for answer in answers), key=WORST.index)
    waived = status == 3 and on_inconclusive == "warn"
    annotate(answers, waived)
    summarize(answers)
    give(status=worst, exit_status=status, report=report)
    return 0 if waived else status


def items(name: str) -> list[str]:
    """The lines of an input, without blank ones and # comments."""
    lines = (line.strip() for line in os.environ.get(f"INPUT_{name}", "").split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def options() -> list[str]:
    """The inputs as options. A value stands in one argument with its option, so that it cannot be another one."""
    named = [(name, value) for name in ("deny", "allow", "policy", "index") for value in items(name.upper())]
    return [*(f"--{name}={value}" for name, value in named), *items("ARGS")]


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """The exit status of provindex, and the last sentence in which it refused.

    Its lines quote names from a model's files; while they are printed, GitHub takes no line as a command.
    """
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}", flush=True)
    said = ""
    with subprocess.Popen(
        [*PROVINDEX, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    ) as process:
        for line in process.stderr or ():
            print(line, end="", flush=True)
            said = line.removeprefix("provindex: ").strip() if line.startswith("provindex: ") else said
    print(f"::{token}::", flush=True)
    return process.returncode, said


def status_of(answer: Answer) -> str:
    """What one model's line says, as the output `status`."""
    if answer["exit_status"] == 2:
        return "error"
    gate = answer.get("gate")
    return gate["status"] if gate else "answered"


def why(answer: Answer) -> Iterator[str]:
    """What decides for one model: an error, or the rules that are not passed; nothing if there is none."""
    if "error" in answer:
        yield " ".join(filter(None, (answer["error"], answer["next_step"])))
    gate = answer.get("gate") or {"denied": [], "on_not_comparable": "pass"}
    states = {"denied", "inconclusive"} | ({"not_comparable"} if gate["on_not_comparable"] != "pass" else set())
    for one in gate["denied"]:
        if one["state"] in states:
            yield f"{one['state']} {one['id']}: {'; '.join(one['reasons'])}"


def passes(answer: Answer) -> bool:
    """Whether the policy lets an answer pass that decides nothing, and asks for no warning."""
    gate = answer.get("gate") or {}
    effects = {gate.get("on_inconclusive"), gate.get("on_not_comparable")}
    return gate.get("status") == "inconclusive" and not answer["exit_status"] and "warn" not in effects


def annotate(answers: Sequence[Answer], waived: bool) -> None:
    """One annotation a model that is not passed, errors first; one where nothing was asked."""
    said: dict[str, list[str]] = {"error": [], "warning": []}
    for answer in sorted(answers, key=lambda answer: WORST.index(status_of(answer))):
        status, exit_status = status_of(answer), answer["exit_status"]
        if status in ("error", "failed", "inconclusive") and not passes(answer):
            kind = "error" if exit_status and not (waived and status == "inconclusive") else "warning"
            said[kind].append(f"{answer['reference']}: {'; '.join(why(answer)) or status}")
    if all(status_of(answer) == "answered" for answer in answers):
        said["warning"].append("No rule denies or allows anything, so that nothing can fail.")
    for kind, lines in said.items():
        for line in lines[:MOST_ANNOTATIONS]:
            command(kind, line)


def command(kind: str, text: str) -> None:
    """Print an annotation. What GitHub would take as the end of it is written as it asks for."""
    text = cut(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    print(f"::{kind} title=provindex::{text}", flush=True)


def summarize(answers: Sequence[Answer]) -> None:
    """Add a table to the summary of the job: model, outcome, closest match, reason."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    rows = ["### provindex", "", "| model | gate | closest | why |", "|---|---|---|---|"]
    for answer in answers[:MOST_ROWS]:
        matches = answer.get("matches") or []
        closest = f"{matches[0]['model_id']} ({matches[0]['relation']})" if matches else "-"
        cells = (answer["reference"], status_of(answer), closest, "; ".join(why(answer)) or "-")
        rows.append(f"| {' | '.join(map(plain, cells))} |")
    if len(answers) > MOST_ROWS:
        rows += ["", f"{len(answers) - MOST_ROWS} more models are in the report."]
    indexes = {f"{i['id']}@{i['revision'][:12]}, {i['models']} models" for i in (a.get("index") for a in answers) if i}
    rows += ["", *(f"Index {plain(index)}." for index in sorted(indexes)), ""]
    with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join(rows))


def plain(text: str) -> str:
    """A text that may quote a stranger's file, for a cell of Markdown: no letter of it means anything."""
    return re.sub(r"([^\w\s./,;:=%-])", r"\\\1", " ".join(cut(text).split())).replace("://", ":\u200b//")


def cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."


def refused(sentence: str) -> int:
    """Status 2: nothing was answered."""
    command("error", sentence)
    give(status="error", exit_status=2, report="")
    return 2


def give(**outputs: object) -> None:
    """Set outputs of the step."""
    path = os.environ.get("GITHUB_OUTPUT")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(f"{name.replace('_', '-')}={value}\n" for name, value in outputs.items())


if __name__ == "__main__":
    sys.exit(main())
