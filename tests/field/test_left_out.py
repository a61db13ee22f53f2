"""What lies in a folder or a file and is not compared is named; nothing passes or is identical beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from torch_writer import checkpoint
from zoo import container

from provindex.api import Index, Resolved, compare_resolved, gate, query, resolve
from provindex.common.reasons import Code
from provindex.formats.folder import left_out, unnamed
from provindex.report.document import query_document
from provindex.roles import names
from provindex.verdict.pair import compare

CLEAN, STOLEN, KNOWN = (zoo.spoken(zoo.llama(seed), seed) for seed in (1, 2, 3))
STATE = dict(CLEAN.tensors)


def file_of(tensors: dict[str, np.ndarray], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    container.save(path, tensors, dict.fromkeys(tensors, "F32"), list(tensors))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The stolen model and one more, with the chance levels of the embedded index."""
    found = Index.load("embedded")
    for name, model in (("org/stolen", STOLEN), ("org/known", KNOWN)):
        fp = resolve(zoo.write(model, tmp_path_factory.mktemp("index") / name)).fingerprint
        found.add(replace(fp, model_id=name))
    return found


def codes(folder: Path) -> dict[Code, str]:
    return {reason.code: reason.subject for reason in resolve(folder).fingerprint.left_out}


def status(folder: Path, index: Index) -> int:
    """What `query --deny` says of a folder."""
    _, result = query(index, resolve(folder), also=["org/stolen"])
    return gate(result, ["org/stolen"], index).exit_status


def folder(tmp_path: Path) -> Path:
    return zoo.write(CLEAN, tmp_path / "clean")


def test_a_clean_folder_passes(tmp_path: Path, index: Index) -> None:
    assert codes(folder(tmp_path)) == {} and status(folder(tmp_path), index) == 0


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "main/model.safetensors", "onnx/model.onnx", "original/consolidated.00.pth",
     "model.fp16.gguf", "2_Dense/model.safetensors", "flax_model.msgpack", "optimizer.pt", "weights.dat",
     "adapter_model.safetensors"],
)  # fmt: skip
def test_files_beside_are_named(name: str, tmp_path: Path, index: Index) -> None:
    made = folder(tmp_path)
    path = made / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        file_of(dict(STOLEN.tensors), path)
    else:
        path.write_bytes(checkpoint(STOLEN.tensors) + bytes(1 << 20))
    if name == "optimizer.pt" or name == "weights.dat":
        assert path.stat().st_size > 1 << 20
    found = codes(made)
    assert list(found.values()) == [name] and set(found) <= {Code.FILE_NOT_READ, Code.FILE_DIFFERS}
    assert status(made, index) == 3
    pair = compare_resolved(resolve(made), Resolved(index["org/known"], "org/known"), index=index)
    assert pair.verdict == "inconclusive" and pair.reasons[0].code is Code.LEFT_OUT


WEIGHTS, PNG, WORDS = b"\x80\x3f\x00\x01" * 200, b"\x89PNG\r\n", b"plain words. " * 60


@pytest.mark.parametrize(
    ("name", "pieces", "megabytes", "told"),
    [
        ("logo.png", (PNG, WEIGHTS, WEIGHTS), 2, False),
        ("logo.png", (PNG, WEIGHTS, WEIGHTS), 20, True),  # a model behind what a picture begins with
        ("notes.md", (WORDS, WORDS, WORDS), 2, False),
        ("notes.md", (WORDS, WORDS, WORDS), 20, True),  # one that is written as text
        ("notes.md", (WORDS, WEIGHTS, WORDS), 2, True),
        ("notes.md", (WORDS, WORDS, WEIGHTS), 2, True),
        ("tokenizer.json", (WORDS, WORDS, WORDS), 20, False),
        ("tokenizer.json", (WORDS, WORDS, WORDS), 100, True),
    ],
)
def test_text_and_pictures_are_excused_up_to_what_a_small_model_takes(
    name: str, pieces: tuple[bytes, bytes, bytes], megabytes: int, *, told: bool
) -> None:
    sizes = {name: megabytes << 20, "config.json": 600}
    assert unnamed(sizes, lambda _: pieces) == ({name: None} if told else {})
    on_the_hub = left_out(sizes, [])
    assert bool(on_the_hub) == (megabytes > 8 and name != "tokenizer.json")


