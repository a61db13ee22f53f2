"""Which rows a query compares: copies once, relatives to their end, and what is named in any case."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import zoo
from prints import fingerprint

from provindex.common.reasons import Code
from provindex.fingerprint.record import Fingerprint
from provindex.index import candidates
from provindex.index.collection import Index
from provindex.report import text
from provindex.report.document import query_document

SHAPE = {"layers": 3, "hidden": 64}


@cache
def base() -> zoo.Checkpoint:
    return zoo.llama(1, **SHAPE)


@cache
def made(seed: int, cosine: float) -> Fingerprint:
    return fingerprint(zoo.finetune_noise(base(), cosine, seed), f"org/child{seed}")


def named(fp: Fingerprint, model_id: str) -> Fingerprint:
    return replace(fp, model_id=model_id)


def strangers(count: int) -> list[Fingerprint]:
    return [fingerprint(zoo.llama(100 + i, **SHAPE), f"org/stranger{i}") for i in range(count)]


def test_uploads_of_one_model_take_one_place() -> None:
    """A dozen copies of a near sibling come before the ancestor in the search; five are compared."""
    sibling, query = made(2, 0.999), made(3, 0.999)
    crowd = [named(sibling, f"copy/{i:02}") for i in range(12)]
    index = Index.build([*crowd, named(fingerprint(base()), "org/ancestor"), *strangers(6)])
    found = index.query(query, candidates=5)
    first = {m.entry.model_id: m for m in found.linked}
    (copy,) = set(first) - {"org/ancestor"}
    copies = {entry.model_id for entry in first[copy].copies}
    assert {copy, *copies} == {fp.model_id for fp in crowd} and not first["org/ancestor"].copies
    document = query_document(found)
    assert sum(f["matches"] for f in document["families"]) == 13
    assert "(and 11 copies)" in text.render(document) and "13 matches of" in text.render(document)


def test_what_says_that_it_is_a_copy_and_does_not_link_hides_nobody() -> None:
    """A row with the content hash and the search vector of the ancestor, and panels of noise, comes first by its id."""
    parent = fingerprint(base(), "org/parent")
    forged = replace(
        fingerprint(zoo.llama(77, **SHAPE), "a/forged"), content_sha256=parent.content_sha256, facts=parent.facts
    )
    index = Index.build([forged, parent, *strangers(3)])
    for entry in index:  # the forger writes what the search reads as well
        if entry.model_id == "a/forged":
            entry.rows.vectors[:] = index.find("org/parent")[0].vector
    found = index.query(made(3, 0.99), candidates=1)
    assert [m.entry.model_id for m in found.linked] == ["org/parent"]


def test_relatives_are_compared_to_their_end() -> None:
    family = [made(seed, 0.99) for seed in range(10, 24)]
    index = Index.build([*family, *strangers(14)])
    found = index.query(named(fingerprint(base()), "q"), candidates=6)
    assert len(found.linked) == len(family) and not [w for w in found.warnings if w.code is Code.MORE_RELATIVES]
    assert len(found.candidates) < 14  # and no further than that
    alone = index.query(fingerprint(zoo.llama(50, **SHAPE), "q"), candidates=6)
    assert not alone.linked and len(alone.candidates) == 6


def test_where_relatives_do_not_end_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_CANDIDATES", 12)
    index = Index.build([made(seed, 0.99) for seed in range(10, 26)])
    found = index.query(named(fingerprint(base()), "q"), candidates=6)
    assert len(found.linked) == 12 and [w.code for w in found.warnings][-1] is Code.MORE_RELATIVES


def test_the_upload_that_the_catalogue_knows_is_named() -> None:
    parent = fingerprint(base(), "a/upload")
    index = Index.build([parent, named(parent, "openai-community/gpt2"), *strangers(2)])
    (match,) = index.query(made(3, 0.99)).linked
    assert match.entry.model_id == "openai-community/gpt2" and [e.model_id for e in match.copies] == ["a/upload"]


def test_what_is_named_is_compared_on_its_own() -> None:
    sibling = made(2, 0.999)
    index = Index.build([*(named(sibling, f"copy/{i}") for i in range(5)), *strangers(8)])
    asked = index.query(made(3, 0.999), candidates=1, also=["copy/3"])
    assert {m.entry.model_id for m in asked.linked} > {"copy/3"}
    assert "copy/3" not in {label for m in asked.linked for label in (e.model_id for e in m.copies)}
    claimed = index.query(fingerprint(zoo.llama(50, **SHAPE), "q"), candidates=1, claims={"org/stranger5": ("card",)})
    assert "org/stranger5" in {m.entry.model_id for m in claimed.candidates}
