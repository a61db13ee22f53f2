"""Write the rows of an index to one place that can be carried: a folder, or one Parquet file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from provindex.common.errors import ModelNotFoundError, UsageError
from provindex.common.files import replacing
from provindex.fingerprint import parquet
from provindex.fingerprint.rows import to_row
from provindex.index import dataset
from provindex.index.collection import ROWS_PER_SHARD, Index
from provindex.index.entries import Entry, IndexInfo, Key
from provindex.index.fill import Built
from provindex.verdict.calibration import is_name

SUFFIX = ".parquet"
Unknown = Callable[[Index, str], ModelNotFoundError]


def export(
    index: Index, output: Path, ids: Sequence[str], unknown: Unknown, progress: Callable[[int, int], None]
) -> Built:
    """Write an index, or the rows of some ids, as an index folder or a file of fingerprints; whole or not at all.

    unknown: the error for an id that has no row. UsageError if there is something in the place already.
    """
    wanted = _wanted(index, ids, unknown)
    if not wanted:
        raise UsageError("The index has no rows.", "There is nothing to export.")
    if output.suffix == SUFFIX:
        if len(wanted) > ROWS_PER_SHARD:
            raise UsageError(
                f"A file of fingerprints has at most {ROWS_PER_SHARD} models, and these are {len(wanted):,}.",
                "Name a folder.",
            )
        with replacing(output) as temporary:
            parquet.write(temporary, [to_row(entry.load()) for entry in wanted], parquet.schema("both"), 1)
        found = Index.build((entry.load() for entry in wanted), name=output.stem)
        return Built(found, tuple(entry.label for entry in wanted), (), ())
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there already.", "Name a folder that does not exist yet.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".provindex-export-") as temporary:
        made = Path(temporary) / "index"
        _write(index, made, wanted, output.resolve().name, progress)
        made.rename(output)
    return Built(Index.load(output), tuple(entry.label for entry in wanted), (), ())


def _wanted(index: Index, ids: Sequence[str], unknown: Unknown) -> list[Entry]:
    if not ids:
        return sorted(index, key=lambda entry: entry.key)
    found: dict[Key, Entry] = {}
    for reference in ids:
        entries = index.find(reference)
        if not entries:
            raise unknown(index, reference)
        found |= {entry.key: entry for entry in entries}
    return [found[key] for key in sorted(found)]


def _write(
    index: Index, folder: Path, wanted: Sequence[Entry], name: str, progress: Callable[[int, int], None]
) -> None:
    """An index folder with some rows, and the chance levels that the index has."""
    Index(IndexInfo(name, "unsaved", "", len(wanted)), ()).save(folder)
    shards, done = [], 0
    for start in range(0, len(wanted), ROWS_PER_SHARD):
        part = wanted[start : start + ROWS_PER_SHARD]
        shards.append(dataset.write_shard(folder, (entry.load() for entry in part), "export"))
        progress(done := done + len(part), len(wanted))
    for source in index.folders:
        levels = dataset.read_manifest(source).calibration
        if levels is not None and is_name(levels):
            (folder / levels).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / levels, folder / levels)
            break
    else:
        levels = None
    manifest = dataset.read_manifest(folder)
    dataset.write_manifest(folder, dataset.Manifest(name, manifest.built, tuple(shards), calibration=levels))
    (folder / ".lock").unlink(missing_ok=True)
