"""The tables: a new signal, test or renderer is one file and one row, and every list and reason is covered."""

from __future__ import annotations

import ast
import json
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo

import provindex
from provindex.common.reasons import Code, Reason
from provindex.fingerprint.panels import COLUMNS, PANELS
from provindex.report import words

SIGNAL = '''
"""SPR, spread of the embedding: a signal that nobody needs."""
import numpy as np
from provindex.common.reasons import Code, Reason
from provindex.common.score import Score
from provindex.common.tables import Column, Panel, Signal, field

def of_weights(w):
    found = w.embedding("SPR")
    return None if found is None else np.array([w.tensors[found[0].name].flat(0, 64).std()], np.float32)

def compare(a, b):
    return Score(round(float(min(a[0], b[0]) / max(a[0], b[0])), 4), 1)

PANEL = Panel(
    "spread",
    (Column("spread", "list<float32>", "models", True, "SPR: spread of the embedding's first values", 1, finite=True),),
    to_row=lambda values: {"spread": values},
    from_row=lambda row: row["spread"] if row["spread"].size else None,
    extract=of_weights,
)
SIGNAL = Signal("SPR", field("spread"), compare, (PANEL,), order=8)
'''
TEST = '''
"""How many neurons two models keep: a test that nobody needs."""
from provindex.common.reasons import Code, Reason
from provindex.common.score import Outcome, absent
from provindex.common.tables import Test

def run(pair):
    if pair.a.neurons is None or pair.b.neurons is None:
        return absent(Reason.of(Code.SIDE_WITHOUT_NEURONS))
    return Outcome(1.0, int(pair.a.neurons.heights.sum()), None, 0.5)

TEST = Test("neuron_count", run, "reported", "neurons")
'''
RENDERER = """
def render(document, *, width=200, color=False):
    return "# " + document["schema"] + "\\n"
"""
USE = """
import json, sys
import new_signal, new_test, new_renderer
import provindex.signals.table as signals, provindex.evidence.table as evidence
signals.SIGNALS = (*signals.SIGNALS, new_signal.SIGNAL)
evidence.TESTS = (*evidence.TESTS, new_test.TEST)
import provindex.report.renderers as renderers
renderers.RENDERERS = {**renderers.RENDERERS, "heading": new_renderer.render}

import provindex as pv
from provindex import api
from provindex.fingerprint import parquet
from provindex.report import document
a, b = pv.fingerprint(sys.argv[1]), pv.fingerprint(sys.argv[2])
from pathlib import Path
parquet.write_fingerprint(a, Path(sys.argv[3]))
back = parquet.read_fingerprints(Path(sys.argv[3]))[0]
pair = pv.compare(back, b)
answer = api.Comparison(back, b, pair, pv.Index.build(()).info, {})
made = document.compare_document(answer)
index = pv.Index.build([b])
seed = pv.Index.load("embedded")
older = pv.compare(back, seed["openai/whisper-base"]).signals["SPR"]
asked = json.loads(index.query(back).to_json())
print(json.dumps({
    "value": float(back.value("spread")[0]),
    "compare": made,
    "text": renderers.render("text", made),
    "query": renderers.render("text", asked | {"settings": asked["settings"] | {"shown": ["signals"]}}),
    "heading": renderers.render("heading", made, width=None, color=False),
    "older": [older.value, [str(reason.code) for reason in older.reasons]],
    "seed": seed.query(back).status,
}))
"""


