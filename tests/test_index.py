"""Indexes: one protocol for every way to hold one, building and extending, verification, and hostile files."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import prints
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zoo
from commands import environment

from build_index.publish import publish
from provindex.api import Index, fill_index
from provindex.common.errors import IndexFormatError, ModelError, ModelNotFoundError, ProvindexError, UsageError
from provindex.common.files import file_sha256, locked
from provindex.fingerprint import parquet
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import COLUMNS, row_hash, to_row
from provindex.formats.parquet import pages as parquet_pages
from provindex.hub.pull import pull
from provindex.hub.push import push
from provindex.index import dataset
from provindex.models.listing import expand

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tree() -> dict[str, zoo.Checkpoint]:
    """A parent, its fine-tuned child, and two models of their config that are independent of both."""
    parent = zoo.llama(1)
    return {
        "parent": parent,
        "child": zoo.finetune_noise(parent, 0.98, 2),
        "stranger": zoo.llama(3),
        "other": zoo.llama(4),
    }


@pytest.fixture(scope="module")
def made(tree: dict[str, zoo.Checkpoint]) -> dict[str, Fingerprint]:
    """Six rows: two revisions of the parent's id, a variant of it, and three more models."""
    plain = {name: prints.fingerprint(checkpoint, f"org/{name}") for name, checkpoint in tree.items()}
    dressed = prints.fingerprint(zoo.quantize(tree["parent"], 8), "org/parent")
    return {
        "parent": replace(plain["parent"], revision=COMMIT, family="org/parent", license="mit"),
        "parent-old": replace(plain["stranger"], model_id="org/parent", revision="f" * 40, family="org/parent"),
        "parent-int8": replace(dressed, variant="int8", family="org/parent"),
        "child": replace(plain["child"], family="org/parent"),
        "stranger": plain["stranger"],
        "other": plain["other"],
    }


# --- one protocol, whatever holds the rows ---


def in_memory(made: dict[str, Fingerprint], folder: Path) -> Index:
    return Index.build(made.values(), name="zoo")


def saved(made: dict[str, Fingerprint], folder: Path) -> Index:
    in_memory(made, folder).save(folder / "saved")
    return Index.load(folder / "saved")


def appended(made: dict[str, Fingerprint], folder: Path) -> Index:
    for fp in made.values():
        index = Index.load(folder / "zoo") if (folder / "zoo").exists() else Index.build((), name="zoo")
        index.add(fp)
        index.save(folder / "zoo")
    return Index.load(folder / "zoo")


def several_folders(made: dict[str, Fingerprint], folder: Path) -> Index:
    rows = list(made.values())
    parts = [rows[:2], rows[2:4], rows[3:]]  # one row is in two of them
    for number, part in enumerate(parts):
        Index.build(part, name=f"part{number}").save(folder / f"part{number}")
    return Index.load(*(folder / f"part{number}" for number in range(3)))


