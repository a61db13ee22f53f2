"""Search of large indexes: what codes find against a search of everything, and the files that they are kept in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import crowd
import numpy as np
import prints
import pytest
import zoo
from numpy.typing import NDArray

from provindex.api import Index
from provindex.fingerprint.record import Fingerprint
from provindex.index import codes as nearest
from provindex.index import dataset, segments
from provindex.index.codes import GROUPS, Coded, Segment
from provindex.index.entries import center
from provindex.index.search import BLOCKS, DIMENSIONS, searches

F32 = NDArray[np.float32]
ROWS = 6000


@pytest.fixture(scope="module")
def vectors() -> F32:
    """A zoo of 6,000 models, about one in six without some signal."""
    return np.concatenate(list(crowd.Zoo(3).pieces(crowd.tree(ROWS, np.random.default_rng(3)))))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step leaves rows out: 1,500 to 3,000 of 6,000 are candidates, 800 are kept in `wvc` and the whole."""
    fewer = (replace(group, candidates=group.candidates // 20, kept=group.kept // 20) for group in GROUPS)
    monkeypatch.setattr(nearest, "GROUPS", tuple(fewer))
    monkeypatch.setattr(nearest, "SEVERAL", (2000, 800))
    monkeypatch.setattr(nearest, "FINALISTS", 100)
    monkeypatch.setattr(nearest, "TOGETHER", 1 << 18)  # pieces of some rows
    monkeypatch.setattr(nearest, "SAMPLE", 512)


@pytest.mark.usefixtures("few")
def test_codes_find_what_a_search_of_everything_finds(vectors: F32) -> None:
    halves = [Segment.of(vectors[:2500], center()), Segment.of(vectors[2500:], center())]
    searcher = Coded(halves, center())
    by_search: dict[str, list[float]] = {}
    for child in crowd.Zoo(4).children(vectors[::600]):
        asked = searches(child)
        true = asked @ vectors.T
        for one, scores, rows, right in zip(asked, *searcher.search(asked, 50), true, strict=True):
            assert len(set(rows.tolist())) == 50
            np.testing.assert_allclose(scores, right[rows], atol=1e-6)
            first = np.argpartition(-right, 50)[:50]
            by_search.setdefault(str(np.flatnonzero(one)[[0, -1]]), []).append(float(np.isin(first, rows).mean()))
    assert len(by_search) >= 7
    for name, found in by_search.items():
        assert np.mean(found) >= 0.97, name  # of 6,000 rows, the fiftieth is hardly a tail


def test_near_copies_come_in_their_order() -> None:
    one = crowd.Zoo(5).founders(1)
    far = np.linspace(0, 1e-4, 1000, dtype=np.float32)[:, None]  # cosines down to 1 - 5e-9
    noise = np.random.default_rng(5).standard_normal((1, DIMENSIONS)).astype(np.float32) / DIMENSIONS**0.5
    noise -= one * (noise @ one.T) / (one @ one.T)
    copies = (one * (1 - far) + far * noise)[::-1].copy()
    rows = Coded([Segment.of(copies, center())], center()).search(one, 50)[1][0]
    assert rows[0] >= 990 and (np.abs(rows - np.arange(999, 949, -1)) <= 10).all()


def test_more_rows_than_there_are_candidates_are_found_exactly(vectors: F32) -> None:
    searcher, asked = Coded([Segment.of(vectors, center())], center()), searches(vectors[0])
    scores, rows = searcher.search(asked, ROWS)
    assert ROWS > nearest.FINALISTS and sorted(rows[0].tolist()) == list(range(ROWS))
    np.testing.assert_allclose(scores, -np.sort(-(asked @ vectors.T)), atol=1e-6)


def test_rows_without_a_place_are_not_found_and_ties_come_in_order(vectors: F32) -> None:
    twice = np.concatenate([vectors[:1000], vectors[:1000]])
    places = np.concatenate([np.arange(1000, 2000), np.arange(1000)])
    places[5] = -1
    searcher = Coded([Segment.of(twice, center())], center(), [places])
    rows = searcher.search(vectors[4:6], 2)[1]
    assert rows.tolist()[0] == [4, 1004] and rows[1, 0] == 5 and 1005 not in rows
    small = Coded([Segment.of(vectors[:3], center())], center())
    scores, rows = small.search(vectors[:1], 5)
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 1, 2] and np.isneginf(scores[0, 3:]).all()


def test_a_missing_group_is_as_far_as_a_cosine_of_zero(vectors: F32) -> None:
    """Not as far as a stranger: in `lengths` those agree."""
    searcher = Coded([Segment.of(vectors, center())], center())
    asked = vectors[np.all([np.any(vectors[:, g.start : g.stop], axis=1) for g in GROUPS], axis=0)][7]
    terms = nearest._terms(asked, center())
    assert [term.number for term in terms] == list(range(len(GROUPS)))
    for term, group in zip(terms, GROUPS, strict=True):
        far, own = np.empty(ROWS, np.uint16), asked[group.start : group.stop]
        searcher._scan(0, term, far)
        there = np.any(vectors[:, group.start : group.stop], axis=1)
        assert (far[~there] == term.zero).all()
        guessed = (term.zero - far[there].astype(np.float64)) * term.weight
        true = vectors[there, group.start : group.stop] @ own
        assert abs(np.median(guessed - true)) < 0.08 * (own @ own) and np.corrcoef(guessed, true)[0, 1] > 0.9


def test_fixed_point_keeps_what_vectors_may_hold() -> None:
    largest = max(weight for _, weight in BLOCKS.values()) ** 0.5
    rows = np.zeros((5, DIMENSIONS), np.float32)
    rows[1, :4] = 1e-5, -largest, largest, -3e-8
    rows[2, :3] = 2e-6, -1e-6, 3e-13
    rows[3] = np.random.default_rng(0).standard_normal(DIMENSIONS) / 100
    rows[4, :4] = np.nan, np.inf, -1e30, 0.1
    segment = Segment.of(rows, center())
    back = segment.vectors(slice(None))
    np.testing.assert_allclose(back[:4], rows[:4], atol=largest / 2**23)
    np.testing.assert_allclose(back[2], rows[2], atol=2e-6 / 2**23)
    np.testing.assert_allclose(back[3], rows[3], atol=0.05 / 2**23)
    np.testing.assert_allclose(back[4, :4], [0, 0.5, -0.5, 0.1], atol=1e-7)
    assert segment.vectors(3).tolist() == back[3].tolist()
    assert segment.has_vector.tolist() == [False, True, True, True, True]


# --- indexes and files ---


@pytest.fixture(scope="module")
def models() -> list[Fingerprint]:
    """Thirteen small models, the last a child of the first."""
    made = [zoo.llama(seed, layers=1, hidden=32) for seed in range(12)]
    made.append(zoo.finetune_noise(made[0], 0.9, 99))
    return [replace(prints.fingerprint(one), model_id=f"zoo/{number:02}") for number, one in enumerate(made)]


@pytest.fixture
def folder(models: list[Fingerprint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index of twelve of them in three shards, which is large: from ten rows on, segments of eight."""
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(segments, "SEGMENT", 8)
    for first in range(0, 12, 4):
        index = Index.load(tmp_path / "index") if first else Index.build(())
        for fp in models[first : first + 4]:
            index.add(fp)
        index.save(tmp_path / "index")
    monkeypatch.setattr(nearest, "FLAT", 10)
    yield tmp_path / "index"


def kept(folder: Path) -> dict[str, int]:
    """Names of the files of an index's segments, and when each was written."""
    where = segments.folder(dataset.read_manifest(folder).shards)
    return {path.name: path.stat().st_mtime_ns for path in where.iterdir()} if where.exists() else {}


def found(folder: Path, fp: Fingerprint) -> list[str]:
    """What an index, opened anew, brings for a model, the nearest first."""
    return [entry.model_id for entry, _, _ in Index.load(folder).nearest(fp, 50)]


def test_an_index_answers_alike_below_and_above_the_threshold(
    folder: Path, models: list[Fingerprint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> list[dict[str, float]]:
        index = Index.load(folder)
        return [{entry.model_id: score for entry, _, score in index.nearest(fp, 50)} for fp in models]

    above, first = answers(), found(folder, models[12])[0]
    assert len(kept(folder)) == 2
    shutil.rmtree(segments.folder(dataset.read_manifest(folder).shards))
    monkeypatch.setattr(nearest, "FLAT", 13)
    below = answers()
    assert kept(folder) == {}  # a small index keeps nothing
    assert first == found(folder, models[12])[0] == "zoo/00"
    assert [len(each) for each in below] == [11] * 12 + [12]
    for one, other in zip(above, below, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_vectors_of_a_large_index_are_read_once(folder: Path, models: list[Fingerprint]) -> None:
    first = found(folder, models[3])
    reads: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "read_vectors", lambda _, shard: reads.append(shard.models) or iter(()))
        index = Index.load(folder)
        assert reads == []
    assert [entry.model_id for entry, _, _ in index.nearest(models[3], 50)] == first
    added = replace(models[12], model_id="zoo/added")  # rows that are in no segment are searched as well
    assert index.add(added) and index.nearest(models[12], 1)[0][0].model_id == "zoo/added"


def test_a_check_of_a_large_index_keeps_no_vectors(folder: Path, models: list[Fingerprint]) -> None:
    index, problems = Index.check(folder)
    assert problems == [] and len(index) == 12 and kept(folder) == {}
    assert not any(isinstance(entry.rows.vectors, np.ndarray) for entry in index)
    assert [entry.model_id for entry, _, _ in index.nearest(models[12], 50)] == found(folder, models[12])
    broken = next((folder / dataset.MODELS).iterdir())
    broken.write_bytes(broken.read_bytes()[:-100])
    index, problems = Index.check(folder)
    assert len(index) == 8 and any(broken.name in problem.where for problem in problems)


@pytest.mark.parametrize("damage", ["truncated", "another", "longer", "empty"])
def test_damaged_files_are_made_again(folder: Path, models: list[Fingerprint], damage: str) -> None:
    right = found(folder, models[0])
    where = segments.folder(dataset.read_manifest(folder).shards)
    one, other = sorted(where.iterdir(), key=lambda path: path.stat().st_size)
    whole = other.read_bytes()
    wrong = {"truncated": whole[:-1], "another": b"x" + whole[1:], "longer": whole + b"x", "empty": b""}
    other.write_bytes(wrong[damage])
    assert found(folder, models[0]) == right
    assert other.read_bytes() == whole and one.exists()


def test_an_index_that_grew_keeps_what_is_complete(folder: Path, models: list[Fingerprint]) -> None:
    found(folder, models[0])
    before = kept(folder)
    index = Index.load(folder)
    index.add(models[12])
    index.save(folder)
    assert found(folder, replace(models[12], model_id="asked"))[0] == "zoo/12"
    after = kept(folder)
    same = before.keys() & after.keys()
    assert len(before) == len(after) == 2 and len(same) == 1  # the first eight rows; the other was replaced
    assert all(before[name] == after[name] for name in same)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    folder: Path, models: list[Fingerprint], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert found(folder, models[12])[0] == "zoo/00"
