"""Quantized checkpoints: each group of stored tensors becomes the one weight that it stands for.

Which format a group has is told by the names, dtypes and shapes of its tensors; the config only chooses where those
leave a choice, and explains what is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from provindex.common.bounded_json import shown
from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.formats.quantized import layouts as layouts
from provindex.formats.quantized.layouts import FP8, INSTEAD, Group
from provindex.roles.architectures import BUFFERS, COMPANIONS

_IN_MODULE = ("qweight", "qzeros", "scales", "biases", "g_idx", "SCB", "weight_format")
# End of a stored name -> (what stands there in the weight's name, what the tensor is).
_ENDS: Mapping[str, tuple[str, str]] = {
    **{f".{kind}": (".weight", kind) for kind in _IN_MODULE},
    **{f".{kind}": ("", kind) for kind in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")},
    **{f".quant_state.bitsandbytes__{kind}": ("", kind) for kind in ("nf4", "fp4")},
    **{f"_{kind}": ("", kind) for kind in ("scale_inv", "scale_2", "global_scale", "scale", "zero_point")},
    **{f"_{kind}": ("", kind) for kind in ("packed", "shape", "g_idx", "blocks")},
    "_scales": ("", "block_scales"),
    ".scale_weight": (".weight", "scale"),  # ComfyUI
}
_SUFFIXES = tuple(_ENDS)
SMALL = 1 << 12  # elements of a tensor beside a quantized weight that is left out though the weight is not made of it
MAX_ACTIVATIONS = 1 << 16  # elements of a scale of activations


@dataclass(frozen=True, slots=True)
class Format:
    """How a group is recognised. main: the part with the codes. dtypes: those that it may have, () for any. with_:
    parts of which one must be there. rank: number of its sizes, 0 for any.
    """

    main: str
    dtypes: tuple[str, ...]
    with_: tuple[str, ...]
    build: Callable[[Group], Tensor]
    rank: int = 0

    def fits(self, parts: Mapping[str, Tensor]) -> bool:
        main = parts.get(self.main)
        return (
            main is not None
            and (not self.dtypes or main.dtype in self.dtypes)
            and (not self.rank or len(main.shape) == self.rank)
            and (not self.with_ or any(kind in parts for kind in self.with_))
        )


FORMATS = (  # the first that fits
    Format("qweight", ("I32",), ("qzeros", "scales"), layouts.gptq_or_awq),
    Format("weight", (), ("nf4", "fp4"), layouts.bnb_4bit),
    Format("weight", ("I8",), ("SCB",), layouts.bnb_int8),
    Format("packed", ("I32",), ("scale", "shape"), layouts.packed_integers),
    Format("packed", ("U8",), ("scale",), layouts.fp4),
    Format("weight", ("U8",), ("scale_2",), layouts.fp4),
    Format("weight", FP8, ("scale", "scale_inv"), layouts.scaled),
    Format("weight", ("I8",), ("scale",), layouts.scaled),
    Format("blocks", ("U8",), ("block_scales",), layouts.stacked_mxfp4, rank=4),
    Format("int8", ("I8",), ("scale",), layouts.broadcast_int8),
    Format("weight", ("U32",), ("scales",), layouts.mlx),
)

# What is measured on activations and the key-value cache: no weights. Left out of a quantized model.
ACTIVATIONS = frozenset(
    "input_scale output_scale k_scale v_scale q_scale kv_scale prob_output_scale input_global_scale input_zero_point "
    "output_zero_point k_zero_point v_zero_point input_scale_ub activation_scale scale_input scaled_fp8".split()
)
# A segment of a name, or what stands beside one -> the method that stores such tensors, which is not decoded.
UNDECODED: Mapping[str, str] = {
    "codebooks": "AQLM", "Qidxs": "QuIP#", "W_q": "HQQ", "weight_scales": "EETQ", "centroids": "VPTQ",
    "q_weight": "EXL2", "trellis": "EXL3", "_data": "Quanto", "weight_qdata": "TorchAO", "_weight_qdata": "TorchAO",
    "dense_weights": "SpQR",
    "bitmask": "a sparse layout of compressed-tensors", "biases": "MLX",
    "_scales": "EETQ", "_scale": "an unknown method", "_scale_inv": "an unknown method",
}  # fmt: skip
_SCALING = re.compile(r"scale|amax", re.IGNORECASE)
_SCALES = ("biases", "codebooks", "centroids", "_scales", "_scale", "_scale_inv")  # what such a tensor has beside it
_ANY_DTYPE = frozenset(("W_q", "weight_qdata", "_weight_qdata"))  # methods that store codes as numbers of any format
_BUFFERS = BUFFERS.keys() | {"bias", "mask", "relative_position_index"}
_INTEGERS = frozenset(("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F4", "F6_E2M3", "F6_E3M2"))
_CONV1D = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer"))


def assemble(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Reason, ...]]:
    """A model's tensors with each group of a quantized weight replaced by the weight, and what to tell the reader.

    tensors: as stored, by name. config: config.json, {} if there is none. The weight has the name and the shape (out,
    in) that it has in the model before quantization, and float32 values on read; it stands where its codes stood.
    Scales of activations are left out. What no weight is made of stays, whatever its name. ModelError if a group does
    not fit together or its layout is not decoded.
    """
    said = (config.get(key) for key in ("quantization_config", "compression_config", "quantization"))
    settings = next((found for found in said if isinstance(found, Mapping)), {})
    groups = _groups(tensors, settings)
    found = {name: fit for name, group in groups.items() if (fit := _format(group)) is not None}
    _check_clashes(groups, found)
    built = {name: fit.build(groups[name]) for name, fit in found.items()}
    at = {groups[name].parts[fit.main].name: name for name, fit in found.items()}
    used = {part.name for name in found for part in groups[name].sources}
    used |= {p.name for name in found for p in groups[name].parts.values() if p.size <= SMALL}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in at:
            out[at[name]] = built[at[name]]
        elif name not in used and not (built and _is_of_activations(name, tensor)):
            out[name] = tensor
    _refuse_undecoded(out, settings)
    _refuse_unscaled(out)
    _refuse_conv1d(built, config)
    return out, (*_remarks(built), *_left_over(out))


def _is_of_activations(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is such a scale: one number, or one for each channel."""
    return name.rpartition(".")[2] in ACTIVATIONS and len(tensor.shape) <= 1 and tensor.size <= MAX_ACTIVATIONS


