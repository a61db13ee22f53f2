"""The tests on the peer's samples: against slow references, simulated children and strangers, files of any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import prints
import pytest
import zoo
from peer_files import deep_signals
from sampled_rows import QWEN, SEVENTY, Llama, Values, child

from provindex import api
from provindex.common.errors import IndexFormatError
from provindex.common.halves import rounded
from provindex.common.reasons import Code
from provindex.common.threads import one_blas_thread
from provindex.evidence import sampled
from provindex.evidence.exact import log10_alignment, log10_fixed_points
from provindex.evidence.pairing import Pairing
from provindex.evidence.sampled import Matrices, Slices, compared, matrices_of, sampled_tests, similarity
from provindex.evidence.sampled_layouts import layouts, named, offsets
from provindex.evidence.sampled_places import HIDDEN, RESIDUAL, Matrix, places, plan, size_of
from provindex.fingerprint.extract.slices import samples, slices
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.formats.tensors import tensor_from_array
from provindex.models.source import open_model
from provindex.signals import wvc

SMALL = Llama(64, 96, 4, 2, 16, 4)  # whole matrices are sampled, or every second value
MIDDLE = Llama(256, 640, 4, 4, 64, 6)
MODULES = (5, 3, 6, 4, 1, 2, 0)  # q k v o gate up down


def codes(outcome: Any) -> set[Code]:
    return {reason.code for reason in outcome.reasons}


# --- places and groups ---


@pytest.mark.parametrize("shape", [(7, 5), (64, 64), (65, 64), (200, 96), (1000, 33), (31, 700), (40, 4096)])
def test_samples_lie_where_the_peer_takes_them(shape: tuple[int, int]) -> None:
    w = np.arange(shape[0] * shape[1]).reshape(shape)
    flat = w.reshape(-1)
    whole = flat if flat.size <= 4096 else flat[:: flat.size // 4096][:4096]
    assert (w[places(*shape)] == whole).all() and size_of(*shape) == whole.size
    height = min(32, shape[0])
    cut = w[:: shape[0] // height][:height].reshape(-1)
    cut = cut if cut.size <= 4096 else cut[:: cut.size // 4096][:4096]
    assert (w[places(*shape, sliced=True)] == cut).all() and size_of(*shape, sliced=True) == cut.size


def slow_groups(axis: str, pattern: Sequence[Matrix], chosen: Sequence[int]) -> list[list[tuple[int, list[int]]]]:
    """Units with their samples by signature, written with dictionaries."""
    seen: dict[int, list[tuple[int, int, int]]] = {}
    at = 0
    for number in chosen:
        m = pattern[number]
        for row, column in zip(*places(m.rows, m.columns), strict=True):
            by_rows = m.role in (("o", "down") if axis == RESIDUAL else ("gate", "up", "gate+up"))
            unit, other = (int(row), int(column)) if by_rows else (int(column), int(row))
            if m.role == "gate+up" and axis == HIDDEN:
                unit, other = int(row) % (m.rows // 2), int(column) + m.columns * (int(row) // (m.rows // 2))
            seen.setdefault(unit, []).append((number, other, at))
            at += 1
    found: dict[Any, list[tuple[int, list[int]]]] = {}
    for unit in sorted(seen):
        values = sorted(seen[unit])
        found.setdefault(tuple(v[:2] for v in values), []).append((unit, [v[2] for v in values]))
    return [units for units in found.values() if len(units) >= 4]


FUSED = (Matrix("down", 96, 200, 4096), Matrix("gate+up", 400, 96, 4096), Matrix("o", 96, 96, 4096))


@pytest.mark.parametrize("axis", [RESIDUAL, HIDDEN])
@pytest.mark.parametrize("pattern", [SMALL.pattern, MIDDLE.pattern, QWEN.pattern, FUSED])
def test_groups_are_the_units_with_one_signature(axis: str, pattern: Sequence[Matrix]) -> None:
    made = plan(axis, tuple(pattern), 4)
    assert made is not None
    slow = sorted([[at for _, at in units] for units in slow_groups(axis, pattern, made.matrices)])
    assert sorted(g.samples.tolist() for g in made.groups) == slow
    assert sorted(s for _, part in made.blocks for s in part.tolist()) == sorted(s for g in slow for s in g)


def test_the_matrices_of_a_test_follow_from_shapes() -> None:
    def roles(shape: Llama, axis: str) -> set[str]:
        made = plan(axis, shape.pattern, shape.layers, shape.sliced)
        assert made is not None
        return {shape.pattern[i].role for i in made.matrices}

    assert roles(QWEN, RESIDUAL) == {"o", "down"} and roles(QWEN, HIDDEN) == {"gate", "up"}
    assert roles(SEVENTY, RESIDUAL) == {"q", "k", "v", "gate", "up"} and roles(SEVENTY, HIDDEN) == {"gate", "up"}
    made = plan(RESIDUAL, QWEN.pattern, 24)
    assert made is not None and [g.units for g in made.groups] == [128] * 7
    assert plan(RESIDUAL, (Matrix("", 0, 0, 4096),), 4) is None


# --- statistics ---


def slow_statistics(axis: str, pattern: Sequence[Matrix], x: Any, y: Any) -> tuple[int, int, int, int, float]:
    """Fixed points of rows and of columns, units, blocks and excess; x, y: (layers, samples), all groups small."""
    made = plan(axis, tuple(pattern), len(x))
    assert made is not None
    across = down = n = blocks = 0
    excess = 0.0
    for units in slow_groups(axis, pattern, made.matrices):
        for layers in [[layer] for layer in range(len(x))] if axis == HIDDEN else [list(range(len(x)))]:
            rows = [[[side[layer, at] for layer in layers for at in ats] for _, ats in units] for side in (x, y)]
            live = [i for i in range(len(units)) if any(rows[0][i]) and any(rows[1][i])]
            if len(live) < 4:
                continue
            u, v = (np.array([side[i] for i in live], float) for side in rows)
            u, v = u - u.mean(0), v - v.mean(0)
            if u.shape[1] > 2:
                u, v = u / np.linalg.norm(u, axis=1)[:, None], v / np.linalg.norm(v, axis=1)[:, None]
            c = u @ v.T
            for table, own in ((c, 0), (c.T, 1)):
                for i, row in enumerate(table):
                    hit = int(row.argmax()) == i
                    across, down = across + (hit and not own), down + (hit and bool(own))
                    below, equal = (row < row[i]).sum(), (row == row[i]).sum() - 1
                    excess += 0.5 * (below + 0.5 * equal - (len(live) - 1) / 2)
            n, blocks = n + len(live), blocks + 1
    return across, down, n, blocks, excess


@pytest.mark.parametrize("axis", [RESIDUAL, HIDDEN])
@pytest.mark.parametrize("zeros", [False, True])
def test_statistics_are_those_of_a_slow_reference(axis: str, zeros: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provindex.evidence.sampled_places.LARGE", 1 << 20)
    monkeypatch.setattr("provindex.evidence.sampled_places.SMALL", 1 << 20)
    plan.cache_clear()
    made = plan(axis, SMALL.pattern, 3)
    assert made is not None
    g = np.random.default_rng(3)
    size = sum(SMALL.pattern[i].size for i in made.matrices)
    x = np.round(g.standard_normal((3, size)), 1).astype(np.float32)  # ties
    y = np.round(0.3 * x + g.standard_normal((3, size)), 1).astype(np.float32)
    if zeros:
        for group in made.groups:
            x[:, group.samples[1::5]] = 0
            y[:, group.samples[2::7]] = 0
    found = sampled._measured(made, (), np.ones(3, bool), x, y)
    across, down, units, blocks, excess = slow_statistics(axis, SMALL.pattern, x, y)
    assert (found.across, found.down, found.units, len(found.sizes)) == (across, down, units, blocks)
    assert found.excess == pytest.approx(excess, abs=1e-6) and found.excess > 0
    plan.cache_clear()


def test_products_are_taken_of_few_values_and_cosines_of_more() -> None:
    g = np.random.default_rng(0)
    x, y = g.standard_normal((2, 1, 5, 2))
    assert np.allclose(similarity(x, y), (x - x.mean(1)) @ (y - y.mean(1)).swapaxes(1, 2))
    x, y = g.standard_normal((2, 1, 5, 3))
    assert np.abs(similarity(x, y)).max() <= 1 + 1e-12 and similarity(x, x)[0, 2, 2] == pytest.approx(1)


def test_the_p_values_pay_for_all_that_was_tried() -> None:
    parent = MIDDLE.draw(0)
    found = sampled_tests(MIDDLE.ours(child(parent, 0.2, 1)), MIDDLE.imported(parent))
    sides = sampled._sides(MIDDLE.ours(child(parent, 0.2, 1)), MIDDLE.imported(parent))
    tried = [f for axis in sampled.AXES for f in sampled._axis(axis, sides)]
    cost = np.log10(4 * len(tried))
    best = min(log10_alignment(f.excess, f.variance) for f in tried)
    assert found.aligned.log10_p == pytest.approx(best + cost)
    points = min(log10_fixed_points(max(f.across, f.down), len(f.sizes)) for f in tried if f.counts)
    assert found.fixed.log10_p == pytest.approx(min(0.0, points + cost))
    assert 2 <= len(tried) <= 6


# --- children, strangers ---


@pytest.mark.parametrize("shape", [SMALL, MIDDLE, replace(MIDDLE, width=320, sliced=True)])
def test_a_child_is_linked_and_a_stranger_is_not(shape: Llama) -> None:
    parent = shape.draw(0)
    guest, ours = shape.imported(parent), shape.ours(child(parent, 0.3, 1))
    found = sampled_tests(ours, guest)
    assert found.fixed.log10_p is not None and found.aligned.log10_p is not None
    assert min(found.fixed.log10_p, found.aligned.log10_p) < -20
    turned = sampled_tests(guest, ours)
    assert (found.fixed, found.aligned) == (turned.fixed, turned.aligned)
    assert found.aligned.smallest is not None and found.aligned.smallest < 0.3 and 0 < (found.aligned.value or 0) <= 1
    far = sampled_tests(shape.ours(shape.draw(2)), guest)
    assert far.fixed.log10_p is not None and far.aligned.log10_p is not None
    assert min(far.fixed.log10_p, far.aligned.log10_p) > -2


def test_permuted_copies_score_as_the_null_says() -> None:
    """80 copies in random orders: as many small p-values as there may be, and ranks within their variance."""
    shape, g = Llama(48, 80, 3, 3, 16, 3), np.random.default_rng(1)
    whole = {(n, i): g.standard_normal((m.rows, m.columns)) for n in range(3) for i, m in enumerate(shape.pattern)}

    def copy(*orders: Any) -> Values:
        out: Values = {}
        for (layer, i), w in whole.items():
            m, coordinates, hidden = shape.pattern[i], orders[0], orders[1 + layer]
            rows = {"o": coordinates, "down": coordinates, "gate": hidden, "up": hidden}.get(m.role)
            columns = hidden if m.role == "down" else None if m.role == "o" else coordinates
            w = w if rows is None else w[rows]
            out[layer, i] = (w if columns is None else w[:, columns])[places(m.rows, m.columns)].astype(np.float32)
        return out

    plain = copy(np.arange(48), *[np.arange(80)] * 3)
    host = shape.ours(plain)
    p, z = [], []
    with one_blas_thread():
        for _ in range(80):
            moved = copy(g.permutation(48), *(g.permutation(80) for _ in range(3)))
            found = sampled_tests(host, shape.imported(moved))
            p.append(min(found.fixed.log10_p or 0.0, found.aligned.log10_p or 0.0))
            z += [one.excess / one.variance**0.5 for one in found.chosen]
    assert np.mean(np.array(p) <= np.log10(0.05)) <= 0.1 and min(p) > -4
    assert max(z) < 4.5 and abs(np.mean(z)) < 1
    assert (sampled_tests(host, shape.imported(plain)).aligned.log10_p or 0) < -50


def test_units_that_are_zero_in_either_model_do_not_count() -> None:
    """128 of 512 zero units at equal places made strangers alike."""
    a, b = MIDDLE.draw(0), MIDDLE.draw(1)
    for values in (a, b):
        for layer, i in itertools.product(range(MIDDLE.layers), range(len(MIDDLE.pattern))):
            m = MIDDLE.pattern[i]
            row, column = places(m.rows, m.columns)
            gone = {"o": row, "down": row}.get(m.role, column) % 4 == 0
            values[layer, i][gone] = 0
    found = sampled_tests(MIDDLE.ours(a), MIDDLE.imported(b))
    one = next(f for f in found.chosen if f.axis == RESIDUAL)
    assert one.units == 192 and abs(one.excess / one.variance**0.5) < 4


def test_folded_gains_do_not_hide_a_copy() -> None:
    for shape in (MIDDLE, replace(MIDDLE, sliced=True)):
        parent, gains = shape.draw(0), np.exp(0.5 * np.random.default_rng(4).standard_normal((6, 2, 1 << 10)))
        folded = dict(parent)
        for (layer, i), v in parent.items():
            m = shape.pattern[i]
            if m.role in ("q", "k", "v", "gate", "up"):
                by = gains[layer, int(m.role in ("gate", "up"))]
                folded[layer, i] = (v * by[places(m.rows, m.columns, shape.sliced)[1]]).astype(np.float32)
        found = sampled_tests(shape.ours(folded), shape.imported(parent))
        assert (found.aligned.log10_p or 0) < -20


def test_copied_layers_count_once_and_identities_do_not() -> None:
    """Two models whose layers were repeated alike share no more than their repetition."""
    twice = [0, 1, 1, 2, 2, 3]
    a, b = ({(n, i): v[twice[n], i] for n, i in v} for v in (MIDDLE.draw(0), MIDDLE.draw(1)))
    found = sampled_tests(MIDDLE.ours(a), MIDDLE.imported(b))
    assert np.flatnonzero(~next(f for f in found.chosen if f.axis == HIDDEN).fits).tolist() == [2, 4]
    same = sampled_tests(MIDDLE.ours(a), MIDDLE.imported(a)).compared
    assert same is not None and same.equal
    started = MIDDLE.draw(3)
    row, column = places(256, 256)
    for layer in range(MIDDLE.layers):
        started[layer, 4][row == column] += 0.2
    found = sampled_tests(MIDDLE.ours(started), MIDDLE.imported(started))
    assert [one.axis for one in found.chosen] == [HIDDEN]
    assert sampled.started_as_identity([MIDDLE.pattern[4]], [np.stack([started[n, 4] for n in range(6)])], False)
    assert not sampled.started_as_identity([MIDDLE.pattern[4]], [np.stack([a[n, 4] for n in range(6)])], False)


# --- order of the vector ---


ORDERS: tuple[Sequence[int], ...] = ((0, 1, 2, 3, 4, 5, 6), MODULES, (6, 5, 4, 3, 2, 1, 0), (4, 0, 3, 1, 6, 2, 5))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [SMALL, MIDDLE])
def test_a_child_is_linked_in_any_order_of_the_file(order: Sequence[int], shape: Llama) -> None:
    parent = shape.draw(0)
    found = sampled_tests(shape.ours(child(parent, 0.9, 1)), shape.imported(parent, order))
    assert (found.aligned.log10_p or 0) < -20
    assert found.compared is not None and found.compared.median == pytest.approx(0.9, abs=0.03)
    assert all(one.layout == offsets(order, shape.pattern, one.matrices) for one in found.chosen)


def test_an_order_that_has_a_name_is_tried_where_sorted_values_say_nothing() -> None:
    """Matrices of one scale at a cosine of .1: what fits best is chance."""
    g = np.random.default_rng(0)
    parent: Values = {key: (0.02 * g.standard_normal(v.size)).astype(np.float32) for key, v in MIDDLE.draw(0).items()}
    for order in ((0, 1, 2, 3, 4, 5, 6), MODULES):
        found = sampled_tests(MIDDLE.ours(child(parent, 0.1, 1)), MIDDLE.imported(parent, order))
        assert (found.aligned.log10_p or 0) < -15


def test_what_is_chosen_does_not_move_when_units_do() -> None:
    """Why a choice by sorted values costs nothing: permutations within groups leave it as it is."""
    g = np.random.default_rng(0)
    for axis in (RESIDUAL, HIDDEN):
        made = plan(axis, SMALL.pattern, SMALL.layers)
        assert made is not None
        sizes = [SMALL.pattern[i].size for i in made.matrices]
        vectors = np.stack([np.concatenate([SMALL.draw(5)[n, i] for i in range(7)]) for n in range(SMALL.layers)])
        host = np.concatenate(
            [np.stack([SMALL.draw(6)[n, i] for n in range(SMALL.layers)]) for i in made.matrices], axis=1
        )
        cut = np.cumsum(sizes)[:-1]
        before = layouts(SMALL.pattern, made.matrices, vectors, np.split(host, cut, axis=1))
        for _ in range(5):
            moved = host.copy()
            for group in made.groups:
                moved[:, group.samples] = host[:, group.samples[g.permutation(group.units)]]
            assert (moved != host).any()
            after = layouts(SMALL.pattern, made.matrices, vectors, np.split(moved, cut, axis=1))
            assert list(after) == list(before) and all((after[k] == before[k]).all() for k in before)


def test_layers_that_lie_in_two_files_are_left_out() -> None:
    straddling = (1, 2, 3, 5, 6, 0, 4)
    parent = MIDDLE.draw(0)
    guest = MIDDLE.imported(parent, lambda layer: straddling if layer in (2, 4) else range(7))
    found = sampled_tests(MIDDLE.ours(child(parent, 0.95, 1)), guest)
    one = next(f for f in found.chosen if f.axis == RESIDUAL)
    assert np.flatnonzero(~one.fits).tolist() == [2, 4]
    assert one.layout == named(MIDDLE.pattern, one.matrices)[0] and (found.aligned.log10_p or 0) < -50
    assert found.compared is not None and found.compared.median == pytest.approx(0.95, abs=0.02)


def test_layers_of_another_length_are_left_out() -> None:
    parent = MIDDLE.draw(0)
    vectors = {n: np.concatenate([parent[n, i] for i in range(7)]) for n in range(6)}
    vectors[3] = vectors[3][:-5]
    found = sampled_tests(MIDDLE.ours(parent), MIDDLE.of_vectors(vectors))
    assert len(next(iter(found.chosen)).fits) == 5 and (found.aligned.log10_p or 0) < -50
    short = sampled_tests(MIDDLE.ours(parent), MIDDLE.of_vectors({n: v[:-5] for n, v in vectors.items()}))
    assert codes(short.aligned) == codes(short.fixed) == {Code.SAMPLED_OTHER_TENSORS}


# --- an order of the units ---


def sized(shape: Llama, values: Values, size: Callable[[Any, int], Any], axis: str) -> Values:
    """Samples times a factor for each unit of an axis."""
    out: Values = {}
    for (layer, i), v in values.items():
        m = shape.pattern[i]
        row, column = places(m.rows, m.columns)
        by_rows = ("o", "down") if axis == RESIDUAL else ("gate", "up")
        by_columns = ("q", "k", "v", "gate", "up") if axis == RESIDUAL else ("down",)
        unit = row if m.role in by_rows else column if m.role in by_columns else None
        units = m.rows if m.role in by_rows else m.columns
        out[layer, i] = v if unit is None else (v * size(unit, units)).astype(np.float32)
    return out


@pytest.mark.parametrize("axis", [RESIDUAL, HIDDEN])
def test_an_axis_in_order_of_size_is_not_tested(axis: str) -> None:
    plain = MIDDLE.draw(0)
    ordered = sized(MIDDLE, plain, lambda unit, units: 2 - unit / units, axis)
    waves = sized(MIDDLE, plain, lambda unit, units: 1.5 + np.sin(unit / units * 25), axis)
    for values in (ordered, waves):
        found = sampled_tests(MIDDLE.ours(values), MIDDLE.imported(plain))
        assert [one.axis for one in found.chosen] == [RESIDUAL if axis == HIDDEN else HIDDEN]
        found = sampled_tests(MIDDLE.ours(plain), MIDDLE.imported(values))
        own = [one for one in found.chosen if one.axis == axis]
        assert all(one.layout != named(MIDDLE.pattern, one.matrices)[0] for one in own)
        found = sampled_tests(MIDDLE.imported(plain), MIDDLE.imported(values))
        assert [one.axis for one in found.chosen] == [RESIDUAL if axis == HIDDEN else HIDDEN]
    both = sized(MIDDLE, ordered, lambda unit, units: 2 - unit / units, RESIDUAL if axis == HIDDEN else HIDDEN)
    assert codes(sampled_tests(MIDDLE.ours(both), MIDDLE.imported(plain)).aligned) == {Code.SAMPLED_ORDERED}
    spread = np.exp(0.4 * np.random.default_rng(9).standard_normal(1 << 12))
    lively = sized(MIDDLE, plain, lambda unit, _: spread[unit], axis)
    assert len(sampled_tests(MIDDLE.ours(lively), MIDDLE.imported(lively)).chosen) == 2


def test_coordinates_with_fixed_positions_are_not_tested() -> None:
    parent = MIDDLE.draw(0)
    ours, guest = MIDDLE.ours(parent), MIDDLE.imported(parent)
    for fp in (ours, guest):
        marked = replace(fp, facts=replace(fp.facts, architecture="m2m_100"))
        pair = (marked, guest) if fp is ours else (ours, marked)
        assert [one.axis for one in sampled_tests(*pair).chosen] == [HIDDEN]


# --- why a pair has no test ---


def test_a_pair_without_a_test_says_why() -> None:
    parent = SMALL.draw(0)
    ours, guest = SMALL.ours(parent), SMALL.imported(parent)

    def said(a: Fingerprint, b: Fingerprint) -> set[Code]:
        found = sampled_tests(a, b)
        assert codes(found.aligned) == codes(found.fixed) and found.compared is None
        return codes(found.aligned)

    assert said(ours, ours) == {Code.SAMPLED_OWN}
    vectors = {n: np.concatenate([parent[n, i] for i in range(7)]) for n in range(4)}
    assert said(ours, SMALL.of_vectors(vectors, "towers")) == {Code.SAMPLED_TOWERS}
    assert said(ours, replace(SMALL, sliced=True).of_vectors(vectors)) == {Code.SAMPLED_SLICES}
    assert ours.wvc is not None
    old = replace(ours.wvc, roles=(), rows=np.zeros(0, np.int32), columns=np.zeros(0, np.int32))
    assert said(replace(ours, wvc=old), guest) == {Code.SAMPLED_NO_ROLES}
    assert said(replace(ours, wvc=None), guest) == {Code.FINGERPRINT_LACKS}
    wide = replace(guest, facts=replace(guest.facts, hidden=65))
    assert said(ours, wide) == {Code.WIDTHS_DIFFER}
    other = replace(guest, mfi=replace(guest.mfi, intermediate_size=97))
    assert said(ours, other) == {Code.SAMPLED_SHAPES_DIFFER}
    nameless = replace(ours.wvc, roles=("",) * 28, rows=np.zeros(28, np.int32), columns=np.zeros(28, np.int32))
    assert said(replace(ours, wvc=nameless), guest) == {Code.SAMPLED_NO_UNITS}
    strange = replace(guest, mfi=replace(guest.mfi, model_type="gpt_neox"))
    assert said(strange, strange) == {Code.SAMPLED_SHAPES_UNKNOWN}


def test_two_imported_rows_are_compared_by_the_shapes_of_their_configs() -> None:
    for shape in (MIDDLE, replace(SEVENTY, layers=6)):
        parent = shape.draw(0)
        guest = shape.imported(parent)
        assert (sampled_tests(guest, shape.imported(child(parent, 0.2, 1))).aligned.log10_p or 0) < -10
        assert (sampled_tests(guest, shape.imported(shape.draw(2))).aligned.log10_p or 0) > -2


# --- what the samples say of the relation ---


def test_cosines_and_equality_under_the_chosen_order() -> None:
    parent = MIDDLE.draw(0)
    guest = MIDDLE.imported(parent, MODULES)
    same = compared(Pairing(MIDDLE.ours(parent), guest, frozenset()))
    assert same is not None and same.equal and same.median == pytest.approx(1) and same.n > 4 * 4096
    near = compared(Pairing(MIDDLE.ours(child(parent, 0.6, 1)), guest, frozenset()))
    assert near is not None and not near.equal
    assert near.median == pytest.approx(0.6, abs=0.02) and near.overall == pytest.approx(0.6, abs=0.02)


# --- rows ---


def test_roles_and_shapes_survive_a_row_and_contradicting_ones_are_refused() -> None:
    fp = prints.fingerprint(zoo.llama(1))
    row = to_row(fp)
    back = from_row(row)
    assert fp.wvc is not None and back.wvc is not None and back.wvc.roles == fp.wvc.roles
    assert (back.wvc.rows == fp.wvc.rows).all() and set(fp.wvc.roles) == {"q", "k", "v", "o", "gate", "up", "down"}
    n = len(fp.wvc.names)
    for column, value in (
        ("wvc_roles", ["q"] * (n - 1)), ("wvc_roles", ["nothing"] * n), ("wvc_roles", [""] * n), ("wvc_roles", []),
        ("wvc_rows", np.zeros(n, np.int32)), ("wvc_rows", row["wvc_rows"] - 1), ("wvc_rows", -row["wvc_rows"]),
        ("wvc_columns", np.full(n, 2**31 - 1, np.int32)), ("wvc_columns", row["wvc_columns"][:-1]),
    ):  # fmt: skip
        with pytest.raises(IndexFormatError, match="damaged"):
            from_row({**row, column: value})
    without = {k: v for k, v in row.items() if k not in ("wvc_roles", "wvc_rows", "wvc_columns")}
    old = from_row(without).wvc
    assert old is not None and old.roles == () and matrices_of(old) is None


def test_values_that_are_no_numbers_or_all_zero_are_no_evidence() -> None:
    parent = SMALL.draw(0)
    broken = {key: v.copy() for key, v in parent.items()}
    broken[1, 4][7] = np.inf
    assert codes(sampled_tests(SMALL.ours(broken), SMALL.imported(parent)).aligned) == {Code.SAMPLES_NOT_FINITE}
    assert codes(sampled_tests(SMALL.ours(parent), SMALL.imported(broken)).fixed) == {Code.SAMPLES_NOT_FINITE}
    none = {key: np.zeros_like(v) for key, v in parent.items()}
    for a, b in ((parent, none), (none, none)):
        assert codes(sampled_tests(SMALL.ours(a), SMALL.imported(b)).aligned) == {Code.SAMPLED_NO_UNITS}
    huge = {key: np.full_like(v, 3e38) * np.sign(v) for key, v in parent.items()}
    assert sampled_tests(SMALL.ours(huge), SMALL.imported(parent)).aligned.log10_p is not None
    deep = replace(SMALL, layers=sampled.MAX_LAYERS + 1, width=8, hidden=8, heads=1, kv=1, head=8).draw(0)
    shape = replace(SMALL, layers=sampled.MAX_LAYERS + 1, width=8, hidden=8, heads=1, kv=1, head=8)
    assert codes(sampled_tests(shape.ours(deep), shape.imported(deep)).aligned) == {Code.LAYERS_MANY}


def test_a_layer_of_many_matrices_is_not_looked_at() -> None:
    n = sampled.MOST_MATRICES + 1
    names = tuple(f"layers.0.q_proj.{i:02d}" for i in range(n))
    sizes, sides = np.full(n, 16, np.int32), np.full(n, 4, np.int32)
    many = wvc.Samples(names, np.zeros(n, np.int32), sizes, np.ones(16 * n, np.float32), ("q",) * n, sides, sides)
    guest = SMALL.of_vectors({0: np.ones(16 * n, np.float32)})
    assert codes(sampled_tests(replace(SMALL.ours(SMALL.draw(0)), wvc=many), guest).aligned) == {
        Code.SAMPLED_OTHER_TENSORS
    }


@pytest.mark.parametrize(("make", "roles"), [
    (zoo.neox, {"q+k+v", "o", "up", "down"}), (zoo.bert, {"q", "k", "v", "o", "up", "down"}),
    (zoo.qwen2, {"q", "k", "v", "o", "gate", "up", "down"}),
])  # fmt: skip
def test_every_kind_of_layer_has_its_roles(make: Callable[[int], zoo.Checkpoint], roles: set[str]) -> None:
    fp = prints.fingerprint(make(1))
    assert fp.wvc is not None and set(fp.wvc.roles) == roles


# --- from weights ---


@pytest.mark.parametrize("shape", [(48, 200), (100, 700), (33, 129), (20, 300), (300, 16)])
@pytest.mark.parametrize("sliced", [False, True])
def test_samples_of_weights_are_the_peers(shape: tuple[int, int], sliced: bool) -> None:
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float16).astype(np.float32)
    height = min(32, shape[0])
    flat = (w[:: shape[0] // height][:height] if sliced else w).reshape(-1)
    direct = flat if flat.size <= 4096 else flat[:: flat.size // 4096][:4096]
    assert (samples(tensor_from_array("w", w), sliced) == rounded(direct)).all()


def test_slices_of_a_model_answer_a_sliced_row() -> None:
    checkpoint = zoo.llama(1)
    model = prints.in_memory(checkpoint)
    whole, cut = slices(model, sliced=False), slices(model, sliced=True)
    assert isinstance(whole, Slices) and isinstance(cut, Slices) and cut.sliced and not whole.sliced
    ours = replace(prints.fingerprint(checkpoint, mode="sampled"), more={"slices": (whole,)})
    vectors = deep_signals(checkpoint)["wvc_layer_sigs"]
    base = prints.fingerprint(checkpoint)
    size = checkpoint.config["hidden_size"]
    shape = Llama(size, checkpoint.config["intermediate_size"], 1, 1, 1, len(vectors))
    guest = replace(shape.of_vectors(vectors), mfi=base.mfi, facts=base.facts)
    found = sampled_tests(ours, guest)
    assert (found.aligned.log10_p or 0) < -20 and found.compared is not None and found.compared.median > 0.999
    by_slices: dict[int, Any] = {}
    for name in sorted(checkpoint.tensors):
        w = np.asarray(checkpoint.tensors[name], np.float32)
        if "_proj" in name:
            layer, t = int(name.split("layers.")[1].split(".")[0]), w.shape[0] // min(32, w.shape[0])
            flat = w[::t][:32].reshape(-1)
            flat = flat if flat.size <= 4096 else flat[:: flat.size // 4096][:4096]
            by_slices[layer] = np.concatenate([by_slices.get(layer, flat[:0]), flat])
    other = replace(replace(shape, sliced=True).of_vectors(by_slices), mfi=base.mfi, facts=base.facts)
    assert codes(sampled_tests(ours, other).aligned) == {Code.SAMPLED_SLICES}
    found = sampled_tests(replace(ours, more={"slices": (whole, cut)}), other)
    assert (found.aligned.log10_p or 0) < -20 and found.compared is not None and found.compared.median > 0.999


def test_a_local_model_in_sampled_mode_gets_its_samples_and_no_row_keeps_them(tmp_path: Path) -> None:
    checkpoint = zoo.llama(1)
    zoo.write(checkpoint, tmp_path / "model")
    asked = api.resolve(tmp_path / "model", mode="sampled")
    given = api.with_slices(asked)
    assert [one.sliced for one in given.fingerprint.more["slices"]] == [False] and api.with_slices(given) is given
    assert to_row(given.fingerprint)["row_sha256"] == to_row(asked.fingerprint)["row_sha256"]
    assert api.with_slices(api.resolve(tmp_path / "model")).fingerprint.more.keys() == {"vectors", "whole_layers"}
    assert api.with_slices(replace(asked, model=None)).fingerprint.more.keys() == {"vectors", "whole_layers"}
    opened = open_model(tmp_path / "model")
    assert isinstance(slices(opened, sliced=False), Slices)


def test_a_model_without_projections_has_no_slices() -> None:
    found = slices(prints.in_memory(zoo.gpt2(1)), sliced=False)
    assert not isinstance(found, Slices) and found.code is Code.NO_PROJECTIONS
    ours = replace(SMALL.ours(SMALL.draw(0)), mode="sampled", wvc=None, more={"slices": (found,)})
    assert codes(sampled_tests(ours, SMALL.imported(SMALL.draw(0))).aligned) == {Code.NO_PROJECTIONS}
    assert Matrices({}, {}).patterns == {}
