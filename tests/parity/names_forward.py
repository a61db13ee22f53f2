"""Do the roles mean what we say? Edits that leave a model's function unchanged are made through names.resolve.

For every architecture of tests/make_architectures.py a small random model is built and edited through the Parts alone:

    values     each channel of v is scaled, and the o columns that read it are scaled back
    scores     each key head is scaled, and the query heads that meet it are scaled back
    units      the hidden units of every MLP and expert are put in another order: gate, up and down alike
    gains      each channel of norm_attn and norm_mlp is scaled, and the columns that read it are scaled back

The answer must stay as it was (to 1e-6: norms and rotations are computed in float32 inside), and a control edit, one
row of every tensor of a role, must change it at least ten times as much as the largest error. Not part of the test run;
needs torch and transformers, in any environment that can also import provindex.roles.names:

    python tests/parity/names_forward.py [NAME ...]
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from make_architectures import NATIVE

from provindex.roles.names import Arch, Layout, Part, part_shape, resolve

SMALL = {
    "hidden_size": 96, "d_model": 96, "n_embd": 96, "dim": 96, "embedding_size": 48, "word_embed_proj_dim": 96,
    "intermediate_size": 160, "ffn_dim": 160, "hidden_dim": 160, "d_ff": 160, "moe_intermediate_size": 80,
    "shared_expert_intermediate_size": 112, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160, "n_inner": 160,
    "num_attention_heads": 6, "n_head": 6, "n_heads": 6, "num_heads": 6, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "head_dim": 16, "d_kv": 16, "rotary_dim": 8, "ffn_hidden_size": 160,
    "max_position_embeddings": 64, "num_hidden_groups": 1, "projection_dim": 32,
}  # fmt: skip
KV = ("num_key_value_heads", "num_kv_heads")
# Edits that a model's other tensors see too: a table or a norm that we do not name.
SKIP = {
    "deberta": {"scores"},  # the position projections meet the queries and keys
    "deberta-v2": {"scores"},
    "olmo2": {"scores"},  # one norm over all heads
    "deepseek_v2_lite": {"values", "scores", "gains"},  # latent factors read the norm and make the values
    "deepseek_v3": {"values", "scores", "gains"},
    "qwen2_moe": {"gains"},  # the shared expert's gate reads the norm
}


def shrink(config: Any) -> None:
    heads = getattr(config, "num_attention_heads", None)
    for key in KV:
        kv = getattr(config, key, None)
        if isinstance(kv, int):
            setattr(config, key, {heads: 6, 1: 1}.get(kv, 2))
    for key in ("n_group", "topk_group", "num_experts_per_tok"):  # left out or too many where experts were cut
        if hasattr(config, key) and hasattr(config, "n_routed_experts"):
            setattr(config, key, 2 if key == "num_experts_per_tok" else 1)
    for key, value in SMALL.items():
        fixed = isinstance(getattr(type(config), key, None), property)
        latent = key == "head_dim" and hasattr(config, "qk_rope_head_dim")
        if isinstance(getattr(config, key, None), int) and not fixed and not latent:
            setattr(config, key, value)
    for key in ("attn_pdrop", "attention_dropout", "dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, key):
            setattr(config, key, 0.0)


def make(name: str) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """A small random model in float64, and its answer to fixed input."""
    model_type, auto, overrides, _ = NATIVE[name]
    torch.manual_seed(0)
    if model_type in transformers.CONFIG_MAPPING:
        config = transformers.CONFIG_MAPPING[model_type](**copy.deepcopy(overrides))
    else:
        kind = {"clip_text_model": "CLIPTextConfig", "clip_vision_model": "CLIPVisionConfig"}[model_type]
        config = getattr(transformers, kind)(**overrides)
    shrink(config)
    config._attn_implementation = config._experts_implementation = "eager"
    cls = getattr(transformers, auto)
    model = cls.from_config(config) if auto.startswith("AutoModel") else cls(config)
    model = model.double().eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "embed_positions" not in key:
                tensor.copy_(torch.randn_like(tensor) * (0.2 if tensor.dim() > 1 else 0.3) + (tensor.dim() == 1) * 0.7)
    return model, answer_of(config, auto)


def answer_of(config: Any, auto: str) -> Callable[[Any], torch.Tensor]:
    ids = torch.arange(11)[None] * 7 % 89 + 110
    inputs: dict[str, torch.Tensor] = {"input_ids": ids}
    if config.model_type in ("vit", "clip_vision_model"):
        inputs = {"pixel_values": torch.randn(1, 3, config.image_size, config.image_size, dtype=torch.float64)}
    elif config.model_type == "whisper":
        features = torch.randn(1, config.num_mel_bins, config.max_source_positions * 2, dtype=torch.float64)
        inputs = {"input_features": features, "decoder_input_ids": ids}
    elif config.is_encoder_decoder and "Classification" not in auto:
        inputs["decoder_input_ids"] = ids[:, :7] + 3
    elif getattr(config, "add_cross_attention", False):
        inputs["encoder_hidden_states"] = torch.randn(1, 5, config.hidden_size, dtype=torch.float64)

    def answer(model: Any) -> torch.Tensor:
        with torch.no_grad():
            encoder = type(model).__name__ == "T5EncoderModel"
            out = model(**{key: value for key, value in inputs.items() if not (encoder and "decoder" in key)})
        answers = [v for v in out.to_tuple() if torch.is_tensor(v) and v.dim() >= 2]
        return max(answers, key=torch.Tensor.dim)

    return answer


# --- parts of a state dict -------------------------------------------------------------------------------------

Key = tuple[str, int, bool]  # stack, layer, cross


class Parts:
    """A model's canonical tensors, readable and writable through Layout alone."""

    def __init__(self, model: Any) -> None:
        self.state = dict(model.state_dict())
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        config = json.loads(model.config.to_json_string(use_diff=False))
        self.layout: Layout = resolve(shapes, config)
        self.parts = [(p.name, part) for p in self.layout.placements.values() for part in p.parts]

    def of(self, role: str, key: Key, param: str = "weight") -> list[tuple[str, Part]]:
        return [
            (name, part)
            for name, part in self.parts
            if (part.role, part.param) == (role, param) and (part.stack, part.layer, part.cross) == key
        ]

    def blocks(self) -> Iterator[tuple[Key, Arch]]:
        keys = {(part.stack, part.layer, part.cross) for _, part in self.parts if part.layer is not None}
        return ((key, self.layout.archs[key[0]]) for key in sorted(keys))

    def edit(self, name: str, part: Part, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        core = self.state[name] if part.lead is None else self.state[name][part.lead]
        core = core.T if part.transposed else core
        index: Any = slice(None) if part.rows is None else part.rows
        index = slice(*index) if isinstance(index, tuple) else index
        index = torch.from_numpy(index.copy()) if isinstance(index, np.ndarray) else index
        with torch.no_grad():
            core[index] = change(core[index].clone())

    def rows(self, role: str, key: Key, scale: torch.Tensor) -> None:
        """Scale output rows, weight and bias."""
        for param in ("weight", "bias"):
            for name, part in self.of(role, key, param):
                self.edit(name, part, lambda t: t * (scale[:, None] if t.dim() == 2 else scale))

    def columns(self, role: str, key: Key, scale: torch.Tensor) -> None:
        for name, part in self.of(role, key):
            self.edit(name, part, lambda t: t * scale[None])


def random_scale(n: int) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64) * 2 + 0.5


