"""Documents as a CycloneDX 1.6 ML-BOM: the model, its pedigree with evidence, and its model card.

https://cyclonedx.org/docs/1.6/json/. `pedigree.ancestors` are linked models that came first, `descendants` those that
came later, `variants` those of which the weights do not say which came first. Written as JSON: no library writes a
modelCard.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from provindex.audit.licenses import terms_of
from provindex.common.bounded_json import visible
from provindex.common.hub_ids import is_hub_id
from provindex.report import facts

Document = dict[str, Any]
PEDIGREE = {"ancestor": "ancestors", "descendant": "descendants", "unknown": "variants"}  # by the direction of a link
BY_HASH = "bit_reuse"  # the test that compares blocks bit for bit
_SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = "provindex:"  # how the names of our properties begin


def render(document: Document) -> str:
    """The bill of materials of a document of any kind; of an index, one component a row."""
    models = facts.models_of(document)
    bom: Document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": _metadata(document),
        "components": [],
    }
    single = len(models) == 1 or facts.kind_of(document) == "compare"
    if single:
        bom["metadata"]["component"] = _subject(document, models[0])
    rest = models[1:] if single else models
    bom["components"] = [_model(model, f"model-{number}") for number, model in enumerate(rest, 2 if single else 1)]
    seed = json.dumps([document, bom], sort_keys=True)
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, seed)}"
    return visible(json.dumps(bom, indent=2, ensure_ascii=False)) + "\n"


def _metadata(document: Document) -> Document:
    tool = document["tool"]
    found: Document = {
        "tools": {"components": [{"type": "application", "name": tool["name"], "version": tool["version"]}]},
        "properties": [
            _property("schema", document["schema"]), _property("status", document["status"]),
            *(_property(f"rests-on:{name}", value) for name, value in facts.basis(document).items()),
        ],
    }  # fmt: skip
    if document.get("date"):
        found = {"timestamp": f"{document['date']}T00:00:00Z", **found}
    return found


def _subject(document: Document, model: Document) -> Document:
    """The model that a document is about, with all that was found of it."""
    component = _model(model, "model-1")
    stated = model.get("stated", {})
    datasets = [{"type": "dataset", "name": name} for name in stated.get("datasets", ())]
    if datasets:
        component["modelCard"]["modelParameters"]["datasets"] = datasets
    files = [_file(file, number) for number, file in enumerate(model.get("files", ()), 1)]
    if files:
        component["components"] = files
    pedigree: dict[str, list[Document]] = {}
    for number, link in enumerate(facts.links_of(document), 1):
        role = PEDIGREE.get(link["direction"] or "unknown", "variants")
        pedigree.setdefault(role, []).append(_relative(link, f"linked-{number}"))
    if pedigree:
        component["pedigree"] = {**pedigree, "notes": "Linked by weights; the evidence of each is beside it."}
    for fact in facts.facts_of(document):
        if fact.rule != "linked":
            clause = f" ({fact.url})" if fact.url else ""
            component["properties"].append(_property(f"{fact.level}:{fact.rule}", fact.text + clause))
    for claim in document.get("claims", ()):
        name = f"claim:{claim['kind']}:{claim['status']}"
        component["properties"].append(_property(name, f"{claim['value']} ({claim['source']})"))
    return component


def _model(model: Document, reference: str) -> Document:
    """A model as a component. Its content digest is over weights, not over a file, so that it is a property."""
    parameters: Document = {}
    if model.get("architecture"):
        parameters["architectureFamily"] = model["architecture"]
    component: Document = {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": model["model_id"],
        **({"version": model["revision"]} if model.get("revision") else {}),
        **_licenses(model.get("license")),
        **_purl(model),
        "modelCard": {"modelParameters": parameters},
        "properties": [
            _property(name, model[name])
            for name in ("variant", "content_sha256", "row_sha256", "parameters", "mode", "family")
            if model.get(name)
        ],
    }
    return component


def _relative(link: Document, reference: str) -> Document:
    """A linked model, with the tests that link it."""
    figures = [
        {
            "technique": "hash-comparison" if name == BY_HASH else "binary-analysis",
            "confidence": link["confidence"],
            "value": f"{name}: value {test['value']}, n {test['n']}, log10 p {test['log10_p']}",
        }
        for name, test in link["evidence"].items() if test["value"] is not None
    ]  # fmt: skip
    component = _model(link, reference)
    component["evidence"] = {
        "identity": [
            {
                "field": "name", "confidence": link["confidence"], "concludedValue": facts.label(link),
                **({"methods": figures} if figures else {}),
            }
        ]
    }  # fmt: skip
    figures_of_all = ("relation", "direction", "log10_p", "log10_e")
    component["properties"] += [_property(name, link[name]) for name in figures_of_all if link[name] is not None]
    return component


def _file(file: Document, number: int) -> Document:
    hashes = [{"alg": "SHA-256", "content": file["sha256"]}] if _SHA256.fullmatch(file["sha256"] or "") else []
    found: Document = {"type": "file", "bom-ref": f"file-{number}", "name": file["name"]}
    return {**found, **({"hashes": hashes} if hashes else {}), "properties": [_property("bytes", file["bytes"])]}


def _licenses(license_name: str | None) -> Document:
    """A license by its SPDX id where the table has one, else by its name."""
    if not license_name:
        return {}
    terms = terms_of(license_name)
    one = terms[0][0] if len(terms) == 1 and len(terms[0]) == 1 else None
    said = {"id": one.spdx} if one is not None and one.spdx else {"name": license_name}
    return {"licenses": [{"license": {**said, **({"url": one.text} if one is not None else {})}}]}


def _purl(model: Document) -> Document:
    """The address of a model of the Hub at a commit (package-url type `huggingface`)."""
    if not (model.get("revision") and is_hub_id(model["model_id"])):
        return {}
    return {"purl": f"pkg:huggingface/{model['model_id']}@{model['revision']}"}


def _property(name: str, value: Any) -> Document:
    return {"name": NAME + name, "value": str(value)}
