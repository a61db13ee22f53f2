"""Towers of a model as models of their own: a fingerprint compares nobody with what stands beside the text tower.

A gate asks about all of a file. So each tower is fingerprinted once more under the names that it has, and once without
what its names begin with: a language model that somebody put under `vision_tower.` then has the names of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from provindex.fingerprint.extract.model import fingerprint_model, with_every_layer
from provindex.fingerprint.record import Fingerprint
from provindex.models.source import Model
from provindex.roles.names import Layout, resolve

TEXT = frozenset({"decoder", "encoder"})  # stacks that every comparison looks at, with the main one


def towers(model: Model, mode: str) -> list[tuple[str, tuple[Fingerprint, ...]]]:
    """(stack, readings of it) of each tower that no comparison of the model's fingerprint looks at.

    mode: as the model was read. The towers' tensors are read once more for each reading. Nothing of a model whose roles
    are inferred: then no stack is known.
    """
    layout = _layout(model)
    compared = TEXT | {layout.main}
    stacks = {p.stack for p in layout.placements.values() if p.weight and p.stack} - compared
    if layout.structure is not None:
        return []
    made = [(stack, _readings(model, layout, stack, mode)) for stack in sorted(stacks)]
    return [(stack, readings) for stack, readings in made if readings]


def _readings(model: Model, layout: Layout, stack: str, mode: str) -> tuple[Fingerprint, ...]:
    names = [p.name for p in layout.placements.values() if p.stack == stack and model.tensors[p.name].size]
    made = ((view, fingerprint_model(view, mode=mode)) for view in _views(model, names, stack))
    return tuple(with_every_layer(view, reading) or reading for view, reading in made)


def _views(model: Model, names: list[str], stack: str) -> Iterator[Model]:
    """The tensors of a tower as a model: as they are called; and without their common beginning, if that makes them one
    whose names are known.
    """
    name = f"{model.model_id} ({stack})"
    whole = replace(model, model_id=name, tensors={n: model.tensors[n] for n in names}, warnings=())
    if any(p.weight for p in _layout(whole).placements.values()):
        yield whole
    split = [n.split(".") for n in names]
    depth = next((i for i, parts in enumerate(zip(*split, strict=False)) if len(set(parts)) > 1), 0)
    if not depth:
        return
    inner = {".".join(parts[depth:]): model.tensors[n] for n, parts in zip(names, split, strict=True)}
    bare = replace(whole, tensors=inner, config={}, config_reason=None, opened=[model.tokenizer])
    found = _layout(bare)
    if found.structure is None and found.main in TEXT and any(p.weight for p in found.placements.values()):
        yield bare


def _layout(model: Model) -> Layout:
    return resolve({name: t.shape for name, t in model.tensors.items()}, model.config)
