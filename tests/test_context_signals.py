"""MFI, TFV, VOA and the anchors: hand-computed toys, invariances, self-scores, and what makes them absent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_files as made
from hypothesis import given, settings
from hypothesis import strategies as st

from provindex.common.tokens import Tokenizer
from provindex.report.words import joined
from provindex.roles import config_defaults
from provindex.signals import anchors, mfi, scripts, tfv, voa

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 400,
    "max_position_embeddings": 512, "rope_theta": 10000.0,
}  # fmt: skip


def facts(vocab: dict[str, int], merges: tuple[str, ...] = (), digest: str = "t", **special: int) -> Tokenizer:
    """A tokenizer's facts, by hand."""
    ids = {key: special.get(key) for key in ("bos", "eos", "pad", "unk", "mask", "cls", "sep")}
    return Tokenizer("BPE", "GPT2Tokenizer", vocab, merges, ids, 0, 0, digest)


TOY = facts({"a": 0, "b": 1, "ab": 2, "Ġab": 3}, ("a b", "Ġ ab"), eos=0)


@cache
def row(**changes: Any) -> mfi.MfiFeatures:
    return mfi.extract(LLAMA | changes, TOY)


# MFI


def test_mfi_fields_of_a_written_config() -> None:
    features = row()
    assert (features.attention_style, features.gqa_ratio, features.norm_type) == ("GQA", 4.0, "RMSNorm")
    assert (features.hidden_act, features.head_dim, features.attention_bias) == ("silu", 8, False)  # class defaults
    assert (features.rope_theta, features.pos_encoding) == (None, "absolute")  # as the peer sees it
    assert features.rope_scaling == {"rope_theta": 10000.0, "rope_type": "default"}
    assert (features.bos_token_id, features.eos_token_id, features.token_id_signature) == (None, 0, "bos=None|eos=0")


def test_mfi_hashes_are_the_peers() -> None:
    """Both hashes of bert-base-uncased as the peer publishes them, from its published fields."""
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    digest = "9114256b104cca80e04367526f03f46aa3c443c2ed174904142a73bbf13b9fbb"
    features = mfi.extract(config, facts({"a": 0}, digest=digest))
    assert features.arch_hash == "3992f4eb5feeb354e368032d6e4f3c34a8b816a83935e4b2600dc15b549579c5"
    assert features.family_hash == "e49be812c494557b8ad1065c0bd2f71d9fd22af3094da513a1dbf2ffc50dbe83"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "t5", "d_model": 64, "num_layers": 3, "d_ff": 100}, (64, 3, 100, "MHA", "LayerNorm")),
        ({"model_type": "gpt2", "n_embd": 48, "n_layer": 2}, (48, 2, 0, "MHA", "LayerNorm")),
        ({"model_type": "distilbert", "dim": 32, "n_layers": 2, "hidden_dim": 77}, (32, 2, 77, "MHA", "unknown")),
        ({"model_type": "mistral", "num_key_value_heads": 1}, (4096, 32, 14336, "MQA", "RMSNorm")),
        ({"model_type": "llama", "num_key_value_heads": None}, (4096, 32, 11008, "MHA", "RMSNorm")),
        ({"model_type": "mamba", "hidden_size": 96}, (96, 32, 192, "MHA", "LayerNorm")),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 96}}, (96, 26, 9216, "GQA", "RMSNorm")),
        ({"model_type": "unheard", "hidden_size": 8, "n_layers": 1}, (8, 0, 0, "MHA", "unknown")),
    ],
)
def test_mfi_reads_configs_as_transformers_does(config: dict[str, Any], expected: tuple[Any, ...]) -> None:
    got = mfi.extract(config, None)
    found = (got.hidden_size, got.num_hidden_layers, got.intermediate_size, got.attention_style, got.norm_type)
    assert found == expected


def test_mfi_tiers() -> None:
    assert mfi.compare(row(), row()).tier == 1
    wider = row(intermediate_size=256)
    second = mfi.compare(row(), wider)
    assert (second.tier, second.score.value) == (2, 0.9)
    deeper = row(num_hidden_layers=8)  # the same family, another depth
    third = mfi.compare(row(), deeper)
    assert third.tier == 3
    assert third.score.value == round((12.4 - 1.5) / 12.4, 4)  # everything but the depth, of a total of 12.4
    assert third.parts["num_hidden_layers"] == 0.0


