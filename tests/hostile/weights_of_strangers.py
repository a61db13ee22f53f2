"""Weight files that are short and make a reader read, count or allocate without end, or that hold programs."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
from fuzz import mutate
from torch_writer import Call, Global, archive, checkpoint, legacy, op, tensor

from hostile.place import CONFIG, WIDTH, Place, llama, of_header, safetensors

ONE_LAYER = "model.layers.{}.input_layernorm.weight"


def headers(place: Place) -> None:
    """safetensors: very many tensors or layers, headers that lie, names and sizes of no tensor."""
    rng = place.rng
    place.model()
    many = rng.choice([1000, 20_000, 100_000, 300_000, 1_000_000])
    names = rng.choice(
        [
            "t{}",
            ONE_LAYER,
            "model.layers.{}.mlp.gate_proj.weight",
            "a.{}.b.c",
            "model.layers.0.mlp.experts.{}.up_proj.weight",
        ]
    )
    choice = rng.randrange(12)
    if choice < 3:
        shape, size = rng.choice([((0,), 0), ((1,), 4), ((2, 2), 16), ((0, 2**40), 0), ((), 4)])
        with (place.folder / "model.safetensors").open("wb") as file:
            entries = (
                f'{"," if i else ""}"{names.format(i)}":{{"dtype":"F32","shape":{list(shape)},"data_offsets":'
                f"[{i * size},{(i + 1) * size}]}}"
                for i in range(many)
            )
            header = ("{" + "".join(entries) + "}").encode()
            if rng.random() < 0.3:  # the same key, spelled so that no search for its letters finds it
                header = header.replace(b'"data_offsets"', b'"data\\u005foffsets"')
            file.write(of_header(header))
            file.truncate(8 + len(header) + many * size)
        place.write("config.json", {**CONFIG, "num_hidden_layers": many})
        return
    whole = safetensors(llama())
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    first = header["model.norm.weight"]
    if choice == 3:
        first["shape"] = rng.choice([[2**62, 2**62], [-1], [1.5], [True], [1] * 1000, [10**400], [WIDTH, 0], "x"])
    elif choice == 4:
        first["data_offsets"] = rng.choice([[0, 2**63], [-8, 8], [8, 0], [0], [0, 10**300], None])
    elif choice == 5:
        first["dtype"] = rng.choice(["F32" * 1000, "\u202e", "I128", None, "", "F4", "\x1b[31m"])
    elif choice == 6:
        header["__metadata__"] = rng.choice(
            [{"a": "b" * 10**6}, {f"k{i}": "v" for i in range(10**5)}, {"\x1b": "\u202e"}, 7]
        )
    elif choice == 7:
        place.write("model.safetensors", of_header(b'{"a":' * 200_000, data))
        return
    elif choice == 8:
        place.write(
            "model.safetensors",
            rng.choice([2**63, 2**40, 10**8, 10**8 + 1, len(whole) - 8]).to_bytes(8, "little") + whole[8:],
        )
        return
    elif choice == 9:
        header[rng.choice(["\u202eevil", "\x1b]0;x\x07", "x" * 100_000, "a\nb", "\u2066\u2069", "", "..", "\x00"])] = (
            header.pop("model.norm.weight")
        )
    elif choice == 10:
        place.write("model.safetensors", of_header(b" " * 90_000_000 + b"{}"))
        return
    else:
        place.write("model.safetensors", mutate.mutated([whole], place.number))
        return
    place.write("model.safetensors", of_header(json.dumps(header).encode(), data))


def many_layers(place: Place) -> None:
    """Models of very many small layers, experts or stacks, whose every tensor has a role."""
    rng = place.rng
    many = rng.choice([100, 2000, 10_000])
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8, 4)}
    for layer in range(many):
        for name, shape in rng.choice([_BLOCK, _EXPERT]).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    if rng.random() < 0.2:
        shapes |= {f"s{i}.layers.0.mlp.up_proj.weight": (8, 4) for i in range(many)}
    place.model(tensors=shapes, config={**CONFIG, "hidden_size": 4, "num_hidden_layers": many, "intermediate_size": 8})


_BLOCK = {
    **{f"self_attn.{name}_proj.weight": (4, 4) for name in "qkvo"},
    "mlp.gate_proj.weight": (8, 4),
    "mlp.up_proj.weight": (8, 4),
    "mlp.down_proj.weight": (4, 8),
    "input_layernorm.weight": (4,),
    "post_attention_layernorm.weight": (4,),
}
_EXPERT = {f"block_sparse_moe.experts.0.w{i}.weight": (8, 4) if i != 2 else (4, 8) for i in (1, 2, 3)}


def torch_views(place: Place) -> None:
    """torch: very many tensors that show one small storage, by strides of zero or as views."""
    rng = place.rng
    place.model()
    (place.folder / "model.safetensors").unlink()
    many, count = rng.choice([10, 2000, 20_000]), rng.choice([1, 1024, 1 << 20])
    wide = rng.choice([1000, 100_000, 10_000_000])
    shape, stride = rng.choice(
        [
            ((count,), (1,)),
            ((wide,), (0,)),
            ((wide // 8, 8), (0, 0)),
            ((2, count), (0, 1)),
            ((count, 1), (1, 7)),
            ((count // 2, 2), (1, 1)),
        ]
    )
    names = rng.choice(["t{}", "model.layers.{}.mlp.up_proj.weight", ONE_LAYER])
    views = {names.format(i): tensor("0", shape, stride, 0, count) for i in range(many)}
    data = np.zeros(count, "<f4")
    made = legacy(op(views), {"0": data}) if rng.random() < 0.2 else archive(op(views), {"0": data.tobytes()})
    place.write("pytorch_model.bin", made)


def programs(place: Place) -> None:
    """Pickles and other files that would run something if they were loaded."""
    rng = place.rng
    place.model()
    shell = Call(
        Global(rng.choice(["os", "posix", "subprocess"]), rng.choice(["system", "popen", "getoutput"])),
        (place.executes,),
    )
    code = f"open({str(place.outside / 'executed')!r}, 'w')"
    evil = rng.choice(
        [
            shell,
            Call(Global("builtins", rng.choice(["exec", "eval"])), (code,)),
            Call(Global("runpy", "run_path"), (str(place.folder / "modeling_x.py"),)),
        ]
    )
    values = {"model.norm.weight": np.ones(WIDTH, np.float32), "w": np.ones((4, 4), np.float32)}
    choice = rng.randrange(7)
    if choice < 4:
        program = rng.choice([op({"a": evil}), op(evil), op({**{}, "state_dict": {}, "hook": evil})])
        name = rng.choice(
            ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "training_args.bin", "optimizer.pt"]
        )
        made = rng.choice(
            [
                lambda: archive(program, {}),
                lambda: legacy(program),
                lambda: b"\x80\x02" + program + b".",
                lambda: checkpoint(values),
            ]
        )()
        place.write(name, made)
        if rng.random() < 0.7:
            (place.folder / "model.safetensors").unlink()
    elif choice == 4:
        bomb = rng.choice(
            [
                b"\x80\x02" + b"(" * 5_000_000 + b".",
                b"\x80\x02" + b"]" + b"2a" * 1_000_000 + b".",
                b"\x80\x02X\xff\xff\xff\x7f",
                b"\x80\x02]q\0" + b"h\0a" * 1_000_000 + b".",
                b"\x80\x04" + b"\x95" + b"\xff" * 8,
            ]
        )
        place.write("pytorch_model.bin", _zip({"archive/data.pkl": bomb}) if rng.random() < 0.5 else bomb)
        (place.folder / "model.safetensors").unlink()
    elif choice == 5:
        name = rng.choice(["model.pkl", "model.joblib", "model.npy", "model.npz", "model.keras", "model.h5"])
        place.write(name, pickle.dumps(["plain"]) + b"cos\nsystem\n(V" + place.executes.encode() + b"\ntR.")
    else:
        place.write(
            "model.npy",
            b"\x93NUMPY\x01\x00"
            + b"v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(120)
            + op(evil)
            + b".",
        )
    python = f"import pathlib\npathlib.Path({str(place.outside / 'executed')!r}).touch()\n"
    for name in rng.sample(
        [
            "modeling_x.py",
            "tokenization_x.py",
            "__init__.py",
            "tokenizers.py",
            "numpy.py",
            "sitecustomize.py",
            "conftest.py",
            "setup.py",
        ],
        3,
    ):
        place.write(name, python)
    auto = {"AutoConfig": "modeling_x.X", "AutoModel": "modeling_x.X", "AutoTokenizer": ["tokenization_x.X", None]}
    place.write(
        "config.json",
        {**CONFIG, "auto_map": auto, "custom_pipelines": {"x": {"impl": "modeling_x.X"}}, "trust_remote_code": True},
    )
    place.write(
        "tokenizer_config.json",
        {"auto_map": auto, "tokenizer_class": "X", "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
    )


def _zip(entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", packing) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return file.getvalue()


def archives(place: Place) -> None:
    """Zip files that lie about sizes, unpack without end, or hold very many entries."""
    rng = place.rng
    place.model()
    (place.folder / "model.safetensors").unlink()
    choice = rng.randrange(5)
    if choice == 0:
        made = _zip({"archive/data.pkl": b"\0" * rng.choice([1 << 20, 1 << 26])}, zipfile.ZIP_DEFLATED)
    elif choice == 1:
        made = _zip(
            {f"archive/data/{i}": b"" for i in range(rng.choice([100, 50_000]))} | {"archive/data.pkl": b"\x80\x02}."}
        )
    elif choice == 2:
        made = _zip({"../../outside/x": b"x", "archive/data.pkl": b"\x80\x02}.", "/etc/passwd": b"x"})
    elif choice == 3:
        made = mutate.mutated([checkpoint({"w": np.ones((8, 8), np.float32)})], place.number)
    else:
        good = bytearray(checkpoint({"w": np.ones((8, 8), np.float32)}))
        for _ in range(3):
            at = good.rindex(b"PK\x05\x06") + rng.randrange(4, 20)
            good[at] = rng.randrange(256)
        made = bytes(good)
    place.write(rng.choice(["pytorch_model.bin", "model.pt"]), made)


# --- ONNX, by hand: protocol buffers ---


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _initializer(
    name: str, dims: tuple[int, ...], *, raw: bytes | None = None, location: str = "", offset: int = 0, length: int = 0
) -> bytes:
    made = b"".join(_field(1, d) for d in dims) + _field(2, 1) + _field(8, name)
    if raw is not None:
        return made + _field(9, raw)
    pairs = {"location": location, "offset": str(offset), "length": str(length)}
    return made + b"".join(_field(13, _field(1, k) + _field(2, v)) for k, v in pairs.items()) + _field(14, 1)


def onnx(place: Place) -> None:
    """ONNX: very many tensors on one file beside it, files outside, graphs in graphs, sizes of no tensor."""
    rng = place.rng
    place.model()
    (place.folder / "model.safetensors").unlink()
    choice, many = rng.randrange(7), rng.choice([3, 3000, 30_000])
    name = rng.choice(["model.onnx", "onnx/model.onnx"])
    beside = (place.folder / name).parent
    beside.mkdir(exist_ok=True)
    if choice < 3:
        size = rng.choice([4096, 1 << 20, 1 << 25])
        with (beside / "model.onnx_data").open("wb") as file:
            file.truncate(size)
        parts = [
            _initializer(
                f"encoder.layer.{i}.output.dense.weight", (size // 4096, 1024), location="model.onnx_data", length=size
            )
            for i in range(many)
        ]
    elif choice == 3:
        where = rng.choice(
            [
                "../outside/data.bin",
                "../../outside/data.bin",
                str(place.outside / "data.bin"),
                "/dev/zero",
                "/etc/passwd",
                "",
                ".",
                "a/../../outside/data.bin",
                "\0",
                "link",
                "\u202ex",
            ]
        )
        if where == "link":
            (beside / "link").symlink_to(place.outside / "data.bin")
        parts = [
            _initializer(
                "w.weight", (32, 32), location=where, length=rng.choice([4096, 0, 2**62]), offset=rng.choice([0, 2**62])
            )
        ]
    elif choice == 4:
        parts = [
            _initializer("w.weight", dims, raw=b"\0" * 64)
            for dims in ((2**40, 2**40), (16,), (0, 2**60), (2**63 - 1,))[: rng.randrange(1, 5)]
        ]
    elif choice == 5:
        node = b""
        for _ in range(rng.choice([10, 1000, 20_000])):
            node = _field(1, _field(4, "If") + _field(5, _field(1, "then_branch") + _field(6, node)))
            if len(node) > 4_000_000:
                break
        place.write(name, _field(1, 8) + _field(7, node))
        return
    else:
        nodes = b"".join(
            _field(
                1,
                _field(1, f"x{i}") + _field(2, f"x{i + 1}") + _field(4, rng.choice(["Identity", "Cast", "Transpose"])),
            )
            for i in range(many)
        )
        place.write(name, _field(1, 8) + _field(7, nodes + _field(5, _initializer("x0", (4, 4), raw=b"\0" * 64))))
        return
    place.write(name, _field(1, 8) + _field(7, b"".join(_field(5, part) for part in parts)))


# --- GGUF, by hand ---


def _text(value: str | bytes) -> bytes:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def gguf(place: Place) -> None:
    """GGUF: very many tensors, keys or words, arrays in arrays, counts and lengths that lie."""
    rng = place.rng
    place.model()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (place.folder / name).unlink()
    arch = rng.choice(["llama", "bert", "\u202e", "gpt2", "x" * 1000])
    pairs = [
        _pair("general.architecture", 8, _text(arch)),
        _pair("llama.block_count", 4, struct.pack("<I", rng.choice([2, 2**32 - 1]))),
    ]
    tensors: list[bytes] = []
    choice, many = rng.randrange(8), rng.choice([100, 60_000, 70_000])
    data = 4096
    if choice == 0:
        tensors = [_text(f"blk.{i}.attn_norm.weight") + struct.pack("<IQIQ", 1, 8, 0, i * 32) for i in range(many)]
        data = many * 32
    elif choice == 1:
        pairs += [_pair(f"key.{i}", 4, b"\1\0\0\0") for i in range(many)]
    elif choice == 2:
        words = rng.choice([1000, 200_000, 1_100_000])
        listed = b"".join(_text(b"w%d" % i) for i in range(words))
        pairs += [
            _pair("tokenizer.ggml.model", 8, _text(rng.choice(["gpt2", "llama", "t5", "bert"]))),
            _pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, words) + listed),
        ]
        pairs += [
            _pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, words) + bytes(4 * words)),
            _pair("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, words) + b"\1\0\0\0" * words),
        ]
    elif choice == 3:
        pairs += [_pair("nest", 9, struct.pack("<IQ", 9, 1) * rng.choice([10, 100_000]))]
    elif choice == 4:
        pairs += [_pair("long", 9, struct.pack("<IQ", rng.choice([0, 4, 8, 12]), rng.choice([2**63, 2**40, 2**31])))]
    elif choice == 5:
        tensors = [
            _text(rng.choice(["token_embd.weight", "\x1b[2J", "x" * 70_000, "", "\ud800"]))
            + struct.pack(
                "<IQQIQ", 2, rng.choice([8, 2**40, 0]), rng.choice([8, 2**40]), rng.choice([0, 1, 2, 39, 999]), 0
            )
        ]
    elif choice == 6:
        made = (
            b"GGUF"
            + struct.pack(
                "<IQQ", rng.choice([1, 2, 3, 2**31]), rng.choice([2**63, 2**31, 0]), rng.choice([2**63, 2**31, 0])
            )
            + rng.randbytes(500)
        )
        place.write("model.gguf", made)
        return
    else:
        charsmap = rng.choice([b"\xff" * 1000, struct.pack("<I", 16) + bytes(16) + b"e" * 1_000_000 + b"\0", b""])
        pairs += [
            _pair("tokenizer.ggml.model", 8, _text("t5")),
            _pair("tokenizer.ggml.precompiled_charsmap", 9, struct.pack("<IQ", 0, len(charsmap)) + charsmap),
            _pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + _text("a") + _text("b")),
        ]
    if not tensors:
        tensors = [_text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 8, 0, 0)]
    made = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    made += bytes(-len(made) % 32) + bytes(data)
    place.write("model.gguf", made)
    place.asked = place.folder / "model.gguf" if rng.random() < 0.5 else None


def others(place: Place) -> None:
    """Formats that are told by their first bytes, cut or mutated; adapters, parts, and fingerprint files."""
    rng = place.rng
    place.model()
    choice = rng.randrange(6)
    whole = (place.folder / "model.safetensors").read_bytes()
    if choice == 0:
        (place.folder / "model.safetensors").unlink()
        place.write(
            "model.bin",
            struct.pack("<IH", 6, 12)
            + b"Transformer\0"
            + struct.pack("<II", 1, rng.choice([1, 2**32 - 1]))
            + rng.randbytes(300),
        )
    elif choice == 1:
        signatures: list[Any] = [
            b"\x89HDF\r\n\x1a\n",
            b"ustar",
            b"\x1f\x8b\x08",
            b"(\xb5/\xfd",
            b"7z\xbc\xaf'\x1c",
            b"\x80\x02",
            b"PK\x03\x04",
            b"GGUF",
            b"TFL3",
            b"<html",
            b"version https://git-lfs.github.com/spec/v1\n",
        ]
        place.write("model.safetensors", rng.choice(signatures) + rng.randbytes(rng.choice([0, 10, 10_000])))
    elif choice == 2:
        place.write(
            "adapter_model.safetensors",
            safetensors(
                {
                    f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{side}.weight": (4, 4)
                    for i in range(100)
                    for side in "AB"
                }
            ),
        )
        place.write(
            "adapter_config.json",
            rng.choice(
                [
                    {"peft_type": "\u202e" * 500, "base_model_name_or_path": "../../outside/model.safetensors"},
                    [],
                    {"base_model_name_or_path": "/etc/passwd\x1b[2J"},
                    '{"r":' * 20_000,
                ]
            ),
        )
        if rng.random() < 0.5:
            (place.folder / "model.safetensors").unlink()
    elif choice == 3:
        place.write(
            "params.json", rng.choice([{"dim": 2**62, "n_layers": -1, "n_heads": 0}, "[" * 50_000, {"dim": "x"}])
        )
        for part in range(rng.choice([1, 2, 4])):
            place.write(
                f"consolidated.0{part}.pth",
                checkpoint(
                    {"tok_embeddings.weight": np.ones((4, 4), np.float32), "norm.weight": np.ones(4, np.float32)}
                ),
            )
        (place.folder / "model.safetensors").unlink()
    elif choice == 4:
        place.asked = place.write(
            "print.parquet",
            rng.choice(
                [b"PAR1" + rng.randbytes(400) + b"PAR1", b"PAR1PAR1", b"", b"PAR1" + b"\xff\xff\xff\x7fPAR1", whole]
            ),
        )
    else:
        for i in range(rng.choice([50, 3000])):
            place.write(f"part-{i}.safetensors", whole[: rng.choice([0, 8, 100, len(whole)])] if i < 50 else b"")
