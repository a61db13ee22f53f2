"""The models below a folder: which there are, what each is called there, and a cheap sign that one has changed.

Nothing is opened. A model is a folder with weights, one GGUF file of a folder that has several, or a repository of a
Hub cache. What lies below a model belongs to it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from provindex.common.errors import ProvindexError, UsageError
from provindex.formats import folder as layout
from provindex.formats import local_files, registry
from provindex.formats.registry import GGUF

DEPTH = 24  # folders below the root that are entered
MOST = 1_000_000  # entries of folders that are looked at in all
MAX_NAME = 200  # characters of a name, as of a Hub id with room for a revision
SETTLED = 2_000_000_000  # nanoseconds: a file that was written since may be written again within one tick of the clock
OUTSIDE = "is a link out of the folder that was named, and is not followed. Name it as a source of its own: name=path."
MANIFEST = "manifest.json"  # with `data` beside it: an index, which holds no models


@dataclass(frozen=True, slots=True)
class Found:
    """A model below a root. name: its path there, with "/"; path: where it is; root: into which its links may lead.

    stamp: sha256 over names, sizes and times of its files. settled: whether an equal stamp will mean equal files: not
    where one was written just now. own_id: the model says what it is called (a repository of a Hub cache).
    """

    name: str
    path: Path
    root: Path
    stamp: str
    settled: bool
    own_id: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """What was not looked into: its name below the root, its path, and why. Nobody knows whether what is below it is
    gone.
    """

    name: str
    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class _Folder:
    """A listed folder: names of its files, and its subfolders with what they really are."""

    files: tuple[str, ...]
    folders: tuple[tuple[str, Path], ...]
    refused: tuple[Refused, ...]


class _Walk:
    """One walk; counts what it has looked at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = root.resolve()
        self.left = MOST

    def models(self, folder: Path, name: str, depth: int = 0) -> Iterator[Found | Refused]:
        if depth > DEPTH:
            yield Refused(name, folder, f"lies more than {DEPTH} folders deep, and is not looked into.")
            return
        if (folder / "snapshots").is_dir() and local_files.commits_of(folder):
            yield self.found(folder, name, own_id=True)
            return
        try:
            here = self.listed(folder, name)
        except OSError as error:
            yield Refused(name, folder, f"could not be read: {error.strerror or type(error).__name__}.")
            return
        if MANIFEST in here.files and any(sub == "data" for sub, _ in here.folders):
            return
        weights = [file for file in here.files if registry.may_be_model(file)]
        if weights and layout.CONFIG not in here.files:
            apart = _apart(weights)
            if len(apart) > 1:
                for first, parts in sorted(apart.items()):
                    yield self.found(folder / first, _below(name, first), only=parts, beside=here.files)
                return
        if weights and (depth or layout.CONFIG in here.files or not here.folders):
            yield self.found(folder, name)
            return
        below = [f for sub, path in here.folders for f in self.models(path, _below(name, sub), depth + 1)]
        yield from below
        yield from here.refused
        if any(isinstance(f, Found) for f in below):  # weights at the root of other models are models of their own
            for file in weights:
                yield self.found(folder / file, _below(name, file), only=[file], beside=here.files)
        elif weights or layout.CONFIG in here.files:
            yield self.found(folder, name)

    def listed(self, folder: Path, name: str) -> _Folder:
        files, folders, refused = [], [], []
        with os.scandir(folder) as found:
            for item in sorted(found, key=lambda item: item.name):
                self.left -= 1
                if self.left < 0:
                    raise UsageError(f"{self.root} holds more than {MOST:,} files.", "Name a folder of fewer.")
                if item.name.startswith("."):
                    continue
                if item.is_file():
                    files.append(item.name)
                elif item.is_dir():
                    path = Path(item.path)
                    real = path.resolve() if item.is_symlink() else None
                    if real is not None and not real.is_relative_to(self.real):
                        refused.append(Refused(_below(name, item.name), path, OUTSIDE))
                    elif real is None or not folder.resolve().is_relative_to(real):  # no link to where we come from
                        folders.append((item.name, path))
        return _Folder(tuple(files), tuple(folders), tuple(refused))

    def found(
        self, path: Path, name: str, *, own_id: bool = False, only: Iterable[str] = (), beside: Iterable[str] = ()
    ) -> Found | Refused:
        """A model, with its stamp. only: of a folder's files, those that are its weights; beside: all of them."""
        problem = _problem(name)
        if problem:
            return Refused(name, path, problem)
        mine = set(only)
        names = [file for file in beside if file in mine or not registry.may_be_model(file)]
        try:
            stamp, settled = stamp_of([(file, path.parent / file) for file in names] if mine else _files(path))
        except ProvindexError as error:
            return Refused(name, path, str(error))
        except OSError as error:
            return Refused(name, path, f"could not be read: {error.strerror or type(error).__name__}.")
        return Found(name, path, self.root, stamp, settled, own_id)


def below(root: Path, name: str = "") -> list[Found | Refused]:
    """The models below a folder, or the one that it is, in the order of their names; hidden files are left out.

    name: what the root itself is called: "" if its models are named by their paths below it. Links into the root are
    followed; those that lead out of it are refused by name.
    """
    walk = _Walk(root)
    if root.is_file():
        return [walk.found(root, name or root.name, only=[root.name], beside=os.listdir(root.parent))]  # noqa: PTH208
    found = list(walk.models(root, name))
    alone = root.name or root.resolve().name
    named = [_renamed(f, alone) if not f.name else f for f in found]
    return sorted(named, key=lambda f: f.name)


def _renamed(one: Found | Refused, name: str) -> Found | Refused:
    if isinstance(one, Refused):
        return Refused(name, one.path, one.why)
    return Found(name, one.path, one.root, one.stamp, one.settled, one.own_id)


def stamp_of(files: Iterable[tuple[str, Path]]) -> tuple[str, bool]:
    """(sha256 over names, sizes and times of files, whether all of them were written a while ago)."""
    digest, latest = hashlib.sha256(), 0
    for name, path in files:
        try:
            facts = path.stat()
        except FileNotFoundError:  # a dangling link, or gone by now
            continue
        latest = max(latest, facts.st_mtime_ns, facts.st_ctime_ns)
        line = f"{name}\0{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest(), latest < time.time_ns() - SETTLED


def _files(folder: Path) -> list[tuple[str, Path]]:
    """All files of a folder and below it, by name; links to folders are not followed."""
    place = local_files.look_at(local_files.snapshot_in(folder))
    return [(name, place.path / name) for name in local_files.list_sizes(place)]


def _apart(weights: Iterable[str]) -> dict[str, list[str]]:
    """GGUF models of a folder by their first file; {} if it has other weights too."""
    models: dict[str, list[str]] = {}
    for file in sorted(weights):
        if registry.by_name(file) is not GGUF:
            return {}
        if not layout.GGUF_BESIDE.search(file):
            part = layout.SHARD.fullmatch(file)
            models.setdefault(part["stem"] if part else file, []).append(file)
    return {files[0]: files for files in models.values()}


def _below(name: str, sub: str) -> str:
    return f"{name}/{sub}" if name else sub


def _problem(name: str) -> str:
    """What is wrong with a name; "" if nothing is."""
    if not name.isprintable():
        return "has a name that cannot be printed. Rename it, or name it as a source of its own: name=path."
    if len(name) > MAX_NAME:
        return f"has a name of more than {MAX_NAME} characters. Name it as a source of its own: name=path."
    return ""
