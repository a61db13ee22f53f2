"""Other methods on the same weights: HuRef-style and AWM-style scores in numpy, and the peer itself in a process.

The two scores follow the formulas of their papers and, where a paper leaves something open, what its authors'
program does; nothing is folded or normalized that they leave alone. Sources: Zeng et al., "HuRef" (NeurIPS 2024, arXiv
2312.04828); Zeng et al., "AWM" (ICLR 2026, arXiv 2510.06738); Székely and Rizzo (2014) for the unbiased centering that
its CKA takes. The peer is cisco-ai-provenance-kit 1.0.0 from PyPI.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_index.zoo.parts import Block, Parts
from build_index.zoo.snapshot import Snapshot
from provindex.common.errors import ProvindexError, UsageError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TOKENS = 512  # HuRef takes 4,096, of vocabularies of 32,000 and more
LAST = 2  # the layers that HuRef takes
FEWEST = 16  # tokens in common, below which nothing is compared
WORKER = Path(__file__).resolve().parent / "peer_worker.py"


# --- what both read --------------------------------------------------------------------------------------------


def _shared_tokens(a: tuple[Snapshot, Parts], b: tuple[Snapshot, Parts]) -> tuple[I64, I64] | None:
    """Embedding rows of the tokens that both have, from the common to the rare; None below FEWEST.

    Tokens are the same if their strings are, or their numbers if a model has no tokenizer. Long strings are rare:
    that order is the same for both models, and no renumbering changes it.
    """
    rows = [parts.shape(parts.embed_key())[0] if parts.has_embed() else 0 for _, parts in (a, b)]
    one, other = (_vocabulary(snapshot.tokenizer) for snapshot, _ in (a, b))
    if one and other:
        pairs = [(one[t], other[t]) for t in sorted(one.keys() & other.keys(), key=lambda t: (len(t), t))]
        pairs = [pair for pair in pairs if pair[0] < rows[0] and pair[1] < rows[1]]
    else:
        pairs = [(i, i) for i in range(min(rows))]
    if len(pairs) < FEWEST:
        return None
    ids = np.array(pairs, np.int64)
    return ids[:, 0], ids[:, 1]


@lru_cache(maxsize=16)
def _vocabulary(tokenizer: str) -> Mapping[str, int]:
    """Numbers by token string of a tokenizer.json; {} for "". Special and added tokens are left out, as HuRef does."""
    tree = json.loads(tokenizer) if tokenizer else {"model": {"vocab": {}}}
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    added = {entry["content"] for entry in tree.get("added_tokens") or []}
    return {text: number for text, number in vocabulary.items() if text not in added}


def _embedding(parts: Parts) -> F64:
    """The embedding, (tokens, residual width); through ALBERT's second factor where there is one."""
    table, second = parts.read(parts.embed_key()), parts.embed_key()._replace(role="embed_map")
    return np.asarray(table @ parts.read(second).T) if second in parts.at else table


def _main(parts: Parts, block: Block) -> bool:
    return block.stack == parts.layout.main and not block.cross


def _attentions(parts: Parts, width: int) -> dict[int, Block]:
    """Self-attention of the main stack by layer, where it reads the residual width."""
    found = (block for block, _ in parts.attentions() if _main(parts, block))
    return {b.layer: b for b in found if b.layer is not None and parts.shape(b.key("q"))[1] == width}


# --- HuRef -----------------------------------------------------------------------------------------------------


