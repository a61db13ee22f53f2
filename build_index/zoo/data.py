"""Generated English-like text and the tokenizers trained on it: numpy, fixed seeds, nothing downloaded.

A language is a lexicon of real words (the anchor strings of provindex among the frequent ones), word classes, and a
chain of classes; a dialect of it has its own topics and its own habitual word pairs. Text is then learnable at every
distance: frequencies, classes, pairs, repetition ten words back, and the topic of the whole document.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from provindex.evidence.anchors import ANCHORS

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SUFFIXES = ("s", "ed", "ing", "er", "ly", "ness", "ment", "able", "less", "ful")
PREFIXES = ("re", "un", "over", "under", "inter", "out")
MARKS = (".", ",", "?", "!", ";", ":")  # written without a space before them
CLASSES, TOPICS, PAIRS = 12, 24, 6
DERIVED = 1500  # words made from an anchor and an affix
P_PAIR, P_REPEAT, P_SWITCH = 0.6, 0.08, 0.01  # habitual next word, the word ten back, another topic
BACK = 10

BYTE_END, WORD_MARKS = "<|endoftext|>", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Language:
    """A generator of documents. lexicon: seed of words, frequencies and grammar. dialect: seed of topics and pairs."""

    lexicon: int
    dialect: int = 0

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Anchors first (in provindex's order, that of frequency), then words derived from the longer ones."""
        rng = np.random.default_rng((self.lexicon, 1))
        stems = [word for word in ANCHORS if word.isalpha() and len(word) >= 4]
        made: dict[str, None] = {}
        while len(made) < DERIVED:
            stem = stems[rng.integers(len(stems))]
            if rng.random() < 0.75:
                made[stem + SUFFIXES[rng.integers(len(SUFFIXES))]] = None
            else:
                made[PREFIXES[rng.integers(len(PREFIXES))] + stem] = None
        return tuple(ANCHORS) + tuple(word for word in made if word not in set(ANCHORS))

    @cached_property
    def frequency(self) -> F64:
        """Zipf over a noisy order: marks are common, other single characters as rare as derived words."""
        rng = np.random.default_rng((self.lexicon, 2))
        score = np.array([_commonness(i, word) for i, word in enumerate(self.words)])
        order = np.argsort(score + rng.normal(0.0, 0.8, len(score)), kind="stable")
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        weight = (rank + 8.0) ** -1.1
        return np.asarray(weight / weight.sum())

    @cached_property
    def word_class(self) -> I64:
        """Class of each word; the last one holds the marks."""
        rng = np.random.default_rng((self.lexicon, 3))
        classes = rng.integers(0, CLASSES - 1, len(self.words))
        classes[[word in MARKS for word in self.words]] = CLASSES - 1
        return classes.astype(np.int64)

    @cached_property
    def grammar(self) -> F64:
        """Cumulative chances of the next class, (classes, classes); a sentence lasts about twelve words."""
        rng = np.random.default_rng((self.lexicon, 4))
        chances = rng.dirichlet(np.full(CLASSES, 0.35), CLASSES)
        chances[:, -1] = 0.08
        chances[-1, -1] = 0.0
        return np.asarray(np.cumsum(chances / chances.sum(1, keepdims=True), axis=1))

    @cached_property
    def pairs(self) -> I64:
        """Habitual next words, (words, PAIRS), the likeliest first."""
        rng = np.random.default_rng((self.lexicon, 5, self.dialect))
        return rng.choice(len(self.words), (len(self.words), PAIRS), p=self.frequency).astype(np.int64)

    @cached_property
    def choices(self) -> tuple[F64, I64]:
        """Cumulative chances by topic and class, (topics, classes, longest class), and the words they stand for."""
        rng = np.random.default_rng((self.lexicon, 6, self.dialect))
        members = [np.flatnonzero(self.word_class == c) for c in range(CLASSES)]
        longest = max(len(m) for m in members)
        table = np.ones((TOPICS, CLASSES, longest))
        words = np.zeros((CLASSES, longest), np.int64)
        for c, member in enumerate(members):
            weight = self.frequency[member] * np.exp(rng.normal(0.0, 1.2, (TOPICS, len(member))))
            table[:, c, : len(member)] = np.cumsum(weight / weight.sum(1, keepdims=True), axis=1)
            words[c, : len(member)] = member
            words[c, len(member) :] = member[-1]
        return table, words

    def documents(self, count: int, length: int, seed: int) -> list[str]:
        """`count` documents of `length` words each."""
        words = np.array(self.words, dtype=object)
        glue = np.array([word in MARKS for word in self.words])
        drawn = self._draw(count, length, np.random.default_rng((self.lexicon, 7, self.dialect, seed)))
        spaced = np.where(glue[drawn], words[drawn], " " + words[drawn])
        return ["".join(row) for row in spaced]

    def _draw(self, count: int, length: int, rng: np.random.Generator) -> I64:
        """Word numbers, (count, length): all documents advance together, one word at a time."""
        table, members = self.choices
        drawn = np.zeros((count, length), np.int64)
        topic = rng.integers(0, TOPICS, count)
        word = rng.choice(len(self.words), count, p=self.frequency)
        for step in range(length):
            chance = rng.random((4, count))
            topic = np.where(rng.random(count) < P_SWITCH, rng.integers(0, TOPICS, count), topic)
            row = self.grammar[self.word_class[word]]
            kind = np.minimum((row < chance[0][:, None]).sum(1), CLASSES - 1)
            place = np.minimum((table[topic, kind] < chance[1][:, None]).sum(1), members.shape[1] - 1)
            following = members[kind, place]
            habit = self.pairs[word, np.minimum((PAIRS * chance[2] ** 2).astype(np.int64), PAIRS - 1)]
            word = np.where(chance[3] < P_PAIR, habit, following)
            if step >= BACK:
                word = np.where(chance[3] > 1.0 - P_REPEAT, drawn[:, step - BACK], word)
            drawn[:, step] = word
        return drawn


