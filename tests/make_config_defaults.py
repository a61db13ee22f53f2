"""Write provindex/roles/config_defaults.json: what transformers 5.5.0 fills in for a config.json that leaves it out.

Run by hand in an environment with transformers 5.5.0, torch and sentencepiece:

    python tests/make_config_defaults.py provindex/roles/config_defaults.json

Nothing is downloaded: every value comes from a configuration class built with no arguments. The file is a table of
facts, read by provindex/signals/mfi.py and provindex/models/tokenizer.py; its layout is described in `table`.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "d_ff",
    "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "hidden_dim", "vocab_size", "max_position_embeddings",
    "hidden_act", "hidden_activation", "head_dim", "tie_word_embeddings", "rms_norm_eps", "rms_norm_epsilon",
    "layer_norm_eps", "layer_norm_epsilon", "attention_bias", "bias", "qk_layernorm", "qk_norm",
    "query_pre_attn_scalar", "position_embedding_type",
)  # fmt: skip
SUB_CONFIGS = ("text_config", "decoder")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "cls_token", "sep_token")
PLAIN = (bool, int, float, str)
KNOWN_CLASSES = ("LlamaTokenizer", "BartTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "TokenizersBackend")
EXISTS_ONLY = {"rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"}


def build(cls: Any, **arguments: Any) -> Any | None:
    """An instance, or None where the class refuses these arguments (composite configs without parts, strict checks)."""
    try:
        return cls(**arguments)
    except Exception as error:  # noqa: BLE001 - a class of transformers may raise anything; the type is then left out
        print(f"  {cls.__name__}({arguments}): {type(error).__name__}", file=sys.stderr)
        return None


def follows(cls: Any, config: Any) -> dict[str, str]:
    """Fields that the class works out from others: their default is a rule, written "=heads" or "=hidden/heads"."""
    if not hasattr(config, "hidden_size"):
        return {}
    wide = build(cls, hidden_size=6 * 26)
    inner = getattr(wide, "intermediate_size", None)
    if isinstance(inner, int) and inner and inner % (6 * 26) == 0 and inner != config.intermediate_size:
        return {"intermediate_size": f"=hidden*{inner // (6 * 26)}"}  # Mamba: its expansion
    if not hasattr(config, "num_attention_heads"):
        return {}
    probe = build(cls, num_attention_heads=6, hidden_size=6 * 26)
    if probe is None or probe.num_attention_heads != 6:
        return {}
    rules = {"num_key_value_heads": (6, "=heads"), "head_dim": (26, "=hidden/heads")}
    mapped = config.attribute_map
    return {
        name: rule
        for name, (value, rule) in rules.items()
        if name not in mapped and getattr(probe, name, None) == value and getattr(config, name, None) != value
    }


def defaults(cls: Any, config: Any) -> dict[str, Any]:
    """Field to default; 1 for fields of which only the presence is used; a missing field has no attribute at all."""
    rules = follows(cls, config)
    found: dict[str, Any] = {}
    for name in FIELDS:
        if name in rules:
            found[name] = rules[name]
        elif hasattr(config, name):
            value = getattr(config, name)
            if value is None or isinstance(value, PLAIN):
                found[name] = 1 if name in EXISTS_ONLY else value
    if found.get("tie_word_embeddings") is True:
        probe = build(cls, tie_word_embeddings=False)
        if probe is not None and probe.tie_word_embeddings is True:
            found["tie_word_embeddings"] = "=always"
    return found


def found_null(cls: Any, default: Any) -> bool:
    """Whether a null number of key-value heads becomes the number of heads, though the default is a number."""
    probe = build(cls, num_key_value_heads=None) if isinstance(default, int) else None
    return probe is not None and probe.num_key_value_heads == getattr(probe, "num_attention_heads", None)


def parts(mapping: Any) -> dict[str, Any]:
    """Config class by model type: all that AutoConfig knows, and the text parts that only composite models use."""
    found = {kind: mapping[kind] for kind in mapping}
    for cls in list(found.values()):
        config = build(cls)
        for key in SUB_CONFIGS:
            sub = getattr(config, key, None)
            if getattr(sub, "model_type", ""):
                found.setdefault(sub.model_type, type(sub))
    return found


def entry(cls: Any, letters: dict[str, str]) -> dict[str, Any] | None:
    """One model type: fields under letters; `m` attribute map, `s` sub-configs, `r` RoPE theta, `n` `found_null`."""
    config = build(cls)
    if config is None:
        return None
    row: dict[str, Any] = {letters[name]: value for name, value in defaults(cls, config).items()}
    names = {name: stored for name, stored in config.attribute_map.items() if name in FIELDS}
    if names:
        row["m"] = names
    subs = {
        key: sub.model_type
        for key in SUB_CONFIGS
        if (sub := getattr(config, key, None)) is not None and getattr(sub, "model_type", "")
    }
    if subs:
        row["s"] = subs
    if found_null(cls, row.get(letters["num_key_value_heads"])):
        row["n"] = 1
    if hasattr(config, "rope_parameters"):
        theta = getattr(config, "rope_theta", None) or config.default_theta
        row["r"] = float(max(theta.values()) if isinstance(theta, dict) else theta)  # Gemma 3: global and local
    textual = "s" in row or letters["vocab_size"] in row
    return row if textual else None


def tokenizer_tables() -> dict[str, Any]:
    """Class by model type as AutoTokenizer chooses it, and the special tokens that each class assumes."""
    from transformers.models.auto import tokenization_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = {kind: name for kind, name in auto.TOKENIZER_MAPPING_NAMES.items() if name}
    fallback: dict[str, str] = {}
    for kind in CONFIG_MAPPING:
        try:
            name = auto.TOKENIZER_MAPPING[CONFIG_MAPPING[kind]].__name__
        except (KeyError, ImportError, AttributeError, ValueError):
            continue
        if name != names.get(kind):
            fallback[kind] = name
    special: dict[str, dict[str, str]] = {}
    for name in sorted({*names.values(), *fallback.values(), *KNOWN_CLASSES}):
        cls = auto.tokenizer_class_from_name(name)
        if cls is None:
            continue
        special.setdefault(cls.__name__, assumed(cls))
    return {"names": group(names), "fallback": group(fallback), "special": special}


def assumed(cls: Any) -> dict[str, str]:
    """Special tokens in the class's own signature ("bos" to "<s>"), where they are not None."""
    found: dict[str, str] = {}
    for key in SPECIAL:
        for base in cls.__mro__:  # a subclass may hand **kwargs on
            parameter = inspect.signature(base.__init__).parameters.get(key)
            if parameter is not None:
                if parameter.default not in (None, inspect.Parameter.empty):
                    found[key.removesuffix("_token")] = str(parameter.default)
                break
    return found


def group(mapping: dict[str, str]) -> dict[str, str]:
    """Value to its keys, joined by spaces: far shorter than key to value."""
    groups: dict[str, list[str]] = {}
    for key, value in sorted(mapping.items()):
        groups.setdefault(value, []).append(key)
    return {value: " ".join(keys) for value, keys in sorted(groups.items())}


def table() -> dict[str, Any]:
    """The whole file: `fields` (letter to name), `types` (one `entry` each, equal ones by the name of the first)."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    letters = dict(zip(FIELDS, alphabet, strict=True))
    types: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for kind, cls in sorted(parts(CONFIG_MAPPING).items()):
        row = entry(cls, letters)
        if row is None:
            continue
        first = seen.setdefault(json.dumps(row, sort_keys=True), kind)
        types[kind] = row if first == kind else first
    return {
        "transformers": transformers.__version__,
        "fields": dict(zip(alphabet, FIELDS, strict=True)),
        "types": types,
        "tokenizers": tokenizer_tables(),
    }


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, in `table`
    text = json.dumps(table(), ensure_ascii=True, separators=(",", ":"), sort_keys=True).replace('},"', '},\n"')
    Path(sys.argv[1]).write_text(text + "\n", encoding="ascii")
    print(f"{len(text)} bytes")
