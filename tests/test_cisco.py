"""The peer's published database as an index: the real catalogue, generated deep signals, and hostile files."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peer_files
import prints
import pyarrow as pa
import pytest
import zoo
from peer_files import Database, long_form, names_below, parquet, zip_entries

from provindex import api
from provindex.api import Index
from provindex.common.errors import IndexFormatError, UsageError
from provindex.common.reasons import Code
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import from_row, to_row
from provindex.formats.parquet import footer as parquet_footer
from provindex.peers import archive as archive_module
from provindex.peers import cisco, cisco_files
from provindex.peers import long_form as long_form_module
from provindex.peers.cisco import Failed, import_database, read_database
from provindex.peers.cisco_signals import Way, estimate, take, way_of
from provindex.peers.long_form import DeepSignals
from provindex.report.words import joined, text, texts
from provindex.signals import mfi, nlf, wvc
from provindex.signals.imported import APART, apart, how, how_taken
from provindex.verdict.pair import compare

REAL = Path(__file__).parents[2] / "shared" / "data" / "cisco-mpk"
real = pytest.mark.skipif(not REAL.exists(), reason="the peer's database is not at hand")
KINDS: Mapping[str, Callable[[int], zoo.Checkpoint]] = {
    "llama": zoo.llama, "qwen2": zoo.qwen2, "gpt2": zoo.gpt2, "gpt_neox": zoo.neox, "bert": zoo.bert, "t5": zoo.t5,
}  # fmt: skip
WEIGHTS = ("EAS", "NLF", "LEP", "END", "WVC")
SAMPLES = np.full(8192, 0.5, np.float32)  # fits 16 bits


def rows_of(root: Path, **options: Any) -> dict[str, Fingerprint]:
    """Imported rows by the name of their repository; nothing may fail."""
    found = list(read_database(root, **options))
    assert not [one for one in found if isinstance(one, Failed)]
    return {one.model_id.split("/")[-1]: one for one in found if isinstance(one, Fingerprint)}


def reason(root: Path, **options: Any) -> str:
    """Why the first asset was refused; one sentence, or two with the next step, and the others are there."""
    first, *rest = read_database(root, **options)
    assert isinstance(first, Failed) and not any(isinstance(one, Failed) for one in rest)
    assert first.reason.endswith(".") and "\n" not in first.reason and len(first.reason) < 300
    assert str(root) not in first.reason
    return first.reason


@pytest.fixture(scope="module")
def models() -> dict[str, zoo.Checkpoint]:
    return {name: make(1) for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def database(models: dict[str, zoo.Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of each kind, with deep signals; never written to by a test."""
    made = Database(tmp_path_factory.mktemp("peer"))
    for name, checkpoint in models.items():
        made.add(name, checkpoint)
    return made.root


@pytest.fixture(scope="module")
def imported(database: Path) -> dict[str, Fingerprint]:
    return rows_of(database)


@pytest.fixture
def two(models: dict[str, zoo.Checkpoint], tmp_path: Path) -> Database:
    """A database of two small models, to be spoiled."""
    made = Database(tmp_path / "peer")
    arrays = {"lep_profile": np.array([0.5, 1.0], np.float32), "end_histogram": np.full(20, 0.05, np.float32)}
    for name in ("first", "second"):
        made.add(name, models["llama"], arrays=arrays)
    return made


# --- the real catalogue ---


@real
def test_every_real_asset_becomes_a_row() -> None:
    rows = list(rows_of(REAL).values())
    assert len({fp.model_id for fp in rows}) == len(rows) == 152
    assert all("/" in fp.model_id and fp.id_certainty == "certain" for fp in rows)
    assert {(fp.family, fp.revision, fp.license, fp.mode, fp.facts.parameters) for fp in rows} == {
        (None, None, None, "imported", 0)
    }
    for fp in rows:
        assert fp.facts.hidden > 0 and fp.facts.vocabulary > 0
        assert fp.facts.layers > 0 or fp.model_id == "THUDM/chatglm3-6b"  # its config has another name for them
        assert {*WEIGHTS, "VOA", *cisco.PANELS} <= fp.absences.keys()
        assert fp.source and fp.source.startswith("Cisco model-provenance-kit, ") and "updated 2026" in fp.source
    assert {fp.model_id for fp in rows if fp.facts.main == "encoder"} == {
        "FacebookAI/roberta-base", "FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-large",
        "google-bert/bert-base-uncased",
    }  # fmt: skip


@real
def test_the_rotary_base_of_real_rows_is_found_wherever_it_is_written() -> None:
    """26 of the 27 Llama rows were made with transformers 5, one with transformers 4."""
    rows = rows_of(REAL)
    llama = {name: fp for name, fp in rows.items() if fp.mfi.model_type == "llama"}
    assert len(llama) == 27 and sum(fp.mfi.rope_theta is None for fp in llama.values()) == 26
    assert all(mfi.rotary(fp.mfi)[0] for fp in llama.values())
    assert mfi.rotary(rows["Llama-3.2-1B"].mfi) == mfi.rotary(rows["Llama-3.2-3B"].mfi) == (500000.0, "llama3")
    parts = mfi.compare(rows["Llama-3.2-1B"].mfi, rows["Llama-3.2-3B"].mfi).parts
    assert parts["rope_theta"] == parts["pos_encoding"] == parts["norm_type"] == 1.0
    pair = compare(rows["Llama-3.2-1B"], rows["Llama-3.2-3B"])
    assert pair.signals["TFV"].value == 0.925  # the class names differ, PreTrainedTokenizerFast and TokenizersBackend
    assert pair.verdict == "inconclusive"


@real
def test_the_size_estimate_gives_the_peers_own_size_class() -> None:
    limits = ((1e9, "<=1B"), (1e10, "1-10B"), (4e10, "10-40B"), (float("inf"), "40B+"))
    for fp in rows_of(REAL).values():
        size = estimate(fp.mfi, DeepSignals())
        assert next(name for most, name in limits if size < most) in texts(fp.warnings)[0], fp.model_id


