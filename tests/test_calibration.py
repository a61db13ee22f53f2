"""Chance levels: how they are made, read from a file that anyone may have written, and looked up."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import prints
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from build_index import calibrate
from build_index.calibrate import Compared, null_of
from provindex.api import Index
from provindex.common.errors import IndexFormatError, ProvindexError
from provindex.common.score import Chance, Score
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.index.collection import calibration_of
from provindex.report.words import text
from provindex.verdict import calibration
from provindex.verdict.calibration import CONFORMAL, POOLED, SIGNALS, STATISTICS, STRATA, Calibration, stratum_of

GATED, OTHER, RARE = STRATA[0], STRATA[7], STRATA[1]
SIZES = {GATED: 1200, OTHER: 600, RARE: 150}


def synthetic_pairs() -> list[Compared]:
    """Pairs of three strata, one large, one medium, one too small, with values of a known distribution."""
    rng = np.random.default_rng(7)
    pairs = []
    for at, (stratum, size) in enumerate(SIZES.items()):
        for number in range(size):
            values: dict[str, float | None] = dict.fromkeys(SIGNALS, float(rng.beta(5, 5)))
            values |= {"WVC": None if number % 2 else 0.001, "triple_agreement": 0.0}
            values["branch_sketch"] = float(np.clip(rng.normal(0.05 * at, 0.02), -1, 1))
            pairs.append(Compared(f"m{number}", f"n{number}", stratum, values, {}))
    return pairs


@pytest.fixture(scope="module")
def pairs() -> list[Compared]:
    return synthetic_pairs()


@pytest.fixture(scope="module")
def made(pairs: list[Compared]) -> Calibration:
    return calibrate.calibration_of(pairs)


@pytest.fixture(scope="module")
def document(made: Calibration) -> dict[str, Any]:
    return calibrate.document_of(made, {"by": "test"})


# --- nulls ---


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=300))
def test_quantiles_are_values_at_or_above_their_level(values: list[float]) -> None:
    null = null_of(values, scores=True)
    assert null is not None and null.n == len(values) == len(null.scores)
    assert list(null.scores) == sorted(null.scores)
    assert all(v <= s <= v + 1.1e-4 for s, v in zip(null.scores, sorted(values), strict=True))  # rounded up only
    assert null.p999 is None and (null.p99 is None) == (len(values) < 100)
    if null.p99 is not None:
        assert sum(v > null.p99 for v in values) <= 0.01 * len(values)


def test_at_most_one_in_a_thousand_is_above_the_999th() -> None:
    values = np.random.default_rng(3).random(5000)
    null = null_of(values.tolist(), scores=False)
    assert null is not None and null.p999 is not None and null.p99 is not None and null.scores == ()
    assert (values > null.p999).sum() <= 5 and 10 <= (values > null.p99).sum() <= 50
    assert null.median == pytest.approx(0.5, abs=0.03)
    assert null_of([], scores=True) is None


def test_a_stratum_of_200_pairs_stands_alone_and_a_smaller_one_is_pooled(made: Calibration) -> None:
    assert made.strata[POOLED].pairs == 1950 and made.strata[RARE].pairs == 150
    large, medium, small = (made.chance("EAS", s) for s in SIZES)
    assert (large.stratum, large.n, large.reason) == (GATED, 1200, None) and large.p999 is not None
    assert (medium.stratum, medium.n, medium.p999) == (OTHER, 600, None) and medium.p99 is not None
    assert medium.reason and text(medium.reason) == "600 unrelated pairs of this kind, a 99.9th percentile needs 1,000"
    assert (small.stratum, small.n, small.reason) == (POOLED, 1950, None)
    assert made.chance("EAS", "a stratum of the future").stratum == POOLED
    assert made.chance("WVC", GATED).n == 600  # half of the pairs have no value
    assert large.median == pytest.approx(0.5, abs=0.03)


def test_no_pair_at_all_is_a_reason() -> None:
    empty = Calibration(FINGERPRINT_VERSION, 0, {})
    found = empty.chance("EAS", GATED)
    assert (found.median, found.p999, found.n, found.stratum) == (None, None, 0, POOLED)
    assert (
        found.reason
        and text(found.reason) == "the calibration has no pair with a value of EAS"
        and found.exceeded_by(1.0) is None
    )
    assert empty.conformal("branch_sketch", 1.0, GATED) == (0.0, 0)


def test_above_chance_is_above_the_999th() -> None:
    chance = Chance(0.5, 0.8, 2000, GATED)
    assert [chance.exceeded_by(v) for v in (0.79, 0.8, 0.81)] == [False, False, True]


def test_scores_get_their_chance_and_absent_ones_stay(made: Calibration) -> None:
    scores = {"EAS": Score(0.9, 64), "WVC": Score.absent("no weights")}
    found = made.with_chance(scores, GATED)
    assert found["EAS"] == replace(scores["EAS"], chance=made.chance("EAS", GATED))
    assert found["WVC"] is scores["WVC"]


# --- conformal ranks ---


def test_a_conformal_p_value_is_a_rank(made: Calibration, pairs: list[Compared]) -> None:
    null = [p.values["branch_sketch"] for p in pairs if p.stratum == GATED]
    for value in (-1.0, 0.0, 0.03, 0.06, 1.0):
        reached = sum(s is not None and s >= value for s in null)
        log10_p, n = made.conformal("branch_sketch", value, GATED)
        assert n == 1200 and log10_p == pytest.approx(math.log10((1 + reached) / 1201), abs=0.02) and log10_p <= 0
    assert made.conformal("triple_agreement", 0.0, GATED) == (0.0, 1200)  # ties count against the pair
    assert made.conformal("triple_agreement", 0.01, GATED)[0] == pytest.approx(-math.log10(1201))
    assert made.conformal("EAS", 1.0, GATED) == (0.0, 0)  # a signal: no scores are kept, no rank is given


def test_a_small_stratum_ranks_what_it_reaches_and_else_the_pooled_null_does(made: Calibration) -> None:
    top = made.strata[OTHER].nulls["branch_sketch"].scores[-1]
    assert made.conformal("branch_sketch", top, OTHER) == (pytest.approx(math.log10(2 / 601)), 600)
    above, n = made.conformal("branch_sketch", top + 1e-6, OTHER)
    assert n == 1950 and above <= math.log10(160 / 1951)  # the rarest stratum scores higher
    assert made.conformal("branch_sketch", 0.99, OTHER) == (pytest.approx(-math.log10(1951)), 1950)
    assert made.conformal("branch_sketch", 0.99, RARE) == (pytest.approx(-math.log10(1951)), 1950)


def test_conformal_p_values_hold_on_a_fresh_null(made: Calibration) -> None:
    fresh = np.random.default_rng(99).normal(0.0, 0.02, 4000)  # as the gated stratum was drawn
    p = 10 ** np.array([made.conformal("branch_sketch", float(v), GATED)[0] for v in fresh])
    for level in (0.5, 0.1, 0.01, 0.001):
        assert (p <= level).mean() <= level + 4 * math.sqrt(level / 1200)


# --- strata ---


def test_names_of_strata() -> None:
    assert len(set(STRATA)) == 12
    assert stratum_of(same_tokenizer=True, same_shape=False, mlp="mixed") == "same tokenizer, different shape, mixed"
    assert {
        stratum_of(same_tokenizer=t, same_shape=s, mlp=m) for t in (True, False) for s in (True, False)
        for m in calibration.MLP_KINDS
    } == set(STRATA)  # fmt: skip
    with pytest.raises(ValueError, match="'swiglu' is none of"):
        stratum_of(same_tokenizer=True, same_shape=True, mlp="swiglu")


@pytest.fixture(scope="module")
def models() -> dict[str, Fingerprint]:
    plain = {
        "llama": zoo.llama(1),
        "llama2": zoo.llama(2),
        "wide": zoo.llama(3, intermediate=192),
        "deep": zoo.llama(4, layers=5),
        "gpt2": zoo.gpt2(5),
        "bert": zoo.bert(6),
        "more words": zoo.extend_vocabulary(zoo.llama(10), ["new", "words"], 3),
        "nameless": replace(zoo.llama(7), tokenizer=None),
        "configless": replace(zoo.llama(8, intermediate=192), config={}),
    }
    return {name: prints.fingerprint(checkpoint, name) for name, checkpoint in plain.items()}


@pytest.mark.parametrize(
    ("a", "b", "stratum"),
    [
        ("llama", "llama2", "same tokenizer, same shape, gated"),
        ("llama", "wide", "same tokenizer, different shape, gated"),
        ("llama", "deep", "same tokenizer, different shape, gated"),
        ("llama", "bert", "different tokenizer, different shape, mixed"),
        ("llama", "more words", "same tokenizer, same shape, gated"),
        ("gpt2", "gpt2", "same tokenizer, same shape, two-matrix"),
        ("llama", "nameless", "same tokenizer, same shape, gated"),  # as many embedding rows
        ("gpt2", "bert", "different tokenizer, same shape, two-matrix"),
    ],
)
def test_strata_of_pairs(models: dict[str, Fingerprint], a: str, b: str, stratum: str) -> None:
    assert calibration.stratum_of_pair(models[a], models[b]) == stratum
    assert calibration.stratum_of_pair(models[b], models[a]) == stratum


def test_the_kind_of_mlp_is_told_by_the_weights(models: dict[str, Fingerprint]) -> None:
    liar = replace(models["gpt2"], mfi=models["llama"].mfi)
    assert [calibration.mlp_kind(fp) for fp in (models["llama"], models["gpt2"], liar)] == [
        "gated", "two-matrix", "two-matrix",
    ]  # fmt: skip
    unknown = calibration.stratum_of_pair(replace(models["configless"], neurons=None), models["llama"])
    assert ", same shape," in unknown  # an unknown width is taken for equal: there strangers score higher


# --- the file ---


def test_a_file_comes_back_as_it_was(made: Calibration, document: dict[str, Any], tmp_path: Path) -> None:
    raw = calibrate.dumps(document)
    assert raw == calibrate.dumps(json.loads(raw)) and calibration.loads(raw) == made
    name = calibration.write(tmp_path, raw)
    assert calibration.load(tmp_path, name) == made and name.startswith("calibration/")
    assert calibration.write(tmp_path, raw) == name
    reasons = [s["statistics"]["EAS"].get("reason") for s in document["strata"]]
    assert [r is None for r in reasons] == [s["pairs"] >= 1000 for s in document["strata"]]


def test_the_package_carries_one_for_answers_without_an_index() -> None:
    carried = calibration_of([])
    assert carried is not None and set(calibration.STRATA) <= set(carried.strata)


@pytest.mark.parametrize(
    "name",
    [None, 3, "", "calibration/12345678.JSON", "../calibration/12345678.json", "calibration/../12345678.json",
     "/etc/passwd", "calibration/12345678.json\n", "calibration/1234567g.json"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(IndexFormatError, match="names a calibration that is no file of a calibration folder"):
        calibration.load(tmp_path, name)


def test_a_missing_altered_or_large_file_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"calibration/00000000\.json cannot be read: No such file"):
        calibration.load(tmp_path, "calibration/00000000.json")
    name = calibration.write(tmp_path, calibrate.dumps(document))
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b'"models":', b'"models" :'))
    with pytest.raises(IndexFormatError, match="its sha256 begins otherwise"):
        calibration.load(tmp_path, name)
    path.write_bytes(b" " * (calibration.MAX_BYTES + 1))
    with pytest.raises(IndexFormatError, match="larger than 4 MB"):
        calibration.load(tmp_path, name)


def first(d: dict[str, Any], statistic: str = "EAS") -> dict[str, Any]:
    """The null of a statistic in the first stratum, which has 1,200 pairs."""
    found: dict[str, Any] = d["strata"][0]["statistics"][statistic]
    return found


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "'schema' is missing": lambda d: d.pop("schema"),
    "'strata' is missing": lambda d: d.pop("strata"),
    "it has schema 2": lambda d: d.update(schema=2),
    "it is of fingerprint version 999": lambda d: d.update(fingerprint_version=999),
    "a count is no number": lambda d: d.update(models=True),
    "a count is no number of": lambda d: d.update(models=10**12),
    "its strata are no list": lambda d: d.update(strata={}),
    "its strata are no list of at most 32": lambda d: d.update(strata=d["strata"] * 40),
    "an object is expected": lambda d: d.update(strata=[[]]),
    "a stratum has no name": lambda d: d["strata"][0].update(name=[1]),
    "a value is no number from -1 to 1": lambda d: first(d).update(median=float("nan")),
    "a value is no number": lambda d: first(d).update(median="0.5"),
    "a value is no number from": lambda d: first(d).update(p999=float("inf")),
    "counts of EAS contradict each other": lambda d: first(d).update(n=1201),
    "quantiles or counts of EAS contradict": lambda d: first(d).update(median=1.0),
    "500 pairs are too few for the quantiles of EAS": lambda d: first(d).update(n=500),
    "scores of EAS are not its": lambda d: first(d).update(scores=[[0.5, 1200]]),
    "branch_sketch are not its 1,200 values in ascending order": lambda d: first(d, "branch_sketch")["scores"].pop(),
    "branch_sketch are not its": lambda d: first(d, "branch_sketch")["scores"].reverse(),
    "scores of branch_sketch are no list": lambda d: first(d, "branch_sketch").update(scores="0.5"),
    "scores of triple_agreement are no list of at most 100,000": lambda d: (
        d["strata"][0].update(pairs=10**6) or first(d, "triple_agreement").update(n=100_001, scores=[[0, 1]] * 100_001)
    ),
    "branch_sketch are no list of at most 1,200": lambda d: first(d, "branch_sketch").update(scores=[[0, 1]] * 1201),
    "scores of branch_sketch are no values with their counts": lambda d: first(d, "branch_sketch").update(scores=[0.5]),
    "a count": lambda d: first(d, "branch_sketch").update(scores=[[0.5, -1]]),
}


@pytest.mark.parametrize("said", HOSTILE)
def test_a_hostile_document_is_one_sentence(document: dict[str, Any], said: str) -> None:
    broken = copy.deepcopy(document)
    HOSTILE[said](broken)
    with pytest.raises(IndexFormatError) as caught:
        calibration.read(broken)
    assert said in caught.value.message and caught.value.message.startswith("The calibration cannot be read: ")
    assert "\n" not in caught.value.message and caught.value.next_step


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"schema": 1' + b"0" * 5000 + b"}"])
def test_bytes_that_are_no_document_are_one_sentence(raw: bytes) -> None:
    with pytest.raises(IndexFormatError, match="The calibration cannot be read: it "):
        calibration.loads(raw)


def test_strata_and_statistics_of_the_future_are_left_out(made: Calibration, document: dict[str, Any]) -> None:
    later = copy.deepcopy(document)
    later["strata"].append({"name": "same data", "pairs": 3, "statistics": {}})
    later["strata"][0]["statistics"]["NEW"] = {"n": 1, "median": 0.5}
    assert calibration.read(later) == made


# --- the builder, on models ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibration-zoo")
    for name, checkpoint in {
        "a": zoo.llama(1), "b": zoo.llama(2), "c": zoo.gpt2(3), "d": zoo.gpt2(4), "e": zoo.bert(5),
        "child": zoo.finetune_noise(zoo.llama(1), 0.99, 6),
    }.items():  # fmt: skip
        zoo.write(checkpoint, root / "calibration" / name)
        truth = {"name": name, "kind": "base" if name != "child" else "finetune"}
        (root / "calibration" / name / "zoo.json").write_text(json.dumps({"truth": truth}))
    zoo.write(zoo.llama(9), root / "calibration" / "unfinished")
    return root


def test_the_builder_compares_every_pair_and_repeats_byte_for_byte(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file, processes in zip(files, ("1", "2"), strict=True):
        assert calibrate.main(["--zoo", str(folder), "-o", str(file), "--processes", processes]) == 0
    said = capsys.readouterr().out
    assert files[0].read_bytes() == files[1].read_bytes() and str(folder).encode() not in files[0].read_bytes()
    found = calibration.loads(files[0].read_bytes())
    assert found.models == 5 and found.strata[POOLED].pairs == 10
    assert found.strata["same tokenizer, same shape, gated"].pairs == 1
    assert "5 models, 10 pairs" in said and "hidden_fixed_points" in said and "pooled" in said
    pooled = found.strata[POOLED].nulls
    assert pooled.keys() >= {"MFI", "VOA", "EAS", "END", "WVC"} and pooled["EAS"].n == 10
    assert pooled["WVC"].median < 0.1 and 0.2 < pooled["EAS"].median < 0.8


def test_an_index_with_too_few_families_adds_nothing_and_says_so(folder: Path, tmp_path: Path) -> None:
    models = calibrate.fingerprints(calibrate.zoo_models(folder))
    index = Index.build([replace(fp, family=f"org/{fp.model_id}") for fp in models[:3]], name="few")
    index.save(tmp_path)
    _, pairs, origin = calibrate.build(folder, tmp_path)
    assert len(pairs) == 10 and origin["index"]["pairs"] == 0 and origin["zoo"]["pairs"] == 10


def test_pairs_of_one_family_are_no_strangers(models: dict[str, Fingerprint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MIN_PAIRS", 2)
    families = {"llama": "a", "llama2": "a", "gpt2": "b", "bert": None}
    index = Index.build([replace(models[name], family=family) for name, family in families.items()])
    found = {frozenset((p.a, p.b)) for p in calibrate.index_pairs(index)}
    assert found == {frozenset(("gpt2", "llama")), frozenset(("gpt2", "llama2"))}


def test_a_calibration_is_attached_to_an_index(document: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    from provindex.index import dataset

    models = calibrate.fingerprints(calibrate.zoo_models(folder))
    Index.build(models, name="with").save(tmp_path)
    before = dataset.read_manifest(tmp_path)
    name = calibrate.attach(tmp_path, calibrate.dumps(document))
    after = dataset.read_manifest(tmp_path)
    assert after == replace(before, calibration=name) and Index.load(tmp_path).verify() == []
    assert calibration.load(tmp_path, after.calibration).strata.keys() == {GATED, OTHER, RARE, POOLED}
    again = calibrate.attach(tmp_path, calibrate.dumps({**document, "made": {"by": "another"}}))
    assert again != name and [f.name for f in (tmp_path / "calibration").iterdir()] == [Path(again).name]
    with pytest.raises(IndexFormatError, match="schema 7"):
        calibrate.attach(tmp_path, calibrate.dumps({**document, "schema": 7}))


def test_a_folder_without_models_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--zoo", str(tmp_path), "-o", str(tmp_path / "x.json")]) == 2
    assert "has 0 models" in capsys.readouterr().err and not (tmp_path / "x.json").exists()
    with pytest.raises(ProvindexError):
        calibrate.zoo_models(tmp_path)


# --- the file that is shipped ---

SHIPPED = Path(calibrate.__file__).with_name("calibration.json")


def test_the_shipped_calibration_has_every_statistic_and_enough_pairs() -> None:
    found = calibration.loads(SHIPPED.read_bytes())
    assert SHIPPED.stat().st_size < 300_000 and found.models >= 60
    pooled = found.strata[POOLED]
    assert pooled.pairs >= 2000 and pooled.nulls.keys() == set(STATISTICS)
    assert pooled.pairs == sum(s.pairs for name, s in found.strata.items() if name != POOLED)
    assert all(pooled.nulls[name].p999 is not None for name in STATISTICS)
    assert {len(pooled.nulls[name].scores) for name in CONFORMAL} == {pooled.nulls[name].n for name in CONFORMAL}
    assert pooled.nulls["WVC"].median < 0.1 and 0.3 < pooled.nulls["EAS"].median < 0.8


def test_the_table_of_the_signals_chapter_is_that_of_the_file() -> None:
    chapter = Path(calibration.__file__).parent.parent / "signals" / "README.md"
    assert calibrate.markdown(calibration.loads(SHIPPED.read_bytes())) in chapter.read_text(encoding="utf-8")
