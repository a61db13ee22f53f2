"""Training: AdamW over a dictionary of tensors, on windows of a corpus. Deterministic for a seed, on one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .architectures import Config, forward, initial_weights
from .plan import Run
from .snapshot import F32

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]

CONTEXT, MASKED, IGNORED = 64, 0.15, -100
HELD_OUT = 8192  # tokens at the end of a corpus, for the loss before and after
RANK = 4  # of adapters


def fresh(config: Config, seed: int) -> dict[str, F32]:
    """Untrained weights as numpy arrays."""
    return {name: tensor.numpy() for name, tensor in initial_weights(config, seed).items()}


def train(
    weights: Mapping[str, F32], config: Config, corpus: NDArray[np.int64], run: Run, seed: int
) -> tuple[dict[str, F32], Any]:
    """Train every tensor; returns the weights and {"loss_before", "loss_after"} on held-out text."""
    return _fit(weights, config, corpus, run, seed, _language_loss(config, seed))


def distil(
    weights: Mapping[str, F32],
    config: Config,
    teacher: tuple[Mapping[str, F32], Config],
    corpus: NDArray[np.int64],
    run: Run,
    seed: int,
) -> tuple[dict[str, F32], Any]:
    """Train every tensor towards the teacher's next-token distribution."""
    master = _tensors(teacher[0])

    def loss(student: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = forward(master, teacher[1], ids).log_softmax(-1)
        got = forward(student, config, ids).log_softmax(-1)
        return F.kl_div(got.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")

    return _fit(weights, config, corpus, run, seed, loss)


def train_adapter(
    weights: Mapping[str, F32], config: Config, corpus: NDArray[np.int64], run: Run, seed: int
) -> tuple[dict[str, F32], Any]:
    """Train rank-4 adapters on the attention and MLP matrices of every layer, and merge them: W + B A."""
    frozen, inner = _tensors(weights), _language_loss(config, seed)
    adapters = _fresh_adapters(frozen, seed)
    held_out, kept = _tail(corpus), corpus[:-HELD_OUT]
    before = _evaluate(frozen, config, held_out)
    _optimize(adapters, lambda trained, ids: inner(_merged(frozen, trained), ids), _windows(kept, run, seed), run)
    result = _merged(frozen, adapters)
    after = _evaluate(result, config, held_out)
    return _arrays(result), {"loss_before": before, "loss_after": after}


def _fresh_adapters(frozen: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A and B, (rank, in) and (out, rank), for every matrix of a layer; B is zero, so that they change nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, tensor in frozen.items():
        if tensor.ndim == 2 and any(part.isdigit() for part in name.split(".")):
            rows, columns = tensor.shape
            adapters[f"{name}/A"] = torch.randn((RANK, columns), generator=generator) / math.sqrt(columns)
            adapters[f"{name}/B"] = torch.zeros((rows, RANK))
    return adapters


def _merged(frozen: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    changed = {n: t + adapters[f"{n}/B"] @ adapters[f"{n}/A"] for n, t in frozen.items() if f"{n}/A" in adapters}
    return {**frozen, **changed}


# --- the loop --------------------------------------------------------------------------------------------------


def _fit(
    weights: Mapping[str, F32], config: Config, corpus: NDArray[np.int64], run: Run, seed: int, loss: Loss
) -> tuple[dict[str, F32], Any]:
    tensors = _tensors(weights)
    held_out, kept = _tail(corpus), corpus[:-HELD_OUT]
    before = _evaluate(tensors, config, held_out)
    _optimize(tensors, loss, _windows(kept, run, seed), run)
    after = _evaluate(tensors, config, held_out)
    return _arrays(tensors), {"loss_before": before, "loss_after": after}


def _optimize(tensors: Mapping[str, Tensor], loss: Loss, batches: Iterator[Tensor], run: Run) -> None:
    """Change the tensors in place; only matrices decay. FloatingPointError if the loss is not finite at the end."""
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    groups = [
        {"params": [t for t in tensors.values() if t.ndim >= 2], "weight_decay": run.decay},
        {"params": [t for t in tensors.values() if t.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.rate, betas=(0.9, 0.98), fused=True)
    value = torch.zeros(())
    for step, ids in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = run.rate * _schedule(step, run.steps)
        optimizer.zero_grad()
        value = loss(tensors, ids)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        optimizer.step()
    for tensor in tensors.values():
        tensor.requires_grad_(False)
    last = float(value.detach())
    if not math.isfinite(last):
        raise FloatingPointError(f"the loss is {last} after {run.steps} steps")


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _windows(corpus: NDArray[np.int64], run: Run, seed: int) -> Iterator[Tensor]:
    """Batches of windows, (batch, context), at places drawn with the seed."""
    rng = np.random.default_rng((seed, 31))
    reach = np.arange(CONTEXT)
    for _ in range(run.steps):
        starts = rng.integers(0, len(corpus) - CONTEXT, run.batch)
        yield torch.from_numpy(corpus[starts[:, None] + reach])


def _tail(corpus: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(corpus[-HELD_OUT:].reshape(-1, CONTEXT))


# --- losses ----------------------------------------------------------------------------------------------------


def _language_loss(config: Config, seed: int) -> Loss:
    """Next token, or for an encoder the masked tokens; which are masked is drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)

    def masked(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        hidden = torch.rand(ids.shape, generator=generator) < MASKED
        logits = forward(weights, config, ids.masked_fill(hidden, config["mask_token_id"]))
        return F.cross_entropy(logits.flatten(0, 1), ids.masked_fill(~hidden, IGNORED).flatten(), ignore_index=IGNORED)

    def following(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        logits = forward(weights, config, ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return masked if config["model_type"] == "bert" else following


def _evaluate(weights: Mapping[str, Tensor], config: Config, held_out: Tensor) -> float:
    with torch.no_grad():
        return round(float(_language_loss(config, 0)(weights, held_out)), 4)


def _tensors(weights: Mapping[str, F32]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array, np.float32)) for name, array in weights.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, F32]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
