"""Quantized checkpoints: each layout decodes to what its codes stand for, however it is read; hostile ones do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import packers as q
import pytest
import zoo
from packers import E2M1, LAYOUTS, written
from prints import fingerprint

from provindex.common.errors import ModelError
from provindex.common.tensor import Tensor
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.formats.dtypes import BITS, decode
from provindex.formats.quantized import layouts as quantized_layouts
from provindex.formats.quantized.assembly import assemble
from provindex.formats.ranged import RangedFile, Reading
from provindex.formats.tensors import ByteTensor, Extent
from provindex.models.source import open_model
from provindex.report.words import text, texts
from provindex.verdict.pair import compare

RNG = np.random.default_rng(0)
MATRIX = (RNG.standard_normal((96, 192)) * np.exp(0.5 * RNG.standard_normal((96, 1)))).astype(np.float32)
ODD = MATRIX[:35, :37].copy()
AT = "model.layers.0.mlp.up_proj"


def tensors_of(made: q.Quantized, at: str = AT) -> dict[str, Tensor]:
    """The stored tensors under their full names, in memory."""
    names = {f"{at}{end}" if end[0] == "_" else f"{at}.{end}": kept for end, kept in made.stored.items()}
    return {
        name: ByteTensor(name, dtype, shape, Extent(np.frombuffer(raw, np.uint8)))
        for name, (dtype, shape, raw) in names.items()
    }


def decoded(made: q.Quantized) -> Tensor:
    found, said = assemble(tensors_of(made), {"quantization_config": dict(made.settings)})
    assert list(found) == [f"{AT}.weight"] and len(said) == 1 and "1 quantized weights were decoded" in text(said[0])
    return found[f"{AT}.weight"]


def check_reads(tensor: Tensor, values: q.Array) -> None:
    """Every way of reading gives these values, bit for bit."""
    flat, (height, width) = values.reshape(-1), (values.shape[0], values.size // values.shape[0])
    assert tensor.shape == values.shape and tensor.size == values.size and not tensor.plain
    assert np.array_equal(tensor.flat(), flat)
    for start, stop in ((0, 1), (7, 9), (width - 1, width + 3), (3 * width + 5, 11 * width - 1), (flat.size - 2, None)):
        assert np.array_equal(tensor.flat(start, stop), flat[start:stop])
    some = np.array([height - 1, 0, height // 2, height // 2 + 1])
    assert np.array_equal(tensor.rows(some), values.reshape(height, width)[some])
    assert np.array_equal(tensor.strided(97, flat.size // 97), flat[::97][: flat.size // 97])
    assert np.array_equal(np.concatenate(list(tensor.chunks(1000))), flat)
    assert len(tensor.raw()) == tensor.nbytes and bytes(tensor.raw(3, 20)) == bytes(tensor.raw())[3:20]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_decodes_to_what_its_codes_stand_for(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = LAYOUTS[layout](MATRIX)
    assert np.linalg.norm(made.values - MATRIX) < 0.6 * np.linalg.norm(MATRIX), "the reference itself is no quantizer"
    check_reads(decoded(made), made.values)
    monkeypatch.setattr(quantized_layouts, "PIECE", 1000)  # pieces end inside of blocks, words and groups
    check_reads(decoded(made), made.values)


@pytest.mark.parametrize("layout", ["nf4", "nf4 nested", "fp4", "int8", "fp8 row", "fp8 block", "ct int8", "ct 3"])
def test_sizes_that_are_no_multiples_of_anything(layout: str) -> None:
    made = LAYOUTS[layout](ODD)
    check_reads(decoded(made), made.values)


def test_stacked_experts_of_gpt_oss_come_as_transformers_returns_them() -> None:
    made = q.gpt_oss(RNG.standard_normal((3, 40, 96)).astype(np.float32))
    at = "model.layers.0.mlp.experts.gate_up_proj"
    found, _ = assemble(tensors_of(made, at), {"quantization_config": {"quant_method": "mxfp4"}})
    assert list(found) == [at] and found[at].shape == (3, 96, 40)
    assert np.array_equal(found[at].flat(), made.values.reshape(-1))
    assert np.array_equal(found[at].rows([2, 0]), made.values.reshape(3, -1)[[2, 0]])
    assert np.array_equal(found[at].flat(41 * 40 + 3, 150 * 40), made.values.reshape(-1)[41 * 40 + 3 : 150 * 40])


def test_stacked_fp8_experts_have_scales_of_their_own() -> None:
    one, two = (q.fp8(m, 128, 128, "weight_scale_inv") for m in (MATRIX, 3 * MATRIX[::-1].copy()))
    both = {kind: (dtype, (2, *shape), raw + two.stored[kind][2]) for kind, (dtype, shape, raw) in one.stored.items()}
    tensor = decoded(replace(one, stored=both))
    assert np.array_equal(tensor.flat(), np.concatenate([one.values, two.values]).reshape(-1))
    rows = tensor.flat(95 * 192, 98 * 192).reshape(3, 192)
    assert np.array_equal(rows, np.concatenate([one.values, two.values])[95:98])


def elsewhere(made: q.Quantized, folder: Path) -> tuple[dict[str, Tensor], RangedFile]:
    """The stored tensors of a file that is elsewhere, and who watches it."""
    tensors = tensors_of(made)
    data = b"".join(bytes(tensor.raw()) for tensor in tensors.values())

    def fetch(ranges: Sequence[tuple[int, int]], keep: Callable[[int, bytes], None]) -> None:
        for start, stop in ranges:
            keep(start, data[start:stop])

    file, at, found = RangedFile(folder / "file.part", len(data), fetch), 0, dict[str, Tensor]()
    for name, tensor in tensors.items():
        found[name] = ByteTensor(name, tensor.dtype, tensor.shape, file.extent.part(at, at + tensor.nbytes))
        at += tensor.nbytes
    return found, file


@pytest.mark.parametrize("layout", ["gptq 4", "awq", "nf4 nested", "ct 4 zeros", "fp8 block", "nvfp4 modelopt"])
def test_a_sampled_read_touches_its_rows_alone(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_layouts, "GAP", 4)  # rows across the file are then far from each other
    made = LAYOUTS[layout](MATRIX)
    stored, file = elsewhere(made, tmp_path)
    (tensor,) = assemble(stored, {"quantization_config": dict(made.settings)})[0].values()
    file.restart()
    assert np.array_equal(tensor.flat(0, 8 * 192).reshape(8, 192), made.values[:8])
    tables = 192 * 4 + 96 * 8 * 4  # the order of the groups, and what cannot be cut: words of 32 zero points
    assert file.seen.total <= tensor.nbytes * 8 / 96 + tables


@pytest.mark.parametrize("layout", ["gptq 4", "awq", "gpt-oss"])
def test_rows_across_the_file_are_one_read_of_each_stored_tensor(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file on the disk, and of one elsewhere that is fetched with its gaps anyway: not a call for each row."""
    made = q.gpt_oss(MATRIX[None]) if layout == "gpt-oss" else LAYOUTS[layout](MATRIX)
    full = list(tensors_of(made))
    calls: list[int] = []

    def touch(self: Reading, start: int, stop: int) -> None:
        calls.append(stop - start)
        noted(self, start, stop)

    noted = Reading.touch
    monkeypatch.setattr(Reading, "touch", touch)
    place = tmp_path / "m"
    place.mkdir()
    q.save(place / "model.safetensors", {name: made.stored[end] for name, end in zip(full, made.stored, strict=True)})
    (place / "config.json").write_text(json.dumps({"quantization_config": dict(made.settings)}))
    remote, _ = elsewhere(made, tmp_path)
    for stored in (open_model(place).tensors, assemble(remote, {"quantization_config": dict(made.settings)})[0]):
        (tensor,) = stored.values()
        calls.clear()
        width = tensor.shape[-1]
        assert np.array_equal(tensor.flat(8 * width, 24 * width), made.values.reshape(-1)[8 * width : 24 * width])
        assert 0 < len(calls) <= len(made.stored)


