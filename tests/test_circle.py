"""The life of the dataset, with the real client over real HTTP: published, pulled, queried offline, contributed to,
merged, pulled again; then the same on a Hub that cuts, lies, is slow, refuses, or dies in the middle of a commit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import zoo
from hub_server import Hub
from hub_server.xet import XetHub
from machines import CONTRIBUTOR, MAINTAINER, Machine
from prints import fingerprint

from build_index.publish import publish
from provindex.api import Index
from provindex.common.errors import IndexFormatError
from provindex.common.reasons import Code, Reason
from provindex.fingerprint import parquet, rows
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.hub.push import not_private
from provindex.index import dataset
from provindex.index.entries import SEED

Named = Callable[[str], Machine]
NUMBERS = count(1)
REPOSITORY = Path(__file__).parent.parent
INDEXED = "cnmoro/portuguese-multilingual-e5-small"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Named]:
    """Machines by name."""
    yield lambda name, token=None: Machine(tmp_path / name, token)  # type: ignore[misc]


@pytest.fixture(scope="module")
def tree() -> dict[str, zoo.Checkpoint]:
    base = zoo.llama(0, layers=3)
    return {"base": base, "other": zoo.llama(1, layers=3), "tuned": zoo.finetune_noise(base, 0.9, 3)}


@pytest.fixture(scope="module")
def prints(tree: dict[str, zoo.Checkpoint]) -> dict[str, Fingerprint]:
    return {
        name: replace(fingerprint(tree[name], f"org/{name}"), license="mit", revision=f"{number:040x}")
        for number, name in enumerate(tree, 1)
    }


@pytest.fixture(scope="module")
def small(prints: dict[str, Fingerprint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two models."""
    folder = tmp_path_factory.mktemp("small") / "index"
    Index.build((prints["base"], prints["other"]), name="small").save(folder)
    return folder


