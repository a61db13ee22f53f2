"""Every parser of bytes that somebody else wrote, with what it may say and what it may take."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fuzz import optional, seeds
from fuzz.guard import Target
from fuzz.reading import given, look_at_tensors, parts, safetensors_tensors, scratch
from provindex.common import bounded_json, places
from provindex.common.errors import IndexFormatError, ModelError
from provindex.common.tokens import Tokenizer, guarded
from provindex.fingerprint import parquet, rows
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import COLUMNS, from_row, row_hash, to_row
from provindex.formats import folder, local_files, ranged, tiktoken
from provindex.formats import sentencepiece as spm
from provindex.formats.parquet import footer as parquet_footer
from provindex.formats.parquet import pages as parquet_pages
from provindex.hub import client as hub
from provindex.hub import pull
from provindex.index import dataset
from provindex.index import pulled as store
from provindex.index.search import vector
from provindex.index.verify import verify_rows
from provindex.models import card
from provindex.models.source import open_model
from provindex.models.tokenizer import read_tokenizer
from provindex.peers import archive, cisco, cisco_signals, long_form
from provindex.report.words import text
from provindex.roles import config_defaults, names
from provindex.signals import mfi, tfv, voa
from provindex.verdict import calibration
from provindex.verdict.pair import compare

WORDS = (" the", "of", "7", "ni", "Ġ", "", "\U0001f600" * 3, "a" * 200)


def _spoken(said: str) -> None:
    """A sentence that goes into a report, unlike a refusal as a field of it."""
    assert len(said) < 4096 and not any(unicodedata.category(c) == "Cs" for c in said), said[:80]


def _json(data: bytes, otherwise: Any) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return otherwise


# --- weights ---


def _safetensors(data: bytes) -> None:
    look_at_tensors(safetensors_tensors(data))


def _mend_safetensors(data: bytes) -> bytes:
    """The length of the header and of the file as the mutated header has them."""
    end = data.rfind(b"}}", 8, 1 << 16) + 2
    if end < 10:
        return data
    ends = [int(stop) for stop in re.findall(rb'"data_offsets":\s*\[\d{1,9},\s*(\d{1,9})\]', data[8:end])]
    size = max(ends, default=0)
    body = data[end : end + size] + bytes(max(0, min(size, 1 << 20) - len(data) + end))
    return (end - 8).to_bytes(8, "little") + data[8:end] + body


def _shards(data: bytes) -> None:
    found = folder.shards_of(data, "model.safetensors.index.json", "org/model")
    assert found and all(folder.is_plain_path(name) for name in found)
    assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in found)


def _file_names(data: bytes) -> None:
    listed = data.decode("utf-8", "surrogateescape").split("\n")
    chosen = folder.weight_files(listed, "org/model")
    assert {*chosen.files, *([chosen.index] if chosen.index else [])} <= set(listed)
    folder.left_out(dict.fromkeys(listed, folder.LARGE), chosen.files)


# --- JSON, config, card ---


def _bounded_json(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(bounded_json.JsonError):
        found, end = bounded_json.read_object(text, 0, lambda _, t, at: bounded_json.read_small(t, at))
        assert found == json.loads(text[:end])
    found = bounded_json.load_object(data)
    for name in found:
        assert len(bounded_json.shown(name)) < 1300


def _config_and_card(data: bytes) -> None:
    here = scratch()
    for name, raw in parts(data, ("config.json", "README.md")).items():
        (here / name).write_bytes(raw)
    place = local_files.look_at(here)
    read = card.read_card(place, "README.md")
    lists = (read.licenses, read.base_models, read.datasets, read.parents)
    assert all(len(texts) <= card.MOST and all(len(text) <= 200 for text in texts) for texts in lists)
    local_files.read_config(place, "config.json")


def _context(data: bytes) -> None:
    config = bounded_json.load_object(data)
    found = mfi.extract(config, None)
    raw = json.dumps(found.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    assert mfi.MfiFeatures.from_json(json.loads(raw)) is not None
    mfi.compare(found, mfi.extract(seeds.CONFIGS[0], None))
    mfi.rotary(found)
    config_defaults.tokenizer_class(config, config)


def _names(data: bytes) -> None:
    document = _json(data, {})
    document = document if isinstance(document, dict) else {}
    shapes, config = document.get("shapes"), document.get("config")
    listed = shapes.items() if isinstance(shapes, dict) else ()
    sound = {
        name: tuple(shape)
        for name, shape in listed
        if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 8
    }
    found = names.resolve(sound, config if isinstance(config, dict) else {})
    assert found.placements.keys() == sound.keys()
    for note in found.notes:
        assert len(text(note)) < 4096
    for name, placed in found.placements.items():
        for part in placed.parts[:20]:
            assert all(size >= 0 for size in names.part_shape(part, sound[name]))


# --- tokenizers ---


def _sentencepiece(data: bytes) -> None:
    model = spm.parse(data, "tokenizer.model")
    made = guarded(lambda: spm.backend(model, "tokenizer.model"))
    guarded(made.to_str)


def _ranks(data: bytes) -> None:
    is_lines = tiktoken.is_ranks(data)
    found = tiktoken.parse(data, "x") if is_lines else tiktoken.parse_tekken(bounded_json.load_object(data), "x")
    made = guarded(lambda: tiktoken.backend(found))
    guarded(made.to_str)


def _tokenizer(data: bytes) -> None:
    here = scratch()
    files = given(data, (*folder.TOKENIZER_FILES, "config.json"))
    paths: dict[str, Path] = {}
    for name, raw in files.items():
        paths[name] = here / name
        paths[name].write_bytes(raw)
    config = _json(files.get("config.json", b""), {})
    found = read_tokenizer(paths, config if isinstance(config, dict) else {})
    if not isinstance(found, Tokenizer):
        return _spoken(text(found.reason))
    for note in found.notes:
        _spoken(text(note))
    for word in WORDS:
        found.first_id(word)
    tfv.extract(found)
    voa.sketch(found.vocab)
    return None


# --- Parquet ---


def _footer(data: bytes) -> None:
    parquet_footer.groups(memoryview(data))


def _pages(data: bytes) -> None:
    view = memoryview(data)
    values, size = parquet_pages.totals(view, 0, len(view))
    assert values >= 0 and size >= 0
    found = parquet_pages.one_list(view, 0, len(view), 4, None)
    assert found is None or found.size <= len(data)


def _file(data: bytes) -> Path:
    path = scratch() / "file"
    path.write_bytes(data)
    return path


def _fingerprint_file(data: bytes) -> None:
    for found in parquet.read_fingerprints(_file(data)):
        to_row(found)


def _shard(data: bytes) -> None:
    here, listed = scratch(), parts(data, ("models", "panels"))
    for name, raw in listed.items():
        (here / name).write_bytes(raw)
    with contextlib.suppress(IndexFormatError):
        parquet.read_texts(here / "models", ("model_id", "revision", "variant"))
    listed_so = dataset.Shard("models", "panels", 1, {}, {})
    for read in (dataset.read_names, partial(dataset.read_texts, name="files")):
        with contextlib.suppress(IndexFormatError):
            parquet.check_footer(here / "models")  # as a pull does once, for all later reads
            read(here, listed_so)
    found = dataset.described(here, "models", "panels")
    for problem in verify_rows(here, found):
        assert problem.what


@cache
def _good_row() -> Mapping[str, Any]:
    return to_row(seeds.print_of_llama())


def _row(data: bytes) -> tuple[dict[str, Any], Fingerprint]:
    """The row that a document describes, as a Parquet file would hand it over: columns of their types, in bounds."""
    document = _json(data, {})
    document = document if isinstance(document, dict) else {}
    row = {c.name: _cell(c.name, c.type, document.get(c.name)) for c in COLUMNS}
    return row, from_row(row)


def _cell(name: str, kind: str, value: Any) -> Any:
    if kind == "string":
        if value is None and name in rows.NULLABLE:
            return None
        return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace").decode()
    if kind == "int":
        return max(-(1 << 63), min((1 << 63) - 1, value)) if isinstance(value, int) else 0
    if kind == "list<string>":
        texts = value if isinstance(value, list) else []
        return [str(text).encode("utf-8", "replace").decode() for text in texts]
    return _array(name, np.dtype(kind[5:-1]), value)


def _array(name: str, dtype: np.dtype[Any], value: Any) -> Any:
    """A list as an array, odd numbers brought into its type; {"size": n}: so many of the real values, over and over."""
    if isinstance(value, dict):
        size = value.get("size")
        good = _good_row()[name]
        size = max(0, min(size, 1 << 18)) if type(size) is int else 0
        return np.resize(good, size).astype(dtype) if good.size else np.zeros(size, dtype)
    numbers = [n for n in value if isinstance(n, int | float)] if isinstance(value, list) else []
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array([float(min(max(n, -1e308), 1e308)) if n == n else n for n in numbers]).astype(dtype)
    limits = np.iinfo(dtype)
    return np.array([min(max(int(n), limits.min), limits.max) if abs(n) < 1e300 else 0 for n in numbers], dtype)


def _fingerprint_row(data: bytes) -> None:
    row, found = _row(data)
    with np.errstate(all="ignore"):
        row_hash(row)
        vector(found)


def _comparison(data: bytes) -> None:
    """A row that was read, compared with a sound one both ways: rows of an index come from anybody."""
    _, found = _row(data)
    good = seeds.print_of_llama()
    with np.errstate(all="ignore"):
        compare(found, good)
        compare(good, found)


def _long_form(data: bytes) -> None:
    found = long_form.read(data)
    cisco_signals.take(
        seeds.print_of_llama().mfi, found, {"nlf_mode": "direct", "nlf_num_layers": 2, "hidden_size": 64}
    )


def _model(data: bytes) -> None:
    """A fingerprint of whatever a folder holds; it must be one that can be read again."""
    here, files = scratch(), parts(data, ("config.json", "tokenizer.json", "header", "weights"))
    for name in ("config.json", "tokenizer.json"):
        (here / name).write_bytes(files[name])
    header = files["header"]
    ends = [int(stop) for stop in re.findall(rb'"data_offsets":\s*\[\d{1,9},\s*(\d{1,9})\]', header)]
    size = min(max(ends, default=0), 1 << 20)
    weights = files["weights"][:size].ljust(size, b"\0")
    (here / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    with np.errstate(all="ignore"):
        row = to_row(fingerprint_model(open_model(here)))
        vector(parquet.checked(row))


# --- what indexes are described with ---


def _peer(data: bytes) -> None:
    here, made = scratch(), seeds.peer_database()
    changed = given(data, [path.replace("/", ".") for path in made])
    for name, raw in made.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed.get(name.replace("/", "."), raw))
    for found in cisco.read_database(here):
        if isinstance(found, Fingerprint):
            to_row(found)
        else:
            assert found.source.isprintable()
            _spoken(found.reason)


def _manifest(data: bytes) -> None:
    """A manifest as an index has it, and as that of a pulled revision."""
    here = scratch()
    (here / dataset.MANIFEST).write_bytes(data)
    document = dataset.manifest_document(here)
    found = dataset.manifest_of(document, "x")
    found.complaint(document)
    assert all(isinstance(digest, str) for digest in pull._digests_listed(here).values())
    dataset.write_manifest(here, found)
    assert dataset.read_manifest(here) == found


def _calibration(data: bytes) -> None:
    found = calibration.loads(data)
    for statistic in calibration.STATISTICS:
        found.chance(statistic, calibration.POOLED)
        log10_p, n = found.conformal(statistic, 0.15, calibration.STRATA[0])
        assert log10_p <= 0 and n >= 0


def _archive(data: bytes) -> None:
    """Every file of an archive; one that cannot be read is told, and the others are read."""
    path = _file(data)
    with archive.opened(path, below="by-family", sha256=hashlib.sha256(data).hexdigest()) as files:
        for name in files.names:
            try:
                assert files.read(name, 1 << 20) is not None
            except ValueError as error:
                _spoken(f"{error}.")
    assert [p.name for p in path.parent.iterdir()] == ["file"], "something was written"


def _spans(data: bytes) -> None:
    size, path = 1 << 16, scratch() / "x.part"
    with path.open("wb") as file:
        file.truncate(size)
    facts = path.stat()
    own = f"[{facts.st_dev}, {facts.st_ino}]".encode()  # a note of another file says nothing
    path.with_suffix(".spans").write_bytes(data.replace(b"[7, 7]", own))
    found = ranged.RangedFile(path, size, lambda ranges, keep: [keep(a, bytes(b - a)) for a, b in ranges][:0])
    assert all(0 <= start < stop <= size for start, stop in found.here) and found.here.total <= size
    found.bring([(0, size)], lambda _: None)
    assert list(found.here) == [(0, size)]


def _notes(data: bytes) -> None:
    with mock.patch.dict("os.environ", PROVINDEX_CACHE=str(scratch())):
        _read_notes(data)


def _read_notes(data: bytes) -> None:
    here = store.place("org/x")
    here.mkdir(parents=True)
    for name, raw in parts(data, ("current.json", "default")).items():
        (here / name if name == "current.json" else places.pulled_indexes() / name).write_bytes(raw)
    with contextlib.suppress(IndexFormatError):
        now = store.current("org/x")
        assert now is None or store.revision_folder("org/x", now.commit).parent == here
        store.origin(here / "a")
    with contextlib.suppress(IndexFormatError):
        store.pulled("org/x@main")
    store.default_folder()


def _listing(data: bytes) -> None:
    listed = _json(data, [])
    files = [
        hub.RemoteFile(e.get("path"), e.get("size"), e.get("blob"), e.get("sha256"))  # type: ignore[arg-type]
        for e in (listed if isinstance(listed, list) else [])
        if isinstance(e, dict)
    ]
    sound = {file.path: file for file in files if hub._is_sound(file) and file.path != dataset.MANIFEST}
    remote = hub.Remote("org/x", "main", "a" * 40, files=sound)
    found = pull.plan(remote, scratch(), None, {})
    assert found.bytes_total >= 0 and set(found.missing) <= set(sound)


# --- the table ---

NONE: tuple[type[Exception], ...] = ()
VALUE: tuple[type[Exception], ...] = (ValueError,)
JSON: tuple[type[Exception], ...] = (bounded_json.JsonError,)


def _target(name: str, make: Any, run: Any, **more: Any) -> Target:
    def with_corpus() -> Sequence[bytes]:
        return [*make(), *seeds.kept(name)]

    return Target(name, with_corpus, run, **more)


_ALL = (
    _target("safetensors", seeds.safetensors, _safetensors, mend=_mend_safetensors),
    _target("shards_index", seeds.shards_index, _shards),
    _target("file_names", seeds.file_names, _file_names),
    _target("bounded_json", seeds.json_texts, _bounded_json, refusals=JSON),
    _target("config_and_card", seeds.config_and_card, _config_and_card),
    _target("context", seeds.config_json, _context, refusals=JSON),
    _target("names", seeds.names, _names, refusals=NONE),
    _target("sentencepiece", seeds.sentencepiece, _sentencepiece, native=True),
    _target("ranks", seeds.ranks, _ranks, refusals=(ModelError, *JSON), native=True),
    _target("consolidated", optional.consolidated_seeds, optional.consolidated),
    _target("tokenizer", seeds.tokenizer, _tokenizer, refusals=NONE, memory=64 << 20, native=True),
    _target("parquet_footer", seeds.long_form, _footer, refusals=VALUE),
    _target("parquet_pages", seeds.parquet_column, _pages, refusals=VALUE),
    _target("fingerprint_file", seeds.fingerprint_file, _fingerprint_file, memory=64 << 20, native=True),
    _target("shard", seeds.shard, _shard, memory=64 << 20, native=True),
    _target("fingerprint_row", seeds.row, _fingerprint_row, refusals=(IndexFormatError,), memory=64 << 20),
    _target("comparison", seeds.row, _comparison, refusals=(IndexFormatError,), memory=128 << 20, seconds=10.0),
    _target("model", seeds.model, _model, refusals=(ModelError,), memory=128 << 20, seconds=10.0, native=True),
    _target("long_form", seeds.long_form, _long_form, refusals=VALUE, memory=64 << 20, native=True),
    _target("peer", seeds.peer, _peer, memory=64 << 20, native=True),
    _target("manifest", seeds.manifest, _manifest),
    _target("calibration", seeds.calibration, _calibration),
    _target("archive", seeds.archive, _archive),
    _target("spans", seeds.spans, _spans, refusals=NONE),
    _target("notes", seeds.notes, _notes),
    _target("listing", seeds.listing, _listing),
    _target("gguf", optional.gguf_seeds, optional.gguf, needs="provindex.formats.gguf.files"),
    _target("ctranslate2", optional.ctranslate2_seeds, optional.ctranslate2),
    _target("torch", optional.torch_seeds, optional.torch, needs="provindex.formats.torch.files"),
    _target("pickle", optional.pickle_seeds, optional.pickles, needs="provindex.formats.torch.pickle_machine"),
    _target("onnx", optional.onnx_seeds, optional.onnx, needs="provindex.formats.onnx.files"),
    _target("quantized", optional.quantized_seeds, optional.quantized, needs="provindex.formats.quantized.assembly"),
    _target("adapter", optional.adapter_seeds, optional.adapter, needs="provindex.models.adapters"),
)  # fmt: skip
TARGETS: Mapping[str, Target] = {t.name: t for t in _ALL if not t.needs or find_spec(t.needs)}
