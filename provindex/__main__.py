"""`python -m provindex` and the console script."""

from __future__ import annotations

import sys

from provindex.common import places


def main() -> None:
    """Run the command; every failure is one sentence on standard error and status 2."""
    from provindex.common.errors import ProvindexError

    try:
        from provindex.cli.app import app

        app(prog_name="provindex")
    except ProvindexError as error:
        _fail(str(error), error)
    except OSError as error:  # the system refused: a full disk, a folder that may not be written
        _fail(f"{error.filename or 'The system'}: {error.strerror or error}.", error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the boundary: status 1 is a failed gate, so a crash must not end with it
        _fail(f"provindex failed unexpectedly: {type(error).__name__}: {error}. PROVINDEX_DEBUG=1 shows where.", error)


def _fail(sentence: str, error: Exception) -> None:
    if places.debug():
        import traceback

        traceback.print_exception(error)
    sys.stderr.write(f"provindex: {sentence}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
