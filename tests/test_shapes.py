"""The shapes of catalogued models: the file loads, and what is wrong in one is named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from build_index.catalog import CatalogError
from build_index.models import load_models
from build_index.shapes import COLUMNS, NUMBERS, load_shapes


def test_the_shapes_are_what_they_should_be() -> None:
    shapes = load_shapes(model_ids={model.model_id for model in load_models()})
    assert len(shapes) >= 200
    assert sum(None not in (s.hidden, s.layers, s.heads) for s in shapes) >= len(shapes) // 2
    assert all(s.hidden is None or s.heads is None or s.heads <= s.hidden for s in shapes)
    assert all(s.heads is None or s.kv_heads is None or s.kv_heads <= s.heads for s in shapes)


PAGE = "https://example.org/config.json"
GOOD = {"model_id": "org/b", "model_type": "llama", "hidden": "64", "vocabulary": "32000", "source": PAGE}


def written(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        sink = csv.writer(file, lineterminator="\n")
        sink.writerow(columns)
        sink.writerows([[row.get(name, "") for name in columns] for row in rows])
    return path


def test_a_good_one_is_read(tmp_path: Path) -> None:
    two = GOOD | {"model_id": "Org/c", "model_type": "", "source": f"{PAGE} {PAGE}"}
    path = written(tmp_path / "shapes.csv", GOOD, two)
    first, second = load_shapes(path)
    assert (first.model_id, first.model_type, first.hidden, first.vocabulary) == ("org/b", "llama", 64, 32000)
    assert first.layers is first.intermediate is first.heads is first.kv_heads is None
    assert (second.model_type, second.source) == ("", f"{PAGE} {PAGE}")
    assert load_shapes(path, {"org/b", "Org/c"}) == (first, second)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([GOOD | {"model_id": "b"}], "malformed model_id: b"),
        ([GOOD | {"model_id": ""}], "malformed model_id: none"),
        ([GOOD, GOOD], "org/b is there 2 times"),
        ([GOOD, GOOD | {"model_id": "Org/a"}], "not sorted"),
        *(([GOOD | {name: "0"}], f"{name} that is no positive integer: 0") for name in NUMBERS),
        ([GOOD | {"layers": "-2"}], "no positive integer: -2"),
        ([GOOD | {"layers": "2.5"}], "no positive integer: 2.5"),
        ([GOOD | {"layers": "many"}], "no positive integer: many"),
        ([GOOD | {"layers": "²"}], "no positive integer: ²"),
        ([GOOD | {"layers": "10000001"}], "absurd value of layers: 10000001"),
        ([GOOD | {"layers": "1" * 5000}], "absurd value of layers"),
        ([GOOD | {"hidden": "", "vocabulary": ""}], "org/b has no number at all"),
        ([GOOD | {"source": ""}], "org/b has no source"),
        ([GOOD | {"source": "http://example.org"}], "a source that is no page: http"),
        ([GOOD | {"source": f"{PAGE} somebody said"}], "a source that is no page"),
    ],
)
def test_what_is_wrong_is_named(rows: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=said):
        load_shapes(written(tmp_path / "shapes.csv", *rows))


def test_every_problem_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "shapes.csv", GOOD | {"heads": "0", "source": ""}, GOOD | {"model_id": "org/c"})
    with pytest.raises(CatalogError) as caught:
        load_shapes(path, {"org/b"})
    for said in ("heads that is no positive integer", "org/b has no source", "org/c is not in the catalogue"):
        assert said in str(caught.value)


def test_other_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="other columns"):
        load_shapes(written(tmp_path / "shapes.csv", GOOD, columns=COLUMNS[:-1]))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "short.csv").write_text(",".join(COLUMNS) + "\norg/a\n")
    for name, said in (("empty.csv", "cannot be read"), ("missing.csv", "cannot be read"), ("short.csv", "1 fields")):
        with pytest.raises(CatalogError, match=said):
            load_shapes(tmp_path / name)
