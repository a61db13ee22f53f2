"""`--fetch N`: models of the Hub that a query lacks, read in stages by the real client, kept, and compared."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from commands import run
from gguf_packers import write_llama
from hub_server import Hub
from zoo import children

from provindex import api
from provindex.api import Index, Resolved
from provindex.common.errors import ModelNotFoundError, UsageError
from provindex.hub.fetch import State
from provindex.index import dataset
from provindex.report import text
from provindex.report.document import query_document

BASE = "sentence-transformers/all-MiniLM-L6-v2"  # its width and depth, in the catalogue
MB = 1_000_000
Publish = Callable[..., str]


def encoder(seed: int = 1) -> zoo.Checkpoint:
    return zoo.spoken(zoo.bert(seed, hidden=384, layers=6, heads=12, intermediate=1536), seed)


def decoder(seed: int = 1, **options: Any) -> zoo.Checkpoint:
    return zoo.spoken(zoo.llama(seed, layers=4, hidden=128, intermediate=512, **options), seed)


def folded(checkpoint: zoo.Checkpoint) -> zoo.Checkpoint:
    """The same with gains of ones, as if they had been folded into the matrices: norms say nothing then."""
    ones = {name: np.ones_like(v) if v.ndim == 1 else v for name, v in checkpoint.tensors.items()}
    return checkpoint.with_tensors(ones)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test: what one fetched would answer in the next."""
    monkeypatch.setenv("PROVINDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def publish(hub: Hub, tmp_path: Path) -> Iterator[Publish]:
    made: list[str] = []

    def send(name: str, checkpoint: zoo.Checkpoint, **options: Any) -> str:
        folder = zoo.write(checkpoint, tmp_path / "hub" / name, dtype="F16")
        hub.publish(name, {path.name: path.read_bytes() for path in folder.iterdir()}, **options)
        made.append(name)
        hub.log.clear()
        return name

    yield send
    for name in made:
        hub.repos.pop(("model", name.lower()), None)


@pytest.fixture
def other(tmp_path: Path) -> Index:
    """An index with one model that has nothing to do with any other here."""
    folder = tmp_path / "index"
    Index.build([api.fingerprint(zoo.write(zoo.gpt2(9), tmp_path / "gpt2"))]).save(folder)
    return Index.load(folder)


def asked(checkpoint: zoo.Checkpoint, folder: Path, *claimed: str) -> Resolved:
    """A model in a folder, whose card claims parents."""
    zoo.write(checkpoint, folder, dtype="F16")
    if claimed:
        (folder / "README.md").write_text("---\nbase_model:\n" + "".join(f"- {c}\n" for c in claimed) + "---\n")
    return api.resolve(folder)


def on_the_wire(hub: Hub) -> int:
    """Bytes of files that went over the wire."""
    return sum(
        size for method, path, status, size, _ in hub.log if method == "GET" and "/api/" not in path and status < 300
    )


def states(spent: api.Spent) -> dict[str, str]:
    return {got.model_id: str(got.state) for got in spent.got}


def status_of(index: Index, model: Resolved, deny: str, fetch: int | None = None) -> int:
    """What `query --deny` would exit with; the command line's own way there is `test_what_a_person_reads`."""
    if fetch is None:
        _, result = api.query(index, model, also=[deny])
    else:
        index, _, result, _ = api.query_fetching(index, model, fetch, also=[deny])
    return api.gate(result, [deny], index).exit_status


def test_from_nothing_the_base_is_found_and_answers_offline_afterwards(
    hub: Hub, publish: Publish, other: Index, tmp_path: Path
) -> None:
    base = encoder()
    publish(BASE, base)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child")
    _, before = api.query(other, child)
    assert before.status == "inconclusive" and BASE in [n.model_id for n in before.neighbours]
    assert hub.log == []

    told: list[api.Plan] = []
    _, _, after, spent = api.query_fetching(other, child, 8, planned=told.append)
    (best,) = after.linked
    assert (best.entry.model_id, best.pair.relation, after.status) == (BASE, "finetune", "decided")
    assert best.entry.row["mode"] == "sampled" and best.entry.family == "microsoft/MiniLM-L12-H384-uncased"
    assert states(spent)[BASE] == "fetched" and set(states(spent).values()) == {"fetched", "not-found"}
    assert (spent.requests, spent.plan) == (len(hub.log), told[0])
    assert spent.bytes == on_the_wire(hub) <= spent.plan.most <= spent.plan.limit
    assert sum(got.bytes for got in spent.got) == spent.bytes
    assert sum(got.requests for got in spent.got) == spent.requests

    hub.log.clear()
    again = Index.load(*other.folders, "fetched").query(child.fingerprint, claims=child.claims)
    assert [m.entry.model_id for m in again.linked] == [BASE] and hub.log == []
    default = Index.load()  # the embedded one, and beside it what was fetched
    assert "fetched" in default.info.id and BASE in default
    assert BASE not in [n.model_id for n in again.neighbours]

    _, _, third, spent = api.query_fetching(Index.load(*other.folders, "fetched"), child, 8)
    assert states(spent)[BASE] == "present" and [m.entry.model_id for m in third.linked] == [BASE]


def test_what_cannot_be_had_is_noted_and_ends_nothing(hub: Hub, publish: Publish, other: Index, tmp_path: Path) -> None:
    base = decoder()
    for name in ("cut", "late", "base"):
        publish(f"fetch/{name}", base)
    publish("fetch/gated", base, gated=True)
    hub.publish("fetch/broken", {"config.json": b"{}", "model.safetensors": b"\0" * 100})
    hub.publish("fetch/empty", {"config.json": b"{}"})
    hub.publish("fetch/pickle", {"config.json": b"{}", "pytorch_model.bin": b"no pickle"})
    names = ("gated", "missing", "cut", "broken", "empty", "pickle", "base")
    hub.faults.append({"match": "/fetch/cut/resolve/", "times": 100, "drop": "before"})
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", *(f"fetch/{n}" for n in names))
    said: list[str] = []
    _, _, result, spent = api.query_fetching(other, child, 7, say=said.append)
    assert states(spent) == {
        "fetch/gated": "no-access", "fetch/missing": "not-found", "fetch/cut": "network", "fetch/broken": "unreadable",
        "fetch/empty": "unreadable", "fetch/pickle": "unreadable", "fetch/base": "fetched",
    }  # fmt: skip
    assert [m.entry.model_id for m in result.linked] == ["fetch/base"]
    assert all(got.why and got.why.endswith(".") for got in spent.got if got.state is not State.FETCHED)
    assert all(any(name in line for line in said) for name in names)
    assert [n.model_id for n in result.neighbours if n.claims] == [f"fetch/{n}" for n in sorted(names[:-1])]


@pytest.mark.parametrize("kind", ["GGUF", "torch"])
def test_a_base_that_has_no_safetensors(hub: Hub, other: Index, tmp_path: Path, kind: str) -> None:
    base = decoder()
    if kind == "GGUF":
        path = write_llama(tmp_path / "model-f16.gguf", base, "F16")
        hub.publish("fetch/gguf", {"model-f16.gguf": path.read_bytes()})
        child = asked(base, tmp_path / "child", "fetch/gguf")
    else:
        data = (Path(__file__).parent / "data" / "torch" / "zip.pt").read_bytes()
        hub.publish("fetch/torch", {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": data})
        child = asked(base, tmp_path / "child", "fetch/torch")
    _, _, result, spent = api.query_fetching(other, child, 1)
    assert [str(got.state) for got in spent.got] == ["fetched"]
    assert bool(result.linked) == (kind == "GGUF")


def test_a_limit_in_bytes_is_never_exceeded(hub: Hub, publish: Publish, other: Index, tmp_path: Path) -> None:
    base = zoo.spoken(zoo.llama(1, layers=16, hidden=128, intermediate=512), 1)
    names = [publish(f"fetch/limit{i}", base) for i in range(3)]
    child = asked(decoder(), tmp_path / "child", *names)  # of four layers: the estimates are too low
    norms = api.query_fetching(other, child, 3, limit=100 * MB)[3]
    assert norms.bytes == on_the_wire(hub)

    shutil.rmtree(os.environ["PROVINDEX_CACHE"])
    hub.log.clear()
    limit = norms.plan.bytes + 1000
    _, _, _, spent = api.query_fetching(other, child, 3, limit=limit)
    assert spent.bytes == on_the_wire(hub) <= limit
    assert {got.stage for got in spent.got} <= {0, 1} and "over-budget" in states(spent).values()

    shutil.rmtree(os.environ["PROVINDEX_CACHE"])
    hub.log.clear()
    _, _, _, spent = api.query_fetching(other, child, 3, limit=norms.plan.models[0].bytes + 10)
    assert spent.plan.over == tuple(names[1:]) and list(states(spent)) == names[:1]

    shutil.rmtree(os.environ["PROVINDEX_CACHE"])
    hub.log.clear()
    _, _, result, spent = api.query_fetching(other, child, 3, limit=10)
    assert (spent.got, spent.plan.over, hub.log) == ((), tuple(names), [])
    assert result.status == "inconclusive"


def test_where_norms_say_nothing_more_is_read(publish: Publish, other: Index, tmp_path: Path) -> None:
    base = folded(decoder())
    name = publish("fetch/folded", base)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", name)
    _, _, result, spent = api.query_fetching(other, child, 1)
    assert [m.entry.model_id for m in result.linked] == [name]
    assert [got.stage for got in spent.got] == [1]


def test_of_a_stranger_everything_that_helps_is_read_and_nothing_is_said(
    publish: Publish, other: Index, tmp_path: Path
) -> None:
    name = publish("fetch/stranger", decoder(2))
    _, _, result, spent = api.query_fetching(other, asked(decoder(1), tmp_path / "m", name), 1)
    assert result.linked == () and spent.got[0].stage is not None
    (pair,) = [m.pair for m in result.candidates if m.entry.model_id == name]
    assert pair.verdict == "unrelated" and name not in [n.model_id for n in result.neighbours]


def test_nothing_is_asked_where_nothing_looks_alike(hub: Hub, other: Index, tmp_path: Path) -> None:
    _, _, result, spent = api.query_fetching(other, asked(decoder(), tmp_path / "m"), 8)
    assert (spent.got, spent.requests, hub.log) == ((), 0, [])
    assert result.status == "inconclusive" and result.neighbours == ()


def test_rows_of_an_older_version_are_left_out_and_read_again(
    publish: Publish, other: Index, tmp_path: Path, own_cache: Path
) -> None:
    base = decoder()
    name = publish("fetch/again", base)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", name)
    api.query_fetching(other, child, 1)
    manifest = own_cache / "indexes" / "fetched" / dataset.MANIFEST
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"fingerprint_version": said["fingerprint_version"] - 1}))
    assert api.outdated_fetched() == (1, said["fingerprint_version"] - 1)
    assert "fetched" not in Index.load().info.id
    said_of_it = run("query", tmp_path / "nothing", "--offline")  # before the model is looked for
    assert "1 fetched models are left out: their rows are of fingerprint version" in said_of_it.err
    _, _, result, spent = api.query_fetching(other, child, 1)
    assert states(spent) == {name: "fetched"} and len(result.linked) == 1
    assert api.outdated_fetched() is None and name in Index.load("fetched")


