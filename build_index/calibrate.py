"""Make a calibration: what models known to be unrelated score under each signal and conformal test.

    python -m build_index.calibrate --zoo FOLDER [--index FOLDER] -o calibration.json [--processes N]

Compares all pairs of independently started models below FOLDER, and the pairs of different families of an index when
there are at least 200, writes their quantiles and scores by stratum, and checks that the exact p-values hold on them.
The same models give the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import provindex
from provindex.api import Index
from provindex.common.errors import ProvindexError
from provindex.common.threads import one_blas_thread
from provindex.evidence.table import TESTS
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.index import dataset
from provindex.models.source import open_model
from provindex.report.words import text
from provindex.verdict import calibration
from provindex.verdict.calibration import (
    CONFORMAL,
    MIN_PAIRS,
    POOLED,
    QUANTILES,
    STATISTICS,
    STRATA,
    Calibration,
    Null,
    Stratum,
)
from provindex.verdict.pair import combined, compare

DECIMALS = 4  # of what is stored; upper quantiles and scores are rounded up, so that no p-value gets smaller
EXACT = tuple(test.name for test in TESTS if test.tier == "exact" and test.name != "bit_reuse")
OUTPUT = Path(__file__).with_name("calibration.json")
LEVELS = (0.05, 0.01, 0.001)
RULE = "every pair of models that were started from different seeds and trained apart; none descends from another"
FAMILIES = "every pair of rows whose families are stated and differ"


@dataclass(frozen=True)
class Compared:
    """One known-unrelated pair: the ids of its models, its stratum, its values, and the log10 of its exact p-values."""

    a: str
    b: str
    stratum: str
    values: Mapping[str, float | None]
    log10_p: Mapping[str, float | None]


# --- nulls: values in, a calibration out ---


def null_of(values: Iterable[float], *, scores: bool) -> Null | None:
    """The null of some values, None if there are none; scores: whether to keep them.

    A quantile is a value of the pairs, at or above its level, never an interpolation below it.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    upper = {
        name: _up(ordered[math.ceil(level * (len(ordered) - 1))]) if len(ordered) >= fewest else None
        for name, (level, fewest) in QUANTILES.items()
    }
    median = round(float(np.median(ordered)), DECIMALS) + 0.0  # no negative zero
    return Null(len(ordered), median, scores=tuple(map(_up, ordered)) if scores else (), **upper)


def _up(value: float) -> float:
    """Rounded up to four decimals; what already has four is kept."""
    nearest = round(value, DECIMALS) + 0.0
    return nearest if nearest >= value else round(nearest + 10.0**-DECIMALS, DECIMALS)


def calibration_of(pairs: Sequence[Compared]) -> Calibration:
    """The calibration of known-unrelated pairs: the strata that have any, and all of them pooled."""
    strata = {}
    for name in (*STRATA, POOLED):
        members = [pair.values for pair in pairs if name in (pair.stratum, POOLED)]
        if members:
            strata[name] = Stratum(name, len(members), dict(_nulls(members)))
    models = {model for pair in pairs for model in (pair.a, pair.b)}
    return Calibration(FINGERPRINT_VERSION, len(models), strata)


def _nulls(members: Sequence[Mapping[str, float | None]]) -> Iterator[tuple[str, Null]]:
    for statistic in STATISTICS:
        found = [v for values in members if (v := values.get(statistic)) is not None]
        null = null_of(found, scores=statistic in CONFORMAL)
        if null is not None:
            yield statistic, null


# --- pairs ---


def zoo_models(folder: Path) -> list[Path]:
    """The models of a zoo that descend from no other, by name; ProvindexError if there are fewer than 2.

    A model is a folder with a zoo.json, which `build_index.zoo` writes last.
    """
    facts = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("zoo.json"))}
    found = [path for path, said in facts.items() if said["truth"]["kind"] == "base"]
    if len(found) < 2:
        raise ProvindexError(
            f"{folder.name} has {len(found)} models; pairs need 2.",
            "Make the zoo with `python -m build_index.zoo calibration`.",
        )
    return found


def fingerprints(folders: Sequence[Path], processes: int = 1) -> list[Fingerprint]:
    """The fingerprints of model folders, in their order."""
    if processes == 1:
        return [_fingerprint(folder) for folder in folders]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_fingerprint, folders))


