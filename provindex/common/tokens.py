"""Facts of a tokenizer, as the room that reads models states them and the signals use them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

from provindex.common.errors import ModelError
from provindex.common.reasons import Code, Reason

SPECIAL = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
# The texts whose first token is asked for (signals/anchors.py says what for): digits and marks, then words by script.
MARKS = tuple("0123456789.,!?:;")
WORDS = {
    "Latin": tuple("the of and to in is that for it was on are with as be at ing tion er al ed es re en".split()),
    "CJK": tuple("的一是不人我在有了这中大"),
    "Cyrillic": ("и", "в", "не", "на", "я", "что", "он", "к"),
    "Arabic": ("من", "في", "على", "أن", "هذا", "الله", "إلى", "لا"),
    "Devanagari": ("के", "है", "का", "की", "यह", "से", "को", "पर"),
}
ASKED = (*MARKS, *(word for words in WORDS.values() for word in words))


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Facts of one tokenizer.

    kind: "BPE", "WordPiece", "Unigram" or "WordLevel". class_name: as transformers 5.5.0 names it ("BertTokenizer";
    "TokenizersBackend" where it keeps no class). vocab: id by token string, added tokens included.
    merges: "a b", in order of rank; empty for kinds without merges. special: ids of SPECIAL, None where there is none.
    added: number of added tokens. special_count: number of different special token strings.
    backend_sha256: of the serialized backend (`Tokenizer.to_str()` of the tokenizers package), hexadecimal.
    notes: why files were left out. backend: the live tokenizer, used by `first_id` only.
    """

    kind: str
    class_name: str
    vocab: Mapping[str, int]
    merges: tuple[str, ...]
    special: Mapping[str, int | None]
    added: int
    special_count: int
    backend_sha256: str
    notes: tuple[Reason, ...] = ()
    backend: Any = field(default=None, repr=False, compare=False)

    def first_id(self, text: str) -> int | None:
        """First id of the encoded text without special tokens; None if it encodes to nothing or cannot be encoded."""
        try:
            ids = guarded(lambda: self.backend.encode(text, add_special_tokens=False).ids)
        except ModelError:  # e.g. a word-level vocabulary without an unknown token: this text has no id
            return None
        return int(ids[0]) if ids else None


@dataclass(frozen=True, slots=True)
class TokenizerAbsence:
    """There is no usable tokenizer, and why."""

    reason: Reason


_PRINTING = RLock()  # one thread at a time puts another file in the place of standard error


@contextmanager
def _silenced() -> Iterator[None]:
    """Native code of this process prints nothing on standard error."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def guarded(action: Callable[[], Any]) -> Any:
    """Run one call of the tokenizers package; ModelError for whatever it raises.

    It raises bare Exception for bad data, and a Rust panic arrives as PanicException, which is no Exception. What it
    prints of a panic on standard error, words of the file among it, goes nowhere.
    """
    try:
        with _PRINTING, _silenced():
            return action()
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        detail = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The tokenizers package refuses it: {detail or type(error).__name__}.",
            reason=Reason.of(Code.TOKENIZER_REFUSED),
        ) from error
