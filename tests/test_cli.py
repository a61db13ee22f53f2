"""The command line, run as a person runs it: answers, exit statuses, terminals, pipes, and what it may not touch."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest
import zoo
from commands import Ran, environment, run, run_closed, run_on_terminal

from provindex.common.progress import Bar
from provindex.index.entries import SEED
from provindex.report.text import NOTHING_ALIKE

HEAVY = ("numpy", "faiss", "datasets", "pyarrow", "huggingface_hub", "tokenizers")
WIPE = "\r\x1b[K"
COLOR = re.compile(r"\x1b\[[0-9;]*m")
LONG = "an-organization-with-a-rather-long-name/and-a-model-name-that-is-even-longer-than-that-v2.1-instruct"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: a parent, a fine-tuned child, a stranger of the same config, one of another width and kind of MLP, and
    one of another width without tokenizer.
    """
    folder = tmp_path_factory.mktemp("cli") / "models"
    parent = zoo.spoken(zoo.llama(1), 1)
    family = {
        "parent": parent,
        "child": zoo.finetune_noise(parent, 0.98, 2),
        "stranger": zoo.spoken(zoo.llama(3), 3),
        "narrow": zoo.spoken(zoo.gpt2(5, hidden=32, heads=2), 5),
        "mute": replace(zoo.llama(6, hidden=32, heads=2, kv_heads=1), tokenizer=None),
    }
    for name, checkpoint in family.items():
        zoo.write(checkpoint, folder / name)
    return folder


@pytest.fixture(scope="module")
def index(models: Path) -> Path:
    """An index of the parent (under a long id), the stranger, the narrow and the mute model."""
    from provindex.api import Index, fingerprint

    rows = [replace(fingerprint(models / "parent"), model_id=LONG, license="apache-2.0", family=LONG)]
    rows += [fingerprint(models / name) for name in ("stranger", "narrow", "mute")]
    Index.build(rows, name="zoo").save(models.parent / "index")
    return models.parent / "index"


def document(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran.out)
    return found


# --- query and compare ---


def test_query_prints_the_answer_alone_and_talks_on_stderr(models: Path, index: Path) -> None:
    ran = run("query", models / "child", "--index", index)
    assert ran.status == 0
    assert (
        ran.err.startswith("index  zoo@")
        and f"model  {models / 'child'}, 0.2M parameters, llama, f32; exact" in ran.err
    )
    assert f"Descends from {LONG}" in ran.out or f"Shares weights with {LONG} (finetune)" in ran.out
    assert "\x1b" not in ran.out and "1 match of 4 candidates" in ran.out
    assert "index " not in ran.out.split("\n")[0] and ran.out.split()[:4] == [
        "MODEL",
        "RELATION",
        "ROLE",
        "CERTAINTY",
    ]
    assert "WVC" not in ran.out and "WVC" in run("query", models / "child", "--index", index, "--signals").out


def test_json_is_the_contract_and_repeats_byte_for_byte(models: Path, index: Path) -> None:
    first = run("query", models / "child", "--index", index, "--json", "-q")
    again = run("query", models / "child", "--index", index, "-f", "json", cwd=models.parent)
    assert first.out == again.out and first.err == ""
    assert first.status == 0
    answer = document(first)
    assert list(answer)[:6] == ["schema", "tool", "index", "settings", "warnings", "status"]
    assert answer["schema"] == "provindex.query/1" and answer["status"] == "decided"
    assert answer["query"]["model_id"] == "child"
    no_secrets(first.out)
    (match,) = answer["matches"]
    assert (match["model_id"], match["verdict"], match["relation"]) == (LONG, "linked", "finetune")
    assert {c["verdict"] for c in answer["candidates"]} == {"unrelated", "inconclusive"}


def no_secrets(text: str) -> None:
    """No absolute path, host name or color."""
    values: list[str] = []
    json.loads(text, object_pairs_hook=lambda pairs: values.extend(v for _, v in pairs if isinstance(v, str)))
    assert not [v for v in values if v.startswith("/") or "/tmp/" in v], values
    host = socket.gethostname()
    assert len(host) < 4 or host not in text
    assert "\x1b" not in text


