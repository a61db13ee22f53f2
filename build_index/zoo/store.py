"""The zoo's folder: which models are there, whole and made by these settings, and the making of what is missing."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from provindex.common.errors import ProvindexError, UsageError

from .descendants import Truth, free_descendants
from .plan import ZOOS, Job, config_of
from .snapshot import Snapshot

FACTS = "zoo.json"  # written last: with it, a model is whole
CODE = ("data.py", "architectures.py", "train.py", "descendants.py", "make.py")
# What one training can raise; that model is then missing, the others are made all the same.
FAILURES = (ProvindexError, OSError, LookupError, ValueError, ArithmeticError, RuntimeError)


def default_root() -> Path:
    """$PROVINDEX_ZOO, or a folder in the user's cache."""
    return Path(os.environ.get("PROVINDEX_ZOO", Path.home() / ".cache" / "provindex-zoo"))


def jobs_of(zoo: str, only: Sequence[str] = ()) -> list[Job]:
    """The trainings of a zoo whose names begin with one of `only`, with the bases that they need. Raises UsageError."""
    jobs = list(_plan(zoo).values())
    wanted = {job.name for job in jobs if not only or job.name.startswith(tuple(only))}
    if not wanted:
        raise UsageError(f"No model of the {zoo} zoo is called {', '.join(only)}.", "Names begin like llama-00.")
    needed = wanted | {job.base for job in jobs if job.base and job.name in wanted}
    return [job for job in jobs if job.name in needed]


def key_of(job: Job) -> str:
    """A digest of everything that decides the weights: the code without its comments, and the settings."""
    config = config_of(job.shape, job.vocabulary.size)
    base = key_of(_plan(job.zoo)[job.base]) if job.base else ""
    text = json.dumps([_code_digest(), asdict(job), config, base], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _plan(zoo: str) -> dict[str, Job]:
    return {job.name: job for job in ZOOS[zoo]()}


@cache
def _code_digest() -> str:
    here = Path(__file__).parent
    return hashlib.sha256("".join(_meaning(here / name) for name in CODE).encode()).hexdigest()


def _meaning(path: Path) -> str:
    """A module's syntax tree without docstrings: formatting and comments don't make a zoo stale."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def facts_of(root: Path, job: Job) -> dict[str, Any] | None:
    """What zoo.json says of a model, None if the model is missing, unfinished or made by other settings."""
    path = root / job.zoo / job.name / FACTS
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts if facts["key"] == key_of(job) else None


def complete(root: Path, jobs: Sequence[Job]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Make what is missing; yields each model's name with its facts, or with why it failed."""
    for job in jobs:
        try:
            yield job.name, facts_of(root, job) or _make(root, job)
        except FAILURES as error:
            yield job.name, f"failed, {type(error).__name__}: {error}"


def _make(root: Path, job: Job) -> dict[str, Any]:
    """Train a model and write it; the wall and processor seconds are of the training alone."""
    from .make import make

    folder = root / job.zoo / job.name
    (folder / FACTS).unlink(missing_ok=True)
    base = load(root, job.zoo, job.base)[0] if job.base else None
    wall, spent = time.monotonic(), time.process_time()
    snapshot, truth, facts = make(job, base)
    facts |= {"seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - spent, 1)}
    facts |= {"steps": job.run.steps, "parameters": snapshot.parameters, "key": key_of(job), "truth": asdict(truth)}
    snapshot.write(folder)
    draft = folder / (FACTS + ".new")
    draft.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / FACTS)
    return facts


# --- reading ---------------------------------------------------------------------------------------------------


def load(root: Path, zoo: str, name: str) -> tuple[Snapshot, Truth]:
    """One trained model and its truth. UsageError if it is not there."""
    folder = root / zoo / name
    if not (folder / FACTS).is_file():
        raise UsageError(f"{folder} has no model.", f"Run python -m build_index.zoo {zoo} --root {root} --only {name}.")
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Snapshot.read(folder), Truth.from_json(facts["truth"])


def trained(root: Path, zoo: str) -> list[str]:
    """The names of the models that are there, in the order of the plan."""
    return [name for name in _plan(zoo) if (root / zoo / name / FACTS).is_file()]


def free(root: Path, zoo: str, base: str) -> list[tuple[Snapshot, Truth]]:
    """The training-free descendants of a base that has two finetunes; [] if they are not there."""
    names = [base, f"{base}-finetune-a", f"{base}-finetune-b"]
    if not set(names) <= set(trained(root, zoo)):
        return []
    return free_descendants(*(load(root, zoo, name)[0] for name in names))


def everything(root: Path, zoo: str) -> Iterator[tuple[Snapshot, Truth]]:
    """Every model of a zoo that is there, the training-free ones after the trained."""
    names = trained(root, zoo)
    for name in names:
        yield load(root, zoo, name)
    for name in names:
        yield from free(root, zoo, name)
