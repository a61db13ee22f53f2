"""Every stored element is a weight, a part that a weight was made of, a small buffer, or named as not read."""

from __future__ import annotations

import numpy as np
import pytest

from provindex.common.reasons import Code, Reason
from provindex.formats.quantized import assembly
from provindex.formats.tensors import ByteTensor, tensor_from_array

RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((96, 64)).astype("f4")


def stored(arrays: dict[str, np.ndarray]) -> dict[str, ByteTensor]:
    return {name: tensor_from_array(name, array) for name, array in arrays.items()}


def unread(notes: tuple[Reason, ...]) -> list[tuple[object, object]]:
    """Entry and number of tensors of each reason that says so."""
    found = [dict(note.figures) for note in notes if note.code is Code.ENTRY_NOT_READ]
    return [(figures["entry"], figures["n"]) for figures in found]


# --- quantized ---

INT8 = {"a.weight": np.ones((4, 8), "i1"), "a.SCB": np.ones(4, "f4"), "a.weight_format": np.zeros((), "u1")}


@pytest.mark.parametrize(
    "name",
    ["a.biases", "a.qweight", "a.g_idx", "a.qzeros", "a.scales", "a.weight.absmax", "a.weight_packed",
     "a.weight_blocks", "a.weight_scale", "a.weight_global_scale", "a.weight_shape", "a.input_scale"],
)  # fmt: skip
def test_what_no_weight_is_made_of_stays(name: str) -> None:
    found, notes = assembly.assemble(stored(INT8 | {name: HIDDEN}), {})
    assert set(found) == {"a.weight", name} and np.array_equal(found[name].flat(), HIDDEN.reshape(-1))
    assert found["a.weight"].nbytes == 4 * 8 + 4 * 4 + 1
    told = [] if name in ("a.biases", "a.weight_blocks", "a.weight_global_scale") else [(name, 1)]
    assert unread(notes) == told  # the others are of no name that is known, which is said where names are read


def test_small_parts_that_are_not_needed_are_left_out() -> None:
    found, notes = assembly.assemble(
        stored(INT8 | {"a.weight_shape": np.ones(2, "i8"), "a.input_scale": HIDDEN[0]}), {}
    )
    assert set(found) == {"a.weight"} and unread(notes) == []
