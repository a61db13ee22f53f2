"""One pass over the elements of a tensor: its digest, its sum of squares, its narrowest precision, samples of it."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from provindex.common.halves import rounded
from provindex.common.tensor import F32, Tensor
from provindex.formats.tensors import ComputedTensor
from provindex.roles import canonical
from provindex.roles.names import Part
from provindex.roles.weights import CHUNK, Scan, element_width
from provindex.signals import wvc

Progress = Callable[[int, int], None]


RUN = 1 << 12  # elements squared and added by one call of BLAS, which starts threads of its own for longer ones


def scan(tensor: Tensor, *, row: int | None = None, sampled: bool = False) -> Scan:
    """Digest and statistics of a tensor in one pass, the norms of its rows of `row` elements if that is given, and
    WVC's samples if they are wanted.

    What is hashed are the elements in their narrowest precision. Where that is how they are stored, the stored bytes
    are hashed as they are; only float16 with NaNs is written anew, because NaNs have many spellings there.
    """
    precision = _narrowest(tensor)
    as_stored = tensor.plain and _STORED_AS.get(tensor.dtype) == precision
    digest, stored, width = hashlib.sha256(), as_stored, element_width(tensor)
    run = row or RUN
    step = CHUNK // run * run
    wide = np.empty(min(step, -(-tensor.size // run) * run))
    total, bad, norms = 0.0, 0, []
    for start in range(0, tensor.size, step):
        chunk = tensor.flat(start, start + step)
        squares = _squares(chunk, run, wide)
        part = float(squares.sum())
        finite = bool(np.isfinite(part))  # squares of float32 cannot overflow float64
        if not finite:
            bad += int(chunk.size - np.isfinite(chunk).sum())
        if as_stored and precision == "f32":
            digest.update(_narrow(chunk, precision))  # which are the stored bytes, read already
        elif as_stored and (finite or precision != "f16"):
            digest.update(tensor.raw(start * width, (start + step) * width))
        else:
            digest.update(_narrow(chunk, precision))
            stored = False
        if row:
            norms.append(np.sqrt(squares).astype(np.float32))
        total += part
    lengths = np.concatenate(norms) if norms else None
    samples = rounded(tensor.strided(*wvc.stride(tensor.size))) if sampled else None
    return Scan(total, bad, precision, digest.hexdigest(), lengths, stored, samples)


def scan_parts(tensor: Tensor, parts: Sequence[Part], *, sampled: bool = False) -> Scan:
    """The same of a tensor that holds several canonical tensors, or one in another order: each part has a digest of its
    own, as if it were stored alone in canonical order, and the tensor's is over those.
    """
    found = [scan(_alone(tensor, part)) for part in parts]
    digests = tuple(one.digest for one in found)
    samples = rounded(tensor.strided(*wvc.stride(tensor.size))) if sampled else None
    return Scan(
        sum_of_squares=sum(one.sum_of_squares for one in found),
        nonfinite=sum(one.nonfinite for one in found),
        precision=_widest([one.precision for one in found]),
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
        row_norms=None,
        stored=False,
        samples=samples,
        parts=digests,
    )


def _alone(tensor: Tensor, part: Part) -> ComputedTensor:
    shape = canonical.part_shape(tensor.shape, part)
    make = partial(canonical.read_rows, tensor, part)
    return ComputedTensor(tensor.name, tensor.dtype, shape, make, (tensor,))


def _widest(precisions: Sequence[str]) -> str:
    kinds = set(precisions)
    return kinds.pop() if len(kinds) == 1 else "f32"


def _squares(chunk: F32, run: int, wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of squares of each run of `run` elements, the last one may be shorter; in float64, with `wide` to work in."""
    runs = -(-chunk.size // run)
    with np.errstate(invalid="ignore"):
        wide[: chunk.size] = chunk
        wide[chunk.size : runs * run] = 0.0
        block = wide[: runs * run].reshape(runs, run)
        squares: NDArray[np.float64] = np.matmul(block[:, None, :], block[:, :, None])
    return squares.reshape(runs)


# Formats whose values are precisely those of a precision, and formats that bf16 holds whatever the values are.
_STORED_AS = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_FIT_BF16 = frozenset(("BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "BOOL"))


def _narrowest(tensor: Tensor) -> str:
    """The narrowest of bf16, f16 and f32 that holds every element exactly, bit for bit."""
    if tensor.dtype in _FIT_BF16:
        return "bf16"
    candidates, widest = (["bf16"], "f16") if tensor.dtype == "F16" else (["bf16", "f16"], "f32")
    probe = tensor.flat(0, min(tensor.size, 1024))  # most weights are told by their first few values
    for piece in itertools.chain((probe,), tensor.chunks(CHUNK)):
        candidates = [c for c in candidates if _holds(piece, c)]
        if not candidates:
            return widest
    return candidates[0]


def _holds(values: F32, precision: str) -> bool:
    bits = values.view(np.uint32)
    if precision == "bf16":
        return not (bits & np.uint32(0xFFFF)).any()
    if (bits & np.uint32(0x1FFF)).any():  # float16 has 13 bits fewer
        return False
    # Outside of its normal range float16 has fewer bits still, or only infinities: there numpy says.
    odd = values[(bits & np.uint32(0x7FFFFFFF)) - _F16_NORMAL > _F16_LARGEST - _F16_NORMAL]
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((odd.astype(np.float16).astype(np.float32).view(np.uint32) == odd.view(np.uint32)).all())


_F16_NORMAL, _F16_LARGEST = np.array([2.0**-14, 65504.0], np.float32).view(np.uint32)


def _narrow(values: F32, precision: str) -> bytes | memoryview:
    if precision == "bf16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").data
    with np.errstate(invalid="ignore"):
        return values.astype("<f2" if precision == "f16" else "<f4", copy=False).data


class Meter:
    """Counts the bytes that were read, and tells whoever wants to know; for several threads."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress:
                self._progress(self._done, self._total)
