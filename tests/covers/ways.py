"""Ways to carry a stolen model past a gate: copies and layouts, which must be seen (exit status 1), and covers, which
may end in 1, 2 or 3, never in 0.

Each writes a folder from the stolen model and a random one of the same shape, which is what a loader would read first.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from numpy.typing import NDArray
from safetensors.numpy import save, save_file
from torch_writer import checkpoint

from build_index.zoo import renames
from build_index.zoo.attacks import ATTACKS
from build_index.zoo.disguises import disguise, withhold_config, withhold_tokenizer
from build_index.zoo.snapshot import Snapshot
from build_index.zoo.vocabulary import renumber_vocabulary

Array = NDArray[Any]
Tensors = Mapping[str, Array]
SEED = 7


class NotHereError(Exception):
    """A cover that does not fit the design of the stolen model."""


@dataclass(frozen=True)
class Case:
    """stolen, clean: float32 models of one shape. folder: where the cover is written."""

    stolen: Snapshot
    clean: Snapshot
    folder: Path

    def main(self, tensors: Tensors | None = None, config: Mapping[str, Any] | None = None) -> Path:
        """The folder with one safetensors file, the clean model if none is given."""
        snapshot = self.clean if tensors is None else replace(self.clean, tensors=dict(tensors))
        return write(snapshot if config is None else replace(snapshot, config=dict(config)), self.folder)

    def beside(self, name: str, raw: bytes) -> None:
        """The clean model, and a file beside it."""
        self.main()
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)

    @property
    def raw(self) -> bytes:
        """The stolen model as a safetensors file."""
        return save({n: np.ascontiguousarray(t) for n, t in self.stolen.tensors.items()})


def random_like(stolen: Snapshot, seed: int = SEED) -> Snapshot:
    """A model of the same names and shapes with weights of its own, whose embedding knows its tokens' strings: beside
    nothing else a gate lets it pass.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for name, tensor in stolen.tensors.items():
        spread, mean = float(tensor.std()), float(tensor.mean())
        made[name] = (rng.standard_normal(tensor.shape, dtype=np.float32) * spread + mean).astype(np.float32)
    return replace(stolen, name="clean", tensors=zoo.with_strings(made, stolen.tokenizer, seed))


def write(snapshot: Snapshot, folder: Path) -> Path:
    """As `Snapshot.write`, tensors of any dtype kept as they are."""
    replace(snapshot, tensors={}).write(folder)
    save_file({n: np.ascontiguousarray(t) for n, t in snapshot.tensors.items()}, folder / "model.safetensors")
    return folder


def torch_file(entries: Mapping[str, Any]) -> bytes:
    return checkpoint(entries)


# --- copies: exit status 1 ----------------------------------------------------------------------------------------


def of_snapshot(change: Callable[[Snapshot, int], Any]) -> Callable[[Case], None]:
    """A change of the whole model, written as a folder."""

    def made(case: Case) -> None:
        changed = change(case.stolen, SEED)
        if not isinstance(changed, Snapshot):
            raise NotHereError(str(changed))
        write(changed, case.folder)

    return made


def as_dtype(dtype: Any) -> Callable[[Snapshot, int], Snapshot]:
    return lambda s, seed: replace(s, tensors={n: t.astype(dtype) for n, t in s.tensors.items()})