def test_mfi_tier_three_by_hand() -> None:
    a = row()
    b = mfi.extract(
        LLAMA | {"hidden_size": 68, "vocab_size": 800, "rope_theta": 40000.0, "num_key_value_heads": 8}, facts({"a": 0})
    )
    got = mfi.compare(a, b)
    ids, vocab, style, theta = 0.5, 0.5, 0.0, 0.25  # bos agrees, eos does not; 64 and 68 are of one size
    expected = (2.0 * ids + 1.8 + 1.5 + 1.5 + 1.5 * vocab + 1.5 * style + 1.2 * theta + 0.5 + 0.4 + 0.4 + 0.1) / 12.4
    assert (got.tier, got.score.value, got.score.n) == (3, round(expected, 4), 11)


ROPE = {
    "top level": {"rope_theta": 5e5},
    "rope_parameters": {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    "rope_scaling": {"rope_theta": None, "rope_scaling": {"rope_theta": 5e5, "rope_type": "default"}},
    "by layer type": {
        "rope_theta": None,
        "rope_parameters": {
            "full_attention": {"rope_theta": 5e5, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    },
}


@pytest.mark.parametrize("written", ROPE.values(), ids=ROPE)
def test_mfi_finds_the_rotary_base_everywhere(written: dict[str, Any]) -> None:
    features = mfi.extract(LLAMA | written, TOY)
    assert mfi.rotary(features) == (5e5, "default")
    other = mfi.extract(LLAMA | ROPE["top level"] | {"num_hidden_layers": 9}, TOY)
    assert mfi.compare(features, other).parts["rope_theta"] == 1.0


def test_mfi_family_sees_what_the_peer_overlooks() -> None:
    """The peer's family hash is blind to the base and the type that transformers 5 keeps; ours is not."""
    a, b = row(), row(rope_theta=1e6, max_position_embeddings=4096)
    assert a.family_hash == b.family_hash
    assert mfi.compare(a, b, peer_exact=True).tier == 2
    assert mfi.compare(a, b).tier == 3
    scaled = row.__wrapped__(rope_scaling={"rope_type": "linear", "factor": 2.0}, max_position_embeddings=4096)
    assert mfi.compare(a, scaled, peer_exact=True).tier == 2
    assert mfi.compare(a, scaled).tier == 3


def test_mfi_rows_of_both_transformers_versions_are_one_family() -> None:
    new = row(max_position_embeddings=4096)
    old = replace(row(), rope_theta=10000.0, rope_scaling=None, pos_encoding="RoPE", family_hash="older")
    assert mfi.compare(new, old).tier == 2
    assert mfi.compare(new, old, peer_exact=True).tier == 3


def test_mfi_without_a_tokenizer_leaves_its_part_out() -> None:
    bare = mfi.extract(LLAMA | {"num_hidden_layers": 8}, None)
    got = mfi.compare(bare, bare)
    assert got.tier == 1
    got = mfi.compare(bare, row())
    assert got.parts["token_ids"] is None
    assert got.score.n == 10
    twin = replace(bare, arch_hash="other")
    assert mfi.compare(bare, twin).tier == 3  # unknown tokenizers are not one tokenizer


def test_mfi_absent() -> None:
    for a, b, side in ((None, row(), "first"), (row(), mfi.extract({}, TOY), "second")):
        got = mfi.compare(a, b)
        assert got.score.value is None
        assert side in str(joined(got.score.reasons))
        assert got.tier is None


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": 7, "hidden_size": "wide", "architectures": "x", "rope_theta": "nan"},
        {"model_type": "llama", "hidden_size": True, "num_attention_heads": -3, "rope_scaling": [1]},
        {"model_type": "llama", "rope_theta": float("inf"), "rope_parameters": {"full_attention": 3}},
        {"model_type": "gemma3", "text_config": 5},
        {"model_type": "llama", "hidden_size": 10**400, "num_key_value_heads": 0, "rope_theta": 10**400},
        {"model_type": "llama", "rope_parameters": {"full_attention": {"rope_theta": []}, "x": {}}},
    ],
)
def test_mfi_hostile_configs(config: dict[str, Any]) -> None:
    features = mfi.extract(config, None)
    json.dumps(features.to_json())
    for other in (features, row()):
        value = mfi.compare(features, other).score.value
        assert value is None or 0.0 <= value <= 1.0


def test_mfi_json() -> None:
    features = row()
    assert mfi.MfiFeatures.from_json(json.loads(json.dumps(features.to_json()))) == features
    assert len(features.to_json()) == 26


sizes = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["llama", "qwen2", "bert", "gpt2", "unheard"]),
        "hidden_size": st.integers(1, 9000),
        "num_hidden_layers": st.integers(1, 90),
        "num_key_value_heads": st.sampled_from([None, 1, 4, 8]),
        "vocab_size": st.integers(1, 300_000),
        "rope_theta": st.sampled_from([None, 1e4, 5e5]),
    }
)


@settings(max_examples=100, deadline=None)
@given(sizes, sizes)
def test_mfi_is_symmetric_and_in_range(a: dict[str, Any], b: dict[str, Any]) -> None:
    left, right = mfi.extract(LLAMA | a, TOY), mfi.extract(LLAMA | b, TOY)
    for exact in (False, True):
        got, back = mfi.compare(left, right, peer_exact=exact), mfi.compare(right, left, peer_exact=exact)
        assert (got.score, got.tier) == (back.score, back.tier)
        assert 0.0 <= got.score.value <= 1.0
    assert mfi.compare(left, left).score.value == 1.0


def test_config_defaults_cover_the_models_of_the_index() -> None:
    types = config_defaults.table()["types"]
    known = (
        "llama mistral mixtral qwen2 qwen2_moe qwen3 gemma gemma2 gemma3 phi phi3 gpt2 gpt_neox gptj falcon bloom opt"
    )
    known += (
        " starcoder2 stablelm olmo cohere mpt deepseek_v2 deepseek_v3 bert roberta xlm-roberta distilbert mpnet albert"
    )
    known += " electra deberta-v2 modernbert t5 mt5 bart marian m2m_100 whisper clip"
    assert set(known.split()) <= set(types)
    text = (Path(config_defaults.__file__).parent / "config_defaults.json").read_text(encoding="ascii")
    assert len(text) < 60_000
    for kind in types:  # every row can be read, and says the same through `extract`
        features = mfi.extract({"model_type": kind}, None)
        assert features.model_type == kind


# TFV


def test_tfv_features_by_hand() -> None:
    got = tfv.extract(TOY)
    assert (got.vocab_size, got.num_merges, got.first_5_merges) == (4, 2, ("a b", "Ġ ab"))
    assert (got.avg_token_length, got.max_token_length, got.pct_single_char) == (1.75, 3, 0.5)
    assert (got.pct_whitespace_prefix, got.pct_byte_tokens, got.script_distribution) == (0.25, 0.0, {"Latin": 1.0})
    assert got.merge_rule_hash == hashlib.sha256("a b\nĠ ab".encode()).hexdigest() == got.all_merges_hash


def test_tfv_parts_by_hand() -> None:
    a = tfv.extract(TOY)
    b = tfv.extract(facts({"a": 0, "<0x0A>": 1}, ("a b",), digest="u", eos=0, pad=1))
    got = tfv.parts(a, b)
    assert got["vocab_size"] == 0.5
    assert got["num_merges"] == 0.5
    assert got["avg_token_length"] == pytest.approx(1.75 / 3.5)
    assert got["whitespace_prefix"] == 0.75
    assert got["byte_tokens"] == got["first_merges"] == got["all_merges"] == 0.0
    assert got["special_tokens"] == 1.0  # pad is on one side only, so it is left out; unk and mask on neither
    assert got["script_distribution"] == pytest.approx(1.0)
    expected = 0.10 + 0.05 + 0.08 + 0.035 + 0.0375 + 0.10 + 0.025 + 0.10
    assert tfv.compare(a, b).value == round(expected, 4)


def test_tfv_largest_self_score() -> None:
    whole = tfv.extract(TOY)
    without = tfv.extract(facts({"a": 0, "b": 1}))
    assert (tfv.largest_self_score(whole), tfv.largest_self_score(without)) == (1.0, 0.925)
    assert tfv.compare(without, without).value == 0.925


def test_tfv_class_names_across_versions() -> None:
    a = tfv.extract(TOY)
    for name, part in (("GPT2TokenizerFast", 1.0), ("TokenizersBackend", 0.0)):
        assert tfv.parts(a, replace(a, tokenizer_class=name))["tokenizer_class"] == part
    generic = replace(a, tokenizer_class="TokenizersBackend")
    assert tfv.compare(generic, replace(a, tokenizer_class="PreTrainedTokenizerFast")).value == 1.0


