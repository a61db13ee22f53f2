"""The arrows between the rooms of provindex, read off the import statements: none runs back, none makes a circle.

Imports inside functions and imports for type checkers count as well. `provindex/README.md` draws the same table.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "provindex"
MOST_AT_THE_TOP = 18  # folders and .py files

CORE = {"common", "roles", "signals", "evidence"}
RECORD = CORE | {"fingerprint.record"}
STORED = RECORD | {"fingerprint.panels", "fingerprint.rows", "fingerprint.parquet", "formats.parquet"}
INDEX = STORED | {"verdict", "catalogue"}
ROOMS: dict[str, set[str]] = {  # room: the rooms that it may import, besides itself
    "common": set(),
    "roles": {"common"},
    "formats": {"common", "roles"},
    "formats.parquet": {"common"},
    "hub.client": {"common", "formats"},
    "models": {"common", "roles", "formats", "hub.client"},
    "signals": {"common", "roles"},
    "evidence": {"common", "roles", "signals"},
    "fingerprint.record": CORE,
    "fingerprint.panels": RECORD,
    "fingerprint.rows": RECORD | {"fingerprint.panels"},
    "fingerprint.parquet": RECORD | {"fingerprint.panels", "fingerprint.rows", "formats.parquet"},
    "fingerprint.extract": RECORD | {"fingerprint.panels", "models", "formats"},
    "fingerprint.cache": STORED | {"models", "formats"},
    "catalogue": RECORD,
    "verdict": RECORD,
    "index": INDEX,
    "audit": INDEX | {"index"},
    "lineage": INDEX | {"index"},
    "hub.pull": STORED | {"hub.client", "index", "verdict.calibration"},
    "hub.fetch": INDEX | {"hub.client", "index"},
    "hub.push": STORED | {"hub.client", "hub.pull", "index", "verdict.calibration"},
    "peers": INDEX | {"formats", "index"},
    "report": INDEX | {"index", "audit", "lineage", "hub.pull", "hub.push", "hub.fetch", "peers"},
    "api": INDEX
    | {"formats", "models", "fingerprint.extract", "fingerprint.cache", "hub", "index", "audit", "lineage", "peers"}
    | {"report"},
    "cli": {"api", "common", "report"},
    "": {"api", "cli", "common"},  # the package's face and `python -m provindex`
}


def modules() -> dict[str, Path]:
    """Every module by its name below provindex; the package itself is ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """(module of ours, line) for each import statement, wherever it stands."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "provindex":
                    yield alias.name.removeprefix("provindex").removeprefix("."), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"provindex/{MODULES[name].relative_to(PACKAGE)}:{node.lineno} imports relatively")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "provindex":
            base = (node.module or "").removeprefix("provindex").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                yield inner if inner in MODULES else base, node.lineno


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.") or (room == "" and module in ("", "__main__"))


def room_of(module: str) -> str:
    """The narrowest room that a module is in; of `hub` and other folders without code, the folder."""
    rooms = [room for room in ROOMS if within(module, room)]
    return max(rooms, key=len) if rooms else module


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_arrow_runs_back(name: str) -> None:
    allowed = {room_of(name), *ROOMS.get(room_of(name), set())}
    wrong = [
        f"provindex/{MODULES[name].relative_to(PACKAGE)}:{line} imports provindex.{target}"
        for target, line in imports_of(name)
        if not any(within(target, room) for room in allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle() -> None:
    graph = {name: {target for target, _ in imports_of(name)} - {name} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def test_every_module_has_a_room_and_every_room_but_the_planned_ones_has_modules() -> None:
    assert {room_of(name) for name in MODULES} - set(ROOMS) <= {"fingerprint", "hub"}  # folders without code
    assert set(ROOMS) - {room_of(name) for name in MODULES} == {"lineage"}


def test_the_top_is_small() -> None:
    shown = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")]
    assert len(shown) <= MOST_AT_THE_TOP


def test_only_the_face_imports_our_modules_by_name() -> None:
    for name, path in MODULES.items():
        if name:
            names = {
                n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "")
                for n in ast.walk(ast.parse(path.read_text()))
            }
            assert not names & {"import_module", "__import__"}, name


def test_each_folder_has_a_readme_that_begins_with_one_screen() -> None:
    for folder in sorted(p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"):
        beginning = (folder / "README.md").read_text(encoding="utf-8").splitlines()[:45]
        assert any("**In:**" in line or "enters" in line.lower() for line in beginning), folder.name
