"""The card of a model: fields of its YAML front matter, and the parents that a merge recipe in it names.

Fields are looked for one by one, in the forms that cards use (`key: value`, `key: [a, b]`, a list of `- value` lines):
a card is a claim to show, not worth a YAML parser's attack surface. Nothing beyond the first MAX_CARD bytes is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from provindex.formats import local_files
from provindex.formats.local_files import MAX_CARD, Folder

MOST = 64  # items of a list, and parents of a recipe
_FIELD = re.compile(
    r"(?P<key>license|license_name|license_link|base_model|base_model_relation|datasets|model_name)"
    r"\s*:\s*(?P<value>.*)"
)
_ITEM = re.compile(r"\s*-\s+(?P<value>.+)")
_FENCE = re.compile(r"\s*(```|~~~)\s*(?P<language>\w*)\s*")
_PARENT = re.compile(r"\s*(?:-\s+)?(?:base_)?model\s*:\s*(?P<value>[^\s{].*)")  # of mergekit's recipes
_RECIPE = re.compile(r"\s*(merge_method|slices|gate_mode)\s*:")


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says; "" and () where it says nothing. parents: of a merge recipe in its text."""

    licenses: tuple[str, ...] = ()
    license_name: str = ""
    license_link: str = ""
    base_models: tuple[str, ...] = ()
    relation: str = ""
    datasets: tuple[str, ...] = ()
    name: str = ""
    parents: tuple[str, ...] = ()


def read_card(folder: Folder, name: str) -> Card:
    """The card of a folder; an empty one where there is none."""
    path = local_files.find(folder, name)
    if path is None:
        return Card()
    with local_files.opened(path) as file:
        return card_of(file.read(MAX_CARD).decode("utf-8-sig", errors="replace"))


def card_of(text: str) -> Card:
    """What the text of a card says.

    >>> card_of("---\\nlicense: mit\\nbase_model: [org/a, 'org/b']\\n---\\n").base_models
    ('org/a', 'org/b')
    """
    lines = text.splitlines()
    front, body = _split(lines)
    fields = dict(_fields(front))

    def first(key: str) -> str:
        return next(iter(fields.get(key, ())), "")

    return Card(
        fields.get("license", ()), first("license_name"), first("license_link"), fields.get("base_model", ()),
        first("base_model_relation"), fields.get("datasets", ()), first("model_name"),
        tuple(dict.fromkeys(_recipe_parents(body)))[:MOST],
    )  # fmt: skip


def _split(lines: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The front matter, without its marks, and what follows; no front matter unless it ends."""
    if not lines or lines[0].rstrip() != "---":
        return (), lines
    end = next((i for i, line in enumerate(lines) if i and line.rstrip() == "---"), 0)
    return (lines[1:end], lines[end + 1 :]) if end else ((), lines)


def _fields(front: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for number, line in enumerate(front):
        match = _FIELD.fullmatch(line.rstrip())
        if not match:
            continue
        value = match["value"]
        if not _plain(value):
            items: list[str] = []
            for following in front[number + 1 : number + 1 + MOST]:
                item = _ITEM.fullmatch(following.rstrip())
                if not item:
                    break
                items.append(item["value"])
        else:
            items = value[1:-1].split(",")[:MOST] if value.startswith("[") and value.endswith("]") else [value]
        yield match["key"], tuple(plain for plain in map(_plain, items) if plain)


def _recipe_parents(body: Sequence[str]) -> Iterator[str]:
    """Models that fenced blocks with a merge recipe name; of `model+adapter` the model."""
    block: list[str] | None = None
    for line in body:
        fence = _FENCE.fullmatch(line)
        if fence and block is None:
            block = []
        elif fence and block is not None:
            if any(_RECIPE.match(one) for one in block):
                for one in block:
                    found = _PARENT.fullmatch(one.rstrip())
                    if found and (plain := _plain(found["value"])):
                        yield plain.partition("+")[0]
            block = None
        elif block is not None:
            block.append(line)


def _plain(value: str) -> str:
    """A scalar without its quotes and trailing comment, cut to a line's length."""
    value = re.sub(r"(^|\s)#.*", "", value).strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return value[:200]
