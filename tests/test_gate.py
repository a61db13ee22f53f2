"""What a gate makes of a pair: five states, which of several rows decides, and whose bytes count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from commands import run
from hub_server import Hub
from prints import in_memory

from provindex import api
from provindex.api import Index, resolve
from provindex.audit.gate import _alike_rows
from provindex.audit.relative import is_relative
from provindex.common.errors import ModelNotFoundError, NetworkError, UsageError
from provindex.common.reasons import Code
from provindex.fingerprint.record import Fingerprint

BASE = zoo.spoken(zoo.llama(1, layers=4, hidden=96, heads=4, intermediate=256), 1)


def trained(parent: zoo.Checkpoint, seed: int) -> zoo.Checkpoint:
    """A child: what training adds is at right angles to what was there."""
    rng = np.random.default_rng(seed)
    steps = {
        n: np.float32(0.2 * t.std()) * rng.standard_normal(t.shape, dtype=np.float32) for n, t in parent.tensors.items()
    }
    return replace(parent, tensors={n: t + steps[n] if t.ndim == 2 else t for n, t in parent.tensors.items()})


LEFT, RIGHT = trained(BASE, 11), trained(BASE, 12)
STRANGER = zoo.spoken(zoo.llama(3, layers=4, hidden=96, heads=4, intermediate=256), 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two children of it, a child of one of them, and a stranger."""
    models = {
        "base": BASE, "left": LEFT, "right": RIGHT, "grandchild": trained(LEFT, 13),
        "stranger": STRANGER,
    }  # fmt: skip
    root = tmp_path_factory.mktemp("gate")
    return {name: zoo.write(model, root / name) for name, model in models.items()}


@pytest.fixture(scope="module")
def rows(folders: dict[str, Path]) -> dict[str, Fingerprint]:
    """Their fingerprints, as org/NAME."""
    return {name: replace(resolve(folder).fingerprint, model_id=f"org/{name}") for name, folder in folders.items()}


def index_of(*rows: Fingerprint) -> Index:
    """The embedded index, whose chance levels count, with some rows."""
    found = Index.load("embedded")
    for row in rows:
        found.add(row)
    return found


def judged(folder: Path, index: Index, *rules: str, related: bool = False) -> api.Gate:
    policy = api.Policy().with_more(rules, related=related)
    read, result = api.query(index, resolve(folder, own_bytes=True), also=policy.asked_for(index))
    return api.gate(result, policy, index, read)


def states(gate: api.Gate) -> list[str]:
    return [denial.state for denial in gate.denied]


def test_a_child_is_denied_and_a_stranger_cleared(folders: dict[str, Path], rows: dict[str, Fingerprint]) -> None:
    index = index_of(rows["base"], rows["stranger"])
    gate = judged(folders["left"], index, "org/base", "org/stranger")
    assert states(gate) == ["denied", "cleared"] and (gate.status, gate.exit_status) == ("failed", 1)
    assert judged(folders["left"], index, "org/stranger").exit_status == 0


@pytest.mark.parametrize(
    ("asked", "denied", "state"),
    [
        ("base", "left", "relative"),  # its descendant
        ("right", "left", "relative"),  # its sibling
        ("right", "grandchild", "relative"),
        ("left", "grandchild", "relative"),
        ("left", "left", "denied"),
        ("grandchild", "left", "denied"),
        ("grandchild", "base", "denied"),
    ],
)  # fmt: skip
def test_a_relative_is_no_descendant(
    folders: dict[str, Path], rows: dict[str, Fingerprint], asked: str, denied: str, state: str
) -> None:
    index = index_of(*(rows[name] for name in ("base", "left", "right", "grandchild")))
    gate = judged(folders[asked], index, f"org/{denied}")
    assert states(gate) == [state] and gate.exit_status == int(state == "denied")
    assert states(judged(folders[asked], index, f"org/{denied}", related=True)) == ["denied"]


def noisy(values: np.ndarray, by: float) -> np.ndarray:
    rng = np.random.default_rng(4)
    return values + np.float32(by * values.std()) * rng.standard_normal(values.shape, dtype=np.float32)


def pruned(values: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.abs(values) < np.quantile(np.abs(values), share), np.float32(0), values)


def rounded(values: np.ndarray, steps: float) -> np.ndarray:
    step = np.abs(values).max() / np.float32(steps)
    return np.round(values / step) * step


