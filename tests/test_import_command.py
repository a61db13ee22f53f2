"""`provindex index import`: the peer's database becomes an index, its deep signals come from a Hub, and what the rows
lack is said."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zoo
from commands import Ran, run
from hub_server import Hub
from machines import Machine
from peer_files import Database, zip_entries

from provindex.peers import cisco, cisco_files

REPO = "org/deep-signals"


@pytest.fixture(scope="module")
def tree() -> dict[str, zoo.Checkpoint]:
    base = zoo.llama(0, layers=3)
    return {"base": base, "tuned": zoo.finetune_noise(base, 0.9, 3), "other": zoo.llama(1, layers=3)}


@pytest.fixture(scope="module")
def database(tree: dict[str, zoo.Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Database(tmp_path_factory.mktemp("peer") / "kit")
    for name in ("base", "other"):
        made.add(name, tree[name])
    return made.root


@pytest.fixture
def archive(database: Path, hub: Hub, tmp_path: Path) -> str:
    """The deep signals as a dataset of the Hub, taken out of the database; their digest."""
    path = tmp_path / cisco.ARCHIVE
    deep = database / cisco_files.DEEP
    with zipfile.ZipFile(path, "w") as made:
        for name, data in zip_entries(deep, "deep-signals/by-family"):
            made.writestr(name, data)
    hub.publish(REPO, {cisco.ARCHIVE: path.read_bytes()}, kind="dataset")
    hub.log.clear()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata_only(database: Path, folder: Path) -> Path:
    for path in database.rglob("*.json"):
        target = folder / path.relative_to(database)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def test_expected_to_be_unrelated_passes_only_where_a_reordered_copy_would_have_been_seen(
    database: Path, tree: Any, tmp_path: Path
) -> None:
    zoo.write(tree["tuned"], tmp_path / "tuned")
    assert run("index", "import", database, "-o", tmp_path / "index", "-q").status == 0

    def expected(other: str) -> Ran:
        return run("compare", tmp_path / "tuned", other, "--index", tmp_path / "index", "--expect", "unrelated", "-q")

    assert expected("org/base").status == 1
    blind = expected("org/other")
    assert blind.status == 3 and "a reordered copy would not have been seen" in blind.err


def test_metadata_now_and_weight_signals_when_the_archive_is_there(
    database: Path, archive: str, hub: Hub, tree: Any, tmp_path: Path
) -> None:
    office, kit, tuned = Machine(tmp_path / "office"), metadata_only(database, tmp_path / "kit"), tmp_path / "tuned"
    zoo.write(tree["tuned"], tuned)
    told = office.told_offline("index", "import", kit, "--format", "cisco-mpk", "-o", tmp_path / "thin")
    assert told["added"] == ["org/base", "org/other"] and {m["mode"] for m in told["models"]} == {"imported"}
    thin = office.told_offline("query", tuned, "--index", tmp_path / "thin")
    assert thin["status"] == "inconclusive" and thin["matches"] == []
    assert all(c["signals"]["MFI"]["value"] == 1.0 for c in thin["candidates"])
    assert "no evidence panels" in thin["warnings"][-1]

    fetched = ("--deep-signals", REPO, "--sha256", archive)
    deep = office.told("index", "import", kit, "--format", "cisco-mpk", "-o", tmp_path / "deep", *fetched)
    assert deep["added"] == told["added"]
    full = office.told_offline("query", tuned, "--index", tmp_path / "deep")
    assert full["status"] == "decided", "the samples are evidence"
    assert [m["model_id"] for m in full["matches"]] == ["org/base"] and full["matches"][0]["log10_p"] < -20
    first = full["matches"][0]
    assert first["model_id"] == "org/base" and first["signals"]["WVC"]["value"] > 0.8
    assert first["signals"]["VOA"]["value"] is None and "peer" not in first["signals"]["VOA"]["reason"].split()
    shown = office.run("query", tuned, "--index", tmp_path / "deep", "--offline").out
    assert "1 match of 2 candidates" in shown and "org/base" in shown

    hub.log.clear()
    again = office.told("index", "import", kit, "-o", tmp_path / "deep", *fetched)
    assert again["added"] == [] and len(again["present"]) == 2
    assert not [entry for entry in hub.log if "/_lfs/" in entry[1]], "the archive is kept"


def test_an_archive_that_is_another_one_is_not_even_fetched(
    database: Path, archive: str, hub: Hub, tmp_path: Path
) -> None:
    office, kit = Machine(tmp_path / "office"), metadata_only(database, tmp_path / "kit")
    told = office.refused("index", "import", kit, "-o", tmp_path / "deep", "--deep-signals", REPO)
    assert f"has the sha256 {archive}, expected was {cisco.PINNED}" in told and "--sha256" in told
    assert not [entry for entry in hub.log if "/_lfs/" in entry[1]] and not (tmp_path / "deep").exists()
    hub.faults.append({"match": "/_lfs/", "times": 9, "lie": True})
    wrong = ("--deep-signals", REPO, "--sha256", archive)
    assert "did not arrive as announced" in office.refused("index", "import", kit, "-o", tmp_path / "deep", *wrong)
    assert not (tmp_path / "deep").exists()


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    office = Machine(tmp_path / "office")
    assert office.refused("index", "import", tmp_path, "-o", tmp_path / "x")
    ran = office.run("index", "import", tmp_path, "--format", "other")
    assert ran.status == 2 and "cisco-mpk" in ran.err
