"""Every format that is read, from its file: the source of a quantized copy is told from a sibling 1 % away."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import packers
import pytest
import zoo
from prints import fingerprint
from quantizers import QUANTIZERS, Quantizer, in_gguf

from provindex.api import Index
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model
from provindex.verdict.pair import compare

TOLD = "quantized"
REORDERED = "scales of reordered columns: neighbors along a row share none, so no grid is seen"
NOT_TOLD: Mapping[str, str] = {"gptq 4 act": REORDERED, "ct 4 act": REORDERED}
IN_GGUF = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip


def as_gguf(kind: str, folder: Path) -> Path:
    gguf_packers = pytest.importorskip("gguf_packers", exc_type=ImportError)
    return Path(gguf_packers.write_llama(folder / "model.gguf", source(), kind))


def as_layout(name: str, folder: Path) -> Path:
    return packers.written(source(), folder, packers.LAYOUTS[name])


COPIES: Mapping[str, Callable[[Path], Path]] = {
    **{f"gguf {kind}": partial(as_gguf, kind) for kind in IN_GGUF},
    **{name: partial(as_layout, name) for name in packers.LAYOUTS},
}


@cache
def source() -> zoo.Checkpoint:
    return zoo.llama(11, hidden=256, intermediate=256, layers=1)


@cache
def relatives(folder: Path) -> tuple[Fingerprint, Fingerprint]:
    """The bfloat16 copy of the source, as a file, and that of a sibling."""
    rng = np.random.default_rng(1)
    moved = {
        name: (value + 0.01 * value.std() * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in source().tensors.items()
    }
    one = open_model(str(zoo.write(source(), folder / "source", dtype="BF16")))
    return fingerprint_model(one), fingerprint(zoo.cast(source().with_tensors(moved), "BF16"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fingerprint, Fingerprint]:
    return relatives(tmp_path_factory.mktemp("relatives"))


@pytest.mark.parametrize("name", COPIES)
def test_the_source_of_a_file_is_told_from_a_sibling(
    name: str, both: tuple[Fingerprint, Fingerprint], tmp_path: Path
) -> None:
    copy = fingerprint_model(open_model(str(COPIES[name](tmp_path))))
    pair, other = (compare(copy, one) for one in both)
    assert (pair.verdict, other.verdict, other.relation) == ("linked", "linked", "finetune")
    if name in NOT_TOLD:
        assert (pair.relation, pair.around) == ("finetune", "")
    else:
        assert (pair.relation, pair.direction, pair.around) == (TOLD, "descendant", "A")
        assert other.half_step is not None and other.half_step.share > 0.002


def test_every_format_has_a_row() -> None:
    from provindex.formats.gguf.blocks import FORMATS

    assert {form.name for form in FORMATS.values() if form.decode} == set(IN_GGUF)


# --- real models ---

REAL = Path(os.environ.get("PROVINDEX_REAL_MODELS", "")) / "snapshots"
FAMILIES = (("rxnfp-pretrained", "rxnfp-ft"), ("minilm-l6-gt",))
EIGHT_BITS = ("Q8_0", "int8 per row")  # that bfloat16 hides
KINDS = ("Q8_0", "gguf Q4_0", "Q4_K", "NF4", "int8 per row", "FP8 E4M3 per row")


def opened(name: str) -> zoo.Checkpoint:
    """A real snapshot with its matrices in memory."""
    model = open_model(str(REAL / name))
    tensors = {key: tensor.flat().reshape(tensor.shape) for key, tensor in model.tensors.items()}
    return zoo.Checkpoint(dict(model.config), tensors, (REAL / name / "tokenizer.json").read_text(encoding="utf-8"))


def quantized(model: zoo.Checkpoint, by: Quantizer) -> zoo.Checkpoint:
    made = {n: by(v) if ".layer." in n and v.ndim == 2 else v for n, v in model.tensors.items()}
    return model.with_tensors(made)


@pytest.mark.skipif("PROVINDEX_REAL_MODELS" not in os.environ, reason="PROVINDEX_REAL_MODELS is not set")
@pytest.mark.parametrize("family", FAMILIES, ids=" and ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_the_source_of_a_quantized_real_model_is_told_among_its_relatives(kind: str, family: tuple[str, ...]) -> None:
    """As float32, and stored again as bfloat16 where that does not hide the grid."""
    by = in_gguf(kind.removeprefix("gguf ")) if kind.startswith("gguf") else QUANTIZERS[kind]
    index = Index.build(fingerprint_model(open_model(str(REAL / name))) for name in family)
    for source in family:
        copy = quantized(opened(source), by)
        for stored in (copy, zoo.cast(copy, "BF16"))[: 1 if kind in EIGHT_BITS else 2]:
            found = {m.entry.model_id: m for m in index.query(fingerprint(stored, "copy")).linked}
            told = found.pop(source)
            assert (told.pair.relation, told.direction) == ("quantized", "ancestor")
            assert {m.pair.relation for m in found.values()} <= {"finetune", "continued", "related"}
            assert len(found) == len(family) - 1
