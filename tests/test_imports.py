"""The dependency rule of the design, read off the import statements, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "provindex"
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
PURE = ("roles/", "signals/", "evidence/", "formats/dtypes.py", "verdict/")
INSIDE_FUNCTIONS = {
    "faiss",
    "datasets",
    "filelock",
    "pyarrow",
    "threadpoolctl",
    "huggingface_hub",
    "license_expression",
    "tokenizers",
    "gguf",
}
FRONT = "cli/"  # the one room that may import more than numpy (typer) when it is imported
NEVER = {"torch", "transformers", "pickle", "marshal", "shelve", "dill", "joblib", "tensorflow", "jax"}


class Import(NamedTuple):
    """One imported module: its full name, and whether that happens when the importing module is imported."""

    name: str
    at_once: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    late = {id(node) for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef) for node in ast.walk(scope)}
    late |= {id(node) for test in ast.walk(tree) if _only_for_types(test) for node in ast.walk(test)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield Import(node.module or "", id(node) not in late)


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def foreign(module: str) -> Iterator[Import]:
    return (i for i in imports_of(module) if i.top not in sys.stdlib_module_names and i.top != "provindex")


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(PURE)])
def test_the_core_is_numpy_and_the_standard_library(module: str) -> None:
    assert {i.top for i in foreign(module)} <= {"numpy"}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_inside_the_functions_that_need_them(module: str) -> None:
    at_once = {i.top for i in foreign(module) if i.at_once}
    front = {"typer"} if module.startswith(FRONT) else set()
    assert at_once <= {"numpy"} | front
    assert {i.top for i in foreign(module)} <= {"numpy"} | INSIDE_FUNCTIONS | front


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_executes_what_a_model_brings(module: str) -> None:
    assert not {i.top for i in imports_of(module)} & NEVER
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}


def test_one_module_talks_to_the_hub_and_one_prints() -> None:
    assert [m for m in MODULES if "huggingface_hub" in {i.top for i in imports_of(m)}] == ["hub/client.py"]
    printing = []
    for module in MODULES:
        tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
        if any(
            isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print" for n in ast.walk(tree)
        ):
            printing.append(module)
    assert printing == []


def test_the_rule_is_checked_against_modules_that_exist() -> None:
    assert {m for m in MODULES if m.startswith(PURE)} >= {
        "roles/names.py",
        "verdict/pair.py",
        "formats/dtypes.py",
        "signals/eas.py",
    }


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import provindex", "numpy typer"),
        ("import provindex.cli.app", "numpy"),
        ("import provindex; provindex.ProvindexError", "numpy"),
        ("from provindex import Fingerprint, Index, Pair, QueryResult, compare, fingerprint", "typer"),
        ("import provindex.api, provindex.report.document, provindex.peers.cisco", "typer"),
    ],
)
def test_what_an_import_brings_along(statement: str, forbidden: str) -> None:
    names = [*forbidden.split(), *INSIDE_FUNCTIONS]
    told = f"{statement}; import sys; print([n for n in {names!r} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_public_names() -> None:
    import provindex

    for name in provindex.__all__:
        assert getattr(provindex, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        provindex.nothing  # noqa: B018
