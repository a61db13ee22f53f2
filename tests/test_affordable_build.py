"""A public index that a person can afford: stages, the plan, the byte budget, killed runs, rows of an older version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zoo
from hub_server import Hub
from prints import fingerprint

from build_index import budget, fill
from build_index.__main__ import main
from build_index.budget import MB, Purse, estimated, mb
from build_index.fill import Job, Settle, Worker
from build_index.publish import publish
from provindex import api
from provindex.api import Index
from provindex.common.files import LOCK, file_sha256
from provindex.fingerprint import parquet
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.index import dataset
from provindex.index.replace import replace_rows
from provindex.models import source

ROOT = Path(__file__).parent.parent
COUNT, SHAPE = 60, (128, 4)  # models; width and depth that norms alone link


@pytest.fixture(autouse=True)
def dated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795392000")
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))


@cache
def base(width: int, layers: int) -> zoo.Checkpoint:
    return zoo.llama(1, hidden=width, layers=layers)


def member(seed: int, width: int = 64, layers: int = 2) -> zoo.Checkpoint:
    """A model with norms of its own; those of the zoo start at one."""
    rng, start = np.random.default_rng(seed), base(width, layers)
    changed = {n: 1 + 0.2 * rng.standard_normal(v.shape) for n, v in start.tensors.items() if "norm" in n}
    return replace(start, tensors={**start.tensors, **{n: v.astype(np.float32) for n, v in changed.items()}})


def published(hub: Hub, folder: Path, repo: str, checkpoint: zoo.Checkpoint) -> str:
    zoo.write(checkpoint, folder, dtype="BF16")
    hub.publish(repo, {path.name: path.read_bytes() for path in folder.iterdir()})
    return repo


def listed(path: Path, repos: Sequence[str]) -> str:
    path.write_text("\n".join(repos), encoding="utf-8")
    return str(path)


def digests(folder: Path) -> Mapping[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


def modes(folder: Path) -> dict[str, str]:
    return {entry.model_id: entry.row["mode"] for entry in Index.load(folder)}


def sent(hub: Hub) -> int:
    """Bytes of files that went over the wire."""
    files = ((size, status) for method, path, status, size, _ in hub.log if method == "GET" and "/api/" not in path)
    return sum(size for size, status in files if status in (200, 206))


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


class Running:
    """`python -m build_index build ...` in a session of its own."""

    def __init__(self, *arguments: str, cache: Path) -> None:
        command = [sys.executable, "-m", "build_index", "build", *arguments]
        environment = {**os.environ, "PROVINDEX_CACHE": str(cache)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def end(self) -> Ran:
        out, err = self.process.communicate(timeout=120)
        return Ran(self.process.returncode, out, err)

    def killed_at(self, work: Path, count: int, *, all_of_it: bool) -> int:
        """Kill it with so many models made; how many are."""
        until = time.monotonic() + 60
        while len(list(work.glob("[!.]*.parquet"))) < count and time.monotonic() < until:
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)
        (os.killpg if all_of_it else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=60)  # its processes have its pipes: they are gone too
        return len(list(work.glob("[!.]*.parquet")))


# --- the whole of it ---


def test_sixty_models_at_stage_0_killed_twice_are_the_index_of_one_run_and_are_published(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos = [published(hub, tmp_path / "models" / str(n), f"stage0/m{n:02}", member(n, *SHAPE)) for n in range(COUNT)]
    catalogue = listed(tmp_path / "list.txt", repos)
    whole, broken = (tmp_path / name / "index" for name in ("whole", "broken"))
    common = (catalogue, "--mode", "norms", "--processes")
    hub.log.clear()
    once = Running(*common, "1", "-o", str(whole), cache=tmp_path / "cache-a").end()
    assert once.status == 0, once.err
    wire = sent(hub)
    assert f"{COUNT} added, 0 present, 0 failed, 0 missing" in once.out
    assert f"fetched {mb(wire)} for {COUNT} models of the Hub, {mb(wire / COUNT)} a model" in once.out
    told = once.err.splitlines()
    assert told[0] == f"0 present, 0 kept from before, {COUNT} to make, {COUNT} of them from the Hub"
    assert told[1].startswith("about ") and told[1].endswith(f"; {COUNT} of unknown shape are taken for models of 8B")

    seen = 0
    for count, all_of_it in ((10, False), (30, True)):
        running = Running(*common, "2", "-o", str(broken), cache=tmp_path / "cache-b")
        kept = running.killed_at(broken / fill.WORK, count, all_of_it=all_of_it)
        assert count <= kept < COUNT and kept > seen and not (broken / dataset.MANIFEST).exists()
        seen = kept
    first = next((broken / fill.WORK).glob("[!.]*.parquet"))
    first.with_suffix(".running").touch()  # as if it had been killed right after it was done
    last = Running(*common, "2", "-o", str(broken), cache=tmp_path / "cache-b").end()
    assert last.status == 0 and f"0 present, {seen} kept from before, {COUNT - seen} to make" in last.err, last.err
    assert digests(broken) == digests(whole)
    rows = [{entry.key for entry in Index.load(folder)} for folder in (whole, broken)]
    assert rows[0] == rows[1] and len(rows[0]) == COUNT and set(modes(broken).values()) == {"norms"}

    monkeypatch.setenv("HF_TOKEN", "hf_admin")
    assert publish(broken, "org/affordable").models == COUNT
    api.pull("org/affordable")
    index = Index.load("org/affordable")
    assert len(index) == COUNT and not index.verify()
    child = fingerprint(zoo.finetune_noise(member(7, *SHAPE), 0.98, 5), "child", mode="norms")
    assert [match.entry.model_id for match in index.query(child).matches] == ["stage0/m07"]


# --- plan and budget ---


def without_pool(jobs: Sequence[Job], processes: int, worker: Worker, settled: Settle, purse: Purse) -> None:
    """Instead of a pool: every job in this process, in order, as far as the budget goes."""
    for job in jobs:
        if purse.holds(job.source):
            purse.begin(job.source)
            settled(job, worker(job))
        else:
            purse.leave(job.source)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "_in_pool", without_pool)


@pytest.fixture
def three(hub: Hub, tmp_path: Path) -> Iterator[list[str]]:
    """Three models on the Hub, of unknown shape."""
    yield [published(hub, tmp_path / "three" / str(n), f"{tmp_path.name[:60]}/m{n}", member(n)) for n in range(3)]


def test_a_plan_costs_nothing_and_says_what_a_run_will(
    hub: Hub, three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.write(member(9), tmp_path / "local")
    index = str(tmp_path / "index")
    command = ["build", *three, "Qwen/Qwen2.5-0.5B", str(tmp_path / "local"), "-o", index]
    hub.log.clear()
    assert main([*command, "--dry-run", "--mode", "norms", "--mbit", "8"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == sorted([*three, "Qwen/Qwen2.5-0.5B", str(tmp_path / "local")], key=fill._name)
    size = 3 * estimated("nobody/knows", "norms") + estimated("Qwen/Qwen2.5-0.5B", "norms")
    assert err.splitlines() == [
        "0 present, 0 kept from before, 5 to make, 4 of them from the Hub",
        f"about {mb(size)} to fetch, {size / 1e6 / 3600:,.1f} hours at 8 Mbit/s; "
        "3 of unknown shape are taken for models of 8B",
    ]  # fmt: skip
    assert not hub.log and not Path(index).exists()
    assert main([*command, "--dry-run", "--max-mb", "1"]) == 0
    assert "at most 1 MB are fetched now" in capsys.readouterr().err
    for wrong in (["--mbit", "0"], ["--max-mb", "nan"]):
        assert main([*command, *wrong]) == 2 and main([*command, *wrong, "--dry-run"]) == 2
    assert capsys.readouterr().err.count("error: --") == 4


def test_what_a_mode_costs() -> None:
    known = "Qwen/Qwen2.5-0.5B"
    costs = [estimated(known, mode) for mode in ("norms", "sampled", "exact")]
    assert costs == sorted(costs) and estimated(f"{known.lower()}/a.gguf@main", "exact") == costs[2]
    assert estimated("nobody/knows", None) == estimated("nobody/knows", "sampled")
    assert [mb(size) for size in (0, 123, 45_600, 1_200_000, 12_300_000_000)] == [
        "0.0 MB", "0.00012 MB", "0.046 MB", "1.2 MB", "12,300.0 MB"
    ]  # fmt: skip


def test_a_budget_is_kept_and_the_next_run_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Estimates are of models of 8B: what came, what is on its way, and one more estimate must fit."""
    repos = [published(hub, tmp_path / "models" / str(n), f"budget/m{n}", member(n)) for n in range(6)]
    one = estimated("budget/m0", "norms")
    hub.log.clear()
    with monkeypatch.context() as patched:
        patched.setattr(fill, "_in_pool", without_pool)
        whole = fill.fill(tmp_path / "whole", repos, mode="norms")
    mean = whole.purse.fetched / 6
    assert whole.purse.fetched == sent(hub) and whole.purse.models == 6 and not whole.missing
    limit = (one + 2.5 * mean) / MB
    index = str(tmp_path / "index")
    command = ["build", *repos, "-o", index, "--mode", "norms", "--processes", "2"]
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "other"))
    hub.log.clear()
    capsys.readouterr()
    assert main([*command, "--max-mb", str(limit)]) == 0
    out = capsys.readouterr().out
    assert sent(hub) <= limit * MB and sorted(modes(Path(index))) == repos[:3]
    assert "3 added, 0 present, 0 failed, 3 missing" in out and "3 models did not fit in " in out
    monkeypatch.setattr(fill, "_in_pool", without_pool)
    assert main([*command, "--max-mb", "0"]) == 0 and "0 added, 3 present" in capsys.readouterr().out
    assert main(command) == 0 and "3 added, 3 present" in capsys.readouterr().out
    assert {e.key for e in Index.load(index)} == {e.key for e in Index.load(tmp_path / "whole")}


