"""Where an input lies: a model's folder that the input spoils, and a folder beside it that nobody may read."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, ROWS = 32, 48
SECRET = "CANARY-7f3a91"  # what the files outside hold; no output may have it
EXECUTED = "executed"  # the file outside that code of a model would make
Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Place:
    """folder: the model's. outside: beside it, with secrets. rng: of the number of the input.

    asked: what the command is asked about; None: the folder. environment: variables of the run. file_limit: its
    RLIMIT_FSIZE, 0 for none. output: whether a fingerprint is written. meanwhile: called while the command runs.
    """

    folder: Path
    outside: Path
    rng: random.Random
    number: int
    asked: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    file_limit: int = 0
    output: bool = False
    meanwhile: Callable[[], None] | None = None

    def write(self, name: str, content: bytes | str | Any) -> Path:
        """A file in the folder: bytes, text, or a value as JSON."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        return path

    def model(self, *, config: Any = None, tokenizer: Any = None, tensors: Shapes | None = None) -> None:
        """The folder as an ordinary small model, to be spoiled in one point."""
        self.write("config.json", CONFIG if config is None else config)
        self.write("tokenizer.json", TOKENIZER if tokenizer is None else tokenizer)
        self.write("model.safetensors", safetensors(llama() if tensors is None else tensors, self.number))

    def link(self, name: str, target: str | Path) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    @property
    def executes(self) -> str:
        """A shell command by which code of a model would show that it ran."""
        return f"touch {self.outside / EXECUTED}"


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "vocab_size": ROWS,
}
WORDS = ["<unk>", *"0123456789.,!?:;", "the", "of", "and", "to", "in", "is", "e", "t", "h"]
VOCABULARY = {word: number for number, word in enumerate(WORDS)}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "<unk>"},
}


def llama(layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Shapes of a small Llama by name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{prefix}mlp.{name}_proj.weight": (2 * WIDTH, WIDTH) for name in ("gate", "up")}
        found[f"{prefix}mlp.down_proj.weight"] = (WIDTH, 2 * WIDTH)
        found |= {f"{prefix}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return found


def safetensors(shapes: Shapes, seed: int = 0) -> bytes:
    """A file of float32 tensors with random values."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    values = np.random.default_rng(seed).standard_normal(at // 4, np.float32)
    return of_header(json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass"), values.tobytes())


def of_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def secrets(outside: Path) -> None:
    """What stands outside of the folder, each a file that a reader would take."""
    outside.mkdir(parents=True)
    (outside / "secret.txt").write_text(f"{SECRET}\n")
    (outside / "config.json").write_text(json.dumps({**CONFIG, "model_type": SECRET}))
    (outside / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (outside / "model.safetensors").write_bytes(safetensors({SECRET: (4, 4)}))
    (outside / "data.bin").write_bytes(np.zeros(4096, np.float32).tobytes())
    (outside / "README.md").write_text(f"---\nlicense: {SECRET}\n---\n")
    os.utime(outside / "secret.txt", (0, 0))
