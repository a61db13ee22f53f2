"""One input, one target, and what must not happen: another error than a refusal, too much time, too much memory."""

from __future__ import annotations

import signal
import sys
import traceback
import types
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from provindex.common.errors import ProvindexError

MAX_MESSAGE = 4096  # characters of a refusal
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Target:
    """A parser under test.

    seeds: makes the valid files that inputs are mutated from. run: takes the bytes of an input. refusals: the errors
    that are the contract; what they say must be a sentence that can be shown. seconds: of processor time for one input.
    memory: bytes that it may take besides `per_byte` for each byte of it. mend: makes a mutated input likelier to get
    past what is checked first (lengths, digests). needs: module without which there is no such target yet. native:
    whether it runs code that can end the process, so that it needs one of its own.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...] = (ProvindexError,)
    seconds: float = 2.0
    memory: int = 32 << 20
    per_byte: int = 400
    mend: Callable[[bytes], bytes] = field(default=bytes)
    needs: str = ""
    native: bool = False

    @cached_property
    def all_seeds(self) -> tuple[bytes, ...]:
        return tuple(self.seeds())


class TooSlow(BaseException):
    """Raised inside of a target when its time is over; no `except Exception` catches it."""


def tried(target: Target, data: bytes) -> str | None:
    """What was wrong with how a target took an input, in a line; None if it was read or refused as it should be."""
    before = _resident()
    try:
        with _limited(target.seconds):
            target.run(data)
    except target.refusals as error:
        wrong = _badly_said(str(error))
    except TooSlow as error:
        return f"more than {target.seconds} seconds: {_where(error)}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the finding
        return f"{type(error).__name__} at {_where(error)}: {str(error)[:160]!r}"
    else:
        wrong = None
    taken, most = _peak() - before, target.memory + target.per_byte * len(data)
    if taken > most:
        return f"{taken >> 20} MB for {len(data):,} bytes, {most >> 20} MB are the most"
    return wrong


def _badly_said(message: str) -> str | None:
    """What is wrong with a refusal that a terminal has to show."""
    if len(message) > MAX_MESSAGE:
        return f"a refusal of {len(message):,} characters: {message[:80]!r}"
    bad = next((c for c in message if unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp")), None)
    return None if bad is None else f"a refusal with {bad!r} in it: {message[:160]!r}"


def _where(error: BaseException) -> str:
    """The innermost place in provindex that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "provindex" in Path(f.filename).parts] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Processor time, not wall time: a machine may be busy with something else."""

    def over(_: int, __: types.FrameType | None) -> None:
        raise TooSlow

    old = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def _resident() -> int:
    """Bytes of memory in use; from here on the peak is counted anew. 0 where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    PEAK.write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") if sys.platform.startswith("linux") else 0


def _status(name: str) -> int:
    text = STATUS.read_text()
    at = text.index(name) + len(name) + 1
    return int(text[at : text.index("kB", at)]) << 10
