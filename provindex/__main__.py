"""`python -m provindex` and the console script."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from provindex.common import places

_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def main() -> None:
    """Run the command; every failure is one sentence on standard error and status 2."""
    from provindex.common.errors import ProvindexError

    _with_streams()
    try:
        from provindex.cli.app import app

        app(prog_name="provindex")
    except ProvindexError as error:
        _fail(str(error), error)
    except OSError as error:  # the system refused: a full disk, a folder that may not be written
        _fail(f"{error.filename or 'The system'}: {error.strerror or error}.", error)
    except KeyboardInterrupt:
        with suppress(OSError):
            sys.stderr.write("provindex: Interrupted.\n")
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the boundary: status 1 is a failed gate, so a crash must not end with it
        _fail(f"provindex failed unexpectedly: {type(error).__name__}: {error}. PROVINDEX_DEBUG=1 shows where.", error)


def _fail(sentence: str, error: Exception) -> None:
    if places.debug():
        import traceback

        traceback.print_exception(error)
    with suppress(OSError):  # a full disk behind 2>: what python says of that would be its status 1, a failed gate
        sys.stderr.write(f"provindex: {sentence}\n")
    sys.exit(2)


def _with_streams() -> None:
    """Put an empty file where one of the three streams is closed (`2>&-`): else the next file that is opened has its
    number, and is taken for it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # the lowest number that is free
        pass
    os.close(number)
    nowhere = {name: open(os.devnull, mode) for name, mode in _STREAMS.items() if getattr(sys, name) is None}  # noqa: SIM115, PTH123
    for name, stream in nowhere.items():
        setattr(sys, name, stream)


if __name__ == "__main__":
    main()
