"""Direction: each item alone, their sum, and pairs trained for real."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import zoo
from test_start import panel
from trained_pairs import family

from provindex.evidence import direction, token_rows
from provindex.evidence.direction import Item, Structure
from provindex.evidence.merge import Values
from provindex.report.words import text

ANCHORS = np.arange(10, 522, dtype=np.int32)


def values(checkpoint: zoo.Checkpoint) -> Values:
    return {n: v.ravel().astype(np.float64) for n, v in checkpoint.tensors.items() if "proj" in n}


def side(**changes: object) -> Structure:
    plain: dict[str, object] = {"layers": 4, "vocabulary": 600, "precision": "f32", "quantized": False}
    return Structure(**(plain | {"anchor_ids": ANCHORS, "neurons": 64} | changes))  # type: ignore[arg-type]


STRUCTURES: tuple[tuple[str, Structure, str], ...] = (
    ("pruned", side(layers=3), "fewer layers"),
    ("pruned", side(neurons=48), "fewer neurons"),
    ("upscaled", side(layers=6), "repeats layers"),
    ("quantized", side(quantized=True), "grid"),
    ("recast", side(precision="bf16"), "half precision"),
    ("vocabulary", side(vocabulary=601), "tokens added"),
    ("vocabulary", side(vocabulary=300, anchor_ids=ANCHORS - 10), "part of the vocabulary"),
)


@pytest.mark.parametrize(("relation", "child", "why"), STRUCTURES)
def test_structure_names_the_child_whichever_comes_first(relation: str, child: Structure, why: str) -> None:
    for a, b, role in ((side(), child, "ancestor"), (child, side(), "descendant")):
        item = direction.structure(a, b, relation)
        assert item is not None and why in text(item.reason)
        assert direction.direction([item]).role == role


@pytest.mark.parametrize(
    ("relation", "other"),
    [
        ("finetune", side(layers=3)),
        ("recast", side(precision="")),
        ("recast", side()),
        ("vocabulary", side(vocabulary=500, anchor_ids=np.flip(ANCHORS))),
        ("vocabulary", side(vocabulary=500, anchor_ids=None)),
        ("vocabulary", side(vocabulary=500, anchor_ids=np.full(512, -1, np.int32))),
    ],
)
def test_structure_says_nothing_where_it_does_not_tell(relation: str, other: Structure) -> None:
    assert direction.structure(side(), other, relation) is None
    assert direction.structure(other, side(), relation) is None


def test_log_odds_add_up_and_cancel() -> None:
    strong, against = Item("structure", 2.5, "x"), Item("witness", -1.5, "y")
    assert direction.direction([]) == direction.Direction("unknown", 0.0)
    assert direction.direction([strong]).role == "descendant"
    assert direction.direction([strong, against]).role == "unknown"
    assert direction.direction([against]).role == "unknown"
    assert direction.direction([against, against]).role == "ancestor"


def roles(a: zoo.Checkpoint, b: zoo.Checkpoint) -> tuple[str, str, list[str]]:
    """The role of A, that of B, and the names of A's items."""
    found = direction.direction(direction.later_items(panel(a), panel(b), values(a), values(b)))
    back = direction.direction(direction.later_items(panel(b), panel(a), values(b), values(a)))
    return found.role, back.role, [item.name for item in found.items]


def test_a_continued_model_is_told_from_its_parent() -> None:
    models = family(False)
    found = roles(models["base"], models["continued"])
    assert found == ("ancestor", "descendant", ["untouched_rows", "path"])


def test_a_light_fine_tune_is_never_called_the_parent() -> None:
    """What it undoes of the last steps' noise makes it look like a sibling: then nothing is said."""
    models = family(False)
    found = roles(models["base"], models["finetune"])
    assert found[:2] in {("ancestor", "descendant"), ("unknown", "unknown")}


def test_siblings_noise_and_tied_heads_have_no_direction() -> None:
    models = family(False)
    pairs = [(models["continued"], models["sibling"]), (models["base"], models["noise"])]
    pairs.append((family(True)["base"], family(True)["continued"]))
    for a, b in pairs:
        assert direction.later_items(panel(a), panel(b), values(a), values(b)) == ()


def test_decay_alone_is_not_enough() -> None:
    """Too few samples for the path, as in fine-tunes that moved little: the later one may be a sibling."""
    models = family(False)
    items = direction.later_items(panel(models["base"]), panel(models["finetune"]), {}, {})
    assert [i.name for i in items] == ["untouched_rows"] and direction.direction(items).role == "unknown"


def test_decay_is_measured_in_bfloat16_too() -> None:
    table = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    rounded = token_rows.token_rows(_bf16(table), np.arange(300))
    decayed = token_rows.token_rows(_bf16(table * np.float32(0.98)), np.arange(300))
    items = direction.later_items(rounded, decayed, {}, {})
    assert [(i.name, i.log_odds < 0) for i in items] == [("untouched_rows", True)] and "0.979" in text(items[0].reason)


def _bf16(table: np.ndarray) -> np.ndarray:
    return zoo.decode(zoo.encode(table, "BF16"), "BF16").reshape(table.shape)


def star(seed: int, sizes: Mapping[str, float]) -> dict[str, Values]:
    """A center "c", and models that moved away from it by independent steps of these sizes."""
    rng = np.random.default_rng(seed)
    center = {f"decoder.{i}.q.weight": rng.standard_normal(2048) for i in range(12)}
    moved = {n: {k: v + s * rng.standard_normal(v.size) for k, v in center.items()} for n, s in sizes.items()}
    return {"c": center} | moved


def test_witnesses_point_at_the_model_that_they_branch_from() -> None:
    models = star(0, {"x": 0.1, "w": 0.1, "v": 0.05})
    others = [models["w"], models["v"]]
    to_child = direction.witness(models["c"], models["x"], others)
    to_parent = direction.witness(models["x"], models["c"], others)
    assert to_child is not None and to_parent is not None and to_child.log_odds == -1.5 == -to_parent.log_odds
    assert direction.direction([to_child]).role == "unknown"
    child = {k: v + 0.1 * np.random.default_rng(9).standard_normal(v.size) for k, v in models["x"].items()}
    assert direction.witness(models["c"], models["x"], [*others, child]) is None  # they contradict each other
    assert direction.witness(models["x"], models["w"], [models["v"]]) is None  # siblings
    assert direction.witness(models["c"], models["x"], [models["c"], models["x"]]) is None  # inside the branch
    assert direction.witness(models["c"], models["x"], [{}]) is None
