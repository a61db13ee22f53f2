"""Answers as documents and as text: the fields of the contract, and lines that fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import prints
import pytest
import zoo

from provindex.api import Comparison, compare
from provindex.build import Built
from provindex.fingerprint import Fingerprint
from provindex.index import Index, Problem
from provindex.report import document, text

SIGNALS = ["MFI", "TFV", "VOA", "EAS", "NLF", "LEP", "END", "WVC"]
EVIDENCE = [
    "bit_reuse", "hidden_fixed_points", "hidden_alignment", "residual_fixed_points", "residual_gram",
    "triple_agreement", "branch_sketch",
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
        "org/narrow": zoo.llama(5, hidden=32, heads=2, kv_heads=1, intermediate=96),
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
    assert documents["linked"]["relation"] == "pruned" and documents["linked"]["direction"] == "descendant"
    asked = document.query_document(Index.build([made["org/parent"]]).query(made["org/pruned"]))
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
        ("decided", "1 of 4 could not be tested: residual widths differ."),
        ("cut", "2 matches of 4 candidates (1 shown)"),
        ("none", "No ancestor in this index: 1 candidate re-verified, none above chance."),
        ("none", "Its base is not among these."),
        ("inconclusive", "Inconclusive: the only candidate could not be tested.\n  residual widths differ"),
        ("empty", "Inconclusive: the index has no other model to compare with."),
        ("linked", "Linked: org/pruned descends from org/parent (pruned, log10 p"),
        ("linked", "it decides nothing"),
        ("unrelated", "Unrelated: no evidence that org/child and org/stranger share weights"),
        ("untested", "Inconclusive: org/child and org/narrow could not be tested."),
        ("fingerprint", "written  child.parquet"),
        ("status", "zoo@unsaved: 5 models, 1 family"),
        ("verified", "every digest, row and vector is right"),
        ("damaged", "damaged: data/models/x.parquet: its sha256 is not the manifest's"),
        ("built", "added org/a\n1 model already there\n1 failed: c"),
    ],
)
def test_sentences(documents: dict[str, dict[str, Any]], kind: str, said: str) -> None:
    assert said in text.render(documents[kind])


def test_every_column_is_there_where_there_is_room_and_ids_are_never_cut(documents: dict[str, dict[str, Any]]) -> None:
    wide = text.render(documents["decided"]).splitlines()[0].split()
    assert wide == [
        "MODEL",
        "RELATION",
        "DIRECTION",
        "E-VALUE",
        "WVC",
        "EAS",
        "LEP",
        "NLF",
        "END",
        "VOA",
        "TFV",
        "MFI",
        "LICENSE",
    ]
    for width in (60, 80):
        narrow = text.render(documents["decided"], width=width)
        assert "org/parent" in narrow and "WVC" in narrow
    long = json.loads(json.dumps(documents["decided"]).replace("org/parent", "org/" + "p" * 70))
    assert "org/" + "p" * 70 in text.render(long, width=80)
    assert "WVC    EAS" in text.render(long, width=80)
