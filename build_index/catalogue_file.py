"""Write provindex/catalogue/models.json, the catalogue of base models that comes with the package; or check it.

    python -m build_index.catalogue_file [--check]

Sources: `models.csv` (licenses and lineages, each with its page), `shapes.csv` (sizes, each with its file), the
features that the peer publishes (`provindex/peers/cisco_catalogue.json`), and the weights of the models of the embedded
index, which come before shapes.csv. The same sources give the same bytes. One model is one line. With
--check nothing is written, and every fact that differs from its source is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from build_index.catalog import CatalogError
from build_index.models import CatalogModel, load_models
from build_index.shapes import load_shapes
from provindex.api import Index
from provindex.catalogue.alike import Look
from provindex.catalogue.table import FILE
from provindex.peers import cisco

ORIGIN = "build_index/models.csv, build_index/shapes.csv, and features of Cisco model-provenance-kit 1.0.0; see NOTICE"
MEASURED = "the weights, by the embedded index"
PEER_FEATURES = "features of cisco-ai-provenance-kit 1.0.0"
SIZES = (  # fields of the peer's MFI, in the order of `Shape`
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
HUB = "https://huggingface.co/"
Facts = dict[str, Any]


def peer_facts(path: Path = cisco.CATALOGUE) -> dict[str, Facts]:
    """Shape and tokenizer of each model of the peer's catalogue, by Hub id."""
    files = {name: file["document"] for name, file in json.loads(path.read_text(encoding="utf-8"))["files"].items()}
    found: dict[str, Facts] = {}
    for name, document in files.items():
        for asset in document["assets"] if name.startswith("catalog/by-family/") else ():
            features = files[asset["feature_path"]]
            found[asset["source_uri"].removeprefix(HUB)] = _of_peer(features["mfi"], features.get("tfv"))
    return found


def _of_peer(mfi: Mapping[str, Any], tfv: Mapping[str, Any] | None) -> Facts:
    facts: Facts = {"shape": [mfi["model_type"], *(mfi[name] or 0 for name in SIZES)], "shape_source": PEER_FEATURES}
    if tfv and tfv.get("tokenizer_class"):
        merges = tfv["merge_rule_hash"] if tfv["num_merges"] else ""
        facts["tokenizer"] = [tfv["tokenizer_class"], tfv["vocab_size"], merges]
        facts["tokenizer_source"] = PEER_FEATURES
    return facts


def measured_facts() -> dict[str, Facts]:
    """Shape and tokenizer of each model of the embedded index, by id, as its fingerprint has them."""
    found: dict[str, Facts] = {}
    for entry in Index.load("embedded"):
        fp = entry.load()
        look, merges = Look.of(fp), fp.tfv is not None and fp.tfv.num_merges
        shape = look.shape
        sizes = [shape.hidden, shape.layers, shape.intermediate, shape.heads, shape.kv_heads, shape.vocabulary]
        found[fp.model_id] = {"shape": [shape.model_type, *sizes], "shape_source": MEASURED}
        if fp.tfv is not None and merges:
            found[fp.model_id]["tokenizer"] = [fp.tfv.tokenizer_class, fp.tfv.vocab_size, fp.tfv.merge_rule_hash]
            found[fp.model_id]["tokenizer_source"] = MEASURED
    return found


def facts() -> dict[str, Facts]:
    """What is known of each model, by id, in the order of models.csv; CatalogError if a source is wrong."""
    models = load_models()
    ids = [model.model_id for model in models]
    peer, shapes = peer_facts(), {shape.model_id: shape for shape in load_shapes()}
    missing = sorted(set(peer) - set(ids))
    if missing:
        raise CatalogError(f"models.csv lacks models of the peer's catalogue: {', '.join(missing)}.")
    twice = sorted(set(peer) & set(shapes))
    if twice:
        raise CatalogError(f"shapes.csv has models of which the peer has features: {', '.join(twice)}.")
    found = {}
    measured = measured_facts()
    for model in models:
        said = _stated(model)
        if model.model_id in shapes:
            shape = shapes[model.model_id]
            sizes = (shape.hidden, shape.layers, shape.intermediate, shape.heads, shape.kv_heads, shape.vocabulary)
            said |= {"shape": [shape.model_type, *(size or 0 for size in sizes)], "shape_source": shape.source}
        found[model.model_id] = said | measured.get(model.model_id, {}) | peer.get(model.model_id, {})
    return found


def _stated(model: CatalogModel) -> Facts:
    names = ("family", "license", "license_source", "parent", "parent_source")
    return {name: getattr(model, name) for name in names if getattr(model, name)}


def written(found: Mapping[str, Facts]) -> str:
    """The file as text: sources are listed once, and facts refer to them by number."""
    sources: dict[str, int] = {}
    lines = []
    for model_id, said in found.items():
        row = {n: sources.setdefault(v, len(sources)) if n.endswith("_source") else v for n, v in said.items()}
        lines.append(f"{json.dumps(model_id)}: {json.dumps(row, separators=(',', ':'))}")
    listed = ",\n".join(map(json.dumps, sources))
    models = ",\n".join(lines)
    return f'{{"origin": {json.dumps(ORIGIN)},\n"sources": [\n{listed}\n],\n"models": {{\n{models}\n}}}}\n'


def differences(found: Mapping[str, Facts], path: Path = FILE) -> Iterator[str]:
    """Every fact of the embedded file that its sources do not say, and every fact of theirs that it lacks."""
    there = json.loads(path.read_text(encoding="utf-8"))
    for model_id in sorted({*found, *there["models"]}):
        ours, theirs = found.get(model_id, {}), dict(there["models"].get(model_id, {}))
        theirs |= {name: there["sources"][value] for name, value in theirs.items() if name.endswith("_source")}
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                yield f"{model_id}: {name} is {theirs.get(name)!r}, its sources say {ours.get(name)!r}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing and name what differs; then status 1")
    options = parser.parse_args(arguments)
    try:
        found = facts()
        if options.check:
            wrong = list(differences(found))
            print("\n".join(wrong) or _counted(found))
            return 1 if wrong else 0
    except (CatalogError, OSError, ValueError, KeyError) as error:
        print(f"catalogue_file: {error}", file=sys.stderr)
        return 2
    text = written(found)
    FILE.write_text(text, encoding="utf-8")
    print(f"{FILE.name}: {len(text.encode()):,} bytes. {_counted(found)}")
    return 0


def _counted(found: Mapping[str, Facts]) -> str:
    counts = {name: sum(name in said for said in found.values()) for name in ("license", "family", "parent", "shape")}
    counts["tokenizer"] = sum("tokenizer" in said for said in found.values())
    return f"{len(found)} models; with " + ", ".join(f"{name} {count}" for name, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