# --- whole models ---


@pytest.fixture(scope="module")
def original() -> zoo.Checkpoint:
    return zoo.llama(11, hidden=128, intermediate=256, layers=3)


@pytest.fixture(scope="module")
def original_print(original: zoo.Checkpoint) -> Fingerprint:
    return fingerprint(original, "original")


@pytest.mark.parametrize(
    "layout", ["gptq 4 act", "gptq 8", "awq", "nf4 nested", "int8", "fp8 block", "ct 4 zeros", "nvfp4 ct", "mxfp4"]
)
def test_a_quantized_copy_is_linked_to_the_original(
    layout: str, original: zoo.Checkpoint, original_print: Fingerprint, tmp_path: Path
) -> None:
    model = open_model(written(original, tmp_path / "copy", LAYOUTS[layout]))
    assert list(model.tensors) == list(original.tensors)
    made = fingerprint_model(model)
    assert made.facts.parameters == original_print.facts.parameters
    assert made.content_sha256 != original_print.content_sha256
    assert not any("not known" in text for text in texts(made.warnings))
    pair = compare(original_print, made)
    assert (pair.verdict, pair.direction) in (("linked", "ancestor"), ("linked", "unknown"))
    assert pair.relation != "identical" and pair.closeness > 0.97
    for signal, least in (("END", 0.9999), ("LEP", 0.99), ("WVC", 0.97), ("EAS", 0.9999)):
        assert (pair.signals[signal].value or 0) >= least, signal


