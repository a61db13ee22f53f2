"""A stolen model under copies, layouts and covers, of small models; `run.py` does the same with real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zoo

from build_index.zoo.snapshot import Snapshot
from covers.run import status_of
from covers.ways import SEED, Case, NotHereError, names_of, random_like
from provindex.api import Index, resolve

# One or two of each kind: `python tests/covers/run.py` runs all of them.
IN_SUITE = (
    "plain", "half precision", "three shards without", "torch, under", "fsdp", "scrambled names", "renumbered",
    "disguise: all", "file: model.fp16", "file: .cache", "file: .git", "file: weights.gz", "file: eight",
    "file: ._", "file: small",
    "file: a link", "bytes", "entry: ema", "entry: teacher", "prefix: vision_tower.", "prefix: audio_encoder.",
    "prefix: teacher.", "prefix: student", "tower in disguise: vision", "names: rotary", "names: convolutions",
    "shape: bytes", "shape: one blob", "inside", "design", "all disguises, neither", "a tokenizer",
)  # fmt: skip
STOLEN = {
    "llama": zoo.llama(2, layers=4, hidden=96, heads=4, kv_heads=2, intermediate=256),
    "bert": zoo.bert(2, layers=4, hidden=96, heads=4, intermediate=256),
}


@pytest.fixture(scope="module", params=sorted(STOLEN))
def stolen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Index]:
    """A model, and an index that has it beside the embedded ones."""
    made = STOLEN[request.param]
    snapshot = Snapshot("stolen", made.tensors, made.config, made.tokenizer or "")
    index = Index.load("embedded")
    folder = snapshot.write(tmp_path_factory.mktemp("covers") / "stolen")
    index.add(replace(resolve(folder).fingerprint, model_id="org/stolen"))
    return snapshot, index


@pytest.mark.parametrize(("name", "make", "right"), names_of(IN_SUITE), ids=[name for name, *_ in names_of(IN_SUITE)])
def test_no_cover_passes_and_every_copy_is_seen(
    name: str, make: Callable[[Case], None], right: frozenset[int], stolen: tuple[Snapshot, Index], tmp_path: Path
) -> None:
    model, index = stolen
    try:
        make(Case(model, random_like(model), tmp_path / "model"))
    except NotHereError as why:
        pytest.skip(str(why))
    status, reason = status_of(tmp_path / "model", index, "org/stolen")
    assert status in right, (name, status, reason)


def test_the_clean_model_passes(stolen: tuple[Snapshot, Index], tmp_path: Path) -> None:
    """Else nothing above says anything."""
    model, index = stolen
    clean = random_like(model, SEED + 1)
    Case(model, clean, tmp_path / "model").main(clean.tensors)
    assert status_of(tmp_path / "model", index, "org/stolen")[0] == 0
