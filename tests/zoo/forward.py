"""A forward pass in numpy, float64, through the roles of `provindex.roles.names`: one for every family.

It answers the question whether a change of weights changed the function. Constant factors that a config may put on
embeddings, residuals and logits are left out, and so are windows and caps of attention scores: they are the same before
and after. What decides is all here: norms and where they stand, gates, rotary and relative positions, slopes, query and
key norms, experts, cross-attention, tied heads and head transforms. Not covered: latent attention (DeepSeek), DeBERTa's
disentangled attention, image and audio towers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_index.zoo.parts import Block, Parts
from build_index.zoo.snapshot import Snapshot
from provindex.roles.canonical import PartKey
from provindex.roles.names import Arch
from provindex.roles.templates import CLASSIFIER, POOLER, PROJECTION, RELATIVE, TRANSFORM

F64 = NDArray[np.float64]
Tokens = NDArray[np.int64]

_erf = np.vectorize(erf, otypes=[np.float64])


def _tanh_gelu(x: F64) -> F64:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: Mapping[str, Callable[[F64], F64]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}

# Which share of a head's channels positions turn, by model type; the others have no rotary positions.
ROTARY = {
    **dict.fromkeys(
        "llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe phi3 gemma gemma2 gemma3_text starcoder2 olmo olmo2 "
        "granite smollm3 internlm2 baichuan gpt_oss qwen falcon modernbert cohere cohere2".split(),
        1.0,
    ),
    **dict.fromkeys(("phi", "nemotron", "glm", "glm4", "chatglm"), 0.5),
    **dict.fromkeys(("stablelm", "gpt_neox"), 0.25),
    "gptj": 0.5,
}
NEIGHBORS = frozenset({"gptj", "cohere", "cohere2", "glm", "glm4", "chatglm"})  # turn channels 2i and 2i + 1
SLOPES = frozenset({"bloom", "mpt"})  # ALiBi
TWO_WAY = frozenset({"encoder"})


@dataclass
class Forward:
    """A model, ready to answer."""

    snapshot: Snapshot
    parts: Parts = field(init=False)
    held: dict[PartKey, F64] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = Parts(self.snapshot)
        self.held = {key: self.parts.read(key) for key in self.parts.at}

    @property
    def kind(self) -> str:
        return str(self.parts.layout.model_type)

    def logits(self, tokens: Tokens) -> F64:
        """Scores of the next (or of the masked) token at each place, (time, vocabulary); of a model without a head,
        what its pooler, projection or classifier is given, and failing these the last hidden state.
        """
        main = self.parts.layout.main
        memory: F64 | None = None
        if main == "decoder" and "encoder" in self.parts.stacks:
            memory = self.stack("encoder", tokens, None)
            tokens = tokens[: max(2, len(tokens) - 3)]
        elif any(key.cross for key in self.held):
            memory = np.random.default_rng(9).standard_normal((5, self.parts.arch(main).hidden))  # another model's
        return self._answer(self.stack(main, tokens, memory))

    # --- the ends ----------------------------------------------------------------------------------------------

    def stack(self, stack: str, tokens: Tokens, memory: F64 | None) -> F64:
        x = self._embedded(stack, tokens)
        for layer in sorted({k.layer for k in self.held if k.stack == stack and k.layer is not None}):
            x = self._layer(stack, layer, x, memory)
        return self._norm(PartKey(stack, None, "norm_final", None, False, "weight"), x)

    def _embedded(self, stack: str, tokens: Tokens) -> F64:
        key = PartKey(stack, None, "embed", None, False, "weight")
        x = self.held.get(key, self.held.get(self.parts.embed_key()))
        assert x is not None
        x = x[tokens]
        positions = self.held.get(key._replace(role="pos"))
        mapped = PartKey(self.parts.layout.main, None, "embed_map", None, False, "weight")
        if self.kind == "opt" and mapped in self.held:
            x = self._linear(mapped, x)
        x = x if positions is None else x + positions[2 : 2 + len(tokens)]
        for extra in self.parts.extras:
            x = x + self.parts.tensors[extra.name][0] if extra.reads == "table" else x
        norm = key._replace(role="norm_embed")
        x = self._norm(norm, x) if norm in self.held else x
        return self._linear(mapped, x) if mapped in self.held and self.kind != "opt" else x

    def _answer(self, x: F64) -> F64:
        tensors = self.parts.tensors
        for reason in (POOLER, PROJECTION, CLASSIFIER):
            used = [e for e in self.parts.extras if e.reads == "final" and e.name in self._named(reason[2:])]
            if used and not self.parts.has_head():
                return np.concatenate([x @ tensors[e.name].T for e in used], axis=1)
        if not self.parts.has_head():
            return x
        for extra in (e for e in self.parts.extras if e.name in self._named("head projection")):
            x = x @ tensors[extra.name].T
        x = self._transformed(x)
        if self.parts.tied() and self.kind in ("t5", "umt5"):
            x = x * x.shape[1] ** -0.5
        head = self.parts.head_key()
        weight = self.held[head if head in self.held and not self.parts.tied() else self.parts.embed_key()]
        bias: Any = self.held.get(head._replace(param="bias"), 0.0)
        final = [t for name, t in tensors.items() if name.endswith("final_logits_bias")]
        return x @ weight.T + bias + (final[0].ravel() if final else 0.0)

    def _named(self, reason: str) -> set[str]:
        return {place.name for place in self.parts.placed(reason)}

    def _transformed(self, x: F64) -> F64:
        """The matrix, activation and norm that a masked-language model puts before its head."""
        names = sorted(self._named(TRANSFORM[2:]))
        if not names:
            return x
        stem = next(n for n in names if self.parts.tensors[n].ndim == 2).removesuffix("weight")
        norm = next(n for n in names if n.endswith(("weight", "gamma")) and not n.startswith(stem))
        x = x @ self.parts.tensors[stem + "weight"].T + self.parts.tensors.get(stem + "bias", 0.0)
        x = ACTIVATIONS["gelu"](x)
        bias = self.parts.tensors.get(norm.removesuffix("weight").removesuffix("gamma") + "bias", 0.0)
        bias = self.parts.tensors.get(norm.removesuffix("gamma") + "beta", bias)
        return self._normalized(x, "layer") * self.parts.tensors[norm] + bias

    # --- one layer ---------------------------------------------------------------------------------------------

    def _layer(self, stack: str, layer: int, x: F64, memory: F64 | None) -> F64:
        arch, at = self.parts.arch(stack), PartKey(stack, layer, "", None, False, "weight")
        post = arch.norm_place == "post"
        read = x if post else self._norm(at._replace(role="norm_attn"), x)
        added = self._out(at._replace(role="norm_attn_out"), post, self._attend(Block(stack, layer), arch, read, read))
        if self._parallel(arch):
            other = at._replace(role="norm_mlp")
            return x + added + self._mlp(stack, layer, self._norm(other, x) if other in self.held else read)
        x = self._norm(at._replace(role="norm_attn_out"), x + added) if post else x + added
        if Block(stack, layer, True).key("o") in self.held and memory is not None:
            x = self._cross(Block(stack, layer, True), arch, x, memory)
        read = x if post else self._norm(at._replace(role="norm_mlp"), x)
        added = self._out(at._replace(role="norm_mlp_out"), post, self._mlp(stack, layer, read))
        return self._norm(at._replace(role="norm_mlp_out"), x + added) if post else x + added

    def _cross(self, block: Block, arch: Arch, x: F64, memory: F64) -> F64:
        if arch.norm_place == "post":
            return self._norm(block.key("norm_attn_out"), x + self._attend(block, arch, x, memory))
        return x + self._attend(block, arch, self._norm(block.key("norm_attn"), x), memory)

    def _parallel(self, arch: Arch) -> bool:
        config = self.snapshot.config
        both = self.kind == "gpt_neox" and config.get("use_parallel_residual", True)
        return arch.parallel or both or bool(config.get("new_decoder_architecture"))

    def _out(self, norm: PartKey, post: bool, added: F64) -> F64:
        """A branch's own norm (Gemma 2, OLMo 2)."""
        return self._norm(norm, added) if norm in self.held and not post else added

    def _norm(self, key: PartKey, x: F64) -> F64:
        arch = self.parts.arch(key.stack)
        if key not in self.held:
            bare = arch.norm == "layer" and not any(k.role.startswith("norm") for k in self.held)  # OLMo
            return self._normalized(x, "layer") if bare else x
        bias: Any = self.held.get(key._replace(param="bias"), 0.0)
        return self._normalized(x, arch.norm) * (arch.norm_offset + self.held[key]) + bias

    def _normalized(self, x: F64, kind: str) -> F64:
        config = self.snapshot.config
        eps = next((config[k] for k in config if "eps" in k and isinstance(config[k], float)), 1e-6)
        x = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
        return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps))

    def _linear(self, key: PartKey, x: F64) -> F64:
        bias: Any = self.held.get(key._replace(param="bias"), 0.0)
        return x @ self.held[key].T + bias

    # --- attention ---------------------------------------------------------------------------------------------

    def _attend(self, block: Block, arch: Arch, x: F64, source: F64) -> F64:
        group = arch.heads // arch.kv_heads
        q = self._heads(block, "q", x, arch.heads)
        k = np.repeat(self._heads(block, "k", source, arch.kv_heads), group, axis=0)
        v = np.repeat(self._heads(block, "v", source, arch.kv_heads, plain=True), group, axis=0)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(arch.head_dim) + self._biases(block, arch, len(x), len(source))
        if block.stack not in TWO_WAY and not block.cross:
            scores = np.where(np.tril(np.ones((len(x), len(x)), bool)), scores, -np.inf)
        sinks = [p for p in self.parts.placed("attention sinks") if p.layer == block.layer]
        for place in sinks:
            column = np.broadcast_to(self.parts.tensors[place.name][:, None, None], (*scores.shape[:2], 1))
            scores = np.concatenate([scores, column], axis=2)
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        odds = (odds / odds.sum(axis=-1, keepdims=True))[..., : len(source)]
        return self._linear(block.key("o"), (odds @ v).transpose(1, 0, 2).reshape(len(x), -1))

    def _heads(self, block: Block, role: str, x: F64, heads: int, plain: bool = False) -> F64:
        """(heads, time, channels), normalized and turned where the kind does so."""
        flat = self._linear(block.key(role), x)
        norm = block.key(f"norm_{role}")
        split = flat.reshape(len(x), heads, -1)
        if norm in self.held:
            gain = self.held[norm]
            whole = gain.ndim == 1 and gain.size == flat.shape[1] and heads > 1
            split = self._norm(norm, flat if whole else split).reshape(split.shape)
        turned = split.transpose(1, 0, 2)
        return turned if plain or block.cross else self._turned(turned)

    def _turned(self, x: F64) -> F64:
        """Rotary positions."""
        if self.snapshot.config.get("alibi"):
            return x
        width = int(x.shape[2] * ROTARY.get(self.kind, ROTARY.get(self.parts.model_type, 0.0)))
        planes = np.arange(width // 2)
        a, b = (2 * planes, 2 * planes + 1) if self.kind in NEIGHBORS else (planes, planes + width // 2)
        angle = np.arange(x.shape[1])[:, None] * 100.0 ** (-planes / max(1, len(planes)))
        out, cos, sin = x.copy(), np.cos(angle), np.sin(angle)
        out[..., a], out[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., a] * sin + x[..., b] * cos
        return out

    def _biases(self, block: Block, arch: Arch, rows: int, columns: int) -> F64:
        """What relative positions add to the scores, (heads, rows, columns)."""
        back = np.arange(rows)[:, None] - np.arange(columns)
        if self.kind in SLOPES or self.snapshot.config.get("alibi"):
            return np.asarray(-np.abs(back) * 2.0 ** -np.arange(1, arch.heads + 1)[:, None, None])
        tables = [p for p in self.parts.placed(RELATIVE[2:]) if p.stack == block.stack and "EncDec" not in p.name]
        own = [p for p in tables if p.layer == block.layer] or tables
        if not own or block.cross:
            return np.zeros((arch.heads, rows, columns))
        table = self.parts.tensors[own[0].name]
        return np.asarray(table[np.clip(back + len(table) // 2, 0, len(table) - 1)].transpose(2, 0, 1))

    # --- MLP ---------------------------------------------------------------------------------------------------

    def _mlp(self, stack: str, layer: int, x: F64) -> F64:
        router = PartKey(stack, layer, "router", None, False, "weight")
        own = Block(stack, layer)
        out = np.zeros_like(x)
        if own.key("down") in self.held:
            out = self._unit(own, x)
            for extra in self.parts.extras:
                if extra.reads == "norm_mlp" and extra.layer == layer:
                    out = out / (1 + np.exp(-x @ self.parts.tensors[extra.name].T))
        return out + self._experts(router, x) if router in self.held else out

    def _experts(self, router: PartKey, x: F64) -> F64:
        scores, top = self._linear(router, x), int(self.snapshot.config.get("num_experts_per_tok") or 2)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds = np.where(odds >= np.sort(odds, axis=1)[:, [-top]], odds, 0)
        odds /= odds.sum(axis=1, keepdims=True)
        blocks = [Block(router.stack, router.layer, False, e) for e in range(scores.shape[1])]
        return np.asarray(sum(odds[:, [e]] * self._unit(block, x) for e, block in enumerate(blocks)))

    def _unit(self, block: Block, x: F64) -> F64:
        written = self.snapshot.config.get("feed_forward_proj")
        name = self.parts.arch(block.stack).activation
        act = ACTIVATIONS[str(written).removeprefix("gated-") if written else name]
        up = self._linear(block.key("up"), x)
        if block.key("gate") not in self.held:
            return self._linear(block.key("down"), act(up))
        gate = self._linear(block.key("gate"), x)
        if self.kind == "gpt_oss":
            return self._linear(block.key("down"), gate / (1 + np.exp(-1.702 * gate)) * (up + 1))
        return self._linear(block.key("down"), act(gate) * up)


def logits(snapshot: Snapshot, tokens: Tokens) -> F64:
    """The answer of a model to one sequence of token ids, (time, vocabulary) float64."""
    return Forward(snapshot).logits(tokens)
