"""Answers as documents and as text: the fields of the contract, and lines that fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import prints
import pytest
import zoo

from build_index.calibrate import Compared, calibration_of
from provindex.api import Index, compare
from provindex.common.score import Outcome
from provindex.fingerprint.record import Fingerprint
from provindex.index.answer import Comparison
from provindex.index.entries import Problem
from provindex.index.fill import Built
from provindex.report import document, text
from provindex.report.words import CERTAINTIES
from provindex.verdict import pair as verdict
from provindex.verdict.calibration import STRATA
from provindex.verdict.pair import Pair

STRATUM = STRATA[0]
SIGNALS = ["MFI", "TFV", "VOA", "EAS", "NLF", "LEP", "END", "WVC"]
EVIDENCE = [
    "bit_reuse", "hidden_fixed_points", "hidden_alignment", "residual_fixed_points", "residual_gram",
    "norm_alignment", "bias_alignment", "triple_agreement", "branch_sketch", "neuron_signs", "neuron_invariants",
    "sampled_fixed_points", "sampled_alignment",
]  # fmt: skip
COMMON = {"schema", "tool", "index", "settings", "warnings", "status"}
QUERY = {
    "model_id", "revision", "content_sha256", "parameters", "architecture", "mode", "bytes_read", "bytes_total",
    "parents",
}  # fmt: skip
PAIR = {
    "verdict", "relation", "direction", "confidence", "log10_p", "e_value", "log10_e", "pipeline_score", "signals",
    "evidence", "layer_map", "retrieval",
}  # fmt: skip
MATCH = PAIR | {"model_id", "revision", "variant", "family", "license", "parents"}
RELATIONS = set(
    "identical recast quantized finetune continued adapter pruned upscaled merge vocabulary laundered shared-ancestor "
    "related".split()
)


@pytest.fixture(scope="module")
def made() -> dict[str, Fingerprint]:
    parent = zoo.llama(1)
    plain = {
        "org/parent": parent,
        "org/child": zoo.finetune_noise(parent, 0.98, 2),
        "org/pruned": zoo.drop_layers(parent, (0, 2)),
        "org/stranger": zoo.llama(3),
        "org/narrow": zoo.gpt2(5, hidden=32, heads=2),  # nothing can be compared: neither width nor kind of MLP
    }
    return {name: prints.fingerprint(checkpoint, name) for name, checkpoint in plain.items()}


@pytest.fixture(scope="module")
def documents(made: dict[str, Fingerprint]) -> dict[str, dict[str, Any]]:
    """One document of every kind and outcome."""
    index = Index.build([replace(fp, family="org/parent", license="mit") for fp in made.values()], name="zoo")
    lonely = Index.build([made["org/narrow"]], name="lonely")
    strange = Index.build([made["org/stranger"], made["org/narrow"]], name="strange")

    def pair(a: str, b: str) -> dict[str, Any]:
        return document.compare_document(Comparison(made[a], made[b], compare(made[a], made[b]), index.info, {}))

    built = Built(index, ("org/a",), ("org/b",), (("/somewhere/else/c", "/somewhere/else/c has no weights."),))
    return {
        "decided": document.query_document(index.query(made["org/child"])),
        "cut": document.query_document(index.query(made["org/child"], top=1)),
        "none": document.query_document(strange.query(made["org/child"])),
        "inconclusive": document.query_document(lonely.query(made["org/child"])),
        "empty": document.query_document(Index.build(()).query(made["org/child"])),
        "linked": pair("org/pruned", "org/parent"),
        "unrelated": pair("org/child", "org/stranger"),
        "untested": pair("org/child", "org/narrow"),
        "fingerprint": document.fingerprint_document(made["org/child"], "child.parquet"),
        "status": document.index_document(index),
        "verified": document.index_document(index, []),
        "damaged": document.index_document(
            index, [Problem("data/models/x.parquet", "its sha256 is not the manifest's")]
        ),
        "built": document.index_document(index, built=built),
    }


KINDS = [
    "decided", "cut", "none", "inconclusive", "empty", "linked", "unrelated", "untested", "fingerprint", "status",
    "verified", "damaged", "built",
]  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(made: dict[str, Fingerprint]) -> dict[str, dict[str, Any]]:
    """The same answers of an index with a calibration: 1,200 pairs of this stratum, 600 of which have a WVC."""
    null = np.random.default_rng(1).beta(5, 5, 1200).round(4).tolist()
    rows = [
        dict.fromkeys(SIGNALS, value) | {"WVC": value / 100 if number % 2 else None, "branch_sketch": value / 10}
        for number, value in enumerate(null)
    ]
    levels = calibration_of([Compared("a", "b", STRATUM, values, {}) for values in rows])

    def with_chance(pair: Pair) -> Pair:
        ranked = Outcome(0.7, 12, -3.08, 0.05, null=levels.chance("branch_sketch", STRATUM))
        evidence = {**pair.evidence, "branch_sketch": ranked}
        return replace(pair, signals=levels.with_chance(pair.signals, STRATUM), evidence=evidence)

    index = Index.build([replace(fp, family="org/parent", license="mit") for fp in made.values()], name="zoo")
    result = index.query(made["org/child"])
    linked = tuple(replace(m, pair=with_chance(m.pair)) for m in result.linked)
    pair = with_chance(compare(made["org/child"], made["org/parent"]))
    return {
        "query": document.query_document(replace(result, linked=linked)),
        "compare": document.compare_document(Comparison(made["org/child"], made["org/parent"], pair, index.info, {})),
    }


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, value
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from walk(inner, f"{path}/{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_plain_json(documents: dict[str, dict[str, Any]], kind: str) -> None:
    d = documents[kind]
    assert json.loads(document.dumps(d)) == d  # no tuples, no NaN, no numbers of numpy
    assert d.keys() >= COMMON and d["status"] in ("decided", "none", "inconclusive")
    assert re.fullmatch(r"provindex\.(query|compare|index|fingerprint)/1", d["schema"])
    assert d["tool"]["name"] == "provindex" and isinstance(d["warnings"], list)
    assert not [p for p, v in walk(d) if isinstance(v, str) and ("/somewhere" in v or "\x1b" in v)]
    lists = ("matches", "candidates", "families", "layer_map", "warnings", "models", "reasons")
    assert not [p for p, v in walk(d) if v is None and p.split("/")[-1] in lists]


def test_statuses(documents: dict[str, dict[str, Any]]) -> None:
    expected = {"decided": "decided", "none": "none", "inconclusive": "inconclusive", "empty": "inconclusive"}
    expected |= {"linked": "decided", "unrelated": "decided", "untested": "inconclusive"}
    assert {kind: documents[kind]["status"] for kind in expected} == expected


@pytest.mark.parametrize("kind", ["decided", "none", "inconclusive", "empty", "cut"])
def test_fields_of_a_query(documents: dict[str, dict[str, Any]], kind: str) -> None:
    d = documents[kind]
    assert d["schema"] == "provindex.query/1" and d["query"].keys() >= QUERY
    assert d["index"].keys() >= {"id", "revision", "built", "models", "fingerprint_version"}
    for m in (*d["matches"], *d["candidates"]):
        assert m.keys() >= MATCH and m["retrieval"].keys() == {"rank", "score"}
        check_pair(m)
    assert {m["verdict"] for m in d["matches"]} <= {"linked"}
    assert "linked" not in {m["verdict"] for m in d["candidates"]}
    for family in d["families"]:
        assert family.keys() == {"family", "best_model_id", "matches", "models", "log10_p"}


@pytest.mark.parametrize("kind", ["linked", "unrelated", "untested"])
def test_fields_of_a_comparison(documents: dict[str, dict[str, Any]], kind: str) -> None:
    d = documents[kind]
    assert d["schema"] == "provindex.compare/1" and d.keys() >= PAIR
    assert d["a"].keys() >= QUERY <= d["b"].keys() and d["retrieval"] is None
    check_pair(d)


def check_pair(d: dict[str, Any]) -> None:
    assert list(d["signals"]) == SIGNALS and list(d["evidence"]) == EVIDENCE
    for signal in d["signals"].values():
        assert signal.keys() >= ({"value", "chance", "n"} if signal["value"] is not None else {"value", "reason"})
    for test in d["evidence"].values():
        wanted = {"value", "n", "log10_p", "chance"} if test["value"] is not None else {"value", "reason"}
        assert test.keys() >= wanted
    assert d["pipeline_score"] is None or 0 <= d["pipeline_score"] <= 1
    for run in d["layer_map"]:
        assert run.keys() >= {"from", "to", "log10_p"} and len(run["from"]) == len(run["to"]) == 2
    if d["verdict"] == "linked":
        assert d["relation"] in RELATIONS and d["direction"] in ("ancestor", "descendant", "unknown")
        assert 0 <= d["confidence"] <= 1 and d["e_value"] <= 1e-3
    else:
        assert d["relation"] is d["direction"] is None


def test_direction_is_the_candidates_role_in_a_query_and_a_s_in_a_comparison(
    documents: dict[str, dict[str, Any]], made: dict[str, Fingerprint]
) -> None:
    linked = documents["linked"]
    assert (linked["relation"], linked["direction"]) == ("pruned", "unknown")  # or the parent was grown
    deep = prints.fingerprint(zoo.repeat_layers(zoo.llama(0, layers=3, hidden=64), (0, 1, 0, 1, 2)), "org/deep")
    shallow = prints.fingerprint(zoo.llama(0, layers=3, hidden=64), "org/shallow")
    assert compare(deep, shallow).direction == "descendant"
    asked = document.query_document(Index.build([shallow]).query(deep))
    assert [m["direction"] for m in asked["matches"]] == ["ancestor"]


def test_a_tiny_e_value_is_zero_and_its_logarithm_stays(documents: dict[str, dict[str, Any]]) -> None:
    for m in documents["decided"]["matches"]:
        assert (m["e_value"] == 0.0) == (m["log10_e"] <= -308) and m["log10_e"] < 0


def test_to_json_is_the_document(made: dict[str, Fingerprint]) -> None:
    result = Index.build(made.values()).query(made["org/child"])
    assert result.to_json() == document.dumps(document.query_document(result))


# --- text ---


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_lines_fit(documents: dict[str, dict[str, Any]], kind: str, width: int) -> None:
    plain = text.render(documents[kind], width=width)
    assert max(map(len, plain.splitlines())) <= width
    assert plain.endswith("\n") and "\x1b" not in plain and not re.search(r" +\n", plain)
    bold = text.render(documents[kind], width=width, color=True)
    assert re.sub(r"\x1b\[[01]m", "", bold) == plain and "\x1b[1m" in bold


def test_a_terminal_of_one_column_gets_sixty(documents: dict[str, dict[str, Any]]) -> None:
    assert text.render(documents["decided"], width=1) == text.render(documents["decided"], width=60)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("decided", "Family: org/parent (2 of its 5 models in this index matched"),
        ("decided", "2 matches of 4 candidates; the next candidate, org/stranger, is at chance level."),
        (
            "decided",
            "1 of 4 could not be tested (-v lists them): residual widths differ; the MLPs are of different kinds.",
        ),
        ("cut", "2 matches of 4 candidates (1 shown)"),
        ("none", "No ancestor in this index: 1 candidate re-verified, none above chance."),
        ("none", "Trained from scratch, or its base is not among"),
        ("inconclusive", "Not decided: 0 of 1 model could be tested."),
        ("inconclusive", "it clears nothing.\n1 of 1 could not be tested (-v lists them): residual widths differ"),
        ("empty", "Not decided: the index has no other model to compare with."),
        ("linked", "Linked: org/pruned and org/parent share weights (pruned, log10 p"),
        ("linked", "peer-compatible, not decisive"),
        ("unrelated", "Unrelated: no evidence that org/child and org/stranger share weights"),
        ("untested", "Inconclusive: org/child and org/narrow could not be tested."),
        ("fingerprint", "written  child.parquet"),
        ("status", "zoo@unsaved: 5 models, 1 family"),
        ("verified", "every digest, row and vector is right"),
        ("damaged", "damaged: data/models/x.parquet: its sha256 is not the manifest's"),
        ("built", "added org/a\n1 model already there\n1 failed"),
    ],
)
def test_sentences(documents: dict[str, dict[str, Any]], kind: str, said: str) -> None:
    assert said in text.render(documents[kind])


def test_every_column_is_there_where_there_is_room_and_ids_are_never_cut(documents: dict[str, dict[str, Any]]) -> None:
    wide = text.render(documents["decided"]).splitlines()[0]
    assert re.split(r"  +", wide.strip()) == [
        "MODEL", "RELATION", "ROLE", "CERTAINTY", "E-VALUE", "LICENSE", "CLAIMED PARENT (SOURCE)",
    ]  # fmt: skip
    for width in (60, 80):
        narrow = text.render(documents["decided"], width=width)
        assert "org/parent" in narrow and "RELATION" in narrow and "CLAIMED" not in narrow
    long = json.loads(json.dumps(documents["decided"]).replace("org/parent", "org/" + "p" * 70))
    assert "org/" + "p" * 70 in text.render(long, width=80)
    assert "ROLE" in text.render(long, width=80)


def with_shown(document: dict[str, Any], *shown: str) -> dict[str, Any]:
    return {**document, "settings": {**document["settings"], "shown": list(shown)}}


def test_the_default_table_says_what_a_match_is_and_signals_wait_until_they_are_asked_for(
    documents: dict[str, dict[str, Any]],
) -> None:
    match = {**documents["decided"]["matches"][0], "direction": "ancestor", "license": "mit"}
    match |= {"claimed_parents": [{"model_id": "acme/root", "source": "model"}]}
    plain = text.render({**documents["decided"], "matches": [match]})
    row = re.split(r"  +", plain.splitlines()[1].strip())
    assert row[1:4] == ["finetune", "is its ancestor", "beyond doubt"] and row[5:] == ["mit", "acme/root (own files)"]
    assert not any(name in plain for name in SIGNALS)
    asked = text.render(with_shown(documents["decided"], "signals")).splitlines()
    assert asked[4].split() == ["SIGNALS", "WVC", "EAS", "LEP", "NLF", "END", "VOA", "TFV", "MFI"]


@pytest.mark.parametrize(
    ("log10_e", "code"),
    [(-300.0, "beyond-doubt"), (-30.0, "beyond-doubt"), (-12.0, "very-strong"), (-3.5, "strong"), (None, "by-rank")],
)
def test_certainty_has_a_code_and_words(made: dict[str, Fingerprint], log10_e: float | None, code: str) -> None:
    a, b = made["org/pruned"], made["org/parent"]
    pair = replace(verdict.compare(a, b), log10_e=log10_e)
    d = document.compare_document(Comparison(a, b, pair, Index.build(()).info, {}))
    assert d["certainty"] == code and code in CERTAINTIES
    unrelated = document.compare_document(
        Comparison(a, b, verdict.compare(a, made["org/narrow"]), Index.build(()).info, {})
    )
    assert unrelated["certainty"] is None


def test_what_could_not_be_tested_is_listed_when_asked_for(documents: dict[str, dict[str, Any]]) -> None:
    plain = text.render(documents["decided"])
    assert "neuron_signs" not in plain and "org/narrow: " not in plain
    assert "  org/narrow: residual widths differ (64 and 32)" in text.render(
        with_shown(documents["decided"], "untested")
    )


# --- chance levels beside every value ---


def test_a_signal_has_its_chance_level_and_whether_it_is_above(calibrated: dict[str, dict[str, Any]]) -> None:
    d = json.loads(document.dumps(calibrated["compare"]))
    check_pair(d)
    for name, signal in d["signals"].items():
        chance = signal["chance"]
        assert chance["stratum"] == STRATUM and chance["n"] == (600 if name == "WVC" else 1200)
        assert 0 <= chance["median"] < chance["p99"] <= 1 and "chance_reason" not in signal
        if name == "WVC":
            assert chance["p999"] is signal["above_chance"] is None
            assert chance["reason"] == "600 unrelated pairs of this kind, a 99.9th percentile needs 1,000"
        else:
            assert signal["above_chance"] is (signal["value"] > chance["p999"]) and "reason" not in chance
    null = d["evidence"]["branch_sketch"]["null"]
    assert null["stratum"] == STRATUM and null["n"] == 1200 and null["p999"] < 0.1
    assert "null" not in d["evidence"]["bit_reuse"]


def test_without_a_calibration_every_signal_says_so(made: dict[str, Fingerprint]) -> None:
    a, b = made["org/pruned"], made["org/parent"]
    d = document.compare_document(Comparison(a, b, verdict.compare(a, b), Index.build(()).info, {}))
    values = [signal for signal in d["signals"].values() if signal["value"] is not None]
    assert len(values) >= 8
    for signal in values:
        assert signal["chance"] is None and "no calibration" in signal["chance_reason"]
    shown = text.render(d, width=60)
    assert "  CHANCE -: this index has no calibration" in shown and max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
@pytest.mark.parametrize("kind", ["query", "compare"])
def test_lines_with_chance_levels_fit(calibrated: dict[str, dict[str, Any]], kind: str, width: int) -> None:
    plain = text.render(calibrated[kind], width=width)
    assert max(map(len, plain.splitlines())) <= width and not re.search(r" +\n", plain)


def test_the_table_of_signals_shows_chance_and_what_is_above_it(calibrated: dict[str, dict[str, Any]]) -> None:
    shown = text.render(calibrated["compare"], width=140)
    chance = calibrated["compare"]["signals"]["EAS"]["chance"]
    eas = next(line for line in shown.splitlines() if line.startswith("  EAS"))
    assert eas.split()[2:4] == [f"{chance['median']:.3f}..{chance['p999']:.3f}", "yes"]
    wvc = next(line for line in shown.splitlines() if line.startswith("  WVC"))
    assert wvc.split()[2].endswith("*") and wvc.split()[3] == "-"
    sketch = next(line for line in shown.splitlines() if line.startswith("  branch_sketch"))
    assert ".." in sketch.split()[2]
    assert f"CHANCE: median..99.9 % of 1,200 unrelated pairs ({STRATUM})" in shown
    assert "*: 99 %, not 99.9 %: 600 unrelated pairs of this kind" in shown


@pytest.mark.parametrize("width", [80, 140])
def test_a_query_s_table_ends_with_the_level_of_unrelated_pairs(
    calibrated: dict[str, dict[str, Any]], width: int
) -> None:
    d = with_shown(calibrated["query"], "signals")
    lines = text.render(d, width=width).splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("  SIGNALS")) :]
    last = lines[len(d["matches"]) + 1]
    assert last.startswith("  unrelated pairs, 99.9 %") and lines[len(d["matches"]) + 2] == ""
    at = lines[0].index("EAS") + 3  # right-aligned
    assert last[:at].endswith(f"{d['matches'][0]['signals']['EAS']['chance']['p999']:.3f}")
    assert "-" in last.split()


def test_what_was_undone_and_what_tells_the_direction_is_said(documents: dict[str, dict[str, Any]]) -> None:
    linked = documents["linked"]
    assert linked["undone"] == [] == documents["unrelated"]["undone"]
    said = text.render(
        {**linked, "relation": "laundered", "direction": "descendant", "log10_p": None,
         "direction_reasons": ["fewer layers"],
         "undone": ["neurons reordered", "residual basis rotated or norms folded"]}
    )  # fmt: skip
    assert "Linked: org/pruned descends from org/parent (laundered).\n" in said
    assert "  undone to see it: neurons reordered, residual basis rotated or norms folded\n" in said
    assert "  direction: fewer layers\n" in said
