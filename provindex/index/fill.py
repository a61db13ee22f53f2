"""Fill an index folder from sources, saving as it goes. What is there already is not made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provindex.common.errors import ModelNotFoundError, ProvindexError, UsageError
from provindex.fingerprint.record import Fingerprint
from provindex.index import dataset
from provindex.index.collection import Index
from provindex.index.replace import TAKEN, Choice, Said, Standing, name_of, replace_rows

CLASH = "Other weights are in the index as {name}. Rename the folder or file."
TOLD = {Standing.NEW: "added", Standing.MORE: "replaced", Standing.PRESENT: "present"}
SAVE_EVERY = 20  # models a shard while a long build runs: what was done stays done


@dataclass(frozen=True)
class Built:
    """What a build did: models added, or put in place of a row that says less; models that were there; and (source,
    reason) of what failed.

    Of `sync` and `remove` also: replaced, models that took the place of others of their name; removed; gone, models
    whose files are gone and whose rows stay. paths: where sources that failed are, if that is more than their name.
    """

    index: Index
    added: tuple[str, ...]
    present: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)


def fill(
    folder: Path,
    sources: Sequence[str],
    read: Callable[[str], Sequence[Fingerprint]],
    *,
    create: bool,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Add the models that sources name to the index in a folder; one failed model never stops the rest. A row takes the
    place of rows of its id, revision and variant that say less.

    sources: one reference each. read: makes the fingerprints of a source, or raises ProvindexError. create: make the
    index if there is none (`index build`); else there must be one (`index add`). report: told each step.
    """
    exists = (folder / dataset.MANIFEST).exists()
    if not exists and not create:
        raise ModelNotFoundError(
            f"{folder} has no index to add to.", f"Make one with `provindex index build MODEL... -o {folder}`."
        )
    if not sources:
        raise UsageError(
            "No model was named.",
            "Name models, folders of models, fingerprint files, a list file, or - for standard input.",
        )
    name = folder.resolve().name
    index = Index.load(folder) if exists else Index.build((), name=name)
    choice = Choice.of(index)
    added: list[str] = []
    present: list[str] = []
    failed: list[tuple[str, str]] = []
    unsaved: list[Fingerprint] = []
    try:
        for source in sources:
            try:
                fingerprints = read(source)
            except ProvindexError as error:
                failed.append((source, str(error)))
                continue
            for fp in fingerprints:
                what = choice.take(name_of(fp), Said.of(fp))
                if what is Standing.CLASH:
                    failed.append((source, CLASH.format(name=fp.label)))
                    continue
                (added if what in TAKEN else present).append(fp.label)
                unsaved += [fp] if what in TAKEN else []
                report(f"{TOLD[what]:<8} {fp.label}")
            if len(unsaved) >= SAVE_EVERY:
                replace_rows(folder, unsaved, name=name)
                unsaved.clear()
    finally:  # also when interrupted: what was done stays done
        if unsaved:
            replace_rows(folder, unsaved, name=name)
    if not (folder / dataset.MANIFEST).exists():
        return Built(index, (), (), tuple(failed))
    return Built(Index.load(folder), tuple(added), tuple(present), tuple(failed))
