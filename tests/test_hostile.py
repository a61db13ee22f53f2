"""Hostile files, a few of each kind, and what bounds them: tokenizers, mappings, counts, the Hub, the disk."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from filelock import FileLock
from hostile.kinds import KINDS
from hostile.place import CONFIG, TOKENIZER, llama, safetensors
from hostile.tokenizers_of_strangers import chain, changed, replace

from provindex.common import files, places
from provindex.common.errors import BusyError, ModelError, NetworkError, UsageError
from provindex.common.reasons import Code
from provindex.common.tokens import ASKED, Tokenizer, TokenizerAbsence
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.formats import tensors
from provindex.hub.client import model_at
from provindex.models import tokenizer_bounds as bounds
from provindex.models.copies import without_copies
from provindex.models.source import open_model
from provindex.models.tokenizer import read_bytes, read_tokenizer
from provindex.report.document import dumps

RUN = Path(__file__).parent / "hostile" / "run.py"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runner asks Linux what a process does")
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


# --- the runner ---


def run(*arguments: str) -> tuple[int, str]:
    ran = subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout


@linux
def test_the_runner_sees_what_must_not_be() -> None:
    status, said = run("--registry", "hostile.planted", "--count", "7")
    assert status == 1
    found = dict(re.findall(r"^(\w+) 0: .*?status -?\d+; (.*?) \[", said, re.MULTILINE))
    assert "good" not in found
    assert found["slow"].endswith("s, 0 are allowed") and found["large"].endswith("MB, 1 are allowed")
    assert "read outside: model.safetensors" in found["outside"] and found["executed"].endswith("; executed")
    assert found["secret"] == "prints what is outside" and found["dies"] == "status -7"


@linux
def test_a_few_of_each_kind() -> None:
    status, said = run("--count", "24", "--start", "7")
    assert status == 0, said
    assert all(f"| {kind.name} |" in said for kind in KINDS)


# --- tokenizers ---


def read(document: Any) -> Tokenizer | TokenizerAbsence:
    return read_tokenizer({"tokenizer.json": json.dumps(document).encode()}, {})


@pytest.mark.parametrize(
    "normalizer",
    [
        chain([replace("e", "ee")] * 24),
        chain([chain([replace("e", "ee")] * 8)] * 3),
        chain([{"type": "Prepend", "prepend": "0" * 1000}] * 5),
        chain([{"type": "ByteLevel"}] * 20),
        replace("e", "e" * 2000),
    ],
)
def test_what_grows_is_not_used(normalizer: Any) -> None:
    found = read(changed(normalizer=normalizer))
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.TOKENIZER_GROWS


def test_an_added_token_that_grows_is_not_used() -> None:
    token = {"id": 60, "content": "q" * 4000, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": True, "special": False}  # fmt: skip
    growing = changed(normalizer=chain([replace("q", "qq")] * 10), added_tokens=[token])
    found = read(growing)
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.TOKENIZER_GROWS
    growing["normalizer"] = chain([replace("q", "qq")] * 2)
    assert isinstance(read(growing), Tokenizer)


def test_what_does_not_grow_is_used() -> None:
    assert max(len(text) for text in ASKED) < 8
    assert isinstance(read(changed(normalizer=chain([replace("e", "ee")] * 3))), Tokenizer)


@pytest.mark.parametrize("pattern", ["", "e" * 5000])
def test_a_pattern_that_is_empty_or_long_is_not_used(pattern: str) -> None:
    found = read(changed(pre_tokenizer={**SPLIT, "pattern": {"Regex": pattern}}))
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.TOKENIZER_PATTERN


def test_a_pattern_whose_ways_cannot_be_counted_is_rehearsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is harmless is used as before; one that is not ends in a process with limits. No file of the current
    folder is imported by it."""
    (tmp_path / "tokenizers.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    harmless, evil = (changed(pre_tokenizer={**SPLIT, "pattern": {"Regex": p}}) for p in (
        "(?:to|in)*x?", "(?:" + "|".join(["."] * 300) + "){2,}(?<=[xyz])"))  # fmt: skip
    assert not bounds.check(harmless, "t") and not bounds.check(evil, "t")
    found = read(evil)
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.TOKENIZER_PATTERN
    assert isinstance(read(harmless), Tokenizer)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
        r" ?[^(\s|[.,!?])]+",
        r"\d{1,2}(?=(\d{3})+(?!\d))",
        r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])",
    ],
)
def test_the_patterns_of_published_tokenizers_need_no_process(pattern: str) -> None:
    assert bounds.ways_of(pattern, 16) <= bounds.MAX_WAYS


