"""Documents as an in-toto Statement v1, unsigned: ready for cosign or model-signing.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. The subject is the weight files by their sha256;
where no file's digest is known, the model by the digest of its weights' content. The predicate is the whole document.
"""

from __future__ import annotations

import json
from typing import Any

from provindex.common.bounded_json import visible
from provindex.common.errors import UsageError
from provindex.report import facts

Document = dict[str, Any]
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:x-provindex:{kind}:{number}"
CONTENT, ROW = "provindexContentSha256", "provindexRowSha256"  # digests of weights, and of a fingerprint, not of a file


def render(document: Document) -> str:
    """The statement of a document of any kind. UsageError if no digest of what it is about is known."""
    subjects = [subject for model in facts.models_of(document) for subject in _subjects(model)]
    if not subjects:
        raise UsageError(
            "A statement names what it is about by digests, and none is known here.",
            "Read the model with --mode exact, or choose another format.",
        )
    schema = document["schema"].removeprefix("provindex.").partition("/")
    statement = {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE.format(kind=schema[0], number=schema[2]),
        "predicate": document,
    }
    return visible(json.dumps(statement, indent=2, ensure_ascii=False)) + "\n"


def _subjects(model: Document) -> list[Document]:
    files = [
        {"name": f"{model['model_id']}/{file['name']}", "digest": {"sha256": file["sha256"]}}
        for file in model.get("files", ()) if file["sha256"]
    ]  # fmt: skip
    if files:
        return files
    digests = {CONTENT: model.get("content_sha256"), ROW: model.get("row_sha256")}
    known = {name: digest for name, digest in digests.items() if digest}
    return [{"name": facts.label(model), "digest": known}] if known else []
