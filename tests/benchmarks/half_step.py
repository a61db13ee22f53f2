"""What quantization grids and the half-step test tell: `python tests/benchmarks/half_step.py [SNAPSHOT_FOLDER ...]`.

The tables of provindex/evidence/README.md, from the repository's root (five minutes). Generated matrices: Student's t
with 8 degrees of freedom, 2 rows of 512 (GPTQ: 4 rows), as bfloat16. Siblings: noise of a part of the standard
deviation on every value, rounded to bfloat16. First, the share of a source's and of siblings' values beyond half a
step, for values stored as float32 and as bfloat16. Second, in how many of 200 matrices the source is nearer than a
sibling (`sign test`: not told where that could be chance). Third, matrices that lie on no grid and seem to; of real
models too, if folders are given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from quantizers import IN_GGUF, QUANTIZERS, Quantizer, affine, gptq, in_gguf

from provindex.common.halves import halved
from provindex.evidence import nearest
from provindex.evidence.grids import Grid, grid_of, residual, together
from provindex.evidence.panels import round_bf16

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
CHANGES = (0.003, 0.01, 0.03, 0.1)
SPREAD = 0.02
MATRICES, RIVALS, DRAWN = 48, 200, 3000
STORED: Mapping[str, Callable[[F32], F32]] = {
    "f32": lambda w: w,
    "f16": lambda w: w.astype(np.float16).astype(np.float32),
    "bf16": round_bf16,
}
DRAWS: Mapping[str, Callable[[np.random.Generator], F64]] = {
    "normal": lambda rng: rng.standard_normal(256) * 0.02,
    "t": lambda rng: rng.standard_t(3, 256) * 0.02,
    "uniform": lambda rng: rng.uniform(-0.05, 0.05, 256),
    "Laplace": lambda rng: rng.laplace(0, 0.02, 256),
    "tiny": lambda rng: rng.standard_normal(256) * 1e-5,
    "four fifths zero": lambda rng: rng.standard_normal(256) * (rng.random(256) < 0.2),
    "large": lambda rng: rng.standard_normal(256) * 50,
    "log-normal": lambda rng: np.exp(2 * rng.standard_normal(256)) * rng.choice([-1, 1], 256),
}


def kept(w: F32) -> F64:
    """The first 256 values, as a fingerprint has them."""
    values, scale = halved(w.ravel()[:256].astype(np.float64))
    return values.astype(np.float64) * scale


def sources(count: int, rows: int) -> list[F32]:
    rng = np.random.default_rng(0)
    return [round_bf16((rng.standard_t(8, (rows, 512)) * SPREAD).astype(np.float32)) for _ in range(count)]


def siblings(of: Sequence[F32], change: float) -> list[F32]:
    rng = np.random.default_rng(1)
    return [round_bf16((w + change * SPREAD * rng.standard_normal(w.shape)).astype(np.float32)) for w in of]


def outside(grids: Sequence[Grid | None], others: Sequence[F32]) -> float:
    """% of the others' values beyond half a step."""
    return 100 * together([residual(g, kept(w)) for g, w in zip(grids, others, strict=True) if g]).share


def print_shares() -> None:
    plain = sources(MATRICES, 2)
    kin = [siblings(plain, change) for change in CHANGES]
    made = {**{f"{name}": in_gguf(name) for name in IN_GGUF if name not in QUANTIZERS}, **QUANTIZERS}
    print("| % beyond half a step | stored | grids | source |", *(f"sibling {100 * c:g} % |" for c in CHANGES))
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name, quantize in made.items():
        for dtype, store in STORED.items():
            grids = [grid_of(kept(store(quantize(w)))) for w in plain]
            seen = sum(g is not None for g in grids)
            shares = [f"{outside(grids, other):.2f}" if seen else "" for other in (plain, *kin)]
            print(f"| {name} | {dtype} | {seen} of {MATRICES} |", " | ".join(shares), "|", flush=True)


def rescaled(quantize: Quantizer) -> Quantizer:
    """As AWQ: columns times factors, which the norm before takes back."""
    factors = np.exp(0.15 * np.random.default_rng(5).standard_normal(512)).astype(np.float32)
    return lambda w: quantize(w * factors)


def print_nearest() -> None:
    plain = sources(RIVALS, 4)
    kin = [siblings(plain, change) for change in CHANGES]
    made = {f"GPTQ, {bits} bits": gptq(128, bits) for bits in (8, 4, 3)}
    made |= {"4 bits with rescaled channels (AWQ)": rescaled(affine(128, 4)), "Q2_K": QUANTIZERS["Q2_K"]}
    print(f"\n| nearer, of {RIVALS} |", *(f"{100 * c:g} % |" for c in CHANGES))
    print("|---|--:|--:|--:|--:|")
    for name, quantize in made.items():
        copies = [kept(quantize(w)) for w in plain]
        away = [{str(i): float(np.square(q - kept(w)).sum()) for i, (q, w) in enumerate(zip(copies, m, strict=True))}
                for m in (plain, *kin)]  # fmt: skip
        cells = []
        for other in away[1:]:
            won, _ = nearest.wins(away[0], other)
            told = len(nearest.nearest([away[0], other])) == 1
            cells.append(f"{won}" if told else f"{won} (not told)")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def print_columns() -> None:
    """How far GPTQ moves values along a row."""
    plain = sources(RIVALS, 4)
    for bits in (4, 3):
        found = [(g, kept(w)) for w in plain if (g := grid_of(kept(gptq(128, bits)(w)))) is not None]
        cells = []
        for columns in (slice(0, 4), slice(4, 128), slice(128, 256)):
            off = [((x < g.low) | (x > g.high))[columns] for g, x in found]
            cells.append(f"{100 * float(np.mean(off)):.1f} %")
        print(f"GPTQ, {bits} bits, beyond half a step in columns 1 to 4, 5 to 128, 129 to 256: {', '.join(cells)}")


def print_false(folders: Sequence[str]) -> None:
    print("\n| ordinary weights | matrices with a grid |\n|---|--:|")
    for dtype, store in STORED.items():
        rng, seen = np.random.default_rng(2), 0
        for draw in DRAWS.values():
            seen += sum(grid_of(kept(store(draw(rng).astype(np.float32)))) is not None for _ in range(DRAWN))
        print(f"| {len(DRAWS)} distributions, {dtype} | {seen} of {len(DRAWS) * DRAWN} |", flush=True)
    for folder in folders:
        for dtype, store in STORED.items():
            found = [grid_of(kept(store(w))) is not None for w in matrices(folder)]
            print(f"| {Path(folder).name}, {dtype} | {sum(found)} of {len(found)} |", flush=True)


def matrices(folder: str) -> list[F32]:
    """The first values of every layer's matrix of a model."""
    from provindex.fingerprint.extract.model import fingerprint_model
    from provindex.models.source import open_model

    blocks = fingerprint_model(open_model(folder)).blocks
    if blocks is None:
        return []
    return [
        blocks.samples[i, : blocks.counts[i]].astype(np.float32) * blocks.scales[i]
        for i, key in enumerate(blocks.keys)
        if key.split(".")[1].isdigit() and blocks.counts[i] == 256
    ]


if __name__ == "__main__":
    print_shares()
    print_nearest()
    print_columns()
    print_false(sys.argv[1:])
