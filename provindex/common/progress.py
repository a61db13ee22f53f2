"""A progress line on standard error: on a terminal only, and only for work that takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

DELAY = 1.0
INTERVAL = 0.1


class Bar:
    """Call it with (done, total); use it as a context manager, so that the line is wiped at the end."""

    def __init__(self, label: str, unit: str, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.label, self.unit = label, unit
        self.stream = stream or sys.stderr
        self.shown = False
        self._silent = quiet or not self.stream.isatty()
        self._next = time.monotonic() + DELAY

    def __enter__(self) -> Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._silent or not total or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL
        self.shown = True
        filled = 24 * done // total
        self.stream.write(f"\r{self.label} [{'#' * filled}{'.' * (24 - filled)}] {self._amount(done, total)}\x1b[K")
        self.stream.flush()

    def _amount(self, done: int, total: int) -> str:
        if self.unit == "bytes":
            unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
            return f"{done / unit:.2f} of {total / unit:.2f} {name}"
        return f"{done} of {total} {self.unit}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
