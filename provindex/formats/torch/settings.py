"""config.json from what a library saves beside the weights in the same checkpoint: OpenAI's Whisper its `dims`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_SIZE = 1 << 31  # a number above this is no size of a model

# Whisper's words -> transformers'.
_WHISPER = {
    "n_mels": ("num_mel_bins",), "n_vocab": ("vocab_size",), "n_audio_ctx": ("max_source_positions",),
    "n_audio_state": ("d_model",), "n_audio_head": ("encoder_attention_heads",), "n_audio_layer": ("encoder_layers",),
    "n_text_ctx": ("max_target_positions",), "n_text_state": ("d_model",),
    "n_text_head": ("decoder_attention_heads",), "n_text_layer": ("decoder_layers",),
}  # fmt: skip


def whisper_config(dims: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of a Whisper from its sizes; None if they are not all there as whole numbers."""
    sizes = [dims.get(name) for name in _WHISPER]
    if not all(type(size) is int and 0 < size < MAX_SIZE for size in sizes):
        return None
    said = {name: dims[ours] for ours, names in _WHISPER.items() for name in names}
    inner = 4 * said["d_model"]
    fixed = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "tie_word_embeddings": True}
    return fixed | said | {"encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "activation_function": "gelu"}