def _fingerprint(folder: Path) -> Fingerprint:
    return fingerprint_model(open_model(str(folder)))


def compared(a: Fingerprint, b: Fingerprint) -> Compared:
    """What a known-unrelated pair scores."""
    pair = compare(a, b)
    values = {name: score.value for name, score in pair.signals.items()}
    values |= {name: pair.evidence[name].value for name in CONFORMAL}
    exact: dict[str, float | None] = {name: pair.evidence[name].log10_p for name in EXACT}
    exact["combined"] = combined([pair.evidence[name] for name in EXACT])
    return Compared(_label(a), _label(b), calibration.stratum_of_pair(a, b), values, exact)


def _label(fp: Fingerprint) -> str:
    return f"{fp.model_id}#{fp.variant}" if fp.variant else fp.model_id


_models: list[Fingerprint] = []  # of a worker process: sent once, not with every pair


def zoo_pairs(models: Sequence[Fingerprint], processes: int = 1) -> list[Compared]:
    """All pairs of independent models."""
    if processes == 1:
        return [compared(a, b) for a, b in itertools.combinations(models, 2)]
    with ProcessPoolExecutor(processes, get_context("spawn"), _keep, (list(models),)) as pool:
        return list(itertools.chain.from_iterable(pool.map(_pairs_of, range(len(models)))))


def _keep(models: list[Fingerprint]) -> None:
    _models.extend(models)


def _pairs_of(number: int) -> list[Compared]:
    """The pairs of a model with those after it."""
    with one_blas_thread():
        return [compared(_models[number], other) for other in _models[number + 1 :]]


def index_pairs(index: Index) -> list[Compared]:
    """The pairs of an index's families; empty if there are fewer than 200: too few for a stratum of their own."""
    rows = sorted((entry for entry in index if entry.row["family"]), key=lambda entry: entry.key)
    chosen = [(a, b) for a, b in itertools.combinations(rows, 2) if a.family != b.family]
    if len(chosen) < MIN_PAIRS:
        return []
    loaded = {entry.key: entry.load() for entry in rows}
    return [compared(loaded[a.key], loaded[b.key]) for a, b in chosen]


# --- the file ---