def test_deny_is_a_gate(models: Path, index: Path) -> None:
    def status(*deny: str) -> int:
        flags = [part for name in deny for part in ("--deny", name)]
        return run("query", models / "child", "--index", index, "-q", *flags, "--candidates", "1").status

    assert status(LONG) == 1
    assert status("stranger") == 0
    assert status("narrow") == 0  # another kind of MLP: nothing short of retraining leads from one to the other
    assert status("mute") == 3  # other residual width and no tokenizer: it cannot be told
    assert status("nobody/here") == 2
    assert status("meta-llama/Llama-3.1-8B") == 3, "a published model of which this index has no row"
    assert status("mute", LONG) == 1
    asked = ("query", "stranger", "--index", index, "-q", "--deny", "stranger")
    own = run(*asked, "--trust-index", cwd=models.parent)
    assert (own.status, own.err) == (1, "denied stranger: it is the model itself\n")
    unread = run(*asked, "--offline", cwd=models.parent)
    assert (
        unread.status == 2 and "Only a model's own weights count here" in unread.err and "--trust-index" in unread.err
    )


def test_a_gate_that_fails_says_why_even_if_quiet(models: Path, index: Path) -> None:
    def said(*arguments: object) -> str:
        return run(*arguments, "--index", index, "-q").err

    denied = said("query", models / "child", "--deny", LONG, "--deny", "stranger", "--deny", "mute", "--deny", "narrow")
    first, second = denied.splitlines()
    assert first == f"denied {LONG}: linked (finetune)"
    assert second.startswith("inconclusive mute: could not be tested: residual widths differ (64 and 32)")
    typo = said("query", models / "child", "--deny", "strangr")
    assert typo == "provindex: The index and the catalogue have no model or family strangr. Did you mean stranger?\n"
    expected = said("compare", models / "child", models / "stranger", "--expect", "linked")
    assert expected.startswith("expected linked: unrelated, log10 p ") and expected.count("\n") == 1
    untested = said("compare", models / "child", models / "mute", "--expect", "linked")
    assert untested.startswith("expected linked: inconclusive (residual widths differ") and untested.count("\n") == 1
    assert said("compare", models / "child", models / "parent", "--expect", "linked") == ""


def test_expect_is_a_gate(models: Path, index: Path) -> None:
    def status(other: str, expected: str) -> int:
        return run("compare", models / "child", models / other, "--index", index, "--expect", expected, "-q").status

    assert status("parent", "linked") == 0
    assert status("parent", "unrelated") == 1
    assert status("stranger", "linked") == 1
    assert status("narrow", "linked") == 1, "of another design"
    assert status("mute", "linked") == 3 == status("mute", "unrelated")


def test_no_ancestor_is_an_answer(models: Path, tmp_path: Path) -> None:
    run("index", "build", models / "stranger", "-o", tmp_path / "one", "-q")
    ran = run("query", models / "child", "--index", tmp_path / "one")
    assert ran.status == 0
    assert ran.out.startswith(
        "No ancestor in this index: 1 candidate re-verified, none above chance. Trained from scratch"
    )
    written = run("query", models / "child", "--index", tmp_path / "one", "--json", "-o", tmp_path / "a.json", "-q")
    assert (written.status, written.out, written.err) == (0, "", "")
    answer = json.loads((tmp_path / "a.json").read_text())
    assert answer["status"] == "none" and answer["matches"] == [] == answer["families"]


