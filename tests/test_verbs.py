"""The table of verbs and the table of formats: what holds for every row, without running a verb."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from commands import run
from typer.main import get_command
from typer.testing import CliRunner

from provindex.cli.app import VERBS, app
from provindex.cli.options import Common, with_common
from provindex.report import document, renderers, text

ROOM = Path(__file__).parent.parent / "provindex" / "cli"
SPELLINGS = {
    "offline": ["--offline"], "json": ["--json"], "format": ["--format", "-f"], "output": ["--output", "-o"],
    "quiet": ["--quiet", "-q"], "verbose": ["--verbose", "-v"],
}  # fmt: skip
Verb = Callable[..., None]
Row = tuple[str, Verb, typer.Typer]


def command_of(name: str, group: typer.Typer) -> Any:
    found: Any = get_command(group)
    return found.commands[name]


@pytest.mark.parametrize("row", VERBS, ids=lambda row: row[1].__name__)
def test_every_verb_has_help_and_the_common_options(row: Row) -> None:
    name, verb, group = row
    command = command_of(name, group)
    assert command.help and all(parameter.help for parameter in command.params)
    own = [n for n in inspect.signature(verb).parameters if n != "common"]
    common = [n for n in SPELLINGS if n not in own]
    assert [p.name for p in command.params] == own + common
    assert {p.name: p.opts for p in command.params if p.name in common} == {n: SPELLINGS[n] for n in common}


def test_the_common_options_are_those_of_the_table_above() -> None:
    assert [field.name for field in fields(Common)] == list(SPELLINGS)


def test_every_verb_is_a_file_and_is_listed_by_help() -> None:
    assert len({(name, group.info.name) for name, _, group in VERBS}) == len(VERBS)
    assert {verb.__name__ for _, verb, _ in VERBS} <= {path.stem for path in ROOM.glob("*.py")}
    for group, arguments in ((app, []), (get_index(), ["index"])):
        shown = CliRunner().invoke(app, [*arguments, "--help"]).output
        for name, verb, its_group in VERBS:
            if its_group is group:
                assert f"  {name} " in shown and (verb.__doc__ or "-").split()[0] in shown


def test_h_is_help_everywhere() -> None:
    for before in ([], ["index"], *([*(["index"] if group is not app else []), name] for name, _, group in VERBS)):
        short, long = (CliRunner().invoke(app, [*before, option]) for option in ("-h", "--help"))
        assert short.exit_code == 0 and short.output == long.output and "-h, --help" in short.output, before


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("provindex ", {"query", "compare", "audit", "fingerprint", "push", "hook", "explain", "index"}),
        ("provindex index v", {"verify"}),
        ("provindex query --deny", {"--deny", "--deny-related"}),
        ("provindex compare --expect ", {"linked", "unrelated"}),
    ],
)
def test_a_shell_completes_verbs_options_and_values(words: str, offered: set[str]) -> None:
    """As the script of `provindex --install-completion` asks in bash."""
    at = str(len(words.split()) - (not words.endswith(" ")))
    ran = run(_PROVINDEX_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=at)
    assert (ran.status, set(ran.out.split())) == (0, offered)


def get_index() -> typer.Typer:
    (group,) = {group for _, _, group in VERBS} - {app}
    return group


def test_common_is_filled_from_the_command_line_and_an_own_option_stays_the_verbs(tmp_path: Path) -> None:
    got: list[Any] = []
    alone, either = typer.Typer(), tmp_path / "answer"

    def plain(model: str, *, common: Common) -> None:
        got.append((model, common))

    def writes(output: Annotated[int, typer.Option("--size")] = 1, *, common: Common) -> None:
        got.append((output, common))

    for verb in (plain, writes):
        alone.command(verb.__name__)(with_common(verb))
    runner = CliRunner()
    assert runner.invoke(alone, ["plain", "m", "--offline", "-q", "-f", "json", "-o", str(either)]).exit_code == 0
    assert runner.invoke(alone, ["writes", "--size", "3", "-v"]).exit_code == 0
    assert got == [
        ("m", Common(offline=True, quiet=True, format="json", output=either)),
        (3, Common(verbose=True)),
    ]
    assert runner.invoke(alone, ["writes", "-o", str(either)]).exit_code == 2
    refused = runner.invoke(alone, ["plain", "m", "-o", str(tmp_path / "nowhere" / "answer")])
    assert "there is no folder" in str(refused.exception) and len(got) == 2, "it is refused before the verb starts"


def test_formats_come_from_the_table_of_renderers() -> None:
    name, _, group = VERBS[0]
    (option,) = (p for p in command_of(name, group).params if p.name == "format")
    shown = CliRunner().invoke(app, [name, "--help"]).output
    assert option.default == next(iter(renderers.RENDERERS)) and "|".join(renderers.RENDERERS) in shown


def test_render_names_a_format() -> None:
    answer = {"schema": "provindex.index/1", "index": None, "models": [], "families": [], "bytes": 0, "problems": []}
    assert renderers.render("json", answer) == document.dumps(answer)
    with pytest.raises(KeyError):
        renderers.render("xml", answer)


def test_text_is_wide_unless_a_width_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(text, "render", lambda document, **how: asked.append(how) or "")
    renderers.render("text", {})
    renderers.render("text", {}, width=70, color=True)
    assert asked == [{"width": text.PLAIN_WIDTH, "color": False}, {"width": 70, "color": True}]
