"""TFV, tokenizer feature vector: how alike are two tokenizers in build, merges and special tokens? Reported only.

Definition (Cisco model-provenance-kit 1.0.0, reimplemented from its behavior): eleven parts with fixed weights, summed
and rounded to 4 decimals. Range: [0, 1], but a tokenizer without merges scores at most 0.925 with itself, because the
peer gives half of the last part when both merge lists are empty: `largest_self_score` is what to read a value against.
Chance level: unrelated models share tokenizers all the time, so the value says nothing of weights.
Absent: a side without a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from provindex.common.bounded_json import compact
from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Column, Panel, Signal, field
from provindex.signals.checks import Check, checked, is_count, is_number, is_text, list_of, maybe, object_of
from provindex.signals.scripts import shares

if TYPE_CHECKING:
    from provindex.common.tokens import Tokenizer

# Part, its weight; the sum is 1.
WEIGHTS = {
    "tokenizer_class": 0.10, "vocab_size": 0.10, "bos": 0.04, "eos": 0.04, "avg_token_length": 0.07,
    "whitespace_prefix": 0.05, "script_distribution": 0.10, "byte_tokens": 0.05, "num_merges": 0.05,
    "first_merges": 0.15, "special_tokens": 0.10, "all_merges": 0.15,
}  # fmt: skip
WORD_STARTS = ("\u2581", "\u0120", " ")  # SentencePiece's, byte-level BPE's, a plain space
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
FIRST_MERGES = 50
MAX_TEXT = 4096  # characters of a merge, in a row
# Names that say which library holds the tokenizer, not which tokenizer it is; they changed with transformers 5.
GENERIC = frozenset({"TokenizersBackend", "PreTrainedTokenizer", "SentencePieceBackend", "PythonBackend"})


@dataclass(frozen=True, slots=True)
class TfvFeatures:
    """The peer's fields, with a digest in place of the text of all merges.

    merge_rule_hash: sha256 of the first 50 merges, one a line. all_merges_hash: the same of all merges; "" when there
    are none, or (rows that the peer made) when they are not known. script_distribution: share by script.
    """

    vocab_size: int
    tokenizer_class: str
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    num_added_tokens: int | None
    num_special_tokens: int | None
    num_merges: int
    first_5_merges: tuple[str, ...]
    merge_rule_hash: str
    all_merges_hash: str
    special_token_ids: Mapping[str, int | None]
    pct_single_char: float | None
    avg_token_length: float
    max_token_length: int | None
    pct_whitespace_prefix: float
    pct_byte_tokens: float
    script_distribution: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """A flat dictionary of plain JSON values, with the peer's keys."""
        return asdict(self) | {"first_5_merges": list(self.first_5_merges)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TfvFeatures:
        """The reverse of `to_json`; also takes the peer's own rows, which have no digest of all merges."""
        known: dict[str, Any] = {field.name: values.get(field.name) for field in fields(cls)}
        known["first_5_merges"] = tuple(values.get("first_5_merges") or ())
        known["all_merges_hash"] = values.get("all_merges_hash") or ""
        return cls(**known)


def extract(tokenizer: Tokenizer) -> TfvFeatures:
    """The features of one tokenizer; its vocabulary is never empty."""
    tokens, merges, special = list(tokenizer.vocab), tokenizer.merges, tokenizer.special
    lengths = list(map(len, tokens))
    count = len(tokens)

    def share(hits: int) -> float:
        return round(hits / count, 4)

    return TfvFeatures(
        vocab_size=count,
        tokenizer_class=tokenizer.class_name,
        bos_token_id=special.get("bos"),
        eos_token_id=special.get("eos"),
        pad_token_id=special.get("pad"),
        num_added_tokens=tokenizer.added,
        num_special_tokens=tokenizer.special_count,
        num_merges=len(merges),
        first_5_merges=tuple(merge[:MAX_TEXT] for merge in merges[:5]),
        merge_rule_hash=_lines_sha256(merges[:FIRST_MERGES]),
        all_merges_hash=_lines_sha256(merges) if merges else "",
        special_token_ids={key: special.get(key) for key in ("pad", "unk", "mask")},
        pct_single_char=share(lengths.count(1)),
        avg_token_length=round(sum(lengths) / count, 2),
        max_token_length=max(lengths),
        pct_whitespace_prefix=share(sum([token.startswith(WORD_STARTS) for token in tokens])),
        pct_byte_tokens=share(sum(map(bool, map(BYTE_PIECE.fullmatch, tokens)))),
        script_distribution=shares(tokens),
    )


def compare(a: TfvFeatures | None, b: TfvFeatures | None) -> Score:
    """TFV of two tokenizers. n: parts compared (always all of them)."""
    if a is None or b is None:
        return Score.absent(Reason.of(Code.SIDE_NO_TOKENIZER, side="first" if a is None else "second"))
    values = parts(a, b)
    return Score(round(sum(WEIGHTS[name] * value for name, value in values.items()), 4), len(values))


def largest_self_score(features: TfvFeatures) -> float:
    """What this tokenizer scores with itself, the most that any can score with it: 1.0 with merges, 0.925 without."""
    return float(sum(WEIGHTS[name] * value for name, value in parts(features, features).items()).__round__(4))


def parts(a: TfvFeatures, b: TfvFeatures) -> dict[str, float]:
    """Agreement of each part, in [0, 1]."""
    return {
        "tokenizer_class": float(class_stem(a.tokenizer_class) == class_stem(b.tokenizer_class)),
        "vocab_size": _ratio(a.vocab_size, b.vocab_size),
        "bos": float(a.bos_token_id == b.bos_token_id),
        "eos": float(a.eos_token_id == b.eos_token_id),
        "avg_token_length": _ratio(a.avg_token_length, b.avg_token_length),
        "whitespace_prefix": 1.0 - abs(a.pct_whitespace_prefix - b.pct_whitespace_prefix),
        "script_distribution": _cosine(a.script_distribution, b.script_distribution),
        "byte_tokens": float((a.pct_byte_tokens > 0) == (b.pct_byte_tokens > 0)),
        "num_merges": _ratio(a.num_merges, b.num_merges) if a.num_merges or b.num_merges else 1.0,
        "first_merges": float(a.merge_rule_hash == b.merge_rule_hash),
        "special_tokens": _special_agreement(a.special_token_ids, b.special_token_ids),
        "all_merges": float(a.all_merges_hash == b.all_merges_hash) if a.all_merges_hash or b.all_merges_hash else 0.5,
    }


def class_stem(name: str) -> str:
    """A class name without what only says how it is run: "GemmaTokenizerFast" and "GemmaTokenizer" are one.

    >>> class_stem("GemmaTokenizerFast"), class_stem("PreTrainedTokenizerFast") == class_stem("TokenizersBackend")
    ('GemmaTokenizer', True)
    """
    stem = name.removesuffix("Fast")
    return "generic" if stem in GENERIC else stem


def _lines_sha256(lines: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _ratio(a: float, b: float) -> float:
    """1 - |a - b| / max(a, b); 0 when both are 0, as the peer has it for vocabularies."""
    return 1.0 - abs(a - b) / max(a, b) if max(a, b) > 0 else 0.0


def _cosine(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Cosine of two script distributions; 0 when either is empty."""
    norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(share * b.get(label, 0.0) for label, share in a.items()) / norms if norms > 1e-8 else 0.0


def _special_agreement(a: Mapping[str, int | None], b: Mapping[str, int | None]) -> float:
    """Equal ids among pad, unk and mask; a token that only one side has is left out; none left gives half."""
    pairs = [(a.get(key), b.get(key)) for key in ("pad", "unk", "mask")]
    usable = [left == right for left, right in pairs if (left is None) == (right is None)]
    return sum(usable) / len(usable) if usable else 0.5


# --- features that strangers wrote, and the table row ---

FIELDS: Mapping[str, Check] = {
    "vocab_size": is_count, "tokenizer_class": is_text, "bos_token_id": maybe(is_count),
    "eos_token_id": maybe(is_count), "pad_token_id": maybe(is_count), "num_added_tokens": maybe(is_count),
    "num_special_tokens": maybe(is_count), "num_merges": is_count, "first_5_merges": list_of(is_text, 5),
    "merge_rule_hash": is_text, "special_token_ids": object_of(maybe(is_count)),
    "pct_single_char": maybe(is_number), "avg_token_length": is_number, "max_token_length": maybe(is_count),
    "pct_whitespace_prefix": is_number, "pct_byte_tokens": is_number, "script_distribution": object_of(is_number),
}  # fmt: skip


def tfv_of(found: Mapping[str, Any]) -> TfvFeatures:
    """TFV features from the peer's 17 fields, and a digest of all merges if there is one; ValueError as in `mfi_of`."""
    merges = found.get("all_merges_hash") if isinstance(found, Mapping) else None
    digest = merges if is_text(merges) else ""
    return TfvFeatures.from_json(checked(found, FIELDS, "tfv") | {"all_merges_hash": digest})


PANEL = Panel(
    "tfv",
    (Column("tfv", "string", "models", True, "TFV features, JSON; null without a tokenizer", nullable=True),),
    to_row=lambda features: {"tfv": compact(features.to_json())},
    from_row=lambda row: tfv_of(json.loads(row["tfv"])) if row["tfv"] else None,
    extract=lambda w: extract(w.tokenizer) if w.tokenizer is not None else None,
)
SIGNAL = Signal("TFV", field("tfv"), compare, (PANEL,), order=6)
