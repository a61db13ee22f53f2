"""CTranslate2's `model.bin`: tensors under transformers' names, fused projections apart, and a config from the shapes.

Its int8 and int16 codes are decoded, code / scale, with a scale for each row or one for all. Settings that the file
keeps as variables (heads, activation, rotary base) go into the config. Nothing is read before it is asked for but those
and the biases of keys, which a fused projection has where the model has none: zeros, that are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import F32, Tensor
from provindex.formats.ctranslate2.header import Header, Variable, read_header
from provindex.formats.ctranslate2.names import Facts, Family, Traits, config_of, family_of
from provindex.formats.reader import Beside, WeightFile
from provindex.formats.tensors import ByteTensor, ComputedTensor, Contents, Extent, transposed

_FLOATS = ("F32", "F16", "BF16")
_CODES = ("I8", "I16")
MAX_TEXT = 1 << 12  # bytes of a text that the file keeps as a variable
MAX_TEXTS = 1 << 16  # of all of them
_ENDS = {"weight": "weight", "gamma": "weight", "beta": "bias", "bias": "bias", "encodings": "weight"}
_WHOLE = ("relative_attention_bias",)  # variables that are modules of their own
_ACTIVATIONS = ("relu", "gelu_new", "silu", "gelu", "quick_gelu", "tanh", "sigmoid")
_NUMBERED = re.compile(r"/layer_(\d+)/")
_OTHER = "Name the model that it was made from."


def read(files: Sequence[WeightFile], beside: Beside) -> Contents:
    """The tensors of one CTranslate2 file. See `reader.Reader`."""
    return read_ctranslate2(files[0].extent, files[0].label)


def read_ctranslate2(file: Extent, label: str) -> Contents:
    """What a CTranslate2 file holds. ModelError in one sentence for everything that is wrong with it."""
    opened = _File(file, label, read_header(file, label))
    family = family_of(opened.traits())
    tensors: dict[str, Tensor] = {}
    for tensor in opened.tensors(family):
        if tensor.name in tensors:
            raise ModelError(f"{label} has two variables that are {shown(tensor.name)}.", _OTHER)
        tensors[tensor.name] = tensor
    decoded = sorted({t.dtype for t in tensors.values() if t.dtype.startswith("CT2_")})
    count = sum(t.dtype.startswith("CT2_") for t in tensors.values())
    notes = (Reason.of(Code.QUANTIZED_DECODED, n=count, kinds=", ".join(decoded)),) if count else ()
    return Contents(tuple(tensors.values()), opened.config(family, tensors) if family else None, warnings=notes)


class _File:
    """One file: what is stored, and how it becomes tensors."""

    def __init__(self, file: Extent, label: str, header: Header) -> None:
        self._file, self._label, self.header = file, label, header
        self._all = {**header.variables, **{name: header.variables[at] for name, at in header.aliases.items()}}
        # Of tied tables the first by name is stored; transformers calls the one of both stacks by the encoder's name.
        self._shared = {at: name for name, at in header.aliases.items() if name == _BOTH and at in _DECODER}

    def setting(self, name: str) -> int | float | None:
        """A variable of one number, None if there is none of that name."""
        found = self._all.get(name)
        form = {"F32": "<f", "I8": "<b", "I16": "<h", "I32": "<i"}.get(found.dtype, "") if found else ""
        if found is None or found.shape or not form:
            return None
        (value,) = struct.unpack(form, self._file.now(found.start, found.stop))
        return value if isinstance(value, int) or abs(value) < 1e30 else None

    def count(self, name: str) -> int:
        """A setting that counts something, 0 if there is none. ModelError if it is no whole number."""
        found = self.setting(name) or 0
        if found != int(found) or found < 0:
            raise ModelError(f"{self._label} has {found} as its {shown(name)}, which is no number of heads.", _OTHER)
        return int(found)

    def traits(self) -> Traits:
        arrays = {name: found for name, found in self._all.items() if found.shape or "use_residual" in name}
        paths = {name if _is_whole(name) else name.rpartition("/")[0] for name in arrays}
        paths |= {name for name in arrays if name.endswith("use_residual")}
        biased = {name.rpartition("/")[0] for name in arrays if name.endswith(("/bias", "/beta"))}
        rows = {name.removesuffix("/weight"): v.shape[0] for name, v in arrays.items() if name.endswith("/weight")}
        stack = "encoder" if "encoder/embeddings_0/weight" in self._all else "decoder"
        pre_norm = self.setting(f"{stack}/pre_norm")
        activation = self.setting(f"{stack}/activation")
        return Traits(self.header.spec, frozenset(paths), pre_norm != 0, int(activation or 0), frozenset(biased), rows)

    def tensors(self, family: Family | None) -> Iterator[Tensor]:
        """All weights, in the order of their bytes, those that are aliases last."""
        scales, room = self._scales(), MAX_TEXTS
        for name, stored in self._all.items():
            at = self.header.aliases.get(name, name)
            if not stored.shape or at in scales:  # settings, and what others are scaled by
                continue
            if _is_text(stored) and room >= stored.stop - stored.start:
                room -= stored.stop - stored.start
                continue
            if at != name and (_is_tied(name, at) or (family and _is_whole(name))):
                continue
            named = self._shared.get(name, name)
            path, _, last = named.rpartition("/")
            end = ".weight" if _is_whole(name) else f".{_ENDS[last]}" if last in _ENDS else ""
            modules = family.modules(named if _is_whole(name) else path) if family and end else ()
            if family and named in family.rest:  # what is no module's weight or bias
                modules, end = family.modules(named), ""
            if not modules:
                yield self._tensor(_NUMBERED.sub(r"/layer.\1/", name).replace("/", "."), at, stored)
                continue
            yield from self._apart(name, at, stored, modules, end)

    def _scales(self) -> set[str]:
        """The variables that codes are scaled by, under the names that they are stored under."""
        codes = (at for at, stored in self.header.variables.items() if stored.dtype in _CODES and not _is_text(stored))
        return {self.header.aliases.get(f"{at}_scale", f"{at}_scale") for at in codes}

    def _apart(self, name: str, at: str, stored: Variable, modules: tuple[str, ...], end: str) -> Iterator[Tensor]:
        """The tensors that a variable was made of. at: the name under which it is stored."""
        turned = modules[-1] == "t"
        targets = modules[:-1] if turned else modules
        start = 0
        for target, height in zip(targets, self._heights(name, stored, len(targets)), strict=True):
            part = self._tensor(target + end, at, stored, start, start + height)
            start += height
            if end == ".bias" and target.endswith(".k_proj") and not self._any(stored, start - height, start):
                continue
            yield transposed(part.name, part) if turned and len(part.shape) == 2 else part

    def _any(self, stored: Variable, first: int, last: int) -> bool:
        """Whether any of some elements of a stored vector is not zero."""
        width = (stored.stop - stored.start) // max(1, stored.shape[0])
        return any(self._file.now(stored.start + first * width, stored.start + last * width))

    def _heights(self, name: str, stored: Variable, count: int) -> list[int]:
        """Rows of each of the fused matrices: query, key and value, or equal ones."""
        rows = stored.shape[0]
        if count == 1:
            return [rows]
        attention = name.rpartition("/")[0].rpartition("/")[0]
        heads = self.count(f"{name.partition('/')[0]}/num_heads")
        keys = self.count(f"{attention}/num_heads_kv") or heads
        shares = [heads, keys, keys] if count == 3 and heads > 0 and keys > 0 else [1] * count
        unit, left = divmod(rows, sum(shares))
        if left or not unit:
            raise ModelError(
                f"{self._label} has {shown(name)} of {rows} rows, which {heads} heads and {keys} key heads do not fit.",
                _OTHER,
            )
        return [share * unit for share in shares]

    def _tensor(self, name: str, at: str, stored: Variable, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a variable under a name."""
        height, *rest = stored.shape
        stop = height if stop is None else stop
        shape = (stop - start, *rest)
        row = (stored.stop - stored.start) // height if height else 0
        kept = ByteTensor(
            name, stored.dtype, shape, self._file.part(stored.start + start * row, stored.start + stop * row)
        )
        if stored.dtype in _FLOATS:
            return kept
        scale = self._all.get(f"{at}_scale")
        if scale is None or stored.dtype not in _CODES or scale.dtype not in _FLOATS:
            raise ModelError(f"{self._label} stores {shown(at)} in a way that is not decoded ({stored.dtype}).", _OTHER)
        if scale.shape not in ((), (1,), (height,)) or not row:
            raise ModelError(f"{self._label} has a scale for {shown(at)} that does not fit it.", _OTHER)
        each = scale.shape == (height,) and height > 1
        size = (scale.stop - scale.start) // max(1, height if each else 1)
        first, last = (scale.start + start * size, scale.start + stop * size) if each else (scale.start, scale.stop)
        scales = ByteTensor(f"{name}_scale", scale.dtype, (stop - start if each else 1,), self._file.part(first, last))
        return _decoded(name, kept, scales)

    def config(self, family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """config.json from the shapes and settings, in transformers' words."""
        rows, widths = _sizes(self._all)
        stack = "decoder" if "decoder/num_heads" in self._all else "encoder"
        first = f"{stack}/layer_0/self_attention"
        heads = self.count(f"{stack}/num_heads")
        keys = self.count(f"{first}/num_heads_kv") or heads
        embedding = "decoder/embeddings" if "decoder/embeddings/weight" in self._all else "encoder/embeddings_0"
        mels = self._all.get("encoder/conv1/weight")
        facts = Facts(
            vocabulary=rows.get(embedding),
            width=widths.get(embedding),
            heads=heads,
            keys=keys,
            head=rows.get(f"{first}/linear_0", 0) // (heads + 2 * keys) if heads > 0 < keys else 0,
            encoder=self._depth("encoder"),
            decoder=self._depth("decoder"),
            encoder_inner=rows.get("encoder/layer_0/ffn/linear_0"),
            decoder_inner=rows.get("decoder/layer_0/ffn/linear_0"),
            positions=(rows.get("encoder/position_encodings"), rows.get("decoder/position_encodings")),
            activation=_activation(self.setting(f"{stack}/activation")),
            rotary=self.setting(f"{first}/rotary_base"),
            mels=mels.shape[1] if mels and len(mels.shape) == 3 else None,
            tied=not {"lm_head.weight", "proj_out.weight"} & tensors.keys(),
        )
        return config_of(family, facts)

    def _depth(self, stack: str) -> int:
        return 1 + max((_number(name) for name in self._all if name.startswith(f"{stack}/layer_")), default=-1)


_BOTH, _DECODER = "encoder/embeddings_0/weight", ("decoder/embeddings/weight", "decoder/projection/weight")


def _decoded(name: str, codes: ByteTensor, scales: ByteTensor) -> ComputedTensor:
    width = codes.shape[-1]
    per = codes.size // width // codes.shape[0] if codes.shape[0] else 1  # rows of the last axis that share a scale

    def make(start: int, stop: int) -> F32:
        values = codes.flat(start * width, stop * width).reshape(-1, width)
        scale = scales.flat() if scales.shape == (1,) else scales.flat()[np.arange(start, stop) // per]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # whatever the scales are
            return values / scale[:, None]

    return ComputedTensor(name, f"CT2_INT{8 if codes.dtype == 'I8' else 16}", codes.shape, make, (codes, scales))


def _is_text(stored: Variable) -> bool:
    """Whether a variable may be a text, such as a revision's name: a few bytes, and no matrix."""
    return stored.dtype == "I8" and len(stored.shape) == 1 and stored.shape[0] <= MAX_TEXT


def _is_whole(name: str) -> bool:
    return name.endswith(_WHOLE)


def _is_tied(name: str, target: str) -> bool:
    """Whether an alias says that two embeddings, or one and the output matrix, are one: transformers stores it once."""
    ends = ("embeddings/weight", "embeddings_0/weight", "projection/weight")
    return name.endswith(ends) and target.endswith(ends)


def _number(name: str) -> int:
    digits = name.split("/")[1].removeprefix("layer_")
    return int(digits) if digits.isdecimal() and len(digits) < 6 else 0


def _activation(code: int | float | None) -> str | None:
    return _ACTIVATIONS[int(code)] if code is not None and 0 <= code < len(_ACTIVATIONS) else None


def _sizes(variables: Mapping[str, Variable]) -> tuple[dict[str, int], dict[str, int]]:
    """Rows and columns of each matrix by the path of its layer."""
    found = {n.rpartition("/")[0]: v.shape for n, v in variables.items() if n.endswith(("/weight", "/encodings"))}
    matrices = {path: shape for path, shape in found.items() if len(shape) >= 2}
    return {path: s[0] for path, s in matrices.items()}, {path: s[-1] for path, s in matrices.items()}
