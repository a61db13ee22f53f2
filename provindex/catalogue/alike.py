"""Which models of the catalogue look like a model, by what configs and tokenizers say. Nothing here is evidence.

Models are ranked by the information in what they share: a fact that k of the n models of the catalogue share, of which
it is known, counts log2(n / k) bits. A width that few models have tells more than one that many have, and no weight is
chosen by hand. Facts of one design depend on each other, so bits are an order and no probability.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache

from provindex.catalogue.table import Known, Shape, known, models
from provindex.fingerprint.record import Fingerprint
from provindex.signals.mfi import MfiFeatures
from provindex.signals.tfv import TfvFeatures

FACTS = ("width", "layers", "mlp", "heads", "vocabulary", "merges", "type")
WIDTH = 1  # place of `hidden` in `Shape`
KEPT = ("layers", "vocabulary", "merges")  # of these a descendant of the same width keeps at least one


@dataclass(frozen=True, slots=True)
class Look:
    """What is compared of a model. merges: sha256 of its tokenizer's first 50 merges, "" if it has none."""

    model_id: str
    shape: Shape
    merges: str = ""

    @classmethod
    def of(cls, fp: Fingerprint) -> Look:
        """The look of a fingerprint."""
        facts = fp.facts
        sizes = facts.hidden, facts.layers, facts.vocabulary
        return cls.seen(fp.model_id, facts.architecture, sizes, fp.mfi, fp.tfv)

    @classmethod
    def seen(
        cls, model_id: str, architecture: str, sizes: tuple[int, int, int], said: MfiFeatures, tfv: TfvFeatures | None
    ) -> Look:
        """Width, depth and vocabulary as the weights show them (0: unknown, then as the config says), the rest as it
        says.
        """
        hidden, layers, vocabulary = sizes
        shape = Shape(
            architecture or said.model_type,
            hidden or said.hidden_size,
            layers or said.num_hidden_layers,
            said.intermediate_size,
            said.num_attention_heads,
            said.num_key_value_heads or 0,
            vocabulary or said.vocab_size,
        )
        return cls(model_id, shape, tfv.merge_rule_hash if tfv is not None and tfv.num_merges else "")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A model that may be an ancestor and was not compared.

    known: None if it is claimed and the catalogue has no such model. shared: the facts (of FACTS) in which it equals
    the model that was asked about; bits: what they tell. claims: who claims it as a parent ("card", "config", "gguf",
    "adapter").
    """

    model_id: str
    known: Known | None
    shared: tuple[str, ...] = ()
    bits: float = 0.0
    claims: tuple[str, ...] = ()


def neighbours(
    look: Look, claims: Mapping[str, Sequence[str]] | None = None, without: Sequence[str] = ()
) -> tuple[Neighbour, ...]:
    """Claimed parents, then models that may be ancestors in plain form: the most alike first, of these roots first.

    Such a model has the width of the one that was asked about, and its depth, vocabulary or tokenizer: fine-tuning,
    quantization and pruning keep one of them. claims: who claims each parent, by its id. without: ids that are left
    out; the model's own always is.
    """
    left_out = {name.lower() for name in (*without, look.model_id)}
    found: dict[str, Neighbour] = {}
    for model_id, by in (claims or {}).items():
        found[model_id.lower()] = named(look, model_id, by)
    for one in models().values():
        if may_descend(look, _look(one)) and one.model_id.lower() not in found:
            found[one.model_id.lower()] = _neighbour(look, one.model_id, one, ())
    kept = (neighbour for name, neighbour in found.items() if name not in left_out)
    return tuple(sorted(kept, key=lambda n: (not n.claims, -n.bits, len(_above(n.known)), n.model_id.lower())))


def named(look: Look, model_id: str, claims: Sequence[str] = ()) -> Neighbour:
    """A model that somebody names, in the catalogue or not. claims: who claims it as a parent."""
    one = known(model_id)
    return _neighbour(look, one.model_id if one else model_id, one, tuple(claims))


def may_descend(look: Look, other: Look) -> bool:
    """Whether one may descend from the other in plain form: equal width, and depth, vocabulary or tokenizer."""
    shared = _shared(look, other)
    return "width" in shared and bool(set(shared) & set(KEPT))


def _shared(look: Look, other: Look) -> tuple[str, ...]:
    ours, theirs = _facts(look), _facts(other)
    return tuple(name for name in FACTS if ours[name] and ours[name] == theirs[name])


def _neighbour(look: Look, model_id: str, one: Known | None, claims: tuple[str, ...]) -> Neighbour:
    if one is None:
        return Neighbour(model_id, None, claims=claims)
    shared, values = _shared(look, _look(one)), _facts(look)
    bits = sum(_bits(name, values[name]) for name in shared)
    return Neighbour(model_id, one, shared, bits, claims)


@cache
def _look(one: Known) -> Look:
    """What a model looks like: by its own facts, and where these are silent by those of its nearest ancestors.

    A model keeps the shape of what it was made of, unless it was pruned or grown. That is enough to say which models
    should be compared; no fact is told of it.
    """
    line = (one, *_above(one))
    shapes = [astuple(at.shape) for at in line if at.shape.hidden]
    same = [shape for shape in shapes if shape[WIDTH] == shapes[0][WIDTH]]
    shape = Shape(*(next(filter(None, values), values[0]) for values in zip(*same, strict=True)))
    return Look(one.model_id, shape, next((at.tokenizer.merges for at in line if at.tokenizer.tokens), ""))


def _above(one: Known | None) -> tuple[Known, ...]:
    """The ancestors of a model in the catalogue, nearest first."""
    found: list[Known] = []
    at = known(one.parent) if one and one.parent else None
    while at is not None and at != one and at not in found:
        found.append(at)
        at = known(at.parent) if at.parent else None
    return tuple(found)


def _facts(look: Look) -> dict[str, object]:
    """The value of each fact; falsy where it is not known."""
    shape = look.shape
    heads = (shape.heads, shape.kv_heads or shape.heads) if shape.heads else None
    values = (shape.hidden, shape.layers, shape.intermediate, heads, shape.vocabulary, look.merges, shape.model_type)
    return dict(zip(FACTS, values, strict=True))


@cache
def _counts() -> Mapping[str, Counter[object]]:
    """How many models of the catalogue have each value of each fact; of those of which it is known."""
    counts: dict[str, Counter[object]] = {name: Counter() for name in FACTS}
    for one in models().values():
        for name, value in _facts(_look(one)).items():
            if value:
                counts[name][value] += 1
    return counts


def _bits(fact: str, value: object) -> float:
    counts = _counts()[fact]
    return math.log2(counts.total() / counts[value])