def test_tfv_json_and_peer_rows() -> None:
    features = tfv.extract(TOY)
    stored = json.loads(json.dumps(features.to_json()))
    assert tfv.TfvFeatures.from_json(stored) == features
    del stored["all_merges_hash"]  # a row of the peer's data base
    peer = tfv.TfvFeatures.from_json(stored)
    assert tfv.compare(features, peer).value == 0.85  # unknown merges are not equal merges


def test_tfv_absent() -> None:
    features = tfv.extract(TOY)
    assert "first" in str(joined(tfv.compare(None, features).reasons))
    assert "second" in str(joined(tfv.compare(features, None).reasons))


vocabularies = st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 99), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(vocabularies, vocabularies, st.lists(st.sampled_from(["a b", "c d", "e f"]), max_size=3, unique=True))
def test_tfv_is_symmetric_and_in_range(a: dict[str, int], b: dict[str, int], merges: list[str]) -> None:
    left, right = tfv.extract(facts(a, tuple(merges), eos=1)), tfv.extract(facts(b, pad=2))
    got = tfv.compare(left, right)
    assert got == tfv.compare(right, left)
    assert 0.0 <= got.value <= 1.0
    assert tfv.compare(left, left).value == tfv.largest_self_score(left)
    shuffled = dict(reversed(a.items()))
    assert tfv.extract(facts(shuffled, tuple(merges), eos=1)) == left


def test_scripts() -> None:
    assert scripts.shares(["ab1!", "язык", "中文", "한"]) == {"Cyrillic": 0.4444, "CJK": 0.3333, "Latin": 0.2222}
    assert scripts.shares(["１２3", "  "]) == {}
    assert [scripts.script(char) for char in "éعकΩ"] == ["Latin", "Arabic", "Devanagari", "Other"]


# VOA


def test_voa_exact() -> None:
    got = voa.compare_vocabularies(["a", "b", "c"], {"b", "c", "d", "e"})
    assert (got.value, got.n) == (0.4, 5)
    assert voa.compare_vocabularies([], ["a"]).value is None


def test_voa_sketch_is_pinned() -> None:
    """The hash of a token, little-endian, on every machine; empty places hold the largest number."""
    got = voa.sketch(["b", "a", "a"])
    expected = sorted(int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "little") for t in (b"a", b"b"))
    assert got[:2].tolist() == expected
    assert (got.shape, got.dtype, got[2:].min()) == ((1024,), np.uint64, voa.EMPTY)


def test_voa_sketch_ignores_order_and_is_exact_when_small() -> None:
    a = [f"t{i}" for i in range(500)]
    b = [f"t{i}" for i in range(250, 700)]
    assert np.array_equal(voa.sketch(a), voa.sketch(reversed(a)))
    got = voa.compare(voa.sketch(a), 500, voa.sketch(b), 450)
    assert (got.value, got.n) == (voa.compare_vocabularies(a, b).value, 700)
    assert voa.containment(voa.sketch(a), 500, voa.sketch(b), 450).value == 0.5


def test_voa_estimate_stays_within_its_error() -> None:
    """Jaccard indices from 0 to 1 over 20,000 tokens, 40 pairs: no error above 4 standard errors, and no bias."""
    whole = [f"token {i}" for i in range(20_000)]
    errors = []
    for step in range(40):
        shared = 250 * step
        a, b = whole[:10_000], whole[10_000 - shared : 20_000 - shared]
        exact = shared / (20_000 - shared)
        got = voa.compare(voa.sketch(a), len(a), voa.sketch(b), len(b)).value
        spread = max((exact * (1 - exact) / 1024) ** 0.5, 1e-4)
        errors.append((got - exact) / spread)
    assert max(abs(error) for error in errors) < 4.0
    assert abs(np.mean(errors)) < 1.0  # 40 overlapping pairs: their errors are correlated


def test_voa_containment_of_a_pruned_vocabulary() -> None:
    whole = [f"token {i}" for i in range(50_000)]
    kept = whole[::5]
    args = voa.sketch(kept), len(kept), voa.sketch(whole), len(whole)
    assert voa.compare(*args).value == pytest.approx(0.2, abs=0.05)
    assert voa.containment(*args).value > 0.75
    assert voa.containment(*args[2:], *args[:2]).value == pytest.approx(0.2, abs=0.05)
    same = voa.compare(*args[:2], *args[:2])
    assert (same.value, same.n) == (1.0, 1024)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(max_size=4), min_size=1, max_size=40), st.sets(st.text(max_size=4), min_size=1, max_size=40))
