"""CTranslate2 model files, and the names that transformers gives to Whisper's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError

from . import Arrays
from .cursor import Cursor

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# CTranslate2 name in a layer, transformers module, its projections (fused ones are stacked row-wise).
WHISPER_LINEARS = (
    ("self_attention/linear_0", "self_attn.", ("q_proj", "k_proj", "v_proj")),
    ("self_attention/linear_1", "self_attn.", ("out_proj",)),
    ("attention/linear_0", "encoder_attn.", ("q_proj",)),
    ("attention/linear_1", "encoder_attn.", ("k_proj", "v_proj")),
    ("attention/linear_2", "encoder_attn.", ("out_proj",)),
    ("ffn/linear_0", "", ("fc1",)),
    ("ffn/linear_1", "", ("fc2",)),
)
WHISPER_NORMS = (
    ("self_attention/layer_norm", "self_attn_layer_norm"),
    ("attention/layer_norm", "encoder_attn_layer_norm"),
    ("ffn/layer_norm", "final_layer_norm"),
)


@dataclass(frozen=True)
class Ct2File:
    """tensors by CTranslate2's own names; binary_version, spec and revision as in the file's header."""

    tensors: Arrays
    binary_version: int
    spec: str
    revision: int


def read_ctranslate2(blob: bytes) -> Ct2File:
    """Header, then per tensor: name, rank, dimensions, dtype code, byte count, bytes. The alias table is not needed."""
    cursor = Cursor(blob, "CTranslate2 file")
    version = cursor.number("I")
    if not 2 <= version <= 6:
        raise ModelError(f"The CTranslate2 file has binary version {version}; versions 2 to 6 are read.")
    spec = cursor.text(cursor.number("H"))
    revision = cursor.number("I")
    tensors = dict(_tensor(cursor) for _ in range(cursor.number("I")))
    return Ct2File(tensors, version, spec, revision)


def _tensor(cursor: Cursor) -> tuple[str, NDArray[Any]]:
    name = cursor.text(cursor.number("H"))
    shape = [cursor.number("I") for _ in range(cursor.number("B"))]
    code = cursor.number("B")
    if code not in DTYPES:
        raise ModelError(f"Tensor {name} of the CTranslate2 file has the unknown type code {code}.")
    values = np.frombuffer(cursor.take(cursor.number("I")), DTYPES[code])
    if values.size != int(np.prod(shape)):
        raise ModelError(f"Tensor {name} of the CTranslate2 file holds {values.size} values for shape {shape}.")
    return name, values.reshape(shape)


def whisper_tensors(stored: Arrays) -> Arrays:
    """CTranslate2's Whisper under transformers' names, fused projections split."""
    out: Arrays = {"model.decoder.embed_tokens.weight": stored["decoder/embeddings/weight"]}
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            out[f"model.encoder.{conv}.{part}"] = stored[f"encoder/{conv}/{part}"]
    for side in ("encoder", "decoder"):
        out[f"model.{side}.embed_positions.weight"] = stored[f"{side}/position_encodings/encodings"]
        out |= _norm(stored, f"{side}/layer_norm", f"model.{side}.layer_norm")
        layer = 0
        while f"{side}/layer_{layer}/self_attention/linear_0/weight" in stored:
            out |= _whisper_layer(stored, f"{side}/layer_{layer}/", f"model.{side}.layers.{layer}.")
            layer += 1
    return out


def _whisper_layer(stored: Arrays, source: str, target: str) -> Arrays:
    out: Arrays = {}
    for name, module, projections in WHISPER_LINEARS:
        if f"{source}{name}/weight" not in stored:
            continue  # encoder layers have no cross-attention
        weights = np.split(stored[f"{source}{name}/weight"], len(projections))
        biases = np.split(stored[f"{source}{name}/bias"], len(projections))
        for projection, weight, bias in zip(projections, weights, biases, strict=True):
            out[f"{target}{module}{projection}.weight"] = weight
            # Whisper's key projection has no bias; the fused layout pads it with zeros.
            if projection != "k_proj" or np.any(bias):
                out[f"{target}{module}{projection}.bias"] = bias
    for name, module in WHISPER_NORMS:
        if f"{source}{name}/gamma" in stored:
            out |= _norm(stored, f"{source}{name}", f"{target}{module}")
    return out


def _norm(stored: Arrays, source: str, target: str) -> Arrays:
    return {f"{target}.weight": stored[f"{source}/gamma"], f"{target}.bias": stored[f"{source}/beta"]}


def whisper_config(tensors: Arrays) -> dict[str, Any]:
    """config.json from the shapes alone; every published Whisper has heads of 64."""
    vocab_size, width = tensors["model.decoder.embed_tokens.weight"].shape
    layers = {
        side: sum(f"model.{side}.layers.{i}.fc1.weight" in tensors for i in range(len(tensors)))
        for side in ("encoder", "decoder")
    }
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        "vocab_size": vocab_size,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_attention_heads": width // 64,
        "decoder_attention_heads": width // 64,
        "encoder_ffn_dim": tensors["model.encoder.layers.0.fc1.weight"].shape[0],
        "decoder_ffn_dim": tensors["model.decoder.layers.0.fc1.weight"].shape[0],
        "max_source_positions": tensors["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": tensors["model.decoder.embed_positions.weight"].shape[0],
        "activation_function": "gelu",
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }
