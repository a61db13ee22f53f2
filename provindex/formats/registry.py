"""The formats of weights that provindex knows, one row each: how to recognize one, and its reader or its refusal.

The content decides before the name: people rename files, and a downloader may save a web page as `model.bin`. A format
is added by a file with its reader and one row here. `README.md` shows this table (`python -m build_index.formats`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import NamedTuple

from provindex.common.errors import ModelError, UnreadFormatError
from provindex.formats import consolidated
from provindex.formats.reader import Beside, Reader, WeightFile
from provindex.formats.tensors import Contents
from provindex.formats.together import is_pair

LONGEST = 255  # characters of a file's name that are compared with patterns: file systems allow no more
BEGINNING = 512  # bytes of a file that are compared with signatures


class Magic(NamedTuple):
    """A signature: these bytes stand at this offset of every such file."""

    offset: int
    content: bytes


class Refusal(NamedTuple):
    """why: a clause that says why the format is not read. way_out: a sentence that says what to do instead."""

    why: str
    way_out: str


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    name: short and unique. what: a phrase that completes "this file is ...". suffixes: endings of file names, in lower
    case; the longest ending of all rows decides. magic: signatures, of which one suffices. read: the reader, or why
    there is none. names: patterns of whole file names, in lower case, with * for anything; they decide before endings.
    parts: whether one model may be split into several files, which are then read together. generic: whether files with
    these endings are often no models, so that one does not make its folder a model.
    """

    name: str
    what: str
    suffixes: tuple[str, ...]
    magic: tuple[Magic, ...]
    read: Reader | Refusal
    names: tuple[str, ...] = ()
    parts: bool = False
    generic: bool = False

    def begins(self, beginning: bytes) -> bool:
        """Whether the first bytes of a file have a signature of this format."""
        return any(beginning.startswith(content, offset) for offset, content in self.magic)


# --- readers: each format's module is imported when a file of it is read ---


def _safetensors(files: Sequence[WeightFile], beside: Beside) -> Contents:
    from provindex.formats.safetensors import read

    return read(files, beside)


def _gguf(files: Sequence[WeightFile], beside: Beside) -> Contents:
    from provindex.formats.gguf.files import read

    return read(files, beside)


def _torch(files: Sequence[WeightFile], beside: Beside) -> Contents:
    from provindex.formats.torch.files import read

    return read(files, beside)


def _onnx(files: Sequence[WeightFile], beside: Beside) -> Contents:
    from provindex.formats.onnx.files import read

    return read(files, beside)


def _ctranslate2(files: Sequence[WeightFile], beside: Beside) -> Contents:
    from provindex.formats.ctranslate2.files import read

    return read(files, beside)


# --- the table ---

_ZIP = Magic(0, b"PK\3\4")
_TAR = (Magic(257, b"ustar\0"), Magic(257, b"ustar "))
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled, after the pickle's own header
_CUT = (".safetensors", ".gguf", ".bin", ".pt", ".pth")  # files that people cut
_ORIGINAL = "Name the model that it was made from."
NOTES = "AppleDouble"  # of all rows the one whose files stand for nothing at all
_SAVE = "Convert it to safetensors first (with transformers: model.save_pretrained(folder))"

SAFETENSORS = Format(
    "safetensors", "a safetensors file", (".safetensors",),
    (Magic(4, b"\0\0\0\0{"),),  # the upper half of the header's length (at most 100 MB), and the header's first byte
    _safetensors,
)  # fmt: skip
GGUF = Format("GGUF", "a GGUF file", (".gguf",), (Magic(0, b"GGUF"),), _gguf, parts=True)
TORCH = Format(
    "torch", "a torch checkpoint", (".bin", ".pt", ".pth", ".ckpt"),
    (_ZIP, Magic(2, _TORCH_LEGACY), Magic(11, _TORCH_LEGACY)),  # pickle protocols 2 and 3; 4 and 5 begin with a frame
    _torch,
)  # fmt: skip
ONNX = Format("ONNX", "an ONNX file", (".onnx",), (), _onnx)