def test_the_same_weights_beside_are_no_loss(tmp_path: Path, index: Index) -> None:
    """In another format, in a folder, in half precision, without the head: nothing is in there that was not seen."""
    made = folder(tmp_path)
    (made / "pytorch_model.bin").write_bytes(checkpoint(STATE))
    (made / "sub").mkdir()
    (made / "sub" / "config.json").write_bytes((made / "config.json").read_bytes())
    rounded = {name: values.astype(np.float16).astype(np.float32) for name, values in STATE.items()}
    file_of(rounded, made / "sub" / "model.safetensors")
    fp = resolve(made).fingerprint
    assert fp.left_out == () and [r.code for r in fp.warnings] == [Code.FILES_SAME]
    assert status(made, index) == 0
    hidden = {**STATE, "model.layers.0.mlp.up_proj.weight": STOLEN.tensors["model.layers.0.mlp.up_proj.weight"]}
    (made / "pytorch_model.bin").write_bytes(checkpoint(hidden))
    assert codes(made) == {Code.FILE_DIFFERS: "pytorch_model.bin"} and status(made, index) == 3


def test_values_too_small_for_half_precision_are_no_copy(tmp_path: Path) -> None:
    """All round to zero as float16: the file beside holds a model, the one that is read holds none."""
    made = folder(tmp_path)
    tiny = {name: values * np.float32(1e-10) for name, values in STOLEN.tensors.items()}
    zeros = {name: np.zeros_like(values) for name, values in STATE.items()}
    file_of({**zeros, "model.embed_tokens.weight": STATE["model.embed_tokens.weight"]}, made / "model.safetensors")
    (made / "pytorch_model.bin").write_bytes(
        checkpoint({**tiny, "model.embed_tokens.weight": STATE["model.embed_tokens.weight"]})
    )
    assert codes(made) == {Code.FILE_DIFFERS: "pytorch_model.bin"}


@pytest.mark.parametrize(
    ("entries", "entry"),
    [
        ({"state_dict": STATE, "ema": dict(STOLEN.tensors)}, "ema"),
        ({"state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": STATE["model.norm.weight"]}}}}, "optimizer"),
        ({"model": {"module": STATE, "teacher": dict(STOLEN.tensors)}}, "model.teacher"),
        ({**STATE, "ema_model": {"shadow": dict(STOLEN.tensors)}}, "ema_model"),
    ],
)  # fmt: skip
def test_entries_of_a_checkpoint_are_named(entries: dict, entry: str, tmp_path: Path, index: Index) -> None:
    made = folder(tmp_path)
    (made / "model.safetensors").unlink()
    (made / "pytorch_model.bin").write_bytes(checkpoint(entries))
    _, result = query(index, resolve(made), also=["org/stolen"])
    said = query_document(result)["left_out"]
    assert [(left["what"], left["code"]) for left in said] == [(f"pytorch_model.bin: {entry}", "entry-not-read")]
    assert status(made, index) == 3 and result.status != "none"


def test_a_second_model_in_the_place_of_the_first(tmp_path: Path, index: Index) -> None:
    """Student and teacher under two wrappers: the names of the second map to those of the first."""
    both = {**STATE, **{f"module.{name}": values for name, values in STOLEN.tensors.items()}}
    made = zoo.write(CLEAN.with_tensors(both), tmp_path / "both")
    fp = resolve(made).fingerprint
    assert [r.code for r in fp.left_out] == [Code.SECOND_COPY] and status(made, index) == 3
    pair = compare(fp, index["org/known"], calibration=index.calibration)
    assert pair.verdict == "inconclusive" and any(r.code is Code.LEFT_OUT for r in pair.reasons)
    same = {**STATE, **{f"module.{name}": values for name, values in STATE.items()}}
    assert codes(zoo.write(CLEAN.with_tensors(same), tmp_path / "same")) == {}


def test_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    base = resolve(folder(tmp_path)).fingerprint
    changed = {}
    for name, values in STATE.items():
        module = name.removesuffix(".weight")
        if name.endswith("q_proj.weight"):
            changed[f"{module}.base_layer.weight"] = values
            changed[f"{module}.lora_A.default.weight"] = np.ones((2, values.shape[1]), np.float32)
            changed[f"{module}.lora_B.default.weight"] = np.ones((values.shape[0], 2), np.float32)
        else:
            changed[name] = values
    fp = resolve(zoo.write(CLEAN.with_tensors(changed), tmp_path / "lora")).fingerprint
    assert [r.code for r in fp.left_out] == [Code.ADAPTER_UNMERGED]
    pair = compare(fp, base)
    assert (pair.verdict, pair.relation) == ("linked", "adapter") and pair.reasons[0].code is Code.LEFT_OUT


