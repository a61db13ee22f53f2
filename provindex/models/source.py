"""Model references in, tensors out: the only reader of models.

Weights are read when they are asked for, a few MB at a time; what is asked for across a whole file is looked at in
a mapping, whose pages belong to the file. So anonymous memory is what the caller asks for at once. There is nothing
to close: a file stays open as long as a tensor of it lives, and Python drops it with the last one.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from provindex.common.bounded_json import shown
from provindex.common.claims import Stated
from provindex.common.errors import ModelError, ModelNotFoundError, NetworkError, UnreadFormatError
from provindex.common.files import FileFact, allow_most, without_path
from provindex.common.hub_ids import without_address
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.common.tokens import Tokenizer, TokenizerAbsence
from provindex.formats import flattened, local_files, parametrized, registry
from provindex.formats import folder as layout
from provindex.formats.local_files import Folder
from provindex.formats.quantized import assembly as quantized
from provindex.formats.ranged import Mapped, RangedFile, Reading, prune, settled
from provindex.formats.reader import WeightFile
from provindex.formats.tensors import Contents, Extent, OpenFile, check_count
from provindex.models import adapters, hub_listings
from provindex.models.card import read_card
from provindex.models.claims import Claims, claims_of, stated_by
from provindex.models.tokenizer import read_tokenizer
from provindex.roles.architectures import ALIASES, KINDS

if TYPE_CHECKING:
    from provindex.hub.client import Remote

DOWNLOADED = 1_000_000_000  # bytes of weights on the Hub up to which a model is downloaded where nothing else is said
_NONE: Mapping[str, int] = {}
SMALL = 1 << 14  # bytes of a tensor up to which it is fetched at once
MAX_OF_A_BYTE, SPARE = 16, 1 << 26  # elements that tensors have for each byte of their files, and beyond that
MAX_NAME = 200  # the Hub allows 96 characters in an id; file systems 255 in the name of a cache folder
_HUB_ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<file>[\w.+-]+(/[\w.+-]+)*))?(@(?P<revision>[\w.-]+(/[\w.-]+)*))?"
)


@dataclass(frozen=True)
class Model:
    """A model that is open for reading.

    model_id: "org/name" or the folder's or file's name. revision: commit, or None. config: config.json ({} if
    none, then config_reason says why). tensors: by name, in the order of files (sorted) and of bytes inside a
    file. tokenizer_files: path, or bytes where the weights' file has it, by file name (tokenizer.json ...). license,
    base_models: from the card's YAML front matter (None, () if unsaid). warnings: what a reader should know. reads:
    what is looked at of each file. variant: the one file of a repository that was asked for. claims: who names which
    model as a parent; not kept in fingerprints. opened: the tokenizer, once it was read.
    """

    model_id: str
    revision: str | None
    config: Mapping[str, Any]
    config_reason: Reason | None
    tensors: Mapping[str, Tensor]
    tokenizer_files: Mapping[str, Path | bytes]
    files: tuple[FileFact, ...]
    license: str | None = None
    base_models: tuple[str, ...] = ()
    warnings: tuple[Reason, ...] = ()
    reads: tuple[Reading, ...] = ()
    variant: str = ""
    claims: Claims = field(default_factory=dict)
    stated: Stated = field(default_factory=Stated)
    opened: list[Tokenizer | TokenizerAbsence] = field(default_factory=list, compare=False, repr=False)

    @property
    def tokenizer(self) -> Tokenizer | TokenizerAbsence:
        """The tokenizer, or why there is none; read when it is first asked for, which takes up to a second."""
        if not self.opened:
            self.opened.append(read_tokenizer(self.tokenizer_files, self.config))
        return self.opened[0]

    @property
    def ranged(self) -> bool:
        """Whether weights are elsewhere, and what is looked at is fetched: not for reading everything."""
        return any(isinstance(file, RangedFile) for file in self.reads)

    @property
    def transferred(self) -> int:
        """Bytes of weight files that were fetched for this model."""
        return sum(file.transferred for file in self.reads if isinstance(file, RangedFile))


def open_model(
    reference: str | os.PathLike[str],
    *,
    offline: bool = False,
    mode: str | None = None,
    found: Remote | None = None,
    local: bool = True,
    within: Path | None = None,
) -> Model:
    """Open a folder, a weight file, or `org/name[/file][@revision]` (from the Hub cache, else from the Hub).

    offline: never ask the Hub. mode: how it will be read. Weights on the Hub are downloaded for "exact", read by ranges
    for "sampled" and "norms", and for None by ranges above 1 GB. found: what `on_the_hub` said of the reference. local:
    whether it may name a path; if not, a folder of that name here is not looked at. within: a folder around the model's
    own, into which links of its files may lead.
    ModelNotFoundError if the reference names nothing, ModelError if what it names cannot be read, NetworkError if the
    Hub was needed and did not answer.
    """
    reference = os.fspath(reference)
    if not reference:  # Path("") would be the current folder
        raise ModelNotFoundError("The model's name is empty.", "Name a folder, a weight file, or org/name.")
    path = Path(reference)
    with local_files.refusals_told(reference):
        if local and _is_usable(path) and path.exists():
            return _open_folder(path, within=within) if path.is_dir() else _open_file(path)
        return _open_hub(reference, offline, mode, found)


def on_the_hub(
    reference: str | os.PathLike[str], *, offline: bool = False, mode: str | None = None, local: bool = True
) -> Remote | None:
    """What the Hub says of a model that is not in its cache: its commit, its files and their digests.

    None if its weights are at hand, if the Hub may not be asked, and for "exact", which reads every byte. Raises as
    `open_model`.
    """
    text, path = os.fspath(reference), Path(reference)
    if offline or mode == "exact" or not text or (local and _is_usable(path) and path.exists()):
        return None
    from provindex.hub import client as hub

    asked = _hub_id(text)
    cached = hub.cached_model(*asked)
    if hub.offline_by_environment() or (cached and cached.whole):
        return None
    try:
        return hub.model_at(*asked)
    except NetworkError:
        if cached is None:
            raise
        return None


def _by_ranges(found: Remote, weights: Collection[str], mode: str | None) -> bool:
    listed = found.files or {}
    size = sum(listed[name].size for name in (*weights, *layout.data_files(listed, weights)))
    return mode in ("sampled", "norms") or (mode is None and size > DOWNLOADED)


def _is_usable(path: Path) -> bool:
    """Whether any file could have this name: not too long, no zero byte."""
    try:
        path.exists()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True


def _open_folder(
    path: Path, warnings: tuple[Reason, ...] = (), listed: Mapping[str, int] = _NONE, within: Path | None = None
) -> Model:
    """listed: bytes of the files that the Hub has, also those that are not here, by name. within: see `open_model`."""
    path = local_files.snapshot_in(path)
    place = local_files.look_at(path)
    if within is not None:
        place = replace(place, allowed=(*place.allowed, within.resolve()))
    sizes = local_files.list_sizes(place)
    chosen = layout.weight_files(sizes, str(path))
    if chosen.index:
        index = local_files.read_bounded(_needed(place, chosen.index), layout.MAX_INDEX)
        promised: Mapping[str, Sequence[str] | None] = layout.shards_of(index, chosen.index, str(path))
    else:
        promised = dict.fromkeys(chosen.files)
    model = _open_files(place, promised, _local(place), warnings + layout.remarks(promised))
    read = {file.name for file in model.files}
    told = layout.unnamed(sizes, lambda name: local_files.pieces(place, name, registry.BEGINNING))
    elsewhere = {name: size for name, size in listed.items() if name not in sizes}
    left = (*layout.left_out(sizes, read, told), *layout.left_out(elsewhere, read))
    return replace(model, warnings=model.warnings + left)


def _open_file(path: Path) -> Model:
    """One weight file; the config and tokenizer beside it are used."""
    if layout.is_beside(path.name):
        raise ModelError(
            f"{path} lies beside a model's weights, and holds none itself.", f"Name its folder: {path.parent}."
        )
    place = local_files.look_at(path.parent)
    # A file that is named may be a link to anywhere: the person chose it, not the folder.
    model_id = place.model_id if place.revision else path.name
    place = replace(place, model_id=model_id, allowed=(*place.allowed, path.resolve().parent))
    # llama.cpp opens all parts when the first one is named; Meta's have a part of each matrix.
    parts = layout.parts_of(path.name, [other.name for other in path.parent.glob("*" + path.suffix)])
    if len(parts) > 1:
        return _open_files(place, dict.fromkeys(parts), _local(place))
    shard = layout.SHARD.fullmatch(path.name)
    notes = (Reason.of(Code.ONE_SHARD, count=int(shard["count"])),) if shard else ()
    return _open_files(place, {path.name: None}, _local(place), notes)


class HubId(NamedTuple):
    """What a reference to the Hub names: a repository, a branch, tag or commit of it, and one of its weight files."""

    repo: str
    revision: str | None
    file: str


def _hub_id(reference: str) -> HubId:
    reference = without_address(reference)
    match = _HUB_ID.fullmatch(reference)
    if not match or ".." in reference or max(map(len, reference.split("/"))) > MAX_NAME:
        raise ModelNotFoundError(
            f"{reference[:200]!r} is no file or folder.", "Name a folder, a weight file, org/name or org/name/file."
        )
    return HubId(match["repo"], match["revision"], match["file"] or "")


def _open_hub(reference: str, offline: bool, mode: str | None, found: Remote | None) -> Model:
    from provindex.hub import client as hub

    reference = without_address(reference)
    asked = _hub_id(reference)
    offline = offline or hub.offline_by_environment()
    cached = hub.cached_model(asked.repo, asked.revision, asked.file)
    if cached and (offline or cached.whole):
        commit = cached.folder.name
        if offline:
            return _open_snapshot(cached.folder, asked, (Reason.of(Code.CACHED_OFFLINE, commit=commit),))
        online = () if asked.revision == commit else (Reason.of(Code.CACHED, commit=commit),)
        return _open_snapshot(cached.folder, asked, online)
    if offline:
        commits = hub.commits_of(asked.repo)
        if commits and asked.revision is None:
            what = f"The Hub cache does not say which commit of {asked.repo} is main, or not all of it is there."
            raise NetworkError(what, f"Name one that is: {' or '.join(f'{asked.repo}@{c}' for c in commits[:3])}.")
        what = f"{reference} is not in the Hub cache, or not completely, and offline the Hub is not asked."
        raise NetworkError(
            what, "Run once without --offline and HF_HUB_OFFLINE (above 1 GB with --mode exact), or name a folder."
        )
    try:
        found = found or hub.model_at(*asked)
        weights = hub.weights_at(found)
        hub_listings.keep(found.repo, found.commit, {name: f.size for name, f in (found.files or {}).items()})
        if _by_ranges(found, weights, mode):
            return _open_ranges(found, weights, tokenizer=mode != "norms")
        folder = hub.fetch_model(found, weights)
    except NetworkError as error:
        if cached is None:
            raise
        said = Reason.of(Code.CACHED_UNREACHABLE, commit=cached.folder.name, problem=error.message)
        return _open_snapshot(cached.folder, asked, (said,))
    return _open_snapshot(folder, asked)


def _open_snapshot(folder: Path, asked: HubId, warnings: tuple[Reason, ...] = ()) -> Model:
    """A model in the Hub cache, or the one file of it that was asked for."""
    if not asked.file:
        return _open_folder(folder, warnings, hub_listings.kept(asked.repo, folder.name))
    place = local_files.look_at(folder)
    names = [str(path.relative_to(folder).as_posix()) for path in (folder / asked.file).parent.iterdir()]
    parts = layout.named_files(asked.file, names, asked.repo)
    return replace(_open_files(place, dict.fromkeys(parts), _local(place), warnings), variant=asked.file)


def _open_ranges(found: Remote, weights: Mapping[str, Sequence[str] | None], *, tokenizer: bool = True) -> Model:
    """A model whose weights stay where they are: config, card and (if wanted) tokenizer are downloaded."""
    from provindex.common import places
    from provindex.hub import client as hub

    place = local_files.look_at(hub.fetch_model(found, (), tokenizer=tokenizer))
    place = replace(place, model_id=found.repo, revision=found.commit)
    listed = found.files or {}
    folder = places.cache() / "ranges"
    opened: list[RangedFile] = []

    def kept(name: str) -> Path:
        """Named by content and by the Hub that said so: one model's serve another with the same file."""
        source = f"{hub.endpoint()} {listed[name].sha256 or listed[name].blob}"
        return folder / f"{hashlib.sha256(source.encode()).hexdigest()}.part"

    def open_one(name: str) -> _File | None:
        if name not in listed:
            return None
        opened.append(RangedFile(kept(name), listed[name].size, hub.ranges_of(found, name)))
        return _File(name, opened[-1], listed[name].sha256)

    prune(folder, map(kept, weights))
    try:
        model = replace(_open_files(place, weights, open_one, layout.remarks(weights)), variant=found.file)
        left = () if found.file else layout.left_out({name: f.size for name, f in listed.items()}, set(weights))
        return replace(model, warnings=model.warnings + left)
    except ModelError as error:  # of the model, or of what came over the network: the next run must not see it again
        for file in opened:
            file.forget()
        what = without_path(error.message, place.path, found.named)
        if isinstance(error, UnreadFormatError):
            raise UnreadFormatError(what, error.next_step) from error
        raise ModelError(
            what, "Run the command again: what was fetched of it was removed. If it says the same, tell its publisher."
        ) from error


@dataclass(frozen=True, slots=True)
class _File:
    """A file with weights: who watches its bytes, and its digest if somebody said it."""

    name: str
    reading: Mapped | RangedFile
    sha256: str | None = None


_Open = Callable[[str], _File | None]  # a file of the model by its name, None if there is none


def _local(place: Folder) -> _Open:
    """Opens files of a folder, with the digest by which a Hub cache calls them."""

    def open_one(name: str) -> _File | None:
        path = local_files.find(place, name)
        return None if path is None else _File(name, _mapped(path), local_files.blob_digest(path))

    return open_one


def _open_files(
    place: Folder, promised: Mapping[str, Sequence[str] | None], open_one: _Open, warnings: tuple[Reason, ...] = ()
) -> Model:
    """The model in some files; `promised` are the tensors that an index says are in each (None: whatever it has)."""
    tensors: dict[str, Tensor] = {}
    opened: list[_File] = []
    said = Contents(())  # config and tokenizer of the weights' own file, in formats that carry them

    def beside(name: str) -> Extent | None:
        file = open_one(name)
        opened.extend([file] if file else [])
        return None if file is None else file.reading.extent

    for together in registry.groups(promised):
        name = together[-1]
        label = str(place.path / name)
        files = [WeightFile(n, str(place.path / n), beside(n) or _missing(place, n)) for n in together]
        found = registry.read(files, beside)
        _check_promise(label, found.tensors, promised[name])
        said = found if found.config is not None else said
        warnings += tuple(warning.about(name) for warning in found.warnings)
        twice = next((tensor.name for tensor in found.tensors if tensor.name in tensors), None)
        if twice is not None:
            raise ModelError(
                f"{place.path} has tensor {shown(twice)} in two files, {name} is the second.",
                "Remove one, or name one file.",
            )
        tensors.update((tensor.name, tensor) for tensor in found.tensors)
    config, config_reason = local_files.read_config(place, layout.CONFIG)
    reads = tuple(file.reading for file in opened)
    _check_elements(place, tensors.values(), sum(file.reading.extent.size for file in opened))
    _small_ones(tensors.values(), reads)
    tensors, notes = quantized.assemble(tensors, config)
    tensors, joined = parametrized.assemble(tensors)
    flattened.refuse(tensors)
    warnings += notes + joined
    card = read_card(place, layout.CARD)
    base_models = card.base_models
    claim = adapters.read_claim(place) if layout.only_adapters(promised) else None
    claims = claims_of(place.model_id, base_models, claim.base if claim else "", config, said.claims, card.parents)
    stated = stated_by(claims, card, config, said.stated, _license_files(place))
    if claim is not None:
        warnings += (claim.reason,)
        base_models = tuple(dict.fromkeys((*([claim.base] if claim.base else []), *base_models)))
    found_ones = ((name, local_files.find(place, name)) for name in layout.tokenizer_files(local_files.names(place)))
    tokenizer: Mapping[str, Path | bytes] = {name: path for name, path in found_ones if path}
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
        files=tuple(FileFact(file.name, file.reading.extent.size, file.sha256) for file in opened),
        license=next(iter(card.licenses), None),
        base_models=base_models,
        warnings=warnings,
        reads=reads,
        claims=claims,
        stated=stated,
    )


def _license_files(place: Folder) -> tuple[str, ...] | None:
    """Files with a license beside the weights. Of a model in a Hub cache, which holds what was asked for, those that
    the Hub listed; None where no run wrote that down.
    """
    here = local_files.names(place)
    if place.revision is None:
        return layout.license_files(here)
    listed = hub_listings.kept(place.model_id, place.revision)
    found = layout.license_files([*here, *(name for name in listed if name not in here)])
    return found if found or listed else None


def _check_elements(place: Folder, tensors: Collection[Tensor], size: int) -> None:
    """A byte of the files (`size` in all) holds a few elements. Where there are far more, many tensors show the same
    bytes, and reading them would not end. Nor are there many tensors in few bytes.
    """
    check_count(len(tensors), size, str(place.path))
    elements = sum(tensor.size for tensor in tensors)
    if elements > MAX_OF_A_BYTE * size + SPARE:
        raise ModelError(
            f"The tensors of {place.path} have {elements:,} elements in {size:,} bytes: they show the same bytes again "
            "and again.",
            "Save the model anew, each tensor once.",
        )


def _small_ones(tensors: Iterable[Tensor], reads: Sequence[Reading]) -> None:
    """Fetch the small tensors of a model on the Hub together: norms, and what says how others are quantized."""
    if any(isinstance(file, RangedFile) for file in reads):
        small = [tensor for tensor in tensors if tensor.nbytes <= SMALL]
        settled(reads, lambda: [tensor.raw() for tensor in small])