# Readers first, in the order in which a folder's weights are looked for. Where several rows have the signature of a
# file and none has its ending, the first one is taken: torch for zip archives, tar before what is packed into one.
FORMATS: tuple[Format, ...] = (
    SAFETENSORS,
    GGUF,
    TORCH,
    ONNX,
    Format(
        "Keras HDF5", "a Keras HDF5 file", (".h5", ".hdf5"), (Magic(0, b"\x89HDF\r\n\x1a\n"),),
        Refusal("HDF5 is not parsed", f"{_SAVE}, or name the model's safetensors or torch files."),
    ),
    Format(
        "Keras", "a Keras archive", (".keras",), (_ZIP,),
        Refusal("it packs a program with HDF5", "With keras: export the model to ONNX, and name that file."),
    ),
    Format(
        "Flax msgpack", "a Flax msgpack file", (".msgpack",), (),
        Refusal("msgpack is not parsed", f"{_SAVE}, or name the model's safetensors or torch files."),
    ),
    Format(
        "NumPy archive", "a NumPy archive", (".npz",), (_ZIP,),
        Refusal("it names no model", "Save its arrays with the safetensors package (MLX: mx.save_safetensors)."),
        generic=True,
    ),
    Format(
        "NumPy array", "a NumPy array", (".npy",), (Magic(0, b"\x93NUMPY"),),
        Refusal("it is one array without a name", "Save the arrays of the model with the safetensors package."),
        generic=True,
    ),
    Format(
        "pickle", "a pickle file", (".pkl", ".pickle", ".joblib"), (),
        Refusal("a pickle is a program, and pickles are never executed", f"{_SAVE}."),
        generic=True,
    ),
    Format(
        "TensorFlow graph", "a TensorFlow graph", (".pb",), (),
        Refusal("it is a program with its weights", "Export it to ONNX (python -m tf2onnx.convert), and name that."),
    ),
    Format(
        "TensorFlow checkpoint", "a part of a TensorFlow checkpoint",
        (".ckpt.index", ".ckpt.meta"), (),
        Refusal("its index is not parsed", f"{_SAVE}."),
        names=("*.data-*-of-*", "*.ckpt-*.index", "*.ckpt-*.meta", "variables.index"),
    ),
    Format(
        "TFLite", "a TFLite model", (".tflite", ".task", ".litertlm"), (Magic(4, b"TFL3"), Magic(0, b"LITERTLM")),
        Refusal("its tensors have lost their names", _ORIGINAL),
    ),
    Format(
        "CoreML", "a CoreML model", (".mlmodel",), (),
        Refusal("it is compiled for Apple's devices", _ORIGINAL),
    ),
    Format(
        "OpenVINO", "a part of an OpenVINO model", (),
        (Magic(0, b'<?xml version="1.0"?>\n<net'), Magic(0, b'<?xml version="1.0" ?>\n<net')),
        Refusal("its weights have lost their names", _ORIGINAL),
        names=("openvino_*model*.xml", "openvino_*model*.bin"),
    ),
    Format(
        "MLC", "a part of an MLC model", (), (),
        Refusal("its weights are packed for TVM", _ORIGINAL),
        names=("params_shard_*.bin", "ndarray-cache*.json", "tensor-cache*.json"),
    ),
    Format(
        "MNN", "an MNN model", (".mnn", ".mnn.weight"), (),
        Refusal("its tensors have lost their names", _ORIGINAL),
    ),
    Format(
        "RKLLM", "a model for Rockchip's devices", (".rkllm", ".rknn"), (),
        Refusal("it is compiled for one kind of device", _ORIGINAL),
    ),
    Format(
        "TensorRT", "a TensorRT engine", (".engine", ".plan", ".trt"), (),
        Refusal("it is compiled for one kind of GPU", _ORIGINAL),
    ),
    Format(
        "ExecuTorch", "an ExecuTorch program", (".pte",), (Magic(4, b"ET12"),),
        Refusal("it is compiled for one kind of device", _ORIGINAL),
    ),
    Format(
        "CTranslate2", "a CTranslate2 model", (),  # a version of 4 bytes, a length of 2, the name of the model's kind
        tuple(Magic(6, kind) for kind in (b"Transformer", b"WhisperSpec\0", b"Wav2Vec2")),
        _ctranslate2,
    ),
    Format(
        "GGML", "a GGML file", (".ggml",),
        tuple(Magic(0, mark) for mark in (b"lmgg", b"fmgg", b"tjgg", b"algg")),  # ggml, ggmf, ggjt, ggla, reversed
        Refusal(
            "it is the format of whisper.cpp, and of llama.cpp before GGUF",
            "Name the model that it was made from (ggml-base.bin: openai/whisper-base). "
            "Of llama.cpp: convert it to GGUF (convert_llama_ggml_to_gguf.py).",
        ),
        names=("ggml-*.bin",),
    ),
    Format(
        "UQFF", "a UQFF file of mistral.rs", (".uqff",), (Magic(4, b"\0\0\0\0{"),),
        Refusal("its tensors are packed by mistral.rs", _ORIGINAL),
    ),
    Format(
        "llamafile", "a llamafile", (".llamafile",), (Magic(0, b"MZqFpD"),),
        Refusal("it is a program with a GGUF file inside", "Unpack it (unzip FILE '*.gguf'), and name the GGUF file."),
    ),
    Format(
        "torch distributed", "a part of a distributed torch checkpoint", (".distcp",), (_ZIP,),
        Refusal(
            "it holds pieces of tensors",
            "Join them: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
        ),
    ),
    Format(
        "DeepSpeed", "a part of a DeepSpeed checkpoint", (), (_ZIP,),
        Refusal(
            "it holds an optimizer's state and pieces of weights",
            "Join them with the script in the checkpoint's folder: python zero_to_fp32.py . model --safe_serialization",
        ),
        names=("*_optim_states.pt", "*zero_pp_rank_*_model_states.pt"),
    ),
    Format(
        "Megatron shard", "a model-parallel part of a model", (), (_ZIP,),
        Refusal("it holds pieces of weights", "Join the parts with the tool that wrote them, and name the result."),
        names=("mp_rank_*.pt", "*model_world_size_*_rank_*.pt", "*_model_part-*.pt", "model_optim_rng.pt",
               "layer_*-model_*-model_states.pt"),
    ),
    Format(
        "split file", "a piece of a file", (), (),
        Refusal("the file was cut for an upload", "Join the pieces: cat FILE.part* > FILE (or FILE-split-*, FILE.0*)"),
        names=tuple(f"*{end}{cut}" for end in _CUT for cut in (".part*", "-split-*", ".0*")),
    ),
    Format(
        "LibTorch", "a LibTorch archive", (".ot",), (_ZIP,),
        Refusal("it is a program with its weights", f"{_ORIGINAL} Its safetensors or torch files are read."),
    ),
    Format(
        "Paddle", "a Paddle model", (".pdparams", ".pdiparams"), (),
        Refusal("Paddle's files are not parsed", "Save its arrays with the safetensors package."),
    ),
    Format(
        "tar", "a tar archive", (".tar",), _TAR,
        Refusal("archives are not unpacked", "Unpack it, and name the weight file or the folder."),
        generic=True,
    ),
    Format(
        "NeMo", "a NeMo archive", (".nemo",), _TAR,
        Refusal("archives are not unpacked", "Unpack it (tar -xf), and name the checkpoint (.ckpt) in it."),
    ),
    Format(
        "DDUF", "a DDUF archive", (".dduf",), (_ZIP,),
        Refusal("it packs several models", "Unpack it (unzip), and name the folder of one of them."),
    ),
    Format(
        "zip", "a zip archive", (".zip", ".mar"), (),
        Refusal("archives are not unpacked", "Unpack it, and name the weight file or the folder."),
        generic=True,
    ),
    Format(
        "compressed file", "a compressed file", (".zst", ".xz", ".bz2", ".lz4", ".lzma", ".rar", ".br"),
        tuple(Magic(0, mark) for mark in (b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"\x04\x22\x4d\x18", b"Rar!")),
        Refusal("archives are not unpacked", "Unpack it, and name the weight file or the folder."),
        generic=True,
    ),
    Format(
        "gzip", "a gzip file", (".gz", ".tgz"), (Magic(0, b"\x1f\x8b\x08"),),
        Refusal("archives are not unpacked", "Unpack it, and name the weight file or the folder."),
        generic=True,
    ),
    Format(
        "7z", "a 7z archive", (".7z",), (Magic(0, b"7z\xbc\xaf'\x1c"),),
        Refusal("archives are not unpacked", "Unpack it, and name the weight file or the folder."),
        generic=True,
    ),
    Format(
        NOTES, "a file that macOS keeps beside another", (), (Magic(0, b"\0\x05\x16\x07"),),
        Refusal("it holds no weights", "Name the file of the same name without ._ before it."),
        names=("._*",), generic=True,
    ),
    Format(
        "Git LFS pointer", "a Git LFS pointer, a text that stands for the file", (),
        (Magic(0, b"version https://git-lfs.github.com/spec/"),),
        Refusal("the weights were not downloaded", "Run `git lfs pull` in its folder, or download the file again."),
    ),
    Format(
        "web page", "a web page", (),
        tuple(Magic(0, tag) for tag in (b"<!DOCTYPE html", b"<!doctype html", b"<html", b"Entry not found")),
        Refusal("a server answered the download with a message", "Open it in a browser, then download the file again."),
    ),
)  # fmt: skip


