"""Reasons in plain English: one table, from codes to sentences. Nothing else in provindex makes such a sentence.

A sentence names the figures of its reason in braces. `{because}` stands for the reasons that it rests on, joined by
semicolons. Where a reason is about something (a model, a file, a test), that name and a colon come first.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from provindex.common.reasons import Code, Reason

C = Code
PEER = "Cisco model-provenance-kit"
PLACED = "its positions are the initializer's and say nothing"


class Sentence(NamedTuple):
    """full: with all figures. brief: for summaries of many pairs, without the figures of one; "" if it is the same.

    joint: what stands between the name of what the reason is about and the sentence.
    """

    full: str
    brief: str = ""
    joint: str = ": "


SENTENCES: Mapping[Code, Sentence] = {
    # A model's files
    C.NO_CONFIG: Sentence("no {name} beside the weights"),
    C.CONFIG_OF_ANOTHER: Sentence("config.json says {beside}, the weights' file {own}: the file's is used"),
    C.OTHER_FILES: Sentence("also in the folder and not read: {names}"),
    C.FILE_NOT_READ: Sentence("not read ({what})"),
    C.FILE_DIFFERS: Sentence("not read ({what}); it holds other weights, or the same in another precision"),
    C.FILES_SAME: Sentence("{n} more weight files hold the same weights ({names})"),
    C.FOLDER_NOT_READ: Sentence("this folder may not be listed"),
    C.ADAPTER_WEIGHTS_ONLY: Sentence("only adapter weights are here: they were read, not the model that they amend"),
    C.ADAPTER_CLAIM: Sentence("an adapter{kind} of {base}: so says {file}, which nothing here proves"),
    C.ONE_SHARD: Sentence("one shard of {count}: the other tensors of this model were not read"),
    C.CACHED: Sentence("read from the Hub cache at commit {commit}, the Hub was not asked whether it has a newer one"),
    C.CACHED_OFFLINE: Sentence("offline: read from the Hub cache at commit {commit}, the Hub was not asked"),
    C.CACHED_UNREACHABLE: Sentence(
        "{problem} read from the Hub cache at commit {commit}, without what else the Hub may have"
    ),
    C.NOT_CACHED: Sentence("the fingerprint was not cached: {problem}"),
    C.SAME_FILES: Sentence(
        "its weight files have the digests, as the Hub states them, of those that {model} was fingerprinted from: no "
        "weight was read"
    ),
    C.QUANTIZED_DECODED: Sentence("{n} quantized weights were decoded ({kinds})"),
    C.PARTS_JOINED: Sentence("{n} weights are stored in parts (masks or norms), which were multiplied ({first})"),
    C.GGUF_ARCHITECTURE: Sentence(
        "the GGUF architecture {name} is not known: names of the Llama manner, rows as stored"
    ),
    C.GGUF_TOKENIZER_KIND: Sentence("the tokenizer of this GGUF file is of the kind {kind}, which is not read"),
    C.GGUF_TOKENIZER_LEFT_OUT: Sentence(
        "the tokenizer of this GGUF file has not one type and score for each token, and was left out"
    ),
    C.GGUF_SPLITTING: Sentence("how this tokenizer splits texts ({name}) is not known: GPT-2's rule was taken"),
    C.ONNX_PREFIX: Sentence("the names in it begin with {prefix}, which was left out"),
    C.ONNX_PAIR: Sentence("an encoder and a decoder were read as one model, {n} tables that both have were read once"),
    C.ONNX_TYPES: Sentence("{n} tensors of it are of a type that is not read ({first})"),
    C.CODE_NOT_RUN: Sentence("it refers to code ({names}), which was not run"),
    C.ENTRIES_NOT_READ: Sentence("{n} of its {total} entries are no tensors and were not read"),
    C.STATE_CHOSEN: Sentence("its entry {entry} was read"),
    C.ENTRY_NOT_READ: Sentence("its entry {entry} was not read ({n} tensors)"),
    C.BYTES_NOT_READ: Sentence("{bytes:,} bytes of it are in no tensor, and were not read"),
    C.IMPORTED: Sentence(f"imported from {PEER}: signals only, parameters not stated (size class {{size}})"),
    # Tensor names
    C.NO_SCHEME: Sentence("no known naming scheme (config says {declared})"),
    C.SCHEME_GUESSED: Sentence("naming scheme {scheme} told from the tensor names (config says {declared})"),
    C.PREFIX_LEFT_OUT: Sentence("the names of its text tower begin with {prefix}, which was left out"),
    C.TEXT_TOWER: Sentence("text tower of {model_type}"),
    C.TOWER_APART: Sentence("{stack} tower kept apart"),
    C.LAYERS_SHARED: Sentence("{layers} layers share {stored} stored"),
    C.HEADS_DOUBTED: Sentence("config says {heads} heads of {head_dim}, the queries have {rows} rows"),
    C.HEADS_UNKNOWN: Sentence("number of heads unknown"),
    C.KEYS_MISFIT: Sentence("keys of {rows} rows do not fit heads of {head_dim}"),
    C.NAMES_UNKNOWN: Sentence("{n} of {total} tensors have names that are not known: {names}"),
    C.SECOND_COPY: Sentence(
        "{n} tensors have the place of another one and hold other values ({first}): they were not compared"
    ),
    C.COPIES_UNREAD: Sentence("{n} tensors have the place of another one ({first}) and were not read"),
    C.ADAPTER_UNMERGED: Sentence("{n} tensors change the weights that they stand beside, and are not merged ({first})"),
    C.EMPTY_TENSORS: Sentence("{n} of {total} tensors are empty ({first})"),
    C.LAYERS_MISSING: Sentence("config.json says {told} layers, and {stored} are here: the others were not read"),
    C.ROLES_INFERRED: Sentence(
        "its tensor names say nothing: roles were inferred from shapes (width {hidden}, MLPs of {width} units)"
    ),
    C.ZERO_MATRICES: Sentence("{n} matrices hold nothing but zeros, the first of them {first}"),
    C.NOT_FINITE_VALUES: Sentence("{n} NaN or infinite values in {tensors} tensors, the first of them {first}"),
    # The tokenizer
    C.NO_TOKENIZER: Sentence("there is no tokenizer file"),
    C.NO_USABLE_TOKENIZER: Sentence("no tokenizer file can be used: {because}"),
    C.FILE_UNREADABLE: Sentence("cannot be read", joint=" "),
    C.FILE_LARGE: Sentence("has {bytes:,} bytes, at most {limit:,} are read", joint=" "),
    C.FILE_EMPTY: Sentence("is empty", joint=" "),
    C.NOT_TEXT: Sentence("is not UTF-8 text", joint=" "),
    C.NOT_JSON: Sentence("is not readable JSON", joint=" "),
    C.NOT_AN_OBJECT: Sentence("holds no JSON object", joint=" "),
    C.NO_MERGES: Sentence("has no merges.txt beside it", joint=" "),
    C.IDS_NOT_WHOLE: Sentence("holds ids that are not whole numbers", joint=" "),
    C.MERGES_NOT_PAIRS: Sentence("has lines that are not two words", joint=" "),
    C.OTHER_IDS: Sentence("a {name} gives its pieces other ids than this file does"),
    C.NO_TOKENS: Sentence("has no tokens", joint=" "),
    C.TOKEN_ID_HIGH: Sentence("has the id {id:,}, {limit:,} is the highest that is read", joint=" "),
    C.TOKENIZER_REFUSED: Sentence("is not a tokenizer that the tokenizers package accepts", joint=" "),
    C.TOKENIZER_GROWS: Sentence(
        "is not used: its steps can make a short text longer than {limit:,} bytes, which no real tokenizer does",
        joint=" ",
    ),
    C.TOKENIZER_LARGE: Sentence("is not used: it has {n:,} entries, at most {limit:,} are read", joint=" "),
    C.TOKENIZER_PATTERN: Sentence(
        "is not used: it splits texts by a pattern that takes too much time or memory", joint=" "
    ),
    C.FILE_VALUES: Sentence("has more than {limit:,} values and is not read", joint=" "),
    C.NOT_RANKS: Sentence("is no list of tokens with ranks", joint=" "),
    C.COUNTS_ALONE: Sentence("counts words, and has no bpe.codes beside it", joint=" "),
    C.IDS_WITH_GAPS: Sentence("leaves out ids", joint=" "),
    C.TOKENS_LISTED: Sentence(
        "lists tokens without how texts are cut into them: whole tokens alone are found", joint=" "
    ),
    C.NOT_SENTENCEPIECE: Sentence("is not a SentencePiece model", joint=" "),
    C.SENTENCEPIECE_EMPTY: Sentence("is a SentencePiece model without pieces", joint=" "),
    C.SENTENCEPIECE_TYPE: Sentence(
        "is a SentencePiece model of type {kind}; Unigram (1) and BPE (2) are read", joint=" "
    ),
    C.SENTENCEPIECE_TWICE: Sentence("has the same piece twice", joint=" "),
    # What a fingerprint lacks
    C.ADAPTER: Sentence("an adapter of {tensors} tensors: it holds changes of weights, and not the weights"),
    C.ADAPTER_LACKS: Sentence("it holds changes of weights, and not the weights"),
    C.NEEDS_EXACT: Sentence("needs exact mode: its samples touch the whole file"),
    C.NEEDS_STAGE_2: Sentence("not read: sampled mode reads whole layers only if nothing else shows a link"),
    C.NEEDS_WEIGHTS: Sentence("not read in mode norms"),
    C.TOKENIZER_UNREAD: Sentence("not read in mode norms"),
    C.ARCHITECTURE_UNKNOWN: Sentence("the architecture is not known"),
    C.NO_EMBEDDING: Sentence("no tensor is known to be the token embedding"),
    C.EMBEDDING_TALL: Sentence("the embedding has more than {limit:,} rows"),
    C.EMBEDDING_WIDE: Sentence("the embedding's rows have more than {limit:,} elements"),
    C.EMBEDDING_EMPTY: Sentence("the embedding has no rows to count"),
    C.EMBEDDING_NOT_FINITE: Sentence("NaN or infinity in the embedding"),
    C.EMBEDDING_IDENTITY: Sentence(f"the embedding started as the identity: {PLACED}"),
    C.EMBEDDING_OTHER_WIDTH: Sentence("the embedding is not as wide as the residual stream"),
    C.ANCHORS_FEW: Sentence("only {n} anchor tokens, {needed} needed"),
    C.ANCHORS_NOT_FINITE: Sentence("NaN or infinity in the anchor rows of the embedding"),
    C.ANCHORS_NEED_TOKENIZER: Sentence("no tokenizer, so the anchor tokens cannot be found"),
    C.ANCHORS_FEW_OR_NOT_FINITE: Sentence("fewer than {needed} anchor tokens, or values that are not finite"),
    C.NO_NORMS: Sentence("no norm tensor of {needed} or more elements"),
    C.NORM_LARGE: Sentence("a norm tensor of more than {limit:,} elements"),
    C.NORMS_NOT_FINITE: Sentence("NaN or infinity in a norm tensor"),
    C.NO_LAYERS: Sentence("no matrices in numbered layers of the text tower"),
    C.WEIGHTS_NOT_FINITE: Sentence("NaN or infinity in a weight matrix"),
    C.NO_PROJECTIONS: Sentence("no known projection tensor in a numbered layer of the text tower"),
    C.SAMPLES_NOT_FINITE: Sentence("NaN or infinity in a sampled weight"),
    C.UNITS_IDENTITY: Sentence(f"{{n}} of {{total}} blocks started as the identity: {PLACED}"),
    C.UNITS_ALL_IDENTITY: Sentence(f"every block of hidden units started as the identity: {PLACED}"),
    C.NO_UNITS: Sentence("no MLP or value rows with a known role in the text tower"),
    C.NO_BRANCHES: Sentence("no MLP or attention with known roles in the text tower"),
    C.FIXED_POSITIONS: Sentence("fixed sinusoidal positions: residual coordinates are not exchangeable"),
    C.ROWS_WIDE: Sentence("the embedding's rows have {width:,} elements"),
    C.NO_MATRIX: Sentence("no weight matrix with a known role"),
    C.PEER_NO_PANELS: Sentence(f"imported from {PEER}, whose database has no evidence panels"),
    C.PEER_NO_VOCABULARY: Sentence(f"imported from {PEER}, whose database has no vocabularies"),
    C.PEER_NO_ROWS_BY_ID: Sentence(f"imported from {PEER}, whose database has no embedding rows at fixed ids"),
    C.PEER_NO_DEEP_SIGNALS: Sentence(f"imported from {PEER} without its deep signals"),
    C.PEER_NOT_OF_THIS: Sentence(f"imported from {PEER}: the database has none of this model"),
    C.PEER_NOT_FINITE: Sentence(f"imported from {PEER}: NaN or infinity in the database's values"),
    C.PEER_SAMPLING_UNKNOWN: Sentence(
        f"imported from {PEER}: how it was sampled follows from the size of the files, which is not known"
    ),
    C.PEER_NORM_STATISTICS: Sentence("the peer keeps statistics of these norm tensors, not their values"),
    C.PEER_ALL_EXPERTS: Sentence(
        f"imported from {PEER}: the samples of all experts, of which a row has four of a layer"
    ),
    C.PEER_SAMPLED_OTHERWISE: Sentence(f"imported from {PEER}: sampled differently: {{ways}}"),
    # Signals of a pair
    C.FINGERPRINT_LACKS: Sentence("one of the fingerprints lacks it"),
    C.SIDE_NOT_FINITE: Sentence("NaN or infinity in the {what} of the {side} model"),
    C.SIDE_NO_ANCHORS: Sentence(
        "no anchor matrix for the {side} model (needs {needed} anchors)", "no anchor matrix for the {side} model"
    ),
    C.SIDE_NO_ROW_NORMS: Sentence("no embedding row norms for the {side} model"),
    C.SIDE_NO_NORMS: Sentence("no norm tensor of {needed} or more elements in the {side} model"),
    C.SIDE_NO_LAYERS: Sentence("no tensors in numbered layers in the {side} model"),
    C.SIDE_NO_PROJECTIONS: Sentence("no known projection tensor in a numbered layer of the {side} model"),
    C.SIDE_NO_TOKENIZER: Sentence("no tokenizer for the {side} model"),
    C.SIDE_NO_VOCABULARY: Sentence("no vocabulary for the {side} model"),
    C.SIDE_NO_SIZE: Sentence("no config that says the size of the {side} model"),
    C.COMMON_ANCHORS_FEW: Sentence("fewer than {needed} anchors to compare"),
    C.ANCHORS_ALIKE: Sentence("the anchors of a model are all equally similar to each other"),
    C.HISTOGRAM_EMPTY: Sentence("an empty histogram of embedding row norms"),
    C.NORMS_ZERO: Sentence("all norm tensors of a model are zero"),
    C.ENERGY_FLAT: Sentence("the same energy in every layer of a model"),
    C.SAMPLED_APART: Sentence("sampled differently: {ways}"),
    C.SAMPLED_OTHER_TENSORS: Sentence("sampled differently: other tensors of the layers, or of other sizes"),
    C.COMMON_LAYERS_FEW: Sentence("fewer than {needed} common layers"),
    C.SAMPLED_LAYERS_FEW: Sentence("fewer than {needed} common layers with enough samples that are not all zero"),
    # Evidence of a pair
    C.SIDE_WITHOUT_MATRIX: Sentence("no weight matrix in one of the models"),
    C.SIDE_WITHOUT_BLOCK: Sentence("no block with at least {needed} distinct values in one of the models"),
    C.SIDE_WITHOUT_UNITS: Sentence("no hidden units with a known role in one of the models"),
    C.SIDE_WITHOUT_COORDINATES: Sentence(
        "fewer than {needed} anchor tokens, or no exchangeable coordinates, in one model"
    ),
    C.SIDE_WITHOUT_NEURONS: Sentence("no MLP neurons in anchor coordinates in one of the models"),
    C.SIDE_WITHOUT_GAINS: Sentence(
        "no norm gain or bias of residual width varies in one of the models (never trained, or folded into matrices)"
    ),
    C.SIDE_WITHOUT_BIASES: Sentence("no biases of hidden units or values in common"),
    C.COORDINATES_ORDERED: Sentence(
        "{n} of {total} norm vectors of one model are ordered along their coordinates, which are not exchangeable then",
        "norm vectors are ordered along their coordinates",
    ),
    C.AXIS_ORDERED: Sentence(
        "the norm vectors of one model together show an order along their coordinates, which are not exchangeable then"
    ),
    C.WIDTH_UNKNOWN: Sentence("no residual width is known of either model, and their vectors have no size in common"),
    C.VECTORS_MANY: Sentence(
        "it has {n:,} vectors besides its norms, and more than {limit:,} are not kept, nor very large ones"
    ),
    C.COORDINATES_FEW: Sentence("only {n} residual coordinates can be told apart, {needed} needed"),
    C.LAYERS_MANY: Sentence("more than {limit:,} layers in one of the models"),
    C.WIDTHS_DIFFER: Sentence("residual widths differ ({a} and {b})", "residual widths differ"),
    C.NO_COMMON_BLOCK: Sentence(
        "no block of hidden units in common (other stacks, experts or head sizes, or only zeros)",
        "no block of hidden units in common",
    ),
    C.COMMON_UNITS_FEW: Sentence("only {n} hidden units in common that are neither zero nor NaN, {needed} needed"),
    C.COMMON_ANCHOR_TOKENS_FEW: Sentence("only {n} anchor tokens in common, {needed} needed"),
    C.COMMON_COORDINATES_FEW: Sentence(
        "only {n} of {total} residual coordinates are not zero in both models, {needed} needed"
    ),
    C.RESIDUAL_NOT_FINITE: Sentence("the residual panel is zero, or not finite"),
    C.MLP_KINDS_DIFFER: Sentence(
        "the MLPs are of different kinds (with and without a gate)", "the MLPs are of different kinds"
    ),
    C.NEURONS_TIED: Sentence(
        "the parts of a neuron (gate, up, down) are alike, so that matching them apart says nothing"
    ),
    C.COMMON_NEURONS_FEW: Sentence("fewer than {needed} neurons in common, or no anchors that both models have"),
    C.NO_COMMON_ANCHORS: Sentence("no anchors of one naming in both models"),
    C.NO_COMMON_SKETCHES: Sentence("no anchors under which both models have branch sketches"),
    C.SAMPLED_OWN: Sentence("both rows hold our own evidence, which sees more than samples do"),
    C.SAMPLED_TOWERS: Sentence("its samples are of several towers whose layers share one number"),
    C.SAMPLED_SHAPES_DIFFER: Sentence(
        "{what} is {a} in one model, {b} in the other: their samples lie at other places",
        "the shapes of the models differ: their samples lie at other places",
    ),
    C.SAMPLED_SHAPES_UNKNOWN: Sentence("the shapes of two imported rows do not follow from their configs, or differ"),
    C.SAMPLED_SLICES: Sentence(
        "the imported row has samples of 32 rows of each matrix, which only the weights could answer; of them only the "
        "fingerprint is at hand"
    ),
    C.SAMPLED_SLICES_ELSEWHERE: Sentence(
        "the samples that an imported row would be compared with are read from weights on this disk only"
    ),
    C.SAMPLED_NO_ROLES: Sentence("its row was made before samples kept the shapes of their matrices"),
    C.SAMPLED_NO_UNITS: Sentence("fewer than {needed} units of the model are described by samples alike"),
    C.SAMPLED_BLOCKS_SMALL: Sentence(
        "fewer than {needed} units are compared with each other, too few for fixed points"
    ),
    C.SAMPLED_ORDERED: Sentence(
        "the units of the {axis} axis stand in an order of size, so that their places say nothing"
    ),
    C.SAMPLED_IDENTITY: Sentence(f"a sampled matrix of the {{axis}} axis started as the identity: {PLACED}"),
    C.DEEP_NO_MLP: Sentence("no MLP with a known role in the text tower"),
    C.DEEP_WIDE: Sentence("residual width {width}, at most {limit} are compared"),
    C.DEEP_LAYERS_FEW: Sentence("fewer than two layers with an MLP in common: one fits the rotation, another tests it"),
    C.DEEP_NEURONS_FEW: Sentence("a layer has only {n} neurons, {needed} needed"),
    C.DEEP_WIDTHS_DIFFER: Sentence("residual widths differ ({a} and {b}): no rotation takes one to the other"),
    # Chance levels
    C.NO_CALIBRATION: Sentence("this index has no calibration: chance levels are not known"),
    C.PAIRS_FEW: Sentence("{n:,} unrelated pairs of this kind, a 99.9th percentile needs {needed:,}"),
    C.PAIRS_NONE: Sentence("the calibration has no pair with a value of {statistic}"),
    # The verdict
    C.SEEN_UNITS: Sentence("{what} with a cosine of {cosine:.2g} ({test})"),
    C.SEEN_NEURONS: Sentence("{share:.0%} of the neurons found again in any order and basis ({test})"),
    C.UNNAMED_LARGE: Sentence(
        "{percent:.1f} % of its elements have no role by their names: what they hold was not looked for"
    ),
    C.STRINGS_APART: Sentence(
        "the tokenizer may not be its own: tokens with like strings have embeddings that are alike by {deviations:.1f} "
        "standard deviations, and {needed:.0f} are needed"
    ),
    C.LEFT_OUT: Sentence("not all of it was compared: {because}"),
    C.SEEN_INVARIANTS: Sentence(
        "neurons alike by a correlation of {correlation:.2g}, whatever the tokens, order and basis (neuron_invariants)"
    ),
    C.WOULD_BE_LINKED: Sentence("would have been linked: {because}"),
    C.REORDERED_NOT_SEEN: Sentence(
        "not seen: a copy whose neurons, heads and residual coordinates were all reordered or rotated; {because}"
    ),
    C.ANCESTOR_NOT_SOUGHT: Sentence("a common ancestor whose layers are not shared could not be looked for: {because}"),
    C.NEURONS_UNCONFIRMED: Sentence(
        "{share:.0%} of the neurons are found again, more than in unrelated models, but the branch sketches do not "
        "confirm it (branch_sketch)",
        "neurons are found again, more than in unrelated models, but the branch sketches do not confirm it",
    ),
    C.LAYERS_UNCONFIRMED: Sentence(
        "the layers do the same (branch_sketch {sketch:.2f}), but neurons do not confirm it (triple_agreement "
        "{neurons:.2f}): experts made of one MLP, or neurons whose parts are tied"
    ),
    C.LAYERS_UNCONFIRMED_ABSENT: Sentence(
        "the layers do the same (branch_sketch {sketch:.2f}), but neurons do not confirm it (triple_agreement absent: "
        "{because}): experts made of one MLP, or neurons whose parts are tied"
    ),
    C.INFERRED_NEVER_CLEAR: Sentence(
        "roles that were inferred from shapes find links and never clear a pair: {because}"
    ),
    C.GAINS_NEVER_CLEAR: Sentence(
        "norm gains and biases show no link, which clears nothing: gains that were folded into matrices show none"
    ),
    C.NORMS_ALONE: Sentence(
        "mode norms reads nothing else of at least one model; --mode sampled or exact reads what can clear one"
    ),
    C.COMMON_FEW: Sentence("too few hidden units or coordinates in common for a test with power"),
    C.NOT_RANKED: Sentence("{test}: {because}"),
    C.TOWER_SHARED: Sentence(
        "the {stack} tower is shared ({share:.0%} of its {n} blocks are equal); by itself that links no text tower"
    ),
    C.OTHER_WEIGHTS_DIFFER: Sentence(
        "equal in every block that was compared, but not in all: one has weights that the other lacks, or other ones"
    ),
    C.TEXT_EQUAL: Sentence(
        "the text towers hold the same weights, and {stack} towers do not: {share:.0%} of {n} blocks are equal"
    ),
    C.UNNAMED_SHARED: Sentence(
        "{share:.0%} of {n} blocks of matrices with unknown names are equal: another tower, or a copy beside a decoy"
    ),
    C.ADAPTER_NAMES: Sentence("its config names {base}, a claim"),
    C.ADAPTER_FIT_UNKNOWN: Sentence("whether its shapes fit is not known"),
    C.ADAPTER_FITS: Sentence(
        "its shapes (a width of {hidden} in {layers} layers) fit, as they do every other model of that size ({model})",
        "its shapes (a width of {hidden} in {layers} layers) fit, as they do every other model of that size",
    ),
    C.ADAPTER_MISFIT: Sentence(
        "its shapes (a width of {hidden} in {layers} layers) do not fit ({model}: {other_hidden} in {other_layers})",
        "its shapes (a width of {hidden} in {layers} layers) do not fit",
    ),
    C.ADAPTER_MERGE: Sentence(
        "for a verdict, merge it into the model that it amends (with peft: merge_and_unload) and name the merged model"
    ),
    # The random start
    C.BLOCKS_REUSED: Sentence("blocks of weights are the same, bit for bit"),
    C.START_SHARED: Sentence(
        "{untouched} embedding rows are the same up to their scale, and of the {touched} trained ones only the start "
        "is common ({common:.1f} times it, where a descendant keeps at least {kept:.1f})"
    ),
    C.GAINS_APART: Sentence(
        "norm gains, which start as ones, were not trained together (a correlation of {value:.2f})"
    ),
    C.LAYERS_APART: Sentence("what the layers compute on shared tokens is at chance level"),
    C.NEURONS_AGREE: Sentence("neurons agree in what they read and write ({share:.0%} of them)"),
    C.SKETCHES_AGREE: Sentence("the branch sketches agree ({value:.2f})"),
    C.HIDDEN_ALIKE: Sentence("hidden weights have a cosine of {cosine:.2f}"),
    C.TRAINING_SHARED: Sentence("trained embedding rows have their training in common, not only their start"),
    C.NO_COMMON_IDS: Sentence("no embedding rows under common ids"),
    C.UNTOUCHED_FEW: Sentence(
        "{untouched} embedding rows that neither training touched ({untouched_needed} needed) and {touched} trained "
        "ones ({touched_needed} needed): a head that is the embedding moves all rows"
    ),
    C.ROWS_NOT_GROWN: Sentence(
        "trained rows have only {growth:.2f} times the size of untouched ones ({needed} needed)"
    ),
    C.ROWS_BEYOND_START: Sentence(
        "trained rows have {common:.2f} times their start in common, not what a start explains"
    ),
    C.GAINS_CORRELATED: Sentence("norm gains have a correlation of {value:.2f}"),
    C.NO_GAINS: Sentence("no norm gains to compare, and the branch sketches are not known to be at chance level"),
    # Direction
    C.FEWER_LAYERS: Sentence("{side} has fewer layers"),
    C.FEWER_NEURONS: Sentence("{side} has fewer neurons"),
    C.LAYERS_REPEATED: Sentence("{side} repeats layers"),
    C.ON_GRID: Sentence("{side} is rounded to a quantization grid"),
    C.HALF_PRECISION: Sentence("{side} is rounded to half precision"),
    C.TOKENS_ADDED: Sentence("{side} has tokens added"),
    C.VOCABULARY_CUT: Sentence("{side} has a part of the vocabulary, in its order"),
    C.MADE_OF_GRID: Sentence(
        "{side} was made of the other one's quantized values: it lies close around them, not where rounding starts"
    ),
    C.PATH: Sentence("what sets the models apart is unlike {older} and like the other one ({g:.2f}; siblings 0.50)"),
    C.ROWS_DECAYED: Sentence(
        "{n} untouched embedding rows are {factor:.5g} times as long in {side}: it decayed further"
    ),
    C.SIBLINGS: Sentence(
        "they may be siblings: what sets them apart did not grow from either of them as far as the weights tell"
    ),
    C.BRANCHED: Sentence("as {n} other relatives show, {younger} branched off from {older}"),
    C.WITNESSES: Sentence("{n} other relatives branch from {side}"),
    # What a disguise changed
    C.NEURONS_REORDERED: Sentence("neurons reordered"),
    C.NEURONS_RESCALED: Sentence("neurons rescaled in pairs"),
    C.VALUES_MOVED: Sentence("attention heads or value channels reordered, rotated or rescaled"),
    C.QUERIES_MOVED: Sentence("queries and keys reordered, rotated or rescaled"),
    C.BASIS_MOVED: Sentence("residual basis rotated or permuted"),
    C.GAINS_FOLDED: Sentence("norm gains folded into the weights"),
    C.IDS_RENUMBERED: Sentence("token ids renumbered"),
    C.SCALES_MOVED: Sentence("scales moved between matrices or norms"),
    # What else a linked pair could be
    C.START_NOT_EXCLUDED: Sentence(
        "a merge, or separate training from one random start, would look the same to these tests"
    ),
    C.OR_ADAPTER: Sentence("or a merged adapter: the rank of the difference cannot be seen in what is kept"),
    C.GROWN_POSSIBLE: Sentence(
        "a model that was grown by new layers or neurons would look the same, with the roles exchanged"
    ),
    C.PARTLY: Sentence(
        "only some layers or roles correspond: the others are new, pruned, or have their neurons reordered"
    ),
    C.READ_IN_PART: Sentence(
        "equal in all that was read of both; at least one was read in part, and what was not read may differ"
    ),
    C.DIFFERENCE_ELSEWHERE: Sentence(
        "every compared block is equal; any difference is outside them (a head, or elements between the blocks)"
    ),
    C.TABLE_ONLY: Sentence(
        "only the token embedding is the same, bit for bit: other layers of one ancestor, or a reused table"
    ),
    C.BASIS_ONLY: Sentence(
        "only the residual basis is shared: other layers of one ancestor, layers whose neurons were reordered, or an "
        "embedding that was reused and trained on"
    ),
    C.SAMPLES_ONLY: Sentence(
        "compared by the samples of weights that another tool published: what was not sampled may differ"
    ),
    C.GAINS_ONLY: Sentence("only norm gains and biases show the link: the matrices were not read, or do not match"),
    C.HALF_STEPS: Sentence("{percent:.1f} % of {n:,} sampled weights differ by more than half a quantization step"),
    C.HALF_STEPS_SIBLINGS: Sentence(
        "{percent:.1f} % of {n:,} sampled weights differ by more than half a quantization step; its siblings: "
        "{siblings} %"
    ),
    C.SIBLING_POSSIBLE: Sentence("any checkpoint within half a step of the one that was quantized would look the same"),
    C.COMPENSATED: Sentence(
        "they become more along a row, as quantizers leave it that make up for the error of each column in the next "
        "ones (GPTQ): a close relative of the one that was quantized would look the same"
    ),
    C.DEQUANTIZED: Sentence(
        "{full} holds quantized values exactly, {half} the same at half precision: {half} was dequantized from them, "
        "or they were quantized once more from {half}"
    ),
    C.BOTH_ON_GRIDS: Sentence(
        "both lie on quantization grids: what either was quantized from cannot be told from the two"
    ),
    C.NEAR_GRID: Sentence(
        "{percent:.1f} % of {n:,} sampled weights differ by more than half a quantization step, and most by much "
        "less: values that were quantized before, and changed a little"
    ),
    C.OTHER_GRID: Sentence(
        "{side} lies on a quantization grid that is not {other} rounded to nearest ({percent:.1f} % of {n:,} sampled "
        "weights differ by more than half a quantization step): a sibling of it was quantized, or by rules that "
        "compensate errors or rescale channels"
    ),
    C.AS_NEAR: Sentence("as near as {others}: copies, or too close to be told apart"),
    C.NEARER: Sentence("nearer than {other} in {won} of {total} matrices"),
    C.SIBLING_OF_SOURCE: Sentence(
        "a sibling of the one that was quantized: {nearer} is nearer than {other} in {won} of {total} matrices"
    ),
    C.AS_NEAR_TO_QUANTIZED: Sentence("as near to the quantized one as {others}: which was quantized cannot be told"),
    C.NEARER_UNDECIDED: Sentence(
        "nearer than {other} in {won} of {total} matrices, but whether it was quantized, or one that is not indexed, "
        "cannot be told"
    ),
    C.MERGED_PART: Sentence("merged from {parents}: {coefficient:.2f} of it"),
    C.MERGED_CHANGES: Sentence("merged from {parents}: {coefficient:.2f} of its changes"),
    # An answer
    C.MORE_RELATIVES: Sentence("the last of {n:,} candidates still link: there may be more relatives in this index"),
    C.MORE_MATCHES: Sentence("{n} more matches are not shown (--top {top})"),
    C.UNTESTED: Sentence("{n} of {total} candidates could not be tested: {because}"),
    C.PLAIN_ORDER: Sentence(
        "{n} of {total} candidates were compared in plain order only: a copy whose units were all reordered or rotated "
        "would not have been seen"
    ),
    C.DISGUISES_NOT_SOUGHT: Sentence(
        "what was read first showed a link, and no whole layer was read: copies in disguise were not looked for"
    ),
    C.STARTED_TOGETHER: Sentence("the same random start, trained apart, which is no descent: {models}"),
    C.INDEX_EMPTY: Sentence("the index is empty"),
    C.TOKENIZER_NOT_READ: Sentence(
        "the tokenizer was not read, so TFV, VOA and what needs token strings are missing: {because}"
    ),
    # A gate
    C.DENIED_UNKNOWN: Sentence("it is neither a model nor a family of the index"),
    C.DENIED_ITSELF: Sentence("it is the model itself"),
    C.DENIED_LINKED: Sentence("linked ({relation})"),
    C.DENIED_MEMBER_LINKED: Sentence("linked to {member} ({relation})"),
    C.DENIED_UNTESTED: Sentence("could not be tested: {because}"),
    C.DENIED_UNRELATED: Sentence("unrelated: {because}", "unrelated"),
    C.DENIED_PLAIN_ORDER: Sentence("unrelated only if nothing was reordered: {because}"),
    C.DENIED_LEFT_OUT: Sentence("not linked in all that was read; left out: {because}"),
    C.DENIED_NOT_INDEXED: Sentence("no index that was asked has a row of it"),
    C.DENIED_NOT_COMPARED: Sentence("its row was not compared"),
    C.DENIED_NOT_COMPARABLE: Sentence(
        "of another design: one has gated MLPs, the other has not, and nothing short of retraining leads from one to "
        "the other"
    ),
    C.DENIED_RELATIVE: Sentence(
        "linked ({relation}), but no descendant of it: what training changed from {root} to it is not in this model"
    ),
    C.DENIED_HOLDS: Sentence(
        "linked ({relation}), and up to {share:.0%} of what training changed from {root} to it is in this model"
    ),
    C.DENIED_ROWS_DISAGREE: Sentence("the index has two rows of one commit of {model} that hold different weights"),
    C.DENIED_TOWER: Sentence("its {tower} tower: {because}"),
    C.NOT_ALLOWED: Sentence("the policy does not allow it: {because}"),
    C.OTHERS_UNTESTED: Sentence("{n} models that are not allowed could not be ruled out: {because}"),
    C.WIDTH_NOT_COMPARED: Sentence("{n} models of this width were not compared (--candidates)"),
    C.NOTHING_FOUND: Sentence("nothing is linked, and whether there is an ancestor was not decided"),
    C.ROW_TRUSTED: Sentence("its own weights were not read: a row of the index or a fingerprint file stands for them"),
    C.EXCLUDED: Sentence("left out as asked ({glob}): {because}"),
    # An audit: claims
    C.CLAIM_LINKED: Sentence("the weights are linked to {model} ({relation}), and it is the ancestor"),
    C.CLAIM_LINKED_ONLY: Sentence("the weights are linked to {model} ({relation}); they do not say which came first"),
    C.CLAIM_SAME_WEIGHTS: Sentence("the weights are those of {model} ({relation})"),
    C.CLAIM_DESCENDANT: Sentence("the weights are linked to {model} ({relation}), but say that it came later"),
    C.CLAIM_NO_ID: Sentence("{name} is no id of the Hub"),
    C.CLAIM_LICENSE_FITS: Sentence("it goes together with what the license of {models} asks"),
    C.CLAIM_LICENSE_ALONE: Sentence("no ancestor is known that it could be held against"),
    C.CLAIM_LICENSE_OPEN: Sentence("what it is held against is not known: {because}"),
    C.CLAIM_ARCHITECTURE_FITS: Sentence("names and shapes of the tensors are those of {architecture}"),
    C.CLAIM_ARCHITECTURE_OPEN: Sentence("names and shapes of the tensors do not show it: {because}"),
    C.NEXT_FETCH: Sentence("run it again with --fetch {n}, which reads a few MB of {model} from the Hub"),
    C.NEXT_COMPARE: Sentence("`provindex compare MODEL {model}` shows which tests could run"),
    C.NEXT_ID: Sentence("run `provindex compare MODEL org/name` with the model that is meant"),
    C.NEXT_LICENSE: Sentence("look at the license of {model}"),
    C.NEXT_MERGE: Sentence("merge the adapter into its base (with peft: merge_and_unload) and audit the merged model"),
    # An audit: findings
    C.BASE_CONTRADICTED: Sentence("it claims to be made of {model} ({source}), and its weights are not: {because}"),
    C.BASE_RELATIVE: Sentence("it claims to be made of {model} ({source}), and is only a relative: {because}"),
    C.BASE_UNCLAIMED: Sentence("it was made of {models} as well or instead, which it does not name: {because}"),
    C.BASE_UNCLAIMED_OPEN: Sentence("it does not name {models}, and {claimed} does not explain that: {because}"),
    C.BASE_UNCLAIMED_UNTESTED: Sentence(
        "it does not name {models}, and what it names ({claimed}) could not be tested: {because}"
    ),
    C.BASE_UNNAMED: Sentence("it names no base model: {because}"),
    C.CLAIM_UNTESTED: Sentence("{kind} {value} ({source}) is not tested: {because}"),
    C.CLASH_COMMERCIAL: Sentence(
        "{below} allows commercial use that {above} of {model} does not allow{where}; {because}"
    ),
    C.CLASH_LIMITED: Sentence(
        "{below} allows commercial use of any size, and {above} of {model} only up to one{where}; {because}"
    ),
    C.CLASH_SHARE_ALIKE: Sentence(
        "{above} of {model} asks that what is made of it stays under it or a license that it names{where}, "
        "and this is under {below}; {because}"
    ),
    C.CLASH_RESTRICTIONS: Sentence(
        "{above} of {model} asks that its restrictions of use are passed on{where}, and {below} has none; {because}"
    ),
    C.CLASH_DERIVATIVES: Sentence(
        "{above} of {model} does not allow that what is made of it is passed on{where}; {because}"
    ),
    C.LICENSE_NOT_STATED: Sentence("no license of {model} is known"),
    C.LICENSE_NOT_IN_TABLE: Sentence("the license of {model}, {license}, is not in the table of licenses"),
    C.TEXT_MISSING: Sentence(
        "no file with a license or a notice lies beside the weights, and {license} of {models} asks for one{where}"
    ),
    C.NAME_LACKS: Sentence(
        "its name, {name}, does not begin with {naming}, which {license} of {models} asks for{where}"
    ),
    C.BY_WEIGHTS: Sentence("{model} is an ancestor by the weights ({relation})"),
    C.BY_RELATIVES: Sentence(
        "{model} is linked ({relation}), and only the way in which other relatives lie says that it came first"
    ),
    C.BY_CLAIM: Sentence("{model} is an ancestor by what the model itself says ({source}), not tested"),
    C.BY_CATALOGUE: Sentence("{model} is an ancestor of {child}, says {source}"),
    # A contribution
    C.NO_LICENSE: Sentence("{model} states no license, and the row will state none"),
    C.NO_HUB_ID: Sentence("{model} is no Hub id: the row will be known by that name"),
    C.NO_PUBLIC_MODEL: Sentence("the Hub has no public model {model}, so nobody can check the row"),
    C.SHARD_LEFT_OUT: Sentence("{problem}"),
    C.NOT_LOOKED_OFFLINE: Sentence("offline: neither the dataset nor the model's terms were looked at"),
}
WAYS = {  # in which an imported row was taken otherwise than a row of ours (signals/imported.py)
    "files": "tensors in the order of several files, which is not known",
    "sliced": "32 rows of each matrix",
    "towers": "the layers of several towers under one number",
}
ROLES = {  # of a candidate, by the direction of its pair
    "ancestor": "is its ancestor",
    "descendant": "descends from it",
    "unknown": "which came first is open",
    "identical": "has the same weights",
}
CERTAINTIES = {  # by code: in words, and the E-values for which it stands
    "beyond-doubt": ("beyond doubt", "E-value of 1e-30 or less"),
    "very-strong": ("very strong", "E-value of 1e-9 or less"),
    "strong": ("strong", "E-value of 1e-3 or less, the limit for a link"),
    "by-rank": ("by rank", "no E-value: above all but 1 in 1,000 pairs of unrelated models, in two tests"),
}
TIERS = {  # what follows from a value of a signal or a test, by the tier of a test
    "signal": "It is reported beside what unrelated models reach, and never decides.",
    "exact": "Its p-value counts: it can link two models by itself, after correction for all tests.",
    "aligned": "It is ranked among pairs of unrelated models, and links together with another such test.",
    "reported": "It is reported, and never decides.",
}
TERMS: Mapping[str, Mapping[str, str]] = {  # words of answers that are neither reasons, signals nor tests, by kind
    "verdict": {
        "linked": "a test shows that the two share weights: p <= 1e-6 after correction, and an E-value of 1e-3 or less",
        "unrelated": "a test that would have seen a copy, even a heavily changed one, ran and saw nothing",
        "inconclusive": "no test that could have decided it was able to run; the reasons are listed",
    },
    "relation": {
        "identical": "all weights are equal",
        "recast": "the same weights, stored in another precision",
        "quantized": "the weights of one, rounded to few values",
        "finetune": "trained on from the same weights, by a little",
        "continued": "trained on from the same weights, by much",
        "adapter": "a change of low rank was added to the weights (LoRA and its kin)",
        "pruned": "layers, neurons or heads were left out",
        "upscaled": "layers were repeated or added",
        "merge": "the weights are an average of several models, or of their changes",
        "vocabulary": "the same layers with another vocabulary",
        "laundered": "reordered, rotated or rescaled, and otherwise the same",
        "shared-ancestor": "both have parts of one ancestor",
        "related": "they share weights, and how cannot be told",
        "shared-init": "the same random start, trained apart: no descent, the verdict is unrelated",
    },
    "direction": {
        "ancestor": "the other one was made from the one named",
        "descendant": "the one named was made from the other",
        "unknown": "the weights do not say which of the two came first",
    },
    "status": {
        "decided": "the question has an answer",
        "none": "nothing is linked, and everything that looks like an ancestor was tested",
        "inconclusive": "nothing is linked, and not everything that looks like an ancestor could be tested",
    },
    "state": {  # of a rule of a gate
        "denied": "linked to what the rule names, and not shown to be no descendant of it (status 1)",
        "relative": "linked, and shown to be no descendant: a sibling, or an ancestor (passes)",
        "cleared": "a test that would have seen a reordered, rotated and resized copy ran and saw none (passes)",
        "not_comparable": "of another design, to which nothing short of retraining leads (passes, unless the policy "
        "fails it)",
        "inconclusive": "whether it is linked could not be told (status 3, unless the policy says otherwise)",
    },
    "number": {
        "e-value": "how many unrelated models of this index would be expected to score as well: the p-value times the "
        "number of models",
        "chance": "what the value reaches on pairs of models known to be unrelated: median and 99.9th percentile",
    },
}
BRIEF_WITHIN = frozenset({Code.UNTESTED})  # summaries: each distinct kind of reason once, without figures


OF_A_TEST = frozenset({Code.NOT_RANKED})  # what these say besides the reasons that they rest on is the name of a test


class _Filled(string.Formatter):
    """Fills in figures, which may come from a stranger's row: one that is missing or of another type shows as it is."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key), "?")

    def format_field(self, value: Any, format_spec: str) -> str:
        try:
            return format(value, format_spec)
        except (ValueError, TypeError):
            return str(value)


