"""Values that were not made here: an imported row says by its names how they were taken, and what compares with what.

A row of ours keeps the values of a tensor under the tensor's name. The peer's database has values without names; an
imported row names them "<how>/<number>", cut into pieces, so that it needs no columns of its own. `how` is "peer" for
values that are those of a row made here (whole tensors in the order of their names), and otherwise says in which way
they are not: two rows that were taken in the same way compare as they do for the peer, different ways give a reason,
never a number. A profile (LEP), which has no names, is kept under `how` instead of its stack.
"""

from __future__ import annotations

from collections.abc import Sequence

from provindex.common.reasons import Code, Reason

IMPORTED = "imported"  # the mode of rows that were made of another tool's numbers
PEER = "peer"
# "files": tensors in the order of several files, which is not known; "sliced": 32 rows of each matrix; "towers": the
# layers of several towers under one number.
DIFFERENCES = ("files", "sliced", "towers")


def how(*differences: str) -> str:
    """What stands before the slash, for values that differ from ours in these ways.

    >>> how(), how("sliced", "towers")
    ('peer', 'peer-sliced-towers')
    """
    return "-".join((PEER, *differences))


APART = (how("sliced"), how("towers"), how("sliced", "towers"))  # what a profile can be kept under


def how_taken(names: Sequence[str]) -> str | None:
    """In which way the values of a row were taken; None if they were made here."""
    found, slash, _ = names[0].partition("/") if names else ("", "", "")
    known = found == PEER or (found.startswith(f"{PEER}-") and set(found.split("-")[1:]) <= set(DIFFERENCES))
    return found if slash and known else None


def apart(a: Sequence[str], b: Sequence[str]) -> Reason | None:
    """Why the values of two rows, told by their names, are not to be compared; None if they are."""
    ways = [how_taken(names) for names in (a, b)]
    if ways[0] == ways[1] or {w or PEER for w in ways} == {PEER}:
        return None
    apart_from_ours = dict.fromkeys("+".join(differences(way)) for way in ways if differences(way))
    return Reason.of(Code.SAMPLED_APART, ways="/".join(apart_from_ours))


def differences(way: str | None) -> tuple[str, ...]:
    """What sets a way apart from ours: names of DIFFERENCES."""
    return tuple((way or PEER).split("-")[1:])
