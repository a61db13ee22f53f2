"""Steps that several verbs take: open an index, read a model, and say on standard error what was opened and read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from provindex.cli.options import Common
from provindex.cli.output import count_text, size_text
from provindex.common.files import is_there
from provindex.common.progress import Bar

if TYPE_CHECKING:
    from provindex.api import Index, Resolved

OLD = timedelta(days=90)  # of an index: models that were published since then are not in it


def open_index(references: list[str] | None, common: Common) -> Index:
    """The index that --index names, or the default one."""
    from provindex.api import Index, outdated_fetched

    opened = Index.load(*(references or ()))
    count = opened.info.models
    common.say(f"index  {opened.info.label}, {count:,} model{'s' * (count != 1)}")
    outdated = None if references else outdated_fetched()
    if outdated is not None:
        common.say(
            f"note   {outdated[0]} fetched models are left out: their rows are of fingerprint version {outdated[1]}; "
            "--fetch reads again those that it needs"
        )
    return opened


def say_if_old(opened: Index, common: Common) -> None:
    """Say which of the indexes that answer are old, by the clock: the answer itself depends on no clock."""
    for part in opened.info.parts or (opened.info,):
        age = _age(part.built)
        if age is not None and age > OLD:
            common.say(
                f"note   {part.label} is {age.days} days old and lacks what was published since {part.built[:10]}: "
                "`provindex index pull` gets a newer one, if it is from the Hub"
            )


def _age(built: str) -> timedelta | None:
    """How long ago a manifest was written; None if it states no date."""
    try:
        return datetime.now(UTC) - datetime.strptime(built, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def open_index_for(model: str, references: list[str] | None, common: Common) -> Index | None:
    """The index in which to look a model up: None if the model is a path and no --index is given."""
    return open_index(references, common) if references or not is_there(model) else None


def reading_bar(model: str, common: Common) -> Bar:
    """The progress line of reading a model, in bytes."""
    return common.bar(f"reading {Path(model).name}", "bytes")


def read_model(
    model: str,
    opened: Index | None,
    mode: str | None,
    common: Common,
    *,
    stage: int = 2,
    local: bool = True,
    own_bytes: bool = False,
) -> Resolved:
    """Resolve a model reference; say what was read, its warnings and, if --verbose, what is missing and why.

    local: whether it may be a path; what a model claims may not. own_bytes: only its weights count.
    """
    from provindex.api import resolve
    from provindex.report.document import notes
    from provindex.report.words import text

    with reading_bar(model, common) as bar:
        found = resolve(
            model, index=opened, mode=mode, stage=stage, offline=common.offline, progress=bar, local=local,
            own_bytes=own_bytes,
        )  # fmt: skip
    common.say(_described(found))
    left_out = found.fingerprint.left_out  # the answer says it
    for warning in notes(found.fingerprint):
        if warning not in left_out:
            common.say(f"note   {text(warning)}")
    for name, reason in found.fingerprint.absences.items() if common.verbose else ():
        common.say(f"absent {name}: {text(reason)}")
    return found


def say_if_read_further(before: Resolved, after: Resolved, common: Common) -> None:
    """Say how much was read if stage 2 of sampled reading, whole layers, was needed."""
    if after is not before:
        common.say(f"model  {after.label}: stage 1 found no link, so whole layers were read: {_amount(after)}")


def _described(found: Resolved) -> str:
    fp, facts = found.fingerprint, found.fingerprint.facts
    amount = _amount(found) if fp.bytes_read < fp.bytes_total else size_text(fp.bytes_total)
    kind = ", ".join(filter(None, (facts.architecture or "unknown architecture", facts.precision)))
    origin = "; from the index" if fp.indexed else ""
    return f"model  {found.label}, {count_text(facts.parameters)} parameters, {kind}; {fp.mode}, {amount}{origin}"


def _amount(found: Resolved) -> str:
    """Bytes read of bytes in all. Bytes fetched are more than bytes read: they include headers and gaps."""
    fp, fetched = found.fingerprint, found.model.transferred if found.model else 0
    more = f" ({size_text(fetched)} fetched)" if fetched else ""
    return f"read {size_text(fp.bytes_read)} of {size_text(fp.bytes_total)}{more}"
