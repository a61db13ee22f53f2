"""E3 on pure arrays and on models: its null, what it finds again, layer maps; and how panels are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint

from provindex.common import score
from provindex.common.errors import IndexFormatError
from provindex.common.threads import one_blas_thread
from provindex.evidence import aligned, layers, residual_basis, sketch
from provindex.evidence.aligned import Agreement, LayerMaps, NeuronPanels, log10_poisson_tail, triple_agreement
from provindex.evidence.hidden_units import LayerPair
from provindex.evidence.layers import LayerRange
from provindex.evidence.panels import ResidualPanel
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.report.words import joined

F64 = NDArray[np.float64]
SLACK = 3.3  # standard deviations that a count may lie above its bound
ANCHORS = sketch.ANCHORS_KEPT


@pytest.fixture(autouse=True, scope="module")
def small_matrices() -> Iterator[None]:
    """On a busy machine several threads of BLAS wait for each other."""
    with one_blas_thread():
        yield


# ---- the Poisson tail -------------------------------------------------------------------------------------------


def exact_tail(k: int, mean: float) -> float:
    """P(X >= k), summed from the small end."""
    terms = [math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(k, k + 400)]
    return math.fsum(sorted(terms))


@pytest.mark.parametrize("mean", [1e-4, 0.01, 0.3, 1.0, 2.5, 10.0])
def test_poisson_tail_against_sums(mean: float) -> None:
    """Never below the tail; above it by a factor of less than three, and by less than 1 % far out."""
    for k in range(1, 60):
        found = log10_poisson_tail(k, mean)
        truth = math.log10(exact_tail(k, mean))
        assert found >= truth - 1e-9
        if k > mean:
            assert found <= truth + math.log10(3)
        if k > 12 * mean + 10:
            assert found <= truth + math.log10(1.01)


def test_poisson_tail_is_monotone() -> None:
    for mean in (0.01, 1.0, 7.3, 300.0):
        values = [log10_poisson_tail(k, mean) for k in range(1000)]
        assert all(one >= other for one, other in pairwise(values)) and values[0] == 0.0 and values[-1] < -100
    for k in (1, 5, 80):
        values = [log10_poisson_tail(k, mean) for mean in np.geomspace(1e-6, 2 * k, 200)]
        assert all(one <= other for one, other in pairwise(values)) and values[-1] == 0.0


def test_poisson_tail_at_its_ends() -> None:
    assert log10_poisson_tail(0, 0.0) == log10_poisson_tail(0, 5.0) == log10_poisson_tail(5, 5.0) == 0.0
    assert log10_poisson_tail(1, 0.0) == -math.inf
    assert log10_poisson_tail(2000, 1e-3) < -10_000


# ---- panels -----------------------------------------------------------------------------------------------------


def directions(values: F64) -> NDArray[np.int8]:
    return np.round(values * 31 / np.abs(values).max(axis=-1, keepdims=True)).astype(np.int8)


def panels(
    values: F64, depth: int = 1, *, by_id: F64 | None = None, units: NDArray[np.int32] | None = None
) -> NeuronPanels:
    """Panels of `depth` layers of one height from coordinates (neurons of all layers, parts, anchors)."""
    height = len(values) // depth
    return NeuronPanels(
        keys=tuple(("decoder", i) for i in range(depth)),
        heights=np.full(depth, height, np.int32),
        widths=np.full(depth, height, np.int32),
        units=np.tile(np.arange(height, dtype=np.int32), depth) if units is None else units,
        lengths=np.ones(values.shape[:2], np.float32),
        by_string=directions(values),
        by_id=None if by_id is None else directions(by_id),
    )


def noise(seed: int, count: int = 64, parts: int = 3) -> F64:
    return np.random.default_rng([seed, 3]).standard_normal((count, parts, ANCHORS))


def in_place(a: NeuronPanels, times: int = 1) -> LayerMaps:
    """Layer l to layer l, under both namings."""
    return {naming: [[(key, key) for key in a.keys]] * times for naming in ("by_string", "by_id")}


def agreement(a: NeuronPanels, b: NeuronPanels) -> Agreement:
    """Of the only layer."""
    (found,) = triple_agreement(a, b, in_place(a)).agreements
    return found


def outcome(a: NeuronPanels, b: NeuronPanels) -> score.Outcome:
    return triple_agreement(a, b, in_place(a)).outcome


# ---- what is found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
def test_a_copy_agrees_on_every_neuron(parts: int) -> None:
    made = panels(noise(1, parts=parts))
    found = outcome(made, made)
    assert (found.value, found.n) == (1.0, 64)
    assert found.log10_p is not None and found.log10_p < -80
    assert found.chance is not None and found.chance < 0.05


@pytest.mark.parametrize("parts", [2, 3])
def test_reordered_neurons_are_mapped_to_where_they_went(parts: int) -> None:
    values, order = noise(2, parts=parts), np.random.default_rng(0).permutation(64)
    a, b = panels(values), panels(values[order] + 0.3 * noise(3, parts=parts))
    found = agreement(a, b)
    assert found.share == 1.0
    assert np.array_equal(order[found.units_b], found.units_a) and np.array_equal(order[found.columns], found.rows)


def test_up_and_down_may_both_be_negated_and_a_gate_may_not() -> None:
    values = noise(4)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (64, 1, 1))
    both, gate = values.copy(), values.copy()
    both[:, 1:] *= signs
    gate[:, 0] *= -1
    assert outcome(panels(values), panels(both)).value == 1.0
    assert outcome(panels(values), panels(gate)).value == 0.0
    pair = values[:, 1:]
    assert outcome(panels(pair), panels(pair * signs)).value == 1.0


def test_the_scale_of_a_part_does_not_count() -> None:
    values = noise(5)
    scaled = values * np.exp(np.random.default_rng(2).standard_normal((64, 3, 1)))
    assert outcome(panels(values), panels(scaled)).value == 1.0


def test_pruned_neurons_are_found_among_all() -> None:
    values = noise(6, 96)
    kept = np.sort(np.random.default_rng(3).permutation(96)[:48])
    a, b = panels(values), panels(values[kept], units=kept.astype(np.int32))
    for one, other in ((a, b), (b, a)):
        found = agreement(one, other)
        assert (found.share, found.n) == (1.0, 48) and np.array_equal(found.units_a, found.units_b)


def test_zero_neurons_never_agree() -> None:
    """Pruned neurons are zeros in both models; one part is enough, because it matches nothing."""
    values = noise(7)
    values[:20] = 0
    values[20:25, 1] = 0
    a = panels(np.where(values == 0, 1e-9, values))
    dead = replace(a, by_string=np.where(values == 0, 0, a.by_string).astype(np.int8))
    found = agreement(dead, dead)
    assert (found.n, found.share) == (39, 1.0) and set(found.rows.tolist()) == set(range(25, 64))
    gone = replace(a, by_string=np.zeros_like(a.by_string))
    assert joined(outcome(gone, gone).reasons)


def test_both_directions_must_agree() -> None:
    """All neurons of A are one neuron: whatever they match, the way back names one of them."""
    one, b = noise(8), panels(noise(9))
    crowd = panels(np.repeat(one[:1], 64, axis=0))
    for found in (outcome(crowd, b), outcome(b, crowd)):
        assert found.value is not None and found.value <= 1 / 64 and found.log10_p == 0.0


def test_other_kinds_and_too_few_are_absent_with_a_reason() -> None:
    gated, plain, few = panels(noise(1)), panels(noise(1, parts=2)), panels(noise(1, 31))
    assert triple_agreement(gated, plain, in_place(gated)).outcome.reasons == (aligned.OTHER_KIND,)
    assert triple_agreement(gated, None, {}).outcome.reasons == (aligned.NO_NEURONS,)
    assert triple_agreement(None, gated, {}).outcome.reasons == (aligned.NO_NEURONS,)
    for a, b, maps in (
        (few, gated, in_place(few)),
        (gated, gated, {}),
        (gated, replace(gated, by_string=None), in_place(gated)),
    ):
        found = triple_agreement(a, b, maps).outcome
        assert found.value is None and found.log10_p is None and joined(found.reasons)
    by_id_only = replace(gated, by_string=None, by_id=gated.by_string)
    assert joined(triple_agreement(gated, by_id_only, in_place(gated)).outcome.reasons)


def test_every_map_and_naming_is_paid_for() -> None:
    values = noise(10)
    a = panels(values)
    alone = triple_agreement(a, a, in_place(a)).outcome.log10_p
    both = panels(values, by_id=values)
    twice = triple_agreement(both, both, in_place(both)).outcome.log10_p
    four = triple_agreement(both, both, in_place(both, times=2)).outcome.log10_p
    assert alone is not None and twice == pytest.approx(alone + math.log10(2))
    assert four == pytest.approx(alone + math.log10(4))


def test_the_better_naming_counts() -> None:
    """As for a copy whose tokenizer is another's: the strings name other rows, the ids do not."""
    values = noise(11)
    a, b = panels(values, by_id=noise(12)), panels(values, by_id=noise(13))
    assert triple_agreement(a, b, in_place(a)).outcome.value == 1.0
    a, b = panels(noise(12), by_id=values), panels(noise(13), by_id=values)
    assert triple_agreement(a, b, in_place(a)).outcome.value == 1.0


