"""Audits of models whose truth is known: what cards claim, what weights say, which licenses stand above."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import audit_models as made
import gguf_models
import pytest
from commands import run
from hub_server import Hub

from provindex import api
from provindex.api import Index, resolve
from provindex.audit import licenses
from provindex.audit.findings import SEVERITIES, Audit
from provindex.audit.licenses import CELLS, clashes, names, table, terms_of
from provindex.common.reasons import Code
from provindex.fingerprint.record import Fingerprint
from provindex.models.card import MOST, card_of
from provindex.report.document import audit_document
from provindex.report.words import SENTENCES

Rows = dict[str, Fingerprint]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return made.rows(tmp_path_factory.mktemp("rows"))


def indexed(rows: Rows, **said: str) -> Index:
    """An index of rows by name; said: the license of each. `base` states itself as the root of its family."""
    family = {"base": "org/base"}
    return made.index_of(*(replace(rows[n], license=one, family=family.get(n)) for n, one in said.items()))


def codes(found: Audit) -> list[str]:
    return [one.code for one in found.findings]


def statuses(found: Audit) -> dict[str, str]:
    return {one.claim.value: one.status for one in found.claims if one.claim.kind != "architecture"}


def about(found: Audit, code: str) -> set[str]:
    return {model for one in found.findings if one.code == code for model in one.model_ids}


def test_a_true_card_has_no_finding(rows: Rows, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "child", "left", "license: apache-2.0\nbase_model: org/base")
    index = indexed(rows, base="apache-2.0", stranger="mit", right="mit", grandchild="mit")
    found = made.audited(folder, index)
    assert (codes(found), found.exit_status(strict=True)) == ([], 0)
    assert statuses(found) == {"org/base": "confirmed", "apache-2.0": "confirmed"}
    assert {one.status for one in found.claims if one.claim.kind == "architecture"} == {"confirmed"}
    assert [(link.model_id, link.role, link.by) for link in found.chain] == [
        ("child", "model", ""), ("org/base", "ancestor", "weights"),
    ]  # fmt: skip


def test_a_link_that_no_claim_explains_is_not_passed_over(rows: Rows, tmp_path: Path) -> None:
    """The weights do not say which came first, nobody states a root, and what the card names is not to be had."""
    index = made.index_of(replace(rows["base"], license="cc-by-nc-4.0", family=None))
    folder = made.write(tmp_path / "child", "left", "license: apache-2.0\nbase_model: org/absent")
    found = made.audited(folder, index)
    assert [link.entry.model_id for link in found.result.linked] == ["org/base"]
    assert found.result.linked[0].direction == "unknown"
    assert about(found, "base-model-missing") == {"org/base"} and found.exit_status(strict=True) == 3
    assert statuses(found) == {"org/absent": "not_testable", "apache-2.0": "not_testable"}
    assert [(link.model_id, link.sure) for link in found.chain][:2] == [("child", True), ("org/base", False)]


def test_naming_the_parent_is_enough_and_naming_the_grandparent_is_not(rows: Rows, tmp_path: Path) -> None:
    index = indexed(rows, base="mit", left="mit")
    parent = made.write(tmp_path / "parent", "grandchild", "license: mit\nbase_model: org/left")
    assert codes(made.audited(parent, index)) == []
    root = made.audited(made.write(tmp_path / "root", "grandchild", "license: mit\nbase_model: org/base"), index)
    assert codes(root) == ["base-model-missing"] and about(root, "base-model-missing") == {"org/left"}
    assert root.exit_status() == 0, "other relatives tell which came first: a warning, and no accusation"
    strict = indexed(rows, base="mit", left="cc-by-nc-4.0")
    open_one = made.audited(made.write(tmp_path / "open", "grandchild", "license: mit\nbase_model: org/base"), strict)
    assert codes(open_one) == ["base-model-missing", "not-testable"] and open_one.exit_status(strict=True) == 3
    assert statuses(open_one) == {"org/base": "confirmed", "mit": "not_testable"}


def test_another_upload_of_the_claimed_base_is_explained(rows: Rows, tmp_path: Path) -> None:
    """Copies of the base, at half precision and on a grid, are linked as well, and nobody has to name them."""
    index = indexed(rows, base="mit", half="mit", int8="mit")
    for number, name in enumerate(("left", "grandchild")):
        folder = made.write(tmp_path / str(number), name, "license: mit\nbase_model: org/base")
        found = made.audited(folder, index)
        assert {match.entry.model_id for match in found.result.linked} == {"org/base", "org/half", "org/int8"}
        assert codes(found) == []


def test_a_lying_card_is_contradicted_by_a_test_with_power(rows: Rows, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "child", "left", "license: mit\nbase_model: org/stranger")
    found = made.audited(folder, indexed(rows, base="mit", stranger="mit"))
    assert statuses(found)["org/stranger"] == "contradicted" and found.exit_status() == 1
    assert about(found, "base-model-contradicted") == {"org/stranger"}
    assert about(found, "base-model-missing") == {"org/base"}, "what it was made of is named"
    assert "org/stranger" not in [link.model_id for link in found.chain], "no license of it binds"


def test_a_claim_that_was_not_tested_is_never_contradicted(rows: Rows, tmp_path: Path) -> None:
    """The claimed model has no row, or weights beside it were left out: then nothing is cleared."""
    absent = made.write(tmp_path / "absent", "stranger", "license: mit\nbase_model: org/nowhere")
    found = made.audited(absent, indexed(rows, base="mit"))
    assert statuses(found)["org/nowhere"] == "not_testable" and found.exit_status() == 0
    assert found.exit_status(strict=True) == 3
    (claim,) = (one for one in found.claims if one.claim.value == "org/nowhere")
    assert claim.reasons[0].code is Code.DENIED_NOT_INDEXED
    assert claim.next_step is not None and claim.next_step.code is Code.NEXT_FETCH
    beside = made.write(tmp_path / "beside", "stranger", "license: mit\nbase_model: org/base")
    (beside / "other.msgpack").write_bytes(os.urandom(1 << 21))
    left = made.audited(beside, indexed(rows, base="mit"))
    assert statuses(left)["org/base"] == "not_testable"
    whole = made.write(tmp_path / "whole", "stranger", "license: mit\nbase_model: org/base")
    assert statuses(made.audited(whole, indexed(rows, base="mit")))["org/base"] == "contradicted"


def test_a_missing_card_is_a_warning_that_names_the_base(rows: Rows, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "child", "left", None, license_text=False)
    found = made.audited(folder, indexed(rows, base="apache-2.0"))
    assert codes(found) == ["base-model-missing", "license-unknown", "obligation-missing"]
    assert about(found, "base-model-missing") == {"org/base"} and found.exit_status(strict=True) == 0
    index = made.index_of(replace(rows["base"], license="cc-by-nc-4.0"))  # whose family nobody states
    silent = made.audited(made.write(tmp_path / "silent", "left", "license: mit"), index)
    assert codes(silent) == ["base-model-missing", "not-testable"], "nothing says which came first: no conflict"


def test_a_model_nobody_is_related_to_has_no_finding_of_descent(rows: Rows, tmp_path: Path) -> None:
    found = made.audited(made.write(tmp_path / "own", "stranger", "license: mit"), indexed(rows, base="gpl-3.0"))
    assert codes(found) == ["not-testable"] and found.exit_status() == 0
    assert len(found.chain) == 1


@pytest.mark.parametrize(
    ("above", "own", "code"),
    [
        ("llama3.1", "apache-2.0", Code.CLASH_LIMITED),
        ("cc-by-nc-4.0", "mit", Code.CLASH_COMMERCIAL),
        ("gpl-3.0", "mit", Code.CLASH_SHARE_ALIKE),
        ("gemma", "mit", Code.CLASH_RESTRICTIONS),
        ("cc-by-nc-nd-4.0", "cc-by-nc-4.0", Code.CLASH_DERIVATIVES),
        ("apache-2.0", "llama3.1", None),
        ("mit", "gpl-3.0", None),
        ("llama3", "llama3.1", None),
    ],
)
def test_a_stricter_ancestor(above: str, own: str, code: Code | None, rows: Rows, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "llama-3-child", "left", f"license: {own}\nbase_model: org/base")
    found = made.audited(folder, indexed(rows, base=above))
    conflicts = [one for one in found.findings if one.code == "license-conflict"]
    assert [one.reason.code for one in conflicts] == ([] if code is None else [code])
    assert statuses(found)[own] == ("confirmed" if code is None else "contradicted")
    assert found.exit_status() == int(code is not None)
    assert all(one.clause_url.startswith("https://") and one.model_ids == ("org/base",) for one in conflicts)


def test_obligations_of_name_and_text(rows: Rows, tmp_path: Path) -> None:
    index = indexed(rows, base="llama3.1")
    fields = "license: llama3.1\nbase_model: org/base"
    bare = made.audited(made.write(tmp_path / "support-7b", "left", fields, license_text=False), index)
    assert codes(bare) == ["obligation-missing"] * 2
    assert {one.reason.code for one in bare.findings} == {Code.TEXT_MISSING, Code.NAME_LACKS}
    kept = made.audited(made.write(tmp_path / "Llama-support-7b", "left", fields), index)
    assert codes(kept) == []
    named = made.write(tmp_path / "support", "left", fields + "\nmodel_name: Llama Support")
    assert codes(made.audited(named, index)) == []
    copy = made.write(tmp_path / "mirror", "base", fields)
    assert codes(made.audited(copy, index)) == [], "a name is asked of what is made of a model, not of its copy"


def test_a_merge_of_two_licenses(rows: Rows, tmp_path: Path) -> None:
    index = indexed(rows, base="apache-2.0", left="mit", right="cc-by-nc-4.0")
    one = made.audited(made.write(tmp_path / "one", "merged", "license: mit\nbase_model: org/left"), index)
    assert codes(one) == ["base-model-incomplete", "license-conflict"]
    assert about(one, "base-model-incomplete") == about(one, "license-conflict") == {"org/right"}
    assert statuses(one)["org/left"] == "incomplete"
    both = "license: cc-by-nc-4.0\nbase_model:\n- org/left\n- org/right"
    assert codes(made.audited(made.write(tmp_path / "both", "merged", both), index)) == []
    recipe = "```yaml\nmodels:\n  - model: org/left\n  - model: org/right\nmerge_method: linear\n```"
    told = made.audited(made.write(tmp_path / "told", "merged", "license: cc-by-nc-4.0", recipe), index)
    assert codes(told) == [] and statuses(told) == dict.fromkeys(("org/left", "org/right", "cc-by-nc-4.0"), "confirmed")
    assert {c.claim.kind for c in told.claims if c.claim.source == "mergekit"} == {"merge_parent"}


def test_a_quantized_upload_and_the_same_weights_under_another_name(rows: Rows, tmp_path: Path) -> None:
    index = indexed(rows, base="cc-by-nc-4.0")
    fields = "license: cc-by-nc-4.0\nbase_model: org/base\nbase_model_relation: quantized"
    true = made.audited(made.write(tmp_path / "int8", "int8", fields), index)
    assert codes(true) == [] and true.stated.relation == "quantized"
    other = made.audited(made.write(tmp_path / "fast", "int8", "license: mit"), index)
    assert codes(other) == ["license-conflict", "base-model-missing"] and other.exit_status() == 1
    copy = made.audited(made.write(tmp_path / "copy", "base", "license: mit"), index)
    assert codes(copy) == ["license-conflict", "base-model-missing"]
    nd = indexed(rows, base="cc-by-nd-4.0")
    itself = made.audited(made.write(tmp_path / "base", "base", "license: cc-by-nd-4.0"), nd)
    assert codes(itself) == [], "the model itself may be passed on, and names itself"


def test_a_sibling_is_not_what_it_claims(rows: Rows, tmp_path: Path) -> None:
    index = indexed(rows, base="mit", left="gpl-3.0")
    found = made.audited(made.write(tmp_path / "right", "right", "license: mit\nbase_model: org/left"), index)
    assert codes(found) == ["base-model-incomplete", "base-model-missing"] and found.exit_status() == 1
    assert about(found, "base-model-incomplete") == {"org/left"} and about(found, "base-model-missing") == {"org/base"}
    assert statuses(found)["org/left"] == "incomplete"
    assert "org/left" not in [link.model_id for link in found.chain], "its license does not bind a sibling"


def test_gguf_metadata(tmp_path: Path) -> None:
    llama = gguf_models.FAMILIES["llama"]
    arrays = gguf_models.weights(llama)
    gguf_models.write_gguf(tmp_path / "base.gguf", llama, arrays)
    read = resolve(tmp_path / "base.gguf").fingerprint
    row = replace(read, model_id="org/base", license="llama3.2", family="org/base")
    folder = tmp_path / "download"
    folder.mkdir()
    path = folder / "quick-q8_0.gguf"
    said = {
        "general.license": "mit", "general.name": "Quick 1B", "general.quantized_by": "somebody",
        "general.base_model.count": 1, "general.base_model.0.repo_url": "https://huggingface.co/org/base",
    }  # fmt: skip
    gguf_models.write_gguf(path, llama, arrays, "Q8_0", said)
    found = made.audited(path, made.index_of(row))
    assert statuses(found) == {"org/base": "confirmed", "mit": "contradicted"}
    assert {c.claim.source for c in found.claims if c.claim.kind == "base_model"} == {"gguf"}
    assert (found.stated.quantized_by, found.stated.names) == ("somebody", ("Quick 1B",))
    assert codes(found) == ["license-conflict", "obligation-missing", "obligation-missing"]
    assert audit_document(found)["model"]["license"] == "mit"


def test_an_adapter_is_not_testable_and_says_how_it_would_be(rows: Rows, tmp_path: Path) -> None:
    found = made.audited(made.adapter(tmp_path / "lora", "org/base"), indexed(rows, base="llama3.1"))
    assert statuses(found) == {"org/base": "not_testable"} and found.exit_status(strict=True) == 3
    (claim,) = (one for one in found.claims if one.claim.kind == "adapter_base")
    assert claim.next_step is not None and claim.next_step.code is Code.NEXT_MERGE
    assert [(link.model_id, link.by) for link in found.chain[1:]] == [("org/base", "claim")]
    assert set(codes(found)) == {"license-unknown", "obligation-missing", "not-testable"}


def test_a_claim_and_a_license_of_its_own_word_clash(rows: Rows, tmp_path: Path) -> None:
    """meta-llama/Llama-3.1-8B has no row here; the catalogue knows its license."""
    folder = made.write(tmp_path / "x", "stranger", "license: apache-2.0\nbase_model: meta-llama/Llama-3.1-8B")
    found = made.audited(folder, indexed(rows, base="mit"))
    (clash,) = (one for one in found.findings if one.code == "license-conflict")
    assert [inner.code for inner in clash.reason.because] == [Code.BY_CLAIM]
    assert found.chain[1].source.startswith("https://") and found.chain[1].role in ("ancestor", "root")


def test_a_row_may_stand_for_a_model_where_that_is_asked_for(rows: Rows) -> None:
    child = replace(rows["left"], license="mit", parents=("org/stranger",))
    index = made.index_of(replace(rows["stranger"], license="mit"), child)
    found = api.audit(index, resolve("org/left", index=index))[1]
    assert not found.own_bytes and statuses(found)["org/stranger"] == "contradicted"
    assert audit_document(found)["warning_codes"][0]["code"] == Code.ROW_TRUSTED


def test_license_files_of_a_model_on_the_hub_are_those_that_are_listed(hub: Hub, rows: Rows, tmp_path: Path) -> None:
    """The cache holds what was asked for, and no license: the listing says that there is one."""
    for name, license_text in (("audit/with", True), ("audit/without", False)):
        folder = made.write(tmp_path / name, "left", "license: mit\nbase_model: org/base", license_text=license_text)
        hub.publish(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        model = resolve(name, own_bytes=True).model
        assert model is not None and model.stated.license_files == (("LICENSE",) if license_text else ())
        found = api.audit(indexed(rows, base="mit"), resolve(name, own_bytes=True))[1]
        assert codes(found) == ([] if license_text else ["obligation-missing"])


def test_files_have_the_digests_of_their_bytes(tmp_path: Path, rows: Rows) -> None:
    folder = made.write(tmp_path / "child", "left", "license: mit")
    (file,) = made.audited(folder, indexed(rows, base="mit")).files
    whole = (folder / "model.safetensors").read_bytes()
    assert (file.name, file.size, file.sha256) == ("model.safetensors", len(whole), hashlib.sha256(whole).hexdigest())


# --- cards ---


def test_what_is_read_of_a_card() -> None:
    card = card_of(
        "---\nlicense: other\nlicense_name: llama3.1\nlicense_link: LICENSE\nbase_model: org/a\n"
        "base_model_relation: finetune\ndatasets:\n- org/d\nmodel_name: N\n---\n"
        "```yaml\nslices:\n- sources:\n  - model: org/b+org/lora\n    layer_range: [0, 8]\nbase_model: org/c # root\n"
        "merge_method: ties\n```\n```yaml\nmodel: org/not-a-recipe\n```\nmodel: org/prose\n"
    )
    assert (card.licenses, card.license_name, card.license_link) == (("other",), "llama3.1", "LICENSE")
    assert (card.base_models, card.relation, card.datasets, card.name) == (("org/a",), "finetune", ("org/d",), "N")
    assert card.parents == ("org/b", "org/c")


@pytest.mark.parametrize(
    "text",
    [
        "---\nbase_model:\n" + "- org/a\n" * 20_000 + "---\n",
        "---\nbase_model: [" + "org/a," * 20_000 + "]\n---\n",
        "```yaml\nmerge_method: x\n" + "".join(f"model: org/{i}\n" for i in range(20_000)) + "```\n",
        "---\nlicense: " + " " * 60_000 + "\n---\n",
        "```\n" * 30_000,
        "-" * 65_536,
    ],
)
def test_a_card_of_a_stranger_is_bounded(text: str) -> None:
    card = card_of(text)
    lists = (card.licenses, card.base_models, card.datasets, card.parents)
    assert all(len(found) <= MOST and all(len(one) <= 200 for one in found) for found in lists)


def test_hostile_licenses_mean_nothing(tmp_path: Path, rows: Rows) -> None:
    for said in ("(" * 200, "mit and", "a" * 200, "mit OR " * 28 + "mit", "\u202egnp", "| `x` |", "other", "None"):
        assert isinstance(terms_of(said), tuple) and len(terms_of(said)) <= licenses.MOST_CHOICES
    folder = made.write(tmp_path / "x", "left", "license: (((\nbase_model: org/base")
    found = made.audited(folder, indexed(rows, base="mit"))
    assert statuses(found)["((("] == "not_testable" and "license-unknown" in codes(found)


# --- the table of licenses ---


def test_the_table_of_licenses_is_whole() -> None:
    assert len(table()) >= 25
    for key, row in table().items():
        assert key == row.id == key.lower() and row.name and row.text.startswith("https://") and row.cells
        assert row.looked >= "2026-12-01" and row.cells.keys() <= set(CELLS)
        assert all(cell.url.startswith("https://") for cell in row.cells.values())
        asked = row.says("share_alike")
        assert asked is None or (isinstance(asked, tuple) and set(asked) <= set(table()))
        assert all(names(terms_of(alias)) == [key] for alias in (key, row.name, row.spdx or key, *row.aliases)
                   if alias != row.name or terms_of(alias))  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"commercial": {"is": "maybe"}}, {"notice": {"is": "yes"}}, {"share_alike": {"is": "mit"}},
        {"naming": {"is": ""}}, {"notice": {"is": True, "page": "x"}}, {"colour": {"is": True}},
    ],
)  # fmt: skip
def test_a_bad_row_of_the_table_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the license x"):
        licenses._license({"id": "x", "name": "X", "text": "https://x", "looked": date(2026, 12, 1), **row})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Apache-2.0 OR MIT", [["apache-2.0"], ["mit"]]),
        ("MIT AND CC-BY-4.0", [["mit", "cc-by-4.0"]]),
        ("GPL-2.0-only WITH Classpath-exception-2.0", [["gpl-2.0"]]),
        ("MIT AND nobody-knows", []),
        ("LicenseRef-scancode-llama-3.1-license-2024", [["llama3.1"]]),
    ],
)
def test_expressions(said: str, meant: list[list[str]]) -> None:
    assert [[one.id for one in choice] for choice in terms_of(said)] == meant


def test_a_choice_that_goes_together_is_no_conflict() -> None:
    assert not clashes(terms_of("MIT OR GPL-3.0"), terms_of("mit"))
    assert clashes(terms_of("MIT AND GPL-3.0"), terms_of("mit"))
    assert not clashes(terms_of("gpl-3.0"), terms_of("mit AND gpl-3.0"))
    assert not clashes(terms_of("gpl-3.0"), ()) and not clashes((), terms_of("mit"))


# --- the command ---


@pytest.fixture(scope="module")
def place(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved index with org/base under llama3.1, and folders of models."""
    root = tmp_path_factory.mktemp("audit")
    indexed(rows, base="llama3.1", stranger="mit").save(root / "index")
    made.write(root / "true", "left", "license: llama3.1\nbase_model: org/base\nmodel_name: Llama true")
    made.write(root / "lying", "left", "license: apache-2.0\nbase_model: org/stranger")
    made.write(root / "open", "stranger", "license: mit\nbase_model: org/nowhere")
    return root