def test_the_trained_copy_of_a_module_is_read(tmp_path: Path) -> None:
    """PEFT keeps the module that it trained beside the one of the base."""
    trained = STATE["model.norm.weight"] + np.float32(1)
    tensors = {name: values for name, values in STATE.items() if name != "model.norm.weight"}
    tensors["model.norm.original_module.weight"] = STATE["model.norm.weight"]
    tensors["model.norm.modules_to_save.default.weight"] = trained
    made = zoo.write(CLEAN.with_tensors(tensors), tmp_path / "peft")
    direct = zoo.write(CLEAN.with_tensors({**STATE, "model.norm.weight": trained}), tmp_path / "direct")
    fp = resolve(made).fingerprint
    assert [r.code for r in fp.left_out] == [Code.SECOND_COPY]
    pair = compare(fp, resolve(direct).fingerprint)
    assert pair.relation == "related" and [r.code for r in pair.reasons] == [Code.LEFT_OUT]
    placed = names.resolve({name: values.shape for name, values in tensors.items()}, CLEAN.config).placements
    assert placed["model.norm.modules_to_save.default.weight"].parts[0].role == "norm_final"


def test_one_part_is_not_the_whole(tmp_path: Path) -> None:
    whole = resolve(folder(tmp_path)).fingerprint
    half = {name: values for name, values in STATE.items() if ".layers.2." not in name}
    fp = resolve(zoo.write(CLEAN.with_tensors(half), tmp_path / "half")).fingerprint
    assert [r.code for r in fp.left_out] == [Code.LAYERS_MISSING]
    assert compare(fp, whole).relation == "related"
    empty = {name: values[:0] if ".layers.2." in name else values for name, values in STATE.items()}
    fp = resolve(zoo.write(CLEAN.with_tensors(empty), tmp_path / "zero3")).fingerprint
    assert {r.code for r in fp.left_out} == {Code.EMPTY_TENSORS, Code.LAYERS_MISSING}
    assert compare(fp, whole).relation == "related"


def test_a_listing_of_the_hub_is_kept(tmp_path: Path) -> None:
    from provindex.models import hub_listings

    assert hub_listings.kept("org/x", "0" * 40) == {}
    hub_listings.keep("org/x", "0" * 40, {"a.bin": 3})
    assert hub_listings.kept("org/x", "0" * 40) == {"a.bin": 3}
    assert json.dumps(dict(hub_listings.kept("org/x", "1" * 40))) == "{}"


@pytest.mark.parametrize("prefixes", [("student.", "teacher."), ("", "ema."), ("bert.", "roberta."), ("a.b.", "c.d.")])
def test_two_models_under_two_prefixes(prefixes: tuple[str, str], tmp_path: Path, index: Index) -> None:
    first, second = prefixes
    both = {first + name: values for name, values in STATE.items()}
    both |= {second + name: values for name, values in STOLEN.tensors.items()}
    made = zoo.write(CLEAN.with_tensors(both), tmp_path / "both")
    assert status(made, index) in (1, 3)


@pytest.mark.parametrize("names", [("lora_A.default", "lora_B.default"), ("lora_down", "lora_up")])
def test_adapters_under_the_names_that_libraries_write(names: tuple[str, str], tmp_path: Path) -> None:
    module, values = "model.layers.0.self_attn.q_proj", STATE["model.layers.0.self_attn.q_proj.weight"]
    down, up = np.ones((2, values.shape[1]), np.float32), np.ones((len(values), 2), np.float32)
    more = {f"{module}.{name}.weight": made for name, made in zip(names, (down, up), strict=True)}
    fp = resolve(zoo.write(CLEAN.with_tensors({**STATE, **more}), tmp_path / "lora")).fingerprint
    assert [r.code for r in fp.left_out] == [Code.ADAPTER_UNMERGED] and dict(fp.left_out[0].figures)["n"] == 2


@pytest.mark.parametrize("place", ["vqmodel", "multi_modal_projector", "score", "vision_tower.odd", "talker"])
def test_a_model_behind_a_name_that_says_what_it_is(place: str, tmp_path: Path, index: Index) -> None:
    """What a name claims to be decides nothing: a tenth of a model without roles clears nobody."""
    both = {**STATE, **{f"{place}.m{i}.w": values for i, values in enumerate(STOLEN.tensors.values())}}
    assert status(zoo.write(CLEAN.with_tensors(both), tmp_path / "both"), index) in (1, 3)


PIECES = dict(enumerate(values for values in STOLEN.tensors.values() if values.size > 1 << 12))