@real
def test_a_real_import_is_an_index_like_any_other(tmp_path: Path) -> None:
    said: list[str] = []
    built = import_database(REAL, tmp_path / "index", report=said.append)
    assert len(built.added) == len(built.index) == len(said) == 152 and not built.failed and not built.present
    assert Index.load(tmp_path / "index").verify() == []
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").rglob("*.parquet")}
    again = import_database(REAL, tmp_path / "index")
    assert not again.added and not again.failed and len(again.present) == 152
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "index").rglob("*.parquet")}
    result = built.index.query(built.index["meta-llama/Llama-3.1-8B"], candidates=8)
    assert result.status == "inconclusive" and len(result.candidates) == 8 and not result.linked
    nearest = [m.entry.model_id for m in result.candidates]
    assert set(nearest[:2]) == {"meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3-8B"} or (
        result.candidates[0].pair.signals["MFI"].value == 1.0
    )
    assert all(m.pair.verdict == "inconclusive" and m.pair.signals["EAS"].value is None for m in result.candidates)
    warning = next(w for w in texts(result.warnings) if "could not be tested" in w)
    assert "no evidence panels" in warning and len(warning) < 400  # what holds for all of them is said once


@real
def test_a_model_of_ours_meets_the_real_rows_by_config_and_tokenizer(models: dict[str, zoo.Checkpoint]) -> None:
    query = prints.fingerprint(models["bert"], "ours")
    index = Index.build(rows_of(REAL).values())
    found = index.nearest(query, 152)
    assert len(found) == 152 and [rank for _, rank, _ in found] == list(range(1, 153))
    assert found[0][0].load().mfi.model_type in ("bert", "roberta", "xlm-roberta")
    assert {score for _, _, score in found} == {0.0}


# --- signals of imported rows against rows of ours ---


@pytest.mark.parametrize("kind", KINDS)
def test_imported_signals_compare_as_our_own_do(
    kind: str, models: dict[str, zoo.Checkpoint], imported: dict[str, Fingerprint]
) -> None:
    child = prints.fingerprint(zoo.finetune_noise(models[kind], 0.9, 5), "child")
    stranger = prints.fingerprint(KINDS[kind](2), "stranger")
    ours, theirs = prints.fingerprint(models[kind], "parent"), imported[kind]
    for other in (child, stranger, ours):
        a, b = compare(other, ours).signals, compare(other, theirs).signals
        mixed = {"LEP", "WVC"} if kind == "t5" else set()  # the peer has both stacks under one number
        for name in WEIGHTS:
            if name in mixed:
                assert b[name].value is None and "several towers" in joined(b[name].reasons)
            elif a[name].value is None:
                assert b[name].value is None
            else:
                assert b[name].value == pytest.approx(a[name].value, abs=1.01e-4), name
        assert b["MFI"] == a["MFI"] and b["VOA"].value is None
    alone = compare(ours, theirs).signals
    assert {alone[name].value for name in WEIGHTS} - {None} <= {1.0, 0.9999}


SAMPLED = {"sampled_fixed_points", "sampled_alignment", "norm_alignment"}


def test_samples_and_norms_decide_and_no_other_test_can(imported: dict[str, Fingerprint]) -> None:
    for a, b, verdict in (("llama", "llama", "linked"), ("llama", "qwen2", "unrelated")):
        pair = compare(imported[a], imported[b])
        assert pair.verdict == verdict and (pair.log10_p or 0.0) < (-100 if a == b else 1)
        for name, outcome in pair.evidence.items():
            assert (name in SAMPLED) == (not outcome.reasons)
            assert name in {*SAMPLED, "bias_alignment"} or "no evidence panels" in joined(outcome.reasons)
        assert pair.signals["WVC"].value is not None and pair.pipeline.identity is not None


def test_a_row_without_samples_is_inconclusive_and_says_why(imported: dict[str, Fingerprint]) -> None:
    bare, towers = replace(imported["llama"], wvc=None, more={}), replace(imported["t5"], more={})
    for a, b in ((bare, bare), (bare, imported["qwen2"]), (towers, towers)):
        pair = compare(a, b)
        assert (pair.verdict, pair.relation, pair.direction, pair.log10_p) == ("inconclusive", None, None, None)
        assert Code.PEER_NO_PANELS in {reason.code for reason in pair.reasons}
    assert Code.SAMPLED_TOWERS in {reason.code for reason in pair.reasons}


def test_rows_come_back_as_they_were(imported: dict[str, Fingerprint]) -> None:
    for fp in imported.values():
        row = to_row(fp)
        back = from_row(row)
        assert to_row(back)["row_sha256"] == row["row_sha256"] and dict(back.absences) == dict(fp.absences)
        assert (fp.wvc is None) == (back.wvc is None)
        if fp.wvc is not None and back.wvc is not None:
            assert np.array_equal(fp.wvc.values, back.wvc.values)


