"""Parity of the context signals (MFI, TFV, VOA, anchors) with the peer, cisco-ai-provenance-kit 1.0.0.

Two halves that meet in a JSON file, because they live in two environments:

1. `dump(folders)` runs where the peer is installed (torch, transformers 5.5.0, and what it imports:
structlog, pandas, pydantic-settings, tiktoken) and returns the peer's numbers; offline, from the folders
alone. 2. `differences(dumped, folders)` runs where provindex is installed, computes ours for the same
folders, and returns `Differences`: the largest difference per signal, and every difference above the limit
with its reason.

PEER/bin/python tests/parity/context.py dump peer.json FOLDER... OURS/bin/python tests/parity/context.py check
peer.json FOLDER...     (status 1 if a difference has no reason)

tests/parity/run.py calls both. Neither half imports the other's packages. Folders are keyed by their name.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provindex.report.words import text

LIMIT = 1e-4
SIGNALS = ("MFI", "MFI tier", "TFV", "VOA", "anchors")

# Why the peer's tokenizer is not the one in the folder; the class name goes in.
REBUILT = "the peer rebuilds or completes the folder's tokenizer as {}: pre-tokenizer or post-processor of that class"
INVENTED = "the peer rebuilds the vocabulary as {} and adds that class's special tokens, which the folder does not have"
FROM_BACKEND = {"tokenizer_hash", "family_hash", "num_added_tokens", "num_special_tokens"}  # the last two: never scored


# Configs as they are found: most fields left out, rotary facts in all their places, composite models.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-old": {"model_type": "llama", "rope_theta": 500000.0, "num_attention_heads": 8, "hidden_size": 256},
    "llama-new": {"model_type": "llama", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    "llama-scaled": {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "llama-null": {"model_type": "llama", "num_key_value_heads": None, "attention_bias": True},
    "mistral": {"model_type": "mistral", "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000, "vocab_size": 600, "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "hidden_size": 512, "head_dim": 64},
    "gemma2": {"model_type": "gemma2"},
    "gemma3": {"model_type": "gemma3", "text_config": {"hidden_size": 640, "num_hidden_layers": 3}},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 4},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25},
    "falcon": {"model_type": "falcon", "multi_query": True, "bias": True},
    "phi3": {"model_type": "phi3"},
    "opt": {"model_type": "opt", "ffn_dim": 96, "hidden_size": 24, "num_attention_heads": 4},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_head": 4},
    "mpt": {"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4},
    "bert": {"model_type": "bert", "position_embedding_type": "relative_key"},
    "distilbert": {"model_type": "distilbert", "dim": 96, "n_layers": 2, "n_heads": 4, "hidden_dim": 200},
    "modernbert": {"model_type": "modernbert"},
    "t5": {"model_type": "t5", "d_model": 64, "num_layers": 2, "num_heads": 4},
    "bart": {"model_type": "bart", "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4},
    "deberta-v2": {"model_type": "deberta-v2", "hidden_size": 96, "num_attention_heads": 6},
    "llava": {"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": 96}},
    "mamba": {"model_type": "mamba", "hidden_size": 96},
    "olmo2": {"model_type": "olmo2"},
    "cohere": {"model_type": "cohere"},
}
TOKENIZER_CONFIGS: tuple[dict[str, Any], ...] = (
    {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "[PAD]"},
    {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        "eos_token": "<|endoftext|>",
    },
    {"tokenizer_class": "TokenizersBackend", "mask_token": "the", "added_tokens_decoder": {}},
)


def generate(root: Path) -> list[Path]:
    """A folder for each of CONFIGS, with one of three small tokenizers and one of TOKENIZER_CONFIGS."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tokenizer_files as made

    builders = (made.byte_bpe, made.wordpiece, made.unigram)
    folders = []
    for index, (name, config) in enumerate(CONFIGS.items()):
        folder = root / f"generated-{name}"
        made.write_json(folder, "config.json", config | {"architectures": [f"{name}ForCausalLM"]})
        made.write_json(folder, "tokenizer_config.json", TOKENIZER_CONFIGS[index % 3])
        made.write_tokenizer(folder, builders[index // 3 % 3]())
        folders.append(folder)
    return folders


def dump(folders: list[Path]) -> dict[str, Any]:
    """The peer's numbers: `models` by folder name (or `error`), and `pairs` [a, b, MFI, tier, TFV, VOA]."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from provenancekit.core.signals.anchors import get_anchor_ids
    from provenancekit.core.signals.metadata import extract_fingerprint, similarity
    from provenancekit.core.signals.tokenizer import extract_tokenizer_features, tfv_similarity, vocab_overlap

    models: dict[str, Any] = {}
    loaded: dict[str, Any] = {}
    for folder in folders:
        try:
            fingerprint, tokenizer = extract_fingerprint(str(folder))
        except Exception as error:  # noqa: BLE001 - whatever the peer dies of is its answer
            models[folder.name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            continue
        features = extract_tokenizer_features(str(folder), tokenizer=tokenizer)
        vocabulary = set(tokenizer.get_vocab())
        loaded[folder.name] = (fingerprint, features, vocabulary)
        models[folder.name] = {
            "mfi": fingerprint.model_dump(),
            "tfv": features.model_dump(exclude={"all_merges_str"}),
            "anchors": get_anchor_ids(tokenizer, vocabulary, len(vocabulary)),
        }
    pairs = []
    for a, b in itertools.combinations_with_replacement(loaded, 2):
        (mfi_a, tfv_a, vocab_a), (mfi_b, tfv_b, vocab_b) = loaded[a], loaded[b]
        mfi = similarity(mfi_a, mfi_b)
        overlap = vocab_overlap(a, b, vocab_a=vocab_a, vocab_b=vocab_b).jaccard
        pairs.append([a, b, mfi.score, mfi.tier, tfv_similarity(tfv_a, tfv_b), overlap])
    return {"models": models, "pairs": pairs}


@dataclass
class Differences:
    """largest: per signal, over the pairs (models, for anchors) whose tokenizers agree. explained: a sentence
    each.

    unexplained: what must not be. sketch: largest |VOA from the sketches - exact VOA|. rotary: pairs where
    our own MFI (rotary base read from everywhere) is not the peer's. fields: equal MFI and TFV fields of all
    compared.
    """

    largest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SIGNALS, 0.0))
    explained: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    sketch: float = 0.0
    rotary: list[str] = field(default_factory=list)
    fields: tuple[int, int] = (0, 0)

    def lines(self) -> list[str]:
        """The report, a line each."""
        head = [f"{name:9} largest difference {self.largest[name]:.1e}" for name in SIGNALS]
        head.append(f"VOA from sketches: largest difference from the exact value {self.sketch:.4f}")
        head.append(f"fields: {self.fields[0]} of {self.fields[1]} equal")
        groups = (("explained", self.explained), ("by design", self.rotary), ("UNEXPLAINED", self.unexplained))
        return head + [f"{label}: {line}" for label, found in groups for line in found]


def differences(dumped: dict[str, Any], folders: list[Path]) -> Differences:
    """Compare ours with the peer's dump, model by model and pair by pair."""
    from provindex.common.tokens import TokenizerAbsence
    from provindex.models.tokenizer import read_tokenizer
    from provindex.signals import anchors, mfi, tfv, voa

    found = Differences()
    ours: dict[str, Any] = {}
    rebuilt: dict[str, str] = {}  # models whose tokenizer the peer rebuilt with another backend,
    invented: dict[str, str] = {}  # and those where it added tokens as well
    for folder in folders:
        name = folder.name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = read_tokenizer({path.name: path for path in folder.iterdir()}, config)
        theirs = dumped["models"].get(name, {"error": "not in the dump"})
        if isinstance(tokenizer, TokenizerAbsence) or "error" in theirs:
            reason = text(tokenizer.reason) if isinstance(tokenizer, TokenizerAbsence) else "ours reads it"
            found.explained.append(f"{name}: the peer gives nothing ({theirs.get('error')}); ours: {reason}")
            continue
        if theirs["mfi"]["tokenizer_hash"] != tokenizer.backend_sha256:
            rebuilt[name] = REBUILT.format(theirs["tfv"]["tokenizer_class"])
            if theirs["tfv"]["vocab_size"] > len(tokenizer.vocab):
                invented[name] = INVENTED.format(theirs["tfv"]["tokenizer_class"])
        features = mfi.extract(config, tokenizer), tfv.extract(tokenizer)
        ours[name] = (*features, tokenizer.vocab, voa.sketch(tokenizer.vocab))
        _fields(found, name, features, theirs, rebuilt, invented)
        ids = anchors.peer_anchors(tokenizer.first_id, tokenizer.vocab, theirs["tfv"]["vocab_size"])
        wrong = sum(a != b for a, b in itertools.zip_longest(ids, theirs["anchors"]))
        _note(found, "anchors", name, wrong, f"{wrong} of 64 anchors differ", rebuilt)
    _pairs(found, dumped["pairs"], ours, invented)
    return found


def _fields(
    found: Differences, name: str, features: tuple[Any, Any], theirs: dict[str, Any], rebuilt: Any, invented: Any
) -> None:
    """Count equal fields; one that differs must come from the backend, or from tokens that the peer added."""
    from provindex.signals import mfi

    for part, row in zip(("mfi", "tfv"), features, strict=True):
        mine = json.loads(json.dumps(row.to_json()))
        for key, value in theirs[part].items():
            equal = mine[key] == value
            found.fields = (found.fields[0] + equal, found.fields[1] + 1)
            if equal:
                continue
            line = f"{name}: {part} {key} {str(mine[key])[:40]} here, {str(value)[:40]} there"
            if key == "rope_scaling" and mfi.rotary(row)[0] == mfi.rotary(mfi.MfiFeatures.from_json(theirs[part]))[0]:
                found.explained.append(f"{line}: class defaults by layer type or a rotated part; the same rotary base")
                continue
            reason = invented.get(name) or (rebuilt.get(name) if key in FROM_BACKEND else None)
            (found.explained if reason else found.unexplained).append(f"{line}: {reason}")


def _pairs(found: Differences, pairs: list[list[Any]], ours: dict[str, Any], invented: dict[str, str]) -> None:
    from provindex.signals import mfi, tfv, voa

    for a, b, score, tier, tfv_value, voa_value in pairs:
        if a not in ours or b not in ours:
            continue
        (mfi_a, tfv_a, vocab_a, sketch_a), (mfi_b, tfv_b, vocab_b, sketch_b) = ours[a], ours[b]
        exact = mfi.compare(mfi_a, mfi_b, peer_exact=True)
        pair = f"{a} / {b}"
        reason = invented.get(a) or invented.get(b)
        reasons = {pair: reason} if reason else {}
        jaccard = voa.compare_vocabularies(vocab_a, vocab_b).value or 0.0
        for signal, mine, theirs in (
            ("MFI", exact.score.value, score),
            ("MFI tier", exact.tier, tier),
            ("TFV", tfv.compare(tfv_a, tfv_b).value, tfv_value),
            ("VOA", jaccard, voa_value),
        ):
            _note(found, signal, pair, abs(mine - theirs), f"{signal} {mine} here, {theirs} there", reasons)
        estimate = voa.compare(sketch_a, len(vocab_a), sketch_b, len(vocab_b)).value or 0.0
        found.sketch = max(found.sketch, abs(estimate - jaccard))
        own = mfi.compare(mfi_a, mfi_b)
        if (own.score.value, own.tier) != (exact.score.value, exact.tier):
            found.rotary.append(f"{pair}: MFI {own.score.value} (tier {own.tier}), {score} ({tier}) as the peer has it")


def _note(found: Differences, signal: str, who: str, gap: float, line: str, reasons: dict[str, str]) -> None:
    if gap and who in reasons:
        found.explained.append(f"{who}: {line}: {reasons[who]}")
        return
    found.largest[signal] = max(found.largest[signal], float(gap))
    if gap > LIMIT:
        found.unexplained.append(f"{who}: {line}")


def main(arguments: list[str]) -> int:
    verb, file, folders = arguments[0], Path(arguments[1]), [Path(name) for name in arguments[2:]]
    if verb == "generate":
        print(f"{len(generate(file))} folders")
        return 0
    if verb == "dump":
        file.write_text(json.dumps(dump(folders)), encoding="utf-8")
        return 0
    found = differences(json.loads(file.read_text(encoding="utf-8")), folders)
    print("\n".join(found.lines()))
    return 1 if found.unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
