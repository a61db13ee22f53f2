"""References in, answers out: what the command line and Python users call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from provindex import cache, dataset
from provindex.deep import deep_agreement
from provindex.errors import ModelNotFoundError, NetworkError, UsageError
from provindex.fingerprint import MODES, Fingerprint, fingerprint_model
from provindex.index import Index, IndexInfo, calibration_of
from provindex.source import Model, open_model
from provindex.tokenizer import Tokenizer, read_tokenizer
from provindex.verdict import Pair
from provindex.verdict import compare as compare_fingerprints
from provindex.weights import one_blas_thread

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


def compare(
    a: Fingerprint | str | os.PathLike[str], b: Fingerprint | str | os.PathLike[str], *, deep: bool = False
) -> Pair:
    """The verdict on two models, given as fingerprints or references; `direction` is the role of A.

    deep: also look for a copy with another vocabulary and a rotated basis, which takes the weights of both.
    """
    return compare_resolved(*(x if isinstance(x, Resolved) else _resolved(x) for x in (a, b)), deep=deep)


def _resolved(x: Fingerprint | str | os.PathLike[str]) -> Resolved:
    return Resolved(x, x.model_id) if isinstance(x, Fingerprint) else resolve(x, index=_default_index(x))


def _default_index(reference: str | os.PathLike[str]) -> Index | None:
    """The default index, which is looked into for whatever is not a path."""
    return None if Path(reference).exists() else Index.load()


def compare_resolved(
    a: Resolved, b: Resolved, *, index: Index | None = None, deep: bool = False, offline: bool = False
) -> Pair:
    """The verdict on two resolved references; VOA is exact if both vocabularies are at hand.

    index: whose chance levels are used; the default one if None. deep: adds the evidence `deep_agreement`. UsageError
    if the weights of one of them are not at hand, which is told before anything is compared. offline: never ask the Hub
    for the weights of an indexed model.
    """
    opened = [weights_of(x, offline=offline) for x in (a, b)] if deep else []
    ours, theirs = a.vocabulary(), b.vocabulary()
    both = (ours, theirs) if ours is not None and theirs is not None else None
    with one_blas_thread():
        return compare_fingerprints(
            a.fingerprint,
            b.fingerprint,
            calibration=calibration_of() if index is None else index.calibration,
            vocabularies=both,
            deep=deep_agreement(*opened) if deep else None,
        )


def weights_of(found: Resolved, *, offline: bool = False) -> Model:
    """The open model of a resolved reference; that of an indexed model at the revision that was indexed.

    UsageError if only its fingerprint is at hand.
    """
    if found.model is not None:
        return found.model
    kept = found.fingerprint
    what = f"A deep comparison reads weights, and of {found.label} only the fingerprint is at hand"
    if not kept.indexed or kept.revision is None or kept.variant:
        raise UsageError(f"{what}.", "Name its folder, its weight file or org/name@revision.")
    try:
        return open_model(f"{kept.model_id}@{kept.revision}", offline=offline)
    except (ModelNotFoundError, NetworkError) as error:
        raise UsageError(f"{what}: {error.message}", "Name its folder or its weight file.") from error


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
