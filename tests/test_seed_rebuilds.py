"""The embedded index is what its own build makes of its sources, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_index.build_seed import BUILT, build
from build_index.catalog import load_catalog
from build_index.seed_sources import default_root
from provindex.index.entries import SEED

ROOT = default_root()
CATALOG = Path(__file__).parent.parent / "build_index" / "seed.toml"
THERE = all((ROOT / "snapshots" / e.snapshot / "SOURCE.json").exists() for e in load_catalog(CATALOG))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.real
@pytest.mark.skipif(not THERE, reason="the real snapshots are not there")
def test_the_embedded_index_rebuilds_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", BUILT)
    build(ROOT, tmp_path / "seed")
    assert contents(tmp_path / "seed") == contents(SEED)


def test_the_lock_file_pins_every_package_and_names_no_place() -> None:
    text = (CATALOG.parent / "requirements.lock").read_text(encoding="utf-8")
    packages = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(packages) > 30 and all("==" in line for line in packages)
    assert text.count("--hash=sha256:") >= len(packages) and "://" not in text and "--index" not in text
    for needed in ("numpy", "pyarrow", "tokenizers", "faiss-cpu"):
        assert any(line.startswith(f"{needed}==") for line in packages)
