"""A policy: what its rules name, where its file is found, what it may say, and what a gate makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import zoo
from commands import run
from gate_models import PUBLISHED, write_models

from provindex import api
from provindex.audit.gate import Gate
from provindex.audit.policy import Policy, of_table
from provindex.audit.policy_file import policy_for
from provindex.audit.rules import MAX_RULE, Rule
from provindex.common.errors import UsageError

TODAY = date(2026, 12, 1)


@dataclass(frozen=True)
class Zoo:
    """An index on disk and in memory, a model's folder, and the model's answer."""

    index_folder: Path
    child: Path
    index: api.Index
    asked: api.Resolved
    result: Any

    def gate(self, policy: Policy, today: date = TODAY) -> Gate:
        assert set(policy.asked_for(self.index)) <= {*(e.model_id for e in self.index), PUBLISHED}
        return api.gate(self.result, policy, self.index, self.asked, today=today)

    def state(self, *rules: str, **policy: Any) -> str:
        """The state of the first rule."""
        return self.gate(replace(Policy(**policy), deny=tuple(map(Rule.of, rules)))).denied[0].state


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The child, asked about in an index of its base, a stranger, and one with another kind of MLP."""
    places = write_models(tmp_path_factory.mktemp("policy"))
    index = api.Index.load(places.index)
    asked, result = api.query(index, api.resolve(places.child))
    return Zoo(places.index, places.child, index, asked, result)


# --- rules ---


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("acme/base", {"acme/base"}),
        ("ACME/Base", {"acme/base"}),
        ("acme/root", {"acme/base"}),
        ("Acme/ROOT", {"acme/base"}),
        ("acme/*", {"acme/base"}),
        ("*/STR?NGER", {"other/stranger"}),
        ("other/*", {"other/stranger", "other/ungated"}),
        ("*", {"acme/base", "other/stranger", "other/ungated"}),
        ("family:acme/*", {"acme/base"}),
        ("family:acme/base", set()),
        ("license:cc-by-nc*", {"other/stranger"}),
        ("license: MIT", {"other/ungated"}),
        ("license:gpl-3.0", set()),
        ("publisher:other", {"other/stranger", "other/ungated"}),
        ("publisher:oth", set()),
    ],
)
def test_a_rule_names_rows_of_an_index(kin: Zoo, text: str, named: set[str]) -> None:
    assert {entry.model_id for entry in Rule.of(text).rows(kin.index)} == named


@pytest.mark.parametrize(
    "text", ["", "  ", "family:", "license: ", "owner:acme", "x" * (MAX_RULE + 1), "acme/\x1b[2J", "acme/a\nacme/b"]
)
def test_what_is_no_rule_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Rule.of(text)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value) and refused.value.next_step


def test_a_letter_of_a_pattern_is_that_letter() -> None:
    assert Rule.of("a.c/m[1]+").matches("a.c/m[1]+") and not Rule.of("a.c/m").matches("abc/m")


@pytest.mark.parametrize(
    ("text", "suggested"),
    [
        ("acme/bse", "acme/base"),
        ("base", "acme/base"),
        ("elsewhere/stranger", "other/stranger"),
        ("family:acme/rot", "acme/root"),
        ("license:cc-by-nc-40", "cc-by-nc-4.0"),
        ("publisher:othr", "other"),
        ("meta-lama/Llama-3.1-8B", PUBLISHED),
    ],
)
def test_a_rule_that_names_nothing_is_refused_with_what_looks_like_it(kin: Zoo, text: str, suggested: str) -> None:
    for policy in (Policy().with_more([text]), Policy().with_more(allow=[text])):
        with pytest.raises(UsageError) as refused:
            api.check_rules(policy, kin.index)
        assert f"Did you mean {suggested}" in str(refused.value)


def test_a_rule_that_nothing_looks_like_says_where_to_look(kin: Zoo) -> None:
    policy = of_table({"ignore": [{"id": "qqqq/zzzz", "reason": "why"}]}, "provindex.toml")
    with pytest.raises(UsageError, match="index list"):
        api.check_rules(policy, kin.index)


