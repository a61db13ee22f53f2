"""E0 on matrices without a known role: computed tables, shared towers, and copies under names that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint

from provindex.common.reasons import Code
from provindex.index.collection import calibration_of
from provindex.verdict.pair import Pair, compare

F32 = NDArray[np.float32]
WIDTH, LONG = 128, 512


def angles() -> NDArray[np.float64]:
    return np.outer(np.arange(1, LONG + 1), 10_000.0 ** (-np.arange(WIDTH) / WIDTH))


def interleaved() -> F32:
    """Sinusoidal positions with sines and cosines in turn, as Informer and others store them."""
    half = angles()[:, ::2]
    return np.stack([np.sin(half), np.cos(half)], axis=2).reshape(LONG, WIDTH).astype(np.float32)


TABLES: Mapping[str, F32] = {
    "rotary.freqs_cos": np.cos(angles()).astype(np.float32),
    "rotary.freqs_sin": np.sin(angles()).astype(np.float32),
    "informer.pe": interleaved(),
    "informer.pe2": interleaved() * np.float32(2),
    "index.table": np.arange(LONG * WIDTH, dtype=np.float32).reshape(LONG, WIDTH),
    "index.other": np.random.default_rng(1).integers(0, 4000, (LONG, WIDTH)).astype(np.float32),
}


def beside(model: zoo.Checkpoint, more: Mapping[str, F32]) -> zoo.Checkpoint:
    return model.with_tensors({**model.tensors, **more})


def nameless(model: zoo.Checkpoint, more: Mapping[str, F32]) -> zoo.Checkpoint:
    """The same with names that no table knows."""
    named = {f"blob.p{i}.x": value for i, value in enumerate(model.tensors.values())}
    return model.with_tensors({**named, **more}, model_type="unheard_of", architectures=["Unheard"])


def judged(a: zoo.Checkpoint, b: zoo.Checkpoint) -> Pair:
    return compare(fingerprint(a, "a"), fingerprint(b, "b"), calibration=calibration_of())


@pytest.mark.parametrize("hide", [False, True])
def test_computed_tables_link_nobody(hide: bool) -> None:
    """With names that tell the text towers, and without any."""
    a, b = ((nameless if hide else beside)(zoo.llama(seed, layers=3, hidden=64), TABLES) for seed in (1, 2))
    pair = judged(a, b)
    assert pair.verdict == "inconclusive"  # whole numbers in no order may be somebody's codes
    assert Code.UNNAMED_SHARED not in {reason.code for reason in pair.reasons}
    tables = {name: values for name, values in TABLES.items() if name != "index.other"}
    a, b = ((nameless if hide else beside)(zoo.llama(seed, layers=3, hidden=64), tables) for seed in (1, 2))
    assert judged(a, b).verdict == ("inconclusive" if hide else "unrelated")


def test_a_frozen_tower_under_an_unknown_name_links_no_text_towers_and_clears_none() -> None:
    rng = np.random.default_rng(3)
    tower = {f"vpm.blocks.{i}.w": rng.standard_normal((256, 96)).astype(np.float32) for i in range(6)}
    pair = judged(*(beside(zoo.llama(seed, layers=3, hidden=64), tower) for seed in (1, 2)))
    assert pair.verdict == "inconclusive" and pair.reasons[0].code is Code.UNNAMED_SHARED


def test_a_copy_beside_a_decoy_is_not_cleared() -> None:
    stolen = zoo.llama(1, layers=3, hidden=64)
    hidden = {f"side.{i}": value for i, value in enumerate(stolen.tensors.values()) if value.ndim == 2}
    source = beside(zoo.llama(5, layers=3, hidden=64), hidden)  # what somebody indexed under such names
    pair = judged(source, beside(zoo.llama(9, layers=3, hidden=64), hidden))
    assert pair.verdict == "inconclusive"


def test_a_copy_under_unknown_names_is_still_linked() -> None:
    model = zoo.llama(1, layers=3, hidden=64)
    assert judged(model, nameless(model, {})).verdict == "linked"
    assert judged(nameless(model, {}), nameless(model, TABLES)).verdict == "linked"
