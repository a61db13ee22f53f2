"""Tokenizer files in, facts out: vocabulary, merges, special ids, and the first id of a text.

Read with the `tokenizers` package; nothing is downloaded and nothing from the model is executed. Understood, in this
order: tokenizer.json; tekken.json and other tokens with ranks (formats/tiktoken.py); vocab.txt (WordPiece, or PhoBERT's
words with bpe.codes); vocab.json with merges.txt (byte-level BPE) or with a SentencePiece model (Marian, M2M100); a
SentencePiece model (formats/sentencepiece.py decodes it); a plain list of tokens (CTranslate2). tokenizer_config.json,
special_tokens_map.json and added_tokens.json are read beside each of them. What cannot be read gives a reason, never an
invented tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason
from provindex.common.tokens import SPECIAL, Tokenizer, TokenizerAbsence, guarded
from provindex.formats import tiktoken
from provindex.formats.folder import RANKS, VERSIONED
from provindex.formats.local_files import opened
from provindex.models import tokenizer_bounds as bounds
from provindex.models.rehearsal import rehearse
from provindex.roles.config_defaults import assumed_tokens, tokenizer_class

MAX_BYTES = 1 << 26  # of one file; multilingual E5's has 17 MB, and a letter takes up to 4 bytes in Python
MAX_ID = 1 << 24  # the tokenizers package takes time and memory for each id that is left out below the highest
SENTENCEPIECE_FILES = (
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "source.spm",
)  # fmt: skip
LISTS = ("vocabulary.json", "vocabulary.txt", "shared_vocabulary.json", "shared_vocabulary.txt")
COUNTED = re.compile(r"\S+ \d{1,12}")  # a line of a vocabulary that counts its words
_PHOBERT = ("<s>", "<pad>", "</s>", "<unk>")  # ids before those of the file; <mask> comes after them

# Classes whose ids are not those of their SentencePiece file. A row says how the ids are made (the four first tokens,
# how many pieces of the file they replace, what follows); None: language codes or a table of its own come in between.
REORDERED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]] | None] = {
    "XLMRobertaTokenizer": (("<s>", "<pad>", "</s>", "<unk>"), 3, ("<mask>",)),
    "CamembertTokenizer": None,
    "BarthezTokenizer": None,
    "MBartTokenizer": None,
    "MBart50Tokenizer": None,
    "NllbTokenizer": None,
    "M2M100Tokenizer": None,
    "MarianTokenizer": None,
    "XGLMTokenizer": None,
    "PegasusTokenizer": None,
    "DebertaV2Tokenizer": None,
}


def read_tokenizer(files: Mapping[str, Path | bytes], config: Mapping[str, Any]) -> Tokenizer | TokenizerAbsence:
    """Read a model's tokenizer from its files (path or bytes by file name) and its config.json ({} if there is none).

    Never raises for what the files hold: a missing, oversized or broken tokenizer comes back as a TokenizerAbsence.
    The first source that can be read wins; the ones that could not are in `notes`.
    """
    settings, notes = _settings(files)
    name = tokenizer_class(settings["tokenizer_config.json"], config)
    for source in _sources(files):
        try:
            merges: list[Any] | None = None
            if source is _from_json:
                backend, merges = _from_json(files)
            else:
                backend = source(files, name)
            if source is not _from_json and type(backend.model).__name__ == "WordLevel":
                stored = "vocab.txt" if source is _from_vocab_txt else next(n for n in LISTS if n in files)
                notes.append(Reason.of(Code.TOKENS_LISTED, stored))
            return _facts(backend, name, settings, tuple(notes), source is not _from_json, merges)
        except ModelError as error:
            notes.append(_why(error))
    if len(notes) > 1:
        return TokenizerAbsence(Reason.of(Code.NO_USABLE_TOKENIZER, because=notes))
    return TokenizerAbsence(notes[0] if notes else Reason.of(Code.NO_TOKENIZER))


def _why(error: ModelError) -> Reason:
    """Why a tokenizer file was left out."""
    return error.reason or Reason.of(Code.TOKENIZER_REFUSED)


def read_bytes(path: Path | bytes, name: str, first: int = -1) -> bytes:
    """A whole file of at most MAX_BYTES, or its first bytes. ModelError when it is larger or cannot be read."""
    try:
        if isinstance(path, bytes):
            return _of_size(path, len(path), name)
        with opened(path) as file:
            if first >= 0:
                return file.read(first)
            size = os.fstat(file.fileno()).st_size
            return _of_size(file.read(MAX_BYTES + 1) if size <= MAX_BYTES else b"", size, name)
    except OSError as error:
        raise ModelError(
            f"{name} cannot be read: {error.strerror or type(error).__name__}.",
            reason=Reason.of(Code.FILE_UNREADABLE, name),
        ) from error


def _of_size(data: bytes, size: int, name: str) -> bytes:
    """The bytes of a file of `size` bytes. ModelError when there are too many."""
    size = max(size, len(data))
    if size > MAX_BYTES:
        raise ModelError(
            f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read.",
            reason=Reason.of(Code.FILE_LARGE, name, bytes=size, limit=MAX_BYTES),
        )
    return data


def read_object(path: Path | bytes, name: str) -> dict[str, Any]:
    """A JSON file whose value is an object. ModelError for anything else."""
    value = bounds.loaded(read_bytes(path, name), name)
    if not isinstance(value, dict):
        raise ModelError(
            f"{name} holds a {type(value).__name__}, not an object.", reason=Reason.of(Code.NOT_AN_OBJECT, name)
        )
    return value


def _settings(files: Mapping[str, Path | bytes]) -> tuple[dict[str, dict[str, Any]], list[Reason]]:
    """The small JSON files by name ({} where missing or broken), and why for each broken one."""
    found: dict[str, dict[str, Any]] = {}
    notes: list[Reason] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        found[name] = {}
        if name in files:
            try:
                found[name] = read_object(files[name], name)
            except ModelError as error:
                notes.append(_why(error))
    return found, notes


def _sources(files: Mapping[str, Path | bytes]) -> Iterator[Callable[[Mapping[str, Path | bytes], str], Any]]:
    """The readers for which there are files, best first."""
    if "tokenizer.json" in files:
        yield _from_json
    if "tekken.json" in files:
        yield _from_tekken
    if _ranks_file(files):
        yield _from_ranks
    if "vocab.txt" in files:
        yield _from_vocab_txt
    if "vocab.json" in files:
        yield _from_vocab_json
    if _pieces_file(files):
        yield _from_sentencepiece
    if any(name in files for name in LISTS):
        yield _from_list


def _pieces_file(files: Mapping[str, Path | bytes]) -> str | None:
    """The SentencePiece model; of Mistral's versions the last one."""
    versions = sorted((name for name in files if name.startswith(VERSIONED)), reverse=True)
    return next((name for name in (*SENTENCEPIECE_FILES, *versions) if name in files), None)


