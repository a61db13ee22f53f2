"""References in, answers out: what the command line and Python users call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from provindex import cache, dataset
from provindex.errors import UsageError
from provindex.fingerprint import MODES, Fingerprint, fingerprint_model
from provindex.index import Index, IndexInfo
from provindex.source import Model, open_model
from provindex.tokenizer import Tokenizer, read_tokenizer
from provindex.verdict import Pair
from provindex.verdict import compare as compare_fingerprints

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Resolved:
    """A reference, resolved: its fingerprint, how an answer calls it, and the open model if weights are at hand."""

    fingerprint: Fingerprint
    label: str
    model: Model | None = None

    def vocabulary(self) -> Mapping[str, int] | None:
        """The token strings, for an exact VOA; None when only the fingerprint is at hand, or there is no tokenizer."""
        if self.model is None:
            return None
        tokenizer = read_tokenizer(self.model.tokenizer_files, self.model.config)
        return tokenizer.vocab if isinstance(tokenizer, Tokenizer) else None


def resolve(
    reference: str | os.PathLike[str],
    *,
    index: Index | None = None,
    mode: str = "exact",
    offline: bool = False,
    progress: Progress | None = None,
) -> Resolved:
    """The fingerprint that a reference names.

    In this order: an existing path (a folder, a weight file, a fingerprint file), an id that is in the index, the Hub
    cache, the Hub. mode: how weights are read if they are read. offline: never ask the Hub.
    """
    if mode not in MODES:
        raise UsageError(f"--mode is one of {', '.join(MODES)}, not {mode}.")
    text = os.fspath(reference)
    path = Path(text)
    if path.suffix == ".parquet" and path.is_file():
        kept = dataset.read_fingerprints(path)[0]
        return Resolved(kept, kept.model_id)
    if not path.exists() and index is not None:
        found = index.find(text)
        if found:
            return Resolved(found[0].load(), found[0].label)
    model = open_model(text, offline=offline)
    digests: dict[str, str] = {}
    make = partial(fingerprint_model, model, mode=mode, progress=progress, digests=digests)
    made = cache.through(model, mode, make, digests)
    return Resolved(made, text if path.exists() else made.model_id, model)


def fingerprint(
    reference: str | os.PathLike[str], *, index: Index | None = None, mode: str = "exact", offline: bool = False
) -> Fingerprint:
    """The fingerprint of any model reference: a folder, a weight file, a fingerprint file, or `org/name[@revision]`,
    which is looked up in the index (the default one if none is given), the Hub cache and the Hub.
    """
    return resolve(
        reference, index=_default_index(reference) if index is None else index, mode=mode, offline=offline
    ).fingerprint


def compare(a: Fingerprint | str | os.PathLike[str], b: Fingerprint | str | os.PathLike[str]) -> Pair:
    """The verdict on two models, given as fingerprints or references; `direction` is the role of A."""
    return compare_resolved(*(x if isinstance(x, Resolved) else _resolved(x) for x in (a, b)))


def _resolved(x: Fingerprint | str | os.PathLike[str]) -> Resolved:
    return Resolved(x, x.model_id) if isinstance(x, Fingerprint) else resolve(x, index=_default_index(x))


def _default_index(reference: str | os.PathLike[str]) -> Index | None:
    """The default index, which is looked into for whatever is not a path."""
    return None if Path(reference).exists() else Index.load()


def compare_resolved(a: Resolved, b: Resolved) -> Pair:
    """The verdict on two resolved references; VOA is exact if both vocabularies are at hand."""
    ours, theirs = a.vocabulary(), b.vocabulary()
    both = (ours, theirs) if ours is not None and theirs is not None else None
    return compare_fingerprints(a.fingerprint, b.fingerprint, vocabularies=both)


@dataclass(frozen=True)
class Comparison:
    """The answer of `compare`: both sides, the verdict, and the index whose calibration and ids were used."""

    a: Fingerprint
    b: Fingerprint
    pair: Pair
    index: IndexInfo
    settings: Mapping[str, object]

    @property
    def status(self) -> str:
        """ "decided" when linked or unrelated, else "inconclusive"."""
        return "inconclusive" if self.pair.verdict == "inconclusive" else "decided"
