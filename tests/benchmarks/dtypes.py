"""How fast each stored format becomes float32, beside ml_dtypes: `python tests/benchmarks/dtypes.py`.

Prints GB of float32 a second of processor time (best of several runs) and our speed as a multiple of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from provindex.formats.dtypes import STORED, decode

ELEMENTS = 1 << 22  # the piece that Tensor.chunks hands out
THEIRS = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def best(run: Callable[[], object], times: int = 15) -> float:
    """Seconds of the fastest run."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
    return min(spent)


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'format':12} {'ours GB/s':>10} {'ml_dtypes':>10} {'ratio':>6}")
    for dtype in ("F64", "F32", "F16", *THEIRS, "I8", "U8"):
        raw = rng.integers(0, 255, ELEMENTS * STORED[dtype].itemsize, dtype=np.uint8)
        if dtype in ("F64", "F32", "F16"):  # values as weights have them: subnormals and NaN are slow to convert
            raw = (rng.standard_normal(ELEMENTS) * 0.02).astype(STORED[dtype]).view(np.uint8)
        stored = raw.view(STORED[dtype])
        ours = best(lambda stored=stored, dtype=dtype: decode(stored, dtype))
        line = f"{dtype:12} {4 * ELEMENTS / ours / 1e9:10.2f}"
        if dtype in THEIRS:
            typed = raw.view(THEIRS[dtype])
            theirs = best(lambda typed=typed: typed.astype(np.float32))
            line += f" {4 * ELEMENTS / theirs / 1e9:10.2f} {theirs / ours:6.2f}"
        print(line)


if __name__ == "__main__":
    main()
