"""An index that many machines build: parts by rank, the same bytes for any number of them, killed and broken ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import zoo
from prints import fingerprint

from build_index import fill, parts
from build_index.__main__ import main
from build_index.budget import Purse
from build_index.fill import Job, Settle, Share, Worker
from provindex.api import Index
from provindex.common import files
from provindex.common.errors import UsageError
from provindex.common.files import LOCK, file_sha256, locked
from provindex.fingerprint import parquet
from provindex.index import dataset
from provindex.index import replace as replacing

README = Path(__file__).parent.parent / "build_index" / "README.md"
NAMES = ("ann", "bob", "cid", "dan")
MANY = tuple(f"model-{number:02}" for number in range(12))  # so many that a run can be killed in the middle


@pytest.fixture(autouse=True)
def dated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795392000")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models, which no test changes."""
    root = tmp_path_factory.mktemp("models")
    for folder, names in (("few", NAMES), ("many", MANY)):
        for seed, name in enumerate(names):
            zoo.write(zoo.llama(seed=seed), root / folder / name)
    return root


@pytest.fixture
def models(written: Path, tmp_path: Path) -> Path:
    """A few models of a test's own."""
    return Path(shutil.copytree(written / "few", tmp_path / "models"))


def without_pool(jobs: Sequence[Job], processes: int, worker: Worker, settled: Settle, purse: Purse) -> None:
    """Instead of a pool: every job in this process."""
    for one in jobs:
        settled(one, worker(one))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "_in_pool", without_pool)


def digests(folder: Path) -> Mapping[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): file_sha256(path) for path in found}


def ids(folder: Path) -> set[str]:
    return {entry.model_id for entry in Index.load(folder)}


def build(source: Path | str, output: Path, rank: int, world_size: int, *more: str) -> int:
    command = ["build", str(source), "-o", str(output), "--offline"]
    return main([*command, "--rank", str(rank), "--world-size", str(world_size), *more])


def merge(index: Path, *named: Path | str) -> int:
    return main(["merge", *map(str, named), "-o", str(index)])


def part(output: Path, rank: int, world_size: int) -> Path:
    return parts.folder_of(output, Share(rank, world_size))


def mine(names: Sequence[str], rank: int, world_size: int) -> list[str]:
    return [name for name in names if Share(rank, world_size).has(name)]


