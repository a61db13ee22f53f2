"""Models for audits whose truth is known: bases under several licenses, children, a merge, and their cards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import zoo

from provindex import api
from provindex.api import Index, resolve
from provindex.fingerprint.record import Fingerprint

SIZES = {"layers": 4, "hidden": 96, "heads": 4, "intermediate": 256}
BASE = zoo.spoken(zoo.llama(1, **SIZES), 1)
STRANGER = zoo.spoken(zoo.llama(3, **SIZES), 3)
CARD = "---\n{fields}\n---\n# A model\n{body}\n"


def trained(parent: zoo.Checkpoint, seed: int) -> zoo.Checkpoint:
    """A child: what training adds is at right angles to what was there."""
    rng = np.random.default_rng(seed)
    steps = {
        n: np.float32(0.2 * t.std()) * rng.standard_normal(t.shape, dtype=np.float32) for n, t in parent.tensors.items()
    }
    return replace(parent, tensors={n: t + steps[n] if t.ndim == 2 else t for n, t in parent.tensors.items()})


LEFT, RIGHT = trained(BASE, 11), trained(BASE, 12)
MERGED = replace(BASE, tensors={n: (LEFT.tensors[n] + RIGHT.tensors[n]) / 2 for n in BASE.tensors})
CHECKPOINTS = {
    "base": BASE, "left": LEFT, "right": RIGHT, "stranger": STRANGER, "grandchild": trained(LEFT, 13), "merged": MERGED,
    "int8": zoo.quantize(BASE, 8), "half": zoo.cast(BASE, "BF16"),
}  # fmt: skip


def write(folder: Path, name: str, fields: str | None = None, body: str = "", license_text: bool = True) -> Path:
    """A model as a folder; fields: of the front matter of its card, None for no card."""
    zoo.write(CHECKPOINTS[name], folder)
    if fields is not None:
        (folder / "README.md").write_text(CARD.format(fields=fields, body=body), encoding="utf-8")
    if license_text:
        (folder / "LICENSE").write_text("The terms.\n", encoding="utf-8")
    return folder


def rows(folder: Path) -> dict[str, Fingerprint]:
    """The fingerprints of the models, as org/NAME."""
    return {
        name: replace(resolve(zoo.write(model, folder / name)).fingerprint, model_id=f"org/{name}")
        for name, model in CHECKPOINTS.items()
    }


def index_of(*found: Fingerprint) -> Index:
    """The embedded index, whose chance levels count, with some rows."""
    index = Index.load("embedded")
    for row in found:
        index.add(row)
    return index


def audited(folder: Path, index: Index) -> api.Audit:
    return api.audit(index, resolve(folder, own_bytes=True))[1]


def adapter(folder: Path, base: str) -> Path:
    """An adapter as peft writes it."""
    rng = np.random.default_rng(0)
    kept = {}
    for name, value in BASE.tensors.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            kept[f"{at}.lora_A.weight"] = rng.standard_normal((4, value.shape[1])).astype(np.float32)
            kept[f"{at}.lora_B.weight"] = rng.standard_normal((value.shape[0], 4)).astype(np.float32)
    folder.mkdir()
    import packers

    packers.save(folder / "adapter_model.safetensors", {n: packers.stored(v) for n, v in kept.items()})
    said = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder
