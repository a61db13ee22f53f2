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


def check(name: str) -> str:
    SMALL["vocab_size"] = 512
    try:
        model, answer = make(name)
    except AssertionError:  # the padding token lies beyond
        del SMALL["vocab_size"]
        model, answer = make(name)
    model.tie_weights()
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
        turned = after.shape == before.shape and title in ("permute_residual", "rotate_residual") and error > 1e-5
        note = f" (as sets {float((after.sort().values - before.sort().values).abs().max()):.0e})" if turned else ""
        said.append(f"    {title:22} {error:.0e}" + (note or " ") + ("" if error < 1e-5 else "  WRONG"))
    return "\n".join(sorted(said))


def main() -> None:
    names = sys.argv[1:] or [name for name, entry in NATIVE.items() if "text_config" not in entry[2]]
    for name in names:
        print(f"{name}\n{check(name)}", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
