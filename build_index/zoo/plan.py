"""What the zoo is made of, as data: shapes, tokenizers, languages, and the list of trainings in their order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .data import WORD_MARKS, Language, Vocabulary


@dataclass(frozen=True)
class Shape:
    """The size of a model. hidden: neurons of one MLP. tied: whether the head is the embedding.

    spread: standard deviation of the random start, None for the default of `architectures.initial_weights`.
    """

    model_type: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    tied: bool = True
    spread: float | None = None

    @property
    def gated(self) -> bool:
        """Whether the MLP has three matrices instead of two."""
        return self.model_type in ("llama", "qwen3", "gemma3_text")


def config_of(shape: Shape, rows: int) -> dict[str, Any]:
    """The config.json of a model of this shape with `rows` tokens, in transformers' words."""
    make = {"gpt2": _gpt2, "gpt_neox": _neox, "bert": _bert}.get(shape.model_type, _rope)
    return make(shape, rows)


_CLASS = {
    "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "bert": "BertForMaskedLM",
}  # fmt: skip


def _common(s: Shape, rows: int) -> dict[str, Any]:
    return {
        "architectures": [_CLASS[s.model_type]], "model_type": s.model_type, "vocab_size": rows,
        "tie_word_embeddings": s.tied, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
    } | ({} if s.spread is None else {"initializer_range": s.spread})  # fmt: skip


def _rope(s: Shape, rows: int) -> dict[str, Any]:
    config = _common(s, rows) | {
        "hidden_size": s.width, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "intermediate_size": s.hidden,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128,
        "attention_bias": False, "hidden_act": "silu",
    }  # fmt: skip
    if s.model_type == "gemma3_text":
        config |= {
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": s.head_dim, "sliding_window": 512,
            "rope_local_base_freq": 10000.0, "layer_types": ["full_attention"] * s.layers, "pad_token_id": 0,
            "attn_logit_softcapping": None, "final_logit_softcapping": None,
        }  # fmt: skip
        del config["hidden_act"]
    return config


def _gpt2(s: Shape, rows: int) -> dict[str, Any]:
    return _common(s, rows) | {
        "n_embd": s.width, "n_layer": s.layers, "n_head": s.heads, "n_inner": s.hidden, "n_positions": 128,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    }  # fmt: skip


def _neox(s: Shape, rows: int) -> dict[str, Any]:
    return _common(s, rows) | {
        "hidden_size": s.width, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "intermediate_size": s.hidden, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0, "use_parallel_residual": True, "max_position_embeddings": 128,
        "attention_bias": True,
    }  # fmt: skip


def _bert(s: Shape, rows: int) -> dict[str, Any]:
    return _common(s, rows) | {
        "hidden_size": s.width, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "intermediate_size": s.hidden, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2,
        "max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "pad_token_id": WORD_MARKS.index("[PAD]"), "mask_token_id": WORD_MARKS.index("[MASK]"),
    }  # fmt: skip


# --- trainings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How long and how hard. rate: AdamW's, reached after a tenth of the steps and falling to a tenth as a cosine."""

    steps: int
    rate: float
    batch: int = 8
    decay: float = 0.05


