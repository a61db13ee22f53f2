"""The GitHub action: its step *Ask provindex*, run by bash with the environment that GitHub would set.

GitHub is played by `asked`: it fills inputs into the step's `env`, and nothing else, as `action.yml` writes it. The
step *Install provindex* needs the network and is not run; in place of its environment stands this test's interpreter.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import environment
from gate_models import PUBLISHED, Places, write_models

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
INSTALL, ASK = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
SCRIPT = runpy.run_path(str(ROOT / "integrations" / "action.py"))


@dataclass(frozen=True)
class Step:
    """What a run of the step left."""

    status: int
    log: str
    outputs: dict[str, str]
    summary: str

    @property
    def annotations(self) -> list[str]:
        """Workflow commands that GitHub would obey: not those between stop-commands and its token."""
        found, token = [], None
        for line in self.log.splitlines():
            if token is None and line.startswith("::stop-commands::"):
                token = line.removeprefix("::stop-commands::")
            elif token is not None and line == f"::{token}::":
                token = None
            elif token is None and line.startswith("::"):
                found.append(line)
        assert token is None
        return found


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return write_models(tmp_path_factory.mktemp("action"))


@pytest.fixture
def workspace(tmp_path: Path, places: Places) -> Path:
    """A checkout with the models, and with a module that must not be imported in place of numpy."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("child", "stranger", "index"):
        (folder / name).symlink_to(getattr(places, name))
    (folder / "numpy.py").write_text("raise SystemExit(0)")
    return folder


def asked(workspace: Path, **inputs: str) -> Step:
    temporary = workspace.parent / "temporary"
    interpreter = temporary / "provindex-environment" / "bin" / "python"
    interpreter.parent.mkdir(parents=True, exist_ok=True)
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    given = {name.replace("_", "-"): value for name, value in inputs.items()}
    assert given.keys() <= ACTION["inputs"].keys()
    values = {f"inputs.{name}": given.get(name, one.get("default")) for name, one in ACTION["inputs"].items()}
    values["github.action_path"] = str(ROOT)
    env = {name: EXPRESSION.sub(lambda found: values[found[1]], text) for name, text in ASK["env"].items()}
    files = {name: temporary / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    env |= {"RUNNER_TEMP": str(temporary), **{name: str(path) for name, path in files.items()}}
    bash = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", ASK["run"]]
    ran = subprocess.run(
        bash, cwd=workspace, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return Step(ran.returncode, ran.stdout, outputs, files["GITHUB_STEP_SUMMARY"].read_text())


def report(step: Step) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(step.outputs["report"]).read_text(encoding="utf-8").split("\n") if line]


def test_no_input_is_text_of_a_command() -> None:
    for step in (INSTALL, ASK):
        assert not EXPRESSION.search(step["run"]) and step["shell"] == "bash"
    used = {name for step in (INSTALL, ASK) for text in step["env"].values() for name in EXPRESSION.findall(text)}
    assert used == {f"inputs.{name}" for name in ACTION["inputs"]} | {"github.action_path"}, "every input is passed on"
    assert {EXPRESSION.findall(one["value"])[0] for one in ACTION["outputs"].values()} == {
        f"steps.{ASK['id']}.outputs.{name}" for name in ("status", "exit-status", "report")
    }


def test_each_model_is_a_row_and_what_fails_is_an_error(workspace: Path) -> None:
    step = asked(workspace, models="child\n\n# a comment\n  stranger\n", index="index", deny="acme/base\nother/ungated")
    assert step.status == 1
    assert (step.outputs["status"], step.outputs["exit-status"]) == ("failed", "1")
    assert [(line["reference"], line["exit_status"]) for line in report(step)] == [("child", 1), ("stranger", 0)]
    assert step.annotations == ["::error title=provindex::child: denied acme/base: linked (finetune)"]
    rows = [line for line in step.summary.splitlines() if line.startswith("| ")]
    assert rows[0] == "| model | gate | closest | why |"
    assert rows[1].startswith("| child | failed | acme/base") and "denied acme/base" in rows[1]
    assert rows[2].startswith("| stranger | passed | other/stranger") and len(rows) == 3


def test_an_open_answer_is_3_or_a_warning(workspace: Path) -> None:
    inputs = {"models": "stranger", "index": "index", "deny": PUBLISHED}
    fails = asked(workspace, **inputs)
    assert (fails.status, fails.outputs["status"]) == (3, "inconclusive")
    assert [line.split(" ")[0] for line in fails.annotations] == ["::error"]
    warns = asked(workspace, **inputs, on_inconclusive="warn")
    assert (warns.status, warns.outputs["status"], warns.outputs["exit-status"]) == (0, "inconclusive", "3")
    assert [line.split(" ")[0] for line in warns.annotations] == ["::warning"]


def test_a_warning_instead_of_an_open_answer_is_none_instead_of_a_failed_one(workspace: Path) -> None:
    models = "stranger\nchild\nnowhere"
    step = asked(workspace, models=models, index="index", deny=f"acme/base\n{PUBLISHED}", on_inconclusive="warn")
    assert (step.status, step.outputs["status"]) == (2, "error")
    first, second, third = step.annotations
    assert first.startswith("::error title=provindex::nowhere: ") and "::child: denied acme/base" in second
    assert third.startswith("::error title=provindex::stranger: inconclusive")


def test_the_policy_of_the_repository_decides(workspace: Path) -> None:
    (workspace / "provindex.toml").write_text(f'deny = ["{PUBLISHED}"]\non_inconclusive = "pass"\n')
    step = asked(workspace, models="stranger", index="index")
    assert (step.status, step.outputs["status"], step.annotations) == (0, "inconclusive", [])
    (workspace / "other.toml").write_text(f'deny = ["{PUBLISHED}"]\non_inconclusive = "warn"\n')
    step = asked(workspace, models="stranger", index="index", policy="other.toml", args="--top=1\n--quiet")
    assert (step.status, step.outputs["status"]) == (0, "inconclusive")
    assert [line.split(" ")[0] for line in step.annotations] == ["::warning"]
    assert report(step)[0]["settings"]["top"] == 1


def test_without_a_rule_nothing_can_fail_and_that_is_said(workspace: Path) -> None:
    step = asked(workspace, models="child", index="index")
    assert (step.status, step.outputs["status"]) == (0, "answered")
    assert step.annotations == [
        "::warning title=provindex::No rule denies or allows anything, so that nothing can fail."
    ]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"models": " \n"}, "The input models is empty."),
        ({"models": "child", "on_inconclusive": "pass"}, "on-inconclusive is fail or warn, not pass."),
        ({"models": "child", "deny": "acme/bse"}, "Did you mean acme/base?"),
        ({"models": "child", "deny": "x", "policy": "nowhere.toml"}, "There is no policy nowhere.toml."),
        ({"models": "child", "pull": "nobody/nothing"}, "nobody/nothing"),
    ],
)
def test_what_cannot_run_is_2_and_says_why(workspace: Path, inputs: dict[str, str], said: str) -> None:
    step = asked(workspace, index="index", **inputs)
    assert (step.status, step.outputs) == (2, {"status": "error", "exit-status": "2", "report": ""})
    (annotation,) = step.annotations
    assert annotation.startswith("::error title=provindex::") and said in annotation


