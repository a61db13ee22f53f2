"""Other token numbers: embedding, head and tokenizer.json renumbered alike."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .parts import Parts
from .snapshot import Snapshot

I64 = NDArray[np.int64]


def renumber_vocabulary(snapshot: Snapshot, seed: int) -> Snapshot:
    """Number the tokens anew, in the embedding, the head and tokenizer.json; merges stay as they are.

    Tokens that a config or the tokenizer names by number (special and added ones) keep theirs: positions of RoBERTa
    are counted from the padding token's number, and generation settings repeat the others.
    """
    new = renumbering(snapshot, seed)
    old = np.argsort(new)
    parts = Parts(snapshot)
    for key in [k for k in parts.at if k.role in ("embed", "head")]:
        if parts.shape(key)[0] == len(new):
            parts.write(key, parts.read(key)[old])
    for name, tensor in snapshot.tensors.items():  # a bias that BART keeps as a buffer
        if name.endswith("final_logits_bias"):
            parts.axis(name, tensor.ndim - 1, lambda a: a[old])
    parts.tokenizer = _renumbered(snapshot.tokenizer, new) if snapshot.tokenizer else ""
    return parts.snapshot("vocabulary")


def renumbering(snapshot: Snapshot, seed: int) -> I64:
    """The number that each token gets, (rows of the embedding,) int64."""
    parts = Parts(snapshot)
    rows = parts.shape(parts.embed_key())[0] if parts.embed_key() in parts.at else 0
    limit, fixed = rows, _special(snapshot.config)
    if snapshot.tokenizer:
        tree = json.loads(snapshot.tokenizer)
        strings = _strings(tree["model"]["vocab"])
        limit = min(rows, len(strings))
        fixed |= {entry["id"] for entry in tree.get("added_tokens") or []} | {tree["model"].get("unk_id")}
        twice = {text for text, count in Counter(strings).items() if count > 1}
        fixed |= {i for i, text in enumerate(strings) if text in twice}  # which of them a tokenizer takes is its own
    free = np.array([i for i in range(limit) if i not in fixed], np.int64)
    new = np.arange(rows, dtype=np.int64)
    new[free] = np.random.default_rng([seed, 0x70CAB]).permutation(free)
    return new


def _strings(vocab: Any) -> list[str]:
    """Tokens of a tokenizer.json by number; [] where the numbers leave gaps."""
    if isinstance(vocab, list):
        return [entry[0] for entry in vocab]
    ordered = sorted(vocab, key=vocab.__getitem__)
    return ordered if [vocab[token] for token in ordered] == list(range(len(ordered))) else []


def _special(config: Any) -> set[Any]:
    """Every number that a config stores under a name that ends in token_id."""
    found: set[Any] = set()
    for key, value in config.items() if hasattr(config, "items") else ():
        if hasattr(value, "items"):
            found |= _special(value)
        elif str(key).endswith(("token_id", "token_index")):
            found |= set(value) if isinstance(value, list) else {value}
    return found


def _renumbered(text: str, new: I64) -> str:
    tree = json.loads(text)
    vocab = tree["model"]["vocab"]
    if isinstance(vocab, list):
        moved: list[Any] = [None] * len(vocab)
        for i, entry in enumerate(vocab):
            moved[int(new[i]) if i < len(new) else i] = entry
        tree["model"]["vocab"] = moved
    else:
        numbers = {token: int(new[i]) if i < len(new) else i for token, i in vocab.items()}
        tree["model"]["vocab"] = dict(sorted(numbers.items(), key=lambda item: item[1]))
    return json.dumps(tree, ensure_ascii=False)
