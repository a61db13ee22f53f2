"""`provindex index pull cisco-ai/model-provenance-kit`: the archive is the Hub's, the catalogue the package's own."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from commands import environment
from hub_server import Hub
from machines import Machine
from peer_files import Arrays, long_form, parquet
from prints import fingerprint

from build_index import peer_catalogue
from provindex.api import Index
from provindex.common import places
from provindex.common.errors import IndexFormatError
from provindex.fingerprint.rows import to_row
from provindex.hub import pull
from provindex.index import pulled as store
from provindex.index.dataset import Shard, month_of
from provindex.index.entries import SEED
from provindex.peers import cisco
from provindex.peers.cisco_files import DEEP
from provindex.peers.table import PEERS, brand_of, organisation, peer_of

REAL = Path(__file__).parents[2] / "shared" / "data" / "cisco-mpk"
REPO = "cisco-ai/model-provenance-kit"
MODELS, FAMILIES = 152, 39
ASKED = ("Llama-3.2-1B", "Qwen2.5-0.5B", "bert-base-uncased")  # what the archive of these tests has


def bundles() -> Iterator[dict[str, Any]]:
    """The base features of every asset of the embedded catalogue."""
    for path, file in cisco.embedded().files.items():
        if path.startswith("features/"):
            yield dict(file["document"])


def arrays(lengths: dict[str, Any], seed: int) -> Arrays:
    """Weight signals that fit what the features of an asset state."""
    rng = np.random.default_rng(seed)
    norms = lengths["nlf_num_layers"] * (4 if lengths["nlf_mode"] == "stats" else 64)
    rows = rng.standard_normal((64, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {
        "eas_self_sim": rows @ rows.T,
        "nlf_vector": rng.uniform(0.5, 1.5, norms).astype(np.float32),
        "lep_profile": rng.uniform(0.5, 1, lengths["lep_profile_length"]).astype(np.float32),
        "end_histogram": np.full(20, 0.05, np.float32),
        "wvc_layer_sigs": {0: rng.standard_normal(4096).astype(np.float16).astype(np.float32)},
    }


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The deep signals of a few models, by their path in the archive."""
    found = {}
    for number, bundle in enumerate(bundles()):
        if bundle["asset_id"].split("__")[0] in ASKED:
            path = bundle["artifact_refs"][0]["path"].replace(DEEP, "deep-signals/by-family")
            found[path] = parquet(long_form(arrays(bundle["signals"], number)))
    assert len(found) == len(ASKED)
    return found


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data)
    return out.getvalue()


@pytest.fixture(scope="module")
def archive(files: dict[str, bytes]) -> bytes:
    return zipped(files)


def published(hub: Hub, raw: bytes) -> str:
    """Put an archive on the Hub as the peer has it; its digest."""
    hub.publish(REPO, {cisco.ARCHIVE: raw}, kind="dataset")
    hub.log.clear()
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def digest(hub: Hub, archive: bytes) -> str:
    return published(hub, archive)


@pytest.fixture
def office(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "office")


def bytes_asked(hub: Hub) -> list[tuple[Any, ...]]:
    return [entry for entry in hub.log if "/_lfs/" in entry[1]]


# --- what comes with the package ---


@pytest.mark.skipif(not REAL.exists(), reason="the peer's database is not at hand")
def test_the_embedded_catalogue_is_what_the_database_gives_and_makes_the_same_rows() -> None:
    assert cisco.CATALOGUE.read_text(encoding="utf-8") == peer_catalogue.written(REAL)
    own = list(cisco.rows(cisco.embedded(), None, "it"))
    for ours, theirs in zip(own, cisco.read_database(REAL), strict=True):
        assert isinstance(ours, cisco.Fingerprint) and isinstance(theirs, cisco.Fingerprint)
        a, b = to_row(ours), to_row(theirs)
        for name in ("model_id", "row_sha256", "files", "source"):
            assert a[name] == b[name]


def test_the_catalogue_names_each_model_once_with_its_family() -> None:
    brands = cisco.brands()
    assert len(brands) == MODELS and len({b.id for b in brands.values()}) == FAMILIES
    brand = brand_of("meta-llama/Llama-3.1-8B")
    assert brand and (brand.tool, brand.id, brand.name, brand.publisher) == (
        cisco.PEER, "metallama--llama", "Llama", "meta-llama",
    )  # fmt: skip
    assert brand_of("nobody/nothing") is None
    notice = (cisco.CATALOGUE.parent / "NOTICE").read_text()
    assert "model-provenance-kit 1.0.0" in notice and "Apache License, Version 2.0" in notice
    assert cisco.CATALOGUE.stat().st_size < 500_000


