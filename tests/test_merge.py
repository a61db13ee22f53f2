"""Merges of trained siblings: their weights come back, and nothing else is called a merge."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import prints
import pytest
import zoo

from provindex import Index
from provindex.evidence import merge
from provindex.evidence.merge import Merge, Values
from provindex.report.words import texts

Model = zoo.Checkpoint


def combined(change: Callable[..., np.ndarray], *models: Model) -> Model:
    """A model each of whose tensors is made from the same tensor of the others, in float64."""
    names = models[0].tensors
    wide = {n: [m.tensors[n].astype(np.float64) for m in models] for n in names}
    return models[0].with_tensors({n: change(*wide[n]).astype(np.float32) for n in names})


def linear(weights: Sequence[float], *models: Model) -> Model:
    return combined(lambda *x: sum(w * v for w, v in zip(weights, x, strict=True)), *models)


def slerp(t: float, a: Model, b: Model) -> Model:
    def turn(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        cosine = np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)
        angle = max(float(np.arccos(np.clip(cosine, -1, 1))), 1e-9)
        return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)

    return combined(turn, a, b)


def task(weights: Sequence[float], base: Model, *models: Model) -> Model:
    return combined(lambda x0, *x: x0 + sum(w * (v - x0) for w, v in zip(weights, x, strict=True)), base, *models)


def dare(share: float, weights: Sequence[float], base: Model, *models: Model) -> Model:
    rng = np.random.default_rng(5)

    def drop(x0: np.ndarray, *x: np.ndarray) -> np.ndarray:
        return x0 + sum(w * (v - x0) * (rng.random(v.shape) < share) / share for w, v in zip(weights, x, strict=True))

    return combined(drop, base, *models)


def ties(share: float, base: Model, *models: Model) -> Model:
    def trim(x0: np.ndarray, *x: np.ndarray) -> np.ndarray:
        changes = np.array([v - x0 for v in x])
        least = np.array([np.quantile(np.abs(c), 1 - share) for c in changes])
        changes[np.abs(changes) < least.reshape(-1, *[1] * x0.ndim)] = 0.0
        agree = (np.sign(changes) == np.sign(changes.sum(axis=0))) & (changes != 0)
        return x0 + (changes * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)

    return combined(trim, base, *models)


def by_layer(owners: Sequence[int], *models: Model) -> Model:
    """Layer i is that of models[owners[i]]; the rest is the first one's."""
    tensors = {}
    for name in models[0].tensors:
        found = re.search(r"layers\.(\d+)\.", name)
        tensors[name] = models[owners[int(found.group(1))] if found else 0].tensors[name]
    return models[0].with_tensors(tensors)


@pytest.fixture(scope="module")
def relatives() -> Mapping[str, Model]:
    """A base, three models trained on from it in other languages, and a stranger."""
    base = zoo.train(0, 120)
    return {
        "base": base,
        "x": zoo.train(0, 50, 1, base, language=1, rate=1e-3),
        "y": zoo.train(0, 50, 2, base, language=2, rate=1e-3),
        "z": zoo.train(0, 50, 3, base, language=3, rate=1e-3),
        "stranger": zoo.llama(9),
    }


def values(model: Model) -> Values:
    kept = prints.fingerprint(model)
    return merge.samples(kept.blocks, kept.wvc)


@pytest.fixture(scope="module")
def kept(relatives: Mapping[str, Model]) -> Mapping[str, Values]:
    return {name: values(model) for name, model in relatives.items()}


def found(model: Model, kept: Mapping[str, Values]) -> tuple[Merge | None, dict[str, float], str | None]:
    """The answer, the weight of each parent by name, and the base."""
    names = list(kept)
    answer = merge.merge_of(values(model), list(kept.values()))
    if answer is None:
        return None, {}, None
    weights = {names[p.candidate]: p.coefficient for p in answer.parents}
    return answer, weights, None if answer.base is None else names[answer.base]


