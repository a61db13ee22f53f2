"""Do the disguises leave the function alone? Asked of transformers, for every architecture of make_architectures.py.

A small random model in float64 is disguised through build_index.zoo.disguises, loaded again with the disguised config,
and asked the same question. Not part of the test run (tests/test_disguises.py has its own forward pass); needs torch
and transformers, in any environment that can also import provindex:

    python tests/parity/disguises_forward.py [NAME ...]
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import torch
import transformers
from names_forward import NATIVE, SMALL, make

from build_index.zoo import disguises
from build_index.zoo.snapshot import Snapshot


def snapshot_of(name: str, model: Any) -> Snapshot:
    """A model as its checkpoint would hold it: tied tensors once."""
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    state = {k: v.detach().numpy().copy() for k, v in model.state_dict().items() if k not in tied}
    return Snapshot(name, state, json.loads(model.config.to_json_string(use_diff=False)), "")


def load(snapshot: Snapshot, like: Any) -> Any:
    """A new model of the same class with the disguised config's scalars and the disguised weights."""
    config = copy.deepcopy(like.config)
    for key in (*disguises.EPS_KEYS, "tie_word_embeddings"):
        if key in snapshot.config:
            setattr(config, key, snapshot.config[key])
    if hasattr(config, "scale_decoder_outputs"):  # T5 reads it off the other key
        config.scale_decoder_outputs = bool(config.tie_word_embeddings)
    model = type(like)(config).double().eval()
    own = model.state_dict()
    state = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in snapshot.tensors.items()}
    for name, source in (getattr(like, "all_tied_weights_keys", {}) or {}).items():
        if name not in state and name in own:  # a loader that unties the head unties biases and tables with it
            state[name] = state[source]
    missing = set(own) - set(state) - set(getattr(model, "all_tied_weights_keys", {}) or {})
    assert not missing, missing
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


def embeddings(model: Any) -> torch.Tensor:
    """What CLIP's text tower answers."""
    with torch.no_grad():
        return model(input_ids=torch.arange(11)[None] * 7 % 89 + 110).text_embeds


def gram(answer: Any) -> Any:
    """The answer of an encoder without a head is the residual stream itself, which has no basis of its own."""
    return lambda model: answer(model) @ answer(model).transpose(-1, -2)


def check(name: str) -> str:
    SMALL["vocab_size"] = 512
    try:
        model, answer = make(name)
    except AssertionError:  # the padding token lies beyond
        del SMALL["vocab_size"]
        model, answer = make(name)
    model.tie_weights()
    answer = embeddings if name == "clip_text_model" else gram(answer) if name == "t5_encoder" else answer
    before = answer(model)
    original, said = snapshot_of(name, model), []
    for title, change in disguises.EXACT.items() | {("all", disguises.everything)}:
        result = change(original, 1)
        if isinstance(result, disguises.Refusal):
            said.append(f"    {title:22} - {result.reason}")
            continue
        if title in ("renumber_vocabulary", "all"):
            continue
        moved = sum(not np.array_equal(v, original.tensors.get(k)) for k, v in result.tensors.items())
        assert moved, title
        after = answer(load(result, model))
        error = float((after - before).abs().max() / before.abs().max())
        said.append(f"    {title:22} {error:.0e}" + ("" if error < 1e-5 else "  WRONG"))
    return "\n".join(sorted(said))


def main() -> None:
    names = sys.argv[1:] or [
        name for name, entry in NATIVE.items() if "text_config" not in entry[2] and name != "bart_classifier"
    ]
    for name in names:
        print(f"{name}\n{check(name)}", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
