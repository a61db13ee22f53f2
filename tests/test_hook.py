"""The hook for pre-commit: which models staged files stand for, and a run of pre-commit itself on a repository.

pre-commit would install provindex into an environment of its own, by pip and the network. Here it runs the hook of
`.pre-commit-hooks.yaml` with `language: system` and this test's interpreter as entry; all other keys are the file's.
So the file's pattern, its way of handing files over, the hook and what pre-commit makes of the exit status are tested.
Not tested: the installation, and that the console script is on the path there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
import zoo
from commands import Ran, environment, run
from gate_models import Places, write_models

from provindex.cli.hook import models_of

HOOKS = Path(__file__).parent.parent / ".pre-commit-hooks.yaml"
(HOOK,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return write_models(tmp_path_factory.mktemp("hook"))


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        (["m/model-00001-of-00002.safetensors", "m/model-00002-of-00002.safetensors"], ["m"]),
        (["b/model.safetensors", "a/x/pytorch_model.bin", "b/consolidated.pt"], ["a/x", "b"]),
        (["m/model.safetensors", "m/onnx/model.onnx", "m/a/b/c.onnx", "mm/model.onnx"], ["m", "mm"]),
        (["model.safetensors"], ["."]),
        (["model.safetensors", "m/model.safetensors"], ["."]),
        (["one/q4.gguf"], ["one"]),
        (["one/mmproj.gguf", "one/q4.gguf"], ["one"]),
        (["split/q4-00002-of-00002.gguf", "split/q4-00001-of-00002.gguf"], ["split"]),
        (["two/q8.gguf"], ["two/q8.gguf"]),
        (["two/q8.gguf", "two/q4-00002-of-00002.gguf"], ["two/q4-00002-of-00002.gguf", "two/q8.gguf"]),
        (["two/q8.gguf", "two/model.safetensors"], ["two"]),
        (["folder"], ["folder"]),
    ],
)
def test_a_model_is_asked_about_once(
    files: list[str], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("q4-00001-of-00002.gguf", "q4-00002-of-00002.gguf")
    kept = (
        "one/q4.gguf",
        "one/mmproj.gguf",
        "two/q8.gguf",
        *(f"{f}/{part}" for f in ("split", "two") for part in parts),
    )
    for name in (*kept, "folder/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert models_of(list(map(Path, files))) == asked


def test_without_rules_there_is_nothing_to_check_and_that_is_no_pass(places: Places, tmp_path: Path) -> None:
    ran = run("hook", places.child / "model.safetensors", cwd=tmp_path)
    assert (ran.status, ran.out) == (2, "") and "No policy denies or allows anything" in ran.err


def test_rules_may_stand_in_the_arguments(places: Places, tmp_path: Path) -> None:
    rules = ("--index", places.index, "--deny", "acme/base", "-q")
    assert run("hook", *rules, places.stranger / "model.safetensors", cwd=tmp_path).status == 0
    ran = run("hook", *rules, places.child / "config.json", places.child / "model.safetensors", cwd=tmp_path)
    assert (ran.status, ran.err) == (1, "denied acme/base: linked (finetune)\n")


# --- pre-commit itself ---


def git(repository: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(repository), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a policy, and the hook as a local one."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    entry = f'"{sys.executable}" -I -m provindex hook'
    own: dict[str, Any] = {**HOOK, "language": "system", "entry": entry}
    config = {"repos": [{"repo": "local", "hooks": [own]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provindex.toml").write_text('deny = ["acme/*"]\n')
    git(folder, "add", ".")
    return folder


def commit_hook(repository: Path, places: Places) -> Ran:
    """`pre-commit run`, which looks at what is staged."""
    home = str(repository.parent / "pre-commit")
    env = environment(PRE_COMMIT_HOME=home, PROVINDEX_INDEX=str(places.index), GIT_CONFIG_GLOBAL=os.devnull)
    command = [sys.executable, "-m", "pre_commit", "run", "--color=never"]
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, encoding="utf-8", timeout=120)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_pre_commit_takes_the_file() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-manifest", str(HOOKS)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert HOOK["entry"] == "provindex hook" and HOOK["language"] == "python" and HOOK["require_serial"]


def test_a_denied_model_is_not_committed(repository: Path, places: Places) -> None:
    assert "no files to check" in commit_hook(repository, places).out, "no weight file is staged"
    zoo.write(zoo.finetune_noise(zoo.spoken(zoo.llama(1), 1), 0.98, 2), repository / "models" / "ours", shards=2)
    zoo.write(zoo.spoken(zoo.llama(7), 7), repository / "models" / "new")
    git(repository, "add", "models/new")
    passed = commit_hook(repository, places)
    assert passed.status == 0 and "Passed" in passed.out, "what is not staged is not looked at"
    git(repository, "add", "models")
    failed = commit_hook(repository, places)
    assert failed.status == 1 and "- exit code: 1" in failed.out
    assert failed.out.count("== models/ours") == 1 and failed.out.count("== models/new") == 1
    assert failed.out.count("denied acme/*: linked to acme/base (finetune)") == 1
    assert "policy provindex.toml" in failed.out


def test_a_model_that_cannot_be_read_is_not_committed(repository: Path, places: Places) -> None:
    (repository / "cut").mkdir()
    (repository / "cut" / "model.safetensors").write_bytes(b"\xff" * 64)
    git(repository, "add", "cut")
    failed = commit_hook(repository, places)
    assert failed.status == 1 and "- exit code: 2" in failed.out


def test_a_file_with_the_name_of_an_option_is_refused(tmp_path: Path) -> None:
    """pre-commit names staged files behind the options: such a file would choose what is left out."""
    zoo.write(zoo.spoken(zoo.llama(1), 1), tmp_path / "m")
    (tmp_path / "--exclude=*.safetensors").write_bytes(b"x")
    ran = run("hook", "--deny", "openai/whisper-base", "--exclude=*.safetensors", "m/model.safetensors", cwd=tmp_path)
    assert ran.status == 2 and "has the name of an option" in ran.err
    ended = run("hook", "--deny", "openai/whisper-base", "--", "m/model.safetensors", cwd=tmp_path)
    assert "has the name of an option" not in ended.err