def pulled(made: dict[str, Fingerprint], folder: Path) -> Index:
    """From the tests' Hub, in two parts, of which the second was contributed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_admin")
        patch.setenv("PROVINDEX_CACHE", str(folder / "cache"))
        first, *others = made.values()
        Index.build([first]).save(folder / "published")
        publish(folder / "published", "org/held")
        for fp in others:
            push(fp, "org/held", direct=True)
        return Index.load(pull("org/held").folder)


HOLDERS = [in_memory, saved, appended, several_folders, pulled]


@pytest.fixture(scope="module", params=HOLDERS, ids=lambda f: f.__name__)
def held(
    request: pytest.FixtureRequest, made: dict[str, Fingerprint], tmp_path_factory: pytest.TempPathFactory
) -> Index:
    index: Index = request.param(made, tmp_path_factory.mktemp("held"))
    return index


def test_it_has_every_row_once(held: Index, made: dict[str, Fingerprint]) -> None:
    assert len(held) == len(made) == held.info.models
    assert {entry.key[3] for entry in held} == {to_row(fp)["row_sha256"] for fp in made.values()}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("org/parent", ["parent", "parent-old", "parent-int8"]),  # originals before variants
        (f"org/parent@{COMMIT}", ["parent"]),
        (f"org/parent@{COMMIT[:7]}", ["parent"]),
        ("org/parent@ffff", ["parent-old"]),
        ("org/parent#int8", ["parent-int8"]),
        ("org/child", ["child"]),
        ("org/child@main", []),
        ("org/child#int8", []),
        ("org/chil", []),
        ("", []),
    ],
)
def test_it_finds_ids_revisions_and_variants(
    held: Index, made: dict[str, Fingerprint], reference: str, found: list[str]
) -> None:
    assert [e.key[3] for e in held.find(reference)] == [to_row(made[n])["row_sha256"] for n in found]
    assert (reference in held) == bool(found)


def test_a_row_comes_back_as_it_was(held: Index, made: dict[str, Fingerprint]) -> None:
    for name in ("org/parent@0123", "org/parent#int8", "org/child"):
        key = {"org/parent@0123": "parent", "org/parent#int8": "parent-int8", "org/child": "child"}[name]
        ours, theirs = to_row(made[key]), to_row(held[name])
        for column in COLUMNS:
            assert np.array_equal(ours[column.name], theirs[column.name]), column.name


def test_an_id_that_is_not_there_is_told(held: Index) -> None:
    with pytest.raises(ModelNotFoundError, match="org/nobody is not in the index"):
        held["org/nobody"]


def answer(index: Index, fp: Fingerprint) -> list[tuple[Any, ...]]:
    result = index.query(fp)
    return [
        (m.entry.key, m.rank, round(m.score, 6), m.direction, m.pair.verdict, m.pair.relation, m.pair.log10_p)
        for m in (*result.matches, *result.candidates)
    ]


def test_every_holder_gives_the_same_answer(held: Index, made: dict[str, Fingerprint]) -> None:
    expected = in_memory(made, Path())
    for fp in made.values():
        assert answer(held, fp) == answer(expected, fp)


def test_the_query_finds_its_parent(held: Index, made: dict[str, Fingerprint]) -> None:
    result = held.query(made["child"])
    assert result.status == "decided"
    assert {(m.entry.model_id, m.entry.row["variant"]) for m in result.matches} == {
        ("org/parent", ""),
        ("org/parent", "int8"),
    }
    assert {m.pair.relation for m in result.matches} <= {"finetune", "quantized"}
    assert [f.family for f in result.families] == ["org/parent"]
    assert result.families[0].matches == 2 and result.families[0].models == 4


def test_rows_of_its_own_are_left_out_and_equal_content_under_another_id_is_identical(
    held: Index, made: dict[str, Fingerprint]
) -> None:
    own = held.query(made["stranger"])
    assert all(m.entry.model_id != "org/stranger" for m in (*own.matches, *own.candidates))
    (match,) = own.matches  # the old revision of org/parent has the stranger's weights
    assert (match.entry.model_id, match.pair.relation) == ("org/parent", "identical")
    copy = held.query(replace(made["other"], model_id="me/copy"))
    assert [(m.entry.model_id, m.pair.relation) for m in copy.matches] == [("org/other", "identical")]


def test_a_variant_is_no_ancestor_of_its_source(held: Index, made: dict[str, Fingerprint]) -> None:
    for m in held.query(made["parent"]).matches:
        if m.entry.row["variant"]:
            assert m.direction != "ancestor"
    for m in held.query(made["parent-int8"]).matches:
        if m.entry.model_id == "org/parent":
            assert m.direction != "descendant"


def test_top_and_candidates_limit_the_answer(held: Index, made: dict[str, Fingerprint]) -> None:
    assert len(held.query(made["child"], top=1, candidates=3).matches) == 1
    few = held.query(made["other"], candidates=2)
    assert not few.linked and [m.rank for m in few.candidates] == [1, 2]
    for wrong in ({"top": 0}, {"candidates": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            held.query(made["child"], **wrong)


def test_a_copy_under_another_family_takes_no_evidence_away(made: dict[str, Fingerprint]) -> None:
    """An entry that has the parent's blocks and claims a family of its own is no reason to call them common."""
    twin = replace(made["parent"], model_id="evil/twin", family="evil/family", revision=None)
    alone = Index.build([made["parent"]]).query(made["parent-int8"], candidates=1)
    before = Index.build([made["parent"], made["other"]]).query(made["parent"])
    after = Index.build([made["parent"], made["other"], twin]).query(replace(made["parent"], model_id="me/copy"))
    assert alone.matches and not before.matches
    (match,) = after.matches
    assert match.pair.evidence["bit_reuse"].log10_p is not None and match.pair.relation == "identical"
    assert {match.entry.model_id, *(e.model_id for e in match.copies)} == {made["parent"].model_id, "evil/twin"}
    assert {f.family for f in after.families} == {match.entry.family, match.copies[0].family}


def test_ids_that_are_asked_for_are_compared_whatever_their_rank(held: Index, made: dict[str, Fingerprint]) -> None:
    names = ["org/other", "org/stranger"]
    asked = held.query(made["child"], candidates=1, also=names)
    assert set(names) <= {m.entry.model_id for m in asked.candidates}


def test_it_verifies(held: Index) -> None:
    assert held.verify() == []


