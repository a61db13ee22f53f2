"""Chance levels: what pairs of models known to be unrelated score, by stratum. Definitions: signals/README.md.

A similarity says nothing without the value that strangers take. The calibration of an index holds, for the eight
signals and for the conformal tests, the median and the upper quantiles over pairs of a generated zoo (and over the
index's own known-unrelated pairs, when there are enough), and for the conformal tests the scores themselves.
Strangers with one tokenizer, or one shape, or one kind of MLP, are more alike than others: so there are strata. A
stratum of fewer than 200 pairs is not used; the pooled null takes its place, and says so.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provindex.common.bounded_json import JsonError, load_object
from provindex.common.errors import IndexFormatError
from provindex.common.reasons import Code, Reason
from provindex.common.score import Chance, Score
from provindex.evidence.table import TESTS
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.signals import table, voa

SCHEMA = 1
CONFORMAL = tuple(test.name for test in TESTS if test.tier == "aligned")  # their p-values are ranks: scores are kept
SIGNALS = tuple(signal.name for signal in table.SIGNALS)
STATISTICS = (*SIGNALS, *CONFORMAL)
POOLED = "pooled"
MLP_KINDS = ("gated", "two-matrix", "mixed")
STRATA = tuple(
    f"{tokenizer} tokenizer, {shape} shape, {mlp}"
    for tokenizer in ("same", "different")
    for shape in ("same", "different")
    for mlp in MLP_KINDS
)
MIN_PAIRS = 200  # of a stratum; below, the pooled null is used
SAME_TOKENIZER = 0.5  # Jaccard index of the token strings
MIN_RANKED = 999  # of a stratum, for a conformal p-value of 1 in 1,000
QUANTILES = {"p99": (0.99, 100), "p999": (0.999, 1000)}  # name: level, the fewest pairs that can show it
FOLDER = "calibration"  # in an index folder; the file is named by its content
MAX_BYTES = 4 << 20
MAX_SCORES = 100_000  # of one test in one stratum
MAX_STRATA = 32
MAX_PAIRS = 10**9
NO_CALIBRATION = Reason.of(Code.NO_CALIBRATION)
_NAME = re.compile(rf"{FOLDER}/[0-9a-f]{{8}}\.json")
_AGAIN = "Get the index again, or make its calibration again with `python -m build_index.calibrate`."


@dataclass(frozen=True, slots=True)
class Null:
    """What the pairs of one stratum score under one statistic.

    n: pairs that have a value. median, p99, p999: quantiles, None where n is too small. scores: of a conformal test,
    all values, ascending, rounded up; empty for signals.
    """

    n: int
    median: float
    p99: float | None
    p999: float | None
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Stratum:
    """Pairs of one kind: how many, and their null under each statistic that any of them has."""

    name: str
    pairs: int
    nulls: Mapping[str, Null]


@dataclass(frozen=True)
class Calibration:
    """The chance levels of one fingerprint version.

    strata: by name, the pooled one among them. models: how many models the pairs are made of.
    """

    fingerprint_version: int
    models: int
    strata: Mapping[str, Stratum]

    def null(self, statistic: str, stratum: str) -> tuple[str, Null | None]:
        """The null to use and the name of its stratum: the pooled one where the stratum's has fewer than 200 pairs."""
        for name in (stratum, POOLED):
            found = self.strata[name].nulls.get(statistic) if name in self.strata else None
            if found is not None and (found.n >= MIN_PAIRS or name == POOLED):
                return name, found
        return POOLED, None

    def chance(self, statistic: str, stratum: str) -> Chance:
        """Median and upper quantiles of a statistic on unrelated pairs of a stratum, a reason where one is missing."""
        name, null = self.null(statistic, stratum)
        if null is None:
            return Chance(None, None, 0, name, Reason.of(Code.PAIRS_NONE, statistic=statistic))
        return Chance(null.median, null.p999, null.n, name, too_few(null.n) if null.p999 is None else None, null.p99)

    def conformal(self, statistic: str, value: float, stratum: str) -> tuple[float, int]:
        """(log10 p, n): p = (1 + unrelated pairs that score at least `value`) / (1 + n); (0.0, 0) without scores.

        Among fewer than 999 pairs nothing can be 1 in 1,000. A value above all pairs of such a stratum is ranked among
        the pooled pairs; one that a pair of the stratum reaches is ranked within the stratum.
        """
        name, null = self.null(statistic, stratum)
        if null is None or not null.scores:
            return 0.0, 0
        if name != POOLED and null.n < MIN_RANKED and value > null.scores[-1]:
            null = self.null(statistic, POOLED)[1] or null
        at_least = len(null.scores) - bisect_left(null.scores, value)
        return math.log10((1 + at_least) / (1 + len(null.scores))), len(null.scores)

    def with_chance(self, scores: Mapping[str, Score], stratum: str) -> dict[str, Score]:
        """Signals with their chance levels; what is absent stays as it is."""
        return {
            name: score if score.value is None else replace(score, chance=self.chance(name, stratum))
            for name, score in scores.items()
        }


