"""Files that are none: pipes, devices, sockets, folders, and links and paths that lead out of the folder."""

from __future__ import annotations

import contextlib
import os
import socket

from hostile.place import Place, llama, safetensors

NAMES = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "README.md",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    "params.json",
    "special_tokens_map.json",
    "tekken.json",
    "merges.txt",
    "vocab.json",
    "bpe.codes",
    "model.gguf",
    "pytorch_model.bin",
    "model.onnx",
    "spiece.model",
    "generation_config.json",
    "onnx/model.onnx",
    "model.bin",
)
DEVICES = (
    "/dev/zero",
    "/dev/random",
    "/dev/tty",
    "/dev/full",
    "/dev/stdin",
    "/proc/self/mem",
    "/proc/kmsg",
    "/dev/null",
)


def special(place: Place) -> None:
    """Pipes, sockets, devices, folders and loops in place of files."""
    rng = place.rng
    place.model()
    if rng.random() < 0.3:
        place.write("extra.safetensors", safetensors(llama(1), 3))
    for name in rng.sample(NAMES, rng.choice([1, 1, 2, 5])):
        path = place.folder / name
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        kind = rng.randrange(6)
        if kind == 0:
            os.mkfifo(path)
        elif kind == 1:
            with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
                made.bind(path.name)
        elif kind == 2:
            path.symlink_to(rng.choice(DEVICES))
        elif kind == 3:
            path.mkdir()
        elif kind == 4:
            path.symlink_to(path.name)
        else:
            os.mkfifo(place.folder / f"pipe-{name.replace('/', '-')}")
            path.symlink_to(place.folder / f"pipe-{name.replace('/', '-')}")
    if rng.random() < 0.2:
        place.asked = place.folder / rng.choice(NAMES)


def outside(place: Place) -> None:
    """Links to files outside, and folders that are links."""
    rng = place.rng
    place.model()
    up = os.path.relpath(place.outside, place.folder)
    for name in rng.sample(NAMES, rng.choice([1, 1, 2, 4])):
        target = rng.choice(
            ["secret.txt", "config.json", "tokenizer.json", "model.safetensors", "README.md", "data.bin"]
        )
        place.link(
            name,
            rng.choice([place.outside, up]) / place.outside.__class__(target)
            if rng.random() < 0.5
            else f"{up}/{target}",
        )
    if rng.random() < 0.3:
        place.link("sub", place.outside)
        place.write("model.safetensors.index.json", {"weight_map": {"model.norm.weight": "sub/model.safetensors"}})


def indexes(place: Place) -> None:
    """Index files that lead out, that promise what is not there, and that are very long."""
    rng = place.rng
    place.model()
    target = rng.choice(
        [
            "../outside/model.safetensors",
            str(place.outside / "model.safetensors"),
            "a/../../outside/model.safetensors",
            "..",
            ".",
            "",
            "/",
            "\0",
            "x" * 5000,
            "a\\..\\b",
            "model.safetensors",
            "MODEL.safetensors",
            "\u202e.safetensors",
            "file:///etc/passwd",
            "model.safetensors/",
            "./model.safetensors",
            "~/model.safetensors",
            7,
            None,
            ["a"],
            "\ud800",
        ]
    )
    many = rng.choice([1, 10, 10_000, 300_000])
    names = list(llama()) if many == 10 else [f"t{i}" for i in range(many)]
    content = rng.choice(
        [
            {"weight_map": dict.fromkeys(names, target)},
            {"weight_map": [target]},
            {"weight_map": {}},
            {},
            [],
            None,
            {"weight_map": {f"t{i}": f"m{i}.safetensors" for i in range(many)}},
            {"weight_map": {**dict.fromkeys(llama(), "model.safetensors"), "extra": target}},
        ]
    )
    name = rng.choice(["model.safetensors.index.json", "pytorch_model.bin.index.json"])
    place.write(
        name, rng.choice([content, content, '{"weight_map":' * 50_000, '{"weight_map":{' + '"a":"b",' * 100_000])
    )
    if rng.random() < 0.7:
        (place.folder / "model.safetensors").rename(place.folder / "model-00001-of-00002.safetensors")


def cut(place: Place) -> None:
    """Weights that become shorter, are removed, or are written over while they are read."""
    rng = place.rng
    big = {**llama(), "model.embed_tokens.weight": (rng.choice([100_000, 400_000]), 32)}
    place.model(tensors=big)
    path = place.folder / "model.safetensors"
    size, at = path.stat().st_size, rng.uniform(0.0, 0.6)
    how = rng.choice(["cut", "cut", "cut", "end", "remove", "write"])

    def meanwhile() -> None:
        import time

        time.sleep(at)
        if how == "remove":
            path.unlink()
        elif how == "write":
            with path.open("r+b") as file:
                file.seek(size // 2)
                file.write(b"\xff" * 4096)
        else:
            os.truncate(path, rng.choice([0, 100, 9000, size // 3, size // 2]) if how == "cut" else size - 1)

    place.meanwhile = meanwhile


def full(place: Place) -> None:
    """A disk that is full, and what else of the machine makes writing fail."""
    rng = place.rng
    place.model()
    place.output = rng.random() < 0.8
    choice = rng.randrange(4)
    if choice == 0:
        place.file_limit = rng.choice([1, 100, 1000, 5000])
    elif choice == 1:
        place.environment["SOURCE_DATE_EPOCH"] = rng.choice(
            ["1e30", "9" * 30, "-1", "99999999999999", "\u0661", "", "²"]
        )
    elif choice == 2:
        place.environment["PROVINDEX_CACHE"] = rng.choice(
            ["/proc/nowhere", "/dev/null", str(place.folder / "config.json")]
        )
    else:
        place.environment["TMPDIR"] = "/nowhere"
        place.file_limit = 100
