"""GGUF files: tensors under transformers' names and in its orientation, config and tokenizer from the metadata.

What llama.cpp's converter did to a tensor is undone on reading (gguf/names.py says what that was), so that a model in
F32, F16 or BF16 has the content hash of its safetensors. Nothing is dequantized before it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError, UnreadFormatError
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import F32, Tensor
from provindex.formats.dtypes import STORED
from provindex.formats.gguf import config as gguf_config
from provindex.formats.gguf import tokenizer as gguf_tokenizer
from provindex.formats.gguf.blocks import BORROWED, borrowed
from provindex.formats.gguf.header import Entry, Header, Value, read_header
from provindex.formats.gguf.names import FAMILIES, Family
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.tensors import BlockTensor, ByteTensor, ComputedTensor, Contents, Extent, rows_moved, transposed

MAX_TENSORS = 1 << 17  # of a model, each expert counted; the largest published ones have about 75,000
MAX_ROWS = 1 << 20  # of a matrix whose rows are put in another order, and elements of a norm
MAX_BUFFER = 1 << 12  # elements of factors of rotary frequencies, of which half a head has one each
_BUFFER = ".inv_freq"

I64 = NDArray[np.int64]


def read(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The model in one GGUF file or in all parts of one. See `reader.Reader`."""
    return read_parts([(file.extent, file.label) for file in files])


def read_gguf(file: Extent, label: str) -> Contents:
    """What a whole GGUF file holds. ModelError in one sentence for everything that is wrong with it."""
    return read_parts([(file, label)])


def read_parts(files: Sequence[tuple[Extent, str]]) -> Contents:
    """What a GGUF model in one file or several holds; of several the first has the metadata of all."""
    headers = [read_header(file, label) for file, label in files]
    metadata, label = headers[0].metadata, files[0][1]
    _check_parts(headers, [label for _, label in files])
    architecture = _architecture(metadata, label)
    stored = dict(_stored(files, headers))
    row, family = gguf_config.family(architecture, metadata, stored.keys())
    naming = _Naming(architecture, family, metadata, label)
    config = gguf_config.config_of(architecture, family, metadata, {name: t.shape for name, t in stored.items()})
    tokenizer, notes = gguf_tokenizer.files(metadata)
    if row not in FAMILIES:
        notes = (Reason.of(Code.GGUF_ARCHITECTURE, name=repr(architecture[:100])), *notes)
    unread = sum(header.unread for header in headers)
    if unread:
        notes = (Reason.of(Code.BYTES_NOT_READ, bytes=unread), *notes)
    claims, stated = gguf_config.claims(metadata), gguf_config.stated(metadata)
    return Contents(tuple(_named(stored, naming)), config, tokenizer, notes, claims, stated)


def _check_parts(headers: Sequence[Header], labels: Sequence[str]) -> None:
    """The files are all the parts of one model, in order."""
    for place, (header, label) in enumerate(zip(headers, labels, strict=True)):
        count = gguf_config.whole(header.metadata, "split.count") or 1
        number = gguf_config.whole(header.metadata, "split.no")
        if (number, count) != (place, len(headers)):
            raise ModelError(
                f"{label} is part {number + 1} of {count} of a model, read as part {place + 1} of {len(headers)}.",
                "Put all the parts into one folder under the names that they were published with, and name the folder; "
                "what joins them is `llama-gguf-split --merge`, not cat.",
            )


def _architecture(metadata: Mapping[str, Value], label: str) -> str:
    found = metadata.get("general.architecture")
    if not isinstance(found, str) or not found:
        raise ModelError(f"{label} does not say its architecture.", "Convert it again with llama.cpp.")
    kind = metadata.get("general.type", "model")
    if kind != "model" or found == "clip":
        what = "the projector of a multimodal model" if found == "clip" else f"of the kind {str(kind)[:40]!r}"
        raise ModelError(f"{label} is {what}, not a language model.", "Name the GGUF file of the model itself.")
    return found


