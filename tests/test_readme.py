"""The README's console block is what the command prints, and its first screen has the two set-up commands."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import yaml
from commands import run

from provindex.audit.policy import of_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_console_block_is_what_the_command_prints() -> None:
    blocks = re.findall(r"```console\n\$ provindex (.*?)\n(.*?)```", README, re.DOTALL)
    assert blocks
    for arguments, shown in blocks:
        ran = run(*shlex.split(arguments))
        assert ran.status == 0 and ran.out == shown


def test_the_first_screen_has_exactly_two_set_up_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:20])
    commands = re.findall(r"^    (python3 -m venv .*)$", first_screen, re.MULTILINE)
    assert [command.rsplit(" && ", 1)[1].split()[0] for command in commands] == ["provindex", "pytest"]
    assert len(re.findall(r"^    \S", first_screen, re.MULTILINE)) == 2


def test_the_examples_of_gates_say_what_the_tools_read() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    policy = of_table(tomllib.loads(toml), "provindex.toml")
    assert policy.asks and policy.ignore[0].expires is not None
    workflow, hooks = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    (step,) = (s for s in workflow["jobs"]["provindex"]["steps"] if s["uses"].startswith("OWNER/provindex@"))
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert step["with"].keys() <= action["inputs"].keys() and "report" in action["outputs"]
    assert step["with"]["models"].splitlines() == ["models/support-7b", "models/router"]
    manifest = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert [hook["id"] for hook in hooks["repos"][0]["hooks"]] == [hook["id"] for hook in manifest]