def test_inconclusive_says_what_could_not_be_computed_line_by_line(models: Path, tmp_path: Path) -> None:
    run("index", "build", models / "narrow", "-o", tmp_path / "one", "-q")
    ran = run("query", models / "child", "--index", tmp_path / "one", "-q")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[:4] == [
        "Not decided: 0 of 1 model could be tested. This index has no llama model; it clears nothing.",
        "1 of 1 could not be tested (-v lists them): residual widths differ; the MLPs are of different kinds.",
        NOTHING_ALIKE, "",
    ]  # fmt: skip
    assert "which is no evidence of descent" in lines[4] and lines[4].endswith(": narrow.")
    listed = run("query", models / "child", "--index", tmp_path / "one", "-q", "-v", "--signals").out.splitlines()
    assert listed[2].startswith("  narrow: residual widths differ (64 and 32); neuron_signs: the MLPs are of different")
    assert listed[-2].split()[0] == "narrow" and listed[-3].split()[0] == "SIGNALS"


def test_compare_names_both_sides(models: Path) -> None:
    ran = run("compare", models / "child", models / "stranger", "-q")
    assert ran.status == 0 and "Unrelated: no evidence that child and stranger share weights" in ran.out
    answer = document(run("compare", models / "child", models / "parent", "--json", "-q"))
    assert (answer["schema"], answer["a"]["model_id"], answer["b"]["model_id"]) == (
        "provindex.compare/1",
        "child",
        "parent",
    )
    assert answer["retrieval"] is None and answer["status"] == "decided" and answer["verdict"] == "linked"
    assert answer["signals"]["VOA"]["value"] == 1.0


def test_a_refused_tokenizer_is_told(models: Path, index: Path, tmp_path: Path) -> None:
    """It costs signals and a test, so it is said where answers are read, not only in the absences."""
    shutil.copytree(models / "child", tmp_path / "child")
    (tmp_path / "child" / "tokenizer.json").write_text("{")
    said = "the tokenizer was not read, so TFV, VOA and what needs token strings are missing: tokenizer.json is not"
    for arguments in (["query", "child"], ["compare", "child", models / "parent"], ["fingerprint", "child"]):
        ran = run(*arguments, "--index", index, "--json", cwd=tmp_path)
        assert ran.status == 0 and f"note   {said}" in ran.err
        assert sum(said in warning for warning in document(ran)["warnings"]) == 1
    (tmp_path / "child" / "tokenizer.json").unlink()
    assert "the tokenizer was not read" not in run("query", "child", "--index", index, cwd=tmp_path).err


# --- fingerprint, index ---


def test_a_fingerprint_file_is_a_model(models: Path, index: Path, tmp_path: Path) -> None:
    made = run("fingerprint", models / "child", "-o", tmp_path / "child.parquet")
    assert made.status == 0 and "written  child.parquet" in made.out
    answers = [
        run("query", m, "--index", index, "--json", "-q").out for m in (models / "child", tmp_path / "child.parquet")
    ]
    assert answers[0] == answers[1]
    told = document(run("fingerprint", "stranger", "--index", index, "--json", cwd=tmp_path))  # from the index
    assert told["schema"] == "provindex.fingerprint/1" and told["model"]["model_id"] == "stranger"


