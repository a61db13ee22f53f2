"""The exact tests on pure arrays: their null by enumeration and by thousands of draws, their bounds, their power."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from prints import fingerprint

from provindex.common import halves
from provindex.common.score import Outcome
from provindex.evidence import bit_reuse, exact, hidden_units, panels, residual_basis
from provindex.evidence.panels import HiddenPanels, PanelKey, ResidualPanel
from provindex.report.words import joined
from provindex.verdict.pair import compare

F64 = NDArray[np.float64]
SLACK = 3.3  # standard deviations that a count may lie above its bound: 1 in 2,000 for each of some 100 comparisons


def too_many(count: int, draws: int, bound: float) -> bool:
    """Whether so many draws beyond a level contradict that each is at most `bound` likely."""
    return count > draws * bound + SLACK * math.sqrt(draws * bound) + 1


def similarities(m: int, seed: int) -> Iterator[tuple[str, F64]]:
    """Similarity matrices that strain the tests: heavy tails, one direction, clusters, outliers, ties, zero rows."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, m, 64))
    half = np.where(np.arange(m) < m // 2, 1.0, -1.0)
    steps = np.arange(m) - (m - 1) / 2
    yield "noise", x @ y.T
    yield "one direction", np.outer(x[:, 0], y[:, 0])
    yield "heavy tails", rng.standard_t(1, (m, 2)) @ rng.standard_t(1, (2, m))
    yield "rows in two clusters", np.outer(half, steps)
    yield "both in two clusters", np.outer(half, half) + 1e-6 * x @ y.T
    yield "sorted", np.outer(steps, steps)
    yield "one outlier", 1e6 * np.outer(np.arange(m) == 0, y[:, 0]) + x @ y.T
    yield "one column wins all", x @ y.T + 1e6 * (np.arange(m) == 1)
    yield "zero rows", np.where((half > 0)[:, None], x @ y.T, 0.0)
    yield "rounded", np.round(x @ y.T / 8)


def centred_ranks(c: F64) -> F64:
    """What each entry adds to the sum of excess ranks if it stands on the diagonal."""
    within = [(s[:, None, :] < s[:, :, None]).sum(-1) + (s[:, None, :] == s[:, :, None]).sum(-1) / 2 for s in (c, c.T)]
    return (within[0] + within[1].T) / 2 - c.shape[0] / 2


# ---- bounds against known values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "p"), [(0.0, 0.5), (1.6448536269514722, 0.05), (2.3263478740408408, 0.01), (4.753424308822899, 1e-6)]
)
def test_normal_tail_at_quantiles(z: float, p: float) -> None:
    assert exact.log10_normal_tail(z) == pytest.approx(math.log10(p), abs=1e-9)


@pytest.mark.parametrize("z", [3.0, 8.0, 20.0, 29.99, 30.0, 38.0, 100.0, 1000.0])
def test_normal_tail_against_the_continued_fraction(z: float) -> None:
    """Laplace's continued fraction of Mills' ratio; past 30 the tail may be overstated by 1e-3, never understated."""
    mills = 0.0
    for k in range(400, 0, -1):
        mills = k / (z + mills)
    expected = -(z * z / 2 + math.log(math.sqrt(2 * math.pi) * (z + mills))) / math.log(10)
    assert expected - 1e-9 <= exact.log10_normal_tail(z) <= expected + 1e-3


def test_normal_tail_of_a_negative_z_is_near_one() -> None:
    assert exact.log10_normal_tail(-40.0) == 0.0


@pytest.mark.parametrize("k,blocks", [(0, 3), (1, 1), (3, 1), (20, 1), (7, 4)])
def test_fixed_point_bound(k: int, blocks: int) -> None:
    expected = min(0.0, math.log10(blocks**k / math.factorial(k)))
    assert exact.log10_fixed_points(k, blocks) == pytest.approx(expected, abs=1e-9)


# ---- null: every permutation of small blocks --------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_null_by_enumeration(m: int) -> None:
    """Over all m! orders of one side: both bounds, at every attained level; mean and variance of the ranks."""
    orders = np.array(list(itertools.permutations(range(m))))
    for name, c in similarities(m, m):
        stacked = c[orders]
        outcomes = [(exact.fixed_points(s), exact.rank_alignment(s)) for s in stacked]
        for side in (0, 1):
            counts = np.array([fixed[side] for fixed, _ in outcomes])
            for k in range(1, m + 1):
                assert (counts >= k).mean() <= 10 ** exact.log10_fixed_points(k, 1) + 1e-12, (name, k)
        excess, variance = (np.array([ranks[i] for _, ranks in outcomes]) for i in (0, 1))
        assert abs(excess.mean()) < 1e-9 and excess.var() <= variance[0] + 1e-9, name


