"""What every report says of a document of any kind: whom it is about, what was found, and what it rests on.

Renderers read documents through these functions, so that they say the same of the same answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Document = dict[str, Any]
LEVELS = ("error", "warning", "note")


class Fact(NamedTuple):
    """Something that was found. rule: a code. level: of LEVELS. models: ids. url: a clause, "" for none."""

    rule: str
    level: str
    text: str
    models: tuple[str, ...] = ()
    url: str = ""


def kind_of(document: Document) -> str:
    """ "query", "audit", ..."""
    return str(document["schema"]).partition("/")[0].removeprefix("provindex.")


def models_of(document: Document) -> list[Document]:
    """The models that a document is about: facts with `model_id`. Those of an index are its rows."""
    kind = kind_of(document)
    if kind == "compare":
        return [document["a"], document["b"]]
    if kind == "index":
        return list(document["models"])
    return [document["query" if kind == "query" else "model"]]


def links_of(document: Document) -> list[Document]:
    """Linked pairs: matches; of `compare` the pair, with the facts of B, seen from A."""
    if kind_of(document) != "compare":
        return list(document.get("matches", ()))
    if document["verdict"] != "linked":
        return []
    turned = {"ancestor": "descendant", "descendant": "ancestor"}
    direction = turned.get(document["direction"] or "", document["direction"])
    facts = {name: document["b"][name] for name in ("model_id", "revision", "variant", "license", "family")}
    return [{**document, **facts, "direction": direction}]


def label(model: Document) -> str:
    """An id, with the variant in brackets."""
    return f"{model['model_id']} [{model['variant']}]" if model.get("variant") else str(model["model_id"])


def facts_of(document: Document) -> list[Fact]:
    """What was found, errors first: the findings of an audit; else links, and what a gate makes of them."""
    found = [
        Fact(f["code"], f["severity"], f["text"], tuple(f["model_ids"]), f["clause_url"] or "")
        for f in document.get("findings", ())
    ]
    if kind_of(document) != "audit":
        found += [
            Fact("linked", "note", linked(link), (link["model_id"],)) for link in links_of(document)
        ]  # fmt: skip
    found += _gate(document)
    found += [Fact("index-damaged", "error", f"{p['where']}: {p['what']}") for p in document.get("problems", ())]
    found += [Fact("not-read", "warning", f"{f['source']}: {f['reason']}") for f in document.get("failed", ())]
    found += [Fact(left["code"], "warning", f"{left['what']}: {left['text']}") for left in document.get("left_out", ())]
    return sorted(found, key=lambda fact: LEVELS.index(fact.level))


def _gate(document: Document) -> list[Fact]:
    gate = document.get("gate")
    if gate is None:
        return []
    if kind_of(document) == "compare":
        level = {"failed": "error", "inconclusive": "warning"}.get(gate["status"], "note")
        return [
            Fact(f"gate-{gate['status']}", level, f"{one['id']}: {'; '.join(one['reasons'])}", (one["id"],))
            for one in gate["denied"]
        ]
    levels = {"denied": "error", "inconclusive": "warning"}
    return [
        Fact(f"gate-{one['state']}", levels[one["state"]], f"{one['id']}: {'; '.join(one['reasons'])}", (one["id"],))
        for one in gate["denied"] if one["state"] in levels
    ]  # fmt: skip


def linked(link: Document) -> str:
    """One link in words."""
    role = {"ancestor": "its ancestor", "descendant": "its descendant"}.get(
        link["direction"], "which came first is open"
    )
    return f"linked to {label(link)} ({link['relation']}; {role})"


def basis(document: Document) -> dict[str, str]:
    """What an answer rests on, by name: index, tool, what was read, digest, day. What does not apply is left out."""
    index, tool = document.get("index"), document["tool"]
    said = {}
    if index is not None:
        said["index"] = f"{index['id']}@{index['revision']} ({index['models']:,} models)"
    said["tool"] = f"{tool['name']} {tool['version']}"
    if kind_of(document) != "index":
        for model in models_of(document):
            name = "model" if len(models_of(document)) == 1 else f"model {label(model)}"
            said[name] = _digest(model)
    if document.get("date"):
        said["date"] = document["date"]
    return said


def _digest(model: Document) -> str:
    digest = model["content_sha256"]
    read = "row of the index" if model.get("indexed") else f"read {model['mode']}"
    if digest:
        return f"content sha256 {digest} ({read})"
    row = model.get("row_sha256")
    return f"fingerprint sha256 {row} ({read})" if row else f"content sha256 not computed ({read})"
