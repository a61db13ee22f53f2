"""What `--fetch` says on standard error, and what it may not be combined with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provindex.cli.options import Common
from provindex.cli.output import size_text
from provindex.common.errors import UsageError

if TYPE_CHECKING:
    from provindex.api import Plan, Spent


MOST_MB = 1e9  # a petabyte


def bytes_of(fetch: int | None, max_mb: float | None, common: Common) -> int | None:
    """--max-mb in bytes; UsageError where the options contradict each other."""
    if fetch is None and max_mb is not None:
        raise UsageError("--max-mb bounds what --fetch reads, and there is no --fetch.", "Add --fetch N.")
    if fetch is not None and common.offline:
        raise UsageError("--fetch asks the Hub, and --offline forbids it.", "Leave out one of them.")
    if max_mb is not None and not 0 < max_mb < MOST_MB:
        raise UsageError(f"--max-mb is above 0 and below {MOST_MB:,.0f}, not {max_mb:g}.")
    return None if max_mb is None else round(max_mb * 1e6)


def say_plan(plan: Plan, *, common: Common) -> None:
    """How many models will be read and how many MB that takes, before anything is asked."""
    count = len(plan.models)
    if not count and not plan.over:
        common.say("fetch  nothing to read: every model of the catalogue that looks like an ancestor is here")
        return
    here = sum(one.depth is not None for one in plan.models)
    few = ", and no more look like ancestors" if count + len(plan.over) < plan.asked else ""
    there = f" ({here} of them here already)" if here else ""
    if count:
        common.say(f"fetch  {count} model{'s' * (count != 1)}{there}{few}: {_cost(plan)}")
    if plan.over:
        common.say(f"fetch  over --max-mb and left out: {', '.join(plan.over)}")


def _cost(plan: Plan) -> str:
    norms = f"about {size_text(plan.bytes)} of norms and biases"
    further = max((one.first - one.bytes for one in plan.models), default=0)
    if not further:
        return norms
    more = f"then about {size_text(further)} of each that links"
    return f"{norms}, {more}; at most {size_text(plan.most)} in all if none does"


def say_fetched(fetched: Spent, common: Common, index: str = "fetched") -> None:
    """What was read: models, bytes, requests and seconds. index: where it is kept."""
    if not fetched.got:
        return
    rows = sum(one.stage is not None for one in fetched.got)
    common.say(
        f"fetch  {rows} of {len(fetched.got)} models read: {size_text(fetched.bytes)} in {fetched.requests} requests, "
        f"{fetched.seconds:.1f} s; kept in the index {index}"
    )
