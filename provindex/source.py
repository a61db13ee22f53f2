"""Model references in, tensors out: the only reader of models.

Weights are memory-mapped: pages come in as they are read and belong to the file, so anonymous memory is what
the caller asks for at once. There is nothing to close: a file's mapping lives as long as a tensor of it does,
and Python drops it with the last one (the file itself is closed as soon as it is mapped).
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from provindex.errors import ModelError, ModelNotFoundError, NetworkError
from provindex.formats import folder as layout
from provindex.formats import local_files
from provindex.formats.bounded_json import shown
from provindex.formats.local_files import Folder
from provindex.formats.safetensors import read_header
from provindex.formats.tensors import ByteTensor, Contents, Extent, Tensor

MAX_NAME = 200  # the Hub allows 96 characters in an id; file systems 255 in the name of a cache folder
_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+(/[\w.-]+)*))?")


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file that was read: name relative to the model, size in bytes, sha256 or None when it was not hashed."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """A model that is open for reading.

    model_id: "org/name" or the folder's or file's name. revision: commit, or None. config: config.json ({} if
    none, then config_reason says why). tensors: by name, in the order of files (sorted) and of bytes inside a
    file. tokenizer_files: path by file name (tokenizer.json, vocab.txt, spiece.model ...). license,
    base_models: from the card's YAML front matter (None, () if unsaid). warnings: sentences for the reader.
    """

    model_id: str
    revision: str | None
    config: Mapping[str, Any]
    config_reason: str | None
    tensors: Mapping[str, Tensor]
    tokenizer_files: Mapping[str, Path]
    files: tuple[FileFact, ...]
    license: str | None = None
    base_models: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def open_model(reference: str | os.PathLike[str], *, offline: bool = False) -> Model:
    """Open a folder, a weight file, or `org/name[@revision]` (from the Hub cache, else from the Hub).

    offline: never ask the Hub. ModelNotFoundError if the reference names nothing, ModelError if what it names cannot be
    read, NetworkError if the Hub was needed and did not answer.
    """
    reference = os.fspath(reference)
    if not reference:  # Path("") would be the current folder
        raise ModelNotFoundError("The model's name is empty.", "Name a folder, a weight file, or org/name.")
    path = Path(reference)
    with local_files.refusals_told(reference):
        if _is_usable(path) and path.exists():
            return _open_folder(path) if path.is_dir() else _open_file(path)
        return _open_hub(reference, offline)


def _is_usable(path: Path) -> bool:
    """Whether any file could have this name: not too long, no zero byte."""
    try:
        path.exists()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True


def _open_folder(path: Path, warnings: tuple[str, ...] = ()) -> Model:
    place = local_files.look_at(path)
    names = local_files.list_names(place)
    chosen = layout.weight_files(names, str(path))
    if chosen.index:
        index = local_files.read_bounded(_needed(place, chosen.index), layout.MAX_INDEX)
        promised: Mapping[str, Sequence[str] | None] = layout.shards_of(index, chosen.index, str(path))
    else:
        promised = dict.fromkeys(chosen.files)
    return _open_files(place, promised, warnings + layout.remarks(names, promised))


def _open_file(path: Path) -> Model:
    """One weight file; the config and tokenizer beside it are used."""
    format_name = layout.FOREIGN.get(path.suffix.lower())
    if format_name:
        raise ModelError(f"{path} is a {format_name} file, which is not read.", layout.CONVERT)
    place = local_files.look_at(path.parent)
    # A file that is named may be a link to anywhere: the person chose it, not the folder.
    model_id = place.model_id if place.revision else path.name
    place = replace(place, model_id=model_id, allowed=(*place.allowed, path.resolve().parent))
    shard = layout.SHARD.fullmatch(path.name)
    notes = (f"one shard of {int(shard['count'])}: the other tensors of this model were not read",) if shard else ()
    return _open_files(place, {path.name: None}, notes)


def _open_hub(reference: str, offline: bool) -> Model:
    match = _HUB_ID.fullmatch(reference)
    if not match or ".." in reference or max(map(len, reference.split("/"))) > MAX_NAME:
        raise ModelNotFoundError(
            f"{reference[:200]!r} is no file or folder.", "Name a folder, a weight file, or org/name."
        )
    from provindex import hub

    repo, revision = match["repo"], match["revision"]
    offline = offline or hub.offline_by_environment()
    cached = hub.cached_model(repo, revision)
    if cached and (offline or cached.whole):
        said = f"read from the Hub cache at commit {cached.folder.name}, the Hub was not asked"
        online = () if revision == cached.folder.name else (f"{said} whether it has a newer one",)
        return _open_folder(cached.folder, (f"offline: {said}",) if offline else online)
    if offline:
        what = f"{reference} is not in the Hub cache, or not completely, and offline the Hub is not asked."
        raise NetworkError(what, "Run once without --offline and HF_HUB_OFFLINE, or name a folder.")
    try:
        folder = hub.fetch_model(repo, revision)
    except NetworkError as error:
        if cached is None:
            raise
        said = f"read from the Hub cache at commit {cached.folder.name}, without what else the Hub may have"
        return _open_folder(cached.folder, (f"{error.message} {said}",))
    return _open_folder(folder)


def _open_files(place: Folder, promised: Mapping[str, Sequence[str] | None], warnings: tuple[str, ...]) -> Model:
    """Map every shard; `promised` are the tensors that an index says are in it (None: whatever it has)."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for name, expected in promised.items():
        path = _needed(place, name)
        size, contents = _read_weights(place, name)
        found = contents.tensors
        _check_promise(path, found, expected)
        twice = next((tensor.name for tensor in found if tensor.name in tensors), None)
        if twice is not None:
            raise ModelError(
                f"{place.path} has tensor {shown(twice)} in two files, {name} is the second.",
                "Remove one, or name one file.",
            )
        tensors.update((tensor.name, tensor) for tensor in found)
        facts.append(FileFact(name, size))
        warnings += contents.warnings
    config, config_reason = local_files.read_config(place, layout.CONFIG)
    license_name, base_models = local_files.read_card(place, layout.CARD)
    tokenizer = ((name, local_files.find(place, name)) for name in layout.TOKENIZER_FILES)
    return Model(
        model_id=place.model_id,
        revision=place.revision,
        config=config,
        config_reason=config_reason,
        tensors=tensors,
        tokenizer_files={name: path for name, path in tokenizer if path},
        files=tuple(facts),
        license=license_name,
        base_models=base_models,
        warnings=warnings,
    )