def test_both_orders_of_a_pair_get_one_answer() -> None:
    for seed in range(20):
        values = noise(seed, 80)
        a, b = panels(values), panels(0.6 * values[20:70] + noise(seed + 100, 50))
        one, other = outcome(a, b), outcome(b, a)
        assert (one.value, one.n, one.log10_p) == (other.value, other.n, other.log10_p)


@pytest.mark.parametrize(
    ("depth", "kept"), [(0, 512), (1, 512), (3, 512), (6, 256), (12, 128), (32, 64), (80, 64), (10_000, 64)]
)
def test_neurons_kept_of_each_layer(depth: int, kept: int) -> None:
    assert aligned.neurons_kept(depth) == kept


# ---- null -------------------------------------------------------------------------------------------------------

PAIRS = 300


def gaussian(rng: np.random.Generator, parts: int) -> F64:
    return rng.standard_normal((128, parts, ANCHORS))


def one_direction(rng: np.random.Generator, parts: int) -> F64:
    """Every part of every neuron leans towards a direction that all models share."""
    shared = np.random.default_rng(99).standard_normal((1, parts, ANCHORS))
    return gaussian(rng, parts) + shared


def heavy(rng: np.random.Generator, parts: int) -> F64:
    """A few coordinates hold nearly everything: matchings crowd on few neurons."""
    return gaussian(rng, parts) * np.exp(1.5 * np.random.default_rng(98).standard_normal(ANCHORS))


