"""The header reader against the reference implementation: files that it writes, and everything that it rejects."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from provindex.common.errors import ModelError
from provindex.formats.safetensors import Header, parse_header, read_header
from provindex.formats.tensors import Extent

NUMPY = ["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]
CODES = dict(zip(NUMPY, ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"], strict=True))


def split(data: bytes) -> tuple[bytes, int]:
    return data[8 : 8 + int.from_bytes(data[:8], "little")], len(data)


def check(data: bytes) -> Header:
    """Our reader on a whole file in memory."""
    if len(data) < 8:
        raise ModelError("too short")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ModelError("header beyond the file")
    return parse_header(data[8 : 8 + length], len(data), "file")


def build(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(NUMPY), st.lists(st.integers(0, 4), max_size=4)),
    min_size=1,  # the reference writes broken JSON for no tensors with empty metadata
    max_size=6,
)
metadata = st.none() | st.dictionaries(st.text("abc", max_size=3), st.text("xyz\u00e9\n", max_size=5), max_size=2)


@settings(deadline=None, max_examples=150)
@given(tensors, metadata)
def test_what_the_reference_writes_is_read_back(wanted: dict[str, Any], said: dict[str, str] | None) -> None:
    arrays = {name: np.ones(shape, CODES[dtype]) for name, (dtype, shape) in wanted.items()}
    data = save(arrays, metadata=said)
    header = check(data)
    theirs = dict(safetensors.deserialize(data))
    assert {e.name for e in header.entries} == theirs.keys()
    for entry in header.entries:
        assert (entry.dtype, list(entry.shape)) == (theirs[entry.name]["dtype"], list(theirs[entry.name]["shape"]))
        assert data[entry.start : entry.stop] == bytes(theirs[entry.name]["data"])
    assert dict(header.metadata) == (said or {})


SAMPLE = save({"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a.\u00e9": np.ones(3, np.int8)}, metadata={"k": "v"})
PIECES = [b"", b"0", b"-1", b"-0", b"1.0", b"9" * 30, b"null", b"NaN", b"true", b'"F32"', b"[]", b"{", b"}", b",", b":"]


@settings(deadline=None, max_examples=1500)
@given(
    st.integers(0, len(SAMPLE) - 1), st.integers(0, 3), st.sampled_from(PIECES) | st.binary(max_size=3), st.booleans()
)
def test_what_the_reference_rejects_we_reject(at: int, cut: int, piece: bytes, keep_length: bool) -> None:
    """Bytes replaced, removed and put in anywhere, with and without the header's length put right."""
    data = SAMPLE[:at] + piece + SAMPLE[at + cut :]
    if keep_length and at >= 8:
        data = (int.from_bytes(SAMPLE[:8], "little") + len(piece) - cut).to_bytes(8, "little") + data[8:]
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        with pytest.raises(ModelError):
            check(data)
        return
    assert {e.name for e in check(data).entries} == {name for name, _ in safetensors.deserialize(data)}


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


T = json.dumps(entry()).encode()
# what is wrong, file, words that the error must have
FAULTS = {
    "empty": (b"", "too short"),
    "length lies": ((1 << 40).to_bytes(8, "little") + b"{}", "announces a header"),
    "header beyond the file": ((100).to_bytes(8, "little") + b"{}", "has only 2"),
    "not an object": (build(b"[]"), "does not start with"),
    "not UTF-8": (build(b'{"\xff":1}'), "UTF-8"),
    "cut JSON": (build(b'{"a":'), "malformed"),
    "text after the end": (build(b"{} x"), "goes on after its end"),
    "name given twice": (build(b'{"a":' + T + b',"a":' + T + b"}", bytes(4)), "names 'a' twice"),
    "field given twice": (build(b'{"a":{"dtype":"F32",' + T[1:] + b"}", bytes(4)), "twice"),
    "unknown dtype": (build({"w": entry("F77")}, bytes(4)), "'w' an unknown dtype ('F77')"),
    "no shape": (build({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "'w' without dtype, shape"),
    "negative size": (build({"w": entry(shape=[-1])}, bytes(4)), "'w' a shape"),
    "boolean size": (build({"w": entry(shape=[True])}, bytes(4)), "'w' a shape"),
    "fractional size": (build({"w": entry(shape=[1.0])}, bytes(4)), "'w' a shape"),
    "rank 9": (build({"w": entry(shape=[1] * 9)}, bytes(4)), "'w' a shape"),
    "absurd shape": (build({"w": entry(shape=[1 << 62, 1 << 62])}, bytes(4)), "do not fit F32"),
    "absurd shape behind a zero": (build({"w": entry(shape=[1 << 62, 1 << 62, 0], offsets=[0, 0])}), "do not fit"),
    "wrong byte count": (build({"w": entry(shape=[2])}, bytes(4)), "'w' 4 bytes, which do not fit F32"),
    "offsets backwards": (build({"w": entry(offsets=[4, 0])}, bytes(4)), "data_offsets"),
    "three offsets": (build({"w": entry(offsets=[0, 4, 4])}, bytes(4)), "data_offsets"),
    "beyond the file": (build({"w": entry(offsets=[0, 4])}, bytes(3)), "'w' at bytes 0 to 4 of 3"),
    "overlap": (build({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), "'b' overlapping"),
    "gap": (build({"a": entry(), "b": entry(offsets=[6, 10])}, bytes(10)), "2 bytes that belong to no tensor"),
    "bytes left over": (build({"w": entry()}, bytes(9)), "5 bytes after its last tensor"),
    "metadata is no text": (build({"__metadata__": {"a": 1}}), "bad header"),
    "nested": (build(b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"), "bad header"),
    "control characters are shown escaped": (build({"\x1b[2Jw": entry("F77")}, bytes(4)), "\\x1b"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_sentence(name: str, tmp_path: Path) -> None:
    data, words = FAULTS[name]
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelError) as caught:
        read_header(Extent(np.frombuffer(data, np.uint8)), str(path))
    message = caught.value.message
    assert words in message and str(path) in message and "\n" not in message and "\x1b" not in message
    assert caught.value.next_step and len(message) < 500


def test_zero_sizes_scalars_and_unknown_fields_are_fine() -> None:
    header = {"z": entry(shape=[0, 5], offsets=[0, 0]), "s": {**entry(shape=[]), "note": "x"}, "__metadata__": None}
    assert {e.name: e.shape for e in check(build(header, bytes(4))).entries} == {"z": (0, 5), "s": ()}


@pytest.mark.parametrize(
    "body", [b'{"a":[' + b"[]," * 3_000_000 + b"[]]}", b'{"__metadata__":{"a":[' + b"[]," * 3_000_000]
)
def test_a_hostile_header_takes_memory_of_its_own_size_only(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            parse_header(body, len(body) + 8, "file")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()
