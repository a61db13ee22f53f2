"""Number formats against their definitions, the struct module, and ml_dtypes where it is installed."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from provindex.formats.dtypes import BITS, STORED, decode, element_bytes

CODES8 = np.arange(256, dtype=np.uint8)
CODES16 = np.arange(65536, dtype=np.uint16)

# format, code, value: the corners that the papers' tables print.
CORNERS = [
    ("F8_E4M3", 0x7E, 448.0), ("F8_E4M3", 0x08, 2.0**-6), ("F8_E4M3", 0x01, 2.0**-9), ("F8_E4M3", 0x38, 1.0),
    ("F8_E4M3", 0xB8, -1.0), ("F8_E4M3", 0x7F, np.nan), ("F8_E4M3", 0xFF, np.nan), ("F8_E4M3", 0x78, 256.0),
    ("F8_E5M2", 0x7B, 57344.0), ("F8_E5M2", 0x04, 2.0**-14), ("F8_E5M2", 0x01, 2.0**-16), ("F8_E5M2", 0x3C, 1.0),
    ("F8_E5M2", 0x7C, np.inf), ("F8_E5M2", 0xFC, -np.inf), ("F8_E5M2", 0x7D, np.nan), ("F8_E5M2", 0xFF, np.nan),
    ("F8_E4M3FNUZ", 0x7F, 240.0), ("F8_E4M3FNUZ", 0x40, 1.0), ("F8_E4M3FNUZ", 0x01, 2.0**-10),
    ("F8_E4M3FNUZ", 0x80, np.nan), ("F8_E5M2FNUZ", 0x7F, 57344.0), ("F8_E5M2FNUZ", 0x40, 1.0),
    ("F8_E5M2FNUZ", 0x01, 2.0**-17), ("F8_E5M2FNUZ", 0x80, np.nan),
    ("F8_E8M0", 0x7F, 1.0), ("F8_E8M0", 0xFE, 2.0**127), ("F8_E8M0", 0x00, 2.0**-127), ("F8_E8M0", 0xFF, np.nan),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "code", "value"), CORNERS)
def test_fp8_corners(dtype: str, code: int, value: float) -> None:
    assert np.array_equal(decode(np.array([code], np.uint8), dtype), np.float32([value]), equal_nan=True)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "BF16"])
def test_every_code_as_ml_dtypes(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = {
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "BF16": "bfloat16",
    }[dtype]  # fmt: skip
    codes = CODES16 if dtype == "BF16" else CODES8
    expected = codes.view(getattr(ml_dtypes, theirs)).astype(np.float32)
    assert np.array_equal(decode(codes, dtype), expected, equal_nan=True)


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    expected = np.array(struct.unpack("<65536f", b"".join(b"\0\0" + struct.pack("<H", c) for c in CODES16)), np.float32)
    assert np.array_equal(decode(CODES16, "BF16"), expected, equal_nan=True)


def test_float16_as_the_struct_module() -> None:
    expected = np.array(struct.unpack("<65536e", CODES16.tobytes()), np.float32)
    assert np.array_equal(decode(CODES16.view("<f2"), "F16"), expected, equal_nan=True)


@pytest.mark.parametrize("shape", [(1,), (0,), (4, 0), (64, 1024), (3, 64, 1024)])
@pytest.mark.parametrize("special", [(), (0x7C00,), (0xFC00, 0x7E01, 0xFFFF)])
def test_float16_has_the_bits_that_numpy_gives(shape: tuple[int, ...], special: tuple[int, ...]) -> None:
    """All finite codes in every shape and stride, without and with infinities and NaN (whose payloads count)."""
    finite = CODES16[(CODES16 & 0x7C00) != 0x7C00]
    codes = np.resize(finite, shape).astype("<u2")
    codes.reshape(-1)[: len(special)] = special[: codes.size]
    for stored in (codes.view("<f2"), codes.view("<f2").T, codes.view("<f2")[..., ::3]):
        ours, theirs = decode(stored, "F16"), stored.astype(np.float32)
        assert ours.shape == theirs.shape and ours.dtype == np.float32 and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", ["I8", "U8", "I16", "U16", "I32", "I64", "BOOL"])
def test_integers_keep_their_plain_values(dtype: str) -> None:
    values = [0, 1] if dtype == "BOOL" else [0, 1, 2, 100]
    stored = np.array(values, STORED[dtype])
    assert decode(stored, dtype).tolist() == values


def test_float64_is_rounded_and_overflows_to_infinity() -> None:
    assert decode(np.array([0.1, 1e300, -1e300]), "F64").tolist() == [float(np.float32(0.1)), np.inf, -np.inf]


@pytest.mark.parametrize("dtype", sorted(STORED))
def test_results_are_native_aligned_float32_from_any_address(dtype: str) -> None:
    width = STORED[dtype].itemsize
    raw = np.frombuffer(bytes(range(1, 1 + 3 * width)) + b"\0", np.uint8)
    shifted = np.frombuffer(b"\0" + raw.tobytes(), np.uint8)[1:]
    here, there = (decode(data[: 3 * width].view(STORED[dtype]), dtype) for data in (raw, shifted))
    assert here.dtype == np.float32 and there.flags.aligned and np.array_equal(here, there, equal_nan=True)


def test_widths_agree_and_odd_nibbles_are_no_bytes() -> None:
    assert all(BITS[name] == 8 * code.itemsize for name, code in STORED.items())
    assert element_bytes("F4", 3) is None and element_bytes("F4", 4) == 2 and element_bytes("F6_E2M3", 4) == 3


def test_formats_without_decoder_are_refused() -> None:
    with pytest.raises(KeyError):
        decode(CODES8, "F4")
