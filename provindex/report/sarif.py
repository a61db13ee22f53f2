"""Documents as SARIF 2.1.0, for code scanning: one result for each thing that was found.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/. A model has no lines; a result is located at its first weight file, or
at its name where no file is known.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

from provindex.common.bounded_json import visible
from provindex.report import facts
from provindex.report.facts import Fact

Document = dict[str, Any]
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULES = {  # what a rule says, for a reader who sees only its code
    "base-model-contradicted": "The weights are unrelated to a model that is claimed as the base.",
    "base-model-incomplete": "The weights have an ancestor that no claim names.",
    "base-model-missing": "The weights have an ancestor, and no base is named, or what is named was not tested.",
    "license-conflict": "A license of an ancestor asks for what the license of the model drops.",
    "license-unknown": "A license of the chain is not stated, or not in the table.",
    "obligation-missing": "A license of an ancestor asks for a text or a name that is not there.",
    "not-testable": "A claim could not be tested.",
    "linked": "The weights are linked to a published model.",
}
OTHER = "provindex/audit/README.md and provindex/report/README.md describe the codes."


def render(document: Document) -> str:
    """The SARIF log of a document of any kind, with one run."""
    found = facts.facts_of(document)
    rules = list(dict.fromkeys(fact.rule for fact in found))
    where = _location(document)
    run: Document = {
        "tool": {
            "driver": {
                "name": document["tool"]["name"],
                "version": document["tool"]["version"],
                "rules": [_rule(rule, found) for rule in rules],
            }
        },
        "results": [_result(fact, rules.index(fact.rule), where) for fact in found],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "schema": document["schema"], "status": document["status"], "restsOn": facts.basis(document),
            **({"note": document["note"]} if document.get("note") else {}),
        },
    }  # fmt: skip
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return visible(json.dumps(log, indent=2, ensure_ascii=False)) + "\n"


def _rule(rule: str, found: list[Fact]) -> Document:
    level = next(fact.level for fact in found if fact.rule == rule)
    return {
        "id": rule,
        "shortDescription": {"text": RULES.get(rule, rule.replace("-", " ").capitalize() + ".")},
        "help": {"text": OTHER},
        "defaultConfiguration": {"level": level},
    }


def _result(fact: Fact, number: int, where: Document) -> Document:
    key = json.dumps([fact.rule, *fact.models, fact.text]).encode()
    result: Document = {
        "ruleId": fact.rule,
        "ruleIndex": number,
        "level": fact.level,
        "message": {"text": f"{fact.text}."},
        "locations": [where],
        "partialFingerprints": {"provindex/v1": hashlib.sha256(key).hexdigest()},
        "properties": {"models": list(fact.models), **({"clause": fact.url} if fact.url else {})},
    }
    return result


def _location(document: Document) -> Document:
    models = facts.models_of(document)[:2]
    first = models[0] if models else {"model_id": (document.get("index") or {"id": "index"})["id"]}
    file = next((one["name"] for one in first.get("files", ())), "")
    path = "/".join(filter(None, (first["model_id"], file)))
    names = [facts.label(model) for model in models] or [first["model_id"]]
    return {
        "physicalLocation": {"artifactLocation": {"uri": quote(path, safe="/", errors="replace")}},
        "logicalLocations": [{"name": name, "kind": "module"} for name in names],
    }
