"""A trained family tree on disk, made once for each version of the code that makes it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers

from . import children
from .models import Checkpoint, bert_config, write
from .trainer import train
from .words import WORDS

STEPS = 110
FOUNDERS = 12
ENCODERS, ENCODER_STEPS = 3, 60


@dataclass(frozen=True)
class Member:
    """One model of the tree.

    name: of its folder. parent: the name of the model it descends from, None for a founder. relation: in the words of
    the contract ("finetune", "continued", "pruned" ...). make: builds it from its parent (from nothing: None).
    """

    name: str
    parent: str | None
    relation: str | None
    make: Callable[[Checkpoint | None], Checkpoint]


@dataclass(frozen=True)
class Family:
    """The tree on disk: folder by name, and the truth.

    founders: Llamas independent of each other, same config, same data in the same order. encoders: BERTs, likewise.
    parents: parent by child. relations: by child. twin: a founder, and its random start trained on other sentences
    (shared-init, not lineage).
    """

    folders: Mapping[str, Path]
    founders: tuple[str, ...]
    encoders: tuple[str, ...]
    parents: Mapping[str, str]
    relations: Mapping[str, str]
    twin: tuple[str, str]

    def root(self, name: str) -> str:
        """The founder that a model descends from (the name itself for a founder)."""
        while name in self.parents:
            name = self.parents[name]
        return name


def _tuned(steps: int, data_seed: int, language: int, rate: float, parent: Checkpoint | None) -> Checkpoint:
    return train(0, steps, data_seed, parent, language=language, rate=rate)


def _made(change: Callable[[Checkpoint], Checkpoint], parent: Checkpoint | None) -> Checkpoint:
    if parent is None:
        raise ValueError("a child needs its parent")
    return change(parent)


def _founder(seed: int, data_seed: int, _: Checkpoint | None) -> Checkpoint:
    return train(seed, STEPS, data_seed)


def _encoder(seed: int, _: Checkpoint | None) -> Checkpoint:
    return train(seed, ENCODER_STEPS, config=bert_config(act="gelu_new"))


def _half_vocabulary(parent: Checkpoint) -> Checkpoint:
    return children.prune_vocabulary(parent, [f"\u2581{word}" for word in WORDS[: len(WORDS) // 2]])


def _derived(name: str, parent: str, relation: str, change: Callable[[Checkpoint], Checkpoint]) -> Member:
    return Member(name, parent, relation, partial(_made, change))


MEMBERS: tuple[Member, ...] = (
    *(Member(f"founder-{i:02d}", None, None, partial(_founder, i, 0)) for i in range(FOUNDERS)),
    Member("twin-00", None, None, partial(_founder, 0, 1)),
    *(Member(f"encoder-{i:02d}", None, None, partial(_encoder, i)) for i in range(ENCODERS)),
    Member("encoder-finetune-00", "encoder-00", "finetune", partial(_tuned, 20, 7, 0, 5e-4)),
    Member("finetune-00", "founder-00", "finetune", partial(_tuned, 30, 7, 0, 5e-4)),
    Member("finetune-01", "founder-01", "finetune", partial(_tuned, 30, 8, 0, 5e-4)),
    Member("continued-00", "founder-00", "continued", partial(_tuned, 110, 9, 1, 1e-2)),
    Member("grandchild-00", "continued-00", "finetune", partial(_tuned, 30, 10, 1, 5e-4)),
    _derived("bf16-00", "founder-00", "recast", partial(children.cast, dtype="BF16")),
    _derived("q4-00", "founder-00", "quantized", partial(children.quantize, bits=4, per="block32")),
    _derived("pruned-00", "founder-00", "pruned", partial(children.drop_layers, keep=(0, 2))),
    _derived("upscaled-00", "founder-00", "upscaled", partial(children.repeat_layers, order=(0, 1, 2, 1, 2))),
    _derived("vocabulary-00", "founder-00", "vocabulary", _half_vocabulary),
    _derived("noise50-02", "founder-02", "continued", partial(children.finetune_noise, cosine=0.5, seed=1)),
    _derived("noise20-02", "founder-02", "continued", partial(children.finetune_noise, cosine=0.2, seed=2)),
    _derived("noise10-02", "founder-02", "continued", partial(children.finetune_noise, cosine=0.1, seed=3)),
)


def trained_family(root: Path) -> Family:
    """The family under `root`, trained if this version of the code has not done so (20 seconds on one core).

    In tests, `trained_family(pytestconfig.cache.mkdir("zoo"))` in a session fixture: one folder for all test files.

    It lands in a folder named by a digest of this package's source, moved into place in one step: concurrent
    callers may do the work twice, and never see half of it.
    """
    home = Path(root) / f"family-{_version()}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=home.parent, prefix="family-draft-"))
        try:
            _make_all(draft)
            _move(draft, home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Family(
        folders={member.name: home / member.name for member in MEMBERS},
        founders=tuple(member.name for member in MEMBERS if member.name.startswith("founder")),
        encoders=tuple(member.name for member in MEMBERS if member.name.startswith("encoder") and not member.parent),
        parents={member.name: member.parent for member in MEMBERS if member.parent is not None},
        relations={member.name: member.relation for member in MEMBERS if member.relation is not None},
        twin=("founder-00", "twin-00"),
    )


def _make_all(folder: Path) -> None:
    made: dict[str, Checkpoint] = {}
    for member in MEMBERS:
        made[member.name] = member.make(made[member.parent] if member.parent else None)
        write(made[member.name], folder / member.name, dtype="BF16" if member.name.startswith("bf16") else "F32")


def _move(draft: Path, home: Path) -> None:
    try:
        draft.replace(home)
    except OSError:
        if not home.exists():  # else another process was first, and its folder is as good as ours
            raise


def _version() -> str:
    """A digest of everything that the weights depend on."""
    digest = hashlib.sha256(f"{np.__version__} {tokenizers.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