def too_few(n: int) -> Reason:
    """Why there is no 99.9th percentile."""
    return Reason.of(Code.PAIRS_FEW, n=n, needed=QUANTILES["p999"][1])


# --- strata ---


def stratum_of(*, same_tokenizer: bool, same_shape: bool, mlp: str) -> str:
    """The name of a stratum; mlp: one of MLP_KINDS, ValueError for anything else."""
    if mlp not in MLP_KINDS:
        raise ValueError(f"{mlp!r} is none of {', '.join(MLP_KINDS)}")
    words = {True: "same", False: "different"}
    return f"{words[same_tokenizer]} tokenizer, {words[same_shape]} shape, {mlp}"


def stratum_of_pair(a: Fingerprint, b: Fingerprint) -> str:
    """The stratum of two models.

    Same tokenizer: at least half of all token strings in common (tokens are added, and strangers stay as alike: EAS
    is .92 for MPNet and MiniLM); where one has no tokenizer, as many embedding rows. Same shape: equal residual width
    and layers, and MLP widths that no neurons show to differ.
    """
    widths = {int(fp.neurons.widths.max(initial=0)) for fp in (a, b) if fp.neurons is not None} - {0}
    shapes = {(fp.facts.hidden, fp.facts.layers) for fp in (a, b)}
    kinds = {mlp_kind(fp) for fp in (a, b)}
    return stratum_of(
        same_tokenizer=_same_tokenizer(a, b),
        same_shape=len(shapes) == 1 and len(widths) < 2,
        mlp=kinds.pop() if len(kinds) == 1 else "mixed",
    )


def _same_tokenizer(a: Fingerprint, b: Fingerprint) -> bool:
    overlap = voa.compare(a.vocabulary_sketch, a.vocabulary_size, b.vocabulary_sketch, b.vocabulary_size).value
    return a.facts.vocabulary == b.facts.vocabulary if overlap is None else overlap >= SAME_TOKENIZER


def mlp_kind(fp: Fingerprint) -> str:
    """ "gated" if a layer of the text tower has a gate, else "two-matrix"; from the addresses of the weights."""
    keys = fp.blocks.keys if fp.blocks is not None else ()
    main = f"{fp.facts.main}."
    return "gated" if any(key.startswith(main) and ".gate." in key for key in keys) else "two-matrix"


# --- files of an index that anyone may have written ---


def write(folder: Path, raw: bytes) -> str:
    """Put the bytes of a calibration into an index folder; the name to give in its manifest."""
    name = f"{FOLDER}/{hashlib.sha256(raw).hexdigest()[:8]}.json"
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(raw)
    return name


