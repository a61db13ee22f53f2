"""The catalogue of models: large enough, and no claim without its source."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from build_index.catalog import CatalogError
from build_index.models import COLUMNS, PEER, load_models


def test_the_catalogue_is_what_it_should_be() -> None:
    models = load_models()
    assert len(models) >= 200
    assert len({m.family for m in models if m.family}) >= 45
    assert len({m.model_id.split("/")[0] for m in models}) >= 20
    assert sum(bool(m.license) for m in models) >= 100 and sum(bool(m.parent) for m in models) >= 60


PAGE = "https://example.org/card"
GOOD = {"model_id": "org/child", "family": "org/root", "license": "mit", "license_source": PAGE}
CHILD = GOOD | {"parent": "org/root", "parent_source": PAGE}
ROOT = {"model_id": "org/root", "family": "org/root"}


def written(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        sink = csv.writer(file, lineterminator="\n")
        sink.writerow(columns)
        sink.writerows([[row.get(name, "") for name in columns] for row in rows])
    return path


def test_a_good_one_is_read(tmp_path: Path) -> None:
    child, root = load_models(written(tmp_path / "models.csv", CHILD, ROOT))
    assert (child.model_id, child.parent, root.license) == ("org/child", "org/root", "")
    load_models(written(tmp_path / "peer.csv", CHILD | {"parent_source": PEER}, ROOT))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([GOOD | {"model_id": "child"}], "malformed model_id: child"),
        ([GOOD | {"family": "brand"}], "malformed family: brand"),
        ([GOOD | {"license_source": ""}], "a license without a source"),
        ([GOOD | {"license": ""}], "a license without a source"),
        ([CHILD | {"parent_source": ""}, ROOT], "a parent without a source"),
        ([GOOD | {"license_source": "http://x"}], "license_source that is no page"),
        ([GOOD | {"license_source": PEER}], "license_source that is no page"),
        ([CHILD | {"parent_source": "somebody said"}, ROOT], "parent_source that is no page"),
        ([GOOD, GOOD], "org/child is there 2 times"),
        ([ROOT, GOOD], "not sorted"),
        ([CHILD | {"family": ""}, ROOT], "has the family none, its parent org/root"),
        ([CHILD | {"parent": "org/child"}], "descends from itself"),
        ([CHILD, ROOT | {"parent": "org/child", "parent_source": PAGE}], "org/root descends from itself"),
    ],
)
def test_what_is_wrong_is_named(rows: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=said):
        load_models(written(tmp_path / "models.csv", *rows))


def test_other_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="other columns"):
        load_models(written(tmp_path / "models.csv", GOOD, columns=COLUMNS[:-1]))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "short.csv").write_text(",".join(COLUMNS) + "\norg/a\n")
    for name, said in (("empty.csv", "cannot be read"), ("missing.csv", "cannot be read"), ("short.csv", "1 fields")):
        with pytest.raises(CatalogError, match=said):
            load_models(tmp_path / name)
