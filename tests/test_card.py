"""The dataset card: its numbers are the index's, and the Hub's own tools understand its head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import zoo
from prints import fingerprint

from build_index import card
from provindex.api import Index
from provindex.common.errors import ProvindexError
from provindex.index.entries import SEED


def test_the_card_in_the_repository_has_the_numbers_of_the_embedded_index() -> None:
    assert card.CARD.read_text(encoding="utf-8") == card.render(Index.load(SEED))


def test_its_head_is_what_the_hub_reads() -> None:
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    head = DatasetCard(card.render(Index.load(SEED))).data
    configs = MetadataConfigs.from_dataset_card_data(head)
    assert configs.get_default_config_name() == "models"
    assert {name: config["data_files"][0]["path"] for name, config in configs.items()} == {
        "models": "data/models/*.parquet", "panels": "data/panels/*.parquet",
    }  # fmt: skip
    assert head.license == "cc0-1.0" and head.to_dict()["size_categories"] == ["n<1K"]


def test_the_numbers_follow_the_index(tmp_path: Path) -> None:
    base = fingerprint(zoo.llama(0, layers=2), "org/base")
    rows = [
        replace(base, model_id=f"org/m{n}", license=f"license-{n}" if n else None, variant="q4" * (n > 10))
        for n in range(15)
    ]
    Index.build([*rows, replace(base, family="org/base", license=None)], name="many").save(tmp_path)
    text = card.render(Index.load(tmp_path), "acme/prints")
    assert "provindex/fingerprints" not in text and "provindex index pull acme/prints" in text
    for line in ("| models | 16 |", "| publishers | 1 |", "| llama | 16 |", "| 3 others | 3 |", "| not stated | 2 |"):
        assert line in text
    assert "another dress of a model: quantized, converted) | 4 |" in text


@pytest.mark.parametrize(
    ("models", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (2_000_000, "1M<n<10M")],
)
def test_size_classes(models: int, name: str) -> None:
    assert card.size_class(models) == name


def test_a_card_without_its_marks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "CARD", tmp_path / "README.md")
    card.CARD.write_text("# x")
    with pytest.raises(ProvindexError, match="no block of numbers"):
        card.render(Index.load(SEED))
