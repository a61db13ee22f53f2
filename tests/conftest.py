"""What all tests share: a Hub on 127.0.0.1, and an environment that reaches nothing else."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub

KEPT = "PROVINDEX_REAL_MODELS"  # where the real snapshots are, for the tests that need them
_HUB = pytest.StashKey[Hub]()
_OPEN = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the Hub and point the clients at it: they read these variables once, when they are imported."""
    opened = contextlib.ExitStack()
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="provindex-tests-")))
    hub = opened.enter_context(Hub(folder / "hub").run())
    config.stash[_HUB], config.stash[_OPEN] = hub, opened
    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE_", "PROVINDEX_")) and n != KEPT]:
        del os.environ[name]
    os.environ.update(
        HF_ENDPOINT=hub.url,
        HF_HOME=str(folder / "hf"),
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_XET="1",
        HF_UPDATE_DOWNLOAD_COUNTS="0",
        PROVINDEX_CACHE=str(folder / "cache"),
    )
    if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: more threads of BLAS would wait
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_OPEN].close()


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    """The session's Hub, without faults and with an empty log. Its repositories stay: use your own names."""
    hub = request.config.stash[_HUB]
    hub.faults.clear()
    hub.log.clear()
    yield hub
    hub.faults.clear()
