"""Retrieval: every true ancestor is among the first 50 candidates, beside 2,000 distractors, with the query's config
and tokenizer withheld. The recall is printed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import prints
import pytest
import zoo
from numpy.typing import NDArray

from provindex.api import Index, fingerprint
from provindex.common.halves import rounded
from provindex.common.reasons import Code, Reason
from provindex.fingerprint.extract.model import fingerprint_model
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import open_model

F32 = NDArray[np.float32]
DISTRACTORS = 2000
WITHIN = 50
REAL_LINEAGE = Path(__file__).parent / "data" / "real_lineage.tsv"


# --- distractors: rows that agree with a true ancestor in everything that unrelated models may share ---


def distractors(ancestors: Sequence[Fingerprint], count: int) -> Iterator[Fingerprint]:
    """Thieves and strangers, by turns of four.

    Three of four have an ancestor's config, tokenizer, facts, LEP, END and NLF to the last digit, and independent
    weights: EAS and WVC drawn at random; with a new anchor geometry, or with that of a second distractor. The fourth
    is a stranger: everything at random.
    """
    rng = np.random.default_rng(20261123)
    for number in range(count):
        victim = ancestors[number % len(ancestors)]
        yield _independent(victim, number, rng, stranger=number % 4 == 3)


def _independent(victim: Fingerprint, number: int, rng: np.random.Generator, *, stranger: bool) -> Fingerprint:
    light = replace(
        victim, model_id=f"distractor/{number:04d}", hidden=None, residual=None, blocks=None, parents=(), family=None,
        content_sha256=f"{number:064x}", eas=_anchor_cosines(victim.eas, rng), wvc=_samples(victim, rng),
        eas_by_id=_anchor_cosines(victim.eas_by_id, rng),
    )  # fmt: skip
    if not stranger or light.nlf is None or light.end is None:
        return light
    noise = replace(light.nlf, values=(light.nlf.values * rng.lognormal(0, 0.3, light.nlf.values.shape)).astype("f4"))
    lep = {stack: np.sort(rng.uniform(0.2, 1, v.size)).astype(np.float32) for stack, v in light.lep.items()}
    return replace(light, nlf=noise, lep=lep, end=rng.dirichlet(np.ones(20)))


def _anchor_cosines(like: F32 | None, rng: np.random.Generator) -> F32 | None:
    """Cosines of as many random vectors as the model had anchors, with the spread that its own have."""
    if like is None:
        return None
    spread = max(float(like[np.triu_indices(len(like), 1)].std()), 0.05)
    rows = rng.standard_normal((len(like), max(4, round(spread**-2)))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray((rows @ rows.T).astype(np.float16), np.float32)


def _samples(victim: Fingerprint, rng: np.random.Generator):
    if victim.wvc is None:
        return None
    return replace(victim.wvc, values=rounded(rng.standard_normal(victim.wvc.values.size, np.float32)))


# --- the trial ---


def withheld(folder: Path) -> Fingerprint:
    """The fingerprint of a model of which only the weights are there: no config, no tokenizer, another name."""
    model = open_model(str(folder))
    bare = replace(model, config={}, config_reason=Reason.of(Code.NO_CONFIG, name="config.json"), tokenizer_files={})
    made = fingerprint_model(bare)
    assert made.tfv is None and made.vocabulary_sketch is None and not made.mfi.tokenizer_hash
    return replace(made, model_id=f"query/{folder.name}")


def ranks(index: Index, query: Fingerprint, ancestors: Iterable[str], without: str = "") -> dict[str, int]:
    """Rank from 1 of each ancestor among all rows but one."""
    found = [entry.model_id for entry, _, _ in index.nearest(query, len(index)) if entry.model_id != without]
    return {name: found.index(name) + 1 for name in ancestors}


def recall(found: dict[tuple[str, str], int], title: str) -> float:
    """Share of ancestors within the first 50, printed with every rank."""
    hits = sum(rank <= WITHIN for rank in found.values())
    lines = [f"  {child:24s} {ancestor:24s} rank {rank}" for (child, ancestor), rank in found.items()]
    said = f"{title}: {hits} of {len(found)} ancestors among the first {WITHIN} of {DISTRACTORS} distractors and more"
    print("\n".join([said, *lines]))
    return hits / len(found)


def ancestors_of(family: zoo.Family, name: str) -> list[str]:
    out = []
    while name in family.parents:
        name = family.parents[name]
        out.append(name)
    return out


@pytest.fixture(scope="module")
def crowd(pytestconfig: pytest.Config) -> tuple[zoo.Family, Index]:
    """The zoo's founders, encoders and inner nodes, and 2,000 distractors made from them."""
    family, made = prints.trained(pytestconfig.cache.mkdir("zoo"))
    names = sorted({*family.founders, *family.encoders, *family.parents.values()})
    true = [replace(made[name], model_id=name) for name in names]
    return family, Index.build([*true, *distractors(true, DISTRACTORS)])


def test_every_ancestor_is_a_candidate_among_2000_distractors(
    crowd: tuple[zoo.Family, Index], capsys: pytest.CaptureFixture[str]
) -> None:
    family, index = crowd
    found = {
        (child, ancestor): rank
        for child in family.parents
        for ancestor, rank in ranks(index, withheld(family.folders[child]), ancestors_of(family, child)).items()
    }
    with capsys.disabled():
        print()
        assert recall(found, "zoo, config and tokenizer withheld") == 1.0


# --- real models ---

NO_TRANSFORMER = {"fracast", "fracast-int8"}  # a convolutional forecaster: no role is known, so no signal is there


def real_pairs() -> list[tuple[str, str]]:
    with REAL_LINEAGE.open(encoding="utf-8", newline="") as file:
        return [(row["a"], row["b"]) for row in csv.DictReader(file, delimiter="\t") if row["label"] == "linked"]


@pytest.mark.real
def test_real_relatives_are_candidates_among_2000_distractors(capsys: pytest.CaptureFixture[str]) -> None:
    root = os.environ.get("PROVINDEX_REAL_MODELS")
    if not root:
        pytest.skip("PROVINDEX_REAL_MODELS is not set")
    pairs = real_pairs()
    folders = {name: Path(root) / "snapshots" / name for name in sorted({name for pair in pairs for name in pair})}
    true = [replace(fingerprint(folder), model_id=name) for name, folder in folders.items()]
    index = Index.build([*true, *distractors(true, DISTRACTORS)])
    asked = {name: withheld(folder) for name, folder in folders.items()}
    found = {(a, b): ranks(index, asked[a], [b], without=a)[b] for a, b in [*pairs, *((b, a) for a, b in pairs)]}
    with capsys.disabled():
        print()
        recall(found, "real models, config and tokenizer withheld")
    missed = {pair for pair, rank in found.items() if rank > WITHIN}
    assert all(NO_TRANSFORMER.issuperset(pair) for pair in missed), missed
