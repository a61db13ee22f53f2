"""Filling an index in parallel: what is missing is made, nothing is made twice, no model stops the others."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zoo
from huggingface_hub import constants

from build_index import fill
from build_index.__main__ import main
from build_index.budget import Purse
from build_index.check import check
from build_index.fill import Facts, Job, Outcome, Worker
from build_index.lists import read_lists
from build_index.models import COLUMNS
from build_index.publish import Published
from provindex import api
from provindex.api import Index
from provindex.common.files import LOCK, file_sha256
from provindex.fingerprint import parquet
from provindex.index import dataset
from provindex.index.entries import SEED
from provindex.index.pulled import LeftOut
from provindex.index.search import DIMENSIONS

NAMES = ("one", "two", "three")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Settled = Callable[[Job, Outcome], None]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        zoo.write(zoo.llama(seed=seed), tmp_path / "models" / name)
    return tmp_path / "models"


@pytest.fixture(autouse=True)
def dated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795392000")


def digests(folder: Path) -> Mapping[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ids(folder: Path) -> set[str]:
    return {entry.model_id for entry in Index.load(folder)}


def job(source: Path | str, folder: Path) -> Job:
    return Job(str(source), Path(source).name, None, True, folder / fill.WORK)


def without_pool(jobs: Sequence[Job], processes: int, worker: Worker, settled: Settled, purse: Purse) -> None:
    """Instead of a pool: every job in this process."""
    for one in jobs:
        settled(one, worker(one))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "_in_pool", without_pool)


def test_processes_and_order_do_not_change_a_byte(models: Path, tmp_path: Path) -> None:
    paths = [str(models / name) for name in NAMES]
    for name, sources, processes in (("a", paths, 2), ("b", paths[::-1], 1)):
        (tmp_path / name).mkdir()
        done = fill.fill(tmp_path / name / "index", sources, processes=processes, offline=True)
        assert set(done.added) == set(NAMES) and not done.failed
    found = digests(tmp_path / "a" / "index")
    assert len(found) == 3 and found == digests(tmp_path / "b" / "index")


@pytest.mark.usefixtures("here")
def test_what_was_finished_is_not_made_again(models: Path, tmp_path: Path) -> None:
    index, whole = tmp_path / "i" / "index", tmp_path / "w" / "index"
    fill.fill(whole, [str(models)], offline=True)
    kept = job(models / "two", index)
    kept.work.mkdir(parents=True)
    assert fill.run(kept).reason is None
    made: list[str] = []

    def counted(one: Job) -> Outcome:
        made.append(one.name)
        return fill.run(one)

    planned = fill.plan(index, [str(models)], offline=True)
    assert [j.name for j in planned.kept] == ["two"] and {j.name for j in planned.missing} == {"one", "three"}
    fill.fill(index, [str(models)], offline=True, worker=counted)
    assert sorted(made) == ["one", "three"] and digests(index) == digests(whole)
    again = fill.fill(index, [str(models)], offline=True, worker=counted)
    assert not again.added and set(again.present) == set(NAMES) and len(made) == 2


def interrupted_at_two(one: Job) -> Outcome:
    """What Ctrl-C does while the second model is read."""
    if one.name == "two":
        raise KeyboardInterrupt
    return fill.run(one)


@pytest.mark.usefixtures("here")
def test_an_interrupted_run_loses_nothing(models: Path, tmp_path: Path) -> None:
    index, whole = tmp_path / "i" / "index", tmp_path / "w" / "index"
    with pytest.raises(KeyboardInterrupt):
        fill.fill(index, [str(models)], offline=True, worker=interrupted_at_two)
    planned = fill.plan(index, [str(models)])
    assert [j.name for j in planned.kept] == ["one", "three"] and [j.name for j in planned.missing] == ["two"]
    fill.fill(index, [str(models)], offline=True)
    fill.fill(whole, [str(models)], offline=True)
    assert digests(index) == digests(whole) and not (index / fill.WORK).exists()


def test_ctrl_c_ends_with_status_2(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fill, "fill", interrupted)
    assert main(["build", str(models), "-o", str(tmp_path / "index")]) == 2


def test_failures_are_listed_and_tried_again(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = next((models / "two").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    index = tmp_path / "index"
    command = ["build", str(models), "-o", str(index), "--offline", "--processes", "2"]
    assert main(command) == 1
    assert ids(index) == {"one", "three"}
    assert list(fill.recorded(index)) == [str(models / "two")]
    assert str(models / "two") in capsys.readouterr().err
    assert main(["status", str(models), "-o", str(index)]) == 0
    one, three, two = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert one == ["present", str(models / "one")] and three == ["present", str(models / "three")]
    assert two[:2] == ["failed", str(models / "two")] and two[2]
    weights.write_bytes(whole)
    assert main(command) == 0
    assert ids(index) == set(NAMES) and not (index / fill.WORK).exists()


def deadly(one: Job) -> Outcome:
    """Runs in a process of its own, which two of the models end, each in its way."""
    if one.name == "one":
        os._exit(3)
    if one.name == "two":
        os.kill(os.getpid(), signal.SIGKILL)
    if one.name == "three":
        time.sleep(0.3)  # still running when its neighbor dies
    return fill.run(one)


def test_a_process_that_dies_is_a_failure_of_its_model(models: Path, tmp_path: Path) -> None:
    done = fill.fill(tmp_path / "index", [str(models)], processes=2, offline=True, worker=deadly)
    assert done.added == ("three",) and ids(tmp_path / "index") == {"three"}
    assert "with status 3" in done.failed[str(models / "one")]
    assert "signal 9" in done.failed[str(models / "two")]
    assert fill.recorded(tmp_path / "index") == done.failed


def raising(one: Job) -> Outcome:
    """A defect of ours, for one of the models."""
    if one.name == "two":
        raise ZeroDivisionError("none of zero")
    return fill.run(one)


def test_a_defect_is_a_failure_of_its_model(models: Path, tmp_path: Path) -> None:
    done = fill.fill(tmp_path / "index", [str(models)], processes=1, offline=True, worker=raising)
    assert done.failed == {str(models / "two"): "ZeroDivisionError: none of zero"} and len(done.added) == 2


@pytest.mark.usefixtures("here")
def test_what_a_catalogue_knows_enters_the_rows(models: Path, tmp_path: Path) -> None:
    facts = {"one": Facts("mit", "org/root", ("org/base",), "license: its page"), "two": Facts(license="apache-2.0")}
    fill.fill(tmp_path / "index", [str(models)], facts=facts, offline=True)
    index = Index.load(tmp_path / "index")
    one, two, own = index["one"], index["two"], api.resolve(models / "two").fingerprint
    assert (one.license, one.family, one.parents, one.source) == ("mit", "org/root", ("org/base",), "license: its page")
    assert (two.license, two.family, two.parents) == ("apache-2.0", own.family, own.parents)


@pytest.fixture
def cached() -> Iterator[str]:
    """A model in the Hub cache: its id."""
    model_id, storage = "zoo/child", Path(constants.HF_HUB_CACHE) / "models--zoo--child"
    zoo.write(zoo.llama(seed=7), storage / "snapshots" / COMMIT)
    (storage / "snapshots" / COMMIT / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    yield model_id
    shutil.rmtree(storage)


def catalogue(path: Path, *rows: str) -> str:
    path.write_text("\n".join([",".join(COLUMNS), *rows, ""]), encoding="utf-8")
    return str(path)


def test_what_a_catalogue_says_of_a_model_of_the_hub(cached: str, tmp_path: Path) -> None:
    """Through the command and its processes, offline; the license is the model's own, which the catalogue lacks."""
    listed = catalogue(
        tmp_path / "models.csv",
        f"{cached},zoo/root,,,zoo/root,https://example.org/paper,seen in a list",
        "zoo/nobody,,mit,https://example.org/card,,,",
    )
    command = ["build", listed, "-o", str(tmp_path / "index"), "--offline", "--processes", "1"]
    assert main(command) == 1
    assert list(fill.recorded(tmp_path / "index")) == ["zoo/nobody"]
    row = Index.load(tmp_path / "index")[cached]
    assert (row.revision, row.family, row.parents, row.license) == (COMMIT, "zoo/root", ("zoo/root",), "mit")
    assert row.source == "lineage: https://example.org/paper | note: seen in a list"
    assert [j.source for j in fill.plan(tmp_path / "index", [cached]).present] == [cached]


