"""Small checkpoints as torch writes them, for test_torch_files.py, which needs no torch: `python make_torch_files.py`.

Written with torch 2.13.0 into tests/data/torch. What is in each tensor is a matter of its name: see `values`.
"""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "data" / "torch"


def values(count: int, start: int = -6) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)


def tensors() -> dict[str, torch.Tensor]:
    table = values(12).reshape(4, 3)
    cube = values(24).reshape(2, 3, 4)
    return {
        "table": table,
        "tied": table,
        "rows": table[1:3],
        "turned": table.T,
        "stepped": table[:, ::2],
        "column": table[:, 1],
        "cube": cube.permute(2, 0, 1),
        "half": values(12).half(),
        "bf16": values(12).bfloat16(),
        "double": values(12).double(),
        "ids": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "parameter": torch.nn.Parameter(values(2)),
    }


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    plain = tensors()
    noted = torch.nn.Parameter(values(3))
    noted.note = "kept"  # torch then writes another function for it
    late = {
        "f8": values(12).to(torch.float8_e4m3fn),
        "u16": torch.tensor([0, 1, 65535], dtype=torch.uint16),
        "noted": noted,
    }
    torch.save({**plain, **late}, FOLDER / "zip.pt")
    torch.save(plain, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(plain, FOLDER / "protocol5.pt", pickle_protocol=5)

    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(values(6).reshape(2, 3))
        layer.bias.copy_(values(2))
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.weight.copy_(values(6).reshape(2, 3))
        layer.bias.copy_(values(2))
    state = layer.state_dict()  # an OrderedDict with _metadata
    lightning = {"epoch": 3, "state_dict": state, "optimizer_states": [optimizer.state_dict()]}
    torch.save({**lightning, "hyper_parameters": argparse.Namespace(lr=0.1)}, FOLDER / "lightning.ckpt")
    torch.save({"model": {"module": state}, "step": 7}, FOLDER / "nested.pth")
    torch.save(layer, FOLDER / "whole.pt")
    torch.save(OrderedDict(state, seed=3), FOLDER / "mixed.pt")
    torch.save({"w": torch.eye(2).to_sparse()}, FOLDER / "sparse.pt")
    torch.save({"w": torch.quantize_per_tensor(values(3), 0.1, 0, torch.qint8)}, FOLDER / "quantized.pt")
    torch.jit.save(torch.jit.trace(layer, torch.ones(1, 3)), FOLDER / "script.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write()
