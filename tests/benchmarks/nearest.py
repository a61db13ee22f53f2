"""Retrieval from many models: `python tests/benchmarks/nearest.py [--root FOLDER] [--models 10000 100000 1000000]`.

Vectors are those of tests/crowd.py, which says how like a model zoo's they are. They are made twice, from the same seed:
for the files of `provindex.segments`, 50,000 rows each, and to search all of them exactly, in float32, by a product with
each query ("flat"). Queries are models that are not in the index: 40 children of members of families of at least 50, 20
of families of 2 to 49, and 20 strangers. A search is all that retrieval does with a vector: itself and its six parts,
301 rows each; all files are in the page cache. Recall at 50 is the share of flat's first 50 rows that are among the
first 50 found. Kin are those of flat's first 50 that are of the query's family. A million models need 8.2 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does
sys.path.insert(0, str(Path(__file__).parents[1]))

import crowd

from provindex import nearest, segments
from provindex.index import _center
from provindex.nearest import PARTS, Coded
from provindex.retrieval import RERANKED, SEARCHES, searches

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
SEED, FIRST = 20261128, 50
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
        segments.write(folder / f"{first:09}", "", rows, _some(cut, rows, made), _center())
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


def flat(shape: crowd.Tree, vectors: F32) -> I64:
    """The first 50 rows of all for each vector, (vectors, 50), in no order."""
    best, rows, first = (
        np.full((len(vectors), FIRST), -np.inf, np.float32),
        np.zeros((len(vectors), FIRST), np.int64),
        0,
    )
    for piece in crowd.Zoo(SEED).pieces(shape):
        scores = np.concatenate([best, vectors @ piece.T], axis=1)
        numbers = np.concatenate([rows, np.broadcast_to(np.arange(len(piece)) + first, (len(vectors), len(piece)))], 1)
        order = np.argpartition(scores, -FIRST)[:, -FIRST:]
        best, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
        first += len(piece)
    return rows


def measured(folder: Path, count: int) -> None:
    """Build, search, and print a line of each table."""
    shape = crowd.tree(count, np.random.default_rng(SEED))
    spent = build(folder, shape)
    queries, families = asked(shape)
    parts = [searches(query) for query in queries]
    true = np.split(flat(shape, np.concatenate(parts)), np.cumsum([len(p) for p in parts])[:-1])
    paths = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in paths)
    rows = [min(segments.SEGMENT, count - int(path.name)) for path in paths]
    searcher = Coded([segments.mapped(path, n) for path, n in zip(paths, rows, strict=True)], _center())
    searcher._all(queries[:1])  # reads all files once
    seconds, found = [], []
    for some in parts:
        begun = time.perf_counter()
        found.append(searcher.search(some, RERANKED + 1)[1][:, :FIRST])
        seconds.append(time.perf_counter() - begun)
    median, most = np.percentile(np.array(seconds) * 1000, [50, 95])
    cells = [f"{count:,}", f"{size >> 20:,}", f"{size / count:,.0f}", f"{spent:.0f}", f"{median:.1f}", f"{most:.1f}"]
    first = 0
    for kind, number in KINDS.items():
        some = slice(first, first + number)
        whole, worst, kin = recalls(parts[some], found[some], true[some], shape.family, families[some])
        cells += [f"{whole:.4f}", f"{worst[0]:.4f} ({worst[1]})", *([f"{kin:.4f}"] if kind != "strangers" else [])]
        first += number
    print("| " + " | ".join(cells) + " |", flush=True)


def recalls(
    asked_with: Sequence[F32], found: Sequence[I64], true: Sequence[I64], family: I64, families: I64
) -> tuple[float, tuple[float, str], float]:
    """Mean recall of whole vectors, of the worst part with its name, and of kin by all searches."""
    shares: dict[str, list[float]] = {}
    kin = []
    for vectors, ours, theirs, own in zip(asked_with, found, true, families, strict=True):
        for number, (vector, mine, right) in enumerate(zip(vectors, ours, theirs, strict=True)):
            name = "+".join(SEARCHES[PARTS.index(nearest._part_of(vector))]) if number else ""
            hit = np.isin(right, mine)
            shares.setdefault(name, []).append(float(hit.mean()))
            related = family[right] == own
            kin += hit[related].tolist()
    means = {name: float(np.mean(each)) for name, each in shares.items()}
    return means.pop(""), min((mean, name) for name, mean in means.items()), float(np.mean(kin)) if kin else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the files are put; a temporary folder if not given")
    parser.add_argument("--models", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    head = ["models", "MB", "B a model", "build s", "search ms", "95 %"]
    head += ["large: whole", "worst part", "kin", "small: whole", "worst part", "kin", "strangers: whole", "worst part"]
    print("| " + " | ".join(head) + " |\n|" + "--:|" * len(head), flush=True)
    for count in options.models:
        with tempfile.TemporaryDirectory(dir=options.root) as folder:
            measured(Path(folder), count)


if __name__ == "__main__":
    main()