def test_a_catalogue_names_models_and_their_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = catalogue(tmp_path / "a.csv", "org/child,org/root,mit,https://x.org/card,org/root,https://x.org/paper,")
    sources, facts = read_lists([listed, "org/other"])
    assert sources == ["org/child", "org/other"]
    said = "license: https://x.org/card | lineage: https://x.org/paper"
    assert facts == {"org/child": Facts("mit", "org/root", ("org/root",), said)}
    wrong = catalogue(tmp_path / "b.csv", "org/child,,mit,,,,")
    assert main(["status", wrong, "-o", str(tmp_path / "index")]) == 2
    assert "b.csv is wrong" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_what_a_process_that_died_left_half_written_is_removed(models: Path, tmp_path: Path) -> None:
    one = job(models / "one", tmp_path / "index")
    one.work.mkdir(parents=True)
    one.running.touch()
    (one.work / f".{one.done.name}.x.tmp").write_bytes(b"PAR1")
    assert len(fill.fill(tmp_path / "index", [str(models)], offline=True).added) == 3 and not one.work.exists()


@pytest.mark.usefixtures("here")
def test_a_run_that_ended_after_its_manifest_leaves_nothing(models: Path, tmp_path: Path) -> None:
    index, kept = tmp_path / "index", job(models / "one", tmp_path / "index")
    fill.fill(index, [str(models)], facts={"one": Facts("mit")}, offline=True)
    before = digests(index)
    kept.work.mkdir()
    assert fill.run(kept).reason is None
    done = fill.fill(index, [str(models)], facts={"one": Facts("mit")}, offline=True)
    assert not done.added and not done.failed and digests(index) == before and not kept.work.exists()


