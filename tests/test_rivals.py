"""Rival scores: 1 for the same model, near 0 for independent ones, and unmoved by what they claim to see through."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray

from build_index import rivals
from build_index.zoo.descendants import pick_layers
from build_index.zoo.disguises import Refusal, disguise
from build_index.zoo.parts import Parts
from build_index.zoo.snapshot import Snapshot
from build_index.zoo.vocabulary import renumber_vocabulary
from provindex.common.errors import ProvindexError, UsageError

KINDS: dict[str, Callable[..., zoo.Checkpoint]] = {
    "llama": zoo.llama, "qwen2": zoo.qwen2, "gpt2": zoo.gpt2, "neox": zoo.neox, "bert": zoo.bert,
}  # fmt: skip
Score = Callable[[Snapshot, Snapshot], "float | None"]


@pytest.fixture(params=["huref", "awm"])
def score(request: pytest.FixtureRequest) -> Score:
    if request.param == "awm":
        pytest.importorskip("scipy")
    return {"huref": rivals.huref, "awm": rivals.awm}[request.param]


@cache
def model(kind: str, seed: int = 0) -> Snapshot:
    """Weights and embeddings without structure: what near 0 is said of."""
    made = KINDS[kind](seed)
    rng = np.random.default_rng([seed, 99])
    tensors = {
        name: rng.standard_normal(t.shape).astype(np.float32) if t.ndim == 2 else t for name, t in made.tensors.items()
    }
    return Snapshot(f"{kind}-{seed}", tensors, made.config, made.tokenizer or "")


def disguised(name: str, snapshot: Snapshot) -> Snapshot:
    made = disguise(name, snapshot, 5)
    assert not isinstance(made, Refusal)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_itself(kind: str, score: Score) -> None:
    assert score(model(kind), model(kind)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_models_are_near_zero(kind: str, score: Score) -> None:
    found = score(model(kind), model(kind, seed=1))
    assert found is not None and abs(found) < 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["permute_residual", "permute_neurons", "permute_heads", "rotate_values"])
def test_order_and_values_leave_the_scores_alone(kind: str, name: str, score: Score) -> None:
    assert score(model(kind), disguised(name, model(kind))) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_renumbered_tokens_are_found_by_their_strings(kind: str, score: Score) -> None:
    assert score(model(kind), renumber_vocabulary(model(kind), 3)) == pytest.approx(1.0, abs=1e-6)


def test_tokens_go_by_number_without_a_tokenizer(score: Score) -> None:
    bare, moved = replace(model("llama"), tokenizer=""), replace(renumber_vocabulary(model("llama"), 3), tokenizer="")
    assert score(model("llama"), bare) == pytest.approx(1.0, abs=1e-9)
    assert (score(bare, moved) or 0.0) < 0.5


def test_noise_lowers_the_scores_gradually(score: Score) -> None:
    base, rng, found = model("qwen2"), np.random.default_rng(2), []
    for size in (0.1, 0.5, 2.0):
        noise = {name: t + size * rng.standard_normal(t.shape).astype(np.float32) for name, t in base.tensors.items()}
        found.append(score(base, replace(base, tensors=noise)) or 0.0)
    assert 1 > found[0] > 0.9 > found[1] > 0.5 > found[2] > 0


def test_huref_takes_the_last_two_layers() -> None:
    base = model("llama")
    kept, lost = pick_layers(base, (1, 2)), pick_layers(base, (0, 1))
    assert rivals.huref(base, kept) == pytest.approx(1.0, abs=1e-9)
    assert abs(rivals.huref(base, lost) or 0.0) < 0.05


def test_huref_is_the_cosine_of_the_standardized_terms() -> None:
    a, b = model("llama"), disguised("int8", model("llama"))
    expected = float(np.vdot(terms(a), terms(b)) / (np.linalg.norm(terms(a)) * np.linalg.norm(terms(b))))
    assert rivals.huref(a, b) == pytest.approx(expected, abs=1e-9)
    assert expected < 1


def terms(snapshot: Snapshot) -> NDArray[np.float64]:
    """The paper's formula written out for a Llama with 4 heads and 2 key-value heads of width 16."""
    vocabulary = rivals._vocabulary(snapshot.tokenizer)
    table = np.float64(snapshot.tensors["model.embed_tokens.weight"])
    ids = [vocabulary[text] for text in sorted(vocabulary, key=lambda text: (len(text), text))]
    x, found = table[[number for number in ids if number < len(table)][-rivals.TOKENS :]], []
    for layer in (1, 2):
        at = f"model.layers.{layer}."
        w = {n: np.float64(snapshot.tensors[f"{at}self_attn.{n}_proj.weight"]) for n in "qkvo"}
        up, down = (np.float64(snapshot.tensors[f"{at}mlp.{n}_proj.weight"]) for n in ("up", "down"))
        k, v = (np.concatenate([w[n][:16], w[n][:16], w[n][16:], w[n][16:]]) for n in "kv")
        products = x @ w["q"].T @ k @ x.T, x @ v.T @ w["o"].T @ x.T, x @ up.T @ down.T @ x.T
        found += [(product - product.mean()) / product.std() for product in products]
    return np.array(found)