def clusters(rng: np.random.Generator, parts: int) -> F64:
    """Eight kinds of neurons, the same for each part of all models, drawn anew for each neuron and part."""
    centers = np.random.default_rng(97).standard_normal((8, ANCHORS))
    return gaussian(rng, parts) + 2 * centers[rng.integers(8, size=(128, parts))]


@pytest.mark.parametrize("draw", [gaussian, one_direction, heavy, clusters])
@pytest.mark.parametrize("parts", [2, 3])
def test_independent_panels_are_at_chance(draw: Callable[[np.random.Generator, int], F64], parts: int) -> None:
    """P(p <= a) <= a, over 300 pairs of two layers whose parts are drawn apart."""
    found = []
    for seed in range(PAIRS):
        rng = np.random.default_rng([seed, parts])
        found.append(outcome(panels(draw(rng, parts), 2), panels(draw(rng, parts), 2)))
    p = np.array([f.log10_p for f in found])
    for level in (0.05, 0.01):
        most = PAIRS * level + SLACK * math.sqrt(PAIRS * level * (1 - level))
        assert (p <= math.log10(level)).sum() <= most, level
    assert max(f.value or 0.0 for f in found) < 0.1
    shares, chances = (np.array([getattr(f, name) for f in found]) for name in ("value", "chance"))
    assert shares.mean() <= chances.mean() + SLACK * shares.std() / math.sqrt(PAIRS)


