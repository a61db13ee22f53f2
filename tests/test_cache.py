"""The cache finds a fingerprint by what the model is, survives damage and rivals, and costs one read of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from prints import in_memory

from provindex.common import places
from provindex.common.reasons import Code, Reason
from provindex.common.tensor import Tensor
from provindex.fingerprint import cache
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.formats.tensors import ByteTensor, Extent, rows_moved
from provindex.models.source import Model
from provindex.report.words import texts


class Maker:
    """Makes fingerprints through the cache and counts how many were really made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, model: Model, mode: str = "exact") -> Fingerprint:
        digests: dict[str, str] = {}

        def make() -> Fingerprint:
            self.made += 1
            return fingerprint_model(model, mode=mode, digests=digests)

        return cache.through(model, mode, make, digests)


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))
    return Maker()


@pytest.fixture(scope="module")
def model() -> Model:
    return in_memory(zoo.llama(1), "first")


def entries() -> list[Path]:
    return sorted(path for path in places.cache().rglob("*") if path.is_file())


def altered(model: Model, name: str, place: int) -> Model:
    """The model with one bit of one tensor turned over, `place` bytes into it."""
    tensor = model.tensors[name]
    assert isinstance(tensor, ByteTensor)
    data = tensor.extent.data.copy()
    data[place] ^= 1
    return replace(model, tensors={**model.tensors, name: replace(tensor, extent=Extent(data))})


def test_the_same_bytes_in_another_order_have_another_key(model: Model) -> None:
    tensor = largest(model)
    turned = rows_moved(tensor.name, tensor, np.arange(tensor.shape[0])[::-1].copy())
    same = rows_moved(tensor.name, tensor, np.arange(tensor.shape[0]))
    keys = [
        cache.content_key(replace(model, tensors={**model.tensors, tensor.name: t}), "exact") for t in (turned, same)
    ]
    assert len(set(keys)) == 2


def largest(model: Model) -> Tensor:
    return max(model.tensors.values(), key=lambda tensor: tensor.nbytes)


FIRST, SECOND = Reason.of(Code.ONE_SHARD, count=1), Reason.of(Code.ONE_SHARD, count=2)


def test_a_second_time_nothing_is_made_and_the_copy_keeps_its_own_name(through: Maker, model: Model) -> None:
    first = through(replace(model, warnings=(FIRST,)))
    copy = replace(model, model_id="second", revision="abc", license="mit", warnings=(SECOND,))
    second = through(replace(copy, base_models=("org/base",)))
    assert through.made == 1
    assert to_row(second)["row_sha256"] == to_row(first)["row_sha256"]
    assert (second.model_id, second.revision, second.license) == ("second", "abc", "mit")
    assert (first.parents, second.parents) == ((), ("org/base",))
    assert FIRST in first.warnings
    assert SECOND in second.warnings
    assert FIRST not in second.warnings


@pytest.mark.parametrize("where", ["the first byte", "the middle", "the last byte"])
def test_one_bit_is_another_entry(through: Maker, model: Model, where: str) -> None:
    tensor = largest(model)
    assert tensor.nbytes > 4 * cache.ENDS  # the middle is not among the ends
    place = {"the first byte": 0, "the middle": tensor.nbytes // 2, "the last byte": tensor.nbytes - 1}[where]
    other = altered(model, tensor.name, place)
    assert (cache.quick_key(other, "exact") == cache.quick_key(model, "exact")) == (where == "the middle")
    assert through(model).content_sha256 != through(other).content_sha256
    assert (through.made, len(entries())) == (2, 2)


@pytest.mark.parametrize("change", [{"config": {"model_type": "llama", "hidden_size": 1}}, {"tokenizer_files": {}}])
def test_another_config_or_tokenizer_is_another_entry(
    through: Maker, model: Model, change: Mapping[str, object]
) -> None:
    through(model)
    through(replace(model, **change))  # type: ignore[arg-type]
    assert through.made == 2


def test_other_panels_are_another_entry(through: Maker, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    through(model)
    monkeypatch.setattr(cache, "PANELS_VERSION", cache.PANELS_VERSION + 1)
    through(model)
    assert (through.made, len(entries())) == (2, 2)


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more", None])
def test_a_damaged_entry_is_replaced(through: Maker, model: Model, damage: bytes | None) -> None:
    first = through(model)
    (entry,) = entries()
    whole = bytearray(entry.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    entry.write_bytes(bytes(whole) if damage is None else damage)
    assert through(model).content_sha256 == first.content_sha256
    through(model)
    assert (through.made, entries()) == (2, [entry])


def test_digests_of_the_scan_are_those_of_the_stored_bytes(model: Model) -> None:
    digests: dict[str, str] = {}
    fingerprint_model(model, digests=digests)
    assert set(digests) == set(model.tensors)  # float32 that no narrower precision holds: hashed as stored
    assert cache.content_key(model, "exact", digests) == cache.content_key(model, "exact")


def test_many_writers_of_one_entry_leave_one_whole_entry(through: Maker, model: Model) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: through(model), range(16)))
    assert len({to_row(fp)["row_sha256"] for fp in made}) == 1
    before = through.made
    through(model)
    assert (through.made, len(entries())) == (before, 1)


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    through: Maker, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "file"))
    assert any("was not cached" in warning for warning in texts(through(model).warnings))


def test_sampled_mode_is_not_cached(through: Maker, model: Model) -> None:
    through(model, "sampled")
    through(model, "sampled")
    assert (through.made, entries()) == (2, [])
