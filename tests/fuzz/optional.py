"""Targets for formats whose modules may not be here yet: each becomes one when its module does."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fuzz.reading import extent, look, look_at_tensors, parts, safetensors_tensors, scratch
from fuzz.seeds import dumped, joined, safetensors_file
from provindex.report.words import text

# --- GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ---


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    if isinstance(value, float):
        return _text(key) + struct.pack("<If", 6, value)
    if isinstance(value, bool):
        return _text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, list):
        form, kind = ("f", 6) if isinstance(value[0], float) else ("i", 5)
        body = b"".join(map(_text, value)) if isinstance(value[0], str) else struct.pack(f"<{len(value)}{form}", *value)
        return _text(key) + struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else kind, len(value)) + body
    return _text(key) + struct.pack("<II", 4, value)


def _gguf(architecture: str, tensors: dict[str, tuple[tuple[int, ...], int, int]], **more: Any) -> bytes:
    """tensors: shape as GGUF has it (fastest first), number of the format, bytes."""
    facts = {"block_count": 1, "embedding_length": 32, "attention.head_count": 4, "attention.head_count_kv": 2}
    facts |= {"feed_forward_length": 64, "context_length": 128, "attention.layer_norm_rms_epsilon": 1e-5}
    values = {"general.architecture": architecture} | {f"{architecture}.{k}": v for k, v in facts.items()} | more
    head = (
        b"GGUF"
        + struct.pack("<IQQ", 3, len(tensors), len(values))
        + b"".join(itertools.starmap(_value, values.items()))
    )
    at = 0
    for name, (shape, kind, size) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        at += size + -size % 32
    return head + bytes(-len(head) % 32) + bytes(range(256)) * (at // 256) + bytes(at % 256)


def gguf_seeds() -> list[bytes]:
    layer = {"blk.0.attn_q.weight": ((32, 32), 0, 4096), "blk.0.attn_k.weight": ((32, 16), 1, 1024)}
    layer |= {"blk.0.attn_norm.weight": ((32,), 0, 128), "blk.0.ffn_down.weight": ((64, 32), 8, 64 * 34)}
    tokens = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }
    spm = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "▁a", "<0x41>"],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
    }
    spm |= {
        "tokenizer.ggml.token_type": [2, 1, 6],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    table = {"token_embd.weight": ((32, 4), 1, 256)}
    # One tensor in each of the block formats: number, bytes of a block, elements of a block.
    sizes = (
        (2, 18, 32),
        (3, 20, 32),
        (6, 22, 32),
        (7, 24, 32),
        (8, 34, 32),
        (10, 84, 256),
        (11, 110, 256),
        (12, 144, 256),
    )
    sizes += ((13, 176, 256), (14, 210, 256), (20, 18, 32), (23, 136, 256), (39, 17, 32))
    blocks = {f"t{kind}": ((2 * block, 1), kind, 2 * width) for kind, width, block in sizes}
    return [
        _gguf("llama", table | layer, **tokens),
        _gguf("gemma2", table | layer, **spm),
        _gguf("llama", blocks),
        _gguf(
            "qwen2moe", {"blk.0.ffn_gate_exps.weight": ((32, 8, 3), 0, 3072)} | table, **{"qwen2moe.expert_count": 3}
        ),
        _gguf("t5", {"enc.blk.0.attn_q.weight": ((32, 32), 1, 2048), "dec.blk.0.ffn_up.weight": ((32, 64), 1, 4096)}),
    ]


def gguf(data: bytes) -> None:
    from provindex.formats.gguf.files import read_gguf

    look(read_gguf(extent(data), "m.gguf"))


# --- CTranslate2 ---


def ctranslate2_seeds() -> list[bytes]:
    import ctranslate2_files as ct2

    small = {name: value for name, value in ct2.whisper(4).items() if "conv" not in name}
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (6, 8), "model.norm.weight": (8,), "model.layers.0.input_layernorm.weight": (8,),
        **{f"model.layers.0.self_attn.{part}_proj.weight": (8 if part in "qo" else 4, 8) for part in "qkvo"},
        "model.layers.0.post_attention_layernorm.weight": (8,),
        **{f"model.layers.0.mlp.{part}_proj.weight": (12, 8) for part in ("gate", "up")},
        "model.layers.0.mlp.down_proj.weight": (8, 12),
    }  # fmt: skip
    llama = ct2.of_llama({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, 2, 1)
    tied = {"decoder/projection/weight": "decoder/embeddings/weight"}
    first = {name.replace("decoder", "encoder"): value for name, value in ct2.in_int8(llama).items()}
    return [
        ct2.written("WhisperSpec", small, tied),
        ct2.written("TransformerDecoderSpec", llama, tied),
        ct2.written("TransformerDecoderSpec", ct2.in_int8(llama)),
        ct2.written(
            "TransformerSpec", ct2.in_int8(llama) | first, {"encoder/embeddings_0/weight": "decoder/embeddings/weight"}
        ),
    ]


def ctranslate2(data: bytes) -> None:
    from provindex.formats.ctranslate2.files import read_ctranslate2

    look(read_ctranslate2(extent(data), "model.bin"))


# --- torch ---


class _Global:
    """Something that pickles as the global of a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Reduced:
    def __init__(self, function: str, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


def _program(value: Any) -> bytes:
    """A pickle of protocol 2 as torch writes it, by hand: dictionaries, texts, numbers, tuples, globals, storages."""

    def put(v: Any) -> bytes:
        if isinstance(v, _Global):
            return b"c" + v.name.rpartition(".")[0].encode() + b"\n" + v.name.rpartition(".")[2].encode() + b"\n"
        if isinstance(v, _Reduced):
            return put(_Global(v.function)) + b"(" + b"".join(map(put, v.arguments)) + b"tR"
        if isinstance(v, tuple) and v[:1] == ("storage",):
            return b"(" + b"".join(map(put, v)) + b"tQ"
        if isinstance(v, tuple):
            return b"(" + b"".join(map(put, v)) + b"t"
        if isinstance(v, dict):
            return b"}(" + b"".join(put(k) + put(x) for k, x in v.items()) + b"u"
        if isinstance(v, str):
            return b"X" + struct.pack("<I", len(v.encode())) + v.encode()
        if v is None or isinstance(v, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[v]
        return b"J" + struct.pack("<i", v)

    return b"\x80\x02" + put(value) + b"."


def _torch_tensor(key: str, kind: str, shape: tuple[int, ...], offset: int = 0) -> _Reduced:
    size = int(np.prod(shape))
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = ("storage", _Global(f"torch.{kind}"), key, "cpu", offset + size)
    return _Reduced("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, {})


def torch_seeds() -> list[bytes]:
    state = {
        "a.weight": _torch_tensor("0", "FloatStorage", (4, 6)),
        "b": _torch_tensor("1", "BFloat16Storage", (5,), 3),
    }
    found = []
    for value in (state, {"state_dict": state, "epoch": 3}, {"x": _Reduced("os.system", "id"), "a": state["b"]}):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            files = {"data.pkl": _program(value), "byteorder": b"little", "data/0": bytes(96), "data/1": bytes(16)}
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(f"archive/{name}", (2026, 1, 1, 0, 0, 0)), data)
        found.append(out.getvalue())
    legacy = ("storage", _Global("torch.FloatStorage"), "7", "cpu", 6, None)
    tensor = _Reduced("torch._utils._rebuild_tensor_v2", legacy, 0, (2, 3), (3, 1), False, {})
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(facts, 2)
    found.append(head + _program({"w": tensor}) + pickle.dumps(["7"], 2) + struct.pack("<q", 6) + bytes(24))
    return found


def torch(data: bytes) -> None:
    from provindex.formats.torch.files import read_torch

    look(read_torch(extent(data), "m.bin"))


def consolidated_seeds() -> list[bytes]:
    """The shapes of the tensors of each part of a model, and its params.json."""
    shapes = {"norm.weight": [4], "tok_embeddings.weight": [3, 4], "layers.0.attention.wq.weight": [2, 4]}
    shapes |= {"layers.0.attention.wo.weight": [4, 2], "layers.0.feed_forward.w1.weight": [3, 4]}
    params = {"dim": 4, "n_heads": 2, "n_kv_heads": 1, "n_layers": 1, "norm_eps": 1e-5}
    halves = {**shapes, "tok_embeddings.weight": [3, 2]}
    whole = {**shapes, "layers.0.attention.wq.weight": [4, 4], "layers.0.attention.wo.weight": [4, 4]}
    mixtral = {"params": {**params, "moe": {"num_experts": 2}}, "parts": [whole]}
    return [dumped(one).encode() for one in ({"params": params, "parts": [s, s]} for s in (shapes, halves))] + [
        dumped(mixtral).encode()
    ]


def consolidated(data: bytes) -> None:
    """Parts whose shapes a document describes, beside a params.json that it holds."""
    from provindex.formats import consolidated as meta
    from provindex.formats.reader import WeightFile
    from provindex.formats.tensors import Contents, tensor_from_array

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    document = document if isinstance(document, dict) else {}
    listed, params = document.get("parts"), dumped(document.get("params")).encode("utf-8", "surrogatepass")
    found, files = [], []
    for number, shapes in enumerate(listed[:4] if isinstance(listed, list) else []):
        tensors = []
        for name, shape in shapes.items() if isinstance(shapes, dict) else ():
            if isinstance(shape, list) and len(shape) < 4 and all(type(n) is int and 0 <= n < 64 for n in shape):
                tensors.append(tensor_from_array(name, np.ones(shape, np.float32)))
        found.append(Contents(tuple(tensors)))
        files.append(WeightFile(f"consolidated.{number:02}.pth", "file", extent(b"x")))
    if found:
        made = meta.joined(found, files, lambda _: extent(params)) if len(found) > 1 else found[0]
        look(meta.completed(made, files, lambda _: extent(params)))


def pickles(data: bytes) -> None:
    """The machine alone, so that it is not only reached through archives that are whole."""
    from provindex.formats.torch.pickle_machine import PickleError, run

    try:
        run(io.BytesIO(data), len(data))
    except PickleError as error:
        assert len(str(error)) < 4096


def pickle_seeds() -> list[bytes]:
    values = ({"a": [1, 2.5, None, "x", b"y", (1,), {3}]}, [[]] * 3, 1 << 70, "ä" * 300)
    plain = [pickle.dumps(value, protocol) for value in values for protocol in (0, 1, 2, 4, 5)]
    return [
        *plain,
        _program({"x": _Reduced("os.system", "id"), "s": ("storage", _Global("torch.FloatStorage"), "0", "cpu", 4)}),
    ]


# --- ONNX: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto ---


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def onnx_seeds() -> list[bytes]:
    def initializer(name: str, kind: int, shape: tuple[int, ...], *more: bytes) -> bytes:
        return b"".join(_field(1, size) for size in shape) + _field(2, kind) + _field(8, name.encode()) + b"".join(more)

    def model(*initializers: bytes, nodes: Sequence[bytes] = ()) -> bytes:
        graph = b"".join(_field(1, node) for node in nodes) + b"".join(_field(5, one) for one in initializers)
        return _field(1, 8) + _field(2, b"pytorch") + _field(7, graph) + _field(8, _field(2, 17))

    raw = initializer("model.layers.0.mlp.up_proj.weight", 1, (4, 3), _field(9, bytes(48)))
    floats = initializer("b", 1, (2,), _field(4, struct.pack("<2f", 1, 2)))
    outside = _field(13, _field(1, b"location") + _field(2, b"weights.data")) + _field(
        13, _field(1, b"length") + _field(2, b"24")
    )
    external = initializer("c", 10, (3, 4), outside, _field(14, 1))
    matmul = (
        _field(1, b"x")
        + _field(1, b"onnx::MatMul_1")
        + _field(2, b"y")
        + _field(3, b"/layers.0/MatMul")
        + _field(4, b"MatMul")
    )
    hidden = initializer("onnx::MatMul_1", 1, (2, 2), _field(9, bytes(16)))
    branch = _field(1, matmul) + _field(5, floats)
    merged = _field(1, b"c") + _field(4, b"If") + _field(5, _field(1, b"else_branch") + _field(6, branch))
    pair = {"encoder_model.onnx": model(raw, floats), "decoder_model.onnx": model(hidden, nodes=[merged])}
    return [
        joined({"model.onnx": one})
        for one in (model(raw, floats), model(external), model(hidden, nodes=[matmul]), model())
    ] + [joined(pair)]


def onnx(data: bytes) -> None:
    from provindex.formats.onnx.files import read, read_onnx
    from provindex.formats.reader import WeightFile

    folder = scratch()
    (folder / "weights.data").write_bytes(bytes(range(48)))
    if b"encoder_model.onnx" in data[:4096]:
        names = ("encoder_model.onnx", "decoder_model.onnx")
        files = [WeightFile(name, name, extent(raw)) for name, raw in parts(data, names).items()]
        return look(read(files, beside(folder)))
    files = parts(data, ("model.onnx",))
    return look(read_onnx(extent(files["model.onnx"]), "model.onnx", beside(folder)))


def beside(folder: Any) -> Callable[[str], Any]:
    """The file of a name in a folder, as an extent; None if there is none."""

    def find(name: str) -> Any:
        path = folder / name
        return extent(path.read_bytes()) if path.parent == folder and path.is_file() else None

    return find


# --- quantized weights ---


def quantized_seeds() -> list[bytes]:
    gptq = safetensors_file(
        {
            "l.qweight": ("I32", (8, 16), 512),
            "l.qzeros": ("I32", (2, 2), 16),
            "l.scales": ("F16", (2, 16), 64),
            "l.g_idx": ("I32", (64,), 256),
        }
    )
    awq = safetensors_file(
        {"l.qweight": ("I32", (64, 2), 512), "l.qzeros": ("I32", (2, 2), 16), "l.scales": ("F16", (2, 16), 64)}
    )
    bnb = safetensors_file(
        {"l.weight": ("I8", (8, 16), 128), "l.SCB": ("F32", (8,), 32), "l.weight_format": ("U8", (), 1)}
    )
    state = dumped({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [8, 16]}).encode()
    nf4 = safetensors_file(
        {
            "l.weight": ("U8", (64, 1), 64),
            "l.weight.absmax": ("F32", (2,), 8),
            "l.weight.quant_map": ("F32", (16,), 64),
            "l.weight.quant_state.bitsandbytes__nf4": ("U8", (len(state),), len(state)),
        }
    )
    nf4 = nf4[: -len(state)] + state
    fp8 = safetensors_file({"l.weight": ("F8_E4M3", (8, 16), 128), "l.weight_scale_inv": ("F32", (1, 1), 4)})
    packed = safetensors_file(
        {
            "l.weight_packed": ("I32", (8, 4), 128),
            "l.weight_scale": ("BF16", (8, 1), 16),
            "l.weight_zero_point": ("I32", (1, 1), 4),
            "l.weight_shape": ("I64", (2,), 16),
        }
    )
    packed = packed[:-16] + struct.pack("<qq", 8, 32)
    nv = safetensors_file(
        {
            "l.weight_packed": ("U8", (8, 16), 128),
            "l.weight_scale": ("F8_E4M3", (8, 2), 16),
            "l.weight_global_scale": ("F32", (1,), 4),
        }
    )
    mx = safetensors_file(
        {
            "mlp.experts.down_proj_blocks": ("U8", (2, 4, 1, 16), 128),
            "mlp.experts.down_proj_scales": ("U8", (2, 4, 1), 8),
        }
    )
    mlx = safetensors_file(
        {"l.weight": ("U32", (8, 6), 192), "l.scales": ("F16", (8, 1), 16), "l.biases": ("F16", (8, 1), 16)}
    )
    mlx_floats = safetensors_file({"l.weight": ("U32", (8, 8), 256), "l.scales": ("U8", (8, 2), 16)})
    configs = (
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes"},
        {"quant_method": "fp8", "weight_block_size": [8, 16]},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
        },
        {"quant_method": "modelopt"},
        {"quant_method": "mxfp4"},
        {"bits": 3, "group_size": 64, "l": {"bits": 6, "group_size": 32}},
        {"mode": "mxfp4"},
    )
    files = (gptq, awq, bnb, nf4, fp8, packed, nv, mx, mlx, mlx_floats)
    return [
        joined({"config.json": {"quantization_config": config}, "model.safetensors": file})
        for config, file in zip(configs, files, strict=True)
    ]


def quantized(data: bytes) -> None:
    from provindex.formats.quantized.assembly import assemble

    files = parts(data, ("config.json", "model.safetensors"))
    tensors = {tensor.name: tensor for tensor in safetensors_tensors(files["model.safetensors"])}
    try:
        config = json.loads(files["config.json"])
    except (ValueError, RecursionError):
        config = {}
    made, notes = assemble(tensors, config if isinstance(config, dict) else {})
    look_at_tensors(made.values())
    assert all(len(text(note)) < 4096 for note in notes)


# --- adapters ---


def adapter_seeds() -> list[bytes]:
    said = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8, "target_modules": ["q_proj"]}
    return [dumped(said).encode(), dumped(said | {"peft_type": None}).encode()]


def adapter(data: bytes) -> None:
    from provindex.formats import local_files
    from provindex.models.adapters import read_claim

    folder = scratch()
    (folder / "adapter_config.json").write_bytes(data)
    claim = read_claim(local_files.look_at(folder))
    assert claim is None or text(claim.reason).isprintable()