def test_parts_that_resemble_each_other_are_no_evidence() -> None:
    """E3 takes for granted that a neuron's parts are matched independently: with tied parts they agree in strangers."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        a, b = (np.repeat(rng.standard_normal((64, 1, ANCHORS)), 3, axis=1) for _ in range(2))
        a, b = (x + 0.05 * rng.standard_normal(x.shape) for x in (a, b))
        found = outcome(panels(np.abs(a)), panels(np.abs(b)))
        assert found.value is None and "are alike" in (joined(found.reasons) or "")


def partly_tied(seed: int, tied: int, depth: int = 8) -> F64:
    """Neurons of `depth` layers of 64; in the first ones the parts of a neuron are nearly equal."""
    values = noise(seed, 64 * depth)
    rng = np.random.default_rng(seed)
    for i in range(tied):
        one = rng.standard_normal((64, 1, ANCHORS))
        values[64 * i : 64 * (i + 1)] = np.abs(one + 0.05 * rng.standard_normal((64, 3, ANCHORS)))
    return values


def test_layers_of_tied_neurons_are_left_out_and_the_others_speak() -> None:
    """SmolLM2-135M has 9 of 30 such layers: a rule that takes the worst layer makes every copy of it inconclusive."""
    a, other = (panels(partly_tied(seed, 3), depth=8) for seed in (1, 2))
    assert len(a.tied) == 3 and not a.too_tied
    copy = panels(partly_tied(1, 3) + 0.2 * noise(9, 512), depth=8)
    found = triple_agreement(a, copy, in_place(a))
    assert found.outcome.n == 5 * 64 and (found.outcome.value or 0) > 0.99
    assert {key for f in found.agreements for key in (f.a, f.b)}.isdisjoint(a.tied)
    stranger = triple_agreement(a, other, in_place(a)).outcome
    assert stranger.n == 5 * 64 and (stranger.value or 0) < 0.02


@pytest.mark.parametrize(("tied", "depth"), [(5, 8), (13, 16)])
def test_few_untied_layers_say_too_little(tied: int, depth: int) -> None:
    """Fewer than 256 neurons, or fewer than a quarter of the layers."""
    a = panels(partly_tied(1, tied, depth), depth=depth)
    assert a.too_tied
    found = triple_agreement(a, a, in_place(a)).outcome
    assert found.value is None and found.reasons == (aligned.TIED,)


# ---- layer maps -------------------------------------------------------------------------------------------------


@cache
def deep() -> zoo.Checkpoint:
    return zoo.llama(1, layers=6, hidden=64, intermediate=96)


@cache
def made(order: tuple[int, ...], change: str = "") -> Fingerprint:
    """The fingerprint of the layers of one parent in some order, tuned or with their neurons reordered."""
    child = zoo.repeat_layers(deep(), order)
    if change == "permuted":
        child = zoo.permute_neurons(child, 5)
    return fingerprint(zoo.finetune_noise(child, 0.95, 1) if change else child)


WHOLE = (0, 1, 2, 3, 4, 5)
ORDERS = [(0, 2, 3, 5), (1, 4), (0, 1, 2, 3, 2, 3, 4, 5), (5, 3, 1, 0), WHOLE]


def matched(a: Fingerprint, b: Fingerprint) -> dict[tuple[int, int], Agreement]:
    namings = {"by_string": (a.sketches, b.sketches), "by_id": (a.sketches_by_id, b.sketches_by_id)}
    return {(p.a, p.b): f for p, f in layers.neuron_matches(a.neurons, b.neurons, namings)}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("change", ["", "tuned", "permuted"])
def test_neurons_give_the_true_map(order: tuple[int, ...], change: str) -> None:
    """Dropped, repeated and moved layers, tuned on, with neurons reordered."""
    found = matched(made(WHOLE), made(order, change))
    truth = {(old, new) for new, old in enumerate(order)}
    distinct = {(old, order.index(old)) for old in order}  # of repeats that are equal bit for bit any one is nearest
    assert found.keys() <= truth and (found.keys() == truth or (not change and distinct <= found.keys()))
    for agreed in found.values():
        assert agreed.share > 0.9 and agreed.log10_p < -50
        assert (agreed.units_a == agreed.units_b).all() == (change != "permuted")
    back = {(j, i) for i, j in matched(made(order, change), made(WHOLE))}
    assert back == found.keys()


def test_strangers_have_no_layers_in_common() -> None:
    for seed in range(2, 5):
        assert not matched(made(WHOLE), fingerprint(zoo.llama(seed, layers=6, hidden=64, intermediate=96)))


def test_no_map_without_neurons_or_of_other_kinds() -> None:
    one, none, plain = made(WHOLE), replace(made(WHOLE), neurons=None), fingerprint(zoo.gpt2(1))
    assert not matched(one, none) and not matched(none, one) and not matched(one, plain)
    unsketched = replace(made(WHOLE), sketches=None, sketches_by_id=None)
    assert not matched(one, unsketched)


def test_maps_worth_trying() -> None:
    a, b = made(WHOLE), made((0, 2, 3, 5), "tuned")
    assert a.neurons is not None and b.neurons is not None
    found = aligned.layer_maps(a.neurons, b.neurons, {"by_string": (a.sketches, b.sketches), "by_id": (None, None)})
    in_order, best = ([(x[1], y[1]) for x, y in pairs] for pairs in found["by_string"])
    assert in_order == [(i, i) for i in range(4)] and set(best) >= {(0, 0), (2, 1), (3, 2), (5, 3)}
    assert triple_agreement(a.neurons, b.neurons, found).outcome.value == pytest.approx(1.0, abs=0.02)
    same = aligned.layer_maps(a.neurons, a.neurons, {"by_string": (a.sketches, a.sketches)})
    assert [len(pairs) for pairs in same.values()] == [1]  # a map is tried once, and paid for once
    assert not aligned.layer_maps(a.neurons, None, {"by_string": (a.sketches, None)})


def agreed(count: int) -> Agreement:
    rows = np.arange(count)
    return Agreement(("decoder", 0), ("decoder", 0), rows, rows, 64, 0.01, rows, rows)


def test_both_kinds_of_matches_together() -> None:
    first, second, third = (LayerPair("decoder", i, i) for i in range(3))
    strong = agreed(64).log10_p + math.log10(9)
    found = layers.together([(third, -9.0), (first, -400.0)], [(first, agreed(64)), (second, agreed(64))], 9)
    assert found == [(first, -400.0), (second, pytest.approx(strong)), (third, -9.0)]
    assert layers.together([(first, -9.0)], [(first, agreed(64))], 9) == [(first, pytest.approx(strong))]
    assert layers.together([], [], 0) == []


def test_ranges_are_runs_that_advance_together() -> None:
    pairs = [(0, 0), (1, 1), (2, 2), (1, 3), (2, 4), (5, 5)]
    matches = [(LayerPair("decoder", a, b), -10.0 - a) for a, b in pairs] + [(LayerPair("encoder", 0, 0), -7.0)]
    expected = (
        LayerRange("decoder", (0, 2), (0, 2), -10.0),
        LayerRange("decoder", (1, 2), (3, 4), -11.0),
        LayerRange("decoder", (5, 5), (5, 5), -15.0),
        LayerRange("encoder", (0, 0), (0, 0), -7.0),
    )
    assert layers.ranges(matches) == layers.ranges(matches[::-1]) == expected
    assert layers.ranges([]) == ()


# ---- E2g --------------------------------------------------------------------------------------------------------


def residual(values: F64) -> ResidualPanel:
    return ResidualPanel(values.astype(np.float16), np.arange(512, dtype=np.int32), values.shape[1])


def grams(count: int, width: int = 96) -> Iterator[ResidualPanel]:
    for seed in range(count):
        rng = np.random.default_rng([seed, 8])
        spread = np.exp(0.5 * rng.standard_normal(width))
        yield residual(rng.standard_normal((64, width)) * spread)


def test_the_residual_gram_of_a_copy_is_one() -> None:
    (made,) = grams(1)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))[0]
    for other in (made, residual(3 * made.values.astype(float)), residual(turn @ made.values.astype(float))):
        assert residual_basis.residual_gram(made, other).value == pytest.approx(1.0, abs=1e-4)
    near = residual(made.values + 0.5 * np.random.default_rng(2).standard_normal((64, 96)))
    assert 0.5 < (residual_basis.residual_gram(made, near).value or 0.0) < 1.0


def test_the_residual_gram_of_strangers_is_zero_on_average() -> None:
    """Unbiased: without its correction the same 100 pairs have a mean of .6."""
    made = list(grams(200))
    values = np.array([residual_basis.residual_gram(a, b).value for a, b in zip(made[::2], made[1::2], strict=True)])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(100)
    assert values.std() < 0.1


def test_the_residual_gram_reports_only_and_says_why_it_is_missing() -> None:
    one, other = grams(2)
    found = residual_basis.residual_gram(one, other)
    assert (found.log10_p, found.chance, found.n) == (None, 0.0, 96)
    assert (
        joined(residual_basis.residual_gram(one, residual(np.ones((64, 32)))).reasons)
        == "residual widths differ (96 and 32)"
    )
    assert joined(residual_basis.residual_gram(one, None).reasons) and joined(
        residual_basis.residual_gram(None, one).reasons
    )
    for bad in (0.0, np.nan):
        assert residual_basis.residual_gram(one, residual(np.full((64, 96), bad))).reasons


# ---- storage ----------------------------------------------------------------------------------------------------


@cache
def row() -> dict[str, Any]:
    return to_row(made(WHOLE))


def test_sketches_and_neurons_come_back_from_a_row_as_they_were() -> None:
    for fp in (made(WHOLE), fingerprint(zoo.gpt2(1)), replace(made(WHOLE), sketches=None, neurons=None)):
        back = from_row(to_row(fp))
        for name in ("sketches", "sketches_by_id", "neurons"):
            one, other = getattr(fp, name), getattr(back, name)
            assert (one is None) == (other is None)
            for field in (f.name for f in fields(one)) if one is not None else ():
                x, y = getattr(one, field), getattr(other, field)
                assert x == y if field == "keys" else np.array_equal(x, y) and x.dtype == y.dtype, (name, field)
        assert to_row(back)["row_sha256"] == to_row(fp)["row_sha256"]


def test_neurons_under_one_naming_come_back() -> None:
    neurons = made(WHOLE).neurons
    assert neurons is not None
    back = from_row(to_row(replace(made(WHOLE), neurons=replace(neurons, by_string=None)))).neurons
    assert back is not None and back.by_string is None and np.array_equal(back.by_id, neurons.by_id)


DAMAGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a layer twice": ("sketch_keys", lambda r: [r["sketch_keys"][0], *r["sketch_keys"][:-1]]),
    "a layer too many": ("sketch_keys", lambda r: [*r["sketch_keys"], "decoder/6"]),
    "no number": ("sketch_keys", lambda r: ["decoder", *r["sketch_keys"][1:]]),
    "a short sketch": ("sketch_layers", lambda r: r["sketch_layers"][:-1]),
    "no sketch": ("sketch_id_layers", lambda r: r["sketch_id_layers"][:0]),
    "a short whole": ("sketch_whole", lambda r: r["sketch_whole"][:-1]),
    "no whole": ("sketch_id_whole", lambda r: r["sketch_id_whole"][:0]),
    "a sketch that is not finite": ("sketch_layers", lambda r: np.full_like(r["sketch_layers"], np.nan)),
    "a whole that is not finite": ("sketch_id_whole", lambda r: np.full_like(r["sketch_id_whole"], np.inf)),
    "a neuron layer twice": ("neuron_keys", lambda r: [r["neuron_keys"][0], *r["neuron_keys"][:-1]]),
    "a neuron layer too many": ("neuron_keys", lambda r: [*r["neuron_keys"], "decoder/6"]),
    "four parts": ("neuron_parts", lambda r: 4),
    "no parts": ("neuron_parts", lambda r: 0),
    "parts of another kind": ("neuron_parts", lambda r: 2),
    "heights of fewer": ("neuron_heights", lambda r: r["neuron_heights"] - 1),
    "a negative height": ("neuron_heights", lambda r: r["neuron_heights"] + np.array([999, -999, 0, 0, 0, 0], "i4")),
    "units of fewer": ("neuron_units", lambda r: r["neuron_units"][:-1]),
    "lengths of fewer": ("neuron_lengths", lambda r: r["neuron_lengths"][:-1]),
    "coordinates of fewer": ("neurons", lambda r: r["neurons"][:-64]),
    "coordinates by id of more": ("neurons_by_id", lambda r: np.tile(r["neurons_by_id"], 2)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_refused(damage: str) -> None:
    column, change = DAMAGES[damage]
    assert from_row(row()).neurons is not None
    with pytest.raises(IndexFormatError, match="is damaged"):
        from_row(row() | {column: change(row())})


def test_more_neurons_than_are_ever_kept_are_refused() -> None:
    many = 513
    claimed = {
        "neuron_keys": ["decoder/0"], "neuron_heights": np.array([many], np.int32), "neuron_parts": 3,
        "neuron_widths": np.array([many], np.int32),
        "neuron_units": np.arange(many, dtype=np.int32), "neuron_lengths": np.zeros(3 * many, np.float32),
        "neurons": np.zeros(3 * 64 * many, np.int8), "neurons_by_id": np.zeros(0, np.int8),
    }  # fmt: skip
    with pytest.raises(IndexFormatError, match="more than 512 neurons"):
        from_row(row() | claimed)
