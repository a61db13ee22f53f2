"""The peer-compatible pipeline score: eight signals in one number, combined as the peer combines them.

Reported so that its published scores can be reproduced and compared with; never a verdict (two models with
one config and independent weights score 1.0 here). Definition: identity = weighted mean of EAS, NLF, LEP,
END, WVC with the missing ones dropped and the other weights rescaled; tokenizer = .25 TFV + .75 VOA, which
does not enter the pipeline score. The pipeline score is the MFI score in tiers 1 and 2, else identity, else
(no weight signal at all) the MFI score.
Range: [0, 1]. Chance level of identity: .50 to .71 (independent models of one config), so "Weak Match"
happens by chance.
Absent: no weight signal and no MFI.
Source: Cisco model-provenance-kit 1.0.0, reimplemented from its definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from provindex.common.score import Score

IDENTITY_WEIGHTS = {"EAS": 0.36, "NLF": 0.08, "LEP": 0.16, "END": 0.19, "WVC": 0.21}
TOKENIZER_WEIGHTS = {"TFV": 0.25, "VOA": 0.75}
SIGNALS = ("MFI", *TOKENIZER_WEIGHTS, *IDENTITY_WEIGHTS)
GATE_TIERS = (1, 2)
THRESHOLDS = ((0.75, "High-Confidence Match"), (0.65, "Weak Match"), (float("-inf"), "Not Matched"))
NO_DATA = "Insufficient data"


@dataclass(frozen=True, slots=True)
class PipelineScore:
    """The peer-compatible score of a pair.

    value: in [0, 1], or None when nothing could be computed. label: the peer's interpretation of value
    ("High-Confidence Match" above .75, "Weak Match" above .65, else "Not Matched"; "Insufficient data" for
    None). decision: the peer's decision, which differs from label for "Confirmed Match" and "... (metadata
    only)". basis: what value is made of. identity and tokenizer: their scores, None when absent. mfi_tier: 1,
    2, 3 or None. missing: the signals that were absent.
    """

    value: float | None
    label: str
    decision: str
    basis: Literal["mfi gate", "identity", "metadata only", "none"]
    identity: float | None
    tokenizer: float | None
    mfi_tier: int | None
    missing: tuple[str, ...]


def score(signals: Mapping[str, Score], mfi_tier: int | None) -> PipelineScore:
    """Combine the signals of a pair, by name ("MFI", "TFV", "VOA", "EAS", "NLF", "LEP", "END", "WVC"; an
    absent key is missing).

    mfi_tier: 1, 2 or 3, or None when MFI could not be computed (then the gate is not applied).
    """
    values = {name: signals[name].value if name in signals else None for name in SIGNALS}
    identity = identity_score(values)
    value, basis = _gate(identity, values["MFI"], mfi_tier)
    label = interpret(value)
    decisions = {"mfi gate": "Confirmed Match", "metadata only": f"{label} (metadata only)"}
    return PipelineScore(
        value=value,
        label=label,
        decision=decisions.get(basis, label),
        basis=basis,
        identity=identity,
        tokenizer=tokenizer_score(values["TFV"], values["VOA"]),
        mfi_tier=mfi_tier,
        missing=tuple(name for name in SIGNALS if values[name] is None),
    )


def identity_score(values: Mapping[str, float | None]) -> float | None:
    """Weighted mean of the present weight signals, to 4 decimals; None when all five are missing."""
    present = {name: x for name in IDENTITY_WEIGHTS if (x := values.get(name)) is not None}
    total = sum(IDENTITY_WEIGHTS[name] for name in present)
    return round(sum(IDENTITY_WEIGHTS[name] / total * x for name, x in present.items()), 4) if present else None


def tokenizer_score(tfv: float | None, voa: float | None) -> float | None:
    """.25 TFV + .75 VOA, to 4 decimals; None when either is missing."""
    if tfv is None or voa is None:
        return None
    return round(TOKENIZER_WEIGHTS["TFV"] * tfv + TOKENIZER_WEIGHTS["VOA"] * voa, 4)


def interpret(value: float | None) -> str:
    """The peer's label of a pipeline score; thresholds are strict."""
    return NO_DATA if value is None else next(label for above, label in THRESHOLDS if value > above)


def _gate(
    identity: float | None, mfi: float | None, tier: int | None
) -> tuple[float | None, Literal["mfi gate", "identity", "metadata only", "none"]]:
    if tier in GATE_TIERS and mfi is not None:
        return mfi, "mfi gate"
    if identity is not None:
        return identity, "identity"
    return mfi, "none" if mfi is None else "metadata only"
