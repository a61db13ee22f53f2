"""Rows of simulated models for the tests on the peer's samples: one as made here, one as imported, from shapes alone.

Only samples are drawn, never a matrix; what lies where is `evidence/sampled_places.py`'s, which tests/test_sampled.py
holds against whole matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from provindex.evidence.sampled import Matrices, Slices, matrices_of
from provindex.evidence.sampled_places import Matrix, Pattern, size_of
from provindex.fingerprint.record import Facts, Fingerprint
from provindex.signals import mfi, wvc
from provindex.signals.imported import how

Values = dict[tuple[int, int], Any]  # (layer, number of the matrix) -> its samples
NAMES = {
    "down": "mlp.down_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "k": "self_attn.k_proj",
    "o": "self_attn.o_proj", "q": "self_attn.q_proj", "v": "self_attn.v_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Llama:
    """The shape of a model that is like Llama."""

    width: int
    hidden: int
    heads: int
    kv: int
    head: int
    layers: int
    sliced: bool = False
    model_type: str = "llama"

    @property
    def pattern(self) -> Pattern:
        d, n, q, k = self.width, self.hidden, self.heads * self.head, self.kv * self.head
        shapes = {"down": (d, n), "gate": (n, d), "up": (n, d), "k": (k, d), "o": (d, q), "q": (q, d), "v": (k, d)}
        return tuple(Matrix(role, r, c, size_of(r, c, self.sliced)) for role, (r, c) in shapes.items())

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv, "head_dim": self.head,
            "intermediate_size": self.hidden, "vocab_size": 100, "hidden_act": "silu",
        }  # fmt: skip

    def draw(self, seed: int) -> Values:
        """Independent normal samples of every matrix, each matrix at a scale of its own."""
        g = np.random.default_rng(seed)
        out: Values = {}
        for i, m in enumerate(self.pattern):
            for layer in range(self.layers):
                out[layer, i] = (0.02 * (1 + 0.1 * i) * g.standard_normal(m.size)).astype(np.float32)
        return out

    def _row(self, mode: str, samples: wvc.Samples | None, **more: Any) -> Fingerprint:
        facts = Facts(self.model_type, "decoder", 0, self.width, self.layers, 100, "bf16", 0)
        made = Fingerprint(mode, facts, mode, None, mfi.extract(self.config, None), wvc=samples)
        return replace(made, **more)

    def ours(self, values: Values) -> Fingerprint:
        """The row as one made here; of a sliced shape its samples are those read from weights."""
        named = [
            (f"layers.{layer}.{NAMES[m.role]}", layer, values[layer, i], m)
            for layer in range(self.layers)
            for i, m in enumerate(self.pattern)
        ]
        if self.sliced:
            patterns = dict.fromkeys(range(self.layers), self.pattern)
            found = {n: [values[n, i] for i in range(len(self.pattern))] for n in patterns}
            return self._row("sampled", None, more={"slices": (Slices(True, Matrices(patterns, found)),)})
        ordered = sorted(named, key=lambda item: item[0])
        samples = wvc.Samples(
            tuple(n for n, _, _, _ in ordered),
            np.array([layer for _, layer, _, _ in ordered], np.int32),
            np.array([m.size for *_, m in ordered], np.int32),
            np.concatenate([v for _, _, v, _ in ordered]),
            tuple(m.role for *_, m in ordered),
            np.array([m.rows for *_, m in ordered], np.int32),
            np.array([m.columns for *_, m in ordered], np.int32),
        )
        assert matrices_of(samples) is not None
        return self._row("exact", samples)

    def imported(self, values: Values, order: Sequence[int] | Callable[[int], Sequence[int]] = ()) -> Fingerprint:
        """The row as imported. order: of the matrices in a layer's vector, or of those in each layer."""
        vectors: dict[int, Any] = {}
        for layer in range(self.layers):
            own = order(layer) if callable(order) else order
            vectors[layer] = np.concatenate([values[layer, i] for i in own or range(len(self.pattern))])
        return self.of_vectors(vectors)

    def of_vectors(self, vectors: Mapping[int, Any], *ways: str) -> Fingerprint:
        """A row as imported, from the vector of each layer."""
        way = how(*(("sliced",) if self.sliced else ()), *ways)
        pieces = [
            (f"{way}/{layer:05d}/{i:03d}", layer, part)
            for layer, vector in vectors.items()
            for i, part in enumerate(np.split(vector, range(4096, len(vector), 4096)))
        ]
        return self._row("imported", wvc.Samples.collect(pieces))


def child(parent: Values, cosine: float, seed: int) -> Values:
    """Samples at a cosine with a parent's, matrix by matrix."""
    g = np.random.default_rng(seed)
    return {
        key: (
            cosine * v + np.sqrt(max(0.0, 1 - cosine**2)) * g.standard_normal(v.size) * np.sqrt(np.square(v).mean())
        ).astype(np.float32)
        for key, v in parent.items()
    }


QWEN = Llama(896, 4864, 14, 2, 64, 24, model_type="qwen2")
SEVEN = Llama(4096, 11008, 32, 32, 128, 32)
SEVENTY = Llama(8192, 28672, 64, 8, 128, 80, sliced=True)
