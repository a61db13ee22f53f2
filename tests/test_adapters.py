"""Adapters alone: what they claim, what their shapes say, and that nothing is decided without weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packers as q
import pytest
import zoo
from prints import fingerprint

from provindex.api import Index
from provindex.common.errors import ModelError
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model
from provindex.report.words import texts
from provindex.verdict.pair import compare

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNSET: Any = object()


@pytest.fixture(scope="module")
def base() -> zoo.Checkpoint:
    return zoo.llama(21)


@pytest.fixture(scope="module")
def base_print(base: zoo.Checkpoint) -> Fingerprint:
    return fingerprint(base, "org/base")


def adapter(
    base: zoo.Checkpoint, folder: Path, *, targets: Sequence[str] = ("q_proj", "v_proj"), seed: int = 0,
    dora: bool = False, saved: dict[str, q.Array] | None = None, config: Any = UNSET,
) -> Path:  # fmt: skip
    """A folder as peft writes it."""
    rng = np.random.default_rng(seed)
    kept: dict[str, q.Stored] = {}
    for name, value in base.tensors.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets:
            continue
        (out, width), at = value.shape, f"base_model.model.{module}"
        kept[f"{at}.lora_A.weight"] = q.stored(rng.standard_normal((4, width)).astype(np.float32))
        kept[f"{at}.lora_B.weight"] = q.stored(rng.standard_normal((out, 4)).astype(np.float32))
        if dora:
            kept[f"{at}.lora_magnitude_vector"] = q.stored(np.linalg.norm(value, axis=1).astype(np.float32))
    kept |= {f"base_model.model.{name}": q.stored(value) for name, value in (saved or {}).items()}
    folder.mkdir()
    q.save(folder / "adapter_model.safetensors", kept)
    (folder / "tokenizer.json").write_text(str(base.tokenizer))
    said = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4} if config is UNSET else config
    (folder / "adapter_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return folder


@pytest.mark.parametrize(("targets", "dora"), [(("q_proj", "v_proj"), False), (ALL, True), (("down_proj",), False)])
def test_an_adapter_alone_is_inconclusive_and_says_how_to_get_a_verdict(
    targets: Sequence[str], dora: bool, base: zoo.Checkpoint, base_print: Fingerprint, tmp_path: Path
) -> None:
    model = open_model(adapter(base, tmp_path / "tuned", targets=targets, dora=dora))
    assert model.base_models == ("org/base",)
    assert "an adapter (LORA) of org/base: so says adapter_config.json, which nothing here proves" in texts(
        model.warnings
    )
    made = fingerprint_model(model)
    assert made.parents == ("org/base",) and made.facts.layers == base_print.facts.layers
    assert not any("not known" in text for text in texts(made.warnings))
    for pair in (compare(made, base_print), compare(base_print, made)):
        assert (pair.verdict, pair.relation, pair.direction) == ("inconclusive", None, None)
        said = "; ".join(texts(pair.reasons))
        assert "it holds changes of weights, and not the weights" in said
        assert "its config names org/base, a claim" in said and "merge it into the model that it amends" in said
        assert pair.signals["LEP"].value is None and pair.signals["WVC"].value is None
    fits = targets != ("down_proj",)
    assert not fits or "its shapes (a width of 64 in 3 layers) fit, as they do every other model" in said


def test_shapes_that_cannot_be_of_a_model_are_told(base: zoo.Checkpoint, tmp_path: Path) -> None:
    made = fingerprint_model(open_model(adapter(base, tmp_path / "tuned")))
    for other in (zoo.llama(22, hidden=128), zoo.llama(23, layers=2)):
        pair = compare(made, fingerprint(other, "org/other"))
        assert pair.verdict == "inconclusive" and any(
            "do not fit (org/other: " in reason for reason in texts(pair.reasons)
        )


def test_two_adapters_are_identical_or_nothing(base: zoo.Checkpoint, tmp_path: Path) -> None:
    one = adapter(base, tmp_path / "one", targets=ALL)
    same = adapter(base, tmp_path / "same", targets=ALL, config={"base_model_name_or_path": "someone/else"})
    other = adapter(base, tmp_path / "other", targets=ALL, seed=1)
    a, b, c = (fingerprint_model(open_model(folder)) for folder in (one, same, other))
    pair = compare(a, b)
    assert (pair.verdict, pair.relation) == ("linked", "identical") and b.parents == ("someone/else",)
    apart = compare(a, c)
    assert apart.verdict == "inconclusive" and not any("fit" in reason for reason in texts(apart.reasons))


def test_modules_that_are_saved_whole_are_weights(tmp_path: Path) -> None:
    """Two tables that were kept link; one alone, those that were trained on, or another model's decide nothing."""
    base, other = (zoo.llama(seed, tied=False) for seed in (24, 25))
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tables = {
        "kept": {name: base.tensors[name] for name in names},
        "alone": {names[0]: base.tensors[names[0]]},
        "moved": {name: base.tensors[name] + np.float32(1e-3) for name in names},
        "other": {name: other.tensors[name] for name in names},
    }
    base_print = fingerprint(base, "org/base")
    pairs = {
        at: compare(fingerprint_model(open_model(adapter(base, tmp_path / at, saved=saved))), base_print)
        for at, saved in tables.items()
    }
    assert {at: pair.verdict for at, pair in pairs.items()} == {
        "kept": "linked", "alone": "inconclusive", "moved": "inconclusive", "other": "inconclusive",
    }  # fmt: skip
    assert pairs["kept"].relation == "related" and (pairs["kept"].evidence["bit_reuse"].log10_p or 0) < -6
    assert [round(pairs[at].signals["EAS"].value or 0, 2) for at in ("kept", "moved")] == [1.0, 1.0]
    assert (pairs["other"].signals["EAS"].value or 0) < 0.9


