"""Tokenizers that grow, hang, or are too large."""

from __future__ import annotations

import base64
import json
import string
from typing import Any

from hostile.place import CONFIG, TOKENIZER, VOCABULARY, Place

MARK = "▁"


def changed(**parts: Any) -> dict[str, Any]:
    return {**TOKENIZER, **parts}


def replace(pattern: Any, content: str) -> dict[str, Any]:
    return {
        "type": "Replace",
        "pattern": pattern if isinstance(pattern, dict) else {"String": pattern},
        "content": content,
    }


def chain(steps: list[Any], inner: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", inner: steps}


def charsmap(text: bytes) -> str:
    """A table for Precompiled in which a text stands; its trie has one unit for each byte."""
    trie = bytes(4 * 256)
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + text + b"\0").decode()


def growing(place: Place) -> None:
    """Normalizers, pre-tokenizers and post-processors that make a text longer and longer."""
    rng, times = place.rng, place.rng.choice([8, 12, 16, 24, 40, 60, 200])
    letter = rng.choice("eth0.")
    double, spaces = replace(letter, letter * 2), {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated"}
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
        "pair": [],
        "special_tokens": {},
    }
    template["pair"] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    meta = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": False}
    added = [
        {
            "id": 60 + i,
            "content": letter * (i + 1),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": True,
            "special": False,
        }
        for i in range(20)
    ]
    made = rng.choice(
        [
            changed(normalizer=chain([double] * times)),
            changed(normalizer=chain([double] * times), added_tokens=added),
            changed(normalizer=chain([chain([double] * 8)] * 8)),
            changed(normalizer=chain([replace({"Regex": letter}, letter * 3)] * times)),
            changed(normalizer=chain([replace({"Regex": ""}, letter)] * times)),
            changed(normalizer=replace("", letter)),
            changed(normalizer=replace({"Regex": "x*"}, "y" * 1000)),
            changed(normalizer=chain([{"type": "Prepend", "prepend": letter * 500}] * times)),
            changed(normalizer=chain([{"type": "Prepend", "prepend": letter}, double] * times)),
            changed(normalizer=replace(letter, letter * 20_000_000)),
            changed(normalizer=chain([{"type": "ByteLevel"}] * times)),
            changed(normalizer=chain([{"type": "NFKD"}, replace("a", "\ufdfa")] * times)),
            changed(normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap(letter.encode() * 5_000_000)}),
            changed(
                normalizer={
                    "type": "Precompiled",
                    "precompiled_charsmap": base64.b64encode(rng.randbytes(999)).decode(),
                }
            ),
            changed(
                normalizer=chain(
                    [
                        {
                            "type": "BertNormalizer",
                            "clean_text": True,
                            "handle_chinese_chars": True,
                            "strip_accents": None,
                            "lowercase": True,
                        }
                    ]
                    * times
                )
            ),
            changed(pre_tokenizer=chain([level] * times, "pretokenizers")),
            changed(pre_tokenizer=chain([meta, spaces] * times, "pretokenizers")),
            changed(post_processor=chain([template] * times, "processors")),
            changed(
                padding={
                    "strategy": {"Fixed": 2**31},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "<unk>",
                }
            ),
            changed(
                truncation={"direction": "Right", "max_length": 2**40, "strategy": "LongestFirst", "stride": 2**40 - 1}
            ),
        ]
    )
    place.model(tokenizer=made)


