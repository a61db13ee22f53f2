"""Write provindex/peers/cisco_catalogue.json: the peer's catalogue and base features, cut to what is read of them.

    python -m build_index.peer_catalogue --root FOLDER

FOLDER is the peer's database (`provenancekit/data/database` of Cisco model-provenance-kit), or a folder above it. The
same database gives the same bytes. One file of the database is one line: its path, size, sha256, and the kept fields.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from provindex.common.errors import ProvindexError
from provindex.peers import cisco
from provindex.peers.cisco_files import DEEP, Folder

ORIGIN = "Cisco model-provenance-kit 1.0.0, Apache-2.0; cut to fields that are read, see NOTICE"
SHARD = ("family_id", "shard_path")
FAMILY = ("family_id", "display_name", "publisher")
ASSET = ("asset_id", "model_id", "feature_path", "param_bucket", "source_uri")
FEATURES = ("asset_id", "family_id", "updated_at", "mfi", "tfv", "vocab", "signals")
Document = dict[str, Any]


def _kept(found: Mapping[str, Any], names: tuple[str, ...]) -> Document:
    return {name: found[name] for name in names if name in found}


def documents(root: Path) -> Iterator[tuple[str, Document]]:
    """(path, what is kept of the file) for every document of a database that is read. ProvindexError if it is none."""
    database = cisco.database_in(root)
    folder = Folder(database)

    def file(name: str, limit: int) -> tuple[Mapping[str, Any], Document]:
        found, fact = folder.document(name, limit)
        return found, {"bytes": fact.size, "sha256": fact.sha256}

    found, fact = file(cisco.MANIFEST, cisco.MAX_CATALOG)
    shards = [_kept(shard, SHARD) for shard in found["shards"]]
    yield cisco.MANIFEST, {**fact, "document": {"shards": shards}}
    for shard in shards:
        found, fact = file(shard["shard_path"], cisco.MAX_CATALOG)
        assets = [_kept(asset, ASSET) for asset in found["assets"]]
        yield shard["shard_path"], {**fact, "document": {"family": _kept(found["family"], FAMILY), "assets": assets}}
        for asset in assets:
            found, fact = file(asset["feature_path"], cisco.MAX_FEATURES)
            deep = [ref for ref in found["artifact_refs"] if ref["type"] == "deep_signals"]
            refs = [_kept(ref, ("type", "path")) for ref in deep]
            if any(not ref["path"].startswith(f"{DEEP}/") for ref in refs):
                raise ValueError(f"{asset['asset_id']} has its deep signals elsewhere")
            yield asset["feature_path"], {**fact, "document": {**_kept(found, FEATURES), "artifact_refs": refs}}


def written(root: Path) -> str:
    """The file as text."""
    lines = [
        f"{json.dumps(path)}: {json.dumps(file, separators=(',', ':'), ensure_ascii=True)}"
        for path, file in documents(root)
    ]
    return f'{{"origin": {json.dumps(ORIGIN)}, "files": {{\n' + ",\n".join(lines) + "\n}}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the peer's database, or a folder above it")
    parser.add_argument("--output", type=Path, default=cisco.CATALOGUE, help="the file; the package's own if not given")
    options = parser.parse_args()
    try:
        text = written(options.root)
    except (ProvindexError, ValueError, KeyError, OSError) as error:
        print(f"peer_catalogue: {error}", file=sys.stderr)
        return 2
    options.output.write_text(text, encoding="utf-8")
    print(f"{options.output.name}: {len(text):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
