"""Fingerprints of disguised models: the branch sketch and the neurons are those of the original."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import zoo
from prints import fingerprint
from zoo.shrunk import shrunk

from build_index.zoo import disguises
from build_index.zoo.snapshot import Snapshot
from provindex.evidence import aligned, sketch
from provindex.fingerprint import Fingerprint

KINDS: dict[str, Callable[[int], zoo.Checkpoint]] = {
    "llama": zoo.llama, "qwen2": zoo.qwen2, "gpt2": zoo.gpt2, "gpt_neox": zoo.neox, "bert": zoo.bert, "t5": zoo.t5,
}  # fmt: skip
FAMILIES = (
    "bart", "modernbert", "gemma3_text", "olmo", "olmo2", "gpt_oss", "qwen3_moe", "cohere", "phi", "opt", "mpnet",
    "stablelm_2_12b", "falcon_40b", "glm4", "opt_350m", "electra_generator",
)  # fmt: skip
ALONE = ("rotate_residual", "redistribute_norms", "shift_readers", "shift_writers", "rescale_residual",
         "permute_experts", "rotate_queries", "rotate_values", "permute_heads", "permute_neurons")  # fmt: skip
SEED = 3


def printed(snapshot: Snapshot) -> Fingerprint:
    tensors = {name: tensor.astype(np.float32) for name, tensor in snapshot.tensors.items()}
    return fingerprint(zoo.Checkpoint(dict(snapshot.config), tensors, snapshot.tokenizer or None))


@cache
def original(kind: str, seed: int) -> Snapshot:
    if kind in KINDS:
        made = KINDS[kind](seed)
        return Snapshot(kind, made.tensors, made.config, made.tokenizer or "")
    return shrunk(kind, seed, vocabulary=600)


@cache
def fingerprint_of(kind: str, seed: int) -> Fingerprint:
    return printed(original(kind, seed))


def layers(a: sketch.BranchSketches | None, b: sketch.BranchSketches | None) -> list[float]:
    """Inner products of the layers at the same place."""
    assert a is not None and b is not None and a.keys == b.keys
    return [float(x) for x in np.diag(sketch.similarities(a, b))]


def agreeing(a: Fingerprint, b: Fingerprint) -> float:
    assert a.neurons is not None and b.neurons is not None and a.sketches is not None
    value = aligned.triple_agreement(a.neurons, b.neurons, [[(key, key) for key in a.sketches.keys]]).outcome.value
    assert value is not None
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disguise", ["all", "all_int8"])
def test_everything_together_leaves_the_sketch_and_the_neurons(kind: str, disguise: str) -> None:
    changed = disguises.disguise(disguise, original(kind, 1), SEED)
    assert isinstance(changed, Snapshot)
    one, other = fingerprint_of(kind, 1), printed(changed)
    assert min(layers(one.sketches, other.sketches)) > 0.99
    assert agreeing(one, other) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_independent_models_share_neither(kind: str) -> None:
    one, other = fingerprint_of(kind, 1), fingerprint_of(kind, 2)
    assert max(layers(one.sketches, other.sketches)) < 0.4
    assert agreeing(one, other) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_one_disguise_leaves_the_sketch(family: str) -> None:
    """Without a tokenizer: the anchors are tokens by number."""
    one, done = fingerprint_of(family, 1), 0
    for name in ALONE:
        changed = disguises.disguise(name, original(family, 1), SEED)
        if isinstance(changed, Snapshot):
            assert min(layers(one.sketches_by_id, printed(changed).sketches_by_id)) > 0.99, name
            done += 1
    assert done >= 5
    assert max(layers(one.sketches_by_id, fingerprint_of(family, 2).sketches_by_id)) < 0.5