# --- questions to the table ---


def by_name(name: str) -> Format | None:
    """The format that has a pattern of a file's name, else the longest ending of it; None if none has. Case does not
    matter.
    """
    lower = name.lower()
    last = lower.rpartition("/")[2]
    pieces, patterns = _compiled(tuple(row.names for row in FORMATS))
    if len(last) <= LONGEST and pieces.search(last):
        known = next((place for place, pattern in patterns if pattern.fullmatch(last)), None)
        if known is not None:
            return FORMATS[known]
    endings = ((len(suffix), row) for row in FORMATS for suffix in row.suffixes if lower.endswith(suffix))
    return max(endings, key=lambda found: found[0], default=(0, None))[1]


@cache
def _compiled(names: tuple[tuple[str, ...], ...]) -> tuple[re.Pattern[str], tuple[tuple[int, re.Pattern[str]], ...]]:
    """What a name must have a piece of to have any of the patterns, and the patterns of each row that has some."""
    longest = sorted({max(pattern.split("*"), key=len) for row in names for pattern in row})
    rows = tuple((at, re.compile("|".join(map(translate, row)))) for at, row in enumerate(names) if row)
    return re.compile("|".join(map(re.escape, longest))), rows


def by_content(beginning: bytes, name: str) -> Format | None:
    """The format whose signature a file has; of several the one that its name says, else the first in the table."""
    rows = [row for row in FORMATS if row.begins(beginning)]
    named = by_name(name)
    return named if named in rows else next(iter(rows), None)