def test_a_purse_holds_what_came_and_what_is_on_its_way() -> None:
    purse = Purse(10, {"org/a": 6, "org/b": 5, "org/c": 4, "here": 0})
    purse.begin("org/a")
    assert [purse.holds(s) for s in ("org/b", "org/c", "here")] == [False, True, True]
    purse.end("org/a", 5, made=True)
    assert purse.holds("org/b") and purse.line() == "fetched 0.0000050 MB for 1 models of the Hub, 0.0000050 MB a model"
    purse.begin("org/b")
    purse.end("org/b", 0, made=False)
    assert purse.models == 1 and purse.holds("org/c") and Purse(None, {"org/a": 1 << 60}).holds("org/a")
    assert Purse(0, {}).holds("here") and Purse(None, {}).line() == "fetched 0.0 MB for 0 models of the Hub"


@pytest.mark.usefixtures("here")
def test_a_large_model_does_not_stand_in_the_way_of_small_ones(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        budget, "shape_of", lambda s: budget.UNKNOWN if s == three[0] else replace(budget.UNKNOWN, layers=1)
    )
    small = estimated(three[1], "norms") / MB
    done = fill.fill(tmp_path / "index", three, mode="norms", max_mb=2 * small)
    assert done.missing == (three[0],) and set(done.added) == set(three[1:])