# --- which model falls to which rank ---


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 64])
def test_every_model_falls_to_one_rank_and_every_rank_gets_some(world_size: int) -> None:
    names = [f"org/model-{number}" for number in range(2000)]
    shares = [mine(names, rank, world_size) for rank in range(world_size)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert min(map(len, shares)) > len(names) / world_size / 2.5


def test_a_model_never_changes_its_rank() -> None:
    """Parts that are there are of these ranks: the rule is kept, on all machines and in all versions."""
    names = ("org/model", "Qwen/Qwen2.5-0.5B", "modèle", "\udcff")
    assert [[rank for rank in range(7) if Share(rank, 7).has(name)] for name in names] == RANKS


RANKS = [[1], [1], [1], [2]]


@pytest.mark.usefixtures("here")
def test_sources_of_one_id_fall_to_one_rank(tmp_path: Path) -> None:
    """So that a rank decides between them, as one machine does: revisions, and rows that read less."""
    row = replace(fingerprint(zoo.llama(1), "org/x"), revision="a" * 40)
    parquet.write_fingerprint(row, tmp_path / "whole.parquet")
    less = replace(fingerprint(zoo.llama(1), "org/x", mode="norms"), revision="a" * 40)
    parquet.write_fingerprint(less, tmp_path / "less.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    prints = [str(tmp_path / name) for name in ("whole.parquet", "less.parquet", "broken.parquet")]
    sources = [*prints, "org/x", "org/x@v1", "org/x/model.gguf@v2", "org/y"]
    planned = [fill.plan(tmp_path / "i", sources, offline=True, share=Share(rank, 5)) for rank in range(5)]
    held = [{job.source for job in one.missing} for one in planned]
    assert sorted(source for share in held for source in share) == sorted(sources)
    (together,) = [share for share in held if "org/x" in share]
    assert together >= {*prints[:2], "org/x@v1", "org/x/model.gguf@v2"}
    statuses = [
        main(["build", *prints, "-o", str(tmp_path / "p"), "--rank", str(r), "--world-size", "5"]) for r in range(5)
    ]
    assert sorted(statuses) == [0, 0, 0, 0, 1] and merge(tmp_path / "index", tmp_path / "p") == 1
    (entry,) = Index.load(tmp_path / "index")
    assert (entry.model_id, entry.row["mode"]) == ("org/x", "exact")


@pytest.mark.parametrize(
    "wrong",
    [["--rank", "0"], ["--world-size", "2"], ["--rank", "2", "--world-size", "2"], ["--rank", "0", "--world-size", "0"],
     ["--rank=-1", "--world-size", "2"]],
)  # fmt: skip
def test_ranks_that_make_no_sense_are_refused(
    wrong: list[str], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("build", "status"):
        assert main([command, str(models), "-o", str(tmp_path / "parts"), *wrong]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith("error: --rank") and not (tmp_path / "parts").exists()
    with pytest.raises(UsageError):
        Share(3, 3)


# --- the same bytes ---


@pytest.mark.usefixtures("here")
def test_the_number_of_ranks_changes_no_byte(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it another index than that of one machine without ranks; also when rows fill several shards."""
    few = written / "few"
    for world_size in (1, 2, 3, 5):
        made = [build(few, tmp_path / "parts", rank, world_size) for rank in range(world_size)]
        assert made == [0] * world_size
    fill.fill(tmp_path / "plain" / "index", [str(few)], offline=True)
    assert ids(tmp_path / "plain" / "index") == set(NAMES)
    for rows in (256, 2):
        monkeypatch.setattr(replacing, "ROWS_PER_SHARD", rows)
        for world_size in (1, 2, 3, 5):
            named = [part(tmp_path / "parts", rank, world_size) for rank in range(world_size)]
            assert merge(tmp_path / f"{rows}-{world_size}" / "index", *named[::-1]) == 0
        found = [digests(tmp_path / f"{rows}-{world_size}") for world_size in (1, 2, 3, 5)]
        assert len(found[0]) == (3 if rows == 256 else 5) and found == [found[0]] * 4
        assert rows != 256 or found[0] == digests(tmp_path / "plain")


@pytest.mark.usefixtures("here")
def test_a_rank_without_models_is_complete_and_a_second_run_makes_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = next(n for n in range(4, 60) if any(not mine(NAMES, rank, n) for rank in range(n)))
    empty = next(rank for rank in range(size) if not mine(NAMES, rank, size))
    for rank in range(size):
        assert build(models, tmp_path / "parts", rank, size) == 0
    assert parts.read(part(tmp_path / "parts", empty, size)).record.models == 0
    assert merge(tmp_path / "index", tmp_path / "parts") == 0 and ids(tmp_path / "index") == set(NAMES)
    before = digests(tmp_path)
    capsys.readouterr()
    for rank in range(size):
        assert build(models, tmp_path / "parts", rank, size) == 0
    assert merge(tmp_path / "index", tmp_path / "parts") == 0 and digests(tmp_path) == before
    assert capsys.readouterr().out.splitlines()[-1] == f"0 added, 4 present, 0 failed in {tmp_path / 'index'}"


@pytest.mark.usefixtures("here")
def test_dry_run_and_status_are_of_a_rank(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (sorted(str(models / name) for name in mine(NAMES, rank, 2)) for rank in range(2))
    assert build(models, tmp_path / "parts", 0, 2, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == first and not (tmp_path / "parts").exists()
    assert build(models, tmp_path / "parts", 0, 2) == 0
    for rank, state, sources in ((0, "present", first), (1, "missing", second)):
        capsys.readouterr()
        ranked = ["--rank", str(rank), "--world-size", "2"]
        assert main(["status", str(models), "-o", str(tmp_path / "parts"), *ranked]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{state}\t{source}" for source in sources]


# --- what goes wrong ---


@pytest.mark.usefixtures("here")
def test_a_broken_model_is_listed_and_stops_nobody(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = next((models / "cid").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    for world_size in (1, 3):
        made = [build(models, tmp_path / f"p{world_size}", rank, world_size) for rank in range(world_size)]
        assert made == [int("cid" in mine(NAMES, rank, world_size)) for rank in range(world_size)]
        capsys.readouterr()
        assert merge(tmp_path / f"i{world_size}" / "index", tmp_path / f"p{world_size}") == 1
        told = capsys.readouterr()
        assert f"{models / 'cid'}: " in told.err and "3 added, 0 present, 1 failed" in told.out
    assert ids(tmp_path / "i3" / "index") == set(NAMES) - {"cid"}
    assert digests(tmp_path / "i1") == digests(tmp_path / "i3")
    weights.write_bytes(whole)
    assert [build(models, tmp_path / "p3", rank, 3) for rank in range(3)] == [0, 0, 0]
    assert merge(tmp_path / "again" / "index", tmp_path / "p3") == 0
    fill.fill(tmp_path / "plain" / "index", [str(models)], offline=True)
    assert digests(tmp_path / "again") == digests(tmp_path / "plain")


@pytest.mark.usefixtures("here")
def test_ranks_that_are_absent_or_not_finished_are_said(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, index = tmp_path / "parts", tmp_path / "index"
    unfinished = next(rank for rank in range(3) if len(mine(NAMES, rank, 3)) > 1)
    absent = next(rank for rank in range(3) if rank != unfinished and mine(NAMES, rank, 3))
    for rank in {0, 1, 2} - {absent, unfinished}:
        assert build(models, output, rank, 3) == 0
    assert build(models, output, unfinished, 3, "--limit", "1") == 0
    capsys.readouterr()
    assert merge(index, output) == 2 and not index.exists()
    (line,) = capsys.readouterr().err.splitlines()
    lacks = len(mine(NAMES, unfinished, 3)) - 1
    assert f"Of 3 ranks these made no part: {absent}." in line and "--partial" in line
    assert f"Rank {unfinished} is not finished: it lacks {lacks} models." in line
    assert main(["merge", str(output), "-o", str(index), "--partial"]) == 0
    assert "partial: Of 3 ranks" in capsys.readouterr().err
    assert len(ids(index)) == len(NAMES) - lacks - len(mine(NAMES, absent, 3))
    for rank in (absent, unfinished):
        assert build(models, output, rank, 3) == 0
    assert merge(index, output) == 0 and ids(index) == set(NAMES)
    index_of_part = part(output, absent, 3) / parts.INDEX
    shutil.rmtree(index_of_part)
    assert merge(index, output) == 2 and "has lost its index" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_parts_of_different_builds_are_not_one_index(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "parts"
    assert build(models, output, 0, 2) == 0
    zoo.write(zoo.llama(seed=9), models / "gus")
    assert build(models, output, 1, 2) == 0
    assert merge(tmp_path / "index", output) == 2
    assert "2 different builds" in capsys.readouterr().err and not (tmp_path / "index").exists()
    assert build(models, output, 0, 2) == 0 and merge(tmp_path / "index", output) == 0
    assert ids(tmp_path / "index") == {*NAMES, "gus"}
    assert build(models, output, 0, 1) == 0 and merge(tmp_path / "other", output) == 2
    assert main(["merge", str(output), "-o", str(tmp_path / "other"), "--partial"]) == 0  # rows that are there twice
    assert len(Index.load(tmp_path / "other")) == len(NAMES) + 1
    for nothing in (tmp_path / "none", models):
        assert merge(tmp_path / "x", nothing) == 2 and not (tmp_path / "x").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_other_weights_under_one_name_in_two_builds_are_a_failure(models: Path, tmp_path: Path) -> None:
    assert build(models, tmp_path / "a", 0, 1) == 0
    zoo.write(zoo.llama(seed=77), models / "ann")
    assert build(models, tmp_path / "b", 0, 1) == 0
    assert merge(tmp_path / "index", tmp_path / "a", tmp_path / "b") == 1
    assert len(Index.load(tmp_path / "index")) == len(NAMES)


GOOD = {"schema": 1, "rank": 0, "world_size": 1, "listed": "", "models": 1, "missing": [], "failed": {}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", "[" * 100_000, "\udcff",
     *(json.dumps({**GOOD, **wrong}) for wrong in (
         {"schema": 2}, {"rank": 1}, {"rank": -1}, {"rank": True}, {"rank": "0"}, {"world_size": 1.5}, {"missing": {}},
         {"failed": []}, {"models": None})),
     json.dumps({name: value for name, value in GOOD.items() if name != "failed"})],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "00000-of-00001"
    folder.mkdir()
    (folder / parts.RECORD).write_text(text, encoding="utf-8", errors="surrogateescape")
    assert merge(tmp_path / "index", tmp_path) == 2 and not (tmp_path / "index").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and parts.RECORD in line and "Run the rank of this part again." in line


def test_a_record_of_more_ranks_than_memory_holds_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "00000-of-00001").mkdir()
    record = tmp_path / "00000-of-00001" / parts.RECORD
    record.write_text(json.dumps({**GOOD, "world_size": 10**17, "models": 0}), encoding="utf-8")
    assert merge(tmp_path / "index", tmp_path) == 2
    assert "made no part: 1, 2, 3, 4, 5 and 99,999,999,999,999,994 more." in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_damaged_part_is_refused_and_the_index_stays_as_it_was(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        assert build(models, tmp_path / "parts", rank, 2) == 0
    index = tmp_path / "index"
    fill.fill(index, [str(models / "ann")], offline=True)
    before = digests(index)
    damaged = part(tmp_path / "parts", 1, 2) / parts.INDEX
    panels = next((damaged / dataset.PANELS).glob("*.parquet"))
    whole = panels.read_bytes()
    panels.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    assert merge(index, tmp_path / "parts") == 2 and digests(index) == before
    assert "00001-of-00002 cannot be merged" in capsys.readouterr().err
    # And one that vouches for what it did to the bytes: rows have hashes of their own, and are read one after another.
    manifest = dataset.read_manifest(damaged)
    (shard,) = manifest.shards
    forged = replace(shard, sha256={**shard.sha256, shard.panels: file_sha256(panels)})
    dataset.write_manifest(damaged, replace(manifest, shards=(forged,)))
    monkeypatch.setattr(replacing, "ROWS_PER_SHARD", 1)
    assert merge(index, tmp_path / "parts") == 2
    assert len(list((index / dataset.MODELS).glob("*.parquet"))) > 1  # some were written before it was found
    assert dataset.read_manifest(index).models == 1 and ids(index) == {"ann"}
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_part_is_made_by_one_process_at_a_time(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler may start a task again while the one that it holds for dead still runs."""
    monkeypatch.setattr(files, "LOCK_LIMIT", 0.1)
    folder = part(tmp_path / "parts", 0, 2)
    folder.mkdir(parents=True)
    with locked(folder):
        assert build(models, tmp_path / "parts", 0, 2) == 2
        assert build(models, tmp_path / "parts", 1, 2) == 0
    assert "is locked by" in capsys.readouterr().err


# --- killed in the middle ---


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def started(command: Sequence[str], cwd: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=environment(**more),
    )  # fmt: skip


def until_made(work: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a part has so many models in the making."""
    until = time.monotonic() + 60
    while len(list(work.glob("[!.]*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The index of many models that one machine makes."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "_in_pool", without_pool)
        patch.setenv("SOURCE_DATE_EPOCH", "1795392000")
        fill.fill(folder, [str(written / "many")], offline=True)
    return digests(folder)


def scripts() -> list[str]:
    return re.findall(r"```bash\n(#!/bin/bash\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_scripts_for_slurm_run_and_go_on_after_sigkill(
    written: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    """Those of the README, with the variables that SLURM sets."""
    (tmp_path / "models.txt").write_text(f"{written / 'many'}\n", encoding="utf-8")
    for number, script in enumerate(scripts()):
        (tmp_path / f"{number}.sh").write_text(script, encoding="utf-8")

    def task(rank: int) -> subprocess.Popen[str]:
        said = {"SLURM_ARRAY_TASK_ID": str(rank), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        return started(["bash", "0.sh"], tmp_path, **said)

    killed = task(0)
    until_made(part(tmp_path / "parts", 0, 2) / parts.INDEX / fill.WORK, 2, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert parts.read(part(tmp_path / "parts", 0, 2)).record.missing
    other, again = task(1), task(0)
    told = again.communicate(timeout=120)[0]
    assert (other.communicate(timeout=120), other.returncode, again.returncode)[1:] == (0, 0), told
    kept = int(re.findall(r"0 present, (\d+) kept from before", told)[0])
    assert kept >= 2 and told.count("made  ") == len(mine(MANY, 0, 2)) - kept
    merged = started(["bash", "1.sh"], tmp_path)
    assert (merged.communicate(timeout=120), merged.returncode)[1] == 0
    assert digests(tmp_path / "index") == whole


# --- datatrove ---

RUNNER = """
import os, sys
from pathlib import Path
from datatrove import executor
from build_index.cluster import BuildPart

def noted(data, rank, world_size, folder=Path(sys.argv[3])):
    (folder / f"{rank}.pid").write_text(f"{os.getpid()} {os.getppid()}")
    yield from data or ()

if __name__ == "__main__":
    kind, models, folder = sys.argv[1:]
    options = dict(tasks=2, workers=2, logging_dir=f"{folder}/logs")
    if kind == "Ray":
        import ray
        ray.init(num_cpus=2, include_dashboard=False)
        options["mem_per_cpu_gb"] = 0.2
    step = BuildPart(models, f"{folder}/parts", offline=True)
    getattr(executor, kind + "PipelineExecutor")(pipeline=[noted, step], **options).run()
"""

datatrove = pytest.mark.skipif(find_spec("datatrove") is None, reason="needs the extra provindex[cluster]")
ray = pytest.mark.skipif(find_spec("datatrove") is None or find_spec("ray") is None, reason="needs datatrove and ray")


def run_of(kind: str, models: Path, folder: Path) -> subprocess.Popen[str]:
    (folder / "run.py").write_text(RUNNER, encoding="utf-8")
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return started([sys.executable, "run.py", kind, str(models), str(folder)], folder, **quiet)


def completions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "logs" / "completions").glob("*"))


@datatrove
def test_a_local_run_of_datatrove_goes_on_after_a_worker_was_killed(
    written: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    """The pool of the executor waits for a worker that was killed: the run is ended, and does the rest when it is run
    again.
    """
    first = run_of("Local", written / "many", tmp_path)
    until_made(part(tmp_path / "parts", 0, 2) / parts.INDEX / fill.WORK, 2, first)
    os.kill(int((tmp_path / "0.pid").read_text().split()[0]), signal.SIGKILL)
    until = time.monotonic() + 60
    while completions(tmp_path) != ["00001"] and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert completions(tmp_path) == ["00001"] and parts.read(part(tmp_path / "parts", 0, 2)).record.missing
    second = run_of("Local", written / "many", tmp_path)
    told = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and completions(tmp_path) == ["00000", "00001"], told
    assert 0 < told.count("made  ") < len(mine(MANY, 0, 2)) and "Skipping 1 already completed" in told
    assert merge(tmp_path / "index", tmp_path / "parts") == 0 and digests(tmp_path / "index") == whole


@ray
def test_a_run_on_ray_goes_on_by_itself_after_a_worker_was_killed(
    written: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    """Ray starts the task again, beside what its worker has left running: they do not write one part at once."""
    process = run_of("Ray", written / "many", tmp_path)
    until_made(part(tmp_path / "parts", 0, 2) / parts.INDEX / fill.WORK, 2, process)
    os.kill(int((tmp_path / "0.pid").read_text().split()[1]), signal.SIGKILL)
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and completions(tmp_path) == ["00000", "00001"], told
    assert merge(tmp_path / "index", tmp_path / "parts") == 0 and digests(tmp_path / "index") == whole


def commands(folder: Path) -> Path:
    """What SLURM's programs would print."""
    folder.mkdir()
    for name, said in (("sbatch", "Submitted batch job 17"), ("scontrol", "node-1")):
        (folder / name).write_text(f"#!/bin/sh\necho {said}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@datatrove
def test_slurm_gets_a_script_and_the_pickled_step_runs(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datatrove.executor import SlurmPipelineExecutor

    from build_index.cluster import BuildPart

    (models / "cid" / "config.json").write_text("{", encoding="utf-8")  # a broken model does not end the task
    rank = next(rank for rank in range(4) if "cid" in mine(NAMES, rank, 4))
    monkeypatch.setenv("PATH", f"{commands(tmp_path / 'bin')}:{os.environ['PATH']}")
    step = BuildPart([str(models)], tmp_path / "parts", offline=True)
    SlurmPipelineExecutor(
        pipeline=[step], tasks=4, time="12:00:00", partition="cpu", cpus_per_task=2, mem_per_cpu_gb=8,
        venv_path="venv/bin/activate", logging_dir=str(tmp_path / "logs"),
    ).run()  # fmt: skip
    script = (tmp_path / "logs" / "launch_script.slurm").read_text()
    for line in ("#SBATCH --array=0-3", "#SBATCH --cpus-per-task=2", "#SBATCH --mem-per-cpu=8G",
                 "#SBATCH --time=12:00:00", "#SBATCH --partition=cpu", "source venv/bin/activate"):  # fmt: skip
        assert line in map(str.strip, script.splitlines())
    run, pickled = re.findall(r"^\s*srun .* -n 1 (launch_pickled_pipeline) (\S+)$", script, re.MULTILINE)[0]
    said = {"SLURM_ARRAY_TASK_ID": str(rank), "SLURM_NODELIST": "node-1", "SLURM_JOB_ID": "17"}
    task = started([str(Path(sys.executable).with_name(run)), pickled], tmp_path, PATH=os.environ["PATH"], **said)
    told = task.communicate(timeout=120)[0]
    assert task.returncode == 0 and f"failed   {models / 'cid'}" in told, told
    assert completions(tmp_path) == [f"{rank:05d}"]
    record = parts.read(part(tmp_path / "parts", rank, 4)).record
    assert list(record.failed) == [str(models / "cid")] and not record.missing
    assert record.models == len(mine(NAMES, rank, 4))


@pytest.fixture
def without_datatrove(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "build_index.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    for name in [name for name in sys.modules if name.startswith("datatrove.")]:
        monkeypatch.delitem(sys.modules, name)
    yield
    sys.modules.pop("build_index.cluster", None)


@pytest.mark.usefixtures("without_datatrove", "here")
def test_without_datatrove_only_its_step_is_missing(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install 'provindex\[cluster\]'"):
        import_module("build_index.cluster")
    program: Any = "import sys, build_index.__main__; raise SystemExit('datatrove' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert build(models, tmp_path / "parts", 0, 1) == 0