def _commonness(index: int, word: str) -> float:
    """Log rank before noise: anchors in their order, characters and derived words behind them."""
    if word in MARKS:
        return float(np.log(4.0))
    if len(word) == 1 and word not in ("a", "I"):
        return float(np.log(600.0))
    return float(np.log(index + 1.0 if index < len(ANCHORS) else 900.0))


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer to train. kind: "bpe" (byte-level) or "wordpiece". languages: whose text, in equal parts."""

    kind: str
    size: int
    languages: tuple[Language, ...]
    specials: tuple[str, ...] = (BYTE_END,)


@cache
def train_tokenizer(vocabulary: Vocabulary) -> str:
    """The text of its tokenizer.json; the same for the same settings and version of `tokenizers`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [text for language in vocabulary.languages for text in language.documents(150, 500, seed=900)]
    if vocabulary.kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary.size,
            special_tokens=list(vocabulary.specials),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    else:
        pieces = _word_pieces(texts, vocabulary)
        tokenizer = Tokenizer(models.WordPiece(vocab=pieces, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(list(vocabulary.specials))
    return str(tokenizer.to_str(pretty=False))


def _word_pieces(texts: Sequence[str], vocabulary: Vocabulary) -> dict[str, int]:
    """Characters, affixes, and the most frequent words. Own counting: the library's trainer breaks ties by chance."""
    counts = Counter(re.findall(r"\w+", " ".join(texts)))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    characters = sorted(set("".join(ANCHORS)))
    inner = [f"##{piece}" for piece in (*SUFFIXES, *(c for c in characters if c.isalnum()))]
    pieces = dict.fromkeys((*vocabulary.specials, *characters, *inner, *PREFIXES, *frequent))
    return {piece: i for i, piece in enumerate(list(pieces)[: vocabulary.size])}


def vocabulary_of(tokenizer: str) -> dict[str, int]:
    """Token strings and ids of a tokenizer.json."""
    vocab: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
    return vocab


@cache
def corpus(language: Language, tokenizer: str, documents: int = 512, length: int = 600, seed: int = 0) -> I64:
    """All its tokens in one row, int64: 300,000 words with the default settings, a few seconds' work."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer)
    texts = language.documents(documents, length, seed)
    return np.concatenate([np.array(e.ids, np.int64) for e in encoder.encode_batch(texts, add_special_tokens=False)])
