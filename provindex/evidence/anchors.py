"""The 512 anchor strings of evidence.md.

Fixed and versioned, ubiquitous in byte-level BPE, SentencePiece and WordPiece vocabularies.

Single characters first, then the English words that eight unrelated real vocabularies share, in order of frequency (the
merge rank in GPT-2's vocabulary). The order is part of the version: row i of an anchor table belongs to ANCHORS[i].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provindex.common.reasons import Code, Reason
from provindex.evidence import own_strings
from provindex.roles import canonical
from provindex.roles.weights import Weights

ANCHORS: tuple[str, ...] = tuple(
    r"""
! " $ % & ' ( ) * + , - . / 0 1 2 3 4 5 6 7 8 9 : ; > ? a b c d e f g h i j k l m n o p q r s t u v w x y z
A B C D E F G H I J K L M N O P Q R S T U V W X Y Z = # [ ] @ { } | _ ~ ^ the an to of in and be is on that
for it you with as we con was at se pro ha are de or not ex by from have su sh this al le ab pl can his do
go has but all will they me out who up their us more so one said your which im about were had un would off
man per other been like any app them her ar there pe year my some when than over qu also part time what no
new get just into people pre its rec work she our him only how after play could am first act two back under
may po des most did add again know need co want see even these pr use because now make then every sec look
bu where years should right through way don reg very imp sub being does br down many call before well much
those such end long think own set show say good start made mon last min col mod count fin point sur used
same while game inter report still here world though ref trans take going hand between against high gr help
found person great sign ser run follow find cr team system lead around govern car law read real support
really fact day both three each rep met says during too public war power few different state head stat
another child since life develop pass turn fr second disc something month government without leg put quest
never level art things might effect cent allow feel result lot fun using big ask best number ca must direct
open post come seem week far place form told stand next let little mark information bus invest hard import
test tri rest full care case less list top dem home left better data attack bro build main including got
interest keep class small plan percent camp pay didn process program name four return called move group men
cap pat current pop always mil women old near free design change bo vis book kill away country order million
thing why school days prof health sol already friend least prom est tell talk until later view word cost
enough give par large win important doesn business clear expect kind mean past bas organ perform story
season claim came within line project control air money family making bit police happen sit sure appear
light water times grow company mar example actually ever tax major often human job available record sing
news following
""".split()
)

_MARKS = (
    "\u0120",
    "\u2581",
    " ",
    "",
)  # byte-level BPE, SentencePiece, plain space, none (WordPiece, characters)


def anchor_ids(vocabulary: Mapping[str, int], rows: int) -> NDArray[np.int64]:
    """Id of each anchor string, (512,) int64, -1 where the vocabulary lacks it.

    A word at the start of a word is preferred to the bare piece, so that one string means one thing in vocabularies of
    every kind. rows: rows of the embedding; an id at or past it counts as missing.
    """
    ids = np.full(len(ANCHORS), -1, np.int64)
    for i, text in enumerate(ANCHORS):
        for mark in _MARKS:
            token = vocabulary.get(mark + text)
            if token is not None and 0 <= token < rows:
                ids[i] = token
                break
    return ids


# --- from a model's weights ---


@dataclass(frozen=True)
class AnchorRows:
    """Embedding rows of anchor tokens, in the residual stream.

    rows: (present anchors, d) float32. ids: (512,) int64, -1 where missing. labels: what seeds the signs of each.
    """

    rows: NDArray[np.float32]
    ids: NDArray[np.int64]
    labels: Sequence[str]


STRINGS = "strings"  # under this name a fingerprint says that its tokenizer does not fit its embedding
BY_STRING, BY_ID = "residual", "residual_by_id"  # the panels of either naming


def at_strings(w: Weights) -> AnchorRows | None:
    """Rows at the anchor strings; None without a tokenizer or an embedding, which is noted."""
    vocabulary = None if w.tokenizer is None else w.tokenizer.vocab
    if vocabulary is None:
        w.absences[BY_STRING] = Reason.of(Code.ANCHORS_NEED_TOKENIZER)
        return None
    found = _anchor_rows(w, BY_STRING, lambda rows: anchor_ids(vocabulary, rows), ANCHORS)
    if found is not None:
        fit = own_strings.fit(found.rows, [ANCHORS[i] for i in np.flatnonzero(found.ids >= 0)])
        if fit is not None and fit < own_strings.LEAST:
            w.absences[STRINGS] = Reason.of(Code.STRINGS_APART, deviations=round(fit, 1), needed=own_strings.LEAST)
    return found


def at_ids(w: Weights) -> AnchorRows | None:
    """Rows at fixed token ids, for when a tokenizer is withheld or is not the model's own."""
    return _anchor_rows(w, BY_ID, fixed_ids, [f"id {i}" for i in fixed_ids(1 << 62)])


def _anchor_rows(
    w: Weights, note: str, choose: Callable[[int], NDArray[np.int64]], labels: Sequence[str]
) -> AnchorRows | None:
    found = w.embedding(note)
    if found is None or w.arch is None:
        w.absences.setdefault(note, Reason.of(Code.ARCHITECTURE_UNKNOWN))
        return None
    tensor = w.tensors[found[0].name]
    ids = choose(tensor.shape[0])
    rows = tensor.rows(ids[ids >= 0])
    maps = w.parts("embed_map")
    if maps:
        place, part = maps[0]
        if w.shape(place, part)[1] != rows.shape[1]:  # it maps something else
            w.absences[note] = Reason.of(Code.EMBEDDING_OTHER_WIDTH)
            return None
        matrix = w.rows(place, part, 0, w.shape(place, part)[0])
        rows = (rows.astype(np.float64) @ matrix.astype(np.float64).T).astype(np.float32)
    elif canonical.diagonal_stands_out(rows, ids[ids >= 0]):
        w.absences[note] = Reason.of(Code.EMBEDDING_IDENTITY)
        return None
    if rows.shape[1] != w.arch.hidden:
        w.absences[note] = Reason.of(Code.EMBEDDING_OTHER_WIDTH)
        return None
    return AnchorRows(rows, ids, labels)


def fixed_ids(rows: int) -> NDArray[np.int64]:
    """512 token ids that do not need a tokenizer, dense at the start of the vocabulary; -1 at and past `rows`."""
    i = np.arange(len(ANCHORS), dtype=np.int64)
    ids = i + i * i * 30_000 // len(ANCHORS) ** 2
    return np.where(ids < rows, ids, -1)