@pytest.mark.parametrize("seed", range(3))
def test_null_of_the_ranks_of_the_smallest_block_by_enumeration(seed: int) -> None:
    """All 40,320 orders of eight units, the fewest that are tested: at no attained level below .1 is p too small."""
    assert exact.MIN_UNITS == 8
    orders = np.array(list(itertools.permutations(range(8))))
    variance = exact.rank_alignment(np.zeros((8, 8)))[1]
    for name, c in similarities(8, seed):
        sums, counts = np.unique(centred_ranks(c)[orders, np.arange(8)].sum(axis=1), return_counts=True)
        above = counts[::-1].cumsum()[::-1] / len(orders)
        p = 10.0 ** np.array([exact.log10_alignment(value, variance) for value in sums])
        assert (above <= p * np.where(p <= 0.1, 1.0, 1.05) + 1e-12).all(), name


# ---- null: many draws of large blocks ---------------------------------------------------------------------------


@pytest.mark.parametrize("m", [16, 64])
def test_null_of_the_ranks_far_in_the_tail(m: int) -> None:
    """The normal tail is no theorem: here it is held at .05 to 1e-4 over permutations of ten strained similarities."""
    rng = np.random.default_rng(m)
    draws, at = 30_000, np.arange(m)
    variance = exact.rank_alignment(np.zeros((m, m), np.float32))[1]
    pooled = dict.fromkeys((0.05, 0.01, 1e-3, 1e-4), 0)
    for name, c in similarities(m, m):
        gain = centred_ranks(c)
        orders = rng.permuted(np.tile(at, (draws, 1)), axis=1)
        sums = gain[orders, at].sum(axis=1)
        for order, expected in zip(orders[:3], sums, strict=False):
            assert exact.rank_alignment(c[order])[0] == pytest.approx(expected)
        assert sums.var() <= variance * 1.02, name
        values, counts = np.unique(sums, return_counts=True)
        log10_p = np.array([exact.log10_alignment(value, variance) for value in values])
        for level in pooled:
            count = int(counts[log10_p <= math.log10(level)].sum())
            assert not too_many(count, draws, level), (name, level, count)
            pooled[level] += count
    assert not any(too_many(count, 10 * draws, level) for level, count in pooled.items()), pooled


@pytest.mark.parametrize("blocks", [1, 5])
def test_null_of_fixed_points(blocks: int) -> None:
    """P(sum F >= k) <= blocks^k / k! for k up to where 20,000 draws can tell, whatever the similarity."""
    rng = np.random.default_rng(blocks)
    draws, m = 20_000, 12
    kinds = list(similarities(m, blocks))
    for name, c in kinds:
        wins, at = c.argmax(axis=1), np.arange(m)
        counts = np.zeros(draws, int)
        for _ in range(blocks):
            orders = rng.permuted(np.tile(at, (draws, 1)), axis=1)
            counts += (wins[orders] == at).sum(axis=1)
        assert exact.fixed_points(c[orders[0]])[0] == (wins[orders[0]] == at).sum()
        for k in range(1, 8):
            bound = 10 ** exact.log10_fixed_points(k, blocks)
            assert not too_many(int((counts >= k).sum()), draws, bound), (name, k)


def random_panels(layers: int, rows: int, rng: np.random.Generator, width: int = 512) -> HiddenPanels:
    """Panels of a model that shares nothing with another: heavy-tailed units around directions that all models have."""
    common = np.random.default_rng(7).standard_normal((4, panels.PROJECTION))
    entries = []
    for layer in range(layers):
        raw = rng.standard_normal((rows, panels.PROJECTION)) + rng.standard_t(2, (rows, 4)) @ common
        unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
        entries.append((PanelKey("mlp", "decoder", layer), unit))
    made = panels.stack_panels(entries, width)
    assert made is not None
    return made


