"""Reports to attach: official schemas accept every machine format, strangers' texts stay texts, bytes repeat."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import audit_models as made
import jsonschema
import pytest
from commands import run
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from provindex import api
from provindex.api import Index, compare, resolve
from provindex.common.errors import UsageError, printable
from provindex.fingerprint.record import Fingerprint
from provindex.index.answer import Comparison
from provindex.index.entries import Problem
from provindex.report import document, facts, markdown
from provindex.report.renderers import RENDERERS, SUFFIXES, format_of, render

ROW = "| a | b |\n|---|---|\n| %s | x |"
DATA = Path(__file__).parent / "data"
EVIL = 'a|b` <img src=x onerror=alert(1)> [x](javascript:y) \x1b[2J\u202egnp.exe **bold** {{7*7}} "q" \\'
FIELDS = "license: apache-2.0\nbase_model: org/stranger\nmodel_name: '{}'\nlicense_name: '{}'\ndatasets: [org/d, '{}']"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fingerprint]:
    return made.rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def documents(rows: dict[str, Fingerprint], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One document of each kind; the audited model has a hostile card, and one row a hostile license."""
    root = tmp_path_factory.mktemp("reports")
    base = replace(rows["base"], license="llama3.1", family="org/base", revision="0" * 40)
    index = made.index_of(base, replace(rows["stranger"], license=EVIL))
    evil = EVIL.replace("'", "").replace("\n", "")
    folder = made.write(root / "child", "left", FIELDS.format(evil, evil, evil.replace(",", "")))
    asked = resolve(folder, own_bytes=True)
    result = index.query(asked.fingerprint)
    gate = api.gate(result, ["org/base", "org/stranger"], index, asked)
    child, other = asked.fingerprint, rows["stranger"]
    small = Index.build([replace(rows["left"], license=EVIL)], name="small")
    return {
        "audit": document.audit_document(api.audit(index, asked)[1]),
        "query": document.query_document(result, gate),
        "none": document.query_document(index.query(replace(other, model_id=EVIL[:40]))),
        "linked": document.compare_document(Comparison(child, base, compare(child, base), index.info, {})),
        "unrelated": document.compare_document(Comparison(child, other, compare(child, other), None, {})),
        "fingerprint": document.fingerprint_document(child, "x.parquet"),
        "index": document.index_document(small, [Problem("data/x.parquet", EVIL)]),
        "empty": document.index_document(Index.build(())),
    }


KINDS = ["audit", "query", "none", "linked", "unrelated", "fingerprint", "index", "empty"]


@cache
def schema(path: str) -> Any:
    read = json.loads((DATA / path).read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(read)(read)


@pytest.mark.parametrize("kind", KINDS)
def test_sarif_is_what_its_schema_asks(documents: dict[str, dict[str, Any]], kind: str) -> None:
    log = json.loads(render("sarif", documents[kind]))
    schema("sarif/sarif-schema-2.1.0.json").validate(log)
    (run_,) = log["runs"]
    rules = [rule["id"] for rule in run_["tool"]["driver"]["rules"]]
    assert [rules[one["ruleIndex"]] for one in run_["results"]] == [one["ruleId"] for one in run_["results"]]
    assert all(re.fullmatch(r"[A-Za-z0-9._~%/-]+", loc["physicalLocation"]["artifactLocation"]["uri"])
               for one in run_["results"] for loc in one["locations"])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_cyclonedx_is_what_its_schema_asks(documents: dict[str, dict[str, Any]], kind: str) -> None:
    written = render("cyclonedx", document.dated(documents[kind]))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    bom = json.loads(written)
    references = re.findall(r'"bom-ref": "([^"]+)"', written)
    assert len(set(references)) == len(references)
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bom["serialNumber"])


@pytest.mark.parametrize("kind", KINDS)
def test_intoto_is_what_the_specification_asks(documents: dict[str, dict[str, Any]], kind: str) -> None:
    if kind == "empty":
        with pytest.raises(UsageError, match="digests"):
            render("intoto", documents[kind])
        return
    statement = json.loads(render("intoto", documents[kind]))
    schema("intoto/statement-v1.schema.json").validate(statement)
    assert statement["predicate"] == documents[kind]


@pytest.mark.parametrize(
    ("format", "broken"),
    [
        ("sarif", lambda log: log["runs"][0]["results"][0].pop("message")),
        ("sarif", lambda log: log["runs"][0]["tool"]["driver"].pop("name")),
        ("intoto", lambda statement: statement["subject"].clear()),
        ("intoto", lambda statement: statement["subject"][0]["digest"].update(sha256="0")),
        ("cyclonedx", lambda bom: bom["metadata"]["component"].update(type="weights")),
    ],
)
def test_the_schemas_refuse_what_is_wrong(documents: dict[str, dict[str, Any]], format: str, broken: Any) -> None:
    changed = json.loads(render(format, documents["audit"]))
    broken(changed)
    if format == "cyclonedx":
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(changed)) is not None
        return
    path = {"sarif": "sarif/sarif-schema-2.1.0.json", "intoto": "intoto/statement-v1.schema.json"}[format]
    with pytest.raises(jsonschema.ValidationError):
        schema(path).validate(changed)


