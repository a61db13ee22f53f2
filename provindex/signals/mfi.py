"""MFI, metadata family identification: do two configs and tokenizers describe one design? Reported, never decisive.

Definition (Cisco model-provenance-kit 1.0.0, reimplemented from its behavior). Tier 1, 1.0: equal `arch_hash`. Tier 2,
0.9: equal family, width and depth. Tier 3: the weighted share of eleven features that agree, rounded to 4 decimals.
Range: [0, 1]. Chance level: two unrelated models of one popular design score 1.0, so the value says nothing of weights.
Absent: a side without a config.

What differs from the peer: it reads `rope_theta` only at the config's top level, where transformers 5 no longer keeps
it, so that RoPE models look absolute to it, and its family hash reads the rotary `type` under its old name. Here theta
and type are taken from wherever they are written, in rows of either kind; `peer_exact=True` compares as the peer does.
The 26 fields keep the peer's values (transformers 5.5.0), so its rows load as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from provindex.common.bounded_json import compact
from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Column, Panel, Signal, field
from provindex.roles import config_defaults as defaults
from provindex.signals.checks import (
    FACTORS,
    Check,
    checked,
    either,
    is_count,
    is_depth,
    is_flag,
    is_number,
    is_text,
    list_of,
    maybe,
    object_of,
)

if TYPE_CHECKING:
    from provindex.common.tokens import Tokenizer

# Tier 3: part, its weight.
WEIGHTS = {
    "token_ids": 2.0, "hidden_size": 1.8, "qk_norm": 1.5, "num_hidden_layers": 1.5, "vocab_size": 1.5,
    "attention_style": 1.5, "rope_theta": 1.2, "norm_type": 0.5, "pos_encoding": 0.4, "attention_bias": 0.4,
    "model_type": 0.1,
}  # fmt: skip
SAME_SIZE = 0.90  # widths and depths at least this close count in full
INTERMEDIATE = ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim")
MAX_TEXT, MAX_LAYERS, MAX_ENTRIES, MAX_FACTORS = 4096, 1 << 12, 64, 1024  # as in a row: what says more is left out
TIER_ONE_FIELDS = 9
TIER_TWO_FIELDS = 9


@dataclass(frozen=True, slots=True)
class MfiFeatures:
    """The peer's 26 fields. `tokenizer_hash` is "" without a tokenizer; then bos and eos say nothing."""

    model_type: str
    architectures: tuple[str, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    hidden_act: str | None
    rope_theta: float | None
    rope_scaling: Mapping[str, Any] | None
    tie_word_embeddings: bool | None
    bos_token_id: int | None
    eos_token_id: int | None
    gqa_ratio: float
    attention_style: str
    norm_type: str
    attention_bias: bool | None
    qk_norm: bool
    pos_encoding: str
    head_dim: int | None
    tokenizer_hash: str
    token_id_signature: str
    arch_hash: str
    family_hash: str

    def to_json(self) -> dict[str, Any]:
        """A flat dictionary of plain JSON values, with the peer's keys."""
        return asdict(self) | {"architectures": list(self.architectures)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MfiFeatures:
        """The reverse of `to_json`; also takes the peer's own rows. KeyError when a field is missing."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**(known | {"architectures": tuple(values["architectures"] or ())}))


@dataclass(frozen=True, slots=True)
class MfiComparison:
    """score: with `n` the number of fields or parts compared. tier: 1, 2, 3, or None when absent.

    parts: agreement in [0, 1] of each tier 3 part, None where it could not be compared; empty in tiers 1 and 2.
    """

    score: Score
    tier: int | None
    parts: Mapping[str, float | None]


def extract(config: Mapping[str, Any], tokenizer: Tokenizer | None) -> MfiFeatures:
    """The 26 fields of one model, from config.json ({} if there is none) and its tokenizer (None if there is none)."""
    text, kind = defaults.text_config(config)

    def get(name: str) -> Any:
        value = defaults.attribute(text, name, kind)
        return None if value is defaults.MISSING else value

    heads, kv = _count(get("num_attention_heads")), _optional_count(get("num_key_value_heads"))
    ids = tokenizer.special if tokenizer else {}
    theta, scaling = _peer_rope(text, kind)
    plain: dict[str, Any] = {
        "model_type": _text(defaults.model_type_of(config)) or "unknown",
        "architectures": _architectures(config),
        "hidden_size": _count(get("hidden_size")),
        "num_hidden_layers": layers if (layers := _count(get("num_hidden_layers"))) <= MAX_LAYERS else 0,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": _intermediate(text, kind),
        "vocab_size": _count(get("vocab_size")),
        "max_position_embeddings": _count(get("max_position_embeddings")),
        "hidden_act": _hidden_act(text, kind),
        "rope_theta": theta,
        "rope_scaling": scaling if scaling is None else _usable_entries(scaling),
        "tie_word_embeddings": _flag(get("tie_word_embeddings")),
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ids.get("eos"),
        "gqa_ratio": round((heads or 1) / kv, 1) if kv else 1.0,
        "attention_style": "MHA" if kv is None or kv == (heads or 1) else "MQA" if kv == 1 else "GQA",
        "norm_type": _norm_type(text, kind),
        "attention_bias": _flag(get("attention_bias") if get("attention_bias") is not None else get("bias")),
        "qk_norm": bool(get("qk_layernorm") or get("qk_norm") or get("query_pre_attn_scalar") is not None),
        "pos_encoding": "RoPE" if theta is not None else _text(get("position_embedding_type")) or "absolute",
        "head_dim": _optional_count(get("head_dim")),
        "tokenizer_hash": tokenizer.backend_sha256 if tokenizer else "",
        "token_id_signature": f"bos={ids.get('bos')}|eos={ids.get('eos')}",
    }
    return MfiFeatures(**plain, arch_hash=_arch_hash(plain), family_hash=_family_hash(plain))


def compare(a: MfiFeatures | None, b: MfiFeatures | None, *, peer_exact: bool = False) -> MfiComparison:
    """MFI of two models. peer_exact: rotary facts only where the peer looks for them, families by the stored hash."""
    for features, side in ((a, "first"), (b, "second")):
        if features is None or not (features.hidden_size or features.num_hidden_layers):
            return MfiComparison(Score.absent(Reason.of(Code.SIDE_NO_SIZE, side=side)), None, {})
    assert a is not None and b is not None  # both went through the loop
    if a.arch_hash and a.arch_hash == b.arch_hash:
        return MfiComparison(Score(1.0, TIER_ONE_FIELDS), 1, {})
    same_size = (a.hidden_size, a.num_hidden_layers) == (b.hidden_size, b.num_hidden_layers)
    if same_size and _same_family(a, b, peer_exact):
        return MfiComparison(Score(0.9, TIER_TWO_FIELDS), 2, {})
    parts = _parts(a, b, peer_exact)
    known = {name: value for name, value in parts.items() if value is not None}
    total = sum(WEIGHTS[name] for name in known)
    value = sum(WEIGHTS[name] * part for name, part in known.items()) / total
    return MfiComparison(Score(round(value, 4), len(known)), 3, parts)


def rotary(features: MfiFeatures) -> tuple[float | None, str]:
    """The rotary base and type of a row, wherever it keeps them; (None, "none") for a model without RoPE.

    With parameters by layer type, the base is the full-attention layers' (else the largest), the types are joined.
    """
    scaling = features.rope_scaling or {}
    groups = [value for value in scaling.values() if isinstance(value, Mapping)]
    if groups:
        bases = [base for group in groups if (base := _number(group.get("rope_theta"))) is not None]
        full = scaling.get("full_attention", {})
        full = full if isinstance(full, Mapping) else {}
        base = _number(full.get("rope_theta")) or max(bases, default=_number(scaling.get("rope_theta")))
        kinds = "+".join(sorted({str(group.get("rope_type", group.get("type", "default"))) for group in groups}))
        return base, kinds if base is not None else "none"
    base = _number(features.rope_theta) or _number(scaling.get("rope_theta"))
    if base is None:
        return None, "none"
    return base, str(scaling.get("rope_type", scaling.get("type", "default")))


def _same_family(a: MfiFeatures, b: MfiFeatures, peer_exact: bool) -> bool:
    if peer_exact:
        return bool(a.family_hash) and a.family_hash == b.family_hash
    if not a.tokenizer_hash:  # unknown is not equal to unknown
        return False
    names = ("model_type", "attention_style", "hidden_act", "norm_type", "tokenizer_hash")
    if any(getattr(a, name) != getattr(b, name) for name in names):
        return False
    (base_a, kind_a), (base_b, kind_b) = rotary(a), rotary(b)
    bucket_a, bucket_b = (None if base is None else round(base, -2) for base in (base_a, base_b))
    return (bucket_a, kind_a) == (bucket_b, kind_b)


def _parts(a: MfiFeatures, b: MfiFeatures, peer_exact: bool) -> dict[str, float | None]:
    """Agreement of each tier 3 part."""
    theta_a, theta_b = (row.rope_theta if peer_exact else rotary(row)[0] for row in (a, b))
    position_a, position_b = (row.pos_encoding if peer_exact or rotary(row)[0] is None else "RoPE" for row in (a, b))
    ids = ((a.bos_token_id == b.bos_token_id) + (a.eos_token_id == b.eos_token_id)) / 2
    return {
        "token_ids": ids if a.tokenizer_hash and b.tokenizer_hash else None,
        "hidden_size": _same_size(a.hidden_size, b.hidden_size),
        "qk_norm": float(a.qk_norm == b.qk_norm),
        "num_hidden_layers": _same_size(a.num_hidden_layers, b.num_hidden_layers),
        "vocab_size": ratio(a.vocab_size, b.vocab_size) if a.vocab_size and b.vocab_size else None,
        "attention_style": float(a.attention_style == b.attention_style),
        "rope_theta": ratio(theta_a, theta_b) if theta_a and theta_b else float(theta_a is None and theta_b is None),
        "norm_type": float(a.norm_type == b.norm_type),
        "pos_encoding": float(position_a == position_b),
        "attention_bias": float(a.attention_bias == b.attention_bias),
        "model_type": float(a.model_type == b.model_type),
    }


def ratio(a: float, b: float) -> float:
    """1 - |a - b| / max(a, b), for two positive numbers."""
    return 1.0 - abs(a - b) / max(a, b)


def _same_size(a: int, b: int) -> float | None:
    return float(ratio(a, b) >= SAME_SIZE) if a > 0 and b > 0 else None


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("architectures")
    return tuple(str(name)[:MAX_TEXT] for name in names[:MAX_ENTRIES]) if isinstance(names, list) else ()


def _count(value: Any) -> int:
    return _optional_count(value) or 0


def _optional_count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def _usable_entries(scaling: Mapping[str, Any], depth: int = 1) -> dict[str, Any]:
    """Rotary parameters, plain or by layer type, as far as a row can hold them."""
    kept: dict[str, Any] = {}
    for name, value in scaling.items():
        if isinstance(value, dict) and depth:
            kept[name] = _usable_entries(value, depth - 1)
        elif _is_scalar(value) or (
            isinstance(value, list) and len(value) <= MAX_FACTORS and all(map(_is_scalar, value))
        ):
            kept[name] = value
        if len(kept) == MAX_ENTRIES:
            break
    return kept


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return value is None or isinstance(value, float) or _text(value) is not None


def _number(value: Any) -> float | None:
    """A positive finite number, as it was written (int or float): the family hash sees the difference."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
    return value if usable and math.isfinite(value) else None


def _intermediate(text: Mapping[str, Any], kind: str) -> int:
    """Width of the MLP: the first of the known names; `hidden_dim` only where it is not the hidden size."""
    for name in INTERMEDIATE:
        if value := _optional_count(defaults.attribute(text, name, kind)):
            return value
    other = _count(defaults.attribute(text, "hidden_dim", kind))
    return other if other != _count(defaults.attribute(text, "hidden_size", kind)) else 0


def _hidden_act(text: Mapping[str, Any], kind: str) -> str | None:
    for name in ("hidden_act", "hidden_activation"):
        value = defaults.attribute(text, name, kind)
        if value is not defaults.MISSING:  # a null is an answer, as it is for the peer
            return _text(value)
    return None


def _norm_type(text: Mapping[str, Any], kind: str) -> str:
    """By which epsilon the config has."""
    for label, names in (
        ("RMSNorm", ("rms_norm_eps", "rms_norm_epsilon")),
        ("LayerNorm", ("layer_norm_eps", "layer_norm_epsilon")),
    ):
        if any(defaults.attribute(text, name, kind) is not defaults.MISSING for name in names):
            return label
    return "unknown"


def _peer_rope(text: Mapping[str, Any], kind: str) -> tuple[float | None, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) as attributes in transformers 5.5.0: theta is inside the second where both exist."""
    scaling = defaults.rope_parameters(text, kind)
    written = _number(text.get("rope_theta"))
    if defaults.has_standard_rope(kind) or (scaling and written is not None):
        return None, scaling
    return written, scaling


def _arch_hash(plain: Mapping[str, Any]) -> str:
    """Tier 1 key, as the peer builds it."""
    names = (
        "model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
    )  # fmt: skip
    return _sha256([plain[name] for name in names])


def _family_hash(plain: Mapping[str, Any]) -> str:
    """Tier 2 key, as the peer builds it; equal to the peer's wherever its tokenizer's backend is the file's own."""
    theta, scaling = plain["rope_theta"], plain["rope_scaling"] or {}
    bucket = "none" if theta is None else str(round(theta, -2))
    names = ("model_type", "attention_style", "hidden_act", "norm_type", "tokenizer_hash")
    return _sha256([*(plain[name] for name in names), bucket, str(scaling.get("type", "none"))])


def _sha256(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# --- features that strangers wrote, and the table row ---

FIELDS: Mapping[str, Check] = {
    "model_type": is_text, "architectures": maybe(list_of(is_text, 64)), "hidden_size": is_count,
    "num_hidden_layers": is_depth, "num_attention_heads": is_count, "num_key_value_heads": maybe(is_count),
    "intermediate_size": is_count, "vocab_size": is_count, "max_position_embeddings": is_count,
    "hidden_act": maybe(is_text), "rope_theta": maybe(is_number),
    "rope_scaling": maybe(object_of(either(FACTORS, object_of(FACTORS)))),  # by layer type or not
    "tie_word_embeddings": maybe(is_flag), "bos_token_id": maybe(is_count), "eos_token_id": maybe(is_count),
    "gqa_ratio": is_number, "attention_style": is_text, "norm_type": is_text, "attention_bias": maybe(is_flag),
    "qk_norm": is_flag, "pos_encoding": is_text, "head_dim": maybe(is_count), "tokenizer_hash": is_text,
    "token_id_signature": is_text, "arch_hash": is_text, "family_hash": is_text,
}  # fmt: skip


def mfi_of(found: Mapping[str, Any]) -> MfiFeatures:
    """MFI features from their 26 fields; ValueError, in a clause, if one is missing or of another type."""
    return MfiFeatures.from_json(checked(found, FIELDS, "mfi"))


PANEL = Panel(
    "mfi",
    (Column("mfi", "string", "models", True, "MFI features, JSON"),),
    to_row=lambda features: {"mfi": compact(features.to_json())},
    from_row=lambda row: mfi_of(json.loads(row["mfi"])),
    extract=lambda w: extract(w.config, w.tokenizer),
    first=True,
)
SIGNAL = Signal("MFI", field("mfi"), lambda a, b: compare(a, b).score, (PANEL,), order=7)