def test_which_datasets_are_databases_of_other_tools() -> None:
    assert [peer.repo for peer in PEERS] == [REPO] and PEERS[0].archive.sha256 == cisco.PINNED
    assert peer_of("Cisco-AI/Model-Provenance-Kit") is PEERS[0] and peer_of("provindex/fingerprints") is None
    assert organisation("meta-llama/Llama-3.1-8B") == "meta-llama"
    assert [organisation(name) for name in ("gpt2", "pypi:a/b", "a/b/c", "")] == [None] * 4


def test_the_month_of_a_shard_is_in_its_name() -> None:
    for name, month in (("2026-11-x-0.parquet", "2026-11"), ("2026-13-x.parquet", None), ("x.parquet", None)):
        assert month_of(Shard(f"data/models/{name}", "", 0, {}, {})) == month


# --- one step ---


def test_pulled_listed_asked_and_added_to_the_default(
    hub: Hub, digest: str, archive: bytes, office: Machine, tmp_path: Path
) -> None:
    done = office.told("index", "pull", REPO, "--sha256", digest)
    assert done["index"]["id"] == REPO and done["index"]["models"] == MODELS
    assert done["index"]["revision"].startswith(digest[:24]) and done["pulled"]["changed"]
    assert (done["pulled"]["bytes_fetched"], done["pulled"]["rows_made"]) == (len(archive), MODELS)
    assert done["pulled"]["archive"] == {"path": cisco.ARCHIVE, "sha256": digest} and not done["pulled"]["left_out"]

    hub.log.clear()
    again = office.told("index", "pull", REPO, "--sha256", digest)["pulled"]
    assert (again["files_fetched"], again["rows_made"], again["changed"]) == (0, 0, False) and hub.log == []
    assert office.told_offline("index", "verify", "--index", REPO)["problems"] == []

    listed = office.told_offline("index", "list", "--index", REPO)
    assert listed["listed"]["models"] == len(listed["models"]) == MODELS
    assert (listed["listed"]["families"], listed["listed"]["without_family"]) == (68, 71)  # the catalogue's
    brands, publishers = listed["listed"]["brands"], listed["listed"]["publishers"]
    assert len(brands) == FAMILIES and sum(b["models"] for b in brands) == MODELS
    assert len(publishers) == len({name.split("/")[0] for name in cisco.brands()})
    llama = next(m for m in listed["models"] if m["model_id"] == "meta-llama/Llama-3.2-1B")
    assert llama["brand"] == {"by": cisco.PEER, "id": "metallama--llama", "name": "Llama", "publisher": "meta-llama"}
    assert (llama["publisher"], llama["stated_family"], llama["mode"]) == ("meta-llama", None, "imported")
    assert len(llama["made"]) == 7
    shown = office.run("index", "list", "--index", REPO, "--offline").out
    assert shown.count("  imported  ") == MODELS and "[Llama, metallama--llama]" in shown
    assert f"{MODELS} models, 68 families, {len(publishers)} publishers." in shown
    assert f"a brand and no lineage; {FAMILIES} of them" in shown

    seed = len(Index.load(SEED))
    everything = office.told_offline("index", "list")
    assert everything["index"]["id"] == f"seed+{REPO}" and everything["listed"]["models"] == MODELS + seed
    status = office.told("index", "status")
    assert status["origins"][0]["update"]["available"] is False and status["index"] == everything["index"]
    assert "up to date" in office.run("index", "status").out

    base = zoo.llama(0, layers=3)
    zoo.write(zoo.finetune_noise(base, 0.9, 3), tmp_path / "tuned")
    Index.build([fingerprint(base, "org/base")], name="mine").save(tmp_path / "mine")
    asked = ("query", tmp_path / "tuned", "--index", tmp_path / "mine", "--index", REPO, "--candidates", 200)
    found = office.told_offline(*asked)
    assert [m["model_id"] for m in found["matches"]] == ["org/base"]
    assert len(found["candidates"]) == MODELS and found["index"]["id"] == f"mine+{REPO}"
    assert {c["verdict"] for c in found["candidates"]} <= {"inconclusive", "unrelated"}
    ranks = [p["retrieval"]["rank"] for p in found["matches"] + found["candidates"]]
    assert sorted(ranks) == list(range(1, MODELS + 2)), "all rows are ranked together"
    assert found["matches"][0]["signals"]["WVC"]["chance"]["median"] is not None
    assert office.told_offline("query", tmp_path / "tuned")["index"]["id"] == f"seed+{REPO}"


