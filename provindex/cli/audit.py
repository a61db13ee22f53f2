"""`provindex audit`"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provindex.cli.fetching import bytes_of, say_fetched, say_plan
from provindex.cli.gating import TrustOption
from provindex.cli.many import answer_each, listed
from provindex.cli.options import (
    AutoModeOption,
    Common,
    FetchOption,
    IndexOption,
    JsonlOption,
    MaxMbOption,
    ModelsArgument,
)
from provindex.cli.query import CANDIDATES, TOP
from provindex.cli.reading import open_index, read_model, reading_bar, say_if_old, say_if_read_further
from provindex.cli.reports import ReportOption, checked, write_reports

if TYPE_CHECKING:
    from provindex.api import Audit, Index

STRICT_HELP = "Exit with status 3 if a claim could not be tested."


def audit(
    model: ModelsArgument,
    index: IndexOption = None,
    top: Annotated[int, typer.Option(min=1, help="Matches to keep.")] = TOP,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to compare in full.")] = CANDIDATES,
    strict: Annotated[bool, typer.Option("--strict", help=STRICT_HELP)] = False,
    trust_index: TrustOption = False,
    mode: AutoModeOption = None,
    fetch: FetchOption = None,
    max_mb: MaxMbOption = None,
    jsonl: JsonlOption = False,
    report: ReportOption = None,
    *,
    common: Common,
) -> None:
    """Hold what models say of themselves against their weights, and list the licenses above them."""
    models = listed(model)
    reports = checked(report, len(models))
    limit = bytes_of(fetch, max_mb, common)
    opened = open_index(index, common)
    say_if_old(opened, common)
    work = partial(
        audited, opened=opened, common=common, trust_index=trust_index, mode=mode, fetch=fetch, limit=limit, top=top,
        candidates=candidates, strict=strict, reports=reports,
    )  # fmt: skip
    answer_each(models, work, common, jsonl=jsonl)


def audited(
    model: str,
    opened: Index,
    common: Common,
    *,
    trust_index: bool,
    mode: str | None,
    fetch: int | None,
    limit: int | None,
    top: int,
    candidates: int,
    strict: bool,
    reports: Sequence[Path],
) -> tuple[dict[str, Any], int]:
    """The document of one model, and its exit status."""
    from provindex import api
    from provindex.report.document import audit_document

    asked = read_model(model, opened, mode, common, stage=1, own_bytes=not trust_index)
    with common.bar("comparing", "candidates") as bar, reading_bar(model, common) as reading:
        if fetch is None:
            read, found = api.audit(opened, asked, top, candidates, reading=reading, progress=bar)
        else:
            _, read, found, spent = api.audit_fetching(
                opened, asked, fetch, limit=limit, say=common.say, planned=partial(say_plan, common=common), top=top,
                candidates=candidates, reading=reading, progress=bar,
            )  # fmt: skip
    say_if_read_further(asked, read, common)
    if fetch is not None:
        say_fetched(spent, common)
    say_findings(found, common)
    document = audit_document(found, strict=strict)
    write_reports(document, reports, common)
    return document, found.exit_status(strict=strict)


def say_findings(found: Audit, common: Common) -> None:
    """Say the errors, also with --quiet: the answer may go to a file."""
    from provindex.report.words import text

    for one in found.findings:
        if one.severity == "error":
            common.say(f"error  {one.code}: {text(one.reason)}", even_if_quiet=True)
