"""Write provindex/roles/MODEL_TYPES.md: of which model types of transformers the roles are known.

python -m build_index.model_types

Reads tests/data/model_types.json.gz, which tests/make_model_types.py makes.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provindex.roles.architectures import BESIDE
from provindex.roles.names import UNKNOWN, Layout, Placement, resolve

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "data" / "model_types.json.gz"
TABLE = ROOT / "provindex" / "roles" / "MODEL_TYPES.md"
ENOUGH = 0.95
TOWERS = ("vision", "audio")

_REASONS = {
    "convolutional or hierarchical image model": """
        bit chmv2 convnext convnextv2 cvt dinov3_convnext donut-swin efficientloftr efficientnet focalnet glpn hgnet_v2
        hiera levit maskformer-swin mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pp_lcnet pp_lcnet_v3
        pp_ocrv5_mobile_det pp_ocrv5_mobile_rec pp_ocrv5_server_rec pvt pvt_v2 regnet resnet rt_detr_resnet sam2
        sam2_hiera_det_model sam2_video sam2_vision_model segformer superglue superpoint lightglue swiftformer swin
        swin2sr swinv2 textnet upernet uvdoc uvdoc_backbone edgetam_video vit_mae vitdet vjepa2 seggpt""",
    "image model: detection, segmentation or depth": """
        d_fine depth_anything depth_pro eomt eomt_dinov3 grounding-dino groupvit lw_detr lw_detr_vit mask2former
        maskformer mgp-str mm-grounding-dino oneformer pp_doclayout_v2 pp_doclayout_v3 prompt_depth_anything rt_detr
        rt_detr_v2 sam sam3 sam3_tracker sam3_tracker_video sam3_video sam3_vision_model sam3_vit_model sam_hq slanext
        timesformer videomae videomt yolos zoedepth""",
    "image and text mixed layer by layer": "bridgetower flava lxmert tvp vilt xclip",
    "audio codec or vocoder": """
        dac encodec glm_image_vqmodel mimi univnet vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
        vibevoice_acoustic_tokenizer_encoder xcodec""",
    "speech model with convolutions between its layers (conformer)": """
        fastspeech2_conformer fastspeech2_conformer_with_hifigan gemma3n_audio gemma4_audio lasr_ctc
        lasr_encoder parakeet_ctc parakeet_encoder wav2vec2-bert wav2vec2-conformer
        pe_audio_encoder sew-d granite_speech""",
    "speech synthesis of several models": "bark clvp speecht5 vits",
    "time series or actions": "decision_transformer informer patchtsmixer patchtst",
    "image tower with a merger of its own": """
        glm4v_moe_vision glm4v_vision glm_ocr_vision gemma4_vision blip_2_qformer""",
    "two models, each of which is read where it stands alone": """
        encoder-decoder speech-encoder-decoder vision-encoder-decoder""",
    "bytes through three transformers": "blt",
    "latents, no token goes through the layers": "perceiver",
    "copies in integers for training under quantization": "ibert",
    "adapters between its layers": "evolla",
    "a transformer for text and one for actions": "pi0",
}
REASONS = {name: reason for reason, names in _REASONS.items() for name in names.split()}
NOT_BUILT = {
    "granitevision": "another name of llava_next",
    "layoutxlm": "another name of layoutlmv2",
    "nougat": "another name of vision-encoder-decoder",
    "rag": "two models: dpr and bart",
    "musicgen": "three models: t5, encodec and a decoder",
    "musicgen_melody": "three models: t5, encodec and a decoder",
    "vitmatte": "wraps an image backbone",
    "vitpose": "wraps an image backbone",
    "moonshine_streaming_encoder": "part of moonshine_streaming",
    "voxtral_realtime_text": "part of voxtral_realtime",
    "t5gemma2_encoder": "part of t5gemma2",
}


@dataclass(frozen=True)
class Coverage:
    """How much of a model type is known, as shares of its elements.

    roles: has a role, or repeats a tensor that has. named: has a role, or a reason that says what it is. text: of the
    text tower, has a role; None without one. why: what most of the rest is, "" if there is little.
    """

    model_type: str
    built_as: str
    parameters: int
    roles: float
    named: float
    text: float | None
    why: str


def types() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(gzip.decompress(FIXTURE.read_bytes()))["types"]
    return loaded


def layout_of(record: Mapping[str, Any]) -> Layout:
    return resolve({name: tuple(shape) for name, shape, *_ in record["tensors"]}, record["config"])


def coverage(model_type: str, record: Mapping[str, Any], layout: Layout) -> Coverage:
    """Of a type that was built."""
    sizes = {name: math.prod(shape) * count for name, shape, count, *_ in record["tensors"]}
    places = [place for place in layout.placements.values() if place.weight]
    total = sum(sizes[place.name] for place in places) or 1
    roles = sum(sizes[place.name] for place in places if _has_role(place))
    named = sum(sizes[place.name] for place in places if _is_named(place))
    text = [place for place in places if place.stack not in TOWERS and not _beside(place)]
    whole = sum(sizes[place.name] for place in text)
    lacking: Counter[str] = Counter()
    for place in places:
        if not _has_role(place):
            lacking[_shown(place)] += sizes[place.name]
    share = sum(sizes[place.name] for place in text if _has_role(place)) / whole if whole else None
    why = "; ".join(f"{name} {_percent(size / total)}" for name, size in lacking.most_common(3) if size > total / 100)
    return Coverage(model_type, record["class"], total, roles / total, named / total, share, why)


def _has_role(place: Placement) -> bool:
    return bool(place.parts) or bool(place.copy_of)


def _is_named(place: Placement) -> bool:
    return _has_role(place) or (place.reason != UNKNOWN and "does not fit" not in str(place.reason))


def _beside(place: Placement) -> bool:
    """Of no text tower: between towers, or one beside it."""
    return place.reason == "multimodal projector" or place.reason in BESIDE.values()


def _shown(place: Placement) -> str:
    reason = str(place.reason)
    return "a shape that does not fit" if "does not fit" in reason else reason.partition(" (")[0]


def passes(found: Coverage) -> bool:
    """Roles for 95 %, or for 95 % of the text tower where all else is known by its name."""
    told = found.text is not None and found.text >= ENOUGH and found.named >= ENOUGH
    return found.roles >= ENOUGH or told


def reason(found: Coverage) -> str:
    """Why a type has fewer roles; "" for one that has enough."""
    if passes(found):
        return ""
    if found.model_type in REASONS:
        return REASONS[found.model_type]
    return f"known by name: {found.why}" if found.named >= ENOUGH and found.why else ""


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:g} %"


def markdown(built: Sequence[Coverage]) -> str:
    """The page. built: of all types that were built."""
    records = types()
    absent = {name: record["error"] for name, record in records.items() if "error" in record}
    good = [one for one in built if passes(one)]
    towers = [one for one in good if one.roles < ENOUGH]
    named = [one for one in built if not passes(one) and one.named >= ENOUGH]
    lines = [
        "# Model types",
        "",
        "Of which model types of transformers 5.5.0 the roles of tensors are known. Made by",
        "`python -m build_index.model_types` from names, shapes and configs of all types that its defaults build on",
        "the meta device (`tests/make_model_types.py`), in their natural class, at their own widths and depth.",
        "",
        "*roles*: share of the parameters that have a role. *text*: the same of the text tower. *named*: share that",
        "has a role, or a reason that says what it is (an image tower, a projector). What is not named",
        "is still compared block by block, and a warning names it.",
        "",
        f"{len(records)} types. {len(built)} were built: {len(good)} have roles for 95 % of their parameters",
        f"({len(towers)} of these of the text tower, with all else known by its name), {len(named)} are known by name",
        f"for 95 %, {len(built) - len(good) - len(named)} are listed with their reason. {len(absent)} were not built.",
        "",
        "| type | class | roles | text | named | why fewer |",
        "|---|---|--:|--:|--:|---|",
    ]
    lines += [
        f"| {one.model_type} | {one.built_as} | {_percent(one.roles)} | "
        f"{'' if one.text is None else _percent(one.text)} | {_percent(one.named)} | {reason(one)} |"
        for one in built
    ]
    lines += ["", "Not built:", "", "| type | why |", "|---|---|"]
    lines += [f"| {name} | {NOT_BUILT.get(name, error)} |" for name, error in absent.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    records = types().items()
    built = [coverage(name, record, layout_of(record)) for name, record in records if "class" in record]
    TABLE.write_text(markdown(built), encoding="utf-8")


if __name__ == "__main__":
    main()