@pytest.mark.parametrize(
    ("change", "amount"), [(noisy, 0.05), (noisy, 0.2), (pruned, 0.3), (rounded, 127.0), (rounded, 15.0)]
)
def test_no_change_of_a_copy_makes_it_a_relative(
    folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path, change: object, amount: float
) -> None:
    """Noise, pruning and rounding are added to what training changed; so is a step back to the base."""
    assert callable(change)
    index = index_of(*(rows[name] for name in ("base", "left", "right")))
    tensors = {n: change(t, amount) if t.ndim == 2 else t for n, t in LEFT.tensors.items()}
    copy = zoo.write(replace(LEFT, tensors=tensors), tmp_path / "copy")
    assert states(judged(copy, index, "org/left")) == ["denied"]
    back = {n: np.float32(0.7) * t + np.float32(0.3) * BASE.tensors[n] for n, t in LEFT.tensors.items()}
    assert states(judged(zoo.write(replace(LEFT, tensors=back), tmp_path / "back"), index, "org/left")) == ["denied"]


def test_the_samples_alone_make_no_relative(
    folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path
) -> None:
    """A copy whose rows are those of the base wherever a sample is kept: the signs of whole layers tell."""
    index = index_of(rows["base"], rows["left"])
    asked = resolve(folders["left"], own_bytes=True)
    base = resolve(folders["base"]).fingerprint
    forged = replace(asked.fingerprint, blocks=base.blocks, wvc=base.wvc)
    policy = api.Policy().with_more(["org/left"])
    read, result = api.query(index, replace(asked, fingerprint=forged), also=policy.asked_for(index))
    (denial,) = api.gate(result, policy, index, read).denied
    assert denial.state == "denied"


def test_a_variant_stands_for_its_model(folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path) -> None:
    """The original is denied where the index holds nothing but its quantized row."""
    tensors = {n: rounded(t, 127) if t.ndim == 2 else t for n, t in LEFT.tensors.items()}
    quantized = resolve(zoo.write(replace(LEFT, tensors=tensors), tmp_path / "int8")).fingerprint
    index = index_of(rows["base"], replace(quantized, model_id="org/left", variant="int8"))
    gate = judged(folders["left"], index, "org/left")
    assert states(gate) == ["denied"] and gate.exit_status == 1


def test_other_kinds_of_mlp_are_not_comparable(folders: dict[str, Path], rows: dict[str, Fingerprint]) -> None:
    gate = judged(folders["left"], index_of(rows["base"]), "sentence-transformers/all-MiniLM-L6-v2")
    (denial,) = gate.denied
    assert (denial.state, denial.reason.code) == ("not_comparable", Code.DENIED_NOT_COMPARABLE)
    assert gate.exit_status == 0
    strict = replace(gate, policy=replace(gate.policy, on_not_comparable="fail"))
    assert (strict.status, strict.exit_status) == ("inconclusive", 3)


def test_a_tower_is_compared_like_a_model(
    folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path
) -> None:
    tensors = {**STRANGER.tensors, **{f"vision_tower.{n}": t for n, t in LEFT.tensors.items()}}
    index = index_of(rows["base"], rows["left"])
    folder = zoo.write(replace(STRANGER, tensors=tensors), tmp_path / "tower")
    (denial,) = judged(folder, index, "org/left").denied
    assert (denial.state, denial.reason.code) == ("denied", Code.DENIED_TOWER)


def test_rows_of_one_commit_that_disagree_decide_nothing(
    folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path
) -> None:
    """A row that somebody made up beside the genuine one, and one of an earlier revision."""
    made_up = replace(resolve(zoo.write(zoo.llama(9), tmp_path / "x")).fingerprint, model_id="org/left")
    genuine = replace(rows["left"], revision="a" * 40)
    torn = judged(folders["stranger"], index_of(genuine, replace(made_up, revision="a" * 40)), "org/left")
    assert [(d.state, d.reason.code) for d in torn.denied] == [("inconclusive", Code.DENIED_ROWS_DISAGREE)]
    shadow = index_of(genuine, replace(made_up, revision="0" * 40))
    assert states(judged(folders["left"], shadow, "org/left")) == ["denied"]


def test_only_the_models_own_bytes_count(
    folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path, hub: Hub
) -> None:
    """Neither a row of its id, nor a row that claims the digests of its files, nor a fingerprint file."""
    stolen = folders["left"]
    hub.publish("evil/clean", files_of(stolen))
    clean = replace(rows["stranger"], model_id="evil/clean")
    index = index_of(rows["base"], rows["left"], clean)
    assert resolve("evil/clean", index=index).fingerprint.content_sha256 == clean.content_sha256, "the row answers"
    read = resolve("evil/clean", index=index, own_bytes=True)
    assert read.fingerprint.content_sha256 == rows["left"].content_sha256
    with pytest.raises((ModelNotFoundError, NetworkError), match="Only a model's own weights count here"):
        resolve("org/base", index=index, own_bytes=True, offline=True)
    path = tmp_path / "clean.parquet"
    api.write_fingerprint(clean, path)
    with pytest.raises(UsageError, match="is a fingerprint"):
        resolve(path, own_bytes=True)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_excluded_files_are_named(folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path) -> None:
    folder = zoo.write(STRANGER, tmp_path / "model")
    (folder / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1 << 20))
    index = index_of(rows["left"])
    assert judged(folder, index, "org/left").exit_status == 3
    policy = api.Policy().with_more(["org/left"], exclude=["*.h5"])
    asked, excluded = api.excluding(resolve(folder, own_bytes=True), policy.exclude)
    read, result = api.query(index, asked, also=policy.asked_for(index))
    gate = api.gate(result, policy, index, read, excluded=excluded)
    assert gate.exit_status == 0 and [r.because[0].subject for r in gate.excluded] == ["tf_model.h5"]


