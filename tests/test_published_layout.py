"""What is published is a dataset like any other: `load_dataset`, streaming, and small columns by HTTP ranges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from commands import environment
from hub_server import Hub
from machines import MAINTAINER
from prints import fingerprint

from build_index.publish import publish
from provindex.api import Index
from provindex.fingerprint import parquet
from provindex.fingerprint.rows import COLUMNS, to_row
from provindex.index import dataset
from provindex.index.entries import SEED
from provindex.index.search import DIMENSIONS

REPO = "org/layout"
LOADED = """
import json, sys
import datasets
from datasets import load_dataset
repo, config, streaming = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
found = load_dataset(repo, config, streaming=streaming) if config else load_dataset(repo, streaming=streaming)
assert list(found) == ["train"]
rows = list(found["train"])
told = {name: str(feature) for name, feature in found["train"].features.items()}
ids = sorted(row.get("model_id") or row["row_sha256"] for row in rows)
lengths = {name: len(value) for name, value in rows[0].items() if isinstance(value, list)}
print(json.dumps({"features": told, "ids": ids, "lengths": lengths}))
"""


@pytest.fixture
def published(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", MAINTAINER)
    publish(SEED, REPO)
    hub.log.clear()
    return hub


@pytest.mark.parametrize(("config", "streaming"), [("", False), ("models", True), ("panels", False), ("panels", True)])
def test_load_dataset_reads_it(config: str, streaming: bool, published: Hub, tmp_path: Path) -> None:
    """In a process of its own, as a user would; without a name it is the models."""
    env = environment(HF_HOME=str(tmp_path / "hf"), HF_TOKEN=None)
    command = [sys.executable, "-c", LOADED, REPO, config, str(streaming)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    seed = Index.load(SEED)
    table = config or "models"
    wanted = {c.name for c in COLUMNS if c.table in (table, "both")} | ({"vector"} if table == "models" else set())
    assert set(told["features"]) == wanted
    named = [e.model_id if table == "models" else e.row_sha256 for e in seed]
    assert told["ids"] == sorted(named)
    if table == "models":
        assert told["lengths"]["vector"] == DIMENSIONS and "length=3520" in told["features"]["vector"]
    else:
        assert "float16" in told["features"]["sketch_layers"] and told["lengths"]["residual_ids"] == 512


def test_small_columns_come_without_the_arrays(hub: Hub, tmp_path: Path) -> None:
    """As polars and DuckDB read it: the footer and the chunks of a few columns, by ranges of the file."""
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    row, rng = to_row(fingerprint(zoo.llama(1, layers=1, hidden=32))), np.random.default_rng(0)
    rows = [
        {**row, "model_id": f"org/{n}", "license": "mit", dataset.VECTOR: rng.standard_normal(DIMENSIONS, np.float32)}
        for n in range(300)
    ]
    path = tmp_path / "rows.parquet"
    parquet.write(path, rows, dataset.schema("models"), dataset.MODELS_PER_GROUP)
    hub.publish("org/columns", {"data/models/rows.parquet": path.read_bytes()}, kind="dataset")
    files = HfFileSystem(token=MAINTAINER, skip_instance_cache=True)
    hub.log.clear()
    with files.open("datasets/org/columns/data/models/rows.parquet", block_size=1 << 16) as opened:
        found = pq.ParquetFile(opened).read(columns=["model_id", "license", "parameters"])
    assert found.num_rows == 300 and set(found["license"].to_pylist()) == {"mit"}
    size = path.stat().st_size
    assert served(hub) < size / 10, f"{served(hub):,} of {size:,} bytes"


def test_one_models_arrays_come_without_the_others(published: Hub) -> None:
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    files = HfFileSystem(token=MAINTAINER, skip_instance_cache=True)
    (path,) = files.glob(f"datasets/{REPO}/data/panels/*.parquet")
    published.log.clear()
    with files.open(path, block_size=1 << 16) as opened:
        source = pq.ParquetFile(opened)
        found = source.read_row_group(3, columns=["row_sha256", "eas", "sketch_layers"])
        assert source.num_row_groups == 15
    assert np.isfinite(found["eas"][0].values.to_numpy()).all()
    assert served(published) < 0.05 * files.info(path)["size"]


def served(hub: Hub) -> int:
    """Bytes of files that went over the wire."""
    return sum(count for method, path, _, count, _ in hub.log if method == "GET" and "/_lfs/" in path)