def test_a_table_of_a_stated_length_is_not_allocated() -> None:
    """The package would allocate what the first four bytes say, and end the process if it cannot."""
    table = base64.b64encode(b"\xff\xff\xff\xf0" + bytes(100)).decode()
    found = read(changed(normalizer={"type": "Precompiled", "precompiled_charsmap": table}))
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.TOKENIZER_REFUSED


def test_the_patterns_of_a_decoder_are_bounded_too() -> None:
    found = read(changed(decoder={"type": "Replace", "pattern": {"Regex": r"\p{L}" * 100_000}, "content": ""}))
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.TOKENIZER_PATTERN


def test_lists_without_end_are_not_read() -> None:
    many = b"[" + b"[]," * (bounds.MAX_VALUES + 1) + b"[]]"
    for name in ("tokenizer.json", "vocabulary.json"):
        found = read_tokenizer({name: many}, {})
        assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.FILE_VALUES
    found = read_tokenizer({"vocab.txt": b"\n" * (bounds.MAX_MERGES + 1)}, {})
    assert isinstance(found, TokenizerAbsence) and found.reason.code is Code.FILE_VALUES


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(ModelError, match="not a regular file") as raised:
        read_bytes(tmp_path / "vocab.txt", "vocab.txt")
    assert raised.value.reason is not None and raised.value.reason.code is Code.FILE_UNREADABLE


# --- weights ---


def model(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "model.safetensors").write_bytes(safetensors(llama()))
    return folder


def test_a_file_that_is_cut_short_gives_a_sentence(tmp_path: Path) -> None:
    opened = open_model(model(tmp_path / "m"))
    os.truncate(tmp_path / "m" / "model.safetensors", 6000)
    with pytest.raises(ModelError, match="became shorter while it was read"):
        fingerprint_model(opened)


def test_a_large_view_of_a_file_that_was_cut_short_gives_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "AT_ONCE", 64)
    opened = open_model(model(tmp_path / "m"))
    os.truncate(tmp_path / "m" / "model.safetensors", 6000)
    with pytest.raises(ModelError, match="became shorter while it was read"):
        fingerprint_model(opened)


def test_a_file_that_is_written_to_gives_a_sentence(tmp_path: Path) -> None:
    opened = open_model(model(tmp_path / "m"))
    os.utime(tmp_path / "m" / "model.safetensors", ns=(1, 1))
    with pytest.raises(ModelError, match="was changed while it was read"):
        fingerprint_model(opened)


def test_a_model_of_more_files_than_may_be_open(tmp_path: Path) -> None:
    """Each file is open twice; the limit is raised where that is too many."""
    (tmp_path / "m").mkdir()
    shards = {f"t{i}.weight": f"model-{i:05}-of-00059.safetensors" for i in range(1, 60)}
    for name, shard in shards.items():
        (tmp_path / "m" / shard).write_bytes(safetensors({name: (4, 4)}))
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 80, hard))
    try:
        assert len(open_model(tmp_path / "m").tensors) == 59
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_very_many_small_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MANY", 20)
    monkeypatch.setattr(tensors, "LEAST", 4000)
    open_model(model(tmp_path / "m"))  # 20 tensors
    (tmp_path / "m" / "model.safetensors").write_bytes(safetensors({**llama(), "more": (2000,)}))
    open_model(tmp_path / "m")
    monkeypatch.setattr(tensors, "LEAST", 1 << 14)
    with pytest.raises(ModelError, match="more than 20 tensors"):
        open_model(tmp_path / "m")


