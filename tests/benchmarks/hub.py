"""What a pull costs: `python tests/benchmarks/hub.py [--root FOLDER] [--models 150 10000]`.

The indexes are those of retrieval.py: up to 200 rows have the size of a 7B model, the others are small. They lie on a
Hub on 127.0.0.1, so the numbers are those of our side (requests, digests, disk), without a network: divide the bytes by
the bandwidth of yours. Printed beside them: a plain copy and a plain sha256 of the same files on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from provindex.common.files import file_sha256

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import retrieval
from hub_server import Hub
from hub_server.store import Repo, git_oid, pointer

from provindex.index import dataset

SMALL = "org1/small1"  # a row that every index of more than 200 models has


def publish(hub: Hub, repo: str, folder: Path) -> None:
    """Put an index folder on the Hub as it is, without copying its shards through memory."""
    manifest = dataset.read_manifest(folder)
    tree = {}
    for shard in manifest.shards:
        for path, digest in shard.sha256.items():
            target = hub.root / "lfs" / digest
            if not target.exists():
                os.link(folder / path, target)
            size = shard.bytes[path]
            tree[path] = [git_oid("blob", pointer(digest, size)), size, digest]
    tree[dataset.MANIFEST] = hub.put_file(dataset.MANIFEST, (folder / dataset.MANIFEST).read_bytes())
    one = hub.repos.setdefault(("dataset", repo), Repo(hub, "dataset", repo))
    one.commit("refs/heads/main", list(one.refs.values()), tree, "publish", "", "alice")


def command(environment: Mapping[str, str], *arguments: str) -> tuple[dict[str, Any], float]:
    """(document, seconds) of a command in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "provindex", *arguments, "--json", "-q"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    spent = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout), spent


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def limits(folder: Path, scratch: Path) -> tuple[float, float]:
    """Seconds that a plain copy and a plain sha256 of all shards take, one after the other."""
    files = sorted(folder.glob("data/*/*.parquet"))
    copied = seconds(lambda: [shutil.copyfile(f, scratch / f"{n}") for n, f in enumerate(files)])
    hashed = seconds(lambda: [file_sha256(f) for f in files])
    return copied, hashed


def measure(hub: Hub, folder: Path, work: Path) -> dict[str, float]:
    """One index: pulled, pulled again, extended by one model, pulled again, queried offline."""
    repo, count = f"org/{folder.name}", dataset.read_manifest(folder).models
    publish(hub, repo, folder)
    machine = {"HF_HOME": str(work / "hf"), "PROVINDEX_CACHE": str(work / "cache"), "HF_ENDPOINT": hub.url}
    first, pulled = command(machine, "index", "pull", repo)
    hub.log.clear()
    _, nothing = command(machine, "index", "pull", repo)
    requests = len(hub.log)
    from provindex.api import Index

    more = retrieval.fingerprint(retrieval.zoo.llama(5, layers=1, hidden=32), "org/one-more")
    extended = work / "extended"
    shutil.copytree(folder, extended, copy_function=os.link)
    manifest = dataset.read_manifest(extended)
    shard = dataset.write_shard(extended, [more], "bench")
    (extended / dataset.MANIFEST).unlink()
    shards = (*manifest.shards, shard)
    dataset.write_manifest(extended, dataset.Manifest(manifest.id, manifest.built, shards))
    publish(hub, repo, extended)
    again, increment = command(machine, "index", "pull", repo)
    asked = "large1/model7"
    _, query = command(machine, "query", asked, "--offline")
    _, status = command(machine, "index", "status", "--offline")
    copied, hashed = limits(folder, Path(tempfile.mkdtemp(dir=work)))
    assert len(Index.load(folder)) == count
    size = first["pulled"]["bytes_total"]
    return {
        "models": count, "MB": size / 1e6, "kB a model": size / 1e3 / count, "pull s": pulled,
        "MB/s": size / 1e6 / pulled, "x copy": pulled / copied, "x sha256": pulled / hashed, "nothing new s": nothing,
        "its requests": requests, "one more: kB": again["pulled"]["bytes_fetched"] / 1e3, "one more: s": increment,
        "query offline s": query, "status offline s": status,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the indexes are kept; a temporary folder if not given")
    parser.add_argument("--models", type=int, nargs="+", default=[150, 10_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.root) as temporary:
        root = options.root or Path(temporary)
        made = None
        for number, count in enumerate(options.models):
            folder = root / f"index-{count}"
            if not (folder / dataset.MANIFEST).exists():
                made = made or retrieval.templates()
                retrieval.build(folder, count, made)
            work = Path(tempfile.mkdtemp(dir=temporary))
            with Hub(work / "hub").run() as hub:
                found = measure(hub, folder, work)
            if not number:
                print("| " + " | ".join(found) + " |\n|" + "--:|" * len(found))
            cells = (
                f"{value:,.0f}" if value >= 100 or name == "its requests" else f"{value:.2f}"
                for name, value in found.items()
            )
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
