"""OpenAI's own Whisper file ({"dims", "model_state_dict"}) is the model that transformers' files have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ctranslate2_files import whisper, written
from torch_writer import checkpoint
from zoo import container

from provindex.fingerprint.extract.model import fingerprint_model
from provindex.formats.ctranslate2.files import read_ctranslate2
from provindex.formats.tensors import Extent
from provindex.models.source import open_model
from provindex.roles.names import Layout, resolve
from provindex.verdict.pair import compare

WORDS = {
    ".layers.": ".blocks.", ".encoder_attn_layer_norm": ".cross_attn_ln", ".self_attn_layer_norm": ".attn_ln",
    ".final_layer_norm": ".mlp_ln", ".self_attn.": ".attn.", ".encoder_attn.": ".cross_attn.", ".q_proj": ".query",
    ".k_proj": ".key", ".v_proj": ".value", ".out_proj": ".out", ".fc1": ".mlp.0", ".fc2": ".mlp.2",
    "encoder.layer_norm": "encoder.ln_post", "decoder.layer_norm": "decoder.ln", "embed_tokens": "token_embedding",
    "embed_positions.weight": "positional_embedding",
}  # fmt: skip
DIMS = {
    "n_mels": 80, "n_vocab": 10, "n_audio_ctx": 15, "n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1,
    "n_text_ctx": 7, "n_text_state": 64, "n_text_head": 1, "n_text_layer": 1,
}  # fmt: skip


def renamed(name: str) -> str:
    for theirs, own in WORDS.items():
        name = name.replace(theirs, own)
    return re.sub(r"^model\.", "", name)


def roles(layout: Layout) -> set[tuple[str, str, int | None]]:
    return {
        (part.role, placed.stack, placed.layer)
        for placed in layout.placements.values()
        for part in placed.parts
        if part.role
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model under transformers' names, and under OpenAI's."""
    place = tmp_path_factory.mktemp("whisper")
    contents = read_ctranslate2(Extent(np.frombuffer(written("WhisperSpec", whisper()), np.uint8)), "m")
    state = {t.name: t.flat().reshape(t.shape) for t in contents.tensors}
    (place / "hub").mkdir()
    container.save(place / "hub" / "model.safetensors", state, dict.fromkeys(state, "F32"), list(state))
    (place / "hub" / "config.json").write_text(json.dumps(contents.config))
    own = checkpoint({"dims": DIMS, "model_state_dict": {renamed(name): value for name, value in state.items()}})
    (place / "tiny.pt").write_bytes(own)
    return place / "hub", place / "tiny.pt"


def test_it_reads_as_the_same_model(both: tuple[Path, Path]) -> None:
    hub, own = (open_model(path) for path in both)
    layouts = [resolve({name: t.shape for name, t in model.tensors.items()}, model.config) for model in (hub, own)]
    assert roles(layouts[0]) == roles(layouts[1]) and not layouts[1].unknown
    assert {key: own.config[key] for key in ("d_model", "encoder_layers", "decoder_attention_heads")} == {
        key: hub.config[key] for key in ("d_model", "encoder_layers", "decoder_attention_heads")
    }
    pair = compare(fingerprint_model(hub), fingerprint_model(own))
    assert (pair.verdict, pair.relation) == ("linked", "identical")


def test_sizes_that_are_none_give_no_config(tmp_path: Path) -> None:
    state = {"decoder.token_embedding.weight": np.ones((4, 8), np.float32)}
    for number, dims in enumerate(({"n_mels": 80}, {**DIMS, "n_mels": -1}, {**DIMS, "n_vocab": "many"})):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(checkpoint({"dims": dims, "model_state_dict": state}))
        assert open_model(path).config == {}
