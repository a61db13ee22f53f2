"""The five weight signals by provindex's formulas, with the peer's rules for what is read switched on and off
one by one.

With every rule as the peer's (`Rules()`), only arithmetic can differ. Where `provindex compare` differs from
the peer, the smallest set of switched rules that gives provindex's number is the explanation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from provindex.common.score import Score
from provindex.common.tensor import Tensor
from provindex.common.tokens import Tokenizer
from provindex.models.source import open_model
from provindex.models.tokenizer import read_tokenizer
from provindex.roles.names import Placement, resolve
from provindex.signals import eas, end, lep, nlf, wvc
from provindex.signals.anchors import peer_anchors

LAYER = re.compile(r"(?:layers?|h|block)\.\s*(\d+)\.")
CHANGES = {
    "order": "order: the peer joins tensors as they lie in the file, provindex by sorted name, heads last",
    "names": "names: the peer goes by stored names and any tensor, provindex leaves out prefixes and buffers",
    "towers": "towers: the peer gives encoder and decoder layers one index, provindex keeps them apart",
    "experts": "experts: the peer samples every expert, a fingerprint keeps four a layer",
    "tokenizer": "tokenizer: the peer rebuilds the tokenizer under the class of the model type, so its anchors differ",
    "embedding": "embedding: the peer takes the first known name, provindex the tensor with that role",
}


@dataclass(frozen=True)
class Rules:
    """Which of CHANGES are made; none of them is the peer."""

    changed: frozenset[str] = frozenset()

    def __contains__(self, change: str) -> bool:
        return change in self.changed

    @classmethod
    def subsets(cls) -> Iterator[Rules]:
        """Every set of changes, small ones first."""
        for size in range(len(CHANGES) + 1):
            for changed in combinations(CHANGES, size):
                yield cls(frozenset(changed))


@dataclass(frozen=True)
class Fact:
    """What the signals need of one tensor; energy None for vectors, samples None if its name is no
    projection.
    """

    place: Placement
    shape: tuple[int, ...]
    position: int
    energy: float | None
    samples: np.ndarray[Any, Any] | None
    vector: np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class Reading:
    """A model read once: its tensors' facts, and (EAS, END) by (embedding rule, tokenizer rule)."""

    facts: tuple[Fact, ...]
    main: str
    experts_kept: frozenset[str]
    embeddings: dict[tuple[bool, bool], tuple[Any, Any]]


def read(folder: Path, anchors: Sequence[int], embedding: str | None, experts_kept: frozenset[str]) -> Reading:
    """Read a folder. anchors, embedding: the peer's choices. experts_kept: names of the projections in the
    fingerprint.
    """
    model = open_model(str(folder))
    layout = resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
    order = {name: i for i, name in enumerate(file_order(folder))}
    by_role = next((p.name for p in layout.placements.values() if any(part.role == "embed" for part in p.parts)), None)
    words = read_tokenizer(model.tokenizer_files, model.config)
    own = (words.first_id, words.vocab) if isinstance(words, Tokenizer) else (None, None)
    embeddings = {
        (rule, again): _embedding(model.tensors[name], again and own, anchors) if name else (None, None)
        for rule, name in ((False, embedding), (True, by_role))
        for again in (False, True)
    }
    return Reading(
        facts=tuple(_fact(layout.placements[n], t, order[n]) for n, t in model.tensors.items()),
        main=layout.main,
        experts_kept=experts_kept,
        embeddings=embeddings,
    )


def file_order(folder: Path) -> list[str]:
    """Tensor names as the peer loads them: shards by name, inside a shard by offset."""
    single = folder / "model.safetensors"
    names: list[str] = []
    for path in [single] if single.exists() else sorted(folder.glob("model-*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        names += sorted(header, key=lambda name: header[name]["data_offsets"][0])
    return names


def _fact(place: Placement, tensor: Tensor, position: int) -> Fact:
    matrix = len(tensor.shape) >= 2
    squares = sum(float(np.square(c, dtype=np.float64).sum()) for c in tensor.chunks()) if matrix else None
    sampled = matrix and (wvc.is_projection(place.name) or wvc.is_projection(place.canonical))
    return Fact(
        place=place,
        shape=tensor.shape,
        position=position,
        energy=None if squares is None else squares**0.5,
        samples=tensor.strided(*wvc.stride(tensor.size)) if sampled else None,
        vector=tensor.flat() if len(tensor.shape) == 1 else None,
    )


def _embedding(tensor: Tensor, own: Any, anchors: Sequence[int]) -> tuple[Any, Any]:
    """EAS and END of an embedding, at the peer's anchors or at those of our tokenizer's (first_id, vocab)."""
    ids = peer_anchors(*own, tensor.shape[0]) if own else anchors
    matrix = eas.extract(tensor.rows(np.asarray(ids, dtype=np.int64)))
    width = tensor.shape[1]
    rows = (chunk.reshape(-1, width) for chunk in tensor.chunks(max(1, (1 << 22) // width) * width))
    norms = [np.sqrt(np.square(block, dtype=np.float64).sum(axis=1)).astype(np.float32) for block in rows]
    return matrix, None if matrix is None else end.extract(np.concatenate(norms))


def compare(signal: str, a: Reading, b: Reading, rules: Rules) -> Score:
    """One signal of a pair under a set of rules."""
    if signal in ("EAS", "END"):
        first, second = (r.embeddings["embedding" in rules, "tokenizer" in rules][signal == "END"] for r in (a, b))
        return (eas if signal == "EAS" else end).compare(first, second)
    if signal == "NLF":
        return nlf.compare(_norms(a, rules), _norms(b, rules))
    if signal == "LEP":
        return lep.compare(_energies(a, rules), _energies(b, rules))
    return wvc.compare(_samples(a, rules), _samples(b, rules))


def _key(fact: Fact, rules: Rules) -> str:
    """A sort key that stands for the tensor's name."""
    return fact.place.canonical if "order" in rules else f"{fact.position:09d}"


def _name(fact: Fact, rules: Rules) -> str:
    return fact.place.canonical if "names" in rules else fact.place.name


def _read(reading: Reading, rules: Rules) -> Iterator[Fact]:
    return (f for f in reading.facts if f.place.weight or "names" not in rules)


def _layered(reading: Reading, rules: Rules) -> Iterator[tuple[Fact, int]]:
    for fact in _read(reading, rules):
        match = LAYER.search(fact.place.name)
        if "towers" in rules:
            if fact.place.stack == reading.main and fact.place.layer is not None:
                yield fact, fact.place.layer
        elif match:
            yield fact, int(match[1])


def _norms(reading: Reading, rules: Rules) -> nlf.NormTensors:
    found = {
        _key(f, rules): f.vector
        for f in _read(reading, rules)
        if f.vector is not None and nlf.is_norm(_name(f, rules), f.shape)
    }
    return nlf.NormTensors.collect(found)


def _energies(reading: Reading, rules: Rules) -> Any:
    energies: dict[int, list[float]] = {}
    for fact, layer in _layered(reading, rules):
        if fact.energy is not None:
            energies.setdefault(layer, []).append(fact.energy)
    return lep.profile(energies)


def _samples(reading: Reading, rules: Rules) -> wvc.Samples:
    return wvc.Samples.collect(
        (_key(f, rules), layer, f.samples)
        for f, layer in _layered(reading, rules)
        if f.samples is not None
        and wvc.is_projection(_name(f, rules))
        and ("experts" not in rules or f.place.canonical in reading.experts_kept)
    )
