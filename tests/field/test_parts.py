"""Parts of a model are never taken for the whole: all are read, or what is missing is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from zoo import container

from provindex.api import resolve
from provindex.common.errors import ModelError, UnreadFormatError
from provindex.common.reasons import Code

MODEL = zoo.llama(1)
NAMES = list(MODEL.tensors)
HALVES = [NAMES[0::2], NAMES[1::2]]


def shards(folder: Path, names: list[str]) -> Path:
    zoo.write(MODEL, folder)
    (folder / "model.safetensors").unlink()
    for name, half in zip(names, HALVES, strict=False):
        tensors = {n: MODEL.tensors[n] for n in half}
        container.save(folder / name, tensors, dict.fromkeys(tensors, "F32"), list(tensors))
    return folder


@pytest.mark.parametrize(
    "pattern", ["model-{:05}-of-00002", "model-{}-of-2", "model_{}_of_2", "model-{:06}-of-000002", "w.{}-of-2"]
)
def test_numbered_shards(pattern: str, tmp_path: Path) -> None:
    names = [pattern.format(i) + ".safetensors" for i in (1, 2)]
    whole = resolve(shards(tmp_path / "both", names)).fingerprint
    assert whole.content_sha256 == resolve(zoo.write(MODEL, tmp_path / "one")).fingerprint.content_sha256
    with pytest.raises(ModelError, match="has 1 of the 2 shards"):
        resolve(shards(tmp_path / "half", names[:1]))
    named = resolve(tmp_path / "both" / names[0]).fingerprint
    assert Code.ONE_SHARD in {reason.code for reason in named.left_out}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors.part1of2", "model.gguf-split-a", "model.safetensors.00", "pytorch_model.bin.001",
     "mp_rank_00.pt", "model_world_size_8_rank_0.pt"],
)  # fmt: skip
def test_pieces_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    made = shards(tmp_path / "m", ["x.safetensors"])
    (made / "x.safetensors").rename(made / name)
    with pytest.raises(UnreadFormatError, match=r"piece|part") as raised:
        resolve(made)
    assert "Join" in raised.value.next_step
