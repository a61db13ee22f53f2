"""The README's console block is what the command prints, and its first screen has the two set-up commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from commands import run

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


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