def test_a_signal_a_test_and_a_renderer_are_one_file_and_one_row(tmp_path: Path) -> None:
    for name, text in (("new_signal", SIGNAL), ("new_test", TEST), ("new_renderer", RENDERER)):
        (tmp_path / f"{name}.py").write_text(text)
    parent = zoo.llama(1, layers=2)
    models = [
        zoo.write(parent, tmp_path / "parent"),
        zoo.write(zoo.finetune_noise(parent, 0.95, 1), tmp_path / "child"),
    ]
    command = [sys.executable, "-c", USE, *map(str, models), str(tmp_path / "row.parquet")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["value"] > 0 and 0.5 < told["compare"]["signals"]["SPR"]["value"] <= 1
    assert told["compare"]["signals"]["SPR"]["n"] == 1
    found = told["compare"]["evidence"]["neuron_count"]
    assert found["value"] == 1.0 and found["n"] > 0 and found["log10_p"] is None
    assert "SPR" in told["text"] and "neuron_count" in told["text"] and "SPR" in told["query"]
    assert told["heading"] == "# provindex.compare/1\n"
    assert told["older"] == [None, ["fingerprint-lacks"]] and told["seed"] in ("none", "inconclusive")
    assert told["compare"]["verdict"] == "linked" and told["compare"]["relation"] == "finetune"


def test_every_list_column_has_a_limit_and_every_name_is_there_once() -> None:
    lists = [column for column in COLUMNS if column.type.startswith("list<")]
    assert len(lists) > 40 and all(column.limit > 0 for column in lists)
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert len({panel.name for panel in PANELS}) == len(PANELS)


def test_a_row_with_a_list_over_its_limit_is_refused() -> None:
    from prints import fingerprint

    from provindex.common.errors import IndexFormatError
    from provindex.fingerprint.rows import from_row, to_row

    row = to_row(fingerprint(zoo.llama(1, layers=1)))
    for column in COLUMNS:
        if column.type == "list<int32>" and column.limit < 1 << 17:
            with pytest.raises(IndexFormatError, match="values of"):
                from_row({**row, column.name: np.zeros(column.limit + 1, np.int32)})


def test_every_code_has_a_sentence_and_every_sentence_only_known_figures() -> None:
    assert set(words.SENTENCES) == set(Code)
    for code, sentence in words.SENTENCES.items():
        named = [{n for _, n, _, _ in string.Formatter().parse(text) if n} for text in sentence]
        assert named[1] <= named[0], code


def test_a_reason_survives_json_and_hostile_ones_are_refused() -> None:
    inner = Reason.of(Code.WIDTHS_DIFFER, a=64, b=128)
    reason = Reason.of(Code.NOT_RANKED, "org/model", because=[inner], test="triple_agreement")
    assert Reason.from_json(json.loads(json.dumps(reason.to_json()))) == reason
    assert words.text(reason) == "org/model: triple_agreement: residual widths differ (64 and 128)"
    assert words.brief(reason) == "triple_agreement: residual widths differ"
    deep: dict[str, object] = {"code": "no-layers"}
    for _ in range(10):
        deep = {"code": "not-ranked", "because": [deep]}
    for bad in ("no-layers", {"code": "nothing"}, {"code": 3}, {"code": "no-layers", "figures": {"a": [1]}}, deep,
                {"code": "no-layers", "subject": "x" * 5000}, {"code": "no-layers", "because": {}}):  # fmt: skip
        with pytest.raises(ValueError):
            Reason.from_json(bad)


def _made() -> list[tuple[str, str, set[str], bool]]:
    """Every `Reason.of(Code.X, ...)` of the package: where, code, names of its figures, whether it rests on others."""
    found = []
    for path in sorted(Path(provindex.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "Reason.of":
                continue
            if not isinstance(code := node.args[0], ast.Attribute) or None in {k.arg for k in node.keywords}:
                continue
            names = {str(k.arg) for k in node.keywords}
            rests = "because" in names or len(node.args) > 2
            found.append((f"{path.name}:{node.lineno}", code.attr, names - {"because", "subject"}, rests))
    return found


def test_every_reason_that_is_made_has_the_figures_of_its_sentence() -> None:
    made = _made()
    assert len(made) > 100
    for where, code, figures, rests in made:
        wanted = {n for part in words.SENTENCES[Code[code]] for _, n, _, _ in string.Formatter().parse(part) if n}
        assert figures == wanted - {"because"} and rests == ("because" in wanted), (where, code, figures, wanted)


def test_a_figure_that_a_sentence_lacks_or_that_is_no_number_does_not_break_the_text() -> None:
    """Codes are known, but figures come from files of strangers."""
    assert "widths" in words.text(Reason.of(Code.WIDTHS_DIFFER, a="{x}"))
    assert words.text(Reason.of(Code.EMBEDDING_TALL, limit="many"))
    assert words.brief(Reason.of(Code.HALF_STEPS))
    for name in ("because", "self", "format_string", "args", "kwargs", "0"):
        assert words.text(Reason.from_json({"code": "widths-differ", "figures": {name: "x"}}))


def test_names_that_are_longer_than_a_row_holds_are_cut() -> None:
    made = Reason.of(Code.HALF_STEPS, "m" * 5000, because=[Reason.of(Code.WIDTHS_DIFFER, a="a" * 5000, b=1)])
    assert Reason.from_json(made.to_json()) == made and len(made.subject) < 5000


def test_an_index_without_the_column_of_a_panel_is_read(tmp_path: Path) -> None:
    """Of a panel that came later: its columns are empty, whoever asks for them."""
    import pyarrow.parquet
    from prints import fingerprint

    from provindex.fingerprint import parquet
    from provindex.index import dataset

    made = replace(fingerprint(zoo.llama(1, layers=1)), neurons=None)
    whole, without = tmp_path / "whole.parquet", tmp_path / "without.parquet"
    parquet.write_fingerprint(made, whole)
    table = pyarrow.parquet.read_table(whole)
    gone = [column.name for panel in PANELS if panel.name == "neurons" for column in panel.columns]
    assert gone
    pyarrow.parquet.write_table(table.drop_columns(gone), without, compression="zstd")
    (back,) = parquet.read_fingerprints(without)
    shards = [dataset.Shard("", path.name, 1, {}, {}) for path in (whole, without)]
    there, missing = (dataset.read_columns(tmp_path, shard, 0, gone) for shard in shards)
    assert list(there) == gone and all(np.array_equal(there[name], missing[name]) for name in gone)
    assert back.neurons is None and back.content_sha256 == made.content_sha256


def test_rows_and_indexes_of_version_1_are_refused_with_the_command_that_rebuilds_them(tmp_path: Path) -> None:
    from prints import fingerprint

    from provindex.api import Index
    from provindex.common.errors import IndexFormatError
    from provindex.fingerprint.record import FINGERPRINT_VERSION
    from provindex.fingerprint.rows import from_row, to_row

    made = fingerprint(zoo.llama(1, layers=1))
    with pytest.raises(IndexFormatError, match=f"version 1; this provindex reads {FINGERPRINT_VERSION}") as refused:
        from_row({**to_row(made), "fingerprint_version": 1})
    assert "`provindex fingerprint`" in str(refused.value) and "`provindex index build`" in str(refused.value)
    Index.build([made]).save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "fingerprint_version": 1}))
    with pytest.raises(IndexFormatError, match="fingerprint version 1") as refused:
        Index.load(tmp_path)
    assert "`provindex index build MODEL... -o DIR`" in str(refused.value)