def test_index_verbs(models: Path, tmp_path: Path) -> None:
    built = run("index", "build", "-", "-o", tmp_path / "index", stdin=f"{models / 'parent'}\n{models / 'nowhere'}\n")
    assert built.status == 1 and "added parent" in built.out and built.out.endswith("1 failed\n")
    assert "1 of 2 models failed" in built.err and built.err.count(f"  {models / 'nowhere'}: ") == 1
    quiet = run("index", "build", models / "nowhere", "-o", tmp_path / "index", "--json", "-q")
    assert quiet.status == 2 and "nowhere" in quiet.err
    no_secrets(quiet.out)
    assert document(quiet)["failed"][0]["source"] == "nowhere" and document(quiet)["added"] == []
    again = run("index", "add", models / "parent", "--index", tmp_path / "index")
    assert again.status == 0 and "1 model already there" in again.out
    status = document(run("index", "status", "--index", tmp_path / "index", "--json"))
    assert [m["model_id"] for m in status["models"]] == ["parent"] and status["schema"] == "provindex.index/1"
    assert run("index", "verify", "--index", tmp_path / "index").status == 0
    shard = next((tmp_path / "index" / "data" / "models").glob("*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = run("index", "verify", "--index", tmp_path / "index", "--json")
    assert broken.status == 1 and document(broken)["problems"][0]["where"].startswith("data/models/")
    no_secrets(broken.out)


def test_the_index_comes_from_the_environment(models: Path, index: Path) -> None:
    ran = run("index", "status", "--json", PROVINDEX_INDEX=str(index))
    assert document(ran)["index"]["id"] == "zoo"


# --- what cannot be done: status 2, one sentence ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query"], "Missing argument"),
        (["qurey", "x"], "No such command"),
        (["query", "x", "--top", "0"], "--top"),
        (["compare", "a", "b", "--expect", "maybe"], "--expect"),
        (["query", "x", "--format", "xml"], "--format"),
        (["index", "add", "x"], "--index"),
        (["index", "add", "x", "--index", "nowhere", "--output", "y"], "No such option"),
        (["query", "./nowhere/at/all"], "nowhere"),
        (["query", "org/name", "--offline"], "not in the Hub cache"),
        (["query", "x", "--index", "nowhere"], "nowhere is not an index"),
        (["query", "x", "-o", "nowhere/answer.txt"], "there is no folder nowhere"),
        (["query", "x", "-o", "."], "is a folder"),
        (["fingerprint", "x", "-o", "x.txt"], "does not end in .parquet"),
        (["index", "add", "x", "--index", "nowhere"], "has no index to add to"),
    ],
)
def test_what_cannot_be_done_is_status_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    ran = run(*arguments, cwd=tmp_path)
    assert ran.status == 2 and ran.out == ""
    assert said in ran.err and "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    ran = run("query", tmp_path / "model.safetensors", "-q")
    assert ran.status == 2 and ran.err.startswith("provindex: ") and ran.err.count("\n") == 1


CRASH = "import provindex.api as i; i.Index.load = lambda *a: 1 / 0; from provindex.__main__ import main; main()"


@pytest.mark.parametrize("debug", [None, "1"])
def test_a_crash_is_status_2_and_shows_where_if_asked(debug: str | None) -> None:
    """A crash must not look like a failed gate; python's own status for an exception is 1."""
    command = [sys.executable, "-c", CRASH, "index", "status"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(PROVINDEX_DEBUG=debug))
    assert ran.returncode == 2
    assert ("Traceback" in ran.stderr) == bool(debug) and "ZeroDivisionError" in ran.stderr


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&-", "<&- >/dev/null 2>&-"])
def test_a_stream_that_is_closed_or_full_fails_no_gate(where: str, models: Path, index: Path) -> None:
    """Status 1 says that a model descends from what is denied."""
    asked = [sys.executable, "-m", "provindex", "query", models / "stranger", "--index", index, "--deny", LONG]
    ran = subprocess.run(["sh", "-c", f'"$@" {where}', "sh", *map(str, asked)], env=environment(), capture_output=True)
    assert ran.returncode == (2 if "full" in where else 0), ran
    empty = subprocess.run(["sh", "-c", f'"$@" {where}', "sh", *map(str, asked[:4]), "-"], stdin=subprocess.DEVNULL,
                           env=environment(), capture_output=True)  # fmt: skip
    assert empty.returncode == 2


def test_a_reader_that_goes_away_is_no_failed_gate(index: Path) -> None:
    command = [sys.executable, "-m", "provindex", "index", "status", "--index", str(index)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, b"")


def test_an_interrupt_is_status_130(tmp_path: Path) -> None:
    """While it waits for a list from a pipe that nobody has written to yet.

    Jobs that a shell starts in the background inherit an ignored SIGINT: the command is started as from a terminal.
    """

    def heard() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    os.mkfifo(tmp_path / "list")
    command = [sys.executable, "-m", "provindex", "index", "build", "list", "-o", "index"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), cwd=tmp_path, preexec_fn=heard) as process,
        (tmp_path / "list").open("w"),  # opens when the other side reads
    ):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b"provindex: Interrupted.\n"
    assert process.returncode == 130 and not (tmp_path / "index").exists()