def test_a_published_model_is_no_mistake_and_no_answer(kin: Zoo) -> None:
    policy = Policy().with_more([PUBLISHED])
    api.check_rules(policy, kin.index)
    found = kin.gate(policy)
    assert (found.status, found.exit_status) == ("inconclusive", 3)


# --- states, and what a policy makes of them ---


def test_each_rule_has_the_state_of_what_it_names(kin: Zoo) -> None:
    for rule in ("acme/base", "acme/*", "family:acme/root", "license:apache-2.0", "publisher:acme", "*"):
        assert kin.state(rule) == "denied", rule
    assert kin.state("other/stranger") == "cleared"
    assert kin.state("other/ungated") == "not_comparable"
    assert kin.state("other/*") == "not_comparable", "of two states the one that says less decides"
    assert kin.state(PUBLISHED) == "inconclusive"


def test_a_gate_counts_the_states_of_all_rows(kin: Zoo) -> None:
    (found,) = kin.gate(Policy().with_more(["*"])).denied
    assert dict(found.counts) == {"denied": 1, "inconclusive": 0, "relative": 0, "not_comparable": 1, "cleared": 1}


def test_what_is_allowed_passes_and_any_other_link_fails(kin: Zoo) -> None:
    assert kin.gate(Policy().with_more(allow=["acme/*", "license:mit"])).status == "passed"
    refused = kin.gate(Policy().with_more(allow=["publisher:other"]))
    assert (refused.status, refused.exit_status) == ("failed", 1)
    assert [(one.id, one.state) for one in refused.denied] == [("acme/base", "denied")]


def test_deny_is_stronger_than_allow(kin: Zoo) -> None:
    found = kin.gate(Policy().with_more(["acme/base"], ["acme/*"]))
    assert [(one.id, one.state) for one in found.denied] == [("acme/base", "denied")]


@pytest.mark.parametrize(("effect", "status"), [("fail", 3), ("warn", 0), ("pass", 0)])
def test_an_open_answer_does_what_the_policy_says_and_stays_open(kin: Zoo, effect: Any, status: int) -> None:
    policy = replace(Policy(), on_inconclusive=effect)
    found = kin.gate(policy.with_more([PUBLISHED, "other/stranger"]))
    assert (found.status, found.exit_status) == ("inconclusive", status)
    assert kin.gate(policy.with_more([PUBLISHED, "acme/base"])).exit_status == 1, "what fails is never let pass"


@pytest.mark.parametrize(
    ("effect", "said", "status"), [("pass", "passed", 0), ("warn", "inconclusive", 0), ("fail", "inconclusive", 3)]
)
def test_models_of_another_design_pass_unless_the_policy_says_otherwise(
    kin: Zoo, effect: Any, said: str, status: int
) -> None:
    found = kin.gate(replace(Policy(), on_not_comparable=effect).with_more(["other/ungated"]))
    assert (found.status, found.exit_status) == (said, status)


@pytest.mark.parametrize(
    ("expires", "today", "state"),
    [
        (None, TODAY, "cleared"),
        (date(2026, 12, 1), TODAY, "cleared"),
        (date(2026, 11, 30), TODAY, "denied"),
        (date(2026, 12, 1), date(2026, 12, 2), "denied"),
    ],
)
def test_an_exception_holds_until_the_end_of_its_last_day(
    kin: Zoo, expires: date | None, today: date, state: str
) -> None:
    table: dict[str, Any] = {"id": "acme/base", "reason": "ticket 4711"} | ({"expires": expires} if expires else {})
    for rules in ({"deny": ["acme/base"]}, {"allow": ["publisher:other"]}):
        found = kin.gate(of_table({**rules, "ignore": [table]}, "provindex.toml"), today)
        assert found.exit_status == (1 if state == "denied" else 0)
        ((one, holds, rows),) = found.ignored
        assert (holds, [entry.model_id for entry in rows]) == (state == "cleared", ["acme/base"])
        assert one.reason == "ticket 4711"