def _ranks_file(files: Mapping[str, Path | bytes]) -> str | None:
    """The file of tokens with ranks, in tiktoken's form; Llama 3's has the name of a SentencePiece model."""
    named = next((name for name in files if name.endswith(RANKS) or name == "tiktoken.model"), None)
    if named is None and "tokenizer.model" in files:
        try:
            first = read_bytes(files["tokenizer.model"], "tokenizer.model", 4096)
        except ModelError:
            return None
        return "tokenizer.model" if tiktoken.is_ranks(first) else None
    return named


def _from_tekken(files: Mapping[str, Path | bytes], name: str) -> Any:
    """Byte-level BPE from Mistral's tekken.json."""
    ranks = tiktoken.parse_tekken(read_object(files["tekken.json"], "tekken.json"), "tekken.json")
    bounded = bounds.check_pattern(ranks.pattern, "tekken.json")
    backend = guarded(lambda: tiktoken.backend(ranks))
    if not bounded:
        rehearse(backend.to_str().encode(), "tekken.json")
    return backend


def _from_ranks(files: Mapping[str, Path | bytes], name: str) -> Any:
    """Byte-level BPE from tokens with ranks."""
    stored = _ranks_file(files) or ""
    ranks = tiktoken.parse(read_bytes(files[stored], stored), stored)
    return guarded(lambda: tiktoken.backend(ranks))