def huref(a: Snapshot, b: Snapshot) -> float | None:
    """Cosine of two models' invariant terms (the paper's ICS), -1 to 1; near 0 for random weights.

    The terms are X Wq' Wk X', X Wv' Wo' X' and X Wu' Wd' X' of the last two layers, X the embedding rows of the rarest
    tokens that both have; each term is standardized, as in the authors' program, so that the cosine is the mean of
    their correlations. Keys and values are repeated for the heads that share them, experts are added. In a gated MLP
    that program multiplies Wu by the gate entry by entry; that is left out, for no rotation of the residual leaves it
    as it is. None if no three terms exist, or fewer than FEWEST tokens are shared.
    """
    one, other = Parts(a), Parts(b)
    ids = _shared_tokens((a, one), (b, other))
    if ids is None:
        return None
    x, y = _embedding(one)[ids[0][-TOKENS:]], _embedding(other)[ids[1][-TOKENS:]]
    left, right = _middles(one, x.shape[1]), _middles(other, y.shape[1])
    if not left or len(left) != len(right):
        return None
    found = float(np.mean([_correlation(x, m, y, n) for m, n in zip(left, right, strict=True)]))
    return found if np.isfinite(found) else None


def _middles(parts: Parts, width: int) -> list[F64]:
    """Wq' Wk, Wv' Wo' and Wu' Wd' of each of the last layers, (width, width) each."""
    attentions = _attentions(parts, width)
    mlps = [block for block, _ in parts.mlps() if _main(parts, block) and block.layer in attentions]
    found: list[F64] = []
    for layer in sorted({block.layer for block in mlps if block.layer is not None})[-LAST:]:
        q, k, v, o = _heads(parts, attentions[layer])
        here = [block for block in mlps if block.layer == layer]
        units = [parts.read(block.key("up")).T @ parts.read(block.key("down")).T for block in here]
        found += [q.T @ k, v.T @ o.T, np.sum(units, axis=0)]
    return found


def _heads(parts: Parts, block: Block) -> tuple[F64, F64, F64, F64]:
    """q, k, v and o, with k and v repeated for the heads that share them."""
    arch = parts.arch(block.stack)
    q, k, v, o = (parts.read(block.key(role)) for role in "qkvo")
    shared = arch.heads // arch.kv_heads

    def each(w: F64) -> F64:
        return w.reshape(arch.kv_heads, arch.head_dim, -1).repeat(shared, axis=0).reshape(-1, w.shape[1])

    return q, each(k), each(v), o


def _correlation(x: F64, m: F64, y: F64, n: F64) -> float:
    """Correlation of the entries of X M X' and Y N Y', which are not formed; 0 if one side's are all one value."""

    def covariance(x: F64, m: F64, y: F64, n: F64) -> float:
        c = x.T @ y / len(x)
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        return float(np.vdot(m, c @ n @ c.T) - (mean_x @ m @ mean_x) * (mean_y @ n @ mean_y))

    spread = max(covariance(x, m, x, m), 0.0) * max(covariance(y, n, y, n), 0.0)
    return covariance(x, m, y, n) / math.sqrt(spread) if spread > 0 else spread


# --- AWM -------------------------------------------------------------------------------------------------------


def awm(a: Snapshot, b: Snapshot) -> float | None:
    """Unbiased CKA of Wq and Wk over matched residual coordinates, mean over layers; near 0 for unrelated models.

    A linear assignment on the absolute cosines of the embeddings' columns, over all tokens that both have, matches the
    coordinates; the cosines give the signs. Layers are compared in their order if both models have as many, else in
    the assignment that scores best. None if residual widths differ, without tokens in common, or without attention.
    """
    one, other = Parts(a), Parts(b)
    ids = _shared_tokens((a, one), (b, other))
    if ids is None:
        return None
    x, y = _embedding(one)[ids[0]], _embedding(other)[ids[1]]
    if x.shape[1] != y.shape[1]:
        return None
    order, signs = _matched(x, y)
    grams = _grams(one, np.arange(len(order)), np.ones(len(order))), _grams(other, order, signs)
    return _mean_cka(*grams) if all(map(len, grams)) else None