def values(p: Parts) -> int:
    done = 0
    for key, arch in p.blocks():
        if p.of("v", key):
            name, part = p.of("v", key)[0]
            n = part_shape(part, tuple(p.state[name].shape))[0]
            scale = random_scale(n)
            p.rows("v", key, scale)
            groups = scale.reshape(-1, arch.head_dim).repeat_interleave(arch.heads // arch.kv_heads, 0)
            p.columns("o", key, 1 / groups.reshape(-1))
            done += 1
    return done


def scores(p: Parts) -> int:
    done = 0
    for key, arch in p.blocks():
        if p.of("k", key):
            scale = random_scale(arch.kv_heads)
            p.rows("k", key, scale.repeat_interleave(arch.head_dim))
            p.rows("q", key, 1 / scale.repeat_interleave(arch.heads // arch.kv_heads * arch.head_dim))
            done += 1
    return done


def units(p: Parts) -> int:
    done = 0
    for key, _ in p.blocks():
        for expert in sorted({part.expert for _, part in p.of("down", key)}, key=str):
            down = [(n, part) for n, part in p.of("down", key) if part.expert == expert]
            width = part_shape(down[0][1], tuple(p.state[down[0][0]].shape))[1]
            order = torch.randperm(width)
            for name, part in down:
                p.edit(name, part, lambda t, o=order: t[:, o])
            for role, param in (("gate", "weight"), ("gate", "bias"), ("up", "weight"), ("up", "bias")):
                for name, part in p.of(role, key, param):
                    if part.expert == expert:
                        p.edit(name, part, lambda t, o=order: t[o])
            done += 1
    return done


def gains(p: Parts) -> int:
    done = 0
    for key, arch in p.blocks():
        readers = {"norm_attn": ("q",) if key[2] else ("q", "k", "v"), "norm_mlp": ("gate", "up", "router")}
        if arch.parallel:
            readers["norm_attn"] += readers.pop("norm_mlp")
        for norm, roles in readers.items():
            if p.of(norm, key):
                scale = random_scale(arch.hidden)
                for param, offset in (("weight", arch.norm_offset), ("bias", 0.0)):
                    for name, part in p.of(norm, key, param):
                        p.edit(name, part, lambda t, o=offset, s=scale: (t + o) * s - o)
                for role in roles:
                    p.columns(role, key, 1 / scale)
                done += 1
    return done


def control(p: Parts, role: str) -> None:
    for name, part in p.parts:
        if part.role == role:
            p.edit(name, part, lambda t: torch.cat([t[:1] * 3 + 0.5, t[1:]]))


EDITS = {"values": values, "scores": scores, "units": units, "gains": gains}


def check(name: str) -> str:
    model, answer = make(name)
    before = answer(model)
    said = []
    worst = 1e-12
    original = {k: v.clone() for k, v in model.state_dict().items()}
    for edit, change in EDITS.items():
        if edit in SKIP.get(name, ()):
            said.append(f"{edit} -")
            continue
        model.load_state_dict(original)
        torch.manual_seed(1)
        count = change(Parts(model))
        error = float((answer(model) - before).abs().max() / before.abs().max())
        worst = max(worst, error)
        said.append(f"{edit} x{count} {error:.0e}" + ("" if error < 1e-6 else " WRONG"))
    for role in ("q", "k", "v", "o", "gate", "up", "down", "norm_attn", "norm_mlp", "norm_attn_out", "norm_mlp_out"):
        model.load_state_dict(original)
        parts = Parts(model)
        control(parts, role)
        moved = float((answer(model) - before).abs().max() / before.abs().max())
        if any(part.role == role for _, part in parts.parts) and moved < 10 * worst:
            said.append(f"CONTROL {role} {moved:.0e}")
    return ", ".join(said)


def main() -> None:
    left_out = {name for name, entry in NATIVE.items() if "text_config" in entry[2]}  # their towers are checked alone
    left_out.add("bart_classifier")  # the body of bart, and an input that must end a sentence
    for name in sys.argv[1:] or [name for name in NATIVE if name not in left_out]:
        print(f"{name:26}", check(name), flush=True)


if __name__ == "__main__":
    main()
