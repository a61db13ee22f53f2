"""`provindex explain`: every word that an answer may have is explained, from the tables that answers are made with."""

from __future__ import annotations

import json

import pytest
from commands import run, run_closed
from test_report import RELATIONS

from provindex.audit.gate import STATES
from provindex.common.errors import UsageError
from provindex.common.reasons import Code
from provindex.evidence.table import TESTS
from provindex.report import text
from provindex.report.explain import explain_document, meanings
from provindex.report.words import CERTAINTIES, ROLES
from provindex.signals.table import SIGNALS

WORDS = [
    *Code, *(signal.name for signal in SIGNALS), *(test.name for test in TESTS), *sorted(RELATIONS), "shared-init",
    *STATES, *CERTAINTIES, "linked", "unrelated", "inconclusive",
    *("ancestor", "descendant", "unknown", "decided", "none"),
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_every_word_of_an_answer_is_explained(word: str) -> None:
    found = explain_document([str(word)])["explained"]
    assert found and all(len(one["meaning"]) >= 8 and one["code"] == word for one in found)


def test_no_two_meanings_of_a_word_are_of_one_kind() -> None:
    named = [(one["code"].lower(), one["kind"]) for one in meanings()]
    assert len(named) == len(set(named)) and set(ROLES) - {"identical"} <= {word for word, _ in named}


def test_a_signal_says_that_it_never_decides_and_a_test_what_it_may_do() -> None:
    (wvc,), (e1,) = (explain_document([word])["explained"] for word in ("wvc", "hidden_fixed_points"))
    assert wvc["meaning"].startswith("WVC, weight value cosine") and "never decides" in wvc["meaning"]
    assert "Its p-value counts" in e1["meaning"]


@pytest.mark.parametrize(
    ("word", "near"), [("width-differ", "widths-differ"), ("neuron-signs", "neuron_signs"), ("finetuned", "finetune")]
)
def test_a_wrong_word_is_met_by_suggestions(word: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"No answer has the word {word}\. Did you mean .*{near}"):
        explain_document([word])


def test_explain_as_people_run_it() -> None:
    ran = run("explain", "widths-differ", "beyond doubt")
    assert ran.status == 0 and ran.out.startswith("widths-differ (reason)\n  residual widths differ") and ran.err == ""
    document = json.loads(run("explain", "E-value", "--json").out)
    assert (document["schema"], document["explained"][0]["code"]) == ("provindex.explain/1", "e-value")
    wrong = run("explain", "nothing-like-it-at-all")
    assert (wrong.status, wrong.out) == (2, "") and wrong.err.count("\n") == 1
    assert max(map(len, text.render(explain_document(["neuron_signs"]), width=60).splitlines())) <= 60


def test_it_opens_no_index_and_no_socket() -> None:
    ran = run_closed(["faiss", "pyarrow", "huggingface_hub"], "explain", "WVC")
    assert ran.status == 0 and ran.err == "imported: \n"