def is_of(row: Format, name: str) -> bool:
    """Whether a file's name says that it is of a format."""
    return by_name(name) is row


def is_read(row: Format | None) -> bool:
    """Whether there is a reader for a format."""
    return row is not None and not isinstance(row.read, Refusal)


def refusal_of(name: str) -> tuple[Format, Refusal] | None:
    """The format of a file by its name, and why it is not read; None if it is read, or not known."""
    row = by_name(name)
    return (row, row.read) if row is not None and isinstance(row.read, Refusal) else None


def may_be_model(name: str) -> bool:
    """Whether a file of this name in a folder makes that folder a model, read or refused."""
    row = by_name(name)
    return row is not None and not row.generic


def groups(names: Collection[str]) -> list[list[str]]:
    """Files that have to be read together: all of them if they are parts of one model, else each alone."""
    rows = [by_name(name) for name in names]
    split = all(row is not None and row is rows[0] and row.parts for row in rows)
    split = split or is_pair(names) or consolidated.parts_of(next(iter(names), ""), [*names]) == tuple(sorted(names))
    return [list(names)] if split else [[name] for name in names]


def read(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """Read the files of one group. See `reader.Reader`; UnreadFormatError if their format is not read or not known."""
    row, label = _told(files), files[-1].label
    if row is None:
        endings = ", ".join(suffix for known in FORMATS if is_read(known) for suffix in known.suffixes)
        raise UnreadFormatError(
            f"{label} is of no format that is known here, by its name and by its first bytes.",
            f"Name the model's folder, or a weight file ({endings}).",
        )
    if isinstance(row.read, Refusal):
        raise unread(row, row.read, label)
    found = row.read(files, beside)
    return consolidated.completed(found, files, beside) if consolidated.is_one(files[0].name) else found


def unread(row: Format, refusal: Refusal, label: str) -> UnreadFormatError:
    """The error for a file of a format that has no reader; `label` is what it calls the file."""
    return UnreadFormatError(f"{label} is {row.what}, which is not read: {refusal.why}.", refusal.way_out)


def _told(files: Sequence[WeightFile]) -> Format | None:
    """By content, then by name; parts of a split model by their name alone: one reader looks at all of them."""
    last = files[-1]
    beginning = last.extent.now(0, BEGINNING)
    if not beginning:
        raise ModelError(f"{last.label} is empty.", "Download it again.")
    named = by_name(last.name)
    return named if len(files) > 1 else by_content(beginning, last.name) or named
