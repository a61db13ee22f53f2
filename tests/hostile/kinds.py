"""The kinds of hostile inputs: a generator each, and what an input of it may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostile import files_of_strangers as files
from hostile import texts_of_strangers as texts
from hostile import tokenizers_of_strangers as tokenizers
from hostile import weights_of_strangers as weights
from hostile.place import Place


@dataclass(frozen=True)
class Kind:
    """make: spoils a folder. seconds, megabytes: what the command may take. share: of the inputs, 1 for most."""

    name: str
    make: Callable[[Place], None]
    seconds: float = 20.0
    megabytes: float = 1000.0
    share: float = 1.0


KINDS = (
    Kind("growing", tokenizers.growing, share=1.5),
    Kind("patterns", tokenizers.patterns, share=1.5),
    Kind("added", tokenizers.added),
    Kind("vocabularies", tokenizers.vocabularies),
    Kind("vocabulary_files", tokenizers.vocabulary_files, share=1.5),
    Kind("special", files.special, share=1.5),
    Kind("outside", files.outside),
    Kind("indexes", files.indexes),
    Kind("cut", files.cut),
    Kind("full", files.full),
    Kind("headers", weights.headers, share=1.5),
    Kind("many_layers", weights.many_layers, share=0.5),
    Kind("torch_views", weights.torch_views),
    Kind("programs", weights.programs, share=1.5),
    Kind("archives", weights.archives),
    Kind("onnx", weights.onnx, share=1.5),
    Kind("gguf", weights.gguf, share=1.5),
    Kind("others", weights.others),
    Kind("configs", texts.configs, share=1.5),
    Kind("names", texts.names),
    Kind("cards", texts.cards),
    Kind("deep_folders", texts.deep_folders, share=0.5),
)