def _read_weights(place: Folder, name: str) -> tuple[int, Contents]:
    """Size and contents of one weight file, by its suffix."""
    path = _needed(place, name)
    reader = _READERS.get(path.suffix.lower())
    with local_files.opened(path) as file:
        if reader is None:
            header = read_header(file, str(path))
            extent = _mapped(file, path)
            entries = (ByteTensor(e.name, e.dtype, e.shape, extent.part(e.start, e.stop)) for e in header.entries)
            return header.size, Contents(tuple(entries))
        extent = _mapped(file, path)
    return extent.size, reader(extent, place, name)


def _mapped(file: BinaryIO, path: Path) -> Extent:
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise ModelError(f"{path} is empty.", "Download it again.")
    try:
        return Extent(np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be mapped into memory: {error}.", "Copy it to a local disk.") from error


def _read_torch(extent: Extent, place: Folder, name: str) -> Contents:
    from provindex.formats.torch_files import read_torch

    return read_torch(extent, str(place.path / name))


def _read_onnx(extent: Extent, place: Folder, name: str) -> Contents:
    from provindex.formats.onnx_files import read_onnx

    def beside(location: str) -> Extent | None:
        if not layout.is_plain_path(location):
            raise ModelError(
                f"{place.path / name} sends to {shown(location)}, which is no file inside the model.", "Export it anew."
            )
        path = local_files.find(place, str(Path(name).parent / location))
        if path is None:
            return None
        with local_files.opened(path) as file:
            return _mapped(file, path)

    return read_onnx(extent, str(place.path / name), beside)


# By suffix; files of other names are read as safetensors.
_READERS: Mapping[str, Callable[[Extent, Folder, str], Contents]] = {
    **dict.fromkeys(layout.CHECKPOINTS, _read_torch),
    layout.ONNX: _read_onnx,
}


def _check_promise(path: Path, found: Iterable[Tensor], expected: Sequence[str] | None) -> None:
    """A shard has exactly the tensors that the index says."""
    if expected is None:
        return
    names = {tensor.name for tensor in found}
    absent = sorted(set(expected) - names)
    extra = sorted(names - set(expected))
    if absent:
        raise ModelError(
            f"{path} lacks tensor {shown(absent[0])}, which the index says it has.", "Download the model again."
        )
    if extra:
        raise ModelError(
            f"{path} has tensor {shown(extra[0])}, which the index does not list.", "Download the model again."
        )


def _needed(place: Folder, name: str) -> Path:
    path = local_files.find(place, name)
    if path is None:
        raise ModelError(f"{place.path} lacks {name}, which its index lists.", "Download the missing file.")
    return path
