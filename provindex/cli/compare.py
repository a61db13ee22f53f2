"""`provindex compare`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from provindex.cli.options import AutoModeOption, Common, IndexOption
from provindex.cli.reading import open_index, read_model, reading_bar, say_if_read_further

if TYPE_CHECKING:
    from provindex.api import Pair

Expected = Literal["linked", "unrelated"]
EXPECT_HELP = "Exit status 1 if the verdict is the other one, 3 if it is inconclusive or blind to reordered copies."
DEEP_HELP = "Also look for a copy with another vocabulary and a rotated basis; needs the weights of both models."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, as for query.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A model, as for query.")],
    expect: Annotated[Expected | None, typer.Option("--expect", help=EXPECT_HELP)] = None,
    deep: Annotated[bool, typer.Option("--deep", help=DEEP_HELP)] = False,
    index: IndexOption = None,
    mode: AutoModeOption = None,
    *,
    common: Common,
) -> None:
    """Compare two models, signal by signal."""
    from provindex import api
    from provindex.report.document import compare_document

    opened = open_index(index, common)
    sides = [read_model(side, opened, mode, common, stage=1) for side in (a, b)]
    with reading_bar(f"{a}, {b}", common) as reading:
        *read, pair = api.compare_in_stages(*sides, reading=reading, index=opened, deep=deep, offline=common.offline)
    for before, after in zip(sides, read, strict=True):
        say_if_read_further(before, after, common)
    first, second = (side.fingerprint for side in read)
    used = {fp.mode for fp in (first, second) if not fp.indexed}
    settings = {"mode": mode or next((m for m in ("norms", "sampled") if m in used), "exact"), "expect": expect}
    answer = api.Comparison(first, second, pair, opened.info, settings | ({"deep": True} if deep else {}))
    common.answer(compare_document(answer))
    if expect and (pair.verdict != expect or pair.plain_order_only):
        _fail(pair, expect, common)


def _fail(pair: Pair, expect: Expected, common: Common) -> None:
    """Say why the verdict is not the expected one, even if --quiet, and exit with the status of the gate."""
    from provindex.report.words import joined

    undecided = pair.verdict == "inconclusive" or pair.plain_order_only
    why = f" ({joined(pair.reasons)})" if undecided else f", log10 p {pair.log10_p:.1f}"
    why = f", but a reordered copy would not have been seen{why}" if pair.plain_order_only else why
    common.say(f"expected {expect}: {pair.verdict}{why}", even_if_quiet=True)
    raise typer.Exit(3 if undecided else 1)