def document_of(made: Calibration, origin: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration as plain JSON; origin: what it was made from, for readers only."""
    return {
        "schema": calibration.SCHEMA,
        "fingerprint_version": made.fingerprint_version,
        "models": made.models,
        "made": dict(origin),
        "strata": [
            {
                "name": stratum.name,
                "pairs": stratum.pairs,
                "statistics": {name: _null_document(null) for name, null in stratum.nulls.items()},
            }
            for stratum in made.strata.values()
        ],
    }


def _null_document(null: Null) -> dict[str, Any]:
    found: dict[str, Any] = {"n": null.n, "median": null.median, "p99": null.p99, "p999": null.p999}
    if null.p999 is None:
        found["reason"] = text(calibration.too_few(null.n))
    runs = [[value, len(list(equal))] for value, equal in itertools.groupby(null.scores)]
    return found | ({"scores": runs} if runs else {})


def dumps(document: Mapping[str, Any]) -> bytes:
    """The bytes of a calibration file: a stratum a line, and equal documents give equal bytes."""
    lines = [f"{json.dumps(name)}: {_compact(value)}" for name, value in document.items() if name != "strata"]
    strata = ",\n".join(f" {_compact(stratum)}" for stratum in document["strata"])
    return ("{\n" + ",\n".join([*lines, f'"strata": [\n{strata}\n]']) + "\n}\n").encode()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def attach(folder: Path, raw: bytes) -> str:
    """Put a calibration into an index folder, name it in the manifest, and remove the one that was there; its name."""
    calibration.loads(raw)
    before = dataset.read_manifest(folder)
    name = calibration.write(folder, raw)
    dataset.write_manifest(folder, replace(before, calibration=name))
    for stale in set((folder / calibration.FOLDER).glob("*.json")) - {folder / name}:
        stale.unlink()
    return name


# --- what it says ---


def table(made: Calibration) -> list[str]:
    """The strata as lines: pairs, then median and 99.9th (else 99th) percentile of each statistic."""
    lines = [f"{'stratum':<38} {'pairs':>5}  " + "  ".join(f"{_SHORT.get(s, s):>13}" for s in STATISTICS)]
    for stratum in made.strata.values():
        cells = [_cell(stratum.nulls.get(s)) for s in STATISTICS]
        lines.append(f"{stratum.name:<38} {stratum.pairs:>5}  " + "  ".join(f"{cell:>13}" for cell in cells))
    return lines


SHOWN = (STRATA[0], STRATA[1], STRATA[9], STRATA[10], POOLED)  # in signals/README.md


def markdown(made: Calibration) -> str:
    """The levels of a few strata as the table of signals/README.md: median and 99.9th percentile."""
    strata = [made.strata[name] for name in SHOWN if name in made.strata]
    lines = [
        f"| | {' | '.join(s.name for s in strata)} |",
        "|---|" + "--:|" * len(strata),
        f"| pairs | {' | '.join(f'{s.pairs:,}' for s in strata)} |",
    ]
    for statistic in STATISTICS:
        cells = [_cell(stratum.nulls.get(statistic)) for stratum in strata]
        lines.append(f"| {statistic} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_SHORT = {"triple_agreement": "E3", "branch_sketch": "E4"}


def _cell(null: Null | None) -> str:
    if null is None:
        return "-"
    upper = null.p999 if null.p999 is not None else null.p99
    shown = "-" if upper is None else f"{'~' * (null.p999 is None)}{upper:.3f}"
    return f"{null.median:.3f}..{shown}"


def null_check(pairs: Sequence[Compared]) -> list[str]:
    """How often the exact p-values fall below their levels on unrelated pairs, and the smallest of each."""
    lines = ["exact p-values, share of pairs at or below a level (valid if not above the level), and the smallest:"]
    for name in (*EXACT, "combined"):
        found = [p for pair in pairs if (p := pair.log10_p[name]) is not None]
        shares = [
            f"{sum(p <= math.log10(level) for p in found) / len(found):.4f} <= {level}" for level in LEVELS if found
        ]
        least = f"smallest 10^{min(found):.2f}" if found else "never computed"
        lines.append(f"  {name:<22} n {len(found):>5}  {'  '.join(shares)}  {least}")
    return lines


# --- the command ---


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the file, and say what is in it; status 2 if it could not be made."""
    parser = argparse.ArgumentParser(prog="python -m build_index.calibrate", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of independently trained models")
    parser.add_argument("--index", type=Path, help="an index whose families are unrelated to each other")
    parser.add_argument("--output", "-o", type=Path, default=OUTPUT, help="the file to write")
    parser.add_argument("--processes", type=int, default=1, help="how many at a time")
    options = parser.parse_args(arguments)
    try:
        made, pairs, origin = build(options.zoo, options.index, options.processes)
    except ProvindexError as error:
        print(error, file=sys.stderr)
        return 2
    raw = dumps(document_of(made, origin))
    options.output.write_bytes(raw)
    print("\n".join([*table(made), *null_check(pairs), "", "for signals/README.md:", markdown(made)]))
    print(f"{made.models} models, {len(pairs):,} pairs, {len(raw):,} bytes in {options.output}")
    return 0


def _described(fp: Fingerprint) -> list[str]:
    """What tells a model of the zoo: its id, and the beginning of the hash of its weights."""
    return [fp.model_id, (fp.content_sha256 or "")[:16]]


def build(zoo: Path, folder: Path | None, processes: int = 1) -> tuple[Calibration, list[Compared], dict[str, Any]]:
    """The calibration of a zoo and, if it has enough families, of an index; its pairs, and what it was made from."""
    folders = zoo_models(zoo)
    models = fingerprints(folders, processes)
    pairs = zoo_pairs(models, processes)
    origin: dict[str, Any] = {
        "by": f"provindex {provindex.__version__}, numpy {np.__version__}",
        "zoo": {"models": [_described(fp) for fp in models], "pairs": len(pairs), "rule": RULE},
        "index": None,
    }
    if folder is not None:
        index = Index.load(folder)
        added = index_pairs(index)
        origin["index"] = {"id": index.info.id, "revision": index.info.revision, "pairs": len(added), "rule": FAMILIES}
        pairs += added
    return calibration_of(pairs), pairs, origin


if __name__ == "__main__":
    raise SystemExit(main())