def test_an_output_file_is_whole_or_not_there(models: Path, index: Path, tmp_path: Path) -> None:
    target = tmp_path / "answer.json"
    target.write_text("old")
    ran = run("query", models / "nowhere", "--index", index, "--json", "-o", target)
    assert ran.status == 2 and target.read_text() == "old"
    assert run("query", models / "child", "--index", index, "--json", "-o", target, "-q").status == 0
    assert json.loads(target.read_text())["schema"] == "provindex.query/1"
    assert [p.name for p in tmp_path.iterdir()] == ["answer.json"]


def test_an_output_that_is_no_file_is_written_to_and_stays(models: Path, index: Path, tmp_path: Path) -> None:
    """A container runs as root, who may put a file into the place of /dev/null: this must not happen by -o."""
    asked = ("query", models / "child", "--index", index, "-q", "-o")
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "provindex", *map(str, asked), str(tmp_path / "pipe"), "--json"]
    with subprocess.Popen(command, env=environment()) as process, (tmp_path / "pipe").open() as read:
        assert json.load(read)["schema"] == "provindex.query/1"
    assert process.returncode == 0 and (tmp_path / "pipe").is_fifo()
    os.mkfifo(tmp_path / "pipe.parquet")
    ran = run("fingerprint", models / "child", "-o", tmp_path / "pipe.parquet", "-q")
    assert ran.status == 2 and "is no regular file" in ran.err and (tmp_path / "pipe.parquet").is_fifo()


# --- terminals ---


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("verb", ["query", "compare", "status", "fingerprint"])
def test_no_line_is_wider_than_the_terminal(models: Path, index: Path, columns: int, verb: str) -> None:
    arguments = {
        "query": ["query", models / "child", "--index", index],
        "compare": ["compare", LONG, models / "narrow", "--index", index],
        "status": ["index", "status", "--index", index],
        "fingerprint": ["fingerprint", LONG, "--index", index],
    }[verb]
    ran = run_on_terminal(columns, *arguments)
    assert ran.status == 0
    lines = COLOR.sub("", ran.out).splitlines()
    assert lines and max(map(len, lines)) <= columns, lines
    assert LONG in "".join(line.strip() for line in lines)  # an id is wrapped, never cut
    assert "\x1b[1m" in ran.out


def test_no_color_where_it_is_not_wanted(models: Path, index: Path) -> None:
    assert "\x1b" not in run_on_terminal(80, "index", "status", "--index", index, NO_COLOR="1").out
    assert "\x1b" not in run_on_terminal(80, "index", "status", "--index", index, "--json").out


def test_work_shorter_than_a_second_shows_no_progress(models: Path, index: Path) -> None:
    assert "\r" not in run_on_terminal(80, "query", models / "child", "--index", index).err


def shown_progress(stream: TextIO, **options: bool) -> bool:
    with Bar("reading model", "bytes", stream, **options) as bar:
        bar(1 << 20, 4 << 20)
        bar(4 << 20, 4 << 20)
    return bar.shown


def test_progress_is_for_terminals_only_and_wiped_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("provindex.common.progress.DELAY", 0.0)
    outer, inner = pty.openpty()
    with os.fdopen(inner, "w") as terminal, (tmp_path / "piped").open("w") as piped:
        assert not shown_progress(piped) and not shown_progress(terminal, quiet=True)
        assert shown_progress(terminal)
        said = ""
        while not said.endswith(WIPE):  # a terminal gives what it has by now, which may be a part
            said += os.read(outer, 4096).decode()
    os.close(outer)
    assert "reading model [######" in said and said.count(WIPE) == 1 and "\n" not in said
    assert (tmp_path / "piped").read_text() == ""


# --- what is not touched ---