@pytest.fixture
def maintained(hub: Hub, small: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of a name of its own that holds the small index, published by its maintainer, whose token is set."""
    monkeypatch.setenv("HF_TOKEN", MAINTAINER)
    repo = f"org/index-{next(NUMBERS)}"
    publish(small, repo)
    hub.log.clear()
    return repo


def contribution(tmp_path: Path, fp: Fingerprint) -> Path:
    path = tmp_path / f"{fp.model_id.replace('/', '-')}.parquet"
    parquet.write_fingerprint(fp, path)
    return path


def merge(repo: str, number: int) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=MAINTAINER)
    api.merge_pull_request(repo, number, repo_type="dataset")


def shards_fetched(hub: Hub) -> list[str]:
    """The shards whose bytes were asked for, since the log was cleared."""
    return sorted(
        path.split("/resolve/")[1].split("/", 1)[1].split("?")[0]
        for method, path, *_ in hub.log
        if method == "GET" and "/resolve/" in path and path.split("?")[0].endswith(".parquet")
    )


def test_the_whole_circle(hub: Hub, machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tree: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", MAINTAINER)
    rehearsed = publish(SEED, "org/circle", dry_run=True)
    said = publish(SEED, "org/circle")
    assert (rehearsed.sent, rehearsed.commit) == (said.sent, None)
    assert (said.models, len(said.sent), said.removed) == (15, 6, ()) and len(said.commit or "") == 40
    assert publish(SEED, "org/circle").commit is None, "nothing is sent twice"

    office = machine("office")
    pulled = office.told("index", "pull", "org/circle")
    assert pulled["index"]["id"] == "org/circle" and pulled["index"]["revision"] == said.commit
    assert (pulled["pulled"]["changed"], len(pulled["models"])) == (True, 15)
    answer = office.told_offline("query", INDEXED)
    assert answer["index"]["revision"] == said.commit
    assert [m["model_id"] for m in answer["matches"]] == ["intfloat/multilingual-e5-small"]
    assert office.told_offline("index", "verify")["problems"] == []

    base, tuned = tmp_path / "toy-base", tmp_path / "toy-tuned"
    zoo.write(tree["base"], base)
    zoo.write(tree["tuned"], tuned)
    assert office.told_offline("query", tuned)["status"] != "decided"
    contributor = machine("home", CONTRIBUTOR)
    rehearsal = contributor.told("push", base, "--to", "org/circle", "--dry-run")
    hub.log.clear()
    pushed = contributor.told("push", base, "--to", "org/circle")
    assert (pushed["pull_request"], pushed["sent"]) == (1, True)
    assert all(pushed[same] == rehearsal[same] for same in ("files", "row", "row_sha256"))
    assert office.told("index", "status")["origins"][0]["update"]["available"] is False, "not merged yet"
    merge("org/circle", 1)

    ahead = office.told("index", "status")["origins"][0]["update"]
    assert (ahead["looked"], ahead["available"], ahead["files"]) == (True, True, 2)
    assert office.told_offline("query", INDEXED)["index"]["revision"] == said.commit, "only a pull moves the index"
    hub.log.clear()
    again = office.told("index", "pull", "org/circle")
    assert shards_fetched(hub) == sorted(f["path"] for f in pushed["files"])
    assert again["pulled"]["bytes_fetched"] == ahead["bytes"] == sum(f["bytes"] for f in pushed["files"])
    assert again["index"]["models"] == 16 and again["pulled"]["left_out"] == []
    found = office.told_offline("query", tuned)
    assert [m["model_id"] for m in found["matches"]] == ["toy-base"]
    assert office.told_offline("index", "verify")["problems"] == []

    merged = publish(SEED, "org/circle")  # the maintainer's next publication lists what was merged
    assert merged.models == 16 and [path for path, _ in merged.sent] == ["manifest.json", "README.md"]
    assert office.told("index", "pull", "org/circle")["pulled"]["files_fetched"] == 0


# --- pulling from a Hub that misbehaves ---


def updated(repo: str, prints: dict[str, Fingerprint], small: Path, tmp_path: Path) -> None:
    """A second revision of the dataset, with one more model."""
    folder = tmp_path / "more"
    shutil.copytree(small, folder)
    index = Index.load(folder)
    index.add(prints["tuned"])
    index.save(folder)
    publish(folder, repo)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"match": "/_lfs/", "times": 99, "cut": 0}, "connection was cut while reading"),
        ({"match": "/_lfs/", "times": 99, "lie": True}, "did not arrive as announced"),
        ({"match": "/_lfs/", "times": 99, "slow": 3}, "did not answer in time"),
        ({"match": "/api/datasets/", "times": 99, "status": 403}, "refuses access"),
        ({"match": "/_lfs/", "times": 99, "status": 404}, "no such file or dataset"),
        ({"match": "/api/datasets/", "times": 99, "status": 429}, "slow down"),
        ({"match": "/_lfs/", "times": 99, "status": 500}, "fault of its own (500)"),
        ({"match": "/resolve/", "times": 99, "drop": "before"}, "connection was cut while reading"),
    ],
)
def test_a_pull_that_fails_leaves_the_old_index_in_force(
    fault: dict[str, Any], said: str, hub: Hub, maintained: str, machine: Any, prints: Any, small: Path, tmp_path: Path
) -> None:
    office = machine("office")
    before = office.told("index", "pull", maintained)["index"]
    updated(maintained, prints, small, tmp_path)
    hub.faults.append(fault)
    told = office.refused("index", "pull", maintained)
    assert said in told and maintained in told
    hub.faults.clear()
    status = office.told_offline("index", "status")
    assert status["index"] == before
    assert office.told_offline("index", "verify")["problems"] == []
    after = office.told("index", "pull", maintained)
    assert after["index"]["models"] == 3 and after["pulled"]["files_fetched"] == 2


def test_a_pull_goes_on_where_it_was_cut(hub: Hub, maintained: str, machine: Any) -> None:
    office = machine("office")
    hub.faults += [{"match": "/_lfs/", "times": 4, "cut": 5000}, {"match": "/_lfs/", "times": 99, "drop": "before"}]
    office.refused("index", "pull", maintained)
    hub.faults.clear()
    hub.log.clear()
    pulled = office.told("index", "pull", maintained)["pulled"]
    ranges = [requested for method, path, status, _, requested in hub.log if "/_lfs/" in path]

    assert all(r and r.startswith("bytes=") and r != "bytes=0-" for r in ranges) and ranges
    assert 0 < pulled["bytes_fetched"] < pulled["bytes_total"] - 5000


def test_a_server_that_dies_is_one_sentence(maintained: str, machine: Any) -> None:
    office = machine("office")
    office.told("index", "pull", maintained)
    assert "could not be reached" in office.refused("index", "pull", maintained, HF_ENDPOINT="http://127.0.0.1:9")
    origin = office.told("index", "status", HF_ENDPOINT="http://127.0.0.1:9")["origins"][0]
    assert origin["update"]["looked"] is False and "could not be reached" in origin["update"]["reason"]


def test_a_manifest_that_says_another_digest_than_the_hub(hub: Hub, maintained: str, machine: Any) -> None:
    repo = hub.repos["dataset", maintained]
    entry = dict(repo.tree("main")[1])
    document = json.loads(hub.path_of(entry["manifest.json"]).read_text())
    shard = document["shards"][0]
    shard["sha256"] = dict.fromkeys(shard["sha256"], "0" * 64)
    data = json.dumps(document).encode()
    entry["manifest.json"] = [hub.put_blob(data), len(data), None]
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], entry, "lie", "", "alice")
    office = machine("office")
    assert "the manifest gives another sha256" in office.refused("index", "pull", maintained)
    assert not list((office.folder / "cache" / "indexes").rglob("manifest.json"))


def test_a_merged_contribution_that_is_not_what_it_says_is_left_out(
    hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    """A row whose hash is not its own, half a shard, and rubbish: told, not fatal, and not fetched again."""
    shard = dataset.write_shard(tmp_path, [prints["tuned"]], "mallory")
    honest = [(tmp_path / name).read_bytes() for name in (shard.models, shard.panels)]
    repo = hub.repos["dataset", maintained]
    tree = dict(repo.tree("main")[1])
    other = dataset.write_shard(tmp_path / "other", [replace(prints["other"], model_id="org/x")], "mallory")
    wrong = {
        "data/models/a.parquet": honest[0],
        "data/panels/a.parquet": (tmp_path / "other" / other.panels).read_bytes(),
        "data/models/b.parquet": b"PAR1rubbishPAR1",
        "data/panels/b.parquet": honest[1],
        "data/models/c.parquet": honest[0],
        shard.models: honest[0],
        shard.panels: honest[1],
    }
    for path, data in wrong.items():
        tree[path] = hub.put_file(path, data)
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "merged", "", "alice")
    office = machine("office")
    ran = office.run("index", "pull", maintained, "--json")
    told = json.loads(ran.out)
    assert [m["model_id"] for m in told["models"]] == ["org/base", "org/other", "org/tuned"]
    refused = {o["path"]: o["reason"] for o in told["pulled"]["left_out"]}
    assert set(refused) == {f"data/models/{name}.parquet" for name in "abc"} and ran.err.count("left out") == 3
    assert "belong to another row" in refused["data/models/a.parquet"]
    assert "Parquet" in refused["data/models/b.parquet"] and "other half" in refused["data/models/c.parquet"]
    assert office.told_offline("index", "verify")["problems"] == []
    tree["notes.txt"] = hub.put_file("notes.txt", b"x")
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "more", "", "alice")
    hub.log.clear()
    again = office.told("index", "pull", maintained)["pulled"]
    assert (again["files_fetched"], len(again["left_out"]), shards_fetched(hub)) == (0, 3, [])


def test_another_content_under_an_accepted_name_is_checked_again(
    hub: Hub, maintained: str, small: Path, machine: Any, prints: Any, tmp_path: Path
) -> None:
    """A merged shard that this machine accepted is overwritten: neither a pull nor a publication from here takes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = dataset.write_shard(tmp_path, [prints["tuned"]], "bob")
    repo = hub.repos["dataset", maintained]

    def put(path: str, data: bytes) -> None:
        tree = {**repo.tree("main")[1], path: hub.put_file(path, data)}
        repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "merged", "", "bob")

    for name in (shard.models, shard.panels):
        put(name, (tmp_path / name).read_bytes())
    office = machine("office")
    assert len(office.told("index", "pull", maintained)["models"]) == 3
    table = pq.read_table(tmp_path / shard.models)
    place = table.schema.get_field_index("parameters")
    forged = table.set_column(place, table.schema.field(place), pa.array([7], table.schema.field(place).type))
    pq.write_table(forged, tmp_path / "forged")
    put(shard.models, (tmp_path / "forged").read_bytes())
    told = office.told("index", "pull", maintained)
    assert len(told["models"]) == 2 and "its row hash" in told["pulled"]["left_out"][0]["reason"]
    assert office.told_offline("index", "verify")["problems"] == []
    assert publish(small, maintained).models == 2
    put(shard.models, (tmp_path / shard.models).read_bytes())
    assert len(office.told("index", "pull", maintained)["models"]) == 3
    # and what was refused because of its panels is looked at again when those were put right
    put(shard.panels, b"PAR1rubbishPAR1")
    assert len(office.told("index", "pull", maintained)["models"]) == 2
    put(shard.panels, (tmp_path / shard.panels).read_bytes())
    assert len(office.told("index", "pull", maintained)["models"]) == 3


