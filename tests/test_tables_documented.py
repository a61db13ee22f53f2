"""Every row of a table is documented in its chapter, the map draws the arrows of test_rooms, examples are current."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import typer
from test_rooms import ROOMS

from provindex.cli.app import VERBS, app
from provindex.evidence.table import TESTS
from provindex.report.renderers import RENDERERS
from provindex.signals.table import SIGNALS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "provindex"
FACE = "the package itself"  # how the map calls the room "" of test_rooms


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def table(path: str, heading: str) -> list[list[str]]:
    """The cells of the rows of all tables whose first column has that heading."""
    found = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[-:| ]+\n((?:\|.*\n)+)", text_of(path), re.MULTILINE)
    assert found, f"{path}: no table begins with {heading}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in "".join(found).splitlines()]


def named(path: str, heading: str) -> list[str]:
    """The first name in backticks of each row of that table."""
    return [re.findall(r"`([^`]+)`", row[0])[0] for row in table(path, heading)]


def test_the_table_of_signals_names_every_signal() -> None:
    assert named("provindex/signals/README.md", "signal") == [signal.name for signal in SIGNALS]


def test_the_table_of_tests_names_every_test() -> None:
    assert named("provindex/evidence/README.md", "name") == [test.name for test in TESTS]


def test_the_contract_names_every_signal_and_test() -> None:
    (signals,) = (row[1] for row in table("provindex/report/README.md", "field") if row[0] == "`signals`")
    (evidence,) = (row[1] for row in table("provindex/report/README.md", "field") if row[0] == "`evidence`")
    assert all(re.search(rf"\b{signal.name}\b", signals) for signal in SIGNALS)
    assert all(f"`{test.name}`" in evidence for test in TESTS)


def test_the_table_of_formats_names_every_renderer() -> None:
    assert named("provindex/report/README.md", "format") == list(RENDERERS)


@pytest.mark.parametrize("row", VERBS, ids=lambda row: row[1].__name__)
def test_every_verb_is_documented(row: tuple[str, Callable[..., None], typer.Typer]) -> None:
    name, _, group = row
    command = f"provindex {name}" if group is app else f"provindex index {name}"
    assert f"`{command}`" in text_of("provindex/cli/README.md"), f"cli/README.md lacks {command}"
    verbs = (
        verb
        for verbs in re.findall(r"^    provindex index ([a-z|]+) ", text_of("README.md"), re.M)
        for verb in verbs.split("|")
    )
    shown = name in verbs if group is not app else f"    {command} " in text_of("README.md")
    assert shown, f"README.md lacks {command}"


def test_the_map_draws_the_arrows() -> None:
    path = "provindex/README.md"
    short = {
        name: rooms.split() for name, rooms in re.findall(r"^\| `([A-Z]+)` \| `([a-z A-Z.]+)` \|$", text_of(path), re.M)
    }

    def expanded(names: list[str]) -> set[str]:
        return {room for name in names for room in (expanded(short[name]) if name in short else {name})}

    drawn = {}
    for row in table(path, "room"):
        room = "" if row[0] == FACE else row[0].strip("`")
        drawn[room] = expanded(row[2].rstrip("|").strip().strip("`").split())
    assert drawn == ROOMS


EXAMPLES = [
    (path, code)
    for path in ("CONTRIBUTING.md", "provindex/cli/README.md")
    for code in re.findall(r"```python\n(.*?)```", text_of(path), re.DOTALL)
]


@pytest.mark.parametrize(("path", "code"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_what_examples_import_is_there(path: str, code: str) -> None:
    body = textwrap.dedent(code)
    if body.startswith("C."):  # rows of the table of sentences
        body = f"{{{body}}}"
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("provindex"):
            module = import_module(node.module or "")
            for alias in node.names:
                new = f"provindex/report/{alias.name}.py" in text_of(path)  # a file that the example makes
                assert new or hasattr(module, alias.name), f"{path}: {node.module} has no {alias.name}"


def test_links_between_chapters_lead_to_files() -> None:
    chapters = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PACKAGE.rglob("README.md")]
    for chapter in chapters:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", chapter.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (chapter.parent / link).exists(), f"{chapter.relative_to(ROOT)}: {link}"