def test_the_same_codes_in_another_layout_are_identical(original: zoo.Checkpoint, tmp_path: Path) -> None:
    """GPTQ and AWQ differ in how words are packed; what they stand for has one hash."""
    prints = [
        fingerprint_model(open_model(written(original, tmp_path / name, LAYOUTS[name])))
        for name in ("gptq 4", "gptq 4 v2", "awq", "ct 4 zeros")
    ]
    assert len({made.content_sha256 for made in prints}) == 1
    assert compare(prints[0], prints[2]).relation == "identical"


@pytest.mark.parametrize("layout", ["gptq 3", "gptq 4 act", "awq", "nf4 nested"])
def test_sampled_fingerprints_are_those_of_the_decoded_weights(
    layout: str, original: zoo.Checkpoint, tmp_path: Path
) -> None:
    model = open_model(written(original, tmp_path / "copy", LAYOUTS[layout]))
    plain = {
        name: LAYOUTS[layout](value).values if ".layers." in name and value.ndim == 2 else value
        for name, value in original.tensors.items()
    }
    reference = fingerprint(replace(original, tensors=plain), "plain")
    exact, sampled = fingerprint_model(model), fingerprint_model(model, mode="sampled")
    for made in (exact, sampled):
        assert made.blocks is not None and reference.blocks is not None and made.blocks.exact.any()
        assert np.array_equal(made.blocks.exact, reference.blocks.exact)
        assert made.eas is not None and reference.eas is not None and np.allclose(made.eas, reference.eas, atol=1e-6)
    assert exact.content_sha256 == reference.content_sha256
    assert compare(exact, sampled).verdict == "linked"


def test_a_model_without_quantized_tensors_is_unchanged() -> None:
    plain = tensors_of(q.Quantized({"weight": q.stored(MATRIX), "logit_scale": q.stored(MATRIX[0])}, MATRIX, {}))
    alone = q.stored(np.zeros((4, 4), np.int8))
    plain |= tensors_of(q.Quantized({"table": alone, "codes": alone, "input_scale": alone}, MATRIX, {}), "other")
    assert assemble(plain, {}) == (plain, ())


# --- what is refused ---


