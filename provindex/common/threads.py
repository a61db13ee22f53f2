"""How many threads to start, and how to keep BLAS from starting more."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

MAX_WORKERS = 16  # each holds about 5 MB


def workers() -> int:
    """Threads worth starting: processors that this process may use, 16 at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_WORKERS)


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it a matrix product uses one thread: our own threads are as many as there are processors already.

    BLAS threads on top of them wait for each other: many times slower on a busy machine.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits
