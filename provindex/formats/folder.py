"""Which files of a folder or repository are the model: pure over file names, so that local and remote agree."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from provindex.common.bounded_json import JsonError, read_object, read_small, read_string, shown, skip_space
from provindex.common.errors import ModelError, UnreadFormatError
from provindex.common.files import is_plain_path
from provindex.common.reasons import Code, Reason
from provindex.formats import consolidated, registry
from provindex.formats.registry import GGUF, ONNX, SAFETENSORS, TORCH, Format, Refusal
from provindex.formats.together import pair_in

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
CARD = "README.md"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "spm.model", "source.spm", "bpe.codes", "tekken.json", "tiktoken.model", "qwen.tiktoken",
    "vocabulary.json", "vocabulary.txt", "shared_vocabulary.json", "shared_vocabulary.txt",
)  # fmt: skip
RANKS = ".tiktoken"  # ending of vocabularies with names of their own
VERSIONED = "tokenizer.model.v"  # Mistral's
_OWN_NAME = re.compile(rf"[^/]+{re.escape(RANKS)}|{re.escape(VERSIONED)}\d+\w*")
VOCABULARIES = frozenset(TOKENIZER_FILES) - {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
SINGLE = "model.safetensors"
CHECKPOINT = "pytorch_model.bin"
ONNX_SINGLE = ("model.onnx", "onnx/model.onnx")
INDEX_SUFFIX, CHECKPOINT_INDEX = (row.suffixes[0] + ".index.json" for row in (SAFETENSORS, TORCH))
INDEX_SUFFIXES = (INDEX_SUFFIX, CHECKPOINT_INDEX)
MAX_INDEX = 32 << 20  # bytes; the largest public ones are about 15 MB
LARGE = 1 << 20  # bytes of a file from which on a model may be in it, whatever its name
LEAST = 1 << 16  # bytes from which on an archive, an array or a file that is not read counts
MAX_TEXT = 1 << 26  # bytes of a file on the Hub that an ending can excuse, and of tokenizer files together
EXCUSED = 8 << 20  # bytes of text together, and of pictures and sounds, in which a small model at 4 bits has no room
TOKENIZER = "tokenizer"
LISTED_BELOW = 10  # models below a folder that are named
LISTED = 100  # files that are named as not read

_NUMBERED = "|".join(re.escape(row.suffixes[0]) for row in (SAFETENSORS, TORCH, GGUF))
SHARD = re.compile(rf"(?P<stem>.+?)[-_.](?P<number>\d{{1,6}})[-_]of[-_](?P<count>\d{{1,6}})({_NUMBERED})")
GGUF_BESIDE = re.compile(r"mmproj|(^|[._-])imatrix", re.IGNORECASE)
_SIDE = ("adapter_", "consolidated")  # files that repeat or amend the weights of the main ones
# What trainers keep beside the weights, in the same format.
_TRAINING = ("training_args", "optimizer", "scheduler", "rng_state", "random_states", "scaler", "trainer_state")
_NO_WEIGHTS = frozenset((".json", ".jsonl", ".txt", ".md", ".csv", ".png", ".jpg", ".jpeg", ".gif", ".mp4", ".pdf"))
# What pictures, sounds and films begin with, and where.
_MEDIA = (
    (0, b"\x89PNG"), (0, b"\xff\xd8\xff"), (0, b"GIF8"), (0, b"RIFF"), (4, b"ftyp"), (0, b"%PDF-"), (0, b"OggS"),
    (0, b"ID3"),
)  # fmt: skip
_LICENSE = re.compile(r"(.*[-_. ])?(licen[sc]es?|copying|notices?)([-_. ].*)?", re.IGNORECASE)
_NO_TEXT = (".json", ".py", ".safetensors", ".bin", ".gguf", ".png", ".jpg", ".svg")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files to read. index: the file that lists them, or None. files: empty if `index` lists them."""

    files: tuple[str, ...] = ()
    index: str | None = None


def license_files(names: Iterable[str]) -> tuple[str, ...]:
    """Files of the folder itself that are called a license or a notice, as far as their names say.

    >>> license_files(["LICENSE", "NOTICE.txt", "model.safetensors", "sub/LICENSE", "LICENSE-MODEL", "licensed.py"])
    ('LICENSE', 'NOTICE.txt', 'LICENSE-MODEL')
    """
    here = (name for name in names if "/" not in name and not name.lower().endswith(_NO_TEXT))
    return tuple(itertools.islice((name for name in here if _LICENSE.fullmatch(name)), LISTED))


def weight_files(names: Collection[str], label: str) -> Weights:
    """Choose the weights among the file names of a folder: those of the first format of the registry that is there.

    Files that repeat the same weights (consolidated.safetensors) or amend them (adapters) are left out when
    there are others, so that no parameter counts twice. ModelError when there is nothing to read, or a shard
    is missing.
    """
    here = sorted(name for name in names if "/" not in name and not name.startswith("._"))  # macOS keeps notes there
    for row in filter(registry.is_read, registry.FORMATS):
        choose = _CHOICES.get(row.name)
        found = choose(here, names, label) if choose else _only(_named(row, here), label, f"{row.name} files")
        if found is not None:
            return found
    raise _nothing(names, label)


def _safetensors(here: list[str], names: Collection[str], label: str) -> Weights | None:
    """As transformers chooses: one file, else an index, else all there is."""
    tensors = _named(SAFETENSORS, here)
    indexes = [name for name in here if name.endswith(INDEX_SUFFIX)]
    main = [name for name in tensors if not name.startswith(_SIDE)]
    main_indexes = [name for name in indexes if not name.startswith(_SIDE)]
    repeated = [name for name in tensors if name.startswith("consolidated")]
    if SINGLE in tensors:
        return Weights((SINGLE,))
    for index in ("model" + INDEX_SUFFIX, *main_indexes):
        if index in indexes:
            return Weights((), index)
    for group in (main, repeated):
        if group:
            _check_numbering(group, label)
            return Weights(tuple(group))
    return Weights(tuple(tensors)) if tensors else None


def _gguf(here: list[str], names: Collection[str], label: str) -> Weights | None:
    """The one GGUF file, or all parts of it; the projector of a multimodal model and an importance matrix are none."""
    files = [name for name in _named(GGUF, here) if not GGUF_BESIDE.search(name)]
    return Weights(_one_gguf(files, label)) if files else None


def _checkpoint(here: list[str], names: Collection[str], label: str) -> Weights | None:
    """torch's files, in the order in which transformers looks for them; files of a training are none."""
    files = [name for name in here if _is_checkpoint(name)]
    index = PurePosixPath(CHECKPOINT).stem + CHECKPOINT_INDEX
    if CHECKPOINT in files:
        return Weights((CHECKPOINT,))
    if index in here:
        return Weights((), index)
    main = [name for name in files if not name.startswith(_SIDE)]
    shards = [name for name in main if SHARD.fullmatch(name)]
    if shards:
        _check_numbering(shards, label)
        return Weights(tuple(shards))
    meta = consolidated.parts_of(files[0], files) if files and not main else ()
    return Weights(meta) if len(meta) > 1 else _only(main or files, label, "checkpoints")


def _onnx(here: list[str], names: Collection[str], label: str) -> Weights | None:
    """An ONNX file, the unquantized one of those that are usually exported together; an encoder with its decoder."""
    files = sorted(name for name in names if _is_onnx(name))
    single = next((name for name in ONNX_SINGLE if name in files), None)
    both = pair_in(files) if single is None else ()
    if both:
        return Weights(both)
    return Weights((single,)) if single else _only(files, label, "ONNX files")


# How the files of a format are chosen where a folder has several; of a format that is not here, its one file is chosen.
# Each function gets the names in the folder itself, all names, and what errors call the folder.
_CHOICES: Mapping[str, Callable[[list[str], Collection[str], str], Weights | None]] = {
    SAFETENSORS.name: _safetensors,
    GGUF.name: _gguf,
    TORCH.name: _checkpoint,
    ONNX.name: _onnx,
}


def tokenizer_files(names: Iterable[str]) -> list[str]:
    """The files of a folder's names that say what its tokenizer is."""
    here = set(names)
    named = [name for name in TOKENIZER_FILES if name in here]
    return named + sorted(name for name in here - {*named} if _OWN_NAME.fullmatch(name))


def data_files(names: Collection[str], weights: Collection[str]) -> list[str]:
    """Files that weights need beside them: those in which ONNX files keep their data, by the names that exporters give
    or by none that is another file's, and params.json of Meta's and Mistral's layout.
    """
    graphs = [name for name in weights if _is_onnx(name)]
    ends = tuple(name + end for name in graphs for end in ("_data", ".data"))
    params = {consolidated.params_of(name) for name in weights if consolidated.is_one(name)}
    others = tuple(name for name in names if _is_onnx(name) and name not in weights)
    places = {PurePosixPath(name).parent for name in graphs}
    lone = {  # with a name of its own: onnx.save_model makes one up
        name
        for name in names
        if name.endswith((".data", "_data")) and PurePosixPath(name).parent in places and not name.startswith(others)
    }
    return sorted(name for name in names if name in params | lone or (ends and name.startswith(ends)))


def _only(files: list[str], label: str, what: str) -> Weights | None:
    if len(files) > 1:
        shown_files = ", ".join(files[:3])
        raise ModelError(f"{label} has several {what} ({shown_files}), and none is the model by its name.", "Name one.")
    return Weights((files[0],)) if files else None


def _named(row: Format, names: Collection[str]) -> list[str]:
    return [name for name in names if registry.is_of(row, name)]


def _is_checkpoint(name: str) -> bool:
    return "/" not in name and registry.is_of(TORCH, name) and not name.startswith(_TRAINING)


def _is_onnx(name: str) -> bool:
    return registry.is_of(ONNX, name) and name.removeprefix("onnx/").count("/") == 0


def _one_gguf(files: list[str], label: str) -> tuple[str, ...]:
    """The file, or the parts of one that is split. Of several, each is a whole model: nobody but the reader can say."""
    parts = gguf_parts(files[0], files)
    if len(parts) < len(files):
        shown_ones = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        raise ModelError(f"{label} has several GGUF files: {shown_ones}.", "Name one of them.")
    _check_numbering(list(parts), label)
    return parts


def named_files(name: str, names: Collection[str], label: str) -> tuple[str, ...]:
    """The file of that name, with the other parts if it is one of a GGUF model.

    ModelError if there is none, or if its name says that its format is not read: it need not be fetched to know that.
    """
    if name not in names:
        others = [n for n in sorted(names) if PurePosixPath(n).suffix == PurePosixPath(name).suffix]
        listed = f"It has {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}." if others else f"Name {label}."
        raise ModelError(f"{label} has no file {name}.", listed)
    refusal = registry.refusal_of(name)
    if refusal is not None:
        raise registry.unread(*refusal, f"{label}/{name}")
    return parts_of(name, names)


def parts_of(name: str, names: Collection[str]) -> tuple[str, ...]:
    """The files that make one model with a file: the parts of a GGUF model, and those of Meta's layout."""
    return gguf_parts(name, names) if registry.is_of(GGUF, name) else consolidated.parts_of(name, [*names])


def gguf_parts(name: str, names: Collection[str]) -> tuple[str, ...]:
    """The parts of the model that a GGUF file is a part of, in order, among `names`; the file itself if it is whole."""
    own = SHARD.fullmatch(name)
    if own is None:
        return (name,)
    found = (SHARD.fullmatch(other) for other in sorted(names))
    return tuple(m[0] for m in found if m and (m["stem"], m["count"]) == (own["stem"], own["count"]))


def shards_of(index: bytes, name: str, label: str) -> Mapping[str, tuple[str, ...]]:
    """Tensor names by shard, from an index file. ModelError if a shard is no plain path inside the folder."""
    try:
        text = index.decode("utf-8-sig")
        members, end = read_object(text, skip_space(text, 0), _read_index_member)
        if skip_space(text, end) != len(text):
            raise JsonError(f"it goes on after its end at character {end}")
        weight_map = members.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise JsonError("it has no weight_map")
    except UnicodeDecodeError:
        raise _bad_index(name, label, "it is not UTF-8 text") from None
    except JsonError as fault:
        raise _bad_index(name, label, str(fault)) from None
    suffix = PurePosixPath(name.removesuffix(".index.json")).suffix
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if shard not in shards and not (is_plain_path(shard) and shard.endswith(suffix)):
            raise _bad_index(
                name, label, f"it sends {shown(tensor)} to {shown(shard)}, which is no file inside the model"
            )
        shards.setdefault(shard, []).append(tensor)
    return {shard: tuple(shards[shard]) for shard in sorted(shards)}


def left_out(
    sizes: Mapping[str, int], read: Collection[str], told: Mapping[str, Format | None] | None = None
) -> tuple[Reason, ...]:
    """The weight files of a folder that are not read, one reason each, the first `LISTED` of them by name.

    sizes: bytes by name, as `local_files.list_sizes`. told: what `unnamed` tells of files whose names tell no format;
    without it (files on the Hub) endings decide. Of what trainers keep, and of formats that are no models by
    themselves, only large files count, and small ones if a model could be in all of them together.
    """
    found: list[Reason] = []
    small: dict[str, int] = {}
    room = EXCUSED - sum(size for name, size in sizes.items() if _is_text(name, size) and not _is_tokenizer(name))
    for name, size in sizes.items():
        last = PurePosixPath(name).name
        row = registry.by_name(name)
        if name.endswith("/"):
            found.append(Reason.of(Code.FOLDER_NOT_READ, name))
        elif name in read:
            continue
        elif row is not None:
            least = LARGE if last.startswith(_TRAINING) else LEAST if not registry.is_read(row) or row.generic else 0
            found += [Reason.of(Code.FILE_NOT_READ, name, what=row.what)] if size >= least else []
            small |= {name: size} if size < least else {}
        elif told is not None and name in told and size < LEAST:
            small[name] = size
        elif name in told if told is not None else size >= LARGE and not _excused(name, size, room):
            kind = told[name] if told is not None else None
            found.append(Reason.of(Code.FILE_NOT_READ, name, what=kind.what if kind else "a file of no known format"))
    found += _pieces(small) if sum(small.values()) >= LARGE else []
    more = len(found) - LISTED
    return (*found[:LISTED], Reason.of(Code.FILE_NOT_READ, f"{more} more", what="files")) if more > 0 else tuple(found)


def _pieces(small: Mapping[str, int]) -> list[Reason]:
    """A reason for each folder of small files, by the pattern that excludes it; those of the model's own folder by
    their names.
    """
    counts = Counter(f"{name.partition('/')[0]}/*" if "/" in name else name for name in small)
    what = "{} small files that are no text"
    return [
        Reason.of(Code.FILE_NOT_READ, name, what=what.format(n) if name.endswith("/*") else "a small file of many")
        for name, n in counts.items()
    ]


def unnamed(sizes: Mapping[str, int], pieces: Callable[[str], Sequence[bytes]]) -> dict[str, Format | None]:
    """Files of which the name tells no format, and that are no text, picture, sound or tokenizer by what they hold:
    their format if that is known; of unknown ones, if a model could be in all of them together.

    pieces: the first bytes of a file, some from its middle, and the last ones. Anything may be written as text, or
    behind what a picture begins with: so these are excused up to `EXCUSED` bytes together.
    """
    nameless = [name for name in sizes if not name.endswith("/") and registry.by_name(name) is None]
    large = [name for name in nameless if sizes[name] >= LEAST]
    found = _no_text(large, pieces, sizes)
    if sum(sizes[name] for name, row in found.items() if row is None) < LARGE:
        found = {name: row for name, row in found.items() if row is not None}
    small = [name for name in nameless if 0 < sizes[name] < LEAST]
    if sum(sizes[name] for name in small) < LARGE:
        return found
    few = _no_text(small, pieces, sizes)
    return found | (few if sum(sizes[name] for name in few) >= LARGE else {})


def _no_text(
    names: Iterable[str], pieces: Callable[[str], Sequence[bytes]], sizes: Mapping[str, int]
) -> dict[str, Format | None]:
    """Those of some files that hold no text, picture, sound or tokenizer, with their formats."""
    held = {name: pieces(name) for name in names}
    formats = {name: registry.by_content(data[0], name) for name, data in held.items()}
    found: dict[str, Format | None] = {name: row for name, row in formats.items() if row is not None}
    excused: dict[str, list[str]] = {}
    for name in held.keys() - found.keys():
        excused.setdefault(_excuse(name, held[name]), []).append(name)
    for excuse, ones in excused.items():
        if not excuse or sum(sizes[name] for name in ones) > (MAX_TEXT if excuse == TOKENIZER else EXCUSED):
            found |= dict.fromkeys(ones)
    return {name: found[name] for name in held if name in found}


def _excuse(name: str, pieces: Sequence[bytes]) -> str:
    """Why a file of no known format holds no weights; "" if nothing says so."""
    if _is_tokenizer(name):
        return TOKENIZER
    if any(pieces[0][at : at + len(mark)] == mark for at, mark in _MEDIA):
        return "picture or sound"
    return "text" if all(map(_is_plain, pieces)) else ""


def _is_plain(piece: bytes) -> bool:
    """Whether bytes are text: UTF-8 without control characters; the first and the last character may be cut."""
    text = piece.decode("utf-8", "ignore")
    cut = len(text.encode()) + 6 < len(piece)
    return bool(text) and not cut and not any(ord(c) < 32 and c not in "\t\n\r\f" for c in text)


def _is_text(name: str, size: int) -> bool:
    """Whether a file on the Hub is text or a picture as far as its name and size go, or belongs to a tokenizer."""
    return (PurePosixPath(name).suffix.lower() in _NO_WEIGHTS and size < MAX_TEXT) or _is_tokenizer(name)


def _excused(name: str, size: int, room: int) -> bool:
    """Whether a file on the Hub holds no weights by its name. room: negative if all that is excused could hold some."""
    return _is_text(name, size) and (room >= 0 or _is_tokenizer(name))


def _is_tokenizer(name: str) -> bool:
    """Whether a file is one of a tokenizer by its name."""
    return bool(tokenizer_files([PurePosixPath(name).name]))


def remarks(read: Collection[str]) -> tuple[Reason, ...]:
    """What a reader should know about the files that are read: whether they are an adapter."""
    return (Reason.of(Code.ADAPTER_WEIGHTS_ONLY),) if only_adapters(read) else ()


def is_beside(name: str) -> bool:
    """Whether a file is one of those that lie beside weights: configs, tokenizers, cards, lists of shards."""
    return name in (CONFIG, ADAPTER_CONFIG, CARD, *TOKENIZER_FILES) or name.endswith(INDEX_SUFFIXES)


def only_adapters(read: Collection[str]) -> bool:
    """Whether no file that is read is more than an adapter."""
    return all(name.startswith("adapter_") for name in read)


def _read_index_member(name: str, text: str, position: int) -> tuple[Any, int]:
    if name != "weight_map":
        return read_small(text, position)
    return read_object(text, position, lambda _, inner, start: read_string(inner, start))


def _check_numbering(files: list[str], label: str) -> None:
    """Shards that are numbered "of N" are all there, also without an index."""
    groups = Counter((m["stem"], int(m["count"])) for m in map(SHARD.fullmatch, files) if m)
    for (stem, count), present in groups.items():
        if present != count:
            raise ModelError(f"{label} has {present} of the {count} shards of {stem}.", "Download the others.")


def _nothing(names: Collection[str], label: str) -> ModelError:
    """Why a folder has no weights that we read, and what to do."""
    here = sorted(name for name in names if "/" not in name)
    below = _below(names)
    unread = _unread(here)
    if unread:
        name, row, (why, way_out) = unread
        return UnreadFormatError(f"{label} has no weights that are read: {name} is {row.what}, and {why}.", way_out)
    if len(below) > 1:
        more = f" and {len(below) - LISTED_BELOW} more" if len(below) > LISTED_BELOW else ""
        return ModelError(
            f"{label} is no model, but a folder of {len(below)}: {', '.join(below[:LISTED_BELOW])}{more}.",
            f"Name one: {label}/{below[0]}; or several, or a list of them (-).",
        )
    if below:
        return ModelError(
            f"{label} has no weights of its own, but its folder {below[0].rpartition('/')[0] or below[0]} has.",
            f"Name {label}/{below[0]}.",
        )
    deeper = _unread(sorted(names))
    if deeper:
        name, row, (why, way_out) = deeper
        return UnreadFormatError(f"{label} has no weights that are read: {name} is {row.what}, and {why}.", way_out)
    if not names:
        return ModelError(f"{label} is empty.", "Name a folder with config.json and weights, or a weight file.")
    return ModelError(f"{label} has no weight file.", "Name a folder with config.json and weights, or a weight file.")


def _below(names: Collection[str]) -> list[str]:
    """What to name of the folders below that have weights: those with a config, of others the one file; the nearest
    first.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        place, _, last = name.rpartition("/")
        if place and registry.is_read(registry.by_name(last)) and not last.startswith(_TRAINING):
            folders.setdefault(place, []).append(name)
    ordered = sorted(folders.items(), key=lambda found: (found[0].count("/"), found[0]))
    whole = {place for place in folders if f"{place}/{CONFIG}" in names}
    return [files[0] if len(files) == 1 and place not in whole else place for place, files in ordered]


def _unread(here: list[str]) -> tuple[str, Format, Refusal] | None:
    """The file that is most likely the model, in a format that is not read: one that can be nothing else goes first."""
    rows = ((name, registry.refusal_of(name)) for name in here if not PurePosixPath(name).name.startswith(_TRAINING))
    found = [(name, *told) for name, told in rows if told and told[0].name != registry.NOTES]
    return min(found, key=lambda one: one[1].generic, default=None)


def _bad_index(name: str, label: str, what: str) -> ModelError:
    return ModelError(f"{label} has a bad {name}: {what}.", "Download it again.")