def test_awm_finds_the_layers_that_are_left() -> None:
    pytest.importorskip("scipy")
    base = model("neox")
    assert rivals.awm(base, pick_layers(base, (0, 2))) == pytest.approx(1.0, abs=1e-9)


def test_awm_sees_through_signs() -> None:
    pytest.importorskip("scipy")
    base = model("llama")
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 64).astype(np.float32)
    reads = {n: t * signs if t.ndim == 2 and t.shape[1] == 64 else t for n, t in base.tensors.items()}
    assert rivals.awm(base, replace(base, tensors=reads)) == pytest.approx(1.0, abs=1e-6)


def test_unbiased_cka_of_unrelated_wide_matrices_is_zero_on_average() -> None:
    """The biased one is far from 0 where there are as many columns as rows."""
    pytest.importorskip("scipy")
    found = [rivals.awm(model("gpt2", seed), model("gpt2", seed + 1)) for seed in range(0, 12, 2)]
    assert abs(np.mean([value for value in found if value is not None])) < 0.02


def test_widths_and_missing_parts_give_none(score: Score) -> None:
    wide = zoo.llama(1, hidden=96)
    wider = Snapshot("wide", wide.tensors, wide.config, wide.tokenizer or "")
    headless = replace(model("llama"), tensors={n: t for n, t in model("llama").tensors.items() if "embed" not in n})
    no_attention = {n: t for n, t in model("llama").tensors.items() if "self_attn" not in n}
    assert rivals.huref(model("llama"), wider) is not None  # its terms have no residual axis
    assert score is rivals.huref or score(model("llama"), wider) is None
    assert score(model("llama"), headless) is None
    assert score(model("llama"), replace(model("llama"), tensors=no_attention)) is None


def test_disjoint_vocabularies_give_none(score: Score) -> None:
    tree = json.loads(model("qwen2").tokenizer)
    tree["model"]["vocab"] = {f"#{text}#": number for text, number in tree["model"]["vocab"].items()}
    assert score(model("qwen2"), replace(model("qwen2"), tokenizer=json.dumps(tree))) is None


def test_models_are_left_as_they_were(score: Score) -> None:
    base = model("gpt2")
    before = {name: tensor.copy() for name, tensor in base.tensors.items()}
    score(base, model("gpt2", seed=1))
    assert all(np.array_equal(before[name], tensor) for name, tensor in base.tensors.items())
    assert Parts(base).tensors.keys() == before.keys()


# ---- the peer


def test_pairs_need_one_folder_each(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "a", tmp_path / "y" / "a"]
    with pytest.raises(UsageError, match="called a"):
        rivals.peer_scores(Path(sys.executable), folders, [("a", "a")], tmp_path)
    with pytest.raises(UsageError, match="called b"):
        rivals.peer_scores(Path(sys.executable), folders[:1], [("a", "b")], tmp_path)


def test_an_environment_without_the_peer_is_named(tmp_path: Path) -> None:
    folder = model("llama").write(tmp_path / "a")
    with pytest.raises(ProvindexError, match="No module named"):
        rivals.peer_scores(Path(sys.executable), [folder], [("a", "a")], tmp_path)
    with pytest.raises(ProvindexError, match="does not start"):
        rivals.peer_scores(tmp_path / "python", [folder], [("a", "a")], tmp_path)
