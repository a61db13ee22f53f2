"""A zoo of small models whose family tree is known, made by numpy in seconds.

`models` generates checkpoints of six architectures and writes them as folders, `trainer` trains a small Llama for
real, `children` derives descendants, `family` puts a trained tree on disk: `python -m zoo FOLDER`, from tests/.
"""

from .children import (
    cast,
    cosines,
    drop_layers,
    extend_vocabulary,
    finetune_noise,
    merge,
    permute_neurons,
    prune_vocabulary,
    prune_width,
    quantize,
    rename_prefix,
    repeat_layers,
    shuffle,
)
from .container import decode, encode
from .family import Family, trained_family
from .models import Checkpoint, bert, gpt2, independent, llama, llama_config, neox, qwen2, t5, write
from .spoken import spoken, with_strings
from .trainer import logits, train

__all__ = [
    "Checkpoint",
    "Family",
    "bert",
    "cast",
    "cosines",
    "decode",
    "drop_layers",
    "encode",
    "extend_vocabulary",
    "finetune_noise",
    "gpt2",
    "independent",
    "llama",
    "llama_config",
    "logits",
    "merge",
    "neox",
    "permute_neurons",
    "prune_vocabulary",
    "prune_width",
    "quantize",
    "qwen2",
    "rename_prefix",
    "repeat_layers",
    "shuffle",
    "spoken",
    "t5",
    "train",
    "trained_family",
    "with_strings",
    "write",
]  # fmt: skip
