"""Independent models that are not i.i.d. noise: structure that two strangers may share must not link them, and what is
really shared must be called by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint

from provindex.common.reasons import Code
from provindex.fingerprint.record import Fingerprint
from provindex.report.words import text, texts
from provindex.roles import canonical
from provindex.verdict.pair import compare

F32 = NDArray[np.float32]
SHAPE = {"hidden": 128, "layers": 6, "intermediate": 256}
MLP = ("up_proj", "gate_proj")


def changed(seed: int, change: Callable[[str, F32, np.random.Generator], F32], **shape: int) -> Fingerprint:
    base = zoo.llama(seed, **{**SHAPE, **shape})
    rng = np.random.default_rng([seed, 77])
    tensors = {n: np.asarray(change(n, np.array(w), rng), np.float32) for n, w in base.tensors.items()}
    return fingerprint(base.with_tensors(tensors), f"seed {seed}")


def pruned(share: float, mean: float) -> Callable[[str, F32, np.random.Generator], F32]:
    """The first units are zero, the others have a common direction."""

    def change(name: str, w: F32, rng: np.random.Generator) -> F32:
        if any(part in name for part in MLP):
            w = w + mean
            w[: int(64 * share)] = 0
        return w

    return change


def identity(scale: float, where: tuple[str, ...]) -> Callable[[str, F32, np.random.Generator], F32]:
    def change(name: str, w: F32, rng: np.random.Generator) -> F32:
        if any(part in name for part in where):
            w = scale * np.eye(*w.shape) + 0.02 * rng.standard_normal(w.shape)
        return w

    return change


def upcycled(seed: int, noise: float) -> Fingerprint:
    """A mixture of experts whose experts start as one MLP, as upcycling makes them."""
    base = zoo.llama(seed, hidden=128, layers=4, intermediate=64)
    rng = np.random.default_rng([seed, 5])
    names = {"gate_proj.weight": "w1", "up_proj.weight": "w3", "down_proj.weight": "w2"}
    tensors: dict[str, F32] = {}
    for name, w in base.tensors.items():
        prefix, _, part = name.rpartition(".mlp.")
        if not prefix:
            tensors[name] = w
            continue
        moe = f"{prefix}.block_sparse_moe"
        for e in range(4):
            grown = w + noise * w.std() * rng.standard_normal(w.shape)
            tensors[f"{moe}.experts.{e}.{names[part]}.weight"] = grown.astype(np.float32)
        tensors[f"{moe}.gate.weight"] = rng.standard_normal((4, 128)).astype(np.float32)
    return fingerprint(base.with_tensors(tensors, model_type="mixtral", num_local_experts=4), f"seed {seed}")


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_mixture_of_experts_and_its_dense_source_have_no_direction(noise: float) -> None:
    dense = fingerprint(zoo.llama(1, hidden=128, layers=4, intermediate=64))
    found = compare(dense, upcycled(1, noise))
    assert (found.verdict, found.relation, found.direction) == ("linked", "related", "unknown")
    assert [reason.code for reason in found.reasons] == [Code.GROWN_POSSIBLE]


def warm_started(seed: int, noise: float) -> Fingerprint:
    """An encoder-decoder whose decoder starts as a copy of its encoder."""
    base = zoo.t5(seed)
    rng = np.random.default_rng([seed, 6])
    tensors = dict(base.tensors)
    for name, w in base.tensors.items():
        twin = name.replace("encoder.", "decoder.").replace("layer.1.Dense", "layer.2.Dense")
        if name.startswith("encoder.block") and twin in tensors and tensors[twin].shape == w.shape:
            tensors[twin] = (w + noise * w.std() * rng.standard_normal(w.shape)).astype(np.float32)
    return fingerprint(base.with_tensors(tensors), f"seed {seed}")


NULLS: dict[str, Callable[[int], Fingerprint]] = {
    "pruned, .25 zero, mean .03": lambda seed: changed(seed, pruned(0.25, 0.03)),
    "pruned, .5 zero, mean .03": lambda seed: changed(seed, pruned(0.5, 0.03)),
    "identity v": lambda seed: changed(seed, identity(1.0, ("v_proj",)), heads=4, kv_heads=4),
    "identity gate and up": lambda seed: changed(seed, identity(1.0, MLP)),
    "faint identity": lambda seed: changed(seed, identity(0.1, (*MLP, "v_proj")), heads=4, kv_heads=4),
    "upcycled experts": lambda seed: upcycled(seed, 0.1),
    "upcycled experts, far apart": lambda seed: upcycled(seed, 0.5),
    "decoder from encoder": lambda seed: warm_started(seed, 0.1),
}


@pytest.mark.parametrize("kind", NULLS)
def test_structure_that_strangers_share_links_nobody(kind: str) -> None:
    models = [NULLS[kind](1000 + seed) for seed in range(12)]
    pairs = [compare(a, b) for a, b in combinations(models, 2)]
    assert not [pair.log10_p for pair in pairs if pair.verdict == "linked"]
    small = sum(pair.log10_p is not None and pair.log10_p <= np.log10(0.05) for pair in pairs)
    assert small <= 0.05 * len(pairs) + 3 * np.sqrt(0.05 * 0.95 * len(pairs))


def test_identity_blocks_are_left_out_with_a_reason() -> None:
    made = changed(1, identity(1.0, MLP))
    assert "12 blocks started as the identity" in text(made.absences["hidden_units"])
    assert made.hidden is not None and {key.kind for key in made.hidden.keys} == {"v"}


def test_random_rows_do_not_look_like_an_identity() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 32, 96)).astype(np.float32)
    assert not any(canonical.diagonal_stands_out(r, np.arange(32)) for r in rows)
    assert not canonical.diagonal_stands_out(np.ones((32, 96), np.float32), np.arange(32))


def test_a_copied_embedding_is_reuse_of_a_table_and_said_to_be_that() -> None:
    table = np.array(zoo.llama(99, **SHAPE).tensors["model.embed_tokens.weight"])
    a, b = (changed(seed, lambda n, w, _: table if "embed_tokens" in n else w) for seed in (1, 2))
    pair = compare(a, b)
    assert (pair.verdict, pair.relation, pair.direction) == ("linked", "shared-ancestor", "unknown")
    assert pair.evidence["bit_reuse"].value and any(
        "only the token embedding" in reason for reason in texts(pair.reasons)
    )


def test_equal_content_is_identical_even_where_no_test_can_run() -> None:
    flat = changed(1, lambda n, w, _: np.ones_like(w))
    pair = compare(flat, replace(flat, model_id="copy"))
    assert (pair.verdict, pair.relation) == ("linked", "identical")
    assert pair.evidence["bit_reuse"].value == 1.0 and pair.log10_p is not None and pair.log10_p < -70


def test_renamed_tensors_do_not_hide_a_copy() -> None:
    base = zoo.llama(5, **SHAPE)
    hidden = {n.replace("model.layers", "m.blk").replace("embed_tokens", "wemb"): w for n, w in base.tensors.items()}
    renamed = fingerprint(replace(base, tensors=hidden, config={}), "renamed")
    pair = compare(renamed, fingerprint(base, "original"))
    assert pair.verdict == "linked" and pair.evidence["bit_reuse"].value and pair.evidence["bit_reuse"].value > 0.4


def test_a_withheld_tokenizer_does_not_clear_a_disjoint_relative() -> None:
    """Two models of disjoint layers share the residual basis only; the embedding's own rows are enough to see it."""
    parent = zoo.llama(7, **SHAPE)
    a, b = (zoo.drop_layers(parent, keep) for keep in ((0, 2, 4), (1, 3, 5)))
    bare = fingerprint(replace(zoo.finetune_noise(a, 0.95, 1), tokenizer=None), "bare")
    pair = compare(bare, fingerprint(zoo.finetune_noise(b, 0.95, 2), "other"))
    assert pair.evidence["hidden_alignment"].log10_p == pytest.approx(0.0, abs=3)
    assert (pair.verdict, pair.relation) == ("linked", "shared-ancestor")
