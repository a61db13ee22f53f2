"""The embedded catalogue: its facts are those of its sources, and who looks alike follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zoo
from prints import fingerprint

from build_index import catalogue_file
from provindex.catalogue import alike, cost
from provindex.catalogue.alike import Look, Neighbour, neighbours
from provindex.catalogue.table import FILE, Known, Shape, family_of, known, license_of, models
from provindex.common.hub_ids import id_of, is_hub_id
from provindex.models.source import open_model

REAL = Path(__file__).parents[2] / "shared" / "data" / "cisco-mpk"
QWEN = Shape("qwen2", 896, 24, 4864, 14, 2, 151_936)


def ids(found: tuple[Neighbour, ...]) -> list[str]:
    return [neighbour.model_id for neighbour in found]


# --- the facts ---


def test_the_embedded_file_is_what_its_sources_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert FILE.read_text(encoding="utf-8") == catalogue_file.written(catalogue_file.facts())
    assert catalogue_file.main(["--check"]) == 0
    assert "525 models" in capsys.readouterr().out


def test_a_fact_that_no_source_says_is_named(tmp_path: Path) -> None:
    wrong = json.loads(FILE.read_text(encoding="utf-8"))
    wrong["models"]["Qwen/Qwen2.5-0.5B"]["shape"][1] = 897
    del wrong["models"]["google/gemma-3-270m"]
    path = tmp_path / "models.json"
    path.write_text(json.dumps(wrong), encoding="utf-8")
    found = list(catalogue_file.differences(catalogue_file.facts(), path))
    assert any(line.startswith("Qwen/Qwen2.5-0.5B: shape is ['qwen2', 897") for line in found)
    assert any(line.startswith("google/gemma-3-270m: shape is None") for line in found)


def test_every_fact_has_its_source() -> None:
    assert len(models()) >= 500
    for one in models().values():
        assert bool(one.license) == bool(one.license_source), one.model_id
        assert bool(one.parent) == bool(one.parent_source), one.model_id
        assert (one.shape != Shape()) == bool(one.shape_source), one.model_id
        assert (one.tokenizer.tokens > 0) == bool(one.tokenizer_source), one.model_id


@pytest.mark.skipif(not REAL.exists(), reason="needs the peer's base features")
def test_sizes_of_the_peers_models_are_those_of_its_own_features() -> None:
    seen = 0
    for path in REAL.glob("features/base/by-family/*/*.json"):
        bundle = json.loads(path.read_text(encoding="utf-8"))
        catalog = json.loads((REAL / "catalog" / "by-family" / f"{path.parent.name}.json").read_text(encoding="utf-8"))
        asset = next(a for a in catalog["assets"] if a["asset_id"] == bundle["asset_id"])
        one = models()[asset["source_uri"].removeprefix("https://huggingface.co/")]
        mfi, shape = bundle["mfi"], one.shape
        said = (mfi["model_type"], mfi["hidden_size"], mfi["num_hidden_layers"], mfi["vocab_size"])
        assert (shape.model_type, shape.hidden, shape.layers, shape.vocabulary) == said, one.model_id
        assert one.tokenizer.tokens == bundle["tfv"]["vocab_size"], one.model_id
        seen += 1
    assert seen == 152


def test_what_a_row_states_comes_before_what_the_catalogue_says() -> None:
    assert known("qwen/qwen2.5-0.5b") is models()["Qwen/Qwen2.5-0.5B"]
    assert known("nobody/nothing") is None
    assert family_of("Qwen/Qwen2.5-0.5B-Instruct", None) == "Qwen/Qwen2.5-0.5B"
    assert family_of("Qwen/Qwen2.5-0.5B-Instruct", "mine/root") == "mine/root"
    assert family_of("nobody/nothing", None) is None
    assert license_of("Qwen/Qwen2.5-7B", "other") == ("other", None)
    name, source = license_of("Qwen/Qwen2.5-7B", None)
    assert name == "apache-2.0" and source is not None and source.startswith("https://")
    assert license_of("nobody/nothing", None) == (None, None)


# --- who looks alike ---


def test_neighbours_have_the_width_and_depth_vocabulary_or_tokenizer() -> None:
    found = neighbours(Look("mine", QWEN))
    assert ids(found)[:2] == ["Qwen/Qwen2-0.5B", "Qwen/Qwen2.5-0.5B"]  # roots of those that are equally alike
    assert "Qwen/Qwen2.5-Coder-0.5B-Instruct" in ids(found)
    assert all(n.known is not None and "width" in n.shared and set(n.shared) & set(alike.KEPT) for n in found)
    assert found == tuple(sorted(found, key=lambda n: -n.bits))
    assert neighbours(Look("mine", replace(QWEN, hidden=897))) == ()
    assert neighbours(Look("mine", replace(QWEN, layers=23, vocabulary=1))) == ()
    merges = models()["Qwen/Qwen2.5-0.5B"].tokenizer.merges
    assert neighbours(Look("mine", replace(QWEN, layers=23, vocabulary=1), merges))  # cut vocabulary and depth


def test_claimed_parents_come_first_also_unknown_ones_and_never_the_model_itself() -> None:
    claims = {"org/unheard-of": ("card",), "openai/WHISPER-base": ("config", "gguf"), "mine/me": ("card",)}
    found = neighbours(Look("mine/me", QWEN), claims, without=["Qwen/Qwen2.5-0.5B"])
    assert ids(found)[:2] == ["openai/whisper-base", "org/unheard-of"]
    assert (found[0].claims, found[1].claims, found[1].known) == (("config", "gguf"), ("card",), None)
    assert not {"Qwen/Qwen2.5-0.5B", "mine/me"} & set(ids(found))
    assert ids(neighbours(Look("mine", Shape()), {"a/b": ("card",)})) == ["a/b"]  # of nothing known, what is claimed


def test_a_model_without_facts_looks_like_what_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "a/root": Known("a/root", shape=QWEN),
        "a/child": Known("a/child", parent="a/root"),
        "a/circle": Known("a/circle", parent="a/circle2"),
        "a/circle2": Known("a/circle2", parent="a/circle"),
    }
    monkeypatch.setattr(alike, "models", lambda: table)
    monkeypatch.setattr(alike, "known", table.get)
    alike._look.cache_clear()
    alike._counts.cache_clear()
    try:
        assert ids(neighbours(Look("mine", QWEN))) == ["a/root", "a/child"]
    finally:
        alike._look.cache_clear()
        alike._counts.cache_clear()


def test_a_rare_fact_counts_more_than_a_common_one() -> None:
    rare, common = alike._bits("width", 640), alike._bits("width", 4096)
    assert rare > common > 0


def test_the_look_of_a_fingerprint_is_that_of_its_weights() -> None:
    fp = fingerprint(zoo.llama(1))
    look = Look.of(fp)
    assert look.shape.hidden == fp.facts.hidden and look.shape.layers == fp.facts.layers
    assert look.shape.vocabulary == fp.facts.vocabulary and look.shape.intermediate == fp.mfi.intermediate_size


# --- what a fetch costs ---

READ = {  # MB that were fetched at stage 0, 1 and 2: tests/benchmarks/README.md
    "meta-llama/Llama-2-7b-hf": (0.6, 53, 860),
    "meta-llama/Llama-3.1-8B": (0.7, 52, 926),
    "meta-llama/Llama-3.1-70B": (3.6, 183, 3600),
}


@pytest.mark.parametrize("model_id", READ)
def test_estimates_are_above_what_was_read_and_not_far(model_id: str) -> None:
    shape = models()[model_id].shape
    for stage, read in zip(cost.STAGES, READ[model_id], strict=False):
        assert read <= cost.estimate(shape, stage) / 1e6 <= 3 * read, stage
    assert cost.estimate(shape, "exact") > 1.9 * cost.parameters(shape)


def test_no_stage_costs_more_than_the_whole_model() -> None:
    small = models()["google/electra-small-discriminator"].shape
    for stage in cost.STAGES[:3]:
        assert cost.estimate(small, stage, size=1_000_000) <= 1_000_000 + cost.COMPANIONS + 130 * small.vocabulary
    assert cost.estimate(Shape(), "norms") == cost.estimate(cost.UNKNOWN, "norms")


# --- claims ---


def claims_in(folder: Path, files: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    zoo.write(zoo.llama(1), folder)
    for name, value in files.items():
        old = json.loads((folder / name).read_text()) if name == "config.json" else {}
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(old | value), encoding="utf-8")
    return dict(open_model(folder).claims)


def test_card_and_config_claim_parents(tmp_path: Path) -> None:
    card = "---\nbase_model:\n- org/base\n- https://huggingface.co/org/other\n- ./not/an/id\n---\n"
    found = claims_in(tmp_path / "m", {"README.md": card, "config.json": {"_name_or_path": "org/base"}})
    assert found == {"org/base": ("card", "config"), "org/other": ("card",)}
    for path in ("/home/me/models/base", "../base", "base", 7, "org/name/more"):
        assert claims_in(tmp_path / f"n{path!r:.3}".replace("/", ""), {"config.json": {"_name_or_path": path}}) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", "org/name"),
        (" https://huggingface.co/org/name/tree/main?x=1 ", "org/name"),
        ("https://hf.co/org/name", "org/name"),
        ("https://example.org/org/name", None),
        ("org/../name", None),
        ("o" * 300 + "/name", None),
        ("name", None),
    ],
)
def test_ids_of_the_hub(text: str, found: str | None) -> None:
    assert id_of(text) == found
    assert is_hub_id(text) is (text == found)
