"""Does a changed copy still do what its model does? Asked of transformers: `python usable.py MODEL COPY [COPY ...]`.

Prints one JSON line a copy: the largest difference of its logits from the model's, over their spread, on one text; of a
model without a head, of the inner products of its last states, which no rotation changes. Token ids are matched by
their strings. Runs in an environment with torch and transformers, and needs nothing of provindex.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TEXT = "The first thing that people want to know about this program is what it does when you run it with a large file."


def answer(folder: Path) -> tuple[Any, dict[str, int]]:
    """What a model answers to the text, (tokens, vocabulary or tokens), and its vocabulary."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False).ids])
    causal = any("CausalLM" in name for name in config.get("architectures") or ())
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        if causal:
            return model(input_ids=ids).logits[0].double(), tokenizer.get_vocab()
        if config.get("is_encoder_decoder"):
            sound = torch.randn(1, config["num_mel_bins"], 3000, generator=torch.Generator().manual_seed(0))
            states = model(input_features=sound, decoder_input_ids=ids).last_hidden_state[0]
        else:
            states = model(input_ids=ids).last_hidden_state[0]
    return states.double() @ states.double().T, {}


def difference(a: tuple[Any, dict[str, int]], b: tuple[Any, dict[str, int]]) -> float:
    """The largest difference of two answers, over the standard deviation of the first."""
    (x, ours), (y, theirs) = a, b
    if ours:
        common = sorted(ours.keys() & theirs.keys())
        x, y = x[:, [ours[t] for t in common]], y[:, [theirs[t] for t in common]]
    return float((x - y).abs().max() / x.std())


def main(folders: list[str]) -> None:
    model = answer(Path(folders[0]))
    for copy in folders[1:]:
        try:
            found: dict[str, Any] = {"difference": difference(model, answer(Path(copy)))}
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            found = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps({"copy": copy, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
