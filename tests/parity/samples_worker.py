"""The peer's deep signals of model folders, by one of its three routes. Runs inside the peer's environment.

python samples_worker.py JOB.json OUT

JOB: [{"name": ..., "folder": ..., "route": "file" | "files" | "sliced"}]. OUT: a folder that gets `name.route.npz` of
each, with the arrays of a long-form file, or `name.route.txt` with what went wrong. "sliced" makes the peer believe
that the files are above its limit of 20e9 bytes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

from provenancekit.core.signals import weight_signals as peer  # noqa: E402
from provenancekit.core.signals.metadata import extract_fingerprint  # noqa: E402
from provenancekit.services.model_loader import load_state_dict  # noqa: E402


def signals(folder: str, route: str) -> Any:
    """The peer's features of a model."""
    _, tokenizer = extract_fingerprint(folder)
    words = list(tokenizer.get_vocab()) if tokenizer is not None else None
    if route != "sliced":
        loaded = load_state_dict(folder)
        return peer.extract_signals(loaded.state_dict, loaded.config, tokenizer=tokenizer, vocab=words)
    size, os.path.getsize = os.path.getsize, lambda _: 21_000_000_000
    try:
        return peer.extract_signals_streaming(folder, tokenizer=tokenizer, vocab=words)
    finally:
        os.path.getsize = size


def arrays(found: Any) -> dict[str, Any]:
    """Arrays by the names of the long form; WVC layer by layer."""
    out: dict[str, Any] = {"nlf_mode": str(found.nlf_mode), "nlf_num_layers": int(found.nlf_num_layers or 0)}
    for name in ("eas_self_sim", "nlf_vector", "lep_profile", "end_histogram"):
        values = getattr(found, name)
        if values is not None:
            out[name] = np.asarray(values, np.float32)
    for layer, values in (found.wvc_layer_sigs or {}).items():
        out[f"wvc/{int(layer)}"] = np.asarray(values, np.float32)
    return out


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        target = out / f"{job['name']}.{job['route']}"
        try:
            np.savez(f"{target}.npz", **arrays(signals(job["folder"], job["route"])))
        except Exception as error:  # noqa: BLE001 - whatever the peer raises is its answer
            Path(f"{target}.txt").write_text(f"{type(error).__name__}: {error}")
        print(target.name, flush=True)


if __name__ == "__main__":
    main()