def test_norms_of_several_sizes_are_compared_by_their_stats(models: dict[str, zoo.Checkpoint], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = dict(models["llama"].tensors)
    for layer in range(3):
        norm = rng.lognormal(size=80).astype(np.float32)
        tensors[f"model.layers.{layer}.self_attn.q_norm.weight"] = norm
    checkpoint = models["llama"].with_tensors(tensors)
    made = Database(tmp_path / "peer")
    assert made.add("mixed", checkpoint)["signals"]["nlf_mode"] == "stats"
    theirs = rows_of(made.root)["mixed"].nlf
    assert theirs is not None and theirs.summarized and not theirs.direct and set(theirs.sizes.tolist()) == {4}
    for other in (checkpoint, zoo.finetune_noise(checkpoint, 0.7, 3), models["llama"]):
        native, ours = prints.fingerprint(other).nlf, prints.fingerprint(checkpoint).nlf
        assert native is not None and ours is not None
        assert nlf.compare(native, theirs).value == pytest.approx(nlf.compare(native, ours).value, abs=1.01e-4)
    assert np.allclose(theirs.means(), ours.means(), atol=1e-5)


def big(fp: Fingerprint, *, hidden: int, layers: int, intermediate: int, **facts: Any) -> mfi.MfiFeatures:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate}
    heads = {"num_attention_heads": hidden // 128, "num_key_value_heads": hidden // 128, "head_dim": 128}
    return replace(fp.mfi, **(sizes | heads | {"vocab_size": 32000} | facts))


def test_how_the_peer_sampled_follows_from_the_size(imported: dict[str, Fingerprint]) -> None:
    plain, lengths = DeepSignals(wvc={0: SAMPLES}), {"hidden_size": 1}
    wide = DeepSignals(wvc={0: SAMPLES + np.float32(1e-7)})  # needs 32 bits a value, so the file is twice as large
    base = imported["llama"]
    small, seven, thirteen = (
        big(base, hidden=2048, layers=16, intermediate=8192),
        big(base, hidden=4096, layers=32, intermediate=11008),
        big(base, hidden=5120, layers=40, intermediate=13824),
    )
    ten = big(base, hidden=4096, layers=48, intermediate=11008)
    assert [round(estimate(m, plain) / 1e9, 1) for m in (small, seven, ten, thirteen)] == [1.1, 6.6, 9.8, 12.9]
    assert way_of(small, plain, lengths) == Way("peer", "peer")
    assert way_of(seven, plain, lengths) == Way("peer", "peer-files")
    assert way_of(seven, wide, lengths) == Way(None, "peer-files")
    assert way_of(ten, plain, lengths) == Way(None, "peer-files")
    assert way_of(thirteen, plain, lengths) == Way("peer-sliced", "peer")
    assert way_of(small, plain, {"hidden_size": 0}) == Way("peer-towers", "peer-files")
    assert way_of(thirteen, plain, {"hidden_size": 0}) == Way("peer-sliced-towers", "peer-files")
    assert way_of(small, DeepSignals(experts=True), lengths) == Way(None, "peer-files")
    assert way_of(replace(small, model_type="t5"), plain, lengths).layers == "peer-towers"


def test_what_was_sampled_differently_gives_a_reason_and_never_a_number(imported: dict[str, Fingerprint]) -> None:
    ours = prints.fingerprint(zoo.llama(1), "ours")
    base = imported["llama"]
    assert base.nlf is not None and ours.wvc is not None
    profile = np.array([0.25, 0.5, 1.0], np.float32)
    deep = DeepSignals(lep=profile, nlf=base.nlf.values, wvc=ours.wvc.by_layer())
    lengths = {"hidden_size": 64, "nlf_mode": "direct", "nlf_num_layers": len(base.nlf.names)}
    rows = {}
    for name, layers in (("whole", 24), ("unsure", 48), ("sliced", 64)):
        features = big(base, hidden=4096, layers=layers, intermediate=11008)
        half = replace(deep, wvc={k: v.astype(np.float16).astype(np.float32) for k, v in ours.wvc.by_layer().items()})
        taken = take(features, half, lengths)
        said = dict(taken.absences)
        rows[name] = replace(
            base, model_id=name, nlf=taken.nlf, lep=taken.lep, wvc=taken.wvc, absences=dict(base.absences) | said
        )
    told = {name: compare(ours, row).signals for name, row in rows.items()}
    assert told["whole"]["LEP"].value is not None and told["whole"]["WVC"].value == 1.0
    assert "order of several files" in joined(told["whole"]["NLF"].reasons)
    assert "size of the files, which is not known" in joined(told["unsure"]["WVC"].reasons)
    assert "size of the files, which is not known" in joined(told["unsure"]["LEP"].reasons)
    for name in ("LEP", "WVC"):
        assert told["sliced"][name].value is None and "32 rows of each matrix" in joined(told["sliced"][name].reasons)
    assert told["sliced"]["NLF"].value == 1.0  # of the largest models the peer sorts the norms by name
    alike = compare(rows["sliced"], replace(rows["sliced"], model_id="again")).signals
    assert alike["LEP"].value == alike["WVC"].value == 1.0  # as for the peer
    assert compare(rows["sliced"], rows["whole"]).signals["WVC"].value is None


def test_layers_of_other_lengths_are_left_out(imported: dict[str, Fingerprint]) -> None:
    ours, theirs = prints.fingerprint(zoo.llama(1)).wvc, imported["llama"].wvc
    assert ours is not None and theirs is not None
    layers = {layer: values[:5000] for layer, values in theirs.by_layer().items()}
    cut = wvc.Samples.collect((f"peer/{n:05d}/000", n, v[:4096]) for n, v in layers.items())
    assert wvc.compare(ours, theirs).value == wvc.compare(theirs, ours).value == pytest.approx(1.0, abs=1e-4)
    assert "other tensors" in joined(wvc.compare(ours, cut).reasons)
    assert wvc.compare(cut, theirs).value == pytest.approx(1.0, abs=1e-4)  # among imported rows as for the peer


def test_names_tell_how_values_were_taken() -> None:
    assert how_taken(["peer/00000"]) == "peer" and how_taken([f"{APART[0]}/00001/000"]) == how("sliced")
    assert [how_taken(names) for names in ([], ["layers.0.x"], ["peer"], ["peerage/0"], ["peer-odd/0"])] == [None] * 5
    assert apart(["layers.0.x"], ["peer/00000"]) is None and apart(["peer-files/0"], ["peer-files/1"]) is None
    assert apart(["peer-sliced/0"], ["peer-towers/0"]) is not None and apart(["peer-files/0"], ["peer/0"]) is not None


def test_signals_that_are_missing_or_not_finite_are_told(models: dict[str, zoo.Checkpoint], tmp_path: Path) -> None:
    made = Database(tmp_path / "peer")
    arrays = peer_files.deep_signals(models["llama"])
    broken = arrays | {"lep_profile": np.array([1.0, np.nan, 0.5], np.float32)}
    del broken["wvc_layer_sigs"], broken["eas_self_sim"]
    made.add("broken", models["llama"], arrays=broken)
    made.add("gone", models["llama"])
    (made.root / made.deep("gone")).unlink()
    rows = rows_of(made.root)
    broken_row = rows["broken"]
    assert broken_row.eas is None and "none of this model" in text(broken_row.absences["EAS"])
    assert broken_row.wvc is None and not broken_row.lep and "NaN" in text(broken_row.absences["LEP"])
    assert broken_row.end is not None and broken_row.nlf is not None
    assert {rows["gone"].absences[n].code for n in WEIGHTS} == {Code.PEER_NO_DEEP_SIGNALS}


def test_experts_are_passed_over(
    models: dict[str, zoo.Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Database(tmp_path / "peer")
    made.add("moe", models["llama"])
    for name, value in (("MAX_LAYER", 20_000), ("LIMITS", long_form_module.LIMITS | {"wvc_layer_sigs": 50_000})):
        with monkeypatch.context() as patched:
            patched.setattr(long_form_module, name, value)
            row = rows_of(made.root)["moe"]
        assert row.wvc is None and "experts" in text(row.absences["WVC"]) and "not known" in text(row.absences["LEP"])
        assert row.eas is not None


# --- into an index ---


def zipped(folder: Path, path: Path, prefix: str = "deep-signals/by-family", extra: Mapping[str, bytes] = {}) -> str:
    """Write an archive of a folder; its digest."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*zip_entries(folder, prefix), *extra.items()]:
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_deep(database: Path, folder: Path) -> Path:
    """The database as the package brings it, below the folder that the package has it in."""
    target = folder / "kit" / "provenancekit" / "data" / "database"
    for path in sorted(database.rglob("*.json")):
        place = target / path.relative_to(database)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return folder / "kit"


def test_an_import_with_the_archive_and_one_with_its_folder_are_the_same(database: Path, tmp_path: Path) -> None:
    kit = without_deep(database, tmp_path)
    extra = {"__MACOSX/by-family/x": b"", "deep-signals/by-family/org--zoo/._a": b"", "README.md": b"by-family"}
    digest = zipped(database / cisco_files.DEEP, tmp_path / "deep.zip", extra=extra)
    built = import_database(kit, tmp_path / "index", deep=tmp_path / "deep.zip", sha256=digest)
    assert len(built.added) == 6 and not built.failed
    assert all(entry.load().eas is not None for entry in built.index)
    assert Index.load(tmp_path / "index").verify() == []
    with zipfile.ZipFile(tmp_path / "deep.zip") as packed:
        packed.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / "deep-signals").rename(tmp_path / "deep")
    (tmp_path / "deep" / "by-family" / "org--zoo" / "._a").unlink()
    for deep in (tmp_path / "deep", tmp_path / "deep" / "by-family", database):
        again = import_database(kit, tmp_path / "index", deep=deep)
        assert not again.added and len(again.present) == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert names_below(tmp_path / "deep" / "by-family") == names_below(database / cisco_files.DEEP)


def test_an_import_extends_an_index_and_finds_its_rows_by_their_weights(
    database: Path, models: dict[str, zoo.Checkpoint], tmp_path: Path
) -> None:
    native = [replace(prints.fingerprint(models[k], f"org/{k}"), revision="f" * 40) for k in ("llama", "bert")]
    Index.build(native, name="mine").save(tmp_path / "mine")
    built = import_database(database, tmp_path / "mine")
    assert len(built.added) == 6 and len(built.index) == 8 and built.index.info.id == "mine"
    assert built.index["org/llama"].blocks is not None  # ours, which can be tested, comes first
    result = built.index.query(prints.fingerprint(zoo.finetune_noise(models["llama"], 0.95, 7), "child"))
    assert [m.entry.model_id for m in result.linked] == ["org/llama"] * 2
    assert result.linked[0].entry.revision == "f" * 40  # ours, whose evidence sees more, comes first
    theirs = result.linked[1]
    assert theirs.entry.revision is None and not theirs.pair.evidence["sampled_alignment"].reasons
    assert theirs.pair.signals["WVC"].value == pytest.approx(0.95, abs=0.02) and theirs.score > 0


def test_a_gate_does_not_pass_on_a_row_that_sees_plain_order_only(
    database: Path, models: dict[str, zoo.Checkpoint], tmp_path: Path
) -> None:
    """Unless a row of ours of that model, which would have seen a reordered copy, cleared it."""
    alone = import_database(database, tmp_path / "alone").index
    native = replace(prints.fingerprint(models["llama"], "org/llama"), revision="f" * 40)
    Index.build([native], name="mine").save(tmp_path / "both")
    both = import_database(database, tmp_path / "both").index
    child = prints.fingerprint(zoo.finetune_noise(models["llama"], 0.95, 7), "child")
    stranger = prints.fingerprint(zoo.spoken(KINDS["llama"](2), 2), "stranger")
    for index, asked, status, code in (
        (alone, child, 1, Code.DENIED_LINKED),
        (alone, stranger, 3, Code.DENIED_PLAIN_ORDER),
        (both, child, 1, Code.DENIED_LINKED),
        (both, stranger, 0, Code.DENIED_UNRELATED),
    ):
        (denied,) = api.gate(index.query(asked, also=["org/llama"]), ["org/llama"], index).denied
        assert (denied.status, denied.reason.code) == (status, code)
    assert Code.PLAIN_ORDER in {warning.code for warning in alone.query(stranger).warnings}


def test_rows_without_weights_come_after_the_others_and_by_context(
    database: Path, models: dict[str, zoo.Checkpoint], tmp_path: Path
) -> None:
    bare = [replace(fp, model_id=f"bare/{name}") for name, fp in rows_of(without_deep(database, tmp_path)).items()]
    native = [prints.fingerprint(models[name], f"org/{name}") for name in ("gpt2", "llama", "t5")]
    index = Index.build([*bare[:3], *native, *bare[3:]])
    query = prints.fingerprint(zoo.bert(9), "query")
    found = [(entry.model_id, score) for entry, _, score in index.nearest(query, 50)]
    assert {name for name, _ in found[:3]} == {fp.model_id for fp in native} and len(found) == 9
    assert found[3] == ("bare/bert", 0.0)
    assert len(index.nearest(query, 2)) == 2 and len(index.nearest(query, 4)) == 4
    assert [e.model_id for e, _, _ in index.nearest(query, 1, also=["bare/t5"])][-1] == "bare/t5"
    asked = index.nearest(bare[0], 50)  # has no vector itself: all the others by context
    assert asked[0][0].model_id == "org/llama" and len(asked) == 8
    assert index.query(bare[0], candidates=3).status == "inconclusive"
    index.save(tmp_path / "index")
    assert [e.model_id for e, _, _ in Index.load(tmp_path / "index").nearest(query, 50)][3:4] == ["bare/bert"]


def test_an_index_with_vectors_only_reads_no_rows_to_find_candidates(
    models: dict[str, zoo.Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build([prints.fingerprint(models[name], name) for name in ("llama", "bert")])
    monkeypatch.setattr("provindex.index.collection.context", lambda row: pytest.fail("a row was read"))
    assert len(index.nearest(prints.fingerprint(zoo.bert(9), "query"), 50)) == 2


def test_other_features_of_a_model_that_is_there_are_not_added(database: Path, tmp_path: Path) -> None:
    import_database(without_deep(database, tmp_path), tmp_path / "index")
    built = import_database(database, tmp_path / "index")
    assert not built.added and len(built.failed) == 6 and len(built.index) == 6
    assert built.failed[0] == ("org/llama", "Other features are in the index as org/llama. Import into a new folder.")


def test_what_names_no_database_is_told(database: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"is no database of Cisco .*Name the folder provenancekit/data"):
        import_database(tmp_path, tmp_path / "index")
    with pytest.raises(UsageError, match="has no folder by-family"):
        import_database(database, tmp_path / "index", deep=tmp_path)
    with pytest.raises(UsageError, match="is no file"):
        import_database(database, tmp_path / "index", deep=tmp_path / "missing.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="an index is a folder"):
        import_database(database, tmp_path / "file")
    assert names_below(tmp_path) == ["file"]


# --- hostile catalogues and features ---


def edited(what: Callable[[dict[str, Any]], Any]) -> Callable[[Database], None]:
    """Change the features of the first asset."""

    def change(made: Database) -> None:
        path = made.root / made.features("first")
        bundle = json.loads(path.read_text())
        what(bundle)
        path.write_text(json.dumps(bundle))

    return change


def entry(**values: Any) -> Callable[[Database], None]:
    """Change the catalogue's entry of the first asset."""

    def change(made: Database) -> None:
        made.entries[0].update(values)
        made.write_catalog()

    return change


def written(what: bytes | str) -> Callable[[Database], None]:
    return lambda made: made.put(made.features("first"), what) and None


def link(made: Database) -> None:
    outside = made.root.parent / "outside.json"
    path = made.root / made.features("first")
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


SPOILED: Mapping[str, tuple[Callable[[Database], None], str]] = {
    "leaves by dots": (entry(feature_path="../outside.json"), "no file inside the database"),
    "leaves by dots later": (entry(feature_path="features/../../x.json"), "no file inside the database"),
    "absolute": (entry(feature_path="/etc/passwd"), "no file inside the database"),
    "backslash": (entry(feature_path="features\\x.json"), "no file inside the database"),
    "drive": (entry(feature_path="C:x.json"), "no file inside the database"),
    "nul": (entry(feature_path="x\0.json"), "no file inside the database"),
    "no path": (entry(feature_path=None), "feature_path is no text"),
    "long path": (entry(feature_path="x" * 5000), "feature_path is no text"),
    "folder": (entry(feature_path="catalog"), "no regular file"),
    "missing": (entry(feature_path="features/none.json"), "is missing"),
    "link": (link, "is a link to a place outside"),
    "odd asset id": (entry(asset_id="../x"), "is no name"),
    "odd model id": (entry(model_id="a/b/c", source_uri=""), "is no name"),
    "another asset": (edited(lambda b: b.update(asset_id="other")), "is of another asset"),
    "another family": (edited(lambda b: b.update(family_id="other")), "is of another asset"),
    "nested": (written("[" * 100_000), "nested too deeply"),
    "not JSON": (written("{"), "it is not JSON"),
    "not an object": (written("[]"), "not a JSON object"),
    "not UTF-8": (written(b"\xff\xfe{}"), "not UTF-8"),
    "large": (written(" " * (cisco.MAX_FEATURES + 1)), "larger than 1 MB"),
    "NaN": (edited(lambda b: b.update(x=float("nan"))), "values that JSON cannot hold"),
    "half a character": (written('{"x": "\\ud800"}'), "values that JSON cannot hold"),
    "no mfi": (edited(lambda b: b.pop("mfi")), "its mfi is no object"),
    "a missing field": (edited(lambda b: b["mfi"].pop("arch_hash")), "mfi has no arch_hash"),
    "a text for a number": (edited(lambda b: b["mfi"].update(hidden_size="64")), "mfi has no hidden_size"),
    "a negative number": (edited(lambda b: b["mfi"].update(vocab_size=-1)), "mfi has no vocab_size"),
    "a huge number": (edited(lambda b: b["mfi"].update(vocab_size=10**30)), "mfi has no vocab_size"),
    "many layers": (edited(lambda b: b["mfi"].update(num_hidden_layers=10**6)), "mfi has no num_hidden_layers"),
    "nested factors": (edited(lambda b: b["mfi"].update(rope_scaling={"a": {"b": {"c": 1}}})), "no rope_scaling"),
    "a flag for a number": (edited(lambda b: b["tfv"].update(num_merges=True)), "tfv has no num_merges"),
    "scripts": (edited(lambda b: b["tfv"].update(script_distribution={"Latin": "1"})), "no script_distribution"),
    "refs": (edited(lambda b: b.update(artifact_refs={})), "artifact_refs are no list"),
    "deep path": (edited(lambda b: b["artifact_refs"][0].update(path="../../x")), "no file inside the database"),
    "no checksum": (edited(lambda b: b["artifact_refs"][0].update(checksum="md5:0")), "state no sha256"),
    "checksum": (
        edited(lambda b: b["artifact_refs"][0].update(checksum=f"sha256:{'0' * 64}")),
        "is not the one that its features state",
    ),
    "no lengths": (edited(lambda b: b.pop("signals")), "its signals is no object"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_bad_asset_is_told_and_the_rest_goes_on(case: str, two: Database) -> None:
    spoil, said = SPOILED[case]
    spoil(two)
    assert said in reason(two.root)


def test_an_import_lists_what_failed(two: Database, tmp_path: Path) -> None:
    two.put(two.features("first"), "{")
    said: list[str] = []
    built = import_database(two.root, tmp_path / "index", report=said.append)
    assert built.added == ("org/second",) and built.failed[0][0] == "first__hf-safetensors"
    assert said[0].startswith("failed   first__hf-safetensors: ") and said[1] == "added    org/second"


def test_a_family_that_cannot_be_read_does_not_stop_the_others(two: Database) -> None:
    manifest = json.loads((two.root / "catalog/manifest.json").read_text())
    manifest["shards"] = [{"shard_path": "../x"}, {"shard_path": 5}, {"shard_path": "a.json"}, *manifest["shards"]]
    two.put("catalog/manifest.json", manifest)
    found = list(read_database(two.root))
    assert [isinstance(one, Failed) for one in found] == [True, True, True, False, False]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shards": 1}', '{"shards": [1]}', "[" * 100_000, " " * (5 << 20)])
def test_a_catalogue_that_cannot_be_read_is_one_sentence(text: str, two: Database, tmp_path: Path) -> None:
    two.put("catalog/manifest.json", text)
    with pytest.raises(IndexFormatError, match=r"^The catalogue of peer cannot be used: [^\n]+\. Get the database"):
        import_database(two.root, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_id_is_taken_from_the_address_only_if_it_is_one(two: Database) -> None:
    for address, expected in (
        ("https://huggingface.co/gpt2", ("gpt2", "certain")),
        ("https://huggingface.co/org/name/", ("org/name", "certain")),
        ("https://huggingface.co/org/name/tree/main", ("first", "none")),
        ("https://example.com/org/name", ("first", "none")),
        ("https://huggingface.co/datasets/name", ("first", "none")),
        ("https://huggingface.co/../name", ("first", "none")),
    ):
        entry(source_uri=address)(two)
        first = next(iter(read_database(two.root)))
        assert isinstance(first, Fingerprint) and (first.model_id, first.id_certainty) == expected


# --- hostile deep signals ---

LEP = [("lep_profile", None, i, None, 0.5 + i / 4) for i in range(2)]


def typed(**types: Any) -> pa.Schema:
    return pa.schema([(f.name, types.get(f.name, f.type)) for f in peer_files.SCHEMA])


def renamed() -> bytes:
    table = pa.table({"signal": ["lep_profile"], "row": [0]})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def lep(*rows: int) -> bytes:
    return parquet([("lep_profile", None, row, None, 1.0) for row in rows])


def samples(*rows: tuple[int | None, int]) -> bytes:
    return parquet([("wvc_layer_sigs", layer, row, None, 1.0) for layer, row in rows])


def eas(square: np.ndarray[Any, Any]) -> bytes:
    return parquet(long_form({"eas_self_sim": square}))


def end(shares: list[float]) -> bytes:
    return parquet(long_form({"end_histogram": np.array(shares)}))


GOOD = parquet(LEP)
BAD: Mapping[str, tuple[bytes, str]] = {
    "no Parquet": (b"nonsense", "not a readable Parquet file"),
    "empty": (b"", "not a readable Parquet file"),
    "cut off": (GOOD[:-20], "not a readable Parquet file"),
    "no footer": (GOOD[: len(GOOD) // 2], "not a readable Parquet file"),
    "columns": (renamed(), "no column layer of type INT32"),
    "wide numbers": (parquet(LEP, typed(value=pa.float64())), "no column value of type FLOAT"),
    "wide places": (parquet(LEP, typed(row=pa.int64())), "no column row of type INT32"),
    "short places": (parquet(LEP, typed(row=pa.int16())), "has type int16"),
    "dates": (parquet(LEP, typed(row=pa.date32())), "has type date32"),
    "bytes": (parquet([(b"lep_profile", *r[1:]) for r in LEP], typed(signal=pa.binary())), "signal is no text"),  # type: ignore[list-item]
    "a name that is not known": (parquet([("x" * 500, None, 0, None, 1.0)]), "signal that is not known"),
    "many names": (parquet([(f"s{i}", None, 0, None, 1.0) for i in range(99)]), "more than 6 names"),
    "no name": (parquet([(None, None, 0, None, 1.0)]), "empty cells"),  # type: ignore[list-item]
    "no value": (parquet([("lep_profile", None, 0, None, None)]), "empty cells"),  # type: ignore[list-item]
    "no place": (parquet([("lep_profile", None, None, None, 1.0)]), "empty cells"),  # type: ignore[list-item]
    "a gap": (lep(0, 2), "have gaps"),
    "twice": (lep(0, 0), "have gaps"),
    "before the start": (lep(0, -1), "have gaps"),
    "a huge place": (lep(0, 2**31 - 1), "have gaps"),
    "many layers": (lep(*range(4097)), "more than 4,096 values"),
    "no layer": (samples((None, 0)), "without a layer"),
    "a huge layer": (samples((0, 0), (2**31 - 1, 0)), "without a layer"),
    "a gap in a layer": (samples((0, 0), (0, 2)), "have gaps"),
    "another layer's place": (samples((0, 0), (0, 2), (1, 0)), "have gaps"),
    "not square": (parquet(long_form({"eas_self_sim": np.eye(16)})[:-1]), "no square matrix"),
    "a place outside of the square": (
        parquet([("eas_self_sim", None, i, 9, 1.0) for i in range(4)]),
        "no square matrix",
    ),
    "no cosines": (eas(np.full((20, 20), 3.0)), "no matrix of cosines"),
    "not symmetric": (eas(np.triu(np.ones((20, 20)))), "no matrix of cosines"),
    "few bins": (end([1.0] * 19), "no histogram of 20 bins"),
    "many bins": (end([1.0] * 21), "more than 20 values"),
    "empty bins": (end([0.0] * 20), "no histogram"),
    "negative bins": (end([-1.0] + [1.0] * 19), "no histogram"),
    "negative energies": (parquet([("lep_profile", None, 0, None, -1.0)]), "negative energies"),
    "norms that do not fit": (parquet(long_form({"nlf_vector": np.ones(100)})), "does not fit the number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_deep_signals_are_told_and_the_rest_goes_on(
    case: str, models: dict[str, zoo.Checkpoint], tmp_path: Path
) -> None:
    raw, said = BAD[case]
    made = Database(tmp_path / "peer")
    lengths = {"nlf_mode": "direct", "nlf_num_layers": 7}
    made.add("first", models["llama"], raw=raw, arrays=lengths)
    made.add("second", models["llama"], raw=GOOD, arrays=lengths)
    assert said in reason(made.root)


@pytest.mark.parametrize(
    ("mode", "count", "size"),
    [("direct", 0, 128), ("direct", "2", 128), ("direct", 4, 128), ("stats", 2, 128), ("odd", 2, 128), (None, 2, 128)],
)
def test_norms_must_be_what_their_mode_says(mode: Any, count: Any, size: int, imported: dict[str, Fingerprint]) -> None:
    deep = DeepSignals(nlf=np.ones(size, np.float32))
    with pytest.raises(ValueError, match="its NLF"):
        take(imported["llama"].mfi, deep, {"hidden_size": 64, "nlf_mode": mode, "nlf_num_layers": count})


def test_few_anchors_are_no_matrix(imported: dict[str, Fingerprint]) -> None:
    taken = take(imported["llama"].mfi, DeepSignals(eas=np.eye(8, dtype=np.float32)), {"hidden_size": 64})
    assert taken.eas is None and text(taken.absences["EAS"]) == "only 8 anchor tokens, 16 needed"


def test_rows_in_any_order_and_any_grouping_are_the_same(models: dict[str, zoo.Checkpoint]) -> None:
    arrays = peer_files.deep_signals(models["llama"])
    rows = long_form(arrays)
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    whole = long_form_module.read(parquet(rows))
    for other in (
        parquet(mixed, row_group_size=7_000, compression="zstd", use_dictionary=False),
        parquet(rows, row_group_size=1000, data_page_version="2.0", write_statistics=False),
        parquet(rows, compression="none", data_page_size=4096, dictionary_pagesize_limit=1024),
    ):
        read = long_form_module.read(other)
        assert read.wvc is not None and whole.wvc is not None and read.wvc.keys() == whole.wvc.keys()
        assert all(np.array_equal(read.wvc[layer], whole.wvc[layer]) for layer in whole.wvc)
        for name in ("eas", "end", "nlf", "lep"):
            assert np.array_equal(getattr(read, name), getattr(whole, name))
            assert np.array_equal(
                getattr(read, name).reshape(-1), np.asarray(_array(arrays, name), np.float32).reshape(-1)
            )


def _array(arrays: Mapping[str, Any], name: str) -> Any:
    return next(value for key, value in arrays.items() if key.startswith(f"{name}_") and isinstance(value, np.ndarray))


def test_no_column_unpacks_to_more_than_its_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    long_name = parquet([("x" * 100_000, None, 0, None, 1.0)])
    monkeypatch.setattr(long_form_module, "SLACK", 1000)
    with pytest.raises(ValueError, match="values of signal unpack to 100,0"):
        long_form_module.read(long_name)
    repeated = parquet([("lep_profile", None, 0, None, 1.0)] * 3000)  # a few bytes each column
    monkeypatch.setattr(long_form_module, "MAX_ROWS", 2999)
    with pytest.raises(ValueError, match="it states 3,000 rows, 2,999 are the most"):
        long_form_module.read(repeated)
    monkeypatch.setattr(long_form_module, "PER_ROW", 0)
    monkeypatch.setattr(long_form_module, "SLACK", 0)
    with pytest.raises(ValueError, match="unpack to"):
        long_form_module.read(GOOD)


def test_a_footer_that_ends_the_process_in_pyarrow_is_an_error_here() -> None:
    """Statistics of a column that may be empty, in a schema that says it may not."""
    damaged = GOOD.replace(b"\x25\x02\x18\x03row", b"\x25\x00\x18\x03row")
    assert damaged != GOOD
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        long_form_module.read(damaged)


def test_columns_are_where_the_schema_says() -> None:
    """They are read by their place, so a name that is exchanged in a row group would go unchecked."""
    start = GOOD.rindex(b"PAR1") - int.from_bytes(GOOD[-8:-4], "little") - 4
    in_group = GOOD.index(b"\x19\x18\x03row", start)
    with pytest.raises(ValueError, match="not that of the schema"):
        long_form_module.read(GOOD[:in_group] + b"\x19\x18\x03rov" + GOOD[in_group + 6 :])


@pytest.mark.parametrize("seed", range(2))
def test_damaged_bytes_are_an_error_or_change_nothing_but_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [("wvc_layer_sigs", layer, row, None, 0.1 * row) for layer in range(2) for row in range(70)]
    raw = parquet([*LEP, *rows, *long_form({"eas_self_sim": np.eye(16)})], row_group_size=150)
    for _ in range(100):
        damaged = bytearray(raw)
        for place in rng.integers(0, len(raw), 3):
            damaged[place] = rng.integers(256)
        try:
            read = long_form_module.read(bytes(damaged))
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert read.eas is None or read.eas.shape == (16, 16)


def test_footers_are_read_as_pyarrow_reads_them(database: Path) -> None:
    for path in database.rglob("*.parquet"):
        raw = path.read_bytes()
        metadata = pa.parquet.read_metadata(path)
        found = parquet_footer.groups(memoryview(raw))
        assert [group.rows for group in found] == [
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        ]
        for number, group in enumerate(found):
            columns = [metadata.row_group(number).column(i) for i in range(5)]
            assert [c.name for c in group.chunks] == [c.path_in_schema for c in columns]
            assert [c.values for c in group.chunks] == [c.num_values for c in columns]
            assert [c.stop - c.start for c in group.chunks] == [c.total_compressed_size for c in columns]


@pytest.mark.parametrize(
    ("footer", "said"),
    [
        (b"", "does not end"),
        (b"\x00", "lacks a list"),
        (b"\x15\x02\x05\x02\x02", "comes twice"),
        (b"\x1c" * 50, "nested too deeply"),
        (b"\x49\xfc\xff\xff\xff\xff\x0f", "too long"),
        (b"\x49\x19\x19", "too long"),
        (b"\x48\xff\x01", "does not end"),
        (b"\x1f", "a field that none has"),
        (b"\x45" + b"\xff" * 20, "a number of its footer does not end"),
        (b"\x29\x1c\x00\x29\x1c\x19\x0c\x00\x00", "lacks a number"),
        (b"\x29\x1c\x00\x29\x15\x02\x00", "lacks a part"),
    ],
)
def test_a_bad_footer_is_told(footer: bytes, said: str) -> None:
    raw = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ValueError, match=said):
        parquet_footer.groups(memoryview(raw))
    with pytest.raises(ValueError, match=r"a footer of 4,\d+ bytes"):
        parquet_footer.groups(memoryview(raw[:-8] + (4200).to_bytes(4, "little") + b"PAR1"))


def test_a_file_is_read_up_to_a_limit_only(two: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_form_module, "MAX_BYTES", 100)
    assert all(isinstance(one, Failed) and "larger than" in one.reason for one in read_database(two.root))


# --- hostile archives ---

KEPT = "x/by-family/f/a.parquet"


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as made:
        for name, data in entries:
            made.writestr(name, data, method if isinstance(name, str) else None)
    return sink.getvalue()


def special(kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x/by-family/link")
    info.external_attr = (kind | 0o777) << 16
    return info


def patched(raw: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    at = raw.index(signature) + offset
    return raw[:at] + value + raw[at + len(value) :]


def doubled() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return archive((KEPT, b"1"), (KEPT, b"2"))


PLAIN = archive((KEPT, b"data"), ("x/by-family/f/b.parquet", b"more"))
HOSTILE: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "dots": (lambda: archive((KEPT, b""), ("x/by-family/../../e", b"")), "could leave the folder"),
    "dots elsewhere": (lambda: archive((KEPT, b""), ("../e", b"")), "could leave the folder"),
    "absolute": (lambda: archive((KEPT, b""), ("/by-family/e", b"")), "could leave the folder"),
    "drive": (lambda: archive((KEPT, b""), ("C:/by-family/e", b"")), "could leave the folder"),
    "backslash": (lambda: archive((KEPT, b""), ("by-family\\..\\e", b"")), "could leave the folder"),
    "nul": (lambda: PLAIN.replace(b"by-family/f/b.", b"by-family/f\0b."), "could leave the folder"),
    "link": (lambda: archive((KEPT, b""), (special(stat.S_IFLNK), b"/etc/passwd")), "a link or a device"),
    "device": (lambda: archive((KEPT, b""), (special(stat.S_IFCHR), b"")), "a link or a device"),
    "twice": (doubled, "twice"),
    "twice by case": (lambda: archive((KEPT, b""), ("y/by-family/F/A.parquet", b"")), "twice"),
    "encrypted": (lambda: patched(PLAIN, b"PK\x01\x02", 8, b"\x01\x00"), "encrypted or packed"),
    "another method": (lambda: archive((KEPT, b"data"), method=zipfile.ZIP_LZMA), "encrypted or packed"),
    "deep": (lambda: archive(("a/" * 20 + KEPT, b"")), "too long a path"),
    "long": (lambda: archive(("by-family/" + "a" * 300, b"")), "too long a path"),
    "nothing there": (lambda: archive(("by-family", b""), ("x/my-by-family/a", b"")), "no files below a directory"),
    "junk only": (lambda: archive(("__MACOSX/by-family/a", b""), ("by-family/._a", b"")), "no files below"),
    "no archive": (lambda: b"PK nonsense", "not a zip file"),
    "empty": (lambda: b"", "not a zip file"),
    "cut off": (lambda: PLAIN[:-30], "not a zip file"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_one_sentence_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    make, said = HOSTILE[case]
    raw = make()
    (tmp_path / "deep.zip").write_bytes(raw)
    with pytest.raises(IndexFormatError, match=said) as refused:
        all_of(tmp_path / "deep.zip")
    assert refused.value.message.startswith("deep.zip cannot be unpacked: ") and refused.value.next_step
    assert "\n" not in refused.value.message and names_below(tmp_path) == ["deep.zip"]


DAMAGED: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "damaged": (lambda: PLAIN.replace(b"more", b"mare"), "'b.parquet' cannot be unpacked: Bad CRC"),
    "damaged stream": (
        lambda: patched(archive((KEPT, b"data" * 99), method=zipfile.ZIP_DEFLATED), b".parquet", 8, b"\xff\xff\xff"),
        "'a.parquet' cannot be unpacked",
    ),
    "other header": (lambda: PLAIN.replace(b"PK\x03\x04", b"PK\x03\x05"), "'a.parquet' cannot be unpacked"),
    "large": (lambda: archive((KEPT, b"\0" * (2 << 20))), "'a.parquet' is larger than 1 MB"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_of_an_archive_is_one_clause(case: str, tmp_path: Path) -> None:
    make, said = DAMAGED[case]
    (tmp_path / "deep.zip").write_bytes(make())
    with pytest.raises(ValueError, match=said) as refused:
        all_of(tmp_path / "deep.zip")
    assert "\n" not in str(refused.value) and not str(refused.value).endswith(".")


def all_of(path: Path) -> dict[str, bytes]:
    """Every file of an archive of deep signals."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with archive_module.opened(path, below="by-family", sha256=digest.upper()) as files:
        return {name: bytes(files.read(name, 1 << 20) or b"") for name in files.names}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_ENTRIES", 1, "it has 2 entries, 1 are the most"),
        ("MAX_DIRECTORY", 100, "its list of entries has more than"),
    ],
)
def test_an_archive_is_read_up_to_limits(
    name: str, value: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep.zip").write_bytes(PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(archive_module, name, value)
        with pytest.raises(IndexFormatError, match=said):
            all_of(tmp_path / "deep.zip")
    assert all_of(tmp_path / "deep.zip") == {"f/a.parquet": b"data", "f/b.parquet": b"more"}
    monkeypatch.setattr(archive_module, "MAX_UNPACKED", 7)
    with pytest.raises(ValueError, match=r"'b\.parquet' cannot be unpacked: the archive has more than 7 bytes"):
        all_of(tmp_path / "deep.zip")


def test_a_size_that_lies_is_counted_as_it_is_read(tmp_path: Path) -> None:
    """The list of entries says 5 bytes, the stream has a million."""
    raw = archive((KEPT, b"\0" * 1_000_000), method=zipfile.ZIP_DEFLATED)
    size = (1_000_000).to_bytes(4, "little")
    (tmp_path / "deep.zip").write_bytes(raw.replace(size, (5).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        all_of(tmp_path / "deep.zip")


def test_an_archive_with_another_digest_is_not_opened(database: Path, tmp_path: Path) -> None:
    (tmp_path / "deep.zip").write_bytes(PLAIN)
    with pytest.raises(IndexFormatError, match=r"is not the archive that was asked for.*Download it again"):
        import_database(database, tmp_path / "index", deep=tmp_path / "deep.zip")
    assert names_below(tmp_path) == ["deep.zip"]
