"""Machines of several people who share one Hub: each has caches and a token of its own, and runs the real command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Ran, run, run_closed

MAINTAINER, CONTRIBUTOR = "hf_admin", "hf_contrib"  # tokens of the test Hub


@dataclass(frozen=True)
class Machine:
    """Where one person works."""

    folder: Path
    token: str | None = None

    @property
    def environment(self) -> dict[str, str | None]:
        """What makes it another machine than the tests' own."""
        return {
            "HF_HOME": str(self.folder / "hf"),
            "PROVINDEX_CACHE": str(self.folder / "cache"),
            "HF_TOKEN": self.token,
        }

    def run(self, *arguments: object, **changes: str | None) -> Ran:
        """`provindex ...`, whatever comes of it."""
        return run(*arguments, **{**self.environment, **changes})

    def told(self, *arguments: object, **changes: str | None) -> dict[str, Any]:
        """The document that a command answers with; it must succeed."""
        ran = self.run(*arguments, "--json", **changes)
        assert ran.status == 0, ran.err
        return dict(json.loads(ran.out))

    def told_offline(self, *arguments: object) -> dict[str, Any]:
        """The same where no socket can be opened."""
        ran = run_closed(["datasets"], *arguments, "--json", "--offline", **self.environment)
        assert ran.status == 0, ran.err
        return dict(json.loads(ran.out))

    def refused(self, *arguments: object, **changes: str | None) -> str:
        """What a command says that cannot run: one sentence and what to do, status 2, nothing on standard output."""
        ran = self.run(*arguments, "--quiet", **{"HF_HUB_DOWNLOAD_TIMEOUT": "1", **changes})
        lines = ran.err.strip().splitlines()
        assert (ran.status, ran.out, len(lines)) == (2, "", 1), (ran.status, ran.out, ran.err)
        assert not any(token in lines[0] for token in (MAINTAINER, CONTRIBUTOR, "Traceback"))
        return lines[0]