ONE_THREAD = """
import atexit, os, runpy, sys
assert "numpy" not in sys.modules
atexit.register(lambda: print("threads", os.environ.get("OPENBLAS_NUM_THREADS"), file=sys.stderr))
sys.argv = ["provindex", "index", "status"]
runpy.run_module("provindex", run_name="__main__")
"""


NO_PANDAS = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded", "pyarrow" in sys.modules, "pandas" in sys.modules, file=sys.stderr))
sys.argv = ["provindex", "fingerprint", *sys.argv[1:]]
runpy.run_module("provindex", run_name="__main__")
"""


def test_a_fingerprint_is_kept_without_pandas(tmp_path: Path) -> None:
    """Which pyarrow imports to ask whether an array is a series: a third of a second of each first run."""
    folder = zoo.write(zoo.llama(1), tmp_path / "m")
    env = environment(PROVINDEX_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-c", NO_PANDAS, str(folder), "-q"]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert ran.stderr.endswith("loaded True False\n") and list((tmp_path / "cache").rglob("*.parquet"))


@pytest.mark.parametrize(("set_to", "found"), [(None, "1"), ("3", "3")])
def test_blas_gets_one_thread_unless_told_otherwise(index: Path, set_to: str | None, found: str) -> None:
    """Its panels are small: with threads of its own it spins for longer than it computes."""
    env = environment(OMP_NUM_THREADS=None, OPENBLAS_NUM_THREADS=set_to, PROVINDEX_INDEX=str(index))
    ran = subprocess.run([sys.executable, "-c", ONE_THREAD], capture_output=True, text=True, env=env)
    assert ran.returncode == 0 and ran.stderr.splitlines()[-1] == f"threads {found}"


def test_help_imports_nothing_heavy() -> None:
    ran = run_closed(HEAVY, "--help")
    assert ran.status == 0 and "query" in ran.out
    assert ran.err.splitlines()[-1] == "imported: "


@pytest.mark.skipif(not (SEED / "manifest.json").exists(), reason="the seed index has not been built")
def test_an_indexed_id_needs_no_network_and_no_weights(tmp_path: Path) -> None:
    """The first command of the README: from the embedded index alone, at once."""
    heavy = ("datasets", "tokenizers", "huggingface_hub", "safetensors", "torch", "transformers", "pandas")
    ran = run_closed(heavy, "query", "cnmoro/portuguese-multilingual-e5-small", cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert ran.err.splitlines()[-1] == "imported: "
    assert ran.err.startswith("index  seed@")
    assert "Descends from intfloat/multilingual-e5-small" in ran.out and "ancestor" in ran.out


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_opens_no_socket(how: str, tmp_path: Path) -> None:
    flags, env = (["--offline"], {}) if how == "--offline" else ([], {"HF_HUB_OFFLINE": "1"})
    ran = run_closed((), "query", "org/not-here", *flags, cwd=tmp_path, **env)
    assert ran.status == 2 and "org/not-here is not in the Hub cache" in ran.err


def test_deny_takes_a_family_and_the_spelling_of_reports() -> None:
    e5 = "cnmoro/portuguese-multilingual-e5-small"
    family = run("query", e5, "--trust-index", "--deny", "microsoft/Multilingual-MiniLM-L12-H384", "--json")
    assert family.status == 1 and json.loads(family.out)["denied"][0]["status"] == 1
    spelled = run("query", e5, "-q", "--trust-index", "--deny", "intfloat/multilingual-e5-small [q4-dequantized]")
    assert (spelled.status, "linked" in spelled.err) == (1, True)


def test_the_embedded_index_has_a_name_beside_a_private_one(index: Path) -> None:
    both = run("query", "openai/whisper-base", "--index", "embedded", "--index", index)
    assert both.status == 0 and "seed+" in both.err and "from the index" in both.err


def test_a_copy_of_an_indexed_model_is_told_that_it_is_there(models: Path, index: Path) -> None:
    ran = run("query", models / "stranger", "--index", index)
    assert "The index has these very weights as stranger; that row is left out." in ran.out
    assert "Trained from scratch" not in ran.out


def test_other_weights_under_a_name_that_is_taken_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        zoo.write(zoo.llama(seed), tmp_path / str(seed) / "model")
    ran = run("index", "build", tmp_path / "1" / "model", tmp_path / "2" / "model", "-o", tmp_path / "index")
    assert ran.status == 1 and "Other weights are in the index as model" in ran.err
    assert run("index", "status", "--index", tmp_path / "index", "--json").out.count('"model_id": "model"') == 1


# --- sentences that say what to do next ---


@pytest.fixture(scope="module")
def mistakes(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, a Git LFS pointer, archives of a model, and a list with a comment."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("one", "two"):
        shutil.copytree(models / "stranger", folder / "many" / name)
    (folder / "lfs").mkdir()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{7:064d}\nsize 123456789\n"
    (folder / "lfs" / "model.safetensors").write_text(pointer)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(folder / "packed"), kind, folder / "many" / "one")
    (folder / "list").write_text("many/one  # what we trained\n\n# nothing\nmany/two # and this\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "lfs"], "Run `git lfs pull` in its folder"),
        (["query", "many/one/config.json"], "holds none itself. Name its folder: many/one."),
        (["query", "many/one/tokenizer.json"], "holds none itself. Name its folder: many/one."),
        (["query", "many"], "many is no model, but a folder of 2: one, two. Name one: many/one;"),
        (["query", "all-MiniLM-L6-v2"], "Did you mean sentence-transformers/all-MiniLM-L6-v2?"),
        (["query", "intfloat/multilingual-e5-small#q9"], "It has intfloat/multilingual-e5-small#q4-dequantized."),
        (["query", "intfloat/multilingual-e5-small [q9]"], "It has intfloat/multilingual-e5-small#q4-dequantized."),
        (["query", "https://huggingface.co/org/name/tree/main", "--offline"], "org/name@main is not in the Hub cache"),
        (["query", "hf://org/name/model.gguf", "--offline"], "org/name/model.gguf is not in the Hub cache"),
        (["query", "hf://datasets/org/name"], "is a dataset, and no model"),
        (["query", "many/one", "--index", "https://huggingface.co/datasets/org/name"], "provindex index pull org/name"),
        (["query", "packed.zip"], "unpack it, and name the folder"),
        (["query", "packed.tar"], "Unpack it"),
        (["query", "packed.tar.gz"], "Unpack it"),
        (
            ["query", "many/one", "--json", "-o", "/dev/full"],
            "/dev/full could not be written: No space left on device.",
        ),
    ],
)
def test_a_mistake_is_met_by_a_sentence_that_says_what_to_do(arguments: list[str], said: str, mistakes: Path) -> None:
    ran = run(*arguments, "-q", cwd=mistakes, HF_HOME=str(mistakes / "hf"), HF_HUB_OFFLINE="1")
    assert ran.status == 2 and ran.out == "" and said in ran.err and ran.err.count("\n") == 1


def test_comments_in_lists_and_the_name_that_answers_show(mistakes: Path, tmp_path: Path) -> None:
    built = run("index", "build", "list", "-o", tmp_path / "index", cwd=mistakes)
    assert built.status == 0 and "added one" in built.out and "added two" in built.out
    shown = run("query", "many/one", "--index", "seed", cwd=mistakes).err
    assert (
        shown.startswith(f"index  {document(run('index', 'status', '--json'))['index']['id']}@")
        and "15 models" in shown
    )


def test_a_full_disk_behind_standard_output_and_a_reader_of_both_that_is_gone(models: Path, index: Path) -> None:
    asked = [sys.executable, "-m", "provindex", "query", str(models / "stranger"), "--index", str(index)]
    full = subprocess.run(
        ["sh", "-c", '"$@" > /dev/full', "sh", *asked], env=environment(), capture_output=True, text=True
    )
    assert full.returncode == 2 and "standard output could not be written: No space left on device." in full.stderr
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()) as process:
        assert process.stdout
        process.stdout.close()
    assert process.returncode == 0
