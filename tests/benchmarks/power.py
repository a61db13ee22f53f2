"""How weak a link each exact test sees: `python tests/benchmarks/power.py [children]`, from the repository's root.

Parents are generated Llamas (no two share a seed), children are their parents with i.i.d. noise added to every matrix,
at a fixed cosine. A second table has children that lost or repeat layers as well. log10 p is the median over children,
after Bonferroni over layer maps and sides; "linked" counts children whose verdict is `linked`. The last row of each
shape is the null: another parent of the same config.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from provindex.evidence import hidden_units, residual_basis

sys.path.insert(0, str(Path(__file__).parents[1]))

import zoo
from prints import fingerprint

from provindex.fingerprint.record import Fingerprint
from provindex.verdict.pair import compare

COSINES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
SHAPES = ((2, 64), (8, 64), (15, 64), (4, 256), (12, 256))  # layers, residual width
KEPT = (0, 1, 3, 4, 6, 7, 9, 11, 12, 14)
REPEATED = (*range(10), *range(5, 15))
HEAD = f"{'layers':>6} {'width':>5} {'child':>12} {'E1':>8} {'E1z':>8} {'E2':>8} {'linked':>8}"


def log10_ps(a: Fingerprint, b: Fingerprint) -> tuple[float, float, float, bool]:
    """E1, E1z, E2 and whether the pair is linked."""
    hidden = hidden_units.hidden_tests(a.hidden, b.hidden)
    residual = residual_basis.residual_test(a.residual, b.residual)
    values = (hidden.fixed.log10_p or 0.0, hidden.aligned.log10_p or 0.0, residual.log10_p or 0.0)
    return *values, compare(a, b).verdict == "linked"


def line(layers: int, width: int, child: str, results: Sequence[tuple[float, float, float, bool]]) -> str:
    medians = np.median([r[:3] for r in results], axis=0) + 0.0
    columns = " ".join(f"{value:8.1f}" for value in medians)
    return f"{layers:6} {width:5} {child:>12} {columns} {sum(r[3] for r in results):5}/{len(results)}"


def main(children: int) -> None:
    print(f"{children} children a row, seeds 0 to {children - 1}; parents have seed 1000, the null's seed 2000 and up")
    print(HEAD)
    for layers, width in SHAPES:
        parent = zoo.llama(1000, layers=layers, hidden=width, intermediate=2 * width)
        ours = fingerprint(parent)
        for cosine in COSINES:
            made = [log10_ps(ours, fingerprint(zoo.finetune_noise(parent, cosine, s))) for s in range(children)]
            print(line(layers, width, f"cosine {cosine:g}", made), flush=True)
        others = (zoo.llama(2000 + s, layers=layers, hidden=width, intermediate=2 * width) for s in range(children))
        print(line(layers, width, "independent", [log10_ps(ours, fingerprint(o)) for o in others]), flush=True)
    print(f"\n10 of 15 layers {KEPT}, and 20 layers {REPEATED} of one parent\n{HEAD}")
    parent = zoo.llama(1000, layers=15, hidden=64)
    ours = fingerprint(parent)
    for name, order in (("kept", KEPT), ("rep", REPEATED)):
        derived = zoo.repeat_layers(parent, order)
        for cosine in (1.0, 0.5, 0.2, 0.1, 0.05):
            made = [log10_ps(ours, fingerprint(zoo.finetune_noise(derived, cosine, s))) for s in range(children)]
            print(line(15, 64, f"{name}, {cosine:g}", made), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
