"""Write tests/data/model_types.json.gz: names, shapes and norms of every model type of transformers.

Not part of the test run. Needs torch and transformers, takes two minutes:

    python tests/make_model_types.py && python -m build_index.model_types

Each type is built in its natural class (with a head for text if there is one), at the widths and depth of its class
defaults. Of layers and experts that are alike two are kept, with how many they stand for. The file holds {"version",
"types": {type: {"class", "config", "tensors": [[name, shape, count, norm]]}}}, or {"error": why} for a type that was
not built. norm: what a norm does, measured on a copy of the module: "layer", "rms" or "affine", and what is added to
its gain; only for norms.
"""

from __future__ import annotations

import copy
import gzip
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "data" / "model_types.json.gz"
SECONDS = 90  # for one type
KEPT = 2  # of numbered modules that are alike
# The first of these tables of transformers that has a type names its class; then any that has it.
ORDER = (
    "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "CAUSAL_LM", "SPEECH_SEQ_2_SEQ",
    "PRETRAINING", "CTC", "TEXT_TO_WAVEFORM", "",
)  # fmt: skip
DROPPED = {"id2label", "label2id", "rope_parameters", "problem_type", "dtype", "task_specific_params", "architectures"}
Tree = dict[str, Any]

# Arguments that a class needs besides its defaults, or with which it has more of its modules.
ARGUMENTS: dict[str, dict[str, Any]] = {
    **{name: {"prediction_length": 24} for name in ("autoformer", "informer", "time_series_transformer")},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2},
    "granitemoeshared": {"shared_intermediate_size": 1024},
    "granitemoehybrid": {"layer_types": (["mamba"] * 7 + ["attention"]) * 4},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "idefics3": {"pad_token_id": 0},
    "smolvlm": {"pad_token_id": 0},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16}},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 500000.0}},
}
# Of composite types: the halves.
HALVES = {
    "encoder-decoder": ("bert", "bert", "from_encoder_decoder_configs"),
    "vision-encoder-decoder": ("vit", "gpt2", "from_encoder_decoder_configs"),
    "speech-encoder-decoder": ("wav2vec2", "bart", "from_encoder_decoder_configs"),
    "vision-text-dual-encoder": ("vit", "bert", "from_vision_text_configs"),
}
ERRORS = {  # what the message says: what the table says
    "timm": "needs the library timm",
    "torchaudio": "needs the library torchaudio",
    "detectron2": "needs the library detectron2",
    "natten": "needs the library natten",
}


def configuration(model_type: str) -> Any:
    import transformers

    mapping = transformers.CONFIG_MAPPING
    if model_type in HALVES:
        first, second, make = HALVES[model_type]
        return getattr(mapping[model_type], make)(mapping[first](), mapping[second]())
    return mapping[model_type](**ARGUMENTS.get(model_type, {}))


def classes(model_type: str) -> Iterator[Any]:
    """The classes that a type has, natural ones first."""
    import transformers
    from transformers.models.auto import modeling_auto

    tables = [f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES" for name in ORDER]
    tables += sorted(name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES"))
    for table in tables:
        names = getattr(modeling_auto, table, {}).get(model_type) or ()
        for name in (names,) if isinstance(names, str) else names:
            found = getattr(transformers, name, None)
            if found is not None and hasattr(found, "from_pretrained"):
                yield found


def build(model_type: str) -> dict[str, Any]:
    import torch

    error = "has no class of its own"
    signal.alarm(SECONDS)
    try:
        config = configuration(model_type)
        for found in classes(model_type):
            try:
                with torch.device("meta"):
                    return described(found(config), found.__name__, config)
            except Exception as failed:  # noqa: BLE001 - any class may fail in its own way; the reason is recorded
                error = f"{type(failed).__name__}: {failed}"
    except Exception as failed:  # noqa: BLE001
        error = f"{type(failed).__name__}: {failed}"
    finally:
        signal.alarm(0)
    return {"error": next((says for word, says in ERRORS.items() if word in error), "its defaults build no model")}


def described(model: Any, name: str, config: Any) -> dict[str, Any]:
    shapes = {tensor: list(t.shape) for tensor, t in model.state_dict().items()}
    norms = dict(measured_norms(model))
    rows = [[*row, norms[row[0]]] if row[0] in norms else row for row in thinned(shapes)]
    return {"class": name, "config": trimmed(json.loads(config.to_json_string(use_diff=False))), "tensors": rows}


def trimmed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what no reader of names looks at."""
    inner = {key: trimmed(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {k: v for k, v in inner.items() if k not in DROPPED and v not in (None, {}) and not isinstance(v, list)}


# --- norms -----------------------------------------------------------------------------------------------------

_KINDS: dict[type, str] = {}


def measured_norms(model: Any) -> Iterator[tuple[str, str]]:
    """What each norm does, by the name of its gain: "rms+1" adds one to the gain."""
    for name, module in model.named_modules():
        kind = type(module).__name__.lower()
        weight = getattr(module, "weight", None)
        if "norm" not in kind or "batch" in kind or getattr(weight, "ndim", 0) != 1:
            continue
        if type(module) not in _KINDS:
            try:
                _KINDS[type(module)] = norm_kind(module)
            except Exception:  # noqa: BLE001 - a norm of images or with a gate takes something else
                _KINDS[type(module)] = ""
        if _KINDS[type(module)]:
            yield f"{name}.weight", _KINDS[type(module)]


def norm_kind(module: Any) -> str:
    import torch

    own = copy.deepcopy(module).to_empty(device="cpu")
    x = torch.randn(2, own.weight.shape[-1]) + 3

    def filled(value: float) -> Any:
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.fill_(value if name == "weight" else 0.0)
            return own(x)

    zeros, ones = filled(0.0), filled(1.0)
    offset = float(zeros.abs().max()) > 1e-6
    out = zeros if offset else ones
    kind = (
        "affine" if torch.allclose(out, x, atol=1e-3) else "layer" if float(out.mean(-1).abs().max()) < 1e-3 else "rms"
    )
    return kind + "+1" * offset


# --- alike modules ---------------------------------------------------------------------------------------------


def thinned(shapes: Mapping[str, list[int]]) -> list[list[Any]]:
    """[name, shape, how many it stands for] of the modules that are kept."""
    tree: Tree = {}
    for name, shape in shapes.items():
        node = tree
        *before, last = name.split(".")
        for segment in before:
            node = node.setdefault(segment, {})
        node[last] = shape if last not in node else node[last] | {"": shape}
    return sorted(_walk(tree, "", 1))


def _walk(node: Tree, prefix: str, count: int) -> Iterator[list[Any]]:
    groups: dict[str, list[str]] = {}
    for segment, below in node.items():
        alike = json.dumps(below, sort_keys=True) if segment.isdecimal() else f"={segment}"
        groups.setdefault(alike, []).append(segment)
    for segments in groups.values():
        for i, segment in enumerate(segments[:KEPT]):
            standing = len(segments) - KEPT + 1 if i == 0 and len(segments) > KEPT else 1
            below, name = node[segment], prefix + segment
            if isinstance(below, list):
                yield [name, below, count * standing]
            else:
                if "" in below:
                    yield [name, below[""], count * standing]
                rest = {key: value for key, value in below.items() if key}
                yield from _walk(rest, name + ".", count * standing)


def main() -> None:
    import torch
    import transformers

    def late(*_: object) -> None:
        raise TimeoutError

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, late)

    types = {}
    for model_type in sorted(transformers.CONFIG_MAPPING):
        types[model_type] = build(model_type)
        print(model_type, types[model_type].get("class") or types[model_type]["error"], flush=True)
    text = json.dumps({"version": transformers.__version__, "types": types}, sort_keys=True, separators=(",", ":"))
    OUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
