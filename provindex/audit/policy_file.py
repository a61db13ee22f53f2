"""Where a policy is read from: --policy, else PROVINDEX_POLICY, else a file from the working directory up to the root
of its repository. Never from a model's own folder: the suspect would write the rules of its judge.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from provindex.audit.policy import Policy, of_table
from provindex.common import places
from provindex.common.errors import UsageError
from provindex.common.files import is_there

OWN, SHARED = "provindex.toml", "pyproject.toml"
MOST = 1 << 20  # bytes of a policy


def policy_for(models: Sequence[str], named: Path | None = None) -> Policy:
    """The policy that holds for some models.

    named: the file that --policy names. models: references; the folders of those that are paths may hold no policy.
    UsageError if a file that was named cannot be read, lies in the folder of a model, or states what no policy can.
    An empty PROVINDEX_POLICY turns the search off. A file beside a weight file that was named is not found by the
    search, because the two may have come together; `passed_over` of the answer names it.
    """
    paths = [Path(model).resolve() for model in models if is_there(model)]
    folders = [path for path in paths if path.is_dir()]
    chosen = named if named is not None else places.default_policy()
    if chosen is not None:
        return _read(Path(chosen), folders) if str(chosen) else Policy()
    passed_over = ""
    for folder in _upwards(Path.cwd()):
        own = any(folder.is_relative_to(other) for other in [*folders, *(p.parent for p in paths if not p.is_dir())])
        for path in (folder / OWN, folder / SHARED):
            # A link to nothing and a folder of that name are a policy that is lost, not one that was never there.
            if os.path.lexists(path) and (table := _table(path)) is not None:
                if not own:
                    return replace(of_table(table, _shown(path)), passed_over=passed_over)
                passed_over = passed_over or _shown(path)
    return Policy(passed_over=passed_over)


def _read(path: Path, folders: Sequence[Path]) -> Policy:
    if any(path.resolve().is_relative_to(own) for own in folders):
        raise UsageError(
            f"The policy {_shown(path)} lies in the folder of the model that it would judge.",
            "Keep it outside, so that no model brings its own.",
        )
    table = _table(path)
    if table is None:
        raise UsageError(f"{_shown(path)} has no table [tool.provindex].", "Name a provindex.toml.")
    return of_table(table, _shown(path))


def _table(path: Path) -> Mapping[str, Any] | None:
    """What a file says of provindex; None for a pyproject.toml that says nothing of it.

    UsageError where it says something that is no table: a policy that was written down must not be passed over.
    """
    try:
        if not path.is_file():
            raise UsageError(f"There is no policy {_shown(path)}.", "Name a file that exists.")
        with path.open("rb") as file:
            raw = file.read(MOST + 1)
        if len(raw) > MOST:
            raise UsageError(f"{_shown(path)} is larger than {MOST >> 20} MB.", "Name a policy.")
        table = tomllib.loads(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        message = f"The policy {_shown(path)} cannot be read: {error}."
        raise UsageError(message, "Mend it, or name another one.") from error
    if path.name != SHARED:
        return table
    tool = table.get("tool")
    own = tool.get("provindex") if isinstance(tool, dict) else None
    if own is not None and not isinstance(own, dict):
        raise UsageError(f"tool.provindex in {_shown(path)} is no table.", "Write [tool.provindex] in single brackets.")
    return own


def _upwards(folder: Path) -> Iterator[Path]:
    """A folder and those that hold it, up to the root of its repository; itself alone where it is in none."""
    above = [folder, *folder.parents]
    roots = [place for place, one in enumerate(above) if (one / ".git").exists()]
    return iter(above[: roots[0] + 1] if roots else above[:1])


def _shown(path: Path) -> str:
    """The path from the working directory."""
    return os.path.relpath(path)