def test_exit_statuses_and_lines(place: Path) -> None:
    index = ("--index", place / "index", "-q")
    assert run("audit", place / "true", *index).status == 0
    assert run("audit", place / "lying", *index).status == 1
    assert (run("audit", place / "open", *index).status, run("audit", place / "open", *index, "--strict").status) == (
        0,
        3,
    )
    stdin = f"{place / 'true'}\n{place / 'lying'} # a comment\n{place / 'nothing'}\n{place / 'open'}\n"
    ran = run("audit", "-", *index, "--jsonl", "--strict", stdin=stdin)
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.status == 2 and [line["exit_status"] for line in lines] == [0, 1, 2, 3]
    assert [line["schema"] for line in lines] == [
        "provindex.audit/1", "provindex.audit/1", "provindex.error/1", "provindex.audit/1"
    ]  # fmt: skip
    assert run("audit", place / "true", place / "lying", *index, "-f", "sarif").status == 2


def test_the_document_keeps_the_contract(place: Path) -> None:
    ran = run("audit", place / "lying", "--index", place / "index", "--json", SOURCE_DATE_EPOCH="86400")
    d = json.loads(ran.out)
    assert d["schema"] == "provindex.audit/1" and d["date"] == "1970-01-02" and d["status"] == "decided"
    for name in ("matches", "claims", "license_chain", "findings", "left_out", "warnings"):
        assert isinstance(d[name], list)
    assert all(f.keys() >= {"code", "severity", "text", "model_ids", "clause_url"} for f in d["findings"])
    assert all(f["severity"] == SEVERITIES[f["code"]] for f in d["findings"])
    assert {c["kind"] for c in d["claims"]} == {"base_model", "license", "architecture"}
    assert all(c.keys() >= {"kind", "value", "source", "status", "reasons"} for c in d["claims"])
    assert d["license_chain"][0]["role"] == "model"
    assert all(r.keys() >= {"model_id", "license", "source", "role"} for r in d["license_chain"])
    assert "error  base-model-contradicted" in ran.err and str(place) not in ran.out
    again = run("audit", place / "lying", "--index", place / "index", "--json", SOURCE_DATE_EPOCH="86400")
    assert again.out == ran.out, "the same input, the same bytes"