def test_compare_with_a_claimed_base(hub: Hub, publish: Publish, tmp_path: Path) -> None:
    base = decoder()
    name = publish("fetch/claimed", base)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", "fetch/nowhere", name)
    found = run("compare", tmp_path / "child", "--fetch", "2", "--json")
    answer = json.loads(found.out)
    assert (answer["b"]["model_id"], answer["verdict"], answer["b"]["mode"]) == (name, "linked", "sampled")
    assert [(m["model_id"], m["state"]) for m in answer["fetched"]["models"]] == [
        ("fetch/nowhere", "not-found"), (name, "fetched"),
    ]  # fmt: skip
    assert "not-found fetch/nowhere" in found.err and "1 of 2 models read" in found.err
    without = run("compare", tmp_path / "child", "--index", "fetched", "--offline", "--json")  # the one that is indexed
    assert json.loads(without.out)["b"]["model_id"] == name and f"base   {name}" in without.err
    with pytest.raises(ModelNotFoundError, match="No base of"):
        api.compare_fetching(child, {"fetch/nowhere": ("card",)}, 1)
    none = run("compare", zoo.write(decoder(), tmp_path / "bare"))
    assert none.status == 2 and "names no base model" in none.err


def test_a_base_whose_norms_say_nothing_is_read_further(publish: Publish, tmp_path: Path) -> None:
    base = folded(decoder())
    name = publish("fetch/claimed-folded", base)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", name)
    _, b, pair, spent = api.compare_fetching(child, {name: ()}, 1)
    assert pair.verdict == "linked" and b.fingerprint.mode == "sampled" and spent.got[0].stage == 1
    strange = asked(decoder(7), tmp_path / "stranger")
    assert api.compare_fetching(strange, {name: ()}, 1)[2].verdict == "unrelated"