def test_an_exception_for_one_row_is_none_for_another(kin: Zoo) -> None:
    table = {"deny": ["*"], "ignore": [{"id": "other/stranger", "reason": "why"}]}
    assert kin.gate(of_table(table, "provindex.toml")).status == "failed"


# --- files ---


def written(path: Path, text: str = 'deny = ["acme/base"]') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a model two folders down; the working directory is one folder down."""
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "repository" / "work" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository" / "work")
    return tmp_path / "repository"


def test_a_policy_is_found_upwards_to_the_root_of_the_repository(repository: Path) -> None:
    written(repository.parent / "provindex.toml")
    assert not policy_for(["org/name"]).asks, "what lies above the repository is another's"
    written(repository / "provindex.toml", 'deny = ["root/*"]')
    assert policy_for(["org/name"]).deny == (Rule.of("root/*"),) and policy_for([]).source == "../provindex.toml"
    written(repository / "work" / "provindex.toml", 'deny = ["near/*"]')
    assert policy_for(["org/name"]).deny == (Rule.of("near/*"),)


def test_without_a_repository_only_the_working_directory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    written(tmp_path / "provindex.toml")
    monkeypatch.chdir(tmp_path / "work")
    assert not policy_for([]).asks
    written(tmp_path / "work" / "provindex.toml")
    assert policy_for([]).asks


def test_a_table_of_pyproject_is_a_policy_and_provindex_toml_comes_first(repository: Path) -> None:
    written(repository / "pyproject.toml", '[tool.provindex]\ndeny = ["table/*"]')
    written(repository / "work" / "pyproject.toml", "[tool.other]\ndeny = 1")
    assert policy_for([]).deny == (Rule.of("table/*"),)
    written(repository / "provindex.toml", 'deny = ["file/*"]')
    assert policy_for([]).deny == (Rule.of("file/*"),)


def test_no_model_brings_its_own_policy(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = repository / "work" / "model"
    ours = written(repository / "provindex.toml", 'deny = ["ours/*"]')
    theirs = written(model / "provindex.toml", 'on_inconclusive = "pass"')
    weights = written(model / "model.safetensors", "")
    below = written(model / "below" / "provindex.toml", "").parent
    for folder in (model, below):
        monkeypatch.chdir(folder)
        for named in (str(model), ".", str(weights)):
            if named == "." and folder == below:
                continue
            found = policy_for([named])
            assert found.deny == (Rule.of("ours/*"),), (folder, named)
            assert found.passed_over.endswith("provindex.toml")
    for policy in (theirs, below / "provindex.toml"):
        with pytest.raises(UsageError, match="lies in the folder of the model"):
            policy_for([str(model)], policy)
    monkeypatch.setenv("PROVINDEX_POLICY", str(theirs))
    with pytest.raises(UsageError, match="lies in the folder of the model"):
        policy_for([str(model)])
    assert policy_for([str(model)], ours).deny == (Rule.of("ours/*"),)


def test_a_named_policy_comes_before_the_environment_and_that_before_the_search(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(repository / "provindex.toml", 'deny = ["searched/*"]')
    by_environment = written(repository.parent / "environment.toml", 'deny = ["environment/*"]')
    named = written(repository.parent / "named.toml", 'deny = ["named/*"]')
    monkeypatch.setenv("PROVINDEX_POLICY", str(by_environment))
    assert policy_for([]).deny == (Rule.of("environment/*"),)
    assert policy_for([], named).deny == (Rule.of("named/*"),)
    monkeypatch.setenv("PROVINDEX_POLICY", "")
    assert not policy_for([]).asks, "an empty one turns the search off"


def test_what_the_command_line_adds_is_added() -> None:
    policy = of_table({"deny": ["a/*"], "exclude": ["x"]}, "provindex.toml").with_more(
        ["b/c", "a/*"], ["d/*"], ["x", "y"], related=True
    )
    assert [rule.text for rule in policy.deny] == ["a/*", "b/c"] and [rule.text for rule in policy.allow] == ["d/*"]
    assert policy.exclude == ("x", "y") and policy.deny_related and policy.source == "provindex.toml"


def test_every_key_is_read(repository: Path) -> None:
    text = """
        deny = ["meta-llama/*", "license:cc-by-nc*"]
        allow = ["publisher:mistralai"]
        deny_related = true
        exclude = ["optimizer.pt"]
        on_inconclusive = "warn"
        on_not_comparable = "fail"
        [[ignore]]
        id = "meta-llama/Llama-3.2-1B"
        reason = "licensed, ticket 4711"
        expires = 2027-06-30
        [[ignore]]
        id = "license:mit"
        reason = "a text is a day, too"
        expires = "2027-06-30"
    """
    written(repository / "provindex.toml", text)
    found = policy_for([])
    assert [rule.kind for rule in found.deny] == ["id", "license"] and found.allow[0].kind == "publisher"
    assert (found.deny_related, found.exclude) == (True, ("optimizer.pt",))
    assert (found.on_inconclusive, found.on_not_comparable) == ("warn", "fail")
    assert {one.expires for one in found.ignore} == {date(2027, 6, 30)}


BAD = {
    "key": 'denny = ["a/b"]',
    "no-list": 'deny = "a/b"',
    "no-text": "deny = [1]",
    "empty-text": 'allow = [""]',
    "no-kind": 'deny = ["owner:acme"]',
    "table": "[allow]\na = 1",
    "flag": 'deny_related = "yes"',
    "effect": 'on_inconclusive = "maybe"',
    "effect-list": 'on_not_comparable = ["fail"]',
    "exclude": "exclude = [true]",
    "exception-text": 'ignore = ["a/b"]',
    "exception-without-reason": 'ignore = [{id = "a/b"}]',
    "exception-empty-reason": 'ignore = [{id = "a/b", reason = " "}]',
    "exception-key": 'ignore = [{id = "a/b", reason = "c", until = 1}]',
    "exception-day": 'ignore = [{id = "a/b", reason = "c", expires = "soon"}]',
    "exception-number": 'ignore = [{id = "a/b", reason = "c", expires = 2027}]',
    "exception-time": 'ignore = [{id = "a/b", reason = "c", expires = 2027-06-30T00:00:00}]',
    "syntax": "deny = [",
    "too-large": "#" * ((1 << 20) + 1),
    "nested": "deny = " + "[" * 100_000,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_bad_value_is_one_sentence_that_names_the_file(repository: Path, text: str) -> None:
    written(repository / "provindex.toml", text)
    with pytest.raises(UsageError) as refused:
        policy_for([])
    said = str(refused.value)
    if "owner" not in text:  # a rule is refused alike, whether it is in a file or not
        assert "provindex.toml" in said
    assert "\n" not in said and len(said) < 400 and refused.value.next_step


def test_what_is_no_text_or_not_there_is_one_sentence(repository: Path) -> None:
    (repository / "provindex.toml").write_bytes(b"deny = ['\xff']")
    with pytest.raises(UsageError, match="cannot be read"):
        policy_for([])
    with pytest.raises(UsageError, match="There is no policy"):
        policy_for([], repository / "nowhere.toml")
    with pytest.raises(UsageError, match="no table"):
        policy_for([], written(repository / "pyproject.toml", "[tool.other]"))


def test_a_policy_that_cannot_be_read_is_not_passed_over(repository: Path) -> None:
    """Whoever wrote one down wants a gate: without it a model would pass."""
    for text in ('[[tool.provindex]]\ndeny = ["a/b"]', '[tool]\nprovindex = ["a/b"]'):
        written(repository / "work" / "pyproject.toml", text)
        with pytest.raises(UsageError, match="is no table"):
            policy_for([])
    (repository / "work" / "pyproject.toml").unlink()
    place = repository / "work" / "provindex.toml"
    place.symlink_to("nowhere")
    with pytest.raises(UsageError, match="There is no policy"):
        policy_for([])
    place.unlink()
    place.mkdir()
    with pytest.raises(UsageError, match="There is no policy"):
        policy_for([])


# --- as a person runs it ---


def test_the_command_reads_a_policy_and_says_which(kin: Zoo, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    written(tmp_path / "provindex.toml", 'deny = ["acme/base"]\n[[ignore]]\nid = "acme/base"\nreason = "why"\n'
            "expires = 2020-01-01")  # fmt: skip
    ran = run("query", kin.child, "--index", kin.index_folder, "-q", "--json", cwd=tmp_path)
    assert ran.status == 1
    policy, expired, denied = ran.err.splitlines()
    assert policy == "policy provindex.toml" and denied == "denied acme/base: linked (finetune)"
    assert expired == "note   the exception for acme/base expired on 2020-01-01"
    gate = json.loads(ran.out)["gate"]
    assert (gate["status"], gate["exit_status"], gate["policy"]) == ("failed", 1, "provindex.toml")
    assert gate["ignored"] == [
        {"id": "acme/base", "reason": "why", "expires": "2020-01-01", "holds": False, "models": ["acme/base"]}
    ]
    assert run("query", kin.child, "--index", kin.index_folder, "-q", cwd=tmp_path, PROVINDEX_POLICY="").status == 0


def test_a_bad_policy_and_a_wrong_rule_are_status_2(kin: Zoo, tmp_path: Path) -> None:
    written(tmp_path / "provindex.toml", BAD["effect"])
    ran = run("query", kin.child, "--index", kin.index_folder, cwd=tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("provindex: on_inconclusive in provindex.toml is one of fail, warn, pass.")
    for text in ("", "deny = []", 'on_inconclusive = "warn"'):
        written(tmp_path / "provindex.toml", text)
        nothing = run("query", kin.child, "--index", kin.index_folder, cwd=tmp_path)
        assert nothing.status == 2 and "The policy provindex.toml denies and allows nothing" in nothing.err
        assert run("query", kin.child, "--index", kin.index_folder, "--deny", "acme/base", cwd=tmp_path).status == 1
    wrong = run("query", kin.child, "--index", kin.index_folder, "-q", "--deny", "acme/bse", PROVINDEX_POLICY="")
    assert (wrong.status, wrong.out) == (2, "")
    assert wrong.err == (
        "provindex: The index and the catalogue have no model or family acme/bse. Did you mean acme/base?\n"
    )


def test_a_gate_reads_the_models_own_bytes_unless_the_index_is_trusted(kin: Zoo, tmp_path: Path) -> None:
    def asked(model: object, *more: str) -> Any:
        rules = ("--deny", "other/stranger", "--offline", "-q", "--json")
        return run("query", model, "--index", kin.index_folder, *rules, *more, cwd=tmp_path)

    row = asked("acme/base")
    assert row.status == 2 and "Only a model's own weights count here" in row.err
    trusted = asked("acme/base", "--trust-index")
    assert trusted.status == 0 and json.loads(trusted.out)["gate"]["own_bytes"] is False
    assert run("fingerprint", kin.child, "-o", tmp_path / "child.parquet", "-q").status == 0
    file = asked("child.parquet")
    assert file.status == 2 and "child.parquet is a fingerprint" in file.err
    assert asked("child.parquet", "--trust-index").status == 0


def test_what_is_left_out_keeps_a_gate_open_unless_it_is_excluded(kin: Zoo, tmp_path: Path) -> None:
    model = tmp_path / "model"
    zoo.write(zoo.finetune_noise(zoo.spoken(zoo.llama(1), 1), 0.98, 2), model)
    zoo.write(zoo.spoken(zoo.llama(9), 9), tmp_path / "more")
    (tmp_path / "more" / "model.safetensors").rename(model / "more.safetensors")

    def asked(*more: str) -> Any:
        rules = ("--deny", "other/stranger", "-q", "--json")
        return run("query", model, "--index", kin.index_folder, *rules, *more, cwd=tmp_path)

    assert asked().status == 3
    excluded = asked("--exclude", "more.*")
    assert excluded.status == 0
    (one,) = json.loads(excluded.out)["gate"]["excluded"]
    assert one["code"] == "excluded" and "more.safetensors" in one["text"]
