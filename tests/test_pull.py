"""Pulling, in one process: what comes is bounded and checked, and what is kept on this machine is whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from hub_server import Hub
from hub_server.store import Repo
from prints import fingerprint

from provindex.api import Index
from provindex.common import places
from provindex.common.errors import IndexFormatError, NetworkError, UsageError
from provindex.fingerprint import parquet
from provindex.fingerprint.rows import row_hash, to_row
from provindex.hub import client as hub
from provindex.hub import pull
from provindex.index import dataset
from provindex.index import pulled as store
from provindex.index.entries import SEED
from provindex.index.search import DIMENSIONS

NUMBERS = count(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An index of one model, as files."""
    folder = tmp_path_factory.mktemp("index")
    Index.build([fingerprint(zoo.llama(0, layers=2), "org/base")], name="one").save(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".json", ".parquet")}


def published(server: Hub, files: Mapping[str, bytes], repo: str | None = None) -> str:
    repo = repo or f"org/pull-{next(NUMBERS)}"
    server.publish(repo, files, kind="dataset")
    return repo


def test_where_pulled_indexes_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    assert store.place("org/name") == cache / "indexes" / "datasets--org--name"
    monkeypatch.delenv("PROVINDEX_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert places.pulled_indexes() == tmp_path / "home" / "provindex" / "indexes"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert places.pulled_indexes() == tmp_path / "xdg" / "huggingface" / "provindex" / "indexes"


@pytest.mark.parametrize("text", ["", "name", "a/b/c", "a/b@", "../b", "a/..", "a/b@../c", "a b/c", "a/" + "b" * 300])
def test_what_names_no_dataset(text: str) -> None:
    with pytest.raises(UsageError, match="names no dataset"):
        store.parse(text)


def test_the_default_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.default_dataset() == "provindex/fingerprints"
    monkeypatch.setenv("PROVINDEX_DATASET", "acme/prints")
    assert places.default_dataset() == "acme/prints"


def test_a_second_pull_asks_one_question(hub: Hub, files: dict[str, bytes]) -> None:
    repo = published(hub, files)
    first = pull.pull(repo)
    assert (first.fetched, first.changed, len(Index.load(repo))) == (2, True, 1)
    hub.log.clear()
    again = pull.pull(repo)
    assert (again.fetched, again.bytes_fetched, again.changed) == (0, 0, False)
    assert [entry[0] for entry in hub.log] == ["GET"]


def test_shards_that_two_revisions_share_are_stored_once(hub: Hub, files: dict[str, bytes]) -> None:
    repo = published(hub, files)
    old = pull.pull(repo)
    published(hub, {**files, "README.md": b"# a card"}, repo)
    new = pull.pull(repo)
    shard = next(path for path in files if path.startswith("data/panels/"))
    assert new.fetched == 0 and old.folder != new.folder
    assert (old.folder / shard).stat().st_ino == (new.folder / shard).stat().st_ino
    published(hub, {**files, "README.md": b"# another"}, repo)
    last = pull.pull(repo)
    kept = {p.name for p in store.place(repo).iterdir() if p.is_dir()}
    assert kept == {last.current.commit, new.current.commit} and last.current.previous == new.current.commit


def test_without_hard_links_files_are_copied(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("provindex.hub.pull.os.link", refused)
    repo = published(hub, files)
    pull.pull(repo)
    assert Index.load(repo).verify() == []


def test_a_file_that_goes_on_and_on_is_cut(hub: Hub, files: dict[str, bytes]) -> None:
    """The list says 1,000 bytes, the content is longer: no more than a piece is taken."""
    repo = published(hub, files)
    one = hub.repos["dataset", repo]
    shard = next(path for path in files if path.startswith("data/panels/"))
    one.tree("main")[1][shard][1] = 1000
    with pytest.raises(IndexFormatError, match="longer than announced"):
        pull.pull(repo)
    assert not list(store.place(repo).rglob("manifest.json")) and store.current(repo) is None


def test_a_server_that_ignores_ranges(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repo = published(hub, files)
    remote = pull.hub.with_files(pull.hub.dataset_at(repo, None))
    shard = next(path for path in files if path.startswith("data/models/"))
    (tmp_path / "part").write_bytes(files[shard][:500])
    monkeypatch.setattr("hub_server.server.re.fullmatch", lambda *_: None)  # how it looks at the header Range
    came: list[int] = []
    pull.hub.download(remote, remote.files[shard], tmp_path / "part", came.append)  # type: ignore[index]
    assert (tmp_path / "part").read_bytes() == files[shard] and sum(came) == len(files[shard])


def test_a_file_that_comes_shorter_than_announced_is_given_up(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each answer ends well, and none brings what the list says."""
    monkeypatch.setattr("provindex.hub.client.DOWNLOAD_WAIT", 0)
    repo = published(hub, files)
    remote = pull.hub.with_files(pull.hub.dataset_at(repo, None))
    shard = next(path for path in files if path.startswith("data/models/"))
    longer = replace(remote.files[shard], size=len(files[shard]) + 10)  # type: ignore[index]
    monkeypatch.setattr("hub_server.server.re.fullmatch", lambda *_: None)  # how it looks at the header Range
    hub.log.clear()
    with pytest.raises(NetworkError, match="shorter than announced"):
        pull.hub.download(remote, longer, tmp_path / "part")
    assert len(hub.log) < 12


def test_a_shard_of_the_manifest_has_its_footer_looked_at(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """No query does, and the digest is from the same stranger."""
    (tmp_path / "manifest.json").write_bytes(files["manifest.json"])
    manifest = dataset.read_manifest(tmp_path)
    (shard,) = manifest.shards
    data = contradictory(files[shard.models])
    digests = {**shard.sha256, shard.models: hashlib.sha256(data).hexdigest()}
    dataset.write_manifest(tmp_path, replace(manifest, shards=(replace(shard, sha256=digests),)))
    changed = {shard.models: data, "manifest.json": (tmp_path / "manifest.json").read_bytes()}
    repo = published(hub, {**files, **changed})
    with pytest.raises(IndexFormatError, match=r"data/models/.* cannot be used: .*size statistics"):
        pull.pull(repo)
    assert store.current(repo) is None


def test_few_bytes_that_are_many_rows(tmp_path: Path) -> None:
    """What a contributor reads by ranges, unvetted: 200 KB of Parquet that would be gigabytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("row_sha256", "model_id")
    for rows, text in ((parquet.MAX_SHARD_ROWS + 1, "a"), (90_000, "a" * 100_000)):
        cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
        pq.write_table(pa.table(dict.fromkeys(names, cells)), tmp_path / "many", store_schema=False)
        with pytest.raises(IndexFormatError, match=r"at most|more text"):
            parquet.read_texts(tmp_path / "many", names)


@pytest.mark.parametrize("date", ["\x1b[31mred", "2026-11-28T00:00:00Z\n", 7])
def test_the_date_of_a_manifest_is_one(date: object, hub: Hub, files: dict[str, bytes]) -> None:
    changed = json.dumps(json.loads(files["manifest.json"]) | {"built": date}).encode()
    with pytest.raises(IndexFormatError, match="its date is none"):
        pull.pull(published(hub, {**files, "manifest.json": changed}))


def test_a_full_disk_is_told_before_anything_comes(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = published(hub, files)
    monkeypatch.setattr("provindex.hub.pull.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(IndexFormatError, match=r"needs .* MB, and 0\.0 MB are free"):
        pull.pull(repo)
    assert not [path for _, path, *_ in hub.log if "/_lfs/" in path]


def test_a_dataset_of_too_many_files(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provindex.hub.client.MAX_FILES", 2)
    with pytest.raises(IndexFormatError, match="more than 2 files"):
        pull.pull(published(hub, files))


def listed(field: str, value: Any) -> Any:
    """A change of the Hub's list of files, in the entry of a shard."""

    def changed(self: Any, oid: str, tree: Any, path: str, expand: bool = False) -> Any:
        found = Repo.entry(self, oid, tree, path, expand)
        if path.startswith("data/panels/"):
            found = {**found, "lfs": {**found["lfs"], **value}} if field == "lfs" else {**found, field: value}
        return found

    return changed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "data/panels/../../../../escape.parquet"), ("path", "/tmp/escape.parquet"),
        ("path", "data\\panels\\x.parquet"), ("oid", "../../../escape"), ("lfs", {"oid": "../../escape"}),
        ("size", -1), ("size", "many"), ("oid", None),
    ],
)  # fmt: skip
def test_a_list_of_files_that_leads_elsewhere(
    field: str, value: Any, hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repo = published(hub, files)
    change = listed(field, value)
    monkeypatch.setattr("hub_server.server.Handler.entry", lambda self, r, *a: change(r, *a))
    with pytest.raises(IndexFormatError, match="list of the files"):
        pull.pull(repo)
    assert not list(tmp_path.rglob("*escape*")) and store.current(repo) is None


def lacking(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if not path.startswith("data/panels/")}


def named(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    document = json.loads(files["manifest.json"])
    shard = document["shards"][0]
    old = shard["models"]
    for part in ("sha256", "bytes"):
        shard[part][name] = shard[part].pop(old)
    return {**files, "manifest.json": json.dumps({**document, "shards": [{**shard, "models": name}]}).encode()}


def calibrated(files: dict[str, bytes], name: Any) -> dict[str, bytes]:
    document = json.loads(files["manifest.json"]) | {"calibration": name}
    return {**files, "manifest.json": json.dumps(document).encode()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lacking, "lacks data/panels/"),
        (lambda f: named(f, "../../../escape.parquet"), "is no .parquet file inside the index"),
        (lambda f: named(f, "/etc/x.parquet"), "is no .parquet file inside the index"),
        (lambda f: {**f, "manifest.json": b"{"}, "The manifest of"),
        (lambda f: calibrated(f, "../../escape.json"), "names a calibration that is no file"),
        (lambda f: calibrated(f, ["x"]), "names a calibration that is no file"),
        (lambda f: {**f, "manifest.json": b"[" * 100_000}, "The manifest of"),
        (lambda f: {**f, "manifest.json": b"[]"}, "The manifest of"),
        (lambda f: {"README.md": b"# nothing"}, "no index of fingerprints"),
    ],
)
def test_hostile_datasets(change: Any, said: str, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    repo = published(hub, change(files))
    with pytest.raises(IndexFormatError, match=said) as refused:
        pull.pull(repo)
    assert refused.value.next_step and "\n" not in str(refused.value)
    assert store.current(repo) is None and not list(tmp_path.rglob("escape.parquet"))


TYPES: dict[str, Any] = {
    "hidden_size": "wide",
    "rope_theta": [1],
    "rope_scaling": {"factor": {"a": {"b": 1}}},
    "qk_norm": 3,
}


@pytest.mark.parametrize("field", TYPES)
def test_a_contributed_row_with_features_of_another_type(
    field: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Its hash is right, and comparing with it would fail long after it was accepted."""
    row = to_row(fingerprint(zoo.llama(1, layers=2), "org/odd"))
    row["mfi"] = json.dumps(json.loads(row["mfi"]) | {field: TYPES[field]})
    row |= {"row_sha256": row_hash(row), dataset.VECTOR: np.zeros(DIMENSIONS, np.float32)}
    added = {}
    for table in ("models", "panels"):
        parquet.write(tmp_path / table, [row], dataset.schema(table), 1)
        added[f"data/{table}/odd.parquet"] = (tmp_path / table).read_bytes()
    done = pull.pull(published(hub, {**files, **added}))
    assert [o.path for o in done.current.left_out] == ["data/models/odd.parquet"]
    assert f"no {field} that can be used" in done.current.left_out[0].reason


def contradictory(shard: bytes) -> bytes:
    """Its schema says that a column is never empty, its size statistics count levels for cells that may be."""
    data = bytearray(shard)
    place = data.rindex(b"row_sha256") - 1  # in the schema its name comes after how often it may repeat
    while bytes(data[place - 3 : place - 1]) != b"\x25\x02":
        place = data.rindex(b"row_sha256", 0, place) - 1
    data[place - 2] = 0
    return bytes(data)


def test_a_footer_that_contradicts_itself_does_not_end_the_process(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    shard = next(path for path in files if path.startswith("data/models/"))
    data = contradictory(files[shard])
    (tmp_path / "odd.parquet").write_bytes(data)
    added = {"data/models/odd.parquet": data, "data/panels/odd.parquet": files[shard.replace("models", "panels")]}
    done = pull.pull(published(hub, {**files, **added}))
    assert "size statistics" in done.current.left_out[0].reason
    with pytest.raises(IndexFormatError, match="size statistics"):
        parquet.read_fingerprints(tmp_path / "odd.parquet")


def test_a_calibration_that_is_not_what_its_name_says(hub: Hub, files: dict[str, bytes]) -> None:
    name = "calibration/00000000.json"
    changed = {**calibrated(files, name), name: b"{}"}
    repo = published(hub, changed)
    with pytest.raises(IndexFormatError, match="not what its name says"):
        pull.pull(repo)
    assert store.current(repo) is None


def test_chance_levels_come_with_the_index(hub: Hub) -> None:
    names = [p for p in SEED.rglob("*") if p.suffix in (".json", ".parquet")]
    repo = published(hub, {str(p.relative_to(SEED)): p.read_bytes() for p in names})
    pull.pull(repo)
    pulled, seed = Index.load(repo), Index.load(SEED)
    assert pulled.calibration == seed.calibration and pulled.info.id == repo
    published(hub, {**{str(p.relative_to(SEED)): p.read_bytes() for p in names}, "x.txt": b""}, repo)
    assert pull.pull(repo).fetched == 0, "they are not fetched again either"


def test_pulls_at_the_same_time_wait_for_each_other(hub: Hub, files: dict[str, bytes]) -> None:
    repo = published(hub, files)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: pull.pull(repo), range(4)))
    assert sorted(one.fetched for one in done) == [0, 0, 0, 2]
    assert Index.load(repo).verify() == []


def test_what_an_interrupted_pull_left_is_cleared_away(hub: Hub, files: dict[str, bytes]) -> None:
    repo = published(hub, files)
    stale = store.place(repo) / ("0" * 40 + ".killed")
    stale.mkdir(parents=True)
    pull.pull(repo)
    assert not stale.exists() and not (store.place(repo) / pull.INCOMING).exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"repo": "a/b", "commit": "../..", "left_out": [], "previous": null}']
)
def test_a_damaged_note_is_told(text: str, hub: Hub, files: dict[str, bytes]) -> None:
    repo = published(hub, files)
    pull.pull(repo)
    (store.place(repo) / store.CURRENT).write_text(text)
    with pytest.raises(IndexFormatError, match="is damaged"):
        Index.load(repo)
    with pytest.raises(IndexFormatError, match="is damaged"):
        Index.load()
    (places.pulled_indexes() / store.DEFAULT).write_text("nonsense")
    with pytest.raises(IndexFormatError, match="is damaged"):
        Index.load()


def test_a_pulled_index_that_somebody_removed(hub: Hub, files: dict[str, bytes]) -> None:
    repo = published(hub, files)
    (pull.pull(repo).folder / dataset.MANIFEST).unlink()
    assert Index.load().info.id == "seed"
    with pytest.raises(IndexFormatError, match="no such dataset was pulled"):
        Index.load(repo)
    assert pull.pull(repo).fetched == 2


def test_one_file_of_a_dataset(hub: Hub, tmp_path: Path) -> None:
    data = b"zip" * 1000
    repo = published(hub, {"deep-signals.zip": data})
    digest = dataset.hashlib.sha256(data).hexdigest()
    path = pull.fetch_file(repo, "deep-signals.zip", digest)
    assert path.read_bytes() == data
    hub.log.clear()
    assert pull.fetch_file(repo, "deep-signals.zip", digest, offline=True) == path and hub.log == []
    with pytest.raises(IndexFormatError, match=f"has the sha256 {digest}, expected was 00"):
        pull.fetch_file(repo, "deep-signals.zip", "0" * 64)
    assert not [entry for entry in hub.log if "/_lfs/" in entry[1]]
    with pytest.raises(IndexFormatError, match=r"lacks other\.zip"):
        pull.fetch_file(repo, "other.zip", "1" * 64)
    with pytest.raises(UsageError, match="no sha256"):
        pull.fetch_file(repo, "deep-signals.zip", "../../x")
    with pytest.raises(NetworkError, match="offline"):
        pull.fetch_file(repo, "deep-signals.zip", "2" * 64, offline=True)


def test_the_hub_is_told_apart_from_what_it_says() -> None:
    remote = hub.Remote("org/name", "main", "0123456789abcdef0123456789abcdef01234567")
    assert remote.label == "org/name@0123456789ab"