def test_a_file_beside_that_leads_out_is_not_opened(tmp_path: Path) -> None:
    """Weight files beside the one that is read are compared with it; one that is a link out of the folder is not."""
    folder, outside = model(tmp_path / "m"), model(tmp_path / "outside")
    (folder / "other.safetensors").write_bytes((outside / "model.safetensors").read_bytes())
    codes = [reason.code for reason in without_copies(open_model(folder), folder).warnings]
    assert Code.FILES_SAME in codes
    (folder / "other.safetensors").unlink()
    (folder / "other.safetensors").symlink_to(outside / "model.safetensors")
    codes = [reason.code for reason in without_copies(open_model(folder), folder).warnings]
    assert Code.FILES_SAME not in codes and Code.FILE_NOT_READ in codes


# --- the Hub, the environment, the disk ---


@pytest.mark.parametrize(
    "error", [KeyError("id"), TypeError("must be a mapping"), ValueError("x"), AttributeError("x")]
)
def test_an_answer_that_is_not_understood(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    with pytest.raises(NetworkError, match=r"What the Hub answered about org/name is not understood"):
        model_at("org/name", None)


def test_a_token_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: Any, **__: Any) -> None:
        "\u00e4".encode("ascii")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    with pytest.raises(NetworkError, match="has a character that no token has"):
        model_at("org/name", None)


@pytest.mark.parametrize("said", ["1e30", "9" * 30, "-1", "\u0661", "\u00b2", "x", str(places.LAST + 1)])
def test_an_epoch_that_is_no_time(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", said)
    with pytest.raises(UsageError, match="which is no time"):
        files.now()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(places.LAST))
    assert files.now().year == 9999


def test_json_shows_no_commands_of_a_terminal() -> None:
    document = {"a\u202e": ["\x1b[2J\x9b", "\ud800", "\u2028", "\U000e0001", "\u00e9\u4e2d"]}
    written = dumps(document)
    assert all(line.isprintable() for line in written.splitlines()) and "\u00e9\u4e2d" in written
    assert json.loads(written) == document


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    left, writing, others = (tmp_path / name for name in (".provindex-a.x.tmp", ".provindex-b.x.tmp", ".a.x.tmp"))
    for path in (left, writing, others):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 60, time.time() - 60))
    with writing.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with files.replacing(tmp_path / "c") as temporary:
            temporary.write_text("whole")
        assert not left.exists() and writing.exists() and others.exists()
    with files.replacing(tmp_path / "c") as temporary:
        temporary.write_text("whole again")
    assert not writing.exists() and (tmp_path / "c").read_text() == "whole again" and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for it: the system says EFBIG where a full disk gives ENOSPC."""
    folder, made = model(tmp_path / "m"), tmp_path / "made.parquet"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, "-m", "provindex", "fingerprint", str(folder), "--offline", "-o", str(made)]
    environment = {**os.environ, "PROVINDEX_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, env=environment)
    last = ran.stderr.splitlines()[-1]
    assert ran.returncode == 2 and str(made) in last and "Free some space" in last
    assert "note   the fingerprint was not cached: File too large" in ran.stderr.splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "m"]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_who_holds_a_lock_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "LOCK_SAID", 0.1)
    monkeypatch.setattr(files, "LOCK_LIMIT", 0.3)
    with (
        FileLock(tmp_path / files.LOCK),
        pytest.raises(BusyError, match=r"is locked by .*process"),
        files.locked(tmp_path),
    ):
        pass
    said = capsys.readouterr().err
    assert said.startswith(f"waiting for process {os.getpid()} (") or "another process" in said
    with files.locked(tmp_path):
        assert not capsys.readouterr().err
