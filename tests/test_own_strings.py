"""Whether a tokenizer is that of the embedding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo

from build_index.zoo.snapshot import Snapshot
from build_index.zoo.vocabulary import renumber_vocabulary
from provindex.api import fingerprint
from provindex.evidence.anchors import ANCHORS, STRINGS
from provindex.evidence.own_strings import LEAST, fit

MADE = zoo.spoken(zoo.llama(1), 1)


def test_rows_that_know_their_strings_fit_in_any_basis_and_no_others_do() -> None:
    texts = list(ANCHORS[:300])
    tokenizer = json.dumps({"model": {"vocab": {text: i for i, text in enumerate(texts)}}})
    name, table = "x.embed_tokens.weight", np.random.default_rng(0).standard_normal((300, 64), np.float32)
    rows = zoo.with_strings({name: table}, tokenizer, 3)[name]
    rng = np.random.default_rng(1)
    turned = rows @ np.linalg.qr(rng.standard_normal((64, 64)))[0].astype(np.float32)
    assert (fit(rows, texts) or 0) > 3 * LEAST
    assert fit(turned, texts) == pytest.approx(fit(rows, texts), rel=1e-3)
    scores = [fit(rows[rng.permutation(300)], texts) or 0.0 for _ in range(200)]
    assert max(map(abs, scores)) < LEAST and 0.7 < np.std(scores) < 1.3  # the standard deviation that theory gives


@pytest.mark.parametrize("rows", [np.zeros((40, 8)), np.full((40, 8), np.nan), np.ones((15, 8))])
def test_where_nothing_varies_or_is_there_nothing_is_said(rows: np.ndarray) -> None:  # type: ignore[type-arg]
    assert fit(rows.astype(np.float32), ANCHORS[: len(rows)]) is None


def test_a_fingerprint_says_that_its_tokenizer_is_not_its_own(tmp_path: Path) -> None:
    own = Snapshot("own", dict(MADE.tensors), MADE.config, MADE.tokenizer or "")
    renumbered = renumber_vocabulary(own, 1)
    lying = replace(renumbered, tokenizer=own.tokenizer)
    said = [fingerprint(one.write(tmp_path / str(i))) for i, one in enumerate((own, renumbered, lying))]
    assert [STRINGS in fp.absences for fp in said] == [False, False, True]
