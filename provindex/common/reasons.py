"""Reasons as data: a code, what it is about, and figures. Sentences for people are made in `report/words.py` only.

Programs compare codes; rows store and hash them. So a sentence can be reworded without making a row "other weights".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

Figure = int | float | str
MAX_DEPTH = 4  # reasons inside of reasons
MAX_TEXT = 4096  # characters of one figure or subject that is read from a file
MAX_FIGURES, MAX_BECAUSE = 16, 256


class Code(StrEnum):
    """Every reason that provindex gives. Codes are a contract: they are never renamed, only added."""

    # A model's files
    NO_CONFIG = "no-config"
    CONFIG_OF_ANOTHER = "config-of-another"
    OTHER_FILES = "other-files"  # of rows that were made before each file had a reason of its own
    FILE_NOT_READ = "file-not-read"
    FILE_DIFFERS = "file-differs"
    FILES_SAME = "files-same"
    FOLDER_NOT_READ = "folder-not-read"
    ADAPTER_WEIGHTS_ONLY = "adapter-weights-only"
    ADAPTER_CLAIM = "adapter-claim"
    ONE_SHARD = "one-shard"
    CACHED = "cached"
    CACHED_OFFLINE = "cached-offline"
    CACHED_UNREACHABLE = "cached-unreachable"
    NOT_CACHED = "not-cached"
    SAME_FILES = "same-files"
    QUANTIZED_DECODED = "quantized-decoded"
    PARTS_JOINED = "parts-joined"
    GGUF_ARCHITECTURE = "gguf-architecture"
    GGUF_TOKENIZER_KIND = "gguf-tokenizer-kind"
    GGUF_TOKENIZER_LEFT_OUT = "gguf-tokenizer-left-out"
    GGUF_SPLITTING = "gguf-splitting"
    ONNX_PREFIX = "onnx-prefix"
    ONNX_TYPES = "onnx-types"
    ONNX_PAIR = "onnx-pair"
    CODE_NOT_RUN = "code-not-run"
    ENTRIES_NOT_READ = "entries-not-read"
    STATE_CHOSEN = "state-chosen"
    ENTRY_NOT_READ = "entry-not-read"
    BYTES_NOT_READ = "bytes-not-read"
    IMPORTED = "imported"
    # Tensor names
    NO_SCHEME = "no-scheme"
    SCHEME_GUESSED = "scheme-guessed"
    PREFIX_LEFT_OUT = "prefix-left-out"
    TEXT_TOWER = "text-tower"
    TOWER_APART = "tower-apart"
    LAYERS_SHARED = "layers-shared"
    HEADS_DOUBTED = "heads-doubted"
    HEADS_UNKNOWN = "heads-unknown"
    KEYS_MISFIT = "keys-misfit"
    NAMES_UNKNOWN = "names-unknown"
    SECOND_COPY = "second-copy"
    COPIES_UNREAD = "copies-unread"
    ADAPTER_UNMERGED = "adapter-unmerged"
    EMPTY_TENSORS = "empty-tensors"
    LAYERS_MISSING = "layers-missing"
    ROLES_INFERRED = "roles-inferred"
    NOT_FINITE_VALUES = "not-finite-values"
    ZERO_MATRICES = "zero-matrices"
    # The tokenizer
    NO_TOKENIZER = "no-tokenizer"
    NO_USABLE_TOKENIZER = "no-usable-tokenizer"
    FILE_UNREADABLE = "file-unreadable"
    FILE_LARGE = "file-large"
    FILE_EMPTY = "file-empty"
    NOT_TEXT = "not-text"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    NO_MERGES = "no-merges"
    IDS_NOT_WHOLE = "ids-not-whole"
    MERGES_NOT_PAIRS = "merges-not-pairs"
    OTHER_IDS = "other-ids"
    NO_TOKENS = "no-tokens"
    TOKEN_ID_HIGH = "token-id-high"
    TOKENIZER_REFUSED = "tokenizer-refused"
    TOKENIZER_GROWS = "tokenizer-grows"
    TOKENIZER_LARGE = "tokenizer-large"
    TOKENIZER_PATTERN = "tokenizer-pattern"
    FILE_VALUES = "file-values"
    NOT_SENTENCEPIECE = "not-sentencepiece"
    SENTENCEPIECE_EMPTY = "sentencepiece-empty"
    SENTENCEPIECE_TYPE = "sentencepiece-type"
    SENTENCEPIECE_TWICE = "sentencepiece-twice"
    NOT_RANKS = "not-ranks"
    COUNTS_ALONE = "counts-alone"
    IDS_WITH_GAPS = "ids-with-gaps"
    TOKENS_LISTED = "tokens-listed"
    # What a fingerprint lacks
    ADAPTER = "adapter"
    ADAPTER_LACKS = "adapter-lacks"
    NEEDS_EXACT = "needs-exact"
    NEEDS_STAGE_2 = "needs-stage-2"
    NEEDS_WEIGHTS = "needs-weights"
    TOKENIZER_UNREAD = "tokenizer-unread"
    ARCHITECTURE_UNKNOWN = "architecture-unknown"
    NO_EMBEDDING = "no-embedding"
    EMBEDDING_TALL = "embedding-tall"
    EMBEDDING_WIDE = "embedding-wide"
    EMBEDDING_EMPTY = "embedding-empty"
    EMBEDDING_NOT_FINITE = "embedding-not-finite"
    EMBEDDING_IDENTITY = "embedding-identity"
    EMBEDDING_OTHER_WIDTH = "embedding-other-width"
    ANCHORS_FEW = "anchors-few"
    ANCHORS_NOT_FINITE = "anchors-not-finite"
    ANCHORS_NEED_TOKENIZER = "anchors-need-tokenizer"
    ANCHORS_FEW_OR_NOT_FINITE = "anchors-few-or-not-finite"
    NO_NORMS = "no-norms"
    NORM_LARGE = "norm-large"
    NORMS_NOT_FINITE = "norms-not-finite"
    NO_LAYERS = "no-layers"
    WEIGHTS_NOT_FINITE = "weights-not-finite"
    NO_PROJECTIONS = "no-projections"
    SAMPLES_NOT_FINITE = "samples-not-finite"
    UNITS_IDENTITY = "units-identity"
    UNITS_ALL_IDENTITY = "units-all-identity"
    NO_UNITS = "no-units"
    NO_BRANCHES = "no-branches"
    FIXED_POSITIONS = "fixed-positions"
    ROWS_WIDE = "rows-wide"
    NO_MATRIX = "no-matrix"
    PEER_NO_PANELS = "peer-no-panels"
    PEER_NO_VOCABULARY = "peer-no-vocabulary"
    PEER_NO_ROWS_BY_ID = "peer-no-rows-by-id"
    PEER_NO_DEEP_SIGNALS = "peer-no-deep-signals"
    PEER_NOT_OF_THIS = "peer-not-of-this"
    PEER_NOT_FINITE = "peer-not-finite"
    PEER_SAMPLING_UNKNOWN = "peer-sampling-unknown"
    PEER_NORM_STATISTICS = "peer-norm-statistics"
    PEER_ALL_EXPERTS = "peer-all-experts"
    PEER_SAMPLED_OTHERWISE = "peer-sampled-otherwise"
    # Signals of a pair
    FINGERPRINT_LACKS = "fingerprint-lacks"
    SIDE_NOT_FINITE = "side-not-finite"
    SIDE_NO_ANCHORS = "side-no-anchors"
    SIDE_NO_ROW_NORMS = "side-no-row-norms"
    SIDE_NO_NORMS = "side-no-norms"
    SIDE_NO_LAYERS = "side-no-layers"
    SIDE_NO_PROJECTIONS = "side-no-projections"
    SIDE_NO_TOKENIZER = "side-no-tokenizer"
    SIDE_NO_VOCABULARY = "side-no-vocabulary"
    SIDE_NO_SIZE = "side-no-size"
    COMMON_ANCHORS_FEW = "common-anchors-few"
    ANCHORS_ALIKE = "anchors-alike"
    HISTOGRAM_EMPTY = "histogram-empty"
    NORMS_ZERO = "norms-zero"
    ENERGY_FLAT = "energy-flat"
    SAMPLED_APART = "sampled-apart"
    SAMPLED_OTHER_TENSORS = "sampled-other-tensors"
    COMMON_LAYERS_FEW = "common-layers-few"
    SAMPLED_LAYERS_FEW = "sampled-layers-few"
    # Evidence of a pair
    SIDE_WITHOUT_MATRIX = "side-without-matrix"
    SIDE_WITHOUT_BLOCK = "side-without-block"
    SIDE_WITHOUT_UNITS = "side-without-units"
    SIDE_WITHOUT_COORDINATES = "side-without-coordinates"
    SIDE_WITHOUT_NEURONS = "side-without-neurons"
    SIDE_WITHOUT_GAINS = "side-without-gains"
    SIDE_WITHOUT_BIASES = "side-without-biases"
    COORDINATES_ORDERED = "coordinates-ordered"
    COORDINATES_FEW = "coordinates-few"
    AXIS_ORDERED = "axis-ordered"
    WIDTH_UNKNOWN = "width-unknown"
    VECTORS_MANY = "vectors-many"
    LAYERS_MANY = "layers-many"
    WIDTHS_DIFFER = "widths-differ"
    NO_COMMON_BLOCK = "no-common-block"
    COMMON_UNITS_FEW = "common-units-few"
    COMMON_ANCHOR_TOKENS_FEW = "common-anchor-tokens-few"
    COMMON_COORDINATES_FEW = "common-coordinates-few"
    RESIDUAL_NOT_FINITE = "residual-not-finite"
    MLP_KINDS_DIFFER = "mlp-kinds-differ"
    NEURONS_TIED = "neurons-tied"
    COMMON_NEURONS_FEW = "common-neurons-few"
    NO_COMMON_ANCHORS = "no-common-anchors"
    NO_COMMON_SKETCHES = "no-common-sketches"
    SAMPLED_OWN = "sampled-own"
    SAMPLED_TOWERS = "sampled-towers"
    SAMPLED_SHAPES_DIFFER = "sampled-shapes-differ"
    SAMPLED_SHAPES_UNKNOWN = "sampled-shapes-unknown"
    SAMPLED_SLICES = "sampled-slices"
    SAMPLED_SLICES_ELSEWHERE = "sampled-slices-elsewhere"
    SAMPLED_NO_ROLES = "sampled-no-roles"
    SAMPLED_NO_UNITS = "sampled-no-units"
    SAMPLED_BLOCKS_SMALL = "sampled-blocks-small"
    SAMPLED_ORDERED = "sampled-ordered"
    SAMPLED_IDENTITY = "sampled-identity"
    DEEP_NO_MLP = "deep-no-mlp"
    DEEP_WIDE = "deep-wide"
    DEEP_LAYERS_FEW = "deep-layers-few"
    DEEP_NEURONS_FEW = "deep-neurons-few"
    DEEP_WIDTHS_DIFFER = "deep-widths-differ"
    # Chance levels
    NO_CALIBRATION = "no-calibration"
    PAIRS_FEW = "pairs-few"
    PAIRS_NONE = "pairs-none"
    # The verdict
    SEEN_UNITS = "seen-units"
    UNNAMED_LARGE = "unnamed-large"
    STRINGS_APART = "strings-apart"
    LEFT_OUT = "left-out"
    SEEN_INVARIANTS = "seen-invariants"
    SEEN_NEURONS = "seen-neurons"
    WOULD_BE_LINKED = "would-be-linked"
    REORDERED_NOT_SEEN = "reordered-not-seen"
    GAINS_NEVER_CLEAR = "gains-never-clear"
    INFERRED_NEVER_CLEAR = "inferred-never-clear"
    NORMS_ALONE = "norms-alone"
    ANCESTOR_NOT_SOUGHT = "ancestor-not-sought"
    NEURONS_UNCONFIRMED = "neurons-unconfirmed"
    LAYERS_UNCONFIRMED = "layers-unconfirmed"
    LAYERS_UNCONFIRMED_ABSENT = "layers-unconfirmed-absent"
    COMMON_FEW = "common-few"
    NOT_RANKED = "not-ranked"
    TOWER_SHARED = "tower-shared"
    TEXT_EQUAL = "text-equal"
    OTHER_WEIGHTS_DIFFER = "other-weights-differ"
    UNNAMED_SHARED = "unnamed-shared"
    ADAPTER_NAMES = "adapter-names"
    ADAPTER_FIT_UNKNOWN = "adapter-fit-unknown"
    ADAPTER_FITS = "adapter-fits"
    ADAPTER_MISFIT = "adapter-misfit"
    ADAPTER_MERGE = "adapter-merge"
    # The random start
    BLOCKS_REUSED = "blocks-reused"
    START_SHARED = "start-shared"
    GAINS_APART = "gains-apart"
    LAYERS_APART = "layers-apart"
    NEURONS_AGREE = "neurons-agree"
    SKETCHES_AGREE = "sketches-agree"
    HIDDEN_ALIKE = "hidden-alike"
    TRAINING_SHARED = "training-shared"
    NO_COMMON_IDS = "no-common-ids"
    UNTOUCHED_FEW = "untouched-few"
    ROWS_NOT_GROWN = "rows-not-grown"
    ROWS_BEYOND_START = "rows-beyond-start"
    GAINS_CORRELATED = "gains-correlated"
    NO_GAINS = "no-gains"
    # Direction
    FEWER_LAYERS = "fewer-layers"
    FEWER_NEURONS = "fewer-neurons"
    LAYERS_REPEATED = "layers-repeated"
    ON_GRID = "on-grid"
    HALF_PRECISION = "half-precision"
    TOKENS_ADDED = "tokens-added"
    VOCABULARY_CUT = "vocabulary-cut"
    MADE_OF_GRID = "made-of-grid"
    PATH = "path"
    ROWS_DECAYED = "rows-decayed"
    WITNESSES = "witnesses"
    SIBLINGS = "siblings"
    BRANCHED = "branched"
    # What a disguise changed
    NEURONS_REORDERED = "neurons-reordered"
    NEURONS_RESCALED = "neurons-rescaled"
    VALUES_MOVED = "values-moved"
    QUERIES_MOVED = "queries-moved"
    BASIS_MOVED = "basis-moved"
    GAINS_FOLDED = "gains-folded"
    IDS_RENUMBERED = "ids-renumbered"
    SCALES_MOVED = "scales-moved"
    # What else a linked pair could be
    START_NOT_EXCLUDED = "start-not-excluded"
    OR_ADAPTER = "or-adapter"
    GROWN_POSSIBLE = "grown-possible"
    PARTLY = "partly"
    READ_IN_PART = "read-in-part"
    DIFFERENCE_ELSEWHERE = "difference-elsewhere"
    TABLE_ONLY = "table-only"
    BASIS_ONLY = "basis-only"
    GAINS_ONLY = "gains-only"
    SAMPLES_ONLY = "samples-only"
    HALF_STEPS = "half-steps"
    HALF_STEPS_SIBLINGS = "half-steps-siblings"
    SIBLING_POSSIBLE = "sibling-possible"
    COMPENSATED = "compensated"
    DEQUANTIZED = "dequantized"
    BOTH_ON_GRIDS = "both-on-grids"
    NEAR_GRID = "near-grid"
    OTHER_GRID = "other-grid"
    AS_NEAR = "as-near"
    NEARER = "nearer"
    SIBLING_OF_SOURCE = "sibling-of-source"
    AS_NEAR_TO_QUANTIZED = "as-near-to-quantized"
    NEARER_UNDECIDED = "nearer-undecided"
    MERGED_PART = "merged-part"
    MERGED_CHANGES = "merged-changes"
    # An answer
    MORE_RELATIVES = "more-relatives"
    MORE_MATCHES = "more-matches"
    UNTESTED = "untested"
    DISGUISES_NOT_SOUGHT = "disguises-not-sought"
    PLAIN_ORDER = "plain-order"
    STARTED_TOGETHER = "started-together"
    INDEX_EMPTY = "index-empty"
    TOKENIZER_NOT_READ = "tokenizer-not-read"
    # A gate
    DENIED_UNKNOWN = "denied-unknown"
    DENIED_ITSELF = "denied-itself"
    DENIED_LINKED = "denied-linked"
    DENIED_MEMBER_LINKED = "denied-member-linked"
    DENIED_UNTESTED = "denied-untested"
    DENIED_UNRELATED = "denied-unrelated"
    DENIED_PLAIN_ORDER = "denied-plain-order"
    DENIED_LEFT_OUT = "denied-left-out"
    DENIED_NOT_INDEXED = "denied-not-indexed"
    DENIED_NOT_COMPARED = "denied-not-compared"
    DENIED_NOT_COMPARABLE = "denied-not-comparable"
    DENIED_RELATIVE = "denied-relative"
    DENIED_HOLDS = "denied-holds"
    DENIED_ROWS_DISAGREE = "denied-rows-disagree"
    DENIED_TOWER = "denied-tower"
    NOT_ALLOWED = "not-allowed"
    OTHERS_UNTESTED = "others-untested"
    WIDTH_NOT_COMPARED = "width-not-compared"
    NOTHING_FOUND = "nothing-found"
    ROW_TRUSTED = "row-trusted"
    EXCLUDED = "excluded"
    # An audit: claims
    CLAIM_LINKED = "claim-linked"
    CLAIM_LINKED_ONLY = "claim-linked-only"
    CLAIM_SAME_WEIGHTS = "claim-same-weights"
    CLAIM_DESCENDANT = "claim-descendant"
    CLAIM_NO_ID = "claim-no-id"
    CLAIM_LICENSE_FITS = "claim-license-fits"
    CLAIM_LICENSE_ALONE = "claim-license-alone"
    CLAIM_LICENSE_OPEN = "claim-license-open"
    CLAIM_ARCHITECTURE_FITS = "claim-architecture-fits"
    CLAIM_ARCHITECTURE_OPEN = "claim-architecture-open"
    NEXT_FETCH = "next-fetch"
    NEXT_COMPARE = "next-compare"
    NEXT_ID = "next-id"
    NEXT_LICENSE = "next-license"
    NEXT_MERGE = "next-merge"
    # An audit: findings
    BASE_CONTRADICTED = "base-contradicted"
    BASE_RELATIVE = "base-relative"
    BASE_UNCLAIMED = "base-unclaimed"
    BASE_UNCLAIMED_OPEN = "base-unclaimed-open"
    BASE_UNCLAIMED_UNTESTED = "base-unclaimed-untested"
    BASE_UNNAMED = "base-unnamed"
    CLAIM_UNTESTED = "claim-untested"
    CLASH_COMMERCIAL = "clash-commercial"
    CLASH_LIMITED = "clash-limited"
    CLASH_SHARE_ALIKE = "clash-share-alike"
    CLASH_RESTRICTIONS = "clash-restrictions"
    CLASH_DERIVATIVES = "clash-derivatives"
    LICENSE_NOT_STATED = "license-not-stated"
    LICENSE_NOT_IN_TABLE = "license-not-in-table"
    TEXT_MISSING = "text-missing"
    NAME_LACKS = "name-lacks"
    BY_WEIGHTS = "by-weights"
    BY_RELATIVES = "by-relatives"
    BY_CLAIM = "by-claim"
    BY_CATALOGUE = "by-catalogue"
    # A contribution
    NO_LICENSE = "no-license"
    NO_HUB_ID = "no-hub-id"
    NO_PUBLIC_MODEL = "no-public-model"
    NOT_LOOKED_OFFLINE = "not-looked-offline"
    SHARD_LEFT_OUT = "shard-left-out"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is missing, or what a reader should keep in mind.

    subject: the model, file or test that it is about, "" where the place says it. figures: by name, in the order of
    names. because: reasons that this one rests on.
    """

    code: Code
    subject: str = ""
    figures: tuple[tuple[str, Figure], ...] = ()
    because: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        """Cut what is longer than a row may hold: names of tensors are as long as a stranger makes them."""
        object.__setattr__(self, "subject", self.subject[:MAX_TEXT])
        cut = tuple((name, f[:MAX_TEXT] if isinstance(f, str) else f) for name, f in self.figures)
        object.__setattr__(self, "figures", cut)

    @classmethod
    def of(cls, code: Code, subject: str = "", because: Sequence[Reason] = (), **figures: Figure) -> Reason:
        """A reason with figures by name.

        >>> Reason.of(Code.WIDTHS_DIFFER, a=384, b=768).figures
        (('a', 384), ('b', 768))
        """
        return cls(code, subject, tuple(sorted(figures.items())), tuple(because))

    def about(self, subject: str) -> Reason:
        """The same, of a model, file or test."""
        return replace(self, subject=subject)

    def to_json(self) -> dict[str, Any]:
        """As a row stores it; what is empty is left out."""
        found: dict[str, Any] = {"code": str(self.code)}
        if self.subject:
            found["subject"] = self.subject
        if self.figures:
            found["figures"] = dict(self.figures)
        if self.because:
            found["because"] = [reason.to_json() for reason in self.because]
        return found

    @classmethod
    def from_json(cls, value: Any, depth: int = 0) -> Reason:
        """A reason from JSON that nobody vouches for; ValueError, in a clause, if it is none.

        depth: how deep it stands in another one; a document of our own may hold reasons of rows in reasons of answers.
        """
        if not isinstance(value, Mapping) or depth > MAX_DEPTH:
            raise ValueError("a reason is no object, or holds too many in each other")
        subject, figures, because = (value.get(n, e) for n, e in (("subject", ""), ("figures", {}), ("because", [])))
        code = value.get("code")
        if not isinstance(code, str) or code not in _CODES:
            raise ValueError("a reason has no code that is known")
        if not isinstance(figures, Mapping) or len(figures) > MAX_FIGURES or not _is_text(subject):
            raise ValueError("a reason's subject or figures are not as they must be")
        if not all(_is_text(name) and _is_figure(figure) for name, figure in figures.items()):
            raise ValueError("a figure of a reason is neither a number nor a short text")
        if not isinstance(because, list) or len(because) > MAX_BECAUSE:
            raise ValueError("what a reason rests on is no list")
        inner = tuple(cls.from_json(item, depth + 1) for item in because)
        return cls(Code(code), subject, tuple(sorted(figures.items())), inner)


