"""Direction: each item alone, their sum, and pairs trained for real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import zoo
from prints import fingerprint
from test_start import panel
from trained_pairs import family

from provindex.api import Index
from provindex.common.reasons import Code
from provindex.evidence import direction, token_rows
from provindex.evidence.direction import Item, Structure
from provindex.evidence.kin import Kin
from provindex.evidence.merge import Values
from provindex.fingerprint.record import Fingerprint
from provindex.report.words import text
from provindex.verdict.pair import compare

ANCHORS = np.arange(10, 522, dtype=np.int32)


def values(checkpoint: zoo.Checkpoint) -> Values:
    return {n: v.ravel().astype(np.float64) for n, v in checkpoint.tensors.items() if "proj" in n}


def side(**changes: object) -> Structure:
    plain: dict[str, object] = {"layers": 4, "vocabulary": 600, "precision": "f32", "quantized": False}
    return Structure(**(plain | {"anchor_ids": ANCHORS, "neurons": 64} | changes))  # type: ignore[arg-type]


STRUCTURES: tuple[tuple[str, Structure, str], ...] = (
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
        ("pruned", side(layers=3)),  # or the other one was grown
        ("pruned", side(neurons=48)),
        ("upscaled", side(layers=3, precision="bf16")),  # one has more layers, the other less precision: siblings
        ("vocabulary", side(vocabulary=599, precision="bf16")),
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


# ---- several relatives ------------------------------------------------------------------------------------------


def moved(parent: zoo.Checkpoint, size: float, seed: int) -> zoo.Checkpoint:
    """A step away from a model, as training takes it: nearly orthogonal to the weights, which it does not shrink."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: value if value.ndim < 2 else (value + size * value.std() * rng.standard_normal(value.shape)).astype("f4")
        for name, value in parent.tensors.items()
    }
    return replace(parent, tensors=tensors)


@pytest.fixture(scope="module")
def three_generations() -> dict[str, Fingerprint]:
    base = zoo.llama(3, layers=4, hidden=64)
    heavy = moved(base, 0.5, 1)
    models = {
        "base": base,
        "heavy": heavy,
        "light": moved(base, 0.2, 2),
        "grandchild": moved(heavy, 0.3, 3),
        "shallow": moved(zoo.drop_layers(base, (1,)), 0.3, 4),
        "deep": moved(zoo.repeat_layers(base, (0, 1, 2, 1, 2, 3)), 0.3, 5),
    }
    return {name: fingerprint(model, name) for name, model in models.items()}


FAMILY = ("base", "heavy", "light", "grandchild", "shallow", "deep")
PARENTS = {"heavy": "base", "light": "base", "grandchild": "heavy", "shallow": "base", "deep": "base"}


def ancestors(name: str) -> list[str]:
    return [PARENTS[name], *ancestors(PARENTS[name])] if name in PARENTS else []


@pytest.mark.parametrize("name", FAMILY)
def test_a_query_tells_ancestors_from_siblings_by_the_other_relatives(
    three_generations: dict[str, Fingerprint], name: str
) -> None:
    found = Index.build(three_generations.values()).query(three_generations[name])
    roles = {m.entry.model_id: m.direction for m in found.linked}
    for other in set(FAMILY) - {name}:
        expected = "ancestor" if other in ancestors(name) else "descendant" if name in ancestors(other) else "unknown"
        assert roles[other] == expected, other
    unknown = [m.pair.direction_reasons for m in found.linked if m.direction == "unknown"]
    assert all([reason.code for reason in reasons] == [Code.SIBLINGS] for reasons in unknown)


def test_a_pruned_model_alone_may_be_what_the_other_was_grown_from(three_generations: dict[str, Fingerprint]) -> None:
    pair = compare(three_generations["base"], three_generations["shallow"])
    assert (pair.relation, pair.direction) == ("pruned", "unknown")
    assert any(reason.code is Code.GROWN_POSSIBLE for reason in pair.reasons)


def test_repeated_layers_do_not_descend_from_a_sibling_that_moved_as_far(
    three_generations: dict[str, Fingerprint],
) -> None:
    made = {name: compare(three_generations[name], three_generations["deep"]) for name in ("base", "heavy")}
    assert [(p.relation, p.direction) for p in made.values()] == [("upscaled", "ancestor"), ("upscaled", "unknown")]
    assert [reason.code for reason in made["heavy"].direction_reasons] == [Code.SIBLINGS]


def test_kin_say_nothing_of_what_they_do_not_share() -> None:
    rng = np.random.default_rng(0)
    one, other = ({f"decoder.{i}.q.weight": rng.standard_normal(99) for i in range(5)} for _ in range(2))
    kin = Kin.of([one, other, {}])  # other elements, and none
    assert kin.backward(0, 1) is None and kin.towards(0, 1, 2) is None and not kin.older(0, 2)
    assert kin.witnesses(1, 0, [2]) == 0
