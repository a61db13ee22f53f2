"""Disguises change the weights and not the function, in every family; and not the canonical quantities either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from zoo.forward import Forward, logits
from zoo.shrunk import FOLDER, VOCABULARY, shrunk

from build_index.zoo import disguises
from build_index.zoo.disguises import DISGUISES, EXACT, Refusal, renumbering
from build_index.zoo.parts import Block, Parts
from build_index.zoo.snapshot import Snapshot
from provindex.formats.tensors import tensor_from_array
from provindex.roles import canonical
from provindex.roles.names import Arch

F64 = NDArray[np.float64]

# Image and audio towers have no forward pass here, nor have latent and disentangled attention.
NOT_COVERED = (
    "clip", "clip_vision_model", "siglip", "vit", "whisper", "llava", "llava_older", "gemma3", "gemma3_older",
    "qwen2_vl", "qwen2_vl_older", "qwen2_5_vl", "qwen2_audio", "idefics3", "paligemma", "mistral3", "deberta",
    "deberta-v2", "deepseek_v2_lite", "deepseek_v2_lite_older", "deepseek_v3", "deepseek_v3_older",
)  # fmt: skip
STORED = sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz"))
FAMILIES = [name for name in STORED if name not in NOT_COVERED]
TOKENS = np.array([5, 17, 8, 30, 5, 22, 39, 11, 4])
SEED = 3

# What an architecture does not allow; everything else must hold. Disguise: families.
EVERY = set(FAMILIES)
GATED = {
    "baichuan", "chatglm", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "granite",
    "internlm2", "llama", "mistral", "mixtral", "mixtral_older", "modernbert", "mt5", "olmo", "olmo2", "phi3",
    "qwen", "qwen2", "qwen2_moe", "qwen2_moe_older", "qwen3", "qwen3_moe", "qwen3_moe_older", "smollm3", "stablelm",
    "stablelm_2_12b", "umt5",
}  # fmt: skip
RELU = {"m2m_100", "nemotron", "opt", "opt_350m", "t5", "t5_encoder"}  # two matrices
EXPERTS = {n for n in FAMILIES if "moe" in n or "mixtral" in n} | {"gpt_oss"}
POST = {
    "albert", "albert_groups", "bart", "bart_classifier", "bert", "bert_classifier", "bert_decoder", "bert_older",
    "camembert", "distilbert", "distilbert_classifier", "electra", "electra_generator", "marian",
    "marian_two_vocabularies", "mpnet", "opt_350m", "roberta", "roberta_classifier", "xlm-roberta",
}  # fmt: skip
FIXED = {"marian", "marian_two_vocabularies", "m2m_100", "pegasus"}  # sinusoids in the residual stream
SLOPES = {"bloom", "mpt", "falcon_rw"}
QUERY_NORMS = {"cohere", "gemma3_text", "olmo2", "phi", "qwen3", "qwen3_moe", "qwen3_moe_older", "stablelm_2_12b"}
NO_EPSILON = {"baichuan", "chatglm", "internlm2", "mbart", "m2m_100", "olmo", "opt", "pegasus", "qwen"}
RMS = {
    "baichuan", "chatglm", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_oss", "granite", "internlm2", "llama",
    "mistral", "mixtral", "mixtral_older", "mt5", "olmo2", "phi3", "qwen", "qwen2", "qwen2_moe", "qwen2_moe_older",
    "qwen3", "qwen3_moe", "qwen3_moe_older", "smollm3", "t5", "t5_encoder", "umt5",
}  # fmt: skip
NO_BIAS = {
    "falcon_7b",
    "falcon_40b",
    "nemotron",
    "stablelm",
    "stablelm_2_12b",
}  # nothing makes up for the norm's own bias
REFUSED: Mapping[str, set[str]] = {
    "permute_experts": EVERY - EXPERTS,
    "permute_heads": SLOPES | {"stablelm_2_12b"},
    "rotate_queries": QUERY_NORMS,
    "rescale_queries": QUERY_NORMS,
    "rescale_neurons": EVERY - GATED - RELU,
    "rescale_gates": EVERY,
    "fold_norms": POST | {"olmo"},
    "redistribute_norms": POST | {"olmo"},
    "permute_residual": FIXED,
    "rotate_residual": FIXED,
    "rescale_residual": POST | FIXED | NO_EPSILON | {"modernbert", "stablelm_2_12b"},
    "shift_readers": RMS | NO_BIAS,
    "shift_writers": RMS,
}


@cache
def model(family: str) -> Snapshot:
    return shrunk(family, seed=1)


@cache
def answer(family: str) -> F64:
    return logits(model(family), TOKENS)


def disguised(family: str, disguise: str) -> Snapshot | Refusal:
    return (EXACT | {"all": disguises.everything})[disguise](model(family), SEED)


@cache
def renumbered(family: str) -> NDArray[np.int64]:
    return renumbering(model(family), SEED)


def answered(family: str, changed: Snapshot, numbers: NDArray[np.int64]) -> F64:
    """What the changed model says about the same text, token by token in the old order."""
    said = logits(changed, numbers[TOKENS])
    return said[:, numbers] if Parts(changed).has_head() else said


def numbers_after(family: str, disguise: str) -> NDArray[np.int64]:
    return renumbered(family) if disguise in ("renumber_vocabulary", "all") else np.arange(VOCABULARY)


# ---- the function ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("disguise", [*EXACT, "all"])
def test_the_answer_and_the_canonical_quantities_stay(family: str, disguise: str) -> None:
    changed = disguised(family, disguise)
    assert isinstance(changed, Refusal) == (family in REFUSED.get(disguise, ())), changed
    if isinstance(changed, Refusal):
        assert len(changed.reason) > 10
        return
    before, numbers = answer(family), numbers_after(family, disguise)
    after = answered(family, changed, numbers)
    if family == "t5_encoder":  # its answer is the residual stream itself: equal but for the basis
        before, after = before @ before.T, after @ after.T
    assert np.abs(after - before).max() <= 1e-6 * np.abs(before).max()
    moved = [name for name, t in changed.tensors.items() if not np.array_equal(t, model(family).tensors.get(name))]
    assert moved
    squared = family == "nemotron" and disguise in ("rescale_neurons", "all")  # up by s is down by s squared
    same_quantities(quantities_of(family), quantities(changed, numbers), {"ud"} if squared else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_depends_on_every_role(family: str) -> None:
    """Otherwise the forward pass would not notice a wrong disguise."""
    parts = Parts(model(family))
    for role in sorted({key.role for key in parts.at}):
        changed = Parts(model(family))
        for key in [k for k in changed.at if k.role == role]:
            values = changed.read(key)
            changed.write(key, values + 0.2 * np.random.default_rng(4).standard_normal(values.shape))
        moved = np.abs(logits(changed.snapshot(role), TOKENS) - answer(family)).max()
        assert moved > 1e-3 * np.abs(answer(family)).max(), role


def test_every_disguise_holds_somewhere_but_gates() -> None:
    """No family here has a gate under ReLU; a T5 with one is tested below."""
    assert {name for name in EXACT if not EVERY - REFUSED.get(name, set())} == {"rescale_gates"}


def test_a_gate_under_relu_can_be_rescaled() -> None:
    t5 = zoo.t5(1)
    plain = Snapshot("t5", as64(t5.tensors), {**t5.config, "feed_forward_proj": "gated-relu"}, "")
    changed = disguises.rescale_gates(plain, SEED)
    assert isinstance(changed, Snapshot)
    assert np.allclose(logits(plain, TOKENS), logits(changed, TOKENS), rtol=1e-9)


# ---- canonical quantities -------------------------------------------------------------------------------------


@cache
def quantities_of(family: str) -> dict[str, F64]:
    return quantities(model(family), np.arange(VOCABULARY))


def quantities(snapshot: Snapshot, numbers: NDArray[np.int64]) -> dict[str, F64]:
    """Per layer: branch products in token coordinates, each of Frobenius norm one, and what hidden units look like to
    each other, sorted.
    """
    parts = Parts(snapshot)
    anchors, gains, found = anchors_of(parts, numbers), gains_of(parts), {}
    for block, arch in parts.attentions():
        if not block.cross:
            found |= attention(parts, block, arch, anchors, gains)
    layers: dict[tuple[str, int], list[dict[str, F64]]] = {}
    for block, arch in parts.mlps():
        layers.setdefault((block.stack, block.layer or 0), []).append(mlp(parts, block, arch, anchors, gains))
    for (stack, layer), units in layers.items():
        for name in units[0]:
            values = [one[name] for one in units]
            whole = sum(values) if name in ("ud", "gg") else np.sort(np.concatenate(values))
            found[f"{stack}.{layer}.{name}"] = unit(whole) if name in ("ud", "gg") else whole
    return found


def unit(values: F64) -> F64:
    return values / np.sqrt(np.square(values).sum())


def gains_of(parts: Parts) -> dict[tuple[str, str, int | None], F64]:
    keys = [k for k in parts.at if k.role.startswith("norm") and k.param == "weight"]
    return {(k.stack, (canonical.CROSS if k.cross else "") + k.role, k.layer): parts.read(k) for k in keys}


def anchors_of(parts: Parts, numbers: NDArray[np.int64]) -> F64:
    """Embedding rows in the old order, as the residual stream gets them and the norms see them."""
    arch = parts.arch(parts.layout.main)
    table = parts.read(parts.embed_key())[numbers]
    for key in [k for k in parts.at if k.role == "embed_map" and k.param == "weight"]:
        table = table @ parts.read(key).T
    rows = canonical.center(table, arch)
    return unit(rows - rows.mean(axis=0))


def attention(parts: Parts, block: Block, arch: Arch, anchors: F64, gains: dict) -> dict[str, F64]:
    group = arch.heads // arch.kv_heads
    gain = canonical.find_gain(gains, block.stack, arch, "attn", block.layer or 0)
    out = gains.get((block.stack, "norm_attn_out", block.layer))
    folded = {role: canonical.fold(parts.read(block.key(role)), arch, gain) for role in "qkv"}
    for role in "qk":
        norm = gains.get((block.stack, f"norm_{role}", block.layer))
        folded[role] = canonical.fold_head_norm(folded[role], arch, norm)
    per_head = {role: anchors @ canonical.heads(rows, arch.head_dim).swapaxes(1, 2) for role, rows in folded.items()}
    o = canonical.heads(canonical.fold_writer(parts.read(block.key("o")), arch, out).T, arch.head_dim)
    read = np.repeat(per_head["v"], group, axis=0)
    at = f"{block.stack}.{block.layer}."
    return {
        at + "qk": unit((per_head["q"] @ np.repeat(per_head["k"], group, axis=0).swapaxes(1, 2)).sum(axis=0)),
        at + "vo": unit((read @ (anchors @ o.swapaxes(1, 2)).swapaxes(1, 2)).sum(axis=0)),
    }


def mlp(parts: Parts, block: Block, arch: Arch, anchors: F64, gains: dict) -> dict[str, F64]:
    gain = canonical.find_gain(gains, block.stack, arch, "mlp", block.layer or 0)
    out = gains.get((block.stack, "norm_mlp_out", block.layer))
    up = canonical.fold(parts.read(block.key("up")), arch, gain)
    down = canonical.fold_writer(parts.read(block.key("down")), arch, out)
    gate = canonical.fold(parts.read(block.key("gate")), arch, gain) if block.key("gate") in parts.at else up
    free = canonical.scale_free(gate, arch) @ anchors.T
    rows = canonical.unit_rows(up)
    found = {"ud": (up @ anchors.T).T @ (anchors @ down).T, "gg": free.T @ free, "gram": np.abs(rows @ rows.T).ravel()}
    bias = block.key("up", "bias")
    if bias in parts.at and parts.model_type != "gpt_oss":
        shift = gains_bias(parts, block, arch)
        folded = canonical.fold_bias(parts.read(bias), parts.read(block.key("up")), shift)
        found["bias"] = np.abs(folded) / np.sqrt(np.square(up).sum(axis=1))
    return found


def gains_bias(parts: Parts, block: Block, arch: Arch) -> F64 | None:
    """The bias of the norm that an MLP reads."""
    for role, layer in canonical.reader_norm(arch, "mlp", block.layer or 0):
        plain = role.removeprefix(canonical.CROSS)
        key = block.key(plain, "bias")._replace(layer=layer, expert=None, cross=plain != role)
        if key._replace(param="weight") in parts.at:
            return parts.read(key) if key in parts.at else None
    return None


def same_quantities(one: dict[str, F64], other: dict[str, F64], without: set[str]) -> None:
    assert one.keys() == other.keys() and one
    for name, values in one.items():
        if name.rsplit(".", 1)[1] not in without:
            assert np.abs(values - other[name]).max() < 1e-6, name


def test_canonical_quantities_tell_models_apart() -> None:
    for family in ("llama", "bert", "gpt2", "olmo2"):
        one, other = quantities_of(family), quantities(shrunk(family, seed=2), np.arange(VOCABULARY))
        assert min(np.abs(one[name] - other[name]).max() for name in one) > 1e-3
        for name in [n for n in one if n.endswith(("ud", "vo", "qk"))]:
            assert abs(float((one[name] * other[name]).sum())) < 0.5, name


# ---- the view by roles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", STORED)
def test_parts_are_what_the_fingerprint_reads(family: str) -> None:
    """The view that the disguises write through and canonical.read_rows agree on every part of every layout."""
    snapshot = shrunk(family, seed=1)
    parts, untouched = Parts(snapshot), Parts(snapshot)
    for key, (name, part) in parts.at.items():
        stored = snapshot.tensors[name]
        height = canonical.part_shape(stored.shape, part)[0]
        rows = canonical.read_rows(tensor_from_array(name, stored.astype(np.float32)), part, 0, height)
        value = parts.read(key)
        assert np.allclose(value.reshape(rows.shape), rows, atol=1e-5), key
        parts.write(key, 2 * value)
        assert np.array_equal(parts.read(key), 2 * value)
    assert all(np.array_equal(untouched.read(key), parts.read(key) / 2) for key in parts.at)


def test_the_snapshot_itself_is_never_changed() -> None:
    before = {name: tensor.copy() for name, tensor in model("gemma2").tensors.items()}
    for disguise in DISGUISES.values():
        disguise(model("gemma2"), SEED)
    assert all(np.array_equal(before[name], tensor) for name, tensor in model("gemma2").tensors.items())


def test_a_seed_gives_one_disguise() -> None:
    one, same, other = (disguises.everything(model("qwen2"), seed) for seed in (1, 1, 2))
    assert isinstance(one, Snapshot) and isinstance(same, Snapshot) and isinstance(other, Snapshot)
    assert all(np.array_equal(one.tensors[n], same.tensors[n]) for n in one.tensors)
    assert not np.array_equal(one.tensors["lm_head.weight"], other.tensors["lm_head.weight"])


@pytest.mark.parametrize("family", ["gemma", "gpt2", "bloom", "t5"])
def test_a_tied_head_that_is_stored_follows(family: str) -> None:
    stored = shrunk(family, seed=1, tied_copy=True)
    assert len(stored.tensors) > len(model(family).tensors)
    changed = disguises.everything(stored, SEED)
    assert isinstance(changed, Snapshot)
    assert np.allclose(answered(family, changed, renumbered(family)), answer(family), rtol=0, atol=1e-6)
    permuted = disguises.permute_residual(stored, SEED)
    assert isinstance(permuted, Snapshot) and Parts(permuted).tied()


# ---- number format, vocabulary, metadata ----------------------------------------------------------------------


def as64(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, F64]:
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def real(checkpoint: zoo.Checkpoint) -> Snapshot:
    return Snapshot("model", checkpoint.tensors, checkpoint.config, checkpoint.tokenizer or "")


@pytest.mark.parametrize("make", [zoo.llama, zoo.gpt2, zoo.bert, zoo.t5])
def test_tokens_keep_their_rows_and_special_tokens_their_numbers(make) -> None:  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    plain = real(make(1))
    changed = disguises.renumber_vocabulary(plain, SEED)
    before, after = Tokenizer.from_str(plain.tokenizer), Tokenizer.from_str(changed.tokenizer)
    one, other = before.get_vocab(), after.get_vocab()
    assert one.keys() == other.keys() and sum(one[t] != other[t] for t in one) > len(one) / 2
    special = {entry["content"] for entry in json.loads(plain.tokenizer)["added_tokens"]}
    assert all(one[token] == other[token] for token in special)
    text = "the state of the art was found in 1999."
    assert before.encode(text).tokens == after.encode(text).tokens
    numbers, key = renumbering(plain, SEED), Parts(plain).embed_key()
    table, moved = Parts(plain).read(key), Parts(changed).read(key)
    known = [token for token in one if one[token] < len(table)]
    assert len(known) > 400 and all(other[token] == numbers[one[token]] for token in known)
    assert all(np.array_equal(table[one[t]], moved[other[t]]) for t in known)


def test_int8_leaves_a_grid_and_little_error() -> None:
    plain = real(zoo.llama(1))
    rounded = disguises.int8(plain, SEED)
    assert isinstance(rounded, Snapshot)
    for name, tensor in rounded.tensors.items():
        if tensor.ndim == 2:
            assert len(np.unique(tensor[0])) <= 255
            assert np.abs(tensor - plain.tensors[name]).max() <= np.abs(plain.tensors[name]).max() / 250
        else:
            assert np.array_equal(tensor, plain.tensors[name])
    both = DISGUISES["all_int8"](plain, SEED)
    assert isinstance(both, Snapshot) and both.name == "model+all+int8"


def test_metadata() -> None:
    plain = real(zoo.llama(1))
    renamed = DISGUISES["rename_metadata"](plain, SEED)
    assert isinstance(renamed, Snapshot) and renamed.tokenizer == plain.tokenizer
    assert renamed.config["model_type"] != "llama" and renamed.config["hidden_size"] == plain.config["hidden_size"]
    assert np.array_equal(
        Forward(renamed).parts.read(Parts(plain).embed_key()), Parts(plain).read(Parts(plain).embed_key())
    )
    silent, bare = (DISGUISES[name](plain, SEED) for name in ("withhold_tokenizer", "withhold_config"))
    assert isinstance(silent, Snapshot) and silent.tokenizer == "" and silent.config == plain.config
    assert isinstance(bare, Snapshot) and (bare.tokenizer, bare.config) == ("", {})


def test_float32_models_stay_float32_and_near_their_answer() -> None:
    plain = real(zoo.qwen2(1))
    changed = disguises.everything(plain, SEED)
    assert isinstance(changed, Snapshot)
    assert {t.dtype for t in changed.tensors.values()} == {np.dtype(np.float32)}
    numbers = renumbering(plain, SEED)
    before, after = logits(plain, TOKENS), logits(changed, numbers[TOKENS])[:, numbers]
    assert np.abs(before - after).max() < 1e-3 * np.abs(before).max()