@pytest.mark.parametrize(
    ("layout", "part", "change"),
    [
        ("gptq 4", "qzeros", lambda s: (s[0], (s[1][0], s[1][1] - 1), s[2][: -4 * s[1][0]])),
        ("gptq 4", "scales", lambda s: (s[0], (s[1][0], s[1][1] - 8), s[2][: -16 * s[1][0]])),
        ("gptq 4", "qweight", lambda s: (s[0], (s[1][0], s[1][1] - 1), s[2][: -4 * s[1][0]])),
        ("gptq 4", "g_idx", lambda s: (s[0], (s[1][0] - 1,), s[2][:-4])),
        ("awq", "qweight", lambda s: (s[0], (s[1][0], s[1][1] - 1), s[2][: -4 * s[1][0]])),
        ("nf4", "weight.absmax", lambda s: (s[0], (s[1][0] - 1,), s[2][:-4])),
        ("nf4", "weight", lambda s: (s[0], (s[1][0] - 1, 1), s[2][:-1])),
        ("nf4", "weight.quant_map", lambda s: (s[0], (8,), s[2][:32])),
        ("nf4 nested", "weight.nested_quant_map", lambda s: (s[0], (255,), s[2][:-4])),
        ("int8", "SCB", lambda s: (s[0], (s[1][0] - 1,), s[2][:-4])),
        ("fp8 row", "weight_scale", lambda s: (s[0], (s[1][0] - 1, 1), s[2][:-2])),
        ("fp8 block", "weight_scale_inv", lambda s: (s[0], (1, 5), s[2] * 5)),
        ("ct 4", "weight_packed", lambda s: (s[0], (s[1][0] - 1, s[1][1]), s[2][: -4 * s[1][1]])),
        ("ct 4", "weight_shape", lambda s: (s[0], s[1], np.array([96, 1 << 62]).tobytes())),
        ("ct 4", "weight_shape", lambda s: (s[0], s[1], np.array([-96, 192]).tobytes())),
        ("ct 4 zeros", "weight_zero_point", lambda s: (s[0], (s[1][0] - 1, s[1][1]), s[2][: -4 * s[1][1]])),
        ("nvfp4 modelopt", "weight_scale", lambda s: (s[0], (96, 6), s[2][: 96 * 6])),
    ],
)
def test_shapes_that_do_not_fit_are_refused(layout: str, part: str, change: Callable[[q.Stored], q.Stored]) -> None:
    made = LAYOUTS[layout](MATRIX)
    bad = replace(made, stored={**made.stored, part: change(made.stored[part])})
    with pytest.raises(ModelError, match="do not fit each other") as raised:
        assemble(tensors_of(bad), {"quantization_config": dict(made.settings)})
    assert f"{AT}.{part}" in raised.value.message