@pytest.mark.parametrize(("deep", "shallow"), [(4, 4), (5, 3)])
def test_null_of_the_layer_maps(deep: int, shallow: int) -> None:
    """E1 and E1z with the map that fits best of all order-preserving ones: the union bound pays for the choice."""
    rng = np.random.default_rng(deep)
    draws, found = 1200, []
    for _ in range(draws):
        result = hidden_units.hidden_tests(random_panels(deep, 24, rng), random_panels(shallow, 24, rng))
        found.append((result.fixed.log10_p, result.aligned.log10_p))
    for test, log10_p in zip(("E1", "E1z"), np.array(found, float).T, strict=True):
        for level in (0.05, 0.01, 1e-3):
            count = int((log10_p <= math.log10(level)).sum())
            assert not too_many(count, draws, level), (test, level, count)


def test_null_of_the_residual_test() -> None:
    """E2 at its own levels: coordinates with heavy tails and one frequency direction that both models have."""
    rng = np.random.default_rng(1)
    common = np.random.default_rng(8).standard_normal(64)
    ids = np.arange(512, dtype=np.int32)

    def panel() -> ResidualPanel:
        raw = rng.standard_normal((64, 48)) * rng.lognormal(0, 1, 48) + np.outer(common, rng.standard_t(2, 48))
        return ResidualPanel(halves.halved(raw)[0], ids, 48)

    log10_p = np.array([residual_basis.residual_test(panel(), panel()).log10_p for _ in range(3000)], float)
    for level in (0.05, 0.01, 1e-3):
        assert not too_many(int((log10_p <= math.log10(level)).sum()), len(log10_p), level)


# ---- null: two models that were pruned with one mask ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "against", "p"), [(0, 0, 1.0), (3, 5, 1.0), (1, 0, 0.5), (3, 1, 5 / 16), (20, 0, 2.0**-20)]
)
def test_the_sign_tail_is_a_binomial(own: int, against: int, p: float) -> None:
    assert 10 ** exact.log10_sign_tail(own, against) == pytest.approx(p)


@pytest.mark.parametrize("m", [2, 9, 200])
def test_what_stands_against_is_the_mirror_image(m: int) -> None:
    for name, c in similarities(m, m):
        one, other = exact.ranked(c[None]), exact.ranked(-c[None])
        assert one.places == exact.Places(*other.places[2:], *other.places[:2]), name
        assert one.excess == pytest.approx(-other.excess) and one.squares == pytest.approx(other.squares), name
        assert one.squares[0] == pytest.approx(float((np.diag(centred_ranks(c)) ** 2).sum())), name


def pruned(seed: int, mask: int, mean: float, parts: int) -> HiddenPanels:
    """Panels of a random model that was pruned to a tenth by a mask, which may be another model's as well.

    mean: of the first matrix of each layer, in standard deviations: gates and two-matrix MLPs have no sign symmetry.
    """
    rng, width, made = np.random.default_rng((seed, 1)), 256, []
    for layer in range(3):
        kept = np.random.default_rng((mask, layer)).random((parts, 64, width)) < 0.1
        raw = rng.standard_normal((parts, 64, width)) * np.exp(0.3 * rng.standard_normal((parts, 64, 1)))
        raw[0] += mean
        rows = [
            panels.without_means(np.where(k, r, 0.0).astype(np.float32)).astype(float)
            for k, r in zip(kept, raw, strict=True)
        ]
        made.append((PanelKey("mlp", "decoder", layer), panels.hidden_panel(rows, "mlp")))
    found = panels.stack_panels(made, width)
    assert found is not None
    return found


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mean", [0.0, 0.3, 0.5])
def test_one_mask_in_common_is_no_evidence(mean: float, parts: int) -> None:
    draws = 60
    results = [
        hidden_units.hidden_tests(pruned(2 * i, i, mean, parts), pruned(2 * i + 1, i, mean, parts))
        for i in range(draws)
    ]
    for level in (0.05, 0.01, 1e-3):
        for outcomes in ([r.fixed for r in results], [r.aligned for r in results]):
            assert not too_many(sum((o.log10_p or 0.0) <= math.log10(level) for o in outcomes), draws, level)


@pytest.mark.parametrize("make", [zoo.llama, zoo.neox])
def test_a_pruned_copy_is_linked_and_strangers_under_its_mask_are_not(make: Callable[..., zoo.Checkpoint]) -> None:
    """In all exact tests together, those of the embedding too, and with LayerNorms too."""
    first, second = make(1, hidden=96), make(2, hidden=96)
    rng = np.random.default_rng(0)
    masks = {name: rng.random(value.shape) < 0.1 for name, value in first.tensors.items() if value.ndim == 2}

    def masked(model: zoo.Checkpoint) -> zoo.Checkpoint:
        return replace(model, tensors={n: v * masks[n] if n in masks else v for n, v in model.tensors.items()})

    one, other = fingerprint(masked(first)), fingerprint(masked(second))
    assert compare(one, other).verdict == "unrelated"
    found = compare(fingerprint(first), one).evidence
    exact_tests = ("hidden_fixed_points", "hidden_alignment", "residual_fixed_points")
    assert max(found[name].log10_p or 0.0 for name in exact_tests) < -12


# ---- layer maps -------------------------------------------------------------------------------------------------


def matchings(n: int, m: int) -> Iterator[list[tuple[int, int]]]:
    for k in range(min(n, m) + 1):
        for rows in itertools.combinations(range(n), k):
            for columns in itertools.combinations(range(m), k):
                yield list(zip(rows, columns, strict=True))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (2, 5), (4, 3)])
def test_the_best_map_is_best_and_the_maps_are_counted(n: int, m: int) -> None:
    scores = np.random.default_rng(n * m).standard_normal((n, m))
    every = list(matchings(n, m))
    best = max(sum(scores[i, j] for i, j in found) for found in every)
    assert sum(scores[i, j] for i, j in exact.monotone_matching(scores)) == pytest.approx(best)
    assert 10 ** exact.log10_binomial(n + m, n) == pytest.approx(len(every))


def test_repeated_layers_are_one_layer() -> None:
    """Copies of a layer share one permutation: counting them apart would multiply evidence, also by accident."""
    rng = np.random.default_rng(3)
    one, other = random_panels(1, 32, rng), random_panels(1, 32, rng)

    def repeated(p: HiddenPanels) -> HiddenPanels:
        made = panels.stack_panels([(PanelKey("mlp", "decoder", i), p.values[0]) for i in range(6)], p.width)
        assert made is not None
        return made

    assert hidden_units.hidden_tests(repeated(one), repeated(other)).fixed.n == 32
    assert hidden_units.hidden_tests(repeated(one), repeated(one)).fixed.n == 32


def test_layer_matches_show_repeats_on_either_side() -> None:
    one = random_panels(4, 32, np.random.default_rng(4))
    order = (0, 1, 2, 1, 2, 3)
    made = panels.stack_panels([(PanelKey("mlp", "decoder", i), one.values[o]) for i, o in enumerate(order)], one.width)
    assert made is not None
    expected = {(old, new) for new, old in enumerate(order)}
    assert {(p.a, p.b) for p, _ in hidden_units.layer_matches(one, made)} == expected
    assert {(p.b, p.a) for p, _ in hidden_units.layer_matches(made, one)} == expected


# ---- what the tests refuse --------------------------------------------------------------------------------------


def test_other_widths_are_not_compared() -> None:
    rng = np.random.default_rng(5)
    result = hidden_units.hidden_tests(random_panels(2, 16, rng, 512), random_panels(2, 16, rng, 768))
    assert result.fixed.log10_p is None and "512 and 768" in str(joined(result.fixed.reasons))


def test_dead_units_are_no_evidence_of_independence() -> None:
    rng = np.random.default_rng(6)
    alive = random_panels(2, 16, rng)
    dead = HiddenPanels(alive.keys, alive.heights, np.zeros_like(alive.values), alive.width)
    result = hidden_units.hidden_tests(alive, dead)
    assert result.fixed.log10_p is None and "only zeros" in str(joined(result.fixed.reasons))


def test_value_channels_permute_inside_their_head_only() -> None:
    """Rows 0-15 of v with heads of 4 are four blocks; with another head size positions do not correspond."""

    def only_v(group: int) -> HiddenPanels:
        unit = np.random.default_rng(9).standard_normal((16, panels.PROJECTION))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        made = panels.stack_panels([(PanelKey("v", "decoder", 0, -1, group), unit.astype(np.float16))], 64)
        assert made is not None
        return made

    fixed = hidden_units.hidden_tests(only_v(4), only_v(4)).fixed
    assert fixed.value == 1.0 and fixed.chance == pytest.approx(4 / 16)
    assert hidden_units.hidden_tests(only_v(4), only_v(8)).fixed.log10_p is None


