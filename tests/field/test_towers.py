"""Towers beside a text tower: equal texts with other eyes are no finetune, and both facts are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zoo

from provindex.api import resolve
from provindex.common.reasons import Code
from provindex.verdict.pair import compare

TEXT = zoo.llama(1)


def seeing(seed: int) -> zoo.Checkpoint:
    """A Llama with a vision tower of random weights, as LLaVA stores them."""
    rng = np.random.default_rng(seed)
    tensors = {f"language_model.{name}": values for name, values in TEXT.tensors.items()}
    for layer in range(2):
        inner = f"vision_tower.vision_model.encoder.layers.{layer}."
        for name, shape in (
            *((f"self_attn.{p}_proj", (128, 128)) for p in ("q", "k", "v", "out")),
            ("mlp.fc1", (256, 128)),
            ("mlp.fc2", (128, 256)),
        ):
            tensors[f"{inner}{name}.weight"] = rng.standard_normal(shape).astype("f4")
    config = {"model_type": "llava", "text_config": TEXT.config, "vision_config": {"model_type": "clip_vision_model"}}
    return zoo.Checkpoint(config, tensors, TEXT.tokenizer)


def test_equal_texts_with_other_eyes(tmp_path: Path) -> None:
    one, other, same = (
        resolve(zoo.write(seeing(seed), tmp_path / name)).fingerprint
        for name, seed in (("one", 1), ("other", 2), ("same", 1))
    )
    pair = compare(one, other)
    assert (pair.verdict, pair.relation) == ("linked", "related")
    assert [reason.code for reason in pair.reasons] == [Code.TEXT_EQUAL]
    pair = compare(one, same)
    assert pair.relation == "identical"
    alone = compare(one, resolve(zoo.write(TEXT, tmp_path / "text")).fingerprint)
    assert alone.verdict == "linked" and alone.relation == "related"  # one has a tower that the other lacks
    assert [reason.code for reason in alone.reasons] == [Code.OTHER_WEIGHTS_DIFFER]
