"""One run of the command in a forked child, under limits, and what was seen of it from outside.

Seconds are wall time. Memory is anonymous memory (resident pages that belong to no file) of the child and of its
children, looked at every few milliseconds; it counts the interpreter and its libraries. That nothing outside is read is
watched by the kernel (inotify), that nothing is executed by Python's audit events and by a file that code would make.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.place import EXECUTED, SECRET, Place

ADDRESS_SPACE = 4 << 30  # RLIMIT_AS of a run
KILLED = 60.0  # seconds after which a run is ended
PAGE = resource.getpagesize()
IN_ACCESS, IN_OPEN = 0x1, 0x20
STATUSES = (0, 1, 2, 3)
# Audit events that no run may cause, but for the rehearsal of a tokenizer.
RUNS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"})
OURS = "provindex.models.rehearsal"


@dataclass(frozen=True)
class Outcome:
    """seconds, megabytes: of the run. status: as the shell sees it, negative for a signal. faults: what must not be."""

    seconds: float
    megabytes: float
    status: int
    faults: tuple[str, ...]
    said: str = ""


def run(place: Place, arguments: Sequence[str], *, seconds: float, megabytes: float) -> Outcome:
    """Run the command in a child, and look at what it did."""
    watch, pipes = _watched(place.outside), [os.pipe() for _ in range(3)]  # a pipe has no limit of a file's size
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _be_the_command(place, arguments, [end for _, end in pipes])
        finally:
            os._exit(70)  # whatever it was, this copy must not go on as the parent
    for ours, theirs in pipes:
        os.close(theirs)
        os.set_blocking(ours, False)
    if place.meanwhile is not None:
        place.meanwhile()
    said, most, pause, status = [b"", b"", b""], 0, 0.001, None
    while status is None:
        time.sleep(pause)
        pause = min(pause * 1.2, 0.008)
        most = max(most, _anonymous(child))
        done, code = os.waitpid(child, os.WNOHANG)
        said = [so_far + _here(ours) for so_far, (ours, _) in zip(said, pipes, strict=True)]
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() - began > KILLED:
            os.killpg(child, signal.SIGKILL)
    took = time.monotonic() - began
    for ours, _ in pipes:
        os.close(ours)
    out, error, audit = (text.decode("utf-8", "surrogateescape") for text in said)
    faults = [*_said(status, out, error), *_done(place, audit, _events(watch))]
    if took > seconds:
        faults.append(f"{took:.1f} s, {seconds:.0f} are allowed")
    if most > megabytes * 1e6:
        faults.append(f"{most / 1e6:,.0f} MB, {megabytes:,.0f} are allowed")
    return Outcome(took, most / 1e6, status, tuple(faults), error[-600:])


# --- in the child ---


def _be_the_command(place: Place, arguments: Sequence[str], ends: Sequence[int]) -> None:
    os.setsid()
    for number, end in zip((1, 2), ends, strict=False):
        os.dup2(end, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.update(place.environment)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    if place.file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (place.file_limit, place.file_limit))
    _audit(place, ends[2])
    from provindex.__main__ import main

    sys.argv = ["provindex", *arguments]
    status: Any = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    except BaseException as error:  # noqa: BLE001  what `main` lets through is a fault, which its traceback tells
        import traceback

        traceback.print_exception(error)
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if status is None else status if isinstance(status, int) else 70)


def _audit(place: Place, log: int) -> None:
    """Write down what executes, or opens what lies outside."""
    outside, inside = str(place.outside), str(place.folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS and OURS not in repr(arguments):
            os.write(log, f"executed: {event} {arguments!r}\n"[:300].encode("utf-8", "replace"))
        elif event == "open" and str(arguments[0]).startswith(outside):
            os.write(log, f"outside: {arguments[0]}\n".encode())
        elif event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(inside):
            os.write(log, b"executed: code of the model\n")
        elif event == "socket.connect":
            os.write(log, f"network: {arguments[1:]!r}\n".encode())

    sys.addaudithook(hook)


# --- from outside ---


def _watched(folder: Path) -> int:
    """An inotify descriptor that notes when a file of a folder is opened or read."""
    system = ctypes.CDLL(None, use_errno=True)
    found: int = system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if found < 0 or system.inotify_add_watch(found, bytes(folder), IN_ACCESS | IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return found


def _events(watch: int) -> list[str]:
    """Names of the files that were opened or read; folders that were only listed are none."""
    found = []
    try:
        data = os.read(watch, 1 << 16)
    except BlockingIOError:
        data = b""
    at = 0
    while at < len(data):
        _, mask, _, size = struct.unpack_from("iIII", data, at)
        name = data[at + 16 : at + 16 + size].rstrip(b"\0").decode()
        found += [name] if name and not mask & 0x40000000 else []
        at += 16 + size
    os.close(watch)
    return found


def _here(end: int) -> bytes:
    """What is in a pipe now."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while data := os.read(end, 1 << 16):
            found.append(data)
    return b"".join(found)


def _anonymous(process: int) -> int:
    """Bytes of anonymous memory of a process and its children; 0 for one that is gone."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(pages[1]) - int(pages[2])) * PAGE + sum(_anonymous(int(child)) for child in children)


def _said(status: int, out: str, error: str) -> list[str]:
    """What is wrong with the end of a run, and with what it printed."""
    faults = []
    if status not in STATUSES:
        faults.append(f"status {status}")
    lines = error.splitlines()
    if status == 2 and not (lines and lines[-1].startswith("provindex: ")):
        faults.append("status 2 without a sentence")
    if any(mark in error for mark in ("Traceback", "failed unexpectedly", "panicked", "Warning:", "Error:")):
        faults.append("more than a sentence on standard error")
    bad = next(
        (c for c in out + error if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")), None
    )
    if bad is not None:
        faults.append(f"prints {bad!r}")
    if SECRET in out + error:
        faults.append("prints what is outside")
    return faults


def _done(place: Place, audit: str, outside: Sequence[str]) -> list[str]:
    """What was executed, or read outside."""
    faults = [f"read outside: {name}" for name in sorted(set(outside))[:3]]
    if (place.outside / EXECUTED).exists():
        faults.append("executed")
    return faults + audit.splitlines()[:3]