def _stored(files: Sequence[tuple[Extent, str]], headers: Sequence[Header]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the files have them, by their names there."""
    seen: set[str] = set()
    for (file, label), header in zip(files, headers, strict=True):
        for entry in header.entries:
            if entry.name in seen:
                raise ModelError(f"{label} has the tensor {shown(entry.name)}, as a part before it.", "Remove one.")
            seen.add(entry.name)
            yield entry.name, _tensor(entry, file.part(entry.start, entry.stop), label)


def _tensor(entry: Entry, extent: Extent, label: str) -> Tensor:
    form = entry.format
    if form.decode is not None:
        return BlockTensor(entry.name, form.name, entry.shape, extent, form.block, form.width, form.decode)
    if form.name in STORED:
        return ByteTensor(entry.name, form.name, entry.shape, extent)
    if form.name in BORROWED:
        decode = borrowed(form)
        if decode is None:
            raise UnreadFormatError(
                f"{label} stores {shown(entry.name)} as {form.name}, which is decoded by the package gguf alone.",
                "Install it (pip install 'provindex[gguf]'), or use a file in another format (Q4_K_M, Q8_0, F16).",
            )
        return BlockTensor(entry.name, form.name, entry.shape, extent, form.block, form.width, decode)
    raise ModelError(
        f"{label} stores {shown(entry.name)} as {form.name}, which is not decoded.",
        "Use a file of the model in another format, such as Q4_K_M, IQ4_XS, Q8_0 or F16.",
    )


# --- names -------------------------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"(?P<stack>|enc\.|dec\.)blk\.(?P<layer>0|[1-9]\d{0,4})\.(?P<rest>.+)")
_EXPERT = re.compile(r"(?P<name>ffn_(gate|up|down))\.(?P<number>\d{1,4})")


class _Naming:
    """How one file's tensors become transformers': a family's table, and the numbers that undoing needs."""

    def __init__(self, architecture: str, family: Family, metadata: Mapping[str, Value], label: str) -> None:
        self.architecture, self.family, self.label = architecture, family, label
        self._metadata = metadata

    def find(self, name: str) -> tuple[str, str, int | None]:
        """transformers' name, how the tensor was changed, and its layer; the name in the file where no row knows it."""
        stem, _, last = name.rpartition(".")
        if last not in ("weight", "bias"):
            return name, "", None
        match = _NUMBERED.fullmatch(stem)
        layer = int(match["layer"]) if match else None
        key, number = stem, ""
        if match:
            expert = _EXPERT.fullmatch(match["rest"])
            rest, number = (expert["name"] + ".{n}", expert["number"]) if expert else (match["rest"], "")
            key = f"{match['stack']}blk.{{l}}.{rest}"
        target, _, how = self.family.table.get(key, "").partition(" ")
        if not target:
            return name, "", None
        target = target.replace("{l}", str(layer)).replace("{n}", number)
        return (target[:-1] if target.endswith("!") else f"{target}.{last}"), how, layer

    def heads(self, layer: int | None) -> tuple[int, int]:
        """Heads of queries and of keys of a layer."""
        queries = gguf_config.whole(self._metadata, f"{self.architecture}.attention.head_count", layer)
        keys = gguf_config.whole(self._metadata, f"{self.architecture}.attention.head_count_kv", layer)
        return queries, keys or queries

    def fail(self, tensor: Tensor, what: str) -> ModelError:
        shape = "x".join(map(str, tensor.shape))
        return ModelError(f"{self.label} has {shown(tensor.name)} of shape {shape}, which {what}.", "Convert it again.")


def _named(stored: Mapping[str, Tensor], naming: _Naming) -> Iterator[Tensor]:
    """The tensors as transformers has them, in the order of their bytes; parts of one tensor where the first one is."""
    parts: dict[str, dict[str, Tensor]] = {}
    names: set[str] = set()
    for name, tensor in stored.items():
        target, how, layer = naming.find(name)
        if target.endswith(_BUFFER) and tensor.size > MAX_BUFFER:
            target, how, layer = name, "", None
        if how in _PARTS:
            group = parts.setdefault(target, {})
            group[how] = tensor
            whole = _whole(target, group, layer, naming)
            made: Sequence[Tensor] = [whole] if whole else []
        elif "{e}" in target:
            made = _unstacked(target, tensor, naming)
        else:
            made = [_undone(target, how, tensor, layer, naming)]
        for each in made:
            if each.name in names:
                raise ModelError(f"{naming.label} has {shown(each.name)} under two names.", "Convert it again.")
            names.add(each.name)
        if len(names) > MAX_TENSORS:
            raise ModelError(f"{naming.label} has more than {MAX_TENSORS} tensors, experts counted singly.")
        yield from made
    for target, group in parts.items():
        if not any(set(group) == set(needed) for needed in _WHOLES):
            raise ModelError(f"{naming.label} has only a part of {shown(target)}.", "Download it again.")


def _undone(target: str, how: str, tensor: Tensor, layer: int | None, naming: _Naming) -> Tensor:
    """One stored tensor as transformers has it."""
    if naming.family.gains and target.endswith("norm.weight") and len(tensor.shape) == 1:
        if tensor.size > MAX_ROWS:
            raise naming.fail(tensor, "is no norm's")
        return _less_one(target, tensor)
    if how == "t" and len(tensor.shape) == 2:
        return transposed(target, tensor)
    if how == "row" and len(tensor.shape) == 1:
        return _reshaped(target, tensor, (1, *tensor.shape))
    order = _row_order(how, tensor, layer, naming)
    return _reshaped(target, tensor, tensor.shape) if order is None else rows_moved(target, tensor, order)


def _reshaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same elements under another name."""
    if isinstance(tensor, BlockTensor):
        stored = (tensor.extent, tensor.block, tensor.width, tensor.decode)
        return BlockTensor(name, tensor.dtype, shape, *stored)
    assert isinstance(tensor, ByteTensor)
    return ByteTensor(name, tensor.dtype, shape, tensor.extent)


def _unstacked(target: str, tensor: Tensor, naming: _Naming) -> Sequence[Tensor]:
    """Each expert (or head) of a stacked tensor as one."""
    count, *shape = tensor.shape
    if not shape:
        raise naming.fail(tensor, "holds no experts")
    if count > MAX_TENSORS:
        raise naming.fail(tensor, "are more experts than a model has")
    whole = _reshaped(target, tensor, tensor.shape)
    assert isinstance(whole, (ByteTensor, BlockTensor))
    size = whole.nbytes // count
    parts = (whole.extent.part(i * size, (i + 1) * size) for i in range(count))
    names = (target.replace("{e}", str(i)) for i in range(count))
    if isinstance(whole, ByteTensor):
        return [ByteTensor(name, whole.dtype, tuple(shape), part) for name, part in zip(names, parts, strict=True)]
    form = (whole.block, whole.width, whole.decode)
    return [BlockTensor(name, whole.dtype, tuple(shape), part, *form) for name, part in zip(names, parts, strict=True)]


# --- rows --------------------------------------------------------------------------------------------------------


def _row_order(how: str, tensor: Tensor, layer: int | None, naming: _Naming) -> I64 | None:
    """Which stored row is row i; None where they are in order already."""
    if how not in ("q", "k", "thirds", "groups"):
        return None
    rows = tensor.shape[0]
    queries, keys = naming.heads(layer)
    heads = {"q": queries, "k": keys, "thirds": 3 * queries, "groups": queries + 2 * keys}[how]
    pairs = 2 if how in ("q", "k") else 1
    if not heads or rows % (pairs * heads) or (how == "groups" and queries % keys) or rows > MAX_ROWS:
        raise naming.fail(tensor, f"does not fit {queries} heads and {keys} key heads")
    if how == "groups" and keys == 1:
        return None
    return _order(how, rows, queries, keys)


@lru_cache(maxsize=64)
def _order(how: str, rows: int, queries: int, keys: int) -> I64:
    order: I64
    at = np.arange(rows, dtype=np.int64)
    if how in ("q", "k"):
        order = at.reshape(queries if how == "q" else keys, -1, 2).swapaxes(1, 2)
    elif how == "thirds":
        order = at.reshape(3, queries, -1).swapaxes(0, 1)
    else:
        dim = rows // (queries + 2 * keys)
        of_queries, of_keys, of_values = np.split(at, (queries * dim, (queries + keys) * dim))
        parts = (of_queries.reshape(keys, -1), of_keys.reshape(keys, dim), of_values.reshape(keys, dim))
        order = np.concatenate(parts, axis=1)
    flat = order.reshape(-1)
    flat.setflags(write=False)
    return flat


# --- tensors in parts --------------------------------------------------------------------------------------------

_WHOLES = (("wq", "wk", "wv"), ("k_b", "v_b"))
_PARTS = frozenset(part for needed in _WHOLES for part in needed)


def _whole(target: str, group: Mapping[str, Tensor], layer: int | None, naming: _Naming) -> Tensor | None:
    """A tensor from its parts, None while some are missing."""
    if {"wq", "wk", "wv"} <= group.keys():
        return _in_groups(target, [group[part] for part in ("wq", "wk", "wv")], layer, naming)
    if {"k_b", "v_b"} <= group.keys():
        return _latent(target, group["k_b"], group["v_b"], naming)
    return None


def _in_groups(target: str, parts: Sequence[Tensor], layer: int | None, naming: _Naming) -> Tensor:
    """q, k and v as one tensor: the queries of a group, its key, its value, then the next group."""
    for part, how in zip(parts, ("q", "k", "k"), strict=True):
        if part.shape[1:] != parts[0].shape[1:] or len(part.shape) != 2:
            raise naming.fail(part, "does not go with the query's")
        _row_order(how, part, layer, naming)
    heights = [part.shape[0] for part in parts]
    queries, keys = naming.heads(layer)
    dim = heights[0] // queries
    if heights[1:] != [keys * dim] * 2 or queries % keys or sum(heights) > MAX_ROWS:
        raise naming.fail(parts[1], f"does not fit {queries} heads and {keys} key heads")
    order = _grouped_pairs(sum(heights), queries, keys)
    starts = np.cumsum([0, *heights])

    def make(start: int, stop: int) -> F32:
        rows = order[start:stop]
        out = np.empty((rows.size, parts[0].shape[1]), np.float32)
        for part, first, last in zip(parts, starts, starts[1:], strict=False):
            here = (rows >= first) & (rows < last)
            if here.any():
                out[here] = part.rows(rows[here] - first)
        return out

    return ComputedTensor(target, _one_dtype(parts), (sum(heights), parts[0].shape[1]), make, tuple(parts))


@lru_cache(maxsize=16)
def _grouped_pairs(rows: int, queries: int, keys: int) -> I64:
    """Rows of q, k, v one after the other, q and k in pairs, for each row of the grouped tensor."""
    dim = rows // (queries + 2 * keys)
    apart = np.arange(rows, dtype=np.int64)
    apart[: queries * dim] = _order("q", queries * dim, queries, keys)
    apart[queries * dim : (queries + keys) * dim] = queries * dim + _order("k", keys * dim, queries, keys)
    return apart[_order("groups", rows, queries, keys)]


def _one_dtype(parts: Sequence[Tensor]) -> str:
    """The format of all parts, else F32, which holds the values of each."""
    dtypes = {part.dtype for part in parts}
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def _latent(target: str, k: Tensor, v: Tensor, naming: _Naming) -> Tensor:
    """DeepSeek's kv_b: for each head the rows of its key, which are stored as columns, then those of its value."""
    if len(k.shape) != 3 or len(v.shape) != 3 or (k.shape[0], k.shape[1]) != (v.shape[0], v.shape[2]):
        raise naming.fail(k, "does not go with the value's")
    heads, rank, of_key = k.shape
    height = of_key + v.shape[1]

    def make(start: int, stop: int) -> F32:
        first, last = start // height, -(-stop // height)
        keys = k.rows(range(first, last)).reshape(-1, rank, of_key).swapaxes(1, 2)
        values = v.rows(range(first, last)).reshape(-1, v.shape[1], rank)
        both = np.concatenate((keys, values), axis=1).reshape(-1, rank)
        return both[start - first * height : stop - first * height]

    return ComputedTensor(target, _one_dtype((k, v)), (heads * height, rank), make, (k, v), height)


# --- orientation and gains ---------------------------------------------------------------------------------------


def _less_one(name: str, tensor: Tensor) -> Tensor:
    """A norm's gain without the 1 that the converter added.

    The sum was rounded to float32. Where numbers of 16 bits give exactly the sums that are stored, they are what was
    added to: then they are returned, and not the differences, which are off by half a unit of the sum.
    """

    def make(start: int, stop: int) -> F32:
        return _restored(tensor.flat()) if stop > start else np.empty(0, np.float32)

    return ComputedTensor(name, "F32", tensor.shape, make, (tensor,))


def _restored(sums: F32) -> F32:
    one = np.float32(1)
    differences = sums - one
    for narrow in (_to_bfloat16, _to_float16):
        candidate = narrow(differences)
        if (candidate + one == sums).all():
            return candidate
    return differences


def _to_bfloat16(values: F32) -> F32:
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _to_float16(values: F32) -> F32:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float16).astype(np.float32)
