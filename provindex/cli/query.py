"""`provindex query`"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provindex.cli.fetching import bytes_of, say_fetched, say_plan
from provindex.cli.gating import (
    AllowOption,
    DenyOption,
    DenyRelatedOption,
    ExcludeOption,
    PolicyOption,
    TrustOption,
    chosen_policy,
    say_gate,
)
from provindex.cli.many import answer_each, listed
from provindex.cli.options import (
    AutoModeOption,
    Common,
    FetchOption,
    IndexOption,
    JsonlOption,
    MaxMbOption,
    ModelsArgument,
    SignalsOption,
)
from provindex.cli.reading import open_index, read_model, reading_bar, say_if_old, say_if_read_further
from provindex.cli.reports import ReportOption, checked, write_reports
from provindex.common.errors import UsageError

if TYPE_CHECKING:
    from provindex.api import Index, Policy

TOP, CANDIDATES = 10, 50


def query(
    model: ModelsArgument,
    index: IndexOption = None,
    top: Annotated[int, typer.Option(min=1, help="Matches to show.")] = TOP,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to compare in full.")] = CANDIDATES,
    deny: DenyOption = None,
    deny_related: DenyRelatedOption = False,
    allow: AllowOption = None,
    exclude: ExcludeOption = None,
    policy: PolicyOption = None,
    trust_index: TrustOption = False,
    mode: AutoModeOption = None,
    fetch: FetchOption = None,
    max_mb: MaxMbOption = None,
    jsonl: JsonlOption = False,
    report: ReportOption = None,
    signals: SignalsOption = False,
    *,
    common: Common,
) -> None:
    """Find the likely ancestors of models; with rules, fail if one is not allowed."""
    models = listed(model)
    reports = checked(report, len(models))
    rules = chosen_policy(models, policy, common).with_more(
        deny or (), allow or (), exclude or (), related=deny_related
    )
    if rules.source and not rules.asks:
        raise UsageError(
            f"The policy {rules.source} denies and allows nothing, so no model would fail it.",
            "Write deny or allow into it, or name another one with --policy.",
        )
    limit = bytes_of(fetch, max_mb, common)
    opened = open_index(index, common)
    say_if_old(opened, common)
    work = partial(
        answered, opened=opened, rules=rules, common=common, trust_index=trust_index, mode=mode, fetch=fetch,
        limit=limit, top=top, candidates=candidates, reports=reports, signals=signals,
        in_full=jsonl or common.json or common.format != "text" or bool(reports),
    )  # fmt: skip
    if fetch is None:
        from provindex.api import check_rules

        check_rules(rules, opened)
    answer_each(models, work, common, jsonl=jsonl)


def answered(
    model: str,
    opened: Index,
    rules: Policy,
    common: Common,
    *,
    trust_index: bool = False,
    mode: str | None = None,
    fetch: int | None = None,
    limit: int | None = None,
    top: int = TOP,
    candidates: int = CANDIDATES,
    in_full: bool = True,
    reports: Sequence[Path] = (),
    signals: bool = False,
) -> tuple[dict[str, Any], int]:
    """The document of one model, and its exit status. in_full: with the outcome of each test, which text leaves out.
    reports: files that it is written into as well. signals: whether a text shows them.
    """
    from provindex import api
    from provindex.report.document import query_document

    own_bytes = rules.asks and not trust_index
    asked = read_model(model, opened, mode, common, stage=1, own_bytes=own_bytes)
    asked, excluded = api.excluding(asked, rules.exclude)
    also, fetched = rules.asked_for(opened), None
    with common.bar("comparing", "candidates") as bar, reading_bar(model, common) as reading:
        if fetch is None:
            read, result = api.query(opened, asked, top, candidates, reading=reading, also=also, progress=bar)
        else:
            opened, read, result, fetched = api.query_fetching(
                opened, asked, fetch, limit=limit, say=common.say, planned=partial(say_plan, common=common),
                top=top, candidates=candidates, reading=reading, also=also, progress=bar,
            )  # fmt: skip
    say_if_read_further(asked, read, common)
    if fetched is not None:
        say_fetched(fetched, common)
    gate = api.gate(result, rules, opened, read, excluded=excluded) if rules.asks else None
    wanted = {"signals": signals, "untested": common.verbose}
    shown = [name for name, asked_for in wanted.items() if asked_for]
    document = query_document(result, gate, fetched, evidence=in_full, shown=shown)
    write_reports(document, reports, common)
    if gate is None:
        return document, 0
    say_gate(gate, common)
    return document, gate.exit_status
