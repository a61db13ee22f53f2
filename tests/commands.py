"""The command line as people run it: in a process of its own, piped or on a terminal, with or without a network."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMES = "surrogateescape"  # names of files that are no UTF-8

# Runs provindex where no socket can be made and some packages cannot be imported, then prints what was imported.
CLOSED = """
import runpy, socket, sys
def closed(*a, **k): raise AssertionError("a socket was opened")
socket.socket.__init__ = closed; socket.create_connection = closed; socket.getaddrinfo = closed
forbidden, *arguments = sys.argv[1:]
sys.argv = ["provindex", *arguments]
try: runpy.run_module("provindex", run_name="__main__")
finally: sys.stderr.write("imported: " + " ".join(n for n in forbidden.split(",") if n in sys.modules) + "\\n")
"""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str


def environment(**changes: str | None) -> dict[str, str]:
    """The tests' environment, on one core, with changes; None takes a variable away."""
    merged = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return {name: value for name, value in merged.items() if value is not None}


def run(*arguments: object, stdin: str = "", cwd: Path | None = None, **env: str | None) -> Ran:
    """`python -m provindex ...`, piped."""
    return _run([sys.executable, "-m", "provindex", *map(str, arguments)], stdin, cwd, environment(**env))


def run_closed(forbidden: Sequence[str], *arguments: object, cwd: Path | None = None, **env: str | None) -> Ran:
    """The same where sockets fail; stderr ends with the forbidden modules that were imported."""
    command = [sys.executable, "-c", CLOSED, ",".join(forbidden), *map(str, arguments)]
    return _run(command, "", cwd, environment(**env))


def _run(command: Sequence[str], stdin: str, cwd: Path | None, env: Mapping[str, str]) -> Ran:
    done = subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", errors=NAMES, cwd=cwd, env=env, timeout=120
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def run_on_terminal(columns: int, *arguments: object, **env: str | None) -> Ran:
    """The same with standard output and standard error on two terminals of that many columns."""
    ends = [pty.openpty(), pty.openpty()]
    for _, inner in ends:
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "provindex", *map(str, arguments)]
    changed = environment(**{"COLUMNS": None, "NO_COLOR": None, "TERM": "xterm-256color", **env})
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=ends[0][1], stderr=ends[1][1], env=changed
    ) as process:
        for _, inner in ends:
            os.close(inner)
        texts = [_drained(outer) for outer, _ in ends]
    return Ran(process.returncode, *texts)


def _drained(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode().replace("\r\n", "\n")
