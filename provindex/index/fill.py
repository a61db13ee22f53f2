"""Fill an index folder from sources, saving as it goes. What is there already is not made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from provindex.common.errors import ModelNotFoundError, ProvindexError, UsageError
from provindex.fingerprint.record import Fingerprint
from provindex.index import dataset
from provindex.index.collection import Index

CLASH = "Other weights are in the index as {name}. Rename the folder or file."
CLASH_MODE = "{name} is in the index as a row of mode {mode}. Build a new index to hold it in another mode."
SAVE_EVERY = 20  # models a shard while a long build runs: what was done stays done


@dataclass(frozen=True)
class Built:
    """What a build did: models added, models that were there, and (source, reason) of what failed."""

    index: Index
    added: tuple[str, ...]
    present: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def fill(
    folder: Path,
    sources: Sequence[str],
    read: Callable[[str], Sequence[Fingerprint]],
    *,
    create: bool,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Add the models that sources name to the index in a folder; one failed model never stops the rest.

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
    index = Index.load(folder) if exists else Index.build((), name=folder.resolve().name)
    added: list[str] = []
    present: list[str] = []
    failed: list[tuple[str, str]] = []
    unsaved = 0
    try:
        for source in sources:
            try:
                fingerprints = read(source)
            except ProvindexError as error:
                failed.append((source, str(error)))
                report(f"failed   {source}: {error}")
                continue
            for fp in fingerprints:
                if clash := _clash(index, fp):
                    failed.append((source, clash))
                    report(f"failed   {source}: {clash}")
                    continue
                new = index.add(fp)
                (added if new else present).append(fp.label)
                report(f"{'added   ' if new else 'present '} {fp.label}")
                unsaved += new
            if unsaved >= SAVE_EVERY:
                index.save(folder)
                index, unsaved = Index.load(folder), 0
    finally:  # also when interrupted: what was done stays done
        if unsaved:
            index.save(folder)
    if not (folder / dataset.MANIFEST).exists():
        return Built(index, (), (), tuple(failed))
    return Built(Index.load(folder), tuple(added), tuple(present), tuple(failed))


def _clash(index: Index, fp: Fingerprint) -> str:
    """What is wrong with adding a row: other weights have its name, or the same in another mode; "" if nothing."""
    same = [e for e in index.find(fp.model_id) if e.row["variant"] == fp.variant and e.row["revision"] == fp.revision]
    if not same or index.own(fp) is not None:
        return ""
    modes = {entry.row["mode"] for entry in same}
    return CLASH.format(name=fp.label) if fp.mode in modes else CLASH_MODE.format(name=fp.label, mode=modes.pop())
