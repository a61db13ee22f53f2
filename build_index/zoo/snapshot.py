"""A small model in memory: what every part of the zoo makes, changes and hands on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

STORED_DTYPES = {"F32": np.float32, "F16": np.float16}  # how `write` may store a tensor


@dataclass(frozen=True)
class Snapshot:
    """A model as a published repository holds it.

    name: its id in the zoo. tensors: float32 by Hugging Face name, in their Hugging Face layout. config: config.json.
    tokenizer: the text of tokenizer.json, "" for none. dtype: "F32" or "F16", how `write` stores the tensors.
    """

    name: str
    tensors: Mapping[str, F32]
    config: Mapping[str, Any]
    tokenizer: str
    dtype: str = "F32"

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(tensor.size for tensor in self.tensors.values())

    def write(self, folder: Path) -> Path:
        """Write config.json, tokenizer.json, tokenizer_config.json and model.safetensors; the folder is made."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        stored = STORED_DTYPES[self.dtype]
        tensors = {name: np.ascontiguousarray(tensor, dtype=stored) for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if self.tokenizer:
            (folder / "tokenizer.json").write_text(self.tokenizer, encoding="utf-8")
            kind = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
            (folder / "tokenizer_config.json").write_text(kind + "\n", encoding="utf-8")
        return folder

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read what `write` wrote; the name is the folder's."""
        from safetensors.numpy import load_file

        stored = load_file(folder / "model.safetensors")
        dtype = "F16" if any(tensor.dtype == np.float16 for tensor in stored.values()) else "F32"
        tokenizer = folder / "tokenizer.json"
        return cls(
            name=folder.name,
            tensors={name: tensor.astype(np.float32) for name, tensor in stored.items()},
            config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
            tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else "",
            dtype=dtype,
        )