def _from_json(files: Mapping[str, Path | bytes], name: str = "") -> tuple[Any, list[Any] | None]:
    """Backend from tokenizer.json, and the merges as it lists them."""
    import tokenizers

    data = read_bytes(files["tokenizer.json"], "tokenizer.json")
    document = bounds.loaded(data, "tokenizer.json")
    if not bounds.check(document, "tokenizer.json"):
        rehearse(data, "tokenizer.json")
    try:
        backend = guarded(lambda: tokenizers.Tokenizer.from_buffer(data))
        return backend, document["model"].get("merges")  # it has a model, else the package had refused it
    except ModelError as error:
        raise ModelError(
            f"tokenizer.json is not a tokenizer. {error.message}",
            reason=Reason.of(Code.TOKENIZER_REFUSED, "tokenizer.json"),
        ) from error


def _from_vocab_txt(files: Mapping[str, Path | bytes], name: str) -> Any:
    """WordPiece from one token a line; the line number is the id."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    text = _text(files["vocab.txt"], "vocab.txt")
    listed = bounds.lines(text, "vocab.txt")
    if _is_counted(listed):
        return _from_counts(files, listed)
    vocab = {token: index for index, token in enumerate(listed) if token}
    if not vocab:
        raise ModelError("vocab.txt is empty.", reason=Reason.of(Code.FILE_EMPTY, "vocab.txt"))
    lower = not any(token.isalpha() and token.isascii() and not token.islower() for token in vocab)
    backend = guarded(lambda: Backend(models.WordPiece(vocab, unk_token="[UNK]")))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _from_vocab_json(files: Mapping[str, Path | bytes], name: str) -> Any:
    """Byte-level BPE from vocab.json and merges.txt."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    if "merges.txt" not in files and _pieces_file(files):
        return _from_pieces(files)
    if "merges.txt" not in files:
        raise ModelError("vocab.json has no merges.txt beside it.", reason=Reason.of(Code.NO_MERGES, "vocab.json"))
    vocab = _ids(files)
    lines = bounds.lines(_text(files["merges.txt"], "merges.txt"), "merges.txt")
    words = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in words):
        raise ModelError(
            "merges.txt has lines that are not two words.", reason=Reason.of(Code.MERGES_NOT_PAIRS, "merges.txt")
        )
    merges = [(left, right) for left, right in words]
    backend = guarded(lambda: Backend(models.BPE(vocab, merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def _ids(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    """The ids of vocab.json."""
    vocab = read_object(files["vocab.json"], "vocab.json")
    if not all(isinstance(index, int) and 0 <= index < 1 << 32 for index in vocab.values()):
        raise ModelError(
            "vocab.json holds ids that are not whole numbers.", reason=Reason.of(Code.IDS_NOT_WHOLE, "vocab.json")
        )
    return vocab


def _from_pieces(files: Mapping[str, Path | bytes]) -> Any:
    """A SentencePiece model that cuts texts into pieces whose ids are those of vocab.json (Marian, M2M100)."""
    from provindex.formats import sentencepiece as spm

    stored = _pieces_file(files) or ""
    proto = spm.parse(read_bytes(files[stored], stored), stored)
    ids = _ids(files)
    ordered = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in ordered] != list(range(len(ordered))):
        raise ModelError("vocab.json leaves out ids.", reason=Reason.of(Code.IDS_WITH_GAPS, "vocab.json"))
    known = {piece.text: piece for piece in proto.pieces}
    least = min((piece.score for piece in proto.pieces), default=0.0) - 10  # pieces of the other language's model
    pieces = tuple(known.get(token, spm.Piece(token, least, spm.NORMAL)) for token in ordered)
    return guarded(lambda: spm.backend(spm.Model(proto.kind, pieces, proto.dummy_prefix), stored))


def _is_counted(listed: list[str]) -> bool:
    """Whether nearly all lines of a vocabulary are a word and a count."""
    lines = [line for line in listed if line]
    return sum(1 for line in lines if COUNTED.fullmatch(line)) > 0.99 * len(lines) and len(lines) > 1


def _from_counts(files: Mapping[str, Path | bytes], listed: list[str]) -> Any:
    """PhoBERT and BERTweet: words and their parts ("par@@") with counts; ids are those of the lines, after four others.

    How a word that is not there is cut (bpe.codes) is not undone: it has no first id.
    """
    if "bpe.codes" not in files:
        raise ModelError("vocab.txt counts words.", reason=Reason.of(Code.COUNTS_ALONE, "vocab.txt"))
    words = [line.rpartition(" ")[0] for line in listed if " " in line]
    return _word_level([*_PHOBERT, *words, "<mask>"])


def _from_list(files: Mapping[str, Path | bytes], name: str) -> Any:
    """Tokens in the order of their ids, as CTranslate2 keeps them."""
    stored = next(file for file in LISTS if file in files)
    if stored.endswith(".txt"):
        tokens: Any = bounds.lines(_text(files[stored], stored).removesuffix("\n"), stored)
    else:
        tokens = bounds.loaded(read_bytes(files[stored], stored), stored)
    if not isinstance(tokens, list) or not all(_content(token) for token in tokens) or not tokens:
        raise ModelError(f"{stored} is no list of tokens.", reason=Reason.of(Code.NO_TOKENS, stored))
    return _word_level(tokens)


def _word_level(tokens: list[str]) -> Any:
    """A backend that finds whole tokens, with their own mark of a space."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    vocab = {token: number for number, token in reversed(list(enumerate(tokens)))}
    backend = guarded(lambda: Backend(models.WordLevel(vocab, unk_token="")))  # no token: what is not listed has no id
    marks = {mark: sum(token.startswith(mark) for token in tokens) for mark in ("\u0120", "\u2581")}
    if marks["\u0120"] > marks["\u2581"]:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace() if marks["\u2581"] else pre_tokenizers.WhitespaceSplit()
    return backend


def _from_sentencepiece(files: Mapping[str, Path | bytes], name: str) -> Any:
    """Unigram or BPE from a SentencePiece model, with the ids that the tokenizer class gives to its pieces."""
    from provindex.formats import sentencepiece as spm

    stored = _pieces_file(files) or ""
    order = REORDERED.get(name, ((), 0, ()))
    if order is None:
        raise ModelError(
            f"{stored}: a {name} gives its pieces other ids than this file does.",
            reason=Reason.of(Code.OTHER_IDS, stored, name=name),
        )
    proto = spm.parse(read_bytes(files[stored], stored), stored)
    first, skip, last = order
    special = {piece.text: piece for piece in proto.pieces}
    made = [special.get(text, spm.Piece(text, 0.0, spm.CONTROL)) for text in first]
    more = [spm.Piece(text, 0.0, spm.CONTROL) for text in last if text not in special]
    ordered = spm.Model(proto.kind, (*made, *proto.pieces[skip:], *more), proto.dummy_prefix)
    return guarded(lambda: spm.backend(ordered, stored))


def _text(path: Path | bytes, name: str) -> str:
    try:
        return read_bytes(path, name).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is not UTF-8 text.", reason=Reason.of(Code.NOT_TEXT, name)) from error


def _facts(
    backend: Any,
    name: str,
    settings: dict[str, dict[str, Any]],
    notes: tuple[Reason, ...],
    bare: bool,
    listed: list[Any] | None,
) -> Tokenizer:
    """Add the declared tokens that the backend lacks, then read everything off it.

    bare: made from a vocabulary file, which leaves T5's sentinels to the tokenizer class. listed: the merges of
    tokenizer.json.
    """
    tokens = _special_tokens(backend, name, settings)
    present = [token for token in tokens.values() if backend.token_to_id(token) is not None]
    sentinels = settings["tokenizer_config.json"].get("extra_ids", 100 if bare else 0) if name == "T5Tokenizer" else 0
    _add(backend, [*_declared(settings, tokens, sentinels if isinstance(sentinels, int) else 0), *present])
    vocab: dict[str, int] = guarded(lambda: backend.get_vocab(with_added_tokens=True))
    if not vocab:
        raise ModelError("The tokenizer has no tokens.", reason=Reason.of(Code.NO_TOKENS, "the tokenizer"))
    if max(vocab.values()) > MAX_ID:
        raise ModelError(
            f"The tokenizer has the id {max(vocab.values()):,}, {MAX_ID:,} is the highest that is read.",
            reason=Reason.of(Code.TOKEN_ID_HIGH, "the tokenizer", id=max(vocab.values()), limit=MAX_ID),
        )
    text = guarded(backend.to_str)
    kind = type(backend.model).__name__
    merges: tuple[str, ...] = ()
    if kind == "BPE":
        merges = _once(listed) or _joined(json.loads(text)["model"].get("merges"))
    # After to_str: all are part of what is hashed, and none of what the first token of a text is. A post-processor may
    # repeat the text.
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = None
    return Tokenizer(
        kind=kind,
        class_name=name,
        vocab=vocab,
        merges=merges,
        special={key: vocab.get(tokens[key]) if key in tokens else None for key in SPECIAL},
        added=len(backend.get_added_tokens_decoder()),
        special_count=len({token for token in tokens.values() if token in vocab}),
        backend_sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        notes=notes,
        backend=backend,
    )


def _joined(listed: Any) -> tuple[str, ...]:
    return tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in listed or ())


def _once(listed: list[Any] | None) -> tuple[str, ...]:
    """The merges of a file whose pairs the package keeps as they are: each is a list, and comes once. () for others."""
    if not listed or not all(isinstance(pair, list) for pair in listed):
        return ()
    merges = _joined(listed)
    return merges if len(set(merges)) == len(merges) else ()


def _content(value: Any) -> str | None:
    """A token as the JSON files write it: a string, or an object with `content`. JSON may hold half characters, which
    are no text to the tokenizers package."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value and value == value.encode(errors="ignore").decode() else None


def _special_tokens(backend: Any, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Special token strings by SPECIAL name: declared in the files, else assumed by the class, else the padding's.

    A null in tokenizer_config.json is a declaration too: that token is not there.
    """
    declared = settings["special_tokens_map.json"] | settings["tokenizer_config.json"]
    assumed = assumed_tokens(name)
    found: dict[str, str] = {}
    for key in SPECIAL:
        token = _content(declared[f"{key}_token"]) if f"{key}_token" in declared else assumed.get(key)
        if token is None and key == "pad" and "pad_token" not in declared and backend.padding:
            token = backend.padding["pad_token"]
        if token is not None:
            found[key] = token
    return found


def _declared(settings: dict[str, dict[str, Any]], tokens: Mapping[str, str], sentinels: int) -> list[str]:
    """Tokens that the files declare, in the order in which they get ids; T5's sentinels count downwards.

    A special token that only the class assumes is not among them: it is looked up, never added.
    """
    settled = settings["tokenizer_config.json"]
    by_id: dict[int, str] = {}
    listed = settled.get("added_tokens_decoder")
    for index, value in (listed if isinstance(listed, dict) else {}).items():
        token = _content(value)
        if token and isinstance(index, str) and index.isdecimal() and len(index) < 10:
            by_id[int(index)] = token
    for text, place in settings["added_tokens.json"].items():
        if isinstance(place, int) and place >= 0 and _content(text):
            by_id.setdefault(place, text)
    ordered = [by_id[index] for index in sorted(by_id)]
    ordered += [f"<extra_id_{number}>" for number in reversed(range(min(sentinels, 1000)))]
    declared = settings["special_tokens_map.json"] | settled
    ordered += [token for key, token in tokens.items() if _content(declared.get(f"{key}_token")) == token]
    return list(dict.fromkeys(ordered))


def _add(backend: Any, tokens: list[str]) -> None:
    """Make these tokens added tokens, which a text is cut at before anything else, as transformers does.

    Those that the vocabulary has keep their ids, others are appended in this order.
    """
    from tokenizers import AddedToken

    known = {token.content for token in guarded(backend.get_added_tokens_decoder).values()}
    missing = [AddedToken(token, special=True) for token in dict.fromkeys(tokens) if token not in known]
    if missing:
        guarded(lambda: backend.add_tokens(missing))


__all__ = ["MAX_BYTES", "SPECIAL", "Tokenizer", "TokenizerAbsence", "read_tokenizer"]
