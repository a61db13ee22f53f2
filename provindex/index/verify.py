"""Whether an index folder is what it says: every digest, every row's hash, every vector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from provindex.common.errors import IndexFormatError
from provindex.common.files import file_sha256
from provindex.fingerprint import parquet
from provindex.fingerprint.rows import Row, completed, row_hash
from provindex.index import dataset
from provindex.index.entries import Problem
from provindex.index.search import vector
from provindex.verdict.calibration import load as load_calibration


def verify_folder(folder: Path) -> Iterator[tuple[list[Problem], int]]:
    """What is wrong with an index folder, part by part, and how many rows each part has."""
    manifest = dataset.read_manifest(folder)
    complaint = manifest.complaint(dataset.manifest_document(folder))
    problems = [Problem(dataset.MANIFEST, complaint)] if complaint else []
    if manifest.calibration is not None:
        try:
            load_calibration(folder, manifest.calibration)
        except IndexFormatError as error:
            problems.append(Problem(manifest.calibration, error.message))
    yield problems, 0
    for shard in manifest.shards:
        files = [p for name in (shard.models, shard.panels) if (p := verify_file(folder, name, shard)) is not None]
        yield files or verify_rows(folder, shard), shard.rows
    yield _strays(folder, manifest), 0


def _strays(folder: Path, manifest: dataset.Manifest) -> list[Problem]:
    """Shards that lie in the folder, are in no manifest, and were not replaced by others: nothing reads them."""
    known = {name for shard in manifest.shards for name in (shard.models, shard.panels)}
    lying = {f"{kind}/{p.name}" for kind in (dataset.MODELS, dataset.PANELS) for p in (folder / kind).glob("*.parquet")}
    what = "not in the manifest, so not part of the index: left by a save that was cut off; it can be removed"
    return [Problem(name, what) for name in sorted(lying - known - dataset.replaced(folder).keys())]


def verify_file(folder: Path, name: str, shard: dataset.Shard) -> Problem | None:
    """What is wrong with one file of a shard by its digest in the manifest; None if it is the file that was written."""
    try:
        digest = file_sha256(folder / name)
    except FileNotFoundError:
        return Problem(name, "missing")
    except OSError as error:
        return Problem(name, f"cannot be read: {error.strerror}")
    return None if digest == shard.sha256[name] else Problem(name, "its sha256 is not the manifest's")


def verify_rows(folder: Path, shard: dataset.Shard) -> list[Problem]:
    """Check the hash of every row of a shard, and every vector against its row; an empty list if all is well."""
    problems = []
    try:
        for name in (shard.models, shard.panels):
            parquet.check_footer(folder / name)
        for number, row in enumerate(dataset.read_models(folder, shard)):
            what = _verify_row(row, dataset.read_panels(folder, shard, number))
            if what:
                problems.append(Problem(f"{shard.models}#{number} {row['model_id']}", what))
    except IndexFormatError as error:  # files that are what the manifest says, and yet no shard
        problems.append(Problem(shard.models, error.message))
    return problems


def _verify_row(row: Row, panels: Row) -> str | None:
    whole = completed({**panels, **row})
    if panels["row_sha256"] != row["row_sha256"]:
        return "its panels belong to another row"
    if row_hash(whole) != row["row_sha256"]:
        return "its content does not match its row hash"
    if not np.allclose(vector(parquet.checked(whole)), row[dataset.VECTOR], atol=1e-5):
        return "its retrieval vector does not follow from its content"
    return None
