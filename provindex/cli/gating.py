"""The options of a gate, and what is said of it on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provindex.cli.options import Common

if TYPE_CHECKING:
    from provindex.api import Gate, Policy

RULE = "An id, a pattern of ids (org/*), family:ID, license:NAME or publisher:ORG; repeat it for more."
DenyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--deny", metavar="RULE",
        help=f"Exit with status 1 if the model descends from what the rule names, 3 if that cannot be told. {RULE}",
    ),
]  # fmt: skip
DenyRelatedOption = Annotated[
    bool, typer.Option("--deny-related", help="Deny descendants and siblings of what the rules name, too.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="RULE", help="Deny every link to a model that no such rule names. Rules as above."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB",
        help="Weight files, folders, entries or towers (vision, audio) that a gate may leave out; repeat it for more.",
    ),
]  # fmt: skip
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE",
        help="Rules from a file. [default: PROVINDEX_POLICY, else provindex.toml or pyproject.toml from here up to the "
        "root of the repository]",
    ),
]  # fmt: skip
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-index", help="Let a row of the index, or a fingerprint file, stand for a model's own weights."
    ),
]


def chosen_policy(models: Sequence[str], named: Path | None, common: Common) -> Policy:
    """The policy that holds; says which file it is of, also with --quiet."""
    from provindex.api import policy_for

    found = policy_for(models, named)
    if found.passed_over:
        note = "lies beside the model, which may have brought it: it is not used (--policy names another one)"
        common.say(f"policy {found.passed_over} {note}", even_if_quiet=True)
    if found.source:
        common.say(f"policy {found.source}", even_if_quiet=True)
    return found


def say_gate(gate: Gate, common: Common) -> None:
    """Say what failed or is open, also with --quiet; and what passed."""
    from provindex.report.words import brief, text

    for one, holds, rows in gate.ignored:
        if not holds and one.expires is not None:
            common.say(f"note   the exception for {one.rule.text} expired on {one.expires}", even_if_quiet=True)
        elif rows:
            until = f" until {one.expires}" if one.expires else ""
            common.say(f"note   linked and accepted{until}: {', '.join(e.label for e in rows)} ({one.reason})")
    for denial in gate.denied:
        if denial.state in ("denied", "inconclusive"):
            common.say(f"{denial.state} {denial.id}: {text(denial.reason)}", even_if_quiet=True)
        else:
            common.say(f"{denial.state} {denial.id}: {brief(denial.reason)}")
    waived = gate.status == "inconclusive" and not gate.exit_status
    common.say(f"gate   {gate.status}{' (the policy lets it pass)' if waived else ''}", even_if_quiet=waived)