def test_a_pull_mends_what_was_damaged_here(hub: Hub, maintained: str, machine: Any) -> None:
    office = machine("office")
    assert office.told("index", "pull", maintained)["pulled"]["files_fetched"] > 0
    shard = next(office.folder.rglob("data/panels/*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert office.run("index", "verify").status == 1
    assert office.told("index", "pull", maintained)["pulled"]["files_fetched"] == 1
    assert office.told_offline("index", "verify")["problems"] == []
    manifest = next(office.folder.rglob("manifest.json"))
    for text in ("{", manifest.read_text().replace('"schema": 1', '"schema": 99')):  # the other: of another release
        manifest.write_text(text)
        office.told("index", "pull", maintained)
        assert office.told_offline("index", "verify")["problems"] == []


def test_an_unreadable_shard_of_others_does_not_stop_a_contribution(
    hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    repo = hub.repos["dataset", maintained]
    tree = dict(repo.tree("main")[1])
    for path in ("data/models/junk.parquet", "data/panels/junk.parquet", "data/models/half.parquet"):
        tree[path] = hub.put_file(path, b"PAR1rubbishPAR1")
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "merged", "", "alice")
    ran = machine("home", CONTRIBUTOR).run("push", contribution(tmp_path, prints["tuned"]), "--to", maintained)
    assert ran.status == 0 and ran.err.count("left out data/models/junk.parquet") == 1 and "half" not in ran.err


def test_revisions(hub: Hub, maintained: str, machine: Any, prints: Any, small: Path, tmp_path: Path) -> None:
    office = machine("office")
    old = office.told("index", "pull", maintained)["index"]["revision"]
    updated(maintained, prints, small, tmp_path)
    new = office.told("index", "pull", maintained)["index"]["revision"]
    assert old != new
    asked = {ref: office.told_offline("index", "status", "--index", ref)["index"] for ref in (
        maintained, f"{maintained}@main", f"{maintained}@{new}", f"{maintained}@{old}", f"{maintained}@{old[:8]}",
    )}  # fmt: skip
    assert [i["revision"] for i in asked.values()] == [new, new, new, old, old]
    assert "no such dataset was pulled" in office.refused("index", "status", "--index", f"{maintained}@v9")
    hub.log.clear()
    back = office.told_offline("index", "pull", f"{maintained}@{old}")  # kept, so no network is needed
    assert back["index"]["revision"] == old and hub.log == []
    assert office.told("index", "status")["index"]["models"] == 2
    assert "no such revision" in office.refused("index", "pull", f"{maintained}@nope")


def test_offline_nothing_is_asked(hub: Hub, maintained: str, machine: Any) -> None:
    office = machine("office")
    office.told("index", "pull", maintained)
    hub.log.clear()
    for arguments, environment in ((("--offline",), {}), ((), {"HF_HUB_OFFLINE": "1"})):
        update = office.told("index", "status", *arguments, **environment)["origins"][0]["update"]
        assert update == {"looked": False, "reason": "offline: the Hub was not asked"}
        assert "offline" in office.refused("index", "pull", maintained, *arguments, **environment)
        assert "offline" in office.refused("push", "org/base", "--to", maintained, *arguments, **environment)
        assert office.told("query", "org/base", *arguments, **environment)["index"]["id"] == maintained
    assert hub.log == []


def test_public_and_private_indexes_act_as_one(maintained: str, machine: Any, prints: Any, tmp_path: Path) -> None:
    Index.build([prints["tuned"]], name="private").save(tmp_path / "private")
    office = machine("office")
    office.told("index", "pull", maintained)
    both = ("--index", maintained, "--index", tmp_path / "private")
    told = office.told_offline("query", "org/base", *both)
    assert told["index"]["models"] == 3 and told["index"]["id"] == f"{maintained}+private"
    assert [m["model_id"] for m in told["matches"]] == ["org/tuned"]
    environment = {"PROVINDEX_INDEX": f"{maintained}:{tmp_path / 'private'}"}
    assert office.told("query", "org/base", "--offline", **environment)["matches"] == told["matches"]


def test_the_index_that_was_pulled_answers_and_says_so(hub: Hub, maintained: str, machine: Any) -> None:
    office = machine("office")
    assert office.told_offline("index", "status")["index"]["id"] == "seed"
    office.told("index", "pull", PROVINDEX_DATASET=maintained)
    ran = office.run("query", "org/base", "--offline")
    assert ran.status == 0 and ran.err.startswith(f"index  {maintained}@")
    assert office.told_offline("index", "status", "--index", "embedded")["index"]["id"] == "seed"


def test_what_is_not_there_and_who_may_not_read(hub: Hub, maintained: str, small: Path, machine: Any) -> None:
    office = machine("office")
    nothing = office.refused("index", "pull")
    assert "no dataset provindex/fingerprints" in nothing
    assert "Check the name" in nothing and "provindex index build" in nothing
    hub.publish("org/notes", {"README.md": b"# x"}, kind="dataset")
    assert "no index of fingerprints" in office.refused("index", "pull", "org/notes")
    assert "names no dataset" in office.refused("index", "pull", "a/b/c")
    publish(small, "org/secret", private=True)
    assert "or it is private" in office.refused("index", "pull", "org/secret")
    assert machine("inside", MAINTAINER).told("index", "pull", "org/secret")["index"]["models"] == 2
    expired = machine("expired", "hf_expired")
    assert "did not accept the access token" in expired.refused("index", "pull", maintained)


def test_a_dataset_of_another_version_is_told(
    hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    repo = hub.repos["dataset", maintained]
    tree = dict(repo.tree("main")[1])
    document = json.loads(hub.path_of(tree["manifest.json"]).read_text())
    data = json.dumps({**document, "fingerprint_version": 99}).encode()
    tree["manifest.json"] = [hub.put_blob(data), len(data), None]
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "future", "", "alice")
    office = machine("office", MAINTAINER)
    assert "fingerprint version 99" in office.refused("index", "pull", maintained)
    path = contribution(tmp_path, prints["tuned"])
    assert "fingerprint version 99" in office.refused("push", path, "--to", maintained)


# --- pushing ---


def test_what_would_be_sent_is_shown(maintained: str, machine: Any, prints: Any, tmp_path: Path, hub: Hub) -> None:
    home = machine("home")
    path = contribution(tmp_path, prints["tuned"])
    told = home.told("push", path, "--to", maintained, "--dry-run")
    assert (told["sent"], told["commit"], told["pull_request"], told["objections"]) == (False, None, None, [])
    assert set(told["row"]) == {c.name for c in rows.COLUMNS} and len(told["files"]) == 2
    assert not [entry for entry in hub.log if entry[0] != "GET"], "a dry run writes nothing"
    shown = home.run("push", path, "--to", maintained, "--dry-run")
    assert "Nothing was sent." in shown.out and all(f["sha256"] in shown.out for f in told["files"])
    assert str(tmp_path) not in shown.out and "no weights that could be used" in shown.out
    offline = home.told("push", path, "--to", maintained, "--dry-run", "--offline")
    assert offline["row"] == told["row"] and "offline" in offline["warnings"][0]


def test_direct_commits_and_duplicates(maintained: str, machine: Any, prints: Any, tmp_path: Path) -> None:
    maintainer, path = machine("desk", MAINTAINER), contribution(tmp_path, prints["tuned"])
    sent = maintainer.told("push", path, "--to", maintained, "--direct")
    assert len(sent["commit"]) == 40 and sent["pull_request"] is None
    assert machine("office").told("index", "pull", maintained)["index"]["models"] == 3
    assert "this very row already" in maintainer.refused("push", path, "--to", maintained, "--direct")
    published = contribution(tmp_path, prints["base"])  # in a shard of several rows
    assert "this very row already" in maintainer.refused("push", published, "--to", maintained)
    again = maintainer.told("push", published, "--to", maintained, "--dry-run")
    assert again["status"] == "inconclusive" and "this very row already" in again["objections"][0]


def test_a_row_that_is_proposed_already(maintained: str, machine: Any, prints: Any, tmp_path: Path) -> None:
    path = contribution(tmp_path, prints["tuned"])
    assert machine("a", CONTRIBUTOR).told("push", path, "--to", maintained)["pull_request"] == 1
    assert "Pull request 1" in machine("b", CONTRIBUTOR).refused("push", path, "--to", maintained)
    other = machine("c", MAINTAINER).run("push", path, "--to", maintained, "--json")
    assert json.loads(other.out)["pull_request"] == 2 and "pull request 1 of bob has the same title" in other.err


def test_terms_have_to_be_acknowledged(
    hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path, tree: Any
) -> None:
    home = machine("home", CONTRIBUTOR)
    licensed = contribution(tmp_path, replace(prints["tuned"], model_id="org/licensed", license="llama3.1"))
    assert "--acknowledge llama3.1" in home.refused("push", licensed, "--to", maintained)
    assert "llama3.1" in home.told("push", licensed, "--to", maintained, "--dry-run")["objections"][0]
    sent = home.told("push", licensed, "--to", maintained, "--acknowledge", "llama3.1")
    assert sent["pull_request"] == 1 and sent["settings"]["acknowledge"] == ["llama3.1"]
    hub.publish("org/gated-model", {"config.json": b"{}"}, gated=True)
    gated = contribution(tmp_path, replace(prints["tuned"], model_id="org/gated-model", revision=None))
    assert "--acknowledge gated" in home.refused("push", gated, "--to", maintained)
    assert home.told("push", gated, "--to", maintained, "--acknowledge", "gated")["pull_request"] == 2
    elsewhere = contribution(tmp_path, replace(prints["tuned"], model_id="org/gated-model", revision="f" * 40))
    assert "--acknowledge gated" in home.refused("push", elsewhere, "--to", maintained)
    card = b"---\nlicense: other\n---\n"
    hub.publish("org/two-licenses", {"config.json": b"{}", "README.md": card})
    two = contribution(tmp_path, replace(prints["tuned"], model_id="org/two-licenses", revision=None, license="mit"))
    assert "--acknowledge other" in home.refused("push", two, "--to", maintained)
    unstated = contribution(tmp_path, replace(prints["tuned"], model_id="org/unstated", license=None))
    assert any("states no license" in w for w in home.told("push", unstated, "--to", maintained)["warnings"])


def test_a_row_that_tells_of_this_machine_is_refused(
    maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    home = machine("home", CONTRIBUTOR)
    leaking = replace(
        prints["tuned"], absences={"TFV": Reason.of(Code.NOT_JSON, "/home/somebody/model/tokenizer.json")}
    )
    path = contribution(tmp_path, leaking)
    assert "column absences would tell a path" in home.refused("push", path, "--to", maintained)
    path_told = Reason.of(Code.OTHER_FILES, names="/srv/models/x")
    kept = Reason.of(Code.NOT_FINITE_VALUES, n=2, tensors=1, first="model.norm.weight")
    reading = replace(prints["tuned"], warnings=(path_told, Reason.of(Code.CACHED, commit="1" * 40), kept))
    told = home.told("push", contribution(tmp_path, reading), "--to", maintained, "--dry-run")
    assert json.loads(told["row"]["warnings"]) == [kept.to_json()] and told["objections"] == []


@pytest.mark.parametrize(
    "text",
    [
        "cache:/home/alice/x",
        "../alice/m",
        "at ./m/x",
        "~/m",
        "~alice/m",
        "%USERPROFILE%",
        "C:\\m",
        "file:///m",
        "\\\\nas\\m",
    ],
)
def test_what_tells_a_path(text: str, prints: Any) -> None:
    row = to_row(prints["tuned"])
    assert not_private(row) == [] and not_private({**row, "source": "https://example.org/a/b, org/name, 1/2"}) == []
    assert not_private({**row, "source": f"see {text}"}) and not_private({**row, "warnings": [text]})


def test_a_fingerprint_of_another_version_is_refused(
    maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    path = contribution(tmp_path, replace(prints["tuned"], version=99))
    assert "has version 99" in machine("home", CONTRIBUTOR).refused("push", path, "--to", maintained)


@pytest.mark.parametrize(
    ("token", "arguments", "said"),
    [
        (None, (), "needs an account"),
        ("hf_wrong", (), "did not accept the access token"),
        (CONTRIBUTOR, ("--direct",), "without --direct"),
        (MAINTAINER, ("--to", "org/absent"), "no dataset org/absent"),
        (MAINTAINER, ("--to", "org/x@v1"), "names a revision"),
    ],
)
def test_who_may_not_push(
    token: str | None, arguments: tuple[str, ...], said: str, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    path = contribution(tmp_path, prints["tuned"])
    assert said in machine("home", token).refused("push", path, "--to", maintained, *arguments)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        {"match": "/commit/", "times": 1, "status": 503},
        {"match": "/commit/", "times": 1, "drop": "before"},
        {"match": "/commit/", "times": 1, "drop": "after"},
        {"match": "/commit/", "times": 1, "status": 412},
        {"match": "/commit/", "times": 2, "slow": 0.1, "status": 409},
    ],
)
def test_a_commit_that_fails_or_whose_answer_is_lost_is_made_once(
    fault: dict[str, Any], direct: bool, hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    hub.faults.append(fault)
    path = contribution(tmp_path, prints["tuned"])
    machine("desk", MAINTAINER).told("push", path, "--to", maintained, *(("--direct",) if direct else ()))
    repo = hub.repos["dataset", maintained]
    added = [c for c in repo.commits.values() if c["title"].startswith("Add org/tuned")]
    assert len(added) == 1 and len(repo.discussions) == (0 if direct else 1)


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_a_commit_that_is_refused(
    status: int, hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    before = hub.repos["dataset", maintained].refs["refs/heads/main"]
    hub.faults.append({"match": "/commit/", "times": 99, "status": status})
    path = contribution(tmp_path, prints["tuned"])
    told = machine("desk", MAINTAINER).refused("push", path, "--to", maintained, "--direct")
    assert f"({status})" in told and maintained in told
    assert hub.repos["dataset", maintained].refs["refs/heads/main"] == before


@pytest.mark.parametrize("direct", [True, False])
def test_ten_at_once_lose_nothing(
    direct: bool, hub: Hub, maintained: str, machine: Any, prints: Any, tmp_path: Path
) -> None:
    from provindex.hub.push import push

    many = [replace(prints["tuned"], model_id=f"org/many-{number}") for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        sent = list(pool.map(lambda fp: push(fp, maintained, direct=direct), many))
    if not direct:
        assert sorted(one.pull_request or 0 for one in sent) == list(range(1, 11))
        for number in range(1, 11):
            merge(maintained, number)
    pulled = machine("office").told("index", "pull", maintained)
    assert {m["model_id"] for m in pulled["models"]} == {"org/base", "org/other", *(fp.model_id for fp in many)}


# --- publishing ---


def test_a_publication_keeps_what_was_merged_and_compacts(
    hub: Hub, maintained: str, machine: Any, prints: Any, small: Path, tmp_path: Path
) -> None:
    from provindex.hub.push import push

    for number in range(3):
        push(replace(prints["tuned"], model_id=f"org/more-{number}"), maintained, direct=True)
    office = machine("office")
    office.told("index", "pull", maintained)
    rehearsed = publish(small, maintained, compact=True, dry_run=True)
    done = publish(small, maintained, compact=True)
    assert (
        done.models == 5 and len(done.removed) == 8 and (rehearsed.sent, rehearsed.removed) == (done.sent, done.removed)
    )
    hub.log.clear()
    told = office.told("index", "pull", maintained)
    assert told["index"]["models"] == 5 and told["pulled"]["files_fetched"] == 2
    assert office.told_offline("index", "verify")["problems"] == []


def test_what_is_no_index_makes_no_dataset_and_other_files_stay(hub: Hub, maintained: str, small: Path) -> None:
    with pytest.raises(IndexFormatError):
        publish(small / "absent", "org/ghost")
    assert ("dataset", "org/ghost") not in hub.repos
    repo = hub.repos["dataset", maintained]
    path = "data/models/theirs/x.parquet"
    tree = {**repo.tree("main")[1], path: hub.put_file(path, b"x")}
    repo.commit("refs/heads/main", [repo.refs["refs/heads/main"]], tree, "merged", "", "alice")
    assert publish(small, maintained).removed == () and path in repo.tree("main")[1]


def test_a_publication_starts_again_when_somebody_commits_in_between(
    hub: Hub, maintained: str, prints: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from provindex.hub import client as client
    from provindex.hub.push import push

    real, raced = client.commit, []

    def commit(*arguments: Any, **options: Any) -> Any:
        if not raced:
            raced.append(True)
            push(replace(prints["tuned"], model_id="org/in-between"), maintained, direct=True)
        return real(*arguments, **options)

    folder = tmp_path / "more"
    shutil.copytree(small, folder)
    index = Index.load(folder)
    index.add(prints["tuned"])
    index.save(folder)
    monkeypatch.setattr("build_index.publish.hub.commit", commit)
    assert publish(folder, maintained, wait=lambda _: None).models == 4


def test_with_xet_as_the_real_hub_has_it(tmp_path: Path, small: Path, prints: Any, machine: Any) -> None:
    """The client's default transport, for what is published, contributed and pulled."""
    import subprocess
    import sys

    from commands import environment

    with XetHub(tmp_path / "hub").run() as hub:
        xet = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "0"}
        program = "import sys, pathlib, build_index.publish as p; p.publish(pathlib.Path(sys.argv[1]), 'org/xet')"
        env = environment(**{**machine("desk", MAINTAINER).environment, **xet})
        subprocess.run([sys.executable, "-c", program, str(small)], check=True, timeout=120, env=env, cwd=REPOSITORY)
        path = contribution(tmp_path, prints["tuned"])
        assert machine("home", CONTRIBUTOR).told("push", path, "--to", "org/xet", **xet)["pull_request"] == 1
        office = machine("office")
        assert office.told("index", "pull", "org/xet@refs/pr/1", **xet)["index"]["models"] == 3
        assert office.told_offline("index", "verify")["problems"] == []
        assert any("/shards" in path for _, path, *_ in hub.log)