def is_name(name: object) -> bool:
    """Whether this can be the name of a calibration in an index folder: made of its digest, inside the folder."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def load(folder: Path, name: object) -> Calibration:
    """The calibration that a manifest names; IndexFormatError if it is missing, altered, or not one.

    name: "calibration/<first 8 hex digits of its sha256>.json", anything else is refused.
    """
    if not isinstance(name, str) or not is_name(name):
        raise IndexFormatError("The manifest names a calibration that is no file of a calibration folder.", _AGAIN)
    try:
        with (folder / name).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise IndexFormatError(f"{name} cannot be read: {error.strerror}.", _AGAIN) from error
    if len(raw) > MAX_BYTES:
        raise IndexFormatError(f"{name} is larger than {MAX_BYTES >> 20} MB.", _AGAIN)
    if not hashlib.sha256(raw).hexdigest().startswith(Path(name).stem):
        raise IndexFormatError(f"{name} is not what its name says: its sha256 begins otherwise.", _AGAIN)
    return loads(raw)


def loads(raw: bytes) -> Calibration:
    """The calibration in the bytes of a file; IndexFormatError if there is none."""
    try:
        return read(load_object(raw))
    except JsonError as error:
        raise IndexFormatError(f"The calibration cannot be read: {error}.", _AGAIN) from error


def read(document: Mapping[str, Any]) -> Calibration:
    """The calibration in a document; IndexFormatError, in one sentence, for anything that is none.

    Strata and statistics that this version does not know are left out.
    """
    try:
        schema, version = _count(document["schema"]), _count(document["fingerprint_version"])
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema}, this provindex reads {SCHEMA}")
        if version != FINGERPRINT_VERSION:
            raise ValueError(f"it is of fingerprint version {version}, this provindex makes {FINGERPRINT_VERSION}")
        listed = document["strata"]
        if not isinstance(listed, list) or len(listed) > MAX_STRATA:
            raise ValueError(f"its strata are no list of at most {MAX_STRATA}")
        strata = {s.name: s for s in map(_stratum, listed) if s.name in (*STRATA, POOLED)}
        return Calibration(version, _count(document["models"]), strata)
    except KeyError as error:
        raise IndexFormatError(f"The calibration cannot be read: {error} is missing.", _AGAIN) from error
    except (TypeError, ValueError) as error:
        raise IndexFormatError(f"The calibration cannot be read: {error}.", _AGAIN) from error


def _stratum(entry: Mapping[str, Any]) -> Stratum:
    name, pairs, statistics = _mapping(entry)["name"], _count(entry["pairs"]), _mapping(entry["statistics"])
    if not isinstance(name, str):
        raise ValueError("a stratum has no name")
    return Stratum(name, pairs, {s: _null(s, statistics[s], pairs) for s in STATISTICS if s in statistics})


def _null(statistic: str, entry: Mapping[str, Any], pairs: int) -> Null:
    n, median = _count(_mapping(entry)["n"]), _value(entry["median"])
    p99, p999 = (_value(entry[name]) if entry.get(name) is not None else None for name in QUANTILES)
    quantiles = [q for q in (median, p99, p999) if q is not None]
    if not 0 < n <= pairs or quantiles != sorted(quantiles):
        raise ValueError(f"the quantiles or counts of {statistic} contradict each other")
    if any(q is not None and n < fewest for q, (_, fewest) in zip((p99, p999), QUANTILES.values(), strict=True)):
        raise ValueError(f"{n} pairs are too few for the quantiles of {statistic}")
    return Null(n, median, p99, p999, _scores(statistic, entry.get("scores", []), n))


def _scores(statistic: str, listed: Any, n: int) -> tuple[float, ...]:
    """Scores from pairs [value, how often], values ascending."""
    most = min(n, MAX_SCORES)
    if not isinstance(listed, list) or len(listed) > most:
        raise ValueError(f"the scores of {statistic} are no list of at most {most:,}")
    if not all(isinstance(run, list) and len(run) == 2 for run in listed):
        raise ValueError(f"the scores of {statistic} are no values with their counts")
    values = [_value(value) for value, _ in listed]
    counts = [_count(count) for _, count in listed]
    ordered = all(low < high for low, high in itertools.pairwise(values))
    if sum(counts) != (n if statistic in CONFORMAL else 0) or sum(counts) > MAX_SCORES or not ordered:
        raise ValueError(f"the scores of {statistic} are not its {n:,} values in ascending order")
    return tuple(itertools.chain.from_iterable(map(itertools.repeat, values, counts)))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a list or a number stands where an object is expected")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PAIRS:
        raise ValueError("a count is no number of at most ten digits")
    return value


def _value(value: Any) -> float:
    """All statistics are shares and cosines."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
        raise ValueError("a value is no number from -1 to 1")
    return float(value)