def _matched(x: F64, y: F64) -> tuple[I64, F64]:
    """(columns of y, signs): x[:, i] is most like signs[i] * y[:, columns[i]]."""
    from scipy.optimize import linear_sum_assignment

    lengths = np.outer(np.linalg.norm(x, axis=0), np.linalg.norm(y, axis=0))
    cosines = np.divide(x.T @ y, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    rows, columns = linear_sum_assignment(np.abs(cosines), maximize=True)
    return columns, np.where(cosines[rows, columns] < 0, -1.0, 1.0)


def _grams(parts: Parts, order: I64, signs: F64) -> F64:
    """Centered Gram matrices of q and k over the residual coordinates, each of norm 1, (layers, 2, width * width)."""
    blocks = _attentions(parts, len(order))
    weights = ([parts.read(blocks[layer].key(role))[:, order] * signs for role in "qk"] for layer in sorted(blocks))
    centered = np.array([[_centered(w.T @ w).ravel() for w in pair] for pair in weights])
    norms = np.linalg.norm(centered, axis=-1, keepdims=True)
    unit: F64 = np.divide(centered, norms, out=np.zeros_like(centered), where=norms > 0)
    return unit


def _centered(gram: F64) -> F64:
    """Without its diagonal, centered so that inner products are unbiased estimates of HSIC."""
    n = len(gram)
    off: F64 = gram * (1.0 - np.eye(n))
    sums = off.sum(axis=0) / (n - 2)
    centered: F64 = off - sums[:, None] - sums[None, :] + off.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centered, 0.0)
    return centered


def _mean_cka(x: F64, y: F64) -> float:
    """The mean over q and k, and over pairs of layers."""
    from scipy.optimize import linear_sum_assignment

    similar = np.einsum("irw,jrw->ij", x, y) / x.shape[1]
    if len(x) == len(y):
        return float(np.mean(np.diag(similar)))
    rows, columns = linear_sum_assignment(similar, maximize=True)
    return float(similar[rows, columns].mean())


# --- the peer --------------------------------------------------------------------------------------------------


def peer_scores(
    python: Path, folders: Sequence[Path], pairs: Sequence[tuple[str, str]], scratch: Path
) -> dict[tuple[str, str], dict[str, Any]]:
    """What the peer answers about pairs of model folders, by pair; one process, which reads each folder once.

    python: the interpreter of an environment with the peer. pairs: folders by their names. scratch: an existing folder
    for the process's files. A pair has "score" (the peer's pipeline score), "decision" (its words), "tier" (of its
    config match: up to 2, the weights do not count), "identity", "signals" (by provindex's names, null for the peer's
    NaN) and "error" (why the peer refused a model, everything else then None).
    Raises UsageError for names that are missing or not unique, ProvindexError if the process fails.
    """
    known = {folder.name: str(folder.resolve()) for folder in folders}
    twice = [name for name, count in Counter(folder.name for folder in folders).items() if count > 1]
    unknown = sorted({name for pair in pairs for name in pair} - known.keys())
    if twice or unknown:
        raise UsageError(f"No single folder is called {(twice + unknown)[0]}.", "Give one folder for each name.")
    scratch = scratch.resolve()
    job, out = scratch / "peer_job.json", scratch / "peer_scores.json"
    job.write_text(json.dumps({"folders": known, "pairs": list(pairs)}), encoding="utf-8")
    out.unlink(missing_ok=True)
    _run_worker(python, job, out)
    answers = json.loads(out.read_text(encoding="utf-8"))
    return {(a, b): answer for (a, b), answer in zip(pairs, answers, strict=True)}


def _run_worker(python: Path, job: Path, out: Path) -> None:
    """The worker in the peer's environment: offline, the peer's own settings, one thread unless told otherwise."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROVENANCEKIT_")}
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | kept | {"HF_HUB_OFFLINE": "1"}
    command = [str(python.absolute()), str(WORKER), str(job), str(out)]
    # Output goes to a file, not a pipe: the peer and its libraries write freely.
    with (job.parent / "peer_log.txt").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, cwd=job.parent, env=environment, stdout=log, stderr=log, check=False)
        except OSError as error:
            raise ProvindexError(
                f"{python} does not start: {error}.", "Give the interpreter of the peer's environment."
            ) from error
    if done.returncode or not out.exists():
        lines = (job.parent / "peer_log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise ProvindexError(f"The peer failed ({last}).", "tests/parity/README.md says how its environment is made.")
