"""Writes small random models with transformers, to be read by both sides. Runs inside the peer's environment.

python generate.py FOLDER

Per architecture: `base` (float32), `child` (base and 2 % noise, bfloat16), `other` (another seed, float16).
Beside them, of the Llama: fewer layers, shards, another order of tensors in the file, one NaN; of the BERT:
saved without its head. Seeds are fixed; weights are scaled by layer and by token, so that no signal is flat.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder

VOCABULARY = 1024
SIZE = {"hidden_size": 128, "vocab_size": VOCABULARY}
ATTENTION = {"num_hidden_layers": 4, "num_attention_heads": 8}
GROUPED = ATTENTION | {"num_key_value_heads": 4, "intermediate_size": 256}
ARCHITECTURES = {  # name: (config class, model class, sizes, tokenizer)
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZE | GROUPED | {"num_hidden_layers": 12}, "bpe"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", SIZE | GROUPED | {"head_dim": 64}, "bpe"),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        SIZE | GROUPED | {"num_experts": 8, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128},
        "bpe",
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 128, "n_layer": 4, "n_head": 8}, "bpe"),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZE | ATTENTION | {"intermediate_size": 256}, "bpe"),
    "falcon": ("FalconConfig", "FalconForCausalLM", SIZE | ATTENTION, "bpe"),
    "opt": ("OPTConfig", "OPTForCausalLM", SIZE | ATTENTION | {"ffn_dim": 256, "word_embed_proj_dim": 128}, "bpe"),
    "bert": ("BertConfig", "BertForMaskedLM", SIZE | ATTENTION | {"intermediate_size": 256}, "wordpiece"),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "d_model": 128,
            "d_kv": 16,
            "num_heads": 8,
            "num_layers": 3,
            "d_ff": 256,
            "feed_forward_proj": "gated-gelu",
        },
        "unigram",
    ),
}
TEXT = """The ship was in the bay and it is said that the men on board are with the captain for as long as they can be.
At dawn the station was leading the nation: selling, telling, falling, re-entering, general, lateral; 0123456789 times!
Who are they? They are the ones that went to the sea, of all men; it was for them as it is for us. Re-read, redo, end.
In the end the mention of action and motion was enough: he walked, talked, asked, and she goes, washes, wishes, teaches.
"""
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def tokenizer(kind: str) -> Tokenizer:
    """A tokenizer trained on TEXT, of at most VOCABULARY tokens."""
    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = ByteLevelDecoder()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY - 16, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY - 16, special_tokens=SPECIAL, show_progress=False)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(TEXT.splitlines() * 3, trainer)
    return made


def build(name: str, seed: int) -> torch.nn.Module:
    """A random model: every tensor scaled by its own factor, norms and rows of the embedding spread."""
    config_class, model_class, sizes, _ = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{"vocab_size": VOCABULARY} | sizes)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            draw = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(key.encode()))
            if value.dim() >= 2:
                spread = 0.3 * torch.randn(value.shape[0], *[1] * (value.dim() - 1), generator=draw)
                value.mul_(torch.exp(spread + 0.4 * torch.randn(1, generator=draw)))
            else:
                value.add_(0.2 * torch.randn(value.shape, generator=draw))
    return model


def disturb(model: torch.nn.Module, share: float) -> None:
    """Add noise of `share` times each tensor's own spread: a stand-in for fine-tuning."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(share * value.std() * torch.randn(value.shape, generator=draw))


def save(model: torch.nn.Module, words: Tokenizer, folder: Path, **options: object) -> None:
    """Write a model folder as transformers does, with the tokenizer."""
    model.save_pretrained(folder, **options)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    wrapped.save_pretrained(folder)


def write_in_order(source: Path, folder: Path, names: list[str], replaced: dict[str, torch.Tensor]) -> None:
    """Copy a folder, its tensors at the offsets that the order of `names` gives (the safetensors writer
    always sorts).
    """
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors") | replaced
    header, data, at = {}, [], 0
    for name in names:
        raw = tensors[name].numpy().tobytes()
        facts = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [at, at + len(raw)]}
        header[name], at = facts, at + len(raw)
        data.append(raw)
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def llama_variants(base: torch.nn.Module, words: Tokenizer, into: Path) -> None:
    """Fewer layers, shards, another order in the file, one NaN."""
    save(base, words, into / "llama-sharded", max_shard_size="600KB")
    names = sorted(load_file(into / "llama-base" / "model.safetensors"))
    shuffled = [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(3)).tolist()]
    write_in_order(into / "llama-base", into / "llama-shuffled", shuffled, {})
    bad = load_file(into / "llama-base" / "model.safetensors")["model.layers.3.self_attn.q_proj.weight"].clone()
    bad[0, 0] = float("nan")
    changed = {"model.layers.3.self_attn.q_proj.weight": bad}
    write_in_order(into / "llama-base", into / "llama-nan", names, changed)
    short = build("llama", 1)
    short.model.layers = short.model.layers[:9]
    short.config.num_hidden_layers = 9
    short.config.layer_types = None
    save(short, words, into / "llama-short")


def main(into: Path) -> None:
    """Write every model that is not there yet."""
    transformers.utils.logging.set_verbosity_error()
    for name, (_, _, _, kind) in ARCHITECTURES.items():
        words = tokenizer(kind)
        base, child, other = build(name, 1), build(name, 1), build(name, 2)
        disturb(child, 0.02)
        save(base, words, into / f"{name}-base")
        save(child.to(torch.bfloat16), words, into / f"{name}-child")
        save(other.to(torch.float16), words, into / f"{name}-other")
        if name == "llama":
            llama_variants(base, words, into)
        if name == "bert":
            save(base.bert, words, into / "bert-headless")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