_FILLED = _Filled()


def text(reason: Reason) -> str:
    """A reason as a clause or sentence."""
    sentence = SENTENCES[reason.code]
    because = summary(reason.because) if reason.code in BRIEF_WITHIN else joined(reason.because)
    said = _FILLED.vformat(sentence.full, (), _figures(reason) | {"because": because})
    return f"{reason.subject}{sentence.joint}{said}" if reason.subject else said


def brief(reason: Reason) -> str:
    """The same without whom it is about and without the figures of one pair."""
    sentence = SENTENCES[reason.code]
    return _FILLED.vformat(sentence.brief or sentence.full, (), _figures(reason) | {"because": summary(reason.because)})


def _figures(reason: Reason) -> dict[str, Any]:
    figures = dict(reason.figures)
    if isinstance(ways := figures.get("ways"), str):
        figures["ways"] = " against ".join(
            " and ".join(WAYS.get(w, w) for w in way.split("+")) for way in ways.split("/")
        )
    return figures


def texts(reasons: Sequence[Reason]) -> tuple[str, ...]:
    """Each reason as a text."""
    return tuple(text(reason) for reason in reasons)


def joined(reasons: Sequence[Reason]) -> str:
    """Several reasons as one text."""
    return "; ".join(texts(reasons))


def summary(reasons: Sequence[Reason]) -> str:
    """What many pairs have in common: each distinct brief text once."""
    return "; ".join(dict.fromkeys(map(brief, reasons)))


def without_tests(reasons: Sequence[Reason]) -> list[str]:
    """Why pairs could not be tested: each kind of reason once, without names of tests and figures of one pair."""
    inner = [one for reason in reasons for one in (reason.because if reason.code in OF_A_TEST else (reason,))]
    return list(dict.fromkeys(map(brief, inner)))


def document(reason: Reason) -> dict[str, Any]:
    """A reason of the JSON contract: code, subject, figures, what it rests on, and the text."""
    return {
        "code": str(reason.code),
        "subject": reason.subject,
        "figures": dict(reason.figures),
        "because": [document(inner) for inner in reason.because],
        "text": text(reason),
    }


def documents(reasons: Sequence[Reason]) -> list[dict[str, Any]]:
    """Several reasons of the JSON contract."""
    return [document(reason) for reason in reasons]
