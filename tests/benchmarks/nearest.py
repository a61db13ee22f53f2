"""Retrieval from many models: `python tests/benchmarks/nearest.py [--root FOLDER] [--models 10000 100000 1000000]`.

Vectors are those of tests/crowd.py, which says how like a model zoo's they are. They are made three times, from one
seed: for the files of `provindex.segments`, 50,000 rows each; for the queries; and to search all of them exactly, in
float32, by a product with each query ("flat"). Queries are models that are not in the index: 40 children of members of
families of at least 50, 20 of families of 2 to 49, and 20 strangers. A search is all that retrieval does with a vector:
itself and its six parts, 301 rows each; all files are in the page cache. Each query is searched for five times: "best"
is the median over queries of the least wall time of each, "median" and "95 %" are of all, "CPU" is processor time of
all threads, as the system counts it, mean of all. Up to 50,000 rows the same is printed of FAISS's exact search.

Recall at 50 is strict: the share of flat's first 50 that are among the first 50 found, mean of the queries, of the
whole vector and of each part. "near": the share of the first 50 found whose score is at least that of flat's fiftieth,
less 1e-4 of a cosine. "kin": of flat's first 50, the share of those of the query's family that are among the 301 found.
A million models need 10.7 GB of disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

import crowd

from provindex.index import codes as nearest
from provindex.index import segments
from provindex.index.codes import Coded
from provindex.index.entries import center
from provindex.index.search import BLOCKS, RERANKED, searches

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
SEED, FIRST, CLOSE, REPEAT = 20261128, 50, 1e-4, 5
EXACT = 50_000  # rows up to which FAISS's exact search is timed, 650 MB
KINDS = {"families of 50 and more": 40, "smaller families": 20, "strangers": 20}


def bands(pieces: Iterable[F32], rows: int) -> Iterator[F32]:
    """Pieces cut so that every so many rows end one."""
    left = rows
    for piece in pieces:
        while len(piece):
            yield piece[:left]
            taken = min(left, len(piece))
            piece, left = piece[taken:], left - taken or rows


def build(folder: Path, shape: crowd.Tree) -> float:
    """Write the segments of a zoo; seconds, of which making the vectors is no part."""
    count, spent = len(shape.parent), 0.0
    cut = bands(crowd.Zoo(SEED).pieces(shape), segments.SEGMENT)
    for first in range(0, count, segments.SEGMENT):
        rows = min(segments.SEGMENT, count - first)
        begun, made = time.perf_counter(), [0.0]
        segments.write(folder / f"{first:09}", "", rows, _some(cut, rows, made), center())
        spent += time.perf_counter() - begun - made[0]
    return spent


def _some(cut: Iterator[F32], rows: int, spent: list[float]) -> Iterator[F32]:
    """So many rows; the seconds that making them takes are added to `spent`."""
    while rows:
        begun = time.perf_counter()
        band = next(cut)
        spent[0] += time.perf_counter() - begun
        rows -= len(band)
        yield band


def asked(shape: crowd.Tree) -> tuple[F32, I64]:
    """The queries of all kinds, and their families, -1 for strangers."""
    rng, zoo = np.random.default_rng(SEED), crowd.Zoo(SEED)
    size = shape.sizes[shape.family]
    large, small, new = KINDS.values()
    parents = np.concatenate(
        [rng.choice(np.flatnonzero(size >= 50), large), rng.choice(np.flatnonzero((size > 1) & (size < 50)), small)]
    )
    found, first = np.empty((len(parents), crowd.DIMENSIONS), np.float32), 0
    for piece in zoo.pieces(shape):
        inside = (parents >= first) & (parents < first + len(piece))
        found[inside] = piece[parents[inside] - first]
        first += len(piece)
    return np.concatenate([zoo.children(found), zoo.founders(new)]), np.append(shape.family[parents], [-1] * new)


def flat(shape: crowd.Tree, vectors: F32) -> tuple[F32, I64]:
    """(scores, rows) of the first 50 of all rows for each vector, (vectors, 50) each, in no order."""
    best, rows = np.full((len(vectors), FIRST), -np.inf, np.float32), np.zeros((len(vectors), FIRST), np.int64)
    first = 0
    for piece in crowd.Zoo(SEED).pieces(shape):
        scores = np.concatenate([best, vectors @ piece.T], axis=1)
        numbers = np.concatenate([rows, np.broadcast_to(np.arange(len(piece)) + first, (len(vectors), len(piece)))], 1)
        order = np.argpartition(scores, -FIRST)[:, -FIRST:]
        best, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
        first += len(piece)
    return best, rows


@dataclass(frozen=True)
class Trial:
    """One search of one query. name: of the part, "" for the whole. recall, near: shares; kin: of each of its kin,
    whether it was found."""

    name: str
    recall: float
    near: float
    kin: list[bool]


def name_of(vector: F32) -> str:
    """The blocks of a part."""
    ends = np.cumsum([0, *(width for width, _ in BLOCKS.values())])
    return "+".join(n for n, a, b in zip(BLOCKS, ends, ends[1:], strict=False) if vector[a:b].any())


def trials(searcher: Coded, vectors: F32, true: tuple[F32, I64], related: NDArray[np.bool_]) -> list[Trial]:
    """All searches of a query; true: of `flat` for its vectors; related: rows that are its kin."""
    out = []
    for number, (vector, scores, rows, best, right) in enumerate(
        zip(vectors, *searcher.search(vectors, RERANKED + 1), *true, strict=True)
    ):
        name = name_of(vector) if number else ""
        enough = best.min() - CLOSE * float(vector @ vector)
        kin = np.isin(right[related[right]], rows).tolist()
        near = float((scores[:FIRST] >= enough).mean())
        out.append(Trial(name, float(np.isin(right, rows[:FIRST]).mean()), near, kin))
    return out


def timed(searcher: Any, parts: Sequence[F32]) -> list[str]:
    """Cells of milliseconds: best, median, 95 %, CPU."""
    spent = []
    begun = time.process_time()
    for _ in range(REPEAT):
        for some in parts:
            start = time.perf_counter()
            searcher.search(some, RERANKED + 1)
            spent.append((time.perf_counter() - start) * 1000)
    cpu = (time.process_time() - begun) * 1000 / len(spent)
    best = np.median(np.reshape(spent, (REPEAT, -1)).min(0))
    return [f"{ms:.1f}" for ms in (best, *np.percentile(spent, [50, 95]), cpu)]


def measured(folder: Path, count: int) -> None:
    """Build, search, and print a line of each table."""
    shape = crowd.tree(count, np.random.default_rng(SEED))
    spent = build(folder, shape)
    queries, families = asked(shape)
    parts = [searches(query) for query in queries]
    ends = np.cumsum([0, *map(len, parts)])
    best, right = flat(shape, np.concatenate(parts))
    paths = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in paths)
    rows = [min(segments.SEGMENT, count - int(path.name)) for path in paths]
    searcher = Coded([segments.mapped(path, n) for path, n in zip(paths, rows, strict=True)], center())
    searcher._all(queries[:1])  # reads all files once
    cells = [f"{count:,}", f"{size >> 20:,}", f"{size / count:,.0f}", f"{spent:.0f}", *timed(searcher, parts)]
    print("| " + " | ".join(cells) + " |", flush=True)
    if count <= EXACT:
        everything = nearest.flat(np.concatenate(list(crowd.Zoo(SEED).pieces(shape))))
        print("| " + " | ".join([f"{count:,}, FAISS exact", *timed(everything, parts[::4])]) + " |", flush=True)
    found = []
    for number, some in enumerate(parts):
        inside = slice(ends[number], ends[number + 1])
        found.append(trials(searcher, some, (best[inside], right[inside]), shape.family == families[number]))
    first = 0
    for kind, several in KINDS.items():
        cells = [f"{count:,}", kind, *told(found[first : first + several])]
        print("| " + " | ".join(cells) + " |", flush=True)
        first += several


def told(found: Sequence[Sequence[Trial]]) -> list[str]:
    """Cells of a kind of queries: recall of the whole, of the worst part, near of the worst search, kin found."""
    by_name: dict[str, list[Trial]] = {}
    for trial in (t for query in found for t in query):
        by_name.setdefault(trial.name, []).append(trial)
    recall = {name: float(np.mean([t.recall for t in each])) for name, each in by_name.items()}
    near = min(float(np.mean([t.near for t in each])) for each in by_name.values())
    kin = [k for each in by_name.values() for t in each for k in t.kin]
    parts = ", ".join(f"{name} {r:.3f}" for name, r in recall.items() if name)
    return [f"{recall['']:.3f}", parts, f"{near:.3f}", f"{np.mean(kin):.4f}" if kin else ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the files are put; a temporary folder if not given")
    parser.add_argument("--models", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    for count in options.models:
        with tempfile.TemporaryDirectory(dir=options.root) as folder:
            measured(Path(folder), count)


if __name__ == "__main__":
    main()
