"""Deep mode (E5): copies with a rotated basis are found, strangers are not, and only held-out layers count."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from commands import run
from numpy.typing import NDArray
from zoo import Checkpoint

import provindex as pv
from build_index.zoo import disguises
from build_index.zoo.snapshot import Snapshot
from provindex.common.errors import UsageError
from provindex.common.threads import one_blas_thread
from provindex.evidence import deep
from provindex.evidence.deep import Neurons
from provindex.fingerprint.extract.deep import MAX_LAYERS, deep_agreement
from provindex.formats.tensors import tensor_from_array
from provindex.models.source import Model, open_model
from provindex.report.words import joined
from provindex.verdict.pair import LEAST_AGREEMENT

Tensors = Mapping[str, NDArray[np.float32]]


@pytest.fixture(autouse=True, scope="module")
def small_matrices() -> Iterator[None]:
    with one_blas_thread():
        yield


@pytest.fixture(scope="module")
def family(pytestconfig: pytest.Config) -> zoo.Family:
    assert pytestconfig.cache is not None
    return zoo.trained_family(pytestconfig.cache.mkdir("zoo"))


def model(config: Mapping[str, Any], tensors: Tensors, name: str = "made") -> Model:
    return Model(name, None, config, None, {k: tensor_from_array(k, v) for k, v in tensors.items()}, {}, ())


def of(checkpoint: Checkpoint) -> Model:
    return model(checkpoint.config, checkpoint.tensors)


def disguised(checkpoint: Checkpoint, seed: int = 1) -> Model:
    """The same function under every exact disguise, residual rotation among them, then with another vocabulary."""
    made = disguises.everything(Snapshot("copy", checkpoint.tensors, checkpoint.config, ""), seed)
    assert isinstance(made, Snapshot)
    rng = np.random.default_rng(seed)
    fresh = {n: rng.standard_normal((300, *v.shape[1:])).astype(np.float32) for n, v in made.tensors.items() if rows(n)}
    return model(made.config, {**made.tensors, **fresh})


def rows(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight"))


def stored(family: zoo.Family, name: str) -> Checkpoint:
    opened = open_model(family.folders[name])
    return Checkpoint(dict(opened.config), {n: t.flat().reshape(t.shape).copy() for n, t in opened.tensors.items()})


# --- relatives ---


@pytest.mark.parametrize("name", ["founder-00", "finetune-00", "continued-00", "q4-00", "pruned-00", "upscaled-00"])
def test_disguised_relatives_are_found(family: zoo.Family, name: str) -> None:
    found = deep_agreement(open_model(family.folders["founder-00"]), disguised(stored(family, name)))
    assert found.value is not None and found.log10_p is not None
    assert found.value > (0.8 if name == "continued-00" else 0.99)
    assert found.log10_p < -100 and found.chance is not None and found.chance < LEAST_AGREEMENT


def test_a_pruned_quantized_and_noisy_copy_is_found(family: zoo.Family) -> None:
    parent = stored(family, "founder-01")
    child = zoo.quantize(zoo.finetune_noise(zoo.prune_width(parent, 0.75, 1), 0.9, 2), 8)
    found = deep_agreement(of(parent), disguised(child))
    assert found.value is not None and found.value > 0.95
    assert found.n == 120, "every neuron of the narrower MLP"


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.neox, zoo.qwen2, zoo.bert, zoo.t5])
def test_every_layout_is_read(make: Any) -> None:
    """Transposed, fused and post-norm layouts, MLPs without a gate, and what LayerNorm does not see."""
    parent = make(1)
    found = deep_agreement(of(parent), disguised(parent))
    assert found.value == 1.0


def test_experts_are_pooled() -> None:
    found = deep_agreement(*mixture(1, order=(3, 0, 2, 1)))
    assert found.value == 1.0
    assert found.n == 4 * 48


def mixture(seed: int, order: tuple[int, ...]) -> tuple[Model, Model]:
    """A Mixtral of random weights, and a copy with its experts and their neurons in another order."""
    rng = np.random.default_rng(seed)
    config = {
        "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    tensors: dict[str, NDArray[np.float32]] = {}
    copy: dict[str, NDArray[np.float32]] = {}
    for layer in range(2):
        for name in "qkvo":
            key = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            tensors[key] = copy[key] = rng.standard_normal((32, 32)).astype(np.float32)
        router = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        tensors[router] = rng.standard_normal((4, 32)).astype(np.float32)
        copy[router] = tensors[router][list(order)]
        for new, old in enumerate(order):
            units = rng.permutation(48)
            for name, shape in (("w1", (48, 32)), ("w2", (32, 48)), ("w3", (48, 32))):
                matrix = rng.standard_normal(shape).astype(np.float32)
                where = f"model.layers.{layer}.block_sparse_moe.experts.{{}}.{name}.weight"
                tensors[where.format(old)] = matrix
                copy[where.format(new)] = matrix[:, units] if name == "w2" else matrix[units]
    return model(config, tensors), model(config, copy)


# --- strangers ---


def test_strangers_are_at_chance(family: zoo.Family) -> None:
    """Trained apart on the same data in the same order: P(p <= a) <= a would allow one of 10 below .05."""
    opened = [open_model(family.folders[name]) for name in family.founders[:5]]
    found = [deep_agreement(a, b) for a, b in itertools.combinations(opened, 2)]
    assert sum(o.log10_p is not None and o.log10_p <= math.log10(0.05) for o in found) <= 1
    assert all(o.value is not None and o.value < LEAST_AGREEMENT / 2 for o in found)


def test_only_held_out_layers_count() -> None:
    """Layers that fit the rotation may be copies: if the held-out ones are another model's, nothing agrees."""
    parent, stranger = trained_like(0, layers=4), trained_like(1, layers=4)
    mixed = [parent[0], stranger[1], parent[2], stranger[3]]
    found = deep.deep_test(parent, [turned(x, 5) for x in mixed])
    assert found.value is not None and found.value < 0.03
    assert found.log10_p is not None and found.log10_p > -2
    whole = deep.deep_test(parent, [turned(x, 5) for x in parent])
    assert whole.value == 1.0