def test_add_brings_the_neighbours_of_what_is_added(publish: Publish, other: Index, tmp_path: Path) -> None:
    publish(BASE, encoder())
    zoo.write(encoder(3), tmp_path / "mine")
    (folder,) = other.folders
    done = run("index", "add", tmp_path / "mine", "--index", folder, "--fetch", "8", "--json")
    answer = json.loads(done.out)
    assert done.status == 0 and answer["added"] == ["mine", BASE] and answer["failed"] == []
    modes = {entry.model_id: entry.row["mode"] for entry in Index.load(folder)}
    assert modes == {"gpt2": "exact", "mine": "exact", BASE: "norms"}
    assert {m["state"] for m in answer["fetched"]["models"]} == {"fetched", "not-found"}


def test_what_a_person_reads(publish: Publish, other: Index, tmp_path: Path) -> None:
    base = encoder()
    publish(BASE, base)
    zoo.write(children.finetune_noise(base, 0.98, 5), tmp_path / "child")
    (folder,) = other.folders
    plain = run("query", tmp_path / "child", "--index", folder)
    assert plain.status == 0 and "Not decided: 1 of 1 model could be tested." in plain.out
    assert "it clears nothing" in plain.out and "Next: run it again with --fetch" in plain.out
    done = run("query", tmp_path / "child", "--index", folder, "--fetch", "3", "--max-mb", "60")
    assert done.status == 0 and f"{BASE} (finetune)" in done.out
    first, *_, last = [line for line in done.err.splitlines() if line.startswith("fetch  ")]
    assert "3 models: about" in first and "at most" in first and "of 3 models read:" in last and "requests" in last
    listed = run("index", "list", "--index", "fetched", "--json")
    assert [m["model_id"] for m in json.loads(listed.out)["models"]] == [BASE]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-mb", "5"), "there is no --fetch"),
        (("--fetch", "2", "--offline"), "--offline forbids it"),
        (("--fetch", "0"), "--fetch"),
    ],
)
def test_options_that_contradict_each_other(options: Sequence[str], said: str, tmp_path: Path) -> None:
    folder = zoo.write(decoder(), tmp_path / "m")
    for verb in (("query", folder), ("compare", folder, folder), ("index", "add", folder, "--index", tmp_path)):
        done = run(*verb, *options)
        assert done.status == 2 and said in done.err


