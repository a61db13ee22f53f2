"""Small JSON and Markdown files, and names: nested, long, or with characters that a terminal takes for commands."""

from __future__ import annotations

from typing import Any

from fuzz import mutate
from fuzz.seeds import config_json

from hostile.place import CONFIG, SECRET, Place, llama

NASTY = (
    "\x1b[2J\x1b[1;31mlinked",
    "\u202egnp.exe",
    "a\u2066b\u2069",
    "\r\nverdict: unrelated",
    "\x07\x08\x7f",
    "\u200b\u200d\ufeff",
    "\ud800",
    "\udfff half",
    "x" * 100_000,
    "\u2028\u2029",
    "../../../etc/passwd",
    "{0.__class__}",
    "%s%n",
    "é" * 5000,
    "\U000e0001",
)


def configs(place: Place) -> None:
    """config.json: depth, numbers without end, sizes of no model, texts in place of numbers."""
    rng = place.rng
    key = rng.choice(list(CONFIG))
    value: Any = rng.choice(
        [
            10**9,
            10**18,
            2**63,
            -1,
            0,
            1e308,
            float("nan"),
            float("inf"),
            None,
            True,
            [],
            {},
            "x",
            [1] * 10_000,
            0.5,
            *NASTY,
        ]
    )
    nested: Any = {}
    for _ in range(rng.choice([10, 100, 900])):
        nested = rng.choice([{"text_config": nested}, [nested]])
    made: Any = rng.choice(
        [
            {**CONFIG, key: value},
            {**CONFIG, "num_hidden_layers": 10**9},
            {**CONFIG, "text_config": nested},
            nested,
            {
                **CONFIG,
                "quantization_config": {
                    "quant_method": rng.choice(["gptq", "awq", *NASTY]),
                    "bits": value,
                    "group_size": value,
                },
            },
            {**CONFIG, "rope_scaling": nested, "rope_theta": value},
            {**CONFIG, "architectures": [value]},
            {**CONFIG, "model_type": rng.choice(NASTY)},
            {f"k{i}": i for i in range(100_000)},
            {**CONFIG, "_name_or_path": rng.choice(NASTY)},
            '{"a":' * 100_000 + "1" + "}" * 100_000,
            '{"a":' + "9" * 100_000 + "}",
            "[" * 1_000_000,
            " " * 5_000_000,
            "",
            "null",
            '{"hidden_size": 1e999999}',
            '{"model_type": "llama", "model_type": "bert"}',
            b"\xff\xfe{}",
            b"\xef\xbb\xbf{}",
            mutate.mutated(config_json(), place.number),
        ]
    )
    place.model(config=made)


def names(place: Place) -> None:
    """Names of files, folders and tensors that would draw on a terminal, or never end."""
    rng = place.rng
    where = rng.randrange(4)
    nasty = rng.choice([text for text in NASTY if len(text) < 200 and "/" not in text])
    if where == 0:
        folder = place.folder.parent / f"model{nasty}".encode("utf-8", "replace").decode()[:80]
        place.folder.rmdir()
        place.folder = folder
        folder.mkdir()
    shapes = dict(llama())
    if where in (1, 2):
        spoiled = rng.choice(NASTY)
        for name in rng.sample(list(shapes), rng.choice([1, 5, len(shapes)])):
            shapes[spoiled + name if where == 1 else name.replace(".", f".{spoiled[:50]}.", 1)] = shapes.pop(name)
    place.model(tensors=shapes)
    if where == 3:
        name = f"{nasty}.safetensors".encode("utf-8", "replace")[:200]
        (place.folder / "model.safetensors").rename(place.folder / name.decode("utf-8", "replace"))


def cards(place: Place) -> None:
    """README.md: front matter without end, licences and parents that are no such things."""
    rng = place.rng
    nasty = rng.choice(NASTY)
    content = rng.choice(
        [
            f"---\nlicense: {nasty}\nbase_model: {nasty}\n---\n",
            "---\nbase_model:\n" + f"- org/{nasty}\n" * 1000 + "---\n",
            "---\n" * 100_000,
            "---\nlicense: " + " " * 60_000 + "#\n---",
            "---\n" + "base_model: [" * 10_000,
            "---\nbase_model:\n" + "- " * 30_000,
            "---\nlicense: !!python/object/apply:os.system ['" + place.executes + "']\n---\n",
            "---\na: &a [*a,*a]\nlicense: *a\n---\n",
            "---\nbase_model: ../outside/model.safetensors\n---\n",
            "---\nbase_model: " + str(place.outside) + "\nlicense: mit\n---\n",
            "\0" * 100_000,
            b"\xff" * 1000,
            "---\r\nlicense: mit\rbase_model: a/b\r\n---",
            "---\nlicense: mit\n" + "#" * 60_000,
        ]
    )
    place.model()
    place.write("README.md", content)
    assert SECRET not in str(content)


def deep_folders(place: Place) -> None:
    """Folders in folders, folders of very many files, folders that may not be listed."""
    rng = place.rng
    place.model()
    choice = rng.randrange(4)
    if choice == 0:
        for i in range(rng.choice([100, 8000])):
            place.write(f"{i}{rng.choice(['.json', '.bin', '.py', '.safetensors'])}", b"")
    elif choice == 1:
        deep = place.folder
        for _ in range(rng.choice([20, 200])):
            deep = deep / "d"
        deep.mkdir(parents=True)
        (deep / "model.safetensors").write_bytes(b"\0" * 100)
    elif choice == 2:
        for name in ("a", "b", "c"):
            place.link(name, rng.choice([".", "..", place.outside, "/proc", "a"]))
    else:
        (place.folder / "locked").mkdir(mode=0)
