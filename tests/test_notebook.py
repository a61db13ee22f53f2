"""Answers in Python: short representations, small escaped HTML, and records that a table takes."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import zoo
from prints import fingerprint

from provindex import api
from provindex.api import Comparison, Index, QueryResult
from provindex.fingerprint.record import Fingerprint

EVIL = "org/<script>alert(1)</script>\x1b[2J"
TAGS = {"div", "table", "thead", "tbody", "tr", "th", "td", "p", "br"}


@pytest.fixture(scope="module")
def made() -> dict[str, Fingerprint]:
    parent = zoo.llama(1, layers=2)
    return {
        "parent": replace(fingerprint(parent, EVIL), license="<b>mit</b>", parents=("a/<i>",)),
        "child": fingerprint(zoo.finetune_noise(parent, 0.98, 2), "org/child"),
        "stranger": fingerprint(zoo.llama(3, layers=2), "org/stranger"),
    }


@pytest.fixture(scope="module")
def result(made: dict[str, Fingerprint]) -> QueryResult:
    return Index.build([made["parent"], made["stranger"]], name="zoo").query(made["child"])


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def check_html(html: str) -> None:
    tags = Tags(html).found
    assert {tag for tag, _ in tags} <= TAGS and all(not attrs for _, attrs in tags)
    assert len(html) < 20_000 and "\x1b" not in html


def test_html_is_small_escaped_and_asks_nobody(result: QueryResult, made: dict[str, Fingerprint]) -> None:
    html = result._repr_html_()
    check_html(html)
    assert "&lt;script&gt;" in html and "&lt;b&gt;mit" in html and "a/&lt;i&gt; (own files)" in html
    assert "1 match of 2 candidates" in html
    pair = api.compare(made["child"], made["parent"])
    comparison = Comparison(made["child"], made["parent"], pair, result.index, {})
    for text in (pair._repr_html_(), comparison._repr_html_()):
        check_html(text)
        assert "Linked: " in text
    assert "&lt;script&gt;" in comparison._repr_html_()
    none = Index.build([made["stranger"]]).query(made["child"])._repr_html_()
    check_html(none)
    assert "No ancestor in this index" in none and "<table>" not in none


def test_many_matches_stay_a_small_table(made: dict[str, Fingerprint]) -> None:
    rows = [replace(made["parent"], model_id=f"org/{i}", content_sha256=None) for i in range(3)]
    many = Index.build(rows).query(made["child"], top=10)
    wide = replace(many, linked=many.linked * 100, top=500)
    html = wide._repr_html_()
    check_html(html)
    assert html.count("<tr>") == 21


def test_representations_are_short(result: QueryResult, made: dict[str, Fingerprint]) -> None:
    pair = api.compare(made["child"], made["stranger"])
    comparison = Comparison(made["child"], made["stranger"], pair, result.index, {})
    index = Index.build([made["stranger"]], name="zoo")
    shown = [repr(one) for one in (result, result.matches[0], pair, comparison, made["child"], index)]
    assert all(len(text) < 200 and re.fullmatch(r"<\w+ .*>", text, re.DOTALL) for text in shown)
    assert not any("\x1b" in text for text in shown)
    assert repr(made["child"]) == "<Fingerprint org/child: llama, 114,624 parameters, exact>"
    assert shown[0].startswith("<QueryResult org/child: decided, 1 linked of 2, first org/") and shown[5].endswith(
        ": 1 models>"
    )


def test_records_are_flat_and_name_what_they_are(result: QueryResult, made: dict[str, Fingerprint]) -> None:
    first, second = result.records()
    assert (first["query"], first["match"], first["model_id"], first["certainty"]) == (
        "org/child",
        True,
        EVIL,
        "beyond-doubt",
    )
    assert (second["match"], second["model_id"], second["relation"]) == (False, "org/stranger", None)
    assert first.keys() == second.keys() and first["WVC"] == result.matches[0].pair.signals["WVC"].value
    assert first["claimed_parents"] == "a/<i>"
    pair = api.compare(made["child"], made["parent"])
    (alone,) = pair.records()
    (both,) = Comparison(made["child"], made["parent"], pair, result.index, {}).records()
    assert (both["a"], both["b"], both["verdict"]) == ("org/child", EVIL, "linked") and alone["log10_p"] == both[
        "log10_p"
    ]
    rows = Index.build(made.values()).records()
    assert [row["model_id"] for row in rows] == sorted([EVIL, "org/child", "org/stranger"]) and rows[0]["parameters"]
    for record in (first, second, alone, both, *rows):
        assert all(value is None or isinstance(value, str | int | float) for value in record.values())


def test_pandas_takes_them(result: QueryResult) -> None:
    pandas = pytest.importorskip("pandas")  # comes with datasets
    frame = pandas.DataFrame(result.records())
    assert list(frame["match"]) == [True, False] and frame.loc[0, "relation"] == "finetune"


def test_to_json_of_a_comparison_is_its_document(result: QueryResult, made: dict[str, Fingerprint]) -> None:
    pair = api.compare(made["child"], made["parent"])
    comparison = Comparison(made["child"], made["parent"], pair, result.index, {})
    assert comparison.to_json().startswith('{\n  "schema": "provindex.compare/1"')