def test_chance_levels_are_those_of_the_index_that_has_some(
    hub: Hub, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from provindex import api

    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))
    api.pull(REPO, sha256=digest)
    seed = Index.load(SEED).calibration
    for references in ((), ("embedded", REPO), (REPO, "embedded"), (REPO,)):
        index = Index.load(*references)
        assert index.calibration == seed and REPO in index.info.id
    files = {str(p.relative_to(SEED)): p.read_bytes() for p in SEED.rglob("*") if p.suffix in (".json", ".parquet")}
    hub.publish("org/prints", files, kind="dataset")
    api.pull("org/prints")
    assert Index.load().info.id == f"org/prints+{REPO}", "what was pulled last, and what was added"
    with pytest.raises(api.UsageError, match=r"its own manifest has its digests.* Leave out --sha256"):
        api.pull("org/prints", sha256=digest)

    note = places.pulled_indexes() / store.ADDED
    note.write_text("no dataset")
    with pytest.raises(IndexFormatError, match="which indexes were added to the default is damaged"):
        Index.load()
    note.write_text(f"{REPO}\nnobody/pulled\n")
    assert len(store.added_folders()) == 1
    (store.added_folders()[0] / "manifest.json").unlink()
    assert store.added_folders() == [] and Index.load().info.id == "org/prints"
    mended = api.pull(REPO, sha256=digest, offline=True)
    assert (mended.made, mended.bytes_fetched) == (MODELS, 0), "the archive is here"


def test_an_imported_row_answers_for_its_id_only_where_there_are_no_weights(
    hub: Hub, digest: str, office: Machine, tmp_path: Path
) -> None:
    office.told("index", "pull", REPO, "--sha256", digest)
    asked = "Qwen/Qwen2.5-0.5B"
    row = office.told_offline("query", asked, "--index", REPO)
    assert row["query"]["mode"] == "imported" and row["own_row"]["model_id"] == asked
    built = office.run("index", "build", asked, "-o", tmp_path / "mine", "--offline")
    assert built.status == 2 and f"The weights of {asked} cannot be had" in built.err
    zoo.write(zoo.llama(0, layers=2), tmp_path / "weights")
    files = {p.name: p.read_bytes() for p in (tmp_path / "weights").iterdir()}
    hub.publish(asked, files)
    assert office.told("query", asked)["query"]["mode"] == "exact"


# --- what goes wrong ---


def test_a_damaged_asset_is_told_and_stops_nothing(hub: Hub, files: dict[str, bytes], office: Machine) -> None:
    spoiled = dict(files)
    first = next(iter(spoiled))
    spoiled[first] = b"PAR1 is not enough"
    digest = published(hub, zipped(spoiled))
    ran = office.run("index", "pull", REPO, "--sha256", digest)
    name = first.rpartition("/")[2].removesuffix("_deep-signals.parquet")
    assert ran.status == 0 and f"left out {name}: {name}_deep-signals.parquet cannot be used: " in ran.out
    assert f"made {MODELS - 1} rows" in ran.out
    listed = office.told_offline("index", "list", "--index", REPO)
    assert len(listed["models"]) == MODELS - 1
    assert office.told_offline("index", "status")["origins"][0]["left_out"][0]["path"] == name


