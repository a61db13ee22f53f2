"""The zoo's forward passes against transformers' own, with the config and weights as they are written.

    python tests/parity/zoo_forward.py

Needs torch and transformers, which neither the package nor its tests do. Prints the largest difference of logits by
architecture; exit status 1 if one is above 1e-4.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from build_index.zoo.architectures import forward
from build_index.zoo.descendants import drop_middle, pick_layers, prune_neurons
from build_index.zoo.plan import BENCHMARK_SHAPES, CALIBRATION_SHAPES, Shape, config_of
from build_index.zoo.snapshot import Snapshot
from build_index.zoo.train import fresh

ROWS = 300


def difference(snapshot: Snapshot) -> float:
    """Largest difference of logits, over the largest logit."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, ROWS, (3, 40)))
    kind = AutoModelForMaskedLM if snapshot.config["model_type"] == "bert" else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs = kind.from_pretrained(snapshot.write(Path(folder))).eval()(ids).logits
        weights = {name: torch.from_numpy(array) for name, array in snapshot.tensors.items()}
        ours = forward(weights, snapshot.config, ids)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def untrained(shape: Shape) -> Snapshot:
    """A model whose norms and biases are no longer ones and zeros."""
    config = config_of(shape, ROWS)
    rng = np.random.default_rng(1)
    tensors = {
        name: (array + 0.1 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in fresh(config, 1).items()
    }
    return Snapshot(shape.model_type, tensors, config, "")


def main() -> int:
    shapes = [*BENCHMARK_SHAPES.values(), *(shape for pair in CALIBRATION_SHAPES.values() for shape in pair)]
    worst = 0.0
    for shape in shapes:
        whole = untrained(shape)
        models = [whole, pick_layers(whole, drop_middle(shape.layers)), prune_neurons(whole)[0]]
        found = max(difference(model) for model in models)
        worst = max(worst, found)
        print(f"{shape.model_type:<12} width {shape.width:<4} {found:.1e}")
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