def test_a_fingerprint_file_is_no_model_to_audit(place: Path, tmp_path: Path) -> None:
    made_file = tmp_path / "x.parquet"
    assert run("fingerprint", place / "true", "-q", "-o", made_file).status == 0
    refused = run("audit", made_file, "--index", place / "index")
    assert refused.status == 2 and "Only a model's own weights count here" in refused.err
    assert run("audit", made_file, "--index", place / "index", "--trust-index", "-q").status == 0


def test_sampled_reading_has_file_digests_and_says_how_it_was_read(place: Path, tmp_path: Path) -> None:
    statement = tmp_path / "s.intoto.json"
    ran = run("audit", place / "true", "--index", place / "index", "--mode", "sampled", "-q", "--report", statement)
    subject = json.loads(statement.read_text())["subject"]
    digest = hashlib.sha256((place / "true" / "model.safetensors").read_bytes()).hexdigest()
    assert (ran.status, subject) == (0, [{"name": "true/model.safetensors", "digest": {"sha256": digest}}])
    assert "fingerprint sha256" in ran.out and "read sampled" in ran.out.replace("\n", " ")


def test_fetch_reads_what_is_claimed(hub: Hub, place: Path, tmp_path: Path, rows: Rows) -> None:
    folder = made.write(tmp_path / "base", "base", "license: mit")
    hub.publish("audit/base", {path.name: path.read_bytes() for path in folder.iterdir()})
    child = made.write(tmp_path / "child", "left", "license: mit\nbase_model: audit/base")
    before = json.loads(run("audit", child, "--index", place / "index", "--json", "-q").out)
    ran = run(
        "audit", child, "--index", place / "index", "--fetch", 1, "--json", "-q", PROVINDEX_CACHE=str(tmp_path / "c")
    )
    after = json.loads(ran.out)
    status = [[c["status"] for c in d["claims"] if c["value"] == "audit/base"] for d in (before, after)]
    assert status == [["not_testable"], ["confirmed"]]


SNAPSHOTS = os.environ.get("PROVINDEX_REAL_MODELS")  # as in conftest.py


@pytest.mark.real
@pytest.mark.skipif(not SNAPSHOTS, reason="PROVINDEX_REAL_MODELS is not set")
def test_no_error_is_invented_on_real_models() -> None:
    index = Index.load("embedded")
    for folder in sorted(p for p in Path(str(SNAPSHOTS)).iterdir() if p.is_dir()):
        found = made.audited(folder, index)
        assert not [one for one in found.findings if one.severity == "error"], folder.name


def test_every_finding_code_has_a_severity_and_every_reason_a_sentence() -> None:
    assert set(SEVERITIES.values()) == {"error", "warning", "note"}
    assert all(code in SENTENCES for code in Code)