def test_mutated_groups_are_read_or_refused_and_nothing_else() -> None:
    """Other sizes, dtypes and settings, with bytes to match: a tensor of the size that it says, or a sentence."""
    rng = np.random.default_rng(7)
    small = MATRIX[:32, :64].copy()
    made = [make(small) for make in LAYOUTS.values()]
    read = refused = 0
    for _ in range(1500):
        one = made[rng.integers(len(made))]
        settings = {**one.settings, "group_size": int(rng.integers(-1, 70)), "weight_block_size": [32, 0]}
        for part in rng.choice(list(one.stored), size=int(rng.integers(1, 3))).tolist():
            _, shape, raw = one.stored[part]
            dtype = ("F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "I8", "U8", "I32", "I64")[rng.integers(9)]
            sizes = [int(n * rng.choice([0, 0.5, 1, 1, 2]) + rng.choice([0, 0, 0, 1])) for n in shape]
            sizes = sizes[: rng.integers(1, 4)] + [1] * int(rng.integers(0, 2))
            need = int(np.prod(sizes, dtype=np.int64)) * BITS[dtype] // 8
            changed = (dtype, tuple(sizes), ((raw or bytes(8)) * need)[:need])
            one = replace(one, stored={**one.stored, part: changed})
        try:
            found, _ = assemble(tensors_of(one), {"quantization_config": settings})
            for tensor in found.values():
                assert tensor.flat(0, 200).size == min(200, tensor.size) and tensor.flat().size == tensor.size
            read += 1
        except ModelError:
            refused += 1
    assert read > 100 and refused > 100


@pytest.mark.parametrize(("value", "said"), [(6, "groups 0 to 6"), (-1, "groups -1 to 5")])
def test_group_indices_out_of_range_are_refused(value: int, said: str) -> None:
    made = q.gptq(MATRIX)
    order = np.frombuffer(made.stored["g_idx"][2], np.int32).copy()
    order[17] = value
    bad = decoded(replace(made, stored={**made.stored, "g_idx": q.stored(order)}))
    with pytest.raises(ModelError, match=said):
        bad.flat(0, 10)


@pytest.mark.parametrize(
    "said",
    [
        {"shape": [1 << 40, 192]}, {"shape": [96]}, {"shape": [True, 192]}, {"blocksize": 0}, {"blocksize": 1 << 40},
        {"blocksize": None}, {"nested_offset": "1"}, {"nested_offset": float("nan")}, {"nested_blocksize": -1},
    ],
)  # fmt: skip
def test_a_state_that_lies_is_refused(said: dict[str, object]) -> None:
    made = q.bnb_4bit(MATRIX, nested=True)
    end = "weight.quant_state.bitsandbytes__nf4"
    text = json.dumps(json.loads(made.stored[end][2]) | said).encode()
    bad = replace(made, stored={**made.stored, end: q.stored(np.frombuffer(text, np.uint8))})
    with pytest.raises(ModelError, match="bitsandbytes__nf4"):
        decoded(bad)


@pytest.mark.parametrize("end", ["qzeros", "scales"])
def test_a_group_without_one_of_its_tensors_is_refused(end: str) -> None:
    made = q.gptq(MATRIX)
    with pytest.raises(ModelError, match=f"has no {end} beside"):
        decoded(replace(made, stored={k: v for k, v in made.stored.items() if k != end}))


def test_a_weight_that_is_there_twice_is_refused() -> None:
    made = q.gptq(MATRIX)
    with pytest.raises(ModelError, match="is there twice, quantized and as it is"):
        decoded(replace(made, stored={**made.stored, "weight": q.stored(MATRIX)}))


WORDS = q.stored(np.zeros((96, 24), np.int32))
BYTES = q.stored(np.zeros((96, 24), np.uint8))


@pytest.mark.parametrize(
    ("stored", "method", "said"),
    [
        ({"codes": BYTES, "codebooks": q.stored(np.zeros((2, 8), np.float16)), "scales": BYTES}, "aqlm", "AQLM"),
        ({"W_q": BYTES, "scale": q.stored(MATRIX)}, None, "HQQ"),
        ({"Qidxs": ("I64", (96, 3), bytes(96 * 24)), "SU": q.stored(MATRIX[0])}, None, "QuIP#"),
        ({"codes": BYTES, "codebooks": q.stored(np.zeros((2, 8, 1, 8), np.float16))}, None, "AQLM"),
        ({"W_q": q.stored(MATRIX), "scale": q.stored(MATRIX)}, None, "HQQ"),
        ({"q_weight": WORDS, "q_scale": WORDS, "q_groups": BYTES}, None, "EXL2"),
        ({"trellis": ("I16", (6, 12, 64), bytes(2 * 96 * 48)), "suh": q.stored(MATRIX[0])}, None, "EXL3"),
        ({"weight": ("U32", (96, 24), WORDS[2]), "biases": q.stored(MATRIX)}, None, "MLX"),
        ({"weight": q.stored(np.zeros((4, 4), np.int8)), "weight_scales": q.stored(MATRIX[0])}, None, "EETQ"),
        ({"weight": BYTES, "weight_scale": q.stored(MATRIX[0, :1])}, "bitnet", "unknown method|bitnet"),
        ({"indices": WORDS, "centroids.weight": q.stored(MATRIX)}, "vptq", "(?i)vptq"),
        ({"weight": BYTES}, "torchao", "torchao"),
        ({"qweight": WORDS}, None, "another layout of packed words"),
    ],
)
def test_methods_that_are_not_decoded_are_refused_with_the_way_out(
    stored: dict[str, q.Stored], method: str | None, said: str
) -> None:
    config = {"quantization_config": {"quant_method": method}} if method else {}
    with pytest.raises(ModelError, match=said) as raised:
        assemble(tensors_of(q.Quantized(stored, MATRIX, {})), config)
    assert "Fingerprint the model that was quantized" in str(raised.value)
    assert "transformers" not in str(raised.value), "it cannot dequantize most of these"


def test_mlx_stores_four_bits_as_it_stores_eight_in_smaller_groups() -> None:
    made = q.mlx(MATRIX)
    with pytest.raises(ModelError, match=r"4 bits in groups of 64 or 8 bits in groups of 32") as raised:
        assemble(tensors_of(made), {})
    assert "config.json" in (raised.value.next_step or "")
    own = {"bits": 8, "group_size": 32, AT: {"bits": 4, "group_size": 64}}  # as mlx-lm writes mixed models
    (tensor,) = assemble(tensors_of(made), {"quantization": own})[0].values()
    assert np.array_equal(tensor.flat().reshape(MATRIX.shape), made.values)
    other = {"bits": 8, "group_size": 32, f"language_model.{AT}": {"bits": 4, "group_size": 64}}  # mlx-vlm #1079
    (tensor,) = assemble(tensors_of(made), {"quantization": other})[0].values()
    assert np.array_equal(tensor.flat().reshape(MATRIX.shape), made.values)
    six = q.mlx(MATRIX, 6, 32)  # or 3 bits in groups of 64; other bits than the config says, in groups as it says
    (tensor,) = assemble(tensors_of(six), {"quantization": {"bits": 4, "group_size": 32}})[0].values()
    assert np.array_equal(tensor.flat().reshape(MATRIX.shape), six.values)
    (tensor,) = assemble(tensors_of(q.mlx(MATRIX, 5, 64)), {})[0].values()
    assert tensor.shape == MATRIX.shape, "the only way in which these shapes fit"


@pytest.mark.parametrize(("kind", "words", "groups"), [("MXFP4", 24, 6), ("NVFP4", 24, 12), ("MXFP8", 48, 6)])
def test_mlx_formats_without_biases(kind: str, words: int, groups: int) -> None:
    """Against tests of the arithmetic in test_dtypes and above: what is new here is where the codes are."""
    rng = np.random.default_rng(3)
    codes, scales = rng.integers(0, 120, (96, 4 * words)), rng.integers(100, 120, (96, groups))
    kept = {
        "weight": ("U32", (96, words), codes.astype(np.uint8).tobytes()),
        "scales": ("U8", (96, groups), scales.astype(np.uint8).tobytes()),
    }
    (tensor,) = assemble(tensors_of(q.Quantized(kept, MATRIX, {})), {})[0].values()
    assert tensor.dtype == kind and tensor.shape == (96, 192)
    found = tensor.flat().reshape(96, groups, -1)
    by_hand = (
        decode(codes.astype(np.uint8), "F8_E4M3") if kind == "MXFP8" else E2M1[np.stack([codes & 15, codes >> 4], -1)]
    )
    scale = decode(scales.astype(np.uint8), "F8_E4M3" if kind == "NVFP4" else "F8_E8M0")
    assert np.array_equal(found, by_hand.reshape(found.shape) * scale[:, :, None])


def test_layouts_that_nobody_can_tell_apart_are_refused() -> None:
    made = q.gptq(MATRIX)
    with pytest.raises(ModelError, match="either orientation"):
        assemble(tensors_of(made), {"model_type": "gpt2", "quantization_config": dict(made.settings)})
    tiled = q.bnb_int8(MATRIX)
    form = q.stored(np.array(2, np.uint8))
    with pytest.raises(ModelError, match="one kind of GPU"):
        decoded(replace(tiled, stored={**tiled.stored, "weight_format": form})).flat(0, 4)
