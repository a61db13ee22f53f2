"""The peer's whole comparison of pairs of model folders, as JSON. Runs inside the peer's environment: see rivals.py.

python peer_worker.py JOB.json OUT.json

JOB: {"folders": {name: folder}, "pairs": [[name, name], ...]}. OUT: a list with one answer per pair, in order.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from pathlib import Path
from typing import Any

import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

from provenancekit.core.scanner import ModelProvenanceScanner  # noqa: E402
from provenancekit.exceptions import ProvenanceError  # noqa: E402
from provenancekit.services.cache import NullCache  # noqa: E402
from safetensors import SafetensorError  # noqa: E402

# What a model can make the peer raise; that is then its answer for this model, the others are compared all the same.
REFUSALS = (
    ProvenanceError, SafetensorError, OSError, LookupError, ValueError, ArithmeticError, RuntimeError, TypeError,
    AttributeError,
)  # fmt: skip
SIGNALS = ("eas", "nlf", "lep", "end", "wvc", "tfv", "voa")


class Scanner(ModelProvenanceScanner):
    """The peer's scanner, without its cache on disk, which reads each model once and remembers refusals."""

    def __init__(self) -> None:
        super().__init__(cache=NullCache())
        self._features: dict[str, Any] = {}

    def _extract_model(self, model_id: str) -> Any:
        if model_id not in self._features:
            try:
                self._features[model_id] = super()._extract_model(model_id)
            except REFUSALS as error:
                self._features[model_id] = error
        found = self._features[model_id]
        if isinstance(found, Exception):
            raise found
        return found


def answer(scanner: Scanner, a: str, b: str) -> dict[str, Any]:
    """One pair's scores, decision and signals."""
    try:
        result = scanner.compare(a, b)
    except REFUSALS as error:
        nothing = dict.fromkeys(("score", "decision", "tier", "identity"))
        return nothing | {"signals": {}, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    scores, signals = result.scores, result.signals
    return {
        "score": scores.pipeline_score,
        "decision": scores.provenance_decision,
        "tier": scores.mfi_tier,
        "identity": scores.identity_score,
        "signals": {"MFI": scores.mfi_score} | {name.upper(): getattr(signals, name) for name in SIGNALS},
        "error": None,
    }


def main(job: Path, out: Path) -> None:
    """Answer every pair; a line on standard error for every hundredth."""
    work = json.loads(job.read_text(encoding="utf-8"))
    scanner, answers = Scanner(), []
    gc.freeze()  # the peer collects garbage at every model: over all that torch has imported, that is most of its time
    for done, (a, b) in enumerate(work["pairs"], 1):
        answers.append(answer(scanner, work["folders"][a], work["folders"][b]))
        if not done % 100:
            print(f"{done} of {len(work['pairs'])} pairs", file=sys.stderr, flush=True)
    out.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
