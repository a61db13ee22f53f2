"""Known models under names that no table lists: prefixes, wrappers, and the layouts of other libraries."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from zoo.shrunk import shrunk

from build_index.zoo.freedoms.draws import Refusal
from build_index.zoo.renames import PREFIXES, RENAMES
from build_index.zoo.snapshot import Snapshot
from provindex.common.reasons import Code
from provindex.formats.tensors import tensor_from_array
from provindex.roles import canonical
from provindex.roles.architectures import WRAPPERS
from provindex.roles.canonical import PartKey
from provindex.roles.names import Layout, resolve

DATA = Path(__file__).parent / "data" / "architectures"
NAMES = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))
LAYOUTS = ("litgpt", "litgpt_older", "megatron", "transformer_lens", "torchtune", "flax")
TOWERS = {"clip_vision_model", "vit"}  # no text tower: what is below an unknown prefix is not looked at


def parts_of(snapshot: Snapshot) -> dict[PartKey, NDArray[np.float32]]:
    """Every part as it is read from the stored tensors, two rows at a time."""
    layout = resolve({name: t.shape for name, t in snapshot.tensors.items()}, snapshot.config)
    found = {}
    for place in layout.placements.values():
        tensor = tensor_from_array(place.name, snapshot.tensors[place.name])
        for part in place.parts:
            rows, _ = canonical.part_shape(tensor.shape, part)
            pieces = [canonical.read_rows(tensor, part, at, at + 2) for at in range(0, rows, 2)]
            found[canonical.key_of(part)] = np.concatenate(pieces)
    return found


def named(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    with gzip.open(DATA / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        record = json.load(file)
    return {n: tuple(shape) for n, shape in record["tensors"].items()}, record["config"]


@pytest.mark.parametrize("rename", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "starcoder2"])
def test_other_layouts_hold_the_same_parts(family: str, rename: str) -> None:
    plain = shrunk(family)
    plain = replace(plain, tensors={n: t for n, t in plain.tensors.items() if "cross" not in n})
    renamed = RENAMES[rename](plain, 1)
    if isinstance(renamed, Refusal):
        assert (family, rename) in {("gpt2", "torchtune"), ("gpt2", "flax")}  # they have no positions
        return
    assert not {n for n in renamed.tensors.keys() & plain.tensors.keys() if ".0." in n}
    ours, theirs = parts_of(plain), parts_of(renamed)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        assert np.array_equal(theirs[key].reshape(values.shape), values), key


def same_roles(plain: Layout, renamed: Layout, before: str) -> bool:
    return all(
        [(canonical.key_of(p), p.transposed) for p in place.parts]
        == [(canonical.key_of(p), p.transposed) for p in renamed.placements[before + name].parts]
        for name, place in plain.placements.items()
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - TOWERS))
def test_an_unknown_prefix_changes_no_role(name: str) -> None:
    shapes, config = named(name)
    plain = resolve(shapes, config)
    for prefix in ("student.", "net.llama_model."):
        layout = resolve({prefix + n: shape for n, shape in shapes.items()}, config)
        assert layout.main == plain.main and layout.archs[plain.main] == plain.archs[plain.main]
        towers = {"vision", "audio", "projector"} & {p.stack for p in plain.placements.values()}
        assert towers or same_roles(plain, layout, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_note_says_which_prefix_was_left_out(prefix: str) -> None:
    shapes, config = named("llama")
    shapes = {prefix + n.removeprefix("model."): shape for n, shape in shapes.items()}
    layout = resolve(shapes, config)
    assert layout.unknown == ()
    if prefix.removesuffix(".") in WRAPPERS:  # the tables list it
        assert layout.notes == ()
    else:
        assert [n.code for n in layout.notes] == [Code.PREFIX_LEFT_OUT]
        assert dict(layout.notes[0].figures)["prefix"] == prefix.removesuffix(".")


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"])
def test_wrappers_in_the_middle_are_left_out(wrapper: str) -> None:
    shapes, config = named("llama")
    plain = resolve(shapes, config)
    inside = {n.replace(".self_attn.", f".{wrapper}.self_attn.{wrapper}."): n for n in shapes}
    layout = resolve({n: shapes[old] for n, old in inside.items()}, config)
    assert all(layout.placements[n].canonical == plain.placements[old].canonical for n, old in inside.items())
    assert same_roles(plain, replace(layout, placements={inside[n]: p for n, p in layout.placements.items()}), "")


@pytest.mark.parametrize("tower", ["vision", "vpm", "visual_encoder", "image_branch.trunk", "left"])
def test_a_tower_under_an_unknown_prefix_is_not_the_text_tower(tower: str) -> None:
    shapes, config = named("llama")
    text = {f"llm.{n}": shape for n, shape in shapes.items()}
    other = {f"{tower}.{n}": shape for n, shape in shapes.items() if ".layers." in n or n == "model.norm.weight"}
    layout = resolve(text | other, config)
    assert set(layout.unknown) == set(other)
    assert all(layout.placements[n].parts for n in text)
    alone = resolve(other, {})
    assert tower == "left" or not any(p.parts for p in alone.placements.values())


def test_names_alone_make_no_scheme_where_shapes_do_not_fit() -> None:
    shapes, config = named("llama")
    odd = {f"llm.{n}": (shape[0] + 8 * i, *shape[1:]) for i, (n, shape) in enumerate(shapes.items())}
    layout = resolve(odd, config)
    assert set(layout.unknown) == set(odd) and layout.archs == {}


def test_whisper_as_openai_published_it() -> None:
    shapes = {
        "encoder.conv1.weight": (384, 80, 3), "encoder.positional_embedding": (1500, 384),
        "encoder.ln_post.weight": (384,), "decoder.token_embedding.weight": (51864, 384),
        "decoder.positional_embedding": (448, 384), "decoder.ln.weight": (384,),
    }  # fmt: skip
    for stack, attentions in (("encoder", ("attn",)), ("decoder", ("attn", "cross_attn"))):
        at = f"{stack}.blocks.0."
        shapes |= {f"{at}{a}.{n}.weight": (384, 384) for a in attentions for n in ("query", "key", "value", "out")}
        shapes |= {f"{at}{a}_ln.weight": (384,) for a in (*attentions, "mlp")}
        shapes |= {f"{at}mlp.0.weight": (1536, 384), f"{at}mlp.2.weight": (384, 1536)}
    for before in ("", "model_state_dict."):
        layout = resolve({before + n: shape for n, shape in shapes.items()}, {})
        assert layout.unknown == () and layout.main == "decoder" and set(layout.archs) == {"decoder", "audio"}
        assert layout.placements[before + "decoder.blocks.0.cross_attn.key.weight"].parts[0].cross
        assert layout.placements[before + "encoder.blocks.0.mlp.2.weight"].parts[0].role == "down"
        assert not layout.placements[before + "encoder.positional_embedding"].weight


def test_many_and_hostile_names_are_read_quickly() -> None:
    shapes = {f"llm.model.layers.{i // 100}.self_attn.x{i}.q_proj.weight": (64, 64) for i in range(10_000)}
    llama, config = named("llama")
    deep = {
        f"llm.model.layers.{i}.{n.split('.', 3)[3]}": s for i in range(1200) for n, s in llama.items() if ".0." in n
    }
    long = {"a." * 50_000 + f"{i}" for i in range(10)} | {"9" * 100_000, "." * 100_000, "/" * 100_000, "", "."}
    start = time.perf_counter()
    assert len(resolve(deep, config).placements) == len(deep) > 10_000
    assert set(resolve(shapes, config).unknown) == set(shapes)
    assert len(resolve(dict.fromkeys(long, (8, 8)), {}).unknown) == len(long)
    assert time.perf_counter() - start < 5