def in_reverse(jobs: Sequence[Job], processes: int, worker: Worker, settled: Settled, purse: Purse) -> None:
    """Instead of a pool: the last one is finished first."""
    without_pool(jobs[::-1], processes, worker, settled, purse)


def test_shards_are_cut_by_names_and_written_when_they_are_full(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "ROWS_PER_SHARD", 2)
    seen: list[int] = []
    for name, pool in (("a", without_pool), ("b", in_reverse)):
        folder = tmp_path / name / "index"

        def watched(one: Job, folder: Path = folder) -> Outcome:
            seen.append(len(Index.load(folder)) if (folder / dataset.MANIFEST).exists() else 0)
            return fill.run(one)

        monkeypatch.setattr(fill, "_in_pool", pool)
        fill.fill(folder, [str(models)], offline=True, worker=watched)
        assert [shard.rows for shard in dataset.read_manifest(folder).shards] == [2, 1]
    assert seen == [0, 0, 2, 0, 0, 0]  # "one", "three" fill a shard; in reverse it must wait for "one"
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.usefixtures("here")
def test_an_interruption_after_the_first_shard_changes_no_byte(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "ROWS_PER_SHARD", 2)
    with pytest.raises(KeyboardInterrupt):
        fill.fill(tmp_path / "a" / "index", [str(models)], offline=True, worker=interrupted_at_two)
    assert ids(tmp_path / "a" / "index") == {"one", "three"}
    for name in ("a", "b"):
        fill.fill(tmp_path / name / "index", [str(models)], offline=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.usefixtures("here")
def test_two_sources_of_one_name_and_files(models: Path, tmp_path: Path) -> None:
    zoo.write(zoo.llama(seed=9), tmp_path / "other" / "one")
    parquet.write_fingerprint(api.resolve(models / "three").fingerprint, tmp_path / "three.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    index = tmp_path / "index"
    sources = [str(models / "one"), str(tmp_path / "other" / "one"), *map(str, tmp_path.glob("*.parquet"))]
    done = fill.fill(index, sources, offline=True)
    assert done.added == ("three",) and len(done.failed) == 3
    assert len(fill.plan(index, sources).missing) == 1


@pytest.mark.usefixtures("here")
def test_other_weights_under_a_taken_name_are_refused(models: Path, tmp_path: Path) -> None:
    index, other = tmp_path / "index", tmp_path / "other.parquet"
    fill.fill(index, [str(models / "one")], offline=True)
    zoo.write(zoo.llama(seed=9), tmp_path / "other" / "one")
    parquet.write_fingerprint(api.resolve(tmp_path / "other" / "one").fingerprint, other)
    assert "Other weights" in fill.fill(index, [str(other)], offline=True).failed[str(other)]
    assert len(Index.load(index)) == 1


@pytest.mark.usefixtures("here")
def test_any_revision_of_an_id_is_there_and_a_folder_is_not_read_as_a_reference(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    zoo.write(zoo.llama(seed=5), tmp_path / "more" / "org@v1")
    row = replace(api.resolve(models / "one").fingerprint, model_id="org/one", revision="a" * 40)
    parquet.write_fingerprint(row, tmp_path / "row.parquet")
    sources = [str(tmp_path / "row.parquet"), str(tmp_path / "more" / "org@v1")]
    assert len(fill.fill(index, sources, offline=True).added) == 2
    planned = fill.plan(index, [*sources, "org/one", "org/one@aaaa", "org/one@bbbb", "org/two"])
    assert [j.source for j in planned.missing] == ["org/one@bbbb", "org/two"] and len(planned.present) == 4


@pytest.mark.usefixtures("here")
def test_a_limit_leaves_the_rest_missing(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = fill.fill(tmp_path / "index", [str(models)], offline=True, limit=2)
    assert done.added == ("one", "three") and done.missing == (str(models / "two"),)
    assert main(["status", str(models), "-o", str(tmp_path / "index"), "--offline"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"missing\t{models / 'two'}"


def test_commands_say_what_they_could_not_do(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(tmp_path / "index")
    assert main(["build", str(models), "-o", index, "--dry-run", "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 and not Path(index).exists()
    assert main(["build", "org/nobody", "-o", index, "--offline", "--processes", "1"]) == 1
    (tmp_path / "empty.txt").touch()
    for wrong in (["build", str(tmp_path / "empty.txt")], ["build", str(models), "--processes", "0"],
                  ["build", str(models), "--limit", "-1"], ["status", str(tmp_path / "empty.txt")]):  # fmt: skip
        assert main([*wrong, "-o", index]) == 2
    assert main(["check", str(tmp_path / "none")]) == 2 and main(["card", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["publish", index])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("command", "module"),
    [("seed", "build_seed"), ("calibrate", "calibrate"), ("zoo", "zoo.__main__"), ("benchmark", "benchmark"),
     ("sources", "seed_sources")],
)  # fmt: skip
def test_other_makers_get_their_own_arguments(command: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Sequence[str]] = []
    stand_in = ModuleType(f"build_index.{module}")
    stand_in.main = lambda rest: got.append(rest) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"build_index.{module}", stand_in)
    assert main([command, "--zoo", "DIR", "-h"]) == 7 and got == [["--zoo", "DIR", "-h"]]


@pytest.mark.parametrize("module", ["build_seed", "calibrate", "seed_sources"])
def test_makers_that_are_handed_to_have_a_main(module: str) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(f"build_index.{module}").main(["--help"])
    assert ended.value.code == 0


def test_publish_prints_what_it_did(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, object] = {}

    def send(folder: Path, repo: str, **options: object) -> Published:
        asked.update(options, folder=folder, repo=repo)
        left = LeftOut("data/models/x.parquet", "0" * 64, "it is no shard")
        commit = None if options["dry_run"] else "c" * 40
        return Published(
            repo, 1234, (("README.md", 5), ("manifest.json", 7)), ("old.parquet",), (left,), commit, "u://c"
        )

    monkeypatch.setattr("build_index.publish.publish", send)
    assert main(["publish", "DIR", "--to", "org/x", "--private", "--compact"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sent\tREADME.md\t5", "sent\tmanifest.json\t7", "removed\told.parquet",
        "left out\tdata/models/x.parquet\tit is no shard", "org/x: 1,234 models, 2 files with 12 bytes sent",
        f"commit {'c' * 40} u://c",
    ]  # fmt: skip
    del asked["report"]
    assert asked == {"folder": Path("DIR"), "repo": "org/x", "private": True, "compact": True, "dry_run": False}
    assert main(["publish", "DIR", "--to", "org/x", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would be removed\told.parquet" in told and "commit" not in told


@pytest.mark.usefixtures("here")
def test_what_was_built_is_published_and_then_there_is_nothing_to_do(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_admin")
    (models / "two" / "config.json").write_text("{", encoding="utf-8")
    index = str(tmp_path / "index")
    main(["build", str(models), "-o", index, "--offline"])
    assert main(["check", index]) == 0
    capsys.readouterr()
    assert main(["publish", index, "--to", "org/built"]) == 0
    *told, last, commit = capsys.readouterr().out.splitlines()
    assert last.startswith(f"org/built: 2 models, {len(told)} files with ") and commit.startswith("commit ")
    assert any("\tmanifest.json\t" in line for line in told) and not any(fill.WORK in line for line in told)
    assert main(["publish", index, "--to", "org/built"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to do: the dataset has it all"


def test_card_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(SEED), "--repo", "org/x"]) == 0
    told = capsys.readouterr().out
    assert "org/x" in told and main(["card", str(SEED), "--repo", "org/x", "-o", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == told


# --- check ---


@pytest.fixture
def checked(models: Path, tmp_path: Path) -> Path:
    """An index of the models and a copy of one under another name."""
    prints = [api.resolve(models / name).fingerprint for name in NAMES]
    Index.build([*prints, replace(prints[0], model_id="copy")], name="checked").save(tmp_path / "checked")
    return tmp_path / "checked"


def with_vectors(folder: Path, change: Callable[[list[list[float]]], object]) -> None:
    """Write the vectors of the only shard anew, and vouch for them in the manifest."""
    path = next((folder / dataset.MODELS).glob("*.parquet"))
    table = pq.read_table(path)
    vectors = table.column(dataset.VECTOR).to_pylist()
    change(vectors)
    place = table.schema.get_field_index(dataset.VECTOR)
    field = table.schema.field(place)
    path.unlink()
    pq.write_table(table.set_column(place, field, pa.array(vectors, field.type)), path, compression="zstd")
    manifest = dataset.read_manifest(folder)
    (shard,) = manifest.shards
    digest = {**shard.sha256, shard.models: file_sha256(path)}
    size = {**shard.bytes, shard.models: path.stat().st_size}
    dataset.write_manifest(folder, replace(manifest, shards=(replace(shard, sha256=digest, bytes=size),)))


def test_copies_tie_and_nothing_is_lost(checked: Path) -> None:
    done = check(checked)
    assert done.holds and (done.models, done.searched, done.without, done.ties) == (4, 4, 0, 1)


def test_a_vector_that_hides_others_is_found(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def louder(vectors: list[list[float]]) -> None:
        vectors[0] = [100 * value for value in vectors[0]]

    with_vectors(checked, louder)
    done = check(checked)
    assert not done.holds and done.lost and "does not follow" in done.problems[0].what
    assert main(["check", str(checked)]) == 1
    assert "finds another model first" in capsys.readouterr().out


def test_a_vector_of_another_row_is_found(checked: Path) -> None:
    def swapped(vectors: list[list[float]]) -> None:
        vectors[1], vectors[2] = vectors[2], vectors[1]

    with_vectors(checked, swapped)
    assert len(check(checked).problems) == 2


def test_rows_without_a_vector_are_counted_and_damage_is_told(checked: Path) -> None:
    def silent(vectors: list[list[float]]) -> None:
        vectors[3] = [0.0] * len(vectors[3])

    with_vectors(checked, silent)
    assert (check(checked).without, check(checked).searched) == (1, 3)
    next((checked / dataset.MODELS).glob("*.parquet")).write_bytes(b"PAR1")
    done = check(checked)
    assert not done.holds and (done.models, done.searched) == (0, 0)
    assert main(["check", str(checked)]) == 1


def test_every_row_of_the_seed_finds_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = check(SEED)
    assert done.holds and done.searched == done.models == len(Index.load(SEED))
    assert (done.kind, done.size) == ("IndexFlatIP", done.models * 4 * DIMENSIONS)
    assert main(["check", str(SEED)]) == 0 and "find themselves" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 2
