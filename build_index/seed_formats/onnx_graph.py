"""Weights out of ONNX graphs, under the names that transformers gives them.

Exporters keep the names of biases, norms and tables but not those of matrices, which they transpose and fold into
MatMul nodes. A matrix is named here by what the graph does with it: by the bias that its product is added to (BERT),
or by the module path in its node's name (T5). Needs the `onnx` package.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.errors import ModelError

from . import Arrays

T5_LINEAR = re.compile(r"block\.(\d+)/layer\.(\d+)/(\w+)/(\w+)/MatMul")


@dataclass(frozen=True)
class Graph:
    """nodes in order; constants by name; the node that makes a value; the nodes that read one."""

    nodes: Sequence[Any]
    constants: Arrays
    producer: Mapping[str, Any]
    readers: Mapping[str, Sequence[Any]]


def read_onnx(blob: bytes) -> Graph:
    """Parse a model file. Raises ModelError when it is not one."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load_from_string(blob).graph
    except DecodeError as error:
        raise ModelError(f"This is no ONNX file ({error}).") from error
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return Graph(
        nodes=graph.node,
        constants={item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer},
        producer={name: node for node in graph.node for name in node.output},
        readers=readers,
    )


def constant_value(graph: Graph, name: str) -> NDArray[Any] | None:
    """The value of `name` if it is a constant, or is made of constants by Cast, Mul and Transpose; else None.

    That is how int8 exports spell a dequantized matrix: Cast, times a scale, transposed.
    """
    if name in graph.constants:
        return graph.constants[name]
    node = graph.producer.get(name)
    if node is None or node.op_type not in ("Cast", "Mul", "Transpose"):
        return None
    values = [constant_value(graph, source) for source in node.input]
    first, second = values[0], values[-1]
    if first is None or second is None:
        return None
    if node.op_type == "Cast":
        return first.astype(np.float32)
    if node.op_type == "Mul":
        return np.asarray(first.astype(np.float32) * second)
    return first.transpose(*(list(item.ints) for item in node.attribute if item.name == "perm"))


def bert_tensors(graph: Graph, prefix: str) -> Arrays:
    """A BERT-like encoder, float32: the named constants under `prefix`, and each MatMul's matrix named by its bias."""
    out: Arrays = {
        name.removeprefix(prefix): value.astype(np.float32)
        for name, value in graph.constants.items()
        if name.startswith(prefix) and value.dtype in (np.float32, np.float16) and value.ndim <= 2
    }
    for node in graph.nodes:
        if node.op_type != "MatMul":
            continue
        matrix = constant_value(graph, node.input[1])
        bias = _added_bias(graph, node.output[0])
        if matrix is not None and matrix.ndim == 2 and bias is not None and bias.startswith(prefix):
            out[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = np.ascontiguousarray(matrix.T)
    return out


def _added_bias(graph: Graph, product: str) -> str | None:
    """The name of the constant bias that a product is added to, looking through Cast."""
    for node in graph.readers[product]:
        for name in node.input if node.op_type == "Add" else ():
            while name in graph.producer and graph.producer[name].op_type == "Cast":
                name = graph.producer[name].input[0]
            if name in graph.constants and name.endswith(".bias"):
                return str(name)
    return None


def scaled_tables(graph: Graph, prefix: str) -> Arrays:
    """Embedding tables stored as `<name>_q` (int8) with `<name>_scale`, float32."""
    return {
        name.removeprefix(prefix).removesuffix("_q"): value.astype(np.float32)
        * graph.constants[name.removesuffix("_q") + "_scale"]
        for name, value in graph.constants.items()
        if name.startswith(prefix) and name.endswith("_q")
    }


def t5_tensors(graph: Graph, side: str, prefix: str, table: str) -> Arrays:
    """One side ("encoder" or "decoder") of a T5 with dynamic int8 matrices, float32, under transformers' names.

    prefix: of the constants that kept their names. table: the token embedding's name; it comes back as "shared.weight".
    """
    out: Arrays = {"shared.weight": _dequantized(graph, table)}
    for name, value in graph.constants.items():
        if name.startswith(prefix) and name.endswith("layer_norm.weight"):
            out[f"{side}.{name.removeprefix(prefix)}"] = value.astype(np.float32)
        if name.startswith(prefix) and name.endswith("relative_attention_bias.weight_quantized"):
            base = name.removesuffix("_quantized")
            out[f"{side}.{base.removeprefix(prefix)}"] = _dequantized(graph, base)
    for node in graph.nodes:
        if node.op_type == "MatMulInteger" and node.input[1].endswith("_quantized"):
            matrix = _dequantized(graph, node.input[1].removesuffix("_quantized"))
            out[_t5_name(side, node.name)] = np.ascontiguousarray(matrix.T)
    return out


def _t5_name(side: str, node_name: str) -> str:
    match = T5_LINEAR.search(node_name)
    if match:
        block, layer, module, linear = match.groups()
        return f"{side}.block.{block}.layer.{layer}.{module}.{linear}.weight"
    if "lm_head" in node_name:
        return "lm_head.weight"
    raise ModelError(f"The ONNX file multiplies by a matrix in a place that T5 does not have: {node_name}.")


def _dequantized(graph: Graph, base: str) -> NDArray[np.float32]:
    """(quantized - zero point) * scale, one scale a tensor."""
    quantized, zero, scale = (graph.constants[base + end] for end in ("_quantized", "_zero_point", "_scale"))
    return np.asarray((quantized.astype(np.float32) - zero.astype(np.float32)) * scale)


def t5_config(tensors: Arrays) -> dict[str, Any]:
    """config.json of a T5 v1.1 from its shapes; every head has 64 dimensions."""
    vocab_size, width = tensors["shared.weight"].shape
    layers = {
        side: sum(f"{side}.block.{i}.layer.0.SelfAttention.q.weight" in tensors for i in range(len(tensors)))
        for side in ("encoder", "decoder")
    }
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": width,
        "d_kv": 64,
        "num_heads": tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // 64,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": layers["encoder"],
        "num_decoder_layers": layers["decoder"],
        "relative_attention_num_buckets": 32,
        "vocab_size": vocab_size,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": "float16",
    }
