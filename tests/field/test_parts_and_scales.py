"""Weights that are stored in parts are their product; codes without a known scale are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zoo
from packers import stored

from provindex.api import resolve
from provindex.common.errors import ModelError
from provindex.formats import parametrized
from provindex.formats.quantized.assembly import assemble
from provindex.formats.tensors import ByteTensor, tensor_from_array
from provindex.verdict.pair import compare

RNG = np.random.default_rng(0)
BASE = zoo.llama(1)


def tensors(**arrays: np.ndarray) -> dict[str, ByteTensor]:
    return {name.replace("__", "."): tensor_from_array(name.replace("__", "."), a) for name, a in arrays.items()}


def values(found: dict, name: str, shape: tuple[int, ...]) -> np.ndarray:
    whole = found[name].flat().reshape(shape)
    assert np.array_equal(found[name].flat(7, 11), whole.reshape(-1)[7:11]) and found[name].shape == shape
    return whole


def test_a_mask_is_multiplied() -> None:
    w, mask = RNG.standard_normal((6, 5)).astype("f4"), (RNG.random((6, 5)) < 0.5).astype("f4")
    found, notes = parametrized.assemble(tensors(a__weight_orig=w, a__weight_mask=mask, a__bias=w[0]))
    assert list(found) == ["a.weight", "a.bias"] and len(notes) == 1
    assert np.array_equal(values(found, "a.weight", (6, 5)), w * mask)


@pytest.mark.parametrize("axis", [0, 1, 2, None])
@pytest.mark.parametrize("ends", ["weight_{}", "parametrizations__weight__original{}"])
def test_weight_norm(axis: int | None, ends: str) -> None:
    v = RNG.standard_normal((4, 3, 5)).astype("f4")
    others = tuple(i for i in range(3) if i != axis)
    g = np.abs(RNG.standard_normal([n if i == axis else 1 for i, n in enumerate(v.shape)])).astype("f4")
    marks = "gv" if ends.startswith("weight") else "01"
    made = {f"a__{ends.format(mark)}": array for mark, array in zip(marks, (g, v), strict=True)}
    found, _ = parametrized.assemble(tensors(**made))
    wanted = g * v / np.sqrt((v.astype("f8") ** 2).sum(axis=others, keepdims=True))
    assert np.allclose(values(found, "a.weight", v.shape), wanted, rtol=1e-6)


@pytest.mark.parametrize("names", ["weight_orig weight_u weight_v", "{0}.original {0}.0._u {0}.0._v"])
def test_spectral_norm(names: str) -> None:
    w = RNG.standard_normal((4, 6)).astype("f4")
    u, s, vt = np.linalg.svd(w)
    ends = names.format("parametrizations.weight").split()
    made = [tensor_from_array(f"a.{end}", x) for end, x in zip(ends, (w, u[:, 0], vt[0]), strict=True)]
    found, _ = parametrized.assemble({t.name: t for t in made})
    assert np.allclose(values(found, "a.weight", w.shape), w / s[0], rtol=1e-5)


def test_parts_that_do_not_fit_are_refused() -> None:
    w = np.ones((4, 6), "f4")
    for wrong in (
        {"parametrizations__weight__original0": w, "parametrizations__weight__original1": w},
        {"a__weight_orig": w, "a__weight_mask": w, "a__weight": w},
        {"a__weight_orig": w, "a__weight_mask": w, "a__weight_g": w[:, :1], "a__weight_v": w},
        {"a__parametrizations__weight__original0": w[:, :1], "a__parametrizations__weight__original1": w,
         "a__weight_orig": w, "a__weight_mask": w},
    ):  # fmt: skip
        with pytest.raises(ModelError):
            parametrized.assemble(tensors(**wrong))
    made, _ = parametrized.assemble(tensors(a__weight_orig=w, a__weight_mask=w / 2))
    with pytest.raises(ModelError, match="is no mask"):
        made["a.weight"].flat()


@pytest.mark.parametrize(
    "shapes",
    [
        {"a__weight_orig": (4, 6), "a__weight_mask": (3, 6)},
        {"a__weight_g": (4, 6), "a__weight_v": (4, 6)},
        {"a__weight_g": (6,), "a__weight_v": (6,)},
        {"a__weight_orig": (4, 6), "a__weight_u": (6,), "a__weight_v": (6,)},
        {"att__time_mix_g": (1, 1, 6), "att__time_mix_v": (1, 1, 6)},
        {"att__w_g": (4, 1), "att__w_v": (4, 6)},
        {"pos_orig": (4, 6), "pos_mask": (4, 6)},
    ],
)
def test_tensors_whose_names_only_end_like_parts_stay(shapes: dict[str, tuple[int, ...]]) -> None:
    made = tensors(**{name: np.ones(shape, "f4") for name, shape in shapes.items()})
    assert parametrized.assemble(made) == (made, ())


def test_a_pruned_copy_is_the_model_that_it_computes(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    mask = (RNG.random(BASE.tensors[name].shape) < 0.5).astype("f4")
    apart = {n: v for n, v in BASE.tensors.items() if n != name} | {
        f"{name}_orig": BASE.tensors[name],
        f"{name}_mask": mask,
    }
    merged = {**BASE.tensors, name: BASE.tensors[name] * mask}
    ours, theirs = (
        resolve(zoo.write(BASE.with_tensors(made), tmp_path / f"m{i}")).fingerprint
        for i, made in enumerate((apart, merged))
    )
    assert ours.content_sha256 == theirs.content_sha256 and compare(ours, theirs).relation == "identical"


def codes(**more: np.ndarray) -> dict[str, ByteTensor]:
    """An FP8 weight and what is beside it, by the rest of its name."""
    raw = RNG.standard_normal((32, 32)).astype("f4")
    kept = {"a.weight": stored(raw, "F8_E4M3"), **{f"a.{n.replace('__', '.')}": stored(v) for n, v in more.items()}}
    return {name: as_tensor(name, *one) for name, one in kept.items()}


def as_tensor(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> ByteTensor:
    return ByteTensor(name, dtype, shape, tensor_from_array(name, np.frombuffer(data, np.uint8)).extent)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "scale_weight"])
def test_scales_under_the_names_that_tools_write(name: str) -> None:
    made = codes(**{name: np.array([0.5], "f4")})
    found, _ = assemble(made, {})
    assert list(found) == ["a.weight"]
    assert np.array_equal(found["a.weight"].flat(), made["a.weight"].flat() * np.float32(0.5))


@pytest.mark.parametrize("name", ["weight__amax", "weight_quantizer___scale", "weight___scale_inv", "my_scale"])
def test_a_scale_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"holds codes|is quantized"):
        assemble(codes(**{name: np.array([0.5], "f4")}), {})


def test_codes_without_a_scale() -> None:
    """FP8 alone may be a plain cast; whole numbers are never weights."""
    assert list(assemble(codes(), {})[0]) == ["a.weight"]
    whole = as_tensor("a.weight", *stored(np.ones((32, 32), np.int8)))
    with pytest.raises(ModelError, match="it has no scale"):
        assemble({"a.weight": whole}, {})


@pytest.mark.parametrize("spread", [(4, 1, 1), (1, 1, 1), (4, 3, 1), (1, 1, 5)])
def test_int8_with_scales_that_spread(spread: tuple[int, ...]) -> None:
    raw, scale = RNG.integers(-128, 128, (4, 3, 5)).astype(np.int8), RNG.random(spread).astype("f4")
    made = {name: as_tensor(name, *stored(a)) for name, a in (("a.w.qweight", raw), ("a.w.scale", scale))}
    found, _ = assemble(made, {})
    assert list(found) == ["a.w"] and np.array_equal(values(found, "a.w", raw.shape), raw * scale)
