"""A shared random start is told from descent by what was trained, or not told at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import prints
import pytest
import zoo
from trained_pairs import family, tied_family

from provindex.common.errors import IndexFormatError
from provindex.common.reasons import Code
from provindex.evidence import token_rows
from provindex.evidence.norm_alignment import gains_of_pair
from provindex.evidence.pairing import Pairing
from provindex.evidence.start import CANNOT_TELL, NOT_SHARED, SHARED, Start, shared_start
from provindex.evidence.token_rows import TokenRows
from provindex.fingerprint.rows import from_row, to_row
from provindex.report.words import texts
from provindex.verdict.pair import compare

EMBEDDING = "model.embed_tokens.weight"


def panel(checkpoint: zoo.Checkpoint) -> TokenRows:
    table = checkpoint.tensors[EMBEDDING]
    ids = token_rows.chosen_ids(len(table))
    return token_rows.token_rows(table[ids], ids)


def gains(a: zoo.Checkpoint, b: zoo.Checkpoint) -> float | None:
    """As a verdict has it; these models have too few gains for it to say anything, so that rows alone tell."""
    one, other = (prints.fingerprint(x) for x in (a, b))
    return gains_of_pair(Pairing(one, other, frozenset({"decoder"})))


def from_rows(a: zoo.Checkpoint, b: zoo.Checkpoint) -> Start:
    """The answer where branch sketches and neurons are at chance: rows and gains alone must tell."""
    cosines = [c for name, c in zoo.cosines(a, b).items() if "proj" in name]
    return shared_start(
        panel(a), panel(b), hidden_cosine=min(float(np.median(cosines)), 0.5), sketch=(0.01, 0.07), agreement=0.0,
        gains=gains(a, b),
    )  # fmt: skip


def test_the_same_start_trained_apart_is_shared() -> None:
    models = family(False)
    found = from_rows(models["base"], models["same start"])
    assert found.answer == SHARED and found.untouched >= 48
    assert found.position is not None and found.position < 0.45
    back = from_rows(models["same start"], models["base"])
    assert (back.answer, back.untouched, back.touched) == (found.answer, found.untouched, found.touched)
    assert back.position == pytest.approx(found.position)


def test_renumbered_tokens_are_not_a_shared_start() -> None:
    """Rows of other tokens have nothing in common, not even a start: a disguise, if the untouched ones stay."""
    models = family(False)
    a, b = panel(models["base"]), panel(models["finetune"])
    order = np.arange(len(b.ids))
    order[:-60] = np.random.default_rng(0).permutation(len(order) - 60)
    moved = TokenRows(b.ids, b.values[order], b.width)
    assert shared_start(a, moved, hidden_cosine=0.3, sketch=(0.0, 0.07), agreement=0.0, gains=0.0).answer == CANNOT_TELL


@pytest.mark.parametrize("child", ["finetune", "continued"])
def test_descendants_are_not_even_where_all_else_is_at_chance(child: str) -> None:
    models = family(False)
    found = from_rows(models["base"], models[child])
    assert found.answer == NOT_SHARED and found.position is not None and found.position > 0.9


@pytest.mark.parametrize(("one", "other"), [("base", "noise"), ("base", "stranger"), ("continued", "sibling")])
def test_noise_strangers_and_siblings_are_never_called_shared(one: str, other: str) -> None:
    models = family(False)
    assert from_rows(models[one], models[other]).answer == CANNOT_TELL


@pytest.mark.parametrize("other", ["same start", "continued", "noise"])
def test_with_a_tied_head_nothing_stays_untouched_and_nothing_is_said(other: str) -> None:
    models = family(True)
    found = from_rows(models["base"], models[other])
    assert found.answer == CANNOT_TELL and "head" in texts(found.reasons)[0]


def test_every_piece_against_is_enough_and_every_missing_one_is_named() -> None:
    models = family(False)
    a, b = panel(models["base"]), panel(models["same start"])

    def answer(cosine: float, sketch: tuple[float, float | None] | None, agreement: float | None) -> Start:
        return shared_start(a, b, hidden_cosine=cosine, sketch=sketch, agreement=agreement)

    assert answer(0.2, (0.01, 0.07), None).answer == SHARED
    for found in (answer(0.2, (0.5, 0.07), 0.0), answer(0.2, (0.0, 0.07), 0.4), answer(0.9, (0.0, 0.07), 0.0)):
        assert found.answer == NOT_SHARED and len(texts(found.reasons)) == 1
    for sketch, agreement in ((None, 0.0), ((0.01, None), 0.0), ((0.2, 0.07), 0.0), ((0.0, 0.07), 0.15)):
        open_ = answer(0.2, sketch, agreement)
        assert open_.answer == CANNOT_TELL and "chance level" in texts(open_.reasons)[0]
    assert shared_start(None, b, hidden_cosine=0.2, sketch=(0.0, 0.07), agreement=0.0).answer == CANNOT_TELL


def test_gains_that_were_trained_together_keep_the_answer_open() -> None:
    models = family(False)
    a, b = panel(models["base"]), panel(models["same start"])
    open_ = shared_start(a, b, hidden_cosine=0.2, sketch=(0.0, 0.07), agreement=0.0, gains=0.5)
    assert open_.answer == CANNOT_TELL and "0.50" in texts(open_.reasons)[-1]


def by_gains(gains: float, cosine: float = 0.6, sketch: float = 0.3) -> Start:
    """Of a pair without any row to look at."""
    return shared_start(None, None, hidden_cosine=cosine, sketch=(sketch, 0.07), agreement=0.02, gains=gains)


def test_gains_alone_tell_a_shared_start_from_descent() -> None:
    assert by_gains(0.2).answer == SHARED and "0.20" in texts(by_gains(0.2).reasons)[0]
    assert by_gains(0.7).answer == NOT_SHARED and "0.70" in texts(by_gains(0.7).reasons)[0]
    assert by_gains(0.42).answer == CANNOT_TELL
    for cosine, sketch in ((0.05, 0.3), (0.6, 0.6), (0.95, 0.3)):  # strangers; gains that were exchanged in a copy
        assert by_gains(0.1, cosine, sketch).answer == CANNOT_TELL


@pytest.mark.parametrize(("a", "b"), [("base", "twin"), ("twin", "child"), ("base", "child of the twin")])
def test_twins_with_a_tied_head_are_no_relatives(a: str, b: str) -> None:
    models = tied_family()
    found = compare(*(prints.fingerprint(models[name]) for name in (a, b)))
    assert (found.verdict, found.relation) == ("unrelated", "shared-init")


@pytest.mark.parametrize(("a", "b"), [("base", "child"), ("twin", "child of the twin")])
def test_children_with_a_tied_head_are_linked_without_a_doubt_about_their_start(a: str, b: str) -> None:
    models = tied_family()
    found = compare(*(prints.fingerprint(models[name]) for name in (a, b)))
    assert found.verdict == "linked" and found.relation in ("finetune", "continued")
    assert all(reason.code is not Code.START_NOT_EXCLUDED for reason in found.reasons)


def test_an_undecided_pair_is_related_and_says_so_first() -> None:
    """Gains that were exchanged without changing the function are unlike each other, and prove no shared start."""
    base = tied_family()["child of the twin"]
    rng, tensors = np.random.default_rng(0), dict(base.tensors)
    for name in [n for n in tensors if n.endswith("layernorm.weight")]:
        factor = np.exp(0.3 * rng.standard_normal(64)).astype(np.float32)
        tensors[name] = tensors[name] * factor
        layer = name.rsplit(".", 2)[0]
        readers = (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            if "input" in name
            else ("mlp.gate_proj", "mlp.up_proj")
        )
        for reader in readers:
            tensors[f"{layer}.{reader}.weight"] = tensors[f"{layer}.{reader}.weight"] / factor
    found = compare(prints.fingerprint(tied_family()["twin"]), prints.fingerprint(replace(base, tensors=tensors)))
    assert (found.verdict, found.relation) == ("linked", "related")
    assert found.reasons[0].code is Code.START_NOT_EXCLUDED


@pytest.mark.parametrize("vocabulary", [1, 300, 512, 513, 1500, 32_000, 50_257, 151_936, 256_000])
def test_chosen_ids_are_at_most_512_in_the_vocabulary_and_reach_its_end(vocabulary: int) -> None:
    ids = token_rows.chosen_ids(vocabulary)
    assert len(ids) <= 512 and ids[-1] == vocabulary - 1 and (np.diff(ids) > 0).all()
    assert ids[0] == 0 and len(ids) >= min(vocabulary, 270)


def test_vocabularies_of_nearly_one_size_meet_at_most_ids() -> None:
    for size, more in ((32_000, 32_001), (50_257, 50_304), (128_256, 128_264), (151_936, 152_064)):
        common = np.intersect1d(token_rows.chosen_ids(size), token_rows.chosen_ids(more))
        assert len(common) >= 300


def test_rows_that_are_zero_or_not_finite_are_left_out() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((40, 48)).astype(np.float32)
    broken = table * np.float32(0.5)
    broken[3], broken[4, 0], broken[5, 0] = 0.0, np.nan, np.inf
    ids = np.arange(40)
    found = token_rows.shared_rows(token_rows.token_rows(table, ids), token_rows.token_rows(broken, ids))
    assert found is not None and len(found.a) == 37 and found.untouched.all() and not found.told
    other = token_rows.token_rows(table[:, :40], ids)
    assert token_rows.shared_rows(token_rows.token_rows(table, ids), other) is None


def test_a_row_moved_by_a_thousandth_is_told_from_one_that_only_shrank() -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((64, 64)).astype(np.float32)
    moved = table * np.float32(0.9)
    moved[:32] += (3e-3 * rng.standard_normal((32, 64))).astype(np.float32)
    ids = np.arange(64)
    found = token_rows.shared_rows(token_rows.token_rows(table, ids), token_rows.token_rows(moved, ids))
    assert found is not None and not found.untouched[:32].any() and found.untouched[32:].all()


def test_a_fingerprint_keeps_rows_bit_for_bit_and_refuses_damaged_ones() -> None:
    model = zoo.llama(4, hidden=48)
    row = to_row(prints.fingerprint(model))
    kept = from_row(row).token_rows
    assert kept is not None and kept.width == 48 and kept.values.shape == (len(kept.ids), 32)
    assert (kept.values == model.tensors[EMBEDDING][kept.ids][:, token_rows.coordinates(48)]).all()
    for damage in ({"token_row_ids": row["token_row_ids"][::-1]}, {"token_rows": row["token_rows"][1:]},
                   {"token_row_width": 0}, {"token_row_ids": np.arange(600, dtype=np.int32)}):  # fmt: skip
        with pytest.raises(IndexFormatError):
            from_row(row | damage)
