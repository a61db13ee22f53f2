"""Exact and approximate search of many retrieval vectors, chosen by their number.

Below FLAT rows FAISS compares whole vectors (`IndexFlatIP`). From there on a search has four steps, each of fewer rows
by more of what is known of them: sign-bit codes of all rows (FAISS, Hamming distance); as many signs again where a
block is wide; the numbers, to 16 bits of the largest of a row's group; and of the last FINALISTS to 24 bits, so that
their order is that of an exact search, but for what float32 sums differ by anyway. All are memory-mapped.

A code is the signs of a group of blocks after fixed random rotations (signs at random, then a Hadamard transform). The
query is not cut down to signs: its rotated numbers keep PLANES bits, each a code of its own, and a distance is the sum
of the planes' Hamming distances, weighted 1, 2, 4. Among strangers, whose cosines are chance, distances of one rotation
have then a correlation of 0.78 with the cosine (signs against signs: 2/pi), of two 0.87, for the same memory. The
planes read a code while it is in the processor's cache: it is memory that a scan waits for. A search of several groups
adds up their distances, weighted as the cosine is, so it needs no codes of its own.

Groups in which all models are alike are centered first. Rows without a group are flagged and get the
distance of cosine 0.

Source: Charikar, Similarity estimation techniques from rounding algorithms, 2002; the fast rotation: Ailon and
Chazelle, Approximate nearest neighbors and the fast Johnson-Lindenstrauss transform, 2006; the query in planes: Gao and
Long, RaBitQ: quantizing high-dimensional vectors with a theoretical error bound, 2024.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provindex.common.threads import one_blas_thread
from provindex.index.search import BLOCKS, DIMENSIONS

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]

FLAT = 20_000  # rows from which on codes are used: exactly, seven searches took 0.075 s there, twice as long
LARGEST = 0.5  # no number of a vector is above the root of a block's weight, .39
STEPS = 32767 * 256  # of the fixed point, up to a group's largest number
PLANES = 3  # bits of a query's rotated numbers
LEVEL = np.float32(0.586)  # between two of the eight, in deviations: the best for normal numbers (Max, 1960)
FINALISTS = 512  # rows whose numbers are compared to 24 bits
TOGETHER = 1 << 21  # bytes that a call works on: they stay in the last cache; less, and threads wait for each other
SAMPLE = 1 << 16  # distances by which the limit for candidates is chosen
THREADS = 4  # that scan and compare
BAND = 8192  # rows that an exact search unpacks at a time, 115 MB
CENTERED = ("eas", "eas_by_id", "lep", "end", "nlf", "invariants")  # blocks in which strangers are alike


@dataclass(frozen=True)
class Group:
    """Neighboring blocks, the columns `start` to `stop` (as many as a power of two), that have codes together.

    bits: signs that all rows are compared by. more: as many others, of candidates. candidates: rows that the first
    signs leave, of a search in this group; kept: rows that all signs leave, whose numbers are compared.
    """

    start: int
    stop: int
    bits: int
    more: bool
    candidates: int
    kept: int

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def bytes(self) -> int:
        """Of the code that all rows are compared by."""
        return self.bits // 8


def _group(blocks: Sequence[str], bits: int, candidates: int, kept: int | None = None) -> Group:
    ends = np.cumsum([0, *(width for width, _ in BLOCKS.values())])
    places = [list(BLOCKS).index(name) for name in blocks]
    start, stop = int(ends[min(places)]), int(ends[max(places) + 1])
    return Group(start, stop, bits, kept is not None, candidates, kept or candidates)


GROUPS: tuple[Group, ...] = (
    _group(("vabs",), 512, 40_000),
    _group(("vabs_by_id",), 512, 40_000),
    _group(("eas",), 256, 40_000),
    _group(("eas_by_id",), 256, 40_000),
    _group(("wvc",), 2048, 80_000, 20_000),
    _group(("digests",), 512, 30_000),
    _group(("lep", "end", "nlf"), 128, 30_000),
    _group(("invariants",), 512, 80_000),
    _group(("norms",), 512, 40_000),
)
FEW = 2  # groups of which a search has the larger one's candidates
SEVERAL = (40_000, 12_000)  # candidates, and how many are kept, of a search in more groups


# --- vectors as fixed point and as codes ---


def packed(vectors: F32) -> tuple[I16, I8, F32]:
    """A group's numbers, (rows, width), as 24-bit fixed point: the upper 16 bits, the lower 8, and the step, (rows,).

    What is no number becomes 0, what is too large the largest.
    """
    there = np.clip(np.nan_to_num(vectors), -LARGEST, LARGEST)
    step = np.maximum(np.abs(there).max(1), np.float32(1e-30)) / np.float32(STEPS)
    fixed = np.clip(np.rint(there / step[:, None]), -STEPS, STEPS).astype(np.int32)
    high = (fixed + 128) >> 8
    return high.astype(np.int16), (fixed - (high << 8)).astype(np.int8), step


def _whole(high: I16, low: I8) -> F32:
    """Numbers in steps; float32 has 24 bits too."""
    out = high.astype(np.float32)
    out *= 256
    out += low
    return out


def center_of(vectors: F32) -> F32:
    """What codes are centered on, (3520,): the mean of some models in blocks in which strangers are alike, else 0."""
    center = np.zeros(DIMENSIONS, np.float32)
    start = 0
    for name, (width, _) in BLOCKS.items():
        there = vectors[:, start : start + width]
        there = there[np.any(there, axis=1)]
        if name in CENTERED and len(there):
            center[start : start + width] = there.mean(0)
        start += width
    return center


def codes(vectors: F32, center: F32, group: Group) -> U8:
    """The codes of a group of vectors, (rows, group.bytes), twice as wide where it has `more`."""
    return np.packbits(_rotated(vectors, center, group) > 0, axis=1)


def _rotated(vectors: F32, center: F32, group: Group) -> F32:
    """A group's numbers, centered, after each rotation, side by side; not scaled."""
    there = vectors[:, group.start : group.stop] - center[group.start : group.stop]
    rotations = range((group.bits << group.more) // group.width)
    return np.concatenate([_hadamard(there * _signs(group, number)) for number in rotations], axis=1)


@lru_cache(maxsize=64)
def _signs(group: Group, number: int) -> F32:
    """The signs, (width,), that make a Hadamard transform a random rotation; from a hash, so the same everywhere."""
    label = f"provindex/1/nearest/{group.start}/{group.stop}/{number}".encode()
    stream = np.frombuffer(hashlib.shake_256(label).digest(group.width // 8), np.uint8)
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
    """Some rows.

    codes, more, high, low: an array, (rows, ...), for each of GROUPS: what all rows are compared by, the other signs
    where the group has them, and the numbers of `packed`. steps: of these, (rows, groups). has: which groups a
    row has something of, a bit each, (rows,).
    """

    codes: Sequence[U8]
    more: Sequence[U8 | None]
    high: Sequence[I16]
    low: Sequence[I8]
    steps: F32
    has: U16

    def __len__(self) -> int:
        return len(self.has)

    @property
    def has_vector(self) -> NDArray[np.bool_]:
        """Which rows have a vector at all."""
        return np.asarray(self.has != 0)

    @classmethod
    def of(cls, vectors: F32, center: F32) -> Segment:
        """Of vectors, in memory."""
        bands = [arrays(vectors[first : first + BAND], center) for first in range(0, len(vectors), BAND)]
        return cls.split([np.concatenate(each) for each in zip(*bands, strict=True)])

    @classmethod
    def split(cls, made: Sequence[NDArray[Any]]) -> Segment:
        """Of arrays in the order of `arrays`."""
        several, left = len(GROUPS), iter(made)
        coded = [next(left) for _ in range(several)]
        more = [next(left) if group.more else None for group in GROUPS]
        high, low = ([next(left) for _ in range(several)] for _ in range(2))
        return cls(coded, more, high, low, next(left), next(left))

    def vectors(self, rows: int | slice | NDArray[np.integer[Any]] | Sequence[int]) -> F32:
        """The vectors of some rows, (n, 3520), or of one, (3520,)."""
        steps = self.steps[rows]
        parts = [_whole(self.high[n][rows], self.low[n][rows]) * steps[..., n, None] for n in range(len(GROUPS))]
        return np.concatenate(parts, axis=-1)


def arrays(vectors: F32, center: F32) -> list[NDArray[Any]]:
    """What a segment keeps of vectors: codes, the other codes, upper bits, lower bits, steps, has."""
    coded = [codes(vectors, center, group) for group in GROUPS]
    numbers = [packed(vectors[:, group.start : group.stop]) for group in GROUPS]
    first = [np.ascontiguousarray(code[:, : group.bytes]) for code, group in zip(coded, GROUPS, strict=True)]
    more = [np.ascontiguousarray(c[:, g.bytes :]) for c, g in zip(coded, GROUPS, strict=True) if g.more]
    high, low, steps = zip(*numbers, strict=True)
    has = sum(np.any(vectors[:, g.start : g.stop], axis=1).astype(np.uint16) << n for n, g in enumerate(GROUPS))
    return [*first, *more, *high, *low, np.stack(steps, axis=1), np.asarray(has, np.uint16)]


def widths() -> list[tuple[int, type[np.generic]]]:
    """Of each array of `arrays`, the values a row and their type."""
    first = [(group.bytes, np.uint8) for group in GROUPS]
    more = [(group.bytes, np.uint8) for group in GROUPS if group.more]
    numbers = [(group.width, kind) for kind in (np.int16, np.int8) for group in GROUPS]
    return [*first, *more, *numbers, (len(GROUPS), np.float32), (1, np.uint16)]


@dataclass(frozen=True, eq=False)
class _Term:
    """What a query asks of a group, its number.

    planes: (PLANES, bytes). zero: the distance at which the cosine is about zero. weight: of a distance, among groups.
    """

    number: int
    planes: U8
    zero: int
    weight: float

    @property
    def key(self) -> tuple[int, bytes]:
        """Terms with equal keys have equal distances."""
        return self.number, self.planes.tobytes()


def _terms(vector: F32, center: F32) -> list[_Term]:
    """Of all groups of which a query has something."""
    out = []
    for number, group in enumerate(GROUPS):
        if vector[group.start : group.stop].any():
            turned = _rotated(vector[None], center, group)[0]
            length = float(np.sqrt(np.mean(turned**2)))  # of the centered numbers, as transforms are not scaled
            half = 1 << (PLANES - 1)
            level = np.clip(np.floor(turned / (LEVEL * max(length, 1e-30))) + half, 0, 2 * half - 1).astype(np.uint8)
            planes = np.stack([np.packbits((level >> plane) & 1) for plane in range(PLANES)])
            weight = float(LEVEL) * (math.pi / 2) ** 0.5 * length**2 / group.bits
            middle = center[group.start : group.stop]
            mean = float((2 * vector[group.start : group.stop] - middle) @ middle)  # of rows as far from the center
            zero = (half - 0.5) * group.bits + mean / max(weight, 1e-30)
            out.append(_Term(number, planes, round(min(max(zero, 0), 2**16 - 1)), weight))
    return out


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
        self.code_size = sum(width * np.dtype(kind).itemsize for width, kind in widths())  # bytes a row

    def search(self, asked: F32, wanted: int) -> tuple[F32, I64]:
        """(scores, places) of the `wanted` rows with the largest inner products, best first, (queries, wanted) each.

        Where fewer are found the rest is -inf and -1. More rows than FINALISTS are found exactly, which reads
        everything.
        """
        scores = np.full((len(asked), wanted), -np.inf, np.float32)
        places = np.full((len(asked), wanted), -1, np.int64)
        found = self._near(asked) if wanted <= FINALISTS else self._all(asked)
        for number, (score, place) in enumerate(found):
            if len(score) > wanted:  # those that may be among the first, with all that tie with the last of them
                kept = score >= np.partition(score, -wanted)[-wanted]
                score, place = score[kept], place[kept]
            order = np.lexsort((place, -score))[:wanted]
            scores[number, : len(order)], places[number, : len(order)] = score[order], place[order]
        return scores, places

    def _near(self, asked: F32) -> list[tuple[F32, I64]]:
        """Scores and places of the finalists of each search."""
        terms = [_terms(vector, self.center) for vector in asked]
        once = {term.key: term for several in terms for term in several}
        far = {key: np.empty(len(self.places), np.uint16) for key in once}
        widest = sorted(once, key=lambda key: -GROUPS[key[0]].bits)
        order = sorted(range(len(asked)), key=lambda i: -sum(GROUPS[t.number].width for t in terms[i]))
        with one_blas_thread(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            numbers = range(len(self.segments))
            scans = {key: [pool.submit(self._scan, n, once[key], far[key]) for n in numbers] for key in widest}
            done = {i: pool.submit(self._found, asked[i], terms[i], scans, far) for i in order}
            return [done[i].result() for i in range(len(asked))]

    def _scan(self, number: int, term: _Term, far: U16) -> None:
        """Writes the distances of a segment's rows into those of all, `far`."""
        segment = self.segments[number]
        code, lacks = segment.codes[term.number], segment.has & (1 << term.number) == 0
        planes = np.ascontiguousarray(term.planes[:, : code.shape[1]])
        out, together = far[self.starts[number] : self.starts[number + 1]], TOGETHER // code.shape[1]
        for first in range(0, len(code), together):
            out[first : first + together] = _distances(planes, code[first : first + together])
        out[lacks] = term.zero

    def _found(
        self,
        vector: F32,
        terms: Sequence[_Term],
        scans: Mapping[tuple[int, bytes], Sequence[Future[None]]],
        far: Mapping[tuple[int, bytes], U16],
    ) -> tuple[F32, I64]:
        """Scores and places of a search's finalists. The scans were submitted before this was: they end."""
        for term in terms:
            for scan in scans[term.key]:
                scan.result()
        candidates, kept = SEVERAL
        if 0 < len(terms) <= FEW:
            candidates = max(GROUPS[term.number].candidates for term in terms)
            kept = max(GROUPS[term.number].kept for term in terms)
        rows = _smallest(far[terms[0].key] if len(terms) == 1 else self._summed(terms, far), candidates)
        rows = rows[self.places[rows] >= 0]
        if len(rows) > kept:
            rows = rows[_smallest(self._again(rows, terms, far), kept)]
        rows = rows[_smallest(-self._scores(rows, vector, terms, last=False), FINALISTS)]
        return self._scores(rows, vector, terms, last=True), self.places[rows]

    def _summed(self, terms: Sequence[_Term], far: Mapping[tuple[int, bytes], U16]) -> F32:
        """The distances of all rows over several groups."""
        out = np.zeros(len(self.places), np.float32)
        for first in range(0, len(out), SAMPLE):
            some = slice(first, first + SAMPLE)
            for term in terms:
                out[some] += far[term.key][some] * np.float32(term.weight)
        return out

    def _again(self, rows: I64, terms: Sequence[_Term], far: Mapping[tuple[int, bytes], U16]) -> F32:
        """The distances of some rows by all signs."""
        out = np.zeros(len(rows), np.float32)
        for term in terms:
            group, there = GROUPS[term.number], far[term.key][rows].astype(np.float32)
            if group.more:
                planes = np.ascontiguousarray(term.planes[:, group.bytes :])
                for segment, inside, some in self._pieces(rows, group.bytes):
                    code = segment.more[term.number]
                    assert code is not None
                    others = _distances(planes, code.take(inside, axis=0))
                    others[segment.has[inside] & (1 << term.number) == 0] = term.zero
                    there[some] = (there[some] + others) / 2
            out += there * np.float32(term.weight)
        return out

    def _scores(self, rows: I64, vector: F32, terms: Sequence[_Term], last: bool) -> F32:
        """Inner products of some rows, ascending: by all 24 bits, or, 256 times too small, by the upper 16."""
        scores = np.zeros(len(rows), np.float32)
        for term in terms:
            group = GROUPS[term.number]
            asked = vector[group.start : group.stop]
            for segment, inside, some in self._pieces(rows, 4 * group.width):
                high = segment.high[term.number].take(inside, axis=0)
                low = segment.low[term.number].take(inside, axis=0) if last else None
                numbers = high.astype(np.float32) if low is None else _whole(high, low)
                scores[some] += (numbers @ asked) * segment.steps[inside, term.number]
        return scores

    def _pieces(self, rows: I64, width: int) -> Iterator[tuple[Segment, I64, slice]]:
        """Some rows, ascending, piece by piece: their segment, their numbers there, and which of `rows` they are."""
        ends = np.searchsorted(rows, self.starts).tolist()
        together = max(TOGETHER // width, 1)
        for segment, start, begin, end in zip(self.segments, self.starts, ends, ends[1:], strict=False):
            for first in range(begin, end, together):
                some = slice(first, min(first + together, end))
                yield segment, rows[some] - start, some

    def _all(self, asked: F32) -> list[tuple[F32, I64]]:
        """Scores and places of all rows, for each search."""
        scores = np.empty((len(asked), len(self.places)), np.float32)
        for segment, start in zip(self.segments, self.starts, strict=False):
            for first in range(0, len(segment), BAND):
                band = segment.vectors(slice(first, first + BAND))
                scores[:, start + first : start + first + len(band)] = asked @ band.T
        kept = self.places >= 0
        return [(each[kept], self.places[kept]) for each in scores]


def _distances(planes: U8, code: U8) -> U16:
    """The distances of codes, (rows, bytes), to a query's planes: at most 7 times the bits."""
    import faiss

    faiss.omp_set_num_threads(1)  # of this thread: rows are shared out already, and idle threads would spin
    each = np.empty((PLANES, len(code)), np.int32)
    pointers = (faiss.swig_ptr(planes), faiss.swig_ptr(code))
    faiss.hammings(*pointers, PLANES, len(code), code.shape[1], faiss.swig_ptr(each))  # type: ignore[attr-defined]
    total = each[-1]
    for plane in each[-2::-1]:
        total <<= 1
        total += plane
    return np.asarray(total, np.uint16)


def _smallest(values: NDArray[Any], count: int) -> I64:
    """Places of the `count` smallest, ascending; of many values about so many, by a limit that a sample gives."""
    if count >= len(values):
        return np.arange(len(values))
    some = values[:: max(len(values) // SAMPLE, 1)]
    at = count * len(some) // len(values)
    places = np.flatnonzero(values <= np.partition(some, at)[at])
    if len(places) > count + count // 4:  # many that are equal
        places = np.sort(places[np.argpartition(values[places], count)[:count]])
    return places


def flat(vectors: F32) -> Any:
    """A FAISS index that compares with every vector."""
    import faiss

    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(vectors)
    return index
