"""How fast quantized weights become float32: `python tests/benchmarks/quantized.py`.

Prints GB of float32 a second of processor time on one core (best of several runs) for a matrix of 4096 x 4096 in a file
that `open_model` opened, read as a fingerprint reads it (`flat`, 2^18 elements at a time), and the share of the stored
bytes that 128 rows touch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from dtypes import best
from packers import Stored, save

from provindex.common.tensor import Tensor
from provindex.models.source import Model, open_model

OUT, IN, ROWS = 4096, 4096, 128
CHUNK = 1 << 18
RNG = np.random.default_rng(0)
STATE = {"shape": [OUT, IN], "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.01}
Shape = tuple[int, ...]

# Tensors of each layout by the end of their names: (dtype, shape).
LAYOUTS: Mapping[str, Mapping[str, tuple[str, Shape]]] = {
    "GPTQ 4 bits": {
        "qweight": ("I32", (IN // 8, OUT)), "qzeros": ("I32", (IN // 128, OUT // 8)),
        "scales": ("F16", (IN // 128, OUT)), "g_idx": ("I32", (IN,)),
    },
    "GPTQ 3 bits": {
        "qweight": ("I32", (IN * 3 // 32, OUT)), "qzeros": ("I32", (IN // 128, OUT * 3 // 32)),
        "scales": ("F16", (IN // 128, OUT)),
    },
    "GPTQ 8 bits": {
        "qweight": ("I32", (IN // 4, OUT)), "qzeros": ("I32", (IN // 128, OUT // 4)),
        "scales": ("F16", (IN // 128, OUT)),
    },
    "AWQ": {
        "qweight": ("I32", (IN, OUT // 8)), "qzeros": ("I32", (IN // 128, OUT // 8)),
        "scales": ("F16", (IN // 128, OUT)),
    },
    "bitsandbytes NF4, nested": {
        "weight": ("U8", (OUT * IN // 2, 1)), "weight.absmax": ("U8", (OUT * IN // 64,)),
        "weight.quant_map": ("F32", (16,)), "weight.nested_absmax": ("F32", (OUT * IN // 64 // 256,)),
        "weight.nested_quant_map": ("F32", (256,)),
    },
    "bitsandbytes int8": {"weight": ("I8", (OUT, IN)), "SCB": ("F32", (OUT,))},
    "FP8, a scale for each row": {"weight": ("F8_E4M3", (OUT, IN)), "weight_scale": ("F32", (OUT, 1))},
    "FP8, blocks of 128 x 128": {"weight": ("F8_E4M3", (OUT, IN)), "weight_scale_inv": ("F32", (32, 32))},
    "MXFP8": {"weight": ("F8_E4M3", (OUT, IN)), "weight_scale": ("U8", (OUT, IN // 32))},
    "int-quantized, rows": {"weight": ("I8", (OUT, IN)), "weight_scale": ("BF16", (OUT, 1))},
    "pack-quantized 4 bits": {
        "weight_packed": ("I32", (OUT, IN // 8)), "weight_scale": ("BF16", (OUT, IN // 128)),
        "weight_shape": ("I64", (2,)),
    },
    "NVFP4": {
        "weight": ("U8", (OUT, IN // 2)), "weight_scale": ("F8_E4M3", (OUT, IN // 16)), "weight_scale_2": ("F32", ()),
    },
    "MXFP4, gpt-oss": {"_blocks": ("U8", (2, OUT, IN // 32, 16)), "_scales": ("U8", (2, OUT, IN // 32))},
}  # fmt: skip


def stored(name: str, dtype: str, shape: Shape) -> Stored:
    """Codes at random, scales of ordinary size."""
    size = int(np.prod(shape))
    if name.endswith("weight_shape"):
        data = np.array([OUT, IN])
    elif name.endswith("g_idx"):
        data = np.arange(IN, dtype=np.int32) // 128
    elif dtype == "F32":
        data = RNG.uniform(0.001, 0.01, size).astype(np.float32)
    elif dtype in ("F16", "BF16"):
        data = RNG.uniform(0.001, 0.01, size).astype(np.float16)
    elif dtype in ("I32", "I64"):
        data = RNG.integers(0, 1 << 31, size, dtype=np.int32)
    else:
        data = RNG.integers(100, 120, size, dtype=np.uint8) if "scale" in name else RNG.integers(0, 120, size, np.uint8)
    return dtype, shape, data.tobytes()


def opened(layout: Mapping[str, tuple[str, Shape]], folder: Path) -> Model:
    """A model of one weight in this layout, in a file."""
    at = "mlp.up_proj"
    names = {f"{at}{end}" if end[0] == "_" else f"{at}.{end}": kept for end, kept in layout.items()}
    tensors = {name: stored(name, *kept) for name, kept in names.items()}
    if "weight.absmax" in layout:
        text = json.dumps(STATE).encode()
        tensors[f"{at}.weight.quant_state.bitsandbytes__nf4"] = ("U8", (len(text),), text)
    save(folder / "model.safetensors", tensors)
    return open_model(folder)


def read(tensor: Tensor) -> None:
    for start in range(0, tensor.size, CHUNK):
        tensor.flat(start, start + CHUNK)


def main() -> None:
    print(f"{'layout':26} {'GB/s':>6} {'128 rows touch':>15}")
    for name, layout in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = opened(layout, Path(folder))
            (tensor,), (file,) = model.tensors.values(), model.reads
            seconds = best(lambda tensor=tensor: read(tensor), 5)
            file.restart()
            tensor.flat(0, ROWS * tensor.shape[-1])
            print(f"{name:26} {4 * tensor.size / seconds / 1e9:6.2f} {file.seen.total / tensor.nbytes:15.1%}")


if __name__ == "__main__":
    main()
