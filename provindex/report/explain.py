"""What a word of an answer means: provindex.explain/1, from the tables that the answers are made with.

Reasons are explained by their sentences (`words.py`), signals and tests by the first line of their files and by their
rows, everything else by `words.TERMS`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from provindex.common.errors import UsageError
from provindex.common.reasons import Code
from provindex.common.suggest import alike, did_you_mean
from provindex.common.version import __version__
from provindex.evidence.table import TESTS
from provindex.report.words import CERTAINTIES, SENTENCES, TERMS, TIERS
from provindex.signals.table import SIGNALS

Document = dict[str, Any]


def explain_document(codes: Sequence[str]) -> Document:
    """The meaning of each code; UsageError, with suggestions, for one that no answer has."""
    known: dict[str, list[Document]] = {}
    for one in meanings():
        known.setdefault(one["code"].lower(), []).append(one)
    found: list[Document] = []
    for code in codes:
        asked = code.strip().lower().replace(" ", "-")
        if asked not in known:
            near = did_you_mean(alike(asked.replace("_", "-"), known) or alike(asked, known))
            raise UsageError(
                f"No answer has the word {code}.",
                near or "Give the code of a reason, or the name of a signal, a test, a relation or a state.",
            )
        found += known[asked]
    return {
        "schema": "provindex.explain/1",
        "tool": {"name": "provindex", "version": __version__},
        "index": None,
        "settings": {"codes": list(codes)},
        "warnings": [],
        "status": "decided",
        "explained": found,
    }


def meanings() -> Iterator[Document]:
    """Everything that can be explained: code, kind (reason, signal, test, relation, ...), meaning, and the figures that
    a reason's sentence names in braces."""
    for code in Code:
        yield _one(str(code), "reason", SENTENCES[code].full)
    for signal in SIGNALS:
        yield _one(signal.name, "signal", f"{_first_line(signal.compare)} {TIERS['signal']}")
    for test in TESTS:
        yield _one(test.name, "test", f"{_first_line(test.run)} {TIERS[test.tier]}")
    for kind, terms in TERMS.items():
        for word, meaning in terms.items():
            yield _one(word, kind, meaning)
    for word, (shown, meaning) in CERTAINTIES.items():
        yield _one(word, "certainty", f"{shown}: {meaning}")


def _one(code: str, kind: str, meaning: str) -> Document:
    return {"code": code, "kind": kind, "meaning": meaning.strip()}


def _first_line(function: object) -> str:
    """The first paragraph of the documentation of the file that a signal or a test is in."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    return " ".join((module.__doc__ or "").split("\n\n")[0].split()) if module else ""
