"""The wheel: what is in it, how large it is, and that it answers from the embedded index far from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import CLOSED, environment

REPOSITORY = Path(__file__).parent.parent
SEED = REPOSITORY / "provindex" / "index" / "seed"
MAX_WHEEL = 30_000_000
MAX_SEED = 24_000_000

pytestmark = [
    pytest.mark.skipif(not (SEED / "manifest.json").exists(), reason="the seed index has not been built"),
    pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed (pip install .[dev])"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=REPOSITORY, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_the_seed_index_and_nothing_of_the_workshop(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("provindex/index/seed/manifest.json"))
    shards = {f"provindex/index/seed/{shard[kind]}" for shard in manifest["shards"] for kind in ("models", "panels")}
    assert shards and shards <= names
    assert {f"provindex/{path}/NOTICE" for path in ("peers", "catalogue")} <= names
    assert {"provindex/peers/cisco_catalogue.json", "provindex/catalogue/models.json"} <= names
    assert {"provindex/py.typed", "provindex/roles/config_defaults.json", "provindex/cli/query.py"} <= names
    assert not [n for n in names if n.startswith(("tests/", "build_index/", "notebooks/")) or "__pycache__" in n]


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL
    assert sum(f.stat().st_size for f in SEED.rglob("*") if f.is_file()) <= MAX_SEED


def test_it_answers_without_a_network_and_without_weights(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-c", CLOSED, "datasets", "query", "cnmoro/portuguese-multilingual-e5-small", "--json"]
    env = environment(PYTHONPATH=str(tmp_path / "site") + os.pathsep + os.environ.get("PYTHONPATH", ""))
    ran = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    ancestors = [m["model_id"] for m in json.loads(ran.stdout)["matches"] if m["direction"] == "ancestor"]
    assert ancestors == ["intfloat/multilingual-e5-small"]
    where = "import provindex; print(provindex.__file__)"
    told = subprocess.run([sys.executable, "-c", where], cwd=elsewhere, env=env, capture_output=True, text=True)
    assert told.stdout.startswith(str(tmp_path / "site"))
