"""`provindex hook`: what `.pre-commit-hooks.yaml` starts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from provindex.cli.gating import (
    AllowOption,
    DenyOption,
    DenyRelatedOption,
    ExcludeOption,
    PolicyOption,
    chosen_policy,
)
from provindex.cli.many import answer_each
from provindex.cli.options import AutoModeOption, Common, IndexOption, JsonlOption
from provindex.cli.query import answered
from provindex.cli.reading import open_index, say_if_old
from provindex.common.errors import UsageError

PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")  # of a model that is split
BESIDE = re.compile(r"mmproj|(^|[._-])imatrix", re.IGNORECASE)  # GGUF files that are no models


def _refuse_files_that_look_like_options(arguments: Sequence[str]) -> None:
    """UsageError for a file of this folder whose name would be read as an option: pre-commit puts the names of staged
    files behind the options, and whoever chooses a name would choose the policy.
    """
    for name in arguments[: arguments.index("--")] if "--" in arguments else arguments:
        if name.startswith("-") and os.path.lexists(name):
            raise UsageError(
                f"The file {name} has the name of an option.", "Rename it, or end the hook's args with --."
            )


def hook(
    file: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Weight files, or folders of models.")],
    index: IndexOption = None,
    deny: DenyOption = None,
    deny_related: DenyRelatedOption = False,
    allow: AllowOption = None,
    exclude: ExcludeOption = None,
    policy: PolicyOption = None,
    mode: AutoModeOption = None,
    jsonl: JsonlOption = False,
    *,
    common: Common,
) -> None:
    """Check staged weight files against the policy, for pre-commit."""
    from provindex.api import check_rules

    _refuse_files_that_look_like_options(sys.argv[1:])
    models = models_of(file)
    rules = chosen_policy(models, policy, common).with_more(
        deny or (), allow or (), exclude or (), related=deny_related
    )
    if not rules.asks:
        raise UsageError(
            "No policy denies or allows anything, so there is nothing to check.",
            "Write deny or allow into provindex.toml at the root of the repository, or --deny into the hook's args.",
        )
    opened = open_index(index, common)
    say_if_old(opened, common)
    check_rules(rules, opened)
    answer_each(models, partial(answered, opened=opened, rules=rules, common=common, mode=mode), common, jsonl=jsonl)


def models_of(files: Sequence[Path]) -> list[str]:
    """What to ask about: the folder of each file, once; the outer one of two folders, because its reading names all
    that lies below it. Where a folder holds several GGUF models, each of its GGUF files.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        by_folder.setdefault(path if path.is_dir() else path.parent, []).append(path)
    outer = {folder: found for folder, found in by_folder.items() if by_folder.keys().isdisjoint(folder.parents)}
    return [str(model) for folder, found in sorted(outer.items()) for model in _apart(folder, found)]


def _apart(folder: Path, staged: Sequence[Path]) -> list[Path]:
    """The folder; or, if it holds several GGUF models and only GGUF files are staged, the first part of each model."""
    whole = {PART.sub("", path.name) for path in folder.glob("*.gguf") if not BESIDE.search(path.name)}
    if len(whole) < 2 or any(path.suffix != ".gguf" for path in staged):
        return [folder]
    first: dict[str, Path] = {}
    for path in sorted(staged):
        first.setdefault(PART.sub("", path.name), path)
    return list(first.values())
