"""Exact and approximate search of many retrieval vectors, chosen by their number.

Below FLAT rows FAISS compares whole vectors (`IndexFlatIP`). From there on every search has sign-bit codes of its own
blocks, and a row is compared by its numbers only if its code is near (FAISS, Hamming distance): the nearest
`Part.candidates`. Their numbers are 16-bit fixed point, memory-mapped: a cosine of a part is wrong by some 2e-5, so
rows that are nearer to each other than 1e-4 may come in another order. (Half precision is little better, and numpy
takes five times as long to unpack it.)

A code is the signs of a vector after fixed random rotations (signs at random, then a Hadamard transform): several of
them, because one sign a number keeps too little: among strangers, whose cosines are chance, the distances of one
rotation's codes have a correlation of 2/pi with the cosine, of two 0.76, of four 0.86. Blocks in which all models are
alike are centered first. A part that a row lacks has a code that agrees with half of any other, as a stranger's does.

Source: Charikar, Similarity estimation techniques from rounding algorithms, 2002; the fast rotation: Ailon and
Chazelle, Approximate nearest neighbors and the fast Johnson-Lindenstrauss transform, 2006.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.retrieval import BLOCKS, DIMENSIONS, SEARCHES

F32 = NDArray[np.float32]
I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

FLAT = 20_000  # rows from which on codes are used: exactly, seven searches take 0.1 s there, three times as long
STEP = np.float32(0.5 / 32767)  # of the fixed point: no number of a vector is above the root of a block's weight, .39
PIECE = 128  # rows that are compared together: they stay in the processor's cache
THREADS = 4  # that scan and compare
BAND = 8192  # rows that an exact search unpacks at a time, 107 MB
CENTERED = ("eas", "eas_by_id", "lep", "end", "nlf", "lengths")  # blocks in which strangers are alike


@dataclass(frozen=True)
class Part:
    """One search's blocks, which are the columns `start` to `stop`, and its codes.

    width: numbers of a rotation, a power of two. bits: of a code, those of all rotations. candidates: rows whose
    numbers are compared.
    """

    start: int
    stop: int
    width: int
    bits: int
    candidates: int

    @property
    def bytes(self) -> int:
        """Of one code."""
        return self.bits // 8


def _part(blocks: Sequence[str], bits: int, candidates: int) -> Part:
    ends = np.cumsum([0, *(width for width, _ in BLOCKS.values())])
    places = [list(BLOCKS).index(name) for name in blocks]
    start, stop = int(ends[min(places)]), int(ends[max(places) + 1])
    return Part(start, stop, 1 << (stop - start - 1).bit_length(), bits, candidates)


_CODES = ((4096, 8000), (1024, 16_000), (1024, 16_000), (4096, 16_000), (1024, 16_000), (512, 32_000), (1024, 16_000))
PARTS: tuple[Part, ...] = tuple(_part(blocks, *code) for blocks, code in zip(SEARCHES, _CODES, strict=True))


# --- vectors as fixed point and as codes ---


def packed(vectors: F32) -> I16:
    """Vectors as 16-bit fixed point, of the same shape; what is no number becomes 0, what is too large the largest."""
    with np.errstate(over="ignore"):
        return np.asarray(np.rint(np.clip(np.nan_to_num(vectors / STEP), -32767, 32767)), np.int16)


def unpacked(fixed: I16) -> F32:
    """The vectors of `packed`, within half a step (8e-6)."""
    return np.asarray(fixed, np.float32) * STEP


def center_of(vectors: F32) -> F32:
    """What codes are centered on, (3264,): the mean of some models in blocks in which strangers are alike, else 0."""
    center = np.zeros(DIMENSIONS, np.float32)
    start = 0
    for name, (width, _) in BLOCKS.items():
        there = vectors[:, start : start + width]
        there = there[np.any(there, axis=1)]
        if name in CENTERED and len(there):
            center[start : start + width] = there.mean(0)
        start += width
    return center


def codes(vectors: F32, center: F32, part: Part) -> U8:
    """The codes of a part of vectors, (rows, part.bytes)."""
    there = vectors[:, part.start : part.stop]
    missing = ~np.any(there, axis=1)
    padded = np.zeros((len(vectors), part.width), np.float32)
    padded[:, : part.stop - part.start] = there - center[part.start : part.stop]
    turned = []
    for number in range(-(-part.bits // part.width)):
        kept = min(part.bits - number * part.width, part.width)
        turned.append(_hadamard(padded * _signs(part, number))[:, :kept] > 0)
    out = np.packbits(np.concatenate(turned, axis=1), axis=1)
    out[missing] = 0b01010101  # agrees with half of any code
    return out


@lru_cache(maxsize=32)
def _signs(part: Part, number: int) -> F32:
    """The signs, (width,), that make a Hadamard transform a random rotation; from a hash, so the same everywhere."""
    label = f"provindex/1/nearest/{part.start}/{part.stop}/{number}".encode()
    stream = np.frombuffer(hashlib.shake_256(label).digest(part.width // 8), np.uint8)
    return np.unpackbits(stream).astype(np.float32) * 2 - 1


def _hadamard(values: F32) -> F32:
    """The Hadamard transform of each row, not scaled, as two products with small matrices."""
    rows, width = values.shape
    left = 1 << (width.bit_length() - 1) // 2
    square = values.reshape(rows, left, width // left)
    return np.asarray((_matrix(left) @ (square @ _matrix(width // left))).reshape(rows, width), np.float32)


@lru_cache(maxsize=8)
def _matrix(size: int) -> F32:
    """The Hadamard matrix of a power of two."""
    out = np.ones((1, 1), np.float32)
    while len(out) < size:
        out = np.block([[out, out], [out, -out]])
    return out


# --- searching ---


@dataclass(frozen=True, eq=False)
class Segment:
    """Some rows: their codes, one array for each of PARTS, and their numbers, (rows, 3264) fixed point.

    told: which rows have a vector at all, (rows,) bool.
    """

    codes: Sequence[U8]
    fixed: I16
    told: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.fixed)

    @classmethod
    def of(cls, vectors: F32, center: F32) -> Segment:
        """Of vectors, in memory."""
        bands = [vectors[first : first + BAND] for first in range(0, len(vectors), BAND)]
        coded = [np.concatenate([codes(band, center, part) for band in bands]) for part in PARTS]
        return cls(coded, np.concatenate([packed(band) for band in bands]), np.any(vectors, axis=1))


class Coded:
    """A searcher of segments, which answers as FAISS does.

    places: what each segment's rows are called in answers; a row below 0 is never found. Rows with equal scores come in
    the order of these numbers.
    """

    def __init__(self, segments: Sequence[Segment], center: F32, places: Sequence[I64] | None = None) -> None:
        self.segments, self.center = list(segments), center
        self.starts = np.cumsum([0, *(len(s) for s in segments)])
        self.places = np.arange(self.starts[-1]) if places is None else np.concatenate(places)
        self.ntotal = int(np.count_nonzero(self.places >= 0))
        self.code_size = sum(part.bytes for part in PARTS) + 2 * DIMENSIONS  # bytes a row

    def search(self, asked: F32, wanted: int) -> tuple[F32, I64]:
        """(scores, places) of the `wanted` rows with the largest inner products, best first, (queries, wanted) each.

        Where fewer are found the rest is -inf and -1. More rows than any search has candidates are found exactly, which
        reads everything.
        """
        scores = np.full((len(asked), wanted), -np.inf, np.float32)
        places = np.full((len(asked), wanted), -1, np.int64)
        found = self._near(asked) if wanted <= min(p.candidates for p in PARTS) else self._all(asked)
        for number, (score, place) in enumerate(found):
            if len(score) > wanted:  # those that may be among the first, with all that tie with the last of them
                kept = score >= np.partition(score, -wanted)[-wanted]
                score, place = score[kept], place[kept]
            order = np.lexsort((place, -score))[:wanted]
            scores[number, : len(order)], places[number, : len(order)] = score[order], place[order]
        return scores, places

    def _near(self, asked: F32) -> list[tuple[F32, I64]]:
        """Scores and places of the candidates of each search."""
        parts = [_part_of(vector) for vector in asked]
        numbers = range(len(self.segments))
        far = [np.empty(len(self.places), np.int32) for _ in asked]
        order = sorted(range(len(asked)), key=lambda i: -parts[i].bits)  # the longest first
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            scans = {i: [pool.submit(self._scan, n, asked[i], parts[i], far[i]) for n in numbers] for i in order}
            done = {i: pool.submit(self._compared, scans[i], far[i], asked[i], parts[i]) for i in order}
            return [done[i].result() for i in range(len(asked))]

    def _scan(self, number: int, vector: F32, part: Part, far: NDArray[np.int32]) -> None:
        """Writes the distances of a segment's rows into those of all, `far`."""
        import faiss

        faiss.omp_set_num_threads(1)  # of this thread: one query is not shared out, and idle threads would spin
        code, theirs = codes(vector[None], self.center, part), self.segments[number].codes[PARTS.index(part)]
        out = far[self.starts[number] : self.starts[number + 1]]
        pointers = (faiss.swig_ptr(code), faiss.swig_ptr(theirs))
        faiss.hammings(*pointers, 1, len(theirs), part.bytes, faiss.swig_ptr(out))  # type: ignore[attr-defined]

    def _compared(
        self, scans: Sequence[Future[None]], far: NDArray[np.int32], vector: F32, part: Part
    ) -> tuple[F32, I64]:
        """Scores and places of the nearest of all segments. The scans were submitted before this was: they end."""
        for scan in scans:
            scan.result()
        few = min(part.candidates, len(far))
        rows = np.argpartition(far, few - 1)[:few]
        rows = np.sort(rows[self.places[rows] >= 0])
        ends = np.searchsorted(rows, self.starts)
        scores = np.empty(len(rows), np.float32)
        for number, segment in enumerate(self.segments):
            for first in range(int(ends[number]), int(ends[number + 1]), PIECE):
                some = slice(first, min(first + PIECE, int(ends[number + 1])))
                numbers = segment.fixed[rows[some] - self.starts[number], part.start : part.stop]
                scores[some] = numbers.astype(np.float32) @ vector[part.start : part.stop]
        return scores * STEP, self.places[rows]

    def _all(self, asked: F32) -> list[tuple[F32, I64]]:
        """Scores and places of all rows, for each search."""
        scores = np.empty((len(asked), len(self.places)), np.float32)
        for segment, start in zip(self.segments, self.starts, strict=False):
            for first in range(0, len(segment), BAND):
                band = unpacked(segment.fixed[first : first + BAND])
                scores[:, start + first : start + first + len(band)] = asked @ band.T
        kept = self.places >= 0
        return [(each[kept], self.places[kept]) for each in scores]


def _part_of(vector: F32) -> Part:
    """The narrowest part that has all of a query."""
    there = np.flatnonzero(vector)
    first, last = (int(there[0]), int(there[-1])) if there.size else (0, DIMENSIONS - 1)
    return min((p for p in PARTS if p.start <= first and last < p.stop), key=lambda p: p.stop - p.start)


def flat(vectors: F32) -> Any:
    """A FAISS index that compares with every vector."""
    import faiss

    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(vectors)
    return index
