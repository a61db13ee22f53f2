"""Many models in one run: lists, --jsonl, one exit status for all, and an index that has become old."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import Ran, run
from gate_models import Places, write_models

from provindex.cli.many import MOST_BYTES, answer_each
from provindex.cli.options import Common

NOTE = re.compile(r"note   (\S+) is (\d+) days old and lacks what was published since (\S+): ")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return write_models(tmp_path_factory.mktemp("many"))


def lines(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.split("\n") if line]


def test_every_model_has_a_line_and_a_status_of_its_own_and_the_worst_is_the_commands(places: Places) -> None:
    models = [places.stranger, "nowhere", places.child]
    ran = run("query", *models, "--index", places.index, "--deny", "acme/base", "--jsonl", "-q")
    found = lines(ran)
    assert [line["reference"] for line in found] == list(map(str, models))
    assert [line["exit_status"] for line in found] == [0, 2, 1] and ran.status == 2
    assert [line["schema"] for line in found] == ["provindex.query/1", "provindex.error/1", "provindex.query/1"]
    assert [line["gate"]["status"] for line in found if "gate" in line] == ["passed", "failed"]
    assert set(found[1]) == {"reference", "exit_status", "schema", "status", "error", "next_step"}
    assert found[1]["status"] == "failed" and found[1]["error"] in ran.err
    assert "nowhere: " in ran.err and "denied acme/base" in ran.err


def test_a_line_is_the_document_of_that_model_alone(places: Places) -> None:
    (line,) = lines(run("query", places.child, "--index", places.index, "--jsonl", "-q"))
    alone = json.loads(run("query", places.child, "--index", places.index, "--json", "-q").out)
    assert {key: value for key, value in line.items() if key not in ("reference", "exit_status")} == alone
    assert (line["reference"], line["exit_status"], line["gate"]) == (str(places.child), 0, None)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((0, 3, 0), 3), ((3, 1), 1), ((1, 3, 0), 1), ((2, 1), 2), ((0, 1, 3, 2), 2), ((3,), 3)],
)
def test_one_status_stands_for_all(
    statuses: tuple[int, ...], status: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """2 over 1 over 3 over 0."""
    with pytest.raises(typer.Exit) as ended:
        answer_each(list(map(str, statuses)), lambda model: ({}, int(model)), Common(), jsonl=True)
    assert ended.value.exit_code == status
    assert [json.loads(line)["exit_status"] for line in capfdbinary.readouterr().out.split()] == list(statuses)


def test_a_list_comes_from_standard_input_with_comments_and_blank_lines(places: Places) -> None:
    text = f"# ours\n\n{places.child}  # the new one\n   {places.stranger}\n"
    ran = run("query", "-", "--index", places.index, "--jsonl", "-q", stdin=text)
    assert [line["reference"] for line in lines(ran)] == [str(places.child), str(places.stranger)]
    both = run("fingerprint", "-", places.base, "--jsonl", "-q", stdin=f"{places.child}\n")
    assert [line["reference"] for line in lines(both)] == [str(places.child), str(places.base)]
    assert [line["model"]["model_id"] for line in lines(both)] == ["child", "base"]
    empty = run("query", "-", "--index", places.index, stdin="# nothing\n\n")
    assert (empty.status, empty.out) == (2, "") and "The list of models is empty" in empty.err


def test_a_line_that_is_a_path_is_no_comment(places: Places, tmp_path: Path) -> None:
    """Whoever names a folder must not choose which one is judged in its place."""
    for name, model in (("clean", "stranger"), ("clean #2", "child"), ("#3", "child"), (" clean", "child")):
        (tmp_path / name).symlink_to(getattr(places, model))
    names = ["clean", "clean #2", "#3", " clean"]
    text = "\r\n".join([*names, "# clean", "clean # again", ""])
    ran = run("query", "-", "--index", places.index, "--jsonl", "-q", stdin=text, cwd=tmp_path)
    assert [line["reference"] for line in lines(ran)] == [*names, "clean"]


def test_no_name_of_a_list_ends_the_others(places: Places, tmp_path: Path) -> None:
    """Too long for a file, no UTF-8, with a zero byte, empty: each has its line."""
    names = ["a" * 400, os.fsdecode(b"models/\xff"), "models/\0", str(places.child)]
    asked = ["-", "--jsonl", "-q"]
    answers = [
        run("query", *asked, "--index", places.index, stdin="\n".join(names)),
        run("fingerprint", *asked, stdin="\n".join(names), LC_ALL="en_US.UTF-8"),
    ]
    written = run("query", *asked, "--index", places.index, "-o", tmp_path / "answers", stdin="\n".join(names))
    answers.append(replace(written, out=(tmp_path / "answers").read_text(encoding="utf-8")))
    for ran in answers:
        assert [line["exit_status"] for line in lines(ran)] == [2, 2, 2, 0] and ran.status == 2
        assert [line["reference"] for line in lines(ran)] == names
    long = run("query", *asked, "--index", places.index, stdin="a" * (MOST_BYTES + 1))
    assert (long.status, long.out) == (2, "") and "A list has at most" in long.err


def test_several_models_are_text_under_their_names_or_lines_and_no_single_document(places: Places) -> None:
    both = (places.child, places.stranger)
    shown = run("query", *both, "nowhere", "--index", places.index, "-q")
    assert [line for line in shown.out.split("\n") if line.startswith("== ")] == [f"== {m}" for m in (*both, "nowhere")]
    assert shown.status == 2 and "is no file or folder" in shown.out
    for more, said in ((("--json",), "--jsonl"), (("--jsonl", "--json"), ""), (("--jsonl", "-f", "json"), "--format")):
        ran = run("query", *both, "--index", places.index, "-q", *more)
        if said:
            assert (ran.status, ran.out) == (2, "") and said in ran.err, more
        else:
            assert len(lines(ran)) == 2


def test_an_output_file_has_all_lines(places: Places, tmp_path: Path) -> None:
    ran = run("query", places.child, places.stranger, "--index", places.index, "--jsonl", "-o", tmp_path / "x", "-q")
    assert (ran.status, ran.out) == (0, "")
    assert [json.loads(line)["exit_status"] for line in (tmp_path / "x").read_text().splitlines()] == [0, 0]


# --- the age of an index ---


def dated(places: Places, folder: Path, built: str) -> Path:
    """A copy of the index that says it was built on another day."""
    folder.mkdir()
    for name in ("data", "calibration"):
        if (places.index / name).exists():
            (folder / name).symlink_to(places.index / name)
    manifest = json.loads((places.index / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"built": built}))
    return folder


def test_who_answers_says_that_an_index_is_old_and_documents_do_not(places: Places, tmp_path: Path) -> None:
    old = dated(places, tmp_path / "old", "2020-01-01T00:00:00Z")
    said = run("query", places.child, "--index", old, "--index", places.index, "--json")
    (note,) = (line for line in said.err.splitlines() if NOTE.match(line))
    found = NOTE.match(note)
    assert found and found[1].startswith("zoo@") and int(found[2]) > 2000 and found[3] == "2020-01-01"
    assert "days old" not in said.out and "index pull" not in said.out
    assert "days old" in run("compare", places.child, places.base, "--index", old).err
    assert run("query", places.child, "--index", old, "-q").err == ""
    assert "days old" not in run("index", "list", "--index", old).err


@pytest.mark.parametrize("built", ["", "2020-02-31T00:00:00Z"])
def test_an_index_without_a_date_that_exists_answers(places: Places, tmp_path: Path, built: str) -> None:
    ran = run("query", places.child, "--index", dated(places, tmp_path / "index", built))
    assert ran.status == 0 and "days old" not in ran.err
