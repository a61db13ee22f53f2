"""Rows that take the place of rows that say less: which do, what stays as it is on disk, and when old files go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import zoo
from prints import fingerprint

from provindex.api import Index
from provindex.common.errors import IndexFormatError
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.index import dataset
from provindex.index import replace as replacing
from provindex.index.collection import calibration_of
from provindex.index.entries import SEED
from provindex.index.replace import MOST_SMALL, STAYS, Said, Standing, replace_rows, standing

COMMIT = "a" * 40


@cache
def read(seed: int, mode: str, name: str = "org/model", revision: str | None = COMMIT) -> Fingerprint:
    return replace(fingerprint(zoo.llama(seed, layers=2), name, mode=mode), revision=revision)


def modes(folder: Path) -> dict[str, str]:
    return {entry.label: entry.row["mode"] for entry in Index.load(folder)}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}


def named(folder: Path) -> set[str]:
    return {path for shard in dataset.read_manifest(folder).shards for path in (shard.models, shard.panels)}


@pytest.mark.parametrize(
    ("one", "there", "what"),
    [
        (("norms", None, "a"), [], Standing.NEW),
        (("norms", None, "a"), [("norms", None, "a")], Standing.PRESENT),
        (("norms", None, "a"), [("sampled", None, "b")], Standing.PRESENT),
        (("norms", None, "a"), [("imported", None, "b")], Standing.MORE),
        (("sampled", None, "a"), [("norms", None, "b")], Standing.MORE),
        (("sampled", None, "a"), [("norms", None, "b"), ("exact", "w", "c")], Standing.PRESENT),
        (("sampled", None, "a"), [("sampled", None, "b")], Standing.MORE),
        (("exact", "w", "a"), [("sampled", None, "b"), ("norms", None, "c")], Standing.MORE),
        (("exact", "w", "a"), [("exact", "w", "b")], Standing.MORE),
        (("exact", "w", "a"), [("exact", "v", "b")], Standing.CLASH),
        (("exact", "w", "a"), [("of another tool", None, "b")], Standing.MORE),
    ],
)
def test_who_takes_whose_place(
    one: tuple[str, str | None, str], there: list[tuple[str, str | None, str]], what: Standing
) -> None:
    assert standing(Said(*one), [Said(*other) for other in there]) is what


def test_a_row_gives_way_to_one_that_says_more_and_to_no_other(tmp_path: Path) -> None:
    for mode in ("norms", "sampled", "exact"):
        assert replace_rows(tmp_path / "index", [read(1, mode)], name="mine") == ("org/model",)
        assert modes(tmp_path / "index") == {"org/model": mode}
    before = dataset.read_manifest(tmp_path / "index")
    for mode in ("norms", "sampled", "exact"):
        assert replace_rows(tmp_path / "index", [read(1, mode)]) == ()
    assert replace_rows(tmp_path / "index", [read(2, "exact")]) == ()  # other weights
    assert dataset.read_manifest(tmp_path / "index") == before and before.id == "mine"
    assert replace_rows(tmp_path / "index", [replace(read(1, "norms"), revision="b" * 40)]) == ("org/model",)
    assert len(Index.load(tmp_path / "index")) == 2  # another revision is another row
    assert not Index.load(tmp_path / "index").verify()


def test_of_several_new_rows_of_one_name_the_last_that_says_most_is_kept(tmp_path: Path) -> None:
    new = [read(1, mode) for mode in ("norms", "exact", "sampled")] + [read(1, "exact")]
    assert replace_rows(tmp_path / "index", new) == ("org/model",)
    assert modes(tmp_path / "index") == {"org/model": "exact"} and len(named(tmp_path / "index")) == 2


def test_shards_that_lose_no_row_stay_and_others_keep_their_months(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # 2023-11
    folder = tmp_path / "index"
    first = [read(seed, "norms", f"org/{seed}") for seed in (1, 2)]
    replace_rows(folder, first, who="alice")
    replace_rows(folder, [read(3, "norms", "org/3")], who="bob")
    alice, bob = dataset.read_manifest(folder).shards
    (folder / "calibration").mkdir()
    calibration = dataset.read_manifest(SEED).calibration
    assert calibration is not None
    (folder / calibration).write_bytes((SEED / calibration).read_bytes())
    dataset.write_manifest(folder, replace(dataset.read_manifest(folder), calibration=calibration))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795392000")  # 2026-11
    assert replace_rows(folder, [read(1, "exact", "org/1")]) == ("org/1",)
    rest, same, fresh = dataset.read_manifest(folder).shards
    assert same == bob and dataset.month_of(rest) == "2023-11" and dataset.month_of(fresh) == "2026-11"
    assert "-alice-" in rest.models and alice.models not in named(folder)
    assert calibration_of([folder]) == calibration_of([SEED])
    index = Index.load(folder)
    assert {e.model_id: e.row["mode"] for e in index} == {"org/1": "exact", "org/2": "norms", "org/3": "norms"}
    kept = next(iter(index.find("org/2")))
    assert kept.row_sha256 == Said.of(first[1]).digest and kept.load() and not index.verify()


def test_an_index_that_is_open_can_still_be_read_and_old_files_go_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    replace_rows(folder, [read(1, "norms")])
    before, opened = named(folder), Index.load(folder)
    replace_rows(folder, [read(1, "sampled")])
    assert before < files(folder) and before.isdisjoint(named(folder))
    assert opened["org/model"].mode == "norms" and not Index.load(folder).verify()
    (folder / dataset.MODELS / "2026-01-x-01234567.parquet").write_bytes(b"a contribution, or of a killed process")
    (folder / dataset.MODELS / ".2026-01-x-01234567.parquet.y.tmp").write_bytes(b"PAR1")
    (folder / dataset.MODELS / "mine.parquet").write_bytes(b"of somebody else")
    later = time.time() + STAYS + 1
    monkeypatch.setattr(replacing.time, "time", lambda: later)
    replace_rows(folder, [read(1, "exact")])
    left = files(folder) - named(folder)
    assert before.isdisjoint(left) and len(left) == 4 and not list(folder.rglob("*.tmp"))
    later += STAYS + 1
    replace_rows(folder, [read(2, "norms", "org/2")])
    stays = {f"{dataset.MODELS}/{name}.parquet" for name in ("mine", "2026-01-x-01234567")}
    assert files(folder) - named(folder) == stays
    assert not (folder / dataset.REPLACED).exists()


def test_an_index_that_grows_by_single_rows_has_few_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "ROWS_PER_SHARD", 10)
    monkeypatch.setattr(replacing, "MOST_SMALL", 4)
    one, counts = read(1, "norms"), []
    for number in range(30):
        replace_rows(tmp_path / "index", [replace(one, model_id=f"org/{number:02}")])
        counts.append(len(dataset.read_manifest(tmp_path / "index").shards))
    assert counts[:6] == [1, 2, 3, 4, 1, 2] and max(counts) <= 4 + 30 // 10
    index = Index.load(tmp_path / "index")
    assert sorted(e.model_id for e in index) == [f"org/{n:02}" for n in range(30)] and not index.verify()
    assert MOST_SMALL == 16


@pytest.fixture
def aged(tmp_path: Path) -> Callable[[int], Path]:
    """An index of one row that claims another version."""

    def make(version: int) -> Path:
        folder = tmp_path / f"v{version}"
        replace_rows(folder, [read(1, "norms")], name="old")
        document = json.loads((folder / dataset.MANIFEST).read_text())
        (folder / dataset.MANIFEST).write_text(json.dumps({**document, "fingerprint_version": version}))
        return folder

    return make


def test_rows_of_an_older_version_make_place_if_that_is_asked_for(aged: Callable[[int], Path]) -> None:
    folder = aged(FINGERPRINT_VERSION - 1)
    new = read(2, "norms", "org/new")
    with pytest.raises(IndexFormatError):
        replace_rows(folder, [new])
    assert replace_rows(folder, [new], older=True) == ("org/new",)
    assert modes(folder) == {"org/new": "norms"} and dataset.read_manifest(folder).id == "old"
    assert len(dataset.replaced(folder)) == 2 and not Index.load(folder).verify()
    newer = aged(FINGERPRINT_VERSION + 1)
    with pytest.raises(IndexFormatError):
        replace_rows(newer, [new], older=True)
    with pytest.raises(IndexFormatError):
        replace_rows(folder, [replace(new, version=FINGERPRINT_VERSION - 1)])