def test_the_pedigree_has_the_ancestor_with_its_evidence(documents: dict[str, dict[str, Any]]) -> None:
    model = json.loads(render("cyclonedx", documents["audit"]))["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "child")
    assert model["licenses"] == [
        {"license": {"id": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}}
    ]  # fmt: skip
    assert model["modelCard"]["modelParameters"]["architectureFamily"] == "llama"
    assert model["components"][0]["hashes"][0]["alg"] == "SHA-256"
    (relative,) = model["pedigree"]["variants"]  # the weights do not say which came first
    assert relative["purl"] == f"pkg:huggingface/org/base@{'0' * 40}"
    (identity,) = relative["evidence"]["identity"]
    assert identity["concludedValue"] == "org/base" and 0.9 < identity["confidence"] <= 1
    assert any("log10 p" in method["value"] for method in identity["methods"])
    said = [prop["name"] for prop in model["properties"]]
    assert "provindex:error:base-model-contradicted" in said and "provindex:claim:base_model:contradicted" in said


def test_the_subject_of_a_statement_is_the_weights(documents: dict[str, dict[str, Any]]) -> None:
    (subject,) = json.loads(render("intoto", documents["audit"]))["subject"]
    (file,) = documents["audit"]["model"]["files"]
    assert subject == {"name": "child/model.safetensors", "digest": {"sha256": file["sha256"]}}
    (named,) = json.loads(render("intoto", documents["none"]))["subject"]
    assert named["digest"] == {"provindexContentSha256": documents["none"]["query"]["content_sha256"]}


def test_findings_are_results_of_code_scanning(documents: dict[str, dict[str, Any]]) -> None:
    results = json.loads(render("sarif", documents["audit"]))["runs"][0]["results"]
    assert [(r["ruleId"], r["level"]) for r in results[:2]] == [
        ("base-model-contradicted", "error"), ("license-conflict", "error"),
    ]  # fmt: skip
    gated = json.loads(render("sarif", documents["query"]))["runs"][0]["results"]
    assert ("gate-denied", "error") in [(r["ruleId"], r["level"]) for r in gated]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", list(RENDERERS))
def test_texts_of_strangers_stay_texts(documents: dict[str, dict[str, Any]], format: str, kind: str) -> None:
    if (format, kind) == ("intoto", "empty"):
        return
    written = render(format, document.dated(documents[kind]))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", written), "nothing that a terminal obeys"
    if format not in ("text", "markdown", "html"):
        json.loads(written)
    if format == "markdown" and kind not in ("fingerprint", "index", "empty"):
        assert not re.search(r"(?<!\\)<(?!https://)|(?<!\\)`|(?<!\\)\]\(|(?<!\\)\*\*bold", written)


@pytest.mark.parametrize("kind", ["fingerprint", "index", "empty"])
def test_listings_in_markdown_cannot_close_their_fence(documents: dict[str, dict[str, Any]], kind: str) -> None:
    written = render("markdown", documents[kind])
    (fence,) = re.findall(r"^(`{3,})text$", written, re.M)
    body = written.split(f"{fence}text\n", 1)[1].split(f"\n{fence}\n", 1)[0]
    assert fence not in body


def test_markdown_shows_what_was_written() -> None:
    assert markdown.escaped("1. x") == "1\\. x" and markdown.escaped("- x") == "\\- x"
    assert markdown.escaped("a|b <c> `d`") == "a\\|b \\<c\\> \\`d\\`"
    assert markdown.escaped("https://evil @all") == "https:\\//evil \\@all"


@given(
    st.text(st.sampled_from("ab1 |`*_[]()<>#!~&$@\\/:.-+=\n\"'^{}\t"), min_size=1, max_size=25),
    st.sampled_from(["%s", "- %s", ROW]),
)
def test_no_text_makes_markup(value: str, around: str) -> None:
    made_of = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(around % markdown.escaped(value))
    tags = set(re.findall(r"<(\w+)", made_of)) - {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert not tags and made_of.count("<td") == (2 if around is ROW else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_report_says_what_it_rests_on(documents: dict[str, dict[str, Any]], kind: str) -> None:
    d = document.dated(documents[kind])
    said = facts.basis(d)
    assert {"tool", "date"} <= said.keys()
    if d["index"] is not None:
        assert d["index"]["revision"] in said["index"]
    for model in facts.models_of(d) if kind not in ("index", "empty") else ():
        assert any(model["content_sha256"] in value for value in said.values())
    for format in ("text", "markdown", "sarif", "cyclonedx"):
        written = render(format, d).replace("\\", "").replace("\n", " ")
        for value in said.values():
            assert value in written or format == "text", (format, value)  # text is wrapped
    flat = render("text", d, width=100_000)
    assert all(value in flat for value in said.values())


def test_suffixes_name_formats() -> None:
    assert {format_of(f"x{suffix}") for suffix in SUFFIXES} == set(RENDERERS)
    assert [format_of(n) for n in ("a.cdx.json", "a.JSON", "a.intoto.json", "a.pdf", "json")] == [
        "cyclonedx", "json", "intoto", None, None,
    ]  # fmt: skip


# --- the commands ---


@pytest.fixture(scope="module")
def place(rows: dict[str, Fingerprint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    made.index_of(replace(rows["base"], license="mit", family="org/base")).save(root / "index")
    made.write(root / "child", "left", "license: mit\nbase_model: org/base")
    return root


@pytest.mark.parametrize("verb", ["audit", "query", "compare"])
def test_report_writes_every_format_and_repeats_its_bytes(place: Path, tmp_path: Path, verb: str) -> None:
    names = [f"r{suffix}" for suffix in SUFFIXES]
    more = ["org/base"] if verb == "compare" else []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        reports = [part for name in names for part in ("--report", tmp_path / folder / name)]
        ran = run(verb, place / "child", *more, "--index", place / "index", *reports, SOURCE_DATE_EPOCH="86400")
        assert ran.status == 0 and "report " in ran.err and "org/base" in ran.out
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second and (b"1970-01-02" in first), name
        assert str(place).encode() not in first
    assert json.loads((tmp_path / "one" / "r.cdx.json").read_text())["specVersion"] == "1.6"


def test_a_report_is_written_where_the_gate_fails(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "gate.sarif"
    ran = run("query", place / "child", "--index", place / "index", "--deny", "org/base", "--report", path, "-q")
    assert ran.status == 1
    assert "gate-denied" in [r["ruleId"] for r in json.loads(path.read_text())["runs"][0]["results"]]


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("x.pdf", [], "no suffix that names a format"),
        ("nowhere/x.md", [], "there is no folder"),
        ("x.md", ["second"], "no single report"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_first(
    place: Path, tmp_path: Path, name: str, more: list[str], said: str
) -> None:
    ran = run("audit", place / "child", *more, "--index", place / "index", "--report", tmp_path / name)
    assert ran.status == 2 and said in ran.err and not ran.out and not list(tmp_path.iterdir())


def test_text_in_a_file_says_what_it_rests_on(place: Path, tmp_path: Path) -> None:
    ran = run("query", place / "child", "--index", place / "index", "-q", "-o", tmp_path / "a.txt")
    assert ran.status == 0 and "Rests on: index" in (tmp_path / "a.txt").read_text()
    assert "Rests on" not in run("query", place / "child", "--index", place / "index", "-q").out


# --- the page ---

VOID = {"meta", "br"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "section", "div", "table", "thead", "tbody",
    "tr", "th", "td", "a", "figure", "figcaption", "dl", "dt", "dd", "pre", "svg", "g", "text", "rect", "path",
    "polygon", "circle", "br",
}  # fmt: skip


class Page(HTMLParser):
    """Tags that are open, all tags and attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_loads_nothing_and_what_strangers_wrote_stays_text(
    documents: dict[str, dict[str, Any]], kind: str
) -> None:
    written = render("html", document.dated(documents[kind]))
    page = Page(written)
    assert not page.open and set(page.tags) <= ALLOWED and "\x1b" not in written and "\u202e" not in written
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "style", "onerror", "onload", "srcset", "action"})
    assert all(re.match(r"https?://", value) for name, value in page.attributes if name == "href")
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    said = " ".join(page.said)
    basis = facts.basis(document.dated(documents[kind]))
    assert all(value in said for value in basis.values()) and written == render("html", document.dated(documents[kind]))


def test_the_page_of_an_audit_says_what_the_document_says(documents: dict[str, dict[str, Any]]) -> None:
    d = documents["audit"]
    page = Page(render("html", d))
    said = " ".join(page.said)
    assert d["findings"] and d["claims"] and d["license_chain"] and d["matches"]
    assert all(f["code"] in said and printable(f["text"]) in said for f in d["findings"])
    assert all(facts.label(match) in said for match in d["matches"])
    drawn = [value for name, value in page.attributes if name == "class"]
    assert sum(value in ("box", "box own") for value in drawn) >= 1 + len(d["matches"]) and "map" in drawn
    signals = [signal for signal in d["matches"][0]["signals"].values() if signal["value"] is not None]
    assert drawn.count("dot") == len(signals)


def browser() -> str:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


@pytest.mark.skipif(not browser(), reason="no Chromium here")
@pytest.mark.parametrize("kind", ["audit", "query", "linked"])
def test_a_browser_shows_the_page_and_asks_nobody(
    documents: dict[str, dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    page, log = tmp_path / "report.html", tmp_path / "net.json"
    page.write_text(render("html", documents[kind]), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--disable-background-networking", "--disable-component-update", "--no-first-run",
               f"--log-net-log={log}", "--window-size=400,900")  # fmt: skip
    command = [browser(), *options, "--dump-dom", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "What this rests on" in ran.stdout and ran.stdout.count("<svg") >= 2
    asked = set(re.findall(r'"url":"((?:https?|wss?)://[^"]+)"', log.read_text(encoding="utf-8")))
    linked = set(re.findall(r'href="([^"]+)"', page.read_text(encoding="utf-8")))
    assert not {url for url in asked if any(url.startswith(one.split("#")[0]) for one in linked)}, asked
