"""Indexes that people keep: sync with a folder, remove, export, and families from an index's own links."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zoo
from commands import Ran, environment, run
from prints import fingerprint

from provindex import api
from provindex.common.errors import IndexFormatError, ModelNotFoundError, UsageError
from provindex.index import dataset, families
from provindex.index.collection import Index
from provindex.index.entries import Key
from provindex.index.families import Families, Member
from provindex.index.links import NEAREST, links
from provindex.index.sync import NOTES, Note, Source, how_made, planned, read_notes
from provindex.models import tree

OLD = time.time() - 3600


def aged(folder: Path) -> Path:
    """The same folder, as if nobody had written to it for an hour; the change time stays that of now."""
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.label for entry in Index.load(folder))


def document(ran: Ran) -> dict[str, Any]:
    found = json.loads(ran.out)
    assert found["schema"] == "provindex.index/1"
    return dict(found)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """team/a, its fine-tuned b, and a stranger."""
    parent = zoo.llama(1, layers=2)
    for name, checkpoint in (
        ("team/a", parent),
        ("team/b", zoo.finetune_noise(parent, 0.98, 2)),
        ("c", zoo.llama(3, layers=2)),
    ):
        zoo.write(checkpoint, tmp_path / "models" / name)
    return aged(tmp_path / "models")


# --- which models a folder has ---


def found(root: Path, name: str = "") -> dict[str, tree.Found | tree.Refused]:
    return {one.name: one for one in tree.below(root, name)}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_models_are_folders_files_and_repositories_at_any_depth(tmp_path: Path) -> None:
    touch(
        tmp_path / "one" / "model.safetensors",
        tmp_path / "one" / "onnx" / "model.onnx",
        tmp_path / "one" / "config.json",
    )
    touch(tmp_path / "deep" / "er" / "pytorch_model.bin", tmp_path / ".git" / "model.safetensors")
    touch(
        tmp_path / "gguf" / "x-Q4_0.gguf",
        tmp_path / "gguf" / "y-00001-of-00002.gguf",
        tmp_path / "gguf" / "y-00002-of-00002.gguf",
    )
    touch(tmp_path / "wrapper" / "config.json", tmp_path / "wrapper" / "inner" / "model.safetensors")
    touch(tmp_path / "empty" / "config.json", tmp_path / "notes" / "readme.txt", tmp_path / "loose.gguf")
    touch(tmp_path / "idx" / "manifest.json", tmp_path / "idx" / "data" / "models" / "x.parquet")
    commit = "a" * 40
    touch(tmp_path / "models--org--name" / "snapshots" / commit / "model.safetensors")
    there = found(tmp_path)
    assert set(there) == {
        "one", "deep/er", "gguf/x-Q4_0.gguf", "gguf/y-00001-of-00002.gguf", "wrapper/inner", "empty", "loose.gguf",
        "models--org--name",
    }  # fmt: skip
    assert all(isinstance(one, tree.Found) for one in there.values())
    assert set(found(tmp_path / "one")) == {"one"} and set(found(tmp_path / "deep", "mine")) == {"mine/er"}
    assert found(tmp_path / "notes") == {}


def test_links_inside_are_followed_and_those_that_lead_out_are_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root / "store" / "m" / "model.safetensors", tmp_path / "outside" / "model.safetensors")
    (root / "team").mkdir()
    (root / "team" / "m").symlink_to(root / "store" / "m")
    (root / "team" / "up").symlink_to(root)  # a circle
    (root / "team" / "out").symlink_to(tmp_path / "outside")
    there = found(root)
    assert set(there) == {"store/m", "team/m", "team/out"}
    out = there["team/out"]
    assert isinstance(out, tree.Refused) and "out of the folder" in out.why and "name=path" in out.why


def test_a_stamp_changes_with_any_file_and_is_not_trusted_at_once(tmp_path: Path) -> None:
    touch(tmp_path / "m" / "model.safetensors", tmp_path / "m" / "sub" / "x")

    def stamp() -> tuple[str, bool]:
        (one,) = tree.below(tmp_path)
        assert isinstance(one, tree.Found)
        return one.stamp, one.settled

    first = stamp()
    assert stamp() == first and not first[1]
    (tmp_path / "m" / "sub" / "x").write_bytes(b"1")
    assert stamp()[0] != first[0]
    kept = (tmp_path / "m" / "model.safetensors").stat()
    second = stamp()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    os.utime(tmp_path / "m" / "model.safetensors", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert stamp()[0] != second[0]  # same size and time of the contents: the time of the change tells


# --- what is to be done ---

KEY: Key = ("a", "", "", "h")
HOW = how_made("exact")


@pytest.mark.parametrize(
    ("sources", "note", "there", "unknown", "expected"),
    [
        ({"a": Source("/r", "/r/a", "s")}, Source("/r", "/r/a", "s"), {KEY}, (), ((), ("a",), (), ())),
        ({"a": Source("/r", "/r/a", "t")}, Source("/r", "/r/a", "s"), {KEY}, (), (("a",), (), (), ())),
        ({"a": Source("/r", "/r/a", "")}, Source("/r", "/r/a", ""), {KEY}, (), (("a",), (), (), ())),
        ({"a": Source("/r", "/r/a", "s")}, Source("/r", "/r/a", "s"), set(), (), (("a",), (), (), ())),
        ({"b": Source("/r", "/r/b", "s")}, Source("/r", "/r/a", "s"), {KEY}, (), (("b",), (), ("a",), ())),
        ({"b": Source("/r", "/r/b", "s")}, Source("/q", "/q/a", "s"), {KEY}, (), (("b",), (), (), ())),
        ({"b": Source("/r", "/r/b", "s")}, Source("/r", "/r/a", "s"), {KEY}, ("a",), (("b",), (), (), ())),
        ({"a": Source("/r", "/r/a", "s")}, Source("/q", "/q/a", "s"), {KEY}, (), ((), (), (), ("a",))),
        ({"a": Source("/r", "/r/a", "s")}, Source("/q", "/gone", "s"), {KEY}, (), ((), ("a",), (), ())),
    ],
    ids="same changed unsettled removed gone another-root unknown taken moved".split(),
)  # fmt: skip
def test_a_plan(
    sources: dict[str, Source], note: Source, there: set[Key], unknown: tuple[str, ...], expected: tuple[Any, ...]
) -> None:
    plan = planned(sources, {"a": Note(note, HOW, KEY)}, there, HOW, unknown, lambda path: path != "/gone")
    assert (plan.read, plan.same, plan.gone, plan.taken) == expected


def test_another_mode_reads_again() -> None:
    source = {"a": Source("/r", "/r/a", "s")}
    notes = {"a": Note(source["a"], HOW, KEY)}
    assert planned(source, notes, {KEY}, how_made("sampled"), (), lambda _: True).read == ("a",)


# --- sync, as people run it ---


def test_sync_adds_replaces_and_prunes(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    first = document(run("index", "sync", models, "-o", index, "--json"))
    assert (first["added"], first["failed"], first["status"]) == (["c", "team/a", "team/b"], [], "decided")
    time.sleep(2.1)  # until the stamps are settled
    run("index", "sync", models, "-o", index)
    before = dataset.read_manifest(index)
    with_code = "import provindex.api as a; a._read_one = lambda *x: 1 / 0; from provindex.__main__ import main; main()"
    command = [sys.executable, "-c", with_code, "index", "sync", str(models), "-o", str(index), "--json"]
    same = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment()).stdout)
    assert same["present"] == ["c", "team/a", "team/b"]  # nothing was read
    assert dataset.read_manifest(index) == before
    zoo.write(zoo.llama(9, layers=2), models / "c")
    shutil.rmtree(models / "team" / "b")
    kept = run("index", "sync", models, "-o", index)
    assert "replaced c" in kept.out and "1 model no longer found, rows kept (--prune removes them): team/b" in kept.out
    assert names(index) == ["c", "team/a", "team/b"]
    pruned = document(run("index", "sync", models, "-o", index, "--prune", "--json"))
    assert (pruned["removed"], pruned["replaced"], pruned["gone"]) == (["team/b"], [], [])
    assert names(index) == ["c", "team/a"] and not Index.load(index).verify()
    assert fingerprint(zoo.llama(9, layers=2)).content_sha256 == Index.load(index)["c"].content_sha256


def test_a_touched_model_is_read_and_its_row_stays(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    api.sync_index(index, [str(models)])
    before = dataset.read_manifest(index)
    aged(models)
    built = api.sync_index(index, [str(models)])
    assert built.present == ("c", "team/a", "team/b") and dataset.read_manifest(index) == before


def test_a_failed_model_is_listed_once_with_its_path_and_keeps_its_row(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    api.sync_index(index, [str(models)])
    weights = models / "team" / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (models / "out").symlink_to(tmp_path)
    ran = run("index", "sync", models, "-o", index, "--prune")
    assert ran.status == 1 and ran.err.count(f"  {models / 'team' / 'b'}: ") == 1 and "team/b" not in ran.out
    assert "2 of 4 models failed" in ran.err and f"  {models / 'out'}: " in ran.err
    assert names(index) == ["c", "team/a", "team/b"]
    quiet = run("index", "sync", models, "-o", index, "--json", "-q")
    told = document(quiet)
    assert quiet.status == 1 and [f["source"] for f in told["failed"]] == ["out", "team/b"]
    assert str(tmp_path) not in quiet.out and "team" in quiet.err
    broken = run("index", "sync", f"x={weights}", "-o", tmp_path / "other")
    assert broken.status == 2 and names(index) == ["c", "team/a", "team/b"]
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_names_and_links_into_the_root(models: Path, tmp_path: Path) -> None:
    (models / "latest").mkdir()
    for file in (models / "c").iterdir():
        (models / "latest" / file.name).symlink_to(file)
    built = api.sync_index(tmp_path / "index", [f"base={models / 'c'}", f"ours={models}"])
    assert sorted(built.added) == ["base", "ours/c", "ours/latest", "ours/team/a", "ours/team/b"] and not built.failed
    with pytest.raises(UsageError, match="are both called x/c"):
        api.sync_index(tmp_path / "index", [f"x={models}", f"x/c={models / 'c'}"])


@pytest.mark.parametrize(("make", "said"), [(False, "is no folder"), (True, "holds no models")])
def test_a_folder_without_models_removes_nothing(models: Path, tmp_path: Path, make: bool, said: str) -> None:
    """An unmounted drive looks like that."""
    api.sync_index(tmp_path / "index", [str(models)])
    shutil.rmtree(models)
    if make:
        models.mkdir()
    ran = run("index", "sync", models, "-o", tmp_path / "index", "--prune")
    assert ran.status == 2 and said in ran.err and ran.out == "" and len(names(tmp_path / "index")) == 3


def test_models_of_another_folder_keep_their_names_and_their_rows(models: Path, tmp_path: Path) -> None:
    zoo.write(zoo.llama(11, layers=2), tmp_path / "more" / "c")
    index = tmp_path / "index"
    api.sync_index(index, [str(models)])
    built = api.sync_index(index, [str(tmp_path / "more")], prune=True)
    assert built.failed[0][0] == "c" and "name=path" in built.failed[0][1] and not built.removed
    named = api.sync_index(index, [f"more={tmp_path / 'more'}"], prune=True)
    assert named.added == ("more/c",) and len(named.index) == 4
    models.rename(tmp_path / "moved")  # the drive has another name: nothing is new
    moved = api.sync_index(index, [str(tmp_path / "moved")], prune=True)
    assert moved.present == ("c", "team/a", "team/b") and not moved.removed and len(moved.index) == 4


def test_a_new_commit_in_a_hub_cache_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    def put(seed: int, commit: str) -> None:
        zoo.write(zoo.llama(seed, layers=2), tmp_path / "cache" / "models--org--name" / "snapshots" / commit)
        main = tmp_path / "cache" / "models--org--name" / "refs" / "main"
        main.parent.mkdir(exist_ok=True)
        main.write_text(commit)

    put(1, "a" * 40)
    assert api.sync_index(tmp_path / "index", [str(tmp_path / "cache")]).index.find("org/name")[0].revision == "a" * 40
    put(2, "b" * 40)
    built = api.sync_index(tmp_path / "index", [str(tmp_path / "cache")])
    assert len(built.replaced) == 1 and [e.revision for e in built.index] == ["b" * 40]


def test_two_at_once_and_several_processes_make_one_index(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    command = [sys.executable, "-m", "provindex", "index", "sync", str(models), "-o", str(index), "--processes", "2"]
    both = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "12"]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert names(index) == ["c", "team/a", "team/b"] and not Index.load(index).verify()
    assert set(read_notes(index)) == {"c", "team/a", "team/b"}
    assert not list(index.glob("*.tmp"))


def test_an_interrupt_ends_it_at_once_and_keeps_what_was_done(models: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    wait = (
        "import provindex.api as a, time\nold = a._read_one\n"
        "def slow(mode, found):\n"
        "    if found.name == 'team/b':\n"
        f"        open({str(tmp_path / 'started')!r}, 'w').close(); time.sleep(100)\n"
        "    return old(mode, found)\n"
        "a._read_one = slow\nfrom provindex.__main__ import main; main()"
    )
    command = [sys.executable, "-c", wait, "index", "sync", str(models), "-o", str(tmp_path / "index")]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), preexec_fn=heard) as process:
        (tmp_path / "started").open().close()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1].decode()
    assert process.returncode == 130 and "Traceback" not in said
    assert names(tmp_path / "index") == ["c", "team/a"]


def test_damaged_notes_and_families_say_what_to_do(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    api.sync_index(index, [str(models)])
    (index / NOTES).write_text('{"c": 1}')
    with pytest.raises(IndexFormatError, match=r"\.sync\.json of index is damaged.*Remove it"):
        api.sync_index(index, [str(models)])
    (index / NOTES).unlink()
    for text in ("[]", "{}", '{"looked": [1], "links": [], "roots": {}}', "[" * 100_000):
        (index / families.FILE).write_text(text)
        with pytest.raises(IndexFormatError, match=r"families\.json of index is damaged"):
            Index.load(index)


# --- remove, list, export ---


def test_remove_takes_all_or_none_and_suggests(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    api.sync_index(index, [str(models)])
    wrong = run("index", "remove", "team/a", "teem/b", "--index", index)
    assert wrong.status == 2 and "Did you mean team/b?" in wrong.err and len(names(index)) == 3
    done = document(run("index", "remove", "team/a", "c", "--index", index, "--json"))
    assert done["removed"] == ["c", "team/a"] and names(index) == ["team/b"] and set(read_notes(index)) == {"team/b"}
    assert run("index", "remove", "team/b", "--index", index).status == 0 and names(index) == []
    back = api.sync_index(index, [str(models)])
    assert back.added == ("c", "team/a", "team/b")


def test_an_id_with_a_hash_or_an_at_is_found(tmp_path: Path) -> None:
    for name in ("clean #2", "a@b"):
        zoo.write(zoo.llama(len(name), layers=2), tmp_path / "models" / name)
    index = api.sync_index(tmp_path / "index", [str(tmp_path / "models")]).index
    assert [e.model_id for e in index.find("clean #2")] == ["clean #2"] and "a@b" in index


def test_list_shows_families_and_export_carries_them(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (models / "team" / "b" / "README.md").write_text("---\nlicense: mit\nbase_model: team/a\n---\n")
    api.sync_index(index, [str(models)])
    listed = document(run("index", "list", "--index", index, "--json"))
    rows = {m["model_id"]: m for m in listed["models"]}
    assert {"variant", "family", "license", "made"} <= rows["c"].keys() and rows["team/b"]["license"] == "mit"
    assert (rows["team/b"]["family"], rows["team/b"]["linked_family"], rows["c"]["linked_family"]) == (
        "team/a",
        "team/a",
        None,
    )
    ran = run("index", "export", "--index", index, "-o", tmp_path / "carried")
    assert ran.status == 0
    carried = Index.load(tmp_path / "carried")
    assert not carried.verify() and {e.model_id: e.stated_family for e in carried} == {
        "c": None, "team/a": "team/a", "team/b": "team/a",
    }  # fmt: skip
    written = [path for path in (tmp_path / "carried").rglob("*") if path.is_file()]
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in written)
    again = run("index", "export", "--index", index, "-o", tmp_path / "carried")
    assert again.status == 2 and "is there already" in again.err
    one = run("index", "export", "team/b", "--index", index, "-o", tmp_path / "one.parquet")
    assert one.status == 0 and run("query", tmp_path / "one.parquet", "--index", index).status == 0
    with pytest.raises(ModelNotFoundError, match="Did you mean team/b"):
        api.export_index(tmp_path / "x", [index], ["b"])
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".provindex*"))


# --- families ---


def rows(**more: tuple[str, ...]) -> dict[str, Member]:
    return {name: Member((name,), parents) for name, parents in more.items()}


@pytest.mark.parametrize(
    ("members", "found", "root"),
    [
        (rows(a=(), b=(), c=()), [("b", "a", True), ("b", "c", True)], "b"),
        (rows(a=(), b=(), c=()), [("b", "a", True), ("a", "c", True)], "b"),
        (rows(a=(), b=("z",), c=("z",)), [("a", "b", False), ("b", "c", False)], "z"),
        (rows(a=("b",), b=("c",), c=()), [("a", "b", False), ("b", "c", False)], "c"),
        (rows(a=("b",), b=("a",), c=()), [("a", "b", False), ("b", "c", False)], "a"),
        (rows(a=("d",), b=("d",), c=(), d=()), [("a", "b", False), ("b", "c", False)], "a"),  # a claim that is refuted
        (rows(b=(), a=()), [("b", "a", False)], "a"),
        ({"a": Member(("a",), (), "acme/root"), "b": Member(("b",))}, [("b", "a", False)], "acme/root"),
    ],
    ids="direct chain claimed claimed-chain circle refuted none stated".split(),
)
def test_a_family_is_named_by_its_root(members: dict[str, Member], found: list[families.Link], root: str) -> None:
    named = families.with_roots(Families(frozenset(members), tuple(found)), members).roots
    assert {named.get(name) for name in "abc" if name in members} == {root}
    assert "d" not in named


def test_a_family_that_loses_a_member_is_looked_at_again() -> None:
    kept = Families(frozenset("abcde"), (("a", "b", False), ("b", "c", False), ("d", "e", True)), {"a": "a"})
    assert families.still(kept, set("acde")) == Families(frozenset("de"), (("d", "e", True),), {})
    assert families.still(kept, set("abcde")).looked == frozenset("abcde")


def test_families_come_from_links_and_are_not_quadratic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bases with 20 fine-tunes each, and strangers: two families, by few comparisons."""
    index = Index.build((), name="zoo")
    for base in (1, 2):
        parent = zoo.llama(base, layers=2)
        index.add(fingerprint(parent, f"acme/base{base}"))
        for i in range(20):
            child = fingerprint(zoo.finetune_noise(parent, 0.98, 100 * base + i), f"ours/{base}-{i}")
            index.add(replace(child, parents=(f"acme/base{base}",)))
    for seed in range(4):
        index.add(fingerprint(zoo.gpt2(50 + seed), f"else/{seed}"))
    index.save(tmp_path / "index")
    from provindex.index import links as module

    count, compare = [0], module.compare

    def counted(*args: Any, **more: Any) -> Any:
        count[0] += 1
        return compare(*args, **more)

    monkeypatch.setattr(module, "compare", counted)
    found = module.update_families(tmp_path / "index")
    sizes = {e.family: sum(o.family == e.family for o in found) for e in found}
    assert sizes == {"acme/base1": 21, "acme/base2": 21, **{f"else/{i}": 1 for i in range(4)}}
    assert count[0] < len(found) * NEAREST and count[0] < len(found) ** 2 / 10
    count[0] = 0
    module.update_families(tmp_path / "index")
    assert count[0] == 0  # nothing is new
    api.remove_rows(tmp_path / "index", ["acme/base1"])
    again = Index.load(tmp_path / "index")
    assert sum(e.family == "acme/base1" for e in again) == 20  # they claim it, and are linked to each other
    assert links(again, families.read(tmp_path / "index")).links