# Parts of a model that are not here, so that no relation of sizes follows.
INCOMPLETE = frozenset({Code.ONE_SHARD, Code.EMPTY_TENSORS, Code.LAYERS_MISSING})
# What a file holds and nothing compares: another model may be in there.
UNCOMPARED = frozenset(
    {
        Code.ENTRY_NOT_READ,
        Code.BYTES_NOT_READ,
        Code.SECOND_COPY,
        Code.COPIES_UNREAD,
        Code.ADAPTER_UNMERGED,
        Code.ONNX_TYPES,
    }
)
# Files beside the one that was read.
BESIDE = frozenset({Code.FILE_NOT_READ, Code.FILE_DIFFERS, Code.FOLDER_NOT_READ})
LEFT_OUT = INCOMPLETE | UNCOMPARED | BESIDE  # with one of these nothing is cleared, and nothing is identical
# What stands in the place of weights: with it nothing is cleared.
SPOILED = frozenset({Code.NOT_FINITE_VALUES})


def left_out(reasons: Sequence[Reason], codes: frozenset[Code] = LEFT_OUT) -> tuple[Reason, ...]:
    """Those of some reasons that name weights which were not read, or not compared."""
    return tuple(reason for reason in reasons if reason.code in codes)


_CODES = frozenset(map(str, Code))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_figure(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return _is_text(value) or number


def distinct(reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    """The same reasons, each once, in order."""
    return tuple(dict.fromkeys(reasons))
