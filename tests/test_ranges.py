"""Weights on the Hub that are read by ranges, with the real client: the same answers as here, from fewer bytes."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from commands import run
from hub_server import Hub
from hypothesis import given
from hypothesis import strategies as st

from provindex.api import Index, Resolved, compare_in_stages, query, resolve
from provindex.common.errors import ModelError, NetworkError
from provindex.fingerprint.record import Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.formats.ranged import GAP, RangedFile, Spans, prune, requests
from provindex.formats.tensors import ByteTensor
from provindex.models import source


def large(seed: int = 1) -> zoo.Checkpoint:
    """Matrices of several blocks each, so that a sample is less than the whole."""
    return zoo.llama(seed, layers=6, hidden=384, intermediate=1536)


def files(checkpoint: zoo.Checkpoint, folder: Path, **how: object) -> dict[str, bytes]:
    zoo.write(checkpoint, folder, **how)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sent(hub: Hub) -> int:
    """Bytes of weight files that went over the wire; those are the requests with a range."""
    return sum(size for method, _, status, size, _ in hub.log if method == "GET" and status == 206)


def forget() -> None:
    shutil.rmtree(Path(os.environ["PROVINDEX_CACHE"]) / "ranges", ignore_errors=True)


@pytest.fixture
def published(hub: Hub, tmp_path: Path) -> Callable[..., str]:
    forget()

    def publish(name: str, checkpoint: zoo.Checkpoint, **how: object) -> str:
        hub.publish(f"ranges/{name}", files(checkpoint, tmp_path / name, **how))
        hub.log.clear()
        return f"ranges/{name}"

    return publish


@pytest.mark.parametrize("shards", [1, 3])
def test_ranges_give_the_fingerprint_that_a_local_copy_gives(
    hub: Hub, published: Callable[..., str], tmp_path: Path, shards: int
) -> None:
    repo = published(f"same{shards}", large(), shards=shards, dtype="BF16")
    there = resolve(repo, mode="sampled").fingerprint
    here = resolve(tmp_path / f"same{shards}", mode="sampled").fingerprint
    assert to_row(there)["row_sha256"] == to_row(here)["row_sha256"]
    assert there.bytes_read == here.bytes_read < there.bytes_total
    assert there.bytes_read <= sent(hub) < there.bytes_total + (1 << 20) * shards
    assert there.revision and here.revision is None


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.bert, zoo.t5, zoo.neox, zoo.qwen2])
def test_every_layout_of_weights_can_be_read_by_ranges(
    published: Callable[..., str], tmp_path: Path, make: Callable[[], zoo.Checkpoint]
) -> None:
    name = make.__name__
    there = resolve(published(name, make()), mode="sampled").fingerprint
    assert to_row(there)["row_sha256"] == to_row(resolve(tmp_path / name, mode="sampled").fingerprint)["row_sha256"]


def test_gguf_is_read_by_ranges_too(hub: Hub, tmp_path: Path) -> None:
    models = pytest.importorskip("gguf_models", exc_type=ImportError)
    forget()
    path, made = tmp_path / "model.gguf", models.FAMILIES["llama"]
    models.write_gguf(path, made, models.weights(made), "Q8_0")
    hub.publish("ranges/gguf", {"model.gguf": path.read_bytes()})
    there, here = resolve("ranges/gguf", mode="sampled"), resolve(path, mode="sampled")
    assert to_row(there.fingerprint)["row_sha256"] == to_row(here.fingerprint)["row_sha256"]
    assert there.fingerprint.tfv is not None or here.fingerprint.tfv is None


def test_a_torch_checkpoint_is_read_by_ranges_and_its_headers_come_together(
    hub: Hub, published: Callable[..., str], tmp_path: Path
) -> None:
    """Zip archives have a header before each storage: 40 of them are not 40 requests one after another."""
    from torch_writer import archive, op, tensor

    checkpoint = large()
    keys = {name: str(i) for i, name in enumerate(checkpoint.tensors)}
    made = {}
    for name, value in checkpoint.tensors.items():
        stride = tuple(step // value.itemsize for step in np.ascontiguousarray(value).strides)
        made[name] = tensor(keys[name], value.shape, stride)
    data = archive(op(made), {keys[name]: value.tobytes() for name, value in checkpoint.tensors.items()})
    here = files(checkpoint, tmp_path / "torch")
    beside = {name: content for name, content in here.items() if "safetensors" not in name}
    hub.publish("ranges/torch", {**beside, "pytorch_model.bin": data})
    hub.log.clear()
    there = resolve("ranges/torch", mode="sampled").fingerprint
    local = resolve(tmp_path / "torch", mode="sampled").fingerprint
    assert to_row(there)["row_sha256"] == to_row(local)["row_sha256"]
    assert there.bytes_read <= sent(hub) < len(data) // 2


def test_one_file_of_a_repository_can_be_named(hub: Hub, tmp_path: Path) -> None:
    models = pytest.importorskip("gguf_models", exc_type=ImportError)
    forget()
    made = models.FAMILIES["llama"]
    for quantization in ("Q8_0", "F16"):
        models.write_gguf(tmp_path / f"m-{quantization}.gguf", made, models.weights(made), quantization)
    data = {f"q/{path.name}" if "Q8" in path.name else path.name: path.read_bytes() for path in tmp_path.iterdir()}
    hub.publish("ranges/several", {**data, "m-other.gguf": data["m-F16.gguf"]})
    with pytest.raises(ModelError, match="several GGUF files"):
        resolve("ranges/several")
    with pytest.raises(ModelError) as caught:
        resolve("ranges/several/m-Q4_0.gguf")
    assert "m-F16.gguf" in (caught.value.next_step or "")
    for name, mode in (("m-F16.gguf", "exact"), ("q/m-Q8_0.gguf", "sampled"), ("q/m-Q8_0.gguf", "exact")):
        found = resolve(f"ranges/several/{name}", mode=mode)
        here = resolve(tmp_path / Path(name).name, mode=mode)
        assert to_row(found.fingerprint)["row_sha256"] == to_row(here.fingerprint)["row_sha256"]
        assert found.fingerprint.model_id == "ranges/several" and found.fingerprint.files[0].name == name
    hub.log.clear()
    assert resolve("ranges/several/m-F16.gguf", offline=True).fingerprint.mode == "exact" and not hub.log


def test_a_large_model_is_not_downloaded_unless_that_is_asked_for(
    hub: Hub, published: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = published("default", large())
    monkeypatch.setattr(source, "DOWNLOADED", 1 << 20)
    assert resolve(repo).fingerprint.mode == "sampled"
    assert resolve(repo, mode="exact").fingerprint.mode == "exact"
    assert resolve(repo).fingerprint.mode == "exact"  # it is here now
    monkeypatch.setattr(source, "DOWNLOADED", 1 << 30)
    assert resolve(published("small", large(2))).fingerprint.mode == "exact"


def test_the_second_stage_is_read_where_the_first_finds_no_link(published: Callable[..., str]) -> None:
    parent, stranger = large(1), large(3)
    rng = np.random.default_rng(7)
    moved = {n: v + 0.02 * v.std() * rng.standard_normal(v.shape, np.float32) for n, v in parent.tensors.items()}
    child = parent.with_tensors(moved)
    exact = [resolve(published(name, one), mode="exact").fingerprint for name, one in (("p", parent), ("s", stranger))]
    index = Index.build(exact)
    asked, result = query(index, resolve(published("c", child), mode="sampled", stage=1))
    assert [m.entry.model_id for m in result.matches] == ["ranges/p"]
    assert result.matches[0].pair.relation == "finetune"
    assert asked.fingerprint.layers_unread and asked.fingerprint.neurons is None
    asked, _ = query(index, resolve("ranges/c", mode="sampled", stage=1), also=("ranges/s",))
    assert asked.fingerprint.neurons is not None  # a copy in disguise of what is asked about is seen there only
    first = resolve(published("u", large(9)), mode="sampled", stage=1)
    asked, result = query(index, first)
    assert not result.matches and asked.fingerprint.neurons is not None
    assert asked.fingerprint.bytes_read > first.fingerprint.bytes_read
    at_once = resolve("ranges/u", mode="sampled").fingerprint
    in_two, in_one = to_row(asked.fingerprint), to_row(at_once)
    assert all(np.array_equal(in_two[name], in_one[name]) for name in in_one)  # what was read, absences, all panels
    assert {m.pair.evidence["triple_agreement"].value is not None for m in result.candidates} == {True}
    two = [resolve(f"ranges/{name}", mode="sampled", stage=1) for name in ("c", "u")]
    *read, pair = compare_in_stages(*two, index=index)
    assert pair.verdict == "unrelated" and all(side.fingerprint.neurons is not None for side in read)


def test_what_came_before_a_cut_is_not_fetched_again(hub: Hub, published: Callable[..., str]) -> None:
    repo = published("cut", large())
    whole = resolve(repo, mode="sampled")
    assert whole.model is not None
    needed = sum(f.transferred for f in whole.model.reads if isinstance(f, RangedFile))
    forget()
    hub.log.clear()
    hub.faults.append({"match": "_lfs", "cut": 20_000, "times": 1_000})  # each answer ends after 20 kB
    cut = resolve(repo, mode="sampled").fingerprint
    assert to_row(cut)["row_sha256"] == to_row(whole.fingerprint)["row_sha256"]
    assert sent(hub) == needed
    forget()
    hub.faults[:] = [{"match": "_lfs", "status": 500, "times": 1_000_000}]
    model = None
    with pytest.raises(NetworkError):
        model = resolve(repo, mode="sampled")
    assert model is None
    hub.faults.clear()
    hub.log.clear()
    assert to_row(resolve(repo, mode="sampled").fingerprint)["row_sha256"] == to_row(cut)["row_sha256"]
    again = sent(hub)
    resolve(repo, mode="sampled")
    assert sent(hub) == again  # all that is needed is here


def test_an_address_that_expired_is_asked_for_again(hub: Hub, published: Callable[..., str]) -> None:
    repo = published("expired", large())
    hub.faults.append({"match": "_lfs", "status": 403, "times": 1})
    resolve(repo, mode="sampled")
    asked = [path for method, path, *_ in hub.log if method == "HEAD" and path.endswith("model.safetensors")]
    assert len(asked) == 2


def test_a_server_that_sends_no_parts_is_told(hub: Hub, published: Callable[..., str]) -> None:
    repo = published("whole", large())
    hub.faults.append({"match": "_lfs", "whole": True, "times": 1_000})
    with pytest.raises(NetworkError) as caught:
        resolve(repo, mode="sampled")
    assert "--mode exact" in (caught.value.next_step or "")


def test_files_that_are_indexed_are_identical_and_nothing_is_read(hub: Hub, published: Callable[..., str]) -> None:
    index = Index.build([resolve(published("first", large(), shards=2), mode="exact").fingerprint])
    copy = published("copy", large(), shards=2)
    found = resolve(copy, index=index, mode="sampled")
    assert not [path for method, path, *_ in hub.log if method == "GET" and path.endswith(".safetensors")] and not sent(
        hub
    )
    assert (found.fingerprint.bytes_read, found.model) == (0, None) and found.fingerprint.bytes_total > 1 << 20
    result = index.query(found.fingerprint)
    assert [(m.entry.model_id, m.pair.relation) for m in result.matches] == [("ranges/first", "identical")]
    other = resolve(published("other", large(2), shards=2), index=index, mode="sampled")
    assert other.model is not None and index.query(other.fingerprint).matches == ()


def test_rows_that_claim_the_same_files_and_hold_other_weights_answer_for_none(
    hub: Hub, published: Callable[..., str]
) -> None:
    honest = resolve(published("honest", large()), mode="exact").fingerprint
    stranger = replace(resolve(published("evil", large(5)), mode="exact").fingerprint, files=honest.files)
    copy = published("popular", large())
    assert resolve(copy, index=Index.build([honest]), mode="sampled").model is None
    read = resolve(copy, index=Index.build([stranger, honest]), mode="sampled")
    assert read.model is not None and sent(hub)


def test_a_deep_comparison_by_ranges_says_what_a_local_one_says(published: Callable[..., str], tmp_path: Path) -> None:
    """Models of different depth: what is computed of the zeros before anything came must not end it."""
    shallow = zoo.llama(1, layers=3, hidden=384, intermediate=1536)
    there = [resolve(published(name, one), mode="sampled") for name, one in (("da", large()), ("db", shallow))]
    here = [resolve(tmp_path / name, mode="sampled") for name in ("da", "db")]
    pairs = [compare_in_stages(*sides, deep=True)[2] for sides in (there, here)]
    assert pairs[0].evidence["deep_agreement"] == pairs[1].evidence["deep_agreement"]


def test_the_command_says_how_much_was_read(hub: Hub, published: Callable[..., str], tmp_path: Path) -> None:
    repo = published("said", large())
    done = run("compare", repo, str(tmp_path / "said"), "--mode", "sampled")
    assert done.status == 0 and "identical" in done.out
    line = next(line for line in done.err.splitlines() if line.startswith(f"model  {repo}"))
    assert "sampled, read" in line and " of " in line


def test_exact_and_sampled_agree_where_order_and_basis_are_kept() -> None:
    """The verdict of a sampled child against an exact parent is that of an exact child."""
    from prints import fingerprint

    parent = large()
    rng = np.random.default_rng(3)

    def noisy(share: float) -> zoo.Checkpoint:
        return parent.with_tensors(
            {n: v + share * v.std() * rng.standard_normal(v.shape, np.float32) for n, v in parent.tensors.items()}
        )

    def verdicts(one: zoo.Checkpoint) -> set[tuple[str, str | None]]:
        sides: list[Fingerprint] = [fingerprint(one, mode=mode) for mode in ("exact", "sampled")]
        against = Resolved(fingerprint(parent), "parent")
        pairs = [compare_in_stages(Resolved(side, "child"), against)[2] for side in sides]
        return {(pair.verdict, pair.relation) for pair in pairs}

    for child in (parent, noisy(0.05), noisy(0.5), noisy(2.0), large(8)):
        assert len(verdicts(child)) == 1


# --- the parts ---

RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)).map(lambda r: (r[0], r[0] + r[1])), max_size=30)


@given(RANGES, RANGES)
def test_spans_are_the_union_of_their_ranges(added: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    spans = Spans(added)
    whole = {i for start, stop in added for i in range(start, stop)}
    assert {i for start, stop in spans for i in range(start, stop)} == whole
    assert spans.total == len(whole)
    ends = [stop for _, stop in spans]
    assert all(stop < start for stop, (start, _) in zip(ends, list(spans)[1:], strict=False))
    for start, stop in asked:
        assert {i for a, b in spans.missing(start, stop) for i in range(a, b)} == set(range(start, stop)) - whole


def test_near_ranges_are_asked_for_together_and_long_ones_in_pieces() -> None:
    assert requests([(0, 10), (10 + GAP, 20 + GAP), (40 + 3 * GAP, 50 + 3 * GAP)]) == [
        (0, 20 + GAP),
        (40 + 3 * GAP, 50 + 3 * GAP),
    ]
    pieces = requests([(5, 20_000_000)])
    assert pieces[0][0] == 5 and pieces[-1][1] == 20_000_000 and max(b - a for a, b in pieces) <= 1 << 23
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))


def test_a_tensor_that_nobody_planned_for_is_fetched_as_it_is_read(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).standard_normal((64, 32)).astype("<f4")
    data = stored.tobytes()
    asked: list[tuple[int, int]] = []

    def fetch(ranges: list[tuple[int, int]], keep: Callable[[int, bytes], None]) -> None:
        for start, stop in ranges:
            asked.append((start, stop))
            keep(start, data[start:stop])

    file = RangedFile(tmp_path / "file.part", len(data), fetch)  # type: ignore[arg-type]
    tensor = ByteTensor("w", "F32", (64, 32), file.extent)
    assert np.array_equal(tensor.rows([7, 40]), stored[[7, 40]]) and len(asked) == 2
    assert file.transferred == 2 * 128
    again = RangedFile(tmp_path / "file.part", len(data), fetch)  # type: ignore[arg-type]
    assert np.array_equal(ByteTensor("w", "F32", (64, 32), again.extent).rows([7]), stored[[7]])
    assert again.transferred == 0
    (tmp_path / "file.spans").write_text("[[0, 99999999]]")
    untold = RangedFile(tmp_path / "file.part", len(data), fetch)  # type: ignore[arg-type]
    assert np.array_equal(ByteTensor("w", "F32", (64, 32), untold.extent).flat(), stored.ravel())
    (tmp_path / "file.part").unlink()  # a note that outlives its file must not make weights of zeros
    anew = RangedFile(tmp_path / "file.part", len(data), fetch)  # type: ignore[arg-type]
    assert np.array_equal(ByteTensor("w", "F32", (64, 32), anew.extent).flat(), stored.ravel())
    prune(tmp_path, (), limit=0)
    assert not list(tmp_path.iterdir())
