"""One training: its weights, its truth and what it cost, from the job and the model that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from zlib import crc32

from .data import corpus, train_tokenizer
from .descendants import (
    LayerMap,
    Truth,
    drop_middle,
    layers_of,
    pick_layers,
    prune_neurons,
    rebuild_vocabulary,
    repeat_span,
)
from .plan import RECIPES, Job, config_of
from .snapshot import Snapshot

Facts = dict[str, Any]
Start = tuple[Snapshot, tuple[int, ...], tuple[tuple[int, ...], ...]]  # weights, the base's layers in order, neurons


def make(job: Job, base: Snapshot | None) -> tuple[Snapshot, Truth, Facts]:
    """Train a model. base: the snapshot that `job.base` names, None for a base. FloatingPointError if it diverged."""
    from . import train

    if base is None:
        start, truth = _fresh(job, job.name), Truth(job.name, "base")
    else:
        start, truth = begin(job, base)
    text = corpus(job.language, start.tokenizer)
    seed = crc32(job.name.encode())
    if job.kind == "lora":
        tensors, facts = train.train_adapter(start.tensors, start.config, text, job.run, seed)
    elif job.kind == "distilled" and base is not None:
        teacher = (base.tensors, base.config)
        tensors, facts = train.distil(start.tensors, start.config, teacher, text, job.run, seed)
    else:
        tensors, facts = train.train(start.tensors, start.config, text, job.run, seed)
    return replace(start, name=job.name, tensors=tensors), truth, facts


def _fresh(job: Job, seed_name: str) -> Snapshot:
    """An untrained model; the seed of its start comes from a name, so that two jobs may share one."""
    from .train import fresh

    tokenizer = train_tokenizer(job.vocabulary)
    config = config_of(job.shape, job.vocabulary.size)
    return Snapshot(job.name, fresh(config, crc32(b"start of " + seed_name.encode())), config, tokenizer)


def begin(job: Job, base: Snapshot) -> tuple[Snapshot, Truth]:
    """What the training of a descendant starts from, under the name of its base, and the descendant's truth."""
    recipe = RECIPES[job.kind]
    if job.kind == "shared-init":
        return _fresh(job, base.name), Truth(job.name, job.kind, job.kind, (job.kind,), start=base.name)
    start, order, kept = _SURGERY.get(job.kind, _whole)(job, base)
    layer_map: LayerMap = tuple(enumerate(order))
    accepted = (recipe.relation, *recipe.also)
    return start, Truth(job.name, job.kind, recipe.relation, accepted, (base.name,), base.name, layer_map, True, kept)


def _whole(_: Job, base: Snapshot) -> Start:
    return base, tuple(range(layers_of(base))), ()


def _vocabulary(job: Job, base: Snapshot) -> Start:
    other = _fresh(job, job.name)
    return (rebuild_vocabulary(base, other.tokenizer, other.tensors), *_whole(job, base)[1:])


def _half(_: Job, base: Snapshot) -> Start:
    order = tuple(range(0, layers_of(base), 2))
    return pick_layers(base, order), order, ()


def _shallow(_: Job, base: Snapshot) -> Start:
    order = drop_middle(layers_of(base))
    return pick_layers(base, order), order, ()


def _narrow(job: Job, base: Snapshot) -> Start:
    pruned, kept = prune_neurons(base)
    return pruned, _whole(job, base)[1], kept


def _deep(_: Job, base: Snapshot) -> Start:
    order = repeat_span(layers_of(base))
    return pick_layers(base, order), order, ()


_SURGERY: Mapping[str, Callable[[Job, Snapshot], Start]] = {
    "vocabulary": _vocabulary, "distilled": _half, "depth-pruned": _shallow, "width-pruned": _narrow, "upscaled": _deep,
}  # fmt: skip
