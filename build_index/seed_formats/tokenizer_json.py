"""tokenizer.json for models whose package ships the vocabulary in another form. Needs the `tokenizers` package.

Each function returns the bytes of the file. What matters to provindex is the vocabulary with its ids, which is exact;
normalizers that the package does not state are left out, and SOURCE.json says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SMILES = (
    r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|"
    r"\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTER_SPECIALS = ("[PAD]", "[UNK_KANJI]", "[UNK]")


def smiles_tokenizer(vocab_txt: str) -> bytes:
    """Reaction SMILES (rxnfp, rxnmapper): split by a regular expression, one word a token."""
    vocab = [line for line in vocab_txt.splitlines() if line]
    return _word_level(vocab, SMILES, BERT_SPECIALS, ends=("[CLS]", "[SEP]"))


def character_tokenizer(characters: Sequence[str]) -> bytes:
    """One character a token, after three special tokens (the sudachi imitators)."""
    return _word_level([*CHARACTER_SPECIALS, *characters], r"[\s\S]", CHARACTER_SPECIALS)


def _word_level(
    vocab: Sequence[str], pattern: str, specials: Sequence[str], ends: tuple[str, str] | None = None
) -> bytes:
    import tokenizers as tk

    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = tk.Tokenizer(tk.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tk.pre_tokenizers.Split(tk.Regex(pattern), "isolated")
    tokenizer.add_special_tokens([token for token in specials if token in ids])
    if ends:
        tokenizer.post_processor = _template(*((token, ids[token]) for token in ends))
    return _to_bytes(tokenizer)


def unigram_tokenizer(pieces: Sequence[str], scores: Sequence[float], specials: Mapping[str, int]) -> bytes:
    """A SentencePiece Unigram model; specials: ids of "bos", "eos", "pad" and "unk"."""
    import tokenizers as tk

    model = tk.models.Unigram(
        [(piece, float(score)) for piece, score in zip(pieces, scores, strict=True)],
        unk_id=specials["unk"],
        byte_fallback=False,
    )
    tokenizer = tk.Tokenizer(model)
    tokenizer.pre_tokenizer = tk.pre_tokenizers.Metaspace()
    tokenizer.decoder = tk.decoders.Metaspace()
    tokenizer.add_special_tokens(special_pieces(pieces, specials))
    tokenizer.post_processor = _template(*((pieces[specials[end]], specials[end]) for end in ("bos", "eos")))
    return _to_bytes(tokenizer)


def special_pieces(pieces: Sequence[str], specials: Mapping[str, int]) -> list[str]:
    """The special pieces in the order of their usual ids, each once."""
    return list(dict.fromkeys(pieces[specials[role]] for role in ("bos", "pad", "eos", "unk")))


def gguf_tokenizer(rebuilt: bytes, metadata: Mapping[str, Any]) -> bytes:
    """A GGUF's tokenizer.json as provindex rebuilds it, in the form of the snapshots.

    That has every row of the embedding in its vocabulary, only control tokens beside it, and the usual decoder.
    """
    import tokenizers as tk

    document = json.loads(rebuilt)
    document["model"]["vocab"] = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    document["added_tokens"] = [token for token in document["added_tokens"] if token["special"]]
    tokenizer = tk.Tokenizer.from_str(json.dumps(document))
    tokenizer.decoder = tk.decoders.ByteLevel()
    return _to_bytes(tokenizer)


def _template(first: tuple[str, int], last: tuple[str, int]) -> Any:
    """The post-processor that puts `first` before and `last` after a sequence."""
    import tokenizers as tk

    return tk.processors.TemplateProcessing(single=f"{first[0]} $A {last[0]}", special_tokens=[first, last])


def _to_bytes(tokenizer: Any) -> bytes:
    return bytes(tokenizer.to_str(pretty=True).encode())