def test_a_query_with_an_adapter_says_why_nothing_was_tested(
    base: zoo.Checkpoint, base_print: Fingerprint, tmp_path: Path
) -> None:
    index = Index.build([base_print])
    answer = index.query(fingerprint_model(open_model(adapter(base, tmp_path / "tuned"))))
    assert answer.status == "inconclusive" and not answer.linked
    assert any("changes of weights" in warning for warning in texts(answer.warnings))


def test_a_model_that_carries_its_adapter_is_a_model(
    base: zoo.Checkpoint, base_print: Fingerprint, tmp_path: Path
) -> None:
    module = "model.layers.0.self_attn.q_proj"
    tensors = {name.replace(f"{module}.", f"{module}.base_layer."): value for name, value in base.tensors.items()}
    tensors |= {f"{module}.lora_A.default.weight": np.ones((4, 64), np.float32)}
    made = fingerprint(base.with_tensors(tensors), "org/tuned")
    assert "adapter" not in made.absences and compare(base_print, made).verdict == "linked"


@pytest.mark.parametrize("config", ["", "[]", '{"peft_type": "LORA"', '{"a":' * 5000, " " * (5 << 20)])
def test_a_bad_adapter_config_is_refused(config: str, base: zoo.Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        open_model(adapter(base, tmp_path / "tuned", config=config))


@pytest.mark.parametrize(
    ("config", "parents", "said"),
    [
        ({}, (), "an adapter of a model that it does not name"),
        ({"peft_type": 7, "base_model_name_or_path": ["a"]}, (), "an adapter of a model that it does not name"),
        ({"base_model_name_or_path": "a\x1b[31m\nb"}, ("a?[31m?b",), r"an adapter of a?[31m?b: so says"),
        ({"base_model_name_or_path": "x" * 5000}, ("x" * 200,), "an adapter of xxx"),
    ],
)
def test_claims_are_text_of_strangers(
    config: dict[str, object], parents: tuple[str, ...], said: str, base: zoo.Checkpoint, tmp_path: Path
) -> None:
    model = open_model(adapter(base, tmp_path / "tuned", config=config))
    assert model.base_models == parents and any(text.startswith(said) for text in texts(model.warnings))


def test_the_base_at_hand_is_not_merged_silently(base: zoo.Checkpoint, tmp_path: Path) -> None:
    at_hand = zoo.write(base, tmp_path / "base")
    folder = adapter(base, tmp_path / "tuned", config={"base_model_name_or_path": str(at_hand)})
    model = open_model(folder / "adapter_model.safetensors")
    assert len(model.tensors) == 12 and model.base_models == (at_hand.name,)
