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
from typing import Any

import numpy as np

from provindex.errors import ModelError, ModelNotFoundError, NetworkError
from provindex.formats import folder as layout
from provindex.formats import local_files
from provindex.formats.bounded_json import shown
from provindex.formats.local_files import Folder
from provindex.formats.safetensors import Header, read_header
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
    file. tokenizer_files: path, or bytes where the weights' file has it, by file name (tokenizer.json ...). license,
    base_models: from the card's YAML front matter (None, () if unsaid). warnings: sentences for the reader.
    """

    model_id: str
    revision: str | None
    config: Mapping[str, Any]
    config_reason: str | None
    tensors: Mapping[str, Tensor]
    tokenizer_files: Mapping[str, Path | bytes]
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
        raise ModelNotFoundError("The model's name is empty.", "Name a folder, a .safetensors file, or org/name.")
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
    if path.suffix.lower() == layout.GGUF:  # llama.cpp opens all parts when the first one is named
        parts = layout.gguf_parts(path.name, [other.name for other in path.parent.glob("*" + path.suffix)])
        return _open_files(place, dict.fromkeys(parts), ())
    shard = layout.SHARD.fullmatch(path.name)
    notes = (f"one shard of {int(shard['count'])}: the other tensors of this model were not read",) if shard else ()
    return _open_files(place, {path.name: None}, notes)


def _open_hub(reference: str, offline: bool) -> Model:
    match = _HUB_ID.fullmatch(reference)
    if not match or ".." in reference or max(map(len, reference.split("/"))) > MAX_NAME:
        raise ModelNotFoundError(
            f"{reference[:200]!r} is no file or folder.", "Name a folder, a .safetensors file, or org/name."
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
    said = Contents(())  # config and tokenizer of the weights' own file, in formats that carry them
    for names, expected in _together(promised):
        paths = [_needed(place, name) for name in names]
        name, path = names[-1], paths[-1]
        sizes, contents = _read(paths)
        found = contents.tensors
        _check_promise(path, found, expected)
        said = contents if contents.config is not None else said
        warnings += contents.warnings
        twice = next((tensor.name for tensor in found if tensor.name in tensors), None)
        if twice is not None:
            raise ModelError(
                f"{place.path} has tensor {shown(twice)} in two files, {name} is the second.",
                "Remove one, or name one file.",
            )
        tensors.update((tensor.name, tensor) for tensor in found)
        facts += [FileFact(name, size) for name, size in zip(names, sizes, strict=True)]
    config, config_reason = local_files.read_config(place, layout.CONFIG)
    license_name, base_models = local_files.read_card(place, layout.CARD)
    beside = ((name, local_files.find(place, name)) for name in layout.TOKENIZER_FILES)
    tokenizer: Mapping[str, Path | bytes] = {name: path for name, path in beside if path}
    if said.config is not None:
        config, config_reason, tokenizer, notes = _of_file_or_beside(said, config, config_reason, tokenizer)
        warnings += notes
    return Model(
        model_id=place.model_id,
        revision=place.revision,
        config=config,
        config_reason=config_reason,
        tensors=tensors,
        tokenizer_files=tokenizer,
        files=tuple(facts),
        license=license_name,
        base_models=base_models,
        warnings=warnings,
    )


def _read_gguf(files: Sequence[tuple[Extent, str]]) -> Contents:
    from provindex.formats.gguf import read_parts

    return read_parts(files)


# Readers of formats other than safetensors, by suffix: files that are one model (parts of a GGUF) are read together.
_READERS: Mapping[str, Callable[[Sequence[tuple[Extent, str]]], Contents]] = {layout.GGUF: _read_gguf}


def _together(promised: Mapping[str, Sequence[str] | None]) -> Iterable[tuple[Sequence[str], Sequence[str] | None]]:
    """The files that are read at once, with what is promised of them."""
    if promised and all(name.lower().endswith(layout.GGUF) for name in promised):
        return [(tuple(promised), None)]
    return [((name,), expected) for name, expected in promised.items()]


def _read(paths: Sequence[Path]) -> tuple[list[int], Contents]:
    """Size of each file, and what they hold."""
    reader = _READERS.get(paths[0].suffix.lower())
    if reader is None:
        header, tensors = _map_tensors(paths[0])
        return [header.size], Contents(tuple(tensors))
    extents = [_mapped(path) for path in paths]
    return [extent.size for extent in extents], reader([(e, str(p)) for e, p in zip(extents, paths, strict=True)])


def _mapped(path: Path) -> Extent:
    with local_files.opened(path) as file:
        try:
            return Extent(np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8))
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ModelError(f"{path} cannot be mapped into memory: {error}.", "Copy it to a local disk.") from error


def _of_file_or_beside(
    said: Contents, config: Mapping[str, Any], reason: str | None, tokenizer: Mapping[str, Path | bytes]
) -> tuple[Mapping[str, Any], str | None, Mapping[str, Path | bytes], tuple[str, ...]]:
    """Config and tokenizer of a file that carries its own: what lies beside it is the original, and wins if it is one.

    It is not when its model type is another: then it is some other model's, in a folder of downloads.
    """
    own, other = said.config or {}, config.get("model_type")
    if config and other != own.get("model_type"):
        what = f"config.json says {shown(str(other))}, the weights' file {own.get('model_type')!r}: the file's is used"
        return own, None, said.tokenizer, (what,)
    vocabulary = [name for name in tokenizer if name in layout.VOCABULARIES]
    return config or own, None, tokenizer if vocabulary else said.tokenizer, ()


def _map_tensors(path: Path) -> tuple[Header, list[ByteTensor]]:
    """Check a file's header and map its bytes."""
    with local_files.opened(path) as file:
        header = read_header(file, str(path))
        try:
            mapped = mmap.mmap(file.fileno(), header.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be mapped into memory: {error}.", "Copy it to a local disk.") from error
    extent = Extent(np.frombuffer(mapped, np.uint8))
    tensors = [ByteTensor(e.name, e.dtype, e.shape, extent.part(e.start, e.stop)) for e in header.entries]
    return header, tensors


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
