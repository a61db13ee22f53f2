"""Lists of models: what a line of one names."""

from __future__ import annotations

from provindex.common.files import is_there


def reference_in(line: str) -> str:
    """What a line of a list names; "" for a blank one and a comment.

    A line that is a path as it stands is that path: else whoever names a folder `clean #2` has `clean` judged for it.
    """
    whole = line.removesuffix("\n").removesuffix("\r")
    if whole.strip() and is_there(whole):
        return whole
    named = whole.partition(" #")[0].strip()
    return "" if named.startswith("#") else named
