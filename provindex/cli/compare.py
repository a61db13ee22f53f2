"""`provindex compare`"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from provindex.cli.fetching import bytes_of, say_fetched, say_plan
from provindex.cli.gating import ExcludeOption, TrustOption
from provindex.cli.options import AutoModeOption, Common, IndexOption, MaxMbOption
from provindex.cli.reading import open_index, read_model, reading_bar, say_if_old, say_if_read_further
from provindex.cli.reports import ReportOption, checked, write_reports
from provindex.common.errors import UsageError
from provindex.common.reasons import Code, Reason

if TYPE_CHECKING:
    from provindex.api import Index, Judged, Resolved, Spent

Expected = Literal["linked", "unrelated"]
EXPECT_HELP = (
    "Exit status 1 if the verdict is the other one, 3 if it is inconclusive or blind to reordered copies. The weights "
    "of A are read, whatever an index says of it; B may be a row."
)
DEEP_HELP = "Also look for a copy with another vocabulary and a rotated basis; needs the weights of both models."
FETCH_HELP = "Read B from the Hub, a few MB first and more as needed: the first of N claimed bases that can be had."
BASE_HELP = "A model, as for query. [default: the base that A claims]"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, as for query.")],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help=BASE_HELP)] = None,
    expect: Annotated[Expected | None, typer.Option("--expect", help=EXPECT_HELP)] = None,
    deep: Annotated[bool, typer.Option("--deep", help=DEEP_HELP)] = False,
    index: IndexOption = None,
    exclude: ExcludeOption = None,
    trust_index: TrustOption = False,
    mode: AutoModeOption = None,
    fetch: Annotated[int | None, typer.Option("--fetch", metavar="N", min=1, help=FETCH_HELP)] = None,
    max_mb: MaxMbOption = None,
    report: ReportOption = None,
    *,
    common: Common,
) -> None:
    """Compare two models, signal by signal."""
    from provindex import api
    from provindex.report.document import compare_document

    limit, reports = bytes_of(fetch, max_mb, common), checked(report)
    if b is None and expect == "unrelated":
        raise UsageError(
            "--expect unrelated without B would compare A with a model of its own choice.", "Name the model B."
        )
    if fetch is not None and deep:
        raise UsageError("--deep reads the weights of both models, and --fetch parts of one.", "Leave out one of them.")
    opened = open_index(index, common)
    say_if_old(opened, common)
    own_bytes = expect is not None and not trust_index
    first = read_model(a, opened, mode, common, stage=1, own_bytes=own_bytes)
    first, _ = api.excluding(first, exclude or ())
    if fetch is None:
        sides, pair, spent = _compared(first, b, opened, mode, deep, common)
    else:
        bases = api.claimed_bases(first) if b is None else {b: ()}
        with reading_bar(a, common) as reading:
            *sides, pair, spent = api.compare_fetching(
                first, bases, fetch, limit=limit, say=common.say, planned=partial(say_plan, common=common),
                reading=reading, index=opened,
            )  # fmt: skip
        say_fetched(spent, common)
    one, other = (side.fingerprint for side in sides)
    used = {fp.mode for fp in (one, other) if not fp.indexed}
    settings = {"mode": mode or next((m for m in ("norms", "sampled") if m in used), "exact"), "expect": expect}
    answer = api.Comparison(one, other, pair, opened.info, settings | ({"deep": True} if deep else {}))
    outcome = api.expect(pair, expect, sides[0], other, index=opened, exclude=exclude or ()) if expect else None
    document = compare_document(answer, spent, outcome)
    write_reports(document, reports, common)
    common.answer(document)
    if outcome is not None and outcome[0] != "passed":
        _fail(pair, str(expect), outcome, common)


def _compared(
    first: Resolved,
    b: str | None,
    opened: Index,
    mode: Literal["exact", "sampled", "norms"] | None,
    deep: bool,
    common: Common,
) -> tuple[list[Resolved], Judged, Spent | None]:
    """Two models, each read as far as the verdict needs; without B the first base that A claims."""
    from provindex import api

    claimed = b is None
    if b is None:
        bases = list(api.claimed_bases(first))
        b = next((base for base in bases if base in opened), bases[0])
        common.say(f"base   {b}, which {first.label} claims")
    sides = [first, read_model(b, opened, mode, common, stage=1, local=not claimed)]
    with reading_bar(f"{first.label}, {b}", common) as reading:
        *read, pair = api.compare_in_stages(*sides, reading=reading, index=opened, deep=deep, offline=common.offline)
    for before, after in zip(sides, read, strict=True):
        say_if_read_further(before, after, common)
    return read, pair, None


def _fail(pair: Judged, expect: str, outcome: tuple[str, str, Reason], common: Common) -> None:
    """Say why the verdict is not the expected one, even if --quiet, and exit with the status of the gate."""
    from provindex.report.words import joined, text

    status, _, reason = outcome
    undecided = status == "inconclusive"
    measured = "" if pair.log10_p is None else f", log10 p {pair.log10_p:.1f}"
    why = f" ({joined(pair.reasons)})" if undecided else measured
    why = f", but a reordered copy would not have been seen{why}" if pair.plain_order_only else why
    said = text(reason) if reason.code is Code.DENIED_TOWER else f"{pair.verdict}{why}"
    common.say(f"expected {expect}: {said}", even_if_quiet=True)
    raise typer.Exit(3 if undecided else 1)