def test_an_empty_index_is_inconclusive(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    result = Index.build(()).query(made["child"])
    assert (result.status, result.matches, result.candidates) == ("inconclusive", (), ())


def test_panels_are_read_for_candidates_only(made: dict[str, Fingerprint], tmp_path: Path, monkeypatch: Any) -> None:
    read: list[tuple[str, int]] = []
    whole = dataset.read_panels

    def seen(folder: Path, shard: dataset.Shard, number: int) -> Any:
        read.append((shard.panels, number))
        return whole(folder, shard, number)

    index = saved(made, tmp_path)
    monkeypatch.setattr(dataset, "read_panels", seen)
    found = index.query(made["other"], candidates=2)
    assert len(set(read)) == len(read) == 2 == len(found.candidates) and not found.linked


def test_the_answer_does_not_depend_on_threads(made: dict[str, Fingerprint], tmp_path: Path, monkeypatch: Any) -> None:
    index = saved(made, tmp_path)
    answers = set()
    for threads in (1, 2, 5):
        monkeypatch.setattr("provindex.index.collection.threads", lambda threads=threads: threads)
        answers.add(index.query(made["child"]).to_json())
    assert len(answers) == 1


def test_a_row_that_is_added_is_found(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    index = saved({"other": made["other"]}, tmp_path)
    assert not index.query(made["child"]).linked
    index.add(made["parent"])
    assert [m.entry.model_id for m in index.query(made["child"]).linked] == ["org/parent"]


def test_a_few_columns_of_a_row(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    shard = in_memory(made, tmp_path).save(tmp_path).shards[0]
    names = ["wvc_names", "wvc", "residual_width", "row_sha256"]
    for number in range(shard.rows):
        row = dataset.read_panels(tmp_path, shard, number)
        some = dataset.read_columns(tmp_path, shard, number, names)
        assert list(some) == names and all(np.array_equal(some[name], row[name]) for name in names)
    for number in (-1, shard.rows):
        with pytest.raises(IndexFormatError, match=f"0 rows in row group {number}, expected 1"):
            dataset.read_columns(tmp_path, shard, number, names)


# --- adding and saving ---


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.parquet")}


def test_saving_appends_a_shard_and_rewrites_none(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    Index.build([made["parent"]], name="zoo").save(tmp_path)
    first = files_of(tmp_path)
    index = Index.load(tmp_path)
    # the same weights under another revision: a shard of equal content, which must not take the first one's name
    assert index.add(replace(made["parent"], revision="e" * 40))
    index.save(tmp_path)
    second = files_of(tmp_path)
    assert {name: second[name] for name in first} == first and len(second) == 4
    assert len(Index.load(tmp_path)) == 2 and Index.load(tmp_path).verify() == []


def test_saving_nothing_new_changes_nothing(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    Index.build([made["parent"]], name="zoo").save(tmp_path)
    before = (files_of(tmp_path), (tmp_path / "manifest.json").read_bytes())
    index = Index.load(tmp_path)
    assert not index.add(made["parent"])
    assert index.info == Index.load(tmp_path).info
    index.save(tmp_path)
    assert (files_of(tmp_path), (tmp_path / "manifest.json").read_bytes()) == before


def test_saving_elsewhere_writes_everything(made: dict[str, Fingerprint], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("provindex.index.collection.ROWS_PER_SHARD", 2)
    copy = Index.build(made.values()).save(tmp_path / "copy")
    assert [shard.rows for shard in copy.shards] == [2, 2, 2]
    assert Index.load(tmp_path / "copy").verify() == []
    Index.load(tmp_path / "copy").save(tmp_path / "again")
    assert len(Index.load(tmp_path / "again")) == len(made)


def test_the_same_input_gives_the_same_bytes(made: dict[str, Fingerprint], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    contents = []
    for name, order in (("a/zoo", made.values()), ("b/zoo", reversed(made.values()))):
        Index.build(order, name="zoo").save(tmp_path / name)
        folder = tmp_path / name
        contents.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
    assert any(name.startswith("data/models/2023-11-local-") for name in contents[0])


def test_layout_on_disk(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    """One row a row group in panels; floats as byte streams, without dictionaries; zstd throughout."""
    shard = Index.build(made.values()).save(tmp_path).shards[0]
    panels = pq.ParquetFile(tmp_path / shard.panels).metadata
    assert panels.num_row_groups == panels.num_rows == len(made)
    assert pq.ParquetFile(tmp_path / shard.models).metadata.num_row_groups == 1
    for i in range(panels.num_columns):
        column = panels.row_group(0).column(i)
        assert column.compression == "ZSTD"
        if column.path_in_schema.startswith(("wvc.", "eas.", "nlf.", "hidden_panels.")):
            assert "BYTE_STREAM_SPLIT" in column.encodings and not column.has_dictionary_page


ADD = """
import sys
from pathlib import Path
from provindex.api import Index
from provindex.fingerprint.parquet import read_fingerprints
index = Index.load(sys.argv[1])
fingerprint, = read_fingerprints(Path(sys.argv[2]))
print("loaded", flush=True)
sys.stdin.readline()
index.add(fingerprint)
index.save(sys.argv[1])
"""


def test_processes_that_save_at_once_lose_nothing(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    """All have loaded the same index before the first of them saves."""
    Index.build([made["parent"]], name="zoo").save(tmp_path / "zoo")
    running = []
    for number in range(4):
        parquet.write_fingerprint(replace(made["other"], model_id=f"org/{number}"), tmp_path / f"{number}.parquet")
        command = [sys.executable, "-c", ADD, str(tmp_path / "zoo"), str(tmp_path / f"{number}.parquet")]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment()))
    assert all(process.stdout and process.stdout.readline() == "loaded\n" for process in running)
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in running] == [""] * 4
    assert ids(Index.load(tmp_path / "zoo")) == {"org/parent", *(f"org/{number}" for number in range(4))}
    assert Index.load(tmp_path / "zoo").verify() == []


def test_a_saver_waits_for_the_lock(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            saving = pool.submit(Index.build([made["parent"]]).save, tmp_path)
            with pytest.raises(FuturesTimeout):
                saving.result(0.3)
            assert not (tmp_path / "manifest.json").exists()
        assert saving.result(30).models == 1


def test_a_lock_that_is_a_link_is_not_followed(made: dict[str, Fingerprint], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / ".lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(IndexFormatError, match="is a link"):
        Index.build([made["parent"]]).save(tmp_path / "zoo")
    assert (tmp_path / "mine.txt").read_text() == "kept"


# --- building from models, folders, files and lists ---


@pytest.fixture(scope="module")
def models(tree: dict[str, zoo.Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, checkpoint in tree.items():
        zoo.write(checkpoint, folder / name)
    return folder


def ids(index: Index) -> set[str]:
    return {entry.model_id for entry in index}


def test_a_build_takes_models_folders_files_and_lists(
    models: Path, made: dict[str, Fingerprint], tmp_path: Path, monkeypatch: Any
) -> None:
    parquet.write_fingerprint(made["parent-int8"], tmp_path / "kept.parquet")
    listed = tmp_path / "list.txt"
    listed.write_text(f"\ufeff# models\n\n  {models / 'child'}  \r\n{models / 'other' / 'model.safetensors'}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{models / 'stranger'}\n"))
    sources = [str(models / "parent"), str(tmp_path / "kept.parquet"), str(listed), "-"]
    built = fill_index(tmp_path / "index", sources, create=True)
    assert ids(built.index) == {"parent", "org/parent", "child", "model.safetensors", "stranger"}
    assert len(built.added) == 5 and not built.failed and "org/parent [int8]" in built.added
    whole = fill_index(tmp_path / "whole", [str(models)], create=True)
    assert ids(whole.index) == {"parent", "child", "stranger", "other"}


def test_a_second_build_adds_only_what_is_missing(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    fill_index(index, [str(models / "parent")], create=True)
    before = files_of(index)
    more = fill_index(index, [str(models)], create=True)
    assert more.present == ("parent",) and set(more.added) == {"child", "stranger", "other"}
    assert before.items() <= files_of(index).items()
    again = fill_index(index, [str(models)], create=False)
    assert again.added == () and len(again.present) == 4 and len(again.index) == 4


def test_one_failed_model_does_not_stop_the_rest(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models" / "a-broken"
    shutil.copytree(models / "parent", broken)
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    pickled = tmp_path / "models" / "b-pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"PK")
    shutil.copytree(models / "child", tmp_path / "models" / "child")
    said: list[str] = []
    built = fill_index(tmp_path / "index", [str(tmp_path / "models")], create=True, report=said.append)
    assert built.added == ("child",) and ids(built.index) == {"child"}
    assert [Path(source).name for source, _ in built.failed] == ["a-broken", "b-pickled"]
    assert [line.split()[0] for line in said] == ["added"]  # what failed is in the answer, once


def test_what_was_done_stays_done_when_a_build_is_interrupted(models: Path, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if "other" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_index(tmp_path / "index", [str(models / "child"), str(models / "other")], create=True, report=stop)
    assert "child" in Index.load(tmp_path / "index")


def test_sources_that_name_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "blank.txt").write_text("# nothing\n")
    for source, said in (("empty", "holds no models"), ("image.png", "neither a model nor a list")):
        with pytest.raises(UsageError, match=said):
            list(expand([str(tmp_path / source)]))
    for sources in ([], [str(tmp_path / "blank.txt")]):
        with pytest.raises(UsageError, match="No model was named"):
            fill_index(tmp_path / "index", sources, create=True)
    with pytest.raises(ModelNotFoundError, match="no index to add to"):
        fill_index(tmp_path / "index", ["x"], create=False)
    assert not (tmp_path / "index").exists()


def test_a_list_that_names_itself_is_read_once(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{listed}\norg/name\n")
    assert list(expand([str(listed)])) == [str(listed), "org/name"]


def test_candidates_are_verified_from_the_index_alone(
    models: Path, made: dict[str, Fingerprint], tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models")
    fill_index(tmp_path / "index", [str(tmp_path / "models")], create=True)
    shutil.rmtree(tmp_path / "models")
    result = Index.load(tmp_path / "index").query(replace(made["child"], model_id="mine"))
    assert [(m.entry.model_id, m.pair.relation) for m in result.matches] == [
        ("child", "identical"),
        ("parent", "finetune"),
    ]
    assert {m.pair.verdict for m in result.candidates} == {"unrelated"}
    assert all(s.value is not None for s in result.matches[0].pair.signals.values())


# --- verification ---


def flip_a_byte(folder: Path, table: str) -> None:
    path = next((folder / "data" / table).glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def rewrite(folder: Path, table: str, change: Callable[[list[dict[str, Any]]], object], *, sign: bool = False) -> None:
    """Change rows of a shard and write it back; sign: give the manifest the new file's digest, as a forger would."""
    path = next((folder / "data" / table).glob("*.parquet"))
    rows = parquet.read_rows(path, dataset.schema(table))
    change(rows)
    parquet.write(path, rows, dataset.schema(table), 1)
    if sign:
        name = f"data/{table}/{path.name}"
        edit_manifest(folder, lambda d: d["shards"][0]["sha256"].update({name: file_sha256(path)}))
        edit_manifest(folder, lambda d: d.update(revision=dataset._manifest(d).revision))


def swap_panels(rows: list[dict[str, Any]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def nudge(rows: list[dict[str, Any]], column: str) -> None:
    changed = rows[0][column].copy()
    changed[0] += 1
    rows[0][column] = changed


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte in models": (lambda f: flip_a_byte(f, "models"), "sha256 is not the manifest's"),
    "flipped byte in panels": (lambda f: flip_a_byte(f, "panels"), "sha256 is not the manifest's"),
    "missing panels": (lambda f: next(f.glob("data/panels/*")).unlink(), "missing"),
    "missing models": (lambda f: next(f.glob("data/models/*")).unlink(), "No such file"),
    "empty file": (lambda f: next(f.glob("data/models/*")).write_bytes(b""), "not a readable Parquet file"),
    "edited revision": (lambda f: edit_manifest(f, lambda d: d.update(revision="0" * 12)), "revision should be"),
    "edited count": (lambda f: edit_manifest(f, lambda d: d.update(models=7)), "number of models should be"),
    "edited digest": (
        lambda f: edit_manifest(f, lambda d: d["shards"][0]["sha256"].update({d["shards"][0]["panels"]: "0" * 64})),
        "sha256 is not the manifest's",
    ),
    "edited id": (lambda f: rewrite(f, "models", lambda r: r[0].update(model_id="evil/twin")), "sha256 is not"),
    "edited vector": (lambda f: rewrite(f, "models", lambda r: nudge(r, "vector")), "sha256 is not"),
    "forged vector": (
        lambda f: rewrite(f, "models", lambda r: nudge(r, "vector"), sign=True),
        "retrieval vector does not follow",
    ),
    "forged content": (lambda f: rewrite(f, "panels", lambda r: nudge(r, "wvc"), sign=True), "does not match its row"),
    "swapped panels": (lambda f: rewrite(f, "panels", swap_panels, sign=True), "panels belong to another row"),
    "a stray shard": (
        lambda f: (f / "data/panels/2026-01-local-00000000.parquet").write_bytes(b"left behind"),
        "data/panels/2026-01-local-00000000.parquet: not in the manifest",
    ),
    "rows missing": (lambda f: rewrite(f, "models", lambda r: r.pop(), sign=True), "the manifest says 3"),
}


@pytest.fixture
def three(made: dict[str, Fingerprint], tmp_path: Path) -> Path:
    Index.build([made["parent"], made["child"], made["other"]], name="three").save(tmp_path / "three")
    return tmp_path / "three"


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds(three: Path, damage: str) -> None:
    assert Index.check(three)[1] == []
    harm, said = DAMAGE[damage]
    harm(three)
    index, problems = Index.check(three)
    assert problems and any(said in f"{p.where}: {p.what}" for p in problems), problems
    assert all(str(three) not in f"{p.where} {p.what}" for p in problems)
    assert len(index) in (0, 2, 3)


def test_a_forged_row_is_not_compared(three: Path, made: dict[str, Fingerprint]) -> None:
    rewrite(three, "panels", lambda r: nudge(r, "wvc"), sign=True)
    with pytest.raises(IndexFormatError, match="does not match its own hash"):
        Index.load(three).query(made["stranger"])


# --- hostile manifests and Parquet files: one sentence, whatever they hold ---

BIG = 10**30
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "leaves the folder": lambda d: d["shards"][0].update(models="../../etc/passwd.parquet"),
    "absolute path": lambda d: d["shards"][0].update(panels="/etc/x.parquet"),
    "another kind of file": lambda d: d["shards"][0].update(models="data/models/x.so"),
    "zero byte in a path": lambda d: d["shards"][0].update(models="data/\0.parquet"),
    "path is a number": lambda d: d["shards"][0].update(models=7),
    "shards is text": lambda d: d.update(shards="none"),
    "shards is null": lambda d: d.update(shards=None),
    "shard is a list": lambda d: d.update(shards=[[]]),
    "no shards": lambda d: d.pop("shards"),
    "no id": lambda d: d.pop("id"),
    "rows is text": lambda d: d["shards"][0].update(rows="3"),
    "rows is negative": lambda d: d["shards"][0].update(rows=-1),
    "rows is huge": lambda d: d["shards"][0].update(rows=BIG),
    "digest is no digest": lambda d: d["shards"][0].update(sha256={d["shards"][0]["models"]: 1}),
    "no digests": lambda d: d["shards"][0].update(sha256=None),
    "bytes is infinite": lambda d: d["shards"][0].update(bytes=dict.fromkeys(d["shards"][0]["bytes"], float("inf"))),
    "schema of the future": lambda d: d.update(schema=99),
    "fingerprints of the future": lambda d: d.update(fingerprint_version=99),
    "a path as long as a book": lambda d: d["shards"][0].update(
        models=(long := "x" * 5000 + ".parquet"),
        sha256=d["shards"][0]["sha256"] | {long: "0" * 64},
        bytes=d["shards"][0]["bytes"] | {long: 1},
    ),
}  # fmt: skip
TEXTS = {"nothing": "", "not JSON": "{", "a list": "[]", "a number": "7", "deep": "[" * 100_000, "not UTF-8": "\udcff"}


def one_sentence(error: ProvindexError) -> None:
    assert "\n" not in str(error) and len(str(error)) < 600, str(error)


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests(three: Path, case: str) -> None:
    edit_manifest(three, MANIFESTS[case])
    with pytest.raises(IndexFormatError) as caught:
        Index.load(three)
    one_sentence(caught.value)


@pytest.mark.parametrize("case", TEXTS)
def test_manifests_that_are_none(three: Path, case: str) -> None:
    (three / "manifest.json").write_bytes(TEXTS[case].encode("utf-8", "surrogateescape"))
    with pytest.raises(IndexFormatError) as caught:
        Index.load(three)
    one_sentence(caught.value)


def test_a_huge_manifest_is_not_read(three: Path) -> None:
    with (three / "manifest.json").open("wb") as file:
        file.truncate(dataset.MAX_MANIFEST + 1)
    with pytest.raises(IndexFormatError, match="larger than 64 MB"):
        Index.load(three)


@pytest.mark.parametrize("reference", ["org/index", "org/index@main", "org/index@refs/convert/x"])
def test_an_index_on_the_hub_is_pulled_only_when_asked(reference: str) -> None:
    with pytest.raises(IndexFormatError, match=f"no folder {reference}, and no such dataset was pulled"):
        Index.load(reference)


@pytest.mark.parametrize("place", ["nowhere", "three/manifest.json", "three/data"])
def test_folders_that_are_no_index(three: Path, place: str) -> None:
    with pytest.raises(IndexFormatError, match="is not an index") as caught:
        Index.load(three.parent / place)
    one_sentence(caught.value)


Change = Callable[[pa.Table], pa.Table]


def with_column(name: str, values: pa.Array) -> Change:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


TABLES: dict[str, Change] = {
    "a column is missing": lambda t: t.drop_columns(["wvc"]),
    "no columns of ours": lambda t: pa.table({"text": ["hello"]}),
    "a column twice": lambda t: pa.table([*t.columns, t.column("wvc")], names=[*t.column_names, "wvc"]),
    "numbers for text": with_column("model_id", pa.array([7])),
    "text for numbers": with_column("parameters", pa.array(["many"])),
    "doubles for floats": with_column("nlf", pa.array([[1.0]], pa.list_(pa.float64()))),
    "a scalar for a list": with_column("wvc_sizes", pa.array([1], pa.int32())),
    "a null id": with_column("model_id", pa.array([None], pa.string())),
    "a null count": with_column("parameters", pa.array([None], pa.int64())),
    "a null list": with_column("wvc", pa.array([None], pa.list_(pa.float16()))),
    "nulls in a list": with_column("wvc_sizes", pa.array([[None, 1]], pa.list_(pa.int32()))),
    "null names": with_column("block_keys", pa.array([[None]], pa.list_(pa.string()))),
    "an empty table": lambda t: t.slice(0, 0),
}


def rows_with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(changes)


ints = lambda *values: np.array(values, np.int32)  # noqa: E731
ROWS: dict[str, Callable[[dict[str, Any]], None]] = {
    "sizes that do not add up": rows_with(wvc_sizes=ints(7)),
    "negative sizes": rows_with(lep_sizes=ints(-1, 4)),
    "huge panels": rows_with(hidden_heights=ints(2**30)),
    "too many anchors": rows_with(eas=np.zeros(10**6, np.float32)),
    "not a triangle": rows_with(eas=np.zeros(5, np.float32)),
    "bins of another histogram": rows_with(end=np.zeros(7)),
    "keys without meaning": rows_with(hidden_keys=["a/b"]),
    "keys with text for numbers": rows_with(hidden_keys=["mlp/decoder/x/-1/0"]),
    "mfi is no JSON": rows_with(mfi="{"),
    "mfi is a list": rows_with(mfi="[]"),
    "mfi lacks fields": rows_with(mfi="{}"),
    "tfv is text": rows_with(tfv='"x"'),
    "absences are a list": rows_with(absences="[1]"),
    "absences are numbers": rows_with(absences='{"EAS": 1}'),
    "files are numbers": rows_with(files="[1]"),
    "deep JSON": rows_with(absences="[" * 100_000),
    "residual panel cut": rows_with(residual_panel=np.zeros(63, np.float16)),
    "digests cut": rows_with(block_exact=np.zeros(3, np.uint64)),
    "wrong hash": rows_with(row_sha256="0" * 64),
    "another version": rows_with(fingerprint_version=99),
}


@pytest.fixture
def kept(made: dict[str, Fingerprint], tmp_path: Path) -> Path:
    path = tmp_path / "kept.parquet"
    parquet.write_fingerprint(made["child"], path)
    return path


def refused(path: Path) -> None:
    with pytest.raises((IndexFormatError, ModelError)) as caught:
        parquet.read_fingerprints(path)
    one_sentence(caught.value)


@pytest.mark.parametrize("case", TABLES)
def test_hostile_tables(kept: Path, case: str) -> None:
    pq.write_table(TABLES[case](pq.read_table(kept)), kept)
    refused(kept)


@pytest.mark.parametrize("case", ROWS)
def test_hostile_rows_with_a_hash_of_their_own(made: dict[str, Fingerprint], kept: Path, case: str) -> None:
    row = to_row(made["child"])
    if case != "wrong hash":
        ROWS[case](row)
        row["row_sha256"] = row_hash(row)
    else:
        ROWS[case](row)
    parquet.write(kept, [row], parquet.schema("both"), 1)
    refused(kept)


def broken_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "text", b"this is no Parquet file"
    yield "magic only", b"PAR1"
    yield "footer length lies", data[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1"
    for share in (0.1, 0.5, 0.99):
        yield f"cut at {share}", data[: int(len(data) * share)]
    yield "zeros", bytes(len(data))
    yield "body zeroed", b"PAR1" + bytes(len(data) // 2) + data[len(data) // 2 + 4 :]


def test_files_that_are_no_parquet(kept: Path) -> None:
    for _, data in broken_files(kept.read_bytes()):
        kept.write_bytes(data)
        refused(kept)


def test_every_flipped_byte_is_refused_or_harmless(made: dict[str, Fingerprint], kept: Path) -> None:
    """Bytes flipped one at a time: the file is refused in a sentence, or it still holds the very same row."""
    data = kept.read_bytes()
    rng = np.random.default_rng(0)
    wanted = to_row(made["child"])["row_sha256"]
    for place in [*rng.integers(0, len(data), 60), *rng.integers(len(data) - 4000, len(data), 60)]:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        kept.write_bytes(changed)
        try:
            read = parquet.read_fingerprints(kept)
        except ProvindexError as error:
            one_sentence(error)
        else:
            assert [to_row(fp)["row_sha256"] for fp in read] == [wanted]


def listed(values: pa.Array) -> pa.Array:
    """One row, whose cell is a list of all the values."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def zeros(count: int, dtype: Any) -> pa.Array:
    return listed(pa.array(np.zeros(count, dtype)))


def of_one_text(size: int, count: int) -> pa.Array:
    """A list of one text again and again, which the file holds once."""
    return listed(pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array(["x" * size])))


BOMBS: dict[str, tuple[Change, str]] = {
    "anchor cosines": (with_column("eas", zeros(2081, np.float32)), "2,081 values of eas, at most 2,080 a row"),
    "panels": (with_column("hidden_heights", zeros(8193, np.int32)), "8,193 values of hidden_heights, at most 8,192"),
    "coordinates": (with_column("residual_panel", zeros(65_537, np.float16)), "65,537 values of residual_panel"),
    "one long text": (with_column("mfi", pa.array(["x" * 5_000_000])), "a text of mfi has more than 4 MB"),
    "one text often": (with_column("block_keys", of_one_text(4_000_000, 200)), "more text than 256 MB"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_not_unpacked(kept: Path, case: str) -> None:
    """Runs and dictionaries take a few bytes for millions of values."""
    change, said = BOMBS[case]
    pq.write_table(change(pq.read_table(kept)), kept, compression="zstd")
    assert kept.stat().st_size < 1_000_000
    with pytest.raises(IndexFormatError, match=said) as caught:
        parquet.read_fingerprints(kept)
    one_sentence(caught.value)


def test_many_columns_within_their_own_bound_are_too_much_together(kept: Path) -> None:
    table = pq.read_table(kept)
    for name, dtype in (("wvc", np.float16), ("nlf", np.float32), ("lep", np.float32), ("block_exact", np.uint64)):
        table = with_column(name, zeros(20_000_000, dtype))(table)
    pq.write_table(table, kept, compression="zstd")
    with pytest.raises(IndexFormatError, match="states more values"):
        parquet.read_fingerprints(kept)


# --- lists that are taken from their pages without Arrow ---

DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64, "int32": np.int32, "uint64": np.uint64,
          "int8": np.int8}  # fmt: skip
SPLIT = {"values.list.element": "BYTE_STREAM_SPLIT"}


def direct(path: Path, dtype: str, group: int = 0) -> np.ndarray[Any, Any] | None:
    field = pa.field("values", parquet.arrow_type(f"list<{dtype}>"))
    return parquet.direct_numbers(parquet.mapped_file(path), group, field)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"compression": "none"}, {"column_encoding": SPLIT}])
def test_lists_come_out_of_their_pages_as_they_went_in(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    """Short and long ones, none, and such that take several pages."""
    path, rng = tmp_path / "lists.parquet", np.random.default_rng(0)
    sizes = (0, 1, 2, 7, 8, 9, 64, 65, 1000, 700_000)
    lists = [
        rng.integers(0, 256, size * np.dtype(DTYPES[dtype]).itemsize, np.uint8).view(DTYPES[dtype]) for size in sizes
    ]
    table = pa.table({"values": pa.array(lists, parquet.arrow_type(f"list<{dtype}>"))})
    pq.write_table(table, path, **{"compression": "zstd", "row_group_size": 1, "use_dictionary": False, **options})
    for number, wanted in enumerate(lists):
        found = direct(path, dtype, number)
        assert found is not None and found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ([[1.0, None]], {}),
        ([None], {}),
        ([[1.0], [2.0]], {"row_group_size": 2}),
        ([[1.0] * 100], {"use_dictionary": True}),
        ([[1.0]], {"compression": "snappy"}),
        ([[1.0]], {"data_page_version": "2.0"}),
    ],
    ids=["a null", "no list", "two rows", "a dictionary", "another codec", "other pages"],
)
def test_other_lists_are_left_to_arrow(tmp_path: Path, cells: list[Any], options: dict[str, Any]) -> None:
    table = pa.table({"values": pa.array(cells, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "x.parquet", **{"compression": "zstd", "use_dictionary": False, **options})
    assert direct(tmp_path / "x.parquet", "float32") is None


def test_numbers_too_large_for_the_schema_are_left_to_arrow(tmp_path: Path) -> None:
    table = pa.table({"values": pa.array([[1, 300]], pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, compression="none")
    assert direct(tmp_path / "x.parquet", "int8") is None
    assert parquet.as_dtype(np.array([1, 300], np.int32), np.dtype(np.int8)) is None


def test_every_flipped_byte_of_a_shard_is_refused_or_harmless(three: Path, made: dict[str, Fingerprint]) -> None:
    path = next(three.glob("data/panels/*.parquet"))
    data, rng = path.read_bytes(), np.random.default_rng(1)
    wanted = {to_row(made[name])["row_sha256"] for name in ("parent", "child", "other")}
    for place in [*rng.integers(0, len(data), 60), *rng.integers(len(data) - 4000, len(data), 30)]:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.unlink()
        path.write_bytes(changed)
        for entry in Index.load(three):
            try:
                assert to_row(entry.load())["row_sha256"] in wanted
            except ProvindexError as error:
                one_sentence(error)


def levels(*runs: int) -> memoryview:
    return memoryview(bytes(runs))


@pytest.mark.parametrize(
    ("runs", "bits", "level", "first", "right"),
    [
        (levels(3, 0b11111110, 2 << 1, 1), 1, 1, 0, True),  # eight packed, two in a run
        (levels(1 << 1, 0, 9 << 1, 1), 1, 1, 0, True),
        (levels(2 << 1, 0, 8 << 1, 1), 1, 1, 0, False),
        (levels(3, 0b11111100, 2 << 1, 1), 1, 1, 0, False),
        (levels(10 << 1, 1), 1, 1, 0, False),
        (levels(10 << 1, 3), 2, 3, 3, True),
        (levels(5, *[255] * 4), 2, 3, 3, True),
        (levels(5, *[255] * 3), 2, 3, 3, False),  # cut off
        (levels(10 << 1), 2, 3, 3, False),
        (levels(0, 3), 2, 3, 3, False),  # runs of nothing
        (levels(1), 2, 3, 3, False),
    ],
)  # fmt: skip
def test_levels_that_are_not_what_they_should_be(
    runs: memoryview, bits: int, level: int, first: int, right: bool
) -> None:
    assert parquet_pages._all_levels(runs, 10, bits, level, first) is right


def varint(number: int) -> bytes:
    """A positive number as Thrift's compact protocol writes it."""
    number, out = number << 1, b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def test_a_footer_that_states_fewer_values_than_the_pages_have_is_not_believed(kept: Path) -> None:
    true, stated = 3_000_000, 1_100_000  # as long as each other when written
    pq.write_table(with_column("wvc", zeros(true, np.float16))(pq.read_table(kept)), kept, compression="zstd")
    data = kept.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:].replace(varint(true), varint(stated))
    assert footer != data[start:] and len(footer) == len(data) - start
    kept.write_bytes(data[:start] + footer)
    with pytest.raises(IndexFormatError, match="states 1,100,000 values and has 3,000,000"):
        parquet.read_fingerprints(kept)


def test_pages_that_unpack_to_more_than_is_read_are_refused(kept: Path, monkeypatch: Any) -> None:
    """Random numbers unpack to their own size: it is the pages' bytes that are too many here, not their values."""
    monkeypatch.setattr(parquet, "PER_VALUE", 0)
    monkeypatch.setattr(parquet, "MAX_READ", 200_000)
    noise = listed(pa.array(np.random.default_rng(0).standard_normal(200_000).astype(np.float16)))
    pq.write_table(with_column("wvc", noise)(pq.read_table(kept)), kept, use_dictionary=False)
    with pytest.raises(IndexFormatError, match="200,000 are the most"):
        parquet.read_fingerprints(kept)


PAGE = bytes([0x15, 0, 0x15, 8, 0x15, 8, 0x2C, 0x15, 6, 0, 0]) + b"data"  # 3 values in 4 bytes


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (PAGE[:-1], "beyond its column"),
        (PAGE[:9], "does not end"),
        (bytes([0x15, 0x80]), "number in a page header does not end"),
        (b"\x1c" * 100, "does not end"),
        (bytes([0x15, 0, 0]), "no size"),
        (bytes([0x15, 0, 0x15, 7, 0x15, 8, 0]), "no size"),  # a negative one
        (bytes([0x15, 0, 0x15, 8, 0x15, 8, 0x2C, 0, 0]) + b"data", "no number of values"),
        (bytes([0x15, 0, 0x05, 2, 9, 0]), "field twice"),
        (bytes([0x19, 0, 0]), "a field that none has"),
    ],
)
def test_pages_that_are_none(data: bytes, said: str) -> None:
    assert parquet_pages.totals(memoryview(PAGE + PAGE), 0, 2 * len(PAGE)) == (6, 8)
    with pytest.raises(ValueError, match=said):
        parquet_pages.totals(memoryview(data), 0, len(data))
    with pytest.raises(ValueError, match="outside the file"):
        parquet_pages.totals(memoryview(data), 0, len(data) + 1)