Make = Callable[[Mapping[str, Model]], Model]
MERGES: tuple[tuple[str, Make, dict[str, float], str | None, float], ...] = (
    ("linear", lambda m: linear((0.6, 0.4), m["x"], m["y"]), {"x": 0.6, "y": 0.4}, None, 0.002),
    ("slerp", lambda m: slerp(0.3, m["x"], m["y"]), {"x": 0.7, "y": 0.3}, None, 0.01),
    ("three", lambda m: linear((0.3, 0.3, 0.4), m["x"], m["y"], m["z"]), {"x": 0.3, "y": 0.3, "z": 0.4}, None, 0.002),
    ("task", lambda m: task((0.5, 0.7), m["base"], m["x"], m["y"]), {"x": 0.5, "y": 0.7}, "base", 0.002),
    ("task, all", lambda m: task((1, 1), m["base"], m["x"], m["y"]), {"x": 1.0, "y": 1.0}, "base", 0.002),
    ("ties", lambda m: ties(0.5, m["base"], m["x"], m["y"]), {"x": 0.55, "y": 0.55}, "base", 0.15),
    ("dare", lambda m: dare(0.5, (0.6, 0.4), m["base"], m["x"], m["y"]), {"x": 0.6, "y": 0.4}, "base", 0.05),
    ("half a fine-tune", lambda m: linear((0.5, 0.5), m["base"], m["x"]), {"base": 0.5, "x": 0.5}, None, 0.002),
    ("with a stranger", lambda m: linear((0.7, 0.3), m["x"], m["stranger"]), {"x": 0.7, "stranger": 0.3}, None, 0.002),
    ("int8", lambda m: zoo.quantize(linear((0.6, 0.4), m["x"], m["y"]), 8), {"x": 0.6, "y": 0.4}, None, 0.02),
    ("bf16", lambda m: zoo.cast(linear((0.6, 0.4), m["x"], m["y"]), "BF16"), {"x": 0.6, "y": 0.4}, None, 0.02),
    (
        "int4",
        lambda m: zoo.quantize(linear((0.6, 0.4), m["x"], m["y"]), 4, "block32"),
        {"x": 0.6, "y": 0.4},
        None,
        0.04,
    ),
)  # fmt: skip


@pytest.mark.parametrize(("make", "weights", "base", "off"), [m[1:] for m in MERGES], ids=[m[0] for m in MERGES])
def test_weights_of_a_merge_come_back(
    make: Make, weights: dict[str, float], base: str | None, off: float,
    relatives: Mapping[str, Model], kept: Mapping[str, Values],
) -> None:  # fmt: skip
    answer, by_name, origin = found(make(relatives), kept)
    assert answer is not None and answer.kind == "weights" and origin == base
    assert by_name == pytest.approx(weights, abs=off)
    assert all(p.share >= 0.3 for p in answer.parents)


def test_layers_of_different_parents_are_told_layer_by_layer(
    relatives: Mapping[str, Model], kept: Mapping[str, Values]
) -> None:
    answer, weights, base = found(by_layer([0, 1, 1], relatives["x"], relatives["y"]), kept)
    assert answer is not None and (answer.kind, base) == ("layers", None)
    assert weights == pytest.approx({"x": 1 / 3, "y": 2 / 3}, abs=0.01)
    owner = {p.candidate: dict(p.layers) for p in answer.parents}
    x, y = (owner[list(kept).index(name)] for name in "xy")
    assert [round(x[f"decoder.{i}"]) for i in range(3)] == [1, 0, 0]
    assert [round(y[f"strided.{i}"]) for i in range(3)] == [0, 1, 1]