def test_an_archive_that_is_another_one_is_not_fetched(hub: Hub, digest: str, office: Machine, archive: bytes) -> None:
    told = office.refused("index", "pull", REPO)
    assert f"has the sha256 {digest}, expected was {cisco.PINNED}" in told and "--sha256" in told
    assert not bytes_asked(hub)
    assert "is no sha256" in office.refused("index", "pull", REPO, "--sha256", "ABC")
    hub.faults.append({"match": "/_lfs/", "times": 9, "lie": True})
    assert "did not arrive as announced" in office.refused("index", "pull", REPO, "--sha256", digest)
    assert "offline the Hub is not asked" in office.refused("index", "pull", REPO, "--sha256", digest, "--offline")
    assert office.told_offline("index", "status")["index"]["id"] == "seed", "nothing counts as pulled"

    hub.faults.clear()
    office.told("index", "pull", REPO, "--sha256", digest)
    newer = published(hub, archive + b"\0")
    update = office.told("index", "status")["origins"][0]["update"]
    assert (update["available"], update["sha256"], update["bytes"]) == (True, newer, len(archive) + 1)
    shown = office.run("index", "status", COLUMNS="300").out
    assert f"another {cisco.ARCHIVE}" in shown and f"--sha256 {newer}" in shown
    assert office.told("index", "pull", REPO, "--sha256", digest)["pulled"]["rows_made"] == 0


def test_an_archive_that_nothing_can_be_made_of_is_not_put_in_force(hub: Hub, office: Machine) -> None:
    digest = published(hub, zipped({"README.md": b"deep signals"}))
    assert "no files below a directory" in office.refused("index", "pull", REPO, "--sha256", digest)
    assert office.told_offline("index", "status")["index"]["id"] == "seed"


def killed(machine: Machine, digest: str, reached: Callable[[], bool]) -> None:
    """Start a pull and kill it, as the system does, as soon as something is true."""
    command = [sys.executable, "-m", "provindex", "index", "pull", REPO, "--sha256", digest, "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(**machine.environment)) as process:
        while not reached():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def cached(machine: Machine, pattern: str) -> list[Path]:
    return sorted(Path(str(machine.environment["PROVINDEX_CACHE"])).rglob(pattern))


def test_killed_while_it_fetches_it_goes_on_where_it_was(
    hub: Hub, digest: str, archive: bytes, office: Machine
) -> None:
    half = len(archive) // 2
    hub.faults += [{"match": "/_lfs/", "times": 1, "cut": half}, {"match": "/_lfs/", "times": 1, "slow": 30}]
    killed(office, digest, lambda: any(p.stat().st_size == half for p in cached(office, "*.part")))
    assert office.told_offline("index", "status")["index"]["id"] == "seed"
    hub.faults.clear()
    hub.log.clear()
    done = office.told("index", "pull", REPO, "--sha256", digest)["pulled"]
    assert done["bytes_fetched"] == len(archive) - half and done["rows_made"] == MODELS
    assert [entry[4] for entry in bytes_asked(hub)] == [f"bytes={half}-"]


def test_killed_while_it_makes_rows_it_makes_the_rest(hub: Hub, digest: str, office: Machine) -> None:
    killed(office, digest, lambda: len(cached(office, "manifest.json")) > 0)
    told = office.refused("index", "list", "--index", REPO, "--offline")
    assert "no such dataset was pulled" in told
    assert office.told_offline("index", "list")["index"]["id"] == "seed", "half an index does not answer"
    (folder,) = {path.parent for path in cached(office, "manifest.json")}
    manifest = json.loads((folder / "manifest.json").read_text())
    before = {shard["panels"]: (folder / shard["panels"]).stat().st_ino for shard in manifest["shards"]}
    assert 0 < manifest["models"] < MODELS
    strays = [folder / "data/panels/2026-01-left.parquet", folder / "data/models/.x.parquet.tmp"]
    for stray in strays:
        stray.write_bytes(b"PAR1")
    hub.log.clear()
    done = office.told("index", "pull", REPO, "--sha256", digest)
    assert not {p.name for p in strays} & {p.name for p in cached(office, "*")}
    assert done["pulled"]["rows_kept"] == manifest["models"] and not hub.log
    assert done["pulled"]["rows_made"] == MODELS - manifest["models"] and done["index"]["models"] == MODELS
    after = {str(p.relative_to(p.parents[2])): p.stat().st_ino for p in cached(office, "data/panels/*.parquet")}
    assert before.items() <= after.items()
    assert office.told_offline("index", "verify", "--index", REPO)["problems"] == []


def test_a_damaged_archive_here_is_fetched_again(
    hub: Hub, digest: str, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))
    kept = pull.fetch_file(REPO, cisco.ARCHIVE, digest)
    kept.write_bytes(b"damaged")
    assert pull.fetch_file(REPO, cisco.ARCHIVE, digest).read_bytes() == archive
