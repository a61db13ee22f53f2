"""Fingerprints of models that are much larger than the memory they may take: sparse files, so all weights are zero."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from provindex.common.errors import ModelError
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model
from provindex.report.words import text

LIMIT = 100_000_000  # bytes that Python and numpy may hold at once
Shapes = dict[str, tuple[int, ...]]


def sparse(folder: Path, shapes: Shapes, config: dict[str, object]) -> Path:
    """A folder with a bf16 model whose file has a size but no blocks on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def peak(folder: Path, mode: str) -> tuple[Fingerprint, int]:
    """A fingerprint, and the most bytes that were allocated at once while it was made (mapped pages are no part)."""
    model = open_model(str(folder))
    tracemalloc.start()
    try:
        return fingerprint_model(model, mode=mode), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def llama(layers: int, width: int, inner: int, rows: int) -> tuple[Shapes, dict[str, object]]:
    config = {"model_type": "llama", "hidden_size": width, "num_attention_heads": 32, "num_hidden_layers": layers}
    return dict(_llama(layers, width, inner, rows)), config


def _llama(layers: int, width: int, inner: int, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (rows, width)
    for layer in range(layers):
        block = f"model.layers.{layer}"
        yield from ((f"{block}.self_attn.{name}_proj.weight", (width, width)) for name in "qkvo")
        yield from ((f"{block}.mlp.{name}_proj.weight", (inner, width)) for name in ("gate", "up"))
        yield f"{block}.mlp.down_proj.weight", (width, inner)
        yield from ((f"{block}.{name}_layernorm.weight", (width,)) for name in ("input", "post_attention"))
    yield "model.norm.weight", (width,)


def test_a_sampled_seven_billion_model(tmp_path: Path) -> None:
    made, used = peak(sparse(tmp_path, *llama(16, 4096, 14336, 250_000)), "sampled")
    assert made.facts.parameters > 4_000_000_000
    two_layers = 2 * 3 * 4096 * 14336 * 2  # the neurons of which are read, tokens or not
    assert made.bytes_read < made.bytes_total / 100 + two_layers
    assert used < LIMIT


def test_one_large_matrix_read_whole(tmp_path: Path) -> None:
    made, used = peak(sparse(tmp_path, *llama(1, 1024, 2816, 250_000)), "exact")
    assert made.bytes_read == made.bytes_total > 5 * LIMIT
    assert used < LIMIT


def test_stacks_of_experts(tmp_path: Path) -> None:
    block = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (1000, 2880),
        f"{block}.self_attn.v_proj.weight": (512, 2880),
        f"{block}.mlp.router.weight": (128, 2880),
        f"{block}.mlp.experts.gate_up_proj": (128, 2880, 5760),
        f"{block}.mlp.experts.down_proj": (128, 2880, 2880),
    }
    config = {"model_type": "gpt_oss", "hidden_size": 2880, "num_attention_heads": 64, "head_dim": 64}
    made, used = peak(sparse(tmp_path, shapes, config), "sampled")
    assert made.facts.parameters > 3_000_000_000
    assert used < 2 * LIMIT


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.layers.0.mlp.gate_proj.weight", (64, 1 << 30)), ("model.embed_tokens.weight", (1 << 32, 2))],
)
def test_shapes_that_no_model_has_are_one_clear_error(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    shapes, config = llama(1, 64, 128, 100)
    folder = sparse(tmp_path, shapes | {name: shape}, config)
    with pytest.raises(ModelError, match=f"{name} is {shape[0]}x{shape[1]}; no weight matrix is that large"):
        peak(folder, "sampled")


def test_a_norm_that_is_no_norm_is_left_out(tmp_path: Path) -> None:
    shapes, config = llama(1, 64, 128, 100)
    made, used = peak(
        sparse(tmp_path, shapes | {"model.layers.0.input_layernorm.weight": (1 << 31,)}, config), "sampled"
    )
    assert "norm tensor of more than" in text(made.absences["NLF"])
    assert used < LIMIT