def test_voa_sketches_of_small_vocabularies_equal_the_exact_value(a: set[str], b: set[str]) -> None:
    exact = voa.compare_vocabularies(a, b)
    assert voa.compare(voa.sketch(a), len(a), voa.sketch(b), len(b)) == exact
    inside = voa.containment(voa.sketch(a), len(a), voa.sketch(b), len(b)).value
    assert inside == pytest.approx(len(a & b) / len(a), abs=1e-4)


def test_voa_absent() -> None:
    some = voa.sketch(["a"])
    assert "first" in str(joined(voa.compare(None, 0, some, 1).reasons))
    assert "second" in str(joined(voa.containment(some, 1, None, 0).reasons))


# Anchors


def test_anchors_without_a_tokenizer_are_the_legacy_generators() -> None:
    expected = np.random.RandomState(42).choice(list(range(1000)), size=64, replace=False).tolist()
    assert anchors.peer_anchors(None, None, 1000) == expected
    assert sorted(anchors.peer_anchors(None, None, 10)) == list(range(10))
    assert anchors.peer_anchors(None, None, 0) == []
    assert max(anchors.peer_anchors(None, None, 10**9)) < 50_000


def test_anchors_of_a_latin_vocabulary() -> None:
    """16 marks, then all 24 Latin words (the budget of 48 is more than there are), then 24 drawn at random."""
    ids = {text: 100 + i for i, text in enumerate((*anchors.MARKS, *anchors.WORDS["Latin"]))}
    got = anchors.peer_anchors(ids.get, list(ids), 200)
    assert got[:40] == list(range(100, 140))
    pool = [row for row in range(200) if row not in got[:40]]
    assert got[40:] == np.random.RandomState(42).choice(pool, size=24, replace=False).tolist()


def test_anchors_share_the_budget_among_scripts() -> None:
    """A quarter Cyrillic, three quarters Latin: budget 48, so 12 (of which 8 exist) and 36 (24 exist), larger first."""
    vocabulary = ["abc", "def", "ghi", "где"]
    texts = [*anchors.MARKS, *anchors.WORDS["Latin"], *anchors.WORDS["Cyrillic"]]
    ids = {text: index for index, text in enumerate(texts)}
    assert anchors.peer_anchors(ids.get, vocabulary, 500)[:48] == list(range(48))


def test_anchors_skip_repeats_and_ids_outside() -> None:
    ids = {"0": 5, "1": 5, "2": 900, "3": -1, "4": 7}
    got = anchors.peer_anchors(ids.get, ["a"], 100)
    assert got[:2] == [5, 7]
    assert len(got) == len(set(got)) == 64


@settings(max_examples=50, deadline=None)
@given(vocabularies, st.integers(0, 300))
def test_anchors_are_distinct_rows(vocab: dict[str, int], rows: int) -> None:
    got = anchors.peer_anchors(vocab.get, vocab, rows)
    assert len(got) == len(set(got)) == min(64, rows)
    assert all(0 <= index < rows for index in got)
    assert got == anchors.peer_anchors(vocab.get, dict(reversed(vocab.items())), rows)


def test_signals_of_real_tokenizers(tmp_path: Path) -> None:
    """One vocabulary in two layouts is one to TFV, VOA and the anchors; another one is not."""
    from provindex.models.tokenizer import read_tokenizer

    made.write_tokenizer(tmp_path / "a", made.byte_bpe())
    made.write_vocab_and_merges(tmp_path / "b", made.byte_bpe())
    made.write_tokenizer(tmp_path / "c", made.wordpiece())
    a, b, c = (read_tokenizer(made.files(tmp_path / name), {"model_type": "gpt2"}) for name in "abc")
    assert tfv.compare(tfv.extract(a), tfv.extract(b)).value == 1.0
    assert np.array_equal(voa.sketch(a.vocab), voa.sketch(b.vocab))
    rows = len(a.vocab)
    assert anchors.peer_anchors(a.first_id, a.vocab, rows) == anchors.peer_anchors(b.first_id, b.vocab, rows)
    assert tfv.compare(tfv.extract(a), tfv.extract(c)).value < 0.7
    assert voa.compare_vocabularies(a.vocab, c.vocab).value < 0.5
