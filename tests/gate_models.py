"""Models and an index for tests of gates: a base, its child, a stranger, and one with another kind of MLP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import zoo

from provindex import api

PUBLISHED = "meta-llama/Llama-3.1-8B"  # of the catalogue, and not in the index below


@dataclass(frozen=True)
class Places:
    """Folders of the models, and of an index of all of them but the child."""

    base: Path
    child: Path
    stranger: Path
    ungated: Path
    index: Path


def write_models(folder: Path) -> Places:
    """acme/base of the family acme/root, other/stranger and other/ungated are the rows of the index."""
    base = zoo.spoken(zoo.llama(1), 1)
    models = {
        "base": base,
        "child": zoo.finetune_noise(base, 0.98, 2),
        "stranger": zoo.spoken(zoo.llama(3), 3),
        "ungated": zoo.spoken(zoo.gpt2(5, hidden=32, heads=2), 5),
    }
    for name, checkpoint in models.items():
        zoo.write(checkpoint, folder / name)
    said = {
        "base": {"model_id": "acme/base", "license": "apache-2.0", "family": "acme/root"},
        "stranger": {"model_id": "other/stranger", "license": "cc-by-nc-4.0", "family": "other/stranger"},
        "ungated": {"model_id": "other/ungated", "license": "mit", "family": "other/ungated"},
    }
    rows = [replace(api.fingerprint(folder / name), **facts) for name, facts in said.items()]
    api.Index.build(rows, name="zoo").save(folder / "index")
    return Places(*(folder / name for name in ("base", "child", "stranger", "ungated", "index")))