def _groups(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Group]:
    """Tensors whose names end as those of a quantized weight do, by the weight's name; with what has that name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".qweight")
        if stem != name and tensor.dtype == "I8" and f"{stem}.scale" in tensors:
            parts[stem] = {"int8": tensor, "scale": tensors[f"{stem}.scale"]}
        elif name.endswith(_SUFFIXES):
            end = next(suffix for suffix in _SUFFIXES if name.endswith(suffix))
            instead, kind = _ENDS[end]
            parts.setdefault(name.removesuffix(end) + instead, {})[kind] = tensor
    for name, found in parts.items():
        if name in tensors:
            found["weight"] = tensors[name]
    return {name: Group(name, found, settings) for name, found in parts.items()}


def _format(group: Group) -> Format | None:
    return next((known for known in FORMATS if known.fits(group.parts)), None)


def _check_clashes(groups: Mapping[str, Group], found: Mapping[str, Format]) -> None:
    """A weight is stored once: quantized, or as it is."""
    twice = next((name for name, fit in found.items() if fit.main != "weight" and "weight" in groups[name].parts), None)
    if twice is not None:
        raise ModelError(f"{shown(twice)} is there twice, quantized and as it is.", "Remove one of them.")


def _refuse_undecoded(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Codes that stay codes must not be taken as weights: of a method that names or the config tell."""
    method = settings.get("quant_method")
    told = method[:40] if isinstance(method, str) else ""
    for name, tensor in tensors.items():
        if len(tensor.shape) < 2 or (tensor.dtype not in _INTEGERS and not _ANY_DTYPE & {*name.split(".")}):
            continue
        by_name = _method(name, tensor.dtype, tensors)
        by_config = told if tensor.dtype not in ("I64", "U64") and name.rpartition(".")[2] not in _BUFFERS else ""
        if by_name or by_config:
            raise ModelError(
                f"Tensor {shown(name)} is quantized ({by_name or by_config}) in a layout that is not decoded.", INSTEAD
            )


def _refuse_unscaled(tensors: Mapping[str, Tensor]) -> None:
    """Codes are no weights without what scales them: int8 never, FP8 not if something of its module looks like that."""
    codes = [name for name, tensor in tensors.items() if _are_codes(name, tensor)]
    scales: dict[str, str] = {}  # by module, and by the module around it
    for name in tensors if codes else ():
        if _SCALING.search(name) and name.rpartition(".")[2] not in ACTIVATIONS:
            inner = name.rpartition(".")[0]
            scales |= {inner: name, inner.rpartition(".")[0]: name}
    for name in codes:
        scale = next((scales[at] for at in (name, name.rpartition(".")[0]) if at in scales), None)
        if scale is not None or tensors[name].dtype not in FP8:
            what = f"{shown(scale)} is no scale that is known" if scale else "it has no scale"
            raise ModelError(f"Tensor {shown(name)} holds codes ({tensors[name].dtype}), and {what}.", INSTEAD)


def _are_codes(name: str, tensor: Tensor) -> bool:
    whole = tensor.dtype in ("I8", "U8") and name.endswith("weight")
    return len(tensor.shape) > 1 and (whole or tensor.dtype in FP8)


def _method(name: str, dtype: str, tensors: Mapping[str, Tensor]) -> str:
    """The method that stores a tensor of integers under this name, beside such others; "" if none does."""
    told = next((UNDECODED[segment] for segment in name.split(".") if segment in UNDECODED), "")
    if dtype == "I32" and name.endswith((".qweight", ".weight_packed")):
        told = "with another layout of packed words"
    return told or next((UNDECODED[s] for s in _SCALES if name + s in tensors or _beside(name, s) in tensors), "")


def _beside(name: str, other: str) -> str:
    return f"{name.rpartition('.')[0]}.{other}"


def _refuse_conv1d(built: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """GPT-2 stores (in, out), quantizers (out, in): which of them a square matrix is cannot be seen."""
    if built and config.get("model_type") in _CONV1D:
        raise ModelError(f"Quantized {config['model_type']} weights may be stored in either orientation.", INSTEAD)


def _remarks(built: Mapping[str, Tensor]) -> tuple[Reason, ...]:
    kinds = sorted({tensor.dtype for tensor in built.values()})
    return (Reason.of(Code.QUANTIZED_DECODED, n=len(built), kinds=", ".join(kinds)),) if built else ()


def _left_over(tensors: Mapping[str, Tensor]) -> tuple[Reason, ...]:
    """Tensors that are called as what stands beside a quantized weight, which nobody compares, and no weight needs."""
    named = [name for name, t in tensors.items() if name.rpartition(".")[2] in COMPANIONS and t.size > SMALL]
    return (Reason.of(Code.ENTRY_NOT_READ, entry=named[0], n=len(named)),) if named else ()