@pytest.mark.usefixtures("here")
def test_a_download_counts_once(three: list[str], tmp_path: Path) -> None:
    """Whole files count by their sizes, those of the config and the tokenizer too; what is in the Hub cache nothing."""
    read = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    size = sum((tmp_path / "three" / "0" / name).stat().st_size for name in read)
    for name, fetched in (("first", size), ("second", 0)):
        done = fill.fill(tmp_path / name, [three[0]], processes=1)
        assert done.purse.fetched == fetched and modes(tmp_path / name) == {three[0]: "exact"}


# --- stages ---


@pytest.mark.usefixtures("here")
def test_each_stage_takes_the_place_of_the_one_before(three: list[str], tmp_path: Path) -> None:
    index = tmp_path / "index"
    for mode in ("norms", "sampled", "exact"):
        done = fill.fill(index, three, mode=mode)
        assert set(done.added) == set(three) and not done.failed
        assert modes(index) == dict.fromkeys(three, mode) and len(Index.load(index)) == 3
        for less in {"norms": ["norms"], "sampled": ["norms", "sampled", None], "exact": ["norms", "exact", None]}[
            mode
        ]:
            assert len(fill.plan(index, three, mode=less).present) == 3
    before = dataset.read_manifest(index)
    whole = tmp_path / "whole" / "index"
    fill.fill(whole, three, mode="exact")
    assert {e.key for e in Index.load(index)} == {e.key for e in Index.load(whole)}
    kept = Job(three[0], three[0], "norms", False, index / fill.WORK)  # of a run that was killed in the first stage
    kept.work.mkdir(exist_ok=True)
    assert fill.run(kept).reason is None
    assert not fill.fill(index, three, mode="norms").added and dataset.read_manifest(index) == before
    assert not Index.load(index).verify()


