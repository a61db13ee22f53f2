"""Models whose tensor names say nothing: roles from shapes, tests that try the readings, and no clearance."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from prints import fingerprint

from build_index.zoo.descendants import add_noise
from build_index.zoo.freedoms.draws import Refusal
from build_index.zoo.renames import RENAMES
from build_index.zoo.snapshot import Snapshot
from provindex.common.reasons import Code
from provindex.evidence.panels import UNNAMED
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.roles.names import resolve
from provindex.roles.structure import Structure, infer, layer_numbers
from provindex.verdict.pair import compare

FAMILIES = {"llama": zoo.llama, "qwen2": zoo.qwen2, "gpt2": zoo.gpt2, "gpt_neox": zoo.neox, "bert": zoo.bert}
NAMELESS = ("scrambled", "random")


def snapshot(family: str, seed: int) -> Snapshot:
    """A small model without gains and biases, so that nothing but its matrices can tell whose it is."""
    made = FAMILIES[family](seed)
    plain = {n: t if t.ndim > 1 else np.full_like(t, "norm" in n.lower() or "ln" in n) for n, t in made.tensors.items()}
    return Snapshot(f"{family}-{seed}", plain, made.config, "")


def read(model: Snapshot, rename: str = "", noise: bool = True) -> Fingerprint:
    if rename:
        renamed = RENAMES[rename](add_noise(model, 0.05, 1) if noise else model, 2)
        assert not isinstance(renamed, Refusal)
        model = renamed
    return fingerprint(zoo.Checkpoint(dict(model.config), model.tensors), model.name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rename", NAMELESS)
def test_a_noisy_copy_without_names_is_linked(family: str, rename: str) -> None:
    original, copy = read(snapshot(family, 1)), read(snapshot(family, 1), rename)
    assert (original.roles, copy.roles) == ("named", "inferred")
    for pair in (compare(original, copy), compare(copy, original), compare(copy, read(snapshot(family, 1), "random"))):
        assert pair.verdict == "linked"
        assert min(pair.evidence[n].log10_p or 0 for n in ("hidden_fixed_points", "hidden_alignment")) < -12
        assert Code.ROLES_INFERRED in {r.code for r in pair.reasons}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rename", NAMELESS)
def test_a_stranger_without_names_is_neither_linked_nor_cleared(family: str, rename: str) -> None:
    original, nameless = read(snapshot(family, 1)), [read(snapshot(family, seed), rename) for seed in (2, 3)]
    for a, b in ((original, nameless[0]), (nameless[0], original), (nameless[0], nameless[1])):
        pair = compare(a, b)
        assert pair.verdict == "inconclusive" and pair.reasons
        assert (pair.evidence["hidden_alignment"].log10_p or 0) > -6


def test_a_test_that_would_have_seen_a_copy_does_not_clear_inferred_roles() -> None:
    a, b = read(snapshot("llama", 1)), read(snapshot("llama", 2))
    assert compare(a, b).verdict == "unrelated"
    reason = read(snapshot("llama", 2), "scrambled").absences["roles"]
    claimed = replace(b, absences={**b.absences, "roles": reason})
    pair = compare(a, claimed)
    assert pair.verdict == "inconclusive" and pair.reasons[0].code is Code.INFERRED_NEVER_CLEAR


def test_inferred_roles_are_in_the_row() -> None:
    made = read(snapshot("qwen2", 1), "scrambled")
    back = from_row(to_row(made))
    assert back.roles == "inferred" and dict(back.absences["roles"].figures) == {"hidden": 64, "width": 160}
    assert back.facts.hidden == 64 and back.facts.layers == 3
    assert back.hidden is not None and {key.stack for key in back.hidden.keys} == {UNNAMED}
    assert to_row(back)["row_sha256"] == to_row(made)["row_sha256"]


def structure_of(family: str, rename: str) -> Structure | None:
    renamed = RENAMES[rename](snapshot(family, 1), 2)
    assert isinstance(renamed, Snapshot)
    return resolve({name: t.shape for name, t in renamed.tensors.items()}, {}).structure


@pytest.mark.parametrize(("family", "gated", "columns"), [("llama", True, {False}), ("gpt2", False, {False, True})])
def test_what_shapes_tell(family: str, gated: bool, columns: set[bool]) -> None:
    named, alone = structure_of(family, "scrambled"), structure_of(family, "random")
    assert named is not None and alone is not None
    assert named.gated == alone.gated == gated and (named.layers, alone.layers) == (3, 0)
    assert {units.columns for units in named.units} == columns
    assert {len(units.names) for units in named.units} == {1 + gated} and {len(u.names) for u in alone.units} == {1}
    assert len(alone.units) == 6


def test_the_number_that_keeps_the_shape_is_the_layer() -> None:
    shapes = {f"x7.b{layer}.k{kind}": (8, 4 + kind) for layer in range(4) for kind in range(3)}
    assert layer_numbers(shapes, shapes) == {name: int(name[4]) for name in shapes}
    experts = {f"l{layer}.e{expert}": (8, 4) for layer in range(2) for expert in range(3)}
    assert layer_numbers(experts, experts) == {name: int(name[1]) for name in experts}


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"a": (64, 64), "b": (64, 64), "c": (64, 64)},
        {f"conv{i}": (64, 64, 3, 3) for i in range(9)},
        {"embed": (1000, 64), "head": (1000, 64), "norm": (64,)},
        {f"q{i}": (192, 64) for i in range(6)},  # fused attention alone is no MLP
    ],
)
def test_no_structure_where_there_is_no_mlp(shapes: dict[str, tuple[int, ...]]) -> None:
    assert infer(shapes) is None


def test_an_adapter_is_no_model_whose_shapes_tell_roles() -> None:
    shapes = {f"x.{i}.lora_{side}.weight": (8, 64) if side == "A" else (64, 8) for i in range(4) for side in "AB"}
    assert infer(shapes) is not None and resolve(shapes, {}).structure is None


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=12))
def test_structure_never_raises(shapes: dict[str, tuple[int, ...]]) -> None:
    found = infer(shapes)
    assert found is None or all(set(shapes[n]) == {found.hidden, found.width} for u in found.units for n in u.names)


def test_many_names_without_sense_are_read_quickly() -> None:
    shapes = {f"z{i * 7919}": ((256, 64), (64, 256), (64, 64))[i % 3] for i in range(30_000)}
    shapes |= {"9" * 50_000: (64, 64), "1.2." * 20_000: (64, 256)}
    start = time.perf_counter()
    structure = resolve(shapes, {}).structure
    assert structure is not None and structure.layers == 0 and len(structure.units) == 512
    assert time.perf_counter() - start < 5
