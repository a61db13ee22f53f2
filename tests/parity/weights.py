"""The peer's weight signals of model folders and pairs, as JSON. Runs inside the peer's environment.

python weights.py JOB.json OUT.json

JOB: {"models": {name: folder}, "pairs": [[name, name], ...]}. OUT: {"models": {name: {...}}, "pairs":
[{...}]}; a pair has the five similarities and the identity score by each of the peer's two routes, "full"
(whole file loaded) and "stream" (tensor by tensor, the peer's choice above 10e9 parameters or 20e9 bytes);
null is the peer's NaN. Below those sizes the peer takes "full".
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

from provenancekit.core.scoring import compute_identity_score  # noqa: E402
from provenancekit.core.signals import weight_signals as peer  # noqa: E402
from provenancekit.core.signals.anchors import get_anchor_ids  # noqa: E402
from provenancekit.core.signals.metadata import extract_fingerprint  # noqa: E402
from provenancekit.core.signals.tokenizer import extract_tokenizer_features  # noqa: E402
from provenancekit.services.model_loader import load_state_dict  # noqa: E402
from provenancekit.utils.tensor import find_embedding_in_state_dict  # noqa: E402

SIMILARITIES = {
    "EAS": peer.eas_similarity,
    "NLF": peer.nlf_similarity,
    "LEP": peer.lep_similarity,
    "END": peer.end_similarity,
    "WVC": peer.wvc_similarity,
}
ROUTES = ("full", "stream")


def read_model(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts for the report, and the features by route."""
    start = time.perf_counter()
    _, tokenizer = extract_fingerprint(folder)
    extract_tokenizer_features(folder, tokenizer=tokenizer)
    context = time.perf_counter() - start
    words = list(tokenizer.get_vocab())
    start = time.perf_counter()
    loaded = load_state_dict(folder)
    full = peer.extract_signals(loaded.state_dict, loaded.config, tokenizer=tokenizer, vocab=words)
    weights = time.perf_counter() - start
    start = time.perf_counter()
    stream = peer.extract_signals_streaming(folder, tokenizer=tokenizer, vocab=words)
    streamed = time.perf_counter() - start
    embedding = find_embedding_in_state_dict(loaded.state_dict)
    facts = {
        "source": loaded.source,
        "seconds_context": context,
        "seconds_weights": weights,
        "seconds_stream": streamed,
        "embedding": next((n for n, t in loaded.state_dict.items() if t is embedding), None),
        "anchors": [] if embedding is None else get_anchor_ids(tokenizer, words, embedding.shape[0]),
    }
    return facts, {"full": full, "stream": stream}


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def compare(a: Any, b: Any) -> dict[str, float | None]:
    """The five similarities and the identity score of two feature sets."""
    values = {name: similarity(a, b) for name, similarity in SIMILARITIES.items()}
    identity = compute_identity_score(**{name.lower(): value for name, value in values.items()})
    return {name: number(value) for name, value in (values | {"identity": identity}).items()}


def main(job: Path, out: Path) -> None:
    """Read every model once, compare every pair by both routes."""
    work = json.loads(job.read_text())
    models: dict[str, dict[str, Any]] = {}
    features: dict[str, dict[str, Any]] = {}
    for name, folder in work["models"].items():
        try:
            models[name], features[name] = read_model(folder)
        except Exception as error:  # noqa: BLE001  (whatever the peer raises is its answer for this model)
            models[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(name, models[name].get("error", "read"), file=sys.stderr, flush=True)
    pairs = [
        {"a": a, "b": b} | {route: compare(features[a][route], features[b][route]) for route in ROUTES}
        for a, b in work["pairs"]
        if a in features and b in features
    ]
    out.write_text(json.dumps({"models": models, "pairs": pairs}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
