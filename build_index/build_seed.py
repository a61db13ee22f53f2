"""Build the seed index that ships inside the package: the snapshots of `seed_sources`, as `seed.toml` describes them.

    python -m build_index.build_seed [--root DIR] [--output DIR]

Real models only, with the chance levels of `calibration.json` (`build_index.calibrate` makes it). The same snapshots
give the same bytes: the date is SOURCE_DATE_EPOCH, or the constant below.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from build_index import calibrate
from build_index.catalog import CatalogEntry, load_catalog
from build_index.seed_sources import default_root
from provindex.api import Index
from provindex.common.errors import ProvindexError
from provindex.common.files import FileFact
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.index.entries import SEED
from provindex.models.source import open_model

CATALOG = Path(__file__).with_name("seed.toml")
BUILT = "1795392000"  # 2026-11-23, the day the seed was last made
MAX_BYTES = 24_000_000


def seed_fingerprint(entry: CatalogEntry, root: Path) -> Fingerprint:
    """The fingerprint of one snapshot, under its upstream id, with the sources of every claim."""
    folder = root / "snapshots" / entry.snapshot
    made = fingerprint_model(open_model(str(folder)))
    origin = json.loads((folder / "SOURCE.json").read_text(encoding="utf-8"))
    notes = [f"{name}: {text}" for name, text in origin["conversion"].items() if isinstance(text, str)]
    claims = (("id", entry.id_note), ("license", entry.license_source), ("lineage", entry.lineage_source))
    said = [f"{name}: {text}" for name, text in claims if text]
    stats = origin["stats"]
    return replace(
        made,
        model_id=entry.model_id,
        revision=None,
        variant=entry.variant,
        family=entry.family,
        license=entry.license,
        parents=entry.parents,
        id_certainty=entry.id_certainty,
        source=" | ".join([*said, f"package: {', '.join(origin['packages'])}", *notes]),
        files=(FileFact("model.safetensors", stats["bytes"], stats["sha256"]),),
    )


def build(root: Path, output: Path, calibration: Path = calibrate.OUTPUT) -> Index:
    """Write the seed index, whole or not at all; raises ProvindexError naming what is missing or too large.

    calibration: the file of chance levels, copied in and named in the manifest.
    """
    catalog = load_catalog(CATALOG)
    missing = [e.snapshot for e in catalog if not (root / "snapshots" / e.snapshot / "SOURCE.json").exists()]
    if missing:
        raise ProvindexError(
            f"{len(missing)} of {len(catalog)} snapshots are not there: {', '.join(missing)}.",
            "Make them with `python -m build_index.seed_sources`.",
        )
    if not calibration.exists():
        raise ProvindexError(
            f"There is no {calibration.name}, which the seed carries.",
            "Make it with `python -m build_index.calibrate`.",
        )
    os.environ.setdefault("SOURCE_DATE_EPOCH", BUILT)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        fresh = Path(scratch) / "seed"
        index = Index.build((seed_fingerprint(entry, root) for entry in catalog), name="seed")
        index.save(fresh, who="seed")
        calibrate.attach(fresh, calibration.read_bytes())
        size = sum(f.stat().st_size for f in fresh.rglob("*") if f.is_file())
        if size > MAX_BYTES:
            raise ProvindexError(f"The seed index has {size:,} bytes, at most {MAX_BYTES:,} are allowed.")
        shutil.rmtree(output, ignore_errors=True)
        fresh.rename(output)
    return Index.load(output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and say what was built; status 2 if it could not be."""
    parser = argparse.ArgumentParser(prog="python -m build_index.build_seed", description=__doc__)
    parser.add_argument("--root", type=Path, default=default_root(), help="where seed_sources put its snapshots")
    parser.add_argument("--output", type=Path, default=SEED, help="the index folder to replace")
    parser.add_argument("--calibration", type=Path, default=calibrate.OUTPUT, help="the chance levels that it carries")
    options = parser.parse_args(arguments)
    try:
        index = build(options.root, options.output, options.calibration)
    except ProvindexError as error:
        print(error, file=sys.stderr)
        return 2
    size = sum(f.stat().st_size for f in options.output.rglob("*") if f.is_file())
    print(f"{index.info.id}@{index.info.revision}: {len(index)} models, {size:,} bytes in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
