"""A tokenizer is tried in a process of its own, with limits, where nothing else bounds what it costs.

That is rare: only a pattern that repeats a group with choices inside needs it (`tokenizer_bounds.ways_of`). The process
gets the bytes of tokenizer.json on standard input, loads them, encodes the texts that will be asked about, and says
nothing; it has no other argument, what it prints goes nowhere, and it imports nothing from the current folder (-P).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason

SECONDS = 20  # of processor time, and of wall time with as much again for a busy machine
MEMORY = 1 << 30  # bytes of address space beyond what Python and the package have when they are loaded
_CHILD = "from provindex.models.rehearsal import child; child()"


def rehearse(data: bytes, name: str) -> None:
    """ModelError if a tokenizer.json cannot be loaded and used within the limits, or if no process can be started."""
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD], input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=2 * SECONDS, check=False,
        )  # fmt: skip
        well = ran.returncode == 0
    except (subprocess.TimeoutExpired, OSError):
        well = False
    if not well:
        raise ModelError(
            f"{name} takes more than {SECONDS} seconds or {MEMORY >> 30} GB.",
            reason=Reason.of(Code.TOKENIZER_PATTERN, name),
        )


def child() -> None:
    """What the process does. It ends with status 0 if all went well, else with another one, or by a signal."""
    import tokenizers

    from provindex.common.tokens import ASKED

    data = sys.stdin.buffer.read()
    _limit()
    made = tokenizers.Tokenizer.from_buffer(data)
    made.no_padding()
    made.no_truncation()
    made.post_processor = None
    for text in ASKED:
        made.encode(text, add_special_tokens=False)


def _limit() -> None:
    """Limits of this process, where the system has any."""
    try:
        import resource
    except ImportError:  # Windows: the wall time is all
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    statm = Path("/proc/self/statm")  # pages of address space come first in it
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