def test_matching_random_vectors_agrees_as_often_as_expected() -> None:
    """The in-degrees give the mean of the count under independence, with and without a gate."""
    for roles in (2, 3):
        rng = np.random.default_rng(roles)
        counts, means = [], []
        for _ in range(60):
            x, y = (neurons(rng, 40, 8, roles) for _ in range(2))
            found = deep.agreement(x, y, np.eye(8, dtype=np.float32))
            counts.append(found.agreeing)
            means.append(found.expected)
        assert sum(counts) <= sum(means) + 4 * math.sqrt(sum(means)), "the lower of both directions is taken"
        assert sum(means) > 0


# --- what is invariant ---


def neurons(rng: np.random.Generator, n: int, d: int, roles: int = 3, layer: int = 0) -> Neurons:
    made = tuple(deep.unit(rng.standard_normal((n, d)).astype(np.float32)) for _ in range(roles))
    return Neurons(layer, made, np.sort(rng.lognormal(size=n))[::-1].copy())


def trained_like(seed: int, layers: int, n: int = 200, d: int = 48) -> list[Neurons]:
    rng = np.random.default_rng(seed)
    return [neurons(rng, n, d, layer=layer) for layer in range(layers)]


def turned(x: Neurons, seed: int, width: int = 48) -> Neurons:
    """The same neurons in another basis, order and sign."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0].astype(np.float32)
    rng = np.random.default_rng([seed, x.layer])
    order, signs = rng.permutation(x.count), rng.choice([-1.0, 1.0], x.count).astype(np.float32)[:, None]
    gate, up, down = (rows @ basis for rows in x.roles)
    return Neurons(x.layer, (gate[order], (up * signs)[order], (down * signs)[order]), x.strength[order])


def test_descriptions_do_not_see_basis_order_and_sign() -> None:
    layers = trained_like(2, layers=2)
    again = [turned(x, 7) for x in layers]
    order = np.random.default_rng([7, 0]).permutation(layers[0].count)
    np.testing.assert_allclose(deep.describe(layers[0], layers)[order], deep.describe(again[0], again), atol=2e-5)


def test_signatures_do_not_see_basis_order_and_sign() -> None:
    layer = trained_like(3, layers=1)[0]
    np.testing.assert_allclose(deep.signature(layer), deep.signature(turned(layer, 8)), atol=1e-4)


def test_the_fit_finds_the_rotation_itself() -> None:
    layers = deep.principal(trained_like(4, layers=2))
    width = layers[0].roles[0].shape[1]
    basis = np.linalg.qr(np.random.default_rng(9).standard_normal((width, width)))[0].astype(np.float32)
    again = [Neurons(x.layer, tuple(rows @ basis for rows in x.roles), x.strength) for x in layers]
    np.testing.assert_allclose(deep.fit(layers, again), basis, atol=1e-3)


def test_order_of_the_two_models_does_not_matter(family: zoo.Family) -> None:
    a, b = open_model(family.folders["founder-00"]), disguised(stored(family, "upscaled-00"))
    there, back = deep_agreement(a, b), deep_agreement(b, a)
    assert (there.value, there.n) == (back.value, back.n)


def test_layers_that_were_dropped_are_left_out(family: zoo.Family) -> None:
    layers = [*trained_like(5, layers=6, n=60)]
    signatures = np.stack([deep.signature(x) for x in layers])
    kept = (0, 2, 3, 5)
    child = np.stack([deep.signature(turned(layers[i], 3)) for i in kept])
    pairs, cost = deep.pair_layers(signatures, child)
    assert pairs == [(old, new) for new, old in enumerate(kept)]
    assert deep.pair_layers(child, signatures) == ([(new, old) for new, old in enumerate(kept)], cost)
    assert cost == pytest.approx(math.log10(math.comb(6, 4)))
    assert deep.pair_layers(signatures, signatures[::-1]) == ([(i, i) for i in range(6)], 0.0)


def test_a_deep_model_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    test = deep.deep_test

    def seen(a: list[Neurons], b: list[Neurons], maps: float) -> Any:
        read.extend(x.layer for x in a)
        return test(a, b, maps)

    monkeypatch.setattr(deep, "deep_test", seen)
    tall = zoo.llama(1, layers=20)
    assert deep_agreement(of(tall), of(tall)).value == 1.0
    assert len(read) == MAX_LAYERS and read == sorted(read) and np.ptp(np.diff(read)) <= 1


# --- what cannot be compared ---


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (zoo.llama(1), zoo.llama(1, hidden=32), "residual widths differ (64 and 32)"),
        (zoo.gpt2(1), zoo.llama(1), "with and without a gate"),
        (zoo.llama(1, layers=1), zoo.llama(1, layers=1), "fewer than two layers"),
        (zoo.llama(1, layers=3), zoo.llama(1, layers=1), "fewer than two layers"),
        (zoo.llama(1, intermediate=16), zoo.llama(1, intermediate=16), "only 16 neurons"),
    ],
)
def test_absent_with_a_reason(a: Checkpoint, b: Checkpoint, reason: str) -> None:
    for x, y in ((a, b), (b, a)):
        found = deep_agreement(of(x), of(y))
        assert found.value is None and found.log10_p is None
        assert joined(found.reasons) and reason.split(" (")[0] in joined(found.reasons)


def test_models_without_mlps_and_very_wide_ones_are_absent() -> None:
    small = of(zoo.llama(1))
    bare = model({}, {"some.tensor": np.ones((4, 4), np.float32)}, "bare")
    assert joined(deep_agreement(small, bare).reasons) == "bare: no MLP with a known role in the text tower"
    wide = {
        f"model.layers.{i}.mlp.{n}_proj.weight": np.zeros((8200, 2) if n == "down" else (2, 8200), np.float32)
        for i in range(2)
        for n in ("gate", "up", "down")
    }
    said = joined(deep_agreement(model({"model_type": "llama", "hidden_size": 8200}, wide, "wide"), small).reasons)
    assert said == "wide: residual width 8200, at most 8192 are compared"


def test_dead_and_broken_neurons_are_left_out() -> None:
    parent = zoo.llama(1)
    broken = {n: v.copy() for n, v in parent.tensors.items()}
    for layer in range(3):
        broken[f"model.layers.{layer}.mlp.up_proj.weight"][:20] = 0.0
        broken[f"model.layers.{layer}.mlp.gate_proj.weight"][20, 3] = np.nan
    found = deep_agreement(of(parent), model(parent.config, broken))
    assert found.value == 1.0 and found.n == 160 - 21


# --- the interface ---


@pytest.fixture(scope="module")
def folders(family: zoo.Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained model, and its disguised copy."""
    parent = family.folders["founder-00"]
    copy = disguised(stored(family, "founder-00"))
    tensors = {n: t.flat().reshape(t.shape) for n, t in copy.tensors.items()}
    config = {**copy.config, "vocab_size": 300}
    return parent, zoo.write(Checkpoint(config, tensors), tmp_path_factory.mktemp("deep") / "copy")


