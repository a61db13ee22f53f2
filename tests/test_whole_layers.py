"""E7 and E8: all neurons of two layers, by their signs at the anchors and by their invariants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint

import provindex as pv
from build_index.zoo import attacks
from build_index.zoo.disguises import disguise
from build_index.zoo.snapshot import Snapshot
from provindex import api
from provindex.common.errors import IndexFormatError
from provindex.common.score import Outcome
from provindex.common.threads import one_blas_thread
from provindex.evidence import neuron_invariants, neuron_signs, whole_layers
from provindex.evidence.aligned import turns
from provindex.evidence.pairing import Pairing
from provindex.evidence.whole_layers import WholeLayers, invariants, packed
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.index.answer import Match
from provindex.index.collection import DEEPER, Index, _to_read_deeper, calibration_of
from provindex.verdict.pair import LEAST_AGREEMENT, compare

F64 = NDArray[np.float64]
WIDTH, NEURONS, ANCHORS = 96, 256, 64


@pytest.fixture(autouse=True, scope="module")
def small_matrices() -> Iterator[None]:
    with one_blas_thread():
        yield


# ---- arrays -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mlp:
    """Rows of gate (empty without one), up and down, (n, d) each, and what the anchors are in their basis, (64, d)."""

    parts: tuple[F64, ...]
    anchors: F64


def mlp(seed: int, parts: int = 3, n: int = NEURONS) -> Mlp:
    """Neurons of different lengths whose parts lean towards each other by different amounts, as trained ones do."""
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((n, WIDTH))
    gate = rng.standard_normal((n, WIDTH)) + 0.4 * rng.standard_normal((n, 1)) * up
    down = rng.standard_normal((n, WIDTH)) + 0.5 * rng.standard_normal((n, 1)) * up + 0.2 * gate
    lengths = np.exp(0.3 * rng.standard_normal((3, n, 1)))
    made = tuple(scale * part for scale, part in zip(lengths, (gate, up, down), strict=True))
    anchors = np.random.default_rng(1234).standard_normal((ANCHORS, WIDTH))
    return Mlp(made[3 - parts :], anchors)


def panel(*layers: Mlp) -> WholeLayers:
    words, numbers = [], []
    for one in layers:
        words.append(packed(np.stack([part @ one.anchors.T for part in one.parts], axis=1)))
        squares = np.stack([(part * part).sum(axis=1) for part in one.parts], axis=1)
        pairs = [(i, j) for i in range(len(one.parts)) for j in range(i + 1, len(one.parts))]
        products = np.stack([(one.parts[i] * one.parts[j]).sum(axis=1) for i, j in pairs], axis=1)
        numbers.append(invariants(squares, products))
    keys = tuple(("decoder", i) for i in range(len(layers)))
    heights = np.array([len(n) for n in numbers], np.int32)
    return WholeLayers(keys, heights, np.concatenate(words), None, np.concatenate(numbers))


def run(test: Any, a: WholeLayers, b: WholeLayers) -> Outcome:
    """A test on two panels without any sketch."""

    def side(whole: WholeLayers) -> Any:
        return SimpleNamespace(value=lambda name: whole, sketches=None, sketches_by_id=None)

    outcome = test.run(Pairing(side(a), side(b), frozenset({"decoder"})))
    assert isinstance(outcome, Outcome)
    return outcome


def disguised(one: Mlp, seed: int = 9) -> Mlp:
    """The same neurons in another basis, order and scale, up and down negated together."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    order = rng.permutation(len(one.parts[0]))
    scale = np.exp(rng.standard_normal((len(order), 1))) * rng.choice([-1.0, 1.0], (len(order), 1))
    *gate, up, down = (part[order] @ basis for part in one.parts)
    up, down = (up * scale, down / scale) if gate else (up, down)
    return Mlp((*gate, up, down), one.anchors @ basis)


def noisy(one: Mlp, level: float, seed: int = 4) -> Mlp:
    rng = np.random.default_rng(seed)
    return Mlp(tuple(part + level * part.std() * rng.standard_normal(part.shape) for part in one.parts), one.anchors)


def with_decoys(one: Mlp, count: int, seed: int = 5) -> Mlp:
    rng = np.random.default_rng(seed)
    *readers, down = (8 * rng.standard_normal((count, WIDTH)) for _ in one.parts)
    added = (*readers, 1e-4 * down)
    return Mlp(tuple(np.concatenate([p, q]) for p, q in zip(one.parts, added, strict=True)), one.anchors)


def split(one: Mlp, times: int, level: float = 0.05) -> Mlp:
    wide = Mlp(tuple(np.repeat(part, times, axis=0) for part in one.parts), one.anchors)
    return noisy(wide, level)


def some_of(one: Mlp, share: float) -> Mlp:
    kept = np.random.default_rng(6).permutation(len(one.parts[0]))[: int(share * len(one.parts[0]))]
    return Mlp(tuple(part[kept] for part in one.parts), one.anchors)


CHANGES: dict[str, Callable[[Mlp], Mlp]] = {
    "as it is": lambda m: m,
    "noise": lambda m: noisy(m, 0.2),
    "decoys": lambda m: with_decoys(m, 2 * NEURONS),
    "some decoys": lambda m: with_decoys(m, NEURONS // 16),
    "split": lambda m: split(m, 4),
    "a quarter of them": lambda m: some_of(m, 0.25),
}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_neurons_are_found_again_by_their_signs(change: str, parts: int) -> None:
    one = [mlp(seed, parts) for seed in (1, 2)]
    other = panel(*(disguised(CHANGES[change](m)) for m in one))
    there, back = (run(neuron_signs.TEST, *both) for both in ((panel(*one), other), (other, panel(*one))))
    assert there.value is not None and there.value > (0.5 if change != "split" else LEAST_AGREEMENT)
    assert (
        there.log10_p is not None and there.log10_p < -15 and (back.value, back.log10_p) == (there.value, there.log10_p)
    )


@pytest.mark.parametrize("parts", [2, 3])
def test_strangers_are_not(parts: int) -> None:
    panels = [panel(mlp(10 + 2 * i, parts), mlp(11 + 2 * i, parts)) for i in range(12)]
    for test in (neuron_signs.TEST, neuron_invariants.TEST):
        found = [run(test, a, b) for i, a in enumerate(panels) for b in panels[:i]]
        assert max(o.value or 0.0 for o in found) < (0.06 if test is neuron_signs.TEST else 0.3)
        p = np.array([o.log10_p or 0.0 for o in found])
        for level in (0.05, 0.01):
            assert (p <= np.log10(level)).sum() <= level * len(p) + 3.3 * np.sqrt(level * len(p))


@pytest.mark.parametrize(
    "tie",
    [
        lambda m: (m.parts[0], m.parts[1], m.parts[1]),
        lambda m: (m.parts[1], m.parts[1], m.parts[2]),
        lambda m: (m.parts[1], m.parts[1], m.parts[1]),
    ],
    ids=["down is up transposed", "gate is up", "all one"],
)
def test_neurons_with_equal_parts_link_no_strangers_and_clear_none(tie: Callable[[Mlp], tuple[F64, ...]]) -> None:
    a, b = (panel(replace(m, parts=tie(m))) for m in (mlp(1), mlp(2)))
    found = run(neuron_signs.TEST, a, b)
    assert found.log10_p is not None and found.log10_p > -3
    if tie(mlp(1))[0] is tie(mlp(1))[2]:
        assert found.value == 1.0 and found.smallest is None, "every matching is the same one"


def test_a_direction_that_all_neurons_share_links_nobody() -> None:
    """Without the rotations the in-degrees alone would make of it a link."""
    lean = 3 * np.random.default_rng(0).standard_normal(WIDTH)
    pairs = [
        tuple(panel(replace(m, parts=tuple(p + lean for p in m.parts))) for m in (mlp(i), mlp(50 + i)))
        for i in range(8)
    ]
    assert min(run(neuron_signs.TEST, a, b).log10_p or 0.0 for a, b in pairs) > -4


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(("change", "least"), [("as it is", 0.95), ("noise", 0.15), ("some decoys", 0.3)])
def test_invariants_need_no_anchors(change: str, least: float, parts: int) -> None:
    one = [mlp(seed, parts) for seed in (1, 2)]
    found = run(neuron_invariants.TEST, panel(*one), panel(*(disguised(CHANGES[change](m)) for m in one)))
    assert found.value is not None and found.value > least and found.log10_p is not None and found.log10_p < -6


def test_what_the_matching_numbers_predict_is_no_evidence() -> None:
    """Strangers in which long neurons lean more: matched by length, their angles agree."""

    def leaning(seed: int) -> Mlp:
        rng = np.random.default_rng(seed)
        size = np.exp(0.5 * rng.standard_normal((2 * NEURONS, 1)))
        up = rng.standard_normal((2 * NEURONS, WIDTH))
        down = rng.standard_normal(up.shape) + np.log(size) * up
        gate = rng.standard_normal(up.shape) + 0.3 * up + np.log(size) * down
        return Mlp((size * gate, size * up, down), mlp(0).anchors)

    found = [run(neuron_invariants.TEST, panel(leaning(i)), panel(leaning(70 + i))) for i in range(12)]
    assert min(o.log10_p or 0.0 for o in found) > -2.5


def test_words_and_signs() -> None:
    values = np.random.default_rng(0).standard_normal((7, 3, 64))
    assert packed(values)[2, 1] == sum(1 << i for i in range(64) if values[2, 1, i] > 0)
    for order, own in turns():
        turned = neuron_signs.turned(packed(values).T, order, own)
        assert (turned == packed(values[..., order] * own).T).all()


@pytest.mark.parametrize("parts", [2, 3])
def test_most_neurons_are_ruled_out_and_the_count_stays(parts: int) -> None:
    """Equal words on both sides, negatives, noise, and many that are alike: counted as by looking at all of them."""
    rng = np.random.default_rng(parts)
    values = rng.standard_normal((700, parts, 64)) + 1.5 * rng.standard_normal((1, parts, 64))
    noisy = values + rng.uniform(0, 3, (700, 1, 1)) * rng.standard_normal(values.shape)
    noisy[::3, -1] *= -1
    a, b = packed(values).T.copy(), packed(noisy[rng.permutation(700)]).T.copy()
    count, n, expected = neuron_signs.found_again(a, b, 500)
    assert 100 < count < n == 500 and expected > 0
    assert neuron_signs.count_again(a[:, whole_layers.picked(700, 500)], b) == count
    signs = [np.where(np.unpackbits(w[..., None].view(np.uint8), axis=-1, bitorder="little"), 1, -1) for w in (a, b)]
    scores = [x[whole_layers.picked(700, 500)] @ y.T for x, y in zip(*signs, strict=True)]
    best = np.stack([(s if parts == 3 and not i else abs(s)).argmax(axis=1) for i, s in enumerate(scores)])
    assert np.unique(best[0][(best == best[0]).all(axis=0)]).size == count


def test_the_smallest_of_a_row_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    points, asked = rng.standard_normal((900, 3)), rng.standard_normal((40, 3))
    apart = np.square(asked[:, None] - points).sum(axis=2)
    apart[3, 17] = np.inf
    found = neuron_invariants._smallest(apart, 50)
    assert (np.sort(found, axis=1) == np.sort(np.argsort(apart, axis=1)[:, :50], axis=1)).all()
    alike = np.zeros((2, 300))
    assert neuron_invariants._smallest(alike, 7).shape == (2, 7)


def test_a_zero_part_has_no_numbers() -> None:
    numbers = invariants(np.array([[1.0, 4.0, 0.0], [1.0, 4.0, 9.0]]), np.array([[0.5, 0.0, 0.0], [-0.5, 0.6, 1.2]]))
    assert np.isnan(numbers[0]).all()
    np.testing.assert_allclose(numbers[1], [0.0, np.log(6.0), 0.25, 0.2, -0.2], atol=1e-3)


# ---- models -----------------------------------------------------------------------------------------------------


def test_two_layers_of_each_stack_are_kept_of_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tall = zoo.llama(1, layers=9)
    whole = fingerprint(tall).value("whole_layers")
    assert [layer for _, layer in whole.keys] == list(range(9))
    monkeypatch.setattr(whole_layers, "WHOLE", 100)
    few = fingerprint(tall).value("whole_layers")
    assert [layer for _, layer in few.keys] == [3, 6]
    at = whole.places["decoder", 6]
    assert (few.by_string[few.places["decoder", 6]] == whole.by_string[at]).all()
    again = from_row(to_row(fingerprint(tall))).value("whole_layers")
    assert again.keys == few.keys and (again.numbers == few.numbers).all() and (again.by_id == few.by_id).all()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("whole_parts", 4), ("whole_heights", np.array([1], np.int32)), ("whole_signs", np.zeros(5, np.uint64)),
        ("whole_numbers", np.zeros(5, np.float16)), ("whole_heights", np.full(3, 1 << 30, np.int32)),
        ("whole_keys", ["decoder/0"] * 3),
    ],
)  # fmt: skip
def test_a_row_whose_parts_do_not_fit_is_refused(column: str, value: Any) -> None:
    row = to_row(fingerprint(zoo.llama(1)))
    with pytest.raises(IndexFormatError, match="damaged"):
        from_row({**row, column: value})


KINDS = {"llama": zoo.llama, "qwen2": zoo.qwen2}


@cache
def original(kind: str = "llama") -> Snapshot:
    made = KINDS[kind](1, layers=4)
    return Snapshot("model", made.tensors, made.config, made.tokenizer or "")


def printed(snapshot: Snapshot, model_id: str = "model") -> Fingerprint:
    return fingerprint(zoo.Checkpoint(dict(snapshot.config), snapshot.tensors, snapshot.tokenizer or None), model_id)


UNDER = [(attack, "llama") for attack in attacks.ATTACKS] + [("padded", "qwen2"), ("decoys everywhere", "qwen2")]


@pytest.mark.parametrize(("attack", "kind"), UNDER)
def test_no_attack_hides_a_model(attack: str, kind: str) -> None:
    made = attacks.ATTACKS[attack](original(kind), 7)
    assert isinstance(made, Snapshot), made
    pair = compare(printed(made), printed(original(kind)), calibration=calibration_of(()))
    assert pair.verdict == "linked"
    stranger = compare(printed(made), fingerprint(KINDS[kind](2, layers=4)), calibration=calibration_of(()))
    assert stranger.verdict == "unrelated" and not stranger.plain_order_only


def test_a_copy_with_another_vocabulary_is_found() -> None:
    """Every disguise, then new tokens: no anchor is left, and the search finds it all the same."""
    made = disguise("all", original(), 3)
    assert isinstance(made, Snapshot)
    rng = np.random.default_rng(1)
    fresh = {
        name: rng.standard_normal((321, values.shape[1])).astype(np.float32)
        for name, values in made.tensors.items()
        if name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    assert fresh
    other = Snapshot("copy", {**made.tensors, **fresh}, {**made.config, "vocab_size": 321}, "")
    strangers = [fingerprint(zoo.llama(100 + i, layers=4), f"org/stranger{i}") for i in range(10)]
    index = Index.build([printed(original(), "org/parent"), *strangers])
    answer = index.query(printed(other, "copy"), candidates=3)
    (match,) = answer.linked
    assert (match.entry.model_id, match.pair.relation) == ("org/parent", "laundered")
    assert match.pair.evidence["neuron_invariants"].value > 0.9  # type: ignore[operator]
    assert match.pair.evidence["neuron_signs"].value < LEAST_AGREEMENT  # type: ignore[operator]


def test_without_common_tokens_invariants_clear_nobody() -> None:
    """They would have seen a copy with another vocabulary, and not one with other neurons besides."""
    a, b = (replace_anchors(fingerprint(zoo.llama(seed, layers=4))) for seed in (1, 2))
    pair = compare(a, b, calibration=calibration_of(()))
    assert pair.evidence["neuron_invariants"].conformal is not None
    assert pair.verdict == "inconclusive" or pair.plain_order_only


def replace_anchors(fp: Fingerprint) -> Fingerprint:
    """As if there were no tokenizer."""
    whole = replace(fp.value("whole_layers"), by_string=None)
    return replace(fp, sketches=None, more={**fp.more, "whole_layers": whole})


def test_layers_in_between_hide_no_two_layers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoys everywhere, and two layers kept of each: the query reads every layer where those show nothing."""
    monkeypatch.setattr(whole_layers, "WHOLE", 100)
    source = zoo.llama(1, layers=9)
    made = attacks.ATTACKS["decoys everywhere"](Snapshot("m", source.tensors, source.config, source.tokenizer or ""), 7)
    assert isinstance(made, Snapshot)
    folders = [zoo.write(source, tmp_path / "source"), made.write(tmp_path / "copy")]
    kept = [pv.fingerprint(folder) for folder in folders]
    assert compare(*kept, calibration=calibration_of(())).verdict != "linked", "else this test says nothing"
    assert pv.compare(*folders).verdict == "linked"
    index = pv.Index.build([replace(kept[0], model_id="org/source"), fingerprint(zoo.llama(2, layers=9), "org/other")])
    asked = api.resolve(folders[1], index=index)
    _, found = api.query(index, asked)
    assert [m.entry.model_id for m in found.linked] == ["org/source"]
    _, gated = api.query(index, asked, also=["org/source"], candidates=1)
    assert [m.entry.model_id for m in gated.linked] == ["org/source"]
    stranger = api.resolve(zoo.write(zoo.llama(3, layers=9), tmp_path / "stranger"), index=index)
    assert not api.query(index, stranger)[1].linked


def test_models_with_the_other_kind_of_mlp_take_no_place_of_those_read_deeper() -> None:
    asked = fingerprint(zoo.llama(1), "asked")
    kinds = {"org/gated": zoo.llama(2), "org/plain": zoo.gpt2(3)}
    index = Index.build([fingerprint(model, name) for name, model in kinds.items()])
    pairs = {entry.model_id: (entry, compare(asked, entry.load(), calibration=index.calibration)) for entry in index}
    ranked = [*["org/plain"] * DEEPER, "org/gated"]
    found = [Match(*pairs[name], rank=rank, score=0.0) for rank, name in enumerate(ranked, 1)]
    assert _to_read_deeper(found, ()) == [DEEPER], "the only one that can be a copy in disguise"
    assert _to_read_deeper(found, {pairs["org/plain"][0].key}) == list(range(DEEPER + 1)), "and what is asked about"