OTHERS: tuple[tuple[str, Make], ...] = (
    ("a parent itself", lambda m: m["x"]),
    ("fine-tuned", lambda m: zoo.train(0, 30, 9, m["x"], rate=5e-4)),
    ("continued", lambda m: zoo.train(0, 80, 9, m["x"], language=1, rate=5e-3)),
    ("a sibling on the same text", lambda m: zoo.train(0, 50, 12, m["base"], language=1, rate=1e-3)),
    ("a little noise", lambda m: zoo.finetune_noise(m["x"], 0.99, 1)),
    ("much noise", lambda m: zoo.finetune_noise(m["x"], 0.5, 1)),
    ("int8", lambda m: zoo.quantize(m["x"], 8)),
    ("int4", lambda m: zoo.quantize(m["x"], 4, "block32")),
    ("bf16", lambda m: zoo.cast(m["x"], "BF16")),
    ("shrunk", lambda m: linear((0.95,), m["x"])),
    ("another stranger", lambda m: zoo.llama(10)),
)


@pytest.mark.parametrize("make", [m[1] for m in OTHERS], ids=[m[0] for m in OTHERS])
def test_what_is_no_merge_is_not_called_one(
    make: Make, relatives: Mapping[str, Model], kept: Mapping[str, Values]
) -> None:
    assert found(make(relatives), kept)[0] is None


def test_the_common_parent_and_the_middle_of_a_chain_are_no_merges(
    relatives: Mapping[str, Model], kept: Mapping[str, Values]
) -> None:
    assert found(relatives["base"], {n: kept[n] for n in "xyz"})[0] is None
    children = {f"c{i}": values(zoo.train(0, 50, 20 + i, relatives["x"], language=1, rate=1e-3)) for i in range(2)}
    assert found(relatives["x"], {"base": kept["base"], "c0": children["c0"]})[0] is None
    assert found(relatives["x"], {"base": kept["base"], **children, "y": kept["y"]})[0] is None


def test_a_stranger_is_not_taken_for_the_base(relatives: Mapping[str, Model], kept: Mapping[str, Values]) -> None:
    model = dare(0.5, (0.5, 0.5), relatives["base"], relatives["x"], relatives["y"])
    without = {name: kept[name] for name in ("x", "y", "stranger")}
    assert found(model, without)[2] is None
    answer, _, base = found(model, without | {"base": kept["base"]})
    assert answer is not None and base == "base"


def test_copies_and_children_of_the_merge_do_not_confuse(
    relatives: Mapping[str, Model], kept: Mapping[str, Values]
) -> None:
    model = linear((0.6, 0.4), relatives["x"], relatives["y"])
    more = {
        "child": values(zoo.train(0, 20, 8, model, rate=1e-4)),
        "x": kept["x"],
        "y": kept["y"],
        "x again": kept["x"],
        "other shape": values(zoo.llama(3, hidden=32)),
        "empty": {},
    }
    _, weights, _ = found(model, more)
    assert weights == pytest.approx({"x": 0.6, "y": 0.4}, abs=0.01)


def test_too_few_candidates_or_matrices_are_no_merge(kept: Mapping[str, Values]) -> None:
    assert merge.merge_of(kept["x"], [kept["y"]]) is None
    assert merge.merge_of(kept["x"], []) is None and merge.merge_of({}, [kept["x"], kept["y"]]) is None
    assert merge.samples(None, None) == {}


def test_a_query_names_the_parents_of_a_merge(relatives: Mapping[str, Model]) -> None:
    index = Index.build(prints.fingerprint(model, name) for name, model in relatives.items())
    model = task((0.5, 0.7), relatives["base"], relatives["x"], relatives["y"])
    answer = {m.entry.model_id: m for m in index.query(prints.fingerprint(model, "merged")).matches}
    assert {n: (m.pair.relation, m.direction) for n, m in answer.items() if n in ("x", "y")} == {
        "x": ("merge", "ancestor"),
        "y": ("merge", "ancestor"),
    }
    assert answer["base"].direction == "ancestor" and answer["base"].pair.relation != "merge"
    assert "0.50 of its changes" in texts(answer["x"].pair.reasons)[0] and "stranger" not in answer
    plain = {m.entry.model_id: m for m in index.query(prints.fingerprint(relatives["x"], "again")).matches}
    assert all(m.pair.relation != "merge" for m in plain.values()) and plain["x"].pair.relation == "identical"