def patterns(place: Place) -> None:
    """Patterns that are tried for ever, or do not compile."""
    rng = place.rng
    letter, many = rng.choice("eth0."), rng.choice([3, 10, 100, 1000])
    pattern = rng.choice(
        [
            "(?:" + "|".join(["."] * many) + "){2,}(?<=[xyz])",
            "(?:(?:(?:(?:.*)*)*)*)*(?<=[xyz])",
            "(.+)+(?<=[xyz])",
            "(?:.?){60}.{60}",
            "(a*)*b",
            f"({letter}|{letter}{letter})*$",
            "(?:(?:a{1,9999}){1,9999}){1,9999}",
            "(" * many + letter + ")" * many,
            "|".join(["\\p{L}\\p{Han}"] * many * 100),
            "",
            "(",
            "[",
            "\\",
            "*",
            "(?=)*",
            r"(.*)(.*)(.*)(.*)(.*)\1\2\3\4(?<=[xyz])",
            "(?=(.*(?=(.*(?=(.*(?<=[xyz])))))))",
            r"\p{L}" * many,
            r"(?<n>.\g<n>?)+",
            "(?:" + "".join(f"(?:{c}|.)" for c in string.ascii_lowercase) + ")*",
            f"[^{letter}]*+{letter}?" * many,
            r"[\p{L}\p{N}\p{P}\p{S}]" * many * 10,
            "(?i:" + "ß" * many + ")+",
            "\\x{110000}",
            "(?:(?i)a|(?-i)b)*c",
            "x{0}" * many,
            f"(?:{letter}{{1,{many}}}){{1,{many}}}(?<=[xyz])",
        ]
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": rng.random() < 0.5}
    ways = [
        changed(pre_tokenizer=split),
        changed(normalizer=chain([replace({"Regex": pattern}, "")])),
        changed(normalizer=chain([replace(letter, letter * 40)]), pre_tokenizer=split),
        changed(pre_tokenizer=chain([split] * 60, "pretokenizers")),
    ]
    place.model(tokenizer=rng.choice(ways))
    if rng.random() < 0.1:
        place.write("tekken.json", _tekken(pattern))
        (place.folder / "tokenizer.json").unlink()


def _tekken(pattern: str) -> dict[str, Any]:
    listed = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    config = {"pattern": pattern, "default_vocab_size": 256, "default_num_special_tokens": 0, "version": "v3"}
    return {"config": config, "vocab": listed}


def added(place: Place) -> None:
    """Added and declared tokens: many, long, far apart, half characters."""
    rng = place.rng
    many = rng.choice([1000, 20_000, 150_000])
    texts = rng.choice(
        [[f"<{i}>" for i in range(many)], ["e" * (i % 3000 + 1) for i in range(many // 20)], ["\ud800x", "", "é"]]
    )
    far = rng.choice([1, 1, 1 << 20, (1 << 32) - 1])
    tokens = [
        {
            "id": 60 + i * far,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": rng.random() < 0.5,
            "special": False,
        }
        for i, text in enumerate(texts)
    ]
    where = rng.randrange(3)
    lower = {"type": "Lowercase"}
    place.model(tokenizer=changed(added_tokens=tokens, normalizer=lower) if where == 0 else None)
    if where == 1:
        place.write("added_tokens.json", {text: 60 + i * far for i, text in enumerate(texts)})
    if where == 2:
        place.write(
            "tokenizer_config.json",
            {
                "tokenizer_class": rng.choice(["T5Tokenizer", "X" * 10_000, "\u202eLlama"]),
                "extra_ids": 10**9,
                "bos_token": "\u202e" * 1000,
                "eos_token": {"content": "\x1b[2J"},
                "added_tokens_decoder": {str(60 + i * far): {"content": t} for i, t in enumerate(texts)},
            },
        )


def vocabularies(place: Place) -> None:
    """Vocabularies and merges that are too large, too long, or lie."""
    rng = place.rng
    choice = rng.randrange(9)
    place.model()
    if choice == 0:  # millions of words
        many = rng.choice([300_000, 1_200_000, 3_000_000])
        with (place.folder / "tokenizer.json").open("w") as file:
            head = json.dumps({**TOKENIZER, "model": {"type": "WordLevel", "unk_token": "w0"}})
            file.write(head[:-2] + ', "vocab": {')
            file.writelines(f'{"," if i else ""}"w{i}":{i}' for i in range(many))
            file.write("}}}")
    elif choice == 1:
        model = {
            "type": "WordPiece",
            "unk_token": "<unk>",
            "continuing_subword_prefix": "#" * rng.choice([2, 10**6]),
            "max_input_chars_per_word": 10**9,
            "vocab": {"<unk>": 0, "e": 1, "##e": 2},
        }
        place.write("tokenizer.json", changed(model=model, normalizer=chain([replace("e", "e" * 900)] * 2)))
    elif choice == 2:
        pieces = [["<unk>", 0.0]] + [["e" * i, -float(i)] for i in range(1, rng.choice([100, 5000]))]
        place.write("tokenizer.json", changed(model={"type": "Unigram", "unk_id": 0, "vocab": pieces}))
    elif choice == 3:
        vocab = {**VOCABULARY, **{"e" * i: 100 + i for i in range(2, 1500)}}
        merges = [["e" * i, "e" * j] for i in range(1, 700) for j in range(1, 60)]
        model = {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": "s" * rng.choice([1, 10**6]),
        }
        place.write("tokenizer.json", changed(model=model))
    elif choice == 4:
        place.write("tokenizer.json", '{"a":' * 100_000 + "1" + "}" * 100_000)
    elif choice == 5:
        place.write("tokenizer.json", b'{"version":"1.0","x":[' + b"[]," * 12_000_000 + b"[]]}")
    elif choice == 6:
        place.write("tokenizer.json", changed(model={"type": "WordLevel", "vocab": {"a": 2**31, "b": -1, "c": 1.5}}))
    elif choice == 7:
        with (place.folder / "tokenizer.json").open("wb") as file:
            file.truncate(1 << rng.choice([27, 33, 40]))
    else:
        text = json.dumps(TOKENIZER)
        place.write(
            "tokenizer.json", text[: rng.randrange(len(text))] + rng.choice(["", "\0", "\ud800", "é" * 1000, "}" * 9])
        )


def vocabulary_files(place: Place) -> None:
    """The other files of tokens: lines without end, half characters, numbers that lie, buffers that do not end."""
    rng = place.rng
    name = rng.choice(
        [
            "vocab.txt",
            "vocab.json",
            "tokenizer.model",
            "x.tiktoken",
            "tekken.json",
            "vocabulary.json",
            "vocabulary.txt",
            "spiece.model",
            "special_tokens_map.json",
            "tokenizer_config.json",
        ]
    )
    place.model()
    (place.folder / "tokenizer.json").unlink()
    many = rng.choice([10, 1000, 1_200_000, 6_000_000])
    content = rng.choice(
        [
            lambda: b"\n" * many,
            lambda: b"e\n" * many,
            lambda: b"the 9\n" * many,
            lambda: b"ZQ== %d\n" * (many // 10),
            lambda: b"".join(b"w%d\n" % i for i in range(min(many, 1_200_000))),
            lambda: b"\xff\xfe" * many,
            lambda: json.dumps({f"w{i}": i for i in range(min(many, 500_000))}).encode(),
            lambda: json.dumps([f"w{i}" for i in range(min(many, 500_000))]).encode(),
            lambda: b"[" * many,
            lambda: b'{"a":' * many,
            lambda: b'["\\ud800"]',
            lambda: b"{}",
            lambda: b"",
            lambda: b"null",
            lambda: b"\n\x04\n\x02ee" * (many // 4),
            lambda: b"\n\xff\xff\xff\xff\x0f" + b"e" * 100,
            lambda: b"\n" + b"\x80" * many,
            lambda: b"1" * many,
            lambda: b'{"vocab": ' + b"9" * many + b"}",
            lambda: "\u202e\u2066".encode() * 1000,
        ]
    )()
    place.write(name, content)
    if name == "vocab.json":
        place.write(
            "merges.txt", rng.choice([b"e e\n" * (many // 2), b"\n" * many, b"a b c\n", b"\xff", b"e \xc3\xa9\n"])
        )
    if name == "vocab.txt" and rng.random() < 0.5:
        place.write("bpe.codes", b"\0" * 10)
    place.write(
        "config.json", {**CONFIG, "tokenizer_class": rng.choice(["XLMRobertaTokenizer", "T5Tokenizer", 7, None])}
    )
