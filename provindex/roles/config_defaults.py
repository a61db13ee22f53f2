"""What a config.json leaves unsaid: the defaults of transformers 5.5.0, as a table.

The peer reads a config through transformers, which fills in class defaults and renames attributes (T5's `d_model`
is `hidden_size`). The table config_defaults.json holds those facts for every text model type; it is written by
tests/make_config_defaults.py. Types that are not in it (remote code, newer types) are read as they are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

GENERIC_CLASS = "TokenizersBackend"
# Spellings of the rotary base, besides `rope_theta`, that configs use at their top level.
THETA_KEYS = ("rope_theta", "rotary_emb_base", "rotary_base")
MISSING = object()  # an attribute that neither the config nor its class has, as opposed to one that is null


@cache
def table() -> dict[str, Any]:
    """The parsed file (about 43 kB): fields, types, tokenizers."""
    text = files("provindex.roles").joinpath("config_defaults.json").read_text(encoding="ascii")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _type(model_type: str) -> dict[str, Any]:
    """Defaults of one model type.

    {"d": field to default, "m": attribute map, "s": sub-configs, "r": theta of standard RoPE or None,
    "n": whether a null number of key-value heads means the number of heads}.
    """
    row = table()["types"].get(model_type, {})
    if isinstance(row, str):  # equal to an earlier type
        row = table()["types"][row]
    letters = table()["fields"]
    plain = {letters[key]: value for key, value in row.items() if key in letters}
    return {"d": plain, "m": row.get("m", {}), "s": row.get("s", {}), "r": row.get("r"), "n": "n" in row}


def model_type_of(config: Mapping[str, Any]) -> str:
    """`model_type` of a config, "" if it has none."""
    value = config.get("model_type")
    return value if isinstance(value, str) else ""


def attribute(config: Mapping[str, Any], name: str, model_type: str | None = None) -> Any:
    """What `config.name` is in transformers 5.5.0: stored, renamed, defaulted or derived; MISSING if there is none.

    model_type: used where the config does not name its own (the text part of a composite model).
    """
    facts = _type(model_type_of(config) or model_type or "")
    default = facts["d"].get(name, MISSING)
    if default == "=always":
        return True
    value = next((config[key] for key in (name, facts["m"].get(name, name)) if key in config), MISSING)
    if value is None and name == "num_key_value_heads" and facts["n"]:
        default = "=heads"
    derived = isinstance(default, str) and default.startswith("=")
    if value is MISSING or (value is None and derived):
        value = default
        if derived:
            return _derive(config, default, model_type)
    return value


def _derive(config: Mapping[str, Any], rule: str, model_type: str | None) -> Any:
    """A field that the class works out: "=heads", "=hidden/heads" (whole part) or "=hidden*2"."""
    heads = attribute(config, "num_attention_heads", model_type)
    if rule == "=heads":
        return heads
    hidden = attribute(config, "hidden_size", model_type)
    if not is_count(hidden):
        return None
    if rule.startswith("=hidden*"):
        return hidden * int(rule.removeprefix("=hidden*"))
    return hidden // heads if is_count(heads) else None


def text_config(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The text part of a composite config and its model type, as the peer picks it; else the config itself.

    Picked only if the config has no hidden_size of its own (or 0): text_config, then decoder, with a hidden_size.
    """
    own = model_type_of(config)
    if is_count(attribute(config, "hidden_size")):
        return config, own
    for key in ("text_config", "decoder"):
        kind = _type(own)["s"].get(key, "")
        sub = config.get(key, {} if kind else None)
        if isinstance(sub, Mapping) and is_count(attribute(sub, "hidden_size", kind)):
            return sub, model_type_of(sub) or kind
    return config, own


def is_count(value: Any) -> bool:
    """A positive whole number (JSON `true` is none)."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def rope_parameters(config: Mapping[str, Any], model_type: str) -> dict[str, Any] | None:
    """The rotary parameters as transformers 5.5.0 holds them, one dictionary; None for a type without any.

    The theta is taken from wherever it is written: rope_parameters, rope_scaling, the top level, the class default.
    Parameters by layer type ({"full_attention": {...}}) are kept as they are written.
    """
    default = _type(model_type)["r"]
    written = config.get("rope_scaling") or config.get("rope_parameters")
    written = dict(written) if isinstance(written, Mapping) else {}
    top = next((config[key] for key in THETA_KEYS if config.get(key) is not None), default)
    if default is None and not written:
        return None
    if written and all(isinstance(value, Mapping) for value in written.values()):
        return written
    written.setdefault("rope_theta", top)
    if config.get("partial_rotary_factor") is not None:
        written.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    written.setdefault("rope_type", written.get("type", "default"))
    return written


def has_standard_rope(model_type: str) -> bool:
    """Whether transformers 5.5.0 moves the rotary base of this type into rope_parameters (and hides `rope_theta`)."""
    return _type(model_type)["r"] is not None


@cache
def _ungrouped(section: str) -> dict[str, str]:
    groups: dict[str, str] = table()["tokenizers"][section]
    return {key: name for name, keys in groups.items() for key in keys.split()}


def tokenizer_class(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Name of the tokenizer class that AutoTokenizer of transformers 5.5.0 would build ("BertTokenizer").

    A class that tokenizer_config.json names and the model type does not expect becomes GENERIC_CLASS, as there.
    """
    model_type = model_type_of(config)
    named = tokenizer_config.get("tokenizer_class")
    expected = _ungrouped("names").get(model_type)
    known: dict[str, Any] = table()["tokenizers"]["special"]
    if isinstance(named, str) and named:
        plain = named.removesuffix("Fast")
        if "auto_map" not in tokenizer_config and expected and expected.removesuffix("Fast") != plain:
            return GENERIC_CLASS
        return plain if plain in known else GENERIC_CLASS
    named = config.get("tokenizer_class")
    if isinstance(named, str) and named:
        plain = named.removesuffix("Fast")
        return plain if plain in known else GENERIC_CLASS
    return _ungrouped("fallback").get(model_type) or expected or GENERIC_CLASS


def assumed_tokens(class_name: str) -> dict[str, str]:
    """Special tokens that a tokenizer class assumes where the files name none: {"unk": "[UNK]", ...}."""
    found: dict[str, str] = table()["tokenizers"]["special"].get(class_name, {})
    return found
