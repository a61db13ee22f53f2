"""The notebooks run offline, and what they show is what they print today.

`python tests/test_notebooks.py` runs them and writes their outputs anew.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from provindex.cli.app import app

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ("quickstart", "dataset_tour", "audit")
NEEDED = ("nbformat", "nbclient", "ipykernel", "matplotlib")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
MAX_SECONDS = 300  # of one cell: far more than it takes, for machines that are busy
MAX_BYTES = 700_000  # of all notebooks, pictures included
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/\w[\w.-]*/\w|\b[A-Z]:\\\w")
TIMES = re.compile(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# What a kernel runs before the notebook: connections and look-ups to anywhere but this machine are refused. The
# kernel's own messages are not seen by it (they are ZeroMQ's, which opens its sockets outside of Python).
NO_NETWORK = """
import sys

def _refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a socket of this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1"):
        raise OSError(f"no network in notebooks: {host!r}")

sys.addaudithook(_refuse)
"""

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed, they are in [dev]: {', '.join(MISSING)}")


def read(name: str) -> Any:
    """The committed notebook."""
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with fresh outputs, run in a folder of its own: offline, without a cache, without settings of ours.

    Raises CellExecutionError if a cell fails.
    """
    from nbclient import NotebookClient

    start, work = folder / "start", folder / "work"
    for made in (start, work):
        made.mkdir()
    (start / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(notebook, timeout=MAX_SECONDS, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(work)}}
    client.execute(env=_environment(folder, start))
    return cleaned(notebook)


def _environment(folder: Path, start: Path) -> dict[str, str]:
    ours = ("HF_", "HUGGING_FACE_", "PROVINDEX_", "IPYTHON", "MPL", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(start), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "hf"),
        "PROVINDEX_CACHE": str(folder / "cache"),
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def cleaned(notebook: Any) -> Any:
    """Without what differs from one machine or run to the next: kernel details, times, and what libraries mutter."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = {}
    return notebook


def texts(notebook: Any) -> list[tuple[str, str]]:
    """(id of the cell, what it says) of every text output, in order; pieces of a stream are one."""
    found: list[tuple[str, str]] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            said = "".join(map(_text, cell.outputs))
            found += [(cell.id, said)] if said else []
    return found


def _text(output: Mapping[str, Any]) -> str:
    return str(output["text"] if output["output_type"] == "stream" else output["data"].get("text/plain", ""))


def pictures(notebook: Any) -> list[bytes]:
    """The PNG files among its outputs."""
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_offline_and_prints_what_is_committed(name: str, tmp_path: Path) -> None:
    """If this fails because the numbers rightly changed: `python tests/test_notebooks.py`."""
    committed = read(name)
    fresh = executed(read(name), tmp_path)
    assert texts(fresh) == texts(committed)
    assert len(pictures(fresh)) == len(pictures(committed))
    assert not list((tmp_path / "work").iterdir()), "it leaves files behind"


def test_the_network_is_refused_inside_a_kernel(tmp_path: Path) -> None:
    """What guards the runs above does: an address outside is refused, and one of this machine is not."""
    from nbformat.v4 import new_code_cell, new_notebook

    tries = """
import socket

for host in ("198.51.100.1", "127.0.0.1"):
    try:
        socket.create_connection((host, 9), timeout=2)
    except OSError as error:
        print(host, "no network" in str(error))
"""
    fresh = executed(new_notebook(cells=[new_code_cell(tries)]), tmp_path)
    assert [said for _, said in texts(fresh)] == ["198.51.100.1 True\n127.0.0.1 False\n"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_was_run_in_order_and_without_errors(name: str) -> None:
    """Every code cell was run once, from top to bottom, and no output is an error or a warning."""
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [(o.output_type, o.get("name")) for cell in code for o in cell.outputs]
    assert kinds and set(kinds) <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
    assert texts(read(name))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_tells_nothing_of_where_it_was_run(name: str) -> None:
    """No absolute path, no date or time, no kernel details; ids of cells are stable."""
    notebook = read(name)
    assert notebook.metadata == METADATA and all(cell.metadata == {} for cell in notebook.cells)
    assert [cell.id for cell in notebook.cells] == [f"{name}-{n:02d}" for n in range(1, len(notebook.cells) + 1)]
    assert ABSOLUTE.search("in /one/two") and ABSOLUTE.search("C:\\one") and not ABSOLUTE.search("./one/two org/name")
    for where, said in texts(notebook):
        assert not ABSOLUTE.search(said) and not TIMES.search(said) and "Traceback" not in said, where
        assert str(Path.home()) not in said, where


def test_a_reader_has_only_the_package() -> None:
    """Nothing is imported from the tests or from build_index, and all notebooks together are small."""
    for name in NAMES:
        source = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
        assert not re.search(r"^\s*(?:from|import) (?:tests|zoo|build_index)\b", source, re.MULTILINE)
    assert sum((FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES) < MAX_BYTES


def test_the_command_lines_that_are_shown_are_understood() -> None:
    """Every verb and option of the Markdown exists; parsed, not run."""
    markdown = "\n".join(cell.source for name in NAMES for cell in read(name).cells if cell.cell_type == "markdown")
    lines = re.findall(r"^    provindex (.*)$", markdown, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        command, arguments = get_command(app), shlex.split(line)
        context = command.make_context("provindex", list(arguments))
        while hasattr(command, "resolve_command"):
            name, command, arguments = command.resolve_command(context, arguments)
            context = command.make_context(name, list(arguments), parent=context)


def refresh() -> None:
    """Run the notebooks and write them with fresh outputs."""
    import nbformat

    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(read(name), Path(folder))
        for number, cell in enumerate(notebook.cells, 1):
            cell.id = f"{name}-{number:02d}"
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    refresh()