def _of_file_or_beside(
    said: Contents, config: Mapping[str, Any], reason: Reason | None, tokenizer: Mapping[str, Path | bytes]
) -> tuple[Mapping[str, Any], Reason | None, Mapping[str, Path | bytes], tuple[Reason, ...]]:
    """Config and tokenizer of a file that carries its own: what lies beside it is the original, and wins if it is one.

    Else it is some other model's, in a folder of downloads.
    """
    own = said.config or {}
    if "model_type" not in config:  # CTranslate2's own config.json, which says nothing of sizes
        config = {}
    if config and not _of_one_model(own, config):
        other = shown(str(config.get("model_type")))
        what = Reason.of(Code.CONFIG_OF_ANOTHER, beside=other, own=repr(own.get("model_type")))
        return own, None, said.tokenizer, (what,)
    vocabulary = [name for name in tokenizer if name in layout.VOCABULARIES]
    return config or own, None, tokenizer if vocabulary else said.tokenizer, ()


def _of_one_model(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs can be one model's: of one type, or of one scheme and size (GGUF calls a Mistral llama)."""
    types = [str(config.get("model_type")) for config in (own, other)]
    kinds = [KINDS.get(ALIASES.get(name, name)) for name in types]
    sizes = [[config.get(key) for key in ("hidden_size", "num_hidden_layers")] for config in (own, other)]
    scheme = kinds[0] is not None and kinds[1] is not None and kinds[0].scheme == kinds[1].scheme
    return types[0] == types[1] or (scheme and sizes[0] == sizes[1])


def _mapped(path: Path) -> Mapped:
    """A file that is here. It stays open twice, once for its mapping: where the system thinks that too many files are
    open, as many are asked for as it allows.
    """
    try:
        return _mapped_at_once(path)
    except OSError as error:
        if error.errno != errno.EMFILE or not allow_most():
            raise
        return _mapped_at_once(path)


def _mapped_at_once(path: Path) -> Mapped:
    with local_files.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
            return Mapped(mapped, OpenFile(file.fileno(), str(path)))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise
            raise ModelError(f"{path} cannot be mapped into memory: {error}.", "Copy it to a local disk.") from error


def _check_promise(path: str, found: Iterable[Tensor], expected: Sequence[str] | None) -> None:
    """A shard has exactly the tensors that the index says: what an index leaves out would be left out unseen."""
    if expected is None:
        return
    names = {tensor.name for tensor in found}
    absent = sorted(set(expected) - names)
    extra = sorted(names - set(expected))
    if absent:
        raise ModelError(
            f"{path} lacks tensor {shown(absent[0])}, which the index says it has{_more(absent)}.", _WRONG_INDEX
        )
    if extra:
        raise ModelError(
            f"{path} has tensor {shown(extra[0])}, which the index does not list there{_more(extra)}.", _WRONG_INDEX
        )


_WRONG_INDEX = (
    "Download this file and the index again. If both are as published, the index is wrong: move it out of the folder, "
    "and all shards are read as they are."
)


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _needed(place: Folder, name: str) -> Path:
    return local_files.find(place, name) or _missing(place, name)


def _missing(place: Folder, name: str) -> NoReturn:
    raise ModelError(f"{place.path} lacks {name}, which its index lists.", "Download the missing file.")
