"""The table of tests, in the order of documents. A test is one file and one row here.

E5 (`deep.py`) is no row: it reads weights, and runs only where somebody asks for it.
"""

from __future__ import annotations

from provindex.common.tables import Test
from provindex.evidence import (
    aligned,
    bit_reuse,
    hidden_units,
    neuron_invariants,
    neuron_signs,
    norm_alignment,
    residual_basis,
    sampled,
    sketch,
)

TESTS: tuple[Test, ...] = (
    bit_reuse.TEST,
    hidden_units.FIXED,
    hidden_units.ALIGNED,
    residual_basis.FIXED,
    residual_basis.GRAM,
    norm_alignment.TEST,
    norm_alignment.BIASES,
    aligned.TEST,
    sketch.TEST,
    neuron_signs.TEST,
    neuron_invariants.TEST,
    sampled.FIXED,
    sampled.ALIGNED,
)
