"""Keep the rows of an index as the models of some folders are: what is new, has changed or is gone there.

`.sync.json` in the index folder notes of each model where it is, the row that was made of it, and a stamp: a hash over
names, sizes and times of its files. With an equal stamp nothing is read. With another one the model is read, and if its
row is the same (its files were copied or touched) only the note changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from provindex.common.errors import IndexFormatError, ModelNotFoundError
from provindex.common.files import replacing
from provindex.evidence.panels import PANELS_VERSION
from provindex.fingerprint.panels import LAYOUT
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.index import dataset
from provindex.index.collection import Index
from provindex.index.entries import Entry, Key
from provindex.index.fill import SAVE_EVERY, Built
from provindex.index.replace import change_rows, name_of

NOTES = ".sync.json"
MOST_NOTES = 1 << 27  # bytes
TAKEN = "{name} is in the index from another folder. Give one of them a name of its own: name=path."


@dataclass(frozen=True, slots=True)
class Source:
    """A model as it is now. root: the folder that was named; path: the model's own; stamp: "" if an equal one would not
    mean equal files."""

    root: str
    path: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a model that was read. how: mode and versions; key: of its row."""

    source: Source
    how: str
    key: Key


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sync has to do, names in order. read: new or perhaps changed; same; gone: with a row, and no files;
    taken: names that models of another folder have.
    """

    read: tuple[str, ...]
    same: tuple[str, ...]
    gone: tuple[str, ...]
    taken: tuple[str, ...]


def how_made(mode: str) -> str:
    """What a row depends on besides the files."""
    return f"{mode} {FINGERPRINT_VERSION}.{PANELS_VERSION}.{LAYOUT}"


def planned(
    sources: Mapping[str, Source],
    notes: Mapping[str, Note],
    there: Collection[Key],
    how: str,
    unknown: Collection[str],
    is_there: Callable[[str], bool],
) -> Plan:
    """What to do with each model.

    there: keys of the rows of the index. unknown: names that could not be looked at; whether they, and what is below
    them, are gone is not known. is_there: whether a path exists.
    """
    read, same, taken = [], [], []
    for name, source in sources.items():
        note = notes.get(name)
        if note is None or note.key not in there:
            read.append(name)
        elif note.source.root != source.root and note.source.path != source.path and is_there(note.source.path):
            taken.append(name)
        elif source.stamp and note.source.stamp == source.stamp and note.how == how:
            same.append(name)
        else:
            read.append(name)
    roots = {source.root for source in sources.values()}
    gone = [
        name
        for name, note in notes.items()
        if name not in sources and note.source.root in roots and note.key in there and not _within(name, unknown)
    ]
    return Plan(tuple(read), tuple(same), tuple(gone), tuple(taken))


def _within(name: str, above: Collection[str]) -> bool:
    return any(name == other or name.startswith(f"{other}/") for other in above)


def sync(
    folder: Path,
    sources: Mapping[str, Source],
    read: Callable[[Sequence[str]], Iterable[tuple[str, Fingerprint | str]]],
    *,
    mode: str = "exact",
    refused: Mapping[str, tuple[str, str]],
    prune: bool = False,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Built:
    """Make the rows of some models those of the index in a folder; it is made if there is none.

    sources: the models by their ids. read: makes fingerprints of some of them, or says why it cannot, in their order.
    refused: (path, why) of what could not be looked at. prune: remove the rows of models that are gone. What was done
    is saved as it goes; models that fail keep the rows that they had.
    """
    exists = (folder / dataset.MANIFEST).exists()
    index = Index.load(folder) if exists else Index.build((), name=folder.resolve().name)
    notes = read_notes(folder)
    there = {entry.key for entry in index}
    names = {key[:3] for key in there}
    how = how_made(mode)
    plan = planned(sources, notes, there, how, refused, lambda path: Path(path).exists())
    failed = {name: why for name, (_, why) in refused.items()}
    failed |= {name: TAKEN.format(name=name) for name in plan.taken}
    added: list[str] = []
    replaced: list[str] = []
    present: list[str] = list(plan.same)
    waiting: dict[str, tuple[Fingerprint, Key]] = {}

    def save() -> None:
        new = {name: Note(sources[name], how, key) for name, (_, key) in waiting.items()}
        earlier = [notes[name].key for name in waiting if name in notes]
        noted = partial(update_notes, folder, new)
        put, _ = change_rows(folder, [fp for fp, _ in waiting.values()], earlier, name=index.info.id, noted=noted)
        for name, (fp, key) in waiting.items():
            before = key[:3] in names or (name in notes and notes[name].key in there)
            (present if key not in put else replaced if before else added).append(name)
            report(f"{'present ' if key not in put else 'replaced' if before else 'added   '} {fp.label}")
        waiting.clear()

    try:
        for count, (name, made) in enumerate(read(plan.read), 1):
            progress(count, len(plan.read))
            if isinstance(made, str):
                failed[name] = made
                continue
            waiting[name] = made, (*name_of(made), to_row(made)["row_sha256"])
            if len(waiting) >= SAVE_EVERY:
                save()
    finally:  # also when interrupted: what was done stays done
        if waiting:
            save()
    removed: tuple[str, ...] = ()
    if prune and plan.gone:
        keys = {notes[name].key: name for name in plan.gone}
        _, out = change_rows(folder, (), list(keys), noted=partial(update_notes, folder, {}, plan.gone))
        removed = tuple(sorted(keys[key] for key in out))
        for name in removed:
            report(f"removed  {name}")
    paths = {name: path for name, (path, _) in refused.items()} | {name: s.path for name, s in sources.items()}
    return Built(
        Index.load(folder) if (folder / dataset.MANIFEST).exists() else index,
        tuple(added), tuple(sorted(present)), tuple(sorted(failed.items())), tuple(replaced), removed,
        () if prune else plan.gone, {name: paths[name] for name in failed},
    )  # fmt: skip


def remove(folder: Path, wanted: Sequence[str], unknown: Callable[[Index, str], ModelNotFoundError]) -> Built:
    """Remove the rows of some ids (`model_id[@revision][#variant]`) from the index in a folder, all or none.

    unknown: the error for an id that has no row, with suggestions.
    """
    index = Index.load(folder)
    entries: dict[Key, Entry] = {}
    for reference in wanted:
        found = index.find(reference)
        if not found:
            raise unknown(index, reference)
        entries |= {entry.key: entry for entry in found}
    gone = [name for name, note in read_notes(folder).items() if note.key in entries]
    _, out = change_rows(folder, (), list(entries), noted=partial(update_notes, folder, {}, gone))
    return Built(Index.load(folder), (), (), (), removed=tuple(entries[key].label for key in out))


# --- the notes ---


def read_notes(folder: Path) -> dict[str, Note]:
    """What the last syncs noted, by name; IndexFormatError if the file is damaged."""
    path = folder / NOTES
    try:
        if path.stat().st_size > MOST_NOTES:
            raise ValueError("it is too large")
        return dict(_notes(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexFormatError(
            f"{NOTES} of {folder.resolve().name} is damaged.", "Remove it: the next sync reads every model once more."
        ) from error


def _notes(said: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, Note]]:
    for name, note in said.items():
        key = note["key"]
        if not isinstance(key, list) or len(key) != 4:
            raise ValueError("it names no row")
        source = Source(str(note["root"]), str(note["path"]), str(note["stamp"]))
        yield name, Note(source, str(note["how"]), (str(key[0]), str(key[1]), str(key[2]), str(key[3])))


def update_notes(folder: Path, new: Mapping[str, Note], gone: Iterable[str] = ()) -> None:
    """Change the notes of some models, while nobody else writes here."""
    notes = read_notes(folder) | dict(new)
    for name in gone:
        notes.pop(name, None)
    document = {
        name: {
            "root": note.source.root, "path": note.source.path, "stamp": note.source.stamp, "how": note.how,
            "key": list(note.key),
        }
        for name, note in sorted(notes.items())
    }  # fmt: skip
    with replacing(folder / NOTES) as temporary:
        temporary.write_text(json.dumps(document, indent=0) + "\n", encoding="utf-8")