def test_no_input_is_read_as_code_option_or_command(workspace: Path) -> None:
    hostile = '$(touch a)`touch b`";touch c;"\n--output=d\n::error::e%0A::error::f\n${{ github.token }}'
    step = asked(workspace, models=hostile, index="index", deny="acme/base")
    assert {path.name for path in workspace.iterdir()} == {"child", "stranger", "index", "numpy.py"}
    assert [line["reference"] for line in report(step)] == hostile.split("\n")
    assert step.status == 2 and len(step.annotations) == 4
    assert all(line.startswith("::error title=provindex::") for line in step.annotations)
    assert "%250A" in step.log and os.sep + "d" not in step.outputs["report"]


@pytest.mark.parametrize("letters", ["C.UTF-8", "C"])
def test_a_name_that_is_no_text_fails_no_gate(workspace: Path, letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception here would be status 1: that the model descends from what is denied."""
    monkeypatch.setenv("LC_ALL", letters)
    name = os.fsdecode(b"str\xffanger")
    (workspace / name).symlink_to(workspace / "stranger")
    step = asked(workspace, models=name, index="index", deny="acme/base")
    assert (step.status, step.outputs["status"]) == (0, "passed") and "anger" in step.summary


def test_a_cell_is_text_whatever_it_quotes() -> None:
    plain = SCRIPT["plain"]
    assert plain("a|b\nc") == r"a\|b c"
    assert plain("<img src=x>[x](https://x)`**@x") == r"\<img src=x\>\[x\]\(https:​//x\)\`\*\*\@x"
    assert len(plain("x" * 10_000)) <= SCRIPT["MOST_LETTERS"]