# ---- E0 ---------------------------------------------------------------------------------------------------------


def blocks(values: Sequence[NDArray[np.float32]]) -> panels.BlockDigests:
    halves = [(v[: v.size // 2], v[v.size // 2 :]) for v in values]
    made = panels.stack_blocks([(f"decoder.{i}.q.weight", pair) for i, pair in enumerate(halves)])
    assert made is not None
    return made


def normals(count: int, seed: int) -> list[NDArray[np.float32]]:
    return [np.random.default_rng([seed, i]).standard_normal(2048).astype(np.float32) for i in range(count)]


def test_reuse_needs_two_tensors() -> None:
    mine, theirs = normals(4, 0), normals(4, 1)
    outcome, precision = bit_reuse.bit_reuse(blocks(mine), blocks([mine[0], *theirs[1:]]))
    assert outcome == Outcome(0.25, 8, 0.0, 0.0) and precision == "exact"  # a fact, but no evidence
    outcome, precision = bit_reuse.bit_reuse(blocks(mine), blocks([*theirs[:2], *mine[:2]]))  # wherever they stand
    assert outcome.value == 0.5 and precision == "exact"
    assert outcome.log10_p == pytest.approx(4 * -19 + math.log10(3))


def test_reuse_after_rounding() -> None:
    mine = normals(4, 2)
    rounded = [panels.round_bf16(v) for v in mine]
    assert bit_reuse.bit_reuse(blocks(mine), blocks(rounded))[1] == "bf16"
    assert (
        bit_reuse.bit_reuse(blocks(mine), blocks([v.astype(np.float16).astype(np.float32) for v in mine]))[1] == "f16"
    )


def test_blocks_of_few_values_and_common_blocks_say_nothing() -> None:
    flat = [np.tile(np.arange(63, dtype=np.float32), 33)[:2048] + i for i in range(4)]
    assert joined(bit_reuse.bit_reuse(blocks(flat), blocks(flat))[0].reasons)
    bad = normals(4, 3)
    for v in bad:
        v[[0, -1]] = np.nan
    assert joined(bit_reuse.bit_reuse(blocks(bad), blocks(bad))[0].reasons)
    mine = normals(4, 4)
    common = frozenset(blocks(mine).exact.ravel().tolist()) | frozenset(blocks(mine).bf16.ravel().tolist())
    common |= frozenset(blocks(mine).f16.ravel().tolist())
    assert bit_reuse.bit_reuse(blocks(mine), blocks(mine), common=common)[0].log10_p is None


# ---- power ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent() -> zoo.Checkpoint:
    return zoo.llama(1, layers=15, hidden=64)


@pytest.mark.parametrize("cosine", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("layers", [3, 15])
def test_a_child_at_this_cosine_is_linked_by_its_hidden_units(cosine: float, layers: int) -> None:
    parent = zoo.llama(1, layers=layers, hidden=64)
    for seed in range(3):
        child = zoo.finetune_noise(parent, cosine, seed)
        result = hidden_units.hidden_tests(fingerprint(parent).hidden, fingerprint(child).hidden)
        assert result.log10_p < -7, (cosine, layers, seed)


def test_dropped_and_repeated_layers_are_linked_through_the_layer_map(parent: zoo.Checkpoint) -> None:
    keep = (0, 1, 3, 4, 6, 7, 9, 11, 12, 14)
    ours = fingerprint(parent).hidden
    for order in (keep, (0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)):
        child = zoo.finetune_noise(zoo.repeat_layers(parent, order), 0.5, 1)
        result = hidden_units.hidden_tests(ours, fingerprint(child).hidden)
        assert result.log10_p < -100
        assert all(order[p.b] == p.a for p in result.pairs) and len(result.pairs) >= 10


def test_the_smallest_visible_cosine_is_about_right() -> None:
    """At twice the cosine that E1z promises to see, every child is linked; at a third of it, none."""
    parent = zoo.llama(2, layers=6, hidden=64)
    ours = fingerprint(parent).hidden
    least = hidden_units.hidden_tests(ours, ours).aligned.smallest
    assert least is not None

    def linked(cosine: float) -> int:
        children = (zoo.finetune_noise(parent, cosine, seed) for seed in range(8))
        return sum(hidden_units.hidden_tests(ours, fingerprint(c).hidden).log10_p <= -6 for c in children)

    assert linked(2 * least) == 8 and linked(least / 3) == 0