@pytest.mark.usefixtures("here")
def test_without_a_mode_large_models_are_sampled(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.write(member(9), tmp_path / "local")
    index = tmp_path / "index"
    fill.fill(index, three[:2], mode="norms")
    monkeypatch.setattr(source, "DOWNLOADED", 1 << 10)
    fill.fill(index, [*three[:2], str(tmp_path / "local")])
    monkeypatch.setattr(source, "DOWNLOADED", 1 << 30)
    fill.fill(index, [three[2]])
    assert modes(index) == {three[0]: "sampled", three[1]: "sampled", three[2]: "exact", "local": "exact"}


@pytest.mark.usefixtures("here")
def test_fingerprint_files_follow_the_same_rule(tmp_path: Path) -> None:
    paths = {}
    for mode in ("norms", "sampled", "exact"):
        paths[mode] = str(tmp_path / f"{mode}.parquet")
        parquet.write_fingerprint(fingerprint(member(1), "org/one", mode=mode), Path(paths[mode]))
    index = tmp_path / "index"
    done = fill.fill(index, list(paths.values()))
    assert modes(index) == {"org/one": "exact"} and not done.failed
    assert len(fill.plan(index, list(paths.values())).present) == 3
    other = str(tmp_path / "other.parquet")
    parquet.write_fingerprint(fingerprint(member(2), "org/one", mode="exact"), Path(other))
    assert "Other weights" in fill.fill(index, [other]).failed[other]


# --- rows of an older version ---


def aged(folder: Path, version: int) -> None:
    document = json.loads((folder / dataset.MANIFEST).read_text())
    (folder / dataset.MANIFEST).write_text(json.dumps({**document, "fingerprint_version": version}))


@pytest.mark.usefixtures("here")
def test_rows_of_an_older_version_are_made_again(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    norms = ["-o", str(index), "--mode", "norms", "--processes", "1"]
    assert main(["build", *three, *norms]) == 0
    keys = {entry.model_id: entry.key for entry in Index.load(index)}
    aged(index, FINGERPRINT_VERSION - 1)
    capsys.readouterr()
    assert main(["build", *three, *norms, "--dry-run"]) == 0
    versions = f"version {FINGERPRINT_VERSION - 1}, this provindex makes version {FINGERPRINT_VERSION}"
    whole = f"the index in {index} has {versions}: its 3 rows are made again"
    assert capsys.readouterr().err.splitlines()[0] == whole
    assert main(["build", *three[:2], *norms]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[:2] == [
        f"the index in {index} has {versions}: 2 of its 3 rows are made again",
        f"1 of its rows are lost, because no source of this run names them; `python -m build_index build {three[2]} "
        f"-o {index}` makes them again (of models that are not on the Hub, name the paths)",
    ]
    assert "2 added, 0 present" in out and dataset.read_manifest(index).fingerprint_version == FINGERPRINT_VERSION
    assert {e.model_id: e.key for e in Index.load(index)} == {name: keys[name] for name in three[:2]}
    assert main(["check", str(index)]) == 0
    capsys.readouterr()
    aged(index, FINGERPRINT_VERSION + 1)
    assert main(["build", *three, *norms]) == 2 and "this provindex reads" in capsys.readouterr().err


# --- publishing ---


def rows_of(*named: tuple[int, str]) -> list[Fingerprint]:
    return [replace(fingerprint(member(n), f"org/{n}", mode=mode), revision="a" * 40) for n, mode in named]


def test_a_stage_that_is_published_takes_the_place_of_the_one_before(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_admin")
    replace_rows(tmp_path / "norms", rows_of((1, "norms"), (2, "norms")))
    replace_rows(tmp_path / "later", rows_of((1, "exact"), (3, "norms")))
    first = publish(tmp_path / "norms", "org/stages")
    done = publish(tmp_path / "later", "org/stages")
    assert (first.models, done.models) == (2, 3)
    assert set(done.removed) == {path for path, _ in first.sent if dataset.is_shard(path)}
    api.pull("org/stages")
    index = Index.load("org/stages")
    assert {e.model_id: e.row["mode"] for e in index} == {"org/1": "exact", "org/2": "norms", "org/3": "norms"}
    assert not index.verify() and publish(tmp_path / "norms", "org/stages").commit is None


def test_a_dataset_of_an_older_version_gets_the_rows_of_this_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_admin")
    old, new = tmp_path / "old", tmp_path / "new"
    replace_rows(old, rows_of((1, "norms")))
    replace_rows(new, rows_of((2, "norms"), (3, "norms")))
    sent = publish(old, "org/aged").sent
    repo = hub.repos["dataset", "org/aged"]
    tree = dict(repo.tree("main")[1])
    document = json.loads(hub.path_of(tree["manifest.json"]).read_text())
    data = json.dumps({**document, "fingerprint_version": FINGERPRINT_VERSION - 1}).encode()
    tree["manifest.json"] = [hub.put_blob(data), len(data), None]
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "aged", "", "alice")
    told: list[str] = []
    rehearsed = publish(new, "org/aged", dry_run=True, report=told.append)
    assert len(told) == 1 and "its 1 rows are not merged, and they are removed" in told[0]
    done = publish(new, "org/aged")
    assert done.models == 2 and done.removed == rehearsed.removed
    assert set(done.removed) == {path for path, _ in sent if dataset.is_shard(path)}
    api.pull("org/aged")
    assert set(modes(Path(Index.load("org/aged").folders[0]))) == {"org/2", "org/3"}


def test_a_budget_holds_although_an_estimate_was_too_low(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = published(hub, tmp_path / "models" / "large", "budget/large", member(1))
    size = (tmp_path / "models" / "large" / "model.safetensors").stat().st_size
    monkeypatch.setattr("build_index.budget.estimated", lambda source, mode: 1000)
    hub.log.clear()
    command = ["build", repo, "-o", str(tmp_path / "index"), "--mode", "exact", "--processes", "1"]
    assert main([*command, "--max-mb", str(size / 2 / MB)]) == 0
    said = capsys.readouterr()
    assert "0 added, 0 present, 0 failed, 1 missing" in said.out and sent(hub) <= size / 2
    assert main(command) == 0 and "1 added" in capsys.readouterr().out
