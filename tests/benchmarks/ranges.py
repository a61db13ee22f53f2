"""What is read of a model on the Hub: `python tests/benchmarks/ranges.py [--root FOLDER]`.

Sparse files of the shapes of published models (zeros, but for the embedding) lie on a Hub on 127.0.0.1, so the bytes
and the requests are those of the real ones and the seconds are those of our side, without a network: add bytes by
bandwidth, and one round trip for every 8 requests. Stage 0 is mode "norms", in a cache of its own. Stage 2 is what is
read where stage 1 finds no link; "fetched" has the gaps between near ranges too. "anon" is the peak of memory that is
not mapped files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import zoo
from hub_server import Hub
from hub_server.store import Repo, git_oid, pointer

SHARD = 5_000_000_000
FILLED = 31_000  # rows of the embedding: all anchors are among them
# name: layers, width, MLP width, query heads, key heads, vocabulary, experts (0: dense)
SHAPES = {
    "llama-2-7b": (32, 4096, 11008, 32, 32, 32000, 0),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128256, 0),
    "mixtral-8x7b": (32, 4096, 14336, 32, 8, 32000, 8),
    "llama-3.1-70b": (80, 8192, 28672, 64, 8, 128256, 0),
}
PROGRAM = """
import json, sys, threading, time
from provindex.api import resolve
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.02):
        with open("/proc/self/status") as status:
            peak = max(peak, next(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
thread = threading.Thread(target=watch); thread.start()
out = []
start = time.perf_counter()
found = resolve(sys.argv[1], mode=sys.argv[2] or None, stage=1)
for stage in (1, 2):
    fp = found.fingerprint
    sent = sum(file.transferred for file in found.model.reads)
    out.append(dict(read=fp.bytes_read, total=fp.bytes_total, sent=sent, seconds=time.perf_counter() - start))
    found = found.further() or found
done.set(); thread.join()
print(json.dumps(dict(stages=out, anon=peak * 1024)))
"""


def tensors(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    layers, width, inner, heads, keys, vocabulary, experts = SHAPES[name]
    size = width // heads
    yield "model.embed_tokens.weight", (vocabulary, width)
    for i in range(layers):
        layer = f"model.layers.{i}."
        for role, rows in (("q", heads * size), ("k", keys * size), ("v", keys * size)):
            yield f"{layer}self_attn.{role}_proj.weight", (rows, width)
        yield f"{layer}self_attn.o_proj.weight", (width, heads * size)
        if experts:
            yield f"{layer}block_sparse_moe.gate.weight", (experts, width)
        for e in range(experts):
            expert = f"{layer}block_sparse_moe.experts.{e}."
            yield from ((expert + "w1.weight", (inner, width)), (expert + "w3.weight", (inner, width)))
            yield expert + "w2.weight", (width, inner)
        if not experts:
            yield from ((f"{layer}mlp.{n}_proj.weight", (inner, width)) for n in ("gate", "up"))
            yield f"{layer}mlp.down_proj.weight", (width, inner)
        yield from ((f"{layer}{n}_layernorm.weight", (width,)) for n in ("input", "post_attention"))
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)


def publish(hub: Hub, name: str) -> None:
    """A sparse bf16 checkpoint in shards."""
    layers, width, inner, heads, keys, vocabulary, experts = SHAPES[name]
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for tensor, shape in tensors(name):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if end + size > SHARD:
            shards.append({})
            end = 0
        shards[-1][tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    tree, weight_map = {}, {}
    for i, header in enumerate(shards):
        path = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        text = json.dumps(header).encode()
        size = 8 + len(text) + max(entry["data_offsets"][1] for entry in header.values())
        digest = f"{abs(hash((name, i))):064x}"  # nobody reads a hundred gigabytes of zeros to know their digest
        with (hub.root / "lfs" / digest).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(size)
            if i == 0:  # anchors of zeros would end stage 2 before it begins
                rng = np.random.default_rng(0)
                for _ in range(FILLED):
                    values = rng.standard_normal(width).astype(np.float32)
                    file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
        tree[path] = [git_oid("blob", pointer(digest, size)), size, digest]
        weight_map |= dict.fromkeys(header, path)
    config = {
        "model_type": "mixtral" if experts else "llama", "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": vocabulary,
        "num_local_experts": experts,
    }  # fmt: skip
    small = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": zoo.llama(0).tokenizer.encode(),  # type: ignore[union-attr]
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
    }
    tree |= {path: hub.put_file(path, data) for path, data in small.items()}
    one = hub.repos.setdefault(("model", f"org/{name}"), Repo(hub, "model", f"org/{name}"))
    one.commit("refs/heads/main", list(one.refs.values()), tree, "publish", "", "alice")


def run(hub: Hub, name: str, root: Path, mode: str) -> tuple[dict[str, Any], int]:
    """What a new process with an empty cache reads of a model, and in how many requests for ranges."""
    hub.log.clear()
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "hf" / mode), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PROVINDEX_CACHE": str(root / "cache" / f"{name}{mode}"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"org/{name}", mode],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout), sum(1 for method, _, status, *_ in hub.log if method == "GET" and status == 206)


def measured(hub: Hub, name: str, root: Path) -> str:
    publish(hub, name)
    (first, few), (found, asked) = (run(hub, name, root, mode) for mode in ("norms", ""))
    zero, (one, two), total = first["stages"][0], found["stages"], found["stages"][0]["total"]
    shown = [name, f"{total / 1e9:.1f}"]
    shown += [f"{zero['read'] / 1e6:.1f}", f"{zero['sent'] / 1e6:.1f}", f"{zero['seconds']:.1f}", str(few)]
    for stage in (one, two):
        shown += [f"{stage['read'] / 1e6:,.0f}", f"{stage['read'] / total:.2%}", f"{stage['sent'] / total:.2%}"]
        shown.append(f"{stage['seconds']:.1f}")
    return "| " + " | ".join([*shown, f"{asked:,}", f"{found['anon'] / 1e6:.0f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for the sparse files and the caches")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    chosen = parser.parse_args()
    stages = "| shape | GB | stage 0 MB | fetched MB | s | requests | stage 1 MB | of all | fetched | s "
    print(stages + "| + stage 2 MB | of all | fetched | s | requests | anon MB |")
    print("|---|" + "--:|" * 15)
    with tempfile.TemporaryDirectory(dir=chosen.root) as folder, Hub(Path(folder) / "hub").run() as hub:
        for name in chosen.models:
            print(measured(hub, name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