@pytest.mark.parametrize("name", ["inv_freq", "version", "position_ids", "masked_bias", "_extra_state"])
def test_a_buffer_is_one_by_its_values(name: str, tmp_path: Path, index: Index) -> None:
    hidden = {f"x.{i}.{name}": values for i, values in PIECES.items()}
    made = zoo.write(CLEAN.with_tensors({**STATE, **hidden}), tmp_path / "m")
    assert status(made, index) == 3
    clean = resolve(zoo.write(CLEAN, tmp_path / "clean")).fingerprint
    assert compare(resolve(made).fingerprint, clean).relation != "identical"
    honest = {
        "rotary.inv_freq": np.float32(10_000) ** (-np.arange(16, dtype="f4") / 16),
        "x.position_ids": np.arange(512.0),
    }
    fp = resolve(zoo.write(CLEAN.with_tensors({**STATE, **honest}), tmp_path / "honest")).fingerprint
    assert fp.content_sha256 == clean.content_sha256 and fp.left_out == ()


def test_vectors_and_codes_under_unknown_names_clear_nobody(tmp_path: Path, index: Index) -> None:
    flat = {f"shadow.{i}": values.reshape(-1) for i, values in PIECES.items()}
    assert status(zoo.write(CLEAN.with_tensors({**STATE, **flat}), tmp_path / "flat"), index) == 3
    words = {f"packed.{i}": np.rint(values * 1000) for i, values in PIECES.items()}
    assert status(zoo.write(CLEAN.with_tensors({**STATE, **words}), tmp_path / "words"), index) == 3


@pytest.mark.parametrize(
    "entries", [{"model": STATE, "ema": dict(STOLEN.tensors)}, {**STATE, "ema": dict(STOLEN.tensors)}]
)
def test_a_copy_with_another_model_inside_is_no_copy(entries: dict, tmp_path: Path, index: Index) -> None:
    made = folder(tmp_path)
    (made / "pytorch_model.bin").write_bytes(checkpoint(entries))
    assert codes(made) == {Code.FILE_DIFFERS: "pytorch_model.bin"} and status(made, index) == 3


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("weights.json", b"", True), (".hidden/m.safetensors", b"", True), ("w.zst", b"\x28\xb5\x2f\xfd", True),
        ("xaa", b"\x00\x01", True), ("log.txt", b"a line\n", False), ("fig.png", b"\x89PNG\r\n", False),
        ("data.csv", "ä,b\n".encode(), False), (".git/objects/x", b"\x00", True),
    ],
)  # fmt: skip
def test_large_files_of_no_known_kind(name: str, content: bytes, named: bool, tmp_path: Path) -> None:
    made = folder(tmp_path)
    (made / name).parent.mkdir(exist_ok=True, parents=True)
    if content:
        filler = np.random.default_rng(0).bytes(1 << 20) if named else content * (1 + (1 << 20) // len(content))
        (made / name).write_bytes(content + filler)
    else:
        file_of({**STOLEN.tensors, "more": np.zeros((600, 600), np.float32)}, made / name)
    assert list(codes(made).values()) == ([name] if named else [])


@pytest.mark.parametrize("change", ["bias", "gone", "norm", "matrix", "head"])
def test_identical_needs_every_weight_but_heads(change: str, tmp_path: Path) -> None:
    more = dict(STATE)
    if change == "bias":
        more["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    elif change == "gone":
        del more["model.layers.1.self_attn.v_proj.weight"]
    elif change == "norm":
        del more["model.norm.weight"]
    elif change == "matrix":
        more["my.own"] = np.random.default_rng(0).random((9, 9), np.float32)
    else:
        more["score.weight"] = np.random.default_rng(0).random((2, 64), np.float32)
    one, two = (
        resolve(zoo.write(CLEAN.with_tensors(t), tmp_path / f"{i}")).fingerprint for i, t in enumerate((STATE, more))
    )
    pair = compare(one, two)
    assert (
        pair.relation == ("identical" if change == "head" else "related") and one.content_sha256 != two.content_sha256
    )
    assert pair.reasons[0].code is (Code.DIFFERENCE_ELSEWHERE if change == "head" else Code.OTHER_WEIGHTS_DIFFER)


def test_pieces_of_a_file_are_named(tmp_path: Path, index: Index) -> None:
    """`split -b 500k` leaves names that tell nothing, and pieces of which each is small."""
    made = folder(tmp_path)
    file_of({**STOLEN.tensors, "more": np.ones((600, 600), np.float32)}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for number, start in enumerate(range(0, len(content), 500_000)):
        (made / f"xa{chr(97 + number)}").write_bytes(content[start : start + 500_000])
    assert "xab" in {reason.subject for reason in resolve(made).fingerprint.left_out} and status(made, index) == 3