@dataclass(frozen=True)
class Job:
    """One training. kind: "base" or one of RECIPES. base: the name of the job whose model it starts from."""

    zoo: str
    name: str
    kind: str
    shape: Shape
    vocabulary: Vocabulary
    language: Language
    run: Run
    base: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A trained descendant. relation: as in Truth, with the other true names. dialect: whose text it is trained on."""

    run: Run
    dialect: int
    relation: str
    also: tuple[str, ...] = ()


BASE_RUN = Run(150, 4e-3)
LEXICON = 11
RECIPES = {
    "finetune-a": Recipe(Run(40, 4e-4), 2, "finetune", ("continued",)),
    "finetune-b": Recipe(Run(40, 4e-4), 3, "finetune", ("continued",)),
    "continued": Recipe(Run(150, 4e-3), 4, "continued", ("finetune",)),
    "lora": Recipe(Run(40, 2e-3), 5, "adapter", ("finetune", "continued")),
    "vocabulary": Recipe(Run(40, 1e-3), 6, "vocabulary", ("finetune", "continued")),
    "distilled": Recipe(Run(50, 1e-3), 0, "pruned", ("continued", "related")),
    "depth-pruned": Recipe(Run(40, 1e-3), 0, "pruned"),
    "width-pruned": Recipe(Run(40, 1e-3), 0, "pruned"),
    "upscaled": Recipe(Run(40, 1e-3), 0, "upscaled"),
    "shared-init": Recipe(BASE_RUN, 7, "shared-init"),
}
BENCHMARK_SHAPES = {
    "llama": Shape("llama", 96, 6, 6, 3, 16, 256),
    "qwen3": Shape("qwen3", 96, 6, 6, 2, 16, 224, tied=False),
    "gpt2": Shape("gpt2", 96, 6, 6, 6, 16, 320),
    "neox": Shape("gpt_neox", 96, 6, 6, 6, 16, 256, tied=False),
}
BENCHMARK_VOCABULARY = Vocabulary("bpe", 2000, (Language(LEXICON),))
REBUILT_VOCABULARY = Vocabulary("bpe", 1800, (Language(LEXICON, 6),), ("<s>", "</s>", "<unk>"))
SEEDS, PARENTS = 12, 3  # seeds of each shape, and how many of them have descendants
# Two more seeds of each shape start from smaller numbers and train for longer, so that little of the start is left in
# them (cosine 0.4 and less, not 0.76): with these the pairs of one start are as they are among published models.
LONG_SEEDS, LONG_RUN, LONG_SPREAD = (12, 13), Run(300, 4e-3), 0.02


def benchmark() -> list[Job]:
    """56 bases, the trained descendants of 12 and twins of 8 of them; parents and their finetunes first."""
    bases = [[_base(kind, seed) for kind in BENCHMARK_SHAPES] for seed in range(SEEDS)]
    parents = [job for row in bases[:PARENTS] for job in row]
    tunes = [_child(job, kind) for kind in ("finetune-a", "finetune-b") for job in parents]
    others = [kind for kind in RECIPES if not kind.startswith("finetune")]
    rest = [_child(job, kind) for kind in others for job in parents]
    long = [_base(kind, seed) for seed in LONG_SEEDS for kind in BENCHMARK_SHAPES]
    twins = [pair for job in long for pair in (job, replace(_child(job, "shared-init"), run=LONG_RUN))]
    return [*parents, *tunes, *rest, *(job for row in bases[PARENTS:] for job in row), *twins]


def _base(kind: str, seed: int) -> Job:
    shape, run = BENCHMARK_SHAPES[kind], BASE_RUN
    if seed in LONG_SEEDS:
        shape, run = replace(shape, spread=LONG_SPREAD), LONG_RUN
    return Job("benchmark", f"{kind}-{seed:02d}", "base", shape, BENCHMARK_VOCABULARY, Language(LEXICON), run)


def _child(job: Job, kind: str) -> Job:
    recipe = RECIPES[kind]
    vocabulary = REBUILT_VOCABULARY if kind == "vocabulary" else job.vocabulary
    language = Language(LEXICON, recipe.dialect)
    return Job(job.zoo, f"{job.name}-{kind}", kind, job.shape, vocabulary, language, recipe.run, job.name)


# Calibration: four cells (vocabulary, size) for each kind of MLP; both kinds have the same two sizes. A cell has two or
# three architectures and two languages, so that 24 seeds a cell give 1,104 pairs of one vocabulary, size and kind of
# MLP, 1,152 of each other stratum of one kind, and 2,304 of each stratum of two kinds.
CALIBRATION_LANGUAGES = (Language(21), Language(22))
CALIBRATION_VOCABULARIES = {
    "b": Vocabulary("bpe", 1600, CALIBRATION_LANGUAGES),
    "w": Vocabulary("wordpiece", 1600, CALIBRATION_LANGUAGES, WORD_MARKS),
}
CALIBRATION_SHAPES = {
    ("gated", "s"): (Shape("llama", 64, 4, 4, 2, 16, 160), Shape("qwen3", 64, 4, 4, 2, 16, 160)),
    ("gated", "d"): (Shape("gemma3_text", 80, 5, 5, 1, 16, 128), Shape("llama", 80, 5, 5, 1, 16, 128)),
    ("plain", "s"): (Shape("gpt2", 64, 4, 4, 4, 16, 160), Shape("gpt_neox", 64, 4, 4, 4, 16, 160, tied=False)),
    ("plain", "d"): (
        Shape("gpt2", 80, 5, 5, 5, 16, 128),
        Shape("gpt_neox", 80, 5, 5, 5, 16, 128, tied=False),
        Shape("bert", 80, 5, 5, 5, 16, 128),
        Shape("gpt_neox", 80, 5, 5, 5, 16, 128, tied=False),
    ),
}
CALIBRATION_SEEDS = 24
CALIBRATION_RUN = Run(110, 5e-3)


def calibration() -> list[Job]:
    """192 bases, one of each cell in turn, so that any beginning of the list is balanced."""
    return [
        _calibrator(seed, tokens, mlp, size)
        for seed in range(CALIBRATION_SEEDS)
        for mlp, size in CALIBRATION_SHAPES
        for tokens in CALIBRATION_VOCABULARIES
    ]


def _calibrator(seed: int, tokens: str, mlp: str, size: str) -> Job:
    shapes, vocabulary = CALIBRATION_SHAPES[mlp, size], CALIBRATION_VOCABULARIES[tokens]
    language = CALIBRATION_LANGUAGES[seed // 2 % 2]
    name = f"c-{mlp}-{size}-{tokens}-{seed:02d}"
    return Job("calibration", name, "base", shapes[seed % len(shapes)], vocabulary, language, CALIBRATION_RUN)


ZOOS = {"benchmark": benchmark, "calibration": calibration}