def test_the_environment_may_forbid_it(other: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        api.query_fetching(other, asked(decoder(), tmp_path / "m"), 1)


def test_what_is_denied_is_read_until_it_decides(hub: Hub, publish: Publish, other: Index, tmp_path: Path) -> None:
    base, stranger = decoder(1), decoder(2)
    publish("fetch/mother", base)
    publish("fetch/denied", folded(stranger))
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", "fetch/mother")
    assert status_of(other, child, "fetch/denied") == 3  # nobody knows it
    _, _, result, spent = api.query_fetching(other, child, 2, also=["fetch/denied"])
    assert [m.entry.model_id for m in result.linked] == ["fetch/mother"]
    assert {got.model_id: got.stage for got in spent.got} == {"fetch/denied": 2, "fetch/mother": 1}
    (denied,) = [m.pair for m in result.candidates if m.entry.model_id == "fetch/denied"]
    assert denied.verdict == "unrelated" and not denied.plain_order_only
    assert status_of(other, child, "fetch/denied", fetch=2) == 0
    assert status_of(other, child, "fetch/mother", fetch=1) == 1
    stolen = asked(folded(children.finetune_noise(stranger, 0.98, 5)), tmp_path / "stolen")
    assert status_of(other, stolen, "fetch/denied", fetch=1) == 1


def test_norms_of_a_cleared_model_do_not_keep_a_gate_open(publish: Publish, tmp_path: Path) -> None:
    name = publish("fetch/both", decoder(2))
    exact = api.fingerprint(name, mode="exact")
    Index.build([exact]).save(tmp_path / "exact")
    Index.build([api.fingerprint(name, mode="norms")]).save(tmp_path / "norms")
    model = asked(decoder(1), tmp_path / "m")
    assert status_of(Index.load(tmp_path / "norms"), model, name) == 3
    assert status_of(Index.load(tmp_path / "norms", tmp_path / "exact"), model, name) == 0


def test_an_index_in_memory_keeps_its_rows(publish: Publish, tmp_path: Path) -> None:
    base = decoder()
    name = publish("fetch/memory", base)
    index = Index.build([api.fingerprint(zoo.write(zoo.gpt2(9), tmp_path / "gpt2"))])
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", name)
    extended, _, result, _ = api.query_fetching(index, child, 1)
    assert {entry.model_id for entry in extended} == {"gpt2", name} and len(result.linked) == 1
    again = extended.with_folder(extended.folders[-1])
    assert len(again) == len(extended) == again.info.models == 2


def test_a_folder_here_is_not_taken_for_a_model_of_the_hub(
    publish: Publish, other: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = decoder()
    name = publish("fetch/here", base)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", name, "secret/folder")
    monkeypatch.chdir(tmp_path)
    zoo.write(decoder(8), tmp_path / name)
    zoo.write(decoder(9), tmp_path / "secret" / "folder")
    _, _, result, spent = api.query_fetching(other, child, 2)
    assert states(spent) == {name: "fetched", "secret/folder": "not-found"}
    assert [m.entry.model_id for m in result.linked] == [name]


def test_norms_that_were_fetched_once_are_read_on_when_another_query_needs_it(
    publish: Publish, other: Index, tmp_path: Path
) -> None:
    base, stranger = decoder(1), folded(decoder(2))
    mother, denied = publish("fetch/mother2", base), publish("fetch/denied2", stranger)
    child = asked(children.finetune_noise(base, 0.98, 5), tmp_path / "child", mother, denied)
    _, _, _, first = api.query_fetching(other, child, 2)
    assert {got.model_id: got.stage for got in first.got} == {mother: 1, denied: 0}
    stolen = asked(folded(children.finetune_noise(stranger, 0.98, 5)), tmp_path / "stolen", denied)
    index = Index.load(*other.folders, "fetched")
    before = text.render(query_document(index.query(stolen.fingerprint, claims=stolen.claims)))
    assert "Not decided" in before and "Next: run it again with --fetch 1, which reads more of" in before
    _, _, result, spent = api.query_fetching(index, stolen, 1)
    assert [m.entry.model_id for m in result.linked] == [denied]
    (got,) = spent.got
    assert (str(got.state), got.stage, spent.plan.models[0].depth) == ("fetched", 1, 0)
    _, _, _, third = api.query_fetching(index, child, 2, also=["Fetch/Denied2"])  # until it decides, in any case
    assert {got.model_id: got.stage for got in third.got}[denied] == 2


def test_a_row_of_another_index_is_read_on(publish: Publish, tmp_path: Path) -> None:
    base = folded(decoder(1))
    name = publish("fetch/elsewhere", base)
    Index.build([api.fingerprint(name, mode="norms")]).save(tmp_path / "norms")
    child = asked(folded(children.finetune_noise(base, 0.98, 5)), tmp_path / "child")  # nobody claims anything
    _, _, result, spent = api.query_fetching(Index.load(tmp_path / "norms"), child, 1)
    assert [m.entry.model_id for m in result.linked] == [name] and spent.got[0].stage == 1


def test_a_damaged_index_of_fetched_models_is_told_before_anything_is_asked(
    hub: Hub, publish: Publish, other: Index, tmp_path: Path, own_cache: Path
) -> None:
    base = decoder()
    name = publish("fetch/damaged", base)
    zoo.write(children.finetune_noise(base, 0.98, 5), tmp_path / "child")
    (tmp_path / "child" / "README.md").write_text(f"---\nbase_model: {name}\n---\n")
    api.query_fetching(other, api.resolve(tmp_path / "child"), 1)
    for shard in (own_cache / "indexes" / "fetched" / "data" / "models").iterdir():
        shard.write_bytes(b"PAR1")
    hub.log.clear()
    done = run("query", tmp_path / "child", "--fetch", "1")
    assert done.status == 2 and "Remove the folder `fetched`" in done.err and hub.log == []


def test_compare_takes_no_model_of_the_accuseds_choice_for_a_clearance(publish: Publish, tmp_path: Path) -> None:
    base = decoder()
    name = publish("fetch/judge", base)
    child = tmp_path / "child"
    zoo.write(children.finetune_noise(base, 0.98, 5), child)
    (child / "README.md").write_text(f"---\nbase_model: {name}\n---\n")
    zoo.write(decoder(9), child / name)  # a decoy where the id would be a path
    done = run("compare", ".", "--json", cwd=child)
    assert json.loads(done.out)["verdict"] == "linked"
    refused = run("compare", child, "--expect", "unrelated", "--fetch", "1")
    assert refused.status == 2 and "a model of its own choice" in refused.err


def test_a_fingerprint_file_cannot_name_a_path(tmp_path: Path) -> None:
    secret = zoo.write(decoder(), tmp_path / "secret" / "model")
    fp = replace(api.fingerprint(secret), parents=("../secret/model", str(secret), "./x"))
    (tmp_path / "here").mkdir()
    api.write_fingerprint(fp, tmp_path / "here" / "evil.parquet")
    done = run("compare", "evil.parquet", cwd=tmp_path / "here")
    assert done.status == 2 and "names no base model" in done.err


# --- what may not read as cleared ---


def renamed(fp: api.Fingerprint, model_id: str, **changes: Any) -> api.Fingerprint:
    return replace(fp, model_id=model_id, **changes)


def test_an_exact_row_of_another_model_of_that_name_clears_nothing(tmp_path: Path) -> None:
    guilty = decoder(1)
    zoo.write(guilty, tmp_path / "a" / "model")
    zoo.write(decoder(2), tmp_path / "b" / "model")
    Index.build([api.fingerprint(tmp_path / "a" / "model", mode="norms")]).save(tmp_path / "norms")
    Index.build([api.fingerprint(tmp_path / "b" / "model")]).save(tmp_path / "exact")
    copy = asked(folded(children.finetune_noise(guilty, 0.98, 5)), tmp_path / "q")
    assert status_of(Index.load(tmp_path / "norms", tmp_path / "exact"), copy, "model") == 3


def test_a_family_of_the_catalogue_does_not_stand_for_its_root(tmp_path: Path) -> None:
    root = "microsoft/MiniLM-L12-H384-uncased"
    member = api.fingerprint(zoo.write(decoder(1), tmp_path / "m"))
    index, model = Index.build([renamed(member, BASE)]), asked(decoder(2), tmp_path / "q")
    assert status_of(index, model, root) == 3
    assert status_of(Index.build([renamed(member, BASE, family=root)]), model, root) == 0
    assert query_document(index.query(model.fingerprint))["candidates"][0]["family"] == root  # it is named


def test_none_is_said_only_if_everything_of_that_width_was_compared(tmp_path: Path) -> None:
    made = [renamed(api.fingerprint(zoo.write(decoder(n), tmp_path / f"m{n}")), f"m{n}") for n in range(4)]
    index = Index.build(made[1:])
    whole = index.query(made[0])
    assert (whole.status, whole.coverage.of_width) == ("none", 0)
    part = index.query(made[0], candidates=1)
    assert (part.status, part.coverage.of_width, part.coverage.compared) == ("inconclusive", 2, 1)
    said = text.render(query_document(part))
    assert "2 more models of its width were not compared (--candidates); it clears nothing." in said
    assert text.render(query_document(whole)).startswith("No ancestor in this index")


def test_a_claimed_parent_that_could_not_be_tested_is_no_none(tmp_path: Path) -> None:
    narrow = folded(zoo.llama(3, layers=2, hidden=64, intermediate=128))
    wide = api.fingerprint(zoo.write(narrow, tmp_path / "w"), mode="norms")
    near = api.fingerprint(zoo.write(decoder(1), tmp_path / "n"))
    index = Index.build([renamed(wide, "org/wide"), renamed(near, "org/near")])
    asked_for = api.fingerprint(zoo.write(decoder(2), tmp_path / "q"))
    assert index.query(asked_for).status == "none"
    claimed = index.query(asked_for, claims={"ORG/Wide": ("card",)})
    assert (claimed.status, claimed.coverage.alike, claimed.coverage.alike_tested) == ("inconclusive", 2, 1)
    only = index.query(asked_for, candidates=1, claims={"ORG/Wide": ("card",), "org/near": ("card",)})
    assert only.coverage.compared == 2  # what is claimed is compared whatever retrieval says


def test_a_replaced_row_does_not_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    zoo.write(decoder(1), folder)
    Index.build([api.fingerprint(folder, mode="norms")]).save(tmp_path / "index")
    held = Index.load(tmp_path / "index")
    held.add(api.fingerprint(zoo.write(decoder(2), tmp_path / "n")))
    assert not api.fill_index(tmp_path / "index", [str(folder)], create=False).failed
    held.save(tmp_path / "index")
    modes = sorted((e.model_id, e.row["mode"]) for e in Index.load(tmp_path / "index"))
    assert modes == [("m", "exact"), ("n", "exact")]


def test_what_cannot_be_fetched_as_a_base_is_told_in_a_sentence(publish: Publish, tmp_path: Path) -> None:
    child = asked(decoder(), tmp_path / "child")
    with pytest.raises(UsageError, match=r"\./folder is no org/name"):
        api.compare_fetching(child, {"./folder": ()}, 1)
    name = publish("fetch/large", decoder())
    with pytest.raises(ModelNotFoundError, match=f"{name} does not fit into --max-mb"):
        api.compare_fetching(child, {name: ()}, 1, limit=10)


def test_a_row_that_states_a_thousand_parents_does_not_make_a_thousand_comparisons(tmp_path: Path) -> None:
    base = api.fingerprint(zoo.write(decoder(1), tmp_path / "n"))
    index = Index.build(renamed(base, f"org/m{n:03}") for n in range(100))
    asked_for = renamed(api.fingerprint(zoo.write(decoder(2), tmp_path / "q")), "me/q")
    crowd = replace(asked_for, parents=tuple(f"org/m{n:03}" for n in range(100)))
    assert index.query(crowd, candidates=1).coverage.compared <= 65
