"""How many bytes of a model on the Hub are read, estimated from its shape before anything is asked.

    norms          headers, config, norm gains and biases
    stage 1        of sampled reading: fixed blocks, panels of units, rows of anchor tokens, and the tokenizer's files
    stage 2        whole layers besides
    exact          every byte

What is read is known only when the headers are here; these are upper estimates, held against what was read of models of
known shapes (`tests/benchmarks/README.md`).
"""

from __future__ import annotations

from provindex.catalogue.table import Shape

STAGES = ("norms", "stage 1", "stage 2", "exact")
COMPANIONS = 100_000  # bytes of config, card, and the index of shards
HEADER = 160  # bytes a tensor in a file's header
TENSORS = 16  # tensors a layer, with biases
VALUE, OLDER = 2, 4  # bytes of a value: designs without biases are published in 16 bits, those before them in 32
GAINS, WITH_BIASES = 4, 16  # vectors of the residual width a layer: norm gains alone, and with biases (an MLP's is 4)
PLAIN = frozenset(  # types without biases, or with few
    (
        "cohere cohere2 deepseek_v2 deepseek_v3 gemma gemma2 gemma3 gemma3_text glm4 gpt_oss granite "
        "granitemoe internlm2 lfm2 llama ministral3 mistral mistral3 mixtral mt5 olmo2 olmo3 olmoe phi3 qwen2 "
        "qwen2_moe qwen3 qwen3_moe smollm3 t5 "
    ).split()
)
ANCHOR_ROWS, LAYER_ROWS = 3000, 190  # rows of residual width that stage 1 reads, of the embedding and of each layer
GAP = 1 << 16  # bytes between two ranges up to which one request takes both (formats/ranged.py)
TOKEN = 130  # bytes a token in a tokenizer's files
WHOLE_LAYERS = 2  # that stage 2 reads
SHARD = 5_000_000_000  # bytes of a file of weights
UNKNOWN = Shape("", 4096, 32, 14336, 32, 8, 128_256)  # what is assumed where nothing is known: a model of 8B


def parameters(shape: Shape) -> int:
    """Elements of a dense model of a shape, with an MLP of three matrices and a head of its own."""
    return _layer(shape) * shape.layers + 2 * shape.vocabulary * shape.hidden


def _layer(shape: Shape) -> int:
    width = shape.hidden
    keys = (shape.kv_heads or shape.heads or 1) / (shape.heads or 1)
    return round((2 + 2 * keys) * width * width) + 3 * width * (shape.intermediate or 4 * width)


def estimate(shape: Shape, stage: str, size: int | None = None) -> int:
    """Bytes that a stage reads, everything before it included. size: bytes of the weight files, if they are known."""
    if not (shape.hidden and shape.layers):
        shape = UNKNOWN
    plain = shape.model_type in PLAIN
    value = VALUE if plain else OLDER
    size = size or value * parameters(shape)
    if stage == "exact":
        return size + COMPANIONS + TOKEN * shape.vocabulary
    files = -(-size // SHARD)
    vectors = GAINS if plain else WITH_BIASES
    # Norms with less than a gap between them are fetched with the matrices between them.
    square, tall = shape.hidden * shape.hidden * value, shape.hidden * (shape.intermediate or 4 * shape.hidden) * value
    layer = vectors * shape.hidden * value + sum(
        times * size for times, size in ((4, square), (3, tall)) if size <= GAP
    )
    norms = COMPANIONS + files * (1 << 16) + shape.layers * (TENSORS * HEADER + layer)
    if stage == "norms":
        return min(norms, size + COMPANIONS)
    row = shape.hidden * value
    table = shape.vocabulary * row  # anchors lie all over it: near ones are fetched together, with what is between
    anchors = table if table <= ANCHOR_ROWS * GAP else ANCHOR_ROWS * row
    first = norms + anchors + LAYER_ROWS * shape.layers * row + TOKEN * shape.vocabulary
    second = first if stage == "stage 1" else first + WHOLE_LAYERS * _layer(shape) * value
    return min(second, size + COMPANIONS + TOKEN * shape.vocabulary)
