"""Meta's and Mistral's own layout: `consolidated*` files with `params.json` beside them, in parts or whole.

Meta splits a model for several GPUs into `consolidated.00.pth` ... , each with a part of every matrix: rows of wq, wk,
wv, w1, w3 and output, columns of wo and w2; of the embedding columns until Llama 2, rows since. Norms are in all parts.
Names stay as they are in the files, and so does the order of the rotary channels, which are in pairs here.
https://github.com/meta-llama/llama (model.py), https://github.com/mistralai/mistral-inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NoReturn

import numpy as np

from provindex.common.bounded_json import JsonError, load_object, shown
from provindex.common.errors import ModelError
from provindex.common.tensor import F32, Tensor
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.tensors import ByteTensor, ComputedTensor, Contents

PARAMS = "params.json"
MAX_PARAMS = 1 << 20  # bytes
MAX_PARTS = 100
MAX_VECTOR = 1 << 20  # bytes of what all parts have, which are compared
NAME = re.compile(r"consolidated[.-].+")
PART = re.compile(r"consolidated\.(?P<number>\d{2})\.(pth|pt)")
_ALONG_ROWS = frozenset(("wq", "wk", "wv", "w1", "w3", "output"))
_ALONG_COLUMNS = frozenset(("wo", "w2"))
_EMBEDDING = "tok_embeddings"
_CONVERT = "Convert it with transformers (convert_llama_weights_to_hf.py), and name what that saves."

# Words of params.json -> of config.json.
_WORDS = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta", "sliding_window": "sliding_window",
    "max_position_embeddings": "max_position_embeddings",
}  # fmt: skip


def is_one(name: str) -> bool:
    """Whether a file's name is of this layout."""
    return NAME.fullmatch(PurePosixPath(name).name) is not None


def params_of(name: str) -> str:
    """Where a file's params.json would be."""
    return (PurePosixPath(name).parent / PARAMS).as_posix()


def parts_of(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The parts of the model that a file is a part of, in order, among `names`; the file itself if it is no part."""
    place, own = PurePosixPath(name).parent, PART.fullmatch(PurePosixPath(name).name)
    if own is None:
        return (name,)
    beside = (other for other in sorted(names) if PurePosixPath(other).parent == place)
    alike = (other for other in beside if (m := PART.fullmatch(PurePosixPath(other).name)) and m[2] == own[2])
    return tuple(alike) or (name,)


def completed(found: Contents, files: Sequence[WeightFile], beside: Beside) -> Contents:
    """What a file of this layout holds, with the config that `params.json` beside it gives.

    ModelError if the file is one part of several and the others are not read with it, or if params.json is no JSON.
    """
    params = _params(files[0], beside)
    shapes = {tensor.name: tensor.shape for tensor in found.tensors}
    if len(files) == 1:
        _check_whole(shapes, params, files[0].label)
    if params is None or found.config is not None:
        return found
    return replace(found, config=config_of(params, shapes))


def _params(file: WeightFile, beside: Beside) -> dict[str, Any] | None:
    extent = beside(params_of(file.name))
    if extent is None:
        return None
    label = f"{PARAMS} beside {file.label}"
    if extent.size > MAX_PARAMS:
        raise ModelError(f"{label} has {extent.size:,} bytes, which no such file needs.", "Download it again.")
    try:
        return dict(load_object(extent.now(0, extent.size)))
    except JsonError as fault:
        raise ModelError(f"{label} cannot be used: {fault}.", "Download it again.") from None


def config_of(params: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """config.json in transformers' words. What params.json leaves to the code (the MLP's width) is in the shapes."""
    said = {theirs: params[ours] for ours, theirs in _WORDS.items() if _is_number(params.get(ours))}
    embedding = shapes.get(f"{_EMBEDDING}.weight")
    inner = shapes.get("layers.0.feed_forward.w1.weight")
    if embedding and len(embedding) == 2:
        said |= {"vocab_size": embedding[0], "hidden_size": embedding[1]}
    if inner and len(inner) == 2:
        said["intermediate_size"] = inner[0]
    experts = params.get("moe")
    mistral = params.keys() & {"hidden_dim", "head_dim", "sliding_window", "moe"}
    kind = ("mixtral", "Mixtral") if isinstance(experts, Mapping) else ("mistral", "Mistral")
    model_type, name = kind if mistral else ("llama", "Llama")
    if isinstance(experts, Mapping):
        words = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
        said |= {theirs: experts[ours] for ours, theirs in words.items() if _is_number(experts.get(ours))}
    fixed = {"model_type": model_type, "architectures": [f"{name}ForCausalLM"], "hidden_act": "silu"}
    return fixed | said | {"tie_word_embeddings": "output.weight" not in shapes}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1 << 40


def _check_whole(shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, Any] | None, label: str) -> None:
    """One file has whole matrices: as wide as its norms, and as high as its heads."""
    norm, table = shapes.get("norm.weight", ()), shapes.get(f"{_EMBEDDING}.weight", ())
    query = shapes.get("layers.0.attention.wq.weight", ())
    parts = 1
    if len(norm) == 1 and len(table) == 2 and table[1] and norm[0] % table[1] == 0:
        parts = norm[0] // table[1]
    width = _query_rows(params or {})
    if width and len(query) == 2 and query[0] and width % query[0] == 0:
        parts = max(parts, width // query[0])
    if parts > MAX_PARTS:
        raise ModelError(
            f"{PARAMS} beside {label} does not fit its matrices, which would be 1 of {parts:,} parts.",
            "Download both again.",
        )
    if parts > 1:
        raise ModelError(
            f"{label} is 1 of {parts} parts of a model: it has a part of each matrix.",
            f"Put consolidated.00 to consolidated.{parts - 1:02} into one folder, and name it.",
        )


def _query_rows(params: Mapping[str, Any]) -> int:
    said = {key: int(params[key]) for key in ("n_heads", "dim", "head_dim") if _is_number(params.get(key))}
    return said.get("n_heads", 0) * said["head_dim"] if "head_dim" in said else said.get("dim", 0)


# --- parts ---


def joined(parts: Sequence[Contents], files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The model of which each file has a part of every matrix.

    ModelError if a part is missing, if parts hold different tensors, or a tensor that nobody knows how to join.
    """
    numbers = [int(m["number"]) for m in (PART.fullmatch(PurePosixPath(file.name).name) for file in files) if m]
    if numbers != list(range(len(files))) or len(files) > MAX_PARTS:
        here = ", ".join(PurePosixPath(file.name).name for file in files[:8])
        raise ModelError(f"{files[0].label}: of the parts of a model only {here} are there.", "Download the others.")
    tables = [{tensor.name: tensor for tensor in part.tensors} for part in parts]
    for table, file in zip(tables[1:], files[1:], strict=True):
        odd = next(iter(sorted(table.keys() ^ tables[0].keys())), None)
        if odd is not None:
            raise ModelError(f"{file.label} and {files[0].label} do not both have {shown(odd)}.", _CONVERT)
    norm = tables[0].get("norm.weight")
    dim = norm.shape[0] if norm is not None and len(norm.shape) == 1 else 0
    tensors = tuple(_one(name, [table[name] for table in tables], dim, files[0].label) for name in tables[0])
    found = Contents(tensors, warnings=tuple(dict.fromkeys(w for part in parts for w in part.warnings)))
    params = _params(files[0], beside)
    _check_count(found, params, len(files), files[0].label)
    return found