def test_compare_adds_the_evidence_when_asked(folders: tuple[Path, Path]) -> None:
    plain, asked = pv.compare(*folders), pv.compare(*folders, deep=True)
    assert "deep_agreement" not in plain.evidence and plain.evidence["neuron_signs"].value < LEAST_AGREEMENT  # type: ignore[operator]
    assert asked.evidence["deep_agreement"].value == 1.0 and asked.verdict == "linked"


def test_a_fingerprint_alone_is_not_enough(folders: tuple[Path, Path], tmp_path: Path) -> None:
    parent, copy = folders
    with pytest.raises(UsageError, match="of founder-00 only the fingerprint is at hand"):
        pv.compare(pv.fingerprint(parent), copy, deep=True)
    kept = tmp_path / "kept.parquet"
    assert run("fingerprint", parent, "-o", kept).status == 0
    ran = run("compare", kept, copy, "--deep")
    assert ran.status == 2 and ran.out == ""
    assert ran.err.splitlines()[-1].endswith("Name its folder, its weight file or org/name@revision.")
    with pytest.raises(UsageError, match="only the fingerprint is at hand"):
        pv.compare("openai/whisper-base", copy, deep=True)


def test_the_option(folders: tuple[Path, Path]) -> None:
    plain, asked = (json.loads(run("compare", *folders, "--json", *more).out) for more in ([], ["--deep"]))
    assert asked["settings"]["deep"] is True and "deep" not in plain["settings"]
    assert asked["evidence"]["deep_agreement"]["value"] == 1.0
    assert set(asked["evidence"]) - set(plain["evidence"]) == {"deep_agreement"}
