"""How fast GGUF's blocks become float32, beside the gguf package: `python tests/benchmarks/gguf_blocks.py`.

Prints GB of float32 a second of processor time (best of several runs) and our speed as a multiple of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gguf
import numpy as np

from provindex.formats.gguf.blocks import FORMATS

ELEMENTS = 1 << 22  # the piece that Tensor.chunks hands out
ROW = 4096  # elements of a row, as in a model of 7B


def best(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest run."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
    return min(spent)


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'format':8} {'ours GB/s':>10} {'gguf':>6} {'ratio':>6}")
    for number, form in FORMATS.items():
        if form.decode is None:
            continue
        stored = rng.integers(0, 256, (ELEMENTS // form.block, form.width), dtype=np.uint8)
        kind, decode = gguf.GGMLQuantizationType(number), form.decode
        with np.errstate(all="ignore"):
            ours = best(lambda decode=decode, stored=stored: decode(stored), 9)
            rows = stored.reshape(-1, ROW // form.block * form.width)  # theirs works row by row
            theirs = best(lambda rows=rows, kind=kind: gguf.quants.dequantize(rows, kind), 3)
        print(f"{form.name:8} {4e-9 * ELEMENTS / ours:10.2f} {4e-9 * ELEMENTS / theirs:6.2f} {theirs / ours:6.1f}")


if __name__ == "__main__":
    main()