def test_expect_looks_at_the_towers_of_a(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = {**STRANGER.tensors, **{f"vision_tower.{n}": t for n, t in LEFT.tensors.items()}}
    a = resolve(zoo.write(replace(STRANGER, tensors=tensors), tmp_path / "tower"), own_bytes=True)
    b = resolve(folders["left"])
    pair = api.compare(a, b)
    assert pair.verdict != "linked"
    status, state, reason = api.expect(pair, "unrelated", a, b.fingerprint)
    assert (status, state, reason.code) == ("failed", "denied", Code.DENIED_TOWER)
    plain = resolve(folders["stranger"], own_bytes=True)
    assert api.expect(api.compare(plain, b), "unrelated", plain, b.fingerprint)[:2] == ("passed", "cleared")


def test_a_step_back_elsewhere_pays_for_no_copy(folders: dict[str, Path], rows: dict[str, Fingerprint]) -> None:
    """Half of the layers are the denied model's, the others went as far the other way."""
    tensors = dict(LEFT.tensors)
    for name, table in BASE.tensors.items():
        if ".2." in name or ".3." in name:
            tensors[name] = np.float32(2) * table - LEFT.tensors[name]
    changed = in_memory(replace(LEFT, tensors=tensors))
    copy = api.fingerprint_model(changed)
    assert is_relative(copy, rows["base"], rows["left"]) == (False, None)
    assert is_relative(rows["right"], rows["base"], rows["left"])[0]


def test_a_gate_that_hardly_changes_is_no_design_of_its_own(rows: dict[str, Fingerprint]) -> None:
    """An ungated model in the dress of a gated one: the other factor is nearly a constant, without any bias."""
    whole = rows["left"].value("whole_layers")
    assert not _alike_rows(whole)
    table = whole.by_string.copy()
    table[:, 1] = table[0, 1]
    assert _alike_rows(replace(whole, by_string=table))


def test_an_allow_list_counts_other_designs_if_the_policy_says_so(
    folders: dict[str, Path], rows: dict[str, Fingerprint]
) -> None:
    index = index_of(rows["base"])
    policy = replace(api.Policy().with_more(allow=["org/*"]), on_not_comparable="fail")
    read, result = api.query(index, resolve(folders["left"], own_bytes=True))
    gate = api.gate(result, policy, index, read)
    assert gate.status == "inconclusive" and "not_comparable" in states(gate)


def test_a_rule_names_no_revision_by_a_few_letters() -> None:
    with pytest.raises(UsageError, match="fewer than 7 letters"):
        api.Policy().with_more(["org/name@ab"])


def test_values_in_the_place_of_weights_clear_nobody(rows: dict[str, Fingerprint], tmp_path: Path) -> None:
    """Rows of NaN hide a copy from every test that reads whole matrices."""
    spoiled = {n: t.copy() for n, t in STRANGER.tensors.items()}
    spoiled["model.layers.0.mlp.up_proj.weight"][0] = np.nan
    folder = zoo.write(replace(STRANGER, tensors=spoiled), tmp_path / "spoiled")
    gate = judged(folder, index_of(rows["left"]), "org/left", "sentence-transformers/all-MiniLM-L6-v2")
    assert states(gate) == ["inconclusive", "inconclusive"] and gate.exit_status == 3


def test_a_trusted_index_trusts_no_tower(
    folders: dict[str, Path], rows: dict[str, Fingerprint], tmp_path: Path
) -> None:
    """--trust-index lets a row stand for weights that are not at hand; those that are count whole."""
    index_of(rows["left"]).save(tmp_path / "index")
    tensors = {**STRANGER.tensors, **{f"vision_tower.{n}": t for n, t in LEFT.tensors.items()}}
    folder = zoo.write(replace(STRANGER, tensors=tensors), tmp_path / "tower")
    asked = ("query", folder, "--index", tmp_path / "index", "-q", "--deny", "org/left")
    assert run(*asked).status == 1 == run(*asked, "--trust-index").status
