"""Small Llamas trained for real whose vocabulary has tokens that never occur, with weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import zoo
from zoo import trainer

RESERVED, DECAY, STEPS, TIED_STEPS = 48, 0.1, 300, 110
SHAPE = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 80}
TUNE = 1e-3


def train(
    seed: int, steps: int, data_seed: int = 0, init: zoo.Checkpoint | None = None, *,
    language: int = 0, rate: float = trainer.RATE, tied: bool = False, hidden: int = SHAPE["hidden"],
) -> zoo.Checkpoint:  # fmt: skip
    """As zoo.train, with AdamW, and with the last 48 tokens of the vocabulary unused."""
    plain = zoo.llama_config(tied=tied, **SHAPE | {"hidden": hidden})  # type: ignore[arg-type]
    config = init.config if init else plain | {"vocab_size": plain["vocab_size"] + RESERVED}
    flat = trainer.pack(init.tensors, config) if init else trainer.start(config, seed)
    first, second = np.zeros_like(flat), np.zeros_like(flat)
    stream = trainer.sentences(config["vocab_size"] - RESERVED, language, data_seed)
    for step in range(steps):
        _, gradient = trainer.loss_and_gradient(flat, config, next(stream))
        now = rate * trainer._schedule(step, steps)
        flat *= np.float32(1 - now * DECAY)
        trainer._adam(flat, gradient, first, second, step, now)
    tokenizer = init.tokenizer if init else trainer.vocabulary.tokenizer_json("unigram")
    return zoo.Checkpoint(config, trainer.unpack(flat, config), tokenizer)


@cache
def family(tied: bool) -> Mapping[str, zoo.Checkpoint]:
    """A base, the same start on other sentences of another language, another start, and descendants of the base."""
    steps = STEPS // 4 if tied else STEPS
    base = train(0, steps, tied=tied)
    made = {
        "base": base,
        "same start": train(0, steps, 1, language=1, tied=tied),
        "finetune": train(0, 60, 2, base, rate=TUNE),
        "continued": train(0, steps, 3, base, language=1),
        "noise": zoo.finetune_noise(base, 0.5, 4),
    }
    if not tied:
        made["stranger"] = train(1, 60, tied=tied)
        made["sibling"] = train(0, STEPS, 5, base, language=2)
    return made


@cache
def tied_family() -> Mapping[str, zoo.Checkpoint]:
    """A base with a tied head and gains enough to compare, its twin of the same start, and a child of each."""
    base = train(0, TIED_STEPS, tied=True, hidden=64)
    twin = train(0, TIED_STEPS, 1, language=1, tied=True, hidden=64)
    return {
        "base": base,
        "twin": twin,
        "child": train(0, TIED_STEPS, 2, base, language=2, tied=True, hidden=64),
        "child of the twin": train(0, TIED_STEPS // 3, 3, twin, rate=TUNE, tied=True, hidden=64),
    }
