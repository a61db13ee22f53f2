"""What the disguises draw, how they change an axis, and how they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..parts import Change
from ..snapshot import Snapshot

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Refusal:
    """A disguise that would change the function of this architecture, and why."""

    reason: str


Disguise = Callable[[Snapshot, int], "Snapshot | Refusal"]


def rng_of(seed: int, what: str) -> np.random.Generator:
    """One stream of random numbers for each seed and disguise."""
    return np.random.default_rng([seed, crc32(what.encode())])


def ordered(order: I64) -> Change:
    """Put the first axis in another order."""
    return lambda a: a[order]


def scaled(scale: F64) -> Change:
    """Multiply along the first axis."""
    return lambda a: (a.T * scale).T


def rotation(size: int, rng: np.random.Generator) -> F64:
    """A random orthogonal matrix."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)))


def rotation_keeping_ones(size: int, rng: np.random.Generator) -> F64:
    """A random orthogonal matrix with the all-ones vector fixed."""
    ones = np.full(size, size**-0.5)
    axis = ones - np.eye(size)[0]
    mirror = np.eye(size) - 2 * np.outer(axis, axis) / (axis @ axis)  # takes the first basis vector to ones
    inner = np.eye(size)
    inner[1:, 1:] = rotation(size - 1, rng)
    return np.asarray(mirror @ inner @ mirror)


def scales(size: int, rng: np.random.Generator, *, signs: bool) -> F64:
    """Factors around one, log-normal."""
    scales = np.exp(0.7 * rng.standard_normal(size))
    return scales * rng.choice([-1.0, 1.0], size) if signs else scales