def in_shards(indexed: bool) -> Callable[[Case], None]:
    def made(case: Case) -> None:
        write(replace(case.stolen, tensors={"x": np.zeros(1, np.float32)}), case.folder)
        (case.folder / "model.safetensors").unlink()
        names = list(case.stolen.tensors)
        where = {}
        for part in range(3):
            file = f"model-{part + 1:05d}-of-00003.safetensors"
            chosen = names[part::3]
            save_file({n: np.ascontiguousarray(case.stolen.tensors[n]) for n in chosen}, case.folder / file)
            where.update(dict.fromkeys(chosen, file))
        if indexed:
            (case.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    return made


def only_file(name: str, raw: Callable[[Case], bytes]) -> Callable[[Case], None]:
    """The stolen model in one file of another format."""

    def made(case: Case) -> None:
        write(case.stolen, case.folder)
        (case.folder / "model.safetensors").unlink()
        (case.folder / name).write_bytes(raw(case))

    return made


def copied_with(change: Callable[[str, Array], tuple[str, Array]]) -> Callable[[Case], None]:
    def made(case: Case) -> None:
        write(replace(case.stolen, tensors=dict(change(n, t) for n, t in case.stolen.tensors.items())), case.folder)

    return made


def twice(*names: str) -> Callable[[Snapshot, int], Any]:
    """Disguises one after the other."""

    def made(snapshot: Snapshot, seed: int) -> Any:
        for name in names:
            snapshot = disguise(name, snapshot, seed)  # type: ignore[assignment]
        return snapshot

    return made


COPIES: Mapping[str, Callable[[Case], None]] = {
    "plain": of_snapshot(lambda s, seed: s),
    "half precision": of_snapshot(as_dtype(np.float16)),
    "double precision": of_snapshot(as_dtype(np.float64)),
    "three shards": in_shards(True),
    "three shards without an index": in_shards(False),
    "torch": only_file("pytorch_model.bin", lambda c: torch_file(c.stolen.tensors)),
    "torch, under state_dict": only_file("pytorch_model.bin", lambda c: torch_file({"state_dict": c.stolen.tensors})),
    "DataParallel": of_snapshot(renames.prefixed("module.")),
    "compiled": of_snapshot(renames.prefixed("_orig_mod.")),
    "any prefix": of_snapshot(renames.prefixed("a.b.c.")),
    "fsdp": of_snapshot(renames.wrapped),
    "scrambled names": of_snapshot(renames.scrambled),
    "random names": of_snapshot(renames.random_names),
    "litgpt": of_snapshot(renames.litgpt),
    "megatron": of_snapshot(renames.megatron),
    "torchtune": of_snapshot(renames.torchtune),
    "flax": of_snapshot(renames.flax),
    "transformer lens": of_snapshot(renames.transformer_lens),
    "renumbered vocabulary": of_snapshot(renumber_vocabulary),
    "config withheld": of_snapshot(withhold_config),
    "tokenizer withheld": of_snapshot(withhold_tokenizer),
    **{f"disguise: {name}": of_snapshot(attack) for name, attack in ATTACKS.items()},
}


# --- covers: 1, 2 or 3 --------------------------------------------------------------------------------------------


def file_beside(name: str, raw: Callable[[Case], bytes] = lambda c: c.raw) -> Callable[[Case], None]:
    return lambda case: case.beside(name, raw(case))


def zipped(case: Case) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("weights", case.raw)
    return made.getvalue()


def npz(case: Case) -> bytes:
    made = io.BytesIO()
    np.savez(made, *case.stolen.tensors.values())
    return made.getvalue()


def chunks(case: Case) -> None:
    case.main()
    raw, size = case.raw, 1 << 20
    for number, start in enumerate(range(0, len(raw), max(size, len(raw) // 8))):
        (case.folder / f"blob.{number:03d}").write_bytes(raw[start : start + max(size, len(raw) // 8)])


def small_pieces(name: str, size: int) -> Callable[[Case], None]:
    """The stolen model in files each of which is too small to be one."""

    def made(case: Case) -> None:
        case.main()
        raw = case.raw
        for number, start in enumerate(range(0, len(raw), size)):
            path = case.folder / name.format(number)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(raw[start : start + size])

    return made


def unlisted_shard(case: Case) -> None:
    """An index that lists the shards of the clean model, and a shard that it does not list."""
    case.main()
    (case.folder / "model.safetensors").rename(case.folder / "model-00001-of-00001.safetensors")
    where = dict.fromkeys(case.clean.tensors, "model-00001-of-00001.safetensors")
    (case.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (case.folder / "model-00002-of-00002.safetensors").write_bytes(case.raw)


def linked_file(case: Case) -> None:
    """A link to the stolen file beside the clean one."""
    case.main()
    elsewhere = case.folder.parent / f"{case.folder.name}-elsewhere.safetensors"
    elsewhere.write_bytes(case.raw)
    (case.folder / "pytorch_model.safetensors").symlink_to(elsewhere)


def tail(case: Case) -> None:
    """The stolen model behind the last tensor of the clean one."""
    case.main()
    with (case.folder / "model.safetensors").open("ab") as file:
        file.write(case.raw)


def gap(case: Case) -> None:
    """The stolen model between two tensors of the clean one, where no tensor is."""
    case.main()
    path = case.folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data, stolen = whole[8 + length :], case.raw
    ends = sorted(item["data_offsets"][1] for name, item in header.items() if name != "__metadata__")
    middle = ends[len(ends) // 2]
    for name, item in header.items():
        if name != "__metadata__" and item["data_offsets"][0] >= middle:
            item["data_offsets"] = [end + len(stolen) for end in item["data_offsets"]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[:middle] + stolen + data[middle:])


def metadata(case: Case) -> None:
    """The stolen model as text in the header of the clean one."""
    case.main()
    tensors = {n: np.ascontiguousarray(t) for n, t in case.clean.tensors.items()}
    text = {"format": "pt", "notes": base64.b64encode(case.raw[:20_000_000]).decode()}
    save_file(tensors, case.folder / "model.safetensors", metadata=text)


def entries(make: Callable[[Case], Mapping[str, Any]]) -> Callable[[Case], None]:
    """A torch checkpoint with several entries."""

    def made(case: Case) -> None:
        case.main()
        (case.folder / "model.safetensors").unlink()
        (case.folder / "pytorch_model.bin").write_bytes(torch_file(make(case)))

    return made


def under(prefix: str, of_clean: str = "") -> Callable[[Case], None]:
    """Both in one file: the stolen model under a prefix."""

    def made(case: Case) -> None:
        clean = {of_clean + n: t for n, t in case.clean.tensors.items()}
        case.main({**clean, **{prefix + n: t for n, t in case.stolen.tensors.items()}})

    return made


def named(name: Callable[[int, str], str], change: Callable[[Array], Array] = lambda t: t) -> Callable[[Case], None]:
    """Beside the clean model, every stolen tensor under a name that says something else, or changed in its shape."""

    def made(case: Case) -> None:
        extra = {name(i, n): change(t) for i, (n, t) in enumerate(case.stolen.tensors.items())}
        case.main({**case.clean.tensors, **extra})

    return made


def one_blob(dtype: Any) -> Callable[[Case], None]:
    def made(case: Case) -> None:
        flat = np.concatenate([t.reshape(-1) for t in case.stolen.tensors.values()])
        case.main({**case.clean.tensors, "extra.weight": flat.view(dtype)})

    return made


def pieces(case: Case) -> None:
    """Thousands of small vectors."""
    flat = np.concatenate([t.reshape(-1) for t in case.stolen.tensors.values()])
    size = max(1024, flat.size // 5_000)
    parts = {f"b.{i:06d}.bias": flat[at : at + size] for i, at in enumerate(range(0, flat.size, size))}
    case.main({**case.clean.tensors, **parts})


def longer_embedding(case: Case) -> None:
    """The stolen matrices as further rows of the clean model's embedding."""
    name, table = next((n, t) for n, t in case.clean.tensors.items() if "embed" in n and t.ndim == 2)
    width = table.shape[1]
    rows = [t for n, t in case.stolen.tensors.items() if t.ndim == 2 and t.shape[1] == width]
    rows += [t.T for t in case.stolen.tensors.values() if t.ndim == 2 and t.shape[1] != width and t.shape[0] == width]
    case.main({**case.clean.tensors, name: np.concatenate([table, *rows])})


def longer_mlp(case: Case) -> None:
    """The stolen neurons as further neurons of the clean model."""
    made, grown = dict(case.clean.tensors), 0
    for name, table in case.stolen.tensors.items():
        if table.ndim != 2 or "layer" not in name or table.shape[0] == table.shape[1]:
            continue
        axis = 0 if table.shape[0] > table.shape[1] else 1
        if ("attn" in name or "attention" in name) and "intermediate" not in name and "output.dense" not in name:
            continue
        made[name] = np.concatenate([case.clean.tensors[name], table], axis=axis)
        bias = name.replace("weight", "bias")
        if axis == 0 and bias in made:
            made[bias] = np.concatenate([made[bias], case.stolen.tensors[bias]])
        grown = made[name].shape[axis]
    config = {k: (grown if k == "intermediate_size" else v) for k, v in case.clean.config.items()}
    case.main(made, config)


def more_layers(case: Case) -> None:
    """The stolen layers behind the clean ones, and a config that counts the clean ones only."""
    made = dict(case.clean.tensors)
    numbers = [int(s) for n in made for s in n.split(".") if s.isdecimal()]
    depth = max(numbers) + 1
    for name, table in case.stolen.tensors.items():
        parts = name.split(".")
        at = next((i for i, s in enumerate(parts) if s.isdecimal()), None)
        if at is not None:
            parts[at] = str(int(parts[at]) + depth)
            made[".".join(parts)] = table
    case.main(made)


def fewer_layers(case: Case) -> None:
    """A random first layer before the stolen ones, and a config that counts that one layer."""
    made = {}
    for name, table in case.stolen.tensors.items():
        first = ".0." in name
        made[name] = case.clean.tensors[name] if first else table
    layers = {"num_hidden_layers": 1, "n_layer": 1}
    case.main(made, {k: layers.get(k, v) for k, v in case.stolen.config.items()})


def adapter(case: Case) -> None:
    """What has to be added to the clean matrices to get the stolen ones, as an adapter of full rank."""
    extra = {}
    for name, table in case.stolen.tensors.items():
        if table.ndim == 2 and name.endswith(".weight") and "embed" not in name:
            stem = name.removesuffix(".weight")
            extra[f"{stem}.lora_A.weight"] = np.eye(table.shape[1], dtype=np.float32)
            extra[f"{stem}.lora_B.weight"] = table - case.clean.tensors[name]
    case.main({**case.clean.tensors, **extra})


def expert(case: Case) -> None:
    """The stolen MLPs as a second expert."""
    extra = {}
    for name, table in case.stolen.tensors.items():
        if ".mlp." in name or ".intermediate." in name:
            extra[name.replace(".mlp.", ".mlp.experts.1.").replace(".intermediate.", ".experts.1.")] = table
    case.main({**case.clean.tensors, **extra})


def gate_in_up(case: Case) -> None:
    """Gated MLPs written as ungated ones of twice as many neurons, so that the two kinds cannot be compared."""
    made: dict[str, Array] = {}
    if not any("gate_proj" in n for n in case.stolen.tensors):
        raise NotHereError("no gated MLPs")
    for name, table in case.stolen.tensors.items():
        if "gate_proj" in name:
            continue
        if "up_proj" in name:
            table = np.concatenate([case.stolen.tensors[name.replace("up_proj", "gate_proj")], table])
        if "down_proj" in name:
            table = np.concatenate([table, np.zeros_like(table)], axis=1)
        made[name] = table
    case.main(made, {**case.stolen.config, "intermediate_size": 2 * int(case.stolen.config["intermediate_size"])})


def gate_among_heads(case: Case) -> None:
    """All disguises; then MLPs without a gate, whose rows are further heads that nothing reads."""
    snapshot = ATTACKS["all"](case.stolen, SEED)
    if not isinstance(snapshot, Snapshot) or not any("gate_proj" in n for n in snapshot.tensors):
        raise NotHereError("no gated MLPs")
    made = {n: t for n, t in snapshot.tensors.items() if "gate_proj" not in n}
    heads = int(snapshot.config["num_attention_heads"])
    size, more = 0, 0
    for name, gate in ((n, t) for n, t in snapshot.tensors.items() if n.endswith("mlp.gate_proj.weight")):
        q, o = (name.replace("mlp.gate_proj", f"self_attn.{role}_proj") for role in "qo")
        size, more = made[q].shape[0] // heads, len(gate)
        made[q] = np.concatenate([made[q], gate])
        made[o] = np.concatenate([made[o], np.zeros((made[o].shape[0], more), np.float32)], axis=1)
        if (bias := q.replace("weight", "bias")) in made:
            made[bias] = np.concatenate([made[bias], np.zeros(more, np.float32)])
    config = {**snapshot.config, "num_attention_heads": heads + more // size, "head_dim": size}
    write(replace(snapshot, tensors=made, config=config), case.folder)


def imitated_gate(case: Case) -> None:
    """Ungated MLPs written as gated ones whose other factor is held at one by a bias."""
    made = dict(case.stolen.tensors)
    found = [n for n in made if n.endswith(".intermediate.dense.weight")]
    if not found:
        raise NotHereError("no MLPs of two matrices under these names")
    for name in found:
        stem = name.removesuffix("intermediate.dense.weight")
        made[stem + "mlp.gate_proj.weight"] = made[name]
        made[stem + "mlp.gate_proj.bias"] = made.pop(stem + "intermediate.dense.bias")
        made[stem + "mlp.up_proj.weight"] = np.zeros_like(made[name])
        made[stem + "mlp.up_proj.bias"] = np.ones(made.pop(name).shape[0], np.float32)
        made[stem + "mlp.down_proj.weight"] = made.pop(stem + "output.dense.weight")
        made[stem + "mlp.down_proj.bias"] = made.pop(stem + "output.dense.bias")
    case.main(made)


def laundered(*names: str) -> Callable[[Case], None]:
    return of_snapshot(twice(*names))


def laundered_under(prefix: str) -> Callable[[Case], None]:
    """The stolen model in disguise, as a tower of the clean one."""

    def made(case: Case) -> None:
        changed = disguise("all", case.stolen, SEED)
        if not isinstance(changed, Snapshot):
            raise NotHereError(str(changed))
        case.main({**case.clean.tensors, **{prefix + n: t for n, t in changed.tensors.items()}})

    return made


def without(*steps: Callable[[Snapshot, int], Any]) -> Callable[[Case], None]:
    """All disguises, then without tokenizer or config."""

    def made(case: Case) -> None:
        snapshot = ATTACKS["all"](case.stolen, SEED)
        for step in steps:
            if not isinstance(snapshot, Snapshot):
                raise NotHereError(str(snapshot))
            snapshot = step(snapshot, SEED)
        if not isinstance(snapshot, Snapshot):
            raise NotHereError(str(snapshot))
        write(snapshot, case.folder)

    return made


def wrong_tokenizer(case: Case) -> None:
    """Ids renumbered, and the tokenizer of before: no token says what it embeds."""
    changed = renumber_vocabulary(case.stolen, SEED)
    write(replace(changed, tokenizer=case.stolen.tokenizer), case.folder)


def lying_tokenizer(attack: Callable[[Snapshot, int], Any], case: Case) -> None:
    """An attack, which renumbers the ids, under the tokenizer of before."""
    made = attack(case.stolen, SEED)
    if not isinstance(made, Snapshot):
        raise NotHereError(str(made))
    write(replace(made, tokenizer=case.stolen.tokenizer), case.folder)


def lying_config(case: Case) -> None:
    """The config of another design."""
    other = {"model_type": "whisper", "d_model": 64, "encoder_layers": 2, "decoder_layers": 2}
    write(replace(case.stolen, config=other), case.folder)


def _xor(raw: bytes) -> bytes:
    return (np.frombuffer(raw, np.uint8) ^ 0x5A).tobytes()


FILE_NAMES = (
    "model.fp16.safetensors", "pytorch_model.safetensors", "main/model.safetensors", ".cache/w.safetensors",
    ".git/objects/pack/a.pack", "weights.dat", "model.safetensors.bak", "README", "tokenizer.model", "vocab.txt",
    "training_args", "flax_model.msgpack", "tf_model.h5", "onnx/decoder/model.onnx", "a/b/c/d/e/f.bin",
    "consolidated.safetensors", "adapter_model.safetensors", "draft/model.safetensors", "ema.safetensors",
    "._model.safetensors",
)  # fmt: skip
PREFIXES = (
    "vision_tower.", "vision_model.", "visual.", "model.vision_tower.vision_model.", "audio_tower.", "audio_encoder.",
    "draft_model.", "teacher.", "critic.", "ema.", "x.", "0.", "language_model2.", "encoder.", "decoder.", "projector.",
    "multi_modal_projector.", "model.model.", "old.model.", "score.", "value_head.",
)  # fmt: skip

COVERS: Mapping[str, Callable[[Case], None]] = {
    **{f"file: {name}": file_beside(name) for name in FILE_NAMES},
    "file: weights.gz": file_beside("weights.gz", lambda c: gzip.compress(c.raw, 1)),
    "file: weights.zip": file_beside("weights.zip", zipped),
    "file: weights.npz": file_beside("weights.npz", npz),
    "file: enciphered.bin": file_beside("enciphered.bin", lambda c: _xor(c.raw)),
    "file: pytorch_model.bin": file_beside("pytorch_model.bin", lambda c: torch_file(c.stolen.tensors)),
    "file: consolidated.00.pth": file_beside("consolidated.00.pth", lambda c: torch_file(c.stolen.tensors)),
    "file: eight chunks": chunks,
    "file: small pieces": small_pieces("pieces/{}", 60_000),
    "file: small pieces of a training": small_pieces("rng_state_{}.pth", 1_000_000),
    "file: a shard that no index lists": unlisted_shard,
    "file: a link": linked_file,
    "bytes: behind the last tensor": tail,
    "bytes: between two tensors": gap,
    "bytes: the header's metadata": metadata,
    "entry: ema": entries(lambda c: {"state_dict": c.clean.tensors, "ema": c.stolen.tensors}),
    "entry: optimizer": entries(lambda c: {"model": c.clean.tensors, "optimizer": {"state": dict(c.stolen.tensors)}}),
    "entry: deep": entries(lambda c: {"state_dict": c.clean.tensors, "a": {"b": {"c": c.stolen.tensors}}}),
    "entry: two models": entries(lambda c: {"generator": c.clean.tensors, "discriminator": c.stolen.tensors}),
    "entry: teacher first": entries(lambda c: {"teacher": c.stolen.tensors, "student": c.clean.tensors}),
    **{f"prefix: {prefix}": under(prefix) for prefix in PREFIXES},
    "prefix: two wrappers": under("b.module.", "a.module."),
    "prefix: student and teacher": under("teacher_backbone.", "student_backbone."),
    "tower in disguise: vision": laundered_under("vision_tower."),
    "tower in disguise: audio": laundered_under("audio_tower."),
    "names: biases": named(lambda i, n: f"extra.{i}.bias"),
    "names: rotary tables": named(lambda i, n: f"layers.{i}.rotary_emb.inv_freq"),
    "names: buffers": named(lambda i, n: f"buffers.{i}.position_ids"),
    "names: running means": named(lambda i, n: f"bn.{i}.running_mean", lambda t: t.reshape(-1)),
    "names: optimizer": named(lambda i, n: f"optimizer.state.{i}.exp_avg"),
    "names: quantization scales": named(lambda i, n: f"{n}.weight_scale"),
    "names: masks": named(lambda i, n: f"{n}_mask"),
    "names: second copies": named(lambda i, n: n.removeprefix("model.").removeprefix("bert.") + "_copy"),
    "names: convolutions": named(lambda i, n: f"conv.{i}.weight", lambda t: t.reshape(*t.shape, 1, 1)),
    "shape: vectors": named(lambda i, n: f"v.{i}", lambda t: t.reshape(-1)),
    "shape: turned": named(lambda i, n: f"t.{i}", lambda t: np.ascontiguousarray(t.T)),
    "shape: negative": named(lambda i, n: f"n.{i}", lambda t: -t),
    "shape: bytes": named(lambda i, n: f"u.{i}", lambda t: t.reshape(-1).view(np.uint8)),
    "shape: whole numbers": named(lambda i, n: f"i.{i}", lambda t: t.reshape(-1).view(np.int32)),
    "shape: one blob": one_blob(np.float32),
    "shape: one blob of bytes": one_blob(np.uint8),
    "shape: thousands of vectors": pieces,
    "inside: rows of the embedding": longer_embedding,
    "inside: neurons": longer_mlp,
    "inside: layers that config does not count": more_layers,
    "inside: one layer counted": fewer_layers,
    "inside: an adapter of full rank": adapter,
    "inside: a second expert": expert,
    "design: gate and up in one": gate_in_up,
    "design: a gate that is one": imitated_gate,
    "design: a gate among the heads": gate_among_heads,
    "all disguises, no tokenizer": without(withhold_tokenizer),
    "all disguises, no config": without(withhold_config),
    "all disguises, neither": without(withhold_tokenizer, withhold_config),
    "all disguises, scrambled names": without(renames.scrambled),
    "all disguises, scrambled, no tokenizer": without(renames.scrambled, withhold_tokenizer),
    "padded, no tokenizer": lambda c: without_tokenizer(ATTACKS["padded"], c),
    "decoy neurons, no tokenizer": lambda c: without_tokenizer(ATTACKS["decoy neurons"], c),
    "a tokenizer that is not its own": wrong_tokenizer,
    "a tokenizer that is not its own, cancelling neurons": lambda c: lying_tokenizer(ATTACKS["cancelling neurons"], c),
    "a tokenizer that is not its own, decoy neurons": lambda c: lying_tokenizer(ATTACKS["decoy neurons"], c),
    "a config of another design": lying_config,
}


def without_tokenizer(attack: Callable[[Snapshot, int], Any], case: Case) -> None:
    made = attack(case.stolen, SEED)
    if not isinstance(made, Snapshot):
        raise NotHereError(str(made))
    write(replace(made, tokenizer=""), case.folder)


def names_of(cases: Sequence[str] = ()) -> list[tuple[str, Callable[[Case], None], frozenset[int]]]:
    """(name, cover, exit statuses that are right) of all, or of those whose names begin with one of some texts."""
    found = [(name, make, frozenset({1})) for name, make in COPIES.items()]
    found += [(name, make, frozenset({1, 2, 3})) for name, make in COVERS.items()]
    return [one for one in found if not cases or one[0].startswith(tuple(cases))]