def _check_count(found: Contents, params: Mapping[str, Any] | None, count: int, label: str) -> None:
    """All parts are there, as far as params.json tells how many rows the queries have."""
    query = next((t.shape[0] for t in found.tensors if t.name == "layers.0.attention.wq.weight"), 0)
    rows = _query_rows(params or {})
    if rows and query and rows != query:
        whole = rows * count / query
        wanted = f"{whole:.0f}" if whole == int(whole) <= MAX_PARTS else "another number of"
        raise ModelError(f"{label} and its {count - 1} like are {count} of {wanted} parts.", "Download the others.")


def _one(name: str, parts: Sequence[Tensor], dim: int, label: str) -> Tensor:
    """A tensor from its parts."""
    shape = parts[0].shape
    if any(part.shape != shape or part.dtype != parts[0].dtype for part in parts):
        raise ModelError(f"{label} and the other parts have {shown(name)} in different shapes.", _CONVERT)
    if len(shape) < 2:
        if parts[0].nbytes > MAX_VECTOR:
            _unknown(name, label)
        if len({_now(part) for part in parts}) > 1:
            raise ModelError(f"{label} and the other parts have different values of {shown(name)}.", _CONVERT)
        return parts[0]
    module = name.removesuffix(".weight").rpartition(".")[2]
    rows = module in _ALONG_ROWS or (module == _EMBEDDING and shape[1] == dim)
    columns = module in _ALONG_COLUMNS or (module == _EMBEDDING and shape[1] * len(parts) == dim)
    if len(shape) != 2 or min(shape) < 1 or not (rows or columns):
        _unknown(name, label)
    return _below_each_other(name, parts) if rows else _beside_each_other(name, parts)


def _unknown(name: str, label: str) -> NoReturn:
    raise ModelError(f"{label} has a part of {shown(name)}, and how its parts go together is not known.", _CONVERT)


def _now(part: Tensor) -> bytes:
    return part.extent.now(0, part.nbytes) if isinstance(part, ByteTensor) else bytes(part.raw())


def _below_each_other(name: str, parts: Sequence[Tensor]) -> Tensor:
    height, width = parts[0].shape

    def make(start: int, stop: int) -> F32:
        made = []
        while start < stop:
            which, first = divmod(start, height)
            last = min(height, first + stop - start)
            made.append(parts[which].flat(first * width, last * width).reshape(-1, width))
            start += last - first
        return made[0] if len(made) == 1 else np.concatenate(made)

    return ComputedTensor(name, parts[0].dtype, (height * len(parts), width), make, tuple(parts))


def _beside_each_other(name: str, parts: Sequence[Tensor]) -> Tensor:
    height, width = parts[0].shape

    def make(start: int, stop: int) -> F32:
        return np.concatenate([p.flat(start * width, stop * width).reshape(-1, width) for p in parts], axis=1)

    return ComputedTensor(name, parts[0].dtype, (height, width * len(parts)), make, tuple(parts))
