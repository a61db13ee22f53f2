"""Context features of rows that others made, as JSON that nobody vouches for: every field of the type it must have.

`MfiFeatures.from_json` and `TfvFeatures.from_json` take fields as they are, ours or the peer's, and comparisons rely on
their types; what they get from a file goes through here first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from provindex.signals.mfi import MfiFeatures
from provindex.signals.tfv import TfvFeatures

MAX_LAYERS = 1 << 12
Check = Callable[[Any], bool]


def mfi_of(found: Mapping[str, Any]) -> MfiFeatures:
    """MFI features from their 26 fields; ValueError, in a clause, if one is missing or of another type."""
    return MfiFeatures.from_json(_checked(found, _MFI, "mfi"))


def tfv_of(found: Mapping[str, Any]) -> TfvFeatures:
    """TFV features from the peer's 17 fields, and a digest of all merges if there is one; ValueError as in `mfi_of`."""
    merges = found.get("all_merges_hash")
    return TfvFeatures.from_json(_checked(found, _TFV, "tfv") | {"all_merges_hash": merges if is_text(merges) else ""})


def _checked(found: Mapping[str, Any], table: Mapping[str, Check], what: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"its {what} is no object")
    for name, check in table.items():
        if name not in found or not check(found[name]):
            raise ValueError(f"its {what} has no {name} that can be used")
    return {name: found[name] for name in table}


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_depth(value: Any) -> bool:
    return is_count(value) and value <= MAX_LAYERS


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e30


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check, most: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def _object_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and len(value) <= 64 and all(map(check, value.values()))


def _is_scalar(value: Any) -> bool:
    return (
        value is None or isinstance(value, bool | float) or is_text(value) or (isinstance(value, int) and _fits(value))
    )


def _fits(value: int) -> bool:
    return abs(value) < 1 << 63


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


_FACTORS = _either(_is_scalar, _list_of(_is_scalar, 1024))
_MFI: Mapping[str, Check] = {
    "model_type": is_text, "architectures": _maybe(_list_of(is_text, 64)), "hidden_size": is_count,
    "num_hidden_layers": _is_depth, "num_attention_heads": is_count, "num_key_value_heads": _maybe(is_count),
    "intermediate_size": is_count, "vocab_size": is_count, "max_position_embeddings": is_count,
    "hidden_act": _maybe(is_text), "rope_theta": _maybe(_is_number),
    "rope_scaling": _maybe(_object_of(_either(_FACTORS, _object_of(_FACTORS)))),  # by layer type or not
    "tie_word_embeddings": _maybe(_is_flag), "bos_token_id": _maybe(is_count), "eos_token_id": _maybe(is_count),
    "gqa_ratio": _is_number, "attention_style": is_text, "norm_type": is_text, "attention_bias": _maybe(_is_flag),
    "qk_norm": _is_flag, "pos_encoding": is_text, "head_dim": _maybe(is_count), "tokenizer_hash": is_text,
    "token_id_signature": is_text, "arch_hash": is_text, "family_hash": is_text,
}  # fmt: skip
_TFV: Mapping[str, Check] = {
    "vocab_size": is_count, "tokenizer_class": is_text, "bos_token_id": _maybe(is_count),
    "eos_token_id": _maybe(is_count), "pad_token_id": _maybe(is_count), "num_added_tokens": _maybe(is_count),
    "num_special_tokens": _maybe(is_count), "num_merges": is_count, "first_5_merges": _list_of(is_text, 5),
    "merge_rule_hash": is_text, "special_token_ids": _object_of(_maybe(is_count)),
    "pct_single_char": _maybe(_is_number), "avg_token_length": _is_number, "max_token_length": _maybe(is_count),
    "pct_whitespace_prefix": _is_number, "pct_byte_tokens": _is_number, "script_distribution": _object_of(_is_number),
}  # fmt: skip
